"""What every engine must do, what it does when memory is short, and what vLLM needs around it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from orchestrator.errors import StageFailure
from orchestrator.registry import GENERATORS, lookup
from orchestrator.sft import needs, stages
from orchestrator.sft.generators.base import Engine, GeneratorSettings, in_rounds, through_end
from orchestrator.sft.generators.transformers import TransformersEngine
from orchestrator.sft.generators.vllm import linked, own_gpu
from orchestrator.sft.prepare import encode_prompt
from orchestrator.stage import Config
from orchestrator.tasks.math import MATH
from tests.sft import chain
from tests.sft.conftest import Ground, answers

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share

PROMPTS = ["Question:\n1\n", "A", "Question:\nHow many hours are 3 hours and 4 hours?\nAnswer:\n", "Bb\n" * 9]


def never(row: int, tokens: Sequence[int]) -> bool:
    return False


def settings(tokenizer: PreTrainedTokenizerBase, *, precision: str = "fp32") -> GeneratorSettings:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return GeneratorSettings(device, precision, tokenizer.eos_token_id, tokenizer.pad_token_id)


@pytest.fixture(params=GENERATORS)
def engine(request: pytest.FixtureRequest, ground: Ground, tokenizer: PreTrainedTokenizerBase) -> Engine:
    """Each engine, with the weights of a tiny base."""
    if request.param == "vllm" and not (needs.has_vllm() and torch.cuda.is_available()):
        pytest.skip("vLLM is not installed, or there is no GPU")
    made: Engine = lookup(GENERATORS, request.param, kind="engine")(settings(tokenizer))
    made.load(ground.inputs["base"][""])
    return made


def step_by_step(folder: Path, rows: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
    """Greedy decoding as the textbook has it: no batch, no padding, no cache."""
    model, new = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), []
    for row in rows:
        ids = list(row)
        for _ in range(num_tokens):
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        new.append(ids[len(row) :])
    return new


def test_an_engine_generates_greedily_and_in_order(
    engine: Engine, ground: Ground, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    expected = step_by_step(ground.inputs["base"][""], rows, 24)
    ends = [through_end(row, tokenizer.eos_token_id) for row in expected]
    assert engine.generate(rows, max_new_tokens=24, is_over=never) == ends
    assert len({tuple(row) for row in ends}) > 1


def test_an_engine_ends_a_row_with_the_end_token(
    engine: Engine, ground: Ground, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    whole = engine.generate(rows, max_new_tokens=24, is_over=never)
    end = whole[0][5]  # a token that comes up stands for the end token
    other = type(engine)(settings(tokenizer)._replace(eos_token_id=end))  # type: ignore[call-arg]
    other.load(ground.inputs["base"][""])
    found = other.generate(rows, max_new_tokens=24, is_over=never)
    assert found == [through_end(row, end) for row in whole]
    assert found[0][-1] == end and len(found[0]) <= 6


def test_an_engine_ends_a_row_that_is_over_and_no_other(
    engine: Engine, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    whole = engine.generate(rows, max_new_tokens=200, is_over=never)
    seen: dict[int, list[int]] = {}

    def is_over(row: int, tokens: Sequence[int]) -> bool:
        seen[row] = list(tokens)
        return row == 2

    found = engine.generate(rows, max_new_tokens=200, is_over=is_over)
    assert [found[row] for row in (0, 1, 3)] == [whole[row] for row in (0, 1, 3)]
    assert found[2] == seen[2] == whole[2][: len(found[2])]
    assert 0 < len(found[2]) < len(whole[2]) == 200


def test_an_engine_takes_other_weights(
    engine: Engine, trained: Ground, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    before = engine.generate(rows, max_new_tokens=8, is_over=never)
    folder = trained.inputs["train"][""] / "checkpoints/000018"
    engine.load(folder)
    after = engine.generate(rows, max_new_tokens=8, is_over=never)
    expected = step_by_step(folder, rows, 8)
    assert after == [through_end(row, tokenizer.eos_token_id) for row in expected] != before


def test_penalties_that_come_with_a_model_change_nothing(
    engine: Engine, ground: Ground, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    expected = engine.generate(rows, max_new_tokens=24, is_over=never)
    model = AutoModelForCausalLM.from_pretrained(ground.inputs["base"][""])
    model.generation_config = GenerationConfig(repetition_penalty=5.0, eos_token_id=expected[0][1])
    model.save_pretrained(tmp_path)
    engine.load(tmp_path)
    assert engine.generate(rows, max_new_tokens=24, is_over=never) == expected


def test_a_folder_without_a_model_fails_with_cause_data(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(StageFailure) as caught:
        TransformersEngine(settings(tokenizer)).load(tmp_path)
    assert caught.value.cause == "data" and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_batches_and_padding_change_no_answer(
    ground: Ground, tokenizer: PreTrainedTokenizerBase, size: int
) -> None:
    rows = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    engine = TransformersEngine(settings(tokenizer))
    engine.load(ground.inputs["base"][""])
    expected = step_by_step(ground.inputs["base"][""], rows, 6)
    found = answers(engine, tokenizer, PROMPTS, size=size, stop=str, max_new_tokens=6)
    assert [answer.text for answer in found] == tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert [answer.num_tokens for answer in found] == [6] * 4


@pytest.mark.parametrize("round_tokens", [1, 7, 24, 100])
def test_rounds_change_no_token(
    ground: Ground, tokenizer: PreTrainedTokenizerBase, round_tokens: int
) -> None:
    engine = TransformersEngine(settings(tokenizer))
    engine.load(ground.inputs["base"][""])
    rows = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    expected = engine.generate(rows, max_new_tokens=24, is_over=never)
    asked: list[int] = []

    def extend(rows: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        asked.append(num_tokens)
        return engine.generate(rows, max_new_tokens=num_tokens, is_over=never)

    how: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "round_tokens": round_tokens}
    assert in_rounds(extend, rows, max_new_tokens=24, is_over=never, **how) == expected
    assert sum(asked) == 24 and max(asked) <= round_tokens
    cut = in_rounds(extend, rows, max_new_tokens=24, is_over=lambda row, _: row != 1, **how)
    assert cut == [row if n == 1 else row[:round_tokens] for n, row in enumerate(expected)]


@pytest.fixture(scope="session")
def runs_on(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that writes question after question, as real ones do."""
    tokenizer = AutoTokenizer.from_pretrained(ground.inputs["tokenizer"][""])
    model = AutoModelForCausalLM.from_pretrained(ground.inputs["base"][""]).train()
    ids = torch.tensor([tokenizer("Question:\n3 + 4\nAnswer:\nThe answer is 7.\n" * 8).input_ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("runs-on")
    model.save_pretrained(folder)
    return folder


def test_a_base_model_that_runs_on_is_cut_and_ended(
    engine: Engine, runs_on: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine.load(runs_on)
    prompt = "Question:\n3 + 4\nAnswer:\n"
    (whole,) = answers(engine, tokenizer, [prompt], stop=str, max_new_tokens=200)
    assert whole.text.count("Question:") > 2 and (whole.num_tokens, whole.truncated) == (200, True)
    (answer,) = answers(engine, tokenizer, [prompt], stop=MATH.stop, max_new_tokens=200)
    assert MATH.is_correct(answer.text, "7", "en")
    assert answer.text == MATH.stop(whole.text) == "The answer is 7.\n"
    assert answer.num_tokens < 200 and not answer.truncated


def test_a_batch_that_does_not_fit_is_tried_once_more_and_never_made_smaller(
    ground: Ground, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    engine = TransformersEngine(settings(tokenizer))
    engine.load(ground.inputs["base"][""])
    expected = engine.generate(rows, max_new_tokens=8, is_over=never)
    sizes: list[int] = []

    def no_room(module: Any, inputs: Any, output: Any) -> None:
        sizes.append(len(output))
        if len(sizes) <= num_failing:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert engine._model is not None
    engine._model.get_input_embeddings().register_forward_hook(no_room)
    num_failing = 1
    assert engine.generate(rows, max_new_tokens=8, is_over=never) == expected
    sizes.clear()
    num_failing = 99
    with pytest.raises(StageFailure, match=r"batch of 4 prompts(.|\n)*evaluation\.batch_size") as caught:
        engine.generate(rows, max_new_tokens=8, is_over=never)
    assert caught.value.cause == "oom_gpu" and sizes == [4, 4]


@pytest.mark.parametrize(
    ("env", "gpu"),
    [
        ({}, "0"),
        ({"LOCAL_RANK": "3"}, "3"),
        ({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4,6"}, "6"),
        ({"CUDA_VISIBLE_DEVICES": "5"}, "5"),
    ],
)
def test_vllm_sees_the_ranks_own_gpu_and_no_torchrun(env: dict[str, str], gpu: str) -> None:
    torchrun = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "x", "WORLD_SIZE": "2", "HOME": "/h"}
    own = own_gpu({**env, **torchrun})
    assert own["CUDA_VISIBLE_DEVICES"] == gpu and own["HOME"] == "/h"
    assert own["VLLM_BATCH_INVARIANT"] == "1"  # or texts would depend on what is computed together
    assert not own.keys() & {"TORCHELASTIC_USE_AGENT_STORE", "MASTER_ADDR", "WORLD_SIZE", "LOCAL_RANK"}


def test_all_cells_of_a_gpu_have_their_models_at_one_path_for_the_compile_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first = linked(tmp_path / "first", {"CUDA_VISIBLE_DEVICES": "4"})
    assert first.resolve() == tmp_path / "first"
    assert linked(tmp_path / "second", {"CUDA_VISIBLE_DEVICES": "4"}) == first
    assert first.resolve() == tmp_path / "second"
    assert linked(tmp_path / "first", {"CUDA_VISIBLE_DEVICES": "5"}) != first


def test_the_batch_size_means_nothing_to_vllm_and_is_in_no_identity() -> None:
    def size(*overrides: str) -> int:
        return int(chain.small("languages=[]", *overrides)["evaluation"]["batch_size"])

    assert size("evaluation.engine=vllm", "evaluation.batch_size=7") == size("evaluation.engine=vllm")
    assert size("evaluation.batch_size=7") == 7


@pytest.mark.skipif(needs.has_vllm(), reason="vLLM is installed")
def test_without_vllm_the_message_says_how_to_install_it(ground: Ground, tmp_path: Path) -> None:
    config = chain.small("languages=[]", "evaluation.engine=vllm")
    (need,) = needs.engine_packages(Config(config).evaluation.engine)
    assert need.problem and "make vllm" in need.advice
    with pytest.raises(StageFailure, match="vllm is not installed: make vllm") as caught:
        chain.run(stages.EVALUATE, config, tmp_path, ground.inputs)
    assert caught.value.cause == "config"


def test_a_cell_that_needs_no_package_says_so() -> None:
    assert needs.engine_packages(Config(chain.small("languages=[]")).evaluation.engine) == []


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"unknown evaluation\.engine 'vlm'"):
        chain.small("evaluation.engine=vlm")

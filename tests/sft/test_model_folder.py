"""What is wrong with a model folder is one line of the plan, from headers alone."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import ByT5Tokenizer

from orchestrator.errors import StageFailure
from orchestrator.sft import stages
from orchestrator.sft.model_folder import context_tokens, inspect
from orchestrator.sft.needs import of_cell, problem_of
from orchestrator.stage import Config
from tests.sft import chain
from tests.sft.architectures import CAUSAL, DIFFERING, tiny
from tests.sft.conftest import Ground

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234567890\n"


@pytest.fixture
def folder(ground: Ground, tmp_path: Path) -> Path:
    """A whole model folder."""
    made = tmp_path / "model"
    shutil.copytree(ground.inputs["base"][""], made)
    shutil.copytree(ground.inputs["tokenizer"][""], made, dirs_exist_ok=True)
    return made


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def config(folder: Path, **values: Any) -> None:
    change(folder / "config.json", **values)


def pointer(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(POINTER)


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shards(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    save_file({name: weights[name] for name in names[1:]}, folder / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def no_map(folder: Path) -> None:
    shards(folder)
    change(folder / "model.safetensors.index.json", weight_map=["model-1.safetensors"])


def in_eight_bits(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**weights, name: weights[name].to(torch.int8)}, folder / "model.safetensors")


def in_eight_bit_floats(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    part = weights["model.layers.0.mlp.up_proj.weight"].to(torch.float8_e4m3fn)
    weights["model.layers.0.mlp.experts.gate_up_proj"] = part
    save_file(weights, folder / "model.safetensors")


def prefixed(prefix: str) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file({prefix + name: weights[name] for name in weights}, folder / "model.safetensors")

    return spoil


def header(shapes: str) -> Callable[[Path], Any]:
    """A file with these shapes and numbers of bytes, by the names of weights."""
    given = json.loads(shapes).items()
    tensors = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]} for name, (shape, size) in given
    }
    text = json.dumps(tensors).encode()
    data = len(text).to_bytes(8, "little") + text + b"\0" * sum(size for _, (_, size) in given)
    return lambda folder: (folder / "model.safetensors").write_bytes(data)


def cache_of_the_hub(folder: Path) -> None:
    (folder / "snapshots" / "0a1b").mkdir(parents=True)
    (folder / "config.json").rename(folder / "snapshots" / "0a1b" / "config.json")


def adapter_alone(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "config.json").unlink()


def no_shard(folder: Path) -> None:
    shards(folder)
    (folder / "model-1.safetensors").unlink()


def without_a_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".layers.1." not in name}
    save_file(kept, folder / "model.safetensors")


def larger_vocabulary(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    rows = weights["model.embed_tokens.weight"][:300].clone()
    save_file({**weights, "model.embed_tokens.weight": rows}, folder / "model.safetensors")
    config(folder, vocab_size=300)


def padding_outside(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    change(folder / "tokenizer_config.json", pad_token="[PAD]")


def no_end(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["eos_token"]
    file.write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


WRONG: list[tuple[Callable[[Path], Any], str]] = [
    (pointer("model.safetensors"), "model.safetensors is a git-lfs pointer"),
    (pointer("tokenizer.json"), "tokenizer.json is a git-lfs pointer"),
    (pointer("config.json"), "config.json is a git-lfs pointer"),
    (truncate, "model.safetensors is truncated or damaged: "),
    (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 5),
        "model.safetensors is truncated",
    ),
    (
        lambda folder: (folder / "model.safetensors").write_text("<html>no such page</html>"),
        "safetensors is trunc",
    ),
    (only_a_pickle, "no model.safetensors or .*pytorch_model.bin is a pickle"),
    (shards, "model-1.safetensors has no model.embed_tokens.weight"),
    (no_shard, "model-1.safetensors is missing"),
    (no_map, "model.safetensors.index.json has no weight_map"),
    (in_eight_bits, "mlp.up_proj.weight is of type I8: quantised"),
    (
        lambda folder: change(folder / "tokenizer_config.json", eos_token="<end>"),
        "eos_token '<end>' is no token of tokenizer.json",
    ),
    (without_a_layer, "config.json: 2 layers, but the weights of model.layers.1 are missing"),
    (larger_vocabulary, "tokenizer.json: tokens up to id 399, but the embedding has 300 rows"),
    (
        padding_outside,
        r"tokenizer_config.json: pad_token '\[PAD\]' is id 400, but the embedding has 400 rows",
    ),
    (lambda folder: config(folder, pad_token_id=9999), "config.json: pad_token_id 9999 is outside"),
    (lambda folder: config(folder, eos_token_id=[2, 400]), "config.json: eos_token_id 400 is outside"),
    (lambda folder: config(folder, vocab_size=401), "config.json: vocab_size 401, but .* has 400 rows"),
    (
        lambda folder: change(folder / "tokenizer_config.json", eos_token=None),
        "tokenizer_config.json: no eos_token",
    ),
    (no_end, "tokenizer_config.json: no eos_token"),
    (lambda folder: config(folder, max_position_embeddings=8), "8 positions .*evaluation.max_new_tokens=8"),
    (
        lambda folder: config(folder, max_position_embeddings=40),
        r"config.json: 40 positions, but test prompts of en have up to \d+ tokens and"
        r" evaluation.max_new_tokens=8: ",
    ),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    (
        lambda folder: config(folder, model_type="t5", is_encoder_decoder=True),
        "'t5' is no causal language model",
    ),
    (lambda folder: config(folder, model_type="bart", is_encoder_decoder=True), "'bart' is no causal"),
    (lambda folder: config(folder, model_type="mine"), "'mine' is unknown to the installed transformers"),
    (
        lambda folder: config(folder, model_type="mine", auto_map={"AutoConfig": "x.Y"}),
        "'mine' needs code of its own",
    ),
    (lambda folder: config(folder, quantization_config={"quant_method": "gptq"}), "quantization_config"),
    (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter_config.json: an adapter"),
    (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "^no tokenizer.json, nor another file of a tokenizer",
    ),
    (cache_of_the_hub, "^no config.json; the folder holds models: name one, such as snapshots/0a1b$"),
    (adapter_alone, "adapter_config.json: an adapter; merge it into its model"),
    (lambda folder: config(folder, num_hidden_layers=10**9), "1000000000 layers.* 999999997 more layers are"),
    (lambda folder: config(folder, num_hidden_layers="2"), "num_hidden_layers is '2', not a whole number"),
    (lambda folder: config(folder, model_type=["qwen3"]), "config.json: model_type .* is unknown"),
    (lambda folder: config(folder, eos_token_id="</s>"), "eos_token_id is '</s>', not the id of a token"),
    (
        lambda folder: change(folder / "tokenizer_config.json", eos_token=["x"], added_tokens_decoder=[1]),
        r"eos_token \['x'\] is no token of tokenizer.json",
    ),
    (header('{"model.embed_tokens.weight": [[400, 16], 4]}'), "is damaged: model.embed_tokens.weight does"),
    (header('{"model.embed_tokens.weight": [[], 4]}'), "vocab_size 400, but .* has 0 rows"),
    (header("{}"), "model.safetensors holds no weights"),
    (in_eight_bit_floats, "mlp.experts.gate_up_proj is of type F8_E4M3: quantised"),
    (prefixed("_fsdp_wrapped_module."), "all names of weights begin with '_fsdp_wrapped_module.'"),
    (prefixed("base_model.model."), "all names of weights begin with 'base_model.model.'"),
]


@pytest.mark.parametrize(("spoil", "says"), WRONG)
def test_what_is_wrong_with_a_folder_is_one_line_that_names_the_file(
    folder: Path, spoil: Callable[[Path], Any], says: str
) -> None:
    cell = chain.small("languages=[en]", f"model.path={folder}")
    assert of_cell(Config(cell)) == []
    spoil(folder)
    (need,) = of_cell(Config(cell))
    assert need.what == f"model.path={folder}" and not need.fetch
    assert "\n" not in need.problem
    assert re.search(says, need.problem), need.problem


@pytest.mark.parametrize(
    "name", ["tokenizer.model.v3", "qwen.tiktoken", "spm_char.model", "entity_vocab.json"]
)
def test_a_tokenizer_may_have_another_file(folder: Path, name: str) -> None:
    (folder / "tokenizer.json").rename(folder / name)
    assert problem_of(folder, 1) == ""


def test_a_tokenizer_of_bytes_needs_no_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    ByT5Tokenizer().save_pretrained(folder)
    assert problem_of(folder, 1) == ""
    change(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    assert problem_of(folder, 1).startswith("no tokenizer.json")


@pytest.mark.parametrize(
    "model_type", [*DIFFERING, *(pytest.param(name, marks=pytest.mark.long) for name in CAUSAL)]
)
def test_a_whole_folder_of_any_architecture_is_in_order(tmp_path: Path, model_type: str) -> None:
    tiny(model_type).save_pretrained(tmp_path)
    assert inspect(tmp_path).problem == ""
    (tmp_path / "pytorch_model.bin").write_text(POINTER)  # what is not read may be missing
    assert inspect(tmp_path).problem == ""


def test_what_transformers_writes_but_json_lacks_is_in_order(folder: Path) -> None:
    config(folder, time_step_limit=[0.0, math.inf], rope_scaling={"type": "linear", "factor": math.inf})
    assert "Infinity" in (folder / "config.json").read_text()
    assert inspect(folder).problem == ""


def test_the_longest_prompt_and_answer_may_fill_the_context_to_the_last_position(folder: Path) -> None:
    cell = chain.small("languages=[en]", f"model.path={folder}")
    config(folder, max_position_embeddings=60)
    (need,) = of_cell(Config(cell))
    match = re.search(r"up to (\d+) tokens", need.problem)
    assert match, need.problem
    fits = int(match[1]) + 8
    config(folder, max_position_embeddings=fits)
    problems = [one.problem for one in of_cell(Config(cell)) if "test prompts of en" in one.problem]
    config(folder, max_position_embeddings=fits - 1)
    (need,) = of_cell(Config(cell))
    assert problems == []
    assert need.problem.endswith("evaluation.max_new_tokens=8: evaluation.max_new_tokens=7")


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ({"max_position_embeddings": 40960}, 40960),
        ({"n_positions": 1024, "n_ctx": 512}, 1024),
        ({"max_seq_len": 2048}, 2048),
        ({"model_max_length": 8192}, 8192),
        ({"hidden_size": 8}, None),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 4.0}}, 8192),
        ({"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 4096),
        (
            {
                "max_position_embeddings": 131072,  # Llama 3.1: what it reaches
                "rope_scaling": {
                    **{"rope_type": "llama3", "factor": 8.0},
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 40960,  # Qwen3 with YaRN, as its card says
                "rope_scaling": {
                    **{"rope_type": "yarn", "factor": 4.0},
                    "original_max_position_embeddings": 32768,
                },
            },
            131072,
        ),
        (
            {
                "model_type": "gemma3_text",
                **{"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            },
            131072,
        ),
    ],
)
def test_the_positions_of_a_model_are_those_that_its_scaling_reaches(
    text: dict[str, Any], positions: int | None
) -> None:
    assert context_tokens(text) == positions


def test_a_tiny_model_has_room_for_no_more_than_its_positions() -> None:
    (need,) = of_cell(Config(chain.small("languages=[en]", "evaluation.max_new_tokens=4096")))
    assert need.problem == "4096 positions are no more than evaluation.max_new_tokens=4096"


def test_rows_longer_than_the_context_and_tokens_without_an_embedding_fail_in_prepare(
    ground: Ground, folder: Path, tmp_path: Path
) -> None:
    cell = chain.small("languages=[en]", f"model.path={folder}")
    config(folder, max_position_embeddings=20)
    with pytest.raises(
        StageFailure, match=r"but config\.json has 20 positions: trainer\.max_length_tokens=20"
    ):
        chain.run(stages.PREPARE, cell, tmp_path / "context", language="en")
    config(folder, max_position_embeddings=4096)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["answer"])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert inspect(folder).problem == ""  # only a text that spells it out would need it
    with pytest.raises(StageFailure, match="a token of the rows is id 400, but the embedding has 400 rows"):
        chain.run(stages.PREPARE, cell, tmp_path / "tokens", language="en")


def test_a_pointer_in_a_folder_of_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "mgsm").mkdir()
    (tmp_path / "mgsm" / "mgsm_en.tsv").write_text(POINTER)
    (tmp_path / "train.parquet").write_text("whole")
    cell = chain.config_of()
    cell["items"].update(source="files", train_dir=str(tmp_path), test_dir=str(tmp_path))
    (need,) = of_cell(Config(cell))
    assert need.what == f"data in {tmp_path}"
    assert need.problem == "mgsm/mgsm_en.tsv is a git-lfs pointer, not the file: git lfs pull"


def test_looking_again_costs_a_fraction_of_a_millisecond_and_sees_every_change(folder: Path) -> None:
    cell = Config(chain.small("languages=[en]", f"model.path={folder}"))
    assert of_cell(cell) == []
    start_s = time.process_time()
    for _ in range(200):
        of_cell(cell)
    assert (time.process_time() - start_s) / 200 < 2e-3
    truncate(folder)
    assert len(of_cell(cell)) == 1


def test_looking_at_a_folder_imports_no_torch_and_no_transformers(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from orchestrator.sft.needs import problem_of;"
        f"assert problem_of(Path({str(folder)!r}), 8) == '';"
        "sys.exit(str({'torch', 'transformers', 'tokenizers', 'safetensors'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "\n"), done.stderr

"""Parameters and memory: the study's exact numbers, and what must hold of any model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sft.memory import (
    BUSY_TOKENS,
    GIB,
    MAX_PACK_TOKENS,
    Decoder,
    Load,
    decoder,
    num_parameters,
    terms_gib,
    widest_pack,
)
from orchestrator.sft.speed import decided, fit
from tests.sft import chain

PARAMETERS = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-8b": 8_190_735_360,
    "gemma3-1b": 999_885_952,
    "gemma3-4b": 3_880_263_168,
}
"""Study, section 5."""

LOADS = st.builds(
    Load,
    row_tokens=st.integers(1, 4096),
    checkpointing=st.sampled_from([False, "selective", True]),
    value_bytes=st.sampled_from([2, 4]),
    loss_chunk_tokens=st.none() | st.integers(1, 8192),
)


def of_study(name: str) -> Decoder:
    model = chain.config_of(f"model={name}")["model"]
    return decoder(model["architecture"], model["family"])


class Study(dict[str, Decoder]):
    """The study's models, each composed when it is first used: all workers import this file."""

    def __missing__(self, name: str) -> Decoder:
        self[name] = of_study(name)
        return self[name]


STUDY = Study()


@pytest.fixture(scope="module", autouse=True)
def _compose_all() -> None:
    """Has them ready, since the deadline of a property does not allow for that."""
    for name in PARAMETERS:
        STUDY[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_studys_models_have_exactly_their_parameters(name: str) -> None:
    assert STUDY[name].num_parameters == PARAMETERS[name]


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_the_count_is_that_of_the_library(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    sizes: dict[str, Any] = {
        "num_layers": 3,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "vocab_size": 97,
        "tied": family == "gemma3",
    }
    config = {"qwen3": transformers.Qwen3Config, "gemma3": transformers.Gemma3TextConfig}[family](
        num_hidden_layers=3,
        hidden_size=48,
        intermediate_size=80,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=97,
        tie_word_embeddings=sizes["tied"],
        pad_token_id=0,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert num_parameters(sizes, family) == model.num_parameters()


def test_the_terms_are_those_of_the_study() -> None:
    load = Load(row_tokens=1024)
    one = terms_gib(STUDY["qwen3-8b"], load, num_gpus=1, micro_batch=1, memory_gib=80)
    four = terms_gib(STUDY["qwen3-8b"], load, num_gpus=4, micro_batch=1, memory_gib=80)
    assert one["state"] == pytest.approx(16 * 8_190_735_360 / GIB)
    assert four["state"] == pytest.approx(one["state"] / 4)
    assert one["activations"] == pytest.approx(36 * 1024 * 4096 * 2 / GIB)
    assert one["logits"] * GIB == pytest.approx(2.2e9, rel=0.02)  # 2.2 GB per 1,024 tokens
    gemma = terms_gib(STUDY["gemma3-4b"], load, num_gpus=1, micro_batch=1, memory_gib=80)
    assert gemma["logits"] * GIB == pytest.approx(3.8e9, rel=0.02)


@pytest.mark.parametrize("chunk", [None, 256, 1024])
@pytest.mark.parametrize("max_gpus", [1, 2, 4, 8])
def test_8b_needs_at_least_four_devices_of_80_gb(max_gpus: int, chunk: int | None) -> None:
    found = fit(
        STUDY["qwen3-8b"],
        Load(row_tokens=2048, loss_chunk_tokens=chunk),
        max_gpus=max_gpus,
        memory_gib=80,
        global_batch=512,
        micro_batch=None,
    )
    assert (found is None) == (max_gpus < 4)
    assert found is None or (found.num_gpus == 4 and found.memory_gib <= 80)


@pytest.mark.parametrize("global_batch", [512, 24, 7, 4])
@pytest.mark.parametrize("num_gpus", [1, 3, 8])
def test_a_micro_batch_is_no_wider_than_a_devices_share_of_the_step(global_batch: int, num_gpus: int) -> None:
    found = fit(
        STUDY["qwen3-0.6b"],
        Load(row_tokens=300),
        max_gpus=8,
        memory_gib=80,
        global_batch=global_batch,
        micro_batch=None,
        num_gpus=num_gpus,
    )
    share = max(1, global_batch // num_gpus) * 300
    assert found is not None and found.tokens <= max(300, min(share, MAX_PACK_TOKENS))
    assert found.micro_batch == found.tokens // 300 >= 1


@given(
    st.sampled_from(sorted(PARAMETERS)), LOADS, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8])
)
def test_a_larger_micro_batch_or_a_longer_row_never_takes_less(
    name: str, load: Load, num_gpus: int, size: int
) -> None:
    def total(load: Load, size: int) -> float:
        return sum(terms_gib(STUDY[name], load, num_gpus=num_gpus, micro_batch=size, memory_gib=80).values())

    assert total(load, 2 * size) >= total(load, size)
    assert total(load._replace(row_tokens=load.row_tokens + 1), size) >= total(load, size)


@given(st.sampled_from(sorted(PARAMETERS)), LOADS, st.sampled_from([2, 4, 8]))
def test_more_devices_never_hold_more_each(name: str, load: Load, num_gpus: int) -> None:
    few, many = (
        sum(terms_gib(STUDY[name], load, num_gpus=n, micro_batch=1, memory_gib=80).values())
        for n in (num_gpus, 2 * num_gpus)
    )
    assert many <= few


@given(st.sampled_from(sorted(PARAMETERS)), LOADS, st.sampled_from([24.0, 40.0, 80.0, 141.0]))
def test_what_is_said_to_fit_does_and_nothing_larger_would(name: str, load: Load, memory_gib: float) -> None:
    model = STUDY[name]
    found = fit(model, load, max_gpus=8, memory_gib=memory_gib, global_batch=1_000_000, micro_batch=None)
    for num_gpus in (1, 2, 4, 8):
        tokens = widest_pack(model, load, num_gpus=num_gpus, memory_gib=memory_gib)
        if found is None or num_gpus < found.num_gpus:
            assert tokens is None
        elif num_gpus == found.num_gpus:
            assert tokens == found.tokens and found.memory_gib <= memory_gib
            if tokens < MAX_PACK_TOKENS:
                wider = load._replace(row_tokens=tokens + 128)
                terms = terms_gib(model, wider, num_gpus=num_gpus, micro_batch=1, memory_gib=memory_gib)
                assert sum(terms.values()) > memory_gib


def test_the_fastest_recomputation_is_taken_that_memory_allows() -> None:
    load = Load(row_tokens=2048, checkpointing=None, loss_chunk_tokens=1024)

    def recomputes(name: str, num_gpus: int, memory_gib: float, **how: Any) -> object:
        how = {"num_gpus": num_gpus, "memory_gib": memory_gib, "most_tokens": MAX_PACK_TOKENS, **how}
        return decided(STUDY[name], load, **how).checkpointing

    assert recomputes("qwen3-0.6b", 1, 80) is False
    assert recomputes("qwen3-8b", 8, 250) is False
    # Selective recomputation is free where layers are compiled, and gives wider packs.
    assert recomputes("qwen3-1.7b", 1, 80) == "selective"
    assert recomputes("qwen3-8b", 4, 80) == "selective"
    assert recomputes("qwen3-8b", 4, 64) is True
    # Otherwise it waits for Python.
    assert recomputes("qwen3-1.7b", 1, 80, is_compiled=False) is False
    assert recomputes("qwen3-1.7b", 1, 80, least_tokens=32_768) is True
    given = load._replace(checkpointing=True)
    assert decided(STUDY["qwen3-0.6b"], given, num_gpus=8, memory_gib=80, most_tokens=1) == given
    found = fit(STUDY["qwen3-1.7b"], load, max_gpus=8, memory_gib=80, global_batch=512, micro_batch=None)
    assert found is not None and found.checkpointing == "selective" and found.tokens >= BUSY_TOKENS
    rows = fit(STUDY["qwen3-1.7b"], load, max_gpus=8, memory_gib=80, global_batch=512, micro_batch=16)
    assert rows is not None and rows.checkpointing and rows.tokens == 16 * 2048


def test_processes_of_one_host_share_no_state() -> None:
    load = Load(row_tokens=16, value_bytes=4, on_cpu=True)
    model = STUDY["qwen3-8b"]
    assert fit(model, load, max_gpus=8, memory_gib=24, global_batch=8, micro_batch=1) is None
    found = fit(model, load, max_gpus=8, memory_gib=256, global_batch=8, micro_batch=1)
    assert found is not None and found.num_gpus == 1


def test_copies_on_each_device_share_no_state_and_an_asked_number_is_the_only_one_tried() -> None:
    model, load = STUDY["gemma3-4b"], Load(row_tokens=2048)

    def found(load: Load, num_gpus: int | None) -> int | None:
        one = fit(
            model, load, max_gpus=8, memory_gib=80, global_batch=512, micro_batch=None, num_gpus=num_gpus
        )
        return one and one.num_gpus

    assert [found(load, number) for number in (None, 1, 2, 8)] == [2, None, 2, 8]
    assert [found(load._replace(sharded=False), number) for number in (None, 8)] == [None, None]
    assert found(load, 16) is None

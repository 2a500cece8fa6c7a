"""Rows in packs: divided evenly, kept apart, and with the loss and gradient that they have side by side."""

from __future__ import annotations

import json
from itertools import chain as joined
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import StageFailure
from orchestrator.sft import kernels
from orchestrator.sft.batches import Batches, MicroBatches, can_pack, choose
from orchestrator.sft.distributed.parallel import Placed, group_of_one, whole
from orchestrator.sft.loss import ResponseLoss
from orchestrator.sft.packing import (
    MAX_WIDTHS,
    Packs,
    PaddedTokens,
    _spread,
    expected_share,
    plan_widths,
    useful_share,
)
from orchestrator.sft.shards import Batch, EpochOrder, Example, Rows
from orchestrator.sft.train import Training
from orchestrator.stage import Config, Context
from tests.sft.architectures import tiny
from tests.sft.conftest import Ground
from tests.sft.test_order_and_loss import gradients
from tests.sft.test_training import history, train
from tests.sft.test_two_processes import FSDP, TWO, distance

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=80)
NULL = ("trainer.micro_batch_size=null", "trainer.micro_batch_tokens=300")


def rows_of(lengths: list[int], *, prompt: int = 2, vocabulary: int = 150) -> Rows:
    generator = np.random.default_rng(0)
    return Rows(
        [
            Example("train", str(n), prompt, generator.integers(3, vocabulary, length).tolist())
            for n, length in enumerate(lengths)
        ],
        pad_token_id=0,
    )


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 8), st.integers(1, 200), st.integers(1, 30))
def test_each_row_of_a_step_is_in_one_pack_and_all_processes_compute_the_same(
    lengths: list[int], processes: int, tokens: int, batch: int
) -> None:
    array = np.array(lengths)
    steps = EpochOrder(array, global_batch_size=batch, seed=0).steps(0)
    widths = plan_widths(array, steps, num_processes=processes, max_tokens=tokens)
    assert 1 <= len(widths) <= MAX_WIDTHS and list(widths) == sorted(set(widths))
    packs = Packs(array, widths=widths)
    computed = packs.computed(steps, num_processes=processes)
    for rows, positions in zip(steps, computed, strict=True):
        shares = [packs.parts(rows, rank=rank, num_processes=processes) for rank in range(processes)]
        assert len({len(share) for share in shares}) == 1
        parts = list(joined.from_iterable(shares))
        assert sorted(row for part in parts for row in part.rows) == sorted(rows)
        assert len({part.width for part in parts}) == 1 and parts[0].width in widths
        assert all(array[part.rows].sum() <= (part.width or 0) for part in parts)
        assert all(part.masked == (not part.rows) for part in parts)
        assert sum(part.width or 0 for part in parts) == positions
    assert 0 < useful_share(array, steps, computed) <= 1


@given(LENGTHS, st.integers(1, 8), st.integers(1, 200))
def test_rows_that_cannot_be_packed_are_divided_by_tokens(
    lengths: list[int], processes: int, tokens: int
) -> None:
    array = np.sort(np.array(lengths))[::-1]
    division = PaddedTokens(array, max_tokens=tokens)
    every = np.arange(len(array))
    shares = [division.parts(every, rank=rank, num_processes=processes) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    parts = list(joined.from_iterable(shares))
    assert sorted(row for part in parts if not part.masked for row in part.rows) == every.tolist()
    assert all(
        len(part.rows) == 1 or len(part.rows) * int(array[part.rows].max()) <= tokens for part in parts
    )


@pytest.mark.parametrize("processes", [1, 8])
def test_rows_of_usual_lengths_use_more_than_95_percent_of_what_is_computed(processes: int) -> None:
    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(5.7, 0.5, 10_000)), 16, 2048).astype(int)
    steps = EpochOrder(lengths, global_batch_size=512, seed=0).steps(0)
    for tokens in (4_096, 32_768):
        widths = plan_widths(lengths, steps, num_processes=processes, max_tokens=tokens)
        computed = Packs(lengths, widths=widths).computed(steps, num_processes=processes)
        assert useful_share(lengths, steps, computed) > 0.95
        assert max(widths) <= tokens


def test_equal_rows_fill_packs_of_a_number_that_divides_them() -> None:
    lengths = np.full(1024, 300)
    steps = EpochOrder(lengths, global_batch_size=512, seed=0).steps(0)
    for tokens in (600, 2_048, 32_768):
        widths = plan_widths(lengths, steps, num_processes=8, max_tokens=tokens)
        assert (
            useful_share(lengths, steps, Packs(lengths, widths=widths).computed(steps, num_processes=8))
            > 0.98
        )


@pytest.mark.parametrize("model_type", ["qwen3", "llama", "gemma3_text", "gemma3", "gpt2"])
def test_loss_and_gradients_of_packs_are_those_of_rows_side_by_side(model_type: str) -> None:
    lengths = [12, 9, 4, 3, 40, 21, 1]  # longer and shorter than the sliding window of 16
    rows, model = rows_of(lengths), tiny(model_type).eval()
    module = ResponseLoss(model, chunk_tokens=7)
    own = module(rows.batch(range(len(lengths))))
    own.backward()
    expected = gradients(model)
    kernels.enable(module._decoder)
    loss = module(rows.pack([4, 0, 2], width=64)) + module(rows.pack([5, 1, 3, 6], width=64))
    loss = loss + module(rows.pack([], width=64))
    loss.backward()
    assert loss.item() == pytest.approx(own.item(), rel=1e-5)
    found = gradients(model)
    assert set(found) == set(expected)
    error = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    assert (error / sum(float(value.square().sum()) for value in expected.values())) ** 0.5 < 1e-5


@pytest.mark.parametrize(
    ("model_type", "packed"),
    [("qwen3", True), ("gemma3_text", True), ("gpt2", True), ("falcon_h1", False), ("bloom", False)],
)
def test_a_model_packs_rows_only_if_none_sees_another(model_type: str, packed: bool) -> None:
    placed = Placed(
        lambda: tiny(model_type),
        device=torch.device("cpu"),
        sharding="ddp",
        bf16=False,
        gradient_checkpointing=False,
        chunk_tokens=8,
    )
    rows = rows_of([12, 9, 30])
    with placed.evaluating():
        before = placed.losses(rows.batch([0, 1, 2])).item()
    found = can_pack(placed, rows, bf16=False)
    assert found.packed == packed
    with placed.evaluating():
        assert placed.losses(rows.batch([0, 1, 2])).item() == pytest.approx(before, rel=1e-6)
    names = {config._attn_implementation for config in kernels._configs(placed.decoder)}
    assert (kernels.NAME in names) == packed


def test_boundaries_for_the_kernel_cover_every_position_in_a_tensor_of_fixed_size() -> None:
    rows, order = rows_of([5, 4, 3, 3, 2, 1]), EpochOrder([5, 4, 3, 3, 2, 1], global_batch_size=6, seed=0)
    batches = Batches(
        rows,
        rows,
        order=order,
        num_epochs=1,
        global_batch_size=6,
        micro=MicroBatches(tokens=16, packed=True, by_kernel=True),
        num_processes=2,
    )
    (part,) = batches.of_step(order.steps(0)[0])
    pack = batches.batch(part)
    assert pack.ends is not None and part.width is not None and pack.longest == 5
    assert pack.ends[0] == 0 and pack.ends[-1] == part.width == pack.input_ids.shape[1]
    lengths = pack.ends.diff()
    assert lengths.min() >= 0 and lengths.max() <= 5
    assert lengths[: len(part.rows)].tolist() == rows.lengths[part.rows].tolist()
    empty = rows.pack([], width=part.width, segments=batches._segments)
    assert empty.ends is not None and empty.ends.shape == pack.ends.shape and not len(empty.targets)


@pytest.mark.parametrize(
    "how",
    [
        (),
        (FSDP,),
        pytest.param((TWO, FSDP), marks=pytest.mark.long),
        pytest.param((TWO, "trainer.sharding=ddp"), marks=pytest.mark.long),
    ],
    ids=["one", "fsdp-of-one", "fsdp", "ddp"],
)
def test_a_training_with_packs_makes_the_steps_of_one_without(
    ground: Ground, tmp_path: Path, how: tuple[str, ...]
) -> None:
    steps = ("trainer.learning_rate=1e-3", "trainer.global_batch_size=14")
    padded = train(ground, tmp_path / "padded", *steps, "trainer.micro_batch_size=7")
    packed = train(ground, tmp_path / "packed", *steps, *NULL, *how)
    assert distance(padded, packed) < 1e-5
    assert len(history(packed)[0]) == 12
    summary = json.loads((packed / "training.json").read_text())
    assert summary["packing"]["packed"] and summary["micro_batch_size"] is None
    assert summary["micro_batch_tokens"] == 300 and 1 <= len(summary["widths"]) <= MAX_WIDTHS
    assert summary["useful_share"] > 0.6 and summary["padding_share"] < 0.4


class Small(Placed):
    """A model on a device whose memory holds a certain number of positions."""

    positions = 0

    def losses(self, batch: Batch, *, is_last: bool = True) -> torch.Tensor:
        if batch.input_ids.numel() > self.positions:
            raise torch.OutOfMemoryError
        return super().losses(batch, is_last=is_last)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_widest_pack_that_does_not_fit_is_found_before_the_first_step(
    sharding: str, tmp_path: Path
) -> None:
    device, rows = torch.device("cpu"), rows_of([30, 20, 11, 9, 14, 3, 8, 21])
    given = {"learning_rate": 1e-3, "num_epochs": 1, "global_batch_size": 8, "warmup_share": 0.0}
    given |= {"weight_decay": 0.1, "max_grad_norm": 1.0, "precision": "fp32"}
    with group_of_one(sharding, device):
        placed = Small(
            lambda: tiny("qwen3"),
            device=device,
            sharding=sharding,
            bf16=False,
            gradient_checkpointing=False,
            chunk_tokens=8,
        )
        before = [whole(parameter).clone() for parameter in placed.parameters]
        uses = {"micro_batch_size": None, "micro_batch_tokens": 120, "gradient_checkpointing": "auto"}
        found = []
        for placed.positions in (60, 1000):
            chosen = choose(Config(given), Config(uses), placed, rows)
            training = Training(
                placed,
                rows=rows,
                validation=rows,
                settings=Config({"seed": 0, "trainer": given}),
                context=Context(tmp_path),
                micro=chosen.micro,
            )
            found.append(training.fits())
            assert not training._updates.optimizer.state
        assert found == [False, True]
        assert all(torch.equal(whole(p), own) for p, own in zip(placed.parameters, before, strict=True))
        assert all(parameter.grad is None for parameter in placed.parameters)
    tokens = [choose(Config(given), Config(uses), placed, rows, out_of_memory=n) for n in range(4)]
    assert [(one.micro.tokens, one.recompute) for one in tokens] == [
        (120, False),
        (120, True),
        (60, True),
        (30, True),
    ]
    with pytest.raises(StageFailure, match="not even a micro-batch of one row"):
        choose(Config(given), Config(uses), placed, rows, out_of_memory=4)


@pytest.mark.parametrize("num_packs", [2, 7, 40])
def test_few_steps_are_divided_as_many_are(num_packs: int) -> None:
    table = -np.sort(-np.random.default_rng(0).integers(0, 900, (40, 300)))
    many, few = _spread(table, num_packs), _spread(table[:3], num_packs)
    assert all(np.array_equal(one[:3], other) for one, other in zip(many, few, strict=True))


@pytest.mark.parametrize("num_processes", [1, 8])
@pytest.mark.parametrize(
    ("means", "rows_each"), [((355.0,), 10_000), ((525.0,), 3_024), ((355.0, 1140.0), 5_000)]
)
def test_the_expected_useful_share_is_nearly_that_of_a_whole_training(
    means: tuple[float, ...], rows_each: int, num_processes: int
) -> None:
    random = np.random.default_rng(5)
    drawn = np.concatenate([random.lognormal(np.log(mean) - 0.125, 0.5, rows_each) for mean in means])
    lengths = np.clip(drawn, 1, 2048).astype(np.int64)
    steps = EpochOrder(lengths, global_batch_size=512, seed=0).steps(0)
    widths = plan_widths(lengths, steps, num_processes=num_processes, max_tokens=14_000)
    computed = Packs(lengths, widths=widths).computed(steps, num_processes=num_processes)
    how: dict[str, Any] = {
        "num_rows": len(lengths),
        "global_batch_size": 512,
        "longest": 2048,
        "num_processes": num_processes,
        "max_tokens": 14_000,
    }
    packed = expected_share(means, 0.5, **how)
    assert packed == pytest.approx(useful_share(lengths, steps, computed), abs=0.02)
    assert expected_share(means, 0.5, **how, micro_batch_size=64) < packed - 0.05


def test_the_expected_share_of_fewer_rows_than_a_step_has_is_that_of_their_only_step() -> None:
    how: dict[str, Any] = {"longest": 2048, "num_processes": 1, "max_tokens": 14_000}
    share = expected_share((400.0,), 0.5, num_rows=8, global_batch_size=512, **how)
    assert 0.5 < share <= 1
    assert expected_share((400.0,), 0.5, num_rows=8, global_batch_size=8, **how) == share

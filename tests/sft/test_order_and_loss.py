"""Which rows a step has and who computes them, and a loss that does not depend on how it is computed."""

from __future__ import annotations

from itertools import chain as joined
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional

from orchestrator.sft import runtime
from orchestrator.sft.distributed.parallel import Placed
from orchestrator.sft.loss import ResponseLoss
from orchestrator.sft.packing import RowsAtATime
from orchestrator.sft.shards import EpochOrder, Example, Rows
from tests.sft.conftest import Ground
from tests.sft.sharded import save_weights

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 12), st.integers(0, 2**31), st.integers(0, 5))
def test_each_epoch_has_every_row_once_and_another_order(
    lengths: list[int], size: int, seed: int, epoch: int
) -> None:
    order = EpochOrder(lengths, global_batch_size=size, seed=seed)
    steps = order.steps(epoch)
    assert len(steps) == order.steps_per_epoch
    assert [len(rows) for rows in steps[:-1]] == [size] * (len(steps) - 1)
    assert sorted(joined.from_iterable(steps)) == list(range(len(lengths)))
    for rows in steps:
        assert list(np.array(lengths)[rows]) == sorted(np.array(lengths)[rows], reverse=True)
    again = EpochOrder(lengths, global_batch_size=size, seed=seed)
    again.steps(epoch + 1)  # what was asked before makes no difference
    assert all(map(np.array_equal, steps, again.steps(epoch)))


@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 8))
def test_micro_batches_and_processes_share_out_the_same_rows(
    num_rows: int, size: int, processes: int
) -> None:
    rows = np.random.default_rng(num_rows).permutation(num_rows)
    division = RowsAtATime(size)
    shares = [division.parts(rows, rank=rank, num_processes=processes) for rank in range(processes)]
    assert len({len(parts) for parts in shares}) == 1
    parts = [part for share in zip(*shares, strict=True) for part in share]
    assert [row for part in parts if not part.masked for row in part.rows] == rows.tolist()
    masked = [part for part in parts if part.masked]
    assert len(masked) < processes
    assert all(part.rows == [rows[-1]] for part in masked)
    assert max(len(part.rows) for part in parts) <= size


def examples(*lengths: tuple[int, int]) -> list[Example]:
    generator = np.random.default_rng(0)
    return [
        Example("train", str(n), prompt, generator.integers(3, 200, length).tolist())
        for n, (prompt, length) in enumerate(lengths)
    ]


ROWS = examples((5, 12), (1, 9), (0, 4), (3, 3), (7, 20))


def test_a_batch_points_at_the_tokens_before_each_response_token() -> None:
    batch = Rows(ROWS, pad_token_id=0).batch([0, 2, 3])
    assert batch.input_ids.shape == (3, 12)
    assert batch.input_ids[1].tolist() == [*ROWS[2].input_ids, *[0] * 8]
    assert batch.positions.tolist() == [4, 5, 6, 7, 8, 9, 10, 12, 13, 14]
    assert batch.targets.tolist() == [*ROWS[0].input_ids[5:], *ROWS[2].input_ids[1:]]
    masked = Rows(ROWS, pad_token_id=0).batch([0, 2], masked=True)
    assert masked.input_ids.shape == (2, 12) and not len(masked.positions) and not len(masked.targets)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize(("family", "softcap"), [("qwen3", None), ("gemma3", None), ("gemma3", 3.0)])
def test_the_loss_in_chunks_is_the_models_own_with_labels_and_mask(
    ground: Ground, gemma_ground: Ground, family: str, softcap: float | None
) -> None:
    model = runtime.load_weights((ground if family == "qwen3" else gemma_ground).inputs["base"][""])
    if softcap:
        model.config.final_logit_softcapping = softcap
    rows = Rows(ROWS, pad_token_id=0)
    batch = rows.batch(range(5))
    labels = torch.full_like(batch.input_ids, -100)
    labels.view(-1)[batch.positions + 1] = batch.targets
    mask = torch.zeros_like(batch.input_ids)
    for number, length in enumerate(rows.lengths):
        mask[number, :length] = 1
    logits = model(input_ids=batch.input_ids, attention_mask=mask).logits
    own = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", ignore_index=-100
    )
    own.backward()
    expected = gradients(model)
    assert expected and len(batch.targets) == rows.num_targets.sum() == 31
    for chunk_tokens in (1, 7, 1024):
        loss = ResponseLoss(model, chunk_tokens=chunk_tokens)(batch)
        loss.backward()
        assert loss.item() == pytest.approx(own.item(), rel=1e-6)
        found = gradients(model)
        assert set(found) == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=2e-5, rtol=1e-4)


def test_what_the_prompt_and_the_padding_hold_gives_no_gradient_of_its_own(ground: Ground) -> None:
    model = runtime.load_weights(ground.inputs["base"][""])
    losses = [
        ResponseLoss(model, chunk_tokens=8)(Rows(ROWS, pad_token_id=pad).batch([0, 1, 3])).item()
        for pad in (0, 9)
    ]
    assert losses[0] == losses[1]
    alone = [
        ResponseLoss(model, chunk_tokens=8)(Rows(ROWS, pad_token_id=0).batch([n])).item() for n in (0, 1, 3)
    ]
    assert sum(alone) == pytest.approx(losses[0], rel=1e-5)
    assert alone[2] == 0.0  # a row without a response
    masked = ResponseLoss(model, chunk_tokens=8)(Rows(ROWS, pad_token_id=0).batch([0], masked=True))
    masked.backward()
    found = gradients(model)
    assert masked.item() == 0.0
    assert set(found) == {name for name, _ in model.named_parameters()}, "DDP waits for each of them"
    assert not any(gradient.any() for gradient in found.values())


def test_of_a_multimodal_model_text_trains_the_text_part_and_all_of_it_is_saved(
    multimodal: Path, tmp_path: Path
) -> None:
    placed = Placed(
        lambda: runtime.load_weights(multimodal),
        device=torch.device("cpu"),
        sharding="auto",
        bf16=False,
        gradient_checkpointing=True,
        chunk_tokens=4,
    )
    batch = Rows(ROWS, pad_token_id=0).batch([0])
    loss = placed.losses(batch)
    loss.backward()
    model = placed.model
    logits = model(input_ids=batch.input_ids, token_type_ids=torch.zeros_like(batch.input_ids)).logits
    own = functional.cross_entropy(logits.flatten(0, 1)[batch.positions], batch.targets, reduction="sum")
    assert loss.item() == pytest.approx(own.item(), rel=1e-6)
    assert all(p.grad is not None for p in placed.parameters)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen and all("vision_tower" in name or "projector" in name for name in frozen)
    save_weights(placed, tmp_path, dtype=torch.bfloat16)
    saved, before = (load_file(folder / "model.safetensors") for folder in (tmp_path, multimodal))
    assert set(saved) == set(before)
    assert all(torch.equal(saved[name], before[name].bfloat16()) for name in before)
    again = runtime.load_weights(tmp_path)
    assert type(again) is type(model)
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs.bfloat16().float())

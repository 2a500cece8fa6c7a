"""The memory that a CPU pretends to have: when it is full, and that remedies leave the losses equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.core.causes import cause_of_exception
from orchestrator.core.failure import Cause
from orchestrator.sft import runtime, stages
from orchestrator.sft.shards import EpochOrder, rows_of
from orchestrator.stage import Config, Inputs
from tests.sft import chain
from tests.sft.conftest import Ground

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share

LANGUAGES, SIZE, EPOCHS = ["en", "es"], 8, 2
CELL = ("languages=[en,es]", f"trainer.num_epochs={EPOCHS}")


def tokens_of_steps(ground: Ground) -> list[int]:
    """The tokens of the micro-batch of each step, padding included."""
    inputs, seed = Inputs(ground.inputs), chain.small(*CELL)["seed"]
    pad = runtime.padding(runtime.load_tokenizer(inputs, Config({})))
    rows = rows_of(inputs.each("prepare"), LANGUAGES, "train", pad_token_id=pad)
    order = EpochOrder(rows.lengths, global_batch_size=SIZE, seed=seed)
    steps = [step for epoch in range(EPOCHS) for step in order.steps(epoch)]
    return [len(step) * int(np.max(rows.lengths[step])) for step in steps]


def losses(ground: Ground, folder: Path, *overrides: str, **how: Any) -> list[float]:
    product, _ = chain.run(stages.TRAIN, chain.small(*CELL, *overrides), folder, ground.inputs, **how)
    found: list[float] = json.loads((product / "training.json").read_text())["loss"]
    return found


def limit(tokens: int) -> str:
    return f"trainer.cpu_limit_tokens={tokens}"


@pytest.mark.parametrize("where", ["at the first step", "only at the longest batch"])
def test_a_step_that_is_too_wide_runs_out_of_memory_as_on_a_gpu(
    ground: Ground, tmp_path: Path, where: str
) -> None:
    tokens, log = tokens_of_steps(ground), chain.Log()
    most = min(tokens) - 1 if where == "at the first step" else max(tokens) - 1
    with pytest.raises(torch.OutOfMemoryError) as raised:
        losses(ground, tmp_path, limit(most), trackers=[log])
    names = [base.__name__ for base in type(raised.value).__mro__]
    assert cause_of_exception(names, str(raised.value)) is Cause.OOM_GPU
    done = {step for step, metrics in log.entries if "learning_rate" in metrics}
    assert done == set(range(1, tokens.index(next(n for n in tokens if n > most)) + 1))


REMEDIES = [
    ("trainer.micro_batch_divisor=2",),
    ("trainer.micro_batch_divisor=8",),
    ("trainer.micro_batch_size=null", "trainer.micro_batch_divisor=2"),
    ("trainer.gradient_checkpointing=true",),
    ("trainer.always_recompute=true",),
]


@pytest.mark.parametrize("remedy", REMEDIES, ids=" ".join)
def test_each_remedy_fits_and_leaves_the_loss_of_every_step_equal(
    ground: Ground, tmp_path: Path, remedy: tuple[str, ...]
) -> None:
    most = max(tokens_of_steps(ground)) - 1
    remedied = losses(ground, tmp_path / "remedied", limit(most), *remedy)
    whole = losses(ground, tmp_path / "whole")
    assert remedied == pytest.approx(whole, rel=1e-4)


def test_only_training_counts_and_no_limit_is_none(ground: Ground, tmp_path: Path) -> None:
    most = max(tokens_of_steps(ground))
    assert losses(ground, tmp_path / "exactly", limit(most)) == losses(ground, tmp_path / "without")

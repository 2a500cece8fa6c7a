"""Checkpoints: seconds to write, seal, load and export them, and their share of training."""

from __future__ import annotations

import shutil
import time

import numpy as np
import torch

from gpu.models import Size, placed, rows_of, training
from gpu.one_pass import Pass
from orchestrator.sft.batches import MicroBatches
from orchestrator.sft.checkpoints import load_state, save_state, save_weights
from orchestrator.sft.distributed.parallel import Placed, group_of_one, whole
from orchestrator.sft.estimate import RESUME_BYTES
from orchestrator.sft.shards import Rows
from orchestrator.sft.train import Training


def checkpoints(one: Pass) -> None:
    """Save, seal, load and export the state of the 0.6B: gigabytes a second hold for larger models."""
    size = Size("qwen3-0.6b", small=one.small)
    rows = Rows(rows_of(size, 16, small=one.small), pad_token_id=0)
    with group_of_one("auto", one.device):
        model = placed(one, size, sharding="auto")
        loop = training(one, model, rows, micro=MicroBatches(16))
        loop._step(1, np.arange(16))
        _measured(one, size, model, loop)


def _measured(one: Pass, size: Size, model: Placed, loop: Training) -> None:
    context = loop._context
    try:
        start_s = time.perf_counter()
        with context.checkpoint(1) as folder:
            save_s = one.seconds(lambda: save_state(model, loop._optimizer, folder))
        seal_s = time.perf_counter() - start_s - save_s
        saved = context.folder / "checkpoints" / "00000001"
        size_gb = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()) / 1e9
        before = [whole(value.detach()).clone() for value in model.parameters[:3]]
        loop._step(2, np.arange(16))
        load_s = one.seconds(lambda: load_state(model, loop._optimizer, saved))
        same = all(map(torch.equal, before, map(whole, model.parameters[:3])))
        weights = context.output / "weights"
        export_s = one.seconds(lambda: save_weights(model, weights, dtype=torch.bfloat16))
    finally:
        shutil.rmtree(context.folder, ignore_errors=True)
    one.record(
        "0.6B, training state",
        predicted={"gb": round(RESUME_BYTES * size.decoder.num_parameters / 1e9, 2)},
        gb=round(size_gb, 2),
        save_s=round(save_s, 1),
        seal_s=round(seal_s, 1),
        gb_per_s=round(size_gb / (save_s + seal_s), 2),
        load_s=round(load_s, 1),
        restored=same,
    )
    one.record(
        "0.6B, weights in bf16",
        predicted={"gb": round(2 * size.decoder.num_parameters / 1e9, 2)},
        export_s=round(export_s, 1),
    )

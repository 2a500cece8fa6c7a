"""Checkpoints as the training stage saves them: how long it waits, and how long they take to be written."""

from __future__ import annotations

import shutil
import time

import numpy as np
import torch

from gpu.models import Size, placed, rows_of, training
from gpu.one_pass import Pass
from orchestrator.sft import kernels
from orchestrator.sft.batches import MicroBatches
from orchestrator.sft.checkpoints import load_state
from orchestrator.sft.distributed.parallel import group_of_one, whole
from orchestrator.sft.shards import Rows
from orchestrator.sft.speed import save_costs
from orchestrator.sft.train import Training


def checkpoints(one: Pass) -> None:
    """Save, load and export the state of the 0.6B: its gigabytes a second hold for larger models."""
    size = Size("qwen3-0.6b", small=one.small)
    if one.cuda:
        kernels.prepare()  # as the stage does
    rows = Rows(rows_of(size, 16, small=one.small), pad_token_id=0)
    with group_of_one("auto", one.device):
        model = placed(one, size, sharding="auto")
        loop = training(one, model, rows, micro=MicroBatches(16))
        step_s = one.seconds(lambda: loop._step(1, np.arange(16)))
        try:
            _measured(one, size, loop, step_s)
        finally:
            shutil.rmtree(loop._context.folder, ignore_errors=True)


def _measured(one: Pass, size: Size, loop: Training, step_s: float) -> None:
    saver, context, model = loop._saver, loop._context, loop._placed
    folder, found = context.folder / "checkpoints", {}
    # Pinned memory is allocated in a thread, as at the start of a training, while steps go on.
    start_s, steps = time.perf_counter(), 0
    saver.make_room()
    while saver._room is not None and not saver._room.done():
        loop._step(2, np.arange(16))
        steps += 1
    room_s = time.perf_counter() - start_s
    for step, what in ((1, "first"), (2, "next")):
        start_s, before_s = time.perf_counter(), saver.held_s
        saver.state(step, loop.progress)
        found[f"{what}_held_s"] = round(saver.held_s - before_s, 2)
        saver.wait()
        found[f"{what}_written_s"] = round(time.perf_counter() - start_s, 2)
    saved = max(folder.iterdir())
    size_gb = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()) / 1e9
    before = [whole(value.detach()).clone() for value in model.parameters[:3]]
    loop._step(2, np.arange(16))
    load_s = one.seconds(lambda: load_state(model, loop._updates.optimizer, saved))
    same = all(map(torch.equal, before, map(whole, model.parameters[:3])))
    start_s, before_s = time.perf_counter(), saver.held_s
    saver.epoch(3)
    weights_held_s = saver.held_s - before_s
    saver.end()
    modelled = save_costs(
        size.decoder.num_parameters, weight_bytes=2, num_gpus=1, step_s=step_s, num_steps=1, num_epochs=1
    )
    one.record(
        "0.6B, training state",
        predicted={"gb": round(modelled.state_gb, 2), "written_s": round(modelled.state_gb, 1)},
        gb=round(size_gb, 2),
        pinned_s=round(room_s, 2),
        step_s=round(step_s, 3),
        step_s_meanwhile=round(room_s / steps, 3) if steps else None,
        **found,
        gb_per_s=round(size_gb / max(found["next_written_s"], 0.01), 2),
        load_s=round(load_s, 1),
        restored=same,
        interval_s=round(context.saves.interval_s, 1),
    )
    one.record(
        "0.6B, weights in bf16",
        predicted={"gb": round(modelled.weights_gb, 2)},
        held_s=round(weights_held_s, 2),
        written_s=round(time.perf_counter() - start_s, 2),
    )

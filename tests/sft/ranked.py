"""Functions that tests run in several processes; they must be importable there by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from orchestrator.errors import StageFailure
from orchestrator.stage import Config, Context, Inputs


def gather(config: Config, inputs: Inputs, context: Context) -> dict[str, Any]:
    """Logs, checkpoints and returns what all ranks see."""
    rank = dist.get_rank()
    context.log(1, num_steps=2, loss=0.5 + rank)
    with context.checkpoint(1) as folder:
        (folder / f"rank-{rank}").write_text(str(config.word))
    seen: list[Any] = [None] * dist.get_world_size()
    facts = (str(folder), context.checkpoint_due(1), context.stop_asked, torch.get_num_threads(), os.getpid())
    dist.all_gather_object(seen, facts)
    return {"seen": seen, "input": str(inputs["base"]), "slurm": "SLURM_PROCID" in os.environ}


def fail(config: Config, inputs: Inputs, context: Context) -> None:
    """Fails in one rank while the other waits for it."""
    Path(config.folder, str(dist.get_rank())).write_text(str(os.getpid()))
    if dist.get_rank() == config.rank:
        if config.how == "failure":
            raise StageFailure("nan", "loss is nan")
        if config.how == "exception":
            raise FileNotFoundError(2, "no such file", "/data")
        if config.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if config.how == "exit":
            os._exit(3)
    dist.barrier()
    if config.how == "half":
        with context.checkpoint(5) as folder:
            (folder / f"rank-{dist.get_rank()}").write_text("half")
            if dist.get_rank() == config.rank:
                os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def count(config: Config, inputs: Inputs, context: Context) -> int:
    """Counts until a stop is asked, then saves."""
    step = context.resume.step if context.resume else 0
    while step < config.num_steps:
        step += 1
        context.log(step, num_steps=config.num_steps, loss=1.0)
        if context.checkpoint_due(step):
            with context.checkpoint(step) as folder:
                (folder / f"rank-{dist.get_rank()}").write_text(str(step))
            context.stop_if_asked()
        time.sleep(0.01)
    return step

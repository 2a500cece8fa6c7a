"""Functions that tests run in several processes; they must be importable there by name.

They need no model: each process imports torch alone, and starts three times as fast.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from orchestrator.errors import StageFailure
from orchestrator.sft.distributed import launcher
from orchestrator.stage import Config, Context, Inputs, Row


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


def know(config: Config, inputs: Inputs, context: Context) -> list[Any]:
    """Returns what each rank sees of its environment."""
    variables, seen = os.environ, [None] * dist.get_world_size()
    facts = {
        "rank": [variables["RANK"], variables["LOCAL_RANK"]],
        "world": [variables["WORLD_SIZE"], variables["LOCAL_WORLD_SIZE"]],
        "threads": variables["OMP_NUM_THREADS"],
        "port": variables["MASTER_PORT"],
        "foreign": [name for name in variables if name.startswith(("SLURM_", "PMI"))],
    }
    dist.all_gather_object(seen, facts)
    return list(seen)


def fail(config: Config, inputs: Inputs, context: Context) -> None:
    """Fails in one rank while the other waits for it; each has started a process of its own.

    Where none fails, these are in a session, or in a process group, of their own.
    """
    apart = {"start_new_session": True} if dist.get_rank() == 0 else {"process_group": 0}
    helper = subprocess.Popen(["sleep", "20"], **(apart if config.how == "wait" else {}))  # type: ignore[call-overload]
    Path(config.folder, f"helper-{dist.get_rank()}").write_text(str(helper.pid))
    Path(config.folder, str(dist.get_rank())).write_text(str(os.getpid()))
    dist.barrier()  # both are known before one fails
    if dist.get_rank() == config.rank:
        if config.how == "failure":
            raise StageFailure("nan", "loss is nan")
        if config.how == "exception":
            raise FileNotFoundError(2, "no such file", "/data")
        if config.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if config.how == "abort":
            os.kill(os.getpid(), signal.SIGABRT)
        if config.how == "exit":
            os._exit(3)
        if config.how == "meet":
            time.sleep(60)  # its peer waits for it in the barrier
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


def stage(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Is a stage that counts so in two processes."""
    settings = Config({"num_steps": config.count.num_steps})
    last = launcher.run(
        f"{__name__}:{count.__name__}", settings, inputs, context, num_processes=2, device="cpu"
    )
    (context.output / "last").write_text(str(last))
    return []


def save_later(config: Config, inputs: Inputs, context: Context) -> list[float]:
    """Saves in threads of its ranks; one of them writes slowly, or is killed while it writes."""
    rank = dist.get_rank()

    def begin(folder: Path) -> Callable[[], None]:
        def write() -> None:
            if rank == config.rank:
                time.sleep(config.seconds)
                if config.how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if config.how == "full":
                    raise OSError(28, "No space left on device")
                if config.how == "broken":
                    raise OSError(5, "Input/output error")
            (folder / f"rank-{rank}").write_text(str(rank))

        return write

    with context.checkpoint(1) as first:
        (first / f"rank-{rank}").write_text("first")
    if config.how == "full":
        with context.checkpoint(2) as second:
            if rank == config.rank:
                raise OSError(28, "No space left on device")
            (second / f"rank-{rank}").write_text("second")
    started_s = time.monotonic()
    context.checkpoint_later(2, begin)
    held_s = time.monotonic() - started_s
    while config.how in ("kill", "broken"):
        context.checkpoint_due(2)
        time.sleep(0.01)
    context.finish_checkpoint()
    return [held_s, time.monotonic() - started_s]

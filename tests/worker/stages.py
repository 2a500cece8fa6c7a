"""Stages of the tests' own: ones that misbehave in ways that `count` does not script."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from orchestrator import count
from orchestrator.stage import Config, Context, Inputs, Row, StageSpec

READS, USES = ("count", "seed"), ("count.step_s", "count.fail")
_EVENTS = frozenset({"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree"})


def spec(function: str, **rest: Any) -> StageSpec:
    """The spec of a function of this module that takes what `count` takes."""
    return StageSpec(run=f"tests.worker.stages:{function}", reads=READS, uses=USES, **rest)


def dying(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Counts, and before its k-th change to the file system kills its worker and itself, as a node does.

    k is TEST_AT, in the first attempt only. The calls are seen by Python's own audit hooks.
    """
    at = int(os.environ.get("TEST_AT", 0)) if context.attempt == 1 else 0
    folder, seen = str(context.folder), 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in _EVENTS or not isinstance(args[0], str | os.PathLike):
            return
        if not os.fspath(args[0]).startswith(folder):
            return
        seen += 1
        if seen == at:
            os.kill(int(os.environ["TEST_WORKER"]), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    rows = count.main(config, inputs, context)
    print(f"{seen} changes")
    return rows


def forking(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Leaves a grandchild that ignores SIGTERM and writes a line every 10 ms, and finishes."""
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        (context.scratch / "pid").write_text(str(os.getpid()))
        while True:
            with (context.scratch / "lines").open("a") as stream:
                stream.write("still here\n")
            time.sleep(0.01)
    while not (context.scratch / "lines").exists():
        time.sleep(0.01)
    return count.main(config, inputs, context)


def waiting(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Saves a checkpoint of step 1, says that it runs, and counts on when the file ``go`` is there."""
    if context.resume is None:
        with context.checkpoint(1) as folder:
            (folder / "state").write_text(hashlib.sha256(f"{config.seed}:1".encode()).hexdigest())
    context.log(1, num_steps=config.count.num_steps)
    (context.folder / "runs").write_text(str(os.getpid()))
    while not Path(os.environ["TEST_GO"]).exists():
        if context.stop_asked:
            context.stop_if_asked()
        time.sleep(0.01)
    return count.main(config, inputs, context)


def filling(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Saves a small checkpoint, then a large one or a large product (TEST_FILL_KIB), and prints a lot."""
    size = int(os.environ.get("TEST_FILL_KIB", 0)) * 1024
    folder: Path
    if context.resume is None:
        with context.checkpoint(1) as folder:
            (folder / "state").write_text(hashlib.sha256(f"{config.seed}:1".encode()).hexdigest())
    if os.environ.get("TEST_FILL") == "checkpoint":
        with context.checkpoint(2) as folder:
            (folder / "large").write_bytes(bytes(size))
    if os.environ.get("TEST_FILL") == "product":
        (context.output / "large").write_bytes(bytes(size))
    return count.main(config, inputs, context)


def crashing(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Waits for the file ``go``, then fails."""
    (context.folder / "runs").write_text(str(os.getpid()))
    while not Path(os.environ["TEST_GO"]).exists():
        time.sleep(0.01)
    raise ValueError("a failure of the code")


def waiting_with_a_grandchild(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """As `waiting`, with a process of its own that ignores being asked to end."""
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (context.scratch / "pid").write_text(str(os.getpid()))
        time.sleep(120)
        os._exit(0)
    return waiting(config, inputs, context)


def adding(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Takes the product of `count` and writes it with a line of its own."""
    (context.folder / "runs").write_text(str(os.getpid()))
    gate = os.environ.get("TEST_GO")
    while gate and not Path(gate).exists():
        time.sleep(0.01)
    text = (inputs["count"] / "count.txt").read_text()
    (context.output / "sum.txt").write_text(f"{text}and {config.seed}\n")
    return [{"seed": config.seed}]


def sharing(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Writes what all cells share."""
    (context.output / "count.txt").write_text(f"{config.shared}\n")
    return []

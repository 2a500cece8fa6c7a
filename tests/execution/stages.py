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
from orchestrator.errors import NotKept, StageFailure
from orchestrator.stage import Config, Context, Inputs, Row, StageSpec

READS, USES = ("count", "seed"), ("count.step_s", "count.fail")
_EVENTS = frozenset({"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree"})


def spec(function: str, **rest: Any) -> StageSpec:
    """The spec of a function of this module that takes what `count` takes."""
    return StageSpec(run=f"tests.execution.stages:{function}", reads=READS, uses=USES, **rest)


def blind(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Finds its machine without the GPUs that it was given."""
    raise StageFailure("bad_node", "torch sees 0 of 8 GPUs")


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
        (context.folder / "pid").write_text(str(os.getpid()))  # stays there for a reader who is late
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
    """Saves a small checkpoint, then a large one or a large product (TEST_FILL_KIB), once it may."""
    (context.folder / "runs").write_text(str(os.getpid()))
    while not Path(os.environ.get("TEST_GO", "/")).exists():
        time.sleep(0.01)
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


def storing(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Links what each checkpoint holds into the product, as training does; may die after the second."""
    start = context.resume.step if context.resume else 0
    if context.resume:
        _link_into(context.resume.folder, context.output / "epochs")
    for step in range(start + 1, 4):
        if step == 3 and context.attempt == 1 and os.environ.get("TEST_DIE"):
            os._exit(3)
        with context.checkpoint(step) as folder:
            for done in sorted((context.output / "epochs").glob("*")):
                os.link(done, folder / done.name)
            (folder / str(step)).write_text(f"{dict(config)} epoch {step}")
        _link_into(context.folder / "checkpoints" / f"{step:08d}", context.output / "epochs")
    (context.output / "count.txt").write_text("three epochs\n")
    return []


def _link_into(folder: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for file in folder.glob("[0-9]"):
        if not (target / file.name).exists():
            os.link(file, target / file.name)


def choosing(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Likes one of three epochs, by its seed, and says so."""
    epoch = 1 + config.seed % 3
    text = (inputs["count"] / "epochs" / str(epoch)).read_text()
    context.retire("count", best=[f"epochs/{epoch}", "count.*"], none=[])
    return [{"epoch": epoch, "text": text}]


def retiring_wrongly(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Names what is no input, or gives text for a list."""
    if config.seed == 0:
        context.retire("cuont", none=[])
    else:
        context.retire("count", none="count.*")
    return []


def working(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Names what it finds in its work folder; the first attempt leaves a file there and dies."""
    found = sorted(path.name for path in context.work.iterdir())
    if context.attempt == 1:
        (context.work / "trained").touch()
        context.log(1, loss=2.0)
        context.close()
        os._exit(3)
    context.log(2, loss=1.0)
    return [{"found": found}]


def answering(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Keeps an answer made from an epoch that it lets go; a later version of it takes the answer kept."""
    if context.former is None:
        text = (inputs["count"] / "epochs/3").read_text()
    elif (wrong := os.environ.get("TEST_WRONG")) == "bug":
        raise ValueError("a bug of the scorer")
    elif wrong:
        raise NotKept("data", "one answer is missing")
    else:
        text = (context.former / "answer").read_text()
    (context.output / "answer").write_text(text)
    context.retire("count", best=["epochs/1"], none=[])
    return [{"text": text, "kept": context.former is not None}]


def hungry(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Counts if its width fits, and else runs out of memory as a GPU does; a first look may adapt it."""
    width = context.uses.count.width
    if context.uses.count.adapts and width > context.uses.count.fits:
        width //= 2
        context.adapt({"count.width": width})
        time.sleep(1.0)
    if width > context.uses.count.fits:
        raise StageFailure("oom_gpu", f"CUDA out of memory: a width of {width} does not fit")
    return [{"width": width, "parts": context.uses.count.parts}]


def cut_off(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Loses its connection in the first two attempts."""
    if context.attempt < 3:
        raise ConnectionResetError("Connection reset by peer")
    return []

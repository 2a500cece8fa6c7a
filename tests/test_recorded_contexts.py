# ruff: noqa: B023, E501 - questions are asked at once, each on a line
"""What a running stage says and saves, and what is recorded of its process, is as recorded, see recording.py."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from orchestrator import provenance, reporting
from orchestrator.errors import StopRequested, StopSignal
from orchestrator.saving import MANIFEST, PHASES, Checkpoint
from orchestrator.spec import Config, refuse_zero_bytes
from orchestrator.stage import Context
from tests.recording import Answers, answer, compare, plain

RECORDED = Path(__file__).parent / "recorded"


class Said(list[str]):
    """A tracker, and what else a stage reports to, which keep it as text."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.append(f"log {step} {metrics}")

    def close(self) -> None:
        self.append("close")


def contexts_asked(folder: Path) -> Answers:
    said, stop = Said(), StopSignal()
    config = Config({"batch": 8}, declared="uses")
    made = Context(
        folder, uses=config, resume=Checkpoint(3, folder / "old"), former=folder / "former", attempt=2, num_threads=3,
        checkpoint_interval_s=0.0, trackers=[said, said], stop=stop, fence=lambda: said.append("fence"), keep=2,
        report_progress=lambda step, of: said.append(f"step {step} of {of}"), report_stop=lambda s: said.append(f"stop takes {s > 0}"),
        report_adapted=lambda values: said.append(f"adapted {values}"),
    )  # fmt: skip
    yield (
        "facts",
        [
            made.folder,
            made.output,
            made.scratch,
            made.attempt,
            made.num_threads,
            made.resume,
            made.former,
            made.uses.batch,
        ],
    )
    made.log(1, num_steps=9, loss=0.5)
    made.report(True)
    made.adapt({"batch": 4})
    made.adapt({})
    made.expect_save(2.0)
    yield "due", [made.checkpoint_due(2, num_steps=9), made.stop_asked]
    for step in (2, 4, 6):
        with made.checkpoint(step) as place:
            (place / "state").write_text(str(step))
    made.checkpoint_later(8, lambda place: lambda: (place / "state").write_text("8") and None)
    made.finish_checkpoint()
    (folder / "checkpoints" / "10").mkdir()
    (folder / "checkpoints" / "10" / "own").write_text("x")
    yield "checkpoints", sorted(str(path.relative_to(folder)) for path in (folder / "checkpoints").rglob("*"))
    (manifest_of,) = (folder / "checkpoints").glob("*8/" + MANIFEST)
    yield "manifest", manifest_of.read_text()
    made.retire("train", best=["a", "b/*"], none=[])
    made.retire("prepare", none=["x"])
    for act in (
        lambda: made.retire("train", best="a"), lambda: made.retire("train", none=[3]), lambda: made.phase("thinking"),
        lambda: made.uses.x, lambda: made.work, lambda: Context(folder, keeps_work=False).work, lambda: made.uses["batch"],
    ):  # fmt: skip
        yield "refused", answer(act)
    yield "retirements", made.retirements
    for name in PHASES:
        with made.phase(name):
            pass
    stop.ask("the time is over")
    try:
        made.stop_if_asked()
    except StopRequested as error:
        yield "stopped", [error.why, stop.seen, made.checkpoint_due(9)]
    made.close()
    yield "said", [*said]
    yield (
        "plain",
        [
            Context(folder).attempt,
            Context(folder).num_threads,
            len(Context(folder).uses),
            Context(folder).resume,
        ],
    )


def processes_asked() -> Answers:
    config = Config({"batch": 8}, declared="uses")
    for value in ("a", "a\0b", {"k": ["x", {"y": "\0"}]}, ("\0",), 3, {"a": {"b": "c"}}):
        yield f"zero bytes {value!r}", answer(lambda: refuse_zero_bytes(value, "config", "own.yaml"))
    yield "config", ["batch" in config, "x" in config, list(config), plain(answer(lambda: config.x))]
    rows, place = [{"a": 1}], Path("/out")
    yield (
        "report",
        reporting.call(
            lambda rows, folder, over: [rows, folder, over], rows, place, {"over": lambda: ["seed"]}
        ),
    )  # type: ignore[list-item, return-value]
    mine = provenance.entry_of(os.getpid())
    yield (
        "process",
        [mine.parent == os.getppid(), mine.group == os.getpgrp(), mine.session == os.getsid(0), mine.runs],
    )
    process = provenance.process_of(os.getpid())
    yield (
        "gone",
        [
            provenance.is_gone(process),
            provenance.is_gone(msgspec.structs.replace(process, start="1")),
            provenance.is_gone(msgspec.structs.replace(process, boot_id="x")),
        ],
    )
    yield "no process", [provenance.entry_of(2**30), provenance.start_of(2**30), provenance.process_of(2**30)]
    yield "attempt", sorted(provenance.of_attempt("digest", {"diff": "x", "commit": "c"}))
    attempt = provenance.of_attempt("digest", {"diff": "x", "commit": "c"})
    yield (
        "  values",
        [
            attempt["code"],
            attempt["git"],
            attempt["python"] == platform.python_version(),
            attempt["executable"] == sys.executable,
            attempt["host"] == platform.node(),
        ],
    )


def test_what_a_running_stage_says_and_saves_is_as_recorded(tmp_path: Path) -> None:
    found = (
        (question, plain(each).replace(str(tmp_path), "FOLDER"))
        for question, each in (*contexts_asked(tmp_path), *processes_asked())
    )
    compare(RECORDED / "contexts.txt", found)

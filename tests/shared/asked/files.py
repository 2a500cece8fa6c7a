"""What is recorded of files, what stages save, and when."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from orchestrator import saving
from orchestrator.errors import StageFailure, SweepError
from orchestrator.manifest import (
    Digests,
    check_inside,
    contain,
    copy_file,
    damage,
    damage_by_size,
    fsync_tree,
    open_to_owner,
    scan,
    stamps,
)
from tests.recording import Answers


def answer(act: Callable[[], object]) -> object:
    """Return what a function returns, or the error that it raises; of a stage's failure with its cause."""
    try:
        return act()
    except StageFailure as error:
        return f"{type(error).__name__}: {error} ({error.cause})"
    except SweepError as error:
        return f"{type(error).__name__}: {error}"


def listed(folder: Path) -> list[str]:
    """All that is below a folder, with the targets of links."""
    found = []
    for path in folder.rglob("*"):
        target = f" -> {path.readlink()}".replace(str(folder.parent), "..") if path.is_symlink() else ""
        found.append(f"{path.relative_to(folder)}{target}")
    return sorted(found)


def folders() -> Answers:
    """Files of products and checkpoints: what is recorded of them, what differs, and links that lead out."""
    for path in ("a", "a/b", "", ".", "..", "a/../b", "/a", "a//b", "a\0b", "a/."):
        try:
            check_inside(path)
            yield f"inside {path!r}", True
        except ValueError as error:
            yield f"inside {path!r}", str(error)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "root"
        folder = root / "output"
        (folder / "b").mkdir(parents=True)
        (folder / "b/c.txt").write_text("c")
        (folder / "a.txt").write_text("aa")
        (folder / ".nfs0000001234").write_text("deleted")
        (folder / "link").symlink_to("a.txt")
        (folder / "broken").symlink_to("nowhere")
        files = scan(folder)
        yield "scanned", [(file.path, file.size, file.sha256[:8]) for file in files]
        yield "one file", [file.path for file in scan(folder / "b")]
        yield "stamps", [(stamp.path.replace(name, ""), stamp.size) for stamp in stamps(folder)]
        yield "stamps of a file", len(stamps(folder / "a.txt"))
        yield (
            "whole",
            (damage(folder, files), damage_by_size({file.path: file.size for file in files}, files)),
        )
        for change in ("content", "size", "missing"):
            path = folder / "b/c.txt"
            path.unlink()
            if change != "missing":
                path.write_text("d" if change == "content" else "ccc")
            yield change, (damage(folder, files), damage(folder, files, content=False))
            yield (
                f"{change} by size",
                damage_by_size({"a.txt": 2, "b/c.txt": 3} if change == "size" else {"a.txt": 2}, files),
            )
            path.write_text("c")


def links() -> Answers:
    """Links that lead out of a folder, and who may read it."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "root"
        folder = root / "output"
        (folder / "b").mkdir(parents=True)
        (folder / "a.txt").write_text("aa")
        (folder / "link").symlink_to("a.txt")
        (folder / "broken").symlink_to("nowhere")
        other = Path(name) / "other"
        (other / "in").mkdir(parents=True)
        (other / "in/data.bin").write_bytes(b"x" * 100)
        (other / "in/up").symlink_to(other)
        (folder / "data").symlink_to(other / "in")
        (folder / "file").symlink_to(other / "in/data.bin")
        (folder / "self").symlink_to(folder)
        (folder / "device").symlink_to(os.devnull)
        yield "contained", (contain(folder), contain(folder), listed(folder))
        yield "copied", (folder / "data/data.bin").stat().st_nlink
        (folder / "kept").symlink_to(other / "in/data.bin")
        yield "linked", (contain(folder, linked=other), (folder / "kept").stat().st_nlink)
        outer = root / "outer"
        outer.symlink_to(other)
        yield "the folder itself", (contain(outer), outer.is_symlink(), listed(outer))
        (folder / os.fsdecode(b"\xff")).write_text("")
        try:
            contain(folder)
        except ValueError as error:
            yield "no text", str(error)
        (folder / os.fsdecode(b"\xff")).unlink()
        (folder / "a.txt").chmod(0o200)
        (folder / "b").chmod(0o500)
        open_to_owner(folder)
        yield "opened", [oct((folder / each).stat().st_mode & 0o777) for each in ("a.txt", "b")]


def known_digests() -> Answers:
    """Copies of files, and digests that need not be computed again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.txt").write_text("aa")
        calls: list[int] = []
        copy_file(folder / "a.txt", folder / "copy", lambda: calls.append(1))
        yield "a copy", ((folder / "copy").read_text(), len(calls) <= 1)
        yield "durable", fsync_tree(folder)
        digests, path = Digests(), folder / "a.txt"
        first = digests.digest(path)
        yield "not settled", (len(digests.of([path])), first[:8])
        os.utime(path, (1, 1))
        digests.digest(path)
        found = digests.of([path, folder / "copy"])
        path.write_text("changed")
        yield "settled", ([each.replace(name, "") for each in found], digests.digest(path)[:8])
        theirs = Digests()
        theirs.accept(found)
        yield "accepted", len(theirs.of([path]))


class _Scalar:
    """A number of a library."""

    def item(self) -> float:
        return 0.25


class _Clock:
    """A clock that a test sets."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def saves() -> Answers:
    """Phases, and names of checkpoints."""
    clock = _Clock()
    phases = saving.PhaseClock("start", clock)
    for phase, seconds in (
        ("compute", 2.0),
        ("compute", 3.0),
        ("save", 1.0),
        ("evaluation", 4.0),
        ("compute", 0.5),
    ):
        clock.now_s += seconds
        yield (
            f"enter {phase}",
            (phases.enter(phase), phases.phase, phases.times(), phases.work_s(), phases.step_s()),
        )
    with phases.during("data"):
        clock.now_s += 8
    yield "during", (phases.phase, phases.times())
    for name in (
        "00000120",
        "checkpoint-120",
        "ckpt_7",
        "step=120",
        "global_step120",
        "epoch=3-step=120",
        "iter-1",
        "120x",
        "x120",
        "best",
        "epoch-1_2",
        "1" * 19,
    ):
        yield f"step of {name}", saving.step_of(name)


def checkpoints() -> Answers:
    """The checkpoints of a stage."""
    with tempfile.TemporaryDirectory() as folder:
        fenced: list[int] = []
        ours = saving.Checkpoints(
            Path(folder) / "checkpoints",
            attempt=3,
            interval_s=0.0,
            keep=2,
            fence=lambda: fenced.append(1),
            clock=saving.PhaseClock(),
        )
        for step in (1, 2, 3, 3):
            with ours.saved(step) as place:
                (place / "state").write_text(str(step))
            yield (
                f"saved {step}",
                (
                    listed(Path(folder)),
                    ours.clock.saved and ours.clock.saved[0],
                    len(fenced),
                    ours.is_due(),
                    ours.save_s > 0,
                ),
            )

        def begin(place: Path) -> Callable[[], None]:
            return lambda: (place / "late").write_text("x") and None

        ours.later(4, begin)
        ours.wait()
        yield "later", (listed(Path(folder)), ours.is_saving, ours.clock.saved and ours.clock.saved[0])
        manifest = json.loads((Path(folder) / "checkpoints/00000004/manifest.json").read_text())
        yield (
            "manifest",
            {**manifest, "files": [{**file, "sha256": file["sha256"][:8]} for file in manifest["files"]]},
        )
        for error in (OSError(28, "No space left on device"), OSError(5, "broken"), saving.SaveAbandoned()):

            def fail(place: Path, what: Exception = error) -> Callable[[], None]:
                def write() -> None:
                    raise what

                return write

            ours.later(5, fail)
            try:
                ours.wait()
                yield f"failed {error}", (ours.num_skipped, listed(Path(folder)))
            except OSError as raised:
                yield f"failed {error}", (str(raised), ours.num_skipped)
        ours.make_room()
        yield "room", (listed(Path(folder)), ours.num_skipped)
        with ours.saved(6) as place:
            (place / "manifest.json").write_text("mine") if False else None
        yield "after", listed(Path(folder))
        other = Path(folder) / "checkpoints/77"
        other.mkdir()
        (other / "weights").write_text("w")
        ours.seal(other, 77)
        yield "sealed", (listed(other), ours.clock.saved and ours.clock.saved[0])
        yield "sealed twice", answer(lambda: saving.write_checkpoint_manifest(other, step=77, attempt=3))


def intervals() -> Answers:
    """When checkpoints are due, and metrics of any program."""
    with tempfile.TemporaryDirectory() as folder:
        for least_s, held, written, expected in (
            (60.0, 0.0, 0.0, 5.0),
            (60.0, 10.0, 10.0, 0.0),
            (60.0, 1.0, 100.0, 0.0),
            (0.0, 9.0, 9.0, 0.0),
        ):
            timed = saving.Checkpoints(
                Path(folder),
                attempt=1,
                interval_s=least_s,
                keep=2,
                fence=lambda: None,
                clock=saving.PhaseClock(),
            )
            timed._took, timed.expected_s = saving._Seconds(held, written), expected
            yield f"interval {least_s} {held} {written}", (timed.interval_s, timed.save_s, timed.is_due())
            timed._last_s -= 1e6
            yield (
                f"long after {least_s} {held} {written}",
                [timed.is_due(left_s) for left_s in (1.0, 50.0, 400.0, 1e9)],
            )
        metrics = Path(folder) / "metrics"
        os.environ["SWEEP_METRICS"] = str(metrics)
        saving.log(3, loss=0.5, bad=float("nan"))
        saving.log(4, num_steps=9, scalar=_Scalar())  # type: ignore[arg-type]
        del os.environ["SWEEP_METRICS"]
        saving.log(5, loss=1.0)
        yield "logged", metrics.read_text()


ASKED: dict[str, Callable[[], Answers]] = {
    "folders": folders,
    "links": links,
    "known_digests": known_digests,
    "saves": saves,
    "checkpoints": checkpoints,
    "intervals": intervals,
}

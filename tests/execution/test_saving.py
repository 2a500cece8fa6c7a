"""Checkpoints: when they are due, those that a thread writes, and what a crash leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from orchestrator.errors import StopRequested
from orchestrator.manifest import damage, scan
from orchestrator.saving import MANIFEST, CheckpointManifest
from orchestrator.stage import Context, StopSignal


def manifest(folder: Path) -> CheckpointManifest:
    return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=CheckpointManifest)


def saved(context: Context) -> list[str]:
    return sorted(path.parent.name for path in (context.folder / "checkpoints").glob(f"*/{MANIFEST}"))


def writing(go: threading.Event) -> Callable[[Path], Callable[[], None]]:
    """Copies at once, and writes when it may."""

    def begin(folder: Path) -> Callable[[], None]:
        def write() -> None:
            assert go.wait(60)
            (folder / "state").write_text("all of it")

        return write

    return begin


def test_a_save_that_holds_the_stage_up_is_followed_by_thirty_three_times_as_long_without_one(
    tmp_path: Path,
) -> None:
    context = Context(tmp_path, checkpoint_interval_s=60)
    assert not context.checkpoint_due(1)
    context.saves._last_s -= 60
    assert context.checkpoint_due(2)
    began_s = time.monotonic()
    with context.checkpoint(2) as folder:
        (folder / "state").write_text("x")
        time.sleep(0.05)
    took_s = time.monotonic() - began_s
    context.saves._least_s = 0.1
    assert 33 * 0.05 <= context.saves.interval_s <= 33 * took_s
    context.saves._last_s = time.monotonic() + 60  # whatever comes between these lines
    assert not context.checkpoint_due(3)
    context.saves._last_s -= 60 + context.saves.interval_s
    assert context.checkpoint_due(3)


def test_near_the_end_no_checkpoint_is_due_that_would_not_be_complete_or_not_pay(tmp_path: Path) -> None:
    context = Context(tmp_path, checkpoint_interval_s=0.01)
    context.expect_save(0.5)
    context.checkpoint_due(1)
    time.sleep(0.1)
    # Steps of 0.1 s: of ten more, one second is left, and of three, 0.3 s.
    assert not context.checkpoint_due(2, num_steps=5)
    time.sleep(0.1)
    assert context.checkpoint_due(3, num_steps=13)
    assert context.saves.is_due(0.5) and not context.saves.is_due(0.49)
    with context.checkpoint(3):
        time.sleep(0.05)
    context.saves._last_s -= 60
    assert context.saves.is_due(60) and not context.saves.is_due(33 * 0.05)
    context._stop.ask("stopped")
    assert context.checkpoint_due(4, num_steps=4)  # a stop is always worth one


def test_an_interval_of_nothing_is_a_checkpoint_after_each_step(tmp_path: Path) -> None:
    context = Context(tmp_path, checkpoint_interval_s=0)
    with context.checkpoint(1):
        time.sleep(0.02)
    assert context.checkpoint_due(2)


def test_a_stage_goes_on_while_a_checkpoint_is_written_which_counts_once_it_is_complete(
    tmp_path: Path,
) -> None:
    context, go = Context(tmp_path, checkpoint_interval_s=0.001), threading.Event()
    context.checkpoint_later(1, writing(go))
    time.sleep(0.01)
    assert saved(context) == []
    assert not context.checkpoint_due(2)  # one at a time
    go.set()
    context.finish_checkpoint()
    assert saved(context) == ["00000001"]
    folder = tmp_path / "checkpoints/00000001"
    assert damage(folder, manifest(folder).files) is None
    time.sleep(context.saves.interval_s)
    assert context.checkpoint_due(3)


def test_what_stops_a_write_in_the_thread_reaches_the_stage_at_its_next_step(tmp_path: Path) -> None:
    context = Context(tmp_path, checkpoint_interval_s=60)

    def begin(folder: Path) -> Callable[[], None]:
        def write() -> None:
            raise OSError(5, "Input/output error")

        return write

    context.checkpoint_later(1, begin)
    while context.saves.is_saving:
        time.sleep(0.001)
    with pytest.raises(OSError, match="Input/output error"):
        context.checkpoint_due(2)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert not context.checkpoint_due(3)  # raised once


def full(folder: Path) -> Callable[[], None]:
    """Copies at once, and finds the disk full, in the words of a library."""

    def write() -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    return write


def test_a_checkpoint_without_space_is_skipped_and_the_next_one_makes_room_for_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context, go = Context(tmp_path, checkpoint_interval_s=0.001), threading.Event()
    go.set()
    for step in (1, 2):
        context.checkpoint_later(step, writing(go))
    context.checkpoint_later(3, full)
    context.finish_checkpoint()  # raises nothing
    assert saved(context) == ["00000002"] and context.saves.num_skipped == 1
    assert "checkpoint 00000003 is skipped (1 so far)" in capsys.readouterr().out
    assert context.clock.saved is not None and context.clock.saved[0] == 2
    with context.checkpoint(4) as folder:
        assert saved(context) == ["00000002"]  # the newest stays until this one counts
        (folder / "state").write_text("all of it")
    assert saved(context) == ["00000002", "00000004"]
    with context.checkpoint(5) as folder:
        raise OSError(122, "Disk quota exceeded")
    assert saved(context) == ["00000004"] and not (tmp_path / "checkpoints/00000005").exists()


def test_an_attempt_that_is_fenced_while_it_skips_a_checkpoint_ends(tmp_path: Path) -> None:
    fenced = threading.Event()

    def fence() -> None:
        if fenced.is_set():
            raise StopRequested("superseded")

    context = Context(tmp_path, fence=fence)
    context.checkpoint_later(1, full)
    context.finish_checkpoint()
    fenced.set()
    with pytest.raises(StopRequested, match="superseded"):
        context.checkpoint_later(2, full)


def test_a_fenced_attempt_begins_no_checkpoint(tmp_path: Path) -> None:
    def fence() -> None:
        raise StopRequested("superseded")

    with pytest.raises(StopRequested, match="superseded"):
        Context(tmp_path, fence=fence).checkpoint_later(1, writing(threading.Event()))
    assert list((tmp_path / "checkpoints").iterdir()) == []


KILLED = """
import sys, time
from pathlib import Path
from orchestrator.stage import Context

context = Context(Path(sys.argv[1]))
with context.checkpoint(1) as folder:
    (folder / "state").write_text("first")

def begin(folder):
    def write():
        (folder / "state").write_text("half of the sec")
        print("written", flush=True)
        time.sleep(60)
    return write

context.checkpoint_later(2, begin)
time.sleep(60)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.readline() == b"written\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert (tmp_path / "checkpoints/00000002/state").exists()
    assert saved(Context(tmp_path)) == ["00000001"]
    first = tmp_path / "checkpoints/00000001"
    assert damage(first, manifest(first).files) is None


def test_a_stage_states_how_long_a_stop_takes_from_its_steps_and_its_last_checkpoint(tmp_path: Path) -> None:
    stated: list[float] = []
    context = Context(tmp_path, report_stop=stated.append, stop=StopSignal())
    context.checkpoint_due(1)
    assert stated == []  # nothing is measured or expected yet
    context.expect_save(20)
    context.checkpoint_due(1)
    assert 40 <= stated[-1] < 60  # a step takes next to nothing, and a stop two saves
    with context.checkpoint(1):
        time.sleep(0.05)
    time.sleep(0.03)
    context.checkpoint_due(2)
    assert stated[-1] >= 0.08 + 2 * 0.05


def rewrite(path: Path, text: str, *, mtime_ns: int) -> None:
    path.write_text(text)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def test_a_file_that_was_hashed_is_not_hashed_again_through_another_link(tmp_path: Path) -> None:
    before = time.time_ns() - 10**9
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    weights = tmp_path / "one/weights"
    rewrite(weights, "epoch 1", mtime_ns=before)
    (first,) = scan(tmp_path / "one")
    os.link(weights, tmp_path / "two/weights")
    rewrite(weights, "EPOCH 1", mtime_ns=before)  # would show that the content was read
    assert scan(tmp_path / "two") == (first,)
    rewrite(weights, "EPOCH 1", mtime_ns=before + 1)
    (changed,) = scan(tmp_path / "two")
    assert changed.sha256 != first.sha256


def test_a_digest_of_a_file_written_just_now_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "state"
    now = time.time_ns() + 60 * 10**9  # and still so, whenever it is read
    rewrite(path, "one", mtime_ns=now)
    (first,) = scan(tmp_path)
    rewrite(path, "two", mtime_ns=now)  # within one tick of the file system's clock
    (second,) = scan(tmp_path)
    assert first.sha256 != second.sha256

"""The one process a launch that mirrors a sweep elsewhere: started by the launch, fed by the store.

No stage knows of it, so it can neither fail nor slow one. It lives as long as the launch, whose end it sees
by its closed standard input; then it has `FINISH_S` for what is left, and ends whatever hangs.
``python -m orchestrator.trackers.mirror STORE SWEEP REQUEST < /dev/null`` catches up by hand.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.core.records import Request
from orchestrator.core.settings import RunSettings
from orchestrator.errors import SweepError
from orchestrator.registry import TRACKERS, lookup
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.trackers.follow import Follower

POLL_S, MAX_POLL_S = 3.0, 60.0
FINISH_S = 60.0
"""Seconds for a mirror to upload what is left after the launch is over."""
MAX_FAILURES = 20
"""Passes that may fail in a row before a mirror gives up."""


def make_mirror(settings: RunSettings, folder: Path) -> Any:
    """Makes the mirror that the settings name, None when their tracker is none: those live in the stages.

    Args:
        settings: of a launch.
        folder: where its files may go.

    Raises:
        UserError: its options are wrong.
    """
    name = settings.tracker.name
    if ":" in name:  # the user's own, for stages: imported there
        return None
    kind: Any = lookup(TRACKERS, name, kind="tracker")
    return kind(settings.tracker.options, folder) if getattr(kind, "follows_store", False) else None


@contextlib.contextmanager
def mirroring(ledger: Ledger, sweep: str, request: Request) -> Iterator[None]:
    """Runs the mirror of a launch beside it, and waits for its end for at most `FINISH_S`."""
    if request.settings is None or make_mirror(request.settings, Path()) is None:
        yield
        return
    log = Path(f"request-{request.number}-mirror.log")
    process = None
    try:
        log = ledger.objects.workspace(layout.logs(sweep)) / log
        process = _start(ledger.objects.url, sweep, request.number, log)
    except OSError as error:
        print(f"the mirror cannot be started, no cell is the worse for it: {error}", file=sys.stderr)
    try:
        yield
    finally:
        if process is not None:
            with contextlib.suppress(OSError):
                _end(process, log)


def _start(url: str, sweep: str, number: int, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.trackers.mirror", url, sweep, str(number)],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # Ctrl-C is for the cells; this one ends after them
        )


def _end(process: subprocess.Popen[bytes], log: Path) -> None:
    """Tells the mirror that the launch is over, and prints its last words."""
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5.0)
    if process.poll() is None:
        print(f"waiting for the mirror to finish, at most {FINISH_S:.0f} s: {log}", flush=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=FINISH_S + 5.0)
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.returncode == 0:
        print("\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]))
    else:
        print(f"the mirror ended early, no cell is the worse for it: {log}", file=sys.stderr)


def run(url: str, sweep: str, number: int, over: threading.Event) -> str:
    """Mirrors the cells of a request until the launch is over; returns what to say at the end.

    Raises:
        Exception: whatever went wrong `MAX_FAILURES` times in a row, or at the end.
    """
    ledger = open_ledger(url)
    request = next(request for request in ledger.requests(sweep) if request.number == number)
    assert request.settings is not None
    own = ledger.objects.workspace(layout.mirror(sweep))
    mirror = make_mirror(request.settings, own.parent)
    memory, key = own / "mirrored.json", f"{layout.mirror(sweep)}/mirrored.json"
    with _alone(own / "lock", over):
        if not ledger.objects.in_place and (data := ledger.objects.get(key)) is not None:
            memory.write_bytes(data)  # of a launch on another machine, perhaps
        follower = Follower(
            ledger,
            ledger.revision(sweep, request.revision),
            cells=request.cells,
            memory=memory,
            open_run=mirror.open,
        )
        num_failures = 0
        while num_failures < MAX_FAILURES:
            last = over.is_set()  # before the pass, so that the last one sees all that the launch left
            start_s = time.process_time()
            try:
                follower.follow()
                num_failures = 0
            except Exception:
                num_failures += 1
                if last or num_failures == MAX_FAILURES:
                    raise
                traceback.print_exc()
            if last:
                break
            cost_s = time.process_time() - start_s
            over.wait(min(MAX_POLL_S, max(POLL_S, 20 * cost_s)))  # 5 % of a core, mostly
        follower.close()
        if not ledger.objects.in_place and memory.exists():
            ledger.objects.put(key, memory.read_bytes())
    lost = f"; {follower.num_lost} not mirrored whole, see the log" if follower.num_lost else ""
    return f"{mirror.farewell()}{lost}"


@contextlib.contextmanager
def _alone(path: Path, over: threading.Event) -> Iterator[None]:
    """Waits until no other mirror writes the runs of this sweep."""
    with path.open("w", encoding="utf-8") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                over.wait(POLL_S) if not over.is_set() else time.sleep(POLL_S)
                continue
            except OSError:  # a file system without locks: two launches at once would write lines twice
                pass
            break
        yield


def main(argv: list[str] | None = None) -> int:
    """Mirrors until standard input closes, and a little longer."""
    url, sweep, number = sys.argv[1:] if argv is None else argv
    over = threading.Event()

    def wait_for_the_end() -> None:
        while sys.stdin.buffer.read(1):
            pass
        over.set()
        time.sleep(FINISH_S)
        print("the mirror did not finish in time; what is missing follows at the next launch", flush=True)
        os._exit(1)

    threading.Thread(target=wait_for_the_end, name="launch", daemon=True).start()
    os.nice(10)  # cells come first
    try:
        said = run(url, sweep, int(number), over)
    except SweepError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    print(said, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The mirror process: one for each launch, it copies what the store shows of a sweep to another system.

The launch starts it, and no stage communicates with it, so it can neither fail nor slow a stage. Its standard
input closes when the launch ends. It then has `FINISH_S` for the rest, and exits in any case. ``python -m
orchestrator.trackers.mirror STORE SWEEP REQUEST < /dev/null`` catches up by hand.
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
"""Least and greatest seconds between two passes."""
FINISH_S = 60.0
"""Seconds for a mirror to upload what is left after the launch has ended."""
MAX_FAILURES = 20
"""Consecutive failed passes after which a mirror gives up."""


def make_mirror(settings: RunSettings, folder: Path) -> Any:
    """Return the mirror that the settings name; None if their tracker runs inside the stages instead.

    Args:
        settings: the settings of a launch.
        folder: where the mirror may write files.

    Raises:
        UserError: its options are wrong.
    """
    name = settings.tracker.name
    if ":" in name:  # a user's own tracker, which only stages may import
        return None
    kind: Any = lookup(TRACKERS, name, kind="tracker")
    return kind(settings.tracker.options, folder) if getattr(kind, "follows_store", False) else None


@contextlib.contextmanager
def mirroring(ledger: Ledger, sweep: str, request: Request) -> Iterator[None]:
    """Run the mirror of a launch beside it; at the end wait for it for at most `FINISH_S`."""
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
            start_new_session=True,  # Ctrl-C stops the cells; the mirror must outlive them to send their end
        )


def _end(process: subprocess.Popen[bytes], log: Path) -> None:
    """Signal the end of the launch to the mirror, and print the last line of its log."""
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
    """Mirror the cells of a request until the launch is over; return a summary for the user.

    Args:
        url: the store.
        sweep: name of the sweep.
        number: number of the request.
        over: set when the launch has ended.

    Raises:
        Exception: the error of the `MAX_FAILURES`th failed pass in a row, or of the last pass.
    """
    ledger = open_ledger(url)
    request = next(request for request in ledger.requests(sweep) if request.number == number)
    assert request.settings is not None
    own = ledger.objects.workspace(layout.mirror(sweep))
    mirror = make_mirror(request.settings, own.parent)
    memory, key = own / "mirrored.json", f"{layout.mirror(sweep)}/mirrored.json"
    with _alone(own / "lock", over):
        if not ledger.objects.in_place and (data := ledger.objects.get(key)) is not None:
            memory.write_bytes(data)  # an earlier launch may have run on another machine
        follower = Follower(
            ledger,
            ledger.revision(sweep, request.revision),
            cells=request.cells,
            memory=memory,
            open_run=mirror.open,
        )
        num_failures = 0
        while num_failures < MAX_FAILURES:
            last = over.is_set()  # read before the pass, so that the last pass sees everything of the launch
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
            over.wait(min(MAX_POLL_S, max(POLL_S, 20 * cost_s)))  # use about 5 % of one core at most
        follower.close()
        if not ledger.objects.in_place and memory.exists():
            ledger.objects.put(key, memory.read_bytes())
    lost = f"; {follower.num_lost} not mirrored whole, see the log" if follower.num_lost else ""
    return f"{mirror.farewell()}{lost}"


@contextlib.contextmanager
def _alone(path: Path, over: threading.Event) -> Iterator[None]:
    """Wait until no other mirror writes the runs of this sweep."""
    with path.open("w", encoding="utf-8") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                over.wait(POLL_S) if not over.is_set() else time.sleep(POLL_S)
                continue
            except OSError:  # no locks on this file system: two launches at once may send lines twice
                pass
            break
        yield


def main(argv: list[str] | None = None) -> int:
    """Mirror until standard input closes, and a little longer."""
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
    os.nice(10)  # the cells' processes have priority
    try:
        said = run(url, sweep, int(number), over)
    except SweepError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    print(said, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

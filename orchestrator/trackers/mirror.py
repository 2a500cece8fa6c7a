"""The mirrors of a launch, in one process: they copy what the store shows of a sweep to other systems.

The launch starts the process, and no stage communicates with it, so it can neither fail nor slow a stage. Its
standard input closes when the launch ends. It then has `MIRROR_FINISH_S` for the rest, and exits in any case.
Each mirror has a thread of its own, so that one that waits for its server holds up no other.

Lines on its standard output are for the user; a line that begins with `PROBLEM` is printed once a mirror.
Standard error is the log.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.core.records import Revision
from orchestrator.core.settings import MIRROR_FINISH_S
from orchestrator.errors import InfrastructureError, SweepError
from orchestrator.provenance import without_secrets
from orchestrator.registry import MIRRORS, lookup
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.trackers.following import Follower, SentCounts
from orchestrator.trackers.protocol import Mirror, Unavailable, log, log_to

POLL_S, MAX_POLL_S = 3.0, 60.0
"""Least and greatest seconds between two passes."""
MAX_RETRY_S = 3600.0
"""Longest pause that a server may request, in seconds."""
MAX_FAILED_PASSES = 20
"""Consecutive failed passes after which a mirror gives up."""
PAUSE_S, MAX_PAUSE_S = 2.0, 300.0
"""Seconds between two passes while a server takes nothing: at first, and at most. Each doubles the last."""
LOCK_S = 5.0
"""Seconds to wait, once the launch is over, for another mirror of the same sweep."""
PROBLEM = "! "
"""Beginning of a line about something that could not be sent."""


class MirrorOutcome(NamedTuple):
    """What a mirror did.

    Attributes:
        name: of the mirror.
        sent: what it sent.
        num_lost: cells whose run did not receive everything.
        problem: why not all was sent, "" if all was.
        fix: what to do about it.
        summary: one line for the user.
    """

    name: str
    sent: SentCounts
    num_lost: int
    problem: str
    fix: str
    summary: str


class MirrorPasses:
    """One mirror that follows one sweep, in passes.

    Args:
        name: of the mirror.
        options: its options.
        ledger: the store.
        revision: the sealed sweep.
        cells: ids of the cells to mirror; None for all.
        notify: called with the first problem.
        retries: how often the last pass is repeated while a server takes nothing.

    Raises:
        UserError: the options are wrong.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        ledger: Ledger,
        revision: Revision,
        cells: Sequence[str] | None = None,
        notify: Callable[[str], None] = log,
        retries: int = 0,
    ) -> None:
        self.name = name
        self.mirror: Mirror = lookup(MIRRORS, name, kind="mirror")(options)
        self._ledger = ledger
        self._revision = revision
        self._cells = cells
        self._notify = notify
        self._retries = retries
        self._problem = self._fix = ""
        self._noticed = False
        self._not_before_s = 0.0

    def run(self, over: threading.Event) -> MirrorOutcome:
        """Make passes until the launch is over, and one after that."""
        sweep = self._revision.sweep.name
        own = self._ledger.objects.workspace(layout.mirror(sweep, self.name))
        follower = None
        try:
            self.mirror.check()
            with locked(own / "lock", over):
                follower = Follower(self._ledger, self._revision, cells=self._cells, mirror=self.mirror)
                self._make_passes(follower, over)
                self._close(follower)
        except SweepError as error:
            self._report(error.what, error.fix)
        except Exception as error:  # noqa: BLE001 - whatever the other side raises
            log(traceback.format_exc())
            self._report(f"{type(error).__name__}: {error}")
        sent, lost = (follower.sent, len(follower.failures)) if follower else (SentCounts(), 0)
        text = self.mirror.summary()
        if follower and lost:
            *_, reasons = follower.failures.values()
            text += f"; {lost} not mirrored whole, see the log ({reasons[-1]})"
        if self._problem or lost:
            text += f"; what is missing follows by: {self._later}"
        return MirrorOutcome(self.name, sent, lost, self._problem, self._fix, without_secrets(text))

    @property
    def _later(self) -> str:
        return f"sweep sync {self._revision.sweep.name} --to {self.name}"

    def _make_passes(self, follower: Follower, over: threading.Event) -> None:
        failed = 0
        while True:
            last = over.is_set()  # read before the pass, so that the last pass sees everything of the launch
            pause_s = POLL_S
            # A server that demands a pause gets it, also when the launch ends meanwhile.
            if time.monotonic() >= self._not_before_s:
                start_s = time.thread_time()
                try:
                    follower.follow()
                    failed, self._problem, self._fix = 0, self.mirror.problem, ""
                    cost_s = time.thread_time() - start_s
                    pause_s = min(MAX_POLL_S, max(POLL_S, 20 * cost_s))  # use about 5 % of one core at most
                    if self.mirror.problem:
                        self._notice(self.mirror.problem, "")
                except Unavailable as error:
                    failed += 1
                    pause_s = self._put_off(error, failed)
                    if error.is_final:
                        return
                except Exception as error:
                    log(traceback.format_exc())
                    failed += 1
                    if last or failed == MAX_FAILED_PASSES:
                        raise
                    self._problem = f"{type(error).__name__}: {error}"
            if last and 0 < failed <= self._retries:
                time.sleep(min(pause_s, MAX_POLL_S))
                self._not_before_s = 0.0
                continue
            if last:
                return
            over.wait(pause_s)

    def _put_off(self, error: Unavailable, failed: int) -> float:
        """Record that the server takes nothing, and return the seconds until the next try."""
        usual_s = min(MAX_PAUSE_S, PAUSE_S * 2 ** min(failed - 1, 10))
        pause_s = usual_s if error.retry_s is None else min(error.retry_s, MAX_RETRY_S)
        self._not_before_s = time.monotonic() + pause_s
        self._report(error.what, error.fix)
        return pause_s

    def _close(self, follower: Follower) -> None:
        """Close what is open, unless the server takes nothing."""
        if self._not_before_s > time.monotonic() and self._problem:
            return
        try:
            follower.close()
        except Unavailable as error:
            self._report(error.what, error.fix)

    def _report(self, what: str, fix: str = "") -> None:
        self._problem, self._fix = what, fix
        self._notice(what, fix)

    def _notice(self, what: str, fix: str) -> None:
        """Notify of the first problem; all others are lines in the log."""
        what = without_secrets(what)
        log(f"{self.mirror.title}: {what}")
        if not self._noticed:
            self._noticed = True
            advice = f"; {fix}" if fix else ""
            self._notify(
                f"{self.mirror.title}: {what}{advice}; the cells go on, "
                f"what is missing follows by: {self._later}"
            )


@contextlib.contextmanager
def locked(path: Path, over: threading.Event) -> Iterator[None]:
    """Hold the lock of a mirror of this sweep. Wait until no other process on this machine holds it.

    Args:
        path: of the lock file.
        over: set when the launch has ended; then the wait ends after `LOCK_S`.

    Raises:
        InfrastructureError: one still holds it when the launch is over.
    """
    left_s = LOCK_S
    with path.open("w", encoding="utf-8") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if left_s <= 0:
                    raise InfrastructureError(
                        "another launch or sync of this sweep sends to it now"
                    ) from None
                if over.is_set():
                    time.sleep(0.5)
                    left_s -= 0.5
                else:
                    over.wait(POLL_S)
                continue
            except OSError:  # no locks on this file system: two launches at once may send lines twice
                pass
            break
        yield


def follow_launch(
    url: str, sweep: str, number: int, over: threading.Event, show: Callable[[str], None]
) -> None:
    """Run the mirrors of a request until the launch is over, each in a thread.

    Args:
        url: the store.
        sweep: name of the sweep.
        number: number of the request.
        over: set when the launch has ended.
        show: prints a line for the user.
    """
    ledger = open_ledger(url)
    request = next(request for request in ledger.requests(sweep) if request.number == number)
    assert request.settings is not None
    revision = ledger.revision(sweep, request.revision)

    def serve(name: str, options: dict[str, Any]) -> None:
        try:
            # A ledger of its own: over a bucket it is a process that serves one request at a time.
            passes = MirrorPasses(
                name,
                options,
                ledger=open_ledger(url),
                revision=revision,
                cells=request.cells,
                notify=lambda line: show(f"{PROBLEM}{line}"),
            )
            show(passes.run(over).summary)
        except Exception as error:  # noqa: BLE001 - one mirror's failure is not that of the others
            log(traceback.format_exc())
            show(f"{PROBLEM}{name}: {type(error).__name__}: {without_secrets(str(error))}")

    threads = [
        threading.Thread(target=serve, args=each, name=each[0], daemon=True)
        for each in request.settings.tracker.mirrors.items()
    ]
    for thread in threads:
        thread.start()
    over.wait()
    until_s = time.monotonic() + MIRROR_FINISH_S
    for thread in threads:
        thread.join(max(0.0, until_s - time.monotonic()))
    late = [thread.name for thread in threads if thread.is_alive()]
    for name in late:
        left = f"what is missing follows by: sweep sync {sweep} --to {name}"
        show(f"{PROBLEM}{name}: not finished after {MIRROR_FINISH_S:.0f} s; {left}")
    if late:
        os._exit(0)  # a library that waits for a server would hold the process


def main(argv: list[str] | None = None) -> int:
    """Mirror until standard input closes, and a little longer."""
    url, sweep, number = sys.argv[1:] if argv is None else argv
    over = threading.Event()
    # Whatever a library prints goes to the log; only our own lines go to the user.
    user = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    os.dup2(2, 1)

    def show(line: str) -> None:
        log(line)
        with contextlib.suppress(OSError, ValueError):  # the launch may be gone
            user.write(f"{line}\n")
            user.flush()

    def wait_for_the_end() -> None:
        while sys.stdin.buffer.read(1):
            pass
        over.set()

    threading.Thread(target=wait_for_the_end, name="launch", daemon=True).start()
    os.nice(10)  # the cells' processes have priority
    try:
        with log_to(None):
            follow_launch(url, sweep, int(number), over, show)
    except SweepError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Start the launcher of a recorded request and follow it: progress, Ctrl-C, failures, reports.

A detached launch runs the same code: ``python -m orchestrator.cli.attached STORE SWEEP REQUEST``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from orchestrator.api.estimates import ordered_ids, sized
from orchestrator.api.launching import CheckedLaunch, Detached, detach, make_launcher
from orchestrator.api.reconciling import Notifies, PendingLaunch, is_well, notifier_of, undecided_lines
from orchestrator.api.requests import finish_retention, needing_retired_lines
from orchestrator.api.state import SweepState, sealed_view
from orchestrator.cli.output import LongStep, indented, print_lines, styled
from orchestrator.cli.progress import (
    count_stages,
    mirroring,
    print_failures,
    submit_all,
    write_reports,
)
from orchestrator.core.records import Code, Request
from orchestrator.core.settings import RunSettings
from orchestrator.core.state import GOOD, State
from orchestrator.core.sweep import preload
from orchestrator.entry import for_people, give_back_output, outlive_the_reader, prepare
from orchestrator.errors import InfrastructureError, UserError, counted
from orchestrator.jobs.records import Submission
from orchestrator.jobs.submissions import settings_of
from orchestrator.launchers.base import GpuNumbers, Launch, Launcher
from orchestrator.registry import load
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.checkout import checkout_of
from orchestrator.store.ledger import open_ledger
from orchestrator.store.objects import ObjectStore

POLL_S, REFRESH_S, LINE_S, LAST_LOOKS = 0.1, 1.0, 10.0, 5
"""Seconds between polls of the launcher, refreshes of the progress, and lines in a log; then the number of
attempts to read the final states.
"""


_PRINT_LAUNCHED = "orchestrator.cli.launch:print_launched"  # that module imports this one


class Launched(NamedTuple):
    """What came of a launch or rerun.

    Attributes:
        code: exit code of the verb.
        view: the revision.
        cells: ids of the cells that were meant.
        verb: of the request.
        settings: of the run.
        request: the recorded request; None if nothing was recorded.
        detached: the background process; None without one.
        scripts: of a dry run, the submissions with what the scheduler would get.
    """

    code: int
    view: SweepState
    cells: Sequence[str]
    verb: str
    settings: RunSettings
    request: Request | None = None
    detached: Detached | None = None
    scripts: Sequence[tuple[Submission, str]] = ()


def follow(
    checked: CheckedLaunch, sealed: SweepState, *, wait: bool, is_detached: bool, as_json: bool = False
) -> Launched:
    """Record a checked launch, run its cells, and return what came of it.

    Args:
        checked: the launch.
        sealed: the revision, in the store.
        wait: whether to stay until all cells have ended, for launchers that submit jobs.
        is_detached: whether to run the cells in a background process and return.
        as_json: whether standard output is for JSON alone.
    """
    if wait and checked.settings.is_external:
        raise UserError("launcher=external starts nothing to wait for", fix="sweep wait, after the launch")
    with LongStep("recording the launch and its code"):
        request = checked.record(sealed, indented)
    found = Launched(0, sealed, [cell.id for cell in checked.cells], checked.verb, checked.settings, request)
    if checked.settings.is_external:
        print(f"{sealed.title}: recorded, and no worker was started")
        print(f"  sweep work {sealed.sweep.name}{sealed.hint}")
        print(f"  sweep status {sealed.sweep.name}{sealed.hint}")
        return found
    if checked.limits:
        stays = wait or (checked.launcher.attached and not is_detached)
        asked = [PendingLaunch(request, checked.launcher, checked.limits)]
        return found._replace(code=submit_all(sealed, asked, wait=stays))
    if not is_detached:
        code = run_attached(sealed.fresh(), request, checked.launcher, as_json=as_json)
        return found._replace(code=code)
    detached = detach(sealed, request)
    print(
        f"{sealed.title}: launched in the background as process {detached.process.pid}, log in {detached.log}"
    )
    print(f"  sweep status {sealed.sweep.name}{sealed.hint}")
    print(f"  sweep cancel {sealed.sweep.name}{sealed.hint}")
    return found._replace(detached=detached)


def run_attached(view: SweepState, request: Request, launcher: Launcher, *, as_json: bool = False) -> int:
    """Run the cells of a request to their end, and print how they ended.

    Args:
        view: the revision.
        request: the launch or rerun.
        launcher: made from its settings.
        as_json: whether a process that takes the place of this one is to print JSON.

    Returns:
        0 when all of them are done, else 1.

    Raises:
        InfrastructureError: the workers refused to work or left a full disk, or the code in the store is
            damaged.
    """
    if request.code is not None:
        words = ["orchestrator.cli.attached", view.ledger.objects.url, view.sweep.name, str(request.number)]
        go_on_in_the_snapshot(view.ledger.objects, request.code, [*words, "--json"] if as_json else words)
    wanted = set(request.cells) if request.cells is not None else None
    cells = view.asked_cells(wanted)
    # A second Ctrl-C also ends a wait for a store that does not answer.
    stopper = _Stopper(launcher)
    view = view.patient(indented, lambda: "stopped" if stopper.count > 1 else "")
    notifier = notifier_of(view, request, indented)
    # A launch whose cells are all done still runs the mirror, which uploads what it missed earlier.
    with mirroring(view.ledger, view.sweep.name, request):
        if view.open_decision or any(view.cells[cell.id].state not in GOOD for cell in cells):
            with stopper:
                launcher.start(_as_launch(view, request, launcher))
                _watch(view, wanted, launcher, notifier)
                keep_logs(view)
    # A user who stops a launch wants it to end now. Retention is left to the next launch.
    if not stopper.count:
        print_lines(finish_retention(view.fresh(), settings_of(request).policy))
    view = _last_view(view)
    cells = view.asked_cells(wanted)
    counts = Counter(view.cells[cell.id].state for cell in cells)
    print(f"{view.title}: {counted(len(cells), 'cell')}: {', '.join(f'{n} {s}' for s, n in counts.items())}")
    print_failures(view, cells)
    print_lines(needing_retired_lines(view, cells))
    print_lines(undecided_lines(view))
    if any(view.cells[cell.id].state is State.DONE for cell in view.sweep.cells):
        write_reports(view)
    if stopper.count < 2:
        notifier.finish()
    if is_well(view, cells):
        return 0
    # A refusal is an error of the machine or the store (exit code 3), not of a cell.
    if launcher.refusal() and not stopper.count:
        raise InfrastructureError(launcher.refusal())
    if not stopper.count:
        return int(load("orchestrator.api.failures:exit_code")(view, cells))
    print(f"stopped; go on with: sweep launch {view.sweep.name}{view.hint}")
    return 1


def _last_view(view: SweepState) -> SweepState:
    """Read the final states of all cells. Retry for a while if some folders cannot be read.

    The workers have just ended. A file system that recovers from an outage would show their cells as unknown.
    """
    for _ in range(LAST_LOOKS):
        view = view.fresh()
        if not any(view.reader.evidence(digest).is_passing for digest in view.instances):
            break
        time.sleep(REFRESH_S)
    return view


def _as_launch(view: SweepState, request: Request, launcher: Launcher) -> Launch:
    """Return what the launcher gives to its workers: store, request, settings, code and ordered cells."""
    objects, code, paths = view.ledger.objects, request.code, request.import_paths
    named = None
    if code is not None:
        paths = snapshots.import_paths(objects, code)
        digest = snapshots.version_of(code, view.sweep, paths)
    else:
        checkout = checkout_of(objects, view.sweep, paths)
        digest, named = checkout.digest(), checkout.named
    cells = view.asked_cells(request.cells)
    estimates, chosen, stages = sized(view, cells, request, launcher, paths)
    gpus = GpuNumbers({key: one.num_gpus for key, one in estimates.items()}, stages) if chosen else None
    return Launch(
        store=view.ledger.objects.url,
        sweep=view.sweep.name,
        revision=view.number,
        request=request.number,
        cells=ordered_ids(view, request, cells, estimates),
        settings=settings_of(request),
        import_paths=paths,
        code_digest=digest,
        preload=tuple(preload(view.sweep)),
        log_folder=str(view.ledger.objects.workspace(layout.logs(view.sweep.name))),
        code=code,
        named=named,
        gpus=gpus,
    )


def go_on_in_the_snapshot(objects: ObjectStore, code: Code, words: Sequence[str]) -> None:
    """Replace this process by one that runs a module of the code snapshot, unless it runs that already.

    Workers inherit the import path of this process. They must run the recorded code, even if the checkout is
    edited while they start.

    Args:
        objects: the store.
        code: the snapshot.
        words: the module and its arguments.

    Raises:
        InfrastructureError: the snapshot is damaged.
    """
    package = snapshots.package_path(objects, code.digest)
    if Path(__file__).resolve().is_relative_to(package.resolve()):
        return
    if problem := snapshots.damage(objects, code.digest):
        raise InfrastructureError(f"the code in the store is damaged: {problem}")
    # `execve` keeps the process id but drops Python's buffers.
    sys.stdout.flush()
    sys.stderr.flush()
    give_back_output()
    environment = {**os.environ, "PYTHONPATH": snapshots.python_path(package, os.environ)}
    os.execve(sys.executable, [sys.executable, "-P", "-m", *words], environment)


class _Stopper:
    """Signal handlers for the duration of a launch.

    The first Ctrl-C, SIGTERM or closed terminal stops the workers cleanly; they save checkpoints first. The
    second one kills them.

    Attributes:
        count: signals received so far.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    """Ctrl-C, a request to end, and a closed terminal."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher, self.count = launcher, 0
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> None:
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._stop)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Stop the launcher, or kill its workers if this is not the first signal."""
        self.count += 1
        if self.count == 1:
            print(
                "\nstopping: running stages checkpoint first (Ctrl-C again ends them at once)",
                file=sys.stderr,
            )
        self._launcher.stop(kill=self.count > 1)


def _watch(view: SweepState, wanted: set[str] | None, launcher: Launcher, notifier: Notifies) -> None:
    """Show progress until no worker is alive: a bar in a terminal, else a line whenever the text changes.

    The launcher is polled more often than the store is read. Polling is cheap and replaces dead workers, but
    reading the store of a large sweep takes seconds.
    """
    # The import takes a noticeable time, which verbs that show no bar should not pay.
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("stages; {task.description}; ETA"),
        TimeRemainingColumn(),
    )
    terminal = styled()  # a progress bar needs escape sequences
    progress = Progress(*columns, disable=not terminal)
    with progress:
        bar = progress.add_task("starting", total=None)
        next_s, line_s, last = 0.0, 0.0, ""
        alive = True
        while alive:
            alive = launcher.poll() > 0
            notifier.poll()
            now_s = time.monotonic()
            if now_s >= next_s or not alive:
                try:
                    now = view.fresh()
                    done, total, text = count_stages(now, now.asked_cells(wanted))
                except (OSError, InfrastructureError) as error:
                    # Otherwise the workers wait and go on, so this process does too.
                    if view.ledger.objects.waits_out or not alive:
                        raise
                    done, total, text = 0, 0, f"the store does not answer: {error}"
                progress.update(bar, completed=done, total=total, description=text)
                if not terminal and text != last and (now_s >= line_s or not alive):
                    print(f"{done}/{total} stages; {text}", flush=True)
                    last, line_s = text, now_s + LINE_S
                cost_s = time.monotonic() - now_s
                next_s = now_s + max(REFRESH_S, 20 * cost_s)  # reading the states takes at most 5 % of a core
            if alive:
                time.sleep(POLL_S)


def keep_logs(view: SweepState) -> None:
    """Upload the logs of the launcher and the workers to a bucket. In a folder, they are there already."""
    # The logs decide nothing about the cells.
    with contextlib.suppress(OSError), LongStep("uploading the logs"):
        view.ledger.objects.share(layout.logs(view.sweep.name))


def main(argv: list[str] | None = None) -> int:
    """Run a request that is already recorded: the entry point of a detached launch.

    Args:
        argv: store, sweep and number of the request, and ``--json`` to print JSON at the end; the arguments
            of this process by default.
    """
    url, name, number, *rest = sys.argv[1:] if argv is None else argv
    prepare()
    outlive_the_reader()
    go_on = partial(_go_on, url, name, number, as_json="--json" in rest)
    return int(load("orchestrator.cli.main:guarded")(go_on, ["launch", *rest]))


def _go_on(url: str, name: str, number: str, *, as_json: bool) -> int:
    """Run a recorded request, see `main`, and return the exit code."""
    ledger = open_ledger(url)
    requests = [r for r in ledger.requests(name) if r.number == int(number)]
    if not requests:
        raise InfrastructureError(f"request {number} of {name} cannot be read", where=url)
    request = requests[0]
    view = sealed_view(ledger, name, request.revision)
    num_cells = len(view.sweep.cells) if request.cells is None else len(request.cells)
    settings = settings_of(request)
    with for_people(as_json=as_json):
        code = run_attached(view, request, make_launcher(settings, num_cells))
    if as_json:
        load(_PRINT_LAUNCHED)(Launched(code, view, (), request.verb, settings, request))
    return code


if __name__ == "__main__":
    sys.exit(main())

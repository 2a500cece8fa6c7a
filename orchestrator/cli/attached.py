"""Starting a launcher for a recorded request, and staying with it: progress, Ctrl-C, failures, the report.

Also the body of a detached launch: ``python -m orchestrator.cli.attached STORE SWEEP REQUEST``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from orchestrator.api.drift import finish_retention, needing_retired_lines
from orchestrator.api.launching import CheckedLaunch, PendingLaunch, detach, make_launcher
from orchestrator.api.state import SweepState, sealed_view
from orchestrator.cli.ending import _numbers, print_failures, write_reports
from orchestrator.cli.jobs import submit_all
from orchestrator.cli.output import indented, print_lines, styled
from orchestrator.core.records import Code, Request
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.entry import outlive_the_reader, prepare
from orchestrator.errors import InfrastructureError, SweepError
from orchestrator.execution.main import preload
from orchestrator.launchers.base import Launch, Launcher
from orchestrator.launchers.jobs import settings_of
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.checkout import checkout_of
from orchestrator.store.ledger import open_ledger
from orchestrator.text import counted
from orchestrator.trackers.mirror import mirroring

POLL_S, REFRESH_S, LINE_S, LAST_LOOKS = 0.1, 1.0, 10.0, 5


def follow(checked: CheckedLaunch, sealed: SweepState, *, wait: bool, is_detached: bool) -> int:
    """Record a checked launch, run its cells as asked, and return the exit code."""
    request = checked.record(sealed, indented)
    if checked.limits:
        stays = wait or (checked.launcher.attached and not is_detached)
        return submit_all(sealed, [PendingLaunch(request, checked.launcher, checked.limits)], wait=stays)
    if not is_detached:
        return run_attached(sealed.fresh(), request, checked.launcher)
    detached = detach(sealed, request)
    print(
        f"{sealed.title}: launched in the background as process {detached.process.pid}, log in {detached.log}"
    )
    print(f"  sweep status {sealed.sweep.name}{sealed.hint}")
    print(f"  sweep cancel {sealed.sweep.name}{sealed.hint}")
    return 0


def run_attached(view: SweepState, request: Request, launcher: Launcher) -> int:
    """Runs a request's cells to their end and says how they ended.

    Returns:
        0 when all of them are done, else 1.

    Raises:
        InfrastructureError: the workers would not work.
    """
    if request.code is not None:
        _go_on_in_the_snapshot(view, request, request.code)
    wanted = set(request.cells) if request.cells is not None else None
    cells = [cell for cell in view.sweep.cells if wanted is None or cell.cell in wanted]
    stopper = _Stopper(launcher)
    view = view.patient(indented, lambda: "stopped" if stopper.count > 1 else "")
    with mirroring(view.ledger, view.sweep.name, request):
        if any(view.cells[cell.cell].state is not State.DONE for cell in cells):
            with stopper:
                launcher.start(_as_launch(view, request))
                _watch(view, cells, launcher)
                _keep_logs(view)
    if not stopper.count:
        print_lines(finish_retention(view.fresh(), settings_of(request).policy))
    view = _last_view(view)
    counts = Counter(view.cells[cell.cell].state for cell in cells)
    print(f"{view.title}: {counted(len(cells), 'cell')}: {', '.join(f'{n} {s}' for s, n in counts.items())}")
    print_failures(view, cells)
    print_lines(needing_retired_lines(view, cells))
    if any(view.cells[cell.cell].state is State.DONE for cell in view.sweep.cells):
        write_reports(view)
    if counts[State.DONE] == len(cells):
        return 0
    if launcher.refusal() and not stopper.count:
        raise InfrastructureError(launcher.refusal())
    if stopper.count:
        print(f"stopped; go on with: sweep launch {view.sweep.name}{view.hint}")
    return 1


def _last_view(view: SweepState) -> SweepState:
    """Look at the ends of all cells, again for a while where a folder of one errs."""
    for _ in range(LAST_LOOKS):
        view = view.fresh()
        if not any(view.snapshot.evidence(digest).is_passing for digest in view.sweep.nodes):
            break
        time.sleep(REFRESH_S)
    return view


def _as_launch(view: SweepState, request: Request) -> Launch:
    objects, code, paths = view.ledger.objects, request.code, request.import_paths
    named = None
    if code is not None:
        paths = snapshots.import_paths(objects, code)
        digest = snapshots.version_of(code, view.sweep, paths)
    else:
        checkout = checkout_of(objects, view.sweep, paths)
        digest, named = checkout.digest(), checkout.named
    return Launch(
        store=view.ledger.objects.url,
        sweep=view.sweep.name,
        revision=view.number,
        request=request.number,
        cells=request.cells,
        settings=settings_of(request),
        import_paths=paths,
        code_digest=digest,
        preload=tuple(preload(view.sweep)),
        log_folder=str(view.ledger.objects.workspace(layout.logs(view.sweep.name))),
        code=code,
        named=named,
    )


def _go_on_in_the_snapshot(view: SweepState, request: Request, code: Code) -> None:
    """Have this process run the snapshot's own copy of this module, unless it does."""
    package = snapshots.package_path(view.ledger.objects, code.digest)
    if Path(__file__).resolve().is_relative_to(package.resolve()):
        return
    if problem := snapshots.damage(view.ledger.objects, code.digest):
        raise InfrastructureError(f"the code in the store is damaged: {problem}")
    sys.stdout.flush()
    sys.stderr.flush()
    words = ["-P", "-m", "orchestrator.cli.attached", view.ledger.objects.url, view.sweep.name]
    environment = {**os.environ, "PYTHONPATH": str(package)}
    os.execve(sys.executable, [sys.executable, *words, str(request.number)], environment)


class _Stopper:
    """Turns the first Ctrl-C (or a closed terminal) into a clean stop, and the second into a kill."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

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
        self.count += 1
        if self.count == 1:
            print(
                "\nstopping: running stages checkpoint first (Ctrl-C again ends them at once)",
                file=sys.stderr,
            )
        self._launcher.stop(kill=self.count > 1)


def _watch(view: SweepState, cells: list[Cell], launcher: Launcher) -> None:
    """Shows progress until no worker lives."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("stages; {task.description}; ETA"),
        TimeRemainingColumn(),
    )
    terminal = styled()  # a bar is drawn with escape sequences
    progress = Progress(*columns, disable=not terminal)
    with progress:
        bar = progress.add_task("starting", total=None)
        next_s, line_s, last = 0.0, 0.0, ""
        alive = True
        while alive:
            alive = launcher.poll() > 0
            now_s = time.monotonic()
            if now_s >= next_s or not alive:
                try:
                    done, total, text = _numbers(view.fresh(), cells)
                except (OSError, InfrastructureError) as error:
                    if view.ledger.objects.in_place or not alive:
                        raise
                    done, total, text = 0, 0, f"the store does not answer: {error}"  # workers wait for it too
                progress.update(bar, completed=done, total=total, description=text)
                if not terminal and text != last and (now_s >= line_s or not alive):
                    print(f"{done}/{total} stages; {text}", flush=True)
                    last, line_s = text, now_s + LINE_S
                cost_s = time.monotonic() - now_s
                next_s = now_s + max(REFRESH_S, 20 * cost_s)  # watching takes 5 % of a core at most
            time.sleep(POLL_S)


def _keep_logs(view: SweepState) -> None:
    """Uploads what launcher and workers wrote, where the store is not a folder that they wrote it in."""
    if not view.ledger.objects.in_place:
        with contextlib.suppress(OSError):  # the cells are done or not without them
            view.ledger.objects.upload(layout.logs(view.sweep.name))


def main(argv: list[str] | None = None) -> int:
    """Attends to a request that is already recorded."""
    url, name, number = sys.argv[1:] if argv is None else argv
    prepare()
    outlive_the_reader()
    try:
        ledger = open_ledger(url)
        requests = [r for r in ledger.requests(name) if r.number == int(number)]
        if not requests:
            raise InfrastructureError(f"request {number} of {name} cannot be read", where=url)
        request = requests[0]
        view = sealed_view(ledger, name, request.revision)
        num_cells = len(view.sweep.cells) if request.cells is None else len(request.cells)
        return run_attached(view, request, make_launcher(settings_of(request), num_cells))
    except SweepError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

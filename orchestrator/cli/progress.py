"""Verbs that compose a sweep: their arguments, output while cells run, and the loop that submits jobs."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.api.launching import composed_or_sealed
from orchestrator.api.reconciling import (
    NOTICES_S,
    JobPasses,
    PendingLaunch,
    is_well,
    notifier_of,
    submit_pass,
    undecided_lines,
)
from orchestrator.api.requests import code_drift, finish_retention
from orchestrator.api.state import SweepState
from orchestrator.cli.output import (
    NUMBERS,
    LongStep,
    add_only,
    indented,
    print_lines,
    print_warnings,
    print_written,
    to_stderr,
)
from orchestrator.compose.main import Composition
from orchestrator.core.commandspec import lacks_results
from orchestrator.core.records import Request
from orchestrator.core.settings import MIRROR_FINISH_S
from orchestrator.core.state import FINAL, State
from orchestrator.core.sweep import Cell
from orchestrator.errors import SchedulerUnavailable, UserError, counted
from orchestrator.registry import REPORT_WRITER, load
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger


def add_composing(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of verbs that compose a sweep: the sweep, overrides, ``--name`` and ``--only``."""
    parser.add_argument(
        "sweep", nargs="?", metavar="SWEEP", help="a name or path, or SWEEP@k for sealed revision k"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="in Hydra's grammar: model=a,b lr=1e-4"
    )
    parser.add_argument("--name", help="keep this variant apart under another name")
    parser.add_argument("--app", metavar="SCRIPT", help="in place of SWEEP: a Hydra app, such as train.py")
    parser.add_argument("--run", metavar="COMMAND", help="in place of SWEEP: 'python train.py --lr {lr}'")
    for name, (metavar, does) in _GIVEN.items():
        parser.add_argument(f"--{name}", metavar=metavar, action="append", default=[], help=does)
    parser.add_argument("--shell", action="store_true", help="with --run: the command is a line of bash")
    add_only(parser)


_GIVEN = {
    "python": ("PATH", "with --app or --run: the interpreter"),
    "checkpoints": ("GLOB", "with --app or --run: files in the output folder that are checkpoints"),
    "volatile": ("KEY", "with --app: it says nothing about the result; repeats"),
    "results": ("FILE", "with --run: JSON or CSV in {output}, with the result rows"),
    "metric": ("NAME=REGEX", "with --run: a result, in what the command prints; repeats"),
    "keep": ("GLOB", "with --run: files in {work} that become part of the product; repeats"),
}
"""Options that stand for keys of a sweep file, where there is none."""


def composed(
    args: argparse.Namespace, step: Callable[[int, int], None]
) -> tuple[SweepState, Composition | None]:
    """Return what the arguments of `add_composing` name; see `composed_or_sealed`.

    With ``--app`` and ``--run`` all words are overrides; `args` gets the name of the sweep. `step` is called
    with the number of composed points and of all points.
    """
    options = {name: getattr(args, name) for name in _GIVEN} | {"shell": ["true"] * args.shell}
    given = None
    if args.app is not None or args.run is not None:
        args.overrides = [*filter(None, [args.sweep]), *args.overrides]
        # Loaded by name: neither the other verbs nor other sweeps need them.
        args.sweep, given = load("orchestrator.compose.given:given")(
            args.app, args.run, args.overrides, options
        )
    elif used := [name for name, value in options.items() if value]:
        raise UserError(f"--{used[0]} goes with --app or --run", allowed="a sweep file has it as a key")
    return composed_or_sealed(args.sweep, args.overrides, args.name, progress=step, given=given)


def again(verb: str, args: argparse.Namespace) -> str:
    """Return a command line that runs another verb with the same sweep, overrides, name and selectors."""
    named = [("name", args.name), ("app", args.app), ("run", args.run)]
    several = [(name, value) for name in ("only", *_GIVEN) for value in getattr(args, name)]
    options = [word for name, value in (*named, *several) if value for word in (f"--{name}", value)]
    options += ["--shell"] * args.shell
    sweep = [] if args.app or args.run else [args.sweep]
    # The user copies this line into a shell, so selectors with spaces and brackets must be quoted.
    return shlex.join(["sweep", verb, *sweep, *args.overrides, *options])


def print_remarks(
    view: SweepState, cells: Sequence[Cell], composition: Composition | None, import_paths: Sequence[str] = ()
) -> None:
    """Print warnings, products of other code, and products without the results that are read now.

    Args:
        view: the revision.
        cells: that were selected.
        composition: with notes; None for a revision from the store.
        import_paths: see `code_drift`.
    """
    for note in composition.notes if composition else ():
        print(f"  note: {note}")
    print_warnings(view)
    print_lines(code_drift(view, cells, import_paths), indent=2)
    for stage in (name for name, spec in view.sweep.specs.items() if spec.results or spec.metric):
        digests = (d for cell in cells for d in cell.stage_digests if view.instances[d].stage == stage)
        made = (done for d in digests if (done := view.reader.evidence(d).done) is not None)
        number = sum(lacks_results(view.sweep.specs[stage], done.rows) for done in made)
        if number:
            what = f"{counted(number, 'cell')} done without what `results` or `metric` of {stage} reads now"
            print(f"  note: {what}; they are read again after")
            print(
                f"    sweep discard {view.sweep.name} state=done --stage {stage} --reason results{view.hint}"
            )


def write_reports(view: SweepState) -> None:
    """Write the sweep's reports at the end of a launch. A report that fails is printed as an error.

    The results are in the store already, so the exit code of the launch does not depend on its reports.
    """
    if not view.sweep.report:
        return
    with LongStep("writing the reports"):
        reports, errors = load(REPORT_WRITER)(view, view.sweep.report, None, notify=to_stderr)
    for written in reports:
        for path in written:
            if path.suffix == ".md" and path.parent.joinpath(NUMBERS) not in written:
                # Without report.json, the Markdown is the whole report: a page or two.
                print(f"\n{path.read_text(encoding='utf-8').rstrip()}")
        if written:
            print()
            print_written(written)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)


REPEAT_S = 300.0
"""Seconds after which a problem that lasts is printed again."""

MAX_JOBS_SHOWN = 5
"""Failed jobs listed for each cause."""


class StageCounts(NamedTuple):
    """The progress of a launch, counted in distinct stages. A stage that cells share counts once.

    Attributes:
        stages_over: stages in a final state.
        num_stages: all stages of the cells.
        text: how many cells are done, failed, running and queued.
    """

    stages_over: int
    num_stages: int
    text: str


def count_stages(view: SweepState, cells: list[Cell]) -> StageCounts:
    """Count the stages and cells of a launch by state."""
    states = {digest: stage.state for cell in cells for digest, stage in view.stages_of(cell).items()}
    counts = Counter(view.cells[cell.id].state for cell in cells)
    text = (
        f"cells: {counts[State.DONE]} of {len(cells)} done, {counts[State.FAILED]} failed; "
        f"{sum(state is State.RUNNING for state in states.values())} running"
    )
    text += f", {counts[State.QUEUED]} queued" if counts[State.QUEUED] else ""
    text += "".join(f"; {line}" for line in hold_lines(view, cells, "waiting")[:1])
    return StageCounts(sum(state in FINAL for state in states.values()), len(states), text)


def print_progress(view: SweepState, cells: list[Cell], last: str) -> str:
    """Print the progress if it has changed since `last`; return the new text, for the next call."""
    done, total, text = count_stages(view, cells)
    if text != last:
        print(f"{done}/{total} stages; {text}", flush=True)
    return text


def print_failures(view: SweepState, cells: list[Cell]) -> None:
    """Print the failures grouped by cause, each with the command that shows its log.

    A failed stage that several cells share is printed once. Cells whose job failed before any stage did are
    printed separately, because their log is that of the job.
    """
    groups: dict[str, dict[str, tuple[Cell, int]]] = {}
    by_job: dict[str, list[Cell]] = {}
    for cell in cells:
        # A failed cell without a failed stage: the scheduler's job died before it could claim a stage.
        whole = view.cells[cell.id]
        if whole.state is State.FAILED and all(s.state is not State.FAILED for s in whole.stages.values()):
            by_job.setdefault(str(whole.cause), []).append(cell)
        for digest, status in view.stages_of(cell).items():
            if status.state is State.FAILED:
                group = groups.setdefault(str(status.cause), {})
                # The first cell of a shared stage names it; the others are only counted.
                first, number = group.get(digest, (cell, 0))
                group[digest] = (first, number + 1)
    for cause, group in sorted(groups.items()):
        print(f"\nfailed by {cause}: {counted(len(group), 'stage')}")
        for digest, (cell, number) in group.items():
            instance = view.instances[digest]
            shared = f" (and {counted(number - 1, 'other cell')} that share it)" if number > 1 else ""
            print(f"  {cell.id} {instance.name}{shared}: {view.stages[digest].reason}")
            print(
                f"    sweep logs {view.sweep.name} {cell.id} --stage {shlex.quote(instance.name)}{view.hint}"
            )
    for cause, lost in sorted(by_job.items()):
        print(f"\njobs failed by {cause}: {counted(len(lost), 'cell')}")
        for cell in lost[:MAX_JOBS_SHOWN]:
            print(f"  {cell.id}: {view.cells[cell.id].reason}")
        if len(lost) > MAX_JOBS_SHOWN:
            print(f"  and {len(lost) - MAX_JOBS_SHOWN} more")
        print(f"    sweep logs {view.sweep.name} {lost[0].id} --job{view.hint}")
    for line in hold_lines(view, cells):
        print(f"\n{line}")
    if groups or by_job:
        print(f"\nwhen mended: sweep rerun {view.sweep.name}{view.hint}")


def hold_lines(view: SweepState, cells: Sequence[Cell], state: str = "") -> list[str]:
    """Return why cells are ``held back``, or ``waiting`` for what ends by itself: each reason in a line."""
    reasons: Counter[tuple[str, str]] = Counter()
    for cell in cells if view.holds.cells or view.holds.stages else ():
        for digest, status in view.cells[cell.id].stages.items():
            if (hold := view.holds.of(cell.id, digest)) is not None and hold.reason == status.reason:
                reasons["held back" if hold.is_final else "waiting", hold.reason] += 1
                break
    found = [(*key, counted(number, "cell")) for key, number in reasons.items() if state in ("", key[0])]
    return [f"{each}: {number}. {why}" for each, why, number in found]


def submit_all(view: SweepState, asked: Sequence[PendingLaunch], *, wait: bool) -> int:
    """Record jobs that ended, submit cells that no job holds, and print both.

    Args:
        view: the revision.
        asked: the requests whose cells are submitted.
        wait: whether to repeat this until all cells have ended.

    Returns:
        0 if everything was submitted and can start, and no cell failed or is blocked; with `wait`, 0 if all
        cells are done. Else 1.

    Raises:
        UserError: a cell fits nowhere, or the scheduler refuses the job for good.
        InfrastructureError: the scheduler does not answer.
    """
    with mirroring(view.ledger, view.sweep.name, asked[-1].request):
        try:
            done = submit_pass(view, asked, notify=print)
        except SchedulerUnavailable as error:
            if not wait:
                raise
            _print_problem(str(error))
            return _stay(JobPasses(view.fresh(), asked))
        view = done.view
        print_lines(done.lines)
        if wait:
            return _stay(JobPasses(view, asked))
    counts = Counter(view.cells[cell.id].state for cell in view.sweep.cells)
    print(f"{view.title}: {counted(len(view.sweep.cells), 'cell')}: {summary(counts)}")
    print_failures(view, list(view.sweep.cells))
    if counts[State.DONE]:
        write_reports(view)
    notifier_of(view, asked[-1].request, indented).finish(NOTICES_S)
    print(f"  sweep status {view.sweep.name}{view.hint}")
    print_lines(undecided_lines(view))
    stands = view.open_decision is not None and not view.open_decision.is_passing
    return 1 if counts[State.FAILED] or counts[State.BLOCKED] or view.jobs.stuck() or stands else 0


def summary(counts: Counter[State]) -> str:
    """Return the number of cells in each state, such as ``3 done, 2 queued``."""
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state])


def _print_problem(problem: str) -> None:
    """Print why a pass failed, and in the next lines where and what to do."""
    what, *more = problem.split("\n")
    print("\n".join([f"  {what}; trying again", *(f"  {line}" for line in more)]), flush=True)


def _stay(passes: JobPasses) -> int:
    """Submit and report until no cell of the requests can go on, and return the exit code."""
    last, printed, problem, printed_s = "", [""], "", 0.0
    while passes.is_open:
        last = print_progress(passes.view, passes.cells, last)
        time.sleep(passes.pause_s)
        lines = passes.make(print)
        if passes.problem and (passes.problem != problem or time.monotonic() - printed_s >= REPEAT_S):
            _print_problem(passes.problem)
            printed_s = time.monotonic()
        elif not passes.problem and lines != printed:
            print_lines(printed := lines)
        problem = passes.problem
    view, cells = passes.view, passes.cells
    print_lines(passes.finish())
    print_lines(finish_retention(view, view.policy))
    counts = Counter(view.cells[cell.id].state for cell in cells)
    print(f"{view.title}: {counted(len(cells), 'cell')}: {summary(counts)}")
    print_failures(view, cells)
    print_lines(undecided_lines(view))
    if any(view.cells[cell.id].state is State.DONE for cell in view.sweep.cells):
        write_reports(view)
    return 0 if is_well(view, cells) else int(load("orchestrator.api.failures:exit_code")(view, cells))


@contextlib.contextmanager
def mirroring(ledger: Ledger, sweep: str, request: Request) -> Iterator[None]:
    """Run the mirror of a launch beside it; at the end wait for it for at most `MIRROR_FINISH_S`."""
    if request.settings is None or not request.settings.tracker.mirrors:
        yield
        return
    log = Path(f"request-{request.number}-mirror.log")
    mirror = None
    try:
        log = ledger.objects.workspace(layout.logs(sweep)) / log
        mirror = _Mirror(ledger.objects.url, sweep, request.number, log)
    except OSError as error:
        print(f"the mirror cannot be started, no cell is the worse for it: {error}", file=sys.stderr)
    try:
        yield
    finally:
        if mirror is not None:
            with contextlib.suppress(OSError):
                mirror.end()


class _Mirror:
    """The process with the mirrors of a launch. What it prints for the user is printed when it comes.

    Args:
        url: the store.
        sweep: name of the sweep.
        number: of the request.
        log: file for the rest.
    """

    def __init__(self, url: str, sweep: str, number: int, log: Path) -> None:
        self._log = log
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.trackers.mirror", url, sweep, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                start_new_session=True,  # Ctrl-C stops the cells; the mirror must outlive them
            )
        self._reader = threading.Thread(target=self._print, name="mirror", daemon=True)
        self._reader.start()

    def _print(self) -> None:
        """Print the lines of the process: problems as errors, everything else as output."""
        assert self._process.stdout is not None
        for data in self._process.stdout:
            line = data.decode(errors="replace").rstrip()
            stream = sys.stderr if line.startswith("! ") else sys.stdout
            print(line.removeprefix("! "), file=stream, flush=True)

    def end(self) -> None:
        """Signal the end of the launch to the process, and wait until it has sent the rest."""
        process = self._process
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5.0)
        if process.poll() is None:
            print(
                f"waiting for the mirror to finish, at most {MIRROR_FINISH_S:.0f} s: {self._log}", flush=True
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=MIRROR_FINISH_S + 5.0)
        if process.poll() is None:
            process.kill()
            process.wait()
        self._reader.join(timeout=5.0)
        if process.returncode != 0:
            print(f"the mirror ended early, no cell is the worse for it: {self._log}", file=sys.stderr)

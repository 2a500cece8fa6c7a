"""`sweep work`: a worker is a command, for any scheduler; `--as` prints what starts it there."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from orchestrator.api.templates import KINDS, TemplateOptions, rendered
from orchestrator.api.working import Work, as_launch, find_work, gpu_needs, gpus_here
from orchestrator.cli.attached import go_on_in_the_snapshot, keep_logs
from orchestrator.cli.output import add_only, add_store, indented, no_overrides, to_stderr
from orchestrator.entry import outlive_the_reader
from orchestrator.errors import InfrastructureError, UserError, counted
from orchestrator.launchers.external import work_side_by_side
from orchestrator.launchers.local import LocalLauncher
from orchestrator.registry import NOTIFIER, load
from orchestrator.store import code as snapshots
from orchestrator.store.opening import as_usual

EXITS = (
    "exit codes: 0 nothing is left that it could do; 75 stopped with work left: start it again; 76 the hours "
    "do not suffice for a checkpoint; 77 a stage needs more host memory than is here; 2 wrong use; 3 the "
    "store does not answer; 4 this machine or its code cannot work. Whether the cells are done: sweep wait."
)


def configure_work(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("sweep", metavar="SWEEP", help="a name in the store, with @k for revision k")
    add_only(parser)
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="GPUs that it may use: stages that need more are left to others; 0 for stages without GPUs; "
        "default: all that are visible",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="worker processes that share them; default: one for each GPU"
    )
    parser.add_argument(
        "--max-hours", type=float, metavar="H", help="stages save and end in time for this limit"
    )
    parser.add_argument("--as", dest="kind", choices=KINDS, help="print what starts such workers elsewhere")
    parser.add_argument("--out", metavar="FILE", help="write it to a file (with --as)")
    parser.add_argument("--number", type=int, default=None, metavar="N", help="how many workers (with --as)")
    parser.add_argument("--image", metavar="IMAGE", help="container image with Polysweep (with --as)")
    parser.add_argument("--queue", metavar="NAME", help="queue of Kueue or PBS (with --as)")
    parser.add_argument(
        "--secret",
        metavar="NAME",
        help="the Secret with the bucket's credentials (with --as); never its value",
    )
    add_store(parser)
    parser.epilog = EXITS


def run_work(args: argparse.Namespace) -> int:
    """Work on a launched sweep until nothing is left, or print what does so elsewhere."""
    _check(args)
    url = no_overrides(args.words)
    if args.kind is not None:
        return _render(args, find_work(args.sweep, url, args.only))
    outlive_the_reader()
    gpus = gpus_here(args.gpus)
    work = find_work(args.sweep, url, args.only)
    _enter_snapshot(work, args)
    print(f"{work.view.title}: {counted(len(work.cells), 'cell')}, {counted(len(gpus), 'GPU')}", flush=True)
    if work.num_other:
        print(f"  {counted(work.num_other, 'cell')} left out: last launched with other code", flush=True)
    if not work.open_cells():
        print("nothing is left to do")
        return 0
    code = _work(work, gpus, args)
    states = ", ".join(f"{number} {state}" for state, number in sorted(work.counts().items()))
    print(f"{work.view.title}: {states}; exit code {code}")
    return code


MAX_HOURS, MAX_WORKERS = 87_600, 100_000
"""Ten years, and more workers than any scheduler takes in one array: a slip of the keyboard is above."""


def _check(args: argparse.Namespace) -> None:
    """Raise `UserError` for numbers and options that mean nothing."""
    for name in ("workers", "number"):
        if (value := getattr(args, name)) is not None and not 1 <= value <= MAX_WORKERS:
            raise UserError(f"--{name} is {value}", allowed=f"1 to {MAX_WORKERS}")
    if args.gpus is not None and args.gpus < 0:
        raise UserError(f"--gpus is {args.gpus}", allowed="at least 0")
    hours = args.max_hours
    if hours is not None and not 0 < hours <= MAX_HOURS:
        raise UserError(f"--max-hours is {hours}", allowed=f"more than 0, at most {MAX_HOURS}")
    for name in ("out", "number", "image", "queue", "secret"):
        if args.kind is None and getattr(args, name) is not None:
            raise UserError(f"--{name} goes with --as", allowed=", ".join(KINDS))


def _words(work: Work, args: argparse.Namespace) -> list[str]:
    """Return the command that starts this worker, from the verb on, with the revision and the store."""
    words = ["work", work.reference, "--store", work.view.ledger.objects.url]
    for name in ("gpus", "workers", "max_hours"):
        if (value := getattr(args, name)) is not None:
            words += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    return [*words, *(word for selector in args.only for word in ("--only", selector))]


def _enter_snapshot(work: Work, args: argparse.Namespace) -> None:
    """Go on in the code of the launch."""
    objects = work.view.ledger.objects
    if problem := snapshots.damage(objects, work.code.digest):
        raise InfrastructureError(f"the code in the store is damaged: {problem}", where=objects.url)
    if not (snapshots.package_path(objects, work.code.digest) / "orchestrator/cli/work.py").is_file():
        raise UserError(
            f"{work.view.title} was launched by a version without `sweep work`",
            fix=f"sweep launch {work.view.sweep.name} launcher=external",
        )
    go_on_in_the_snapshot(objects, work.code, ["orchestrator", *_words(work, args)])


def _work(work: Work, gpus: Sequence[str], args: argparse.Namespace) -> int:
    """Run the workers, and return the exit code for all of them."""
    workers = args.workers or max(1, min(len(gpus), len(work.open_cells())))
    if gpus and workers > len(gpus):
        raise UserError(f"--workers {workers} with {counted(len(gpus), 'GPU')}", allowed="one for each GPU")
    needs = gpu_needs(work, gpus, work.import_paths)
    if num_large := sum(number > len(gpus) for number in needs.values()):
        print(f"  {counted(num_large, 'stage')} left to others: too few GPUs here", flush=True)
        if not gpus:
            print("  (if no stage needs a GPU: launch with launcher.device=cpu)", flush=True)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    # As for a scheduler's job: where the launch was, if that is a folder here.
    if Path(work.request.folder).is_dir():
        os.chdir(work.request.folder)
    launch = as_launch(work, needs, args.max_hours)
    settings = {"workers": workers, "gpus_per_worker": 1 if gpus else 0}
    logs = _Follower(Path(launch.log_folder))
    ended = work_side_by_side(LocalLauncher(settings, len(work.cells)), lambda: launch, logs)
    if ended.refusal:
        to_stderr(f"error: {ended.refusal}")
    keep_logs(work.view)
    # The last worker of a sweep is the last process that can send them.
    notify = work.settings.notify
    load(NOTIFIER)(launch.store, launch.sweep, notify, indented).finish()
    return ended.code


class _Follower:
    """Prints what workers write to their logs, so that a scheduler keeps it too.

    Args:
        folder: of the logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._printed: dict[Path, int] = {}

    def __call__(self) -> None:
        """Print what is new."""
        for path in sorted(self._folder.glob("*.log")):
            try:
                with path.open("rb") as stream:
                    stream.seek(self._printed.get(path, 0))
                    data = stream.read()
            except OSError:  # the log lies in the store, which may not answer now
                continue
            whole = data[: data.rfind(b"\n") + 1]
            self._printed[path] = self._printed.get(path, 0) + len(whole)
            print(whole.decode(errors="replace"), end="", flush=True)


def _render(args: argparse.Namespace, work: Work) -> int:
    """Print or write what starts such workers elsewhere."""
    number = args.number or max(1, min(len(work.open_cells()), 8))
    wanted = TemplateOptions(
        kind=args.kind,
        words=("sweep", *_words(work, args)),
        number=number,
        gpus=args.gpus or 0,
        hours=args.max_hours,
        image=args.image or "",
        queue=args.queue or "",
        secret=args.secret or "",
    )
    text = rendered(work, wanted)
    if args.out is None:
        print(text, end="")
    else:
        try:
            with as_usual(), Path(args.out).open("x", encoding="utf-8") as stream:
                stream.write(text)
        except FileExistsError:
            raise UserError("there is a file already", where=f"--out {args.out}") from None
        except OSError as error:
            raise UserError(f"--out {args.out}: {error.strerror}", allowed="a file in a folder") from error
        print(f"{args.out}: {counted(number, 'worker')} of {work.reference}")
    return 0

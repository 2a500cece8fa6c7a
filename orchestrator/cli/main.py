"""The command `sweep`: select the verb, run it, and turn errors into exit codes.

A verb is two functions, `configure_VERB` and `run_VERB`, in a module that is imported only when it is used.

Exit codes:
    0: success.
    1: cells or checks failed, or the user interrupted the command.
    2: the user made a mistake.
    3: infrastructure failed (store, scheduler, disk), or Polysweep itself has a bug.
    4: the time of `sweep wait` ran out.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from orchestrator.entry import ReaderLeft, prepare
from orchestrator.errors import InfrastructureError, SweepError, UserError, nearest, one_line, words_of

HELP = """usage: sweep VERB ...

{verbs}

SWEEP is a name or a path to a YAML file, with @k for an older revision.
`sweep help VERB` shows the options of a verb.
The store is ./runs, or SWEEP_STORE, or --store URL: a folder, s3://... or gs://...
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the words after `sweep`; those of this process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # `prepare` replaces both streams. A caller that uses `main` as a function gets its own streams back.
    before = sys.stdout, sys.stderr
    is_collecting = gc.isenabled()
    prepare()
    try:
        return guarded(lambda: _run(words), words)
    finally:
        if argv is None and "duckdb" not in sys.modules:
            # The process ends. A search for garbage in what it has read, as at exit, would take 0.3 s of
            # 10,000 cells. DuckDB complains of objects that are never freed.
            gc.freeze()
        if is_collecting:
            gc.enable()
        sys.stdout, sys.stderr = before


def guarded(act: Callable[[], int], words: list[str]) -> int:
    """Run a command, print its error if it fails, and return the exit code.

    Args:
        act: runs the command and returns its exit code.
        words: of the command, the verb first.
    """
    try:
        try:
            code = act()
        except SystemExit as end:  # argparse exits after it has printed --help
            if isinstance(end.code, str):  # exit("...") in code of the user's that a verb has run
                raise UserError(one_line(end.code)) from end
            code = end.code or 0
        # Output may still be buffered: a full disk must fail the command before its exit code is chosen.
        sys.stdout.flush()
        return code
    except SweepError as error:
        return failed(error, words)
    # The reader of a pipe has closed it, as `head` does. That is no error of the command.
    except ReaderLeft:
        return 0
    except KeyboardInterrupt:
        # So a verb that follows something is ended; what it has printed is whole.
        return failed(SweepError("interrupted"), [] if words[:1] == ["events"] else words)
    except OSError as error:
        what, where = one_line(error.strerror or words_of(error)), str(error.filename or "")
        return failed(InfrastructureError(what, where=where), words)
    except Exception as error:  # noqa: BLE001 - a bug in Polysweep; exit code 1 would look like failed cells
        if isinstance(error, ModuleNotFoundError) and (absent := _missing_extra(error, words)):
            return failed(absent, words)
        if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
            near = one_line(error.object[max(0, error.start - 40) : error.end + 40])
            return failed(UserError(f"what was given is no UTF-8 text: {near}", allowed="UTF-8"), words)
        traceback.print_exc()
        what = one_line(f"{type(error).__name__}: {words_of(error)}")
        return failed(InfrastructureError(f"Polysweep itself failed: {what}"), words)


def failed(error: SweepError, words: list[str]) -> int:
    """Print an error, with ``--json`` also as an object on standard output, and return its exit code."""
    with contextlib.suppress(OSError, ReaderLeft):
        if "--json" in words:
            import json  # a verb that succeeds does without it

            facts = {name: getattr(error, name) for name in ("what", "where", "allowed", "fix", "exit_code")}
            print(json.dumps({"error": facts}))
        sys.stdout.flush()
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _missing_extra(error: ModuleNotFoundError, words: list[str]) -> UserError | None:
    """Return the error to show if a verb needs a package that comes with an extra, else None."""
    from orchestrator.registry import missing_extra

    return missing_extra(error, what=" ".join(["sweep", *words[:1]]))


def _run(words: list[str]) -> int:
    """Run the verb that the first word names, or print the help or the version."""
    # `--store` may stand before the verb too.
    if words and words[0].partition("=")[0] == "--store":
        number = 1 if "=" in words[0] else 2
        store, words = words[:number], words[number:] or words[:1]
        if words[0] not in ("help", "-h", "--help", "--version", *store):
            words = [words[0], *store, *words[1:]]
    if words[:1] == ["help"] and words[1:]:
        words = [words[1], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        lines = (f"  {name:<{width}}  {verb.does}" for name, verb in VERBS.items())
        print(HELP.format(verbs="\n".join(lines)), end="")
        return 0
    if words[0] == "--version":
        # `sweep --help` must not pay for this import.
        from orchestrator import __version__

        print(f"polysweep {__version__}")
        return 0
    run, parser = verb_of(words[0])
    args = parsed(parser, words[1:])
    if words[0] in ("best", "collect", "failures", "query", "show", "status", "why"):
        # A third of the time of reading 10,000 cells went into searches for garbage, of which there is none.
        gc.disable()
    try:
        return run(args)
    except OSError as error:
        name_file(error, getattr(args, "out", None))
        raise


def name_file(error: OSError, out: object) -> None:
    """Add the file that a verb writes to an error of a write, which has no name; a store's error is left."""
    is_of_write = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if out and is_of_write and error.filename is None and "output" not in str(error.strerror):
        error.filename = str(out)


def parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse a verb's words, and append the store to those that take settings, as ``store.url=URL``.

    ``--store URL`` is short for that. Both may stand anywhere, so neither may be taken for the sweep or cell
    that is expected in its place.

    Raises:
        UserError: the words are wrong, or no URL follows.
    """
    if "--store" not in parser.format_usage():
        return parser.parse_intermixed_args(words)
    # argparse takes no option after `--`, and loses the order of the two forms, of which the last one counts.
    stores, others = list[str](), list[str]()
    rest = iter(words)
    for word in rest:
        if word == "--store":
            word = f"--store={next(rest, '')}"
        url = word.removeprefix("--store=")
        if word == "--store=":
            raise UserError("--store names no store", fix="--store URL")
        if url != word or word.startswith("store.url="):
            stores.append(word if url == word else f"store.url={url}")
        else:
            others.append(word)
    args = parser.parse_intermixed_args(others)
    (taker,) = [a.dest for a in parser._actions if not a.option_strings and a.nargs in ("*", "+")]
    setattr(args, taker, [*getattr(args, taker), *stores])
    return args


class Verb(NamedTuple):
    """A verb: the module in `orchestrator.cli` that holds it, and what it does in a few words."""

    module: str
    does: str


VERBS: Final = {
    "list": Verb("status", "the sweeps that exist, with their number of cells"),
    "import": Verb("starting", "results of old Hydra multiruns, as done cells"),
    "new": Verb("starting", "a starting sweep file for a script or Hydra app of one's own"),
    "plan": Verb("plan", "what would run, why, and at what cost; changes nothing"),
    "simulate": Verb("plan", "how long it would take on a cluster, also with failures; starts nothing"),
    "prefetch": Verb("data", "fetch the models and data that its cells need"),
    "launch": Verb("launch", "run everything that is not done"),
    "status": Verb("status", "where each cell stands, also while it runs"),
    "watch": Verb("live", "the same, live: grid, failures, curves and logs in the terminal"),
    "failures": Verb("logs", "what failed, failures that look alike as one"),
    "why": Verb("status", "the evidence behind a cell's state"),
    "show": Verb("status", "a cell's resolved config, digests and files"),
    "diff": Verb("diff", "which field made it another cell or stage"),
    "logs": Verb("logs", "the log of a stage"),
    "wait": Verb("waiting", "until every cell is done, one has failed, or nothing moves; for scripts"),
    "events": Verb("waiting", "what happened, a line an event; --follow goes on"),
    "rerun": Verb("launch", "run the failed cells again"),
    "work": Verb("work", "a worker of a launched sweep, started by hand or by any scheduler"),
    "reconcile": Verb("launch", "settle jobs that ended, and submit what no job holds"),
    "discard": Verb("discard", "void products after a bug fix"),
    "cancel": Verb("discard", "stop cells and keep them from being claimed"),
    "collect": Verb("rows", "the result rows as one table"),
    "report": Verb("rows", "tables, figures and a page from the rows that there are"),
    "serve": Verb("live", "pages about it: grid, curves, logs and results, on this machine; or as one file"),
    "query": Verb("query", "SQL over cells, attempts, metrics, results, predictions, failures and jobs"),
    "bundle": Verb("sharing", "a finished sweep as one file that strangers can verify"),
    "verify": Verb("sharing", "whether all holds that such a file claims; runs nothing of it"),
    "sync": Verb("sharing", "send to W&B, MLflow, TensorBoard or Trackio what they lack of a sweep"),
    "best": Verb("rows", "the cells with the lowest or highest value of a metric"),
    "data": Verb("data", "describe, import, check and translate parallel task data"),
    "completion": Verb("guide", "a script for the shell: completes verbs, options and names of sweeps"),
    "clean": Verb("upkeep", "list what no current revision names; --yes deletes it"),
    "decisions": Verb("decisions", "which cells of a sweep go on, or which points follow, and why"),
    "nodes": Verb("doctor", "the machines that are left out because work failed on them at once"),
    "doctor": Verb("doctor", "check this machine and the store"),
    "upgrade": Verb("upkeep", "let a store of an earlier format hold what this version records"),
    "guide": Verb("guide", "what operators and agents must know; --schema VERB: the JSON of a verb"),
}


class Parser(argparse.ArgumentParser):
    """A parser that reports a usage error as a `UserError`, in the form of all other errors."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError` instead of exiting.

        Args:
            message: what argparse found wrong.

        Raises:
            UserError: always.
        """
        # Who knows Hydra's own command line types this.
        is_hydras = message.startswith("unrecognized") and {"-m", "--multirun"} & {*message.split()}
        fix = "leave it out: a word with several values is an axis" if is_hydras else f"{self.prog} --help"
        # So does who gives the options of a script as one gives them to the script.
        if (
            message.startswith("unrecognized arguments: --")
            and "--run" in self.format_usage()
            and not is_hydras
        ):
            fix += "; a key is set by a word, lr=0.1, and the command of --run is one word in quotes"
        raise UserError(message, fix=fix)

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the arguments; see argparse.

        Raises:
            UserError: the arguments are wrong, or neither a sweep nor ``--app`` or ``--run`` is given.
        """
        found = super().parse_intermixed_args(args, namespace)
        # A sweep is optional where other options may stand for it, which argparse cannot express.
        if [getattr(found, name, "") for name in ("sweep", "app", "run")] == [None, None, None]:
            self.error("the following arguments are required: SWEEP, or --app SCRIPT, or --run COMMAND")
        return found


def verb_of(name: str) -> tuple[Callable[[argparse.Namespace], int], argparse.ArgumentParser]:
    """Import the module of a verb, and return the function that runs it, with its parser.

    Raises:
        UserError: there is no such verb.
    """
    if name not in VERBS:
        raise UserError(f"unknown verb {name!r}", allowed=nearest(name, VERBS, limit=30), fix="sweep --help")
    module = importlib.import_module(f"orchestrator.cli.{VERBS[name].module}")
    # Without abbreviations, an option added later cannot make a user's shortened option ambiguous.
    parser = Parser(prog=f"sweep {name}", description=VERBS[name].does, allow_abbrev=False)
    getattr(module, f"configure_{name}")(parser)
    if name not in ("data", "completion", "guide", "new", "verify"):
        parser.add_argument(
            "--store", metavar="URL", help="a folder, s3://... or gs://...; short for store.url=URL"
        )
    run: Callable[[argparse.Namespace], int] = getattr(module, f"run_{name}")
    return run, parser


if __name__ == "__main__":
    sys.exit(main())

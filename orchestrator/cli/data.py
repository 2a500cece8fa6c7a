"""`sweep data describe|import|check|translate`: parallel task data on disk; `prefetch`: what cells need.

This module parses options and prints tables. The formats and checks come from the science packages, by the
names in the registry.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.api.estimates import call
from orchestrator.api.launching import run_settings_of
from orchestrator.api.requests import distinct, missing_of, need_line, needs_of
from orchestrator.cli.output import LongStep, print_json, print_table
from orchestrator.cli.progress import add_composing, again, composed
from orchestrator.core.settings import split_store
from orchestrator.errors import InfrastructureError, SweepError, UserError, counted
from orchestrator.registry import DATA, TASKS, importable, load, lookup

ACTIONS = ("describe", "import", "check", "translate")
_OF_IMPORT = (
    "test",
    "out",
    "num_train",
    "num_validation",
    "num_test",
    "seed",
    "revision",
    "test_revision",
    "force",
)
"""Options of ``import`` alone."""
_OF_CHECK = ("task", "tokenizer", "max_length", "json")
"""Options of ``check`` alone."""
_OF_TRANSLATE = ("to", "model", "engine", "overlay")
"""Options of ``translate`` alone."""
_ALSO_OF_TRANSLATE = ("out", "num_train", "num_validation", "num_test", "seed", "revision", "force")
"""Options that ``translate`` shares with ``import``."""
MAX_LENGTH = 2048
"""Tokens above which a text counts as too long, unless ``--max-length`` is set."""

_NO_BARS = "HF_HUB_DISABLE_PROGRESS_BARS"

USAGE = """sweep data describe TASK
       sweep data import TASK [SOURCE] [--test SOURCE] --out DIR [...]
       sweep data check PATH [--tokenizer PATH_OR_ID ...] [...]
       sweep data translate api_calling SOURCE --to CODE,... --model MODEL --out DIR [...] [KEY=VALUE ...]"""


def configure_data(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.usage = USAGE
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument(
        "words", nargs="*", default=[], metavar="WORD", help="TASK, TASK SOURCE, or PATH; see above"
    )
    parser.add_argument("--languages", nargs="+", metavar="CODE", help="en es ... or en,es,...")
    # No option has a default, so that `_only` can recognise options of another action.
    made = parser.add_argument_group("import")
    made.add_argument("--out", metavar="DIR", help="the data set to make")
    made.add_argument("--test", metavar="SOURCE", help="where test items come from")
    made.add_argument(
        "--num-train",
        type=int,
        metavar="N",
        help="items a language (default: all; of a release, the study's)",
    )
    made.add_argument(
        "--num-validation", type=int, metavar="N", help="set aside (default: none; of a release, the study's)"
    )
    made.add_argument("--num-test", type=int, metavar="N", help="default: all")
    made.add_argument("--seed", type=int, metavar="N", help="chooses items (default: 0)")
    made.add_argument("--revision", help="of a SOURCE on the hub")
    made.add_argument("--test-revision", metavar="REVISION", help="of the --test SOURCE")
    made.add_argument("--force", action="store_true", default=None, help="replace another data set")
    translated = parser.add_argument_group("translate (and --out, --num-train, ..., --seed, --force)")
    translated.add_argument("--to", nargs="+", metavar="CODE", help="es ja ... or es,ja,...")
    translated.add_argument(
        "--model", help="as the endpoint in $OPENAI_BASE_URL knows it; or a folder or hub id, with --engine"
    )
    translated.add_argument("--engine", help="endpoint (default), transformers or vllm")
    translated.add_argument("--overlay", metavar="PATH", help="corrections that a review sheet saved")
    checked = parser.add_argument_group("check")
    checked.add_argument("--task", help="what raw files are of (default: what they look like)")
    checked.add_argument("--tokenizer", nargs="+", metavar="PATH_OR_ID", help="count its tokens")
    checked.add_argument("--max-length", type=int, metavar="TOKENS", help=f"default: {MAX_LENGTH}")
    checked.add_argument("--json", action="store_true", default=None, help="print JSON alone")


def run_data(args: argparse.Namespace) -> int:
    """Run the action, and return 1 if a check found problems."""
    with importable((str(Path.cwd()),)):  # TASK may be module:object of a module of the user's
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    match args.action:
        case "describe":
            _only(args, (), num_words=(1, 1), words="TASK")
            print(load(DATA["describe"])(_task(args.words[0])), end="")
            return 0
        case "import":
            _only(args, (*_OF_IMPORT, "languages"), num_words=(1, 2), words="TASK [SOURCE]")
            return _import(args)
        case "translate":
            _only(args, (*_OF_TRANSLATE, *_ALSO_OF_TRANSLATE), num_words=(2, 99), words="TASK SOURCE")
            return _translate(args)
        case _:
            _only(args, (*_OF_CHECK, "languages"), num_words=(1, 1), words="PATH")
            return _check(args)


def _only(
    args: argparse.Namespace, options: tuple[str, ...], *, num_words: tuple[int, int], words: str
) -> None:
    """Validate the words and options of an action.

    Args:
        args: of the verb.
        options: those that the action takes.
        num_words: fewest and most words that it takes.
        words: what these words are, for the error.

    Raises:
        UserError: there are too few or too many words, or an option of another action.
    """
    if not num_words[0] <= len(args.words) <= num_words[1]:
        raise UserError(f"sweep data {args.action} takes {words}", fix="sweep data --help")
    for name in (*_OF_IMPORT, *_OF_CHECK, *_OF_TRANSLATE, "languages"):
        if name not in options and getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is not for sweep data {args.action}")


def _task(name: str) -> str:
    """Return the name of a task, or the ``module:object`` of one that the registry does not have.

    Raises:
        UserError: there is no such task.
    """
    lookup(TASKS, name, kind="task")
    return name


def _languages(args: argparse.Namespace) -> list[str]:
    """Return the language codes, which may be separated by spaces or commas."""
    return [code for word in args.languages or () for code in word.split(",") if code]


def _import(args: argparse.Namespace) -> int:
    """Import a data set and print what it holds."""
    task = _task(args.words[0])
    source = args.words[1] if len(args.words) > 1 else None
    if args.out is None:
        raise UserError("where the data set goes is not said", fix="--out DIR")
    # SOURCE gives training and validation items, and test items unless --test names another source.
    if source is None and args.test is None:
        raise UserError(
            "a source is needed: SOURCE, --test SOURCE or both", fix=f"sweep data describe {task}"
        )
    _check_numbers(args)
    out = Path(args.out)
    settings = {
        name: getattr(args, name) for name in _OF_IMPORT if name not in ("out", "test", "seed", "force")
    }
    with LongStep("importing", writes=True), one_bar():
        info, is_new = load(DATA["import"])(
            task,
            source,
            args.test,
            out,
            languages=_languages(args),
            seed=args.seed or 0,
            force=bool(args.force),
            **settings,
        )
    print(f"{out}: {'written' if is_new else 'is there already, the same'}")
    print_table(("split", "items", "languages", "from"), load(DATA["summary"])(info))
    for reason, number in info.left_out.items():
        print(f"  left out, {reason}: {counted(number, 'id')}")
    for split, origin in info.origins.items():
        if origin.note:
            print(f"  {split}: {origin.note}")
    setting = load(DATA["setting"])(lookup(TASKS, task, kind="task").name)
    print(f"  sweep data check {out}\n  data=parallel {setting}={out}")
    return 0


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("num_train", "num_validation", "num_test"):
        if (value := getattr(args, name)) is not None and value < (0 if name == "num_validation" else 1):
            raise UserError(f"--{name.replace('_', '-')} {value} is too few")


def _translate(args: argparse.Namespace) -> int:
    """Launch the sweep that translates, and write its data set."""
    from orchestrator.cli.data_translate import TRANSLATED, translate  # the other actions launch nothing

    task, source, *overrides = args.words
    if _task(task) not in TRANSLATED:
        raise UserError(f"nothing translates {task}", allowed=", ".join(TRANSLATED))
    if wrong := [word for word in overrides if "=" not in word]:
        raise UserError(f"unexpected {wrong[0]!r}", allowed="KEY=VALUE, such as launcher.workers=4")
    for name in ("to", "model", "out"):
        if getattr(args, name) is None:
            raise UserError(f"sweep data translate needs --{name}", fix="sweep data --help")
    _check_numbers(args)
    return translate(args, task, source, overrides)


def _check(args: argparse.Namespace) -> int:
    """Check a data set and print the report; return 1 if there are problems."""
    tokenizers = args.tokenizer or []
    with LongStep("checking"):
        report = load(DATA["check"])(
            Path(args.words[0]),
            task=_task(args.task) if args.task else None,
            languages=_languages(args),
            measures=load(DATA["measures"])(tokenizers) if tokenizers else None,
            max_length_tokens=args.max_length or MAX_LENGTH,
        )
    if args.json:
        print_json(report)
    else:
        _print(report)
    return 1 if report.problems else 0


def _print(report: Any) -> None:
    """Print a report: rows, lengths, problems and notes."""
    print(f"{report.path}: {report.form} of {report.task}")
    rows = []
    for split in report.splits:
        numbers = split.num_rows
        # Parallel data has the same number of rows in each language. One number shows that better than a
        # list.
        same = len(set(numbers.values())) == 1
        each = (
            f"{next(iter(numbers.values())):,}"
            if same
            else " ".join(f"{c}:{n:,}" for c, n in numbers.items())
        )
        rows.append((split.split, ",".join(numbers), each, f"{split.num_parallel:,}"))
    print_table(("split", "languages", "rows a language", "usable in all"), rows)
    print()
    print_table(
        ("lengths", "split", "language", "mean", "p95", "longest", "too long"),
        [
            (
                x.tokenizer,
                x.split,
                x.language,
                f"{x.mean:,.0f}",
                f"{x.p95:,}",
                f"{x.longest:,}",
                x.num_over_long or "-",
            )
            for x in report.lengths
        ],
    )
    if report.problems:
        print()
        print_table(
            ("problem", "split", "language", "number", "what", "such as"),
            [
                (p.kind, p.split or "-", p.language or "-", f"{p.num:,}", p.text, ", ".join(p.examples))
                for p in report.problems
            ],
        )
    for note in report.notes:
        print(f"  note: {note}")
    print("no problem found" if not report.problems else f"{counted(len(report.problems), 'problem')} found")


def configure_prefetch(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_composing(parser)


@contextlib.contextmanager
def one_bar() -> Iterator[None]:
    """Turn off the bars of the hub's client, which would overwrite ours."""
    before = os.environ.get(_NO_BARS)
    os.environ[_NO_BARS] = "1"  # the client reads it when it is imported
    try:
        yield
    finally:
        os.environ.pop(_NO_BARS) if before is None else os.environ.update({_NO_BARS: before})


def run_prefetch(args: argparse.Namespace) -> int:
    """Fetch each missing need once. A failed fetch does not stop the others.

    Raises:
        InfrastructureError: a need is still missing in the end.
    """
    with LongStep("composing") as step:
        view, composition = composed(args, step)
    cells = view.select(args.only)
    import_paths = run_settings_of(view, composition, split_store(args.overrides)[1])[1]
    with LongStep("looking for what is missing"):
        needs = needs_of(view, cells, import_paths)
        missing = distinct(missing_of(needs))
    print(f"{view.title}: {counted(len(distinct(needs)), 'need')}, {len(missing)} missing")
    problems: list[str] = []
    fixes: list[str] = []
    with importable(import_paths), LongStep("fetching", writes=True) as step, one_bar():
        for number, need in enumerate(missing, start=1):
            step(number - 1, len(missing))
            print(f"[{number}/{len(missing)}] {need_line(need)}", flush=True)
            try:
                if not need.fetch:
                    raise UserError(f"{need.what}: {need.advice or 'nothing can fetch it'}")
                call(need.fetch, load(need.fetch, where=need.what), **need.arguments)
                print("  there")
            except SweepError as error:
                problems.append("\n  ".join(filter(None, (error.what, error.where, error.allowed))))
                fixes.append(error.fix)
                print("  failed")
    # Check again: a fetch without an error may still leave a need unmet.
    left = missing_of(needs_of(view, cells, import_paths))
    if problems or left:
        left_names = [need_line(need) for need in distinct(left)]
        raise InfrastructureError(
            f"{counted(len(left_names), 'need')} of {view.sweep.name} could not be fetched",
            where="\n  ".join(problems or left_names),
            fix="; ".join(filter(None, dict.fromkeys(fixes))),
        )
    print(f"{counted(len(cells), 'cell')} can run here: {again('launch', args)}")
    return 0

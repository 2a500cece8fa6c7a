"""What verbs share: arguments, tables for people, JSON for scripts."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

import msgspec

from orchestrator.api.state import SweepState
from orchestrator.core.settings import split_store
from orchestrator.errors import UserError, counted, printable
from orchestrator.store import layout as keys
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.store.opening import store_url


def add_sweep(parser: argparse.ArgumentParser, *, only: bool = False, json: bool = True) -> None:
    """Add the SWEEP argument, and optionally ``--only`` and ``--json``.

    Args:
        parser: of the verb.
        only: whether the verb takes selectors.
        json: whether the verb can print JSON.
    """
    parser.add_argument(
        "sweep", metavar="SWEEP", help="a name or a path to a YAML file, with @k for revision k"
    )
    if only:
        add_only(parser)
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON alone")


def add_only(parser: argparse.ArgumentParser) -> None:
    """Add ``--only``, which restricts a verb to selected cells."""
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="SELECTOR",
        help="such as 'model=a state=failed'; repeats",
    )


def add_cell(parser: argparse.ArgumentParser) -> None:
    """Add the CELL argument, for verbs that work on one cell."""
    parser.add_argument("cell", metavar="CELL", help="a cell's id or the beginning of it")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add ``store.url=FOLDER`` for a verb that takes no other setting.

    It collects all remaining words, so it comes last. `no_overrides` checks them. ``--store URL`` is
    converted to this word before the verb parses its arguments.
    """
    parser.add_argument("words", nargs="*", default=[], metavar="store.url=FOLDER", help="another store")


def no_overrides(words: Sequence[str]) -> str | None:
    """Return the store that the remaining words of a read-only verb name, None if they name none.

    Raises:
        UserError: a word is not ``store.url=``.
    """
    url, rest = split_store(words)
    if rest:
        raise UserError(f"unexpected {rest[0]!r}", allowed="only store.url=FOLDER may be set here")
    return url


def existing_store(words: Sequence[str]) -> Ledger:
    """Return the store that the remaining words name, else SWEEP_STORE or the default, for reading.

    Raises:
        UserError: there is no store, or a word is not ``store.url=``.
    """
    ledger = open_ledger(store_url(no_overrides(words)))
    if ledger.objects.get(keys.STORE) is None:
        raise UserError(
            f"there is no store at {ledger.objects.url}",
            fix="--store URL, or set SWEEP_STORE; sweep launch makes one",
        )
    return ledger


def add_wait(parser: argparse._ActionsContainer) -> None:
    """Add ``--wait``, which keeps a verb running until all cells have ended."""
    parser.add_argument(
        "--wait",
        action="store_true",
        help="stay, and submit again what is left, until all cells have ended; Ctrl-C leaves the jobs alone",
    )


GAP = "  "
MIN_TEXT = 24
"""Minimum width of a text column. Below it, a table is printed as blocks."""

Style = Callable[[str, str], str]
"""A function that takes a padded text and the value in it, and returns the text to print. It may add escape
sequences, but no visible characters.
"""


def length(text: str) -> int:
    """Return the number of terminal columns that a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # imported on demand, because its tables are large

    return cell_len(text)


def layout(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, *, style: Style, title: Style
) -> list[str]:
    """Return the lines of a table.

    If the table is too wide, its text columns are wrapped between words; ids and numbers are never broken.
    If that is not enough, each row becomes a block: its id on one line, the other fields below it.

    Args:
        columns: their names.
        rows: a text for each column.
        width: of the terminal, in columns; None for a pipe, where nothing is wrapped.
        style: applied to each field.
        title: applied to a column's name, and to the first line of a block.
    """
    widths = [max(map(length, (name, *(row[i] for row in rows)))) for i, name in enumerate(columns)]
    fitted = widths if width is None else _fitted(columns, rows, widths, width)
    if fitted is None:
        return _blocks(columns, rows, width or 0, style=style, title=title)
    lines = [_line(columns, fitted, title)]
    if fitted == widths:
        return lines + [_line(row, widths, style) for row in rows]
    for row in rows:
        wrapped = [_wrapped(field, size) for field, size in zip(row, fitted, strict=True)]
        for number in range(max(map(len, wrapped))):
            fields = [part[number] if number < len(part) else "" for part in wrapped]
            lines.append(_line(fields, fitted, style))
    return lines


def _fitted(
    columns: Sequence[str], rows: Sequence[Sequence[str]], widths: list[int], width: int
) -> list[int] | None:
    """Return column widths that fit the terminal; None if the columns that must not be broken leave no room.

    The widest text column shrinks first, and again until the table fits. It never gets narrower than its
    longest word.
    """
    fitted = list(widths)
    while (over := sum(fitted) + len(GAP) * (len(fitted) - 1) - width) > 0:
        words = [i for i, size in enumerate(fitted) if size > MIN_TEXT and any(" " in row[i] for row in rows)]
        if not words:
            return None
        widest = max(words, key=lambda i: fitted[i])
        longest = max(length(word) for row in rows for word in (*row[widest].split(), columns[widest]))
        smaller = max(MIN_TEXT, longest, fitted[widest] - over)
        if smaller >= fitted[widest]:
            return None
        fitted[widest] = smaller
    return fitted


def _blocks(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, style: Style, title: Style
) -> list[str]:
    """Return a table as blocks: for each row its id, and below it its other fields as ``name value``."""
    first = columns.index("cell") if "cell" in columns else 0
    lines = []
    for row in rows:
        lines.append(title(row[first], row[first]))
        line = " "
        for index, (name, field) in enumerate(zip(columns, row, strict=True)):
            if index == first or not field:
                continue
            text = f"{name}: {field}" if " " in name else f"{name} {field}"
            # Fields share a line until the terminal is full.
            if line.strip() and length(line) + 2 + length(text) > width:
                lines.append(line)
                line = " "
            head, *more = _wrapped(text, max(MIN_TEXT, width - 4))
            line += f"{'  ' if line.strip() else ' '}{style(head, field) if not more else head}"
            for part in more:
                lines.append(line)
                line = f"    {part}"
        lines.append(line)
    return [line for line in lines if line.strip()]


def _line(fields: Sequence[str], widths: Sequence[int], style: Style) -> str:
    """Return one line of a table, without trailing spaces."""
    # Pad after styling: escape sequences take no columns, so `ljust` would count wrongly.
    *inner, last = (
        style(field, field) + " " * (size - length(field)) for field, size in zip(fields, widths, strict=True)
    )
    return GAP.join([*inner, last]).rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    """Break a text between words. A word longer than the width gets a line of its own."""
    if length(text) <= width:
        return [text]
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and length(candidate) > width:
            lines.append(word)
        else:
            lines[-1] = candidate
    return lines


NUMBERS = "report.json"
"""File of a report that holds its numbers."""

COLOURS = {
    "done": 32,
    "running": 36,
    "failed": 31,
    "lost": 35,
    "blocked": 33,
    "released": 34,
    "cancelled": 33,
    "stopped": 32,
}
"""State to the number of its colour in the terminal's escape sequences (ECMA-48, SGR)."""

BOLD = 1
"""Number of bold text in the same escape sequences."""


def print_json(value: Any) -> None:
    """Print one JSON value and nothing else."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(text.decode() + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table that fits the terminal. In a pipe, nothing is wrapped and each row is one line."""
    texts = [[printable(str(item)) for item in row] for row in rows]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    is_styled = styled()

    def style(text: str, held: str) -> str:
        return _coloured(text, COLOURS[held]) if is_styled and held in COLOURS else text

    def title(text: str, held: str) -> str:
        return _coloured(text, BOLD) if is_styled and held else text

    print("\n".join(layout(columns, texts, width, style=style, title=title)))


def styled(stream: TextIO | None = None) -> bool:
    """Return whether escape sequences may be printed: to a capable terminal, unless NO_COLOR is set.

    Args:
        stream: standard error, or by default standard output.
    """
    is_dumb = os.environ.get("TERM", "") in ("", "dumb", "unknown")
    return (stream or sys.stdout).isatty() and not is_dumb and not os.environ.get("NO_COLOR")


def _coloured(text: str, number: int) -> str:
    """Return a text between the escape sequences that set and reset a style."""
    return f"\x1b[{number}m{text}\x1b[0m"


DELAY_S, REFRESH_S = 2.0, 0.2
"""Seconds for which a step shows no bar, and between two refreshes of the bar."""


class LongStep:
    """A bar on standard error for a step of a verb, removed at its end. Short steps show none.

    Nothing is shown without a terminal, so neither pipes nor ``--json`` change. Lines that the step prints
    appear above the bar. Call it where the progress is known::

        with LongStep("composing") as step:
            step(64, 230)

    Args:
        what: the step does, for people.
        writes: whether to show how much this process has written to disk, as in a download.
    """

    def __init__(self, what: str, *, writes: bool = False) -> None:
        self._what, self._writes = what, writes
        self._parts: tuple[int, int | None] = (0, None)
        self._over = threading.Event()
        # A thread, so that a step that cannot be counted has a bar too.
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Self:
        if styled(sys.stderr):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def __call__(self, number: int, of: int) -> None:
        """Note how far the step is.

        Args:
            number: parts that are through.
            of: all parts.
        """
        self._parts = (number, of)

    def _show(self) -> None:
        begun = _written() if self._writes else 0
        if self._over.wait(DELAY_S):
            return
        from rich.console import Console  # slow to import, and most steps have ended before
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
        with Progress(
            *(*columns, TimeElapsedColumn()),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        ) as bar:
            shown = bar.add_task(self._what, total=None, count="")
            bar.tasks[0].start_time = bar.get_time() - DELAY_S
            while not self._over.wait(REFRESH_S):
                number, of = self._parts
                of = None if number == of else of  # what follows the last part cannot be counted
                count = f"{number:,} of {of:,}" if of else ""
                if self._writes and (size := _written() - begun) > 0:
                    count += f"  {size / 1e6:,.0f} MB written"
                bar.update(shown, completed=number, total=of, count=count, refresh=True)


def _written() -> int:
    """Return how many bytes this process has written; 0 where the system does not count them."""
    import psutil  # only downloads need it

    try:
        return int(psutil.Process().io_counters().write_chars)
    except (AttributeError, OSError, psutil.Error):
        return 0


def to_stderr(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr)


def indented(line: str) -> None:
    """Print a line below a title, and flush it."""
    print(f"  {line}", flush=True)


def print_lines(lines: Iterable[str], *, indent: int = 0) -> None:
    """Print lines, and flush each of them for a user who watches a long run.

    Args:
        lines: to print.
        indent: spaces in front of each line.
    """
    for line in lines:
        print(" " * indent + line, flush=True)


def print_warnings(view: SweepState) -> None:
    """Print which records of a sweep in the store cannot be read."""
    for problem in view.warnings():
        print(f"  warning: {problem}")


MOST_PATHS, MAIN_PATHS = 6, 3
"""Up to `MOST_PATHS` files are all listed. Of more files, only the first `MAIN_PATHS` are."""


def print_written(written: Sequence[Path]) -> None:
    """Print the paths of the files of all reports."""
    shown = written if len(written) <= MOST_PATHS else written[:MAIN_PATHS]
    for path in shown:
        print(path)
    if len(shown) < len(written):
        print(f"and {counted(len(written) - len(shown), 'more file')} in {shown[0].parent}")

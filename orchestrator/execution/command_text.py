"""What a command is given and what it returns: its interpreter, its text filled in with values, and its rows.

The file of result rows is read by its content:

- Text that begins with ``{`` or ``[`` is JSON: any number of values one after the other, each on one line or
  indented. A mapping is a row, and a list holds rows. JSON lines, ``json.dump(row, indent=2)`` and a list of
  mappings are all read.
- Any other text is a table with a header: CSV or TSV. A field that is a number is read as one; an empty field
  is null.

An empty file is an error, since it may come from a crash. A command without rows writes ``[]``, or a header
alone.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator import provenance
from orchestrator.core.commandspec import IN_A_SHELL, PLACEHOLDER, open_quote, unescaped
from orchestrator.core.tree import checked_rows
from orchestrator.errors import StageFailure, home_expanded, nearest
from orchestrator.execution.command_output import checkpoint_file
from orchestrator.results import direction
from orchestrator.stage import Config, Context, Inputs, Row, StageSpec
from orchestrator.store import layout


def interpreter_of(python: str | None, folder: Path | None) -> str | None:
    """Return the path of the interpreter that a stage names; the name unchanged if it is not found."""
    if python is None:
        return None
    path = home_expanded(python)
    found = shutil.which((folder or Path.cwd()) / path if len(path.parts) > 1 else path)
    return str(found or path)


def search_path(python: str | None = None) -> str:
    """Return the PATH of a command, in which `python` is the interpreter that the user means.

    That is the stage's own interpreter, or else the first one in the user's PATH. If that one belongs to the
    system, or there is none, the active environment (VIRTUAL_ENV, CONDA_PREFIX) comes first, or else the
    environment that runs Polysweep.

    Args:
        python: path of the stage's own interpreter; None without one.
    """
    path = os.environ.get("PATH", os.defpath)
    if python is not None:
        return f"{Path(python).parent}{os.pathsep}{path}"
    first = shutil.which("python", path=path)
    # The system's interpreter rarely has the libraries that a stage needs, so it is not what the user means.
    if first is not None and str(Path(first).parent) not in SYSTEM_FOLDERS:
        return path
    active = [os.environ.get(name, "") for name in ("VIRTUAL_ENV", "CONDA_PREFIX")]
    folders = [Path(prefix, "bin") for prefix in active if prefix and Path(prefix, "bin", "python").exists()]
    return os.pathsep.join([str((folders or [Path(sys.executable).parent])[0]), path])


def command_facts(spec: StageSpec, import_paths: Sequence[str]) -> dict[str, str | None]:
    """Return provenance of a command's attempt: the interpreter that `python` means (None if not found)."""
    if spec.command is None:
        return {}
    python = interpreter_of(spec.python, Path(import_paths[0]) if import_paths else None)
    return {"command_python": python or shutil.which("python", path=search_path())}


_HYDRA_APP = Path(provenance.__file__).parent / "compose" / "hydra_app.py"

SYSTEM_FOLDERS = ("/bin", "/usr/bin", "/usr/local/bin")


ARGS = "args"
_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def values_of(
    spec: StageSpec, config: Config, inputs: Inputs, context: Context, python: str | None = None
) -> dict[str, list[str]]:
    """Return the values of all names in braces. All but `args` have exactly one word.

    Args:
        spec: the stage.
        config, inputs, context: what a function stage receives.
        python: the stage's own interpreter; None for the one that runs Polysweep.
    """
    plain = {
        "output": str(context.output),
        "scratch": str(context.scratch),
        "checkpoints": str(context.folder / layout.CHECKPOINTS),
        "resume": str(context.resume.folder) if context.resume else "",
        "checkpoint": checkpoint_file(context),
        "metrics": str(context.folder / layout.METRICS),
        "attempt": str(context.attempt),
        "python": python or sys.executable,
        "hydra_app": str(_HYDRA_APP),
    }
    for root, tree in (("config", config.to_dict()), ("uses", context.uses.to_dict())):
        plain.update((f"{root}.{key}", _text(value)) for key, value in _flat(tree))
    for stage in spec.after:
        if stage in inputs:
            for label, folder in inputs.each(stage).items():
                plain[f"inputs.{stage}.{label}" if label else f"inputs.{stage}"] = str(folder)
    values = {name: [value] for name, value in plain.items()}
    values[ARGS] = list(arguments(config.to_dict()))
    # Reading `context.work` creates the folder, so only commands that use it get one.
    if "{work}" in (spec.command or ""):
        values["work"] = [str(context.work)]
    return values


def arguments(tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield a config as command-line arguments, ``--key value``.

    The parts of a nested key are joined by dots. True is the bare ``--key``; false, null and an empty list
    are left out. The items of a list follow its key. A value that begins with ``-`` and is not a number
    becomes ``--key=value``.
    """
    for key, value in _flat(tree):
        if value is None or value is False or value == []:
            continue
        if value is True:
            yield f"--{key}"
            continue
        words = [_text(item) for item in value] if isinstance(value, list) else [_text(value)]
        # Parsers take a word with a leading dash for an option, except for a negative number.
        if len(words) == 1 and words[0].startswith("-") and not _NEGATIVE.fullmatch(words[0]):
            yield f"--{key}={words[0]}"
        else:
            yield from (f"--{key}", *words)


def as_words(command: str, values: Mapping[str, list[str]]) -> list[str]:
    """Split a command line as a shell would (none runs), then fill in each word.

    Raises:
        StageFailure: a name is unknown, or a name for several words is only part of a word (cause
            ``config``).
    """
    words: list[str] = []
    for word in shlex.split(command):
        match = PLACEHOLDER.fullmatch(word)
        if match and match.group(1) == ARGS:
            words += values[ARGS]
        else:
            words.append(_filled(word, values))
    return words


def _filled(word: str, values: Mapping[str, list[str]]) -> str:
    """Fill in a word. Doubled braces are read in the command alone, never in a value."""
    parts, end = [], 0
    for match in PLACEHOLDER.finditer(word):
        parts += [unescaped(word[end : match.start()]), _one(match, values)]
        end = match.end()
    return "".join([*parts, unescaped(word[end:])])


def as_shell_text(command: str, values: Mapping[str, list[str]]) -> str:
    r"""Fill in a text for a shell. Each value is quoted so that the shell leaves it unchanged.

    The quoting depends on where the name stands: unquoted, in single quotes or in double quotes::

        echo {x}    with x = a$b  ->  echo 'a$b'
        echo "{x}"  with x = a$b  ->  echo "a\$b"

    Raises:
        StageFailure: as for `as_words`.
    """
    parts, quote, end = [], "", 0
    for match in IN_A_SHELL.finditer(command):
        between = command[end : match.start()]
        quote, end = open_quote(between, quote), match.end()
        several = match.group(1) == ARGS and not quote
        value = shlex.join(values[ARGS]) if several else _one(match, values)
        parts.append(unescaped(between))
        if quote == '"':
            parts.append(re.sub(r'([\\"$`])', r"\\\1", value))
        elif quote == "'":
            # Nothing can be escaped inside single quotes: close them, add a quoted quote, and open them
            # again.
            parts.append(value.replace("'", "'\"'\"'"))
        else:
            parts.append(value if several else shlex.quote(value))
    return "".join([*parts, unescaped(command[end:])])


def _one(match: re.Match[str], values: Mapping[str, list[str]]) -> str:
    name = match.group(1)
    if name not in values:
        raise StageFailure("config", f"unknown {{{name}}} in the stage's command; {nearest(name, values)}")
    if name == ARGS:
        raise StageFailure("config", "{args} stands for several words: it must be a word of its own")
    return values[name][0]


def _flat(tree: Mapping[str, Any], root: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; an empty section yields nothing."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{root}{key}.")
        else:
            yield f"{root}{key}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,4000})")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_MISSING = frozenset({"", "NA", "N/A", "null", "None"})
_NOT_FINITE = re.compile(r"[+-]?(nan(\(\w*\))?|inf|infinity|1\.#(inf|ind|[qs]nan)0*)", re.I)  # also C's
_SPACE = re.compile(r"[\s\ufeff]*")  # files that were joined have byte order marks inside


def read_rows(path: Path) -> tuple[Row, ...]:
    """Read the rows of a results file.

    Raises:
        StageFailure: the file is missing, or holds something other than rows of finite values (cause
            ``data``). The message names the file, and the line or the row and its column.
    """
    try:
        if path.exists() and not path.is_file():  # reading a fifo or a device could block forever
            raise ValueError("it is a folder" if path.is_dir() else "it is no regular file")
        text = path.read_text(encoding="utf-8-sig")
        if not text.strip():
            raise ValueError("it is empty; [] stands for no rows")
        is_table = text.lstrip()[:1] not in ("", "{", "[") and path.suffix not in (".json", ".jsonl")
        return checked_rows(_table(text) if is_table else _with_numbers(_values(text)), cause="data")
    except FileNotFoundError:
        if path.is_symlink():
            what = f"the results {path.name} are a link to {path.readlink()}, which is not there"
            raise StageFailure("data", what) from None
        raise StageFailure("data", f"there is no results file {path.name}{_others(path)}") from None
    except UnicodeDecodeError as error:
        raise StageFailure(
            "data", f"the results {path.name} are no UTF-8 text (byte {error.start + 1})"
        ) from error
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise StageFailure("data", f"cannot read the results {path.name}: {error}") from error
    except StageFailure as failure:
        raise StageFailure("data", f"{path.name}: {failure}") from None


def _others(path: Path) -> str:
    names = sorted(other.name for other in path.parent.glob("*")) if path.parent.is_dir() else []
    return f"; beside it are {', '.join(names[:8])}" if names else "; its folder is empty"


def _values(text: str) -> list[Any]:
    """Return the mappings in a text of JSON values, in order."""
    decoder = json.JSONDecoder(object_pairs_hook=_mapping)
    rows, start = list[Any](), _end_of_space(text, 0)
    while start < len(text):
        try:
            value, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            line, column = _place(text, error.pos)
            raise ValueError(f"line {line}, column {column}: {error.msg}") from None
        found = value if isinstance(value, list) else [value]
        if strange := [item for item in found if not isinstance(item, dict)]:
            line = _place(text, start)[0]  # counted only here: for each of many rows it would take hours
            raise ValueError(f"line {line}: a row must be a mapping, one is {json.dumps(strange[0])[:60]}")
        rows += found
        start = _end_of_space(text, end)
    return rows


def _with_numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace the texts ``"NaN"`` and ``"inf"`` of metrics by the values that they stand for.

    A column is a metric by its name, or if it holds a number elsewhere. In others ``nan`` is a word.
    """
    texts = [(row, key) for row in rows for key, value in row.items() if _is_not_finite(value)]
    numbers = {key for row in rows if texts for key, value in row.items() if isinstance(value, int | float)}
    for row, key in texts:
        if key in numbers or direction(key):
            row[key] = _number(row[key].strip())
    return rows


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 20 and bool(_NOT_FINITE.fullmatch(value.strip()))


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a mapping; raise ValueError for a repeated key, of which `json` would keep only the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"a mapping holds {next(n for n in names if names.count(n) > 1)!r} twice")
    return found


def _end_of_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start


def _place(text: str, position: int) -> tuple[int, int]:
    return text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)


def _table(text: str) -> list[Row]:
    """Return the rows of a table with a header; its delimiter is the commonest candidate in the header."""
    header_line = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(",\t;", key=header_line.count)
    reader = csv.reader(io.StringIO(text.lstrip("\r\n"), newline=""), delimiter=delimiter, strict=True)
    names = [name.strip() for name in next(reader)]
    if len(names) > 1 and not names[0]:
        names[0] = "index"  # pandas writes its index as a column without a name
    if len(set(names)) < len(names) or "" in names:
        raise ValueError(f"line 1: every column needs a name of its own, they are {names}")
    # A first line of numbers is data: the header is missing.
    if all(_NUMBER.fullmatch(name) or _NOT_FINITE.fullmatch(name) for name in names):
        raise ValueError(f"line 1: a table needs a header, the names of its columns would be {names}")
    lines = []
    for fields in reader:
        if not fields:
            continue
        if len(fields) != len(names):
            raise ValueError(f"line {reader.line_num}: {len(fields)} fields for {len(names)} columns")
        lines.append(fields)
    if not lines and len(names) == 1:
        raise ValueError(f"it is neither JSON nor a table, but the line {names[0]!r}")
    if len(names) == 1:
        _check_column(names[0], [fields[0] for fields in lines])
    columns = [_column([fields[number] for fields in lines]) for number in range(len(names))]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _check_column(name: str, fields: Sequence[str]) -> None:
    """Raise if the single column of a table is several, in a format that is not read here.

    Raises:
        ValueError: as in ``loss: 0.5``, ``loss=nan``, ``a|b`` or ``loss 0.5``, but not ``model:name`` over
            ``qwen:7b``, nor ``test loss`` over ``0.5``.
    """
    lines = [name, *fields]
    # Where a sign is in each line, it may divide columns: in a name, such as `best model`, it is in few.
    signs = [sign for sign in ("|", ":", "=", ">", " ") if all(sign in line.strip() for line in lines)]
    for sign in signs:
        pairs = [line.strip().partition(sign)[::2] for line in lines]
        words = (
            [word for line in lines for word in line.split()] if sign == " " else [text for _, text in pairs]
        )
        values = [text.strip().removesuffix("%") for text in words]
        is_number = any(_NUMBER.fullmatch(text) or _NOT_FINITE.fullmatch(text) for text in values)
        # Names such as `qwen:7b` hold colons. A row that is read wrongly costs more than a refusal.
        is_pair = sign not in ": " or is_number or (sign == ":" and any(text[:1].isspace() for text in words))
        if is_pair or len({key for key, _ in pairs}) == 1:
            raise ValueError(
                f"line 1: {name!r} is no name of a column; a table has ',', ';' or tabs between its columns"
            )


def _column(fields: Sequence[str]) -> list[Any]:
    """Convert the fields of one column: to numbers or booleans if all are, else to text."""
    # R and others write a missing number as NA. Among texts it may be one, as the country code of Namibia.
    given = [field for field in fields if field.strip() not in _MISSING]
    if len(given) < len(fields) and given and all(_NUMBER.fullmatch(field.strip()) for field in given):
        fields = ["" if field.strip() in _MISSING else field for field in fields]
    filled = [field.strip() for field in fields if field.strip()]
    is_number = [bool(_NUMBER.fullmatch(field)) for field in filled]
    if filled and all(
        known or _NOT_FINITE.fullmatch(field) for field, known in zip(filled, is_number, strict=True)
    ):
        # A leading zero, as in 007, marks an identifier. As a number it would lose its zeros.
        is_text = any(len(field.lstrip("+-")) > 1 and re.match(r"[+-]?0[0-9]", field) for field in filled)
        return _as_text(fields) if is_text else [_number(field.strip()) for field in fields]
    if filled and all(field.lower() in ("true", "false") for field in filled):
        return [field.strip().lower() == "true" if field.strip() else None for field in fields]
    return _as_text(fields)


def _as_text(fields: Sequence[str]) -> list[str | None]:
    """Return fields unchanged, except that an empty one is null."""
    return [field or None for field in fields]


def _number(field: str) -> int | float | None:
    if not field:
        return None
    if "#" in field or "(" in field:
        return math.inf if "inf" in field.lower() else math.nan
    return int(field) if _WHOLE.fullmatch(field) else float(field)

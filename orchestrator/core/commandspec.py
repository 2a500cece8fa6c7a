"""Validation of what stages declare: placeholders, shell syntax and files of commands, and remedies. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.core.failure import Cause
from orchestrator.core.tree import MISSING, dotted_keys, pick
from orchestrator.errors import UserError, nearest
from orchestrator.spec import StageSpec, refuse_zero_bytes

_ASKED_KEY = re.compile(r"\{(inputs|config|uses)\.([^{}\s]+)\}")

# Placeholders without a key; the others are inputs.STAGE, config.KEY and uses.KEY.
PLAIN = (
    *("args", "attempt", "checkpoint", "checkpoints", "hydra_app", "metrics", "output"),
    *("python", "resume", "scratch", "work"),
)
_NAME = r"[A-Za-z_][\w.\[\]\-+]*"
# Such a name in single braces is refused, and `{{x}}` was as well, as it holds `{x}`. So to read it as text
# changes no command that ever ran.
_OTHER = rf"(?!(?:{'|'.join(PLAIN)})\}}|(?:inputs|config|uses)\.){_NAME}"
_LITERAL = re.compile(rf"\{{(\{{{_OTHER}\}})\}}")
"""Doubled braces, as for `str.format`, around a name that is no placeholder's: ``{{x}}`` for ``{x}``."""

PLACEHOLDER = re.compile(rf"\{{(?!(?<=\{{\{{){_OTHER}\}}\}})({_NAME})\}}")
"""The form of a placeholder. A worker fills in the known names and leaves other text in braces as it is."""

IN_A_SHELL = re.compile(rf"(?<!\$){PLACEHOLDER.pattern}")
"""The form of a placeholder in a shell command, where ``${NAME}`` is a variable of the shell instead."""

_OPERATORS = frozenset({"|", "||", "|&", "&", "&&", ";", "<", ">", ">>", "<<", "2>", "2>>", "&>", "2>&1"})


def placeholders(spec: StageSpec) -> list[str]:
    """Return the names in braces of a stage's command. A function has none.

    Raises:
        ValueError: a quote is not closed.
    """
    command = spec.command or ""
    if spec.shell:
        return IN_A_SHELL.findall(command)
    return [name for word in shlex.split(command) for name in PLACEHOLDER.findall(word)]


def unescaped(text: str) -> str:
    """Return a piece of a command between placeholders, with ``{x}`` in place of ``{{x}}``."""
    return _LITERAL.sub(r"\1", text)


def check_command(name: str, spec: StageSpec, where: str) -> None:
    """Refuse a command that a worker could not fill in, and command keys on a stage that is a function.

    Args:
        name: the stage's name.
        spec: the stage's spec. It may be a function.
        where: the sweep file, for messages.

    Raises:
        UserError: the spec contradicts itself.
    """
    _check_files(name, spec, where)
    for field in ("reads", "uses", "after"):
        names: tuple[str, ...] = getattr(spec, field)
        if twice := next((each for each in names if names.count(each) > 1), ""):
            raise UserError(f"stage {name!r} names {twice!r} twice in `{field}`", where=where)
    if "\0" in (spec.command or ""):
        raise UserError(f"the command of stage {name!r} holds a null character", where=where)
    if spec.command is None:
        _refuse_of_functions(name, spec, where)
        return
    try:
        asked = placeholders(spec)
        # Without a shell, the first word is the program. An empty program, '""', cannot be run either.
        is_empty = not any(shlex.split(spec.command)[:1]) if not spec.shell else not spec.command.strip()
    except ValueError as error:
        reason = str(error).lower()
        raise UserError(f"the command of stage {name!r} cannot be split: {reason}", where=where) from None
    if is_empty:
        raise UserError(f"the command of stage {name!r} is empty", where=where)
    _check_placeholders(name, spec, asked, where)
    _check_words(name, spec, where)
    if spec.keep and "work" not in asked:
        raise UserError(
            f"stage {name!r} has `keep`, but its command does not use {{work}}",
            where=where,
            allowed="`keep` names files of the work folder; what is in {output} becomes product by itself",
        )


def _check_placeholders(name: str, spec: StageSpec, asked: list[str], where: str) -> None:
    declared = {"inputs": spec.after, "config": (*spec.reads, *spec.each), "uses": spec.uses}
    fields = {"inputs": "after", "config": "reads", "uses": "uses"}
    for kind, key in _ASKED_KEY.findall(spec.command or ""):
        parts = key.split(".")
        # The stage may declare the key itself or any section above it.
        prefixes = {"*", *(".".join(parts[: length + 1]) for length in range(len(parts)))}
        if prefixes.isdisjoint(declared[kind]):
            field, others = fields[kind], nearest(key, declared[kind])
            is_typo = others.startswith("did you mean")
            raise UserError(
                f"the command of stage {name!r} asks for {{{kind}.{key}}}, which its `{field}` lacks",
                where=where,
                allowed=others if declared[kind] else "",
                fix="" if is_typo else f"{field}: [{', '.join([*getattr(spec, field), key])}]",
            )
    known = [*PLAIN, *(f"{kind}.{key}" for kind, keys in declared.items() for key in keys)]
    for text in asked:
        has_key = "." in text and text.partition(".")[0] in declared
        if not has_key and text not in PLAIN:
            raise UserError(
                f"the command of stage {name!r} asks for the unknown {{{text}}}",
                where=where,
                allowed=nearest(text, known),
                fix=f"{{{{{text}}}}} for the text {{{text}}}",
            )


def _check_words(name: str, spec: StageSpec, where: str) -> None:
    """Refuse `{args}` inside a word, and operators that only a shell understands."""
    command = spec.command or ""
    # The words keep their quotes, so that a quoted operator, such as '>', is taken as plain text.
    words = [] if spec.shell else list(_raw_words(command))
    places = [word for word in words if "{args}" in word and word.strip("'\"") != "{args}"]
    if spec.shell and any(quote for found, quote in quoted_placeholders(command) if found == "args"):
        places = ["quotes"]
    if places:
        raise UserError(
            f"the command of stage {name!r} has {{args}} inside {places[0]}",
            where=where,
            allowed="{args} stands for several words: it must be one by itself, without quotes",
        )
    for word in words:
        if word in _OPERATORS:
            raise UserError(
                f"the command of stage {name!r} has {word!r}, which means something to a shell only",
                where=where,
                allowed="a command line runs without a shell; quote the word to pass it on as it is",
                fix="shell: true (--shell beside --run)",
            )
    if words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
        raise UserError(
            f"the command of stage {name!r} begins with {words[0]!r}, which a shell takes as a variable",
            where=where,
            allowed="the program first",
            fix=f"env {words[0]} before the program",
        )


def quoted_placeholders(command: str) -> Iterator[tuple[str, str]]:
    """Yield each placeholder of a shell command with the quote that is open at that place, or "".

    A worker quotes the value to fit: other characters are special inside ``"..."`` than outside.
    """
    quote, end = "", 0
    for match in IN_A_SHELL.finditer(command):
        quote, end = open_quote(command[end : match.start()], quote), match.end()
        yield match.group(1), quote


def open_quote(text: str, quote: str = "") -> str:
    """Return the quote that is open after a text.

    Args:
        text: a piece of a shell command.
        quote: the quote that is open before the text, "" for none.

    Returns:
        ``'``, ``"`` or "".
    """
    is_escaped = False
    for char in text:
        if is_escaped:
            is_escaped = False
        # Between single quotes a shell takes a backslash literally.
        elif char == "\\" and quote != "'":
            is_escaped = True
        elif char == quote:
            quote = ""
        elif char in "'\"" and not quote:
            quote = char
    return quote


def _raw_words(command: str) -> Iterator[str]:
    """Yield the words of a command line with their quotes. Stop silently at a quote that is not closed."""
    lexer = shlex.shlex(command, posix=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        # An open quote ends the words here; `check_command` reports it.
        yield from lexer
    except ValueError:
        return


def _check_files(name: str, spec: StageSpec, where: str) -> None:
    if spec.python is not None and not spec.python.strip():
        raise UserError(
            f"stages.{name}.python is {spec.python!r}",
            where=where,
            allowed="an interpreter, such as env/bin/python",
        )
    named = [("keep", pattern) for pattern in spec.keep]
    if spec.finished is not None:
        named.append(("finished", spec.finished))
    if spec.results is not None:
        named.append(("results", spec.results))
    if spec.checkpoints is not None:
        named.append(("checkpoints", spec.checkpoints))
    for column, pattern in spec.metric.items():
        check_pattern(f"stages.{name}.metric.{column}", pattern, where)
    for key, path in named:
        parts = path.split("/")
        # An absolute path, or one with "..", would collect or delete files that are not the attempt's own.
        is_long = max(len(part.encode(errors="replace")) for part in parts) > MAX_FILE_NAME
        is_inside = not path.startswith(("/", "~")) and {"..", ""}.isdisjoint(parts) and {*parts} != {"."}
        # `**` stands for folders only as a whole part. `Path.glob` refuses it elsewhere.
        is_glob = all(part == "**" or "**" not in part for part in parts)
        if not is_inside or is_long or not is_glob or not path.isprintable():
            folder, example = _FILES[key]
            raise UserError(
                f"stages.{name}.{key} is {path if len(path) <= 80 else path[:80] + '...'!r}",
                where=where,
                allowed=f"a path inside {folder}, such as {example}",
            )


def check_pattern(key: str, pattern: str, where: str = "") -> None:
    """Check the regular expression of a metric.

    Args:
        key: of the pattern, for messages.
        pattern: of Python's `re`.
        where: the sweep file, for messages.

    Raises:
        UserError: the expression is malformed, or has not exactly one group.
    """
    try:
        num_groups = re.compile(pattern).groups
    except re.error as error:
        raise UserError(f"{key} is no regular expression: {error}", where=where) from None
    if num_groups != 1:
        raise UserError(
            f"{key} has {num_groups} groups", where=where, allowed=r"one, around the value: loss=([\d.]+)"
        )


_FILES = {
    "checkpoints": ("the output folder or the work folder", "ckpt-*.pt"),
    "keep": ("the work folder", "*.pt"),
    "finished": ("the output folder or the work folder", "finished"),
    "results": ("the output folder", "rows.jsonl"),
}

MAX_FILE_NAME = 255
"""Maximum length of a file name on common file systems, in bytes."""


def _refuse_of_functions(name: str, spec: StageSpec, where: str) -> None:
    for key, is_set in (
        ("finished", spec.finished is not None),
        ("results", spec.results is not None),
        ("metric", bool(spec.metric)),
        ("checkpoints", spec.checkpoints is not None),
        ("shell", spec.shell),
        ("python", spec.python is not None),
    ):
        if is_set and spec.run is not None:
            raise UserError(
                f"stages.{name}.{key} is for commands",
                where=where,
                allowed=f"stage {name!r} runs the function {spec.run}",
            )


def check_filled(
    stage: str,
    asked: Iterable[str],
    slices: Mapping[str, Mapping[str, Any]],
    inputs: Collection[str],
    *,
    where: str,
) -> None:
    """Refuse a command with a placeholder that a worker could not fill in for a stage instance.

    Args:
        stage: name of the stage.
        asked: the placeholders of its command.
        slices: ``config`` and ``uses`` to the values that the instance reads and uses.
        inputs: the placeholders of the instance's inputs.
        where: the stage and cell, for messages.

    Raises:
        UserError: a placeholder names no single value, or one that no argument of a program can hold.
    """
    for name in asked:
        root, _, key = name.partition(".")
        if root in (*slices, "args"):
            value = pick(slices[root], key) if key else slices["config"]
            refuse_zero_bytes(value, key, where)
            is_filled = not key or (value is not MISSING and not isinstance(value, Mapping))
        else:
            is_filled = root != "inputs" or name in inputs
        if not is_filled:
            known = [f"{part}.{key}" for part, tree in slices.items() for key in _value_keys(tree)]
            raise UserError(
                f"the command of stage {stage!r} asks for {{{name}}}, no single value here",
                where=where,
                allowed=nearest(name, [*known, *inputs]),
            )


def _value_keys(tree: Mapping[str, Any]) -> list[str]:
    return [key for key in dotted_keys(tree) if not isinstance(pick(tree, key), Mapping)]


def rung_keys(rung: Mapping[str, Any]) -> list[str]:
    """Return the keys of `uses` that a rung of remedies changes.

    Args:
        rung: operation to a key or several; ``set`` to a mapping of keys to values.
    """
    keys: list[str] = []
    for operation in ("halve", "double", "set"):
        named = rung.get(operation, ())
        keys += [named] if isinstance(named, str) else list(named)
    return keys


def check_remedies(name: str, spec: StageSpec, where: str) -> None:
    """Refuse remedies that could change what a stage computes, or that are malformed.

    Args:
        name: of the stage.
        spec: with its remedies.
        where: the file, for messages.

    Raises:
        UserError: a cause or operation is unknown, or a key is not one of `uses`.
    """
    for cause, ladder in spec.remedies.items():
        if cause not in [*Cause]:
            key = f"stages.{name}.remedies"
            raise UserError(
                f"{key} names the unknown cause {cause!r}", where=where, allowed=nearest(cause, [*Cause])
            )
        for number, rung in enumerate(ladder):
            _check_rung(f"stages.{name}.remedies.{cause}[{number}]", rung, spec, where)


def _check_rung(place: str, rung: Mapping[str, Any], spec: StageSpec, where: str) -> None:
    if set(rung) == {"suggest"} and isinstance(rung["suggest"], str):
        return
    allowed = "halve: KEY, double: KEY, set: {KEY: VALUE}, and times: NUMBER; or alone suggest: TEXT"
    times = rung.get("times", 1)
    is_sound = isinstance(rung.get("set", {}), Mapping) and isinstance(times, int) and 1 <= times <= 20
    keys = rung_keys(rung) if is_sound else []
    if (
        not keys
        or not {*rung} <= {"halve", "double", "set", "times"}
        or not all(isinstance(k, str) for k in keys)
    ):
        raise UserError(f"{place} is {dict(rung)!r}", where=where, allowed=allowed)
    for key in keys:
        # The longest key that contains it decides: a stage may read a section and use one key of it.
        above = [part for part in (*spec.reads, *spec.uses) if f"{key}.".startswith(f"{part}.")]
        decides = max(above, key=len, default="")
        if decides in spec.reads:
            both = ", and also uses" if decides in spec.uses else ""
            raise UserError(
                f"{place} changes {key!r}, which the stage reads{both}",
                where=where,
                allowed="keys of `uses` alone: a remedy must leave the result as it is",
                fix=f"take {decides!r} out of `reads`, and name it in `uses`, if no result depends on it",
            )
        if not above:
            raise UserError(
                f"{place} changes {key!r}, which the stage does not use",
                where=where,
                allowed=nearest(key, spec.uses),
            )


def lacks_results(spec: StageSpec, rows: Sequence[Mapping[str, object]]) -> bool:
    """Return whether a product has none of the rows that its stage's `results` and `metric` would give now.

    Neither is part of a stage's identity, so a product may have been made before they were set.

    Args:
        spec: of the stage, as it is now.
        rows: of the product.
    """
    if not spec.command or not (spec.results or spec.metric):
        return False
    return not any(column in row for row in rows for column in spec.metric) if spec.metric else not rows

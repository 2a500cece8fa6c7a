"""Make small changes to functions, which mutmut finds, and put them into modules that are imported.

docs/mutant_tests.py runs tests against each change; docs/mutants.py decides on which, and reports.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_MARK = """
def _mutants_mark(number):
    try:
        from mutant_marks import mark
    except ImportError:  # a program that runs without the project's folder
        return
    mark(number)
"""


class Change(NamedTuple):
    """One change to a function.

    Attributes:
        function: its name, ``Class.method`` or ``function``.
        start, end: which characters of the file are replaced.
        text: what replaces them.
    """

    function: str
    start: int
    end: int
    text: str


def changes_of(path: Path, cache: Path) -> dict[str, Change]:
    """Return all changes that mutmut makes to a file, by name; a file of the folder `cache` keeps them."""
    source = path.read_text()
    kept = cache / f"{hashlib.sha256(f'{path.name} {source}'.encode()).hexdigest()[:24]}.json"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({name: list(change) for name, change in _changes(path, source)}))
    return {name: Change(*fields) for name, fields in json.loads(kept.read_text()).items()}


def _changes(path: Path, source: str) -> Iterator[tuple[str, Change]]:
    from mutmut.mutation.file_mutation import mutate_file_contents

    made = mutate_file_contents(str(path), source, None, None)
    lines, spans = made.code.splitlines(keepends=True), made.line_span_by_function_name
    for name in made.mutant_names:
        mangled, _, _ = name.partition("__mutmut_")
        function = ".".join(mangled.split("ǁ")[1:]) if "ǁ" in mangled else mangled.removeprefix("x_")
        short = function.rpartition(".")[2]
        old, new = (
            "".join(lines[spans[each].start - 1 : spans[each].end]).replace(each, short, 1)
            for each in (f"{mangled}__mutmut_orig", name)
        )
        first, end = places_of(source)[function]
        text = source[first:end]
        begin = old.find(f"def {short}") - text.find(f"def {short}")
        old, new = old[begin:].rstrip("\n"), new[begin:].rstrip("\n")
        # A comment after the last statement belongs to no function of `ast`, but to mutmut's copy.
        comment = old.removeprefix(text) if old.startswith(text) else ""
        old, new = old.removesuffix(comment), new.removesuffix(comment)
        assert text.startswith(old), f"mutmut's copy of {function} is not its source"
        same = _shared(old, new)
        tail = _shared(old[same:][::-1], new[same:][::-1])
        yield name, Change(function, first + same, first + len(old) - tail, new[same : len(new) - tail])


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts share at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _functions(source: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.parse(source).body:
        for each in node.body if isinstance(node, ast.ClassDef) else (node,):
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{node.name}.{each.name}" if isinstance(node, ast.ClassDef) else each.name, each


@functools.cache
def places_of(source: str) -> dict[str, tuple[int, int]]:
    """Return where the definition of each function begins and ends, in characters."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return {
        name: (starts[node.lineno - 1], starts[node.end_lineno or 0]) for name, node in _functions(source)
    }


def _function(module: types.ModuleType, name: str) -> types.FunctionType | None:
    """Return the function object in a module; None if something else has its name there."""
    owner, _, short = name.rpartition(".")
    found: Any = vars(vars(module)[owner] if owner else module).get(short)
    found = getattr(found, "__func__", found)
    return found if isinstance(found, types.FunctionType) else None


def replace(module: types.ModuleType, name: str, text: str) -> bool:
    """Give a function the code of a changed definition; return whether that was possible in this process."""
    target = _function(module, name)
    if target is None:
        return False
    owner, _, short = name.rpartition(".")
    text = textwrap.dedent(text)
    if owner:
        text = f"class {owner}:\n{textwrap.indent(text, ' ')}"
    future = sys.modules["__future__"].annotations.compiler_flag
    made: dict[str, Any] = {}
    try:
        exec(compile(text, str(module.__file__), "exec", future), vars(module), made)  # noqa: S102
        new = made[owner].__dict__[short] if owner else made[short]
        target.__code__ = new.__code__
    except (NameError, ValueError):  # a default of the class's own; another number of outer variables
        return False
    target.__defaults__, target.__kwdefaults__ = new.__defaults__, new.__kwdefaults__
    return True


def changed(source: str, change: Change) -> tuple[str, str]:
    """Return the whole source with a change, and the definition of the changed function alone."""
    start, end = places_of(source)[change.function]
    text = source[start : change.start] + change.text + source[change.end : end]
    return source[:start] + text + source[end:], text


def line_of(source: str, change: Change) -> int:
    """Return the first line of the statement in which a change begins."""
    line = source.count("\n", 0, change.start) + 1
    function = next(node for name, node in _functions(source) if name == change.function)
    lines, found = source.splitlines(), _first_line(function.body)
    for node in ast.walk(function):
        if (
            isinstance(node, ast.stmt)
            and node is not function
            and node.lineno <= line <= (node.end_lineno or 0)
        ):
            first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
            is_first = not lines[node.lineno - 1].encode()[: node.col_offset].strip()
            if is_first and not lines[node.lineno - 1].lstrip().startswith("elif "):
                found = max(found, first)
    return found


def _first_line(body: list[ast.stmt]) -> int:
    """Return the first line of a body after its docstring, if there is such a line."""
    is_text = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    first = body[1] if is_text and len(body) > 1 else body[0]
    return min([first.lineno, *(each.lineno for each in getattr(first, "decorator_list", []))])


def marked(source: str, lines: Mapping[int, int]) -> str:
    """Return source that calls `mutant_marks.mark` before some lines, each with its number.

    Args:
        source: of a module.
        lines: number to be marked, by line; the line begins a statement of a function.
    """
    texts = source.splitlines(keepends=True)
    body = ast.parse(source).body
    top = [
        node.end_lineno or 0
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    if not top and body and isinstance(body[0], ast.Expr):
        top = [body[0].end_lineno or 0]
    for line, number in sorted(lines.items(), reverse=True):
        text = texts[line - 1]
        texts.insert(line - 1, f"{text[: len(text) - len(text.lstrip())]}_mutants_mark({number})\n")
    texts.insert(max(top, default=0), _MARK)
    return "".join(texts)

"""Starting points for sweeps of one's own: a sweep file for a script or Hydra app."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from orchestrator.compose.app_process import AppProcess
from orchestrator.compose.files import shipped
from orchestrator.errors import UserError, nearest

_OUT = re.compile(r"(out|output|save|log|result|results|work)(_?(dir|folder|path|file))?")
_RESUME = re.compile(r"(resume|restore|load)(_?(from|path|ckpt|checkpoint))*|(ckpt|checkpoint)(_?path)?")
_MAX_KEYS = 60
"""Number of keys of an app that are listed."""


def starting_file(script: str, folder: Path, *, python: str | None = None) -> str:
    """Return a sweep file for a script, with what could be swept as comments.

    A script that names ``hydra.main`` is a Hydra app, and its groups and keys are listed. Of any other Python
    script the options of argparse or click are listed, as its source has them; it is not run.

    Args:
        script: its path, relative to the folder.
        folder: where the sweep file will lie.
        python: the interpreter of an app.

    Raises:
        UserError: there is no such script, or the app cannot be composed.
    """
    path = folder / script
    if not path.is_file():
        beside = [each.name for each in sorted(folder.glob("*.py"))]
        raise UserError(f"no script {script!r}", allowed=nearest(Path(script).name, beside))
    source = path.read_text(encoding="utf-8", errors="replace")
    schema = shipped("schema") / "sweep.json"
    head = [
        f"# yaml-language-server: $schema={schema}",
        f"description: {Path(script).stem}, a sweep of my own",
    ]
    is_app = re.search(r"\bhydra\.main\b|from hydra import .*\bmain\b", source) is not None
    body = _of_app(script, folder, python) if is_app else _of_script(script, source)
    return "\n".join([*head, *body, *_COMMON]) + "\n"


_COMMON = (
    "# exclude: [model=a seed=1]      # points of the grid to leave out",
    "# when: {AXIS: OTHER=VALUE}      # an axis, or AXIS=VALUE, that counts only beside values of others",
    "# search: {...}                  # in place of axes, values that follow from results; docs/search.md",
    "# expect_cells: 6                # refuse a grid of another size",
    "# Settings of how it runs, such as launcher.workers=4 or launcher=slurm, go on the command line.",
)


def _of_app(script: str, folder: Path, python: str | None) -> Iterator[str]:
    with AppProcess.started([script], python, folder, script) as process:
        outline = process.ask("outline")
    if python is None:
        yield f"app: {script}"
    else:
        yield f"app: {{script: {script}, python: {python}}}"
    yield "axes: {}"
    yield "# Take the signs away where something should vary (and the {} above). Config groups:"
    for group, options in outline["groups"].items():
        yield f"#   {group}: [{', '.join(map(_text, options))}]"
    yield "# Keys, with the values that they have now:"
    # A value that follows from others, or names a class, is no axis.
    keys = [
        (key, value)
        for key, value in outline["keys"].items()
        if "${" not in str(value) and not key.endswith("_target_")
    ]
    for key, value in keys[:_MAX_KEYS]:
        yield f"#   {key}: [{_text(value)}]"
    if len(keys) > _MAX_KEYS:
        yield f"#   and {len(keys) - _MAX_KEYS} more"
    yield "# overrides: {KEY: VALUE}       # for all cells"
    yield "# A mapping after `app:` says more; see docs/hydra-apps.md:"
    yield "#   {script: ..., resume: 'ckpt_path={checkpoint}', checkpoints: 'ckpts/*.ckpt', volatile: [KEY]}"
    yield "# stages: {app: {limit_s: 3600}}"


class _Option(NamedTuple):
    """An option of a script, as its source has it.

    Attributes:
        name: without its dashes.
        is_positional: whether the script takes the value by its place.
        default: a plain value; None if it is not in the source.
        choices: its values, if the source lists them.
        help: one line.
    """

    name: str
    is_positional: bool
    default: Any
    choices: Sequence[Any]
    help: str


def _of_script(script: str, source: str) -> Iterator[str]:
    found = list(_options(source)) if script.endswith(".py") else []
    options = [each for each in found if not each.is_positional]
    places = [each for each in found if each.is_positional]
    out = [each.name for each in options if _OUT.fullmatch(each.name.replace("-", "_"))]
    resume = [each.name for each in options if _RESUME.fullmatch(each.name.replace("-", "_"))]
    swept = [each for each in options if each.name not in (*out, *resume)]
    yield "config:" if swept else "config: {seed: 0}"
    for each in swept:
        value = each.default if each.default is not None or not each.choices else each.choices[0]
        yield f"  {each.name}: {_text(value)}" + (f"  # {each.help}" if each.help else "")
    yield "axes: {}"
    yield "# Take the signs away where something should vary (and the {} above):"
    if not found:
        yield "# No option was found in the script, so --seed stands for one."
    for each in swept or [_Option("seed", False, 0, (), "")]:
        values = each.choices or [each.default]
        yield f"#   {each.name}: [{', '.join(map(_text, values))}]"
    program = "python" if script.endswith(".py") else "bash" if script.endswith((".sh", ".bash")) else ""
    for each in places:
        yield f"# Put its value in place of {each.name.upper()} in the command" + (
            f": {each.help}" if each.help else ""
        )
    # Before the options, of which one may take all words that follow.
    words = [*filter(None, [program]), script, *(each.name.upper() for each in places)]
    words += ["{args}", *(f"--{name} {{output}}" for name in out[:1])]
    words += [f"--{name} '{{checkpoint}}'" for name in resume[:1]]
    yield "stages:"
    yield f"  {re.sub(r'[^A-Za-z0-9._+-]', '-', Path(script).stem)}:"
    yield f"    command: {' '.join(words)}"
    yield f"    reads: [{', '.join(each.name for each in swept) or 'seed'}]"
    yield "    # results: rows.json          # JSON lines, JSON or CSV in {output}, or"
    yield "    # metric: {loss: 'loss: (.*)'} # the last match in what it prints"
    yield "    # checkpoints: 'ckpt-*.pt'    # files in {output}; '{checkpoint}' is the newest one"
    yield "    # limit_s: 3600"


def _options(source: str) -> Iterator[_Option]:
    """Yield the options of the calls of ``add_argument`` and of click in a source."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # no Python, or nested too deeply
        return
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and getattr(node.func, "attr", "") in _DECLARING):
            continue
        names = [
            each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)
        ]
        long = next((name for name in names if name.startswith("--")), "")
        given = {each.arg: _literal(each.value) for each in node.keywords if each.arg}
        is_positional = bool(names) and not names[0].startswith("-")
        if not (long or is_positional) or given.get("action") in ("help", "version"):
            continue
        is_flag = given.get("action") == "store_true" or given.get("is_flag")
        default = given.get("default", False if is_flag else None)
        choices = given.get("choices") or next(filter(None, map(_choices, node.keywords)), None)
        text = " ".join(str(given.get("help") or "").split())[:80]
        # click writes both names of a switch as one: --verbose/--no-verbose.
        name = names[0] if is_positional else long[2:].partition("/")[0]
        yield _Option(
            name, is_positional, default, choices if isinstance(choices, list | tuple) else (), text
        )


_DECLARING = ("add_argument", "option", "argument")


def _choices(keyword: ast.keyword) -> Any:
    """Return the values of ``type=click.Choice([...])``."""
    call = keyword.value
    is_choice = isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "Choice"
    return _literal(call.args[0]) if is_choice and isinstance(call, ast.Call) and call.args else None


def _literal(node: ast.AST) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def _text(value: Any) -> str:
    """Return a value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")

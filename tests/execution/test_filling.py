"""Filling in a command line, as words and for a shell, and whose interpreter `python` is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compose.main import compose
from orchestrator.execution.command import run_command
from orchestrator.execution.command_text import arguments, search_path
from orchestrator.stage import Config, Context, Inputs, StageSpec

SHOW = "import json, os, sys; json.dump(sys.argv[1:], open(os.environ['SWEEP_OUTPUT'] + '/argv', 'w'))"
NASTY = [
    "plain",
    "two words",
    "it's",
    'a "b"',
    "$HOME `id` $(id)",
    "back\\slash\\",
    "",
    "*",
    "new\nline",
    "é",
]


def argv(folder: Path, command: str, tree: dict[str, Any], **rest: Any) -> list[str]:
    (folder / "show.py").write_text(SHOW)
    context = Context(folder / "attempt")
    run_command(StageSpec(command=command, **rest), Config(tree), Inputs({}), context, folder=folder)
    found: list[str] = json.loads((context.output / "argv").read_text())
    return found


@pytest.mark.parametrize("shell", [False, True])
def test_doubled_braces_are_literal_around_other_names_alone_and_never_read_in_a_value(
    tmp_path: Path, shell: bool
) -> None:
    command = "{python} show.py '{{x}}' '{{{config.x}}}' '{{config.x}}' a{{outputs}}{{y}}"
    command += " '{\"a\": {\"b\": {{z}}}}' '{print $1}' '{{print}} {x y}'"
    expected = [
        "{x}",
        "{{{{v}}}}",
        "{{{v}}}",
        "a{outputs}{y}",
        '{"a": {"b": {z}}}',
        "{print $1}",
        "{print} {x y}",
    ]
    assert argv(tmp_path, command, {"x": "{{v}}"}, shell=shell) == expected


def test_args_are_all_keys_that_the_stage_reads() -> None:
    tree = {
        "lr": 1e-05,
        "num_layers": 2,
        "name": "two words",
        "opt": {"name": "adam", "betas": [0.9, 0.999], "nested": {"on": True, "off": False, "none": None}},
        "empty": [],
        "section": {},
        "shift": -0.5,
        "dash": "-x",
        "rows": [[1, 2], {"a": 1}],
    }
    assert list(arguments(tree)) == [
        *("--lr", "1e-05", "--num_layers", "2", "--name", "two words", "--opt.name", "adam"),
        *("--opt.betas", "0.9", "0.999", "--opt.nested.on", "--shift", "-0.5", "--dash=-x"),
        *("--rows", "[1, 2]", '{"a": 1}'),
    ]


def test_args_reach_a_program_as_they_are_with_and_without_a_shell(tmp_path: Path) -> None:
    tree = {f"k{number}": value for number, value in enumerate(NASTY)}
    expected = [word for key, value in tree.items() for word in (f"--{key}", value)]
    for shell in (False, True):
        folder = tmp_path / str(shell)
        folder.mkdir()
        assert argv(folder, "{python} show.py {args}", tree, shell=shell) == expected


@pytest.mark.parametrize("value", NASTY)
def test_a_value_stays_what_it_is_inside_the_quotes_of_a_shell_and_outside(
    tmp_path: Path, value: str
) -> None:
    command = "{python} show.py {config.x} '{config.x}' \"{config.x}\" a'b'{config.x}c | cat"
    assert argv(tmp_path, command, {"x": value}, shell=True) == [value, value, value, f"ab{value}c"]


def test_a_shell_fails_where_a_part_of_it_fails(tmp_path: Path) -> None:
    for command in ("false | cat", "false; true"):
        with pytest.raises(Exception, match="code 1"):
            run_command(StageSpec(command=command, shell=True), Config({}), Inputs({}), Context(tmp_path))


def environment_at(folder: Path) -> Path:
    """A virtual environment of the user's own."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "pyvenv.cfg").write_text("")
    return folder / "bin"


def test_python_is_the_first_in_the_users_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = environment_at(tmp_path / "mine")
    monkeypatch.setenv("PATH", f"{mine}:/usr/bin:/bin")
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    context = Context(tmp_path / "attempt")
    line = (
        'python -c \'import os, sys; open(os.environ["SWEEP_OUTPUT"] + "/who", "w").write(sys.executable)\''
    )
    run_command(StageSpec(command=line), Config({}), Inputs({}), context)
    assert Path((context.output / "who").read_text()).parent == mine


def test_a_stage_names_an_interpreter_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment_at(tmp_path / "first")
    other = environment_at(tmp_path / "env")
    monkeypatch.setenv("PATH", f"{tmp_path / 'first' / 'bin'}:/usr/bin:/bin")
    line = '-c \'import os, sys; print(sys.executable, file=open(os.environ["SWEEP_OUTPUT"] + "/who", "a"))\''
    for number, python in enumerate((str(other / "python"), "env/bin/python")):
        context = Context(tmp_path / str(number))
        for first in ("python", "{python}"):
            spec = StageSpec(command=f"{first} {line}", python=python)
            run_command(spec, Config({}), Inputs({}), context, folder=tmp_path)
        assert (context.output / "who").read_text().split() == [str(other / "python")] * 2


def test_where_path_has_only_the_systems_python_the_active_environment_comes_first_then_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    assert search_path().split(":")[0] == str(Path(sys.executable).parent)
    mine = environment_at(tmp_path / "mine")
    monkeypatch.setenv("CONDA_PREFIX", str(mine.parent))
    assert search_path().split(":")[0] == str(mine)


def test_a_command_that_cannot_be_run_is_a_failure_by_config(sweep: Any) -> None:
    (sweep.folder / "s.yaml").write_text(
        "config: {x: 1}\naxes: {x: [1]}\nstages: {fit: {command: trian.sh, reads: [x]}}\n"
    )
    sweep("launch", "s.yaml", code=1)
    (cell,) = sweep.json("status", "s")["cells"]
    assert cell["cause"] == "config" and "trian.sh" in cell["reason"]


def test_a_command_that_raises_shows_its_last_exception(sweep: Any) -> None:
    (sweep.folder / "fit.py").write_text(
        "class OutOfMemoryError(RuntimeError): pass\n"
        "print('INFO: NCCL error handled')\n"
        "raise OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')\n"
    )
    (sweep.folder / "s.yaml").write_text(
        "config: {x: 1}\naxes: {x: [1]}\nstages: {fit: {command: '{python} fit.py', reads: [x]}}\n"
    )
    sweep("launch", "s.yaml", "policy.retries.oom_gpu=0", code=1)
    (cell,) = sweep.json("status", "s")["cells"]
    assert cell["cause"] == "oom_gpu", cell
    assert "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB" in cell["reason"]


def test_steps_that_a_command_writes_into_its_metrics_are_its_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []

    def report(step: int, num_steps: int | None) -> None:
        seen.append((step, num_steps))
        (tmp_path / "seen").touch()

    context = Context(tmp_path, report_progress=report)
    script = (
        'echo \'{"step": 1, "num_steps": 3, "loss": 1}\' >> {metrics}; '
        f"until [ -e {tmp_path}/seen ]; do sleep 0.02; done; "
        'printf \'{"step": 2, "num_steps": 3}\\n{"step": 3, "num_st\' >> {metrics}; sleep 0.1'
    )
    run_command(StageSpec(command=script, shell=True), Config({}), Inputs({}), context)
    assert seen == [(1, 3), (2, 3)]


def test_the_shell_is_part_of_the_identity_and_the_other_new_keys_are_not(tmp_path: Path) -> None:
    def digest(extra: str) -> str:
        (tmp_path / "s.yaml").write_text(
            "config: {x: 1}\naxes: {x: [1]}\nstages: {fit: {command: 'a {work}', reads: [x]" + extra + "}}\n"
        )
        (found,) = compose("s.yaml", cwd=tmp_path).sweep.stages
        return found

    plain = digest("")
    assert digest(", finished: f, keep: ['*'], python: p") == plain
    assert digest(", shell: true") != plain

"""The tasks of docs/operator-tasks.md: each is solved by its commands, and they print what the page has."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Sweep

pytestmark = pytest.mark.xdist_group("operator tasks")  # they share what is expensive to set up

PAGE = (Path(__file__).parents[1] / "docs/operator-tasks.md").read_text(encoding="utf-8")
HEAD, *SECTIONS = re.split(r"^### (?=\d)", PAGE, flags=re.MULTILINE)
RUNNING = 36
"""The first task of a sweep that runs."""


class Step(NamedTuple):
    """A command of the page: its words, the exit code (None for any), and what it prints."""

    words: list[str]
    code: int | None
    lines: list[str]


class Task(NamedTuple):
    """A task of the page."""

    number: int
    title: str
    text: str
    steps: list[Step]


def parsed(section: str) -> Task:
    title, _, text = section.partition("\n")
    number, _, title = title.partition(". ")
    steps: list[Step] = []
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                command, _, comment = line[2:].partition(" # exit code ")
                steps.append(Step(shlex.split(command), None if comment == "any" else int(comment or 0), []))
            else:
                steps[-1].lines.append(line)
    return Task(int(number), title, text, steps)


TASKS = [parsed(section) for section in SECTIONS]


def write_files(text: str, folder: Path) -> None:
    for name, content in re.findall(r"```\w+\n# file: (\S+)\n(.*?)```", text, flags=re.DOTALL):
        (folder / name).write_text(content)


def check(task: Task, sweep: Sweep) -> None:
    """Run the commands of a task, and find each line of the page in what they print, in its order."""
    write_files(task.text, sweep.folder)
    for step in task.steps:
        if step.words[0] == "cp":
            shutil.copytree(sweep.folder / step.words[2], sweep.folder / step.words[3])
            continue
        assert step.words[0] == "sweep"
        printed = " ".join(sweep(*step.words[1:], code=step.code).split())
        place = 0
        for line in step.lines:
            pieces = (re.escape(" ".join(piece.split())) for piece in line.split("..."))
            found = re.compile(r"\s?.*?\s?".join(pieces)).search(printed, place)
            assert found, f"{task.number}. {task.title}: {line!r} is not in what is printed: {printed}"
            place = found.end()


def test_there_are_forty_tasks_each_of_three_commands_at_most_and_with_something_to_see():
    assert [task.number for task in TASKS] == list(range(1, 41))
    assert all(1 <= len(task.steps) <= 3 for task in TASKS)
    assert all(any(line.strip(". ") for step in task.steps for line in step.lines) for task in TASKS)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page, and its store."""
    folder = tmp_path_factory.mktemp("tasks")
    write_files(HEAD, folder)
    Sweep(folder, folder / "store")("launch", "curve.yaml", code=1)
    return folder


@pytest.fixture
def own(launched: Path, tmp_path: Path) -> Sweep:
    folder = tmp_path / "own"
    shutil.copytree(launched, folder)
    return Sweep(folder, folder / "store")


def is_long(task: Task) -> bool:
    """Whether a task starts workers, which takes seconds."""
    acts = (step.words for step in task.steps if "--dry-run" not in step.words)
    return any(words[1] in ("launch", "rerun") for words in acts)


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, id=task.title, marks=pytest.mark.long if is_long(task) else ())
        for task in TASKS[: RUNNING - 1]
    ],
)
def test_the_commands_of_a_task_print_what_the_page_has(own: Sweep, task: Task):
    check(task, own)


@pytest.fixture
def slow(own: Sweep) -> Iterator[tuple[Sweep, int]]:
    """The sweep that runs, once two cells do, and the process of its launch."""
    command = re.search(r"^Here `sweep (launch .*?)`", PAGE, flags=re.MULTILINE)
    assert command is not None
    said = own(*shlex.split(command[1]))
    process = re.search(r"as process (\d+)", said)
    assert process is not None
    deadline_s = time.monotonic() + 60
    while own.json("status", "slow")["counts"].get("running") != 2 and time.monotonic() < deadline_s:
        time.sleep(0.1)
    yield own, int(process[1])
    own("cancel", "slow")


@pytest.mark.long
def test_the_tasks_of_a_sweep_that_runs(slow: tuple[Sweep, int]):
    sweep, launch = slow
    for task in TASKS[RUNNING - 1 :]:
        if task.steps[0].words == ["kill", "-9", "LAUNCH"]:
            os.kill(launch, signal.SIGKILL)
            task = task._replace(steps=task.steps[1:])
        check(task, sweep)


def test_a_line_that_is_not_printed_fails_a_task(own: Sweep):
    task = parsed("1. Title\n\n```console\n$ sweep list\ncurve 9 1\n```\n")
    with pytest.raises(AssertionError, match="'curve 9 1' is not in what is printed"):
        check(task, own)

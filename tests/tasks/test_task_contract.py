"""The tasks that ship pass the suite of all tasks."""

from __future__ import annotations

import inspect

import pytest

from orchestrator.registry import TASKS, lookup
from orchestrator.tasks.base import LANGUAGES, Task
from orchestrator.testing import TaskContract


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("method", ["generate", "read", "is_correct"])
def test_a_task_has_the_defaults_that_the_protocol_promises(name: str, method: str) -> None:
    """Such as the seed, on which it depends which items are trained on."""
    task: Task = lookup(TASKS, name, kind="task")
    promised = inspect.signature(getattr(Task, method)).parameters.values()
    found = inspect.signature(getattr(type(task), method)).parameters.values()
    assert [(p.name, p.default) for p in found] == [(p.name, p.default) for p in promised]


class TestMath(TaskContract):
    name = "math"
    languages = tuple(LANGUAGES)
    row = {"question": "Tom has 3 hours and 4 hours. How many hours?", "answer": "3 + 4 = 7\n#### 7"}


class TestApiCalling(TaskContract):
    name = "api_calling"
    languages = tuple(LANGUAGES)
    row = {
        "instruction": "Book.",
        "input": "User: for two",
        "output": "API-Request: [Book(people='2')]",
    }

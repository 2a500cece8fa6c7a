"""The tasks that ship pass the suite of all tasks."""

from __future__ import annotations

from orchestrator.tasks.base import LANGUAGES
from orchestrator.testing import TaskContract


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

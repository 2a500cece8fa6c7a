# ruff: noqa: B023, E501 - questions are asked at once, each on a line
"""Where a cell's items come from, and what is wrong with that, is as recorded, see ../recording.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.registry import TASKS, lookup
from orchestrator.sft import data
from orchestrator.sft.config import ItemsConfig, Release
from orchestrator.sft.fetching import import_data
from orchestrator.stage import Config
from tests.recording import Answers, answer, compare, plain

RECORDED = Path(__file__).parent / "recorded"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OURS, OTHER, BRANCH = (Release(hub_id=name, revision=revision) for name, revision in (("laihuiyuan/mCoT-MATH", COMMIT), ("org/other", COMMIT[:7]), ("juletxara/mgsm", "main")))  # fmt: skip


def items_of(**changed: Any) -> ItemsConfig:
    usual = {
        "source": "parallel",
        "seed": 1,
        "num_train": 3,
        "num_validation": 1,
        "num_test": 1,
        "max_new_tokens": 8,
        "languages": ("en", "es"),
    }
    return ItemsConfig(**{**usual, **changed})


def tried(act: Callable[[], object]) -> object:
    try:
        return answer(act)
    except ValueError as error:
        return f"ValueError: {error}"


def asked(folder: Path) -> Answers:
    for train, test in ((OURS, OURS), (OURS, OTHER), (OTHER, BRANCH), (None, OURS), (BRANCH, OURS)):
        for changed in ({}, {"languages": ("es", "en")}, {"seed": 2}, {"num_test": None}):
            items = items_of(train=train, test=test, **changed)
            found = {
                name: getattr(items, name) for name in ("cached", "train_fingerprint", "test_fingerprint")
            }
            yield f"releases {train and train.hub_id} {test and test.hub_id} {changed}", found
        yield "  recipe", data.recipe(items)
        yield "  pinned", answer(lambda: data.check_pinned("math", items))
    raw = folder / "raw"
    raw.mkdir()
    for code in ("en", "es"):
        rows = [{"id": n, "question": f"{code} {n}?", "answer": f"so {n}\n#### {n}"} for n in range(8)]
        (raw / f"{code}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    numbers = {
        "num_train": None,
        "num_test": None,
        "revision": None,
        "test_revision": None,
        "languages": [],
        "seed": 0,
        "force": False,
    }
    import_data("math", str(raw), None, folder / "plain", num_validation=0, **numbers)
    import_data("math", str(raw), str(raw), folder / "whole", num_validation=2, **numbers)
    math, api = (lookup(TASKS, name, kind="task") for name in ("math", "api_calling"))
    for name in ("plain", "whole", "raw", "nothing"):
        for changed in (
            {},
            {"num_train": None, "num_validation": None, "num_test": None},
            {"num_train": 99},
            {"num_validation": 7, "num_train": 8},
            {"num_test": 99},
        ):
            made = tried(lambda: items_of(dir=str(folder / name), **changed))
            if not isinstance(made, ItemsConfig):
                yield f"{name} {changed}", made
                continue
            yield (
                f"{name} {changed}",
                [
                    made.num_train,
                    made.num_validation,
                    made.num_test,
                    made.train_fingerprint,
                    made.test_fingerprint,
                ],
            )
            yield "  checked", answer(lambda: data.check(made, "math"))
        yield (
            "  of another task",
            answer(lambda: data.check(made, "api_calling")) if isinstance(made, ItemsConfig) else "",
        )
    for name, folders, source in (
        ("whole", {"dir": str(folder / "whole"), "cache_dir": None, "cached": None}, "parallel"),
        ("cached", {"dir": None, "cache_dir": str(folder), "cached": "whole"}, "parallel"),
        ("nothing", {"dir": None, "cache_dir": str(folder), "cached": None}, "parallel"),
        ("absent", {"dir": str(folder / "absent"), "cache_dir": None, "cached": None}, "parallel"),
        ("files", {"train_dir": str(raw), "test_dir": str(raw)}, "files"),
        ("generated", {}, "generated"),
    ):
        for split, number in (("train", 2), ("validation", 1), ("test", 1), ("test", 0), ("train", 99)):
            settings = Config(
                {"source": source, "seed": 0, "num_train": number, "num_validation": 1, "num_test": number}
            )
            for task, code in ((math, "es"), (math, "sw"), (api, "en")) if number == 2 else ((math, "en"),):
                found = tried(
                    lambda: [
                        item.id
                        for item in data.load_items(task, split, code, settings, Config({"items": folders}))
                    ]
                )
                yield f"{number} {split} of {name} {task.name} in {code}", found
    yield (
        "folders",
        [
            str(data.folder_of(each))
            for each in (
                {"dir": "x"},
                {"dir": None, "cache_dir": "/c", "cached": "n"},
                {"dir": None, "cache_dir": "/c", "cached": None},
            )
        ],
    )
    yield (
        "commits",
        [data.is_commit(word) for word in (COMMIT, COMMIT[:7], COMMIT[:6], "main", "ABCDEF01", "")],
    )


def test_where_items_come_from_is_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compare(
        RECORDED / "items.txt",
        ((q, plain(found).replace(str(tmp_path), "FOLDER")) for q, found in asked(tmp_path)),
    )

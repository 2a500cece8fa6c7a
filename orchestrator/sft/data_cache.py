"""Which data set a cell's items mean, before anything is read of it: its identity, and where it lies.

A local folder is known by its content, a release of a hub by id and revision: a plan works with nothing
fetched. Knows no network and no row; fetching is `data_fetch`.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UserError
from orchestrator.tasks import dataset
from orchestrator.tasks.base import Split

if TYPE_CHECKING:
    from orchestrator.sft.config import ItemsConfig

VARIABLE = "POLYSWEEP_DATA"
IMPORTER = 1
"""Raised when what is made of a release changes; part of its identity."""

_SIDES = {"train_fingerprint": (Split.TRAIN, Split.VALIDATION), "test_fingerprint": (Split.TEST,)}


def root(cache_dir: str | None) -> Path:
    """Returns where fetched data sets lie: the setting, else ``$POLYSWEEP_DATA``, else the user's cache."""
    where = cache_dir or os.environ.get(VARIABLE)
    if where:
        return Path(where).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "polysweep" / "data"


def derived(items: ItemsConfig) -> dict[str, Any]:
    """Returns what follows from the settings of a data set: fingerprints, numbers, the name in the cache."""
    if items.dir is not None:
        return _of_folder(items)
    if items.train is None or items.test is None:
        return {}
    whole = recipe(items)
    text = json.dumps(whole, sort_keys=True)
    train = json.dumps([whole["importer"], whole["train"], whole["languages"]], sort_keys=True)
    return {
        "cached": f"{items.train.hub_id.rpartition('/')[2]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}",
        "train_fingerprint": f"hub:{items.train.hub_id}@{items.train.revision}:{_short(train)}",
        "test_fingerprint": f"hub:{items.test.hub_id}@{items.test.revision}",
    }


def recipe(items: ItemsConfig) -> dict[str, Any]:
    """Returns all that decides what a fetched data set holds, as JSON values."""
    return {
        "importer": IMPORTER,
        "train": [items.train.hub_id, items.train.revision] if items.train else None,
        "test": [items.test.hub_id, items.test.revision] if items.test else None,
        "languages": list(items.languages),
        "seed": items.seed,
        "num_train": items.num_train,
        "num_validation": items.num_validation,
        "num_test": items.num_test,
    }


def folder_of(items: Any) -> Path | None:
    """Returns where the data set of a cell's items lies or would lie, None when no data set is named."""
    if items["dir"] is not None:
        return Path(items["dir"]).expanduser()
    return root(items["cache_dir"]) / items["cached"] if items["cached"] else None


def check(items: ItemsConfig, task_name: str) -> None:
    """Checks that the folder of some items is a data set of a task, with as many items as are wanted.

    Raises:
        UserError: it is not.
    """
    where = f"data.{task_name}_dir={items.dir}"
    try:
        info = dataset.load(Path(items.dir or "").expanduser())
    except UserError as error:
        raise UserError(f"{where}: {error.what}", allowed=error.allowed, fix=error.fix) from None
    if info.task != task_name:
        raise UserError(f"{where} is a data set of {info.task}, not of {task_name}")
    sizes = {str(name): len(split.ids) for name, split in info.splits.items()}
    wanted = {
        "train": items.num_train or 0,
        "validation": items.num_validation or 0,
        "test": items.num_test or 0,
    }
    if "validation" not in sizes and "train" in sizes:
        if items.num_validation is None:
            raise UserError(f"{where} has no validation split", fix="data.num_validation=NUMBER")
        wanted["train"] += wanted.pop("validation")
    for split, number in wanted.items():
        if number > sizes.get(split, 0):
            raise UserError(
                f"{number} {split} items of {task_name} asked for",
                where=where,
                allowed=f"there are {sizes.get(split, 0)}",
            )


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _of_folder(items: ItemsConfig) -> dict[str, Any]:
    folder = Path(items.dir or "").expanduser()
    if not dataset.is_dataset(folder):
        return {}  # `check` says what is wrong with it
    info = dataset.load(folder)
    found: dict[str, Any] = {side: dataset.fingerprint(folder, splits) for side, splits in _SIDES.items()}
    sizes = {name: len(split.ids) for name, split in info.splits.items()}
    num_validation = items.num_validation or sizes.get(Split.VALIDATION)
    taken = 0 if Split.VALIDATION in sizes else num_validation or 0
    if (num_train := items.num_train or sizes.get(Split.TRAIN, 0) - taken) > 0:
        found["num_train"] = num_train
    if num_test := items.num_test or sizes.get(Split.TEST):
        found["num_test"] = num_test
    return {**found, "num_validation": num_validation}

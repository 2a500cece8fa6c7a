"""What data a cell needs that may not be here yet: the `needs` hook's part about items. Imports no torch."""

from __future__ import annotations

import msgspec

from orchestrator.costs import Need
from orchestrator.sft import data_cache
from orchestrator.sft.config import ItemsConfig
from orchestrator.stage import Config
from orchestrator.tasks import dataset

FETCH = "orchestrator.sft.data_fetch:fetch"


def needs(config: Config) -> list[Need]:
    """Returns the one data set that a cell's items come from, if it is not made or given on the spot."""
    items = config["items"]
    if items["source"] != "parallel" or items["dir"] is not None:
        return []  # a local folder that is not there is an error when the cell is composed
    task = config["task"]["name"]
    folder = data_cache.folder_of(items)
    if folder is None:
        return [
            Need(
                what=f"data of {task}",
                problem=f"data.{task}_dir is not set, and no release is known",
                advice=f"data.{task}_dir=FOLDER; sweep data describe {task} says what it holds",
            )
        ]
    settings = msgspec.convert(items.to_dict(), ItemsConfig)
    names = " and ".join(
        f"{one.hub_id}@{one.revision[:12]}" for one in (settings.train, settings.test) if one
    )
    is_there = dataset.is_dataset(folder)
    return [
        Need(
            what=f"data of {task}: {names}",
            problem="" if is_there else f"not fetched into {folder}",
            fetch=FETCH,
            arguments={"task": task, "recipe": data_cache.recipe(settings), "folder": str(folder)},
        )
    ]

"""Makes a data set of releases of a hub or of local files; `fetch` is what `sweep prefetch` calls."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.sft import data_hub
from orchestrator.tasks import dataset, importing, mcot
from orchestrator.tasks.dataset import DatasetInfo
from orchestrator.tasks.importing import Choice
from orchestrator.tasks.sources import Source, of_files, open_source

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
MCOT_NUMBERS = (10_000, 200)
"""Training and validation items of mCoT-MATH where no number is given: the study's."""


def fetch(*, task: str, recipe: Mapping[str, Any], folder: str) -> None:
    """Fetches the releases of a recipe and writes the data set that they make; what is there stays.

    Args:
        task: the benchmark.
        recipe: see `data_cache.recipe`.
        folder: where the data set goes.

    Raises:
        InfrastructureError: the hub cannot be reached.
        UserError: what the hub gave is not as it should be.
    """
    out = Path(folder)
    if dataset.is_dataset(out):
        return
    sources = [from_hub(*recipe[side], task=task) for side in ("train", "test")]
    make(task, sources, choice_of(recipe), out)


def choice_of(recipe: Mapping[str, Any]) -> Choice:
    """Returns which items a recipe takes."""
    return Choice(
        languages=tuple(recipe["languages"]),
        num_train=recipe["num_train"],
        num_validation=recipe["num_validation"] or 0,
        num_test=recipe["num_test"],
        seed=recipe["seed"],
    )


def make(
    task: str, sources: Sequence[Source | None], choice: Choice, out: Path, *, force: bool = False
) -> tuple[DatasetInfo, bool]:
    """Builds and writes a data set; returns it, and whether it is new.

    Args:
        task: the benchmark.
        sources: of training, and of test items.
        choice: which items.
        out: the folder.
        force: replace another data set there.

    Raises:
        UserError: a source, or what is in `out`, is not as it should be.
    """
    source, test = sources
    built = importing.build(task, source, test, choice)
    is_new = dataset.write(out, built.info, built.rows, force=force, verify=importing.verify)
    return built.info, is_new


def from_hub(hub_id: str, revision: str, *, task: str) -> Source:
    """Returns a release as a source.

    Raises:
        InfrastructureError: the hub cannot be reached.
        UserError: there is no such release, or nothing known is in it.
    """
    if task != "math":
        raise UserError(f"no release of {task} is known", fix=f"sweep data describe {task}")
    found = data_hub.download(hub_id, revision)
    source = of_files(found.paths, hub_id)
    if source is None:
        raise UserError(f"nothing in {hub_id}@{revision} is known as data of {task}")
    return source._replace(revision=revision, commit=found.commit)


def find(word: str, task: str, revision: str | None) -> Source:
    """Returns the source that a word names: a path, or else a hub id.

    Raises:
        InfrastructureError: the hub cannot be reached.
        UserError: there is no such thing.
    """
    if not Path(word).expanduser().exists() and _HUB_ID.fullmatch(word):
        return from_hub(word, revision or "main", task=task)
    if revision:
        raise UserError(f"{word} is no release of a hub: it has no revision")
    return open_source(Path(word), task)


def import_data(
    task: str,
    source: str | None,
    test: str | None,
    out: Path,
    *,
    languages: Sequence[str] = (),
    num_train: int | None = None,
    num_validation: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    test_revision: str | None = None,
    force: bool = False,
) -> tuple[DatasetInfo, bool]:
    """Imports data as `sweep data import` is asked to.

    Args:
        task: the benchmark.
        source: path or hub id of training items, or of all; None for test items alone.
        test: path or hub id of test items.
        out: the folder to make.
        languages: wanted ones; () for all that a source has.
        num_train: how many, None for the study's of mCoT-MATH, and all of anything else.
        num_validation: likewise.
        num_test: None for all.
        seed: chooses items where there are more.
        revision: of `source`, if that is a hub id.
        test_revision: of `test`.
        force: replace another data set in `out`.

    Raises:
        InfrastructureError: the hub cannot be reached.
        UserError: whatever is wrong with a source or a number.
    """
    first = find(source, task, revision) if source else None
    second = find(test, task, test_revision) if test else None
    defaults = MCOT_NUMBERS if first and first.name == mcot.HUB_ID else (None, 0)
    choice = Choice(
        languages=tuple(languages),
        num_train=defaults[0] if num_train is None else num_train,
        num_validation=(defaults[1] if num_validation is None else num_validation) or 0,
        num_test=num_test,
        seed=seed,
    )
    return make(task, [first, second], choice, out, force=force)

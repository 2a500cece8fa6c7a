"""Data sets of a hub: the files of a release, downloaded once into the hub's own cache.

The one door to `huggingface_hub` for data. Knows no task: which files matter is told from their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import InfrastructureError, UserError

TIMEOUT_S = 10.0


class Download(NamedTuple):
    """The files of a release, and the commit that they are of."""

    paths: tuple[Path, ...]
    commit: str


def download(hub_id: str, revision: str) -> Download:
    """Downloads the data files of a release, or finds them in the hub's cache.

    Raises:
        UserError: the hub has no such data set or revision, or does not give it to us.
        InfrastructureError: the hub cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{hub_id}@{revision}"
    try:
        info = HfApi().dataset_info(hub_id, revision=revision, timeout=TIMEOUT_S)
        commit = str(info.sha)
        names = data_files([entry.rfilename for entry in info.siblings or ()])
        paths = tuple(
            Path(hf_hub_download(hub_id, name, repo_type="dataset", revision=commit)) for name in names
        )
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, GatedRepoError) as error:
        raise UserError(
            f"the hub does not give {where}: {_line(error)}", fix="check id, revision, HF_TOKEN"
        ) from None
    except Exception as error:  # noqa: BLE001 - the hub's client has changed its HTTP library, and its errors, before
        raise InfrastructureError(
            f"the hub cannot be reached for {where}: {_line(error)}",
            fix="on a machine with network: sweep data import TASK SOURCE --out DIR; then data.TASK_dir=DIR",
        ) from None
    if not paths:
        raise UserError(f"no data file in {where}")
    return Download(paths, commit)


def data_files(names: Sequence[str]) -> list[str]:
    """Returns the files that hold a release's rows: with item ids, else MGSM's, else Parquet, else JSON."""
    groups = (
        [name for name in names if name.startswith("lang-id/")],
        [name for name in names if name.startswith("mgsm_") and name.endswith(".tsv")],
        [name for name in names if name.endswith(".parquet")],
        [name for name in names if name.endswith((".json", ".jsonl")) and name != "view.json"],
    )
    return sorted(next((group for group in groups if group), []))


def _line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]

"""Fetch and import data sets, and count the tokens of items as `prepare` does.

Tokens of an item are those of its prompt (with BOS if the tokenizer adds it), its response and an end token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.errors import InfrastructureError, UserError, home_expanded
from orchestrator.registry import TASKS, lookup
from orchestrator.sft.data import is_commit
from orchestrator.tasks import dataset, importing
from orchestrator.tasks.base import Item, Task
from orchestrator.tasks.checking import Measure
from orchestrator.tasks.dataset import DatasetInfo
from orchestrator.tasks.importing import Choice
from orchestrator.tasks.sources import Source, SourceTable, open_source, parquet_tables

if TYPE_CHECKING:
    import tokenizers


TIMEOUT_S = 10.0
"""How long to wait for an answer of the hub, in seconds."""


class Download(NamedTuple):
    """The files of a release or, of Parquet files, its tables, and the commit that they belong to."""

    paths: tuple[Path, ...]
    tables: Sequence[SourceTable]
    commit: str


def download(hub_id: str, revision: str) -> Download:
    """Download the data files of a release, or find them in the hub's cache.

    Raises:
        UserError: the hub has no such data set or revision, or denies access to it.
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
        info = HfApi().dataset_info(hub_id, revision=_whole(hub_id, revision), timeout=TIMEOUT_S)
        # All files are taken from one commit, even if the branch moves during the download.
        commit = str(info.sha)
        names = data_files([entry.rfilename for entry in info.siblings or ()])
        is_parquet = any(name.endswith(".parquet") for name in names)
        tables = parquet_tables(hub_id, commit=commit) if is_parquet else ()
        paths = tuple(
            Path(hf_hub_download(hub_id, name, repo_type="dataset", revision=commit))
            for name in (() if is_parquet else names)
        )
    except UserError:
        raise
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, GatedRepoError) as error:
        raise UserError(
            f"the hub does not give {where}: {_line(error)}", fix="check id, revision, HF_TOKEN"
        ) from None
    except Exception as error:  # noqa: BLE001 - the client's HTTP errors change between versions
        raise InfrastructureError(
            f"the hub cannot be reached for {where}: {_line(error)}",
            fix="on a machine with network: sweep data import TASK SOURCE --out DIR; then data.TASK_dir=DIR",
        ) from None
    if not names:
        raise UserError(f"no data file in {where}")
    return Download(paths, tables, commit)


def _whole(hub_id: str, revision: str) -> str:
    """Return the commit that begins with a revision of 7 to 39 digits; any other revision as it is.

    Raises:
        UserError: there is no such commit, or more than one.
    """
    from huggingface_hub import HfApi

    if not is_commit(revision) or len(revision) == 40:
        return revision
    # Where no hub answers, the client would request the list of commits again for half a minute.
    HfApi().dataset_info(hub_id, timeout=TIMEOUT_S)
    commits = [entry.commit_id for entry in HfApi().list_repo_commits(hub_id, repo_type="dataset")]
    found = [commit for commit in commits if commit.startswith(revision)]
    if len(found) != 1:
        raise UserError(
            f"{len(found)} commits of {hub_id} begin with {revision}",
            allowed=", ".join(commits[:10]),
            fix="a commit's whole hash",
        )
    return found[0]


def data_files(names: Sequence[str]) -> list[str]:
    """Return the files that hold a release's rows.

    The first kind that exists counts: files with item ids, MGSM's files, Parquet files, JSON files.
    """
    groups = (
        [name for name in names if name.startswith("lang-id/")],
        [name for name in names if name.startswith("mgsm_") and name.endswith(".tsv")],
        [name for name in names if name.endswith(".parquet")],
        [name for name in names if name.endswith((".json", ".jsonl")) and name != "view.json"],
    )
    return sorted(next((group for group in groups if group), []))


def _line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def fetch(*, task: str, recipe: Mapping[str, Any], folder: str) -> None:
    """Fetch the releases of a recipe and write the data set made of them. An existing one is kept.

    Args:
        task: the benchmark.
        recipe: see `orchestrator.sft.data.recipe`.
        folder: where the data set goes.

    Raises:
        InfrastructureError: the hub cannot be reached.
        UserError: the hub's data is malformed.
    """
    out = Path(folder)
    if dataset.is_dataset(out):
        return
    sources = [from_hub(*recipe[side], task=task) for side in ("train", "test")]
    make(task, sources, choice_of(recipe), out)


def choice_of(recipe: Mapping[str, Any]) -> Choice:
    """Return which items a recipe takes."""
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
    """Build and write a data set.

    Args:
        task: the benchmark.
        sources: of training items, and of test items.
        choice: which items to take.
        out: the folder.
        force: replace another data set there.

    Returns:
        The data set's description, and whether it is new.

    Raises:
        UserError: a source, or the content of `out`, is not valid.
    """
    source, test = sources
    built = importing.build(task, source, test, choice)
    is_new = dataset.write(out, built.info, built.rows, force=force, verify=importing.verify)
    return built.info, is_new


def from_hub(hub_id: str, revision: str, *, task: str) -> Source:
    """Return a release as a source.

    Raises:
        InfrastructureError: the hub cannot be reached.
        UserError: there is no such release, or it has no file of a known form.
    """
    benchmark: Task = lookup(TASKS, task, kind="task")
    if not benchmark.releases:
        raise UserError(f"no release of {task} is known", fix=f"sweep data describe {task}")
    found = download(hub_id, revision)
    source = benchmark.release(found.paths, hub_id, found.tables)
    if source is None:
        raise UserError(f"nothing in {hub_id}@{revision} is known as data of {task}")
    return source._replace(revision=revision, commit=found.commit)


def find(word: str, task: str, revision: str | None) -> Source:
    """Return the source with a name: an existing path, or else a hub id.

    Raises:
        InfrastructureError: the hub cannot be reached.
        UserError: there is no such source.
    """
    if not home_expanded(word).exists() and _HUB_ID.fullmatch(word):
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
    """Import data as the arguments of `sweep data import` describe.

    Args:
        task: the benchmark.
        source: path or hub id of training items, or of all; None for test items alone.
        test: path or hub id of test items.
        out: the folder to make.
        languages: to import; () for all that a source has.
        num_train: number of items; None for as many as the task takes of that release, else all.
        num_validation: likewise; None for as many as the task takes of that release, else none.
        num_test: number of items; None for all.
        seed: chooses items if there are more.
        revision: of `source`, if that is a hub id.
        test_revision: of `test`.
        force: replace another data set in `out`.

    Raises:
        InfrastructureError: the hub cannot be reached.
        UserError: a source or a number is not valid.
    """
    first = find(source, task, revision) if source else None
    second = find(test, task, test_revision) if test else None
    releases = lookup(TASKS, task, kind="task").releases
    defaults = releases.get(first.name, (None, 0)) if first else (None, 0)
    choice = Choice(
        languages=tuple(languages),
        num_train=defaults[0] if num_train is None else num_train,
        num_validation=(defaults[1] if num_validation is None else num_validation) or 0,
        num_test=num_test,
        seed=seed,
    )
    return make(task, [first, second], choice, out, force=force)


KINDS = "a tokenizer.json, a folder with one, or a hub id in reach"
"""What may name a tokenizer, for messages."""


def measures(names: Sequence[str]) -> dict[str, Measure]:
    """Return short name to token counter of some tokenizers.

    Args:
        names: each a `tokenizer.json`, a folder with a tokenizer, or a hub id.

    Raises:
        UserError: there is no tokenizer.
    """
    short = [_short(name) for name in names]
    return {
        # Two folders may have the same last part: then each is listed by its full name.
        name if short.count(label) > 1 else label: _measure(name)
        for name, label in zip(names, short, strict=True)
    }


def _short(name: str) -> str:
    """Return the last part of a tokenizer's name, or the folder of a `tokenizer.json`."""
    path = Path(name)
    return path.parent.name if path.name == "tokenizer.json" and path.parent.name else path.name


def _hub_answers() -> bool:
    """Return whether the hub can be reached, within a few seconds."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=TIMEOUT_S)
    except Exception:  # noqa: BLE001 - any error means that there is no hub
        return False
    return True


def longest_prompt(folder: Path, prompts: Sequence[str]) -> int:
    """Return the tokens of the longest of some prompts, as `evaluate` counts them; 0 for no prompts.

    Args:
        folder: of a model with its tokenizer.
        prompts: texts of the prompts.

    Raises:
        UserError: there is no tokenizer.
    """
    file = folder / "tokenizer.json"
    tokenizer = _tokenizer(str(file if file.exists() else folder))
    return max((len(found.ids) for found in tokenizer.encode_batch(list(prompts))), default=0)


def _tokenizer(name: str) -> tokenizers.Tokenizer:
    """Return a tokenizer that neither truncates nor pads.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    import tokenizers

    path = home_expanded(name)
    if not path.exists() and (name.count("/") != 1 or name.startswith((".", "~", "/"))):
        raise UserError(f"no tokenizer {name!r}", allowed=KINDS)
    try:
        if path.is_file():
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        else:
            import transformers  # slow to import, and not needed for a file

            cached = not path.exists() and not _hub_answers()  # the client would retry for 30 s
            loaded = transformers.AutoTokenizer.from_pretrained(
                name, local_files_only=cached, trust_remote_code=False
            )
            tokenizer = loaded.backend_tokenizer
    except Exception as error:  # noqa: BLE001 - the libraries raise errors of many classes
        message = str(error).strip().split("\n")[0]
        raise UserError(
            f"no tokenizer {name!r}: {message}",
            allowed=KINDS,
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _measure(name: str) -> Measure:
    """Return a function that counts the tokens of items."""
    tokenizer = _tokenizer(name)
    special = tokenizer.num_special_tokens_to_add(False)

    def measure(items: Sequence[Item]) -> list[int]:
        prompts = tokenizer.encode_batch([item.prompt for item in items], add_special_tokens=False)
        responses = tokenizer.encode_batch([item.response for item in items], add_special_tokens=False)
        # Special tokens of a prompt, such as BOS, and one end token after the response.
        return [len(p.ids) + len(r.ids) + special + 1 for p, r in zip(prompts, responses, strict=True)]

    return measure

"""The on-disk format of parallel task data: `dataset.json` and one file per split and language.

::

    DIR/dataset.json                 task, origin of the rows, and the ids of each split
    DIR/train/<language>.jsonl       one item a line, the same ids in every language
    DIR/validation/<language>.jsonl  optional; without it, validation items are set aside from train
    DIR/test/<language>.jsonl

This module reads the description, computes a fingerprint of the content, and writes a folder as a whole or
not at all. The fields of a line belong to the task.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.errors import UserError, counted, home_expanded
from orchestrator.manifest import File as ManifestFile
from orchestrator.manifest import Stamp, damage, file_digest, fsync_path, fsync_tree, scan, stamps
from orchestrator.registry import TASKS, lookup
from orchestrator.tasks.base import LANGUAGES, Split, Strict

FILE = "dataset.json"
FORMAT = 1


class SplitInfo(Strict, frozen=True, kw_only=True):
    """The languages of a split, and its ids in the order of the files."""

    languages: tuple[str, ...]
    ids: tuple[str, ...]


class Origin(Strict, frozen=True, kw_only=True):
    """The origin of rows.

    Attributes:
        source: the hub id, or the name of the file or folder. A path would mean nothing on another machine.
        form: the form that the source was read as: mcot, mgsm, worked or api-bank.
        revision: the revision that was requested from the hub.
        commit: the commit that the hub returned for it.
        sha256: map from name to digest of local files.
        note: a note for readers, such as how rows were aligned.
    """

    source: str
    form: str
    revision: str | None = None
    commit: str | None = None
    sha256: dict[str, str] = {}
    note: str = ""


class DatasetInfo(Strict, frozen=True, kw_only=True):
    """The content of `dataset.json`.

    Attributes:
        task: the benchmark.
        splits: map from split to its languages and ids.
        origins: map from split to the origin of its rows.
        seed: the seed that chose the ids; None if all were taken.
        left_out: map from reason to the number of ids that were left out in all languages.
        files: path, size and sha-256 of each file as written.
        format: the version of this format.
    """

    task: str
    splits: dict[str, SplitInfo]
    origins: dict[str, Origin] = {}
    seed: int | None = None
    left_out: dict[str, int] = {}
    files: tuple[ManifestFile, ...] = ()
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format {self.format}; this version of Polysweep reads {FORMAT}")
        for name, split in self.splits.items():
            if name not in tuple(Split):
                raise ValueError(f"unknown split {name!r}")
            if unknown := [language for language in split.languages if language not in LANGUAGES]:
                raise ValueError(f"unknown language {unknown[0]!r} in split {name}")


def is_dataset(folder: Path) -> bool:
    """Return whether a folder is in this format."""
    return (folder / FILE).is_file()


def path_of(folder: Path, split: str, language: str) -> Path:
    """Return the path of the file that holds a split and language."""
    return folder / split / f"{language}.jsonl"


def load(folder: Path) -> DatasetInfo:
    """Return the description of a data set.

    Raises:
        UserError: there is no description, or it is malformed.
    """
    path = folder / FILE
    try:
        stat = path.stat()
        # A description lists every id, so parsing is slow. Time and size are part of the cache's key, so
        # that a file that was rewritten is read again.
        return _load(path, stat.st_mtime_ns, stat.st_size)
    except FileNotFoundError:
        what = f"{folder} is no data set: it has no {FILE}" if folder.is_dir() else f"no folder {folder}"
        raise UserError(what, fix="sweep data describe describes one, sweep data import makes one") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


@functools.lru_cache(maxsize=8)
def _load(path: Path, mtime_ns: int, size: int) -> DatasetInfo:
    try:
        return msgspec.json.decode(path.read_bytes(), type=DatasetInfo)
    except msgspec.DecodeError as error:
        raise UserError(f"{FILE} is not as it should be: {error}", where=str(path)) from None


def fingerprint(folder: Path, splits: Iterable[str]) -> str:
    """Return a digest of some splits: of their ids and the content of their files, never of their path.

    Raises:
        UserError: the folder is no data set or cannot be read.
    """
    info = load(folder)
    wanted = tuple(split for split in Split if split in tuple(splits) and split in info.splits)
    ids = tuple(info.splits[split].ids for split in wanted)
    there = folder.resolve()
    try:
        return _fingerprint(there, wanted, ids, tuple(stamps(there / split) for split in wanted))
    except OSError as error:
        raise UserError(f"{there} cannot be read: {error.strerror}") from None


@functools.lru_cache(maxsize=64)
def _fingerprint(
    folder: Path,
    splits: tuple[str, ...],
    ids: tuple[tuple[str, ...], ...],
    stamped: tuple[tuple[Stamp, ...], ...],
) -> str:
    """Return the digest. It is cached because it reads every file; `stamped` is part of the key only."""
    files = [
        (f"{split}/{file.path}", file.size, file.sha256)
        for split in splits
        for file in (scan(folder / split) if (folder / split).is_dir() else ())
    ]
    text = json.dumps([splits, ids, files], ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def changes(folder: Path, info: DatasetInfo) -> str | None:
    """Return a text that names the file which differs from what was written, or None."""
    return damage(folder, info.files)


Rows = Mapping[str, Mapping[str, Sequence[Mapping[str, str]]]]
"""Map from split to language to lines."""


def write(
    out: Path, info: DatasetInfo, rows: Rows, *, force: bool = False, verify: Callable[[Path], None]
) -> bool:
    """Write a data set next to its destination, verify it there, and rename it into place.

    A reader therefore sees either no data set or a whole one, and a failed verification leaves nothing
    behind.

    Args:
        out: the destination folder. A data set with the same content stays as it is.
        info: the description; `files` is filled in here.
        rows: the lines.
        force: replace a data set with other content. Only a data set is ever replaced.
        verify: reads the new folder back and raises if it is not as it should be.

    Returns:
        Whether anything was written: False if the same data set was there already.

    Raises:
        UserError: the destination holds something else.
    """
    out = home_expanded(out)
    if out.exists() and not is_dataset(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and is no data set", fix="--out NEW_FOLDER")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        for split, languages in rows.items():
            (temporary / split).mkdir(parents=True)
            for language, lines in languages.items():
                _write_lines(path_of(temporary, split, language), lines)
        whole = msgspec.structs.replace(info, files=scan(temporary))
        (temporary / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n")
        # The rename must not become durable before the files are: a crash would leave a data set with empty
        # files.
        fsync_tree(temporary)
        verify(temporary)
        return _move(temporary, out, force=force)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_lines(path: Path, lines: Sequence[Mapping[str, str]]) -> None:
    with path.open("wb") as stream:
        stream.writelines(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def _move(temporary: Path, out: Path, *, force: bool) -> bool:
    """Rename a new data set into place, and return whether it was needed.

    Raises:
        UserError: another data set is there, and `force` is False.
    """
    if is_dataset(out):
        if file_digest(out / FILE) == file_digest(temporary / FILE) and not changes(out, load(temporary)):
            return False
        if not force:
            raise UserError(
                f"another data set is in {out}", fix="--force replaces it, --out names another folder"
            )
        # A folder cannot be renamed onto one that has files, so the old one moves away first.
        aside = temporary.with_name(f"{temporary.name}.old")
        out.rename(aside)
        temporary.rename(out)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        try:
            temporary.rename(out)  # works if the destination is absent or an empty folder
        except OSError:
            if not is_dataset(out):
                raise
            return _move(temporary, out, force=force)  # another process has just written one
    fsync_path(out.parent)
    return True


def summary(info: DatasetInfo) -> list[tuple[Any, ...]]:
    """Return a row for each split: its name, its number of ids, its languages, and its origin."""
    rows = []
    for name in Split:
        if name in info.splits:
            split, origin = info.splits[name], info.origins.get(name)
            came = (
                f"{origin.source}{f'@{origin.commit or origin.revision}' if origin.revision else ''}"
                if origin
                else "-"
            )
            rows.append((str(name), len(split.ids), ",".join(split.languages), came))
    return rows


def describe(task: str) -> str:
    """Return the help text about the data of a task."""
    description: str = lookup(TASKS, task, kind="task").description
    return f"{Path(__file__).with_suffix('.txt').read_text(encoding='utf-8')}\n{description}"


def setting(task: str) -> str:
    """Return the setting of a sweep that names the folder of a task's data set."""
    return f"data.{task}_dir" if task in TASKS else f"data.tasks.{task}.dir"


def copies_of_english(split: str, lines: Mapping[str, Sequence[Mapping[str, str]]]) -> Iterator[str]:
    """Yield a note for each language of which more than a tenth of the items are those of English.

    Args:
        split: name of the split.
        lines: language to the lines of its items.
    """
    english = {line["id"]: line for line in lines.get("en", ())}
    for language in sorted(lines.keys() - {"en"}):
        same = sum(line == english.get(line["id"]) for line in lines[language])
        if same > len(lines[language]) / 10:
            yield f"{counted(same, f'{split} item')} of {language} word for word as in en: not translated?"

"""What a bundle holds of a store: the records of a sweep, the small files of its products, and its code.

The files under ``store/`` have the keys of a store, so that a reader opens them as one. Paths of the machine
are replaced by words such as ``<store>``, except in what a digest covers: the sealed sweep and its products.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec

from orchestrator import formats
from orchestrator.api.requests import plan_code
from orchestrator.api.state import SweepState
from orchestrator.bundles.zipped import clashes, name_fault
from orchestrator.core.evidence import remaining_files
from orchestrator.core.records import Code, CodeManifest, Done, Request
from orchestrator.core.secrets import form_of, known_values, lines_with
from orchestrator.core.sweep import StageInstance
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.manifest import File
from orchestrator.store import code as snapshots
from orchestrator.store import layout

STORE, CODE = "store", "code"
"""Folders of a bundle: records and products under their keys of the store, and the code snapshot."""
PREDICTIONS = "predictions.parquet"
_TEXTS = frozenset({".csv", ".json", ".jsonl", ".md", ".txt", ".yaml", ".yml"})
MAX_TEXT_BYTES = 16_000_000
"""Largest text file of a product that a bundle without weights holds."""
_SETTINGS = frozenset({".cfg", ".conf", ".env", ".ini", ".json", ".sh", ".toml", ".yaml", ".yml"})

Content = dict[str, Path | bytes]
"""Name of a file in the bundle to its content, or to a file with it."""


class Omission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle does not hold, and why."""

    what: str
    why: str


class Held(NamedTuple):
    """What a bundle holds of a store.

    Attributes:
        content: the files.
        code: digest of the code snapshot; "" without one.
        left_out: what is not there.
        num_segments: segments of trainings that can be computed again.
    """

    content: Content
    code: str
    left_out: list[Omission]
    num_segments: int


def content_of(view: SweepState, *, weights: bool, replayable: bool = False) -> Held:
    """Return the files of a sweep that a bundle holds.

    Args:
        view: the revision.
        weights: whether to take all files of products that are still there.
        replayable: whether to take what the segments of trainings need that can be computed again.

    Raises:
        UserError: a record or a product holds a credential.
        InfrastructureError: a file of a product is not there.
    """
    content: Content = {}
    left_out: list[Omission] = []
    words = _Words(view)
    for key, data in _records(view):
        content[f"{STORE}/{key}"] = words.without_paths(key, data)
    for instance, done in products(view):
        content |= _product(view, instance, done, weights=weights)
    num_segments = 0
    if replayable:
        num_segments, more = _segments(view)
        content |= more
    _refuse_secrets(content)
    code, files = _code(view, left_out)
    content |= files
    for name in [name for name in content if name_fault(name)] + clashes(sorted(content)):
        if not name.startswith(f"{CODE}/"):
            raise UserError(f"{name!r} cannot stand in a bundle: {name_fault(name) or 'case does not count'}")
        content.pop(name, None)
        left_out.append(Omission(name, "its name is none on every system"))
    return Held(content, code, left_out, num_segments)


def products(view: SweepState) -> Iterator[tuple[StageInstance, Done]]:
    """Yield the stages of a revision that are done, with the records of their products."""
    for digest, instance in view.sweep.stages.items():
        if (done := view.reader.evidence(digest).done) is not None:
            yield instance, done


def is_small(file: File) -> bool:
    """Return whether every bundle holds a file of a product: predictions, and texts that are not large."""
    path = PurePosixPath(file.path)
    return path.name == PREDICTIONS or (path.suffix in _TEXTS and file.size <= MAX_TEXT_BYTES)


def is_text(name: str) -> bool:
    """Return whether a file of a bundle is a record, a text or predictions: all that is read of it."""
    path = PurePosixPath(name)
    return path.name == PREDICTIONS or path.suffix in _TEXTS


def _records(view: SweepState) -> Iterator[tuple[str, bytes]]:
    """Yield key and content of the records of all revisions of a sweep."""
    objects, name = view.ledger.objects, view.sweep.name
    instances = dict(view.instances)
    for number in view.ledger.revision_numbers(name):
        instances |= view.ledger.revision(name, number).sweep.stages
    keys = [layout.STORE]
    for folder in ("", "/requests", "/workers"):
        prefix = f"{layout.revisions(name)}{folder}"
        keys += [f"{prefix}/{path}" for path in objects.list(prefix).files]
    trees = [f"{layout.revisions(name)}{folder}" for folder in ("/submissions", "/decisions")]
    keys += [f"{prefix}/{path}" for prefix, tree in objects.trees(trees).items() for path in tree]
    attempts = {layout.attempts(instance): instance for instance in instances.values()}
    keys += [f"{prefix}/{path}" for prefix, tree in objects.trees(attempts).items() for path in tree]
    for stage in dict.fromkeys(instance.stage for instance in instances.values()):
        indexes = [layout.done_index(stage), layout.void_index(stage)]
        indexes += [f"retired/{stage}/{policy}" for policy in objects.list(f"retired/{stage}").folders]
        for index in indexes:
            names = objects.list(index).files
            keys += [f"{index}/{name}" for name in names if name.partition(".")[0] in instances]
    for instance, done in products(view):
        keys += [layout.metrics(instance, done.attempt)]
    wanted = sorted({key for key in keys if key.endswith((".json", ".jsonl"))})
    for key, data in objects.get_many(wanted).items():
        if data is not None:
            yield key, data


def _product(view: SweepState, instance: StageInstance, done: Done, *, weights: bool) -> Content:
    """Return the files of a product that the bundle holds."""
    retired = view.ledger.retired(instance, done.generation)
    there = [file for file in remaining_files(done.files, retired) if weights or is_small(file)]
    key = layout.output(instance, done.attempt)
    folder = view.ledger.objects.fetch(key, there) if there else Path()
    for file in there:
        if not (folder / file.path).is_file():
            raise InfrastructureError(f"{file.path} of {instance.name} is not there", where=str(folder))
    return {f"{STORE}/{key}/{file.path}": folder / file.path for file in there}


def segment_facts(data: bytes) -> dict[str, Any] | None:
    """Return what ``segments.json`` holds; None if it cannot be decoded, as where it was cut short."""
    try:
        facts: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
        facts["segments"] = msgspec.convert(facts.get("segments"), list[tuple[int, int]])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return facts


def _segments(view: SweepState) -> tuple[int, Content]:
    """Return the number of kept segments, and their checkpoints with the products that the stages took."""
    content: Content = {}
    number = 0
    made = {instance.digest: (instance, done) for instance, done in products(view)}
    for instance, done in list(made.values()):
        key = f"{layout.payload(instance, done.attempt)}/{layout.AUDIT}"
        folder = view.ledger.objects.folder(key)
        manifests = list(folder.glob("[0-9]*/manifest.json"))
        if not manifests or not (folder / layout.SEGMENTS).is_file():
            continue
        kept = {int(path.parent.name) for path in manifests}
        # An earlier attempt may have been killed while it wrote the file. Nothing was kept then.
        if (facts := segment_facts((folder / layout.SEGMENTS).read_bytes())) is None:
            continue
        segments = facts["segments"]
        number += sum(kept.issuperset(segment) for segment in segments)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        content |= {f"{STORE}/{key}/{path.relative_to(folder).as_posix()}": path for path in paths}
        for taken in instance.inputs:
            if taken.digest in made:
                content |= _product(view, *made[taken.digest], weights=True)
    return number, content


# Paths and secrets


class _Words:
    """The words that stand for folders of this machine in the records of a bundle."""

    def __init__(self, view: SweepState) -> None:
        places: dict[str, str] = {}
        for request in view.requests:
            executable = str(request.provenance.get("executable") or "")
            places.setdefault(request.folder, "<folder>")
            places.setdefault(str(Path(executable).parent.parent) if executable else "", "<python>")
            for path in request.import_paths:
                places.setdefault(path, "<code>")
        places[view.ledger.objects.url] = "<store>"
        places.setdefault(str(Path.home()), "<home>")
        named = [place for place in places if place.startswith("/") and place.strip("/")]
        self._places = {place.encode(): places[place].encode() for place in named}
        # The longest first: a store often lies in the working folder.
        every = b"|".join(re.escape(place) for place in sorted(self._places, key=len, reverse=True))
        self._pattern = re.compile(b"(?<![\\w.-])(?:" + every + b")(?![\\w.-])")

    def without_paths(self, key: str, data: bytes) -> bytes:
        """Return a record with words in place of folders, except in what a digest covers."""
        if not self._places or key.startswith(("done/", "void/", "retired/")) or key.endswith("/spec.json"):
            return data
        if not re.fullmatch(r"sweeps/[^/]+/[0-9]+\.json", key):
            return self._pattern.sub(self._word, data)
        tree: dict[str, Any] = msgspec.json.decode(data)
        other = {name: value for name, value in tree.items() if name != "sweep"}
        tree |= msgspec.json.decode(self._pattern.sub(self._word, msgspec.json.encode(other)))
        return msgspec.json.encode(tree)

    def _word(self, found: re.Match[bytes]) -> bytes:
        return self._places[found[0]]


def _refuse_secrets(content: Mapping[str, Path | bytes]) -> None:
    """Raise if a record or a text of a product holds a credential.

    Raises:
        UserError: one does.
    """
    known = known_values(os.environ)
    for name, held in content.items():
        if PurePosixPath(name).suffix not in (*_TEXTS, ".parquet"):
            continue
        for text in _texts(name, held):
            reason = form_of(text) or ("a credential of the environment" if _has(text, known) else "")
            if reason:
                raise UserError(
                    f"{name} holds what looks like a secret ({reason})",
                    allowed="a bundle is for strangers, and holds none",
                    fix="sweep discard the stage that wrote it, and run it again without the secret",
                )


def _texts(name: str, held: Path | bytes) -> Iterator[str]:
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        assert isinstance(held, Path)
        table = pyarrow.parquet.read_table(held)
        for column in table.columns:
            if pyarrow.types.is_string(column.type):
                yield "\n".join(text for text in column.unique().to_pylist() if text)
    else:
        yield (held if isinstance(held, bytes) else held.read_bytes()).decode(errors="replace")


def _has(text: str, known: Iterable[str]) -> bool:
    return any(value in text for value in known)


# Code


def _code(view: SweepState, left_out: list[Omission]) -> tuple[str, Content]:
    """Return digest and files of the code that the last launch ran, without what is no file for strangers."""
    asked = [
        each for each in view.requests if each.verb in ("launch", "rerun") and each.revision == view.number
    ]
    if not asked:
        return "", {}
    objects = view.ledger.objects
    code = asked[-1].code
    if code is not None:
        if problem := snapshots.damage(objects, code.digest):
            left_out.append(Omission(CODE, f"the snapshot is not whole: {problem}"))
            return "", {}
        files = formats.decode(objects.get(layout.code_record(code.digest)) or b"", CodeManifest).files
        root = snapshots.folder(objects, code.digest)
        read: Content = {f.path: root / f.path for f in files if f.kind in ("file", "exec")}
    else:
        try:
            planned = plan_code(objects, view.sweep, asked[-1].import_paths)
        except UserError as error:
            left_out.append(Omission(CODE, error.what))
            return "", {}
        if not _is_same(planned.code, asked[-1]):
            left_out.append(
                Omission(CODE, "a local launch keeps no snapshot, and its checkout was edited since")
            )
            return "", {}
        # Bundles that lie in the checkout are none of its code.
        items = [item for item in planned.items if not item.file.path.endswith(".zip")]
        files = tuple(item.file for item in items)
        code = msgspec.structs.replace(planned.code, digest=snapshots.digest_of(files))
        read = {item.file.path: item.data for item in items if item.file.kind in ("file", "exec")}
    content: Content = {f"{CODE}/{code.digest}.json": snapshots.record_of(files)}
    for path, data in read.items():
        name = f"{CODE}/{code.digest}/{path}"
        if reason := _secret_line(path, data if isinstance(data, bytes) else data.read_bytes()):
            left_out.append(Omission(name, f"it holds what looks like a secret: {reason}"))
        else:
            content[name] = data
    left_out += [
        Omission(f"{CODE}/{code.digest}/{f.path}", "it is a link") for f in files if f.kind == "link"
    ]
    return code.digest, content


def _is_same(code: Code, request: Request) -> bool:
    """Return whether code is that of a launch: the recorded digest is of the checkout or the snapshot."""
    return request.provenance.get("code") in (code.version, code.digest)


def _secret_line(path: str, data: bytes) -> str:
    # This package is published, and its patterns of credentials look like some.
    if b"\0" in data or len(data) > MAX_TEXT_BYTES or path.startswith(f"{layout.CODE_PACKAGE}/"):
        return ""
    place = PurePosixPath(path)
    by_name = bool({place.suffix, place.name} & _SETTINGS)
    lines: Sequence[tuple[int, str]] = [*lines_with(data.decode(errors="replace"), by_name=by_name)]
    return f"line {lines[0][0]}, {lines[0][1]}" if lines else ""

"""Forgeries of a bundle with all digests recomputed, often with all that follows from other records too."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import pyarrow.parquet

from orchestrator.core.records import Revision
from orchestrator.sft.predictions import PREDICTIONS, Prediction
from orchestrator.store.ledger import content_digest
from orchestrator.tasks.base import Item
from orchestrator.tasks.math import MATH
from tests.bundles import graded
from tests.bundles.forging import LEFT_ALONE, Caught, Files, Forgery, closed, followed, packed


class Records:
    """The records of a bundle, to be changed."""

    def __init__(self, files: Files) -> None:
        self.files = dict(files)

    def find(self, part: str) -> list[str]:
        return sorted(name for name in self.files if part in name)

    def edit(self, name: str, change: Callable[[Any], object]) -> None:
        tree = msgspec.json.decode(self.files[name])
        change(tree)
        self.files[name] = msgspec.json.encode(tree)

    def evaluated(self) -> list[str]:
        """The records of products of trained cells with predictions."""
        names = self.find("store/done/evaluate/")
        return [
            n for n in names if msgspec.json.decode(self.files[n])["rows"][0]["selected_step"] is not None
        ]

    def predictions(self, done: str) -> tuple[str, list[Prediction]]:
        digest = done.split("/")[-1].partition(".")[0]
        (name,) = self.find(f"payload/evaluate/{digest}/1/output/{PREDICTIONS}")
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(self.files[name]))
        return name, [Prediction(**row) for row in table.to_pylist()]

    def answer(self, done: str, kept: list[Prediction], *, rows: bool) -> None:
        """Keep other predictions, with the digests that fit, and the rows if wanted."""
        name, _ = self.predictions(done)
        self.replace(done, name, graded.table_of(kept))
        if rows:
            digest = done.split("/")[-1].partition(".")[0]
            reads = self.revision()["sweep"]["nodes"][digest]["reads"]
            measured = msgspec.json.decode(self.files[done])["rows"][0]
            made = [{**row, "family": measured["family"]} for row in graded.rows_of(reads, kept)]
            self.edit(done, lambda tree: tree.update(rows=made))

    def replace(self, done: str, name: str, data: bytes) -> None:
        """Put other content into a file of a product, and its digest into the record."""
        self.files[name] = data
        path = name.partition("/output/")[2]

        def change(tree: Any) -> None:
            for file in tree["files"]:
                if file["path"] == path:
                    file.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())

        self.edit(done, change)

    def revision(self) -> Any:
        return msgspec.json.decode(self.files["store/sweeps/graded/1.json"])

    def seal(self, change: Callable[[Any], object]) -> None:
        """Change the sealed sweep, and the digest of its content."""

        def both(tree: Any) -> None:
            change(tree["sweep"])
            sealed = msgspec.convert(tree, Revision)
            tree["content"] = content_digest(sealed.sweep)

        self.edit("store/sweeps/graded/1.json", both)


def _derived(name: str, old: bytes, new: bytes) -> Callable[[Files, random.Random], bytes]:
    """Another text in a file that follows from the records, with all digests recomputed."""

    def forge(files: Files, rng: random.Random) -> bytes:
        (found,) = [each for each in files if each.endswith(name)]
        assert old in files[found]
        return packed(closed({**files, found: files[found].replace(old, new, 1)}))

    return forge


def _recorded(
    change: Callable[[Records, random.Random], object], *, careful: bool = True
) -> Callable[[Files, random.Random], bytes]:
    """Other records, with all digests recomputed, and by a careful forger all that follows from them."""

    def forge(files: Files, rng: random.Random) -> bytes:
        records = Records(files)
        change(records, rng)
        return packed(followed(records.files) if careful else closed(records.files))

    return forge


def _row(**values: Any) -> Callable[[Records, random.Random], object]:
    """Other values in a row of a trained cell."""

    def change(records: Records, rng: random.Random) -> None:
        done = rng.choice(records.evaluated())
        records.edit(done, lambda tree: tree["rows"][-1].update(values))

    return change


def _kept(
    change: Callable[[list[Prediction], random.Random], list[Prediction]], *, rows: bool = True
) -> Callable[[Records, random.Random], object]:
    """Other predictions of a trained cell, and the rows that they count to."""

    def apply(records: Records, rng: random.Random) -> None:
        done = rng.choice(records.evaluated())
        _, kept = records.predictions(done)
        records.answer(done, change(kept, rng), rows=rows)

    return apply


def _one(kept: list[Prediction], rng: random.Random, **values: Any) -> list[Prediction]:
    """The predictions with other values in one wrong answer to a test item."""
    at = rng.choice([n for n, one in enumerate(kept) if one.split == "test" and not one.correct])
    return [one._replace(**values) if n == at else one for n, one in enumerate(kept)]


def _all_right(kept: list[Prediction], rng: random.Random) -> list[Prediction]:
    """Right answers to all test items: what a better model would have generated."""
    answers = {(item.language, item.id): item.response for item in _items(kept)}
    return [
        one._replace(generated=answers[one.language, one.item_id], correct=True)
        if one.split == "test"
        else one
        for one in kept
    ]


def _items(kept: list[Prediction]) -> Iterator[Item]:
    for language in {one.language for one in kept if one.split == "test"}:
        number = sum(one.split == "test" and one.language == language for one in kept)
        yield from MATH.generate("test", language, num_items=number)


def _record(part: str, **values: Any) -> Callable[[Records, random.Random], object]:
    def change(records: Records, rng: random.Random) -> None:
        records.edit(rng.choice(records.find(part)), lambda tree: tree.update(values))

    return change


def _without(part: str) -> Callable[[Records, random.Random], object]:
    return lambda records, rng: records.files.pop(rng.choice(records.find(part)))


def _reads(key: str, value: Any) -> Callable[[Records, random.Random], object]:
    """Another setting of the stages that read it, as if they had run with it."""

    def change(tree: Any) -> None:
        for node in tree["nodes"].values():
            if key in node["reads"]:
                node["reads"][key] = value

    return lambda records, rng: records.seal(change)


def _fewer_cells(records: Records, rng: random.Random) -> None:
    """One cell less, as if it had never been: a sweep may have any cells."""
    records.seal(lambda tree: tree["cells"].pop())
    used = {digest for cell in records.revision()["sweep"]["cells"] for digest in cell["chain"]}
    records.seal(lambda tree: [tree["nodes"].pop(d) for d in [*tree["nodes"]] if d not in used])
    for name in records.find("store/"):
        parts = name.replace(".", "/").split("/")
        if any(len(part) == 64 and part not in used for part in parts):
            del records.files[name]


def _stranger(records: Records, rng: random.Random) -> None:
    records.files["store/done/evaluate/" + "0" * 64 + ".1.json"] = records.files[records.evaluated()[0]]


def _weights(records: Records, rng: random.Random) -> None:
    name = rng.choice(records.find("model.safetensors"))
    digest = name.split("/")[3]
    records.replace(f"store/done/train/{digest}.1.json", name, rng.randbytes(2000))


def _summary(**values: Any) -> Callable[[Records, random.Random], object]:
    """Another summary of a training, with its digest in the product's record."""

    def change(records: Records, rng: random.Random) -> None:
        name = rng.choice(records.find("training.json"))
        tree = {**msgspec.json.decode(records.files[name]), **values}
        records.replace(f"store/done/train/{name.split('/')[3]}.1.json", name, msgspec.json.encode(tree))

    return change


RECOMPUTED: Mapping[str, tuple[Caught, Callable[[Files, random.Random], bytes]]] = {
    # Numbers that the records do not give.
    "an accuracy in rows.json": ("recomputation", _derived("rows.json", b'"accuracy":0.', b'"accuracy":0.9')),
    "a count in rows.json": ("recomputation", _derived("rows.json", b'"num_correct":', b'"num_correct":1')),
    "an accuracy in rows.csv": ("recomputation", _derived("rows.csv", b"0.5", b"0.9")),
    "a row less in rows.json": ("recomputation", _derived("rows.json", b"\n{", b"\n")),
    "a number in a table": ("recomputation", _derived("accuracy.md", b"50.0", b"80.0")),
    "the last digit of a number in a table": ("recomputation", _derived("accuracy.md", b"50.0", b"50.1")),
    "an interval in a table": ("recomputation", _derived("accuracy.md", b" [", b" [1")),
    "an action in the crate": ("recomputation", _derived("metadata.json", b'"CreateAction"', b'"Action"')),
    "a sentence in a report": (
        "recomputation",
        _derived("accuracy.md", b"other: the rest", b"other: better"),
    ),
    "the text of a claim": ("recomputation", _derived("claims.json", b'"text": "', b'"text": "9')),
    "the value of a claim": (
        "recomputation",
        _derived("claims.json", b'"tolerance": 0.05', b'"tolerance": 0.5'),
    ),
    "the verdict of a claim": ("recomputation", _derived("claims.json", b"from predictions", b"from rows")),
    "the formula of a claim": (
        "recomputation",
        _derived("claims.json", b"mean over cells", b"best of cells"),
    ),
    "the cells of a claim": (
        "recomputation",
        _derived("claims.json", b'"cells": [\n    0', b'"cells": [\n    1'),
    ),
    # Rows that predictions do not give, and all that follows from these rows.
    "a row's accuracy": ("recomputation", _recorded(_row(accuracy=0.99))),
    "a row's right answers": ("recomputation", _recorded(_row(num_correct=6, accuracy=1.0))),
    "a row's number of items": ("recomputation", _recorded(_row(num_items=3))),
    "a row's cut off answers": ("recomputation", _recorded(_row(num_truncated=5))),
    "a row's selected epoch": ("recomputation", _recorded(_row(selected_step=7))),
    "a row's language": ("recomputation", _recorded(_row(eval_language="fr"))),
    "a row's split": ("recomputation", _recorded(_row(split="train"))),
    "a row's mixture": ("recomputation", _recorded(_row(languages="en,ja"))),
    "a row's model": ("recomputation", _recorded(_row(model="better"))),
    "a row's seed": ("recomputation", _recorded(_row(seed=5))),
    "a row's training time": ("recomputation", _recorded(_row(train_seconds=0.1))),
    "a row's tokens": ("recomputation", _recorded(_row(train_tokens=9_000_000))),
    "a row's memory": ("recomputation", _recorded(_row(peak_memory_gib=0.01))),
    "a row is missing": (
        "recomputation",
        _recorded(lambda r, rng: r.edit(rng.choice(r.evaluated()), lambda tree: tree["rows"].pop())),
    ),
    # Predictions that the scorer does not give.
    "a wrong answer counts as right": (
        "recomputation",
        _recorded(_kept(lambda k, r: _one(k, r, correct=True))),
    ),
    "a right answer counts as wrong": (
        "recomputation",
        _recorded(_kept(lambda k, r: [one._replace(correct=False) for one in k])),
    ),
    "another reference": ("recomputation", _recorded(_kept(lambda k, r: _one(k, r, gold="12345")))),
    "an easier prompt": ("recomputation", _recorded(_kept(lambda k, r: _one(k, r, prompt="1 + 1 =\n")))),
    "another item": ("recomputation", _recorded(_kept(lambda k, r: _one(k, r, item_id="easy-1")))),
    "an item is missing": ("recomputation", _recorded(_kept(lambda k, r: k[:-1]))),
    "an item is there twice": ("recomputation", _recorded(_kept(lambda k, r: [*k, k[-1]]))),
    "an epoch is missing": (
        "recomputation",
        _recorded(_kept(lambda k, r: [one for one in k if one.step != 1 or one.split == "test"])),
    ),
    "a language is missing": (
        "recomputation",
        _recorded(_kept(lambda k, r: [one for one in k if one.language != "sw"])),
    ),
    "predictions of another cell": (
        "recomputation",
        _recorded(lambda r, rng: r.answer(r.evaluated()[0], r.predictions(r.evaluated()[1])[1], rows=False)),
    ),
    # Records that contradict each other.
    "another seed in the sealed sweep": ("recomputation", _recorded(_reads("seed", 3))),
    "the product of an attempt that failed": (
        "recomputation",
        _recorded(_record("end.json", outcome="failed", cause="code")),
    ),
    "a product that nobody claimed": ("recomputation", _recorded(_without("claim.json"))),
    "a product that is not recorded": (
        "recomputation",
        _recorded(_without("store/done/train"), careful=False),
    ),
    "another spec": ("recomputation", _recorded(_record("spec.json", reads={}))),
    "a record of another sweep": ("recomputation", _recorded(_stranger, careful=False)),
    # What is consistent: only a signature shows that it is not what ran.
    "right answers in place of what a model generated": ("signature", _recorded(_kept(_all_right))),
    "weights": ("signature", _recorded(_weights)),
    "the losses of a training": ("signature", _recorded(_summary(loss=[0.1, 0.1]))),
    "the time and machine of an attempt": (
        "signature",
        _recorded(_record("start.json", at="2020-01-01T00:00:00Z")),
    ),
    "who launched it": ("signature", _recorded(_record("requests/000001", by="eve@node7"))),
    "a bad cell was never there": ("signature", _recorded(_fewer_cells)),
}
"""What is done to a bundle with all digests recomputed, and the weakest check that finds it."""


def forgeries() -> list[Forgery]:
    """Return all forgeries, first those with digests left alone."""
    alone = [Forgery(name, "digests", forge) for name, forge in LEFT_ALONE.items()]
    return alone + [Forgery(name, caught, forge) for name, (caught, forge) in RECOMPUTED.items()]

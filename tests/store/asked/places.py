"""Names in stores, addresses of stores, and tables of what they hold, as recorded."""

from __future__ import annotations

import io
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.store import layout, opening, table
from orchestrator.store.index import Index, RowSegments, name_of
from orchestrator.store.objects import PosixStore
from tests.recording import Answers, answer
from tests.shared.asked.files import listed
from tests.store.builders import instance_of, sweep_of


def names() -> Answers:
    """Names of records and files."""
    of = instance_of(sweep_of(1))
    given: dict[str, tuple[Any, ...]] = {
        "revisions": ("s",),
        "revision": ("s", 7),
        "requests": ("s",),
        "request": ("s", 7),
        "submissions": ("s",),
        "submission": ("s", 7),
        "accepted": ("s", 7),
        "driver": ("s", 7),
        "closings": ("s", 7),
        "closing": ("s", 7, 8),
        "job_reports": ("s", 7),
        "job_report": ("s", 7, 8, 9),
        "decision": ("s", 2, 3),
        "workers": ("s",),
        "worker": ("s", "n"),
        "notices": ("s",),
        "notice_try": ("s", "e", "c", 3),
        "notice_outcome": ("s", "e", "c", 3),
        "node_report": (3,),
        "job_logs": ("s", 7),
        "report": ("s",),
        "logs": ("s",),
        "mirror": ("s", "wandb"),
        "stage_records": ("fit",),
        "stage_spec": (of,),
        "attempts": (of,),
        "attempt": (of, 3, "claim.json"),
        "done_index": ("fit",),
        "done": (of, 2),
        "void_index": ("fit",),
        "void": (of, 2),
        "retired_index": ("fit", "best"),
        "retired": (of, "best", 2),
        "payload": (of, 3),
        "output": (of, 3),
        "log": (of, 3),
        "metrics": (of, 3),
        "checkpoints": (of, 3),
        "code": ("d",),
        "code_record": ("d",),
        "code_archive": ("d",),
        "code_project": (3,),
    }
    for name, arguments in given.items():
        yield name, getattr(layout, name)(*arguments).replace(of.digest, "DIGEST")
    for text in ("d.1.json", "d.12.json", "d.x.json", "d.json", "a.b.1.json", "d.1.txt", "d.0.json"):
        yield f"generation {text}", layout.parse_generation(text)
    for prefix, found in layout.levels("a", ["a/b/c.json", "a/b/d/e.json", "a/f.json"]).items():
        yield f"level {prefix}", found._asdict() if hasattr(found, "_asdict") else found


ADDRESSES = (
    "",
    "runs",
    "~nobody-at-all/x",
    "s3:/bucket",
    "file:x",
    "http://h/x",
    "s3://b",
    "s3://Bucket/x",
    "s3://b@c/x",
    "s3://key:secret@bucket/x",
    "gs://bucket/../x",
    "S3://bucket",
    "/" + "x" * 300,
    "/a" * 2000,
    "\udcff",
    " padded ",
    "FOLDER/file",
    "FOLDER/link",
    "FOLDER/loop",
    "FOLDER/file/x",
    "file:///tmp/x",
)


def addresses() -> Answers:
    """Addresses that can be no store, and errors of stores."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "file").write_text("")
        (Path(folder) / "link").symlink_to("nowhere")
        (Path(folder) / "loop").symlink_to("loop")
        for url in ADDRESSES:
            place = url.replace("FOLDER", folder)
            found = answer(lambda of=place: opening.open_objects(of).url)
            text = (
                str(found)
                .replace(folder, "FOLDER")
                .replace(str(Path.cwd()), "HERE")
                .replace(str(Path.home()), "HOME")
            )
            yield f"address {url[:30]!r}", text.encode(errors="backslashreplace").decode()
        for number, scheme in itertools.product((6, 13, 22, 5), ("s3", "gs")):
            error = opening.refusal(f"{scheme}://bucket", OSError(number, "what the server said"))
            yield f"refusal {number} {scheme}", f"{type(error).__name__}: {error}"
        objects = PosixStore(Path(folder) / "store")
        for number in (28, 122, 5):
            error = opening.not_writable(objects, OSError(number, "words"))
            yield f"not writable {number}", f"{type(error).__name__}: {error}".replace(folder, "FOLDER")
        opening.make_store(objects, "store.json", "TIME")
        opening.make_store(objects, "store.json", "LATER")
        yield (
            "made",
            (listed(Path(folder) / "store"), "TIME" in (Path(folder) / "store/store.json").read_text()),
        )
        yield "writable", (opening.prove_writable(objects), listed(Path(folder) / "store"))
        os.environ.pop("SWEEP_STORE", None)
        yield "usual", [opening.store_url(of).replace(str(Path.cwd()), "HERE") for of in ("x", None)]


ROWS: list[dict[str, Any]] = [
    {
        "cell": "a",
        "seed": 0,
        "tags": "x,y",
        "sweep": "s",
        "revision": 1,
        "stage": "fit",
        "attempts": 1,
        "seconds": 1.5,
        "code": "c1",
        "loss": 0.5,
    },
    {
        "cell": "a",
        "seed": 0,
        "tags": "x,y",
        "sweep": "s",
        "revision": 1,
        "stage": "score[en]",
        "attempts": 1,
        "seconds": 2.0,
        "code": "c2",
        "loss": 0.75,
        "lang": "en",
    },
    {
        "cell": "a",
        "seed": 0,
        "tags": "x,y",
        "sweep": "s",
        "revision": 1,
        "stage": "score[de]",
        "attempts": 1,
        "seconds": None,
        "code": "c2",
        "loss": 0.25,
        "lang": "de",
        "n": {"a": [1]},
    },
    {
        "cell": "b",
        "seed": 1,
        "sweep": "s",
        "revision": 1,
        "stage": "fit",
        "attempts": 2,
        "seconds": 1.0,
        "code": "c1",
        "epoch": 1,
        "loss": 1.0,
    },
    {
        "cell": "b",
        "seed": 1,
        "sweep": "s",
        "revision": 1,
        "stage": "fit",
        "attempts": 2,
        "seconds": 1.0,
        "code": "c1",
        "epoch": 2,
        "loss": 0.5,
    },
    {
        "cell": "b",
        "seed": 1,
        "sweep": "s",
        "revision": 1,
        "stage": "score",
        "attempts": 2,
        "seconds": 1.0,
        "code": "",
        "epoch": 2,
        "acc": True,
        "big": 2**70,
    },
    {
        "cell": "b",
        "seed": 1,
        "sweep": "s",
        "revision": 1,
        "stage": "score",
        "attempts": 2,
        "seconds": 1.0,
        "code": "",
        "epoch": 3,
        "acc": None,
        "big": "x",
    },
]


def tables() -> Answers:
    """Rows of results as tables."""
    stream = io.StringIO()
    table.write_csv(ROWS, stream)
    for number, line in enumerate(stream.getvalue().splitlines()):
        yield f"csv {number}", line
    empty = io.StringIO()
    table.write_csv([], empty)
    yield "csv of nothing", empty.getvalue()
    for number, row in enumerate(table.widened(ROWS)):
        yield f"wide {number}", row
    arrow = table.arrow_table(ROWS)
    yield "arrow", [(field.name, str(field.type)) for field in arrow.schema]
    yield "arrow rows", arrow.to_pylist()[2]
    for value in (None, [1, "a"], [1, [2]], {"a": 1}, True, 1.5, "x", [], (None, False)):
        yield f"flat {value}", (table.flat(value), table._text(value))
    cell = sweep_of(1).cells[0]
    for axis, label in (
        ("seed", "0"),
        ("seed", "zero"),
        ("count.step_s", "0.0"),
        ("count.fail", "null"),
        ("nothing", ""),
        ("count", "x"),
    ):
        yield f"typed {axis} {label}", table.typed(cell, axis, label)
    engine = {"cell": "a", "sweep": "s", "stage": "fit"}
    for returned in (
        {"loss": 1},
        {"seed": 0},
        {"seed": "0"},
        {"seed": 5, "row_seed": 6},
        {"cell": "x"},
        {"tags": "mine"},
        {"seed": True},
    ):
        yield (
            f"row {returned}",
            table._row(engine, {"seed": 0}, {"seed": 0, "tags": "x", "stage": "label"}, returned),
        )
    with tempfile.TemporaryDirectory() as folder:
        segments = RowSegments(Path(folder) / "rows")
        calls: list[str] = []

        def rows_of(key: str) -> Callable[[], Any]:
            return lambda: calls.append(key) or [{"key_of": key}]  # type: ignore[func-returns-value]

        for keys in (("a", "b"), ("a", "b", "c"), ("c",), ()):
            found = segments.update({key: rows_of(key) for key in keys})
            yield f"segments {keys}", ([[*sorted(each[1]), each[2]] for each in found], list(calls))
        path = Path(folder) / "index"
        index = Index(path)
        index.add({"a/b": b"1", "a/c": b"2", "b": b"3"}, {("size", "x"): 7})
        index.add({})
        for again in (index, Index(path), Index(None)):
            yield (
                "index",
                (again.get(["a/b", "b", "z"]), again.below("a/"), again.facts("size"), again.facts("other")),
            )
        index.close()
        path.write_bytes(b"no database at all" * 100)
        broken = Index(path)
        yield "broken", (broken.get(["b"]), broken.add({"b": b"4"}), broken.get(["b"]))
        yield (
            "name",
            (name_of("a", 1) == name_of("a", "1"), name_of("a", 1) != name_of("a1"), len(name_of("a"))),
        )


ASKED: dict[str, Callable[[], Answers]] = {"names": names, "addresses": addresses, "tables_of_rows": tables}

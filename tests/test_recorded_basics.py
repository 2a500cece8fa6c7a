# ruff: noqa: B023, E501 - questions are asked at once, each on a line
"""Texts of errors, names of tables and formats: each answer is as recorded, see recording.py."""

from __future__ import annotations

import errno
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from orchestrator import errors, formats, plugins, registry
from orchestrator.errors import StopSignal, UnknownSweep, UserError
from orchestrator.formats import SINCE_2, Settings, Stored
from tests.recording import Answers, answer, compare, plain

RECORDED = Path(__file__).parent / "recorded"


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


TEXTS = (
    "", "a", " a \n b\t\tc ", "x" * 600, "a\x1b[31mred\x1b[0m\x07b", "\u202egnp.\u2069", "\udce9 é", "1\r\n2", "\ufeffa\u2028b", "tab\there\nline",
)  # fmt: skip


def errors_asked(monkeypatch: pytest.MonkeyPatch) -> Answers:
    for text in TEXTS:
        yield (
            f"text {text[:20]!r}",
            [
                errors.escaped(text)[:60],
                errors.printable(text)[:60],
                errors.inert(text) == text,
                errors.is_utf8(text),
            ],
        )
        yield "  one line", [errors.one_line(text, limit) for limit in (5, 20)] + [len(errors.one_line(text))]
        yield "  as an error", str(UserError(text[:40], where="w\nx", allowed=text[:9], fix="f"))
    yield "empty parts", [str(UserError("what")), str(UserError("what", fix="fix")), UserError("w").exit_code]
    yield (
        "unknown",
        [str(UnknownSweep("nigth", ["night", "day"], where="w", fix="f")), UnknownSweep("a", ["b"]).known],
    )
    for kind in (
        errors.SweepError,
        errors.InfrastructureError,
        errors.DamagedRecord,
        errors.AccessDenied,
        errors.SchedulerUnavailable,
    ):
        yield kind.__name__, kind("w").exit_code
    for error in (
        ValueError("a\n\nb"),
        ValueError(),
        Mute(),
        ExceptionGroup("two", [ValueError("x"), OSError("y")]),
        "text",
    ):
        yield (
            f"words of {type(error).__name__}",
            [errors.words_of(error), errors.first_line_of(error) if isinstance(error, Exception) else ""],
        )
    for name in ("sead", "SEED", "zzzzzzz", "", "lr"):
        yield (
            f"nearest {name}",
            [
                errors.nearest(name, known, limit=3)
                for known in (["seed", "Seed", "lr", "size"], [], ["a", "b", "c", "d"])
            ],
        )
    yield "counted", [errors.counted(number, "cell") for number in (0, 1, 2, 1234567)]
    for value in ("7", "7.5", "-1", "soon", "", "Wed, 21 Oct 2015 07:28:00 GMT", "nan"):
        yield f"retry after {value}", errors.retry_after_s(value)
    for error in (
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        OSError(errno.EIO, "x"),
        RuntimeError("x: No space left on device (os error 28)"),
        RuntimeError("Disk quota exceeded"),
        ValueError("space"),
    ):
        yield f"full {error!r}", [errors.is_out_of_space(error), errors.means_full_disk(str(error))]
    yield "paths", [str(errors.home_expanded(path)) for path in ("a/~", "~nobody-of-this-name/x", "/x")]
    signal = StopSignal()
    yield "not asked", [signal.asked, signal.why, signal.seen]
    signal.ask("first")
    signal.ask("second")
    yield "asked", [signal.asked, signal.why, signal.seen]
    for name, proxy in itertools.product(
        ("http_proxy", "ALL_PROXY"),
        (
            "http://h:8",
            "h:8",
            "socks5://h:1",
            "socks4://h:1",
            "http://",
            "http://h:x",
            "http://h:0",
            "https://h",
        ),
    ):
        with pytest.MonkeyPatch.context() as patch:
            for each in ("http", "https", "all"):
                patch.delenv(f"{each}_proxy", raising=False)
                patch.delenv(f"{each.upper()}_PROXY", raising=False)
            patch.setenv(name, proxy)
            yield f"{name}={proxy}", answer(errors.check_proxies)


MODULE = """
import sys
from dataclasses import dataclass

print("printed while it is imported")

def report(rows, folder): return []
def report_of_one(rows): return []
class Tracker:
    def __init__(self, tracked): pass
    def log(self, step, metrics): pass
    def close(self): pass
class HalfTracker(Tracker):
    close = None
class Launcher:
    def __init__(self, a, b): pass
class Broken:
    def __init__(self, options): raise KeyError("no option")
    check = begin = progress = open = forget = end = summary = lambda self, *_: None
number = 3
_private = 4
"""


def names_asked(folder: Path) -> Answers:
    (folder / "asked_plugin.py").write_text(MODULE)
    (folder / "asked_exits.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "asked_broken.py").write_text("import asked_nothing_there\n")
    (folder / "asked_syntax.py").write_text("def f(:\n")
    (folder / "asked_open.py").write_text("globals()['x'] = 1\n")
    (folder / "asked_package").mkdir()
    (folder / "asked_package" / "__init__.py").write_text("from .inner import *\n")
    (folder / "asked_package" / "inner.py").write_text(
        "class Thing: ...\nasync def run(): ...\nvalue: int = 1\n"
    )
    (folder / "asked_space").mkdir()
    with registry.importable([str(folder)]):
        for target in (
            "asked_plugin:report", "asked_plugin:reprot", "asked_plugin", ":x", "asked_plugin:", "asked_exits:x", "asked_nothing:x",
            "asked_package.none:x", "asked_package.inner:Thing", "asked_package.inner:Thin", "json:dumps", "os.path:join", "a.b:c",
        ):  # fmt: skip
            yield f"load {target}", answer(lambda: type(registry.load(target, where="here")).__name__)
        for target in (
            "asked_plugin:report", "asked_plugin:reprot", "asked_plugin:_private", "asked_syntax:f", "asked_open:y", "asked_package:y",
            "asked_package.inner:run", "asked_package.inner:value", "asked_package.inner:valu", "asked_package.none:x", "asked_space:x", "asked_space.y:x", "sys:argv",
            "json.tool:main", "json.tol:main", ":x", "math:pi", "asked_exits:y",
        ):  # fmt: skip
            yield (
                f"unfound {target}",
                [part.replace(sys.prefix, "PREFIX") for part in plugins.unfound(target)],
            )
        tables = {
            "stages": registry.STAGES, "tasks": registry.TASKS, "launchers": registry.LAUNCHERS, "trackers": registry.TRACKERS,
            "mirrors": registry.MIRRORS, "reports": registry.REPORTS,
        }  # fmt: skip
        for kind, table in tables.items():
            yield f"known {kind}", registry.known(table)
            yield (
                f"is known {kind}",
                [registry.is_known(table, name) for name in (next(iter(table)), "asked", "")],
            )
            for name in (
                "asked",
                "asked_plugin:report",
                "asked_plugin:number",
                "asked_plugin:Tracker",
                "asked_plugin:HalfTracker",
                "asked_plugin:Launcher",
                "asked_plugin:none",
            ):
                yield (
                    f"look up {kind} {name}",
                    answer(lambda: type(registry.lookup(table, name, kind=kind.removesuffix("s"))).__name__),
                )
        yield (
            "one argument",
            answer(lambda: registry.lookup(registry.REPORTS, "asked_plugin:report_of_one", kind="report")),
        )
        yield (
            "broken",
            answer(lambda: registry.lookup(registry.MIRRORS, "asked_plugin:Broken", kind="mirror")({})),
        )
        yield "no table", answer(lambda: registry.lookup({}, "x", kind="thing"))
    for extra in ("sign", "vllm", "query"):
        yield f"install {extra}", registry.install(extra)
    for name in ("asked_nothing", "duckdb", "torch.nn", ""):
        error = ModuleNotFoundError("no", name=name)
        yield f"missing {name}", str(registry.missing_extra(error, what="sweep query"))
    yield "trackers", answer(lambda: registry.check_trackers("stor", {}))
    yield "mirrors", answer(lambda: registry.check_trackers("store", {"mlfow": {}}))
    yield "options", answer(lambda: registry.check_trackers("wandb", {"wandb": {"x": 1}}))


class Inner(Stored, frozen=True, kw_only=True):
    name: str
    more: Annotated[int, SINCE_2] = 0


class Chosen(Settings, frozen=True, kw_only=True):
    kept: str = "all"
    later: Annotated[str, SINCE_2] = ""


class Record(Stored, frozen=True, kw_only=True):
    word: Literal["a", "unknown"] = "a"
    mode: Literal["min", "max"] = "min"
    inner: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = {}
    chosen: Chosen = Chosen()
    number: float | None = None
    later: Annotated[dict[str, int], SINCE_2] = {}


RECORDS = (
    Record(), Record(word="unknown", number=1.5, later={"b": 1, "a": 2}), Record(inner=(Inner(name="x", more=3), Inner(name="y"))),
    Record(by_name={"b": Inner(name="z"), "a": Inner(name="q", more=1)}, chosen=Chosen(kept="best")), Record(chosen=Chosen(later="x")),
    Record(number=float("nan")), Record(mode="max"),
)  # fmt: skip
WRITTEN = (
    b"{}", b'{"word": "z", "mode": "mean", "new": 1}', b'{"inner": [{"name": "x", "more": 2, "newer": [1]}]}', b'{"inner": [{}]}',
    b'{"by_name": {"k": {"name": "v", "newest": null}}, "chosen": {"kept": "none", "other": 2}}', b"[", b"\xff", b"[" * 3000, b'{"number": "x"}',
    b'{"number": 3, "later": {"a": 1}}', b'{"word": 3}', b"null",
)  # fmt: skip


def formats_asked() -> Answers:
    for record in RECORDS:
        for number in (1, 2):

            def encoded() -> str:
                try:
                    return formats.encode(record, store_format=number).decode()
                except ValueError as error:
                    return f"ValueError: {error}"

            yield f"encoded for {number} {record}", answer(encoded)
            yield (
                "  refused",
                answer(lambda: formats.refuse_unheld(record, store_format=number, store="STORE")),
            )
        yield f"canonical {record}", formats.canonical(record).decode()
    for data in WRITTEN:

        def decoded() -> object:
            try:
                found = formats.decode(data, Record)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                return f"{type(error).__name__}: {error}"
            return [
                found,
                formats.encode(found).decode(),
                formats.encode(found, store_format=1).decode(),
                formats.canonical(found).decode(),
            ]

        yield f"decoded {data[:80]!r}", answer(decoded)
        if data.startswith(b"{"):
            yield "  tree", formats.canonical_tree(msgspec.json.decode(data), Record).decode()
    old = formats.decode(WRITTEN[4], Record)
    yield "kept", formats.encode(formats.kept(old, msgspec.structs.replace(old, number=2.0))).decode()


def of(found: Answers, folder: Path) -> Iterator[tuple[str, object]]:
    home = str(Path(errors.__file__).parents[1])
    return (
        (question, plain(each).replace(str(folder), "FOLDER").replace(home, "PROJECT"))
        for question, each in found
    )


def test_texts_of_errors_are_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(RECORDED / "errors.txt", of(errors_asked(monkeypatch), tmp_path))


def test_names_and_what_they_stand_for_are_as_recorded(tmp_path: Path) -> None:
    compare(RECORDED / "names.txt", of(names_asked(tmp_path), tmp_path))


def test_records_of_each_format_are_as_recorded(tmp_path: Path) -> None:
    compare(RECORDED / "formats.txt", of(formats_asked(), tmp_path))

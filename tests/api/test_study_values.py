"""A study as values of Python, and what starts its workers elsewhere, is as recorded, see ../recording.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Store, Sweep, UserError
from orchestrator.api import notices
from orchestrator.api.schemas import schemas
from orchestrator.api.starting import starting_file
from orchestrator.api.state import open_view
from orchestrator.api.templates import TemplateOptions, rendered
from orchestrator.api.working import Work
from orchestrator.core.settings import NotifySettings
from orchestrator.store.objects import PosixStore
from tests.recording import compare_text, plain
from tests.seen import as_lines, moment
from tests.seen import plain as named
from tests.store.study import NAME, Study
from tests.store.study_records import NOW_S

RECORDED = Path(__file__).parent / "recorded"
SCHEMAS = Path(__file__).parents[2] / "schema"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The store, at a moment."""
    monkeypatch.chdir(tmp_path)
    with moment(NOW_S):
        Study(tmp_path / "store")
        yield str(tmp_path / "store")


def answer(act: Callable[..., Any], *given: Any, **options: Any) -> str:
    """What a call returns or raises, as text."""
    try:
        return str(act(*given, **options))
    except UserError as error:
        return f"UserError: {error}"


def values(store: str) -> Iterator[str]:
    """What the objects of the API show of the study."""
    pytest.importorskip("xarray", reason="the extra `xarray` is not installed")
    found = Store(store)
    sweep = found.open(NAME)
    yield from (repr(found), found.url, str(found.sweeps()), repr(sweep), sweep.name, str(sweep.revision))
    yield from (repr(sweep.status()), repr(sweep.status("mixture=en")), repr(sweep.cells))
    yield from map(str, sweep.rows("mixture=en").to_pylist())
    rows = sweep.rows()
    yield from (repr(rows)[:200], f"{len(rows.to_pylist())} rows")
    for options in (
        {"missing": "nan"}, {}, {"names": ["loss"], "missing": "nan"}, {"names": ["nothing"]},
        {"names": ["accuracy"], "keys": ["language"], "missing": "nan"}, {"keys": ["nothing"]},
    ):  # fmt: skip
        yield f"to_xarray {options}"
        yield answer(lambda names=(), **given: rows.to_xarray(*names, **given).to_dict(), **options)
    plan = sweep.plan("model=small", device="h100", max_gpus=4)
    yield from as_lines(plan.as_json(), depth=1)
    yield answer(sweep.plan, device="abacus")
    yield answer(found.open, "none")
    yield answer(Sweep.open, "study@7", store)
    yield answer(sweep.status, "mixture=fr")
    yield answer(found.query, "select state, count(*) n from cells group by all order by all")
    yield answer(sweep.cancel, "mixture=all")
    yield answer(sweep.cancel, "state=done")


def test_a_study_as_values_is_as_recorded(study: str) -> None:
    compare_text(RECORDED / "values.txt", named("\n".join(values(study)), {study: "STORE"}))


def test_what_starts_workers_elsewhere_is_as_recorded(study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    view = open_view(NAME, study)
    request = view.requests[0]
    assert request.code is not None
    work = Work(view, request, request.code, view.sweep.cells)
    words = ("sweep", "work", "study", "--gpus", "2")
    many: dict[str, Any] = {"number": 3, "gpus": 2, "hours": 1.5, "words": words}
    one: dict[str, Any] = {"number": 1, "words": words[:3]}
    of: dict[str, dict[str, str]] = {
        "k8s": {"image": "lab/sweep:1", "secret": "creds"},
        "kueue": {"image": "lab/sweep:1", "queue": "q"},
        "skypilot": {"image": "lab/sweep:1"},
        "pbs": {"queue": "q"},
        "command": {},
    }
    found = []
    for kind, options in of.items():
        wanted = TemplateOptions(kind, **many, **options)
        found += [f"==== {kind} in a folder", answer(rendered, work, wanted)]
    monkeypatch.setattr(PosixStore, "shared_folder", lambda self, key: None)
    for kind, options in of.items():
        for given in ({**many, **options}, {**one, **options}, one, {**many, "queue": "x", "secret": "x"}):
            found += [f"==== {kind} {given}", answer(rendered, work, TemplateOptions(kind, **given))]
    bin_ = str(Path(sys.executable).parent)
    compare_text(RECORDED / "elsewhere.txt", named("\n".join(found), {study: "STORE", bin_: "BIN"}))


def test_the_notices_of_a_study_are_as_recorded(study: str) -> None:
    view = open_view(NAME, study)
    found = [plain(notices.settings_now(view))]
    found += as_lines(
        notices.facts_of(view)._asdict()
        and {each.id: each.text for each in notices.due_now(view, NotifySettings(stalled_minutes=1.0))}
    )
    found += [str(each._asdict()) for each in notices.undelivered(view)]
    compare_text(RECORDED / "notices.txt", "\n".join(found))


SCRIPT = """
import argparse
import click
parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--lr", type=float, default=0.1, help="the learning rate")
parser.add_argument("-s", "--seed", type=int, default=0)
parser.add_argument("--fast", action="store_true")
parser.add_argument("--out-dir", default="out")
parser.add_argument("--resume-from", default=None)
parser.add_argument("--model", choices=["small", "large"], default="small")
parser.add_argument("--layers", nargs="+", default=[1, 2])
"""


def test_a_starting_file_of_a_script_is_as_recorded(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "plain.py").write_text("print(1)\n")
    names = ("train.py", "plain.py", "trian.py")
    found = [answer(starting_file, name, tmp_path) for name in names]
    compare_text(RECORDED / "starting.txt", named("\n====\n".join(found), {}))


def test_the_schemas_are_those_that_ship() -> None:
    for name, schema in schemas().items():
        assert json.loads(json.dumps(schema)) == json.loads((SCHEMAS / f"{name}.json").read_text()), name

# ruff: noqa: E501 - a question is one line
"""What is sealed of an app's config, what is its identity, and what apps are refused, is as recorded."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import pathlib
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import setup_globals
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf, open_dict

from orchestrator.compose import hydra_seal
from orchestrator.compose.multiruns import read_jobs
from orchestrator.core.sealed import ComposedSweep
from tests.apps.app import Composed
from tests.recording import Answers, answer, compare, plain

RECORDED = Path(__file__).parent / "recorded"


class Kind(enum.Enum):
    SGD = 1
    ADAM = 2


@dataclasses.dataclass
class Inner:
    width: int = 3
    kind: Kind = Kind.SGD


@dataclasses.dataclass
class Outer:
    kind: Kind = Kind.ADAM
    lr: float = 0.1
    betas: typing.List[float] = dataclasses.field(default_factory=lambda: [0.9])  # noqa: UP006
    folder: typing.Optional[pathlib.Path] = None  # noqa: UP045
    data: bytes = b"ab"
    steps: typing.Union[int, str] = 3  # noqa: UP007
    inner: Inner = dataclasses.field(default_factory=Inner)
    named: typing.Dict[str, Inner] = dataclasses.field(default_factory=dict)  # noqa: UP006
    missing: int = MISSING
    text: str = "${lr}-${kind}"


def trees() -> Iterator[tuple[str, Any]]:
    yield (
        "an untyped one",
        OmegaConf.create(
            {"a": 1, "b": [1, {"c": None}], "d": "${a}", "e": "???", "f": float("nan"), "g": True}
        ),
    )
    yield "a structured one", OmegaConf.structured(Outer)
    changed = OmegaConf.structured(Outer)
    changed.kind, changed.steps, changed.folder = Kind.SGD, "many", pathlib.Path("/x")
    changed.named, changed.betas = {"x": Inner(width=4)}, [1.0, 2.0]
    yield "a changed one", changed
    mixed = OmegaConf.create(
        {"model": Outer(), "list": [Inner(), 2], 3: "three", "$odd": 1, "by": b"x", "path": pathlib.Path("p")}
    )
    yield "a mixed one", mixed
    flags = OmegaConf.create({"a": {"b": 1}})
    OmegaConf.set_struct(flags, True)
    OmegaConf.set_readonly(flags.a, True)
    yield "one with flags", flags
    yield (
        "nothing in places",
        DictConfig(
            {"a": DictConfig(None), "b": ListConfig(None), "c": DictConfig("${a}"), "d": DictConfig("???")}
        ),
    )


IDENTITY = """
seed: 0
output_dir: x
nested: {log_dir: y, data: /data/there, home: ~/x, url: file:///a/b, rel: a/b, name: "${seed}-${.rel}"}
when: "${now:%Y}"
env: "${oc.env:HOME}"
own: "${own_of_app:3}"
decoded: "${oc.decode:'[1]'}"
lost: "${nowhere}"
missing: ???
list: [1, "${seed}", /abs/path, {dir: "${now:%Y}", deep: [/x]}]
volatile: 3
texts: ["", "a b", "/", "//x", "/a b"]
"""


def sealed_asked() -> Answers:
    for name, tree in trees():
        text = json.dumps(hydra_seal.seal(tree))
        yield f"sealed {name}", text
        again = hydra_seal.unseal(json.loads(text))
        yield "  sealed again", json.dumps(hydra_seal.seal(again)) == text
        yield (
            "  unsealed",
            [OmegaConf.to_yaml(again), [OmegaConf.is_struct(again), OmegaConf.is_readonly(again)]],
        )
    config = OmegaConf.create(IDENTITY)
    with open_dict(config):
        config.typed = OmegaConf.structured(Inner)
    for volatile, given in (
        ([], ()),
        (["volatile", "nested.rel"], ()),
        ([], ("nested.data", "output_dir", "env", "list")),
    ):
        with hydra_seal.without_resolvers() as touched:
            identity = hydra_seal.Identity(volatile, given)
            identity.touched = touched
            yield f"identity without {volatile} given {given}", identity.tree(config)
            yield "  left out", identity.left_out
            yield "  texts", identity.texts
            other = OmegaConf.merge(config, {"nested": {"data": "/elsewhere"}, "env": "${oc.env:USER}"})
            chosen = hydra_seal.Identity(volatile, given, identity.texts)
            chosen.touched = touched
            yield "  of a group that sets other places", chosen.tree(other)


RETURNED = (
    0.5,
    3,
    True,
    None,
    "text",
    {"a": 1, "b": {"c": True, "d": [1]}},
    (1, 2.0),
    [{"a": 1}],
    {"x": float("inf")},
    float("nan"),
)


def rows_asked(folder: Path) -> Answers:
    for number, (returned, beside) in enumerate(
        [
            *((each, "") for each in RETURNED),
            (3, '{"fold": 1}'),
            (3, '[{"fold": 1}, {"fold": 2}]'),
            (None, "{"),
            (4, "[1]"),
        ]
    ):
        place = folder / str(number)
        place.mkdir()
        if beside:
            (place / "metrics.json").write_text(beside)
        try:
            hydra_seal.write_rows(place, returned)
            found: object = (place / hydra_seal.ROWS).read_text()
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        yield f"{returned!r} beside {beside}", found
    yield "flat", hydra_seal.flat({"a": {"b": {"c": 1}}, "d": 2})


def shown(sweep: ComposedSweep) -> object:
    found = []
    for cell in sweep.cells:
        config = {**cell.config, "hydra": {k: v for k, v in cell.config["hydra"].items() if k != "sealed"}}
        found.append((cell.id, cell.axes, cell.columns, config, json.loads(cell.config["hydra"]["sealed"])))
    return found


MISTAKES: tuple[tuple[Sequence[str], str], ...] = (
    (["(", "x"], "train.py"), ([], "tain.py"), ([], "train.py seed=3"), ([], ""), ([], "-m"), ([], 'train.py "x'), (["+api_key=abcd1234efgh"], "train.py"),
)  # fmt: skip


def apps_asked(composed: Composed) -> Answers:
    for words, script in MISTAKES:
        yield f"{script} {' '.join(words)}", answer(lambda: composed(*words, script=script).notes)  # noqa: B023
    found = composed(
        "model=wide,small", "experiment=best", "opt.betas=[0.1,0.2]", "~data.rows", "+new='a b'", "required={checkpoint}",
        "hydra.run.dir=x", "polysweep.launcher.workers=3", "policy.grace_s=7", "hydra.job.chdir=true", volatile=["name"],
    )  # fmt: skip
    yield "composed", shown(found.sweep)
    yield "specs", found.sweep.specs
    yield "notes", found.notes
    yield "settings", [found.settings.launcher["workers"], found.settings.policy.grace_s]


JOB = """
hydra:
  job: {name: fit}
  overrides: {task: [lr=0.1, +x=2], hydra: [hydra.job.chdir=true, hydra.mode=MULTIRUN]}
  runtime: {choices: {model: small}, cwd: /there}
"""


def jobs_asked(folder: Path) -> Answers:
    def read(**given: Any) -> object:
        how = {"results": None, "metrics": {}, "volatile": [], "base": lambda name: {}, **given}
        jobs, left_out = read_jobs(folder / "old", **how)
        return [[(job.folder.name, *job[1:]) for job in jobs], left_out]

    (folder / "old").mkdir()
    yield "nothing there", answer(read)
    for name, files in {
        "0": {"metrics.json": '{"loss": 0.5, "by": {"en": 1}}', "fit.log": "loss=0.25\nacc=0.5\n"},
        "1": {"fit.log": "acc=0.75\n"},
        "2": {"metrics.json": "{"},
        "3": {"own.csv": "a,b\n1,x\n"},
    }.items():
        for path, text in {
            **files,
            ".hydra/config.yaml": "lr: 0.1\nx: 2\nout_dir: a\nmodel: {width: 3}\n",
            ".hydra/hydra.yaml": JOB,
        }.items():
            (folder / "old" / name / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "old" / name / path).write_text(text)
    for given in (
        {},
        {"results": "own.csv"},
        {"metrics": {"acc": "acc=(.*)"}},
        {"results": "nothing.json"},
        {"volatile": ["x"]},
    ):
        yield f"jobs {given}", answer(lambda: read(**given))  # noqa: B023
    (folder / "old/0/.hydra/hydra.yaml").write_text("hydra: [")
    yield "damaged", answer(read)


def of(found: Answers, folder: Path) -> Iterator[tuple[str, object]]:
    home = {str(folder): "FOLDER", os.environ.get("HOME", "/root"): "HOME"}

    def named(each: object) -> str:
        text = plain(each)
        for path, word in home.items():
            text = text.replace(path, word)
        return text

    return ((question, named(each)) for question, each in found)


def test_what_is_sealed_and_identifies_a_cell_is_as_recorded(tmp_path: Path) -> None:
    setup_globals()  # Hydra's resolvers, which another test may have registered
    compare(RECORDED / "sealed.txt", of(sealed_asked(), tmp_path))
    compare(RECORDED / "rows.txt", of(rows_asked(tmp_path), tmp_path))


def test_old_jobs_are_read_as_recorded(tmp_path: Path) -> None:
    compare(RECORDED / "jobs.txt", of(jobs_asked(tmp_path), tmp_path))


def test_apps_are_composed_and_refused_as_recorded(
    composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(RECORDED / "apps.txt", of(apps_asked(composed), composed.folder))

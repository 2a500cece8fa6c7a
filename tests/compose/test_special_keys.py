"""`schema` and `fingerprints` of a config: what they do, and what they refuse."""

from __future__ import annotations

import pytest

from orchestrator.compose.files import content_fingerprint
from orchestrator.errors import UserError

SCHEMA = """
import msgspec
from orchestrator.errors import UserError

class Inner(msgspec.Struct, forbid_unknown_fields=True):
    lr: float
    steps: int = 10

class Config(msgspec.Struct, forbid_unknown_fields=True):
    inner: Inner
    languages: tuple[str, ...] = ()
    limit: float | None = None

    def __post_init__(self):
        self.languages = tuple(sorted(self.languages))

    def check(self):
        if self.inner.steps > 100:
            raise UserError(f"inner.steps is {self.inner.steps}", allowed="at most 100")
"""
SWEEP = """
config: {{schema: "{module}:Config", inner: {{lr: 1, steps: 2}}, languages: [b, a]}}
stages: {{fit: {{command: "true", reads: [inner, languages, limit]}}}}
"""


@pytest.fixture
def typed_sweep(project):
    project.write("typed_schema.py", SCHEMA)
    return SWEEP.format(module="typed_schema")


def test_a_schema_is_that_of_its_own_folder_as_its_file_is_now(project, typed_sweep):
    for folder, limit in (("one", 1.0), ("two", 2.0)):
        project.write(f"{folder}/sweep.yaml", typed_sweep)
        project.write(
            f"{folder}/typed_schema.py", f"from shared import LIMIT\n{SCHEMA}".replace("= None", "= LIMIT")
        )
        project.write(f"{folder}/shared.py", f"LIMIT = {limit}")

    def limits():
        made = (project.compose(f"{folder}/sweep.yaml") for folder in ("one", "two", "one"))
        return [each.sweep.cells[0].config["limit"] for each in made]

    assert limits() == [1, 2, 1]
    project.write("one/shared.py", "LIMIT = 30.0  # edited in a notebook's process")
    assert limits() == [30, 2, 30]


def test_a_schema_coerces_fills_in_defaults_and_canonicalises(project, typed_sweep):
    config = project.sweep(typed_sweep).sweep.cells[0].config
    assert config == {"inner": {"lr": 1.0, "steps": 2}, "languages": ["a", "b"], "limit": None}
    assert isinstance(config["inner"]["lr"], float)
    assert isinstance(config["languages"], list)


def test_equal_values_after_coercion_are_one_identity(project, typed_sweep):
    one = project.sweep(typed_sweep, "inner.lr=1", "languages=[a,b]").sweep
    two = project.sweep(typed_sweep, "inner.lr=1.0", "languages=[b,a]").sweep
    assert one.stages == two.stages


@pytest.mark.parametrize(
    ("override", "what", "allowed"),
    [
        ("+inner.stepz=3", "unknown key 'inner.stepz'", "inner.steps"),
        ("inner.steps=many", "inner.steps is of the wrong type: str ('many')", "int"),
        ("inner.steps=1.5", "inner.steps is of the wrong type: float (1.5)", "int"),
        ("languages=en", "languages is of the wrong type: str ('en')", "list"),
        ("languages=[1]", "languages[0] is of the wrong type: int (1)", "str"),
        ("~inner", "inner is not set", ""),
        ("inner.steps=101", "inner.steps is 101", "at most 100"),
        ("+lmit=3", "unknown key 'lmit'", "limit"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused(project, typed_sweep, override, what, allowed):
    with pytest.raises(UserError) as error:
        project.sweep(typed_sweep, override)
    assert what in error.value.what
    assert allowed in error.value.allowed
    assert "own.yaml" in error.value.where


PATHS = """
config:
  fingerprints: {data.fingerprint: [data.train_dir, data.test_dir], model.fingerprint: [model.path]}
  data: {train_dir: null, test_dir: null, fingerprint: null, copy: "${data.fingerprint}"}
  model: {path: null, revision: null, fingerprint: null}
stages:
  fit:
    command: "true"
    reads: [data.copy, model.fingerprint]
    uses: [data.train_dir, data.test_dir, model.path]
"""


def fit(composition):
    (node,) = composition.sweep.stages.values()
    return node


def test_fingerprints_of_nothing_stay_null(project):
    assert fit(project.sweep(PATHS)).reads == {"data": {"copy": None}, "model": {"fingerprint": None}}


def test_a_fingerprint_follows_content_and_not_the_path(project):
    project.write("one/a.txt", "x")
    project.write("two/deeper/a.txt", "x")
    project.write("three/a.txt", "y")
    project.write("four/b.txt", "x")
    digests = {
        folder: fit(project.sweep(PATHS, f"data.train_dir={project.folder}/{folder}")).digest
        for folder in ("one", "two/deeper", "three", "four")
    }
    assert digests["one"] == digests["two/deeper"]
    assert len(set(digests.values())) == 3
    # A notebook composes again after it has edited its data.
    project.write("one/a.txt", "y")
    assert fit(project.sweep(PATHS, f"data.train_dir={project.folder}/one")).digest == digests["three"]


def test_a_fingerprint_is_set_before_interpolations_are_resolved(project):
    project.write("one/a.txt", "x")
    config = project.sweep(PATHS, "data.train_dir=./one").sweep.cells[0].config
    assert config["data"]["fingerprint"] == content_fingerprint(project.folder / "one")
    assert config["data"]["copy"] == config["data"]["fingerprint"]
    assert "fingerprints" not in config


def test_a_file_or_two_folders_have_a_fingerprint_too(project):
    project.write("one/a.txt", "x")
    project.write("two/a.txt", "y")
    seen = {
        fit(project.sweep(PATHS, *overrides)).digest
        for overrides in (
            ["data.train_dir=one"],
            ["data.test_dir=two"],
            ["data.train_dir=one", "data.test_dir=two"],
            ["data.train_dir=two", "data.test_dir=one"],
            ["data.train_dir=one/a.txt"],
        )
    }
    assert len(seen) == 5


def test_fingerprints_follow_an_axis_of_paths_and_are_taken_back(project):
    project.write("one/a.txt", "x")
    project.write("two/a.txt", "y")
    cells = project.sweep(PATHS, "data.train_dir=one,null,two").sweep.cells
    prints = [cell.config["data"]["fingerprint"] for cell in cells]
    assert len(cells) == 3
    assert prints == [
        content_fingerprint(project.folder / "one"),
        None,
        content_fingerprint(project.folder / "two"),
    ]


def test_what_is_not_there_but_looks_like_a_hub_id_is_pinned_by_its_revision(project):
    reads = fit(project.sweep(PATHS, "model.path=org/name")).reads
    assert reads["model"]["fingerprint"] == "hub:org/name@main"
    reads = fit(project.sweep(PATHS, "model.path=org/name", "model.revision=abc")).reads
    assert reads["model"]["fingerprint"] == "hub:org/name@abc"


@pytest.mark.parametrize(
    "override",
    [
        "model.path=/nowhere",
        "model.path=./a/b",
        "model.path='~/nowhere'",
        "model.path=name",
        "data.train_dir=a/b",
    ],
)
def test_a_missing_path_is_refused(project, override):
    with pytest.raises(UserError) as error:
        project.sweep(PATHS, override)
    assert "missing path" in error.value.what
    assert error.value.where.startswith(override.partition("=")[0])


def test_an_empty_folder_is_refused(project):
    (project.folder / "empty").mkdir()
    with pytest.raises(UserError, match="holds no file"):
        project.sweep(PATHS, "data.train_dir=empty")

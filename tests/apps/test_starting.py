"""Where sweeps of one's own come from: old multiruns, `sweep new`, and the schemas that editors read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from orchestrator.api.importing import import_jobs
from orchestrator.api.schemas import schemas
from orchestrator.api.starting import starting_file
from orchestrator.compose.apps import program_of
from orchestrator.errors import UserError
from tests.apps import app
from tests.apps.app import Composed
from tests.apps.test_scripts import SCRIPT
from tests.conftest import Sweep

ROOT = Path(__file__).parents[2]


@pytest.fixture
def user(sweep: Sweep) -> Sweep:
    app.write(sweep.folder)
    return Sweep(sweep.folder, sweep.store, app.environment())


@pytest.mark.long
def test_cells_of_an_old_multirun_are_the_cells_of_the_app(user: Sweep) -> None:
    app.plainly(user.folder, "-m", "model=small,wide", "seed=4", "+opt.extra.more=3", "required=x")
    (user.folder / "multi/1/metrics.json").unlink()
    said = user("import", "multi")
    assert "1 cell, 1 of them imported" in said and "multi/1: there is no results file metrics.json" in said
    (row,) = user.json("collect", "train")
    assert (row["width"], row["code"]) == (2, "imported")
    words = ["model=small,wide", "seed=4", "+opt.extra.more=3", "required=x"]
    plan = user.json("plan", "--app", "train.py", *words)
    assert [cell["state"] for cell in plan["cells"]] == ["done", "pending"]
    # An imported cell can be run again: what Hydra had composed is sealed in it.
    user("discard", "train", "seed=4", "--stage", "app", "--reason", "try it")
    user("launch", "train")
    (row,) = user.json("collect", "train")
    assert (row["value"], row["width"]) == (pytest.approx(4.2), 2)


@pytest.mark.parametrize("form", ["{folder}/fit.py", "-m package.fit"])
def test_an_import_identifies_the_app_as_a_launch_does(
    composed: Composed, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(composed.folder)
    fit = "import hydra\n\n@hydra.main(version_base='1.3', config_path=None)\ndef main(cfg): ...\n\nmain()\n"
    app.write(composed.folder, {"fit.py": fit, "package/__init__.py": "", "package/fit.py": fit})
    job = "hydra: {job: {name: fit}, overrides: {task: [+lr=1]}, runtime: {choices: {}}}\n"
    app.write(composed.folder / "old/.hydra", {"config.yaml": "lr: 1\n", "hydra.yaml": job})
    app.write(composed.folder / "old", {"metrics.json": '{"loss": 2}'})
    script, url = form.format(folder=composed.folder), str(composed.folder / "store")
    found = import_jobs(composed.folder / "old", script=script, url=url)
    assert (found.view.sweep.name, found.num_new) == ("fit", 1)
    source = yaml.safe_load(found.view.ledger.revision("fit", 1).source)
    assert source == {"description": found.view.sweep.description, "app": script}
    usual = "fit.py" if form.startswith("{") else script
    assert found.view.sweep.stages.keys() == composed("+lr=1", script=usual).sweep.stages.keys()
    with pytest.raises(UserError, match="has 0 groups"):
        import_jobs(composed.folder / "old", script=script, metrics={"loss": "x"}, url=url)


@pytest.mark.parametrize("script", ["", "  ", "-m"])
def test_an_app_without_a_script_is_refused_with_where_it_is_named(script: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="app names no script") as error:
        program_of(script, folder=tmp_path)
    assert error.value.where == "the command line" and "train.py" in error.value.allowed


def test_an_import_without_results_is_refused(user: Sweep) -> None:
    (user.folder / "empty").mkdir()
    assert "holds no job of Hydra" in user("import", "empty", code=2)
    (user.folder / "old/0/.hydra").mkdir(parents=True)
    (user.folder / "old/0/.hydra/config.yaml").write_text("lr: 1\n")
    assert "none of 1 jobs has results" in user("import", "old", code=2)
    assert not user.store.exists()


@pytest.mark.parametrize("text", ["x = '\\0'", pytest.param("x = " + "-" * 50_000, id="deep"), "x = ("])
def test_a_script_that_cannot_be_parsed_has_a_starting_file_without_options(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "fit.py").write_text(text)
    assert "python fit.py" in starting_file("fit.py", tmp_path)


def test_a_starting_file_of_a_script_has_its_options(tmp_path: Path) -> None:
    (tmp_path / "fit.py").write_text(
        SCRIPT.replace("type=int)", "type=int, choices=[64, 128], help='of it')")
    )
    text = starting_file("fit.py", tmp_path)
    tree = yaml.safe_load(text)
    assert tree["config"] == {"lr": None, "width": 64}
    assert tree["stages"]["fit"] == {
        "command": "python fit.py {args} --out {output} --resume '{checkpoint}'",
        "reads": ["lr", "width"],
    }
    assert "#   width: [64, 128]" in text and "# of it" in text
    jsonschema.validate(tree, schemas()["sweep"])
    (tmp_path / "clicks.py").write_text(
        "import click\n\n\n@click.command()\n@click.option('--opt', type=click.Choice(['sgd', 'adam']))\n"
        "@click.option('--loud/--quiet', default=True)\n@click.argument('data')\n"
        "def main(opt, loud, data): ...\n"
    )
    tree = yaml.safe_load(starting_file("clicks.py", tmp_path))
    assert tree["config"] == {"opt": "sgd", "loud": True}
    assert tree["stages"]["clicks"]["command"] == "python clicks.py DATA {args}"
    with pytest.raises(UserError, match="no script"):
        starting_file("fitt.py", tmp_path)


def test_a_starting_file_of_an_app_has_its_groups_and_keys_and_can_be_launched(user: Sweep) -> None:
    said = user("new", "train.py")
    text = (user.folder / "train.yaml").read_text()
    assert "sweep plan train.yaml" in said
    assert "#   model: [small, wide]" in text and "#   opt.lr: [0.1]" in text and "double" not in text
    jsonschema.validate(yaml.safe_load(text), schemas()["sweep"])
    assert "1 cell" in user("plan", "train.yaml")
    # The comments are what one takes the signs away from.
    edited = (
        text.replace("axes: {}", "axes:").replace("#   model:", "  model:").replace("#   seed:", "  seed:")
    )
    (user.folder / "train.yaml").write_text(edited)
    assert "2 cells" in user("plan", "train.yaml")
    assert "exists" in user("new", "train.py", code=2)


def test_the_schemas_are_current_and_take_every_sweep_that_ships() -> None:
    for name, schema in json.loads(json.dumps(schemas())).items():
        assert json.loads((ROOT / "schema" / f"{name}.json").read_text()) == schema, (
            "python docs/reference.py"
        )
    for path in sorted((ROOT / "sweeps").glob("*.yaml")):
        jsonschema.validate(yaml.safe_load(path.read_text()), schemas()["sweep"])
    for page in ("commands", "hydra-apps"):
        text = (ROOT / f"docs/{page}.md").read_text()
        for sweep in re.findall(r"```yaml\n# file: \w+\.yaml\n(.*?)```", text, re.DOTALL):
            jsonschema.validate(yaml.safe_load(sweep), schemas()["sweep"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"stages": {"a": {"comand": "x"}}}, schemas()["sweep"])

"""Sweeps of a Hydra app: what its task gets, what identifies its cells, and what the store holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compose import hydra_seal
from orchestrator.compose.main import compose
from orchestrator.errors import UserError
from orchestrator.store.checkout import Checkout
from tests.apps import app
from tests.apps.app import Composed
from tests.conftest import Sweep


@pytest.fixture
def project(sweep: Sweep) -> Sweep:
    app.write(sweep.folder)
    return Sweep(sweep.folder, sweep.store, app.environment())


def seen(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """What each task saw, in the order of width and seed."""
    found = [json.loads(path.read_text()) for path in folder.glob(pattern)]
    return sorted(found, key=lambda each: (each["resolved"]["model"]["width"], each["resolved"]["seed"]))


def test_a_task_gets_the_types_and_the_hydra_config_of_a_plain_run(project: Sweep) -> None:
    words = ["model=small,wide", "seed=3", "opt.lr=0.2", "+opt.extra.more=3", "required=x"]
    app.plainly(project.folder, "-m", *words)
    plain = seen(project.folder, "multi/*/seen.json")
    project("launch", "--app", "train.py", *words)
    ours = seen(project.store, "payload/app/*/1/output/seen.json")
    assert len(ours) == len(plain) == 2
    for mine, its in zip(ours, plain, strict=True):
        assert mine["forms"] == its["forms"]
        assert mine["model"] == its["model"]
        assert mine["cwd"] == its["cwd"] == str(project.folder)
        differ = {a[0] for a, b in zip(mine["hydra"], its["hydra"], strict=True) if a != b}
        places = {"/run/dir", "/sweep/dir", "/sweep/subdir", "/runtime/output_dir"}
        assert differ == places | {"/job/env_set/APP_TOKEN"}  # an interpolation, since .hydra/ is kept
        assert mine["token"] == app.ENVIRONMENT["APP_TOKEN"]
    # The sweep has the name of the script; what it returned and its metrics.json are one row.
    rows = project.json("collect", "train")
    assert [(row["model"], row["width"], row["value"]) for row in rows] == [
        ("small", 2, pytest.approx(3.4)),
        ("wide", 8, pytest.approx(4.6)),
    ]
    output = next(project.store.glob("payload/app/*/1/output"))
    assert {"own.log", ".hydra"} <= {path.name for path in output.iterdir()}
    for path in project.store.rglob("*"):
        # The test's app writes what it saw, as a program that keeps its own secrets would not.
        if path.is_file() and path.name != "seen.json":
            assert app.ENVIRONMENT["APP_TOKEN"] not in path.read_text(errors="replace"), path


def test_the_sealed_config_runs_whatever_happens_to_the_files(project: Sweep) -> None:
    project("launch", "--app", "train.py", "model=wide", "required=x", "seed=1")
    (project.folder / "conf/model/wide.yaml").write_text("_target_: __main__.Model\nwidth: 99\n")
    project("discard", "train", "seed=1", "--stage", "app", "--reason", "again")
    project("launch", "train@1")
    assert [each["model"][1] for each in seen(project.store, "payload/app/*/*/output/seen.json")] == [8, 8]


def test_identity_is_what_the_config_says_without_places_and_times(composed: Composed) -> None:
    config = composed.config("required=x")
    hydra = config.pop("hydra")
    sealed = hydra.pop("sealed")
    assert hydra == {"set": {}, "resume": []}
    assert config == {
        "seed": 0,
        "data": {"rows": 10},
        "name": "run-0-2",
        "list": [1, 0, {}],
        "required": "x",
        "model": {"_target_": "__main__.Model", "width": 2},
        "opt": {
            **{"kind": "ADAM", "lr": 0.1, "betas": [0.9, 0.99], "folder": None, "extra": {"warmup": 5}},
            **{"steps": 3, "name": "0-0.1"},
        },
    }
    assert "/home/of/app" not in sealed and app.ENVIRONMENT["APP_TOKEN"] not in sealed
    notes = " ".join(composed("required=x").notes)
    for part in (
        "(twice): double",
        "(oc.env): home, list.2.deep",
        "(now): started",
        "data.root, data.inside",
    ):
        assert part in notes
    assert "(an output folder): output_dir, log_dir" in notes


@pytest.mark.long
def test_what_an_override_sets_is_identity_as_it_is_written(composed: Composed) -> None:
    base = composed.digest()
    assert composed.digest("data.root=/other") != base != composed.digest("log_dir=there")
    assert composed.digest("home=${oc.env:APP_HOME}") not in (base, composed.digest("home=${oc.env:HOME}"))
    assert composed.digest("hydra.job.chdir=true") != base
    assert composed.digest("hydra.sweep.dir=there") == base
    here = [composed(script=f"{place}/train.py").sweep.stages for place in (".", composed.folder)]
    assert [list(stages) for stages in here] == [[base], [base]]
    assert composed.digest(volatile=["name"]) != base == composed.digest("seed=0")


def test_groups_packages_and_experiments_are_hydras_own(composed: Composed) -> None:
    config = composed.config("experiment=best", "required=x")
    assert (config["seed"], config["model"]["width"], config["opt"]["lr"]) == (7, 8, 0.5)
    sweep = composed("model=glob(*)", "opt.betas=[0.1,0.2],[0.3]", "~data.rows", "+new='a b',c").sweep
    assert [tuple(cell.axes.values()) for cell in sweep.cells][:2] == [
        ("small", "0.1+0.2", "a b"),
        ("small", "0.1+0.2", "c"),
    ]
    assert len(sweep.cells) == 8 and "rows" not in sweep.cells[0].config["data"]


def test_settings_without_effect_are_named(composed: Composed) -> None:
    notes = " ".join(
        composed("hydra.run.dir=x", "hydra/launcher=basic", "hydra.sweeper.max_batch_size=3").notes
    )
    for word in ("hydra.run.dir=x", "hydra/launcher=basic", "hydra.sweeper.max_batch_size=3"):
        assert word in notes


def test_a_name_that_the_app_has_too_means_the_apps(composed: Composed) -> None:
    (composed.folder / "conf/launcher").mkdir()
    (composed.folder / "conf/launcher/rocket.yaml").write_text("thrust: 3\n")
    found = composed("+launcher=rocket", "polysweep.launcher.workers=3", "policy.grace_s=7", "seed=1")
    assert found.sweep.cells[0].config["launcher"] == {"thrust": 3}
    assert (found.settings.launcher["workers"], found.settings.policy.grace_s) == (3, 7)
    assert "polysweep.launcher=" in " ".join(found.notes)
    with pytest.raises(UserError, match=r"polysweep\.launcher="):
        composed("launcher=local")
    with pytest.raises(UserError, match="no setting of the engine"):
        composed("polysweep.seed=3")


@pytest.mark.parametrize(
    ("words", "script", "message"),
    [
        (["modle=small"], "train.py", "Could not override 'modle'"),
        (["model=huge"], "train.py", "Could not find 'model/huge'"),
        (["seed=1", "seed=2", "(", "x"], "train.py", "is no override"),
        ([], "tain.py", "did you mean train.py"),
        ([], "train.py seed=3", "overrides follow"),
        ([], "empty.py", "without a call of a function under @hydra.main"),
        ([], "broken.py", "ValueError: so it is"),
        (["+api_key=abcd1234efgh"], "train.py", "api_key looks like a secret"),
    ],
)
def test_mistakes_are_named(composed: Composed, words: list[str], script: str, message: str) -> None:
    (composed.folder / "empty.py").write_text("print(3)\n")
    (composed.folder / "broken.py").write_text("raise ValueError('so it is')\n")
    with pytest.raises(UserError) as error:
        composed(*words, script=script)
    assert message in str(error.value)


def test_a_sweep_file_names_an_app(composed: Composed) -> None:
    (composed.folder / "grid.yaml").write_text(
        """
        app: {script: train.py, volatile: [name]}
        overrides: {required: x}
        axes:
          model: [small, wide]
          size: {low: {seed: 1}, high: {seed: 2, opt.lr: 0.9}}
        exclude: [model=wide size=low]
        columns: {width: model.width}
        """
    )
    sweep = compose("grid.yaml", ["model=wide,small"], cwd=composed.folder).sweep
    assert [(cell.axes["size"], cell.columns["width"]) for cell in sweep.cells] == [
        ("high", 8),
        ("low", 2),
        ("high", 2),
    ]
    assert sweep.cells[0].config["opt"]["lr"] == 0.9


@pytest.mark.long
def test_220_cells_are_composed_in_5_s_of_one_core(composed: Composed) -> None:
    def cpu_s() -> float:
        # Of this process and of the app's, which has ended and was waited for.
        return sum(os.times()[:4])

    start_s = cpu_s()
    composed("required=x")
    one_s = cpu_s() - start_s
    sweep = composed("model=small,wide", "seed=range(0,110)", "required=x").sweep
    assert len(sweep.cells) == 220
    assert cpu_s() - start_s - 2 * one_s < 5


def test_edits_of_yaml_files_are_no_other_code(composed: Composed, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    specs = composed("required=x").sweep.specs
    checkout = Checkout(specs, [str(tmp_path)])
    before = checkout.digest()
    (tmp_path / "conf/model/small.yaml").write_text("width: 99\n")
    assert checkout.digest() == before
    (tmp_path / "train.py").write_text("print(3)\n")
    assert checkout.digest() != before and checkout.changed() == ["train.py"]


@pytest.mark.parametrize(
    ("returned", "rows"),
    [
        (0.5, [{"value": 0.5}]),
        ({"a": 1, "b": {"c": True, "d": [1]}}, [{"a": 1, "b.c": True}]),
        ((1, 2.0), [{"value": 1, "value1": 2.0}]),
        (None, []),
        ("text", []),
    ],
)
def test_what_a_task_returns_becomes_columns(returned: object, rows: list[object], tmp_path: Path) -> None:
    hydra_seal.write_rows(tmp_path, returned)
    assert json.loads((tmp_path / hydra_seal.ROWS).read_text()) == rows


def test_a_value_that_is_not_finite_fails_the_task(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('[{"fold": 1}, {"fold": 2}]')
    hydra_seal.write_rows(tmp_path, 3)
    assert json.loads((tmp_path / hydra_seal.ROWS).read_text())[1] == {"fold": 2, "value": 3}
    with pytest.raises(FloatingPointError, match="the task's value is nan"):
        hydra_seal.write_rows(tmp_path, float("nan"))


@pytest.mark.long
def test_groups_that_differ_in_places_and_resolvers_alone_are_other_cells(composed: Composed) -> None:
    conf = composed.folder / "conf"
    (conf / "model/far.yaml").write_text("_target_: __main__.Model\nwidth: 2\nweights: /models/far\n")
    (conf / "model/near.yaml").write_text("_target_: __main__.Model\nwidth: 2\nweights: /models/near\n")
    (conf / "model/more.yaml").write_text("_target_: __main__.Model\nwidth: 2\nweights: ${twice:3}\n")
    sweep = composed("model=far,near,more", "required=x").sweep
    assert len({*sweep.stages}) == len(sweep.cells) == 3
    # What no choice sets stays left out, and a choice that is the default changes nothing.
    assert composed.digest("model=small") == composed.digest()
    before = composed.digest("model=far")
    path = conf / "config.yaml"
    path.write_text(path.read_text().replace("/data/there", "/elsewhere"))
    assert composed.digest("model=far") == before


def test_arguments_of_the_script_reach_each_cell_and_those_of_hydra_do_not(composed: Composed) -> None:
    own = "import sys\nsys.argv = [word for word in sys.argv if word not in ('--gpu', '3')]\n"
    (composed.folder / "gpu.py").write_text(own + app.SCRIPT)
    command = composed(script="gpu.py --gpu 3 --config-name config -cp conf").sweep.specs["app"].command
    assert command is not None and command.endswith("run gpu.py --gpu 3")


def test_overrides_that_the_script_itself_adds_count_last(composed: Composed) -> None:
    own = "import sys\nsys.argv += ['seed=4', 'hydra.run.dir=.']\n"
    (composed.folder / "adds.py").write_text(own + app.SCRIPT)
    found = composed("seed=3", "required=x", script="adds.py")
    assert found.sweep.cells[0].config["seed"] == 4
    assert "hydra.run.dir=." in " ".join(found.notes)


def test_a_process_that_the_app_forked_does_not_delay_the_message_that_the_app_ended(
    composed: Composed,
) -> None:
    (composed.folder / "forks.py").write_text(
        "import os, pathlib, time\n"
        "if os.fork() == 0:\n"
        "    pathlib.Path('forked').write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "    os._exit(0)\n"
        "while not pathlib.Path('forked').exists():\n"
        "    time.sleep(0.01)\n"
        "print('x' * 10_000_000)\n"
        "raise SystemExit('no main here')\n"
    )
    start_s = time.monotonic()
    with pytest.raises(UserError, match="the app cannot be composed: no main here"):
        composed(script="forks.py")
    os.kill(int((composed.folder / "forked").read_text()), signal.SIGKILL)  # it still held the pipe
    assert time.monotonic() - start_s < 30


def test_a_quote_of_the_app_that_is_not_closed_is_refused(composed: Composed) -> None:
    with pytest.raises(UserError, match="no closing quotation"):
        composed(script='train.py "x')

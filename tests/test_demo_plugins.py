"""The example package, installed as its user would, in an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.testing import SweepCommand

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/polysweep-demo"
WALKS = """
config: {seed: 0, num_steps: 20}
axes: {seed: "range(0,4)"}
stages: [walk]
report: [ranking]
"""
SPELLING = """
axes: {mixture: {none: {languages: []}}}
columns: {languages: languages}
stages: [tokenizer, base, prepare, train, evaluate]
overrides:
  task: spelling
  data: spelling
  data.num_train: 4
  data.num_validation: 2
  data.num_test: 3
  model.tokenizer.num_items: 1
  model.pretraining.num_items: 1
  model.pretraining.num_steps: 1
  model.architecture.vocab_size: 300
  evaluation.engine: silent
  evaluation.languages: [en]
"""

Command = Callable[..., str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel of the example; the rest is that of the tests."""
    place = tmp_path_factory.mktemp("demo")
    shutil.copytree(EXAMPLE, place / "source", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(build, cwd=place / "source", check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
    python = str(place / "venv/bin/python")
    pip = [
        python,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*pip, str(next(place.glob("*.whl")))], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place / "venv")}))
    (site / "rest.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    return place


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Command:
    """The command of that environment in an empty folder; without plugins on request."""

    def sweep(*words: str, code: int = 0, plain: bool = False) -> str:
        on = SweepCommand(tmp_path, tmp_path / "store", {**os.environ, "PYTHONPATH": ""})
        python = sys.executable if plain else str(place / "venv/bin/python")
        on.program = (python, "-P", "-m", "orchestrator")
        return on(*words, code=code, timeout_s=300)

    return sweep


@pytest.mark.long
def test_its_stage_launcher_trackers_and_report_run_a_sweep(run: Command, tmp_path: Path) -> None:
    (tmp_path / "walks.yaml").write_text(WALKS)
    prefix = 'launcher.prefix=[nice,-n,"7"]'
    assert "4 done" in run("launch", "walks.yaml", "launcher=command", prefix, "tracker=[csv,jsonl]")
    rows = json.loads(run("collect", "walks", "--json"))
    assert [row["nice"] for row in rows] == [os.nice(0) + 7] * 4
    ranking = (tmp_path / "store/sweeps/walks/report/ranking.txt").read_text().splitlines()
    assert [line.split()[0] for line in ranking] == sorted((f"{r['position']:+d}" for r in rows), key=int)[
        ::-1
    ]
    tables = list((tmp_path / "store/payload").rglob("metrics.csv"))
    assert [table.read_text().count("position") for table in tables] == [20] * 4
    lines = [path.read_text().splitlines() for path in (tmp_path / "jsonl/walks").glob("*.jsonl")]
    assert [len(each) for each in lines] == [21] * 4
    assert sorted(json.loads(each[-1])["result"]["position"] for each in lines) == sorted(
        row["position"] for row in rows
    )
    assert "nothing was missing" in run("sync", "walks", "--to", "jsonl")
    # Its module is missing where the worker runs, by another interpreter as in a container.
    other = f'launcher.prefix=[sh,-c,"shift; exec {sys.executable} \\"$@\\"",x]'
    said = run("launch", "walks.yaml", "num_steps=3", "launcher=command", other, code=1)
    assert "(config)" in said and "no module 'polysweep_demo.stage' can be imported" in said
    for word, message in (("launcher=command", "unknown launcher 'command'"), ("tracker=jsonl", "'jsonl'")):
        assert message in run("launch", "smoke", word, code=2, plain=True)


@pytest.mark.long
def test_its_task_is_scored_by_its_generator_and_fails_by_config_without_the_plugin(
    run: Command, tmp_path: Path
) -> None:
    (tmp_path / "spelling.yaml").write_text(SPELLING)
    run("launch", "spelling.yaml")
    rows = [row for row in json.loads(run("collect", "spelling", "--json")) if row.get("split") == "test"]
    assert [(row["task"], row["accuracy"]) for row in rows] == [("spelling", 0.0)]
    assert "unknown task 'spelling'" in run("launch", "spelling.yaml", code=2, plain=True)
    assert "spelling" in run("data", "describe", "spelling")


@pytest.mark.long
def test_each_of_its_plugins_passes_the_suite_of_its_kind(place: Path, tmp_path: Path) -> None:
    suite = [str(place / "venv/bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    env = {**os.environ, "PYTHONPATH": "", "PYTEST_ADDOPTS": f"--basetemp={tmp_path / 'suite'}"}
    ran = subprocess.run(
        suite, cwd=place / "source", env=env, capture_output=True, text=True, check=False, timeout=580
    )
    assert ran.returncode == 0 and "34 passed" in ran.stdout, ran.stdout

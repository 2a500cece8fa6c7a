"""A light installation runs sweeps of the user's own functions; what needs an extra names it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.registry import EXTRAS, NEEDS_EXTRA

ROOT = Path(__file__).parents[2]
MAX_MB = 90
MAX_S = 40


def test_extras_are_those_of_the_distribution_and_each_module_is_of_the_package_that_is_named() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"all", "bench"}
    provided = importlib.metadata.packages_distributions()
    for extra, modules in EXTRAS.items():
        wanted = {re.split(r"[\[>=<,]", each)[0] for each in extras[extra]} - {"polysweep"}
        if extra != "vllm":  # not installed here
            found = {name.lower().replace("_", "-") for module in modules for name in provided[module]}
            assert wanted <= found, extra
        assert len(modules) == len(wanted), extra
    (everything,) = extras["all"]
    assert set(re.findall(r"\w+", everything)) == set(EXTRAS) - {"vllm"} | {"polysweep"}
    assert {extra for extra, _ in NEEDS_EXTRA.values()} <= set(EXTRAS)


def write_curve(folder: Path) -> None:
    """Write the two files of the README."""
    readme = (ROOT / "README.md").read_text()
    for name, language in (("curve.yaml", "yaml"), ("fit.py", "python")):
        found = re.search(rf"```{language}\n(.*?)```", readme, re.DOTALL)
        assert found
        (folder / name).write_text(found[1])


Light = Callable[..., str]


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Light:
    """The wheel without extras in an environment of its own, and the two files of the README."""
    place = tmp_path_factory.mktemp("light")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
    pip = [str(place / "venv/bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, str(next(place.glob("*.whl")))], check=True, capture_output=True)
    seconds = time.monotonic() - began
    size = sum(path.lstat().st_size for path in (place / "venv").rglob("*") if not path.is_symlink())
    print(f"installed in {seconds:.0f} s, {size / 1e6:.0f} MB with pip")
    assert size < MAX_MB * 1e6
    assert seconds < MAX_S * (3 if os.environ.get("PYTEST_XDIST_WORKER") else 1)
    folder = place / "curve"
    folder.mkdir()
    write_curve(folder)

    def sweep(*words: str, code: int = 0, cwd: Path = folder) -> str:
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SWEEP_STORE")}
        ran = subprocess.run(
            [str(place / "venv/bin/sweep"), *words],
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert ran.returncode == code, (words, ran.stdout, ran.stderr)
        assert "Traceback" not in ran.stderr
        return ran.stdout + ran.stderr

    return sweep


@pytest.mark.long
def test_a_light_installation_runs_a_sweep_and_brings_its_table(light: Light, tmp_path: Path) -> None:
    assert "2 failed, 4 done" in light("launch", "curve.yaml", code=1)
    assert len(json.loads(light("status", "curve", "--json"))["cells"]) == 6
    light("collect", "curve", "--out", str(tmp_path / "rows.csv"))
    assert (tmp_path / "rows.csv").read_text().count("\n") == 5
    assert len(json.loads(light("collect", "curve", "--json"))) == 4
    assert "rate" in light("best", "curve", "loss")
    assert "ok    store semantics" in light("doctor")
    assert "| `work` |" in light("guide") and "StatusOutput" in light("guide", "--schema", "status")


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("launch curve.yaml launcher=slurm", "slurm"),
        ("launch curve.yaml launcher=ray", "ray"),
        ("launch curve.yaml tracker=wandb", "wandb"),
        ("launch curve.yaml tracker=[mlflow,wandb]", "wandb"),
        ("launch curve.yaml tracker=tensorboard", "tensorboard"),
        ("launch curve.yaml store.url=s3://bucket/x", "s3"),
        ("plan smoke", "sft"),
        ("launch smoke", "sft"),
    ],
)
def test_what_needs_an_extra_is_refused_before_anything_is_recorded(
    light: Light, tmp_path: Path, words: str, extra: str
) -> None:
    write_curve(tmp_path)
    assert f"pip install 'polysweep[{extra}]'" in light(*words.split(), code=2, cwd=tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("collect curve --out rows.parquet", "report"),
        ("report curve", "report"),
        ("query show", "query"),
        ("serve curve", "serve"),
    ],
)
def test_a_verb_names_the_extra_that_it_needs(light: Light, words: str, extra: str) -> None:
    light("launch", "curve.yaml", code=1)
    assert f"pip install 'polysweep[{extra}]'" in light(*words.split(), code=2)

"""The description of a bundle as RO-Crate, validated by the validator of its makers."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.bundles import forging
from tests.bundles.conftest import Honest

PROFILES = ("ro-crate-1.3", "process-run-crate-0.5", "workflow-run-crate-0.5")


def test_every_file_is_described_with_its_size_and_digest(honest: Honest) -> None:
    files = forging.read(honest.bundle)
    graph = {each["@id"]: each for each in json.loads(files["ro-crate-metadata.json"])["@graph"]}
    listed = {each["path"]: each for each in json.loads(files["manifest.json"])["files"]}
    described = {name for name, each in graph.items() if "sha256" in each}
    assert described == set(listed) - {"ro-crate-metadata.json"}
    assert all(graph[name]["sha256"] == listed[name]["sha256"] for name in described)
    assert graph["./"]["mainEntity"]["@id"] == "store/sweeps/graded/1.json"
    assert graph["#launch-1"]["agent"]["@id"] == "#by-ada@node7"


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the validator, which wants an older rich than ours."""
    place = tmp_path_factory.mktemp("validator")
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    python = place / "bin" / "python"
    packages = ["roc-validator==0.13.0", "rocrate==0.16.0"]
    done = subprocess.run([python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no package index: {done.stderr[-200:]}")
    return python


@pytest.mark.long
@pytest.mark.parametrize("profile", PROFILES)
def test_the_validator_finds_nothing_wrong_without_a_network(
    profile: str, interpreter: Path, honest: Honest, tmp_path: Path
) -> None:
    with zipfile.ZipFile(honest.bundle) as archive:
        archive.extractall(tmp_path)
    script = Path(__file__).with_name("offline_crate.py")
    done = subprocess.run([interpreter, script, tmp_path, profile], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]

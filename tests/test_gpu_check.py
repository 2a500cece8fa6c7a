"""The check of a GPU, on a CPU: every section runs, and what fails or finds no time is reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / words[0]), *words[1:]]
    return subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture
def one_pass(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu.one_pass

    return gpu.one_pass


def test_results_are_kept_at_once_beside_what_the_plan_predicts(one_pass: Any, tmp_path: Path) -> None:
    found = one_pass.Pass(small=True, budget_s=60, out=tmp_path)
    found.record("a step", predicted={"step_s": 2.0}, step_s=1.5, mfu=None)
    assert json.loads((tmp_path / "gpu.jsonl").read_text())["predicted"] == {"step_s": 2.0}
    found.record("a|b", exit_code=0)
    rows = (tmp_path / "gpu.md").read_text().splitlines()
    assert rows[2:] == ["| a step | step_s 1.5 | step_s 2.0 |", "| a\\|b | exit_code 0 |  |"]


def test_a_section_that_hangs_ends_with_its_time(one_pass: Any) -> None:
    found = one_pass.Pass(small=True, budget_s=60, out=None)
    with pytest.raises(one_pass.OverBudget), found.limited(0.2):
        time.sleep(20)
    with found.limited(60):
        assert signal.getitimer(signal.ITIMER_REAL) != (0.0, 0.0)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)  # no alarm is left


@pytest.mark.long
def test_the_whole_check_passes_on_a_cpu_with_tiny_sizes(tmp_path: Path) -> None:
    done = run("gpu_check.py", "--small", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    results = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    found = {result["what"]: result for result in results}
    assert not {"FAILED", "skipped"} & set(found)
    assert found["smoke, one cell"]["exit_code"] == 0
    for name in ("qwen3-0.6b's width, 4 layers", "gemma3-1b's width, 6 layers"):
        assert found[f"{name}, float32, packed"]["gradient_error"] < 1e-5
        for form in ("padded", "packed"):
            numbers = found[f"{name}, bf16, {form}"]
            assert numbers["gradient_error"] < 0.02 and numbers["repeats_bit_for_bit"]
    assert found["0.6B, training state"]["restored"]
    assert found["generation by two processes at once"]["differing"].startswith("0 of")
    one, two = (found[f"gloo, {count}, fsdp"]["result"].split()[-1] for count in ("1 process", "2 processes"))
    assert abs(float(one) - float(two)) < 1e-3
    assert (tmp_path / "gpu.md").read_text() in done.stdout


@pytest.mark.long
def test_a_check_refuses_what_it_has_not_and_reports_what_finds_no_time() -> None:
    done = run("gpu_check.py", "--small", "--only", "speed,rest")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: no section rest")
    no_gpu = run("gpu_check.py", "--only", "speed", CUDA_VISIBLE_DEVICES="")
    assert no_gpu.returncode == 2 and "no CUDA device is visible" in no_gpu.stderr


@pytest.mark.long
def test_our_loop_and_that_of_trl_train_the_same_rows() -> None:
    pytest.importorskip("trl", reason="the extra bench is not installed")
    done = run("loop_against_trl.py", "--small", "--rows", "32", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ours"]["tokens_per_s"] > 0 and found["ratio"] > 0
    assert abs(found["ours"]["first_loss"] - found["trl"]["first_loss"]) < 0.01

"""The benchmark of a training's shape: what it makes of odd rows, and what it refuses."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from orchestrator.errors import UserError


def benchmark() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "training_shape.py"
    spec = importlib.util.spec_from_file_location("training_shape", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("lengths", "least"),
    [
        ([300] * 1024, 0.96),
        ([300] * 10, 10 / 16 - 0.01),
        ([7] * 3, 3 / 8 - 0.1),
        ([50_000, *[100] * 2000], 0.5),
        (list(range(50, 2000)), 0.95),
    ],
)
def test_rows_of_any_lengths_have_few_shapes_and_a_share_that_they_allow(
    lengths: list[int], least: float
) -> None:
    found = benchmark().measure(np.array(lengths))
    assert set(found["useful_share"]) == {"1", "2", "4", "8"}
    assert all(least < share <= 1 for share in found["useful_share"].values())
    assert 1 <= found["distinct_shapes"] <= 8
    assert all(seconds >= 0 for seconds in found["step_seconds"].values())


def test_the_mixtures_of_the_study_use_95_percent_of_8_gpus() -> None:
    module = benchmark()
    for family, languages in (("qwen3", ["en"]), ("gemma3", ["en"]), ("qwen3", ["en", "bn"])):
        costs = module.msgspec.convert(module.read(module.CONF / "costs/study.yaml"), module.CostsConfig)
        sizes = [model for model, its in module.models().values() if its == family]
        found = module.shape(module.rows_of(costs, "math", family, languages), sizes)
        assert all(share > 0.95 and len(widths) <= 8 for share, widths in found.values())


def test_trainings_wait_for_checkpoints_under_3_percent_of_their_time_and_longer_on_a_slower_disk() -> None:
    lengths = np.full(32 * 512, 500)
    usual, slow = (benchmark().measure(lengths, disk)["checkpoint_share"] for disk in (1.0, 0.2))
    assert len(usual) == 5
    assert all(0 < share < 0.03 for share in usual.values())
    assert all(slow[name] > share for name, share in usual.items())


@pytest.mark.parametrize("text", ["[]", "{}", "[1, -2]", "[1.5]", "nothing", "[true]"])
def test_a_file_without_rows_is_refused_with_exit_code_2(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lengths.json"
    path.write_text(text)
    module = benchmark()
    with pytest.raises(UserError, match="lengths"):
        module.read_lengths(path)
    monkeypatch.setattr(sys, "argv", ["training_shape.py", "--lengths", str(path), "--json"])
    assert module.main() == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")

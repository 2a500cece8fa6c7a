"""Composing the cells of a sweep here against Hydra's own `compose()` of the same cells, in one run.

Prints one line with the ratio, and fails unless both gave the same configs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SWEEP = """
axes:
  model: [qwen3-0.6b, qwen3-1.7b, qwen3-8b, gemma3-1b, gemma3-4b]
  task: [math, api_calling]
  mixture:
{mixtures}
stages: [tokenizer, base, prepare, train, evaluate]
"""
LANGUAGES = ["bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh"]
MIXTURES: dict[str, list[str]] = {
    "none": [],
    **{f"first{n}": LANGUAGES[:n] for n in range(1, 12)},
    **{f"last{n}": LANGUAGES[-n:] for n in range(1, 11)},
}
"""22 mixtures: with 5 models and 2 tasks, 220 cells."""

TIMED = """
import json, sys, time
start = time.perf_counter()
from orchestrator.compose.main import compose
num_cells = len(compose(sys.argv[1]).sweep.cells)
print(json.dumps([num_cells, time.perf_counter() - start]))
"""


def write_sweep(folder: Path) -> Path:
    """Writes the sweep of 220 cells."""
    lines = [f"    {name}: {{languages: [{', '.join(value)}]}}" for name, value in MIXTURES.items()]
    path = folder / "bench.yaml"
    path.write_text(SWEEP.format(mixtures="\n".join(lines)))
    return path


def by_hydra(cells: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Composes each cell with Hydra alone and resolves it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from orchestrator.compose.files import shipped

    configs: list[Any] = []
    with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        for axes in cells:
            languages = ",".join(f"'{language}'" for language in MIXTURES[axes["mixture"]])
            overrides = [f"model={axes['model']}", f"task={axes['task']}", f"languages=[{languages}]"]
            configs.append(OmegaConf.to_container(compose("config", overrides), resolve=True))
    return configs


def main() -> int:
    """Times both ways and compares the configs."""
    from orchestrator.compose.main import compose
    from orchestrator.compose.root import Schema

    with tempfile.TemporaryDirectory() as name:
        path = write_sweep(Path(name))
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", TIMED, str(path)], check=True, capture_output=True)
        ours_wall_s = time.perf_counter() - start
        start = time.perf_counter()
        cells = compose(str(path)).sweep.cells
        ours_s = time.perf_counter() - start
    start = time.perf_counter()
    theirs = by_hydra([cell.axes for cell in cells])
    theirs_s = time.perf_counter() - start

    for cell, config in zip(cells, theirs, strict=True):
        # Hydra knows neither the schema nor fingerprints: give its configs the same treatment
        schema = Schema(config.pop("schema"))
        del config["fingerprints"]
        config["model"]["fingerprint"] = cell.config["model"]["fingerprint"]
        if _without_tuples(schema(config)) != cell.config:
            print(f"{cell.id} differs from what Hydra composes", file=sys.stderr)
            return 1
    print(
        f"plan: {len(cells)} cells in {ours_s:.2f} s ({ours_wall_s:.2f} s of wall with imports), "
        f"Hydra {theirs_s:.2f} s: ratio {theirs_s / ours_s:.1f}, configs equal"
    )
    return 0


def _without_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tuples(item) for key, item in value.items()}
    return [_without_tuples(item) for item in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    raise SystemExit(main())

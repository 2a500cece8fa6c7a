"""Runs the fine-tuning stages directly, without the engine: what a stage sees is all there is."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import msgspec
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from orchestrator.registry import load
from orchestrator.saving import MANIFEST
from orchestrator.sft.config import CellConfig
from orchestrator.stage import Checkpoint, Config, Context, Inputs, Row, StageSpec, StopSignal, Tracker

CONF = Path(__file__).resolve().parents[2] / "conf"
SMALL = (
    "model.architecture.hidden_size=32",
    "model.architecture.intermediate_size=64",
    "model.architecture.head_dim=8",
    "model.architecture.vocab_size=400",
    "model.tokenizer.num_items=10",
    "model.pretraining.num_steps=3",
    "model.pretraining.num_items=20",
    "data.num_train=24",
    "data.num_validation=4",
    "data.num_test=4",
    "trainer.global_batch_size=8",
    "trainer.micro_batch_size=8",
    "trainer.num_epochs=3",
    "evaluation.languages=[en,es]",
    "evaluation.max_new_tokens=8",
    "device=cpu",
)
FORKS = multiprocessing.get_context("forkserver")


@cache
def forks() -> ForkServerContext:
    """Return the context whose fork server has the heavy libraries: a new one, where there is one without."""
    server = forkserver._forkserver
    if server._forkserver_pid is not None:
        os.close(server._forkserver_alive_fd)  # it ends when the last that it forked has ended
        server._forkserver_pid = server._forkserver_alive_fd = server._forkserver_address = None
    FORKS.set_forkserver_preload(
        ["tests.execution.here", "torch", "transformers", "orchestrator.sft.preload"]
    )
    return FORKS


def tree_of(*overrides: str) -> dict[str, Any]:
    """Composes conf/config.yaml, without any coercion."""
    with initialize_config_dir(str(CONF), version_base=None):
        tree: Any = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    del tree["schema"], tree["fingerprints"]
    return dict(tree)


def config_of(*overrides: str) -> dict[str, Any]:
    """Composes and coerces the config of one cell, as the engine does."""
    built: dict[str, Any] = msgspec.to_builtins(msgspec.convert(tree_of(*overrides), CellConfig))
    return built


def small(*overrides: str) -> dict[str, Any]:
    """Returns the config of a cell whose stages take a second."""
    return config_of(*SMALL, *overrides)


def cut(config: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Returns the slice of a config that holds these dotted keys."""
    result: dict[str, Any] = {}
    for key in keys:
        source, target = config, result
        *parents, last = key.split(".")
        for parent in parents:
            source, target = source[parent], target.setdefault(parent, {})
        target[last] = source[last]
    return result


def run(
    spec: StageSpec,
    config: Mapping[str, Any],
    folder: Path,
    inputs: Mapping[str, Mapping[str, Path]] | None = None,
    *,
    resume: Checkpoint | None = None,
    interval_s: float = 3600.0,
    trackers: Sequence[Tracker] = (),
    stop: StopSignal | None = None,
    **extra: Any,
) -> tuple[Path, list[Row]]:
    """Runs one stage in this process and returns its product folder and rows."""
    assert spec.run
    context = Context(
        folder,
        uses=Config(cut(config, spec.uses), declared="uses"),
        resume=resume,
        checkpoint_interval_s=interval_s,
        trackers=trackers,
        stop=stop,
    )
    reads = Config({**cut(config, spec.reads), **extra})
    rows = load(spec.run)(reads, Inputs(inputs or {}), context)
    return context.output, rows


def in_child(*args: Any, **kwargs: Any) -> multiprocessing.process.BaseProcess:
    """Starts `run` in a child of a fork server, as a worker does."""
    child = forks().Process(target=run, args=args, kwargs=kwargs)
    child.start()
    return child


def newest(folder: Path) -> Checkpoint | None:
    """Returns the newest whole checkpoint of an attempt's folder."""
    whole = sorted(path.parent for path in (folder / "checkpoints").glob(f"*/{MANIFEST}"))
    return Checkpoint(int(whole[-1].name), whole[-1]) if whole else None


class Log:
    """A tracker that keeps what it is given, and may act on it."""

    def __init__(self, act: Callable[[int], None] = lambda step: None) -> None:
        self.entries: list[tuple[int, dict[str, float]]] = []
        self._act = act

    def log(self, step: int, metrics: Any) -> None:
        self.entries.append((step, dict(metrics)))
        self._act(step)

    def close(self) -> None:
        """Has nothing to flush."""

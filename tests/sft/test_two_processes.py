"""Training in two processes: the same steps as in one, sharded or not, and a rank that is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orchestrator.core.identity import canonical
from orchestrator.errors import StageFailure, StopRequested
from orchestrator.sft import stages
from orchestrator.sft.distributed import launcher
from orchestrator.stage import Checkpoint, Config, Context, Inputs, StopSignal
from tests.execution.waiting import lives, signal_all, until
from tests.sft import chain
from tests.sft.chain import Log
from tests.sft.conftest import STEPS, ByTwo, Ground
from tests.sft.test_training import MIXTURE, adopt, history, train, weights

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share

TWO, FSDP = "trainer.num_processes=2", "trainer.sharding=fsdp"


def distance(one: Path, other: Path) -> float:
    """Returns the largest difference of the weights of all epochs, and of the losses."""
    largest = max(
        abs(a - b)
        for h, g in zip(history(one), history(other), strict=True)
        for a, b in zip(h, g, strict=True)
    )
    for path in one.glob("checkpoints/*/model.safetensors"):
        ours, theirs = load_file(path), load_file(other / path.relative_to(one))
        assert set(ours) == set(theirs)
        largest = max(largest, *((ours[name] - theirs[name]).abs().max().item() for name in ours))
    return largest


def num_pieces(checkpoint: Checkpoint) -> set[int]:
    """Returns in how many pieces the matrices of a checkpoint's model and optimiser were saved."""
    files = (checkpoint.folder / "state").iterdir()
    matrices = [name for file in files for name, tensor in load_file(file).items() if tensor.ndim > 1]
    return set(Counter(matrices).values())


@pytest.mark.long
@pytest.mark.parametrize("sharding", ["fsdp", pytest.param("ddp", marks=pytest.mark.long)])
def test_two_processes_make_the_steps_of_one_the_last_partial_one_included(
    ground: Ground, by_two: ByTwo, tmp_path: Path, sharding: str
) -> None:
    one = train(ground, tmp_path / "one", *STEPS)
    two, log, checkpoint = by_two(sharding)
    assert len(history(two)[0]) == 12
    assert distance(one, two) < 2e-6
    summary = json.loads((two / "training.json").read_text())
    assert (summary["num_processes"], summary["micro_batch_size"]) == (2, 2)
    assert [step for step, metrics in log.entries if "loss" in metrics] == list(range(1, 13))
    assert num_pieces(checkpoint) == {2 if sharding == "fsdp" else 1}


def test_a_cell_on_two_processes_is_the_same_cell_and_scores_alike(
    ground: Ground, by_two: ByTwo, tmp_path: Path
) -> None:
    configs = [chain.small(MIXTURE, *STEPS, *more) for more in ((), (TWO, FSDP))]
    for spec in (stages.TRAIN, stages.EVALUATE):
        one, two = (canonical(chain.cut(config, spec.reads)) for config in configs)
        assert one == two  # the digest of a stage is made of this
    products = {"one": train(ground, tmp_path / "train", *STEPS), "two": by_two("fsdp").product}
    rows = {}
    for name, product in products.items():
        inputs = {**ground.inputs, "train": {"": product}}
        found = chain.run(stages.EVALUATE, configs[0], tmp_path / name, inputs)[1]
        measured = ("train_seconds", "tokens_per_second", "peak_memory_gib", "num_processes")
        rows[name] = [{key: value for key, value in row.items() if key not in measured} for row in found]
    assert rows["one"] == rows["two"] and len(rows["one"]) == 4


@pytest.mark.long
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "gemma3", "multimodal"])
def test_sharded_parameters_are_dtensors_equal_to_those_of_the_file(
    ground: Ground, gemma_ground: Ground, multimodal: Path, tmp_path: Path, family: str, bf16: bool
) -> None:
    base = (ground if family == "qwen3" else gemma_ground).inputs["base"]
    if family == "multimodal":
        base = {"": multimodal}
    facts = launcher.run(
        "tests.sft.sharded:place",
        Config({"bf16": bf16}),
        Inputs({"base": base}),
        Context(tmp_path),
        num_processes=2,
        device="cpu",
    )
    assert facts["kinds"] == facts["gradients"] == ["DTensor"]
    assert facts["dtypes"] == ["torch.float32"] and facts["halved"]
    assert facts["differ"] == facts["buffers"] == []
    saved, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "output", base[""]))
    assert set(saved) == set(before)
    assert all(torch.equal(saved[name], before[name]) for name in before)
    assert facts["loss"] > 0


def kill_rank(number: int, at_step: int) -> Callable[[int], None]:
    """Returns what kills a rank once, when it is told of a step."""

    def parent(pid: str) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]

    def kill(step: int) -> None:
        if step != at_step:
            return
        for path in Path("/proc").glob("[0-9]*"):
            try:
                variables = (path / "environ").read_bytes().split(b"\0")
                if b"RANK=%d" % number in variables and parent(parent(path.name)) == str(os.getpid()):
                    os.kill(int(path.name), signal.SIGKILL)
            except (OSError, IndexError):
                continue

    return kill


@pytest.mark.long
@pytest.mark.parametrize(("sharding", "number"), [("fsdp", 1), ("fsdp", 0), ("ddp", 1)])
def test_after_a_killed_rank_the_next_attempt_ends_bit_identically(
    ground: Ground, tmp_path: Path, sharding: str, number: int
) -> None:
    how = (*STEPS, TWO, f"trainer.sharding={sharding}")
    whole = train(ground, tmp_path / "whole", *how)
    first = tmp_path / "first"
    with pytest.raises(StageFailure, match=f"rank {number} was killed by SIGKILL"):
        train(ground, first, *how, interval_s=0.0, trackers=[Log(kill_rank(number, at_step=6))])
    checkpoint = chain.newest(first)
    assert checkpoint and 4 <= checkpoint.step <= 8
    second = train(ground, tmp_path / "second", *how, resume=adopt(checkpoint, tmp_path / "second"))
    assert weights(second) == weights(whole) and len(weights(whole)) == 3
    assert history(second) == history(whole)


@pytest.mark.long
@pytest.mark.parametrize(("before", "after"), [((TWO, FSDP), ()), ((), (TWO, FSDP)), ((TWO,), (TWO, FSDP))])
def test_a_stopped_training_goes_on_in_another_number_of_processes(
    ground: Ground, tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    signal_ = StopSignal()
    log = Log(lambda step: signal_.ask("preempted") if step == 6 else None)
    how: dict[str, Any] = {"stop": signal_, "trackers": [log]}
    with pytest.raises(StopRequested, match="preempted"):
        train(ground, tmp_path / "stopped", *STEPS, *before, **how)
    checkpoint = chain.newest(tmp_path / "stopped")
    assert checkpoint and checkpoint.step in (6, 7)
    resumed = train(
        ground, tmp_path / "resumed", *STEPS, *after, resume=adopt(checkpoint, tmp_path / "resumed")
    )
    assert distance(train(ground, tmp_path / "whole", *STEPS), resumed) < 2e-6


def note_step(folder: Path, step: int) -> None:
    (folder / "step").write_text(str(step))


def train_until_stopped(ground: Ground, folder: Path, how: tuple[str, ...]) -> None:
    """Trains, heeds SIGTERM as a stage's process does, and exits with 3 when it was stopped."""
    asked = StopSignal()
    signal.signal(signal.SIGTERM, lambda *_: asked.ask("stopped"))
    note = Log(lambda step: note_step(folder, step))
    try:
        train(ground, folder, *how, stop=asked, trackers=[note])
    except StopRequested:
        os._exit(3)


@pytest.mark.long
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_sigterm_to_all_processes_of_a_training_saves_a_checkpoint_that_goes_on_exactly(
    ground: Ground, tmp_path: Path, sharding: str
) -> None:
    how = (*STEPS, TWO, f"trainer.sharding={sharding}", "trainer.num_epochs=10")
    first = tmp_path / "first"
    first.mkdir()
    stage = multiprocessing.get_context("fork").Process(target=train_until_stopped, args=(ground, first, how))
    stage.start()
    until(lambda: (first / "step").exists() and int((first / "step").read_text() or 0) >= 3)
    pids = signal_all(stage.pid or 0, signal.SIGTERM)
    assert len(pids) == 5  # the stage, torchrun, the watcher and two ranks
    stage.join(30)
    assert stage.exitcode == 3
    until(lambda: not any(lives(pid) for pid in pids))
    checkpoint = chain.newest(first)
    assert checkpoint and checkpoint.step >= 3
    alone = (*STEPS, how[-1])
    resumed = train(ground, tmp_path / "next", *alone, resume=adopt(checkpoint, tmp_path / "next"))
    assert distance(train(ground, tmp_path / "whole", *alone), resumed) < 2e-6

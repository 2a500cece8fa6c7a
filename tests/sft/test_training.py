"""Training: exact resume, the global batch, and what is left behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orchestrator.errors import StageFailure, StopRequested
from orchestrator.sft import runtime, stages
from orchestrator.sft.shards import EpochOrder
from orchestrator.stage import Checkpoint, StopSignal
from tests.sft import chain
from tests.sft.conftest import Ground

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share

MIXTURE = "languages=[en,es]"


def weights(product: Path) -> dict[str, bytes]:
    return {
        path.relative_to(product).as_posix(): path.read_bytes()
        for path in sorted(product.rglob("*.safetensors"))
    }


def history(product: Path) -> tuple[list[float], list[float]]:
    summary = json.loads((product / "training.json").read_text())
    return summary["loss"], summary["validation_loss"]


def train(ground: Ground, folder: Path, *overrides: str, **how: Any) -> Path:
    product, rows = chain.run(stages.TRAIN, chain.small(MIXTURE, *overrides), folder, ground.inputs, **how)
    assert rows == []
    return product


def adopt(checkpoint: Checkpoint, attempt: Path) -> Checkpoint:
    """Links a checkpoint into a later attempt, as a worker does."""
    folder = attempt / "checkpoints" / checkpoint.folder.name
    shutil.copytree(checkpoint.folder, folder, copy_function=os.link)
    return Checkpoint(checkpoint.step, folder)


class Holds:
    """Lets a training go no further than a step, however late it is killed."""

    def __init__(self, step: int) -> None:
        self._step = step

    def log(self, step: int, metrics: Any) -> None:
        while step >= self._step:
            time.sleep(1)

    def close(self) -> None:
        """Has nothing to flush."""


def kill_at_random(ground: Ground, config: dict[str, Any], attempt: Path, how: dict[str, Any]) -> int:
    """Trains in a child and kills it some time after its next checkpoint; returns the exit code."""
    before = chain.newest(attempt)
    how = {**how, "trackers": [Holds((before.step if before else 0) + 14)]}
    child = chain.in_child(stages.TRAIN, config, attempt, ground.inputs, interval_s=0.0, **how)
    while child.is_alive() and chain.newest(attempt) == before:
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.25))
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    return child.exitcode or 0


def test_a_training_killed_at_random_moments_ends_with_bit_identical_weights(
    ground: Ground, tmp_path: Path
) -> None:
    config = chain.small(MIXTURE, "trainer.num_epochs=8")  # 48 steps
    whole = chain.in_child(stages.TRAIN, config, tmp_path / "whole", ground.inputs)
    whole.join()
    assert whole.exitcode == 0
    killed, checkpoint = 0, None
    for number in range(1, 4):
        attempt = tmp_path / f"attempt-{number}"
        how = {"resume": adopt(checkpoint, attempt)} if checkpoint else {}
        killed += kill_at_random(ground, config, attempt, how) == -signal.SIGKILL
        checkpoint = chain.newest(attempt) or checkpoint
        assert checkpoint
    assert killed == 3 and checkpoint and checkpoint.step < 48
    last = chain.in_child(
        stages.TRAIN, config, tmp_path / "last", ground.inputs, resume=adopt(checkpoint, tmp_path / "last")
    )
    last.join()
    assert last.exitcode == 0
    expected = weights(tmp_path / "whole/output")
    assert len(expected) == 8
    assert weights(tmp_path / "last/output") == expected
    assert history(tmp_path / "last/output") == history(tmp_path / "whole/output")


@pytest.mark.parametrize("step", [4, 6, 18])
def test_a_resume_mid_epoch_at_an_epochs_end_or_at_the_last_step_is_exact(
    ground: Ground, tmp_path: Path, step: int
) -> None:
    whole = train(ground, tmp_path / "whole")
    stop_after(ground, tmp_path / "stopped", step)
    checkpoint = chain.newest(tmp_path / "stopped")
    assert checkpoint and checkpoint.step == step
    resumed = train(ground, tmp_path / "resumed", resume=adopt(checkpoint, tmp_path / "resumed"))
    assert weights(resumed) == weights(whole)
    assert history(resumed) == history(whole)


def stop_after(ground: Ground, folder: Path, step: int) -> None:
    """Trains until `step`, after which a stop is asked."""
    signal_ = StopSignal()

    class Asker:
        def log(self, logged: int, metrics: Any) -> None:
            if logged == step:
                signal_.ask("preempted")

        def close(self) -> None:
            """Has nothing to flush."""

    with pytest.raises(StopRequested, match="preempted"):
        train(ground, folder, stop=signal_, trackers=[Asker()])


def test_regrouping_micro_batches_keeps_the_global_batch_and_the_weights(
    ground: Ground, tmp_path: Path
) -> None:
    whole = train(ground, tmp_path / "8")
    for size in (4, 1):
        parts = train(ground, tmp_path / str(size), f"trainer.micro_batch_size={size}")
        steps = [len(history(product)[0]) for product in (whole, parts)]
        assert steps == [18, 18]
        for name in ("000006", "000018"):
            one, other = (
                load_file(product / f"checkpoints/{name}/model.safetensors") for product in (whole, parts)
            )
            distance = max((one[key] - other[key]).abs().max().item() for key in one)
            assert distance < 5e-5, f"micro_batch_size={size} at step {name}"


def test_another_seed_gives_other_weights_and_the_same_seed_the_same(ground: Ground, tmp_path: Path) -> None:
    first, second = (train(ground, tmp_path / name) for name in ("first", "second"))
    other = train(ground, tmp_path / "other", "seed=1")
    assert weights(first) == weights(second)
    assert weights(first) != weights(other)


def test_the_product_holds_every_epoch_and_a_summary(ground: Ground, tmp_path: Path) -> None:
    product = train(ground, tmp_path)
    assert sorted(path.name for path in (product / "checkpoints").iterdir()) == ["000006", "000012", "000018"]
    files = sorted(path.relative_to(product).as_posix() for path in product.rglob("*") if path.is_file())
    assert not [name for name in files if "optimizer" in name or "README" in name or "args" in name]
    summary = json.loads((product / "training.json").read_text())
    assert (summary["num_steps"], summary["num_epochs"]) == (18, 3)
    assert len(summary["loss"]) == 18 and len(summary["validation_loss"]) == 3
    assert summary["loss"][-1] < summary["loss"][0]
    assert summary["train_seconds"] > 0 and summary["peak_memory_gib"] > 0.1
    assert (summary["num_processes"], summary["micro_batch_size"]) == (1, 8)
    assert 0 <= summary["padding_share"] < 0.3


def test_training_prints_nothing(ground: Ground, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(ground, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_loss_that_is_not_a_number_fails_with_its_cause(ground: Ground, tmp_path: Path) -> None:
    base = tmp_path / "broken"
    shutil.copytree(ground.inputs["base"][""], base)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)  # finite, but its product is not
    model.save_pretrained(base)
    broken = Ground(ground.root, {**ground.inputs, "base": {"": base}})
    with pytest.raises(StageFailure) as caught:
        train(broken, tmp_path / "train")
    assert caught.value.cause == "nan"


def test_the_rows_of_a_step_depend_on_seed_and_epoch_alone() -> None:
    lengths = [7, 3, 9, 4, 4, 8, 2, 6, 5, 1]
    order = EpochOrder(lengths, global_batch_size=4, seed=3)
    again = EpochOrder(lengths, global_batch_size=4, seed=3)
    assert [part.tolist() for part in order.steps(1)] == [part.tolist() for part in again.steps(1)]
    assert [len(part) for part in order.steps(0)] == [4, 4, 2]
    assert sorted(row for part in order.steps(2) for row in part) == list(range(10))
    assert order.steps(0)[0].tolist() != order.steps(1)[0].tolist()
    assert order.steps_per_epoch == 3


def test_a_resume_with_smaller_micro_batches_goes_on_at_the_same_step(ground: Ground, tmp_path: Path) -> None:
    whole = train(ground, tmp_path / "whole")
    stop_after(ground, tmp_path / "stopped", 8)
    checkpoint = chain.newest(tmp_path / "stopped")
    assert checkpoint and checkpoint.step == 8
    resumed = train(
        ground,
        tmp_path / "resumed",
        "trainer.micro_batch_size=2",
        resume=adopt(checkpoint, tmp_path / "resumed"),
    )
    assert [len(history(product)[0]) for product in (whole, resumed)] == [18, 18]
    for name in ("checkpoints/000012/model.safetensors", "checkpoints/000018/model.safetensors"):
        one, other = load_file(whole / name), load_file(resumed / name)
        assert max((one[key] - other[key]).abs().max().item() for key in one) < 5e-5


def test_deterministic_algorithms_are_a_setting_and_are_recorded(ground: Ground, tmp_path: Path) -> None:
    same = ("trainer.num_epochs=1", "trainer.gradient_checkpointing=selective")
    one, other = (
        train(ground, tmp_path / wanted, *same, f"trainer.deterministic={wanted}")
        for wanted in ("false", "auto")
    )
    assert not torch.are_deterministic_algorithms_enabled()
    assert weights(one) == weights(other)  # on a CPU all kernels repeat
    summaries = [json.loads((product / "training.json").read_text()) for product in (one, other)]
    assert [summary["deterministic"] for summary in summaries] == [False, True]
    assert [summary["gradient_checkpointing"] for summary in summaries] == ["selective", "selective"]


def test_a_model_without_deterministic_kernels_is_trained_by_others_unless_they_are_demanded(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = runtime.load_base

    def load_with_hook(*args: Any) -> Any:
        model = load(*args)
        # `put_` has no deterministic form on any device.
        model.register_forward_pre_hook(
            lambda *_: (torch.zeros(2).put_(torch.tensor([0]), torch.ones(1)), None)[1]
        )
        return model

    monkeypatch.setattr(runtime, "load_base", load_with_hook)
    product = train(ground, tmp_path / "auto", "trainer.num_epochs=1")
    summary = json.loads((product / "training.json").read_text())
    assert summary["deterministic"] is False and len(summary["loss"]) == 6
    with pytest.raises(StageFailure, match="does not have a deterministic implementation"):
        train(ground, tmp_path / "true", "trainer.num_epochs=1", "trainer.deterministic=true")


def test_bf16_with_gradient_checkpointing_learns_and_leaves_bf16_weights(
    gemma_ground: Ground, tmp_path: Path
) -> None:
    product = train(gemma_ground, tmp_path, "trainer.precision=bf16", "trainer.gradient_checkpointing=true")
    state = load_file(product / "checkpoints/000018/model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    losses, _ = history(product)
    assert losses[-1] < losses[0]


def test_a_child_of_the_fork_server_finds_everything_imported_and_no_gpu_opened(tmp_path: Path) -> None:
    child = chain.forks().Process(target=note_imports, args=(tmp_path / "modules",))
    child.start()
    child.join()
    assert (tmp_path / "modules").read_text() == "orchestrator.sft.train False"


def note_imports(path: Path) -> None:
    preloaded = "orchestrator.sft.train" if "orchestrator.sft.train" in sys.modules else "nothing"
    path.write_text(f"{preloaded} {torch.cuda.is_initialized()}")

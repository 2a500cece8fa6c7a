"""The main job itself: killed, it ends with bit-identical weights; and it takes a model of the user's."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.cli.launches import Running, records, running_heartbeats, wait_for

CELL = ("smoke", "model=tiny-qwen3", "task=math", "mixture=en+es", "policy.checkpoint_interval_s=0")


def weights(store: Path) -> dict[str, str]:
    (done,) = (store / "done" / "train").glob("*.json")
    files = json.loads(done.read_text())["files"]
    return {file["path"]: file["sha256"] for file in files if file["path"].endswith(".safetensors")}


def kill_the_training(store: Path, what: str, *, at_step: int, timeout_s: float = 90) -> None:
    def training() -> list[dict]:
        beats = [beat for beat in running_heartbeats(store) if "/records/train/" in str(beat["folder"])]
        return [beat for beat in beats if (beat["step"] or 0) >= at_step]

    beat = wait_for(training, timeout_s=timeout_s)[-1]
    pid = beat["child"]["pid"]
    if what == "worker":
        pid = json.loads((beat["folder"] / "claim.json").read_text())["owner"]["process"]["pid"]
    os.kill(pid, signal.SIGKILL)


@pytest.mark.long
def test_a_training_whose_child_and_worker_are_killed_ends_with_bit_identical_weights(sweep, tmp_path):
    calm, hunted = tmp_path / "calm", tmp_path / "hunted"
    sweep.store = calm
    sweep("launch", *CELL, timeout_s=240)
    words = ("launch", *CELL, "policy.lease_s=3", "policy.retries.unknown=5")
    launch = Running(sweep.folder, hunted, words)
    kill_the_training(hunted, "child", at_step=5)
    wait_for(lambda: len(list((hunted / "records" / "train").glob("*/*/claim.json"))) == 2)
    kill_the_training(hunted, "worker", at_step=20)
    code, output = launch.end(timeout_s=240)
    assert code == 0, output
    assert weights(hunted) == weights(calm)
    assert len(weights(calm)) >= 2
    resumed = [s["parent"] for s in records(hunted, "start.json") if "/records/train/" in str(s["folder"])]
    assert len(resumed) == 3
    assert any(resumed)


@pytest.mark.long
def test_a_local_model_folder_takes_the_place_of_a_tiny_model_and_its_stages(sweep, tmp_path):
    sweep("launch", "smoke", "model=tiny-qwen3", "task=math", "mixture=none", timeout_s=240)
    folder = tmp_path / "model"
    (base,) = (sweep.store / "payload" / "base").glob("*/1/output")
    shutil.copytree(base, folder)
    words = ("model=custom", f"model.path={folder}", "task=math", "mixture=none,en", "data.num_train=32")
    assert "has no tokenizer" in sweep("plan", "smoke", *words, code=2)
    (tokenizer,) = (sweep.store / "payload" / "tokenizer").glob("*/1/output")
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    plan = sweep.json("plan", "smoke", *words, "--name", "own-model")
    stages = {s["stage"] for cell in plan["cells"] for s in cell["stages"]}
    assert stages == {"prepare[en]", "train", "evaluate"}
    sweep("launch", "smoke", *words, "--name", "own-model", timeout_s=240)
    rows = sweep.json("collect", "own-model")
    assert {row["pretrained"] for row in rows} == {True, False}
    keys = (
        "cell model family num_parameters task mixture num_languages languages seed pretrained selected_step "
        "eval_language split num_correct num_items accuracy train_seconds train_tokens tokens_per_second"
    )
    assert set(keys.split()) <= set(rows[0])

"""Remedies as a user meets them: in a sweep file, in what the verbs show, and in a real training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.sft.shards import EpochOrder, rows_of
from tests.cli.launches import records

SWEEP = """
description: three seeds of which none fits as configured
config: {seed: 0, fit: {width: 8, parts: 1}, fits: 2}
axes: {seed: [1, 2, 3]}
stages:
  fit:
    command: >-
      if [ {uses.fit.width} -gt {config.fits} ]; then echo 'RuntimeError: CUDA out of memory' >&2; exit 1; fi;
      printf 'parts\\n%s\\n' {uses.fit.parts} > {output}/rows.csv
    shell: true
    results: rows.csv
    reads: [seed, fits]
    uses: [fit]
    alike: [fits]
    remedies:
      oom_gpu:
        - {halve: fit.width, double: fit.parts, times: 2}
        - {suggest: a smaller model}
"""


def test_a_sweep_with_remedies_finishes_and_every_verb_shows_what_was_changed(sweep):
    (sweep.folder / "hungry.yaml").write_text(SWEEP)
    sweep("launch", "hungry.yaml", "policy.retries.oom_gpu=0", "launcher.workers=1")
    found = sweep.json("status", "hungry")
    assert found["counts"] == {"done": 3}
    assert [cell["attempts"] for cell in found["cells"]] == [3, 1, 1]
    remedy = "oom_gpu rung 2 of 2: fit.parts 4, configured 1; fit.width 2, configured 8"
    assert [stage["remedy"] for cell in found["cells"] for stage in cell["stages"]] == [remedy] * 3
    assert f"remedy: fit: {remedy} (3 cells)" in sweep("status", "hungry")
    why = sweep("why", "hungry", "seed=1")
    assert "remedy: oom_gpu rung 1 of 2: fit.parts 2, configured 1; fit.width 4, configured 8" in why
    assert f"remedy: {remedy}" in why


def test_at_the_end_of_the_ladder_the_cause_stands_and_why_names_what_a_person_could_do(sweep):
    (sweep.folder / "hungry.yaml").write_text(SWEEP)
    words = ("fits=1", "seed=1", "policy.retries.oom_gpu=0")
    sweep("launch", "hungry.yaml", *words, "expect_cells=1", code=1)
    (cell,) = sweep.json("status", "hungry")["cells"]
    assert (cell["state"], cell["cause"], cell["attempts"]) == ("failed", "oom_gpu", 3)
    assert "you could: a smaller model" in sweep("why", "hungry", cell["cell"])
    (group,) = sweep.json("failures", "hungry")["failures"]
    assert group["remedy"].startswith("oom_gpu rung 2 of 2: ")


REHEARSED = """
description: what two seeds take is found out by their rehearsal
config: {model: big, seed: 0, fit: {width: 8}}
axes: {seed: [1, 2]}
stages:
  probe: &stage
    run: "steps:fit"
    reads: [model]
    uses: [fit]
    alike: [model]
    remedies: {oom_gpu: [{halve: fit.width, times: 2}]}
  fit: {<<: *stage, reads: [model, seed], gated_by: [probe]}
"""
STEPS = """
from orchestrator.errors import StageFailure


def fit(config, inputs, context):
    if context.uses.fit.width > 2:
        raise StageFailure("oom_gpu", "CUDA out of memory")
    return [{"width": context.uses.fit.width}]
"""


def test_a_stage_starts_with_the_remedy_that_its_rehearsal_needed(sweep):
    (sweep.folder / "rehearsed.yaml").write_text(REHEARSED)
    (sweep.folder / "steps.py").write_text(STEPS)
    sweep("launch", "rehearsed.yaml", "policy.retries.oom_gpu=0", "policy.rehearse=true")
    starts = records(sweep.store, "start.json")
    found = [(Path(start["folder"]).parts[-3], start["remedies"]["oom_gpu"][0]) for start in starts]
    assert sorted(found) == [("fit", 2), ("fit", 2), ("probe", 0), ("probe", 1), ("probe", 2)]


TRAINING = ("smoke", "model=tiny-qwen3", "task=math", "mixture=en", "policy.retries.oom_gpu=0")


def tokens_of_steps(store: Path) -> list[int]:
    """The tokens of the micro-batch of each step, padding included."""
    (shard,) = (store / "payload" / "prepare").glob("*/*/output")
    lengths = rows_of({"en": shard}, ["en"], "train", pad_token_id=0).lengths
    (train,) = (store / "records" / "train").glob("*/spec.json")
    reads = json.loads(train.read_text())["reads"]
    trainer = reads["trainer"]
    order = EpochOrder(lengths, global_batch_size=trainer["global_batch_size"], seed=reads["seed"])
    steps = [step for epoch in range(trainer["num_epochs"]) for step in order.steps(epoch)]
    return [len(step) * int(lengths[step].max()) for step in steps]


@pytest.mark.long
def test_a_training_that_runs_out_of_memory_finishes_with_the_losses_of_an_undisturbed_one(sweep, tmp_path):
    limits = {"calm": None, "at the longest batch": None, "at the first step": None}
    found = {}
    for name in limits:
        sweep.store = tmp_path / name.replace(" ", "-")
        limit = "null" if limits[name] is None else limits[name]
        sweep("launch", *TRAINING, f"trainer.cpu_limit_tokens={limit}", timeout_s=240)
        if name == "calm":
            tokens = tokens_of_steps(sweep.store)
            limits |= {"at the longest batch": max(tokens) - 1, "at the first step": min(tokens) // 2}
        else:
            ends = [end for end in records(sweep.store, "end.json") if end["outcome"] == "failed"]
            assert {end["cause"] for end in ends} == {"oom_gpu"}
            assert "remedy: train: oom_gpu rung" in sweep("status", "smoke")
        # That of the last attempt: earlier ones wrote no summary.
        (summary,) = (sweep.store / "payload" / "train").glob("*/*/output/training.json")
        found[name] = json.loads(summary.read_text())["loss"]
    assert found["at the longest batch"] == pytest.approx(found["calm"], rel=1e-3)
    assert found["at the first step"] == pytest.approx(found["calm"], rel=1e-3)

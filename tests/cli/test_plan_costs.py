"""`sweep plan` with costs and needs: the study's models, hooks of the user's, and launches."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from orchestrator.api.estimates import call
from orchestrator.costs import checked_needs
from orchestrator.errors import UserError

GRID = """
description: the study's models on small mixtures
axes:
  model: [qwen3-0.6b, qwen3-1.7b, qwen3-8b, gemma3-1b, gemma3-4b]
  task: [math, api_calling]
  mixture:
    none: {languages: []}
    en: {languages: [en]}
    core: {languages: [en, es, ja, bn, sw]}
overrides:
  - trainer=paper
  - evaluation=study
  - data.tasks.math.num_train=10000
  - data.tasks.api_calling.num_train=3024
  - costs.tasks.math.generated=null
  - costs.tasks.api_calling.generated=null
stages: [tokenizer, base, prepare, train, evaluate]
"""
ESTIMATE = {"num_steps", "num_tokens", "model_flops", "gpu_hours", "num_gpus", "micro_batch", "memory_gib"}
TOTALS = {"num_tokens", "model_flops", "gpu_hours", "peak_disk_gib", "num_generations"}

TINY = """
description: one tiny model
axes:
  mixture: {en: {languages: [en]}, en+bn: {languages: [en, bn]}}
overrides:
  - data.num_train=16
  - data.num_validation=4
  - data.num_test=4
  - trainer.num_epochs=1
  - evaluation.languages=[en]
  - evaluation.max_new_tokens=4
stages: [tokenizer, base, prepare, train, evaluate]
"""

OWN = """
description: stages of the user's with hooks of the user's
config: {{size: 1, item: [a, b], name: x}}
axes: {{name: [x, y]}}
stages:
  shared: {{command: "true", reads: [size], estimate: "own:shared", needs: "own:needs"}}
  each: {{command: "true", reads: [name], after: [shared], each: {{item: item}}, estimate: "own:each"}}
  quiet: {{command: "true", after: [each]}}
"""
HOOKS = """
from orchestrator.costs import Estimate, Need
from orchestrator.errors import InfrastructureError
import pathlib

def shared(config, *, label, hardware, retention, measured):
    return Estimate(gpu_hours=8.0, num_gpus=hardware.max_gpus, memory_gib=3.0, memory_terms_gib={"all": 3.0},
                    disk_gib=1.0, peak_disk_gib=5.0, assumptions=(f"keep {retention}",))

def each(config, *, label, hardware, retention, measured):
    assert label in "ab" and config.name in "xy"
    return Estimate(gpu_hours=1.0, num_steps=10, micro_batch=4, memory_gib=2.0,
                    disk_gib=2.0, peak_disk_gib=2.0)

def needs(config):
    def need(what):
        problem = "" if pathlib.Path(what).exists() else "not there"
        return Need(what=what, problem=problem, fetch="own:fetch", arguments={"what": what})
    return [need("common"), need(f"of-{config.name}")]

def fetch(*, what):
    if what == "of-y":
        raise InfrastructureError("the place of y is closed", fix="ask y")
    with pathlib.Path(what).open("x"):  # fails when it is fetched twice
        pass
"""


@pytest.fixture
def grid(sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The study's models, an empty cache of the hub, and no hub."""
    (sweep.folder / "grid.yaml").write_text(GRID)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return sweep


@pytest.fixture
def own(sweep: Any) -> Any:
    """Stages with hooks of the user's."""
    (sweep.folder / "own.yaml").write_text(OWN.format())
    (sweep.folder / "own.py").write_text(HOOKS)
    return sweep


def test_the_plan_of_the_studys_models_needs_no_network_and_says_what_each_cell_costs(grid: Any) -> None:
    plan = grid.json("plan", "grid.yaml", "--mfu", "0.4")
    assert plan["num_cells"] == 30
    assert set(plan["totals"]) >= TOTALS
    trained = [cell for cell in plan["cells"] if cell["axes"]["mixture"] != "none"]
    assert all(set(cell["estimate"]) >= {*ESTIMATE, "disk_gib"} for cell in plan["cells"])
    for key in ("num_tokens", "model_flops", "gpu_hours", "num_generations", "disk_gib"):
        total = sum(cell["estimate"][key] for cell in plan["cells"])
        assert plan["totals"][key] == pytest.approx(total)
    hours = plan["totals"]["model_flops"] / (312e12 * 0.4 * 3600)
    assert plan["totals"]["gpu_hours"] == pytest.approx(hours)
    steps = {(c["axes"]["task"], c["axes"]["mixture"]): c["estimate"]["num_steps"] for c in trained}
    assert steps == {
        ("math", "en"): 120,
        ("math", "core"): 588,
        ("api_calling", "en"): 36,
        ("api_calling", "core"): 180,
    }
    gpus = {cell["axes"]["model"]: cell["estimate"]["num_gpus"] for cell in trained}
    assert (gpus["qwen3-8b"], gpus["qwen3-0.6b"]) == (4, 1)
    for cell in trained:
        one = cell["estimate"]
        assert one["memory_gib"] == pytest.approx(sum(one["memory_terms_gib"].values()))
        assert one["memory_gib"] <= 80
        assert {"state", "activations", "logits"} <= set(one["memory_terms_gib"])


@pytest.mark.long
def test_device_utilisation_and_number_of_gpus_change_the_costs_and_no_digest(grid: Any) -> None:
    only = ("--only", "model=qwen3-8b mixture=en task=math")

    def planned(*words: str) -> tuple[dict[str, Any], list[str]]:
        (cell,) = grid.json("plan", "grid.yaml", *only, *words)["cells"]
        return cell["estimate"], [stage["digest"] for stage in cell["stages"]]

    a100, digests = planned("--mfu", "0.4")
    half, same = planned("--mfu", "0.2")
    assert half["gpu_hours"] == pytest.approx(2 * a100["gpu_hours"])
    h200, also = planned("--device", "h200", "--mfu", "0.4")
    assert h200["gpu_hours"] == pytest.approx(a100["gpu_hours"] * 312 / 989)
    assert h200["num_gpus"] == 2 < a100["num_gpus"]
    setting, again = planned("hardware.device=h200", "hardware.mfu=0.4")
    assert setting == h200
    assert digests == same == also == again


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "h20"), "unknown device 'h20'"),
        (("hardware.device=H100",), "did you mean h100"),
        (("--mfu", "0"), "hardware.mfu is 0.0"),
        (("--mfu", "1.01"), "at most 1"),
        (("--mfu", "fast"), "invalid float value: 'fast'"),
        (("--mfu", "nan"), "hardware.mfu is nan"),
        (("--max-gpus", "0"), "hardware.max_gpus is 0"),
        (("--max-gpus", "2"), "qwen3-8b does not fit on 2 x a100"),
        (("--device", "a10g"), "qwen3-8b does not fit on 8 x a10g"),
        (
            ("--device", "a10g", "--only", "model=qwen3-8b mixture=none", "evaluation.engine=transformers"),
            "qwen3-8b does not fit one device to generate",
        ),
        (("trainer.micro_batch_size=64",), "trainer.micro_batch_size=null"),
    ],
)
def test_what_cannot_be_is_an_error_of_the_plan(grid: Any, words: tuple[str, ...], said: str) -> None:
    output = grid("plan", "grid.yaml", *words, code=2)
    assert output.startswith("error: ") and said in output


def test_the_table_is_short_and_names_what_was_assumed(grid: Any) -> None:
    output = grid("plan", "grid.yaml", "--mfu", "0.4")
    assert "MFU 40% (as given)" in output and "estimated for a100 (79.1 GiB)" in output
    (row,) = [line for line in output.splitlines() if line.startswith("qwen3-8b  ") and " state " in line]
    assert "logits" in row and "120-588" not in row and "36-588" in row


@pytest.mark.long
def test_cells_without_their_model_are_blocked_and_not_launched(grid: Any) -> None:
    plan = grid.json("plan", "grid.yaml", "--only", "model=qwen3-8b,gemma3-1b")
    assert {cell["state"] for cell in plan["cells"]} == {"blocked"}
    revision = "49e3418fbbbca6ecbdf9608b4d22e5a407081db4"
    assert plan["cells"][0]["blocked"][0] == f"model Qwen/Qwen3-8B-Base@{revision}: not in the cache"
    output = grid("plan", "grid.yaml", "seed=3")
    assert "30 cells blocked" in output
    assert "sweep prefetch grid.yaml seed=3" in output
    refused = grid("launch", "grid.yaml", "seed=3", code=2)
    assert "30 cells of grid cannot run here yet" in refused and "sweep prefetch grid.yaml seed=3" in refused
    assert not grid.store.exists()


@pytest.mark.long
def test_prefetch_without_a_hub_fails_soon_and_names_each_need_once(grid: Any) -> None:
    output = grid("prefetch", "grid.yaml", "--only", "model=qwen3-8b,gemma3-1b", code=3, timeout_s=30)
    has_vllm = importlib.util.find_spec("vllm") is not None
    assert f"3 needs, {2 if has_vllm else 3} missing" in output
    assert "Qwen/Qwen3-8B-Base is not to be had from the hub: HF_HUB_OFFLINE is set" in output
    assert "google/gemma-3-1b-pt is not to be had" in output
    assert not grid.store.exists()


def test_a_model_that_no_memory_here_can_hold_is_refused_before_anything_is_recorded(sweep: Any) -> None:
    folder = sweep.folder / "huge"
    folder.mkdir()
    sizes = {"num_hidden_layers": 500, "hidden_size": 16384, "intermediate_size": 65536, "vocab_size": 99}
    text = {"model_type": "qwen3", "num_attention_heads": 128, "head_dim": 128, **sizes}
    (folder / "config.json").write_text(json.dumps(text))
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    names = [f"model.layers.{layer}.self_attn.q_norm.weight" for layer in range(500)]
    save_file({name: numpy.ones(128, numpy.float32) for name in names}, folder / "model.safetensors")
    (sweep.folder / "tiny.yaml").write_text(TINY)
    words = ("model=custom", "model.path=huge")
    output = sweep("launch", "tiny.yaml", *words, code=2)
    assert "huge does not fit" in output and "state" in output
    assert not sweep.store.exists()


def test_what_is_wrong_with_a_model_is_a_line_of_the_plan_and_a_refusal_to_launch(sweep: Any) -> None:
    folder = sweep.folder / "clone"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")
    (sweep.folder / "tiny.yaml").write_text(TINY)
    words = ("model=custom", "model.path=clone")
    line = "clone: model.safetensors is a git-lfs pointer, not the file: git lfs pull"
    output = sweep("plan", "tiny.yaml", *words)
    assert line in output and "prefetch" not in output
    refused = sweep("launch", "tiny.yaml", *words, code=2)
    assert line in refused and "prefetch" not in refused
    assert not sweep.store.exists()


def test_a_shared_stage_counts_once_and_stages_without_a_hook_say_nothing(own: Any) -> None:
    (own.folder / "common").touch()
    plan = own.json("plan", "own.yaml", "--max-gpus", "2")
    assert [cell["estimate"]["gpu_hours"] for cell in plan["cells"]] == [10.0, 10.0]
    assert plan["totals"]["gpu_hours"] == 8 + 4 * 1
    assert plan["totals"]["disk_gib"] == 1 + 4 * 2
    assert plan["totals"]["peak_disk_gib"] == 1 + 4 * 2 + (5 - 1)
    one = plan["cells"][0]["estimate"]
    assert (one["num_gpus"], one["micro_batch"], one["memory_gib"], one["num_steps"]) == (2, 4, 3.0, 20)
    assert one["peak_disk_gib"] == 5 + 4
    assert one["assumptions"] == ["keep all"]


def test_prefetch_fetches_each_need_once_and_the_others_when_one_fails(own: Any) -> None:
    assert own.json("plan", "own.yaml")["cells"][0]["blocked"] == ["common: not there", "of-x: not there"]
    output = own("prefetch", "own.yaml", code=3)
    assert "3 needs, 3 missing" in output
    assert "1 need of own could not be fetched\n  the place of y is closed\n  ask y" in output
    assert (own.folder / "common").exists() and (own.folder / "of-x").exists()
    states = [cell["state"] for cell in own.json("plan", "own.yaml")["cells"]]
    assert states == ["pending", "blocked"]
    assert "launch the other cells with --only" in own("launch", "own.yaml", code=2)
    assert not own.store.exists()
    assert "1 cell can run here" in own("prefetch", "own.yaml", "--only", "name=x")
    assert "1 cell: 1 done" in own("launch", "own.yaml", "--only", "name=x")
    (own.folder / "common").unlink()  # what is done needs nothing any more
    assert own.json("plan", "own.yaml", "--only", "name=x")["cells"][0]["blocked"] == []


def test_a_hook_that_fails_is_named(own: Any) -> None:
    (own.folder / "own.py").write_text(HOOKS + "\ndef shared(config, **given):\n    return config.nothing\n")
    output = own("plan", "own.yaml", code=2)
    assert "the hook own:shared failed: StageFailure" in output and "nothing" in output
    (own.folder / "own.py").write_text(HOOKS.replace("def shared", "def other"))
    assert "module 'own' has no 'shared'" in own("plan", "own.yaml", code=2)


@pytest.mark.parametrize("returned", [3, None, ["model"], "model"])
def test_what_is_no_list_of_needs_is_refused_by_the_name_of_the_hook(returned: Any) -> None:
    with pytest.raises(UserError, match=f"the hook own:needs returned {re.escape(repr(returned))}"):
        checked_needs("own:needs", returned)
    assert checked_needs("own:needs", (each for each in ())) == []  # one that yields
    with pytest.raises(UserError, match="the hook own:needs failed: SystemExit: gone"):
        call("own:needs", sys.exit, "gone")


def test_a_sweep_without_hooks_shows_no_costs(sweep: Any) -> None:
    text = "config: {seed: 0}\naxes: {seed: [0, 1]}\nstages: {s: {command: 'true', reads: [seed]}}\n"
    (sweep.folder / "plain.yaml").write_text(f"description: plain\n{text}")
    plan = sweep.json("plan", "plain.yaml")
    assert (plan["totals"], plan["prefetch"], plan["cells"][0]["estimate"]) == (None, None, None)
    output = sweep("plan", "plain.yaml")
    assert "GPU" not in output and "in total" not in output


@pytest.mark.long
def test_after_a_launch_the_plan_uses_what_was_measured(sweep: Any) -> None:
    (sweep.folder / "tiny.yaml").write_text(TINY)
    before = sweep.json("plan", "tiny.yaml")
    assert not any(cell["estimate"]["measured"] for cell in before["cells"])
    sweep("launch", "tiny.yaml", "--only", "mixture=en", timeout_s=300)
    after = sweep.json("plan", "tiny.yaml")
    rows = json.loads(sweep("collect", "tiny", "--format", "json"))
    done, open_ = (cell["estimate"] for cell in after["cells"])
    assert done["measured"] and open_["measured"]
    assert done["num_tokens"] == rows[0]["train_tokens"]
    assert done["gpu_hours"] == pytest.approx(rows[0]["train_tokens"] / rows[0]["tokens_per_second"] / 3600)
    factor = done["num_tokens"] / before["cells"][0]["estimate"]["num_tokens"]
    assert open_["num_tokens"] == pytest.approx(factor * before["cells"][1]["estimate"]["num_tokens"], abs=1)
    assert "measured on 1 cell of the same model and task" in sweep("plan", "tiny.yaml")

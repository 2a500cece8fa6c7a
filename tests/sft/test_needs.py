"""What a cell needs of a hub: found in the cache without a network, and never asked for by a stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.sft.needs import missing_files, of_cell
from orchestrator.stage import Config
from tests.sft import chain

HUB_ID, REVISION = "org/model", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of one revision in an otherwise empty cache of the hub, as its client lays it out."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--org--model" / "snapshots" / REVISION
    folder.mkdir(parents=True)
    return folder


def test_a_model_is_there_when_config_tokenizer_and_all_weights_are(cache: Path) -> None:
    assert missing_files(HUB_ID, REVISION) == "not in the cache"
    (cache / "config.json").write_text("{}")
    assert missing_files(HUB_ID, REVISION) == "no tokenizer in the cache"
    (cache / "tokenizer.json").write_text("{}")
    assert missing_files(HUB_ID, REVISION) == "no weights in the cache"
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (cache / "model.safetensors.index.json").write_text(json.dumps(index))
    (cache / "model-1.safetensors").touch()
    assert missing_files(HUB_ID, REVISION) == "1 of 2 files of weights not in the cache"
    (cache / "model-2.safetensors").touch()
    assert missing_files(HUB_ID, REVISION) == ""
    assert missing_files(HUB_ID, "another") == "not in the cache"


def test_one_file_of_weights_is_enough(cache: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (cache / name).touch()
    assert missing_files(HUB_ID, REVISION) == ""


def test_a_cell_needs_the_pinned_revision_of_its_model(cache: Path) -> None:
    config = chain.config_of("model=custom", f"model.path={HUB_ID}", f"model.revision={REVISION}")
    (need,) = of_cell(Config(config))
    assert need.what == f"model {HUB_ID}@{REVISION}"
    assert need.problem == "not in the cache"
    assert need.arguments == {"repo_id": HUB_ID, "revision": REVISION}
    assert of_cell(Config(chain.config_of())) == []


@pytest.mark.parametrize("model", ["qwen3-0.6b", "qwen3-1.7b", "qwen3-8b", "gemma3-1b", "gemma3-4b"])
def test_the_studys_models_are_pinned_to_a_commit(model: str) -> None:
    revision = chain.config_of(f"model={model}")["model"]["revision"]
    assert len(revision) == 40 and int(revision, 16)


def test_hooks_import_no_torch_and_no_transformers() -> None:
    code = (
        "import sys, orchestrator.sft.estimate, orchestrator.sft.needs;"
        "sys.exit(str({'torch', 'transformers', 'datasets', 'huggingface_hub'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "\n"), done.stderr


@pytest.mark.long
def test_a_stage_never_asks_the_hub_and_says_what_to_run(tmp_path: Path) -> None:
    code = f"""
from orchestrator.errors import StageFailure
from orchestrator.sft import runtime
from orchestrator.stage import Config, Inputs
uses = Config({{"model": {{"path": "{HUB_ID}", "revision": "{REVISION}"}}}})
for load in (runtime.load_tokenizer, runtime.load_base):
    try:
        load(Inputs({{}}), uses)
    except StageFailure as failure:
        assert failure.cause == "data" and "sweep prefetch" in str(failure), failure
    else:
        raise AssertionError("it was there")
"""
    # a proxy that refuses at once: had the hub been asked, its client would try again and again for 24 s
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Retrying" not in done.stderr

"""Weights that are missing, left over or of another shape: refused by name, before anything is trained."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.errors import StageFailure
from orchestrator.sft import runtime, stages
from orchestrator.sft.generators.base import GeneratorSettings
from orchestrator.sft.generators.transformers import TransformersEngine
from tests.sft import chain
from tests.sft.architectures import tiny
from tests.sft.conftest import Ground

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share

Weights = dict[str, torch.Tensor]


def saved(folder: Path, model_type: str, change: Callable[[Weights], Weights]) -> Path:
    """Save a tiny model whose file of weights was changed."""
    tiny(model_type).save_pretrained(folder)
    rewrite(folder, change)
    return folder


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    file = folder / "model.safetensors"
    changed = {name: tensor.clone() for name, tensor in change(load_file(file)).items()}
    save_file(changed, file, metadata={"format": "pt"})


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


def one_more_layer(weights: Weights) -> Weights:
    return {**weights, **{n.replace(".1.", ".2."): t for n, t in weights.items() if ".layers.1." in n}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (prefixed("_orig_mod."), "25 missing: lm_head.weight, .*; 25 unexpected: _orig_mod.lm_head.weight"),
        (prefixed("module."), "25 missing: lm_head.weight, .*; 25 unexpected: module.lm_head.weight"),
        (without(".layers.1."), "11 missing: model.layers.1.input_layernorm.weight"),
        (without("lm_head"), "1 missing: lm_head.weight"),
        (without("embed_tokens"), "1 missing: model.embed_tokens.weight"),
        (one_more_layer, "11 unexpected: model.layers.2.input_layernorm.weight"),
        (
            lambda w: {**w, "model.norm.weight": torch.ones(16)},
            r"1 of another shape: model.norm.weight \(16,\), not",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_architecture_are_named(
    tmp_path: Path, change: Callable[[Weights], Weights], says: str
) -> None:
    folder = saved(tmp_path, "qwen3", change)
    for load in (runtime.load_weights, runtime.check_weights):
        with pytest.raises(StageFailure, match=says) as refused:
            load(folder)
        assert refused.value.cause == "data" and "Qwen3ForCausalLM" in str(refused.value)


@pytest.mark.parametrize(
    ("model_type", "change"),
    [
        ("gpt2", lambda w: {**w, "lm_head.weight": w["transformer.wte.weight"]}),
        ("gpt2", lambda w: {**w, "transformer.h.0.attn.masked_bias": torch.ones(1)}),
        ("llama", lambda w: {**w, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
        ("qwen3", prefixed("model.")),
        ("qwen3", lambda w: {name.removeprefix("model."): tensor for name, tensor in w.items()}),
    ],
)
def test_tied_weights_buffers_and_prefixes_that_the_library_knows_load_the_same_weights(
    tmp_path: Path, model_type: str, change: Callable[[Weights], Weights]
) -> None:
    loaded = runtime.load_weights(saved(tmp_path, model_type, change)).state_dict()
    expected = tiny(model_type).state_dict()
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    runtime.check_weights(tmp_path)


def test_embeddings_that_are_tied_in_the_config_but_not_in_the_file_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, "gpt2", lambda w: {**w, "lm_head.weight": w["transformer.wte.weight"] + 1})
    with pytest.raises(StageFailure, match="tie_word_embeddings, but input and output embeddings differ"):
        runtime.load_weights(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    loaded = runtime.load_weights(folder)
    assert torch.equal(loaded.lm_head.weight, loaded.transformer.wte.weight + 1)


def test_a_tokenizer_with_code_of_its_own_runs_none_of_it(ground: Ground, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ground.inputs["tokenizer"][""], folder)
    shutil.copytree(ground.inputs["base"][""], folder, dirs_exist_ok=True)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    file = folder / "tokenizer_config.json"
    mapped = {"AutoTokenizer": ["own.Own", None]}
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "tokenizer_class": "Own", "auto_map": mapped})
    )
    uses = chain.Config({"model": {"path": str(folder), "revision": None}}, declared="uses")
    with contextlib.suppress(StageFailure):
        runtime.load_tokenizer(chain.Inputs({}), uses)
    assert not (tmp_path / "ran").exists()


def test_every_stage_refuses_such_a_model(ground: Ground, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ground.inputs["base"][""], folder)
    shutil.copytree(ground.inputs["tokenizer"][""], folder, dirs_exist_ok=True)
    config = chain.small("languages=[en]", f"model.path={folder}")
    baseline = chain.small("languages=[]", f"model.path={folder}")
    shard, _ = chain.run(stages.PREPARE, config, tmp_path / "prepare", language="en")
    rewrite(folder, prefixed("_orig_mod."))
    for spec, cell, inputs, extra in (
        (stages.PREPARE, config, {}, {"language": "en"}),
        (stages.TRAIN, config, {"prepare": {"en": shard}}, {}),
        (stages.EVALUATE, baseline, {}, {}),
    ):
        with pytest.raises(StageFailure, match=r"unexpected.*missing|missing.*unexpected") as refused:
            chain.run(spec, cell, tmp_path / spec.name, inputs, **extra)
        assert refused.value.cause == "data"
    assert not list(tmp_path.rglob("checkpoints/0*"))


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


def test_a_pickle_is_never_read_as_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path, "qwen3", lambda weights: weights)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    settings = GeneratorSettings(torch.device("cpu"), "fp32", 2, 0)
    for load in (runtime.load_weights, runtime.check_weights, TransformersEngine(settings).load):
        with pytest.raises(StageFailure, match="no model in"):
            load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    name = "model.norm.weight"
    folder = saved(tmp_path, "qwen3", lambda weights: {**weights, name: weights[name] * value})
    with pytest.raises(StageFailure, match=rf"not finite: {name}") as refused:
        runtime.load_weights(folder)
    assert refused.value.cause == "data"


def test_a_tokenizer_of_another_class_is_an_error_of_the_data(ground: Ground, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ground.inputs["tokenizer"][""], folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": "GemmaTokenizer"}))
    (folder / "config.json").write_text((ground.inputs["base"][""] / "config.json").read_text())
    uses = chain.Config({"model": {"path": str(folder), "revision": None}}, declared="uses")
    with pytest.raises(StageFailure, match="GemmaTokenizer: Unk token") as refused:
        runtime.load_tokenizer(chain.Inputs({}), uses)
    assert refused.value.cause == "data"


def test_a_truncated_file_is_an_error_of_the_data(tmp_path: Path) -> None:
    folder = saved(tmp_path, "qwen3", lambda weights: weights)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StageFailure, match="no model in") as refused:
        runtime.load_weights(folder)
    assert refused.value.cause == "data"


def test_a_tokenizer_without_an_end_is_refused_by_its_file(ground: Ground, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ground.inputs["tokenizer"][""], folder)
    shutil.copytree(ground.inputs["base"][""], folder, dirs_exist_ok=True)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "eos_token": None}))
    config = chain.small("languages=[en]", f"model.path={folder}")
    with pytest.raises(StageFailure, match=r"no eos_token in tokenizer_config\.json"):
        chain.run(stages.PREPARE, config, tmp_path / "prepare", language="en")


without_gpus = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees GPUs here")


@without_gpus
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_gpus_that_were_given_and_that_torch_does_not_see_are_a_bad_node_and_no_training_on_the_cpu(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(StageFailure, match=r"of the 2 GPUs of CUDA_VISIBLE_DEVICES=4,5") as caught:
        runtime.device_of(device)
    assert caught.value.cause == "bad_node"
    assert runtime.device_of("cpu") == torch.device("cpu")


@without_gpus
@pytest.mark.parametrize("hidden", ["", "-1"])
def test_without_gpus_a_stage_computes_on_the_cpu(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert runtime.device_of("auto") == torch.device("cpu")
    with pytest.raises(StageFailure, match="torch sees no GPU"):
        runtime.device_of("cuda")

# ruff: noqa: B023, E501 - questions are asked at once, each on a line
"""Configs, memory, speeds, estimates and divisions of steps are as recorded, see ../recording.py."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from orchestrator.core.settings import HardwareSettings
from orchestrator.core.tree import with_value
from orchestrator.costs import Estimate, Finished, Hardware, Measured
from orchestrator.sft import estimate, model_folder, needs
from orchestrator.sft.config import CellConfig
from orchestrator.sft.memory import (
    Load,
    decoder,
    generation_gib,
    in_words,
    reserve_gib,
    terms_gib,
    widest_pack,
)
from orchestrator.sft.packing import (
    Packs,
    PaddedTokens,
    RowsAtATime,
    expected_share,
    plan_widths,
    useful_share,
)
from orchestrator.sft.predictions import Prediction, Score, scores_of, select
from orchestrator.sft.shards import EpochOrder
from orchestrator.sft.speed import cost, decided, fit, mfu, save_costs
from orchestrator.stage import Config
from tests.recording import Answers, answer, compare, plain
from tests.sft import chain

RECORDED = Path(__file__).parent / "recorded"
REAL = ("trainer=paper", "evaluation=study", "costs.tasks.math.generated=null", "languages=[en,sw]")
MODELS = ("qwen3-0.6b", "qwen3-8b", "gemma3-4b")


def short(value: Any) -> Any:
    """A value with figures of five digits, which every machine computes alike."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Estimate | msgspec.Struct):
        fields = msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value._asdict()
        return short({name: each for name, each in fields.items() if each})
    if hasattr(value, "_asdict"):
        return short(value._asdict())
    if isinstance(value, dict):
        return {name: short(each) for name, each in value.items()}
    return [short(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def cells() -> dict[str, dict[str, Any]]:
    return {model: chain.config_of(f"model={model}", *REAL) for model in MODELS}


CHANGES: tuple[tuple[str, Any], ...] = (
    ("languages", ["en", "xx"]), ("languages", ["sw", "en"]), ("languages", ["en", "en"]), ("seed", -1),
    ("evaluation.languages", []), ("evaluation.languages", ["EN"]), ("evaluation.engine", "vlm"), ("evaluation.engine", "vllm"),
    ("evaluation.batch_size", 0), ("evaluation.precision", "fp16"), ("trainer.micro_batch_size", 3),
    ("trainer.micro_batch_divisor", 3), ("trainer.micro_batch_tokens", 9), ("trainer.sharding", "x"),
    ("trainer.warmup_share", 1), ("trainer.learning_rate", "fast"), ("trainer.gradient_checkpointing", "some"),
    ("trainer.more", 1), ("model.path", "org/name"), ("model.path", "/nowhere"), ("model.family", "llama"),
    ("model.architecture.num_kv_heads", 3), ("model.architecture", None), ("model.tokenizer", None), ("task.name", "maths"),
    ("task.target", "nothing_here:task"), ("items.source", "files"), ("items.source", "hub"), ("items.num_train", None),
    ("items.num_validation", None), ("items.languages", ["en", "fr"]), ("items.source", "parallel"), ("items.dir", "x"),
    ("costs.mfu", []), ("costs.tasks", {"math": {"num_train": 1, "num_validation": 1, "num_test": 1, "tokens": {}}}),
    ("costs.generation_mfu", 2), ("device", "tpu"), ("extras", ["zz"]),
)  # fmt: skip


def configs_asked() -> Answers:
    tree = chain.tree_of()
    for key, value in CHANGES:
        changed = with_value(copy.deepcopy(tree), key.split("."), value)

        def made(changed: dict[str, Any] = changed) -> object:
            try:
                config = msgspec.convert(changed, CellConfig)
                config.check()
            except msgspec.ValidationError as error:
                return f"ValidationError: {error}"
            return {name: getattr(config, name) for name in ("languages", "extras")} | {
                "batch": config.evaluation.batch_size, "model": config.model.name, "cached": config.items.cached,
            }  # fmt: skip

        yield f"{key}={value}", answer(made)


HARDWARE = {
    "a100": HardwareSettings().assumed,
    "given": HardwareSettings(mfu=0.4, max_gpus=2).assumed,
    "h200": HardwareSettings(device="h200", max_gpus=4, cells_at_once=3).assumed,
    "cpu": Hardware(device="cpu", memory_gib=64, peak_tflops=0.1, max_gpus=1),
    "small": Hardware(device="a10g", memory_gib=24, peak_tflops=125, max_gpus=4),
}
TRAINERS: tuple[dict[str, Any], ...] = (
    {}, {"gradient_checkpointing": True}, {"gradient_checkpointing": "selective", "compile": False},
    {"gradient_checkpointing": False, "micro_batch_tokens": 4096}, {"micro_batch_size": 4}, {"num_processes": 2},
    {"sharding": "ddp", "precision": "fp32"}, {"num_processes": 16}, {"max_length_tokens": 512, "num_epochs": 1},
)  # fmt: skip


def estimates_asked(cells: dict[str, dict[str, Any]]) -> Answers:
    def costs(
        hook: Any, config: dict[str, Any], hardware: Hardware, measured: Any, retention: str = "best"
    ) -> object:
        given = Config(copy.deepcopy(config))
        return short(hook(given, label="", hardware=hardware, retention=retention, measured=measured))

    nothing = Measured()
    for (model, config), (name, hardware) in itertools.product(cells.items(), HARDWARE.items()):
        for hook in (estimate.train, estimate.evaluate, estimate.rehearse):
            yield f"{hook.__name__} {model} on {name}", answer(lambda: costs(hook, config, hardware, nothing))
    config = cells["qwen3-0.6b"]
    for trainer in TRAINERS:
        changed = {**config, "trainer": {**config["trainer"], **trainer}}
        yield (
            f"train {trainer}",
            answer(lambda: costs(estimate.train, changed, HARDWARE["a100"], nothing, "all")),
        )
    for key, value in (
        ("languages", []), ("languages", ["en", "th"]), ("items.num_train", None), ("model.architecture", None),
        ("task.name", "unknown"), ("costs", None), ("evaluation.engine", "transformers"), ("evaluation.num_processes", 4),
        ("items.num_test", None), ("model.family", "llama"),
    ):  # fmt: skip
        changed = with_value(copy.deepcopy(config), key.split("."), value)
        for hook in (estimate.train, estimate.evaluate)[value == [] :]:  # a baseline is not trained
            yield (
                f"{hook.__name__} {key}={value}",
                answer(lambda: costs(hook, changed, HARDWARE["a100"], nothing, "none")),
            )
    row = {
        "split": "test",
        "num_items": 250,
        "train_tokens": 10**7,
        "tokens_per_second": 1e4,
        "peak_memory_gib": 33.0,
    }
    both = [
        Finished(config, [{**row, "num_gpus": n, "tokens_per_second": 1e4 * n**0.8}], 270.0 * n)
        for n in (1, 2, 4)
    ]
    rehearsal = {"save_seconds": 3.0, "tokens_per_second": 9e3, "num_processes": 2, "peak_memory_gib": 40.0}
    for name, measured in (
        ("one", {"evaluate": both[:1]}), ("three", {"evaluate": both}), ("no rows", {"evaluate": [Finished(config, [], 1.0)]}),
        ("rehearsed", {"rehearse": [Finished(config, [rehearsal], 60.0)]}),
        ("untrained", {"evaluate": [Finished(config, [{"split": "test", "num_items": 250}], 90.0)]}),
    ):  # fmt: skip
        for languages in (["en", "sw"], ["en"]):
            changed = {**config, "languages": languages}
            for hook in (estimate.train, estimate.evaluate, estimate.rehearse):
                yield (
                    f"{hook.__name__} {languages} after {name}",
                    answer(lambda: costs(hook, changed, HARDWARE["h200"], Measured(measured))),
                )


def speeds_asked(cells: dict[str, dict[str, Any]]) -> Answers:
    for name, config in cells.items():
        model = decoder(config["model"]["architecture"], config["model"]["family"])
        yield f"sizes of {name}", [model, model.num_embeddings, model.num_unlayered, model.num_layer]
        loads = [
            Load(1024, how, size, chunk, sharded)
            for how, size, chunk, sharded in (
                (True, 2, 1024, True), (False, 4, None, False), ("selective", 2, 64, True), (None, 2, 1024, True),
            )
        ]  # fmt: skip
        for load, gpus in itertools.product((*loads, loads[0]._replace(on_cpu=True)), (1, 4)):
            if load.checkpointing is not None:
                found = terms_gib(model, load, num_gpus=gpus, micro_batch=2, memory_gib=80)
                yield f"memory of {name} {load[1:]} on {gpus}", [short(dict(found)), in_words(found)]
                yield (
                    "  widest",
                    [widest_pack(model, load, num_gpus=gpus, memory_gib=gib) for gib in (24, 80, 140)],
                )
            for gib in (24, 79, 139.7):
                how = {"num_gpus": gpus, "memory_gib": gib, "most_tokens": 32768}
                yield f"decided for {name} {load} {how}", decided(model, load, **how)
        for most, gib, rows in ((8, 79, None), (1, 79, None), (8, 24, None), (8, 79, 4), (3, 139.7, 64)):
            load = Load(2048, None, loss_chunk_tokens=1024)
            found = fit(model, load, max_gpus=most, memory_gib=gib, global_batch=512, micro_batch=rows)
            yield f"fit of {name} on {most} of {gib} with {rows}", short(found) if found else None
        for how, compiled, tokens in itertools.product(
            (True, False, "selective"), (True, False), (2048, 32768)
        ):
            how_ = {"recomputes": how, "is_compiled": compiled, "pack_tokens": tokens}
            yield (
                f"cost of {name} {how_}",
                short([cost(model, **how_), mfu(model, "NVIDIA H100 80GB", **how_)]),
            )
        yield "  on a CPU", mfu(model, "cpu", recomputes=True, is_compiled=True, pack_tokens=1)
        given = {"weight_bytes": 2, "step_s": 20.0, "num_steps": 300, "num_epochs": 3}
        for more in (
            {},
            {"is_copied": False},
            {"disk_gb_s": 0.1},
            {"validation_s": 60.0},
            {"interval_s": 600.0},
        ):
            for gpus in (1, 8):
                yield (
                    f"saves of {name} {more} {gpus}",
                    short(save_costs(model.num_parameters, num_gpus=gpus, **{**given, **more})),
                )
        for tokens in (100.0, 5000.0):
            yield (
                f"generation {name} {tokens}",
                short(dict(generation_gib(model, config["evaluation"], tokens))),
            )
    yield "reserve", [short(reserve_gib(gib, on_cpu=on_cpu)) for gib in (24, 80) for on_cpu in (True, False)]


def divisions_asked() -> Answers:
    lengths = np.array([9, 7, 7, 5, 4, 4, 3, 2, 2, 1, 1, 30])
    rows = np.argsort(-lengths, kind="stable")
    for name, made in (
        *((f"{n} rows", RowsAtATime(n)) for n in (1, 2, 5)),
        *((f"{n} tokens", PaddedTokens(lengths, max_tokens=n)) for n in (8, 16, 40, 200)),
        *((f"packs {widths}", Packs(lengths, widths=widths)) for widths in ([16], [16, 32], [8, 64])),
    ):
        for number in (1, 2, 3):
            parts = [made.parts(rows, rank=rank, num_processes=number) for rank in range(number)]
            yield f"{name} for {number}", [[tuple(part) for part in each] for each in parts]
        if isinstance(made, Packs):
            steps = [rows[:4], rows[4:8], rows[8:]]
            found = made.computed(steps, num_processes=2)
            yield (
                "  computed",
                [
                    found.tolist(),
                    made.widest(steps),
                    made.max_rows(steps),
                    round(useful_share(lengths, steps, found), 6),
                ],
            )
    many = np.random.default_rng(3).lognormal(4, 0.6, 400).astype(int) + 1
    order = EpochOrder(many, global_batch_size=32, seed=5)
    steps = order.steps(1)
    yield "steps", [order.steps_per_epoch, [step[:6].tolist() for step in steps[:4]], len(steps[-1])]
    for number, most in itertools.product((1, 2, 8), (512, 2048)):
        found = answer(lambda: plan_widths(many, steps, max_tokens=most, num_processes=number))
        yield f"widths {number} {most}", list(found) if not isinstance(found, str) else found

    for means, more in itertools.product(
        ((200.0,), (100.0, 700.0)), ({}, {"micro_batch_size": 4}, {"num_processes": 8}, {"num_rows": 60})
    ):
        given = {
            "num_rows": 1000,
            "global_batch_size": 64,
            "longest": 2048,
            "num_processes": 2,
            "max_tokens": 8192,
        }
        yield f"expected {means} {more}", short(expected_share(means, 0.5, **{**given, **more}))


def scores_asked(folder: Path) -> Answers:
    kept = [
        Prediction(**{**dict.fromkeys(Prediction._fields, ""), "split": split, "step": step, "language": language,
                      "correct": correct, "truncated": cut})
        for split, step, language, correct, cut in (
            ("validation", 10, "en", True, False), ("validation", 10, "en", False, True), ("validation", 20, "en", True, False),
            ("validation", 20, "sw", False, False), ("validation", 10, "sw", True, False), ("test", None, "en", False, True),
        )
    ]  # fmt: skip
    scores = scores_of(kept)
    yield "scores", [[*score, score.accuracy] for score in scores]
    yield "selected", select(scores)
    for found in ([(3, 1, 2), (7, 1, 2)], [(3, 1, 3), (7, 2, 3)], [(7, 2, 3), (3, 2, 3), (5, 1, 3)]):
        yield (
            f"selected of {found}",
            select([Score("validation", step, "en", right, of) for step, right, of in found]),
        )


def folders_asked(folder: Path) -> Answers:
    config = {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 2, "hidden_size": 8,
        "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 9, "max_position_embeddings": 64,
    }  # fmt: skip
    yield "no folder", needs.problem_of(folder / "none", 8)
    for files in (
        {}, {"config.json": "{"}, {"config.json": "[]"}, {"config.json": "{}"}, {"config.json": json.dumps(config)},
        {"config.json": json.dumps(config), "model.safetensors": "x"},
        {"config.json": json.dumps(config), "model.safetensors": "x", "tokenizer.json": "{}"},
        {"config.json": json.dumps({**config, "architectures": ["BertModel"], "model_type": "bert"}), "model.safetensors": "x", "tokenizer.json": "{}"},
        {"config.json": json.dumps({**config, "max_position_embeddings": 4}), "model.safetensors": "x", "vocab.txt": ""},
        {"config.json": json.dumps(config), "pytorch_model.bin": "x", "tokenizer_config.json": '{"tokenizer_class": "ByT5Tokenizer"}'},
        {"config.json": json.dumps(config), "model.safetensors.index.json": '{"weight_map": {"a": "b.safetensors"}}'},
        {"config.json": json.dumps(config), "adapter_config.json": "{}", "adapter_model.safetensors": "x"},
        {"checkpoint-1/config.json": "{}", "checkpoint-2/config.json": "{}"}, {"model.gguf": "x"}, {"params.json": "{}"},
        {"config.json": json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}), "model.safetensors": "x"},
    ):  # fmt: skip
        place = folder / str(len(list(folder.iterdir())))
        for name, text in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
        place.mkdir(exist_ok=True)
        yield f"folder {files}"[:300], [needs.problem_of(place, 8), short(model_folder.inspect(place))]


def of(found: Answers, folder: Path) -> Iterator[tuple[str, object]]:
    return ((question, plain(each).replace(str(folder), "FOLDER")) for question, each in found)


def test_configs_are_refused_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compare(RECORDED / "configs.txt", of(configs_asked(), tmp_path))


def test_estimates_are_as_recorded(cells: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    compare(RECORDED / "estimates.txt", of(estimates_asked(cells), tmp_path))


def test_memory_and_speed_are_as_recorded(cells: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    compare(RECORDED / "speeds.txt", of(speeds_asked(cells), tmp_path))


def test_steps_are_divided_and_scores_chosen_as_recorded(tmp_path: Path) -> None:
    compare(RECORDED / "divisions.txt", of(divisions_asked(), tmp_path))
    compare(RECORDED / "scores.txt", of(scores_asked(tmp_path), tmp_path))


def test_folders_of_models_are_judged_as_recorded(tmp_path: Path) -> None:
    compare(RECORDED / "folders.txt", of(folders_asked(tmp_path), tmp_path))

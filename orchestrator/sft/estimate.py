"""What `train` and `evaluate` would cost: the hooks that a plan asks. Imports no torch and touches no store.

Steps are exact. Tokens come from facts in the config, FLOPs from the sizes of the model (6 a parameter and
token for forward and backward pass, 2 for a forward pass: Kaplan et al. 2020, arXiv 2001.08361, section 2.1),
hours from an assumed share of the device's peak, until cells have run.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from orchestrator.costs import Estimate, Hardware, Measured
from orchestrator.errors import UserError
from orchestrator.sft.facts import CostsConfig
from orchestrator.sft.measured import speed_of
from orchestrator.sft.memory import GIB, Decoder, Fit, Load, decoder, fit, terms_gib
from orchestrator.stage import Config

KEPT_RESUME_STATES = 2
RESUME_BYTES = 16
"""A parameter, in a state to resume from: as much as the state itself."""
_ARCHITECTURE = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "tied": "tie_word_embeddings",
}


class Work(NamedTuple):
    """What training goes through, from the config alone.

    Attributes:
        num_rows: of an epoch.
        num_steps: of all epochs.
        num_tokens: of all epochs.
        notes: where numbers come from.
    """

    num_rows: int
    num_steps: int
    num_tokens: int
    notes: tuple[str, ...]


def train(config: Config, *, label: str, hardware: Hardware, retention: str, measured: Measured) -> Estimate:
    """Estimates full fine-tuning on the mixture.

    Raises:
        UserError: no number of GPUs that may be taken can hold it.
    """
    costs = costs_of(config)
    if costs is None:
        return Estimate()
    work = work_of(config, costs)
    model = model_of(config)
    if model is None:
        unknown = f"the architecture of {config.model.name} is not known: no FLOPs, hours or memory"
        return Estimate(num_steps=work.num_steps, num_tokens=work.num_tokens, assumptions=(unknown,))
    placed = placed_on(config, model, hardware)
    speed = speed_of(config, measured, lambda other: work_of(other, costs).num_tokens)
    num_tokens = speed.tokens(config, work.num_tokens)
    flops = 6.0 * model.num_parameters * num_tokens
    again = 2.0 * (model.num_parameters - model.num_embeddings) * num_tokens
    notes = [*work.notes] if not speed.num_cells else []
    if speed.seconds_per_token is not None and hardware.mfu is None:
        gpu_hours = speed.seconds_per_token * num_tokens / 3600
        notes.append(f"training speed measured on {_cells(speed.num_cells)}, on whatever those ran")
    else:
        mfu = hardware.mfu or costs.mfu_of(model.num_parameters)
        gpu_hours = flops / (hardware.peak_tflops * 1e12 * mfu * 3600)
        notes.append(f"MFU {mfu:.0%} of {hardware.peak_tflops:g} TFLOP/s ({_source(hardware)})")
    if speed.num_cells:
        notes.append(f"tokens measured on {_cells(speed.num_cells)}")
    if speed.peak_memory_gib is not None:
        notes.append(f"peak memory measured on {_cells(speed.num_cells)}, its terms are computed")
    notes.append(f"memory for rows of trainer.max_length_tokens={config.trainer.max_length_tokens}")
    weights_gib = _weight_bytes(config) * model.num_parameters / GIB
    num_epochs = config.trainer.num_epochs
    resume_gib = KEPT_RESUME_STATES * RESUME_BYTES * model.num_parameters / GIB
    return Estimate(
        num_steps=work.num_steps,
        num_tokens=num_tokens,
        model_flops=flops,
        hardware_flops=flops + (again if config.trainer.gradient_checkpointing else 0.0),
        gpu_hours=gpu_hours,
        wall_hours=gpu_hours / placed.num_gpus,
        num_gpus=placed.num_gpus,
        micro_batch=placed.micro_batch,
        memory_gib=speed.peak_memory_gib or placed.memory_gib,
        memory_terms_gib=dict(placed.terms_gib),
        disk_gib=weights_gib * {"all": num_epochs, "best": 1, "none": 0}.get(retention, num_epochs),
        peak_disk_gib=weights_gib * num_epochs + resume_gib,
        assumptions=tuple(notes),
        measured=speed.num_cells > 0,
    )


def evaluate(
    config: Config, *, label: str, hardware: Hardware, retention: str, measured: Measured
) -> Estimate:
    """Estimates the answers: of every epoch to validation items, of one model to test items.

    Raises:
        UserError: one GPU cannot hold the model.
    """
    costs = costs_of(config)
    if costs is None:
        return Estimate()
    task = costs.tasks[config.task.name]
    languages, tested = config.languages, config.evaluation.languages
    num_validation = config.trainer.num_epochs * (config["items"].num_validation or task.num_validation)
    num_test = config["items"].num_test or task.num_test
    number = num_validation * len(languages) + num_test * len(tested)  # no language, no validation
    model = model_of(config)
    if model is None:
        return Estimate(num_generations=number)
    tokens = num_validation * _item_tokens(config, costs, languages)
    tokens += num_test * _item_tokens(config, costs, tested)
    terms = _generation_terms(config, model, hardware, tokens / number)
    _check_generation(config, terms, hardware)
    speed = speed_of(config, measured, lambda other: work_of(other, costs).num_tokens)
    if speed.seconds_per_answer is not None:
        hours = speed.seconds_per_answer * number / 3600
        note = f"generation speed measured on {_cells(speed.num_evaluations)}, on whatever those ran"
    else:
        hours = (
            2.0 * model.num_parameters * tokens / (hardware.peak_tflops * 1e12 * costs.generation_mfu * 3600)
        )
        note = (
            f"generation at {costs.generation_mfu:.0%} of the peak (ours), answers as long as the gold ones"
        )
    return Estimate(
        generation_gpu_hours=hours,
        wall_hours=hours,
        num_gpus=1,
        memory_gib=sum(terms.values()),
        memory_terms_gib=terms,
        num_generations=number,
        assumptions=(note,),
        measured=speed.seconds_per_answer is not None,
    )


def costs_of(config: Config) -> CostsConfig | None:
    """Returns the facts of a plan, None for a config sealed before there were any, or without this task's."""
    if "costs" not in config or config["costs"] is None:
        return None
    costs = msgspec.convert(config["costs"], CostsConfig)
    return costs if config.task.name in costs.tasks else None


def work_of(config: Config, costs: CostsConfig) -> Work:
    """Counts rows, steps and tokens: ``num_epochs * ceil(n * L / global batch)`` steps, the last partial."""
    task, items, languages = costs.tasks[config.task.name], config["items"], config.languages
    num_train = items.num_train or task.num_train
    num_rows = num_train * len(languages)
    num_epochs = config.trainer.num_epochs
    tokens = num_train * _item_tokens(config, costs, languages)
    notes = []
    if not items.num_train:
        notes.append(f"items.num_train is null: {num_train:,} a language assumed")
    if not _is_tiny(config, costs):
        tokens *= task.train_length_factor
        family, table = task.table(config.model.family)
        factor = f", times {task.train_length_factor:g} (ours)" if task.train_length_factor != 1 else ""
        notes.append(f"tokens of {config.task.name} as in costs.tasks for {family}{factor}")
        missing = [language for language in languages if language not in table]
        if missing:
            notes.append(f"no token count of {', '.join(missing)}: the mean of the others")
    num_steps = num_epochs * math.ceil(num_rows / config.trainer.global_batch_size)
    return Work(num_rows, num_steps, round(num_epochs * tokens), tuple(notes))


def _is_tiny(config: Config, costs: CostsConfig) -> bool:
    """Whether items are the generated ones, whose tokens a tiny vocabulary makes."""
    return config["items"].source == "generated" and costs.tasks[config.task.name].generated is not None


def _item_tokens(config: Config, costs: CostsConfig, languages: tuple[str, ...]) -> float:
    """Returns the tokens of one item in all of some languages together."""
    task = costs.tasks[config.task.name]
    if _is_tiny(config, costs) and task.generated is not None:
        return task.generated * len(languages)
    return task.of_languages(languages, config.model.family)


def model_of(config: Config) -> Decoder | None:
    """Returns the sizes of the cell's model: as the config has them, or as its local folder says."""
    if config.model.architecture is not None:
        architecture = config.model.architecture
        return decoder(architecture, config.model.family)
    return _decoder_in(config.model.path) if config.model.path else None


@functools.cache
def _decoder_in(path: str) -> Decoder | None:
    """Reads the sizes from a folder's config.json; None for a hub id, or a model of another kind."""
    try:
        tree = json.loads((Path(path) / "config.json").read_text())
        tree = tree.get("text_config", tree)
        heads = tree["num_attention_heads"]
        defaults = {
            "num_key_value_heads": heads,
            "head_dim": tree["hidden_size"] // heads,
            "tie_word_embeddings": True,
        }
        tree = {**defaults, **{key: value for key, value in tree.items() if value is not None}}
        return decoder({name: tree[key] for name, key in _ARCHITECTURE.items()}, tree.get("model_type"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def load_of(config: Config, *, on_cpu: bool) -> Load:
    """Returns how the cell is trained, for rows as long as any may be."""
    trainer = config.trainer
    return Load(
        row_tokens=trainer.max_length_tokens,
        checkpointing=trainer.gradient_checkpointing,
        value_bytes=2 if trainer.precision == "bf16" else 4,
        loss_chunk_tokens=dict(trainer).get("loss_chunk_tokens"),
        on_cpu=on_cpu,
    )


def placed_on(config: Config, model: Decoder, hardware: Hardware) -> Fit:
    """Finds GPUs and micro-batch for the cell.

    Raises:
        UserError: it does not fit, with what takes the memory.
    """
    load = load_of(config, on_cpu=hardware.device == "cpu")
    trainer = config.trainer
    micro_batch, global_batch = trainer.micro_batch_size, trainer.global_batch_size
    found = fit(
        model,
        load,
        max_gpus=hardware.max_gpus,
        memory_gib=hardware.memory_gib,
        global_batch=global_batch,
        micro_batch=micro_batch,
    )
    if found is None:
        most = 1 if load.on_cpu else 2 ** (hardware.max_gpus.bit_length() - 1)
        size = micro_batch or 1
        terms = terms_gib(model, load, num_gpus=most, micro_batch=size, memory_gib=hardware.memory_gib)
        raise misfit(config, terms, hardware, num_gpus=most, micro_batch=size)
    return found


def misfit(
    config: Config, terms: Mapping[str, float], hardware: Hardware, *, num_gpus: int, micro_batch: int
) -> UserError:
    """Returns the error that says what takes the memory."""
    where = "this host's memory" if hardware.device == "cpu" else f"{num_gpus} x {hardware.device}"
    asked = config.trainer.micro_batch_size
    hints = ["--device, --max-gpus or another launcher"]
    if asked is not None and asked > 1:
        hints.insert(0, "trainer.micro_batch_size=null")
    return UserError(
        f"{config.model.name} does not fit: {sum(terms.values()):.1f} GiB a device are needed on {where},"
        f" of {hardware.memory_gib:.0f} GiB each",
        where=f"with a micro-batch of {micro_batch} and rows of {config.trainer.max_length_tokens} tokens",
        allowed=told(terms),
        fix=", ".join(hints),
    )


def told(terms: Mapping[str, float]) -> str:
    """Returns the terms of memory for people, largest first."""
    parts = sorted(terms.items(), key=lambda term: -term[1])
    return " + ".join(f"{name} {gib:.1f}" for name, gib in parts if gib >= 0.05) + " GiB"


def _generation_terms(
    config: Config, model: Decoder, hardware: Hardware, item_tokens: float
) -> dict[str, float]:
    """Weights, and keys and values of a batch of items as long as they may become."""
    on_cpu = hardware.device == "cpu"
    bytes_each = _weight_bytes(config)
    tokens = config.evaluation.batch_size * (item_tokens + config.evaluation.max_new_tokens)
    cache = 2 * model.num_layers * model.num_kv_heads * model.head_dim * bytes_each * tokens
    reserve = terms_gib(
        model, Load(1, on_cpu=on_cpu), num_gpus=1, micro_batch=1, memory_gib=hardware.memory_gib
    )
    return {
        "weights": bytes_each * model.num_parameters / GIB,
        "cache": cache / GIB,
        "reserve": reserve["reserve"],
    }


def _check_generation(config: Config, terms: Mapping[str, float], hardware: Hardware) -> None:
    if sum(terms.values()) > hardware.memory_gib:
        raise UserError(
            f"{config.model.name} does not fit one device to generate: {sum(terms.values()):.1f} GiB"
            f" are needed, {hardware.device} has {hardware.memory_gib:.0f} GiB",
            where=f"with evaluation.batch_size={config.evaluation.batch_size}",
            allowed=told(terms),
            fix="evaluation.batch_size=16, or --device",
        )


def _weight_bytes(config: Config) -> int:
    return 2 if config.trainer.precision == "bf16" else 4


def _source(hardware: Hardware) -> str:
    return "as given" if hardware.mfu is not None else "ours, by size"


def _cells(number: int) -> str:
    return "1 cell" if number == 1 else f"{number} cells"


__all__ = ["evaluate", "train"]

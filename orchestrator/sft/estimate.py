"""Cost of `train` and `evaluate`: the estimate hooks for plans. Imports no torch and does not use the store.

The number of steps is exact. Tokens come from facts in the config. FLOPs come from the sizes of the model: 6
per parameter and token for forward and backward pass, 2 for a forward pass (Kaplan et al. 2020, arXiv
2001.08361, section 2.1). Hours come from an assumed share of the device's peak. When cells have run, their
measurements replace the assumptions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from orchestrator.costs import Estimate, Hardware, Measured
from orchestrator.errors import UserError
from orchestrator.sft.memory import (
    GIB,
    GPU_HOST_GIB,
    HOST_BYTES,
    Decoder,
    Fit,
    Load,
    generation_gib,
    reserve_gib,
    terms_gib,
    told,
)
from orchestrator.sft.speed import (
    COPY_MARGIN,
    DISK_GB_S,
    GB,
    INTERVAL_S,
    STATE_BYTES,
    fit,
    mfu,
    save_costs,
    state_seconds,
)
from orchestrator.sft.workload import (
    CostsConfig,
    Speed,
    Tree,
    answers,
    costs_of,
    expected_lengths,
    model_of,
    speed_of,
    training,
)
from orchestrator.stage import Config, plain

_AGAIN = {
    True: "computes layers again",
    "selective": "computes layers again, except for matrix products and attention",
    False: "keeps all activations",
}
KEPT_RESUME_STATES = 3
"""Most resume checkpoints that lie on the disk at a time: two whole ones, and one that is being written."""
RESUME_BYTES = STATE_BYTES
"""Bytes per parameter in a resume checkpoint."""


def train(config: Config, *, label: str, hardware: Hardware, retention: str, measured: Measured) -> Estimate:
    """Estimate full fine-tuning on the mixture.

    Raises:
        UserError: no allowed number of GPUs can hold it.
    """
    cell = plain(config)
    costs = costs_of(cell)
    if costs is None:
        return Estimate()
    work, model = training(cell, costs), model_of(cell)
    if model is None:
        unknown = f"the architecture of {cell['model']['name']} is not known: no FLOPs, hours or memory"
        return Estimate(num_steps=work.num_steps, num_tokens=work.num_tokens, assumptions=(unknown,))
    placed = placed_on(cell, model, hardware)
    speed = speed_of(cell, measured, costs)
    num_tokens = speed.tokens(cell, work.num_tokens)
    time = _training_time(cell, model, num_tokens, costs, hardware, speed, placed)
    step_s = 3600 * time.gpu_hours / placed.num_gpus / work.num_steps
    num_epochs, weight_bytes = cell["trainer"]["num_epochs"], _weight_bytes(cell)
    disk_gb_s = STATE_BYTES * model.num_parameters / GB / speed.save_s if speed.save_s else DISK_GB_S
    saves = save_costs(
        model.num_parameters,
        weight_bytes=weight_bytes,
        num_gpus=placed.num_gpus,
        step_s=step_s,
        num_steps=work.num_steps,
        num_epochs=num_epochs,
        disk_gb_s=disk_gb_s,
        # A forward pass takes a third of the time.
        validation_s=work.num_steps / num_epochs * step_s * work.validated / 3,
    )
    # A utilisation that was measured or given includes the waits for checkpoints.
    gpu_hours = time.gpu_hours / (1 - saves.share if time.is_modelled else 1.0)
    notes = [f"tokens measured on {cells(speed.num_cells)}"] if speed.num_cells else [*work.notes]
    notes += [time.how, f"a micro-batch of {placed.tokens:,} tokens {_AGAIN[placed.checkpointing]}"]
    notes += [f"checkpoints on a disk of {disk_gb_s:.3g} GB/s, each after 60 s or more"]
    notes += [f"memory for rows of trainer.max_length_tokens={cell['trainer']['max_length_tokens']:,}"]
    if speed.peak_memory_gib is not None:
        notes.append(f"peak memory measured on {speed.source}; its terms are computed")
    flops = 6.0 * model.num_parameters * num_tokens
    # Gradient checkpointing computes the forward pass of the layers twice.
    again = 2.0 * (model.num_parameters - model.num_embeddings) * num_tokens
    weights_gib = weight_bytes * model.num_parameters / GIB
    return Estimate(
        num_steps=work.num_steps,
        num_tokens=num_tokens,
        model_flops=flops,
        hardware_flops=flops + (again if placed.checkpointing is True else 0.0),
        gpu_hours=gpu_hours,
        wall_hours=gpu_hours / placed.num_gpus,
        num_gpus=placed.num_gpus,
        micro_batch=placed.micro_batch,
        micro_batch_tokens=placed.tokens,
        recomputes=placed.checkpointing,
        memory_gib=speed.peak_memory_gib or placed.memory_gib,
        memory_terms_gib=dict(placed.terms_gib),
        host_memory_gib=_host_gib(model, hardware, placed.num_gpus, placed.memory_gib)
        + _copy_gib(model, hardware),
        disk_gib=weights_gib * {"best": 1, "none": 0}.get(retention, num_epochs),
        peak_disk_gib=weights_gib * num_epochs
        + KEPT_RESUME_STATES * RESUME_BYTES * model.num_parameters / GIB,
        assumptions=tuple(notes),
        measured=speed.num_cells > 0 or speed.is_rehearsed,
        useful_share=time.useful_share,
        checkpoint_share=saves.share,
        lost_s=saves.lost_s,
        stop_s=saves.stop_s,
        load_s=state_seconds(model.num_parameters, disk_gb_s),
        most_gpus=_most_gpus(cell),
        efficiency=speed.efficiency,
    )


START_S, COMPILE_S = 50.0, 30.0
"""Seconds of a rehearsal: starts of processes, scoring and two answers; and to compile layers, once.

Together as measured with a model of 0.4 B parameters on an H100 (docs/gpu.md).
"""


def rehearse(
    config: Config, *, label: str, hardware: Hardware, retention: str, measured: Measured
) -> Estimate:
    """Estimate a rehearsal: three loads, three long steps, a checkpoint written and read, two answers.

    That of models that are not trained is one load and an answer.

    Raises:
        UserError: no allowed number of GPUs can hold the training.
    """
    given: dict[str, Any] = {"label": label, "hardware": hardware, "retention": retention}
    cell, is_trained = plain(config), bool(plain(config)["languages"])
    whole = (train if is_trained else evaluate)(config, measured=measured, **given)
    model = model_of(cell)
    if model is None or not whole.wall_hours:  # nothing that says how long a step is
        return Estimate()
    weights_s = _weight_bytes(cell) * model.num_parameters / GB / DISK_GB_S
    seconds = START_S + weights_s
    if is_trained and whole.num_steps:
        step_s = 3600 * whole.wall_hours / whole.num_steps
        seconds += 3 * weights_s + 2 * state_seconds(model.num_parameters)
        # Its rows are the longest, so its steps are longer than others: by a factor of 2 (ours). The second
        # process finds the layers compiled.
        seconds += 3 * 2 * step_s + (0.0 if hardware.device == "cpu" else COMPILE_S)
    return msgspec.structs.replace(
        whole,
        num_steps=3 if is_trained else 0,
        num_tokens=0,
        num_generations=0,
        gpu_hours=seconds / 3600 * whole.num_gpus,
        generation_gpu_hours=0.0,
        wall_hours=seconds / 3600,
        disk_gib=0.0,
        **dict.fromkeys(("checkpoint_share", "lost_s", "stop_s", "load_s"), 0.0),  # it saves nothing
        **dict.fromkeys(("model_flops", "hardware_flops"), 0.0),
        assumptions=(f"a rehearsal of 3 steps on the longest rows, {START_S:.0f} s for starts (ours)",),
    )


def evaluate(
    config: Config, *, label: str, hardware: Hardware, retention: str, measured: Measured
) -> Estimate:
    """Estimate the answers: of every epoch to validation items, and of one model to test items.

    Raises:
        UserError: one GPU cannot hold the model.
    """
    cell = plain(config)
    costs = costs_of(cell)
    if costs is None:
        return Estimate()
    work, model = answers(cell, costs), model_of(cell)
    if model is None:
        return Estimate(num_generations=work.number)
    reserve = reserve_gib(hardware.memory_gib, on_cpu=hardware.device == "cpu")
    terms = generation_gib(model, cell["evaluation"], work.num_tokens / work.number) | {"reserve": reserve}
    if sum(terms.values()) > hardware.memory_gib:
        raise UserError(
            f"{cell['model']['name']} does not fit one device to generate: {sum(terms.values()):.1f} GiB are"
            f" needed, {hardware.device} has {hardware.memory_gib:.1f} GiB",
            where=f"with evaluation.batch_size={cell['evaluation']['batch_size']}",
            allowed=told(terms),
            fix="evaluation.batch_size=16, for all cells that are compared, or another device",
        )
    speed = speed_of(cell, measured, costs)
    if speed.seconds_per_answer is not None:
        hours = speed.seconds_per_answer * work.number / 3600
        note = f"generation speed measured on {cells(speed.num_evaluations)}, on the devices of those"
    else:
        hours = 2.0 * model.num_parameters * work.num_tokens / _flops_an_hour(hardware, costs.generation_mfu)
        note = (
            f"generation at {costs.generation_mfu:.0%} of the peak (ours), answers as long as the gold ones"
        )
    # A checkpoint between two batches holds all answers so far.
    batch_s = 3600 * hours / max(1, -(-work.number // cell["evaluation"]["batch_size"]))
    return Estimate(
        generation_gpu_hours=hours,
        wall_hours=hours,
        lost_s=min(3600 * hours, INTERVAL_S + batch_s),
        stop_s=batch_s,
        load_s=_weight_bytes(cell) * model.num_parameters / GB / DISK_GB_S,
        num_gpus=1,
        memory_gib=sum(terms.values()),
        memory_terms_gib=terms,
        host_memory_gib=_host_gib(model, hardware, 1, sum(terms.values())),
        num_generations=work.number,
        assumptions=(note,),
        measured=speed.seconds_per_answer is not None,
        most_gpus=cell["evaluation"].get("num_processes") or 0,
    )


def _most_gpus(cell: Tree) -> int:
    """Return the most GPUs that training can use: a power of two, with a row of each step for every one."""
    trainer = cell["trainer"]
    if trainer.get("num_processes"):
        return int(trainer["num_processes"])
    rows: int = trainer["global_batch_size"]
    return 1 << rows.bit_length() - 1


def _host_gib(model: Decoder, hardware: Hardware, num_gpus: int, device_gib: float) -> float:
    """Return the host memory that a cell needs, in GiB."""
    if hardware.device == "cpu":
        return device_gib
    return HOST_BYTES * model.num_parameters / GIB + GPU_HOST_GIB * num_gpus


def _copy_gib(model: Decoder, hardware: Hardware) -> float:
    """Return the host memory of a copy of the training state, in GiB; it is written from there."""
    return 0.0 if hardware.device == "cpu" else COPY_MARGIN * STATE_BYTES * model.num_parameters / GIB


def placed_on(cell: Tree, model: Decoder, hardware: Hardware) -> Fit:
    """Return the GPUs and the micro-batch for the cell's rows.

    All rows are assumed to have the maximal length, because a plan has not tokenised them.

    Raises:
        UserError: it does not fit; the message names what takes the memory.
    """
    trainer = cell["trainer"]
    load = Load(
        row_tokens=trainer["max_length_tokens"],
        checkpointing=None if (how := trainer["gradient_checkpointing"]) == "auto" else how,
        value_bytes=2 if trainer["precision"] == "bf16" else 4,
        loss_chunk_tokens=trainer.get("loss_chunk_tokens"),
        sharded=trainer.get("sharding") != "ddp",
        on_cpu=hardware.device == "cpu",
    )
    asked, tokens = trainer["micro_batch_size"], trainer.get("micro_batch_tokens")
    found = fit(
        model,
        load,
        max_gpus=hardware.max_gpus,
        memory_gib=hardware.memory_gib,
        global_batch=trainer["global_batch_size"],
        micro_batch=asked,
        micro_batch_tokens=tokens,
        num_gpus=None if load.on_cpu else trainer.get("num_processes") or hardware.num_gpus,
        is_compiled=_is_compiled(cell),
    )
    if found is not None:
        return found
    if not load.on_cpu and (trainer.get("num_processes") or 0) > hardware.max_gpus:
        raise UserError(
            f"trainer.num_processes={trainer['num_processes']}, but a cell may have {hardware.max_gpus} GPUs",
            fix="--max-gpus, or launcher.gpus_per_worker",
        )
    # Nothing fits. The message describes the attempt with the most GPUs and the smallest micro-batch.
    most = 2 ** (hardware.max_gpus.bit_length() - 1)
    num_gpus = 1 if load.on_cpu else trainer.get("num_processes") or most
    size = min(
        asked or -(-(tokens or 1) // load.row_tokens), max(1, trainer["global_batch_size"] // num_gpus)
    )
    terms = terms_gib(model, load, num_gpus=num_gpus, micro_batch=size, memory_gib=hardware.memory_gib)
    total_gib = sum(terms.values())
    place = "this host" if load.on_cpu else f"{num_gpus} x {hardware.device}"
    key = "micro_batch_size" if asked else "micro_batch_tokens"
    smaller = f"trainer.{key}=null, or " if size > 1 else ""
    raise UserError(
        f"{cell['model']['name']} does not fit on {place}: {total_gib:.1f} GiB are needed,"
        f" {hardware.memory_gib:.1f} GiB are there" + ("" if load.on_cpu else " on each"),
        where=f"training with a micro-batch of {size} and rows of {load.row_tokens:,} tokens",
        allowed=told(terms),
        fix=f"{smaller}more or larger devices",
    )


def cells(number: int) -> str:
    """Return a text on how many cells something was measured."""
    return f"{number} {'cell' if number == 1 else 'cells'} of the same model and task"


class _Time(NamedTuple):
    """Device hours of the steps of a training, without those for checkpoints unless they were measured."""

    gpu_hours: float
    how: str
    useful_share: float = 0.0
    is_modelled: bool = False


def _training_time(
    cell: Tree,
    model: Decoder,
    num_tokens: int,
    costs: CostsConfig,
    hardware: Hardware,
    speed: Speed,
    placed: Fit,
) -> _Time:
    """Return the time of training, and a note on its source.

    The source is the utilisation that the user gave, else measurements, else the model of
    `orchestrator.sft.speed`, which counts computed positions and not tokens alone.
    """
    # A utilisation that the user gives overrides measurements.
    seconds_per_token = speed.seconds_at(placed.num_gpus)
    if seconds_per_token is not None and hardware.mfu is None:
        note = f"training speed measured on {speed.source}, on the devices of those"
        # A rehearsal's steps include no wait for a checkpoint.
        return _Time(seconds_per_token * num_tokens / 3600, note, is_modelled=speed.is_rehearsed)
    flops = 6.0 * model.num_parameters * num_tokens
    if hardware.mfu is not None:
        note = f"MFU {hardware.mfu:.0%} (as given)"
        return _Time(flops / _flops_an_hour(hardware, hardware.mfu), note)
    most = costs.mfu_of(model.num_parameters)
    found = mfu(
        model,
        hardware.device,
        recomputes=placed.checkpointing,
        is_compiled=_is_compiled(cell),
        pack_tokens=placed.tokens,
    )
    if found is None:
        return _Time(
            flops / _flops_an_hour(hardware, most), f"MFU {most:.0%} (ours, by model size)", is_modelled=True
        )
    used, useful = min(most, found), _useful_share(cell, costs, placed)
    note = f"MFU {used:.0%} (ours, by model and device), less the positions that hold no token"
    spread = costs.tasks[cell["task"]["name"]].length_spread
    note += f" in packs of rows with log-normal lengths, spread {spread:g} (ours)"
    return _Time(flops / _flops_an_hour(hardware, used) / useful, note, useful, is_modelled=True)


def _is_compiled(cell: Tree) -> bool:
    return cell["trainer"].get("compile") is not False and cell["trainer"]["micro_batch_size"] is None


def _useful_share(cell: Tree, costs: CostsConfig, placed: Fit) -> float:
    """Return the share of the computed positions that are real tokens, for rows of assumed lengths."""
    from orchestrator.sft.packing import expected_share  # NumPy, which other plans do not need

    facts, trainer, languages = costs.tasks[cell["task"]["name"]], cell["trainer"], cell["languages"]
    return expected_share(
        tuple(expected_lengths(cell, costs)),
        facts.length_spread,
        num_rows=(cell["items"]["num_train"] or facts.num_train) * len(languages),
        global_batch_size=trainer["global_batch_size"],
        longest=trainer["max_length_tokens"],
        num_processes=placed.num_gpus,
        max_tokens=placed.tokens,
        micro_batch_size=trainer["micro_batch_size"],
    )


def _flops_an_hour(hardware: Hardware, mfu: float) -> float:
    """Return the FLOPs of one device in an hour, at a model FLOPs utilisation."""
    return hardware.peak_tflops * 1e12 * mfu * 3600


def _weight_bytes(cell: Tree) -> int:
    """Return the bytes per parameter of saved weights."""
    return 2 if cell["trainer"]["precision"] == "bf16" else 4

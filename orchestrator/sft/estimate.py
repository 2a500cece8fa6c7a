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
    MAX_PACK_TOKENS,
    Decoder,
    Fit,
    generation_gib,
    in_words,
    reserve_gib,
)
from orchestrator.sft.speed import (
    COPY_MARGIN,
    DISK_GB_S,
    GB,
    INTERVAL_S,
    STATE_BYTES,
    SaveCosts,
    layers_compiled,
    mfu,
    placed_on,
    save_costs,
    state_seconds,
)
from orchestrator.sft.workload import (
    CostsConfig,
    Speed,
    TrainingWork,
    Tree,
    answers,
    cells,
    costs_of,
    expected_lengths,
    model_of,
    speed_of,
    training,
)
from orchestrator.spec import Config, plain

_AGAIN = {
    True: "computes layers again",
    "selective": "computes layers again, except for matrix products and attention",
    False: "keeps all activations",
}
KEPT_RESUME_STATES = 3
"""Most resume checkpoints that lie on the disk at a time: two whole ones, and one that is being written."""


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
    one = _Training(cell, model, costs, hardware, work, placed, speed_of(cell, measured, costs))
    time = one.time()
    saves = one.saves(3600 * time.gpu_hours / placed.num_gpus / work.num_steps)
    # A utilisation that was measured or given includes the waits for checkpoints.
    gpu_hours = time.gpu_hours / (1 - saves.share if time.is_modelled else 1.0)
    flops = 6.0 * model.num_parameters * one.num_tokens
    # Gradient checkpointing computes the forward pass of the layers twice.
    again = 2.0 * (model.num_parameters - model.num_embeddings) * one.num_tokens
    weights_gib = _weight_bytes(cell) * model.num_parameters / GIB
    num_epochs = cell["trainer"]["num_epochs"]
    return Estimate(
        num_steps=work.num_steps,
        num_tokens=one.num_tokens,
        model_flops=flops,
        hardware_flops=flops + (again if placed.checkpointing is True else 0.0),
        gpu_hours=gpu_hours,
        wall_hours=gpu_hours / placed.num_gpus,
        num_gpus=placed.num_gpus,
        micro_batch=placed.micro_batch,
        micro_batch_tokens=placed.tokens,
        recomputes=placed.checkpointing,
        memory_gib=one.speed.peak_memory_gib or placed.memory_gib,
        memory_terms_gib=dict(placed.terms_gib),
        host_memory_gib=_host_gib(model, hardware, placed.num_gpus, placed.memory_gib)
        + _copy_gib(model, hardware),
        disk_gib=weights_gib * {"best": 1, "none": 0}.get(retention, num_epochs),
        peak_disk_gib=weights_gib * num_epochs
        + KEPT_RESUME_STATES * STATE_BYTES * model.num_parameters / GIB,
        assumptions=one.notes(time),
        measured=one.speed.num_cells > 0 or one.speed.is_rehearsed,
        useful_share=time.useful_share,
        checkpoint_share=saves.share,
        lost_s=saves.lost_s,
        stop_s=saves.stop_s,
        load_s=state_seconds(model.num_parameters, one.disk_gb_s) + saves.weights_gb / DISK_GB_S,
        most_gpus=_most_gpus(cell),
        efficiency=one.speed.efficiency,
    )


class _Time(NamedTuple):
    """Device hours of the steps of a training, without those for checkpoints unless they were measured."""

    gpu_hours: float
    how: str
    useful_share: float = 0.0
    is_modelled: bool = False


class _Training(NamedTuple):
    """A training as placed on its GPUs, from which its time and its other costs follow."""

    cell: Tree
    model: Decoder
    costs: CostsConfig
    hardware: Hardware
    work: TrainingWork
    placed: Fit
    speed: Speed

    @property
    def num_tokens(self) -> int:
        """Tokens of all epochs, as measured for the mixture or computed."""
        return self.speed.tokens(self.cell, self.work.num_tokens)

    @property
    def disk_gb_s(self) -> float:
        """Bandwidth of the disk in GB/s, as a rehearsal measured it or assumed."""
        save_s = self.speed.save_s
        return STATE_BYTES * self.model.num_parameters / GB / save_s if save_s else DISK_GB_S

    def time(self) -> _Time:
        """Return the time of training, and a note on its source.

        The source is the utilisation that the user gave, else measurements, else the model of
        `orchestrator.sft.speed`, which counts computed positions and not tokens alone.
        """
        model, hardware, placed, speed = self.model, self.hardware, self.placed, self.speed
        # A utilisation that the user gives overrides measurements.
        seconds_per_token = speed.seconds_at(placed.num_gpus)
        if seconds_per_token is not None and hardware.mfu is None:
            note = f"training speed measured on {speed.source}, on the devices of those"
            # A rehearsal's steps include no wait for a checkpoint.
            return _Time(seconds_per_token * self.num_tokens / 3600, note, is_modelled=speed.is_rehearsed)
        flops = 6.0 * model.num_parameters * self.num_tokens
        if hardware.mfu is not None:
            note = f"MFU {hardware.mfu:.0%} (as given)"
            return _Time(flops / _flops_an_hour(hardware, hardware.mfu), note)
        most = self.costs.mfu_of(model.num_parameters)
        found = mfu(
            model,
            hardware.device,
            recomputes=placed.checkpointing,
            is_compiled=layers_compiled(self.cell),
            pack_tokens=placed.tokens,
        )
        if found is None:
            note = f"MFU {most:.0%} (ours, by model size)"
            return _Time(flops / _flops_an_hour(hardware, most), note, is_modelled=True)
        used, useful = min(most, found), self._useful_share()
        note = f"MFU {used:.0%} (ours, by model and device), less the positions that hold no token"
        spread = self.costs.tasks[self.cell["task"]["name"]].length_spread
        note += f" in packs of rows with log-normal lengths, spread {spread:g} (ours)"
        return _Time(flops / _flops_an_hour(hardware, used) / useful, note, useful, is_modelled=True)

    def _useful_share(self) -> float:
        """Return the share of the computed positions that are real tokens, for rows of assumed lengths."""
        from orchestrator.sft.packing import expected_share  # NumPy, which other plans do not need

        cell, trainer = self.cell, self.cell["trainer"]
        facts = self.costs.tasks[cell["task"]["name"]]
        return expected_share(
            tuple(expected_lengths(cell, self.costs)),
            facts.length_spread,
            num_rows=(cell["items"]["num_train"] or facts.num_train) * len(cell["languages"]),
            global_batch_size=trainer["global_batch_size"],
            longest=trainer["max_length_tokens"],
            num_processes=self.placed.num_gpus,
            max_tokens=self.placed.tokens,
            micro_batch_size=trainer["micro_batch_size"],
        )

    def saves(self, step_s: float) -> SaveCosts:
        """Return what saving costs if a step takes so many seconds."""
        num_steps, num_epochs = self.work.num_steps, self.cell["trainer"]["num_epochs"]
        return save_costs(
            self.model.num_parameters,
            weight_bytes=_weight_bytes(self.cell),
            num_gpus=self.placed.num_gpus,
            step_s=step_s,
            num_steps=num_steps,
            num_epochs=num_epochs,
            disk_gb_s=self.disk_gb_s,
            # A forward pass takes a third of the time.
            validation_s=num_steps / num_epochs * step_s * self.work.validated / 3,
        )

    def notes(self, time: _Time) -> tuple[str, ...]:
        """Return what the estimate assumes, and what it took from measurements."""
        placed, speed, rows = self.placed, self.speed, self.cell["trainer"]["max_length_tokens"]
        notes = [f"tokens measured on {cells(speed.num_cells)}"] if speed.num_cells else [*self.work.notes]
        notes += [time.how, f"a micro-batch of {placed.tokens:,} tokens {_AGAIN[placed.checkpointing]}"]
        notes += [f"checkpoints on a disk of {self.disk_gb_s:.3g} GB/s, each after 60 s or more"]
        notes += [f"memory for rows of trainer.max_length_tokens={rows:,}"]
        if speed.peak_memory_gib is not None:
            notes.append(f"peak memory measured on {speed.source}; its terms are computed")
        return tuple(notes)


START_S, COMPILE_S = 25.0, 20.0
"""Seconds of a rehearsal: starts of processes, scoring and two answers; and to compile layers, once.

Together 45 were measured with 0.4 B parameters on an H100 with 16 cores (docs/gpu.md). How they divide is
derived: the second process, which finds the layers compiled, took 17 s less than the first.
"""
REREAD_GB_S = 1.5
"""Bandwidth at which a node reads what it has just written or read, as measured (docs/gpu.md)."""


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
        # Weights are written and read again, those of the base read again, a state written and read.
        again = DISK_GB_S / REREAD_GB_S
        seconds += (1 + 2 * again) * weights_s + (1 + again) * state_seconds(model.num_parameters)
        # Its rows are twice as long (ours), and fill `rehearse.NUM_WIDEST` packs on each GPU.
        tokens = 2 * whole.num_tokens / whole.num_steps
        packs = 2 * max(MAX_PACK_TOKENS, whole.micro_batch_tokens or 0) * whole.num_gpus
        share = min(1.0, packs / tokens) if cell["trainer"]["micro_batch_size"] is None else 1.0
        # The second process finds the layers compiled.
        seconds += 3 * 2 * step_s * share + (0.0 if hardware.device == "cpu" else COMPILE_S)
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
            allowed=in_words(terms),
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


def _flops_an_hour(hardware: Hardware, mfu: float) -> float:
    """Return the FLOPs of one device in an hour, at a model FLOPs utilisation."""
    return hardware.peak_tflops * 1e12 * mfu * 3600


def _weight_bytes(cell: Tree) -> int:
    """Return the bytes per parameter of saved weights."""
    return 2 if cell["trainer"]["precision"] == "bf16" else 4

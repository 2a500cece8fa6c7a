"""The hooks of a stage that the planner calls before anything runs: expected costs, and requirements.

A stage names its hooks in `StageSpec`. They are plain functions that import no torch::

    def estimate(config: Config, *, label: str, hardware: Hardware, retention: str,
                 measured: Measured) -> Estimate
    def needs(config: Config) -> list[Need]

`config` is the whole config of the cell. `label` is the label of the instance, "" without `each`. `retention`
is the policy (``all``, ``best`` or ``none``) that decides which large files of a product are kept in the end.
An `estimate` raises `UserError` for a stage that can never fit on the hardware.

A hook is called once for each distinct stage, ten thousand times in a large sweep. It should take about a
tenth of a millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
from msgspec.structs import fields

from orchestrator.errors import UserError


class Device(NamedTuple):
    """Properties of an accelerator, from the makers' data sheets.

    Attributes:
        memory_gib: memory in GiB, as CUDA reports it, a little less than the nominal size. The `train` stage
            finds this value, so a plan with it promises nothing that the stage would refuse.
        peak_tflops: dense bf16 peak, in TFLOP/s.
    """

    memory_gib: float
    peak_tflops: float


DEVICES: Mapping[str, Device] = {
    "a100": Device(79.1, 312),
    "a100-40gb": Device(39.3, 312),
    "h100": Device(79.1, 989),
    "h200": Device(139.7, 989),
    "b200": Device(178.3, 2250),
    "l40s": Device(44.3, 362),
    "a10g": Device(22.0, 125),
}
"""The devices for which a plan can be made; the first is the study's."""


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The hardware on which the cells of a plan would run.

    Attributes:
        device: a key of `DEVICES`, or ``cpu``.
        memory_gib: memory of one device; for ``cpu`` that of the host.
        peak_tflops: dense bf16 peak of one device, in TFLOP/s.
        max_gpus: greatest number of devices for one cell; for ``cpu`` the number of processes.
        mfu: model FLOPs utilisation in (0, 1]; None for the stage's own estimate by model size.
        num_gpus: devices that the cell is given, at least as many as it needs; None for the fewest that
            suffice.
    """

    device: str
    memory_gib: float
    peak_tflops: float
    max_gpus: int = 8
    mfu: float | None = None
    num_gpus: int | None = None


class Finished(NamedTuple):
    """A stage that is done, as a hook receives it.

    Attributes:
        config: its cell's config.
        rows: its result rows.
        seconds: its wall time.
    """

    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    seconds: float


_Summary = TypeVar("_Summary")


class Measured(Mapping[str, Sequence[Finished]]):
    """Stage name to the finished instances of that stage in the same sweep: measurements instead of guesses.

    Args:
        finished: stage name to its finished instances. An empty sequence means the same as a missing key.
    """

    def __init__(self, finished: Mapping[str, Sequence[Finished]] | None = None) -> None:
        self._finished = dict(finished or {})
        self._once: dict[Callable[..., Any], Any] = {}

    def once(self, summarise: Callable[[Measured], _Summary]) -> _Summary:
        """Return the result of a function of this object; call it once, however many stages request it."""
        # Each hook would otherwise walk through all finished stages again, thousands of times.
        if summarise not in self._once:
            self._once[summarise] = summarise(self)
        return cast(_Summary, self._once[summarise])

    def __getitem__(self, stage: str) -> Sequence[Finished]:
        return self._finished[stage]

    def __iter__(self) -> Iterator[str]:
        return iter(self._finished)

    def __len__(self) -> int:
        return len(self._finished)


class Estimate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The cost of one stage instance; zeros where it is not worth planning.

    Attributes:
        num_steps: optimiser steps.
        num_tokens: training tokens, without padding.
        model_flops: forward and backward passes, without recomputation.
        hardware_flops: the same with recomputation.
        gpu_hours: device hours of training.
        generation_gpu_hours: device hours of generating answers. It is separate, because it is a rough guess
            and `gpu_hours` a good one.
        wall_hours: wall time of the whole stage.
        num_gpus: devices that it needs.
        micro_batch: rows of the maximal length per device and pass; None if there is none. A pack of the same
            tokens has more rows of usual length.
        micro_batch_tokens: tokens per device and pass.
        recomputes: whether the backward pass computes layers again; ``selective``: a part of each.
        memory_gib: peak memory of one device.
        memory_terms_gib: the parts of that peak.
        host_memory_gib: host memory of all processes together; 0 if unimportant or unknown.
        disk_gib: size of its product while it is kept.
        peak_disk_gib: greatest size while it runs, with checkpoints to resume from.
        num_generations: answers to generate.
        num_requests: requests to a model that is not trained here, such as an endpoint.
        prompt_tokens, completion_tokens: of these requests and of their replies.
        assumptions: what was assumed or measured, for people.
        measured: whether speed and memory come from cells that have run.
        useful_share: share of the computed positions that are real tokens; 0 if it is not known.
        checkpoint_share: share of the wall time in which the stage waits for what it saves.
        lost_s: seconds of work that a killed attempt may lose.
        stop_s: seconds that the stage needs to save and end after a stop.
        load_s: seconds in which a new process loads the last checkpoint.
        most_gpus: the most devices that it can use, for cells whose number is chosen; 0 if there is no limit.
        efficiency: measured share of the speed that it keeps for each doubling of its devices, at most 1; 0
            if cells of one size alone have run.
    """

    num_steps: int = 0
    num_tokens: int = 0
    model_flops: float = 0.0
    hardware_flops: float = 0.0
    gpu_hours: float = 0.0
    generation_gpu_hours: float = 0.0
    wall_hours: float = 0.0
    num_gpus: int = 0
    micro_batch: int | None = None
    micro_batch_tokens: int | None = None
    recomputes: bool | str | None = None
    memory_gib: float = 0.0
    memory_terms_gib: dict[str, float] = {}
    host_memory_gib: float = 0.0
    disk_gib: float = 0.0
    peak_disk_gib: float = 0.0
    num_generations: int = 0
    num_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    assumptions: tuple[str, ...] = ()
    measured: bool = False
    useful_share: float = 0.0
    checkpoint_share: float = 0.0
    lost_s: float = 0.0
    stop_s: float = 0.0
    load_s: float = 0.0
    most_gpus: int = 0
    efficiency: float = 0.0


STOP_FACTOR = 1.25
"""Factor on `Estimate.stop_s`, and on what a stage measured, because disks are not always as fast."""


class Need(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Something that must be on this machine before a cell can run, such as a model from a hub.

    Attributes:
        what: its name for people, such as ``model Qwen/Qwen3-8B-Base``.
        problem: why it is missing; "" if it is there.
        fetch: ``module:function`` that fetches it, called with `arguments`; "" if nothing can.
        arguments: JSON values for `fetch`. Equal needs are fetched once.
        advice: what to do if `fetch` is "".
    """

    what: str
    problem: str = ""
    fetch: str = ""
    arguments: dict[str, Any] = {}
    advice: str = ""


def checked_estimate(name: str, estimate: Any) -> Estimate:
    """Return what an estimate hook returned, if its costs can be added and compared.

    Args:
        name: of the hook, for the error.
        estimate: what it returned. The types of a struct are not checked when a hook makes one.

    Raises:
        UserError: it is no `Estimate`, or a number in it is negative or not finite.
    """
    if not isinstance(estimate, Estimate):
        raise UserError(f"the hook {name} returned {type(estimate).__name__}", allowed="an Estimate")
    for field in fields(Estimate):
        value = getattr(estimate, field.name)
        is_number = isinstance(value, int | float) and 0 <= value < math.inf
        if isinstance(field.default, int | float) and not is_number:
            raise UserError(
                f"the hook {name} returned {field.name}={value!r}", allowed="a finite number, 0 or more"
            )
    return estimate


def checked_needs(name: str, needs: Any) -> list[Need]:
    """Return what a hook of needs returned.

    Args:
        name: of the hook, for the error.
        needs: what it returned.

    Raises:
        UserError: it is no list of `Need`, nor anything else that yields them.
    """
    found = list(needs) if isinstance(needs, Iterable) and not isinstance(needs, str | Mapping) else [needs]
    if not all(isinstance(need, Need) for need in found):
        raise UserError(f"the hook {name} returned {needs!r}", allowed="a list of Need; [] for none")
    return found


ADDED = (
    "num_steps",
    "num_tokens",
    "model_flops",
    "hardware_flops",
    "gpu_hours",
    "generation_gpu_hours",
    "wall_hours",
    "disk_gib",
    "num_generations",
    "num_requests",
    "prompt_tokens",
    "completion_tokens",
)
"""Fields of an estimate that add up over stages."""


def together(estimates: Iterable[Estimate]) -> Estimate:
    """Return the estimate of several stages that run one after another.

    Costs are added. Memory and GPUs are those of the stage that needs most. The peak of the disk is what all
    stages leave, plus the most that a single stage holds temporarily.
    """
    found = list(estimates)
    largest = max(found, key=lambda estimate: estimate.memory_gib, default=Estimate())
    sums: dict[str, Any] = {name: sum(getattr(estimate, name) for estimate in found) for name in ADDED}
    live_gib = max((e.peak_disk_gib - e.disk_gib for e in found), default=0.0)
    return Estimate(
        **sums,
        num_gpus=max((estimate.num_gpus for estimate in found), default=0),
        micro_batch=next((e.micro_batch for e in found if e.micro_batch is not None), None),
        micro_batch_tokens=next(
            (e.micro_batch_tokens for e in found if e.micro_batch_tokens is not None), None
        ),
        recomputes=next((e.recomputes for e in found if e.recomputes is not None), None),
        memory_gib=largest.memory_gib,
        memory_terms_gib=largest.memory_terms_gib,
        host_memory_gib=max((estimate.host_memory_gib for estimate in found), default=0.0),
        peak_disk_gib=sums["disk_gib"] + max(0.0, live_gib),
        useful_share=_mean_share(found, "useful_share"),
        checkpoint_share=_mean_share(found, "checkpoint_share"),
        lost_s=max((e.lost_s for e in found), default=0.0),
        stop_s=max((e.stop_s for e in found), default=0.0),
        load_s=max((e.load_s for e in found), default=0.0),
        assumptions=tuple(dict.fromkeys(note for e in found for note in e.assumptions)),
        measured=any(estimate.measured for estimate in found),
    )


def _mean_share(estimates: Sequence[Estimate], name: str) -> float:
    """Return a share of the time of several stages, weighted by their GPU hours, of those that have one."""
    shares = [(getattr(one, name), one.wall_hours * one.num_gpus) for one in estimates if getattr(one, name)]
    hours = sum(weight for _, weight in shares)
    return sum(share * weight for share, weight in shares) / hours if hours else 0.0

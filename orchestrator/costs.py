"""What a stage's hooks tell the planner before anything runs: what it would cost, and what it needs.

A stage names its hooks in `StageSpec`; they are plain functions that import no torch::

    def estimate(config: Config, *, label: str, hardware: Hardware, retention: str,
                 measured: Measured) -> Estimate
    def needs(config: Config) -> list[Need]

`config` is the whole config of the cell; `label` the instance's, "" without `each`; `retention` the policy of
that name: ``all``, ``best`` or ``none`` of a product's large files are kept in the end. An `estimate` raises
`UserError` for what can never fit on the hardware. A hook is asked once for each distinct stage, ten thousand
times for a large sweep: a tenth of a millisecond is a good time for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import msgspec


class Device(NamedTuple):
    """Facts of an accelerator: memory in GiB, dense bf16 peak in TFLOP/s (the makers' data sheets).

    Memory is what CUDA says there is, a little less than the size that a device is sold by: that is what the
    `train` stage finds, and a plan must not promise what it then refuses.
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
"""The devices that a plan may be made for; the first is the study's."""


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the cells of a plan would run on.

    Attributes:
        device: a key of `DEVICES`, or ``cpu``.
        memory_gib: of one device; for ``cpu`` that of the host.
        peak_tflops: dense bf16 peak of one device, in TFLOP/s.
        max_gpus: that one cell may have; for ``cpu`` the processes.
        mfu: model FLOPs utilisation in (0, 1]; None for the stage's own guess by model size.
    """

    device: str
    memory_gib: float
    peak_tflops: float
    max_gpus: int = 8
    mfu: float | None = None


class Finished(NamedTuple):
    """A stage that is done, as a hook sees it: its cell's config, its rows, its wall time."""

    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    seconds: float


_Summary = TypeVar("_Summary")


class Measured(Mapping[str, Sequence[Finished]]):
    """Stage name to what is done of it in the same sweep: measurements, instead of guesses.

    Args:
        finished: none of a stage's is the same as no key.
    """

    def __init__(self, finished: Mapping[str, Sequence[Finished]] | None = None) -> None:
        self._finished = dict(finished or {})
        self._once: dict[Callable[..., Any], Any] = {}

    def once(self, summarise: Callable[[Measured], _Summary]) -> _Summary:
        """Returns what a function makes of all this; it is called once, however many stages ask."""
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
    """What one stage instance would cost; zeros where it costs nothing worth planning.

    Attributes:
        num_steps: optimiser steps.
        num_tokens: training tokens, padding left out.
        model_flops: of forward and backward passes, without recomputation.
        hardware_flops: with recomputation.
        gpu_hours: device hours of training.
        generation_gpu_hours: device hours of generating answers; kept apart, a rough guess beside a good one.
        wall_hours: of the whole stage.
        num_gpus: that it needs.
        micro_batch: rows a device and pass; None where there is none.
        memory_gib: the peak of one device.
        memory_terms_gib: what that is made of.
        host_memory_gib: of the host, all processes together; 0 where it does not matter or is not known.
        disk_gib: of its product, as long as it is kept.
        peak_disk_gib: while it is live, with checkpoints to resume from.
        num_generations: answers to be generated.
        assumptions: what was assumed or measured, for people.
        measured: whether speed and memory come from cells that have run.
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
    memory_gib: float = 0.0
    memory_terms_gib: dict[str, float] = {}
    host_memory_gib: float = 0.0
    disk_gib: float = 0.0
    peak_disk_gib: float = 0.0
    num_generations: int = 0
    assumptions: tuple[str, ...] = ()
    measured: bool = False


class Need(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Something that must be on this machine before a cell can run, such as a model of a hub.

    Attributes:
        what: for people: ``model Qwen/Qwen3-8B-Base``.
        problem: why it is not there, "" when it is.
        fetch: ``module:function`` that fetches it, called with `arguments`; "" when nothing can.
        arguments: JSON values for `fetch`; equal needs are fetched once.
        advice: what to do where `fetch` is "".
    """

    what: str
    problem: str = ""
    fetch: str = ""
    arguments: dict[str, Any] = {}
    advice: str = ""

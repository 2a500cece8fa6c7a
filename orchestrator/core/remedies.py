"""Remedies: changes to what a stage `uses`, tried one after another when it fails. Pure.

A stage declares a *ladder* of rungs for a failure cause. A rung changes keys of `uses` only, so the product
stays the same up to rounding: same effective batch, same order, same seeds::

    remedies:
      oom_gpu:
        - {halve: micro_batch, double: accumulation, times: 2}
        - {set: {recompute: true}}

An attempt starts on a rung, with the changes of all rungs up to it, and records which one::

    attempt 1   rung 0 of 3   micro_batch 8, accumulation 1                    oom_gpu
    attempt 2   rung 1 of 3   micro_batch 4, accumulation 2                    oom_gpu
    attempt 3   rung 2 of 3   micro_batch 2, accumulation 4                    done

Instances of a stage that need the same remedies form a *class* (`StageSpec.alike`). A failure of one on a
rung starts all later attempts of the class on the next one. So the rung is a function of the class's records
alone: two launches choose alike, and a remedy that worked stays. A rung that changes nothing is left out,
such as one that halves 1. What a failure costs is decided by `orchestrator.core.evidence.spent`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from orchestrator.core.commandspec import rung_keys
from orchestrator.core.evidence import Attempt, Budget, Evidence, causes
from orchestrator.core.failure import Cause
from orchestrator.core.records import End, StartRecord
from orchestrator.core.state import STARTABLE, StageStatus, State, is_disk_full, num_starved, stage_status
from orchestrator.core.sweep import StageInstance
from orchestrator.core.tree import MISSING, pick, with_value
from orchestrator.registry import REMEDIES, load
from orchestrator.spec import StageSpec

Rung = Mapping[str, Any]
"""The operations of a rung: ``halve``, ``double``, ``set``, and how many ``times`` it is repeated.

A rung ``{suggest: TEXT}`` changes nothing. `sweep why` shows it as what a person could do.
"""


class Remedied(NamedTuple):
    """What an attempt starts with.

    Attributes:
        uses: the values of the stage's `uses` keys.
        rungs: failure cause to its rung, and the number of rungs that change anything.
        before: key in `uses` to its configured value, where a rung changed it.
    """

    uses: dict[str, Any]
    rungs: dict[str, tuple[int, int]] = {}
    before: dict[str, Any] = {}


def with_shipped(spec: StageSpec) -> StageSpec:
    """Return a spec with the remedies that ship with a built-in stage.

    They are no part of sealed sweeps, so sweeps of earlier versions have them too. What the sweep file sets
    for a cause comes first: an empty ladder means no remedy.
    """
    if spec.name is None or spec.name not in REMEDIES:
        return spec
    shipped: Mapping[str, Any] = load(REMEDIES[spec.name])
    ladders = {**shipped["remedies"], **spec.remedies}
    return replace(spec, remedies=ladders, alike=spec.alike or shipped["alike"])


def has_rungs(spec: StageSpec) -> bool:
    """Return whether any rung of a stage's remedies could change something."""
    return any(rung_keys(rung) for ladder in spec.remedies.values() for rung in ladder)


def suggestions(spec: StageSpec, cause: Cause | None) -> list[str]:
    """Return what a person could do about a failure; it may change the result, so it is never applied."""
    return [str(rung["suggest"]) for rung in spec.remedies.get(str(cause), ()) if "suggest" in rung]


def described(start: StartRecord | None) -> str:
    """Return the remedies with which an attempt started, in one line; "" without any.

    Example: ``oom_gpu rung 2 of 4: trainer.micro_batch_divisor 4, configured 1``
    """
    rungs = (
        [f"{cause} rung {rung} of {of}" for cause, (rung, of) in start.remedies.items() if rung]
        if start
        else []
    )
    if start is None or not (start.before or rungs):
        return ""
    changes = [
        f"{key} {json.dumps(pick(start.uses, key), default=str)}, configured {json.dumps(value, default=str)}"
        for key, value in start.before.items()
    ]
    # A rung that changes nothing of the stage's is one of its job's.
    return f"{', '.join(rungs) or 'chosen by the stage'}: {'; '.join(changes) or 'a job with more memory'}"


def status_in_job(evidence: Evidence, budget: Budget, rungs: Mapping[Cause, tuple[int, int]]) -> StageStatus:
    """Return a stage's own state for a worker in a scheduler's job.

    A stage that ran out of host memory waits for a job with more. No worker of this one starts it again::

        job 1, rung 0 of 1   a stage runs out of memory    it is queued: not to be started in job 1
        job 2, rung 1 of 1   twice the memory              it may be claimed

    Args:
        evidence: of the stage.
        budget: the retries, and the attempts that count.
        rungs: cause to the rung of its remedy in the job's resources, and the number of rungs.
    """
    status = stage_status(evidence, budget)
    rung, num_rungs = rungs.get(Cause.OOM_HOST, (0, 0))
    if status.state not in STARTABLE or min(num_starved(evidence, budget.after), num_rungs) <= rung:
        return status
    return status._replace(state=State.QUEUED, reason=f"waits for a job with more memory; {status.reason}")


LONGEST_PAUSE_S = 60.0
"""Ours: the longest pause before a worker tries a stage again."""


def pause_after(end: End, earlier: Sequence[Attempt]) -> float:
    """Return the seconds for which a worker leaves a stage alone after a failure; 0.0 for none.

    What disturbed the network may last for a while, and a full disk may be cleared. The pauses are 1, 2, 4,
    ... seconds, as with the exponential back-off of networks.

    Args:
        end: how the attempt ended.
        earlier: the attempts before it.
    """
    if end.outcome != "failed" or not (end.cause is Cause.COMMUNICATION or is_disk_full(end)):
        return 0.0
    alike = sum(1 for attempt in earlier if attempt.end is not None and attempt.end.cause is end.cause)
    return min(2.0**alike, LONGEST_PAUSE_S)


def class_of(spec: StageSpec, instance: StageInstance, config: Mapping[str, Any]) -> str:
    """Return the class of a stage instance: those of one class need the same remedies.

    Stages with the same ladders and the same `alike` share their classes, as a stage and its rehearsal do.

    Args:
        spec: of the stage.
        instance: the stage instance.
        config: of a cell that contains it.
    """
    if spec.alike:
        parts: list[Any] = [spec.remedies, {key: pick(config, key) for key in spec.alike}]
    else:
        parts = [instance.stage, instance.reads]
    return json.dumps(parts, sort_keys=True, default=str)


def rungs_of(
    spec: StageSpec, uses: dict[str, Any], members: Iterable[tuple[Evidence, int]]
) -> dict[Cause, int]:
    """Return the rung on which the next attempt of a class starts, for each cause.

    That is the highest rung on which an attempt of the class has started, or the next one after a failure
    there. Attempts that started from other configured values, or before a rerun of their stage, do not count.

    Args:
        spec: of the stage, with its ladders.
        uses: the configured values of its `uses` keys.
        members: the evidence of each instance of the class, with the attempt up to which none counts.
    """
    keys = {key for ladder in spec.remedies.values() for rung in ladder for key in rung_keys(rung)}
    found: dict[Cause, int] = {}
    for evidence, after in members:
        failed = dict(causes(evidence))
        for attempt in evidence.attempts:
            if attempt.number <= after or not _is_comparable(attempt, uses, keys):
                continue
            for name in spec.remedies:
                cause = Cause(name)
                rung = attempt.start.remedies.get(cause, (0, 0))[0] if attempt.start else 0
                rung += failed.get(attempt.number) is cause
                found[cause] = max(rung, found.get(cause, 0))
    return found


def _is_comparable(attempt: Attempt, uses: Mapping[str, Any], keys: Iterable[str]) -> bool:
    """Return whether an attempt started from the same configured values of the keys that rungs change."""
    start = attempt.start
    return start is not None and all(
        start.before.get(key, pick(start.uses, key)) == pick(uses, key) for key in keys
    )


def remedied(spec: StageSpec, uses: dict[str, Any], rungs: Mapping[Cause, int]) -> Remedied:
    """Return what an attempt starts with on the given rungs.

    Args:
        spec: of the stage, with its ladders.
        uses: the configured values of its `uses` keys.
        rungs: cause to rung, as `rungs_of` returns it; more than the ladder has means its last rung.
    """
    now, found = uses, dict[str, tuple[int, int]]()
    for cause, ladder in spec.remedies.items():
        steps = _steps(ladder, now)
        rung = min(rungs.get(Cause(cause), 0), len(steps) - 1)
        now = steps[rung]
        if len(steps) > 1:
            found[cause] = (rung, len(steps) - 1)
    keys = {key for ladder in spec.remedies.values() for rung in ladder for key in rung_keys(rung)}
    before = {key: pick(uses, key) for key in sorted(keys) if pick(now, key) != pick(uses, key)}
    return Remedied(now, found, before)


def adapted(spec: StageSpec, uses: dict[str, Any], start: Remedied, values: Mapping[str, Any]) -> Remedied:
    """Return the start of an attempt whose stage replaced values of `uses` itself.

    A stage may try smaller values before it gives up. The first rung that has them, if there is one, becomes
    the rung of the attempt, so that the class goes on from there.

    Args:
        spec: of the stage, with its ladders.
        uses: the configured values of its `uses` keys.
        start: what the attempt started with.
        values: key in `uses` to the value that the stage works with.
    """
    now = start.uses
    for key, value in values.items():
        now = with_value(now, key.split("."), value)
    rungs = dict(start.rungs)
    for cause, (rung, num_rungs) in start.rungs.items():
        others = {Cause(name): at for name, (at, _) in start.rungs.items()}
        for higher in range(rung, num_rungs + 1):
            there = remedied(spec, uses, {**others, Cause(cause): higher}).uses
            if all(pick(there, key) == value for key, value in values.items()):
                rungs[cause] = (higher, num_rungs)
                break
    before = {**{key: pick(uses, key) for key in values if pick(uses, key) != values[key]}, **start.before}
    return Remedied(now, rungs, before)


def _steps(ladder: Sequence[Rung], uses: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the values without any rung, with the first, with the first two, and so on."""
    steps = [uses]
    for rung in ladder:
        for _ in range(rung.get("times", 1)):
            changed = _changed(rung, steps[-1])
            if changed is None:
                break
            steps.append(changed)
    return steps


def _changed(rung: Rung, uses: dict[str, Any]) -> dict[str, Any] | None:
    """Return the values after a rung; None if it cannot be applied, or changes nothing."""
    now = uses
    for operation in ("halve", "double"):
        for key in rung_keys({operation: rung.get(operation, ())}):
            value = pick(now, key)
            if isinstance(value, bool) or not isinstance(value, int | float):
                return None
            if operation == "double":
                value = value * 2
            elif isinstance(value, float):
                value = value / 2
            # Half of an odd number beside a doubled one would change their product, the effective batch.
            elif value < 2 or (value % 2 and "double" in rung):
                return None
            else:
                value //= 2
            now = with_value(now, key.split("."), value)
    for key, value in rung.get("set", {}).items():
        if pick(now, key) is MISSING:
            return None
        now = with_value(now, key.split("."), value)
    return now if now != uses else None

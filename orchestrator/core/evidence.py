"""The evidence about a stage, and what its attempts count for. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from orchestrator.core.failure import DETERMINISTIC, Cause
from orchestrator.core.identity import canonical, hashed_of, reads_of, stage_digest, target_of
from orchestrator.core.records import Claim, Done, End, Heartbeat, Retired, StartRecord
from orchestrator.core.sweep import Cell, ComposedSweep, GateFacts, Input, StageInstance, gates_among

NOT_KEPT = "not_kept"
"""Reason of a release: inputs were retired, and the earlier version's product was not enough without them."""


FAILED = frozenset({"failed", "unknown"})
"""Outcomes that count against a retry budget. ``unknown`` stands for an outcome of a later version."""


class Liveness(StrEnum):
    """What an observer concludes about the owner of an attempt without an `end` record."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


class Attempt(NamedTuple):
    """The records of one attempt. A record that is absent or unreadable is None.

    Attributes:
        number: of the attempt, from 1.
        claim: who owns it.
        start: what it started from.
        heartbeat: the latest one.
        end: how it ended.
        problem: which record is unreadable and why, "" if none is.
    """

    number: int
    claim: Claim | None = None
    start: StartRecord | None = None
    heartbeat: Heartbeat | None = None
    end: End | None = None
    problem: str = ""


class Former(NamedTuple):
    """The product of an earlier version of a stage, made from the same inputs.

    Attributes:
        instance: the stage instance under the earlier version.
        done: the record of the product; None if the product does not count.
        how: what the stage does with the product, for people.
        problem: why the product cannot be used, "" if it can.
    """

    instance: StageInstance
    done: Done | None
    how: str
    problem: str = ""


class Evidence(NamedTuple):
    """The store's records about one stage instance.

    Attributes:
        attempts: by number, from 1.
        done: the product that counts, if there is one.
        generation: of `done`, or else of the product that the next attempt makes.
        problem: damage or an unreadable record, in words for the user.
        damaged: whether `generation` is that of a damaged product, to be voided before the next attempt.
        liveness: of the owner of the highest attempt, if that attempt has no `end`.
        liveness_reason: the observation behind `liveness`.
        liveness_cause: the cause that counts for the attempt if its owner is gone.
        retired: the product's files that were deleted on purpose.
        unreadable: why the records cannot be read, such as a folder without permission. It outranks all else.
        is_passing: whether `unreadable` may pass by itself in a moment.
        former: the product that an earlier version of an unfinished stage left; None if there is none.
    """

    attempts: tuple[Attempt, ...] = ()
    done: Done | None = None
    generation: int = 1
    problem: str = ""
    damaged: bool = False
    liveness: Liveness = Liveness.UNKNOWN
    liveness_reason: str = ""
    liveness_cause: Cause = Cause.NODE_LOST
    retired: tuple[Retired, ...] = ()
    unreadable: str = ""
    is_passing: bool = False
    former: Former | None = None


class Budget(NamedTuple):
    """How often each cause may be retried, and which attempts count.

    Attributes:
        retries: cause to number of retries; a cause that is not listed has none.
        after: attempts up to this number count for no cause, because a rerun or discard came after them.
        after_chance: attempts up to this number count only for deterministic causes, because a launch came
            after them.
    """

    retries: Mapping[str, int]
    after: int = 0
    after_chance: int = 0


def causes(evidence: Evidence) -> Iterator[tuple[int, Cause]]:
    """Yield (attempt, cause) for each attempt that failed or was lost, or whose product was lost.

    Each attempt's cause comes from the first of these that exists: its `end` record, its successor's
    `supersedes`, or, for the last attempt, the finding that its owner is gone.

    An attempt also counts if its owner was alive after all and gave way to its successor. If it did not
    count, two workers that consider each other dead could take over from each other without end:

        attempt 1  (worker A)   released: superseded      counts as node_lost, from attempt 2's claim
        attempt 2  (worker B)   released: superseded      counts as node_lost, from attempt 3's claim
        ...                     until the budget of node_lost is spent, and the stage has failed
    """
    superseded = {
        later.claim.supersedes.attempt: later.claim.supersedes.cause
        for later in evidence.attempts
        if later.claim is not None and later.claim.supersedes is not None
    }
    for attempt in evidence.attempts:
        if attempt.end is not None:
            if attempt.end.outcome in FAILED:
                yield attempt.number, attempt.end.cause or Cause.UNKNOWN
            elif attempt.end.outcome == "succeeded" and evidence.done is None:
                yield attempt.number, Cause.STORAGE  # finished, but the product no longer exists
            elif attempt.end.why == "superseded" and attempt.number in superseded:
                yield attempt.number, superseded[attempt.number]
        elif attempt.number in superseded:
            yield attempt.number, superseded[attempt.number]
        elif attempt.number == evidence.attempts[-1].number and evidence.liveness is Liveness.GONE:
            yield attempt.number, evidence.liveness_cause


def spent(evidence: Evidence, budget: Budget) -> tuple[Cause, int] | None:
    """Return the cause whose budget is spent and the number of its attempts, or None.

    Args:
        evidence: of the stage.
        budget: the retries, and the attempts that count.
    """
    counts: dict[Cause, int] = {}
    for number, cause in causes(evidence):
        boundary = budget.after if cause in DETERMINISTIC else max(budget.after, budget.after_chance)
        if number > boundary and cause is not Cause.CANCELLED:  # a cancelled job is no fault of the stage
            counts[cause] = counts.get(cause, 0) + 1
    for cause, count in counts.items():
        if count > budget.retries.get(cause, 0):
            return cause, count
    return None


class Hold(NamedTuple):
    """A reason not to start a stage now, although its records allow it.

    Attributes:
        reason: one line, for people. It names the command that ends a final hold.
        is_final: whether the hold stays until somebody acts. The stage is then `blocked`; else it waits.
        cause: of the failures behind it, if there were any.
    """

    reason: str
    is_final: bool = True
    cause: Cause | None = None


class Holds(NamedTuple):
    """What is held back in a sweep, by rules that look at more than one stage.

    A held cell starts none of its stages; another cell that shares one of them may. A held stage is started
    for no cell. What is done or runs already is left as it is.

    Attributes:
        cells: id of a cell to its hold.
        stages: digest of a stage to its hold.
    """

    cells: Mapping[str, Hold] = {}
    stages: Mapping[str, Hold] = {}

    def of(self, cell: str, digest: str) -> Hold | None:
        """Return the hold of a stage on behalf of a cell, a final one before others; None if there is none.

        Args:
            cell: its id.
            digest: of the stage.
        """
        found = [hold for hold in (self.cells.get(cell), self.stages.get(digest)) if hold is not None]
        return min(found, key=lambda hold: not hold.is_final, default=None)


NO_HOLDS = Holds()


class Gate(NamedTuple):
    """A gate of a cell.

    Attributes:
        digest: of the gate, a stage instance.
        stages: digests of the cell's stages that may start only when the gate is done.
    """

    digest: str
    stages: tuple[str, ...]


class Gates(NamedTuple):
    """The gates of launches. They are stage instances like others, but part of no cell's chain.

    Attributes:
        instances: digest to stage instance.
        chains: digest of a gate to the stages that are needed for it, inputs first and itself last.
        cells: id of a cell to its gates.
    """

    instances: Mapping[str, StageInstance] = {}
    chains: Mapping[str, tuple[str, ...]] = {}
    cells: Mapping[str, tuple[Gate, ...]] = {}

    def before(self, cell: str) -> tuple[str, ...]:
        """Return the digests of the stages that a cell needs beside its own chain, its gates among them."""
        return tuple(digest for gate in self.cells.get(cell, ()) for digest in self.chains[gate.digest])


NO_GATES = Gates()


def gates_of(sweep: ComposedSweep, facts: GateFacts | None, named: Collection[str] | None = None) -> Gates:
    """Return the gates of a launch, a function of the sealed sweep and of what the launch recorded.

    A gate has one instance for each class: the cells that agree on all that it reads. It takes the inputs of
    all cells of the class. So it sees all rows on which these cells will train::

        cell en       prepare[en]                train     class of both: the gate takes prepare[en] and
        cell en+es    prepare[en] prepare[es]    train     prepare[es], and reads code, packages and GPUs

    Args:
        sweep: the sealed sweep.
        facts: as recorded; None for a launch without gates.
        named: ids of the cells of the launch; None for all.
    """
    if facts is None:
        return NO_GATES
    instances, chains = dict[str, StageInstance](), dict[str, tuple[str, ...]]()
    cells: dict[str, list[Gate]] = {}
    wanted = [cell for cell in sweep.cells if named is None or cell.id in named]
    for name in gates_among(sweep.specs):
        for group in _classes(sweep, name, wanted):
            instance = group.instance(sweep, name, facts)
            if instance.digest in facts.left_out:
                continue
            instances[instance.digest] = instance
            chains[instance.digest] = _with_inputs(instance, sweep.stages)
            for cell, stages in group.cells:
                cells.setdefault(cell.id, []).append(Gate(instance.digest, stages))
    return Gates(instances, chains, {cell: tuple(found) for cell, found in cells.items()})


class _Class:
    """The cells of a launch for which one instance of a gate stands.

    Args:
        reads: what the gate reads of the config of each of them.

    Attributes:
        cells: each with the digests of the stages that the gate holds back in it.
        inputs: the products that the gate takes, by stage and label.
    """

    def __init__(self, reads: dict[str, Any]) -> None:
        self.cells: list[tuple[Cell, tuple[str, ...]]] = []
        self.inputs: dict[tuple[str, str], Input] = {}
        self._reads = reads

    def add(self, cell: Cell, stages: tuple[str, ...], inputs: Mapping[tuple[str, str], Input]) -> bool:
        """Add a cell, unless it takes another product of a name that the class takes already."""
        if any(self.inputs.get(name, taken) != taken for name, taken in inputs.items()):
            return False
        self.cells.append((cell, stages))
        self.inputs.update(inputs)
        return True

    def instance(self, sweep: ComposedSweep, name: str, facts: GateFacts) -> StageInstance:
        """Return the gate's instance. Its label names the axes on which the class agrees."""
        spec, axes = sweep.specs[name], self.cells[0][0].axes
        labels = [
            label
            for axis, label in axes.items()
            if all(cell.axes[axis] == label for cell, _ in self.cells)
            and any(cell.axes[axis] != label for cell in sweep.cells)
        ]
        places = {stage: place for place, stage in enumerate(spec.after)}
        inputs = sorted(self.inputs.values(), key=lambda taken: (places[taken.stage], taken.label))
        launch = {
            "code": facts.code,
            "packages": facts.packages,
            "device": facts.device,
            "num_gpus": facts.num_gpus,
        }
        hashed = {**hashed_of(spec, self._reads), "launch": launch}
        return StageInstance(
            stage=name,
            label=".".join(labels),
            digest=stage_digest(target_of(spec), spec.version, hashed, inputs),
            reads={**self._reads, "launch": launch},
            inputs=tuple(inputs),
        )


def _classes(sweep: ComposedSweep, name: str, cells: Iterable[Cell]) -> Iterator[_Class]:
    """Yield the classes of a gate, in the order of the sweep."""
    spec, found = sweep.specs[name], dict[str, list[_Class]]()
    for cell in cells:
        chain = [sweep.stages[digest] for digest in cell.stage_digests]
        stages = tuple(each.digest for each in chain if name in sweep.specs[each.stage].gated_by)
        if not stages:
            continue
        inputs = {
            (each.stage, each.label): Input(each.stage, each.label, each.digest)
            for each in chain
            if each.stage in spec.after
        }
        reads = reads_of(spec, cell.config)
        alike = found.setdefault(canonical(hashed_of(spec, reads)), [])
        if not any(group.add(cell, stages, inputs) for group in alike):
            alike.append(_Class(reads))
            alike[-1].add(cell, stages, inputs)
    yield from (group for alike in found.values() for group in alike)


def _with_inputs(instance: StageInstance, stages: Mapping[str, StageInstance]) -> tuple[str, ...]:
    """Return the digests of all that a stage is made from, inputs first, and its own."""
    chain = (d for taken in instance.inputs for d in _with_inputs(stages[taken.digest], stages))
    return (*dict.fromkeys(chain), instance.digest)

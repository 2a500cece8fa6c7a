"""Check that what a real run left in a store is a behaviour of the specification of stages.

    python -m tests.spec.trace STORE

Each stage is checked with each of its inputs: their claims, products, ends, voids and retirements, in the
order in which the files were written. The specification is checked with one more state variable, how much of
that order has happened; a step that would write something else is left out. The records are a behaviour if
some behaviour writes them all. What leaves no record, such as a look or a crash, may happen at any time.

The store must be a folder: the times of a bucket's objects are too coarse.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.core.records import Claim, Owner
from orchestrator.core.sweep import ComposedSweep, StageInstance
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger, open_ledger
from tests.spec.check import HERE, check, missing, with_constants

OUTCOMES = {"succeeded": 1, "failed": 2, "unknown": 2, "released": 3}


class Step(NamedTuple):
    """A record, as the specification observes it.

    Attributes:
        event: What was written: a value of `Event` in the specification.
        stage: ``a`` for the input, ``b`` for what takes it.
        number: Of the attempt; of a void or retirement, the generation.
        worker: Who wrote it, by the order of their first claims; None for anybody.
        detail: Generation of a claim or product, input's generation, outcome, kind of a void.
        at_ns: When, in nanoseconds, by the clock of the file system.
    """

    event: str
    stage: str
    number: int
    worker: int | None
    detail: int
    at_ns: int = 0


def read_steps(ledger: Ledger, instances: Iterable[tuple[str, StageInstance]]) -> list[Step]:
    """Return the steps of a stage and its input, in the order in which they were written.

    Args:
        ledger: A store that is a folder.
        instances: Each with its name in the specification; ``b`` takes ``a``.
    """
    root, found, owners = (
        Path(ledger.objects.url),
        list[tuple[int, str, str, int, Owner | None, int]](),
        set[Owner](),
    )

    def add(event: str, name: str, key: str, number: int, owner: Owner | None, detail: int) -> None:
        found.append(((root / key).stat().st_mtime_ns, event, name, number, owner, detail))

    source: StageInstance | None = None
    for name, instance in instances:
        attempts = {attempt.number: attempt for attempt in ledger.attempts(instance)}
        for number, attempt in attempts.items():
            assert attempt.claim is not None, f"no claim: attempt {number} of {instance.name}"
            owners.add(attempt.claim.owner)
            add("claims", name, layout.attempt(instance, number, layout.CLAIM), number, *_of(attempt.claim))
            if attempt.end is not None:
                key = layout.attempt(instance, number, layout.END)
                add("ends", name, key, number, attempt.claim.owner, OUTCOMES[attempt.end.outcome])
        for generation in ledger.generations(layout.done_index(instance.stage)).get(instance.digest, ()):
            done, problem = ledger.product(instance, generation)
            assert done is not None, problem
            claim = attempts[done.attempt].claim
            owner, key = claim.owner if claim else None, layout.done(instance, generation)
            add("takes", name, key, done.attempt, owner, done.inputs.get(source.digest, 0) if source else 0)
            add("finishes", name, key, done.attempt, owner, generation)
        for generation in ledger.generations(layout.void_index(instance.stage)).get(instance.digest, ()):
            kind = 2 if ledger.is_discarded(instance, generation) else 1
            add("voids", name, layout.void(instance, generation), generation, None, kind)
            for record in ledger.retired(instance, generation) if name == "a" else ():
                add("retires", name, layout.retired(instance, record.policy, generation), generation, None, 0)
        source = instance
    # Of one file, `takes` comes before `finishes`; `sorted` is stable.
    ordered = sorted(found, key=lambda each: each[0])
    numbers = {
        owner: index for index, owner in enumerate(dict.fromkeys(each[4] for each in ordered if each[4]))
    }
    return [
        Step(event, name, number, None if owner is None else numbers[owner], detail, at_ns)
        for at_ns, event, name, number, owner, detail in ordered
    ]


def _of(claim: Claim) -> tuple[Owner, int]:
    return claim.owner, claim.generation


def behaviours(ledger: Ledger, sweep: ComposedSweep) -> dict[str, list[Step]]:
    """Return the steps of each stage that was claimed, with each of its inputs.

    Args:
        ledger: A store that is a folder.
        sweep: A sealed sweep.
    """
    found: dict[str, list[Step]] = {}
    for instance in sweep.stages.values():
        if not ledger.numbers(instance):
            continue
        for taken in instance.inputs:
            pair = (("a", sweep.stages[taken.digest]), ("b", instance))
            found[f"{pair[0][1].name} -> {instance.name}"] = read_steps(ledger, pair)
        if not instance.inputs:
            found[instance.name] = read_steps(ledger, [("a", instance)])
    return found


def rejected(traces: Sequence[Sequence[Step]], folder: Path) -> dict[int, int]:
    """Return which traces are no behaviour of the specification, with the number of steps that are one.

    Args:
        traces: The steps of each.
        folder: An empty one, for what is compiled.
    """
    result = check(_constrained(traces), folder, deadlocks=False, optimize="-O1")
    reached = dict.fromkeys(range(len(traces)), 0)
    for index, steps in re.findall(r'cover "trace (\d+) has (\d+) steps" hit [1-9]\d* times?', result.output):
        reached[int(index)] = max(reached[int(index)], int(steps))
    failed = result.violated if result.violated and "trace " not in result.violated else ""
    assert not failed, (
        f"the trace violates an invariant of the specification: {failed}\n{result.output[-3000:]}"
    )
    return {index: steps for index, steps in reached.items() if steps < len(traces[index])}


def _constrained(traces: Sequence[Sequence[Step]]) -> str:
    """Return the specification, bounded by what the traces need, with the observation of one of them."""
    steps = [step for trace in traces for step in trace]
    most = {
        event: max([s.number for s in steps if s.event == event], default=1) for event in ("claims", "voids")
    }
    generations = max([s.detail for s in steps if s.event in ("claims", "finishes")], default=1)
    kinds = [[s.detail for s in trace if s.event == "voids"] for trace in traces]
    constants = {
        "WORKERS": max([s.worker for s in steps if s.worker is not None], default=0) + 1,
        "ATTEMPTS": max(most["claims"], 2),
        "GENERATIONS": max(generations, most["voids"] + 1, 2),
        "RETRIES": max(most["claims"], 2),
        "CRASHES": 0,  # who was killed just does nothing any more
        "FAILURES": max(sum(s.event == "ends" and s.detail == 2 for s in trace) for trace in traces),
        "LOST_REPLIES": 0,
        "DISCARDS": max(kind.count(2) for kind in kinds),
        "DAMAGES": max(kind.count(1) for kind in kinds),
        "REQUESTS": 0,
        "RETAINS": any(s.event == "retires" for s in steps),
    }
    text = with_constants((HERE / "stages.m").read_text(), constants)
    text = text.replace("Worker: scalarset(WORKERS)", "Worker: 0..WORKERS - 1")
    text = re.sub(r"(?s)\nliveness .*?;\n", "\n", text)
    longest = max(len(trace) for trace in traces)
    lines = [f"var which: 0..{len(traces) - 1};", f"var position: 0..{longest};", "var has_strayed: boolean;"]
    lines += [
        "procedure observe(event: Event; s: Stage; number: 0..255; w: Worker; detail: 0..255);",
        "begin",
    ]
    word = "if"
    for index, trace in enumerate(traces):
        for position, step in enumerate(trace):
            who = "" if step.worker is None else f" & w = {step.worker}"
            lines.append(
                f"  {word} which = {index} & position = {position} & event = {step.event} & s = {step.stage}"
                f" & number = {step.number} & detail = {step.detail}{who} then position := {position + 1};"
            )
            word = "elsif"
    lines += ["  else has_strayed := true; end;", "end;", 'assume "as recorded" !has_strayed;']
    for index, trace in enumerate(traces):
        for position in range(len(trace) + 1):
            lines.append(
                f'cover "trace {index} has {position} steps" which = {index} & position = {position};'
            )
    text = re.sub(r"(?s)-- observation: .*?-- end of observation\n", "\n".join(lines) + "\n", text)
    text = text.replace('startstate "an empty store"', f"ruleset trace: 0..{len(traces) - 1} do startstate")
    start = "  crashes_left := CRASHES;\n"
    return text.replace(
        start, f"  which := trace;\n  position := 0;\n  has_strayed := false;\n{start}"
    ).replace("  damages_left := DAMAGES;\nend;", "  damages_left := DAMAGES;\nend; end;")


def main() -> int:
    """Check all sweeps of a store, and print a line for each pair of stages."""
    if lacks := missing():
        print(f"not on this machine: {lacks} (apt install rumur gcc)", file=sys.stderr)
        return 2
    ledger, code = open_ledger(sys.argv[1]), 0
    for sweep in ledger.sweeps():
        traces = behaviours(ledger, ledger.revision(sweep, ledger.revision_numbers(sweep)[-1]).sweep)
        with tempfile.TemporaryDirectory() as folder:
            wrong = rejected(list(traces.values()), Path(folder)) if traces else {}
        for index, (name, steps) in enumerate(traces.items()):
            problem = (
                f"rejected after {wrong[index]}: {steps[wrong[index]]}" if index in wrong else "accepted"
            )
            print(f"{sweep}: {name}: {len(steps)} steps, {problem}")
        code = 1 if wrong else code
    return code


if __name__ == "__main__":
    sys.exit(main())

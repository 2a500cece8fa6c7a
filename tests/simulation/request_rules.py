"""What must hold of requests, and of what readers are shown, in a simulated store."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from orchestrator import formats
from orchestrator.api.state import SweepState
from orchestrator.core.failure import DETERMINISTIC, Cause
from orchestrator.core.plan import RequestSummary, summarize_requests
from orchestrator.core.records import Claim, Done, End, Request, Void
from orchestrator.core.state import State
from orchestrator.core.sweep import ComposedSweep
from orchestrator.simulation.invariants import STALE_S, RuleBroken
from orchestrator.simulation.world import World

SEEN_S = 6.0
"""Longest time from a request to the first claim that respects it, in seconds: a scan that had begun ends."""

STOP_S = 10.0
"""Longest time from a cancel to the last heartbeat of what it stops, in seconds: a poll, a step, a save."""

_TRIES_AGAIN = frozenset({State.PENDING, State.RELEASED, State.LOST, State.QUEUED})


class _Attempt(NamedTuple):
    """An attempt, as its claim says."""

    at_s: float
    claim: Claim
    by: str


class RequestRules:
    """The checks of one run.

    Args:
        world: that runs.
        sweep: that is played.
        read: returns the content of a key.
        num_retries: how often a stage is tried again for each cause.
    """

    def __init__(
        self, world: World, sweep: ComposedSweep, read: Callable[[str], bytes | None], num_retries: int
    ) -> None:
        self._world = world
        self._sweep = sweep
        self._read = read
        self._num_retries = num_retries
        self.requests: list[tuple[float, Request]] = []
        self._attempts: dict[str, dict[int, _Attempt]] = {}
        self._ends: dict[tuple[str, int], tuple[float, End]] = {}
        self._made_s: dict[tuple[str, int], float] = {}
        self._voided_s: dict[tuple[str, int], float] = {}
        self._inputs: dict[tuple[str, int], frozenset[tuple[str, int]]] = {}
        self._discarded: set[tuple[str, int]] = set()
        self._retired_s: dict[str, float] = {}
        self.discards: dict[str, frozenset[str]] = {}

    # Records, as they are made

    def changed(self, kind: str, key: str) -> None:
        """Check a change; see `orchestrator.simulation.invariants.Invariants.changed`."""
        parts = key.split("/")
        if parts[-1].startswith("."):
            return
        data = self._read(key) or b""
        match parts:
            case ["sweeps", _, "requests", name]:
                self._request(kind, int(name.partition(".")[0]), data)
            case ["records", _, digest, number, "claim.json"]:
                self._claim(digest, int(number), formats.decode(data, Claim))
            case ["records", _, digest, number, "end.json"]:
                self._ends[digest, int(number)] = self._world.now_s, formats.decode(data, End)
            case ["records", _, digest, number, "heartbeat.json"]:
                self._beat(digest, int(number))
            case ["done", _, _]:
                done = formats.decode(data, Done)
                self._made_s.setdefault((done.digest, done.generation), self._world.now_s)
                self._inputs[done.digest, done.generation] = frozenset(done.inputs.items())
            case ["retired", _, _, name]:
                self._retired_s[name.partition(".")[0]] = self._world.now_s
            case ["void", _, name]:
                self._void(name.partition(".")[0], formats.decode(data, Void))

    def _fail(self, rule: int, what: str) -> None:
        self._world.fail(RuleBroken(rule, f"requests: {what}"))

    def _request(self, kind: str, number: int, data: bytes) -> None:
        if kind == "unlink" or number <= len(self.requests):
            self._fail(1, f"request {number} was changed or deleted")
        elif number > len(self.requests) + 1:
            self._fail(1, f"request {number} follows {len(self.requests)}")
        else:
            request = formats.decode(data, Request)
            self.requests.append((self._world.now_s, request))
            if request.verb == "discard":
                self._check_voided(request)

    def _check_voided(self, request: Request) -> None:
        """Check that what attempts are about to make of a discarded stage is void in advance."""
        for digest, number in request.after.items():
            attempt = self._attempts.get(digest, {}).get(number)
            if attempt is None or (digest, number) in self._ends:
                continue
            is_settled = attempt.at_s < self._world.now_s - STALE_S
            if is_settled and (digest, attempt.claim.generation) not in self._voided_s:
                self._fail(4, f"attempt {number} of {digest[:8]} goes on after a discard of what it makes")

    def summary(self, requests: Iterable[Request] | None = None) -> RequestSummary:
        """Return the effect of requests; of all by now for None."""
        found = [request for _, request in self.requests] if requests is None else requests
        return summarize_requests(found, [cell.id for cell in self._sweep.cells])

    def _cancelled_s(self, cell: str) -> float | None:
        """Return since when a cell is cancelled; None if it is not."""
        since_s = None
        for at_s, request in self.requests:
            if request.cells is None or cell in request.cells:
                if request.verb == "cancel":
                    since_s = at_s if since_s is None else since_s
                elif request.verb in ("launch", "rerun"):
                    since_s = None
        return since_s

    def check_given(self, cells: Iterable[str], what: str) -> None:
        """Check that no job or worker is given cells alone that were all cancelled long ago."""
        since = [self._cancelled_s(cell) for cell in cells]
        newest_s = max([at_s for at_s in since if at_s is not None], default=0.0)
        if None not in since and self._world.now_s - newest_s > STOP_S and self._is_undisturbed(newest_s):
            self._fail(2, f"{what} is for cells that were cancelled {self._world.now_s - newest_s:.1f} s ago")

    def _is_undisturbed(self, since_s: float) -> bool:
        process = self._world.current
        return process is not None and max(process.stopped_until_s, process.machine.cut_until_s) < since_s

    def _claim(self, digest: str, number: int, claim: Claim) -> None:
        now_s, current = self._world.now_s, self._world.current
        attempts = self._attempts.setdefault(digest, {})
        if number in attempts:
            return
        attempts[number] = _Attempt(now_s, claim, current.name if current else "")
        since_s = self._cancelled_s(claim.cell)
        if since_s is not None and now_s - since_s > SEEN_S and self._is_undisturbed(since_s):
            self._fail(
                2, f"attempt {number} was claimed for {claim.cell}, cancelled {now_s - since_s:.1f} s ago"
            )
        self._check_budget(digest, number)

    def _check_budget(self, digest: str, number: int) -> None:
        """Check that a new attempt is one that the retries, and the requests by now, allow."""
        causes = Counter[Cause]()
        after = self._boundary(digest, "rerun", "discard")
        chance = self._boundary(digest, "launch")
        for earlier in range(1, number):
            _, end = self._ends.get((digest, earlier), (0.0, None))
            successor = self._attempts[digest].get(earlier + 1)
            lost = successor.claim.supersedes if successor is not None else None
            cause = lost.cause if lost is not None and end is None else end.cause if end is not None else None
            if cause is None or cause is Cause.CANCELLED or (end is not None and end.outcome != "failed"):
                continue
            if earlier > (after if cause in DETERMINISTIC else max(after, chance)):
                causes[cause] += 1
        spent = [str(cause) for cause, count in causes.items() if count > self._num_retries]
        if spent:
            self._fail(3, f"attempt {number} was claimed though the retries for {spent} are spent")

    def _boundary(self, digest: str, *verbs: str, before_s: float = math.inf) -> int:
        """Return the last attempt of a stage that requests of some kinds, made before a time, had seen."""
        found = (request for at_s, request in self.requests if request.verb in verbs and at_s < before_s)
        return max((request.after.get(digest, 0) for request in found), default=0)

    def _beat(self, digest: str, number: int) -> None:
        """Check that what nobody wants any more ends."""
        cells = [cell.id for cell in self._sweep.cells if digest in cell.stage_digests]
        since = [self._cancelled_s(cell) for cell in cells]
        at_s = self._attempts[digest][number].at_s
        stopped = [max(at_s, s) for s in since if s is not None]
        if len(stopped) == len(cells) and (digest, number) not in self._ends:
            since_s = max(stopped)
            if self._world.now_s - since_s > STOP_S and self._is_undisturbed(since_s):
                self._fail(2, f"attempt {number} of {', '.join(cells)} goes on long after its cancel")

    def _void(self, digest: str, void: Void) -> None:
        self._voided_s.setdefault((digest, void.generation), self._world.now_s)
        if void.kind != "discarded":
            return
        made_from = self._inputs.get((digest, void.generation), frozenset())
        self._discarded.add((digest, void.generation))
        name = self._world.current.name if self._world.current else ""
        if digest not in self.discards.get(name, ()) and not made_from & self._discarded:
            self._fail(4, f"{name} voids {digest[:8]}, which it did not name")
        attempts = self._attempts.get(digest, {}).values()
        if (digest, void.generation) not in self._made_s and not any(
            one.claim.generation == void.generation for one in attempts
        ):
            self._fail(4, f"{name} voids generation {void.generation} of {digest[:8]}, which nobody makes")

    # What is named by a discard

    def named(self, cells: Iterable[str], stage: str) -> tuple[frozenset[str], frozenset[str]]:
        """Return the digests of a stage in some cells, and of these and all that are made from them."""
        ids = set(cells)
        named = {
            digest
            for cell in self._sweep.cells
            if cell.id in ids
            for digest in cell.stage_digests
            if self._sweep.stages[digest].stage == stage
        }
        found = set(named)
        for cell in self._sweep.cells:
            for digest in cell.stage_digests:
                if any(taken.digest in found for taken in self._sweep.stages[digest].inputs):
                    found.add(digest)
        return frozenset(named), frozenset(found)

    def check_discarded(self, named: frozenset[str], made_from: frozenset[str], start_s: float) -> None:
        """Check a discard that has returned: no product of before, named or made from a named one, counts."""
        settled_s = start_s - STALE_S
        if not any(self._counts(digest, settled_s, start_s) for digest in named):
            return  # it found no product, or not for sure
        for digest in made_from:
            is_named = digest in named
            for (other, generation), made_s in self._made_s.items():
                if other == digest and made_s < settled_s and (other, generation) not in self._voided_s:
                    what = "was named" if is_named else "was made from what was named"
                    self._fail(
                        4, f"generation {generation} of {digest[:8]} {what}, and counts after a discard"
                    )

    def _counts(self, digest: str, from_s: float, to_s: float) -> bool:
        """Return whether a product was there before a time, and not void before another."""
        return any(
            made_s < from_s and self._voided_s.get(key, to_s + 1) > to_s
            for key, made_s in self._made_s.items()
            if key[0] == digest
        )

    # What readers are shown

    def check_look(self, view: SweepState, start_s: float) -> None:
        """Check the states of a view that was read between a time and now."""
        end_s = self._world.now_s
        settled_s = start_s - STALE_S
        is_cached = self._world.current is not None and self._world.current.machine.cache_s > 0
        for digest, status in view.stages.items():
            name = f"{self._sweep.stages[digest].name} {digest[:8]}"
            keys = [key for key, made_s in self._made_s.items() if key[0] == digest and made_s <= end_s]
            if status.state is State.DONE and not any(
                self._voided_s.get(key, end_s) >= settled_s for key in keys
            ):
                self._fail(5, f"a reader sees {name} done, and no product counts")
            if status.state is State.RUNNING and not any(
                self._ends.get((digest, number), (end_s, None))[0] >= settled_s
                for number in self._attempts.get(digest, {})
            ):
                self._fail(5, f"a reader sees {name} running, and no attempt does")
            # A cache of names may show that files are gone, and not yet the record that retires them.
            is_hidden = is_cached and self._retired_s.get(digest, 0.0) >= settled_s
            looks_open = status.state in (State.FAILED, *_TRIES_AGAIN) and not is_hidden
            # Rule 2: a product that was made from a discarded one does not count. Its own void comes later: a
            # discard may be killed between the two, or not see, through a cache, what was made just before.
            keys = [key for key in keys if not self._inputs[key] & self._discarded]
            if looks_open and self._stays(keys, settled_s):
                self._fail(
                    5, f"a reader sees {name} {status.state} ({status.reason}), and its product counts"
                )
            if (
                status.state is State.FAILED
                and not is_hidden
                and not self._may_have_failed(digest, settled_s)
            ):
                self._fail(5, f"a reader sees {name} failed ({status.reason}), and its attempts did not")
        before = [request for at_s, request in self.requests if at_s < settled_s]
        since = [request for at_s, request in self.requests if settled_s <= at_s <= end_s]
        summaries = [self.summary(before + since[:number]) for number in range(len(since) + 1)]
        for cell, found in view.cells.items():
            ways = {cell in summary.cancelled for summary in summaries}
            if found.state is State.CANCELLED and True not in ways:
                self._fail(5, f"a reader sees {cell} cancelled, and nobody cancelled it")
            if found.state in _TRIES_AGAIN and False not in ways:
                self._fail(5, f"a reader sees the cancelled {cell} {found.state}")

    def _may_have_failed(self, digest: str, settled_s: float) -> bool:
        """Return whether more attempts than the retries allow did not succeed.

        A reader need not see requests and ends since a time. A scheduler may know that a job is over while a
        cache of names still hides the end of the attempt, which then looks lost.
        """
        after = self._boundary(digest, "rerun", "discard", before_s=settled_s)
        numbers = (number for number in self._attempts.get(digest, {}) if number > after)
        ends = (self._ends.get((digest, number), (math.inf, None)) for number in numbers)
        may_have = (end is None or end.outcome != "succeeded" or at_s >= settled_s for at_s, end in ends)
        return sum(may_have) > self._num_retries

    def _stays(self, keys: Iterable[tuple[str, int]], settled_s: float) -> bool:
        return any(self._made_s[key] < settled_s and key not in self._voided_s for key in keys)

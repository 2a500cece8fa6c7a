"""The decisions of a sweep in the store: reading them, and recording the next one.

A decision is created under its number, so only one can exist. Who finds one made by another takes it over: a
pure function of the same products, it is the same anyway, except for its author.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from msgspec.structs import replace

from orchestrator import provenance
from orchestrator.core.decisions import SweepQuestion, Unfolded, answer, observe, unfold
from orchestrator.core.records import Revision
from orchestrator.core.sealed import ComposedSweep, Decision, SeenCell, Undecided, Value
from orchestrator.core.search import is_round, trials_of
from orchestrator.core.state import StageStatus, State, SweepFacts
from orchestrator.errors import DamagedRecord, InfrastructureError, UserError
from orchestrator.registry import load, require
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import Ledger

_PROPOSED = "orchestrator.store.proposals:proposed"
_WHAT = "search.sampler=tpe"


class DecisionLog:
    """The decisions of one revision, as a process last read them.

    Nothing is read for a sweep without phases or search.

    Args:
        ledger: The store.
        sweep: The sweep as sealed.
        revision: Number of the revision; 0 if it is not sealed, and so has no decisions.

    Attributes:
        unfolded: The sweep as the decisions have left it.
        damage: The record that cannot be trusted, with the way out; None without one. No decision after it
            is read, and none is made.
    """

    def __init__(self, ledger: Ledger, sweep: ComposedSweep, revision: int) -> None:
        self._ledger = ledger
        self._sealed = sweep
        self._revision = revision
        self.unfolded: Unfolded = unfold(sweep, ())
        self.damage: DamagedRecord | None = None
        self.refresh()

    def refresh(self) -> bool:
        """Read the decisions that were made since the last look, and return whether there are any.

        Raises:
            InfrastructureError: The store did not answer.
        """
        found = False
        while (question := self.unfolded.question) is not None and self._revision:
            try:
                decision = self._read(question)
            except DamagedRecord as error:
                # Views show what is left; whoever runs or decides something calls `check`.
                self.damage = error
                break
            if decision is None:
                break
            self.unfolded = unfold(self._sealed, (*self.unfolded.decisions, decision))
            found = True
        return found

    def check(self) -> None:
        """Raise if a decision cannot be trusted: which cells exist is then unknown.

        Raises:
            DamagedRecord: A decision is damaged.
        """
        if self.damage is not None:
            raise self.damage

    def problems(self) -> list[str]:
        """Return a line on the decision that cannot be trusted; none without one."""
        return [] if self.damage is None else [self.damage.what]

    def _read(self, question: SweepQuestion) -> Decision | None:
        """Return the decision about a question; None if it was not made yet.

        Raises:
            DamagedRecord: It cannot be trusted.
        """
        key = layout.decision(self._sealed.name, self._revision, question.number)
        decision, problem = self._ledger.read(
            key,
            Decision,
            revision=self._revision,
            number=question.number,
            phase=question.phase.name,
            rung=question.rung,
        )
        if decision is not None and not set(decision.chosen) <= set(question.candidates):
            problem = f"{key} names what cannot be chosen"
        if decision is not None and [each.cell for each in decision.seen] != [c.id for c in question.cells]:
            problem = f"{key} saw other cells than those that it is about"
        if decision is not None and not (decision.chosen or question.is_search):
            problem = f"{key} chooses nothing"
        if decision is not None and not is_round(self._sealed.search, decision.proposed):
            problem = f"{key} names points that cannot be proposed"
        if problem:
            raise DamagedRecord(
                f"a decision of {self._sealed.name}@{self._revision} cannot be trusted: {problem}",
                allowed="what its cells made is untouched",
                fix=f"move {key} out of the store; the next launch decides again from the products",
            )
        return decision

    def advance(self, facts: SweepFacts, *, by: str) -> bool:
        """Take over what others decided, else decide what can be decided; return whether there is news.

        Args:
            facts: What decisions are made from.
            by: Name of this process, for the records.

        Raises:
            InfrastructureError: The store did not answer.
        """
        if self.unfolded.question is None:
            return False
        number = len(self.unfolded.decisions)
        if not self.refresh():
            self.check()
            self.make(facts, by=by)
        return len(self.unfolded.decisions) > number

    def make(self, facts: SweepFacts, *, by: str) -> Undecided | None:
        """Record the next decision if its cells have ended, and the ones that can be made after it.

        Returns:
            Why the next one is still open; None if none is left. See `advance` for the arguments.

        Raises:
            InfrastructureError: The store did not answer.
        """
        while (question := self.unfolded.question) is not None:
            seen = self.look(facts)
            if isinstance(seen, Undecided):
                return seen
            proposed, sampler = self._proposed(seen)
            decision = Decision(
                nonce=new_nonce(),
                revision=self._revision,
                number=question.number,
                phase=question.phase.name,
                rung=question.rung,
                seen=seen,
                chosen=answer(question, seen),
                proposed=proposed,
                sampler=sampler,
                by=by,
                at=provenance.now(),
            )
            key = layout.decision(self._sealed.name, self._revision, question.number)
            self._ledger.create(key, decision, decision.nonce)
            # Ours or another's: the record that exists is the decision.
            if not self.refresh():
                self.check()
                raise InfrastructureError(f"{key} was created and cannot be read")
        return None

    def open(self, facts: SweepFacts) -> Undecided | None:
        """Return the next decision, with the reason why it was not made yet; None if no decision is left."""
        if (question := self.unfolded.question) is None:
            return None
        seen = self.look(facts)
        return seen if isinstance(seen, Undecided) else question.undecided("its cells have ended", True)

    def look(self, facts: SweepFacts) -> tuple[SeenCell, ...] | Undecided:
        """Return what the next decision sees, or why it waits."""
        question = self.unfolded.question
        assert question is not None
        if self.damage is not None:
            return question.undecided(f"its record is damaged: {self.damage.fix}", False)
        seen = observe(question, self.unfolded.sweep.stages, facts)
        if isinstance(seen, Undecided):
            return seen._replace(waits_for=_waiting_cells(question, facts.status_of))
        if question.is_search:
            try:
                require("search", what=_WHAT)
            except UserError as error:
                return question.undecided(f"its cells have ended; {error.what} here: {error.fix}", True)
        return seen

    def _proposed(self, seen: Sequence[SeenCell]) -> tuple[tuple[dict[str, Value], ...], str]:
        """Return the points of the next round and the sampler; none for a sweep without search."""
        if (search := self._sealed.search) is None:
            return (), ""
        trials = trials_of(self._sealed, search, self.unfolded.decisions, seen)
        # Loaded by name: only searches need it.
        points, sampler = load(_PROPOSED)(search, trials, min(search.batch, search.num_cells - len(trials)))
        return tuple(map(dict, points)), str(sampler)


def with_rounds(ledger: Ledger, revision: Revision) -> Revision:
    """Return a revision of a search with the cells of all its rounds so far, which its seal does not hold.

    Args:
        ledger: The store.
        revision: As sealed.

    Raises:
        DamagedRecord: A decision cannot be trusted, so cells of the rounds after it are unknown.
        InfrastructureError: The store did not answer.
    """
    log = DecisionLog(ledger, revision.sweep, revision.number)
    log.check()
    return replace(revision, sweep=log.unfolded.sweep)


def readable_revisions(ledger: Ledger, sweep: str, problems: list[str]) -> Iterator[Revision]:
    """Yield the sealed revisions of a sweep, oldest first.

    Args:
        ledger: The store.
        sweep: Name of the sweep.
        problems: Receives a line for each revision that cannot be trusted as a whole, and is left out.

    Raises:
        InfrastructureError: The store did not answer.
    """
    for number in ledger.revision_numbers(sweep):
        try:
            yield ledger.revision(sweep, number)
        except DamagedRecord as error:
            problems.append(f"{error.what}; it is left out")


def _waiting_cells(question: SweepQuestion, status_of: Callable[[str], StageStatus]) -> tuple[str, ...]:
    """Return the ids of the cells of a question that have not ended.

    Args:
        question: the question.
        status_of: returns a stage's own state by digest.
    """
    states = {cell.id: {status_of(digest).state for digest in cell.stage_digests} for cell in question.cells}
    return tuple(each for each, found in states.items() if State.FAILED not in found and found - {State.DONE})

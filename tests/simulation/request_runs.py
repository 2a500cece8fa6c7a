"""Runs during which people cancel, rerun and discard, and readers look, while workers work.

What people do is what the verbs do, through the same functions. Two may ask for the same at once from two
machines; whoever is killed in the middle asks again.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from orchestrator import provenance
from orchestrator.api import launching
from orchestrator.api import requests as recording
from orchestrator.api.dropping import discard_stage
from orchestrator.api.launching import CheckedLaunch, failed_cells
from orchestrator.api.requests import needing_retired
from orchestrator.api.run import cancel_cells
from orchestrator.api.state import SweepState
from orchestrator.api.status import explain, rows_of, status_json, status_of
from orchestrator.core.evidence import Attempt, Liveness
from orchestrator.core.failure import Cause
from orchestrator.core.state import State
from orchestrator.core.sweep import StageInstance
from orchestrator.errors import InfrastructureError
from orchestrator.launchers.local import LocalLauncher
from orchestrator.simulation.invariants import RuleBroken
from orchestrator.simulation.schedules import Play
from orchestrator.simulation.small_sweep import NAME, calm_table
from orchestrator.simulation.world import Machine, SimulatedProcess
from orchestrator.store import layout
from orchestrator.store.evidence import OwnerReport
from tests.simulation.request_rules import RequestRules

PEOPLE = ("person", "person", "fail", "fail", "fail")
"""What happens to people and stages, beside what happens to machines."""

MAX_ASKED = 12
"""Most requests of a run that people begin."""


class Ask(NamedTuple):
    """What a person does.

    Attributes:
        verb: that is called, or ``look``.
        only: selector of cells; "" for all.
        stage: of a discard.
    """

    verb: str
    only: str
    stage: str


class AllOver(SweepState):
    """A view at a time when no process runs any more."""

    def _observe(self, instance: StageInstance, attempt: Attempt) -> OwnerReport:
        return OwnerReport(Liveness.GONE, "all ended")


class RequestPlay(Play):
    """A run with people; see `orchestrator.simulation.schedules.Play`."""

    FAULTS = (*Play.FAULTS, *PEOPLE)
    RETRIES = (0, 1, 9)

    def __init__(self, seed: int, *, is_calm: bool = False) -> None:
        super().__init__(seed, is_calm=is_calm)
        self._num_people = 0
        policy = self.settings.policy
        self.rules = RequestRules(
            self.world, self.sweep, lambda key: self.place.content(key), policy.retries[Cause.UNKNOWN]
        )

    def befall(self, name: str) -> None:
        """Let something happen."""
        world = self.world
        people = [each for each in world.processes if each.name.startswith("person")]
        children = [each for each in world.processes if "/" in each.name]
        match name:
            case "person" if people:
                self.events[name] += 1
                world.kill(world.random.choice(people), "a person's")
            case "fail" if children:
                self.events[name] += 1
                failing = world.random.choice(
                    (ValueError("it fails"), OSError(5, "it fails"), KeyError("it"))
                )
                world.random.choice(children).raises = failing
            case "person" | "fail":
                pass
            case _:
                super().befall(name)

    # People

    def begin(self) -> None:
        """Start what works, people and readers."""
        self.rules.changed("create", layout.request(NAME, 1))
        super().begin()
        draw = self.world.random
        for _ in range(draw.choice((1, 2, 2, 3))):
            ask = Ask(
                draw.choice(("cancel", "cancel", "rerun", "launch", "discard", "discard")),
                draw.choice(("", "seed=0", "seed=1" if len(self.sweep.cells) > 1 else "seed=0")),
                draw.choice(("make", "use")),
            )
            after_s = draw.random() * draw.choice((3.0, 8.0, 20.0))
            for machine in draw.sample(self.machines, min(len(self.machines), draw.choice((1, 1, 2)))):
                self.start_person(ask, machine, after_s)
        self.start_person(Ask("look", "", ""), draw.choice(self.machines), draw.random() * 5.0)

    def changed(self, kind: str, key: str) -> None:
        """Check a change of the store."""
        super().changed(kind, key)
        self.rules.changed(kind, key)

    def launched(self, machine: Machine) -> None:
        """Start what works on a request that a person has just made from a machine."""
        self.start_worker(machine, 0, after_s=0.2)

    def start_person(self, ask: Ask, machine: Machine, after_s: float) -> SimulatedProcess:
        """Start a person, who asks again if it was killed."""
        self._num_people += 1
        name = f"person{self._num_people}"
        process: SimulatedProcess | None = None

        def main() -> None:
            assert process is not None
            try:
                if ask.verb == "look":
                    self._look(process)
                else:
                    self._ask(ask, process)
            except (OSError, InfrastructureError) as error:  # the verb reports that the store does not answer
                if not self._is_disturbed(machine):
                    raise
                self.world.note("say", str(error))

        process = self.world.start(name, machine, main, after_s=after_s)

        def ended() -> None:
            if process is not None and process.is_killed and self._num_people < MAX_ASKED:
                self.start_person(
                    ask, self.world.random.choice(self.machines), 5 * self.world.random.random()
                )

        process.on_end = ended
        return process

    def _is_disturbed(self, machine: Machine) -> bool:
        return bool(self._faults.num_errors or machine.cut_until_s)

    def _view(self, process: SimulatedProcess) -> SweepState:
        return SweepState(self.place.ledger(process, lambda: ""), self.sweep, 1, sealed=True)

    def _ask(self, ask: Ask, process: SimulatedProcess) -> None:
        view, start_s = self._view(process), self.world.now_s
        cells = view.select([ask.only] if ask.only else [])
        self.events[ask.verb] += 1
        self.world.note("ask", f"{ask.verb} {ask.only} {ask.stage}")
        match ask.verb:
            case "cancel":
                cancel_cells(view, cells)
            case "discard":
                self._discard(view, process, [cell.id for cell in cells], ask.stage, start_s)
            case "launch" | "rerun":
                if ask.verb == "rerun":
                    chosen = cells if ask.only else failed_cells(view)
                    cells = [cell for cell in chosen if view.cells[cell.id].state is not State.DONE]
                if cells:
                    self._record(view, ask.verb, cells, names_cells=bool(ask.only) or ask.verb == "rerun")
                    self.launched(process.machine)

    def _discard(
        self, view: SweepState, process: SimulatedProcess, cells: list[str], stage: str, start_s: float
    ) -> None:
        named, made_from = self.rules.named(cells, stage)
        self.rules.discards[process.name] = made_from
        discard_stage(view, view.asked_cells(cells), stage, "as it was wrong")
        self.rules.check_discarded(named, made_from, start_s)

    def _record(self, view: SweepState, verb: Any, cells: Any, *, names_cells: bool = True) -> None:
        checked = CheckedLaunch(
            verb=verb,
            view=view,
            cells=cells,
            settings=self.settings,
            import_paths=(),
            names_cells=names_cells,
        )
        checked.record(checked.view, lambda line: None)

    def _look(self, process: SimulatedProcess) -> None:
        """Look at the sweep as `sweep status`, `collect` and `why` do, several times."""
        calm, view = calm_table(*self.scope.form), self._view(process)
        for _ in range(self.world.random.choice((2, 4, 6))):
            start_s = self.world.now_s
            view = view.fresh()
            status = status_of(view, None)
            json.dumps(status_json(view, view.sweep.cells))
            self.rules.check_look(view, start_s)
            names = {each.name: digest for digest, each in view.sweep.stages.items() if each.stage == "make"}
            for row in rows_of(view, []):
                cell = view.cell(row["cell"])
                digest = names.get(row["stage"], cell.stage_digests[-1])
                if row["state"] != calm[digest][0]["state"]:
                    self.world.fail(RuleBroken(6, f"requests: a reader collects {row}"))
            explain(view, view.sweep.cells[0], content=self.world.random.random() < 0.3)
            self.events["look"] += 1
            self.world.note("saw", json.dumps(status.counts))
            self.world.sleep(self.world.random.random() * 4.0)

    # The end

    def end(self) -> None:
        """Check what the requests came to, then launch all that is not done, as their users would."""
        view = AllOver(self.place.ledger(self._nobody(), lambda: ""), self.sweep, 1, sealed=True)
        for cell in self.rules.summary().cancelled:
            if view.cells[cell].state not in (State.DONE, State.CANCELLED, State.FAILED):
                raise RuleBroken(2, f"requests: {cell} was cancelled, and is {view.cells[cell]}")
        machine = Machine("the last")
        process: SimulatedProcess | None = None

        def main() -> None:
            assert process is not None
            view = self._at_the_end(process)
            self._record(view, "launch", list(view.sweep.cells), names_cells=False)
            view = self._at_the_end(process)
            for stage in needing_retired(view, view.sweep.cells):
                self._discard(view, process, [cell.id for cell in view.sweep.cells], stage, 0.0)
                view = self._at_the_end(process)
            if failed := failed_cells(view):
                self._record(view, "rerun", failed)

        process = self.world.start("person of the end", machine, main)
        process.on_end = super().end

    def _at_the_end(self, process: SimulatedProcess) -> SweepState:
        return AllOver(self.place.ledger(process, lambda: ""), self.sweep, 1, sealed=True)

    @staticmethod
    def _nobody() -> SimulatedProcess:
        return SimulatedProcess("nobody", Machine("nowhere"), lambda: None, 0.0)

    def run(self) -> None:
        """Play the run. The checkout, packages and hardware of whoever launches are not simulated."""
        with (
            instead(launching, "make_launcher", lambda settings, num_cells: local_launcher(num_cells)),
            instead(provenance, "of_launch", lambda *_: {"code": "code", "packages_digest": ""}),
            instead(recording, "checkout_digest", lambda *_: "code"),
        ):
            super().run()


@functools.cache
def local_launcher(num_cells: int) -> LocalLauncher:
    """Return what a launch has. Each one that is made runs a program that looks for GPUs."""
    return LocalLauncher({"name": "local"}, num_cells)


@contextlib.contextmanager
def instead(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Put a function in the place of another one within the block."""
    before = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, before)

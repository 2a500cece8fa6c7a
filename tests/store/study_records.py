"""Writes the records of a study into a store, as its workers would, each with a nonce that is always the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.failure import Cause
from orchestrator.core.records import (
    Claim,
    Done,
    End,
    Owner,
    Process,
    StartRecord,
    TimeSpent,
)
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.manifest import scan
from orchestrator.simulation.world import EPOCH_S
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger

# fmt: off
NAME, NOW_S = "study", 7200.0
"""The sweep, and when it is seen: seconds after the start of the clock."""


def at(seconds: float) -> str:
    """A time as records have it."""
    return datetime.fromtimestamp(EPOCH_S + seconds, UTC).isoformat(timespec="seconds")


class Writer:
    """Writes records.

    Args:
        root: of the store.
        ledger: the store.
    """

    def __init__(self, root: Path, ledger: Ledger) -> None:
        self.root, self.ledger, self._number = root, ledger, 0

    def nonce(self) -> str:
        """A nonce, each another one."""
        self._number += 1
        return f"{self._number:032x}"

    def put(self, key: str, record: msgspec.Struct) -> None:
        """Write a record."""
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.ledger.encode(record))

    def _owner(self, host: str, **more: Any) -> Owner:
        process = Process(boot_id=host, namespace="pid:[1]", pid=100 + self._number, start="5")
        return Owner(host=host, process=process, **more)

    def _claim(self, cell: Cell, of: StageInstance, number: int, start_s: float, **more: Any) -> Claim:
        claim = Claim(
            nonce=self.nonce(),
            owner=more.pop("owner", None) or self._owner(f"node{1 + len(of.stage) % 2}"),
            lease_s=90.0,
            generation=more.pop("generation", 1),
            sweep=NAME,
            cell=cell.id,
            at=at(start_s),
            **more,
        )
        self.put(layout.attempt(of, number, layout.CLAIM), claim)
        return claim

    def _start(self, of: StageInstance, number: int, start_s: float, **more: Any) -> None:
        more = {"parent": None, "uses": {"batch": 32}, "provenance": {"code": "v1", "host": "node1"}, **more}
        self.put(layout.attempt(of, number, layout.START), StartRecord(at=at(start_s + 1), **more))

    def _payload(self, of: StageInstance, number: int, log: str, steps: Sequence[int] = ()) -> Path:
        folder = self.root / layout.payload(of, number)
        (folder / layout.OUTPUT).mkdir(parents=True, exist_ok=True)
        (folder / layout.LOG).write_text(log)
        rows = [
            {"step": step, "time_s": step * 2.0, "loss": round(4 / (1 + step / 10), 4), "tokens_per_second": 900.0 + step}
            for step in steps
        ]
        (folder / layout.METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    def _finish(
        self,
        cell: Cell,
        of: StageInstance,
        start_s: float,
        seconds: float,
        *,
        attempt: int = 1,
        generation: int = 1,
        rows: Sequence[dict[str, Any]] = (),
        **claimed: Any,
    ) -> Done:
        self._claim(cell, of, attempt, start_s, generation=generation, **claimed)
        self._start(of, attempt, start_s, inputs={each.digest: 1 for each in of.inputs})
        folder = self._payload(of, attempt, f"{of.name} of {cell.id}: done\n", range(10, 60, 10))
        (folder / layout.OUTPUT / "model.bin").write_text(f"weights of {cell.id}")
        (folder / layout.OUTPUT / "best.bin").write_text("best")
        done = Done(
            nonce=self.nonce(),
            stage=of.stage,
            digest=of.digest,
            generation=generation,
            attempt=attempt,
            files=scan(folder / layout.OUTPUT),
            rows=tuple(rows),
            seconds=seconds,
            code="v1",
            at=at(start_s + seconds),
            inputs={each.digest: 1 for each in of.inputs},
        )
        self.put(layout.done(of, generation), done)
        spent = TimeSpent(
            held_s=start_s + seconds,
            seconds=seconds,
            saved_step=50,
            saved_s=seconds * 0.7,
            phases={"start": seconds * 0.1, "compute": seconds * 0.8, "save": seconds * 0.1},
        )
        end = End(nonce=self.nonce(), outcome="succeeded", seconds=seconds, at=at(start_s + seconds), spent=spent)
        self.put(layout.attempt(of, attempt, layout.END), end)
        return done

    def _fail(
        self,
        cell: Cell,
        of: StageInstance,
        cause: Cause,
        exception: str,
        message: str,
        *,
        attempt: int = 1,
        start_s: float = 100.0,
        log: str = "",
        **claimed: Any,
    ) -> None:
        self._claim(cell, of, attempt, start_s, **claimed)
        self._start(of, attempt, start_s)
        log = log or f"step 1\n{exception}: {message}\n"
        self._payload(of, attempt, log, (1,))
        end = End(
            nonce=self.nonce(),
            outcome="failed",
            cause=cause,
            exception=exception,
            message=message,
            log_tail=log,
            seconds=12.5,
            at=at(start_s + 12.5),
            spent=TimeSpent(held_s=20.0, seconds=12.5, phases={"start": 2.5, "compute": 10.0}),
        )
        self.put(layout.attempt(of, attempt, layout.END), end)

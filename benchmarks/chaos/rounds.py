"""One round of the campaign: a sweep is launched, struck until it has had its faults, and judged."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from chaos import faults
from chaos.faults import LEASE_S, Strike, Struck, attempts, processes, signalled
from chaos.places import REPOSITORY, SWEEP, Place, Places
from orchestrator.core.goodput import USEFUL

COUNTS = """
description: cells that count
expect_cells: 6
config: {{seed: 0, count: {{num_steps: 60, checkpoint_every: 5, step_s: {step_s}, fail: null}}}}
axes: {{seed: "range(0,6)"}}
stages: [count]
"""
SMOKE = ("smoke", "model=tiny-qwen3", "task=math")

PATIENT = (
    "policy.retries={node_lost: 99, unknown: 99, preempted: 99, storage: 99, communication: 99}",
    "policy.breaker=0",
    "policy.quarantine_s=0",
)
"""So many faults in so little time would use up the budgets of any cell, and no node here is a bad one."""

MEASURED = ("train_seconds", "tokens_per_second", "peak_memory_gib")
VOLATILE = ("attempts", "seconds", "code", "revision", *MEASURED)
"""Columns of `collect` that say how a result was made, of trainings too."""

LIMIT_S = 420.0
"""A round that takes longer is stuck."""

MAX_COMMANDS = 60


class Kind(NamedTuple):
    """A kind of round.

    Attributes:
        place: where it runs, see `Places.place`.
        strike: what is done.
        num_wanted: faults that the whole campaign is to see.
        num_a_round: faults of one round.
        pause_s: mean time between two, in seconds.
        words: further words of its launches.
        sweep: what is launched; ``counts`` is `COUNTS`.
        step_s: seconds of one of its 60 steps: a round must last as long as its faults.
    """

    place: str
    strike: Callable[[Place, random.Random], Struck | None]
    num_wanted: int
    num_a_round: int
    pause_s: float
    words: tuple[str, ...] = ()
    sweep: tuple[str, ...] = ("counts.yaml",)
    step_s: float = 0.1

    @property
    def name(self) -> str:
        """For people, and for the file of results."""
        return f"{self.place}: {self.strike.__name__.replace('_', ' ')}"


_LEASE = (f"policy.lease_s={LEASE_S}",)

KINDS = (
    Kind("local", faults.kill, 400, 25, 1.0),
    Kind("two launches", faults.kill, 200, 25, 1.0, step_s=0.2),
    Kind("bucket", faults.kill, 100, 20, 2.0, _LEASE, step_s=0.2),
    Kind("bucket", faults.lose_reply, 20, 10, 2.0, _LEASE, step_s=0.2),
    Kind("slurm", faults.kill, 100, 20, 2.0, _LEASE, step_s=0.4),
    Kind("ray", faults.kill, 100, 20, 2.0, _LEASE, step_s=0.5),
    Kind("train", faults.kill_train, 100, 25, 2.0, ("policy.checkpoint_interval_s=1",), SMOKE),
    Kind("local", faults.stop, 20, 4, 3.0, _LEASE, step_s=0.3),
    Kind("slurm", faults.lose_node, 20, 5, 6.0, _LEASE, step_s=0.8),
    Kind("slurm", faults.lose_controller, 20, 5, 6.0, _LEASE, step_s=0.8),
    Kind("ray", faults.lose_node, 20, 4, 10.0, _LEASE, step_s=0.8),
    Kind("ray", faults.lose_controller, 20, 3, 15.0, _LEASE, step_s=0.8),
    Kind("small disk", faults.fill_disk, 20, 5, 4.0, step_s=0.2),
    Kind("local", faults.fail_files, 20, 5, 4.0, step_s=0.2),
    Kind("local", faults.slow_files, 20, 5, 4.0),
    Kind("local", faults.shift_clock, 20, 10, 2.0),
)
"""The campaign."""


class Result(msgspec.Struct, kw_only=True):
    """What a round showed: one line of the file of results.

    Attributes:
        kind: `Kind.name`.
        seed: of the dice.
        commit: of the checkout, ``+`` behind it if it differs from it.
        strikes: the faults.
        num_commands: launches that were typed; one at least, and one after each that ended before the sweep.
        lost: cells whose row is missing, or is another than that of the calm run.
        twice: stages that succeeded twice.
        stuck: whether the round took longer than `LIMIT_S`.
        goodput: share of the held time that ended in products; None if the store does not show it.
        seconds: wall time.
        load: of the machine, over the last minute, at the end.
        said: what the last launch printed last, of a round that went wrong.
        again: why each further launch was typed: ``killed``, or exit code and error of the one before.
        tracebacks: logs with a traceback, each with its last line; those of stages too.
    """

    kind: str
    seed: int
    commit: str
    strikes: list[Strike]
    num_commands: int
    lost: list[str]
    twice: list[str]
    stuck: bool
    goodput: float | None
    seconds: float
    load: float
    said: str = ""
    again: list[str] = []
    tracebacks: list[str] = []

    @property
    def is_right(self) -> bool:
        """Whether nothing was lost, nothing done twice, and the round ended."""
        return not (self.lost or self.twice or self.stuck)


def commit() -> str:
    """Return the commit of this checkout."""
    ask = ["git", "-C", str(REPOSITORY)]
    name = subprocess.run(
        [*ask, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
    )
    changed = subprocess.run(
        [*ask, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
    )
    return name.stdout.strip() + ("+" if changed.stdout.strip() else "")


class Launch(NamedTuple):
    """A launch that was typed.

    Attributes:
        process: of it.
        log: what it prints.
    """

    process: subprocess.Popen[bytes]
    log: Path


class Round:
    """A sweep in a place.

    Args:
        kind: of the round.
        place: an empty one.
        seed: of the dice.
    """

    def __init__(self, kind: Kind, place: Place, seed: int) -> None:
        self._kind = kind
        self._place = place
        self._dice = random.Random(f"{kind.name} {seed}")
        self._launches: list[Launch] = []
        self.again: list[str] = []
        self._undo: list[tuple[float, Callable[[], object]]] = []
        self.strikes: list[Strike] = []
        self.num_commands = 0
        self.is_stuck = False
        (place.folder / "project/counts.yaml").write_text(COUNTS.format(step_s=kind.step_s), encoding="utf-8")

    def run(self, *, calm: bool = False) -> None:
        """Launch, strike, launch again what ended too early, and return when the sweep is over."""
        over_s = time.monotonic() + LIMIT_S
        left = 0 if calm else self._kind.num_a_round
        next_s = time.monotonic() + self._pause_s()
        while not self._is_over():
            now_s = time.monotonic()
            if now_s > over_s or self.num_commands > MAX_COMMANDS:
                self.is_stuck = True
                break
            for due_s, undo in [each for each in self._undo if each[0] <= now_s]:
                self._undo.remove((due_s, undo))
                undo()
            if (
                left
                and now_s >= next_s
                and not self._undo
                and (struck := self._kind.strike(self._place, self._dice))
            ):
                left -= 1
                self.strikes.append(struck.strike)
                next_s = time.monotonic() + struck.after_s + self._pause_s()
                if struck.undo is not None:
                    self._undo.append((time.monotonic() + struck.after_s, struck.undo))
            time.sleep(0.1)
        for _, undo in self._undo:
            undo()
        self._end()

    def judge(self, calm: Mapping[str, Any], seed: int, seconds: float) -> Result:
        """Return what the store shows.

        Args:
            calm: the rows of the calm run, by cell.
            seed: of the round.
            seconds: that it took.
        """
        rows = self.rows()
        store = self._place.store
        self._find_recoveries(store)
        ends = [(path, json.loads(path.read_bytes())) for path in store.glob("records/*/*/*/end.json")]
        succeeded = [
            str(path.parents[1].relative_to(store)) for path, end in ends if end["outcome"] == "succeeded"
        ]
        result = Result(
            kind=self._kind.name,
            seed=seed,
            commit=commit(),
            strikes=self.strikes,
            num_commands=self.num_commands,
            lost=[cell for cell, row in calm.items() if rows.get(cell) != row],
            twice=sorted({name for name in succeeded if succeeded.count(name) > 1}),
            stuck=self.is_stuck,
            goodput=self._goodput(),
            seconds=seconds,
            load=os.getloadavg()[0],
            again=self.again,
            tracebacks=self._tracebacks(),
        )
        if not result.is_right:
            result.said = self._launches[-1].log.read_text(errors="replace")[-2000:]
        return result

    def rows(self) -> dict[str, Any]:
        """Return the rows of the results, by cell and the columns that tell rows of a cell apart."""
        found = self._json("collect") or []
        rows = [{key: value for key, value in row.items() if key not in VOLATILE} for row in found]
        return {" ".join(str(row.get(key, "")) for key in ("cell", "split", "language")): row for row in rows}

    def _is_over(self) -> bool:
        """Return whether all cells are done; launch again what has ended before that."""
        codes = [launch.process.poll() for launch in self._launches]
        if codes and all(code == 0 for code in codes):
            return True
        ended = [each for each in self._launches if each.process.returncode not in (None, 0)]
        self.again += [self._why_again(each) for each in ended]
        self._launches = [each for each in self._launches if each not in ended]
        while len(self._launches) < self._place.num_launches:
            self._launch()
        return False

    def _why_again(self, launch: Launch) -> str:
        if launch.process.pid in {strike.pid for strike in self.strikes}:
            return "killed"
        lines = launch.log.read_text(errors="replace").strip().splitlines() or [""]
        line = next((each for each in lines if each.startswith("error: ")), lines[-1])
        return f"exit {launch.process.returncode}: {line[:200]}"

    def _launch(self) -> None:
        self.num_commands += 1
        words = (*self._place.words, *PATIENT, *self._kind.words)
        path = self._place.folder / f"launch.{self.num_commands}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [*SWEEP, "launch", *self._kind.sweep, *words],
                cwd=self._place.folder / "project" if self._kind.sweep[0] == "counts.yaml" else REPOSITORY,
                env=self._place.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._launches.append(Launch(process, path))

    def _tracebacks(self) -> list[str]:
        """Return the logs with a traceback, each with its last line."""
        found = []
        for path in self._place.folder.rglob("*"):
            if path.suffix in (".log", ".out", ".err", ".txt") and path.is_file():
                text = path.read_text(errors="replace")
                if "Traceback (most recent call last)" in text:
                    found.append(f"{path.name}: {text.strip().splitlines()[-1][:200]}")
        return found

    def _end(self) -> None:
        for launch in [each.process for each in self._launches]:
            if launch.poll() is None:
                launch.send_signal(signal.SIGTERM)
                try:
                    launch.wait(30)
                except subprocess.TimeoutExpired:
                    launch.kill()
        until_s = time.monotonic() + 20  # drivers and jobs leave a little later than the launch
        while (left := processes(self._place)) and time.monotonic() < until_s:
            time.sleep(0.2)
        for pid in left:
            signalled(pid, "", signal.SIGKILL)

    def _json(self, *words: str) -> Any:
        name = self._kind.sweep[0].removesuffix(".yaml")
        done = subprocess.run(
            [*SWEEP, words[0], name, *words[1:], "--json"],
            cwd=self._place.folder / "project" if name == "counts" else REPOSITORY,
            env={key: value for key, value in self._place.env.items() if key != "LD_PRELOAD"},
            capture_output=True,
            text=True,
            check=False,
        )
        return json.loads(done.stdout) if done.stdout.strip() else None

    def _goodput(self) -> float | None:
        found = (self._json("status", "--spent") or {}).get("spent", [])
        held_s = sum(sum(each["parts"].values()) for each in found)
        useful_s = sum(each["parts"].get(name, 0.0) for each in found for name in USEFUL)
        return useful_s / held_s if held_s else None

    def _find_recoveries(self, store: Path) -> None:
        """Set how long it took from each fault to the attempt after the one that it hit."""
        of_pid = {pid: (folder, what) for folder, pids in attempts(store) for pid, what in pids.items()}
        for strike in self.strikes:
            if strike.pid not in of_pid:
                continue
            folder, strike.what = of_pid[strike.pid]
            later = folder.parent / str(int(folder.name) + 1) / "claim.json"
            if later.exists():
                strike.recovery_s = max(0.0, self._made_s(later) - strike.at_s)

    def _made_s(self, record: Path) -> float:
        """Return the Unix time at which a record was made: in whole seconds if the file is a copy."""
        if self._place.bucket is None:
            return record.stat().st_mtime
        return datetime.fromisoformat(json.loads(record.read_bytes())["at"]).timestamp()

    def _pause_s(self) -> float:
        return self._dice.expovariate(1 / self._kind.pause_s)


def play(kind: Kind, places: Places, seed: int, calm: Mapping[str, Any], keep: Path | None = None) -> Result:
    """Play one round and return what it showed.

    Args:
        kind: of the round.
        places: where rounds are played.
        seed: of the dice.
        calm: the rows of the calm run, by cell.
        keep: where the folder of a round is copied that needs an explanation; None for nowhere.
    """
    start_s = time.monotonic()
    with places.place(kind.place) as place:
        one = Round(kind, place, seed)
        one.run()
        result = one.judge(calm, seed, time.monotonic() - start_s)
        is_plain = result.is_right and not result.tracebacks and set(result.again) <= {"killed"}
        if keep is not None and not is_plain:
            name = f"{kind.name}.{seed}.{time.time():.0f}"
            shutil.copytree(place.folder, keep / name, ignore_dangling_symlinks=True)
    return result


def calm_rows(kind: Kind, places: Places) -> dict[str, Any]:
    """Return the rows of the kind's sweep when nothing is done to it."""
    with places.place("local") as place:
        one = Round(kind._replace(place="local", words=(), step_s=0.01), place, 0)
        one.run(calm=True)
        return one.rows()

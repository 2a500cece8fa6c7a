"""What must hold in a simulated store at each moment, whatever happens, and in the end.

The rules are those of docs/design.md. They are checked against the bytes that are there, as each change is
made, so that a fault shows at the step that makes it and not only by what comes of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from orchestrator import formats
from orchestrator.core.records import Claim, Done, Retired, StartRecord, Void
from orchestrator.core.settings import RETIRING
from orchestrator.manifest import File
from orchestrator.saving import CheckpointManifest
from orchestrator.simulation.world import World

Read = Callable[[str], bytes | None]

SAVE_S = 1.0
"""Longest time from a child's look for a later attempt to the end of a save, in seconds."""
STALE_S = 2.0
"""For how long a machine may not see what is there, in seconds."""
JUDGE_S = 0.5
"""Longest time from the look by which an owner is taken for dead to the claim, in seconds."""


class RuleBroken(AssertionError):
    """A rule of the store protocol was broken.

    Args:
        rule: number of the rule in docs/design.md.
        what: happened.
    """

    def __init__(self, rule: int, what: str) -> None:
        super().__init__(f"rule {rule}: {what}")
        self.rule = rule


class Invariants:
    """The checks of one run.

    Args:
        world: that runs.
        read: returns the content of a key.
        durable: returns the content of a key that no loss of power takes away.
    """

    def __init__(self, world: World, read: Read, durable: Read) -> None:
        self._world = world
        self._read = read
        self._durable = durable
        self._owners: dict[tuple[str, str], dict[int, str]] = {}
        self._created: dict[str, bytes] = {}
        self._claimed_s: dict[tuple[tuple[str, str], int], float] = {}
        self._made_s: dict[str, float] = {}
        self._beats: dict[tuple[tuple[str, str], int], tuple[float, float]] = {}  # the former, the last
        self._claims: dict[str, list[tuple[tuple[str, str], int]]] = {}
        self.products: dict[str, Done] = {}

    def changed(self, kind: str, key: str) -> None:
        """Check a change, and end the run if it breaks a rule.

        Args:
            kind: ``unlink`` for a deletion, else another word.
            key: that was changed.
        """
        try:
            self._check(kind, key)
        except RuleBroken as broken:  # not raised: the code that runs may take it for a stage's
            self._world.fail(broken)
        except msgspec.DecodeError as error:
            self._world.fail(RuleBroken(2, f"{key} is no record: {error}"))

    def _check(self, kind: str, key: str) -> None:
        parts = key.split("/")
        match parts:
            case ["records", stage, digest, number, name] if not name.startswith("."):
                self._record(kind, key, (stage, digest), int(number), name)
            case ["payload", stage, digest, number, *below] if kind != "unlink":
                self._check_owner(key, (stage, digest), int(number))
                if below[0] == "checkpoints" and below[-1] == "manifest.json" and kind != "create":
                    self._checkpoint(key, (stage, digest), int(number))
            case ["payload", stage, digest, number, "output", *_]:
                self._deleted(key, (stage, digest), int(number))
            case ["done" | "void" | "retired", *_] if not parts[-1].startswith("."):
                self._once(kind, key)
                if parts[0] == "done":
                    self._product(key)
                if parts[0] == "void":
                    self._void(key)

    def _once(self, kind: str, key: str) -> None:
        data = self._read(key)
        if kind == "unlink" or data is None:
            raise RuleBroken(7, f"{key} was deleted")
        if self._created.setdefault(key, data) != data:
            raise RuleBroken(1, f"{key} was created a second time")

    def _record(self, kind: str, key: str, of: tuple[str, str], number: int, name: str) -> None:
        if name == "claim.json":
            self._once(kind, key)
            owners = self._owners.setdefault(of, {})
            if number > 1 and number - 1 not in owners:
                raise RuleBroken(3, f"{key} was created before attempt {number - 1}")
            claim = formats.decode(self._created[key], Claim)
            owners[number] = claim.owner.process.start
            self._beats[of, number] = (self._world.now_s, self._world.now_s)
            self._claimed_s[of, number] = self._world.now_s
            self._claims.setdefault(owners[number], []).append((of, number))
            if claim.supersedes is not None:
                self._check_dead(key, of, number - 1)
        elif name == "end.json":
            self._once(kind, key)
        elif name == "heartbeat.json":
            self._beats[of, number] = (self._beats[of, number][1], self._world.now_s)
        elif name == "start.json":
            self._start(key, of, number)
        if kind == "unlink":
            raise RuleBroken(7, f"{key} was deleted")
        self._check_owner(key, of, number)

    def _start(self, key: str, of: tuple[str, str], number: int) -> None:
        """Check that nothing is taken over from what a user discarded."""
        start = formats.decode(self._read(key) or b"", StartRecord)
        claim = self._read(f"records/{of[0]}/{of[1]}/{number}/claim.json")
        generation = formats.decode(claim or b"", Claim).generation
        made_s = self._made_s.get(f"done/{of[0]}/{of[1]}.{generation}.json", self._world.now_s)
        if made_s + STALE_S < self._claimed_s[of, number]:
            raise RuleBroken(3, f"{key} starts to make a product that was there before its claim")
        if start.parent is None:
            return
        own = generation  # if this one was discarded too, just now, its product will not count
        claim = self._read(f"records/{of[0]}/{of[1]}/{start.parent.attempt}/claim.json")
        generation = formats.decode(claim or b"", Claim).generation
        void = self._read(f"void/{of[0]}/{of[1]}.{generation}.json")
        if own != generation and void is not None and formats.decode(void, Void).kind == "discarded":
            raise RuleBroken(6, f"{key} goes on from attempt {start.parent.attempt}, which was discarded")

    def _check_dead(self, key: str, of: tuple[str, str], number: int) -> None:
        """Check that an attempt that was taken for dead is not one that runs undisturbed."""
        owner, (former_s, beat_s) = self._owners[of][number], self._beats[of, number]
        processes = {process.name: process for process in self._world.processes if process.is_alive}
        worker = processes.get(owner)
        if worker is None or self.claims_of(owner)[-1] != (of, number):
            return
        # Whoever takes over may have judged just before the last beats, of a worker that has just gone on.
        judged_s = min(former_s, self._world.now_s - JUDGE_S)
        is_disturbed = max(worker.stopped_until_s, worker.machine.cut_until_s) >= judged_s
        has_child = any(name.startswith(f"{owner}/") for name in processes)
        if has_child and not is_disturbed:
            ago_s = self._world.now_s - beat_s
            raise RuleBroken(4, f"{key} takes over from {owner}, which runs and wrote {ago_s:.1f} s ago")

    def claims_of(self, owner: str) -> list[tuple[tuple[str, str], int]]:
        """Return the attempts that a worker claimed, in order."""
        return self._claims.get(owner, [])

    def _check_owner(self, key: str, of: tuple[str, str], number: int) -> None:
        process = self._world.current
        if process is None:
            return
        owner = self._owners.get(of, {}).get(number)
        name, _, is_child = process.name.partition("/")
        if owner != name:
            raise RuleBroken(5, f"{process.name} wrote {key} of {owner}")
        if is_child and self._read(f"records/{of[0]}/{of[1]}/{number}/end.json") is not None:
            raise RuleBroken(5, f"{process.name} wrote {key} after the end of its attempt")

    def _product(self, key: str) -> None:
        """Check a product at the moment from which it counts: it is whole, durable, and its maker's."""
        done = formats.decode(self._created[key], Done)
        self.products[key] = done
        self._made_s[key] = self._world.now_s
        of = (done.stage, done.digest)
        self._check_owner(key, of, done.attempt)
        claim = self._read(f"records/{done.stage}/{done.digest}/{done.attempt}/claim.json")
        if claim is None or formats.decode(claim, Claim).generation != done.generation:
            raise RuleBroken(2, f"{key} is not of the generation of its attempt's claim")
        for file in done.files:
            path = f"payload/{done.stage}/{done.digest}/{done.attempt}/output/{file.path}"
            if not self._is_durable(path, file):
                raise RuleBroken(2, f"{path} is not durable when {key} is created")

    def _is_durable(self, path: str, file: File) -> bool:
        data = self._durable(path)
        return data is not None and hashlib.sha256(data).hexdigest() == file.sha256

    def _checkpoint(self, key: str, of: tuple[str, str], number: int) -> None:
        """Check a checkpoint at the moment from which it counts: it is durable, and its owner the newest."""
        manifest = formats.decode(self._read(key) or b"", CheckpointManifest)
        folder = key.rpartition("/")[0]
        process, later = self._world.current, self._claimed_s.get((of, number + 1))
        for file in manifest.files:
            path = f"{folder}/{file.path}"
            # A later attempt that has succeeded deletes what an owner that was cut off still uploads.
            is_deleted = later is not None and self._durable(path) is None
            if not is_deleted and not self._is_durable(path, file):
                raise RuleBroken(6, f"{path} is not durable when its manifest is there")
        if process is None or later is None:
            return
        # Its child looked for a later attempt before it began to save.
        is_disturbed = max(process.stopped_until_s, process.machine.cut_until_s) >= later
        if self._world.now_s - later > SAVE_S + process.machine.cache_s and not is_disturbed:
            raise RuleBroken(5, f"{key} was saved long after attempt {number + 1} was claimed")

    def _void(self, key: str) -> None:
        """Check that what is voided as damaged is damaged."""
        void, done = formats.decode(self._created[key], Void), self.products.get(f"done{key[4:]}")
        if void.kind != "damaged" or done is None:
            return
        folder = f"payload/{done.stage}/{done.digest}/{done.attempt}/output"
        retired = self._retired((done.stage, done.digest), done.generation)
        left = [file for file in done.files if file.path not in retired]
        if all(self._is_durable(f"{folder}/{file.path}", file) for file in left):
            raise RuleBroken(7, f"{key} voids a whole product: {void.reason}")

    def _deleted(self, key: str, of: tuple[str, str], number: int) -> None:
        """Check that a file of a product is deleted only if a record lists it as retired."""
        name = key.split("/output/", 1)[1]
        for done in self.products.values():
            if (done.stage, done.digest) != of or done.attempt != number:
                continue
            if name not in {file.path for file in done.files}:
                continue
            if name not in self._retired(of, done.generation):
                raise RuleBroken(7, f"{key} was deleted and no record says so")

    def _retired(self, of: tuple[str, str], generation: int) -> set[str]:
        """Return the files of a product that records list as retired."""
        found = set()
        for policy in RETIRING:
            data = self._read(f"retired/{of[0]}/{policy}/{of[1]}.{generation}.json")
            found |= set() if data is None else {file.path for file in formats.decode(data, Retired).files}
        return found

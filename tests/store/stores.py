"""Stores that lie, fail or are raced for: real folders, with trouble before or after an operation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from orchestrator.core.sweep import StageInstance
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import Listing, PosixStore
from orchestrator.store.opening import open_objects
from tests.store import builders

Trouble = Callable[[str, str, str], None]
"""Called with (when, operation, key); `when` is before or after. What it raises is the place's answer."""


class TroubledStore(PosixStore):
    """A folder, and something that happens before and after each operation."""

    def __init__(self, root: Path, trouble: Trouble) -> None:
        super().__init__(root)
        self._trouble = trouble

    def create(self, key: str, data: bytes) -> bool:
        self._trouble("before", "create", key)
        created = super().create(key, data)
        self._trouble("after", "create", key)
        return created

    def put(self, key: str, data: bytes) -> None:
        self._trouble("before", "put", key)
        super().put(key, data)

    def get(self, key: str) -> bytes | None:
        self._trouble("before", "get", key)
        return super().get(key)

    def list(self, prefix: str) -> Listing:
        self._trouble("before", "list", prefix)
        return super().list(prefix)

    def workspace(self, prefix: str) -> Path:
        self._trouble("before", "workspace", prefix)
        return super().workspace(prefix)

    def upload(self, prefix: str) -> None:
        self._trouble("before", "upload", prefix)
        super().upload(prefix)


def no_answer(*_: str) -> None:
    """The place did not answer."""
    raise OSError(5, "Input/output error")


def race(root: str, racer: str, num_claims: str) -> None:
    """Claims attempt 1 of each of many stages; prints whose claims were won."""
    ledger, won = Ledger(open_objects(root)), []
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(num_claims)):
        instance = StageInstance(stage="race", digest=f"{number:064x}", reads={})
        claim = builders.claim(owner=builders.owner(host=racer))
        if ledger.claim(instance, 1, claim):
            won.append((number, claim.nonce))
    print(json.dumps(won))


if __name__ == "__main__":
    race(*sys.argv[1:])

"""The heartbeats of an attempt: other workers see by them that it is alive, and how far it has come."""

from __future__ import annotations

import time

from orchestrator import provenance
from orchestrator.core.records import Heartbeat
from orchestrator.core.sweep import StageInstance
from orchestrator.execution.assignment import Message
from orchestrator.execution.publishing import complain
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger

MAX_HEARTBEAT_S = 10.0


class HeartbeatWriter:
    """The writer of one attempt's heartbeats.

    Args:
        ledger: the store.
        node: the stage instance.
        number: number of the attempt.
        lease_s: seconds without a heartbeat after which others may take the attempt for dead.

    Attributes:
        progress: the child's last message.
    """

    def __init__(self, ledger: Ledger, node: StageInstance, number: int, *, lease_s: float) -> None:
        self._ledger = ledger
        self._node = node
        self._number = number
        # Three heartbeats in a lease: a late one, or one that fails, does not cost the lease.
        self._interval_s = min(lease_s / 3, MAX_HEARTBEAT_S)
        self._counter = 0
        self._last_s = 0.0
        self.progress = Message(phase="starting")

    def receive(self, message: Message) -> None:
        """Take a message of the child into the next heartbeat.

        A changed phase or process is recorded at once, a step with the next regular heartbeat. Other workers
        on this machine need the process to prove that the child is gone.
        """
        was, self.progress = self.progress, message
        known = was.process, was.phase, was.step is None
        if known != (message.process, message.phase, message.step is None):
            self.write()

    def pulse(self) -> bool:
        """Record a heartbeat if one is due; return whether it was."""
        if time.monotonic() - self._last_s < self._interval_s:
            return False
        self.write()
        return True

    def write(self) -> None:
        """Record a heartbeat now. A failure is only logged: the next one is due soon."""
        self._counter += 1
        self._last_s = time.monotonic()
        beat = Heartbeat(
            counter=self._counter,
            phase=self.progress.phase,
            step=self.progress.step,
            num_steps=self.progress.num_steps,
            child=self.progress.process,
            at=provenance.now(),
        )
        try:
            self._ledger.put(self._node, self._number, layout.HEARTBEAT, beat)
        except OSError as error:
            complain(f"heartbeat of {self._node.name} attempt {self._number} failed: {error}")

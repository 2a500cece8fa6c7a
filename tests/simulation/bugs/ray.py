"""Mistakes in what Ray's driver does."""

from __future__ import annotations

from tests.simulation.bugs import Bug, Edit

DRIVER, LOST = "orchestrator/launchers/ray/driver.py", "orchestrator/launchers/ray/lost_workers.py"
LIVENESS = "orchestrator/execution/liveness.py"

RAY = (
    Bug(
        "no-grace-after-the-actor",
        "ray 4",
        "a worker counts as gone as soon as its actor is lost, though it saves a checkpoint",
        (
            Edit(
                LOST,
                "        self._doubts.append(_Doubt(slot, node, cause, why, time.monotonic() + self._grace_s))\n",
                "        self.add(slot, cause, why)\n",
            ),
        ),
        kind="ray",
    ),
    Bug(
        "former-workers-are-gone-at-once",
        "ray 4",
        "a driver that was started again takes the workers of its earlier starts for gone",
        (
            Edit(
                LOST,
                "time.monotonic() + grace_s\n        before",
                "time.monotonic()\n        before",
            ),
        ),
        kind="ray",
    ),
    Bug(
        "same-number-is-the-same-worker",
        "ray 4",
        "a worker takes the one of the same number of the driver's earlier start for itself (a fault of ours until 2026-11)",
        (
            Edit(
                LIVENESS,
                "            0,\n        )\n        return bool(me.job) and not me.slot and same",
                "            me.slot,\n        )\n        return bool(me.job) and same",
            ),
        ),
        kind="ray",
    ),
    Bug(
        "losses-forgotten-with-the-driver",
        "ray 4",
        "a driver that was started again forgets which workers it had found lost",
        (
            Edit(
                LOST,
                "        self.known: list[LostSlot] = list(before.lost) if before else []\n",
                "        self.known: list[LostSlot] = list(before.lost) if before and not before else []\n",
            ),
        ),
        kind="ray",
    ),
    Bug(
        "orphaned-driver-goes-on",
        "ray 1",
        "a driver whose job is over for the cluster goes on to start workers",
        (
            Edit(DRIVER, "            self._stop.check_parent()\n", ""),
            Edit(
                DRIVER,
                '        if self._records.submission_end() is not None:\n            self._log_line("this submission was given up meanwhile: its',
                '        if self._records is None:\n            self._log_line("this submission was given up meanwhile: its',
            ),
        ),
        kind="ray",
    ),
    Bug(
        "ends-while-others-work",
        "ray 2",
        "a driver ends well when it has no worker and finds nothing to claim, though a stage runs elsewhere",
        (
            Edit(
                DRIVER,
                "        return not work.waiting and not self._pool.running and not self._pool.pending\n",
                "        return not work.num_claimable and not self._pool.running and not self._pool.pending\n",
            ),
        ),
        kind="ray",
    ),
    Bug(
        "a-worker-for-each-scan",
        "ray 1",
        "workers that wait for resources do not count, so that each scan requests more",
        (
            Edit(
                DRIVER,
                "        most = min(needed, self._settings.max_pending) - len(pending)\n",
                "        most = min(needed, self._settings.max_pending)\n",
            ),
        ),
        kind="ray",
    ),
)

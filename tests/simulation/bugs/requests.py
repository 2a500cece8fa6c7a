"""Mistakes in what requests do, and in what readers are shown."""

from __future__ import annotations

from tests.simulation.bugs import Bug, Edit

PLAN, LEDGER, DROPPING = (
    "orchestrator/core/plan.py",
    "orchestrator/store/ledger.py",
    "orchestrator/api/dropping.py",
)
RUN = "orchestrator/api/run.py"
SUBMISSION, DRIVER = "orchestrator/api/submission.py", "orchestrator/launchers/ray/driver.py"
CAUSES = "orchestrator/core/evidence.py"
LOOP, EVIDENCE = "orchestrator/execution/loop.py", "orchestrator/store/evidence.py"

REQUESTS = (
    Bug(
        "cancel-seen-at-the-start-only",
        "requests 2",
        "a worker reads the requests when it starts, and not again before it claims",
        (
            Edit(
                LOOP,
                "            summary = self._requests.read(at_most_s=0.0)\n            if (hold",
                "            summary = self._requests.read(at_most_s=1e9)\n            if (hold",
            ),
        ),
        kind="requests",
    ),
    Bug(
        "cancelled-and-goes-on",
        "requests 2",
        "an attempt of a cancelled cell goes on to its end",
        (Edit(LOOP, '        return "" if is_wanted else "cancelled"\n', '        return ""\n'),),
        kind="requests",
    ),
    Bug(
        "discard-revokes-a-cancel",
        "requests 2",
        "a cell that was cancelled is claimed again after a discard",
        (
            Edit(
                PLAN,
                '            case "discard":\n',
                '            case "discard":\n                cancelled.difference_update(named)\n',
            ),
        ),
        kind="requests",
    ),
    Bug(
        "requests-of-one-number",
        "requests 1",
        "a request replaces the one that another user made at the same moment",
        (
            Edit(
                LEDGER,
                "            if self.create(layout.request(sweep, number), numbered, numbered.nonce):\n",
                "            self.objects.put(layout.request(sweep, number), self.encode(numbered))\n"
                "            if number:\n",
            ),
        ),
        kind="requests",
    ),
    Bug(
        "launch-retries-what-would-recur",
        "requests 3",
        "a launch gives failures of the stage's own code a fresh budget, as only a rerun may",
        (
            Edit(
                PLAN,
                "                _raise(after_chance, request.after)\n",
                "                _raise(after, request.after)\n",
            ),
        ),
        kind="requests",
    ),
    Bug(
        "discard-of-a-product-alone",
        "requests 4",
        "a discard leaves what was made from the product that it voids",
        (
            Edit(
                DROPPING,
                "                    if digest in affected or any(taken.digest in affected for taken in instance.inputs):\n",
                "                    if digest in affected:\n",
            ),
        ),
        kind="requests",
    ),
    Bug(
        "discard-of-what-is-not-there-yet",
        "requests 4",
        "a second discard of what attempts left voids the generation that nobody makes yet (a fault of ours until 2026-11)",
        (
            Edit(
                DROPPING,
                "    begun = any(claim is None or claim.generation == evidence.generation for claim in claims)\n",
                "    begun = bool(claims)\n",
            ),
        ),
        kind="requests",
    ),
    Bug(
        "discard-counts-as-a-failure",
        "requests 5",
        "an attempt whose product a user discarded spends a retry (a fault of ours until 2026-11)",
        (Edit(CAUSES, "if attempt.number not in evidence.discarded:", "if True:"),),
        kind="requests",
    ),
    Bug(
        "half-a-discard",
        "requests 4",
        "a product that an attempt makes while its stage is discarded counts",
        (
            Edit(
                DROPPING,
                "    left = begun and (running or instance.digest in named)\n",
                "    left = begun and not running and instance.digest in named\n",
            ),
        ),
        kind="requests",
    ),
    Bug(
        "retired-files-count-as-damage",
        "requests 5",
        "a reader that finds files missing does not read again whether they were retired meanwhile",
        (
            Edit(
                EVIDENCE,
                "        retired = ledger.retired(instance, done.generation)\n        problem",
                "        problem",
            ),
        ),
        kind="requests",
    ),
    Bug(
        "cancel-closes-what-it-did-not-look-at",
        "jobs 2",
        "a cancel records that the jobs it cancelled are over, though one may have started just before",
        (
            Edit(
                RUN,
                "        if each.over is not None or (is_complete and index not in listed)\n",
                "        if each.over is not None or is_complete\n",
            ),
        ),
        kind="jobs+requests",
    ),
    Bug(
        "jobs-for-cancelled-cells",
        "requests 2",
        "a pass over jobs submits a cancelled cell, a stage of which still runs for another one",
        (Edit(SUBMISSION, "cell.id in named - summary.cancelled", "cell.id in named"),),
        kind="jobs+requests",
    ),
    Bug(
        "driver-overlooks-a-cancel",
        "requests 2",
        "a driver starts workers for cells that were cancelled",
        (
            Edit(
                DRIVER,
                "        claimable, waiting = self._scanner.count(reader, summary)\n",
                "        summary = summary._replace(cancelled=frozenset())\n"
                "        claimable, waiting = self._scanner.count(reader, summary)\n",
            ),
        ),
        kind="ray+requests",
    ),
    Bug(
        "driver-counts-failures-from-before-a-rerun",
        "requests 3",
        "a driver judges stages by all their failures, and leaves what was launched again undone",
        (
            Edit(
                DRIVER,
                "summary.budget(digest, self._policy.retries)",
                "RequestSummary(frozenset(), {}, {}).budget(digest, self._policy.retries)",
            ),
        ),
        kind="ray+requests",
    ),
)

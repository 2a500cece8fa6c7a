"""Mistakes in what workers do to a shared folder."""

from __future__ import annotations

from tests.simulation.bugs import Bug, Edit

LEDGER, ACCESS = "orchestrator/store/ledger.py", "orchestrator/store/access.py"
OBJECTS, EVIDENCE = "orchestrator/store/objects.py", "orchestrator/store/evidence.py"
LIVENESS, LOOP = "orchestrator/execution/liveness.py", "orchestrator/execution/loop.py"
SAVING, CHILD = "orchestrator/saving.py", "orchestrator/execution/child.py"
INHERITANCE, RETENTION = "orchestrator/execution/inheritance.py", "orchestrator/store/retention.py"

FOLDER = (
    Bug(
        "claim-stolen-by-a-reader",
        "4",
        "whoever sees an attempt for the first time takes its owner for dead",
        (
            Edit(
                LIVENESS,
                "            self._seen[key] = _Sighting(counter, now_s, 1, now_s)\n            return vital\n",
                "            self._seen[key] = _Sighting(counter, now_s, 1, now_s)\n"
                '            return OwnerReport(Liveness.GONE, "it is not mine")\n',
            ),
        ),
        peer=True,
    ),
    Bug(
        "lease-by-the-readers-clock",
        "4",
        "a lease ends when the time in the heartbeat is old by the reader's own clock",
        (
            Edit(
                LIVENESS,
                "        seen = self._seen.get(key)\n        # The counter alone",
                "        seen = self._seen.get(key)\n"
                "        at = attempt.heartbeat.at if attempt.heartbeat else ''\n"
                "        if at and attempt.claim and provenance.age_s(at) > attempt.claim.lease_s:\n"
                '            return OwnerReport(Liveness.GONE, "its heartbeat is old")\n'
                "        # The counter alone",
            ),
        ),
        peer=True,
    ),
    Bug(
        "lost-reply-taken-for-refusal",
        "1",
        "a create that reports that the key exists counts as lost, and is not read back",
        (
            Edit(
                ACCESS,
                "                if self.objects.create(key, data):\n                    return True\n",
                "                return self.objects.create(key, data)\n",
            ),
        ),
        peer=True,
    ),
    Bug(
        "two-writers-of-one-number",
        "1",
        "a claim replaces whatever has the number",
        (
            Edit(
                LEDGER,
                "        return self.create(layout.attempt(instance, number, layout.CLAIM), claim, claim.nonce)\n",
                "        self.objects.put(layout.attempt(instance, number, layout.CLAIM), self.encode(claim))\n"
                "        return True\n",
            ),
        ),
        peer=True,
    ),
    Bug(
        "journal-torn-on-nfs",
        "2",
        "a record is written under its own name, where others find it before it is whole",
        (
            Edit(
                OBJECTS,
                "        temporary = self._write_temporary(path.parent, data)\n        try:\n"
                "            os.link(temporary, path)\n",
                "        self._make_folders(path.parent)\n        temporary = path.parent / '.none'\n        try:\n"
                "            with path.open('xb') as stream:\n                stream.write(data)\n",
            ),
        ),
        peer=True,
    ),
    Bug(
        "resume-from-a-torn-checkpoint",
        "6",
        "a checkpoint's manifest is written before its files are durable, and nobody verifies them",
        (
            Edit(SAVING, "    contain(folder)\n    fsync_tree(folder)\n", "    contain(folder)\n"),
            Edit(
                INHERITANCE, "            if damage(target, [file]) is not None:\n                break\n", ""
            ),
        ),
        peer=True,
    ),
    Bug(
        "preemption-counts-as-failure",
        "3",
        "an attempt that was stopped in order spends a retry",
        (
            Edit(
                "orchestrator/execution/conclude.py",
                '        lambda facts: facts.child.outcome == "released",\n'
                '        lambda facts: Conclusion("released", why=facts.child.why),\n        Fact.STOP_CONFIRMED,\n',
                '        lambda facts: facts.child.outcome == "released",\n'
                '        lambda facts: _failed(Cause.PREEMPTED, "it was stopped"),\n        Fact.STOP_CONFIRMED,\n',
            ),
        ),
        peer=True,
    ),
    Bug(
        "product-before-it-is-durable",
        "2",
        "`done` is recorded while the files of the product are not on disk",
        (
            Edit(CHILD, "        fsync_tree(output)\n        return scan", "        return scan"),
            Edit(OBJECTS, "        fsync_tree(self.path(prefix))\n", ""),
        ),
    ),
    Bug(
        "deletes-before-it-says-so",
        "7",
        "files of a product are deleted before a record says that they go",
        (
            Edit(
                RETENTION,
                "        if decided is not None:\n            # Another",
                "        if decided is not None:\n"
                "            _delete(ledger, source, decided, keep_checkpoints=False)\n            # Another",
            ),
        ),
    ),
)

"""Mistakes in what workers do to a store."""

from __future__ import annotations

from tests.simulation.bugs import Bug, Edit

LEDGER, ACCESS = "orchestrator/store/ledger.py", "orchestrator/store/access.py"
OBJECTS, EVIDENCE = "orchestrator/store/objects.py", "orchestrator/store/evidence.py"
LIVENESS, LOOP = "orchestrator/execution/liveness.py", "orchestrator/execution/loop.py"
SAVING, CHILD = "orchestrator/saving.py", "orchestrator/execution/child.py"
INHERITANCE, RETENTION = "orchestrator/execution/inheritance.py", "orchestrator/store/retention.py"

WORKERS = (
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
    Bug(
        "void-before-others-records-show",
        "7",
        "a product is voided as damaged while a network file system may still hide that it was retired (a fault of ours until 2026-11)",
        (
            Edit(
                INHERITANCE,
                "        time.sleep(max(RECHECK_S, self._ledger.objects.unseen_s))\n",
                "        time.sleep(RECHECK_S)\n",
            ),
        ),
    ),
    Bug(
        "no-heartbeat-while-it-runs",
        "4",
        "an attempt writes heartbeats when its phase changes, and not while it computes",
        (
            Edit(
                LIVENESS,
                "        if time.monotonic() - self._last_s < self._interval_s:\n",
                "        if time.monotonic() - self._last_s < 100 * self._interval_s:\n",
            ),
        ),
    ),
    Bug(
        "child-looks-for-no-successor",
        "5",
        "neither a child before a checkpoint nor its worker at a heartbeat looks for a later attempt",
        (
            Edit(
                CHILD,
                "        if ledger.is_claimed(of, order.attempt + 1) or ledger.is_done_or_void(of, order.generation):\n",
                "        if ledger.is_done_or_void(of, order.generation):\n",
            ),
            Edit(
                LIVENESS,
                "            return self._ledger.is_claimed(self._instance, self._number + 1) or self.is_pointless()\n",
                "            return self.is_pointless()\n",
            ),
        ),
    ),
    Bug(
        "checkpoint-counts-before-it-is-durable",
        "6",
        "a checkpoint's manifest is written before its files are on disk",
        (Edit(SAVING, "    contain(folder)\n    fsync_tree(folder)\n", "    contain(folder)\n"),),
    ),
    Bug(
        "retires-before-all-have-read",
        "7",
        "files of a product go although a stage that takes it is not done",
        (
            Edit(
                RETENTION,
                "        if done is None:\n            return None\n",
                "        if done is None:\n            continue\n",
            ),
        ),
    ),
    Bug(
        "deletes-the-product-with-the-leftovers",
        "7",
        "what attempts left beside a product is deleted together with the product itself",
        (
            Edit(
                RETENTION,
                "        output = () if attempt.number in named else (layout.OUTPUT,)\n",
                "        output = (layout.OUTPUT,)\n",
            ),
        ),
    ),
    Bug(
        "any-nonce-is-mine",
        "1",
        "a record that exists counts as created by whoever finds it",
        (
            Edit(
                ACCESS,
                "                return read_header(found).nonce == nonce\n",
                "                return True\n",
            ),
        ),
    ),
    Bug(
        "done-before-the-upload",
        "2",
        "over a bucket, `done` is recorded before the product is uploaded",
        (
            Edit(
                "orchestrator/execution/attempt.py",
                "            self._publisher.output(outcome.files, self._heartbeats.keepalive)\n",
                "            pass\n",
            ),
        ),
    ),
    Bug(
        "manifest-uploaded-with-the-files",
        "6",
        "over a bucket, a checkpoint's manifest is uploaded together with its files",
        (
            Edit(
                "orchestrator/store/publishing.py",
                "            if path.is_file() and name != MANIFEST and there.get(name) != path.stat().st_size:\n",
                "            if path.is_file() and there.get(name) != path.stat().st_size:\n",
            ),
        ),
    ),
    Bug(
        "create-without-a-condition",
        "1",
        "over a bucket, a create is a put",
        (
            Edit(
                "orchestrator/store/bucket.py",
                '        return bool(self.connection.call("create", key, data=data))\n',
                '        self.connection.call("put", key, data=data)\n        return True\n',
            ),
        ),
    ),
    Bug(
        "claims-go-with-the-leftovers",
        "7",
        "what is deleted after an attempt includes its claim, so that its number is free again",
        (
            Edit(
                RETENTION,
                "        key = layout.payload(instance, attempt.number)\n",
                "        ledger.objects.delete(layout.attempt(instance, attempt.number, layout.CLAIM))\n"
                "        key = layout.payload(instance, attempt.number)\n",
            ),
        ),
    ),
    Bug(
        "end-before-the-child-is-gone",
        "5",
        "a worker records the end of an attempt without ending its child",
        (
            Edit(
                "orchestrator/execution/attempt.py",
                "            if not child.end():\n",
                "            if child is None:\n",
            ),
        ),
    ),
    Bug(
        "number-from-the-end-of-the-list",
        "3",
        "the next attempt gets the number of the last one",
        (
            Edit(
                LOOP,
                "        number = (attempts[-1].number if attempts else 0) + 1\n",
                "        number = max(1, attempts[-1].number if attempts else 0)\n",
            ),
        ),
    ),
)

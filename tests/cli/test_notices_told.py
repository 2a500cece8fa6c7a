"""A launch with a failing cell, from its start to its end: each message arrives once, by every channel."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.test_held_back import CODE, SWEEP
from tests.trackers.receiver import PATH, receiving


def test_a_launch_tells_of_a_failure_the_breaker_and_the_end(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sweep.folder / "box.yaml").write_text(
        SWEEP + 'overrides: {notify.command: "cat >> told; echo >> told"}\n'
    )
    (sweep.folder / "box.py").write_text(CODE.replace("has no answer", "has <no> answer"))
    with receiving() as receiver:
        monkeypatch.setenv("HOOK", receiver.url)
        words = ("launch", "box.yaml", "launcher.workers=1", "notify.webhook_env=HOOK")
        said = sweep(*words, code=1)
        assert receiver.kinds == ["failure", "breaker", "done"]
        failure, breaker, done = receiver.got
        assert failure["text"].startswith("box@1: first failure by code: train of math.model0-")
        assert (
            "(and 2 more alike): ValueError: row 0 of /data/0.jsonl has &lt;no&gt; answer" in failure["text"]
        )
        assert "3 cells held back: 3 cells with task=math failed alike" in breaker["text"]
        assert done["text"] == "box@1 has ended: 12 cells: 6 done, 3 failed, 3 blocked"
        assert done["counts"] == {"done": 6, "failed": 3, "blocked": 3} and done["store"] == str(sweep.store)
        lines = [json.loads(line) for line in (sweep.folder / "told").read_text().splitlines()]
        assert [line["id"] for line in lines] == [body["id"] for body in receiver.got]
        sweep(*words, code=1)
        assert len(receiver.got) == 3 and sweep.json("status", "box")["undelivered"] == []
        kept = "".join(path.read_text() for path in sweep.store.rglob("*") if path.is_file())
        assert "notice done@1-" in said and not any(part in said + kept for part in PATH.split("/")[2:])

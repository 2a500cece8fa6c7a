"""Notices over a bucket: senders on two nodes send each one once."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.api.notices import send_due
from orchestrator.api.state import open_view
from tests.bucket.buckets import Bucket, BucketSweep
from tests.trackers.receiver import receiving

SWEEP = """
config: {seed: 0, count: {num_steps: 1, checkpoint_every: 1, step_s: 0, fail: null}}
axes: {seed: [0]}
stages: [count]
"""


@pytest.mark.long
def test_senders_of_two_nodes_send_each_notice_once(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "s.yaml").write_text(SWEEP)
    with receiving() as receiver:
        monkeypatch.setenv("HOOK", receiver.url)
        first, second = (BucketSweep(folder, bucket, node=node) for node in ("first", "second"))
        receiver.answers = ["cut"]
        first("launch", "s.yaml", "notify.webhook_env=HOOK")
        assert receiver.kinds == ["done"]
        second("launch", "s.yaml", "notify.webhook_env=HOOK")
        assert len(receiver.got) == 1
        (left,) = second.json("status", "s")["undelivered"]
        assert left["why"].startswith("unclear") and left["tries"] == 1
        (tried,) = first.store.glob("sweeps/s/notices/done@1-*/webhook.1.json")
        name = tried.with_suffix(".outcome.json").relative_to(first.bucket.folder / "mirror").as_posix()
        bucket.open("third").put(name, b'{"outcome": "refused", "pause_s": 0.0}')
        for number in (1, 2):  # the second one finds what the first one left
            said = send_due(open_view("s", bucket.url), limit_s=9.0, is_last=True)
            assert len(said) == (1 if number == 1 else 0) and len(receiver.got) == 2
    assert first.json("status", "s")["undelivered"] == []

"""Failures that look alike have one fingerprint, and failures that do not have different ones."""

from __future__ import annotations

import pytest

from orchestrator.core.failure import Cause, fingerprint, own_frames, without_particulars
from orchestrator.core.records import End


def _end(message: str, *, exception: str = "ValueError", cause: Cause = Cause.CODE, log: str = "") -> End:
    return End(nonce="n", outcome="failed", cause=cause, exception=exception, message=message, log_tail=log)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("row 17 of /data/en.jsonl has no answer", "row 93 of /data/de.jsonl has no answer"),
        ("loss is nan at step 12", "loss is nan at step 4,096"),
        (
            "[Errno 2] No such file or directory: '/a/b c/x.json'",
            "[Errno 2] No such file or directory: '/q/y'",
        ),
        (
            "CUDA out of memory. Tried to allocate 2.50 GiB",
            "CUDA out of memory. Tried to allocate 512.00 MiB",
        ),
        ("object at 0x7f3a2b", "object at 0x55de9c"),
        ("digest 0123abcd4567 is damaged", "digest deadbeef1234 is damaged"),
        ("lr=1e-05 is too low", "lr=3.5e-6 is too low"),
        (r"cannot open C:\data\a.txt", r"cannot open C:\other\b.txt"),
    ],
)
def test_numbers_paths_and_ids_do_not_count(first: str, second: str) -> None:
    assert fingerprint("train", _end(first)) == fingerprint("train", _end(second))
    assert without_particulars(first) != first


@pytest.mark.parametrize(
    "other",
    [
        fingerprint("evaluate", _end("no answer")),
        fingerprint("train", _end("no question")),
        fingerprint("train", _end("no answer", exception="KeyError")),
        fingerprint("train", _end("no answer", cause=Cause.DATA)),
        fingerprint(
            "train", _end("no answer", log='Traceback (most recent call last):\n  File "a.py", line 3, in f')
        ),
    ],
)
def test_stage_words_exception_cause_and_place_count(other) -> None:  # type: ignore[no-untyped-def]
    assert fingerprint("train", _end("no answer")).digest != other.digest


LOG = """loading
Traceback (most recent call last):
  File "/home/me/exp/train.py", line 10, in main
    step(row)
  File "/home/me/exp/steps.py", line 22, in step
    return torch.cat(rows)
  File "/venv/lib/python3.11/site-packages/torch/functional.py", line 99, in cat
    raise RuntimeError("sizes")
RuntimeError: sizes
"""


def test_the_frames_are_the_innermost_of_the_users_code() -> None:
    assert own_frames(LOG) == ("train.py:main", "steps.py:step")
    assert own_frames(LOG.replace("line 22", "line 40")) == own_frames(LOG)
    assert own_frames("no traceback") == ()


def test_of_chained_exceptions_the_last_traceback_counts() -> None:
    again = LOG.replace("in step", "in first") + "\nDuring handling ...\n" + LOG
    assert own_frames(again) == own_frames(LOG)


def test_of_a_failure_within_packages_alone_their_frames_count() -> None:
    only = 'Traceback (most recent call last):\n  File "/v/site-packages/torch/x.py", line 1, in load\n'
    assert own_frames(only) == ("x.py:load",)

"""The endpoint's errors, limits and secrets, on a real server that errs."""

from __future__ import annotations

import email.utils
import itertools
import json
import logging
import time
from pathlib import Path

import pytest

from orchestrator.errors import StageFailure, StopRequested, UserError, retry_after_s
from orchestrator.stage import StopSignal
from orchestrator.translation import stages
from orchestrator.translation.endpoint import Access, _error_text, _reply_of, access, check_access
from orchestrator.translation.run import REPLIES, Answered, read_lines
from orchestrator.translation.verdicts import ModelReply
from tests.translation.rows import config_of, run, write_source
from tests.translation.server import KEY, MODEL, Server

WORDS = ("dizzy", "weak", "tired", "cold")
QUICK = {"timeout_s": 60.0, "max_tries": 2, "max_wait_s": 0.1}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source", WORDS, ())


def answered(output: Path) -> list[Answered]:
    return read_lines(output / REPLIES, Answered)


@pytest.mark.parametrize("fault", ["error", "rate limit", "hang"])
def test_an_error_that_passes_costs_a_try_and_no_row(
    fault: str, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server({"weak": fault}, once=True)
    with server.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        # Other requests may also take too long, where this process is not scheduled.
        waits = {**QUICK, "max_tries": 3} if fault != "hang" else {**QUICK, "max_tries": 99, "timeout_s": 0.5}
        config = config_of(source, tmp_path / "cache", endpoint=waits)
        output, (row,) = run(stages.TRANSLATE, config, tmp_path / "a", language="es", shard=0)
    assert row["num_answered"] == row["num_requests"] == len(WORDS)
    assert all(not one.faults for one in answered(output))
    assert server.seen.total() == len(WORDS) + 1 or (fault == "hang" and max(server.seen.values()) > 1)


def test_a_refused_reply_is_requested_again_with_the_reason(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server({"weak": "repeated placeholder"}, once=True)
    with server.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        config = config_of(source, tmp_path / "cache")
        output, (row,) = run(stages.TRANSLATE, config, tmp_path / "a", language="es", shard=0)
    assert row["num_answered"] == len(WORDS) and row["num_requests"] == len(WORDS) + 1
    assert [one.refused for one in answered(output) if one.refused] == [(("placeholder-repeated",),)]
    (again,) = (messages for messages in server.messages if len(messages) > 2)
    assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
    assert "times: write it once" in again[-1]["content"]


def test_retry_after_holds_back_every_request(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server({"dizzy": "rate limit"}, once=True)
    with server.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        config = config_of(source, tmp_path / "cache", endpoint={"max_concurrent": 1})
        run(stages.TRANSLATE, config, tmp_path / "a", language="es", shard=0)
    begun = sorted(server.times)
    assert server.statuses == {429: 1, 200: 4} and max(b - a for a, b in itertools.pairwise(begun)) >= 0.3


def test_requests_at_a_time_and_a_minute_are_bounded(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(delay_s=0.05)
    with server.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        limits = {"max_concurrent": 2, "requests_per_minute": 600}
        config = config_of(source, tmp_path / "cache", endpoint=limits)
        begun_s = time.monotonic()
        run(stages.TRANSLATE, config, tmp_path / "a", language="es", shard=0)
    assert server.most_at_once <= 2
    assert time.monotonic() - begun_s >= 0.1 * (len(WORDS) - 1)


def test_rows_without_a_reply_fail_the_stage_unless_they_are_few(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server({"weak": "error"})
    with server.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        config = config_of(source, tmp_path / "cache", endpoint=QUICK)
        with pytest.raises(StageFailure, match="1 of 4 rows stayed without a reply") as failure:
            run(stages.TRANSLATE, config, tmp_path / "a", language="es", shard=0)
        assert failure.value.cause == "communication"
        config = config_of(source, tmp_path / "cache", endpoint=QUICK, max_unanswered=0.25)
        output, (row,) = run(stages.TRANSLATE, config, tmp_path / "b", language="es", shard=0)
    assert (row["num_answered"], row["num_requests"], row["num_cached"]) == (3, 0, 3)
    assert [fault.kind for one in answered(output) for fault in one.faults] == ["unanswered"]


def test_a_filter_costs_its_row_and_a_request_that_is_always_refused_fails(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server({"weak": "filter"})
    with server.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        config = config_of(source, tmp_path / "cache")
        output, (row,) = run(stages.TRANSLATE, config, tmp_path / "a", language="es", shard=0)
        assert row["num_answered"] == len(WORDS) - 1 and server.statuses[400] == 1
        assert [f.kind for one in answered(output) for f in one.faults] == ["refused-request"]
        alone = config_of(write_source(tmp_path / "alone", ["weak"], ()), tmp_path / "other")
        with pytest.raises(StageFailure, match=r"refused 1 of 1 rows: status 400: content policy") as failure:
            run(stages.TRANSLATE, alone, tmp_path / "b", language="es", shard=0)
    assert failure.value.cause == "config" and KEY not in str(failure.value)


def test_an_endpoint_that_is_down_is_given_up_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path / "many", [f"ill{'i' * n}" for n in range(40)], ())
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    config = config_of(source, tmp_path / "cache", endpoint={**QUICK, "max_concurrent": 4})
    # Of 40 rows that were all tried, the message would be that they stayed without a reply.
    with pytest.raises(StageFailure, match=r"does not reply any more: ConnectError"):
        run(stages.TRANSLATE, config, tmp_path / "a", language="es", shard=0)


@pytest.mark.parametrize("how", ["key", "model"])
def test_what_no_try_can_cure_fails_at_once_and_shows_no_key(
    how: str, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "sk-proj-wrongW1r2o3n4g5K6e7y8"
    server = Server()
    with server.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        model = MODEL
        if how == "key":
            monkeypatch.setenv("OPENAI_API_KEY", wrong)
        else:
            model = "tables-9"
        config = config_of(source, tmp_path / "cache", model={"name": model})
        with pytest.raises(StageFailure) as failure:
            run(stages.TRANSLATE, config, tmp_path / "a", language="es", shard=0)
    assert failure.value.cause == "config"
    told = f"{failure.value} {caplog.text}"
    assert not any(secret in told for secret in (KEY, wrong))
    assert server.statuses.total() <= len(WORDS)


def test_a_stop_ends_the_requests_and_keeps_the_replies(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, server = StopSignal(), Server({"cold": "hang"})
    with server.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        stop.ask("the test")
        config = config_of(source, tmp_path / "cache", endpoint={"max_concurrent": 1})
        with pytest.raises(StopRequested):
            run(stages.TRANSLATE, config, tmp_path / "a", stop=stop, language="es", shard=0)
    assert server.seen.total() <= 1


@pytest.mark.parametrize(
    ("url", "key", "what"),
    [
        ("", "key", "OPENAI_BASE_URL is not set"),
        ("http://host/v1", " ", "OPENAI_API_KEY is not set"),
        ("host/v1", "key", "no address"),
        ("ftp://host", "key", "no address"),
    ],
)
def test_address_and_key_are_needed(url: str, key: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match=what):
        access("OPENAI_BASE_URL", "OPENAI_API_KEY")


def test_an_endpoint_is_tried_before_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server().running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        assert check_access("OPENAI_BASE_URL", "OPENAI_API_KEY", MODEL) == []
        assert (
            "does not list the model 'other'" in check_access("OPENAI_BASE_URL", "OPENAI_API_KEY", "other")[0]
        )
    with pytest.raises(UserError, match="does not answer: ConnectError"):
        check_access("OPENAI_BASE_URL", "OPENAI_API_KEY", MODEL)


@pytest.mark.parametrize(
    "models", [[], {}, {"data": None}, {"data": [3]}, {"data": {}}, "none", None, b"<html>"]
)
def test_an_endpoint_without_a_list_of_models_is_no_mistake(
    models: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    server.models = models
    with server.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        assert check_access("OPENAI_BASE_URL", "OPENAI_API_KEY", MODEL) == []


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"error": {"message": "no model x"}}', "no model x"),
        (b"<html>404 Not Found</html>", "<html>404 Not Found</html>"),
        (b'{"error": "no"}', '{"error": "no"}'),
        (b'{"detail": "no"}', '{"detail": "no"}'),
        (b"[]", "[]"),
        (b"null", "null"),
        (b"\xff no", "\ufffd no"),
        (b"", ""),
        (b"x" * 1000, "x" * 200),
    ],
)
def test_what_an_endpoint_gives_as_the_reason_is_shown_in_whatever_form_it_comes(
    data: bytes, text: str
) -> None:
    assert _error_text(data) == text


REPLY = {"choices": [{"message": {"content": "hola"}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("tree", "reply"),
    [
        (REPLY, ModelReply(text="hola")),
        (
            {**REPLY, "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}},
            ModelReply(text="hola", prompt_tokens=7, completion_tokens=3),
        ),
        ({**REPLY, "usage": None}, ModelReply(text="hola")),
        ({**REPLY, "usage": {"prompt_tokens": None}}, ModelReply(text="hola")),
        (
            {"choices": [{"message": {"content": "ho"}, "finish_reason": "length"}]},
            ModelReply(text="ho", finish="length"),
        ),
        ({"choices": [{"message": {"content": None}, "finish_reason": None}]}, ModelReply(text="")),
        ({"choices": [{"message": {"content": "\ud800"}}]}, ModelReply(text="?")),
        ({"choices": []}, None),
        ({"choices": None}, None),
        ({"choices": [{}]}, None),
        ({"choices": ["hola"]}, None),
        ({**REPLY, "usage": 3}, None),
        ({**REPLY, "usage": {"prompt_tokens": "many"}}, None),
        ([REPLY], None),
        ("hola", None),
    ],
)
def test_a_reply_is_its_text_why_it_ends_and_its_tokens_or_none(
    tree: object, reply: ModelReply | None
) -> None:
    assert _reply_of(json.dumps(tree).encode()) == reply
    assert _reply_of(json.dumps(tree).encode()[:-1]) is None


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after_s("3") == 3.0 and retry_after_s("0.5") == 0.5
    assert retry_after_s("-4") == 0.0 and retry_after_s("") is None and retry_after_s("soon") is None
    soon = retry_after_s(email.utils.formatdate(time.time() + 1000, usegmt=True))
    assert soon is not None and 900 < soon <= 1000


def test_an_access_shows_neither_address_nor_key() -> None:
    found = Access("https://secret.example/v1", KEY)
    text = f"{found!r} {found.hide(f'no route to secret.example with {KEY}')}"
    assert "secret" not in text and KEY not in text

"""Replies from an OpenAI-compatible endpoint: bounded concurrency, rate limits, retries and time limits.

The address and the key come from the environment when the stage runs. They appear in no message, file or
exception of ours: errors name the status and what the endpoint wrote, without either.

Errors of the network, 408, 409, 425, 429 and 5xx are tried again after a pause that doubles, with jitter. A
``Retry-After`` is honoured for all requests of the worker, since it concerns the key and not one request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import httpx

from orchestrator.errors import StageFailure, UserError, check_proxies, one_line, retry_after_s
from orchestrator.translation.rows import Conversation, Messages, RowProgress
from orchestrator.translation.verdicts import ModelReply

logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs the address of each request

AGAIN = frozenset({408, 409, 425, 429})
"""Statuses below 500 that may pass by themselves."""
FIRST_PAUSE_S = 0.5
"""The first pause before a try, in seconds. Each further pause is twice as long."""
LIMITED_TRIES = 5
"""Tries that meet a rate limit, 429, for each try that may meet an error. A limit is no sign of a mistake."""
MAX_BODY_BYTES = 1 << 23
"""A longer reply is an error."""
MIN_GIVEN_UP = 4
"""Rows that may stay without a reply one after the other before the endpoint counts as down."""
UNANSWERED = "unanswered"
"""The kind of fault of a row without a reply."""
POLL_S = 0.2
"""Seconds between two looks whether a stop was requested."""


class Access(NamedTuple):
    """Where an endpoint is, and the key for it. `repr` shows neither."""

    url: str
    key: str

    def __repr__(self) -> str:
        return "Access(***)"

    def hide(self, text: str) -> str:
        """Return a text without the address and the key."""
        host = httpx.URL(self.url).host
        for secret in (self.key, self.url, host):
            if len(secret) > 3:
                text = text.replace(secret, "***")
        return text


def access(url_env: str, key_env: str) -> Access:
    """Return address and key from the environment.

    Raises:
        UserError: one is not set, the address is none, or a proxy cannot be used.
    """
    if problem := missing(url_env, key_env):
        raise UserError(
            problem, fix="without a key, such as for a server of your own: any text, such as none"
        )
    check_proxies()
    return Access(os.environ[url_env].strip().rstrip("/"), os.environ[key_env].strip())


def missing(url_env: str, key_env: str) -> str:
    """Return which of the two environment variables is not set or unusable, "" if both are fine."""
    for name, what in ((url_env, "the address of the endpoint"), (key_env, "its key")):
        if not os.environ.get(name, "").strip():
            return f"${name} is not set: {what}"
    try:
        url = httpx.URL(os.environ[url_env].strip())
    except httpx.InvalidURL:
        return f"${url_env} is no address"
    if url.scheme not in ("http", "https") or not url.host:
        return f"${url_env} is no address that begins with http:// or https://"
    if not os.environ[key_env].strip().isascii():
        return f"${key_env} holds characters that no key has"
    return ""


def check_access(url_env: str, key_env: str, model: str, timeout_s: float = 10.0) -> list[str]:
    """Check that an endpoint answers and accepts the key, by one request for its list of models.

    Returns:
        Notes for the user, such as that the list does not have the model.

    Raises:
        UserError: the key is refused, nothing answers at the address, or a variable is not set.
    """
    found = access(url_env, key_env)
    try:
        with _client(found, timeout_s) as client:
            response = client.get("models")
    except httpx.HTTPError as error:
        what = f"the endpoint in ${url_env} does not answer: {type(error).__name__}"
        raise UserError(what, fix=f"check ${url_env}, such as https://HOST/v1") from None
    if response.status_code in (401, 403):
        raise UserError(
            f"the endpoint in ${url_env} refuses the key in ${key_env} (status {response.status_code})",
            fix=f"set ${key_env} to a key of that endpoint",
        )
    # Many servers have no list of models, so any other status is no proof of a mistake.
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        names = [one["id"] for one in response.json()["data"]] if response.status_code == 200 else []
        if names and model not in names:
            return [f"the endpoint does not list the model {model!r} among its {len(names)}"]
    return []


def _headers(found: Access) -> dict[str, str]:
    return {"Authorization": f"Bearer {found.key}"}


def _client(found: Access, timeout_s: float) -> httpx.Client:
    return httpx.Client(base_url=f"{found.url}/", headers=_headers(found), timeout=timeout_s)


class Endpoint:
    """See `orchestrator.translation.rows.Translator`.

    Args:
        found: address and key.
        settings: the `endpoint` of the config.
        body: fields of every request: the model, the limit of tokens, and what the user adds. A field that
            is None is left out, for endpoints that refuse it.
    """

    def __init__(self, found: Access, settings: Mapping[str, Any], body: Mapping[str, Any]) -> None:
        self._access = found
        self._settings = settings
        fields = {"temperature": 0, **body}
        self._body = {key: value for key, value in fields.items() if value is not None}
        self._gate = _Gate(settings["requests_per_minute"])
        self._num_given_up = 0
        self._last_error = ""

    def run(self, conversations: Sequence[Conversation], context: RowProgress) -> None:
        """Continue each conversation; see `Translator.run`."""
        asyncio.run(self._run(conversations, context))
        context.stop_if_asked()

    async def _run(self, conversations: Sequence[Conversation], context: RowProgress) -> None:
        limit = self._settings["max_concurrent"]
        queue, finished = iter(conversations), list[Conversation]()
        async with httpx.AsyncClient(
            base_url=f"{self._access.url}/",
            headers=_headers(self._access),
            timeout=self._settings["timeout_s"],
            limits=httpx.Limits(max_connections=limit, max_keepalive_connections=limit),
        ) as client:

            async def work() -> None:
                for conversation in queue:
                    await self._converse(client, conversation)
                    finished.append(conversation)
                    context.report(len(finished), num_steps=len(conversations))

            tasks = [asyncio.create_task(work()) for _ in range(min(limit, len(conversations)))]
            try:
                pending = set(tasks)
                while pending and not context.stop_asked:
                    done, pending = await asyncio.wait(
                        pending, timeout=POLL_S, return_when=asyncio.FIRST_EXCEPTION
                    )
                    for task in done:
                        task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _converse(self, client: httpx.AsyncClient, conversation: Conversation) -> None:
        messages = conversation.messages()
        while messages is not None:
            answer = await self._reply(client, messages)
            if isinstance(answer, str):
                conversation.problem, conversation.detail = answer, self._last_error
                if answer == UNANSWERED:
                    self._give_up()
                return
            self._num_given_up = 0
            messages = conversation.take(answer)

    def _give_up(self) -> None:
        """Count a row without a reply.

        Raises:
            StageFailure: so many came one after the other that the endpoint must be down.
        """
        self._num_given_up += 1
        if self._num_given_up > max(MIN_GIVEN_UP, self._settings["max_concurrent"]):
            what = f"the endpoint in ${self._settings['url_env']} does not reply any more"
            raise StageFailure("communication", f"{what}: {self._last_error}")

    async def _reply(self, client: httpx.AsyncClient, messages: Messages) -> ModelReply | str:
        """Return the reply to a request, or the kind of fault if none came after all tries.

        Raises:
            StageFailure: no request can succeed, for example because the key is refused.
        """
        num_errors, num_limited = 0, 0
        max_tries = self._settings["max_tries"]
        while num_errors < max_tries and num_limited < LIMITED_TRIES * max_tries:
            if number := num_errors + num_limited:
                pause_s = FIRST_PAUSE_S * 2 ** min(number - 1, 10) * random.uniform(0.75, 1.25)
                await asyncio.sleep(min(pause_s, self._settings["max_wait_s"]))
            await self._gate.wait()
            num_errors += 1  # taken back below where only a rate limit was met
            try:
                async with asyncio.timeout(self._settings["timeout_s"]):  # httpx limits each read alone
                    status, headers, data = await self._post(client, messages)
            except (httpx.HTTPError, TimeoutError) as error:
                self._last_error = type(error).__name__
                continue
            if status == 200 and (reply := _reply_of(data)) is not None:
                return reply
            if status in (401, 403, 404):
                raise StageFailure("config", self._refusal(status, data))
            if 400 <= status < 500 and status not in AGAIN:
                what = self._access.hide(one_line(_error_text(data), 160))
                self._last_error = f"status {status}: {what}"
                return "refused-request"
            self._last_error = f"status {status}"
            if status == 429:
                num_errors, num_limited = num_errors - 1, num_limited + 1
            if (wait_s := retry_after_s(headers.get("retry-after", ""))) is not None:
                self._gate.close(min(wait_s, self._settings["max_wait_s"]))
        return UNANSWERED

    async def _post(
        self, client: httpx.AsyncClient, messages: Messages
    ) -> tuple[int, Mapping[str, str], bytes]:
        body = {**self._body, "messages": messages}
        data = bytearray()
        async with client.stream("POST", "chat/completions", json=body) as response:
            async for piece in response.aiter_bytes():
                data += piece
                if len(data) > MAX_BODY_BYTES:
                    raise httpx.ReadError("the reply is too long")
            return response.status_code, response.headers, bytes(data)

    def _refusal(self, status: int, data: bytes) -> str:
        """Return the message for a request that can never succeed."""
        url_env, key_env = self._settings["url_env"], self._settings["key_env"]
        if status in (401, 403):
            # Endpoints repeat parts of the key in this message, so it is not shown.
            return f"the endpoint in ${url_env} refuses the key in ${key_env} (status {status})"
        what = self._access.hide(one_line(_error_text(data), 160))
        return f"the endpoint in ${url_env} has no such model or path (status {status}): {what}"


def _error_text(data: bytes) -> str:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(data)["error"]["message"])
    return data[:200].decode(errors="replace")


def _reply_of(data: bytes) -> ModelReply | None:
    """Return the reply in a response, None if it has another form."""
    try:
        tree = json.loads(data)
        choice, usage = tree["choices"][0], tree.get("usage") or {}
        return ModelReply(
            text=str(choice["message"]["content"] or "").encode(errors="replace").decode(),
            finish="length" if choice.get("finish_reason") == "length" else "stop",
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None


class _Gate:
    """Delays requests: until a pause is over, and to at most some a minute.

    Args:
        per_minute: requests a minute; None for no limit.
    """

    def __init__(self, per_minute: int | None) -> None:
        self._spacing_s = 60.0 / per_minute if per_minute else 0.0
        self._open_s = 0.0

    def close(self, wait_s: float) -> None:
        """Let no request begin for some seconds."""
        self._open_s = max(self._open_s, time.monotonic() + wait_s)

    async def wait(self) -> None:
        """Wait for the turn of a request."""
        while (wait_s := self._open_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        if self._spacing_s:
            self._open_s = time.monotonic() + self._spacing_s

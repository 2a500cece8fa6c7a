"""A chat endpoint on loopback that translates by tables, and errs where it is told to.

Its words are no words of any language: each letter becomes one of the target's script. That is enough for
every check but a reader's.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-proj-9f8A7b6C5d4E3f2G1h0IjKlMnOpQrStU"
MODEL = "tables-1"

_LATIN = "abcdefghijklmnopqrstuvwxyz"
_TABLES = {
    "Spanish": "eboduñgiháckrmalepistuvoza",
    "Swahili": "ibgduwhjakmlnpasyrtuwezofi",
    "French": "ébcduvgiàhklmnopoqrstuwxaz",
    "German": "äbcdöfghükmlnpoqrstuwvxzei",
    "Japanese": "あいうえおかきくけこさしすせそたちつてとなにぬねのは",
    "Bengali": "কখগঘঙচছজঝঞটঠডঢণতথদধনপফবভময",
    "Telugu": "కఖగఘఙచఛజఝఞటఠడఢణతథదధనపఫబభమయ",
    "Russian": "абвгдежзийклмнопрстуфхцчшщ",
    "Chinese": "的一是在不了有和人这中大为上个国我以要他时来用们生到",
    "Thai": "กขคงจฉชซญฎฏฐณดตถทธนบปผฝพฟภ",
}
FAULTS = (
    *("changed date", "lost placeholder", "repeated placeholder", "wrong script", "cut off", "empty"),
    *(
        "rate limit",
        "error",
        "hang",
        "filter",
        "other call",
        "prose around",
        "invalid JSON",
        "not translated",
    ),
)


def translated(text: str, language: str) -> str:
    table = str.maketrans(_LATIN + _LATIN.upper(), _TABLES[language] * 2)
    pieces = re.split(r"(\[\[\d+\]\]|\d+(?:st|nd|rd|th)\b)", text)
    return "".join(
        piece.rstrip("stndrh") if i % 2 else piece.translate(table) for i, piece in enumerate(pieces)
    )


class Server:
    """The endpoint.

    Attributes:
        faults: a word of a row's texts to how each reply to it errs; see `FAULTS`.
        once: whether a row's first request alone errs.
        delay_s: of each reply.
        may_reply: acquired before each reply, if it is set.
        asked: requests by row and language, that got a reply of status 200 or are waiting for one.
        statuses: of all replies.
        authorizations: of all requests.
        models: what it gives as the list of its models.
    """

    def __init__(
        self, faults: Mapping[str, str] | None = None, *, once: bool = False, delay_s: float = 0.0
    ) -> None:
        self.faults, self.once, self.delay_s = dict(faults or {}), once, delay_s
        self.may_reply: threading.Semaphore | None = None
        self.asked: Counter[tuple[str, str]] = Counter()
        self.sent: Counter[tuple[str, str]] = Counter()
        self.seen: Counter[tuple[str, str]] = Counter()
        self.statuses: Counter[int] = Counter()
        self.authorizations: set[str] = set()
        self.models: object = {"data": [{"id": MODEL}]}
        self.times: list[float] = []
        self.messages: list[list[dict[str, str]]] = []
        self.most_at_once = 0
        self._at_once = 0
        self.lock = threading.Lock()
        self._is_over = threading.Event()

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serves, and yields the address."""
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                served._models(self)

            def do_POST(self) -> None:
                served._chat(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            self._is_over.set()
            server.shutdown()
            server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, status: int, tree: Any, **headers: str) -> None:
        data = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
        with self.lock:
            self.statuses[status] += 1
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client that has left
            handler.end_headers()
            handler.wfile.write(data)

    def _is_refused(self, handler: BaseHTTPRequestHandler) -> bool:
        given = handler.headers.get("Authorization", "")
        with self.lock:
            self.authorizations.add(given)
        if given == f"Bearer {KEY}":
            return False
        # As real endpoints do, the message repeats the key.
        self._answer(handler, 401, {"error": {"message": f"Incorrect API key provided: {given[7:]}"}})
        return True

    def _models(self, handler: BaseHTTPRequestHandler) -> None:
        if not self._is_refused(handler):
            self._answer(handler, 200, self.models)

    def _chat(self, handler: BaseHTTPRequestHandler) -> None:
        data = handler.rfile.read(int(handler.headers["Content-Length"]))
        if self._is_refused(handler):
            return
        body = json.loads(data)
        if body["model"] != MODEL:
            self._answer(handler, 404, {"error": {"message": f"no model {body['model']}"}})
            return
        language = re.search(r"from English into (\w+)", body["messages"][0]["content"])[1]  # type: ignore[index]
        request = body["messages"][1]["content"]
        row = request, language
        with self.lock:
            self.times.append(time.monotonic())
            self.messages.append(body["messages"])
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.seen[row] += 1
            fault = next((how for word, how in self.faults.items() if word in request), "")
            if self.once and self.seen[row] > 1:
                fault = ""
            if fault not in ("rate limit", "error", "hang", "filter"):
                self.asked[row] += 1
        self._is_over.wait(self.delay_s)
        while self.may_reply is not None and not self.may_reply.acquire(timeout=1):
            pass
        with self.lock:  # before the reply, since the next request may come at once
            self._at_once -= 1
            self.sent[row] += 1
        self._reply(handler, fault, json.loads(request), language)

    def _reply(self, handler: BaseHTTPRequestHandler, fault: str, request: Any, language: str) -> None:
        texts = request["texts"]
        replies = {key: translated(text, language) for key, text in texts.items()}
        finish = "stop"
        longest = max(texts, key=lambda key: len(texts[key]))
        marked = next((key for key in texts if "[[" in texts[key]), longest)
        mark = re.search(r"\[\[\d+\]\]", texts[marked])
        match fault:
            case "rate limit":
                return self._answer(handler, 429, {"error": {"message": "slow down"}}, Retry_After="0.3")
            case "filter":
                said = f"content policy; {handler.headers['Authorization']}"
                return self._answer(handler, 400, {"error": {"message": said}})
            case "error":
                return self._answer(handler, 500, b"<h1>Internal error</h1>")
            case "hang":
                self._is_over.wait(60)
                return None
            case "changed date":
                dated = next(key for key in texts if re.search(r"\d+th", texts[key]))
                replies[dated] = re.sub(
                    r"\b(?<!\[)(\d+)(?!\]|\d)", lambda m: str(int(m[1]) + 1), replies[dated]
                )
            case "lost placeholder":
                replies[marked] = replies[marked].replace(mark[0], "", 1)  # type: ignore[index]
            case "repeated placeholder":
                replies[marked] += f" {mark[0]}"  # type: ignore[index]
            case "wrong script":
                other = "Spanish" if language not in ("Spanish", "Swahili", "French", "German") else "Russian"
                replies = {key: translated(text, other) for key, text in texts.items()}
            case "not translated":
                replies = dict(texts)
            case "other call":
                value = request["value"][0]
                replies[value] += "', other='1"
            case "cut off":
                finish = "length"
        text = json.dumps(replies, ensure_ascii=False)
        text = {
            "empty": "",
            "prose around": f"Here is the translation:\n{text}\nI hope that this helps!",
            "invalid JSON": text[:-1] + ",,}",
            "cut off": text[: len(text) // 2],
        }.get(fault, text)
        usage = {"prompt_tokens": 100, "completion_tokens": 50}
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return self._answer(handler, 200, {"choices": [choice], "usage": usage})


if __name__ == "__main__":
    with Server().running() as url:
        print(url, flush=True)
        time.sleep(3600)

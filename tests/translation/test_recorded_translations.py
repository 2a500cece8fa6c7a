"""Requests, replies, verdicts, data sets and review sheets of rows that err in every way are as recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orchestrator.tasks import api_calling
from orchestrator.translation import stages
from orchestrator.translation.config import check_languages
from orchestrator.translation.endpoint import _error_text, _reply_of, access, check_access
from orchestrator.translation.review import read_overlay
from orchestrator.translation.template import template_of
from orchestrator.translation.verdicts import NAMES, ModelReply, judge, judge_reply
from tests.recording import Answers, answer, compare, compare_text, plain
from tests.translation.rows import config_of, english, run, write_source
from tests.translation.server import FAULTS, KEY, MODEL, Server, translated

RECORDED = Path(__file__).parent / "recorded"
WAITS = {"timeout_s": 60.0, "max_tries": 2, "max_wait_s": 0.01, "max_concurrent": 1}
LINE = api_calling.API_CALLING.line_of(english("dizzy"), id_="1", language="en", where="")
TEMPLATE = template_of(LINE)


def test_what_is_sent_kept_and_made_is_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [fault for fault in FAULTS if fault != "hang"]
    words = [f"queasy{'abcdefghijklmnop'[number]}" for number in range(len(faults))]
    source = write_source(tmp_path / "source", ["dizzy", *words, "dizzy"], ["faint"])
    server = Server(dict(zip(words, faults, strict=True)))
    rows = []
    with server.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", f" {url}/ ")
        # A reply that is lost, or refused for good, is one too many at the default.
        config = config_of(
            source,
            tmp_path / "cache",
            endpoint=WAITS,
            max_attempts=2,
            max_unanswered=0.5,
            num_shards=1,
            review_rows=5,
        )
        shard = {"language": "es", "shard": 0}
        replies, found = run(stages.TRANSLATE, config, tmp_path / "a", **shard)
        rows += found
        again, found = run(stages.TRANSLATE, config, tmp_path / "again", **shard)  # from the cache
        rows += found
    verdicts, found = run(stages.VALIDATE, config, tmp_path / "b", {"translate": {"es.0": replies}}, **shard)
    rows += found
    first = json.loads((verdicts / "verdicts.jsonl").read_text().splitlines()[0])
    overlay = tmp_path / "overlay.jsonl"
    good = {"row": first["row"], "language": "es", "id": first["id"], "texts": {"1": "Una buena [[1]]"}}
    last = json.loads((verdicts / "verdicts.jsonl").read_text().splitlines()[-1])
    texts = {"row": last["row"], "language": "es", "texts": dict(last["translations"]), "by": "ann"}
    lines = [good, texts, {**good, "row": "0" * 64}, {**texts, "texts": {"99": "x"}, "language": "ja"}]
    overlay.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    whole = {
        **config,
        "language": "all",
        "shard": "all",
        "overlay": {"path": str(overlay), "fingerprint": "f"},
    }
    made, found = run(stages.ASSEMBLE, whole, tmp_path / "c", {"validate": {"es.0": verdicts}})
    rows += found
    asked = [messages for messages in server.messages if len(messages) > 2]
    page = (made / "review/es.html").read_text()
    text = "\n".join(
        [
            "## rows",
            *map(json.dumps, rows),
            "## the first request",
            *(message["content"] for message in server.messages[0]),
            "## requests with reasons",
            *(f"{messages[2]['content'][:60]} ... {messages[3]['content']}" for messages in asked),
            f"## replies of the server: {dict(sorted(server.statuses.items()))}",
            "## replies.jsonl, of the second time the same",
            (replies / "replies.jsonl").read_text(),
            "## verdicts.jsonl",
            (verdicts / "verdicts.jsonl").read_text(),
            "## the manifest",
            (made / "translation.json").read_text(),
            "## the review sheet",
            re.sub(r"(?s)<(style|script).*?</\1>", "", page),
        ]
    )
    assert (again / "replies.jsonl").read_bytes() == (replies / "replies.jsonl").read_bytes()
    compare_text(
        RECORDED / "chain.txt", text, {r"\b([0-9a-f]{8})[0-9a-f]{56}\b": r"\1", str(tmp_path): "FOLDER"}
    )


KEYS = {text.text[:6]: text.key for text in TEMPLATE.texts}
SPOILT = {
    "nothing": lambda text: text,
    "lost": lambda text: text.replace("[[1]]", "", 1),
    "repeated": lambda text: f"{text} [[1]] [[1]]",
    "unknown": lambda text: f"{text} [[99]]",
    "numbers": lambda text: f"{text} 10 12",
    "another number": lambda text: text.replace("10", "11"),
    "empty": lambda text: "  ",
    "short": lambda text: "ó [[1]]",
    "control": lambda text: f"{text}\nUser: hi",
    "call": lambda text: f"{text} fit(a=1)",
    "quote": lambda text: f"{text}', other='1",
    "Russian": lambda text: translated("x" * 60, "Russian") + " [[1]]",
    "long": lambda text: f"{text} {'ñandú ' * 60}",
    "English words": lambda text: f"This is what you have to say for the day, and {text}",
    "other digits": lambda text: text.replace("10", "১০"),
    "copied": lambda text: f"{text} please search symptom causes again headache symptom symptom",
}


def verdicts_asked() -> Answers:
    for language in sorted(NAMES.keys() - {"en"}):
        good = {text.key: translated(text.text, NAMES[language].split()[0]) for text in TEMPLATE.texts}
        for name in SPOILT if language in ("es", "ja", "bn") else ("nothing",):
            for text in TEMPLATE.texts:
                said = {**good, text.key: SPOILT[name](good[text.key])}
                verdict = judge(TEMPLATE, LINE, said, language)
                yield f"{language} {name} in {text.key}", ([f.text for f in verdict.faults], verdict.flags)
        verdict = judge(TEMPLATE, LINE, good, language)
        yield f"{language} line", verdict.line
    yield "others", judge(TEMPLATE, LINE, {"1": "x", "99": "y"}, "es").faults
    yield "originals", judge(TEMPLATE, LINE, TEMPLATE.originals, "es").faults
    text = json.dumps(good, ensure_ascii=False)
    for reply in (
        "",
        " \n",
        f"Sure! {text}",
        text[:-3],
        "[1]",
        text.replace("{", '{"1": "twice", ', 1),
        '{"1": 1}',
        "{" * 3000,
    ):
        yield f"reply {reply[:30]!r}", judge_reply(TEMPLATE, LINE, ModelReply(text=reply), "zh").faults
    for reply in (f"```json\n{text}\n```", f"```\n{text}```", f"\n {text} \n"):
        yield f"reply {reply[:10]!r}", judge_reply(TEMPLATE, LINE, ModelReply(text=reply), "th")[2:]
    yield "cut off", judge_reply(TEMPLATE, LINE, ModelReply(text=text, finish="length"), "th").faults
    yield "template", (TEMPLATE.texts, TEMPLATE.kept, TEMPLATE.values)


ODD = [
    "User: Is [[1]] a list?\nAI:  \nUser : At 19:30, TIME: 3\nnothing\n{not json\nGenerate API Request:\n",
    "API-Request: [Ask(name='Ann', list='[\\'walk\\', \\'run\\']', url='http://x.y')]->"
    "{'note': \"it's far\", 'n': 3}\nUser: walk!",
    "API-Request: [Ask(\nUser: Say 'hello there' to Ann in 2 days, please. API-Request",
    "AI: 7 + 8\nUser: {\"a\": 1}\n",
]  # fmt: skip


def templates_asked() -> Answers:
    for text in ODD:
        line = {
            **LINE,
            "input": text,
            "output": "API-Request: [Ask(name='Bob Lee', what='to walk', note='')]",
        }
        template = template_of(line)
        yield f"texts of {text!r}", (template.texts, template.kept, template.values)
        shouted = {
            each.key: re.sub(r"[a-z]{3,}", lambda m: m[0].upper(), each.text) for each in template.texts
        }
        yield f"line of {text!r}", template.line("1", shouted)
        assert template.line("1", template.originals) == {**line, "id": "1"}


def test_texts_templates_and_verdicts_are_as_recorded() -> None:
    compare(RECORDED / "verdicts.txt", verdicts_asked())
    compare(RECORDED / "templates.txt", templates_asked())


def errors_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    for languages in ((), ("en",), ("es", "xx"), ("es", "es"), ("es", "ja")):
        yield f"languages {languages}", answer(lambda: check_languages(languages))  # noqa: B023
    for text in ("[]", "", "\n", '{"row": 1}', '{"row": "a", "language": "es", "texts": {}, "more": 1}', "{"):
        (folder / "overlay.jsonl").write_text(text)
        yield f"overlay {text}", answer(lambda: read_overlay(folder / "overlay.jsonl"))
    yield "no overlay", answer(lambda: read_overlay(folder / "nowhere"))
    for url, key in (
        ("", "k"),
        ("http://h", " "),
        ("h/v1", "k"),
        ("ftp://h", "k"),
        ("http://", "k"),
        ("http://h:x", "k"),
        ("http://h/v1/ ", "ké"),
        ("https://host.of.it/v1/ ", " key "),
    ):
        monkeypatch.setenv("U", url)
        monkeypatch.setenv("K", key)
        found = answer(lambda: access("U", "K"))
        yield f"access {url} {key}", [found, *(found if isinstance(found, tuple) else ())]
        if isinstance(found, tuple):
            yield "  hidden", found.hide("host.of.it refuses key at https://host.of.it/v1: key")
    monkeypatch.setenv("https_proxy", "socks4://x")
    yield "proxy", answer(lambda: access("U", "K"))
    monkeypatch.delenv("https_proxy")
    server = Server()
    with server.running() as url:
        monkeypatch.setenv("U", url)
        for key in (KEY, "another"):
            monkeypatch.setenv("K", key)
            for model in (MODEL, "other"):
                yield f"model {model} with {key[:3]}", answer(lambda: check_access("U", "K", model))  # noqa: B023
        monkeypatch.setenv("K", KEY)
        for models in (
            [],
            {"data": []},
            {"data": [{"name": "x"}]},
            b"no JSON",
            {"data": [{"id": "a"}, {"id": "b"}]},
        ):
            server.models = models
            yield f"models {models!r}", answer(lambda: check_access("U", "K", MODEL))
    yield "nobody there", answer(lambda: check_access("U", "K", MODEL))
    for data in (
        b"",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": "a\\ud800"}, "finish_reason": "length"}],'
        b' "usage": {"prompt_tokens": "7"}}',
        b'{"choices": [{"message": {"content": "b"}, "finish_reason": "x"}], "usage": null}',
        b'{"choices": [{"message": {"content": "b"}}], "usage": {"completion_tokens": 3}}',
        b'{"choices": [{"message": "b"}]}',
    ):
        yield f"reply {data!r}", _reply_of(data)
    for data in (b"\xff" * 300, b'{"error": {"message": "m"}}', b'{"error": "m"}', b"[]", b""):
        yield f"error {data[:40]!r}", _error_text(data)


def test_what_is_refused_is_refused_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = errors_asked(tmp_path, monkeypatch)
    compare(RECORDED / "errors.txt", ((q, plain(a).replace(str(tmp_path), "FOLDER")) for q, a in asked))

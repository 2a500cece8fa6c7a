"""Each hard check refuses what it is for and nothing else; soft ones only flag."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from orchestrator.tasks import api_calling
from orchestrator.translation.template import template_of
from orchestrator.translation.verdicts import KINDS, NAMES, ModelReply, judge, judge_reply, script_share
from tests.translation.rows import english
from tests.translation.server import translated

LINE = api_calling.API_CALLING.line_of(english("dizzy"), id_="1", language="en", where="")
TEMPLATE = template_of(LINE)
KEY = {text.text[:6]: text.key for text in TEMPLATE.texts}
TURN, VALUE, MORE = KEY["I have"], KEY["dizzy"], KEY["Please"]
Texts = dict[str, str]


def texts(language: str) -> Texts:
    return {text.key: translated(text.text, NAMES[language].split()[0]) for text in TEMPLATE.texts}


@pytest.mark.parametrize("language", ["es", "sw", "fr", "de", "ja", "bn", "te", "ru", "zh", "th"])
def test_a_good_translation_is_accepted_in_every_language(language: str) -> None:
    verdict = judge(TEMPLATE, LINE, texts(language), language)
    assert verdict.faults == () and verdict.line is not None


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("placeholder-lost", lambda t: {TURN: t[TURN].replace("[[1]]", "", 1)}),
        ("placeholder-repeated", lambda t: {MORE: t[MORE] + " [[1]]"}),
        ("placeholder-unknown", lambda t: {MORE: t[MORE] + " [[99]]"}),
        ("number-changed", lambda t: {TURN: t[TURN].replace("10", "11")}),
        ("empty", lambda t: {MORE: "  "}),
        ("wrong-script", lambda t: {MORE: translated("x" * 60, "Russian") + " [[1]]"}),
        ("cut-off", lambda t: {MORE: "ó [[1]]"}),
        ("control-character", lambda t: {MORE: t[MORE] + "\nUser: hi"}),
        ("not-translated", lambda t: {MORE: next(x.text for x in TEMPLATE.texts if x.key == MORE)}),
        ("other-call", lambda t: {VALUE: "náusea', other='1"}),
        ("other-texts", lambda t: {"99": "?"}),
    ],
)
def test_a_hard_check_refuses(kind: str, spoil: Callable[[Texts], Texts]) -> None:
    good = texts("es")
    verdict = judge(TEMPLATE, LINE, {**good, **spoil(good)}, "es")
    assert kind in {fault.kind for fault in verdict.faults} and verdict.line is None
    assert {fault.kind for fault in verdict.faults} <= KINDS.keys()


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        ("cut-off", lambda text: ModelReply(text=text, finish="length")),
        ("empty", lambda text: ModelReply(text=" \n")),
        ("prose-around", lambda text: ModelReply(text=f"Sure! {text}")),
        ("not-json", lambda text: ModelReply(text=text[:-3])),
        ("not-json", lambda text: ModelReply(text="[1, 2]")),
        ("not-json", lambda text: ModelReply(text=text.replace("{", '{"1": "twice", ', 1))),
        ("not-json", lambda text: ModelReply(text='{"1": {"deep": 1}}')),
        ("", lambda text: ModelReply(text=f"```json\n{text}\n```")),
        ("", lambda text: ModelReply(text=f"\n {text} \n")),
    ],
)
def test_the_form_of_a_reply(kind: str, reply: Callable[[str], ModelReply]) -> None:
    text = json.dumps(texts("es"), ensure_ascii=False)
    assert [f.kind for f in judge_reply(TEMPLATE, LINE, reply(text), "es").faults] == ([kind] if kind else [])


def test_english_in_other_words_is_still_english() -> None:
    said = {key: f"This is what you have to say for the day, and {text}" for key, text in texts("sw").items()}
    assert {f.kind for f in judge(TEMPLATE, LINE, said, "sw").faults} == {"not-translated"}


def test_japanese_has_kana_and_chinese_has_none() -> None:
    assert script_share("会議の予約をしてください", "ja") == 1.0
    assert script_share("会議の予約をしてください", "zh") == 0.0
    assert script_share("请预订会议室", "zh") == 1.0
    assert script_share("请预订会议室", "ja") == 0.0


def test_numbers_in_other_digits_are_the_same_numbers() -> None:
    there = {**texts("bn"), TURN: texts("bn")[TURN].replace("10", "১০")}
    assert judge(TEMPLATE, LINE, there, "bn").faults == ()


def test_a_doubtful_translation_is_accepted_and_flagged() -> None:
    long = {key: f"{text} {'ñandú ' * len(text)}" for key, text in texts("es").items()}
    verdict = judge(TEMPLATE, LINE, long, "es")
    assert verdict.faults == () and any("length" in flag for flag in verdict.flags)

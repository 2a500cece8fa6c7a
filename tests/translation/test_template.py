"""A row as texts and back: nothing is lost, and what must stay does stay."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from orchestrator.tasks import api_calling
from orchestrator.tasks.calls import parse_call
from orchestrator.tasks.sources import open_source
from orchestrator.translation.kept import PLACEHOLDER, is_kept, pattern_of, strings_of
from orchestrator.translation.template import VALUE, template_of
from tests.translation.rows import english
from tests.translation.server import translated

LINE = api_calling.API_CALLING.line_of(english("dizzy"), id_="1", language="en", where="")


def in_russian(text: str) -> str:
    return translated(text, "Russian")


def test_a_value_is_the_same_in_the_turns_the_earlier_call_and_the_gold() -> None:
    template = template_of(LINE)
    line = template.line("1", {text.key: in_russian(text.text) for text in template.texts})
    value = in_russian("dizzy")
    assert parse_call(line["output"]).args == {"symptom": value, "date": "2023-03-10"}  # type: ignore[union-attr]
    assert line["input"].count(value) == 3 and "dizzy" not in line["input"]
    assert [text.text for text in template.texts if text.kind == VALUE] == ["dizzy", "Migraine"]


def test_structure_names_dates_and_formats_never_leave() -> None:
    template = template_of(LINE)
    sent = "\n".join(text.text for text in template.texts)
    for kept in ("SymptomSearch", "Dr. Lee", "2023", "%Y", "User:", "API-Request", "{"):
        assert kept not in sent, kept
    line = template.line("1", {text.key: in_russian(text.text) for text in template.texts})
    assert list(api_calling.problems(LINE, line)) == []
    assert "Dr. Lee" in line["input"] and "%Y-%m-%d" in line["instruction"]


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("date", "2023-03-10", True),
        ("time", "10:30", True),
        ("doctor_name", "Dr. Lee", True),
        ("attendees", "John Doe", True),
        ("city", "New York", True),
        ("symptom", "nausea", False),
        ("location", "conference room", False),
        ("content", "Meeting with clients", False),
        ("name", "morning walk", False),
        ("tgt_lang", "fr", True),
        ("status", "success", True),
        ("health", "blood_pressure", True),
        ("tool", "QueryStock", True),
        ("formula", "(5+6)*3", True),
    ],
)
def test_what_a_translation_keeps(key: str, value: str, kept: bool) -> None:
    assert is_kept(key, value) is kept


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("{'city': 'Rome', \"note\": \"it's far\"}", [("city", "Rome"), ("note", "it's far")]),
        ("['Rome', 'Oslo']", [("", "Rome"), ("", "Oslo")]),
        ("'city': 'Rome'", [("city", "Rome")]),
        ("{'city' :  'Rome', 'n': 3, 'in': ['Oslo']}", [("city", "Rome"), ("", "Oslo")]),
        ("{'name': 'Ann', 'age': '7'}", [("name", "Ann"), ("age", "7")]),
        ("{'name': 'Walk', 'description': 'to go'}", [("", "Walk"), ("description", "to go")]),  # a thing
        (r"{'say': 'it\'s'}", [("say", "it's")]),
        ("nothing", []),
    ],
)
def test_the_strings_of_a_result_come_with_their_keys(text: str, pairs: list[tuple[str, str]]) -> None:
    assert strings_of(text) == pairs


def test_of_values_that_begin_alike_the_longest_is_replaced_and_only_as_words_of_their_own() -> None:
    pattern = pattern_of(["pain", "back pain", "pain killer", "pain in", "x"])
    text = "back pain, a pain killer, painful pain in x"
    assert [match[0] for match in pattern.finditer(text)] == ["back pain", "pain killer", "pain in"]


def test_quotes_in_a_translated_result_do_not_end_it() -> None:
    template = template_of(LINE)
    texts = {text.key: in_russian(text.text) for text in template.texts}
    prose = next(text.key for text in template.texts if text.text.startswith("A headache"))
    line = template.line("1", {**texts, prose: 'c\'est "ça"'})
    assert """'c\\'est "ça"'""" in line["input"]


def test_a_call_within_a_sentence_stays_as_it_is() -> None:
    call = "[QueryStock(stock_code='AAPL', date='2023-01-04')]"
    line = {**LINE, "input": f"User: Hi.\nAI: Sure, I can help you. {call}\nGenerate API Request:\n"}
    template = template_of(line)
    made = template.line("1", {text.key: in_russian(text.text) for text in template.texts})
    assert call in made["input"] and call not in " ".join(text.text for text in template.texts)


def test_a_text_that_looks_like_a_placeholder_comes_back() -> None:
    line = {**LINE, "input": "User: Is [[1]] a list of lists?\nGenerate API Request:\n"}
    template = template_of(line)
    assert template.line("1", template.originals) == {**line, "id": "1"}


@pytest.mark.parametrize("name", ["level-1-api.json", "level-2-api.json", "lv3-api-train.json"])
def test_public_rows_come_back_as_they_were_and_may_be_translated(public_data: Path, name: str) -> None:
    source = open_source(public_data / "api-bank" / name, "api_calling")
    for raw in itertools.islice(source.rows(), 0, None, 4):
        line = source.line(raw)
        template = template_of(line)
        assert template.line(line["id"], template.originals) == line
        texts = {text.key: in_russian(text.text) for text in template.texts}
        made = template.line(line["id"], texts)
        assert list(api_calling.problems(line, made)) == []
        assert not re.search(PLACEHOLDER, made["output"])

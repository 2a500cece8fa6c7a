"""Which call a generated text makes, and whether it is the gold one: tables, properties, real calls."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.tasks.api_calling import API_CALLING
from orchestrator.tasks.calls import Call, calls_match, parse_call, serialise

PARSED = [
    ("API-Request: [GetToday()]", "GetToday", {}),
    ("API-Request: [A(x='1', y='2')]", "A", {"x": "1", "y": "2"}),
    ("[A(x='1')]", "A", {"x": "1"}),
    ("Sure, here it is: [A(x='1')]", "A", {"x": "1"}),
    ("API-Request:\n[A(x='1')]", "A", {"x": "1"}),
    ("**API-Request:** `[A(x='1')]`", "A", {"x": "1"}),
    ("API-Request: A(x='1')", "A", {"x": "1"}),
    ("API-Request: PharmacyLocator(location=New York)", "PharmacyLocator", {"location": "New York"}),
    ('[A(x="1", y=2)]', "A", {"x": "1", "y": "2"}),
    ("[A( x = '1' , y = '2' )]", "A", {"x": "1", "y": "2"}),
    ("[A(x='')]", "A", {"x": ""}),
    ("[A(x=, y='2')]", "A", {"x": "", "y": "2"}),
    ("[A(to='['John', 'Jane']')]", "A", {"to": "['John', 'Jane']"}),
    (
        "[A(d='[{'name': 'bp', 'value': '120/80'}]', t='1')]",
        "A",
        {"d": "[{'name': 'bp', 'value': '120/80'}]", "t": "1"},
    ),
    ("[A(x='it's here', y='2')]", "A", {"x": "it's here", "y": "2"}),
    ("[A(x='John\\'s')]", "A", {"x": "John's"}),
    ("[A(x='a\\\\b\\n')]", "A", {"x": "a\\b\\n"}),
    ("[A(f='(5+6)*3')]", "A", {"f": "(5+6)*3"}),
    ("[A(f=(5+6)*3, y=1)]", "A", {"f": "(5+6)*3", "y": "1"}),
    ("[A(f='(5+6')]", "A", {"f": "(5+6"}),
    ("[A(f='5)')]", "A", {"f": "5)"}),
    ("[A(x='[f('a')]', y='2')]", "A", {"x": "[f('a')]", "y": "2"}),
    ("[A(x='a, b', y='c, d e=f')]", "A", {"x": "a, b", "y": "c, d e=f"}),
    ("[A(x=hi :) you, y=1)]", "A", {"x": "hi :) you", "y": "1"}),
    ("[A(x=[1, 2], y={'a': 'b, c=d)'})]", "A", {"x": "[1, 2]", "y": "{'a': 'b, c=d)'}"}),
    ("[A(x=['Motion (ROM)', 'It's'], y=1)]", "A", {"x": "['Motion (ROM)', 'It's']", "y": "1"}),
    ("[A(t=2034-01-01 10:00:00, p=10:00 AM)]", "A", {"t": "2034-01-01 10:00:00", "p": "10:00 AM"}),
    ("[A(id=<the id>, x=-74.0060)]", "A", {"id": "<the id>", "x": "-74.0060"}),
    ("[A(x='1'), B(y='2')]", "A", {"x": "1"}),
    ("API-Request: [A(x='1')]->[{'a': 'b'}]\nAI: Done.\nAPI-Request: [B(y='2')]", "A", {"x": "1"}),
    ("[A(x='1')] [B(y='2')]", "A", {"x": "1"}),
    ("'[A(x='1')]'", "A", {"x": "1"}),
    ("note [B(x='0')] API-Request: [A(x='1')]", "A", {"x": "1"}),
    ("[A(x='cafe\u0301')]", "A", {"x": "caf\u00e9"}),
    ("[A(x='బోల్ట్\u200cల')]", "A", {"x": "బోల్ట్\u200cల"}),
    ("[A(x='東京', y='ถนน')]", "A", {"x": "東京", "y": "ถนน"}),
]

FORGIVEN = [
    ("API-Request： [A（x='1'，y='2'）]", "A", {"x": "1", "y": "2"}),
    ("API-Request: ［A（x＝'1'， y＝'2'）］", "A", {"x": "1", "y": "2"}),
    ("API-Request: [A(x=“1”, y=‘2’)]", "A", {"x": "1", "y": "2"}),
    ("API-Request: [A(x=‘it’s’, y=‘2’)]", "A", {"x": "it’s", "y": "2"}),
    ("API-Request: [A(x='John’s', y='2')]", "A", {"x": "John’s", "y": "2"}),
    ("API-Request: [A(x='the dogs’', y='2')]", "A", {"x": "the dogs’", "y": "2"}),
    ("API-Request: [A(x=『1』、y=「2」)]", "A", {"x": "1", "y": "2"}),
    ("API-Request: [A(x=«1», y=„2“)]", "A", {"x": "1", "y": "2"}),
    (
        "\u200bAPI-Request:\u200b \u200b[\u200bA\u200b(\u200bx\u200b=\u200b'1'\u200b, "
        "\u200b y\u200b=\u200b'2'\u200b)\u200b]\u200b",
        "A",
        {"x": "1", "y": "2"},
    ),
    ("API-Request: [A(x=\u200b1\u200b, y=2\u200b)]", "A", {"x": "1", "y": "2"}),
    ("API-Request: [A(x='a\u200bb')]", "A", {"x": "a\u200bb"}),
    ("API-Request: [A(x='1，2', y='（3）')]", "A", {"x": "1，2", "y": "（3）"}),
    ("API-Request: [A(x=１，y=２)]", "A", {"x": "１", "y": "２"}),
    ("API-Request: A（x='1'）", "A", {"x": "1"}),
    ("[A(x='1’)]", "A", {"x": "1"}),
    ('[A(x=“1")]', "A", {"x": "1"}),
    ("[A(x=＇1＇，y=＂2＂)]", "A", {"x": "1", "y": "2"}),
    ("\ufeffAPI-Request: [A(x='1')]", "A", {"x": "1"}),
    ("\u202aAPI-Request:\u202c [A(x='1')]\u200f", "A", {"x": "1"}),
    ("【A（x='1'）】", "A", {"x": "1"}),
    ("API-Request：[A()]", "A", {}),
    ("API-Request: [A（）]", "A", {}),
    ("API-Request: “[A(x='1')]”", "A", {"x": "1"}),
    ("[A(x=['a', 'b'], y='1')]", "A", {"x": "['a', 'b']", "y": "1"}),
    ("[A（x='['甲'，'乙']'，y='1'）]", "A", {"x": "['甲'，'乙']", "y": "1"}),
    ("API-Request: [A(x='1', y='2',)]", "A", {"x": "1", "y": "2"}),
    ("API-Request: [A(\n  x='1',\n  y='2',\n)]", "A", {"x": "1", "y": "2"}),
    ("API-Request: [A(x=1, y=2, )]", "A", {"x": "1", "y": "2"}),
    ("API-Request: [A(x='1'),]", "A", {"x": "1"}),
    ("API-Request: [A(x='1'); B(y='2')]", "A", {"x": "1"}),
    ("API-Request: [A(x='1')\nB(y='2')]", "A", {"x": "1"}),
    ("API-Request:\n```python\n[A(x='1')]\n```", "A", {"x": "1"}),
    ("API-Request: ```json\nA(x='1')\n```", "A", {"x": "1"}),
    ("API-Request: [`A(x='1')`]", "A", {"x": "1"}),
    ("API-Request: A(x='1')<|im_end|>", "A", {"x": "1"}),
    ("API-Request: A(x='1')</s>", "A", {"x": "1"}),
    ("API-Request: A(x='1') # done", "A", {"x": "1"}),
    ("API-Request: [A-b(x='1')]", "A-b", {"x": "1"}),
    ("API-Request: [A(x=‹1›, y=»2«, z=〝3〟)]", "A", {"x": "1", "y": "2", "z": "3"}),
    ("API-Request: [A(x=”1”, y=’2’)]", "A", {"x": "1", "y": "2"}),
    ("API-Request: [A(x=’90s, y=2)]", "A", {"x": "’90s", "y": "2"}),
    ("API-Request: [A(x=«\u00a01\u00a0», y='2')]", "A", {"x": "1", "y": "2"}),
    ("[A(x=東京（駅）, y=1)]", "A", {"x": "東京（駅）", "y": "1"}),
    ("[A(x=[\u200b'a', 'b'\u200b], y=1)]", "A", {"x": "[\u200b'a', 'b'\u200b]", "y": "1"}),
]

NOT_PARSED = [
    "",
    "I do not know.",
    "API-Request:",
    "API-Request: []",
    "API-Request: None\n[A(x='1')]",
    "[A('1')]",
    "[ApiName(key1='value1', key2='value2', ...)]",
    "[A(x='1'",
    "[A(x='1",
    "[A(x='1')",
    "[A(x=1",
    "[A(x=",
    "[A(",
    "[A",
    "A(x='1')",
    "[A(x='1', x='2')]",
    "[text](url)",
    "API-Request: [A(x='1' y='2'",
]

SAME = [
    ("[A(x='1', y='2')]", "[A(y='2', x='1')]", True),
    ("[A(x='1')]", "[A(x=1)]", True),
    ("[A(x='1')]", '[A(x="1")]', True),
    ("[A(x='1')]", "[A(x='1.0')]", False),
    ("[A(x='1')]", "[A(x='1 ')]", False),
    ("[A(x='a')]", "[A(x='A')]", False),
    ("[A(x='1')]", "[B(x='1')]", False),
    ("[A(x='1')]", "[a(x='1')]", False),
    ("[A(x='1')]", "[A(y='1')]", False),
    ("[A(x='1')]", "[A(x='1', y='2')]", False),
    ("[A(x='1', y='2')]", "[A(x='1')]", False),
    ("[A(x='1', '2')]", "[A(x='1')]", False),
    ("[A()]", "[A()]", True),
    ("[A(x='['a', 'b']')]", '[A(x=["a","b"])]', True),
    ("[A(x='['a', 'b']')]", "[A(x=['a', 'b'])]", True),
    ("[A(x='['a', 'b']')]", "[A(x='['b', 'a']')]", False),
    ("[A(x='['a', 'b']')]", "[A(x='['a']')]", False),
    ("[A(x='['a']')]", "[A(x='a')]", False),
    ("[A(x='{'a': 1, 'b': 2}')]", "[A(x={'b': 2, 'a': 1})]", True),
    ("[A(x='{'a': 1}')]", "[A(x={'a': 2})]", False),
    ("[A(x=[1, 2.0])]", "[A(x=[1.0,2])]", True),
    ("[A(x=['1'])]", "[A(x=[1])]", False),
    ("[A(x=[True])]", "[A(x=[true])]", True),
    ("[A(x=[True])]", "[A(x=[1])]", False),
    ("[A(x=[a, b])]", "[A(x=['a', 'b'])]", True),
    ("[A(x=[])]", "[A(x='[ ]')]", True),
    ("[A(x=[[1], {'a': [2]}])]", '[A(x=[ [1],{"a":[2]} ])]', True),
    ("[A(x='(1, 2)')]", "[A(x='(1,2)')]", False),
    ("[A(x='cafe\u0301')]", "[A(x='caf\u00e9')]", True),
    ("[A(x=[“a”, “b”])]", "[A(x=['a', 'b'])]", True),
    ("[A(x=[‘it’s’，‘b’])]", "[A(x=['it’s', 'b'])]", True),
    ('[A(x=\'["a"，"b"]\')]', "[A(x=['a', 'b'])]", True),
    ("[A(x={“a”：“b，c”})]", "[A(x={'a': 'b，c'})]", True),
    ("[A(x={“a”：“b，c”})]", "[A(x={'a': 'b,c'})]", False),
    ("[A(x=［'a', 'b'］)]", "[A(x=['a', 'b'])]", True),
    ("[A(x=[1，2])]", "[A(x=[1, 2])]", True),
    ("[A(x=[\u200b'a'\u200b, 'b'\u200b])]", "[A(x=['a', 'b'])]", True),
    ("[A(x=['a\u200b', 'b'])]", "[A(x=['a', 'b'])]", False),
    ("[A(x=['a', 'b',])]", "[A(x=['a', 'b'])]", True),
    ("[A(x=[007])]", "[A(x=[7])]", False),
    ("[A(x=[৭])]", "[A(x=[7])]", False),
]


@pytest.mark.parametrize(("text", "name", "args"), PARSED)
def test_a_call_is_found_in_what_models_write(text: str, name: str, args: dict[str, str]) -> None:
    assert parse_call(text) == Call(name, args)


@pytest.mark.parametrize(("text", "name", "args"), FORGIVEN)
def test_full_width_marks_typographic_quotes_and_unseen_marks_are_forgiven_around_values(
    text: str, name: str, args: dict[str, str]
) -> None:
    assert parse_call(text) == Call(name, args)
    if "Request" in text:
        assert parse_call(API_CALLING.stop(text + "\nAPI-Request: [B(x='9')]")) == Call(name, args)


def test_values_stay_exact() -> None:
    gold = Call("A", {"x": "1,2", "y": "it's"})
    assert not calls_match(parse_call("[A(x='1，2', y='it's')]"), gold)
    assert not calls_match(parse_call("[A(x='１,2', y='it's')]"), gold)
    assert not calls_match(parse_call("[A(x='1,2', y='it’s')]"), gold)
    assert not calls_match(parse_call("[A(x='1,2\u200b', y='it's')]"), gold)
    assert calls_match(parse_call("［A（x＝“1,2”，y＝‘it's’）］"), gold)


@pytest.mark.parametrize("text", NOT_PARSED)
def test_truncated_positional_and_missing_calls_are_none(text: str) -> None:
    assert parse_call(text) is None


@pytest.mark.parametrize(("predicted", "gold", "expected"), SAME)
def test_calls_match_in_name_keys_and_values(predicted: str, gold: str, expected: bool) -> None:
    assert calls_match(parse_call(predicted), parse_call(gold)) is expected
    assert calls_match(parse_call(gold), parse_call(predicted)) is expected
    assert API_CALLING.is_correct(predicted, gold, "en") is expected


def test_nothing_matches_nothing() -> None:
    assert not calls_match(None, None)
    assert not calls_match(None, Call("A", {}))


def test_stopping_cuts_after_the_first_whole_call() -> None:
    assert API_CALLING.stop("API-Request: [A(x='1')]->ok\nUser: B?") == "API-Request: [A(x='1')]"
    assert API_CALLING.stop("API-Request: [A(x=") == "API-Request: [A(x="


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("<think>API-Request: [B(x='1')]</think>\nAPI-Request: [A(x='1')]", "A"),
        ("<think>Maybe [B(x='1')]?</think>\n\n[A(x='1')]", "A"),
        ("<think>API-Request: [B()]</think>[C(x='1')]\nAPI-Request: A(x='1')", "A"),
        ("<think>API-Request: [A(x='1')]", "A"),
        ("<think>API-Request: [A(x='1')]</think>", None),
        ("API-Request: [A(x='1')]\n<think>x</think>\nAPI-Request: [B(x='1')]", "A"),
    ],
)
def test_what_a_model_thinks_before_its_answer_is_no_request(text: str, name: str | None) -> None:
    call = parse_call(text)
    assert (call and call.name) == name
    for end in range(len(text)):  # wherever the text is looked at while it is generated
        stopped = API_CALLING.stop(text[:end])
        assert stopped == text[:end] or parse_call(stopped) == call


def test_where_a_text_is_looked_at_changes_no_verdict() -> None:
    text = "[A(x='1')]\nUser: B?\nAPI-Request: [B(y='2')]->ok\n"
    assert API_CALLING.stop(text[: text.index("API")]) == text[: text.index("API")]
    assert API_CALLING.stop(text).endswith("[B(y='2')]")
    assert parse_call(API_CALLING.stop(text)) == parse_call(text) == Call("B", {"y": "2"})


@pytest.mark.parametrize("quote", ["'", '"', "' ", "'.", "`"])
def test_quotes_around_a_call_are_no_part_of_its_last_value(quote: str) -> None:
    text = f"API-Request: [A(x='v')]{quote}"
    assert parse_call(text) == Call("A", {"x": "v"})
    assert parse_call(f"{text}\nUser: it's \"B\"\nAPI-Request: [B(y='2')]") == Call("A", {"x": "v"})


# Properties

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
pieces = st.sampled_from(
    [
        "’",
        "”",
        "，",
        "）",
        "］",
        "＝",
        "’)]",
        "'，b=",
        "'",
        '"',
        "\\",
        ",",
        ")",
        "]",
        "[",
        "(",
        "{",
        "}",
        "=",
        " ",
        "b=",
        "')]",
        "', b='",
        "a",
        "é",
        "\n",
        "->",
    ]
)
values = st.one_of(st.text(max_size=12), st.lists(pieces, max_size=10).map("".join))


@given(names, st.dictionaries(names, values, max_size=4))
def test_what_is_serialised_parses_to_the_same_call(name: str, args: dict[str, str]) -> None:
    call = Call(name, args)
    parsed = parse_call(serialise(call))
    assert parsed is not None
    assert calls_match(parsed, call)
    assert serialise(parsed) == serialise(parse_call(serialise(parsed)) or call)


@given(names, st.dictionaries(names, values, max_size=3), st.text(max_size=40))
def test_no_proper_prefix_matches(name: str, args: dict[str, str], _: str) -> None:
    call = Call(name, args)
    text = serialise(call)
    assert not any(calls_match(parse_call(text[:end]), call) for end in range(len(text)))


@given(
    st.one_of(st.text(), st.lists(st.one_of(pieces, st.just("API-Request:"), st.just("[A("))).map("".join))
)
def test_no_text_makes_it_raise_and_stopping_changes_no_call(text: str) -> None:
    call = parse_call(text)
    assert parse_call(API_CALLING.stop(text)) == call
    API_CALLING.is_correct(text, text, "en")
    calls_match(Call("A", {"x": text}), Call("A", {"x": text + " "}))


@given(
    st.recursive(
        st.one_of(st.integers(), st.text("ab c", min_size=1)),
        lambda x: st.lists(x) | st.dictionaries(st.text("xyz", min_size=1), x),
    )
)
def test_structures_match_however_they_are_written(value: object) -> None:
    first, second = Call("A", {"x": repr(value)}), Call("A", {"x": json.dumps(value, indent=1)})
    assert calls_match(first, second) or not isinstance(value, list | dict)


@pytest.mark.parametrize(
    "piece", ["'", "[", "[A(", "(", "x='", ", a=", "', ", ")", "{'a': ", " ", "\\", "API-Request: ", "'1', "]
)
def test_long_texts_take_little_time(piece: str) -> None:
    text = piece * (60_000 // len(piece))
    start_s = time.process_time()
    for whole in (
        text,
        f"[A(x='{text}",
        f"[A(x={text}",
        f"[A(x='{text}')]",
        f"[A({text}",
        f"API-Request: {text}",
    ):
        parse_call(whole)
    calls_match(Call("A", {"x": "[" + text}), Call("A", {"x": "[ " + text}))
    assert time.process_time() - start_s < 5


# Real data


@pytest.mark.parametrize(
    ("name", "num_rows", "num_as_gold"),
    [("level-1-api.json", 399, 399), ("level-2-api.json", 135, 135), ("lv3-api-train.json", 907, 726)],
)
def test_every_gold_call_of_api_bank_parses(
    name: str, num_rows: int, num_as_gold: int, public_data: Path
) -> None:
    rows = json.loads((public_data / "api-bank" / name).read_text())
    golds = [row.get("expected_output") or row["output"] for row in rows]
    calls = [parse_call(gold) for gold in golds]
    assert len(golds) == num_rows
    assert None not in calls
    written = [serialise(call) for call in calls if call]
    assert (
        sum(map(str.__eq__, written, golds)) == num_as_gold
    )  # level 3 has unquoted and double-quoted values
    for gold, call, text in zip(golds, calls, written, strict=True):
        run_on = f"{gold}->{{'a': 1}}\nAI: Done.\nUser: Next\nGenerate API Request:\nAPI-Request: [B(x='2')]"
        assert calls_match(parse_call(text), call)
        assert API_CALLING.is_correct(run_on, gold, "en")


def test_no_proper_prefix_of_a_gold_call_matches(public_data: Path) -> None:
    for row in json.loads((public_data / "api-bank" / "level-1-api.json").read_text())[::5]:
        gold = row["expected_output"]
        assert not any(API_CALLING.is_correct(gold[:end], gold, "en") for end in range(len(gold)))

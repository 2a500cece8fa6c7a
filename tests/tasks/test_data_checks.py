"""Checking data: each problem is found where it is, and nothing is found where there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UserError
from orchestrator.tasks import api_calling, dataset, importing
from orchestrator.tasks.checking import CheckReport, check
from orchestrator.tasks.importing import Choice
from orchestrator.tasks.sources import open_source

Rows = Mapping[str, Mapping[str, list[dict[str, Any]]]]


def row(id_: object, question: str, gold: str = "7", **more: str) -> dict[str, Any]:
    return {"id": str(id_), "question": question, "answer": "", "gold": gold, **more}


def folder(path: Path, rows: Rows) -> Path:
    for split, languages in rows.items():
        (path / split).mkdir(parents=True)
        for language, lines in languages.items():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (path / split / f"{language}.jsonl").write_text(text)
    return path


def good() -> dict[str, dict[str, list[dict[str, Any]]]]:
    return {
        split: {
            code: [row(f"{split}-{n}", f"{split} {code} {n}?") for n in range(4)] for code in ("en", "es")
        }
        for split in ("train", "validation", "test")
    }


def kinds(report: CheckReport) -> set[tuple[str, str, str]]:
    return {(problem.kind, problem.split, problem.language) for problem in report.problems}


def test_good_data_has_no_problem(tmp_path: Path) -> None:
    report = check(folder(tmp_path, good()))
    assert report.problems == () and report.task == "math"
    assert [(one.split, one.num_parallel) for one in report.splits] == [
        ("train", 4),
        ("validation", 4),
        ("test", 4),
    ]
    assert {one.language for one in report.lengths} == {"en", "es"}


def spoil(name: str) -> tuple[dict[str, dict[str, list[dict[str, Any]]]], tuple[str, str, str]]:
    rows = good()
    train = rows["train"]
    match name:
        case "missing language":
            del rows["validation"]["es"]
            return rows, ("missing-language", "validation", "es")
        case "misaligned":
            train["es"].pop(2)
            return rows, ("misaligned", "train", "es")
        case "duplicate id":
            train["es"].append(row("train-0", "new?"))
            return rows, ("duplicate-id", "train", "es")
        case "duplicate text":
            train["en"][1]["question"] = train["en"][0]["question"]
            return rows, ("duplicate-text", "train", "en")
        case "gold":
            train["es"][0]["gold"] = "siete"
            return rows, ("unusable", "train", "es")
        case "golds differ":
            train["es"][0]["gold"] = "8"
            return rows, ("gold-differs", "train", "es")
        case "overlapping ids":
            rows["validation"]["en"][0]["id"] = rows["validation"]["es"][0]["id"] = "train-0"
            return rows, ("overlap-id", "train+validation", "")
        case "overlapping texts":
            rows["test"]["es"][3]["question"] = "TRAIN — es, 2"
            return rows, ("overlap-text", "train+test", "es")
        case "control character":
            train["en"][0]["question"] += "\x00"
            return rows, ("control-character", "train", "en")
        case _:
            raise AssertionError(name)


@pytest.mark.parametrize(
    "name",
    [
        "missing language",
        "misaligned",
        "duplicate id",
        "duplicate text",
        "gold",
        "golds differ",
        "overlapping ids",
        "overlapping texts",
        "control character",
    ],
)
def test_a_problem_is_found_and_no_other(name: str, tmp_path: Path) -> None:
    rows, expected = spoil(name)
    assert kinds(check(folder(tmp_path, rows))) == {expected}


def imported(path: Path) -> Path:
    source = open_source(folder(path / "raw", good()), "math")
    built = importing.build("math", source, None, Choice())
    dataset.write(path / "set", built.info, built.rows, verify=importing.verify)
    return path / "set"


def test_rows_that_are_normalised_when_they_are_read_are_counted(tmp_path: Path) -> None:
    rows = good()
    assert not any("NFC" in note for note in check(folder(tmp_path / "plain", rows)).notes)
    for code, number in (("en", 0), ("es", 1), ("es", 2)):
        rows["train"][code][number]["question"] += " cafe\u0301?"
    report = check(folder(tmp_path / "marked", rows))
    assert "3 rows not in NFC, to be normalised when read" in report.notes
    assert not any(problem.kind == "not-nfc" for problem in report.problems)


def test_a_data_set_that_was_changed_is_told(tmp_path: Path) -> None:
    path = imported(tmp_path)
    assert check(path).problems == ()
    file = path / "train" / "es.jsonl"
    text = file.read_text()
    file.write_text(text.replace("train es 1?", "cafe\u0301?"))
    assert kinds(check(path)) == {("changed", "", ""), ("not-nfc", "train", "es")}
    file.write_text(text.splitlines()[0] + "\n")
    assert {("changed", "", ""), ("other-ids", "train", "es"), ("misaligned", "train", "es")} == kinds(
        check(path)
    )
    file.unlink()
    assert {("changed", "", ""), ("missing-language", "train", "es")} == kinds(check(path))


def test_joiners_and_combined_letters_are_no_problem(tmp_path: Path) -> None:
    rows = good()
    rows["train"]["en"][0]["question"] = "బోల్ట్\u200cల caf\u00e9 \u2028 x\ty\n"
    assert check(folder(tmp_path, rows)).problems == ()


def test_items_that_are_too_long_are_counted_for_each_tokenizer(tmp_path: Path) -> None:
    path = folder(tmp_path, good())
    words = {
        "words": lambda items: [len(item.prompt.split()) for item in items],
        "none": lambda items: [1] * len(items),
    }
    found = check(path, measures=words, max_length_tokens=8)
    lengths = {(one.tokenizer, one.split, one.language): one for one in found.lengths}
    english = lengths["words", "train", "en"]
    assert (english.mean, english.p95, english.longest, english.num_over_long) == (10, 10, 10, 4)
    assert {problem.kind for problem in found.problems} == {"over-long"}
    assert sum(one.num_over_long for one in found.lengths) == sum(problem.num for problem in found.problems)
    assert check(path, measures=words, max_length_tokens=10).problems == ()


def test_items_that_were_not_translated_are_counted(tmp_path: Path) -> None:
    rows = good()
    assert check(folder(tmp_path / "a", rows)).notes == ()
    rows["train"]["es"] = [*rows["train"]["en"][:1], *rows["train"]["es"][1:]]
    (note,) = check(folder(tmp_path / "b", rows)).notes
    assert note == "1 train item of es word for word as in en: not translated?"


def test_languages_that_are_asked_for_must_be_in_every_split(tmp_path: Path) -> None:
    path = folder(tmp_path, good())
    assert kinds(check(path, languages=["en", "sw"])) == {
        ("missing-language", split, "sw") for split in ("train", "validation", "test")
    }


def test_what_cannot_be_read_is_the_user_s_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        check(tmp_path / "nowhere")
    with pytest.raises(UserError, match="looks like the data of no task"):
        check(tmp_path)


ENGLISH = {
    "id": "1",
    "instruction": 'Generate.\n{"name": "AddMeeting", "description": "Adds.", "input_parameters": {'
    '"topic": {"type": "str", "description": "The topic."}, '
    '"kind": {"type": "str", "description": "One of: \'online\', \'in person\'."}, '
    '"who": {"type": "list", "description": "Names."}, '
    '"token": {"type": "str", "description": "Token."}}}',
    "input": "User: Plan a talk about the sea, in person, with Ann and Bo, token a1b2.\nAI: Sure.\n"
    "Generate API Request:\n",
    "output": "API-Request: [AddMeeting"
    "(topic='the sea', kind='in person', who='['Ann', 'Bo']', token='a1b2')]",
}
SPANISH = {
    "id": "1",
    "instruction": ENGLISH["instruction"].replace("Adds.", "Añade.").replace("The topic.", "El tema."),
    "input": "User: Planea una charla sobre el mar, en persona, con Ann y Bo, token a1b2.\nAI: Claro.\n"
    "Generate API Request:\n",
    "output": "API-Request: [AddMeeting"
    "(topic='el mar', kind='in person', who='['Ann', 'Bo']', token='a1b2')]",
}


def test_a_faithful_translation_keeps_what_must_be_kept() -> None:
    assert "in person" not in SPANISH["input"]
    in_person = {**SPANISH, "input": SPANISH["input"].replace("en persona", "in person")}
    assert list(api_calling.problems(ENGLISH, ENGLISH)) == []
    assert list(api_calling.problems(ENGLISH, in_person)) == []


@pytest.mark.parametrize(
    ("key", "old", "new", "message"),
    [
        ("input", "AI: Claro.\n", "", "other turns or speakers"),
        ("input", "AI: Claro", "IA: Claro", "other turns or speakers"),
        ("instruction", '"topic"', '"tema"', "the API descriptions differ"),
        ("instruction", '"type": "list"', '"type": "lista"', "the API descriptions differ"),
        ("output", "API-Request: [AddMeeting(", "llama AddMeeting", "the gold is no call"),
        ("output", "AddMeeting", "AddTalk", "the gold calls AddTalk, in English AddMeeting"),
        ("output", "topic=", "tema=", "the gold's keys, or their order, differ"),
        ("output", "kind='in person'", "kind='en persona'", "the protected value of kind was changed"),
        ("output", "a1b2", "a1b3", "the protected value of token was changed"),
        ("output", "['Ann', 'Bo']", "['Ann y Bo']", "the list or dict in who has another shape"),
        ("output", "el mar", "la mar", "the value of topic is in the dialogue word for word in English only"),
    ],
)
def test_what_a_translation_changed_is_told(key: str, old: str, new: str, message: str) -> None:
    base = {**SPANISH, "input": SPANISH["input"].replace("en persona", "in person")}
    assert old in base[key]
    changed = {**base, key: base[key].replace(old, new)}
    assert any(message in problem for problem in api_calling.problems(ENGLISH, changed))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("date", "2023-03-25", True),
        ("time", "10:00:00", True),
        ("amount", "12.5", True),
        ("user_id", "JohnDoe", True),
        ("to", "ann@example.com", True),
        ("page", "https://example.com/a", True),
        ("appointment", "abc123", True),
        ("path", "notes.txt", True),
        ("flag", "True", True),
        ("topic", "the sea", False),
        ("city", "New York", False),
        ("content", "Meet at 10 with Ann", False),
        ("video", "cats and dogs", False),
    ],
)
def test_values_that_must_not_be_translated_are_known(key: str, value: str, expected: bool) -> None:
    assert api_calling.is_protected(key, value) is expected


def test_the_english_rows_are_faithful_to_themselves(public_data: Path) -> None:
    for name in ("level-1-api.json", "level-2-api.json", "lv3-api-train.json"):
        source = open_source(public_data / "api-bank" / name, "api_calling")
        found = {
            text for raw in source.rows() for text in api_calling.problems(source.line(raw), source.line(raw))
        }
        assert found == set(), name


def test_the_public_files_have_the_problems_that_they_are_known_for(public_data: Path) -> None:
    assert check(public_data / "mgsm").problems == ()
    assert check(public_data / "gsm8k").problems == ()
    api = check(public_data / "api-bank" / "level-1-api.json")
    assert [(problem.kind, problem.num) for problem in api.problems] == [("duplicate-text", 10)]
    symbolic = check(public_data / "gsm-symbolic")
    assert {problem.kind for problem in symbolic.problems} == {"unusable", "gold-differs"}
    (unusable,) = [problem for problem in symbolic.problems if problem.kind == "unusable"]
    assert (unusable.language, unusable.num) == ("es", 5)

"""Reading real files: what becomes of a row, which ids a split takes, and what is said about bad folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UserError
from orchestrator.tasks import importing
from orchestrator.tasks.api_calling import API_CALLING
from orchestrator.tasks.base import LANGUAGES
from orchestrator.tasks.importing import Choice
from orchestrator.tasks.math import MATH
from orchestrator.tasks.sources import open_source


def write_lines(folder: Path, language: str, ids: Sequence[object], *, gold: str = "#### 7") -> None:
    rows = [
        {"id": id_, "question": f"{language} {id_}?", "answer": f"3 + 4 = <<3+4=7>>7\n{gold}"} for id_ in ids
    ]
    (folder / f"{language}.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )


def test_a_worked_problem_becomes_an_item(tmp_path: Path) -> None:
    write_lines(tmp_path, "es", [11])
    (item,) = MATH.read(tmp_path, "train", "es")
    assert item.id == "11"
    assert item.prompt == "Question:\nes 11?\nAnswer:\nPensemos paso a paso.\n"
    assert item.response == "3 + 4 = 7\nLa respuesta es 7."
    assert item.gold == "7"


def test_without_ids_the_line_number_is_the_id(tmp_path: Path) -> None:
    rows = '{"question": "a", "answer": "b #### 1,000"}\n\n{"question": "c", "answer": "d #### -2"}\n'
    (tmp_path / "train.jsonl").write_text(rows)
    items = MATH.read(tmp_path, "train", "en")
    assert [(item.id, item.gold) for item in items] == [("1", "1,000"), ("3", "-2")]


def test_no_translation_of_a_validation_item_is_trained_on(tmp_path: Path) -> None:
    write_lines(tmp_path, "en", range(40))
    write_lines(tmp_path, "sw", reversed(range(5, 45)))
    ids = {
        (split, language): [
            item.id
            for item in MATH.read(
                tmp_path, split, language, languages=["en", "sw"], num_validation=10, seed=3
            )
        ]
        for split in ("train", "validation")
        for language in ("en", "sw")
    }
    assert ids["train", "en"] == ids["train", "sw"]
    assert ids["validation", "en"] == ids["validation", "sw"]
    assert len(ids["validation", "en"]) == 10
    assert sorted(map(int, ids["train", "en"] + ids["validation", "en"])) == list(range(5, 40))
    assert ids["train", "en"] == sorted(ids["train", "en"], key=int)


def test_the_seed_chooses_and_a_smaller_number_is_part_of_a_larger(tmp_path: Path) -> None:
    write_lines(tmp_path, "en", range(100))
    few, many, other = (
        {item.id for item in MATH.read(tmp_path, "train", "en", num_items=num, num_validation=20, seed=seed)}
        for num, seed in ((10, 0), (50, 0), (10, 1))
    )
    assert few < many
    assert len(few) == 10
    assert few != other


def test_a_row_without_a_number_is_dropped_in_every_language(tmp_path: Path) -> None:
    write_lines(tmp_path, "en", [1, 2])
    write_lines(tmp_path, "es", [1])
    with (tmp_path / "es.jsonl").open("a") as stream:
        stream.write(json.dumps({"id": 2, "question": "q", "answer": "a #### {n-int(n*frac)}"}) + "\n")
    assert [item.id for item in MATH.read(tmp_path, "train", "en", languages=["en", "es"])] == ["1"]
    assert [item.id for item in MATH.read(tmp_path, "train", "en")] == ["1", "2"]


def test_texts_are_in_nfc_and_keep_their_joiners(tmp_path: Path) -> None:
    (tmp_path / "mgsm_te.tsv").write_text("  బోల్ట్\u200cల cafe\u0301 \u2028 x\t18\r\n", encoding="utf-8")
    (item,) = MATH.read(tmp_path, "test", "te")
    assert "బోల్ట్\u200cల caf\u00e9 \u2028 x" in item.prompt
    assert item.gold == "18"
    assert item.response == "సమాధానం 18."


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("en.jsonl", "{", "not JSON(.|\n)*en.jsonl:1"),
        ("en.jsonl", '{"question": "a", "answer": "b #### 1"}\n[]', "not a JSON object(.|\n)*en.jsonl:2"),
        ("en.jsonl", '{"question": "a"}', "no text 'answer'(.|\n)*en.jsonl:1"),
        ("en.jsonl", '{"id": 1, "question": "a", "answer": "#### 1"}\n' * 2, "the id '1' comes twice"),
        ("en.jsonl", b"\xff\xfe", "not UTF-8"),
        (
            "en.jsonl",
            '{"question": "a", "answer": ' + "9" * 5000 + "}",
            "not JSON: (.|\n)*4300(.|\n)*en.jsonl:1",
        ),
        ("en.jsonl", "[" + "9" * 5000 + "]", "not a JSON array of rows: (.|\n)*4300"),
        (
            "en.jsonl",
            '[{"question": "a", "answer": "1"}]\n[{"question": "b"}]',
            "more after its end: '.{2}\"quest",
        ),
    ],
)
def test_a_bad_training_file_is_the_user_s_mistake(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        MATH.read(tmp_path, "train", "en")


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"answer": None, "answer_number": 18, "equation_solution": None}, "18"),
        ({"answer": None, "answer_number": "1,800"}, "1,800"),
        ({"answer": "Step-by-Step Answer: 9 * 2 = 18. The answer is 18.", "answer_number": 18}, "18"),
        ({"answer_number": 18.0}, "18"),
        ({"answer_number": 0.5}, "0.5"),
        ({"answer": "", "gold": 18}, "18"),
        ({"answer": "9 * 2 = 18", "gold": 18}, "18"),
        ({"gold": 18}, "18"),
        ({"answer": "9 * 2 = 18\n#### 18."}, "18"),
        ({"answer": "18", "answer_number": float("inf")}, "18"),
        ({"answer": 18}, "18"),
        ({"answer": "18"}, "18"),
        ({"answer": "$1,800"}, "$1,800"),
        ({"answer": "9 * 2 = 18 <<9*2=18>>\n#### 18", "level": "hard"}, "18"),
        ({"answer": "Nine times two. The answer is 18. She has 3 hens."}, "18"),
    ],
)
def test_rows_say_their_gold_in_several_ways(row: dict[str, Any], gold: str, tmp_path: Path) -> None:
    (tmp_path / "en.jsonl").write_text(json.dumps({"question": "How many?", **row}) + "\n")
    (item,) = MATH.read(tmp_path, "test", "en")
    assert item.gold == gold and MATH.is_correct(item.response, gold, "en")
    built = importing.build("math", open_source(tmp_path / "en.jsonl", "math"), None, Choice())
    assert built.rows["train"]["en"][0]["gold"] == gold


@pytest.mark.parametrize(
    "content",
    [
        "How many?\t18\n\nTwo?\t2\n",
        "How many?\t18\t\t\n\nTwo?\t2\t\t\n",
        "\ufeffHow many?\t18\r\n\r\nTwo?\t2\r\n",
        '"How many?"\t"18"\n\n"Two?"\t"2"\n',
        '"How many?"\t18 \n\nTwo?\t"2"\t\n',
        "question\tanswer\nHow many?\t18\n\nTwo?\t2\n",
        "Question\tanswer_number\tequation_solution\nHow many?\t18\t9*2\n\nTwo?\t2\t\n",
        "question\tanswer\tanswer_number\nHow many?\t\t18\n\nTwo?\t\t2\n",
        "\tQuestion\tAnswer\tsource\n0\tHow many?\t18\tmgsm\n\n1\tTwo?\t2\tmgsm\n",
        "How many?\t18\r\rTwo?\t2\r",
    ],
)
def test_a_table_is_read_as_spreadsheets_write_it(content: str, tmp_path: Path) -> None:
    (tmp_path / "mgsm_en.tsv").write_text(content, encoding="utf-8", newline="")
    items = MATH.read(tmp_path, "test", "en")
    assert [(item.id, item.prompt.split("\n")[1], item.gold) for item in items] == [
        ("1", "How many?", "18"),
        ("3", "Two?", "2"),
    ]


def test_quotes_within_a_question_stay_and_a_quoted_one_may_hold_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "mgsm_en.tsv").write_text(
        '"Two" hens?\t2\n"A ""fine"" hen\nand another?"\t3\n"Four" and "five"\t9\nA 5" pipe\t5\n'
    )
    items = MATH.read(tmp_path, "test", "en")
    assert [item.prompt.partition("\nAnswer:")[0].removeprefix("Question:\n") for item in items] == [
        '"Two" hens?',
        'A "fine" hen\nand another?',
        '"Four" and "five"',
        'A 5" pipe',
    ]
    assert [item.id for item in items] == ["1", "2", "3", "4"]


def test_ids_are_the_same_as_number_and_text_and_an_empty_one_is_none(tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "18"}
    for language, ids in (("en", [7, 8.0, None]), ("es", ["8", "7", "3"])):
        text = "".join(json.dumps({"id": id_, **row}) + "\n" for id_ in ids)
        (tmp_path / f"{language}.jsonl").write_text(text)
    assert [item.id for item in MATH.read(tmp_path, "test", "es", languages=["en", "es"])] == ["3", "7", "8"]


@pytest.mark.parametrize("content", ["", "question\tanswer\n", "How many?\tmany\n"])
def test_a_file_without_a_usable_row_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "mgsm_en.tsv").write_text(content)
    with pytest.raises(UserError, match=r"no usable test item(.|\n)*mgsm_en\.tsv(.|\n)*usable: en 0"):
        MATH.read(tmp_path, "test", "en")


def test_rows_that_are_left_out_are_counted_by_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mgsm_en.tsv").write_text("a\t1\nb\tnone\nc\tmany, or 3 of 4\nd\t\n\t5\n")
    assert [item.id for item in MATH.read(tmp_path, "test", "en")] == ["1"]
    said = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert said == [
        "2 of 5 rows left out, such as 2: the answer ... is not one number",
        "1 of 5 rows left out, such as 4: there is no answer",
        "1 of 5 rows left out, such as 5: the question is empty",
    ]


def test_a_missing_folder_language_or_number_of_items_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder '.*nowhere'"):
        MATH.read(tmp_path / "nowhere", "train", "en")
    with pytest.raises(UserError, match=r"no train data in the language 'en'(.|\n)*there: no language"):
        MATH.read(tmp_path, "train", "en")
    write_lines(tmp_path, "en", range(5))
    with pytest.raises(UserError, match=r"in the language 'sw'(.|\n)*there: en(.|\n)*wanted: sw.jsonl"):
        MATH.read(tmp_path, "train", "en", languages=["en", "sw"])
    with pytest.raises(UserError, match=r"6 train items asked for(.|\n)*5 ids are usable"):
        MATH.read(tmp_path, "train", "en", num_items=6)
    with pytest.raises(UserError, match="6 set aside for validation"):
        MATH.read(tmp_path, "validation", "en", num_validation=6)
    with pytest.raises(UserError, match="unknown language 'xx'"):
        MATH.read(tmp_path, "train", "xx")
    (tmp_path / "mgsm_en.tsv").write_text("no tab here\n")
    with pytest.raises(UserError, match=r"no tab(.|\n)*mgsm_en.tsv:1"):
        MATH.read(tmp_path, "test", "en")


def test_translated_api_calls_are_read_by_the_dialogue_they_come_from(tmp_path: Path) -> None:
    row = {
        "file": "a.jsonl",
        "id": 2,
        "instruction": "\nInstruction.",
        "input": "User: Hola\nGenerate API Request: ",
        "expected_output": "API-Request: [A(x='1')]",
    }
    (tmp_path / "es.json").write_text(json.dumps([row, {**row, "id": 4, "expected_output": "none"}]))
    (item,) = API_CALLING.read(tmp_path, "train", "es")
    assert item.id == "a.jsonl#2"
    assert item.prompt == "Instruction.\nUser: Hola\nGenerate API Request:\n"
    assert item.response == item.gold == "API-Request: [A(x='1')]"
    (tmp_path / "es.json").write_text("{}")
    with pytest.raises(UserError, match="not a JSON array"):
        API_CALLING.read(tmp_path, "train", "es")


def test_the_public_files_are_read_whole(public_data: Path) -> None:
    assert MATH.languages_in(public_data / "mgsm", "test") == list(LANGUAGES)
    assert MATH.languages_in(public_data / "gsm-symbolic", "train") == list(LANGUAGES)
    assert MATH.languages_in(public_data / "gsm8k", "train") == ["en"]
    assert API_CALLING.languages_in(public_data / "api-bank", "test") == ["en"]
    assert API_CALLING.languages_in(public_data / "api-bank", "train") == []
    assert len(MATH.read(public_data / "gsm8k", "train", "en")) == 7473
    assert len(MATH.read(public_data / "gsm8k", "test", "en")) == 1319
    items = API_CALLING.read(public_data / "api-bank", "test", "en")
    assert len(items) == 399
    assert all(item.prompt.endswith("Generate API Request:\n") for item in items)


def test_the_parallel_files_give_every_language_the_same_ids(public_data: Path) -> None:
    languages = list(LANGUAGES)
    folder = public_data / "gsm-symbolic"
    ids = [
        [item.id for item in MATH.read(folder, "train", language, languages=languages, num_validation=10)]
        for language in languages
    ]
    assert all(others == ids[0] for others in ids)
    assert len(ids[0]) == 85  # of 100: five Spanish rows have a template for an answer, ten are validation

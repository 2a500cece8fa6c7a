"""Sources of data: how files are recognised, streamed and turned into lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UserError
from orchestrator.tasks import importing, math, sources
from orchestrator.tasks.base import LANGUAGES
from orchestrator.tasks.importing import Choice
from orchestrator.tasks.phrases import answer_sentence
from orchestrator.tasks.sources import open_source, stream

scalar = st.one_of(st.text(max_size=12), st.integers(), st.booleans(), st.none())
tree = st.recursive(
    scalar,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner)),
    max_leaves=6,
)


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), tree, max_size=4), max_size=12),
    piece=st.integers(1, 30),
    indent=st.sampled_from([None, 0, 2]),
    is_ascii=st.booleans(),
)
def test_an_array_is_streamed_as_json_reads_it_wherever_it_is_cut(
    rows: list[dict[str, Any]],
    piece: int,
    indent: int | None,
    is_ascii: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("array") / "rows.json"
    path.write_bytes(json.dumps(rows, indent=indent, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass"))
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    before, sources.PIECE_CHARS = sources.PIECE_CHARS, piece
    try:
        assert [row for _, row in stream(path)] == rows
    finally:
        sources.PIECE_CHARS = before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1}, {"a"', "not a JSON array of rows"),
        ('[{"a": 1}', "not a JSON array of rows"),
        ("[1]", "not a JSON object"),
        ('{"a": 1}\n{', r"not JSON(.|\n)*rows.json:2"),
        (b"\xff[]", "not UTF-8|not JSON"),
        ("", ""),
    ],
)
def test_a_file_that_is_cut_off_or_no_json_is_named(
    content: str | bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if not content:
        assert list(stream(path)) == []
        return
    with pytest.raises(UserError, match=message):
        list(stream(path))


def test_half_a_character_is_refused_where_it_stands(tmp_path: Path) -> None:
    row = r'{"id": "1", "question": "x\ud800y", "answer": "The answer is 2.", "gold": "2"}'
    (tmp_path / "en.jsonl").write_text(row + "\n")
    with pytest.raises(UserError, match=r"half a character(.|\n)*en\.jsonl:1"):
        imported(tmp_path)


def mcot_rows(num: int, languages: Sequence[str] = ("en", "es", "th"), **fields: str) -> list[dict[str, Any]]:
    return [
        {
            fields.get("place", "lang-id"): f"{language}-{n}" if "place" not in fields else language,
            fields.get("question", "question"): f"{language} {n}?",
            fields.get("answer", "answer"): f"1 + {n} = {n + 1}. " + answer_sentence(str(n + 1), language),
        }
        for n in range(num)
        for language in languages
    ]


def imported(path: Path, **numbers: int) -> importing.Built:
    return importing.build("math", open_source(path, "math"), None, Choice(**numbers))


def test_rows_that_say_which_item_they_translate_are_aligned_by_it(tmp_path: Path) -> None:
    rows = mcot_rows(30)
    path = tmp_path / "mcot-math.json"
    path.write_text(
        json.dumps([*rows[::-1], {"lang-id": "ko-1", "question": "q", "answer": "1"}], ensure_ascii=False)
    )
    built = imported(path, num_train=20, num_validation=5)
    assert built.info.origins["train"].note == "aligned by id"
    for split, info in built.info.splits.items():
        assert info.languages == ("en", "es", "th")
        for language, lines in built.rows[split].items():
            assert [line["question"] for line in lines] == [f"{language} {id_}?" for id_ in info.ids]
            assert [line["gold"] for line in lines] == [str(int(id_) + 1) for id_ in info.ids]
    first = built.rows["train"]["es"][0]
    assert first["answer"].endswith(
        f"La respuesta es {first['gold']}."
    )  # what is learnt is what was released


def test_the_same_rows_in_json_lines_and_parquet_make_the_same_data(tmp_path: Path) -> None:
    rows = mcot_rows(40)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    shards = tmp_path / "shards" / "data"
    shards.mkdir(parents=True)
    for number in range(2):
        table = pyarrow.Table.from_pylist(rows[number * 60 : (number + 1) * 60])
        pyarrow.parquet.write_table(table, shards / f"train-0000{number}.parquet")
    built = [
        imported(tmp_path / name, num_train=9, num_validation=3)
        for name in ("rows.jsonl", "rows.json", "shards")
    ]
    assert built[0].rows == built[1].rows == built[2].rows
    (tmp_path / "bad.parquet").write_text("none")
    with pytest.raises(UserError, match="not a Parquet file"):
        open_source(tmp_path / "bad.parquet", "math")


def test_rows_without_ids_are_aligned_by_place_when_their_answers_agree(tmp_path: Path) -> None:
    rows = mcot_rows(50, place="lang")
    rows[1]["answer"] = "La respuesta es 99."
    path = tmp_path / "mcot_math.json"
    path.write_text(json.dumps(rows))
    built = imported(path)
    assert "by place" in built.info.origins["train"].note
    assert built.info.left_out == {"train: answers differ between languages": 1}
    assert built.info.splits["train"].ids == tuple(map(str, range(1, 50)))
    shuffled = [row for row in rows if row["lang"] != "es"] + [row for row in rows if row["lang"] == "es"][
        ::-1
    ]
    path.write_text(json.dumps(shuffled))
    with pytest.raises(UserError, match=r"the rows have no ids, and by their place \d+ of 50 items"):
        imported(path)


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ({"lang-id": "bn-00017"}, ("bn", "00017")),
        ({"lang-id": "gsm-17-es"}, ("", "")),
        ({"lang-id": "17-es"}, ("es", "17")),
        ({"lang": "SW", "id": 4}, ("sw", "4")),
        ({"language": "fr", "idx": 0}, ("fr", "0")),
        ({"lang": "ko", "id": 4}, ("", "4")),
        ({"lang": "en", "id": None}, ("en", "")),
    ],
)
def test_language_and_item_are_found_under_the_known_names(
    row: dict[str, Any], place: tuple[str, str]
) -> None:
    assert math.place_of(row) == place


def test_a_question_within_the_prompt_is_taken_out_of_it() -> None:
    row = {
        "question": "Question:\nWhy\nme?\nAnswer:\nLet's think step by step.\n",
        "answer": "It is 3.50. The answer is 1,200.50.",
    }
    line = math.mcot_line_of(row, id_="1", language="en", where="")
    assert (line["question"], line["gold"]) == ("Why\nme?", "1200.5")


def test_folders_named_after_splits_say_the_split(tmp_path: Path) -> None:
    row = {"instruction": "I", "input": "User: a\n", "expected_output": "API-Request: [A(x='1')]"}
    for split, number in (("train", 3), ("validation", 2), ("test", 4)):
        (tmp_path / split).mkdir()
        for language in ("en", "es"):
            (tmp_path / split / f"{language}.json").write_text(json.dumps([row] * number))
    built = importing.build("api_calling", open_source(tmp_path, "api_calling"), None, Choice())
    assert {split: info.ids for split, info in built.info.splits.items()} == {
        "train": ("train-0", "train-1", "train-2"),
        "validation": ("validation-0", "validation-1"),
        "test": ("test-0", "test-1", "test-2", "test-3"),
    }


def test_a_separate_test_source_takes_the_place_of_the_sources_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("train.jsonl", "test.jsonl"):
            (tmp_path / name / file).write_text(
                json.dumps({"question": f"{name} {file}", "answer": "x #### 1"}) + "\n"
            )
    first, second = (open_source(tmp_path / name, "math") for name in ("a", "b"))
    built = importing.build("math", first, second, Choice())
    assert built.rows["train"]["en"][0]["question"] == "a train.jsonl"
    assert built.rows["test"]["en"][0]["question"] == "b test.jsonl"


@pytest.mark.parametrize("task", ["math", "api_calling"])
def test_what_nobody_knows_is_refused(task: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "other.json").write_text('[{"a": 1}]')
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match=f"is known as data of {task}") as error:
            open_source(path, task)
        assert error.value.where == ("it holds notes.txt, other.json" if path == tmp_path else "")


def test_a_pointer_of_git_lfs_is_no_data_and_named(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    for path in (tmp_path / "en.jsonl", tmp_path / "train.jsonl"):
        path.write_text(pointer)
    with pytest.raises(UserError, match="a git-lfs pointer") as error:
        importing.build("math", open_source(tmp_path, "math"), None, Choice())
    assert error.value.fix == "git lfs pull"


def test_the_public_files_are_recognised(public_data: Path) -> None:
    forms = {name: open_source(public_data / name, "math").form for name in ("mgsm", "gsm8k", "gsm-symbolic")}
    assert forms == {"mgsm": "mgsm", "gsm8k": "worked", "gsm-symbolic": "worked"}
    built = importing.build("math", open_source(public_data / "mgsm", "math"), None, Choice())
    assert set(built.rows) == {"test"} and set(built.rows["test"]) == set(LANGUAGES)
    files = {
        "level-1-api.json": ("test", 399),
        "level-2-api.json": ("test", 135),
        "lv3-api-train.json": ("train", 907),
    }
    for name, (split, number) in files.items():
        path = public_data / "api-bank" / name
        built = importing.build("api_calling", open_source(path, "api_calling"), None, Choice())
        assert {key: len(info.ids) for key, info in built.info.splits.items()} == {split: number}

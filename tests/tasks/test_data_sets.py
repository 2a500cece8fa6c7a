"""Data sets: made whole or not at all, split by id, known by their content, read as the stages read them."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import UserError
from orchestrator.tasks import dataset, importing
from orchestrator.tasks.api_calling import API_CALLING
from orchestrator.tasks.importing import Choice
from orchestrator.tasks.math import MATH
from orchestrator.tasks.sources import Raw, Source, open_source


def source(rows: Sequence[Mapping[str, object]], **more: bool) -> Source:
    """Rows of math in memory; `language`, `id` and `gold` are told, the rest is made of them."""

    def raw() -> list[Raw]:
        return [Raw(None, str(row["language"]), str(row["id"]), row, "here") for row in rows]

    def line(row: Raw) -> dict[str, str]:
        gold = str(row.row.get("gold", "7"))
        return {"id": row.id, "question": f"{row.language} {row.id}", "answer": f"so {gold}", "gold": gold}

    return Source("made", "made", (), lambda: iter(raw()), line, **more)


ALL = Choice()


def rows(ids: Sequence[object], languages: Sequence[str] = ("en", "sw")) -> list[dict[str, object]]:
    return [{"language": language, "id": id_} for language in languages for id_ in ids]


def made(out: Path, from_: Source, choice: Choice = ALL, *, force: bool = False) -> Path:
    built = importing.build("math", from_, None, choice)
    dataset.write(out, built.info, built.rows, force=force, verify=importing.verify)
    return out


@given(
    have=st.dictionaries(st.integers(0, 60), st.sets(st.sampled_from(["en", "sw", "te"])), min_size=20),
    num_validation=st.integers(0, 4),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_no_split_holds_an_id_that_a_language_lacks_or_another_split_has(
    have: dict[int, set[str]], num_validation: int, seed: int
) -> None:
    whole = {str(id_) for id_, languages in have.items() if len(languages) == 3}
    all_rows = [{"language": code, "id": id_} for id_, codes in have.items() for code in sorted(codes)]
    random.Random(seed).shuffle(all_rows)
    choice = Choice(languages=("en", "sw", "te"), num_train=3, num_validation=num_validation, seed=seed)
    if {code for codes in have.values() for code in codes} < {"en", "sw", "te"} or len(
        whole
    ) < 3 + num_validation:
        with pytest.raises(UserError):
            importing.build("math", source(all_rows), None, choice)
        return
    built = importing.build("math", source(all_rows), None, choice)
    ids = {split: set(info.ids) for split, info in built.info.splits.items()}
    assert len(ids["train"]) == 3 and len(ids.get("validation", ())) == num_validation
    assert not ids["train"] & ids.get("validation", set())
    assert ids["train"] | ids.get("validation", set()) <= whole
    for split, languages in built.rows.items():
        assert {tuple(line["id"] for line in lines) for lines in languages.values()} == {
            built.info.splits[split].ids
        }


def test_the_order_of_the_rows_does_not_change_which_ids_are_chosen() -> None:
    some = rows(range(300))
    choice = Choice(num_train=20, num_validation=5, seed=4)
    first = importing.build("math", source(some), None, choice).info
    assert importing.build("math", source(some[::-1]), None, choice).info == first
    assert importing.build("math", source(some), None, choice._replace(seed=5)).info != first


def test_items_of_no_use_are_replaced_by_the_next_of_the_seed() -> None:
    some = [{**row, "gold": "none" if int(str(row["id"])) % 3 else "7"} for row in rows(range(900))]
    built = importing.build("math", source(some), None, Choice(num_train=250, num_validation=40))
    ids = [int(id_) for split in built.info.splits.values() for id_ in split.ids]
    assert len(ids) == 290 and all(id_ % 3 == 0 for id_ in ids)
    assert built.info.left_out == {"train: not chosen": 10, "train: unusable in a language": 600}


def test_an_id_that_comes_twice_in_a_language_is_left_out() -> None:
    built = importing.build("math", source([*rows(range(5)), *rows([3], ["sw"])]), None, Choice())
    assert built.info.splits["train"].ids == ("0", "1", "2", "4")
    assert built.info.left_out == {"train: twice in a language": 1}


def test_too_few_items_and_a_language_that_is_not_there_are_refused() -> None:
    with pytest.raises(UserError, match=r"12 train items wanted, 5 of them to validate(.|\n)*10 are usable"):
        importing.build("math", source(rows(range(10))), None, Choice(num_train=7, num_validation=5))
    with pytest.raises(UserError, match=r"no train items in the language 'te'(.|\n)*there: en, sw"):
        importing.build("math", source(rows(range(10))), None, Choice(languages=("en", "te")))
    with pytest.raises(UserError, match="unknown language 'xx'"):
        importing.build("math", source(rows(range(10))), None, Choice(languages=("xx",)))


def test_writing_again_changes_nothing_and_other_content_needs_force(tmp_path: Path) -> None:
    out = made(tmp_path / "set", source(rows(range(9))))
    before = (out / dataset.FILE).stat().st_mtime_ns
    made(out, source(rows(range(9))))
    assert (out / dataset.FILE).stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another data set is in"):
        made(out, source(rows(range(8))))
    assert len(dataset.load(out).splits["train"].ids) == 9
    made(out, source(rows(range(8))), force=True)
    assert len(dataset.load(out).splits["train"].ids) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_nothing_but_a_data_set_is_ever_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="is there and is no data set"):
        made(tmp_path, source(rows(range(9))), force=True)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_a_damaged_set_is_written_again_only_by_force(tmp_path: Path) -> None:
    out = made(tmp_path / "set", source(rows(range(9))))
    (out / "train" / "en.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="another data set is in"):
        made(out, source(rows(range(9))))
    made(out, source(rows(range(9))), force=True)
    assert dataset.changes(out, dataset.load(out)) is None


def test_a_set_that_does_not_read_back_is_not_left_behind(tmp_path: Path) -> None:
    built = importing.build("math", source(rows(range(9))), None, Choice())
    built.rows["train"]["sw"].pop()
    with pytest.raises(UserError, match="does not hold the items"):
        dataset.write(tmp_path / "set", built.info, built.rows, verify=importing.verify)
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_is_of_the_content_of_a_side_and_not_of_its_place(tmp_path: Path) -> None:
    first = made(tmp_path / "a", source(rows(range(20))), Choice(num_validation=4))
    built = importing.build("math", source(rows(range(20))), source(rows(range(7))), Choice(num_validation=4))
    both = tmp_path / "b"
    dataset.write(both, built.info, built.rows, verify=importing.verify)
    train = dataset.fingerprint(first, ("train", "validation"))
    assert dataset.fingerprint(both, ("train", "validation")) == train
    assert dataset.fingerprint(both, ("test",)) != dataset.fingerprint(first, ("test",))
    shutil.copytree(both, tmp_path / "c")
    (tmp_path / "c" / "test" / "sw.jsonl").open("a").write("\n")
    assert dataset.fingerprint(tmp_path / "c", ("train", "validation")) == train
    assert dataset.fingerprint(tmp_path / "c", ("test",)) != dataset.fingerprint(both, ("test",))
    shutil.copytree(first, tmp_path / "d")
    (tmp_path / "d" / "validation" / "sw.jsonl").open("a").write("\n")
    assert dataset.fingerprint(tmp_path / "d", ("train", "validation")) != train


def test_a_file_that_is_edited_within_one_process_gives_another_fingerprint(tmp_path: Path) -> None:
    folder = made(tmp_path / "a", source(rows(range(20))), Choice(num_validation=4))
    file = folder / "train" / "sw.jsonl"
    first, before = dataset.fingerprint(folder, ("train",)), file.stat()
    text = file.read_text()
    file.write_text(text.replace("so 7", "so 8"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps times
    assert file.stat().st_size == before.st_size and dataset.fingerprint(folder, ("train",)) != first
    file.write_text(text)
    assert dataset.fingerprint(folder, ("train",)) == first


def test_validation_items_come_from_their_own_split_when_there_is_one(tmp_path: Path) -> None:
    out = made(tmp_path / "set", source(rows(range(30))), Choice(num_validation=6))
    info = dataset.load(out)

    def ids(split: str, **more: int | None) -> list[str]:
        return [item.id for item in MATH.read(out, split, "sw", **more)]

    assert ids("validation", num_validation=None) == list(info.splits["validation"].ids)
    assert len(ids("validation", num_validation=2)) == 2
    assert ids("train", num_validation=6) == list(info.splits["train"].ids)
    assert set(ids("train", num_items=5, seed=1)) <= set(info.splits["train"].ids)
    with pytest.raises(UserError, match=r"7 validation items asked for(.|\n)*6 ids are usable"):
        ids("validation", num_validation=7)


def test_without_a_validation_split_the_seed_sets_items_of_train_aside(tmp_path: Path) -> None:
    out = made(tmp_path / "set", source(rows(range(30))))
    aside = [item.id for item in MATH.read(out, "validation", "en", num_validation=6, seed=2)]
    rest = [item.id for item in MATH.read(out, "train", "sw", num_validation=6, seed=2)]
    assert len(aside) == 6 and sorted(map(int, aside + rest)) == list(range(30))
    with pytest.raises(UserError, match="how many items to set aside"):
        MATH.read(out, "validation", "en", num_validation=None)


def test_what_is_missing_in_a_data_set_is_named(tmp_path: Path) -> None:
    out = made(tmp_path / "set", source(rows(range(5))))
    with pytest.raises(UserError, match=r"no test data in the language 'en'(.|\n)*no such split"):
        MATH.read(out, "test", "en")
    with pytest.raises(UserError, match=r"no train data in the language 'te'(.|\n)*there: en, sw"):
        MATH.read(out, "train", "te")
    path = out / "train" / "sw.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(UserError, match=r"2 items of the data set cannot be read, such as '3'"):
        MATH.read(out, "train", "sw")
    path.unlink()
    with pytest.raises(UserError, match=r"sw.jsonl is missing"):
        MATH.read(out, "train", "sw")
    assert MATH.languages_in(out, "validation") == ["en", "sw"]
    assert MATH.languages_in(out, "test") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not as it should be"),
        ('{"task": "math", "splits": {}, "format": 9}', "format 9"),
        ('{"task": "math", "splits": {"dev": {"languages": [], "ids": []}}}', "unknown split 'dev'"),
        ('{"task": "math", "splits": {"test": {"languages": ["xx"], "ids": []}}}', "unknown language 'xx'"),
    ],
)
def test_a_bad_description_is_the_user_s_mistake(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / dataset.FILE).write_text(content)
    with pytest.raises(UserError, match=message):
        dataset.load(tmp_path)


def test_the_public_files_make_data_sets_that_read_back(public_data: Path, tmp_path: Path) -> None:
    train, test = (open_source(public_data / name, "math") for name in ("gsm-symbolic", "mgsm"))
    built = importing.build("math", train, test, Choice(num_validation=10))
    dataset.write(tmp_path / "math", built.info, built.rows, verify=importing.verify)
    sizes = {split: len(info.ids) for split, info in built.info.splits.items()}
    assert sizes == {"train": 85, "validation": 10, "test": 250}
    (comma,) = [item for item in MATH.read(tmp_path / "math", "test", "te") if item.gold == "114,200"]
    assert MATH.is_correct("సమాధానం 114200.", comma.gold, "te")
    questions = [item.prompt for item in MATH.read(tmp_path / "math", "test", "te")]
    assert sum("\u200c" in question for question in questions) == 163
    raw = MATH.read(public_data / "mgsm", "test", "ja")
    assert [item.prompt for item in MATH.read(tmp_path / "math", "test", "ja")] == [
        item.prompt for item in raw
    ]
    folder = open_source(public_data / "api-bank", "api_calling")
    built = importing.build("api_calling", folder, None, Choice(num_validation=150))
    dataset.write(tmp_path / "api", built.info, built.rows, verify=importing.verify)
    raw_items = {item.id: item for item in API_CALLING.read(public_data / "api-bank", "test", "en")}
    items = API_CALLING.read(tmp_path / "api", "test", "en")
    assert len(items) == 399 and all(raw_items[item.id] == item for item in items)
    assert len(API_CALLING.read(tmp_path / "api", "train", "en", num_validation=150)) == 757


def test_the_described_examples_are_lines_that_can_be_used() -> None:
    for task in (MATH, API_CALLING):
        fields, example, *_ = task.description.split("\n\n  {")[0].split("\n\n")[1:], task.description
        line = json.loads(next(text for text in example.splitlines() if text.startswith("  {")))
        assert task.problem_of(line) == ""
        assert task.item_of(line, "en").gold
        assert set(line) == {text.split()[0] for text in fields[0].splitlines()}
        assert "sweep data import" in dataset.describe(task.name)

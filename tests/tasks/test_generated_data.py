"""Generated data: the same items in every language, held out by combination, in each one's own words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata

import pytest

from orchestrator.errors import UserError
from orchestrator.registry import TASKS, load
from orchestrator.tasks import math, phrases
from orchestrator.tasks.api_calling import API_CALLING
from orchestrator.tasks.base import LANGUAGES, Split, Task
from orchestrator.tasks.math import MATH, UNITS

BOTH: list[Task] = [MATH, API_CALLING]
SIZES = {
    "math": {"train": 972, "validation": 162, "test": 162},
    "api_calling": {"train": 940, "validation": 208, "test": 208},
}

each_task = pytest.mark.parametrize("task", BOTH, ids=lambda task: task.name)
each_language = pytest.mark.parametrize("language", LANGUAGES)


def all_items(task: Task, language: str, seed: int = 0) -> dict[str, list]:
    return {split: task.generate(split, language, SIZES[task.name][split], seed) for split in Split}


def test_the_registry_names_the_tasks() -> None:
    assert [load(TASKS[task.name]) for task in BOTH] == BOTH


@each_task
@each_language
def test_no_text_of_a_held_out_item_is_in_any_other_split_whatever_the_seeds(
    task: Task, language: str
) -> None:
    splits = all_items(task, language)
    other = all_items(task, language, seed=7)
    for split, items in splits.items():
        texts = {item.prompt for item in items}
        assert len(texts) == len(items) == len({item.id for item in items})
        for other_split, others in other.items():
            shared = texts & {item.prompt for item in others}
            assert shared == (texts if split == other_split else set())


@each_task
def test_every_combination_of_number_and_word_held_out_has_parts_that_are_trained_on(task: Task) -> None:
    splits = all_items(task, "en")
    seen = [set(parts) for parts in zip(*(item.id.split(".") for item in splits["train"]), strict=True)]
    for split in ("validation", "test"):
        for item in splits[split]:
            assert all(part in known for part, known in zip(item.id.split("."), seen, strict=True))


@each_task
def test_eighty_one_items_already_train_every_pair_or_day_and_month(task: Task) -> None:
    small = task.generate("train", "en", 81)
    groups = {
        tuple(item.id.split(".")[1:] if task.name == "math" else item.id.split(".")[:2]) for item in small
    }
    assert len(groups) == (81 if task.name == "math" else 26)


@each_task
def test_items_are_parallel_and_deterministic(task: Task) -> None:
    ids = [[item.id for item in task.generate("train", language, 100, 3)] for language in LANGUAGES]
    assert all(others == ids[0] for others in ids)
    golds = [[item.gold for item in task.generate("train", language, 100, 3)] for language in LANGUAGES]
    assert all(others == golds[0] for others in golds)
    assert task.generate("train", "te", 100, 3) == task.generate("train", "te", 100, 3)
    assert task.generate("train", "te", 50, 3) == task.generate("train", "te", 100, 3)[:50]
    assert task.generate("train", "te", 100, 3) != task.generate("train", "te", 100, 4)


@each_task
@each_language
def test_every_response_scores_as_correct_and_every_text_is_clean(task: Task, language: str) -> None:
    for items in all_items(task, language).values():
        for item in items:
            assert task.is_correct(item.response, item.gold, language)
            assert task.stop(item.response + "\n\n" + item.prompt).strip() == item.response
            assert item.prompt.endswith("\n")
            assert not item.prompt.endswith(" \n")
            assert item.response == item.response.strip()
            for text in (item.prompt, item.response):
                assert unicodedata.is_normalized("NFC", text)
                assert not re.search(r"duration|length|mass|volume|digital-|\u00a0|\u202f", text)


@each_task
def test_texts_are_in_the_language_s_own_script(task: Task) -> None:
    scripts = {
        "ja": "[ぁ-ヿ一-鿿]",
        "bn": "[ঀ-৿]",
        "te": "[ఀ-౿]",
        "ru": "[а-яё]",
        "zh": "[一-鿿]",
        "th": "[ก-๛]",
    }
    for language in LANGUAGES:
        for item in task.generate("train", language, 300):
            found = {code for code, script in scripts.items() if re.search(script, item.prompt)}
            assert found - {"ja", "zh"} == {language} & set(scripts) - {"ja", "zh"}
            assert (language in found) == (language in scripts)


@each_task
def test_different_items_of_a_language_have_different_words(task: Task) -> None:
    for language in LANGUAGES:
        by_answer = {item.prompt: item.gold for items in all_items(task, language).values() for item in items}
        assert len(by_answer) == sum(SIZES[task.name].values())


GOLDEN = [
    (MATH, "es", "duration-hour.1.2", "¿Cuánto suman 1 hora y 2 horas?"),
    (MATH, "ru", "duration-month.5.1", "Сколько будет вместе: 5 месяцев и 1 месяц?"),
    (MATH, "ru", "duration-year.3.1", "Сколько будет вместе: 3 года и 1 год?"),
    (MATH, "ja", "duration-week.2.9", "2 週間、9 週間を合わせるといくつですか？"),
    (MATH, "sw", "duration-month.5.1", "Jumla ya miezi 5 na mwezi 1 ni ngapi?"),
    (MATH, "te", "duration-hour.1.2", "1 గంట మరియు 2 గంటలు కలిపి మొత్తం ఎంత?"),
    (API_CALLING, "ru", "BookHotel.march.5", "User: Гостиница, март, 5 ночей"),
    (API_CALLING, "es", "AddMeeting.monday.1", "User: Reunión, lunes, 1 hora"),
    (API_CALLING, "zh", "AddAlarm.sunday.07:00", "User: 闹钟，星期日，07:00"),
    (API_CALLING, "th", "BookHotel.december.2", "User: โรงแรม ธันวาคม 2 คืน"),
]


@pytest.mark.parametrize(("task", "language", "id_", "line"), GOLDEN)
def test_plural_forms_and_names_are_the_locale_s(task: Task, language: str, id_: str, line: str) -> None:
    prompts = [
        item.prompt
        for items in all_items(task, language).values()
        for item in items
        if item.id.startswith(id_)
    ]
    assert prompts
    assert all(line in prompt.splitlines() for prompt in prompts)


def test_the_worked_answer_ends_in_the_language_s_answer_sentence() -> None:
    endings = {"en": ". The answer is 9.", "ja": "。答えは9です。", "th": " คำตอบคือ 9", "bn": "। উত্তর হল 9।"}
    for language, ending in endings.items():
        items = [item for item in MATH.generate("train", language, 900) if item.gold == "9"]
        assert all(re.fullmatch(r"\d \+ \d = 9" + re.escape(ending), item.response) for item in items)


SCRIPT = """
import json, sys
from orchestrator.tasks import math, phrases
language = sys.argv[1]
names = (*math.UNITS, "duration-night")
units = [phrases.unit(n, unit, language) for unit in names for n in range(1, 10)]
days = [phrases.day(index, language) for index in range(7)]
months = [phrases.month(number, language) for number in range(1, 13)]
print(json.dumps([units, days, months, phrases.both("A", "B", language)]))
"""


@pytest.mark.parametrize("language", ["te", "sw", "zh"])
def test_names_do_not_depend_on_the_languages_asked_for_before(language: str) -> None:
    for other in LANGUAGES:  # babel resolves aliases in a cache that all locales share
        phrases.day(0, other), phrases.month(1, other), phrases.both("A", "B", other)
    fresh = subprocess.run(
        [sys.executable, "-c", SCRIPT, language], capture_output=True, text=True, check=True, timeout=60
    )
    here = [
        [phrases.unit(n, unit, language) for unit in (*UNITS, "duration-night") for n in range(1, 10)],
        [phrases.day(index, language) for index in range(7)],
        [phrases.month(number, language) for number in range(1, 13)],
        phrases.both("A", "B", language),
    ]
    assert json.loads(fresh.stdout) == here


def test_an_api_item_shows_the_api_it_wants_in_either_place() -> None:
    places = set()
    for item in API_CALLING.generate("train", "en", 400):
        shown = [json.loads(line)["name"] for line in item.prompt.splitlines() if line.startswith("{")]
        assert len(shown) == 2
        places.add(shown.index(item.id.split(".")[0]))
    assert places == {0, 1}
    assert len(phrases.APIS) == 3


@each_task
def test_too_many_items_and_unknown_names_are_the_user_s_mistake(task: Task) -> None:
    for split, num in SIZES[task.name].items():
        with pytest.raises(UserError, match=rf"{num + 1} generated items(.|\n)*at most {num}"):
            task.generate(split, "en", num + 1)
    with pytest.raises(UserError, match=r"unknown split 'tset'(.|\n)*test"):
        task.generate("tset", "en", 1)
    with pytest.raises(UserError, match="unknown language 'xx'"):
        task.generate("train", "xx", 1)


def test_importing_the_tasks_imports_neither_babel_nor_torch() -> None:
    modules = "import sys, orchestrator.tasks.math, orchestrator.tasks.api_calling"
    check = f"{modules}; print('babel' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["False", "False"]
    assert math.MATH.name == "math"

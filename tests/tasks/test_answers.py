"""What number a generated text ends in: a table for each rule of the study's section 3, and properties."""

from __future__ import annotations

import json
import re
import time
import unicodedata
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.tasks.base import LANGUAGES
from orchestrator.tasks.math import MATH, extract_answer, is_correct
from orchestrator.tasks.phrases import ANSWER, prompt

ANNOUNCED = [
    ("en", "16 - 3 - 4 = 9. 9 * 2 = 18. The answer is 18.", "18"),
    ("en", "The answer is: $18 per day. That is 2 more.", "18"),
    ("en", "The final answer to the question is 18, of 20.", "18"),
    ("en", "The answer is **18**. 7", "18"),
    ("en", "The answer is \\boxed{18}. 7", "18"),
    ("en", "The answer is\n18", "18"),
    ("en", "The answer is:\n\n$$18$$\n\n7", "18"),
    ("en", "THE ANSWER IS 18. 7", "18"),
    ("en", "Answer: 18. There were 20.", "18"),
    ("en", "Answer: Janet has 16 eggs, sells 9 and makes 18", "18"),
    ("en", "The answer is 5. No, wait. The answer is 18.", "18"),
    ("en", "The answer is 18. I am sure that the answer is correct. 20 eggs.", "18"),
    ("en", "The answer is 18. So the answer is", "18"),
    ("en", "The answer is 9 * 2 = 18.", "18"),
    ("en", "The answer is 18 (= 9 * 2).", "18"),
    ("en", "The answer is Janet's 18 dollars.", "18"),
    ("en", "The answer for part (a) is 18. 7", "18"),
    ("en", "The answer, therefore, is 18. 7", "18"),
    ("en", "The answer in dollars is 18. 7", "18"),
    ("en", "The answer is 10 - 15 = -5.", "-5"),
    ("en", "The answer is 10-15=-5.", "-5"),
    ("en", "The answer is 1 1/2 cups. 7", "1.5"),
    ("es", "Las respuestas son muchas; la respuesta son 18. 7", "18"),
    ("fr", "La réponse s’élève à 18 €. 7", "18"),
    ("fr", "La réponse correspond à 18. 7", "18"),
    ("de", "Die Antwort heißt 18. 7", "18"),
    ("ru", "Ответ это 18. 7", "18"),
    ("ru", "Ответ это -18. 7", "-18"),
    ("zh", "答：18 个。7", "18"),
    ("zh", "答案是.5，7", "0.5"),
    ("zh", "答案是18，9*2=18。7", "18"),
    ("th", "คำตอบจึงเป็น 18 7", "18"),
    ("th", "คำตอบของคำถามคือ 18 7", "18"),
    ("bn", "উত্তরঃ ১৮। ৭", "18"),
    ("bn", "উত্তর হলঃ ১৮। ৭", "18"),
    ("te", "సమాధానము 18. 7", "18"),
    ("es", "La respuesta es 18. 7", "18"),
    ("es", "La respuesta final es 18 dólares. 7", "18"),
    ("es", "Respuesta: 18. 7", "18"),
    ("fr", "La réponse est 18. 7", "18"),
    ("fr", "La re\u0301ponse est 18. 7", "18"),
    ("fr", "La réponse est : 18 $. 7", "18"),
    ("fr", "Réponse\u202f: 18. 7", "18"),
    ("de", "Die Antwort ist 18. 7", "18"),
    ("de", "Die Antwort lautet: 18. 7", "18"),
    ("de", "Somit ist die Antwort 18. 7", "18"),
    ("de", "Schritt-für-Schritt-Antwort: Es gibt 5 Bälle, also 18", "18"),
    ("ru", "Ответ: 18. 7", "18"),
    ("ru", "Ответ – 18. 7", "18"),
    ("ru", "Ответ — 18. 7", "18"),
    ("ru", "Ответ - 18. 7", "18"),
    ("ru", "Ответ -18. 7", "18"),
    ("ru", "Ответ: -18. 7", "-18"),
    ("ru", "**Ответ:** у неё 18 яиц. 7", "18"),
    ("ru", "**Ответ**: 18. 7", "18"),
    ("ru", "ответ равен 18 рублям. 7", "18"),
    ("ru", "Нужно ответить на 3 вопроса из 7", "7"),
    ("zh", "答案是18。 7", "18"),
    ("zh", "答案是 18 个。7", "18"),
    ("zh", "答案：１８。7", "18"),
    ("zh", "所以答案为18。7", "18"),
    ("ja", "答えは18です。7", "18"),
    ("ja", "答えは18個。7", "18"),
    ("ja", "答え：18。7", "18"),
    ("ja", "答えは-3です。7", "-3"),
    ("th", "คำตอบคือ 18 7", "18"),
    ("th", "คำตอบคือ ๑๘ 7", "18"),
    ("th", "คํา\u0e15อบคือ 18 บาท 7", "18"),
    ("th", "คำตอบทีละขั้นตอน: มี 5 ลูก รวม 18", "18"),
    ("sw", "Jibu ni 18. 7", "18"),
    ("sw", "Jibu la mwisho ni 18. 7", "18"),
    ("sw", "Jibu la Hatua kwa Hatua: Roger ana mipira 5, jumla 18", "18"),
    ("bn", "উত্তর হল 18। 7", "18"),
    ("bn", "উত্তর 18। 7", "18"),
    ("bn", "উত্তর ১৮। ৭", "18"),
    ("bn", "সুতরাং উত্তর হলো ১৮ ডলার। ৭", "18"),
    ("bn", "ধাপে ধাপে উত্তর: রজারের 5টি বল, মোট 18", "18"),
    ("te", "సమాధానం 18. 7", "18"),
    ("te", "సమాధానం ౧౮. 7", "18"),
    ("te", "సమాధానం: 18. 7", "18"),
    ("te", "సమాధానం 39.చాక్లెట్‌లుచాక్లెట్‌లు 7", "39"),
    ("te", "దశలవారీగా సమాధానం: రోజర్ 5 బంతులు, మొత్తం 18", "18"),
]

NOT_ANNOUNCED = [
    ("en", "So \\boxed{18} is what 2 hens give.", "18"),
    ("en", "First \\boxed{7}, then \\boxed{18}. 5", "18"),
    ("en", "\\boxed{1{,}234}", "1234"),
    ("en", "\\boxed{1\\,234}", "1234"),
    ("en", "\\boxed{18 \\text{ eggs of } 20}", "18"),
    ("en", "\\boxed{\\frac{63}{5}} 7", "12.6"),
    ("en", "\\boxed{\\frac63} 7", "2"),
    ("en", "\\boxed{2\\frac{1}{2}} 7", "2.5"),
    ("en", "\\boxed{- 18} 7", "-18"),
    ("en", "\\boxed{} 7", "7"),
    ("en", "\\boxed{} 7, then 5", "5"),
    ("en", "\\boxed{\\text{none}} 7, then 5", "5"),
    ("en", "\\boxed{\\text{eggs: } 18} 7", "18"),
    ("en", "16 eggs, 9 left, 18 dollars", "18"),
    ("en", "No number at all.", None),
    ("en", "", None),
    ("xx", "a language of one's own: 18", "18"),
]

NUMBERS = [
    ("en", "1,234", "1234"),
    ("en", "1,234,567.5", "1234567.5"),
    ("en", "12,34,567", "1234567"),
    ("bn", "১২,৩৪,৫৬৭.৫", "1234567.5"),
    ("es", "1,234", "1234"),
    ("es", "1.234", "1234"),
    ("de", "1.234.567", "1234567"),
    ("de", "1.234,5", "1234.5"),
    ("de", "1,234.5", "1234.5"),
    ("en", "1.234,5", "1234.5"),
    ("en", "1.234", "1.234"),
    ("fr", "1.234", "1.234"),
    ("fr", "1 234,5", "1234.5"),
    ("fr", "114\u202f200", "114200"),
    ("ru", "114\u00a0200,50", "114200.50"),
    ("ru", "1 000 000", "1000000"),
    ("de", "1'234'567.5", "1234567.5"),
    ("en", "1’234", "1234"),
    ("en", "2023 500", "500"),
    ("en", "1 2345", "2345"),
    ("fr", "3,5", "3.5"),
    ("en", "3,5", "3.5"),
    ("en", "12,50", "12.50"),
    ("es", "0.125", "0.125"),
    ("en", "0,125", "0.125"),
    ("en", "1234,567", "1234.567"),
    ("en", "1,2345", "1.2345"),
    ("es", "12.50", "12.50"),
    ("en", "costs .5", "0.5"),
    ("en", "1,2,3", "3"),
    ("en", "1, 2, 3", "3"),
    ("en", "1.2.3", "3"),
    ("zh", "１，２３４．５", "1234.5"),
    ("zh", "１２，５", "12.5"),
    ("zh", "1，234", "1234"),
    ("en", "-3", "-3"),
    ("en", "= −3", "-3"),
    ("en", "(-3)", "-3"),
    ("en", "-$3", "-3"),
    ("en", "$-3", "-3"),
    ("en", "16-3", "3"),
    ("en", "16 -3", "3"),
    ("en", "16−3", "3"),
    ("en", "(16)-3", "3"),
    ("en", "(16) -3", "3"),
    ("en", "10–15", "15"),
    ("en", "COVID-19", "19"),
    ("bn", "কোভিড-১৯", "19"),
    ("en", "-57/2", "-28.5"),
    ("en", "1 1/2", "1.5"),
    ("en", "7 10/5", "2"),
    ("en", "x = - 3", "-3"),
    ("en", "9\n- 3 eggs", "3"),
    ("en", "18/0", "0"),
    ("en", "in 2:30", None),
    ("en", "9 eggs at 2:30:15", "9"),
    ("fr", "9 œufs à 14h30", "9"),
    ("fr", "9 œufs à 14 h 30", "9"),
    ("zh", "9个，2：30", "9"),
    ("fr", "il dort 14h", "14"),
    ("en", "18%", "18"),
    ("en", "18.", "18"),
    ("en", "5,600,", "5600"),
]

RUN_ONS = [
    "\n\nQuestion:\nTom has 5. How many?\nAnswer:\nThe answer is 7.",
    "\nQuestion: Tom has 5. Answer: The answer is 7.",
    " Question:\nTom has 5.\nAnswer:\n\\boxed{7}",
    "\n**Question 2:** 7",
    "\n\n## Question\nTom has 7.",
    "\n\n**Question 2**\nTom has 7.",
    "\nQuestion 2\nTom has 7.",
    "\nপ্রশ্নঃ 7",
    "\nPregunta: 7",
    "\nQuestion : 7",
    "\nFrage: 7",
    "\nЗадача: 7",
    "\nВопрос: 7",
    "\n问题：7",
    "\n問題：7",
    "\nโจทย์: 7",
    "\nSwali: 7",
    "\nপ্রশ্ন: 7",
    "\nప్రశ్న: 7",
]


def decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


@pytest.mark.parametrize(("language", "text", "expected"), ANNOUNCED)
def test_an_announced_answer_wins_over_other_numbers(language: str, text: str, expected: str) -> None:
    assert extract_answer(text, language) == decimal(expected)


@pytest.mark.parametrize(("language", "text", "expected"), NOT_ANNOUNCED)
def test_without_announcement_the_boxed_then_the_last_number_counts(
    language: str, text: str, expected: str | None
) -> None:
    assert extract_answer(text, language) == decimal(expected)


@pytest.mark.parametrize(("language", "text", "expected"), NUMBERS)
def test_numbers_are_read_as_the_locale_writes_them(language: str, text: str, expected: str | None) -> None:
    assert extract_answer(text, language) == decimal(expected)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("run_on", RUN_ONS)
def test_a_run_on_is_cut_at_the_next_question(language: str, run_on: str) -> None:
    text = ANSWER[language].format(18)
    assert MATH.stop(text + run_on).strip() == text
    assert extract_answer(text + run_on, language) == 18
    assert extract_answer("18" + run_on, language) == 18


def test_a_text_that_starts_with_another_question_answers_nothing() -> None:
    assert extract_answer("Question:\nTom has 5.\nAnswer:\nThe answer is 7.", "en") is None


def test_a_question_inside_a_sentence_cuts_nothing() -> None:
    assert extract_answer("This is no easy question: 18", "en") == 18


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        ("2,125", "The answer is 2125.", True),
        ("2,125", "The answer is 2,125.00", True),
        ("18", "The answer is 18.0.", True),
        ("18", "The answer is 18.5.", False),
        ("18", "The answer is 180.", False),
        ("18", "The answer is -18.", False),
        ("18", "18,000", False),
        ("18", "", False),
        ("eighteen", "18", False),
        ("", "", False),
        ("{n-int(n*2)}", "2", True),
        ("{a*1+b*2}", "2", False),
    ],
)
def test_answers_are_compared_as_numbers(gold: str, text: str, expected: bool) -> None:
    assert is_correct(text, gold, "en") is expected
    assert MATH.is_correct(text, gold, "en") is expected


def test_the_prompt_is_the_study_s() -> None:
    assert prompt("  How many?\n", "es") == "Question:\nHow many?\nAnswer:\nPensemos paso a paso.\n"
    assert "\u200c" in prompt("బోల్ట్\u200cల", "te")


# Properties

ZEROS = [c for c in map(chr, range(0x110000)) if c.isdecimal() and unicodedata.decimal(c) == 0]


@given(st.sampled_from(ZEROS), st.integers(0, 10**12), st.sampled_from(list(LANGUAGES)))
def test_digits_of_every_script_are_read(zero: str, number: int, language: str) -> None:
    written = "".join(chr(ord(zero) + int(digit)) for digit in str(number))
    assert extract_answer(ANSWER[language].format(written), language) == number


@given(
    st.integers(0, 10**12),
    st.integers(0, 99),
    st.sampled_from(list(LANGUAGES)),
    st.sampled_from([(",", "."), (" ", ","), ("\u00a0", ","), ("\u202f", ","), ("'", "."), (".", ",")]),
)
def test_grouped_decimals_are_read_in_every_language(
    number: int, cents: int, language: str, marks: tuple[str, str]
) -> None:
    thousands, point = marks
    written = f"{number:,}".replace(",", thousands) + f"{point}{cents:02}"
    assert extract_answer(ANSWER[language].format(written), language) == Decimal(f"{number}.{cents:02}")


@given(st.text(), st.sampled_from([*LANGUAGES, "xx"]))
def test_no_text_makes_it_raise_and_stopping_changes_no_verdict(text: str, language: str) -> None:
    answer = extract_answer(text, language)
    assert extract_answer(MATH.stop(text), language) == answer
    assert is_correct(text, text, language) in (True, False)


FRAGMENTS = [
    *(ANSWER[language].format("") for language in LANGUAGES),
    *("0", "1", "12", "345", "١", "৭", "８", "e", "ß", "h", "x", "/", ":", "=", "*", "+", "$", "(", ")"),
    *(
        ",",
        ".",
        "-",
        "–",
        "−",
        " ",
        "\n",
        "\u00a0",
        "\u202f",
        "'",
        "\\boxed{",
        "{",
        "}",
        "Question:",
        "\ud800",
        "\x00",
    ),
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join), st.sampled_from(list(LANGUAGES)))
def test_no_mix_of_marks_makes_it_raise(text: str, language: str) -> None:
    extract_answer(text, language)
    is_correct(text, text, language)


@pytest.mark.parametrize(
    "piece",
    [
        *("1", "1,", "1 ", "1 234 ", "1,234", "1.", "1/", "1:30 ", "9*", "-", " ", "(", "\n", "a ", "।"),
        *("The answer is ", "answer to ", "answer a b c ", "Antwort ist die ", "উত্তর ক ", "ответ да "),
        *("\\boxed{", "\\boxed ", "Question", "\nExample: 1", "\nExercise 2: 1", "\nUser:", "\n#### 1", "<|"),
        *("10^2 ", "1e6 ", "1万2", "2 lakh 5 ", "1 of 2 ", "1 a = ", "½", "\\text{"),
    ],
)
@pytest.mark.parametrize(
    ("language", "length"),
    [("en", 15_000), ("bn", 15_000), *(pytest.param(x, 60_000, marks=pytest.mark.long) for x in LANGUAGES)],
)
def test_long_texts_take_little_time(piece: str, language: str, length: int) -> None:
    text = piece * (length // len(piece))
    start_s = time.process_time()
    extract_answer(text, language)
    extract_answer(text + "x", language)
    assert time.process_time() - start_s < length / 4_000  # usually a fifteenth of that


# Real data


def test_mgsm_s_own_worked_examples_are_read_right(public_data: Path) -> None:
    exemplars = json.loads((public_data / "mgsm" / "exemplars.json").read_text())["exemplars"]
    golds = {"1": 11, "2": 29, "3": 39, "4": 9, "5": 33, "6": 8, "7": 8, "8": 5}
    wrong = [
        (language, number)
        for language, examples in exemplars.items()
        for number, example in examples.items()
        if extract_answer(example["a"], language) != golds[number]
    ]
    assert not wrong
    assert sum(map(len, exemplars.values())) == 88


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_mgsm_answer_is_found_in_an_answer_sentence_and_before_a_run_on(
    language: str, public_data: Path
) -> None:
    items = MATH.read(public_data / "mgsm", "test", language)
    assert len(items) == 250
    for item in items:
        assert is_correct(item.response, item.gold, language)
        assert is_correct(f"2 + 3 = 5. {item.response}\n\n{item.prompt}The answer is 1.", item.gold, language)
        grouped = f"{int(item.gold.replace(',', '')):,}".replace(",", "\u202f")
        assert is_correct(ANSWER[language].format(grouped), item.gold, language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_worked_answer_that_is_trained_on_scores_as_correct(language: str, public_data: Path) -> None:
    for item in MATH.read(public_data / "gsm-symbolic", "train", language):
        assert is_correct(item.response, item.gold, language)
        assert not re.search(r"<<|>>|####", item.response)

"""How outputs go on after their answer, and what of that is cut."""

from __future__ import annotations

import pytest

from orchestrator.tasks.base import LANGUAGES
from orchestrator.tasks.math import MATH, extract_answer, is_correct
from orchestrator.tasks.phrases import ANSWER

RUN_ONS = [
    "\nHuman: I have 7",
    "\n\nUser: 7",
    "\n### Instruction:\nGive 7",
    "\nExercise 2: 7",
    "\nEjercicio 2: 7 ",
    "\n例題：7",
    "\n例2：7",
    "\nユーザー：7",
    "<|im_end|>\n7",
    "<|im_end|>7",
    "\n\nAssistant: 7",
    "\n用户：7",
    "\nПользователь: 7",
    "\nExercice 2 : 7",
    "\nÜbung 2: 7",
    "\nBeispiel 2: 7",
    "\nПример 2: 7",
    "\nУпражнение 2: 7",
    "\nMfano 2: 7",
    "\nZoezi la 2: 7",
    "\nউদাহরণ ২: 7",
    "\nఉదాహరణ 2: 7",
    "\nตัวอย่างที่ 2: 7",
    "\n练习2：7",
    "\nQ: 7",
    "\nQ2: 7",
    "</s>7",
    "<start_of_turn>user\n7",
    "<end_of_turn>\n7",
    "<|endoftext|>7",
    "<|eot_id|>7",
    "\nuser\n7",
    "\nInstruction: 7",
    "\n[Question 2]: 7",
    "\nProblem 2. 7?\n8",
    "\n**User:** 7",
    "\n## Example 2\n7",
    "\nQuestion 2. 7",
    "\nExample: 7",
    "[INST] 7",
    "\n第2題：7",
    "\nQuestion #2: 7",
    "\n- User: 7",
    "<｜end▁of▁sentence｜>7",
    "\n### Response:\n7",
    "\n### Human: 7",
    "\nTask 2: 7",
    "\nPregunta 2: 7",
    "\nসমস্যা ২: 7",
    "\n問題2：7",
    "\n### Question\n7",
    "\nproblem 2: 7",
    "\nSwali la 2: 7",
    "\nQuestion 2: 7",
    "\nโจทย์ข้อที่ 2: 7",
    "\nคำถามที่ 2: 7",
    "\nข้อ 2: 7",
]


@pytest.mark.parametrize("run_on", RUN_ONS)
def test_what_follows_an_answer_is_cut_in_every_language(run_on: str) -> None:
    for language in LANGUAGES:
        text = ANSWER[language].format(18)
        assert MATH.stop(text + run_on).strip() == text
        assert extract_answer(text + run_on, language) == 18
    assert extract_answer("18" + run_on, "en") == 18


@pytest.mark.parametrize(
    "run_on",
    ["\nHuman: 7", "\n### Instruction:\n7", "\nExercise 2: 7", "\n例題：7", "<|im_end|>7", "\n例2：7"],
)
def test_an_answer_in_plain_words_may_be_followed_by_a_run_on(run_on: str) -> None:
    assert extract_answer("She has 9 + 9 = 18 eggs." + run_on, "en") == 18


@pytest.mark.parametrize(
    "text",
    [
        "There are two.\nExercise 1: 30 minutes\nExercise 2: 20 minutes\n30 + 20 = 50",
        "Exercise 1: 30 minutes\nExercise 2: 20 minutes\n30 + 20 = 50",
        "She has 3 hens.\nExample: 3 * 2 = 6\nIn all 50",
        "鶏は3羽です。\n例：3 * 2 = 6\n50",
        "Assistant: it is 50",
        "16 - 7 = 9 eggs\n\n### Response:\nIt is 50",
        "16 - 7 = 9 eggs\nAssistant: It is 50",
        "<|im_start|>assistant\n50",
        "The user: 3 people. 50",
        "#### Step 1\n3 + 4 = 7\n#### Step 2\n50",
    ],
)
def test_headers_within_an_answer_cut_nothing(text: str) -> None:
    assert MATH.stop(text) == text
    assert extract_answer(text, "en") == 50


def test_a_number_that_the_limit_cut_does_not_outvote() -> None:
    text = "The answer is 18. So, again, the answer is 2"
    assert extract_answer(text, "en") == 2
    assert extract_answer(text, "en", truncated=True) == 18
    assert extract_answer("\\boxed{18} So the answer is 2", "en", truncated=True) == 18
    assert extract_answer("So the answer is 2", "en", truncated=True) == 2
    assert extract_answer("The answer is 18. The answer is 20.", "en", truncated=True) == 20
    assert extract_answer("The answer is 18. The answer is 9 * 2", "en", truncated=True) == 18
    assert is_correct(text, "18", "en", truncated=True)
    assert MATH.is_correct(text, "18", "en", truncated=True)
    assert not MATH.is_correct(text, "18", "en")


def test_a_gold_with_a_magnitude_is_read_as_answers_are() -> None:
    assert is_correct("The answer is 70,000.", "70 thousand", "en")
    assert is_correct("答えは7万です。", "70000", "ja")
    assert not is_correct("答えは7万です。", "7", "ja")

"""How answers are read and cut, and how items are divided into batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from orchestrator.sft.generators.base import batches, special_tokens
from orchestrator.tasks.api_calling import API_CALLING
from orchestrator.tasks.math import MATH
from tests.sft.conftest import answers

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share


class Script:
    """An engine that types given texts, and looks at each every few tokens as the real ones do."""

    is_batched = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, every: int) -> None:
        self._rows = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        self._eos, self._every = tokenizer.eos_token_id, every

    def load(self, folder: Path) -> None:
        """Has no weights."""

    def generate(self, rows: Any, *, max_new_tokens: int, is_over: Any) -> list[list[int]]:
        """Types each text up to the end, the limit or where it is over."""
        return [
            self._typed(n, [*row, self._eos][:max_new_tokens], is_over) for n, row in enumerate(self._rows)
        ]

    def _typed(self, number: int, row: list[int], is_over: Any) -> list[int]:
        for end in range(self._every, len(row), self._every):
            if is_over(number, row[:end]):
                return row[:end]
        return row


RUNS_ON = [
    (MATH, "3 + 4 = 7. The answer is 7.\n", "Question:\nWhat is 1 + 1?\nAnswer:\nThe answer is 2.\n" * 30),
    (MATH, "उत्तर 7\n", "Question:\n" + "x" * 900),
    (MATH, "The answer is 12.\n\n", "Pregunta: 1\nRespuesta: 2\n" * 40),
    (API_CALLING, "API-Request: [A(x='1', y='[f('a')]')]", "->[{'a': 'b'}]\nAPI-Request: [B(y='2')]\n" * 30),
    (API_CALLING, "Sure: [C()]\nAPI-Request: [A(x='[f('a')]')]", "\nUser: thanks\nAI: [B(y='2')]\n" * 40),
]


@pytest.mark.parametrize("every", [1, 5, 16, 64])
@pytest.mark.parametrize(("task", "answer", "more"), RUNS_ON)
def test_a_model_that_runs_on_is_cut_and_ended(
    tokenizer: PreTrainedTokenizerBase, task: Any, answer: str, more: str, every: int
) -> None:
    script = Script(tokenizer, [answer + more, answer], every=every)
    one, other = answers(script, tokenizer, ["Q\n", "Q\n"], stop=task.stop, max_new_tokens=400)
    whole = len(tokenizer(answer + more).input_ids)
    assert one.text == task.stop(answer + more) == other.text
    assert one.text.strip() == answer.strip()
    assert one.num_tokens < min(whole, 400) and not one.truncated and not other.truncated


@pytest.mark.parametrize(
    ("text", "limit", "truncated"),
    [
        ("The answer is 7.", 400, False),
        ("The answer is 7.", 4, True),
        ("The answer is 7.\nQuestion:\n" + "y" * 99, 60, False),
    ],
)
def test_truncated_is_what_neither_ended_nor_was_cut(
    tokenizer: PreTrainedTokenizerBase, text: str, limit: int, truncated: bool
) -> None:
    script = Script(tokenizer, [text], every=1000)
    (answer,) = answers(script, tokenizer, ["Q\n"], stop=MATH.stop, max_new_tokens=limit)
    assert (answer.truncated, answer.num_tokens <= limit) == (truncated, True)


def test_an_end_at_the_very_limit_is_not_truncated(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "The answer is 7."
    num_tokens = len(tokenizer(text, add_special_tokens=False).input_ids)
    for limit, truncated in ((num_tokens, True), (num_tokens + 1, False)):
        script = Script(tokenizer, [text], every=1000)
        (answer,) = answers(script, tokenizer, ["Q\n"], stop=MATH.stop, max_new_tokens=limit)
        assert (answer.num_tokens, answer.truncated, answer.text) == (limit, truncated, text)


def test_how_often_one_looks_changes_no_verdict(tokenizer: PreTrainedTokenizerBase) -> None:
    values = ["[f('a')]", "['John', 'Jane']", "1", "it's", "(5+6)*3", "[{'n': 'b)'}]"]
    for value in values:
        gold = f"API-Request: [A(x='{value}', y='2')]"
        text = gold + "\nUser: and now?\n" * 20
        for every in range(1, 40):
            script = Script(tokenizer, [text], every=every)
            (answer,) = answers(script, tokenizer, ["Q\n"], stop=API_CALLING.stop, max_new_tokens=999)
            assert API_CALLING.is_correct(answer.text, gold, "en"), (value, every)


def test_a_mark_of_a_chat_template_begins_a_run_on(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|im_start|>"]})
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in special_tokens(tokenizer)
    run_on = "<|im_end|>\n<|im_start|>user\nHow many are 5 and 5?<|im_end|>\nThe answer is 10.\n" * 9
    for every in (1, 7, 1000):
        script = Script(
            tokenizer, ["The answer is 18." + run_on, "<|im_start|>The answer is 18."], every=every
        )
        one, other = answers(script, tokenizer, ["Q\n", "Q\n"], stop=str, max_new_tokens=60)
        assert one.text == "The answer is 18." == other.text
        assert not one.truncated and not other.truncated
        assert MATH.is_correct(one.text, "18", "en")


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_batches_hold_each_item_once_and_are_full_but_for_the_last_of_a_block(
    numbers: list[int], size: int, random: Any
) -> None:
    items = {
        str(n): [(n, index, random.randint(1, 50)) for index in range(number)]
        for n, number in enumerate(numbers)
    }
    found = batches(items, size, lambda item: item[2])
    assert sorted(item for batch in found for item in batch) == sorted(
        i for each in items.values() for i in each
    )
    assert all(0 < len(batch) <= size for batch in found)
    assert found == batches(items, size, lambda item: item[2])
    for batch in found:
        assert [item[2] for item in batch] == sorted((item[2] for item in batch), reverse=True)
    for number in range(len(numbers)):  # a language that fills a batch shares none with others
        if numbers[number] > size:
            assert all(
                {item[0] for item in batch} == {number}
                for batch in found
                if any(i[0] == number for i in batch)
            )

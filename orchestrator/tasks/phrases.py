"""The math task's words in each language: what prompts and responses say.

Prompts and answer sentences are the study's (section 3), the questions of generated items are ours. How real
outputs announce an answer is `announcements`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from orchestrator.tasks.base import check_language

THINK: Mapping[str, str] = {
    "en": "Let's think step by step.",
    "es": "Pensemos paso a paso.",
    "ja": "段階的に考えてみましょう。",
    "bn": "আসুন ধাপে ধাপে চিন্তা করি।",
    "sw": "Hebu fikiria hatua kwa hatua.",
    "te": "అంచెలంచెలుగా ఆలోచిద్దాం.",
    "fr": "Réfléchissons étape par étape.",
    "de": "Denken wir Schritt für Schritt.",
    "ru": "Давайте думать поэтапно.",
    "zh": "让我们一步步思考。",
    "th": "ลองคิดทีละขั้นตอน",
}
"""What the prompt ends with."""

ANSWER: Mapping[str, str] = {
    "en": "The answer is {}.",
    "es": "La respuesta es {}.",
    "ja": "答えは{}です。",
    "bn": "উত্তর হল {}।",
    "sw": "Jibu ni {}.",
    "te": "సమాధానం {}.",
    "fr": "La réponse est {}.",
    "de": "Die Antwort ist {}.",
    "ru": "Ответ: {}.",
    "zh": "答案是{}。",
    "th": "คำตอบคือ {}",
}
"""What a response ends with."""

STEP: Mapping[str, str] = {"ja": "{}。", "zh": "{}。", "bn": "{}। ", "th": "{} "}
"""How a step of a worked answer is set down before the answer sentence; ``{}. `` elsewhere."""

TOTAL: Mapping[str, str] = {
    "en": "What is the total of {}?",
    "es": "¿Cuánto suman {}?",
    "ja": "{}を合わせるといくつですか？",
    "bn": "{} মিলে মোট কত?",
    "sw": "Jumla ya {} ni ngapi?",
    "te": "{} కలిపి మొత్తం ఎంత?",
    "fr": "Combien font {} ?",
    "de": "Wie viel sind {} zusammen?",
    "ru": "Сколько будет вместе: {}?",
    "zh": "{}一共是多少？",
    "th": "{} รวมกันเป็นเท่าไร",
}
"""The question of a generated item, around a list such as ``3 hours and 4 hours``."""


def prompt(question: str, language: str) -> str:
    """Returns the study's prompt: two English headers around the question, and the language's own phrase.

    Raises:
        UserError: there is no such language.
    """
    question = unicodedata.normalize("NFC", question).strip()
    return f"Question:\n{question}\nAnswer:\n{THINK[check_language(language)]}\n"


def answer_sentence(number: str, language: str) -> str:
    """Returns the sentence that a response of this language ends with."""
    return ANSWER[language].format(number)

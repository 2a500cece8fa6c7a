"""How a text goes on when a model does not end after its answer: headers, roles and marks of chats. Data.

Three kinds, by how sure they are. A *question* header always begins a run-on. A *role* or a mark of a chat
template does so once a number was written, because that may be the answer; a role that replies only after an
answer, because it may stand over that. The header of an *exercise* or example is common within an answer as
well: there it begins a list, or says ``Example:`` without a number.
"""

from __future__ import annotations

import re
import unicodedata

from orchestrator.tasks.phrases import THINK

_QUESTIONS = (
    "Question|Q|Problem|Pregunta|Frage|Aufgabe|Задача|Вопрос|Swali|问题|問題|問|问|題目|题目|質問"
    "|প্রশ্ন|ప్రశ్న|โจทย์|คำถาม"
)
_EXERCISES = (
    "Exercise|Task|Ejercicio|Problema|Exercice|Problème|Übung|Упражнение|Задание|例題|例题|練習問題|練習|练习|习题"
    "|แบบฝึกหัด|Zoezi|Tatizo|অনুশীলনী|সমস্যা|అభ్యాసం|సమస్య"
)
_EXAMPLES = "Example|Ejemplo|Exemple|Beispiel|Пример|例|第|ตัวอย่าง|ข้อ|Mfano|উদাহরণ|ఉదాహరణ"
_ASKING = (
    "Human|User|Instructions?|Usuario|Humano|Instrucci[oó]n|Utilisateur|Humain|Benutzer|Nutzer|Mensch|Anweisung"
    "|Пользователь|Человек|Инструкция|ユーザー|ユーザ|人間|指示|用户|用戶|人类|指令|ผู้ใช้|มนุษย์|คำสั่ง|Mtumiaji|Binadamu|Maagizo"
    "|ব্যবহারকারী|মানুষ|নির্দেশ|নির্দেশনা|వినియోగదారు|వినియోగదారుడు|మానవుడు|సూచన"
)
_REPLYING = (
    "Assistant|System|Bot|AI|Input|Response|Asistente|Assistent|Ассистент|アシスタント|助手|ผู้ช่วย|Msaidizi|সহকারী"
    "|సహాయకుడు|సహాయకం"
)


def _both(words: str) -> str:
    """Return the words composed and decomposed, because generated text comes as either."""
    forms = (unicodedata.normalize(form, words) for form in ("NFC", "NFD"))
    return "|".join(dict.fromkeys(word for form in forms for word in form.split("|")))


_NUMBER = r"(?:[ \t]*(?:\#|no\.?|n[º°]|nr\.?|№|la|ya|ข้อที่|ข้อ|ที่)?[ \t]*\d+(?:[ \t]*[題题問问])?)"
_COLON = r"[ \t\u00a0\u202f*_]*[:：ঃ﹕]"
_START = r"^[ \t\u200b\ufeff>*_#`\[【（(-]*"
_CLOSING = r"[ \t]*[\]】）)]?"
_FLAGS = re.IGNORECASE | re.MULTILINE

QUESTION = re.compile(
    rf"{_START}(?:{_both(_QUESTIONS)}){_NUMBER}?{_CLOSING}{_COLON}"
    rf"|(?<=\n)[ \t]*(?:#{{1,6}}|\*\*)[ \t*_]*(?:{_both(_QUESTIONS)}){_NUMBER}?[ \t*_]*$"
    rf"|(?<=\n)[ \t]*(?:{_both(_QUESTIONS)}){_NUMBER}[ \t]*[.)]?[ \t]*$"
    r"|\bQuestion:[ \t*_]*$",
    _FLAGS,
)
"""The header of a next question: MGSM's in any language at the start of a line, as a heading of its own later
on, the prompt's own anywhere."""

EXAMPLE = re.compile(
    rf"^[ \t\u200b\ufeff>*_#`\[【（(-]*(?:"
    rf"(?P<exercise>(?:{_both(_EXERCISES)}){_NUMBER}?|(?:{_both(_QUESTIONS)}){_NUMBER}(?=[ \t*_]*[.)]))"
    rf"|(?P<example>(?:{_both(_EXAMPLES)}){_NUMBER}?))"
    rf"(?:{_CLOSING}{_COLON}|(?<=\d)[ \t*_]*(?:[.)]|$))",
    _FLAGS,
)
"""The header of a next exercise or example, on a later line: ``Exercise 2:``, ``## Example 2``."""


def is_reply(header: re.Match[str]) -> bool:
    """Whether a header of `ROLE` is one that a model may put over its own answer: ``### Response:``.

    A question and the prompt's phrase below it are another, because an answer may ask itself something first.
    """
    return any(header[name] is not None for name in ("reply", "reply_head", "asked"))


def begins_list(header: re.Match[str]) -> bool:
    """Whether a header of `EXAMPLE` may as well belong to an answer: an example, or the first of several."""
    number = re.search(r"\d+", header[0])
    if number is None:
        return header["example"] is not None
    return int(number[0][:9]) < 2


ROLE = re.compile(
    rf"(?<=\n)[ \t\u200b\ufeff>*_#`\[【（(-]*(?:{_both(_ASKING)}|(?P<reply>{_both(_REPLYING)}))"
    rf"{_CLOSING}{_COLON}"
    rf"|(?<=\n)[ \t]*#{{1,6}}[ \t*_]*(?:{_both(_ASKING)}|(?P<reply_head>{_both(_REPLYING)}))[ \t*_]*$"
    r"|(?<=\n)[ \t]*(?:user|assistant|system|model)[ \t]*$"  # what is left of ChatML without its marks
    rf"|(?P<asked>[?？][ \t*_]*\n\s{{0,4}}(?:{_both('|'.join(map(re.escape, THINK.values())))}))"
    r"|<[|｜][^<>|｜\s]{1,40}[|｜]>|</?s>|<(?:eos|bos|pad)>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>",
    _FLAGS,
)
"""Who speaks next in a chat, on a later line, or a mark of a chat template (ChatML, Gemma, Llama, Mistral)
anywhere."""

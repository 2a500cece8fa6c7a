"""Patterns for how outputs in each language announce an answer, and how they begin a next question.

The first form of each language is that of the study (section 3) and of MGSM. The other forms are ours.
There are two kinds of announcements, which differ in where their number stands:

- *loose*: the number follows anywhere in the sentence, as in ``the answer is Janet's 18``.
- *tight*: only marks may stand before the number. Such words also head whole solutions, as in ``Answer:
  Janet has 16 eggs``, where 16 is not the answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from orchestrator.tasks.phrases import THINK


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(unicodedata.normalize("NFC", pattern), re.IGNORECASE | re.MULTILINE)


# Base models write long, repetitive texts. Each pattern below therefore bounds how many words it skips, so
# that no search is long.
_WORDS = r"(?:\s+[\w'’()]+)"
_IN_PARENTHESES = r"(?:\s?[(（][^()（）\n]{1,30}[)）])?"  # The answer (in dollars) is
_COLON = (  # "answer": 18; <answer>18; | Answer | 18 |; a heading
    _IN_PARENTHESES + r"(?:[\"'*_\s]*[:=→⇒>\]|】」』]|[*_ ]*[–—-](?=\s)|[*_# ]*$)"
)
_B = r"(?<![^\W_])(?<![<\[]/)(?<!/final.)"  # the beginning of a word or of a part of one: final_answer

LOOSE: Mapping[str, re.Pattern[str]] = {
    language: _compile(pattern)
    for language, pattern in {
        "en": r"\banswer"
        + _IN_PARENTHESES
        + r"(?:,?\s+(?:to|for|of|in|here|then|therefore|thus|we|i|you|that|which|after|when|as|with)\b"
        + _WORDS
        + r"{0,6}?,?)?[*_]*"
        r"\s+(?:is|was|becomes|equals|(?:would|should|will|must|might|may|could|can|has\s+to)"
        r"(?:\s+(?:then|therefore|thus|also))?\s+be"
        r"|(?:comes?|works?)(?:\s+out)?\s+(?:to|as)|amounts?\s+to|turns?\s+out\s+to\s+be)(?![^\W\d_])",
        "es": r"\brespuesta" + _WORDS + r"{0,5}?\s+(?:es|son|sería|será|fue)\b",
        "ja": r"(?:答え|解答|回答|正解|答)" + _IN_PARENTHESES + "は",
        "bn": r"উত্তর(?:টি|টা)?(?:\s+[^\s\d।:]{1,20}){0,3}?\s*(?:হল|হলো|হ['’]ল|হচ্ছে|হবে|হয়)"
        r"(?![\u0980-\u0982\u0984-\u09ff])",
        "sw": r"\b(?:ma)?jibu" + _WORDS + r"{0,4}?\s+(?:ni|litakuwa|itakuwa|lingekuwa)\b",
        "te": r"(?:సమాధానం|సమాధానము|జవాబు)(?![\u0c00-\u0c7f])(?![*_\s]*:)(?!\s+ఇ)",  # ఇస్తుంది: she answers
        "fr": r"\br[ée]ponse"
        + _WORDS
        + r"{0,5}?\s+(?:(?:est|sera|serait|était|vaut)\b|(?:s['’]élève|correspond)\s+à\b)",
        "de": r"\bantwort" + _WORDS + r"{0,5}?\s+(?:ist|lautet|beträgt|heißt|wäre|wird|war)\b"
        r"|\b(?:ist|lautet|beträgt|wäre)\s+(?:die|meine|unsere)\s+(?:\w+\s+)?antwort\b",
        "ru": r"\bответ(?:ом)?"
        + _WORDS
        + r"{0,3}?(?:[*_\s]*[:=–—-]|\s+(?:равен|составляет|будет|является|таков|это)\b)",
        "zh": r"答案" + _IN_PARENTHESES + r"(?:就|应该|應該|应|應|将|將)?\s*(?:是(?!否)|为|為|等于|等於)",
        "th": r"คำตอบ(?:ของ[^\s\d]{1,40}?|สุดท้าย|ที่ถูกต้อง|ที่ได้)?"
        + _IN_PARENTHESES
        + r"\s*(?:ก็|จึง)?(?:คือ|เป็น|เท่ากับ)",
    }.items()
}
"""Map from language to announcements whose number follows somewhere in the same sentence."""

TIGHT: Mapping[str, re.Pattern[str]] = {
    language: _compile(pattern)
    for language, pattern in {
        "en": rf"(?:{_B}|(?<=\bfinal))answers?(?:" + _COLON + rf"|['’]s\b)|\bsolution{_WORDS}{{0,5}}?\s+is\b"
        r"|\b(?-i:Ans|ANS)(?:\.?\s*[:=]|\.(?=\s))",  # no French years
        "es": _B
        + r"respuesta(?:\s+(?:final|correcta))?"
        + _COLON
        + r"|\bsolución"
        + _WORDS
        + r"{0,5}?\s+es\b",
        "ja": r"(?:答え|解答|回答|正解|答)(?:[ \u3000]|" + _COLON + ")",
        "bn": r"উত্তর(?:টি|টা)?ঃ?",
        "sw": r"\b(?:ma)?jibu(?:\s+(?:la\s+mwisho|sahihi))?(?:" + _COLON + r"|\b)",
        "te": r"(?:సమాధానం|సమాధానము|జవాబు)",
        "fr": _B
        + r"r[ée]ponse(?:\s+(?:finale|correcte))?"
        + _COLON
        + r"|\bsolution"
        + _WORDS
        + r"{0,5}?\s+est\b",
        "de": _B + r"antwort" + _COLON + r"|\blösung" + _WORDS + r"{0,5}?\s+(?:ist|lautet|beträgt)\b",
        "ru": r"\bответ\b",
        "zh": r"答案?" + _COLON,
        "th": r"ตอบ",
    }.items()
}
"""Map from language to announcements whose number follows at once, or alone on the next line."""

DENIED_BEFORE = _compile(
    r"(?:\b(?:not|nicht|pas|не|no\s+(?:es|son|sería|será|fue))|不是|ไม่ใช่)[\s*_$€£¥₹(\"“]*\Z"
)
"""Words before a number that is announced as a wrong answer: ``the answer is not 20 but 18``."""

DENIED_AFTER = _compile(r"[^\d\n,.。、।]{0,12}?(?:(?:では|じゃ)(?:な[くい]|ありません)|নয়|కాదు)")
"""Words after such a number: ``答えは20ではなく18です``."""

HASHES = _compile(r"(?<!\#)\#{4}(?!\#)")
"""GSM8K's announcement: ``#### 18``, with nothing else on its line."""

MINUS: Mapping[str, str] = {
    "en": "minus|negative",
    "es": "menos",
    "fr": "moins",
    "de": "minus",
    "ru": "минус",
    "zh": "负|負",
    "ja": "マイナス",
    "th": "ติดลบ|ลบ",
    "sw": "hasi",
    "bn": "ঋণাত্মক|মাইনাস|বিয়োগ",
    "te": "మైనస్|ఋణ",
}
"""Map from language to words that stand for a minus sign right before an announced number."""

OF = (
    r"of|out\s+of|de\s+l[ao]s?|de\s+l['’]|del|des?|du|d['’]|von|vom|der|aus|от|из|ya|za|wa|cha|kati\s+ya"
    r"|的|之|の|のうち|の内の|ของ|จาก|এর|-এর|র|లో|యొక్క"
)
"""Words between a share and its whole: ``20% of 90``."""

PERCENT = (
    r"%|percent|per\s+cent|por\s*ciento|pour\s*cents?|prozent|процент\w{0,3}|パーセント|เปอร์เซ็นต์|শতাংশ|శాతం"
)
"""Words for ``%``."""

EQUALS = (
    r"is|are|equals|es|son|est|font|vaut|ist|sind|ergibt|равно|равен|составляет|это|是|等于|等於|は|คือ|เท่ากับ|ni"
    r"|হল|হলো|হয়"
)
"""Words that stand for ``=`` after a share."""

OPERATORS = (
    r"plus|minus|times|(?:multiplied|divided)\s+by|más|menos|por|entre|dividido\s+(?:por|entre)|moins|fois"
    r"|(?:divisé|multiplié)\s+par|mal|geteilt\s+durch|плюс|минус|умножить\s+на|разделить\s+на|加|减|減|乘以?|除以"
    r"|足す|引く|掛ける|かける|割る|บวก|ลบ|คูณ|หาร|jumlisha|toa|mara|gawanya\s+kwa|যোগ|বিয়োগ|গুণ|ভাগ"
)
"""Words for an operation between two numbers: ``9 times 2 = 18``."""

FINAL = _compile(r"final|endgültig|окончательн|итогов|最[终終]|สุดท้าย|mwisho|চূড়ান্ত|తుది")
"""Words of a heading over the answer alone, not over a whole solution."""

_FOLLOWING = (
    r"(?:next|new|another|second|third|similar|bonus|practice|related|follow-?up)\s+(?:question|problem|exercise)"
    r"|(?:siguiente|nueva|otra)\s+pregunta|(?:nuevo|otro)\s+problema|(?:pregunta|problema|ejercicio)\s+siguiente"
    r"|question\s+suivante|(?:nouvelle|autre)\s+question|(?:nouveau|autre)\s+problème"
    r"|(?:nächste|neue|weitere)\s+(?:frage|aufgabe)|(?:следующ|нов|друг)\w{2,3}\s+(?:вопрос|задача|задание)"
    r"|下一?[个個道]?[问問题題]題?题?|次の(?:問題|質問)|(?:คำถาม|โจทย์)(?:ข้อ)?(?:ต่อไป|ถัดไป)|swali\s+(?:lingine|linalofuata|jipya)"
    r"|(?:পরবর্তী|পরের|নতুন|আরেকটি)\s+(?:প্রশ্ন|সমস্যা)|(?:తదుపరి|మరొక|కొత్త)\s+(?:ప్రశ్న|సమస్య)"
)
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
    """Return the words in composed and decomposed form, because generated text contains either."""
    forms = (unicodedata.normalize(form, words) for form in ("NFC", "NFD"))
    return "|".join(dict.fromkeys(word for form in forms for word in form.split("|")))


_FOLLOWING = "|".join(unicodedata.normalize(form, _FOLLOWING) for form in ("NFC", "NFD"))
_NUMBER = r"(?:[ \t]*(?:\#|no\.?|n[º°]|nr\.?|№|la|ya|ข้อที่|ข้อ|ที่)?[ \t]*\d+(?:[ \t]*[題题問问])?)"
_HEADER_COLON = r"[ \t\u00a0\u202f*_]*[:：ঃ﹕]"
_START = r"^[ \t\u200b\ufeff>*_#`\[【（(-]*"
_CLOSING = r"[ \t]*[\]】）)]?"
_FLAGS = re.IGNORECASE | re.MULTILINE

QUESTION = re.compile(
    rf"{_START}(?:{_both(_QUESTIONS)}){_NUMBER}?{_CLOSING}{_HEADER_COLON}"
    rf"|(?<=\n)[ \t]*(?:#{{1,6}}|\*\*)[ \t*_]*(?:{_both(_QUESTIONS)}){_NUMBER}?[ \t*_]*$"
    rf"|(?<=\n)[ \t]*(?:{_both(_QUESTIONS)}){_NUMBER}[ \t]*[.)]?[ \t]*$"
    r"|\bQuestion:[ \t*_]*$",
    _FLAGS,
)
"""The header of a next question. MGSM's header counts in any language at the start of a line. It also
counts on a later line as a heading of its own. The prompt's own header ``Question:`` counts anywhere."""

EXAMPLE = re.compile(
    rf"^[ \t\u200b\ufeff>*_#`\[【（(-]*(?:"
    rf"(?P<exercise>(?:{_both(_EXERCISES)}){_NUMBER}?|(?:{_FOLLOWING})|Q(?=\. )"
    rf"|(?:{_both(_QUESTIONS)}){_NUMBER}(?=[ \t*_]*[.)]))"
    rf"|(?P<example>(?:{_both(_EXAMPLES)}){_NUMBER}?))"
    rf"(?:{_CLOSING}{_HEADER_COLON}|(?:(?<=\d)|(?<=\nQ))[ \t*_]*(?:[.)]|$))",
    _FLAGS,
)
"""The header of a next exercise or example, on a later line: ``Exercise 2:``, ``## Example 2``."""


def is_reply(header: re.Match[str]) -> bool:
    """Return whether a header of `ROLE` may stand over the answer itself, such as ``### Response:``.

    A question followed by the prompt's phrase counts as such a header too. An answer may begin with a
    question to itself.
    """
    return any(header[name] is not None for name in ("reply", "reply_head", "asked"))


def begins_list(header: re.Match[str]) -> bool:
    """Return whether a header of `EXAMPLE` may belong to an answer.

    It may if it is an unnumbered example, or if its number is 0 or 1. Then it can be the first entry of a
    list.
    """
    number = re.search(r"\d+", header[0])
    if number is None:
        return header["example"] is not None
    return int(number[0][:9]) < 2


ROLE = re.compile(
    rf"(?<=\n)[ \t\u200b\ufeff>*_#`\[【（(-]*(?:{_both(_ASKING)}|(?P<reply>{_both(_REPLYING)}))"
    rf"{_CLOSING}{_HEADER_COLON}"
    rf"|(?<=\n)[ \t]*#{{1,6}}[ \t*_]*(?:{_both(_ASKING)}|(?P<reply_head>{_both(_REPLYING)}))[ \t*_]*$"
    r"|(?<=\n)[ \t]*(?:user|assistant|system|model)[ \t]*$"  # ChatML whose marks a tokenizer dropped
    rf"|(?P<asked>[?？][ \t*_]*\n\s{{0,4}}(?:{_both('|'.join(map(re.escape, THINK.values())))}))"
    r"|<[|｜][^<>|｜\s]{1,40}[|｜]>|</?s>|<(?:eos|bos|pad)>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>",
    _FLAGS,
)
"""The header of the next speaker in a chat, on a later line. The marks of chat templates (ChatML, Gemma,
Llama, Mistral) count anywhere."""

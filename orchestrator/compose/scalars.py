"""How an unquoted word is read, in YAML files and on the command line alike: by YAML 1.2's core schema.

YAML 1.1, which PyYAML, OmegaConf and Hydra follow in part, reads ``no`` as false, ``12:30`` as 750, ``010``
as 8 and ``1_000`` as 1000. Here all four are text. One rule is ours: a number with a leading zero, such as
the account ``01234``, is text, as it is to Hydra's override grammar; the core schema reads it as 1234.

Source: https://yaml.org/spec/1.2.2/#103-core-schema.
"""

from __future__ import annotations

import math
import re
from typing import Final

from orchestrator.errors import UserError

FIRST_CHARACTERS: Final = "~nNtTfF.+-0123456789"
"""What a word that is no text can begin with; an empty word is null as well."""

_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INF_OR_NAN = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")

NO_TEXT: Final = re.compile(
    "(?:" + "|".join(p.pattern for p in (_NULL, _BOOL, _INT, _FLOAT, _INF_OR_NAN)) + r")\Z"
)
"""The words that are no text."""


def scalar(word: str) -> str | int | float | bool | None:
    """Return the value of an unquoted word.

    Args:
        word: as written, without space around it.

    Raises:
        UserError: a number that cannot be held, which was perhaps meant as text.
    """
    if _NULL.fullmatch(word):
        return None
    if _BOOL.fullmatch(word):
        return word.lower() == "true"
    if _INT.fullmatch(word):
        try:
            return int(word, 0) if word[:2] in ("0o", "0x") else int(word)
        except ValueError:  # Python converts no more than 4,300 digits
            raise _too_large(word) from None
    if _FLOAT.fullmatch(word):
        number = float(word)
        if math.isinf(number):
            raise _too_large(word)
        return number
    if _INF_OR_NAN.fullmatch(word):
        return float(word.replace(".", ""))
    return word


def _too_large(word: str) -> UserError:
    shown = word if len(word) <= 40 else f"{word[:20]}... of {len(word):,} characters"
    return UserError(f"{shown} is too large a number", fix="in quotes it is text")

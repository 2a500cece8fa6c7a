"""Identity: canonical JSON, the digests made of it, and the readable ids of cells. Pure.

What cannot have a stable identity (NaN, objects, absolute paths) is refused here, with the key's name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.core.sweep import Input
from orchestrator.errors import UserError

_NUM_ID_DIGITS = 8
_MAX_NAME_BYTES = 160
"""Ids become file names; 255 bytes are common, and a digest and a suffix must still fit."""

_PATH = re.compile(r"(?:/[^/\s]+(?:/[^\n]*)?|~/[^\n]*|file://[^\n]*)\Z")
_MAYBE_PATH = re.compile(r'"(?:/|~/|file://)')
_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"), check_circular=False
).encode


def canonical(value: Any, *, where: str = "") -> str:
    """Returns the one JSON text of a value: sorted keys, no whitespace, NFC text, floats by `repr`.

    Args:
        value: a plain tree; ``1`` and ``1.0`` differ, tuples count as lists.
        where: what the tree belongs to, for the message.

    Raises:
        UserError: the value holds NaN, infinity, an object or an absolute path; the key is named.
    """
    try:
        text = _encode(value)
    except (TypeError, ValueError):
        _normal(value, "", where)  # finds the key
        raise
    # The common case costs one pass in C; only suspects are walked.
    if not text.isascii() and not unicodedata.is_normalized("NFC", text):
        return _encode(_normal(value, "", where))
    if _MAYBE_PATH.search(text):
        _normal(value, "", where)
    return text


def digest_of(value: Any, *, where: str = "") -> str:
    """Returns the sha-256 of the canonical JSON, hexadecimal."""
    return hashlib.sha256(canonical(value, where=where).encode()).hexdigest()


def stage_digest(
    target: str, version: int, reads: Mapping[str, Any], inputs: Sequence[Input], *, where: str = ""
) -> str:
    """Returns the identity of a stage instance, known before anything runs.

    Args:
        target: ``module:function``, the command template, or ``polysweep:NAME`` for a stage that ships here.
        version: the stage's own version number.
        reads: the slice of config that it is given, without neutral keys.
        inputs: the products that it takes, in order.
        where: what to name in an error.
    """
    what = {
        "target": target,
        "version": version,
        "reads": reads,
        "inputs": [(item.stage, item.label, item.digest) for item in inputs],
    }
    return digest_of(what, where=where)


def cell_ids(names: Sequence[str], chains: Sequence[Sequence[str]]) -> list[str]:
    """Returns a unique id for each cell: its name and as many digits of its chain's digest as it takes.

    Args:
        names: the joined labels of each cell's axes.
        chains: the digests of each cell's stages; no two chains are equal.
    """
    digests = [digest_of(list(chain)) for chain in chains]
    stems = [_stem(name) for name in names]
    ids = [f"{stem}-{digest[:_NUM_ID_DIGITS]}" for stem, digest in zip(stems, digests, strict=True)]
    num_digits = _NUM_ID_DIGITS
    while num_digits < len(digests[0] if digests else ""):
        seen = Counter(ids)
        if len(seen) == len(ids):
            break
        num_digits *= 2
        ids = [
            f"{stem}-{digest[:num_digits]}" if seen[old] > 1 else old
            for old, stem, digest in zip(ids, stems, digests, strict=True)
        ]
    return ids


def _stem(name: str) -> str:
    kept = "".join(char if _is_kept(char) else "-" for char in unicodedata.normalize("NFC", name))
    stem = kept.encode()[:_MAX_NAME_BYTES].decode(errors="ignore").strip(".")
    return stem if stem and stem[0] not in "-+=" else f"cell{stem}"


def _is_kept(char: str) -> bool:
    # marks (M) are the vowel signs of scripts such as Bengali and Telugu
    return char.isalnum() or char in "_+=.-" or unicodedata.category(char).startswith("M")


def _normal(value: Any, key: str, where: str) -> Any:
    """Returns the tree with NFC text; raises for what has no stable identity."""
    match value:
        case str():
            if _PATH.match(value):
                raise UserError(
                    f"{key or 'a value'} is the absolute path {value!r}, which would be hashed",
                    where=where,
                    allowed="a path says where, not what: it may change while the content stays",
                    fix=f"move {key or 'it'} from `reads` to `uses` and read a fingerprint of it instead",
                )
            return unicodedata.normalize("NFC", value)
        case bool() | int() | None:
            return value
        case float():
            if math.isfinite(value):
                return value
        case Mapping() if all(isinstance(name, str) for name in value):
            items = ((name, _normal(item, _joined(key, name), where)) for name, item in value.items())
            return {unicodedata.normalize("NFC", name): item for name, item in items}
        case list() | tuple():
            return [_normal(item, f"{key}[{index}]", where) for index, item in enumerate(value)]
    raise UserError(
        f"{key or 'a value'} is {value!r}, which has no stable identity",
        where=where,
        allowed="text, whole and finite numbers, true, false, null, lists and mappings of them",
    )


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name

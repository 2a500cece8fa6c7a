"""Identity: canonical JSON, the digests computed from it, and the readable ids of cells. Pure.

A digest must be the same on every machine and after every restart. Values without a stable identity (NaN,
objects, absolute paths) are refused here, with the name of their key.
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
"""Maximum length of the readable part of an id, in bytes.

Ids become file names. File systems commonly allow 255 bytes, which must also hold a digest and a suffix.
"""

_PATH = re.compile(r"(?:/[^/\s]+(?:/[^\n]*)?|~/[^\n]*|file://[^\n]*)\Z")
# A cheap test of the encoded text: some string in it begins like a path.
_MAYBE_PATH = re.compile(r'"(?:/|~/|file://)')
_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"), check_circular=False
).encode


def canonical(value: Any, *, where: str = "") -> str:
    """Return the one canonical JSON text of a value: sorted keys, no whitespace, NFC text, floats by `repr`.

    Args:
        value: a plain tree. ``1`` and ``1.0`` differ; tuples count as lists.
        where: what the tree belongs to, for the message.

    Raises:
        UserError: the value contains NaN, infinity, an object or an absolute path; the message names the key.
    """
    try:
        text = _encode(value)
    except (TypeError, ValueError):
        _normal(value, "", where)  # raises an error that names the key
        raise
    # Walking a tree in Python is slow. The encoder runs in C, so only a suspicious text is walked.
    if not text.isascii() and not unicodedata.is_normalized("NFC", text):
        return _encode(_normal(value, "", where))
    if _MAYBE_PATH.search(text):
        _normal(value, "", where)
    return text


def digest_of(value: Any, *, where: str = "") -> str:
    """Return the SHA-256 of the canonical JSON, in hexadecimal.

    Args:
        value: a plain tree.
        where: what the tree belongs to, for the message.

    Raises:
        UserError: the value has no stable identity.
    """
    return hashlib.sha256(canonical(value, where=where).encode()).hexdigest()


def stage_digest(
    target: str, version: int, reads: Mapping[str, Any], inputs: Sequence[Input], *, where: str = ""
) -> str:
    """Return the identity of a stage instance. It needs no results, so it exists before anything runs.

    Since the digests of the inputs are included, a change early in a chain changes every later digest.

    Args:
        target: ``module:function``, the command template, or ``polysweep:NAME`` for a built-in stage.
        version: the stage's own version number.
        reads: the slice of config that the stage reads, without neutral keys.
        inputs: the products that it takes, in order.
        where: what to name in an error.

    Raises:
        UserError: a value has no stable identity.
    """
    what = {
        "target": target,
        "version": version,
        "reads": reads,
        "inputs": [(item.stage, item.label, item.digest) for item in inputs],
    }
    return digest_of(what, where=where)


def cell_ids(names: Sequence[str], chains: Sequence[Sequence[str]]) -> list[str]:
    """Return a unique id for each cell: its name and the first digits of the digest of its chain.

    Ids start with 8 digits. Only cells whose ids collide get more digits, so that the other ids stay short.

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
    # A leading "-" would look like an option on a command line, and "+" or "=" like an override.
    return stem if stem and stem[0] not in "-+=" else f"cell{stem}"


def _is_kept(char: str) -> bool:
    # Marks (M) include the vowel signs of scripts such as Bengali and Telugu; without them, words differ.
    return char.isalnum() or char in "_+=.-" or unicodedata.category(char).startswith("M")


def _normal(value: Any, key: str, where: str) -> Any:
    """Return the tree with NFC text. Raise `UserError` for a value without a stable identity."""
    match value:
        case str():
            if _PATH.match(value):
                raise UserError(
                    f"{key or 'a value'} is the absolute path {value!r}, which would be hashed",
                    where=where,
                    allowed="a path says where, not what: it may change while the content stays",
                    fix=f"move {key or 'it'} from `reads` to `uses` and read a fingerprint of it instead",
                )
            # Unicode has several spellings of one text: "é" may be one code point or two.
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

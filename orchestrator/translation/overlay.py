"""Corrections by native speakers: JSON lines that the review sheet saves, applied when a data set is made.

::

    {"row": "<digest>", "language": "es", "id": "test-3", "texts": {"2": "náuseas"}}

A correction names the digest of the English row, so it never lands on another one. It replaces single texts,
and the whole row passes the same hard checks as a reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from orchestrator.errors import UserError
from orchestrator.translation.rows import SourceRow
from orchestrator.translation.run import Judged
from orchestrator.translation.template import template_of
from orchestrator.translation.verdicts import Fault, judge


class Correction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A line of an overlay.

    Attributes:
        row: digest of the English row.
        language: of the translation.
        texts: the corrected texts by key, with placeholders.
        id: of the row, for people.
        by: who corrected it, for people.
    """

    row: str
    language: str
    texts: dict[str, str]
    id: str = ""
    by: str = ""


Overlay = Mapping[tuple[str, str], Correction]
"""Map from row and language to the correction."""


def read_overlay(path: Path | None) -> dict[tuple[str, str], Correction]:
    """Return the corrections of a file, or of all ``*.jsonl`` files of a folder by name.

    Of several corrections of one row, each text of a later one replaces that of an earlier one.

    Raises:
        UserError: a file is absent, or a line has another form.
    """
    if path is None:
        return {}
    path = path.expanduser()
    if not path.exists():
        raise UserError(f"no file or folder of corrections {str(path)!r}")
    found: dict[tuple[str, str], Correction] = {}
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            if not line.strip():
                continue
            try:
                new = msgspec.json.decode(line, type=Correction)
            except msgspec.DecodeError as error:
                raise UserError(
                    f"a correction is not as it should be: {error}", where=f"{file}:{number}"
                ) from None
            before = found.get((new.row, new.language))
            texts = {**(before.texts if before else {}), **new.texts}
            found[new.row, new.language] = msgspec.structs.replace(new, texts=texts)
    return found


def corrected(row: SourceRow, judged: Judged, correction: Correction) -> Judged:
    """Return the judgement on a row with its correction. If that is refused, it has faults."""
    texts = {**judged.translations, **correction.texts}
    if unknown := correction.texts.keys() - {text.key for text in template_of(row.line).texts}:
        return msgspec.structs.replace(
            judged, faults=(Fault("other-texts", f"the row has no text {min(unknown)}"),)
        )
    verdict = judge(template_of(row.line), row.line, texts, correction.language)
    return msgspec.structs.replace(
        judged, translations=dict(verdict.translations), faults=verdict.faults, flags=verdict.flags
    )

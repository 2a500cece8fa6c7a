"""The review sheet of a language: a self-contained HTML page on which a native speaker corrects texts.

It shows source beside translation, with refused rows first, then flagged ones, then others by digest, which
is as good as at random. The page saves what was changed as JSON lines, and the next data set takes these over
(`read_overlay`, `corrected`)::

    {"row": "<digest>", "language": "es", "id": "test-3", "texts": {"2": "náuseas"}}

A correction names the digest of the English row, so it never lands on another one. It replaces single texts,
and the whole row passes the same hard checks as a reply.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from orchestrator.errors import UserError, home_expanded
from orchestrator.translation.kept import PLACEHOLDER
from orchestrator.translation.rows import SourceRow
from orchestrator.translation.run import ACCEPTED, Judged
from orchestrator.translation.template import VALUE, Template, template_of
from orchestrator.translation.verdicts import KINDS, NAMES, Fault, judge

if TYPE_CHECKING:
    from markupsafe import Markup

MAX_NOTES = 6
"""Reasons and flags of a row that are shown."""
_TEMPLATE = Path(__file__).with_name("review.html")
RIGHT_TO_LEFT = frozenset({"ar", "fa", "he", "ur"})
"""Languages written from right to left. The study has none; the page can show them."""


class ShownText(NamedTuple):
    """A text of a row: its key, English, translation, and whether it is a value or has a fault."""

    key: str
    english: Markup
    translation: str
    is_value: bool
    has_fault: bool


class ShownRow(NamedTuple):
    """A row of the page.

    Attributes:
        id, row: id and digest of the row.
        state: ``refused``, ``flagged``, ``corrected`` or ``accepted``.
        notes: reasons and flags.
        texts: all of the row.
        gold: the call in English.
    """

    id: str
    row: str
    state: str
    notes: Sequence[str]
    texts: Sequence[ShownText]
    gold: str


def page(
    language: str,
    judged: Sequence[tuple[SourceRow, Judged]],
    *,
    corrected: Collection[str],
    max_rows: int,
) -> str:
    """Return the page.

    Args:
        language: of the translations.
        judged: all rows; equal rows are shown once.
        corrected: ids of rows with an accepted correction.
        max_rows: most rows to show.
    """
    distinct = {row.digest: (row, one) for row, one in reversed(judged)}
    order = sorted(distinct.values(), key=lambda pair: (_rank(pair[1]), pair[0].digest))
    shown = [_row(row, one, one.id in corrected) for row, one in order[:max_rows]]
    counts = Counter(one.faults[0].kind if one.faults else ACCEPTED for _, one in judged)
    import jinja2

    # Texts come from a model and from files: `autoescape` keeps them from being read as markup.
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return (
        template.render(
            language=language,
            name=NAMES[language],
            direction="rtl" if language in RIGHT_TO_LEFT else "ltr",
            rows=shown,
            num_rows=len(distinct),
            counts=[(kind, KINDS.get(kind, "passed all checks"), n) for kind, n in counts.most_common()],
        )
        + "\n"
    )


def _rank(one: Judged) -> int:
    return 0 if one.faults else 1 if one.flags else 2


def _row(row: SourceRow, one: Judged, is_corrected: bool) -> ShownRow:
    template = template_of(row.line)
    faulty = {fault.key for fault in one.faults}
    texts = [
        ShownText(
            text.key,
            _marked(text.text, template),
            one.translations.get(text.key, ""),
            text.kind == VALUE,
            text.key in faulty,
        )
        for text in template.texts
    ]
    state = "refused" if one.faults else "corrected" if is_corrected else "flagged" if one.flags else ACCEPTED
    notes = [*(fault.text for fault in one.faults), *one.flags]
    if len(notes) > MAX_NOTES:
        notes[MAX_NOTES:] = [f"and {len(notes) - MAX_NOTES} more"]
    return ShownRow(one.id, row.digest, state, notes, texts, row.line["output"])


def _marked(text: str, template: Template) -> Markup:
    """Return an English text with its placeholders as marks that show what they stand for."""
    from markupsafe import Markup, escape

    parts = []
    for piece in re.split(f"({PLACEHOLDER.pattern})", text):
        if PLACEHOLDER.fullmatch(piece):
            meaning = template.kept.get(piece) or f"text {template.values.get(piece, '?')}"
            parts.append(Markup("<mark>{}<small>{}</small></mark>").format(piece, meaning))
        else:
            parts.append(escape(piece))
    return Markup("").join(parts)


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
    path = home_expanded(path)
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

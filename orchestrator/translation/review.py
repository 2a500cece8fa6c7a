"""The review sheet of a language: a self-contained HTML page on which a native speaker corrects texts.

It shows source beside translation, with refused rows first, then flagged ones, then others by digest, which
is as good as at random. The page saves what was changed as lines for `orchestrator.translation.overlay`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup, escape

from orchestrator.translation.kept import PLACEHOLDER
from orchestrator.translation.rows import SourceRow
from orchestrator.translation.run import ACCEPTED, Judged
from orchestrator.translation.scripts import NAMES
from orchestrator.translation.template import VALUE, Template, template_of
from orchestrator.translation.verdicts import KINDS

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
    parts = []
    for piece in re.split(f"({PLACEHOLDER.pattern})", text):
        if PLACEHOLDER.fullmatch(piece):
            meaning = template.kept.get(piece) or f"text {template.values.get(piece, '?')}"
            parts.append(Markup("<mark>{}<small>{}</small></mark>").format(piece, meaning))
        else:
            parts.append(escape(piece))
    return Markup("").join(parts)

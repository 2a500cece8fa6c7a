"""The stage `assemble`: the data set of all languages, the manifest of yields, and the review sheets.

A row counts when every language has an accepted translation. Corrections are applied first, so that one may
save a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from orchestrator.errors import StageFailure, UserError, home_expanded
from orchestrator.stage import Config, Context, Inputs, Row
from orchestrator.tasks import dataset, importing
from orchestrator.tasks.importing import Choice
from orchestrator.tasks.sources import Raw, open_source
from orchestrator.translation import review
from orchestrator.translation.review import Overlay, corrected, read_overlay
from orchestrator.translation.rows import PROMPT_VERSION, SourceRow, read_rows
from orchestrator.translation.run import ACCEPTED, VERDICTS, Judged, pretty, read_lines
from orchestrator.translation.template import template_of
from orchestrator.translation.verdicts import Fault

DATASET, MANIFEST, REVIEW = "dataset", "translation.json", "review"
"""The parts of the product: the data set, the yields, and a folder with a review sheet a language."""


class Translated(NamedTuple):
    """All rows in one language.

    Attributes:
        rows: id to the judgement on the row, corrections applied.
        lines: id to the translated line, of accepted rows.
        corrected: ids of rows with a correction that was accepted.
        refused: corrections that were refused, for the manifest.
    """

    rows: Mapping[str, Judged]
    lines: Mapping[str, dict[str, str]]
    corrected: frozenset[str]
    refused: tuple[dict[str, str], ...]


def main(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Write the data set, the manifest and the review sheets.

    Returns:
        One row a language: how many rows were accepted there, and how many stay in all.

    Raises:
        StageFailure: no row is left in all languages, or a file cannot be read (cause ``data``).
    """
    path = home_expanded(context.uses.source.path)
    try:
        rows = read_rows(path, config.task)
        overlay = read_overlay(Path(context.uses.overlay.path) if context.uses.overlay.path else None)
    except UserError as error:
        raise StageFailure("data", str(error)) from error
    found = {language: _translated(rows, language, inputs, overlay) for language in config.to}
    try:
        built = _built(path, config, rows, found)
        dataset.write(context.output / DATASET, built.info, built.rows, verify=importing.verify)
    except UserError as error:
        raise StageFailure("data", f"{error}\n{_yields(found)}") from error
    kept = frozenset(id_ for split in built.info.splits.values() for id_ in split.ids)
    manifest = _manifest(config, rows, found, kept, overlay)
    (context.output / MANIFEST).write_bytes(pretty(manifest))
    folder = context.output / REVIEW
    folder.mkdir()
    for language, translated in found.items():
        judged = [(row, translated.rows[row.line["id"]]) for row in rows]
        text = review.page(language, judged, corrected=translated.corrected, max_rows=config.review_rows)
        (folder / f"{language}.html").write_text(text, encoding="utf-8")
    return [
        {
            "language": language,
            "num_rows": len(rows),
            "num_accepted": len(found[language].lines),
            "num_corrected": len(found[language].corrected),
            "num_kept": len(kept),
            "num_without": manifest["without"][language],
        }
        for language in config.to
    ]


def _translated(rows: Sequence[SourceRow], language: str, inputs: Inputs, overlay: Overlay) -> Translated:
    """Return all rows of a language, with corrections applied."""
    judged: dict[str, Judged] = {}
    for label, folder in inputs.each("validate").items():
        if label.partition(".")[0] == language:
            judged |= {one.id: one for one in read_lines(folder / VERDICTS, Judged)}
    lines: dict[str, dict[str, str]] = {}
    texts: dict[tuple[str, str], str] = {}
    done: set[str] = set()
    refused: list[dict[str, str]] = []
    for row in rows:
        id_ = row.line["id"]
        if correction := overlay.get((row.digest, language)):
            new = corrected(row, judged[id_], correction)
            if new.faults:
                refused.append({"id": id_, "row": row.digest, "why": new.faults[0].text})
            else:
                judged[id_] = new
                done.add(id_)
        if not judged[id_].faults:
            line = template_of(row.line).line(id_, judged[id_].translations)
            first = texts.setdefault((line["instruction"], line["input"]), row.digest)
            if first == row.digest:
                lines[id_] = line
            else:
                fault = Fault("same-as-another", "the texts are those of another row")
                judged[id_] = msgspec.structs.replace(judged[id_], faults=(fault,))
    return Translated(judged, lines, frozenset(done), tuple(refused))


def _built(
    path: Path, config: Config, rows: Sequence[SourceRow], found: Mapping[str, Translated]
) -> importing.Built:
    """Return the data set of English and all languages.

    Raises:
        UserError: too few rows are left.
    """
    origin = open_source(path, config.task)

    def raws() -> Iterator[Raw]:
        for row in rows:
            for language in ("en", *config.to):
                id_ = row.line["id"]
                line = row.line if language == "en" else found[language].lines.get(id_)
                if line is not None:
                    yield Raw(row.split, language, id_, line, f"{origin.name}, {id_} in {language}")

    note = (
        f"English as published; {', '.join(config.to)} translated by {config.model.name},"
        f" prompt {PROMPT_VERSION}"
    )
    source = origin._replace(rows=raws, line=lambda raw: dict(raw.row), note=note)
    sizes = config.sizes
    choice = Choice(
        languages=("en", *config.to),
        num_train=sizes.num_train,
        num_validation=sizes.num_validation,
        num_test=sizes.num_test,
        seed=sizes.seed,
    )
    return importing.build(config.task, source, None, choice)


def _reasons(translated: Translated) -> dict[str, int]:
    counts = Counter(one.faults[0].kind if one.faults else ACCEPTED for one in translated.rows.values())
    return dict(sorted(counts.items()))


def _yields(found: Mapping[str, Translated]) -> str:
    """Return the yields as lines, for the error that too few rows are left."""
    return "\n".join(
        f"{language}: " + ", ".join(f"{reason} {number}" for reason, number in _reasons(one).items())
        for language, one in found.items()
    )


def _manifest(
    config: Config,
    rows: Sequence[SourceRow],
    found: Mapping[str, Translated],
    kept: frozenset[str],
    overlay: Overlay,
) -> dict[str, Any]:
    """Return the yields by language and reason, and what corrections did."""
    ids = [row.line["id"] for row in rows]
    everywhere = [id_ for id_ in ids if all(id_ in one.lines for one in found.values())]
    known = {(row.digest, language) for row in rows for language in found}
    return {
        "format": 1,
        "model": config.model.name,
        "prompt_version": PROMPT_VERSION,
        "num_rows": len(rows),
        "num_in_all_languages": len(everywhere),
        "num_in_data_set": len(kept),
        # By language: rows by reason, then refused replies by reason, also where a later reply was good.
        "yields": {language: _reasons(one) for language, one in found.items()},
        "refused_replies": {
            language: dict(
                sorted(Counter(k for r in one.rows.values() for kinds in r.refused for k in kinds).items())
            )
            for language, one in found.items()
        },
        # By language: the rows that all the other languages have, to show what it costs them.
        "without": {
            language: sum(
                all(id_ in one.lines for other, one in found.items() if other != language) for id_ in ids
            )
            for language in found
        },
        "flagged": {
            language: sum(bool(r.flags) for r in one.rows.values()) for language, one in found.items()
        },
        "corrected": {language: sorted(one.corrected) for language, one in found.items()},
        "refused_corrections": {language: list(one.refused) for language, one in found.items()},
        "unknown_corrections": sorted(f"{row} {code}" for row, code in overlay.keys() - known),
        "dropped": {
            id_: {code: one.rows[id_].faults[0].kind for code, one in found.items() if one.rows[id_].faults}
            for id_ in ids
            if id_ not in everywhere
        },
    }

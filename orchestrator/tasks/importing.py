"""Build a data set from sources: take ids that every language has, choose by seed, and split by id.

Splits consist of ids, so no translation of a validation item is ever trained on. A source may be larger
than memory, so it is read twice. The first pass collects the ids. The second pass loads only the rows that
may be chosen.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import UserError
from orchestrator.manifest import file_digest
from orchestrator.registry import TASKS, lookup
from orchestrator.tasks import dataset
from orchestrator.tasks.base import LANGUAGES, Split, Task, check_language
from orchestrator.tasks.files import shuffled
from orchestrator.tasks.sources import Raw, Source

MIN_EQUAL = 0.9
"""Minimum share of equal answers for which rows aligned by place count as translations of each other (our
choice)."""

SPARE = 1.5
"""Candidates to load for each wanted item, since some of them turn out to be unusable."""


class Choice(NamedTuple):
    """The number of items to choose.

    Attributes:
        languages: languages that the data set must have; empty for all of the source.
        num_train: training items; None for all.
        num_validation: validation items. 0 takes the source's whole validation split, if it has one.
        num_test: test items; None for all.
        seed: chooses the items if there are more.
    """

    languages: tuple[str, ...] = ()
    num_train: int | None = None
    num_validation: int = 0
    num_test: int | None = None
    seed: int = 0


Lines = dict[str, dict[str, dict[str, str]]]
"""Map from language to id to line."""


class _Taken(NamedTuple):
    """The items of a split.

    Attributes:
        ids: the ids.
        lines: their lines in every language. Lines of other ids may be among them.
    """

    ids: list[str]
    lines: Lines


class Built(NamedTuple):
    """A data set that is not written yet: its description and its rows."""

    info: dataset.DatasetInfo
    rows: dict[str, dict[str, list[dict[str, str]]]]


def build(task: str, source: Source | None, test: Source | None, choice: Choice) -> Built:
    """Choose the items of a data set.

    Args:
        task: the benchmark.
        source: the source of training and validation items, and of test items if `test` is None.
        test: the source of test items.
        choice: the number of items.

    Returns:
        The data set.

    Raises:
        UserError: a row is malformed, a language is missing, or there are too few items.
    """
    for language in choice.languages:
        check_language(language)
    parts = [_Part(task, one, is_test=one is test) for one in (source, test) if one is not None]
    if len(parts) == 2:
        parts[0].splits.pop(Split.TEST, None)
    rows: dict[str, dict[str, list[dict[str, str]]]] = {}
    infos: dict[str, dataset.SplitInfo] = {}
    origins: dict[str, dataset.Origin] = {}
    left_out: Counter[str] = Counter()
    for part in parts:
        for split, (ids, lines) in part.choose(choice, left_out).items():
            rows[split] = {language: [lines[language][id_] for id_ in ids] for language in lines}
            infos[split] = dataset.SplitInfo(languages=tuple(lines), ids=tuple(ids))
            origins[split] = origin_of(part.source)
    if not rows:
        raise UserError("no items to import", fix=f"sweep data describe {task}")
    info = dataset.DatasetInfo(
        task=task, splits=infos, origins=origins, seed=choice.seed, left_out=dict(sorted(left_out.items()))
    )
    return Built(info, rows)


def place_of(id_: str) -> tuple[str, int]:
    """Return a sort key by name, then by a number at the end: ``mgsm-9`` before ``mgsm-10``."""
    name = id_.rstrip("0123456789")
    return name, int(id_[len(name) :][:18] or -1)


def origin_of(source: Source) -> dataset.Origin:
    """Return the entry of `dataset.json` about a source.

    A digest of all names and sizes stands for the content if a file has 1 GiB or more, or if two files have
    one name.
    """
    digests = {path.name: file_digest(path) for path in source.files if path.stat().st_size < 1 << 30}
    if len(digests) < len(source.files):  # two files have one name, or one is too large
        text = "".join(f"{path.name} {path.stat().st_size}\n" for path in source.files)
        digests = {"names and sizes": hashlib.sha256(text.encode()).hexdigest()}
    return dataset.Origin(
        source=source.name,
        form=source.form,
        revision=source.revision,
        commit=source.commit,
        sha256=digests,
        note=source.note,
    )


def verify(folder: Path) -> None:
    """Read a data set back in the way that the stages will.

    Raises:
        UserError: an item is missing, is in another order than recorded, or cannot be used.
    """
    info = dataset.load(folder)
    task: Task = lookup(TASKS, info.task, kind="task")
    for name, split in info.splits.items():
        for language in split.languages:
            path = dataset.path_of(folder, name, language)
            usable = (line["id"] for line in task.lines(path, language) if not task.problem_of(line))
            if tuple(usable) != split.ids:
                raise UserError(f"{name}/{path.name} does not hold the items of the split")


class _Part:
    """One source and the ids of each of its splits.

    The first pass keeps one bit mask per id, with a bit for each language that has it. This is compact,
    since a source may have millions of rows.
    """

    def __init__(self, task: str, source: Source, *, is_test: bool) -> None:
        self.task: Task = lookup(TASKS, task, kind="task")
        self.source = source
        self._is_test = is_test
        self.splits: dict[Split, dict[str, int]] = {}
        self._languages: dict[Split, int] = {}
        self._twice: dict[Split, set[str]] = {}
        for split, raw in self._rows():
            bit, ids = _bit(raw.language), self.splits.setdefault(split, {})
            seen = ids.get(raw.id, 0)
            if seen & bit:
                self._twice.setdefault(split, set()).add(raw.id)
            ids[raw.id] = seen | bit
            self._languages[split] = self._languages.get(split, 0) | bit

    def _rows(self) -> Iterator[tuple[Split, Raw]]:
        """Yield the rows with their split, and with ids by place where the source has none."""
        places: Counter[str] = Counter()
        for raw in self.source.rows():
            if not raw.language:
                continue
            id_ = raw.id
            if not id_:
                id_ = str(places[raw.language])
                places[raw.language] += 1
            split = raw.split or (Split.TEST if self._is_test else Split.TRAIN)
            if not self._is_test or split is Split.TEST:
                yield split, raw._replace(id=id_)

    def choose(self, choice: Choice, left_out: Counter[str]) -> dict[Split, _Taken]:
        """Return the ids and lines of each split that the source has.

        Args:
            choice: the number of items.
            left_out: counts by reason, which this method increases.

        Raises:
            UserError: there are too few items, or a language is missing.
        """
        taken: dict[Split, _Taken] = {}
        for split in self.splits:
            num = {
                Split.TRAIN: choice.num_train,
                Split.VALIDATION: choice.num_validation or None,
                Split.TEST: choice.num_test,
            }[split]
            aside = choice.num_validation if self._sets_aside(split) else 0
            wanted = None if num is None else num + aside
            ids, lines = self._take(split, choice, wanted, left_out)
            if len(ids) < (wanted or aside + 1):
                raise UserError(
                    f"{wanted or aside + 1} {split} items wanted"
                    + (f", {aside} of them to validate" if aside else ""),
                    where=self.source.name,
                    allowed=f"{len(ids)} are usable in all of {', '.join(lines)}; left out: "
                    + (", ".join(f"{reason} {number}" for reason, number in left_out.items()) or "none"),
                )
            if aside:
                taken[Split.VALIDATION] = _Taken(sorted(ids[:aside], key=place_of), lines)
            taken[split] = _Taken(sorted(ids[aside:], key=place_of), lines)
        return taken

    def _sets_aside(self, split: Split) -> bool:
        """Return whether validation items are taken from the training items."""
        return split is Split.TRAIN and Split.VALIDATION not in self.splits

    def _take(self, split: Split, choice: Choice, wanted: int | None, left_out: Counter[str]) -> _Taken:
        """Return the first usable ids in the seed's order, and their lines in every language.

        Only some more candidates than wanted are loaded at first. If too many of them are unusable, all are
        loaded.
        """
        have = [language for language in LANGUAGES if self._languages[split] & _bit(language)]
        languages = [language for language in LANGUAGES if language in (choice.languages or have)]
        if missing := [language for language in languages if language not in have]:
            raise UserError(
                f"no {split} items in the language {missing[0]!r}",
                where=self.source.name,
                allowed=f"there: {', '.join(have)}",
            )
        mask, twice = sum(map(_bit, languages)), self._twice.get(split, set())
        whole = [id_ for id_, bits in self.splits[split].items() if bits & mask == mask]
        order = shuffled(sorted((id_ for id_ in whole if id_ not in twice), key=place_of), choice.seed)
        # A large source has far more ids than are wanted. Loading them all would take memory for nothing.
        limit = len(order) if wanted is None else int(wanted * SPARE) + 100
        while True:
            lines, why = self._lines(split, languages, set(order[:limit]))
            ids = [id_ for id_ in order[:limit] if id_ not in why]
            if wanted is None or len(ids) >= wanted or limit >= len(order):
                break
            limit = len(order)
        counts = Counter(why.values())
        counts["not in all languages"] = len(self.splits[split]) - len(whole)
        counts["twice in a language"] = len(twice.intersection(whole))
        counts["not chosen"] = len(order) - len(ids[:wanted]) - len(why)
        left_out.update({f"{split}: {reason}": number for reason, number in counts.items() if number})
        return _Taken(ids[:wanted], lines)

    def _lines(
        self, split: Split, languages: Sequence[str], wanted: set[str]
    ) -> tuple[Lines, dict[str, str]]:
        """Return the lines of some ids, and map unusable ids to the reason."""
        lines: Lines = {language: {} for language in languages}
        why: dict[str, str] = {}
        for found, raw in self._rows():
            if found is split and raw.language in lines and raw.id in wanted:
                line = self.source.line(raw)
                lines[raw.language][raw.id] = line
                if problem := self.task.problem_of(line):
                    why[raw.id] = self.task.reasons.get(problem, "unusable in a language")
        if (answer := self.source.answer) is not None:
            usable = wanted - set(why)
            answers = ((id_, {answer(lines[code][id_]) for code in languages}) for id_ in usable)
            differing = [id_ for id_, values in answers if len(values) > 1]
            # Rows without ids are aligned by their place, which is only a guess. Many different answers
            # refute it.
            if self.source.by_place and len(differing) > (1 - MIN_EQUAL) * len(usable):
                raise UserError(
                    f"the rows have no ids, and by their place {len(differing)} of {len(usable)} items"
                    " have different answers in the languages",
                    where=self.source.name,
                    fix="a revision with ids, or rows in the same order in every language",
                )
            why.update(dict.fromkeys(differing, "answers differ between languages"))
        return lines, why


def _bit(language: str) -> int:
    return 1 << _ORDER[language]


_ORDER = {language: place for place, language in enumerate(LANGUAGES)}

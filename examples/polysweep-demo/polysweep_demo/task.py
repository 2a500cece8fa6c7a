"""A task: to spell a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.tasks.base import Item, Line
from orchestrator.tasks.files import FileTask

WORDS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
)


class Spelling(FileTask):
    """See `orchestrator.tasks.base.Task`."""

    name = "spelling"
    description = "A line of spelling: id and word.\n"

    def generate(self, split: str, language: str, num_items: int, seed: int = 0) -> list[Item]:
        """Return the first words. A real task gives each split its own items."""
        lines = ({"id": word, "word": word} for word in WORDS[:num_items])
        return [self.item_of(line, language) for line in lines]

    def line_of(self, row: Mapping[str, Any], *, id_: str, language: str, where: str) -> dict[str, str]:
        """Return a row as a line of a data set."""
        return {"id": id_, "word": row["word"]}

    def item_of(self, line: Line, language: str) -> Item:
        """Return a line as an item."""
        word = line["word"]
        return Item(id=line["id"], language=language, prompt=f"Spell {word}:\n", response=word, gold=word)

    def is_correct(self, text: str, gold: str, language: str, *, truncated: bool = False) -> bool:
        """Return whether the text is the word."""
        return text.strip() == gold

    def looks_like(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row of an unknown file is of this task."""
        return "word" in row


SPELLING = Spelling()

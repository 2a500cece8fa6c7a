"""A task: to spell a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import UserError
from orchestrator.tasks.base import Item, Line, Split, check_split
from orchestrator.tasks.files import FileTask
from orchestrator.tasks.sources import field

WORDS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
)
OF_SPLIT = {Split.TRAIN: WORDS[:10], Split.VALIDATION: WORDS[10:13], Split.TEST: WORDS[13:]}


class Spelling(FileTask):
    """See `orchestrator.tasks.base.Task`."""

    name = "spelling"
    description = "A line of spelling: id and word.\n"

    def generate(self, split: str, language: str, num_items: int, seed: int = 0) -> list[Item]:
        """Return the first words of a split; the seed changes nothing."""
        words = OF_SPLIT[check_split(split)]
        if num_items > len(words):
            raise UserError(f"{num_items} items of {split}", allowed=f"at most {len(words)}")
        lines = ({"id": word, "word": word} for word in words[:num_items])
        return [self.item_of(line, language) for line in lines]

    def line_of(self, row: Mapping[str, Any], *, id_: str, language: str, where: str) -> dict[str, str]:
        """Return a row as a line of a data set."""
        return {"id": id_, "word": field(row, "word", where=where)}

    def item_of(self, line: Line, language: str) -> Item:
        """Return a line as an item."""
        word = line["word"]
        return Item(id=line["id"], language=language, prompt=f"Spell {word}:\n", response=word, gold=word)

    def stop(self, text: str) -> str:
        """Return the first line."""
        return text.partition("\n")[0]

    def is_correct(self, text: str, gold: str, language: str, *, truncated: bool = False) -> bool:
        """Return whether the text is the word."""
        return text.strip() == gold

    def looks_like(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row of an unknown file is of this task."""
        return "word" in row


SPELLING = Spelling()

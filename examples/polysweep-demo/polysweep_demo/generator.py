"""A generator: it answers nothing, which gives the accuracy that a task has without any answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.sft.generators.base import GeneratorSettings, IsOver


class SilentEngine:
    """See `orchestrator.sft.generators.base.Engine`."""

    is_batched = False

    def __init__(self, settings: GeneratorSettings) -> None:
        self._end = settings.eos_token_id

    def load(self, folder: Path) -> None:
        """Do nothing: no weights are needed."""

    def generate(
        self, rows: Sequence[Sequence[int]], *, max_new_tokens: int, is_over: IsOver
    ) -> list[list[int]]:
        """Return only the end token for each row."""
        return [[self._end] for _ in rows]

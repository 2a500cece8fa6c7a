"""A checkpoint that all ranks write while they go on, as the stage's process sees it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.manifest import REMEMBERED, FileKey
from orchestrator.saving import SaveAbandoned
from orchestrator.sft.distributed.context import as_exception


class SharedSave:
    """The wait for all ranks' files, which runs in the thread that then seals the checkpoint.

    Args:
        num_ranks: how many ranks write.

    Attributes:
        folder: of the checkpoint that is being written.
    """

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._num_written = 0
        self._error: BaseException | None = None
        self._all = threading.Event()
        self.folder = Path()

    def begin(self, folder: Path) -> Callable[[], None]:
        """Note the folder, and return the wait for the ranks; see `Context.checkpoint_later`."""
        self.folder = folder
        self._num_written = 0
        self._error = None
        self._all = threading.Event()
        return self._wait

    def take(self, rank: int, digests: Mapping[str, tuple[FileKey, str]], error: bytes | None) -> None:
        """Note that a rank has written its files, or failed to."""
        REMEMBERED.accept(digests)
        if error is not None:
            self._error = self._error or as_exception(error)
        self._num_written += 1
        if self._num_written == self._num_ranks:
            self._all.set()

    def abandon(self) -> None:
        """End the wait: the ranks are gone."""
        self._error = self._error or SaveAbandoned()
        self._all.set()

    def _wait(self) -> None:
        """Wait for all ranks.

        Raises:
            BaseException: what stopped a rank.
        """
        self._all.wait()
        if self._error is not None:
            raise self._error

"""The ranks' calls of the context, and a checkpoint that they all write, in the stage's process."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from orchestrator.errors import StopRequested
from orchestrator.manifest import REMEMBERED, FileKey
from orchestrator.saving import SaveAbandoned
from orchestrator.sft.distributed.context import as_bytes, as_exception
from orchestrator.stage import Context


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


class ContextCalls:
    """The calls of the stage's context that wait for an answer, made for the ranks.

    Args:
        context: of the running stage.
        num_ranks: how many ranks write a checkpoint.

    Attributes:
        later: the checkpoint that ranks write while they go on.
    """

    def __init__(self, context: Context, num_ranks: int) -> None:
        self._context = context
        self._open = ExitStack()
        self._finishing: Connection | None = None
        self.later = SharedSave(num_ranks)

    @property
    def is_finishing(self) -> bool:
        """Whether the ranks wait for a checkpoint to be complete."""
        return self._finishing is not None

    @property
    def stop_asked(self) -> bool:
        """Whether a stop was requested."""
        return self._context.stop_asked

    def answer(self, pipe: Connection, verb: str, *arguments: Any) -> None:
        """Make one call. Send its value, or its error as bytes."""
        try:
            answer: tuple[Any, bytes | None] = (getattr(self, verb)(*arguments), None)
        except BaseException as error:  # noqa: BLE001 - the ranks raise it, so it returns as a message
            answer = (None, as_bytes(error))
        with contextlib.suppress(OSError):  # it died while it waited
            pipe.send(answer)

    def answer_when_saved(self, pipe: Connection) -> None:
        """Note that the ranks wait until the checkpoint is complete; see `answer_finished`."""
        self._finishing = pipe

    def answer_finished(self) -> None:
        """Answer the ranks that wait for a checkpoint, once it is complete; other messages come first."""
        if self._finishing is not None and not self._context.saves.is_saving:
            pipe = self._finishing
            self._finishing = None
            self.answer(pipe, "finish_checkpoint")

    def abandon(self) -> None:
        """Discard a half-saved checkpoint: the ranks are gone."""
        self.later.abandon()
        with contextlib.suppress(BaseException):  # the failure of the ranks is the one to report
            self._context.finish_checkpoint()
        with contextlib.suppress(_Abandoned):
            self._open.__exit__(_Abandoned, _Abandoned(), None)

    def why_stop(self) -> str:
        """Return the reason for a requested stop, "" if none was requested."""
        try:
            self._context.stop_if_asked()
        except StopRequested as stopped:
            return stopped.why or "stopped"
        return ""

    def adapt(self, values: Mapping[str, Any]) -> None:
        """Record values that the ranks chose in place of those in `uses`."""
        self._context.adapt(values)

    def checkpoint_due(self, step: int, num_steps: int | None) -> bool:
        """Return whether to save now."""
        return self._context.checkpoint_due(step, num_steps=num_steps)

    def open_checkpoint(self, step: int) -> str:
        """Return the folder of a new checkpoint, which the ranks write before they go on."""
        return str(self._open.enter_context(self._context.checkpoint(step)).absolute())

    def commit_checkpoint(self, full: str) -> None:
        """Make the open checkpoint count, unless a rank found the disk full, in the words of its error."""
        error = OSError(errno.ENOSPC, full) if full else None
        self._open.__exit__(type(error) if error else None, error, None)

    def begin_checkpoint(self, step: int) -> str:
        """Return the folder of a new checkpoint, which the ranks write while they go on."""
        self._context.checkpoint_later(step, self.later.begin)
        return str(self.later.folder.absolute())

    def finish_checkpoint(self) -> None:
        """Finish the checkpoint that is being written, or raise what stopped it."""
        self._context.finish_checkpoint()


class _Abandoned(Exception):
    """Raised inside a checkpoint's context manager to discard an unfinished checkpoint."""

"""Ranks, in the stage's process: their calls, a checkpoint that they all write, and how they ended."""

from __future__ import annotations

import contextlib
import errno
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from orchestrator.errors import StageFailure, StopRequested
from orchestrator.manifest import REMEMBERED, FileKey
from orchestrator.saving import SaveAbandoned
from orchestrator.sft.distributed.context import as_bytes, as_exception
from orchestrator.sft.distributed.worker import ENDED
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


PATIENCE_S, _NEIGHBOURS_S, _SILENT_S = 10.0, 0.5, 60.0
"""Waiting times after the first failure, in seconds.

`PATIENCE_S` is the time for all processes to end. `_NEIGHBOURS_S` replaces it in a job of several nodes as
soon as a node has reported its ranks' exits. `_SILENT_S` replaces both while a rank has ended without a
message and its node has not yet reported how.
"""
_SECONDARY = (ENDED, -signal.SIGTERM)
"""Exit codes of ranks that ended because another rank failed."""

_EITHER = (-signal.SIGABRT,)
"""Exit codes of ranks that failed by themselves, or because another rank did: NCCL aborts in both cases."""

_LOST = re.compile(r"/gloo/transport/|\bNCCL\b|Connection (reset|closed) by peer")
"""Words of an error that follows from the loss of another rank; torch raises it as a `RuntimeError`."""


class RankEnds:
    """How the ranks of a group ended, and which of the failures was the first cause.

    Args:
        num_processes, num_nodes: of the group.

    Attributes:
        done: what each rank returned.
        raised: the exception of each rank that raised one. In order of arrival: the first is closest to the
            cause.
        exits: rank, exit code and whether the kernel was out of memory, as launchers report them.
    """

    def __init__(self, num_processes: int, num_nodes: int) -> None:
        self._num_processes = num_processes
        self._num_nodes = num_nodes
        self.done: dict[int, Any] = {}
        self.raised: dict[int, BaseException] = {}
        self.exits: list[tuple[int, int, bool]] = []
        self._silent: list[int] = []  # ended without a message, in that order
        self._failed_s: float | None = None

    @property
    def are_all_done(self) -> bool:
        """Whether every rank returned."""
        return len(self.done) == self._num_processes

    @property
    def is_failed(self) -> bool:
        """Whether a rank ended without a result."""
        return self._failed_s is not None

    def lose(self, rank: int | None) -> None:
        """Note that a rank's connection closed. None is a process that had not yet named its rank."""
        if rank in self.done:
            return
        self._failed_s = self._failed_s or time.monotonic()
        if rank is not None and rank not in self.raised:
            self._silent.append(rank)

    def is_overdue(self, *, has_launcher: bool) -> bool:
        """Return whether the processes that are left have had their time to end after the first failure.

        Args:
            has_launcher: whether a launcher is still connected.
        """
        # A cause is reported, so the other nodes need not be waited for: Slurm ends them slowly.
        is_known = self._num_nodes > 1 and self.exits
        patience_s = _NEIGHBOURS_S if is_known else PATIENCE_S
        patience_s = _SILENT_S if self._unexplained(has_launcher) else patience_s
        return self._failed_s is not None and time.monotonic() - self._failed_s > patience_s

    def _unexplained(self, has_launcher: bool) -> list[int]:
        """Return the ranks that ended without a message, on nodes whose launcher has not reported how.

        Errors of other ranks, such as a reset connection, only follow from such an end. So they are not the
        cause.
        """
        per_node = self._num_processes // self._num_nodes
        reported = {rank // per_node for rank, _, _ in self.exits}
        return [rank for rank in self._silent if rank // per_node not in reported] if has_launcher else []

    def error(self, calls: ContextCalls, *, has_launcher: bool) -> BaseException:
        """Return the most likely first cause of a failure.

        One rank's end makes its peers fail too, often earlier in the order of messages. So a peer's
        "connection reset" must not hide the rank that the kernel killed. In order of preference:

        1. a `StageFailure` that a rank raised, since it names a cause;
        2. on several nodes, a requested stop, on which `srun` kills all ranks;
        3. the exit of a rank that raised nothing, other than those that a launcher ended;
        4. a rank that ended without a message or a report;
        5. a rank that aborted, if all that its peers raised is a lost connection;
        6. the first exception that a rank raised.

        Args:
            calls: of the context, which knows whether a stop was requested.
            has_launcher: whether a launcher is still connected.
        """
        for error in self.raised.values():
            if isinstance(error, StageFailure):
                return error
        if self._num_nodes > 1 and not self.raised and calls.stop_asked:
            return StopRequested(calls.why_stop())  # on SIGTERM `srun` kills all ranks
        if (exited := self._exit(lambda code: code not in (*_SECONDARY, *_EITHER))) is not None:
            return exited
        if unexplained := self._unexplained(has_launcher):
            return StageFailure("unknown", f"rank {unexplained[0]} ended without a word")
        aborted = self._exit(lambda code: code in _EITHER)
        if aborted is not None and all(map(_is_lost_connection, self.raised.values())):
            return aborted
        if self.raised:
            return next(iter(self.raised.values()))
        return StageFailure(
            "communication", f"torchrun did not bring {self._num_processes} processes to an end"
        )

    def _exit(self, is_wanted: Callable[[int], bool]) -> StageFailure | None:
        """Return the first exit of a rank that raised nothing, with such an exit code; None without one."""
        for rank, code, is_out_of_memory in self.exits:  # in the order of failure
            if rank not in self.raised and is_wanted(code):
                cause = "oom_host" if is_out_of_memory and code == -signal.SIGKILL else "unknown"
                how = (
                    f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
                )
                return StageFailure(cause, f"rank {rank} {how}")
        return None


def _is_lost_connection(error: BaseException) -> bool:
    """Return whether a rank raised only that it lost another one."""
    is_of_torch = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    return is_of_torch or isinstance(error, ConnectionError) or bool(_LOST.search(str(error)))

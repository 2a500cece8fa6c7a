"""The stage's context in its ranks, and the messages between ranks and the stage's process.

A rank's `RankContext` stands for the stage's `Context`, which exists in the stage's own process only. Rank 0
sends each call there through a socket and broadcasts the reply. So all ranks get the same answer and take the
same decision::

    rank 0   checkpoint_due(120) --socket--> stage's process --> True --broadcast--> rank 0, 1, 2, ...

There, `ContextCalls` makes the calls, and a `SharedSave` waits for a checkpoint that all ranks write.
"""

from __future__ import annotations

import contextlib
import errno
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.errors import StageFailure, StopRequested, is_out_of_space
from orchestrator.manifest import REMEMBERED, FileKey
from orchestrator.saving import Begin, Phase, SaveAbandoned
from orchestrator.stage import Checkpoint, Config, Context, Inputs


class Order(NamedTuple):
    """What each rank receives from the stage's process.

    Attributes:
        target: ``module:function`` to call.
        config, inputs: arguments of the call.
        device: ``cpu`` or ``cuda``.
        folder, uses, resume, former, attempt: of the stage's context.
        num_threads: CPU threads of each rank.
    """

    target: str
    config: Config
    inputs: Inputs
    device: str
    folder: Path
    uses: Config
    resume: Checkpoint | None
    former: Path | None
    attempt: int
    num_threads: int


class RankContext(Context):
    """The stage's context in one of its ranks. All ranks must make the same calls in the same order.

    Each call is a collective operation, so a rank that skips one leaves the others waiting. The exception is
    `log`: only rank 0's metrics are sent, and those of other ranks are dropped.
    """

    def __init__(self, order: Order, pipe: Connection, *, rank: int) -> None:
        super().__init__(
            order.folder,
            uses=order.uses,
            resume=order.resume,
            former=order.former,
            attempt=order.attempt,
            num_threads=order.num_threads,
        )
        self._pipe = pipe
        self._rank = rank
        self._thread: threading.Thread | None = None
        # A save is reported by its thread, while this one may be sending a call.
        self._sending = threading.Lock()

    def _send(self, *message: object) -> None:
        with self._sending:
            self._pipe.send(message)

    def log(self, step: int, *, num_steps: int | None = None, **metrics: float) -> None:
        """Send the metrics of rank 0, without waiting for an answer."""
        if self._rank == 0:
            self._send("log", int(step), num_steps, {k: float(v) for k, v in metrics.items()})

    def expect_save(self, seconds: float) -> None:
        """Send the time that rank 0 expects, without waiting for an answer."""
        if self._rank == 0:
            self._send("expect_save", float(seconds))

    def adapt(self, values: Mapping[str, Any]) -> None:
        """Record the values that all ranks chose, once."""
        self._ask("adapt", dict(values))

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count the time within as a phase, as rank 0 measures it, without waiting for an answer."""
        before = self.clock.phase
        with super().phase(name):
            self._enter(name, before)
            yield
        self._enter(before, name)

    def _enter(self, phase: str, before: str) -> None:
        if self._rank == 0 and phase != before:
            with contextlib.suppress(OSError):  # the stage's process is gone, and this rank is ending
                self._send("phase", phase)

    @property
    def stop_asked(self) -> bool:
        """Whether all ranks should save a checkpoint and end."""
        return bool(self._ask("why_stop"))

    def checkpoint_due(self, step: int, *, num_steps: int | None = None) -> bool:
        """Return whether to save now; the answer is the same in all ranks.

        Each rank's own clock could give another answer, and then some ranks would save and others would not.
        """
        return bool(self._ask("checkpoint_due", int(step), num_steps))

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """Yield the same folder to all ranks. The checkpoint counts once all ranks have left the context."""
        import torch.distributed as dist

        folder, full = self._ask("open_checkpoint", int(step)), ""
        try:
            yield Path(folder)
        except Exception as error:
            if not is_out_of_space(error):
                raise
            full = str(error)
        # The manifest, which makes it count, may only be written after every rank's files.
        found = [""] * dist.get_world_size()
        dist.all_gather_object(found, full)
        self._ask("commit_checkpoint", max(found))

    def checkpoint_later(self, step: int, begin: Begin) -> None:
        """Save in a thread of each rank. The checkpoint counts once all ranks have written their files."""
        self.finish_checkpoint()
        folder = Path(self._ask("begin_checkpoint", int(step)))
        try:
            write = begin(folder)
        except Exception as error:
            if not is_out_of_space(error):
                raise
            write = partial(_raise, error)  # all ranks skip the checkpoint, as where writing fails
        self._thread = threading.Thread(
            target=self._write, args=(folder, write), name="checkpoint", daemon=True
        )
        self._thread.start()

    def finish_checkpoint(self) -> None:
        """Wait until all ranks have written, and the checkpoint counts."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._ask("finish_checkpoint")

    def _write(self, folder: Path, write: Callable[[], None]) -> None:
        """Write this rank's files, and send the digests of those that it hashed, or its error."""
        error = None
        try:
            write()
        except BaseException as raised:  # noqa: BLE001 - the stage's process raises it in all ranks
            error = as_bytes(raised)
        with contextlib.suppress(OSError):  # the stage's process is gone, and this rank is ending
            self._send("written", self._rank, found_in(folder), error)

    def stop_if_asked(self) -> None:
        """End all ranks if a stop was requested.

        Raises:
            StopRequested: in all ranks alike.
        """
        if why := self._ask("why_stop"):
            raise StopRequested(str(why))

    def _ask(self, *question: object) -> Any:
        """Send a call from rank 0 to the stage's process. Return the answer in all ranks.

        Raises:
            BaseException: what the call raised in the stage's process, in all ranks.
        """
        import torch.distributed as dist

        answer: list[Any] = [None]
        if self._rank == 0:
            self._send(*question)
            answer = [self._pipe.recv()]
        dist.broadcast_object_list(answer, src=0)
        value, error = answer[0]
        if error is not None:
            raise as_exception(error)
        return value


def _raise(error: Exception) -> None:
    raise error


def found_in(folder: Path) -> dict[str, tuple[FileKey, str]]:
    """Return the digests of a folder's files that this process has computed."""
    found: dict[str, tuple[FileKey, str]] = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another rank abandoned the save
            found |= REMEMBERED.of([path])
    return found


def as_bytes(error: BaseException) -> bytes:
    """Return an exception as bytes from which `as_exception` makes it again in another process.

    An exception that cannot be pickled becomes a `StageFailure` with its name and message.
    """
    if isinstance(error, StageFailure):
        return pickle.dumps((error.cause, str(error)))
    if isinstance(error, StopRequested):
        return pickle.dumps((None, error.why))
    # Pickling runs code of the exception's class, which may raise anything.
    with contextlib.suppress(Exception):
        data = pickle.dumps(error)
        if type(pickle.loads(data)) is type(error):
            return data
    return pickle.dumps(("unknown", f"{type(error).__name__}: {error}"))


def as_exception(data: bytes) -> BaseException:
    """Return the exception that `as_bytes` encoded."""
    error = pickle.loads(data)
    if isinstance(error, tuple):
        cause, message = error
        return StopRequested(message) if cause is None else StageFailure(cause, message)
    assert isinstance(error, BaseException)
    return error


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

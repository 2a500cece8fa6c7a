"""The child process: it runs one attempt of one stage, and leaves its outcome in the attempt's folder.

It is forked from a process that has imported the heavy libraries, and writes only into its own folder. It
reads a shared folder only to see whether another attempt took over. It never reads a bucket, because its
worker uploads what it writes. When the pipe to its worker closes, it kills its whole process group.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Container
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

import msgspec

from orchestrator import formats
from orchestrator.core.exits import cause_of_raised
from orchestrator.core.failure import Cause, cause_named
from orchestrator.core.tracebacks import exception_in
from orchestrator.core.tree import checked_rows
from orchestrator.entry import MARK
from orchestrator.errors import MAX_LINE, StageFailure, StopRequested, one_line, words_of
from orchestrator.execution.assignment import AttemptSpec, ChildOutcome, Message, end_of_log, write_outcome
from orchestrator.execution.audit import context_for
from orchestrator.execution.checkpoints import UNREAD
from orchestrator.execution.command import FailedCommand, Unread, run_command, take_results
from orchestrator.execution.keeper import ReceivedSignals
from orchestrator.execution.work import keep, undo
from orchestrator.manifest import File, contain, fsync_tree, open_to_owner, scan
from orchestrator.processes import end_attempt
from orchestrator.provenance import process_of, without_secrets
from orchestrator.registry import load
from orchestrator.saving import PhaseClock
from orchestrator.stage import Checkpoint, Config, Context, Inputs, Row, StopSignal
from orchestrator.store import layout
from orchestrator.store.access import Outage
from orchestrator.store.ledger import Ledger
from orchestrator.store.opening import open_objects
from orchestrator.trackers.base import Tracked, open_trackers

POLL_S = 0.25


def main(order_json: bytes, pipe: Connection) -> None:
    """Run the attempt and exit, with code 0 if the outcome was written.

    Args:
        order_json: an `AttemptSpec` as JSON.
        pipe: this process's end of the pipe to its worker.
    """
    os.setsid()
    # The worker receives these too, and sends a stop over the pipe with the right reason.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # A handler ends with this program. What is ignored stays so in a command: neither `timeout -s INT` nor
    # `kill -INT` could end it, and a shell could not trap it.
    signal.signal(signal.SIGINT, lambda *_: None)
    order = formats.decode(order_json, AttemptSpec)
    folder = Path(order.folder)
    _redirect_output(folder / layout.LOG)
    os.environ.update(order.env)
    _limit_threads(order.num_threads)
    sys.path[:0] = [path for path in order.import_paths if path not in sys.path]
    stop = StopSignal()
    received = ReceivedSignals(lambda: stop.ask("stopped"), (lambda: stop.asked) if order.in_job else None)
    lifeline = Lifeline(pipe, stop)
    outcome = run(order, folder, stop, lifeline, received)
    lifeline.report()  # a checkpoint may have been completed since the last message
    code = write_outcome(folder, outcome, _print)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Not sys.exit: exit handlers of the stage's libraries could block, or change the exit code.
    os._exit(code)


class Lifeline:
    """The pipe to the worker: receives a stop, sends progress, and ends the process group when it closes."""

    def __init__(self, pipe: Connection, stop: StopSignal) -> None:
        self._pipe, self._stop, self.clock = pipe, stop, PhaseClock("start")
        self._message = Message(phase="starting", process=process_of(os.getpid()))
        self._sent: Message | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, name="lifeline", daemon=True).start()

    def report(self, **state: Any) -> None:
        """Send the fields of `Message` that are not None: a new phase at once, a step with the next poll."""
        new = {name: value for name, value in state.items() if value is not None}
        self._message = msgspec.structs.replace(self._message, **new)
        if "phase" in new:
            self.clock.enter("save" if new["phase"] == "finishing" else "compute")
        if "phase" in new or not new:
            with contextlib.suppress(OSError):  # the worker is gone: the thread kills the group
                self._send()

    def _send(self) -> None:
        with self._lock:
            clock = self.clock
            message = msgspec.structs.replace(self._message, does=clock.phase, saved=clock.saved)
            if message != self._sent:
                self._pipe.send_bytes(
                    msgspec.json.encode(msgspec.structs.replace(message, times=clock.times()))
                )
                self._sent = message

    def _serve(self) -> None:
        try:
            while True:
                self._send()
                if self._pipe.poll(POLL_S):
                    message = msgspec.json.decode(self._pipe.recv_bytes(), type=Message)
                    if message.stop:
                        self._stop.ask(message.stop)
        finally:  # The worker is gone, or this thread failed. Unsupervised work must not go on either way.
            end_started()
            os.killpg(0, signal.SIGKILL)


def end_started() -> bool:
    """Kill everything that this attempt started, except this process."""
    return end_attempt(os.environ.get(MARK, ""), leader=os.getpid())


def run(
    order: AttemptSpec,
    folder: Path,
    stop: StopSignal,
    lifeline: Lifeline,
    received: Container[int] = frozenset(),
) -> ChildOutcome:
    """Run the stage, and convert its result or exception into an outcome.

    Args:
        order: the attempt to run.
        folder: the attempt's payload folder.
        stop: set when the stage should stop.
        lifeline: receives its progress.
        received: the signals that this process received.
    """
    try:
        context = _context(order, folder, stop, lifeline)
        lifeline.report(phase="running")
        try:
            rows = _call(order, context, stop, received)
        finally:
            context.close()
        lifeline.report(phase="finishing")
        if not context.output.is_dir():
            raise StageFailure("code", "the stage removed its output folder")
        strange = sorted(set(context.retirements) - {taken.stage for taken in order.instance.inputs})
        if strange:
            raise StageFailure(
                "code", f"retire({strange[0]!r}) names no input: name it in the stage's `after`"
            )
        return ChildOutcome(
            outcome="succeeded", rows=rows, files=_durable(context.output), retire=context.retirements
        )
    except StopRequested as stopped:
        return ChildOutcome(outcome="released", why=one_line(words_of(stopped.why)))
    except Unread as failure:  # not printed: a mended pattern of a metric must not match its message
        return _unread(order, folder, failure)
    except StageFailure as failure:
        _print_exception()
        name = one_line(failure.exception if isinstance(failure, FailedCommand) else type(failure).__name__)
        return ChildOutcome(
            outcome="failed", cause=cause_named(failure.cause), exception=name, message=_line(failure)
        )
    except SystemExit as error:
        cause = _cause(error, folder) if error.code else Cause.CODE
        if isinstance(error.code, int | None):
            how = _exited(error.code or 0, folder)
        else:
            how = one_line(f"the stage exited: {_line(error.code)}")
            _print(without_secrets(f"{words_of(error.code)}\n"))  # as Python does
        return ChildOutcome(outcome="failed", cause=cause, message=how)
    except BaseException as error:  # noqa: BLE001 - the worker's edge: every exception becomes data
        _print_exception()
        name, cause = one_line(type(error).__name__), _cause(error, folder)
        message = one_line(f"{name[:100]}: {_line(error)}")
        return ChildOutcome(outcome="failed", cause=cause, exception=name, message=message)


def _exited(code: int, folder: Path) -> str:
    """Return how a stage called `sys.exit`: what it printed last explains its code."""
    if code == 0:
        return "the stage exited with code 0 and returned no rows; return [] for none"
    last = end_of_log(folder / layout.LOG).rstrip().rpartition("\n")[2]
    return f"the stage exited with code {code}" + (f", last line: {_line(last)}" if last else "")


def _durable(output: Path) -> tuple[File, ...]:
    """Make the output durable and return its files.

    Raises:
        StageFailure: the output holds something that no retry would make acceptable.
        OSError: the file system refuses the output now.
    """
    try:
        contain(output, linked=output.parent / layout.CHECKPOINTS)
        fsync_tree(output)
        return scan(output)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG):
            raise StageFailure("data", f"the output cannot be taken: {error}") from error
        raise


def _unread(order: AttemptSpec, folder: Path, failure: Unread) -> ChildOutcome:
    """Keep the output of a finished command, so that a later attempt need only read it."""
    if order.spec.command is None:  # a function's return value is lost, so it must run again
        cause = cause_named(failure.cause)
        return ChildOutcome(outcome="failed", cause=cause, exception=UNREAD, message=_line(failure))
    try:
        files = _durable(folder / layout.OUTPUT)
    except (OSError, ValueError, StageFailure) as error:
        return ChildOutcome(
            outcome="failed",
            cause=cause_named(failure.cause),
            exception=UNREAD,
            message=f"{_line(failure)[:300]} (its output cannot be kept: {_line(error)})",
        )
    again = order.unread is not None
    way_out = "run the command again" if again else "read its output again, and run nothing"
    return ChildOutcome(
        outcome="failed",
        cause=cause_named(failure.cause),
        exception=UNREAD,
        message=f"{_line(failure)[:380]} (its output is kept: the next attempt will {way_out})",
        files=files,
        unread=order.unread if order.unread is not None else order.attempt,
    )


def _context(order: AttemptSpec, folder: Path, stop: StopSignal, lifeline: Lifeline) -> Context:
    """Return the services of the stage, connected to the store's fence and to the worker."""
    outage = Outage(order.settings.store.outage_s, print, lambda: stop.why if stop.asked else "")
    ledger = Ledger(open_objects(order.store)).patient(outage)
    # If others do not see what this process writes, only what the worker uploads counts.
    is_shared = ledger.objects.shared_folder("") is not None

    def fence() -> None:
        of = order.instance
        if ledger.is_claimed(of, order.attempt + 1) or ledger.is_done_or_void(of, order.generation):
            raise StopRequested("superseded")

    tracker = order.settings.tracker
    tracked = Tracked(
        *(folder, order.sweep, order.cell, order.instance.name, order.attempt, order.config),
        msgspec.to_builtins(tracker),
    )
    return context_for(order, is_shared=is_shared)(
        folder,
        uses=Config(order.uses, declared="uses"),
        resume=None
        if order.resume_step is None
        else Checkpoint(order.resume_step, Path(order.resume_folder)),
        former=Path(order.former_folder) if order.former_folder else None,
        attempt=order.attempt,
        num_threads=order.num_threads,
        checkpoint_interval_s=order.settings.policy.checkpoint_interval_s,
        trackers=open_trackers([tracker.name], tracked),
        stop=stop,
        fence=fence if is_shared else lambda: None,  # the worker checks it before uploads
        report_progress=lambda step, num_steps: lifeline.report(step=step, num_steps=num_steps),
        keeps_work=is_shared,
        report_stop=lambda seconds: lifeline.report(stop_s=round(seconds, 1)),
        report_adapted=lambda values: lifeline.report(adapted=values),
        clock=lifeline.clock,
    )


def _call(
    order: AttemptSpec, context: Context, stop: StopSignal, received: Container[int]
) -> tuple[Row, ...]:
    """Run the stage's command or function, and return its rows."""
    spec = order.spec
    config = Config(order.instance.reads)
    folders = {s: {label: Path(p) for label, p in each.items()} for s, each in order.inputs.items()}
    inputs = Inputs(folders)
    if spec.command is not None:
        if order.unread is None:
            run_command(
                spec,
                config,
                inputs,
                context,
                folder=Path(order.import_paths[0]) if order.import_paths else None,
                grace_s=order.settings.policy.grace_s / 2,
                in_job=order.in_job,
            )
        else:
            print(f"the command of attempt {order.unread} was through: its output is read again", flush=True)
        end_started()  # its leftover processes could still change the output that is read now
        return _take(context, spec.keep, lambda: take_results(spec, context))
    function: Callable[[Config, Inputs, Context], list[Row] | None] = load(spec.run or "", where="run")
    try:
        returned = function(config, inputs, context)
    except (StageFailure, StopRequested):
        raise
    except BaseException as error:
        # A stopped library often raises an error of its own; that error must not count as a failure.
        if _was_cut_off(stop, received, isinstance(error, SystemExit | KeyboardInterrupt)):
            _print_exception()
            raise StopRequested(stop.why or "stopped") from error
        raise
    if signal.SIGTERM in received and not stop.seen:
        raise StopRequested(stop.why or "stopped")  # a library may have left its loop early, without an error
    return _take(context, spec.keep, lambda: checked_rows(returned))


def _take(
    context: Context, patterns: tuple[str, ...], rows: Callable[[], tuple[Row, ...]]
) -> tuple[Row, ...]:
    """Put the files to keep from the work folder into the output, and return the rows.

    If either fails, they are removed from it, so that a later attempt finds the stage's output unchanged.

    Raises:
        Unread: the stage finished, but its kept files or its rows cannot be read.
    """
    kept: list[Path] = []
    open_to_owner(context.output)
    try:
        kept = keep(context, patterns) if patterns else []
        return rows()
    except StageFailure as failure:
        undo(kept)
        raise Unread(failure.cause, str(failure)) from None


def _was_cut_off(stop: StopSignal, received: Container[int], is_exit: bool) -> bool:
    """Whether an exception is the consequence of a stop.

    After SIGTERM any exception counts, because the stage's own processes received the signal too. After a
    stop over the pipe only an exit counts.
    """
    return signal.SIGTERM in received or (is_exit and stop.asked)


def _print_exception() -> None:
    _print(without_secrets(traceback.format_exc()))


def _print(text: str) -> None:
    with contextlib.suppress(OSError):  # the log may lie on the same full disk
        sys.stderr.write(text)


def _limit_threads(num_threads: int) -> None:
    """Give the stage its share of the CPUs: through the environment, and by a call for a loaded torch."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(num_threads)


def _redirect_output(path: Path) -> None:
    """Append standard output and error of this process and of what it starts to the attempt's log."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)

    def stream(number: int) -> TextIO:  # for the process's lifetime
        return open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)

    sys.stdout, sys.stderr = stream(1), stream(2)


def _cause(error: BaseException, folder: Path) -> Cause:
    with contextlib.suppress(Exception):  # a fault of the judging is none of the stage's
        names = [f"{base.__module__}.{base.__qualname__}" for base in type(error).__mro__]
        raised = exception_in(traceback.format_exc(), names, words_of(error))
        return cause_of_raised(raised, end_of_log(folder / layout.LOG))
    return Cause.UNKNOWN


def _line(error: object) -> str:
    return one_line(without_secrets(words_of(error)[: 8 * MAX_LINE]))

"""Stages that are a command line: run the command, pass a stop on, and judge how it ended.

docs/commands.md describes the names that a command may use in braces, and what is expected of it.
`orchestrator.execution.command_text` fills them in and reads the rows.
`orchestrator.execution.checkpoints` makes the checkpoints count.

A stop is passed on as SIGTERM. A command that takes longer than half of the policy's grace period is killed.

Exit code 0 means done, except after a stop: libraries such as PyTorch Lightning leave their loop and exit
with 0. Then the command is done only if this attempt created the file that the stage calls `finished`. A
scheduler signals all processes at once, so the command may end before this process learns of the stop. Its
end is therefore judged only after a short wait::

    SIGTERM to all -> the command exits with 0 -> wait up to 2 s -> stop received: released, not done
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.core.exits import CommandFailure, cause_of_command
from orchestrator.core.failure import Cause
from orchestrator.entry import MARK
from orchestrator.errors import StageFailure, StopRequested, is_out_of_space, one_line
from orchestrator.execution.assignment import end_of_log
from orchestrator.execution.checkpoints import Sealer
from orchestrator.execution.command_output import (
    CheckpointFiles,
    PrintedMetrics,
    checkpoint_file,
    printed_row,
)
from orchestrator.execution.command_text import (
    as_shell_text,
    as_words,
    interpreter_of,
    read_rows,
    search_path,
    values_of,
)
from orchestrator.execution.keeper import HINT_S, await_news
from orchestrator.processes import children, oom_kills, started
from orchestrator.provenance import ProcessEntry
from orchestrator.stage import Config, Context, Inputs, Row, StageSpec
from orchestrator.store import layout
from orchestrator.trackers.base import parse_metrics

POLL_S, REST_POLL_S, PROGRESS_S = 0.05, 0.2, 1.0
RUMOUR_S = 0.2
"""Seconds to wait, after the end of any command, for news of a stop that may have caused it.

Where a stop is likely (death by SIGTERM or SIGINT, or code 0 in a scheduler's job), the wait is `HINT_S`.
"""

_STOPPED = frozenset(code for number in (signal.SIGTERM, signal.SIGINT) for code in (-number, 128 + number))
_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh"})
_FILTERS = frozenset("tee cat grep sed awk gawk mawk ts tr cut head tail sort uniq gzip zstd".split())
_SHELL = ("bash", "-e", "-o", "pipefail", "-c")


class Unread(StageFailure):
    """A command that exited with code 0, but whose results cannot be read. Its output is kept."""


class FailedCommand(StageFailure):
    """A command that failed.

    Args:
        cause, message: as for any failure of a stage.
        exception: the class of its last exception; "" if its log shows none.
    """

    def __init__(self, cause: str, message: str, exception: str) -> None:
        super().__init__(cause, message)
        self.exception = exception


def run_command(
    spec: StageSpec,
    config: Config,
    inputs: Inputs,
    context: Context,
    *,
    folder: Path | None = None,
    grace_s: float = 30.0,
    in_job: bool = False,
) -> None:
    """Run a command to its end. Its checkpoints are sealed while it runs and when it has ended.

    Args:
        spec: the stage.
        config, inputs, context: what a function stage receives.
        folder: the working directory; None for the current one.
        grace_s: seconds that the command may take to end after a stop.
        in_job: whether a scheduler may signal all processes of this job at once.

    Raises:
        StageFailure: it cannot be started, ended with a code other than 0, or exited with 0 without its
            `finished` file.
        StopRequested: it ended because of a stop, or another attempt took over.
    """
    python = interpreter_of(spec.python, folder)
    words = _words(spec, values_of(spec, config, inputs, context, python))
    if python is not None:
        # Without this, the next `python` in the PATH would run in its place.
        if shutil.which(python) is None:
            raise StageFailure("config", f"there is no interpreter {spec.python!r} here")
        if words[0] == "python":
            words[0] = python
    marker, kills = _Marker(spec, context), oom_kills()
    process = _start(words, folder, _environment(config, context, python))
    running = _Running(process, spec, context, grace_s)
    code = running.wait()
    if code == 0 and marker.is_new:
        return  # proof that it is done, with or without a stop
    # A shell reports that its program died of SIGTERM with code 128 + 15.
    stop_is_likely = code in _STOPPED or (code == 0 and in_job)
    await_news(lambda: context.stop_asked, HINT_S if stop_is_likely else RUMOUR_S)
    context.stop_if_asked()
    if code == 0 and spec.finished is None:
        return
    if code == 0:
        message = f"the command exited with code 0, but did not create {spec.finished!r}: it is not through"
        raise FailedCommand("unknown", message, "")
    raise _failure(words, code, context.folder, oom_killed=oom_kills() > kills)


def _start(words: list[str], folder: Path | None, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a command.

    Raises:
        StageFailure: it cannot be started.
    """
    try:
        return subprocess.Popen(
            words,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            process_group=0,  # `kill 0` in a script signals its group, which must not include this process
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise StageFailure("config", f"cannot run {words[0]!r}: {error.strerror}") from error


def _failure(words: list[str], code: int, folder: Path, *, oom_killed: bool) -> FailedCommand:
    """Return why a command failed, from its exit code and the log in the attempt's folder."""
    log = end_of_log(folder / layout.LOG)
    failed = cause_of_command(code, log, oom_killed=oom_killed)
    if failed.cause is Cause.UNKNOWN and (full := _lack_of_space(folder)):
        # Its log lies on the same disk, which had no room for its last words.
        message = f"{failed.message}, and the disk is full: {full}"
        failed = CommandFailure(Cause.STORAGE, failed.exception, message)
    # An exception locates the failure. Without one, the command line and its last words help most:
    # `sys.exit("a message")` prints the message last, and exits with code 1.
    last = one_line(log.rstrip().rpartition("\n")[2], 160) if code in (1, 126, 127) else ""
    is_new = last and last not in failed.message
    ran = "" if failed.exception else (f", last line: {last}" if is_new else "")
    ran += "" if failed.exception else f" ({shlex.join(words)})"
    return FailedCommand(failed.cause, f"the command {failed.message}{ran}", failed.exception)


def _lack_of_space(folder: Path) -> str:
    """Return the system's message if nothing can be written in a folder for want of space, else "".

    What the file system reports as free is no answer: a quota does not show there, and root may write more.
    """
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(4096))
            os.fsync(file.fileno())
    except OSError as error:
        return (error.strerror or str(error)) if is_out_of_space(error) else ""
    return ""


def take_results(spec: StageSpec, context: Context) -> tuple[Row, ...]:
    """Return the rows of a command that finished, in this or in an earlier attempt.

    Raises:
        Unread: the results file is missing or cannot be read.
    """
    try:
        rows = read_rows(context.output / spec.results) if spec.results else ()
        if not spec.metric:
            return rows
        earlier = context.scratch / layout.LOG  # of the attempt whose output is read again
        path = earlier if earlier.is_file() else context.folder / layout.LOG
        log = path.read_text(encoding="utf-8", errors="replace")
        printed = printed_row(spec.metric, log)
        return tuple({**row, **printed} for row in rows or ({},))
    except StageFailure as failure:
        raise Unread(failure.cause, str(failure)) from None


def _words(spec: StageSpec, values: dict[str, list[str]]) -> list[str]:
    """Return the argument list of a stage's command."""
    command = spec.command or ""
    return [*_SHELL, as_shell_text(command, values)] if spec.shell else as_words(command, values)


def _environment(config: Config, context: Context, python: str | None) -> dict[str, str]:
    """Return the environment of a command, and write the config file to which it points."""
    # Any program can read the config from this file, whatever its command line looks like.
    path = context.scratch / "config.json"
    path.write_text(
        json.dumps({"config": config.to_dict(), "uses": context.uses.to_dict()}, ensure_ascii=False)
    )
    return {
        **os.environ,
        "PATH": search_path(python),
        "SWEEP_CONFIG": str(path),
        "SWEEP_OUTPUT": str(context.output),
        "SWEEP_CHECKPOINT": checkpoint_file(context),
        "SWEEP_METRICS": str(context.folder / layout.METRICS),
    }


class _Marker:
    """The file that a stage calls `finished`, compared with its state before the command ran."""

    def __init__(self, spec: StageSpec, context: Context) -> None:
        self._paths: list[Path] = []
        if spec.finished is not None:
            self._paths = [context.output / spec.finished]
            # A command may write its marker into its output folder or into its work folder.
            if (context.folder / layout.WORK).is_dir():
                self._paths.append(context.folder / layout.WORK / spec.finished)
        self._before = [_state(path) for path in self._paths]

    @property
    def is_new(self) -> bool:
        """Whether this command created or rewrote the file; a work folder may hold an earlier attempt's."""
        now = [_state(path) for path in self._paths]
        return any(state and state != before for state, before in zip(now, self._before, strict=True))


def _state(path: Path) -> tuple[int, int, int] | None:
    """Return what identifies a file's state; None if it does not exist."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


class _Running:
    """A command that runs: its stop, its checkpoints and its progress."""

    def __init__(
        self, process: subprocess.Popen[bytes], spec: StageSpec, context: Context, grace_s: float
    ) -> None:
        self._process, self._context, self._grace_s = process, context, grace_s
        files = CheckpointFiles(spec, context)
        self._sealer = Sealer(context, lambda is_last, alone: files.look(is_last=is_last, by_itself=alone))
        self._printed = PrintedMetrics(context)
        self._metrics, self._offset, self._progress_s = context.folder / layout.METRICS, 0, 0.0
        self._stopped_s: float | None = None
        self._signalled: set[int] = set()

    def wait(self) -> int:
        """Wait for the end of the command and return its exit code.

        After a stop, also wait for the processes that it left running.

        Raises:
            StopRequested: another attempt took over.
        """
        self._sealer.start()
        while (code := self._process.poll()) is None:
            time.sleep(POLL_S)
            self._report_progress()
            if self._stopped_s is not None:
                if time.monotonic() - self._stopped_s > self._grace_s:
                    self._process.kill()
            # Checkpoints of a fenced attempt no longer count: going on would only waste time.
            elif self._context.stop_asked or self._sealer.superseded:
                self._stopped_s = time.monotonic()
                for pid in _receivers(self._process.pid):
                    self._signal(pid)
        if self._stopped_s is not None:
            self._end_rest(self._stopped_s + self._grace_s)
        self._report_progress(at_once=True)
        # A code above 128 (or negative) is a death by signal: a folder written in place may be incomplete.
        self._sealer.finish(by_itself=0 <= code <= 128)
        if self._sealer.superseded:
            raise StopRequested(self._sealer.superseded)
        return code

    def _end_rest(self, until_s: float) -> None:
        """Pass the stop on to the processes that the stopped command left running, and wait for them.

        Each gets SIGTERM once: many programs save at the first one, and end at once at the second. One whose
        parent got it is left to that parent, as the program of ``timeout`` is.
        """
        while True:
            rest = started(os.environ.get(MARK, ""), leader=os.getpid())
            if not rest or time.monotonic() > until_s:
                return
            for pid in rest:
                if self._signalled.isdisjoint(_line(pid, rest)) and not _ends_with_its_input(pid):
                    self._signal(pid)
            time.sleep(REST_POLL_S)

    def _signal(self, pid: int) -> None:
        self._signalled.add(pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)

    def _report_progress(self, *, at_once: bool = False) -> None:
        """Report the step of the last complete line of the command's metrics."""
        now_s = time.monotonic()
        if now_s - self._progress_s < PROGRESS_S and not at_once:
            return
        self._progress_s = now_s
        self._printed.look()
        try:
            with self._metrics.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except OSError:
            return
        # The command may be writing a line right now: the incomplete rest is read next time.
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        rows = [row for row in parse_metrics(whole.decode(errors="replace")) if "step" in row]
        if rows:
            num_steps = rows[-1].get("num_steps")
            self._context.report(
                rows[-1]["step"], num_steps=num_steps if isinstance(num_steps, int) else None
            )


def _receivers(pid: int) -> list[int]:
    """Return the processes that receive a stop: the command, and for a shell its children.

    A shell that waits for a program does not pass a signal on to it. Children come first in the list. The
    ``tee`` of ``train | tee log`` is left out: without it, the program could not print while it saves.
    """
    below = children(pid) if _name(pid) in _SHELLS else ()
    return [
        *(one for child in below if not _ends_with_its_input(child) for one in _receivers(child)),
        pid,
    ]


def _ends_with_its_input(pid: int) -> bool:
    """Return whether a process is a filter at the end of a pipe, which ends when its input does."""
    try:
        return _name(pid) in _FILTERS and str(Path(f"/proc/{pid}/fd/0").readlink()).startswith("pipe:")
    except OSError:
        return False


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _line(pid: int, table: Mapping[int, ProcessEntry]) -> Iterator[int]:
    """Yield a process and those of its ancestors that a table holds."""
    while pid in table:
        yield pid
        pid = table[pid].parent

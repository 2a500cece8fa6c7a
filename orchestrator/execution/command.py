"""Stages that are a command line: running it, passing a stop on, and judging how it ended.

docs/commands.md says what a command may name in braces and what is expected of it;
`orchestrator.execution.command_text` fills it in and reads its rows, `orchestrator.execution.sealing` makes
its checkpoints count.

A stop comes as SIGTERM, and the command is killed when it takes longer than half of the policy's grace. Exit
code 0 means done, except after a stop: libraries such as PyTorch Lightning leave their loop and exit with 0.
Then it counts only when the file that the stage calls `finished` was created by this attempt. A scheduler
sends its signals to all processes at once, so that the command may end before this process reads of the stop:
its end waits for that news.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.core.failure import cause_of_command
from orchestrator.errors import StageFailure, StopRequested
from orchestrator.execution.assignment import end_of_log
from orchestrator.execution.command_text import as_shell_text, as_words, read_rows, values_of
from orchestrator.execution.keeper import HINT_S, await_news
from orchestrator.execution.sealing import Sealer
from orchestrator.processes import oom_kills
from orchestrator.stage import Config, Context, Inputs, Row, StageSpec
from orchestrator.store import layout
from orchestrator.trackers.base import parse_metrics

GRACE_S = 30.0
POLL_S, PROGRESS_S = 0.05, 1.0
RUMOUR_S = 0.2
"""How long any end of a command may precede the news of the stop that it followed; where a stop makes it
likely (by SIGTERM, or with code 0 in a scheduler's job), it is `HINT_S`."""

SYSTEM_FOLDERS = ("/bin", "/usr/bin", "/usr/local/bin")
_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh"})
_SHELL = ("bash", "-e", "-o", "pipefail", "-c")


class Unread(StageFailure):
    """A command that exited with code 0, but whose results cannot be taken: what it left is kept."""


class FailedCommand(StageFailure):
    """A command that failed.

    Args:
        cause, message: as of any failure of a stage.
        exception: the class of its last exception, "" where its log shows none.
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
    grace_s: float = GRACE_S,
    in_job: bool = False,
) -> None:
    """Runs a command until it ends, and seals its checkpoints meanwhile and at its end.

    Args:
        spec: of the stage.
        config, inputs, context: as a function stage gets them.
        folder: where it runs; None for the current folder.
        grace_s: seconds that it may take to end after a stop.
        in_job: whether a scheduler may signal all processes of this job.

    Raises:
        StageFailure: it ended with another code than 0, or cannot be started.
        StopRequested: it ended because of a stop, or another attempt took over.
    """
    python = _interpreter(spec.python, folder)
    words = _words(spec, values_of(spec, config, inputs, context, python))
    marker = _Marker(spec, context)
    kills = oom_kills()
    try:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=_environment(config, context, python),
            stdin=subprocess.DEVNULL,
            process_group=0,  # scripts end their own with `kill 0`
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise StageFailure("config", f"cannot run {words[0]!r}: {error.strerror}") from error
    running = _Running(process, context, grace_s)
    code = running.wait()
    if code == 0 and marker.is_new:
        return  # it is through, whether a stop was asked or not
    stop_is_likely = code in (-signal.SIGTERM, 128 + signal.SIGTERM) or (code == 0 and in_job)
    await_news(lambda: context.stop_asked, HINT_S if stop_is_likely else RUMOUR_S)
    context.stop_if_asked()
    if code == 0 and spec.finished is None:
        return
    if code == 0:
        message = f"the command exited with code 0, but did not create {spec.finished!r}: it is not through"
        raise FailedCommand("unknown", message, "")
    log = end_of_log(context.folder / layout.LOG)
    failed = cause_of_command(code, log, oom_killed=oom_kills() > kills)
    ran = "" if failed.exception else f" ({shlex.join(words)})"
    raise FailedCommand(failed.cause, f"the command {failed.message}{ran}", failed.exception)


def take_results(spec: StageSpec, context: Context) -> tuple[Row, ...]:
    """Returns the rows of a command that is through, now or in an earlier attempt.

    Raises:
        Unread: they are not there or cannot be read.
    """
    try:
        return read_rows(context.output / spec.results) if spec.results else ()
    except StageFailure as failure:
        raise Unread(failure.cause, str(failure)) from None


def _words(spec: StageSpec, values: dict[str, list[str]]) -> list[str]:
    command = spec.command or ""
    return [*_SHELL, as_shell_text(command, values)] if spec.shell else as_words(command, values)


def _interpreter(python: str | None, folder: Path | None) -> str | None:
    """Returns the path of the interpreter that a stage names, as it stands where there is none."""
    if python is None:
        return None
    path = Path(python).expanduser()
    found = shutil.which((folder or Path.cwd()) / path if len(path.parts) > 1 else path)
    return str(found or path)


def _environment(config: Config, context: Context, python: str | None) -> dict[str, str]:
    path = context.scratch / "config.json"
    path.write_text(
        json.dumps({"config": config.to_dict(), "uses": context.uses.to_dict()}, ensure_ascii=False)
    )
    return {
        **os.environ,
        "PATH": search_path(python),
        "SWEEP_CONFIG": str(path),
        "SWEEP_OUTPUT": str(context.output),
        "SWEEP_METRICS": str(context.folder / layout.METRICS),
    }


def search_path(python: str | None = None) -> str:
    """Returns the PATH of a command, whose first `python` is the interpreter that it means.

    That is the one that the stage names; else the first in the user's PATH. Only where that is none of
    theirs, but the system's or none at all, do the active environment (VIRTUAL_ENV, CONDA_PREFIX) and then
    the one that runs Polysweep come before it.

    Args:
        python: path of the stage's own interpreter.
    """
    path = os.environ.get("PATH", os.defpath)
    if python is not None:
        return f"{Path(python).parent}{os.pathsep}{path}"
    first = shutil.which("python", path=path)
    if first is not None and str(Path(first).parent) not in SYSTEM_FOLDERS:
        return path
    active = [os.environ.get(name, "") for name in ("VIRTUAL_ENV", "CONDA_PREFIX")]
    folders = [Path(prefix, "bin") for prefix in active if prefix and Path(prefix, "bin", "python").exists()]
    return os.pathsep.join([str((folders or [Path(sys.executable).parent])[0]), path])


def command_facts(spec: StageSpec, import_paths: Sequence[str]) -> dict[str, str | None]:
    """Returns what is recorded of a command's attempt: the interpreter that `python` means, None for none."""
    if spec.command is None:
        return {}
    python = _interpreter(spec.python, Path(import_paths[0]) if import_paths else None)
    return {"command_python": python or shutil.which("python", path=search_path())}


class _Marker:
    """The file that a stage calls `finished`: whether this attempt created it."""

    def __init__(self, spec: StageSpec, context: Context) -> None:
        self._paths: list[Path] = []
        if spec.finished is not None:
            self._paths = [context.output / spec.finished]
            if (context.folder / layout.WORK).is_dir():
                self._paths.append(context.folder / layout.WORK / spec.finished)
        self._before = [_state(path) for path in self._paths]

    @property
    def is_new(self) -> bool:
        """Whether it is there and was not before, or was written anew: a work folder outlasts attempts."""
        now = [_state(path) for path in self._paths]
        return any(state and state != before for state, before in zip(now, self._before, strict=True))


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


class _Running:
    """A command that runs: its stop, its checkpoints and its progress."""

    def __init__(self, process: subprocess.Popen[bytes], context: Context, grace_s: float) -> None:
        self._process, self._context, self._grace_s = process, context, grace_s
        self._sealer = Sealer(context)
        self._metrics, self._offset, self._progress_s = context.folder / layout.METRICS, 0, 0.0
        self._stopped_s: float | None = None

    def wait(self) -> int:
        """Waits for the end of the command, after a stop also of what it left running; returns its code."""
        self._sealer.start()
        while (code := self._process.poll()) is None:
            time.sleep(POLL_S)
            self._report_progress()
            if self._stopped_s is not None:
                if time.monotonic() - self._stopped_s > self._grace_s:
                    self._process.kill()
            elif self._context.stop_asked or self._sealer.superseded:
                self._stopped_s = time.monotonic()
                for pid in _receivers(self._process.pid):
                    _send(pid, signal.SIGTERM)
        if self._stopped_s is not None:
            self._end_rest(self._stopped_s + self._grace_s)
        self._report_progress(at_once=True)
        self._sealer.finish(by_itself=0 <= code <= 128)
        if self._sealer.superseded:
            raise StopRequested(self._sealer.superseded)
        return code

    def _end_rest(self, until_s: float) -> None:
        """Passes the stop on to what a command left that ended by it, as a shell does, and waits for them."""
        rest = _rest_of_group(self._process.pid)
        for pid in rest:
            _send(pid, signal.SIGTERM)
        while rest and time.monotonic() < until_s:
            time.sleep(POLL_S)
            rest = _rest_of_group(self._process.pid)

    def _report_progress(self, *, at_once: bool = False) -> None:
        """Reports the step of the last whole line of the command's metrics."""
        now_s = time.monotonic()
        if now_s - self._progress_s < PROGRESS_S and not at_once:
            return
        self._progress_s = now_s
        try:
            with self._metrics.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        rows = [row for row in parse_metrics(whole.decode(errors="replace")) if "step" in row]
        if rows:
            num_steps = rows[-1].get("num_steps")
            self._context.report(
                rows[-1]["step"], num_steps=num_steps if isinstance(num_steps, int) else None
            )


def _receivers(pid: int) -> list[int]:
    """Returns who gets a stop: the command, and what it waits for if it is a shell, which passes none on."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        children = (
            Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
            if name in _SHELLS
            else []
        )
    except OSError:
        children = []
    return [*(one for child in children for one in _receivers(int(child))), pid]


def _rest_of_group(group: int) -> list[int]:
    """Returns the processes of a command's group, which run on when the command has ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)

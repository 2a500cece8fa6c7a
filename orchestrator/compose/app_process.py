"""The process in which a Hydra app composes its cells, and its config groups for the check of overrides."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from orchestrator.compose import hydra_app
from orchestrator.compose.axes import cut
from orchestrator.compose.root import Root
from orchestrator.errors import UserError
from orchestrator.execution.command_text import interpreter_of, search_path

POLL_S = 0.2
"""Seconds between two checks of whether the app's process still runs, while it gives no answer."""

_LOG_END_BYTES = 20_000


class AppProcess:
    """The process in which the app composes its cells."""

    def __init__(self, process: subprocess.Popen[bytes], requests: Any, answers: Any, log: Any, where: str):
        self._process, self._log, self.where = process, log, where
        self._requests = requests
        self._answers = answers

    @classmethod
    @contextlib.contextmanager
    def started(
        cls, words: Sequence[str], python: str | None, folder: Path, where: str
    ) -> Iterator[AppProcess]:
        """Start the app, and yield its process; it ends with the context."""
        named = interpreter_of(python, folder)
        path = search_path(named)
        program = named or shutil.which("python", path=path) or sys.executable
        (its_in, requests), (answers, its_out) = os.pipe(), os.pipe()
        with (
            tempfile.TemporaryFile() as log,
            os.fdopen(requests, "w", encoding="utf-8") as writer,
            os.fdopen(answers, encoding="utf-8") as reader,
        ):
            command = [program, hydra_app.__file__, "compose", str(its_in), str(its_out), *words]
            environment = {**os.environ, "PATH": path}
            try:
                process = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=environment,
                    pass_fds=(its_in, its_out),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            except OSError as error:
                raise UserError(f"cannot run {program!r}: {error.strerror}", where=where) from None
            finally:
                os.close(its_in)
                os.close(its_out)
            try:
                yield cls(process, writer, reader, log, where)
            finally:
                process.kill()  # it has no state: nothing is lost
                process.wait()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            UserError: the app ended before it called its main function, or Hydra refuses the request.
        """
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(json.dumps({"do": do, **request}) + "\n")
            self._requests.flush()
            line = self._line()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            first, *rest = answer["error"]
            more = " ".join(" ".join(rest).split())[:300]
            raise UserError(cut(first) if len(first) > 300 else first, where=self.where, allowed=more)
        return answer

    def _line(self) -> str:
        """Return the next line of the answers, "" if the process has ended.

        The end of the pipe is not enough: a process that the app forked holds it open.
        """
        while not wait([self._answers], POLL_S):
            if self._process.poll() is not None:
                return ""
        line: str = self._answers.readline()
        return line if line.endswith("\n") else ""

    def _ended(self) -> UserError:
        code = self._process.wait()
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_END_BYTES))
        printed = self._log.read().decode(errors="replace").splitlines()
        lines = [line.strip() for line in printed if line.strip()]
        if code == 0:
            what = "the app's script ended without a call of a function under @hydra.main"
            return UserError(what, where=self.where, allowed="; ".join(lines[-2:])[:300])
        last = lines[-1] if lines else f"exit code {code}"
        fix = ""
        if re.search(r"No module named '?(hydra|omegaconf)", last):
            fix = "activate the app's environment, or name its interpreter: --python env/bin/python"
        return UserError(f"the app cannot be composed: {last[:300]}", where=self.where, fix=fix)


class AppRoot(Root):
    """The config root of an app: its groups and their options, which the check of overrides needs.

    Args:
        process: of the app.
    """

    def __init__(self, process: AppProcess) -> None:
        super().__init__("config", ())
        self._process = process
        self._options: dict[str, list[str] | None] = {}

    def options(self, group: str) -> list[str]:
        """Return the options of a config group. For a name that is no group the list is empty."""
        return self._known(group) or []

    def is_group(self, key: str) -> bool:
        """Return whether a key is a config group, not a value."""
        return self._known(key.lstrip("+~").partition("@")[0]) is not None

    def check_option(self, key: str, option: Any, *, where: str = "") -> None:
        """Do nothing: Hydra itself refuses an unknown option, since only its search path has all of them."""

    def _known(self, group: str) -> list[str] | None:
        if group not in self._options:
            self._options[group] = self._process.ask("options", group=group)["options"]
        return self._options[group]

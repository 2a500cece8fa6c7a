"""Scripts in the place of Slurm's commands that print what the real ones (22.05) printed.

What the real ones do is the matter of tests/slurm. With these, rare answers are given too, and the command
lines that Polysweep uses are compared.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo")

_SCRIPT = """#!/bin/sh
name=${0##*/} line=${0##*/}
for word; do line="$line $word"; done
echo "$line" >>"$REPLAY/asked.$name"
read -r number <"$REPLAY/$name.next"
echo $((number + 1)) >"$REPLAY/$name.next"
[ -e "$REPLAY/$name.$number" ] || number=last
. "$REPLAY/$name.$number"
"""


class Said(NamedTuple):
    """An answer of a command: output, errors, exit code; `last` is shell that runs before its end."""

    output: str = ""
    error: str = ""
    code: int = 0
    last: str = ""


CONFIG = """\
Configuration data as of 2026-11-25T02:30:00
ClusterName             = lab
MaxArraySize            = 1001
PrivateData             = none
SlurmctldHost[0]        = head
SlurmctldHost[1]        = spare
SlurmctldPort           = 6817
SLURM_VERSION           = 22.05.8
"""
"""Some lines of ``scontrol show config``."""

DOWN = Said(error="slurm_load_jobs error: Unable to contact slurm controller (connect failure)", code=1)
NONE = Said(error="slurm_load_jobs error: Invalid job id specified", code=1)


class Replay:
    """The scripts, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in COMMANDS:
            (folder / name).write_text(_SCRIPT)
            (folder / name).chmod(0o755)

    def says(self, **answers: str | Said | list[Said]) -> None:
        """Sets the answers to the next calls of each command; the last one repeats."""
        for name in COMMANDS:
            told = answers.get(name, {"scontrol": CONFIG}.get(name, ""))
            each = told if isinstance(told, list) else [Said(told) if isinstance(told, str) else told]
            for old in self._folder.glob(f"{name}.*"):
                old.unlink()
            for number, said in [*enumerate(each), ("last", each[-1])]:
                text = f"printf %s {shlex.quote(said.output)}\nprintf %s {shlex.quote(said.error)} >&2\n"
                (self._folder / f"{name}.{number}").write_text(f"{text}{said.last}\nexit {said.code}\n")
            (self._folder / f"{name}.next").write_text("0\n")

    def command_lines(self) -> list[str]:
        """How they were called since the last call of this, in the order of the commands' names."""
        found = []
        for file in sorted(self._folder.glob("asked.*")):
            found += file.read_text().splitlines()
            file.unlink()
        return found


@contextmanager
def replaying() -> Iterator[Replay]:
    """Puts the scripts before Slurm's own commands, for this process and those that it starts."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="replay") as folder:
        os.environ.update(PATH=f"{folder}:{before['PATH']}", REPLAY=folder)
        try:
            yield Replay(Path(folder))
        finally:
            os.environ.clear()
            os.environ.update(before)

"""The Python interpreter that `python` means in a command, and where programs are searched."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.stage import StageSpec


def interpreter_of(python: str | None, folder: Path | None) -> str | None:
    """Return the path of the interpreter that a stage names; the name unchanged if it is not found."""
    if python is None:
        return None
    path = Path(python).expanduser()
    found = shutil.which((folder or Path.cwd()) / path if len(path.parts) > 1 else path)
    return str(found or path)


def search_path(python: str | None = None) -> str:
    """Return the PATH of a command, in which `python` is the interpreter that the user means.

    That is the stage's own interpreter, or else the first one in the user's PATH. If that one belongs to the
    system, or there is none, the active environment (VIRTUAL_ENV, CONDA_PREFIX) comes first, or else the
    environment that runs Polysweep.

    Args:
        python: path of the stage's own interpreter; None without one.
    """
    path = os.environ.get("PATH", os.defpath)
    if python is not None:
        return f"{Path(python).parent}{os.pathsep}{path}"
    first = shutil.which("python", path=path)
    # The system's interpreter rarely has the libraries that a stage needs, so it is not what the user means.
    if first is not None and str(Path(first).parent) not in SYSTEM_FOLDERS:
        return path
    active = [os.environ.get(name, "") for name in ("VIRTUAL_ENV", "CONDA_PREFIX")]
    folders = [Path(prefix, "bin") for prefix in active if prefix and Path(prefix, "bin", "python").exists()]
    return os.pathsep.join([str((folders or [Path(sys.executable).parent])[0]), path])


def command_facts(spec: StageSpec, import_paths: Sequence[str]) -> dict[str, str | None]:
    """Return provenance of a command's attempt: the interpreter that `python` means (None if not found)."""
    if spec.command is None:
        return {}
    python = interpreter_of(spec.python, Path(import_paths[0]) if import_paths else None)
    return {"command_python": python or shutil.which("python", path=search_path())}


SYSTEM_FOLDERS = ("/bin", "/usr/bin", "/usr/local/bin")

"""What ran where, for records: code, packages, host and command line, and never a secret."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.core.secrets import known_values, redacted

ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_ID",
    "SLURM_JOB_PARTITION",
    "SLURM_NODELIST",
    "SLURM_RESTART_COUNT",
)
"""The only environment variables that are ever recorded."""

_ELSEWHERE = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY"),
    *(
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_PREFIX",
        "GIT_NAMESPACE",
        "GIT_SHALLOW_FILE",
        "GIT_GRAFT_FILE",
    ),
)
"""Variables that name another repository than that of a folder, such as those that git sets for its hooks."""

MAX_DIFF_BYTES = 1_000_000


def now() -> str:
    """Returns the time for people: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def age_s(at: str) -> float:
    """Returns how long ago a record was written, by this machine's clock and its writer's: an estimate."""
    try:
        return time.time() - datetime.fromisoformat(at).timestamp()
    except ValueError:
        return 0.0


def user() -> str:
    """Returns who asks, as ``name@host``."""
    import getpass

    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return f"{name}@{platform.node()}"


def without_secrets(text: str) -> str:
    """Return a text with the credentials in it, and those that this process's environment holds, redacted."""
    return redacted(text, known_values(os.environ))


def command_line(argv: Sequence[str]) -> str:
    """Return the command line without credentials."""
    return without_secrets(shlex.join(argv))


def stage_files(targets: Iterable[str], import_paths: Sequence[str]) -> list[Path]:
    """Returns the files of the user's stage modules, as `code_digest` takes them."""
    files: list[Path] = []
    for top in sorted({target.partition(":")[0].partition(".")[0] for target in targets if target}):
        for folder in import_paths:
            module, package = Path(folder, f"{top}.py"), Path(folder, top)
            if os.path.isfile(module):  # noqa: PTH113 - False for what can be no name
                files.append(module)
                break
            if top != "orchestrator" and os.path.isdir(package):  # noqa: PTH112
                files.extend(sorted(package.rglob("*.py")))
                break
    return files


def code_digest(targets: Iterable[str], import_paths: Sequence[str]) -> str:
    """Returns a digest of the code that workers import: this package, and the user's stage modules.

    Args:
        targets: ``module:function`` of each stage.
        import_paths: folders of the user's modules; a module found elsewhere is an installed package.
    """
    files = [*sorted(Path(__file__).parent.rglob("*.py")), *stage_files(targets, import_paths)]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def packages() -> dict[str, str]:
    """Returns the version of every installed package."""
    import importlib.metadata  # only where it is needed: it takes a quarter of the imports of `sweep status`

    found = ((d.metadata["Name"], d.version) for d in importlib.metadata.distributions())
    return dict(sorted((name, version) for name, version in found if name))


@cache
def packages_digest() -> str:
    """Returns a short digest of `packages`, to show drift."""
    return hashlib.sha256(repr(packages()).encode()).hexdigest()[:16]


def git_environment() -> dict[str, str]:
    """Return the environment in which git answers for the folder that it is asked about, in English."""
    kept = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    return {**kept, "LC_ALL": "C"}


@cache
def git_state(folder: str) -> dict[str, Any]:
    """Returns commit, branch and uncommitted diff of the checkout that holds `folder`, {} without one."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", folder, *words],
                capture_output=True,
                text=True,
                timeout=20,
                env=git_environment(),
                check=False,
                errors="replace",
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {}
    diff = git("diff", "--no-ext-diff", "--no-color", "HEAD") or ""
    return {
        "commit": commit.strip(),
        "dirty": bool(diff),
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else "",
        "diff": diff if len(diff) <= MAX_DIFF_BYTES else diff[:MAX_DIFF_BYTES] + "\n... (cut)\n",
    }


def code_version(digest: str, git: Mapping[str, Any], *, now: str = "") -> str:
    """Returns ``COMMIT+.DIGEST``: of the git checkout (``+`` when there are changes), and of the code itself.

    The digest tells two uncommitted states apart, and is there without git too. ``~DIGEST`` follows where the
    code was edited meanwhile: nobody knows which of the two was read.

    Args:
        digest: of the code at the beginning.
        git: the checkout's state, {} without one.
        now: digest at the end, "" where the code cannot change.
    """
    commit = git["commit"][:8] + ("+" if git["dirty"] else "") + "." if git else ""
    return commit + digest[:8] + (f"~{now[:8]}" if now not in ("", digest) else "")


def of_launch(argv: Sequence[str], folder: str) -> dict[str, Any]:
    """Returns what is recorded with a launch: everything that a rerun elsewhere would need to know."""
    git = git_state(folder)
    return {
        **of_attempt("", {}),
        "git": {**git, "diff": without_secrets(git["diff"])} if git else {},  # its digest is of the whole
        "packages": packages(),
        "command": command_line(argv),
    }


def without_diff(git: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a `git_state` in which the diff is left as a digest only."""
    return {key: value for key, value in git.items() if key != "diff"}


def of_attempt(digest: str, git: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is recorded with each attempt; the packages and the diff only as digests."""
    from orchestrator import __version__

    return {
        "polysweep": __version__,
        "code": digest,
        "git": without_diff(git),
        "packages_digest": packages_digest(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "num_cpus": os.cpu_count(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "executable": sys.executable,
    }

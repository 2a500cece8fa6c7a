"""Provenance for records: code, packages, host, disks, process and command line, without secrets."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.core.records import Process
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
"""The only environment variables that are recorded."""

_HEAD_BYTES = 2**13
"""As many bytes of a package's metadata are read: name and version come first."""
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
"""Variables that point git to another repository than a folder's own; git sets them for its hooks."""

MAX_DIFF_BYTES = 1_000_000
"""Length at which a recorded diff is cut."""

NETWORK_TYPES = tuple("nfs cifs smb lustre gpfs beegfs ceph glusterfs wekafs fuse. 9p afs".split())


def now() -> str:
    """Return the time for people: UTC, ISO 8601, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time()))


def age_s(at: str) -> float:
    """Return the seconds since a record was written; an estimate, since two machines' clocks are compared.

    An unreadable time counts as now, 0.0.
    """
    try:
        return time.time() - datetime.fromisoformat(at).timestamp()
    except ValueError:
        return 0.0


def user() -> str:
    """Return the current user as ``name@host``."""
    import getpass

    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())  # a container may run under an id without a name
    return f"{name}@{platform.node()}"


def without_secrets(text: str) -> str:
    """Return a text with its credentials, and those of this process's environment, redacted."""
    return redacted(text, known_values(os.environ))


def stage_files(targets: Iterable[str], import_paths: Sequence[str]) -> list[Path]:
    """Return the files of the user's stage modules, in the order in which `code_digest` hashes them."""
    files: list[Path] = []
    for top in sorted({target.partition(":")[0].partition(".")[0] for target in targets if target}):
        for folder in import_paths:
            module, package = Path(folder, f"{top}.py"), Path(folder, top)
            if os.path.isfile(module):  # noqa: PTH113 - False for an impossible name, where Path raises
                files.append(module)
                break
            if top != "orchestrator" and os.path.isdir(package):  # noqa: PTH112
                files.extend(sorted(package.rglob("*.py")))
                break
    return files


def code_digest(targets: Iterable[str], import_paths: Sequence[str]) -> str:
    """Return a digest of the code that workers import: this package, and the user's stage modules.

    Args:
        targets: ``module:function`` of each stage.
        import_paths: folders of the user's modules. A module found elsewhere is an installed package.
    """
    files = [*sorted(Path(__file__).parent.rglob("*.py")), *stage_files(targets, import_paths)]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def packages(without: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the version of every installed package, in the order of their names.

    Each worker needs them. `importlib.metadata` takes four times as long, for its import. It also finds
    packages in zip files, and those of finders of other programs.

    Args:
        without: folders of `sys.path` that are not searched.
    """
    found: dict[str, str] = {}
    for folder in sys.path:
        with contextlib.suppress(OSError):  # not there, or no folder
            names = () if folder in without else os.listdir(folder or ".")  # noqa: PTH208 - faster
            for name in names:
                if name.lower().endswith((".dist-info", ".egg-info")) or name == "EGG-INFO":
                    package, version = _name_and_version(os.path.join(folder, name))  # noqa: PTH118
                    found.setdefault(package, version)  # of two versions, Python imports the first
    return {name: found[name] for name in sorted(found) if name}


def _name_and_version(folder: str) -> tuple[str, str]:
    """Return what a package's metadata contain. To parse them whole takes ten times as long.

    Args:
        folder: of the metadata, or the one file that holds them.
    """
    text = ""
    for file in ("/METADATA", "/PKG-INFO", ""):  # some are one file: what Debian installs, for example
        with contextlib.suppress(OSError), open(folder + file, "rb") as stream:  # noqa: PTH123
            text = text or stream.read(_HEAD_BYTES).decode(errors="replace")
    name, version = (re.search(rf"^{key}:(.*)$", text, re.MULTILINE) for key in ("Name", "Version"))
    return name[1].strip() if name else "", version[1].strip() if version else ""


@cache
def packages_digest() -> str:
    """Return a short digest of `packages`, to detect drift."""
    return hashlib.sha256(repr(packages()).encode()).hexdigest()[:16]


def packages_age_s() -> float:
    """Return how many seconds ago a package was last installed or removed, by the file system's clock."""
    folders = {Path(path) for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    changed = [folder.stat().st_mtime for folder in folders if folder.is_dir()]
    return time.time() - max(changed, default=0.0)


def git_environment() -> dict[str, str]:
    """Return the environment in which git uses the given folder's repository, and English messages."""
    kept = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    return {**kept, "LC_ALL": "C"}


def git_state(folder: str) -> dict[str, Any]:
    """Return commit and uncommitted diff now of the checkout that holds `folder`; {} without one.

    The digest of the diff covers all of it, also where the text is cut.
    """

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
    """Return the version of the code, ``COMMIT+.DIGEST``; without git, the digest alone.

    ``+`` marks uncommitted changes. The digest of the code distinguishes two uncommitted states. ``~DIGEST``
    follows if the code was edited during the attempt, since either version may have been read::

        1a2b3c4d.99887766    1a2b3c4d+.55443322    1a2b3c4d+.55443322~66778899

    Args:
        digest: digest of the code at the start.
        git: state of the checkout; {} without one.
        now: digest at the end; "" if the code cannot change.
    """
    commit = git["commit"][:8] + ("+" if git["dirty"] else "") + "." if git else ""
    return commit + digest[:8] + (f"~{now[:8]}" if now not in ("", digest) else "")


def of_launch(argv: Sequence[str], folder: str, code: str = "") -> dict[str, Any]:
    """Return the provenance of a launch: everything that a rerun elsewhere needs.

    Args:
        argv: the command.
        folder: of the checkout.
        code: digest of the code that its workers run.
    """
    git = git_state(folder)
    return {
        **of_attempt(code, {}),
        # The diff's digest was taken before secrets were removed and the text was cut.
        "git": {**git, "diff": without_secrets(git["diff"])} if git else {},
        "packages": packages(),
        "command": without_secrets(shlex.join(argv)),
    }


def without_diff(git: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `git_state` with the digest of the diff, but without its text."""
    return {key: value for key, value in git.items() if key != "diff"}


def of_attempt(digest: str, git: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance of an attempt, with packages and diff as digests only."""
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


# The process that wrote a record, named so that others on its machine can prove it gone

PROC = Path("/proc")


class ProcessEntry(NamedTuple):
    """A process, as ``/proc/PID/stat`` describes it (proc_pid_stat(5)).

    Attributes:
        state: one letter.
        parent, group, session: process ids.
        start: start time, in the kernel's own units.
    """

    state: str
    parent: int
    group: int
    session: int
    start: str

    @property
    def runs(self) -> bool:
        """Whether it runs, and does not merely wait to be reaped."""
        return self.state not in "ZX"


@cache
def boot_id() -> str:
    """Return an id that changes when this machine restarts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux: use the machine's address; after a reboot the lease must expire instead
        return f"{uuid.getnode():x}"


def process_age_s() -> float:
    """Return the seconds since this process was started, or forked; 0 where the kernel does not show it."""
    if (entry := entry_of(os.getpid())) is None or not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(entry.start) / os.sysconf("SC_CLK_TCK"))


@cache
def pid_namespace() -> str:
    """Return the id of this process's pid namespace: two processes with the same id can see each other."""
    try:
        return Path("/proc/self/ns/pid").readlink().name
    except OSError:
        return ""


def read_of(pid: int, name: str) -> bytes:
    """Return a file of a process, cheaply: callers read all of them. Raise OSError if it is gone."""
    handle = os.open(f"{PROC}/{pid}/{name}", os.O_RDONLY)  # half the time of `Path.read_bytes`
    try:
        return b"".join(iter(lambda: os.read(handle, 1 << 16), b""))
    finally:
        os.close(handle)


def entry_of(pid: int) -> ProcessEntry | None:
    """Return what the kernel shows of a process; None if it is gone, or hidden from this user."""
    try:
        # Field 2, the name, may contain spaces and parentheses, so split after its end.
        text = read_of(pid, "stat").decode(errors="replace")
        fields = text.rpartition(")")[2].split()
        return ProcessEntry(fields[0], int(fields[1]), int(fields[2]), int(fields[3]), fields[19])
    except (OSError, IndexError, ValueError):
        return None


def start_of(pid: int) -> str | None:
    """Return a process's start time in the kernel's own units; None if it is gone, a zombie or hidden."""
    if PROC.joinpath("self/stat").exists():
        entry = entry_of(pid)
        return entry.start if entry is not None and entry.runs else None
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    return (
        subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout.strip()
        or None
    )


def process_of(pid: int) -> Process | None:
    """Return the identity of a running process; None if it is gone.

    A process id alone is reused. Together with the boot, the namespace and the start time it is unique.
    """
    start = start_of(pid)
    return (
        None if start is None else Process(boot_id=boot_id(), namespace=pid_namespace(), pid=pid, start=start)
    )


def is_gone(process: Process) -> bool | None:
    """Return whether a process is provably gone; None if that cannot be decided from here.

    A system may hide the processes of other users (``hidepid``), so an unreadable process may still be alive.
    Only "no such process", as the answer to signal 0, is proof.
    """
    if (process.boot_id, process.namespace) != (boot_id(), pid_namespace()):
        return None
    if sys.platform == "linux" and not process.namespace:
        return None  # without /proc on both sides, it is unknown whether they see the same processes
    if start_of(process.pid) == process.start:
        return False
    if entry_of(process.pid) is not None:
        return True  # it waits to be reaped, or its number belongs to another process now
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return None
    return None if sys.platform == "linux" else True


def is_network(path: Path, mounts: str = "/proc/mounts") -> bool:
    """Return whether a folder lies on a network file system; False where mounts cannot be read.

    Args:
        path: Absolute path, which need not exist.
        mounts: File in the format of Linux's /proc/mounts.
    """
    try:
        lines = [line.split() for line in Path(mounts).read_text(encoding="utf-8").splitlines()]
    except OSError:
        return False
    holding = [(len(f[1]), f[2]) for f in lines if len(f) > 2 and path.is_relative_to(_unescaped(f[1]))]
    # The longest mount point above the path is the one that holds it.
    return bool(holding) and max(holding)[1].startswith(NETWORK_TYPES)


def _unescaped(mount: str) -> str:
    return mount.replace("\\040", " ")  # /proc/mounts writes a space as \040

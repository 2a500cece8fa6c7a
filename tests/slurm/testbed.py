"""A Slurm of the tests' own: the test bed of ``slurm/testbed``, what it answers, and ways to hurt it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.execution.waiting import lives, until

SCRIPTS = Path(__file__).parents[2] / "slurm/testbed"
FOREIGN = ("SLURM_", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SCANCEL_", "SACCT_", "SINFO_", "TESTBED_")


class Unavailable(Exception):
    """This machine cannot have a test bed; the text says why."""


def up(folder: Path, environment: dict[str, str]) -> None:
    """Starts what is not running."""
    done = subprocess.run(
        [SCRIPTS / "up.sh", folder],
        env=environment,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=180,
        check=False,
    )
    if done.returncode == 3:
        raise Unavailable(done.stderr.strip().removeprefix("up.sh: "))
    assert done.returncode == 0, done.stdout + done.stderr


class Testbed:
    """A running Slurm. Its commands run with `env`, where no variable of another Slurm is left."""

    __test__ = False  # it is no test, whatever its name says

    def __init__(self, folder: Path, guard: subprocess.Popen[bytes]) -> None:
        self.folder, self._guard = folder, guard
        self._may_be_hurt = False
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        self.env["SLURM_CONF"] = str(folder / "etc/slurm.conf")

    @classmethod
    def start(cls, folder: Path, **knobs: object) -> Testbed:
        """Brings one up in a folder of its own; knobs are those of up.sh: ``nodes=2, accounting="none"``."""
        folder = folder.resolve()
        # Reads until this process is gone, however it ends, and takes the test bed down: no daemon is left.
        guard = subprocess.Popen(
            ["bash", "-c", 'read; exec "$0" "$1" --purge', SCRIPTS / "down.sh", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        testbed = cls(folder, guard)
        try:
            up(folder, testbed.env | {f"TESTBED_{name.upper()}": str(value) for name, value in knobs.items()})
        except BaseException:
            testbed.stop()
            raise
        return testbed

    def stop(self) -> None:
        """Takes everything down, jobs too, and removes the folder."""
        self._guard.communicate(timeout=120)

    def revive(self) -> None:
        """Starts what was killed, wakes what was stopped, puts nodes back to use; nothing is forgotten."""
        up(self.folder, self.env)
        self._may_be_hurt = False

    def ask(self, *words: str | Path, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
        """Runs a command, whatever its exit code."""
        return subprocess.run(
            words,
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def run(self, *words: str | Path, timeout_s: float = 90) -> str:
        """Runs a command that must succeed; returns its output without the last line's end."""
        done = self.ask(*words, timeout_s=timeout_s)
        assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.rstrip("\n")

    def submit(self, *options: str, wrap: str) -> str:
        """Submits a shell line as a batch job, its output to nowhere unless options say; returns its id."""
        return self.run("sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={wrap}")

    def node_states(self) -> dict[str, str]:
        """``idle``, ``mixed``, ``down*``, ... by node."""
        lines = self.run("sinfo", "--noheader", "--Node", "--partition=normal", "--format=%N %T").splitlines()
        return dict(line.split() for line in lines)

    def job_states(self, *options: str) -> dict[str, str]:
        """``PENDING``, ``RUNNING``, ... of what is queued, by id or ``id_index``."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%i %T", *options).splitlines()
        return dict(line.split() for line in lines)

    def pid(self, name: str) -> int:
        """The process of ``munged``, ``mariadb``, ``slurmdbd``, ``slurmctld`` or ``slurmd.node2``."""
        self._may_be_hurt = True  # by whoever asks
        return int((self.folder / f"run/{name}.pid").read_text())

    def kill(self, name: str, sig: signal.Signals = signal.SIGKILL) -> None:
        """Sends a daemon a signal; returns when it is dead, if the signal is one that kills."""
        pid = self.pid(name)
        os.kill(pid, sig)
        if sig in (signal.SIGKILL, signal.SIGTERM):
            until(lambda: not lives(pid))

    def lose(self, node: str) -> None:
        """What a power cut does to a node: its slurmd, its steps and all their processes die at once."""
        self.kill(f"slurmd.{node}")
        log = self.folder / f"log/slurmd.{node}.log"
        for process in Path("/proc").glob("[0-9]*"):
            try:
                is_step = (process / "comm").read_text() == "slurmstepd\n"
                if is_step and any(file.readlink() == log for file in (process / "fd").iterdir()):
                    kill_tree(int(process.name))
            except OSError:
                continue  # it ended by itself

    def clear(self) -> None:
        """As good as new for the next test: no jobs, all daemons alive, all nodes in use."""
        if self._may_be_hurt:
            self.revive()
        if self.run("squeue", "--noheader", "--all"):
            # what ignores SIGTERM costs KillWait
            self.run("scancel", "--user=root", "--signal=KILL", "--full")
            self.run("scancel", "--user=root")
            until(lambda: not self.run("squeue", "--noheader", "--all"), timeout_s=60)
        if set(self.node_states().values()) != {"idle"}:
            self.revive()


def kill_tree(pid: int) -> None:
    """Kills a process and its descendants, from the top, so that nobody sees a child die."""
    os.kill(pid, signal.SIGSTOP)
    children = [
        child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()
    ]
    os.kill(pid, signal.SIGKILL)
    for child in children:
        kill_tree(int(child))

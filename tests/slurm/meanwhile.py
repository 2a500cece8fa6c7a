"""Commands that run again and again while a test does something else."""

from __future__ import annotations

import threading
import time

from tests.slurm.sweeps import OnSlurm


class Meanwhile:
    """Reconciles and launches a sweep all the time, and watches that no cell of it ever has two jobs.

    Args:
        jobs: the command.
        words: of the launch.
        cells: how many cells there are; each is the only one of its job.
    """

    def __init__(self, jobs: OnSlurm, words: tuple[str, ...], cells: int = 1) -> None:
        self._jobs, self._words, self._cells = jobs, words, cells
        self._over = threading.Event()
        self._problems: list[str] = []
        self._threads = [threading.Thread(target=work) for work in (self._submit, self._watch)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        assert not self._problems, self._problems
        assert len(self._jobs.submissions()) == 1

    def _submit(self) -> None:
        turn = 0
        while not self._over.is_set():
            turn += 1
            try:
                self._jobs.launch(*self._words) if turn % 3 == 0 else self._jobs("reconcile", "jobs")
            except AssertionError as error:
                self._problems.append(str(error))

    def _watch(self) -> None:
        while not self._over.is_set():
            tasks = [task for task in self._jobs.cluster.job_states() if "_" in task]
            if len(tasks) > self._cells:
                self._problems.append(f"jobs {tasks} at once")
            time.sleep(0.2)

"""GPUs that the workers of one launch on this machine share, where each stage has a number of its own.

A worker takes the GPUs of a stage before it claims the stage, and never waits for them: it tries another
stage instead. It takes a GPU by binding an abstract socket of its name, which the kernel allows once::

    worker 0   binds gpu 0, gpu 1     runs a stage with 2 GPUs
    worker 1   gpu 0, gpu 1 in use    one of two is free: tries a stage with 1 GPU

No file is left behind that a cleaner of temporary files could remove meanwhile. The kernel frees a name when
the last process that inherited the socket is gone, whatever killed it. So a GPU is never free too early.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Iterator, Mapping

from orchestrator.core.evidence import NO_HOLDS, Hold, Holds
from orchestrator.errors import counted
from orchestrator.execution.assignment import GpuShare

_PAUSE_S = 0.001
"""Pause of a worker while another one looks for free GPUs, which takes less than that."""


class GpuPool:
    """The GPUs of a launch, as one of its workers sees them.

    Args:
        share: the GPUs, and how many of them each stage gets.
    """

    def __init__(self, share: GpuShare) -> None:
        self._ids = share.ids
        self._token = share.token
        self._default = share.default
        self._chosen = share.chosen
        self._numbers = dict(share.stages)

    def chosen(self, digest: str) -> int:
        """Return the number of GPUs that was chosen for a stage; 0 if its number is not chosen."""
        return self._numbers[digest] if digest in self._chosen else 0

    def keep(self, digest: str, number: int) -> None:
        """Give a stage the number that an earlier claim of its cell recorded, if this machine has as many."""
        if 0 < number <= len(self._ids):
            self._numbers[digest] = number

    def holds(self, digests: Iterable[str]) -> Holds:
        """Return the stages for which too few GPUs are free now, or for which there are never enough."""
        num_gpus = len(self._ids)
        with self._taken(num_gpus) as free:
            num_free = len(free)
        if num_free == num_gpus and all(number <= num_gpus for number in self._numbers.values()):
            return NO_HOLDS
        busy = Hold(f"{num_free} of {num_gpus} GPUs are free", is_final=False)
        small = Hold(f"it needs more than the {counted(num_gpus, 'GPU')} of this worker")
        numbers = ((digest, self._number(digest)) for digest in digests)
        return Holds(
            stages={
                key: busy if number <= num_gpus else small for key, number in numbers if number > num_free
            }
        )

    @contextlib.contextmanager
    def hold(self, digest: str) -> Iterator[Mapping[str, str] | None]:
        """Hold the GPUs of a stage; yield the variables that name them, or None if too few are free."""
        number = self._number(digest)
        with self._taken(number) as ids:
            yield {"CUDA_VISIBLE_DEVICES": ",".join(ids)} if len(ids) == number else None

    def _number(self, digest: str) -> int:
        return self._numbers.get(digest, min(self._default, len(self._ids)))

    @contextlib.contextmanager
    def _taken(self, most: int) -> Iterator[tuple[str, ...]]:
        """Take up to so many free GPUs, and yield their ids."""
        with contextlib.ExitStack() as held:
            with self._alone():
                taken: list[str] = []
                for name in self._ids:
                    if len(taken) < most and (bound := self._bound(name)) is not None:
                        held.enter_context(bound)
                        taken.append(name)
            yield tuple(taken)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other workers from looking meanwhile. Each would see the GPUs that the other only looks at."""
        while (bound := self._bound("")) is None:
            time.sleep(_PAUSE_S)
        with bound:
            yield

    def _bound(self, name: str) -> socket.socket | None:
        """Return a socket that holds a name, None if another process holds it."""
        found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            found.bind(f"\0sweep-gpu-{self._token}-{name}")
        except OSError:
            found.close()
            return None
        return found

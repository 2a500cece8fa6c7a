"""What a process may take of its machine: host memory, its copies of tensors, a limit of it, and the GPUs.

Run as ``python -m orchestrator.sft.machine``, it prints how many GPUs torch sees, and how torch was built.
`sweep doctor` does so in a process of its own, because a broken driver may hang or abort the process.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import torch


def copied(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a copy of a tensor in host memory, pinned if the tensor is on a GPU.

    The copy of a GPU's tensor is only queued: call `torch.cuda.synchronize` before reading it. Pinned memory
    is copied at the speed of the bus, about four times that of ordinary memory. PyTorch keeps it for the next
    copies of the same size.

    Args:
        tensor: on any device.
        dtype: of the copy; None for the tensor's own.
    """
    source = tensor.detach().to(dtype or tensor.dtype)
    copy = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
    return copy.copy_(source, non_blocking=source.is_cuda)


def pin(sizes: Sequence[int]) -> None:
    """Let PyTorch keep pinned host memory for later tensors of these sizes, in bytes."""
    kept = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in sizes]
    del kept  # freed together: a block freed earlier would be reused for the next tensor of its size


def room_bytes(root: Path = Path("/")) -> int:
    """Return how much host memory this process may still take: of the machine, and of its control groups.

    Files in the page cache do not count as used, since the kernel drops them first.

    Args:
        root: of the file system; for tests.
    """
    room = int(psutil.virtual_memory().available)
    for folder in _groups(root):
        with contextlib.suppress(OSError, ValueError, KeyError):  # no limit here, or another version
            names = ("memory.max", "memory.current", "file")
            if not (folder / names[0]).exists():
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
            limit, used = (int((folder / name).read_text(encoding="ascii")) for name in names[:2])
            counts = dict(
                line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            )
            room = min(room, limit - used + int(counts[names[2]]))
    return max(0, room)


def _groups(root: Path) -> list[Path]:
    """Return the folders of this process's memory groups, from its own up to the outermost one."""
    found: list[Path] = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
            own = top / path.lstrip("/")
            found += [own, *(parent for parent in own.parents if parent.is_relative_to(top))]
    return found


def may_copy(num_bytes: int) -> bool:
    """Return whether each process of this machine may hold a copy of so many bytes.

    PyTorch rounds a pinned block up to a power of two, on average by half.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 1.5 * num_bytes * processes < room_bytes()


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory of this process so far, in bytes.

    Args:
        device: where it computes; on a GPU the GPU's memory counts, otherwise the host's.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved()
    unit = 1 if sys.platform == "darwin" else 2**10  # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


RECOMPUTED_SHARE = 0.25
"""Share of a token's memory that stays when layers are recomputed in the backward pass; our guess."""


class DeviceLimit(NamedTuple):
    """The most tokens whose activations fit, padding included; None for no limit.

    With `trainer.cpu_limit_tokens` tiny models run out of a CPU's memory as large ones do on a GPU. That
    rehearses what happens then: remedies, the breaker, reports. The first forward pass that is too wide
    raises torch's own error, so with most data that is the step with the longest batch.
    """

    tokens: int | None = None

    def check(self, num_tokens: int, *, recomputes: bool) -> None:
        """Return if a micro-batch fits.

        Args:
            num_tokens: of the micro-batch, padding included.
            recomputes: whether only the inputs of layers are kept, and the rest is computed again.

        Raises:
            torch.OutOfMemoryError: it does not, with the message of a GPU.
        """
        if self.tokens is None:
            return
        estimate = num_tokens * (RECOMPUTED_SHARE if recomputes else 1.0)
        if estimate > self.tokens:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory, as pretended on a CPU: a micro-batch of {num_tokens} tokens takes the"
                f" memory of {estimate:.0f}, and trainer.cpu_limit_tokens={self.tokens}"
            )


def print_gpus() -> None:
    """Print the number of GPUs, and the versions of torch and CUDA."""
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    build = f"with CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    print(number, torch.__version__, build)


if __name__ == "__main__":
    print_gpus()

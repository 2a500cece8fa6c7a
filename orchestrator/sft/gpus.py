"""Print how many GPUs torch sees, and how it was built: ``python -m orchestrator.sft.gpus``.

`sweep doctor` runs it in a process of its own, because a broken driver may hang or abort the process.
"""

from __future__ import annotations

import torch


def main() -> None:
    """Print the number of GPUs, and the versions of torch and CUDA."""
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    build = f"with CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    print(number, torch.__version__, build)


if __name__ == "__main__":
    main()

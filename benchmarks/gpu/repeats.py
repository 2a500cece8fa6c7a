"""Whether a gradient repeats bit for bit with deterministic kernels, and what they cost.

In a process of its own: cuBLAS reads how to use its workspace once, before the first matrix product.

    python repeats.py [--small]
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch

from gpu.models import Size, placed, rows_of
from gpu.one_pass import Pass
from orchestrator.sft import batches, kernels
from orchestrator.sft.distributed.parallel import Placed, group_of_one
from orchestrator.sft.shards import Batch, Rows, Segments


def main(*, small: bool) -> None:
    """Print a line of JSON for each model and way to compute it."""
    one = Pass(small=small, budget_s=300, out=None)
    with kernels.deterministic(True):  # sets what cuBLAS reads
        torch.ones(2, 2, device=one.device) @ torch.ones(2, 2, device=one.device)
    if one.cuda:
        kernels.prepare()
    for name, layers in (("qwen3-0.6b", 4), ("gemma3-1b", 6)):
        size = Size(name, small=small, layers=layers)
        rows = Rows(rows_of(size, 16, small=small), pad_token_id=0)
        for compiled in (False, True) if one.cuda else (False,):
            with group_of_one("auto", one.device):
                model = placed(one, size, recompute=False, sharding="auto")
                if one.cuda:
                    kernels.fuse_norms(model.model)
                batches.can_pack(model, rows, bf16=True)
                if compiled:
                    model.compile()
                pack = _pack(rows, by_kernel=model.has_pack_kernel)
                found = {}
                for wanted in (False, True):
                    with kernels.deterministic(wanted):
                        found[wanted] = _twice(one, model, pack)
                form = "compiled" if compiled else "not compiled"
                print(json.dumps([f"{name}'s width, {layers} layers, {form}", found[False], found[True]]))
            del model
            one.clean()


def _pack(rows: Rows, *, by_kernel: bool) -> Batch:
    width = -(-int(rows.lengths.sum()) // 128) * 128
    segments = Segments(int(rows.lengths.max()), len(rows) + 2) if by_kernel else None
    return rows.pack([int(row) for row in np.argsort(-rows.lengths)], width=width, segments=segments)


def _twice(one: Pass, model: Placed, pack: Batch) -> tuple[bool, float]:
    """Return whether two gradients of a pack are equal, and the milliseconds of one."""

    def gradient() -> list[torch.Tensor]:
        model.model.zero_grad()
        torch.autograd.backward(model.losses(pack) / len(pack.targets))
        return [p.grad.clone() for p in model.parameters if p.grad is not None]

    first = gradient()
    is_equal = all(all(map(torch.equal, first, gradient())) for _ in range(3))
    return is_equal, round(1e3 * one.seconds(gradient, repeats=3), 1)


if __name__ == "__main__":
    main(small="--small" in sys.argv)

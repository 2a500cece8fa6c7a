"""One rank of a step of a small model: python -m torch.distributed.run ... rank.py cpu|cuda ddp|fsdp."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from gpu.models import Size, rows_of
from orchestrator.sft.distributed.parallel import Placed, whole
from orchestrator.sft.packing import RowsAtATime
from orchestrator.sft.shards import Rows


def main(kind: str, sharding: str) -> None:
    """Compute one step and print the norm of its gradient."""
    if kind == "cuda":
        torch.cuda.set_device(0)  # all ranks on one GPU
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=60))
    size, device = Size("qwen3-0.6b", small=True), torch.device(kind)
    placed = Placed(
        lambda: size.build(device),
        device=device,
        sharding=sharding,
        bf16=True,
        gradient_checkpointing=True,
        chunk_tokens=128,
    )
    rows = Rows(rows_of(size, 32, small=True), pad_token_id=0)
    order, world = np.argsort(-rows.lengths), dist.get_world_size()
    for part in RowsAtATime(4).parts(order, rank=dist.get_rank(), num_processes=world):
        (placed.losses(rows.batch(part.rows, masked=part.masked)) / 1000 * world).backward()  # type: ignore[no-untyped-call]
    norm = whole(torch.nn.utils.get_total_norm([p.grad for p in placed.parameters if p.grad is not None]))
    dist.barrier()
    if dist.get_rank() == 0:
        print(f"ranks: sharded {placed.is_sharded}, gradient norm {float(norm):.6f}", flush=True)
    os._exit(0)  # NCCL's threads may outlive a normal end


if __name__ == "__main__":
    main(*sys.argv[1:])

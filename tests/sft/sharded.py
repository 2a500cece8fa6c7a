"""Functions on sharded models that tests run in several processes; they must be importable there by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from orchestrator.sft import runtime
from orchestrator.sft.checkpoints import load_state, state_of, write_state, write_weights
from orchestrator.sft.distributed.parallel import Placed, rank, whole
from orchestrator.sft.shards import Example, Rows
from orchestrator.stage import Config, Context, Inputs


def save_weights(placed: Placed, folder: Path, *, dtype: torch.dtype) -> None:
    """Writes a model's weights by rank 0; all processes must call this together."""
    weights = placed.weights(dtype)
    if rank() == 0:
        write_weights(placed.model, weights, folder, dtype=dtype)


def place(config: Config, inputs: Inputs, context: Context) -> dict[str, Any]:
    """Shards a model and says what became of its parameters."""
    reference = runtime.load_weights(inputs["base"])
    placed = Placed(
        lambda: runtime.load_weights(inputs["base"]),
        device=torch.device("cpu"),
        sharding="fsdp",
        bf16=config.bf16,
        gradient_checkpointing=True,
        chunk_tokens=8,
    )
    parameters, buffers = dict(placed.model.named_parameters()), dict(placed.model.named_buffers())
    assert list(parameters) == [name for name, _ in reference.named_parameters()]
    save_weights(placed, context.output, dtype=torch.float32)
    rows = Rows(
        [Example("train", "1", 2, [5, 6, 7, 8, 9]), Example("train", "2", 1, [4, 5, 6])], pad_token_id=0
    )
    loss = placed.losses(rows.batch([0, 1]))
    loss.backward()
    return {
        "kinds": sorted({type(parameter).__name__ for parameter in placed.parameters}),
        "gradients": sorted({type(parameter.grad).__name__ for parameter in placed.parameters}),
        "dtypes": sorted({str(parameter.dtype) for parameter in placed.parameters}),
        "halved": all(p.to_local().numel() < p.numel() for p in placed.parameters if p.ndim > 1),
        "differ": [n for n, p in reference.named_parameters() if not torch.equal(whole(parameters[n]), p)],
        "buffers": [n for n, b in reference.named_buffers() if not torch.equal(buffers[n], b)],
        "loss": loss.item(),
    }


def resave(config: Config, inputs: Inputs, context: Context) -> None:
    """Loads a training state and saves it again, in however many processes this is."""
    placed, optimizer = placed_with_optimizer(inputs["base"], sharding="fsdp")
    load_state(placed, optimizer, Path(config.folder))
    write_state(state_of(placed, optimizer), context.output)


def placed_with_optimizer(base: Path, *, sharding: str) -> tuple[Placed, torch.optim.Optimizer]:
    """Returns a model and the optimizer that training would make for it."""
    placed = Placed(
        lambda: runtime.load_weights(base),
        device=torch.device("cpu"),
        sharding=sharding,
        bf16=False,
        gradient_checkpointing=False,
        chunk_tokens=8,
    )
    groups = [
        {"params": [p for p in placed.parameters if p.ndim > 1]},
        {"params": [p for p in placed.parameters if p.ndim <= 1]},
    ]
    return placed, torch.optim.AdamW(groups, lr=1e-5, fused=True)

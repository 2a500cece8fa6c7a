"""Where a model lies: whole in one process, copied to several (DDP), or sharded over them (FSDP2).

It knows models and process groups; nothing of rows, optimisers or stages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, PreTrainedModel

from orchestrator.errors import StageFailure
from orchestrator.sft.distributed import nodes
from orchestrator.sft.loss import ResponseLoss, decoder_of

FROZEN = ("vision_tower", "multi_modal_projector")
"""Parts of a multimodal model that text alone does not train."""


def num_processes(requested: int | None, device: torch.device) -> int:
    """Returns over how many processes to train: as many as the job has GPUs unless the config says.

    Raises:
        StageFailure: more than there are GPUs.
    """
    if device.type == "cpu":
        return requested or 1
    there = torch.cuda.device_count() * nodes.count()
    if requested is not None and requested > there:
        raise StageFailure("config", f"trainer.num_processes={requested}, but {there} GPUs are visible")
    return requested or there


def rank() -> int:
    """The number of this process among those that compute together, 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes compute together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def reduced(tensor: torch.Tensor, *, largest: bool = False) -> torch.Tensor:
    """Returns the sum, or the largest, of a tensor over the processes."""
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
    return tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor that may be sharded as an ordinary one; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Placed:
    """A model ready to train, in one of the three places.

    Args:
        load: returns the model, float32, on the CPU; where it is sharded only rank 0 calls it.
        device: where to compute.
        sharding: ``ddp``, ``fsdp`` or ``auto``: FSDP over several GPUs, DDP over several CPU processes.
        bf16: compute in bfloat16; the weights that are trained stay float32.
        gradient_checkpointing: keep only the inputs of layers and compute the rest again.
        chunk_tokens: see `ResponseLoss`.
    """

    def __init__(
        self,
        load: Callable[[], PreTrainedModel],
        *,
        device: torch.device,
        sharding: str,
        bf16: bool,
        gradient_checkpointing: bool,
        chunk_tokens: int,
    ) -> None:
        self.device = device
        wanted = sharding == "fsdp" or (sharding == "auto" and device.type == "cuda")
        self.is_sharded = wanted and world_size() > 1
        self._autocast = bf16 and not self.is_sharded  # FSDP casts itself
        source: PreTrainedModel = load() if rank() == 0 or not self.is_sharded else None
        self.model = empty(source) if self.is_sharded else source
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not any(part in name for part in FROZEN))
        if gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        self._loss: nn.Module = ResponseLoss(self.model, chunk_tokens=chunk_tokens)
        if self.is_sharded:
            shard(self._loss, self.model, device=device, bf16=bf16)
            fill(self.model, source, device=device)
        else:
            self._loss.to(device)
            if world_size() > 1:
                self._loss = DistributedDataParallel(
                    self._loss, forward_sync_buffers=False, gradient_as_bucket_view=True
                )
        self._loss.train()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.num_parameters = sum(parameter.numel() for parameter in self.parameters)

    def losses(self, batch: Any, *, is_last: bool = True) -> torch.Tensor:
        """Returns the summed loss of a batch; after the backward pass of the last one gradients are shared.

        Sharded gradients are shared after every batch: keeping whole ones is what does not fit.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast), self._sync(is_last):
            loss: torch.Tensor = self._loss(batch.to(self.device))
            return loss

    @contextlib.contextmanager
    def _sync(self, is_last: bool) -> Iterator[None]:
        if isinstance(self._loss, DistributedDataParallel) and not is_last:
            with self._loss.no_sync():  # what counts for DDP is the forward pass
                yield
        else:
            yield

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Leaves out gradients and what only training does."""
        self._loss.eval()
        with torch.no_grad():
            yield
        self._loss.train()

    def weights(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Returns whole weights on the CPU in rank 0, nothing elsewhere; all processes must ask.

        One tensor at a time is gathered. Of tied weights only the first name is kept.
        """
        weights: dict[str, torch.Tensor] = {}
        seen: set[int] = set()
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                full = whole(tensor.detach())
                if rank() == 0:
                    weights[name] = full.to("cpu", dtype if full.is_floating_point() else None)
        return weights


def empty(source: PreTrainedModel | None) -> PreTrainedModel:
    """Returns rank 0's model anew in each process, its parameters without memory."""
    config = [source.config if source is not None else None]
    dist.broadcast_object_list(config, src=0)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config[0], dtype=torch.float32)
    model.tie_weights()  # the line above unties them
    if source is not None:
        model.generation_config = source.generation_config
    return model


def shard(root: nn.Module, model: PreTrainedModel, *, device: torch.device, bf16: bool) -> None:
    """Shards parameters over all processes, gathered layer by layer; the rest with the root."""
    mesh = init_device_mesh(device.type, (world_size(),))
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if bf16
        else MixedPrecisionPolicy()
    )
    frozen = [module for name, module in model.named_modules() if name.rpartition(".")[2] in FROZEN]
    for part in (*layers_of(model), *frozen, root):
        fully_shard(part, mesh=mesh, mp_policy=policy)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the layers of a model's decoder: its list of modules with the most parameters.

    Raises:
        StageFailure: it has no such list (cause ``config``).
    """
    lists = [module for module in decoder_of(model).modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise StageFailure("config", f"{type(model).__name__} has no layers to shard: trainer.sharding=ddp")
    return max(lists, key=lambda layers: sum(weight.numel() for weight in layers.parameters()))


def fill(model: PreTrainedModel, source: PreTrainedModel | None, *, device: torch.device) -> None:
    """Gives a sharded model memory, and the weights of rank 0's, one tensor at a time."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():  # those that no file holds, such as rotary frequencies
        buffer.copy_(buffers[name])
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, source.state_dict() if source is not None else {}, options=options)

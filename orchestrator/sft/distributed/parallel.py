"""Placement of a model: whole in one process, copied to several (DDP), or sharded over them (FSDP2).

- *Single process*: the model on one device.
- *DDP*: each process has all weights, and gradients are averaged once per optimiser step.
- *FSDP2*: each process has 1/W of every weight, gradient and moment. The weights of a layer are gathered just
  before it runs and freed after it. On a GPU it also serves one process, for its mixed precision.

This module handles models and process groups only, not rows, optimisers or stages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, PreTrainedModel

from orchestrator.errors import StageFailure
from orchestrator.sft import kernels, runtime
from orchestrator.sft.distributed import launcher, nodes
from orchestrator.sft.loss import ResponseLoss, decoder_of
from orchestrator.sft.machine import DeviceLimit, copied
from orchestrator.sft.memory import Recompute
from orchestrator.sft.shards import Batch
from orchestrator.stage import Config, Context, Inputs, Row

FROZEN = ("vision_tower", "multi_modal_projector")
"""Parts of a multimodal model that text alone does not train."""


def num_processes(requested: int | None, device: torch.device, *, section: str) -> int:
    """Return the number of processes to use: the configured one, or one per GPU of the job, or one on a CPU.

    Args:
        requested: the configured number; None if it is not set.
        device: where to compute.
        section: of the config that holds the number, for the error.

    Raises:
        StageFailure: the configured number exceeds the GPUs (cause ``config``).
    """
    if device.type == "cpu":
        return requested or 1
    there = torch.cuda.device_count() * nodes.count()
    if requested is not None and requested > there:
        raise StageFailure("config", f"{section}.num_processes={requested}, but {there} GPUs are visible")
    return requested or there


def in_processes(
    function: Callable[[Config, Inputs, Context], list[Row]],
    config: Config,
    inputs: Inputs,
    context: Context,
    *,
    section: str,
    spare: launcher.Spare | None = None,
    is_new: bool = False,
) -> list[Row]:
    """Call a stage's function in this process, or in as many as are configured or as the job has GPUs.

    Args:
        function: that ranks import by its name.
        config, inputs, context: of the stage.
        section: of `context.uses` that holds `num_processes`.
        spare: starts the ranks, see `launcher.Spare`; it is closed in the end.
        is_new: whether a single process must be a new one, too.
    """
    device = runtime.device_of(context.uses.device)
    number = num_processes(context.uses[section].num_processes, device, section=section)
    if number == 1 and not is_new:
        if spare is not None:
            spare.close()
        return function(config, inputs, context)
    target = f"{function.__module__}:{function.__name__}"
    how: dict[str, Any] = {"num_processes": number, "device": device.type, "spare": spare}
    try:
        rows: list[Row] = launcher.run(target, config, inputs, context, **how)
    finally:
        if spare is not None:  # a job of several nodes does not use it
            spare.close()
    return rows


def rank() -> int:
    """Return the rank of this process in its group, 0 if it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes in the group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def reduced(tensor: torch.Tensor, *, largest: bool = False) -> torch.Tensor:
    """Return the sum, or the maximum, of a tensor over the processes. The tensor is changed in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
    return tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a possibly sharded tensor as an ordinary one. All processes must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a possibly sharded tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(sharding: str, device: torch.device) -> bool:
    """Return whether FSDP shards the model: if configured (``fsdp``), and with ``auto`` on GPUs."""
    return sharding == "fsdp" or (sharding == "auto" and device.type == "cuda")


@contextlib.contextmanager
def group_of_one(sharding: str, device: torch.device) -> Iterator[None]:
    """Make a process group of this process alone, if the model is to be sharded and there is no group.

    FSDP of one process computes in the same precision as FSDP of several. Autocast would keep norms and the
    sums of layers in 32 bits.
    """
    if dist.is_initialized() or not is_sharded(sharding, device):
        yield
        return
    backends = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backends, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Placed:
    """A model ready to train, in one of the three placements.

    Attributes:
        device: where to compute.
        is_sharded: whether FSDP shards the model.
        model: the model in this process.
        parameters: those that are trained.
        num_parameters: how many elements the trained parameters have in total.
        limit: the memory that a CPU pretends to have; see `DeviceLimit`.

    Args:
        load: returns the model, in float32, on the CPU. If the model is sharded, only rank 0 calls it.
        device: where to compute.
        sharding: see `is_sharded`. Without a process group (see `group_of_one`) the model is not sharded.
        bf16: compute in bfloat16; the trained weights stay float32.
        gradient_checkpointing: see `recompute`.
        chunk_tokens: see `ResponseLoss`.
    """

    def __init__(
        self,
        load: Callable[[], PreTrainedModel],
        *,
        device: torch.device,
        sharding: str,
        bf16: bool,
        gradient_checkpointing: Recompute,
        chunk_tokens: int,
    ) -> None:
        self.device = device
        self.is_sharded = is_sharded(sharding, device) and dist.is_initialized()
        # FSDP casts by its own mixed-precision policy, see `shard`.
        self._autocast = bf16 and not self.is_sharded
        # When sharding, a second copy of the whole model in each process could exceed the host's memory.
        source: PreTrainedModel = load() if rank() == 0 or not self.is_sharded else None
        self.model = empty(source) if self.is_sharded else source
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not any(part in name for part in FROZEN))
        self._recomputes = False
        self.recompute(gradient_checkpointing)
        self._response_loss = ResponseLoss(self.model, chunk_tokens=chunk_tokens)
        self._loss: nn.Module = self._response_loss
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
        self.limit = DeviceLimit()
        self._is_compiled, self._bf16 = False, bf16
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.num_parameters = sum(parameter.numel() for parameter in self.parameters)

    def recompute(self, how: Recompute) -> None:
        """Keep only the inputs of layers, and compute the rest again in the backward pass.

        Args:
            how: False for nothing; ``selective`` to keep the results of matrix products and attention too.
        """
        self._recomputes = how is True
        if how:
            options: dict[str, Any] = {"use_reentrant": False}
            if how == "selective":
                options["context_fn"] = kernels.keeping_products
            self.model.activation_checkpointing_enable(options)

    def losses(self, batch: Any, *, is_last: bool = True) -> torch.Tensor:
        """Return the summed loss of a batch.

        With DDP, gradients are exchanged after the backward pass of the last micro-batch only. With FSDP they
        are exchanged after each one. Accumulating unsharded gradients needs the memory that sharding saves.

        Args:
            batch: a `Batch`.
            is_last: whether this is the step's last micro-batch.
        """
        if isinstance(self._loss, FSDPModule) and world_size() == 1:
            # Weights change only after the last micro-batch, so they are cast once a step.
            self._loss.set_reshard_after_backward(is_last)
        if torch.is_grad_enabled():
            self.limit.check(batch.input_ids.numel(), recomputes=self._recomputes)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast), self._sync(is_last):
            loss: torch.Tensor = self._loss(batch.to(self.device))
            return loss

    def clip(self, max_norm: float) -> torch.Tensor:
        """Return the gradient norm over all parameters and processes, and clip gradients to a limit.

        Args:
            max_norm: the limit; 0 for none.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        # With sharded gradients, `whole` combines the norm's parts of all processes.
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        if max_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, max_norm, norm)
        return norm

    @property
    def decoder(self) -> nn.Module:
        """The part of the model that maps tokens to hidden states."""
        return decoder_of(self.model)

    @property
    def has_pack_kernel(self) -> bool:
        """Whether torch's kernel computes the attention of packs."""
        return kernels.has_kernel(self.decoder, self.device, bf16=self._bf16)

    def packing_differences(self, pack: Batch, alone: Sequence[Batch]) -> tuple[float, float]:
        """Return how much rows depend on being packed: compared with alone, and with other rows in front.

        All processes must call this together; they get the same result.

        Args:
            pack: at least two rows in a pack.
            alone: the same rows, each on its own.

        Returns:
            Relative differences of the hidden states, in the precision of training.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast), torch.no_grad():
            moved = [row.to(self.device) for row in alone]
            found = self._loss(pack.to(self.device), alone=moved)
        found = reduced(torch.nan_to_num(found, nan=float("inf"), posinf=float("inf")), largest=True)
        return float(found[0]), float(found[1])

    @contextlib.contextmanager
    def _sync(self, is_last: bool) -> Iterator[None]:
        """Suspend DDP's gradient exchange for all micro-batches but the last."""
        if isinstance(self._loss, DistributedDataParallel) and not is_last:
            # DDP decides in the forward pass whether the later backward pass exchanges gradients.
            with self._loss.no_sync():
                yield
        else:
            yield

    def compile(self, *, backend: str = "inductor") -> None:
        """Compile the layers and the cross entropy, for training only."""
        kernels.compile_layers(layers_of(self.model), backend=backend)
        self._response_loss.compile_loss(backend=backend)
        self._is_compiled = True

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Turn off gradients and training-only behaviour such as dropout."""
        self._loss.eval()
        # Without gradients each width would be compiled once more, for few rows.
        eager = torch.compiler.set_stance("force_eager") if self._is_compiled else contextlib.nullcontext()
        with torch.no_grad(), eager:
            yield
        self._loss.train()

    def weights(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return a copy of the whole weights on the CPU in rank 0, and nothing elsewhere.

        All processes must call this.

        Tensors are gathered one at a time, so no GPU holds the whole model. Of tied weights only the first
        name is kept.

        Args:
            dtype: of the returned floating-point weights.
        """
        weights: dict[str, torch.Tensor] = {}
        seen: set[int] = set()
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                part = tensor.detach()
                if isinstance(part, DTensor) and part.is_floating_point():
                    # Cast shards before they are gathered: half the bytes travel.
                    part = part.to(dtype)
                full = whole(part)
                if rank() == 0:
                    weights[name] = copied(full, dtype if full.is_floating_point() else None)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return weights


def empty(source: PreTrainedModel | None) -> PreTrainedModel:
    """Return the architecture of rank 0's model in each process, with parameters on the meta device.

    Args:
        source: the loaded model in rank 0, None elsewhere.
    """
    config = [source.config if source is not None else None]
    dist.broadcast_object_list(config, src=0)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config[0], dtype=torch.float32)
    # `init_empty_weights` replaces each parameter on its own, which unties shared ones.
    model.tie_weights()
    if source is not None:
        model.generation_config = source.generation_config
    return model


def shard(root: nn.Module, model: PreTrainedModel, *, device: torch.device, bf16: bool) -> None:
    """Shard all parameters over the processes: each decoder layer as a unit, and the rest with the root.

    FSDP gathers one unit at a time. With a unit per layer, one or two layers are whole at a time.
    Embeddings and head belong to the root, which stays gathered until the backward pass ends.

    Args:
        root: the module whose `forward` is called.
        model: the model inside it.
        device: where to compute.
        bf16: gather weights in bfloat16, and reduce gradients in float32.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if bf16
        else MixedPrecisionPolicy()
    )
    frozen = [module for name, module in model.named_modules() if name.rpartition(".")[2] in FROZEN]
    # A process alone has nothing to share: it keeps the cast weights of all layers for the backward pass.
    free = False if world_size() == 1 else None  # None: after each layer, but not those of the root
    for part in (*layers_of(model), *frozen, root):
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=free)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the layers of a model's decoder: its list of modules with the most parameters.

    Raises:
        StageFailure: the decoder has no such list (cause ``config``).
    """
    lists = [module for module in decoder_of(model).modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise StageFailure("config", f"{type(model).__name__} has no layers to shard: trainer.sharding=ddp")
    return max(lists, key=lambda layers: sum(weight.numel() for weight in layers.parameters()))


def fill(model: PreTrainedModel, source: PreTrainedModel | None, *, device: torch.device) -> None:
    """Allocate the parameters of a sharded model, and load rank 0's weights one tensor at a time.

    Args:
        model: the sharded model, on the meta device.
        source: the loaded model in rank 0, None elsewhere.
        device: where the shards go.
    """
    # `to_empty` discards the values of buffers too. Some, such as rotary frequencies, are in no file, so they
    # are kept here and copied back.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, source.state_dict() if source is not None else {}, options=options)

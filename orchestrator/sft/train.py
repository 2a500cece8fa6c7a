"""The `train` stage: fine-tune a model on a mixture of shards. Its product is the weights of every epoch.

The loss of an optimiser step is the sum of the cross entropies of all its response tokens, divided by their
number. So each token counts the same, whatever micro-batch and process computes it.

No random state and no data position are saved. The order of rows, the learning rate and dropout are functions
of the config, the step and the rank. So a resume needs the weights, the optimiser's moments and the step.
"""

from __future__ import annotations

import functools
import gc
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from transformers import get_cosine_schedule_with_warmup

from orchestrator.costs import DEVICES
from orchestrator.errors import StageFailure
from orchestrator.sft import batches, kernels, runtime
from orchestrator.sft.batches import Batches, MicroBatches
from orchestrator.sft.checkpoints import PROGRESS, Progress, Saver, link_weights, load_state
from orchestrator.sft.distributed import launcher, parallel
from orchestrator.sft.distributed.parallel import Placed, rank, reduced, world_size
from orchestrator.sft.machine import peak_bytes
from orchestrator.sft.prepare import SPLITS, left_out
from orchestrator.sft.shards import EpochOrder, Rows, rows_of
from orchestrator.sft.speed import state_seconds
from orchestrator.stage import Config, Context, Inputs, Row


class _Updates:
    """The changes that AdamW makes to a model's weights, one an optimiser step.

    Args:
        placed: the model.
        settings: the section `trainer` of the config.
        num_steps: of the whole training; the learning rate falls to zero over them.

    Attributes:
        optimizer: AdamW with its moments, as checkpoints save it.
    """

    def __init__(self, placed: Placed, settings: Config, *, num_steps: int) -> None:
        self._parameters = placed.parameters
        self._settings = settings
        # Norms and biases, the parameters with one dimension, do not decay.
        groups = [
            {
                "params": [p for p in self._parameters if p.ndim > 1],
                "weight_decay": settings.weight_decay,
            },
            {"params": [p for p in self._parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=settings.learning_rate, fused=True
        )
        schedule = get_cosine_schedule_with_warmup(
            self.optimizer, math.ceil(num_steps * settings.warmup_share), num_steps
        )
        # Only the function of the step is kept: the scheduler object has a state to save.
        self._factor = schedule.lr_lambdas[0]

    def apply(self, step: int) -> float:
        """Change the weights by the gradients of a step, and clear these. Return the learning rate."""
        rate: float = self._settings.learning_rate * self._factor(step - 1)
        self._change(rate)
        self.optimizer.zero_grad()
        return rate

    def make_moments(self) -> None:
        """Make gradients and moments of zero, which take the memory of real ones. No weight changes."""
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)
        self._change(0.0)

    def forget(self) -> None:
        """Remove all gradients and moments."""
        self.optimizer.zero_grad()
        self.optimizer.state.clear()

    def _change(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()


class Training:
    """Training of a model on rows, from the beginning or from the checkpoint in the context.

    Args:
        placed: the model.
        rows: the training rows of the mixture.
        validation: rows for the loss at the end of each epoch.
        settings: the stage's config: `seed` and `trainer`.
        context: the running stage.
        micro: the largest micro-batch.
    """

    def __init__(
        self,
        placed: Placed,
        *,
        rows: Rows,
        validation: Rows,
        settings: Config,
        context: Context,
        micro: MicroBatches,
    ) -> None:
        trainer = settings.trainer
        self._placed = placed
        self._rows = rows
        self._settings = settings
        self._context = context
        self._order = EpochOrder(
            rows.lengths, global_batch_size=trainer.global_batch_size, seed=settings.seed
        )
        self.batches = Batches(
            rows,
            validation,
            order=self._order,
            num_epochs=trainer.num_epochs,
            global_batch_size=trainer.global_batch_size,
            micro=micro,
            rank=rank(),
            num_processes=world_size(),
        )
        self._num_validated = max(1, int(validation.num_targets.sum()))
        self.num_steps: int = trainer.num_epochs * self._order.steps_per_epoch
        self._updates = _Updates(placed, trainer, num_steps=self.num_steps)
        self._saver = Saver(placed, self._updates.optimizer, context, bf16=trainer.precision == "bf16")
        self._start_s = time.monotonic()
        self.progress = Progress(0.0, [], [])

    def run(self) -> None:
        """Train to the end. Save when a checkpoint is due and at the end of each epoch.

        Raises:
            StopRequested: after a checkpoint, if a stop was requested.
            StageFailure: the loss or the gradient is not finite (cause ``nan``).
        """
        self._context.expect_save(state_seconds(self._placed.num_parameters))
        self._saver.make_room()
        first = self._resume()
        per_epoch = self._order.steps_per_epoch
        for epoch in range(first // per_epoch, self._settings.trainer.num_epochs):
            for number, rows in enumerate(self._order.steps(epoch)):
                step = epoch * per_epoch + number + 1
                if step <= first:  # part of the checkpoint
                    continue
                self._step(step, rows)
                if number + 1 == per_epoch:
                    self._end_epoch(step)
                due = self._context.checkpoint_due(step, num_steps=self.num_steps)
                # After the last step only a stop is worth a checkpoint: the product follows at once.
                if due and (step < self.num_steps or self._context.stop_asked):
                    self._save(step)
        self._saver.end()

    def fits(self) -> bool:
        """Return whether the widest micro-batch fits the device, beside gradients and moments.

        All processes must call this together; they get the same result. No weight changes.
        """
        failed = torch.zeros((), device=self._placed.device)
        try:
            self._rehearse()
        except torch.OutOfMemoryError:
            failed += 1
        self._updates.forget()
        return not bool(reduced(failed, largest=True))

    def _rehearse(self) -> None:
        """Make the moments, and compute the widest micro-batch twice, as between two others of a step."""
        self._updates.make_moments()
        batch = self.batches.widest()
        for _ in range(2):
            torch.autograd.backward(self._placed.losses(batch))

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self.progress.seconds + time.monotonic() - self._start_s

    @property
    def checkpoint_share(self) -> float:
        """Share of the training so far in which it waited for weights and states to be saved."""
        return (self.progress.held_s + self._saver.held_s) / max(self.seconds, 1e-9)

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole training, without padding."""
        return int(self._rows.lengths.sum()) * int(self._settings.trainer.num_epochs)

    def peak_memory_gib(self) -> float:
        """Return the peak memory of any process so far, in GiB: GPU memory, or host memory on a CPU."""
        device = self._placed.device
        return float(reduced(torch.tensor(peak_bytes(device) / 2**30, device=device), largest=True))

    def _step(self, step: int, rows: np.ndarray) -> None:
        """Run one optimiser step over its rows, and log its metrics."""
        started_s = time.monotonic()
        self._reseed(step)
        # Of the whole step: otherwise the loss would depend on how rows are divided among processes.
        num_targets = max(1, int(self._rows.num_targets[rows].sum()))
        total = self._backward(rows, num_targets)
        norm = self._placed.clip(self._settings.trainer.max_grad_norm)
        # The only read from the device in a step: each read waits for all queued kernels.
        loss, grad_norm = torch.stack([reduced(total), norm]).tolist()
        for name, value in (("loss", loss), ("grad_norm", grad_norm)):
            if not math.isfinite(value):
                raise StageFailure("nan", f"{name} is {value} at step {step}")
        rate = self._updates.apply(step)
        self.progress.loss.append(loss)
        speed = int(self._rows.lengths[rows].sum()) / max(time.monotonic() - started_s, 1e-9)
        self._context.log(
            step,
            num_steps=self.num_steps,
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=rate,
            tokens_per_second=speed,
            **self._usage(speed),
        )

    def _backward(self, rows: np.ndarray, num_targets: int) -> torch.Tensor:
        """Add up the gradients of a step's rows. Return this process's part of the loss."""
        total = torch.zeros((), device=self._placed.device)
        parts = self.batches.of_step(rows)
        for number, part in enumerate(parts):
            with self._context.phase("data" if number == 0 else "compute"):  # GPUs compute meanwhile
                batch = self.batches.batch(part)
            loss = self._placed.losses(batch, is_last=number + 1 == len(parts)) / num_targets
            # DDP and FSDP average gradients over the processes. The factor turns the mean into the sum: the
            # loss is already divided by the response tokens of the whole step.
            torch.autograd.backward(loss * world_size())
            total += loss.detach()
        return total

    def _reseed(self, step: int) -> None:
        """Seed dropout from the seed, the step and the rank, so that no random state is saved."""
        seed = self._settings.seed * 1_000_003 + step * 1_009 + rank()
        if self._placed.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        else:
            # `torch.manual_seed` is slow here, because it also queues a seed for each GPU.
            torch.default_generator.manual_seed(seed)

    def _usage(self, speed: float) -> dict[str, float]:
        """Return GPU memory and utilisation; 6 FLOPs per trained parameter and token, as in plans."""
        if self._placed.device.type != "cuda":
            return {}
        usage = {"peak_memory_gib": peak_bytes(self._placed.device) / 2**30}
        name = torch.cuda.get_device_name().lower()
        known = [device for key, device in DEVICES.items() if key in name]
        if known:
            flops = 6 * self._placed.num_parameters * speed
            usage["mfu"] = flops / (known[0].peak_tflops * 1e12 * world_size())
        return usage

    def _end_epoch(self, step: int) -> None:
        """Save the epoch's weights, validate and log the validation loss."""
        # Written while the validation loss is computed: after the last epoch nothing else is left to compute.
        self._saver.epoch(step)
        loss = self._validate()
        if not math.isfinite(loss):
            raise StageFailure("nan", f"validation_loss is {loss} at step {step}")
        self.progress.validation_loss.append(loss)
        self._context.log(
            step, num_steps=self.num_steps, validation_loss=loss, checkpoint_share=self.checkpoint_share
        )

    def _validate(self) -> float:
        """Return the mean loss of a validation response token, over all processes."""
        total = torch.zeros((), device=self._placed.device)
        with self._context.phase("evaluation"), self._placed.evaluating():
            for batch in self.batches.of_validation():
                total += self._placed.losses(batch)
        return float(reduced(total)) / self._num_validated

    def _save(self, step: int) -> None:
        """Save a checkpoint after a step, then end if a stop was requested."""
        self._saver.state(step, self.progress._replace(seconds=self.seconds))
        self._context.log(step, num_steps=self.num_steps, checkpoint_share=self.checkpoint_share)
        if self._context.stop_asked:
            self._saver.wait()
            self._context.stop_if_asked()

    def _resume(self) -> int:
        """Load the checkpoint in the context, if there is one. Return its step, 0 without one."""
        checkpoint = self._context.resume
        if checkpoint is None:
            return 0
        if rank() == 0:
            link_weights(checkpoint.folder, self._context.output, last_step=checkpoint.step)
        with self._context.phase("restore"):
            load_state(self._placed, self._updates.optimizer, checkpoint.folder)
        self.progress = Progress(**json.loads(Path(checkpoint.folder, PROGRESS).read_text(encoding="utf-8")))
        return checkpoint.step


SUMMARY = "training.json"


def main(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Train here or in several processes, from the base model or from a checkpoint."""
    may_be_several = context.uses.trainer.num_processes or context.uses.device != "cpu"
    spare = launcher.Spare() if may_be_several else None  # before this process looks for a GPU
    return parallel.in_processes(train, config, inputs, context, section="trainer", spare=spare)


def train(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Train in this process, alone or as one of a group, and write a summary with the weights."""
    runtime.start(context, seed=config.seed)
    device = runtime.device_of(context.uses.device)
    if device.type == "cuda":
        kernels.prepare()

    def trained() -> list[Row]:
        with parallel.group_of_one(context.uses.trainer.sharding, device):
            return _train(config, inputs, context, device=device)

    return kernels.repeating(trained, batches.setting(context.uses.trainer, "deterministic", "auto"))


def _train(config: Config, inputs: Inputs, context: Context, *, device: torch.device) -> list[Row]:
    tokenizer, shards = runtime.load_tokenizer(inputs, context.uses), inputs.each("prepare")
    with context.phase("data"):
        pad = runtime.padding(tokenizer)
        rows, validation = (rows_of(shards, config.languages, s, pad_token_id=pad) for s in SPLITS)
    with context.phase("start"):
        training, chosen = _fitted(config, inputs, context, rows=rows, validation=validation, device=device)
    training.run()
    facts = {**summary(training), **chosen.facts(), "notes": left_out(shards, config.languages)}
    if parallel.rank() == 0:
        tokenizer.save_pretrained(context.output / "tokenizer")
        (context.output / SUMMARY).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return []


def _fitted(
    config: Config, inputs: Inputs, context: Context, *, rows: Rows, validation: Rows, device: torch.device
) -> tuple[Training, batches.Chosen]:
    """Return the training with the first choice of micro-batches that fits the device, and that choice."""
    uses, out_of_memory = context.uses.trainer, 0
    while True:
        placed = parallel.Placed(
            functools.partial(runtime.load_base, inputs, context.uses),
            device=device,
            sharding=uses.sharding,
            bf16=config.trainer.precision == "bf16",
            gradient_checkpointing=False,
            chunk_tokens=uses.loss_chunk_tokens,
        )
        chosen = batches.choose(config.trainer, uses, placed, rows, out_of_memory=out_of_memory)
        training = Training(
            placed, rows=rows, validation=validation, settings=config, context=context, micro=chosen.micro
        )
        if device.type == "cpu" or training.fits():
            context.adapt(chosen.adapted)
            return training, chosen
        # What a failed pass leaves behind in FSDP is not known: the model is loaded once more.
        del placed, training
        gc.collect()
        torch.cuda.empty_cache()
        out_of_memory += 1


def summary(training: Training) -> dict[str, object]:
    """Return what was trained and how fast. It holds the loss of every step, as part of the product."""
    seconds = training.seconds
    return {
        "num_steps": training.num_steps,
        "num_epochs": len(training.progress.validation_loss),
        "train_tokens": training.num_tokens,
        "train_seconds": round(seconds, 3),
        "tokens_per_second": round(training.num_tokens / seconds, 1),
        "peak_memory_gib": round(training.peak_memory_gib(), 3),
        "num_processes": parallel.world_size(),
        "checkpoint_share": round(training.checkpoint_share, 4),
        **training.batches.facts(),
        "loss": training.progress.loss,
        "validation_loss": training.progress.validation_loss,
    }

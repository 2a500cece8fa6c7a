"""The bridge between `transformers.Trainer` and the stage API: order, checkpoints, metrics, stopping.

The Trainer's own loop trains; here its checkpoint folder is written into one of `Context`, whose
manifest comes last, and the weights of each epoch are linked into the product.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerControl, TrainerState

from orchestrator.errors import StageFailure
from orchestrator.sft.shards import EpochOrder, Rows, collate
from orchestrator.stage import Config, Context

EPOCHS = "checkpoints"
"""Folder of the epochs' weights, one folder a step, in the product and in each resume checkpoint."""

_SECONDS = "seconds.json"
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")


class StageTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """A Trainer that saves, logs and stops as a stage should.

    Args:
        model: the model to train.
        rows: the training rows of the mixture.
        validation: rows for the loss at the end of each epoch.
        settings: the stage's config: `seed` and `trainer`.
        context: the running stage.
        pad_token_id: fills short rows.
        device: where to train.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        rows: Rows,
        validation: Rows,
        settings: Config,
        context: Context,
        pad_token_id: int,
        device: torch.device,
    ) -> None:
        trainer = settings.trainer
        self._context = context
        self._order = EpochOrder(
            rows.lengths, global_batch_size=trainer.global_batch_size, seed=settings.seed
        )
        self._saving_in: Path | None = None
        self._seconds_before, self._start_s, self._step_s = 0.0, time.monotonic(), time.monotonic()
        self.num_epochs: int = trainer.num_epochs
        self.steps_per_epoch: int = math.ceil(len(rows) / trainer.global_batch_size)
        super().__init__(
            model=model,
            args=training_arguments(settings, context, device),
            train_dataset=rows,
            eval_dataset=validation,
            data_collator=functools.partial(collate, pad_token_id=pad_token_id),
            callbacks=[_Schedule(context, self.steps_per_epoch)],
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.num_epochs * self.steps_per_epoch

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self._seconds_before + time.monotonic() - self._start_s

    @functools.cached_property
    def step_tokens(self) -> list[int]:
        """Tokens of each optimiser step, padding left out."""
        return [tokens for epoch in range(self.num_epochs) for tokens in self._order.num_tokens(epoch)]

    def resume(self) -> None:
        """Trains to the end, from the checkpoint that the context offers or from the start."""
        checkpoint = self._context.resume
        if checkpoint is None:
            self.train()
            return
        for weights in sorted((checkpoint.folder / EPOCHS).glob("*")):
            link_files(weights, self._context.output / EPOCHS / weights.name)
        self._seconds_before = json.loads((checkpoint.folder / _SECONDS).read_text())["seconds"]
        self.train(resume_from_checkpoint=str(checkpoint.folder / f"checkpoint-{checkpoint.step}"))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Sends metrics to the context; keeps what is the same in every repetition as history."""
        for name in ("loss", "eval_loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise StageFailure("nan", f"{name} is {logs[name]} at step {self.state.global_step}")
        step, now_s = self.state.global_step, time.monotonic()
        kept: dict[str, float] = {}
        if "loss" in logs:
            kept = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs}
            speed = self.step_tokens[step - 1] / max(now_s - self._step_s, 1e-9)
            self._context.log(step, num_steps=self.num_steps, **kept, tokens_per_second=speed)
        elif "eval_loss" in logs:
            kept = {"validation_loss": logs["eval_loss"]}
            self._context.log(step, num_steps=self.num_steps, **kept)
        else:
            return  # the summary at the end: times that differ from run to run
        self._step_s = now_s
        self.state.log_history.append({"step": step, **kept})

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        return self._order

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_in or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        with self._context.checkpoint(step) as folder:
            self._saving_in = folder
            super()._save_checkpoint(model, trial)
            self._saving_in = None
            if step % self.steps_per_epoch == 0:
                link_files(folder / f"checkpoint-{step}", self._context.output / EPOCHS / f"{step:06d}")
            for weights in sorted((self._context.output / EPOCHS).glob("*")):
                link_files(weights, folder / EPOCHS / weights.name)
            (folder / _SECONDS).write_text(json.dumps({"seconds": self.seconds}))
        self._context.stop_if_asked()


class _Schedule(TrainerCallback):  # type: ignore[misc]
    """Asks for a checkpoint when the context wants one; the last step of an epoch has its own."""

    def __init__(self, context: Context, steps_per_epoch: int) -> None:
        self._context, self._steps_per_epoch = context, steps_per_epoch

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Runs after each optimiser step."""
        mid_epoch = state.global_step % self._steps_per_epoch != 0
        control.should_save = mid_epoch and self._context.checkpoint_due(state.global_step)
        return control


def training_arguments(settings: Config, context: Context, device: torch.device) -> TrainingArguments:
    """Says to the Trainer what the study says, and that it should print, report and upload nothing."""
    trainer, uses = settings.trainer, context.uses.trainer
    arguments = TrainingArguments(
        output_dir=str(context.scratch),
        seed=settings.seed,
        data_seed=settings.seed,
        num_train_epochs=trainer.num_epochs,
        per_device_train_batch_size=uses.micro_batch_size,
        per_device_eval_batch_size=uses.micro_batch_size,
        learning_rate=trainer.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=trainer.warmup_share,  # a number below 1 is a share
        weight_decay=trainer.weight_decay,
        max_grad_norm=trainer.max_grad_norm,
        optim="adamw_torch_fused" if device.type == "cuda" else "adamw_torch",
        bf16=trainer.precision == "bf16",
        activation_checkpointing=uses.gradient_checkpointing,
        use_cpu=device.type == "cpu",
        logging_strategy="steps",
        logging_steps=1,  # or the loss history would differ after a resume
        logging_nan_inf_filter=False,
        save_strategy="epoch",
        eval_strategy="epoch",
        prediction_loss_only=True,
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
        report_to="none",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several visible GPUs would mean DataParallel: other batches
    micro_batches, rest = divmod(trainer.global_batch_size, uses.micro_batch_size * arguments.world_size)
    if rest or not micro_batches:
        raise StageFailure(
            "config",
            f"trainer.global_batch_size={trainer.global_batch_size} is no multiple of"
            f" {uses.micro_batch_size} rows x {arguments.world_size} processes",
        )
    arguments.gradient_accumulation_steps = micro_batches
    return arguments


def link_files(source: Path, target: Path) -> None:
    """Hard-links a model's weight and config files; copies them where links are not to be had."""
    target.mkdir(parents=True, exist_ok=True)
    for file in _weight_files(source):
        if not (target / file.name).exists():  # never write into a file that another folder shares
            try:
                os.link(file, target / file.name)
            except OSError:
                shutil.copyfile(file, target / file.name)


def _weight_files(folder: Path) -> Iterator[Path]:
    return (file for pattern in _WEIGHT_FILES for file in sorted(folder.glob(pattern)))

"""Optimiser steps a second of the training stage's loop against transformers' Trainer, on one tiny model.

Both train the same weights on the same rows in shuffled batches of eight, one after the other in this one
run, on one thread, with the loss on the response alone. Saving is left out. Prints one line with the ratio.

    python benchmarks/loop_against_trainer.py [--steps 200]
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

from orchestrator.sft.batches import MicroBatches
from orchestrator.sft.distributed.parallel import Placed
from orchestrator.sft.shards import Example, Rows
from orchestrator.sft.train import Training
from orchestrator.stage import Config, Context

BATCH, IGNORED, VOCABULARY = 8, -100, 1024
SETTINGS = {
    "learning_rate": 1e-3,
    "num_epochs": 1,
    "global_batch_size": BATCH,
    "warmup_share": 0.05,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "precision": "fp32",
}


def tiny_model() -> Qwen3ForCausalLM:
    """Returns a model of the sizes of `tiny-qwen3`."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCABULARY, **sizes, **heads))


def made_up(num_rows: int) -> list[Example]:
    """Returns rows of 60 to 140 tokens; the last fifth of each is the response."""
    random = np.random.default_rng(0)
    lengths = random.integers(60, 141, num_rows)
    return [
        Example("train", str(i), int(0.8 * n), random.integers(0, VOCABULARY, n).tolist())
        for i, n in enumerate(lengths)
    ]


def by_loop(model: Qwen3ForCausalLM, examples: Sequence[Example], folder: Path) -> tuple[float, float]:
    """Returns steps a second and the mean loss of our loop."""
    placed = Placed(
        lambda: model,
        device=torch.device("cpu"),
        sharding="auto",
        bf16=False,
        gradient_checkpointing=False,
        chunk_tokens=1024,
    )
    rows = Rows(examples, pad_token_id=0)
    training = Training(
        placed,
        rows=rows,
        validation=Rows(examples[:1], pad_token_id=0),
        settings=Config({"seed": 0, "trainer": SETTINGS}),
        context=Context(folder, checkpoint_interval_s=1e9),
        micro=MicroBatches(BATCH),
    )
    training._end_epoch = training._save = lambda step: None  # type: ignore[method-assign]
    start_s = time.perf_counter()
    training.run()
    return training.num_steps / (time.perf_counter() - start_s), float(np.mean(training.progress.loss))


def by_trainer(model: Qwen3ForCausalLM, examples: Sequence[Example], folder: Path) -> tuple[float, float]:
    """Returns steps a second and the mean loss of transformers' Trainer."""

    def collate(batch: list[Any]) -> dict[str, torch.Tensor]:
        ids = pad_sequence([row["input_ids"] for row in batch], True, 0)
        labels = pad_sequence([row["labels"] for row in batch], True, IGNORED)
        lengths = torch.tensor([len(row["input_ids"]) for row in batch])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    rows = []
    for example in examples:
        ids = torch.tensor(example.input_ids)
        labels = ids.clone()
        labels[: example.num_prompt_tokens] = IGNORED
        rows.append({"input_ids": ids, "labels": labels})
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        learning_rate=SETTINGS["learning_rate"],
        weight_decay=SETTINGS["weight_decay"],
        lr_scheduler_type="cosine",
        warmup_steps=SETTINGS["warmup_share"],
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    trainer.pop_callback(next(c for c in trainer.callback_handler.callbacks if "Printer" in type(c).__name__))
    start_s = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start_s
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer.state.global_step / seconds, float(np.mean(losses))


def main() -> None:
    """Trains by both and prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    examples = made_up(parser.parse_args().steps * BATCH)
    torch.set_num_threads(1)
    model = tiny_model()
    with tempfile.TemporaryDirectory() as folder:
        by_loop(copy.deepcopy(model), examples[: 4 * BATCH], Path(folder, "warm"))
        peer, its_loss = by_trainer(copy.deepcopy(model), examples, Path(folder, "peer"))
        ours, our_loss = by_loop(copy.deepcopy(model), examples, Path(folder, "ours"))
    assert abs(its_loss - our_loss) < 0.05, f"not the same training: {its_loss} and {our_loss}"
    print(f"{ours:.1f} steps/s by the stage's loop, {peer:.1f} by the Trainer: ratio {ours / peer:.2f}")


if __name__ == "__main__":
    main()

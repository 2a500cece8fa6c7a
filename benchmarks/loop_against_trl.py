"""Tokens a second of the training stage's loop against TRL's SFTTrainer, on the device that is there.

Both train the same random weights on the same rows of the study's lengths, with the loss on the response
alone, one optimiser step over all rows at a time. TRL packs them (`bfd`) and computes layers again, its
default; our loop does what the plan chooses. The first step is not counted, and its losses must agree. On a
GPU it is Qwen3-1.7B in bfloat16, on a CPU a tiny model in float32 on one thread.

    python benchmarks/loop_against_trl.py [--rows 512] [--steps 3] [--liger] [--no-compile]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import datasets
import numpy as np
import torch
from gpu.models import Size, choose, placed, rows_of, training
from gpu.one_pass import Pass
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, TrainerCallback

from orchestrator.sft import kernels
from orchestrator.sft.distributed.parallel import group_of_one
from orchestrator.sft.shards import Example, Rows

PACK_TOKENS, PACKS = 2048, 8
"""Width of TRL's packs on a GPU, and how many of them are computed at once."""
TOLERANCE = 0.02
"""Largest relative difference between the losses of the first step; our choice."""


def by_loop(one: Pass, size: Size, examples: Sequence[Example], args: argparse.Namespace) -> dict[str, Any]:
    """Return the speed, the first loss and the memory of our loop."""
    rows, precision = Rows(examples, pad_token_id=0), "bf16" if one.cuda else "fp32"
    if one.cuda:
        kernels.prepare()  # as the stage does
    with group_of_one("auto", one.device):
        model = placed(one, size, bf16=one.cuda, recompute=False, sharding="auto")
        chosen = choose(
            model,
            rows,
            precision=precision,
            num_epochs=1_000,  # long enough to repay compiling
            compile=False if args.no_compile else "auto",
            gradient_checkpointing="auto",
            micro_batch_tokens=None if one.cuda else 2048,
        )
        loop = training(one, model, rows, micro=chosen.micro, precision=precision)
        order = np.argsort(-rows.lengths, kind="stable")
        one.clean()
        loop._step(1, order)
        steps = range(2, args.steps + 1)
        took_s = sum(one.seconds(functools.partial(loop._step, step, order)) for step in steps)
        facts = {"packed": chosen.micro.packed, "recompute": chosen.recompute, "compiled": chosen.compiled}
        speed = int(rows.lengths.sum()) * len(steps) / took_s
        return {**_facts(one, speed, loop.progress.loss[0]), **facts}


class _Clock(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Records when each optimiser step has ended on the device, and its loss."""

    def __init__(self, one: Pass) -> None:
        self._one = one
        self.ends_s: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._one.wait()
        self.ends_s.append(time.perf_counter())

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []


def by_trl(one: Pass, size: Size, examples: Sequence[Example], args: argparse.Namespace) -> dict[str, Any]:
    """Return the speed, the first loss and the memory of TRL's SFTTrainer."""
    import trl

    rows = datasets.Dataset.from_list(
        [
            {
                "input_ids": [int(token) for token in row.input_ids],
                "completion_mask": [int(k >= row.num_prompt_tokens) for k in range(len(row.input_ids))],
            }
            for row in examples
        ]
    )
    width, packs = (PACK_TOKENS, PACKS) if one.cuda else (512, 4)
    num_packs = len(trl.pack_dataset(rows, width, "bfd"))
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    with tempfile.TemporaryDirectory() as folder:
        config = trl.SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=packs,
            gradient_accumulation_steps=-(-num_packs // packs),  # one optimiser step is over all rows
            num_train_epochs=args.steps,
            packing=True,
            max_length=width,
            completion_only_loss=True,
            gradient_checkpointing=True,
            use_liger_kernel=args.liger,
            learning_rate=1e-5,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            weight_decay=0.01,
            optim="adamw_torch_fused",
            bf16=one.cuda,
            use_cpu=not one.cuda,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        clock, model = _Clock(one), size.build(one.device)
        trainer = trl.SFTTrainer(
            model=model, args=config, train_dataset=rows, processing_class=tokenizer, callbacks=[clock]
        )
        one.clean()
        with contextlib.redirect_stdout(sys.stderr):  # it prints its logs
            trainer.train()
    assert len(clock.ends_s) == args.steps, f"{len(clock.ends_s)} steps of TRL, not {args.steps}"
    tokens = sum(len(row.input_ids) for row in examples)
    return _facts(one, tokens * (args.steps - 1) / (clock.ends_s[-1] - clock.ends_s[0]), clock.losses[0])


def _facts(one: Pass, tokens_per_s: float, loss: float) -> dict[str, Any]:
    return {"tokens_per_s": round(tokens_per_s), "first_loss": round(loss, 4), **one.memory()}


def parsed() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--model", default="qwen3-1.7b", help="file in conf/model/; on a CPU its tiny stand-in"
    )
    parser.add_argument("--rows", type=int, default=512, help="rows of an optimiser step")
    parser.add_argument("--no-compile", action="store_true", help="do not let our loop compile layers")
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps, of which the first warms up")
    parser.add_argument("--liger", action="store_true", help="let TRL use liger-kernel")
    parser.add_argument("--small", action="store_true", help="a tiny model on the CPU, also where a GPU is")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser.parse_args()


def main() -> int:
    """Train by both and print the ratio."""
    args = parsed()
    for package in ("trl", *(["liger_kernel"] if args.liger else [])):
        if importlib.util.find_spec(package) is None:
            print(f"error: {package} is not installed\n  pip install 'polysweep[bench]'", file=sys.stderr)
            return 2
    one = Pass(small=args.small, budget_s=1e9, out=None)
    if not one.cuda:
        torch.set_num_threads(1)
    size = Size(args.model, small=not one.cuda)
    examples = rows_of(size, args.rows, small=not one.cuda)
    found = {}
    for name, run in (("trl", by_trl), ("ours", by_loop)):
        found[name] = run(one, size, examples, args)
        gc.collect()
        one.clean()
    first, second = (found[name]["first_loss"] for name in ("ours", "trl"))
    assert abs(first - second) < TOLERANCE * second, f"not the same training: {first} and {second}"
    ratio = round(found["ours"]["tokens_per_s"] / found["trl"]["tokens_per_s"], 2)
    device = torch.cuda.get_device_name() if one.cuda else "cpu, one thread"
    model = args.model if one.cuda else f"tiny {size.family}"
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "trl")}
    facts = {"model": model, "rows": args.rows, "liger": args.liger, **found, "ratio": ratio}
    if args.json:
        print(json.dumps({**facts, "device": device, "versions": versions}))
    else:
        ours, theirs = (found[name]["tokens_per_s"] for name in ("ours", "trl"))
        peer = f"TRL {versions['trl']}{' with Liger' if args.liger else ''}"
        print(f"{model} on {device}: {ours:,} tokens/s by our loop, {theirs:,} by {peer}: ratio {ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

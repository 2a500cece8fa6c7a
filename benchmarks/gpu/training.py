"""The training path: its numbers against float32, its speed with each setting, and its memory."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gpu.models import LONGEST_TOKENS, Size, choose, costs, placed, rows_of, training
from gpu.one_pass import Pass
from orchestrator.sft.batches import MicroBatches
from orchestrator.sft.distributed.parallel import group_of_one
from orchestrator.sft.memory import Load, terms_gib
from orchestrator.sft.shards import Rows


def numerics(one: Pass) -> None:
    """Loss and gradient in bfloat16 against float32, of both attentions, and whether they repeat."""
    for name, layers in (("qwen3-0.6b", 4), ("gemma3-1b", 6)):  # 6: with one layer without a window
        size = Size(name, small=one.small, layers=layers)
        rows = Rows(rows_of(size, 8, small=one.small), pad_token_id=0)
        batch = rows.batch(list(np.argsort(-rows.lengths)))
        found = {}
        for bf16 in (False, True):
            model, repeats = placed(one, size, bf16=bf16), []
            for _ in range(2):
                model.model.zero_grad()
                loss = model.losses(batch) / len(batch.targets)
                loss.backward()  # type: ignore[no-untyped-call]
                repeats.append([value.grad.float() for value in model.parameters])
            found[bf16] = (float(loss.detach()), repeats)
            del model
            one.clean()
        exact, rounded = found[False][1][0], found[True][1][0]
        error = sum(float(((a - b) ** 2).sum()) for a, b in zip(exact, rounded, strict=True))
        one.record(
            f"{name}'s width, {layers} layers",
            loss_float32=round(found[False][0], 6),
            loss_bf16=round(found[True][0], 6),
            gradient_error=round((error / sum(float((a**2).sum()) for a in exact)) ** 0.5, 4),
            repeats_bit_for_bit=all(map(torch.equal, *found[True][1])),
        )


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to train: how the model is placed, and settings of `trainer`."""

    what: str
    uses: Mapping[str, Any]
    sharding: str = "ddp"


RECOMPUTE = {"gradient_checkpointing": True, "compile": False}
CASES = (
    Case("16 rows side by side", RECOMPUTE | {"micro_batch_size": 16}),
    Case("packs", RECOMPUTE),
    Case("packs, compiled", RECOMPUTE | {"compile": True, "micro_batch_tokens": 16_384}),
    Case("as planned, autocast", {"gradient_checkpointing": "auto", "compile": True}),
    Case("as planned", {"gradient_checkpointing": "auto", "compile": True}, sharding="auto"),
)
"""What `speed` compares."""


def speed(one: Pass) -> None:
    """One step of 512 rows of the 1.7B in each way to train."""
    size = Size("qwen3-1.7b", small=one.small)
    rows = Rows(rows_of(size, 512 if one.cuda else 16, small=one.small), pad_token_id=0)
    for case in CASES:
        timed_step(one, f"1.7B {case.what}", size, rows, case)
        one.clean()


def eight_billion(one: Pass) -> None:
    """The 8B's width with 6 of its 36 layers: time and memory a layer."""
    size = Size("qwen3-8b", small=one.small, layers=6)
    rows = Rows(rows_of(size, 128 if one.cuda else 8, small=one.small), pad_token_id=0)
    for again in (True, False):
        uses = {"gradient_checkpointing": again, "compile": True, "micro_batch_tokens": 16_384}
        how = "" if again else ", without recomputation"
        timed_step(one, f"8B's width, 6 layers{how}", size, rows, Case("", uses, sharding="auto"))
        one.clean()


def timed_step(one: Pass, what: str, size: Size, rows: Rows, case: Case) -> None:
    """Record time, tokens a second and memory of a step in one way to train."""
    order = np.argsort(-rows.lengths, kind="stable")
    one.clean()
    with group_of_one(case.sharding, one.device):
        model = placed(one, size, recompute=False, sharding=case.sharding)
        # Compiling for a CPU takes longer than the whole pass.
        uses = dict(case.uses) if one.cuda else dict(case.uses) | {"compile": False}
        chosen = choose(model, rows, **uses)
        loop = training(one, model, rows, micro=chosen.micro)
        start_s = time.perf_counter()
        loop._step(1, order)
        warm_s = time.perf_counter() - start_s
        took_s = one.seconds(functools.partial(loop._step, 2, order))
    tokens, flops = int(rows.lengths.sum()), 6 * model.num_parameters
    predicted = None
    mfu = None
    if one.spec:
        rate = one.spec.peak_tflops * 1e12 / flops
        mfu = round(tokens / took_s / rate, 3)
        assumed = costs().mfu_of(size.decoder.num_parameters)
        predicted = {"step_s": round(tokens / (rate * assumed), 2), "mfu": assumed}
    facts = loop.batches.facts()
    one.record(
        what,
        predicted=predicted,
        **{key: facts[key] for key in ("micro_batch_size", "micro_batch_tokens", "widths", "useful_share")},
        recomputes=chosen.recompute,
        packing_difference=chosen.packing and chosen.packing.difference,
        by_kernel=chosen.micro.by_kernel,
        fused_norms=chosen.num_fused_norms,
        step_s=round(took_s, 2),
        tokens_per_s=round(tokens / took_s),
        mfu=mfu,
        first_step_s=round(warm_s, 1),
        **one.memory(),
    )


def memory(one: Pass) -> None:
    """The peak of a step of long rows, against the plan's memory terms."""
    size, width = Size("qwen3-1.7b", small=one.small), LONGEST_TOKENS if one.cuda else 64
    for recompute, sizes in ((True, (8, 32)), (False, (2, 4))):
        model = placed(one, size, recompute=recompute)
        for number in sizes if one.cuda else (2,):
            rows = Rows(rows_of(size, number, small=one.small, width=width), pad_token_id=0)
            loop = training(one, model, rows, micro=MicroBatches(number))
            one.clean()
            for step in (1, 2):
                loop._step(step, np.arange(number))
            one.wait()
            load = Load(row_tokens=width, checkpointing=recompute, loss_chunk_tokens=1024, sharded=False)
            terms = terms_gib(size.decoder, load, num_gpus=1, micro_batch=number, memory_gib=1.0)
            one.record(
                f"1.7B, memory of a step{'' if recompute else ' without recomputation'}",
                predicted={"peak_gib": round(sum(terms.values()) - terms["reserve"], 1)},
                rows=number,
                width=width,
                **one.memory(),
            )
            del loop
        del model
        one.clean()

"""The training path: its numbers against float32, its speed with each setting, and its memory."""

from __future__ import annotations

import dataclasses
import functools
import time

import numpy as np
import torch

from gpu.models import LONGEST_TOKENS, Size, costs, placed, rows_of, training
from gpu.one_pass import Pass
from orchestrator.sft.distributed.parallel import Placed
from orchestrator.sft.memory import Load, largest_micro_batch, terms_gib
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
    """One way to train: settings of `placed`, and rows of a micro-batch; None for what the plan takes."""

    what: str
    recompute: bool = True
    micro_batch: int | None = None


CASES = (
    Case("as it is"),
    Case("as it is", micro_batch=16),
    Case("without recomputation", recompute=False),
)
"""What `speed` compares."""


def speed(one: Pass) -> None:
    """One step of 512 rows of the 1.7B in each way to train."""
    size = Size("qwen3-1.7b", small=one.small)
    rows = Rows(rows_of(size, 512 if one.cuda else 16, small=one.small), pad_token_id=0)
    for case in CASES:
        model = placed(one, size, recompute=case.recompute)
        micro = case.micro_batch or _planned(one, size, rows, recompute=case.recompute)
        timed_step(one, f"1.7B {case.what}", size, model, rows, micro)
        del model
        one.clean()


def eight_billion(one: Pass) -> None:
    """The 8B's width with 6 of its 36 layers: time and memory a layer."""
    size = Size("qwen3-8b", small=one.small, layers=6)
    rows = Rows(rows_of(size, 128 if one.cuda else 8, small=one.small), pad_token_id=0)
    timed_step(one, "8B's width, 6 layers", size, placed(one, size), rows, 16 if one.cuda else 4)


def _planned(one: Pass, size: Size, rows: Rows, *, recompute: bool) -> int:
    """Return the rows of a micro-batch that the plan's memory terms allow."""
    if not one.cuda:
        return 4
    load = Load(row_tokens=int(rows.lengths.max()), checkpointing=recompute, loss_chunk_tokens=1024)
    memory_gib = torch.cuda.get_device_properties(one.device).total_memory / 2**30
    found = largest_micro_batch(size.decoder, load, num_gpus=1, memory_gib=memory_gib, global_batch=len(rows))
    return found or 1


def timed_step(one: Pass, what: str, size: Size, model: Placed, rows: Rows, micro_batch: int) -> None:
    """Record time, tokens a second and memory of a step; with half the rows where memory is out."""
    order = np.argsort(-rows.lengths, kind="stable")
    one.clean()
    while True:
        try:
            loop = training(one, model, rows, micro_batch_size=micro_batch)
            start_s = time.perf_counter()
            loop._step(1, order[::4])
            warm_s = time.perf_counter() - start_s
            took_s = one.seconds(functools.partial(loop._step, 2, order))
            break
        except torch.OutOfMemoryError:
            one.record(f"{what}: out of memory", rows=micro_batch)
            if micro_batch == 1:
                return
        model.model.zero_grad()
        micro_batch //= 2
        one.clean()
    tokens, flops = int(rows.lengths.sum()), 6 * model.num_parameters
    predicted = None
    mfu = None
    if one.spec:
        rate = one.spec.peak_tflops * 1e12 / flops
        mfu = round(tokens / took_s / rate, 3)
        assumed = costs().mfu_of(size.decoder.num_parameters)
        predicted = {"step_s": round(tokens / (rate * assumed), 2), "mfu": assumed}
    one.record(
        what,
        predicted=predicted,
        rows=micro_batch,
        step_s=round(took_s, 2),
        tokens_per_s=round(tokens / took_s),
        mfu=mfu,
        useful_share=round(1 - loop.padding_share(), 3),
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
            loop = training(one, model, rows, micro_batch_size=number)
            one.clean()
            for step in (1, 2):
                loop._step(step, np.arange(number))
            one.wait()
            load = Load(row_tokens=width, checkpointing=recompute, loss_chunk_tokens=1024)
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

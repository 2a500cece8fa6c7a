"""The training path: its numbers against float32, its speed with each setting, and its memory."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gpu.device import environment_of_children
from gpu.models import LONGEST_TOKENS, MEAN_TOKENS, Size, choose, costs, placed, rows_of, training
from gpu.one_pass import Pass
from orchestrator.sft import batches, kernels
from orchestrator.sft import speed as speed_model
from orchestrator.sft.batches import MicroBatches
from orchestrator.sft.distributed.parallel import Placed, group_of_one
from orchestrator.sft.memory import BUSY_TOKENS, Load, terms_gib
from orchestrator.sft.shards import Batch, Rows, Segments


def numerics(one: Pass) -> None:
    """Loss and gradient, padded and packed, against padded rows in float32; whether they repeat."""
    for name, layers in (("qwen3-0.6b", 4), ("gemma3-1b", 6)):  # 6: with one layer without a window
        size = Size(name, small=one.small, layers=layers)
        rows = Rows(rows_of(size, 8, small=one.small), pad_token_id=0)
        order = [int(row) for row in np.argsort(-rows.lengths)]
        exact: tuple[float, list[torch.Tensor]] | None = None
        for bf16, packed in ((False, False), (False, True), (True, False), (True, True)):
            model = placed(one, size, bf16=bf16, recompute=False)
            facts: dict[str, Any] = {}
            batch, form = rows.batch(order), "packed" if packed else "padded"
            if bf16 and one.cuda:
                facts["fused_norms"] = kernels.fuse_norms(model.model)
            if packed:
                found = batches.can_pack(model, rows, bf16=bf16)
                by_kernel = model.has_pack_kernel
                facts = {**facts, **found._asdict(), "by_kernel": by_kernel}
                if not found.packed:
                    kernels.enable(model.decoder)
                batch = _pack(rows, order, by_kernel=by_kernel)
            loss, gradients = _loss_and_gradients(model, batch)
            again = _loss_and_gradients(model, batch)[1]
            if exact is None:
                exact = loss, gradients
            errors, norms = (
                sum(float((value**2).sum()) for value in values)
                for values in ([a - b for a, b in zip(gradients, exact[1], strict=True)], exact[1])
            )
            one.record(
                f"{name}'s width, {layers} layers, {'bf16' if bf16 else 'float32'}, {form}",
                loss_error=float(f"{abs(loss / exact[0] - 1):.1e}"),
                gradient_error=float(f"{(errors / norms) ** 0.5:.1e}"),
                repeats_bit_for_bit=all(map(torch.equal, gradients, again)),
                **facts,
            )
            del model, gradients, again
            one.clean()


def _pack(rows: Rows, order: list[int], *, by_kernel: bool) -> Batch:
    """Return all rows as one pack, filled up to a multiple of 128 tokens."""
    width = -(-int(rows.lengths.sum()) // 128) * 128
    segments = Segments(int(rows.lengths.max()), len(order) + 2) if by_kernel else None
    return rows.pack(order, width=width, segments=segments)


def _loss_and_gradients(model: Placed, batch: Batch) -> tuple[float, list[torch.Tensor]]:
    model.model.zero_grad()
    loss = model.losses(batch) / len(batch.targets)
    torch.autograd.backward(loss)
    return float(loss.detach()), [value.grad.float() for value in model.parameters if value.grad is not None]


def deterministic(one: Pass) -> None:
    """A gradient twice, with the kernels that training takes, and with `trainer.deterministic`."""
    script = Path(__file__).with_name("repeats.py")
    done = subprocess.run(
        [sys.executable, str(script), *(["--small"] if one.small else [])],
        env=environment_of_children(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    for line in done.stdout.splitlines():
        what, usual, repeating = json.loads(line)
        one.record(
            f"a gradient twice, {what}",
            repeats=usual[0],
            repeats_deterministic=repeating[0],
            ms=usual[1],
            ms_deterministic=repeating[1],
        )
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.split())[-300:])


class Way(NamedTuple):
    """One way to train.

    Attributes:
        what: its name in the table.
        settings: changes to the study's `trainer` section; None for rows padded 16 at a time, with the norms
            of transformers, and all layers computed again.
        sharding: ``ddp`` for one process's own weights and autocast, ``auto`` for FSDP of one process.
        needs_s: seconds that it needs on a GPU.
    """

    what: str
    settings: Mapping[str, Any] | None
    sharding: str = "ddp"
    needs_s: float = 15.0


_PLAIN = {"gradient_checkpointing": True, "compile": False}
_AUTO = {"gradient_checkpointing": "auto", "compile": True}
WAYS = (
    Way("as transformers computes", None),
    Way("fused norms", {**_PLAIN, "micro_batch_size": 16}),
    Way("packs", _PLAIN),
    Way("packs, FSDP", _PLAIN, "auto"),
    Way("packs, FSDP, recomputed as planned", {**_AUTO, "compile": False}, "auto"),
    Way("as planned: packs, FSDP, compiled", _AUTO, "auto", 75),
    Way("packs, recomputed, compiled", {**_PLAIN, "compile": True}, "auto", 75),
)
"""What `speed` compares."""
_SAME = {"compile": True, "micro_batch_tokens": 12_288}
RECOMPUTED = (
    Way("nothing recomputed", {**_SAME, "gradient_checkpointing": False}, "auto", 40),
    Way("selective", {**_SAME, "gradient_checkpointing": "selective"}, "auto", 40),
    Way("all recomputed", {**_SAME, "gradient_checkpointing": True}, "auto", 40),
    Way(
        "selective, small packs",
        {"compile": True, "gradient_checkpointing": "selective", "micro_batch_tokens": BUSY_TOKENS},
        *("auto", 40),
    ),
    Way("selective, widest packs", {"compile": True, "gradient_checkpointing": "selective"}, "auto", 40),
    Way("all recomputed, widest packs", {"compile": True, "gradient_checkpointing": True}, "auto", 40),
    Way(
        "selective, not compiled", {**_SAME, "gradient_checkpointing": "selective", "compile": False}, "auto"
    ),
)
"""What `selective` compares: packs of one width, then those between which a plan chooses."""


def speed(one: Pass) -> None:
    """One step of the 1.7B in each way to train."""
    size = Size("qwen3-1.7b", small=one.small)
    rows = Rows(rows_of(size, 256 if one.cuda else 16, small=one.small), pad_token_id=0)
    for way in WAYS:
        timed_step(one, "1.7B", size, rows, way)


def eight_billion(one: Pass) -> None:
    """The 8B's width with 6 of its 36 layers: time and memory a layer."""
    size = Size("qwen3-8b", small=one.small, layers=6)
    rows = Rows(rows_of(size, 128 if one.cuda else 8, small=one.small), pad_token_id=0)
    for way in (WAYS[3], WAYS[5]):
        timed_step(one, "8B's width, 6 layers", size, rows, way)


def selective(one: Pass) -> None:
    """What selective recomputation costs and saves, for the 1.7B and the 8B's width."""
    for name, layers, num in (("qwen3-1.7b", None, 128), ("qwen3-8b", 6, 128)):
        size = Size(name, small=one.small, layers=layers)
        rows = Rows(rows_of(size, num if one.cuda else 8, small=one.small), pad_token_id=0)
        for way in RECOMPUTED:
            timed_step(one, f"{name}, {layers or 'all'} layers", size, rows, way)


def timed_step(one: Pass, name: str, size: Size, rows: Rows, way: Way) -> None:
    """Record time, tokens a second and memory of one optimiser step over all rows, after another one."""
    what = f"{name}: {way.what}"
    if one.left_s < way.needs_s and not one.small:
        one.record("skipped", way=what, left_s=round(one.left_s))
        return
    one.clean()
    if one.cuda:
        kernels.prepare()  # as the stage does
    with group_of_one(way.sharding, one.device):
        try:
            _timed(one, what, size, rows, way)
        except torch.OutOfMemoryError as error:
            one.record(what, out_of_memory=str(error)[:100], **one.memory())
    one.clean()


def _timed(one: Pass, what: str, size: Size, rows: Rows, way: Way) -> None:
    model = placed(one, size, recompute=False, sharding=way.sharding)
    start_s = time.perf_counter()
    facts: dict[str, Any] = {}
    if way.settings is None:
        model.recompute(True)
        micro = MicroBatches(16)
    else:
        settings = dict(way.settings)
        if one.small:  # compiling takes minutes on a CPU, and there rows are packed up to a given width
            settings |= {"compile": False}
            settings |= {} if "micro_batch_size" in settings else {"micro_batch_tokens": 300}
        chosen = choose(model, rows, **settings)
        micro = chosen.micro
        facts = {"recompute": chosen.recompute, "compiled": chosen.compiled}
        facts |= {"fused_norms": chosen.num_fused_norms}
        if chosen.packing is not None:
            facts |= {"packing_difference": chosen.packing.difference, "by_kernel": micro.by_kernel}
    loop = training(one, model, rows, micro=micro)
    order = np.argsort(-rows.lengths, kind="stable")
    loop._step(1, order)
    one.wait()
    first_s = time.perf_counter() - start_s
    took_s, tokens = one.seconds(functools.partial(loop._step, 2, order)), int(rows.lengths.sum())
    useful_share = loop.batches.shares()[0]
    predicted, mfu = None, None
    if one.spec:
        rate = one.spec.peak_tflops * 1e12 / (6 * model.num_parameters)
        mfu = round(tokens / took_s / rate, 3)
        modelled = speed_model.mfu(
            size.decoder,
            torch.cuda.get_device_name(),
            recomputes=facts.get("recompute", True),
            is_compiled=bool(facts.get("compiled", False)),
            pack_tokens=loop.batches.widths[-1] if loop.batches.widths else 16 * MEAN_TOKENS,
        )
        used = min(modelled or 1.0, costs().mfu_of(size.decoder.num_parameters))
        predicted = {
            "step_s": round(tokens / (rate * used * useful_share), 2),
            "mfu": round(used * useful_share, 3),
        }
        if loop.batches.widths:
            load = Load(
                row_tokens=loop.batches.widths[-1],
                checkpointing=facts["recompute"],
                loss_chunk_tokens=1024,
                sharded=model.is_sharded,
            )
            predicted["peak_gib"] = _peak_gib(size, load)
    one.record(
        what,
        predicted=predicted,
        step_s=round(took_s, 2),
        tokens_per_s=round(tokens / took_s),
        mfu=mfu,
        rows=micro.rows,
        widths=str(list(loop.batches.widths)) if loop.batches.widths else None,
        useful_share=round(useful_share, 3),
        chosen_and_first_step_s=round(first_s, 1),
        loss=round(loop.progress.loss[0], 4),
        **facts,
        **one.memory(),
    )


def _peak_gib(size: Size, load: Load) -> float:
    """Return the peak memory of a step on one GPU by the plan's terms, without the reserve."""
    terms = terms_gib(size.decoder, load, num_gpus=1, micro_batch=1, memory_gib=1.0)
    return round(sum(terms.values()) - terms["reserve"], 1)


def memory(one: Pass) -> None:
    """The peak of a step of long rows, against the plan's memory terms."""
    size, width = Size("qwen3-1.7b", small=one.small), LONGEST_TOKENS if one.cuda else 64
    for recompute, numbers in ((True, (4, 16)), (False, (2, 4))):
        with group_of_one("auto", one.device):
            model = placed(one, size, recompute=recompute, sharding="auto")
            if one.cuda:
                kernels.fuse_norms(model.model)
            for number in numbers if one.cuda else (2,):
                rows = Rows(rows_of(size, number, small=one.small, width=width), pad_token_id=0)
                loop = training(one, model, rows, micro=MicroBatches(number))
                one.clean()
                for step in (1, 2):
                    loop._step(step, np.arange(number))
                one.wait()
                load = Load(row_tokens=number * width, checkpointing=recompute, loss_chunk_tokens=1024)
                one.record(
                    f"1.7B, memory of a step{'' if recompute else ', nothing recomputed'}",
                    predicted={"peak_gib": _peak_gib(size, load)},
                    rows=number,
                    width=width,
                    **one.memory(),
                )
                del loop
            del model
        one.clean()

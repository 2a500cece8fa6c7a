"""Generation: whether a text depends on what is computed beside it, and vLLM where it is installed.

The weights are random, so near ties are common: what could differ shows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from gpu.device import environment_of_children
from gpu.models import MEAN_TOKENS, Size
from gpu.one_pass import Pass
from orchestrator.sft.generators.base import Engine, GeneratorSettings, batches
from orchestrator.sft.generators.transformers import TransformersEngine
from orchestrator.sft.needs import has_vllm

Prompt = tuple[int, ...]
Texts = Mapping[Prompt, Sequence[int]]


def generation(one: Pass) -> None:
    """The same batches in another order and in other processes give the same texts; other batches may not."""
    size, number, batch_size, tokens = _work(one)
    with tempfile.TemporaryDirectory() as folder:
        size.build(one.device, torch.bfloat16).save_pretrained(folder)
        one.clean()
        engine = TransformersEngine(_settings(one))
        engine.load(Path(folder))
        work = _batches(size, number, batch_size, small=one.small)
        texts(engine, work[-1:], 2)  # the first kernels are loaded
        whole = _timed(one, "generation, 0.6B in bf16", engine, work, tokens)
        if one.cuda:
            torch.backends.cuda.enable_cudnn_sdp(True)
        with_plans = _timed(one, "generation with cuDNN's attention", engine, work[:2], tokens)
        if one.cuda:
            torch.backends.cuda.enable_cudnn_sdp(False)
        one.record("cuDNN's attention against others in generation", differing=_differing(with_plans, whole))
        half = texts(engine, work[::-1][: len(work) // 2], tokens)
        one.record("generation resumed, batches in another order", differing=_differing(half, whole))
        command = [sys.executable, str(Path(__file__)), folder, *(["--small"] if one.small else [])]
        parts = [
            subprocess.Popen(
                [*command, f"{k}/2"], env=environment_of_children(), stdout=subprocess.PIPE, text=True
            )
            for k in (0, 1)
        ]
        shared: dict[Prompt, Sequence[int]] = {}
        for part in parts:
            lines = part.communicate(timeout=120)[0].splitlines()
            shared.update({tuple(row): found for row, found in json.loads(lines[-1])})
        one.record("generation by two processes at once", differing=_differing(shared, whole))
        for other in (1, batch_size // 2):
            few = [row for batch in work[:2] for row in batch][: 8 if other == 1 else batch_size]
            found = texts(engine, [few[at : at + other] for at in range(0, len(few), other)], tokens)
            what = f"generation in batches of {other} instead of {batch_size}"
            one.record(what, texts=len(found), differing=_differing(found, whole))


def _timed(
    one: Pass, what: str, engine: Engine, work: Sequence[Sequence[Prompt]], tokens: int
) -> dict[Prompt, Sequence[int]]:
    """Generate texts, and record tokens a second and the time of a step: one token of each row."""
    start_s = time.perf_counter()
    found = texts(engine, work, tokens)
    took_s = time.perf_counter() - start_s
    one.record(
        what,
        texts=len(found),
        batch=max(map(len, work)),
        tokens_per_s=round(sum(map(len, found.values())) / took_s),
        ms_a_step=round(1e3 * took_s / (len(work) * tokens), 1),
    )
    return found


def vllm(one: Pass) -> None:
    """vLLM: tokens a second, the time of its start, and whether a text depends on the other prompts."""
    if not has_vllm():
        one.record("vLLM", not_available="it is not installed")
        return
    from orchestrator.sft.generators.vllm import VllmEngine

    size, number, _, tokens = _work(one)
    with tempfile.TemporaryDirectory() as folder:
        size.build(one.device, torch.bfloat16).save_pretrained(folder)
        one.clean()
        engine = VllmEngine(_settings(one))
        start_s = time.perf_counter()
        engine.load(Path(folder))
        load_s = time.perf_counter() - start_s
        rows = [row for batch in _batches(size, number, number, small=one.small) for row in batch]
        start_s = time.perf_counter()
        whole = texts(engine, [rows], tokens)
        took_s = time.perf_counter() - start_s
        alone = texts(engine, [[row] for row in rows[:8]], tokens)
    one.record(
        "vLLM, 0.6B in bf16",
        load_s=round(load_s, 1),
        tokens_per_s=round(sum(map(len, whole.values())) / took_s),
        differing_when_alone=_differing(alone, whole),
    )


def texts(engine: Engine, work: Sequence[Sequence[Prompt]], tokens: int) -> dict[Prompt, Sequence[int]]:
    """Return the new tokens of each prompt."""
    found: dict[Prompt, Sequence[int]] = {}
    for batch in work:
        new = engine.generate(
            batch, max_new_tokens=tokens, is_over=lambda row, ids: len(ids) >= 16 and ids[3] % 5 == 0
        )
        found.update(zip(batch, new, strict=True))
    return found


def _differing(found: Texts, whole: Texts) -> str:
    return f"{sum(found[row] != whole[row] for row in found)} of {len(found)}"


def _work(one: Pass) -> tuple[Size, int, int, int]:
    """Return the model, the number of prompts, the prompts of a batch, and the new tokens of each."""
    size = Size("qwen3-0.6b", small=one.small)
    return (size, 128, 32, 32) if one.cuda else (size, 16, 4, 20)


def _settings(one: Pass) -> GeneratorSettings:
    return GeneratorSettings(one.device, "bf16", eos_token_id=1, pad_token_id=0)


def _batches(size: Size, number: int, batch_size: int, *, small: bool) -> list[list[Prompt]]:
    random, mean = np.random.default_rng(7), MEAN_TOKENS // (24 if small else 2)
    lengths = np.maximum(random.normal(mean, mean / 3, number), 4).astype(int)
    items = [tuple(random.integers(2, size.decoder.vocab_size, n).tolist()) for n in lengths]
    return batches({"en": items[::2], "te": items[1::2]}, batch_size, len)


def main() -> None:
    """Generate every second batch, as one of two processes on one device, and print the texts as JSON."""
    folder, *small, share = sys.argv[1:]
    first, step = map(int, share.split("/"))
    one = Pass(small=bool(small), budget_s=120, out=None)
    size, number, batch_size, tokens = _work(one)
    engine = TransformersEngine(_settings(one))
    engine.load(Path(folder))
    work = _batches(size, number, batch_size, small=one.small)[first::step]
    print(json.dumps([[list(row), list(found)] for row, found in texts(engine, work, tokens).items()]))


if __name__ == "__main__":
    main()

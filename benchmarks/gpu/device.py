"""The machine itself: versions, peaks, the whole product on it, attention kernels, and process groups."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attend

from gpu.models import Size, placed, rows_of
from gpu.one_pass import ROOT, Pass
from orchestrator.sft.distributed.parallel import Placed
from orchestrator.sft.shards import Batch, Rows

PACKAGES = ("transformers", "trl", "liger-kernel", "vllm", "accelerate", "triton")


def environment(one: Pass) -> None:
    """Versions, and the best that the device does of matrix products, copies, hashing and writing."""
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if one.cuda else platform.processor() or platform.machine()
    cudnn: Any = torch.backends.cudnn
    one.record(
        "environment",
        device=device,
        python=platform.python_version(),
        torch=torch.__version__,
        cudnn=cudnn.version() if one.cuda else None,
        packages=", ".join(versions),
    )
    size = 8192 if one.cuda else 512
    left, right = (torch.randn(size, size, device=one.device, dtype=torch.bfloat16) for _ in range(2))
    _ = left @ right
    took_s = one.seconds(lambda: left @ right, repeats=10)
    peak = {"tflops": one.spec.peak_tflops} if one.spec else None
    one.record("matrix product, bf16", predicted=peak, tflops=round(2 * size**3 / took_s / 1e12, 1))
    source = torch.zeros(2**31 if one.cuda else 2**24, dtype=torch.uint8, device=one.device)
    target = torch.empty_like(source)
    took_s = one.seconds(lambda: target.copy_(source), repeats=5)
    one.record("copy on the device, read and written", tb_per_s=round(2 * len(source) / took_s / 1e12, 3))
    data = os.urandom(1 << 27)
    hashed_s = one.seconds(lambda: hashlib.sha256(data).digest())
    with tempfile.NamedTemporaryFile() as file:

        def write() -> None:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

        written_s = one.seconds(write)
    one.record(
        "128 MiB, one thread",
        sha256_gb_per_s=round(len(data) / hashed_s / 1e9, 2),
        written_gb_per_s=round(len(data) / written_s / 1e9, 2),
    )


def smoke(one: Pass) -> None:
    """The whole product: fork server, CUDA in a forked child, training, generation, report."""
    overrides = ["model=tiny-qwen3", "task=math", "mixture=en", "trainer.precision=bf16"]
    with tempfile.TemporaryDirectory() as store:
        started_s = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli.main", "launch", "smoke", *overrides, "--name", "gpu"],
            env={**environment_of_children(), "SWEEP_STORE": store},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=150 if one.cuda else 600,
            check=False,
        )
    took_s = round(time.perf_counter() - started_s, 1)
    error = " ".join(done.stderr.split())[-300:] if done.returncode else None
    one.record("smoke, one cell", exit_code=done.returncode, seconds=took_s, error=error)


def environment_of_children() -> dict[str, str]:
    """Return an environment in which children import the product and this folder, installed or not."""
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


WINDOW = 128
"""Tokens that a token sees with a sliding window, itself included."""


def kernels(one: Pass) -> None:
    """Time and error of each kernel of attention, forwards and backwards, against float32."""
    num, tokens, heads, kv_heads, width = (16, 512, 16, 8, 128) if one.cuda else (2, 160, 4, 2, 16)
    generator = torch.Generator(one.device).manual_seed(0)
    query, key, value = (
        torch.randn(num, count, tokens, width, device=one.device, generator=generator).bfloat16()
        for count in (heads, kv_heads, kv_heads)
    )
    place = torch.arange(tokens, device=one.device)
    distance = place[:, None] - place
    window = (distance >= 0) & (distance < WINDOW)
    for what, mask in (("causal", None), (f"window of {WINDOW}", window)):
        with sdpa_kernel(SDPBackend.MATH):
            exact = _passes(functools.partial(_sdpa, mask=mask), query.float(), key.float(), value.float())
        for name, function in _kernels(one, mask, tokens).items():
            try:
                found = _passes(function, query, key, value)
                took_s = one.seconds(functools.partial(_passes, function, query, key, value), repeats=5)
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
                one.record(f"attention, {what}: {name}", not_available=reason)
                continue
            errors = [_relative(a, b) for a, b in zip(found, exact, strict=True)]
            one.record(
                f"attention, {what}: {name}",
                ms=round(1e3 * took_s, 2),
                error=round(errors[0], 4),
                gradient_error=round(max(errors[1:]), 4),
            )


_Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _kernels(one: Pass, mask: torch.Tensor | None, tokens: int) -> dict[str, _Attention]:
    """Return the kernels to try: those of `scaled_dot_product_attention`, and `varlen_attn`."""

    def by(backend: SDPBackend) -> _Attention:
        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            with sdpa_kernel(backend):
                return _sdpa(q, k, v, mask)

        return run

    names = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
    found = {name.lower(): by(getattr(SDPBackend, name)) for name in names}
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return found

    takes = inspect.signature(varlen.varlen_attn).parameters

    def packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        options: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in takes else {}
        if "window_size" in takes:
            options["window_size"] = (-1 if mask is None else WINDOW - 1, 0)
        elif mask is None:
            options["is_causal"] = True
        else:
            raise NotImplementedError("no windows in this torch")
        if "enable_gqa" not in takes:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        flat = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
        attend_packed: Any = varlen.varlen_attn
        starts = torch.arange(len(q) + 1, device=one.device, dtype=torch.int32) * tokens
        out = attend_packed(*flat, starts, starts, tokens, tokens, **options)
        return out.unflatten(0, (len(q), tokens)).transpose(1, 2)  # type: ignore[no-any-return]

    return {**found, "varlen_attn": packed}


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    # Keys are repeated as transformers does: not every kernel takes groups of queries.
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return attend(q, k, v, attn_mask=mask, is_causal=mask is None)


def _passes(function: _Attention, *values: torch.Tensor) -> list[torch.Tensor]:
    """Return the output, and the gradients of the inputs for a fixed gradient of the output."""
    leaves = [value.detach().requires_grad_() for value in values]
    out = function(*leaves)
    weights = torch.cos(torch.arange(out.numel(), device=out.device)).view(out.shape).to(out.dtype)
    torch.autograd.backward(out, weights)
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def _relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())


def widths(one: Pass) -> None:
    """What each padded width costs the first time: cuDNN builds a plan of attention for each."""
    size = Size("qwen3-0.6b", small=one.small, layers=4)
    model = placed(one, size)
    for allowed in (True, False):
        if one.cuda:
            torch.backends.cuda.enable_cudnn_sdp(allowed)
        seen: dict[bool, list[float]] = {True: [], False: []}
        for first in (True, False):
            for width in range(300, 312) if one.cuda else range(20, 23):
                rows = Rows(rows_of(size, 16, small=one.small, width=width), pad_token_id=0)
                batch = rows.batch(range(16))
                seen[first].append(one.seconds(functools.partial(_loss_and_gradient, model, batch)))
        first_ms, again_ms = (round(1e3 * float(np.median(seen[key][1:])), 1) for key in (True, False))
        one.record("new widths", cudnn_attention=allowed, first_ms=first_ms, again_ms=again_ms)


def _loss_and_gradient(model: Placed, batch: Batch) -> None:
    torch.autograd.backward(model.losses(batch))


def processes(one: Pass) -> None:
    """NCCL with one process, and with two on one GPU, which NCCL refuses; gloo on a CPU."""
    script, kind = Path(__file__).with_name("rank.py"), "cuda" if one.cuda else "cpu"
    for number, sharding in ((1, "fsdp"), (2, "fsdp")):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        command += [f"--nproc-per-node={number}", str(script), kind, sharding]
        start_s = time.perf_counter()
        done = subprocess.run(
            command, env=environment_of_children(), capture_output=True, text=True, timeout=100, check=False
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("ranks:")]
        cause = [line for line in done.stderr.splitlines() if "Error" in line and "ChildFailed" not in line]
        one.record(
            f"{'NCCL' if one.cuda else 'gloo'}, {number} process{'es' * (number > 1)}, {sharding}",
            exit_code=done.returncode,
            seconds=round(time.perf_counter() - start_s, 1),
            result=lines[-1].removeprefix("ranks: ") if lines else " ".join(cause[-1:])[:160],
        )

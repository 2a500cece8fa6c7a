"""Programs that fail, each for a known reason.

Where this machine can, the failure is real: a port at which nobody listens, a full device, a truncated file.
What needs a GPU or a second machine raises the very text that the library prints.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import resource
import socket
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from causes.programs import closed_port, failure, scratch


# The user's config
@failure
def missing_argument(config: Any) -> object:  # noqa: D103
    import argparse

    parser = argparse.ArgumentParser(prog="train.py")
    parser.add_argument("--lr", required=True)
    return parser.parse_args([])


@failure
def missing_value(config: Any) -> object:  # noqa: D103
    from omegaconf import OmegaConf

    return OmegaConf.create({"lr": "???"}).lr


@failure
def bad_interpolation(config: Any) -> object:  # noqa: D103
    from omegaconf import OmegaConf

    return OmegaConf.create({"lr": "${optimizer.lr}"}).lr


@failure
def no_such_model(config: Any) -> object:  # noqa: D103
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tempfile.mkdtemp())


# The user's data
@failure
def no_such_file(config: Any) -> object:  # noqa: D103
    return Path("data/train.jsonl").read_text()


@failure
def not_utf8(config: Any) -> object:  # noqa: D103
    return Path(scratch("a.txt", b"caf\xe9")).read_text(encoding="utf-8")


@failure
def not_json(config: Any) -> object:  # noqa: D103
    return json.loads('{"question": "2 + 2", "answer": ')


@failure
def not_parquet(config: Any) -> object:  # noqa: D103
    import pyarrow.parquet

    return pyarrow.parquet.read_table(scratch("a.parquet", b"PAR1 cut short"))


@failure
def truncated_weights(config: Any) -> object:  # noqa: D103
    from safetensors import safe_open

    return safe_open(scratch("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "np")


@failure
def truncated_gzip(config: Any) -> object:  # noqa: D103
    return gzip.open(scratch("a.gz", gzip.compress(bytes(9999))[:30])).read()


@failure
def no_zip(config: Any) -> object:  # noqa: D103
    return zipfile.ZipFile(scratch("a.zip", b"<html>404</html>"))


@failure
def bad_csv(config: Any) -> object:  # noqa: D103
    return list(csv.reader(["a\0b" * 99999], strict=True))


# The user's code
@failure
def no_name(config: Any) -> object:  # noqa: D103
    return tokenzier  # type: ignore[name-defined]  # noqa: F821


@failure
def no_attribute(config: Any) -> object:  # noqa: D103
    return [].to("cuda")  # type: ignore[attr-defined]


@failure
def wrong_type(config: Any) -> object:  # noqa: D103
    return len(5)  # type: ignore[arg-type]


@failure
def wrong_index(config: Any) -> object:  # noqa: D103
    return [1, 2][7]


@failure
def no_module(config: Any) -> object:  # noqa: D103
    import flash_attention_9  # type: ignore[import-not-found]

    return flash_attention_9


@failure
def assertion(config: Any) -> object:  # noqa: D103
    assert 3 % 2 == 0, "batch size must be even"
    return None


@failure
def division(config: Any) -> object:  # noqa: D103
    return 1 / 0


@failure
def endless_recursion(config: Any) -> object:  # noqa: D103
    return endless_recursion(config)


@failure
def shapes(config: Any) -> object:  # noqa: D103
    import torch

    return torch.ones(2, 3) @ torch.ones(2, 3)


@failure
def another_dtype(config: Any) -> object:  # noqa: D103
    import torch

    return torch.nn.Linear(2, 2)(torch.ones(2, 2, dtype=torch.bfloat16))


# Memory
@failure
def gpu_memory(config: Any) -> object:  # noqa: D103
    import torch

    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which "
        "1.31 GiB is free. Including non-PyTorch memory, this process has 77.78 GiB memory in use."
    )


@failure
def gpu_memory_of_cublas(config: Any) -> object:  # noqa: D103
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@failure
def gpu_memory_of_jax(config: Any) -> object:  # noqa: D103
    kind = type("XlaRuntimeError", (RuntimeError,), {})
    raise kind("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.")


@failure
def host_memory(config: Any) -> object:  # noqa: D103
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
    return bytearray(16 << 30)


@failure
def host_memory_of_numpy(config: Any) -> object:  # noqa: D103
    import numpy as np

    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
    return np.ones(16 << 30)


@failure
def host_memory_of_torch(config: Any) -> object:  # noqa: D103
    import torch

    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, resource.RLIM_INFINITY))
    return torch.ones(16 << 30)


# Numbers
@failure
def loss_is_nan(config: Any) -> object:  # noqa: D103
    raise RuntimeError("loss is nan at step 120")


@failure
def overflow(config: Any) -> object:  # noqa: D103
    import numpy as np

    with np.errstate(all="raise"):
        return np.float32(1e30) * np.float32(1e30)


@failure
def anomaly(config: Any) -> object:  # noqa: D103
    import torch

    with torch.autograd.detect_anomaly(check_nan=True):
        x = torch.zeros(1, requires_grad=True)
        (x.sqrt() * 0).sum().backward()  # type: ignore[no-untyped-call]
    return x


# Time
@failure
def hang(config: Any) -> object:  # noqa: D103
    time.sleep(600)
    return None


# The network
@failure
def refused(config: Any) -> object:  # noqa: D103
    return socket.create_connection(("127.0.0.1", closed_port()))


@failure
def refused_url(config: Any) -> object:  # noqa: D103
    return urllib.request.urlopen(f"http://127.0.0.1:{closed_port()}/model")


@failure
def refused_httpx(config: Any) -> object:  # noqa: D103
    import httpx

    return httpx.get(f"http://127.0.0.1:{closed_port()}/v1/models")


@failure
def no_host(config: Any) -> object:  # noqa: D103
    return socket.create_connection(("no-such-host.invalid", 443))


@failure
def no_rendezvous(config: Any) -> object:  # noqa: D103
    from datetime import timedelta

    import torch.distributed

    return torch.distributed.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", closed_port(), 2, False, timedelta(seconds=2)
    )


@failure
def nccl(config: Any) -> object:  # noqa: D103
    raise RuntimeError(
        "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, remote process exited or "
        "there was a network error, NCCL version 2.21.5"
    )


# The disk
@failure
def full_disk(config: Any) -> object:  # noqa: D103
    with Path("/dev/full").open("wb", buffering=0) as stream:
        return stream.write(b"x")


@failure
def full_disk_of_torch(config: Any) -> object:  # noqa: D103
    import torch

    with Path("/dev/full").open("wb") as stream:  # a library that gets the name might replace the device
        torch.save({"weights": torch.ones(999_999)}, stream)
    return None


@failure
def quota(config: Any) -> object:  # noqa: D103
    import errno

    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/home/user/ckpt.pt")


@failure
def read_only(config: Any) -> object:  # noqa: D103
    return Path("/proc/version").write_text("x")


@failure
def input_output(config: Any) -> object:  # noqa: D103
    return Path("/proc/self/mem").read_bytes()


# The node
@failure
def ecc(config: Any) -> object:  # noqa: D103
    raise RuntimeError("CUDA error: uncorrectable ECC error encountered")


@failure
def lost_gpu(config: Any) -> object:  # noqa: D103
    raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")


@failure
def driver(config: Any) -> object:  # noqa: D103
    raise RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized")


# Nobody can know
@failure
def only_a_code(config: Any) -> object:  # noqa: D103
    os._exit(3)


@failure
def killed(config: Any) -> object:  # noqa: D103
    os.kill(os.getpid(), 9)
    return None


@failure
def crash(config: Any) -> object:  # noqa: D103
    os.kill(os.getpid(), 11)
    return None

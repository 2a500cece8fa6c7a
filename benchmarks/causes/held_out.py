"""Programs that fail, written before the rules for causes were read, and never used to mend them."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from causes.programs import closed_port, failure, scratch, small_disk


# The user's config
@failure
def bad_ini(config: Any) -> object:  # noqa: D103
    import configparser

    return configparser.ConfigParser().read(scratch("train.ini", b"lr = 1\n"))


@failure
def wrong_field(config: Any) -> object:  # noqa: D103
    from dataclasses import dataclass

    from omegaconf import OmegaConf

    @dataclass
    class Settings:
        lr: float = 0.1

    return OmegaConf.merge(OmegaConf.structured(Settings), {"lr": "fast"})


@failure
def no_such_override(config: Any) -> object:  # noqa: D103
    import hydra

    folder = Path(scratch("config.yaml", b"lr: 1\n")).parent
    with hydra.initialize_config_dir(str(folder), version_base=None):
        return hydra.compose("config", overrides=["learning_rate=1"])


@failure
def gated_model(config: Any) -> object:  # noqa: D103
    raise OSError(
        "You are trying to access a gated repo.\nMake sure to have access to it at "
        "https://huggingface.co/meta-llama/Llama-3.1-8B.\n401 Client Error."
    )


@failure
def no_such_option(config: Any) -> object:  # noqa: D103
    import click

    @click.command()
    @click.option("--lr")
    def train(lr: str) -> None:
        print(lr)

    train(["--learning-rate", "1"])
    return None


# The user's data
@failure
def words_for_numbers(config: Any) -> object:  # noqa: D103
    import numpy as np

    return np.loadtxt(scratch("a.csv", b"1,2\n1,n/a\n"), delimiter=",")


@failure
def no_sound(config: Any) -> object:  # noqa: D103
    import wave

    return wave.open(scratch("a.wav", b"<html>404 not found</html>"))


@failure
def no_matlab_file(config: Any) -> object:  # noqa: D103
    import scipy.io

    return scipy.io.loadmat(scratch("a.mat", b"<html>404</html>" * 99))


@failure
def bad_rows_of_pandas(config: Any) -> object:  # noqa: D103
    import pandas as pd

    return pd.read_json(scratch("a.jsonl", b'{"a": 1}\n{"a": \n'), lines=True)


@failure
def truncated_arrays(config: Any) -> object:  # noqa: D103
    import numpy as np

    path = scratch("a.npz", b"")
    np.savez(path, x=np.ones(999))
    os.truncate(path, 500)
    return np.load(path)


@failure
def malformed_database(config: Any) -> object:  # noqa: D103
    import sqlite3

    path = scratch("a.db", b"")
    with sqlite3.connect(path) as base:
        base.execute("create table t (x)")
        base.executemany("insert into t values (?)", [("x" * 999,)] * 99)
    base.close()
    with Path(path).open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"\xff" * 8192)
    return sqlite3.connect(path).execute("select count(*) from t where x > 'a'").fetchall()


@failure
def no_feather(config: Any) -> object:  # noqa: D103
    import pyarrow.feather

    return pyarrow.feather.read_table(scratch("a.feather", b"<html>404</html>"))


# The user's code
@failure
def local_function(config: Any) -> object:  # noqa: D103
    import multiprocessing

    process = multiprocessing.get_context("spawn").Process(target=lambda: 1)
    process.start()
    return None


@failure
def unbound(config: Any) -> object:  # noqa: D103
    for batch in range(0):
        loss = batch
    return loss


@failure
def two_devices(config: Any) -> object:  # noqa: D103
    raise RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
        "(when checking argument for argument mat1 in method wrapper_CUDA_addmm)"
    )


@failure
def leaf_changed(config: Any) -> object:  # noqa: D103
    import torch

    return torch.ones(1, requires_grad=True).add_(1)


@failure
def mutable_default(config: Any) -> object:  # noqa: D103
    from dataclasses import dataclass

    @dataclass
    class Batch:
        rows: list[int] = []  # noqa: RUF008

    return Batch()


# Memory
@failure
def gpu_memory_of_cudnn(config: Any) -> object:  # noqa: D103
    raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")


@failure
def gpu_memory_of_cupy(config: Any) -> object:  # noqa: D103
    kind = type("OutOfMemoryError", (MemoryError,), {"__module__": "cupy.cuda.memory"})
    raise kind("Out of memory allocating 8,589,934,592 bytes (allocated so far: 77,309,411,328 bytes).")


@failure
def gpu_memory_of_tensorflow(config: Any) -> object:  # noqa: D103
    kind = type("ResourceExhaustedError", (Exception,), {})
    raise kind(
        "OOM when allocating tensor with shape[64,512,50257] and type float on "
        "/job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc"
    )


@failure
def shared_memory_of_loader(config: Any) -> object:  # noqa: D103
    raise RuntimeError(
        "DataLoader worker (pid 4242) is killed by signal: Bus error. It is possible that dataloader's "
        "workers are out of shared memory. Please try to raise your shared memory limit."
    )


@failure
def host_memory_of_worker(config: Any) -> object:  # noqa: D103
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(bytearray, 16 << 30).result()


# Numbers
@failure
def nan_matrix_of_scipy(config: Any) -> object:  # noqa: D103
    import numpy as np
    import scipy.linalg

    return scipy.linalg.svd(np.full((3, 3), np.nan))


@failure
def nan_step(config: Any) -> object:  # noqa: D103
    return int(float("nan"))


@failure
def finite_asserted(config: Any) -> object:  # noqa: D103
    import torch

    loss = torch.tensor(float("nan"))
    assert torch.isfinite(loss), f"loss is {loss}"
    return loss


# The network
@failure
def no_bucket_server(config: Any) -> object:  # noqa: D103
    import boto3  # type: ignore[import-untyped]

    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{closed_port()}",
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
    ).get_object(Bucket="data", Key="train.parquet")


@failure
def slow_httpx(config: Any) -> object:  # noqa: D103
    import httpx

    with socket.create_server(("127.0.0.1", 0)) as server:
        return httpx.get(f"http://127.0.0.1:{server.getsockname()[1]}/", timeout=1)


@failure
def broken_pipe(config: Any) -> object:  # noqa: D103
    here, there = socket.socketpair()
    there.close()
    here.sendall(b"x" * 99)
    return None


@failure
def refused_asyncio(config: Any) -> object:  # noqa: D103
    return asyncio.run(asyncio.wait_for(_connect(closed_port()), 5))


async def _connect(port: int) -> object:
    return await asyncio.open_connection("127.0.0.1", port)


@failure
def clients_missing(config: Any) -> object:  # noqa: D103
    import torch.distributed

    raise torch.distributed.DistStoreError(
        "Timed out after 601 seconds waiting for clients. 1/2 clients joined."
    )


@failure
def lost_daemon(config: Any) -> object:  # noqa: D103
    print("ORTE has lost communication with a remote daemon.\n\n  HNP daemon   : [[1,0],0] on node n1\n"
          "  Remote daemon: [[1,0],1] on node n2", file=sys.stderr, flush=True)  # fmt: skip
    sys.exit(205)


# The disk
@failure
def small_disk_of_numpy(config: Any) -> object:  # noqa: D103
    import numpy as np

    return np.save(small_disk() / "predictions.npy", np.ones(999_999))


@failure
def small_disk_of_database(config: Any) -> object:  # noqa: D103
    import sqlite3

    with sqlite3.connect(small_disk() / "a.db") as base:
        base.execute("create table t (x)")
        return base.executemany("insert into t values (?)", [("x" * 4000,)] * 99)


@failure
def file_size_limit(config: Any) -> object:  # noqa: D103
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    return Path(scratch("a.bin", b"")).write_bytes(bytes(9999))


@failure
def evicted_client(config: Any) -> object:  # noqa: D103
    raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN), "/lustre/project/ckpt/step-100")


@failure
def disk_errors(config: Any) -> object:  # noqa: D103
    import sqlite3

    raise sqlite3.OperationalError("disk I/O error")


# The node
@failure
def old_driver(config: Any) -> object:  # noqa: D103
    raise RuntimeError(
        "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
        "downloading and installing a new version."
    )


@failure
def no_device_handle(config: Any) -> object:  # noqa: D103
    print(
        "Unable to determine the device handle for GPU0000:3D:00.0: Unknown Error",
        file=sys.stderr,
        flush=True,
    )
    sys.exit(255)


@failure
def xid(config: Any) -> object:  # noqa: D103
    raise RuntimeError(
        "GPU health check failed: NVRM: Xid (PCI:0000:3d:00): 79, pid='<unknown>', GPU has fallen off the "
        "bus."
    )


# Nobody can know
@failure
def illegal_instruction(config: Any) -> object:  # noqa: D103
    os.kill(os.getpid(), signal.SIGILL)
    return None


@failure
def last_words(config: Any) -> object:  # noqa: D103
    sys.exit("training failed")

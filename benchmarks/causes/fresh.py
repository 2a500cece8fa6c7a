"""Programs that fail, written after the rules for causes and before anyone saw what these record.

The rules were mended by none of them before the first measurement of each.
"""

from __future__ import annotations

import mmap
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from causes.programs import failure, scratch


# The user's config
@failure
def bad_choice(config: Any) -> object:  # noqa: D103
    import argparse

    parser = argparse.ArgumentParser(prog="train.py")
    parser.add_argument("--optimizer", choices=["adam", "sgd"])
    return parser.parse_args(["--optimizer", "adamw"])


@failure
def no_group(config: Any) -> object:  # noqa: D103
    import hydra

    folder = Path(scratch("config.yaml", b"defaults: [{model: huge}, _self_]\nlr: 1\n")).parent
    with hydra.initialize_config_dir(str(folder), version_base=None):
        return hydra.compose("config")


@failure
def wrong_setting(config: Any) -> object:  # noqa: D103
    import pydantic

    class Settings(pydantic.BaseModel):
        lr: float

    return Settings.model_validate({"lr": "fast"})


@failure
def bad_toml(config: Any) -> object:  # noqa: D103
    import tomllib

    return tomllib.loads(Path(scratch("train.toml", b"[model]\nlr = 1e-\n")).read_text())


@failure
def bad_model_config(config: Any) -> object:  # noqa: D103
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(Path(scratch("config.json", b'{"model_type": "llama",')).parent)


# The user's data
@failure
def truncated_image(config: Any) -> object:  # noqa: D103
    import numpy as np
    from PIL import Image

    path = scratch("a.jpg", b"")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    os.truncate(path, 900)
    return Image.open(path).convert("RGB")


@failure
def no_image(config: Any) -> object:  # noqa: D103
    from PIL import Image

    return Image.open(scratch("a.png", b"<html>403</html>"))


@failure
def bad_rows_of_datasets(config: Any) -> object:  # noqa: D103
    import datasets

    path = scratch("train.jsonl", b'{"question": "2 + 2"}\n{"question": \n')
    return datasets.load_dataset("json", data_files=path, cache_dir=tempfile.mkdtemp())


@failure
def ragged_csv(config: Any) -> object:  # noqa: D103
    import pandas as pd

    return pd.read_csv(scratch("a.csv", b"a,b\n1,2\n1,2,3\n"))


@failure
def damaged_xz(config: Any) -> object:  # noqa: D103
    import lzma

    return lzma.open(scratch("a.xz", lzma.compress(bytes(999))[:20] + b"x" * 50)).read()


@failure
def no_tar(config: Any) -> object:  # noqa: D103
    import tarfile

    return tarfile.open(scratch("a.tar", b"not found"))


@failure
def no_parquet_for_duckdb(config: Any) -> object:  # noqa: D103
    import duckdb

    return duckdb.sql(f"select * from read_parquet('{scratch('a.parquet', b'<html>' * 9)}')").fetchall()


@failure
def truncated_pickle(config: Any) -> object:  # noqa: D103
    import pickle

    with Path(scratch("a.pkl", pickle.dumps(list(range(999)))[:500])).open("rb") as stream:
        return pickle.load(stream)


@failure
def truncated_torch_file(config: Any) -> object:  # noqa: D103
    import torch

    path = scratch("a.pt", b"")
    torch.save({"weights": torch.ones(9999)}, path)
    os.truncate(path, 9000)
    return torch.load(path)


# The user's code
@failure
def keyword(config: Any) -> object:  # noqa: D103
    return sorted([1, 2], descending=True)  # type: ignore[call-overload]


@failure
def no_such_name_in_library(config: Any) -> object:  # noqa: D103
    from transformers import AdamW

    return AdamW


@failure
def syntax(config: Any) -> object:  # noqa: D103
    import runpy

    return runpy.run_path(scratch("model.py", b"def f():\nreturn 1\n"))


@failure
def error_in_loader(config: Any) -> object:  # noqa: D103
    import torch.utils.data

    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            return index + "1"  # type: ignore[operator]

    return list(torch.utils.data.DataLoader(Rows(), num_workers=1))


@failure
def numpy_of_gradient(config: Any) -> object:  # noqa: D103
    import torch

    return torch.ones(2, requires_grad=True).numpy()


@failure
def device_assert(config: Any) -> object:  # noqa: D103
    raise RuntimeError(
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at "
        "some other API call, so the stacktrace below might be incorrect."
    )


# Memory
@failure
def gpu_memory_of_driver(config: Any) -> object:  # noqa: D103
    raise RuntimeError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API "
        "call, so the stacktrace below might be incorrect."
    )


@failure
def gpu_memory_at_start(config: Any) -> object:  # noqa: D103
    raise ValueError(
        "Free memory on device (3.21/79.11 GiB) on startup is less than desired GPU memory utilization "
        "(0.9, 71.2 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )


@failure
def gpu_memory_of_nccl(config: Any) -> object:  # noqa: D103
    raise RuntimeError(
        "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1970, unhandled cuda error (run "
        "with NCCL_DEBUG=INFO for details), NCCL version 2.21.5\nncclUnhandledCudaError: Call to CUDA "
        "function failed.\nLast error:\nCuda failure 2 'out of memory'"
    )


@failure
def host_memory_of_mmap(config: Any) -> object:  # noqa: D103
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
    return mmap.mmap(-1, 16 << 30)


@failure
def host_memory_of_duckdb(config: Any) -> object:  # noqa: D103
    import duckdb

    base = duckdb.connect(config={"memory_limit": "4MB", "temp_directory": ""})
    return base.sql("select list(i::varchar || 'xxxxxxxx') from range(9999999) t(i)").fetchall()


@failure
def host_memory_of_cpp(config: Any) -> object:  # noqa: D103
    print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr)
    print("  what():  std::bad_alloc", file=sys.stderr, flush=True)
    os.abort()


# Numbers
@failure
def nan_sampled(config: Any) -> object:  # noqa: D103
    import torch

    return torch.multinomial(torch.tensor([float("nan"), 1.0]), 1)


@failure
def nan_gradient(config: Any) -> object:  # noqa: D103
    import torch

    x = torch.zeros(1, requires_grad=True)
    (x.sqrt() * 0).sum().backward()  # type: ignore[no-untyped-call]
    return torch.nn.utils.clip_grad_norm_([x], 1.0, error_if_nonfinite=True)


@failure
def nan_matrix(config: Any) -> object:  # noqa: D103
    import torch

    return torch.linalg.svd(torch.full((3, 3), float("nan")))


@failure
def loss_scale(config: Any) -> object:  # noqa: D103
    raise FloatingPointError("Minimum loss scale reached (0.0001). Your loss is probably exploding.")


# Time
@failure
def stubborn_hang(config: Any) -> object:  # noqa: D103
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
    return None

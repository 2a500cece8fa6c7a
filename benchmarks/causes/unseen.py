"""More programs that fail: the rules for causes were not mended by what these showed."""

from __future__ import annotations

import os
import resource
import socket
import sys
import urllib.request
from typing import Any

from causes.programs import answered, answering, failure, scratch


@failure
def bad_yaml(config: Any) -> object:  # noqa: D103
    import yaml  # type: ignore[import-untyped]

    return yaml.safe_load("model: {name: tiny\nlr: 1")


@failure
def http_404(config: Any) -> object:  # noqa: D103
    return answered(404)


@failure
def empty_dataset(config: Any) -> object:  # noqa: D103
    import torch.utils.data

    return torch.utils.data.DataLoader([], shuffle=True)  # type: ignore[arg-type]


@failure
def truncated_array(config: Any) -> object:  # noqa: D103
    import numpy as np

    path = scratch("a.npy", b"")
    np.save(path, np.ones(999))
    os.truncate(path, 500)
    return np.load(path)


@failure
def no_pickle(config: Any) -> object:  # noqa: D103
    import torch

    return torch.load(scratch("a.pt", b"version https://git-lfs"), weights_only=False)


@failure
def no_database(config: Any) -> object:  # noqa: D103
    import sqlite3

    return sqlite3.connect(scratch("a.db", b"x" * 5000)).execute("select * from t")


@failure
def no_xml(config: Any) -> object:  # noqa: D103
    from xml.etree import ElementTree

    return ElementTree.fromstring("<a><b></a>")


@failure
def no_key(config: Any) -> object:  # noqa: D103
    return {"question": "2 + 2"}["answer"]


@failure
def too_many_values(config: Any) -> object:  # noqa: D103
    a, b = (config and [1]) or [1, 2, 3]
    return a + b


@failure
def freed_graph(config: Any) -> object:  # noqa: D103
    import torch

    x = torch.ones(1, requires_grad=True).exp().sum()
    x.backward()  # type: ignore[no-untyped-call]
    x.backward()  # type: ignore[no-untyped-call]
    return x


@failure
def other_weights(config: Any) -> object:  # noqa: D103
    import torch

    return torch.nn.Linear(2, 2).load_state_dict({"weight": torch.ones(3, 2)})


@failure
def gpu_memory_of_vllm(config: Any) -> object:  # noqa: D103
    raise ValueError(
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing."
    )


@failure
def gpu_memory_of_amd(config: Any) -> object:  # noqa: D103
    import torch

    raise torch.OutOfMemoryError("HIP out of memory. Tried to allocate 12.00 GiB. GPU 0 has a total capacity")


@failure
def no_fork(config: Any) -> object:  # noqa: D103
    import errno

    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@failure
def host_memory_of_arrow(config: Any) -> object:  # noqa: D103
    import pyarrow

    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
    return pyarrow.allocate_buffer(16 << 30)


@failure
def nan_logits(config: Any) -> object:  # noqa: D103
    import torch

    return torch.distributions.Categorical(logits=torch.tensor([float("nan"), 1.0]))


@failure
def nan_loss(config: Any) -> object:  # noqa: D103
    raise ValueError("Loss is nan, stopping training")


@failure
def http_503(config: Any) -> object:  # noqa: D103
    return answered(503)


@failure
def no_tls(config: Any) -> object:  # noqa: D103
    return urllib.request.urlopen(answering(200).replace("http", "https"))


@failure
def no_answer(config: Any) -> object:  # noqa: D103
    with socket.create_server(("127.0.0.1", 0)) as server:
        return urllib.request.urlopen(f"http://127.0.0.1:{server.getsockname()[1]}/", timeout=1)


@failure
def gloo(config: Any) -> object:  # noqa: D103
    raise RuntimeError(
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:41234"
    )


@failure
def stale(config: Any) -> object:  # noqa: D103
    import errno

    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/nfs/ckpt/step-100")


@failure
def full_database(config: Any) -> object:  # noqa: D103
    import sqlite3

    with sqlite3.connect(scratch("a.db", b"")) as base:
        base.execute("pragma max_page_count = 2")
        base.execute("create table t (x)")
        return base.executemany("insert into t values (?)", [("x" * 4000,)] * 9)


@failure
def nvlink(config: Any) -> object:  # noqa: D103
    raise RuntimeError("CUDA error: uncorrectable NVLink error detected during the execution")


@failure
def nvml(config: Any) -> object:  # noqa: D103
    raise RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:963")


@failure
def another_code(config: Any) -> object:  # noqa: D103
    sys.exit(77)

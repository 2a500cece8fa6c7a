"""Programs that fail as machines do, written with those of `causes.fresh`."""

from __future__ import annotations

import errno
import os
import signal
import socket
import tempfile
import threading
from typing import Any

from causes.programs import answered, closed_port, failure, small_disk


# The network
@failure
def refused_requests(config: Any) -> object:  # noqa: D103
    import requests

    return requests.get(f"http://127.0.0.1:{closed_port()}/v1/models")


@failure
def cut_answer(config: Any) -> object:  # noqa: D103
    import requests

    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        peer, _ = server.accept()
        peer.recv(999)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\nhalf")
        peer.close()

    threading.Thread(target=answer, daemon=True).start()
    return requests.get(f"http://127.0.0.1:{server.getsockname()[1]}/")


@failure
def no_hub(config: Any) -> object:  # noqa: D103
    from huggingface_hub import hf_hub_download

    endpoint = f"http://127.0.0.1:{closed_port()}"
    return hf_hub_download("org/model", "config.json", endpoint=endpoint, cache_dir=tempfile.mkdtemp())


@failure
def too_many_requests(config: Any) -> object:  # noqa: D103
    return answered(429)


@failure
def infiniband(config: Any) -> object:  # noqa: D103
    raise RuntimeError(
        "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:275, remote process exited or there was "
        "a network error\nncclRemoteError: A call failed possibly due to a network error or a remote process "
        "exiting prematurely.\nLast error:\nNET/IB: Got completion from peer 10.0.0.2<45321> with status=12 "
        "opcode=0 len=0 vendor err 129 (Recv)"
    )


@failure
def watchdog(config: Any) -> object:  # noqa: D103
    raise RuntimeError(
        "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4711, OpType=ALLREDUCE, "
        "NumelIn=1048576, NumelOut=1048576, Timeout(ms)=600000) ran for 600123 milliseconds before timing "
        "out."
    )


# The disk
@failure
def small_disk_of_torch(config: Any) -> object:  # noqa: D103
    import torch

    torch.save({"weights": torch.ones(999_999)}, small_disk() / "checkpoint.pt")
    return None


@failure
def small_disk_of_arrow(config: Any) -> object:  # noqa: D103
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"x": [os.urandom(500) for _ in range(999)]})
    return pyarrow.parquet.write_table(table, small_disk() / "rows.parquet")


@failure
def small_disk_of_safetensors(config: Any) -> object:  # noqa: D103
    import numpy as np
    from safetensors.numpy import save_file

    return save_file({"weights": np.ones(999_999)}, small_disk() / "model.safetensors")


@failure
def read_only_mount(config: Any) -> object:  # noqa: D103
    return (small_disk(read_only=True) / "log.txt").write_text("step 1")


@failure
def no_mount(config: Any) -> object:  # noqa: D103
    raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), "/mnt/gcs/checkpoints/step-100")


@failure
def slow_bucket(config: Any) -> object:  # noqa: D103
    from botocore.exceptions import ClientError  # type: ignore[import-untyped]

    error = {"Error": {"Code": "SlowDown", "Message": "Please reduce your request rate."}}
    raise ClientError(error, "PutObject")


# The node
@failure
def other_driver(config: Any) -> object:  # noqa: D103
    raise RuntimeError("Failed to initialize NVML: Driver/library version mismatch")


@failure
def no_driver(config: Any) -> object:  # noqa: D103
    import ctypes

    return ctypes.CDLL("libcuda.so.1")


@failure
def gpu_off_the_bus(config: Any) -> object:  # noqa: D103
    raise type("NVMLError_GpuIsLost", (Exception,), {})("GPU is lost")


@failure
def unknown_cuda_error(config: Any) -> object:  # noqa: D103
    raise RuntimeError(
        "CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env "
        "variable CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero."
    )


# Nobody can know
@failure
def killed_loader(config: Any) -> object:  # noqa: D103
    import torch.utils.data

    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    return list(torch.utils.data.DataLoader(Rows(), num_workers=1))


@failure
def aborted(config: Any) -> object:  # noqa: D103
    os.abort()


@failure
def own_words(config: Any) -> object:  # noqa: D103
    raise RuntimeError("training did not succeed")

"""Programs whose failures look otherwise than one traceback of Python: groups, pools, other languages."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

from causes.programs import (
    closed_port,
    failure,
    in_task,
    noted,
    printed,
    python,
    ran,
    scratch,
    small_disk,
    terminated,
)

TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node=2"


# The user's config
@failure
def noted_setting(config: Any) -> object:  # noqa: D103
    import pydantic

    class Settings(pydantic.BaseModel):
        lr: float

    try:
        return Settings.model_validate({"lr": "fast"})
    except pydantic.ValidationError as error:
        noted(error, "while reading model.yaml\nof sweep 12", "see the handbook: settings")


# The user's data
@failure
def group_of_rows(config: Any) -> object:  # noqa: D103
    return in_task(Path("/data/rows/en.jsonl").read_text)


@failure
def pool_of_rows(config: Any) -> object:  # noqa: D103
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.map(json.loads, ['{"a": 1}', '{"a": '])


@failure
def chained_rows(config: Any) -> object:  # noqa: D103
    try:
        return json.loads('{"a": ')
    except json.JSONDecodeError as error:
        raise RuntimeError("the training set cannot be loaded") from error


@failure
def julia_file(config: Any) -> object:  # noqa: D103
    printed(
        'ERROR: LoadError: SystemError: opening file "train.csv": No such file or directory\nStacktrace:\n'
        "  [1] systemerror(p::String, errno::Int32; extrainfo::Nothing)\n    @ Base ./error.jl:176\n"
        "  [2] top-level scope\n    @ /work/train.jl:3\nin expression starting at /work/train.jl:3"
    )


@failure
def r_file(config: Any) -> object:  # noqa: D103
    printed(
        'Error in file(file, "rt") : cannot open the connection\nCalls: read.csv -> read.table -> file\n'
        'In addition: Warning message:\nIn file(file, "rt") :\n'
        "  cannot open file 'train.csv': No such file or directory\nExecution halted"
    )


@failure
def shell_file(config: Any) -> object:  # noqa: D103
    ran("bash", "-c", "set -e; wc -l /data/rows/en.jsonl; echo training")


# The user's code
@failure
def group_of_code(config: Any) -> object:  # noqa: D103
    return in_task(lambda: "1" + 1)  # type: ignore[operator]


@failure
def noted_code(config: Any) -> object:  # noqa: D103
    try:
        return {}["lr"]  # type: ignore[index]
    except KeyError as error:
        noted(error, "in step 12")


@failure
def torchrun_code(config: Any) -> object:  # noqa: D103
    python("train.py", "def main():\n    return [].size\n\nmain()\n", TORCHRUN)


@failure
def pytest_code(config: Any) -> object:  # noqa: D103
    python("test_model.py", "def test_step():\n    assert len(3) == 1\n", "-m pytest -p no:cacheprovider")


@failure
def syntax_caret(config: Any) -> object:  # noqa: D103
    python("train.py", "def main(:\n    return 1\n")


@failure
def rust_panic(config: Any) -> object:  # noqa: D103
    printed(
        "thread 'main' panicked at src/main.rs:14:21:\nindex out of bounds: the len is 3 but the index is 7\n"
        "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace",
        101,
    )


@failure
def device_assert_aborted(config: Any) -> object:  # noqa: D103
    terminated(
        "../aten/src/ATen/native/cuda/Indexing.cu:1290: indexSelectLargeIndex: block: [12,0,0], thread: "
        "[64,0,0] Assertion `srcIndex < srcSelectDimSize` failed.\n"
        "terminate called after throwing an instance of 'c10::Error'\n"
        "  what():  CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously "
        "reported at some other API call, so the stacktrace below might be incorrect."
    )


@failure
def cpp_out_of_range(config: Any) -> object:  # noqa: D103
    terminated(
        "terminate called after throwing an instance of 'std::out_of_range'\n"
        "  what():  vector::_M_range_check: __n (which is 7) >= this->size() (which is 3)"
    )


@failure
def julia_code(config: Any) -> object:  # noqa: D103
    printed(
        "ERROR: LoadError: UndefVarError: `lr` not defined\nStacktrace:\n [1] train()\n"
        "   @ Main /work/train.jl:7\nin expression starting at /work/train.jl:9"
    )


@failure
def r_code(config: Any) -> object:  # noqa: D103
    printed("Error in train(x) : object 'lr' not found\nCalls: train\nExecution halted")


# Memory
@failure
def group_of_gpu_memory(config: Any) -> object:  # noqa: D103
    def step() -> None:
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return in_task(step)


@failure
def terminated_gpu_memory(config: Any) -> object:  # noqa: D103
    terminated(
        "terminate called after throwing an instance of 'c10::OutOfMemoryError'\n"
        "  what():  CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
    )


@failure
def julia_gpu_memory(config: Any) -> object:  # noqa: D103
    printed(
        "ERROR: LoadError: Out of GPU memory trying to allocate 7.451 GiB\nEffective GPU memory usage: 99.1% "
        "(78.416 GiB/79.109 GiB)\nStacktrace:\n  [1] alloc\n    @ ~/.julia/packages/CUDA/src/pool.jl:398"
    )


def _much(size: int) -> int:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
    return len(bytearray(size))


@failure
def pool_of_memory(config: Any) -> object:  # noqa: D103
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.map(_much, [16 << 30])


@failure
def r_memory(config: Any) -> object:  # noqa: D103
    printed("Error: cannot allocate vector of size 74.5 Gb\nExecution halted")


@failure
def rust_memory(config: Any) -> object:  # noqa: D103
    terminated("memory allocation of 68719476736 bytes failed")


@failure
def java_memory(config: Any) -> object:  # noqa: D103
    printed(
        'Exception in thread "main" java.lang.OutOfMemoryError: Java heap space\n'
        "\tat java.base/java.util.Arrays.copyOf(Arrays.java:3537)\n\tat Train.main(Train.java:12)"
    )


# Numbers
@failure
def group_of_nan(config: Any) -> object:  # noqa: D103
    def step() -> None:
        raise FloatingPointError("the loss is nan at step 65")

    return in_task(step)


@failure
def noted_nan(config: Any) -> object:  # noqa: D103
    noted(FloatingPointError("the loss is nan"), "at step 65")


# The network
@failure
def group_of_refused(config: Any) -> object:  # noqa: D103
    import urllib.request

    return in_task(lambda: urllib.request.urlopen(f"http://127.0.0.1:{closed_port()}/"))


@failure
def watchdog_aborted(config: Any) -> object:  # noqa: D103
    terminated(
        "[rank3]:[E ProcessGroupNCCL.cpp:607] [Rank 3] Watchdog caught collective operation timeout: "
        "WorkNCCL(SeqNum=4711, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600123 milliseconds before "
        "timing out.\nterminate called after throwing an instance of 'c10::DistBackendError'\n"
        "  what():  [PG ID 0 PG GUID 0(default_pg) Rank 3] Process group watchdog thread terminated with "
        "exception: [Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4711)"
    )


@failure
def torchrun_refused(config: Any) -> object:  # noqa: D103
    text = f"import socket\n\nsocket.create_connection(('127.0.0.1', {closed_port()}))\n"
    python("train.py", text, TORCHRUN)


@failure
def rust_refused(config: Any) -> object:  # noqa: D103
    printed(
        "thread 'main' panicked at src/main.rs:9:40:\ncalled `Result::unwrap()` on an `Err` value: Os { "
        'code: 111, kind: ConnectionRefused, message: "Connection refused" }\nnote: run with'
        " `RUST_BACKTRACE=1` environment variable to display a backtrace",
        101,
    )


@failure
def curl_refused(config: Any) -> object:  # noqa: D103
    printed(f"curl: (7) Failed to connect to n2 port {closed_port()} after 0 ms: Connection refused", 7)


# The disk
@failure
def group_of_full_disk(config: Any) -> object:  # noqa: D103
    return in_task(lambda: (small_disk() / "checkpoint.bin").write_bytes(bytes(999_999)))


@failure
def shell_full_disk(config: Any) -> object:  # noqa: D103
    ran("bash", "-c", f"set -e; head -c 999999 /dev/zero > {scratch('a', b'')}; cp $_ {small_disk()}/b")


@failure
def rust_full_disk(config: Any) -> object:  # noqa: D103
    printed(
        "thread 'main' panicked at src/save.rs:31:10:\ncalled `Result::unwrap()` on an `Err` value: Os { "
        'code: 28, kind: StorageFull, message: "No space left on device" }',
        101,
    )


@failure
def cpp_full_disk(config: Any) -> object:  # noqa: D103
    terminated(
        "terminate called after throwing an instance of 'std::filesystem::__cxx11::filesystem_error'\n"
        "  what():  filesystem error: cannot copy file: No space left on device [model.bin] [/ckpt/model.bin]"
    )


# The node
@failure
def terminated_ecc(config: Any) -> object:  # noqa: D103
    terminated(
        "terminate called after throwing an instance of 'c10::Error'\n"
        "  what():  CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be "
        "asynchronously reported at some other API call, so the stacktrace below might be incorrect."
    )


@failure
def group_of_ecc(config: Any) -> object:  # noqa: D103
    def step() -> None:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

    return in_task(step)


# Nobody can know
@failure
def faulthandler_crash(config: Any) -> object:  # noqa: D103
    python("train.py", "import ctypes\n\nctypes.string_at(0)\n", "-X faulthandler")


@failure
def group_of_two(config: Any) -> object:  # noqa: D103
    raise ExceptionGroup("two tasks failed", [ConnectionResetError(104, "reset"), TypeError("no len()")])


@failure
def cpp_own_words(config: Any) -> object:  # noqa: D103
    terminated(
        "terminate called after throwing an instance of 'std::runtime_error'\n"
        "  what():  training did not succeed"
    )

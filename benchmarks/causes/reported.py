"""Failures in the form in which strangers reported them, in issues of public projects: held out.

The texts follow those reports, with other names and numbers. Each was written down with its cause before the
rules had judged any, and no rule is mended by them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

from causes.programs import failure, printed, scratch, terminated

BEGUN = "Traceback (most recent call last):\n"
LIB = "/opt/conda/lib/python3.10/site-packages"
CXX = "\nframe #0: c10::Error::Error() + 0x57 (0x7a7 in libc10.so)\nframe #1: <unknown function> + 0xd"


def traced(*lines: str) -> NoReturn:
    """Print a traceback of a script: frames as ``file function``, and at last the exception."""
    frames = [each.split() for each in lines[:-1]]
    text = "".join(
        f'  File "{file}", line 7, in {name}\n    {"raise error" if LIB in file else "step()"}\n'
        for file, name in frames
    )
    printed(f"{BEGUN}{text}{lines[-1]}")


# The user's config
@failure
def mpi_slots(config: Any) -> object:  # noqa: D103
    printed(
        "-" * 74 + "\nThere are not enough slots available in the system to satisfy the 8\nslots that were "
        "requested by the application:\n\n  ./train\n\nEither request fewer procs for your application, or "
        "make more slots\navailable for use.\n" + "-" * 74
    )


@failure
def batch_of_deepspeed(config: Any) -> object:  # noqa: D103
    traced(
        "train.py <module>",
        f"{LIB}/deepspeed/runtime/config.py _batch_assertion",
        "AssertionError: Check batch related parameters. train_batch_size is not equal to micro_batch_per_gpu"
        " * gradient_acc_step * world_size 16 != 2 * 1 * 4",
    )


@failure
def key_of_yacs(config: Any) -> object:  # noqa: D103
    traced(
        "tools/train_net.py setup",
        f"{LIB}/yacs/config.py _merge_a_into_b",
        "KeyError: 'Non-existent config key: SOLVER.LR'",
    )


@failure
def step_of_srun(config: Any) -> object:  # noqa: D103
    printed("srun: error: Unable to create step for job 4711: More processors requested than permitted")


@failure
def flag_of_absl(config: Any) -> object:  # noqa: D103
    printed(
        "FATAL Flags parsing error: Unknown command line flag 'learning_rte'. Did you mean: learning_rate ?\n"
        "Pass --helpshort or --helpfull to see help on flags."
    )


@failure
def flag_of_r(config: Any) -> object:  # noqa: D103
    printed(
        "Error in getopt(spec = spec, opt = args) : \n"
        '  long flag "rate" is invalid\nCalls: parse_args -> parse_options -> getopt_options -> getopt\n'
        "Execution halted"
    )


# The user's data
@failure
def snappy(config: Any) -> object:  # noqa: D103
    printed(
        f'{BEGUN}  File "{LIB}/datasets/builder.py", line 1853, in _prepare_split_single\n    for _, table in'
        ' generator:\n  File "pyarrow/_parquet.pyx", line 1621, in iter_batches\n  File "pyarrow/error.pxi", '
        "line 92, in pyarrow.lib.check_status\nOSError: Corrupt snappy compressed data.\n"
    )


@failure
def model_of_lightgbm(config: Any) -> object:  # noqa: D103
    print("[LightGBM] [Fatal] Model format error, expect a tree here. met <F0>", file=sys.stderr)
    traced(
        "train.py <module>",
        f"{LIB}/lightgbm/basic.py _safe_call",
        "lightgbm.basic.LightGBMError: Model format error, expect a tree here. met <F0>",
    )


@failure
def page_for_arrays(config: Any) -> object:  # noqa: D103
    import numpy as np

    return np.load(scratch("a.npy", b"<html>404</html>"))


@failure
def reads_of_samtools(config: Any) -> object:  # noqa: D103
    printed(
        "[E::bgzf_read_block] Failed to read BGZF block data at offset 1048576 expected 9000 bytes; hread "
        "returned 100\n[E::bgzf_read] Read block operation failed with error 4 after 0 of 4 bytes\n"
        "[main_samview] truncated file."
    )


@failure
def film_of_ffmpeg(config: Any) -> object:  # noqa: D103
    printed(
        "[mov,mp4,m4a,3gp,3g2,mj2 @ 0x5581] moov atom not found\n"
        "clip7.mp4: Invalid data found when processing input"
    )


@failure
def end_of_tar(config: Any) -> object:  # noqa: D103
    import io
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo("a.bin")
        entry.size = 9000
        archive.addfile(entry, io.BytesIO(bytes(9000)))
    path = scratch("a.tar", stream.getvalue()[:4000])
    with tarfile.open(path) as archive:
        archive.extractall(Path(path).parent, filter="data")
    return None


@failure
def rows_of_go(config: Any) -> object:  # noqa: D103
    printed(
        "panic: record on line 3: wrong number of fields\n\ngoroutine 1 [running]:\nmain.main()\n\t/w/main.go"
        ":22 +0x1a5\nexit status 2",
        2,
    )


@failure
def words_of_polars(config: Any) -> object:  # noqa: D103
    traced(
        "train.py <module>",
        f"{LIB}/polars/io/csv/functions.py read_csv",
        "polars.exceptions.ComputeError: could not parse `n/a` as dtype `i64` at column 'age' (column number "
        "2)",
    )


@failure
def rows_of_xgboost(config: Any) -> object:  # noqa: D103
    traced(
        "train.py <module>",
        f"{LIB}/xgboost/core.py _check_call",
        "xgboost.core.XGBoostError: [12:00:00] /workspace/src/data/data.cc:1104: Check failed: valid: Input "
        "data contains `inf` or a value too large, while `missing` is not set to `inf`",
    )


# The user's code
@failure
def kernel_of_triton(config: Any) -> object:  # noqa: D103
    printed(
        f'{BEGUN}  File "{LIB}/triton/compiler/code_generator.py", line 1114, in ast_to_ttir\n    raise\n'
        "triton.compiler.errors.CompilationError: at 10:15:\n    x = tl.load(ptr + offs)\n    y = x + bias\n"
        "            ^\nNameError('bias is not defined')"
    )


@failure
def graph_of_dynamo(config: Any) -> object:  # noqa: D103
    traced(
        "train.py <module>",
        f"{LIB}/torch/_dynamo/exc.py unimplemented",
        "torch._dynamo.exc.Unsupported: call_function BuiltinVariable(input) [] {}",
    )


@failure
def kernel_of_nvcc(config: Any) -> object:  # noqa: D103
    printed(
        'step.cu(12): error: identifier "weights" is undefined\n\n1 error detected in the compilation of '
        '"step.cu".\nmake: *** [Makefile:9: step.o] Error 2',
        2,
    )


@failure
def method_of_perl(config: Any) -> object:  # noqa: D103
    printed('Can\'t locate object method "step" via package "Model" at train.pl line 3.', 255)


@failure
def method_of_ruby(config: Any) -> object:  # noqa: D103
    printed(
        "train.rb:3:in `step': undefined method `size' for nil:NilClass (NoMethodError)\n"
        "\tfrom train.rb:7:in `<main>'"
    )


@failure
def index_of_lua(config: Any) -> object:  # noqa: D103
    printed(
        "lua: train.lua:3: attempt to index a nil value (global 'model')\nstack traceback:\n"
        "\ttrain.lua:3: in main chunk\n\t[C]: in ?"
    )


@failure
def stamped_code(config: Any) -> object:  # noqa: D103
    lines = [*BEGUN.splitlines(), '  File "train.py", line 9, in step', "    loss = model(batch)"]
    lines.append("TypeError: forward() missing 1 required positional argument: 'mask'")
    mark = "2026-04-29 06:01:{:02d}.977 [177/train/578 (pid 28936)] "
    printed("\n".join(mark.format(number) + line for number, line in enumerate(lines)))


# Memory
@failure
def gpu_memory_of_mxnet(config: Any) -> object:  # noqa: D103
    terminated(
        "terminate called after throwing an instance of 'dmlc::Error'\n  what():  [10:44:35] src/engine/./"
        "threaded_engine.h:359: [10:44:35] src/storage/./pooled_storage_manager.h:107: cudaMalloc failed: out"
        " of memory"
    )


@failure
def gpu_memory_of_ggml(config: Any) -> object:  # noqa: D103
    printed(
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 14481.04 MiB on device 0: cudaMalloc failed: "
        "out of memory\nalloc_tensor_range: failed to allocate CUDA0 buffer of size 15184\nllama_model_load: "
        "error loading model: unable to allocate CUDA0 buffer\nllama_model_load_from_file_impl: failed to "
        "load model\nmain: error: unable to load model"
    )


@failure
def gpu_memory_of_tensorview(config: Any) -> object:  # noqa: D103
    traced(
        "train.py <module>",
        f"{LIB}/spconv/pytorch/ops.py get_indice_pairs",
        "RuntimeError: TensorStorage /io/include/tensorview/tensor.h 168\ncuda failed with error 2 out of "
        "memory. use CUDA_LAUNCH_BLOCKING=1 to get correct traceback.",
    )


@failure
def gpu_memory_of_onnx(config: Any) -> object:  # noqa: D103
    traced(
        "train.py <module>",
        f"{LIB}/onnxruntime/capi/onnxruntime_inference_collection.py run",
        "onnxruntime.capi.onnxruntime_pybind11_state.Fail: [ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: "
        "out of memory ; GPU=0 ; hostname=n7 ; expr=cudaMalloc((void**)&p, size);",
    )


@failure
def gpu_memory_of_alpaka(config: Any) -> object:  # noqa: D103
    terminated(
        "terminate called after throwing an instance of 'CUDA::error'\n  what():  /scratch/thirdParty/"
        "mallocMC/SimpleCudaMalloc_impl.hpp(42):\nerror: out of memory\n"
    )


@failure
def memory_of_matlab(config: Any) -> object:  # noqa: D103
    printed('Out of memory. Type "help memory" for your options.\n\nError in train (line 12)')


@failure
def memory_of_spark(config: Any) -> object:  # noqa: D103
    printed(
        'Exception in thread "main" org.apache.spark.SparkException: Exception thrown in awaitResult: \n'
        "\tat org.apache.spark.util.ThreadUtils$.awaitResult(ThreadUtils.scala:301)\n"
        "Caused by: java.lang.OutOfMemoryError: GC overhead limit exceeded\n\tat java.util.Arrays.copyOf("
        "Arrays.java:3332)\n\t... 12 more"
    )


@failure
def memory_of_lmdb(config: Any) -> object:  # noqa: D103
    traced("train.py <module>", "lmdb.MemoryError: /data/train.lmdb: Cannot allocate memory")


@failure
def heap_of_haskell(config: Any) -> object:  # noqa: D103
    printed(
        "train: Heap exhausted;\ntrain: Current maximum heap size is 1073741824 bytes (1024 MB).\n"
        "train: Use `+RTS -M<size>' to increase it.",
        251,
    )


# Numbers
@failure
def loss_of_detectron(config: Any) -> object:  # noqa: D103
    traced(
        "tools/train_net.py <module>",
        f"{LIB}/detectron2/engine/train_loop.py _write_metrics",
        "FloatingPointError: Loss became infinite or NaN at iteration=659!\nloss_dict = {'loss_cls': nan}",
    )


@failure
def energy_of_gromacs(config: Any) -> object:  # noqa: D103
    printed(
        "-" * 55 + "\nProgram:     gmx mdrun, version 2023.3\nSource file: src/gromacs/mdlib/sim_util.cpp "
        "(line 553)\n\nFatal error:\nStep 100: The total potential energy is nan, which is not finite. The "
        "LJ "
        "and\nelectrostatic contributions to the energy are 1.2e+09 and nan, respectively.\n" + "-" * 55
    )

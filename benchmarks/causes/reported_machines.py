"""Programs that fail as machines do, written with those of `causes.reported`."""

from __future__ import annotations

import sys
from typing import Any

from causes.programs import failure, printed, terminated
from causes.reported import BEGUN, CXX, LIB, traced


# The network
@failure
def ucx_refused(config: Any) -> object:  # noqa: D103
    printed(
        "[1700554343.440877] [n1:7356 :0]            sock.c:323  UCX  ERROR   connect(fd=48, "
        "dest_addr=172.17."
        "0.1:42887) failed: Connection refused\n[n1:07356] pml_ucx.c:424  Error: ucp_ep_create(proc=3) "
        "failed: Destination is unreachable\n[n1:07356] pml_ucx.c:477  Error: Failed to resolve UCX endpoint "
        "for rank 3\n[n1:07356] *** An error occurred in MPI_Allgather\n[n1:07356] *** reported by process "
        "[1740308481,1]\n[n1:07356] *** on communicator MPI_COMM_WORLD\n[n1:07356] *** MPI_ERR_OTHER: known "
        "error not in list\n[n1:07356] *** MPI_ERRORS_ARE_FATAL (processes in this communicator will now "
        "abort,\n[n1:07356] ***    and potentially your MPI job)",
        16,
    )


@failure
def mpich_timed_out(config: Any) -> object:  # noqa: D103
    printed(
        "[1732873720.102385] [n2:889102:0]        ib_iface.c:1138 UCX  ERROR ibv_create_cq(cqe=256) failed: "
        "Connection timed out\nAbort(675407631) on node 0: Fatal error in internal_Init: Other MPI error, "
        "error stack:\ninternal_Init(48301)..........: MPI_Init(argc=(nil), argv=(nil)) failed\n"
        "MPIDI_UCX_init_world(260).....: \ninit_worker(38)...............:  ucx function returned with "
        "failed "
        "status(ucx_init.c 38 init_worker Input/output error)",
        15,
    )


@failure
def older_watchdog(config: Any) -> object:  # noqa: D103
    line = (
        "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1132079, OpType=ALLREDUCE, "
        "NumelIn=304640, NumelOut=304640, Timeout(ms)=1800000) ran for 1800035 milliseconds before timing "
        "out."
    )
    terminated(
        f"[E ProcessGroupNCCL.cpp:457] {line}\n[E ProcessGroupNCCL.cpp:477] To avoid data inconsistency, we "
        "are taking the entire process down.\nterminate called after throwing an instance of "
        f"'std::runtime_error'\n  what():  {line}"
    )


@failure
def endpoint_of_aws(config: Any) -> object:  # noqa: D103
    printed(
        'fatal error: Could not connect to the endpoint URL: "https://data.s3.eu-west-1.amazonaws.com/?list-'
        'type=2&prefix=train"'
    )


@failure
def rsync_host(config: Any) -> object:  # noqa: D103
    printed(
        "ssh: Could not resolve hostname n2: Temporary failure in name resolution\nrsync: connection "
        "unexpectedly closed (0 bytes received so far) [sender]\nrsync error: unexplained error (code 255) "
        "at "
        "io.c(232) [sender=3.2.7]",
        255,
    )


# The disk
@failure
def stack_of_hdf5(config: Any) -> object:  # noqa: D103
    printed(
        "HDF5-DIAG: Error detected in HDF5 (1.14.0) thread 0:\n  #000: H5D.c line 1390 in H5Dwrite(): can't "
        "synchronously write data\n    major: Dataset\n    minor: Write failed\n  #001: H5FDsec2.c line 846 "
        "in H5FD__sec2_write(): file write failed: time = Mon Jan  5 11:00:00 2026\n, filename = 'run7.h5', "
        "file descriptor = 22, errno = 28, error message = 'No space left on device', buf = 0x5581, total "
        "write size = 4194304\n    major: Low-level I/O\n    minor: Write failed"
    )


@failure
def stamped_disk(config: Any) -> object:  # noqa: D103
    text = (
        f'{BEGUN}  File "{LIB}/torch/serialization.py", line 604, in _save\n    zip_file.write_record(name, '
        "storage.data_ptr(), num_bytes)\nOSError: [Errno 28] No space left on device"
    )
    mark = "2026-04-29 06:01:12.977 [177/train/578 (pid 28936)] "
    printed("\n".join(mark + line for line in text.splitlines()))


@failure
def disk_of_pip(config: Any) -> object:  # noqa: D103
    printed(
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n\n"
        "[notice] A new release of pip is available: 24.0 -> 26.1\n"
        "[notice] To update, run: pip install --upgrade pip"
    )


@failure
def quota_of_rust(config: Any) -> object:  # noqa: D103
    printed(
        'Error: Io(Os { code: 122, kind: FilesystemQuotaExceeded, message: "Disk quota exceeded" })\n',
    )


@failure
def rank_of_lightning(config: Any) -> object:  # noqa: D103
    text = (
        f'{BEGUN}  File "/workspace/trainer.py", line 167, in perform_sampling\n    os.makedirs(folder)\n'
        '  File "/usr/lib/python3.10/os.py", line 225, in makedirs\n    mkdir(name, mode)\n'
        "OSError: [Errno 5] Input/output error: '/app/samples'"
    )
    bar = "Epoch 0:  16%|█▌        | 7395/45743 [13:13:43<68:36:00,  6.44s/it, train_loss: 0.084]"
    ranked = "\n".join(f"[rank3]: {line}" for line in text.splitlines())
    printed(
        f"{bar}{ranked}\n[rank: 3] Child process with PID 170 terminated with code 1. Forcefully terminating "
        "all other processes to avoid zombies 🧟"
    )


# The node
@failure
def ecc_of_old_torch(config: Any) -> object:  # noqa: D103
    traced(
        "train.py <module>",
        f"{LIB}/torch/tensor.py backward",
        "RuntimeError: cuda runtime error (39) : uncorrectable ECC error encountered at /pytorch/aten/src/THC"
        "/THCCachingHostAllocator.cpp:265",
    )


@failure
def ecc_in_watchdog(config: Any) -> object:  # noqa: D103
    text = (
        "[Rank 1] NCCL watchdog thread terminated with exception: CUDA error: uncorrectable ECC error "
        "encountered\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
        f"stacktrace below might be incorrect.\n\nException raised from c10_cuda_check_implementation{CXX}"
    )
    terminated(
        f"[E ProcessGroupNCCL.cpp:916] {text}\nterminate called after throwing an instance of "
        f"'std::runtime_error'\n  what():  {text}"
    )


@failure
def driver_of_tensorflow(config: Any) -> object:  # noqa: D103
    terminated(
        "2026-01-05 11:00:00.123456: F external/local_xla/xla/stream_executor/cuda/cuda_diagnostics.cc:152] "
        "failed call to cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: system has unsupported display driver / "
        "cuda driver combination"
    )


@failure
def container_of_nvidia(config: Any) -> object:  # noqa: D103
    printed(
        "docker: Error response from daemon: failed to create task for container: failed to create shim task:"
        " OCI runtime create failed: runc create failed: unable to start container process: error during "
        "container init: error running hook #0: nvidia-container-cli: initialization error: nvml error: "
        "driver not loaded: unknown.\n\nRun 'docker run --help' for more information",
        125,
    )


# Nobody can know
@failure
def killed_in_script(config: Any) -> object:  # noqa: D103
    printed("train.sh: line 3:  4711 Killed                  python train.py", 137)


@failure
def fault_of_rocm(config: Any) -> object:  # noqa: D103
    terminated(
        "Memory access fault by GPU node-1 (Agent handle: 0x5581) on address 0x7f10. Reason: Page not present"
        " or supervisor privilege."
    )


@failure
def address_of_jax(config: Any) -> object:  # noqa: D103
    traced(
        "train.py <module>",
        f"{LIB}/jax/_src/array.py block_until_ready",
        "jaxlib.xla_extension.XlaRuntimeError: INTERNAL: Failed to synchronize: "
        "CUDA_ERROR_ILLEGAL_ADDRESS: an"
        " illegal memory access was encountered",
    )


@failure
def broken_pool(config: Any) -> object:  # noqa: D103
    print("loading rows", file=sys.stderr)
    traced(
        "train.py <module>",
        "/usr/lib/python3.11/concurrent/futures/_base.py result",
        "concurrent.futures.process.BrokenProcessPool: A process in the process pool was terminated abruptly "
        "while the future was running or pending.",
    )

"""Programs that fail as machines do, written with those of `causes.apart`."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

from causes.apart import GO, JAVA, JULIA, in_executor, spawned
from causes.programs import closed_port, failure, in_task, noted, printed, python, ran, small_disk, terminated


# The network
@failure
def nested_group_of_reset(config: Any) -> object:  # noqa: D103
    async def step() -> None:
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    async def inner() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(step())
            group.create_task(asyncio.sleep(9))

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(inner())

    return asyncio.run(main())


@failure
def spawned_refused(config: Any) -> object:  # noqa: D103
    return spawned(f"import socket; socket.create_connection(('127.0.0.1', {closed_port()}))")


@failure
def go_refused(config: Any) -> object:  # noqa: D103
    printed("panic: dial tcp 10.0.0.2:29500: connect: connection refused" + GO, 2)


@failure
def julia_refused(config: Any) -> object:  # noqa: D103
    printed("ERROR: LoadError: IOError: connect: connection refused (ECONNREFUSED)" + JULIA)


@failure
def ssh_timed_out(config: Any) -> object:  # noqa: D103
    printed("ssh: connect to host n2 port 22: Connection timed out", 255)


@failure
def git_host(config: Any) -> object:  # noqa: D103
    printed(
        "fatal: unable to access 'https://huggingface.co/org/model/': Could not resolve host: huggingface.co",
        128,
    )


@failure
def java_refused(config: Any) -> object:  # noqa: D103
    printed('Exception in thread "main" java.net.ConnectException: Connection refused' + JAVA)


@failure
def nccl_aborted(config: Any) -> object:  # noqa: D103
    terminated(
        "terminate called after throwing an instance of 'c10::DistBackendError'\n  what():  NCCL error: "
        "remote process exited or there was a network error, NCCL version 2.21.5\nncclRemoteError: A call "
        "failed possibly due to a network error or a remote process exiting prematurely."
    )


# The disk
@failure
def executor_of_full_disk(config: Any) -> object:  # noqa: D103
    return in_executor((small_disk() / "rows.bin").write_bytes, bytes(999_999))


@failure
def julia_quota(config: Any) -> object:  # noqa: D103
    printed("ERROR: LoadError: SystemError: write: Disk quota exceeded" + JULIA)


@failure
def r_disk(config: Any) -> object:  # noqa: D103
    printed(
        'Error in saveRDS(model, "model.rds") : error writing to connection\nIn addition: Warning message:\n'
        'In saveRDS(model, "model.rds") :\n  problem writing to connection: No space left on device\n'
        "Execution halted"
    )


@failure
def go_read_only(config: Any) -> object:  # noqa: D103
    printed("panic: open /ckpt/step-100: read-only file system" + GO, 2)


@failure
def shell_tee(config: Any) -> object:  # noqa: D103
    ran("bash", "-c", f"set -eo pipefail; head -c 999999 /dev/zero | tee {small_disk()}/log > /dev/null")


@failure
def java_disk(config: Any) -> object:  # noqa: D103
    printed('Exception in thread "main" java.io.IOException: No space left on device' + JAVA)


@failure
def noted_stale(config: Any) -> object:  # noqa: D103
    noted(OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/nfs/ckpt/step-100"), "while saving step 100")


# The node
@failure
def spawned_ecc(config: Any) -> object:  # noqa: D103
    return spawned("raise RuntimeError('CUDA error: uncorrectable ECC error encountered')")


@failure
def cuda_check_of_ecc(config: Any) -> object:  # noqa: D103
    printed('CUDA error at train.cu:77 code=214(cudaErrorECCUncorrectable) "cudaDeviceSynchronize()"')


@failure
def lost_in_shell(config: Any) -> object:  # noqa: D103
    printed(
        "Unable to determine the device handle for GPU 0000:3D:00.0: GPU is lost.  Reboot the system to "
        "recover this GPU",
        15,
    )


# Nobody can know
@failure
def faulthandler_abort(config: Any) -> object:  # noqa: D103
    python("train.py", "import os\n\nos.abort()\n", "-X faulthandler")


@failure
def julia_own_words(config: Any) -> object:  # noqa: D103
    printed("ERROR: LoadError: training did not succeed" + JULIA)


@failure
def group_of_own_words(config: Any) -> object:  # noqa: D103
    def step() -> None:
        raise RuntimeError("training did not succeed")

    return in_task(step)


@failure
def go_own_words(config: Any) -> object:  # noqa: D103
    printed("panic: training did not succeed" + GO, 2)

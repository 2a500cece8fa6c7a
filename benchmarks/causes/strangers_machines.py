"""Programs that fail as machines do, written with those of `causes.strangers`."""

from __future__ import annotations

import sys
from typing import Any

from causes.programs import failure, printed, terminated
from causes.reported import BEGUN, LIB, traced


# Memory
@failure
def gpu_memory_of_ray_train(config: Any) -> object:  # noqa: D103
    mark = "(RayTrainWorker pid=1234, ip=10.0.0.2) "
    inner = (
        f'{BEGUN}  File "train.py", line 9, in step\n    loss.backward()\ntorch.OutOfMemoryError: CUDA out '
        f"of "
        "memory. Tried to allocate 2.00 GiB."
    )
    print("\n".join(mark + line for line in inner.splitlines()), file=sys.stderr)
    traced(
        "launch.py main",
        f"{LIB}/ray/train/base_trainer.py fit",
        "ray.train.base_trainer.TrainingFailedError: The Ray Train run failed. Please inspect the previous "
        "error messages for a cause. After fixing the issue, you can restart the run.",
    )


@failure
def gpu_memory_of_paddle(config: Any) -> object:  # noqa: D103
    printed(
        f"{'-' * 22}\nError Message Summary:\n{'-' * 22}\nResourceExhaustedError: \n\nOut of memory error "
        f"on GPU "
        "0. Cannot allocate 1.000000GB memory on GPU 0, 15.700000GB memory has been allocated and available "
        "memory is only 80.000000MB.\n"
    )


@failure
def gpu_memory_of_numba(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/numba/cuda/cudadrv/driver.py _check_cuda_python_error",
        "numba.cuda.cudadrv.driver.CudaAPIError: [2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY",
    )


@failure
def memory_of_dask(config: Any) -> object:  # noqa: D103
    print(
        "distributed.nanny.memory - WARNING - Worker tcp://127.0.0.1:4711 (pid=12) exceeded 95% memory "
        "budget. "
        "Restarting...",
        file=sys.stderr,
    )
    traced(
        "train.py main",
        f"{LIB}/distributed/client.py _gather",
        "distributed.scheduler.KilledWorker: Attempted to run task 'load-7' on 4 different workers, but all "
        "those workers died while running it.",
    )


@failure
def memory_of_pyspark(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/py4j/protocol.py get_return_value",
        "py4j.protocol.Py4JJavaError: An error occurred while calling o46.collect.\n: "
        "java.lang.OutOfMemoryError"
        ": Java heap space\n\tat java.util.Arrays.copyOf(Arrays.java:3332)",
    )


# Numbers
@failure
def loss_of_lightning(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/pytorch_lightning/trainer/training_tricks.py detect_nan_tensors",
        "ValueError: The loss returned in `training_step` is nan or inf.",
    )


# The network
@failure
def target_of_hydra(config: Any) -> object:  # noqa: D103
    printed(
        "Error executing job with overrides: ['method=merge']\nError in call to target 'datasets.load."
        "load_dataset':\nConnectionError(\"Couldn't reach 'org/set' on the Hub "
        '(ConnectionError)")\nfull_key: '
        "test_datasets.set\n\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."
    )


@failure
def cut_download(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/huggingface_hub/file_download.py http_get",
        "OSError: Consistency check failed: file should be of size 4265380512 but has size 1123456 (model."
        "safetensors).\nWe are sorry for the inconvenience. Please retry with `force_download=True`.",
    )


@failure
def store_of_elastic(config: Any) -> object:  # noqa: D103
    traced(
        "run.py main",
        f"{LIB}/torch/distributed/elastic/rendezvous/c10d_rendezvous_backend.py _call_store",
        "torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The connection to the C10d "
        "store "
        "has failed. See inner exception for details.",
    )


@failure
def id_of_nccl(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/torch/distributed/distributed_c10d.py barrier",
        "RuntimeError: [1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d "
        "key-value store by key '0', but store->get('0') got error: Connection reset by peer",
    )


@failure
def objects_of_lfs(config: Any) -> object:  # noqa: D103
    printed(
        'batch response: Post "https://github.com/org/model.git/info/lfs/objects/batch": dial tcp: lookup '
        "github.com: no such host\nerror: failed to fetch some objects from "
        "'https://github.com/org/model.git/info/lfs'",
        2,
    )


@failure
def promise_of_node(config: Any) -> object:  # noqa: D103
    printed(
        "node:internal/deps/undici/undici:12500\n    Error.captureStackTrace(err);\n          "
        "^\n\nTypeError: "
        "fetch failed\n    at node:internal/deps/undici/undici:12500:13 {\n  [cause]: Error: connect "
        "ECONNREFUSED 127.0.0.1:8080\n      at TCPConnectWrap.afterConnect (node:net:1595:16) {\n    errno: "
        "-111,\n    code: 'ECONNREFUSED'\n  }\n}\n\nNode.js v20.11.0"
    )


# The disk
@failure
def events_of_tensorboard(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/tensorflow/python/lib/io/file_io.py append",
        "tensorflow.python.framework.errors_impl.ResourceExhaustedError: ./runs/events.out.tfevents.1; No "
        "space"
        " left on device",
    )


@failure
def tasks_of_joblib(config: Any) -> object:  # noqa: D103
    printed(
        'joblib.externals.loky.process_executor._RemoteTraceback: \n"""\n'
        f'{BEGUN}  File "{LIB}/joblib/_memmapping_reducer.py", line 7, in __call__\n    dump(a, filename)\n'
        f'OSError: [Errno 28] No space left on device\n"""\n\n'
        "The above exception was the direct cause of the following exception:\n\n"
        f'{BEGUN}  File "train.py", line 7, in main\n    search.fit(x, y)\n'
        f'  File "{LIB}/joblib/parallel.py", line 7, in retrieve\n    raise error\n'
        "_pickle.PicklingError: Could not pickle the task to send to the workers."
    )


@failure
def layers_of_apptainer(config: Any) -> object:  # noqa: D103
    printed(
        "INFO:    Starting build...\nFATAL:   While making image from oci registry: error fetching image to "
        "cache: while building SIF from layers: packer failed to pack: write "
        "/tmp/build-temp-1/rootfs/lib.so: "
        "no space left on device",
        255,
    )


# The node
@failure
def script_of_slurmd(config: Any) -> object:  # noqa: D103
    printed("slurmstepd: error: execve(): /tmp/slurmd/job00089/slurm_script: No such file or directory")


@failure
def credential_of_slurm(config: Any) -> object:  # noqa: D103
    printed("srun: error: Task launch for StepId=36.0 failed on node cn131: Job credential expired")


@failure
def ecc_under_nccl(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/torch/distributed/distributed_c10d.py all_reduce",
        "torch.distributed.DistBackendError: NCCL error in: "
        "../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp"
        ":1970, unhandled cuda error, NCCL version 2.21.5\nncclUnhandledCudaError: Call to CUDA function "
        "failed."
        "\nLast error:\nCuda failure 'uncorrectable ECC error encountered'",
    )


# Nobody can know
@failure
def worker_gone(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/torch/utils/data/dataloader.py _try_get_data",
        "RuntimeError: DataLoader worker (pid(s) 4743) exited unexpectedly",
    )


@failure
def halted_tpu(config: Any) -> object:  # noqa: D103
    terminated(
        "F0000 00:00:1716973077.466057    9049 pjrt_computation_client.cc:487] Non-OK-status: status status: "
        "INTERNAL: Accelerator device halted prematurely, perhaps due to an on-device check-failure."
    )


@failure
def worker_of_ray_gone(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/ray/_private/worker.py get_objects",
        "ray.exceptions.WorkerCrashedError: The worker died unexpectedly while executing this task. Check "
        "python-core-worker-*.log files for more information.",
    )

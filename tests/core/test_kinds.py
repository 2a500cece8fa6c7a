"""Kinds of failures as frameworks, launchers and other languages report them, one example for each."""

from __future__ import annotations

import time

import pytest

from orchestrator.core.causes import cause_of
from orchestrator.core.exits import cause_of_command, cause_of_exit, cause_of_raised
from orchestrator.core.failure import Cause
from orchestrator.core.tracebacks import Raised, exception_in, lines_of
from tests.core.test_failure import DURING, OOM, TRACEBACK, raised

PYX = (
    TRACEBACK
    + '  File "h5py/_objects.pyx", line 54, in h5py._objects.wrapper\n  File "h5py/h5d.pyx", line 1, in x\n'
)
GO = "\n\ngoroutine 1 [running]:\nmain.main()\n"
NODE = "\n    at f (/app/x.js:1:1)\n\nNode.js v20.1.0"
WATCHDOG = (
    "terminate called after throwing an instance of 'c10::DistBackendError'\n  what():  [PG ID 0 Rank 1] "
    "Process group watchdog thread terminated with exception: "
)
HYDRA = "\n\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."
TF = "tensorflow.python.framework.errors_impl."
KEY = f"{TRACEBACK}KeyError: 'lr'"
BAR = "\r 10%|█         | 1/10 [00:01<00:09,  1.00s/it]"


def before_each(mark: str, text: str) -> str:
    """Return a text with a mark before each line, in which ``{}`` is the line's number."""
    return "".join(f"{mark.format(number)}{line}\n" for number, line in enumerate(text.splitlines()))


KINDS = {
    # what a runtime of GPUs reports, whoever prints it
    "a symbol of cuda": (1, 'CUDA error at a.cu:7 code=2(cudaErrorMemoryAllocation) "f()"', Cause.OOM_GPU),
    "a broken gpu": (1, "x: code=214(cudaErrorECCUncorrectable)", Cause.BAD_NODE),
    "a quoted symbol": (1, "x: no test for 'cudaErrorECCUncorrectable'", Cause.UNKNOWN),
    "no handle": (15, "Unable to determine the device handle for GPU 0000:3D:00.0: Unknown "
                      "Error", Cause.BAD_NODE),
    "an old driver": (1, raised("RuntimeError: The NVIDIA driver on your system is too old"), Cause.BAD_NODE),
    "an old torch": (1, raised("RuntimeError: cuda runtime error (2) : out of memory at "
                        "/x/y.cpp:1"), Cause.OOM_GPU),
    "a container": (125, "docker: x: nvidia-container-cli: initialization error: nvml error: driver not "
                        "loaded",
                    Cause.BAD_NODE),
    "a mistake's words": (1, raised("RuntimeError: size mismatch: read 10 of 20 bytes: Input/output error"),
                          Cause.STORAGE),
    "an import": (1, raised("ImportError: x: [Errno 5] Input/output error"), Cause.STORAGE),
    "quoted words": (1, raised("ValueError: expected a name, got 'No space left on device'"), Cause.CODE),
    "triton": (1, raised("RuntimeError: Triton Error [CUDA]: out of memory"), Cause.OOM_GPU),
    "a library's words": (1, raised("RuntimeError: x.h 168\ncuda failed with error 2 out of memory",
         "x/y.py f"),
                          Cause.OOM_GPU),
    "cuda in C++": (-6, "terminate called after throwing an instance of 'dmlc::Error'\n  what():  "
                        "[10:44:35] a.h:1: "
                        "cudaMalloc failed: out of memory", Cause.OOM_GPU),
    # an error that torch hands on
    "a watchdog's own": (-6, f"{WATCHDOG}[Rank 1] Watchdog caught collective operation timeout: "
                        f"x", Cause.COMMUNICATION),
    "a gpu's": (-6, f"{WATCHDOG}CUDA error: uncorrectable ECC error encountered", Cause.BAD_NODE),
    "nobody's": (-6, f"{WATCHDOG}CUDA error: an illegal memory access was encountered", Cause.UNKNOWN),
    "a compiler's": (1, raised("torch._dynamo.exc.BackendCompilerFailed: backend='inductor' "
                        "raised:\nMemoryError: x"),
                     Cause.OOM_HOST),
    # classes of status
    "tensorflow": (1, raised(f"{TF}ResourceExhaustedError: OOM when allocating x on "
                        f"device:GPU:0"), Cause.OOM_GPU),
    "tensorflow's host": (1, raised(f"{TF}ResourceExhaustedError: OOM when allocating x on device:CPU:0"),
                          Cause.OOM_HOST),
    "xla": (1, raised("jaxlib.XlaRuntimeError: DEADLINE_EXCEEDED: Barrier timed out."), Cause.COMMUNICATION),
    "grpc": (1, raised("grpc._channel._InactiveRpcError: <_InactiveRpcError of RPC that terminated "
                       "with:\n\tstatus "
                       "= StatusCode.UNAVAILABLE"), Cause.COMMUNICATION),
    "an API": (1, raised("openai.AuthenticationError: Error code: 401 - {}"), Cause.CONFIG),
    # other languages
    "go, a mistake": (2, "panic: runtime error: index out of range [7] with length 3" + GO, Cause.CODE),
    "go, a disk": (2, "panic: open /x: read-only file system" + GO, Cause.STORAGE),
    "go, memory": (2, "fatal error: runtime: out of memory\n\nruntime stack:" + GO, Cause.OOM_HOST),
    "go, own words": (2, "panic: it failed" + GO, Cause.UNKNOWN),
    "go, its logger": (1, "2026/01/02 15:04:05 dial tcp 10.0.0.1:443: i/o timeout", Cause.COMMUNICATION),
    "node, a mistake": (1, "TypeError: x is not a function" + NODE, Cause.CODE),
    "node, data": (1, "SyntaxError: Unexpected token < in JSON at position 0" + NODE, Cause.DATA),
    "node, a disk": (1, "Error: ENOSPC: no space left on device, write" + NODE, Cause.STORAGE),
    "node, memory": (134, "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of "
                        "memory\n"
                          + " 1: 0xb0 node\n" * 12, Cause.OOM_HOST),
    "rust, an error": (1, "Error: cannot save\n\nCaused by:\n    No space left on device (os error "
                        "28)", Cause.STORAGE),
    "rust, data": (101, "thread 'main' panicked at src/a.rs:1:2:\nan `Err` value: Error "
                        "{ kind: InvalidData }",
                   Cause.DATA),
    "java, the root": (1, 'Exception in thread "main" org.x.Failed: no' + "\n\tat A.b(A.java:1)" * 12
                       + "\nCaused by: java.io.IOException: No space left on device\n\t... 3 "
                        "more", Cause.STORAGE),
    "julia, the root": (1, "ERROR: LoadError: TaskFailedException\n    nested task error: BoundsError: "
                        "x\nStacktrace:",
                        Cause.CODE),
    "julia, data": (1, 'ERROR: ArgumentError: "a.csv" is not a valid file\nStacktrace:', Cause.DATA),
    "r, data": (1, "Error: lexical error: invalid char in json text.\nExecution halted", Cause.DATA),
    "r, an option": (1, 'Error in getopt(x) : \n  long flag "rate" is invalid\nExecution '
                        'halted', Cause.CONFIG),
    "perl": (255, 'Can\'t locate object method "step" via package "M" at a.pl line 3.', Cause.CODE),
    "ruby": (1, "a.rb:3:in `f': undefined method `size' for nil (NoMethodError)", Cause.CODE),
    "lua": (1, "lua: a.lua:3: attempt to index a nil value\nstack traceback:", Cause.CODE),
    "fortran": (2, "Fortran runtime error: End of file", Cause.DATA),
    "c, an assertion": (134, "train: a.cpp:4: void f(int): Assertion `i < n' failed.", Cause.CODE),
    "a compiler": (2, 'a.cu(12): error: identifier "w" is undefined\nmake: *** [Makefile:9: a.o] Error '
                      '2', Cause.CODE),
    "hdf5": (1, "HDF5-DIAG: Error detected in HDF5 (1.14.0):\n  #000: x: errno = 28, error message = 'No "
                "space left "
                "on device'", Cause.STORAGE),
    # data and options
    "an archive": (2, "gzip: stdin: not in gzip format\ntar: Child returned status 1\ntar: Error is not "
                      "recoverable: "
                      "exiting now", Cause.DATA),
    "a disk beside data": (1, "tar: a.tgz: truncated archive: No space left on device", Cause.STORAGE),
    "malloc's words": (1, "malloc(): corrupted top size", Cause.UNKNOWN),
    "serde": (1, raised("Exception: missing field `model` at line 3 column 1", "tokenizers/x.py "
                        "f"), Cause.DATA),
    "a reader of json": (1, raised("ValueError: Expected object or value", "pandas/io/json/_json.py "
                        "read"), Cause.DATA),
    "rows with nan": (1, raised("ValueError: Input data contains `inf`", "xgboost/core.py f"), Cause.DATA),
    "clap": (2, "error: invalid value 'x' for '--opt <O>'\n\nFor more information, try "
                "'--help'.", Cause.CONFIG),
    "getopt": (1, "ls: unrecognized option '--rate=2'\nTry 'ls --help' for more information.", Cause.CONFIG),
    "absl": (1, "FATAL Flags parsing error: Unknown command line flag 'x'. Did you mean: y ?\nPass "
                "--helpshort to see",
             Cause.CONFIG),
    "no option": (1, "invalid value found for metric loss\ngoing on", Cause.UNKNOWN),
    "hydra": (1, f"Could not override 'rate'.\nKey 'rate' is not in struct{HYDRA}", Cause.CONFIG),
    "hydra's job": (1, f"Error executing job with overrides: []\n{KEY}{HYDRA}", Cause.CODE),
    "a module of settings": (1, raised("AssertionError: batch sizes", "deepspeed/runtime/config.py "
                        "f"), Cause.CONFIG),
    "a refused step": (1, "srun: error: Unable to create step for job 1: More processors requested than "
                        "permitted",
                       Cause.CONFIG),
    # the network
    "git": (128, "fatal: unable to access 'https://x/': Could not resolve host: x", Cause.COMMUNICATION),
    "orte": (205, "ORTE has lost communication with a remote daemon.\n\n  HNP: on node "
                  "n1", Cause.COMMUNICATION),
    "ucx": (16, "[1.2] [n1:7] sock.c:3  UCX  ERROR failed to create an endpoint: unreachable\n[n1:07] *** "
                "An error occurred",
            Cause.COMMUNICATION),
    "an address": (1, raised("RuntimeError: failed to bind to [::]:29500 (errno: 98 - Address already in "
                        "use)",
                             "torch/x.py f"), Cause.COMMUNICATION),
    # compiled code, launchers and terminals
    "cython": (1, PYX + "OSError: Can't write (errno = 5, error message = 'Input/output "
                        "error')", Cause.STORAGE),
    "cython's data": (1, PYX + "OSError: Unable to open file (truncated file: eof = 96)", Cause.DATA),
    "ray's mark": (1, before_each("(train pid=12, ip=10.0.0.2) ", KEY), Cause.CODE),
    "pdsh's mark": (1, before_each("worker-0: ", KEY) + "worker-0: ssh exited with exit code "
                        "1\n", Cause.CODE),
    "a time": (1, before_each("2026-01-02 10:00:{:02d},123 ERROR ", f"{TRACEBACK}{OOM}"), Cause.OOM_GPU),
    "loguru": (1, TRACEBACK.replace("  File", "> File") + "ZeroDivisionError: division by zero", Cause.CODE),
    "a bar before": (1, f"{BAR}{KEY}", Cause.CODE),
    "a bar behind": (1, f"cp: error writing 'x': No space left on device{BAR}\n{BAR}\n", Cause.STORAGE),
    "a tracker behind": (1, "cp: writing: No space left on device\n" + "wandb: View "
                        "run\n" * 20, Cause.STORAGE),
    "a cursor": (1, f"\x1b[2K\x1b[1G{KEY}\x1b]0;x\x07", Cause.CODE),
    "a pointer above": (1, before_each("(Core pid=9) ERROR 11:00:{:02d} ", f"{TRACEBACK}{OOM}")
                        + raised("RuntimeError: it failed. See root cause above.", "vllm/x.py "
                        "f"), Cause.OOM_GPU),
    "killed by slurm": (137, "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0.", Cause.OOM_HOST),
    "out of time": (143, "slurmstepd: error: *** STEP 1.0 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT "
                        "***", Cause.TIMEOUT),
    "preempted": (143, "slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT 2026 DUE TO PREEMPTION "
                       "***", Cause.PREEMPTED),
    "a node's end": (143, "slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT 2026 DUE TO NODE FAILURE "
                        "***", Cause.NODE_LOST),
    "srun's memory": (1, "srun: error: n1: task 0: Out Of Memory", Cause.OOM_HOST),
    "the kernel's": (137, "[9.1] Memory cgroup out of memory: Killed process 7 (python)", Cause.OOM_HOST),
    "libc++": (134, "libc++abi: terminating due to uncaught exception of type std::out_of_range: "
                    "x", Cause.CODE),
    ".net": (134, "Unhandled exception. System.NullReferenceException: x\n   at A.B()", Cause.CODE),
    "rust, memory": (134, "memory allocation of 8 bytes failed", Cause.OOM_HOST),
    "slots": (1, "There are not enough slots available in the system to satisfy the 4 slots", Cause.CONFIG),
    "no driver": (9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA "
                     "driver.", Cause.BAD_NODE),
    "xid": (1, "NVRM: Xid (PCI:0000:3d:00): 79, pid=7", Cause.BAD_NODE),
    "an image": (125, "docker: Error response from daemon: pull access denied for x", Cause.CONFIG),
    "shared memory": (1, raised("RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error. "
                        "It is possible "
                                "that dataloader's workers are out of shared memory."), Cause.OOM_HOST),
    "a loss scale": (1, raised("Exception: Current loss scale already at minimum - cannot decrease",
         "deepspeed/x.py f"),
                     Cause.NAN),
    "killed after words": (137, "x: connect: Connection refused", Cause.UNKNOWN),
    # what no program ends by
    "a warning": (1, "tar: warning: truncated file names", Cause.UNKNOWN),
    "a line of nccl": (1, "n1:1:1 [0] NCCL INFO NVML was found", Cause.UNKNOWN),
    "a time and a notice": (1, "2026-01-02 10:00:00 INFO retry: Connection refused", Cause.UNKNOWN),
    "an error in settings' own code": (1, raised("RuntimeError: it failed", "x/config.py f"), Cause.UNKNOWN),
    # one class for several causes
    "nccl's gpu": (1, raised("torch.distributed.DistBackendError: NCCL error in: x, unhandled cuda "
                        "error\nCuda failure "
                             "'uncorrectable ECC error encountered'"), Cause.BAD_NODE),
    "nccl's memory": (1, raised("torch.distributed.DistBackendError: NCCL error in: x\nCuda failure 2 'out "
                        "of memory'"),
                      Cause.OOM_GPU),
    "nccl's use": (1, raised("torch.distributed.DistBackendError: NCCL error in: x\nDuplicate GPU detected"),
                   Cause.UNKNOWN),
    "tensorflow's disk": (1, raised(f"{TF}ResourceExhaustedError: ./a; No space left on "
                        f"device"), Cause.STORAGE),
    "pickle's code": (1, raised("_pickle.PicklingError: Can't pickle <function f>",
         "x/y.py dump"), Cause.CODE),
    "no such group": (1, PYX + 'KeyError: "Unable to open object (object \'x\' doesn\'t exist)"', Cause.DATA),
    "a file's size": (1, raised("RuntimeError: Internal: a.cc(1) [model_proto->ParseFromArray(x.data(), "
                        "x.size())]",
                                "sentencepiece/__init__.py f"), Cause.DATA),
    "checks of infinities": (1, raised("AssertionError: No inf checks were recorded", "torch/amp/x.py "
                        "step"), Cause.CODE),
    "py4j": (1, raised("py4j.protocol.Py4JJavaError: An error occurred while calling o4.collect.\n: "
                       "java.lang.OutOfMemoryError: Java heap space"), Cause.OOM_HOST),
    "hydra's target": (1, "Error executing job with overrides: []\nError in call to target "
                        "'x.y':\nConnectionError("
                          f'"Couldn\'t reach it")\nfull_key: x{HYDRA}', Cause.COMMUNICATION),
    "a previous error": (1, before_each("(W pid=1) ", f"{TRACEBACK}{OOM}") + raised(
        "ray.x.TrainingFailedError: The run failed. Please inspect the previous error messages for a "
        "cause."), Cause.OOM_GPU),
    "a printed status": (1, "ServiceException: 401 Anonymous caller does not have access", Cause.CONFIG),
    "a script's printed status": (1, "ServiceException: 503 Backend Error\n" + raised(
        "subprocess.CalledProcessError: Command 'x' returned non-zero exit status 1."), Cause.COMMUNICATION),
    "bash": (2, "a.sh: line 9: syntax error near unexpected token `fi'\na.sh: line 9: `fi'", Cause.CODE),
    "a lost launch": (1, "srun: error: Task launch for StepId=3.0 failed on node n1: Job credential "
                        "expired", Cause.BAD_NODE),
}  # fmt: skip


@pytest.mark.parametrize(("code", "log", "cause"), KINDS.values(), ids=[*KINDS])
def test_each_kind_of_report_has_its_cause(code: int, log: str, cause: Cause) -> None:
    assert cause_of_command(code, f"step 2\n{log}\n", oom_killed=False).cause is cause


def raised_in(function: str, error: str) -> str:
    """The traceback of an error that a ``raise`` statement of a function of the user raised."""
    return f'Traceback (most recent call last):\n  File "t.py", line 7, in {function}\n    raise X\n{error}\n'


@pytest.mark.parametrize(
    ("before", "function", "cause"),
    [
        ("json.decoder.JSONDecodeError: Expecting value", "load", Cause.DATA),
        ("json.decoder.JSONDecodeError: Expecting value", "other", Cause.CODE),  # it was handled, and went on
        ("KeyError: 'lr'", "load", Cause.CODE),
    ],
)
def test_what_the_function_that_handled_an_exception_raises_has_its_cause(
    before: str, function: str, cause: Cause
) -> None:
    log = raised_in("load", before) + DURING + raised_in(function, "ValueError: row 17 is bad")
    assert cause_of_command(1, log, oom_killed=False).cause is cause
    assert cause_of(exception_in(log, ("ValueError", "Exception"), "row 17 is bad")) is cause
    unknown = log.replace("ValueError: row", "RuntimeError: row")
    expected = Cause.DATA if cause is Cause.DATA else Cause.UNKNOWN
    assert cause_of_command(1, unknown, oom_killed=False).cause is expected


def test_the_summary_of_tests_or_ranks_after_a_traceback_does_not_make_it_a_handled_one() -> None:
    ended = Raised(("SystemExit", "BaseException"), "1")
    for summary in (
        "-" * 30 + "\nRan 1 test in 0.1s\n\nFAILED (errors=1)\n",
        "CUDA kernel errors might be\n",
    ):
        assert cause_of_raised(ended, f"{KEY}\n{summary}") is Cause.CODE
    assert cause_of_raised(ended, f"{KEY}\ncontinuing\n") is Cause.UNKNOWN


def test_a_stage_that_a_scheduler_killed_has_the_cause_that_the_scheduler_states() -> None:
    words = "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0.\n"
    assert cause_of_exit(-9, words, oom_killed=False)[0] is Cause.OOM_HOST
    assert cause_of_exit(-9, "No space left on device\n", oom_killed=False)[0] is Cause.UNKNOWN


def test_lines_of_a_log_keep_the_mark_of_their_host_and_lose_the_time() -> None:
    log = before_each("n1 10:00:0{} ", KEY) + before_each("n2 10:00:0{} ", KEY) + "n3 10:00:01 done\n"
    found = lines_of(f"{BAR}\n{log}")
    assert {line.rank for line in found} == {"n1  ", "n2  ", ""} and found[-1].text == "n3 10:00:01 done"


@pytest.mark.parametrize(
    "log",
    [
        raised("ValueError: " + "{{ role }} " * 22),  # a template, as in the message of a parser
        raised("ValueError: " + "[3] loss: " * 21),
        "\n".join(["FAILED tests/a.py::test_b - assert " + "7" * 1900] * 12),
        "\n".join(["x: unknown option: " + "use -" * 380] * 30),
    ],
    ids=["templates", "marks", "summaries of tests", "hints"],
)
def test_no_line_of_a_log_takes_exponential_or_cubic_time(log: str) -> None:
    before = time.process_time()
    cause_of_command(1, log, oom_killed=False)
    assert time.process_time() - before < 5  # usually 0.06


def test_memory_of_a_gpu_is_meant_where_a_message_names_the_host_beside_it() -> None:
    text = "OOM on /device:GPU:0, while copying from /device:CPU:0"
    assert (
        cause_of_command(1, raised(f"{TF}ResourceExhaustedError: {text}"), oom_killed=False).cause
        is Cause.OOM_GPU
    )

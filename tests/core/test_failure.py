"""Causes told from exceptions, exit codes and the ends of logs as the programs themselves write them."""

from __future__ import annotations

import re
import signal

import pytest

from orchestrator.core.causes import cause_of, cause_of_exception
from orchestrator.core.exits import cause_of_command, cause_of_exit
from orchestrator.core.failure import Cause
from orchestrator.core.tracebacks import exception_in, with_bases

TRACEBACK = 'Traceback (most recent call last):\n  File "train.py", line 7, in <module>\n    main()\n'
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity"
RICH = "╭──── Traceback (most recent call last) ────╮\n│ /x/t.py:1 in main │\n╰───╯\n"
RANKED = "".join(f"[rank0]: {line}\n" for line in f"{TRACEBACK}{OOM}".splitlines())
TORCHRUN = f"""{RANKED}
E1126 07:00:00.123 12 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: 1) local_rank: 0
{TRACEBACK}torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train.py FAILED
------------------------------------------------------------
Failures:
  <NO_OTHER_FAILURES>
============================================================
"""
PEER = "RuntimeError: [/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"

RESET = "RuntimeError: [/x/gloo/transport/tcp/pair.cc:537] Read error [::1]:61099: Connection reset by peer"


def of_rank(rank: int, error: str) -> str:
    return "".join(f"[rank{rank}]: {line}\n" for line in f"{TRACEBACK}{error}".splitlines())


def interleaved(*errors: str) -> str:
    ranks = [of_rank(rank, error).splitlines(keepends=True) for rank, error in enumerate(errors)]
    return "".join(line for lines in zip(*ranks, strict=True) for line in lines)


@pytest.mark.parametrize(
    ("names", "message", "cause"),
    [
        (["OutOfMemoryError", "RuntimeError"], "CUDA out of memory. Tried to allocate 2 GiB", Cause.OOM_GPU),
        (["OutOfMemoryError"], "Task was killed due to the node running low on memory.", Cause.OOM_HOST),
        (["RuntimeError"], "CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA", Cause.OOM_GPU),
        (
            ["RuntimeError"],
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator",
            Cause.OOM_HOST,
        ),
        (["RuntimeError"], "NCCL error in: ProcessGroupNCCL.cpp:3699, unhandled", Cause.COMMUNICATION),
        (["OSError"], "[Errno 12] Cannot allocate memory", Cause.OOM_HOST),
        (["OSError"], "[Errno 28] No space left on device: '/x'", Cause.STORAGE),
        (["SafetensorError"], "Error: I/O error: No space left on device (os error 28)", Cause.STORAGE),
        (["ValueError"], "loss is nan at step 12", Cause.NAN),
        (["AssertionError"], "", Cause.CODE),
        # words of another cause
        (["ValueError"], "unknown option 'NCCL'", Cause.CODE),
        (["TypeError"], "CUDA out of memory handler takes 1 argument", Cause.CODE),
        (["RuntimeError"], "the memo 'No space left on device' cannot be parsed", Cause.UNKNOWN),
        (["KeyError", "LookupError"], "'Connection reset by peer'", Cause.CODE),
        (["ModuleNotFoundError", "ImportError"], "No module named 'NCCL'", Cause.CODE),
        (["RuntimeError"], "no checkpoint after: CUDA out of memory", Cause.UNKNOWN),
        (["ValueError"], "the column loss holds nan", Cause.CODE),
    ],
)
def test_an_exceptions_class_decides_before_the_beginning_of_its_message(
    names: list[str], message: str, cause: Cause
) -> None:
    assert cause_of_exception(names, message) is cause


@pytest.mark.parametrize(
    ("code", "log", "cause", "said"),
    [
        (1, f"step 1\n{TRACEBACK}{OOM}\n", Cause.OOM_GPU, "OutOfMemoryError: CUDA out of memory. Tried"),
        (
            1,
            f"\x1b[31m{TRACEBACK}\x1b[1m{OOM}\x1b[0m\n",
            Cause.OOM_GPU,
            "OutOfMemoryError: CUDA out of memory",
        ),
        (1, f"{RICH}ValueError: bad\n", Cause.CODE, "ValueError: bad"),
        (1, TORCHRUN, Cause.OOM_GPU, "OutOfMemoryError: CUDA out of memory. Tried"),
        (1, f"{TRACEBACK}MemoryError\n", Cause.OOM_HOST, "MemoryError"),
        (
            1,
            f"{TRACEBACK}numpy._core._exceptions._ArrayMemoryError: Unable to\n",
            Cause.OOM_HOST,
            "Unable to",
        ),
        (1, f"{TRACEBACK}ModuleNotFoundError: No module named 'x'\n", Cause.CODE, "No module named 'x'"),
        (1, f"{TRACEBACK}FileNotFoundError: [Errno 2] No such file: 'a.csv'\n", Cause.DATA, "a.csv"),
        (1, f"{TRACEBACK}OSError: [Errno 122] Disk quota exceeded\n", Cause.STORAGE, "quota"),
        (1, '  File "t.py", line 1\n    x =\n       ^\nSyntaxError: invalid syntax\n', Cause.CODE, "invalid"),
        (1, "/env/bin/python: No module named nope\n", Cause.CODE, "No module named nope"),
        (2, "usage: t.py\nt.py: error: unrecognized arguments: --lr\n", Cause.CONFIG, "unrecognized"),
        (
            2,
            "python: can't open file '/x/t.py': [Errno 2] No such file or directory\n",
            Cause.CODE,
            "/x/t.py",
        ),
        (127, "bash: line 1: trian: command not found\n", Cause.CONFIG, "trian: command not found"),
        (126, "", Cause.CONFIG, "cannot be executed"),
        (124, "", Cause.TIMEOUT, "`timeout`"),
        (137, "Killed\n", Cause.UNKNOWN, "SIGKILL"),
        (139, "", Cause.UNKNOWN, "segmentation fault"),
        (-signal.SIGSEGV, "", Cause.UNKNOWN, "killed by signal 11 (SIGSEGV)"),
        (-signal.SIGBUS, "", Cause.UNKNOWN, "/dev/shm"),
        (-signal.SIGXCPU, "", Cause.TIMEOUT, "CPU time"),
        (
            134,
            "terminate called after throwing an instance of 'std::bad_alloc'\n",
            Cause.OOM_HOST,
            "bad_alloc",
        ),
        (1, "cp: error writing '/x/y': No space left on device\n", Cause.STORAGE, "No space left"),
        (1, f"step 1\n{OOM}\n", Cause.OOM_GPU, "OutOfMemoryError: CUDA out of memory. Tried"),
        (2, "loading\nValueError: bad axis\n", Cause.CODE, "ValueError: bad axis"),
        (1, "ValueError: handled\ngoing on\n", Cause.UNKNOWN, "exited with code 1"),
        (1, "ERROR: CUDA error: out of memory\n", Cause.OOM_GPU, "out of memory"),
        (1, "bash: fork: Cannot allocate memory\n", Cause.OOM_HOST, "allocate memory"),
        (1, of_rank(1, "ValueError: bad row") + of_rank(0, PEER), Cause.CODE, "bad row"),
        (1, of_rank(0, PEER) + of_rank(1, "ValueError: bad row"), Cause.CODE, "bad row"),
        (1, of_rank(0, PEER) + of_rank(1, PEER), Cause.COMMUNICATION, "Connection closed by peer"),
        (1, of_rank(1, "ValueError: bad row") + of_rank(0, RESET), Cause.CODE, "bad row"),
        (1, of_rank(0, RESET), Cause.COMMUNICATION, "Connection reset by peer"),
        (1, f"{TRACEBACK}ValueError: handled\nagain\n{TRACEBACK}{PEER}\n", Cause.COMMUNICATION, "closed"),
        (1, interleaved("ValueError: bad row", PEER), Cause.CODE, "bad row"),
        # words in lines that are no reason
        (1, "INFO: resumed after CUDA out of memory\ngoing on\n", Cause.UNKNOWN, "exited with code 1"),
        (1, "warning: CUDA out of memory, halving the batch\n", Cause.UNKNOWN, "exited with code 1"),
        pytest.param(
            *(1, f"handled:\n{TRACEBACK}{OOM}\n" + "step\n" * 200, Cause.UNKNOWN, "with code 1"),
            id="long ago",
        ),
        (3, f"handled:\n{TRACEBACK}{OOM}\n" + "step\n" * 20, Cause.UNKNOWN, "exited with code 3"),
        (1, f"{TRACEBACK}ValueError: no rows for 'NCCL error'\n", Cause.CODE, "no rows for"),
        (1, f"{TRACEBACK}{OOM}\nretried\n{TRACEBACK}KeyError: 'lr'\n", Cause.CODE, "KeyError: 'lr'"),
    ],
)
def test_a_command_fails_by_its_last_exception_its_signal_or_its_exit_code(
    code: int, log: str, cause: Cause, said: str
) -> None:
    failure = cause_of_command(code, log, oom_killed=False)
    assert failure.cause is cause, failure
    assert said in failure.message


@pytest.mark.parametrize("code", [-signal.SIGKILL, 137])
def test_sigkill_while_the_kernel_was_out_of_memory_is_host_memory(code: int) -> None:
    assert cause_of_command(code, "Killed\n", oom_killed=True).cause is Cause.OOM_HOST


@pytest.mark.parametrize(
    ("names", "message", "cause"),
    [
        ("HTTPError URLError OSError", "HTTP Error 404: Not Found", Cause.CONFIG),
        ("HTTPError URLError OSError", "HTTP Error 429: Too Many Requests", Cause.COMMUNICATION),
        ("HTTPError URLError OSError", "HTTP Error 503: Service Unavailable", Cause.COMMUNICATION),
        ("HTTPStatusError HTTPError", "Client error '401 Unauthorized' for url 'http://x'", Cause.CONFIG),
        ("HTTPError RequestException OSError", "502 Server Error: Bad Gateway for url", Cause.COMMUNICATION),
        ("URLError OSError", "<urlopen error [Errno 111] Connection refused>", Cause.COMMUNICATION),
        ("gaierror OSError", "[Errno -2] Name or service not known", Cause.COMMUNICATION),
        ("OSError", "[Errno 98] Address already in use", Cause.COMMUNICATION),
        ("OSError", "[Errno 8] Exec format error: 'train'", Cause.CONFIG),
        ("OSError", "Can't load tokenizer for 'tiny'. If you were trying to load it", Cause.CONFIG),
        ("ArrowInvalid ValueError", "Parquet magic bytes not found in footer", Cause.DATA),
        ("SafetensorError", "Error while deserializing header: header too large", Cause.DATA),
        ("EOFError", "Compressed file ended before the end-of-stream marker was reached", Cause.DATA),
        ("EOFError", "", Cause.UNKNOWN),
        ("OperationalError", "database or disk is full", Cause.STORAGE),
        ("RuntimeError", "[enforce fail at inline_container.cc:672] . unexpected pos 1 vs 2", Cause.STORAGE),
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)", Cause.CODE),
        ("RuntimeError", "\"addmm_impl_cpu_\" not implemented for 'Half'", Cause.CODE),
        ("RuntimeError", "CUDA error: device-side assert triggered", Cause.CODE),
        ("RecursionError RuntimeError", "maximum recursion depth exceeded", Cause.CODE),
        ("RuntimeError", "CUDA error: uncorrectable ECC error encountered", Cause.BAD_NODE),
        ("RuntimeError", "CUDA error: an illegal memory access was encountered", Cause.UNKNOWN),
        ("RuntimeError", "the report 'CUDA error: uncorrectable' cannot be sent", Cause.UNKNOWN),
    ],
)
def test_what_common_libraries_raise_has_the_cause_that_its_reader_would_name(
    names: str, message: str, cause: Cause
) -> None:
    assert cause_of_exception(names.split(), message) is cause


def raised(error: str, *frames: str, own: str = "main") -> str:
    """The traceback of an error; a frame is ``module function`` of a package, or ``line`` of the user's."""
    text = f'Traceback (most recent call last):\n  File "/home/me/train.py", line 7, in {own}\n    '
    lines = [frame for frame in frames if not re.match(r"[\w/]+\.py ", frame)]
    text += f"{lines[0] if lines else 'go()'}\n"
    for module, function in (frame.split() for frame in frames if frame not in lines):
        text += (
            f'  File "/env/lib/python3.11/site-packages/{module}", line 1, in {function}\n    raise X(y)\n'
        )
    return f"{text}{error}\n"


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        # the package of the class
        (raised("yaml.parser.ParserError: while parsing a flow mapping"), Cause.CONFIG),
        (raised("pandas.errors.ParserError: Error tokenizing data."), Cause.DATA),
        (raised("tomllib.TOMLDecodeError: Expected newline or end of document"), Cause.CONFIG),
        (raised("hydra.errors.MissingConfigException: In 'config': Could not find 'model/x'"), Cause.CONFIG),
        (raised("configparser.ParsingError: Source contains parsing errors: 'a'"), Cause.CONFIG),
        (raised("xml.etree.ElementTree.ParseError: mismatched tag: line 1, column 8"), Cause.DATA),
        (raised("sqlite3.DatabaseError: file is not a database"), Cause.DATA),
        (raised("sqlite3.IntegrityError: UNIQUE constraint failed: t.x"), Cause.CODE),
        (raised("_lzma.LZMAError: Corrupt input data"), Cause.DATA),
        (raised("tarfile.ReadError: file could not be opened successfully"), Cause.DATA),
        (raised("httpx.ReadError: "), Cause.COMMUNICATION),
        (raised("_duckdb.InvalidInputException: Invalid Input Error: No magic bytes"), Cause.DATA),
        (raised("_duckdb.OutOfMemoryException: Out of Memory Error: failed to allocate"), Cause.OOM_HOST),
        (raised("pyarrow.lib.ArrowMemoryError: malloc of size 17179869184 failed"), Cause.OOM_HOST),
        (raised("torch.OutOfMemoryError: HIP out of memory. Tried to allocate 1 GiB"), Cause.OOM_GPU),
        (raised("pynvml.NVMLError_GpuIsLost: GPU is lost"), Cause.BAD_NODE),
        (raised("pynvml.NVMLError_NotSupported: Not Supported"), Cause.UNKNOWN),
        (raised("pydantic_core.ValidationError: 1 validation error for Settings"), Cause.CONFIG),
        (raised("pydantic_core.ValidationError: 1 validation error for Row"), Cause.UNKNOWN),
        # the number of a system error, and whether it names a file
        (raised("OSError: [Errno 107] Transport endpoint is not connected: '/mnt/x'"), Cause.STORAGE),
        (raised("BrokenPipeError: [Errno 32] Broken pipe"), Cause.COMMUNICATION),
        (raised("TimeoutError: [Errno 110] Connection timed out: '/nfs/x'"), Cause.STORAGE),
        (raised("safetensors._safetensors_rust.SafetensorError: I/O: x (os error 28)"), Cause.STORAGE),
        (raised("OSError: [Errno 24] Too many open files: '/x'"), Cause.UNKNOWN),
        (raised("OSError: libcuda.so.1: cannot open shared object file"), Cause.BAD_NODE),
        (raised("ImportError: libcuda.so.1: cannot open shared object file"), Cause.BAD_NODE),
        (raised("ImportError: libGL.so.1: cannot open shared object file"), Cause.UNKNOWN),
        (raised("ImportError: cannot import name 'AdamW' from 'transformers'"), Cause.CODE),
        # the bucket's own code
        (raised("botocore.exceptions.ClientError: An error occurred (SlowDown) when calling the PutObject "
                "operation: Please reduce your request rate."), Cause.STORAGE),
        (raised("botocore.exceptions.ClientError: An error occurred (AccessDenied) when calling the "
                "PutObject operation: Access Denied"), Cause.UNKNOWN),
        # the reader, the writer or the loader in which it was raised
        (raised("OSError: image file is truncated (122 bytes left)", "PIL/ImageFile.py load"), Cause.DATA),
        (raised("ValueError: Failed to read all data", "numpy/lib/_format_impl.py read_array"), Cause.DATA),
        (raised("OSError: [Errno 22] Invalid argument", "torch/serialization.py load"), Cause.DATA),
        (raised("OSError: [Errno 22] Invalid argument"), Cause.UNKNOWN),
        (raised("OSError: It looks like the file is not valid", "transformers/configuration_utils.py get"),
         Cause.CONFIG),
        (raised("OSError: something without a number"), Cause.UNKNOWN),
        (raised("json.decoder.JSONDecodeError: Expecting value"), Cause.DATA),
        (raised("json.decoder.JSONDecodeError: Expecting value", own="load_config"), Cause.CONFIG),
        (raised("FileNotFoundError: [Errno 2] No such file or directory: 'conf/train.yaml'"), Cause.CONFIG),
        # words of libraries count only where a library wrote them
        (raised("RuntimeError: probability tensor contains either `inf`, `nan` or element < 0"), Cause.NAN),
        (raised("torch._C._LinAlgError: svd: matrix contained non-finite values.", "u = svd(x)"), Cause.NAN),
        (raised("RuntimeError: The total norm is non-finite", "torch/nn/utils/clip_grad.py clip"),
         Cause.NAN),
        (raised("RuntimeError: the notes hold nan", "raise RuntimeError(text)"), Cause.UNKNOWN),
        (raised("RuntimeError: Can't call numpy() on Tensor that requires grad.", "x.numpy()"), Cause.CODE),
        (raised("RuntimeError: no gradient today", "raise RuntimeError(text)"), Cause.UNKNOWN),
        (raised("RuntimeError: CUDA error: an illegal memory access of a tensor", "x.sum()"), Cause.UNKNOWN),
        (raised("ValueError: num_samples should be positive, but got num_samples=0",
                "torch/utils/data/sampler.py __init__"), Cause.DATA),
        (raised("ValueError: Expected parameter logits of Categorical to satisfy the constraint, but found "
                "invalid values:"), Cause.NAN),
        # words of the driver, and what fails in its name
        (raised("RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp"),
         Cause.BAD_NODE),
        (raised("RuntimeError: CUDA unknown error - this may be due to an incorrect"), Cause.BAD_NODE),
        (raised("RuntimeError: the report 'Xid 79' cannot be sent"), Cause.UNKNOWN),
        (raised("ValueError: No available memory for the cache blocks. Try increasing"), Cause.OOM_GPU),
        (raised("RuntimeError: NCCL error in: x.cpp:1, unhandled cuda error\nncclUnhandledCudaError: Failed."
                "\nLast error:\nCuda failure 2 'out of memory'"), Cause.OOM_GPU),
    ],
)  # fmt: skip
def test_the_package_the_place_and_the_author_of_a_message_are_evidence(log: str, cause: Cause) -> None:
    assert cause_of_command(1, log, oom_killed=False).cause is cause
    last = re.sub(r".*raise X\(y\)\n|.*    [^\n]*\n", "", log, flags=re.DOTALL)
    name, _, message = last.strip().partition(":")
    assert cause_of(exception_in(log, with_bases(name), message.strip())) is cause


FULL = "OSError: [Errno 28] No space left on device: '/x/a'"
FROM = "\nThe above exception was the direct cause of the following exception:\n\n"
DURING = "\nDuring handling of the above exception, another exception occurred:\n\n"


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (raised(FULL) + FROM + raised("datasets.exceptions.DatasetGenerationError: An error"), Cause.STORAGE),
        (raised(FULL) + DURING + raised("RuntimeError: cannot save", "raise RuntimeError()"), Cause.STORAGE),
        (raised(FULL) + DURING + raised("ValueError: cannot save", "raise ValueError()"), Cause.STORAGE),
        (raised(FULL) + DURING + raised("NameError: name 'tyop' is not defined", "print(tyop)"), Cause.CODE),
        (raised("json.decoder.JSONDecodeError: Expecting value") + FROM + raised("ValueError: row 3 is bad"),
         Cause.DATA),
        (raised("KeyError: 'lr'") + DURING + raised("ConnectionError: no answer"), Cause.COMMUNICATION),
        (raised(FULL) + "\ngoing on\n" + raised("ValueError: bad"), Cause.CODE),
    ],
)  # fmt: skip
def test_what_led_to_an_exception_counts_if_its_own_evidence_is_weaker(log: str, cause: Cause) -> None:
    assert cause_of_command(1, log, oom_killed=False).cause is cause


def test_wrong_arguments_are_config_in_a_command_and_in_a_stage() -> None:
    usage = (
        "Usage: train [OPTIONS]\nTry 'train --help' for help.\n\nError: No such option '--learning-rate'.\n"
    )
    assert cause_of_command(2, usage, oom_killed=False).cause is Cause.CONFIG
    log = raised("SystemExit: 2", "parser.parse_args()").replace(
        "SystemExit",
        '  File "/usr/lib/python3.11/argparse.py", line 1, in exit\n    _sys.exit(2)\nSystemExit',
    )
    assert cause_of(exception_in(log, ["SystemExit", "BaseException"], "2")) is Cause.CONFIG
    own = raised("SystemExit: 2", "sys.exit(2)")
    assert cause_of(exception_in(own, ["SystemExit", "BaseException"], "2")) is Cause.UNKNOWN


def test_what_a_loaders_process_raised_counts_and_not_that_it_was_handed_on() -> None:
    inner = raised("OSError: [Errno 5] Input/output error: '/data/a'").replace(
        "Traceback", "Original Traceback", 1
    )
    message = f"Caught OSError in DataLoader worker process 0.\n{inner}"
    log = raised(f"OSError: {message}", "torch/_utils.py reraise")
    assert cause_of(exception_in(log, ["OSError", "Exception"], message)) is Cause.STORAGE


def test_a_stage_that_aborts_has_the_cause_that_its_last_words_give() -> None:
    words = (
        "terminate called after throwing an instance of 'c10::Error'\n  what():  CUDA error: uncorrectable\n"
    )
    assert cause_of_exit(-signal.SIGABRT, words, oom_killed=False)[0] is Cause.BAD_NODE
    assert cause_of_exit(-signal.SIGABRT, "step 3\n", oom_killed=False)[0] is Cause.UNKNOWN
    assert cause_of_exit(-signal.SIGSEGV, words, oom_killed=False)[0] is Cause.UNKNOWN


def test_the_words_of_a_program_count_that_a_script_started() -> None:
    said = "train.py: error: the following arguments are required: --lr\n"
    log = f"usage: train.py --lr LR\n{said}{TRACEBACK}subprocess.CalledProcessError: Command died\n"
    assert cause_of_command(1, log, oom_killed=False).cause is Cause.CONFIG
    handled = f"{TRACEBACK}subprocess.CalledProcessError: Command died\n"
    assert cause_of_command(1, handled, oom_killed=False).cause is Cause.UNKNOWN

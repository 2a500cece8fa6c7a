"""Words of errors that programs of all kinds print, and where at the end of a log they count."""

from __future__ import annotations

import errno
import os
import re
import time
import types
from collections.abc import Iterable, Iterator

import pytest

from orchestrator.core import causes, exits, patterns, words
from orchestrator.core.causes import cause_of, cause_of_exception
from orchestrator.core.exits import cause_of_command, cause_of_raised
from orchestrator.core.failure import Cause
from orchestrator.core.tracebacks import Raised, exception_in
from orchestrator.core.words import of_words
from tests.core.test_failure import raised

TEXTS = {
    Cause.CONFIG: """
        error: unknown flag: --nmae
        train.py: error: unrecognized argument --lrr
        Unable to locate credentials. You can configure credentials by running "aws configure".
        ERROR 1045 (28000): Access denied for user 'u'@'localhost'
        npm ERR! 404 Not Found - GET https://registry.npmjs.org/nosuchpkg - Not found
        Error: reading manifest none in docker.io/library/x: manifest unknown
        Error: model 'llama9' not found, try pulling it first
        error: config file /etc/x.toml: missing field `lr`
        Error: environment variable DATA_DIR is not set
        run.sh: line 3: DATA_DIR: unbound variable
        E: Unable to locate package foo
        yaml: line 3: mapping values are not allowed in this context
        fatal: repository 'https://github.com/x/y.git/' not found
        RuntimeError: Vocabulary size too high (8000)
        tool: server returned HTTP 403
        kaggle: 401 - Unauthorized
        The provided token has expired.
        FATAL ERROR: UNABLE TO OPEN CONFIGURATION FILE a.namd
        curl: (22) The requested URL returned error: 404
        embed_dim must be divisible by num_heads
        `task_type` should be one of LORA, X
        --load_best_model_at_end requires the save and eval strategy to match
        AssertionError: Torch not compiled with CUDA enabled
        job: bad.yaml: {ENOENT}
    """,
    Cause.DATA: """
        clip.mp4: Invalid data found when processing input
        sox FAIL formats: can't open input file `a.wav': WAVE: RIFF header not found
        identify: improper image header `a.png' @ error/png.c/ReadPNGImage/4092.
        ERROR 4: `a.tif' not recognized as a supported file format.
        a.xml:3: parser error : Opening and ending tag mismatch: a line 2 and b
        Error: near line 1: database disk image is malformed
        mlr: mlr: CSV header/data length mismatch 3 != 4 at filename train.csv row 3.
        gzip: a.gz: unexpected end of file
        xz: a.xz: File format not recognized
        iconv: illegal input sequence at position 12
        tool: a.bin: checksum did not match
        pigz: skipping: a.gz: corrupted -- crc32 mismatch
        error: OpenCV(4.8.0) /io/color.cpp:182: error: image is empty
        tool: Path does not exist: file:/data/a.
        wc: /data/a.txt: {ENOENT}
    """,
    Cause.CODE: """
        ld: cannot find -lcublas
        main.c:(.text+0xa): undefined reference to `dgemm_'
        src/Main.hs:5:8: error: Variable not in scope: foo
        ./main.go:31:2: declared and not used: total
        error: could not compile `train` (bin "train") due to 1 previous error
        error: 'rate' undefined
        Unrecognized function or variable 'loadShards'.
        error[E0425]: cannot find value `rate` in this scope
        PHP Fatal error:  Uncaught Error: Call to undefined function foo() in /a.php:3
        ERROR 1064 (42000) at line 1: You have an error in your SQL syntax
        Incompatible shapes: [32] vs. [32,10]
        Main.java:3: error: ';' expected
        src/app.ts(3,7): error TS2304: Cannot use 'foo'.
        ninja: error: 'foo.c', needed by 'foo.o', missing and no known rule to make it
    """,
    Cause.OOM_GPU: """
        CUDA error 2 at main.cu:12: out of memory
        vulkan: ErrorOutOfDeviceMemory
        ggml_cuda_host_malloc: failed to allocate 1024.00 MiB of pinned memory: out of memory
        [TRT] [E] 2: Error Code 2: OutOfMemory (no further information)
    """,
    Cause.OOM_HOST: """
        fatal: Out of memory, malloc failed (tried to allocate 2147483648 bytes)
        Code: 241. DB::Exception: Memory limit (total) exceeded: would use 9.39 GiB.
        train.service: A process of this unit has been killed by the OOM killer.
        x: fork: {ENOMEM}
        PBS: job killed: mem 130gb exceeded limit 128gb
    """,
    Cause.NAN: """
        ERROR: loss is NaN, aborting
        Non-finite loss at step 12, stopping
        Rank 4: found NaN in local forward loss calculation.
        Training diverged: gradient norm is inf at step 5
        Minimum loss scale reached (0.0001).
        gradient overflow detected: grad norm nan
        solver diverged: residual is NaN
        NaN or Inf found in input tensor.
    """,
    Cause.COMMUNICATION: """
        Unable to connect to the server: dial tcp 10.0.0.1:6443: i/o timeout
        The connection to the server localhost:8080 was refused - did you specify the right port?
        ERROR 2003 (HY000): Can't connect to MySQL server on 'db:3306' (111)
        net/http: request canceled while waiting for connection (Client.Timeout exceeded)
        server closed the connection unexpectedly
        client_loop: send disconnect: Broken pipe
        rsync error: timeout in data send/receive (code 30) at io.c(204)
        error: RPC failed; curl 56 recv error
        ERROR 503: Service Unavailable.
        curl: (22) The requested URL returned error: 503
        tool: {ECONNREFUSED}
        UCX  ERROR ibv_create_cq(cqe=256) failed: {EIO}
    """,
    Cause.STORAGE: """
        OSError: Not enough disk space. Needed: 134.92 GiB
        Runtime error near line 3: database or disk is full (13)
        An error occurred (XMinioStorageFull) when calling the PutObject operation
        tool: cannot read header of a.bin: {EIO}
        tool: size mismatch in a.bin: {ESTALE}
        cat: '/nfs/x': {ETIMEDOUT}
    """,
    Cause.BAD_NODE: """
        RuntimeError: No HIP GPUs are available
        No devices were found
        Failed to initialize NVML: Driver/library version mismatch
        AssertionError: libcuda.so cannot found!
        failed call to cuInit: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected
    """,
    Cause.UNKNOWN: """
        it did not work
        evaluation failed: accuracy below threshold
        the report 'No space left on device' cannot be sent
        tool: dial unix /var/run/docker.sock: connect: {ENOENT}
        ERROR: Atoms lost: original 100 current 98 (src/thermo.cpp:494)
        done: 3 of 4
        x: symbol lookup error: /usr/lib/libfoo.so: undefined symbol: bar
        FATAL: while mounting /x: {ENOENT}
    """,
}


def spelt(text: str) -> str:
    """Return a text with the system's words for the errors that it names."""
    return re.sub(r"\{(E\w+)\}", lambda name: os.strerror(getattr(errno, name[1])), text)


@pytest.mark.parametrize(
    ("text", "cause"),
    [(line.strip(), cause) for cause, lines in TEXTS.items() for line in lines.splitlines() if line.strip()],
)
def test_words_that_many_programs_print_show_a_cause_and_the_machines_count_first(
    text: str, cause: Cause
) -> None:
    assert of_words(spelt(text)) is cause


LAST = {
    # the lines of a report count together, the machine's before the user's
    "a block": ("error: RPC failed; curl 56 error\nfatal: early EOF\nfatal: no pack", Cause.COMMUNICATION),
    "a disk": ("cp: error reading 'a': {EIO}\ntar: a: Unexpected EOF in archive", Cause.STORAGE),
    "of a compiler": (
        "./a.go:27:15: undefined: readShards\n./a.go:31:2: declared and not used: x",
        Cause.CODE,
    ),
    "with a hint": ('CMake Error at a.txt:3:\n  Unknown CMake command "x".\n\nSee also "a".', Cause.CODE),
    "its place": ("error: 'rate' undefined\nerror: called from\n    train at line 3 column 5", Cause.CODE),
    "beside numbers": ("zstd: a.zst : Read error (39) : premature end\n1702", Cause.DATA),
    "behind a bar": (
        '  200,000 100%   7.97MB/s (xfr#1)x: write failed on "a": {ENOSPC} (28)\nx: error in file IO',
        Cause.STORAGE,
    ),
    "in a box": (
        "Usage: t [OPTIONS]\nTry 't --help' for help.\n╭─ Error ─╮\n│ Invalid value for '--lr': x  │\n╰──╯",
        Cause.CONFIG,
    ),
    "an end in order": (
        "java.lang.OutOfMemoryError: Java heap space\nDumping heap to a.hprof ...",
        Cause.OOM_HOST,
    ),
    # what went on after it does not
    "a program that went on": ("rm: cannot remove 'x': {ENOENT}\nstep 3", Cause.UNKNOWN),
    "a step later": ("tool: bad header\nepoch 3\nit is over", Cause.UNKNOWN),
    # what a client tried until the end
    "tries": (
        "WARNING: Retrying, connection broken by: {ECONNREFUSED}\nERROR: No matching distribution for x",
        Cause.COMMUNICATION,
    ),
    "one try": (
        "WARNING: Retrying, connection broken by: {ECONNREFUSED}\nstep 3\nERROR: No matching version x",
        Cause.CONFIG,
    ),
    "no try": (
        "INFO: Retrying, connection broken by: {ECONNREFUSED}\nERROR: No matching version x",
        Cause.CONFIG,
    ),
}


@pytest.mark.parametrize(("log", "cause"), LAST.values(), ids=[*LAST])
def test_the_lines_of_the_last_report_count_together(log: str, cause: Cause) -> None:
    text = spelt(f"step 2\n{log}\n")
    assert cause_of_command(1, text, oom_killed=False).cause is cause
    died = raised("subprocess.CalledProcessError: Command 'x' returned non-zero exit status 1.")
    assert cause_of_command(1, text + died, oom_killed=False).cause is cause
    assert cause_of_raised(Raised(("SystemExit", "BaseException"), "1"), text) is cause


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        # words in the name of a class
        (raised("kafka.errors.NoBrokersAvailable: none", "kafka/x.py f"), Cause.COMMUNICATION),
        (raised("x.errors.ServerSelectionTimeoutError: none", "x/y.py f"), Cause.COMMUNICATION),
        (raised("google.auth.exceptions.DefaultCredentialsError: none", "google/x.py f"), Cause.CONFIG),
        (raised("x.errors.ScopeParamShapeError: no", "x/y.py f"), Cause.CODE),
        (raised("x.io.RecordDecodeError: no", "x/y.py f"), Cause.DATA),
        (raised("subprocess.TimeoutExpired: Command 'x' timed out"), Cause.UNKNOWN),
        (raised("x.errors.Failed: no", "x/y.py f"), Cause.UNKNOWN),
        # a setting that a library refuses, or a function that checks settings
        (raised("ValueError: Invalid learning rate: -0.001", "torch/optim/adam.py __init__"), Cause.CONFIG),
        (
            raised("ValueError: The 'C' of X must be in (0.0, inf].", "x/y.py validate_parameters"),
            Cause.CONFIG,
        ),
        (raised("AssertionError: batch size must be even", "assert n % 2 == 0"), Cause.CODE),
        (raised("ValueError: file a.bin is truncated", "x/y.py load"), Cause.DATA),
        (raised("ValueError: the file is truncated", "raise ValueError(x)"), Cause.CODE),
        # a machine's failure behind a class or a place of the user's
        (raised("OSError: Not enough disk space. Needed: 134 GiB", "datasets/builder.py f"), Cause.STORAGE),
        (raised("AssertionError: libcuda.so cannot found!", "triton/x.py f"), Cause.BAD_NODE),
        (raised("AssertionError: found NaN in the local loss", "assert not x.isnan()"), Cause.NAN),
        (raised("pyopencl.MemoryError: failed: MEM_OBJECT_ALLOCATION_FAILURE"), Cause.OOM_GPU),
        (
            raised("RuntimeError: basic_ios::clear: iostream error", "torch/serialization.py _save"),
            Cause.STORAGE,
        ),
        (raised("RuntimeError: {ECONNREFUSED} by the server", "raise X(y)"), Cause.COMMUNICATION),
        (raised("RuntimeError: Detected nan/infinite loss", "raise X(y)"), Cause.NAN),
        (raised("RuntimeError: bad file header", "raise X(y)"), Cause.UNKNOWN),
        # an extension that was built for another version of a package, and a library of a node
        (raised("ImportError: /env/site-packages/x.so: undefined symbol: _ZN3c10"), Cause.CODE),
        (raised("ImportError: /usr/lib/libx.so.1: undefined symbol: f"), Cause.UNKNOWN),
    ],
)
def test_the_words_of_classes_of_settings_and_of_machines_count_in_exceptions(log: str, cause: Cause) -> None:
    assert cause_of_command(1, spelt(log), oom_killed=False).cause is cause


def test_a_value_in_the_further_lines_of_a_librarys_message_may_be_the_reason() -> None:
    log = raised("x.SamplingError: it failed!\nResults:\n{'y': -inf}", "x/y.py f")
    assert (
        cause_of(exception_in(log, ["x.SamplingError", "RuntimeError"], "it failed!\n{'y': -inf}"))
        is Cause.NAN
    )
    assert cause_of_exception(["RuntimeError"], "it failed!\n{'y': -inf}") is Cause.UNKNOWN


def test_the_exit_code_that_a_wrapper_names_counts_as_the_programs_own() -> None:
    died = raised("subprocess.CalledProcessError: Command 'x' returned non-zero exit status 124.")
    assert cause_of_command(1, f"step 3\n{died}", oom_killed=False).cause is Cause.TIMEOUT
    assert cause_of_command(1, f"x: {os.strerror(28)}\n{died}", oom_killed=False).cause is Cause.STORAGE


def test_what_a_launcher_prints_after_a_traceback_is_no_sign_that_the_program_went_on() -> None:
    ended = Raised(("SystemExit", "BaseException"), "1")
    error = "".join(f"[rank2]: {line}\n" for line in raised("KeyError: 'lr'\nmore of it").splitlines())
    agent = (
        "W0826 09:58:55.410000 14 torch/distributed/elastic/api.py:858] Sending process 3 closing signal\n"
    )
    assert cause_of_raised(ended, error + agent) is Cause.CODE
    assert cause_of_raised(ended, f"{error}{agent}going on\n") is Cause.UNKNOWN


NO_REASON = """
    connection reset by peer, retrying... ok
    No GPU found, falling back to CPU
    No CUDA GPUs are available, using CPU
    NVML not found, GPU metrics disabled
    Xid check passed
    error: column Xid is missing
    error: ECC error count: 0
    error: --gpu 9: no GPU available with this index
    memory usage: 12 GB, out of memory events: 0
    skipped 3 batches due to OOM
    tool: cannot open /data/cudaErrorNoDevice.bin
    loss is nan for batch 3, skipping
    data error: 0.2
    Storage full: 3%
    backend is full precision
    finished with status: 500 samples left
    error: 500
    Unable to reach tracking server, logging locally
    cache.bin: {ENOENT}, starting afresh
    assistant: I cannot open the file because the disk is full.
    sample 3: ERROR: out of memory
    answer: {ENETUNREACH}
    note: function not found in cache, compiling
"""


@pytest.mark.parametrize("line", [line.strip() for line in NO_REASON.splitlines() if line.strip()])
def test_what_a_program_went_on_after_or_counted_or_read_is_no_reason(line: str) -> None:
    log = spelt(f"step 2\n{line}\n")
    assert cause_of_command(1, log, oom_killed=False).cause is Cause.UNKNOWN
    later = f"{log}{raised('KeyError: x')}"
    assert cause_of_command(1, later, oom_killed=False).cause is Cause.CODE


@pytest.mark.parametrize("option", ["--gpu   fail when no GPU is available", "--time x   i/o timeout"])
def test_the_help_about_options_after_an_error_is_no_machines_failure(option: str) -> None:
    log = f"tool: bad header in a.bin\n  {option}\n"
    assert cause_of_command(1, log, oom_killed=False).cause is Cause.DATA


@pytest.mark.parametrize("name", ["/data/oom.csv", "/data/Xid/a", "/data/NVML/a"])
def test_the_name_of_a_file_is_no_machines_failure(name: str) -> None:
    assert of_words(spelt(f"cat: {name}: {{ENOENT}}")) is Cause.DATA


@pytest.mark.parametrize(
    "piece", ["a: ", "--", "..", " ::   ", "a: run co ", "aaaaa: line 1", "403: fo", "-a-/.: ", "{{ role }} "]
)
def test_the_words_of_long_lines_take_little_time(piece: str) -> None:
    log = (piece * 2000)[:1999] + "\n"
    began = time.process_time()
    cause_of_command(1, log * 32, oom_killed=False)
    cause_of_command(2, f"panic: {log}goroutine 1 [running]:\n{log * 8}", oom_killed=False)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("module", [patterns, words, causes, exits])
def test_each_expression_of_the_tables_can_be_compiled(module: types.ModuleType) -> None:
    found = list(patterns_in([*vars(module).values()]))
    assert len(found) > 5
    for each in found:
        assert re.compile(each.pattern, each.flags).groups == each.groups


def patterns_in(values: Iterable[object]) -> Iterator[re.Pattern[str]]:
    for value in values:
        if type(value) is type(patterns.OF_SHELL):
            yield value
        elif isinstance(value, dict):
            yield from patterns_in(value.values())
        elif isinstance(value, tuple):
            yield from patterns_in(value)

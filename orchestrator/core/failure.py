"""Failure causes, and how to find the cause of an exception. Pure.

The evidence of an exception is its class with the package that defines it, its message, the place at which
it was raised, and the exception that led to it. It is weighed in this order:

1. The class, if it identifies a cause, as ``MemoryError`` or ``json.JSONDecodeError`` do.
2. The beginning of the message, as a library writes it. The message of a general class may quote the words
   of another cause, so its patterns must match from the beginning.
3. The number of a system error. An error that names a file is one of a file system.
4. The package that defines the class: those of PyYAML are of the config, those of pyarrow of the data.
5. Words that can only be a library's, when the place shows that a library wrote the message.
6. The reader or writer in which an exception of a general class was raised.
7. A general class, as ``ValueError``.

An exception that was raised while another was handled has the other's cause when its own evidence is weaker,
and when it would blame the user for what a machine did. Without evidence the cause is `unknown`.

Example: ``RuntimeError: CUDA out of memory. Tried to allocate ...`` is `oom_gpu`. The class decides nothing,
and the message begins as torch writes it. ``ValueError: cannot parse 'CUDA out of memory'`` is `code`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence
from enum import StrEnum

from orchestrator.core.tracebacks import OUT_OF_MEMORY, Raised


class Cause(StrEnum):
    """The kind of a failure. Each cause has its own retry budget in the policy."""

    CONFIG = "config"
    DATA = "data"
    CODE = "code"
    OOM_GPU = "oom_gpu"
    OOM_HOST = "oom_host"
    NAN = "nan"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    NODE_LOST = "node_lost"
    COMMUNICATION = "communication"
    STORAGE = "storage"
    CANCELLED = "cancelled"
    BAD_NODE = "bad_node"
    UNKNOWN = "unknown"


DETERMINISTIC = frozenset({Cause.CONFIG, Cause.DATA, Cause.CODE})
"""Causes that would probably recur. A launch gives them no fresh retry budget; `sweep rerun` does."""

OF_MACHINES = frozenset(
    {Cause.OOM_GPU, Cause.OOM_HOST, Cause.NODE_LOST, Cause.COMMUNICATION, Cause.STORAGE, Cause.BAD_NODE}
)
"""Causes for which a user is not to blame."""

PASSING = frozenset(
    {Cause.PREEMPTED, Cause.NODE_LOST, Cause.COMMUNICATION, Cause.STORAGE, Cause.BAD_NODE, Cause.UNKNOWN}
)
"""Causes that come from outside, or that nobody knows. They end no stage that advances."""

_CLASSES = {
    Cause.OOM_HOST: "MemoryError",
    Cause.NAN: "FloatingPointError",
    Cause.DATA: """
        FileNotFoundError IsADirectoryError UnicodeDecodeError JSONDecodeError BadZipFile
        BadGzipFile UnpicklingError ArrowInvalid EmptyDataError DatasetGenerationError
        DataFilesNotFoundError UnidentifiedImageError
    """,
    Cause.COMMUNICATION: """
        TimeoutError ConnectionError DistBackendError DistNetworkError DistStoreError gaierror
        herror URLError SSLError ConnectError ConnectTimeout ReadTimeout WriteTimeout PoolTimeout
        ReadError RemoteProtocolError IncompleteRead ProtocolError MaxRetryError NewConnectionError
        NameResolutionError ChunkedEncodingError EndpointConnectionError LocalEntryNotFoundError
        ServerDisconnectedError APIConnectionError APITimeoutError
    """,
    Cause.CODE: """
        ImportError SyntaxError NameError AttributeError TypeError LookupError NotImplementedError
        RecursionError ConfigAttributeError ConfigKeyError
    """,
    Cause.CONFIG: "MissingMandatoryValue InterpolationKeyError InterpolationResolutionError UserError",
    Cause.STORAGE: "InfrastructureError",
}
_BY_TYPE = {name: cause for cause, names in _CLASSES.items() for name in names.split()}
"""Classes that decide, whatever their message."""

_BY_PACKAGE = tuple(
    (re.compile(pattern), cause)
    for pattern, cause in (
        (r"_?(yaml|ruamel|omegaconf|tomllib|tomli\w*|tomlkit|toml|configparser|argparse|click|typer|absl|gin"
         r"|antlr4|jsonargparse|pydantic_settings|hydra(?!\.errors\.Instantiation))\.", Cause.CONFIG),
        (r"huggingface_hub\.|datasets\.exceptions\.DatasetNotFound", Cause.CONFIG),
        (r"_?(pyarrow|json|pickle|zipfile|tarfile|gzip|bz2|lzma|zlib|struct|binascii|csv|wave|xml|lxml|PIL|h5py"
         r"|safetensors(_rust)?|tokenizers|datasets|zarr|netCDF4|soundfile|tifffile|lmdb|webdataset"
         r"|fastavro|openpyxl)\.", Cause.DATA),
        (r"(pandas\.errors\.(Parser|EmptyData|IntCastingNaN|OutOfBounds\w+)Error|sqlite3\.DatabaseError)$",
         Cause.DATA),
        (r"_?duckdb\.(InvalidInput|Conversion|Serialization|OutOfRange|IO)Exception$", Cause.DATA),
        (r"_?duckdb\.(Binder|Catalog|Parser|Syntax)Exception$|sqlite3\.(Programming|Integrity|Interface)",
         Cause.CODE),
    )
)  # fmt: skip
"""Packages, by the beginning of the class's full name, whose exceptions concern what the package reads."""

_LIBRARY = re.compile(r"lib(cuda|nvidia-\w+|amdhip64|hsa-runtime64|ze_loader)\.so\S*: ")
_SHARED_OBJECT = re.compile(r"\S+\.so\b\S*: |.*\bversion `GLIBC")
"""A driver's library that a node lacks, and any library that cannot be loaded."""

_DRIVER = re.compile(r"\b(NVML(_[A-Z]\w+)?|NVRM|Xid|(GPU|device) is lost|fallen off the bus)\b")
_QUOTED = re.compile(r"(?<!\w)(['\"`])[^'\"`\n]*\1")
"""Words of the driver, which count anywhere outside quotation marks."""

_OF_DRIVER = re.compile(r"NVMLError(?!_(InvalidArgument|NotSupported|NoPermission|FunctionNotFound))")
_GPU = re.compile(r"\b(torch|cupy\w*|jax\w*|tensorflow|numba)\.|\b(CUDA|HIP|XPU|MPS|GPU)\b")
_NOT_FINITE = re.compile(r"\b(nans?|infs?|infinity|non-?finite)\b", re.IGNORECASE)
_NOTHING = re.compile(r"\b(num_samples=0|empty|zero (rows|samples|examples))\b")
_TENSORS = re.compile(
    r"\b(tensors?|dim(ension)?s?|shapes?|sizes?|dtypes?|scalar type|grad(ient)?s?|backward|in-place|strides?"
    r"|contiguous|autograd|index|indices|broadcast\w*)\b",
    re.IGNORECASE,
)
_OF_BOTH = re.compile(
    r"\b(CUDA|HIP|NCCL|cu\w+ error|driver|INTERNAL ASSERT|memory|sockets?|connect\w*|time[ds]? ?out|worker"
    r"|file|process|enforce fail|signal)\b",
    re.IGNORECASE,
)
"""Words of libraries: on numbers, on empty input, on tensors, and those that may concern a machine."""

_READERS = re.compile(
    r"(numpy[/\\].*(_npyio|format|npyio)|scipy[/\\]io|pandas[/\\]io|torch[/\\]serialization|torchvision[/\\]io"
    r"|(PIL|json|xml|h5py|pyarrow|datasets|torchaudio|imageio|zarr|xarray[/\\]backends|nibabel|pydicom"
    r"|openpyxl|webdataset|skimage[/\\]io|safetensors|polars[/\\]io)[/\\]|(zipfile|tarfile|gzip|bz2|lzma|wave|csv"
    r"|pickle|_compression|soundfile)\b)"
)
_SETTINGS = re.compile(
    r"[\w./-]+\.(ya?ml|toml|ini|cfg|conf)\b|\bconfig\w*\.json\b|(^|_)(configs?|settings|hparams)(_|$)"
)
"""Modules that read and write files of data, and names of files and functions of the config."""
_WRITING = re.compile(r"_*(write|save|dump|to_|store|export|put|flush|close)")
_PARSING = re.compile(r"(argparse|absl|click|typer|fire|tyro|simple_parsing|jsonargparse|docopt)\b")

_BUCKET = re.compile(r"An error occurred \((\w+)\) when calling the \w+ operation")
_BUSY = frozenset(
    "SlowDown ServiceUnavailable InternalError InternalFailure RequestTimeout Throttling ThrottlingException"
    " RequestLimitExceeded 500 502 503 504".split()
)
"""The code in botocore's messages, and the codes of a service that cannot answer now."""

_SYSTEM = re.compile(r"\[Errno (?P<python>\d+)\]|.*(\(os error |\[errno |code: )(?P<other>\d+)", re.DOTALL)
_NAMES_FILE = re.compile(r"\[Errno \d+\] [^:]+: '")
"""The number of a system error as Python, Rust and Arrow write it, and one of Python that names a file."""
_OF_DISKS = frozenset(
    getattr(errno, name)
    for name in "EIO ENXIO ENODEV EFBIG ENOSPC EROFS ESTALE EUCLEAN EREMOTEIO EDQUOT".split()
    if hasattr(errno, name)
)
"""Numbers of disks that fail."""
_OF_PROCESSES = frozenset((errno.EINVAL, errno.EMFILE, errno.ENFILE, errno.EEXIST, errno.EAGAIN))
"""Numbers that reveal nothing about the cause."""

_OF_NODE = re.compile(r"\[Errno 2\] [^:]+: '/(dev/|([^'/]+/)*pymp-)")
"""A device file, and the folder of a process that died: what the node lacks and not the data."""

_STATUS = re.compile(r"(?:HTTP Error |(?:Client|Server) error '?|)(?P<status>[45]\d\d)\b", re.IGNORECASE)
"""The HTTP status with which the messages of urllib, requests, httpx and huggingface_hub begin."""

_TRY_AGAIN = frozenset({"408", "425", "429"})
"""Statuses that ask for another try. The others from 400 to 499 are answers to a wrong request."""

_BY_MESSAGE = tuple(
    (re.compile(pattern, re.IGNORECASE), cause)
    for pattern, cause in (
        (r"(\w+ error: )?(CUDA|HIP|XPU|MPS)( backend)?( error:)? out of memory|out of GPU m", Cause.OOM_GPU),
        (r"(\w+ error: )?CU[A-Z]+_STATUS_ALLOC_FAILED", Cause.OOM_GPU),
        (r"RESOURCE_EXHAUSTED: out of memory|No available memory for the cache blocks|Free memory on device ",
         Cause.OOM_GPU),
        (r"NCCL\b[\s\S]*(out of memory|Failed to CUDA \w*alloc)", Cause.OOM_GPU),
        (r"NCCL\b[\s\S]*No space left on device", Cause.STORAGE),
        (r"(task|actor|worker)\b.* (node|host) (running low on|out of) memory", Cause.OOM_HOST),
        (r"\[enforce fail at \S*alloc_cpu\S*\]|DefaultCPUAllocator: ", Cause.OOM_HOST),
        (r"std::bad_alloc|\[Errno 12\]|(can't|cannot) allocate (memory|vector)|not enough memory",
         Cause.OOM_HOST),
        (r"DataLoader worker .*out of shared memory", Cause.OOM_HOST),
        (r"(\[[^\]]*\]:? ?)*(NCCL|nccl[A-Z]\w+|Watchdog caught collective)\b", Cause.COMMUNICATION),
        (r"(\[[^\]]*\]:? ?|[\w .()/-]+: )*Connection (reset|closed) by peer", Cause.COMMUNICATION),
        (r"\[\S*/gloo/transport/\S+\] ", Cause.COMMUNICATION),
        (r"([^:]+: )*(No space left on device|Disk quota exceeded)", Cause.STORAGE),
        (r"PytorchStreamWriter failed writing", Cause.STORAGE),
        (r"((training|train|validation|eval\w*) )?(loss|gradients?|grad_norm|perplexity)( value)?"
         r"( at \S+( \d+)?)?:? ?(is|are|was|became|=|:) ?(not finite|non-finite|nan|[+-]?inf)\b", Cause.NAN),
        (r"Expected parameter \w+ [\s\S]*found invalid values", Cause.NAN),
        (r"Function '\w+' returned nan values|probability tensor contains either `inf`, `nan`", Cause.NAN),
        (r"(CUDA (error: )?)?(uncorrectable|hardware stack|CUDA-capable device\S* is/are busy|"
         r"no CUDA-capable|system not yet init|driver shutting|initialization error|"
         r"unknown error)\b", Cause.BAD_NODE),
        (r"Unexpected error from cudaGetDeviceCount|CUDA (driver )?initialization( failed|:)|"
         r"(Failed to initialize )?NVML: |No CUDA GPUs are available", Cause.BAD_NODE),
        (r"(\[Errno (98|100|101|103|104|110|111|112|113)\]|<urlopen error|We couldn't connect to)",
         Cause.COMMUNICATION),
        (r"\[Errno 8\]|Can't load |Couldn't instantiate the backend|\S+ is not a local folder|"
         r"\S+ does not appear to have a file named", Cause.CONFIG),
        (r"\[Errno (7|36)\]", Cause.CODE),
        (r"\[enforce fail at inline_container|(disk I/O error|database or disk is full|database is locked)$",
         Cause.STORAGE),
        (r"Error while serializing: .*(code: 28|No space left)", Cause.STORAGE),
        (r"Error while deserializing|Compressed file ended|Ran out of input|field larger than field limit|"
         r"line contains NUL|PytorchStreamReader failed|Unable to load weights|invalid load key", Cause.DATA),
        (r"mat1 |(the )?(expanded )?sizes? of |size mismatch|shape '|(expected|given|input type) "
         r"|dimension out |stack expects|tensors? must |tensors? used as ind|both arguments", Cause.CODE),
        (r"error\(s\) in loading state_dict|element \d+ of tensors|trying to backward|boolean value of"
         r"|one of the variables needed|a leaf variable|CUDA error: device-side assert"
         r"|\W\w+\W not implemented for", Cause.CODE),
        (r"(encountered |got )?(a )?(nan|non-finite|inf) (in )?(the )?(loss|gradients?)\b", Cause.NAN),
    )
)  # fmt: skip
"""Patterns for the beginning of messages, for classes that do not identify the cause."""


_BY_GENERAL_TYPE = {
    "OutOfMemoryError": Cause.OOM_GPU,  # torch's; Ray's means host memory and matches by message
    "ArithmeticError": Cause.CODE,
    "AssertionError": Cause.CODE,
    "ValueError": Cause.CODE,
}
"""Classes that decide if nothing else does."""


def cause_named(name: object) -> Cause:
    """Return the cause of this name; `unknown` if there is none."""
    return Cause(name) if isinstance(name, str) and name in set(Cause) else Cause.UNKNOWN


def cause_of_exception(names: Sequence[str], message: str) -> Cause:
    """Return the cause of an exception of which only the class and the message are known.

    Args:
        names: its class and base classes, nearest first, with or without their modules.
        message: its text.
    """
    return cause_of(Raised(tuple(names) or ("",), message))


def cause_of(raised: Raised) -> Cause:
    """Return the cause of an exception.

    What led to it counts instead in two cases. First, if its own evidence is weaker: a ``ValueError`` raised
    from a ``JSONDecodeError`` is `data`. Second, if it would blame the user for a machine::

        OSError: [Errno 28] No space left on device               storage
        RuntimeError: cannot save   raised while it was handled   storage
        NameError: tyop             raised while it was handled   code: no `raise` statement, so a mistake
    """
    cause, is_sure = _judged(raised)
    if raised.before is None or not (raised.is_declared or raised.is_stated):
        return cause
    before = cause_of(raised.before)
    if before in OF_MACHINES and (cause in DETERMINISTIC or not is_sure):
        return before
    return cause if is_sure or before is Cause.UNKNOWN or not raised.is_declared else before


def _judged(raised: Raised) -> tuple[Cause, bool]:
    """Return the cause by an exception's own evidence, and whether more than a general class shows it."""
    if raised.members:  # a group: which of several causes came first is not known
        causes = {cause_of(member) for member in raised.members}
        return (causes.pop(), True) if len(causes) == 1 else (Cause.UNKNOWN, True)
    for rule in _RULES:
        cause = rule(raised)
        if cause is Cause.DATA and _OF_NODE.match(raised.text):
            return Cause.UNKNOWN, False
        if cause is Cause.DATA and _is_about_settings(raised):
            return Cause.CONFIG, True
        if cause is not None:
            return cause, True
    found = (_BY_GENERAL_TYPE[name] for name in raised.classes if name in _BY_GENERAL_TYPE)
    return next(found, Cause.UNKNOWN), False


def _by_status(raised: Raised) -> Cause | None:
    if not any("HTTP" in name for name in raised.classes) or not (match := _STATUS.match(raised.text)):
        return None
    is_wrong = match["status"] < "500" and match["status"] not in _TRY_AGAIN
    return Cause.CONFIG if is_wrong else Cause.COMMUNICATION


def _by_library(raised: Raised) -> Cause | None:
    """Return the cause where a shared library cannot be loaded: a driver's, or one of unknown origin."""
    if not {"ImportError", "OSError"} & set(raised.classes):
        return None
    if _LIBRARY.match(raised.text):
        return Cause.BAD_NODE
    return Cause.UNKNOWN if _SHARED_OBJECT.match(raised.text) else None


def _by_class(raised: Raised) -> Cause | None:
    if _OF_DRIVER.match(raised.classes[0]):
        return Cause.BAD_NODE
    if OUT_OF_MEMORY.search(raised.classes[0]) and _by_message(raised) is None:
        is_host = "." in raised.names[0] and not _GPU.search(f"{raised.names[0]} {raised.text}")
        return Cause.OOM_HOST if is_host else Cause.OOM_GPU
    if raised.classes[0] == "SystemExit":
        is_usage = raised.text == "2" and any(_PARSING.match(frame.module) for frame in raised.inside)
        return Cause.CONFIG if is_usage else Cause.UNKNOWN
    package = _package(raised)
    for name in raised.classes:
        cause = _BY_TYPE.get(name)
        if cause is Cause.COMMUNICATION and (package is Cause.DATA or _NAMES_FILE.match(raised.text)):
            continue  # such as tarfile.ReadError, or a network file system that broke its connection
        # A parse error may be derived from SyntaxError: its base classes are no evidence against its package.
        if cause is not None and not (cause is Cause.CODE and package and name != raised.classes[0]):
            return cause
    return None


def _by_message(raised: Raised) -> Cause | None:
    text = raised.text.lstrip()
    cause = next((cause for pattern, cause in _BY_MESSAGE if pattern.match(text)), None)
    if cause is Cause.COMMUNICATION and _NAMES_FILE.match(text):
        return None
    # What blames the user are beginnings of general messages, such as torch's: a package says more.
    return _package(raised) or cause if cause in DETERMINISTIC else cause


def _by_number(raised: Raised) -> Cause | None:
    """Return the cause by the number of a system error, or by the code of a bucket's answer."""
    if match := _BUCKET.match(raised.text):
        return Cause.STORAGE if match[1] in _BUSY else Cause.UNKNOWN
    if not (match := _SYSTEM.match(raised.text)):
        return None
    number = int(match["python"] or match["other"])
    if number in _OF_DISKS:
        return Cause.STORAGE
    is_of_system = match["python"] and "OSError" in raised.classes
    return Cause.STORAGE if is_of_system and number not in _OF_PROCESSES else None


def _by_package(raised: Raised) -> Cause | None:
    if raised.classes[0] == "ValidationError" and raised.names[0].lstrip("_").startswith("pydantic"):
        model = raised.text.partition(" for ")[2].split("\n")[0].lower()
        is_config = any(word in model for word in ("config", "setting", "args", "option", "param"))
        return Cause.CONFIG if is_config else Cause.UNKNOWN
    return _package(raised)


def _package(raised: Raised) -> Cause | None:
    return next((cause for pattern, cause in _BY_PACKAGE if pattern.match(raised.names[0])), None)


def _by_words(raised: Raised) -> Cause | None:
    """Return the cause by words inside a message, which must be a library's own."""
    text = raised.text.partition("\n")[0]  # in a log, the next lines may be another program's
    if _DRIVER.search(_QUOTED.sub("", text)) and "ValueError" not in raised.classes:
        return Cause.BAD_NODE
    if not raised.is_of_library:
        return None
    if _NOT_FINITE.search(text):
        of_rows = raised.inside and re.match(r"(pandas|sklearn|polars|pyarrow)\b", raised.inside[-1].module)
        return Cause.DATA if of_rows else Cause.NAN
    if raised.inside and _NOTHING.search(text):
        return Cause.DATA
    is_of_tensors = "RuntimeError" in raised.classes and _TENSORS.search(text)
    return Cause.CODE if is_of_tensors and not _OF_BOTH.search(text) else None


def _by_place(raised: Raised) -> Cause | None:
    """Return the cause by the reader, writer or loader inside which a general class was raised."""
    frames = [frame for frame in raised.inside if _READERS.match(frame.module)]
    if frames and any(_WRITING.match(frame.function) for frame in frames):
        return Cause.STORAGE if "OSError" in raised.classes else None
    if frames:
        return Cause.DATA
    is_loader = any(re.match(r"transformers\b", frame.module) for frame in raised.inside)
    return Cause.CONFIG if is_loader and "OSError" in raised.classes else None


_RULES: tuple[Callable[[Raised], Cause | None], ...] = (
    *(_by_status, _by_library, _by_class, _by_message, _by_number, _by_package, _by_words, _by_place),
)
"""The evidence, the strongest first."""


def _is_about_settings(raised: Raised) -> bool:
    """Whether what could not be read is a file of the config, by its name or by the function that read it."""
    own = [frame for frame in raised.frames if not frame.module][-1:]
    return any(
        _SETTINGS.search(words)
        for words in (raised.text[:2000].split("\n")[0], *(frame.function for frame in own))
    )

"""How to find the cause of an exception. Pure.

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

import builtins
import errno
import re
from collections.abc import Callable, Sequence

from orchestrator.core import patterns, words
from orchestrator.core.failure import DETERMINISTIC, OF_MACHINES, Cause
from orchestrator.core.patterns import lazily
from orchestrator.core.tracebacks import OUT_OF_MEMORY, Raised, with_bases

_BY_TYPE = {name: Cause(cause) for cause, names in patterns.CLASSES.items() for name in names.split()}
_BY_PACKAGE = tuple((lazily(pattern), Cause(cause)) for pattern, cause in patterns.PACKAGES)
_BY_MESSAGE = tuple((lazily(pattern, re.IGNORECASE), Cause(cause)) for pattern, cause in patterns.MESSAGES)
_BY_CLASS_WORDS = tuple((lazily(pattern), Cause(cause)) for pattern, cause in patterns.CLASS_WORDS)
"""The tables of `orchestrator.core.patterns`, compiled."""

_LIBRARY = lazily(r"lib(cuda|nvidia-\w+|amdhip64|hsa-runtime64|ze_loader)\.so\S*: ")
_SHARED_OBJECT = lazily(r"\S+\.so\b\S*: |.*\bversion `GLIBC")
_OTHER_BUILD = lazily(r"\S+-packages/\S+\.so: undefined symbol: ")
"""A driver's library that a node lacks, any that cannot be loaded, and one built for another version."""

_OF_DRIVER = lazily(r"NVMLError(?!_(InvalidArgument|NotSupported|NoPermission|FunctionNotFound))")
_ON_HOST = lazily(r"(?![\s\S]*device:GPU)[\s\S]*device:CPU")
_NOT_FINITE = lazily(
    r"(?<![(\[]-)\b(nans?|infs?|infinity|non-?finite)\b(?! (check|detect|polic|handl)|[\])])", re.IGNORECASE
)
_VALUE = lazily(r"[:=] ?[-+]?(nan|inf)\b", re.IGNORECASE)
_GPU_MEMORY = lazily(r"\b(cuda|hip|gpu)\w*\b.*\bout of memory\b", re.IGNORECASE)
_OF_ROWS = lazily(r"\b(input|data|rows?|columns?|features?|labels?|samples?)\b.* contains?\b", re.IGNORECASE)
_NOTHING = lazily(r"\b(num_samples=0|empty|zero (rows|samples|examples))\b")
_TENSORS = lazily(
    r"\b(tensors?|dim(ension)?s?|shapes?|sizes?|dtypes?|scalar type|grad(ient)?s?|backward|in-place|strides?"
    r"|contiguous|autograd|index|indices|broadcast\w*)\b",
    re.IGNORECASE,
)
_NUMERIC = lazily(r"(torch\w*|functorch|jax\w*|flax|numpy|einops|tensorflow|keras)\b")
_OF_BOTH = lazily(
    r"\b(CUDA|HIP|NCCL|cu\w+ error|driver|INTERNAL ASSERT|memory|sockets?|connect\w*|time[ds]? ?out|worker"
    r"|file|process|enforce fail|signal)\b",
    re.IGNORECASE,
)
"""Words of libraries: on numbers, on empty input, on tensors, and those that may concern a machine."""

_READERS = lazily(
    r"(numpy[/\\].*(_npyio|format|npyio)|scipy[/\\]io|pandas[/\\]io|torch[/\\]serialization|torchvision[/\\]io"
    r"|(PIL|json|xml|h5py|pyarrow|datasets|torchaudio|imageio|zarr|xarray[/\\]backends|nibabel|pydicom"
    r"|openpyxl|webdataset|skimage[/\\]io|safetensors|polars[/\\]io)[/\\]|(zipfile|tarfile|gzip|bz2|lzma|wave|csv"
    r"|pickle|_compression|soundfile)\b)"
)
"""Modules that read and write files of data."""
_CHECKING = lazily(r".*[/\\](\w+_)?(config|settings|arguments|training_args)\w*\.py$")
_CHECK = lazily(r"_*(check|validate|verify)_\w*(args|arguments?|params?|parameters?|config|settings|options)")
_WRITING = lazily(r"_*(write|save|dump|to_|store|export|put|flush|close)")
_PARSING = lazily(r"(argparse|absl|click|typer|fire|tyro|simple_parsing|jsonargparse|docopt)\b")

_BUCKET = lazily(r"An error occurred \((\w+)\) when calling the \w+ operation")
_BUSY = frozenset(
    "SlowDown ServiceUnavailable InternalError InternalFailure RequestTimeout Throttling ThrottlingException"
    " RequestLimitExceeded 500 502 503 504".split()
)
"""The code in botocore's messages, and the codes of a service that cannot answer now."""

_SYSTEM = lazily(
    r"\[Errno (?P<python>\d+)\]|.*(\(os error |\[errno |code: |\berrno ?[=:] ?)(?P<other>\d+)", re.DOTALL
)
_NAMES_FILE = lazily(r"\[Errno \d+\] [^:]+: '")
"""The number of a system error as Python, Rust and Arrow write it, and one of Python that names a file."""
_OF_DISKS = frozenset(
    getattr(errno, name)
    for name in "EIO ENXIO ENODEV EFBIG ENOSPC EROFS ESTALE EUCLEAN EREMOTEIO EDQUOT".split()
    if hasattr(errno, name)
)
_OF_NETWORKS = frozenset(
    getattr(errno, name)
    for name in "EADDRINUSE ENETUNREACH ECONNRESET ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH".split()
)
"""Numbers of disks and of networks that fail."""
_OF_PROCESSES = frozenset((errno.EINVAL, errno.EMFILE, errno.ENFILE, errno.EEXIST, errno.EAGAIN))
"""Numbers that reveal nothing about the cause."""

_OF_NODE = lazily(r"\[Errno 2\] [^:]+: '/(dev/(?!shm/[^']*/)|([^'/]+/)*pymp-)")
"""A device file, and the folder of a process that died: what the node lacks and not the data."""

_STATUS = lazily(
    r"(?:HTTP Error |(?:Client|Server) error '?|Error code: |<HttpError |)(?P<status>[45]\d\d)\b",
    re.IGNORECASE,
)
_OF_HTTP = lazily(r"HTTP|ResponseError|StatusError|(Service|Api)(Exception|Error)$", re.IGNORECASE)
"""The HTTP status with which the messages of clients begin, and the names of their classes."""

_TRY_AGAIN = frozenset({"408", "425", "429"})
"""Statuses that ask for another try. The others from 400 to 499 are answers to a wrong request."""

_OF_ENDS = frozenset({"SystemExit", "KeyboardInterrupt", "CalledProcessError", "TimeoutExpired"})
"""Exceptions whose message is about another process, or of no library."""

_BY_GENERAL_TYPE = {
    "OutOfMemoryError": Cause.OOM_GPU,  # torch's; Ray's means host memory and matches by message
    "ArithmeticError": Cause.CODE,
    "AssertionError": Cause.CODE,
    "ValueError": Cause.CODE,
}
"""Classes that decide if nothing else does."""


def cause_of_exception(names: Sequence[str], message: str) -> Cause:
    """Return the cause of an exception of which only the class and the message are known.

    Args:
        names: its class and base classes, nearest first, with or without their modules.
        message: its text.
    """
    return cause_of(Raised(tuple(names) or ("",), message))


def cause_of(raised: Raised) -> Cause:
    """Return the cause of an exception.

    What led to it counts instead in two cases. First, if its own evidence is weaker: a ``ValueError`` that is
    raised from a ``JSONDecodeError``, or where that is handled, is `data`. Second, if it would blame the user
    for a machine::

        OSError: [Errno 28] No space left on device               storage
        RuntimeError: cannot save   raised while it was handled   storage
        NameError: tyop             raised while it was handled   code: no `raise` statement, so a mistake
    """
    if match := patterns.HANDED_ON.match(raised.text):
        names = with_bases(match["name"] or match["java"] or "RuntimeError")
        raised = raised._replace(names=names, text=raised.text[match.end() :])
    cause, is_sure = _judged(raised)
    if raised.before is None or not (raised.is_declared or raised.is_stated):
        return cause
    before = cause_of(raised.before)
    if before in OF_MACHINES and (cause in DETERMINISTIC or not is_sure):
        return before
    # A mistake that was handled, such as a missing key, is often a setting or a row that lacks something.
    is_answer = raised.is_declared or (raised.is_answer and before is not Cause.CODE)
    return cause if is_sure or before is Cause.UNKNOWN or not is_answer else before


def _judged(raised: Raised) -> tuple[Cause, bool]:
    """Return the cause by an exception's own evidence, and whether more than a general class shows it."""
    if raised.members:  # a group: which of several causes came first is not known
        causes = {cause_of(member) for member in raised.members}
        return (causes.pop(), True) if len(causes) == 1 else (Cause.UNKNOWN, True)
    for rule in _RULES:
        cause = rule(raised)
        if cause in DETERMINISTIC and (failed := _of_machine(raised, cause)) is not None:
            return failed, True
        if cause is Cause.DATA and _OF_NODE.match(raised.text):
            return Cause.UNKNOWN, False
        if cause is Cause.DATA and _is_about_settings(raised):
            return Cause.CONFIG, True
        if cause is Cause.CODE and _is_of_settings(raised):
            return Cause.CONFIG, True
        if cause is not None:
            return cause, True
    found = (_BY_GENERAL_TYPE[name] for name in raised.classes if name in _BY_GENERAL_TYPE)
    cause = next(found, Cause.UNKNOWN)
    if cause in {Cause.CODE, Cause.UNKNOWN} and raised.classes[0] not in _OF_ENDS:
        if (failed := _of_machine(raised, cause)) is not None:
            return failed, True
        if words.NAN.search(raised.text[:2000]):
            return Cause.NAN, True
    is_setting = words.SETTING.search(words.unquoted(raised.text.partition("\n")[0])) is not None
    is_setting = is_setting and raised.is_of_library
    if is_setting or (cause is Cause.CODE and _is_of_settings(raised)):
        return Cause.CONFIG, True
    return cause, False


def _by_status(raised: Raised) -> Cause | None:
    is_of_http = any(map(_OF_HTTP.search, raised.classes)) or raised.text.startswith("Error code: ")
    if not is_of_http or not (match := _STATUS.match(raised.text)):
        return None
    is_wrong = match["status"] < "500" and match["status"] not in _TRY_AGAIN
    return Cause.CONFIG if is_wrong else Cause.COMMUNICATION


def _by_library(raised: Raised) -> Cause | None:
    """Return the cause where a shared library cannot be loaded: a driver's, or one of unknown origin."""
    if not {"ImportError", "OSError"} & set(raised.classes):
        return None
    if _LIBRARY.match(raised.text):
        return Cause.BAD_NODE
    if _OTHER_BUILD.match(raised.text):
        return Cause.CODE
    return Cause.UNKNOWN if _SHARED_OBJECT.match(raised.text) else None


def _by_class(raised: Raised) -> Cause | None:
    if _OF_DRIVER.match(raised.classes[0]):
        return Cause.BAD_NODE
    if "MemoryError" in raised.classes and words.GPU.search(f"{raised.names[0]} {raised.text[:2000]}"):
        return Cause.OOM_GPU
    if OUT_OF_MEMORY.search(raised.classes[0]) and _by_message(raised) is None:
        if words.of_system(raised.text.partition("\n")[0]) is Cause.STORAGE:
            return Cause.STORAGE  # TensorFlow has one class for both
        text = f"{raised.names[0]} {raised.text}"
        is_host = "." in raised.names[0] and (not words.GPU.search(text) or _ON_HOST.match(text))
        return Cause.OOM_HOST if is_host else Cause.OOM_GPU
    if raised.classes[0] == "SystemExit":
        is_usage = raised.text == "2" and any(_PARSING.match(frame.module) for frame in raised.inside)
        return Cause.CONFIG if is_usage else Cause.UNKNOWN
    package = _package(raised)
    at = raised.inside[-1].module if raised.inside else ""
    for name in raised.classes:
        cause = _BY_TYPE.get(name)
        if name == "LookupError" and package is None and at.startswith("h5py"):
            return Cause.DATA  # it has no such group
        if cause is Cause.COMMUNICATION and (own := _by_message(raised)) in {*OF_MACHINES, Cause.UNKNOWN}:
            return own  # NCCL has one class for what its network, a GPU or a disk lacked
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
    # What blames the user are beginnings of general messages, such as torch's: a package or a reader of data
    # is stronger evidence.
    if cause not in DETERMINISTIC:
        return cause
    return _package(raised) or (Cause.DATA if _by_place(raised) is Cause.DATA else cause)


def _by_number(raised: Raised) -> Cause | None:
    """Return the cause by the number of a system error, or by the code of a bucket's answer."""
    if match := _BUCKET.match(raised.text):
        return Cause.STORAGE if match[1] in _BUSY else Cause.UNKNOWN
    if not (match := _SYSTEM.match(raised.text)):
        return None
    number = int(match["python"] or match["other"])
    if number in _OF_DISKS:
        return Cause.STORAGE
    if match["other"] and number in _OF_NETWORKS:
        return Cause.COMMUNICATION
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
    if "ValueError" not in raised.classes and (cause := words.of_driver(text)):
        return cause
    if not raised.is_of_library:
        return None
    if _GPU_MEMORY.search(raised.text[:2000]):
        return Cause.OOM_GPU
    if _NOT_FINITE.search(text):
        reader = r"(pandas|sklearn|polars|pyarrow)\b"
        of_rows = _OF_ROWS.search(text) or (raised.inside and re.match(reader, raised.inside[-1].module))
        return Cause.DATA if of_rows else Cause.NAN
    if raised.inside and _NOTHING.search(text):
        return Cause.DATA
    is_of_tensors = {"RuntimeError", "InvalidArgumentError"} & set(raised.classes) and (
        not raised.inside or _NUMERIC.match(raised.inside[-1].module)
    )
    is_of_tensors = is_of_tensors and _TENSORS.search(re.sub(r"\S*/\S*", "", raised.text))
    return Cause.CODE if is_of_tensors and not _OF_BOTH.search(raised.text) else None


def _by_place(raised: Raised) -> Cause | None:
    """Return the cause by the reader, writer or loader inside which a general class was raised."""
    frames = [frame for frame in raised.inside if _READERS.match(frame.module)]
    if frames and any(_WRITING.match(frame.function) for frame in frames):
        return Cause.STORAGE if "OSError" in raised.classes or "iostream error" in raised.text else None
    if frames:
        return Cause.DATA
    is_loader = any(re.match(r"transformers\b", frame.module) for frame in raised.inside)
    return Cause.CONFIG if is_loader and "OSError" in raised.classes else None


def _by_quoted_system(raised: Raised) -> Cause | None:
    """Return what a machine lacked or a reader met, where the message of a library states it."""
    if not raised.is_of_library:
        return None
    cause = words.of_words(raised.text.partition("\n")[0])
    if cause is Cause.UNKNOWN and _VALUE.search(raised.text[:2000]):
        return Cause.NAN
    is_general = any(name in _BY_GENERAL_TYPE for name in raised.classes)
    if is_general and cause in DETERMINISTIC and not (cause is Cause.DATA and raised.is_stated):
        return None
    return None if cause is Cause.UNKNOWN else cause


def _by_name(raised: Raised) -> Cause | None:
    """Return the cause by words in the name of a class that a library or a program defines."""
    own = (name for name in raised.classes if not hasattr(builtins, name))
    found = (cause for name in own for pattern, cause in _BY_CLASS_WORDS if pattern.search(name))
    return next(found, None)


_RULES: tuple[Callable[[Raised], Cause | None], ...] = (
    *(_by_status, _by_library, _by_class, _by_message, _by_number, _by_package, _by_words, _by_place,
      _by_quoted_system, _by_name),
)  # fmt: skip
"""The evidence, the strongest first."""


def _is_of_settings(raised: Raised) -> bool:
    """Whether a module of a library that checks settings raised it."""
    last = raised.frames[-1] if raised.frames else None
    if last is None or not raised.is_stated:
        return False
    return _CHECKING.match(last.file) is not None or _CHECK.match(last.function) is not None


def _is_about_settings(raised: Raised) -> bool:
    """Whether what could not be read is a file of the config, by its name or by the function that read it."""
    own = [frame for frame in raised.frames if not frame.module][-1:]
    return any(
        words.SETTINGS.search(text)
        for text in (raised.text[:2000].split("\n")[0], *(frame.function for frame in own))
    )


def _of_machine(raised: Raised, cause: Cause) -> Cause | None:
    """Return the cause if the message of an error that is not the system's own states a machine's failure.

    Its beginning or class may be that of a mistake: ``size mismatch: read 1 of 2 bytes: Input/output error``.
    """
    if _SYSTEM.match(raised.text) or "SyntaxError" in raised.classes:
        return None
    text = words.unquoted(raised.text.partition("\n")[0])
    found = (words.of_driver(text), words.of_system(text))
    if (system := next((each for each in found if each in OF_MACHINES), None)) is not None:
        return system
    phrase = words.of_phrases(text)
    # A mistake may be about memory, as in ``TypeError: CUDA out of memory handler takes 1 argument``.
    is_other = cause is Cause.DATA or phrase not in {Cause.OOM_GPU, Cause.OOM_HOST}
    return phrase if phrase in OF_MACHINES and is_other else None

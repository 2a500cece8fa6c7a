"""Classes, messages and words by which libraries, programs and machines report failures. Pure tables.

A cause stands here by its name, a member of `Cause`. `orchestrator.core.causes` weighs this evidence
for exceptions, `orchestrator.core.exits` for the ends of logs. Every table holds what a library, a
runtime or a system prints for each of its users, never what one program prints.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, cast


class _Lazy:
    def __init__(self, expression: str, flags: int) -> None:
        self._expression, self._flags = expression, flags

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self._expression, self._flags)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._compiled, name)
        setattr(self, name, found)
        return found


def lazily(expression: str, flags: int = 0) -> re.Pattern[str]:
    """Return a pattern that is compiled when it is first used: most processes see no failure.

    To compile all of them took a quarter of the time in which a worker starts.
    """
    return cast(re.Pattern[str], _Lazy(expression, flags))


CLASSES = {
    "oom_host": "MemoryError ObjectStoreFullError",
    "nan": "FloatingPointError",
    "data": """
        FileNotFoundError IsADirectoryError UnicodeDecodeError JSONDecodeError BadZipFile
        BadGzipFile UnpicklingError ArrowInvalid EmptyDataError DatasetGenerationError
        DataFilesNotFoundError UnidentifiedImageError DataLossError
    """,
    "communication": """
        TimeoutError ConnectionError DistBackendError DistNetworkError DistStoreError gaierror
        herror URLError SSLError ConnectError ConnectTimeout ReadTimeout WriteTimeout PoolTimeout
        ReadError RemoteProtocolError IncompleteRead ProtocolError MaxRetryError NewConnectionError
        NameResolutionError ChunkedEncodingError EndpointConnectionError LocalEntryNotFoundError
        ServerDisconnectedError APIConnectionError APITimeoutError CommError CommClosedError
        ClientConnectorError ClientPayloadError ClientOSError ServiceUnavailable GatewayTimeout
        TooManyRequests ResourceExhausted DeadlineExceeded UnavailableError DeadlineExceededError
        InternalServerError
    """,
    "code": """
        ImportError SyntaxError NameError AttributeError TypeError LookupError NotImplementedError
        RecursionError ConfigAttributeError ConfigKeyError OutOfResources CompilationError
        PicklingError
    """,
    "config": """
        MissingMandatoryValue InterpolationKeyError InterpolationResolutionError UserError
        MisconfigurationException MisconfigurationError ConfigurationError ConfigError UsageError
    """,
    "storage": "InfrastructureError OutOfDiskError",
    "node_lost": "NodeDiedError",
}
"""Names of classes that decide, whatever their message."""

PACKAGES = (
    (r"_?(yaml|ruamel|omegaconf|tomllib|tomli\w*|tomlkit|toml|configparser|argparse|click|typer|absl|gin"
     r"|antlr4|jsonargparse|pydantic_settings|hydra(?!\.errors\.Instantiation))\.", "config"),
    (r"huggingface_hub\.|datasets\.exceptions\.DatasetNotFound", "config"),
    (r"_?(pyarrow|json|pickle|zipfile|tarfile|gzip|bz2|lzma|zlib|struct|binascii|csv|wave|xml|lxml|PIL|h5py"
     r"|safetensors(_rust)?|tokenizers|datasets|zarr|netCDF4|soundfile|tifffile|lmdb|webdataset"
     r"|fastavro|openpyxl)\.", "data"),
    (r"(pandas\.errors\.(Parser|EmptyData|IntCastingNaN|OutOfBounds\w+)Error|sqlite3\.DatabaseError)$",
     "data"),
    (r"_?duckdb\.(InvalidInput|Conversion|Serialization|OutOfRange|IO)Exception$", "data"),
    (r"_?duckdb\.(Binder|Catalog|Parser|Syntax)Exception$|sqlite3\.(Programming|Integrity|Interface)",
     "code"),
    (r"torch\.(_dynamo\.exc\.Unsupported|jit\.frontend\.|fx\.proxy\.TraceError)|jax\.errors\.(?!JaxRuntime)",
     "code"),
)  # fmt: skip
"""Packages, by the beginning of the class's full name, whose exceptions concern what the package reads."""

_GPU = (
    r"((\w+ error|Triton Error \[\w+\]): )?(CUDA|HIP|XPU|MPS)( (driver|runtime|backend))?"
    r"( error( \(\d+\) ?)?)?"
)
MESSAGES = (
    (rf"({_GPU}:?|Triton Error \[\w+\]:) out of memory|out of GPU m", "oom_gpu"),
    (r"No available memory for the cache blocks|Free memory on device ", "oom_gpu"),
    (r"RESOURCE_EXHAUSTED: (out of memory|failed to allocate)", "oom_gpu"),
    (r"NCCL\b[\s\S]*(out of memory|Failed to CUDA \w*alloc)", "oom_gpu"),
    (r"NCCL\b[\s\S]*uncorrectable ECC", "bad_node"),
    (r"Consistency check failed: file should be of size", "communication"),
    (r"NCCL\b[\s\S]*No space left on device", "storage"),
    (r"(\[[^\]]*\]:? ?)*NCCL\b[\s\S]*(ncclInvalidUsage|ncclInvalidArgument|Duplicate GPU)", "unknown"),
    (r"(task|actor|worker)\b.* (node|host) (running low on|out of) memory", "oom_host"),
    (r"The actor died because its node has died", "node_lost"),
    (r"\[enforce fail at \S*alloc_cpu\S*\]|DefaultCPUAllocator: ", "oom_host"),
    (r"std::bad_alloc|\[Errno 12\]|(can't|cannot) allocate (memory|vector)|not enough memory: ", "oom_host"),
    (r"DataLoader worker .*out of shared memory", "oom_host"),
    (r"(\[[^\]]*\]:? ?)*(NCCL|nccl[A-Z]\w+|Watchdog caught collective)\b", "communication"),
    (r"(\[[^\]]*\]:? ?+|[\w .()/-]+: )*Connection (reset|closed) by peer", "communication"),
    (r"\[\S*/gloo/transport/\S+\] ", "communication"),
    (r"(UNAVAILABLE|DEADLINE_EXCEEDED): |<_\w*Rpc\w*Error of RPC[\s\S]*StatusCode\.(UNAVAILABLE|DEADLINE_E)",
     "communication"),
    (r"DATA_LOSS: ", "data"),
    (r"([^:]+: )*(No space left on device|Disk quota exceeded)", "storage"),
    (r"PytorchStreamWriter failed writing", "storage"),
    (r"((training|train|validation|eval\w*) )?(loss|gradients?|grad_norm|perplexity)( value)?"
     r"( at \S+( \d+)?)?:? ?(is|are|was|became|=|:) ?(not finite|non-finite|nan|[+-]?inf)\b", "nan"),
    (r"Expected parameter \w+ [\s\S]*found invalid values", "nan"),
    (r"Function '\w+' returned nan values|probability tensor contains either `inf`, `nan`", "nan"),
    (r"(Current loss scale already at|Minimum loss scale reached)", "nan"),
    (rf"({_GPU}:? )?(uncorrectable|hardware stack|CUDA-capable device\S* is/are busy|"
     r"no CUDA-capable|system not yet init|driver shutting|initialization error|"
     r"unknown error)\b", "bad_node"),
    (r"Unexpected error from cudaGetDeviceCount|CUDA (driver )?initialization( failed|:)|"
     r"(Failed to initialize )?NVML: |No CUDA GPUs are available|The NVIDIA driver on your system is too old"
     r"|Found no NVIDIA driver on your system", "bad_node"),
    (r"(\[Errno (98|100|101|103|104|110|111|112|113)\]|<urlopen error|We couldn't connect to)",
     "communication"),
    (r"\[Errno 8\]|Can't load |Couldn't instantiate the backend|\S+ is not a local folder|"
     r"\S+ does not appear to have a file named|You are trying to access a gated repo|"
     r"Access to \w+ \S+ is restricted", "config"),
    (r"\[Errno (7|36)\]", "code"),
    (r"\[enforce fail at inline_container|(disk I/O error|database or disk is full|database is locked"
     r"|attempt to write a readonly database)$", "storage"),
    (r"Error while deserializing|Compressed file ended|Ran out of input|field larger than field limit|"
     r"line contains NUL|PytorchStreamReader failed|Unable to load weights|invalid load key", "data"),
    (r"(data did not match|missing field|expected |invalid (type|value)|unknown (field|variant)|trailing |"
     r"EOF while parsing).* at line \d+ column \d+$", "data"),
    (r"no such (table|column): |near \".*\": syntax error", "code"),
    (r"mat1 |(the )?(expanded )?sizes? of |size mismatch|shape '|(expected|given|input type) "
     r"|dimension out |stack expects|tensors? must |tensors? used as ind|both arguments", "code"),
    (r"error\(s\) in loading state_dict|element \d+ of tensors|trying to backward|boolean value of"
     r"|one of the variables needed|a leaf variable|CUDA error: device-side assert"
     r"|\W\w+\W not implemented for", "code"),
)  # fmt: skip
"""Beginnings of messages, for classes that do not identify the cause. The first that matches counts."""

HANDED_ON = lazily(
    r"(?:\[[^\]]*\]:? ?)*(?:Process group|NCCL) watchdog thread terminated with exception: "
    r"|backend='\w+' raised:\n(?:(?P<name>[\w.]+): )?"
    r"|An error occurred while calling \S+\.\n: (?P<java>[\w.$]+)(?:: |$)"
)
"""What torch and Py4J write before the message of an error that it hands on, and the class of that error."""

POINTS_ABOVE = lazily(
    r".*\b(?:inspect|see|check) (?:the )?previous (?:errors?|exceptions?|logs?)\b"
    r"|.*\b(?:see|check) (?:the )?(?:root cause|(?:\w+ )?(?:stack ?trace|traceback|logs?|errors?|output))"
    r" above",
    re.IGNORECASE,
)
"""A message that holds no reason, and points to an earlier one."""

RETRY = lazily(r"\b(re-?try(ing)?|re-?tries|attempts?|giving up|re-?connect\w*)\b", re.IGNORECASE)
"""What a client writes before it gives up."""

CLASS_WORDS = (
    (r"(Disk|Storage)\w*(Full|Quota|Space)|NoSpace|OutOf(Disk|Space)", "storage"),
    (r"Connect(ion|ivity)?(Error|Exception|Failure|Failed|Refused|Reset|Lost|Closed|Aborted|Timeout)|Time(d_?)?[oO]ut"
     r"(?!Expired)|Network(?!X)|Unreachable|Unavailable|Disconnect|NoBrokers|NoHost|NoServers|TooManyRequests|RateLimit"
     r"|Throttl|BrokenPipe|Handshake|NameResolution|Heartbeat", "communication"),
    (r"NonFinite|NotFinite|Nan(Loss|Error|Value|Detected)|Diverge(d|nce)", "nan"),
    (r"Shape\w*Error|Dimension|Broadcast|D[tT]ypeError|Tracer|Concretization|NotImplemented|DataDependent|Compil(e|ation)"
     r"|SyntaxError|Unsupported(Op|Func)", "code"),
    (r"Config\w*(Error|Exception)|Settings?(Error|Exception)|Credentials?|(Missing|Unknown|Bad)Argument|BadOption|NoSuchOption"
     r"|Parameter(Validation)?(Error|Exception)|Usage(Error|Exception)|Unauthori|Forbidden|AccessDenied"
     r"|(Environment|Package|Profile)s?NotFound", "config"),
    (r"Pars(e|ing|er)(Error|Exception)|Decod(e|ing)|Deseriali[sz]|Corrupt|Truncat|Checksum|Malformed|BadFile|BadZip"
     r"|(File|Image|Data|Media)Format|NoSuchFile|InvalidHeader|InvalidFormat|InvalidProtobuf|Unidentified|Data(set|File)s?(Error|Exception|NotFound)|FileNotFound"
     r"|Schema(Error|Exception|Mismatch)", "data"),
)  # fmt: skip
"""Words in the names of classes of libraries that no other table knows."""

PRINTED = lazily(r"((?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception))): (.+)$")
"""An exception that a program caught and printed as its last line, without the traceback."""

KILLED = (
    (r"(slurmstepd: error: Detected \d+ oom[_-]kill event.*)", "oom_host"),
    (r"(srun: error: \S+: tasks? [\d,-]+: Out Of Memory.*)", "oom_host"),
    (r".*\b((?:Memory cgroup out|Out) of memory: Kill(?:ed)? process.*|\bOOMKilled\b.*)", "oom_host"),
    (r"(slurmstepd: error: .* DUE TO TIME LIMIT.*|.*\b(?:job killed: walltime|TERM_RUNLIMIT).*)", "timeout"),
    (r"(slurmstepd: error: .* DUE TO PREEMPTION.*)", "preempted"),
    (r"(slurmstepd: error: .* DUE TO NODE FAILURE.*|srun: error: Node failure on .*)", "node_lost"),
)
"""Lines by which schedulers and kernels report why they ended a process. They count after a signal too."""

LAST_WORDS = (
    *KILLED,
    (r"terminate called after throwing an instance of '(std::bad_alloc)'", "oom_host"),
    (r"(?:[\w./-]+: )++(.*(?:No space left on device|Disk quota exceeded|Stale file handle"
     r"|Input/output error|Read-only file system|[Tt]ransport endpoint (?:is not connected|shutdown)))$",
     "storage"),
    (r"(?:\S+: )*(error while loading shared libraries: "
     r"lib(?:cuda|nvidia-[\w-]+|amdhip64|hsa-runtime64|ze_loader)\.so.*)", "bad_node"),
    (r"(?:\S+: )*(error while loading shared libraries: .*)", "unknown"),
    (r"(?:[\w./-]+: )++(can't open file .*\[Errno 2\].*)$", "code"),
    (r"(memory allocation of \d+ bytes failed)$", "oom_host"),
    (r"((?:srun|sbatch|salloc): error: .*(?:More processors requested|Requested node config|Memory spec"
     r"|CPU count per node|Job request does not|Invalid (?:partition|account|qos|generic)).*)", "config"),
    (r"(docker: Error response from daemon: (?:pull access denied|manifest for|No such image|invalid ref).*)",
     "config"),
    (r"(?:\S+: )?(line \d+: syntax error.*)", "code"),
    (r"(slurmstepd: error: execve\(\): \S*/slurmd/.*|srun: error: Task launch for \S+ failed on node .*)",
     "bad_node"),
    (r"(There are not enough slots available in the system.*)", "config"),
    (r"(.*nvidia-container-cli: (?:\w+ error|\w+): (?:nvml|driver|cuda) error: .*)", "bad_node"),
    (r"((?:ORTE|PRTE|PRRTE) has lost communication with a remote daemon.*)", "communication"),
    (r"(Unable to determine the device handle for (?:GPU|gpu).*)", "bad_node"),
    (r"(NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.*)", "bad_node"),
    (r"(?!.*\b(?:nccl|ucx|ibv|mpi|pmix|cuda))(?:[\w./-]+: )++(.*\bAssertion `.*' failed\.)$", "code"),
)  # fmt: skip
"""Last lines of programs that are not Python, or whose interpreter did not start."""

AFTERWORDS = lazily(
    r"make(\[\d+\])?: \*\*\*|tar: (Child |Error is not|Exiting)|wandb: |mlflow: |srun: (Job step|Terminating|"
    r"launch/|error: \S+: tasks? [\d,-]+: (Exited|Terminated))|slurmstepd: error: \*\*\* .* CANCELLED AT "
    r"[^D]*\*\*\*$|Primary job +terminated|(mpirun|mpiexec|prterun) (detected|has exited)|\[\S+\] \*\*\* "
    r"|[-=*#]{8,}$|.*Killing subprocess \d+|.*exits with return code = \d+$|ERROR conda\.cli"
    r"|npm (ERR!|error)(?!.*(\b[45]\d\d\b|\bE[A-Z]{6,}))|error Command fai"
    r"led|error: failed to (fetch|push) |(real|user|sys)\t|Command exited with non-zero status|ERROR: Job fai"
    r"led|Aborted( \(core dumped\))?$"
    r"|.*: line \d+: +\d+ (Aborted|Killed|Terminated|Segmentation fault)\b"
)
"""What launchers, trackers and build tools print when a program has ended, after its own last words."""

SUMMARY = lazily(
    r"[-=]{8,}$|Ran \d+ tests? in |FAILED \(\w+=|\S+ FAILED$|Failures:$|Root Cause \(|\[\d+\]:$|\s+\S"
    r"|[IWE]\d{4} \d\d:\d\d:\d\d\.\d+ |CUDA kernel errors|For debugging consider|Compile with `TORCH"
)
"""What unittest and torchrun print after the last traceback, and further lines of messages, as torch's."""

STAMP = lazily(
    r"(?:\[?(?:\d{4}[-/.]\d\d[-/.]\d\d[T ])?\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?Z|[+-]\d\d:?\d\d)?\]?(?: ?[|-])? )"
    r"(?:\[?(?:ERROR|FATAL|CRITICAL)\]?[ :|-]+)?"
)
"""The time, and a level, that loggers write before a line."""

LESSER = lazily(r"(?:.*: |.* NCCL )?\W{0,40}(?:INFO|DEBUG|WARN\w*|NOTICE)\b", re.IGNORECASE)
"""Levels of logging at which no program reports why it ends."""

NO_REASON = lazily(
    r"\b(?:skipp(?:ing|ed)\b(?!:)|fall(?:ing|s)? ?back|continuing|without it\b|starting (?:afresh|over)"
    r"|(?:running|using|logging|switching to)( on| the)? (?:cpu|offline|local\w*)|disabled|creating it"
    r"|entering retry loop|(?:retr\w+|passed|reconnected|again)\W+(?:ok\w*|done|succe\w+)$)"
    r"|\b(?:(?:error|count|event|kill|warning|failure|request)s?|oom)(?: ?[:=] ?| )(?:0|0*\.\d+)(?![\w.:])"
    r"|[:=] ?\d+(?:\.\d+)?%$|\b(?:check|test)s?:? (?:ok|passed)\b"
    r"|^\W*(?:assistant|user|human|question|answer|[QA]|prompt|text|tokens|prediction|predicted|generated"
    r"|translation|summary|reference|target|label|(?:sample|example|row|record) \d+): "
    r"|(?P<help>^\s+--?[a-z][\w-]*[ ,=]|^\W*(?:hint|tip|note|suggestion): "
    r"|^Set the environment variable HYDRA_FULL_ERROR)",
    re.IGNORECASE,
)
"""Lines of what a program went on after, of a count of none, of data and of the help about options."""

OF_SHELL = lazily(
    r"(?:.*: )?\S+: line \d+: .+: (?!unbound|parameter null)|.*\b(?:run command|exec\w*)\b",
    re.IGNORECASE,
)
"""A shell's line, after which it goes on, and one about a missing program."""

OF_REPORT = lazily(
    r"^\W*+(?:[\w./-]+ ){0,2}[\w./-]+(?::\d+)*\S?: (?!\d)|^\[[\w./ :-]+\] |^[\W\d_]*$|\[E\]|\bline \d+"
    r"|^(?:see|try|run|use|for|at|in|(?:clean|shut|stop|exit|clos|terminat|kill|dump|abort)\w*) "
    r"|error|fatal|fail|cannot|can't|could ?n|unable|invalid|unexpected"
    r"|unknown|unrecogni|abort|refused|denied|not found|no such|exception|undefined|incomplete",
    re.IGNORECASE,
)
"""A line of a report of errors: of a program about what it works on, a place, a hint, or words of failure."""

MISSING = lazily(
    r"(?=.*: (?:command )?not found$)(?:[\w./-]+: )*((?:line \d+: )?.*: (?:command )?not found)$"
)
"""What a shell prints of a program that is not there. It goes on, so only the last line is the reason."""

USAGE, USAGE_ERROR = lazily(r"usage: ", re.IGNORECASE), lazily(r"(?:[\w./ -]+: )?((?i:error): .*)")
USAGE_CODE, OTHER_STATUS = 2, lazily(r".*exit status (?!2\b)")
"""What argparse, click and others print of wrong arguments, their exit code, and what shows another one."""

HINT = lazily(
    r"(?:usage|options): |usage of |.*\b(?:try|see|use|run|type|pass)\b.* -?-h(?:elp\w*)?\b"
    r"|.*\bmore information\b|\(?did you mean",
    re.IGNORECASE,
)
OPTION = lazily(
    r"(?:.*: )?((?:(?:unrecogni[sz]ed|unknown|invalid|illegal|unexpected|ambiguous|bad|no"
    r" such) (?:[\w-]+ ){0,3}(?:option|argument|flag|parameter|value|choice|subcommand)|flag provided but no"
    r"|found argument|(?:the following |(?:required|long|short) )*(?:option|argument|flag)s?\b"
    r".*(?:requires? |required|not provided|not recogni[sz]ed|not allowed|missing|invalid)).*)",
    re.IGNORECASE,
)
"""How parsers of a command line report a wrong option, and the hint that they print beside it."""

HYDRA, HYDRA_JOB = "Set the environment variable HYDRA_FULL_ERROR=1", "Error executing job with overrides"
HYDRA_TARGET = lazily(r"(?P<name>\w+(?:Error|Exception))\((?:\d+, )?['\"](?P<text>.*)['\"]\)$")
HYDRA_ERROR = lazily(r"(?:Could not|In '|Error |Key |Missing|Multiple|Ambiguous|You |Primary|Unable).*")
"""What Hydra prints after its errors, before those of the job, and how those of the config begin."""

STATUS = lazily(r"returned non-zero exit status (\d+)\.$")
"""How Python names the exit code of a program that it started."""

NOT_RUN_CODES, NOT_RUN_STATUS = (126, 127), lazily(r"exit (?:status|code) 12[67]\b")
"""Exit codes by which shells report a program that cannot be run, and how Python's errors name them."""

REPORTS = (
    # C++: the message follows in the next line, or in the same one
    (r"terminate called after throwing an instance of '(?P<name>[\w:]+)", r"^", "",
     r"std::(out_of_range|length_error|logic_error|bad_(\w*cast|typeid|\w+_access|function_call))\b"),
    (r"libc\+\+abi: terminating .*exception of type (?P<name>[\w:]+)(?:: (?P<text>.*))?", r"^", "",
     r"std::(out_of_range|length_error|logic_error|bad_(\w*cast|typeid|\w+_access|function_call))\b"),
    # Rust: the message follows in the next line since 1.73; `main` may also return an error
    (r"thread 'main' (?:\(\d+\) )?panicked at (?:'(?P<text>.*)', )?[^\s']+:\d+:\d+:?$", r"^", "",
     r".*?\b(index out of bounds|range (start|end) index|attempt to (add|subtract|multiply|divide"
     r"|negate|shift|calculate)|on a `None`|assertion|not (yet )?implemented|entered unreachable code"
     r"|already (mutably )?borrowed)"),
    (r"Error: (?P<text>.*)", r"^Caused by:$|\(os error \d+\)|\bkind: [A-Z]\w+", "", r"(?!)"),
    # Go: goroutines follow
    (r"(?:panic|fatal error): (?P<text>.*)", r"^goroutine \d+ ", "",
     r"runtime error: (index|slice|invalid memory|integer divide|hash of|comparing|makeslice)|interface conv"
     r"|assignment to entry in nil map|all goroutines are asleep|close of |send on closed|concurrent map"),
    # Julia: a stack trace follows
    (r"ERROR: (?:LoadError: |InitError: )*(?:(?P<name>[A-Z]\w*(?:Error|Exception|Mismatch))\b(?:\(.*\))?"
     r"(?:: |$))?(?P<text>.*)", r"^Stacktrace:", "julia.",
     r"julia\.(UndefVar|Method|Bounds|UndefRef|UndefKeyword|Inexact|StackOverflow|Divide|Field)Error"
     r"|julia\.DimensionMismatch"),
    # R: warnings may follow, which name the reason
    (r"Error(?: in .+?)? ?: ?(?P<text>.*)", r"^Execution halted", "",
     r".*(object '.*' not found|could not find function|subscript out of bounds|unused argument"
     r"|argument .* is missing|non-numeric argument|non-conformable|undefined columns"
     r"|there is no package called)"),
    # pytest: the summary of its tests
    (r"(?:FAILED|ERROR) \S+::.*? - (?:(?P<name>(?:[A-Za-z_]\w*\.)*[A-Z]\w*): )?(?P<text>.*)",
     r"\b\d+ (?:failed|errors?)\b.* in [\d.]+s", "", r"assert "),
    # Java
    (r'Exception in thread "main" (?P<name>[\w.$]+)(?:: (?P<text>.*))?$', r"^", "",
     r"java\.lang\.(NullPointer|ClassCast|Arithmetic|NegativeArraySize|ClassNotFound|\w*IndexOutOfBounds)"
     r"Exception|java\.lang\.(NoClassDefFound|NoSuch\w+|StackOverflow|Assertion)Error"),
    # .NET: frames follow
    (r"Unhandled exception\. (?P<name>[\w.]+): (?P<text>.*)", r"^\s+at ", "",
     r"System\.(NullReference|IndexOutOfRange|Argument\w*|InvalidCast|DivideByZero)Exception"),
    # JavaScript: frames follow, and the version of Node.js; or an exhausted heap
    (r"(?:Uncaught )?(?P<name>(?:[A-Z]\w*)?Error)(?: \[\w+\])?: (?P<text>.*)", r"^Node\.js v\d", "node.",
     r"node\.(Type|Reference|Range|Syntax|Eval)Error"),
    (r"FATAL ERROR: (?P<text>.* JavaScript heap out of memory)", r"^", "", r"(?!)"),
    # HDF5: a stack of calls follows; GROMACS and others: the message does
    (r"HDF5-DIAG: Error detected in (?P<text>.*)", r"^", "", r"(?!)"),
    (r"(?:FATAL|Fatal) (?:ERROR|error):$", r"^", "", r"(?!)"),
    # Perl, Ruby, Lua
    (r"(?P<text>.*) at \S+ line \d+\.$", r"^", "",
     r"Can't (locate|call|use|find)|Undefined subroutine|Global symbol|Illegal division|Not an? \w+ refer"),
    (r"\S+\.rb:\d+:in .*?: (?P<text>.*) \((?P<name>[A-Z][\w:]*)\)$", r"^", "ruby.",
     r"ruby\.(NoMethod|Name|Type|Argument|ZeroDivision|Key|Index|Frozen|Load)Error"),
    (r"lua\w*: (?P<text>.*)", r"^stack traceback:", "", r".*: (attempt to |bad argument )"),
    # Fortran
    (r"Fortran runtime error: (?P<text>.*)", r"^", "", r"Index '|Array bound|Attempting to allocate already"),
)  # fmt: skip
"""How other languages report an error that nothing caught: the report's first line, what it must contain, the
module of the class, and which errors are mistakes in the program."""

SIGNALS = {
    "SIGSEGV": ("unknown", "it crashed: segmentation fault"),
    "SIGBUS": ("unknown", "it crashed: bus error, as where /dev/shm is full or a mapped file was cut"),
    "SIGABRT": ("unknown", "it aborted"),
    "SIGILL": ("unknown", "it crashed: an instruction that this CPU lacks"),
    "SIGFPE": ("code", "it crashed: a division by zero"),
    "SIGXCPU": ("timeout", "its limit of CPU time is over"),
    "SIGXFSZ": ("storage", "it wrote a file beyond its size limit"),
    "SIGSYS": ("unknown", "a system call that is not allowed here"),
    "SIGKILL": ("unknown", "another process ended it; the kernel's out-of-memory killer did not act"),
}
EXIT_CODES = {
    124: ("timeout", "the limit that `timeout` sets is over"),
    126: ("config", "its program cannot be executed"),
    127: ("config", "its program was not found"),
}
"""Signals and exit codes that show how a process ended, with the cause, and words for people."""

NOT_RUN = lazily(r".*(not found|No such file|Permission denied|Is a directory|Exec format|cannot execute)")
"""What shells print of a program that they cannot run. Codes 126 and 127 alone may come from a machine."""

WHAT = lazily(r"\s*what\(\):\s+")
"""What C++ prints before the message of an exception."""
ROOT = lazily(r"\s*(?:Caused by|nested task error): (?P<name>[\w.$]+)(?:: (?P<text>.*))?$")
"""What Java and Julia print before the error that led to one; the last is the first that happened."""

DIVERGED = lazily(r"\b(?:is|are|was|became) (?:nan|[+-]?inf|infinite|not finite|non-finite)\b", re.IGNORECASE)
"""How a program reports that a number is not finite."""

BORDERS = " \t│┃║"
"""What boxes are drawn of."""

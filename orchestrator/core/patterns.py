"""Classes, messages and words by which libraries, programs and machines report failures. Pure tables.

A cause stands here by its name, a member of `Cause`. `orchestrator.core.causes` weighs this evidence
for exceptions, `orchestrator.core.exits` for the ends of logs. Every table holds what a library, a
runtime or a system prints for each of its users, never what one program prints.
"""

from __future__ import annotations

import errno
import re

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
    (r"(\w+ error: )*CU[A-Z]+_STATUS_ALLOC_FAILED", "oom_gpu"),
    (r"No available memory for the cache blocks|Free memory on device ", "oom_gpu"),
    (r"RESOURCE_EXHAUSTED: (out of memory|failed to allocate)", "oom_gpu"),
    (r"(RESOURCE_EXHAUSTED: |\{\{[^{}]*\}\} )*OOM when allocating [\s\S]*\bdevice:GPU\b", "oom_gpu"),
    (r"(RESOURCE_EXHAUSTED: |\{\{[^{}]*\}\} )*OOM when allocating [\s\S]*\bdevice:CPU\b", "oom_host"),
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
    (r"Error while serializing: .*(code: 28|No space left)", "storage"),
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
    (r"(encountered |got )?(a )?(nan|non-finite|inf) (in )?(the )?(loss|gradients?)\b", "nan"),
)  # fmt: skip
"""Beginnings of messages, for classes that do not identify the cause. The first that matches counts."""

SYMBOLS = (
    (r"(?i:cuda_?error_?memory_?allocation|(cuda|hip)_?error_?out_?of_?memory|cu[a-z]+_status_alloc_failed)",
     "oom_gpu"),
    (r"(?i:(cuda|hip)_?error_?(ecc_?uncorrectable|devices?_?unavailable|insufficient_?driver|no_?device"
     r"|system_?driver_?mismatch|system_?not_?ready|hardware_?stack_?error|nvlink_?uncorrectable"
     r"|initialization_?error))", "bad_node"),
    (r"(?i:(cuda|hip)_?error_?assert)", "code"),
    (r"(NVML(_[A-Z]\w+)?|NVRM|Xid|(GPU|device) is lost|fallen off the bus)", "bad_node"),
)  # fmt: skip
"""Names of the errors of GPU runtimes and drivers, which nothing else writes outside of quotation marks."""

HANDED_ON = re.compile(
    r"(?:\[[^\]]*\]:? ?)*(?:Process group|NCCL) watchdog thread terminated with exception: "
    r"|backend='\w+' raised:\n(?:(?P<name>[\w.]+): )?"
    r"|An error occurred while calling \S+\.\n: (?P<java>[\w.$]+)(?:: |$)"
)
"""What torch and Py4J write before the message of an error that it hands on, and the class of that error."""

POINTS_ABOVE = re.compile(
    r".*\b(?:inspect|see|check) (?:the )?previous (?:errors?|exceptions?|logs?)\b"
    r"|.*\b(?:see|check) (?:the )?(?:root cause|(?:\w+ )?(?:stack ?trace|traceback|logs?|errors?|output))"
    r" above",
    re.IGNORECASE,
)
"""A message that holds no reason, and points to an earlier one."""

SYSTEM_ERRORS = {
    errno.ENOENT: "No such file or directory", errno.EISDIR: "Is a directory",
    errno.ENOTDIR: "Not a directory", errno.ENOMEM: "Cannot allocate memory(?! in static TLS)",
    errno.EIO: "Input/output error", errno.ENOSPC: "No space left on device",
    errno.EROFS: "Read-only file system", errno.ESTALE: "Stale file handle",
    errno.EDQUOT: "Disk quota exceeded", errno.EFBIG: "File too large",
    errno.EUCLEAN: "Structure needs cleaning", errno.EREMOTEIO: "Remote I/O error",
    errno.ENOTCONN: "Transport endpoint is not connected",
    errno.ECONNREFUSED: "Connection refused", errno.ECONNRESET: "Connection reset by peer",
    errno.ECONNABORTED: "Software caused connection abort", errno.ETIMEDOUT: "Connection timed out",
    errno.EHOSTUNREACH: "No route to host", errno.EHOSTDOWN: "Host is down",
    errno.ENETUNREACH: "Network is unreachable", errno.EADDRINUSE: "Address already in use",
}  # fmt: skip
"""System errors that show a cause, by the system's words and by their names: all languages print these."""

GPU = re.compile(
    r"\b(torch|cupy\w*|jax\w*|tensorflow|numba|pyopencl|pycuda|rmm|cudf|cuml)\.|\b(CUDA|HIP|XPU|MPS|GPU|TRT)\b"
    r"|(?i:(?<![a-z])cuda|TensorRT|\bcu(blas|dnn)|device memory|opencl)|\bhip[A-Z]|\bVRAM\b|MEM_OBJECT_ALLOC"
)
"""Packages and words of a GPU, beside words of memory."""

_MEMORY = (
    r"\bout of( host| system)? memory\b|OutOfMemory|\bheap (space|out of memory|exhausted)|GC overhead limit"
    r"|memory exhausted|bad_alloc|\boom\b|\boom[-_]?kill|malloc\w* (failed|of \S+ \S+ failed)"
    r"|(can't|cannot|could not|unable to|failed to) (allocate|reserve|commit|map) (\S+ ){0,4}"
    r"(memory|vector|bytes|array|buffer|tensor|block)"
    r"|(exceed\w*|over|beyond|reached) (\S+ ){0,4}memory (limit|budget)|memory (limit|size|allocation)s?"
    r"( \S+){0,4} (exceeded|exhausted|failed|failure|reached)|insufficient (\w+ )?memory"
)
_STORAGE = (
    r"(not enough|insufficient|out of|low on) (free |available )?(disk |storage |device |scratch )?space\b"
    r"|\bno (free |more )?(disk |storage )space|\bno space left|(storage|disk)(?:_| is | )?full\b"
    r"|\b(device|file ?system|volume|partition|backend) (is |was )?(full|read-only)\b"
    r"|(disk|storage|volume|home|inode)s? quota|minimum free drive|fail(ed|ure) (to )?writ(e|ing) (output|to disk)"
)
_NETWORK = (
    r"could not resolve (host|proxy)|name resolution|name or service not known|no such host|unknown ?host"
    r"|failed to lookup address|\bENOTFOUND\b|\bEAI_AGAIN\b|nodename nor servname|resolve host\w* "
    r"|\b(i/o|handshake|connect\w*|(ssh|http|tls|network|rpc|socket|read|write|server) ?(request|operation)?)"
    r" timed? ?out|timed? ?out (in data|exceeded|waiting|connecting|while (waiting|connecting|reading))|deadline exceeded|getaddrinfo"
    r"|(failed|unable|could ?n[o']t|cannot|can't) (to )?(connect|reach|contact|communicate|establish a (new )?"
    r"connection)\b|(connection|server) \S+ (\S+ )?was refused|temporary failure|zero bytes were trans|remote end hung up|unexpected disconnect|lost connection|disconnected from"
    r"|connection (was |has been |is )?(reset|refused|aborted|closed|terminated|dropped|broken|timed? ?out)\b"
    r"|max retries exceeded with url|no route to host|network is unreachable|(?<!resource )temporarily unavail"
    r"|\b(host|server|peer|service|broker|endpoint|node)s? (is |are )?(unreachable|unavailable|not respond\w+"
    r"|not reachable)|RPC failed|\bcurl:? \(?(5|6|7|16|18|28|35|52|55|56|92)\b|broken pipe"
    r"|\b(tls|ssl)\w* (recv|read|connect\w*|handshake|connection|protocol) ?(error|failed|failure)"
    r"|certificate verify failed|too many requests|rate limit (was |has been )?(exceeded|reached)"
    r"|\b50[234]:? (bad gateway|service (temporarily )?unavail|gateway time)"
    r"|\b(HTTP\S*|status|error|code|returned) (error |status |code )?(is |was )?[:=(]? ?(408|429|50[0234])\b"
)
_DEVICE = (
    r"\bno ((cuda|hip|rocm|gpu|nvidia|amd|npu|xpu|tpu)[- ]?(capable )?)*(gpu|device)s? (were |was |are |is )?"
    r"(available|found|detected|visible)\b|(driver|library) version (mismatch|is insufficient)"
    r"|(could ?n[o']t|failed to|unable to|cannot) (initiali[sz]e|communicate with|talk to) (the )?"
    r"(nvml|nvidia|cuda|hip|rocm|gpu)\b|uncorrectable (\w+ )?(ecc|error|memory)|\bECC error"
    r"|no kernel image is available|fallen off the bus|\bmachine check|system not (yet )?(initialized|ready)"
    r"|\blib(cuda|nvidia-\w+|amdhip64|hsa-runtime64)\.so\S*( \S+){0,3} (not (be )?found|cannot open|cannot found)"
    r"|(find|load|open|locate) (the )?lib(cuda|nvidia-\w+|amdhip64|hsa-runtime64)\b"
)
_SETTING = (
    r"(learning[ _]rate|\blr|momentum|weight[ _]decay|batch[ _]size|vocab\w*[ _]size|(world|parallel|hidden|"
    r"model|group)[ _]size|warm ?up[ _]\w+|dropout( probability)?|optimizer|scheduler|precision|num(ber)?[ _](of )?"
    r"(\w+ )?(heads|layers|experts|workers|epochs|gpus)|(?:max|min)\w*[ _](length|tokens|steps|epochs|seq\w*)"
    r"|temperature|top_[pk]|hyper-?parameter)s?"
)
_CONFIG = (
    rf"\b(invalid|unknown|unsupported|unrecogni[sz]ed|illegal|negative) (\w+ )?{_SETTING}\b"
    rf"|\b{_SETTING}\b( \S+){{0,4}} (must|should|cannot|can't|can only|has to|needs to|too (high|large|small|low)"
    r"|(is |are )?not (divisible|supported|allowed|valid)|out of range)\b"
    r"|\b(unrecogni[sz]ed|unknown|unsupported|ambiguous|no such|missing|illegal|invalid|required) (command[- ]"
    r"line |config\w* |environment )?(option|flag|parameter|setting|config\w* key|subcommand|env\w* variable)s?\b"
    r"|\b(unrecogni[sz]ed|unknown|unsupported) (argument|model|architecture|backend|revision|branch|tag|partition)s?\b|\binvalid (argument|value) '' for"
    r"|environment variable (\S+ ){0,3}(not set|is missing|must be set|undefined)|unbound variable|null or not set|\bset the (\S+ )?environment var"
    r"|no matching (distribution|manifest|version)|did(n't| not) match any|manifest unknown|locate package|not a git repository"
    r"|(find|locate|resolve) (a |the |any )?(version that|credentials|revision|ref\b|tag\b|branch\b|manifest|image\b)"
    r"|\b(partition|account|qos|revision|branch|tag|manifest|repository|profile|environment|bucket|model|image)\b"
    r"( \S+){0,4} (not found|does ?n[o']t exist|is unknown|is invalid|not valid)"
    r"|\b(400 bad request|401 unauthori[sz]ed|403 forbidden|404 not found)"
    r"|\b(HTTP\S*|status|error|code|returned) (error |status |code )?(is |was )?[:=(]? ?40[0134]\b"
    r"|authentication (failed|required)|access denied for user|access to the resource is denied|\(publickey\W"
    r"|\b(ya?ml|toml|ini): (line|error|parse|syntax)|\bsection (\S+ )?in (the )?config|invalid (credentials|\w+ key id|api key|access token|username|password)"
)
_CODE = (
    r"\bundefined (reference|symbol|variable|function|method|identifier|name)|\bundefined: \w|'' undefined\b"
    r"|declared (and|but) (not|never) used|undeclared|not (been )?declared|\bnot in scope\b|\bin (this )?scope\b|call to undefined|\b\w+\.\w+:\d+:\d+: (fatal )?error: |unresolved (external|symbol|import|name)"
    r"|(cannot|can't|could ?n[o']t) (find|resolve|locate) (symbol|value|function|type|name|method|module|crate|macro"
    r"|trait)\b|could not compile|compilation (failed|error|terminated)|failed to compile|\bsyntax error\b|error in \S+ (\S+ )?syntax"
    r"|(unrecogni[sz]ed|unknown) (cmake command|function|method|identifier|variable|symbol|type)\b"
    r"|\b(is|are|was) not defined\b|is not a function|has no (attribute|method|member|field)|no (such|matching) "
    r"(method|member|function|overload)|\b(function|method|variable|object|symbol|identifier)( \S+)? (is )?"
    r"(not found|undefined|not defined|does not exist)|no module named|find '' module|cannot (index|call|iterate over|add|concatenate) (\w+ )?(with|a|of|over)\b|attempt to (call|index|perform|compare) a"
    r"|\b(null|nil) (pointer|reference)|(index|subscript|range) out of (bounds|range)|di(vide|vision) by zero"
    r"|(incompatible|mismatched) (types?|shapes?|dimensions?)|shape mismatch|dimensions? (mismatch|do not match)"
    r"|shape [(\[].{0,60}\bgot shape"
)
_DATA = (
    r"(json|csv|xml|parquet|avro|toml|utf-?8)\S*:? (parse|parser|parsing|decode|syntax|lexical) ?error"
    r"|\b(parse|lexical) error\b|unexpected (token|character|end of (json|input|file|data))|JSON (at|text)\b"
    r"|invalid (char\w*\b.*\b(json|looking for|in literal)|json|utf-?8|magic|byte sequence|multibyte)"
    r"|valid utf-?8|not in \w+ format|\bnot (appear to be )?an? (valid )?[\w/.-]+ (file|archive|image)\b"
    r"|is not a valid file|does not look like an? \w+ archive|premature(ly)? end|embedded nul|\bInvalidData\b"
    r"|unexpected (end of|eof)|ParseFrom(Array|String)|bad magic|magic (number|bytes)"
    r"|\b(crc|checksum|sha\d+|md5|hash|digest|length|header|schema|columns?)s?\b.{0,40}"
    r"\b(mismatch\w*|(do|does|did) ?n[o']t match)|\b(crc|checksum)\b.*\b(error|failed)"
    r"|(unknown|unrecogni[sz]ed|unsupported) (input|file|image|archive) format|format not recogni[sz]ed"
    r"|not recogni[sz]ed as (being )?(in )?a|end-of-central-directory|codec can't"
    r"|malformed (json|xml)|did not have \d+ elements|\bend of file\b"
    r"|\bformat error\b|(invalid|bad|improper|malformed|corrupt\w*|damaged|truncated) (\S+ )?(data|header|footer|record|row|line|chunk|block|frame"
    r"|input|files?|archive|image|stream|index)s?\b|(illegal|invalid) (\w+ )?(sequence|block type)|data integrity|NoSuch(File|Key)"
    r"|\b(parsing|decoding|decompression|deserialization) (has )?(failed|error)|(header|footer|magic|signature) (was )?not found"
    r"|no properly formatted|missing (required )?(field|key|section|property|column)s?\b"
    r"|more columns than|wrong number of (fields|columns)|(extra|missing) (data|columns?|fields?) (after|in|for|at)\b"
    r"|expected \d+ (columns|fields|values|tokens)"
    r"|\b(file|data|archive|stream|record|header|image|input) (is|was|seems|appears to be|may be|ends?) (corrupt|truncat|dama|malform"
    r"|early|unexpected|empty)|\b(path|file|folder|director(y|ies)|dataset)s?( \S+)? does ?n[o']t exist"
)
DATA = re.compile(_DATA, re.IGNORECASE)
"""How readers of data report what they cannot read."""

_NAN = r"(nans?|[+-]?inf|infinit(?:e|y)|not finite|non-finite)\b"
_OF_STEP = r"\b(loss(es)?|grad(ient)?s?|grad_norm|logits|perplexity|likelihood|objective|log ?prob\w*)"
NAN = re.compile(
    rf"{_OF_STEP}\b( \S+){{0,3}} (is|are|was|were|became|becomes|contains?|=|:) (now )?(an? )?{_NAN}"
    rf"|(found|encountered|detected|produced|got|non-finite) (\w+ )?(or )?({_NAN})?,? ?(values? )?(in|for) (\w+ ){{0,3}}?{_OF_STEP}\b"
    rf"|\b(nan|inf|infinite|non-?finite) (\w+ )?{_OF_STEP}\b"
    r"|\bloss (is )?(diverg|explod)|training (has )?diverged|floating point (exception|overflow)",
    re.IGNORECASE,
)
"""How training reports that a number is not finite."""

WORDS = tuple(
    (re.compile(words, re.IGNORECASE), cause)
    for words, cause in (
        *((_MEMORY, "oom_host"), (_STORAGE, "storage"), (_NETWORK, "communication"), (_DEVICE, "bad_node")),
        *((NAN.pattern, "nan"), (_CONFIG, "config"), (_CODE, "code"), (_DATA, "data")),
    )
)
"""What programs of all languages write about a cause, the machine's first. Words of memory beside those of a
GPU are of its memory."""
NETWORK, MEMORY, SETTING = WORDS[2][0], WORDS[0][0], re.compile(_CONFIG, re.IGNORECASE)

INTERCONNECT = re.compile(
    r"\b(ucx|ofi|psm2|btl_tcp|ibv|rdma|libfabric|infiniband)\w*\b(?!.*cannot allocate).*\b(fail|error|unreach|time)",
    re.IGNORECASE,
)
"""What libraries of a cluster's network report, also where the system's words are those of a disk."""
RETRY = re.compile(r"\b(re-?try(ing)?|re-?tries|attempts?|giving up|re-?connect\w*)\b", re.IGNORECASE)
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

PRINTED = re.compile(r"((?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception))): (.+)$")
"""An exception that a program caught and printed as its last line, without the traceback."""

KILLED = (
    (r"(slurmstepd: error: Detected \d+ oom[_-]kill event.*)", "oom_host"),
    (r"(srun: error: \S+: tasks? [\d,-]+: Out Of Memory.*)", "oom_host"),
    (r".*\b((?:Memory cgroup out|Out) of memory: Kill(?:ed)? process.*|\bOOMKilled\b.*)", "oom_host"),
    (r"(slurmstepd: error: .* DUE TO TIME LIMIT.*)", "timeout"),
    (r"(slurmstepd: error: .* DUE TO PREEMPTION.*)", "preempted"),
    (r"(slurmstepd: error: .* DUE TO NODE FAILURE.*|srun: error: Node failure on .*)", "node_lost"),
)
"""Lines by which schedulers and kernels report why they ended a process. They count after a signal too."""

LAST_WORDS = (
    *KILLED,
    (r"terminate called after throwing an instance of '(std::bad_alloc)'", "oom_host"),
    (r"(?:(?i:fatal|error)[ :]+)*((?:CUDA|HIP)(?: runtime)?(?: error:)? out of memory.*)", "oom_gpu"),
    (r"(?:[\w./-]+: )+((?:\w+: )*[Cc]annot allocate memory)$", "oom_host"),
    (r"(?:[\w./-]+: )+(.*(?:No space left on device|Disk quota exceeded|Stale file handle"
     r"|Input/output error|Read-only file system|[Tt]ransport endpoint (?:is not connected|shutdown)))$",
     "storage"),
    (r"(?:\S+: )*(error while loading shared libraries: "
     r"lib(?:cuda|nvidia-[\w-]+|amdhip64|hsa-runtime64|ze_loader)\.so.*)", "bad_node"),
    (r"(?:\S+: )*(error while loading shared libraries: .*)", "unknown"),
    (r"(?:[\w./-]+: )+(can't open file .*\[Errno 2\].*)$", "code"),
    (r"(?:\S*\bpython[\d.]*: )(No module named .*)$", "code"),
    (r"(memory allocation of \d+ bytes failed)$", "oom_host"),
    (r"(curl: \((?:5|6|7|16|18|28|35|52|55|56|92)\) .*)", "communication"),
    (r"(?:[\w./-]+: )+(.*(?:Temporary failure in name resolution|Name or service not known))$",
     "communication"),
    (r"(?!.*[Cc]annot allocate)(.*\b(?:UCX +ERROR|pml_ucx\.c|btl_tcp\w*|ofi_\w+|psm2_\w+)\b.*"
     r"(?:failed|[Ee]rror|unreachable|timed out|refused|reset).*)", "communication"),
    (r"(.*\b(?:cuda|hip)Malloc\w*\b.*\bout of memory.*)", "oom_gpu"),
    (r"(?:[\w./-]+: )+([Hh]eap exhausted;?|[Mm]emory exhausted.*)$", "oom_host"),
    (r"(Out of memory\. Type .help memory.*)", "oom_host"),
    (r"((?:srun|sbatch|salloc): error: .*(?:More processors requested|Requested node config|Memory spec"
     r"|CPU count per node|Job request does not|Invalid (?:partition|account|qos|generic)).*)", "config"),
    (r"(docker: Error response from daemon: (?:pull access denied|manifest for|No such image|invalid ref).*)",
     "config"),
    (r"(?:\S+: )?(line \d+: syntax error.*)", "code"),
    (r"((?:\w+: )*[Oo]ut of memory (?:error )?on (?:GPU|device|CUDA)\b.*)", "oom_gpu"),
    (r"(slurmstepd: error: execve\(\): \S*/slurmd/.*|srun: error: Task launch for \S+ failed on node .*)",
     "bad_node"),
    (r"(There are not enough slots available in the system.*)", "config"),
    (r"(\S+\.(?:cuh?|cc|cpp|cxx|c|hpp|h|rs|go|f90|F90|java|tsx?)[:(]\d+(?:[:,]\d+)?\)?: error: .*)", "code"),
    (r"(.*nvidia-container-cli: (?:\w+ error|\w+): (?:nvml|driver|cuda) error: .*)", "bad_node"),
    (r"((?:ORTE|PRTE|PRRTE) has lost communication with a remote daemon.*)", "communication"),
    (r"(Unable to determine the device handle for (?:GPU|gpu).*)", "bad_node"),
    (r"(NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.*)", "bad_node"),
    (r"(?!.*\b(?:nccl|ucx|ibv|mpi|pmix|cuda))(?:[\w./-]+: )+(.*\bAssertion `.*' failed\.)$", "code"),
)  # fmt: skip
"""Last lines of programs that are not Python, or whose interpreter did not start."""

AFTERWORDS = re.compile(
    r"make(\[\d+\])?: \*\*\*|tar: (Child |Error is not|Exiting)|wandb: |mlflow: |srun: (Job step|Terminating|"
    r"launch/|error: \S+: tasks? [\d,-]+: (Exited|Terminated))|slurmstepd: error: \*\*\* .* CANCELLED AT "
    r"[^D]*\*\*\*$|Primary job +terminated|(mpirun|mpiexec|prterun) (detected|has exited)|\[\S+\] \*\*\* "
    r"|[-=*#]{8,}$|.*Kill"
    r"ing subprocess \d+|.*exits with return code = \d+$|ERROR conda\.cli|npm (ERR!|error)(?!.*(\b[45]\d\d\b|\bE[A-Z]{6,}))|error Command fai"
    r"led|error: failed to (fetch|push) |(real|user|sys)\t|Command exited with non-zero status|ERROR: Job fai"
    r"led|Aborted( \(core dumped\))?$"
    r"|.*: line \d+: +\d+ (Aborted|Killed|Terminated|Segmentation fault)\b"
)
"""What launchers, trackers and build tools print when a program has ended, after its own last words."""

SUMMARY = re.compile(
    r"[-=]{8,}$|Ran \d+ tests? in |FAILED \(\w+=|\S+ FAILED$|Failures:$|Root Cause \(|\[\d+\]:$|\s+\S"
    r"|CUDA kernel errors|For debugging consider|Compile with `TORCH"
)
"""What unittest and torchrun print after the last traceback, and further lines of messages, as torch's."""

STAMP = re.compile(
    r"(?:\[?(?:\d{4}[-/.]\d\d[-/.]\d\d[T ])?\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?Z|[+-]\d\d:?\d\d)?\]?(?: ?[|-])? )"
    r"(?:\[?(?:ERROR|FATAL|CRITICAL)\]?[ :|-]+)?"
)
"""The time, and a level, that loggers write before a line."""

MISSING = re.compile(r"(?:[\w./-]+: )*((?:line \d+: )?.*: (?:command )?not found)$")
"""What a shell prints of a program that is not there. It goes on, so only the last line is the reason."""

USAGE, USAGE_ERROR = re.compile(r"usage: ", re.IGNORECASE), re.compile(r"(?:[\w./ -]+: )?((?i:error): .*)")
USAGE_CODE, OTHER_STATUS = 2, re.compile(r".*exit status (?!2\b)")
"""What argparse, click and others print of wrong arguments, their exit code, and what shows another one."""

HINT = re.compile(
    r"(?:usage|options): |usage of |.*\b(?:try|see|use|run|type|pass)\b.* -?-h(?:elp\w*)?\b"
    r"|.*\bmore information\b|\(?did you mean",
    re.IGNORECASE,
)
OPTION = re.compile(
    r"(?:.*: )?((?:(?:unrecogni[sz]ed|unknown|invalid|illegal|unexpected|ambiguous|bad|no"
    r" such) (?:[\w-]+ ){0,3}(?:option|argument|flag|parameter|value|choice|subcommand)|flag provided but no"
    r"|found argument|unexpected argument|(?:the following |(?:required|long|short) )*(?:option|argument|flag)s?\b.*(?:requires? |required|"
    r"not provided|not recogni[sz]ed|not allowed|missing|invalid)).*)",
    re.IGNORECASE,
)
"""How parsers of a command line report a wrong option, and the hint that they print beside it."""

HYDRA, HYDRA_JOB = "Set the environment variable HYDRA_FULL_ERROR=1", "Error executing job with overrides"
HYDRA_TARGET = re.compile(r"(?P<name>\w+(?:Error|Exception))\(['\"](?P<text>.*)['\"]\)$")
HYDRA_ERROR = re.compile(r"(?:Could not|In '|Error |Key |Missing|Multiple|Ambiguous|You |Primary|Unable).*")
"""What Hydra prints after its errors, before those of the job, and how those of the config begin."""

NOT_RUN_CODES, NOT_RUN_STATUS = (126, 127), re.compile(r"exit (?:status|code) 12[67]\b")
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

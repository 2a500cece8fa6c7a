"""The cause that the words of an error show, in whatever language and by whatever program they are printed.

Programs that share nothing else word their errors alike: those of the system, of resolvers and clients of
networks, of parsers of options, of compilers, of readers of files. A table holds such phrases, one a line,
never those of one program. What a machine lacked counts before what the user did, wherever it stands::

    tool: cannot read header of a.bin: Input/output error      storage, not data
    tool: unknown flag --rate                                  config
    a.c:3:5: error: 'rate' undeclared                          code

Words in quotes count only as the name of a file: another program or the user may have written them.
"""

from __future__ import annotations

import errno
import re

from orchestrator.core.failure import OF_MACHINES, Cause
from orchestrator.core.patterns import lazily


def _any(phrases: str) -> str:
    """Return the expression that matches any of some phrases, one a line."""
    return "|".join(phrases.split("\n")[1:-1])


_CANNOT = "(can(no|')t|could ?n[o']t|unable to|fail(ed)? to)"
_ABSENT = "((was |is )?not found|could not be found|does ?n[o']t exist)"
_STATUS = r"\b(HTTP\S*|status|(error|status) code|returned)\W{1,2}((error|status|code)\W{1,2})?(is |was )?"
_ALONE = r"(?! (of|[a-z]+s)\b|[%/]|\.\d)"
"""What stands before and behind the status of an answer, and is no number of things."""
_MEMORY = _any(rf"""
\bout of( host| system)? memory\b|OutOf(Device|GPU|Host)?Memory
(not enough|more) (system|host|physical) memory|memory exhausted|bad_alloc|insufficient (\w+ )?memory
\bheap (space|out of memory|exhausted)|GC overhead limit|(?<![\w./-])oom\b(?![=./-])|\boom[-_]?kill
malloc\w* (failed|of \S+ \S+ failed)
{_CANNOT} (allocate|reserve|commit|map) (\S+ ){{0,4}}(memory|vector|bytes|array|buffer|tensor|block)
(exceed\w*|over|beyond|reached) (\S+ ){{0,4}}memory (limit|budget)
memory (limit|size|allocation)s?( \S+){{0,4}} (exceeded|exhausted|failed|failure|reached)
reach(ed|ing) (\S+ )?memory (usage )?limit|MEM_?LIMIT|\bmem(ory)? (\S+ )?exceed
""")
_FULL = r"(?! (?!while|when|or|and|on|at|in|during)\w)"
_STORAGE = _any(rf"""
(not enough|insufficient|out of|low on) (free |available )?(disk |storage |device |scratch )?space\b
\bno (free |more )?(disk |storage )space|\bno space left|minimum free drive
(storage|disk)(_| is | \w+ | )?full\b{_FULL}
\b(device|file ?system|volume|partition|backend) (is |was )?(full|read-only)\b{_FULL}
(disk|storage|volume|home|inode)s? quota\b(?!:)|fail(ed|ure) (to )?writ(e|ing) (output|to disk)
""")
_NETWORK = _any(rf"""
could not resolve (host|proxy)|name resolution|name or service not known|no such host|unknown ?host
failed to lookup address|\bENOTFOUND\b|\bEAI_AGAIN\b|nodename nor servname|resolve host\w* |getaddrinfo
\b(i/o|handshake|connect\w*|ssh|http|tls|network|rpc|socket|read|write|server|request|operation) timed? ?out
timed? ?out (in data|exceeded|waiting|connecting|while (waiting|connecting|reading))|deadline exceeded
{_CANNOT} (connect|reach|contact|communicate|establish a (new )?connection)\b
(connection|server) \S+ (\S+ )?was refused|temporary failure|zero bytes were trans|remote end hung up
unexpected disconnect|closed the connection|lost connection|disconnected from|broken pipe
max retries exceeded with url
connection (was |has been |is )?(reset|refused|aborted|closed|terminated|dropped|broken|timed? ?out)\b
no route to host|network is unreachable|(?<!resource )temporarily unavail|RPC failed
certificate verify failed
\b(host|server|peer|service|broker|endpoint|node)s? (is |are )?(unreach|unavail|not (respond|reach))\w+
\bcurl:? \(?(5|6|7|16|18|28|35|52|55|56|92)\b
\b(tls|ssl)\w* (recv|read|connect\w*|handshake|connection|protocol) ?(error|failed|failure)
too many requests|rate limit (was |has been )?(exceeded|reached)
\b50[234]:? (bad gateway|service (temporarily )?unavail|gateway time)
{_STATUS}(408|429|50[0234])\b{_ALONE}
""")
_KIND = "((cuda|hip|rocm|gpu|nvidia|amd|npu|xpu|tpu)[- ]?(capable )?)*"
_DEVICE = _any(rf"""
\bno {_KIND}(gpu|device)s? (were |was |are |is )?(available|found|detected|visible)\b
{_CANNOT} (initiali[sz]e|communicate with) (the )?(nvml|nvidia|cuda|hip|gpu)\b
(driver|library) version (mismatch|is insufficient)|uncorrectable (\w+ )?(ecc|error|memory)
\bECC error(?! count)|no kernel image is available|fallen off the bus|\bmachine check (exception|error)
\bno (visible|usable) {_KIND}devices?\b
select device driver|system not (yet )?(initialized|ready)
\blib(cuda|nvidia-\w+|amdhip64|hsa-runtime64)\.so\S*( \S+){{0,3}} (not (be )?found|cannot (open|found))
(find|load|open|locate) (the )?lib(cuda|nvidia-\w+|amdhip64|hsa-runtime64)\b
""")
_STEP = (
    r"\b(loss(es)?|grad(ient)?s?|grad_norm|logits|perplexity|likelihood|objective|residual|log ?prob\w*)\b"
)
_NOT_FINITE = r"(nans?|[+-]?inf|infinit(e|y)|not finite|non-?finite)\b"
_NAN = _any(rf"""
{_STEP}( \S+){{0,3}} (is|are|was|were|became|contains?|went to|turned|=|:) (now )?(an? )?{_NOT_FINITE}
(found|encountered|detected|got) (\w+ )?(or )?{_NOT_FINITE},? (values? )?(in|for) (\w+ ){{0,3}}?{_STEP}
\b(nan|inf|infinite|non-?finite) (values? in (the )?)?(\w+ )?{_STEP}|\bnan/inf\w* {_STEP}
{_STEP}( norm| value)?:? {_NOT_FINITE}|(minimum loss scale|loss scale) (has )?(reached|at)\b
(nan|inf)s? (found|detected|encountered) in (\w+ )?tensor
\b(loss|solver|residual) (is |has )?(diverg|explod)|training (has )?diverged
floating point (exception|overflow)
""")
_SETTING = "({})s?".format(
    _any(r"""
learning[ _]rate|\blr|momentum|weight[ _]decay|batch[ _]size|vocab\w*[ _]size|warm ?up[ _]\w+|temperature
top_[pk]|(world|parallel|hidden|model|group)[ _]size|dropout( probability)?|optimizer|scheduler|precision
hyper-?parameter|num(ber)?[ _](of )?(\w+ )?(heads|layers|experts|workers|epochs|gpus)
(max|min)\w*[ _](length|tokens|steps|epochs)
""")
)
_ODD = "(un(recogni[sz]ed|known|supported|expected)|ambiguous|no such|missing|illegal|invalid|required)"
_CONFIG = _any(rf"""
\b(invalid|unknown|unsupported|unrecogni[sz]ed|illegal|negative) (\w+ )?{_SETTING}\b
\b{_SETTING}\b( \S+){{0,4}} (must|should|can(no|')t|can only|has to|needs to|too (high|large|small|low))\b
\b{_SETTING}\b( \S+){{0,4}} ((is |are )?not (divisible|supported|allowed|valid)|out of range)\b
\b{_ODD} (\S+ )?(option|flag|parameter|setting)s?\b
\bun(recogni[sz]ed|known|supported) (argument|subcommand|config\w* key|model|architecture|backend)s?\b
\bun(recogni[sz]ed|known|supported) (objective|metric|activation)s?\b
\bunknown (revision|branch|tag|partition)\b|\binvalid (argument|value) '' for|manifest unknown
locate package|environment variable (\S+ ){{0,3}}(not set|is missing|must be set|undefined)
(be|not) (evenly )?divisible by
\b(option|flag|parameter|setting)s?( \S+)? (can only|could only|must|exceeds?)\b
\bexpected (a )?(positive|non-negative) (integer|float|number)|\bshould be one of\b|\bmust be one of\b
(^|[ `])--[a-z]\w+[`]? (requires|must|is required|cannot|and --)|\bset the (\S+ )?environment var
no matching (distribution|manifest|version)|(did|do|does) ?n[o']t match any|not a git repository
not (compiled|built) with\b|access denied for user
(find|locate|resolve) (a |the |any )?(version that|credentials|revision|ref|tag|branch|manifest)\b
(find|locate|resolve) (the )?model ''
\b(partition|account|qos|revision|branch|tag|manifest)( \S+){{0,4}} {_ABSENT}|\b(model|image) '' {_ABSENT}
\b(repository|profile|environment|bucket|database|resource|project)( \S+){{0,4}} {_ABSENT}
\b40[0134]\W{{1,3}}(bad request|unauthori[sz]ed|forbidden|not found)\b|access to the resource is denied
{_STATUS}40[0134]\b{_ALONE}
\(publickey\W|authentication (failed|required)|(token|credential)s? (has |have |is )expired
(open|read|load|parse) (the )?config\w* file
invalid (credentials|\w+ key id|api key|access token|username|password)
\b(ya?ml|toml|ini): (line|error|parse|syntax)|\bsection (\S+ )?in (the )?config|unbound variable
null or not set
""")
_KNOWN = "(symbol|value|function|type|name|method|module|crate|macro|trait|variable|identifier|object)"
_SOURCE = "(cuh?|cc|c(pp|xx|s)?|h(pp|s)?|rs|go|f90|java|scala|swift|tsx?|ml)"
_CODE = _any(rf"""
(?<!so: )(?<!so\.\d: )\bundefined symbol|-packages/\S+\.so: undefined symbol
\bundefined (reference|variable|function|method|identifier|name)|\bundefined: \w|'' undefined\b
declared (and|but) (not|never) used|undeclared|not (been )?declared|\b(not in|in this|in) scope\b
call to undefined|^\S+\.{_SOURCE}[:(]\d+([:,]\d+)?\)?: (fatal )?error( \w+\d)?:(?= )
unresolved (extern\w*|symbol|import|name)|is not a function|no module named
{_CANNOT} (find|resolve|locate) {_KNOWN}\b|could not compile
compilation (fail\w+|errors?|terminated|aborted)|error building|no known rule to make|cannot find -l
\bnot found: (value|type|object)|failed to compile|\bsyntax error\b|find '' module
(unrecogni[sz]ed|unknown) (cmake command|function|method|identifier|variable|symbol|type)\b
\b(name|type) '' does not exist|\b(is|are|was) not defined\b|has no (attribute|method|member|field)
(such|matching) (method|function|overload)
\b(function|method|variable|object|symbol|identifier)( \S+)? (is )?(undefined|not defined|{_ABSENT})
(cannot|attempt to) (index|call|iterate over|add|concatenate|compare|perform) (\w+ )?(with|a|of|over|on)\b
\b(null|nil) (pointer|reference)|(index|subscript|range) out of (bounds|range)|di(vide|vision) by zero
(incompatible|mismatched) (types?|shapes?|dimensions?)|shape mismatch|dimensions? (mismatch|do not match)
shape [(\[].{{0,60}}\bgot shape|error in \S+ (\S+ )?syntax
""")
_BAD = r"(invalid|bad|improper|malformed|corrupt\w*|damaged|truncated|broken)"
_PART = (
    r"(files?|data|archive|stream|records?|header|footer|image|input|rows?|lines?|chunk|block|frame|index)"
)
_SUM = r"(crc\d*|checksum|sha\d+|md5|hash|digest|length|header|schema|columns?)s?"
_DATA = _any(rf"""
(json|csv|xml|parquet|avro|toml|utf-?8)\S*:? (parse|parser|parsing|decode|syntax|lexical) ?error
\b(parse|lexical) error\b|unexpected (token|character|end of (json|input|file|data))|JSON (at|text)\b
invalid (char\w*\b.*\b(json|looking for|in literal)|json|utf-?8|magic|byte sequence|multibyte)|codec can't
valid utf-?8|not in \w+ format|\bnot (appear to be )?an? (valid )?[\w/.-]+ (file|archive|image)\b
is not a valid file|does not look like an? \w+ archive|premature(ly)? end|embedded nul|\bInvalidData\b
unexpected (end of|eof)|ParseFrom(Array|String)|bad magic|magic (number|bytes)|end-of-central-directory
\b{_SUM}\b.{{0,40}}\b(mismatch|(do|does|did) ?n[o']t match)|\b(crc|checksum)\b.*\b(error|failed)
(unknown|unrecogni[sz]ed|unsupported) (input|file|image|archive) format|format not recogni[sz]ed
not recogni[sz]ed as (being )?(in )?a|malformed (json|xml)|did not have \d+ elements|more columns than
\bend of file\b|\bformat error\b|(illegal|invalid) (\w+ )?(sequence|block type)|data integrity
NoSuch(File|Key)|\b{_BAD} (\S+ )?{_PART}\b
\b{_PART}( \S+)? (is|was|seems|appears to be|may be) ({_BAD}|empty)|\b{_PART} ends? (early|unex)
\b(parsing|decoding|decompression|deserialization) (has )?(failed|error)|no properly formatted
(header|footer|magic|signature) (was )?not found|missing (required )?(field|key|section|property|column)s?\b
\bdata error\b|\bParse(Int|Float)Error\b|cannot find or open|cannot be (parsed|decoded|opened)
wrong number of (fields|columns)|(extra|missing) (data|columns?|fields?) (after|in|for|at)\b
expected \d+ (columns|fields|values|tokens)
\b(path|file|folder|directory|dataset)s?( \S+)? does ?n[o']t exist
""")
_PHRASES = tuple(
    (lazily(phrases, re.IGNORECASE), cause)
    for phrases, cause in (
        *((_MEMORY, Cause.OOM_HOST), (_STORAGE, Cause.STORAGE), (_NETWORK, Cause.COMMUNICATION)),
        *((_DEVICE, Cause.BAD_NODE), (_NAN, Cause.NAN), (_CONFIG, Cause.CONFIG), (_CODE, Cause.CODE)),
        (_DATA, Cause.DATA),
    )
)
"""The first that match count, so a machine's before the user's."""
_OF_NO_FILE = frozenset({Cause.OOM_HOST, Cause.STORAGE, Cause.COMMUNICATION})
"""Causes whose words count in no path or option. Those of drivers may be the names of libraries."""
NAN, SETTING, DATA = (_PHRASES[number][0] for number in (4, 5, 7))

GPU = lazily(
    r"\b(torch|cupy\w*|jax\w*|tensorflow|numba|pyopencl|pycuda|rmm|cudf|cuml)\.|\b(CUDA|HIP|XPU|MPS|GPU|TRT)\b"
    r"|(?i:(?<![a-z])cuda|TensorRT|\bcu(blas|dnn)|device memory|opencl)|\bhip[A-Z]"
    r"|\bVRAM\b|IOGPU|OutOf(Device|GPU)Memory|MEM_OBJECT_ALLOC"
)
"""Packages and words of a GPU. Beside these, words of memory are about a GPU's."""

_INTERCONNECT = lazily(
    r"\b(ucx|ofi|psm2|btl_tcp|ibv|rdma|libfabric|infiniband)\w*\b(?!.*cannot allocate)"
    r".*\b(fail|error|unreach|time)",
    re.IGNORECASE,
)
"""What libraries of a cluster's network report, also where the system's words are those of a disk."""

_SYSTEM_ERRORS = {
    Cause.DATA: {"ENOENT": "No such file or directory", "EISDIR": "Is a directory",
                 "ENOTDIR": "Not a directory"},
    Cause.OOM_HOST: {"ENOMEM": "Cannot allocate memory"},
    Cause.STORAGE: {
        "EIO": "Input/output error", "ENOSPC": "No space left on device", "EROFS": "Read-only file system",
        "ESTALE": "Stale (NFS )?file handle", "EDQUOT": "Disk quota exceeded", "EFBIG": "File too large",
        "EUCLEAN": "Structure needs cleaning", "EREMOTEIO": "Remote I/O error",
        "ENOTCONN": "Transport endpoint is not connected",
    },
    Cause.COMMUNICATION: {
        "ECONNREFUSED": "Connection refused", "ECONNRESET": "Connection reset by peer",
        "ECONNABORTED": "Software caused connection abort", "ETIMEDOUT": "Connection timed out",
        "EHOSTUNREACH": "No route to host", "EHOSTDOWN": "Host is down",
        "ENETUNREACH": "Network is unreachable", "EADDRINUSE": "Address already in use",
    },
}  # fmt: skip
"""System errors that show a cause, by their names and by the system's words: all languages print these."""
_SYSTEM = {
    name: (lazily(rf"(?i:{words})|\b{name}\b"), cause)
    for cause, errors in _SYSTEM_ERRORS.items()
    for name, words in errors.items()
    if hasattr(errno, name)
}
_SYMBOLS = (
    (r"(?i:cuda_?error_?memory_?allocation|(cuda|hip)_?error_?out_?of_?memory|cu[a-z]+_status_alloc_failed)",
     Cause.OOM_GPU),
    (r"(?i:(cuda|hip)_?error_?(ecc_?uncorrectable|devices?_?unavailable|insufficient_?driver|no_?device"
     r"|system_?driver_?mismatch|system_?not_?ready|hardware_?stack_?error|nvlink_?uncorrectable"
     r"|initialization_?error))", Cause.BAD_NODE),
    (r"(?i:(cuda|hip)_?error_?assert)", Cause.CODE),
    (r"(NVML_\w+|NVML(: | library version)|(initiali[sz]e|communicate with) NVML|NVRM|fallen off the bus"
     r"|NVML\b.* (mismatch|failed|failure|error)|Xid\b ?(\(|error |code |[:=]? ?\d)|(GPU|device) is lost)",
     Cause.BAD_NODE),
)  # fmt: skip
"""Names of the errors of GPU runtimes and drivers, which nothing else writes outside of quotation marks."""
_BY_SYMBOL = tuple((lazily(rf"\b{pattern}(?<!\w(?=\w))"), cause) for pattern, cause in _SYMBOLS)
_NAMES = lazily(r"(?<![\w.])[~.]{0,2}/[^\s:,]*|(?<![\w-])--[a-z][\w-]*")
"""Paths and options. Words in these are the user's."""

_LACKED = lazily(
    r"shared object|\.so\b|\bsocket|\.sock\b|\b(connect|dial|mount\w*)\b"
    r"|(?<![\w.])/(dev|proc|sys|run|var/run)/"
)
"""What a node or a service lacks, where the system's words are those of a missing file."""
_OF_FILE = lazily(r"[^:]+: '")
"""A line that names a file: an error of a network is one of its file system."""
SETTINGS = lazily(
    r"[\w./-]\.(ya?ml|toml|ini|cfg|conf)\b|\bconfig\w*\.json\b|(^|_)(configs?|settings|hparams)(_|$)"
)
"""Names of files and functions of the config."""
_QUOTED = lazily(r"(?<!\w)(['\"`])[^'\"`\n]*\1")


_MAX_WORDS = 4000
"""Characters of a report in which phrases are looked for: the tables take 2 microseconds for each."""


def unquoted(text: str) -> str:
    """Return a text without the words in its quotes."""
    return _QUOTED.sub("''", text)


def of_words(text: str) -> Cause:
    """Return the cause that the words of an error show, `unknown` if none do."""
    words = unquoted(text)
    if _INTERCONNECT.search(words):
        return Cause.COMMUNICATION
    system = of_driver(words) or of_system(words)
    if system in OF_MACHINES:
        return system
    cause = of_phrases(words)
    if cause not in {Cause.DATA, Cause.UNKNOWN}:
        return cause
    is_read = (cause is Cause.DATA or system is not Cause.UNKNOWN) and not _LACKED.search(text)
    return _config_or_data(text) if is_read else Cause.UNKNOWN


def of_phrases(words: str) -> Cause:
    """Return the cause that a phrase shows which many programs print."""
    words = words[:_MAX_WORDS]
    bare = _NAMES.sub("", words)
    found = (cause for phrases, cause in _PHRASES if phrases.search(bare if cause in _OF_NO_FILE else words))
    cause = next(found, Cause.UNKNOWN)
    if cause is Cause.BAD_NODE and "--" in words:  # what an option asked for is the user's
        return Cause.UNKNOWN
    return Cause.OOM_GPU if cause is Cause.OOM_HOST and GPU.search(words) else cause


def of_driver(text: str) -> Cause | None:
    """Return the cause that the names of errors of a GPU's runtime or driver show, None without one."""
    text = _NAMES.sub("", unquoted(text))
    return next((cause for pattern, cause in _BY_SYMBOL if pattern.search(text)), None)


def of_system(text: str) -> Cause:
    """Return the cause that a system error in a message shows, as the exception of Python for it does."""
    matches = ((pattern.search(text), cause, name) for name, (pattern, cause) in _SYSTEM.items())
    found = ((match.start(), cause, name) for match, cause, name in matches if match)
    _, cause, name = min(found, default=(0, Cause.UNKNOWN, ""))
    if cause is Cause.DATA:
        return Cause.UNKNOWN if name == "ENOENT" and _LACKED.search(text) else _config_or_data(text)
    if cause is Cause.COMMUNICATION and _OF_FILE.match(text):
        return Cause.STORAGE
    return cause


def _config_or_data(text: str) -> Cause:
    """Return the cause of a message about what cannot be read: the data, or the config if it names that."""
    return Cause.CONFIG if SETTINGS.search(text[:2000].partition("\n")[0]) else Cause.DATA

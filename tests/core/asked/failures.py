"""What is said of exceptions, exit codes, logs and failures is as recorded, see ../../recording.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from orchestrator.core.causes import cause_of, cause_of_exception
from orchestrator.core.commandspec import lacks_results, open_quote, rung_keys
from orchestrator.core.exits import cause_of_command, cause_of_exit
from orchestrator.core.failure import Cause, fingerprint, own_frames, without_particulars
from orchestrator.core.records import End
from orchestrator.core.tracebacks import Frame, Raised
from orchestrator.stage import StageSpec
from tests.core.test_failure import OOM, PEER, RICH, TORCHRUN, TRACEBACK, interleaved, of_rank
from tests.recording import Answers

HINT = "\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.\n"
JOB = "Error executing job with overrides: ['lr=1']\n"
LOGS = {
    "nothing": "",
    "a line": "going on\n",
    "colours": f"{TRACEBACK}\x1b[31mValueError\x1b[0m: a\x1b[1mb\n",
    "a traceback": f"{TRACEBACK}ValueError: bad axis\n",
    "no message": f"{TRACEBACK}KeyboardInterrupt\n",
    "blanks": f"{TRACEBACK}ValueError:   bad axis   \n",
    "its own class": f"{TRACEBACK}my.pkg.Odd: strange\n",
    "no colon": f"{TRACEBACK}my.pkg.Odd\n",
    "of numpy": f"{TRACEBACK}numpy._core._exceptions._ArrayMemoryError: Unable to allocate\n",
    "as if of numpy": f"{TRACEBACK}x._ArrayTimeoutError: late\n",
    "of no file": '  File "t.py", line 1\n    x =\n       ^\nSyntaxError: invalid syntax\n',
    "of no file, indented less": ' File "t.py", line 1\nSyntaxError: invalid syntax\n',
    "a box": f"{RICH}ValueError: bad\n",
    "a box that goes on": f"{RICH}│ more\n╰─\nValueError: bad\n",
    "torchrun": TORCHRUN,
    "a launcher before": f"usage: x\nx.py: error: invalid choice: 3\n{TRACEBACK}SystemExit: 2\n",
    "a launcher after": f"{TRACEBACK}ValueError: bad\n{TRACEBACK}SystemExit: 1\n",
    "another process": f"{TRACEBACK}CalledProcessError: died\n",
    "a rank": of_rank(1, "ValueError: bad row"),
    "two ranks": of_rank(0, PEER) + of_rank(1, "ValueError: bad row"),
    "two ranks at once": interleaved("ValueError: bad row", PEER),
    "one rank twice": of_rank(1, "ValueError: first") + of_rank(1, PEER),
    "no rank twice": f"{TRACEBACK}ValueError: first\n{TRACEBACK}{PEER}\n",
    "printed": "step 1\nValueError: bad axis\n",
    "printed before": "ValueError: bad axis\nstep 1\n",
    "printed by a package": "my.pkg.OddException: strange thing\n",
    "memory": f"step\n{OOM}\n",
    "C++": "terminate called after throwing an instance of 'std::bad_alloc'\n",
    "not found": "bash: line 1: trian: command not found\n",
    "no module": "python3: No module named trian\n",
    "Hydra's config": f"Could not override 'x'.{HINT}",
    "Hydra's config, ago": f"{HINT}Could not override 'x'.\n" + "step\n" * 99,
    "Hydra's other words": f"Wrong.{HINT}",
    "Hydra's job": f"{JOB}KeyError('lr'){HINT}",
    "Hydra's job in the dark": f"{JOB}Could not go on.{HINT}",
    "Hydra's job without room": f"{JOB}OSError(28, 'No space left on device'){HINT}",
    "Hydra's job of an odd class": f"{JOB}OddError('strange'){HINT}",
    "another hint": "Set the environment variable WANDB_API_KEY, or the key is not found\n",
    "an option": "usage: t.py [-h] [--lr LR]\nt.py: error: unrecognized arguments: --lrr 3\n",
    "an option in a box": "│ Error: No such option: --lrr │\n│ Try 't.py --help' for help. │\n",
    "an option alone": "t.py: unrecognized option '--lrr'\n",
    "an option, no colon": "unrecognized option --lrr\n",
    "an option before": "t.py: unrecognized option '--lrr'\nbye\n",
    "an option and help": "error: unexpected argument '--lrr' found\n\nFor more information, try '--help'.\n",
    "an option and no help": "error: unexpected argument '--lrr' found\n\nbye\n",
    "C++ with words": "terminate called after throwing an instance of 'std::runtime_error'\n  what():  x\n",
    "C++ of a file": "terminate called after throwing an instance of 'std::system_error'\n  what():  "
    "write: No space left on device\n",
    "C++, a mistake": "terminate called after throwing an instance of 'std::out_of_range'\n  what():  at\n",
    "Rust": "thread 'main' panicked at src/main.rs:3:5:\nindex out of bounds: the len is 3\n"
    "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n",
    "Rust, nan": "thread 'main' panicked at src/main.rs:3:5:\nthe loss is NaN\n"
    "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n",
    "Java": 'Exception in thread "main" java.lang.IllegalStateException: bad\n\tat A.main(A.java:3)\n',
    "Java, led to": 'Exception in thread "main" my.OddException: bad\n\tat A.main(A.java:3)\n'
    "Caused by: java.io.IOException: No space left on device\n\tat A.f(A.java:9)\n",
    "Java, led to nothing": 'Exception in thread "main" my.OddException: bad\n\tat A.main(A.java:3)\n'
    "Caused by: my.OtherException\n",
    "Julia": 'ERROR: LoadError: KeyError: key "lr" not found\nStacktrace:\n [1] getindex(h::Dict)\n',
    "Node": "TypeError: x is not a function\n    at main (/me/t.js:3:1)\n\nNode.js v20.1.0\n",
    "Node's JSON": "SyntaxError: Unexpected token h in JSON at position 1\n    at JSON.parse (<anonymous>)\n\n"
    "Node.js v20.1.0\n",
    "R": "Error in f(x) : object 'lr' not found\nCalls: f\nExecution halted\n",
    "a time before": "2026-11-25 10:00:00,123 ERROR ValueError: bad axis\n",
    "a lesser level": "2026-11-25 10:00:00,123 WARNING CUDA error: an illegal memory access\n",
    "of a driver": "CUDA driver version is insufficient for CUDA runtime version\n",
    "of a driver before": "CUDA driver version is insufficient for CUDA runtime version\nstep\n",
    "an exit code of another": f"{TRACEBACK}subprocess.CalledProcessError: Command 'x' returned non-zero exit "
    "status 127.\n",
    "words, then an exit code": "bash: x: command not found\n"
    + TRACEBACK
    + "subprocess.CalledProcessError: Command 'x' returned non-zero exit status 127.\n",
    "an exit with words": f"{TRACEBACK}SystemExit: -3\n",
    "an exit with text": f"{TRACEBACK}SystemExit: no rows\nin the file\n",
    "killed": "step\nKilled\n",
    "aborted": "malloc(): corrupted\nAborted (core dumped)\n",
    **{f"killed {n} lines ago": "Out of memory: Killed process 3\n" + "step\n" * n for n in (1, 5, 6, 7)},
    **{f"{n} lines ago": f"{TRACEBACK}ValueError: bad\n" + "step\n" * n for n in (6, 7, 8, 98, 99, 100)},
    **{f"known words {n} lines ago": "cp: no: No space left on device\n" + "step\n" * n for n in (6, 7, 8)},
}


def commands() -> Answers:
    """How commands fail."""
    codes = (1, 120, 124, 126, 127, 128, 129, 134, 137, 192, 193)
    for code, (name, log) in itertools.product((*codes, -1, -6, -9, -11, -24, -64), LOGS.items()):
        yield f"{code}, {name}", tuple(cause_of_command(code, log, oom_killed=False))
        if code in (1, 137, -9, -11) and name in ("nothing", "a traceback"):
            yield f"{code}, {name}, an OOM kill", tuple(cause_of_command(code, log, oom_killed=True))


def exits() -> Answers:
    """How processes of stages end, and what exceptions mean."""
    for code, oom_killed in itertools.product((0, 1, 2, 255, -1, -6, -9, -15, -200), (False, True)):
        yield f"exit {code} {oom_killed}", cause_of_exit(code, "", oom_killed=oom_killed)
    for status in (399, 400, 404, 408, 425, 429, 499, 500, 503, 599):
        for form in (f"HTTP Error {status}: x", f"{status} Client Error: x", f"Client error '{status} x'"):
            yield form, cause_of_exception(["HTTPError", "OSError"], form)
        yield f"no HTTP {status}", cause_of_exception(["OSError"], f"{status} Client Error: x")
    for message in ("CUDA out of memory", "  CUDA out of memory  ", "NCCL error", "CUDA: no", ""):
        for names in (["RuntimeError"], ["KeyError"], ["Odd", "ValueError"], ["OutOfMemoryError"], []):
            yield f"{names} {message!r}", cause_of_exception(names, message)


CLASSES = (
    ("RuntimeError", "Exception"),
    ("ValueError", "Exception"),
    ("OSError", "Exception"),
    ("ImportError", "Exception"),
    ("pkg.HTTPStatusError", "Exception"),
    ("MemoryError", "Exception"),
    ("cupy.cuda.memory.OutOfMemoryError", "MemoryError", "Exception"),
    ("LookupError", "Exception"),
    ("SystemExit",),
    ("SyntaxError", "Exception"),
    ("tf.errors.InvalidArgumentError", "Exception"),
    ("tarfile.ReadError", "OSError", "Exception"),
    ("pydantic_core._pydantic_core.ValidationError", "ValueError", "Exception"),
    ("jsonschema.ValidationError", "ValueError", "Exception"),
    ("AssertionError", "Exception"),
    ("Odd", "Exception"),
)
MESSAGES = (
    "",
    "2",
    "1 validation error for Config\nx: field required",
    "1 validation error for Row\nof a config",
    *(f"1 validation error for My{word} for that" for word in ("Setting", "Args", "Option", "Param")),
    "[Errno 28] No space left on device: '/data/x'",
    "[Errno 2] No such file or directory: '/data/x'",
    "[Errno 2] No such file or directory: '/dev/nvidia0'",
    "[Errno 22] Invalid argument",
    "[Errno 110] Connection timed out",
    "cannot read (os error 28)",
    "cannot connect (os error 111)",
    "cannot connect (os error 17)",
    "An error occurred (SlowDown) when calling the PutObject operation: later",
    "An error occurred (AccessDenied) when calling the GetObject operation: no",
    "Error code: 429 - slower",
    "Error code: 400 - bad",
    "503 Server Error: busy",
    "libcuda.so.1: cannot open shared object file",
    "libodd.so.1: cannot open shared object file",
    "/env/lib/python3.11/site-packages/torch/lib/x.so: undefined symbol: abc",
    "CUDA driver version is insufficient for CUDA runtime version",
    "the GPU cuda:0 is out of memory",
    "loss is nan at step 3",
    "Input data contains NaN",
    "the config has no key 'lr'",
    "num_samples=0",
    "shape mismatch: tensor of /a/size",
    "tensors of size 3 and 4",
    "failed with loss=inf",
    "cannot write\n[Errno 28] No space left on device",
    "iostream error",
    "Connection reset by peer",
)


def raised() -> Answers:
    """What exceptions mean by class, message, place and what led to them."""
    own = Frame("/me/train.py", "main", "go()")
    library = "/env/lib/python3.11/site-packages/"
    places: dict[str, tuple[Frame, ...]] = {
        "nowhere": (),
        "own": (own,),
        "own, stated": (Frame("/me/train.py", "main", "raise x"),),
        "own check": (Frame("/me/my_config.py", "check_args", "raise x"), own),
        "torch": (own, Frame(f"{library}torch/nn.py", "forward", "raise x")),
        "pandas": (own, Frame(f"{library}pandas/io/parsers.py", "read_csv", "raise x")),
        "sklearn": (own, Frame(f"{library}sklearn/utils.py", "check_array", "raise x")),
        "writing": (own, Frame(f"{library}torch/serialization.py", "save", "raise x")),
        "argparse": (own, Frame("/usr/lib/python3.11/argparse.py", "parse_args", "x")),
        "transformers": (own, Frame(f"{library}transformers/utils/hub.py", "cached_file", "raise x")),
        "h5py": (own, Frame(f"{library}h5py/_hl/group.py", "get", "raise x")),
    }
    for names, (place, frames) in itertools.product(CLASSES, places.items()):
        found: dict[str, list[str]] = {}
        for message in MESSAGES:
            found.setdefault(cause_of(Raised(names, message, frames)), []).append(message[-20:])
        yield f"{names[0]} in {place}", found
    disk = Raised(("OSError", "Exception"), "[Errno 28] No space left on device", (own,))
    parse = Raised(("json.decoder.JSONDecodeError", "ValueError", "Exception"), "Expecting value", (own,))
    odd = Raised(("Odd", "Exception"), "strange", (own,))
    for (name, before), is_declared in itertools.product(
        {"disk": disk, "parse": parse, "odd": odd}.items(), (False, True)
    ):
        for names, (place, frames) in itertools.product(CLASSES, places.items()):
            both = Raised(names, "bad", frames, before=before, is_declared=is_declared)
            yield f"{names[0]} in {place} after {name}, {is_declared}", cause_of(both)
    for of in ((disk,), (parse, parse), (disk, parse), (odd,), (odd, odd)):
        group = Raised(("ExceptionGroup", "Exception"), "several", (own,), members=of)
        words = f"a group of {[each.names[0] for each in of]}"
        yield words, cause_of(group)
        yield f"before {words}", cause_of(group._replace(before=disk, is_declared=True))
    for head in ("OSError", "java.io.IOException", ""):
        text = f"Caught {head} in DataLoader worker process 0.\nOriginal Traceback: x\n[Errno 5] bad"
        yield f"handed on {head}", cause_of(Raised(("RuntimeError", "Exception"), text, (own,)))


FRAMES = (
    'Traceback (most recent call last):\n  File "/old/x.py", line 1, in old\nValueError: handled\n'
    'Traceback (most recent call last):\n  File "/home/me/train.py", line 10, in main\n    go()\n'
)
FOREIGN = '  File "/env/lib/python3.11/site-packages/torch/nn.py", line 3, in forward \n'


def alike() -> Answers:
    """What failures that look alike have in common."""
    logs = {
        "": "",
        "no heading": '  File "a.py", line 3, in f\n',
        "own": FRAMES,
        "of a package": "Traceback (most recent call last):\n" + FOREIGN,
        "both": FRAMES + FOREIGN + '  File "C:\\exp\\step.py", line 9, in step\n' + FOREIGN,
        "many": FRAMES + "".join(f'  File "/me/{n}.py", line {n}, in f{n}\n' for n in range(9)),
        "of no file": 'Traceback (most recent call last):\n  File "<string>", line 1, in <module>\n',
    }
    messages = (
        "row 17 of /data/en.jsonl has no answer",
        "ValueError: row 17",
        "row 17 ValueError: ",
        "no file '/a/b c/x.json' nor \"relative\" nor 'C:\\a b\\c'",
        "object at 0x7f3a2b, digest 0123abcd4567, 3.5e-6, 4,096 of 2.50 GiB, v2, x9y",
        "  two   blanks\nand a line ",
    )
    for name, log in logs.items():
        yield f"frames {name}", own_frames(log)
    for message in messages:
        yield message, without_particulars(message)
        for cause, exception, log in itertools.product((Cause.DATA, None), ("ValueError", ""), ("", "both")):
            end = End(
                nonce="n",
                outcome="failed",
                cause=cause,
                exception=exception,
                message=message,
                log_tail=logs[log],
            )
            yield f"  {cause} {exception} {log}", tuple(fingerprint("train", end))


def rungs() -> Answers:
    """What rungs change, and the rows that results lack."""
    for rung in ({}, {"halve": "lr"}, {"double": ["a", "b"], "set": {"c": 1}}, {"halve": ["a"], "times": 3}):
        yield f"rung {rung}", rung_keys(rung)
    specs = {
        "a function": StageSpec(run="m:f", metric={"loss": "(.)"}),
        "a command": StageSpec(command="a"),
        "results": StageSpec(command="a", results="r"),
        "metric": StageSpec(command="a", metric={"loss": "(.)", "acc": "(.)"}),
        "both": StageSpec(command="a", metric={"loss": "(.)"}, results="r"),
    }
    for (name, spec), rows in itertools.product(
        specs.items(), ([], [{}], [{"loss": 1}], [{"x": 1}, {"acc": 1}])
    ):
        yield f"{name} {rows}", lacks_results(spec, rows)
    yield "quote", [open_quote("'"), open_quote("x"), open_quote("X"), open_quote('a"')]


ASKED: Mapping[str, Callable[[], Answers]] = {
    each.__name__: each for each in (commands, exits, raised, alike, rungs)
}

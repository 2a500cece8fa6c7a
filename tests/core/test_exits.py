"""Ends of logs in which the reason of a failure does not stand last, or is not the user's."""

from __future__ import annotations

import errno
import os
import re
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.core.causes import cause_of
from orchestrator.core.exits import cause_of_command, cause_of_exit, cause_of_raised
from orchestrator.core.failure import Cause, own_frames
from orchestrator.core.tracebacks import Raised, exception_in, exceptions_in, marked
from orchestrator.errors import words_of
from orchestrator.execution import child
from tests.core.test_failure import DURING, FULL, RICH, TRACEBACK, of_rank, raised

DIED = "subprocess.CalledProcessError: Command 'x' returned non-zero exit status 1."
ECC = raised("RuntimeError: CUDA error: uncorrectable ECC error encountered")
NONE = "AttributeError: 'NoneType' object has no attribute 'close'"
LOGGING = (
    f"--- Logging error ---\n{raised(NONE)}Call stack:\n"
    '  File "/home/me/train.py", line 9, in <module>\n    log.info("x")\nMessage: \'x\'\nArguments: ()\n'
)
BESIDE = {
    "ignored": f"Exception ignored in: <function It.__del__ at 0x7f>\n{raised(NONE)}",
    "at exit": f"Error in atexit._run_exitfuncs:\n{raised(NONE)}",
    "logging": LOGGING,
}
PARALLEL = {
    "thread": f"Exception in thread Thread-1 (run):\n{raised(NONE)}",
    "task": f"Task exception was never retrieved\nfuture: <Task finished name='a'>\n{raised(NONE)}",
    "logged task": f"ERROR:asyncio:Task exception was never retrieved\nfuture: <T>\n{raised(NONE)}",
}


@pytest.mark.parametrize("said", ["", "cp: error writing '/x': No space left on device\n"])
@pytest.mark.parametrize("error", [DIED, "SystemExit: 1", "KeyboardInterrupt", "x.ChildFailedError: "])
@pytest.mark.parametrize(
    "heading", [RICH, "step 3  " + TRACEBACK, TRACEBACK.partition("\n")[2]], ids=["box", "same line", "none"]
)
def test_a_launchers_traceback_needs_no_line_that_begins_with_its_heading(
    heading: str, error: str, said: str
) -> None:
    failure = cause_of_command(1, f"{said}{heading}{error}\n", oom_killed=False)
    assert failure.cause is (Cause.STORAGE if said else Cause.UNKNOWN), failure
    assert "max()" not in failure.message


def test_a_log_that_cannot_be_judged_is_no_fault_of_the_user() -> None:
    chain = DURING.join([raised("ValueError: bad", "raise ValueError()")] * 2000)
    failure = cause_of_command(1, chain, oom_killed=False)
    assert (failure.cause, failure.exception) == (Cause.UNKNOWN, "")
    assert failure.message == "exited with code 1: its log cannot be judged (RecursionError)"


def test_an_exception_that_cannot_be_judged_is_no_fault_of_the_user(tmp_path: Path) -> None:
    class Kind(type):
        @property
        def __module__(cls) -> str:  # type: ignore[override]
            raise OSError("no such module")

    class Odd(ValueError, metaclass=Kind):
        pass

    try:
        raise Odd("bad")
    except Odd as error:
        assert child._cause(error, tmp_path) is Cause.UNKNOWN


@pytest.mark.parametrize("beside", [*BESIDE.values(), *PARALLEL.values()], ids=[*BESIDE, *PARALLEL])
def test_a_traceback_that_python_prints_beside_the_real_one_never_replaces_it(beside: str) -> None:
    for log in (ECC + beside, beside + ECC):
        assert cause_of_command(1, log, oom_killed=False).cause is Cause.BAD_NODE
    ranked = of_rank(1, "ValueError: bad row") + "".join(f"[rank1]: {line}\n" for line in beside.splitlines())
    assert cause_of_command(1, ranked, oom_killed=False).exception == "ValueError"


def test_of_exceptions_beside_the_process_only_those_of_threads_and_tasks_count_alone() -> None:
    for name, beside in BESIDE.items():
        assert cause_of_command(1, beside, oom_killed=False).exception == "", name
        both = beside.removesuffix("\n") + DURING + raised("ValueError: bad")
        assert cause_of_command(1, both + "step\n", oom_killed=False).exception == "", name
    for name, beside in PARALLEL.items():
        assert cause_of_command(1, beside, oom_killed=False).exception == "AttributeError", name
        full = f"{beside}cp: error writing '/x': No space left on device\n"
        assert cause_of_command(1, full, oom_killed=False).cause is Cause.STORAGE, name


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (raised("ValueError: handled") + "step\n" * 50 + "cp: error writing '/x': No space left on device\n",
         Cause.STORAGE),
        (raised("ValueError: x") + "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0\n",
         Cause.OOM_HOST),
        (raised("ValueError: bad") + "bash: line 1: trian: command not found\n", Cause.CODE),
        ("cp: error writing '/x': No space left on device\n" + raised("ValueError: bad"), Cause.CODE),
        (raised("ValueError: bad") + f"--- Logging error ---\n{raised(FULL)}", Cause.CODE),
    ],
)  # fmt: skip
def test_a_machines_fault_after_the_last_traceback_counts_more_than_the_users(log: str, cause: Cause) -> None:
    assert cause_of_command(1, log, oom_killed=False).cause is cause


LOADER = "python: error while loading shared libraries: "


@pytest.mark.parametrize(
    ("code", "log", "cause"),
    [
        (127, f"{LOADER}libcuda.so.1: cannot open shared object file: No such file or directory\n",
         Cause.BAD_NODE),
        (127, f"{LOADER}libGL.so.1: cannot open shared object file: No such file or directory\n",
         Cause.UNKNOWN),
        (127, f"{LOADER}libgomp.so.1: cannot allocate memory in static TLS block\n", Cause.UNKNOWN),
        (127, "bash: line 1: /nfs/x/train: Stale file handle\n", Cause.STORAGE),
        (126, "bash: line 1: /nfs/x/train: Input/output error\n", Cause.STORAGE),
        (1, "ls: cannot access '/mnt/x': Transport endpoint is not connected\n", Cause.STORAGE),
        (126, "bash: line 1: ./train.sh: Permission denied\n", Cause.CONFIG),
        (126, "bash: line 1: ./train: cannot execute binary file: Exec format error\n", Cause.CONFIG),
        (127, "bash: ./a: No such file or directory\nsrun: error: n1: Exited with code 127\n", Cause.CONFIG),
        (127, "step 3\n", Cause.UNKNOWN),
        (1, "Usage: 12 GB of 24 GB\nerror: connection lost to node 3\n", Cause.UNKNOWN),
        (2, "usage: train.py\nerror: No space left on device\n", Cause.STORAGE),
        (2, "usage: train.py\ntrain.py: error: unrecognized arguments: --lr\n", Cause.CONFIG),
        (1, f"usage: x\nx: error: the node is gone\n{raised(DIED)}", Cause.UNKNOWN),
        (1, f"usage: x\nx: error: no --lr\n{raised(DIED.replace('status 1', 'status 2'))}", Cause.CONFIG),
        (1, raised("FileNotFoundError: [Errno 2] No such file or directory: '/dev/nvidia0'"), Cause.UNKNOWN),
        (1, raised("FileNotFoundError: [Errno 2] No such file or directory: '/dev/shm/d/x.json'"),
         Cause.DATA),
        (1, raised("FileNotFoundError: [Errno 2] No such file or directory: '/tmp/pymp-a1b2/listener-x'"),
         Cause.UNKNOWN),
        (1, raised("FileNotFoundError: [Errno 2] No such file or directory: '/data/dev/a.csv'"), Cause.DATA),
    ],
)  # fmt: skip
def test_what_a_machine_lacks_is_no_fault_of_the_config_or_the_data(
    code: int, log: str, cause: Cause
) -> None:
    assert cause_of_command(code, log, oom_killed=False).cause is cause


@pytest.mark.parametrize("word", ["a: ", "0: ", "Error: ", "rank0: ", "line 1: ", " ", ".so", "File "])
def test_a_long_line_is_judged_by_its_beginning_in_no_time(word: str) -> None:
    line = word * (65536 // len(word))
    frame = f'{TRACEBACK}  File "/{line}", line 3, in x\n    go()\nFileNotFoundError: {line}\n'
    begun_s = time.process_time()
    for log in (f"{line}\n", frame, f"{line}\n{raised(DIED)}", f"{raised('ValueError: x')}{line}\n"):
        cause_of_command(1, log, oom_killed=False)
    cause_of_exit(-6, line, oom_killed=False)
    assert time.process_time() - begun_s < 2  # uncut, one such line takes up to 14 s
    tail = f"cp: {'a' * 3000}: No space left on device\n"
    assert cause_of_command(1, tail, oom_killed=False).cause is Cause.UNKNOWN


@pytest.mark.parametrize(
    ("code", "log", "cause"),
    [
        (1, "run.sh: line 1: nvidia-smi: command not found\nepoch 1\nepoch 2\n", Cause.UNKNOWN),
        (1, "run.sh: line 1: module: command not found\nTraining is over.\n", Cause.UNKNOWN),
        (1, "epoch 2\nrun.sh: line 9: evaluat: command not found\n", Cause.CONFIG),
        (127, "bash: line 1: trian: command not found\nsrun: error: n1: task 0: Exited\n", Cause.CONFIG),
    ],
)
def test_a_shell_goes_on_after_a_program_that_is_not_there(code: int, log: str, cause: Cause) -> None:
    assert cause_of_command(code, log, oom_killed=False).cause is cause


def group(*members: Exception | Sequence[Exception]) -> ExceptionGroup[Exception]:
    """Return a group as it is raised, whose members were raised too; a sequence is a group in it."""
    try:
        raise ExceptionGroup("tasks failed", [_raised(each) for each in members])
    except ExceptionGroup as error:
        return error


def _raised(error: Exception | Sequence[Exception]) -> Exception:
    if not isinstance(error, Exception):
        return group(*error)
    try:
        raise error
    except Exception as caught:
        return caught


FULL_DISK, NO_KEY = OSError(28, "No space left on device"), KeyError("lr")
GROUPS = {
    "one": (group(NO_KEY), Cause.CODE),
    "alike": (group(NO_KEY, TypeError("no len()")), Cause.CODE),
    "in a group": (group([FULL_DISK], FULL_DISK), Cause.STORAGE),
    "a machine's and the user's": (group(FULL_DISK, NO_KEY), Cause.UNKNOWN),
    "the user's deep inside": (group([FULL_DISK, NO_KEY]), Cause.UNKNOWN),
    "never raised": (ExceptionGroup("x", [MemoryError()]), Cause.OOM_HOST),
    "more than shown": (group(*[FULL_DISK] * 20), Cause.STORAGE),
}


@pytest.mark.parametrize("mark", ["", "[rank1]: "])
@pytest.mark.parametrize(("error", "cause"), GROUPS.values(), ids=[*GROUPS])
def test_a_group_of_exceptions_has_the_cause_on_which_its_members_agree(
    error: ExceptionGroup[Exception], cause: Cause, mark: str
) -> None:
    text = "".join(traceback.format_exception(error))
    log = "".join(f"{mark}{line}\n" for line in text.splitlines())
    found = cause_of_command(1, f"step 3\n{log}", oom_killed=False)
    assert found.cause is cause and found.exception not in ("", "ExceptionGroup")
    names = [f"{base.__module__}.{base.__qualname__}" for base in type(error).__mro__]
    assert cause_of(exception_in(text, names, words_of(error))) is cause


def test_members_of_groups_keep_their_frames_their_messages_and_what_led_to_them() -> None:
    def step() -> None:
        try:
            raise ValueError("bad row")
        except ValueError as error:
            raise KeyError("lr") from error

    try:
        step()
    except KeyError as error:
        inner = group(error, [OSError("disk")])
    text = "".join(traceback.format_exception(inner))
    *_, shown = exceptions_in([marked(line) for line in f"step 3\n{text}done\n".splitlines()])
    first, nested = shown.raised.members
    assert (first.classes[0], first.text, first.is_declared) == ("KeyError", "'lr'", True)
    assert first.before is not None and first.before.text.strip() == "bad row"
    assert [member.text for member in nested.members] == ["disk"]
    assert own_frames(text)[-1] == "test_exits.py:step" and shown.line == len(text.splitlines())
    assert words_of(inner).endswith("KeyError: 'lr'")
    cut = text[text.index("KeyError: 'lr'") :]
    assert cause_of_command(1, cut, oom_killed=False).cause is not Cause.CODE  # its beginning is lost


STACK = "\nStacktrace:\n [1] f()"
PANIC = "thread 'main' panicked at src/a.rs:1:2:\n"
THROWN = "terminate called after throwing an instance of 'std::runtime_error'\n  what():  "
JAVA, AT = 'Exception in thread "main" ', "\n\tat A.main(A.java:1)"
REPORTS = {
    "julia, a file": (1, 'ERROR: LoadError: SystemError: opening file "a.csv": {ENOENT}' + STACK, Cause.DATA),
    "julia, a setting": (1, 'ERROR: SystemError: opening file "train.yaml": {ENOENT}' + STACK, Cause.CONFIG),
    "julia, a mistake": (1, "ERROR: UndefVarError: `lr` not defined" + STACK, Cause.CODE),
    "julia, memory": (1, "ERROR: LoadError: OutOfMemoryError()" + STACK, Cause.OOM_HOST),
    "julia, own words": (1, "ERROR: LoadError: it failed" + STACK, Cause.UNKNOWN),
    "no stack trace": (1, "ERROR: UndefVarError: `lr` not defined", Cause.UNKNOWN),
    "r, a warning": (1, "Error in f(x) : no\nWarning message:\n  {ENOSPC}\nExecution halted", Cause.STORAGE),
    "r, a file": (1, "Error in f(x) : open the connection\na: {ENOENT}\nExecution halted", Cause.DATA),
    "r, a mistake": (1, "Error in f(x) : \n  object 'lr' not found\nExecution halted", Cause.CODE),
    "rust, a mistake": (101, PANIC + "index out of bounds: the len is 3", Cause.CODE),
    "rust, of old": (101, "thread 'main' panicked at 'attempt to divide by zero', src/a.rs:1:2", Cause.CODE),
    "rust, a socket": (101, PANIC + "an `Err` value: {ECONNREFUSED}", Cause.COMMUNICATION),
    "rust, own words": (101, PANIC + "it failed", Cause.UNKNOWN),
    "c++, a mistake": (-6, THROWN.replace("runtime_error", "out_of_range") + "map::at", Cause.CODE),
    "c++, a disk": (-6, THROWN + "{EROFS}", Cause.STORAGE),
    "c++, own words": (-6, THROWN + "no", Cause.UNKNOWN),
    "java, a mistake": (1, JAVA + "java.lang.NullPointerException" + AT, Cause.CODE),
    "java, its own": (1, JAVA + "org.x.Failed: no" + AT, Cause.UNKNOWN),
    "a program's file": (1, "wc: /data/a.txt: {ENOENT}", Cause.DATA),
    "a program that is missing": (1, "nohup: failed to run command 'trian': {ENOENT}", Cause.UNKNOWN),
    "a shell that went on": (1, "rm: cannot remove 'x': {ENOENT}\nstep 3", Cause.UNKNOWN),
    "a driver's library": (1, "x: libcuda.so.1: cannot open shared object file: {ENOENT}", Cause.BAD_NODE),
    "a library of a node": (1, "x: libGL.so.1: cannot open shared object file: {ENOENT}", Cause.UNKNOWN),
    "a service of a node": (1, "docker: dial unix /var/run/docker.sock: connect: {ENOENT}", Cause.UNKNOWN),
    "a device": (1, "train: cannot open /dev/nvidia0: {ENOENT}", Cause.UNKNOWN),
    "a mistake beside a disk": (101, PANIC + "assertion failed: save().is_ok(): {ENOSPC}", Cause.STORAGE),
    "pytest": (1, "FAILED t.py::test - TypeError: no len()\n== 1 failed in 0.1s ==", Cause.CODE),
    "pytest's assertion": (1, "FAILED t.py::test_x - assert 1 == 2\n1 failed in 0.1s", Cause.CODE),
    "no pytest": (1, "FAILED t.py::test - TypeError: no len()", Cause.UNKNOWN),
}  # fmt: skip


@pytest.mark.parametrize(("code", "log", "cause"), REPORTS.values(), ids=[*REPORTS])
def test_what_programs_in_other_languages_report_counts(code: int, log: str, cause: Cause) -> None:
    named = re.sub(r"\{(E\w+)\}", lambda name: os.strerror(getattr(errno, name[1])), log)
    assert cause_of_command(code, f"step 2\n{named}\n", oom_killed=False).cause is cause
    # a stage that started the program and exits with its code, or raises for it, has the same cause
    ended = Raised(("SystemExit", "BaseException"), str(abs(code)))
    if code == 1:
        assert cause_of_raised(ended, f"step 2\n{named}\n") is cause
        died = raised(DIED)
        assert cause_of_command(1, f"step 2\n{named}\n{died}", oom_killed=False).cause is cause


@pytest.mark.parametrize(
    ("text", "after", "cause"),
    [
        ("1", "", Cause.CODE),  # of a program that the stage ran
        ("training failed", "training failed\n", Cause.CODE),
        ("1", "continuing\n", Cause.UNKNOWN),  # `logging.exception`: the program went on
        ("1", "wandb: View run at https://w/r\n", Cause.UNKNOWN),
        ("2", "continuing\n", Cause.UNKNOWN),
        ("training failed", "continuing\ntraining failed\n", Cause.UNKNOWN),
        ("1", "continuing\nwc: /data/a.txt: No such file or directory\n", Cause.DATA),
    ],
)
@pytest.mark.parametrize("error", ["TypeError: no len()", "OSError: [Errno 28] No space left on device"])
def test_a_handled_exception_in_the_log_is_not_the_cause_of_an_exit(
    error: str, text: str, after: str, cause: Cause
) -> None:
    ended = Raised(("SystemExit", "BaseException"), text)
    # What a machine lacked may be what the program that was run ended by; its trackers print after it.
    may_be = cause is Cause.CODE or text.isdecimal()
    expected = Cause.STORAGE if "Errno 28" in error and may_be else cause
    assert cause_of_raised(ended, f"could not send metrics\n{raised(error)}{after}") is expected

"""A stop that a command or a library turns into an ordinary end is no success."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from orchestrator.stage import StageSpec
from tests.execution.jobs import IN_JOB, Jobs
from tests.execution.waiting import lives, signal_all, tree, until

LOOP = "echo runs; for i in $(seq 400); do sleep 0.05; done; touch $1/finished"
TRAP = f'trap "exit 0" TERM; echo "{{}}" > $1/rows.json; {LOOP}'
AS_LIGHTNING = """
import signal, sys, time
from pathlib import Path
received = []
signal.signal(signal.SIGTERM, lambda *_: received.append(1))
print("runs", flush=True)
for _ in range(400):
    time.sleep(0.05)
    if received:
        print("fit returned", flush=True)
        sys.exit(0)
Path(sys.argv[1], "finished").touch()
"""
SAVES_AND_FINISHES = AS_LIGHTNING.replace(
    "        sys.exit(0)",
    "        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of the worker, which may come last\n"
    "        break",
)


def bash(script: str) -> StageSpec:
    return StageSpec(command=f"bash -c '{script}' x {{output}}", finished="finished", results="rows.json")


def python(folder: Path, script: str, **rest: object) -> StageSpec:
    (folder / "fit.py").write_text(script)
    return StageSpec(**{"command": "{python} fit.py {output}", **rest})  # type: ignore[arg-type]


def stop(pid: int) -> None:
    """As Ctrl-C, `sweep cancel` and a deadline do: the worker alone knows, and passes it on."""
    os.kill(pid, signal.SIGTERM)


def signal_everyone(pid: int) -> None:
    """As a scheduler does: the command may have ended before anybody knows of a stop."""
    signal_all(pid, signal.SIGTERM)


@pytest.mark.parametrize(
    "script", ['trap "exit 0" INT; kill -INT $$; exit 1', "! timeout -s INT 0.2 sleep 30"]
)
def test_an_interrupt_reaches_a_command_as_in_a_terminal(run: Jobs, script: str) -> None:
    assert run(StageSpec(command=f"bash -c '{script}'")).end().outcome == "succeeded"


@pytest.mark.parametrize("send", [stop, signal_everyone])
@pytest.mark.parametrize("kind", ["shell", "library"])
def test_exit_code_0_after_a_stop_is_not_done(store: Path, run: Jobs, kind: str, send: object) -> None:
    spec = bash(TRAP) if kind == "shell" else python(store.parent, AS_LIGHTNING)
    job = run(spec)
    job.wait_for("runs")
    send(job.process.pid)  # type: ignore[operator]
    end = job.end()
    assert (end.outcome, end.why) == ("released", "stopped"), end


def test_a_command_that_ends_first_in_a_job_is_not_done(store: Path, run: Jobs) -> None:
    job = run(python(store.parent, AS_LIGHTNING), IN_JOB)
    job.wait_for("runs")
    command, *others = tree(job.process.pid)
    os.kill(command, signal.SIGTERM)
    until(lambda: not lives(command))
    for pid in others:
        os.kill(pid, signal.SIGTERM)
    assert job.end().outcome == "released"


@pytest.mark.parametrize("send", [stop, signal_everyone])
def test_exit_code_0_after_a_stop_is_done_with_the_file_that_says_so(
    store: Path, run: Jobs, send: object
) -> None:
    job = run(python(store.parent, SAVES_AND_FINISHES, finished="finished"))
    job.wait_for("runs")
    send(job.process.pid)  # type: ignore[operator]
    assert job.end().outcome == "succeeded"


def test_a_file_of_an_earlier_attempt_in_the_work_folder_finishes_no_other(store: Path, run: Jobs) -> None:
    spec = python(
        store.parent,
        AS_LIGHTNING.replace(
            'print("runs"',
            'Path(sys.argv[1], "finished").exists() or sys.exit(9) if '
            'len(list(Path(sys.argv[1]).iterdir())) else None\nprint("runs"',
        ),
        command="{python} fit.py {work}",
        finished="finished",
    )
    job = run(spec)
    job.wait_for("runs")
    (job.folder() / "work" / "finished").touch()  # as if a former run had been through
    os.kill(tree(job.process.pid)[0], signal.SIGKILL)
    job.wait_for("runs", attempt=2)
    stop(job.process.pid)
    assert (job.folder(2) / "work" / "finished").exists()
    assert job.end(2).outcome == "released"


def test_a_command_without_its_file_is_tried_again_even_if_nobody_here_knows_of_a_stop(
    store: Path, run: Jobs
) -> None:
    script = "Path(sys.argv[1], 'tries').exists() and Path(sys.argv[1], 'finished').touch()"
    spec = python(
        store.parent,
        f"import sys; from pathlib import Path; {script}; Path(sys.argv[1], 'tries').touch()",
        command="{python} fit.py {work}",
        finished="finished",
    )
    job = run(spec)
    assert job.end(2).outcome == "succeeded"
    end = job.end(1)
    assert (end.outcome, end.cause) == ("failed", "unknown") and "'finished'" in end.message


@pytest.mark.parametrize(
    "line",
    [
        "bash -c '{python} fit.py {output}; echo through'",
        "timeout 99 {python} fit.py {output} && echo through",  # in a process group of its own
        "{python} fit.py {output} | tee {scratch}/log",  # without `tee` a program could not print
        pytest.param("setsid -w {python} fit.py {output}; echo through", marks=pytest.mark.long),
        pytest.param("set -m; {python} fit.py {output} & wait", marks=pytest.mark.long),
        pytest.param("xargs -n1 {python} fit.py <<< {output}; true", marks=pytest.mark.long),
    ],
)
def test_a_program_behind_a_shell_gets_one_stop_and_the_time_to_save(
    store: Path, run: Jobs, line: str
) -> None:
    saves = AS_LIGHTNING.replace("received.append(1)", "(print('stop', flush=True), received.append(1))")
    saves = saves.replace(
        "        sys.exit(0)", "        time.sleep(0.7); print('saved', flush=True); sys.exit(3)"
    )
    job = run(python(store.parent, saves, command=line, shell=True))
    job.wait_for("runs")
    stop(job.process.pid)
    assert job.end().outcome == "released"
    said = [each for each in job.log() if each in ("stop", "saved", "through")]
    if line.startswith("timeout"):  # it signals its program, and then the group with it
        said = list(dict.fromkeys(said))
    assert said == ["stop", "saved"]


FUNCTION = """
import os, signal, time

def main(config, inputs, context):
    received = []
    if os.environ.get("TEST_TAKES", "yes") == "yes":
        signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    print("runs", flush=True)
    for _ in range(%d):
        time.sleep(0.05)
        if received:
            break
        %s
    return [{"steps": 1}]
"""


@pytest.mark.parametrize(
    ("line", "send", "outcome"),
    [
        ("pass", signal_everyone, "released"),  # its library left the loop early
        ("pass", stop, "succeeded"),  # nothing reached it: it went on to its natural end
        ("if context.stop_asked: break", stop, "succeeded"),  # it knew, and says that it is through
        ("if received: raise SystemExit", signal_everyone, "released"),
        ("if context.stop_asked: raise SystemExit(0)", stop, "released"),
    ],
)
def test_a_function_that_returns_is_done_unless_a_signal_cut_it_short(
    store: Path, run: Jobs, line: str, send: object, outcome: str
) -> None:
    # Only one that nothing reaches has to come to its end by itself.
    script = FUNCTION % (40 if line == "pass" and outcome == "succeeded" else 1200, line)
    if "raise SystemExit" in line and "received" in line:
        script = script.replace("            break", "            raise SystemExit")
    (store.parent / "fit_function.py").write_text(script)
    job = run(StageSpec(run="fit_function:main"))
    job.wait_for("runs")
    send(job.process.pid)  # type: ignore[operator]
    assert job.end().outcome == outcome


ASYNC = """
import asyncio, signal

async def fit(stop):
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.%s, stopped.set)
    print("runs", flush=True)
    # In the other case it comes to its end by itself after the stop has reached this process.
    while not stopped.is_set() and not (signal.%s == signal.SIGINT and stop.asked):
        await asyncio.sleep(0.01)

def main(config, inputs, context):
    asyncio.run(fit(context._stop))  # to look at `stop_asked` would make it one that knew
    return [{"steps": 1}]
"""


@pytest.mark.parametrize(
    ("taken", "send", "outcome"),
    [
        ("SIGTERM", signal_everyone, "released"),
        ("SIGINT", signal_everyone, "released"),
        ("SIGINT", stop, "released"),  # it may have been cut short: its pipe was replaced
    ],
)
def test_a_function_that_returns_in_a_job_is_not_done_where_asyncio_took_the_signal(
    store: Path, run: Jobs, taken: str, send: object, outcome: str
) -> None:
    (store.parent / "fit_asyncio.py").write_text(ASYNC % (taken, taken))
    job = run(StageSpec(run="fit_asyncio:main"), IN_JOB)
    job.wait_for("runs")
    send(job.process.pid)  # type: ignore[operator]
    assert job.end().outcome == outcome


@pytest.mark.parametrize("thread", [False, True])
def test_processes_that_a_function_forks_die_of_sigterm_and_do_not_stop_it(
    store: Path, run: Jobs, thread: bool
) -> None:
    call = "thread = threading.Thread(target=pools); thread.start(); thread.join()" if thread else "pools()"
    (store.parent / "fit_pool.py").write_text(
        "import multiprocessing, threading, time\n"
        "forks, codes = multiprocessing.get_context('fork'), []\n"
        "busy = forks.Semaphore(0)\n"
        "def hold(seconds):\n"
        "    busy.release()\n"
        "    time.sleep(seconds)\n"
        "def pools():\n"
        "    pool = forks.Pool(2)\n"
        "    pool.map_async(hold, [60, 60], chunksize=1)\n"
        "    busy.acquire(); busy.acquire()  # one that has no task yet ends by itself\n"
        "    child = forks.Process(target=time.sleep, args=(60,))\n"
        "    child.start(); child.terminate(); child.join()\n"
        "    pool.terminate(); pool.join()\n"
        "    codes.extend([child.exitcode, *(one.exitcode for one in pool._pool)])\n"
        "def main(config, inputs, context):\n"
        f"    {call}\n"
        "    print(codes, context.stop_asked, flush=True)\n"
        "    return [{'codes': 3}]\n"
    )
    job = run(StageSpec(run="fit_pool:main"))
    assert job.end().outcome == "succeeded"
    assert job.log() == ["[-15, -15, -15] False"]


def test_a_command_that_failed_is_not_done_where_exit_codes_were_to_be_dropped(run: Jobs) -> None:
    """Some supervisors ignore SIGCHLD, which what they start inherits; Python then reads code 0."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        job = run("bash -c 'exit 3'", retries={})
    finally:
        signal.signal(signal.SIGCHLD, before)
    end = job.end()
    assert end.outcome == "failed" and "exited with code 3" in end.message


@pytest.mark.parametrize("whom", ["0", "$PPID"])
def test_a_signal_that_a_command_sends_itself_is_no_stop(run: Jobs, whom: str) -> None:
    """Many scripts end with `trap "kill 0" EXIT`: taken for a stop, they would be tried for ever."""
    job = run(f"bash -c 'trap : TERM; kill -TERM {whom}; sleep 0.3; exit 0'", retries={})
    end = job.end()
    expected = ("succeeded", "") if whom == "0" else ("failed", "nobody asked for a stop")
    assert (end.outcome, expected[1] in end.message) == (expected[0], True), end

"""What commands are given, what is read of what they leave, and how attempts end, as recorded."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.core.failure import Cause
from orchestrator.execution import command_text, conclude
from orchestrator.execution.assignment import ChildOutcome, Shortage
from orchestrator.execution.command_output import (
    Arrivals,
    CheckpointFiles,
    PrintedMetrics,
    checkpoint_file,
    metrics_in,
    printed_row,
)
from orchestrator.saving import Checkpoint
from orchestrator.spec import Config
from orchestrator.stage import Context, Inputs, StageSpec
from tests.recording import Answers
from tests.shared.asked.files import answer, listed

CONFIG = {
    "lr": 0.1,
    "name": "a b",
    "deep": {"x": None, "y": True, "empty": {}},
    "list": [1, "-x"],
    "neg": -3,
    "dash": "-v",
    "no": False,
    "none": [],
}


def command_lines() -> Answers:
    """Command lines, and their values."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "resume").mkdir()
        (folder / "resume/manifest.json").write_text("{}")
        (folder / "resume/w.pt").write_text("w")
        context = Context(
            folder, uses=Config({"step_s": 0.5}), attempt=3, resume=Checkpoint(7, folder / "resume")
        )
        inputs = Inputs({"base": {"": Path("/base")}, "each": {"en": Path("/en"), "de": Path("/de")}})
        spec = StageSpec(command="x {work}", after=("base", "each", "none"))

        def shown(text: object) -> str:
            home = str(Path(command_text.__file__).parents[1])
            return (
                str(text).replace(name, "FOLDER").replace(sys.executable, "PYTHON").replace(home, "PACKAGE")
            )

        values = command_text.values_of(spec, Config(CONFIG), inputs, context)
        for key, words in values.items():
            yield f"value {key}", [shown(word) for word in words]
        yield "own python", command_text.values_of(spec, Config({}), inputs, context, "/opt/python")["python"]
        lines = (
            "train {args} --out {output}",
            "a{config.lr}b {config.name} {{x}}",
            "x={args}",
            "{nothing}",
            "'{config.name}' \"{config.name}\" {config.name}",
            "{inputs.base}/f {inputs.each.en}",
            "echo \"a {{}} {config.dash}\" '{config.name}'",
        )
        more = {**values, "config.name": ['it\'s a $b `c` "d" \\e']}
        for line in lines:
            yield f"words {line}", shown(answer(lambda of=line: command_text.as_words(of, more)))
            yield f"shell {line}", shown(answer(lambda of=line: command_text.as_shell_text(of, more)))
        yield (
            "facts",
            (
                command_text.command_facts(StageSpec(run="a:b"), ()),
                command_text.command_facts(StageSpec(command="x", python="/no/python"), ()),
            ),
        )
        (folder / "bin").mkdir()
        (folder / "bin/python").symlink_to(sys.executable)
        for python in (None, "bin/python", "./bin/python", "/no/python", "no-such-python"):
            yield f"interpreter {python}", shown(command_text.interpreter_of(python, folder))
        before = dict(os.environ)
        try:
            for path, active in itertools.product(
                ("/usr/bin", f"{name}/bin:/usr/bin", "/nowhere"), ("", name, "/other")
            ):
                os.environ.update({"PATH": path, "VIRTUAL_ENV": active})
                os.environ.pop("CONDA_PREFIX", None)
                yield (
                    f"path {path} {active}".replace(name, "FOLDER"),
                    shown(command_text.search_path()).replace(str(Path(sys.executable).parent), "BIN"),
                )
            yield "path of one's own", command_text.search_path("/opt/bin/python")
        finally:
            os.environ.clear()
            os.environ.update(before)
        yield "checkpoint", (shown(checkpoint_file(context)), checkpoint_file(Context(folder)))
        (folder / "resume/more").write_text("")
        yield "checkpoint of several", shown(checkpoint_file(context))


TABLES = (
    "a,b\n1,x\n2.5,\n",
    "a;b\n1;2\n",
    "a\tb\n1\t2\n",
    ",acc\n0,0.5\n",
    "a,a\n1,2\n",
    "1,2\n3,4\n",
    "a,b\n1\n",
    "acc\n0.5\n",
    "just a line",
    "name\nx\n",
    "",
    "\n \n",
    "[]",
    '{"a": 1}\n{"a": 2}',
    '[{"a": 1}, {"a": "nan"}]',
    '{"a": 1, "a": 2}',
    '{"a": }',
    "[1]",
    '{"loss": "inf", "name": "nan"}',
    '{"a": 1}\n[',
    '\ufeff{"a": {"b": [1]}}',
    "a,b\nNA,1e3\n-inf,+7\n",
    'a\n"x\ny"\n',
    '{"a": NaN}',
    "id,loss\n007,1\n08,2\n",
)


def results() -> Answers:
    """Files of results, and what of a log is a result."""
    with tempfile.TemporaryDirectory() as name:
        for suffix, text in itertools.product((".csv", ".json"), TABLES):
            path = Path(name) / f"rows{suffix}"
            path.write_text(text)
            yield f"{suffix} {text!r}", answer(lambda of=path: command_text.read_rows(of))
        (Path(name) / "bad.csv").write_bytes(b"a\n\xff\n")
        (Path(name) / "link.csv").symlink_to("nowhere")
        (Path(name) / "folder.csv").mkdir()
        os.mkfifo(Path(name) / "fifo.csv")
        for path in ("bad.csv", "link.csv", "folder.csv", "fifo.csv", "none.csv", "no/where.csv"):
            yield path, answer(lambda of=path: command_text.read_rows(Path(name) / of))
    lines = (
        "step=12 loss=0.7",
        "step: 12/100, loss: 0.7",
        "\x1b[32mstep=3\x1b[0m acc=1e-3 x=nan",
        "global_step=5 a/b=2",
        "step=1",
        "loss=0.5",
        "steps=1 loss=2",
        "step=1.5 loss=2",
        "substep=3 loss=1",
        "step 3 loss=1",
        "step=7 -loss=1 v2.0=3 y=-.5",
        "x" * 5000 + " step=1 loss=2",
        "epoch=1 step=2 loss=inf lr=+1E-5",
    )
    for line in lines:
        yield f"line {line[:60]!r}", metrics_in(line)
    log = "acc: 0.5\nacc: \x1b[1m0.75\x1b[0m done\nn=123456789012345678 m=1234567890123456789 "
    log += "word=yes bad=nan\n"
    for pattern in (
        "acc: ([0-9.]+)",
        "n=(\\d+)",
        "m=(\\d+)",
        "word=(\\w+)",
        "bad=(\\w+)",
        "none=(x)",
        "^(acc).*done$",
        "(a)|acc",
        "\x1b\\[(1)m",
    ):
        yield f"pattern {pattern!r}", answer(lambda of=pattern: printed_row({"it": of}, log))


def saved_files() -> Answers:
    """Files that commands save as checkpoints, and metrics that they print."""
    with tempfile.TemporaryDirectory() as name:
        context = Context(Path(name), resume=Checkpoint(4, Path(name)))
        files = CheckpointFiles(StageSpec(command="x", checkpoints="*.pt"), context)
        place = context.folder / "checkpoints"
        output = context.output

        def look(question: str, **more: Any) -> tuple[str, object]:
            files.look(**more)
            return question, (listed(place), listed(context.scratch / ".held") != [])

        (output / "step-12.pt").write_text("12")
        (output / ".tmp.pt").write_text("")
        (output / "half.pt.tmp").write_text("")
        yield look("first look")
        yield look("second look")
        (output / "last.pt").write_text("one")
        yield look("another file")
        (output / "last.pt").unlink()
        yield look("deleted meanwhile")
        for number in (20, 30):
            (output / f"m-{number}.pt").write_text(str(number))
            look("")
            yield look(f"file {number}")
        (output / "m-40.pt").write_text("40")
        yield look("at its end, by itself", is_last=True, by_itself=True)
        nothing = CheckpointFiles(StageSpec(command="x"), context)
        yield "without a pattern", nothing.look()
        printed = PrintedMetrics(context)
        (context.folder / "log").write_text("")
        log = next(
            (each for each in ("log.txt", "log", "stage.log") if (context.folder / each).exists()), "log"
        )
        yield "log", log
        printed.look()
        arrivals = Arrivals(output)
        (output / "made").write_text("")
        (output / "other").write_text("")
        (output / "other").rename(output / "renamed")
        yield "in place", sorted(arrivals.in_place())
        arrivals.close()


def ends() -> Answers:
    """How an attempt ended, by facts."""
    outcomes = {
        "none": conclude.NO_RECORD,
        "succeeded": ChildOutcome(outcome="succeeded"),
        "failed": ChildOutcome(outcome="failed", cause=Cause.DATA, exception="ValueError", message="no data"),
        "not kept": ChildOutcome(
            outcome="failed", cause=Cause.DATA, exception="NotKept", message="it needs them"
        ),
        "stopped": ChildOutcome(outcome="released", why="stopped"),
        "deadline": ChildOutcome(outcome="released", why="deadline"),
    }
    known = {
        "superseded": False,
        "retired_input": "",
        "shortage": None,
        "refusal": "",
        "recorded": False,
        "stop_confirmed": True,
    }
    cases: dict[str, dict[str, Any]] = {
        "": {},
        "error": {"error": "OSError: gone"},
        "recorded": {"error": "x", "recorded": True},
        "changed": {"changed": "a is missing"},
        "superseded": {"superseded": True},
        "retired": {"retired_input": "base"},
        "without": {"goes_without": True},
        "time": {"timed_out": True, "seconds": 12.7},
        "memory": {"shortage": Shortage(Cause.OOM_HOST, "too little", at_once=True)},
        "refused": {"refusal": "voided"},
        "not confirmed": {"stop_confirmed": False},
        "stop": {"stop": "cancelled"},
        "killed": {"exit_code": -9},
        "killed for memory": {"exit_code": -9, "oom_killed": True},
        "space": {"exit_code": 75},
        "no outcome": {"exit_code": 74},
        "code": {"exit_code": 3, "log": "MemoryError: x"},
    }
    for (child, outcome), (name, facts) in itertools.product(outcomes.items(), cases.items()):
        found = conclude.conclude(conclude.Facts(child=outcome, **{**known, **facts}))
        yield f"{child}, {name}", found._asdict() if isinstance(found, conclude.Conclusion) else str(found)
        asked = conclude.conclude(conclude.Facts(child=outcome, **facts))
        yield f"{child}, {name}, asks", str(asked) if isinstance(asked, conclude.Fact) else "nothing"


ASKED: dict[str, Callable[[], Answers]] = {
    "command_lines": command_lines,
    "results": results,
    "saved_files": saved_files,
    "ends": ends,
}

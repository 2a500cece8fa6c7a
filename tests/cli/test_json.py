"""The JSON of the verbs: every one has a schema, and in every state prints what its schema describes."""

from __future__ import annotations

import argparse
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.outputs import OUTPUTS
from orchestrator.api.schemas import output_schemas
from orchestrator.cli.main import VERBS, guarded, name_file, verb_of
from orchestrator.entry import for_people
from tests import outputs
from tests.cli.launches import SLOW, Running, running_heartbeats, wait_for
from tests.conftest import Sweep

pytestmark = pytest.mark.xdist_group("json")  # they share what is expensive to set up

MIXED = """
description: two cells, one of which fails
config: {seed: 0, count: {num_steps: 4, checkpoint_every: 2, step_s: 0.0, fail: null}}
axes:
  kind:
    good: {count.num_steps: 3}
    bad: {count.fail: {how: data, step: 4, attempts: 9}}
stages: [count]
"""


def has_json(parser: argparse.ArgumentParser) -> bool:
    return any("--json" in action.option_strings for action in parser._actions)


def test_every_verb_that_prints_json_has_a_schema():
    verbs = {verb for verb in VERBS if has_json(verb_of(verb)[1])}
    assert verbs == set(OUTPUTS), "see 'The JSON of a verb' in CONTRIBUTING.md"


def test_the_published_schemas_are_current_and_describe_every_field():
    for verb, schema in json.loads(json.dumps(output_schemas())).items():
        path = outputs.SCHEMAS / f"{verb}.json"
        assert json.loads(path.read_text()) == schema, "run: python docs/reference.py"
        for name, definition in schema.get("$defs", {}).items():
            assert definition.get("description"), f"{path.name}: {name}"
    assert {path.stem for path in outputs.SCHEMAS.glob("*.json")} == {*OUTPUTS, "error"}


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    """A store with a sweep of done and failed cells in two revisions, a running one and a cancelled one."""
    folder = tmp_path_factory.mktemp("json")
    found = Sweep(folder, folder / "store")
    (folder / "mixed.yaml").write_text(MIXED)
    for name, steps in (("slow", "40000"), ("stopped", "400"), ("never", "401")):
        (folder / f"{name}.yaml").write_text(SLOW.replace("30", steps))
    found("launch", "mixed.yaml", code=1)
    found("launch", "mixed.yaml", "count.num_steps=5", "policy.budget.gpu_hours=1", code=1)
    found("launch", "stopped.yaml", "count.num_steps=1", "--only", "seed=0")
    found("cancel", "stopped", "--only", "seed=1")
    running = Running(folder, found.store, ("launch", "slow.yaml", "launcher.workers=1"))
    wait_for(lambda: running_heartbeats(found.store))
    yield found
    running.interrupt()
    running.end()


READING = [
    ("list",),
    *(
        (verb, name)
        for verb in ("plan", "status", "failures")
        for name in ("mixed", "slow", "stopped", "never.yaml")
    ),
    ("plan", "mixed", "--budget"),
    ("plan", "never.yaml", "--gpus", "2"),
    ("plan", "never.yaml", "--budget", "policy.budget.gpu_hours=0.001"),
    ("simulate", "never.yaml", "--gpus", "2"),
    ("simulate", "never.yaml", "--gpus", "2", "--failures", "x100", "policy.budget.gpu_hours=1"),
    ("status", "slow", "--spent"),
    ("status", "mixed", "--spent"),
    ("why", "mixed", "kind=good"),
    ("why", "mixed", "kind=bad"),
    ("why", "slow", "state=running"),
    ("why", "stopped", "seed=1"),
    ("why", "never.yaml", "seed=1"),
    ("show", "mixed", "kind=good"),
    ("show", "slow", "state=running"),
    ("show", "never.yaml", "seed=1"),
    ("diff", "mixed", "kind=good", "kind=bad"),
    ("diff", "mixed@1", "mixed@2"),
    ("logs", "mixed", "kind=bad"),
    ("wait", "mixed", "--until", "failed"),
    ("wait", "slow", "--timeout", "0"),
    ("events", "mixed"),
    ("collect", "mixed@*"),
    ("collect", "mixed", "--wide"),
    ("collect", "never.yaml"),
    ("report", "mixed"),
    ("query", "select * from cells"),
    ("best", "mixed", "num_steps"),
    ("clean",),
    ("nodes",),
    ("nodes", "mixed"),
    ("doctor",),
]
"""Commands in several states. `sync` and the jobs of schedulers are compared where their servers are."""


REFUSED = [
    (2, ("status", "mixd"), "unknown sweep 'mixd'"),
    (2, ("logs", "never.yaml", "seed=5"), "was never started"),
    (2, ("plan", "mixed", "--gpus"), "expected one argument"),
    (2, ("collect", "never.yaml", "--onyl"), "unrecognized arguments"),
    (2, ("launch", "mixed.yaml", "seeds=1"), "unknown key 'seeds'"),
    (2, ("plan", "mixed", "--multirun", "seed=0,1"), "unrecognized arguments: --multirun"),
    (2, ("launch", "--run", "true {lr}", "--lr", "0.1"), "unrecognized arguments: --lr"),
    (2, ("lst",), "unknown verb 'lst'"),
    (2, ("query", "select"), "Parser Error"),
]
"""Commands that print an error."""


def printed(sweeps: Sweep, *words: str) -> tuple[int, Any]:
    """Return the exit code, and the values that a command prints; the command compares them itself."""
    env = {**os.environ, "SWEEP_STORE": str(sweeps.store)}
    code, out, _ = sweeps.run((*words, "--json"), env, 60)
    return code, [json.loads(line) for line in out.splitlines()] if words[0] == "events" else json.loads(out)


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_what_a_verb_prints_fits_its_schema(sweeps: Sweep, words: tuple[str, ...]):
    code, value = printed(sweeps, *words)
    assert value if words[:2] != ("collect", "never.yaml") and words[0] != "nodes" else value == []
    assert code in (0, 1) or (code == 4 and words[0] == "wait")
    assert "error" not in value


@pytest.mark.parametrize(
    ("code", "words", "what"),
    REFUSED,
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_an_error_is_an_object_that_names_what_is_wrong_and_what_to_type(
    sweeps: Sweep, code: int, words: tuple[str, ...], what: str
):
    found, value = printed(sweeps, *words)
    assert found == code == value["error"]["exit_code"]
    assert what in value["error"]["what"]


TOUCH = """
axes: {seed: [1, 2]}
config: {seed: 0}
stages: {act: {command: 'sh -c "echo $1 > $2/said" - {config.seed} {output}', reads: [seed]}}
"""


def test_what_is_recorded_and_started_is_printed_as_the_only_thing_on_standard_output(sweep: Sweep):
    (sweep.folder / "touch.yaml").write_text(TOUCH)
    found = printed(sweep, "launch", "touch.yaml", "launcher.workers=1")[1]
    assert (found["request"], found["counts"], found["exit_code"]) == (1, {"done": 2}, 0)
    assert found["jobs"] == [] and len(found["cells"]) == 2
    assert printed(sweep, "rerun", "touch")[1]["request"] is None
    found = printed(sweep, "discard", "touch", "seed=1", "--stage", "act", "--reason", "wrong")[1]
    assert (found["request"], [each["voided"] for each in found["stages"]]) == (2, [True])
    found = printed(sweep, "cancel", "touch")[1]
    assert (found["request"], len(found["cells"])) == (3, 1)
    assert printed(sweep, "cancel", "touch", "--only", "seed=2")[1]["request"] is None
    found = printed(sweep, "rerun", "touch", "--only", "seed=1", "launcher=external")[1]
    assert (found["verb"], found["request"], found["launcher"]) == ("rerun", 4, "external")
    assert found["counts"] == {"pending": 1}
    found = printed(sweep, "launch", "touch.yaml", "launcher=external", "--dry-run")[1]
    assert "submits nothing" in found["error"]["what"]


LOUD = """
import os

print("imported", flush=True)
os.write(1, b"and written")

def act(config, inputs, context):
    return []
"""


@pytest.mark.parametrize("snapshot", ["false", pytest.param("true", marks=pytest.mark.long)])
def test_modules_that_print_while_they_are_imported_do_not_print_beside_the_object(
    sweep: Sweep, snapshot: str
):
    (sweep.folder / "loud.py").write_text(LOUD)
    stages = "stages: {act: {run: 'loud:act', reads: [seed], preload: [loud]}}\n"
    (sweep.folder / "loud.yaml").write_text(f"config: {{seed: 0}}\naxes: {{seed: [1]}}\n{stages}")
    words = ("launch", "loud.yaml", "launcher.workers=1", f"launcher.snapshot={snapshot}", "--json")
    code, out, err = sweep.run(words, {**os.environ, "SWEEP_STORE": str(sweep.store)}, 60)
    assert (code, json.loads(out)["counts"]) == (0, {"done": 1})
    # The fork server of a snapshot does not find the module, and the log of a worker gets its lines.
    assert snapshot == "true" or ("imported" in err and "and written" in err)


def test_what_is_for_people_leaves_standard_output_as_it_was(capfd: pytest.CaptureFixture[str]):
    for as_json in (True, False):
        with pytest.raises(KeyboardInterrupt), for_people(as_json=as_json):
            print("a line")
            subprocess.run(["echo", "of a child"], check=True)
            raise KeyboardInterrupt
        print("after", flush=True)
        out, err = capfd.readouterr()
        assert ("of a child" in out, "of a child" in err) == (not as_json, as_json)
        assert ("a line" in out, "a line" in err) == (not as_json, as_json)
        assert out.endswith("after\n")


@pytest.mark.parametrize(
    ("error", "code", "what"),
    [
        (KeyboardInterrupt(), 1, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 3, "No space left on device"),
        (ZeroDivisionError("by zero"), 3, "Polysweep itself failed: ZeroDivisionError: by zero"),
        (SystemExit("no licence"), 2, "no licence"),
    ],
    ids=["Ctrl-C", "a full disk", "a bug", "code of the user's that exits"],
)
def test_however_a_command_ends_it_prints_an_object(
    error: BaseException, code: int, what: str, capsys: pytest.CaptureFixture[str]
):
    def fails() -> int:
        raise error

    assert guarded(fails, ["launch", "--json"]) == code
    found = json.loads(capsys.readouterr().out)["error"]
    assert (found["what"], found["exit_code"]) == (what, code)
    assert guarded(fails, ["launch"]) == code
    out, err = capsys.readouterr()
    assert out == "" and f"error: {what}" in err


def test_the_file_that_a_verb_writes_is_named_for_failed_writes_alone(tmp_path: Path):
    out = tmp_path / "rows.csv"
    for number, message, where in (
        (errno.ENOSPC, "No space left on device", str(out)),
        (errno.EFBIG, "File too large", str(out)),
        (errno.ETIMEDOUT, "the store did not answer in 60 s", None),
        (errno.ENOSPC, "cannot write standard output: No space left on device", None),
    ):
        error = OSError(number, message)
        name_file(error, out)
        assert error.filename == where
        name_file(error := OSError(number, message), None)
        assert error.filename is None


def test_a_bug_in_the_process_that_goes_on_in_the_snapshot_is_an_object_too(sweep: Sweep):
    (sweep.folder / "touch.yaml").write_text(TOUCH)
    sweep("launch", "touch.yaml", "launcher=external")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.attached", str(sweep.store), "touch", "first", "--json"],
        capture_output=True,
        text=True,
    )
    error = json.loads(done.stdout)["error"]
    assert done.returncode == error["exit_code"] == 3
    assert "Polysweep itself failed: ValueError" in error["what"]


@pytest.mark.long
def test_a_process_that_goes_on_in_the_snapshot_prints_the_object_too(sweep: Sweep):
    (sweep.folder / "touch.yaml").write_text(TOUCH)
    code, found = printed(sweep, "launch", "touch.yaml", "launcher.workers=1", "launcher.snapshot=true")
    assert (code, found["request"], found["counts"]) == (0, 1, {"done": 2})


def test_a_field_that_the_schema_lacks_is_found():
    row = {"name": "a", "ok": True, "detail": ""}
    outputs.check(["doctor", "--json"], json.dumps([row]))
    with pytest.raises(AssertionError, match=r"doctor.json does not describe.*mood"):
        outputs.check(["doctor", "--json"], json.dumps([{**row, "mood": 1}]))
    with pytest.raises(AssertionError, match="'ok' is a required property"):
        outputs.check(["doctor", "--json"], json.dumps([{"name": "a", "detail": ""}]))

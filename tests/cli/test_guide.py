"""`sweep guide`: what it has is true of the code, and verbs that it calls reading change nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orchestrator.cli import waiting
from orchestrator.cli.guide import EFFECTS, READS, guide_text
from orchestrator.cli.main import VERBS, verb_of
from orchestrator.core.failure import Cause
from orchestrator.core.state import State
from orchestrator.errors import InfrastructureError, UserError
from tests import outputs
from tests.cli.test_json import MIXED
from tests.conftest import Sweep

GUIDE = guide_text()


def test_every_verb_has_an_effect():
    assert set(VERBS) <= set(EFFECTS), "EFFECTS in orchestrator/cli/guide.py"


@pytest.mark.parametrize("verb", VERBS)
def test_the_exit_codes_of_a_verb_are_those_of_its_help(verb: str):
    _, parser = verb_of(verb)
    found = re.search(r"exit codes: (.*)", parser.epilog or "", flags=re.DOTALL)
    codes = {int(code) for code in re.findall(r"(?:^|; )(\d+) ", found[1])} if found else set()
    effect = EFFECTS[verb]
    known = {0, 2, 3, *([1] if effect.one else []), *map(int, re.findall(r"\d+", effect.more))}
    assert codes <= known


def test_the_exit_codes_are_those_of_the_code():
    codes = dict(re.findall(r"^\| (\d) \| (.*) \|$", GUIDE, flags=re.MULTILINE))
    assert sorted(codes) == ["0", "1", "2", "3", "4"]
    assert "wrong" in codes[str(UserError.exit_code)] and "store" in codes[str(InfrastructureError.exit_code)]
    assert "time ran out" in codes[str(waiting.TIMED_OUT)]


def test_every_cause_and_state_is_named():
    table = GUIDE.partition("| cause | do |")[2].partition("\n\n")[0]
    assert sorted(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE)))
    ) == sorted(Cause)
    (states,) = re.findall(r"^States: (.*)\.$", GUIDE, flags=re.MULTILINE)
    assert re.findall(r"`(\w+)`", states) == list(State)


def test_the_guide_is_short_and_has_no_blanks(sweep: Sweep):
    printed = sweep("guide")
    assert printed == GUIDE and len(GUIDE) < 14_000 and len(GUIDE.splitlines()) < 150
    assert not re.search(r"\{(verbs|states)\}", GUIDE)


def test_the_schema_of_a_verb_is_printed_and_an_unknown_one_refused(sweep: Sweep):
    for name in ("status", "error"):
        assert json.loads(sweep("guide", "--schema", name)) == json.loads(
            (outputs.SCHEMAS / f"{name}.json").read_text()
        )
    assert "did you mean status" in sweep("guide", "--schema", "statsu", code=2)


def tree_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}


def test_verbs_that_read_change_nothing_in_the_store(sweep: Sweep):
    (sweep.folder / "mixed.yaml").write_text(MIXED)
    sweep("launch", "mixed.yaml", code=1)
    commands = {
        "list": "",
        "plan": "mixed.yaml",
        "simulate": "mixed.yaml --gpus 2",
        "status": "mixed",
        "failures": "mixed",
        "why": "mixed kind=bad",
        "show": "mixed kind=bad",
        "diff": "mixed kind=bad kind=good",
        "logs": "mixed kind=bad",
        "wait": "mixed",
        "events": "mixed",
        "collect": "mixed",
        "query": "select*from(cells)",
        "best": "mixed num_steps",
        "serve": "mixed --file page.html",
        "guide": "",
        "completion": "bash",
    }
    untried = {"watch", "doctor", "verify", "decisions"}  # a terminal; slow; not of this sweep
    assert {verb for verb, effect in EFFECTS.items() if effect.kind == READS} <= commands.keys() | untried
    before = tree_of(sweep.store)
    for verb, words in commands.items():
        sweep(verb, *words.split(), code=None)
        assert tree_of(sweep.store) == before, verb

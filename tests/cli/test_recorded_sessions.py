# ruff: noqa: E501 - each command is one line
"""What verbs that plan, check, change and share print is as recorded, see ../recording.py."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from orchestrator.cli.main import VERBS, main, verb_of
from tests.recording import compare_text
from tests.seen import PROJECT, moment, plain, shown
from tests.store.study import HISTORIES, Study, sweep_of
from tests.store.study_records import NOW_S

RECORDED = Path(__file__).parent / "recorded"
MOST_LINES = 60
"""Lines of one command that are compared: some print whole scripts, and schemas."""
CELLS = dict(zip(HISTORIES, (cell.id for cell in sweep_of().cells), strict=True))

SMALL = """
description: a small one
config: {seed: 0, lr: 0.1, steps: 9, name: "run-${lr}"}
axes: {lr: [0.1, 0.2], seed: [1, 2]}
columns: {named: name}
stages:
  prepare: {command: "echo {config.lr}", reads: [lr]}
  fit:
    command: "fit {config.steps} {resume} {args}"
    reads: [seed, lr, steps, name]
    after: [prepare]
    checkpoints: "*.pt"
    limit_s: 60
    metric: {loss: "loss=(.*)"}
    results: rows.csv
"""
PHASES = """
config: {seed: 0, lr: 0.1, width: 4}
stages: {fit: {command: "echo {args}", reads: [seed, lr, width]}}
phases:
  - {name: tune, axes: {lr: [0.1, 0.2], seed: [7, 8]}, select: {metric: loss, mode: min, mean: [seed]}}
  - {name: confirm, axes: {seed: "range(0,3)"}}
"""
SEARCH = """
config: {lr: 0.1, layers: 2}
search: {metric: loss, mode: min, num_cells: 9, batch: 3, seed: 3,
  space: {lr: {low: 1e-5, high: 0.1, log: true}, layers: {low: 1, high: 4}}}
stages: {fit: {command: "echo {args}", reads: [lr, layers]}}
"""
SCRIPT = """
import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1, help="the rate")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--name", required=True, choices=["a", "b"])
parser.add_argument("--fast", action="store_true")
args = parser.parse_args()
"""

PLANS = (
    "plan small.yaml", "plan small.yaml --json", "plan small.yaml lr=0.1 seed=3,4 launcher.workers=2 policy.limits_s.fit=9",
    "plan small.yaml --only lr=0.1", "plan small.yaml --only lr=3", "plan small.yaml --gpus 16 --gpus-per-node 8",
    "plan small.yaml --gpus 16 --json", "plan small.yaml --gpus-per-node 2", "plan small.yaml --budget",
    "plan small.yaml --budget --json policy.budget.gpu_hours=1", "plan small.yaml --budget --gpus 2",
    "plan phases.yaml", "plan phases.yaml --json", "plan search.yaml", "plan search.yaml search.num_cells=4",
    "plan small.yaml --name other", "plan study", "plan study --json", "plan study --only state=failed", "plan study --budget", "plan small.yaml --name a/b", "plan nothing", "plan",
    "plan --run 'python fit.py --lr {lr}' lr=0.1,0.2", "plan --run 'python fit.py --lr {lr}'", "plan --app nothing.py",
    "plan count", "plan count count.num_steps=3 --json", "plan small.yaml --hours 3", "plan small.yaml -m",
    "simulate small.yaml --gpus 8 --preempt-every never", "simulate small.yaml --gpus 0", "simulate small.yaml",
    "simulate small.yaml --gpus 1", "simulate small.yaml --gpus 8 --failures nothing.json",
    "simulate small.yaml --gpus 8 --estimate-error -1", "simulate study --gpus 8",
    "launch nothing", "launch small.yaml launcher=slurmm", "launch small.yaml --only state=lost policy.lease_s=0",
    "launch small.yaml fit.x=1", "launch small.yaml --yes --no", "rerun nothing", "rerun small", "reconcile nothing",
    "reconcile study --yes", "prefetch small.yaml", "prefetch nothing", "list", "list --json",
)  # fmt: skip
ESTIMATES = (
    "plan one_model mixture=none,en task=math evaluation.engine=transformers --gpus 16 --gpus-per-node 8", "plan one_model mixture=none,en task=math evaluation.engine=transformers --json --only mixture=en", "plan one_model mixture=none,en task=math evaluation.engine=transformers --budget policy.budget.gpu_hours=0.5",
    "plan one_model mixture=none,en task=math evaluation.engine=transformers --budget --json policy.budget.gpu_hours=0.5", "plan one_model mixture=none,en task=math evaluation.engine=transformers --device h100 --mfu 0.4", "plan one_model mixture=none,en task=math evaluation.engine=transformers --device h101",
    "simulate one_model mixture=none,en task=math evaluation.engine=transformers --gpus 8", "simulate one_model mixture=none,en task=math evaluation.engine=transformers --gpus 4 --json --failures llama3 --seed 3", "simulate one_model mixture=none,en task=math evaluation.engine=transformers --gpus 8 --moldable",
    "simulate one_model mixture=none,en task=math evaluation.engine=transformers --gpus 8 --preempt-every 30m --job-start 30s --grid-order --estimate-error 0.3",
    "simulate one_model mixture=none,en task=math evaluation.engine=transformers --gpus 8 --failures x9 --preempt-every 20m --gpus-per-node 4", "simulate one_model mixture=none,en task=math evaluation.engine=transformers --gpus 8 --failures y9",
)  # fmt: skip
CHANGES = (
    "clean", "clean --json", "clean --drop study", "clean --drop nothing", "clean --drop study --yes", "clean x=1",
    f"discard study {CELLS['done']} --stage fit --reason again", "discard study model=large --stage score --reason x --json",
    "discard study model=large --stage score --reason x", "discard study model=huge --stage fit --reason x",
    "discard study model=small --stage fitt --reason x", "discard nothing model=small --stage fit --reason x",
    "discard study model=small --stage fit", "cancel study --only mixture=en", "cancel study --only mixture=de --json",
    "cancel study --only mixture=xx", "cancel nothing", "upgrade", "nodes --json", "wait study --timeout 0",
    "wait study --timeout 0 --json --only mixture=none", "wait study --until failed", "wait study --until stalled --timeout 0",
    "wait study --timeout -1", "wait study --stall nan", "wait study --until never", "wait nothing",
    "work study --gpus -1", "work study --workers 0", "work study --max-hours 0", "work study --out x", "work nothing",
    "work study --as nothing", "decisions study --json", "decisions nothing", "status study",
    "sync study --to nothing", "sync study --to tensorboard tracker.tensorboard.dir=TB",
    "sync study --to tensorboard tracker.tensorboard.dir=TB --json", "sync study --to mlflow", "sync nothing --to mlflow",
)  # fmt: skip
WORKERS = tuple(
    f"work study --as {kind} {rest}"
    for kind, rest in (
        ("k8s", "--image i:1 --number 2 --gpus 1 --secret s --max-hours 4"), ("k8s", "--number 2"), ("k8s", "--image i"),
        ("kueue", "--image i:1 --number 2 --queue q --workers 3"), ("kueue", "--image i"), ("command", "--gpus 2"),
        ("pbs", "--number 2 --queue q --max-hours 1.5"), ("pbs", "--gpus 2 --only model=small"), ("pbs", "--image i"),
        ("skypilot", "--number 2 --gpus 1"), ("skypilot", ""), ("command", "--number 3"), ("command", "--secret s"),
    )
)  # fmt: skip
SHARES = (
    "query 'select cell, model, state from cells order by cell' --format csv", "query 'select 1 as a' --json",
    "query 'select count(*) as n, stage from attempts group by stage order by stage'", "query 'select x from cells'",
    "query 'drop table cells'", "query 'select 1' --format parquet", "query 'select 1' --out x.txt",
    "query 'select 1 as a, null as b' --out rows.csv", "query 'select 1 as a' --out nowhere/rows.csv",
    "query 'select * from failures' --sweep study --json", "query 'select 1' --sweep nothing",
    "query \"select sweep, cell, stage, attempt, outcome, cause from attempts order by all\" --format csv",
    "query 'select loss, accuracy, cell from results order by all' --sweep study@1",
    "bundle study --out b.zip", "bundle study --out b.zip --certificate c.pem", "bundle nothing --out b.zip",
    "bundle study --out nowhere/b.zip --partial", "bundle study --out b.zip --partial --sign nothing.pem",
    "watch nothing", "serve nothing", "report nothing", "report study --only model=tiny", "collect study --format x",
    "best study loss --top -1", "collect study --out nowhere/x.csv", "logs study nothing", "diff study a b",
)  # fmt: skip
PLAIN = (
    "--version", "frob", "plann", "help", "help frob", "guide", "guide --schema status", "guide --schema frob",
    "completion bash", "completion zsh", "completion fish", "completion nosh", "new script.py --output -",
    "new script.py", "new script.py", "new nothing.py", "new small.yaml", "verify nothing.zip", "verify small.yaml",
    "verify small.yaml --run-code", "verify small.yaml --replay 2", "verify small.yaml --key a --certificate b",
    "--store x", "--store= list", "status", "status --store", "status a b c --json", "import nothing", "import . --app x.py",
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of a study, beside a folder with sweep files."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "110")
    for name in ("SWEEP_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name, text in (
        ("small.yaml", SMALL),
        ("phases.yaml", PHASES),
        ("search.yaml", SEARCH),
        ("script.py", SCRIPT),
    ):
        (folder / name).write_text(text)
    root = tmp_path / "store"
    with moment(NOW_S):
        Study(root)
    return root


def typed(root: Path, lines: Sequence[str]) -> str:
    """What these commands print, one after the other."""
    project = root.parent / "project"  # the working folder of that moment is another one

    def words(line: str) -> list[str]:
        return [
            re.sub(r"^(\w+\.yaml|tb)$", rf"{project}/\1", word).replace("=TB", f"={project}/tb")
            for word in shlex.split(line)
        ]

    with moment(NOW_S):
        found = "".join(shown(root, *words(line)) for line in lines)
    # A rehearsal's own digest is another one with each change of the code.
    found = re.sub(r'(rehearse[^"]*", "digest": ")[0-9a-f]+', r"\1DIGEST", found)
    return plain(found, {f"{project}/": "", str(root.parent): "FOLDER"})


def without_store(*words: str) -> str:
    """A command without `--store`, and what it prints."""
    before, streams = (sys.stdout, sys.stderr), (io.StringIO(), io.StringIO())
    sys.stdout, sys.stderr = streams
    try:
        code = main([*words])
    finally:
        sys.stdout, sys.stderr = before
    out, errors = (stream.getvalue() for stream in streams)
    lines = out.splitlines(keepends=True)
    more = [f"and {len(lines) - MOST_LINES} more lines\n"] if len(lines) > MOST_LINES else []
    end = f"[exit code {code}]\n\n" if code else "\n"
    return f"$ sweep {shlex.join(words)}\n{''.join([*lines[:MOST_LINES], *more])}{errors}{end}"


GROUPS: Mapping[str, Sequence[str]] = {
    "plans": PLANS,
    "estimates": ESTIMATES,
    "changes": CHANGES,
    "workers": WORKERS,
    "shares": SHARES,
}


LONG = ("estimates", "plans")  # they take seconds: they look at what models need


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in GROUPS]
)
def test_what_is_printed_is_as_recorded(root: Path, name: str) -> None:
    compare_text(RECORDED / f"{name}.txt", typed(root, GROUPS[name]))


def test_what_is_printed_without_a_store_is_as_recorded(root: Path) -> None:
    found = "".join(without_store(*shlex.split(line)) for line in PLAIN)
    words = {
        re.escape(str(root.parent)): "FOLDER",
        re.escape(str(PROJECT)): "PROJECT",
        r"polysweep \d+\.\d+\S*": "polysweep VERSION",
    }
    compare_text(RECORDED / "plain.txt", found, words)


def test_each_verb_has_a_module_and_refuses_an_unknown_option_as_recorded(root: Path) -> None:
    found = "".join(without_store(verb, "--frob") for verb in VERBS)
    compare_text(RECORDED / "unknown_options.txt", found)


def test_help_of_each_verb_is_that_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    page = (PROJECT / "docs/reference/cli.md").read_text()
    lacking = [
        verb
        for verb in VERBS
        if f"\n## {verb}\n\n```\n{verb_of(verb)[1].format_help().strip()}\n```" not in page
    ]
    assert lacking == []

"""Workers that run the code as it was at the launch: real processes, started as on another machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest

import orchestrator
from orchestrator import provenance
from orchestrator.core.records import Code, Done
from orchestrator.core.sweep import Input
from orchestrator.count import COUNT
from orchestrator.execution.assignment import Assignment
from orchestrator.jobs.records import OTHER_CODE
from orchestrator.stage import StageSpec
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.checkout import checkout_of
from orchestrator.store.objects import PosixStore
from tests.execution.faults import order_for
from tests.store.builders import counted, ledger_at, seal, sweep_of
from tests.store.projects import git, repository

STAGE = """
    import orchestrator
    from package import helper

    def main(config, inputs, context):
        (context.output / "says.txt").write_text(helper.SAYS)
        (context.output / "from.txt").write_text(f"{helper.__file__} {orchestrator.__file__}")
        return [{"seed": config.seed}]
"""
SCRIPT = """
    import json, os, sys
    import beside, orchestrator

    with open(os.environ["SWEEP_OUTPUT"] + "/rows.jsonl", "w") as stream:
        row = {"says": beside.SAYS, "from": beside.__file__, "ours": orchestrator.__file__}
        stream.write(json.dumps(row))
"""
SPECS = {
    "count": COUNT,
    "own": StageSpec(run="package.stage:main", reads=("seed",), after=("count",)),
    "script": StageSpec(
        command="python tools/script.py", reads=("seed",), after=("own",), results="rows.jsonl"
    ),
}


class Launched:
    """A launch of three stages (ours, a function of the user's, a command) with a snapshot of their code."""

    def __init__(self, tmp_path: Path) -> None:
        self.checkout = repository(
            tmp_path / "checkout",
            package____init__="",
            package__helper="SAYS = 'as at the launch'\n",
            package__stage=textwrap.dedent(STAGE),
            tools__beside="SAYS = 'as at the launch'\n",
            tools__script=textwrap.dedent(SCRIPT),
        )
        self.store, self.file = tmp_path / "store", tmp_path / "order.json"
        self.objects, self.ledger = PosixStore(self.store), ledger_at(self.store)
        self.sweep = sweep_of(1, SPECS)
        seal(self.store, self.sweep)
        self.targets = [spec.run for spec in SPECS.values() if spec.run]
        self.code = self.take()
        self.order = order_for(
            self.store,
            self.sweep.name,
            import_paths=(str(self.checkout),),
            code_digest=self.code.version,
            code=self.code,
        )

    def take(self) -> Code:
        """Stores the code as it is now."""
        version = checkout_of(self.objects, self.sweep, [str(self.checkout)]).digest()
        return snapshots.store(
            self.objects,
            snapshots.plan(self.objects, [str(self.checkout)], targets=self.targets, version=version),
        )

    @property
    def folder(self) -> Path:
        """The snapshot's."""
        return snapshots.folder(self.objects, self.code.digest)

    def work(self, *, order: Assignment | None = None, package: Path | None = None) -> tuple[int, str]:
        """Runs a worker as on another machine; returns its exit code and what it said."""
        self.file.write_bytes(msgspec.json.encode(order or self.order))
        path = snapshots.package_path(self.objects, self.code.digest) if package is None else package
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.execution.main", str(self.file)],
            cwd=Path(orchestrator.__file__).parents[1],
            env={**os.environ, "PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def product(self, stage: str) -> tuple[Done, Path]:
        """What a stage left."""
        instance = next(instance for instance in self.sweep.stages.values() if instance.stage == stage)
        done, problem = self.ledger.product(instance, 1)
        assert done is not None, problem
        return done, self.store / layout.payload(
            Input(stage, "", instance.digest), done.attempt
        ) / layout.OUTPUT


@pytest.fixture
def launched(tmp_path: Path) -> Launched:
    """A launch."""
    return Launched(tmp_path)


def test_a_week_later_a_worker_runs_the_code_of_the_launch(launched: Launched) -> None:
    checkout = launched.checkout
    for path in (checkout / "package" / "helper.py", checkout / "tools" / "beside.py"):
        path.write_text("SAYS = 'as now'\n")
    git(checkout, "commit", "-q", "-a", "-m", "second")
    code, said = launched.work()
    assert code == 0, said
    assert (launched.product("count")[1] / "count.txt").read_text() == counted(0)
    own = launched.product("own")[1]
    assert (own / "says.txt").read_text() == "as at the launch"
    root = launched.folder
    ours = f"{root}/polysweep/orchestrator/__init__.py"
    assert (own / "from.txt").read_text() == f"{root}/project-0/package/helper.py {ours}"
    assert launched.product("script")[0].rows == (
        {"says": "as at the launch", "from": f"{root}/project-0/tools/beside.py", "ours": ours},
    )
    assert snapshots.damage(launched.objects, launched.code.digest) == "", "running it does it no harm"


def test_a_worker_needs_no_checkout(launched: Launched) -> None:
    shutil.rmtree(launched.checkout)
    assert launched.work()[0] == 0


def test_the_version_of_the_code_is_that_of_a_launch_from_the_checkout(
    launched: Launched, tmp_path: Path
) -> None:
    """So that two launches of the same code do not look like drift."""
    assert launched.work()[0] == 0
    here = order_for(tmp_path / "other", launched.sweep.name)
    here = msgspec.structs.replace(launched.order, store=here.store, code=None)
    seal(tmp_path / "other", launched.sweep)
    code, said = launched.work(order=here, package=Path(orchestrator.__file__).parents[1])
    assert code == 0, said
    instance = next(instance for instance in launched.sweep.stages.values() if instance.stage == "own")
    there, problem = ledger_at(tmp_path / "other").product(instance, 1)
    assert there is not None, problem
    done = launched.product("own")[0]
    assert done.code == there.code and "." in done.code
    starts = [ledger_at(root).attempts(instance)[0].start for root in (launched.store, tmp_path / "other")]
    mine, theirs = (start.provenance for start in starts if start is not None)
    assert mine["git"] == theirs["git"] and mine["git"]["commit"]
    assert {key for key in mine if mine[key] != theirs[key]} == set()


def test_the_code_digest_is_the_same_in_the_snapshot(launched: Launched) -> None:
    paths = list(snapshots.import_paths(launched.objects, launched.code))
    digest = f"provenance.code_digest({launched.targets}, {paths})"
    script = f"from orchestrator import provenance; print({digest})"
    assert said_by_the_snapshot(launched, script) == provenance.code_digest(
        launched.targets, [str(launched.checkout)]
    )


def test_the_package_is_whole_in_the_snapshot_also_beside_an_installed_one(launched: Launched) -> None:
    """The tests' own environment has a checkout installed, which must not come first."""
    script = (
        "import orchestrator, importlib.metadata, orchestrator.reports.page as page\n"
        "print(orchestrator.__file__, orchestrator.__version__, importlib.metadata.version('polysweep'),"
        " page._TEMPLATE.is_file())"
    )
    expected = f"{launched.folder}/polysweep/orchestrator/__init__.py {orchestrator.__version__}"
    assert said_by_the_snapshot(launched, script) == f"{expected} {orchestrator.__version__} True"


def said_by_the_snapshot(launched: Launched, script: str) -> str:
    """Runs a script with `orchestrator` of the snapshot, by ``python -P``."""
    path = snapshots.package_path(launched.objects, launched.code.digest)
    return subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=Path(orchestrator.__file__).parents[1],
        env={**os.environ, "PYTHONPATH": str(path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()


def test_a_worker_that_finds_a_damaged_snapshot_claims_nothing(launched: Launched) -> None:
    path = launched.folder / "project-0" / "package" / "helper.py"
    path.chmod(0o644)
    path.write_text("SAYS = 'somebody was here'\n")
    code, said = launched.work()
    assert code == OTHER_CODE, said
    assert "the snapshot in the store is damaged: project-0/package/helper.py has other content" in said
    assert not (launched.store / "records").exists()
    snapshots.store(
        launched.objects, snapshots.plan(launched.objects, [str(launched.checkout)], targets=launched.targets)
    )
    assert launched.work()[0] == 0


def test_a_worker_without_its_snapshot_claims_nothing(launched: Launched) -> None:
    elsewhere = launched.store.with_name("elsewhere")
    shutil.copytree(launched.folder, elsewhere)
    shutil.rmtree(launched.store / "code")
    code, said = launched.work(package=elsewhere / "polysweep")
    assert code == OTHER_CODE and "damaged: it is not there" in said
    assert not (launched.store / "records").exists()


def test_a_worker_that_was_not_started_from_its_snapshot_claims_nothing(launched: Launched) -> None:
    code, said = launched.work(package=Path(orchestrator.__file__).parents[1])
    assert code == OTHER_CODE and "not from the snapshot" in said, said
    assert not (launched.store / "records").exists()


def test_a_worker_with_the_snapshot_of_other_code_claims_nothing(launched: Launched) -> None:
    """A launcher that names the wrong one."""
    (launched.checkout / "package" / "helper.py").write_text("SAYS = 'later'\n")
    other = launched.take()
    order = msgspec.structs.replace(launched.order, code=other)
    package = snapshots.package_path(launched.objects, other.digest)
    code, said = launched.work(order=order, package=package)
    assert code == OTHER_CODE and "not the code at launch" in said, said

"""Records that claim to be what they are not: content is compared, never believed, and no path leads out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compose.main import compose
from orchestrator.core.sweep import Input
from orchestrator.jobs.records import DAMAGED
from orchestrator.jobs.submissions import Submissions
from orchestrator.store import layout
from orchestrator.store.code import damage, digest_of
from orchestrator.store.ledger import Ledger, content_digest
from orchestrator.store.objects import PosixStore
from tests.conftest import Sweep
from tests.store.builders import claim, instance_of, make_product, submission_of, sweep_of

MINE = """
description: mine
axes: {seed: [1, 2]}
config: {seed: 0}
stages: {act: {command: 'sh -c "echo WORD $1 > $2/said" - {config.seed} {output}', reads: [seed]}}
"""


@pytest.fixture
def launched(sweep: Sweep) -> Sweep:
    """A sweep of two cells, launched and done, as revision 1."""
    (sweep.folder / "mine.yaml").write_text(MINE.replace("WORD", "first"))
    sweep("launch", "mine.yaml", "launcher.workers=1")
    return sweep


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def said(sweep: Sweep) -> set[str]:
    return {path.read_text() for path in sweep.store.glob("payload/act/*/*/output/said")}


def test_a_forged_revision_that_names_the_content_of_my_file_is_not_what_my_launch_runs(
    launched: Sweep,
) -> None:
    (launched.folder / "mine.yaml").write_text(MINE.replace("WORD", "second"))
    content = content_digest(compose(str(launched.folder / "mine.yaml")).sweep)
    forged = launched.store / layout.revision("mine", 2)
    text = (launched.store / layout.revision("mine", 1)).read_text().replace("echo first", "echo hijacked")
    forged.write_text(text)
    edit(forged, number=2, content=content)
    assert "mine@3" in launched("launch", "mine.yaml", "launcher.workers=1")
    assert said(launched) == {f"{word} {seed}\n" for word in ("first", "second") for seed in (1, 2)}
    assert "cannot be trusted" in launched("status", "mine@2", code=3)


def test_no_worker_runs_a_stage_under_the_digest_of_another(launched: Sweep) -> None:
    """Its product would pass for the honest stage's in every other sweep."""
    launched("discard", "mine", "seed=1", "--stage", "act", "--reason", "again")
    first = launched.store / layout.revision("mine", 1)
    tree = json.loads(first.read_text().replace("echo first", "echo hijacked"))
    from orchestrator.core.records import Revision
    from orchestrator.formats import decode

    forged = decode(json.dumps(tree).encode(), Revision)
    first.write_text(json.dumps({**tree, "content": content_digest(forged.sweep)}))
    assert "not what its digest" in launched("rerun", "mine", "--only", "seed=1", "--yes", code=3)
    assert not any("hijacked" in text for text in said(launched))


def test_a_product_whose_record_names_files_elsewhere_does_not_count_and_nothing_there_is_touched(
    launched: Sweep, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine alone\n")
    done = sorted((launched.store / "done/act").iterdir())[0]
    record = json.loads(done.read_text())
    away = "/".join([".."] * 12) + str(secret)
    edit(done, files=[*record["files"], {**record["files"][0], "path": away}])
    states = [cell["state"] for cell in launched.json("status", "mine")["cells"]]
    assert sorted(states) == ["done", "pending"]
    retired = launched.store / layout.retired(Input("act", "", record["digest"]), "best", 1)
    retired.parent.mkdir(parents=True)
    files = [{"path": away, "size": 11, "sha256": ""}]
    retired.write_text(
        json.dumps(
            {
                "nonce": "n",
                "generation": 1,
                "attempt": 1,
                "policy": "best",
                "files": files,
                "why": "",
                "by": "",
            }
        )
    )
    launched("launch", "mine.yaml", "launcher.workers=1")
    assert [cell["state"] for cell in launched.json("status", "mine")["cells"]] == ["done"] * 2
    assert secret.read_text() == "mine alone\n"


def test_a_record_that_was_copied_to_another_key_is_not_taken_for_its_own(launched: Sweep) -> None:
    one, other = sorted((launched.store / "done/act").iterdir())
    shutil.copyfile(one, other)
    cells = launched.json("status", "mine")["cells"]
    assert sorted(cell["state"] for cell in cells) == ["done", "pending"]
    assert any(other.name in cell["reason"] and "digest" in cell["reason"] for cell in cells)
    request = launched.store / layout.request("mine", 1)
    shutil.copyfile(request, request.with_name("000002.json"))
    assert "000002.json is unreadable (it is of number 1)" in launched("status", "mine")


def test_a_request_for_a_revision_that_is_not_there_is_in_nobodys_way(launched: Sweep) -> None:
    request = launched.store / layout.request("mine", 1)
    shutil.copyfile(request, request.with_name("000002.json"))
    edit(request.with_name("000002.json"), number=2, revision=77)
    assert "mine@1" in launched("status", "mine")


def test_what_was_hashed_is_read_from_the_sealed_sweep_and_not_from_the_stages_own_record(
    launched: Sweep,
) -> None:
    for spec in launched.store.glob("records/act/*/spec.json"):
        edit(spec, reads={"seed": 99}, stage="other")
    assert [cell["state"] for cell in launched.json("status", "mine")["cells"]] == ["done"] * 2
    launched("discard", "mine", "seed=1", "--stage", "act", "--reason", "again")
    launched("launch", "mine.yaml", "launcher.workers=1")
    assert said(launched) == {"first 1\n", "first 2\n"}


def test_a_snapshot_whose_manifest_leads_out_of_its_folder_is_damaged(store: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text("")
    objects = PosixStore(store)
    file = {"path": "../../elsewhere.py", "kind": "file", "size": 0, "sha256": ""}
    from types import SimpleNamespace

    digest = digest_of([SimpleNamespace(**file)])  # type: ignore[list-item]
    objects.put(layout.code_record(digest), json.dumps({"files": [file]}).encode())
    assert "no path inside a folder" in damage(objects, digest)


def test_no_key_leads_out_of_the_store(store: Path, tmp_path: Path) -> None:
    objects = PosixStore(store)
    (tmp_path / "kept").write_text("x")
    for act in (objects.get, objects.delete, objects.list, objects.workspace, objects.folder):
        with pytest.raises(OSError, match="out of the store"):
            act("payload/../../kept")
    assert (tmp_path / "kept").read_text() == "x"


def test_honest_records_are_still_believed(store: Path) -> None:
    ledger, instance = Ledger(PosixStore(store)), instance_of(sweep_of(1))
    ledger.claim(instance, 1, claim())
    done = make_product(ledger, instance)
    assert Ledger(PosixStore(store)).product(instance, 1) == (done, "")


def test_a_seal_that_was_cut_short_is_named_and_stops_only_what_needs_it(launched: Sweep) -> None:
    first = launched.store / layout.revision("mine", 1)
    first.write_bytes(first.read_bytes()[:200])
    shown = launched("status", "mine", code=3)
    assert "sweeps/mine/1.json is unreadable" in shown and "launch the sweep's file" in shown
    assert "not compared with the last launch" in launched("plan", "mine.yaml")
    assert "error: revision mine@1" in launched("list")
    launched("clean", code=3)
    # Launched again, it has another number, and the damaged one is left out and named.
    assert "mine@2: 2 cells: 2 done" in launched("launch", "mine.yaml", "launcher.workers=1")
    for words in (
        ("events", "mine"),
        ("clean",),
        ("discard", "mine", "seed=1", "--stage", "act", "--reason", "x"),
    ):
        assert "sweeps/mine/1.json is unreadable" in launched(*words)
    assert "1 done" in launched("status", "mine")


@pytest.mark.parametrize(
    "program",
    [
        ("slurm.job", "{store}", "mine", "1"),
        pytest.param(("ray.driver", "{store}", "mine", "1", "mine.1.ab"), marks=pytest.mark.long),
        ("ray.worker", "{store}", "mine", "1", "0", "0"),
    ],
    ids=lambda words: str(words[0]),
)
def test_a_job_whose_request_is_damaged_ends_with_the_code_of_that_and_names_the_record(
    launched: Sweep, program: tuple[str, ...]
) -> None:
    submission = submission_of(name="mine.1.ab")
    assert Submissions(Ledger(PosixStore(launched.store)), "mine").file(submission)
    (launched.store / layout.request("mine", 1)).write_text("{}")
    name, *words = (word.format(store=launched.store) for word in program)
    done = subprocess.run(
        [sys.executable, "-m", f"orchestrator.launchers.{name}", *words],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=60,
    )
    assert done.returncode == DAMAGED, done.stderr
    assert "request 1 of mine cannot be read" in done.stdout and "; launch again" in done.stdout

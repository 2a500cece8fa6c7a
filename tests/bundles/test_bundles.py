"""Bundles of a finished sweep: what is in them, what a stranger can check, and what is refused."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.api.state import open_view
from orchestrator.api.sweep import Sweep as PublicSweep
from orchestrator.bundles.content import segment_facts
from orchestrator.bundles.making import BundleOptions, _write, make_bundle
from orchestrator.bundles.verifying import Verification, VerifyOptions, _in_claims, _in_lines, verify_bundle
from orchestrator.errors import UserError
from tests.bundles import forging, graded
from tests.bundles.conftest import Honest
from tests.bundles.forgeries import Records, forgeries
from tests.conftest import Sweep

pytestmark = pytest.mark.xdist_group("bundles")  # they share what is expensive to set up

ALONE = [f for f in forgeries() if f.caught == "digests"]
CONSISTENT = [f for f in forgeries() if f.caught != "digests"]


def verified(path: Path, **options: Path) -> Verification:
    return verify_bundle(path, VerifyOptions(**options))


def test_a_stranger_finds_that_all_holds(honest: Honest, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, tmp_path / "no-store")
    found = sweep.json("verify", str(honest.bundle), "--key", str(honest.public), "--json")
    assert found["ok"] and found["faults"] == [] and found["signature"] == "valid"
    assert found["num_rows"] == found["num_predicted"] == 21 and found["num_claims"] == 26
    without = verified(honest.bundle)
    assert without.ok and without.signature == "not checked" and len(without.unchecked) == 1
    assert not (tmp_path / "no-store").exists()


def test_every_row_of_the_sweep_and_every_number_of_its_table_is_in_it(
    honest: Honest, tmp_path: Path
) -> None:
    opened = PublicSweep.open(graded.NAME, honest.store)
    files = forging.read(honest.bundle)
    assert json.loads(files["rows.json"]) == json.loads(msgspec.json.encode(opened.rows().to_pylist()))
    (table,) = [path.read_bytes() for path in opened.report(out=tmp_path / "out") if path.suffix == ".md"]
    assert files["report/accuracy/accuracy.md"] == table
    lines = [line.split("|")[3:-1] for line in table.decode().splitlines() if line.startswith("| tiny")]
    claims = json.loads(files["claims.json"])["claims"]
    printed = [text.strip() for line in lines for text in line if text.strip() != "–"]
    assert sorted(claim["text"] for claim in claims) == sorted(printed)
    assert {claim["verdict"] for claim in claims} == {"recomputed from predictions"}
    assert all(claim["value"] and claim["cells"] and "num_correct" in claim["formula"] for claim in claims)


def test_two_bundles_of_one_store_are_equal_and_ordinary_tools_read_them(
    honest: Honest, tmp_path: Path
) -> None:
    view = open_view(graded.NAME, str(honest.store))
    for name in ("one", "two"):
        make_bundle(view, tmp_path / f"{name}.zip", BundleOptions())
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.testzip() is None and archive.namelist() == sorted(archive.namelist())
        assert not any("safetensors" in name for name in archive.namelist())
    with zipfile.ZipFile(honest.bundle) as archive:
        assert sum("safetensors" in name for name in archive.namelist()) == 4


@pytest.mark.parametrize("forgery", ALONE, ids=lambda forgery: forgery.name)
def test_a_forgery_with_its_digests_left_alone_is_found(
    forgery: forging.Forgery, honest: Honest, tmp_path: Path
) -> None:
    forged = tmp_path / "forged.zip"
    forged.write_bytes(forgery.forge(forging.read(honest.bundle), random.Random(forgery.name)))
    found = verified(forged)
    assert not found.ok and found.faults
    assert [*tmp_path.iterdir()] == [forged]


def assert_caught(forgery: forging.Forgery, honest: Honest, folder: Path) -> None:
    """The weakest check that is named finds a forgery, and so does the signature of the honest maker."""
    forged = folder / "forged.zip"
    forged.write_bytes(forgery.forge(forging.read(honest.bundle), random.Random(forgery.name)))
    assert verified(forged).ok == (forgery.caught == "signature")
    assert not verified(forged, key=honest.public).ok


@pytest.mark.parametrize("forgery", CONSISTENT[::8], ids=lambda forgery: forgery.name)
def test_some_forgeries_with_all_digests_recomputed_are_found(
    forgery: forging.Forgery, honest: Honest, tmp_path: Path
) -> None:
    assert_caught(forgery, honest, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("forgery", CONSISTENT, ids=lambda forgery: forgery.name)
def test_every_forgery_with_all_digests_recomputed_is_found(
    forgery: forging.Forgery, honest: Honest, tmp_path: Path
) -> None:
    assert_caught(forgery, honest, tmp_path)


def test_the_page_counts_the_forgeries() -> None:
    page = (Path(__file__).parents[2] / "docs" / "bundles.md").read_text()
    for caught in ("digests", "recomputation", "signature"):
        number = sum(forgery.caught == caught for forgery in forgeries())
        assert re.search(rf"\| {number} \|[^|]*\| {caught} \|", page), (caught, number)
    for forgery in CONSISTENT:
        assert forgery.caught != "signature" or forgery.name in page


def test_each_fault_is_a_line_and_wrong_use_is_no_fault(honest: Honest, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, honest.store)
    files = forging.read(honest.bundle)
    (tmp_path / "forged.zip").write_bytes(forging.packed({**files, "rows.json": b"[]", "more.txt": b""}))
    said = sweep("verify", "forged.zip", code=1)
    assert "fault: rows.json has 2 bytes instead of" in said and "fault: more.txt is no file" in said
    assert len([line for line in said.splitlines() if line.startswith("fault: ")]) == 2
    assert "no file none.zip" in sweep("verify", "none.zip", code=2)
    for text, what in (("a list of results", "it is no zip"), ("", "it is empty")):
        (tmp_path / "text.zip").write_text(text)
        assert f"fault: {what}" in sweep("verify", "text.zip", code=1)
    assert "is no public key" in sweep("verify", str(honest.bundle), "--key", str(honest.key), code=2)
    assert "there is a file already" in sweep("bundle", graded.NAME, "--out", str(honest.bundle), code=2)
    assert "no name of a zip" in sweep("bundle", graded.NAME, "--out", "x.tar", code=2)
    assert "--sign" in sweep("bundle", graded.NAME, "--out", "x.zip", "--certificate", "c.pem", code=2)
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize(
    ("held", "lines"),
    [
        ("a\nB\nc\nD\n", [(2, "B", "b"), (4, "D", "d")]),
        ("a\nb\nc\nd\ne\n", [(5, "e", "")]),
        ("a\nx\nb\nc\nd\n", [(2, "x", "b")]),  # not the lines after it, which only moved
        ("a\nb\n", [(3, "", "c")]),
        ("a\nb\nc\nd\ne", [(5, "e", "")]),
        ("a\nb\nc\nd", [(0, "", "")]),
        ("", [(1, "", "a")]),
        ("a\n\udcff\nc\nd\n", [(2, "\ufffd", "b")]),
    ],
)
def test_the_lines_that_differ_are_named_in_a_text_of_any_length(
    held: str, lines: list[tuple[int, str, str]]
) -> None:
    found = list(_in_lines("t.md", held.encode(errors="surrogateescape"), b"a\nb\nc\nd\n"))
    assert found == [
        f"t.md, line {number}: {there!r} in the bundle, and the records give {here!r}"
        if number
        else "t.md is not the text that follows from the records"
        for number, there, here in lines
    ]


def test_claims_that_differ_are_named_and_other_bytes_of_the_same_claims_too(honest: Honest) -> None:
    made = forging.read(honest.bundle)["claims.json"]
    tree = msgspec.json.decode(made)

    def faults(**changes: Any) -> list[str]:
        return list(_in_claims("claims.json", msgspec.json.encode({**tree, **changes}), made))

    first, second, *rest = tree["claims"]
    assert list(_in_claims("claims.json", b"{}", made)) == ["claims.json holds no claims"]
    (fault,) = faults(claims=[{**first, "text": "0.9"}, second, *rest])
    assert f"{first['table']}, {first['row']}, {first['column']}: text is '0.9', and the records" in fault
    (fault,) = faults(claims=[second, *rest])
    assert fault.endswith(f"{first['column']}: it is missing")
    (fault,) = faults(claims=[first, {**second, "row": "mine"}, second, *rest])
    assert fault.endswith(f"mine, {second['column']}: no table has it")
    (fault,) = faults()
    assert fault.startswith("claims.json, line 1: ") and "in the bundle, and the records give '{" in fault
    (fault,) = _in_claims("claims.json", made.replace(b'"graded"', b'"Graded"'), made)
    assert "Graded" in fault.partition(" in the bundle")[0]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_text("mine")
    with pytest.raises(UserError, match="there is a file already"):
        _write(tmp_path / "x.zip", {"a.txt": b"a"})
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]
    assert (tmp_path / "x.zip").read_text() == "mine"
    _write(tmp_path / "y.zip", {"a.txt": b"a"})
    assert zipfile.ZipFile(tmp_path / "y.zip").read("a.txt") == b"a"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"segments": 3}', b'{"segments": [[1]]}', b"\xff"])
def test_segments_that_cannot_be_decoded_were_not_kept(data: bytes) -> None:
    assert segment_facts(data) is None
    assert segment_facts(b'{"segments": [[1, 2]], "cpu": "x"}') == {"segments": [(1, 2)], "cpu": "x"}


def test_a_sweep_that_is_not_finished_is_refused_unless_a_part_is_wanted(
    honest: Honest, tmp_path: Path
) -> None:
    shutil.copytree(honest.store, tmp_path / "store")
    first, *_ = sorted((tmp_path / "store" / "done" / "evaluate").iterdir())
    first.unlink()
    sweep = Sweep(tmp_path, tmp_path / "store")
    assert "is not finished: 2 done, 1 pending" in sweep("bundle", graded.NAME, "--out", "x.zip", code=2)
    view = open_view(graded.NAME, str(tmp_path / "store"))
    make_bundle(view, tmp_path / "x.zip", BundleOptions(partial=True))
    found = verified(tmp_path / "x.zip")
    assert found.ok and found.num_rows < 21


FIT = """
def main(config, inputs, context):
    return [{"accuracy": 1 - abs(config.lr - 0.2)}]
"""
HEAD = """
config: {seed: 0, lr: 0.1}
stages: {fit: {run: "fit:main", reads: [seed, lr]}}
"""
DECIDED = {
    "phases": """
phases:
  - {name: tune, axes: {lr: [0.1, 0.2]}, select: {metric: accuracy, mode: max}}
  - {name: confirm, axes: {seed: "range(1,3)"}}
""",
    "search": """
search: {metric: accuracy, mode: max, num_cells: 4, batch: 2, space: {lr: {low: 0.1, high: 1.0}}}
""",
}


@pytest.mark.parametrize("kind", DECIDED)
def test_what_follows_from_decisions_is_in_it_and_a_decision_that_is_missing_is_found(
    sweep: Any, kind: str, tmp_path: Path
) -> None:
    (sweep.folder / "fit.py").write_text(FIT)
    (sweep.folder / "tune.yaml").write_text(HEAD + DECIDED[kind])
    sweep("launch", "tune.yaml")
    sweep("bundle", "tune", "--out", "whole.zip")
    found = verified(sweep.folder / "whole.zip")
    assert found.ok and found.num_rows == len(sweep.json("collect", "tune")) == 4
    record = "store/sweeps/tune/decisions/1/000001.json"
    files = forging.read(sweep.folder / "whole.zip")
    less = forging.closed({name: data for name, data in files.items() if name != record})
    (tmp_path / "less.zip").write_bytes(forging.packed(less))
    faults = verified(tmp_path / "less.zip").faults
    assert any("is not decided, and the bundle is not partial" in fault for fault in faults), faults
    (sweep.store / record.removeprefix("store/")).write_bytes(b"")
    said = sweep("bundle", "tune", "--out", "damaged.zip", "--partial", code=3)
    assert "000001.json is unreadable" in said and not (sweep.folder / "damaged.zip").exists()


def test_no_folder_of_the_machine_and_no_secret_is_in_it(honest: Honest, tmp_path: Path) -> None:
    for name, data in forging.read(honest.bundle).items():
        assert str(honest.store.parent).encode() not in data, name
    shutil.copytree(honest.store, tmp_path / "store")
    (claim,) = (tmp_path / "store" / "records" / "base").glob("*/1/end.json")
    claim.write_text(claim.read_text().replace('"why":""', '"why":"ghp_' + "a1" * 18 + '"'))
    with pytest.raises(UserError, match="a GitHub token"):
        make_bundle(open_view(graded.NAME, str(tmp_path / "store")), tmp_path / "x.zip", BundleOptions())
    assert not (tmp_path / "x.zip").exists()


def test_nothing_that_a_bundle_names_is_imported(honest: Honest, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    records = Records(forging.read(honest.bundle))

    def point(tree: Any) -> None:
        tree["report"] = ["evil:report", "accuracy"]
        for node in tree["nodes"].values():
            if "task" in node["reads"]:
                node["reads"]["task"] = {"name": "evil", "target": "evil:task"}

    records.seal(point)
    (tmp_path / "forged.zip").write_bytes(forging.packed(forging.closed(records.files)))
    program = (
        "import sys; from pathlib import Path\n"
        "from orchestrator.bundles.verifying import VerifyOptions, verify_bundle\n"
        "found = verify_bundle(Path('forged.zip'), VerifyOptions())\n"
        "print(found.ok, 'evil' in sys.modules, 'torch' in sys.modules, *found.unchecked, sep='\\n')"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[:3] == ["False", "False", "False"]
    assert "the report evil:report is none of this installation" in done.stdout


def test_records_that_are_no_records_are_a_fault_and_no_crash(honest: Honest, tmp_path: Path) -> None:
    files = forging.read(honest.bundle)
    nested = b"[" * 100_000 + b"]" * 100_000
    for name in ("store/sweeps/graded/1.json", "store/store.json", "claims.json"):
        (tmp_path / "forged.zip").write_bytes(forging.packed(forging.closed({**files, name: nested})))
        assert not verified(tmp_path / "forged.zip").ok
    (name,) = [each for each in files if "none" not in each and each.endswith(graded.PREDICTIONS)][:1]
    records = Records(files)
    digest = name.split("/")[3]
    records.replace(f"store/done/evaluate/{digest}.1.json", name, b"PAR1 no table PAR1")
    (tmp_path / "forged.zip").write_bytes(forging.packed(forging.closed(records.files)))
    assert any("no file of predictions" in fault for fault in verified(tmp_path / "forged.zip").faults)


def test_a_manifest_that_is_too_large_or_of_a_later_format_is_a_fault(honest: Honest, tmp_path: Path) -> None:
    files = forging.read(honest.bundle)
    tree = msgspec.json.decode(files["manifest.json"])
    later = msgspec.json.format(msgspec.json.encode({**tree, "format": 2}), indent=1) + b"\n"
    (tmp_path / "forged.zip").write_bytes(forging.packed({**files, "manifest.json": later}))
    assert verified(tmp_path / "forged.zip").faults == [
        "manifest.json is of format 2, and this version reads 1"
    ]

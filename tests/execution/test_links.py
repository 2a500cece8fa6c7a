"""Products and checkpoints that hold links: what they lead to is part of them, or they are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.manifest import contain, damage, scan
from orchestrator.stage import StageSpec
from tests.execution.faults import order_for
from tests.execution.here import work
from tests.execution.stages import READS, USES
from tests.store.builders import instance_of, ledger_at, seal, sweep_of

LINKS = """
mkdir -p {checkpoints}/.new {scratch}/deep/er
echo weights > {checkpoints}/.new/w; mv {checkpoints}/.new {checkpoints}/5
echo scratch > {scratch}/deep/er/s; echo own > {output}/own
ln -s {checkpoints}/5/w {output}/absolute
cd {output}; ln -s ../checkpoints/5 relative; ln -s ../scratch/deep folder; ln -s own inside
ln {scratch}/deep/er/s hard
"""


def test_a_product_holds_what_its_links_led_to_when_checkpoints_and_scratch_are_deleted(store: Path) -> None:
    spec = StageSpec(command=LINKS.strip().replace("\n", "; "), shell=True, reads=READS, uses=USES)
    sweep = sweep_of(1, {"count": spec})
    seal(store, sweep)
    ledger, instance = ledger_at(store), instance_of(sweep)
    assert work(ledger, ledger.revision(sweep.name, 1), order_for(store, sweep.name)).code == 0
    done, problem = ledger.product(instance, 1)
    assert done is not None, problem
    folder = store / "payload" / instance.stage / instance.digest / "1"
    assert not (folder / "checkpoints").exists() and not (folder / "scratch").exists()
    texts = {file.path: (folder / "output" / file.path).read_text() for file in done.files}
    assert texts == {
        "absolute": "weights\n",
        "relative/w": "weights\n",
        "relative/manifest.json": texts["relative/manifest.json"],
        "folder/er/s": "scratch\n",
        "hard": "scratch\n",
        "own": "own\n",
        "inside": "own\n",
    }
    assert damage(folder / "output", done.files) is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder beside another."""
    (tmp_path / "folder/inner").mkdir(parents=True)
    (tmp_path / "beside/deep").mkdir(parents=True)
    (tmp_path / "beside/deep/file").write_text("1")
    return tmp_path / "folder"


def test_links_to_the_outside_become_copies_that_share_nothing(folder: Path) -> None:
    (folder / "inner/link").symlink_to("../../beside")
    (folder / "here").symlink_to("inner")
    contain(folder)
    assert [file.path for file in scan(folder)] == ["inner/link/deep/file"]
    (folder.parent / "beside/deep/file").write_text("2")
    assert (folder / "inner/link/deep/file").read_text() == "1"
    assert (folder / "here").is_symlink()


def test_a_folder_that_became_a_link_is_a_copy_of_what_it_led_to(folder: Path) -> None:
    (folder / "inner").rmdir()
    folder.rmdir()
    folder.symlink_to("beside")
    assert contain(folder)
    (folder.parent / "beside/deep/file").unlink()
    assert not folder.is_symlink() and [file.path for file in scan(folder)] == ["deep/file"]


def test_what_its_owner_may_not_read_or_change_is_opened_to_him(folder: Path) -> None:
    (folder / "file").touch(mode=0o000)
    (folder / "inner").chmod(0o555)
    folder.chmod(0o000)
    contain(folder)
    modes = [path.stat().st_mode & 0o777 for path in (folder, folder / "inner", folder / "file")]
    assert modes == [0o700, 0o755, 0o400]


@pytest.mark.parametrize("target", ["../nothing", "link", "..", "/dev/null"])
def test_links_to_no_file_are_no_part_of_a_product_and_do_no_harm(folder: Path, target: str) -> None:
    (folder / "link").symlink_to(target)
    (folder.parent / "beside/back").symlink_to("../folder")
    (folder / "beside").symlink_to("../beside")
    contain(folder)
    assert (folder / "link").readlink() == Path(target)
    assert [file.path for file in scan(folder)] == ["beside/deep/file"]


def test_names_that_no_record_can_hold_are_refused(folder: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9")).touch()
    with pytest.raises(ValueError, match=r"caf\\udce9 is no UTF-8 text"):
        contain(folder)


def test_a_checkpoint_holds_what_its_links_lead_to_however_its_command_ends(store: Path) -> None:
    """It may be linked into the next attempt, where the scratch folder is another."""
    saves = "mkdir -p {checkpoints}/.new; echo s > {scratch}/s; ln -s ../../scratch/s {checkpoints}/.new/s; "
    saves += "mv {checkpoints}/.new {checkpoints}/5; exit 3"
    spec = StageSpec(command=saves, shell=True, reads=READS, uses=USES)
    sweep = sweep_of(1, {"count": spec})
    seal(store, sweep)
    ledger, instance = ledger_at(store), instance_of(sweep)
    work(ledger, ledger.revision(sweep.name, 1), order_for(store, sweep.name, policy={"retries": {}}))
    saved = store / "payload" / instance.stage / instance.digest / "1/checkpoints/5"
    assert (saved / "manifest.json").exists() and not (saved / "s").is_symlink()
    assert (saved / "s").read_text() == "s\n"

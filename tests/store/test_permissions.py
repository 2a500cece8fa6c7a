"""Who may use a store: its folder's mode says it, whatever the umask of those who write there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store import opening
from tests.conftest import Sweep
from tests.store.users import OtherUser, other_user

GROUP, ANN, BOB = 54321, 54322, 54323
COUNT = """
description: counts
expect_cells: 2
config: {seed: 0, count: {num_steps: 2, checkpoint_every: 1, step_s: 0, fail: null}}
axes: {seed: "range(0,2)"}
stages: [count]
"""


@pytest.fixture
def team(open_to_all: Sweep) -> tuple[OtherUser, OtherUser]:
    """Two users of one group, of whom one lets nobody read and one nobody write what she makes."""
    (open_to_all.folder / "counts.yaml").write_text(COUNT)
    ann = other_user(open_to_all, uid=ANN, gid=GROUP, umask=0o022)
    bob = other_user(open_to_all, uid=BOB, gid=GROUP, umask=0o077)
    os.chown(open_to_all.store.parent, 0, GROUP)
    open_to_all.store.parent.chmod(0o2775)
    os.chown(open_to_all.folder, 0, GROUP)
    open_to_all.folder.chmod(0o2775)
    return ann, bob


def all_below(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    return ((path, path.lstat()) for path in (root, *root.rglob("*")))


def test_colleagues_work_in_one_store_whatever_their_umask(
    team: tuple[OtherUser, OtherUser], open_to_all: Sweep
) -> None:
    ann, bob = team
    ann("launch", "counts.yaml", "--only", "seed=0", "store.shared=true", "launcher.workers=1")
    assert stat.S_IMODE(open_to_all.store.stat().st_mode) == 0o2770
    bob("launch", "counts.yaml", "launcher.workers=1")
    bob("discard", "counts", "seed=0", "--stage", "count", "--reason", "again")
    assert "2 done" in ann("launch", "counts.yaml", "launcher.workers=1")
    for path, found in all_below(open_to_all.store):
        assert found.st_gid == GROUP, path
        wanted = 0o070 if path.is_dir() else 0o060
        assert found.st_mode & 0o070 & wanted == wanted and not found.st_mode & 0o007, (
            path,
            oct(found.st_mode),
        )
    assert {found.st_uid for _, found in all_below(open_to_all.store)} == {ANN, BOB}
    said = ann("doctor", code=None)
    line = next(line for line in said.splitlines() if "store access" in line)
    assert "mode 2770: may be written by its group" in line


@pytest.mark.long
def test_a_store_is_its_makers_alone_and_a_colleague_is_told_what_to_do(
    team: tuple[OtherUser, OtherUser], open_to_all: Sweep
) -> None:
    ann, bob = team
    ann("launch", "counts.yaml", "launcher.workers=1")
    for path, found in all_below(open_to_all.store):
        assert not found.st_mode & 0o077, path
    for words in (("status", "counts"), ("launch", "counts.yaml")):
        said = bob(*words, code=2)
        assert "does not let us in" in said and "umask of 002" in said and "store.shared=true" in said
        assert f"user {ANN}'s" in said or "is not known" in said
    assert "umask of 002" in bob("doctor", code=1)


@pytest.mark.long
def test_an_existing_store_keeps_the_mode_of_its_folder_and_doctor_says_what_locks_colleagues_out(
    team: tuple[OtherUser, OtherUser], open_to_all: Sweep
) -> None:
    ann, _ = team
    open_to_all.store.mkdir()
    os.chown(open_to_all.store, ANN, GROUP)
    open_to_all.store.chmod(0o775)
    ann("launch", "counts.yaml", "launcher.workers=1")
    assert stat.S_IMODE(open_to_all.store.stat().st_mode) == 0o775
    assert all(found.st_mode & 0o020 for path, found in all_below(open_to_all.store) if not path.is_symlink())
    (open_to_all.store / "records").chmod(0o755)
    said = ann("doctor", code=1)
    assert "FAIL  store access" in said and "chmod g+s" in said and "umask of 002" in said


def test_a_table_outside_the_store_has_the_modes_of_its_users_umask(
    team: tuple[OtherUser, OtherUser], open_to_all: Sweep
) -> None:
    ann, _ = team
    ann("launch", "counts.yaml", "launcher.workers=1")
    ann("collect", "counts", "--out", "table.csv")
    assert stat.S_IMODE((open_to_all.folder / "table.csv").stat().st_mode) == 0o644


def test_files_outside_the_store_follow_the_umask_that_the_program_has_now(tmp_path: Path) -> None:
    opening.make_root(tmp_path / "store", shared=True)
    before = os.umask(0o022)
    try:
        for umask in (0o022, 0o027):
            os.umask(umask)
            with opening.following(str(tmp_path / "store")):
                opening.follow_root(tmp_path / "store")  # as each opening of the store does
                with opening.as_usual():
                    (tmp_path / f"{umask:o}").mkdir()
                (tmp_path / "store" / f"{umask:o}").mkdir()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert modes == {"store": 0o2770, "22": 0o755, "27": 0o750}
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "store").iterdir()} == {0o770}
    finally:
        os.umask(before)

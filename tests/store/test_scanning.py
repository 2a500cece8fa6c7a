"""What a folder of files holds, while others still write, delete and keep open."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from orchestrator.manifest import File, fsync_tree, scan
from orchestrator.store.objects import PosixStore


def test_files_of_a_moment_are_no_part_of_a_product(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / ".nfsrc").write_text("x")
    for name in (
        ".nfs00000000000a1b2c00000001",
        ".nfs0000001f",
        ".fuse_hidden0000000200000001",
        ".__afs12AB",
    ):
        (tmp_path / name).write_text("x")
    assert [file.path for file in scan(tmp_path)] == [".hidden", ".nfsrc", "kept"]


def test_files_that_vanish_during_the_scan_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "kept").write_text("x")
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for number in range(40):
                (tmp_path / "deep" / f"{number}.part").write_text("x")
            for number in range(40):
                (tmp_path / "deep" / f"{number}.part").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(60):
            fsync_tree(tmp_path)
            assert "kept" in [file.path for file in scan(tmp_path)]
    finally:
        stop.set()
        thread.join()


def test_the_order_of_files_is_that_of_their_folders_as_digests_know_it(tmp_path: Path) -> None:
    for name in ("a/b", "a-b", "a.c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [file.path for file in scan(tmp_path)] == ["a/b", "a-b", "a.c"]


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/.", "a\0b"])
def test_no_file_of_a_product_lies_outside_it(path: str) -> None:
    with pytest.raises(ValueError, match="no path inside"):
        File(path, 1, "")


def test_a_folder_in_the_place_of_a_record_is_listed_as_one_and_a_sweep_or_stage_may_have_any_name(
    tmp_path: Path,
) -> None:
    objects = PosixStore(tmp_path)
    for folder in ("sweeps/mine.json", "sweeps/mine.json/requests/000001.json", "records/fit.json"):
        (tmp_path / folder).mkdir(parents=True)
    assert objects.list("sweeps").folders == ("mine.json",)
    assert objects.list("records").folders == ("fit.json",)
    assert objects.list("sweeps/mine.json/requests").files == ("000001.json",)
    assert objects.get("sweeps/mine.json/requests/000001.json") == b"", "unreadable, and not absent"

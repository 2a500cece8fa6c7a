"""Snapshots of the code: real git repositories, real folders, real processes that die and race."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import orchestrator
from orchestrator import provenance
from orchestrator.core.records import Code
from orchestrator.errors import UserError
from orchestrator.store import code as snapshots
from orchestrator.store import layout, project
from orchestrator.store.objects import PosixStore
from tests.store.projects import git, in_python, repository

PACKAGE = Path(orchestrator.__file__).parent


def names(objects: PosixStore, code: Code, place: str = "project-0") -> set[str]:
    """What a project holds in the stored snapshot."""
    root = snapshots.folder(objects, code.digest) / place
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }


@pytest.fixture
def objects(store: Path) -> PosixStore:
    """The store."""
    return PosixStore(store)


# What belongs to the code


def test_a_snapshot_holds_what_git_tracks_or_would_and_the_running_package(
    tmp_path: Path, objects: PosixStore
) -> None:
    folder = repository(tmp_path / "mine", tracked="1", sub__deleted="2", sub__kept="3")
    (folder / ".gitignore").write_text("*.bin\n/data/\n")
    (folder / "weights.bin").write_text("ignored")
    (folder / "data").mkdir()
    (folder / "data" / "items.txt").write_text("ignored")
    (folder / "new.py").write_text("untracked")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "new.cpython-311.pyc").write_text("Python would rewrite it")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "sub" / "deleted.py").unlink()
    code = snapshots.store(objects, snapshots.plan(objects, [str(folder / "sub"), str(folder)]))
    assert code.import_paths == ("project-0/sub", "project-0")
    assert names(objects, code) == {".gitignore", "tracked.py", "sub/kept.py", "new.py", "run.sh"}
    assert snapshots.damage(objects, code.digest) == ""
    root = snapshots.folder(objects, code.digest)
    assert (root / "project-0" / "run.sh").stat().st_mode & 0o700 == 0o500
    assert (root / "project-0" / "tracked.py").stat().st_mode & 0o222 == 0
    ours = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    assert names(objects, code, "polysweep/orchestrator") == {n for n in ours if "__pycache__" not in n}
    shutil.rmtree(root)  # read-only files in folders that are not


def test_a_stage_that_git_ignores_is_code_all_the_same(tmp_path: Path, objects: PosixStore) -> None:
    """As a version file that a build writes into a package; else workers would find other code."""
    folder = repository(tmp_path / "mine", package____init__="1", package__stage="from . import _version")
    (folder / ".gitignore").write_text("_version.py\n")
    (folder / "package" / "_version.py").write_text("version = 1\n")
    targets = ["package.stage:main"]
    code = snapshots.store(objects, snapshots.plan(objects, [str(folder)], targets=targets))
    assert "package/_version.py" in names(objects, code)
    there = provenance.code_digest(targets, snapshots.import_paths(objects, code))
    assert there == provenance.code_digest(targets, [str(folder)])


def test_without_git_everything_is_code_but_environments_caches_and_hidden_folders(
    tmp_path: Path, objects: PosixStore
) -> None:
    folder = tmp_path / "mine"
    for name in (
        "stage.py",
        "sweeps/a.yaml",
        ".hidden/x.py",
        "venv/pyvenv.cfg",
        "venv/lib/x.py",
        "node_modules/x.js",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for name in ("__pycache__/stage.pyc", "old.pyc", "out/big.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    repository(folder / "other", inner="1")
    (folder / "other" / ".gitignore").write_text("*.log\n")
    (folder / "other" / "x.log").write_text("ignored there")
    code = snapshots.store(
        objects, snapshots.plan(objects, [str(folder / "sweeps"), str(folder)], exclude=[folder / "out"])
    )
    assert code.import_paths == ("project-0/sweeps", "project-0")
    assert names(objects, code) == {"stage.py", "sweeps/a.yaml", "other/inner.py", "other/.gitignore"}


def test_the_store_is_no_code_wherever_it_lies(tmp_path: Path) -> None:
    for folder in (repository(tmp_path / "with git", stage="1"), tmp_path / "without"):
        folder.mkdir(exist_ok=True)
        (folder / "stage.py").write_text("1")
        objects = PosixStore(folder / "my [runs]")
        first = snapshots.store(objects, snapshots.plan(objects, [str(folder)]))
        assert names(objects, first) == {"stage.py"}
        assert snapshots.store(objects, snapshots.plan(objects, [str(folder)])) == first


def test_submodules_and_repositories_inside_are_code_too(tmp_path: Path, objects: PosixStore) -> None:
    library = repository(tmp_path / "library", helper="1")
    folder = repository(tmp_path / "mine", stage="1")
    git(folder, "submodule", "add", "-q", str(library), "deps/library")
    repository(folder / "untracked", more="1")
    code = snapshots.store(objects, snapshots.plan(objects, [str(folder), str(folder / "untracked")]))
    assert code.import_paths == ("project-0", "project-0/untracked")
    assert names(objects, code) == {"stage.py", ".gitmodules", "deps/library/helper.py", "untracked/more.py"}


def test_a_folder_that_git_ignores_is_a_project_of_its_own(tmp_path: Path, objects: PosixStore) -> None:
    folder = repository(tmp_path / "mine", tracked="1")
    (folder / ".gitignore").write_text("/scratch/\n")
    (folder / "scratch").mkdir()
    (folder / "scratch" / "stage.py").write_text("1")
    targets = ["stage:main"]
    code = snapshots.store(
        objects, snapshots.plan(objects, [str(folder / "scratch"), str(folder)], targets=targets)
    )
    assert code.import_paths == ("project-0", "project-1")
    assert names(objects, code) == {"stage.py"}
    assert names(objects, code, "project-1") == {"tracked.py", ".gitignore"}


def test_links_stay_links_inside_and_become_files_from_outside(tmp_path: Path, objects: PosixStore) -> None:
    folder = repository(tmp_path / "mine", package__a="a")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "b.py").write_text("b")
    for name, target in {
        "inner.py": folder / "package" / "a.py",
        "folder": Path("package"),
        "copied.py": outside / "b.py",
        "data": outside,
        "nowhere": tmp_path / "nothing",
        "circle": Path("circle"),
    }.items():
        (folder / name).symlink_to(target)
    code = snapshots.store(objects, snapshots.plan(objects, [str(folder)]))
    assert names(objects, code) == {"package/a.py", "inner.py", "folder", "copied.py"}
    root = snapshots.folder(objects, code.digest) / "project-0"
    assert str((root / "inner.py").readlink()) == "package/a.py"
    assert (root / "folder").is_symlink() and (root / "folder" / "a.py").read_text() == "a"
    assert not (root / "copied.py").is_symlink() and (root / "copied.py").read_text() == "b"


def test_a_stage_in_a_package_that_is_linked_from_outside_is_code(
    tmp_path: Path, objects: PosixStore
) -> None:
    folder = repository(tmp_path / "mine", other="1")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "stage.py").write_text("1")
    (folder / "linked").symlink_to(outside)
    targets = ["linked.stage:main"]
    code = snapshots.store(objects, snapshots.plan(objects, [str(folder)], targets=targets))
    assert names(objects, code) == {"other.py", "linked/stage.py"}


def test_installed_packages_are_the_environment_and_stay_where_they_are(
    tmp_path: Path, objects: PosixStore
) -> None:
    installed = repository(tmp_path / "mine", stage="1") / "lib" / "site-packages" / "other"
    installed.mkdir(parents=True)
    (installed / "x.py").write_text("1")
    (tmp_path / "mine" / ".gitignore").write_text("/lib/\n")
    code = snapshots.store(
        objects, snapshots.plan(objects, [str(installed), str(PACKAGE / "store"), str(tmp_path / "mine")])
    )
    assert code.import_paths == (str(installed), "polysweep/orchestrator/store", "project-0")
    assert snapshots.import_paths(objects, code)[0] == str(installed)
    assert "lib/site-packages/other/x.py" not in names(objects, code)


def test_polysweeps_own_checkout_is_not_stored_twice(tmp_path: Path, objects: PosixStore) -> None:
    folder = tmp_path / "checkout"
    shutil.copytree(PACKAGE, folder / "orchestrator", ignore=shutil.ignore_patterns("__pycache__"))
    repository(folder, tests__stage="1")
    said = in_python(
        folder,
        "from orchestrator.store import code; from orchestrator.store.objects import PosixStore\n"
        f"objects = PosixStore(__import__('pathlib').Path({str(objects.root)!r}))\n"
        "print(code.store(objects, code.plan(objects, ['.'])).digest)",
    )
    code = Code(digest=said.strip(), import_paths=("project-0",))
    assert names(objects, code) == {"tests/stage.py"}
    assert "store/code.py" in names(objects, code, "polysweep/orchestrator")


def test_a_folder_without_code_is_there_all_the_same(tmp_path: Path, objects: PosixStore) -> None:
    """A command runs in it."""
    folder = repository(tmp_path / "mine", stage="1")
    (folder / "empty").mkdir()
    code = snapshots.store(objects, snapshots.plan(objects, [str(folder / "empty"), str(folder)]))
    assert all(Path(path).is_dir() for path in snapshots.import_paths(objects, code))


def test_the_digest_names_content_and_not_the_place_or_the_time(tmp_path: Path, objects: PosixStore) -> None:
    folder = repository(tmp_path / "mine", stage="1")
    first = snapshots.plan(objects, [str(folder)])
    shutil.copytree(folder, tmp_path / "elsewhere")
    os.utime(tmp_path / "elsewhere" / "stage.py", (0, 0))
    assert snapshots.plan(objects, [str(tmp_path / "elsewhere")]).code.digest == first.code.digest
    (folder / "stage.py").chmod(0o755)
    executable = snapshots.plan(objects, [str(folder)]).code.digest
    (folder / "stage.py").write_text("2")
    digests = {first.code.digest, executable, snapshots.plan(objects, [str(folder)]).code.digest}
    (folder / "stage.py").rename(folder / "renamed.py")
    digests.add(snapshots.plan(objects, [str(folder)]).code.digest)
    assert len(digests) == 4
    assert not objects.root.exists(), "a plan writes nothing"


def test_the_state_of_git_comes_along_without_the_diff(tmp_path: Path, objects: PosixStore) -> None:
    folder = repository(tmp_path / "mine", stage="1")
    (folder / "stage.py").write_text("2")
    git_state = snapshots.plan(objects, [str(folder)]).code.git
    assert len(git_state["commit"]) == 40 and git_state["dirty"] and "diff" not in git_state
    (folder / "stage.py").write_text("1")  # edited between two launches of one process
    assert not snapshots.plan(objects, [str(folder)]).code.git["dirty"]


# What is refused


def test_an_import_path_that_is_not_there_is_an_error(tmp_path: Path, objects: PosixStore) -> None:
    with pytest.raises(UserError, match="no folder"):
        snapshots.store(objects, snapshots.plan(objects, [str(tmp_path / "nowhere")]))


def test_data_among_the_code_is_named_and_nothing_is_written(tmp_path: Path, objects: PosixStore) -> None:
    folder = repository(tmp_path / "mine", stage="1")
    for name, size in {
        "a/b/c/first.bin": 150_000_000,
        "a/b/second.bin": 100_000_000,
        "third.bin": 10,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as stream:
            stream.truncate(size)
    with pytest.raises(UserError, match="is there data in it") as raised:
        snapshots.store(objects, snapshots.plan(objects, [str(folder)]))
    assert f"the largest: {folder}/a/b (250.0 MB), " in raised.value.where
    assert ".gitignore" in raised.value.fix
    assert not objects.root.exists()


def test_too_many_files_are_counted_by_folder(
    tmp_path: Path, objects: PosixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    (folder / "items").mkdir(parents=True)
    for number in range(4000):  # more than the package has
        (folder / "items" / f"{number}.txt").touch()
    monkeypatch.setattr(snapshots, "MAX_FILES", 500)
    monkeypatch.setattr(project, "MAX_LISTED", 5_000)
    with pytest.raises(UserError, match="files") as raised:
        snapshots.store(objects, snapshots.plan(objects, [str(folder)]))
    assert f"{folder}/items (4,000 files)" in raised.value.where


def test_a_file_whose_name_is_no_text_is_an_error_of_the_user(tmp_path: Path, objects: PosixStore) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.py")).touch()
    with pytest.raises(UserError, match="no UTF-8"):
        snapshots.store(objects, snapshots.plan(objects, [str(folder)]))


# Stored once, and whole


def test_equal_code_is_stored_once(tmp_path: Path, objects: PosixStore) -> None:
    folder = repository(tmp_path / "mine", stage="1")
    first = snapshots.store(objects, snapshots.plan(objects, [str(folder)]))
    before = {path: path.stat().st_mtime_ns for path in objects.root.rglob("*")}
    assert snapshots.store(objects, snapshots.plan(objects, [str(folder)])) == first
    assert {path: path.stat().st_mtime_ns for path in objects.root.rglob("*")} == before
    (folder / "stage.py").write_text("2")
    second = snapshots.store(objects, snapshots.plan(objects, [str(folder)]))
    assert second.digest != first.digest
    assert [snapshots.damage(objects, code.digest) for code in (first, second)] == ["", ""]


def damages(root: Path, record: Path) -> dict[str, tuple[object, str]]:
    """Name to what somebody does to a snapshot, and what is said of it."""
    file, folder = root / "project-0" / "stage.py", root / "project-0" / "package"

    def changed(path: Path, text: str) -> None:
        path.chmod(0o644)
        path.write_text(text)

    def elsewhere() -> None:
        shutil.move(folder, root.parent / "elsewhere")
        changed(root.parent / "elsewhere" / "a.py", "other")
        folder.symlink_to(root.parent / "elsewhere")

    return {
        "changed": (lambda: changed(file, "2"), "project-0/stage.py has other content"),
        "cut": (lambda: changed(file, ""), "project-0/stage.py has other content"),
        "gone": (file.unlink, "project-0/stage.py is missing"),
        "folder": (lambda: (file.unlink(), file.mkdir()), "project-0/stage.py cannot be read"),
        "link": (lambda: (file.unlink(), file.symlink_to("package/a.py")), "project-0/stage.py is a link"),
        "no link": (lambda: (root / "project-0/link.py").unlink(), "project-0/link.py is no link"),
        "more": (lambda: (root / "project-0" / "json.py").touch(), "project-0/json.py is no part of it"),
        "folder gone": (lambda: shutil.rmtree(folder), "project-0/package/a.py is missing"),
        "folder elsewhere": (elsewhere, "project-0/package/a.py has other content"),
        "record gone": (record.unlink, "it is not there, or not whole"),
        "record torn": (lambda: record.write_text(record.read_text()[:-9]), "its record is unreadable"),
        "record of other files": (lambda: record.write_text('{"files": []}'), "its record is not the one"),
    }


@pytest.mark.parametrize("how", list(damages(Path(), Path())))
def test_a_damaged_snapshot_is_noticed_and_repaired_by_the_next_launch(
    tmp_path: Path, objects: PosixStore, how: str
) -> None:
    folder = repository(tmp_path / "mine", stage="1", package__a="a")
    (folder / "link.py").symlink_to("stage.py")
    code = snapshots.store(objects, snapshots.plan(objects, [str(folder)]))
    root = snapshots.folder(objects, code.digest)
    (root / "project-0" / "log.txt").write_text("what stages add beside does no harm")
    (root / "project-0" / "__pycache__").mkdir()
    (root / "project-0" / "__pycache__" / "x.py").touch()
    assert snapshots.damage(objects, code.digest) == ""
    damage, says = damages(root, objects.root / layout.code_record(code.digest))[how]
    damage()  # type: ignore[operator]
    assert snapshots.damage(objects, code.digest).startswith(says)
    assert snapshots.store(objects, snapshots.plan(objects, [str(folder)])) == code
    assert snapshots.damage(objects, code.digest) == ""
    assert names(objects, code) >= {"stage.py", "link.py", "package/a.py", "log.txt"}

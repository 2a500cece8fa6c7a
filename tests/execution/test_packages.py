"""The installed packages that each worker records are those that `importlib.metadata` finds."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from orchestrator import provenance


def test_the_packages_are_those_of_python_s_own_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "Description: word\n" * 9999
    for folder, file, text in [
        ("one-1.dist-info", "METADATA", f"Metadata-Version: 2.1\nName: one\nVersion: 1\n{long}\nName: other"),
        ("Two.Name-2.EGG-INFO", "PKG-INFO", "Name: Two.Name\nVersion: 2\n"),
        ("of_no_name.dist-info", "METADATA", "Version: 3\n"),
        ("empty-4.dist-info", "RECORD", ""),
        ("no_package", "METADATA", "Name: no_package\nVersion: 5\n"),
        ("pytest-0.dist-info", "METADATA", "Name: pytest\nVersion: 0\n"),  # in front of the installed one
    ]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(text)
    (tmp_path / "single.egg-info").write_text("Name: single\nVersion: 6\n")
    for folder in (str(tmp_path), str(tmp_path / "nowhere"), str(tmp_path / "single.egg-info")):
        monkeypatch.setattr(sys, "path", [folder, *sys.path])
    expected: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        if name := distribution.metadata["Name"]:
            expected.setdefault(name, distribution.version)
    found = provenance.packages.__wrapped__()
    assert found == expected
    assert list(found) == sorted(found)
    assert (found["one"], found["Two.Name"], found["pytest"]) == ("1", "2", "0")
    without = provenance.packages.__wrapped__((str(tmp_path),))
    assert "one" not in without and without["pytest"] != "0"


def test_packages_are_found_in_each_form_and_the_first_of_two_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, egg, two = tmp_path / "one", tmp_path / "old-1.0-py3.11.egg", tmp_path / "two"
    for file, text in {
        one
        / "a_b.c-1.0.dist-info/METADATA": "Metadata-Version: 2.4\nName: a-b.c\nVersion: 1.0\n\nVersion: 9",
        one / "devel.egg-info/PKG-INFO": "Name: devel\nVersion: 2.0\n",
        one / "file-3.0.egg-info": "Name: file\nVersion: 3.0\n",
        one / "broken-1.0.dist-info/METADATA": "\0\xff",
        one / "empty-1.0.dist-info/RECORD": "",
        egg / "EGG-INFO/PKG-INFO": "Name: old\nVersion: 1.0\n",
        two / "a_b.c-2.0.dist-info/METADATA": "Name: a-b.c\nVersion: 2.0\n",
    }.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    paths = [one, tmp_path / "absent", one / "file-3.0.egg-info", egg, two, one]
    monkeypatch.setattr("sys.path", [str(path) for path in paths])
    found = provenance.packages.__wrapped__()
    assert found == {"a-b.c": "1.0", "devel": "2.0", "file": "3.0", "old": "1.0"}

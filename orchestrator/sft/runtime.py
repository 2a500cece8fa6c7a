"""The first steps of every fine-tuning stage, and the loading of models and tokenizers.

Models come from the inputs `tokenizer` and `base`, from a folder or from the hub's cache. The module does not
depend on tasks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads warn, or hang, in forked children
os.environ["HF_HUB_OFFLINE"] = "1"  # only `sweep prefetch` downloads

import huggingface_hub
import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from orchestrator.errors import StageFailure, first_line_of
from orchestrator.stage import Config, Context, Inputs


def start(context: Context, *, seed: int) -> None:
    """Set the number of threads and the seeds, and silence the libraries.

    The number of threads changes the order of sums on a CPU. A resume with another number would not be
    bit-identical.
    """
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # if its client was imported before this module
    torch.set_num_threads(context.num_threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(seed)


def device_of(name: str) -> torch.device:
    """Return the device to compute on. ``auto`` is the first GPU if this process has any, else the CPU.

    A launcher that gives GPUs names them in CUDA_VISIBLE_DEVICES. If torch does not see them, the driver, the
    GPU or the installation is at fault, and the CPU would take a hundred times as long.

    Raises:
        StageFailure: torch does not see the GPUs that were given (cause ``bad_node``), or ``cuda`` without
            any (cause ``config``).
    """
    words = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name != "cpu" else []
    given = [word for word in words if word.strip() not in ("", "-1")]
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen < len(given):
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise StageFailure(
            "bad_node",
            f"torch {torch.__version__} with {build} sees {seen} of the {len(given)} GPUs of"
            f" CUDA_VISIBLE_DEVICES={','.join(words)}: `sweep doctor` there shows more; device=cpu uses none",
        )
    if name == "cuda" and not seen:
        raise StageFailure("config", "device=cuda, but torch sees no GPU")
    return torch.device("cuda" if name == "auto" and seen else "cpu" if name == "auto" else name)


def load_tokenizer(inputs: Inputs, uses: Config) -> PreTrainedTokenizerBase:
    """Load the tiny tokenizer, or the one in the folder of `model.path`.

    Raises:
        StageFailure: there is none, or it has no token for the end of an answer (cause ``data``).
    """
    if "tokenizer" in inputs:
        return AutoTokenizer.from_pretrained(inputs["tokenizer"], local_files_only=True)
    tokenizer = _from_cache(AutoTokenizer.from_pretrained, uses, trust_remote_code=False)
    try:
        probe = tokenizer("1 + 1", add_special_tokens=False)["input_ids"]
    except Exception as error:  # `tokenizers` raises no narrower class
        name = type(tokenizer).__name__
        raise StageFailure("data", f"model.path={uses.model.path}: {name}: {first_line_of(error)}") from error
    if not probe:
        # Without tokenizer files, transformers silently makes an empty one.
        raise StageFailure("data", f"model.path={uses.model.path} has no tokenizer")
    if tokenizer.eos_token_id is None:
        raise StageFailure(
            "data",
            f"model.path={uses.model.path}: no eos_token in tokenizer_config.json, so no answer would end",
        )
    return tokenizer


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that fills short rows: the padding token, or the end token if there is none."""
    pad = tokenizer.pad_token_id
    return int(pad if pad is not None else tokenizer.eos_token_id)


def load_base(inputs: Inputs, uses: Config) -> PreTrainedModel:
    """Load the model to fine-tune, with float32 weights; see `load_model` for what is refused."""
    if "base" in inputs:
        return load_weights(inputs["base"])
    return load_model(base_folder(inputs, uses), dtype=torch.float32)


def base_folder(inputs: Inputs, uses: Config) -> Path:
    """Return the folder of the model to fine-tune: a product, a local path, or a snapshot of the hub."""
    if "base" in inputs:
        return inputs["base"]
    if Path(uses.model.path).is_dir():
        return Path(uses.model.path)
    return Path(_from_cache(snapshot_download, uses, allow_patterns=["*.json", "*.safetensors"]))


def load_weights(folder: Path) -> PreTrainedModel:
    """Load a model that a stage saved, with float32 weights."""
    return load_model(folder, dtype=torch.float32)


def check_weights(folder: Path) -> None:
    """Check that the weights of a folder fit its architecture. Only their headers are read.

    Raises:
        StageFailure: as `load_model` does.
    """
    load_model(folder, dtype=torch.float32, device_map="meta")


def load_model(folder: Path, *, dtype: torch.dtype, **how: Any) -> PreTrainedModel:
    """Load a causal model whose folder holds all of its weights.

    Transformers alone would fill in random weights for missing ones, and only log a warning.

    Args:
        folder: as `save_pretrained` writes it, with safetensors; a pickle is never read.
        dtype: of the loaded weights.
        how: more arguments of `from_pretrained`.

    Raises:
        StageFailure: it cannot be loaded, or weights are missing, of another shape, not finite, or unused by
            the architecture (cause ``data``). Tied weights and computed buffers may be missing or left over.
    """
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below, all of them
            output_loading_info=True,
            **how,
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise StageFailure("data", f"no model in {folder}: {first_line_of(error)}") from error
    shapes = [f"{name} {tuple(saved)}, not {tuple(own)}" for name, saved, own in found["mismatched_keys"]]
    left_over = [name for name in found["unexpected_keys"] if not _FORMER_BUFFERS.search(name)]
    problems = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (
            ("missing", found["missing_keys"]),
            ("unexpected", left_over),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        what = f"the weights in {folder} are not those of a {type(model).__name__}"
        raise StageFailure("data", f"{what}: {'; '.join(problems)}")
    wild = [name for name, p in model.named_parameters() if not (p.is_meta or bool(torch.isfinite(p).all()))]
    if wild:
        raise StageFailure("data", f"weights in {folder} are not finite: {', '.join(wild[:3])}")
    is_tied = model.config.get_text_config().tie_word_embeddings and model._tied_weights_keys
    # Transformers leaves such weights untied, other libraries tie them: the same folder would be two models.
    if is_tied and not model.all_tied_weights_keys:
        raise StageFailure(
            "data",
            f"{folder}/config.json has tie_word_embeddings, but input and output embeddings differ:"
            " set it to false, or save the weights as they were trained",
        )
    return model


_FORMER_BUFFERS = re.compile(r"(^|\.)(masked_bias|(attn|attention)\.bias|inv_freq|position_ids)$")
"""Weights that older versions of transformers saved, and that the installed one computes."""


def _from_cache(from_pretrained: Callable[..., Any], uses: Config, **how: Any) -> Any:
    """Load from a folder or the hub's cache, never from the hub. Only `sweep prefetch` downloads.

    Raises:
        StageFailure: it is not there or cannot be loaded (cause ``data``).
    """
    path, how = uses.model.path, {"revision": uses.model.revision or "main", **how}
    try:
        return from_pretrained(path, local_files_only=True, **how)
    except Exception as error:
        if Path(path).is_dir() or not isinstance(error, OSError):
            raise StageFailure("data", f"model.path={path}: {first_line_of(error)}") from error
        message = f"model.path={path}@{how['revision']} is not in the cache here: run `sweep prefetch` first"
        raise StageFailure("data", message) from error

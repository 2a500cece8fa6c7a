"""Checks of a model folder from its JSON files and weight headers alone.

A plan runs them for every cell, so they import no library and read no weights. Results are cached until a
file of the folder changes. Checks that need transformers are in the `prepare` stage, see
`orchestrator.sft.runtime.check_weights`.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import json
import math
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

LFS = b"version https://git-lfs.github.com/spec/"
"""First bytes of a git-lfs pointer, which a clone without git-lfs has in place of a large file."""
_INDEX = "model.safetensors.index.json"
_TOKENIZER = "tokenizer.json"
_PREFIXES = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model.")
"""Prefixes of weight names that were saved through the wrappers of torch.compile, DDP, FSDP and PEFT."""
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Element types of weights that are not quantised, and their sizes in bytes."""
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Tokenizer classes without a default end token."""
_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
"""Names of the token embedding in different architectures."""
_LAYER = re.compile(r"^(.*?\b(?:layers|h|blocks))\.(\d+)\.")
"""Name of a weight in a layer: the path of the stack of layers, and the layer's number."""
_OTHER_TOWERS = re.compile(r"vision|visual|audio|image|speech|encoder|mtp|experts")
"""Parts of a model, such as a vision tower, that the config's numbers on text do not describe."""
_RELEVANT = re.compile(r".*\.(json|safetensors|model|txt|bin|pt|pth|gguf|h5|msgpack)")
"""Files on which the result of the checks depends."""
_NEEDED = re.compile(
    r"model[^/]*\.safetensors(\.index\.json)?|[^/]*config\.json|tokenizer.*|vocab.*|merges\.txt"
)
"""Files that must be there themselves, and not as git-lfs pointers."""
_CONTEXT = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "n_ctx"),
)
"""Names that architectures use for their number of positions, the most common first."""
_MAX_FACTOR = 1e6
"""Factor of rotary scaling from which a number is a mistake, our choice."""
_EXTENDED = ("llama3", "longrope", "su", "mrope", "default", "proportional")
"""Kinds of rotary embeddings whose `max_position_embeddings` is the extended length, as in vLLM."""


class ModelFolder(NamedTuple):
    """Result of the checks.

    Attributes:
        problem: the first thing that is wrong, with its file; "" if nothing is.
        context_tokens: positions of the model; None if the config does not state them.
        num_embeddings: tokens that have an embedding; None if neither config nor weights state it.
    """

    problem: str
    context_tokens: int | None = None
    num_embeddings: int | None = None


class _Wrong(Exception):
    """Raised with the name of a file and what is wrong with it."""


def inspect(folder: Path) -> ModelFolder:
    """Check the files of a model folder. Checks run again only when one of the files has changed."""
    paths = [path for path in folder.iterdir() if _RELEVANT.fullmatch(path.name)]
    return _inspect(folder, _state_of(folder, paths))


_State = tuple[tuple[str, int, int], ...]


def state_of_data(folder: Path) -> _State:
    """Return path, size and modification time of the files in a data folder, hidden ones left out."""
    paths = [path for path in folder.rglob("*") if not any(p.startswith(".") for p in path.parts[-3:])]
    return _state_of(folder, paths)


def lfs_pointers(folder: Path) -> list[str]:
    """Return the files in a data folder that are git-lfs pointers, by their paths in it."""
    return _lfs_pointers(folder, state_of_data(folder))


def _state_of(folder: Path, paths: Iterable[Path]) -> _State:
    """Return path, size and modification time of the regular files among some paths."""
    found = []
    for path in sorted(paths):
        with contextlib.suppress(OSError):  # a dangling link
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                found.append((str(path.relative_to(folder)), status.st_size, status.st_mtime_ns))
    return tuple(found)


@functools.lru_cache(maxsize=256)
def _lfs_pointers(folder: Path, state: _State) -> list[str]:
    small = [name for name, size, _ in state if size < 1024]
    return [name for name in small if (folder / name).read_bytes().startswith(LFS)]


@functools.lru_cache(maxsize=256)
def _inspect(folder: Path, state: _State) -> ModelFolder:
    context = rows = None
    try:
        names = {name for name, _, _ in state}
        if pointers := [name for name in _lfs_pointers(folder, state) if _NEEDED.fullmatch(name)]:
            raise _Wrong(f"{pointers[0]} is a git-lfs pointer, not the file: git lfs pull")
        if "adapter_config.json" in names:
            raise _Wrong("adapter_config.json: an adapter; merge it into its model's weights first")
        config = _json(folder / "config.json")
        text = text_config(config)
        context = context_tokens(text)
        _check_architecture(config, text)
        rows = _check_weights(_weights(folder, names), text)
        _check_tokenizer(folder, names, config, text, rows)
    except _Wrong as wrong:
        return ModelFolder(str(wrong), context, rows)
    except OSError as error:
        return ModelFolder(f"{error.filename or folder} cannot be read: {error.strerror}", context, rows)
    return ModelFolder("", context, rows)


def _json(path: Path) -> dict[str, Any]:
    try:
        # Not msgspec: transformers writes Infinity and NaN, as in the `time_step_limit` of Mamba 2.
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _Wrong(f"no {path.name}") from None
    except (ValueError, RecursionError) as error:
        raise _Wrong(f"{path.name} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise _Wrong(f"{path.name} is no JSON object")
    return found


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a model's config that describes text: a section in multimodal models, else all."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def context_tokens(text: Mapping[str, Any]) -> int | None:
    """Return the positions of a model, including those that scaled rotary embeddings add.

    Linear, dynamic and YaRN scaling multiply the original length (``original_max_position_embeddings``, else
    the config's own): 32,768 by 4 makes 131,072 positions. Other kinds state the extended length.
    """
    named = (text.get(key) for key in _CONTEXT)
    found = next((value for value in named if isinstance(value, int)), 0)
    if found < 1:
        return None
    scaling = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(scaling, dict) or str(text.get("model_type", "")).startswith("gemma3"):
        return found  # gemma3 states the extended length for all kinds of layers
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    factor = scaling.get("factor")
    if kind in _EXTENDED or not isinstance(factor, int | float) or not factor < _MAX_FACTOR:
        return found
    original = scaling.get("original_max_position_embeddings")
    return max(found, int((original if isinstance(original, int) else found) * factor))


# The architecture


def _check_architecture(config: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Check that the installed transformers can fine-tune this kind of model."""
    for name in ("vocab_size", "num_hidden_layers", "n_layer"):
        if (value := text.get(name)) is not None and (type(value) is not int or value < 1):
            raise _Wrong(f"config.json: {name} is {value!r}, not a whole number from 1")
    model_type = str(config.get("model_type"))
    known, causal = _architectures()
    if config.get("quantization_config") or text.get("quantization_config"):
        raise _Wrong("config.json: quantization_config; full fine-tuning takes unquantised weights")
    # Without its source, as in a zip archive, nothing is known and no model is refused here.
    if known and model_type not in known:
        if "auto_map" in config:
            raise _Wrong(
                f"config.json: model_type {model_type!r} needs code of its own (auto_map), which is not run"
            )
        raise _Wrong(f"config.json: model_type {model_type!r} is unknown to the installed transformers")
    if config.get("is_encoder_decoder") or (causal and model_type not in causal):
        raise _Wrong(f"config.json: model_type {model_type!r} is no causal language model")


@functools.cache
def _architectures() -> tuple[frozenset[str], frozenset[str]]:
    """Return all model types of the installed transformers, and those with a causal language model.

    They are read from its source, because importing it takes seconds.
    """
    spec = importlib.util.find_spec("transformers")
    auto = Path(spec.origin).parent / "models" / "auto" if spec and spec.origin else None
    known: set[str] = set()
    causal: set[str] = set()
    if auto is not None:
        for name in ("auto_mappings.py", "configuration_auto.py"):
            known.update(_keys_of(auto / name, "CONFIG_MAPPING_NAMES"))
        causal.update(_keys_of(auto / "modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"))
    return frozenset(known | causal), frozenset(causal)


def _keys_of(path: Path, name: str) -> Iterator[str]:
    """Yield the keys of a dictionary in a source file: ``NAME = OrderedDict([(key, ...), ...])``."""
    source = path.read_text(encoding="utf-8") if path.is_file() else ""
    for start in re.finditer(rf"^{name}(?: = OrderedDict|\.update)\($", source, re.MULTILINE):
        end = source.find("\n)", start.end())
        body = source[start.end() : end].strip().rstrip(",")
        try:
            literal = ast.literal_eval(body)
        except (ValueError, SyntaxError):
            continue  # a computed dictionary: its types stay unknown
        yield from (pair[0] for pair in (literal.items() if isinstance(literal, dict) else literal))


# Weights


class _Tensor(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _weights(folder: Path, names: set[str]) -> dict[str, _Tensor]:
    """Return the weights of a folder by their names, as its safetensors files describe them."""
    index: dict[str, Any] = {}
    if "model.safetensors" in names:
        files = ["model.safetensors"]
    elif _INDEX in names:
        index = _json(folder / _INDEX).get("weight_map") or {}
        if not (isinstance(index, dict) and index and all(isinstance(file, str) for file in index.values())):
            raise _Wrong(f"{_INDEX} has no weight_map from names of weights to files")
        files = sorted(set(index.values()))
        if missing := [file for file in files if file not in names]:
            raise _Wrong(f"{missing[0]} is missing: {_INDEX} names it")
    else:
        pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
        others = sorted(name for name in names if name.endswith((".safetensors", ".gguf", ".h5", ".msgpack")))
        there = f"; {pickles[0]} is a pickle, which is not read: save it as safetensors" if pickles else ""
        there = there or (f"; there is {others[0]}" if others else "")
        raise _Wrong(f"no model.safetensors or {_INDEX}{there}")
    found = {name: tensor for file in files for name, tensor in _header(folder / file).items()}
    if not found:
        raise _Wrong(f"{files[0]} holds no weights")
    if absent := [name for name in index if name not in found]:
        raise _Wrong(f"{index[absent[0]]} has no {absent[0]}: {_INDEX} says that it does")
    return found


def _header(path: Path) -> dict[str, _Tensor]:
    """Return the tensors in a safetensors file, after a check that the file is as long as they need."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise _Wrong(f"{path.name} is truncated or no safetensors file: it ends within its header")
        text = stream.read(length)
    try:
        header = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(value, type=_Tensor) for name, value in header.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _Wrong(f"{path.name} is no safetensors file: {error}") from None
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        start, next_start = tensor.data_offsets
        num_bytes = math.prod(tensor.shape) * _FLOATS.get(tensor.dtype, 0) or next_start - start
        if start != end or next_start - start != num_bytes:
            raise _Wrong(f"{path.name} is damaged: {name} does not have the bytes of its shape")
        end = next_start
    # A download that was cut off leaves a whole header and too few bytes after it.
    if 8 + length + end != size:
        raise _Wrong(f"{path.name} is truncated or damaged: {size:,} bytes instead of {8 + length + end:,}")
    return tensors


def _check_weights(weights: Mapping[str, _Tensor], text: Mapping[str, Any]) -> int | None:
    """Check names, types and layers, as far as architectures share them. Return the embedding's rows."""
    for prefix in _PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            first = min(weights)
            raise _Wrong(
                f"all names of weights begin with {prefix!r}: {first} is unexpected, and"
                f" {first.removeprefix(prefix)} is missing; save the model without its wrapper"
            )
    for name, tensor in weights.items():
        # Of other types are buffers such as masks. No buffer is a weight or of 8-bit floats.
        is_weight = "weight" in name.rpartition(".")[2] or tensor.dtype.startswith(("F8", "F4"))
        if is_weight and tensor.dtype not in _FLOATS:
            raise _Wrong(
                f"{name} is of type {tensor.dtype}: quantised; full fine-tuning takes unquantised weights"
            )
    layers: dict[str, set[int]] = {}
    for name in weights:
        if (match := _LAYER.match(name)) and not _OTHER_TOWERS.search(match[1]):
            layers.setdefault(match[1], set()).add(int(match[2]))
    number = text.get("num_hidden_layers", text.get("n_layer"))
    for path, found in layers.items():
        # Counted, not listed: the number may be absurd.
        there = sorted(layer for layer in found if isinstance(number, int) and layer < number)
        if isinstance(number, int) and (missing := number - len(there)) > 0:
            absent = next((n for n, layer in enumerate(there) if n != layer), len(there))
            more = f" and {missing - 1} more layers" if missing > 1 else ""
            raise _Wrong(
                f"config.json: {number} layers, but the weights of {path}.{absent}{more} are missing"
            )
    return _check_embedding(weights, text)


def _check_embedding(weights: Mapping[str, _Tensor], text: Mapping[str, Any]) -> int | None:
    """Check that the embedding has a row per token of the vocabulary. Return the number of rows."""
    size = text.get("vocab_size")
    for name, tensor in weights.items():
        if not _EMBEDDINGS.search(name) or _OTHER_TOWERS.search(name):
            continue
        rows = tensor.shape[0] if len(tensor.shape) == 2 else 0
        if rows != (size or rows or 1):
            raise _Wrong(f"config.json: vocab_size {size}, but {name} has {rows} rows")
        return rows
    return size if isinstance(size, int) else None


# The tokenizer


class _Added(msgspec.Struct):
    id: int
    content: str


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[msgspec.Raw] = {}


class _Tokenizer(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] = []


def _check_tokenizer(
    folder: Path, names: set[str], config: Mapping[str, Any], text: Mapping[str, Any], rows: int | None
) -> None:
    """Check special tokens and vocabulary against the rows of the embedding.

    Tokens added to a vocabulary may have no row, such as the image token of gemma-3-1b-pt. They occur only if
    a text spells them out, which `prepare` checks.
    """
    settings: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if file in names:
            settings.update(_json(folder / file))
    ids: dict[str, int] = {}
    if _TOKENIZER in names:
        try:
            tokenizer = msgspec.json.decode((folder / _TOKENIZER).read_bytes(), type=_Tokenizer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _Wrong(f"{_TOKENIZER} is no tokenizer: {error}") from None
        vocabulary = tokenizer.model.vocab
        ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
        largest = max(ids.values(), default=-1) if ids else len(vocabulary) - 1
        if rows is not None and largest >= rows:
            raise _Wrong(f"{_TOKENIZER}: tokens up to id {largest}, but the embedding has {rows} rows")
        ids.update((token.content, token.id) for token in tokenizer.added_tokens)
    for name in ("eos_token", "pad_token", "bos_token"):
        token = settings.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        number = ids.get(content) if isinstance(content, str) else None
        if rows is not None and number is not None and number >= rows:
            raise _Wrong(
                f"tokenizer_config.json: {name} {content!r} is id {number}, but the embedding has {rows} rows"
            )
    end = settings.get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    added = settings.get("added_tokens_decoder")
    tokens = added.values() if isinstance(added, dict) else ()
    known = [*ids, *(token.get("content") for token in tokens if isinstance(token, dict))]
    if ids and end and end not in known:
        raise _Wrong(f"tokenizer_config.json: eos_token {end!r} is no token of {_TOKENIZER}")
    is_generic = settings.get("tokenizer_class") in _GENERIC  # other classes have a default end token
    if settings.get("eos_token") is None and ("eos_token" in settings or is_generic):
        raise _Wrong("tokenizer_config.json: no eos_token, so no answer would end")
    for key in ("pad_token_id", "eos_token_id"):
        numbers = text.get(key, config.get(key))
        for number in numbers if isinstance(numbers, list) else [numbers]:
            if number is not None and type(number) is not int:
                raise _Wrong(f"config.json: {key} is {number!r}, not the id of a token")
            if rows is not None and number is not None and number >= rows:
                raise _Wrong(f"config.json: {key} {number} is outside the vocabulary of {rows}")

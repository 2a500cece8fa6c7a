"""Counts the tokens of items as `prepare` does: prompt (with BOS where it is the habit), response, end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UserError
from orchestrator.sft.data_hub import TIMEOUT_S
from orchestrator.tasks.base import Item
from orchestrator.tasks.checking import Measure

if TYPE_CHECKING:
    import tokenizers

KINDS = "a tokenizer.json, a folder with one, or a hub id in reach"


def measures(names: Sequence[str]) -> dict[str, Measure]:
    """Returns a name for people to what counts the tokens of items.

    Args:
        names: each a `tokenizer.json`, a folder with a tokenizer, or a hub id.

    Raises:
        UserError: there is no tokenizer.
    """
    short = [_short(name) for name in names]
    return {
        name if short.count(label) > 1 else label: _measure(name)
        for name, label in zip(names, short, strict=True)
    }


def _short(name: str) -> str:
    path = Path(name)
    return path.parent.name if path.name == "tokenizer.json" and path.parent.name else path.name


def _hub_answers() -> bool:
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=TIMEOUT_S)
    except Exception:  # noqa: BLE001 - whatever its client raises, there is no hub
        return False
    return True


def longest_prompt(folder: Path, prompts: Sequence[str]) -> int:
    """Return the tokens of the longest of some prompts, as `evaluate` counts them.

    Args:
        folder: of a model with its tokenizer.
        prompts: any number; 0 tokens for none.

    Raises:
        UserError: there is no tokenizer.
    """
    file = folder / "tokenizer.json"
    tokenizer = _tokenizer(str(file if file.exists() else folder))
    return max((len(found.ids) for found in tokenizer.encode_batch(list(prompts))), default=0)


def _tokenizer(name: str) -> tokenizers.Tokenizer:
    import tokenizers

    path = Path(name).expanduser()
    if not path.exists() and (name.count("/") != 1 or name.startswith((".", "~", "/"))):
        raise UserError(f"no tokenizer {name!r}", allowed=KINDS)
    try:
        if path.is_file():
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        else:
            import transformers  # slow to import, and a file needs none of it

            cached = not path.exists() and not _hub_answers()  # the client itself would try for 30 s
            loaded = transformers.AutoTokenizer.from_pretrained(
                name, local_files_only=cached, trust_remote_code=False
            )
            tokenizer = loaded.backend_tokenizer
    except Exception as error:  # noqa: BLE001 - the libraries raise whatever they met
        said = str(error).strip().split("\n")[0]
        raise UserError(
            f"no tokenizer {name!r}: {said}",
            allowed=KINDS,
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _measure(name: str) -> Measure:
    tokenizer = _tokenizer(name)
    special = tokenizer.num_special_tokens_to_add(False)

    def measure(items: Sequence[Item]) -> list[int]:
        prompts = tokenizer.encode_batch([item.prompt for item in items], add_special_tokens=False)
        responses = tokenizer.encode_batch([item.response for item in items], add_special_tokens=False)
        return [len(p.ids) + len(r.ids) + special + 1 for p, r in zip(prompts, responses, strict=True)]

    return measure

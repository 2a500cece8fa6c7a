"""English rows in API-Bank's form, and stages run on them in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.stage import Row
from orchestrator.translation import stages
from orchestrator.translation.config import TranslationConfig
from tests.sft.chain import run as run
from tests.translation.server import MODEL

API = {
    "name": "SymptomSearch",
    "description": "This API searches for a given symptom.",
    "input_parameters": {
        "symptom": {"type": "str", "description": "The symptom to search."},
        "date": {"type": "str", "description": "The day of the visit. Format: %Y-%m-%d"},
    },
    "output_parameters": {"results": {"type": "list", "description": "The list of results."}},
}


def english(word: str, number: int = 0) -> dict[str, str]:
    """A row whose user speaks of a symptom, `word`, and of a day."""
    day = 10 + number % 10
    return {
        "file": f"{word}.jsonl",
        "id": str(number),
        "instruction": f"Generate an API request.\nThe current year is 2023.\n{json.dumps(API)}\n",
        "input": f"User: I have felt {word} since March {day}th, 2023, and my doctor is Dr. Lee.\n"
        "AI: Sure. Let me look for what that may be.\n"
        f"API-Request: [SymptomSearch(symptom='{word}', date='2023-03-{day}')]->[{{'name': 'Migraine', "
        "'description': 'A headache that comes back again and again.'}]\n"
        f"User: Please look for {word} once more, there must be other causes of it.\n"
        "Generate API Request:\n",
        "expected_output": f"API-Request: [SymptomSearch(symptom='{word}', date='2023-03-{day}')]",
    }


def write_source(folder: Path, train: Sequence[str], test: Sequence[str]) -> Path:
    """Writes rows of these words into ``train`` and ``test`` of a folder."""
    for split, words in (("train", train), ("test", test)):
        (folder / split).mkdir(parents=True)
        rows = [english(word, number) for number, word in enumerate(words)]
        (folder / split / "en.json").write_text(json.dumps(rows))
    return folder


def config_of(source: Path, cache: Path, **changes: Any) -> dict[str, Any]:
    """Returns the config of a cell, as the engine would compose it."""
    tree: dict[str, Any] = {
        "to": ["es"],
        "language": "es",
        "shard": 0,
        "num_shards": 1,
        "source": {"path": str(source), "fingerprint": "sha256:0"},
        "model": {"name": MODEL},
        "cache_dir": str(cache),
        "endpoint": {},
        **changes,
    }
    config = msgspec.convert(tree, TranslationConfig, strict=False)
    built: dict[str, Any] = msgspec.to_builtins(config)
    return built


def chain(config: Mapping[str, Any], folder: Path) -> tuple[Path, list[Row]]:
    """Runs `translate` and `validate` of the first shard in Spanish, and returns the latter's product."""
    each = {"language": "es", "shard": 0}
    translated, _ = run(stages.TRANSLATE, config, folder / "translate", **each)
    return run(stages.VALIDATE, config, folder / "validate", {"translate": {"es.0": translated}}, **each)

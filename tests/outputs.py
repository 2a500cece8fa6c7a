"""What verbs print with ``--json``, compared with their schemas; a field that these lack is an error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

SCHEMAS = Path(__file__).parents[1] / "schema/json"

OPEN = {"CollectedRow"}
"""Objects whose fields are named by axes and by stages."""

MAX_LENGTH = 200_000
"""Longest output that is compared, in characters: larger ones repeat themselves, and take seconds."""


def check(words: Sequence[str], printed: str) -> None:
    """Compare what a command with ``--json`` printed.

    Raises:
        AssertionError: it does not fit the schema of its verb, or of an error.
    """
    if len(printed) > MAX_LENGTH or "--json" not in words or "--out" in words:
        return
    texts = printed.splitlines() if words[0] == "events" else [printed]
    for text in texts if printed else ():
        value = json.loads(text)
        is_error = isinstance(value, dict) and value.keys() == {"error"}
        name = "error" if is_error else words[0]
        problem = jsonschema.exceptions.best_match(_validator(name).iter_errors(value))
        assert problem is None, (
            f"`sweep {' '.join(words)}` prints what schema/json/{name}.json does not describe: "
            f"{problem.json_path}: {problem.message}; see 'The JSON of a verb' in CONTRIBUTING.md"
        )


@cache
def _validator(name: str) -> Any:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    for definition in schema.get("$defs", {}).values():
        if "properties" in definition and definition["title"] not in OPEN:
            definition.setdefault("additionalProperties", False)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)

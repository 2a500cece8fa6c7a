"""What a store holds, as text for recorded files, with words in place of what differs from run to run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

WORDS: Mapping[str, str] = {
    "nonce": "NONCE",
    "at": "TIME",
    "began_at": "TIME",
    "host": "HOST",
    "process": "PROCESS",
    "token": "TOKEN",
    "by": "USER",
    "provenance": "PROVENANCE",
    "code_digest": "DIGEST",
    "import_paths": "PATHS",
    "folder": "FOLDER",
    "end_at": "TIME",
    "start_at": "TIME",
    "uid": "UID",
    "settings": "SETTINGS",
    "code": "CODE",
}
"""Fields whose values are replaced, unless they are empty."""

MEASURED = ("seconds", "spent", "saved_s", "held_s", "start_s", "until_saved")
"""Fields with seconds that were measured."""


def records(root: Path, under: str = "", leave_out: str = "$^") -> Iterator[str]:
    """Each JSON file of a store below a prefix, on a line after its path.

    Args:
        root: of the store.
        under: only keys that begin so.
        leave_out: a pattern of keys that are not shown.
    """
    for file in sorted(root.rglob("*.json")):
        key = str(file.relative_to(root))
        if key.startswith(under) and not re.search(leave_out, key):
            yield f"{shortened(key)}: {told(json.loads(file.read_text()))}"


def shortened(text: str) -> str:
    """A text with words in place of digests and random names."""
    text = re.sub(r"\b[0-9a-f]{64}\b", "DIGEST", text)
    text = re.sub(r"\b\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    return re.sub(r"\b[0-9a-f]{32}\b", "NONCE", text)


def told(value: Any, name: str = "") -> str:
    """A value as text on one line; seconds that were measured are words too."""
    if name in WORDS and value and not isinstance(value, int):
        return WORDS[name]
    if name in MEASURED and value is not None:
        return "SECONDS"
    if name == "log_tail":
        value = str(value).strip().rpartition("\n")[2]  # other lines name lines of our own code
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {told(each, key)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(told(each) for each in value) + "]"
    return f"{value:.3g}" if isinstance(value, float) else shortened(str(value))

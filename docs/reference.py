"""Write docs/reference and schema/ from the parsers, conf/ and the structs; ``--check`` only compares."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["COLUMNS"] = "100"  # the width of argparse's help

from orchestrator.api.schemas import output_schemas, schemas
from orchestrator.cli.guide import verbs_table
from orchestrator.cli.main import VERBS, verb_of

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/reference"
NOTE = "<!-- written by `python docs/reference.py`; `make check` compares -->\n"
TITLES = {
    "SweepFile": "The file",
    "StageSpec": "A stage: `stages.NAME`",
    "PhaseFile": "A phase: one of `phases`",
    "Select": "How cells are chosen: `select` of a phase",
    "RungsFile": "`rungs`",
    "AppSpec": "A Hydra app: `app`",
    "SearchFile": "A search: `search`",
}
GROUPS = ("launcher", "cluster", "policy", "store", "tracker", "hardware", "notify")


def cli() -> str:
    """Return the page of the verbs: what argparse prints for each."""
    parts = ["# The command `sweep`\n", NOTE, "| verb | |\n|---|---|"]
    parts += [f"| [{verb}](#{verb}) | {does} |" for verb, (_, does) in VERBS.items()]
    parts.append(
        f"\n## Exit codes\n\n0 success, 2 a wrong request, 3 infrastructure; and:\n\n{verbs_table()}"
    )
    for verb in VERBS:
        parts.append(f"\n## {verb}\n\n```\n{verb_of(verb)[1].format_help().strip()}\n```")
    return "\n".join(parts) + "\n"


def settings() -> str:
    """Return the page of the settings: the commented files of conf/ on how a sweep is run."""
    parts = ["# Settings\n", NOTE, "How a sweep is run: none of these is part of a stage's identity."]
    parts += ["`sweep launch X launcher.workers=4 policy.grace_s=60`; a group's file by `launcher=slurm`.\n"]
    for group in GROUPS:
        parts.append(f"## {group}\n")
        for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
            parts.append(
                f"`{group}={path.stem}`\n\n```yaml\n{path.read_text(encoding='utf-8').strip()}\n```\n"
            )
    return "\n".join(parts)


def sweep_file(schema: Mapping[str, Any]) -> str:
    """Return the page of the keys of a sweep file, one table for each mapping in it, from its schema."""
    parts = [
        "# A sweep file\n",
        NOTE,
        "Every key that a sweep file may have, from [its schema](../../schema/sweep.json) for editors.\n",
    ]
    for name in sorted(schema["$defs"], key=list(TITLES).index):
        mapping = schema["$defs"][name]
        about = mapping["description"].replace("``", "`")
        parts.append(f"## {TITLES[name]}\n\n{about}\n\n| key | default | |\n|---|---|---|")
        needed = mapping.get("required", ())
        for key, known in mapping["properties"].items():
            default = "required" if key in needed else _default(known)
            text = known["description"].replace("``", "`").replace("|", "\\|")
            for kind, title in TITLES.items():
                text = text.replace(f"`{kind}`", f"[{title}](#{_anchor(title)})")
            parts.append(f"| `{key}` | {default} | {text} |")
        parts.append("")
    return "\n".join(parts)


def _anchor(title: str) -> str:
    """Return the fragment that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _default(known: Mapping[str, Any]) -> str:
    """Return a default as YAML; a dash for one that is empty."""
    default = known.get("default")
    return f"`{json.dumps(default)}`" if default or isinstance(default, bool | int) else "–"


def main() -> int:
    """Write the pages, or with ``--check`` return 1 where one is not current."""
    stale = []
    pages = {FOLDER / "cli.md": cli(), FOLDER / "settings.md": settings()}
    pages[FOLDER / "sweep-file.md"] = sweep_file(schemas()["sweep"])
    for name, schema in schemas().items():
        pages[ROOT / "schema" / f"{name}.json"] = json.dumps(schema, indent=1) + "\n"
    for verb, schema in output_schemas().items():
        pages[ROOT / "schema/json" / f"{verb}.json"] = json.dumps(schema, indent=1) + "\n"
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(
            f"docs/reference and schema: {', '.join(stale)} not current: python docs/reference.py",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

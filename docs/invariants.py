"""Write docs/invariants.md, the page on what holds each rule of docs/design.md, from docs/invariants.toml.

python docs/invariants.py            write it
python docs/invariants.py --check    exit with 1 if it is not what would be written
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE / "invariants.md"
SECTIONS = {"store": "The store protocol", "jobs": "Jobs of a scheduler"}

HEAD = """# What holds the rules

Each rule of [the design](design.md), the code that holds it, and a test that fails without it. For each row,
[invariants.toml](invariants.toml) has a defect: a small change to that code with which that test fails. `pytest -m long tests/test_invariants.py`
applies each to a copy of the project and runs the test, with the defect and without it. This page is made by `python docs/invariants.py`.

Most rules have more parts, and most parts more tests, than a row has room for. The protocol as a whole is
[specified](spec/README.md), and checked in all states of small sizes.
"""


def rows() -> list[dict[str, Any]]:
    """Return the rows of the table, each with its section, in the order of the rules."""
    table = tomllib.loads((HERE / "invariants.toml").read_text())
    return [{"section": section, **row} for section in SECTIONS for row in table[section]]


def page() -> str:
    """Return the page's text."""
    parts = [HEAD]
    for section, title in SECTIONS.items():
        parts.append(f"\n## {title}\n\n| rule | what holds | code | test |\n|---|---|---|---|\n")
        for row in rows():
            if row["section"] == section:
                module, _, name = row["code"].partition(":")
                file = f"{module.replace('.', '/')}.py"
                path, _, test = row["test"].partition("::")
                sentence = test.removeprefix("test_").replace("_", " ")
                parts.append(
                    f"| {row['rule']} | {row['what']} | [`{name}`](../{file}) | [{sentence}](../{path}) |\n"
                )
    return "".join(parts)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text() != page())
    PAGE.write_text(page())

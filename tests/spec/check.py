"""Check the specifications in docs/spec exhaustively with Rumur, a model checker for Murphi.

    python -m tests.spec.check              every size that takes seconds
    python -m tests.spec.check --long       and those that take minutes
    python -m tests.spec.check jobs         one specification

It needs Debian's package `rumur`, and a C compiler. docs/spec/README.md describes what is checked.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parents[2] / "docs" / "spec"


class Size(NamedTuple):
    """The bounds of one exhaustive check.

    Attributes:
        spec: Name of the specification.
        constants: Values of its constants, where they differ from the text.
        is_long: Whether it takes minutes.
    """

    spec: str
    constants: Mapping[str, int | bool]
    is_long: bool = False


CALM = {
    "CRASHES": 0,
    "FAILURES": 0,
    "LOST_REPLIES": 0,
    "DISCARDS": 0,
    "DAMAGES": 0,
    "REQUESTS": 0,
    "RETAINS": False,
}
SIZES = {
    "lost replies": Size("stages", CALM | {"ATTEMPTS": 2, "GENERATIONS": 1, "LOST_REPLIES": 2, "CRASHES": 1}),
    "crashes": Size("stages", CALM | {"GENERATIONS": 1, "CRASHES": 2}),
    "crashes and failures": Size("stages", CALM | {"GENERATIONS": 1, "CRASHES": 1, "FAILURES": 1}),
    "discard": Size("stages", CALM | {"ATTEMPTS": 2, "DISCARDS": 1}),
    "discard and retention": Size("stages", CALM | {"ATTEMPTS": 2, "DISCARDS": 1, "RETAINS": True}),
    "damage and retention": Size("stages", CALM | {"ATTEMPTS": 2, "DAMAGES": 1, "RETAINS": True}),
    "cancel and rerun": Size(
        "stages", CALM | {"ATTEMPTS": 2, "GENERATIONS": 1, "REQUESTS": 2, "FAILURES": 1}
    ),
    "two launches": Size("jobs", {"FORGETS": 0, "RESTARTS": 0, "GAPS": 0}),
    "a scheduler that forgets": Size("jobs", {"LAUNCHES": 1, "REQUESTS": 1}),
    "submissions that arrive late": Size("jobs", {"SETTLES": False, "NUMBERS": 2, "CRASHES": 0}),
    "three workers": Size("stages", CALM | {"WORKERS": 3, "ATTEMPTS": 2, "GENERATIONS": 1}, True),
}


class Result(NamedTuple):
    """What a check found.

    Attributes:
        violated: Message of the property that does not hold, "" if all hold.
        num_states: Number of states that were reached.
        output: All that the checker printed, with the steps that lead to the violation.
    """

    violated: str
    num_states: int
    output: str


def with_constants(text: str, constants: Mapping[str, int | bool]) -> str:
    """Return a specification with other values of its constants.

    Raises:
        KeyError: It has no such constant.
    """
    for name, value in constants.items():
        text, count = re.subn(rf"(?m)^(\s+{name}: )\w+;", rf"\g<1>{str(value).lower()};", text)
        if count != 1:
            raise KeyError(name)
    return text


def check(text: str, folder: Path, *, deadlocks: bool = True, optimize: str = "-O2") -> Result:
    """Check a specification in all states that it can reach.

    Args:
        text: The specification.
        folder: An empty one, for what is compiled.
        deadlocks: Whether a state without a next step is a violation.
        optimize: Option of the C compiler.

    Raises:
        ValueError: It is no correct specification.
    """
    source, program = folder / "spec.m", folder / "spec"
    source.write_text(text)
    options = ["--deadlock-detection", "stuck" if deadlocks else "off", "--threads", "1"]
    made = subprocess.run(
        ["rumur", *options, source, "-o", f"{program}.c"], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise ValueError(made.stderr)
    compiler = ["cc", "-std=c11", optimize, "-w", "-mcx16", f"{program}.c", "-o", program, "-lpthread"]
    subprocess.run(compiler, check=True)
    output = subprocess.run([program], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+) states, \d+ rules fired", output)
    if "Status:" not in output or found is None:
        raise ValueError(output[-2000:])
    violated = re.search(
        r'(?:invariant|assertion|liveness property|cover) "(.+?)"|^\s+(deadlock)$', output, re.M
    )
    is_clean = "No error found." in output
    name = "" if is_clean else next(filter(None, violated.groups()), "") if violated else "unknown"
    return Result(name, int(found[1]), output)


def missing() -> str:
    """Return what is missing on this machine, "" if checks can run."""
    return ", ".join(tool for tool in ("rumur", "cc") if shutil.which(tool) is None)


def main() -> int:
    """Check all sizes and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*")
    parser.add_argument("--long", action="store_true")
    arguments = parser.parse_args()
    if lacks := missing():
        print(f"not on this machine: {lacks} (apt install rumur gcc)", file=sys.stderr)
        return 2
    code = 0
    for name, size in SIZES.items():
        if (size.is_long and not arguments.long) or size.spec not in (arguments.specs or [size.spec]):
            continue
        text = with_constants((HERE / f"{size.spec}.m").read_text(), size.constants)
        with tempfile.TemporaryDirectory() as folder:
            result = check(text, Path(folder))
        print(
            f"{size.spec:7} {name:28} {result.num_states:>10,} states  {result.violated or 'holds'}",
            flush=True,
        )
        if result.violated:
            code = 1
            print(result.output[-4000:])
    return code


if __name__ == "__main__":
    sys.exit(main())

"""Runs a program that fails: as the stage ``causes.fail:main``, or ``python -m causes.fail NAME``."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from causes import (
    apart,
    apart_machines,
    authored,
    authored_code,
    authored_machines,
    authored_networks,
    authored_tools,
    fresh,
    fresh_machines,
    held_out,
    later,
    reported,
    reported_machines,
    seen,
    shapes,
    strangers,
    strangers_machines,
    unseen,
)
from causes.programs import FAILURES

MODULES = (
    *(authored, authored_code, authored_machines, authored_networks, authored_tools),
    *(apart, apart_machines, fresh, fresh_machines, held_out, later, reported, reported_machines),
    *(seen, shapes, strangers, strangers_machines, unseen),
)


def main(config: Any, inputs: Any, context: Any) -> list[dict[str, Any]]:
    """Fail as the config says."""
    FAILURES[config.failure](config)
    return [{"value": 1}]


if __name__ == "__main__":
    if sys.argv[1] == "wrapped":  # as a launch script does
        subprocess.run([sys.executable, "-m", "causes.fail", *sys.argv[2:]], check=True)
    else:
        FAILURES[sys.argv[1]](None)

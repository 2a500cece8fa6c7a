"""Peers on the same device: TRL's SFTTrainer, with Liger's kernels where they are installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

from gpu.device import environment_of_children
from gpu.one_pass import ROOT, Pass

GOAL = 1.2
"""Tokens a second of our loop over those of TRL with Liger that we aim at on a GPU."""


def trl(one: Pass) -> None:
    """Our loop against TRL's, each alone on the device, in a process of its own."""
    if importlib.util.find_spec("trl") is None:
        one.record("TRL", not_available="it is not installed")
        return
    command = [sys.executable, str(ROOT / "benchmarks" / "loop_against_trl.py"), "--json"]
    command += ["--rows", "128"] if one.cuda else ["--small", "--rows", "16"]
    if one.left_s < 180:
        command.append("--no-compile")
    has_liger = one.cuda and importlib.util.find_spec("liger_kernel") is not None
    for liger in (False, True)[: 1 + has_liger]:
        one.clean()
        done = subprocess.run(
            [*command, *(["--liger"] if liger else [])],
            env=environment_of_children(),
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        what = f"our loop against TRL{' with Liger' if liger else ''}"
        if done.returncode:
            one.record(what, exit_code=done.returncode, error=" ".join(done.stderr.split())[-300:])
        else:
            found = json.loads(done.stdout.splitlines()[-1])
            one.record(what, **{key: found[key] for key in ("model", "ours", "trl", "ratio")}, goal=GOAL)

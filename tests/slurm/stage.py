"""A stage's process as a job's batch script starts it: ``python -m tests.slurm.stage FOLDER``.

The folder holds what to do, ``told.json``; what came of it is ``outcome.json`` there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from orchestrator.errors import StageFailure, StopRequested
from orchestrator.sft.distributed import launcher
from orchestrator.stage import Config, Context, Inputs, StopSignal


class Note:
    """A tracker that writes down the step."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def log(self, step: int, metrics: Any) -> None:
        self._file.write_text(str(step))

    def close(self) -> None:
        """Has nothing to flush."""


def main(folder: Path) -> None:
    """Trains, or calls a function of `tests.sft.ranked` in several processes."""
    told, asked = json.loads((folder / "told.json").read_text()), StopSignal()
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: asked.ask("stopped"))
    (folder / "pid").write_text(str(os.getpid()))
    note = Note(folder / "step")
    try:
        if "inputs" in told:
            from orchestrator.sft import stages
            from tests.sft import chain

            config = chain.small(*told["config"])
            inputs = {s: {label: Path(p) for label, p in each.items()} for s, each in told["inputs"].items()}
            chain.run(stages.TRAIN, config, folder / "attempt", inputs, stop=asked, trackers=[note])
            outcome = ["done", None]
        else:
            result = launcher.run(
                f"tests.sft.ranked:{told['function']}",
                Config(told["config"]),
                Inputs({}),
                Context(folder / "attempt", stop=asked, trackers=[note], checkpoint_interval_s=3600),
                num_processes=told["num_processes"],
                device="cpu",
            )
            outcome = ["done", result]
    except StageFailure as failure:
        outcome = ["failed", f"{failure.cause}: {failure}"]
    except StopRequested as stopped:
        outcome = ["released", stopped.why]
    (folder / "outcome.part").write_text(json.dumps(outcome))
    (folder / "outcome.part").rename(folder / "outcome.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

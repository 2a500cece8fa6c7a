"""Compute a segment of a training again, and compare the bits.

Run as ``python -m orchestrator.sft.replay ORDER.json``. A bundle carries the checkpoint at the begin of the
segment, the products that the training took, and the checkpoint at its end. The result is printed as JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from orchestrator.errors import StopRequested
from orchestrator.manifest import file_digest
from orchestrator.saving import MANIFEST
from orchestrator.sft import train
from orchestrator.sft.checkpoints import PROGRESS
from orchestrator.stage import Checkpoint, Config, Context, Inputs, StopSignal


class ReplayContext(Context):
    """A context that resumes from the begin of a segment, and stops the training at its end."""

    def __init__(self, folder: Path, *, last: int, stop: StopSignal, **options: Any) -> None:
        super().__init__(folder, stop=stop, **options)
        self._last = last
        self._signal = stop

    def checkpoint_due(self, step: int, *, num_steps: int | None = None) -> bool:
        """Return whether this is the last step of the segment."""
        if step == self._last:
            self._signal.ask("the segment is over")
        return step == self._last


def replay(order: dict[str, Any], folder: Path) -> list[str]:
    """Return the files of the checkpoint at the end of a segment that have other bits.

    Args:
        order: what `orchestrator.bundles.replaying` wrote.
        folder: an empty one, to work in.
    """
    first, last = order["segment"]
    inputs = {s: {label: Path(p) for label, p in each.items()} for s, each in order["inputs"].items()}
    context = ReplayContext(
        folder,
        last=last,
        stop=StopSignal(),
        uses=Config(order["uses"], declared="uses"),
        resume=Checkpoint(first, Path(order["start"])),
        num_threads=order["num_threads"],
    )
    with contextlib.suppress(StopRequested):
        train.main(Config(order["reads"]), Inputs(inputs), context)
    return list(_differences(Path(order["end"]), folder / "checkpoints" / f"{last:08d}"))


def _differences(recorded: Path, made: Path) -> Iterator[str]:
    for path in sorted(recorded.rglob("*")):
        name = path.relative_to(recorded).as_posix()
        if not path.is_file() or name == MANIFEST:
            continue
        other = made / name
        if not other.is_file():
            yield f"{name} was not made"
        elif name == PROGRESS:
            ours, theirs = (json.loads(each.read_text(encoding="utf-8")) for each in (other, path))
            yield from (f"{name}: {key}" for key in ("loss", "validation_loss") if ours[key] != theirs[key])
        elif file_digest(other) != file_digest(path):
            yield name


def main(argv: list[str]) -> int:
    """Replay the segment of an order, and print the differences."""
    order = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    wanted = order["device"]
    here = torch.cuda.get_device_name() if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    if here != wanted:
        print(json.dumps({"not_comparable": f"it ran on {wanted}, and here is {here}"}))
        return 0
    print(json.dumps({"differences": replay(order, Path(order["folder"]))}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Segments of trainings that are kept for an audit: pairs of checkpoints between which others compute again.

With `policy.audit_segments`, a stage that names its number of steps saves a checkpoint at the begin and at
the end of some random segments. They are linked into a folder of their own, which neither rotation nor
retention touches::

    steps      1 ... 40 41 42 43 44 ... 120
    saved            ^           ^            audit/00000040, audit/00000044

A stage cannot know in advance which steps these are worth: they follow from its digest alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.execution.assignment import AttemptSpec
from orchestrator.manifest import copy_file
from orchestrator.saving import MANIFEST, Begin, write_checkpoint_manifest
from orchestrator.stage import Context
from orchestrator.store.layout import AUDIT, SEGMENTS

MAX_SEGMENT_STEPS = 8
"""Longest segment, in steps: an audit computes all of them again."""


def segments_of(digest: str, number: int, num_steps: int) -> list[tuple[int, int]]:
    """Return the first and last step of each segment, by rising steps; fewer where there are not so many.

    Args:
        digest: of the stage instance, the seed of the choice.
        number: of segments.
        num_steps: of the whole work.
    """
    length = min(MAX_SEGMENT_STEPS, max(1, num_steps // 8))
    starts = range(1, num_steps - length)
    chosen = random.Random(digest).sample(starts, min(number, len(starts)))
    return [(start, start + length) for start in sorted(chosen)]


def machine() -> dict[str, str]:
    """Return on what this process computes: bits repeat only on the same."""
    torch = sys.modules.get("torch")
    device = "cpu"
    if torch is not None and torch.cuda.is_initialized():
        device = torch.cuda.get_device_name()
    return {"device": device, "cpu": _cpu(), "system": platform.machine()}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def context_for(order: AttemptSpec, *, is_shared: bool) -> Callable[..., Context]:
    """Return what makes the context of an attempt: one that keeps segments if the policy wants some.

    Args:
        order: the attempt.
        is_shared: whether files that it writes are in the store; those of a bucket are not uploaded.
    """
    number = order.settings.policy.audit_segments
    if not number or not is_shared:
        return Context
    return partial(AuditedContext, digest=order.instance.digest, number=number)


class AuditedContext(Context):
    """A context that saves and keeps the checkpoints around some segments.

    Args:
        folder, options: as for `Context`.
        digest: of the stage instance.
        number: of segments.
    """

    def __init__(self, folder: Path, *, digest: str, number: int, **options: Any) -> None:
        super().__init__(folder, **options)
        self._digest = digest
        self._number = number
        self._segments: list[tuple[int, int]] = []

    def checkpoint_due(self, step: int, *, num_steps: int | None = None) -> bool:
        """Return whether to save a checkpoint now, also for an audit. See `Context.checkpoint_due`."""
        is_due = super().checkpoint_due(step, num_steps=num_steps)
        if num_steps is not None and not self._segments:
            self._segments = segments_of(self._digest, self._number, num_steps)
        return is_due or self._is_kept(step)

    def _is_kept(self, step: int) -> bool:
        return any(step in segment for segment in self._segments)

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """Yield a folder to save into, and keep it if it is of a segment. See `Context.checkpoint`."""
        with super().checkpoint(step) as folder:
            yield folder
            self._keep(folder, step)

    def checkpoint_later(self, step: int, begin: Begin) -> None:
        """Copy the state now and write it in a thread. See `Context.checkpoint_later`."""

        def begin_kept(folder: Path) -> Callable[[], None]:
            write = begin(folder)

            def write_kept() -> None:
                write()
                self._keep(folder, step)

            return write_kept

        super().checkpoint_later(step, begin_kept)

    def _keep(self, folder: Path, step: int) -> None:
        """Link the files of a checkpoint of a segment into a folder that stays.

        Where that fails, as on a full disk, the segment is not kept, and the checkpoint stays what it is.
        """
        kept = self.folder / AUDIT / f"{step:08d}"
        if not self._is_kept(step) or (kept / MANIFEST).exists():
            return
        try:
            self._link_all(folder, kept, step)
        except OSError as error:
            shutil.rmtree(kept, ignore_errors=True)  # its links would hold the space of what is deleted
            with contextlib.suppress(OSError):
                print(f"step {step} is not kept for audits: {error}", flush=True)

    def _link_all(self, folder: Path, kept: Path, step: int) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != MANIFEST:
                target = kept / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    _link(path, target)
        facts = {"segments": self._segments, "num_threads": self.num_threads, **machine()}
        part = self.folder / AUDIT / f"{SEGMENTS}.part"
        part.write_text(json.dumps(facts), encoding="utf-8")
        part.replace(self.folder / AUDIT / SEGMENTS)
        write_checkpoint_manifest(kept, step=step, attempt=self.attempt)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        copy_file(source, target)

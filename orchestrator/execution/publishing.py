"""Carrying what an attempt leaves from its folder on this node to a store at a URL, while its child computes.

The worker does it, in the background, from its own loop: the child neither waits for an upload nor can lose
one by dying. A checkpoint counts for others when its manifest is there, which is uploaded last. The files are
held by links meanwhile, so that the child may rotate its own; when checkpoints come faster than they can be
uploaded, the newest is next. Logs and metrics follow as they grow.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from orchestrator import formats
from orchestrator.execution.assignment import ChildOutcome
from orchestrator.manifest import File, damage, damage_by_size, step_of
from orchestrator.stage import MANIFEST, CheckpointManifest
from orchestrator.store import layout
from orchestrator.store.remote import RemoteStore, Transfer

KEEP = 2
"""Checkpoints of one attempt that stay in the store, as `Context` keeps them on the node."""

LOG_S, LOG_BYTES_S = 5.0, 2**20
"""A log is uploaded at most so often, and a long one no faster than this."""

LET_GO_S = 5.0
"""How long an upload that nobody wants any more may still take before it is broken off."""

HELD = ".shipping"
"""The folder of links to the files of the checkpoint that is under way."""

RETRY_S, PATIENCE_S, LOG_PATIENCE_S = 3.0, 300.0, 20.0
"""Seconds between tries, and how long a store that does not answer is waited for at the end of an attempt."""


class BucketPublisher:
    """Carries the checkpoints, log and metrics of one attempt.

    Args:
        objects: the store.
        key: of the attempt's payload.
        adopted: the step that the attempt goes on from, which lies in another's payload; None without one.
        complain: takes a line about what went wrong.
    """

    def __init__(
        self, objects: RemoteStore, key: str, *, adopted: int | None, complain: Callable[[str], None]
    ) -> None:
        self._objects, self._key, self._complain = objects, key, complain
        self._folder = objects.folder(key)
        self._adopted = adopted
        self._shipped: list[int] = []
        self._torn: set[int] = set()
        self._step: int | None = None  # of the checkpoint that is under way
        self._named = False  # its files are there, its manifest is on its way
        self._checkpoint: Transfer | None = None
        self._log: Transfer | None = None
        self._sizes: dict[str, int] = {}
        self._log_s = self._retry_s = 0.0
        self.error: OSError | None = None

    def step(self) -> None:
        """Looks at what is under way and begins what is due; waits for nothing."""
        now_s = time.monotonic()
        self._log = self._looked_at(self._log, "the log")
        if self._log is None and now_s >= self._log_s:
            self._ship_logs(now_s)
        self._checkpoint = self._looked_at(self._checkpoint, "a checkpoint")
        if self._checkpoint is None and now_s >= self._retry_s:
            try:
                self._go_on()
            except OSError as error:
                self._failed("a checkpoint", error)

    def finish(self, pulse: Callable[[], object], *, checkpoints: bool) -> None:
        """Waits until the last checkpoint and the log are in the store; called when the child is gone.

        What the store does not take for long is left behind, and said: the attempt's end counts without it.

        Args:
            pulse: called meanwhile.
            checkpoints: whether the checkpoints are still wanted.
        """
        self._retry_s = 0.0
        start_s = time.monotonic()
        while checkpoints and (self._step is not None or self._newest() is not None):
            self.step()
            pulse()
            is_failing = self._checkpoint is None and self.error is not None
            if is_failing and time.monotonic() - start_s > PATIENCE_S:
                self._complain("its last checkpoint is given up")
                break
            time.sleep(0.02)
        self._let_go(pulse)
        self._ship_rest(pulse)

    def _ship_rest(self, pulse: Callable[[], object]) -> None:
        """Waits until logs and metrics are in the store, but not for long: they are not worth the attempt."""
        start_s, self._log_s = time.monotonic(), 0.0
        while self._log is not None or self._grown():
            self._log = self._looked_at(self._log, "the log")
            if self._log is None and time.monotonic() >= self._log_s:
                self._ship_logs(time.monotonic())
            pulse()
            if time.monotonic() - start_s > LOG_PATIENCE_S:
                return
            time.sleep(0.02)

    def _let_go(self, pulse: Callable[[], object]) -> None:
        """Sees to it that no checkpoint comes to the store later, when those of the stage are deleted."""
        until_s = time.monotonic() + LET_GO_S
        with contextlib.suppress(OSError):
            while self._checkpoint is not None and not self._checkpoint.is_done():
                pulse()
                time.sleep(0.02)
                if time.monotonic() > until_s:
                    self._objects.close()  # with its broker ends what is under way
        self._checkpoint, self._step = None, None
        shutil.rmtree(self._folder / HELD, ignore_errors=True)

    def output(self, files: Sequence[File], pulse: Callable[[], object]) -> None:
        """Uploads the product's files; goes on where it was interrupted when the store is there again.

        Args:
            files: of the product; afterwards the store has all of them in full size.
            pulse: called meanwhile.

        Raises:
            OSError: the store did not take them for long.
        """
        start_s, prefix = time.monotonic(), f"{self._key}/{layout.OUTPUT}"
        while True:
            try:
                self._objects.upload(prefix, pulse=pulse)
                problem = damage_by_size(self._objects.trees([prefix])[prefix], files)
                if problem is None:
                    return self._ship_rest(pulse)
                raise OSError(errno.EIO, f"after the upload {problem}")
            except OSError as error:
                if time.monotonic() - start_s > PATIENCE_S:
                    raise
                self._failed("the output", error)
            wait_until_s = time.monotonic() + RETRY_S
            while time.monotonic() < wait_until_s:
                pulse()
                time.sleep(0.1)

    def failed(
        self, outcome: ChildOutcome, number: int, pulse: Callable[[], object], *, has_read: bool
    ) -> None:
        """Uploads what a later attempt needs to know of a failure.

        Of a command whose results could not be read that is its output, and then the outcome that says so; of
        an attempt that read such an output again the outcome, or it would be read once more, for ever. What
        the store does not take for long is left behind.

        Args:
            outcome: of the attempt; nothing is done for any other than these.
            number: of the attempt.
            pulse: called meanwhile.
            has_read: whether the attempt only read what an earlier one left.
        """
        if outcome.outcome != "failed" or not (has_read or outcome.unread == number):
            return
        try:
            if outcome.unread == number:
                self.output(outcome.files, pulse)
            data = (self._folder / layout.OUTCOME).read_bytes()
            self._objects.put(f"{self._key}/{layout.OUTCOME}", data)
        except OSError as error:
            self._complain(f"its output is not kept: {error.strerror or error}")

    def _looked_at(self, transfer: Transfer | None, what: str) -> Transfer | None:
        try:
            if transfer is None or not transfer.is_done():
                return transfer
        except OSError as error:
            self._failed(what, error)
            if what == "the log":
                self._sizes.clear()
                self._log_s = time.monotonic() + RETRY_S
            else:
                self._drop()
            return None
        self.error = None
        if what != "the log":
            self._landed()
        return None

    def _failed(self, what: str, error: OSError) -> None:
        if self.error is None:
            self._complain(f"{what} was not uploaded, again in {RETRY_S:.0f} s: {error.strerror or error}")
        self.error, self._retry_s = error, time.monotonic() + RETRY_S

    # Checkpoints

    def _newest(self) -> int | None:
        """Returns the newest step that is whole and not in the store yet."""
        last = max([*self._shipped, self._adopted or 0])
        manifests = (self._folder / layout.CHECKPOINTS).glob(f"*/{MANIFEST}")
        steps = [step for path in manifests if (step := step_of(path.parent.name)) is not None]
        return max((step for step in steps if step > last and step not in self._torn), default=None)

    def _place(self, step: int) -> Path:
        """Returns the folder of a checkpoint: a command names its own as it likes."""
        places = (self._folder / layout.CHECKPOINTS).glob(f"*/{MANIFEST}")
        found = [path.parent for path in places if step_of(path.parent.name) == step]
        return found[0] if found else self._folder / layout.CHECKPOINTS / f"{step:08d}"

    def _go_on(self) -> None:
        if self._step is None:
            step = self._newest()
            if step is None or not self._link(step):
                return
            self._step, self._named = step, False
        held, prefix = self._held(self._step), self._prefix(self._step)
        # after an error, what had come across before is not sent again
        there = self._objects.trees([prefix])[prefix] if self.error is not None else {}
        names = [MANIFEST] if self._named else []
        for path in held.rglob("*") if not self._named else ():
            name = path.relative_to(held).as_posix()
            if path.is_file() and name != MANIFEST and there.get(name) != path.stat().st_size:
                names.append(name)
        if not names:
            self._named, names = True, [MANIFEST]
        self._checkpoint = self._objects.begin_upload(prefix, names, folder=held)

    def _link(self, step: int) -> bool:
        """Holds a checkpoint's files; False for one that is not whole, or was rotated away just now."""
        source, held = self._place(step), self._held(step)
        shutil.rmtree(held, ignore_errors=True)
        try:
            data = (source / MANIFEST).read_bytes()
            manifest = formats.decode(data, CheckpointManifest)
            for file in manifest.files if manifest.step == step else ():
                (held / file.path).parent.mkdir(parents=True, exist_ok=True)
                os.link(source / file.path, held / file.path)
            held.mkdir(exist_ok=True)
            (held / MANIFEST).write_bytes(data)
            is_whole = damage(held, manifest.files, content=False) is None and manifest.step == step
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            is_whole = False
        if not is_whole:  # a file that a command names like a manifest is none
            shutil.rmtree(held, ignore_errors=True)
            self._torn.add(step)
        return is_whole

    def _landed(self) -> None:
        """The files are there: its manifest is next; or that is there too: it counts."""
        assert self._step is not None
        if not self._named:
            self._named = True
            return
        self._shipped.append(self._step)
        self._drop()
        while len(self._shipped) > KEEP:
            prefix = self._prefix(self._shipped.pop(0))
            with contextlib.suppress(OSError):  # it is not in the way, and goes when the stage is done
                self._objects.discard(f"{prefix}/{MANIFEST}")  # first: a half-deleted one never counts
                self._objects.discard(prefix)

    def _drop(self) -> None:
        if self._step is not None:
            shutil.rmtree(self._held(self._step), ignore_errors=True)
        self._step = None

    def _held(self, step: int) -> Path:
        return self._folder / HELD / f"{step:08d}"

    def _prefix(self, step: int) -> str:
        return f"{self._key}/{layout.CHECKPOINTS}/{step:08d}"

    # Logs

    def _grown(self) -> dict[str, int]:
        sizes = {}
        for name in (layout.LOG, layout.METRICS):
            with contextlib.suppress(OSError):
                sizes[name] = (self._folder / name).stat().st_size
        return {name: size for name, size in sizes.items() if self._sizes.get(name) != size}

    def _ship_logs(self, now_s: float) -> None:
        grown = self._grown()
        if not grown:
            return
        self._log_s = now_s + max(LOG_S, sum(grown.values()) / LOG_BYTES_S)
        try:
            self._log = self._objects.begin_upload(self._key, grown)
            self._sizes |= grown
        except OSError as error:
            self._failed("the log", error)


def complain(line: str) -> None:
    """Print a line into the worker's log about what went wrong and stops nothing."""
    with contextlib.suppress(OSError):  # the log may lie on a full disk
        print(line, flush=True)

"""Upload of what an attempt leaves to a bucket, while its child computes.

The worker uploads in the background, from its own loop: the child never waits for an upload, and its death
loses none.

Why the order matters: a reader may list a checkpoint at any moment, and a bucket has no rename that makes
many files appear at once. A checkpoint therefore counts only with its manifest, which is uploaded last::

    child saves 00000200/ -> hard links in .shipping/ -> upload files -> upload manifest: it counts
    child deletes 00000200/ meanwhile: the links keep the files until they are uploaded

If checkpoints come faster than they can be uploaded, the newest one is next. Logs and metrics follow as they
grow.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from orchestrator import formats
from orchestrator.manifest import File, damage, damage_by_size
from orchestrator.saving import MANIFEST, CheckpointManifest, step_of
from orchestrator.store import layout
from orchestrator.store.client import Transfer
from orchestrator.store.objects import Keepalive

if TYPE_CHECKING:
    from orchestrator.store.bucket import RemoteStore

KEEP = 2
"""Checkpoints of one attempt that stay in the store, as many as `Context` keeps on the node."""

LOG_S, LOG_BYTES_S = 5.0, 2**20
"""Least seconds between two uploads of a log, and the most bytes of log per second."""

LET_GO_S = 5.0
"""Seconds that an upload which is no longer needed may take before it is aborted."""

HELD = ".shipping"
"""Folder of hard links to the files of the checkpoint that is being uploaded."""

RETRY_S, PATIENCE_S, LOG_PATIENCE_S = 3.0, 300.0, 20.0
"""Seconds between tries, and seconds to wait at an attempt's end for a store that does not answer."""

_LOG, _CHECKPOINT, _OUTPUT = "the log", "a checkpoint", "the output"


class _Retries:
    """Which kinds of upload fail, and when each may start again.

    Args:
        warn: writes a line about a problem to the worker's log.
        pause_s: pause before a failed upload is retried, in seconds.

    Attributes:
        due_s: monotonic time from which each kind of upload may start.
    """

    def __init__(self, warn: Callable[[str], None], pause_s: float) -> None:
        self._warn = warn
        self._failing: set[str] = set()
        self.pause_s = pause_s
        # One may fail where the other does not, such as an object that is too large for the store.
        self.due_s = {_LOG: 0.0, _CHECKPOINT: 0.0}

    def is_due(self, what: str) -> bool:
        """Return whether an upload of this kind may start now."""
        return time.monotonic() >= self.due_s[what]

    def is_failing(self, what: str) -> bool:
        """Return whether the last upload of this kind failed."""
        return what in self._failing

    def failed(self, what: str, error: OSError) -> None:
        """Record a failed upload, and when to retry; log only the first failure in a row."""
        if what not in self._failing:
            self._warn(f"{what} was not uploaded, again in {self.pause_s:.0f} s: {error.strerror or error}")
        self._failing.add(what)
        self.due_s[what] = time.monotonic() + self.pause_s

    def succeeded(self, what: str) -> None:
        """Record a finished upload."""
        self._failing.discard(what)


class _LogUploads:
    """Uploads of the log and metrics of one attempt, as these files grow."""

    def __init__(self, objects: RemoteStore, key: str, retries: _Retries) -> None:
        self._objects = objects
        self._key = key
        self._folder = objects.folder(key)
        self._retries = retries
        self._transfer: Transfer | None = None
        self._sizes: dict[str, int] = {}  # of the files when they were uploaded last

    def step(self) -> None:
        """Check the running upload and start the next one if it is due; never wait."""
        try:
            if self._transfer is not None and self._transfer.is_done():
                self._transfer = None
                self._retries.succeeded(_LOG)
        except OSError as error:
            self._transfer = None
            self._retries.failed(_LOG, error)
            self._sizes.clear()
        if self._transfer is None and self._retries.is_due(_LOG):
            self._begin()

    def finish(self, keepalive: Keepalive) -> None:
        """Wait a short time until logs and metrics are in the store; their loss is no reason to fail."""
        start_s = time.monotonic()
        self._retries.due_s[_LOG] = 0.0
        while self._transfer is not None or self._grown():
            self.step()
            keepalive()
            if time.monotonic() - start_s > LOG_PATIENCE_S:
                return
            time.sleep(0.02)

    def _grown(self) -> dict[str, int]:
        """Return the sizes of the log and metrics files that grew since their last upload."""
        sizes = {}
        for name in (layout.LOG, layout.METRICS):
            with contextlib.suppress(OSError):
                sizes[name] = (self._folder / name).stat().st_size
        return {name: size for name, size in sizes.items() if self._sizes.get(name) != size}

    def _begin(self) -> None:
        """Start an upload of the grown files, and set the time of the next one by their size."""
        if not (grown := self._grown()):
            return
        self._retries.due_s[_LOG] = time.monotonic() + max(LOG_S, sum(grown.values()) / LOG_BYTES_S)
        try:
            self._transfer = self._objects.begin_upload(self._key, grown)
            self._sizes |= grown
        except OSError as error:
            self._retries.failed(_LOG, error)


class _CheckpointUploads:
    """Uploads of the checkpoints of one attempt, one after another.

    Args:
        objects: the store.
        key: key of the attempt's payload.
        adopted: step of a checkpoint that is not uploaded, None without one.
        retries: record of the failed uploads.
    """

    def __init__(self, objects: RemoteStore, key: str, adopted: int | None, retries: _Retries) -> None:
        self._objects = objects
        self._key = key
        self._folder = objects.folder(key)
        self._adopted = adopted
        self._retries = retries
        self._shipped: list[int] = []
        self._torn: set[int] = set()
        self._step: int | None = None  # the checkpoint that is being uploaded
        self._named = False  # whether its files are uploaded, so that its manifest is next
        self._transfer: Transfer | None = None

    def step(self) -> None:
        """Check the running upload and start the next one if it is due; never wait."""
        self._check()
        if self._transfer is None and self._retries.is_due(_CHECKPOINT):
            try:
                self._go_on()
            except OSError as error:
                self._retries.failed(_CHECKPOINT, error)

    def is_complete(self) -> bool:
        """Return whether the newest checkpoint is in the store."""
        return self._step is None and self._newest() is None

    def is_failing(self) -> bool:
        """Return whether the last upload failed and no other one runs."""
        return self._transfer is None and self._retries.is_failing(_CHECKPOINT)

    def close(self, keepalive: Keepalive) -> None:
        """Make sure that no checkpoint arrives after this, when those of the stage may already be deleted."""
        until_s = time.monotonic() + LET_GO_S
        with contextlib.suppress(OSError):
            while self._transfer is not None and not self._transfer.is_done():
                keepalive()
                time.sleep(0.02)
                if time.monotonic() > until_s:
                    self._objects.close()  # ends the broker process, and all its uploads with it
        self._transfer = None
        self._step = None
        shutil.rmtree(self._folder / HELD, ignore_errors=True)

    def _check(self) -> None:
        """Handle the end of an upload."""
        try:
            if self._transfer is None or not self._transfer.is_done():
                return
        except OSError as error:
            self._transfer = None
            self._retries.failed(_CHECKPOINT, error)
            self._drop()
            return
        self._transfer = None
        self._retries.succeeded(_CHECKPOINT)
        self._landed()

    def _newest(self) -> int | None:
        """Return the newest step that is complete and not yet in the store; None if there is none."""
        last = max([*self._shipped, self._adopted or 0])
        manifests = (self._folder / layout.CHECKPOINTS).glob(f"*/{MANIFEST}")
        steps = [step for path in manifests if (step := step_of(path.parent.name)) is not None]
        return max((step for step in steps if step > last and step not in self._torn), default=None)

    def _place(self, step: int) -> Path:
        """Return the folder of a checkpoint; a command may use another number format than ours."""
        places = (self._folder / layout.CHECKPOINTS).glob(f"*/{MANIFEST}")
        found = [path.parent for path in places if step_of(path.parent.name) == step]
        return found[0] if found else self._folder / layout.CHECKPOINTS / f"{step:08d}"

    def _go_on(self) -> None:
        """Start the next upload of a checkpoint: its files, or after them its manifest."""
        if self._step is None:
            step = self._newest()
            if step is None or not self._link(step):
                return
            self._step = step
            self._named = False
        held = self._held(self._step)
        prefix = self._prefix(self._step)
        # After an error, files that had arrived before are not sent again.
        there = self._objects.trees([prefix])[prefix] if self._retries.is_failing(_CHECKPOINT) else {}
        names = [MANIFEST] if self._named else []
        for path in held.rglob("*") if not self._named else ():
            name = path.relative_to(held).as_posix()
            if path.is_file() and name != MANIFEST and there.get(name) != path.stat().st_size:
                names.append(name)
        if not names:
            self._named = True
            names = [MANIFEST]
        self._transfer = self._objects.begin_upload(prefix, names, folder=held)

    def _link(self, step: int) -> bool:
        """Hard-link a checkpoint's files; return False if it is incomplete or was just rotated away."""
        source = self._place(step)
        held = self._held(step)
        shutil.rmtree(held, ignore_errors=True)
        try:
            data = (source / MANIFEST).read_bytes()
            manifest = formats.decode(data, CheckpointManifest)
            for file in manifest.files if manifest.step == step else ():
                (held / file.path).parent.mkdir(parents=True, exist_ok=True)
                os.link(source / file.path, held / file.path)
            held.mkdir(exist_ok=True)
            (held / MANIFEST).write_bytes(data)
            # A command may rewrite a file in place: compare sizes after linking.
            is_whole = damage(held, manifest.files, content=False) is None and manifest.step == step
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            is_whole = False
        if not is_whole:  # also when a command wrote a file of its own with the manifest's name
            shutil.rmtree(held, ignore_errors=True)
            self._torn.add(step)
        return is_whole

    def _landed(self) -> None:
        """Advance after a finished upload: from the files to the manifest, or to the next checkpoint."""
        assert self._step is not None
        if not self._named:
            self._named = True
            return
        self._shipped.append(self._step)
        self._drop()
        while len(self._shipped) > KEEP:
            prefix = self._prefix(self._shipped.pop(0))
            with contextlib.suppress(OSError):  # harmless if it stays: retention deletes it later
                self._objects.discard(f"{prefix}/{MANIFEST}")  # first: a partly deleted one never counts
                self._objects.discard(prefix)

    def _drop(self) -> None:
        if self._step is not None:
            shutil.rmtree(self._held(self._step), ignore_errors=True)
        self._step = None

    def _held(self, step: int) -> Path:
        return self._folder / HELD / f"{step:08d}"

    def _prefix(self, step: int) -> str:
        return f"{self._key}/{layout.CHECKPOINTS}/{step:08d}"


class BucketPublisher:
    """Uploads of the checkpoints, log and metrics of one attempt.

    Args:
        objects: the store.
        key: key of the attempt's payload.
        adopted: step of the checkpoint that the attempt resumed from. Another attempt's payload holds it, so
            it is not uploaded. None without one.
        warn: writes a line about a problem to the worker's log.
        retry_s: pause before a failed upload is retried, in seconds.
    """

    def __init__(
        self,
        objects: RemoteStore,
        key: str,
        *,
        adopted: int | None,
        warn: Callable[[str], None],
        retry_s: float = RETRY_S,
    ) -> None:
        self._objects = objects
        self._key = key
        self._warn = warn
        self._retries = _Retries(warn, retry_s)
        self._logs = _LogUploads(objects, key, self._retries)
        self._checkpoints = _CheckpointUploads(objects, key, adopted, self._retries)

    def step(self) -> None:
        """Check the running uploads and start those that are due; never wait."""
        self._logs.step()
        self._checkpoints.step()

    def finish(self, keepalive: Keepalive, *, checkpoints: bool) -> None:
        """Wait until the last checkpoint and the log are in the store, after the child has ended.

        If the store does not answer for long, the rest is given up with a line in the log. The attempt's end
        counts without it.

        Args:
            keepalive: called meanwhile, to keep the lease.
            checkpoints: whether the checkpoints are still wanted.
        """
        self._retries.due_s[_CHECKPOINT] = 0.0
        start_s = time.monotonic()
        while checkpoints and not self._checkpoints.is_complete():
            self.step()
            keepalive()
            if self._checkpoints.is_failing() and time.monotonic() - start_s > PATIENCE_S:
                self._warn("its last checkpoint is given up")
                break
            time.sleep(0.02)
        self._checkpoints.close(keepalive)
        self._logs.finish(keepalive)

    def output(self, files: Sequence[File], keepalive: Keepalive) -> None:
        """Upload the product's files. After an interruption it resumes when the store answers again.

        Args:
            files: files of the product. On return the store has all of them in full size.
            keepalive: called meanwhile, to keep the lease.

        Raises:
            OSError: the store did not accept them for `PATIENCE_S`.
        """
        start_s = time.monotonic()
        prefix = f"{self._key}/{layout.OUTPUT}"
        while True:
            try:
                self._objects.upload(prefix, keepalive=keepalive)
                # The record names these files, so the store's own listing must confirm all of them first.
                problem = damage_by_size(self._objects.trees([prefix])[prefix], files)
                if problem is None:
                    return self._logs.finish(keepalive)
                raise OSError(errno.EIO, f"after the upload {problem}")
            except OSError as error:
                if time.monotonic() - start_s > PATIENCE_S:
                    raise
                self._retries.failed(_OUTPUT, error)
            wait_until_s = time.monotonic() + self._retries.pause_s
            while time.monotonic() < wait_until_s:
                keepalive()
                time.sleep(0.1)

    def failed(self, files: Sequence[File], keepalive: Keepalive) -> None:
        """Upload what a later attempt needs after a failure.

        After a command with unreadable results, that is its output, followed by the outcome that refers to
        it. After an attempt that read such an output again, it is the outcome alone: without it the output
        would be read again for ever. If the store does not answer for long, the rest is given up.

        Args:
            files: the output to upload; empty if the attempt only read what an earlier one left.
            keepalive: called meanwhile, to keep the lease.
        """
        try:
            if files:
                self.output(files, keepalive)
            data = (self._objects.folder(self._key) / layout.OUTCOME).read_bytes()
            self._objects.put(f"{self._key}/{layout.OUTCOME}", data)
        except OSError as error:
            self._warn(f"its output is not kept: {error.strerror or error}")

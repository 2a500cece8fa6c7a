"""Checkpoints of attempts: the choice of the one to resume from, and the seal on those that a command saves.

This is rule 6 of the store protocol in docs/design.md.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from orchestrator import formats
from orchestrator.core.evidence import Attempt, is_answered
from orchestrator.core.failure import Cause
from orchestrator.core.sweep import StageInstance
from orchestrator.errors import StageFailure, StopRequested
from orchestrator.execution.assignment import ChildOutcome
from orchestrator.execution.command_output import Arrivals
from orchestrator.manifest import TRANSIENT, contain, damage_by_size
from orchestrator.saving import MANIFEST, CheckpointManifest, step_of
from orchestrator.stage import Context, StageSpec
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger

UNREAD = "UnreadResults"
"""Recorded exception of a stage that finished, but whose rows could not be read."""

# Failures with these causes can happen whatever a checkpoint holds.
_NOT_ITS_FAULT = frozenset({Cause.PREEMPTED, Cause.NODE_LOST, Cause.COMMUNICATION, Cause.STORAGE})


class Candidate(NamedTuple):
    """A checkpoint that has a manifest; ordered by step, then by attempt.

    Attributes:
        step: its step.
        attempt: the attempt that saved it.
        prefix: its key in the store.
        manifest: content of its manifest file.
    """

    step: int
    attempt: int
    prefix: str
    manifest: bytes

    def decoded(self) -> CheckpointManifest | None:
        """Return the manifest; None for one of another step or another format."""
        manifest = _decoded(self.manifest)
        return manifest if manifest is not None and manifest.step == self.step else None


def candidates(ledger: Ledger, instance: StageInstance, attempts: Sequence[Attempt]) -> list[Candidate]:
    """Return the checkpoints that an attempt may resume from, best first.

    A checkpoint may itself cause a failure, for example when its weights have diverged. Retries from it would
    then fail for ever. So it is skipped after two failures of attempts whose newest checkpoint it was; after
    a ``nan`` one failure is enough. Lost or preempted attempts do not count, nor do failures that the next
    attempt meets with another remedy::

        attempt 1: saves 100, 200, fails with nan   blame {200: 2}
        attempt 2: resumes from 100 (200 is skipped)

    Nothing is taken from an attempt whose product or input was discarded, because the state may contain the
    bug that led to the discard.
    """
    sound = [attempt for attempt in attempts if not is_discarded(ledger, instance, attempt)]
    found = _of_attempts(ledger, instance, sound)
    # Until an attempt saves a checkpoint, its newest one is the checkpoint that it resumed from.
    newest = {a.number: a.start.parent.step for a in sound if a.start and a.start.parent}
    for candidate in found:
        newest[candidate.attempt] = max(candidate.step, newest.get(candidate.attempt, 0))
    blame: Counter[int] = Counter()
    for attempt in attempts:
        end = attempt.end
        is_through = end is not None and end.exception == UNREAD
        if end is None or end.outcome != "failed" or end.cause in _NOT_ITS_FAULT or is_through:
            continue
        if is_answered(attempt, end.cause or Cause.UNKNOWN):
            continue
        if attempt.number in newest:
            blame[newest[attempt.number]] += 2 if end.cause is Cause.NAN else 1
    return sorted((c for c in found if blame[c.step] < 2), reverse=True)


def is_discarded(ledger: Ledger, instance: StageInstance, attempt: Attempt) -> bool:
    """Return whether an attempt's files must not be used: its product or an input of it was discarded."""
    if attempt.claim is None or (instance.inputs and attempt.start is None):
        return True  # a record is missing or unreadable, so its generation or inputs are unknown
    taken = attempt.start.inputs if attempt.start else {}
    return ledger.is_discarded(instance, attempt.claim.generation) or any(
        ledger.is_discarded(source, taken[source.digest])
        for source in instance.inputs
        if source.digest in taken
    )


def _of_attempts(ledger: Ledger, instance: StageInstance, attempts: Sequence[Attempt]) -> list[Candidate]:
    """Return all checkpoints with a manifest, in two requests for all attempts together."""
    numbers = {layout.checkpoints(instance, a.number): a.number for a in attempts}
    steps = {
        f"{prefix}/{name}": (step, numbers[prefix])
        for prefix, listing in ledger.objects.list_many(numbers).items()
        for name in listing.folders
        if (step := step_of(name)) is not None
    }
    manifests = ledger.objects.get_many(f"{prefix}/{MANIFEST}" for prefix in steps)
    return [
        Candidate(*steps[prefix], prefix, data)
        for prefix in steps
        if (data := manifests[f"{prefix}/{MANIFEST}"]) is not None
    ]


def is_whole(ledger: Ledger, candidate: Candidate) -> bool:
    """Return whether a checkpoint has all files that its manifest names, by their sizes."""
    manifest, sizes = candidate.decoded(), ledger.objects.trees([candidate.prefix])[candidate.prefix]
    return manifest is not None and damage_by_size(sizes, manifest.files) is None


def _decoded(data: bytes) -> CheckpointManifest | None:
    """Return a decoded manifest; None for a file of another format."""
    try:
        return formats.decode(data, CheckpointManifest)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


LOOK_S = 1.0
NUM_WATCHED = 16  # of the folders sealed last: what is written into them later makes them count no more
LEFT_S = 10.0  # without a change, after which a folder counts that a program wrote in place and has left
_Stamp = tuple[tuple[str, int, int, int], ...]


class Sealer:
    """The thread that finds the complete checkpoints of one command, and makes them count.

    A command announces a finished checkpoint by renaming its folder to the final name. A thread checks once a
    second, so that the sudden loss of all processes costs only what was renamed in the last two seconds. A
    folder counts when two checks in turn find it unchanged; commands change and delete theirs at any time.

    Why renaming is visible: a rename sets the change time of the folder itself, later than all writes inside.
    A folder that is written in place under its final name fails this test. It is sealed once its command has
    begun the folder of a later step, or has ended by itself::

        write tmp/a, tmp/b; rename tmp -> 300    change time of 300 is later than a and b: complete
        mkdir 300; write 300/a, 300/b            change time of 300 is earlier than b: maybe incomplete
        mkdir 400; write 400/a                   a program saves one after the other: 300 is complete

    Times alone do not suffice: files that are copied keep theirs, and two small writes may share one. So what
    the kernel reports to be made in place is not sealed either (`Arrivals`).

    Args:
        context: the attempt's context. Its adopted checkpoint is sealed already.
        before: called before each check, with whether the command has ended, and whether by itself.

    Attributes:
        superseded: why nothing is sealed any more; "" while this attempt counts.
    """

    def __init__(self, context: Context, before: Callable[[bool, bool], None] = lambda *_: None) -> None:
        self._context = context
        self._before = before
        self._folder = context.folder / layout.CHECKPOINTS
        self._seen: dict[Path, tuple[_Stamp, float]] = {}
        self._watched: dict[Path, _Stamp] = {}
        self._reported: set[Path] = set()
        self._adopted = context.resume.folder if context.resume else None
        self._arrivals = Arrivals(self._folder)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sealer", daemon=True)
        self.superseded = ""

    def start(self) -> None:
        """Start the periodic checks."""
        self._thread.start()

    def finish(self, *, by_itself: bool) -> None:
        """Stop the periodic checks, and seal what is left when the command has ended.

        Args:
            by_itself: whether the command ended by itself, so that a folder written in place is complete too.
        """
        self._end.set()
        self._thread.join()
        if not self.superseded:
            self.look(is_last=True, by_itself=by_itself)
            self._name_others()
        self._arrivals.close()

    def _run(self) -> None:
        while not self._end.wait(LOOK_S) and not self.superseded:
            self.look()

    def look(self, *, is_last: bool = False, by_itself: bool = False, now_s: float | None = None) -> None:
        """Seal the checkpoints that this check and the previous one found unchanged.

        Args:
            is_last: whether the command has ended, so that one check is enough.
            by_itself: whether it ended by itself; see `finish`.
            now_s: of a monotonic clock; by default of the system's.
        """
        seen, self._seen = self._seen, {}
        self._unseal_changed()
        with contextlib.suppress(OSError):  # a file that is rotated away, or a full disk: the next check
            self._before(is_last, by_itself)
        try:
            paths = [path for path in self._folder.iterdir() if not path.is_symlink() and path.is_dir()]
        except OSError:
            return
        steps = [(step, path) for path in paths if (step := step_of(path.name)) is not None]
        in_place = self._arrivals.in_place()
        now_s, has_later = time.monotonic() if now_s is None else now_s, False
        for step, path in sorted(steps, reverse=True):  # the newest first, because time may run out
            if self._is_sealed(path, step):
                has_later |= path != self._adopted
                continue
            try:
                stamp = _stamp(path)
                before, since_s = seen.get(path, (None, now_s))
                self._seen[path] = stamp, since_s if before == stamp else now_s
                is_same = is_last or before == stamp
                is_renamed = path.name not in in_place and _was_renamed(path, stamp)
                is_left = has_later and (is_last or now_s - self._seen[path][1] >= LEFT_S)
                has_later |= bool(stamp)  # a later step has begun
                if is_same and (by_itself or is_renamed or is_left):
                    self._seal(path, step, stamp)
            except StopRequested as stopped:
                self.superseded = stopped.why
                return
            except (OSError, StageFailure, ValueError) as error:
                if is_last and path.exists():
                    print(f"checkpoint {path.name} is not sealed: {error}", flush=True)

    def _seal(self, path: Path, step: int, stamp: _Stamp) -> None:
        if contain(path):  # links were replaced by copies, which changed the folder
            stamp = _stamp(path)
        self._context.seal(path, step)
        self._watched[path] = stamp
        self._watched = dict([*self._watched.items()][-NUM_WATCHED:])
        self._unseal_changed()

    def _unseal_changed(self) -> None:
        """Remove the manifest from each folder sealed last to which the command writes after all."""
        for path, stamp in [*self._watched.items()]:
            with contextlib.suppress(OSError):  # the command is deleting it
                if _stamp(path, without=MANIFEST) == stamp:
                    continue
            del self._watched[path]
            with contextlib.suppress(OSError):
                (path / MANIFEST).unlink()

    def _name_others(self) -> None:
        """Print one line when everything that a command saved is unusable as a checkpoint."""
        with contextlib.suppress(OSError):
            own = [path for path in self._folder.iterdir() if path != self._adopted and path.name[0] != "."]
            others = [p.name for p in own if step_of(p.name) is None or p.is_symlink() or not p.is_dir()]
            if others and len(others) == len(own):
                print(
                    f"{others[0]} is no checkpoint, which is a folder renamed to the number of its step",
                    flush=True,
                )

    def _is_sealed(self, path: Path, step: int) -> bool:
        """Whether a folder has a manifest; remove one that was copied along from another checkpoint."""
        try:
            data = (path / MANIFEST).read_bytes()
        except OSError:
            return False
        if path == self._adopted:
            return True
        manifest = _decoded(data)
        if manifest is None:
            if path not in self._reported:
                self._reported.add(path)
                print(f"checkpoint {path.name} does not count: it holds a {MANIFEST} of its own", flush=True)
            # Not our format: the command uses this file name itself, so the folder cannot be sealed.
            return True
        if (manifest.step, manifest.attempt) == (step, self._context.attempt):
            return True
        with contextlib.suppress(OSError):
            (path / MANIFEST).unlink()
        return False


def _stamp(folder: Path, *, without: str = "") -> _Stamp:
    """Return the state of a folder, to compare: each path with its inode, size and time of writing."""
    found = []
    for root, folders, names in os.walk(folder, onerror=_raise):
        for name in [*folders, *names]:
            if (root == str(folder) and name == without) or TRANSIENT.fullmatch(name):
                continue
            path = os.path.join(root, name)  # noqa: PTH118 - of each file at each look
            stat = os.lstat(path)
            # A time of writing in the future is one that the command, or another machine, has set.
            found.append((path, stat.st_ino, stat.st_size, min(stat.st_mtime_ns, stat.st_ctime_ns)))
    return tuple(sorted(found))


def _raise(error: OSError) -> None:
    raise error


def _was_renamed(folder: Path, stamp: _Stamp) -> bool:
    """Whether the folder got its name after everything in it was written."""
    return bool(stamp) and folder.stat().st_ctime_ns >= max(written_ns for *_, written_ns in stamp)


def drop_partial(
    ledger: Ledger, instance: StageInstance, attempts: Sequence[Attempt], *, generation: int
) -> None:
    """Delete the outputs of attempts that ended without a product: the next one may need their space.

    Those stay whose results could not be read. So do those of attempts without an end, as one that was taken
    for dead may still publish its product. In a bucket there are none.

    Args:
        ledger: the store.
        instance: the stage instance.
        attempts: the earlier attempts.
        generation: of the product that is made now.
    """
    for attempt in attempts if ledger.objects.shared_folder("") else ():
        end, claim = attempt.end, attempt.claim
        if claim is None or end is None or claim.generation != generation:
            continue
        key = layout.payload(instance, attempt.number)
        with contextlib.suppress(OSError):  # what stays takes space, and nothing else
            # The end may name another reason, such as an error of the store.
            is_unread = end.exception == UNREAD or bool((found := _outcome(ledger, key)) and found.unread)
            for name in (layout.OUTPUT, layout.SCRATCH):
                if end.outcome in ("failed", "released") and not is_unread:
                    ledger.objects.delete(f"{key}/{name}")


def find_unread(
    ledger: Ledger, instance: StageInstance, attempts: Sequence[Attempt]
) -> tuple[Attempt, ChildOutcome] | None:
    """Return the attempt whose output the next one should read, and its outcome.

    Such an output is read again once. If that attempt fails too, the command runs again::

        attempt 1: command finished, results unread     outcome.unread = 1
        attempt 2: reads the output of 1, in vain       outcome.unread = 1, not 2
        attempt 3: the newest failure is of 2, which made no output: run the command

    Args:
        ledger: the store.
        instance: the stage instance.
        attempts: the earlier attempts, without those that must not be used.
    """
    for attempt in reversed(attempts):
        # Only the newest recorded failure counts: its own output, or the end of the search.
        if (outcome := _outcome(ledger, layout.payload(instance, attempt.number))) is not None:
            return (attempt, outcome) if outcome.unread == attempt.number else None
    return None


def _outcome(ledger: Ledger, key: str) -> ChildOutcome | None:
    """Return the recorded outcome of a failed attempt; None for any other."""
    data = ledger.objects.get(f"{key}/{layout.OUTCOME}")
    try:
        outcome = None if data is None else formats.decode(data, ChildOutcome)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return outcome if outcome is not None and outcome.outcome == "failed" else None


def work_of(ledger: Ledger, instance: StageInstance, attempt: Attempt) -> Path | None:
    """Return the path of an attempt's work folder, which may not exist; None in a bucket, which has none."""
    folder = ledger.objects.shared_folder(layout.payload(instance, attempt.number))
    return None if folder is None else folder / layout.WORK


def foresee(ledger: Ledger, instance: StageInstance, spec: StageSpec, earlier: Sequence[Attempt]) -> str:
    """Return in words what the next attempt would resume from; "" for a start from nothing (read-only).

    The arguments are those of `orchestrator.execution.inheritance.inherit`.
    """
    sound = [attempt for attempt in earlier if not is_discarded(ledger, instance, attempt)]
    if spec.command is not None and (found := find_unread(ledger, instance, sound)) is not None:
        return f"reads the output of attempt {found[0].number} again"
    parts = []
    for candidate in candidates(ledger, instance, earlier):
        if is_whole(ledger, candidate):
            parts.append(f"step {candidate.step} of attempt {candidate.attempt}")
            break
    with_work = [a.number for a in sound if (work := work_of(ledger, instance, a)) and work.is_dir()]
    if with_work:
        parts.append(f"the work folder of attempt {with_work[-1]}")
    return f"goes on from {' and '.join(parts)}" if parts else ""

"""The stage API: all that a stage sees of Polysweep, and all that both towers share.

A stage is a function ``main(config, inputs, context) -> list[Row]``. It knows no store, no sweep and
no launcher; `Context` hides checkpoints, metrics and stopping behind a few calls.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec

from orchestrator.errors import StageFailure, StopRequested
from orchestrator.formats import SINCE_2, Settings, Stored
from orchestrator.manifest import File, contain, fsync_path, fsync_tree, scan

Row = dict[str, Any]
"""One result row: column name to a JSON scalar."""

MANIFEST = "manifest.json"
"""The file, written last, that makes a checkpoint folder count."""


class StageSpec(Settings, frozen=True, kw_only=True):
    """What a sweep says of one stage: what runs, what it reads and what it waits for.

    Attributes:
        run: ``module:function`` of the stage; exactly one of `run` and `command` is set.
        command: a command line with ``{inputs.NAME}``, ``{output}``, ``{config.KEY}`` and ``{uses.KEY}``.
        name: a fixed name that stands for the target in the digest (for the stages that ship here).
        version: raised by hand when the stage's meaning changes.
        reads: config keys that the stage is given and that enter its digest.
        uses: config keys that it is given but that never enter the digest (paths, micro-batch).
        after: the stages whose products it takes as inputs.
        each: variable to config key of a list: one instance of the stage for each of its values.
        skip: a selector; cells that match have no such stage.
        results: for commands: a file of JSON or CSV in the output folder, the result rows.
        neutral: config keys that leave the digest as it was while they have this value.
        preload: modules that the fork server imports before it forks children.
        limit_s: seconds after which an attempt is ended as hanging; None for no limit.
        estimate: ``module:function`` that says what an instance would cost, see `orchestrator.costs`.
        needs: ``module:function`` that lists what must be there before it can run, likewise.
        finished: for commands: a file in the output folder, or else in the work folder, that the command
            creates when it is through; after a stop, exit code 0 counts as done only with it.
        keep: patterns of files in the work folder that become part of the product.
        shell: for commands: ``bash`` runs the line, with ``-e`` and ``pipefail``; part of the identity when
            true.
        python: for commands: the interpreter that ``python`` and ``{python}`` mean.
    """

    run: str | None = None
    command: str | None = None
    name: str | None = None
    version: int = 1
    reads: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    each: dict[str, str] = {}
    skip: str | None = None
    results: str | None = None
    neutral: dict[str, Any] = {}
    preload: tuple[str, ...] = ()
    limit_s: float | None = None
    estimate: str | None = None
    needs: str | None = None
    finished: Annotated[str | None, SINCE_2] = None
    keep: Annotated[tuple[str, ...], SINCE_2] = ()
    shell: Annotated[bool, SINCE_2] = False
    python: Annotated[str | None, SINCE_2] = None


class Config(Mapping[str, Any]):
    """A frozen slice of a cell's config, by attribute (``config.trainer.seed``) or by item.

    Reading a key that the stage declared neither in `reads` nor in `uses` fails the stage with cause
    ``config``: identity has no holes.
    """

    def __init__(self, tree: Mapping[str, Any], *, path: str = "", declared: str = "reads") -> None:
        self._tree, self._path, self._declared = tree, path, declared

    def __getitem__(self, key: str) -> Any:
        if key not in self._tree:
            full = f"{self._path}{key}"
            raise StageFailure("config", f"the stage does not declare {full!r} in its `{self._declared}`")
        value = self._tree[key]
        if isinstance(value, Mapping):
            return Config(value, path=f"{self._path}{key}.", declared=self._declared)
        return tuple(value) if isinstance(value, list) else value

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        return self[key]

    def __contains__(self, key: object) -> bool:
        return key in self._tree

    def __iter__(self) -> Iterator[str]:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)

    def __repr__(self) -> str:
        return f"Config({self._tree!r})"

    def to_dict(self) -> dict[str, Any]:
        """Returns a deep plain copy, ready for a schema."""
        copy: dict[str, Any] = json.loads(json.dumps(self._tree))
        return copy


def plain(config: Config) -> Mapping[str, Any]:
    """Returns the tree that a config wraps, for hooks that are asked often; not to be changed."""
    return config._tree


class Inputs:
    """The verified product folders of the stages named in `after`.

    Args:
        folders: stage name to instance label (``""`` for a stage without `each`) to folder.
    """

    def __init__(self, folders: Mapping[str, Mapping[str, Path]]) -> None:
        self._folders = folders

    def __contains__(self, stage: object) -> bool:
        return stage in self._folders

    def __getitem__(self, stage: str) -> Path:
        """Returns the one product folder of a stage without `each`."""
        folders = self.each(stage)
        if set(folders) != {""}:
            raise StageFailure(
                "code", f"stage {stage!r} has an instance each for {sorted(folders)}: use each()"
            )
        return folders[""]

    def each(self, stage: str) -> Mapping[str, Path]:
        """Returns instance label to product folder, in the order of the config's list."""
        if stage not in self._folders:
            raise StageFailure("code", f"no input {stage!r}: name it in the stage's `after`")
        return self._folders[stage]


class Checkpoint(NamedTuple):
    """A verified checkpoint: the step it was taken after, and its folder (read only)."""

    step: int
    folder: Path


class CheckpointManifest(Stored, frozen=True):
    """What `manifest.json` of a checkpoint holds; written last, so its presence means a whole save."""

    step: int
    attempt: int
    files: tuple[File, ...]


class Tracker(Protocol):
    """Where metrics go. A tracker never raises and never blocks the stage."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one step."""

    def close(self) -> None:
        """Flushes what is buffered."""


class StopSignal:
    """Set once, from another thread or a signal handler, when the stage should stop.

    A plain flag: with a lock, a signal that interrupts the handler of another would wait for it for ever.
    """

    def __init__(self) -> None:
        self.asked, self.why = False, ""

    def ask(self, why: str) -> None:
        """Asks the stage to stop; the first reason stands."""
        if not self.asked:
            self.why = why
            self.asked = True


class Context:
    """What a running stage may do besides computing.

    Args:
        folder: the attempt's own folder; `output`, `scratch` and checkpoints lie in it.
        uses: the config keys that the stage `uses`.
        resume: the checkpoint to go on from, already verified and copied into this attempt.
        former: the product of an earlier version of this stage, made from the same inputs, if there is one
            (read only); only for stages that ship here, see `orchestrator.registry.FORMER`.
        attempt: the number of this attempt, from 1.
        num_threads: CPU threads that the stage may use.
        checkpoint_interval_s: seconds between the checkpoints that `checkpoint_due` asks for.
        trackers: where `log` sends metrics.
        stop: tells that a stop was asked.
        fence: called before each checkpoint; raises `StopRequested` when another attempt took over.
        report_progress: told (step, number of steps) for the heartbeat.
        keep: number of this attempt's own checkpoints kept, at least 2.
        keeps_work: whether the next attempt could find what is in `work`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        uses: Config | None = None,
        resume: Checkpoint | None = None,
        former: Path | None = None,
        attempt: int = 1,
        num_threads: int = 1,
        checkpoint_interval_s: float = 60.0,
        trackers: Sequence[Tracker] = (),
        stop: StopSignal | None = None,
        fence: Callable[[], None] = lambda: None,
        report_progress: Callable[[int, int | None], None] = lambda step, num_steps: None,
        keep: int = 2,
        keeps_work: bool = True,
    ) -> None:
        self.folder, self.attempt, self.num_threads = folder, attempt, num_threads
        self.uses = uses if uses is not None else Config({}, declared="uses")
        self.resume = resume
        self.former = former
        self.retirements: dict[str, dict[str, tuple[str, ...]]] = {}
        self.output, self.scratch = folder / "output", folder / "scratch"
        self._checkpoints = folder / "checkpoints"
        self._interval_s, self._trackers, self._keep = checkpoint_interval_s, tuple(trackers), max(2, keep)
        self._stop, self._fence, self._report = stop or StopSignal(), fence, report_progress
        self._last_checkpoint_s = time.monotonic()
        self._keeps_work = keeps_work
        self.saw_stop = False
        """Whether the stage has read that a stop was asked."""
        for path in (self.output, self.scratch, self._checkpoints):
            path.mkdir(parents=True, exist_ok=True)

    def log(self, step: int, *, num_steps: int | None = None, **metrics: float) -> None:
        """Records metrics of a step (counted from 1) and reports progress; never raises, never blocks."""
        number = int(step)  # a step may come as a library's own integer
        self.report(number, num_steps=num_steps)
        for tracker in self._trackers:
            tracker.log(number, metrics)

    @property
    def work(self) -> Path:
        """A folder that the next attempt goes on with, whatever is in it; made at the first use.

        What is to become part of the product is copied into `output`, or named by the stage's `keep`.

        Raises:
            StageFailure: the store is a bucket, which has no such folders.
        """
        if not self._keeps_work:
            raise StageFailure("config", "a bucket keeps no work folders: save checkpoints instead")
        path = self.folder / "work"
        path.mkdir(exist_ok=True)
        return path

    def report(self, step: int, *, num_steps: int | None = None) -> None:
        """Reports progress alone, without metrics."""
        self._report(int(step), None if num_steps is None else int(num_steps))

    @property
    def stop_asked(self) -> bool:
        """Whether the stage should save a checkpoint and end."""
        self.saw_stop |= self._stop.asked
        return self._stop.asked

    def checkpoint_due(self, step: int) -> bool:
        """Tells whether to checkpoint now: the interval is over, or a stop was asked."""
        return self.stop_asked or time.monotonic() - self._last_checkpoint_s >= self._interval_s

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """Yields an empty folder to save into; on leaving, makes it durable and writes its manifest last.

        Raises:
            StopRequested: before anything is written, when a later attempt or a product exists.
            OSError: the file system refused; an unfinished folder is never taken for a checkpoint.
        """
        self._fence()
        final = self._checkpoints / f"{step:08d}"
        if (final / MANIFEST).exists():  # adopted, or saved just before: the same step holds the same state
            unused = self.scratch / f"discarded-{step:08d}"
            unused.mkdir(parents=True, exist_ok=True)
            yield unused
            shutil.rmtree(unused, ignore_errors=True)
        else:
            shutil.rmtree(final, ignore_errors=True)  # a torn one of our own
            final.mkdir()
            try:
                yield final
                write_checkpoint_manifest(final, step=step, attempt=self.attempt)
            except BaseException:
                shutil.rmtree(final, ignore_errors=True)  # of no use, and in the way on a full disk
                raise
            fsync_path(self._checkpoints)
            self._rotate()
        self._last_checkpoint_s = time.monotonic()

    def seal(self, folder: Path, step: int) -> None:
        """Makes a whole checkpoint count that another program saved, by the name of its step.

        Raises:
            StopRequested: before anything is written, when a later attempt or a product exists.
            OSError: a file changed or vanished meanwhile, or the file system refused.
        """
        self._fence()
        write_checkpoint_manifest(folder, step=step, attempt=self.attempt)
        fsync_path(folder.parent)

    def _rotate(self) -> None:
        folders = (path.parent for path in self._checkpoints.glob(f"[0-9]*/{MANIFEST}"))
        whole = sorted(folders, key=lambda folder: int(folder.name))
        if len(whole) > self._keep:
            self._fence()
        for old in whole[: -self._keep]:
            (old / MANIFEST).unlink()  # first, so that a half-deleted folder never counts
            shutil.rmtree(old, ignore_errors=True)

    def retire(
        self, stage: str, *, best: Sequence[str] | None = None, none: Sequence[str] | None = None
    ) -> None:
        """Says which files of an input are still worth keeping once this stage is done; deletes nothing.

        The sweep's ``policy.retention`` decides. Under ``all``, which is the default, every file stays. Under
        the others a file goes when every stage of the sweep that takes the product is done and lets it go.

        Args:
            stage: the input, all its instances.
            best: patterns of what to keep under ``best``, where ``*`` also matches ``/``; None for all files.
            none: the same under ``none``, for example of a small summary, or ``[]``.

        Raises:
            StageFailure: a pattern is no text, or a text stands where a list should.
        """
        for policy, patterns in (("best", best), ("none", none)):
            if isinstance(patterns, str) or not all(isinstance(p, str) for p in patterns or ()):
                raise StageFailure("code", f"retire({stage!r}, {policy}={patterns!r}): a list of patterns")
        named = {"best": best, "none": none}
        self.retirements[stage] = {p: tuple(keep) for p, keep in named.items() if keep is not None}

    def stop_if_asked(self) -> None:
        """Ends the attempt as `released` when a stop was asked; call it right after a checkpoint.

        Raises:
            StopRequested: always, when a stop was asked.
        """
        if self.stop_asked:
            raise StopRequested(self._stop.why)

    def close(self) -> None:
        """Flushes the trackers."""
        for tracker in self._trackers:
            tracker.close()


def write_checkpoint_manifest(folder: Path, *, step: int, attempt: int) -> None:
    """Makes a checkpoint folder durable, then writes its manifest atomically, which makes it count.

    Raises:
        StageFailure: the stage saved a file under the manifest's own name.
    """
    if (folder / MANIFEST).exists():
        raise StageFailure("code", f"a checkpoint may not hold a file {MANIFEST} of the stage's own")
    contain(folder)
    fsync_tree(folder)
    manifest = CheckpointManifest(step=step, attempt=attempt, files=scan(folder))
    temporary = folder.parent / f".{folder.name}.{MANIFEST}"
    with temporary.open("wb") as stream:
        stream.write(msgspec.json.encode(manifest))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / MANIFEST)
    fsync_path(folder)

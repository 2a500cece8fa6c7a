"""The stage API: everything that a stage ``main(config, inputs, context) -> list[Row]`` uses of Polysweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.errors import StageFailure, StopRequested
from orchestrator.errors import StopSignal as StopSignal
from orchestrator.saving import PHASES, Begin, Checkpoints, Phase, PhaseClock
from orchestrator.saving import Checkpoint as Checkpoint
from orchestrator.saving import Tracker as Tracker
from orchestrator.spec import Config as Config
from orchestrator.spec import StageSpec as StageSpec

Row = dict[str, Any]
"""A result row: column name to a JSON scalar."""


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
        """Return the one product folder of a stage without `each`."""
        folders = self.each(stage)
        if set(folders) != {""}:
            raise StageFailure(
                "code", f"stage {stage!r} has an instance each for {sorted(folders)}: use each()"
            )
        return folders[""]

    def each(self, stage: str) -> Mapping[str, Path]:
        """Return instance label to product folder, in the order of the config's list."""
        if stage not in self._folders:
            raise StageFailure("code", f"no input {stage!r}: name it in the stage's `after`")
        return self._folders[stage]


class _Reports(NamedTuple):
    """The calls by which a stage reports: progress, seconds that a stop takes, and values of `uses`."""

    progress: Callable[[int, int | None], None]
    stop: Callable[[float], None]
    adapted: Callable[[dict[str, Any]], None]


class Context:
    """The services for a running stage.

    Args:
        folder: the attempt's own folder; `output`, `scratch` and checkpoints lie in it.
        uses: the config keys that the stage `uses`.
        resume: the checkpoint to resume from, already verified and copied into this attempt.
        former: the product of an earlier version of this stage, made from the same inputs (read only); None
            without one. Only for stages that ship here, see `orchestrator.registry.FORMER`.
        attempt: the number of this attempt, from 1.
        num_threads: CPU threads that the stage may use.
        checkpoint_interval_s: seconds between the checkpoints that `checkpoint_due` suggests.
        trackers: the destinations of metrics.
        stop: set when a stop is requested.
        fence: called before each checkpoint; raises `StopRequested` when another attempt took over.
        report_progress: called with (step, number of steps) for the heartbeat.
        keep: number of this attempt's own checkpoints to keep, at least 2.
        keeps_work: whether the next attempt could find what is in `work`.
        report_stop: called with the seconds that the stage needs to save and end after a stop request.
        report_adapted: called with the keys of `uses` whose values the stage replaced.
        clock: measures the phases.
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
        report_stop: Callable[[float], None] = lambda seconds: None,
        report_adapted: Callable[[dict[str, Any]], None] = lambda values: None,
        clock: PhaseClock | None = None,
    ) -> None:
        self.folder = folder
        self.attempt = attempt
        self.num_threads = num_threads
        self.uses = uses if uses is not None else Config({}, declared="uses")
        self.resume = resume
        self.former = former
        self.retirements: dict[str, dict[str, tuple[str, ...]]] = {}
        self._trackers = tuple(trackers)
        self._stop = stop or StopSignal()
        self._reports = _Reports(report_progress, report_stop, report_adapted)
        self.saves = Checkpoints(
            folder / "checkpoints",
            attempt=attempt,
            interval_s=checkpoint_interval_s,
            keep=max(2, keep),
            fence=fence,
            clock=clock or PhaseClock(),
        )
        self._keeps_work = keeps_work
        for path in (self.output, self.scratch, folder / "checkpoints"):
            path.mkdir(parents=True, exist_ok=True)

    @property
    def clock(self) -> PhaseClock:
        """The seconds that the attempt has spent in each phase."""
        return self.saves.clock

    @property
    def output(self) -> Path:
        """The folder of the product."""
        return self.folder / "output"

    @property
    def scratch(self) -> Path:
        """A folder for temporary files, which is deleted after the attempt."""
        return self.folder / "scratch"

    def log(self, step: int, *, num_steps: int | None = None, **metrics: float) -> None:
        """Record metrics of a step, an integer from 1 on, and report progress. No tracker fails a stage."""
        number = int(step)  # the step may be an integer type of a library, which JSON cannot hold
        self.report(number, num_steps=num_steps)
        for tracker in self._trackers:
            tracker.log(number, metrics)

    @property
    def work(self) -> Path:
        """The work folder, whose contents the next attempt finds again; made at the first use.

        To make files part of the product, copy them into `output`, or name them in the stage's `keep`.

        Raises:
            StageFailure: the store is a bucket, which has no such folders.
        """
        if not self._keeps_work:
            raise StageFailure("config", "a bucket keeps no work folders: save checkpoints instead")
        path = self.folder / "work"
        path.mkdir(exist_ok=True)
        return path

    def report(self, step: int, *, num_steps: int | None = None) -> None:
        """Report progress alone, without metrics."""
        self._reports.progress(int(step), None if num_steps is None else int(num_steps))

    def adapt(self, values: Mapping[str, Any]) -> None:
        """Record values by key that the stage chose in place of those in `uses`, as a rung of `remedies`."""
        if values:
            self._reports.adapted(dict(values))

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Count the time within as this phase in what the sweep cost; all other time is ``compute``.

        Raises:
            StageFailure: there is no such phase.
        """
        if name not in PHASES:
            raise StageFailure("code", f"no phase {name!r}: one of {', '.join(PHASES)}")
        return self.clock.during(name)

    @property
    def stop_asked(self) -> bool:
        """Whether the stage should save a checkpoint and end."""
        self._stop.seen |= self._stop.asked
        return self._stop.asked

    def checkpoint_due(self, step: int, *, num_steps: int | None = None) -> bool:
        """Return whether to save a checkpoint now: the interval is over, or a stop was requested.

        The interval is the configured one, or 33 times the seconds for which the last save held the stage up.

        Args:
            step: the last step done.
            num_steps: of the whole work, if known: near its end only a stop is worth a checkpoint.

        Raises:
            BaseException: what stopped the last `checkpoint_later`.
        """
        self.saves.raise_error()
        step_s = self.clock.step_s()
        # A stop is noticed at the next step, waits for a save that is being written, and saves once more.
        if self.saves.save_s:
            self._reports.stop(step_s + 2 * self.saves.save_s)
        left_s = math.inf if num_steps is None else (num_steps - step) * step_s
        return self.stop_asked or self.saves.is_due(left_s)

    def expect_save(self, seconds: float) -> None:
        """State how long a checkpoint will take, until the first one is measured.

        A stop leaves a stage that time and that of a step, or `policy.grace_s` if that is more.
        """
        self.saves.expected_s = seconds

    def checkpoint(self, step: int) -> AbstractContextManager[Path]:
        """Yield an empty folder to save into; afterwards make it durable and write its manifest last.

        Raises:
            StopRequested: a later attempt or a product exists; raised before anything is written.
            OSError: the file system refused. An unfinished folder never counts as a checkpoint.
        """
        return self.saves.saved(step)

    def checkpoint_later(self, step: int, begin: Begin) -> None:
        """Save a checkpoint in a thread while the stage goes on; wait first for one that is being written.

        It counts once it is complete. A crash until then leaves the former checkpoint as the newest one::

            def begin(folder):
                state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
                return lambda: save_file(state, folder / "model.safetensors")

        Args:
            step: after which it is saved.
            begin: copies the state, and returns the function that writes the copy into the folder.

        Raises:
            StopRequested: as `checkpoint`.
            BaseException: what stopped the last one.
        """
        self.saves.later(step, begin)

    def finish_checkpoint(self) -> None:
        """Wait until the last `checkpoint_later` is complete; call it before `stop_if_asked`.

        Raises:
            BaseException: what stopped it.
        """
        self.saves.wait()

    def seal(self, folder: Path, step: int) -> None:
        """Make a checkpoint folder count that another program saved completely under the name of its step.

        Raises:
            StopRequested: as `checkpoint`.
            OSError: a file changed or vanished meanwhile, or the file system refused.
        """
        self.saves.seal(folder, step)

    def retire(
        self, stage: str, *, best: Sequence[str] | None = None, none: Sequence[str] | None = None
    ) -> None:
        """Declare which files of an input are worth keeping once this stage is done; delete nothing.

        Only the stages that read a product can decide that. The sweep's ``policy.retention`` selects. Under
        ``all``, the default, every file stays. Under ``best`` or ``none``, a file is deleted when all stages
        that take the product are done and none of them keeps it::

            context.retire("train", best=["metrics.json", "best/*"], none=["metrics.json"])

        Args:
            stage: the input stage, with all its instances.
            best: patterns of files to keep under ``best``, where ``*`` also matches ``/``; None for all
                files.
            none: the same under ``none``, for example a small summary, or ``[]``.

        Raises:
            StageFailure: a pattern is not text, or a text stands where a list should.
        """
        for policy, patterns in (("best", best), ("none", none)):
            if isinstance(patterns, str) or not all(isinstance(p, str) for p in patterns or ()):
                raise StageFailure("code", f"retire({stage!r}, {policy}={patterns!r}): a list of patterns")
        named = {"best": best, "none": none}
        self.retirements[stage] = {p: tuple(keep) for p, keep in named.items() if keep is not None}

    def stop_if_asked(self) -> None:
        """Raise `StopRequested` if a stop was requested; call it right after a checkpoint."""
        if self.stop_asked:
            raise StopRequested(self._stop.why)

    def close(self) -> None:
        """Flush the trackers."""
        for tracker in self._trackers:
            tracker.close()

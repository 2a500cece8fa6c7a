"""The `rehearse` stage: the first minutes of a class's trainings and evaluations, before hours are spent.

Nothing here trains, saves or scores by itself. The stages `train` and `evaluate` run as they are, on the
longest rows of the class, so what fails in them fails here first::

    train     step 1 on the longest batch, a checkpoint, the end of the process
    train     in a new process: from the checkpoint on, steps 2 and 3
    evaluate  the last weights, on one validation item and one test item

A class of cells that are not trained has the last part alone, on one test item.

Before all that, the scorer gets the references of the class's own items. One that it calls wrong would make
each model look worse than it is.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from orchestrator.errors import StageFailure, StopRequested
from orchestrator.saving import MANIFEST
from orchestrator.sft import evaluate, runtime, train
from orchestrator.sft.base import SHORT_S
from orchestrator.sft.batches import setting
from orchestrator.sft.data import load_items
from orchestrator.sft.distributed import launcher, parallel
from orchestrator.sft.memory import MAX_PACK_TOKENS
from orchestrator.sft.prepare import COUNTS, SPLITS, count
from orchestrator.sft.shards import Example, Rows, rows_of, write_shard
from orchestrator.stage import Checkpoint, Config, Context, Inputs, Row, StopSignal
from orchestrator.tasks.base import Split, load_task

NUM_STEPS = 3
"""Steps of the training: one before the checkpoint, one to warm up after it, and one that is measured."""
LEAST_SCORING_S = 180.0
"""Least seconds that two answers may take with the load of the model; else half of all before. Ours."""
_PHASES = 4
NUM_WIDEST = 2
"""Widest packs in a step of each device: the second one finds the gradients of the first. Ours."""
MAX_NEW_TOKENS = 128
"""Most tokens of an answer. Longer ones take time, and show only how much memory their keys need; ours."""
MAX_NAMED = 3
"""Most items that a message names."""


class _Speeds:
    """A tracker that keeps the speed of the last step.

    Attributes:
        tokens_per_second: of the last step.
    """

    def __init__(self) -> None:
        self.tokens_per_second = 0.0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step."""
        self.tokens_per_second = metrics.get("tokens_per_second", self.tokens_per_second)

    def close(self) -> None:
        """Do nothing: nothing is buffered."""


def main(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Rehearse a class of cells, and return one row with what was measured.

    Raises:
        StageFailure: what `train` or `evaluate` raised; or the scorer calls a reference wrong (cause
            ``data``).
    """
    phases = _Phases(context)
    # Before anything is computed: see `Spare`.
    spares = [launcher.Spare() for _ in range(2)] if "prepare" in inputs else []
    runtime.start(context, seed=0)
    languages = list(inputs.each("prepare")) if "prepare" in inputs else []
    num_references = check_references(config, context.uses, languages)
    phases.end(1)
    tree = settings_of(config, context.uses, languages[:1])
    trained = _Trained(inputs)
    if languages:
        trained = _rehearse_training(config, inputs, context, tree, languages, phases, spares)
    third = _within(context, "third", tree)
    seconds = max(LEAST_SCORING_S, phases.seconds / 2)
    with _at_most(seconds):
        scored = evaluate.main(Config(tree), trained.inputs, third)
    phases.end(4)
    return [
        {
            **{name: scored[0][name] for name in ("model", "family", "num_parameters", "task")},
            "num_languages": len(languages),
            "num_references": num_references,
            **trained.measured,
            "num_scored": sum(row["num_items"] for row in scored),
        }
    ]


class _Trained(NamedTuple):
    """The inputs of the evaluation, and what was measured while they were made."""

    inputs: Inputs
    measured: Mapping[str, Any] = {}


def _rehearse_training(
    config: Config,
    inputs: Inputs,
    context: Context,
    tree: dict[str, Any],
    languages: Sequence[str],
    phases: _Phases,
    spares: Sequence[launcher.Spare],
) -> _Trained:
    """Train a few steps on the longest rows of the class, with a checkpoint and a new process between."""
    shard = context.scratch / "shard"
    rows = longest_rows(config, inputs, context, languages)
    tree["trainer"]["global_batch_size"] = sum(row.split == SPLITS[0] for row in rows)
    _write(rows, shard, language=languages[0], limit=config.trainer.max_length_tokens)
    given = _with_input(inputs, "prepare", {languages[0]: shard})

    stopping = StopSignal()
    stopping.ask("rehearsed")  # it saves a checkpoint after its first step, and ends
    first = _within(context, "first", tree, stop=stopping)
    try:
        # On a GPU in a process of its own too, whose memory is free afterwards.
        on_gpu = runtime.device_of(context.uses.device).type != "cpu"
        _train(tree, given, first, spares[0], is_new=on_gpu)
    except StopRequested:
        phases.end(2)
    folders = [path.parent for path in (first.folder / "checkpoints").glob(f"*/{MANIFEST}")]
    if not folders:  # a training goes on without one; here the next step would have nothing to go on from
        raise StageFailure("storage", "No space left on device for the checkpoint of the rehearsal")
    saved = Checkpoint(int(folders[0].name), folders[0])
    speeds = _Speeds()
    second = _within(context, "second", tree, resume=saved, trackers=(speeds,))
    _train(tree, given, second, spares[1], is_new=True)
    phases.end(3)
    found = json.loads((second.output / train.SUMMARY).read_text(encoding="utf-8"))
    if len(found["loss"]) != NUM_STEPS:
        raise StageFailure("code", f"{len(found['loss'])} of {NUM_STEPS} steps after the checkpoint")
    measured = {
        "longest_tokens": max(len(row.input_ids) for row in rows),
        "train_tokens": found["train_tokens"],
        "tokens_per_second": round(speeds.tokens_per_second, 1),
        "peak_memory_gib": found["peak_memory_gib"],
        "num_processes": found["num_processes"],
        "save_seconds": round(first.saves.save_s, 3),
    }
    return _Trained(_with_input(given, "train", {"": second.output}), measured)


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise an error in the block after some seconds. A hang then costs minutes, not the stage's limit.

    The signal interrupts Python code, such as a scorer's loop, and no call into a library that never returns.

    Args:
        seconds: that the block may take.

    Raises:
        StageFailure: the block took longer (cause ``code``: it would take as long again).
    """
    if threading.current_thread() is not threading.main_thread():  # only that thread gets signals
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        late = f"two answers were not generated and scored in {seconds:.0f} s"
        raise StageFailure("code", f"{late}: the task or the generation hangs")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_references(config: Config, uses: Config, languages: Sequence[str]) -> int:
    """Have the scorer score the references of all items on which the class's cells are scored.

    Args:
        config, uses: of the stage.
        languages: of the class's mixtures.

    Returns:
        The number of references.

    Raises:
        StageFailure: one is scored as wrong (cause ``data``).
    """
    task = load_task(config.task)
    wrong: list[str] = []
    number = 0
    asked = [(Split.VALIDATION, language) for language in languages]
    asked += [(Split.TEST, language) for language in uses.evaluation.languages]
    for split, language in asked:
        for item in load_items(task, split, language, config["items"], uses):
            if not item.response.strip():  # a test set may have answers alone
                continue
            number += 1
            if not task.is_correct(task.stop(item.response), item.gold, language, truncated=False):
                wrong.append(f"{split} {language} {item.id}")
    if wrong:
        named = ", ".join(wrong[:MAX_NAMED]) + (", ..." if len(wrong) > MAX_NAMED else "")
        raise StageFailure(
            "data",
            f"{len(wrong)} of {number} reference answers of {task.name} are scored as wrong: {named};"
            f" their response and their gold answer contradict each other",
        )
    return number


def settings_of(config: Config, uses: Config, languages: Sequence[str]) -> dict[str, Any]:
    """Return the config with which `train` and `evaluate` rehearse.

    Args:
        config, uses: of the stage.
        languages: of the rehearsal.
    """
    tree = _merged(config.to_dict(), uses.to_dict())
    tree |= {"seed": 0, "languages": list(languages)}
    # One epoch, whose weights are written once.
    tree["trainer"]["num_epochs"] = 1
    # A training of hours compiles its layers, which changes its memory. So must these few steps.
    if tree["trainer"].get("compile") == "auto" and runtime.device_of(tree["device"]).type == "cuda":
        tree["trainer"]["compile"] = True
    tree["items"] |= {"num_validation": 1, "num_test": 1}
    tree["evaluation"]["languages"] = tree["evaluation"]["languages"][:1]
    most = tree["evaluation"]["max_new_tokens"]
    tree["evaluation"]["max_new_tokens"] = min(most, MAX_NEW_TOKENS)
    return tree


def longest_rows(config: Config, inputs: Inputs, context: Context, languages: Sequence[str]) -> list[Example]:
    """Return the longest rows of the class for a step, and the longest one for validation.

    There are as many as a step has, or as fill `NUM_WIDEST` micro-batches on each device: more of them take
    time, and show nothing else.
    """
    pad = runtime.padding(runtime.load_tokenizer(inputs, context.uses))
    sizes = {SPLITS[0]: config.trainer.global_batch_size, SPLITS[1]: 1}
    uses = Config(_merged(config.to_dict(), context.uses.to_dict())).trainer
    if uses.micro_batch_size is None:
        device = runtime.device_of(context.uses.device)
        number = parallel.num_processes(uses.num_processes, device, section="trainer")
        trained = rows_of(inputs.each("prepare"), languages, SPLITS[0], pad_token_id=pad)
        widest = max(MAX_PACK_TOKENS, setting(uses, "micro_batch_tokens", None) or 0)
        tokens = np.cumsum(np.sort(trained.lengths)[::-1])
        enough = 1 + int(np.searchsorted(tokens, NUM_WIDEST * widest * number))
        sizes[SPLITS[0]] = min(sizes[SPLITS[0]], max(number, enough))
    return [
        row
        for split, size in sizes.items()
        for row in _longest(rows_of(inputs.each("prepare"), languages, split, pad_token_id=pad), split, size)
    ]


def _longest(rows: Rows, split: str, number: int) -> Iterator[Example]:
    """Yield the longest rows of a split."""
    for row in np.argsort(-rows.lengths, kind="stable")[:number]:
        yield Example(split, str(row), int(rows.first_targets[row]), rows.tokens(row).tolist())


def _write(rows: Sequence[Example], folder: Path, *, language: str, limit: int) -> None:
    """Write a shard as `prepare` does, with the rows of a step for each of the steps."""
    folder.mkdir(parents=True)
    rows = [
        row._replace(item_id=f"{row.item_id}.{step}")
        for row in rows
        for step in range(NUM_STEPS if row.split == SPLITS[0] else 1)
    ]
    write_shard(rows, folder)
    counts = {split: count(of, of) for split in SPLITS if (of := [row for row in rows if row.split == split])}
    report = {"language": language, "max_length_tokens": limit, **counts}
    (folder / COUNTS).write_text(json.dumps(report), encoding="utf-8")


def _train(tree: dict[str, Any], inputs: Inputs, context: Context, spare: launcher.Spare, **how: Any) -> None:
    """Run the `train` stage in the processes that a spare starts; see `parallel.in_processes`."""
    how |= {"section": "trainer", "spare": spare}
    parallel.in_processes(train.train, Config(tree), inputs, context, **how)


def _within(context: Context, name: str, tree: dict[str, Any], **how: Any) -> Context:
    """Return a context for a stage that runs within this one, in a folder that does not stay."""
    return Context(
        context.scratch / name,
        uses=Config(tree, declared="uses"),
        attempt=context.attempt,
        num_threads=context.num_threads,
        checkpoint_interval_s=3600.0,
        **how,
    )


def _with_input(inputs: Inputs, stage: str, folders: Mapping[str, Path]) -> Inputs:
    """Return inputs in which those of one stage are others."""
    kept = {name: inputs.each(name) for name in ("tokenizer", "base", "prepare") if name in inputs}
    return Inputs({**kept, stage: folders})


class _Phases:
    """The phases of a rehearsal. A stop ends it between two of them, and nothing is kept of it.

    One that began less than `SHORT_S` ago goes on instead: it ends before anybody kills it, and would never
    end where stops come more often than that.
    """

    def __init__(self, context: Context) -> None:
        self._context, self._start_s = context, time.monotonic()
        self._was_asked = context.stop_asked

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start_s

    def end(self, number: int) -> None:
        """Report progress after a phase, and end here if a stop was requested."""
        self._context.report(number, num_steps=_PHASES)
        if self._was_asked or self.seconds >= SHORT_S:
            self._context.stop_if_asked()


def _merged(one: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return two trees as one."""
    for name, value in other.items():
        inner = one.get(name)
        one[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return one

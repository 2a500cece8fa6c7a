"""Answers to the items of a cell, generated in fixed batches or kept from earlier work, and their scores.

A batch is generated whole or not at all. Its items depend on the items, their languages and
`evaluation.batch_size` alone. After an interruption, batches whose answers are all in the checkpoint are
skipped, and every other batch is generated again in full. So neither a resume nor the number of processes
changes a text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from orchestrator.errors import NotKept
from orchestrator.registry import GENERATORS, lookup
from orchestrator.sft import runtime
from orchestrator.sft.data import load_items
from orchestrator.sft.distributed import parallel
from orchestrator.sft.generators.base import (
    Engine,
    GeneratedText,
    GeneratorSettings,
    Share,
    batches,
    generate,
)
from orchestrator.sft.predictions import PREDICTIONS as PREDICTIONS
from orchestrator.sft.predictions import Prediction, Score, read, scores_of, write
from orchestrator.sft.predictions import select as select
from orchestrator.sft.prepare import encode_prompt
from orchestrator.stage import Config, Context, Inputs
from orchestrator.tasks.base import Item, Task, load_task

_Key = tuple[str, int | None, str, str]
"""Split, step, language and item id: what identifies a prediction."""


class _Items:
    """The items of a cell and the tokens of their prompts. Each is made or read once.

    Args:
        task: what makes the items.
        tokenizer: encodes the prompts.
        config, uses: of the stage.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, config: Config, uses: Config) -> None:
        self._task = task
        self._tokenizer = tokenizer
        self._config = config
        self._uses = uses
        self._read: dict[tuple[str, str], Sequence[Item]] = {}
        self._encoded: dict[tuple[str, str], list[int]] = {}

    def of(self, split: str, language: str) -> Sequence[Item]:
        """Return the items of a split and language."""
        key = (split, language)
        if key not in self._read:
            self._read[key] = load_items(self._task, split, language, self._config["items"], self._uses)
        return self._read[key]

    def tokens(self, item: Item) -> list[int]:
        """Return the tokens of an item's prompt."""
        key = (item.language, item.prompt)
        if key not in self._encoded:
            self._encoded[key] = encode_prompt(self._tokenizer, item.prompt)
        return self._encoded[key]


class _LazyEngine:
    """The engine that generates answers, opened at its first use, and the weights that it has loaded.

    Args:
        tokenizer: decodes the tokens.
        evaluation: that section of the config.
        device: where to compute, as `device_of` reads it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, evaluation: Config, device: str) -> None:
        self._tokenizer = tokenizer
        self._evaluation = evaluation
        self._device = device
        self._engine: Engine | None = None
        self._loaded: Path | None = None

    def load(self, folder: Path) -> Engine:
        """Return the engine with the weights of a folder loaded."""
        # Scoring kept answers needs no GPU, so there need not be one.
        if self._engine is None:
            tokenizer = self._tokenizer
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
            settings = GeneratorSettings(
                device=runtime.device_of(self._device),
                precision=self._evaluation.precision,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=pad,
            )
            self._engine = lookup(GENERATORS, self._evaluation.engine, kind="engine")(settings)
        if self._loaded != folder:
            self._engine.load(folder)
            self._loaded = folder
        return self._engine

    def generate(
        self,
        folder: Path,
        prompts: Sequence[Sequence[Sequence[int]]],
        *,
        stop: Callable[[str], str],
        share: Share,
    ) -> list[list[GeneratedText]]:
        """Return the answers of a folder's weights to batches of encoded prompts; see `generate`."""
        return generate(
            self.load(folder),
            self._tokenizer,
            prompts,
            stop=stop,
            max_new_tokens=self._evaluation.max_new_tokens,
            share=share,
        )


class Scorer:
    """Generator and scorer of batches. It reuses answers of a checkpoint or of an earlier stage version.

    Args:
        config, inputs, context: of the stage.
        is_dry: generate and report nothing; raise `NotKept` where generation would be needed.
    """

    def __init__(self, config: Config, inputs: Inputs, context: Context, *, is_dry: bool = False) -> None:
        self._config = config
        self._context = context
        self._is_dry = is_dry
        self._task = load_task(config.task)
        tokenizer = runtime.load_tokenizer(inputs, context.uses)
        self._items = _Items(self._task, tokenizer, config, context.uses)
        self._engine = _LazyEngine(tokenizer, config.evaluation, context.uses.device)
        self._share = Share(parallel.rank(), parallel.world_size())
        # Answers from the checkpoint are final. Those of an earlier version are scored again first.
        self._answered = _by_key(read(context.resume.folder) if context.resume else [])
        self._former = _by_key(read(context.former) if context.former else [])
        self._scored: list[tuple[str, int | None, Sequence[str]]] = []
        self._num_done = 0
        self._num_batches = 0

    @property
    def kept_steps(self) -> set[int]:
        """Steps of which an earlier version of the stage kept predictions."""
        return {step for _, step, *_ in self._former if step is not None}

    @property
    def uses(self) -> Config:
        """The config keys that the stage uses."""
        return self._context.uses

    def plan(self, splits: Sequence[str]) -> None:
        """Count the batches of all splits that will be scored, as the total for progress reports."""
        self._num_batches = sum(len(self._batches(split, self._languages(split))) for split in splits)

    def scores(self) -> list[Score]:
        """Return the scores so far."""
        return scores_of(self._predictions())

    def score(self, split: str, step: int | None, folder: Path, languages: Sequence[str]) -> None:
        """Score the weights of a folder on the languages of a split. Existing answers are kept.

        Args:
            split: validation or test.
            step: of the weights; None for the untrained base.
            folder: of the weights.
            languages: of the items.

        Raises:
            NotKept: in a dry run, if existing answers do not suffice.
            StopRequested: after a checkpoint, if a stop was requested.
        """
        self._scored.append((split, step, languages))
        left, num_former = [], 0
        for batch in self._batches(split, languages):
            # All or nothing: generating only the missing items would change which prompts are computed
            # together.
            if all(_key(split, step, item) in self._answered for item in batch):
                self._num_done += 1
            elif self._take_former(split, step, batch):
                num_former += 1
            else:
                left.append(batch)
        self._num_done += num_former
        if self._is_dry and left:
            missing = f"{len(left)} batches of {split} items" + (f" at step {step}" if step else "")
            raise NotKept("data", f"kept predictions do not suffice: {missing} are missing")
        if num_former and not self._is_dry:
            self._report(split, step, languages, {}, is_last=not left)
        while left:
            # A round: each process gets one batch, then all exchange their answers. An engine that forms its
            # own batches is fastest with the items of all languages at once.
            size = self._share.size if self._engine.load(folder).is_batched else len(left)
            now, left = left[:size], left[size:]
            metrics = self._generate(split, step, folder, now)
            self._num_done += len(now)
            self._report(split, step, languages, metrics, is_last=not left)

    def write(self, folder: Path) -> None:
        """Write all predictions so far. Only rank 0 writes."""
        if self._share.rank == 0:
            write(self._predictions(), folder)

    def _predictions(self) -> list[Prediction]:
        """Return the predictions in the order of the items, whatever the order of the work was."""
        keys = (
            _key(split, step, item)
            for split, step, languages in self._scored
            for language in languages
            for item in self._items.of(split, language)
        )
        return [self._answered[key] for key in keys if key in self._answered]

    def _languages(self, split: str) -> Sequence[str]:
        """Return the languages of a split: validation items are in those of the mixture."""
        languages: Sequence[str] = (
            self._config.evaluation.languages if split == "test" else self._config.languages
        )
        return languages

    def _batches(self, split: str, languages: Sequence[str]) -> list[list[Item]]:
        """Return the fixed batches of a split's items."""
        items = {language: self._items.of(split, language) for language in languages}
        return batches(items, self._config.evaluation.batch_size, lambda item: len(self._items.tokens(item)))

    def _take_former(self, split: str, step: int | None, batch: Sequence[Item]) -> bool:
        """Score again what an earlier version generated for a batch. Return False unless all of it exists.

        An earlier answer counts only if its prompt is the same.
        """
        found = [self._former.get(_key(split, step, item)) for item in batch]
        # Another prompt under the same id, such as after a change of the template, has no kept answer.
        kept = [one for one, item in zip(found, batch, strict=True) if one and one.prompt == item.prompt]
        if len(kept) < len(batch):
            return False
        for one, item in zip(kept, batch, strict=True):
            text = self._task.stop(one.generated)
            truncated = one.truncated and text == one.generated
            self._keep(split, step, item, GeneratedText(text, one.num_generated_tokens, truncated))
        return True

    def _generate(
        self, split: str, step: int | None, folder: Path, work: Sequence[Sequence[Item]]
    ) -> dict[str, float]:
        """Generate and score some batches. Return the metrics of their speed."""
        start_s = time.monotonic()
        prompts = [[self._items.tokens(item) for item in batch] for batch in work]
        answers = self._engine.generate(folder, prompts, stop=self._task.stop, share=self._share)
        num_items = num_tokens = 0
        for batch, its_answers in zip(work, answers, strict=True):
            for item, answer in zip(batch, its_answers, strict=True):
                self._keep(split, step, item, answer)
                num_items, num_tokens = num_items + 1, num_tokens + answer.num_tokens
        seconds = time.monotonic() - start_s
        return {
            "items_per_second": num_items / seconds,
            "generated_tokens_per_second": num_tokens / seconds,
        }

    def _keep(self, split: str, step: int | None, item: Item, answer: GeneratedText) -> None:
        """Score one answer and keep it as a prediction."""
        is_correct = self._task.is_correct(answer.text, item.gold, item.language, truncated=answer.truncated)
        self._answered[_key(split, step, item)] = Prediction(
            split=split,
            step=step,
            language=item.language,
            item_id=item.id,
            prompt=item.prompt,
            generated=answer.text,
            gold=item.gold,
            correct=bool(is_correct),
            truncated=answer.truncated,
            num_generated_tokens=answer.num_tokens,
        )

    def _report(
        self,
        split: str,
        step: int | None,
        languages: Sequence[str],
        metrics: Mapping[str, float],
        *,
        is_last: bool,
    ) -> None:
        """Log progress and metrics, and save a checkpoint if one is due."""
        metrics = dict(metrics)
        if split == "validation" and is_last:
            scores = [score for score in self.scores() if (score.split, score.step) == (split, step)]
            metrics["validation_accuracy"] = sum(score.accuracy for score in scores) / len(languages)
        self._context.log(self._num_done, num_steps=self._num_batches, **metrics)
        if self._context.checkpoint_due(self._num_done):
            with self._context.checkpoint(self._num_done) as folder:
                self.write(folder)
            self._context.stop_if_asked()


def _key(split: str, step: int | None, item: Item) -> _Key:
    return (split, step, item.language, item.id)


def _by_key(predictions: Sequence[Prediction]) -> dict[_Key, Prediction]:
    return {(one.split, one.step, one.language, one.item_id): one for one in predictions}

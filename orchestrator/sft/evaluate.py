"""The `evaluate` stage: score every epoch on validation items, select one, and test it.

The untrained baseline has no `train` input, so its base is tested as it is. `orchestrator.sft.scoring` keeps
and scores predictions, `orchestrator.sft.generators` holds the engines that generate tokens, and its `base`
makes answers of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from orchestrator.errors import NotKept
from orchestrator.sft import runtime
from orchestrator.sft.checkpoints import EPOCHS, epoch_name
from orchestrator.sft.distributed import parallel
from orchestrator.sft.scoring import Scorer, select
from orchestrator.sft.train import SUMMARY
from orchestrator.stage import Config, Context, Inputs, Row

_MEASURED = (
    *("train_seconds", "train_tokens", "tokens_per_second"),
    *("peak_memory_gib", "num_processes"),
)
"""Columns that each row takes from the summary of the training."""


def main(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Return one row per split and evaluation language. Several GPUs share the generation."""
    rows = rescored(config, inputs, context)
    if rows is None:
        rows = parallel.in_processes(evaluate, config, inputs, context, section="evaluation")
    if "train" in inputs:
        # Other epochs lost the selection, and what they answered is kept in the predictions.
        context.retire("train", **kept_files(rows[0]["selected_step"]))
    return rows


def rescored(config: Config, inputs: Inputs, context: Context) -> list[Row] | None:
    """Return the rows if predictions of an earlier version of this stage suffice, else None.

    A dry run first finds out whether all predictions exist. Only then does the real one start, so that it
    never finds in the middle of its work that it must generate.

    Raises:
        NotKept: they do not suffice, and the weights of an epoch were retired, so nothing can generate the
            rest.
    """
    if context.former is None:
        return None
    scorer = Scorer(config, inputs, context, is_dry=True)
    try:
        _selected(scorer, config, inputs)
    except NotKept as missing:
        if not all(_has_model(folder) for folder in _epochs(scorer, inputs).values()):
            raise
        print(missing, flush=True)
        return None
    print("scored again what an earlier version of this stage generated", flush=True)
    return evaluate(config, inputs, context)


def evaluate(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Do the work of `main` in this process, alone or as one of several."""
    runtime.start(context, seed=config.seed)
    training: Mapping[str, object] = {}
    if "train" in inputs:
        training = json.loads((inputs["train"] / SUMMARY).read_text(encoding="utf-8"))
    scorer = Scorer(config, inputs, context)
    with context.phase("evaluation"):
        selected, tested = _selected(scorer, config, inputs)
    scorer.write(context.output)
    # The weights of an epoch may be retired. Its architecture is that of the base.
    of_model = tested if _has_model(tested) else runtime.base_folder(inputs, scorer.uses)
    common = describe(config, skeleton(of_model), selected, training)
    return [
        {
            **common,
            "eval_language": score.language,
            "split": score.split,
            "num_correct": score.num_correct,
            "num_items": score.num_items,
            "num_truncated": score.num_truncated,
            "accuracy": score.accuracy,
        }
        for score in scorer.scores()
        if score.step == selected
    ]


def _selected(scorer: Scorer, config: Config, inputs: Inputs) -> tuple[int | None, Path]:
    """Score everything. Return the step that validation selected, and the folder of its weights.

    The step is None for an untrained baseline.
    """
    epochs = _epochs(scorer, inputs)
    scorer.plan([*["validation"] * len(epochs), "test"])
    for step, folder in epochs.items():
        scorer.score("validation", step, folder, config.languages)
    selected = select([score for score in scorer.scores() if score.split == "validation"]) if epochs else None
    tested = runtime.base_folder(inputs, scorer.uses) if selected is None else epochs[selected]
    scorer.score("test", selected, tested, config.evaluation.languages)
    return selected, tested


def _epochs(scorer: Scorer, inputs: Inputs) -> dict[int, Path]:
    """Return each epoch's step and folder.

    The folder may be missing: the weights of an epoch may be retired once its predictions are kept.
    """
    if "train" not in inputs:
        return {}
    folder = inputs["train"] / EPOCHS
    # Retired epochs have no folder, but their predictions are still scored and may still be selected.
    steps = {int(path.name) for path in folder.glob("*")} | scorer.kept_steps
    return {step: folder / epoch_name(step) for step in sorted(steps)}


def _has_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def kept_files(selected: int) -> dict[str, list[str]]:
    """Return, by retention policy, patterns of the files of `train` that are still needed.

    Args:
        selected: the step whose weights were selected.
    """
    return {"best": [f"{EPOCHS}/{epoch_name(selected)}/*", "tokenizer/*", SUMMARY], "none": [SUMMARY]}


def skeleton(folder: Path) -> PreTrainedModel:
    """Return a model without its weights. The columns that describe a model need only its architecture."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))


def num_trainable(model: PreTrainedModel) -> int:
    """Return the number of parameters that text trains, without a multimodal model's frozen parts."""
    named = model.named_parameters()
    return sum(weight.numel() for name, weight in named if not any(part in name for part in parallel.FROZEN))


def describe(
    config: Config, model: PreTrainedModel, selected: int | None, training: Mapping[str, object]
) -> Row:
    """Return the columns that all rows of a cell share."""
    return {
        "model": config.model.name,
        "family": config.model.family or model.config.model_type,
        "num_parameters": num_trainable(model),
        "task": config.task.name,
        "num_languages": len(config.languages),
        "languages": ",".join(config.languages),
        "seed": config.seed,
        "pretrained": selected is None,
        "selected_step": selected,
        **{name: training.get(name) for name in _MEASURED},
        "notes": training.get("notes") or None,
    }

"""A finished sweep with kept predictions, whose records are written by hand: nothing is trained."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet

from orchestrator import formats
from orchestrator.core.records import Done, Request, StartRecord
from orchestrator.core.sweep import ComposedSweep, StageInstance
from orchestrator.manifest import scan
from orchestrator.sft.predictions import PREDICTIONS, SCHEMA, Prediction, Score, scores_of, select, write
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.tasks.math import MATH
from tests.store import builders

NAME = "graded"
SWEEP = """
like: smoke
expect_cells: 3
axes:
  model: [tiny-qwen3]
  task: [math]
  mixture:
    none: {languages: []}
    en: {languages: [en]}
    en+es: {languages: [en, es]}
overrides: {data.num_train: 8, data.num_validation: 4, data.num_test: 6, trainer.num_epochs: 2}
report: [accuracy]
"""
STEPS = (1, 2)


def write_store(root: Path) -> None:
    """Write a store with the sweep, done."""
    from orchestrator.compose.main import compose

    file = root.with_name(f"{NAME}.yaml")
    file.write_text(SWEEP)
    sweep = compose(str(file)).sweep
    builders.seal(root, sweep)
    ledger = open_ledger(str(root))
    provenance = {"host": "node7", "executable": "/opt/env/bin/python", "command": f"sweep launch {file}"}
    request = Request(
        nonce=new_nonce(),
        number=1,
        verb="launch",
        revision=1,
        settings=builders.settings(),
        folder=str(root.parent),
        import_paths=(str(root.parent),),
        provenance=provenance,
        by="ada@node7",
        at="2026-01-02T03:04:05Z",
    )
    ledger.add_request(NAME, request)
    rng = random.Random(7)
    for instance in sweep.stages.values():
        _finish(ledger, sweep, instance, rng)


def _finish(ledger: Ledger, sweep: ComposedSweep, instance: StageInstance, rng: random.Random) -> None:
    """Write the records of an attempt at a stage, and its product."""
    spec = layout.stage_spec(instance)
    ledger.objects.put(spec, formats.encode(instance))
    ledger.claim(instance, 1, builders.claim())
    inputs = {taken.digest: 1 for taken in instance.inputs}
    start = StartRecord(parent=None, uses={"device": "cpu"}, provenance={"host": "node7"}, inputs=inputs)
    ledger.put(instance, 1, layout.START, start)
    folder = ledger.objects.workspace(layout.output(instance, 1))
    rows: list[dict[str, Any]] = []
    if instance.stage == "train":
        for step in STEPS:
            epoch = folder / "checkpoints" / f"{step:06d}"
            epoch.mkdir(parents=True)
            (epoch / "config.json").write_text("{}")
            (epoch / "model.safetensors").write_bytes(rng.randbytes(2000))
        summary = {"train_seconds": 1.5, "train_tokens": 900, "tokens_per_second": 600.0}
        summary |= {"peak_memory_gib": 0.2, "num_processes": 1, "num_epochs": len(STEPS)}
        (folder / "training.json").write_text(json.dumps(summary, indent=1))
    elif instance.stage == "evaluate":
        kept = list(answers(instance.reads, rng))
        write(kept, folder)
        rows = rows_of(instance.reads, kept)
    else:
        (folder / "made.json").write_text('{"by": "hand"}')
    done = Done(
        nonce=new_nonce(),
        stage=instance.stage,
        digest=instance.digest,
        generation=1,
        attempt=1,
        files=scan(folder),
        rows=tuple(rows),
        seconds=2.0,
        inputs=inputs,
        code="0123abcd",
    )
    ledger.finish(done)
    ledger.end(instance, 1, builders.end("succeeded"))


def answers(reads: Mapping[str, Any], rng: random.Random) -> Iterator[Prediction]:
    """Yield answers to the items of a cell, about half of them right."""
    trained = reads["languages"]
    splits = [("validation", step, language) for step in STEPS if trained for language in trained]
    # The epoch that validation selects is known only afterwards; every epoch answers the test items alike.
    kept = [*_of(splits, reads, rng)]
    yield from kept
    scores = [score for score in scores_of(kept) if score.split == "validation"]
    selected = select(scores) if scores else None
    yield from _of([("test", selected, name) for name in reads["evaluation"]["languages"]], reads, rng)


def _of(
    splits: list[tuple[str, int | None, str]], reads: Mapping[str, Any], rng: random.Random
) -> Iterator[Prediction]:
    for split, step, language in splits:
        number = reads["items"][f"num_{split}"]
        for item in MATH.generate(split, language, num_items=number, seed=reads["items"]["seed"]):
            text = item.response if rng.random() < 0.5 else "I do not know."
            is_right = bool(MATH.is_correct(text, item.gold, language))
            yield Prediction(split, step, language, item.id, item.prompt, text, item.gold, is_right, False, 9)


def rows_of(reads: Mapping[str, Any], kept: list[Prediction]) -> list[dict[str, Any]]:
    """Return the rows that `evaluate` would return for some predictions."""
    scores = scores_of(kept)
    validated = [score for score in scores if score.split == "validation"]
    selected = select(validated) if validated else None
    measured = {"train_seconds": 1.5, "train_tokens": 900, "tokens_per_second": 600.0}
    measured |= {"peak_memory_gib": 0.2, "num_processes": 1}
    common = {
        "model": reads["model"]["name"],
        "family": reads["model"]["family"],
        "num_parameters": 1000,
        "task": reads["task"]["name"],
        "num_languages": len(reads["languages"]),
        "languages": ",".join(reads["languages"]),
        "seed": reads["seed"],
        "pretrained": selected is None,
        "selected_step": selected,
        **{name: value if reads["languages"] else None for name, value in measured.items()},
        "notes": None,
    }
    return [{**common, **_scored(score)} for score in scores if score.step == selected]


def _scored(score: Score) -> dict[str, Any]:
    return {
        "eval_language": score.language,
        "split": score.split,
        "num_correct": score.num_correct,
        "num_items": score.num_items,
        "num_truncated": score.num_truncated,
        "accuracy": score.accuracy,
    }


def table_of(kept: list[Prediction]) -> bytes:
    """Return predictions as the bytes of their file."""
    sink = pyarrow.BufferOutputStream()
    columns = dict(zip(SCHEMA.names, map(list, zip(*kept, strict=True)), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=SCHEMA), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


__all__ = ["NAME", "PREDICTIONS", "answers", "rows_of", "table_of", "write_store"]

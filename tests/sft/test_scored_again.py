"""Predictions of an earlier version of the stage are scored again; what is missing is generated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.core.identity import digest_of, former_instance, formers, hashed_of, reads_of
from orchestrator.core.sweep import Input, StageInstance
from orchestrator.errors import NotKept
from orchestrator.manifest import scan
from orchestrator.registry import load
from orchestrator.sft import stages
from orchestrator.sft.scoring import read, write
from orchestrator.stage import Config, Context, Inputs, Row
from orchestrator.store import layout
from orchestrator.store.ledger import open_ledger
from tests.sft import chain
from tests.sft.conftest import Ground

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share

INPUTS = (Input("tokenizer", "", "a" * 64), Input("base", "", "b" * 64), Input("train", "", "c" * 64))


@pytest.mark.parametrize(
    ("overrides", "digest"),
    [  # as version 2 of the stage computed them
        ((), "f8794642c7803a0e1398345a4215c760bc52ca396c396cbdc0cf2e21f45b8655"),
        (
            ("evaluation.precision=bf16",),
            "521928a9c4b3641ea4ffe269afc0a235b9fca6bfecff89e5eedb0cd367e37961",
        ),
    ],
)
def test_a_stage_knows_what_it_was_under_its_earlier_version(overrides: tuple[str, ...], digest: str) -> None:
    config = chain.small("languages=[en,es]", *overrides)
    reads = reads_of(stages.EVALUATE, config)
    today = StageInstance(stage="evaluate", digest="d" * 64, reads=reads, inputs=INPUTS)
    assert [instance.digest for instance in formers(stages.EVALUATE, today)] == [digest]
    assert formers(msgspec.structs.replace(stages.EVALUATE, version=9), today) == []
    assert formers(stages.TRAIN, today) == []
    other = chain.small("languages=[en,es]", "evaluation.batch_size=4", *overrides)
    in_other_batches = msgspec.structs.replace(today, reads=reads_of(stages.EVALUATE, other))
    former = former_instance(stages.EVALUATE_BEFORE[0], in_other_batches)
    assert former and former.digest == digest


def test_what_is_computed_together_is_a_part_of_the_identity() -> None:
    digests = set()
    for overrides in ((), ("evaluation.batch_size=4",)):
        reads = reads_of(stages.EVALUATE, chain.small("languages=[en]", *overrides))
        digests.add(digest_of(hashed_of(stages.EVALUATE, reads)))
    assert len(digests) == 2
    same = {
        digest_of(hashed_of(stages.EVALUATE, reads_of(stages.EVALUATE, chain.small("languages=[en]", how))))
        for how in ("evaluation.num_processes=2", "trainer.micro_batch_size=4", "device=cpu")
    }
    assert len(same) == 1 and same < digests


MIXTURE = ("languages=[en,es]", "evaluation.languages=[en,es,sw]", "evaluation.batch_size=4")


def scored(
    trained: Ground, folder: Path, former: Path | None, *, weights: bool, kept_there: str = "", **how: Any
) -> list[Row]:
    """Evaluates from kept predictions; without weights, whatever would be generated fails.

    Args:
        kept_there: a part of the path of those files of epochs that retention kept; "" for all.
    """
    train = folder / "train"
    shutil.copytree(trained.inputs["train"][""], train)
    for file in [*train.glob("checkpoints/*/*")]:
        if kept_there not in file.as_posix():
            file.unlink()
    if not weights:
        for file in train.rglob("*.safetensors"):
            file.unlink()
    config = chain.small(*MIXTURE)
    context = Context(
        folder,
        uses=Config(chain.cut(config, stages.EVALUATE.uses), declared="uses"),
        former=former,
        checkpoint_interval_s=3600,
        **how,
    )
    reads = Config(chain.cut(config, stages.EVALUATE.reads))
    inputs = Inputs({**trained.inputs, "train": {"": train}})
    rows: list[Row] = load(stages.EVALUATE.run or "")(reads, inputs, context)
    return rows


@pytest.fixture(scope="module")
def kept(trained: Ground, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """The product of an evaluation, and its rows."""
    return chain.run(stages.EVALUATE, chain.small(*MIXTURE), tmp_path_factory.mktemp("kept"), trained.inputs)


def test_kept_predictions_are_scored_without_any_weights(
    trained: Ground, kept: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    product, rows = kept
    assert scored(trained, tmp_path, product, weights=False) == rows
    assert read(tmp_path / "output") == read(product)


def test_the_epochs_whose_weights_were_retired_are_scored_as_well(
    trained: Ground, kept: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    product, rows = kept
    best = f"checkpoints/0000{rows[0]['selected_step']:02}/"
    for name, kept_there in (("best", best), ("none", "nothing")):
        assert scored(trained, tmp_path / name, product, weights=False, kept_there=kept_there) == rows
        assert read(tmp_path / name / "output") == read(product)


def test_an_epoch_that_new_scores_select_and_that_was_retired_is_told(
    trained: Ground, kept: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    product, rows = kept
    selected = rows[0]["selected_step"]
    former = tmp_path / "former"
    former.mkdir()
    write(
        [
            one._replace(generated="none" if one.step == selected else f"#### {one.gold}")
            for one in read(product)
        ],
        former,
    )
    best = f"checkpoints/0000{selected:02}/"
    with pytest.raises(NotKept, match="batches of test items at step"):
        scored(trained, tmp_path / "again", former, weights=True, kept_there=best)


def test_scores_are_those_of_the_scorer_of_today(
    trained: Ground, kept: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    product, rows = kept
    former = tmp_path / "former"
    former.mkdir()
    selected = rows[0]["selected_step"]
    changed = [
        one._replace(generated=f"#### {one.gold}\nExercise 2: 1", correct=False, truncated=True)
        if one.step == selected
        else one._replace(correct=True)
        for one in read(product)
    ]
    write(changed, former)
    found = scored(trained, tmp_path / "again", former, weights=False)
    assert {row["accuracy"] for row in found} == {1.0}
    assert {row["num_truncated"] for row in found} == {0}  # cut where it runs on
    assert {one.generated for one in read(tmp_path / "again/output") if one.step == selected} <= {
        f"#### {one.gold}\n" for one in changed
    }


def test_an_epoch_that_new_scores_select_is_tested(
    trained: Ground, kept: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    product, rows = kept
    other = next(step for step in (6, 12, 18) if step != rows[0]["selected_step"])
    former = tmp_path / "former"
    former.mkdir()
    write(
        [
            one._replace(generated=f"The answer is {one.gold}." if one.step == other else "none")
            for one in read(product)
        ],
        former,
    )
    found = scored(trained, tmp_path / "again", former, weights=True)
    assert {row["selected_step"] for row in found} == {other}
    assert [row["accuracy"] for row in found if row["split"] == "validation"] == [1.0, 1.0]
    fresh, _ = chain.run(stages.EVALUATE, chain.small(*MIXTURE), tmp_path / "fresh", trained.inputs)
    assert len(read(tmp_path / "again/output")) == len(read(fresh))


def test_kept_predictions_of_other_prompts_are_not_taken(
    trained: Ground, kept: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    product, rows = kept
    former = tmp_path / "former"
    former.mkdir()
    write([one._replace(prompt=f"{one.prompt} ", generated="wrong") for one in read(product)], former)
    assert scored(trained, tmp_path / "again", former, weights=True) == rows
    assert read(tmp_path / "again/output") == read(product)


SWEEP = """
description: one tiny model
axes:
  mixture: {none: {languages: []}, en: {languages: [en]}}
overrides:
%s
  - evaluation.languages=[en]
stages: [tokenizer, base, prepare, train, evaluate]
"""


@pytest.mark.long
def test_a_launch_scores_again_what_an_older_version_left_in_the_store(sweep: Any) -> None:
    (sweep.folder / "one.yaml").write_text(SWEEP % "\n".join(f"  - {override}" for override in chain.SMALL))
    sweep("launch", "one.yaml", "policy.retention=best")
    ledger = open_ledger(str(sweep.store))
    revision = ledger.revision("one", 1)
    instances = [instance for instance in revision.sweep.stages.values() if instance.stage == "evaluate"]
    epochs = len([*sweep.store.glob("payload/train/*/1/output/checkpoints/*/config.json")])
    assert epochs == 1

    # the products become those of version 2, with texts that no weights would write
    outputs = {}
    for instance in instances:
        former = former_instance(stages.EVALUATE_BEFORE[0], instance)
        assert former
        for key in (layout.stage_records("evaluate"), "payload/evaluate"):
            (sweep.store / key / instance.digest).rename(sweep.store / key / former.digest)
        record = sweep.store / layout.done(Input("evaluate", "", instance.digest), 1)
        done = json.loads(record.read_text())
        output = sweep.store / layout.output(Input("evaluate", "", former.digest), done["attempt"])
        selected = done["rows"][0]["selected_step"]
        right = [
            one._replace(generated=f"#### {one.gold}") if one.step == selected else one
            for one in read(output)
        ]
        write(right, output)
        files = msgspec.to_builtins(scan(output))
        (sweep.store / layout.done(Input("evaluate", "", former.digest), 1)).write_text(
            json.dumps({**done, "digest": former.digest, "files": files, "rows": []})
        )
        record.unlink()
        outputs[instance.digest] = {one.generated for one in right}

    plan = sweep.json("plan", "one.yaml")
    steps = [stage for cell in plan["cells"] for stage in cell["stages"]]
    assert {step["action"] for step in steps} == {"reuse", "resume"}
    again = "scored again from kept predictions"
    assert sorted(s["reason"] for s in steps if s["stage"] == "evaluate") == [
        f"{again}, without the retired files of train",
        f"{again}: not started",
    ]
    assert [cell["estimate"]["generation_gpu_hours"] > 0 for cell in plan["cells"]] == [True, False]
    sweep("launch", "one.yaml", "policy.retention=best")
    assert {row["accuracy"] for row in sweep.json("collect", "one") if row["split"] == "test"} == {1.0}
    assert [path.name for path in sweep.store.glob("payload/train/*/*")] == ["1"]
    for digest, generated in outputs.items():
        product = sweep.store / layout.output(Input("evaluate", "", digest), 1)
        assert {one.generated for one in read(product)} == generated
    sweep("discard", "one", "mixture=none", "--stage", "evaluate", "--reason", "a bug")
    sweep("launch", "one.yaml", "policy.retention=best")
    # generated: a discard means from nothing
    assert [row["accuracy"] < 1.0 for row in sweep.json("collect", "one", "--only", "mixture=none")] == [True]

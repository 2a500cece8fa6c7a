"""Which files of a product may be removed: those that no stage made from it keeps."""

from __future__ import annotations

from fnmatch import fnmatchcase

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.evidence import describe_retired, remaining_files, removable_files
from orchestrator.core.records import Done, Retired
from orchestrator.manifest import File

PATHS = ("training.json", "tokenizer/a.json", "checkpoints/000004/w", "checkpoints/000008/w", "checkpoints/x")
PATTERNS = st.sampled_from(
    ["*", "training.json", "tokenizer/*", "checkpoints/*", "checkpoints/000008/*", "?", "no"]
)
CHOICE = st.none() | st.lists(PATTERNS, max_size=3)


def done(stage: str, **rest: object) -> Done:
    values = {
        "nonce": "",
        "digest": stage,
        "generation": 1,
        "attempt": 1,
        "files": (),
        "rows": (),
        "seconds": 0.0,
    }
    return Done(stage=stage, **{**values, **rest})  # type: ignore[arg-type]


PRODUCT = done("train", generation=2, files=tuple(File(path, 1, path) for path in PATHS))


def consumer(patterns: list[str] | None, generation: int = 2) -> Done:
    named = {} if patterns is None else {"best": tuple(patterns)}
    return done("evaluate", inputs={"train": generation}, retire={"train": named})


@given(st.lists(CHOICE, max_size=4))
def test_a_file_is_removable_when_every_consumer_chose_and_none_keeps_it(
    choices: list[list[str] | None],
) -> None:
    gone = {file.path for file in removable_files(PRODUCT, [consumer(each) for each in choices], "best")}
    for path in PATHS:
        kept = any(each is None or any(fnmatchcase(path, p) for p in each) for each in choices)
        assert (path in gone) == (bool(choices) and not kept)


@given(st.lists(CHOICE, max_size=3), CHOICE)
def test_one_more_consumer_never_makes_more_removable(
    choices: list[list[str] | None], more: list[str] | None
) -> None:
    consumers = [consumer(each) for each in choices]
    if consumers:
        assert set(removable_files(PRODUCT, [*consumers, consumer(more)], "best")) <= set(
            removable_files(PRODUCT, consumers, "best")
        )


def test_nothing_is_removable_under_all_or_an_unnamed_policy_or_for_another_generation() -> None:
    assert removable_files(PRODUCT, [consumer([])], "best") == PRODUCT.files
    assert removable_files(PRODUCT, [consumer([])], "all") == ()
    assert removable_files(PRODUCT, [consumer([])], "none") == ()
    assert removable_files(PRODUCT, [consumer([], generation=1)], "best") == ()
    assert removable_files(PRODUCT, [consumer([]), consumer([], generation=1)], "best") == ()


def test_files_that_must_exist_are_those_that_no_record_retired() -> None:
    records = [
        Retired(nonce="", generation=2, attempt=1, policy=policy, files=files, why="", by="")  # type: ignore[arg-type]
        for policy, files in (("best", PRODUCT.files[2:3]), ("none", PRODUCT.files[3:]))
    ]
    assert remaining_files(PRODUCT.files, records) == PRODUCT.files[:2]
    assert describe_retired(records) == "1 file under policy best, 2 files under policy none"
    assert describe_retired([]) == ""


def test_a_consumer_that_chose_for_no_stage_or_another_keeps_everything():
    (first, *_) = [consumer([])]
    for retire in ({}, {"other": {"best": ()}}, {PRODUCT.stage: {}}):
        assert removable_files(PRODUCT, [msgspec.structs.replace(first, retire=retire)], "best") == ()

"""Which files go: only those that every stage made from the product lets go."""

from __future__ import annotations

from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.plan import removable_files
from orchestrator.core.records import Done, Retired, describe_retired, remaining_files
from orchestrator.manifest import File

PATHS = ("training.json", "tokenizer/a.json", "checkpoints/000004/w", "checkpoints/000008/w", "checkpoints/x")
PATTERNS = st.sampled_from(
    ["*", "training.json", "tokenizer/*", "checkpoints/*", "checkpoints/000008/*", "?", "no"]
)
WISH = st.none() | st.lists(PATTERNS, max_size=3)


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


def taker(wish: list[str] | None, generation: int = 2) -> Done:
    named = {} if wish is None else {"best": tuple(wish)}
    return done("evaluate", inputs={"train": generation}, retire={"train": named})


@given(st.lists(WISH, max_size=4))
def test_a_file_goes_when_nobody_keeps_it_and_everybody_spoke(wishes: list[list[str] | None]) -> None:
    gone = {file.path for file in removable_files(PRODUCT, [taker(wish) for wish in wishes], "best")}
    for path in PATHS:
        kept = any(wish is None or any(fnmatchcase(path, p) for p in wish) for wish in wishes)
        assert (path in gone) == (bool(wishes) and not kept)


@given(st.lists(WISH, max_size=3), WISH)
def test_one_more_taker_never_lets_more_go(wishes: list[list[str] | None], more: list[str] | None) -> None:
    takers = [taker(wish) for wish in wishes]
    if takers:
        assert set(removable_files(PRODUCT, [*takers, taker(more)], "best")) <= set(
            removable_files(PRODUCT, takers, "best")
        )


def test_nothing_goes_under_all_or_a_policy_nobody_spoke_of_or_by_the_word_on_another_generation() -> None:
    assert removable_files(PRODUCT, [taker([])], "best") == PRODUCT.files
    assert removable_files(PRODUCT, [taker([])], "all") == ()
    assert removable_files(PRODUCT, [taker([])], "none") == ()
    assert removable_files(PRODUCT, [taker([], generation=1)], "best") == ()
    assert removable_files(PRODUCT, [taker([]), taker([], generation=1)], "best") == ()


def test_what_must_be_there_is_what_no_record_names() -> None:
    records = [
        Retired(nonce="", generation=2, attempt=1, policy=policy, files=files, why="", by="")  # type: ignore[arg-type]
        for policy, files in (("best", PRODUCT.files[2:3]), ("none", PRODUCT.files[3:]))
    ]
    assert remaining_files(PRODUCT.files, records) == PRODUCT.files[:2]
    assert describe_retired(records) == "1 file under policy best, 2 files under policy none"
    assert describe_retired([]) == ""

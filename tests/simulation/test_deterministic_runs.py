"""Runs of the production code on simulated machines: they repeat, they hold, and they find what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.simulation.files import SHARED, Files
from orchestrator.simulation.system import running
from orchestrator.simulation.world import Machine, StuckError, World
from tests.simulation.bug_table import seeds_of
from tests.simulation.bugs import ROOT
from tests.simulation.bugs.every import BUGS
from tests.simulation.runs import play

QUICK = (
    "product-before-it-is-durable",
    "lost-reply-taken-for-refusal",
    "only-running-jobs-hold",
    "discard-of-what-is-not-there-yet",
    "no-grace-after-the-actor",
    "jobs-for-cancelled-cells",
)


def hunted(*words: str, **environment: str) -> dict[str, Any]:
    """What a hunt in a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation.hunt", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_a_seed_gives_the_same_run_in_each_process_step_by_step() -> None:
    one, other = (hunted("4..12", PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert one["trace"] == other["trace"] and one["events"] == other["events"] != {}
    after_others = [play(seed).trace for seed in (3, *range(4, 12))][1:]
    assert hashlib.sha256("".join(after_others).encode()).hexdigest()[:32] == one["trace"]
    lines: list[str] = []
    assert play(3, lines=lines).trace == play(3).trace != play(4).trace
    assert len(lines) > 100


def test_no_schedule_breaks_a_rule() -> None:
    judged_just_before_two_beats = 410521
    seeds = (*range(36), judged_just_before_two_beats)
    assert [run for seed in seeds if (run := play(seed)).problem] == []


@pytest.mark.long
def test_ten_thousand_schedules_of_the_production_code_break_no_rule() -> None:
    assert [run for seed in range(10_000) if (run := play(seed)).problem] == []


@pytest.mark.parametrize("name", QUICK)
def test_a_mistake_in_the_product_is_found(name: str) -> None:
    seed = seeds_of()[name]
    found = hunted(f"{seed}..{seed + 1}", "--bug", name)
    assert len(found["findings"]) == 1, found


@pytest.mark.long
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_seeded_mistake_is_found_by_the_seed_in_the_table(bug: Any) -> None:
    seed = seeds_of()[bug.name]
    found = hunted(f"{seed}..{seed + 1}", "--bug", bug.name)
    assert len(found["findings"]) == 1, found
    assert hunted(f"{seed}..{seed + 1}")["findings"] == []


def test_the_table_of_mistakes_holds_every_one() -> None:
    assert sorted(seeds_of()) == sorted(bug.name for bug in BUGS)
    assert max(seeds_of().values()) < 10_000


def test_a_world_that_goes_on_for_ever_is_stopped() -> None:
    world = World(0)

    def wait() -> None:
        while True:
            world.sleep(1.0)

    world.start("waits", Machine("one"), wait)
    with pytest.raises(StuckError, match="waits"):
        world.run(limit_s=100.0)


# The contract of the simulated files: they answer as the real ones do.


def acts(root: Path) -> list[tuple[str, Callable[[], Any]]]:
    """What the production code does to files, on a few names."""

    def outcome_of(act: Callable[[], Any]) -> Any:
        try:
            return act()
        except OSError as error:
            return type(error).__name__, error.errno

    names = [root / name for name in ("a", "b", "d", "d/c", "d/e", "d/f/g")]
    calls: list[tuple[str, Callable[[], Any]]] = []
    draw = random.Random(1)
    for number in range(400):
        one, two = draw.choice(names), draw.choice(names)
        text = f"{number}"
        kinds: dict[str, Callable[[], Any]] = {
            "write": lambda one=one, text=text: one.write_text(text),
            "exclusive": lambda one=one: one.open("xb").close(),
            "read": lambda one=one: one.read_bytes(),
            "link": lambda one=one, two=two: os.link(one, two) if one.is_file() else None,
            "replace": lambda one=one, two=two: bool(one.is_file() and one != two and one.replace(two)),
            "unlink": lambda one=one: one.unlink() if not one.is_dir() else None,
            "mkdir": lambda one=one: one.mkdir(),
            "rmdir": lambda one=one: one.rmdir() if one.is_dir() else None,
            "list": lambda one=one: sorted(each.name for each in one.iterdir()) if one.is_dir() else None,
            "size": lambda one=one: one.stat().st_size if one.is_file() else one.exists(),
            "walk": lambda: sorted(
                (Path(place).relative_to(root).as_posix(), sorted(folders), sorted(files))
                for place, folders, files in os.walk(root)
            ),
        }
        kind = draw.choice(list(kinds))
        calls.append((f"{number} {kind} {one.name}", lambda act=kinds[kind]: outcome_of(act)))
    return calls


def test_simulated_files_answer_as_real_ones_do(tmp_path: Path) -> None:
    real = [(name, act()) for name, act in acts(tmp_path)]
    world = World(0)
    with running(world, Files(world)):
        simulated = [(name, act()) for name, act in acts(Path(SHARED))]
    assert simulated == real
    assert len({str(answer) for _, answer in real}) > 20

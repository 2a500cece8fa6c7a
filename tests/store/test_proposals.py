"""The points that Optuna proposes: the same for the same trials, in any process, and better than chance."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys

import msgspec
import pytest

from orchestrator.core.search import Trial, drawn, is_in, key_of
from orchestrator.store.proposals import propose
from tests.core.test_search import SEARCH

ROUND = 8


def search(seed, size=ROUND):
    empty = msgspec.structs.replace(SEARCH, seed=seed)
    return msgspec.structs.replace(empty, start=tuple(dict(point) for point in drawn(empty, [], size)))


def loss(point):
    """A smooth function with its lowest value, 0, at sgd, lr 0.003, momentum 0.9, five layers, no dropout."""
    away = 0.3 if point["opt"] == "adam" else (point["momentum"] - 0.9) ** 2
    away += (math.log10(point["train.lr"]) + 2.5) ** 2
    return away + 0.05 * (point["layers"] - 5) ** 2 + point["dropout"] ** 2


def searched(seed, number=64, fails=lambda point: False, size=ROUND):
    """Return the trials of a whole search, and the trials and proposals of each of its rounds."""
    sealed = search(seed, size)
    trials = [Trial(point, None if fails(point) else loss(point)) for point in sealed.start]
    rounds = []
    while len(trials) < number:
        points = propose(sealed, trials, size)
        rounds.append((list(trials), points))
        trials += [Trial(point, None if fails(point) else loss(point)) for point in points]
    return sealed, trials, rounds


def test_it_finds_a_better_value_than_random_points_do():
    found = [min(trial.value for trial in searched(seed)[1]) for seed in (1, 2)]
    chance = [min(map(loss, drawn(search(seed), [], 64))) for seed in range(9)]
    assert max(found) < statistics.median(chance)


def test_a_trial_that_failed_is_not_proposed_again_and_others_go_on():
    sealed, trials, _ = searched(3, 40, fails=lambda point: point["opt"] == "adam")
    assert all(is_in(sealed, trial.point) for trial in trials)
    assert len({key_of(trial.point) for trial in trials}) == 40
    assert len(propose(sealed, [Trial(point, None) for point in sealed.start], ROUND)) == ROUND


PROGRAM = """
import json, sys
from orchestrator.core.search import Trial
from orchestrator.store.proposals import propose
from tests.store.test_proposals import search
given = json.load(sys.stdin)
trials = [Trial(point, value) for point, value in given]
print(json.dumps(propose(search(1), trials, 8)))
"""


def test_fresh_processes_propose_the_same_points_whatever_the_order_of_their_sets():
    sealed, _, ((trials, points),) = searched(1, 16)
    text = json.dumps(trials)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )
        for hash_seed in ("1", "77")
    ]
    assert [json.loads(each.communicate(text)[0]) for each in running] == [list(points)] * 2
    assert all(is_in(sealed, point) for point in points)


def test_a_small_space_is_searched_to_its_end():
    space = (msgspec.structs.replace(SEARCH.space[3], high=3),)
    templates = (msgspec.structs.replace(SEARCH.templates[0], labels={}, ranges=("layers",)),)
    sealed = msgspec.structs.replace(SEARCH, space=space, templates=templates, start=({"layers": 1},))
    points = propose(sealed, [Trial({"layers": 1}, 0.5)], 8)
    assert sorted(point["layers"] for point in points) == [2, 3]


@pytest.mark.long
def test_a_thousand_rounds_are_proposed_again_as_they_were():
    rounds = []
    for seed in range(100):
        sealed, _, made = searched(seed, 24, fails=lambda point: point["layers"] > 6, size=2)
        rounds += [(sealed, *each) for each in made]
    assert len(rounds) >= 1000
    assert all(propose(sealed, trials, 2) == points for sealed, trials, points in rounds)

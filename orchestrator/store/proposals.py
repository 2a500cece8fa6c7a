"""The points that a search tries next, proposed by Optuna in memory.

A proposal is a function of the sealed search and the trials in their order: nothing is kept between two of
them. Each builds the study anew, so any process proposes the same points.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

from orchestrator.core.sealed import Decision, SealedSearch, SearchParameter, Value
from orchestrator.core.search import Point, Trial, counts, drawn, key_of, rounded
from orchestrator.registry import require

NUM_REPEATS = 20
"""Proposals in a row that were tried before, after which a point is drawn at random instead."""


def proposed(search: SealedSearch, trials: Sequence[Trial], number: int) -> tuple[tuple[Point, ...], str]:
    """Return what `propose` returns, and the sampler with its version, which a decision records."""
    points = propose(search, trials, number)
    import optuna

    return points, f"optuna {optuna.__version__}"


def propose(search: SealedSearch, trials: Sequence[Trial], number: int) -> tuple[Point, ...]:
    """Return the next points, none of which was tried before.

    Points of one round are proposed together: each takes those before it as running (`constant_liar`). A
    trial without a value counts as failed.

    Args:
        search: The search.
        trials: All that was tried, in the order of the rounds.
        number: Of points; fewer if the space has no more.

    Raises:
        UserError: Optuna is not installed.
    """
    require("search", what="search.sampler=tpe")
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _proposed(optuna, search, trials, number)
    finally:
        optuna.logging.set_verbosity(before)


def difference(search: SealedSearch, trials: Sequence[Trial], decision: Decision) -> tuple[str, bool]:
    """Return what differs if the points of a decision are proposed again, and whether they can be compared.

    Args:
        search: The search.
        trials: What was tried before the decision, with what it saw.
        decision: The decision.

    Raises:
        UserError: Optuna is not installed.
    """
    points, sampler = proposed(search, trials, min(search.batch, search.num_cells - len(trials)))
    if sampler != decision.sampler:
        return f"not comparable: made by {decision.sampler}, and this is {sampler}", False
    return "" if points == decision.proposed else "other points follow from what it saw", True


def _proposed(optuna: Any, search: SealedSearch, trials: Sequence[Trial], number: int) -> tuple[Point, ...]:
    digest = hashlib.sha256(f"{search.seed}.{len(trials)}".encode()).digest()
    sampler = optuna.samplers.TPESampler(
        seed=int.from_bytes(digest[:4]), n_startup_trials=len(search.start), constant_liar=True
    )
    study = optuna.create_study(sampler=sampler, direction=f"{search.select.mode}imize")
    space = {each.name: _distribution(optuna, each) for each in search.space}
    states = optuna.trial.TrialState
    for trial in trials:
        study.add_trial(
            optuna.trial.create_trial(
                state=states.FAIL if trial.value is None else states.COMPLETE,
                params=dict(trial.point),
                distributions={name: space[name] for name in trial.point},
                value=trial.value,
            )
        )
    known = [trial.point for trial in trials]
    seen = {key_of(point) for point in known}
    points: list[Point] = []
    while len(points) < number:
        for _ in range(NUM_REPEATS):
            asked = study.ask()
            point = _suggested(search, asked)
            if key_of(point) not in seen:
                break
            study.tell(asked, state=states.FAIL)
        else:
            found = drawn(search, [*known, *points], 1)
            if not found:
                break
            point = found[0]
        seen.add(key_of(point))
        points.append(point)
    return tuple(points)


def _distribution(optuna: Any, parameter: SearchParameter) -> Any:
    kinds = optuna.distributions
    if parameter.options:
        return kinds.CategoricalDistribution(parameter.options)
    low, high, log = parameter.low, parameter.high, parameter.log
    if parameter.is_int:
        return kinds.IntDistribution(int(low), int(high), log=log, step=int(parameter.step or 1))
    return kinds.FloatDistribution(float(low), float(high), log=log, step=parameter.step)


def _suggested(search: SealedSearch, asked: Any) -> Point:
    """Return the values that Optuna suggests for the parameters that count beside those before them."""
    point: dict[str, Value] = {}
    for each in search.space:
        if not counts(search, each, point):
            continue
        low, high, log, step = each.low, each.high, each.log, each.step
        if each.options:
            point[each.name] = asked.suggest_categorical(each.name, each.options)
        elif each.is_int:
            found = asked.suggest_int(each.name, int(low), int(high), log=log, step=int(step or 1))
            point[each.name] = rounded(each, found)
        else:
            found = asked.suggest_float(each.name, float(low), float(high), log=log, step=step)
            point[each.name] = rounded(each, found)
    return point

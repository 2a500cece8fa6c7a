"""Figures 4 and 9: many other languages against the language itself.

Zero-shot is a mixture of 4, 6 or 9 languages that leaves out the core language x, tested in x; direct is en+x
tested in x, for English the mean of the four en+x. Several seeds are pooled, and so are mixtures of one size
that differ in their extras.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.study import facts
from orchestrator.study.numbers.accuracies import pooled
from orchestrator.study.statistics import ALPHA, Count, t_test
from orchestrator.study.table import Result


def fig4(read: Sequence[Result]) -> list[dict[str, Any]]:
    """Returns both accuracies and whether zero-shot is better, the same or worse.

    By Student's two-sided t-test (pooled variance) on the items' zeros and ones, alpha = 0.05, not corrected
    for the number of tests. For English the items of the four en+x are one sample; of a sweep that is half
    finished, those of the four that there are.
    """
    direct = pooled(
        (r for r in read if (x := facts.partner(r.languages)) and r.eval_language in ("en", x)),
        lambda r: (r.model, r.task, r.eval_language),
    )
    zero_shot = pooled(
        (r for r in read if facts.left_out(r.languages) == r.eval_language),
        lambda r: (r.model, r.task, r.eval_language, r.num_languages),
    )
    return [
        {
            "model": model,
            "task": task,
            "language": language,
            "num_languages": size,
            **_compare(direct[model, task, language], count),
        }
        for (model, task, language, size), count in sorted(zero_shot.items())
        if (model, task, language) in direct
    ]


def _compare(direct: Count, zero_shot: Count) -> dict[str, Any]:
    p_value = t_test(zero_shot, direct)
    better = zero_shot.share > direct.share
    outcome = "same" if p_value >= ALPHA else "better" if better else "worse"
    return {"direct": direct.share, "zero_shot": zero_shot.share, "p_value": p_value, "outcome": outcome}

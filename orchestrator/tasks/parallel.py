"""Divides the combinations of generated data into splits, by design rather than by chance.

A combination is a group and a variant (a pair of numbers and a unit; a day and a time). In every group a few
variants are held out, shifted from group to group as in a Latin square: so each group and each variant is
trained on, never the combinations that are validated or tested. Knows nothing of languages or texts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.errors import UserError
from orchestrator.tasks.base import Split

NUM_HELD_OUT = 2
"""Variants of each group that go to validation, and again to test (ours)."""


class Combination(NamedTuple):
    """A row to be put into words: indices of its group and variant, and the number of its wording."""

    group: int
    variant: int
    form: int


def combinations(
    split: Split, num_variants: Sequence[int], *, num_items: int, seed: int, num_forms: int = 1
) -> list[Combination]:
    """Returns `num_items` combinations of a split, every group once before any comes again.

    Args:
        split: whose combinations; the division does not depend on the seed.
        num_variants: how many variants each group has.
        num_items: how many to return.
        seed: orders the groups, and the variants within each.
        num_forms: in how many wordings a combination may come; all of them stay in its split.

    Raises:
        UserError: the split has fewer combinations than asked for.
    """
    shifts = list(range(len(num_variants)))
    random.Random("held out").shuffle(shifts)  # fixed: see Task.generate
    rng = random.Random(f"{split} {seed}")
    queues = []
    for group, (shift, num) in enumerate(zip(shifts, num_variants, strict=True)):
        variants = [(shift + slot) % num for slot in _slots(split, num)]
        rng.shuffle(variants)
        first = rng.randrange(num_forms)
        queues.append(
            [
                Combination(group, variant, (first + turn + again) % num_forms)
                for again in range(num_forms)  # every variant once before any comes in another wording
                for turn, variant in enumerate(variants)
            ]
        )
    total = sum(map(len, queues))
    if num_items > total:
        raise UserError(
            f"{num_items} generated items asked for the split {split}", allowed=f"at most {total}"
        )
    rows: list[Combination] = []
    while len(rows) < num_items:
        turn = [queue.pop(0) for queue in queues if queue]
        rng.shuffle(turn)
        rows += turn
    return rows[:num_items]


def _slots(split: Split, num: int) -> range:
    match split:
        case Split.TEST:
            return range(NUM_HELD_OUT)
        case Split.VALIDATION:
            return range(NUM_HELD_OUT, 2 * NUM_HELD_OUT)
        case Split.TRAIN:
            return range(2 * NUM_HELD_OUT, num)

"""Division of an optimiser step into micro-batches of equal cost, for any number of processes. No torch.

A step's rows are put one after another into *packs*: sequences of one width, in which attention keeps the
rows apart. All packs of a step have the same width and every process computes the same number of them, so
no process waits for another. Rows never move between steps::

    rows of 5, 4, 3, 3, 2 and 1 tokens, 2 processes, widest pack 16
    pack of process 0   5 5 5 5 5 3 3 3 1     width 9, one pack a process
    pack of process 1   4 4 4 4 3 3 3 2 2

Kernels are chosen and compiled per width. So the widths of a training come from a *ladder* of at most
`MAX_WIDTHS`, computed from the rows of all its steps before the first one. A step takes the smallest width of
the ladder that holds it.

Rows go to the packs in order of length, each into the emptiest pack (Graham 1969, "Bounds on multiprocessing
timing anomalies": longest processing time first). With many short rows in a pack, all packs become almost
equally full.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

MAX_WIDTHS = 8
"""Largest number of widths of a training."""
_DRAWN_STEPS = 8
"""Ours: whole steps that `expected_share` draws."""
_FEW_STEPS = 16
"""Ours: steps up to which a heap is faster than a row of all steps at a time."""
_MORE_PACKS = 4
"""Ours: how many more packs per process than necessary are tried for a better division."""
_SPARE = 0.01
"""Ours: share of computed positions that may be wasted if that saves a width, or the search for it."""


class Part(NamedTuple):
    """One micro-batch of one process.

    Attributes:
        rows: row indices.
        masked: whether its loss is left out, because it only makes counts equal.
        width: tokens of the pack that holds all rows; None if rows are padded side by side.
    """

    rows: list[int]
    masked: bool = False
    width: int | None = None


class Division(Protocol):
    """How the rows of each step are divided among processes."""

    def parts(self, rows: np.ndarray, *, rank: int = 0, num_processes: int = 1) -> list[Part]:
        """Return one process's micro-batches of a step. Every process gets the same number.

        Args:
            rows: row indices, the longest row first.
            rank: of the process.
            num_processes: number of processes that share the step.
        """
        ...


class RowsAtATime:
    """A fixed number of rows, padded to the longest of them.

    Args:
        size: rows of a micro-batch.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def parts(self, rows: np.ndarray, *, rank: int = 0, num_processes: int = 1) -> list[Part]:
        """Return one process's micro-batches; some processes get the last row once more, masked.

        Gradient exchange is a collective operation: a process with fewer micro-batches would leave the
        others waiting forever. Neighbours in length run at the same time in different processes::

            rows 0 to 4 (by length), size=2, num_processes=2
            micro-batches     [0 1]  [2 3]  [4]  [4 masked]
            process 0         [0 1]         [4]
            process 1                [2 3]       [4 masked]
        """
        starts = range(0, len(rows), self.size)
        return _dealt([rows[start : start + self.size] for start in starts], rank, num_processes)


class PaddedTokens:
    """Rows of similar length padded to the longest of them, with about equally many tokens at a time.

    It is for models in which rows cannot be packed.

    Args:
        lengths: tokens of each row.
        max_tokens: of a micro-batch, padding included, unless one row has more.
    """

    def __init__(self, lengths: np.ndarray, *, max_tokens: int) -> None:
        self._lengths, self._max_tokens = lengths, max_tokens

    def parts(self, rows: np.ndarray, *, rank: int = 0, num_processes: int = 1) -> list[Part]:
        """Return one process's micro-batches, of as equal size as their number allows."""
        lengths = self._lengths[rows]
        number = -(-len(_cut(lengths, self._max_tokens)) // num_processes) * num_processes
        low, high = 1, self._max_tokens
        # The fewest tokens at a time that need no more micro-batches, by bisection.
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(_cut(lengths, middle)) <= number else (middle + 1, high)
        return _dealt(np.split(rows, _cut(lengths, high)[1:]), rank, num_processes)


def _cut(lengths: np.ndarray, max_tokens: int) -> list[int]:
    """Return where micro-batches start, for rows in decreasing order of length."""
    starts, row = [], 0
    while row < len(lengths):
        starts.append(row)
        row += max(1, max_tokens // int(lengths[row]))
    return starts


def _dealt(groups: Sequence[np.ndarray], rank: int, num_processes: int) -> list[Part]:
    """Return one process's groups of rows, filled up with masked ones to the same number for all."""
    parts = [Part([int(row) for row in group]) for group in groups]
    parts += [Part(parts[-1].rows[-1:], masked=True)] * (-len(parts) % num_processes)
    return parts[rank::num_processes]


class _Choice(NamedTuple):
    """The packs of each of several steps.

    Attributes:
        widths: tokens of each pack.
        num_packs: packs of one process.
        max_rows: most rows in a pack.
        packs: number of the pack of each row, steps x rows.
    """

    widths: np.ndarray
    num_packs: np.ndarray
    max_rows: np.ndarray
    packs: np.ndarray


class Packs:
    """Packs of one width per step, from a ladder of widths.

    Args:
        lengths: tokens of each row.
        widths: the ladder, from `plan_widths`. A longer row makes a pack of its own width.
    """

    def __init__(self, lengths: np.ndarray, *, widths: Sequence[int]) -> None:
        self._lengths = lengths
        self.widths = tuple(
            sorted({*widths, *([longest] if (longest := int(lengths.max())) > max(widths) else [])})
        )

    def parts(self, rows: np.ndarray, *, rank: int = 0, num_processes: int = 1) -> list[Part]:
        """Return one process's packs of a step. One without rows is masked."""
        chosen = self._choice([rows], num_processes)
        packs: list[list[int]] = [[] for _ in range(int(chosen.num_packs[0]) * num_processes)]
        for row, pack in zip(rows, chosen.packs[0], strict=True):
            packs[pack].append(int(row))
        return [Part(pack, not pack, int(chosen.widths[0])) for pack in packs[rank::num_processes]]

    def computed(self, steps: Sequence[np.ndarray], *, num_processes: int = 1) -> np.ndarray:
        """Return the positions of each step that all processes compute together."""
        chosen = self._choice(steps, num_processes)
        computed: np.ndarray = chosen.widths * chosen.num_packs * num_processes
        return computed

    def widest(self, steps: Sequence[np.ndarray], *, num_processes: int = 1) -> int:
        """Return the number of the step with the widest packs."""
        return int(self._choice(steps, num_processes).widths.argmax())

    def max_rows(self, steps: Sequence[np.ndarray], *, num_processes: int = 1) -> int:
        """Return the largest number of rows of a pack."""
        return int(self._choice(steps, num_processes).max_rows.max())

    def _choice(self, steps: Sequence[np.ndarray], num_processes: int) -> _Choice:
        return _choice(_table(self._lengths, steps), num_processes, np.array(self.widths))


def useful_share(lengths: np.ndarray, steps: Sequence[np.ndarray], computed: np.ndarray) -> float:
    """Return the mean over steps of: real tokens / positions that all processes compute.

    Args:
        lengths: tokens of each row.
        steps: row indices of each step.
        computed: positions of each step: processes x positions of the slowest one.
    """
    return float(np.mean([lengths[rows].sum() for rows in steps] / computed))


def positions(
    division: Division, lengths: np.ndarray, steps: Sequence[np.ndarray], *, num_processes: int
) -> np.ndarray:
    """Return how many positions each process computes of each step, steps x processes."""
    if isinstance(division, Packs):
        each = division.computed(steps, num_processes=num_processes) // num_processes
        return np.repeat(each[:, None], num_processes, axis=1)

    def of(part: Part) -> int:
        return part.width or len(part.rows) * int(lengths[part.rows].max())

    every = range(num_processes)
    return np.array(
        [
            [sum(map(of, division.parts(rows, rank=rank, num_processes=num_processes))) for rank in every]
            for rows in steps
        ]
    )


@functools.lru_cache(maxsize=4096)
def expected_share(
    means: tuple[float, ...],
    spread: float,
    *,
    num_rows: int,
    global_batch_size: int,
    longest: int,
    num_processes: int,
    max_tokens: int,
    micro_batch_size: int | None = None,
) -> float:
    """Return the useful share of a training of whose rows only mean lengths are known.

    Some steps are drawn, always the same ones, and divided as `train` divides them. Lengths are log-normal.

    Args:
        means: mean tokens of a row, by language.
        spread: standard deviation of the logarithm of a row's tokens, within a language.
        num_rows: rows of an epoch, of which each language has equally many.
        global_batch_size: rows of a step.
        longest: tokens of the longest row that is kept.
        num_processes, max_tokens: as for `plan_widths`.
        micro_batch_size: rows that are padded side by side; None for packs.
    """
    whole, rest = divmod(num_rows, global_batch_size)
    num_drawn = min(whole, _DRAWN_STEPS)
    sizes = [global_batch_size] * num_drawn + [rest] * bool(rest)
    random, total = np.random.default_rng(0), sum(sizes)
    drawn = np.array(means)[random.integers(len(means), size=total)]
    drawn = drawn * np.exp(spread * random.standard_normal(total) - spread**2 / 2)
    lengths = np.clip(drawn, 1, longest).astype(np.int64)
    steps = [part[np.argsort(-lengths[part])] for part in np.split(np.arange(total), np.cumsum(sizes)[:-1])]
    if micro_batch_size is not None:
        division = RowsAtATime(min(micro_batch_size, -(-global_batch_size // num_processes)))
        slowest = positions(division, lengths, steps, num_processes=num_processes).max(1)
    else:
        widths, chosen = _planned(lengths, steps, num_processes=num_processes, max_tokens=max_tokens)
        # As many packs as with a width of its own: `Packs` would try others too, which takes longer.
        slowest = np.array(widths)[np.searchsorted(widths, chosen.widths)] * chosen.num_packs
    shares = np.array([lengths[rows].sum() for rows in steps]) / (num_processes * slowest)
    # The drawn steps stand for all whole ones.
    weights = [whole / max(num_drawn, 1)] * num_drawn + [1] * bool(rest)
    return float(np.average(shares, weights=weights))


def plan_widths(
    lengths: np.ndarray, steps: Sequence[np.ndarray], *, num_processes: int, max_tokens: int
) -> tuple[int, ...]:
    """Return the ladder: the fewest widths with which steps compute almost as little as with `MAX_WIDTHS`.

    Args:
        lengths: tokens of each row.
        steps: row indices of each step, the longest row first.
        num_processes: number of processes that share a step.
        max_tokens: of a pack, unless one row has more.
    """
    return _planned(lengths, steps, num_processes=num_processes, max_tokens=max_tokens)[0]


def _planned(
    lengths: np.ndarray, steps: Sequence[np.ndarray], *, num_processes: int, max_tokens: int
) -> tuple[tuple[int, ...], _Choice]:
    """Return the ladder, and the packs of each step if each could have a width of its own."""
    limit = max(max_tokens, int(lengths.max()))
    table = _table(lengths, steps)
    # No pack is wider than a process's share of the largest step, or than the longest row.
    widest = min(limit, max(int(table.sum(1).max()) // num_processes, int(lengths.max())))
    grain = _grain(widest)
    chosen = _choice(table, num_processes, np.arange(grain, limit + grain, grain))
    needs, place = np.unique(chosen.widths, return_inverse=True)
    weights = np.bincount(place, weights=chosen.num_packs, minlength=len(needs))
    ladders = _ladders(needs, weights)
    fewest = next(ladder for cost, ladder in ladders if cost <= (1 + _SPARE) * ladders[-1][0])
    return tuple(int(width) for width in fewest), chosen


def _grain(width: int) -> int:
    """Return the multiple to which widths are rounded: at most 1.6 % of a width, and at most 128."""
    return int(2 ** np.clip(int(np.log2(max(width, 1) / 64)), 0, 7))


def _ladders(needs: np.ndarray, weights: np.ndarray) -> list[tuple[float, list[int]]]:
    """Return the best ladder of 1, 2, ... `MAX_WIDTHS` widths, each with the positions it computes.

    Dynamic programming: the best ladder of k widths for the smallest j needs ends at need j, and has the best
    ladder of k - 1 widths for some smaller number of needs before it.

    Args:
        needs: distinct needed widths, ascending.
        weights: number of packs with each.
    """
    total = np.concatenate([[0.0], np.cumsum(weights)])
    # cost[j]: positions that the j smallest needs compute; ladders[j]: the widths for them.
    cost = np.full(len(needs) + 1, np.inf)
    cost[0], ladders = 0.0, [list[int]() for _ in range(len(needs) + 1)]
    found = []
    for _ in range(min(MAX_WIDTHS, len(needs))):
        longer, lists = np.full_like(cost, np.inf), [list[int]() for _ in cost]
        longer[0] = 0.0
        for last in range(1, len(cost)):
            totals = cost[:last] + (total[last] - total[:last]) * needs[last - 1]
            before = int(np.argmin(totals))
            longer[last], lists[last] = totals[before], [*ladders[before], int(needs[last - 1])]
        cost, ladders = longer, lists
        found.append((float(cost[-1]), ladders[-1]))
    return found


def _table(lengths: np.ndarray, steps: Sequence[np.ndarray]) -> np.ndarray:
    """Return the lengths of the rows of each step, steps x rows, with zeros where a step has fewer."""
    table = np.zeros((len(steps), max(len(rows) for rows in steps)), dtype=np.int64)
    for number, rows in enumerate(steps):
        table[number, : len(rows)] = lengths[rows]
    return table


def _choice(table: np.ndarray, num_processes: int, widths: np.ndarray) -> _Choice:
    """Return, for each step, the number of packs with the fewest computed positions and no pack too wide.

    Args:
        table: lengths of the rows of each step in decreasing order, steps x rows.
        num_processes: number of processes that share a step.
        widths: those that a pack may have, ascending; no row is longer than the last.
    """
    ideal = table.sum(1) / num_processes
    least = np.maximum(1, np.ceil(ideal / widths[-1])).astype(np.int64)
    none = np.zeros(len(table), dtype=np.int64)
    best = _Choice(none, none.copy(), none.copy(), np.zeros_like(table))
    open_, more = np.arange(len(table)), 0
    while len(open_):
        for number in np.unique(least[open_] + more):
            steps = open_[least[open_] + more == number]
            packs, loads, counts = _spread(table[steps], int(number) * num_processes)
            needs, former = loads.max(1), best.widths[steps] * best.num_packs[steps]
            smallest = widths[np.minimum(np.searchsorted(widths, needs), len(widths) - 1)]
            better = (needs <= smallest) & ((former == 0) | (smallest * number < former))
            chosen = steps[better]
            best.widths[chosen], best.num_packs[chosen] = smallest[better], number
            best.max_rows[chosen], best.packs[chosen] = counts.max(1)[better], packs[better]
        more += 1
        positions = best.widths * best.num_packs
        # A step stays open until its packs are almost full, or long enough for any that fit.
        wasteful = positions[open_] > (1 + _SPARE) * ideal[open_]
        open_ = open_[(positions[open_] == 0) | (wasteful & (more < _MORE_PACKS))]
    return best


def _spread(table: np.ndarray, num_packs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put each row of each step into that pack of the step which is emptiest so far.

    Args:
        table: lengths of the rows of each step in decreasing order, steps x rows; 0 is no row.
        num_packs: packs of a step.

    Returns:
        Number of each row's pack (steps x rows), tokens of each pack (steps x packs), and its rows.
    """
    loads, counts = (np.zeros((len(table), num_packs), dtype=np.int64) for _ in range(2))
    packs, every = np.zeros_like(table), np.arange(len(table))
    if num_packs == 1:
        return packs, table.sum(1)[:, None], (table > 0).sum(1)[:, None]
    if len(table) <= _FEW_STEPS:
        for step, rows in enumerate(table.tolist()):
            heap = [(0, pack) for pack in range(num_packs)]
            for place, tokens in enumerate(rows):
                load, pack = heap[0]
                packs[step, place] = pack
                heapq.heapreplace(heap, (load + tokens, pack))
            for load, pack in heap:
                loads[step, pack] = load
            counts[step] = np.bincount(packs[step][table[step] > 0], minlength=num_packs)
        return packs, loads, counts
    for row in range(table.shape[1]):
        emptiest = loads.argmin(1)
        packs[:, row] = emptiest
        loads[every, emptiest] += table[:, row]
        counts[every, emptiest] += table[:, row] > 0
    return packs, loads, counts

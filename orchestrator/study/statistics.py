"""Intervals and tests over counts of right answers. It knows no models and no figures."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""Half-width of a two-sided 95 % interval, in standard deviations."""


def wilson(num_correct: int, num_items: int, *, z: float = Z_95) -> tuple[float, float]:
    """Returns the Wilson score interval of a share; (0, 1) when nothing was tried."""
    if num_items == 0:
        return 0.0, 1.0
    share = num_correct / num_items
    scale = 1 + z * z / num_items
    centre = (share + z * z / (2 * num_items)) / scale
    half = z * math.sqrt(share * (1 - share) / num_items + z * z / (4 * num_items**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)

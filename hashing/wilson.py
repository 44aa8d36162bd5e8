"""What a count of few says of a share."""

from __future__ import annotations

from math import sqrt

ONE_SIDED_95 = 1.6448536269514722
"""Standard deviations beyond which 5% of a normal distribution lie on one side."""


def wilson_bounds(count: int, of: int, *, deviations: float = ONE_SIDED_95) -> tuple[float, float]:
    """Return the least and the largest share that `count` marks of `of` trials are consistent with, [0, 1].

    Wilson, "Probable inference, the law of succession, and statistical inference" (1927). (0, 1) without
    trials.
    """
    if of == 0:
        return 0.0, 1.0
    share, square = count / of, deviations**2
    centre = share + square / (2 * of)
    spread = deviations * sqrt(share * (1 - share) / of + square / (4 * of * of))
    scale = 1 + square / of
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)

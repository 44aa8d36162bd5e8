"""What a count of few says of a share."""

from __future__ import annotations

import numpy as np

CONFIDENCE = 0.95
"""With which one end of an interval holds."""

_HALVINGS = 40


def share_bounds(count: int, of: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the least and the largest share that `count` marks of `of` trials are consistent with, [0, 1].

    Each end holds alone with at least that confidence, however few the trials are: exact binomial tails
    (Clopper & Pearson, "The use of confidence or fiducial limits", 1934). (0, 1) without trials. O(of).
    """
    low = 0.0 if count == 0 else _share_of_tail(count, of, tail=1 - confidence)
    high = 1.0 if count == of else _share_of_tail(count + 1, of, tail=confidence)
    return low, high


def _share_of_tail(least: int, of: int, *, tail: float) -> float:
    """Return the share at which `least` marks or more have the probability `tail`, which grows with it."""
    counts = np.arange(least, of + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, of + 1)))])  # of factorials
    ways = logs[of] - logs[counts] - logs[of - counts]
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        terms = ways + counts * np.log(share) + (of - counts) * np.log1p(-share)
        if np.exp(terms).sum() < tail:
            low = share
        else:
            high = share
    return (low + high) / 2

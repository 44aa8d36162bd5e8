"""Fit a score's calibration on pairs that what gave the score was not learned on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from hashing.score_calibration import LEAST_PROBABILITY, ScoreCalibration

PAIRS_PER_POINT = 40
POINTS_LIMIT = 400


def fit_calibration(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> ScoreCalibration:
    """Return the rising line through the shares of the same among pairs of about equal score.

    scores: float64 [p]. same: bool [p]. Isotonic regression over groups of at least PAIRS_PER_POINT
    neighbours in score (Zadrozny & Elkan 2002), each share with half a pair of either kind added, so that
    none is 0 or 1; groups that isotonic regression pools become one point, so that the line rises strictly.
    """
    order = np.argsort(scores, kind="stable")
    groups = np.array_split(order, max(1, min(POINTS_LIMIT, scores.size // PAIRS_PER_POINT)))
    places = np.array([scores[group].mean() for group in groups])
    shares = np.array([(same[group].sum() + 0.5) / (group.size + 1) for group in groups])
    sizes = np.array([group.size for group in groups], dtype=np.float64)
    rising = IsotonicRegression().fit_transform(places, shares, sample_weight=sizes)
    _, pool = np.unique(np.round(rising, 12), return_inverse=True)
    weight = np.bincount(pool, weights=sizes)
    pooled_scores = np.bincount(pool, weights=sizes * places) / weight
    pooled = np.bincount(pool, weights=sizes * rising) / weight
    return ScoreCalibration(
        scores=pooled_scores,
        probabilities=np.clip(pooled, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY),
    )

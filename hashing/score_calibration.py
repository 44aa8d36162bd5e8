"""From a score to a probability: a rising line through a few measured points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_PROBABILITY = 1e-4
"""A calibrated probability is within this of 0 and of 1 at most: no count of pairs proves more."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreCalibration:
    """P(same) by score: linear between the points, constant beyond the outer ones.

    scores: float64 [k], rising. probabilities: float64 [k], rising or level, within LEAST_PROBABILITY of the
    ends of (0, 1).
    """

    scores: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    def __post_init__(self) -> None:
        for array in (self.scores, self.probabilities):
            array.setflags(write=False)

    def probability(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map scores [n] to probabilities, float64 [n]; a higher score never gives a lower one."""
        probability: NDArray[np.float64] = np.interp(scores, self.scores, self.probabilities)
        return probability

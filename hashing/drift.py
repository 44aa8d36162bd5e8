"""Drift of unlabelled embeddings away from what an encoder was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashing.errors import EmbeddingsError


@dataclass(frozen=True, slots=True, eq=False)
class DriftReference:
    """Moments of the instance values h over training data.

    mean: float32 [code_bits]. variance: trace of the covariance. squared_variance: trace of its square.
    row_count: rows they were taken from.
    """

    mean: NDArray[np.float32]
    variance: float
    squared_variance: float
    row_count: int

    def __post_init__(self) -> None:
        self.mean.setflags(write=False)


def fit_drift_reference(values: NDArray[np.float32]) -> DriftReference:
    """Summarise instance values h, float32 [n, code_bits], n >= 2."""
    mean = values.mean(axis=0, dtype=np.float64)
    centred = values - mean.astype(np.float32)
    covariance = (centred.T @ centred).astype(np.float64) / (values.shape[0] - 1)
    return DriftReference(
        mean=mean.astype(np.float32),
        variance=float(np.trace(covariance)),
        squared_variance=float((covariance**2).sum()),
        row_count=values.shape[0],
    )


def drift_score(reference: DriftReference, values: NDArray[np.float32]) -> float:
    """Return how many standard deviations the rows' mean is farther from the reference than chance puts it.

    values: instance values h of the new rows, float32 [n, code_bits], n >= 1. The two-sample mean test
    of Bai & Saranadasa (1996): about 0 with deviation 1 for rows drawn alike, whatever n, and growing
    with n for others; its right tail is heavier than a normal one, so alarm at about 8. Rows that
    belong together (one conversation, one topic) are not drawn alike and score high too; a shift that
    keeps the mean, or that only a small part of the rows has, can go unseen.
    Raises: EmbeddingsError for no rows.
    """
    if values.shape[0] == 0:
        raise EmbeddingsError("drift needs at least one row")
    shift = values.mean(axis=0, dtype=np.float64) - reference.mean
    noise = 1 / values.shape[0] + 1 / reference.row_count
    excess = float((shift**2).sum()) - noise * reference.variance
    deviation = noise * math.sqrt(2 * reference.squared_variance)
    if deviation == 0:
        return math.inf if excess > 0 else 0.0
    return float(excess / deviation)

"""Closed-form maps from a new embedder's space to an old one, from texts embedded by both."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashing.embeddings import row_chunks

RIDGES = np.logspace(-3, 2, 26)
"""Strengths that are tried, in units of the mean squared singular value."""

PRIOR_FLOOR = 4e-3
"""Of the mean variance of stored rows, added to the variance of every direction."""

LEAST_VARIANCE = 1e-12
"""Mean variance of stored rows that are taken for equal; they have at least this one."""

NOISE_SHARE = 0.05
"""Of the mean variance that the reverse regression leaves over, added to that of every direction."""

NOISE_FLOOR = 1e-6
"""Of the mean variance of new embeddings, for pairs that a linear map explains wholly."""


def stored_covariance(stored: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the covariance of unit rows, float32 [m, old_dim], m >= 1; float64 [old_dim, old_dim]."""
    mean = stored.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((stored.shape[1], stored.shape[1]))
    for chunk in row_chunks(stored):
        centred = chunk - mean.astype(np.float32)
        covariance += centred.T @ centred
    covariance /= stored.shape[0]
    return covariance


def procrustes(new: NDArray[np.float64], old: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scaled orthonormal map nearest to taking `new` to `old`, float64 [new_dim, old_dim].

    new: float64 [n, new_dim], old: float64 [n, old_dim], both centred. The orthogonal Procrustes problem
    (Schoenemann 1966), with the scale of least error: without it the old mean, which is added to what is
    mapped, would outweigh it. Where the widths differ, the narrower space keeps its angles. All zero where
    the pairs have no correlation at all.
    """
    left, singular, right = np.linalg.svd(new.T @ old, full_matrices=False)
    scale = singular.sum() / max(float((new**2).sum()), np.finfo(np.float64).tiny)
    rotation: NDArray[np.float64] = scale * (left @ right)
    return rotation


def ridge(inputs: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ridge regression whose strength generalised cross-validation chooses, float64 [d, k].

    inputs: float64 [n, d], targets: float64 [n, k], both centred, n >= 2.
    Golub, Heath and Wahba, "Generalized cross-validation" (1979): all strengths from one decomposition.
    """
    count = inputs.shape[0]
    left, singular, right = np.linalg.svd(inputs, full_matrices=False)
    squares = singular**2
    rotated = left.T @ targets  # [r, k]
    energy = (rotated**2).sum(axis=1)  # [r]
    unexplained = max(float((targets**2).sum() - energy.sum()), 0.0)
    best_error, best_strength = np.inf, float(RIDGES[-1] * squares.mean())
    for strength in RIDGES * squares.mean():
        kept = squares / (squares + strength)
        freedom = 1 - (kept.sum() + 1) / count
        if freedom <= 0:
            continue
        error = (unexplained + ((1 - kept) ** 2 * energy).sum()) / freedom**2
        if error < best_error:
            best_error, best_strength = float(error), float(strength)
    weight: NDArray[np.float64] = right.T @ ((singular / (squares + best_strength))[:, None] * rotated)
    return weight


def posterior_map(
    new: NDArray[np.float64], old: NDArray[np.float64], *, covariance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the map to the posterior mean of the old embedding given the new one, [new_dim, old_dim].

    new: float64 [n, new_dim], old: float64 [n, old_dim], both centred on their own means. covariance: of the
    stored rows, the prior. The new embedding is regressed on the old one, new = old A + noise, and Bayes'
    rule turns it round: the old space's covariance comes from every stored row and needs no pairs, so few
    pairs go further than in a regression of old on new.
    """
    forward = ridge(old, new)  # A, [old_dim, new_dim]
    residual = new - old @ forward
    noise: NDArray[np.float64] = residual.T @ residual / new.shape[0]  # [new_dim, new_dim]
    floor = NOISE_SHARE * np.trace(noise) / len(noise) + NOISE_FLOOR * float((new**2).mean())
    noise[np.diag_indices_from(noise)] += floor
    variance = np.trace(covariance) / len(covariance)
    spread = PRIOR_FLOOR * variance if variance > LEAST_VARIANCE else LEAST_VARIANCE
    prior = covariance + spread * np.eye(len(covariance))
    evidence = np.linalg.solve(noise, forward.T)  # [new_dim, old_dim]
    precision = np.linalg.inv(prior) + forward @ evidence
    result: NDArray[np.float64] = np.linalg.solve(precision, evidence.T).T
    return result


def mean_of_maps(
    first: NDArray[np.float64], second: NDArray[np.float64], *, new: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mean of two maps [new_dim, old_dim], the second scaled to map `new` as long as the first.

    new: float64 [n, new_dim], centred. Where one maps every row to zero the other is returned.
    """
    lengths = [float(np.linalg.norm(new @ weight, axis=1).mean()) for weight in (first, second)]
    if min(lengths) == 0.0:
        return first if lengths[0] > 0 else second
    mean: NDArray[np.float64] = (first + second * (lengths[0] / lengths[1])) / 2
    return mean

"""Reruns of cross-modal hashing methods from their papers' formulas, with the papers' settings.

Each takes features of paired training rows, [n, dim] each, and labels [n, classes] of 0 and 1, and gives
what is stored for the training rows and a function that codes any row from its own features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CCA_RIDGE = 1e-3
CMFH_WEIGHT, CMFH_MU, CMFH_GAMMA, CMFH_ITERATIONS = 0.5, 100.0, 0.01, 50
DLFH_LAMBDA, DLFH_ITERATIONS, DLFH_COLUMNS = 8.0, 15, 256
KERNEL_ANCHORS, KERNEL_RIDGE = 500, 1e-2


@dataclass(frozen=True, slots=True, eq=False)
class Rival:
    """stored: the codes of the training rows of each modality, -1/+1 [n, bits]. encode: of each modality,
    rows [m, dim] to real values [m, bits] whose signs are the code."""

    stored: tuple[Array, Array]
    encode: tuple[Callable[[Array], Array], Callable[[Array], Array]]


Fit = Callable[..., Rival]


def fit_cca(first: Array, second: Array, labels: Array, *, bits: int, seed: int) -> Rival:
    """Canonical correlation analysis (Hotelling 1936), its axes rotated at random to the number of bits."""
    means = first.mean(axis=0), second.mean(axis=0)
    one, other = first - means[0], second - means[1]
    roots = [
        _inverse_root(rows.T @ rows / len(rows) + CCA_RIDGE * np.eye(rows.shape[1]) * _scale(rows))
        for rows in (one, other)
    ]
    left, correlations, right = np.linalg.svd(roots[0] @ (one.T @ other / len(one)) @ roots[1])
    count = min(bits, correlations.size)
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((max(bits, count), count)))[0].T  # [count, bits]
    weights = roots[0] @ left[:, :count] @ rotation, roots[1] @ right[:count].T @ rotation
    return _by_functions(first, second, _linear(weights[0], means[0]), _linear(weights[1], means[1]))


def fit_scm(first: Array, second: Array, labels: Array, *, bits: int, seed: int) -> Rival:
    """Semantic correlation maximisation, sequential (Zhang & Li, AAAI 2014)."""
    means = first.mean(axis=0), second.mean(axis=0)
    one, other = first - means[0], second - means[1]
    unit = labels / np.linalg.norm(labels, axis=1, keepdims=True)
    residue = bits * (2 * (one.T @ unit) @ (unit.T @ other) - np.outer(one.sum(axis=0), other.sum(axis=0)))
    roots = [
        _inverse_root(rows.T @ rows + 1e-6 * len(rows) * np.eye(rows.shape[1]) * _scale(rows))
        for rows in (one, other)
    ]
    columns: tuple[list[Array], list[Array]] = ([], [])
    for _ in range(bits):
        left, _, right = np.linalg.svd(roots[0] @ residue @ roots[1], full_matrices=False)
        pair = roots[0] @ left[:, 0], roots[1] @ right[0]
        residue = residue - np.outer(one.T @ _signs(one @ pair[0]), other.T @ _signs(other @ pair[1]))
        for column, weight in zip(columns, pair, strict=True):
            column.append(weight)
    weights = np.stack(columns[0], axis=1), np.stack(columns[1], axis=1)
    return _by_functions(first, second, _linear(weights[0], means[0]), _linear(weights[1], means[1]))


def fit_cmfh(first: Array, second: Array, labels: Array, *, bits: int, seed: int) -> Rival:
    """Collective matrix factorisation hashing (Ding et al., CVPR 2014): a pair has one stored code."""
    means = first.mean(axis=0), second.mean(axis=0)
    views = first - means[0], second - means[1]
    share = CMFH_WEIGHT, 1 - CMFH_WEIGHT
    latent = np.random.default_rng(seed).standard_normal((len(first), bits))
    inverses = [np.linalg.inv(v.T @ v + CMFH_GAMMA / CMFH_MU * np.eye(v.shape[1])) for v in views]
    weights = [inverse @ v.T @ latent for inverse, v in zip(inverses, views, strict=True)]
    for _ in range(CMFH_ITERATIONS):
        left: Array = (2 * CMFH_MU + CMFH_GAMMA) * np.eye(bits)
        right = np.zeros_like(latent)
        for view, weight, alpha in zip(views, weights, share, strict=True):
            basis: Array = np.linalg.solve(
                latent.T @ latent + CMFH_GAMMA / alpha * np.eye(bits), latent.T @ view
            )  # [bits, dim]
            left += alpha * basis @ basis.T
            right += alpha * view @ basis.T + CMFH_MU * view @ weight
        latent = np.asarray(np.linalg.solve(left, right.T).T)
        weights = [inverse @ v.T @ latent for inverse, v in zip(inverses, views, strict=True)]
    stored = _signs(latent - latent.mean(axis=0))
    return Rival(
        stored=(stored, stored), encode=(_linear(weights[0], means[0]), _linear(weights[1], means[1]))
    )


def fit_dlfh(first: Array, second: Array, labels: Array, *, bits: int, seed: int) -> Rival:
    """Discrete latent factor hashing with sampled columns (Jiang & Li, IEEE TIP 2019).

    Stored codes are learned from the labels bit by bit; kernel ridge regression on anchors codes other rows.
    """
    rng = np.random.default_rng(seed)
    similar = (labels @ labels.T > 0).astype(np.float32)
    codes = [_signs(rng.standard_normal((len(labels), bits))).astype(np.float32) for _ in range(2)]
    scale = np.float32(DLFH_LAMBDA / bits)
    for _ in range(DLFH_ITERATIONS):
        for own, other in ((0, 1), (1, 0)):
            chosen = rng.permutation(len(labels))[:DLFH_COLUMNS]
            moved, fixed, wanted = codes[own], codes[other][chosen], similar[:, chosen]
            theta = scale * moved @ fixed.T  # [n, columns]
            for bit in range(bits):
                surplus = wanted - 1 / (1 + np.exp(-theta))
                gradient = scale * surplus @ fixed[:, bit]
                gradient += len(chosen) * scale**2 / 4 * moved[:, bit]
                renewed = np.where(gradient > 0, np.float32(1), np.float32(-1))
                theta += scale * np.outer(renewed - moved[:, bit], fixed[:, bit])
                moved[:, bit] = renewed
    stored = codes[0].astype(np.float64), codes[1].astype(np.float64)
    return Rival(
        stored=stored,
        encode=(_kernel_ridge(first, stored[0], rng=rng), _kernel_ridge(second, stored[1], rng=rng)),
    )


RIVALS: dict[str, Fit] = {"cca": fit_cca, "scm": fit_scm, "cmfh": fit_cmfh, "dlfh": fit_dlfh}


def _by_functions(
    first: Array, second: Array, one: Callable[[Array], Array], other: Callable[[Array], Array]
) -> Rival:
    return Rival(stored=(_signs(one(first)), _signs(other(second))), encode=(one, other))


def _linear(weight: Array, mean: Array) -> Callable[[Array], Array]:
    def encode(rows: Array) -> Array:
        values: Array = (rows - mean) @ weight
        return values

    return encode


def _kernel_ridge(rows: Array, codes: Array, *, rng: np.random.Generator) -> Callable[[Array], Array]:
    """Gaussian kernel on anchors drawn from the rows, its width the mean distance to them."""
    anchors = rows[rng.permutation(len(rows))[:KERNEL_ANCHORS]]
    width = np.sqrt(_squared_distances(rows, anchors)).mean()

    def kernel(other: Array) -> Array:
        mapped: Array = np.exp(-_squared_distances(other, anchors) / (2 * width**2))
        return mapped

    mapped = kernel(rows)
    mean = mapped.mean(axis=0)
    centred = mapped - mean
    gram = centred.T @ centred + KERNEL_RIDGE * np.eye(len(anchors))
    return lambda other: (kernel(other) - mean) @ np.linalg.solve(gram, centred.T @ codes)


def _squared_distances(rows: Array, others: Array) -> Array:
    squares = (rows**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2 * rows @ others.T
    distances: Array = np.maximum(squares, 0)
    return distances


def _inverse_root(matrix: Array) -> Array:
    values, axes = np.linalg.eigh(matrix)
    root: Array = axes / np.sqrt(values) @ axes.T
    return root


def _scale(rows: Array) -> float:
    """Mean variance of a column."""
    return float((rows**2).mean())


def _signs(values: NDArray[Any]) -> Array:
    return np.where(values > 0, 1.0, -1.0)

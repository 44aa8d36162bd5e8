"""What rows of several modalities have in common, as vectors that each modality then learns to predict.

From labels: rows are as near as their label vectors (cosine). From pairs: the canonical variates of both
modalities' features. Rows with neither take what a linear reconstruction over their neighbours gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hashing.analytic import RandomFeatures
from hashing.class_codes import ClassCodes, Labels
from hashing.metrics import top_columns

TARGET_CLASSES_LIMIT = 256
"""Above this many classes targets are class codes instead of one axis a class."""

PAIR_AXES_LIMIT = 32
PAIR_RIDGE = 1.0
"""Of the canonical correlation, relative to the mean variance of a feature."""

ANCHORS = 8
ANCHOR_RIDGE = 1e-2
ANCHOR_POOL_LIMIT = 20_000
"""Rows with targets among which the nearest are sought; more are thinned out evenly."""

_ANCHOR_CHUNK = 512


def label_targets(labels: Labels, *, class_codes: ClassCodes) -> NDArray[np.float64]:
    """Return unit vectors float64 [n, k] whose inner product is the cosine of the label vectors; a row
    without labels is 0.

    With over TARGET_CLASSES_LIMIT classes, k is label_bits and the cosines hold but for the correlation of
    class codes. Raises: UnknownLabelError.
    """
    if len(class_codes) > TARGET_CLASSES_LIMIT:
        axes = np.where(class_codes.bits, 1.0, -1.0) / np.sqrt(class_codes.label_bits)
    else:
        axes = np.eye(len(class_codes))
    targets = np.zeros((len(labels), axes.shape[1]))
    for row, own in enumerate(labels):
        for label in set(own):
            targets[row] += axes[class_codes.position(label)]
    norms = np.linalg.norm(targets, axis=1, keepdims=True)
    unit: NDArray[np.float64] = targets / np.where(norms > 0, norms, 1)
    return unit


def pair_targets(
    first: NDArray[np.float32], second: NDArray[np.float32], *, maps: Sequence[RandomFeatures]
) -> NDArray[np.float64]:
    """Return targets of paired rows by regularised canonical correlation of their random features (Hotelling
    1936; kernel CCA with random features, Lopez-Paz et al. 2014).

    first, second: float32 [p, dim] of the two modalities, row i of one belongs to row i of the other. Each
    axis is the mean of both variates, as long as their correlation. Returns float64 [p, k], k at most
    PAIR_AXES_LIMIT.
    """
    whitened = [
        _whitened(features.transform(rows).astype(np.float64))
        for rows, features in zip((first, second), maps, strict=True)
    ]
    left, correlations, right = np.linalg.svd(whitened[0].T @ whitened[1], full_matrices=False)
    count = min(PAIR_AXES_LIMIT, correlations.size)
    scale = np.clip(correlations[:count], 0, 1) * np.sqrt(first.shape[0]) / 2
    variates: NDArray[np.float64] = (whitened[0] @ left[:, :count] + whitened[1] @ right[:count].T) * scale
    return variates


def carry_over_pairs(
    targets: Mapping[str, NDArray[np.float64]],
    known: Mapping[str, NDArray[np.bool_]],
    *,
    pairs: NDArray[np.int64],
) -> None:
    """Give rows that have no targets those of their partners, in place; pairs: int64 [p, 2], one modality a
    column."""
    (first, second), (one, other) = tuple(targets), pairs.T
    was_known = known[first].copy(), known[second].copy()
    taken = was_known[0][one] & ~was_known[1][other]
    targets[second][other[taken]] = targets[first][one[taken]]
    known[second][other[taken]] = True
    taken = was_known[1][other] & ~was_known[0][one]
    targets[first][one[taken]] = targets[second][other[taken]]
    known[first][one[taken]] = True


def reconstruct_targets(
    rows: NDArray[np.float32], targets: NDArray[np.float64], *, known: NDArray[np.bool_]
) -> None:
    """Fill in the targets of rows that have none, in place: the weights that best rebuild a row from its
    ANCHORS nearest rows with targets rebuild its targets too (the linear reconstruction of RREH).

    rows: float32 [n, dim]. targets: float64 [n, k]. known: bool [n], at least one.
    """
    anchors = np.flatnonzero(known)
    anchors = anchors[:: -(-anchors.size // ANCHOR_POOL_LIMIT)]
    count = min(ANCHORS, anchors.size)
    unknown = np.flatnonzero(~known)
    for start in range(0, unknown.size, _ANCHOR_CHUNK):
        chunk = unknown[start : start + _ANCHOR_CHUNK]
        nearest = anchors[top_columns(rows[chunk] @ rows[anchors].T, count=count)]  # [chunk, count]
        differences = rows[nearest].astype(np.float64) - rows[chunk][:, None, :]  # [chunk, count, dim]
        grams = differences @ differences.transpose(0, 2, 1)
        traces = np.trace(grams, axis1=1, axis2=2)[:, None, None]
        grams += np.eye(count) * (ANCHOR_RIDGE * traces + 1e-12)
        weights = np.linalg.solve(grams, np.ones((chunk.size, count, 1)))[:, :, 0]
        weights /= weights.sum(axis=1, keepdims=True)
        targets[chunk] = np.einsum("nc,nck->nk", weights, targets[nearest])


def _whitened(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return centred features with (nearly) unit covariance, float64 [n, D]: F (F'F + r I)^-1/2."""
    centred = features - features.mean(axis=0)
    gram = centred.T @ centred
    values, axes = np.linalg.eigh(gram)
    ridge = PAIR_RIDGE * values.sum() / len(values) + 1e-12
    whitened: NDArray[np.float64] = centred @ (axes / np.sqrt(np.maximum(values, 0) + ridge))
    return whitened

"""Function codes: codes that each modality makes of its own features, and queries to decode them.

Each modality predicts what rows have in common (`semantic_targets`) by a ridge regression on random
features. Bits are signs of random combinations of the predictions. What a row's bits say about its targets is
learned as well, from bits of predictions that had not seen the row: so a query of another modality is turned
into the weights that best estimate, bit by bit, what it and the row have in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from hashing.analytic import RandomFeatures
from hashing.cross_part import CrossQuery
from hashing.crossmodal_config import KernelSettings
from hashing.embeddings import CHUNK_ROWS
from hashing.feature_tower import FeatureTower
from hashing.kernel_ridge import FoldedRidge

THRESHOLD_QUANTILES = (0.1, 0.9)
"""Thresholds of the bits are spread over these quantiles of their combination, so that bits also tell how
certain a prediction is: the sign around the mean alone told only what it is of."""

DECODER_RIDGE = 10.0
FRAMES = 16
"""Draws of the combinations, of which the one is taken whose bits tell most about the targets."""


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """What one modality predicts of the targets.

    features: of its embeddings. weight: float64 [D, k], of all rows. first_weight: float64 [D, k], of all
    but those of the first fold. held_out: float64 [n, k], predictions of rows by the folds they are not in.
    targets: float64 [n, k].
    """

    features: RandomFeatures
    weight: NDArray[np.float64]
    first_weight: NDArray[np.float64]
    held_out: NDArray[np.float64]
    targets: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class FunctionCode:
    """Bits of one modality: sign of (prediction @ frame - thresholds).

    frame: float64 [k, bits]. thresholds: float64 [bits]. decoder: float64 [k, bits], the weights by which
    bits in -1/+1 estimate the targets. error: mean squared error of that estimate.
    """

    frame: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    decoder: NDArray[np.float64]
    error: float

    def signs(self, predictions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the bits of predictions float64 [n, k], -1/+1 float64 [n, bits]."""
        return np.where(predictions @ self.frame > self.thresholds, 1.0, -1.0)


def fit_predictor(
    embeddings: NDArray[np.float32],
    targets: NDArray[np.float64],
    *,
    features: RandomFeatures,
    kernel: KernelSettings,
    folds: NDArray[np.intp],
) -> Predictor:
    """Fit the regression of one modality, and those that leave a fold out.

    embeddings: float32 [n, dim]. targets: float64 [n, k]. folds: intp [n]. Cost O(n D^2 + folds D^3).
    """
    folded = FoldedRidge(embeddings, targets, features=features, folds=folds)
    return Predictor(
        features=features,
        weight=folded.solve(kernel.ridge),
        first_weight=folded.solve(kernel.ridge, left_out=0),
        held_out=folded.held_out(kernel.ridge),
        targets=targets,
    )


def fit_function_code(predictor: Predictor, *, bits: int, seed: int) -> FunctionCode:
    """Draw FRAMES codes of `bits` bits and return the one whose bits tell most about the targets."""
    drawn = [_draw_code(predictor, bits=bits, rng=np.random.default_rng((seed, i))) for i in range(FRAMES)]
    return min(drawn, key=lambda code: code.error)


def tower_of(
    predictor: Predictor,
    code: FunctionCode,
    *,
    linear: NDArray[np.float32],
    linear_offset: NDArray[np.float32],
    without_first_fold: bool = False,
) -> FeatureTower:
    """Return what codes rows: bits of `linear` float32 [dim, b] - `linear_offset` [b], then function bits.

    without_first_fold: with predictions that never saw the rows of the first fold, to measure on them.
    """
    weight = predictor.first_weight if without_first_fold else predictor.weight
    return FeatureTower(
        features=predictor.features,
        linear=linear,
        output=(weight @ code.frame).astype(np.float32),
        offset=np.concatenate([linear_offset, code.thresholds.astype(np.float32)]),
    )


def cross_queries(
    predictors: Mapping[str, Predictor], codes: Mapping[str, FunctionCode]
) -> dict[tuple[str, str], CrossQuery]:
    """Return the query of every ordered pair of modalities."""
    queries = {}
    for source, target in permutations(predictors, 2):
        predictor, decoder = predictors[source], codes[target].decoder
        queries[source, target] = CrossQuery(
            features=predictor.features,
            weight=(predictor.weight @ decoder).astype(np.float32),
            mean=(predictor.held_out.mean(axis=0) @ decoder).astype(np.float32),
        )
    return queries


def held_out_scores(
    source: Predictor,
    target: Predictor,
    code: FunctionCode,
    *,
    queries: NDArray[np.intp],
    rows: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Return scores of held-out queries against codes of rows that were held out too, float64 [q, n].

    code: that of the target's modality. queries, rows: row numbers [q] of the source, [n] of the target.
    """
    signs = code.signs(target.held_out[rows])  # [n, bits]
    scores: NDArray[np.float64] = (source.held_out[queries] @ code.decoder) @ signs.T
    return scores


def _draw_code(predictor: Predictor, *, bits: int, rng: np.random.Generator) -> FunctionCode:
    predictions = predictor.held_out
    frame = rng.standard_normal((predictions.shape[1], bits))
    low, high = THRESHOLD_QUANTILES
    quantiles = rng.permutation(low + (high - low) * (np.arange(bits) + 0.5) / bits)
    sample = predictions[:: max(1, predictions.shape[0] // CHUNK_ROWS)] @ frame  # [s, bits]
    thresholds = np.array([np.quantile(sample[:, i], q) for i, q in enumerate(quantiles)])
    signs = np.where(predictions @ frame > thresholds, 1.0, -1.0)
    with_constant = np.concatenate([signs, np.ones((signs.shape[0], 1))], axis=1)
    gram = with_constant.T @ with_constant + DECODER_RIDGE * np.eye(bits + 1)
    decoder = np.linalg.solve(gram, with_constant.T @ predictor.targets)  # [bits + 1, k]
    error = float(np.mean((with_constant @ decoder - predictor.targets) ** 2))
    # The constant's weight is the same for every row: it orders nothing.
    return FunctionCode(frame=frame, thresholds=thresholds, decoder=decoder[:-1].T, error=error)

"""Ridge regressions on random features: by folds, and the choice of a kernel by what they find."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hashing.analytic import RandomFeatures, draw_features, solve_cholesky
from hashing.crossmodal_config import KernelSettings
from hashing.embeddings import CHUNK_ROWS
from hashing.metrics import grouped_precisions

GAMMAS = (0.5, 1.0, 1.75, 2.5, 3.5)
RIDGES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3)
DEFAULT_KERNEL = KernelSettings(gamma=1.0, ridge=1e-3)
"""Where no labels say which kernel finds best."""

CHOICE_TOLERANCE = 0.002
"""Of kernels whose mAP is within this of the best, the one of the largest ridge is taken: its predictions,
which function codes rank rows by, are the best behaved."""

CHOICE_FEATURES = 1024
"""Random features of the kernels that are tried, or twice as many as rows where that is fewer."""

CHOICE_FOLDS = 4
CHOICE_ROWS_LIMIT = 4000


class FoldedRidge:
    """Sums of one regression from features to targets, kept by fold so that any fold can be left out.

    embeddings: float32 [n, dim]. targets: float64 [n, k]. folds: intp [n], values in 0..fold_count - 1.
    """

    def __init__(
        self,
        embeddings: NDArray[np.float32],
        targets: NDArray[np.float64],
        *,
        features: RandomFeatures,
        folds: NDArray[np.intp],
    ) -> None:
        self._embeddings, self._features, self._folds = embeddings, features, folds
        self._fold_count = int(folds.max()) + 1
        self._grams = np.zeros((self._fold_count, features.count, features.count))
        self._crosses = np.zeros((self._fold_count, features.count, targets.shape[1]))
        for fold in range(self._fold_count):
            own = np.flatnonzero(folds == fold)
            for start in range(0, own.size, CHUNK_ROWS):
                chunk = own[start : start + CHUNK_ROWS]
                mapped = features.transform(embeddings[chunk]).astype(np.float64)
                self._grams[fold] += mapped.T @ mapped
                self._crosses[fold] += mapped.T @ targets[chunk]

    def solve(self, ridge: float, *, left_out: int | None = None) -> NDArray[np.float64]:
        """Return the weights float64 [D, k] of all folds, or of all but one; ridge: per row."""
        kept = [fold for fold in range(self._fold_count) if fold != left_out]
        row_count = int(np.isin(self._folds, kept).sum())
        gram = self._grams[kept].sum(axis=0)
        gram[np.diag_indices_from(gram)] += ridge * row_count
        return solve_cholesky(np.linalg.cholesky(gram), self._crosses[kept].sum(axis=0))

    def held_out(self, ridge: float) -> NDArray[np.float64]:
        """Return what each row is predicted to have by the folds that it is not in, float64 [n, k]."""
        predicted = np.empty((self._embeddings.shape[0], self._crosses.shape[2]))
        for fold in range(self._fold_count):
            weight = self.solve(ridge, left_out=fold)
            own = np.flatnonzero(self._folds == fold)
            for start in range(0, own.size, CHUNK_ROWS):
                chunk = own[start : start + CHUNK_ROWS]
                predicted[chunk] = self._features.transform(self._embeddings[chunk]) @ weight
        return predicted


def draw_folds(
    row_count: int,
    *,
    fold_count: int,
    rng: np.random.Generator,
    ahead: NDArray[np.integer] | None = None,
) -> NDArray[np.intp]:
    """Deal rows to folds of equal size at random, intp [n]; fewer folds where there are fewer rows.

    ahead: rows that are dealt before the others, so that they are in folds of equal size too.
    """
    turn = rng.permutation(row_count)
    if ahead is not None:
        later = np.ones(row_count, dtype=np.bool_)
        later[ahead] = False
        turn[np.lexsort((turn, later))] = np.arange(row_count)
    return turn % min(fold_count, row_count)


def choose_kernel(
    embeddings: NDArray[np.float32],
    targets: NDArray[np.float64],
    *,
    seed: int,
    gammas: Sequence[float] = GAMMAS,
    ridges: Sequence[float] = RIDGES,
) -> tuple[KernelSettings, float]:
    """Choose gamma and ridge by the mAP of held-out rows as queries against the targets of the others.

    embeddings: float32 [n, dim], unit rows. targets: float64 [n, k], those of rows that are relevant to each
    other have a positive inner product. At most CHOICE_ROWS_LIMIT rows are read. Returns the kernel and its
    mAP.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(embeddings.shape[0])[:CHOICE_ROWS_LIMIT])
    rows, own = embeddings[chosen], targets[chosen]
    folds = draw_folds(rows.shape[0], fold_count=CHOICE_FOLDS, rng=rng)
    count = min(CHOICE_FEATURES, 2 * rows.shape[0])
    tried = []
    for gamma in gammas:
        features = draw_features(rows.shape[1], count=count, gamma=gamma, seed=seed)
        folded = FoldedRidge(rows, own, features=features, folds=folds)
        for ridge in ridges:
            reached = _held_out_map(folded.held_out(ridge), own, folds=folds)
            tried.append((reached, KernelSettings(gamma=gamma, ridge=ridge)))
    best = max(reached for reached, _ in tried)
    as_good = [(kernel, reached) for reached, kernel in tried if reached >= best - CHOICE_TOLERANCE]
    return max(as_good, key=lambda one: (one[0].ridge, one[1]))


def _held_out_map(
    predicted: NDArray[np.float64], targets: NDArray[np.float64], *, folds: NDArray[np.intp]
) -> float:
    precisions = []
    for fold in range(int(folds.max()) + 1):
        queries = folds == fold
        groups, counts = np.unique(targets[~queries], axis=0, return_counts=True)
        relevant = targets[queries] @ groups.T > 1e-9
        precisions.append(grouped_precisions(predicted[queries] @ groups.T, relevant, counts=counts))
    scored = np.concatenate(precisions)
    scored = scored[~np.isnan(scored)]
    return float(scored.mean()) if scored.size else -1.0

"""Instance codes: a centred linear projection whose signs are the bits."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hashing.embeddings import CHUNK_ROWS, row_chunks, sample_rows

FIT_ROWS_LIMIT = 100_000
"""Rows that a fit reads for the mean and the principal axes; more are subsampled by seed."""

ROTATION_ROWS_LIMIT = 32_768
"""Rows that the ITQ alternation reads: its cost grows with rows x iterations, its gain does not."""


NOISE = 1e-10
"""Of the largest entry: what decides directions that rows leave open."""


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A centred linear map; bit i of a row is `project(row)[i] > 0`.

    mean: float32 [dim]. weight: float32 [dim, code_bits].
    """

    mean: NDArray[np.float32]
    weight: NDArray[np.float32]
    _offset: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Subtracting mean @ weight from the result spares a centred copy of the rows.
        offset = self.mean.astype(np.float64) @ self.weight.astype(np.float64)
        object.__setattr__(self, "_offset", offset.astype(np.float32))
        for array in (self.mean, self.weight, self._offset):
            array.setflags(write=False)

    @property
    def dim(self) -> int:
        return int(self.weight.shape[0])

    @property
    def code_bits(self) -> int:
        return int(self.weight.shape[1])

    def project(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 [n, dim] to the real values h, float32 [n, code_bits], before the sign.

        BLAS sums in an order that depends on n, so a row alone and in a batch differ in the last
        ulp: equal bits are promised only where |h| >= 1e-5.
        """
        values = embeddings @ self.weight
        values -= self._offset
        return values


def fit_itq(embeddings: NDArray[np.floating], *, code_bits: int, iterations: int, seed: int) -> Projection:
    """Fit iterative quantisation (Gong & Lazebnik, CVPR 2011).

    embeddings: float [n, dim], n >= 1. PCA keeps min(dim, code_bits) axes; then signs B and a
    rotation R alternate to minimise ||B - V R||. With more bits than axes, R [axes, code_bits] has
    orthonormal rows, which equals padding V with zeros under a square rotation.
    With fewer rows than bits the axes beyond the rows' rank are an arbitrary orthonormal completion:
    the codes of new rows stay valid, only not learned in those directions.
    At most FIT_ROWS_LIMIT rows are read, ROTATION_ROWS_LIMIT of them by the alternation.
    """
    rng = np.random.default_rng(seed)
    rows = sample_rows(embeddings, limit=FIT_ROWS_LIMIT, rng=rng)
    mean, axes = _principal_axes(rows, count=min(rows.shape[1], code_bits))
    sample = sample_rows(rows, limit=ROTATION_ROWS_LIMIT, rng=rng)
    rotated = sample @ axes
    rotated -= mean @ axes  # V, [n, axes]
    rotation = random_orthonormal(axes.shape[1], code_bits, rng=rng)
    for _ in range(iterations):
        correlation = np.zeros((axes.shape[1], code_bits))
        for start in range(0, rotated.shape[0], CHUNK_ROWS):
            chunk = rotated[start : start + CHUNK_ROWS]
            signs = np.where(chunk @ rotation > 0, np.float32(1), np.float32(-1))
            correlation += chunk.T @ signs
        rotation = _polar_factor(correlation, rng=rng)
    return Projection(mean=mean, weight=np.ascontiguousarray(axes @ rotation))


def fit_rotation(embeddings: NDArray[np.floating], *, code_bits: int, seed: int) -> Projection:
    """Centre the rows and draw an orthonormal projection: random hyperplanes (LSH), the baseline.

    embeddings: float [n, dim], n >= 1; at most FIT_ROWS_LIMIT rows are read, for the mean.
    With more bits than dimensions the rows of the weight are orthonormal, else its columns.
    """
    rng = np.random.default_rng(seed)
    rows = sample_rows(embeddings, limit=FIT_ROWS_LIMIT, rng=rng)
    return Projection(mean=_mean(rows), weight=random_orthonormal(rows.shape[1], code_bits, rng=rng))


def random_orthonormal(row_count: int, column_count: int, *, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw float32 [row_count, column_count] with orthonormal columns, or rows where it is wide."""
    tall = rng.standard_normal((max(row_count, column_count), min(row_count, column_count)))
    basis, triangle = np.linalg.qr(tall)
    basis *= np.where(np.diagonal(triangle) < 0, -1.0, 1.0)  # makes the draw uniform (Mezzadri 2007)
    oriented = basis if row_count >= column_count else basis.T
    return np.ascontiguousarray(oriented, dtype=np.float32)


def _polar_factor(matrix: NDArray[np.float64], *, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the orthonormal matrix nearest to one, float32 of its shape: U V^T of its singular vectors.

    LAPACK's divide and conquer gives up on a few matrices of low rank, as fewer rows than bits make them. In
    the directions that these leave open any factor is as good: a trace of noise picks one.
    """
    try:
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
    except np.linalg.LinAlgError:
        noise = NOISE * np.abs(matrix).max() * rng.standard_normal(matrix.shape)
        left, _, right = np.linalg.svd(matrix + noise, full_matrices=False)
    factor: NDArray[np.float32] = (left @ right).astype(np.float32)
    return factor


def _mean(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def _principal_axes(
    rows: NDArray[np.float32], *, count: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean float32 [dim] and the `count` axes of largest variance, float32 [dim, count]."""
    mean = _mean(rows)
    covariance = np.zeros((rows.shape[1], rows.shape[1]))
    for chunk in row_chunks(rows):
        centred = chunk - mean
        covariance += centred.T @ centred
    _, axes = np.linalg.eigh(covariance)  # variance ascends
    return mean, np.ascontiguousarray(axes[:, ::-1][:, :count], dtype=np.float32)

"""Reading rows of embeddings: validation, sampling, chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashing.errors import DimensionError, EmbeddingsError, TrainingDataError

CHUNK_ROWS = 4096
"""Rows that a pass over a large array converts and holds at a time."""


def as_rows(embeddings: ArrayLike, *, dim: int | None = None) -> NDArray[np.float32]:
    """Return `embeddings` as finite float32 [n, dim]; a copy only where the dtype differs.

    embeddings: float16, float32 or float64 [n, dim]; any width where `dim` is None.
    Raises: EmbeddingsError for another dtype or rank, or a value that is not finite in float32;
    DimensionError for another width.
    """
    array = np.asarray(embeddings)
    if array.dtype.kind != "f":
        raise EmbeddingsError(f"embeddings must be floating point, got {array.dtype}")
    if array.ndim != 2:
        raise EmbeddingsError(f"embeddings must be a matrix [n, dim], got {array.ndim} axes")
    if dim is not None and array.shape[1] != dim:
        raise DimensionError(expected=dim, got=array.shape[1])
    if array.dtype != np.float32:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    # The squared norm of the whole array is finite only where every value is: one pass, no temporary.
    if not np.isfinite(np.vdot(array, array)):
        raise EmbeddingsError("embeddings must be finite")
    return array


def check_training_rows(embeddings: NDArray[np.floating]) -> None:
    """Refuse rows that nothing can be fitted on, before any time is spent; reads them in chunks.

    embeddings: float [n, dim].
    Raises: EmbeddingsError for another dtype, rank or a value that is not finite; TrainingDataError
    for fewer than two rows, no column, or rows that are all equal.
    """
    if embeddings.ndim == 2 and embeddings.shape[0] < 2:
        raise TrainingDataError(f"training needs at least 2 rows, got {embeddings.shape[0]}")
    if embeddings.ndim == 2 and embeddings.shape[1] < 1:
        raise TrainingDataError("training rows have no dimension")
    first = as_rows(embeddings[:1])
    varies = False
    for chunk in row_chunks(embeddings):
        varies = varies or bool((chunk != first).any())
    if not varies:
        raise TrainingDataError("all rows are equal")


def row_chunks(embeddings: NDArray[np.floating]) -> Iterator[NDArray[np.float32]]:
    """Yield the rows in order as validated float32 [<= CHUNK_ROWS, dim] chunks."""
    for start in range(0, embeddings.shape[0], CHUNK_ROWS):
        yield as_rows(embeddings[start : start + CHUNK_ROWS])


def sample_rows(
    embeddings: NDArray[np.floating], *, limit: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return all rows, or `limit` of them drawn without replacement, in their order; float32 [n, dim]."""
    if embeddings.shape[0] <= limit:
        return as_rows(embeddings)
    chosen = np.sort(rng.choice(embeddings.shape[0], size=limit, replace=False))
    return as_rows(embeddings[chosen])


def signs(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return +1 where a value is above 0 or a bit is set, else -1; float32 of the same shape."""
    return np.where(values > 0, np.float32(1), np.float32(-1))


def unit_rows(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows scaled to length 1, float32 [n, dim]; a zero row stays zero."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit: NDArray[np.float32] = embeddings / np.maximum(norms, np.float32(1e-12))
    return unit

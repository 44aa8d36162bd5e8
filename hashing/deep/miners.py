"""Which rows a loss is shown: exact neighbours in the embeddings, hard negatives in the codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashing.embeddings import unit_rows
from hashing.metrics import top_columns

CHUNK_ROWS = 512


def near_rows(
    rows: NDArray[np.float32], *, count: int, pool: NDArray[np.float32] | None = None
) -> NDArray[np.int64]:
    """Return the `count` rows of highest cosine with each row, nearest first, int64 [n, count].

    rows: float32 [n, dim]. pool: float32 [m, dim], the rows to choose from; None for `rows`, themselves
    left out. `count` is capped at the number there are.
    """
    queries = unit_rows(rows)
    choices = queries if pool is None else unit_rows(pool)
    count = min(count, choices.shape[0] - (pool is None))
    found = np.empty((rows.shape[0], count), dtype=np.int64)
    for start in range(0, rows.shape[0], CHUNK_ROWS):
        cosines = queries[start : start + CHUNK_ROWS] @ choices.T  # [chunk, m]
        own = np.arange(cosines.shape[0])
        if pool is None:
            cosines[own, start + own] = -np.inf
        nearest = top_columns(cosines, count=count)
        order = np.argsort(-np.take_along_axis(cosines, nearest, axis=1), axis=1, kind="stable")
        found[start : start + CHUNK_ROWS] = np.take_along_axis(nearest, order, axis=1)
    return found


def hard_negatives(
    values: NDArray[np.float32], *, group: NDArray[np.int64], count: int, pool_rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return for each row `count` rows of other groups that are near it in the codes, int64 [n, count].

    values: real values h of all rows, float32 [n, bits]. group: int64 [n], rows of one are no negatives of
    each other. pool_rows: row numbers to choose among, of `count` groups more than one at least. Nearest by
    <h_i, sgn h_j>, after the current state of training: NGAME (Dahiya et al., WSDM 2023) mines so.
    """
    codes = np.where(values[pool_rows] > 0, np.float32(1), np.float32(-1))
    mined = np.empty((values.shape[0], count), dtype=np.int64)
    for start in range(0, values.shape[0], CHUNK_ROWS):
        scores = values[start : start + CHUNK_ROWS] @ codes.T  # [chunk, m]
        scores[group[start : start + CHUNK_ROWS, None] == group[pool_rows][None, :]] = -np.inf
        mined[start : start + CHUNK_ROWS] = pool_rows[top_columns(scores, count=count)]
    return mined

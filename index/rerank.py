"""Exact cosine distances on the stored vectors."""

import numpy as np
from numpy.typing import NDArray

from index.errors import DimensionError

CHUNK_BYTES = 4 * 1024 * 1024  # float32 vectors decoded at a time


def cosine_distances(
    vectors: NDArray[np.float16], query: NDArray[np.float32], *, offsets: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Measure the cosine distance of stored vectors to a query: 1 - cosine, in [0, 2].

    vectors: float16 [n, dim], decoded and renormalised, so that a stored vector has a distance of about 0
    to the float32 vector it came from; query: float32 [dim], any positive norm; offsets: int64 [m],
    rows to measure, default all. Returns float32 [m]. A vector of norm 0 has distance 1.

    The same row gives the same distance, to the last bit, alone or in any batch, so that a threshold decides
    the same on every search path. Hence einsum without BLAS: a matrix product sums in an order that depends
    on the number of rows. Raises: DimensionError.
    """
    if vectors.ndim != 2 or query.shape != vectors.shape[1:]:
        raise DimensionError("query", expected=f"[{vectors.shape[-1]}]", got=f"{list(query.shape)}")
    row_count = vectors.shape[0] if offsets is None else offsets.size
    distances = np.empty(row_count, dtype=np.float32)
    unit_query = unit_rows(query[None, :])[0]
    step = max(1, CHUNK_BYTES // max(1, 4 * vectors.shape[1]))
    for start in range(0, row_count, step):
        stop = min(start + step, row_count)
        chunk = vectors[start:stop] if offsets is None else vectors[offsets[start:stop]]
        cosines = np.einsum("ij,j->i", unit_rows(chunk), unit_query, optimize=False)
        distances[start:stop] = np.clip(np.float32(1) - cosines, 0, 2)
    return distances


def unit_rows(vectors: NDArray[np.float16] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Decode vectors to float32 of norm 1; rows of norm 0 stay 0.

    vectors: float16 or float32 [n, dim]. Returns float32 [n, dim], each row independent of the others.
    """
    decoded = np.ascontiguousarray(vectors, dtype=np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", decoded, decoded, optimize=False))
    norms[norms == 0] = 1
    return np.asarray(decoded / norms[:, None], dtype=np.float32)

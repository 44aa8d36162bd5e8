"""Distances between packed codes in row order, for rows that are already known; scans are in `kernels`."""

import numpy as np
from numpy.typing import NDArray

from index.errors import DimensionError
from index.kernels import asymmetric_scores
from index.selection import smallest

CHUNK_ROWS = 32_768  # rows at a time: the temporaries of a chunk stay below 1 MiB at 256 bits, in cache


def hamming_distances(codes: NDArray[np.uint64], query: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Count the bits in which each code differs from the query.

    codes: uint64 [n, w]; query: uint64 [w]. Returns int32 [n], in bits. Raises: DimensionError.
    """
    if codes.dtype != np.uint64 or codes.ndim != 2:
        raise DimensionError("codes", expected="uint64 [n, w]", got=f"{codes.dtype} {list(codes.shape)}")
    if query.dtype != np.uint64 or query.shape != codes.shape[1:]:
        raise DimensionError(
            "query code", expected=f"uint64 [{codes.shape[1]}]", got=f"{query.dtype} {list(query.shape)}"
        )
    distances = np.zeros(codes.shape[0], dtype=np.int32)
    for start in range(0, codes.shape[0], CHUNK_ROWS):
        chunk = distances[start : start + CHUNK_ROWS]
        # Word by word: a sum over the short axis of [n, w] costs several times as much.
        for word in range(codes.shape[1]):
            chunk += np.bitwise_count(codes[start : start + CHUNK_ROWS, word] ^ query[word])
    return distances


def nearest_by_score(
    codes: NDArray[np.uint64],
    values: NDArray[np.float32],
    *,
    count: int,
    live: NDArray[np.bool_],
    ties: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the live codes with the highest asymmetric scores.

    codes: uint64 [n, w]; values: float32 [bits]; live: bool [n]; ties: int64 [n], the order of equal scores,
    default the offsets. Returns (offsets int64 [m], scores float32 [m]), m = min(count, live rows),
    descending by score. Raises: DimensionError.
    """
    if live.dtype != np.bool_ or live.shape != codes.shape[:1]:
        raise DimensionError(
            "live", expected=f"bool [{codes.shape[0]}]", got=f"{live.dtype} {list(live.shape)}"
        )
    offsets = np.flatnonzero(live)
    scores = asymmetric_scores(codes, values)[offsets]
    chosen = smallest(-scores, count=count, ties=None if ties is None else ties[offsets])
    return offsets[chosen], scores[chosen]

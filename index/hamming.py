"""Distances between packed codes, and between a real-valued query and packed codes."""

import numpy as np
from numpy.typing import NDArray

from index.codes import WORD_BITS, code_bytes
from index.errors import DimensionError
from index.selection import smallest

CHUNK_ROWS = 32_768  # rows at a time: the temporaries of a chunk stay below 1 MiB at 256 bits, in cache
_BYTE_SIGNS = 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") - 1.0


def hamming_distances(codes: NDArray[np.uint64], query: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Count the bits in which each code differs from the query.

    codes: uint64 [n, w]; query: uint64 [w]. Returns int32 [n], in bits. Raises: DimensionError.
    """
    _check_codes(codes)
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


def nearest_codes(
    codes: NDArray[np.uint64], query: NDArray[np.uint64], *, count: int, live: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Find the live codes nearest to the query.

    codes: uint64 [n, w]; query: uint64 [w]; live: bool [n], rows that may be taken; others take no place.
    Returns (offsets int64 [m], distances int32 [m]), m = min(count, live rows), ascending by distance, then
    by offset. Raises: DimensionError.
    """
    _check_live(live, codes)
    offsets = np.flatnonzero(live)
    distances = hamming_distances(codes, query)[offsets]
    chosen = smallest(distances, count=count)
    return offsets[chosen], distances[chosen]


def asymmetric_scores(codes: NDArray[np.uint64], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Score codes against a real-valued query: sum_i q_i b_i with b_i in {-1, +1}; higher is better.

    codes: uint64 [n, w]; values: float32 [bits], bits in (64 (w - 1), 64 w]. Returns float32 [n].
    Equal codes get exactly equal scores: each byte's part is looked up and added in one order, which a matrix
    product does not promise. Source: Gordo et al. 2014, Asymmetric distances for binary embeddings.
    Raises: DimensionError.
    """
    _check_codes(codes)
    width = codes.shape[1] * WORD_BITS
    if values.dtype != np.float32 or values.ndim != 1 or not width - WORD_BITS < values.size <= width:
        raise DimensionError(
            "query values",
            expected=f"float32 [{width - WORD_BITS + 1}..{width}]",
            got=f"{values.dtype} {list(values.shape)}",
        )
    padded = np.zeros(width, dtype=np.float64)
    padded[: values.size] = values
    table = (padded.reshape(-1, 8) @ _BYTE_SIGNS.T).astype(np.float32)  # [8 w, 256]
    scores = np.zeros(codes.shape[0], dtype=np.float32)
    for start in range(0, codes.shape[0], CHUNK_ROWS):
        chunk = code_bytes(codes[start : start + CHUNK_ROWS])  # [chunk, 8 w]
        for byte in range(chunk.shape[1]):
            scores[start : start + CHUNK_ROWS] += table[byte][chunk[:, byte]]
    return scores


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
    _check_live(live, codes)
    offsets = np.flatnonzero(live)
    scores = asymmetric_scores(codes, values)[offsets]
    chosen = smallest(-scores, count=count, ties=None if ties is None else ties[offsets])
    return offsets[chosen], scores[chosen]


def _check_codes(codes: NDArray[np.uint64]) -> None:
    if codes.dtype != np.uint64 or codes.ndim != 2:
        raise DimensionError("codes", expected="uint64 [n, w]", got=f"{codes.dtype} {list(codes.shape)}")


def _check_live(live: NDArray[np.bool_], codes: NDArray[np.uint64]) -> None:
    if live.dtype != np.bool_ or live.shape != codes.shape[:1]:
        raise DimensionError(
            "live", expected=f"bool [{codes.shape[0]}]", got=f"{live.dtype} {list(live.shape)}"
        )

"""Exact Hamming search over bit-sliced codes, and distances on stored vectors: the face of the compiled part.

Codes are searched in blocks of 512 rows, transposed into bit planes (native/kernels_template.h says how and
why). Every function releases the interpreter lock; results do not depend on the instruction set, except that
cosine distances may differ in their last bit between machines.
"""

import mmap
from bisect import bisect_left
from contextlib import suppress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index import _kernels
from index.codes import WORD_BITS, code_bytes, word_count
from index.errors import DimensionError

BLOCK_ROWS: Final = 512
MAX_CODE_WORDS: Final = 16
PREFIX_BITS: Final = (64, 128)
"""Leading bits of a code whose distances a search can limit, where the code has more bits than that."""

_HUGE_PAGE_BYTES = 2 * 1024 * 1024
# As objects: they are compared on every call, and a type would be converted first.
BOOL, FLOAT16, FLOAT32 = np.dtype(np.bool_), np.dtype(np.float16), np.dtype(np.float32)
INT8, INT32, INT64, UINT64 = (np.dtype(t) for t in (np.int8, np.int32, np.int64, np.uint64))
_BYTE_SIGNS = 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") - 1.0


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros that start at a cache line, on huge pages where they are large and the system has any."""
    size_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size_bytes < 2 * _HUGE_PAGE_BYTES:
        buffer = np.zeros(size_bytes + 64, dtype=np.uint8)
        start = -buffer.ctypes.data % 64
    else:
        memory = mmap.mmap(-1, size_bytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a system without them
                memory.madvise(mmap.MADV_HUGEPAGE)
        buffer = np.frombuffer(memory, dtype=np.uint8)
        start = -buffer.ctypes.data % _HUGE_PAGE_BYTES
    zeros: NDArray[Any] = buffer[start : start + size_bytes].view(dtype).reshape(shape)
    return zeros


def empty_blocks(row_capacity: int, *, code_words: int) -> NDArray[np.uint64]:
    """Blocks for at least this many codes of this many words.

    Returns uint64 [ceil(row_capacity / 512), s], zeros.
    """
    block_count = -(-row_capacity // BLOCK_ROWS)
    blocks: NDArray[np.uint64] = aligned_zeros(
        (block_count, _kernels.block_words(WORD_BITS * code_words)), np.uint64
    )
    return blocks


def append_codes(blocks: NDArray[np.uint64], codes: NDArray[np.uint64], *, row_count: int) -> None:
    """Add codes behind the first `row_count` rows, which other threads may search meanwhile.

    blocks: as from `empty_blocks`, with room; codes: uint64 [n, words].
    Raises: DimensionError, ValueError where there is no room.
    """
    bit_count = check_blocks(blocks, codes, name="codes")
    _kernels.append(blocks, bit_count, row_count, np.ascontiguousarray(codes), len(codes))


def nearest_codes(
    blocks: NDArray[np.uint64],
    queries: NDArray[np.uint64],
    *,
    count: int,
    expire_times: NDArray[np.int64],
    now_ms: int,
    scopes: NDArray[np.uint64] | None = None,
    query_scopes: NDArray[np.uint64] | None = None,
    allowed: NDArray[np.bool_] | None = None,
    spans: NDArray[np.int64] | None = None,
    max_distances: NDArray[np.int32] | None = None,
    prefix_limits: NDArray[np.int32] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Find the live rows whose codes are nearest to each query, in one pass over the codes for all queries.

    blocks: as `append_codes` left them; queries: uint64 [q, words]; count: rows per query at most.
    expire_times: int64 [n], n the rows to search; a row is live while `now_ms < expire_time`.
    scopes: uint64 [n] and query_scopes: uint64 [q], rows of another scope are not taken; both or neither.
    allowed: bool [n], others are not taken. Rows that are not taken cost no place among the nearest.
    spans: int64 [m, 2], half-open ranges of rows to search, ascending and apart; default all rows.
    max_distances: int32 [q], in bits, rows beyond are not taken. prefix_limits: int32 [q, p], p the number of
    PREFIX_BITS below 64 words: rows whose first 64 (128) bits differ in more are not taken, and what is
    beyond in a whole block is not read any further.

    Returns (offsets int64 [q, count], distances int32 [q, count], found int64 [q]); the first found[i] of
    row i are set, ascending by distance, then by offset. Raises: DimensionError, ValueError, MemoryError.
    """
    bit_count = check_blocks(blocks, queries, name="query codes")
    row_count = len(expire_times)
    check_array("expire_times", expire_times, INT64, (row_count,))
    if (scopes is None) != (query_scopes is None):
        raise ValueError("scopes and query_scopes: must be given together")
    if scopes is not None:
        check_array("scopes", scopes, UINT64, (row_count,))
    table = (blocks, bit_count, row_count, expire_times, scopes, None, None, None, 0)
    query_count, count = len(queries), min(count, max(row_count, 1))
    search = search_arguments(
        queries,
        count=count,
        now_ms=now_ms,
        row_count=row_count,
        query_scopes=query_scopes,
        allowed=allowed,
        spans=spans,
        max_distances=max_distances,
        prefix_limits=prefix_limits,
    )
    offsets = np.empty((query_count, count), dtype=np.int64)
    distances = np.empty((query_count, count), dtype=np.int32)
    found = np.empty(query_count, dtype=np.int64)
    _kernels.nearest(table, search, offsets, distances, found)
    return offsets, distances, found


def search_arguments(
    queries: NDArray[np.uint64],
    *,
    count: int,
    now_ms: int,
    row_count: int,
    query_scopes: NDArray[np.uint64] | None,
    allowed: NDArray[np.bool_] | None,
    spans: NDArray[np.int64] | None,
    max_distances: NDArray[np.int32] | None,
    prefix_limits: NDArray[np.int32] | None,
) -> tuple[Any, ...]:
    """What a compiled search is told of its queries, checked. As in `nearest_codes`."""
    query_count = len(queries)
    if query_scopes is not None:
        check_array("query_scopes", query_scopes, UINT64, (query_count,))
    if allowed is not None:
        check_array("allowed", allowed, BOOL, (row_count,))
    if spans is not None:
        check_array("spans", spans, INT64, (len(spans), 2))
    if max_distances is not None:
        check_array("max_distances", max_distances, INT32, (query_count,))
    if prefix_limits is not None:
        prefix_count = bisect_left(PREFIX_BITS, WORD_BITS * queries.shape[1])
        check_array("prefix_limits", prefix_limits, INT32, (query_count, prefix_count))
    return (
        np.ascontiguousarray(queries),
        query_count,
        min(count, max(row_count, 1)),
        now_ms,
        query_scopes,
        allowed,
        spans,
        0 if spans is None else len(spans),
        max_distances,
        prefix_limits,
    )


def cosine_distances(
    vectors: NDArray[np.float16] | NDArray[np.int8],
    query: NDArray[np.float32],
    *,
    offsets: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Measure cosine distances of stored vectors to a query: 1 - cosine, in [0, 2].

    vectors: [n, dim]; query: float32 [dim]; both of any norm, one of norm 0 has distance 1. offsets:
    int64 [m], rows to measure, default all. Returns float32 [m]. The same row gives the same distance, to
    the last bit, alone or in any batch, so that a threshold decides the same on every search path.
    Raises: DimensionError, IndexError, ValueError for vectors or offsets that are not contiguous.
    """
    row_count, dim = table_shape(vectors)
    check_array("query", query, FLOAT32, (dim,))
    count = row_count
    if offsets is not None:
        count = offsets.size
        check_array("offsets", offsets, INT64, (count,))
    out = np.empty(count, dtype=np.float32)
    if vectors.dtype == np.int8:
        measure = _kernels.byte_distances
    else:
        check_array("vectors", vectors, FLOAT16, (row_count, dim))
        measure = _kernels.half_distances
    measure(vectors, row_count, dim, offsets, count, np.ascontiguousarray(query), out)
    return out


def quantise(vectors: NDArray[np.float16]) -> NDArray[np.int8]:
    """Round vectors to int8, each scaled so that its largest component is 127.

    vectors: float16 [n, dim]. Returns int8 [n, dim]; the scale is not kept, as cosines do not need it.
    Raises: DimensionError.
    """
    row_count, dim = table_shape(vectors)
    check_array("vectors", vectors, FLOAT16, (row_count, dim))
    out: NDArray[np.int8] = aligned_zeros((row_count, dim), np.int8)
    _kernels.quantise(np.ascontiguousarray(vectors), row_count, dim, out)
    return out


def asymmetric_scores(codes: NDArray[np.uint64], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Score codes against a real-valued query: sum_i q_i b_i with b_i in {-1, +1}; higher is better.

    codes: uint64 [n, w]; values: float32 [bits], bits in (64 (w - 1), 64 w]. Returns float32 [n].
    Equal codes get exactly equal scores: each byte's part is looked up and added in one order, which a matrix
    product does not promise. Source: Gordo et al. 2014, Asymmetric distances for binary embeddings.
    Raises: DimensionError.
    """
    if codes.shape[1:] != (word_count(values.size),) or codes.dtype != np.uint64:
        expected = f"uint64 [n, {word_count(values.size)}]"
        raise DimensionError("codes", expected=expected, got=f"{codes.dtype} {list(codes.shape)}")
    if values.dtype != np.float32 or values.ndim != 1:
        raise DimensionError(
            "query values", expected="float32 [bits]", got=f"{values.dtype} {list(values.shape)}"
        )
    width = 8 * codes.shape[1]
    padded = np.zeros(8 * width, dtype=np.float64)
    padded[: values.size] = values
    table = (padded.reshape(-1, 8) @ _BYTE_SIGNS.T).astype(np.float32)  # [width, 256]
    scores = np.empty(len(codes), dtype=np.float32)
    _kernels.table_scores(code_bytes(codes), len(codes), width, table, scores)
    return scores


def check_blocks(blocks: NDArray[np.uint64], codes: NDArray[np.uint64], *, name: str) -> int:
    """The bits of these codes, padding included. Raises: DimensionError where the blocks are not of them."""
    if codes.dtype != np.uint64 or codes.ndim != 2 or not 1 <= codes.shape[1] <= MAX_CODE_WORDS:
        expected = f"uint64 [n, 1..{MAX_CODE_WORDS}]"
        raise DimensionError(name, expected=expected, got=f"{codes.dtype} {list(codes.shape)}")
    bit_count: int = WORD_BITS * codes.shape[1]
    if blocks.dtype != np.uint64 or blocks.shape[1:] != (_kernels.block_words(bit_count),):
        raise DimensionError(
            f"blocks for codes of {bit_count} bits",
            expected=f"uint64 [m, {_kernels.block_words(bit_count)}]",
            got=f"{blocks.dtype} {list(blocks.shape)}",
        )
    return bit_count


def table_shape(vectors: NDArray[Any]) -> tuple[int, int]:
    """(rows, dimension). Raises: DimensionError."""
    if vectors.ndim != 2:
        raise DimensionError("vectors", expected="[n, dim]", got=f"{list(vectors.shape)}")
    return vectors.shape[0], vectors.shape[1]


def check_array(name: str, array: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Refuse what would be read as something else: memory carries no type. Raises: DimensionError."""
    if array.dtype != dtype or array.shape != shape:
        expected = f"{dtype} {list(shape)}"
        raise DimensionError(name, expected=expected, got=f"{array.dtype} {list(array.shape)}")

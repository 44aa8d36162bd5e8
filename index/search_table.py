"""The rows of a segment as one compiled search reads them, from the codes to the nearest rows."""

import numpy as np
from numpy.typing import NDArray

from index import _kernels
from index.errors import DimensionError
from index.kernels import (
    BLOCK_ROWS,
    FLOAT16,
    FLOAT32,
    INT8,
    INT64,
    UINT64,
    check_array,
    check_blocks,
    search_arguments,
    table_shape,
)
from index.lists import ListChoice

RankedRow = tuple[float, int, int | None, int]
"""(cosine distance, entry id, Hamming distance in bits or None, offset): rows sort as matches do."""


class SearchTable:
    """Columns of n rows, checked once, so that a search checks only what it asks.

    The arrays are not copied. While searches run only expire_times may change, and rows may be appended to
    the blocks behind the n.
    """

    __slots__ = ("_arguments", "_code_shape", "blocks", "dim", "quantised", "row_count")

    def __init__(
        self,
        *,
        codes: NDArray[np.uint64],
        blocks: NDArray[np.uint64],
        vectors: NDArray[np.float16],
        quantised: NDArray[np.int8] | None,
        entry_ids: NDArray[np.int64],
        scopes: NDArray[np.uint64],
        expire_times: NDArray[np.int64],
    ) -> None:
        """codes: uint64 [n, words]; blocks: the same as `append_codes` left them, there may be more.

        vectors: float16 [n, dim]; quantised: int8 [n, dim] or None; entry_ids: int64 [n]; scopes: uint64 [n];
        expire_times: int64 [n], as in `nearest_codes`. Raises: DimensionError, ValueError for arrays that are
        not contiguous or blocks of fewer rows.
        """
        self.row_count, self.dim = table_shape(vectors)
        self.blocks = blocks
        self.quantised = quantised
        self._code_shape = codes.shape[1:]
        bit_count = check_blocks(blocks, codes, name="codes")
        if len(blocks) * BLOCK_ROWS < self.row_count:
            raise ValueError(f"blocks: {len(blocks)} are too few for {self.row_count} rows")
        matrix, column = (self.row_count, self.dim), (self.row_count,)
        for name, array, dtype, shape in (
            ("codes", codes, UINT64, (self.row_count, *self._code_shape)),
            ("vectors", vectors, FLOAT16, matrix),
            ("entry_ids", entry_ids, INT64, column),
            ("scopes", scopes, UINT64, column),
            ("expire_times", expire_times, INT64, column),
            ("quantised", quantised, INT8, matrix),
        ):
            if array is None:
                continue
            check_array(name, array, dtype, shape)
            if not array.flags.c_contiguous:
                raise ValueError(f"{name}: must be contiguous")
        self._arguments = (
            blocks,
            bit_count,
            self.row_count,
            expire_times,
            scopes,
            vectors,
            quantised,
            entry_ids,
            self.dim,
        )

    def nearest_rows(
        self,
        codes: NDArray[np.uint64],
        vectors: NDArray[np.float32],
        *,
        count: int,
        exact_count: int,
        now_ms: int,
        scopes: NDArray[np.uint64] | None = None,
        allowed: NDArray[np.bool_] | None = None,
        lists: ListChoice | None = None,
        max_distances: NDArray[np.int32] | None = None,
        prefix_limits: NDArray[np.int32] | None = None,
    ) -> list[tuple[list[tuple[float, int, int, int]], int, int]]:
        """Find the `count` rows with the nearest codes of each query, and of these the nearest rows.

        codes: uint64 [q, words] and vectors: float32 [q, dim], of any norm, are the queries; scopes: uint64
        [q] or None for any; lists: to search, with one query only, default all rows; now_ms, allowed,
        max_distances, prefix_limits: as in `nearest_codes`. Of more than exact_count candidates only those
        that int8 vectors say are nearest are measured on float16; what int8 gets wrong in the order of near
        neighbours lies far below a rank of 30. Without int8 vectors all are. At most exact_count rows are
        returned.

        Returns per query (rows, candidates examined, the farthest candidate's distance in bits or -1 without
        one); rows are measured as by `cosine_distances`, ascending by distance, then by entry id.
        Raises: DimensionError, ValueError, MemoryError.
        """
        if codes.dtype != UINT64 or codes.shape[1:] != self._code_shape:
            expected = f"uint64 [q, {self._code_shape[0]}]"
            raise DimensionError("query codes", expected=expected, got=f"{codes.dtype} {list(codes.shape)}")
        check_array("query vectors", vectors, FLOAT32, (len(codes), self.dim))
        if lists is not None and len(codes) != 1:
            raise ValueError(f"lists: are chosen for one query, not for {len(codes)}")
        search = search_arguments(
            codes,
            count=count,
            now_ms=now_ms,
            row_count=self.row_count,
            query_scopes=scopes,
            allowed=allowed,
            spans=None,
            max_distances=max_distances,
            prefix_limits=prefix_limits,
        )
        return _kernels.rank(self._arguments, search, np.ascontiguousarray(vectors), exact_count, lists)

"""Inverted lists: the rows of a segment grouped by their nearest centroid, so that a query can search the
groups near it alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import DimensionError, InvalidRowsError
from index.kernels import choose_spans
from index.list_margins import ListMargins, measure_margins
from index.vectors import unit_rows

SAMPLE_ROWS_PER_LIST = 64
"""Rows that the centroids are fitted on; more cost time and move a centroid by less than its rows spread."""

KMEANS_ITERATIONS = 6
"""Later ones improve the fit by less than 1% each."""

ASSIGN_CHUNK_ROWS = 4_096
ASSIGN_CHUNK_VALUES = 4 * 1024 * 1024
"""Rows measured against all centroids at a time, and products that this makes, at most: these float32 stay in
cache, four times as many take twice as long."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InvertedLists:
    """Rows bounds[i]:bounds[i + 1] of a segment are list i: those nearest to centroid i.

    centroids: float16 [m, dim], m >= 1, any norm but 0. bounds: int64 [m + 1], from 0 to the segment's row
    count, never descending; a list may be empty. margins: None where they were not measured.

    Source: Jegou et al. 2011, Product quantization for nearest neighbor search (the inverted file system).
    Raises: DimensionError, InvalidRowsError.
    """

    centroids: NDArray[np.float16]
    bounds: NDArray[np.int64]
    margins: ListMargins | None = None

    def __post_init__(self) -> None:
        for name, array, dtype, axes in (
            ("centroids", self.centroids, np.float16, 2),
            ("bounds", self.bounds, np.int64, 1),
        ):
            if array.dtype != dtype or array.ndim != axes:
                expected = f"{np.dtype(dtype)} of {axes} axes"
                raise DimensionError(name, expected=expected, got=f"{array.dtype} {list(array.shape)}")
        if self.bounds.size != len(self.centroids) + 1 or not len(self.centroids):
            expected = f"[{len(self.centroids) + 1}], at least 2"
            raise DimensionError("bounds", expected=expected, got=f"[{self.bounds.size}]")
        if self.bounds[0] != 0 or np.any(self.bounds[1:] < self.bounds[:-1]):
            raise InvalidRowsError("bounds of lists: must ascend from 0")

    @property
    def list_count(self) -> int:
        """Lists, empty ones included."""
        return len(self.centroids)

    @property
    def row_count(self) -> int:
        """Rows in all lists."""
        return int(self.bounds[-1])

    @property
    def dim(self) -> int:
        """Dimension of the centroids."""
        return int(self.centroids.shape[1])

    @property
    def size_bytes(self) -> int:
        """Bytes in memory."""
        return self.centroids.nbytes + self.bounds.nbytes

    def spans(
        self, query: NDArray[np.float32], *, probe_count: int, margin: float = 0.0
    ) -> NDArray[np.int64]:
        """Choose the lists nearest to a query, as ranges of rows.

        query: float32 [dim]; probe_count: how many at least; margin: and all whose centroid is by no more
        than this cosine distance farther than the nearest. Returns int64 [p, 2], half-open ranges of rows,
        ascending and apart: adjacent lists are one range, empty ones none. O(lists).
        Raises: DimensionError; ValueError for probe_count < 1.
        """
        if probe_count < 1:
            raise ValueError(f"probe_count: must be at least 1, is {probe_count}")
        if probe_count >= self.list_count or margin >= 2:
            everything = [[0, self.row_count]] if self.row_count else []
            return np.array(everything, dtype=np.int64).reshape(-1, 2)
        return choose_spans(self.centroids, self.bounds, query, margin=margin, least=probe_count)


def build_lists(
    vectors: NDArray[np.float16],
    *,
    list_count: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.int64], InvertedLists]:
    """Group rows by the nearest of `list_count` centroids, fitted by spherical k-means on a sample.

    vectors: float16 [n, dim], may be a view of a mapped file; n >= list_count >= 1.
    Returns (order int64 [n], lists): rows taken in that order are grouped by list, and within a list in the
    order that they were given in. The same arguments give the same result on the same machine.
    progress: called with (rows assigned, rows).
    Memory: the sample as float32, 12 bytes a row, 32 KB a list, and one chunk of products.
    Raises: ValueError, InvalidRowsError.
    """
    row_count = len(vectors)
    if not 1 <= list_count <= row_count:
        raise ValueError(f"list_count: must be in 1..{row_count}, the rows, is {list_count}")
    centroids = _fit(vectors, list_count=list_count, seed=seed)
    # Assigned by the centroids as they are stored, as a query chooses among those.
    stored = centroids.astype(np.float16)
    columns = np.ascontiguousarray(unit_rows(stored).T)  # [dim, m]
    labels = np.empty(row_count, dtype=np.int32)
    chunk_rows = min(ASSIGN_CHUNK_ROWS, max(1, ASSIGN_CHUNK_VALUES // list_count))
    for start in range(0, row_count, chunk_rows):
        chunk = vectors[start : start + chunk_rows].astype(np.float32)
        _check_finite(chunk)
        # A row's own norm does not change which centroid is nearest to it.
        labels[start : start + len(chunk)] = np.argmax(chunk @ columns, axis=1)
        if progress is not None:
            progress(start + len(chunk), row_count)
    bounds = np.zeros(list_count + 1, dtype=np.int64)
    np.cumsum(np.bincount(labels, minlength=list_count), out=bounds[1:])
    order = np.argsort(labels, kind="stable").astype(np.int64, copy=False)
    margins = measure_margins(vectors, columns.T, labels, seed=seed)
    return order, InvertedLists(centroids=stored, bounds=bounds, margins=margins)


def _check_finite(vectors: NDArray[np.float32]) -> None:
    if not np.isfinite(vectors).all():
        raise InvalidRowsError("vectors: must be finite")


def _fit(vectors: NDArray[np.float16], *, list_count: int, seed: int) -> NDArray[np.float32]:
    """Centroids float32 [m, dim] of norm 1."""
    import faiss  # only builds need it: a server starts without

    rng = np.random.default_rng(seed)
    size = min(len(vectors), SAMPLE_ROWS_PER_LIST * list_count)
    chosen = np.sort(rng.choice(len(vectors), size=size, replace=False))
    kmeans: Any = faiss.Kmeans(
        vectors.shape[1],
        list_count,
        niter=KMEANS_ITERATIONS,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLE_ROWS_PER_LIST,
    )
    sample = vectors[chosen].astype(np.float32)
    _check_finite(sample)
    kmeans.train(unit_rows(sample))
    centroids: NDArray[np.float32] = kmeans.centroids
    return centroids

"""Inverted lists: the rows of a segment grouped by their nearest centroid, so that a query can search the
groups near it alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index import _kernels
from index.errors import DimensionError, InvalidRowsError
from index.kernels import FLOAT32, check_array
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

ListChoice = tuple[Any, ...]
"""Lists, and which of them a search takes, as the compiled search reads it: from `InvertedLists.near`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InvertedLists:
    """Rows bounds[i]:bounds[i + 1] of a segment are list i: those nearest to centroid i.

    centroids: float16 [m, dim], m >= 1, any norm but 0. bounds: int64 [m + 1], from 0 to the segment's row
    count, never descending; a list may be empty.

    Source: Jegou et al. 2011, Product quantization for nearest neighbor search (the inverted file system).
    Raises: DimensionError, InvalidRowsError.
    """

    centroids: NDArray[np.float16]
    bounds: NDArray[np.int64]
    margins: ListMargins

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

    def near(
        self, *, least: int, recall: float | None = None, cosine_distance: float | None = None
    ) -> ListChoice | None:
        """How a search is to choose lists; None: it is to take all.

        least: how many at least; recall: and what holds this share of the 10 nearest rows; cosine_distance:
        and what holds the rows within it. Raises: ValueError for least < 1.
        """
        if least < 1:
            raise ValueError(f"least: must be at least 1, is {least}")
        margin = 0.0 if recall is None else self.margins.for_recall(recall)
        if cosine_distance is not None:
            margin = max(margin, self.margins.for_distance(cosine_distance))
        if least >= self.list_count or margin >= 2:
            return None
        return (self.centroids, self.bounds, self.list_count, self.dim, margin, least)

    def spans(self, query: NDArray[np.float32], choice: ListChoice | None) -> NDArray[np.int64]:
        """The rows that a search for this query reads: whole blocks of the lists that it chooses.

        query: float32 [dim]. Returns int64 [p, 2], half-open ranges, ascending and apart. What shares a block
        of codes with a chosen list is searched too, for nothing. O(lists).
        Raises: DimensionError.
        """
        check_array("query", query, FLOAT32, (self.dim,))
        if choice is None:
            everything = [[0, self.row_count]] if self.row_count else []
            return np.array(everything, dtype=np.int64).reshape(-1, 2)
        return np.frombuffer(
            _kernels.spans_near(choice, np.ascontiguousarray(query)), dtype=np.int64
        ).reshape(-1, 2)


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
    return centroids[_near_to_near(centroids, np.arange(list_count), rng=rng)]


def _near_to_near(
    centroids: NDArray[np.float32], numbers: NDArray[np.int64], *, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Order centroids by halving them again and again along their principal axis.

    Lists that one query searches are then often neighbours, and share the blocks at their ends.
    """
    if numbers.size <= 2:
        return numbers
    centred = centroids[numbers] - centroids[numbers].mean(axis=0)
    axis = rng.standard_normal(centroids.shape[1], dtype=np.float32)
    for _ in range(4):  # power iterations: a rough axis orders as well
        axis = centred.T @ (centred @ axis)
        axis /= max(float(np.linalg.norm(axis)), 1e-30)
    along = numbers[np.argsort(centred @ axis, kind="stable")]
    halves = (along[: along.size // 2], along[along.size // 2 :])
    return np.concatenate([_near_to_near(centroids, half, rng=rng) for half in halves])

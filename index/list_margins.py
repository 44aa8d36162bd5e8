"""Which inverted lists a query must search, measured on the rows that the lists were made of."""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index.errors import DimensionError, InvalidRowsError
from index.vectors import unit_rows

DISTANCE_STEP: Final = 0.05
DISTANCE_COUNT: Final = 20
RECALLS: Final = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
NEIGHBOURS = 10
QUERY_ROWS = 500
POOL_ROWS = 200_000
POOL_CHUNK_ROWS = 16_384
RUN = 64
COVERAGE = 0.9995
"""Share of the neighbours within a distance whose lists its margin reaches."""
LEAST_PAIRS = 200
"""Fewer real neighbours within a distance say nothing about it; made ones do."""
MADE_PAIRS = 4_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ListMargins:
    """How much farther than the nearest centroid the centroids of what a query seeks are, as cosine distance.

    by_distance: float32 [20], for rows within .05, .1, ... 1.0 of the query, COVERAGE of them; never falls.
    by_recall: float32 [6], for the share RECALLS of the 10 nearest rows; never falls. A query with near
    neighbours is near their centroid and few others, so that one margin means few lists for it and many for a
    query that has none. Raises: DimensionError, InvalidRowsError.
    """

    by_distance: NDArray[np.float32]
    by_recall: NDArray[np.float32]

    def __post_init__(self) -> None:
        for name, array, count in (
            ("distance_margins", self.by_distance, DISTANCE_COUNT),
            ("recall_margins", self.by_recall, len(RECALLS)),
        ):
            if array.dtype != np.float32 or array.shape != (count,):
                got = f"{array.dtype} {list(array.shape)}"
                raise DimensionError(name, expected=f"float32 [{count}]", got=got)
            if not np.all(array >= 0):
                raise InvalidRowsError(f"{name}: must be at least 0")

    @classmethod
    def unknown(cls) -> "ListMargins":
        """Of lists that nothing was measured on: a search for a distance or a recall takes all."""
        return cls(
            by_distance=np.full(DISTANCE_COUNT, 2, dtype=np.float32),
            by_recall=np.full(len(RECALLS), 2, dtype=np.float32),
        )

    def for_distance(self, cosine_distance: float) -> float:
        """The margin that reaches rows within the distance; infinite beyond 1, where none was measured."""
        if cosine_distance > DISTANCE_STEP * DISTANCE_COUNT:
            return float("inf")
        step = math.ceil(cosine_distance / DISTANCE_STEP - 1e-6) - 1
        return float(self.by_distance[max(0, step)])

    def for_recall(self, recall: float) -> float:
        """The margin that reaches this share of the 10 nearest rows; infinite beyond the last of RECALLS."""
        level = bisect_left(RECALLS, recall - 1e-9)
        return float(self.by_recall[level]) if level < len(RECALLS) else float("inf")


def measure_margins(
    vectors: NDArray[np.float16], centroids: NDArray[np.float32], labels: NDArray[np.int32], *, seed: int
) -> ListMargins:
    """Search for the neighbours of sampled rows among sampled rows, and see where their lists lie; beside
    those, queries are made at each distance of a row.

    vectors: float16 [n, dim]; centroids: float32 [m, dim] of norm 1; labels: int32 [n], each row's list.
    Up to QUERY_ROWS rows are compared with up to POOL_ROWS; the fewer of all rows those are, the farther are
    their neighbours and the larger the margins: they err on the side of searching too much.
    """
    rng = np.random.default_rng(seed)
    queries = rng.choice(len(vectors), size=min(len(vectors), QUERY_ROWS), replace=False)
    pool = np.sort(rng.choice(len(vectors), size=min(len(vectors), POOL_ROWS), replace=False))
    query_vectors = unit_rows(vectors[queries])
    distances, neighbours = _neighbours(vectors, queries, query_vectors, pool)  # [q, k], never the row itself
    to_centroids = 1 - query_vectors @ centroids.T  # [q, m]
    to_lists = np.take_along_axis(to_centroids, labels[neighbours].astype(np.int64), axis=1)
    margins = np.where(np.isfinite(distances), to_lists - to_centroids.min(axis=1, keepdims=True), np.nan)
    margins = margins[np.isfinite(margins)]
    distances = distances[np.isfinite(distances)]
    if not margins.size:
        return ListMargins.unknown()
    by_distance = []
    for step in range(DISTANCE_COUNT):
        distance = DISTANCE_STEP * (step + 1)
        made = _made_margins(vectors, centroids, labels, distance, rng=rng)
        within = margins[distances <= distance]
        real = np.quantile(within, COVERAGE) if within.size >= LEAST_PAIRS else 0.0
        by_distance.append(max(np.quantile(made, COVERAGE), real))
    return ListMargins(
        by_distance=np.maximum.accumulate(np.array(by_distance)).astype(np.float32),
        by_recall=np.quantile(margins, RECALLS).astype(np.float32),
    )


def _made_margins(
    vectors: NDArray[np.float16],
    centroids: NDArray[np.float32],
    labels: NDArray[np.int32],
    distance: float,
    *,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Margins float32 [MADE_PAIRS] of rows for queries at exactly this distance from them.

    A query is a row turned toward the difference of two others, which spreads like real neighbours do.
    """
    rows, first, second = rng.integers(0, len(vectors), (3, MADE_PAIRS))
    sources = unit_rows(vectors[rows])
    directions = vectors[first].astype(np.float32) - vectors[second].astype(np.float32)
    directions -= np.einsum("ij,ij->i", directions, sources)[:, None] * sources
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), np.float32(1e-12))
    cosine = 1 - distance
    turned = np.float32(cosine) * sources + np.float32(np.sqrt(max(0.0, 1 - cosine**2))) * directions
    to_centroids = 1 - turned @ centroids.T
    to_lists = to_centroids[np.arange(MADE_PAIRS), labels[rows]]
    return np.asarray(to_lists - to_centroids.min(axis=1), dtype=np.float32)


def _neighbours(
    vectors: NDArray[np.float16],
    queries: NDArray[np.int64],
    query_vectors: NDArray[np.float32],
    pool: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Distances float32 [q, k] and rows int64 [q, k] of the nearest in the pool; inf where there are less."""
    distances = np.full((queries.size, NEIGHBOURS), np.inf, dtype=np.float32)
    rows = np.zeros((queries.size, NEIGHBOURS), dtype=np.int64)
    for start in range(0, pool.size, POOL_CHUNK_ROWS):
        chunk = pool[start : start + POOL_CHUNK_ROWS]
        measured = 1 - query_vectors @ unit_rows(vectors[chunk]).T  # [q, chunk]
        measured[queries[:, None] == chunk[None, :]] = np.inf
        places = _smallest_places(measured, count=NEIGHBOURS)
        joined = np.concatenate([distances, np.take_along_axis(measured, places, axis=1)], axis=1)
        nearest = np.argpartition(joined, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        rows = np.take_along_axis(np.concatenate([rows, chunk[places]], axis=1), nearest, axis=1)
        distances = np.take_along_axis(joined, nearest, axis=1)
    return distances, rows


def _smallest_places(values: NDArray[np.float32], *, count: int) -> NDArray[np.int64]:
    """Places int64 [q, min(count, n)] of the smallest of float32 [q, n], in no order.

    They lie in the `count` runs of RUN values with the smallest minima, which is all that is sorted.
    """
    run_count = values.shape[1] // RUN
    if run_count <= count:
        count = min(count, values.shape[1])
        return np.argpartition(values, count - 1, axis=1)[:, :count]
    whole = run_count * RUN
    minima = values[:, :whole].reshape(len(values), run_count, RUN).min(axis=2)
    runs = np.argpartition(minima, count - 1, axis=1)[:, :count]
    places = (runs[:, :, None] * RUN + np.arange(RUN)).reshape(len(values), -1)
    rest = np.broadcast_to(np.arange(whole, values.shape[1]), (len(values), values.shape[1] - whole))
    places = np.concatenate([places, rest], axis=1)
    smallest = np.argpartition(np.take_along_axis(values, places, axis=1), count - 1, axis=1)[:, :count]
    return np.take_along_axis(places, smallest, axis=1)

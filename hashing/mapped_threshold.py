"""Thresholds for mapped queries: how far a stored row may be from one, to be as near as was asked before.

A mapped query is farther from a stored row than the old embedder's own embedding of the same text, by how
much depends on the map. What is bounded is the share of queries that any stored row could answer wrongly.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import acos, cos, pi

import numpy as np
from numpy.typing import NDArray

from hashing.embedder_map import EmbedderMap
from hashing.embeddings import as_rows, unit_rows
from hashing.errors import TrainingDataError
from hashing.metrics import QUERY_CHUNK
from hashing.shares import share_bounds

GRID = tuple(step / 100 for step in range(1, 101))
"""Thresholds in the old space, cosine distances, for which one in the mapped space is sought."""

WRONG_SHARE = 0.02
"""Most queries that may have a wrong row within the limit, of all, as an upper bound."""

STORED_CHUNK = 4096
"""Stored rows compared with QUERY_CHUNK queries at a time."""

NO_ROW = 3.0
"""Beyond any distance."""

ROUNDING = 1e-6
"""Between two ways to compute a distance."""


@dataclass(frozen=True, slots=True)
class MappedThresholds:
    """limits: cosine distance of a mapped query for each threshold of GRID, ascending; 0: none can be shown
    to be safe. query_count: held-out queries that they were found with."""

    limits: tuple[float, ...]
    query_count: int

    def limit(self, threshold: float) -> float:
        """The distance within which a mapped query may be answered where `threshold` is the old space's; of
        the next lower point of the grid. 0: never."""
        place = bisect_right(GRID, threshold)
        return self.limits[place - 1] if place else 0.0


def calibrate_thresholds(
    embedder_map: EmbedderMap,
    new: NDArray[np.floating],
    old: NDArray[np.floating],
    *,
    stored: Iterable[NDArray[np.floating]],
) -> MappedThresholds:
    """Find the distances within which mapped queries may be answered, by pairs that the map has not seen.

    new: float [q, new_dim], old: float [q, old_dim]; row i of both is of one text. stored: all rows of the
    old space, in parts of float [m, old_dim], each read once. A query's own row is at no distance from it and
    so is never a wrong one. Exact, O(q x rows x old_dim); memory of QUERY_CHUNK x STORED_CHUNK distances.
    Raises: TrainingDataError without a query or a stored row; EmbeddingsError, DimensionError as `as_rows`.
    """
    unit_old = unit_rows(as_rows(old, dim=embedder_map.old_dim))
    mapped = embedder_map.apply(unit_rows(as_rows(new)))
    nearest_wrong = np.full((len(mapped), len(GRID)), NO_ROW)
    row_count = 0
    for part in stored:
        rows = unit_rows(as_rows(part, dim=embedder_map.old_dim))
        row_count += len(rows)
        for own, start in product(range(0, len(mapped), QUERY_CHUNK), range(0, len(rows), STORED_CHUNK)):
            queries, some = slice(own, own + QUERY_CHUNK), rows[start : start + STORED_CHUNK]
            seen, true = 1 - mapped[queries] @ some.T, 1 - unit_old[queries] @ some.T
            nearest_wrong[queries] = nearest_wrong_of(seen, true, known=nearest_wrong[queries])
    if not len(mapped) or not row_count:
        raise TrainingDataError(f"there are {len(mapped)} pairs and {row_count} stored rows to calibrate by")
    return limits_of(nearest_wrong, shift=1 - np.einsum("qd,qd->q", mapped, unit_old))


def nearest_wrong_of(
    mapped: NDArray[np.floating], true: NDArray[np.floating], *, known: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of each query, for each threshold of GRID the mapped distance of the nearest row truly farther than it.

    mapped, true: float [q, m], cosine distances of rows from the mapped query and from the old embedding.
    known: float64 [q, len(GRID)], what was found among other rows; NO_ROW where there were none. Returns the
    nearest of all.
    """
    passed = np.searchsorted(GRID, true, side="left")  # thresholds that a row is farther than, [q, m]
    nearest = np.pad(known, ((0, 0), (1, 0)), constant_values=-1.0)  # a row that passed none is never wrong
    queries, rows = np.nonzero(mapped < np.take_along_axis(nearest, passed, axis=1))
    np.minimum.at(nearest, (queries, passed[queries, rows]), mapped[queries, rows])
    return np.minimum.accumulate(nearest[:, :0:-1], axis=1)[:, ::-1]


def limits_of(nearest_wrong: NDArray[np.floating], *, shift: NDArray[np.floating]) -> MappedThresholds:
    """The limits, by the nearest wrong row of each query.

    nearest_wrong: float [q, len(GRID)], as of `nearest_wrong_of`. shift: float [q], cosine distance of the
    mapped query from the old embedding.

    For a threshold t the limit is the largest distance such that queries of which any stored row is within it
    and truly farther than t are at most WRONG_SHARE of all by the upper end of an exact one-sided 95%
    interval; there is none where that cannot even be said of no such query. Whatever part of the rows is
    searched, no more can be answered wrongly. And it is no larger than the angles to the row and of the
    largest shift together allow a row that is truly within t to be.
    """
    count = len(nearest_wrong)
    allowed = next((errors - 1 for errors in range(count + 1) if _is_too_wrong(errors, count)), count)
    if allowed < 0:
        return MappedThresholds(limits=(0.0,) * len(GRID), query_count=count)
    widest = _angle(float(np.max(shift)))
    safe = np.sort(np.asarray(nearest_wrong, dtype=np.float64), axis=0)[allowed] - ROUNDING
    reach = [1 - cos(min(pi, widest + _angle(threshold))) for threshold in GRID]
    limits = tuple(max(0.0, min(float(own), far)) for own, far in zip(safe, reach, strict=True))
    return MappedThresholds(limits=limits, query_count=count)


def _is_too_wrong(errors: int, count: int) -> bool:
    return share_bounds(errors, count)[1] > WRONG_SHARE


def _angle(distance: float) -> float:
    """Of a cosine distance, in radians."""
    return acos(min(1.0, max(-1.0, 1 - distance)))


def thresholds_from(limits: Sequence[float], *, query_count: int) -> MappedThresholds:
    """Limits that were kept. Raises: ValueError unless there is one in [0, 2] for each threshold of GRID."""
    if len(limits) != len(GRID) or not all(0 <= limit <= 2 for limit in limits):
        raise ValueError(f"{len(limits)} limits of mapped distances, not {len(GRID)} in [0, 2]")
    return MappedThresholds(limits=tuple(limits), query_count=query_count)

"""Thresholds for mapped queries: how far a stored row may be from one, to be as near as was asked before.

A mapped query is farther from a stored row than the old embedder's own embedding of the same text, by how
much depends on the map. What is bounded is the share of queries that would be answered by a wrong row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import acos, cos, pi

import numpy as np
from numpy.typing import NDArray

from hashing.embedder_map import EmbedderMap
from hashing.embeddings import as_rows, unit_rows
from hashing.errors import TrainingDataError
from hashing.metrics import QUERY_CHUNK
from hashing.neighbour_ranking import OWN_COSINE
from hashing.shares import share_bounds

GRID = tuple(step / 100 for step in range(1, 101))
"""Thresholds in the old space, cosine distances, for which one in the mapped space is sought."""

WRONG_SHARE = 0.02
"""Most wrong answers in all queries, as an upper bound."""

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
    stored: NDArray[np.floating],
) -> MappedThresholds:
    """Find the distances within which mapped queries may be answered, by pairs that the map has not seen.

    new: float [q, new_dim], old: float [q, old_dim]; row i of both is of one text. stored: float
    [m, old_dim]; rows that hold a query's own text are left out. Exact search, O(q x m x old_dim).
    Raises: TrainingDataError without a query or a stored row; EmbeddingsError, DimensionError as `as_rows`.
    """
    if not len(new) or not len(stored):
        raise TrainingDataError(f"there are {len(new)} pairs and {len(stored)} stored rows to calibrate by")
    unit_old = unit_rows(as_rows(old, dim=embedder_map.old_dim))
    unit_stored = unit_rows(as_rows(stored, dim=embedder_map.old_dim))
    mapped = embedder_map.apply(unit_rows(as_rows(new)))
    seen: list[NDArray[np.float32]] = []
    true: list[NDArray[np.float32]] = []
    for start in range(0, len(mapped), QUERY_CHUNK):
        chunk = slice(start, start + QUERY_CHUNK)
        own, scores = unit_old[chunk] @ unit_stored.T, mapped[chunk] @ unit_stored.T  # [chunk, m]
        scores[own >= OWN_COSINE] = -2.0
        nearest = scores.argmax(axis=1)[:, None]
        seen.append(1 - np.take_along_axis(scores, nearest, axis=1)[:, 0])
        true.append(1 - np.take_along_axis(own, nearest, axis=1)[:, 0])
    shift = 1 - np.einsum("qd,qd->q", mapped, unit_old)
    return limits_of(np.concatenate(seen), np.concatenate(true), shift=shift)


def limits_of(
    mapped: NDArray[np.floating], true: NDArray[np.floating], *, shift: NDArray[np.floating]
) -> MappedThresholds:
    """The limits, by the nearest row of each query.

    mapped, true: float [q], cosine distance of that row from the mapped query and from the old embedding;
    over 2 in `mapped`: the query has no row. shift: float [q], of the mapped query from the old embedding.

    For a threshold t the limit is the largest distance such that queries whose nearest row is within it, and
    truly farther than t, are at most WRONG_SHARE of all by the upper end of an exact one-sided 95% interval;
    there is none where that cannot even be said of no such query. And it is no larger than the angles to the
    row and of the largest shift together allow a row that is truly within t to be.
    """
    count = len(mapped)
    allowed = next((errors - 1 for errors in range(count + 1) if _is_too_wrong(errors, count)), count)
    if allowed < 0:
        return MappedThresholds(limits=(0.0,) * len(GRID), query_count=count)
    widest = _angle(float(np.max(shift)))
    limits: list[float] = []
    for threshold in GRID:
        wrong = np.sort(np.asarray(mapped, dtype=np.float64)[true > threshold])
        safe = float(wrong[allowed]) - ROUNDING if len(wrong) > allowed else 2.0
        reach = 1 - cos(min(pi, widest + _angle(threshold)))
        limits.append(max(0.0, min(safe, reach)))
    return MappedThresholds(limits=tuple(limits), query_count=count)


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

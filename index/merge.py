"""The candidates of several segments -> the answer to one search."""

from collections.abc import Sequence

import numpy as np

from index.planner import SearchPath
from index.requests import Match, SearchResult
from index.segment_search import Candidates


def merge_candidates(
    found: Sequence[Candidates],
    *,
    k: int,
    now_ms: int,
    threshold: float | None,
    generation: str | None,
    applied_seq: int,
) -> SearchResult:
    """The k nearest of all candidates that are still live, within the threshold where there is one."""
    live = [_still_live(candidates, now_ms=now_ms) for candidates in found]
    return SearchResult(
        matches=_matches(live, k=k, threshold=threshold),
        path=max((part.path for part in found), key=lambda path: path.cost, default=SearchPath.SCAN),
        candidates_examined=sum(part.examined_count for part in found),
        generation=generation,
        applied_seq=applied_seq,
        nearest_distance=min(
            (float(part.cosine_distances.min()) for part in live if part.cosine_distances.size), default=None
        ),
    )


def any_within(candidates: Candidates, threshold: float) -> bool:
    """Tell whether a candidate is within the threshold."""
    # Compared as Python's float64: in float32 a distance just above it would pass.
    distances = candidates.cosine_distances
    return distances.size > 0 and float(distances.min()) <= threshold


def _still_live(candidates: Candidates, *, now_ms: int) -> Candidates:
    """Look at the expire times once more.

    A row that was replaced meanwhile drops out, so that it is never returned beside its successor, whose view
    was taken after the old row had died.
    """
    live = now_ms < candidates.segment.view().expire_times[candidates.offsets]
    return candidates if live.all() else candidates.take(np.flatnonzero(live))


def _matches(found: Sequence[Candidates], *, k: int, threshold: float | None) -> tuple[Match, ...]:
    nearest: list[Match] = []
    for part in found:
        order = np.lexsort((part.entry_ids, part.cosine_distances))[:k]
        ids, offsets = part.entry_ids[order].tolist(), part.offsets[order].tolist()
        distances = part.cosine_distances[order].tolist()
        hamming = part.hamming_distances
        bits = [None] * order.size if hamming is None else hamming[order].tolist()
        category_id, payload = part.segment.key.category_id, part.segment.payload
        nearest += [
            Match(entry_id, category_id, distance, bit_count, payload(offset))
            for entry_id, distance, bit_count, offset in zip(ids, distances, bits, offsets, strict=True)
            if threshold is None or distance <= threshold
        ]
    if len(found) > 1:
        nearest.sort(key=lambda match: (match.cosine_distance, match.entry_id))
    return tuple(nearest[:k])

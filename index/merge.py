"""The candidates of several segments -> the answer to one search."""

from collections.abc import Sequence

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
    with_vectors: bool = False,
) -> SearchResult:
    """The k nearest of all candidates that are still live, within the threshold where there is one.

    with_vectors: copy their stored vectors too.

    The expire times are looked at once more: a row that was replaced meanwhile drops out, so that it is never
    returned beside its successor, whose view was taken after the old row had died.
    """
    matches: list[Match] = []
    nearest_distance: float | None = None
    for part in found:
        nearest, live = _live_matches(
            part, k=k, now_ms=now_ms, threshold=threshold, with_vectors=with_vectors
        )
        matches += live
        if nearest is not None and (nearest_distance is None or nearest < nearest_distance):
            nearest_distance = nearest
    if len(found) > 1:
        matches.sort(key=lambda match: (match.cosine_distance, match.entry_id))
    return SearchResult(
        matches=tuple(matches[:k]),
        path=max((part.path for part in found), key=lambda path: path.cost, default=SearchPath.SCAN),
        candidates_examined=sum(part.examined_count for part in found),
        generation=generation,
        applied_seq=applied_seq,
        nearest_distance=nearest_distance,
    )


def any_within(candidates: Candidates, threshold: float) -> bool:
    """Tell whether a candidate is within the threshold."""
    # Compared as Python's float64: in float32 a distance just above it would pass.
    return bool(candidates.rows) and candidates.rows[0][0] <= threshold


def _live_matches(
    part: Candidates, *, k: int, now_ms: int, threshold: float | None, with_vectors: bool
) -> tuple[float | None, list[Match]]:
    """The distance of the nearest live candidate, and the k nearest within the threshold."""
    segment = part.segment
    view = segment.view()
    expire_time, payload = view.expire_times.item, segment.payload
    category_id = segment.key.category_id
    nearest: float | None = None
    matches: list[Match] = []
    for distance, entry_id, bits, offset in part.rows:
        if now_ms >= expire_time(offset):
            continue
        if nearest is None:
            nearest = distance
        if len(matches) == k or (threshold is not None and distance > threshold):
            break
        vector = view.vectors[offset].copy() if with_vectors else None
        matches.append(Match(entry_id, category_id, distance, bits, payload(offset), vector))
    return nearest, matches

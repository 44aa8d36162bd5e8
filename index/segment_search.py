"""Searches of one segment, one function per path. Nothing here changes anything."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.config import IndexConfig
from index.hamming import hamming_distances, nearest_by_score, nearest_codes
from index.planner import SearchPath, graph_falls_short, scan_proves_miss
from index.requests import SearchRequest
from index.rerank import cosine_distances
from index.rows import SegmentView
from index.segment import Segment
from index.selection import smallest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Rows of one segment with their exact distances; live when they were collected.

    proves_miss: when none of them is within the threshold, no live row of the segment is.
    """

    segment: Segment
    path: SearchPath
    entry_ids: NDArray[np.int64]  # [m]
    offsets: NDArray[np.int64]  # [m]
    cosine_distances: NDArray[np.float32]  # [m]
    hamming_distances: NDArray[np.int32] | None  # [m], in bits
    examined_count: int
    proves_miss: bool


def search_segment(
    segment: Segment, view: SegmentView, request: SearchRequest, *, path: SearchPath, config: IndexConfig
) -> Candidates:
    """Search one segment on one path; a graph search that falls short is repeated as EXACT."""
    if path is SearchPath.SCAN:
        return search_scan(segment, view, request, candidate_count=config.candidates_for(request.k))
    if path is SearchPath.HNSW:
        return search_graph(segment, view, request, ef=config.hnsw_ef_search)
    return search_exact(segment, view, request)


def search_scan(
    segment: Segment, view: SegmentView, request: SearchRequest, *, candidate_count: int
) -> Candidates:
    """Take the live rows with the nearest codes and measure them exactly."""
    encoder_id = segment.key.encoder_id
    assert view.codes is not None and encoder_id is not None  # the planner's rule
    live = _live_mask(segment, view, request)
    offsets, hamming = nearest_codes(view.codes, request.codes[encoder_id], count=candidate_count, live=live)
    distances = cosine_distances(view.vectors, request.vector, offsets=offsets)
    return Candidates(
        segment=segment,
        path=SearchPath.SCAN,
        entry_ids=view.entry_ids[offsets],
        offsets=offsets,
        cosine_distances=distances,
        hamming_distances=hamming,
        examined_count=offsets.size,
        proves_miss=scan_proves_miss(
            live_count=int(np.count_nonzero(live)),
            candidate_count=offsets.size,
            worst_hamming_distance=int(hamming[-1]) if hamming.size else None,
            radius=request.radii.get(encoder_id),
        ),
    )


def search_graph(segment: Segment, view: SegmentView, request: SearchRequest, *, ef: int) -> Candidates:
    """Take what the graph reaches, drop rows that are not live, and measure the rest exactly.

    Falls back to `search_exact` when fewer than k live rows were reached and there are more.
    """
    assert segment.graph is not None  # the planner's rule
    live = _live_mask(segment, view, request)
    reached = segment.graph.search(request.vector, k=max(request.k, ef), ef=ef)
    offsets = reached[live[reached]]
    live_count = int(np.count_nonzero(live))
    if graph_falls_short(live_count=live_count, found_count=offsets.size, k=request.k):
        return search_exact(segment, view, request)
    distances = cosine_distances(view.vectors, request.vector, offsets=offsets)
    return Candidates(
        segment=segment,
        path=SearchPath.HNSW,
        entry_ids=view.entry_ids[offsets],
        offsets=offsets,
        cosine_distances=distances,
        hamming_distances=_hamming(segment, view, request, offsets),
        examined_count=offsets.size,
        proves_miss=True,  # by the graph's recall: a graph has no radius to prove more with
    )


def search_exact(segment: Segment, view: SegmentView, request: SearchRequest) -> Candidates:
    """Measure every live row and keep the k nearest."""
    live = _live_offsets(segment, view, request)
    distances = cosine_distances(view.vectors, request.vector, offsets=live)
    chosen = smallest(distances, count=request.k, ties=view.entry_ids[live])
    offsets = live[chosen]
    return Candidates(
        segment=segment,
        path=SearchPath.EXACT,
        entry_ids=view.entry_ids[offsets],
        offsets=offsets,
        cosine_distances=distances[chosen],
        hamming_distances=_hamming(segment, view, request, offsets),
        examined_count=live.size,
        proves_miss=True,
    )


def search_label_codes(
    segment: Segment,
    view: SegmentView,
    *,
    values: NDArray[np.float32],
    k: int,
    now_ms: int,
    scope: int | None,
    allowed_ids: NDArray[np.int64] | None,
) -> Candidates:
    """Rank the live rows that have a label code by 1 - cosine of query values and code, in [0, 2].

    values: float32 [label_bits], not all 0. Equal distances are ranked by entry id.
    """
    live = view.label_mask & _is_live(view.expire_times, view.scopes, now_ms=now_ms, scope=scope)
    if allowed_ids is not None:
        live &= _mask(_allowed_offsets(segment, view, allowed_ids), view.row_count)
    offsets, scores = nearest_by_score(view.label_codes, values, count=k, live=live, ties=view.entry_ids)
    scale = np.float32(np.linalg.norm(values.astype(np.float64)) * np.sqrt(values.size))
    return Candidates(
        segment=segment,
        path=SearchPath.SCAN,
        entry_ids=view.entry_ids[offsets],
        offsets=offsets,
        cosine_distances=np.clip(np.float32(1) - scores / scale, 0, 2).astype(np.float32),
        hamming_distances=None,
        examined_count=int(np.count_nonzero(live)),
        proves_miss=True,
    )


def _is_live(
    expire_times: NDArray[np.int64], scopes: NDArray[np.uint64], *, now_ms: int, scope: int | None
) -> NDArray[np.bool_]:
    live = now_ms < expire_times
    if scope is not None:
        live &= scopes == np.uint64(scope)
    return live


def _live_mask(segment: Segment, view: SegmentView, request: SearchRequest) -> NDArray[np.bool_]:
    if request.allowed_ids is not None:
        return _mask(_live_offsets(segment, view, request), view.row_count)
    return _is_live(view.expire_times, view.scopes, now_ms=request.now_ms, scope=request.scope)


def _live_offsets(segment: Segment, view: SegmentView, request: SearchRequest) -> NDArray[np.int64]:
    """Offsets that may match, ascending. A list of allowed ids is looked up, the other rows are not read."""
    if request.allowed_ids is None:
        return np.flatnonzero(_live_mask(segment, view, request))
    offsets = _allowed_offsets(segment, view, request.allowed_ids)
    live = _is_live(
        view.expire_times[offsets], view.scopes[offsets], now_ms=request.now_ms, scope=request.scope
    )
    return offsets[live]


def _allowed_offsets(
    segment: Segment, view: SegmentView, allowed_ids: NDArray[np.int64]
) -> NDArray[np.int64]:
    located = np.unique(segment.locate(allowed_ids))
    # A growing segment may have got rows since the view was taken.
    return located[(located >= 0) & (located < view.row_count)]


def _mask(offsets: NDArray[np.int64], row_count: int) -> NDArray[np.bool_]:
    mask = np.zeros(row_count, dtype=np.bool_)
    mask[offsets] = True
    return mask


def _hamming(
    segment: Segment, view: SegmentView, request: SearchRequest, offsets: NDArray[np.int64]
) -> NDArray[np.int32] | None:
    code = request.codes.get(segment.key.encoder_id or "")
    if view.codes is None or code is None:
        return None
    return hamming_distances(view.codes[offsets], code)

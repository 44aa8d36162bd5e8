"""Searches of one segment, one function per path. Nothing here changes anything."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from index.codes import WORD_BITS
from index.config import IndexConfig
from index.hamming import hamming_distances, nearest_by_score
from index.kernels import BLOCK_ROWS, PREFIX_BITS, cosine_distances
from index.lists import InvertedLists, ListChoice
from index.planner import SearchPath, graph_falls_short, pass_rate, scan_proves_miss
from index.requests import SearchRequest, ValueQuery
from index.rows import SegmentView
from index.search_table import RankedRow
from index.segment import Segment
from index.selection import smallest


@dataclass(slots=True, kw_only=True, eq=False)  # not frozen: that takes 2 us a search to make
class Candidates:
    """Rows of one segment with their exact distances, ascending; live when they were collected.

    proves_miss: when none of them is within the threshold, no live row of the segment is.
    """

    segment: Segment
    path: SearchPath
    rows: Sequence[RankedRow]
    examined_count: int
    proves_miss: bool


def search_segment(
    segment: Segment,
    view: SegmentView,
    requests: Sequence[SearchRequest],
    *,
    path: SearchPath,
    config: IndexConfig,
) -> list[Candidates]:
    """Search one segment on one path; a graph search that falls short is repeated as EXACT.

    requests: with equal k, now_ms and list of allowed ids. Searches of codes share one pass over them.
    """
    if path in (SearchPath.CASCADE, SearchPath.IVF) and segment.lists is not None:
        return [
            _search_lists(segment, segment.lists, view, request, path=path, config=config)
            for request in requests
        ]
    if path in (SearchPath.CASCADE, SearchPath.SCAN):
        return _search_codes(segment, view, requests, path=path, config=config, lists=None)
    if path is SearchPath.HNSW:
        return [search_graph(segment, view, request, ef=config.hnsw_ef_search) for request in requests]
    return [search_exact(segment, view, request) for request in requests]


def _search_lists(
    segment: Segment,
    lists: InvertedLists,
    view: SegmentView,
    request: SearchRequest,
    *,
    path: SearchPath,
    config: IndexConfig,
) -> Candidates:
    recall = max(request.min_recall, config.list_recall) if path is SearchPath.IVF else None
    near = lists.near(least=config.probe_count, recall=recall, cosine_distance=request.threshold)
    found = _search_codes(segment, view, [request], path=path, config=config, lists=near)[0]
    if path is SearchPath.IVF and found.examined_count < request.k:
        # Of a rare scope, or where most rows are dead, the lists near the query may hold too few.
        return _search_codes(segment, view, [request], path=SearchPath.SCAN, config=config, lists=None)[0]
    return found


def _search_codes(
    segment: Segment,
    view: SegmentView,
    requests: Sequence[SearchRequest],
    *,
    path: SearchPath,
    config: IndexConfig,
    lists: ListChoice | None,
) -> list[Candidates]:
    """Take the live rows with the nearest codes and measure them exactly."""
    encoder_id = segment.key.encoder_id
    assert view.table is not None and encoder_id is not None  # the planner's rule
    first = requests[0]
    if len(requests) == 1:  # spared two copies
        codes, vectors = first.codes[encoder_id][None], first.vector[None]
    else:
        codes = np.array([request.codes[encoder_id] for request in requests])
        vectors = np.array([request.vector for request in requests])
    radii = [request.radii.get(encoder_id, {}).get(config.code_bits) for request in requests]
    max_distances = prefix_limits = None
    if path is SearchPath.CASCADE:
        max_distances = np.array(radii, dtype=np.int32)  # the planner's rule: there is one of each
        bit_count = WORD_BITS * codes.shape[1]
        limits = [_prefix_limits(request.radii[encoder_id], bit_count=bit_count) for request in requests]
        prefix_limits = np.array(limits, dtype=np.int32)
    wanted = config.candidates_for(first.k)
    found = view.table.nearest_rows(
        codes,
        vectors,
        count=wanted,
        exact_count=config.exact_for(first.k),
        now_ms=first.now_ms,
        scopes=_scopes(requests),
        allowed=_allowed_mask(segment, view, first),
        lists=lists,
        max_distances=max_distances,
        prefix_limits=prefix_limits,
    )
    return [
        Candidates(
            segment=segment,
            path=path,
            rows=rows,
            examined_count=count,
            proves_miss=scan_proves_miss(
                wanted_count=wanted,
                candidate_count=count,
                worst_hamming_distance=worst if count else None,
                radius=radius,
            ),
        )
        for (rows, count, worst), radius in zip(found, radii, strict=True)
    ]


def search_graph(segment: Segment, view: SegmentView, request: SearchRequest, *, ef: int) -> Candidates:
    """Take what the graph reaches, drop rows that are not live, and measure the rest exactly.

    Falls back to `search_exact` when fewer than k live rows were reached and there are more.
    """
    assert segment.graph is not None  # the planner's rule
    reached = segment.graph.search(request.vector, k=max(request.k, ef), ef=ef)
    live = _live_mask(segment, view, request)
    offsets = reached[live[reached]]
    if offsets.size < request.k:
        live_count = int(np.count_nonzero(live))
        if graph_falls_short(live_count=live_count, found_count=offsets.size, k=request.k):
            return search_exact(segment, view, request)
    distances = cosine_distances(view.vectors, request.vector, offsets=offsets)
    order = np.lexsort((view.entry_ids[offsets], distances))
    return Candidates(
        segment=segment,
        path=SearchPath.HNSW,
        rows=_ranked(segment, view, request, offsets[order], distances[order]),
        examined_count=offsets.size,
        proves_miss=True,  # by the graph's recall: a graph has no radius to prove more with
    )


def search_exact(segment: Segment, view: SegmentView, request: SearchRequest) -> Candidates:
    """Measure every live row and keep the k nearest."""
    live = _live_offsets(segment, view, request)
    distances = cosine_distances(view.vectors, request.vector, offsets=live)
    chosen = smallest(distances, count=request.k, ties=view.entry_ids[live])
    return Candidates(
        segment=segment,
        path=SearchPath.EXACT,
        rows=_ranked(segment, view, request, live[chosen], distances[chosen]),
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
    distances = np.clip(np.float32(1) - scores / scale, 0, 2).astype(np.float32)
    ids = view.entry_ids[offsets]
    order = np.lexsort((ids, distances))  # different scores may be one distance
    distances, ids, offsets = distances[order], ids[order], offsets[order]
    return Candidates(
        segment=segment,
        path=SearchPath.SCAN,
        rows=list(zip(distances.tolist(), ids.tolist(), repeat(None), offsets.tolist(), strict=False)),
        examined_count=int(np.count_nonzero(live)),
        proves_miss=True,
    )


def search_instance_codes(
    segment: Segment,
    view: SegmentView,
    query: ValueQuery,
    *,
    k: int,
    now_ms: int,
    scope: int | None,
    allowed_ids: NDArray[np.int64] | None,
) -> Candidates:
    """Rank the live rows by 1 - cosine of query values and the bits of the code that count, in [0, 2].

    The Hamming distances are of those bits too. Equal distances are ranked by entry id.
    """
    assert view.codes is not None  # the caller's rule: a query is of an encoder
    live = _is_live(view.expire_times, view.scopes, now_ms=now_ms, scope=scope)
    if allowed_ids is not None:
        live &= _mask(_allowed_offsets(segment, view, allowed_ids), view.row_count)
    offsets, scores = nearest_by_score(view.codes, query.values, count=k, live=live, ties=view.entry_ids)
    counted = int(np.bitwise_count(query.mask).sum())
    scale = np.float32(np.linalg.norm(query.values.astype(np.float64)) * np.sqrt(counted))
    distances = np.clip(np.float32(1) - scores / scale, 0, 2).astype(np.float32)
    order = np.lexsort((view.entry_ids[offsets], distances))  # different scores may be one distance
    offsets, distances = offsets[order], distances[order]
    bits = np.bitwise_count((view.codes[offsets] ^ query.code) & query.mask).sum(axis=1)
    ids = view.entry_ids[offsets].tolist()
    return Candidates(
        segment=segment,
        path=SearchPath.SCAN,
        rows=list(zip(distances.tolist(), ids, bits.tolist(), offsets.tolist(), strict=True)),
        examined_count=int(np.count_nonzero(live)),
        proves_miss=True,
    )


def _prefix_limits(radii: Mapping[int, int], *, bit_count: int) -> list[int]:
    """The limit of each prefix; its length, which limits nothing, where most blocks have a row within."""
    limits = []
    for bits in PREFIX_BITS:
        if bits < bit_count:
            radius = radii.get(bits, bits)
            limits.append(radius if pass_rate(radius, bits) * BLOCK_ROWS < 1 else bits)
    return limits


def _scopes(requests: Sequence[SearchRequest]) -> NDArray[np.uint64] | None:
    """The scope of each request; requests all have one, or none has."""
    if requests[0].scope is None:
        return None
    return np.array([request.scope for request in requests], dtype=np.uint64)


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


def _allowed_mask(segment: Segment, view: SegmentView, request: SearchRequest) -> NDArray[np.bool_] | None:
    if request.allowed_ids is None:
        return None
    return _mask(_allowed_offsets(segment, view, request.allowed_ids), view.row_count)


def _mask(offsets: NDArray[np.int64], row_count: int) -> NDArray[np.bool_]:
    mask = np.zeros(row_count, dtype=np.bool_)
    mask[offsets] = True
    return mask


def _ranked(
    segment: Segment,
    view: SegmentView,
    request: SearchRequest,
    offsets: NDArray[np.int64],
    distances: NDArray[np.float32],
) -> list[RankedRow]:
    """Rows at offsets int64 [m], with distances float32 [m], that are in order."""
    code = request.codes.get(segment.key.encoder_id or "")
    bits: Iterable[int | None] = repeat(None)
    if view.codes is not None and code is not None:
        bits = hamming_distances(view.codes[offsets], code).tolist()
    ids = view.entry_ids[offsets].tolist()
    return list(zip(distances.tolist(), ids, bits, offsets.tolist(), strict=False))

"""Which segments the queries of a call search, on which path, and which of them share a pass."""

from collections.abc import Iterator, Mapping, Sequence

from index.config import IndexConfig
from index.errors import PathUnavailableError
from index.planner import QueryTraits, SearchPath, SegmentTraits, plan, prefix_pass_rate, unavailable
from index.requests import Partition, SearchRequest
from index.rows import SegmentView
from index.segment import Segment

Viewed = tuple[Segment, SegmentView]
PlannedSearch = tuple[Segment, SegmentView, SearchPath]
Filters = tuple[int, int, bool, int]


def plan_search(
    request: SearchRequest,
    views: Mapping[Partition, Sequence[Viewed]],
    sharing: Mapping[tuple[Partition, Filters], int],
    *,
    config: IndexConfig,
) -> list[PlannedSearch]:
    """How each segment of the asked partitions is searched; each once, however often it is named.

    sharing: how many queries of a call can share a pass, where it is not one. Raises: PathUnavailableError
    when a path was asked for that no segment has.
    """
    planned: list[PlannedSearch] = []
    reasons: list[str | None] = []
    for partition in dict.fromkeys(request.partitions):
        partition_row_count = sum(view.row_count for _, view in views[partition])
        query = QueryTraits(
            k=request.k,
            allowed_count=None if request.allowed_ids is None else request.allowed_ids.size,
            min_recall=request.min_recall,
            query_count=sharing.get((partition, filters_of(request)), 1),
        )
        for segment, view in views[partition]:
            encoder_id = segment.key.encoder_id
            traits = SegmentTraits(
                row_count=view.row_count,
                partition_row_count=partition_row_count,
                has_codes=view.codes is not None,
                has_query_code=encoder_id in request.codes,
                has_graph=segment.graph is not None,
                has_lists=segment.lists is not None,
                matching_share=1.0 if segment.lists is None else _matching_share(segment, view, request),
                prefix_pass_rate=None
                if request.threshold is None or encoder_id is None
                else prefix_pass_rate(request.radii.get(encoder_id), code_bits=config.code_bits),
            )
            reason = None if request.path is None else unavailable(request.path, traits)
            reasons.append(reason)
            path = plan(request.path if reason is None else None, segment=traits, query=query, config=config)
            planned.append((segment, view, path))
    if request.path is not None and reasons and None not in reasons:
        named = sorted({reason for reason in reasons if reason is not None})
        raise PathUnavailableError(request.path.value, "; ".join(named))
    return planned


def shared_searches(
    requests: Sequence[SearchRequest], planned: Sequence[Sequence[PlannedSearch]]
) -> Iterator[tuple[PlannedSearch, list[int]]]:
    """Each search of a segment, with the numbers of the requests that can share it."""
    shared: dict[tuple[object, ...], tuple[PlannedSearch, list[int]]] = {}
    for number, (request, searches) in enumerate(zip(requests, planned, strict=True)):
        filters = filters_of(request)
        for search in searches:
            segment, _, path = search
            shared.setdefault((id(segment), path, filters), (search, []))[1].append(number)
    yield from shared.values()


def filters_of(request: SearchRequest) -> Filters:
    """What requests have in common that can share a pass over codes."""
    return request.k, request.now_ms, request.scope is None, id(request.allowed_ids)


def _matching_share(segment: Segment, view: SegmentView, request: SearchRequest) -> float:
    share = 1.0 if request.allowed_ids is None else min(1.0, request.allowed_ids.size / view.row_count)
    return share if request.scope is None else share * segment.scope_share(request.scope)

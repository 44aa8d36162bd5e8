"""What a lookup finds: by its fingerprint, else the nearest entry in its space, else, while an embedder takes
another's place, the nearest one of the embedder before. No SQL, no write on this path."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from index.planner import SearchPath
from index.requests import Partition, SearchRequest, SearchResult
from index.segment import Fingerprint
from index.vector_index import VectorIndex
from service.choosing import aged, asks_consent, choose, is_learned, is_served, reach, sure_threshold
from service.consent import SHORTLIST
from service.embedding import Embedded, default_fingerprint
from service.keys import fingerprint_key, scope_key, split_key
from service.load import applied_load, threshold_at
from service.lookup import Found, Lookup, LookupMode, LookupQuery, LookupReason
from service.replica import CacheState
from service.spaces import spaces_of
from service.threshold import applied_threshold, decide

_UNANSWERED = (LookupReason.BEYOND_THRESHOLD, LookupReason.NO_CANDIDATE)
_SKIPPING_PATHS = (SearchPath.CASCADE, SearchPath.IVF)  # they do not examine every row, however far

# What a fingerprint that no entry has finds, where there is nothing else to look for.
_NOTHING = Found(match=None, reason=LookupReason.NO_CANDIDATE, distance=None)

_UNPROFITABLE = Found(match=None, reason=LookupReason.UNPROFITABLE, distance=None)


def to_lookup(
    state: CacheState,
    query: LookupQuery,
    key: Fingerprint | None,
    embedded: Embedded | None,
    *,
    loads: Mapping[str, float] | None = None,
    is_skipped: bool = False,
) -> Lookup:
    """The lookup on a state. loads: of models. Raises: NotFoundError: no such category."""
    category = state.category(query.category)
    load = applied_load(category.policy, loads or {})
    return Lookup(
        query=query,
        category=category,
        partitions=partitions_of(state, query),
        threshold=applied_threshold(threshold_at(category.policy, load or 0.0), query.threshold),
        key=key,
        embedded=embedded,
        seq=state.index.applied_seq,
        load=load,
        is_skipped=is_skipped,
    )


def partitions_of(state: CacheState, query: LookupQuery) -> tuple[Partition, ...]:
    """Where its modality's entries are, of all embedders. Raises: NotFoundError, InvalidRequestError."""
    category_id = state.category(query.category).id
    return tuple((category_id, space) for space in spaces_of(state.record, query.source.modality))


def find(state: CacheState, lookups: Sequence[Lookup], *, now_ms: int) -> list[Found | None]:
    """What each lookup would serve; None: it asked for nothing."""
    found: list[Found | None] = [None] * len(lookups)
    searched: list[int] = []
    for i, lookup in enumerate(lookups):
        if lookup.query.mode is LookupMode.BYPASS:
            continue
        same = find_fingerprint(state.index, lookup.partitions, lookup.key, now_ms=now_ms)
        if same is not None:
            # Where it is stale no other entry takes its place: this one is to be renewed.
            found[i] = aged(lookup, same, now_ms=now_ms)
            continue
        found[i] = _UNPROFITABLE if lookup.is_skipped else _NOTHING
        if lookup.embedded is not None and not lookup.is_skipped:
            searched.append(i)
    if searched:
        nearest = _find_nearest(state, [lookups[i] for i in searched], now_ms=now_ms)
        for i, one in zip(searched, nearest, strict=True):
            found[i] = one
        if state.maps:
            _find_mapped(state, lookups, found, now_ms=now_ms)
    return found


def _find_mapped(
    state: CacheState, lookups: Sequence[Lookup], found: list[Found | None], *, now_ms: int
) -> None:
    """Search the space of the embedder before for lookups that found nothing in their own."""
    asked: dict[int, Lookup] = {}
    for i, (lookup, own) in enumerate(zip(lookups, found, strict=True)):
        if own is not None and lookup.embedded is not None and own.reason in _UNANSWERED:
            mapped = _mapped(state, lookup)
            if mapped is not None:
                asked[i] = mapped
    if not asked:
        return
    nearest = _find_nearest(state, list(asked.values()), now_ms=now_ms)
    for (i, mapped), other in zip(asked.items(), nearest, strict=True):
        own = found[i]
        if other.match is not None and mapped.category.policy.min_probability is not None:
            # A verifier reads embeddings of one embedder: none consents to this.
            other = other._replace(match=None, reason=LookupReason.UNVERIFIED)
        if own is not None and (
            other.reason not in _UNANSWERED or own.reason is LookupReason.NO_CANDIDATE is not other.reason
        ):
            found[i] = other._replace(mapped_threshold=mapped.threshold)


def _mapped(state: CacheState, lookup: Lookup) -> Lookup | None:
    """The same lookup in the space of the embedder before; None: its queries are not mapped, or no mapped
    distance is near enough for its threshold."""
    assert lookup.embedded is not None
    served = state.maps.get(lookup.embedded.space)
    # No rule is learned of mapped distances.
    limit = 0.0 if served is None else served.thresholds.limit(sure_threshold(lookup))
    if served is None or not limit:
        return None
    embedded = Embedded(served.apply(lookup.embedded.vector), served.modality)
    return lookup._replace(embedded=embedded, threshold=limit, mapped_from=lookup.embedded)


def fingerprint_of(query: LookupQuery) -> Fingerprint | None:
    """The key that an entry of the same request has."""
    source = query.source
    fingerprint = query.fingerprint or default_fingerprint(source.text, modality=source.modality)
    return split_key(fingerprint_key(query.scope, fingerprint)) if fingerprint else None


def find_fingerprint(
    index: VectorIndex, partitions: Sequence[Partition], key: Fingerprint | None, *, now_ms: int
) -> Found | None:
    """The entry of exactly this key, in whichever space; None: there is none, or no key."""
    if key is None:
        return None
    for partition in partitions:
        match = index.find_fingerprint(partition, key, now_ms=now_ms)
        if match is not None:
            return Found(match=match, reason=LookupReason.FINGERPRINT, distance=0.0, nearest=0.0)
    return None


def _find_nearest(state: CacheState, lookups: Sequence[Lookup], *, now_ms: int) -> list[Found]:
    """The nearest entry of each in its space; lookups of one category share a pass over its codes."""
    requests = []
    for lookup in lookups:
        assert lookup.embedded is not None  # what is searched for
        vector, space = lookup.embedded
        partitions = ((lookup.category.id, space),)
        is_judged = asks_consent(lookup) or (is_learned(lookup) and space in state.verifiers)
        encoder_ids = state.index.encoder_ids(partitions)
        requests.append(
            SearchRequest(
                partitions=partitions,
                vector=vector,
                codes=state.encoders.query_codes(vector, encoder_ids, modality=space),
                k=SHORTLIST if is_judged or is_learned(lookup) else 1,
                now_ms=now_ms,
                scope=scope_key(lookup.query.scope),
                threshold=reach(lookup),
                radii=state.encoders.radii(encoder_ids, reach(lookup)),
                with_vectors=is_judged,
            )
        )
    results = state.index.search_batch(requests)
    # The nearest entry is seldom one that is not served: only then are the next ones looked for.
    again = [
        i
        for i, (lookup, result) in enumerate(zip(lookups, results, strict=True))
        if requests[i].k == 1
        and not all(is_served(state, lookup, match, now_ms=now_ms) for match in result.matches)
    ]
    if again:
        wider = state.index.search_batch([replace(requests[i], k=SHORTLIST) for i in again])
        for i, result in zip(again, wider, strict=True):
            results[i] = result
    found = []
    for lookup, request, result in zip(lookups, requests, results, strict=True):
        nearest = _found_by_distance(state.index, request, result)
        if nearest.match is not None:
            nearest = choose(state, lookup, nearest, result.matches, now_ms=now_ms)
        found.append(nearest)
    return found


def _found_by_distance(index: VectorIndex, request: SearchRequest, result: SearchResult) -> Found:
    assert request.threshold is not None  # every lookup has one
    nearest = result.matches[0] if result.matches else None
    distance = nearest.cosine_distance if nearest else result.nearest_distance
    is_within = decide(distance, request.threshold).within
    if is_within:
        reason = LookupReason.WITHIN_THRESHOLD
    elif distance is None and _met_all(index, request.partitions[0], result.path):
        reason = LookupReason.NO_CANDIDATE
    else:
        reason = LookupReason.BEYOND_THRESHOLD
    return Found(
        match=nearest if is_within else None,
        reason=reason,
        distance=distance,
        path=result.path,
        candidates_examined=result.candidates_examined,
        query_code=next(iter(request.codes.values()), None),
        nearest=math.inf if distance is None else distance,
    )


def _met_all(index: VectorIndex, partition: Partition, path: SearchPath) -> bool:
    """Whether a search that examined no row would have met any row of its scope; False where not known.

    To look for one costs more than such a search.
    """
    if path in _SKIPPING_PATHS:
        return False
    # The path of the result is the most thorough one: a smaller segment's, where there are several.
    row_counts = [view.row_count for key, view in index.segment_views() if key.partition == partition]
    skipped_from = min(index.config.cascade_min_rows, index.config.lists_min_rows)
    return len(row_counts) < 2 or max(row_counts) < skipped_from

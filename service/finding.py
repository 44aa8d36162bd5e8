"""What a lookup finds: by its fingerprint, else the nearest entry in its space, else, while an embedder takes
another's place, the nearest one of the embedder before. No SQL, no write on this path."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.planner import SearchPath
from index.requests import Match, Partition, SearchRequest, SearchResult
from index.segment import Fingerprint
from index.vector_index import VectorIndex
from service.consent import SHORTLIST, most_probable
from service.embedding import Embedded, Input, default_fingerprint
from service.expiration import Freshness, freshness
from service.keys import fingerprint_key, scope_key, split_key
from service.payload import Facts, payload_facts
from service.records import CategoryRecord
from service.replica import CacheState
from service.spaces import spaces_of
from service.threshold import applied_threshold, decide


class LookupMode(Enum):
    """What a lookup does with what it finds."""

    SERVE = "serve"
    BYPASS = "bypass"
    REFRESH = "refresh"


class LookupReason(Enum):
    """Why a lookup was a hit or a miss.

    BEYOND_THRESHOLD without a distance: rows that are too far by their codes were not examined, and none of
    them may be of the scope. NO_CANDIDATE: there is none of the scope. UNVERIFIED: entries are within the
    threshold, and the verifier's consent to one of them was asked for and not given. LEASED: another caller
    holds the lease of the same question, or of one within the threshold. STALE: an entry would be one, if it
    were younger.
    """

    FINGERPRINT = "fingerprint"
    WITHIN_THRESHOLD = "within_threshold"
    BEYOND_THRESHOLD = "beyond_threshold"
    NO_CANDIDATE = "no_candidate"
    BYPASS = "bypass"
    REFRESH = "refresh"
    SHADOW = "shadow"
    UNVERIFIED = "unverified"
    LEASED = "leased"
    STALE = "stale"


_UNANSWERED = (LookupReason.BEYOND_THRESHOLD, LookupReason.NO_CANDIDATE)
_SKIPPING_PATHS = (SearchPath.CASCADE, SearchPath.IVF)  # they do not examine every row, however far


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupQuery:
    """One lookup. `threshold` is a cosine distance; the stricter of it and the category's holds, as with
    `max_age_ms` and the category's refresh time; None: any age.

    lease_seconds: a miss takes a lease for so long; 0: it asks for none. wait_seconds: for another's lease.
    """

    category: str
    source: Input
    scope: str = ""
    fingerprint: str | None = None
    mode: LookupMode = LookupMode.SERVE
    threshold: float | None = None
    max_age_ms: int | None = None
    min_seq: int = 0
    lease_seconds: float = 0.0
    wait_seconds: float = 0.0


class Found(NamedTuple):  # quicker to make than a dataclass
    """The entry that would be served and how it was found; without one, of the nearest. STALE: the entry that
    is too old. refresh_due: it is served past its refresh time.

    nearest: distance of the nearest entry, infinite where none was examined; None: nothing was searched for.
    probability: as in LookupAnswer. mapped_threshold: applied to a mapped query; None: it was not mapped."""

    match: Match | None
    reason: LookupReason
    distance: float | None
    path: SearchPath | None = None
    candidates_examined: int = 0
    query_code: NDArray[np.uint64] | None = None
    nearest: float | None = None
    probability: float | None = None
    mapped_threshold: float | None = None
    refresh_due: bool = False


class Lookup(NamedTuple):
    """One lookup and what it is answered from. partitions: of all spaces of its modality. threshold: of those
    searched. embedded: None where no vector is searched for. is_mapped: it is one of the embedder before."""

    query: LookupQuery
    category: CategoryRecord
    partitions: tuple[Partition, ...]
    threshold: float
    key: Fingerprint | None
    embedded: Embedded | None
    is_mapped: bool = False


# What a fingerprint that no entry has finds, where there is nothing else to look for.
_NOTHING = Found(match=None, reason=LookupReason.NO_CANDIDATE, distance=None)


def to_lookup(
    state: CacheState, query: LookupQuery, key: Fingerprint | None, embedded: Embedded | None
) -> Lookup:
    """The lookup on a state. Raises: NotFoundError: no such category."""
    category = state.category(query.category)
    return Lookup(
        query=query,
        category=category,
        partitions=partitions_of(state, query),
        threshold=applied_threshold(category.policy.threshold, query.threshold),
        key=key,
        embedded=embedded,
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
            found[i] = _aged(lookup, same, now_ms=now_ms)
            continue
        found[i] = _NOTHING
        if lookup.embedded is not None:
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
    limit = 0.0 if served is None else served.thresholds.limit(lookup.threshold)
    if served is None or not limit:
        return None
    embedded = Embedded(served.apply(lookup.embedded.vector), served.modality)
    return lookup._replace(embedded=embedded, threshold=limit, is_mapped=True)


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
        asks_consent = lookup.category.policy.min_probability is not None and not lookup.is_mapped
        encoder_ids = state.index.encoder_ids(partitions)
        requests.append(
            SearchRequest(
                partitions=partitions,
                vector=vector,
                codes=state.encoders.query_codes(vector, encoder_ids, modality=space),
                k=SHORTLIST if asks_consent else 1,
                now_ms=now_ms,
                scope=scope_key(lookup.query.scope),
                threshold=lookup.threshold,
                radii=state.encoders.radii(encoder_ids, lookup.threshold),
                with_vectors=asks_consent,
            )
        )
    results = state.index.search_batch(requests)
    # The nearest entry is seldom one that is not served: only then are the next ones looked for.
    again = [
        i
        for i, (lookup, result) in enumerate(zip(lookups, results, strict=True))
        if requests[i].k == 1
        and not all(_is_served(lookup, match, now_ms=now_ms) for match in result.matches)
    ]
    if again:
        wider = state.index.search_batch([replace(requests[i], k=SHORTLIST) for i in again])
        for i, result in zip(again, wider, strict=True):
            results[i] = result
    found = [
        _nearest(state.index, lookup, request, result, now_ms=now_ms)
        for lookup, request, result in zip(lookups, requests, results, strict=True)
    ]
    for i, request in enumerate(requests):
        if request.with_vectors and found[i].match is not None:
            found[i] = _consented(state, lookups[i], found[i], results[i], now_ms=now_ms)
    return found


def _is_served(lookup: Lookup, match: Match, *, now_ms: int) -> bool:
    """Whether an entry that is near enough may be a hit by distance."""
    facts = payload_facts(match.payload)
    return not facts.is_demoted and _freshness(lookup, facts, now_ms=now_ms) is not Freshness.STALE


def _freshness(lookup: Lookup, facts: Facts, *, now_ms: int) -> Freshness:
    policy, max_age_ms = lookup.category.policy, lookup.query.max_age_ms
    if max_age_ms is None and policy.refresh_after_ms is None:  # as most are
        return Freshness.FRESH
    return freshness(facts.create_ms, policy, now_ms=now_ms, max_age_ms=max_age_ms)


def _aged(lookup: Lookup, found: Found, *, now_ms: int) -> Found:
    """What is found, as the age of its entry lets it be served."""
    assert found.match is not None  # what has an age
    age = _freshness(lookup, payload_facts(found.match.payload), now_ms=now_ms)
    if age is Freshness.STALE:
        return found._replace(reason=LookupReason.STALE)
    return found._replace(refresh_due=True) if age is Freshness.DUE else found


def _nearest(
    index: VectorIndex, lookup: Lookup, request: SearchRequest, result: SearchResult, *, now_ms: int
) -> Found:
    """The nearest entry that may be served; else the nearest that is too old; else why there is none."""
    found = _found_by_distance(index, request, result)
    if found.match is None:
        return found
    candidates = _candidates(lookup, result, now_ms=now_ms)
    if not candidates:  # all that are near enough were judged wrong: they are as good as beyond
        return found._replace(match=None, reason=LookupReason.BEYOND_THRESHOLD, distance=None)
    chosen = found._replace(match=candidates[0], distance=candidates[0].cosine_distance)
    return _aged(lookup, chosen, now_ms=now_ms)


def _candidates(lookup: Lookup, result: SearchResult, *, now_ms: int) -> list[Match]:
    """The entries within the threshold that may be served; without any, those that are only too old."""
    fresh = [match for match in result.matches if _is_served(lookup, match, now_ms=now_ms)]
    return fresh or [match for match in result.matches if not payload_facts(match.payload).is_demoted]


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


def _consented(
    state: CacheState, lookup: Lookup, nearest: Found, result: SearchResult, *, now_ms: int
) -> Found:
    """The entry within the threshold, of those that may be served, that the verifier consents to, in the
    place of the nearest."""
    min_probability, embedded = lookup.category.policy.min_probability, lookup.embedded
    assert min_probability is not None and embedded is not None  # it was asked for, and searched for
    verifier = state.verifiers.get(embedded.space)
    verdict = None
    if verifier is not None:
        text = lookup.query.source.text
        candidates = _candidates(lookup, result, now_ms=now_ms)
        verdict = most_probable(verifier, candidates, vector=embedded.vector, text=text)
    if verdict is None or verdict.probability < min_probability:
        probability = None if verdict is None else verdict.probability
        return nearest._replace(
            match=None, reason=LookupReason.UNVERIFIED, probability=probability, refresh_due=False
        )
    chosen = nearest._replace(
        match=verdict.match,
        distance=verdict.match.cosine_distance,
        probability=verdict.probability,
        refresh_due=False,  # of the nearest
    )
    return _aged(lookup, chosen, now_ms=now_ms)


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

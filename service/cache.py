"""The semantic cache's lookup: fingerprint, code, nearest entries, decision, and the verifier's consent where
the category asks for it. No SQL, no write on this path."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.planner import SearchPath
from index.requests import Match, Partition, SearchRequest, SearchResult
from index.segment import Fingerprint
from index.vector_index import VectorIndex
from service.accesses import AccessLog
from service.consent import SHORTLIST, most_probable
from service.embedder import Embedder
from service.embedding import Input, check_input, default_fingerprint, embed_inputs
from service.errors import InvalidRequestError
from service.keys import fingerprint_key, scope_key, split_key
from service.payload import unpack_payload
from service.records import CategoryRecord
from service.replica import CacheReplica, CacheState
from service.threshold import applied_threshold, decide
from service.tokens import LookupToken, sign_token


class LookupMode(Enum):
    """What a lookup does with what it finds."""

    SERVE = "serve"
    BYPASS = "bypass"
    REFRESH = "refresh"


class LookupReason(Enum):
    """Why a lookup was a hit or a miss.

    BEYOND_THRESHOLD without a distance: rows that are too far by their codes were not examined, and none of
    them may be of the scope. NO_CANDIDATE: there is none of the scope. UNVERIFIED: entries are within the
    threshold, and the verifier's consent to one of them was asked for and not given.
    """

    FINGERPRINT = "fingerprint"
    WITHIN_THRESHOLD = "within_threshold"
    BEYOND_THRESHOLD = "beyond_threshold"
    NO_CANDIDATE = "no_candidate"
    BYPASS = "bypass"
    REFRESH = "refresh"
    SHADOW = "shadow"
    UNVERIFIED = "unverified"


_HITS = (LookupReason.FINGERPRINT, LookupReason.WITHIN_THRESHOLD)
_SKIPPING_PATHS = (SearchPath.CASCADE, SearchPath.IVF)  # they do not examine every row, however far
_COUNTED_AS = {
    LookupReason.FINGERPRINT: "hit_count",
    LookupReason.WITHIN_THRESHOLD: "hit_count",
    LookupReason.BYPASS: "bypass_count",
    LookupReason.SHADOW: "shadow_hit_count",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupQuery:
    """One lookup. `threshold` is a cosine distance; the stricter of it and the category's holds."""

    category: str
    source: Input
    scope: str = ""
    fingerprint: str | None = None
    mode: LookupMode = LookupMode.SERVE
    threshold: float | None = None
    min_seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupAnswer:
    """What a lookup answers; `entry` is the entry served, or that would have been (REFRESH, SHADOW).

    probability: what the verifier says of the most probable entry; None where it was not asked, or failed.
    """

    reason: LookupReason
    threshold: float
    entry: str = ""
    response: bytes = b""
    content_type: str = ""
    distance: float | None = None
    probability: float | None = None
    path: SearchPath | None = None
    candidates_examined: int = 0
    token: str = ""
    generation: str = ""
    seq: int = 0
    latency_us: int = 0

    @property
    def is_hit(self) -> bool:
        """Whether the response is served."""
        return self.reason in _HITS


class _Found(NamedTuple):  # quicker to make than a dataclass
    """The entry that would be served and how it was found; without one, of the nearest.

    nearest: distance of the nearest entry, infinite where none was examined; None: nothing was searched for.
    probability: as in LookupAnswer."""

    match: Match | None
    reason: LookupReason
    distance: float | None
    path: SearchPath | None = None
    candidates_examined: int = 0
    query_code: NDArray[np.uint64] | None = None
    nearest: float | None = None
    probability: float | None = None


class _Lookup(NamedTuple):
    """One lookup and what it is answered from; `vector`: float32 [dim], None where none is searched for."""

    query: LookupQuery
    category: CategoryRecord
    partition: Partition
    threshold: float
    key: Fingerprint | None
    vector: NDArray[np.float32] | None


# What a fingerprint that no entry has finds, where there is nothing else to look for.
_NOTHING = _Found(match=None, reason=LookupReason.NO_CANDIDATE, distance=None)


class SemanticCache:
    """Lookups over the replicas of this process."""

    def __init__(
        self,
        *,
        accesses: AccessLog,
        embedder: Embedder | None,
        clock: Callable[[], int],
        min_seq_wait_seconds: float,
    ) -> None:
        self._accesses = accesses
        self._embedder = embedder
        self._clock = clock
        self._min_seq_wait_seconds = min_seq_wait_seconds
        self._token_numbers = itertools.count(time.time_ns())

    def lookup(
        self, replica: CacheReplica, queries: Sequence[LookupQuery], *, timeout_seconds: float
    ) -> list[LookupAnswer]:
        """Answer lookups of one cache; all of them against the same state.

        Raises:
            NotFoundError, InvalidRequestError: one of them is wrong; none is answered.
            EmbedderUnavailableError: a text met no fingerprint and cannot be embedded.
            NotCaughtUpError: a `min_seq` was not reached in time.
        """
        started = time.perf_counter_ns()
        self._await_seq(replica, max(query.min_seq for query in queries), timeout_seconds)
        state = replica.state
        for query in queries:  # also the ones that need no vector: a request is right or wrong at any state
            check_input(state.record, query.source)
        keys = [_fingerprint(query) for query in queries]
        now_ms = self._clock()
        asked = [
            i
            for i, query in enumerate(queries)
            if not (query.mode is LookupMode.BYPASS or query.source.is_empty)
            and _find_fingerprint(state.index, _partition(state, query), keys[i], now_ms=now_ms) is None
        ]
        embedded = embed_inputs(
            state.record,
            [queries[i].source for i in asked],
            embedder=self._embedder,
            timeout_seconds=timeout_seconds,
        )
        vectors = dict(zip(asked, embedded, strict=True))
        # Embedding may have taken long: what is served is decided on what is live and known now.
        state, now_ms = replica.state, self._clock()
        seq = state.index.applied_seq
        lookups = [_to_lookup(state, query, keys[i], vectors.get(i)) for i, query in enumerate(queries)]
        return [
            self._answer(state, lookup, found, seq=seq, now_ms=now_ms, started_ns=started)
            for lookup, found in zip(lookups, _find(state, lookups, now_ms=now_ms), strict=True)
        ]

    def _await_seq(self, replica: CacheReplica, seq: int, timeout_seconds: float) -> None:
        limit = self._min_seq_wait_seconds
        replica.wait_for(seq, timeout_seconds=min(limit, timeout_seconds))

    def _answer(
        self,
        state: CacheState,
        lookup: _Lookup,
        found: _Found | None,
        *,
        seq: int,
        now_ms: int,
        started_ns: int,
    ) -> LookupAnswer:
        reason = _served_reason(lookup, found)
        is_hit = reason in _HITS
        match = found.match if found else None
        self._accesses.record(
            state.record.id,
            lookup.category.id,
            outcome=_COUNTED_AS.get(reason, "miss_count"),
            entry_id=match.entry_id if match and is_hit else None,
            now_ms=now_ms,
            nearest=found.nearest if found else None,
            is_stricter=lookup.threshold < lookup.category.policy.threshold,
        )
        entry, content_type, response, token = "", "", b"", ""
        if found is not None and match is not None:
            entry, content_type, response = unpack_payload(match.payload)
            token = self._token(state, lookup, found, match, seq=seq)
        return LookupAnswer(
            reason=reason,
            threshold=lookup.threshold,
            entry=entry,
            response=response if is_hit else b"",
            content_type=content_type if is_hit else "",
            distance=found.distance if found else None,
            probability=found.probability if found else None,
            path=found.path if found else None,
            candidates_examined=found.candidates_examined if found else 0,
            token=token,
            generation=state.index.generation or "",
            seq=seq,
            latency_us=(time.perf_counter_ns() - started_ns) // 1000,
        )

    def _token(self, state: CacheState, lookup: _Lookup, found: _Found, match: Match, *, seq: int) -> str:
        token = LookupToken(
            cache_id=state.record.id,
            category_id=lookup.category.id,
            entry_id=match.entry_id,
            seq=seq,
            time_ns=next(self._token_numbers),
            distance=match.cosine_distance,
            threshold=lookup.threshold,
            generation=state.index.generation or "",
            query_code=b"" if found.query_code is None else found.query_code.tobytes(),
        )
        return sign_token(token, state.record.token_key)


def _to_lookup(
    state: CacheState, query: LookupQuery, key: Fingerprint | None, vector: NDArray[np.float32] | None
) -> _Lookup:
    category = state.category(query.category)
    return _Lookup(
        query=query,
        category=category,
        partition=(category.id, query.source.modality),
        threshold=applied_threshold(category.policy.threshold, query.threshold),
        key=key,
        vector=vector,
    )


def _partition(state: CacheState, query: LookupQuery) -> Partition:
    return state.category(query.category).id, query.source.modality


def _find(state: CacheState, lookups: Sequence[_Lookup], *, now_ms: int) -> list[_Found | None]:
    """What each lookup would serve; None: it asked for nothing."""
    found: list[_Found | None] = [None] * len(lookups)
    searched: dict[int, NDArray[np.float32]] = {}
    for i, lookup in enumerate(lookups):
        if lookup.query.mode is LookupMode.BYPASS:
            continue
        found[i] = _find_fingerprint(state.index, lookup.partition, lookup.key, now_ms=now_ms)
        if found[i] is None:
            found[i] = _NOTHING
            if lookup.vector is not None:
                searched[i] = lookup.vector
    if searched:
        asked = [lookups[i] for i in searched]
        nearest = _find_nearest(state, asked, list(searched.values()), now_ms=now_ms)
        for i, one in zip(searched, nearest, strict=True):
            found[i] = one
    return found


def _fingerprint(query: LookupQuery) -> Fingerprint | None:
    """The key that an entry of the same request has."""
    source = query.source
    fingerprint = query.fingerprint or default_fingerprint(source.text, modality=source.modality)
    return split_key(fingerprint_key(query.scope, fingerprint)) if fingerprint else None


def _find_fingerprint(
    index: VectorIndex, partition: Partition, key: Fingerprint | None, *, now_ms: int
) -> _Found | None:
    match = None if key is None else index.find_fingerprint(partition, key, now_ms=now_ms)
    if match is None:
        return None
    return _Found(match=match, reason=LookupReason.FINGERPRINT, distance=0.0, nearest=0.0)


def _find_nearest(
    state: CacheState, lookups: Sequence[_Lookup], vectors: Sequence[NDArray[np.float32]], *, now_ms: int
) -> list[_Found]:
    """The nearest entry of each; lookups of one category share a pass over its codes."""
    requests = []
    for lookup, vector in zip(lookups, vectors, strict=True):
        partitions = (lookup.partition,)
        asks_consent = lookup.category.policy.min_probability is not None
        encoder_ids = state.index.encoder_ids(partitions)
        requests.append(
            SearchRequest(
                partitions=partitions,
                vector=vector,
                codes=state.encoders.query_codes(vector, encoder_ids, modality=lookup.query.source.modality),
                k=SHORTLIST if asks_consent else 1,
                now_ms=now_ms,
                scope=scope_key(lookup.query.scope),
                threshold=lookup.threshold,
                radii=state.encoders.radii(encoder_ids, lookup.threshold),
                with_vectors=asks_consent,
            )
        )
    results = state.index.search_batch(requests)
    found = [
        _nearest(state.index, request, result) for request, result in zip(requests, results, strict=True)
    ]
    for i, request in enumerate(requests):
        if request.with_vectors and found[i].match is not None:
            found[i] = _consented(state, lookups[i], found[i], results[i])
    return found


def _nearest(index: VectorIndex, request: SearchRequest, result: SearchResult) -> _Found:
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
    return _Found(
        match=nearest if is_within else None,
        reason=reason,
        distance=distance,
        path=result.path,
        candidates_examined=result.candidates_examined,
        query_code=next(iter(request.codes.values()), None),
        nearest=math.inf if distance is None else distance,
    )


def _consented(state: CacheState, lookup: _Lookup, nearest: _Found, result: SearchResult) -> _Found:
    """The entry within the threshold that the verifier consents to, in the place of the nearest."""
    min_probability, source = lookup.category.policy.min_probability, lookup.query.source
    assert min_probability is not None and lookup.vector is not None  # it was asked for, and searched for
    verifier = state.verifiers.get(source.modality)
    verdict = None
    if verifier is not None:
        verdict = most_probable(verifier, result.matches, vector=lookup.vector, text=source.text)
    if verdict is None or verdict.probability < min_probability:
        probability = None if verdict is None else verdict.probability
        return nearest._replace(match=None, reason=LookupReason.UNVERIFIED, probability=probability)
    return nearest._replace(
        match=verdict.match, distance=verdict.match.cosine_distance, probability=verdict.probability
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


def _served_reason(lookup: _Lookup, found: _Found | None) -> LookupReason:
    if found is None:
        return LookupReason.BYPASS
    if found.reason in _HITS and lookup.query.mode is LookupMode.REFRESH:
        return LookupReason.REFRESH
    if found.reason in _HITS and lookup.category.policy.shadow:
        return LookupReason.SHADOW
    return found.reason


def check_threshold(threshold: float) -> float:
    """A cosine distance in [0, 2]. Raises: InvalidRequestError."""
    if not 0.0 <= threshold <= 2.0:
        raise InvalidRequestError(
            f"a threshold is a cosine distance in [0, 2], not {threshold}", reason="INVALID_THRESHOLD"
        )
    return threshold

"""The semantic cache's lookup: fingerprint, code, nearest entry, decision. No SQL, no write on this path."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from index.planner import SearchPath
from index.requests import Match, SearchRequest
from service.accesses import AccessLog
from service.embedder import Embedder
from service.embedding import Input, check_input, embed_inputs
from service.errors import InvalidRequestError
from service.keys import fingerprint_key, scope_key, split_key, text_fingerprint
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
    """Why a lookup was a hit or a miss."""

    FINGERPRINT = "fingerprint"
    WITHIN_THRESHOLD = "within_threshold"
    BEYOND_THRESHOLD = "beyond_threshold"
    NO_CANDIDATE = "no_candidate"
    BYPASS = "bypass"
    REFRESH = "refresh"
    SHADOW = "shadow"


_HITS = (LookupReason.FINGERPRINT, LookupReason.WITHIN_THRESHOLD)
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
    """What a lookup answers; `entry` is the entry served, or that would have been (REFRESH, SHADOW)."""

    reason: LookupReason
    threshold: float
    entry: str = ""
    response: bytes = b""
    content_type: str = ""
    distance: float | None = None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The nearest entry and how it was found."""

    match: Match | None
    reason: LookupReason
    distance: float | None
    path: SearchPath | None = None
    candidates_examined: int = 0
    query_code: NDArray[np.uint64] | None = None


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
        now_ms = self._clock()
        asked = [
            i
            for i, query in enumerate(queries)
            if not (query.mode is LookupMode.BYPASS or query.source.is_empty)
            and _find_fingerprint(state, state.category(query.category), query, now_ms=now_ms) is None
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
        answers = []
        for i, query in enumerate(queries):
            category = state.category(query.category)
            found = _find(state, category, query, vectors.get(i), now_ms=now_ms)
            answers.append(
                self._answer(state, category, query, found, seq=seq, now_ms=now_ms, started_ns=started)
            )
        return answers

    def _await_seq(self, replica: CacheReplica, seq: int, timeout_seconds: float) -> None:
        limit = self._min_seq_wait_seconds
        replica.wait_for(seq, timeout_seconds=min(limit, timeout_seconds))

    def _answer(
        self,
        state: CacheState,
        category: CategoryRecord,
        query: LookupQuery,
        found: _Found | None,
        *,
        seq: int,
        now_ms: int,
        started_ns: int,
    ) -> LookupAnswer:
        threshold = applied_threshold(category.policy.threshold, query.threshold)
        reason = _served_reason(category, query, found)
        self._accesses.record(
            state.record.id,
            category.id,
            outcome=_COUNTED_AS.get(reason, "miss_count"),
            entry_id=found.match.entry_id if found and found.match and reason in _HITS else None,
            now_ms=now_ms,
        )
        entry, content_type, response, token = "", "", b"", ""
        if found is not None and found.match is not None:
            entry, content_type, response = unpack_payload(found.match.payload)
            token = self._token(state, category, found, found.match, threshold=threshold, seq=seq)
        if reason not in _HITS:
            content_type, response = "", b""
        return LookupAnswer(
            reason=reason,
            threshold=threshold,
            entry=entry,
            response=response,
            content_type=content_type,
            distance=found.distance if found else None,
            path=found.path if found else None,
            candidates_examined=found.candidates_examined if found else 0,
            token=token,
            generation=state.index.generation or "",
            seq=seq,
            latency_us=(time.perf_counter_ns() - started_ns) // 1000,
        )

    def _token(
        self,
        state: CacheState,
        category: CategoryRecord,
        found: _Found,
        match: Match,
        *,
        threshold: float,
        seq: int,
    ) -> str:
        token = LookupToken(
            cache_id=state.record.id,
            category_id=category.id,
            entry_id=match.entry_id,
            seq=seq,
            time_ns=next(self._token_numbers),
            distance=match.cosine_distance,
            threshold=threshold,
            generation=state.index.generation or "",
            query_code=b"" if found.query_code is None else found.query_code.tobytes(),
        )
        return sign_token(token, state.record.token_key)


def _find(
    state: CacheState,
    category: CategoryRecord,
    query: LookupQuery,
    vector: NDArray[np.float32] | None,
    *,
    now_ms: int,
) -> _Found | None:
    """What the lookup would serve; None: it asked for nothing."""
    if query.mode is LookupMode.BYPASS:
        return None
    found = _find_fingerprint(state, category, query, now_ms=now_ms)
    if found is not None:
        return found
    if vector is None:
        return _NOTHING
    return _find_nearest(state, category, query, vector, now_ms=now_ms)


def _find_fingerprint(
    state: CacheState, category: CategoryRecord, query: LookupQuery, *, now_ms: int
) -> _Found | None:
    fingerprint = query.fingerprint or text_fingerprint(query.source.text) or None
    if fingerprint is None:
        return None
    partition = (category.id, query.source.modality)
    key = split_key(fingerprint_key(query.scope, fingerprint))
    match = state.index.find_fingerprint(partition, key, now_ms=now_ms)
    if match is None:
        return None
    return _Found(match=match, reason=LookupReason.FINGERPRINT, distance=0.0)


def _find_nearest(
    state: CacheState,
    category: CategoryRecord,
    query: LookupQuery,
    vector: NDArray[np.float32],
    *,
    now_ms: int,
) -> _Found:
    partitions = ((category.id, query.source.modality),)
    encoder_ids = state.index.encoder_ids(partitions)
    codes = state.encoders.query_codes(vector, encoder_ids, modality=query.source.modality)
    threshold = applied_threshold(category.policy.threshold, query.threshold)
    result = state.index.search(
        SearchRequest(
            partitions=partitions,
            vector=vector,
            codes=codes,
            k=1,
            now_ms=now_ms,
            scope=scope_key(query.scope),
            threshold=threshold,
            radii=state.encoders.radii(encoder_ids, threshold),
        )
    )
    nearest = result.matches[0] if result.matches else None
    distance = nearest.cosine_distance if nearest else result.nearest_distance
    decision = decide(distance, threshold)
    if decision.within:
        reason = LookupReason.WITHIN_THRESHOLD
    else:
        reason = LookupReason.NO_CANDIDATE if distance is None else LookupReason.BEYOND_THRESHOLD
    return _Found(
        match=nearest if decision.within else None,
        reason=reason,
        distance=distance,
        path=result.path,
        candidates_examined=result.candidates_examined,
        query_code=next(iter(codes.values()), None),
    )


def _served_reason(category: CategoryRecord, query: LookupQuery, found: _Found | None) -> LookupReason:
    if found is None:
        return LookupReason.BYPASS
    if found.reason in _HITS and query.mode is LookupMode.REFRESH:
        return LookupReason.REFRESH
    if found.reason in _HITS and category.policy.shadow:
        return LookupReason.SHADOW
    return found.reason


def check_threshold(threshold: float) -> float:
    """A cosine distance in [0, 2]. Raises: InvalidRequestError."""
    if not 0.0 <= threshold <= 2.0:
        raise InvalidRequestError(
            f"a threshold is a cosine distance in [0, 2], not {threshold}", reason="INVALID_THRESHOLD"
        )
    return threshold

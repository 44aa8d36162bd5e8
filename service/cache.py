"""The semantic cache's lookup: embed what no fingerprint answers, find, decide what is served, sign. No SQL,
no write on this path."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from index.planner import SearchPath
from index.requests import Match
from service.accesses import AccessLog
from service.embedder import Embedder
from service.embedding import check_input, embed_inputs
from service.errors import InvalidRequestError
from service.finding import (
    Found,
    Lookup,
    LookupMode,
    LookupQuery,
    LookupReason,
    find,
    find_fingerprint,
    fingerprint_of,
    partitions_of,
    to_lookup,
)
from service.payload import unpack_payload
from service.replica import CacheReplica, CacheState
from service.tokens import LookupToken, sign_token

_HITS = (LookupReason.FINGERPRINT, LookupReason.WITHIN_THRESHOLD)
_COUNTED_AS = {
    LookupReason.FINGERPRINT: "hit_count",
    LookupReason.WITHIN_THRESHOLD: "hit_count",
    LookupReason.BYPASS: "bypass_count",
    LookupReason.SHADOW: "shadow_hit_count",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupAnswer:
    """What a lookup answers; `entry` is the entry served, or that would have been (REFRESH, SHADOW).

    is_mapped: distance and threshold are those of the query mapped to the space of the embedder before.
    probability: what the verifier says of the most probable entry; None where it was not asked, or failed.
    """

    reason: LookupReason
    threshold: float
    entry: str = ""
    response: bytes = b""
    content_type: str = ""
    distance: float | None = None
    is_mapped: bool = False
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
            check_input(state.record, query.source, embedder=self._embedder)
        keys = [fingerprint_of(query) for query in queries]
        now_ms = self._clock()
        asked = [
            i
            for i, query in enumerate(queries)
            if not (query.mode is LookupMode.BYPASS or query.source.is_empty)
            and find_fingerprint(state.index, partitions_of(state, query), keys[i], now_ms=now_ms) is None
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
        lookups = [to_lookup(state, query, keys[i], vectors.get(i)) for i, query in enumerate(queries)]
        return [
            self._answer(state, lookup, found, seq=seq, now_ms=now_ms, started_ns=started)
            for lookup, found in zip(lookups, find(state, lookups, now_ms=now_ms), strict=True)
        ]

    def _await_seq(self, replica: CacheReplica, seq: int, timeout_seconds: float) -> None:
        limit = self._min_seq_wait_seconds
        replica.wait_for(seq, timeout_seconds=min(limit, timeout_seconds))

    def _answer(
        self,
        state: CacheState,
        lookup: Lookup,
        found: Found | None,
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
            # Of two spaces none holds all that was asked for before.
            nearest=found.nearest if found and len(lookup.partitions) == 1 else None,
            is_stricter=lookup.threshold < lookup.category.policy.threshold,
        )
        entry, content_type, response, token = "", "", b"", ""
        if found is not None and match is not None:
            entry, content_type, response = unpack_payload(match.payload)
            token = self._token(state, lookup, found, match, seq=seq)
        return LookupAnswer(
            reason=reason,
            threshold=_applied(lookup, found),
            entry=entry,
            response=response if is_hit else b"",
            content_type=content_type if is_hit else "",
            distance=found.distance if found else None,
            is_mapped=found is not None and found.mapped_threshold is not None,
            probability=found.probability if found else None,
            path=found.path if found else None,
            candidates_examined=found.candidates_examined if found else 0,
            token=token,
            generation=state.index.generation or "",
            seq=seq,
            latency_us=(time.perf_counter_ns() - started_ns) // 1000,
        )

    def _token(self, state: CacheState, lookup: Lookup, found: Found, match: Match, *, seq: int) -> str:
        token = LookupToken(
            cache_id=state.record.id,
            category_id=lookup.category.id,
            entry_id=match.entry_id,
            seq=seq,
            time_ns=next(self._token_numbers),
            distance=match.cosine_distance,
            threshold=_applied(lookup, found),
            generation=state.index.generation or "",
            query_code=b"" if found.query_code is None else found.query_code.tobytes(),
        )
        return sign_token(token, state.record.token_key)


def _applied(lookup: Lookup, found: Found | None) -> float:
    """The threshold that decided."""
    if found is None or found.mapped_threshold is None:
        return lookup.threshold
    return found.mapped_threshold


def _served_reason(lookup: Lookup, found: Found | None) -> LookupReason:
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

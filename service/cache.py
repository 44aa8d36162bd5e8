"""The semantic cache's lookup: embed what no fingerprint answers, find, decide what is served, sign. No SQL,
no write on this path."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from index.planner import SearchPath
from index.requests import Match
from service.accesses import AccessLog
from service.break_even import Bypasses, bypass_below
from service.choosing import sure_threshold
from service.decision_rules import RuleSource
from service.embedder import Embedder
from service.embedding import check_input, embed_inputs
from service.errors import DeadlineError, InvalidRequestError
from service.evidence import NO_SKETCH, Evidence, pack_evidence, sketch_of
from service.explaining import explain
from service.finding import find, find_fingerprint, fingerprint_of, partitions_of, to_lookup
from service.leases import Leases, Question, RefreshTurns, Turn, Wait
from service.load import Loads
from service.lookup import HITS, Found, Lookup, LookupMode, LookupQuery, LookupReason
from service.payload import unpack_payload
from service.replica import CacheReplica, CacheState
from service.request_samples import RequestSamples
from service.risk import Risk
from service.tokens import LookupToken, sign_token

# Misses that take a lease: where nothing could be served. In shadow mode every caller computes anyway.
_LEASED = (
    LookupReason.BEYOND_THRESHOLD,
    LookupReason.NO_CANDIDATE,
    LookupReason.UNVERIFIED,
    LookupReason.STALE,
    LookupReason.EXPLORED,
    LookupReason.RISKY,
    LookupReason.DISTRUSTED,
    LookupReason.UNPROFITABLE,
)
_UNSEARCHED = (LookupReason.FINGERPRINT, LookupReason.UNPROFITABLE)
_REFRESH_SECONDS = 30.0  # so long one caller computes anew what is served past its refresh time
_REFRESH_TURNS = 65_536
_LONE_LEASES = 256
_WAIT_SHARE = 0.9  # of the time that is left: the answer of who waited in vain must reach its caller
_COUNTED_AS = {
    LookupReason.FINGERPRINT: "hit_count",
    LookupReason.WITHIN_THRESHOLD: "hit_count",
    LookupReason.BYPASS: "bypass_count",
    LookupReason.SHADOW: "shadow_hit_count",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupAnswer:
    """What a lookup answers; `entry` is the entry served, or that would have been (REFRESH, SHADOW, STALE).

    refresh_due: the entry is served past its refresh time, and this caller is to compute it anew. risk,
    risk_limit: of the best entry by a learned rule. is_mapped: distance and threshold are those of the query
    mapped to the space of the embedder before. probability: what the verifier says of the most probable
    entry; None where it was not asked, or failed.
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
    rule_source: RuleSource | None = None
    risk: Risk | None = None
    risk_limit: float | None = None
    load: float | None = None
    explanation: str = ""
    generation: str = ""
    lease_token: str = ""
    seq: int = 0
    latency_us: int = 0
    refresh_due: bool = False

    @property
    def is_hit(self) -> bool:
        """Whether the response is served."""
        return self.reason in HITS


@dataclass(frozen=True, slots=True)
class Caller:
    """Who can wait for an answer. on_end: has a function called when the call ends; False: it has ended."""

    is_active: Callable[[], bool]
    on_end: Callable[[Callable[[], None]], bool]


@dataclass(frozen=True, slots=True)
class _View:
    """What lookups find in one state. stored_count: of leases, before it was taken; 0: none is asked for."""

    state: CacheState
    lookups: Sequence[Lookup]
    found: Sequence[Found | None]
    seq: int
    now_ms: int
    stored_count: int


@dataclass(frozen=True, slots=True)
class _Leased:
    """What became of a lookup that asked for a lease: it holds the one of `token`, or another caller does."""

    token: str = ""
    by_other: bool = False


class SemanticCache:
    """Lookups over the replicas of this process."""

    def __init__(
        self,
        *,
        accesses: AccessLog,
        embedder: Embedder | None,
        clock: Callable[[], int],
        min_seq_wait_seconds: float,
        leases: Leases | None = None,
        samples: RequestSamples | None = None,
        loads: Loads | None = None,
    ) -> None:
        """leases: of all lookups of the process; None: of these alone, and nobody waits. samples: that rules
        are learned for; None: nothing is. loads: that are reported; None: none is."""
        self._loads = loads or Loads()
        self._bypasses = Bypasses()
        self._samples = samples
        self._refreshes = RefreshTurns(max_turns=_REFRESH_TURNS)
        self._leases = leases or Leases(max_per_category=_LONE_LEASES, max_waiting=0)
        self._accesses = accesses
        self._embedder = embedder
        self._clock = clock
        self._min_seq_wait_seconds = min_seq_wait_seconds
        self._token_numbers = itertools.count(time.time_ns())

    def lookup(
        self,
        replica: CacheReplica,
        queries: Sequence[LookupQuery],
        *,
        timeout_seconds: float,
        caller: Caller | None = None,
    ) -> list[LookupAnswer]:
        """Answer lookups of one cache; all of them against the same state.

        caller: of one lookup alone, that may wait for the lease of another.
        Raises:
            DeadlineError: the caller went away while it waited.
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
        skipped = {i for i in asked if self._is_skipped(state, queries[i])}
        asked = [i for i in asked if i not in skipped or queries[i].source.embedding is not None]
        embedded = embed_inputs(
            state.record,
            [queries[i].source for i in asked],
            embedder=self._embedder,
            timeout_seconds=timeout_seconds,
        )
        vectors = dict(zip(asked, embedded, strict=True))

        asks_lease = any(query.lease_seconds for query in queries)

        def look() -> _View:
            # Embedding and waiting may have taken long: decided is on what is live and known now.
            stored_count = self._leases.stored_count if asks_lease else 0
            state, now_ms = replica.state, self._clock()
            seq = state.index.applied_seq
            loads = self._loads.of(state.record.id)
            lookups = [
                to_lookup(state, query, keys[i], vectors.get(i), loads=loads, is_skipped=i in skipped)
                for i, query in enumerate(queries)
            ]
            found = find(state, lookups, now_ms=now_ms)
            return _View(state, lookups, found, seq, now_ms, stored_count)

        view = look()
        if caller is not None:
            passed_seconds = (time.perf_counter_ns() - started) / 1e9
            view, only = self._settle(
                look, view, caller=caller, timeout_seconds=timeout_seconds - passed_seconds
            )
            leased = [only]
        else:
            leased = [
                self._lease(lookup, found) for lookup, found in zip(view.lookups, view.found, strict=True)
            ]
        return [
            self._answer(view, lookup, found, leased=own, started_ns=started)
            for lookup, found, own in zip(view.lookups, view.found, leased, strict=True)
        ]

    def _is_skipped(self, state: CacheState, query: LookupQuery) -> bool:
        """Whether nothing is searched for it, as that does not pay. Raises: NotFoundError."""
        category = state.category(query.category)
        if query.mode is not LookupMode.SERVE or bypass_below(category.policy) is None:
            return False
        return self._bypasses.is_skipped(category.id)

    def _learn_whether_it_pays(self, lookup: Lookup, found: Found) -> None:
        least = bypass_below(lookup.category.policy)
        was_searched = lookup.embedded is not None and found.reason not in _UNSEARCHED
        if least is not None and was_searched and lookup.query.mode is LookupMode.SERVE:
            self._bypasses.record(lookup.category.id, is_hit=found.reason in HITS, break_even=least)

    def _lease(self, lookup: Lookup, found: Found | None) -> _Leased:
        """The lease of a miss that asked for one, without waiting."""
        if not _takes_lease(lookup, found):
            return _Leased()
        turn, token = self._leases.take(_question(lookup), seconds=lookup.query.lease_seconds)
        return _Leased(token, by_other=turn is Turn.HELD)

    def _settle(
        self, look: Callable[[], _View], view: _View, *, caller: Caller, timeout_seconds: float
    ) -> tuple[_View, _Leased]:
        """One lookup that is a hit, holds a lease, or has waited in vain. Raises: DeadlineError."""
        query = view.lookups[0].query
        wait = None
        if query.wait_seconds and _takes_lease(view.lookups[0], view.found[0]):
            wait_seconds = min(query.wait_seconds, _WAIT_SHARE * timeout_seconds)
            wait = Wait(self._leases.clock() + wait_seconds, caller.is_active)
            caller.on_end(self._leases.wake)
        while _takes_lease(view.lookups[0], view.found[0]):
            question = _question(view.lookups[0])
            turn, token = self._leases.take(question, seconds=query.lease_seconds, wait=wait)
            if turn is Turn.ENDED:
                raise DeadlineError("the call ended while it waited for the answer of another")
            if turn is Turn.TAKEN:
                return self._look_as_holder(look, view, token)
            if turn is not Turn.STORED:
                return view, _Leased(by_other=turn is Turn.HELD)
            view = look()
        return view, _Leased()

    def _look_as_holder(self, look: Callable[[], _View], view: _View, token: str) -> tuple[_View, _Leased]:
        """The miss of who holds a lease; what another stored before it was taken may make it a hit."""
        if self._leases.stored_count == view.stored_count:
            return view, _Leased(token)
        is_answered = True
        try:
            view = look()
            is_answered = not _takes_lease(view.lookups[0], view.found[0])
        finally:
            if is_answered:  # or failed
                self._leases.end(token, stored=True)
        return view, _Leased("" if is_answered else token)

    def _await_seq(self, replica: CacheReplica, seq: int, timeout_seconds: float) -> None:
        limit = self._min_seq_wait_seconds
        replica.wait_for(seq, timeout_seconds=min(limit, timeout_seconds))

    def _answer(
        self, view: _View, lookup: Lookup, found: Found | None, *, leased: _Leased, started_ns: int
    ) -> LookupAnswer:
        state, seq = view.state, view.seq
        reason = LookupReason.LEASED if leased.by_other else _served_reason(lookup, found)
        is_hit = reason in HITS
        match = found.match if found else None
        self._accesses.record(
            state.record.id,
            lookup.category.id,
            outcome=_COUNTED_AS.get(reason, "miss_count"),
            entry_id=match.entry_id if match and is_hit else None,
            now_ms=view.now_ms,
            # Of two spaces none holds all that was asked for before.
            nearest=found.nearest if found and len(lookup.partitions) == 1 else None,
            is_stricter=lookup.threshold < lookup.category.policy.threshold,
        )
        entry, content_type, response, token = "", "", b"", ""
        if found is not None:
            self._learn_whether_it_pays(lookup, found)
            if match is not None:
                entry, content_type, response = unpack_payload(match.payload)
            judged = match or found.candidate
            if judged is not None:
                token = self._token(state, lookup, found, judged, seq=seq, was_served=is_hit)
            if found.features and self._samples is not None:
                self._samples.add(lookup.category.id, found.judge, found.features)
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
            lease_token=leased.token,
            generation=state.index.generation or "",
            seq=seq,
            latency_us=(time.perf_counter_ns() - started_ns) // 1000,
            refresh_due=is_hit and found is not None and found.refresh_due and self._takes_turn(match),
            rule_source=found.rule_source if found else None,
            risk=found.risk if found else None,
            risk_limit=found.risk_limit if found else None,
            load=lookup.load,
            explanation=explain(reason, lookup, found, rule=state.rules.get(lookup.category.id))
            if lookup.query.explain
            else "",
        )

    def _takes_turn(self, match: Match | None) -> bool:
        """Whether this caller, alone for a while, computes anew what it is served."""
        return match is not None and self._refreshes.try_take(match.entry_id, seconds=_REFRESH_SECONDS)

    def _token(
        self, state: CacheState, lookup: Lookup, found: Found, match: Match, *, seq: int, was_served: bool
    ) -> str:
        vector = lookup.embedded.vector if lookup.embedded else lookup.query.source.embedding
        evidence = Evidence(
            was_served=was_served,
            is_withheld=not was_served and found.reason in (*HITS, LookupReason.EXPLORED),
            judge=found.judge,
            sketch=NO_SKETCH if vector is None else sketch_of(vector),
            features=found.features,
        )
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
            evidence=pack_evidence(evidence),
        )
        return sign_token(token, state.record.token_key)


def _applied(lookup: Lookup, found: Found | None) -> float:
    """The threshold that decided."""
    if found is None or found.mapped_threshold is None:
        return lookup.threshold
    return found.mapped_threshold


def _takes_lease(lookup: Lookup, found: Found | None) -> bool:
    """Whether it is a miss that is to be computed by one caller."""
    query = lookup.query
    asks = query.lease_seconds > 0 and query.mode is LookupMode.SERVE and not lookup.category.policy.shadow
    return asks and found is not None and found.reason in _LEASED


def _question(lookup: Lookup) -> Question:
    # Who waited for an answer that only a search finds would have waited in vain.
    embedded = None if lookup.is_skipped else lookup.embedded
    return Question(
        cache_id=lookup.category.cache_id,
        category_id=lookup.category.id,
        modality=lookup.query.source.modality,
        scope=lookup.query.scope,
        key=lookup.key,
        space=embedded.space if embedded else "",
        vector=embedded.vector if embedded else None,
        threshold=sure_threshold(lookup),
    )


def _served_reason(lookup: Lookup, found: Found | None) -> LookupReason:
    if found is None:
        return LookupReason.BYPASS
    if found.reason in HITS and lookup.query.mode is LookupMode.REFRESH:
        return LookupReason.REFRESH
    if found.reason in HITS and lookup.category.policy.shadow:
        return LookupReason.SHADOW
    return found.reason


def check_threshold(threshold: float) -> float:
    """A cosine distance in [0, 2]. Raises: InvalidRequestError."""
    if not 0.0 <= threshold <= 2.0:
        raise InvalidRequestError(
            f"a threshold is a cosine distance in [0, 2], not {threshold}", reason="INVALID_THRESHOLD"
        )
    return threshold

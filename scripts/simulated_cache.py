"""A cache in memory over a virtual clock: lookups are decided by the code that serves, and what is computed
is admitted, kept and evicted as a policy says."""

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.config import IndexConfig
from index.requests import Changes
from index.rows import Rows, SegmentKey
from index.segment import Fingerprint
from index.vector_index import VectorIndex
from service.admission import Admission, Sightings, admit
from service.break_even import Bypasses, break_even_hit_rate
from service.coding import EncoderSet, to_stored
from service.embedding import DEFAULT_MODALITY, Embedded, Input
from service.eviction import worth
from service.evidence import NO_SKETCH, Evidence, judge_of
from service.expiration import extended, lifetime
from service.finding import find, find_fingerprint, fingerprint_of, partitions_of, to_lookup
from service.keys import scope_key
from service.leases import RefreshTurns
from service.lookup import HITS, Found, LookupQuery, LookupReason
from service.payload import Facts, pack_payload, unpack_payload
from service.policy import Policy
from service.records import CacheRecord, CategoryRecord, ModalitySpec, NewEntry
from service.replica import CacheState
from service.request_samples import RequestSamples
from service.rule_fit import EVIDENCE_KEPT, JudgedLookups, fit_rule, is_due, requests_like
from service.tables import NEVER_MS

CODE_BITS = 256
REFRESH_SECONDS = 30.0
_REFRESH_TURNS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. vector: float32 [dim], L2-normalised. response, cost: of the model; load: its, in
    [0, 1]."""

    time_ms: int
    category: str
    vector: NDArray[np.float32]
    response: bytes
    text: str = ""
    scope: str = ""
    cost: float = 0.0
    load: float = 0.0


class Outcome(NamedTuple):
    """What became of a request. response: served; None: none was. is_computed: the model was called, also
    where an answer was served past its refresh time. is_bypassed: nothing was searched, or would not have
    been, if the policy had asked for that."""

    reason: LookupReason
    response: bytes | None
    is_computed: bool
    is_bypassed: bool


@dataclass(slots=True)
class _Entry:
    """What is kept of one entry; beside it the index has it."""

    category_id: int
    key: Fingerprint | None
    size_bytes: int
    cost: float
    ttl_ms: int | None
    ttl_mode: str
    expire_ms: int
    access_ms: int
    access_count: int = 0


@dataclass(slots=True)
class _Kept:
    """One category. leaving: a heap of the order in which entries leave, with outdated rows."""

    ids: set[int]
    size_bytes: int
    leaving: list[tuple[tuple[float, ...], int]]


class SimulatedCache:
    """Categories of one policy. No verifier, no verdicts of users; the search is exact."""

    def __init__(
        self, policies: Mapping[str, Policy], *, dim: int, break_evens: Mapping[str, float] | None = None
    ) -> None:
        """policies: by category. break_evens: by category, for those whose policy knows none."""
        self._clock_ms = 0
        self._break_evens = break_evens or {}
        self._state = _empty_state(policies, dim=dim)
        self._entries: dict[int, _Entry] = {}
        self._by_key: dict[tuple[int, Fingerprint], int] = {}
        self._kept = {category.id: _Kept(set(), 0, []) for category in self._state.categories.values()}
        self._expiring: list[tuple[int, int]] = []  # a heap of expire time and id; may be outdated
        self._next_id = 1
        self._sightings = Sightings()
        self._bypasses = Bypasses()
        self._turns = RefreshTurns(max_turns=_REFRESH_TURNS, clock=lambda: self._clock_ms / 1000)
        self._samples = RequestSamples()
        self._judged: dict[int, deque[tuple[Evidence, bool]]] = defaultdict(
            lambda: deque(maxlen=EVIDENCE_KEPT)
        )
        self._judged_counts: dict[int, int] = defaultdict(int)
        self._learned_counts: dict[int, int] = defaultdict(int)

    @property
    def state(self) -> CacheState:
        """What lookups are decided on."""
        return self._state

    def ask(self, request: Request) -> Outcome:
        """Look up; what is not served is computed, compared and stored."""
        self._clock_ms = max(self._clock_ms, request.time_ms)
        self._expire()
        category = self._state.category(request.category)
        query = LookupQuery(
            category=request.category,
            source=Input(embedding=request.vector, text=request.text),
            scope=request.scope,
        )
        key = fingerprint_of(query)
        is_bypassed = self._is_bypassed(category, query, key)
        lookup = to_lookup(
            self._state,
            query,
            key,
            Embedded(request.vector, DEFAULT_MODALITY),
            loads={category.policy.load_model: request.load},
            is_skipped=is_bypassed and category.policy.auto_bypass,
        )
        found = find(self._state, [lookup], now_ms=self._clock_ms)[0]
        assert found is not None  # it asked for something
        self._learn_whether_it_pays(category, found, is_bypassed=is_bypassed)
        if found.features:
            self._samples.add(category.id, found.judge, found.features)
        if found.reason in HITS and found.match is not None:
            entry_id = found.match.entry_id
            served = unpack_payload(found.match.payload).response
            self._touch(entry_id)
            is_computed = found.refresh_due and self._turns.try_take(entry_id, seconds=REFRESH_SECONDS)
            if is_computed:
                self._store(category, request, key, replaced=entry_id)
            return Outcome(found.reason, served, is_computed, is_bypassed)
        self._compare(category, request, found)
        stale = found.match.entry_id if found.match and found.reason is LookupReason.STALE else None
        self._store(category, request, key, replaced=stale)
        return Outcome(found.reason, None, is_computed=True, is_bypassed=is_bypassed)

    def _is_bypassed(self, category: CategoryRecord, query: LookupQuery, key: Fingerprint | None) -> bool:
        if self._break_even(category) is None:
            return False
        partitions = partitions_of(self._state, query)
        if find_fingerprint(self._state.index, partitions, key, now_ms=self._clock_ms) is not None:
            return False
        return self._bypasses.is_skipped(category.id)

    def _break_even(self, category: CategoryRecord) -> float | None:
        own = break_even_hit_rate(category.policy)
        # Bypassed is by what the policy knows alone; otherwise it is only told what would have been.
        return own if own is not None or category.policy.auto_bypass else self._break_evens.get(category.name)

    def _learn_whether_it_pays(self, category: CategoryRecord, found: Found, *, is_bypassed: bool) -> None:
        break_even = self._break_even(category)
        if break_even is None or is_bypassed or found.reason is LookupReason.FINGERPRINT:
            return
        self._bypasses.record(category.id, is_hit=found.reason in HITS, break_even=break_even)

    def _compare(self, category: CategoryRecord, request: Request, found: Found) -> None:
        """Judge what a miss had found by what was computed, where the policy asks for it."""
        candidate = found.match or found.candidate
        if not category.policy.compare_responses or candidate is None or not found.features:
            return
        evidence = Evidence(
            was_served=False,
            is_withheld=found.reason in (*HITS, LookupReason.EXPLORED),  # by shadow, or to learn
            judge=found.judge,
            sketch=NO_SKETCH,
            features=found.features,
        )
        is_wrong = unpack_payload(candidate.payload).response != request.response
        self._judged[category.id].append((evidence, is_wrong))
        self._judged_counts[category.id] += 1
        self._learn(category)

    def _learn(self, category: CategoryRecord) -> None:
        """Learn the rule anew where its evidence has grown enough."""
        target, count = category.policy.target, self._judged_counts[category.id]
        if target is None or not is_due(count, learned_count=self._learned_counts[category.id]):
            return
        self._learned_counts[category.id] = count
        own = JudgedLookups.of(self._judged[category.id])
        judge = judge_of(DEFAULT_MODALITY, "")
        rule = fit_rule(
            own,
            (),
            requests_like(self._samples.latest(category.id, judge), (own,)),
            target,
            explored_share=category.policy.exploration,
            target_at_load=category.policy.target_at_load,
        )
        rule = replace(rule, judge=judge)
        self._state = replace(self._state, rules={**self._state.rules, category.id: rule})

    def _store(
        self, category: CategoryRecord, request: Request, key: Fingerprint | None, *, replaced: int | None
    ) -> None:
        """Keep what was computed, if the policy admits it and it fits."""
        policy = category.policy
        item = NewEntry(
            category_id=category.id,
            scope=request.scope,
            fingerprint=None if key is None else f"{key[0]:016x}{key[1]:016x}",
            vector=to_stored(request.vector),
            code_bytes=CODE_BITS // 8,
            response=request.response,
            cost=request.cost,
            replace_name="" if replaced is None else str(replaced),
        )
        if policy.max_bytes and item.size_bytes > policy.max_bytes:
            return
        if admit(policy, item, sightings=self._sightings) is not Admission.STORED:
            return
        same = None if key is None else self._by_key.get((category.id, key))
        self._delete({own for own in (replaced, same) if own is not None})
        self._make_room(category, item.size_bytes)
        times = lifetime(item, policy, now_ms=self._clock_ms)
        entry_id = self._next_id
        self._next_id += 1
        entry = _Entry(
            category_id=category.id,
            key=key,
            size_bytes=item.size_bytes,
            cost=item.cost,
            ttl_ms=times.ttl_ms,
            ttl_mode=times.ttl_mode,
            expire_ms=times.expire_ms,
            access_ms=self._clock_ms,
        )
        self._insert(entry_id, entry, item)

    def _insert(self, entry_id: int, entry: _Entry, item: NewEntry) -> None:
        self._entries[entry_id] = entry
        kept = self._kept[entry.category_id]
        kept.ids.add(entry_id)
        kept.size_bytes += entry.size_bytes
        self._rank(entry_id)
        if entry.key is not None:
            self._by_key[entry.category_id, entry.key] = entry_id
        if entry.expire_ms < NEVER_MS:
            heapq.heappush(self._expiring, (entry.expire_ms, entry_id))
        payload = pack_payload(str(entry_id), "", item.response, facts=Facts(self._clock_ms))
        rows = Rows(
            entry_ids=np.array([entry_id], dtype=np.int64),
            vectors=item.vector[None, :],
            codes=None,
            label_codes=np.zeros((1, 0), dtype=np.uint64),
            label_mask=np.zeros(1, dtype=bool),
            scopes=np.array([scope_key(item.scope)], dtype=np.uint64),
            fingerprints=np.array([entry.key or (0, 0)], dtype=np.uint64),
            expire_times=np.array([entry.expire_ms], dtype=np.int64),
            payloads=[payload],
        )
        upserts = ((SegmentKey(entry.category_id, DEFAULT_MODALITY, None), rows),)
        self._state.index.apply(Changes(seq=self._state.index.applied_seq + 1, upserts=upserts))

    def _touch(self, entry_id: int) -> None:
        """Count a hit; a sliding entry lives longer."""
        entry = self._entries[entry_id]
        entry.access_ms = self._clock_ms
        entry.access_count += 1
        self._rank(entry_id)
        expire_ms = extended(entry.ttl_mode, entry.ttl_ms, entry.expire_ms, access_ms=self._clock_ms)
        if expire_ms is None:
            return
        entry.expire_ms = expire_ms
        heapq.heappush(self._expiring, (expire_ms, entry_id))
        self._state.index.apply(
            Changes(
                seq=self._state.index.applied_seq + 1,
                expire_ids=np.array([entry_id], dtype=np.int64),
                expire_times=np.array([expire_ms], dtype=np.int64),
            )
        )

    def _expire(self) -> None:
        gone = set()
        while self._expiring and self._expiring[0][0] <= self._clock_ms:
            _, entry_id = heapq.heappop(self._expiring)
            entry = self._entries.get(entry_id)
            if entry is not None and entry.expire_ms <= self._clock_ms:
                gone.add(entry_id)
        self._delete(gone)

    def _make_room(self, category: CategoryRecord, incoming_bytes: int) -> None:
        """Let entries leave, in the order of the policy, until the incoming one fits."""
        policy, kept = category.policy, self._kept[category.id]
        gone: set[int] = set()
        count, size_bytes = len(kept.ids) + 1, kept.size_bytes + incoming_bytes
        while (policy.max_entries and count > policy.max_entries) or (
            policy.max_bytes and size_bytes > policy.max_bytes
        ):
            order, entry_id = heapq.heappop(kept.leaving)
            if entry_id in kept.ids and entry_id not in gone and order == self._order(entry_id):
                gone.add(entry_id)
                count -= 1
                size_bytes -= self._entries[entry_id].size_bytes
        self._delete(gone)

    def _rank(self, entry_id: int) -> None:
        kept = self._kept[self._entries[entry_id].category_id]
        policy = self._policy_of(entry_id)
        if policy.max_entries or policy.max_bytes:
            heapq.heappush(kept.leaving, (self._order(entry_id), entry_id))

    def _order(self, entry_id: int) -> tuple[float, ...]:
        """What entries leave by, the smallest first; as `eviction` orders the rows of the store."""
        entry = self._entries[entry_id]
        eviction = self._policy_of(entry_id).eviction
        if eviction == "fifo":
            return (entry_id,)
        if eviction == "lru":
            return (entry.access_ms, entry_id)
        if eviction == "lfu":
            return (entry.access_count, entry.access_ms, entry_id)
        own = worth(entry.cost, access_count=entry.access_count, size_bytes=entry.size_bytes)
        return (own, entry.access_ms, entry_id)

    def _policy_of(self, entry_id: int) -> Policy:
        name = self._state.category_names[self._entries[entry_id].category_id]
        return self._state.categories[name].policy

    def _delete(self, entry_ids: Iterable[int]) -> None:
        gone = sorted(entry_ids)
        if not gone:
            return
        for entry_id in gone:
            entry = self._entries.pop(entry_id)
            kept = self._kept[entry.category_id]
            kept.ids.discard(entry_id)
            kept.size_bytes -= entry.size_bytes
            if entry.key is not None and self._by_key.get((entry.category_id, entry.key)) == entry_id:
                del self._by_key[entry.category_id, entry.key]
        seq = self._state.index.applied_seq + 1
        self._state.index.apply(Changes(seq=seq, deleted_ids=np.array(gone, dtype=np.int64)))


def _empty_state(policies: Mapping[str, Policy], *, dim: int) -> CacheState:
    record = CacheRecord(
        id=1,
        name="log",
        description="",
        modalities={DEFAULT_MODALITY: ModalitySpec(dim=dim)},
        code_bits=CODE_BITS,
        label_bits=0,
        active_encoder_id=None,
        seq=0,
        config_version=1,
        token_key=b"",
        create_ms=0,
        version=1,
    )
    categories = {
        name: CategoryRecord(
            id=number,
            cache_id=record.id,
            name=name,
            parent_id=None,
            parent="",
            own_policy={},
            policy=policy,
            entry_count=0,
            size_bytes=0,
            hit_count=0,
            miss_count=0,
            shadow_hit_count=0,
            bypass_count=0,
            create_ms=0,
            version=1,
        )
        for number, (name, policy) in enumerate(policies.items(), start=1)
    }
    names = {category.id: name for name, category in categories.items()}
    return CacheState(record, categories, names, EncoderSet(), VectorIndex(IndexConfig(code_bits=CODE_BITS)))

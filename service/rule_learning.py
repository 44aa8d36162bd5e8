"""Follows the verdicts of every cache: remembers false hits, and learns the rules of categories with a
target.

Verdicts are read from the store in the order of their row ids, so every replica remembers the same false
hits, and after a restart the same as before. A rule that was learned is written to the store, where all
replicas find it.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, Engine, select

from service.database import reading, writing
from service.decision_rules import read_rules, write_rule
from service.errors import NotFoundError
from service.evidence import NO_JUDGE, NO_SKETCH, Evidence, judge_of, unpack_evidence
from service.false_hits import KEPT, FalseHit, FalseHits, is_near
from service.policy import below, chain_of
from service.records import PAIR_LABELS, CategoryRecord
from service.replica import CacheReplica, CacheState
from service.request_samples import RequestSamples
from service.rule_fit import EVIDENCE_KEPT, JudgedLookups, fit_rule, is_due, requests_like
from service.tables import feedback

READ_AT_START = 200_000
"""Latest verdicts of a cache that are read when it is opened."""

_PAGE = 1_000


@dataclass(slots=True)
class _Memory:
    """One category's verdicts. count: of its evidence ever; false_count: of wrong answers that were
    served."""

    evidence: "deque[tuple[Evidence, bool]]" = field(default_factory=lambda: deque(maxlen=EVIDENCE_KEPT))
    false_hits: "deque[FalseHit]" = field(default_factory=lambda: deque(maxlen=KEPT))
    count: int = 0
    false_count: int = 0


@dataclass(slots=True)
class _Followed:
    """How far one cache's verdicts are followed, read at which settings.

    learned_at: of each category that has or wanted a rule: counts of its evidence and false hits then.
    """

    config_version: int
    read_to: int = 0
    memories: dict[int, _Memory] = field(default_factory=dict)
    learned_at: dict[int, tuple[int, int]] = field(default_factory=dict)


class RuleLearner:
    """The verdicts of this process's caches."""

    def __init__(
        self,
        engine: Engine,
        *,
        replicas: Callable[[], Sequence[CacheReplica]],
        samples: RequestSamples,
        clock: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._replicas = replicas
        self._samples = samples
        self._clock = clock
        self._lock = threading.Lock()  # guards _followed and what is in it
        self._followed: dict[int, _Followed] = {}

    def step(self) -> None:
        """Take the verdicts since the last time, and the rules that others learned; learn those that are due.

        Raises: StoreUnavailableError: then all is taken at the next step.
        """
        replicas = self._replicas()
        ids = {replica.state.record.id for replica in replicas}
        self._samples.keep_only({key for replica in replicas for key in replica.state.category_names})
        with self._lock:
            self._followed = {key: value for key, value in self._followed.items() if key in ids}
        for replica in replicas:
            try:
                self.follow(replica)
                self._learn_due(replica)
            except NotFoundError:
                continue  # the cache was deleted

    def follow(self, replica: CacheReplica) -> None:
        """Take the verdicts on one cache since the last time, and the rules that others learned.

        Raises: StoreUnavailableError.
        """
        with self._lock:
            self._follow(replica)

    def _learn_due(self, replica: CacheReplica) -> None:
        for category in replica.state.categories.values():
            if category.policy.target is not None:
                with self._lock:
                    self._learn_if_due(replica, self._followed[replica.state.record.id], category)

    def _follow(self, replica: CacheReplica) -> None:
        state = replica.state
        followed = self._followed.get(state.record.id)
        if followed is None or followed.config_version != state.record.config_version:
            # Also after a forgetting, which takes verdicts away.
            followed = self._followed[state.record.id] = _Followed(state.record.config_version)
        touched: set[int] = set()
        with reading(self._engine) as connection:
            if followed.read_to == 0:
                touched |= set(state.false_hits)
                followed.read_to = _first_to_read(connection, state.record.id)
            for row in _rows_after(connection, state.record.id, followed.read_to):
                followed.read_to = row.id
                touched.add(row.category_id)
                _remember(followed.memories.setdefault(row.category_id, _Memory()), row)
            rules = read_rules(connection, state.record.id, state.rules)
        if touched or rules != state.rules:
            remembered = {key: followed.memories[key].false_hits for key in touched & set(followed.memories)}
            false_hits = {key: hits for key, hits in state.false_hits.items() if key not in touched}
            false_hits |= {key: FalseHits.of(tuple(hits)) for key, hits in remembered.items() if hits}
            replica.use_rules(rules, false_hits)

    def _learn_if_due(self, replica: CacheReplica, followed: _Followed, category: CategoryRecord) -> None:
        """Learn a rule where its evidence has grown enough. Raises: StoreUnavailableError, NotFoundError."""
        state = replica.state
        pools = _pools(state, category)
        widest = [followed.memories[key] for key in pools[-1] if key in followed.memories]
        seen = (sum(memory.count for memory in widest), sum(memory.false_count for memory in widest))
        count, false_count = followed.learned_at.get(category.id, (0, 0))
        if not is_due(seen[0], learned_count=count) and seen[1] == false_count:
            return
        followed.learned_at[category.id] = seen
        known = state.rules.get(category.id)
        if known is not None and known.learned_to >= followed.read_to:
            return  # another replica was first, or this process before it was started anew
        target, judge = category.policy.target, _judge(state)
        assert target is not None  # of which rules are learned
        own, *ancestors = (_judged(followed, pool, judge=judge) for pool in pools)
        rule = fit_rule(
            own,
            ancestors,
            requests_like(self._samples.latest(category.id), (own, *ancestors)),
            target,
            explored_share=category.policy.exploration,
            target_at_load=category.policy.target_at_load,
        )
        version = 0 if known is None else known.version
        rule = replace(rule, judge=judge, learned_to=followed.read_to, version=version)
        with writing(self._engine) as connection:
            is_kept = write_rule(connection, state.record.id, category.id, rule, now_ms=self._clock())
        if is_kept:
            rules = {**replica.state.rules, category.id: replace(rule, version=version + 1)}
            replica.use_rules(rules, replica.state.false_hits)


def _first_to_read(connection: Connection, cache_id: int) -> int:
    """The row id after which the verdicts of a cache are read that is opened."""
    newest = select(feedback.c.id).where(feedback.c.cache_id == cache_id, feedback.c.evidence.is_not(None))
    query = newest.order_by(feedback.c.id.desc()).offset(READ_AT_START).limit(1)
    return int(connection.execute(query).scalar() or 0)


def _rows_after(connection: Connection, cache_id: int, row_id: int) -> "Iterator[Any]":
    """The verdicts with evidence of a cache beyond a row id, in order."""
    columns = (feedback.c.id, feedback.c.category_id, feedback.c.entry_id, feedback.c.verdict)
    query = select(*columns, feedback.c.evidence).where(
        feedback.c.cache_id == cache_id, feedback.c.evidence.is_not(None)
    )
    while True:
        page = query.where(feedback.c.id > row_id).order_by(feedback.c.id).limit(_PAGE)
        rows = connection.execute(page).all()
        yield from rows
        if len(rows) < _PAGE:
            return
        row_id = rows[-1].id


def _remember(memory: _Memory, row: Any) -> None:
    evidence = unpack_evidence(row.evidence)
    if evidence is None or row.verdict not in PAIR_LABELS:
        return
    is_wrong = not PAIR_LABELS[row.verdict]
    if evidence.features:
        memory.evidence.append((evidence, is_wrong))
        memory.count += 1
    if not evidence.was_served or evidence.sketch == NO_SKETCH:
        return
    if is_wrong:
        memory.false_hits.append(FalseHit(evidence.sketch, row.entry_id))
        memory.false_count += 1
        return
    for hit in [hit for hit in memory.false_hits if hit.entry_id == row.entry_id]:
        if is_near(hit.sketch, evidence.sketch):
            memory.false_hits.remove(hit)


def _pools(state: CacheState, category: CategoryRecord) -> list[list[int]]:
    """Of the category and each of its ancestors, upwards, the categories whose evidence is its own."""
    parents = {one.id: one.parent_id for one in state.categories.values()}
    return [[key, *below(parents, key)] for key in chain_of(parents, category.id)]


def _judged(followed: _Followed, pool: Sequence[int], *, judge: bytes) -> JudgedLookups:
    """The evidence of these categories that this judge, or none, had its say in."""
    found = [
        pair
        for key in pool
        if key in followed.memories
        for pair in followed.memories[key].evidence
        if pair[0].judge == judge
    ]
    return JudgedLookups.of(found)


def _judge(state: CacheState) -> bytes:
    """The verifier whose word new evidence holds; of several modalities none is learned together."""
    ids = sorted(verifier.verifier_id for verifier in state.verifiers.values())
    return judge_of(ids[0]) if len(ids) == 1 else NO_JUDGE

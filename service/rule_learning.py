"""Follows the verdicts of every cache: remembers false hits, and learns the rules of categories with a
target.

Verdicts are read from the store in the order of their row ids, so every replica remembers the same false
hits, and after a restart the same as before. A rule that was learned is written to the store, where all
replicas find it.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, func, select

from service.database import reading, writing
from service.decision_rules import read_rules, write_rule
from service.errors import NotFoundError
from service.evidence import NO_SKETCH, Evidence, judge_of, unpack_evidence
from service.false_hits import KEPT, FalseHit, FalseHits, is_near
from service.policy import below, chain_of
from service.records import PAIR_LABELS, CategoryRecord
from service.replica import CacheReplica, CacheState
from service.request_samples import RequestSamples
from service.rule_fit import EVIDENCE_KEPT, LEAST_EVIDENCE, JudgedLookups, fit_rule, is_due, requests_like
from service.spaces import current_space, modalities_of
from service.tables import caches, categories, feedback, forgotten_rows

READ_AT_START = 200_000
"""Latest verdicts of a cache that are read when it is opened."""

_PAGE = 1_000


@dataclass(slots=True)
class _Memory:
    """One category's verdicts. counts: of its evidence ever, by judge; false_count: of wrong answers that
    were served."""

    evidence: "deque[tuple[Evidence, bool]]" = field(default_factory=lambda: deque(maxlen=EVIDENCE_KEPT))
    false_hits: "deque[FalseHit]" = field(default_factory=lambda: deque(maxlen=KEPT))
    counts: "Counter[bytes]" = field(default_factory=Counter)
    false_count: int = 0


class _Seen(NamedTuple):
    """What there was to learn a rule from: evidence of its judge, and wrong answers that were served."""

    judged_count: int = 0
    false_count: int = 0


@dataclass(slots=True)
class _Followed:
    """How far one cache's verdicts are followed.

    read_to: None: nothing is read. config_version, forgotten_count: of the store then. touched: categories
    whose false hits the replica does not know yet. learned_at: of each category that has or wanted a rule.
    """

    read_to: int | None = None
    config_version: int = 0
    forgotten_count: int = 0
    memories: dict[int, _Memory] = field(default_factory=dict)
    touched: set[int] = field(default_factory=set)
    learned_at: dict[int, _Seen] = field(default_factory=dict)


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
        self._samples.keep_only(
            {
                (category_id, judge)
                for replica in replicas
                for judge in _judges(replica.state, replica.state.record.modalities)
                for category_id in replica.state.category_names
            }
        )
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
        cache_id = state.record.id
        with reading(self._engine) as connection:
            followed = self._settled(connection, state)
            is_first = followed.read_to is None
            read_to = _first_to_read(connection, cache_id) if followed.read_to is None else followed.read_to
            followed.read_to = read_to
            for row in _rows_after(connection, cache_id, read_to):
                followed.touched.add(row.category_id)
                _remember(followed.memories.setdefault(row.category_id, _Memory()), row)
                followed.read_to = row.id
            if is_first:  # the rest is of a program that kept no evidence: never looked at again
                followed.read_to = max(followed.read_to, _newest(connection, cache_id))
            rules = read_rules(connection, cache_id, state.rules)
        if not followed.touched and rules == state.rules:
            return
        false_hits = {key: hits for key, hits in state.false_hits.items() if key not in followed.touched}
        for key in followed.touched & set(followed.memories):
            if hits := followed.memories[key].false_hits:
                false_hits[key] = FalseHits.of(tuple(hits))
        replica.use_rules(rules, false_hits)
        followed.touched = set()

    def _settled(self, connection: Connection, state: CacheState) -> _Followed:
        """How far verdicts are followed, at the settings that the store has: without those on entries that
        were forgotten, and those of categories that are gone.

        Raises: NotFoundError: the cache was deleted.
        """
        cache_id = state.record.id
        query = select(caches.c.config_version).where(caches.c.id == cache_id)
        config_version = connection.execute(query).scalar()
        if config_version is None:
            raise NotFoundError("the cache was deleted", reason="CACHE_NOT_FOUND")
        followed = self._followed.get(cache_id)
        if followed is not None and followed.config_version == config_version:
            return followed
        of_cache = forgotten_rows.c.cache_id == cache_id
        count = connection.execute(select(func.count()).where(of_cache)).scalar_one()
        if followed is None or followed.forgotten_count != count:
            followed = self._followed[cache_id] = _Followed(touched=set(state.false_hits))
        kept = set(
            connection.execute(select(categories.c.id).where(categories.c.cache_id == cache_id)).scalars()
        )
        followed.touched |= set(state.false_hits) - kept
        followed.memories = {key: memory for key, memory in followed.memories.items() if key in kept}
        followed.learned_at = {key: seen for key, seen in followed.learned_at.items() if key in kept}
        followed.config_version, followed.forgotten_count = config_version, count
        return followed

    def _learn_if_due(self, replica: CacheReplica, followed: _Followed, category: CategoryRecord) -> None:
        """Learn a rule where its evidence has grown enough, or it is one for something else than is asked
        for. Raises: StoreUnavailableError, NotFoundError."""
        state, policy = replica.state, category.policy
        if followed.config_version != state.record.config_version:
            return  # the settings are about to be read again
        pools = _pools(state, category)
        widest = [followed.memories[key] for key in pools[-1] if key in followed.memories]
        judge = _judge(state, widest)
        seen = _Seen(
            sum(memory.counts[judge] for memory in widest), sum(memory.false_count for memory in widest)
        )
        known = state.rules.get(category.id)
        asked = (policy.target, policy.target_at_load, policy.exploration, judge)
        is_same = known is None or asked == (
            (known.target, known.target_at_load, known.explored_share, known.judge)
        )
        if is_same and not _is_more(seen, followed.learned_at.get(category.id, _Seen())):
            return
        read_to = followed.read_to or 0
        if is_same and known is not None and known.learned_to >= read_to:
            # Another replica was first, or this process before it was started anew.
            followed.learned_at[category.id] = seen
            return
        assert policy.target is not None  # of which rules are learned
        own, *ancestors = (_judged(followed, pool, judge=judge) for pool in pools)
        rule = fit_rule(
            own,
            ancestors,
            requests_like(self._samples.latest(category.id, judge), (own, *ancestors)),
            policy.target,
            explored_share=policy.exploration,
            target_at_load=policy.target_at_load,
        )
        version = 0 if known is None else known.version
        rule = replace(rule, judge=judge, learned_to=read_to, version=version)
        with writing(self._engine) as connection:
            is_kept = write_rule(
                connection,
                state.record.id,
                category.id,
                rule,
                config_version=followed.config_version,
                now_ms=self._clock(),
            )
        if is_kept:  # else what is so then is seen at the next step
            followed.learned_at[category.id] = seen
            rules = {**replica.state.rules, category.id: replace(rule, version=version + 1)}
            replica.use_rules(rules, replica.state.false_hits)


def _first_to_read(connection: Connection, cache_id: int) -> int:
    """The row id after which the verdicts of a cache are read that is opened."""
    newest = select(feedback.c.id).where(feedback.c.cache_id == cache_id, feedback.c.evidence.is_not(None))
    query = newest.order_by(feedback.c.id.desc()).offset(READ_AT_START).limit(1)
    return int(connection.execute(query).scalar() or 0)


def _newest(connection: Connection, cache_id: int) -> int:
    """The row id of the latest verdict of a cache, 0 without one."""
    query = select(func.max(feedback.c.id)).where(feedback.c.cache_id == cache_id)
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
        memory.counts[evidence.judge] += 1
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
    """The evidence of these categories that is of this judge."""
    found = [
        pair
        for key in pool
        if key in followed.memories
        for pair in followed.memories[key].evidence
        if pair[0].judge == judge
    ]
    return JudgedLookups.of(found)


def _judge(state: CacheState, memories: Iterable[_Memory]) -> bytes:
    """What rules are learned of: of all that is asked now, what there is most evidence of. Several
    modalities have distances of their own and are not learned together."""
    counts: Counter[bytes] = Counter()
    for memory in memories:
        counts.update(memory.counts)
    current = [current_space(state.record, modality) for modality in modalities_of(state.record)]
    return max(_judges(state, current), key=counts.__getitem__)


def _judges(state: CacheState, spaces: Iterable[str]) -> list[bytes]:
    """Of each of these spaces, whose word new evidence holds."""
    found = []
    for space in sorted(spaces):
        verifier = state.verifiers.get(space)
        found.append(judge_of(space, "" if verifier is None else verifier.verifier_id))
    return found


def _is_more(seen: _Seen, learned: _Seen) -> bool:
    """Whether there is enough more to learn from. A wrong answer that was served counts at once."""
    if is_due(seen.judged_count, learned_count=learned.judged_count):
        return True
    return seen.judged_count >= LEAST_EVIDENCE and seen.false_count != learned.false_count

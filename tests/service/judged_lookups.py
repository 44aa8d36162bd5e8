"""Verdicts with evidence in a store, and a replica that follows them and learns rules."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine, insert, select
from store_rows import StoreCache

from service import tables
from service.categories import delete_category, update_category
from service.config import SearchConfig
from service.database import reading, writing
from service.decision_rules import DecisionRule
from service.evidence import Evidence, judge_of, pack_evidence
from service.replica import CacheReplica
from service.request_samples import RequestSamples
from service.risk import weigh
from service.rows import read_cache
from service.rule_learning import RuleLearner

JUDGE = judge_of("text", "")
TARGET = {"max_wrong": 0.05}
HALF = 0.2  # an answer from this far away is wrong half of the time
NOW_MS = 7_000

Verdict = tuple[Evidence, bool]


def features_at(distance: float) -> tuple[float, ...]:
    """Of a lookup that found one entry."""
    return weigh([distance], [1], None).features


def sketch(*flipped: int) -> bytes:
    """A sketch that differs from the plain one in these bits."""
    bits = np.ones(256, dtype=np.uint8)
    bits[list(flipped)] = 0
    return np.packbits(bits).tobytes()


def verdicts(
    count: int, *, seed: int = 0, judge: bytes = JUDGE, half: float = HALF, **evidence: Any
) -> list[Verdict]:
    """Of lookups that were not served, the nearest entry anywhere up to 0.5 away."""
    rng = np.random.default_rng(seed)
    distances = rng.uniform(0.0, 0.5, count)
    wrong = rng.random(count) < 1 / (1 + np.exp(-30 * (distances - half)))
    return [
        (
            Evidence(
                was_served=False,
                judge=judge,
                sketch=sketch(*rng.integers(256, size=120)),
                features=features_at(distance),
                **evidence,
            ),
            bool(is_wrong),
        )
        for distance, is_wrong in zip(distances, wrong, strict=True)
    ]


def wrong(*flipped: int, features: tuple[float, ...] = ()) -> Verdict:
    """That an answer which went out, to a question of this sketch, was wrong."""
    return Evidence(was_served=True, judge=JUDGE, sketch=sketch(*flipped), features=features), True


def right(*flipped: int) -> Verdict:
    """That one was right."""
    return wrong(*flipped)[0], False


def judge_lookups(
    cache: StoreCache, category_id: int, given: Iterable[Verdict], *, entry_id: int = 1, packed: bytes = b""
) -> None:
    """Write verdicts down, as `record_feedback` does. packed: evidence that takes the place of theirs."""
    rows = [
        {
            "cache_id": cache.id,
            "category_id": category_id,
            "lookup_digest": np.random.default_rng().bytes(16),
            "entry_id": entry_id,
            "verdict": "wrong" if is_wrong else "right",
            "distance": 0.1,
            "threshold": 0.5,
            "query_code": None,
            "generation": "",
            "seq": 1,
            "create_ms": 1,
            "evidence": packed or pack_evidence(evidence),
        }
        for evidence, is_wrong in given
    ]
    with writing(cache.engine) as connection:
        connection.execute(insert(tables.feedback), rows)


class Follower:
    """One process's view of a cache, its samples of requests and its learner."""

    def __init__(self, cache: StoreCache, folder: Path, *, engine: Engine | None = None) -> None:
        self.engine = engine or cache.engine
        with reading(self.engine) as connection:
            record = read_cache(connection, cache.name)
        self.replica = CacheReplica(self.engine, record, search=SearchConfig(), data_dir=str(folder))
        self.samples = RequestSamples()
        self.learner = RuleLearner(
            self.engine, replicas=lambda: [self.replica], samples=self.samples, clock=lambda: NOW_MS
        )

    def step(self) -> None:
        """Read settings as the feed's thread does, then take verdicts and learn."""
        self.replica.refresh_settings()
        self.learner.step()

    def rule(self, category_id: int) -> DecisionRule | None:
        """The category's, as lookups see it."""
        return self.replica.state.rules.get(category_id)

    def distrusts(self, category_id: int, *flipped: int) -> Sequence[int]:
        """The entries that are not served to a question of this sketch."""
        known = self.replica.state.false_hits.get(category_id)
        return [] if known is None else sorted(known.near(sketch(*flipped)).entry_ids)


def stored_rules(cache: StoreCache) -> dict[int, tuple[int, str]]:
    """Version and content by category."""
    rules = tables.decision_rules.c
    with reading(cache.engine) as connection:
        found = connection.execute(
            select(rules.category_id, rules.version, rules.content).where(rules.cache_id == cache.id)
        )
        return {row.category_id: (row.version, row.content) for row in found}


def change_policy(cache: StoreCache, name: str, **changed: Any) -> None:
    """As an operator does."""
    with writing(cache.engine) as connection:
        update_category(connection, cache.name, name, etag="", changed=changed, now_ms=1)


def drop_category(cache: StoreCache, name: str) -> None:
    """As an operator does."""
    with writing(cache.engine) as connection:
        delete_category(connection, cache.name, name, etag="", now_ms=1)


def child_category(cache: StoreCache, name: str, *, parent: str, **policy: Any) -> int:
    """A category below another."""
    category_id = cache.category(name, **policy)
    with writing(cache.engine) as connection:
        update_category(connection, cache.name, name, etag="", changed={}, parent=parent, now_ms=1)
    return category_id

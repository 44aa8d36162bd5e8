"""Learned rules as the store keeps them: what is written is read, one writer wins, damage is cold."""

import json
from dataclasses import replace

import numpy as np
import pytest
from judged_lookups import change_policy, drop_category, stored_rules
from sqlalchemy import Engine, update
from store_rows import StoreCache, make_cache

from service.database import reading, writing
from service.decision_rules import DecisionRule, RuleSource, empty_rules, read_rules, write_rule
from service.errors import NotFoundError
from service.evidence import judge_of
from service.promise import REQUESTS, Target
from service.risk import FEATURES, RiskModel
from service.rows import read_cache
from service.tables import caches, decision_rules

COUNT = len(FEATURES)


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """A cache of its own."""
    return make_cache(shared_engine)


def some_rule(seed: int = 0) -> DecisionRule:
    """One with a value of its own in every field."""
    rng = np.random.default_rng(seed)
    spread = rng.standard_normal((COUNT, COUNT))
    return DecisionRule(
        source=RuleSource.BORROWED,
        model=RiskModel(rng.standard_normal(COUNT), spread @ spread.T),
        risk_limit=float(rng.random()),
        target=Target(wrong_share=0.03, basis=REQUESTS, confidence=0.9),
        target_at_load=Target(wrong_share=0.06, basis=REQUESTS, confidence=0.9),
        explored_share=0.07,
        risk_limit_at_load=0.9,
        judge=judge_of("text:2", "a verifier"),
        judged_count=123,
        wrong_count=45,
        learned_to=678,
    )


def write(cache: StoreCache, category_id: int, rule: DecisionRule, *, config_version: int = 0) -> bool:
    """As a learner does that knows the settings, or these."""
    with writing(cache.engine) as connection:
        known = config_version or read_cache(connection, cache.name).config_version
        return write_rule(connection, cache.id, category_id, rule, config_version=known, now_ms=1)


def read(cache: StoreCache, known: dict[int, DecisionRule] | None = None) -> dict[int, DecisionRule]:
    """As a replica does that knows these."""
    with reading(cache.engine) as connection:
        return read_rules(connection, cache.id, known or {})


def test_what_is_written_is_read(cache: StoreCache) -> None:
    faq, rule = cache.category("faq"), some_rule()
    assert write(cache, faq, rule)
    found = read(cache)[faq]
    np.testing.assert_array_equal(found.model.weights, rule.model.weights)
    np.testing.assert_array_equal(found.model.covariance, rule.model.covariance)
    names = [name for name in DecisionRule.__dataclass_fields__ if name not in ("model", "version")]
    assert [getattr(found, name) for name in names] == [getattr(rule, name) for name in names]
    assert found.version == 1


def test_a_rule_without_a_target_is_read_too(cache: StoreCache) -> None:
    faq = cache.category("faq")
    assert write(cache, faq, replace(some_rule(), target=None))
    assert read(cache)[faq].target is None


def test_rules_that_are_known_are_not_read_again(cache: StoreCache) -> None:
    faq, other = cache.category("faq"), cache.category("other")
    for category in (faq, other):
        write(cache, category, some_rule())
    known = read(cache)
    assert write(cache, other, replace(some_rule(1), version=1))
    found = read(cache, known)
    assert found[faq] is known[faq]
    assert (found[other].version, found[other].risk_limit) == (2, some_rule(1).risk_limit)


def test_rules_of_other_caches_are_not_read(cache: StoreCache) -> None:
    elsewhere = make_cache(cache.engine)
    write(elsewhere, elsewhere.category("faq"), some_rule())
    assert read(cache) == {}


def test_of_two_that_write_on_the_same_version_the_first_stays(cache: StoreCache) -> None:
    faq, first, second = cache.category("faq"), some_rule(1), some_rule(2)
    assert write(cache, faq, first)
    assert not write(cache, faq, second)
    assert read(cache)[faq].risk_limit == first.risk_limit
    assert write(cache, faq, replace(second, version=1))
    assert not write(cache, faq, replace(first, version=1))
    assert (read(cache)[faq].risk_limit, read(cache)[faq].version) == (second.risk_limit, 2)


def test_a_rule_that_was_learned_at_other_settings_is_not_kept(cache: StoreCache) -> None:
    faq = cache.category("faq")
    with reading(cache.engine) as connection:
        before = read_cache(connection, cache.name).config_version
    change_policy(cache, "faq", max_wrong=0.1)
    assert not write(cache, faq, some_rule(), config_version=before)
    assert read(cache) == {}


def test_a_rule_of_a_category_that_is_gone_is_not_kept(cache: StoreCache) -> None:
    faq = cache.category("faq")
    assert write(cache, faq, some_rule())
    with reading(cache.engine) as connection:
        before = read_cache(connection, cache.name).config_version
    drop_category(cache, "faq")
    assert read(cache) == stored_rules(cache) == {}
    assert not write(cache, faq, some_rule(), config_version=before)


def test_a_rule_of_a_cache_that_is_gone_is_refused(cache: StoreCache) -> None:
    faq = cache.category("faq")
    with writing(cache.engine) as connection:
        connection.execute(caches.delete().where(caches.c.id == cache.id))
    with pytest.raises(NotFoundError):
        write(cache, faq, some_rule(), config_version=1)


def test_emptied_rules_are_cold_of_a_new_version_and_can_be_learned_again(cache: StoreCache) -> None:
    faq, elsewhere = cache.category("faq"), make_cache(cache.engine)
    kept = elsewhere.category("faq")
    for one, category in ((cache, faq), (elsewhere, kept)):
        write(one, category, some_rule())
    known = read(cache)
    with writing(cache.engine) as connection:
        empty_rules(connection, cache.id, now_ms=2)
    found = read(cache, known)[faq]
    assert (found.source, found.risk_limit, found.target, found.version) == (RuleSource.COLD, 0.0, None, 2)
    assert not found.model.weights.any()
    assert stored_rules(cache)[faq] == (2, "")
    assert read(elsewhere)[kept].source is RuleSource.BORROWED
    assert not write(cache, faq, replace(some_rule(), version=1))  # by who has not heard of it
    assert write(cache, faq, replace(some_rule(), version=2))


def damaged() -> dict[str, str]:
    """Contents that are no rule, by what is wrong with them."""
    good = {
        "features": list(FEATURES),
        "source": "learned",
        "weights": [0.0] * COUNT,
        "covariance": np.eye(COUNT).tolist(),
        "risk_limit": 0.1,
        "target": {"wrong_share": 0.1, "basis": "hits", "confidence": 0.9},
        "target_at_load": None,
        "explored_share": 0.0,
        "judge": "00" * 8,
        "judged_count": 1,
        "wrong_count": 1,
        "learned_to": 1,
    }
    changes: dict[str, dict[str, object]] = {
        "other features": {"features": ["one"]},
        "unknown source": {"source": "guessed"},
        "few weights": {"weights": [0.0]},
        "weights that are no numbers": {"weights": ["x"] * COUNT},
        "weights that are not finite": {"weights": [float("nan")] * COUNT},
        "a covariance of another shape": {"covariance": [[1.0]]},
        "a covariance that is not finite": {"covariance": [[float("inf")] * COUNT] * COUNT},
        "a limit beyond 1": {"risk_limit": 1.5},
        "a limit that is no number": {"risk_limit": None},
        "a limit at load beyond 1": {"risk_limit_at_load": 2},
        "another target": {"target": {"wrong": 1}},
        "a judge that is not hex": {"judge": "zz"},
    }
    found = {name: json.dumps(good | change) for name, change in changes.items()}
    found |= {f"no {name}": json.dumps({k: v for k, v in good.items() if k != name}) for name in good}
    return found | {"nothing": "", "no JSON": "{", "a list": "[]", "a number": "3"}


@pytest.mark.parametrize("name", list(damaged()))
def test_a_damaged_rule_is_a_cold_one_that_can_be_replaced(cache: StoreCache, name: str) -> None:
    faq = cache.category("faq")
    write(cache, faq, some_rule())
    with writing(cache.engine) as connection:
        row = update(decision_rules).where(decision_rules.c.category_id == faq)
        connection.execute(row.values(content=damaged()[name], version=4))
    found = read(cache)[faq]
    assert (found.source, found.risk_limit, found.version) == (RuleSource.COLD, 0.0, 4)
    assert read(cache, {faq: found})[faq] is found  # and is looked at once
    assert write(cache, faq, replace(some_rule(), version=4))
    assert read(cache)[faq].source is RuleSource.BORROWED

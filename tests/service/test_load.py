"""Load: what is reported of models, and how far it relaxes a policy."""

import json
import math

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearhit import load_of
from sqlalchemy import Engine, delete, select, update
from store_rows import make_cache

from service.database import reading, writing
from service.decision_rules import DecisionRule, RuleSource, limit_at, read_rules, write_rule
from service.errors import InvalidRequestError, OverloadedError
from service.expiration import Freshness, freshness
from service.load import Loads, applied_load, between, refresh_after_at, threshold_at
from service.policy import Policy, check_policy, resolve
from service.promise import Target, risk_limit
from service.risk import FEATURES, PRIOR_VARIANCE, RiskModel, no_evidence
from service.rows import read_cache
from service.rule_fit import JudgedLookups, fit_rule
from service.tables import decision_rules

LOADS = st.floats(0.0, 1.0)
DISTANCES = st.floats(0.0, 2.0)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), LOADS)
def test_a_value_moves_on_a_line_between_its_ends(idle: float, busy: float, load: float) -> None:
    value = between(idle, busy, load)
    assert (between(idle, busy, 0.0), between(idle, busy, 1.0)) == (idle, busy)
    assert value == pytest.approx((1 - load) * idle + load * busy, rel=1e-9, abs=1e-9)


@given(DISTANCES, DISTANCES, LOADS, LOADS)
def test_a_threshold_grows_with_the_load_and_stays_between_its_bounds(
    first: float, second: float, load: float, other: float
) -> None:
    low, high = sorted((first, second))
    policy = Policy(threshold=low, max_threshold_at_load=high)
    assert low <= threshold_at(policy, load) <= high + 1e-12
    assert threshold_at(policy, min(load, other)) <= threshold_at(policy, max(load, other)) + 1e-12
    assert (threshold_at(policy, 0.0), threshold_at(policy, 1.0)) == (low, high)


@given(LOADS)
def test_without_a_bound_and_with_a_target_the_threshold_stays(load: float) -> None:
    assert threshold_at(Policy(threshold=0.1), load) == 0.1
    assert threshold_at(Policy(threshold=0.1, max_threshold_at_load=0.4, max_wrong=0.02), load) == 0.1


@pytest.mark.parametrize(("load", "fresh_until"), [(0.0, 100), (0.5, 200), (1.0, 300)])
def test_what_is_due_moves_with_the_load(load: float, fresh_until: int) -> None:
    policy = Policy(refresh_after_ms=100, refresh_after_at_load_ms=300)
    assert refresh_after_at(policy, load) == fresh_until
    assert freshness(0, policy, now_ms=fresh_until - 1, load=load) is Freshness.FRESH
    assert freshness(0, policy, now_ms=fresh_until, load=load) is Freshness.STALE
    # Whatever the load, a caller's own age holds.
    assert freshness(0, policy, now_ms=50, max_age_ms=40, load=load) is Freshness.STALE


def test_an_entry_that_is_never_due_is_not_due_under_load() -> None:
    assert refresh_after_at(Policy(refresh_after_at_load_ms=300), 0.5) is None


def test_only_the_load_of_the_named_model_counts() -> None:
    assert applied_load(Policy(), {"": 1.0, "m": 0.5}) is None
    assert applied_load(Policy(load_model="m"), {"m": 0.5, "n": 0.9}) == 0.5
    assert applied_load(Policy(load_model="o"), {"m": 0.5}) == 0.0


# Learned limits


def rule(*, risk_limit: float, at_load: float | None) -> DecisionRule:
    """A rule with these limits."""
    return DecisionRule(
        source=RuleSource.LEARNED, model=no_evidence(), risk_limit=risk_limit, risk_limit_at_load=at_load
    )


def test_the_risk_limit_moves_between_the_two_that_were_learned() -> None:
    policy = Policy(max_wrong=0.02, max_wrong_at_load=0.1)
    learned = rule(risk_limit=0.1, at_load=0.3)
    assert [limit_at(learned, policy, load) for load in (0.0, 0.5, 1.0)] == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("load", [0.0, 0.7, 1.0])
def test_a_limit_that_was_not_learned_or_is_not_asked_for_stays(load: float) -> None:
    asked = Policy(max_wrong=0.02, max_wrong_at_load=0.1)
    assert limit_at(rule(risk_limit=0.1, at_load=None), asked, load) == 0.1
    assert limit_at(rule(risk_limit=0.1, at_load=0.3), Policy(max_wrong=0.02), load) == 0.1


def test_both_limits_keep_what_is_promised_for_each() -> None:
    rng = np.random.default_rng(0)
    features = np.concatenate([np.ones((600, 1)), rng.standard_normal((600, len(FEATURES) - 1))], axis=1)
    wrong = rng.random(600) < 1 / (1 + np.exp(2 - 2 * features[:, 3]))
    judged = JudgedLookups(features, wrong, np.zeros(600, dtype=bool))
    idle, busy = Target(wrong_share=0.05), Target(wrong_share=0.15)
    fitted = fit_rule(judged, (), features, idle, explored_share=0.0, target_at_load=busy)
    assert fitted.risk_limit == risk_limit(fitted.model, features, idle)
    assert fitted.risk_limit_at_load == risk_limit(fitted.model, features, busy)
    assert 0 < fitted.risk_limit < fitted.risk_limit_at_load
    assert fit_rule(judged, (), features, idle, explored_share=0.0).risk_limit_at_load is None


@given(LOADS)
def test_a_limit_under_load_never_serves_more_wrong_than_is_promised_for_load(load: float) -> None:
    rng = np.random.default_rng(1)
    features = np.concatenate([np.ones((200, 1)), rng.standard_normal((200, len(FEATURES) - 1))], axis=1)
    model = RiskModel(np.arange(len(FEATURES)) / 3 - 2, PRIOR_VARIANCE * 1e-3 * np.eye(len(FEATURES)))
    policy = Policy(max_wrong=0.05, max_wrong_at_load=0.2)
    assert policy.target is not None and policy.target_at_load is not None
    learned = DecisionRule(
        source=RuleSource.LEARNED,
        model=model,
        risk_limit=risk_limit(model, features, policy.target),
        risk_limit_at_load=risk_limit(model, features, policy.target_at_load),
    )
    limit = limit_at(learned, policy, load)
    served = model.probabilities(features)
    served = served[served <= limit]
    assert not len(served) or served.mean() <= policy.target_at_load.wrong_share


def test_a_rule_that_was_kept_before_there_was_load_is_read(shared_engine: Engine) -> None:
    cache = make_cache(shared_engine)
    category_id = cache.category("faq", max_wrong=0.02)
    row = decision_rules.c.category_id == category_id
    for at_load in (0.3, None):
        with writing(shared_engine) as connection:
            connection.execute(delete(decision_rules).where(row))
            write_rule(
                connection,
                cache.id,
                category_id,
                rule(risk_limit=0.1, at_load=at_load),
                config_version=read_cache(connection, cache.name).config_version,
                now_ms=1,
            )
        with reading(shared_engine) as connection:
            kept = read_rules(connection, cache.id, {})[category_id]
        assert (kept.risk_limit, kept.risk_limit_at_load) == (0.1, at_load)
    with writing(shared_engine) as connection:
        content = json.loads(connection.execute(select(decision_rules.c.content).where(row)).scalar_one())
        del content["risk_limit_at_load"]
        connection.execute(update(decision_rules).where(row).values(content=json.dumps(content)))
    with reading(shared_engine) as connection:
        before = read_rules(connection, cache.id, {})[category_id]
    assert (before.risk_limit, before.risk_limit_at_load) == (0.1, None)


# Rules of policies


@pytest.mark.parametrize(
    ("own", "field"),
    [
        ({"threshold": 0.2, "max_threshold_at_load": 0.1}, "max_threshold_at_load"),
        ({"max_wrong": 0.1, "max_wrong_at_load": 0.05}, "max_wrong_at_load"),
        ({"refresh_after_ms": 100, "refresh_after_at_load_ms": 50}, "refresh_after_at_load"),
        ({"ttl_ms": 100, "refresh_after_at_load_ms": 150}, "refresh_after_at_load"),
        ({"model_cost": 1.0, "hit_cost": 1.0}, "hit_cost"),
    ],
)
def test_a_bound_below_what_holds_without_load_is_refused(own: dict[str, float], field: str) -> None:
    with pytest.raises(InvalidRequestError, match=field):
        check_policy(resolve([own]), category="billing")


@pytest.mark.parametrize(
    "own",
    [
        {"threshold": 0.2, "max_threshold_at_load": 0.2},
        {"max_wrong": 0.1, "max_threshold_at_load": 0.3},  # with a target the threshold does not move
        {"max_wrong_at_load": 0.05},
        {"refresh_after_at_load_ms": 50},
        {"hit_cost": 1.0},  # the model's is not known
    ],
)
def test_bounds_that_do_nothing_are_taken(own: dict[str, float]) -> None:
    check_policy(resolve([own]), category="billing")


# Reports


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_load_holds_until_its_time_is_over_and_the_last_report_counts() -> None:
    clock = Clock()
    loads = Loads(clock=clock)
    assert loads.of(1) == {}
    loads.report(1, "m", 0.25, seconds=10)
    loads.report(1, "n", 1.0, seconds=20)
    loads.report(2, "m", 0.75, seconds=20)
    loads.report(1, "m", 0.5, seconds=10)
    assert (loads.of(1), loads.of(2), loads.of(3)) == ({"m": 0.5, "n": 1.0}, {"m": 0.75}, {})
    clock.now += 9.5
    assert loads.of(1) == {"m": 0.5, "n": 1.0}
    clock.now += 0.5
    assert loads.of(1) == {"n": 1.0}
    clock.now += 10
    assert (loads.of(1), loads.of(2)) == ({}, {})


def test_so_many_models_have_a_load_at_a_time() -> None:
    clock = Clock()
    loads = Loads(max_models=2, clock=clock)
    loads.report(1, "a", 0.1, seconds=5)
    loads.report(1, "b", 0.1, seconds=50)
    with pytest.raises(OverloadedError, match="2 models") as raised:
        loads.report(1, "c", 0.1, seconds=50)
    assert raised.value.status is grpc.StatusCode.RESOURCE_EXHAUSTED
    loads.report(1, "a", 0.2, seconds=5)  # one that has one
    loads.report(2, "c", 0.3, seconds=50)  # of another cache
    clock.now += 5
    loads.report(1, "c", 0.4, seconds=50)
    assert loads.of(1) == {"b": 0.1, "c": 0.4}


@pytest.mark.parametrize(
    ("latency", "expected"), [(0.0, 0.0), (1.0, 0.0), (1.5, 0.25), (3.0, 1.0), (99.0, 1.0), (math.inf, 1.0)]
)
def test_a_latency_becomes_a_load(latency: float, expected: float) -> None:
    assert load_of(latency, usual=1.0, most=3.0) == expected


@pytest.mark.parametrize(
    ("latency", "usual", "most"), [(math.nan, 0, 1), (1, 2, 2), (1, -1, 2), (1, 3, 2), (1, 0, math.nan)]
)
def test_no_load_is_made_of_bounds_that_are_none(latency: float, usual: float, most: float) -> None:
    with pytest.raises(ValueError, match="no load of"):
        load_of(latency, usual=usual, most=most)

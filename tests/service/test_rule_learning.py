"""Following verdicts and learning rules from them, against real databases: order, restarts, several
processes, changes of what is asked for, and what is forgotten."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from forgotten_rows_at_work import forget
from judged_lookups import (
    HALF,
    JUDGE,
    NOW_MS,
    TARGET,
    Follower,
    change_policy,
    child_category,
    drop_category,
    features_at,
    judge_lookups,
    right,
    stored_rules,
    verdicts,
    wrong,
)
from sqlalchemy import Engine, event, select, update
from sqlalchemy.exc import OperationalError
from store_rows import StoreCache, make_cache, new_entry, second_engine, storing_after

from service import store, tables
from service.database import reading, writing
from service.decision_rules import DecisionRule, RuleSource
from service.errors import StoreUnavailableError
from service.evidence import Evidence, judge_of, pack_evidence
from service.promise import HORIZON
from service.request_samples import RequestSamples
from service.risk import FEATURES
from service.rule_fit import LEAST_EVIDENCE, LEAST_GROWTH, LEAST_REQUESTS

FOLLOWS = "FROM decision_rules"  # the last that a step reads of the store


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """A cache of its own."""
    return make_cache(shared_engine)


@pytest.fixture
def other(shared_engine: Engine) -> Iterator[Engine]:
    """The same database as another process has it."""
    engine = second_engine(shared_engine)
    yield engine
    engine.dispose()


def learned(rule: DecisionRule | None) -> DecisionRule:
    """A rule that was learned."""
    assert rule is not None and rule.source is RuleSource.LEARNED
    return rule


def serves(rule: DecisionRule, distance: float) -> bool:
    """Whether a lone entry so far away is within the limit."""
    return rule.model.risk(features_at(distance), z=1.0).probability <= rule.risk_limit


@contextmanager
def failing(engine: Engine, words: str) -> Iterator[None]:
    """The database goes away at every statement that has these words."""

    def fail(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if words in statement:
            raise OperationalError(statement, {}, Exception("gone"))

    event.listen(engine, "before_cursor_execute", fail)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", fail)


# Learning


def test_a_rule_is_learned_once_there_is_enough_and_told_to_lookups(
    cache: StoreCache, tmp_path: Path
) -> None:
    faq = cache.category("faq", **TARGET)
    judge_lookups(cache, faq, verdicts(LEAST_EVIDENCE - 1))
    follower = Follower(cache, tmp_path)
    follower.step()
    assert follower.rule(faq) is None and not stored_rules(cache)
    judge_lookups(cache, faq, verdicts(300, seed=1))
    follower.step()
    rule = learned(follower.rule(faq))
    assert (rule.judged_count, rule.judge, rule.version) == (LEAST_EVIDENCE + 299, JUDGE, 1)
    assert serves(rule, 0.02) and not serves(rule, HALF) and not serves(rule, 0.4)
    with reading(cache.engine) as connection:
        update_ms = connection.execute(
            select(tables.decision_rules.c.update_ms).where(tables.decision_rules.c.category_id == faq)
        ).scalar()
    assert update_ms == NOW_MS


def test_a_rule_is_learned_anew_when_evidence_has_grown_and_not_before(
    cache: StoreCache, tmp_path: Path
) -> None:
    faq = cache.category("faq", **TARGET)
    judge_lookups(cache, faq, verdicts(300))
    follower = Follower(cache, tmp_path)
    for more, version in ((0, 1), (LEAST_GROWTH - 1, 1), (1, 2), (0, 2)):
        if more:
            judge_lookups(cache, faq, verdicts(more, seed=more))
        follower.step()
        assert learned(follower.rule(faq)).version == version


def test_a_wrong_answer_that_was_served_counts_at_once(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq", **TARGET)
    judge_lookups(cache, faq, verdicts(300))
    follower = Follower(cache, tmp_path)
    follower.step()
    judge_lookups(cache, faq, [wrong(features=features_at(0.01))])
    follower.step()
    rule = learned(follower.rule(faq))
    assert (rule.version, rule.judged_count) == (2, 301)


def test_a_category_without_a_target_remembers_false_hits_and_learns_no_rule(
    cache: StoreCache, tmp_path: Path
) -> None:
    faq = cache.category("faq")
    judge_lookups(cache, faq, [*verdicts(200), wrong()])
    follower = Follower(cache, tmp_path)
    follower.step()
    assert (follower.rule(faq), list(follower.distrusts(faq))) == (None, [1])


def test_caches_and_unrelated_categories_learn_apart(cache: StoreCache, tmp_path: Path) -> None:
    faq, other = cache.category("faq", **TARGET), cache.category("other", **TARGET)
    elsewhere = make_cache(cache.engine)
    judge_lookups(elsewhere, elsewhere.category("faq", **TARGET), [*verdicts(300), wrong()])
    judge_lookups(cache, faq, [*verdicts(300), wrong()])
    follower = Follower(cache, tmp_path)
    follower.step()
    assert set(follower.replica.state.rules) == {faq} == set(stored_rules(cache))
    assert set(follower.replica.state.false_hits) == {faq}
    assert follower.rule(other) is None
    assert not stored_rules(elsewhere)


def test_a_child_borrows_from_its_parent_until_it_has_evidence_of_its_own(
    cache: StoreCache, tmp_path: Path
) -> None:
    parent = cache.category("all", **TARGET)
    child = child_category(cache, "young", parent="all")
    judge_lookups(cache, parent, verdicts(300))
    follower = Follower(cache, tmp_path)
    follower.step()
    rule = follower.rule(child)
    assert rule is not None and rule.source is RuleSource.BORROWED and serves(rule, 0.02)
    judge_lookups(cache, child, verdicts(200, seed=1, half=0.1))
    follower.step()
    own, parents = learned(follower.rule(child)), learned(follower.rule(parent))
    assert (own.judged_count, parents.judged_count) == (200, 500)  # what is below counts above
    asked = features_at(0.15)
    assert own.model.risk(asked, z=1.0).probability > parents.model.risk(asked, z=1.0).probability


def test_the_limit_is_for_requests_as_they_come(cache: StoreCache, tmp_path: Path) -> None:
    # The share of wrong ones among all requests: where most are safe, riskier ones may be served.
    faq = cache.category("faq", max_wrong_of="requests", **TARGET)
    judge_lookups(cache, faq, verdicts(600))
    limits = []
    for distances in (np.linspace(0.0, 0.5, LEAST_REQUESTS), np.full(LEAST_REQUESTS, 0.4)):
        follower = Follower(cache, tmp_path)
        for distance in distances:
            follower.samples.add(faq, JUDGE, features_at(float(distance)))
        judge_lookups(cache, faq, verdicts(100, seed=len(limits) + 1))
        follower.step()
        limits.append(learned(follower.rule(faq)).risk_limit)
    assert limits[0] > 0.05 and limits[1] == 0.0


# Order, restarts, failures


def test_verdicts_count_in_their_order(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq")
    follower = Follower(cache, tmp_path)
    for verdict, distrusted in ((wrong(), [1]), (right(), []), (right(), []), (wrong(), [1])):
        judge_lookups(cache, faq, [verdict])
        follower.step()
        assert list(follower.distrusts(faq)) == distrusted
    afresh = Follower(cache, tmp_path)
    afresh.step()
    assert list(afresh.distrusts(faq)) == [1]


def test_a_right_verdict_clears_its_entry_near_its_question_alone(cache: StoreCache, tmp_path: Path) -> None:
    faq, far = cache.category("faq"), range(100)
    judge_lookups(cache, faq, [wrong(), wrong(*far)], entry_id=1)
    judge_lookups(cache, faq, [wrong()], entry_id=2)
    judge_lookups(cache, faq, [right(1, 2, 3)], entry_id=1)
    follower = Follower(cache, tmp_path)
    follower.step()
    assert list(follower.distrusts(faq)) == [2]
    assert list(follower.distrusts(faq, *far)) == [1]
    assert list(follower.distrusts(faq, *range(60, 200))) == []


def test_a_verdict_on_what_was_not_served_is_no_false_hit(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq")
    evidence, _ = wrong()
    unserved = Evidence(was_served=False, sketch=evidence.sketch)
    unknown = Evidence(was_served=True, sketch=bytes(32))  # asked by a text that was not embedded
    judge_lookups(cache, faq, [(unserved, True), (unknown, True)])
    follower = Follower(cache, tmp_path)
    follower.step()
    assert not follower.replica.state.false_hits


def test_after_a_restart_all_is_as_before_and_nothing_is_learned_again(
    cache: StoreCache, tmp_path: Path
) -> None:
    faq = cache.category("faq", **TARGET)
    judge_lookups(cache, faq, [*verdicts(300), wrong(), right(*range(90))])
    before = Follower(cache, tmp_path)
    before.step()
    kept = stored_rules(cache)
    after = Follower(cache, tmp_path)
    after.step()
    after.step()
    assert stored_rules(cache) == kept
    first, second = learned(before.rule(faq)), learned(after.rule(faq))
    np.testing.assert_array_equal(first.model.weights, second.model.weights)
    np.testing.assert_array_equal(first.model.covariance, second.model.covariance)
    assert (first.risk_limit, first.target, first.learned_to) == (
        second.risk_limit,
        second.target,
        second.learned_to,
    )
    assert list(after.distrusts(faq)) == list(before.distrusts(faq)) == [1]


def test_what_was_read_before_the_store_went_away_is_not_lost(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq", **TARGET)
    follower = Follower(cache, tmp_path)
    follower.step()
    judge_lookups(cache, faq, [*verdicts(300), wrong()])
    with failing(cache.engine, FOLLOWS), pytest.raises(StoreUnavailableError):
        follower.step()
    assert list(follower.distrusts(faq)) == []
    follower.step()
    assert list(follower.distrusts(faq)) == [1]
    assert learned(follower.rule(faq)).judged_count == 300


def test_a_rule_that_could_not_be_written_is_written_at_the_next_chance(
    cache: StoreCache, tmp_path: Path
) -> None:
    faq = cache.category("faq", **TARGET)
    judge_lookups(cache, faq, verdicts(300))
    follower = Follower(cache, tmp_path)
    with failing(cache.engine, "INSERT INTO decision_rules"), pytest.raises(StoreUnavailableError):
        follower.step()
    assert follower.rule(faq) is None
    follower.step()
    assert learned(follower.rule(faq)).version == 1


def test_verdicts_of_a_program_without_evidence_are_read_past_once(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq", **TARGET)
    judge_lookups(cache, faq, verdicts(3))
    with writing(cache.engine) as connection:
        of_cache = tables.feedback.c.cache_id == cache.id
        connection.execute(update(tables.feedback).where(of_cache).values(evidence=None))
    follower = Follower(cache, tmp_path)
    follower.step()
    bounds: list[object] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        if "feedback.evidence" in statement:
            bounds.append(parameters)

    event.listen(cache.engine, "before_cursor_execute", note)
    follower.step()
    event.remove(cache.engine, "before_cursor_execute", note)
    with reading(cache.engine) as connection:
        newest = max(connection.execute(select(tables.feedback.c.id).where(of_cache)).scalars())
    assert len(bounds) == 1
    values = bounds[0].values() if isinstance(bounds[0], dict) else bounds[0]
    assert newest in values  # type: ignore[operator]


@pytest.mark.parametrize("packed", [b"x", bytes(78), b"nan", b"huge"])
def test_damaged_evidence_is_passed_over(cache: StoreCache, tmp_path: Path, packed: bytes) -> None:
    faq = cache.category("faq", **TARGET)
    values = {b"nan": np.nan, b"huge": 1e30}
    if packed in values:
        features = (1.0, values[packed], *features_at(0.1)[2:])
        packed = pack_evidence(Evidence(was_served=True, judge=JUDGE, sketch=bytes(32), features=features))
    judge_lookups(cache, faq, [wrong()], packed=packed)
    judge_lookups(cache, faq, verdicts(300))
    follower = Follower(cache, tmp_path)
    follower.step()
    rule = learned(follower.rule(faq))
    assert rule.judged_count == 300 and np.isfinite(rule.model.weights).all()


@pytest.mark.parametrize("content", ["", "{", '{"features": []}'])
def test_a_damaged_rule_is_cold_and_learned_anew(cache: StoreCache, tmp_path: Path, content: str) -> None:
    faq = cache.category("faq", **TARGET)
    judge_lookups(cache, faq, verdicts(300))
    Follower(cache, tmp_path).step()
    with writing(cache.engine) as connection:
        row = update(tables.decision_rules).where(tables.decision_rules.c.category_id == faq)
        connection.execute(row.values(content=content, version=5))
    follower = Follower(cache, tmp_path)
    follower.learner.follow(follower.replica)
    rule = follower.rule(faq)
    assert rule is not None and rule.source is RuleSource.COLD
    follower.step()
    assert learned(follower.rule(faq)).version == 6


# Several processes


def test_of_two_processes_one_learns_and_the_other_takes_it_over(
    cache: StoreCache, other: Engine, tmp_path: Path
) -> None:
    faq = cache.category("faq", **TARGET)
    judge_lookups(cache, faq, verdicts(300))
    first, second = Follower(cache, tmp_path), Follower(cache, tmp_path, engine=other)
    for follower in (first, second, first):
        follower.step()
    assert learned(first.rule(faq)).version == learned(second.rule(faq)).version == 1
    np.testing.assert_array_equal(
        learned(first.rule(faq)).model.weights, learned(second.rule(faq)).model.weights
    )
    judge_lookups(cache, faq, verdicts(100, seed=1))
    second.step()  # the first is no more
    assert learned(second.rule(faq)).version == 2


def test_who_learned_at_the_same_time_and_was_second_takes_what_was_first(
    cache: StoreCache, other: Engine, tmp_path: Path
) -> None:
    faq = cache.category("faq", **TARGET)
    judge_lookups(cache, faq, verdicts(300))
    first, second = Follower(cache, tmp_path), Follower(cache, tmp_path, engine=other)
    second.replica.refresh_settings()
    with storing_after(other, FOLLOWS, first.step):
        second.learner.step()
    assert second.rule(faq) is None
    second.step()
    assert learned(second.rule(faq)).version == 1
    assert {version for version, _ in stored_rules(cache).values()} == {1}


def test_a_wrong_answer_of_one_process_is_not_served_by_another(
    cache: StoreCache, other: Engine, tmp_path: Path
) -> None:
    faq = cache.category("faq")
    first, second = Follower(cache, tmp_path), Follower(cache, tmp_path, engine=other)
    for follower in (first, second):
        follower.step()
    judge_lookups(cache, faq, [wrong()])
    first.learner.follow(first.replica)
    assert (list(first.distrusts(faq)), list(second.distrusts(faq))) == ([1], [])
    second.step()
    assert list(second.distrusts(faq)) == [1]


# What is asked for changes


def test_a_changed_target_has_its_limit_at_the_next_step_without_new_verdicts(
    cache: StoreCache, tmp_path: Path
) -> None:
    faq = cache.category("faq", max_wrong=0.02)
    judge_lookups(cache, faq, verdicts(2_000))
    follower = Follower(cache, tmp_path)
    follower.step()
    limits = [learned(follower.rule(faq)).risk_limit]
    for changed in ({"max_wrong": 0.1}, {"confidence": 0.5}, {"max_wrong_of": "requests"}):
        change_policy(cache, "faq", **changed)
        follower.step()
        limits.append(learned(follower.rule(faq)).risk_limit)
    assert limits == sorted(limits) and len(set(limits)) == 4
    change_policy(cache, "faq", max_wrong=0.02, confidence=0.95, max_wrong_of="hits")
    follower.step()
    assert learned(follower.rule(faq)).risk_limit == limits[0]
    version = learned(follower.rule(faq)).version
    change_policy(cache, "faq", exploration=0.4)
    follower.step()
    rule = learned(follower.rule(faq))
    assert (rule.explored_share, rule.version) == (0.4, version + 1)
    follower.step()
    assert learned(follower.rule(faq)).version == version + 1


def test_a_changed_target_at_load_has_its_limit_at_the_next_step(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq", **TARGET)
    judge_lookups(cache, faq, verdicts(1_000))
    follower = Follower(cache, tmp_path)
    follower.step()
    assert learned(follower.rule(faq)).risk_limit_at_load is None
    for share in (0.1, 0.3):
        change_policy(cache, "faq", max_wrong_at_load=share)
        follower.step()
        rule = learned(follower.rule(faq))
        assert rule.target_at_load is not None and rule.target_at_load.wrong_share == share
        assert rule.risk_limit_at_load is not None and rule.risk_limit_at_load > rule.risk_limit


def test_a_target_that_is_inherited_changes_with_the_parents(cache: StoreCache, tmp_path: Path) -> None:
    cache.category("all", max_wrong=0.02)
    child = child_category(cache, "own", parent="all")
    judge_lookups(cache, child, verdicts(1_000))
    follower = Follower(cache, tmp_path)
    follower.step()
    strict = learned(follower.rule(child)).risk_limit
    change_policy(cache, "all", max_wrong=0.2)
    follower.step()
    assert learned(follower.rule(child)).risk_limit > strict


def test_nothing_is_learned_for_settings_that_are_not_the_stores(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq", max_wrong=0.1)
    judge_lookups(cache, faq, verdicts(300))
    follower = Follower(cache, tmp_path)
    change_policy(cache, "faq", max_wrong=0.02)
    follower.learner.step()
    assert not stored_rules(cache)
    follower.step()
    target = learned(follower.rule(faq)).target
    assert target is not None and target.wrong_share == 0.02


def test_settings_that_change_while_a_rule_is_learned_have_it_learned_again(
    cache: StoreCache, other: Engine, tmp_path: Path
) -> None:
    faq = cache.category("faq", max_wrong=0.1)
    judge_lookups(cache, faq, verdicts(300))
    follower = Follower(cache, tmp_path, engine=other)
    with storing_after(other, FOLLOWS, partial(change_policy, cache, "faq", max_wrong=0.02)):
        follower.learner.step()
    assert not stored_rules(cache)
    follower.step()
    target = learned(follower.rule(faq)).target
    assert target is not None and target.wrong_share == 0.02


def test_a_deleted_category_takes_its_rule_along_and_the_others_stay(
    cache: StoreCache, tmp_path: Path
) -> None:
    faq, kept = cache.category("faq", **TARGET), cache.category("kept", **TARGET)
    for category in (faq, kept):
        judge_lookups(cache, category, [*verdicts(300), wrong()])
    follower = Follower(cache, tmp_path)
    follower.step()
    drop_category(cache, "faq")
    follower.step()
    assert set(follower.replica.state.rules) == {kept} == set(stored_rules(cache))
    assert set(follower.replica.state.false_hits) == {kept}
    assert learned(follower.rule(kept)).version == 1


def test_a_category_that_is_deleted_while_its_rule_is_learned_stops_nothing(
    cache: StoreCache, other: Engine, tmp_path: Path
) -> None:
    faq, kept = cache.category("faq", **TARGET), cache.category("kept", **TARGET)
    for category in (faq, kept):
        judge_lookups(cache, category, verdicts(300))
    follower = Follower(cache, tmp_path, engine=other)
    with storing_after(other, FOLLOWS, partial(drop_category, cache, "faq")):
        follower.learner.step()
    follower.step()
    assert set(stored_rules(cache)) == {kept}


def test_a_cache_that_was_deleted_stops_nothing(cache: StoreCache, tmp_path: Path) -> None:
    cache.category("faq", **TARGET)
    follower = Follower(cache, tmp_path)
    with writing(cache.engine) as connection:
        connection.execute(tables.caches.delete().where(tables.caches.c.id == cache.id))
    follower.learner.step()


@dataclass(frozen=True)
class Named:
    """A verifier, as far as learning needs one."""

    verifier_id: str


def test_a_new_verifier_makes_rules_cold_until_it_was_judged(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq", **TARGET)
    judge_lookups(cache, faq, verdicts(300))
    follower = Follower(cache, tmp_path)
    follower.step()
    active = {"text": Named("another")}
    follower.replica.state = replace(follower.replica.state, verifiers=active)  # type: ignore[arg-type]
    judge = judge_of("text", "another")
    follower.learner.step()
    rule = follower.rule(faq)
    assert rule is not None and (rule.source, rule.judge) == (RuleSource.COLD, judge)
    judge_lookups(cache, faq, verdicts(LEAST_EVIDENCE, seed=1, judge=judge))
    follower.learner.step()
    rule = learned(follower.rule(faq))
    assert (rule.judge, rule.judged_count) == (judge, LEAST_EVIDENCE)


def test_evidence_of_another_space_is_not_learned_from(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq", **TARGET)
    judge_lookups(cache, faq, verdicts(500, judge=judge_of("text:2", "")))
    follower = Follower(cache, tmp_path)
    follower.step()
    assert follower.rule(faq) is None


# What is forgotten


def stored_entry(cache: StoreCache, category_id: int, name: str) -> int:
    """The row id of a new entry."""
    cache.mutate(partial(store.store_entries, items=[new_entry(category_id, name, response=b"x")]))
    return next(row.id for row in cache.entries() if row.name == name)


def test_what_was_learned_from_a_forgotten_entry_is_learned_without_it(
    cache: StoreCache, tmp_path: Path
) -> None:
    faq = cache.category("faq", **TARGET)
    gone, kept = (stored_entry(cache, faq, name) for name in ("gone", "kept"))
    judge_lookups(cache, faq, [*verdicts(200, half=0.05), wrong()], entry_id=gone)
    judge_lookups(cache, faq, verdicts(300, seed=1), entry_id=kept)
    follower = Follower(cache, tmp_path)
    follower.step()
    assert learned(follower.rule(faq)).judged_count == 500
    forget(cache, names=["gone"])
    assert stored_rules(cache) == {faq: (2, "")}
    follower.learner.follow(follower.replica)
    rule = follower.rule(faq)
    assert rule is not None and rule.source is RuleSource.COLD and not rule.model.weights.any()
    assert not follower.replica.state.false_hits
    follower.step()
    rule = learned(follower.rule(faq))
    assert (rule.judged_count, rule.version) == (300, 3)
    alone = make_cache(cache.engine)
    afresh = alone.category("faq", **TARGET)
    judge_lookups(alone, afresh, verdicts(300, seed=1))
    witness = Follower(alone, tmp_path)
    witness.step()
    np.testing.assert_allclose(rule.model.weights, learned(witness.rule(afresh)).model.weights)


def test_who_had_read_verdicts_before_a_forgetting_writes_no_rule_of_them(
    cache: StoreCache, other: Engine, tmp_path: Path
) -> None:
    faq = cache.category("faq", **TARGET)
    gone = stored_entry(cache, faq, "gone")
    judge_lookups(cache, faq, verdicts(300), entry_id=gone)
    follower = Follower(cache, tmp_path, engine=other)
    with storing_after(other, FOLLOWS, partial(forget, cache, names=["gone"])):
        follower.learner.step()
    assert not stored_rules(cache)
    follower.step()
    assert not stored_rules(cache) and follower.rule(faq) is None


def test_forgetting_an_entry_without_verdicts_leaves_rules_as_they_are(
    cache: StoreCache, tmp_path: Path
) -> None:
    faq = cache.category("faq", **TARGET)
    stored_entry(cache, faq, "gone")
    judge_lookups(cache, faq, [*verdicts(300), wrong()], entry_id=999_999)
    follower = Follower(cache, tmp_path)
    follower.step()
    kept = stored_rules(cache)
    forget(cache, names=["gone"])
    follower.step()
    assert stored_rules(cache) == kept and list(follower.distrusts(faq)) == [999_999]


# Samples of requests


def test_samples_are_the_latest_of_their_category_and_judge() -> None:
    samples = RequestSamples()
    row = (1.0,) * (len(FEATURES) - 1)
    for i in range(HORIZON + 5):
        samples.add(1, JUDGE, (*row, float(i)))
    samples.add(1, bytes(8), (*row, -1.0))
    samples.add(2, JUDGE, (*row, -2.0))
    assert sorted(samples.latest(1, JUDGE)[:, -1]) == list(range(5, HORIZON + 5))
    assert samples.latest(1, bytes(8))[:, -1].tolist() == [-1.0]
    assert samples.latest(3, JUDGE).shape == (0, len(FEATURES))
    samples.keep_only({(2, JUDGE)})
    assert samples.latest(2, JUDGE)[:, -1].tolist() == [-2.0]
    assert len(samples.latest(1, JUDGE)) == len(samples.latest(1, bytes(8))) == 0


def test_samples_of_categories_and_judges_that_are_no_more_are_let_go(
    cache: StoreCache, tmp_path: Path
) -> None:
    faq = cache.category("faq", **TARGET)
    follower = Follower(cache, tmp_path)
    for category_id, judge in ((faq, JUDGE), (faq, bytes(8)), (faq + 1_000, JUDGE)):
        follower.samples.add(category_id, judge, features_at(0.1))
    follower.step()
    assert len(follower.samples.latest(faq, JUDGE)) == 1
    assert (
        len(follower.samples.latest(faq, bytes(8))) == len(follower.samples.latest(faq + 1_000, JUDGE)) == 0
    )

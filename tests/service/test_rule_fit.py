"""From judged lookups to a rule: what counts as enough, what is borrowed, what a limit is corrected by."""

import numpy as np
import pytest
from judged_lookups import features_at, verdicts
from numpy.typing import NDArray

from service.decision_rules import DecisionRule, RuleSource
from service.promise import REQUESTS, Target
from service.risk import FEATURES
from service.rule_fit import (
    GROWTH,
    LEAST_EVIDENCE,
    LEAST_GROWTH,
    LEAST_OF_A_KIND,
    JudgedLookups,
    fit_rule,
    is_due,
)

TARGET = Target(wrong_share=0.05)
NOTHING = JudgedLookups.of(())


def judged(count: int, *, half: float = 0.2, seed: int = 0, withheld: bool = False) -> JudgedLookups:
    """Of lookups whose answer from `half` away is wrong half of the time."""
    return JudgedLookups.of(verdicts(count, seed=seed, half=half, is_withheld=withheld))


def requests(count: int = 1_000) -> NDArray[np.float64]:
    """As the judged ones are drawn."""
    rng = np.random.default_rng(9)
    return np.array([features_at(distance) for distance in rng.uniform(0.0, 0.5, count)])


def fitted(own: JudgedLookups, *ancestors: JudgedLookups, explored: float = 0.0) -> DecisionRule:
    """The rule for requests as the judged ones."""
    return fit_rule(own, ancestors, requests(), TARGET, explored_share=explored)


def risk_at(rule: DecisionRule, distance: float) -> float:
    """Of a lone entry so far away."""
    return rule.model.risk(features_at(distance), z=1.0).probability


def test_evidence_as_arrays() -> None:
    one = JudgedLookups.of(verdicts(3, is_withheld=True))
    assert one.features.shape == (3, len(FEATURES)) and one.features.dtype == np.float64
    assert one.would_hit.all() and one.wrong.dtype == bool
    assert not JudgedLookups.of(verdicts(3)).would_hit.any()
    assert NOTHING.features.shape == (0, len(FEATURES)) and not NOTHING.is_enough


@pytest.mark.parametrize(
    ("right_count", "wrong_count", "missing"),
    [
        (LEAST_EVIDENCE - LEAST_OF_A_KIND, LEAST_OF_A_KIND, 0),
        (LEAST_OF_A_KIND, LEAST_EVIDENCE - LEAST_OF_A_KIND, 0),
        (LEAST_EVIDENCE - LEAST_OF_A_KIND - 1, LEAST_OF_A_KIND, 1),
        (LEAST_EVIDENCE, LEAST_OF_A_KIND - 1, 1),
        (LEAST_OF_A_KIND - 1, LEAST_EVIDENCE, 1),
    ],
)
def test_evidence_is_enough_with_so_much_of_both_kinds(
    right_count: int, wrong_count: int, missing: int
) -> None:
    wrong = np.arange(right_count + wrong_count) < wrong_count
    known = JudgedLookups(np.ones((len(wrong), len(FEATURES))), wrong, wrong)
    assert known.is_enough == (not missing)


def test_a_rule_is_due_after_growth() -> None:
    assert not is_due(LEAST_EVIDENCE - 1, learned_count=0)
    assert is_due(LEAST_EVIDENCE, learned_count=0)
    assert not is_due(LEAST_EVIDENCE + LEAST_GROWTH - 1, learned_count=LEAST_EVIDENCE)
    assert is_due(LEAST_EVIDENCE + LEAST_GROWTH, learned_count=LEAST_EVIDENCE)
    assert not is_due(10_000 + round(GROWTH * 10_000) - 1, learned_count=10_000)
    assert is_due(10_000 + round(GROWTH * 10_000), learned_count=10_000)


def test_without_enough_a_rule_is_cold_and_promises_nothing() -> None:
    for chain in ((NOTHING,), (judged(50),), (judged(50), judged(60))):
        rule = fitted(*chain)
        assert (rule.source, rule.risk_limit, rule.judged_count) == (RuleSource.COLD, 0.0, 0)
        assert rule.target == TARGET


def test_a_rule_says_what_it_was_learned_from() -> None:
    own, parent = judged(300, seed=1), judged(900)
    learned, borrowed = fitted(own, parent), fitted(judged(20, seed=1), NOTHING, parent)
    assert (learned.source, learned.judged_count) == (RuleSource.LEARNED, 300)
    assert learned.wrong_count == int(own.wrong.sum())
    assert (borrowed.source, borrowed.judged_count) == (RuleSource.BORROWED, 900)
    assert borrowed.wrong_count == int(parent.wrong.sum())
    assert learned.risk_limit > 0 and borrowed.risk_limit > 0


def test_little_evidence_stays_near_the_parent_and_much_goes_its_own_way() -> None:
    parent = judged(2_000)
    above, alone = (risk_at(fitted(known), 0.15) for known in (parent, judged(3_000, half=0.1, seed=2)))

    def way_gone(count: int) -> float:
        risks = [risk_at(fitted(judged(count, half=0.1, seed=seed), parent), 0.15) for seed in range(10, 18)]
        return float((np.mean(risks) - above) / (alone - above))

    ways = [way_gone(count) for count in (0, 2, 20, 2_000)]
    assert ways == sorted(ways)
    assert abs(ways[0]) < 0.05 and ways[1] < 0.4 and ways[3] == pytest.approx(1.0, abs=0.1)


def test_what_is_borrowed_is_known_less_well() -> None:
    parent = judged(2_000)
    rules = (fitted(parent), fitted(NOTHING, parent))
    own, borrowed = (rule.model.risk(features_at(0.1), z=1.0) for rule in rules)
    assert borrowed.high - borrowed.low > own.high - own.low
    assert rules[1].risk_limit <= rules[0].risk_limit


def test_would_be_hits_that_were_wrong_too_often_lower_the_limit() -> None:
    known = judged(1_000)
    near = known.features[:, FEATURES.index("distance")] < 5 * 0.1
    honest = JudgedLookups(known.features, known.wrong, np.zeros(1_000, dtype=bool))
    worse = JudgedLookups(known.features, known.wrong, known.wrong | near)
    assert fitted(worse).risk_limit < fitted(honest).risk_limit
    np.testing.assert_array_equal(fitted(worse).model.weights, fitted(honest).model.weights)


def test_what_is_explored_is_not_served_and_leaves_room_for_more() -> None:
    target = Target(wrong_share=0.05, basis=REQUESTS)
    limits = [
        fit_rule(judged(1_000), (), requests(), target, explored_share=explored).risk_limit
        for explored in (0.0, 0.5)
    ]
    assert limits[0] < limits[1]

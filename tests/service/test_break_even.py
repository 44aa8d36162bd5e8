"""Break-even: the hit rate at which looking up pays, and bypass below it."""

import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.break_even import (
    LEAST_PROBES,
    PROBED,
    PROBES,
    WINDOW,
    Bypasses,
    break_even_hit_rate,
    wilson,
)
from service.policy import Policy

COSTS = st.floats(0.001, 1000.0)


@given(COSTS, COSTS, COSTS)
def test_at_break_even_searching_costs_what_it_spares(lookup: float, hit: float, spared: float) -> None:
    policy = Policy(lookup_cost=lookup, hit_cost=hit, model_cost=hit + spared)
    rate = break_even_hit_rate(policy)
    assert rate is not None
    with_cache = lookup + rate * hit + (1 - rate) * policy.model_cost
    assert with_cache == pytest.approx(policy.model_cost)


def test_what_is_known_of_break_even() -> None:
    assert break_even_hit_rate(Policy(lookup_cost=1.0)) is None
    assert break_even_hit_rate(Policy(model_cost=4.0)) == 0.0
    assert break_even_hit_rate(Policy(lookup_cost=1.0, model_cost=4.0)) == 0.25
    assert break_even_hit_rate(Policy(lookup_cost=8.0, model_cost=4.0)) == 2.0
    assert break_even_hit_rate(Policy(lookup_cost=1.0, hit_cost=4.0, model_cost=4.0)) == math.inf


@given(st.integers(0, 300), st.integers(1, 300))
def test_a_wilson_interval_holds_the_shares_that_a_score_test_does_not_reject(count: int, total: int) -> None:
    count = min(count, total)
    low, high = wilson(count, total)
    assert 0 <= low <= count / total <= high <= 1
    for share in np.linspace(0.001, 0.999, 97):
        score = abs(count / total - share) / math.sqrt(share * (1 - share) / total)
        if abs(score - 1.96) > 0.01:
            assert (low <= share <= high) == (score < 1.96)


def test_of_nothing_any_share_is_possible() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def ask(bypasses: Bypasses, hits: Iterable[bool], *, break_even: float, category_id: int = 1) -> list[bool]:
    """Look up so often; of each whether it was searched."""
    searched = []
    for is_hit in hits:
        is_skipped = bypasses.is_skipped(category_id)
        searched.append(not is_skipped)
        if not is_skipped:
            bypasses.record(category_id, is_hit=is_hit, break_even=break_even)
    return searched


def test_nothing_is_searched_once_a_full_window_is_surely_below_break_even() -> None:
    bypasses = Bypasses()
    assert all(ask(bypasses, [False] * WINDOW, break_even=0.2))
    searched = ask(bypasses, [False] * 10 * PROBED, break_even=0.2)
    assert [place for place, own in enumerate(searched) if own] == list(
        range(PROBED - 1, 10 * PROBED, PROBED)
    )


@pytest.mark.parametrize("hit_count", [178, 200, 400])
def test_a_hit_rate_that_may_be_break_even_goes_on(hit_count: int) -> None:
    outcomes = np.random.default_rng(0).permutation(np.arange(WINDOW) < hit_count)
    assert wilson(hit_count, WINDOW)[1] >= 0.2
    assert all(ask(Bypasses(), [*outcomes, False], break_even=0.2))


def test_the_oldest_searches_leave_the_window() -> None:
    bypasses = Bypasses()
    assert all(ask(bypasses, [True] * WINDOW + [False] * (WINDOW // 2), break_even=0.2))
    searched = ask(bypasses, [False] * WINDOW, break_even=0.2)
    # The first at which at most so many of the last WINDOW were hits that the bound is below.
    left = max(count for count in range(WINDOW) if wilson(count, WINDOW)[1] < 0.2)
    assert searched.index(False) == WINDOW // 2 - left


def test_a_change_is_noticed_by_the_probes_and_a_new_window_begins() -> None:
    bypasses = Bypasses()
    ask(bypasses, [False] * WINDOW, break_even=0.2)
    ask(bypasses, [False] * PROBED * PROBES, break_even=0.2)
    searched = ask(bypasses, [True] * PROBED * PROBES, break_even=0.2)
    least = next(count for count in range(PROBES) if wilson(count, PROBES)[0] > 0.2)
    assert searched.index(True) == PROBED - 1
    assert searched[: PROBED * least].count(True) == least
    assert all(searched[PROBED * least :])
    assert all(ask(bypasses, [False] * (WINDOW - len(searched) + PROBED * least - 1), break_even=0.2))


def test_few_probes_do_not_decide() -> None:
    bypasses = Bypasses()
    ask(bypasses, [False] * WINDOW, break_even=0.01)
    searched = ask(bypasses, [True] * PROBED * LEAST_PROBES, break_even=0.01)
    assert searched.count(True) == LEAST_PROBES
    assert all(ask(bypasses, [True] * 50, break_even=0.01))


@given(st.lists(st.booleans(), max_size=50), st.floats(0, 2))
def test_before_a_full_window_everything_is_searched(hits: list[bool], break_even: float) -> None:
    assert all(ask(Bypasses(), hits, break_even=break_even))


def test_categories_are_apart_and_the_one_asked_longest_ago_is_forgotten() -> None:
    bypasses = Bypasses(categories=2)
    ask(bypasses, [False] * WINDOW, break_even=0.5, category_id=1)
    ask(bypasses, [False], break_even=0.5, category_id=2)
    assert bypasses.is_skipped(1) and not bypasses.is_skipped(2)
    ask(bypasses, [False], break_even=0.5, category_id=3)
    assert not bypasses.is_skipped(1)

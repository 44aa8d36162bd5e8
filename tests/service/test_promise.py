"""The limit that keeps a promise, against every limit tried one by one, and on requests drawn as the model
says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.promise import HITS, HORIZON, RECALIBRATION, REQUESTS, Target, correction_of, risk_limit
from service.risk import RiskModel, learn_risk, sigmoid

Floats = NDArray[np.float64]
WIDTH = 3  # features here: the model takes any number
seeds = st.integers(0, 2**32 - 1)
targets = st.builds(
    Target,
    wrong_share=st.floats(0.005, 0.5),
    basis=st.sampled_from((HITS, REQUESTS)),
    confidence=st.floats(0.5, 0.99),
)


def drawn_requests(rng: np.random.Generator, count: int) -> Floats:
    """Features of requests: a constant and what differs."""
    return np.column_stack([np.ones(count), rng.standard_normal((count, WIDTH - 1))])


def drawn_model(rng: np.random.Generator, *, width: float = 0.1) -> RiskModel:
    """Weights that are known that well; most requests are right."""
    spread = rng.standard_normal((WIDTH, WIDTH)) * width
    weights = np.array([-2.5, 1.5, -1.0]) + 0.5 * rng.standard_normal(WIDTH)
    return RiskModel(weights, spread @ spread.T + 1e-6 * np.eye(WIDTH))


def high_share(
    model: RiskModel, requests: Floats, target: Target, limit: float, *, served: float, correction: float
) -> float:
    """The upper bound of the share of wrong ones where what is within a limit is served; a loop."""
    wrong, hits = 0.0, 0.0
    gradient = np.zeros(model.weights.shape)
    for features in requests:
        risk = sigmoid(float(features @ model.weights))
        if risk <= limit + 1e-9:
            hits += served
            wrong += served * min(1.0, correction * risk)
            gradient += served * correction * risk * (1.0 - risk) * features
    count = len(requests)
    variance = float(gradient @ model.covariance @ gradient) / count**2 + wrong / count / HORIZON
    high = wrong / count + target.z * math.sqrt(variance)
    return high if target.basis == REQUESTS else high / (hits / count)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, target=targets, served=st.floats(0.5, 1.0), correction=st.floats(1.0, 3.0))
def test_the_limit_is_the_largest_of_all_that_keep_the_promise(
    seed: int, target: Target, served: float, correction: float
) -> None:
    rng = np.random.default_rng(seed)
    model, requests = drawn_model(rng), drawn_requests(rng, int(rng.integers(1, 60)))
    requests = requests[rng.integers(len(requests), size=len(requests))]  # some are equal
    known = {"served": served, "correction": correction}
    risks = sorted(sigmoid(float(features @ model.weights)) for features in requests)
    tried = [(risk, high_share(model, requests, target, risk, **known)) for risk in risks]
    if any(abs(high - target.wrong_share) < 1e-9 for _, high in tried):
        return  # either is right
    kept = [risk for risk, high in tried if high <= target.wrong_share]
    limit = risk_limit(model, requests, target, served_share=served, correction=correction)
    assert limit == pytest.approx(max(kept, default=0.0), abs=1e-9)


def test_without_requests_nothing_is_promised() -> None:
    model = drawn_model(np.random.default_rng(0))
    assert risk_limit(model, np.empty((0, WIDTH)), Target(wrong_share=0.5)) == 0.0


def test_where_no_request_is_safe_enough_none_is_served() -> None:
    rng = np.random.default_rng(0)
    doubtful = RiskModel(np.array([0.0, 0.0, 0.0]), 0.01 * np.eye(WIDTH))  # each risk is a half
    for basis in (HITS, REQUESTS):
        target = Target(wrong_share=1e-4, basis=basis)
        assert risk_limit(doubtful, drawn_requests(rng, 500), target) == 0.0


def test_requests_of_one_risk_are_served_all_or_none() -> None:
    """A tenth of each of a hundred is more than 5 in all; the first 40 of them alone are not."""
    model = RiskModel(np.array([math.log(1 / 9), 0.0, 0.0]), 1e-9 * np.eye(WIDTH))
    requests = np.tile([1.0, 0.3, -0.2], (100, 1))
    assert risk_limit(model, requests, Target(wrong_share=0.05, basis=REQUESTS)) == 0.0
    assert risk_limit(model, requests, Target(wrong_share=0.12, basis=REQUESTS)) == pytest.approx(0.1)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, target=targets, more=st.floats(1.0, 3.0))
def test_who_asks_for_less_is_served_no_less(seed: int, target: Target, more: float) -> None:
    rng = np.random.default_rng(seed)
    model, requests = drawn_model(rng), drawn_requests(rng, 80)

    def limit_of(**changes: float) -> float:
        values = {"wrong_share": target.wrong_share, "confidence": target.confidence} | changes
        return risk_limit(model, requests, Target(basis=target.basis, **values))

    limit = limit_of()
    assert limit_of(wrong_share=target.wrong_share * more) >= limit
    assert limit_of(confidence=0.5 + (target.confidence - 0.5) / more) >= limit
    surer = RiskModel(model.weights, model.covariance / more)
    assert risk_limit(surer, requests, target) >= limit
    assert risk_limit(model, requests, target, correction=more) <= limit


@settings(max_examples=40, deadline=None)
@given(seed=seeds, target=targets)
def test_a_share_of_requests_allows_at_least_what_the_same_share_of_hits_does(
    seed: int, target: Target
) -> None:
    rng = np.random.default_rng(seed)
    model, requests = drawn_model(rng), drawn_requests(rng, 80)
    limits = [
        risk_limit(
            model,
            requests,
            Target(wrong_share=target.wrong_share, basis=basis, confidence=target.confidence),
        )
        for basis in (HITS, REQUESTS)
    ]
    assert limits[0] <= limits[1]


def test_a_confidence_of_a_half_asks_for_the_mean_alone() -> None:
    assert Target(wrong_share=0.1, confidence=0.5).z == 0.0
    assert Target(wrong_share=0.1, confidence=0.95).z == pytest.approx(1.6449, abs=1e-4)


def test_a_correction_raises_what_was_told_too_low_and_never_lowers() -> None:
    rng = np.random.default_rng(0)
    model, features = drawn_model(rng), drawn_requests(rng, 1_000)
    expected = float(model.probabilities(features).sum())
    wrong = np.zeros(1_000, dtype=bool)
    assert correction_of(model, features, wrong) == 1.0
    wrong[: round(2 * expected)] = True
    found = correction_of(model, features, wrong)
    assert found == pytest.approx((RECALIBRATION + wrong.sum()) / (RECALIBRATION + expected))
    assert 1.8 < found < 2.0
    assert correction_of(model, features[:0], wrong[:0]) == 1.0
    assert correction_of(model, features[:2], np.ones(2, dtype=bool)) < 1.2  # two say little


@pytest.mark.parametrize("basis", [HITS, REQUESTS])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_promise_holds_in_as_many_worlds_as_the_confidence_says(basis: str, confidence: float) -> None:
    """Worlds whose weights are drawn from the prior: learned from 400 judged requests, then served.

    The posterior is skewed and the bound is a normal distribution's: of 1,500 worlds 0.96 (hits) and 0.93
    (requests) kept a promise of 0.95, and 0.86 and 0.82 one of 0.8.
    """
    worlds = 400
    rng = np.random.default_rng(1)
    target = Target(wrong_share=0.05, basis=basis, confidence=confidence)
    prior = RiskModel(np.array([-1.5, 1.0, 0.0]), np.eye(WIDTH))
    kept, served_count = 0, 0
    for _ in range(worlds):
        weights = rng.multivariate_normal(prior.weights, prior.covariance)
        judged = drawn_requests(rng, 400)
        wrong = rng.random(400) < RiskModel(weights, prior.covariance).probabilities(judged)
        model = learn_risk(judged, wrong, prior=prior)
        limit = risk_limit(model, drawn_requests(rng, HORIZON), target)
        coming = drawn_requests(rng, HORIZON)
        coming_wrong = rng.random(HORIZON) < RiskModel(weights, prior.covariance).probabilities(coming)
        served = model.probabilities(coming) <= limit
        asked = served.sum() if basis == HITS else HORIZON
        kept += bool((served & coming_wrong).sum() <= target.wrong_share * max(asked, 1))
        served_count += int(served.sum())
    assert kept >= (confidence - 0.03) * worlds
    assert served_count > 0.2 * worlds * HORIZON  # and it is not kept by serving nothing

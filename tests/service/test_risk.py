"""The risk of a hit: what speaks for an answer, and what is learned of it, each against a naive oracle."""

import math
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from service.risk import (
    FAR,
    FEATURES,
    PARENT_VARIANCE,
    PRIOR_VARIANCE,
    RiskModel,
    borrowed,
    learn_risk,
    no_evidence,
    sigmoid,
    weigh,
)

Floats = NDArray[np.float64]
Shortlist = tuple[list[float], list[int], list[float] | None]


@st.composite
def shortlists(draw: st.DrawFn, *, verified: bool | None = None) -> Shortlist:
    """Distances in their order, answers, and a verifier's word, or none."""
    count = draw(st.integers(1, 16))
    distances = st.one_of(st.floats(0.0, 2.0), st.sampled_from([0.0, 1e-7, 0.05, 0.3, 2.0]))
    answers = draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    probabilities = st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.0, 1.0]))
    asked = draw(st.booleans()) if verified is None else verified
    return (
        sorted(draw(st.lists(distances, min_size=count, max_size=count))),
        answers,
        draw(st.lists(probabilities, min_size=count, max_size=count)) if asked else None,
    )


def odds(probability: float) -> float:
    """Of a probability that is no surer than 1e-4."""
    bounded = min(max(probability, 1e-4), 1 - 1e-4)
    return bounded / (1 - bounded)


def weights_of(shortlist: Shortlist) -> dict[int, float]:
    """What speaks for each answer, summed naively."""
    distances, answers, probabilities = shortlist
    return {
        answer: sum(
            math.exp(-distances[i] / 0.06) if probabilities is None else odds(probabilities[i])
            for i in range(len(answers))
            if answers[i] == answer
        )
        for answer in answers
    }


def named(features: Sequence[float]) -> dict[str, float]:
    """Features by name."""
    return dict(zip(FEATURES, features, strict=True))


@given(shortlists())
def test_the_answer_that_most_speaks_for_is_chosen_and_the_best_entry_of_it(shortlist: Shortlist) -> None:
    distances, answers, probabilities = shortlist
    position = weigh(*shortlist).position
    weights = weights_of(shortlist)
    assert weights[answers[position]] >= max(weights.values()) * (1 - 1e-9)
    own = [i for i in range(len(answers)) if answers[i] == answers[position]]
    if probabilities is None:
        assert distances[position] == min(distances[i] for i in own)
    else:
        assert odds(probabilities[position]) == max(odds(probabilities[i]) for i in own)


@given(shortlists())
def test_features_are_finite_and_say_what_they_say(shortlist: Shortlist) -> None:
    distances, answers, probabilities = shortlist
    weighed = weigh(*shortlist)
    assert all(math.isfinite(feature) and abs(feature) < 50 for feature in weighed.features)
    found, own = named(weighed.features), answers[weighed.position]
    others = [i for i in range(len(answers)) if answers[i] != own]
    distance = distances[weighed.position]
    assert found["one"] == 1.0
    assert found["distance"] == pytest.approx(5 * distance)
    assert found["log_distance"] == pytest.approx(math.log(distance + 0.01))
    nearest = min([FAR, *(distances[i] for i in others)])
    assert found["margin"] == pytest.approx(5 * (nearest - distance))
    assert found["agreeing"] == pytest.approx(math.log(len(answers) - len(others)))
    for name, scale, divisor in (("narrow_mass", 0.06, 3.0), ("wide_mass", 0.12, 1.0)):
        mass = sum(math.exp(-d / scale) for i, d in enumerate(distances) if i not in others)
        against = math.exp(-0.45 / scale) + sum(math.exp(-distances[i] / scale) for i in others)
        assert found[name] == pytest.approx(math.log(mass / against) / divisor, abs=1e-9)
    if probabilities is None:
        assert found["verifier"] == found["other_verifier"] == 0.0
    else:
        assert found["verifier"] == pytest.approx(math.log(odds(probabilities[weighed.position])))
        other = max([-9.0, *(math.log(odds(probabilities[i])) for i in others)])
        assert found["other_verifier"] == pytest.approx(other)


@given(shortlists(), st.randoms(use_true_random=False))
def test_how_answers_are_named_and_equally_distant_ones_ordered_changes_nothing(
    shortlist: Shortlist, rng: Random
) -> None:
    distances, answers, probabilities = shortlist
    weights = sorted(weights_of(shortlist).values())
    if len(weights) > 1 and weights[-1] <= weights[-2] * (1 + 1e-9):
        return  # of equal ones the first is chosen
    renamed = {answer: f"answer {answer}".encode() for answer in set(answers)}
    order = sorted(range(len(answers)), key=lambda i: (distances[i], rng.random()))
    shuffled = weigh(
        [distances[i] for i in order],
        [renamed[answers[i]] for i in order],
        None if probabilities is None else [probabilities[i] for i in order],
    )
    assert shuffled.features == pytest.approx(weigh(*shortlist).features, abs=1e-9)


def test_a_distance_below_zero_by_rounding_is_none() -> None:
    assert weigh([-1e-7, 0.2], [1, 2], None).features == pytest.approx(
        weigh([0.0, 0.2], [1, 2], None).features, abs=1e-5
    )


def test_an_entry_with_another_answer_close_by_lowers_the_margin_and_the_masses() -> None:
    alone, contested = (named(weigh(d, a, None).features) for d, a in (([0.1], [1]), ([0.1, 0.12], [1, 2])))
    for name in ("margin", "narrow_mass", "wide_mass"):
        assert contested[name] < alone[name]


# What is learned


def evidence(rng: np.random.Generator, count: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Features as of lookups, and whether they were wrong."""
    features = rng.standard_normal((count, len(FEATURES))) * rng.uniform(0.2, 4.0, len(FEATURES))
    features[:, 0] = 1.0
    weights = rng.standard_normal(len(FEATURES))
    return features, rng.random(count) < expit(features @ weights)


def loss(weights: Floats, features: Floats, wrong: NDArray[np.bool_], prior: RiskModel) -> float:
    """Minus the log of the posterior, but for a constant."""
    logits = features @ weights
    away = weights - prior.weights
    data = np.logaddexp(0, logits).sum() - logits[wrong].sum()
    return float(data + 0.5 * away @ np.linalg.solve(prior.covariance, away))


def gradient(weights: Floats, features: Floats, wrong: NDArray[np.bool_], prior: RiskModel) -> Floats:
    """Of the loss."""
    away = np.linalg.solve(prior.covariance, weights - prior.weights)
    result: Floats = features.T @ (expit(features @ weights) - wrong) + away
    return result


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 300))
def test_what_is_learned_is_the_mode_and_the_curvature_there(seed: int, count: int) -> None:
    features, wrong = evidence(np.random.default_rng(seed), count)
    prior = no_evidence()
    model = learn_risk(features, wrong, prior=prior)
    assert np.abs(gradient(model.weights, features, wrong, prior)).max() < 1e-3
    found = minimize(loss, prior.weights, (features, wrong, prior), jac=gradient, method="BFGS")
    assert loss(model.weights, features, wrong, prior) <= found.fun + 1e-6
    risks = expit(features @ model.weights)
    hessian = (features * (risks * (1 - risks))[:, None]).T @ features + np.linalg.inv(prior.covariance)
    np.testing.assert_allclose(model.covariance @ hessian, np.eye(len(FEATURES)), atol=1e-3)
    np.testing.assert_allclose(model.covariance, model.covariance.T, atol=1e-9)
    assert np.linalg.eigvalsh(model.covariance).min() > 0


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_evidence_that_can_be_told_apart_keeps_the_weights_finite(scale: float) -> None:
    rng = np.random.default_rng(0)
    features, _ = evidence(rng, 500)
    features[:, 1:] *= scale
    wrong = features[:, 3] > 0
    model = learn_risk(features, wrong, prior=no_evidence())
    assert np.abs(model.weights).max() < 50
    assert np.abs(gradient(model.weights, features, wrong, no_evidence())).max() < 1e-2
    assert ((model.probabilities(features) > 0.5) == wrong).mean() > 0.98


def test_evidence_of_one_kind_and_none_at_all_are_learned_from() -> None:
    features, _ = evidence(np.random.default_rng(0), 200)
    model = learn_risk(features, np.zeros(200, dtype=bool), prior=no_evidence())
    assert np.isfinite(model.weights).all() and model.probabilities(features).mean() < 0.05
    unchanged = learn_risk(features[:0], np.zeros(0, dtype=bool), prior=model)
    np.testing.assert_allclose(unchanged.weights, model.weights)
    np.testing.assert_allclose(unchanged.covariance, model.covariance, atol=1e-9)


def test_evidence_narrows_and_borrowing_widens_the_interval() -> None:
    features, wrong = evidence(np.random.default_rng(1), 300)
    asked = features[0]
    model = learn_risk(features, wrong, prior=no_evidence())
    widths = [
        known.risk(asked, z=1.0).high - known.risk(asked, z=1.0).low
        for known in (model, borrowed(model), no_evidence())
    ]
    assert widths == sorted(widths) and widths[0] < widths[1]
    np.testing.assert_array_equal(borrowed(model).weights, model.weights)
    np.testing.assert_allclose(
        borrowed(model).covariance - model.covariance, PARENT_VARIANCE * np.eye(len(FEATURES)), atol=1e-12
    )
    np.testing.assert_allclose(no_evidence().covariance, PRIOR_VARIANCE * np.eye(len(FEATURES)))


@given(st.floats(-1e6, 1e6))
def test_a_logit_is_a_probability_one_by_one_as_in_a_batch(logit: float) -> None:
    model = RiskModel(np.array([logit]), np.zeros((1, 1)))
    assert sigmoid(logit) == pytest.approx(float(expit(logit)), rel=1e-9, abs=1e-300)
    assert model.probabilities(np.ones((1, 1)))[0] == pytest.approx(sigmoid(logit), abs=1e-12)
    assert model.risk((1.0,), z=2.0) == pytest.approx((sigmoid(logit),) * 3)


@given(seed=st.integers(0, 2**32 - 1), z=st.floats(0.0, 3.0))
def test_an_interval_holds_the_risk_and_grows_with_z(seed: int, z: float) -> None:
    rng = np.random.default_rng(seed)
    features, wrong = evidence(rng, 50)
    model = learn_risk(features, wrong, prior=no_evidence())
    risk, wider = (model.risk(features[0], z=width) for width in (z, z + 0.5))
    assert 0 <= wider.low <= risk.low <= risk.probability <= risk.high <= wider.high <= 1

"""The risk of a hit: how probable it is that the best of the nearest entries would be a wrong answer.

Distances alone do not tell: what else lies near does. Entries with the same response speak for each other, an
entry with another response close by speaks against, and a verifier, where one is active, has its say. These
are the features of a logistic regression that each category learns from its own evidence, with a Gaussian
prior (its parent's posterior, so that a category with little evidence borrows), and a Laplace approximation
of the posterior, so that what is not known well counts as risk. Spiegelhalter and Lauritzen, Sequential
updating of conditional probabilities on directed graphical structures, Networks 20, 1990.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import sqrt as _sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FEATURES = (
    "one",
    "verifier",
    "other_verifier",
    "distance",
    "log_distance",
    "margin",
    "narrow_mass",
    "wide_mass",
    "agreeing",
)
"""Of a shortlist, in order; see `weigh`."""

FAR = 0.7
"""Cosine distance from which on an entry says nothing of another."""

PRIOR_VARIANCE = 3.0
"""Of each weight, where there is no parent to borrow from."""

PARENT_VARIANCE = 0.25
"""Added to the parent's: how much the weights of a category differ from its parent's."""

_NARROW = 0.06  # the wide mass falls half as fast, so it is the root of the narrow one
_BACKGROUND = math.exp(-0.45 / _NARROW)  # an entry 0.45 away is always assumed, with another response
_LEAST_DISTANCE = 0.01
_LEAST_PROBABILITY = 1e-4
_MOST_LOGIT = 9.0
_STEPS = 30
_LONGEST_STEP = 2.0
_CONVERGED = 1e-6


class Weighed(NamedTuple):
    """The entry of a shortlist that would be served, and the features of its risk."""

    position: int
    features: tuple[float, ...]


def weigh(
    distances: Sequence[float], answers: Sequence[Hashable], probabilities: Sequence[float] | None
) -> Weighed:
    """Choose the answer that the shortlist speaks for most, of its entries the best, and say why.

    distances: cosine distances, ascending, at least one. answers: equal where the responses are.
    probabilities: a verifier's, that an entry fits; None where it was not asked. An answer's weight is the
    sum over its entries of a verifier's odds, or without one of exp(-distance / 0.06).
    """
    narrow = [math.exp(-distance / _NARROW) for distance in distances]
    logits = None if probabilities is None else [_logit(probability) for probability in probabilities]
    heights = narrow if logits is None else [math.exp(logit) for logit in logits]
    weights: dict[Hashable, float] = {}
    for answer, height in zip(answers, heights, strict=True):
        weights[answer] = weights.get(answer, 0.0) + height
    chosen = max(weights, key=weights.__getitem__)  # of equal ones the one that comes first
    position, agreeing = -1, 0
    own_narrow, own_wide = 0.0, 0.0
    others_narrow, others_wide = _BACKGROUND, _sqrt(_BACKGROUND)
    other_distance, other_logit = FAR, -_MOST_LOGIT
    for i, answer in enumerate(answers):
        mass = narrow[i]
        if answer == chosen:
            agreeing += 1
            own_narrow += mass
            own_wide += _sqrt(mass)
            if position < 0 or heights[i] > heights[position]:
                position = i
            continue
        others_narrow += mass
        others_wide += _sqrt(mass)
        if distances[i] < other_distance:
            other_distance = distances[i]
        if logits is not None and logits[i] > other_logit:
            other_logit = logits[i]
    distance = max(distances[position], 0.0)
    features = (
        1.0,
        0.0 if logits is None else logits[position],
        0.0 if logits is None else other_logit,
        5.0 * distance,
        math.log(distance + _LEAST_DISTANCE),
        5.0 * (other_distance - distance),
        math.log(own_narrow / others_narrow) / 3.0,
        math.log(own_wide / others_wide),
        math.log(agreeing),
    )
    return Weighed(position, features)


def _logit(probability: float) -> float:
    clipped = min(max(probability, _LEAST_PROBABILITY), 1.0 - _LEAST_PROBABILITY)
    return math.log(clipped / (1.0 - clipped))


class Risk(NamedTuple):
    """The probability that an answer is wrong, with the bounds of its interval; all in [0, 1]."""

    probability: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class RiskModel:
    """A Gaussian over the weights of the features. weights: float64 [f]; covariance: float64 [f, f]."""

    weights: NDArray[np.float64]
    covariance: NDArray[np.float64]

    def risk(self, features: Sequence[float], *, z: float) -> Risk:
        """The risk of one hit; the interval is z standard deviations of its logit to either side."""
        x = np.asarray(features)
        logit = float(x @ self.weights)
        width = z * math.sqrt(max(float(x @ self.covariance @ x), 0.0))
        return Risk(sigmoid(logit), sigmoid(logit - width), sigmoid(logit + width))

    def probabilities(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probabilities that hits with these features, float64 [n, f], are wrong, float64 [n]."""
        return _sigmoids(features @ self.weights)


def no_evidence() -> RiskModel:
    """What is known of a category without evidence and without parent: nothing."""
    count = len(FEATURES)
    return RiskModel(np.zeros(count), PRIOR_VARIANCE * np.eye(count))


def borrowed(parent: RiskModel) -> RiskModel:
    """What is known of a category by its parent alone."""
    return RiskModel(parent.weights, parent.covariance + PARENT_VARIANCE * np.eye(len(parent.weights)))


def learn_risk(features: NDArray[np.float64], wrong: NDArray[np.bool_], *, prior: RiskModel) -> RiskModel:
    """The posterior after evidence: its mode, by Newton's method, and the inverse Hessian there.

    features: float64 [n, f]; wrong: bool [n], what the hits were, or would have been.
    """
    precision = np.linalg.inv(prior.covariance)
    weights = prior.weights.copy()
    hessian = precision
    for _ in range(_STEPS):
        probabilities = _sigmoids(features @ weights)
        gradient = features.T @ (probabilities - wrong) + precision @ (weights - prior.weights)
        variances = probabilities * (1.0 - probabilities)
        hessian = (features * variances[:, None]).T @ features + precision
        step = np.linalg.solve(hessian, gradient)
        longest = float(np.abs(step).max())
        weights = weights - step * min(1.0, _LONGEST_STEP / max(longest, _CONVERGED))
        if longest < _CONVERGED:
            break
    return RiskModel(weights, np.linalg.inv(hessian))


def sigmoid(logit: float) -> float:
    """The probability of a logit."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-min(logit, 700.0)))
    odds = math.exp(max(logit, -700.0))
    return odds / (1.0 + odds)


def _sigmoids(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return result

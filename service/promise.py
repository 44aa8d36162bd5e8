"""The promise of a category: of all hits, or of all requests, at most a share is wrong, with confidence.

Requests are ordered by the risk of the hit that each would be. The rule serves those up to a limit, and the
limit is the largest at which the promise holds for requests like the recent ones: the mean risk of what would
be served, plus as many standard deviations as the confidence asks for. Two things make it uncertain: the
weights of the risk are known from so much evidence only, and of so many requests more may turn out wrong than
is probable.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from service.risk import RiskModel

HITS, REQUESTS = "hits", "requests"
BASES = (HITS, REQUESTS)

HORIZON = 3_000
"""Requests over which the promise shall hold: more wrong ones than expected among fewer are chance."""

RECALIBRATION = 10.0
"""Judged would-be hits that weigh as much as the model's own word on how many of them are wrong."""

_SAME_RISK = 1e-9  # what a batch and a single lookup may differ by


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What an operator asks for: at most `wrong_share` wrong ones, of `basis`, with `confidence`."""

    wrong_share: float
    basis: str = HITS
    confidence: float = 0.95

    @property
    def z(self) -> float:
        """Standard deviations to one side that hold the confidence."""
        return NormalDist().inv_cdf(self.confidence)


def risk_limit(
    model: RiskModel,
    requests: NDArray[np.float64],
    target: Target,
    *,
    served_share: float = 1.0,
    correction: float = 1.0,
) -> float:
    """The largest risk to serve, 0 where nothing can be promised.

    requests: float64 [n, f], features of recent requests, served or not. served_share: of what is within the
    limit, less what is explored. correction: of the model's risks, see `correction_of`.
    """
    if len(requests) == 0:
        return 0.0
    risks = model.probabilities(requests)
    order = np.argsort(risks, kind="stable")
    features, risks = requests[order], risks[order]
    variances = (risks * (1.0 - risks))[:, None] * features
    counts = np.arange(1, len(risks) + 1)
    of_all = served_share / len(risks)
    mean = np.minimum(correction * risks, 1.0).cumsum() * of_all
    # The gradient of the mean by the weights: what their uncertainty makes of it.
    gradient = correction * np.cumsum(variances, axis=0) * of_all
    spread = np.einsum("nf,fg,ng->n", gradient, model.covariance, gradient)
    high = mean + target.z * np.sqrt(np.maximum(spread, 0.0) + mean / HORIZON)
    if target.basis == HITS:
        high = high / (counts * of_all)
    # All of an equal risk are served, or none.
    is_last = np.append(np.diff(risks) > _SAME_RISK, True)
    kept = np.flatnonzero(is_last & (high <= target.wrong_share))
    return float(risks[kept[-1]]) if len(kept) else 0.0


def correction_of(model: RiskModel, features: NDArray[np.float64], wrong: NDArray[np.bool_]) -> float:
    """By what the model's risks are to be multiplied, by what came of would-be hits that were judged; at
    least 1.

    features: float64 [n, f]; wrong: bool [n].
    """
    expected = float(model.probabilities(features).sum())
    return max(1.0, (RECALIBRATION + float(wrong.sum())) / (RECALIBRATION + expected))

"""From judged lookups to a rule: what a category's own evidence says, and what it borrows from its
parents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.decision_rules import DecisionRule, RuleSource
from service.evidence import Evidence
from service.promise import HORIZON, Target, correction_of, risk_limit
from service.risk import FEATURES, borrowed, learn_risk, no_evidence

LEAST_EVIDENCE = 100
"""Judged lookups before a rule is learned from them."""

LEAST_OF_A_KIND = 5
"""Of right and of wrong ones among them."""

EVIDENCE_KEPT = 5_000
"""Latest judged lookups of a category that are learned from."""

LEAST_REQUESTS = 300
"""Lookups of its own that a limit is chosen for; of fewer the evidence counts as lookups, too."""

GROWTH = 0.05
"""Of the evidence, after which a rule is learned anew."""

LEAST_GROWTH = 25


@dataclass(frozen=True, slots=True, eq=False)
class JudgedLookups:
    """Evidence as arrays. features: float64 [n, f]; wrong, would_hit: bool [n]; would_hit: it was served, or
    withheld (evidence)."""

    features: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    would_hit: NDArray[np.bool_]

    @classmethod
    def of(cls, judged: Sequence[tuple[Evidence, bool]]) -> "JudgedLookups":
        """Of lookups and whether their answer was, or would have been, wrong."""
        return cls(
            np.array([evidence.features for evidence, _ in judged], dtype=np.float64).reshape(
                len(judged), len(FEATURES)
            ),
            np.array([wrong for _, wrong in judged], dtype=bool),
            np.array([evidence.was_served or evidence.is_withheld for evidence, _ in judged], dtype=bool),
        )

    @property
    def is_enough(self) -> bool:
        """Whether a rule can be learned from it."""
        wrong_count = int(self.wrong.sum())
        right_count = len(self.wrong) - wrong_count
        return len(self.wrong) >= LEAST_EVIDENCE and min(wrong_count, right_count) >= LEAST_OF_A_KIND


def is_due(count: int, *, learned_count: int) -> bool:
    """Whether evidence has grown enough, since a rule was learned from `learned_count` of it."""
    return count >= LEAST_EVIDENCE and count - learned_count >= max(LEAST_GROWTH, GROWTH * learned_count)


def requests_like(latest: NDArray[np.float64], pools: Sequence[JudgedLookups]) -> NDArray[np.float64]:
    """Features of lookups like those that come, float64 [n, f], for which a limit is chosen.

    latest: float64 [m, f], a category's own. pools: evidence of it and of its ancestors, its own first.
    """
    if len(latest) >= LEAST_REQUESTS:
        return latest
    widest = next((judged for judged in pools if len(judged.wrong) >= LEAST_REQUESTS), pools[0])
    return np.concatenate([latest, widest.features[-HORIZON:]])


def fit_rule(
    own: JudgedLookups,
    ancestors: Sequence[JudgedLookups],
    requests: NDArray[np.float64],
    target: Target,
    *,
    explored_share: float,
    target_at_load: Target | None = None,
) -> DecisionRule:
    """The rule of a category.

    own: its evidence and that of its descendants. ancestors: the same of each of its ancestors, its parent
    first, so evidence is in all of those above it: what a parent says is shrunk towards, not added. requests:
    float64 [n, f], features of recent lookups. explored_share: of what would be hits. target_at_load: what is
    promised at a load of 1; None: the same.
    """
    chain = [own, *ancestors]
    enough = [judged for judged in chain if judged.is_enough]
    model = no_evidence()
    for judged in reversed(chain):
        if judged is not chain[-1]:
            model = borrowed(model)
        model = learn_risk(judged.features, judged.wrong, prior=model)
    if not enough:
        return DecisionRule(
            source=RuleSource.COLD,
            model=model,
            risk_limit=0.0,
            target=target,
            target_at_load=target_at_load,
            explored_share=explored_share,
        )
    nearest = enough[0]
    would_hit = nearest.would_hit
    correction = correction_of(model, nearest.features[would_hit], nearest.wrong[would_hit])

    def limit_for(promised: Target) -> float:
        served_share = 1.0 - explored_share
        return risk_limit(model, requests, promised, served_share=served_share, correction=correction)

    return DecisionRule(
        source=RuleSource.LEARNED if nearest is own else RuleSource.BORROWED,
        model=model,
        risk_limit=limit_for(target),
        risk_limit_at_load=None if target_at_load is None else limit_for(target_at_load),
        target=target,
        target_at_load=target_at_load,
        explored_share=explored_share,
        judged_count=len(nearest.wrong),
        wrong_count=int(nearest.wrong.sum()),
    )

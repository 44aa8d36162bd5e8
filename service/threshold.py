"""The decision: is the nearest entry near enough to answer for this request?"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Distances are cosine distances in [0, 2]; `distance` None: no candidate."""

    within: bool
    distance: float | None
    threshold: float


def applied_threshold(policy_threshold: float, asked: float | None) -> float:
    """A caller may only be stricter than the operator."""
    return policy_threshold if asked is None else min(policy_threshold, asked)


def decide(distance: float | None, threshold: float) -> Decision:
    """A hit needs a candidate at most `threshold` away."""
    return Decision(
        within=distance is not None and distance <= threshold, distance=distance, threshold=threshold
    )

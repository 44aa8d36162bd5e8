"""What decides in `nearhit bench cache`: nearhit's rule, and those of its rivals on the same neighbours."""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from scripts.bench.cache_replay import Shortlist
from scripts.bench.cache_streams import Stream
from service.decision_rules import DecisionRule
from service.evidence import Evidence
from service.promise import HORIZON, Target
from service.risk import sigmoid, weigh
from service.rule_fit import EVIDENCE_KEPT, JudgedLookups, fit_rule, is_due

REDISVL_DISTANCE = 0.1
"""Its default: a cosine distance."""

GPTCACHE_DISTANCE = 0.4
"""Its default threshold of 0.8 on 4 - squared Euclidean distance, as a cosine distance of unit vectors."""

CEILING = 0.5
EXPLORED_SHARE = 0.02
VERIFIED_COUNT = 8


class StaticThreshold:
    """Serve the nearest entry within a cosine distance."""

    def __init__(self, distance: float) -> None:
        self.distance = distance

    def serve(self, shortlist: Shortlist) -> int | None:
        """As DecidingRule."""
        return int(shortlist.entries[0]) if shortlist.distances[0] <= self.distance else None

    def learn(self, shortlist: Shortlist, stream: Stream) -> bool:
        """Nothing."""
        return True


class VerifiedRule:
    """nearhit's, by the code that serves: features, risk, limit; evidence from what was not served alone."""

    def __init__(self, stream: Stream, target: Target, *, seed: int) -> None:
        self._stream = stream
        self._target = target
        self._rng = np.random.default_rng(seed)
        self._judged: list[tuple[Evidence, bool]] = []
        self._requests: list[tuple[float, ...]] = []
        self._learned_count = 0
        self._last: tuple[int, Evidence] | None = None
        self.rule: DecisionRule | None = None
        self.explored_count = 0

    def serve(self, shortlist: Shortlist) -> int | None:
        """As DecidingRule."""
        self._last = None
        near = shortlist.distances <= CEILING
        if not near.any():
            return None
        entries, distances = shortlist.entries[near], shortlist.distances[near]
        judge = self._stream.probabilities
        if judge is not None:
            entries, distances = entries[:VERIFIED_COUNT], distances[:VERIFIED_COUNT]
        answers = self._stream.answers[entries].tolist()
        probabilities = None if judge is None else judge(shortlist.request, entries.tolist())
        weighed = weigh(distances.tolist(), answers, probabilities)
        self._requests.append(weighed.features)
        served = int(entries[weighed.position])
        risk = 1.0 if self.rule is None else sigmoid(float(np.dot(weighed.features, self.rule.model.weights)))
        would_hit = self.rule is not None and risk <= self.rule.risk_limit
        is_explored = bool(would_hit and self._rng.random() < EXPLORED_SHARE)
        self.explored_count += is_explored
        self._last = (
            served,
            Evidence(was_served=False, is_withheld=is_explored, sketch=bytes(32), features=weighed.features),
        )
        return served if would_hit and not is_explored else None

    def learn(self, shortlist: Shortlist, stream: Stream) -> bool:
        """As DecidingRule."""
        if self._last is not None:
            self._judge(*self._last, request=shortlist.request, stream=stream)
        return True

    def _judge(self, entry: int, evidence: Evidence, *, request: int, stream: Stream) -> None:
        is_right = stream.is_right(request, entry)
        if is_right is None:
            return
        self._judged.append((evidence, not is_right))
        if is_due(len(self._judged), learned_count=self._learned_count):
            self._learned_count = len(self._judged)
            self.rule = fit_rule(
                JudgedLookups.of(self._judged[-EVIDENCE_KEPT:]),
                (),
                np.array(self._requests[-HORIZON:]),
                self._target,
                explored_share=EXPLORED_SHARE,
            )


class VCacheRule:
    """A threshold for each entry, as published: Schroeder et al., vCache: Verified Semantic Prompt Caching,
    2025.

    Of each entry a logistic curve of being right over similarity is fitted to what was computed when it was
    the nearest. The answer is computed with the least probability, over the confidence of the curve's
    threshold, that keeps P(wrong) at most delta. Written from the paper.
    """

    LEAST = 6  # observations of an entry before it is trusted
    CONFIDENCES = np.linspace(0.01, 0.5, 50)
    SLOPES = np.array([5.0, 10.0, 20.0, 40.0, 80.0, 160.0])
    THRESHOLDS = np.linspace(0.5, 1.0, 101)

    def __init__(self, delta: float, *, seed: int) -> None:
        self.delta = delta
        self._rng = np.random.default_rng(seed)
        self._observed: dict[int, list[tuple[float, bool]]] = defaultdict(list)
        self._bounds: dict[int, tuple[float, NDArray[np.float64]]] = {}

    def serve(self, shortlist: Shortlist) -> int | None:
        """As DecidingRule."""
        entry = int(shortlist.entries[0])
        if len(self._observed[entry]) < self.LEAST:
            return None
        slope, thresholds = self._curve(entry)
        similarity = 1.0 - float(shortlist.distances[0])
        likely = 1.0 / (1.0 + np.exp(-slope * (similarity - thresholds)))
        alpha = (1.0 - self.CONFIDENCES) * likely
        tau = float(np.clip(1.0 - self.delta / (1.0 - alpha), 0.0, 1.0).min())
        return None if self._rng.random() <= tau else entry

    def learn(self, shortlist: Shortlist, stream: Stream) -> bool:
        """As DecidingRule. What fits the nearest entry is not stored: that one learns instead."""
        entry = int(shortlist.entries[0])
        is_right = stream.is_right(shortlist.request, entry)
        if is_right is not None:
            self._observed[entry].append((1.0 - float(shortlist.distances[0]), is_right))
            self._bounds.pop(entry, None)
        return not is_right

    def _curve(self, entry: int) -> tuple[float, NDArray[np.float64]]:
        """Slope, and the upper confidence bounds of the threshold, one for each of CONFIDENCES."""
        found = self._bounds.get(entry)
        if found is None:
            found = self._bounds[entry] = self._fit(self._observed[entry])
        return found

    def _fit(self, observed: list[tuple[float, bool]]) -> tuple[float, NDArray[np.float64]]:
        similarities = np.array([similarity for similarity, _ in observed])
        right = np.array([is_right for _, is_right in observed])
        logits = self.SLOPES[:, None, None] * (
            similarities - self.THRESHOLDS[:, None]
        )  # [slopes, thresholds, n]
        logs = np.where(right, -np.logaddexp(0, -logits), -np.logaddexp(0, logits)).sum(axis=2)
        best, _ = np.unravel_index(int(logs.argmax()), logs.shape)
        # The posterior of the threshold under a flat prior on its range.
        weights = np.exp(logs[best] - logs[best].max())
        cumulative = np.cumsum(weights) / weights.sum()
        places = np.searchsorted(cumulative, 1.0 - self.CONFIDENCES)
        return float(self.SLOPES[best]), self.THRESHOLDS[np.minimum(places, len(self.THRESHOLDS) - 1)]

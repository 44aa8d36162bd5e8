"""Load of downstream models, as applications report it, and what a policy makes of it.

Threshold and refresh time move linearly with the load, from what holds without it to a bound that the policy
names. So does the limit to the risk, between two limits that were both learned to keep a promise: it is never
past what is verified.
"""

import threading
import time
from collections.abc import Callable, Mapping

from service.errors import OverloadedError
from service.policy import Policy

MODELS_MOST = 64
"""Models of a cache that have a load at a time."""

_NO_LOADS: Mapping[str, float] = {}


def between(idle: float, busy: float, load: float) -> float:
    """The value at a load in [0, 1], on the line from the one at 0 to the one at 1; exact at both ends."""
    return busy if load >= 1.0 else idle + load * (busy - idle)


def threshold_at(policy: Policy, load: float) -> float:
    """The cosine distance that a category without target decides by at a load. One with a target does not
    decide by it: there it stays."""
    most = policy.max_threshold_at_load
    if not load or most is None or policy.max_wrong is not None:
        return policy.threshold
    return between(policy.threshold, max(most, policy.threshold), load)


def refresh_after_at(policy: Policy, load: float) -> int | None:
    """From which age an entry is due for a refresh at a load, in ms; None: never."""
    own, most = policy.refresh_after_ms, policy.refresh_after_at_load_ms
    if not load or own is None or most is None:
        return own
    return int(between(own, max(most, own), load))


def applied_load(policy: Policy, loads: Mapping[str, float]) -> float | None:
    """The load that counts for a category; None: none does. loads: by model."""
    return loads.get(policy.load_model, 0.0) if policy.load_model else None


class Loads:
    """The loads that were reported to this process, by cache and model; gone with it. clock: seconds that
    never go back."""

    def __init__(self, *, max_models: int = MODELS_MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_models = max_models
        self._clock = clock
        self._lock = threading.Lock()  # guards _reported and what is in it
        self._reported: dict[int, dict[str, tuple[float, float]]] = {}  # cache id -> model -> load, until

    def report(self, cache_id: int, model: str, load: float, *, seconds: float) -> None:
        """Take a load in [0, 1] of a model for so long. Raises: OverloadedError: too many models have one."""
        with self._lock:
            now = self._clock()
            self._reported = {
                cache: live for cache, own in self._reported.items() if (live := _live(own, now))
            }
            own = self._reported.setdefault(cache_id, {})
            if model not in own and len(own) >= self._max_models:
                raise OverloadedError(
                    f"{self._max_models} models of the cache have a load already", reason="TOO_MANY_MODELS"
                )
            own[model] = load, now + seconds

    def of(self, cache_id: int) -> Mapping[str, float]:
        """The loads of a cache's models now; a model that is not in it has none."""
        if not self._reported:  # as most often
            return _NO_LOADS
        with self._lock:
            own = self._reported.get(cache_id)
            if own is None:
                return _NO_LOADS
            return {model: load for model, (load, _) in _live(own, self._clock()).items()}


def _live(reported: Mapping[str, tuple[float, float]], now: float) -> dict[str, tuple[float, float]]:
    return {model: told for model, told in reported.items() if told[1] > now}

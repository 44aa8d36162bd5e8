"""The latest lookups of each category by the features of their risk: what a limit is chosen for."""

import threading

import numpy as np
from numpy.typing import NDArray

from service.promise import HORIZON
from service.risk import FEATURES


class RequestSamples:
    """Of each category, and each judge (evidence), the last HORIZON lookups that found a candidate; 108 KB
    where it is full."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _rings and _counts
        self._rings: dict[tuple[int, bytes], NDArray[np.float32]] = {}
        self._counts: dict[tuple[int, bytes], int] = {}

    def add(self, category_id: int, judge: bytes, features: tuple[float, ...]) -> None:
        """Take one lookup."""
        key = (category_id, judge)
        with self._lock:
            ring = self._rings.get(key)
            if ring is None:
                ring = self._rings[key] = np.empty((HORIZON, len(FEATURES)), dtype=np.float32)
            count = self._counts.get(key, 0)
            ring[count % HORIZON] = features
            self._counts[key] = count + 1

    def latest(self, category_id: int, judge: bytes) -> NDArray[np.float64]:
        """The features of the latest lookups, float64 [n, f], in no order."""
        key = (category_id, judge)
        with self._lock:
            count = self._counts.get(key, 0)
            if not count:
                return np.empty((0, len(FEATURES)))
            return self._rings[key][: min(count, HORIZON)].astype(np.float64)

    def keep_only(self, keys: set[tuple[int, bytes]]) -> None:
        """Let go what is of categories that are no more, or of judges that are asked no more."""
        with self._lock:
            for key in set(self._rings) - keys:
                del self._rings[key], self._counts[key]

"""The latest lookups of each category by the features of their risk: what a limit is chosen for."""

import threading

import numpy as np
from numpy.typing import NDArray

from service.promise import HORIZON
from service.risk import FEATURES


class RequestSamples:
    """Of each category the last HORIZON lookups that found a candidate; 108 KB where it is full."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _rings and _counts
        self._rings: dict[int, NDArray[np.float32]] = {}
        self._counts: dict[int, int] = {}

    def add(self, category_id: int, features: tuple[float, ...]) -> None:
        """Take one lookup."""
        with self._lock:
            ring = self._rings.get(category_id)
            if ring is None:
                ring = self._rings[category_id] = np.empty((HORIZON, len(FEATURES)), dtype=np.float32)
            count = self._counts.get(category_id, 0)
            ring[count % HORIZON] = features
            self._counts[category_id] = count + 1

    def latest(self, category_id: int) -> NDArray[np.float64]:
        """The features of the latest lookups, float64 [n, f], in no order."""
        with self._lock:
            count = self._counts.get(category_id, 0)
            if not count:
                return np.empty((0, len(FEATURES)))
            return self._rings[category_id][: min(count, HORIZON)].astype(np.float64)

    def keep_only(self, category_ids: set[int]) -> None:
        """Let go what is of categories that are no more."""
        with self._lock:
            for category_id in set(self._rings) - category_ids:
                del self._rings[category_id], self._counts[category_id]

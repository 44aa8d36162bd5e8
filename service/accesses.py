"""What lookups did, counted in memory and written once a second: no lookup writes to the store."""

import threading
from array import array
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(slots=True)
class Accesses:
    """Counts of one cache since the last drain."""

    hits: dict[int, tuple[int, int]] = field(default_factory=dict)  # row id -> (count, time of the last, ms)
    outcomes: Counter[tuple[int, str]] = field(default_factory=Counter)  # (category id, column) -> count


@dataclass(slots=True)
class BestDistances:
    """Cosine distances, float32, of lookups of one category to the nearest entry, in the order answered.

    Infinite: what was examined held none, as where only entries within the threshold are. own: of lookups at
    the category's threshold. stricter: of those that asked for a smaller one. left_out_count: of lookups
    beyond the bound.
    """

    own: "array[float]" = field(default_factory=lambda: array("f"))
    stricter: "array[float]" = field(default_factory=lambda: array("f"))
    left_out_count: int = 0


class AccessLog:
    """Bounded: over `max_entries` different entries in one interval, further ones are not counted as used; of
    each category the first `max_distances` of either kind are kept, 0: none."""

    def __init__(self, *, max_entries: int, max_distances: int = 0) -> None:
        self._max_entries = max_entries
        self._max_distances = max_distances
        self._lock = threading.Lock()  # guards _by_cache and _distances
        self._by_cache: dict[int, Accesses] = {}
        self._distances: dict[int, BestDistances] = {}

    def record(
        self,
        cache_id: int,
        category_id: int,
        *,
        outcome: str,
        entry_id: int | None,
        now_ms: int,
        nearest: float | None = None,
        is_stricter: bool = False,
    ) -> None:
        """Count one lookup. `outcome` is the column that counts it; `entry_id` the row that was served.

        nearest, is_stricter: a best distance, see BestDistances; None: nothing was looked for.
        """
        with self._lock:
            accesses = self._by_cache.setdefault(cache_id, Accesses())
            accesses.outcomes[category_id, outcome] += 1
            if nearest is not None and self._max_distances:
                distances = self._distances.get(category_id)
                if distances is None:
                    distances = self._distances[category_id] = BestDistances()
                kept = distances.stricter if is_stricter else distances.own
                if len(kept) < self._max_distances:
                    kept.append(nearest)
                else:
                    distances.left_out_count += 1
            if entry_id is None:
                return
            count, _ = accesses.hits.get(entry_id, (0, 0))
            if count or len(accesses.hits) < self._max_entries:
                accesses.hits[entry_id] = (count + 1, now_ms)

    def drain(self) -> dict[int, Accesses]:
        """Everything since the last drain, by cache."""
        with self._lock:
            drained, self._by_cache = self._by_cache, {}
        return drained

    def measured_categories(self) -> list[int]:
        """The categories that lookups were measured in since their last drain."""
        with self._lock:
            return list(self._distances)

    def drain_distances(self, category_ids: Collection[int]) -> dict[int, BestDistances]:
        """The best distances of these categories since the last drain."""
        with self._lock:
            return {key: self._distances.pop(key) for key in category_ids if key in self._distances}

    def restore(self, cache_id: int, accesses: Accesses) -> None:
        """Put back what could not be written."""
        with self._lock:
            current = self._by_cache.setdefault(cache_id, Accesses())
            current.outcomes.update(accesses.outcomes)
            for entry_id, (count, access_ms) in accesses.hits.items():
                known, last_ms = current.hits.get(entry_id, (0, 0))
                if known or len(current.hits) < self._max_entries:
                    current.hits[entry_id] = (known + count, max(last_ms, access_ms))

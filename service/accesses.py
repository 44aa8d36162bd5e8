"""What lookups did, counted in memory and written once a second: no lookup writes to the store."""

import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Accesses:
    """Counts of one cache since the last drain."""

    hits: dict[int, tuple[int, int]] = field(default_factory=dict)  # row id -> (count, time of the last, ms)
    outcomes: Counter[tuple[int, str]] = field(default_factory=Counter)  # (category id, column) -> count


class AccessLog:
    """Bounded: over `max_entries` different entries in one interval, further ones are not counted as used."""

    def __init__(self, *, max_entries: int) -> None:
        self._max_entries = max_entries
        self._lock = threading.Lock()  # guards _by_cache
        self._by_cache: dict[int, Accesses] = {}

    def record(
        self, cache_id: int, category_id: int, *, outcome: str, entry_id: int | None, now_ms: int
    ) -> None:
        """Count one lookup. `outcome` is the column that counts it; `entry_id` the row that was served."""
        with self._lock:
            accesses = self._by_cache.setdefault(cache_id, Accesses())
            accesses.outcomes[category_id, outcome] += 1
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

    def restore(self, cache_id: int, accesses: Accesses) -> None:
        """Put back what could not be written."""
        with self._lock:
            current = self._by_cache.setdefault(cache_id, Accesses())
            current.outcomes.update(accesses.outcomes)
            for entry_id, (count, access_ms) in accesses.hits.items():
                known, last_ms = current.hits.get(entry_id, (0, 0))
                if known or len(current.hits) < self._max_entries:
                    current.hits[entry_id] = (known + count, max(last_ms, access_ms))

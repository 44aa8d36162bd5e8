"""Follows the lookups of this process category by category, and says where what is asked has shifted."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from sqlalchemy import Engine

from service.accesses import AccessLog, BestDistances
from service.category_shift import CategoryShift
from service.config import Config
from service.database import reading, writing
from service.errors import NotFoundError
from service.shift_store import WatchedCategory, read_shift, read_watched, save_shift_state, write_shift

logger = logging.getLogger(__name__)
_SAVE_SECONDS = 15.0


@dataclass(slots=True)
class _Watch:
    """A category, its shift, and what of that the store does not have yet."""

    category: WatchedCategory
    shift: CategoryShift
    has_changed: bool = False  # reference or alarm
    has_advanced: bool = False


class ShiftWatch:
    """The shift monitors of this process; one thread at a time calls it.

    Each replica watches its own lookups. What the first of them learns to be usual is kept in the store and
    taken over by the others, as is an alarm.
    """

    def __init__(
        self, engine: Engine, config: Config, *, accesses: AccessLog, clock: Callable[[], int]
    ) -> None:
        self._engine = engine
        self._config = config
        self._accesses = accesses
        self._clock = clock
        self._watches: dict[int, _Watch] = {}
        self._saved = time.monotonic()

    def step(self) -> None:
        """Take what was looked up since the last time.

        Raises: StoreUnavailableError: then lookups wait in the log, up to its bound, and what was not written
        is at the next step.
        """
        category_ids = self._accesses.measured_categories()
        if category_ids:
            self._read(category_ids)
        for category_id, distances in self._accesses.drain_distances(category_ids).items():
            if category_id in self._watches:  # else it was deleted meanwhile
                self._observe(self._watches[category_id], distances)
        for watch in list(self._watches.values()):
            if watch.has_changed:
                self._write(watch)
        if time.monotonic() >= self._saved + _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write how far every category has come. Raises: StoreUnavailableError."""
        self._saved = time.monotonic()
        if not any(watch.has_advanced for watch in self._watches.values()):
            return
        with writing(self._engine) as connection:
            known = read_watched(connection, sorted(self._watches))
            self._watches = {key: watch for key, watch in self._watches.items() if key in known}
            # In one order in all replicas: none waits for another that waits for it.
            for _, watch in sorted(self._watches.items()):
                if watch.has_advanced:
                    record = watch.shift.to_record(version=watch.category.version)
                    save_shift_state(connection, watch.category, record, now_ms=self._clock())
        for watch in self._watches.values():
            watch.has_advanced = False

    def _read(self, category_ids: list[int]) -> None:
        """Bring these categories up to the store."""
        with reading(self._engine) as connection:
            found = read_watched(connection, category_ids)
            for category_id in category_ids:
                watch, category = self._watches.get(category_id), found.get(category_id)
                if category is None:
                    self._watches.pop(category_id, None)
                elif watch is not None and watch.category.version == category.version:
                    watch.category = category
                else:
                    shift = CategoryShift(category.name, self._config.shift)
                    is_sound = shift.restore(read_shift(connection, category))
                    self._watches[category_id] = _Watch(category, shift, has_changed=not is_sound)
                    if not is_sound:
                        logger.warning(
                            "cache %s, category %s: its shift monitor is damaged and begins anew",
                            category.cache,
                            category.name,
                        )

    def _observe(self, watch: _Watch, distances: BestDistances) -> None:
        category = watch.category
        if distances.left_out_count:
            logger.warning(
                "cache %s, category %s: %d lookups more than are kept at once were not watched for shifts",
                category.cache,
                category.name,
                distances.left_out_count,
            )
        watch.has_advanced = True
        watch.has_changed |= watch.shift.observe(
            distances,
            entry_count=category.entry_count,
            threshold=category.threshold,
            large_count=self._config.search.cascade_min_rows,
            now_ms=self._clock(),
        )
        # So that there is a row to save to.
        watch.has_changed |= category.version == 0

    def _write(self, watch: _Watch) -> None:
        category, shift = watch.category, watch.shift
        record = shift.to_record(version=category.version)
        try:
            with writing(self._engine) as connection:
                is_first = write_shift(connection, category, record, now_ms=self._clock())
        except NotFoundError:
            is_first = False
        if not is_first:
            del self._watches[category.id]  # the store knows better, and is read at the next lookup
            return
        watch.category = replace(category, version=category.version + 1)
        watch.has_changed = watch.has_advanced = False
        if shift.alarm is not None:
            logger.warning("cache %s: %s", category.cache, shift.alarm.explain())

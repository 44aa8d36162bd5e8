"""Shift monitors in the store: what is read and written of `shift_monitors`.

The version of a row changes with its reference and alarm; who writes names the one that it knows, so of
several replicas one is first and the others take over what it wrote.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import ColumnElement, Connection, and_, insert, select, update

from service.records import CategoryRecord, ShiftRecord
from service.registry import lock_cache
from service.rows import read_categories
from service.tables import caches, categories, shift_monitors
from service.transaction import ID_CHUNK

_COLUMNS = [shift_monitors.c[name] for name in ShiftRecord.__dataclass_fields__]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedCategory:
    """A category as it is now. version: of its shift monitor; 0 where none is kept."""

    id: int
    cache_id: int
    cache: str
    name: str
    threshold: float
    entry_count: int
    version: int


def read_watched(connection: Connection, category_ids: Sequence[int]) -> dict[int, WatchedCategory]:
    """Those of the categories that exist, by row id."""
    query = select(
        categories.c.id,
        categories.c.cache_id,
        caches.c.name.label("cache"),
        categories.c.name,
        categories.c.entry_count,
        shift_monitors.c.version,
    ).join_from(categories, caches, caches.c.id == categories.c.cache_id)
    query = query.outerjoin(shift_monitors, shift_monitors.c.category_id == categories.c.id)
    found: dict[int, WatchedCategory] = {}
    for start in range(0, len(category_ids), ID_CHUNK):
        chosen = query.where(categories.c.id.in_(category_ids[start : start + ID_CHUNK]))
        rows = connection.execute(chosen).all()
        policies = {
            category.id: category.policy
            for cache_id in {row.cache_id for row in rows}
            for category in read_categories(connection, cache_id)
        }
        for row in rows:
            values = {**row._mapping, "version": row.version or 0, "threshold": policies[row.id].threshold}
            found[row.id] = WatchedCategory(**values)
    return found


def read_shift(connection: Connection, category: WatchedCategory | CategoryRecord) -> ShiftRecord:
    """The category's shift monitor; one that knows nothing where none is kept."""
    row = connection.execute(select(*_COLUMNS).where(_of(category))).one_or_none()
    return ShiftRecord() if row is None else ShiftRecord(**row._mapping)


def read_shifts(connection: Connection, cache_id: int) -> dict[int, ShiftRecord]:
    """The shift monitors of a cache by row id of the category, without their states."""
    columns = [column for column in _COLUMNS if column.name != "state"]
    query = select(shift_monitors.c.category_id, *columns).where(shift_monitors.c.cache_id == cache_id)
    found = [dict(row._mapping) for row in connection.execute(query)]
    return {row.pop("category_id"): ShiftRecord(**row) for row in found}


def write_shift(
    connection: Connection, category: WatchedCategory, record: ShiftRecord, *, now_ms: int
) -> bool:
    """Keep a new reference or alarm; False where another replica was first.

    record.version: the one known before. Raises: NotFoundError: the cache was deleted.
    """
    lock_cache(connection, category.cache_id)  # as every transaction does before it touches a category
    keys = {"cache_id": category.cache_id, "category_id": category.id}
    values = {**asdict(record), "version": record.version + 1, "update_ms": now_ms}
    known = read_watched(connection, [category.id]).get(category.id)
    if known is None or known.version != record.version:
        return False
    if record.version:
        connection.execute(update(shift_monitors).where(_of(category)).values(**values))
    else:
        connection.execute(insert(shift_monitors).values(**keys, **values))
    return True


def save_shift_state(
    connection: Connection, category: WatchedCategory, record: ShiftRecord, *, now_ms: int
) -> None:
    """Keep how far a monitor has come, unless its reference or alarm is not the one that is kept."""
    values = {"state": record.state, "lookup_count": record.lookup_count, "update_ms": now_ms}
    same = and_(_of(category), shift_monitors.c.version == record.version)
    connection.execute(update(shift_monitors).where(same).values(**values))


def acknowledge_shift(connection: Connection, category: CategoryRecord, *, now_ms: int) -> None:
    """Clear a category's alarm and have what is usual learned anew from its next lookups.

    Raises: NotFoundError: the cache was deleted.
    """
    lock_cache(connection, category.cache_id)
    values = {**asdict(ShiftRecord()), "update_ms": now_ms}
    version = read_shift(connection, category).version
    if version:
        changed = update(shift_monitors).where(_of(category))
        connection.execute(changed.values(**{**values, "version": version + 1}))
    else:
        keys = {"cache_id": category.cache_id, "category_id": category.id}
        connection.execute(insert(shift_monitors).values(**keys, **{**values, "version": 1}))


def relearn_shifts(connection: Connection, cache_id: int, *, now_ms: int) -> None:
    """Clear all alarms of a cache and have what is usual learned anew: its distances are others from now on.

    The caller holds the cache's lock.
    """
    values = {**asdict(ShiftRecord()), "version": shift_monitors.c.version + 1, "update_ms": now_ms}
    connection.execute(update(shift_monitors).where(shift_monitors.c.cache_id == cache_id).values(**values))


def shift_alarm_since(connection: Connection, cache_id: int, after_ms: int) -> bool:
    """Whether a category has an alarm from after `after_ms` that is not acknowledged."""
    query = select(shift_monitors.c.category_id).where(
        shift_monitors.c.cache_id == cache_id, shift_monitors.c.alarm_ms > after_ms
    )
    return connection.execute(query.limit(1)).first() is not None


def _of(category: WatchedCategory | CategoryRecord) -> ColumnElement[bool]:
    return and_(shift_monitors.c.cache_id == category.cache_id, shift_monitors.c.category_id == category.id)

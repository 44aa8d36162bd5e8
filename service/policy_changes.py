"""The audit of policies: what changed of a category, written by the transaction that changed it."""

from sqlalchemy import Connection, delete, insert, select

from service.policy import dump_own
from service.records import CategoryRecord, PolicyChangeRecord
from service.tables import policy_changes

RETAINED_MOST = 10_000
"""Changes of a cache that are kept; the oldest go."""

_COLUMNS = [policy_changes.c[name] for name in PolicyChangeRecord.__dataclass_fields__]


def record_change(
    connection: Connection,
    *,
    before: CategoryRecord | None,
    after: CategoryRecord | None,
    now_ms: int,
    principal: str = "",
) -> None:
    """Write down one change. before: None of a creation; after: None of a deletion."""
    category = after or before
    assert category is not None  # something changed
    operation = "create" if before is None else "delete" if after is None else "update"
    values = {
        "cache_id": category.cache_id,
        "category_id": category.id,
        "category": category.name,
        "version": category.version,
        "create_ms": now_ms,
        "operation": operation,
        "before": _told(before),
        "after": _told(after),
        "principal": principal,
    }
    connection.execute(insert(policy_changes).values(**values))
    of_cache = policy_changes.c.cache_id == category.cache_id
    newest = select(policy_changes.c.id).where(of_cache).order_by(policy_changes.c.id.desc())
    oldest = connection.execute(newest.offset(RETAINED_MOST).limit(1)).scalar()
    if oldest is not None:
        connection.execute(delete(policy_changes).where(of_cache, policy_changes.c.id <= oldest))


def read_changes(
    connection: Connection, cache_id: int, *, category: str | None = None, before: int = 0, size: int
) -> list[PolicyChangeRecord]:
    """Changes of a cache, or of the categories of one name, newest first. before: a row id; 0: from the
    newest."""
    query = select(*_COLUMNS).where(policy_changes.c.cache_id == cache_id)
    if category is not None:
        query = query.where(policy_changes.c.category == category)
    if before:
        query = query.where(policy_changes.c.id < before)
    query = query.order_by(policy_changes.c.id.desc()).limit(size)
    return [PolicyChangeRecord(**row._mapping) for row in connection.execute(query)]


def _told(category: CategoryRecord | None) -> str:
    if category is None:
        return ""
    parent = {"parent": category.parent} if category.parent else {}
    return dump_own({**category.own_policy, **parent})

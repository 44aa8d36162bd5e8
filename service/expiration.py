"""Lifetimes: an entry is live while now < expire time."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select

from service.records import NewEntry, Policy
from service.tables import NEVER_MS, entries


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """The times of one entry, in milliseconds; `ttl_ms` None: it never expires."""

    ttl_ms: int | None
    ttl_mode: str
    create_ms: int
    expire_ms: int


def lifetime(item: NewEntry, policy: Policy, *, now_ms: int) -> Lifetime:
    """When the entry expires: by its own time to live if it brings one, else by its category's.

    An imported entry brings its times; they are kept, also that it has no time to live.
    """
    is_imported = item.expire_ms is not None
    ttl_ms = item.ttl_ms if item.ttl_ms is not None or is_imported else policy.ttl_ms
    create_ms = now_ms if item.create_ms is None else item.create_ms
    if item.expire_ms is not None:
        expire_ms = item.expire_ms
    else:
        expire_ms = NEVER_MS if ttl_ms is None else min(now_ms + ttl_ms, NEVER_MS)
    return Lifetime(
        ttl_ms=ttl_ms, ttl_mode=item.ttl_mode or policy.ttl_mode, create_ms=create_ms, expire_ms=expire_ms
    )


def extended(ttl_mode: str, ttl_ms: int | None, expire_ms: int, *, access_ms: int) -> int | None:
    """The expire time after a hit at `access_ms`; None where the hit changes nothing."""
    if ttl_mode != "sliding" or ttl_ms is None:
        return None
    later = min(access_ms + ttl_ms, NEVER_MS)
    return later if later > expire_ms else None


def expired_rows(category_id: int, *, now_ms: int) -> Select[Any]:
    """Row ids and sizes of a category's entries past their expire time, the longest dead first."""
    return (
        select(entries.c.id, entries.c.size_bytes)
        .where(entries.c.category_id == category_id, entries.c.expire_ms <= now_ms)
        .order_by(entries.c.expire_ms, entries.c.id)
    )

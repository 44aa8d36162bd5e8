"""Lifetimes: an entry is live while now < expire time, and from its refresh time on it may be stale."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import Select, select

from service.load import refresh_after_at
from service.policy import Policy
from service.records import NewEntry
from service.tables import NEVER_MS, entries


class Freshness(Enum):
    """What a lookup may do with a live entry: serve it, serve it and ask for a new one, or not serve it."""

    FRESH = "fresh"
    DUE = "due"
    STALE = "stale"


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


def freshness(
    create_ms: int | None,
    policy: Policy,
    *,
    now_ms: int,
    max_age_ms: int | None = None,
    load: float = 0.0,
) -> Freshness:
    """How an entry stands to its category's refresh time and to the age that a caller accepts (ms; None:
    any).

    create_ms: None where it is not known: then it is older than whatever is asked for. load: in [0, 1], at
    which the refresh time may be later, the expire time never. A caller may only be stricter: what is too old
    for it is stale, whatever the category would serve.
    """
    if max_age_ms is not None and (create_ms is None or now_ms - create_ms > max_age_ms):
        return Freshness.STALE
    refresh_after_ms = refresh_after_at(policy, load)
    if refresh_after_ms is None:
        return Freshness.FRESH
    if create_ms is not None and now_ms - create_ms < refresh_after_ms:
        return Freshness.FRESH
    return Freshness.DUE if policy.stale_while_revalidate else Freshness.STALE


def refresh_time(create_ms: int, expire_ms: int, refresh_after_ms: int | None) -> int | None:
    """When an entry is due for a refresh; no later than it expires. None: never."""
    return None if refresh_after_ms is None else min(create_ms + refresh_after_ms, expire_ms)


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

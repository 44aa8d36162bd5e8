"""Quotas: after any acknowledged store a category is at or under its limits."""

from collections.abc import Callable

from service import eviction, expiration
from service.errors import QuotaExceededError
from service.records import CategoryRecord, NewEntry
from service.transaction import CacheTransaction


class Room:
    """What one part of a batch may still bring into each category."""

    def __init__(self, category: Callable[[int], CategoryRecord]) -> None:
        self._category = category
        self._taken: dict[int, tuple[int, int]] = {}

    def holds(self, item: NewEntry) -> bool:
        """Whether the item fits beside what was taken, if all stored entries left."""
        policy = self._category(item.category_id).policy
        entry_count, size_bytes = self._taken.get(item.category_id, (0, 0))
        return not (
            (policy.max_entries and entry_count + 1 > policy.max_entries)
            or (policy.max_bytes and size_bytes + item.size_bytes > policy.max_bytes)
        )

    def take(self, item: NewEntry) -> None:
        """Count the item. Raises: QuotaExceededError: it does not fit even alone."""
        policy = self._category(item.category_id).policy
        if policy.max_bytes and item.size_bytes > policy.max_bytes:
            raise QuotaExceededError(
                f"an entry of {item.size_bytes} bytes exceeds the category's quota of {policy.max_bytes}",
                size_bytes=item.size_bytes,
                max_bytes=policy.max_bytes,
            )
        entry_count, size_bytes = self._taken.get(item.category_id, (0, 0))
        self._taken[item.category_id] = (entry_count + 1, size_bytes + item.size_bytes)


def make_room(
    tx: CacheTransaction, category: CategoryRecord, *, incoming_count: int, incoming_bytes: int
) -> int:
    """Delete entries until the incoming ones fit: expired first, then by the eviction policy.

    Returns how many left.
    """
    left = 0
    for candidates in (
        expiration.expired_rows(category.id, now_ms=tx.now_ms),
        eviction.rows_in_order(category.id, eviction=category.policy.eviction),
    ):
        excess_count, excess_bytes = _excess(tx, category.id, incoming_count, incoming_bytes)
        if excess_count <= 0 and excess_bytes <= 0:
            return left
        chosen = eviction.choose(tx.connection, candidates, count=excess_count, size_bytes=excess_bytes)
        left += tx.delete(chosen)
    return left


def _excess(
    tx: CacheTransaction, category_id: int, incoming_count: int, incoming_bytes: int
) -> tuple[int, int]:
    category = tx.category(category_id)
    policy = category.policy
    over_count = category.entry_count + incoming_count - policy.max_entries if policy.max_entries else 0
    over_bytes = category.size_bytes + incoming_bytes - policy.max_bytes if policy.max_bytes else 0
    return over_count, over_bytes

"""Which entries leave when a quota is full."""

from typing import Any

from sqlalchemy import Connection, Select, literal_column, select

from service.tables import entries

# A policy is the order in which entries leave.
_ORDERS = {
    "lru": (entries.c.access_ms, entries.c.id),
    "lfu": (entries.c.access_count, entries.c.access_ms, entries.c.id),
    "fifo": (entries.c.id,),
    "cost": (entries.c.worth, entries.c.access_ms, entries.c.id),
}
POLICIES = tuple(_ORDERS)
_PAGE = 256


def worth(cost: float, *, access_count: int, size_bytes: int) -> float:
    """What a byte of an entry spares, in the caller's unit of cost; 0 where the cost is not known."""
    return cost * (access_count + 1) / size_bytes


def worth_column(
    *, access_count: Any = entries.c.access_count, size_bytes: Any = entries.c.size_bytes
) -> Any:
    """The same as a SQL expression, for the column `worth`: what changes count or size sets it too."""
    # No bound value: statements of many rows bind their columns alone.
    return entries.c.cost * (access_count + literal_column("1")) / size_bytes


def rows_in_order(category_id: int, *, eviction: str) -> Select[Any]:
    """Row ids and sizes of a category's entries, the first to leave first."""
    return (
        select(entries.c.id, entries.c.size_bytes)
        .where(entries.c.category_id == category_id)
        .order_by(*_ORDERS[eviction])
    )


def choose(connection: Connection, candidates: Select[Any], *, count: int, size_bytes: int) -> list[int]:
    """The fewest of `candidates`, in order, that free `count` entries and `size_bytes`."""
    chosen: list[int] = []
    page = max(_PAGE, count)
    offset = 0
    while count > 0 or size_bytes > 0:
        rows = connection.execute(candidates.limit(page).offset(offset)).all()
        for row in rows:
            if count <= 0 and size_bytes <= 0:
                break
            chosen.append(row.id)
            count -= 1
            size_bytes -= row.size_bytes
        if len(rows) < page:
            break
        offset += page
    return chosen

"""Many rows into the store, whole columns at a time.

The same rules as `store` has, for rows that come in tens of thousands; what is out of the ordinary (a row
that takes another's place, a quota) goes the way that single rows go.
"""

import json
from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import (
    ColumnElement,
    Connection,
    SmallInteger,
    and_,
    insert,
    literal,
    select,
    update,
)

from service.database import execute_many
from service.keys import fingerprint_key
from service.records import NewEntry, Operation
from service.store import entry_columns, import_entries
from service.tables import caches, changes, entries, entry_tags, responses
from service.transaction import ID_CHUNK, CacheTransaction


def stored_names(connection: Connection, cache_id: int, names: Sequence[str], *, now_ms: int) -> set[str]:
    """Those of the names that live entries of the cache have; an index lookup each."""
    found: set[str] = set()
    for start in range(0, len(names), ID_CHUNK):
        query = select(entries.c.name).where(
            entries.c.cache_id == cache_id,
            entries.c.name.in_(names[start : start + ID_CHUNK]),
            entries.c.expire_ms > now_ms,
        )
        found.update(connection.execute(query).scalars())
    return found


def import_rows(tx: CacheTransaction, items: Sequence[NewEntry]) -> int:
    """Store the items that no live entry stands for, by id or by scope and fingerprint in the category.

    items: with names. Of items that stand for each other the first is stored. Returns how many were stored.
    Raises: as store.import_entries, which decides on every item that another one, or an entry, is in the way
    of, and on those of a category with limits.
    """
    taken = _taken(tx, items)
    limited = {
        category.id
        for category in tx.all_categories()
        if category.policy.max_entries or category.policy.max_bytes
    }
    fresh: list[NewEntry] = []
    others: list[NewEntry] = []
    for item in items:
        own = _keys(item)
        simple = item.category_id not in limited and not item.replace_name and not item.request_id
        if simple and taken.isdisjoint(own):
            fresh.append(item)
        else:
            others.append(item)
        taken.update(own)
    if fresh:
        _insert(tx, fresh)
    parts = (others[start : start + ID_CHUNK] for start in range(0, len(others), ID_CHUNK))
    return len(fresh) + sum(import_entries(tx, part) for part in parts)


def _keys(item: NewEntry) -> list[object]:
    """What no two live entries share: the name, and the category with scope and fingerprint."""
    key = _fingerprint_key(item)
    return [item.name] if key is None else [item.name, (item.category_id, key)]


def _taken(tx: CacheTransaction, items: Sequence[NewEntry]) -> set[object]:
    """Keys of the items that entries have, live or expired."""
    taken: set[object] = set()
    by_category: dict[int, list[bytes]] = defaultdict(list)
    for item in items:
        if item.fingerprint is not None:
            by_category[item.category_id].append(fingerprint_key(item.scope, item.fingerprint))
    for start in range(0, len(items), ID_CHUNK):
        names = [item.name for item in items[start : start + ID_CHUNK]]
        query = select(entries.c.name).where(entries.c.cache_id == tx.cache_id, entries.c.name.in_(names))
        taken.update(tx.connection.execute(query).scalars())
    for category_id, keys in by_category.items():
        for start in range(0, len(keys), ID_CHUNK):
            same = select(entries.c.fingerprint_key).where(
                entries.c.category_id == category_id,
                entries.c.fingerprint_key.in_(keys[start : start + ID_CHUNK]),
            )
            taken.update((category_id, key) for key in tx.connection.execute(same).scalars())
    return taken


def _insert(tx: CacheTransaction, items: Sequence[NewEntry]) -> None:
    """Insert rows that nothing stands in the way of; what belongs to a row is found by its seq."""
    first = tx.seq + 1
    columns = entry_columns(tx, items, names=[item.name for item in items])
    columns["labels"] = [json.dumps(labels) if labels else "[]" for labels in columns["labels"]]
    execute_many(tx.connection, insert(entries).inline(), columns)
    inserted = and_(entries.c.cache_id == tx.cache_id, entries.c.seq >= first)
    _record_upserts(tx, inserted, row_count=len(items))
    contents = {(item.response, item.content_type) for item in items}
    tagged = any(item.tags for item in items)
    if len(contents) == 1:
        body, content_type = (literal(value) for value in contents.pop())
        same = select(entries.c.id, body, content_type).where(inserted)
        tx.connection.execute(insert(responses).from_select(["entry_id", "body", "content_type"], same))
    if contents or tagged:
        row_ids = list(
            tx.connection.execute(select(entries.c.id).where(inserted).order_by(entries.c.seq)).scalars()
        )
        _insert_contents(tx, items, row_ids, with_responses=bool(contents))
    for category_id in sorted({item.category_id for item in items}):
        sizes = [item.size_bytes for item in items if item.category_id == category_id]
        tx.count(category_id, entry_count=len(sizes), size_bytes=sum(sizes))


def _record_upserts(tx: CacheTransaction, inserted: ColumnElement[bool], *, row_count: int) -> None:
    """The changes of rows that have their seqs already, as CacheTransaction.record writes them."""
    own = select(
        entries.c.cache_id, entries.c.seq, literal(int(Operation.UPSERT), SmallInteger), entries.c.id
    ).where(inserted)
    columns = ["cache_id", "seq", "operation", "entry_id"]
    tx.connection.execute(insert(changes).from_select(columns, own))
    tx.seq += row_count
    tx.connection.execute(update(caches).where(caches.c.id == tx.cache_id).values(seq=tx.seq))


def _insert_contents(
    tx: CacheTransaction, items: Sequence[NewEntry], row_ids: Sequence[int], *, with_responses: bool
) -> None:
    if with_responses:
        columns = {
            "entry_id": row_ids,
            "body": [item.response for item in items],
            "content_type": [item.content_type for item in items],
        }
        execute_many(tx.connection, insert(responses), columns)
    tagged = [
        {"entry_id": row_id, "tag": tag, "cache_id": tx.cache_id}
        for item, row_id in zip(items, row_ids, strict=True)
        for tag in sorted(set(item.tags))
    ]
    if tagged:
        tx.connection.execute(insert(entry_tags), tagged)


def _fingerprint_key(item: NewEntry) -> bytes | None:
    return None if item.fingerprint is None else fingerprint_key(item.scope, item.fingerprint)

"""Whole columns at a time: many rows into the store, and all rows of a cache to the index.

The same rules as `store` and `feed` have, for rows that come in tens of thousands; what is out of the
ordinary (a row that takes another's place, a quota, a damaged row) goes the way that single rows go.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    ColumnElement,
    Connection,
    Insert,
    Row,
    SmallInteger,
    Update,
    and_,
    func,
    insert,
    literal,
    select,
    update,
)

from index.rows import Rows, SegmentKey
from service import expiration
from service.coding import STORED_DTYPE, vectors_of
from service.feed import to_rows
from service.keys import fingerprint_key, scope_key
from service.payload import pack_payload
from service.records import CacheRecord, NewEntry, Operation
from service.rows import of_cache_by_id, read_entries_by_id
from service.store import import_entries
from service.tables import caches, changes, entries, entry_tags, responses
from service.transaction import ID_CHUNK, CacheTransaction

SCAN_ROWS = 5_000  # rows read at once, responses included
_INDEX_COLUMNS = [
    entries.c[name]
    for name in (
        *("id", "category_id", "modality", "encoder_id", "name", "scope", "fingerprint_key"),
        *("vector", "code", "label_code", "expire_ms"),
    )
] + [responses.c.body, responses.c.content_type]


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


def scan_segment_rows(
    connection: Connection, cache: CacheRecord
) -> Iterator[tuple[int, list[tuple[SegmentKey, Rows]]]]:
    """All entries of a cache as the index takes them, in the order of their row ids, a chunk at a time.

    Yields (rows read, rows by segment). A damaged row is left out and named, as by feed.to_rows.
    """
    query = select(*_INDEX_COLUMNS).join(responses, responses.c.entry_id == entries.c.id)
    query = query.where(of_cache_by_id(cache.id)).order_by(entries.c.id).limit(SCAN_ROWS)
    after = first_row_id(connection, cache.id) - 1
    while found := connection.execute(query.where(entries.c.id > after)).all():
        after = found[-1].id
        grouped: dict[tuple[int, str, str | None], list[Row[Any]]] = defaultdict(list)
        for row in found:
            grouped[row[1], row[2], row[3]].append(row)
        batches: list[tuple[SegmentKey, Rows]] = []
        for parts, group in grouped.items():
            key = SegmentKey(*parts)
            rows = _segment_rows(cache, key, group)
            if rows is not None:
                batches.append((key, rows))
                continue
            ids = [row.id for row in group]
            records = read_entries_by_id(connection, cache.id, ids, with_tags=False)
            batches += to_rows(cache, [records[row_id] for row_id in ids])
        yield len(found), batches


def first_row_id(connection: Connection, cache_id: int) -> int:
    """The smallest row id of the cache's entries, 1 where there are none: where a scan by id begins."""
    query = select(func.min(entries.c.id)).where(entries.c.cache_id == cache_id)
    return int(connection.execute(query).scalar() or 1)


def execute_many(
    connection: Connection,
    statement: Insert | Update,
    columns: Mapping[str, Iterable[Any]],
    *,
    row_count: int,
) -> None:
    """Execute a statement once a row, with a column of values per bound parameter.

    Values reach the driver as they are: SQLAlchemy's own conversion of every value of every row takes longer
    than SQLite takes to insert it.
    """
    compiled = statement.compile(connection, column_keys=list(columns))
    names = compiled.positiontup
    order = list(columns) if names is None else names
    rows: Iterable[Any] = zip(*(islice(columns[name], row_count) for name in order), strict=True)
    if names is None:
        rows = (dict(zip(order, row, strict=True)) for row in rows)
    connection.exec_driver_sql(str(compiled), list(rows))


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
    execute_many(tx.connection, insert(entries).inline(), _entry_columns(tx, items), row_count=len(items))
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
        execute_many(tx.connection, insert(responses), columns, row_count=len(items))
    tagged = [
        {"entry_id": row_id, "tag": tag, "cache_id": tx.cache_id}
        for item, row_id in zip(items, row_ids, strict=True)
        for tag in sorted(set(item.tags))
    ]
    if tagged:
        tx.connection.execute(insert(entry_tags), tagged)


def _entry_columns(tx: CacheTransaction, items: Sequence[NewEntry]) -> dict[str, Iterable[Any]]:
    """The columns of `entries`, without the id that the database gives; values as the driver takes them."""
    policies = {key: tx.category(key).policy for key in {item.category_id for item in items}}
    lifetimes = [expiration.lifetime(item, policies[item.category_id], now_ms=tx.now_ms) for item in items]
    create_times = [lifetime.create_ms for lifetime in lifetimes]
    codings = [item.coding for item in items]
    return {
        "cache_id": repeat(tx.cache_id),
        "category_id": [item.category_id for item in items],
        "name": [item.name for item in items],
        "scope": [item.scope for item in items],
        "fingerprint_key": [_fingerprint_key(item) for item in items],
        "fingerprint": [item.fingerprint for item in items],
        "text": [item.text for item in items],
        "labels": [json.dumps(item.labels) if item.labels else "[]" for item in items],
        "has_labels": [bool(item.labels) for item in items],
        "source": [item.source for item in items],
        "modality": [item.modality for item in items],
        "embedder_id": [item.embedder_id for item in items],
        "vector": [item.vector.tobytes() for item in items],
        "code": [None if coding is None else coding.code for coding in codings],
        "label_code": [None if coding is None else coding.label_code for coding in codings],
        "encoder_id": [None if coding is None else coding.encoder_id for coding in codings],
        "ttl_ms": [lifetime.ttl_ms for lifetime in lifetimes],
        "ttl_mode": [lifetime.ttl_mode for lifetime in lifetimes],
        "create_ms": create_times,
        "expire_ms": [lifetime.expire_ms for lifetime in lifetimes],
        "access_ms": create_times,
        "access_count": repeat(0),
        "size_bytes": [item.size_bytes for item in items],
        "seq": range(tx.seq + 1, tx.seq + 1 + len(items)),
    }


def _fingerprint_key(item: NewEntry) -> bytes | None:
    return None if item.fingerprint is None else fingerprint_key(item.scope, item.fingerprint)


def _segment_rows(cache: CacheRecord, key: SegmentKey, found: Sequence[Row[Any]]) -> Rows | None:
    """The rows of one segment as columns; None where one of them is damaged (feed.damage_of)."""
    columns = dict(zip((column.name for column in _INDEX_COLUMNS), zip(*found, strict=True), strict=True))
    spec = cache.modalities.get(key.modality)
    if spec is None or set(map(len, columns["vector"])) != {STORED_DTYPE.itemsize * spec.dim}:
        return None
    vectors = vectors_of(columns["vector"])
    expire_times = np.array(columns["expire_ms"], dtype=np.int64)
    codes = _words(columns["code"], bit_count=0 if key.encoder_id is None else cache.code_bits)
    label_mask = np.array([code is not None for code in columns["label_code"]], dtype=np.bool_)
    label_codes = np.zeros((len(found), cache.label_bits // 64), dtype=np.uint64)
    marked = [code for code in columns["label_code"] if code is not None]
    labelled = _words(marked, bit_count=cache.label_bits)
    keys = [key or bytes(16) for key in columns["fingerprint_key"]]
    if codes is None or labelled is None or expire_times.min() < 1 or set(map(len, keys)) != {16}:
        return None
    if not np.isfinite(vectors).all():
        return None
    label_codes[label_mask] = labelled
    packed = zip(columns["name"], columns["content_type"], columns["body"], strict=True)
    return Rows(
        entry_ids=np.array(columns["id"], dtype=np.int64),
        vectors=vectors,
        codes=None if key.encoder_id is None else codes,
        label_codes=label_codes,
        label_mask=label_mask,
        scopes=np.array([scope_key(scope) for scope in columns["scope"]], dtype=np.uint64),
        fingerprints=_as_words(keys, word_count=2),
        expire_times=expire_times,
        payloads=[pack_payload(*parts) for parts in packed],
    )


def _words(codes: Sequence[bytes | None], *, bit_count: int) -> NDArray[np.uint64] | None:
    """Stored codes as uint64 [n, words]; bit_count 0: there must be none. None where one has other bits."""
    if bit_count == 0:
        unexpected = any(code is not None for code in codes)
        return None if unexpected else np.zeros((len(codes), 0), dtype=np.uint64)
    if any(code is None or len(code) != bit_count // 8 for code in codes):
        return None
    return _as_words([code for code in codes if code is not None], word_count=bit_count // 64)


def _as_words(blobs: Sequence[bytes], *, word_count: int) -> NDArray[np.uint64]:
    stored = np.frombuffer(b"".join(blobs), dtype="<u8").reshape(len(blobs), word_count)
    return stored.astype(np.uint64, copy=False)

"""Mutations of a cache's entries, each within one transaction of the writer."""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, and_, bindparam, insert, select, update

from service import expiration, quota
from service.accesses import Accesses
from service.admission import Admission, Admit
from service.errors import AlreadyExistsError, InvalidRequestError, NotFoundError
from service.eviction import worth, worth_column
from service.keys import child_name, fingerprint_key
from service.records import NewEntry, Operation, Selection, StoredEntry
from service.selection import select_rows
from service.tables import categories, entries, entry_tags, requests, responses
from service.transaction import ID_CHUNK, CacheTransaction

_NOTHING_STORED = StoredEntry(name="", seq=0, create_ms=0, expire_ms=0, ttl_ms=None, ttl_mode="")

_ADD_HITS = (
    update(entries)
    .where(entries.c.id == bindparam("row_id"))
    .values(
        access_count=entries.c.access_count + bindparam("hits"),
        worth=worth_column(access_count=entries.c.access_count + bindparam("hits")),
        access_ms=bindparam("last_ms"),
        expire_ms=bindparam("later_ms"),
    )
)


def store_entries(
    tx: CacheTransaction, items: Sequence[NewEntry], *, admit: Admit | None = None
) -> list[StoredEntry]:
    """Store all of `items` that are admitted, or none. admit: None: all are.

    Raises:
        AlreadyExistsError: an id is taken.
        InvalidRequestError: a request id was used for another entry.
        QuotaExceededError: an entry is larger than its category's quota.
        NotFoundError: a category is gone.
    """
    answers = _earlier_answers(tx, items)
    if admit is not None:
        _turn_away(tx, items, answers, admit)
    fresh = [i for i in range(len(items)) if answers[i] is None]
    for chunk in _chunks(tx, [items[i] for i in fresh]):
        stored = _store_chunk(tx, chunk)
        for i, answer in zip(fresh[: len(chunk)], stored, strict=True):
            answers[i] = answer
        fresh = fresh[len(chunk) :]
    return [answer for answer in answers if answer is not None]


def import_entries(tx: CacheTransaction, items: Sequence[NewEntry]) -> int:
    """Store the items that no live entry stands for, by id or by scope and fingerprint in the category.

    Of items that stand for each other the first is stored. Returns how many were. Raises: as store_entries.
    """
    live = and_(entries.c.cache_id == tx.cache_id, entries.c.expire_ms > tx.now_ms)
    names = [item.name for item in items if item.name]
    named = select(entries.c.name).where(live, entries.c.name.in_(names))
    taken: set[object] = {("name", name) for name in tx.connection.execute(named).scalars()}
    for category_id, keys in _fingerprint_keys(items).items():
        same = select(entries.c.fingerprint_key).where(
            live, entries.c.category_id == category_id, entries.c.fingerprint_key.in_(keys)
        )
        taken |= {(category_id, key) for key in tx.connection.execute(same).scalars()}
    free = []
    for item in items:
        own = _conflict_keys(item)
        if not own & taken:
            free.append(item)
            taken |= own
    return len(store_entries(tx, free))


def invalidate(tx: CacheTransaction, selection: Selection) -> int:
    """Delete what the selection means; return how many."""
    return tx.delete(select_rows(tx.connection, tx.cache_id, selection, live_at=tx.now_ms))


def delete_entry(tx: CacheTransaction, name: str) -> None:
    """Delete one entry. Raises: NotFoundError."""
    if not invalidate(tx, Selection(names=(name,))):
        raise NotFoundError(
            f"{child_name(tx.cache, 'entries', name)} does not exist", reason="ENTRY_NOT_FOUND"
        )


def delete_expired(tx: CacheTransaction, *, limit: int) -> int:
    """Delete up to about `limit` entries past their expire time; return how many."""
    deleted = 0
    for category in tx.all_categories():
        expired = expiration.expired_rows(category.id, now_ms=tx.now_ms).limit(limit - deleted)
        deleted += tx.delete([row.id for row in tx.connection.execute(expired)])
        if deleted >= limit:
            break
    return deleted


def shrink_to_quota(tx: CacheTransaction, category_id: int) -> int:
    """Evict until the category is within its limits, as after a smaller quota; return how many left."""
    tx.reread_categories()
    return quota.make_room(tx, tx.category(category_id), incoming_count=0, incoming_bytes=0)


def record_accesses(tx: CacheTransaction, accesses: Accesses) -> None:
    """Add counted lookups; a hit restarts the time to live of a sliding entry."""
    row_ids = sorted(accesses.hits)
    for start in range(0, len(row_ids), ID_CHUNK):
        chunk = row_ids[start : start + ID_CHUNK]
        query = select(
            entries.c.id, entries.c.ttl_mode, entries.c.ttl_ms, entries.c.expire_ms, entries.c.access_ms
        )
        rows = tx.connection.execute(query.where(entries.c.cache_id == tx.cache_id, entries.c.id.in_(chunk)))
        hits, extended = [], []
        for row in rows.all():
            count, access_ms = accesses.hits[row.id]
            expire_ms = expiration.extended(row.ttl_mode, row.ttl_ms, row.expire_ms, access_ms=access_ms)
            if expire_ms is not None:
                extended.append(row.id)
            later = row.expire_ms if expire_ms is None else expire_ms
            last_ms = max(row.access_ms, access_ms)  # another replica's later hits may be written already
            hits.append({"row_id": row.id, "hits": count, "last_ms": last_ms, "later_ms": later})
        if hits:
            tx.connection.execute(_ADD_HITS, hits)
        tx.record(Operation.EXTEND, extended)
    known = {category.id for category in tx.all_categories()}
    for (category_id, column), count in sorted(accesses.outcomes.items()):
        if category_id in known:
            counted = {column: categories.c[column] + count}
            tx.connection.execute(update(categories).where(categories.c.id == category_id).values(**counted))


def entry_name(connection: Connection, row_id: int) -> str | None:
    """The id of the entry with this row id; None where it is gone."""
    name: str | None = connection.execute(select(entries.c.name).where(entries.c.id == row_id)).scalar()
    return name


def _earlier_answers(tx: CacheTransaction, items: Sequence[NewEntry]) -> list[StoredEntry | None]:
    """The answers that were given to the same request ids before."""
    ids = [item.request_id for item in items if item.request_id]
    if len(set(ids)) < len(ids):
        raise InvalidRequestError("a request id is used twice in one batch", reason="REQUEST_ID_REUSED")
    known = {}
    if ids:
        rows = tx.connection.execute(
            select(requests).where(requests.c.cache_id == tx.cache_id, requests.c.request_id.in_(ids))
        )
        known = {row.request_id: row for row in rows}
    answers: list[StoredEntry | None] = []
    for item in items:
        row = known.get(item.request_id)
        if row is not None and row.digest != item.request_digest:
            raise InvalidRequestError(
                f"request id {item.request_id!r} was used for another entry", reason="REQUEST_ID_REUSED"
            )
        answers.append(StoredEntry(**row.answer) if row is not None else None)
    return answers


def _turn_away(
    tx: CacheTransaction, items: Sequence[NewEntry], answers: list[StoredEntry | None], admit: Admit
) -> None:
    """Answer the items that are not admitted; a repeat of the same request gets the same answer."""
    refused: list[tuple[NewEntry, StoredEntry]] = []
    for i, item in enumerate(items):
        if answers[i] is not None:
            continue
        admission = admit(tx.category(item.category_id).policy, item)
        if admission is not Admission.STORED:
            answer = replace(_NOTHING_STORED, admission=admission.value)
            answers[i] = answer
            refused.append((item, answer))
    if refused:
        _keep_answers(tx, [item for item, _ in refused], [answer for _, answer in refused])


def _chunks(tx: CacheTransaction, items: Sequence[NewEntry]) -> Iterable[list[NewEntry]]:
    """Cut a batch where a part must be stored before the next: a key comes again, or a quota is full."""
    chunk: list[NewEntry] = []
    keys: set[object] = set()
    room = quota.Room(tx.category)
    for item in items:
        own = _conflict_keys(item)
        if chunk and (own & keys or not room.holds(item)):
            yield chunk
            chunk, keys, room = [], set(), quota.Room(tx.category)
        room.take(item)
        chunk.append(item)
        keys |= own
    if chunk:
        yield chunk


def _conflict_keys(item: NewEntry) -> set[object]:
    keys: set[object] = {("name", name) for name in (item.name, item.replace_name) if name}
    if item.fingerprint is not None:
        keys.add((item.category_id, fingerprint_key(item.scope, item.fingerprint)))
    return keys


def _store_chunk(tx: CacheTransaction, items: Sequence[NewEntry]) -> list[StoredEntry]:
    tx.delete(_replaced_rows(tx, items))
    names = [item.name or secrets.token_hex(16) for item in items]
    _check_names_free(tx, names)
    evicted = 0
    for category_id in sorted({item.category_id for item in items}):
        incoming = [item for item in items if item.category_id == category_id]
        evicted += quota.make_room(
            tx,
            tx.category(category_id),
            incoming_count=len(incoming),
            incoming_bytes=sum(item.size_bytes for item in incoming),
        )
    columns = entry_columns(tx, items, names=names)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    statement = insert(entries).returning(entries.c.id, sort_by_parameter_order=True)
    row_ids = list(tx.connection.execute(statement, rows).scalars())
    tx.record(Operation.UPSERT, row_ids)
    _insert_contents(tx, items, row_ids)
    for category_id in sorted({item.category_id for item in items}):
        sizes = [item.size_bytes for item in items if item.category_id == category_id]
        tx.count(category_id, entry_count=len(sizes), size_bytes=sum(sizes))
    answers = [
        StoredEntry(
            name=row["name"],
            seq=row["seq"],
            create_ms=row["create_ms"],
            expire_ms=row["expire_ms"],
            ttl_ms=row["ttl_ms"],
            ttl_mode=row["ttl_mode"],
            evicted_count=evicted if i == 0 else 0,
        )
        for i, row in enumerate(rows)
    ]
    _keep_answers(tx, items, answers)
    return answers


def _replaced_rows(tx: CacheTransaction, items: Sequence[NewEntry]) -> list[int]:
    """Rows that the items take the place of: named ones, the same fingerprint in the same category, and
    expired ones that still hold an id."""
    found: set[int] = set()
    if replaced := tuple(item.replace_name for item in items if item.replace_name):
        found.update(select_rows(tx.connection, tx.cache_id, Selection(names=replaced), live_at=0))
    names = [item.name for item in items if item.name]
    expired = select(entries.c.id).where(
        entries.c.cache_id == tx.cache_id, entries.c.name.in_(names), entries.c.expire_ms <= tx.now_ms
    )
    found.update(tx.connection.execute(expired).scalars())
    for category_id, keys in _fingerprint_keys(items).items():
        query = select(entries.c.id).where(
            entries.c.category_id == category_id, entries.c.fingerprint_key.in_(keys)
        )
        found.update(tx.connection.execute(query).scalars())
    return sorted(found)


def _fingerprint_keys(items: Sequence[NewEntry]) -> dict[int, list[bytes]]:
    """The fingerprint keys of the items that have one, by category."""
    keys: dict[int, list[bytes]] = {}
    for item in items:
        if item.fingerprint is not None:
            keys.setdefault(item.category_id, []).append(fingerprint_key(item.scope, item.fingerprint))
    return keys


def _check_names_free(tx: CacheTransaction, names: Sequence[str]) -> None:
    query = select(entries.c.name).where(entries.c.cache_id == tx.cache_id, entries.c.name.in_(names))
    taken = tx.connection.execute(query).scalars().first()
    if taken is not None:
        raise AlreadyExistsError(
            f"{child_name(tx.cache, 'entries', taken)} exists already",
            reason="ENTRY_EXISTS",
            entry=taken,
        )


def entry_columns(
    tx: CacheTransaction, items: Sequence[NewEntry], *, names: Sequence[str]
) -> dict[str, Sequence[Any]]:
    """The columns of `entries` for the next rows, without the id that the database gives; labels are lists.

    Raises: NotFoundError; PreconditionError: a space was removed since its vectors were made;
    InvalidRequestError: a vector is of another embedder than those of its space.
    """
    tx.check_embedders(dict.fromkeys((item.modality, item.embedder_id) for item in items))
    policies = {key: tx.category(key).policy for key in {item.category_id for item in items}}
    lifetimes = [expiration.lifetime(item, policies[item.category_id], now_ms=tx.now_ms) for item in items]
    create_times = [lifetime.create_ms for lifetime in lifetimes]
    codings = [item.coding for item in items]
    keys = [
        None if item.fingerprint is None else fingerprint_key(item.scope, item.fingerprint) for item in items
    ]
    return {
        "cache_id": [tx.cache_id] * len(items),
        "category_id": [item.category_id for item in items],
        "name": names,
        "scope": [item.scope for item in items],
        "fingerprint_key": keys,
        "fingerprint": [item.fingerprint for item in items],
        "text": [item.text for item in items],
        "labels": [list(item.labels) for item in items],
        "has_labels": [bool(item.labels) for item in items],
        "source": [item.source for item in items],
        "model": [item.model for item in items],
        "modality": [item.modality for item in items],
        "embedder_id": [item.embedder_id or tx.embedder_id(item.modality) for item in items],
        "vector": [item.vector.tobytes() for item in items],
        "code": [None if coding is None else coding.code for coding in codings],
        "label_code": [None if coding is None else coding.label_code for coding in codings],
        "encoder_id": [None if coding is None else coding.encoder_id for coding in codings],
        "ttl_ms": [lifetime.ttl_ms for lifetime in lifetimes],
        "ttl_mode": [lifetime.ttl_mode for lifetime in lifetimes],
        "create_ms": create_times,
        "expire_ms": [lifetime.expire_ms for lifetime in lifetimes],
        "access_ms": create_times,
        "access_count": [0] * len(items),
        "size_bytes": [item.size_bytes for item in items],
        "cost": [item.cost for item in items],
        "worth": [worth(item.cost, access_count=0, size_bytes=item.size_bytes) for item in items],
        "seq": range(tx.seq + 1, tx.seq + 1 + len(items)),
    }


def _insert_contents(tx: CacheTransaction, items: Sequence[NewEntry], row_ids: Sequence[int]) -> None:
    tx.connection.execute(
        insert(responses),
        [
            {"entry_id": row_id, "body": item.response, "content_type": item.content_type}
            for item, row_id in zip(items, row_ids, strict=True)
        ],
    )
    tagged = [
        {"entry_id": row_id, "tag": tag, "cache_id": tx.cache_id}
        for item, row_id in zip(items, row_ids, strict=True)
        for tag in sorted(set(item.tags))
    ]
    if tagged:
        tx.connection.execute(insert(entry_tags), tagged)


def _keep_answers(tx: CacheTransaction, items: Sequence[NewEntry], answers: Sequence[StoredEntry]) -> None:
    kept = [
        {
            "cache_id": tx.cache_id,
            "request_id": item.request_id,
            "digest": item.request_digest,
            "answer": asdict(answer),
            "create_ms": tx.now_ms,
        }
        for item, answer in zip(items, answers, strict=True)
        if item.request_id
    ]
    if kept:
        tx.connection.execute(insert(requests), kept)

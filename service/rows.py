"""Reads of the store: rows to records."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from service.errors import NotFoundError, PreconditionError
from service.keys import cache_name, child_name
from service.policy import OwnPolicy, chain_of, load_own, resolve
from service.records import (
    CacheRecord,
    CategoryRecord,
    EncoderRecord,
    EntryRecord,
    JobRecord,
    ModalitySpec,
    VerifierRecord,
)
from service.tables import caches, categories, encoders, entries, entry_tags, jobs, responses, verifiers

_CHUNK = 1_000
_PAGE_CHUNK = 64
_ROW_BYTES = 16 * 1024  # labels, tags, scope, source and names of one entry at the most
_ENTRY_COLUMNS = [
    entries.c[name] for name in EntryRecord.__dataclass_fields__ if name in entries.c and name != "labels"
] + [entries.c.labels]
_ENCODER_COLUMNS = [encoders.c[name] for name in EncoderRecord.__dataclass_fields__]
_VERIFIER_COLUMNS = [verifiers.c[name] for name in VerifierRecord.__dataclass_fields__]


def read_caches(connection: Connection) -> list[CacheRecord]:
    """All caches by name."""
    return [_cache(row) for row in connection.execute(select(caches).order_by(caches.c.name))]


def read_cache(connection: Connection, name: str) -> CacheRecord:
    """One cache. Raises: NotFoundError."""
    row = connection.execute(select(caches).where(caches.c.name == name)).one_or_none()
    if row is None:
        raise NotFoundError(f"{cache_name(name)} does not exist", reason="CACHE_NOT_FOUND")
    return _cache(row)


def read_cache_by_id(connection: Connection, cache_id: int) -> CacheRecord:
    """One cache, whatever its name is or was. Raises: NotFoundError."""
    row = connection.execute(select(caches).where(caches.c.id == cache_id)).one_or_none()
    if row is None:
        raise NotFoundError("the cache was deleted", reason="CACHE_NOT_FOUND")
    return _cache(row)


def active_encoder_id(cache: CacheRecord) -> str:
    """The encoder that codes what is stored. Raises: PreconditionError for a cache without one."""
    if cache.active_encoder_id is None:
        raise PreconditionError(
            f"{cache_name(cache.name)} has no active encoder: train one first", reason="NO_ACTIVE_ENCODER"
        )
    return cache.active_encoder_id


def read_categories(connection: Connection, cache_id: int) -> list[CategoryRecord]:
    """A cache's categories by name. Raises: DamagedPolicyError."""
    query = select(categories).where(categories.c.cache_id == cache_id).order_by(categories.c.name)
    rows = connection.execute(query).all()
    names = {row.id: row.name for row in rows}
    parents = {row.id: row.parent_id for row in rows}
    own = {row.id: load_own(row.policy, category=row.name) for row in rows}
    return [_category(row, names=names, parents=parents, own=own) for row in rows]


def categories_by_id(connection: Connection, cache_id: int) -> dict[int, CategoryRecord]:
    """A cache's categories by row id; read after entries it has the category of each."""
    return {record.id: record for record in read_categories(connection, cache_id)}


def read_category(connection: Connection, cache: CacheRecord, name: str) -> CategoryRecord:
    """One category. Raises: NotFoundError."""
    for record in read_categories(connection, cache.id):
        if record.name == name:
            return record
    raise category_not_found(cache.name, name)


def category_not_found(cache: str, category: str) -> NotFoundError:
    """The error that names the category."""
    return NotFoundError(
        f"{child_name(cache, 'categories', category)} does not exist", reason="CATEGORY_NOT_FOUND"
    )


def read_encoders(connection: Connection, cache_id: int) -> list[EncoderRecord]:
    """A cache's encoders, newest first."""
    query = (
        select(*_ENCODER_COLUMNS)
        .where(encoders.c.cache_id == cache_id)
        .order_by(encoders.c.create_ms.desc(), encoders.c.encoder_id)
    )
    return [EncoderRecord(**row._mapping) for row in connection.execute(query)]


def read_encoder(connection: Connection, cache: CacheRecord, encoder_id: str) -> EncoderRecord:
    """One encoder. Raises: NotFoundError."""
    for record in read_encoders(connection, cache.id):
        if record.encoder_id == encoder_id:
            return record
    raise NotFoundError(
        f"{child_name(cache.name, 'encoders', encoder_id)} does not exist", reason="ENCODER_NOT_FOUND"
    )


def read_weights(connection: Connection, cache_id: int, encoder_id: str) -> bytes:
    """An encoder's checkpoint. Raises: NotFoundError; PreconditionError: it was destroyed."""
    query = select(encoders.c.weights).where(
        encoders.c.cache_id == cache_id, encoders.c.encoder_id == encoder_id
    )
    weights: bytes | None = connection.execute(query).scalar()
    if weights is None:
        raise NotFoundError(f"encoder {encoder_id} does not exist", reason="ENCODER_NOT_FOUND")
    if not weights:
        raise PreconditionError(f"encoder {encoder_id} was destroyed", reason="ENCODER_DESTROYED")
    return weights


def read_verifiers(connection: Connection, cache_id: int) -> list[VerifierRecord]:
    """A cache's verifiers, newest first."""
    query = (
        select(*_VERIFIER_COLUMNS)
        .where(verifiers.c.cache_id == cache_id)
        .order_by(verifiers.c.create_ms.desc(), verifiers.c.verifier_id)
    )
    return [VerifierRecord(**row._mapping) for row in connection.execute(query)]


def read_verifier(connection: Connection, cache: CacheRecord, verifier_id: str) -> VerifierRecord:
    """One verifier. Raises: NotFoundError."""
    for record in read_verifiers(connection, cache.id):
        if record.verifier_id == verifier_id:
            return record
    raise NotFoundError(
        f"{child_name(cache.name, 'verifiers', verifier_id)} does not exist", reason="VERIFIER_NOT_FOUND"
    )


def read_verifier_weights(connection: Connection, cache_id: int, verifier_id: str) -> bytes:
    """What `dump_verifier` made. Raises: NotFoundError."""
    query = select(verifiers.c.weights).where(
        verifiers.c.cache_id == cache_id, verifiers.c.verifier_id == verifier_id
    )
    weights: bytes | None = connection.execute(query).scalar()
    if weights is None:
        raise NotFoundError(f"verifier {verifier_id} does not exist", reason="VERIFIER_NOT_FOUND")
    return weights


def read_jobs(connection: Connection, cache_id: int) -> list[JobRecord]:
    """A cache's jobs, newest first."""
    query = select(jobs).where(jobs.c.cache_id == cache_id).order_by(jobs.c.id.desc())
    return [JobRecord(**row._mapping) for row in connection.execute(query)]


def read_entry(connection: Connection, cache: CacheRecord, name: str, *, now_ms: int) -> EntryRecord:
    """One live entry with response and tags. Raises: NotFoundError."""
    query = entry_query(cache.id).where(entries.c.name == name, entries.c.expire_ms > now_ms)
    for record in read_entries(connection, query):
        return record
    raise NotFoundError(f"{child_name(cache.name, 'entries', name)} does not exist", reason="ENTRY_NOT_FOUND")


def entry_query(cache_id: int) -> Select[Any]:
    """Entries of a cache with their responses; add conditions and an order."""
    columns = (*_ENTRY_COLUMNS, responses.c.body.label("response"), responses.c.content_type)
    joined = select(*columns).join(responses, responses.c.entry_id == entries.c.id)
    return joined.where(entries.c.cache_id == cache_id)


def read_entries(connection: Connection, query: Select[Any], *, with_tags: bool = True) -> list[EntryRecord]:
    """The entries of an `entry_query`, with their tags."""
    rows = connection.execute(query).all()
    tags = _read_tags(connection, [row.id for row in rows]) if with_tags else {}
    return [_entry(row, tuple(tags.get(row.id, ()))) for row in rows]


def read_entries_by_id(
    connection: Connection, cache_id: int, row_ids: Sequence[int], *, with_tags: bool = True
) -> dict[int, EntryRecord]:
    """The entries with these row ids that exist, by row id."""
    found: dict[int, EntryRecord] = {}
    for start in range(0, len(row_ids), _CHUNK):
        query = entry_query(cache_id).where(entries.c.id.in_(row_ids[start : start + _CHUNK]))
        found.update((record.id, record) for record in read_entries(connection, query, with_tags=with_tags))
    return found


def scan_entries(
    connection: Connection,
    query: Select[Any],
    *,
    after: int = 0,
    chunk: int = _CHUNK,
    with_tags: bool = False,
) -> Iterator[list[EntryRecord]]:
    """All entries of an `entry_query` beyond row id `after`, in that order, a chunk at a time."""
    while True:
        page = query.where(entries.c.id > after).order_by(entries.c.id).limit(chunk)
        found = read_entries(connection, page, with_tags=with_tags)
        if found:
            yield found
        if len(found) < chunk:
            return
        after = found[-1].id


@dataclass(frozen=True, slots=True)
class EntryPage:
    """Entries in the order of their row ids; `next_after` None: there are no more."""

    records: list[EntryRecord]
    next_after: int | None


def read_page(
    connection: Connection, query: Select[Any], *, after: int, size: int, budget_bytes: int
) -> EntryPage:
    """Entries of an `entry_query` beyond row id `after`: at most `size`, and within the budget or one."""
    records: list[EntryRecord] = []
    used_bytes = 0
    for chunk in scan_entries(connection, query, after=after, chunk=_PAGE_CHUNK, with_tags=True):
        for record in chunk:
            used_bytes += len(record.response) + 2 * len(record.vector) + 4 * len(record.text) + _ROW_BYTES
            if records and (len(records) == size or used_bytes > budget_bytes):
                return EntryPage(records, records[-1].id)
            records.append(record)
    return EntryPage(records, None)


def count_entries(connection: Connection, cache_id: int) -> int:
    """Entries of a cache, expired ones included."""
    query = select(func.count()).select_from(entries).where(entries.c.cache_id == cache_id)
    return int(connection.execute(query).scalar_one())


def _read_tags(connection: Connection, row_ids: Sequence[int]) -> dict[int, list[str]]:
    tags: dict[int, list[str]] = {}
    for start in range(0, len(row_ids), _CHUNK):
        query = select(entry_tags.c.entry_id, entry_tags.c.tag).where(
            entry_tags.c.entry_id.in_(row_ids[start : start + _CHUNK])
        )
        # Sorted here: a database sorts by its own collation.
        for row in sorted(connection.execute(query), key=lambda row: str(row.tag)):
            tags.setdefault(row.entry_id, []).append(row.tag)
    return tags


def _cache(row: Row[Any]) -> CacheRecord:
    values = dict(row._mapping)
    values["modalities"] = {name: ModalitySpec(**spec) for name, spec in values["modalities"].items()}
    return CacheRecord(**values)


def _category(
    row: Row[Any],
    *,
    names: Mapping[int, str],
    parents: Mapping[int, int | None],
    own: Mapping[int, OwnPolicy],
) -> CategoryRecord:
    chain = chain_of(parents, row.id)
    values = {name: value for name, value in row._mapping.items() if name != "policy"}
    return CategoryRecord(
        parent=names[chain[1]] if len(chain) > 1 else "",
        own_policy=own[row.id],
        policy=resolve(own[up] for up in chain),
        **values,
    )


def _entry(row: Row[Any], tags: tuple[str, ...]) -> EntryRecord:
    values = dict(row._mapping)
    values["labels"] = tuple(values["labels"])
    return EntryRecord(tags=tags, **values)

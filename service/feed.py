"""From the store to the index: changes since a seq, and rows as the index takes them."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, delete, func, select

from index.requests import Changes
from index.rows import Rows, SegmentKey
from service.coding import STORED_DTYPE, vectors_of
from service.keys import scope_key, split_key
from service.payload import Facts, pack_payload
from service.records import CacheRecord, EntryRecord, Operation
from service.rows import read_cache_by_id, read_entries_by_id
from service.tables import caches, changes

logger = logging.getLogger(__name__)

# Rows read at once, responses included.
CHUNK = 1_000


class FeedPrunedError(Exception):
    """The feed does not hold what comes after the follower's seq; it must start from the entries."""


@dataclass(frozen=True, slots=True)
class FeedPage:
    """One step along the feed."""

    changes: Changes
    encoder_ids: frozenset[str]


def read_changes(connection: Connection, cache: CacheRecord, *, after: int) -> FeedPage | None:
    """The next changes after seq `after`; None when there are none. Raises: FeedPrunedError."""
    query = (
        select(changes.c.seq, changes.c.operation, changes.c.entry_id)
        .where(changes.c.cache_id == cache.id, changes.c.seq > after)
        .order_by(changes.c.seq)
        .limit(CHUNK)
    )
    rows = connection.execute(query).all()
    if not rows:
        seq = _feed_seq(connection, cache.id)
        if seq != after:
            raise FeedPrunedError(f"the feed of {cache.name} is at {seq} and has nothing after {after}")
        return None
    if rows[0].seq != after + 1:
        raise FeedPrunedError(f"the feed of {cache.name} begins at {rows[0].seq}, after {after}")
    cache = read_cache_by_id(connection, cache.id)  # the follower may not know a new space yet
    touched = sorted({row.entry_id for row in rows if row.operation != Operation.DELETE})
    found = read_entries_by_id(connection, cache.id, touched, with_tags=False)
    upserted = {row.entry_id for row in rows if row.operation == Operation.UPSERT}
    extended = [row_id for row_id in touched if row_id in found and row_id not in upserted]
    gone = sorted({row.entry_id for row in rows} - set(found))
    return FeedPage(
        Changes(
            upserts=tuple(to_rows(cache, [found[row_id] for row_id in sorted(upserted & set(found))])),
            deleted_ids=np.array(gone, dtype=np.int64),
            expire_ids=np.array(extended, dtype=np.int64),
            expire_times=np.array([found[row_id].expire_ms for row_id in extended], dtype=np.int64),
            seq=rows[-1].seq,
        ),
        frozenset(record.encoder_id for record in found.values() if record.encoder_id),
    )


def prune_changes(connection: Connection, cache_id: int, *, retained: int) -> int:
    """Forget all but the last `retained` changes; a follower further behind starts from the entries."""
    oldest = _feed_seq(connection, cache_id) - retained
    pruned = delete(changes).where(changes.c.cache_id == cache_id, changes.c.seq <= oldest)
    return connection.execute(pruned).rowcount


def to_rows(cache: CacheRecord, records: Sequence[EntryRecord]) -> list[tuple[SegmentKey, Rows]]:
    """Entries as the index takes them, grouped by segment.

    An entry whose stored vector or code is damaged is left out and named: served it would be wrong.
    """
    grouped: dict[SegmentKey, list[EntryRecord]] = defaultdict(list)
    for record in records:
        if damage := damage_of(cache, record):
            logger.error("entry %s of %s is not served: %s", record.name, cache.name, damage)
            continue
        grouped[SegmentKey(record.category_id, record.modality, record.encoder_id)].append(record)
    return [(key, _rows(cache, group)) for key, group in grouped.items()]


def damage_of(cache: CacheRecord, record: EntryRecord) -> str | None:
    """Why the index cannot hold an entry as it is stored; None: it can."""
    spec = cache.modalities.get(record.modality)
    if spec is None:
        return f"the cache has no modality {record.modality!r}"
    if len(record.vector) != STORED_DTYPE.itemsize * spec.dim:
        return f"the vector has {len(record.vector)} bytes, {spec.dim} dimensions need {2 * spec.dim}"
    if not np.isfinite(np.frombuffer(record.vector, dtype=STORED_DTYPE)).all():
        return "the vector is not finite"
    if (record.code is None) != (record.encoder_id is None):
        return "it has a code without an encoder, or an encoder without a code"
    for what, code, bits in (
        ("code", record.code, cache.code_bits),
        ("label code", record.label_code, cache.label_bits),
    ):
        if code is not None and len(code) != bits // 8:
            return f"the {what} has {len(code)} bytes, {bits} bits need {bits // 8}"
    if record.expire_ms < 1:
        return f"the expire time is {record.expire_ms}"
    return None


def _rows(cache: CacheRecord, records: Sequence[EntryRecord]) -> Rows:
    label_words = cache.label_bits // 64
    label_codes = np.zeros((len(records), label_words), dtype=np.uint64)
    label_mask = np.zeros(len(records), dtype=bool)
    fingerprints = np.zeros((len(records), 2), dtype=np.uint64)
    for i, record in enumerate(records):
        if record.label_code is not None:
            label_codes[i] = np.frombuffer(record.label_code, dtype="<u8")
            label_mask[i] = True
        if record.fingerprint_key is not None:
            fingerprints[i] = split_key(record.fingerprint_key)
    codes = None
    if records[0].encoder_id is not None:
        blobs = b"".join(record.code or b"" for record in records)
        codes = np.frombuffer(blobs, dtype="<u8").reshape(len(records), -1)
    return Rows(
        entry_ids=np.array([record.id for record in records], dtype=np.int64),
        vectors=vectors_of([record.vector for record in records]),
        codes=codes,
        label_codes=label_codes,
        label_mask=label_mask,
        scopes=np.array([scope_key(record.scope) for record in records], dtype=np.uint64),
        fingerprints=fingerprints,
        expire_times=np.array([record.expire_ms for record in records], dtype=np.int64),
        payloads=[
            pack_payload(
                record.name,
                record.content_type,
                record.response,
                text=record.text,
                facts=Facts(record.create_ms, record.demote_ms is not None),
            )
            for record in records
        ],
    )


def _feed_seq(connection: Connection, cache_id: int) -> int:
    query = select(func.coalesce(func.max(caches.c.seq), 0)).where(caches.c.id == cache_id)
    return int(connection.execute(query).scalar_one())

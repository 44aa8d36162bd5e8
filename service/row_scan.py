"""All rows of a cache to the index, whole columns at a time.

Gives what `feed` gives, for rows that come in tens of thousands; a damaged row goes the way that single rows
go.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Row, select

from index.rows import Rows, SegmentKey
from service.coding import STORED_DTYPE, vectors_of
from service.feed import to_rows
from service.keys import scope_key
from service.payload import Facts, pack_payload
from service.records import CacheRecord
from service.rows import read_entries_by_id
from service.tables import entries, responses

SCAN_ROWS = 5_000  # rows read at once, responses included
_INDEX_COLUMNS = [
    entries.c[name]
    for name in (
        *("id", "category_id", "modality", "encoder_id", "name", "scope", "fingerprint_key", "text"),
        *("vector", "code", "label_code", "expire_ms", "create_ms", "demote_ms"),
    )
] + [responses.c.body, responses.c.content_type]


def scan_segment_rows(
    connection: Connection, cache: CacheRecord
) -> Iterator[tuple[int, list[tuple[SegmentKey, Rows]]]]:
    """All entries of a cache as the index takes them, in the order of their row ids, a chunk at a time.

    Yields (rows read, rows by segment). A damaged row is left out and named, as by feed.to_rows.
    """
    query = select(*_INDEX_COLUMNS).join(responses, responses.c.entry_id == entries.c.id)
    query = query.where(entries.c.cache_id == cache.id).order_by(entries.c.id).limit(SCAN_ROWS)
    after = 0
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
    served = (columns[name] for name in ("name", "content_type", "body", "text", "create_ms", "demote_ms"))
    return Rows(
        entry_ids=np.array(columns["id"], dtype=np.int64),
        vectors=vectors,
        codes=None if key.encoder_id is None else codes,
        label_codes=label_codes,
        label_mask=label_mask,
        scopes=np.array([scope_key(scope) for scope in columns["scope"]], dtype=np.uint64),
        fingerprints=_as_words(keys, word_count=2),
        expire_times=expire_times,
        payloads=[
            pack_payload(
                name, content_type, response, text=text, facts=Facts(create_ms, demote_ms is not None)
            )
            for name, content_type, response, text, create_ms, demote_ms in zip(*served, strict=True)
        ],
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

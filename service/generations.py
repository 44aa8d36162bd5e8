"""Generations from the store: codes for rows that have none, then sealed segments."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, bindparam, case, func, insert, select, update

from hashing.checkpoint import load_encoder
from hashing.inference import Encoder
from index.builder import BuildReport, build_generation
from index.rows import Rows, SegmentKey
from service.bulk import execute_many, first_row_id, scan_segment_rows
from service.coding import code_rows, vectors_of
from service.config import SearchConfig
from service.database import reading, writing
from service.records import CacheRecord
from service.replica import generation_owner, index_config, index_root
from service.rows import count_entries, of_cache_by_id, read_cache, read_weights
from service.tables import entries, generations
from service.transaction import CacheTransaction

_CODE_CHUNK = 10_000
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltIndex:
    """A new generation with all mutations up to `watermark`; `coded_count` rows got codes for it."""

    report: BuildReport
    watermark: int
    coded_count: int


def build_index(
    engine: Engine,
    cache: str,
    *,
    search: SearchConfig,
    data_dir: str,
    with_graph: bool,
    reencode: bool,
    memory_limit_bytes: int,
    progress: Progress,
    now_ms: int,
) -> BuiltIndex:
    """Write and activate a generation that holds a cache's entries.

    Rows without codes get those of the active encoder, in the store too; `reencode` gives them to all rows.
    What is stored or deleted meanwhile is replayed by whoever opens the generation. An interrupted build
    leaves the current generation as it was.

    Raises:
        NotFoundError: no such cache.
        StoreUnavailableError: the database cannot be reached.
        BuildInProgressError: another build of the cache runs.
    """
    with reading(engine) as connection:
        record = read_cache(connection, cache)
    coded = _code_missing(engine, record, reencode=reencode, progress=progress, now_ms=now_ms)
    token = secrets.token_hex(16)
    with writing(engine) as connection:
        listed = {"cache_id": record.id, "token": token, "create_ms": now_ms}
        connection.execute(insert(generations).values(**listed))
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        total = count_entries(connection, record.id)

        def batches() -> Iterator[tuple[SegmentKey, Rows]]:
            done = 0
            for row_count, rows in scan_segment_rows(connection, record):
                yield from rows
                done += row_count
                progress("segments", done, total)

        report = build_generation(
            index_root(data_dir, record.id),
            cache=generation_owner(record, token),
            config=index_config(record, search),
            batches=batches(),
            watermark=record.seq,
            with_graph=with_graph,
            memory_limit_bytes=memory_limit_bytes,
            progress=progress,
        )
    return BuiltIndex(report=report, watermark=record.seq, coded_count=coded)


def _code_missing(
    engine: Engine, record: CacheRecord, *, reencode: bool, progress: Progress, now_ms: int
) -> int:
    """Write codes for rows that have none; in chunks, so that a server's writes go on between."""
    if record.active_encoder_id is None:
        return 0
    with reading(engine) as connection:
        encoder = load_encoder(read_weights(connection, record.id, record.active_encoder_id))
        wanted: ColumnElement[bool] = entries.c.encoder_id.is_(None)
        if reencode:
            wanted = wanted | (entries.c.encoder_id != encoder.encoder_id)
        missing = (
            of_cache_by_id(record.id),
            entries.c.modality.in_(list(encoder.modalities)),
            wanted,
        )
        total = connection.execute(select(func.count()).select_from(entries).where(*missing)).scalar_one()
        after = first_row_id(connection, record.id) - 1
    done = 0
    while done < total:
        with writing(engine) as connection:
            CacheTransaction.lock(connection, record.id, now_ms=now_ms)
            page = select(
                entries.c.id,
                entries.c.modality,
                entries.c.vector,
                # Most rows have no labels, and JSON is slow to read.
                case((entries.c.has_labels, entries.c.labels)).label("labels"),
                entries.c.label_code,
            ).where(*missing, entries.c.id > after)
            rows = connection.execute(page.order_by(entries.c.id).limit(_CODE_CHUNK)).all()
            if not rows:
                break
            _write_codes(connection, encoder, rows)
        done += len(rows)
        after = rows[-1].id
        progress("codes", done, int(total))
    return done


def _write_codes(connection: Connection, encoder: Encoder, rows: Sequence[Row[*tuple[Any, ...]]]) -> None:
    for modality in sorted({row.modality for row in rows}):
        group = [row for row in rows if row.modality == modality]
        codings = code_rows(
            encoder,
            vectors_of([row.vector for row in group]),
            modality=modality,
            labels=[row.labels or () for row in group],
        )
        columns = {
            "row_id": [row.id for row in group],
            "row_code": [coding.code for coding in codings],
            "row_label_code": [
                row.label_code or coding.label_code for row, coding in zip(group, codings, strict=True)
            ],
            "row_encoder_id": [coding.encoder_id for coding in codings],
        }
        execute_many(connection, _SET_CODES, columns, row_count=len(group))


_SET_CODES = (
    update(entries)
    .where(entries.c.id == bindparam("row_id"))
    .values(
        code=bindparam("row_code"),
        label_code=bindparam("row_label_code"),
        encoder_id=bindparam("row_encoder_id"),
    )
)

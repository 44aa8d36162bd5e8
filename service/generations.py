"""Generations from the store: codes for rows that have none, then sealed segments."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, Select, bindparam, case, func, insert, select, update

from hashing.checkpoint import load_encoder
from hashing.inference import Encoder
from index.builder import BuildReport, build_generation
from index.rows import Rows, SegmentKey
from service.coding import code_rows, vectors_of
from service.config import SearchConfig
from service.database import execute_many, reading, writing
from service.dropped_generations import is_dropped, remove_dropped
from service.errors import PreconditionError
from service.keys import cache_name
from service.records import CacheRecord
from service.replica import generation_owner, index_config, index_root
from service.row_scan import scan_segment_rows
from service.rows import count_entries, read_cache, read_cache_by_id, read_weights
from service.tables import entries, generations
from service.transaction import CacheTransaction

BUILD_ATTEMPTS = 3  # of a build during which rows are forgotten
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
        PreconditionError: rows were forgotten during the build, again and again.
        StoreUnavailableError: the database cannot be reached.
        BuildInProgressError: another build of the cache runs.
    """
    with reading(engine) as connection:
        record = read_cache(connection, cache)
    coded = _code_missing(engine, record, reencode=reencode, progress=progress, now_ms=now_ms)
    root = index_root(data_dir, record.id)
    for _ in range(BUILD_ATTEMPTS):
        report, watermark, owner = _build_from_entries(
            engine,
            record,
            root,
            search=search,
            with_graph=with_graph,
            memory_limit_bytes=memory_limit_bytes,
            progress=progress,
            now_ms=now_ms,
        )
        with reading(engine) as connection:
            if not is_dropped(connection, record.id, owner):
                return BuiltIndex(report=report, watermark=watermark, coded_count=coded)
            # What was forgotten since the build began may be in it: nobody serves it.
            remove_dropped(connection, record, root)
    raise PreconditionError(
        f"rows of {cache_name(cache)} were forgotten during each of {BUILD_ATTEMPTS} builds",
        reason="GENERATION_DROPPED",
    )


def _build_from_entries(
    engine: Engine,
    record: CacheRecord,
    root: Path,
    *,
    search: SearchConfig,
    with_graph: bool,
    memory_limit_bytes: int,
    progress: Progress,
    now_ms: int,
) -> tuple[BuildReport, int, str]:
    """Write and activate a generation of the entries as they are.

    Returns what was written, its watermark, and what the files say they are of.
    """
    token = secrets.token_hex(16)
    with writing(engine) as connection:
        listed = {"cache_id": record.id, "token": token, "create_ms": now_ms}
        connection.execute(insert(generations).values(**listed))
    with reading(engine) as connection:
        record = read_cache_by_id(connection, record.id)
        owner = generation_owner(record, token)
        total = count_entries(connection, record.id)

        def batches() -> Iterator[tuple[SegmentKey, Rows]]:
            done = 0
            for row_count, rows in scan_segment_rows(connection, record):
                yield from rows
                done += row_count
                progress("segments", done, total)

        report = build_generation(
            root,
            cache=owner,
            config=index_config(record, search),
            batches=batches(),
            watermark=record.seq,
            with_graph=with_graph,
            memory_limit_bytes=memory_limit_bytes,
            progress=progress,
        )
    return report, record.seq, owner


def _code_missing(
    engine: Engine, record: CacheRecord, *, reencode: bool, progress: Progress, now_ms: int
) -> int:
    """Write codes for rows that have none; how many got them.

    Rows are read and encoded a chunk at a time without a lock, so that a server's writes go on meanwhile.
    """
    with reading(engine) as connection:
        record = read_cache_by_id(connection, record.id)
        if record.active_encoder_id is None:
            return 0
        encoder = load_encoder(read_weights(connection, record.id, record.active_encoder_id))
        missing = _rows_to_code(record, encoder, reencode=reencode)
        counted = missing.with_only_columns(func.count(), maintain_column_froms=True)
        total = int(connection.execute(counted).scalar_one())
    coded = done = after = 0
    while True:
        with reading(engine) as connection:
            page = missing.where(entries.c.id > after).order_by(entries.c.id).limit(_CODE_CHUNK)
            rows = connection.execute(page).all()
        if not rows:
            return coded
        codes = [_codes(encoder, modality, rows) for modality in encoder.modalities]
        with writing(engine) as connection:
            CacheTransaction.lock(connection, record.id, now_ms=now_ms)
            for columns in codes:
                if columns["row_id"]:
                    coded += execute_many(connection, _SET_CODES, columns)
        done += len(rows)
        after = rows[-1].id
        progress("codes", done, max(done, total))


def _rows_to_code(record: CacheRecord, encoder: Encoder, *, reencode: bool) -> Select[Any]:
    """The rows of a cache that an encoder is to code; add a page."""
    wanted: ColumnElement[bool] = entries.c.encoder_id.is_(None)
    if reencode:
        wanted = wanted | (entries.c.encoder_id != encoder.encoder_id)
    return select(
        entries.c.id,
        entries.c.modality,
        entries.c.vector,
        # Most rows have no labels, and JSON is slow to read.
        case((entries.c.has_labels, entries.c.labels)).label("labels"),
        entries.c.encoder_id,
    ).where(entries.c.cache_id == record.id, entries.c.modality.in_(list(encoder.modalities)), wanted)


def _codes(encoder: Encoder, modality: str, rows: Sequence[Row[Any]]) -> dict[str, list[Any]]:
    """What _SET_CODES takes, for the rows of one modality."""
    group = [row for row in rows if row.modality == modality]
    if not group:
        return {"row_id": []}
    codings = code_rows(
        encoder,
        vectors_of([row.vector for row in group]),
        modality=modality,
        labels=[row.labels or () for row in group],
    )
    return {
        "row_id": [row.id for row in group],
        "read_encoder_id": [row.encoder_id for row in group],
        "read_modality": [modality] * len(group),
        "row_code": [coding.code for coding in codings],
        "row_label_code": [coding.label_code for coding in codings],
        "row_encoder_id": [coding.encoder_id for coding in codings],
    }


# Of rows that are as they were read: what replaced one meanwhile has another id, as ids are never used again
# and a row's vector changes only with its space; one that was coded meanwhile has another encoder. A label
# code stays.
_SET_CODES = (
    update(entries)
    .where(
        entries.c.id == bindparam("row_id"),
        entries.c.encoder_id.is_not_distinct_from(bindparam("read_encoder_id")),
        entries.c.modality == bindparam("read_modality"),
    )
    .values(
        code=bindparam("row_code"),
        label_code=func.coalesce(entries.c.label_code, bindparam("row_label_code")),
        encoder_id=bindparam("row_encoder_id"),
    )
)

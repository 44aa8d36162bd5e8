"""Rows scanned in tens of thousands are what the feed makes of single ones; a scan reads no other rows."""

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bulk_rows import LABELLED, drawn_entries
from sqlalchemy import Engine, event, update
from store_rows import StoreCache, make_cache, new_entry

from hashing.config import EncoderConfig
from index.rows import Rows, SegmentKey
from service import row_import, row_scan
from service.config import SearchConfig, StoreConfig
from service.database import migrate, open_engine, reading, writing
from service.feed import to_rows
from service.generations import build_index
from service.learning import train_from_store
from service.registry import activate_encoder
from service.rows import entry_query, read_cache, scan_entries
from service.tables import entries


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """A cache of its own on either database."""
    return make_cache(shared_engine)


def by_segment(batches: list[tuple[SegmentKey, Rows]]) -> dict[SegmentKey, Rows]:
    grouped: dict[SegmentKey, list[Rows]] = defaultdict(list)
    for key, rows in batches:
        grouped[key].append(rows)
    return {key: Rows.concatenate(parts) for key, parts in grouped.items()}


def assert_scans_agree(cache: StoreCache) -> dict[SegmentKey, Rows]:
    """The bulk scan gives what the feed's gives."""
    with reading(cache.engine) as connection:
        record = read_cache(connection, cache.name)
        scanned = list(row_scan.scan_segment_rows(connection, record))
        pages = list(scan_entries(connection, entry_query(record.id)))
        expected = by_segment([batch for page in pages for batch in to_rows(record, page)])
    assert sum(row_count for row_count, _ in scanned) == len(cache.entries())
    got = by_segment([batch for _, batches in scanned for batch in batches])
    assert got.keys() == expected.keys()
    for key, rows in got.items():
        for name, column in expected[key].columns.items():
            assert np.array_equal(rows.columns[name], column), name
            assert rows.columns[name].dtype == column.dtype
        assert list(rows.payloads) == list(expected[key].payloads)  # type: ignore[call-overload]
    return got


@pytest.mark.parametrize("chunk", [1, 7, 5_000])
def test_bulk_scan_gives_the_rows_of_the_feed(
    cache: StoreCache, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("service.row_scan.SCAN_ROWS", chunk)
    other = make_cache(cache.engine)
    for owner, seed in ((cache, 1), (other, 2), (cache, 3)):
        name = f"c{seed}"
        items = drawn_entries(seed, [owner.category(name), owner.category(f"{name}-b")], 40)
        owner.mutate(partial(row_import.import_rows, items=items))
    assert len(assert_scans_agree(cache)) > 2


def test_bulk_scan_of_an_empty_cache_gives_nothing(cache: StoreCache) -> None:
    assert assert_scans_agree(cache) == {}


@pytest.mark.parametrize(
    "damage",
    [
        {"vector": b"\0" * 6},
        {"vector": b"\x00\x7c" * 8},
        {"code": b"\0" * 4},
        {"label_code": b"\0" * 4},
        {"code": None},
        {"encoder_id": None},
        {"expire_ms": 0},
    ],
)
def test_bulk_scan_leaves_a_damaged_row_out(cache: StoreCache, damage: dict[str, Any]) -> None:
    category_id = cache.category("default")
    items = [new_entry(category_id, name, coding=LABELLED) for name in "abc"]
    cache.mutate(partial(row_import.import_rows, items=items))
    with writing(cache.engine) as connection:
        broken = (entries.c.cache_id == cache.id) & (entries.c.name == "b")
        connection.execute(update(entries).where(broken).values(**damage))
    (rows,) = assert_scans_agree(cache).values()
    assert len(rows) == 2


def test_scans_of_a_cache_read_its_rows_alone_and_sort_nothing(tmp_path: Path) -> None:
    engine = open_engine(StoreConfig(url=f"sqlite:///{tmp_path}/plan.db"))
    migrate(engine)
    cache, other = make_cache(engine), make_cache(engine)
    for owner in (other, cache):
        category_id = owner.category("default")
        items = [new_entry(category_id, f"n{i}") for i in range(50)]
        owner.mutate(partial(row_import.import_rows, items=items))
    paged: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, sql: str, parameters: Any, *_: object) -> None:
        if "ORDER BY entries.id" in sql and "LIMIT" in sql:
            paged.append((sql, parameters))

    event.listen(engine, "before_cursor_execute", note)
    with reading(engine) as connection:
        record = read_cache(connection, cache.name)
        list(row_scan.scan_segment_rows(connection, record))
        list(scan_entries(connection, entry_query(record.id)))
    give_codes(cache, tmp_path)
    event.remove(engine, "before_cursor_execute", note)
    assert len({sql for sql, _ in paged}) == 3
    with reading(engine) as connection:
        for sql, parameters in paged:
            steps = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters)]
            index = "ix_entries_cache_id_id (cache_id=? AND id>?)"
            assert steps[0] == f"SEARCH entries USING INDEX {index}"
            assert not [step for step in steps if "SCAN" in step or "TEMP B-TREE" in step]
    engine.dispose()


def give_codes(cache: StoreCache, data_dir: Path) -> None:
    """Train an encoder, and build, which codes the rows."""
    encoder = train_from_store(
        cache.engine,
        cache.name,
        config=EncoderConfig(code_bits=64, label_bits=64, itq_iterations=1),
        modality="text",
        progress=None,
        now_ms=0,
    )
    with writing(cache.engine) as connection:
        activate_encoder(connection, cache.id, encoder.encoder_id, max_live_encoders=4)
    build_index(
        cache.engine,
        cache.name,
        search=SearchConfig(),
        data_dir=str(data_dir),
        with_graph=False,
        reencode=False,
        memory_limit_bytes=1 << 24,
        progress=lambda _stage, _done, _total: None,
        now_ms=0,
    )

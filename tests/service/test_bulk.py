"""Bulk paths do what single rows get: the store's own imports and the feed are the oracles."""

import random
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, text, update
from store_rows import StoreCache, make_cache, new_entry

from index.rows import Rows, SegmentKey
from service import bulk, store
from service.config import StoreConfig
from service.database import migrate, open_engine, reading, writing
from service.feed import scan_cache
from service.records import Coding, NewEntry
from service.rows import of_cache_by_id, read_cache
from service.tables import entries

CODING = Coding(encoder_id="e" * 32, code=bytes(range(8)), label_code=None)
LABELLED = Coding(encoder_id="e" * 32, code=bytes(8), label_code=bytes(range(8, 16)))


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """A cache of its own on either database."""
    return make_cache(shared_engine)


def drawn_entries(cache_seed: int, categories: list[int], count: int) -> list[NewEntry]:
    """Entries some of which share names, fingerprints and scopes."""
    draw = random.Random(cache_seed)
    items = []
    for _ in range(count):
        fields: dict[str, Any] = {
            "scope": draw.choice(["", "s"]),
            "fingerprint": draw.choice([None, *"abcdefgh"]),
            "response": draw.choice([b"", b"yes"]),
            "tags": draw.choice([(), ("t", "u")]),
            "labels": draw.choice([(), ("l",)]),
            "ttl_ms": draw.choice([None, 10, 10_000]),
            "coding": draw.choice([None, CODING, LABELLED]),
        }
        items.append(new_entry(draw.choice(categories), f"n{draw.randrange(40)}", **fields))
    return items


def contents(cache: StoreCache) -> list[tuple[Any, ...]]:
    """What is stored, without what depends on the order of storing."""
    names = {category.id: category.name for category in cache.categories().values()}
    return sorted(
        (
            *(entry.name, names[entry.category_id], entry.scope, entry.fingerprint or "", entry.response),
            *(entry.tags, entry.labels, entry.expire_ms, entry.vector, entry.code or b"", entry.ttl_ms or 0),
        )
        for entry in cache.entries()
    )


@pytest.mark.parametrize("policy", [{}, {"max_entries": 6}, {"ttl_ms": 500}])
@pytest.mark.parametrize("seed", range(4))
def test_bulk_import_stores_what_an_import_stores(
    shared_engine: Engine, seed: int, policy: dict[str, int]
) -> None:
    stored = []
    for apply in (bulk.import_rows, store.import_entries):
        cache = make_cache(shared_engine)
        categories = [cache.category("limited", **policy), cache.category("free")]
        counts = []
        for step, now_ms in enumerate((0, 100, 5_000)):
            items = drawn_entries(10 * seed + step, categories, 25)
            counts.append(cache.mutate(partial(apply, items=items), now_ms=now_ms))
            cache.check()
        stored.append((counts, contents(cache)))
    assert stored[0] == stored[1]


def test_bulk_import_writes_one_change_a_row_in_the_order_of_ids(cache: StoreCache) -> None:
    category_id = cache.category("default")
    items = [new_entry(category_id, f"n{i}") for i in range(50)]
    assert cache.mutate(partial(bulk.import_rows, items=items)) == 50
    assert [(seq, row_id) for seq, _, row_id in cache.feed()] == [
        (entry.seq, entry.id) for entry in cache.entries()
    ]
    assert cache.names() == [item.name for item in items]


def test_failed_bulk_import_stores_nothing(cache: StoreCache) -> None:
    category_id = cache.category("default")
    items = [new_entry(category_id, "a"), new_entry(category_id + 1_000_000, "b")]
    with pytest.raises(Exception, match="category"):
        cache.mutate(partial(bulk.import_rows, items=items))
    assert cache.names() == []


def test_names_of_live_entries_are_found(cache: StoreCache) -> None:
    category_id = cache.category("default")
    items = [new_entry(category_id, "a"), new_entry(category_id, "b", ttl_ms=10)]
    cache.mutate(partial(bulk.import_rows, items=items), now_ms=0)
    with reading(cache.engine) as connection:
        found = [
            bulk.stored_names(connection, cache.id, ["a", "b", "c"], now_ms=now_ms) for now_ms in (9, 10)
        ]
    assert found == [{"a", "b"}, {"a"}]


def by_segment(batches: list[tuple[SegmentKey, Rows]]) -> dict[SegmentKey, Rows]:
    grouped: dict[SegmentKey, list[Rows]] = defaultdict(list)
    for key, rows in batches:
        grouped[key].append(rows)
    return {key: Rows.concatenate(parts) for key, parts in grouped.items()}


def assert_scans_agree(cache: StoreCache) -> dict[SegmentKey, Rows]:
    """The bulk scan gives what the feed's gives."""
    with reading(cache.engine) as connection:
        record = read_cache(connection, cache.name)
        scanned = list(bulk.scan_segment_rows(connection, record))
        expected = by_segment(list(scan_cache(connection, record)))
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
    monkeypatch.setattr("service.bulk.SCAN_ROWS", chunk)
    other = make_cache(cache.engine)
    for owner, seed in ((cache, 1), (other, 2), (cache, 3)):
        name = f"c{seed}"
        items = drawn_entries(seed, [owner.category(name), owner.category(f"{name}-b")], 40)
        owner.mutate(partial(bulk.import_rows, items=items))
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
    cache.mutate(partial(bulk.import_rows, items=items))
    with writing(cache.engine) as connection:
        broken = (entries.c.cache_id == cache.id) & (entries.c.name == "b")
        connection.execute(update(entries).where(broken).values(**damage))
    (rows,) = assert_scans_agree(cache).values()
    assert len(rows) == 2


def test_scan_by_id_sorts_nothing(tmp_path: Path) -> None:
    engine = open_engine(StoreConfig(url=f"sqlite:///{tmp_path}/plan.db"))
    migrate(engine)
    statement = "SELECT id FROM entries WHERE {} AND id > 5 ORDER BY id LIMIT 9"
    condition = str(of_cache_by_id(1).compile(compile_kwargs={"literal_binds": True}))
    with reading(engine) as connection:
        plan = connection.execute(text("EXPLAIN QUERY PLAN " + statement.format(condition))).all()
    assert [row[3] for row in plan] == ["SEARCH entries USING INTEGER PRIMARY KEY (rowid>?)"]

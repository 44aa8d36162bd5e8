"""Rows imported in tens of thousands are stored as single ones are: the store's own import is the oracle."""

from functools import partial
from typing import Any

import pytest
from bulk_rows import drawn_entries
from sqlalchemy import Engine
from store_rows import StoreCache, make_cache, new_entry

from service import row_import, store
from service.database import reading


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """A cache of its own on either database."""
    return make_cache(shared_engine)


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
    for apply in (row_import.import_rows, store.import_entries):
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
    assert cache.mutate(partial(row_import.import_rows, items=items)) == 50
    assert [(seq, row_id) for seq, _, row_id in cache.feed()] == [
        (entry.seq, entry.id) for entry in cache.entries()
    ]
    assert cache.names() == [item.name for item in items]


def test_failed_bulk_import_stores_nothing(cache: StoreCache) -> None:
    category_id = cache.category("default")
    items = [new_entry(category_id, "a"), new_entry(category_id + 1_000_000, "b")]
    with pytest.raises(Exception, match="category"):
        cache.mutate(partial(row_import.import_rows, items=items))
    assert cache.names() == []


def test_names_of_live_entries_are_found(cache: StoreCache) -> None:
    category_id = cache.category("default")
    items = [new_entry(category_id, "a"), new_entry(category_id, "b", ttl_ms=10)]
    cache.mutate(partial(row_import.import_rows, items=items), now_ms=0)
    with reading(cache.engine) as connection:
        found = [
            row_import.stored_names(connection, cache.id, ["a", "b", "c"], now_ms=now_ms)
            for now_ms in (9, 10)
        ]
    assert found == [{"a", "b"}, {"a"}]

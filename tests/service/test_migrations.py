"""The schema: up, down, up again, and equal to the tables that the code declares."""

from collections.abc import Iterator
from functools import partial

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from learning_rows import DIM, encoders, learned
from sqlalchemy import Engine, inspect, text
from store_rows import make_cache, new_entry

from service import store, tables
from service.categories import create_category
from service.config import StoreConfig
from service.database import check_schema, migrate, open_engine, reading, schema_revision, writing
from service.errors import MigrationError
from service.policy import Policy
from service.rows import read_cache
from service.store import store_entries


@pytest.fixture
def empty_engine(store_config: StoreConfig) -> Iterator[Engine]:
    """A database without a schema."""
    engine = open_engine(store_config)
    yield engine
    engine.dispose()


def test_downgrade_to_base_removes_every_table_and_upgrade_restores_them(empty_engine: Engine) -> None:
    migrate(empty_engine)
    assert migrate(empty_engine, revision="base") == "base"
    assert set(inspect(empty_engine).get_table_names()) <= {"alembic_version"}
    migrate(empty_engine)
    assert set(inspect(empty_engine).get_table_names()) == {*tables.metadata.tables, "alembic_version"}


def test_migrated_schema_differs_in_nothing_from_the_declared_tables(engine: Engine) -> None:
    with reading(engine) as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, tables.metadata) == []


def test_category_of_before_there_were_verifiers_asks_for_no_consent(engine: Engine) -> None:
    cache = make_cache(engine)
    faq = cache.category("faq", threshold=0.25)
    migrate(engine, revision="0001")
    migrate(engine)
    policy = cache.categories()[faq].policy
    assert (policy.threshold, policy.min_probability) == (0.25, None)


def test_policies_of_before_are_what_categories_set_themselves(engine: Engine) -> None:
    cache = make_cache(engine)
    faq = cache.category("faq", threshold=0.25, max_entries=7, ttl_ms=60_000, eviction="lfu", shadow=True)
    plain = cache.category("plain")
    cache.mutate(partial(store.store_entries, items=[new_entry(faq, "a"), new_entry(plain, "b")]))
    migrate(engine, revision="0007")
    migrate(engine)
    own = {"threshold": 0.25, "max_entries": 7, "ttl_ms": 60_000, "eviction": "lfu", "shadow": True}
    defaults = {"threshold": 0.1, "max_entries": 0, "max_bytes": 0, "eviction": "lru", "shadow": False}
    found = cache.categories()
    assert found[faq].own_policy == {"ttl_mode": "absolute", **defaults, **own}
    assert found[plain].own_policy == {"ttl_mode": "absolute", **defaults}
    assert found[plain].policy == Policy()
    assert [(entry.name, entry.cost, entry.model, entry.demote_ms) for entry in cache.entries()] == [
        ("a", 0.0, "", None),
        ("b", 0.0, "", None),
    ]
    cache.check()


def test_a_downgrade_keeps_what_held_inherited_or_not(engine: Engine) -> None:
    cache = make_cache(engine)
    with writing(engine) as connection:
        create_category(connection, cache.name, "root", own={"threshold": 0.3, "max_entries": 5}, now_ms=0)
        leaf = create_category(
            connection, cache.name, "leaf", own={"eviction": "cost"}, parent="root", now_ms=0
        )
    cache.mutate(partial(store.store_entries, items=[new_entry(leaf.id, "a", cost=2.0)]))
    migrate(engine, revision="0007")
    with reading(engine) as connection:
        held = text("SELECT threshold, max_entries, eviction, shadow FROM categories WHERE name = 'leaf'")
        assert connection.execute(held).one() == (0.3, 5, "lru", False)
    migrate(engine)
    record = cache.categories()[leaf.id]
    assert (record.policy.threshold, record.policy.max_entries, record.parent) == (0.3, 5, "")
    assert cache.names() == ["a"]


def test_nobody_knows_what_label_parts_of_before_have_learned(engine: Engine) -> None:
    cache = make_cache(engine, dim=DIM)
    learned(cache, "a", "b")
    migrate(engine, revision="0002")
    migrate(engine)
    assert [record.untraced_row_count for record in encoders(cache).values()] == [None]


def test_entries_of_before_models_were_kept_are_of_none(engine: Engine) -> None:
    cache = make_cache(engine)
    faq = cache.category("faq")
    cache.mutate(partial(store_entries, items=[new_entry(faq, "a", model="m"), new_entry(faq, "b")]))
    migrate(engine, revision="0007")
    migrate(engine)
    assert [(own.name, own.model) for own in cache.entries()] == [("a", ""), ("b", "")]


def test_check_refuses_an_empty_database(empty_engine: Engine) -> None:
    with pytest.raises(MigrationError, match="none"):
        check_schema(empty_engine)


def test_check_accepts_a_migrated_database(engine: Engine) -> None:
    check_schema(engine)


def test_check_refuses_a_downgraded_database(engine: Engine) -> None:
    migrate(engine, revision="base")
    with pytest.raises(MigrationError):
        check_schema(engine)


def test_repeated_migration_keeps_revision_and_rows(engine: Engine) -> None:
    cache = make_cache(engine)
    with reading(engine) as connection:
        before = schema_revision(connection)
    assert migrate(engine) == before
    assert cache.seq() == 0


def test_learned_rows_of_before_are_kept_and_may_be_kept_once_a_space(engine: Engine) -> None:
    cache = make_cache(engine, dim=DIM)
    learned(cache, "a", "b")
    migrate(engine, revision="0005")
    table = tables.learned_rows
    with reading(engine) as connection:
        before = connection.execute(table.select().order_by(table.c.row_id)).all()
    migrate(engine)
    with writing(engine) as connection:
        assert connection.execute(table.select().order_by(table.c.row_id)).all() == before != []
        again = {**before[0]._mapping, "modality": "text:2"}
        connection.execute(table.insert().values(**again))
    migrate(engine, revision="0005")
    with reading(engine) as connection:
        kept = connection.execute(table.select().order_by(table.c.row_id)).all()
    assert [row.row_id for row in kept] == [row.row_id for row in before]


def test_cache_of_before_there_were_spaces_has_one_a_modality(engine: Engine) -> None:
    cache = make_cache(engine)
    with writing(engine) as connection:
        of_before = {"text": {"dim": 8, "embedder_id": "old"}}
        connection.execute(tables.caches.update().values(modalities=of_before))
    with reading(engine) as connection:
        (spec,) = read_cache(connection, cache.name).modalities.values()
    assert (spec.dim, spec.embedder_id, spec.succeeds) == (8, "old", "")

"""Caches and entries for tests of the store, and what must hold of the store after anything."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Engine, event, func, select, text

from service import registry
from service.categories import create_category
from service.config import StoreConfig
from service.database import open_engine, reading, writing
from service.records import CategoryRecord, EntryRecord, ModalitySpec, NewEntry
from service.rows import entry_query, read_cache, read_categories, read_entries
from service.tables import changes, entries
from service.transaction import CacheTransaction

T = TypeVar("T")
DIM = 8
CODE_BYTES = 0  # the sizes that tests expect are of response and vector
VECTOR_BYTES = 2 * DIM


@dataclass(frozen=True, slots=True)
class StoreCache:
    """One cache of a database; every mutation is a transaction of its own at the time that it names."""

    engine: Engine
    name: str
    id: int

    def category(self, name: str, **policy: Any) -> int:
        """Create a category; returns its row id."""
        with writing(self.engine) as connection:
            made = create_category(connection, self.name, name, own=policy, now_ms=0)
        return made.id

    def mutate(self, apply: Callable[[CacheTransaction], T], *, now_ms: int = 0) -> T:
        """Run one mutation."""
        with writing(self.engine) as connection:
            return apply(CacheTransaction.lock(connection, self.id, now_ms=now_ms))

    def entries(self) -> list[EntryRecord]:
        """All rows in the order of their storing, expired ones included."""
        with reading(self.engine) as connection:
            return read_entries(connection, entry_query(self.id).order_by(entries.c.id))

    def names(self) -> list[str]:
        """Ids of all rows in the order of their storing."""
        return [record.name for record in self.entries()]

    def seq(self) -> int:
        """The last seq."""
        with reading(self.engine) as connection:
            return read_cache(connection, self.name).seq

    def categories(self) -> dict[int, CategoryRecord]:
        """The categories by row id."""
        with reading(self.engine) as connection:
            return {record.id: record for record in read_categories(connection, self.id)}

    def feed(self) -> list[tuple[int, int, int]]:
        """(seq, operation, row id) of every change, in the order of seq."""
        query = select(changes.c.seq, changes.c.operation, changes.c.entry_id).order_by(changes.c.seq)
        with reading(self.engine) as connection:
            rows = connection.execute(query.where(changes.c.cache_id == self.id)).all()
        return [(row.seq, row.operation, row.entry_id) for row in rows]

    def check(self) -> None:
        """Counters equal aggregates, seqs are contiguous, quotas hold."""
        assert [seq for seq, _, _ in self.feed()] == list(range(1, self.seq() + 1))
        query = select(entries.c.category_id, func.count(), func.sum(entries.c.size_bytes))
        with reading(self.engine) as connection:
            grouped = query.where(entries.c.cache_id == self.id).group_by(entries.c.category_id)
            totals = {row[0]: (row[1], int(row[2])) for row in connection.execute(grouped)}
        for category_id, category in self.categories().items():
            assert (category.entry_count, category.size_bytes) == totals.get(category_id, (0, 0))
            policy = category.policy
            assert not policy.max_entries or category.entry_count <= policy.max_entries
            assert not policy.max_bytes or category.size_bytes <= policy.max_bytes


def make_cache(
    engine: Engine, *, dim: int = DIM, modalities: Mapping[str, int] | None = None, code_bits: int = 64
) -> StoreCache:
    """A new cache under a name of its own. modalities: with their dimensions; None: text of `dim`."""
    name = f"cache-{secrets.token_hex(6)}"
    with writing(engine) as connection:
        made = registry.create_cache(
            connection,
            name,
            modalities={name: ModalitySpec(dim=own) for name, own in (modalities or {"text": dim}).items()},
            code_bits=code_bits,
            label_bits=64,
            description="",
            now_ms=0,
        )
    return StoreCache(engine, name, made.id)


def new_entry(category_id: int, name: str = "", **fields: Any) -> NewEntry:
    """An entry with a unit vector that depends on its name."""
    drawn = np.random.default_rng([*name.encode(), 1]).standard_normal(DIM)
    vector = (drawn / np.linalg.norm(drawn)).astype(np.float16)
    return NewEntry(
        category_id=category_id, name=name, **{"vector": vector, "code_bytes": CODE_BYTES, **fields}
    )


@contextmanager
def storing_after(engine: Engine, words: str, store_one: Callable[[], object]) -> Iterator[None]:
    """Run `store_one` (from another connection) once, right after the next statement that has these words."""
    pending = [store_one]

    def after(connection: object, cursor: object, statement: str, *_: object) -> None:
        if pending and words in statement:
            pending.pop()()

    event.listen(engine, "after_cursor_execute", after)
    try:
        yield
    finally:
        event.remove(engine, "after_cursor_execute", after)
    assert not pending, f"no statement with {words!r}"


def second_engine(engine: Engine) -> Engine:
    """The same database as another process opens it."""
    url = engine.url.render_as_string(hide_password=False)
    return open_engine(StoreConfig(url=url, durability="normal"))


def is_blocked(engine: Engine) -> bool:
    """Whether a transaction of this PostgreSQL database waits for another one's lock."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with reading(engine) as connection:
        return bool(connection.execute(waiting).scalar_one())

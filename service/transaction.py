"""One cache inside a write transaction.

Every mutation gets the next `seq` of its cache and one row in `changes`. The cache's feed row is locked
before anything else (caches in id order), so commits and seqs have the same order and quotas hold across
replicas.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from service.errors import NotFoundError, PreconditionError
from service.records import CategoryRecord, Operation
from service.rows import read_categories
from service.tables import caches, categories, changes, entries

# Most ids in one IN list; SQLite allows 32,766 variables a statement.
ID_CHUNK = 5_000


@dataclass(slots=True)
class CacheTransaction:
    """One cache inside an open write transaction: its next seqs and the clock reading of the transaction.

    spaces: those of the cache as the lock found them.
    """

    connection: Connection
    cache_id: int
    cache: str
    now_ms: int
    seq: int
    spaces: frozenset[str]
    _categories: dict[int, CategoryRecord] = field(default_factory=dict)

    @classmethod
    def lock(cls, connection: Connection, cache_id: int, *, now_ms: int) -> "CacheTransaction":
        """Lock the cache's feed row. Raises: NotFoundError."""
        query = select(caches.c.name, caches.c.seq, caches.c.modalities).where(caches.c.id == cache_id)
        row = connection.execute(query.with_for_update()).one_or_none()
        if row is None:
            raise NotFoundError("the cache was deleted", reason="CACHE_NOT_FOUND")
        return cls(connection, cache_id, row.name, now_ms, row.seq, frozenset(row.modalities))

    def check_spaces(self, spaces: Iterable[str]) -> None:
        """Raise PreconditionError unless the cache still has these spaces."""
        if not self.spaces.issuperset(spaces):
            raise PreconditionError(
                "the cache no longer takes embeddings of this embedder",
                reason="EMBEDDER_MISMATCH",
            )

    def all_categories(self) -> list[CategoryRecord]:
        """The cache's categories as this transaction sees them."""
        if not self._categories:
            found = read_categories(self.connection, self.cache_id)
            self._categories = {record.id: record for record in found}
        return list(self._categories.values())

    def category(self, category_id: int) -> CategoryRecord:
        """The category as this transaction sees it. Raises: NotFoundError."""
        self.all_categories()
        if category_id not in self._categories:
            raise NotFoundError("the category was deleted", reason="CATEGORY_NOT_FOUND")
        return self._categories[category_id]

    def reread_categories(self) -> None:
        """See what this transaction changed of the categories' settings."""
        self._categories = {}

    def record(self, operation: Operation, row_ids: Sequence[int]) -> int:
        """Write one change per row, in order, and return the first one's seq."""
        first = self.seq + 1
        if row_ids:
            self.connection.execute(
                insert(changes),
                [
                    {"cache_id": self.cache_id, "seq": first + i, "operation": operation, "entry_id": row_id}
                    for i, row_id in enumerate(row_ids)
                ],
            )
            self.seq += len(row_ids)
            self.connection.execute(update(caches).where(caches.c.id == self.cache_id).values(seq=self.seq))
        return first

    def count(self, category_id: int, *, entry_count: int, size_bytes: int) -> None:
        """Add to the category's counters."""
        known = self.category(category_id)
        self._categories[category_id] = replace(
            known, entry_count=known.entry_count + entry_count, size_bytes=known.size_bytes + size_bytes
        )
        self.connection.execute(
            update(categories)
            .where(categories.c.id == category_id)
            .values(
                entry_count=categories.c.entry_count + entry_count,
                size_bytes=categories.c.size_bytes + size_bytes,
            )
        )

    def delete(self, row_ids: Sequence[int]) -> int:
        """Delete the entries with these row ids; return how many there were."""
        deleted: list[int] = []
        for start in range(0, len(row_ids), ID_CHUNK):
            chunk = row_ids[start : start + ID_CHUNK]
            wanted = and_(entries.c.cache_id == self.cache_id, entries.c.id.in_(chunk))
            totals = self.connection.execute(
                select(entries.c.category_id, func.count(), func.sum(entries.c.size_bytes))
                .where(wanted)
                .group_by(entries.c.category_id)
            ).all()
            found = select(entries.c.id).where(wanted).order_by(entries.c.id)
            deleted.extend(self.connection.execute(found).scalars())
            self.connection.execute(delete(entries).where(wanted))
            for category_id, entry_count, size_bytes in totals:
                self.count(category_id, entry_count=-entry_count, size_bytes=-int(size_bytes))
        self.record(Operation.DELETE, deleted)
        return len(deleted)

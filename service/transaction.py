"""One cache inside a write transaction.

Every mutation gets the next `seq` of its cache and one row in `changes`. The cache's feed row is locked
before anything else (caches in id order), so commits and seqs have the same order and quotas hold across
replicas.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from service.errors import InvalidRequestError, NotFoundError, PreconditionError
from service.records import CategoryRecord, Operation
from service.rows import read_categories
from service.spaces import modality_of
from service.tables import caches, categories, changes, entries

# Most ids in one IN list; SQLite allows 32,766 variables a statement.
ID_CHUNK = 5_000


@dataclass(slots=True)
class CacheTransaction:
    """One cache inside an open write transaction: its next seqs and the clock reading of the transaction.

    modalities: the cache's spaces as the lock found them, see the table. settings_changed: whether this
    transaction changed what replicas know of the cache beside its entries.
    """

    connection: Connection
    cache_id: int
    cache: str
    now_ms: int
    seq: int
    modalities: Mapping[str, Mapping[str, object]]
    settings_changed: bool = False
    _categories: dict[int, CategoryRecord] = field(default_factory=dict)

    @classmethod
    def lock(cls, connection: Connection, cache_id: int, *, now_ms: int) -> "CacheTransaction":
        """Lock the cache's feed row. Raises: NotFoundError."""
        query = select(caches.c.name, caches.c.seq, caches.c.modalities).where(caches.c.id == cache_id)
        row = connection.execute(query.with_for_update()).one_or_none()
        if row is None:
            raise NotFoundError("the cache was deleted", reason="CACHE_NOT_FOUND")
        return cls(connection, cache_id, row.name, now_ms, row.seq, row.modalities)

    def check_embedders(self, named: Iterable[tuple[str, str]]) -> None:
        """Raise unless the cache takes embeddings of these spaces and embedders (empty: none is named).

        A space whose embedder is not known is from now on of the one that is named.
        Raises: PreconditionError: a space was removed. InvalidRequestError: two embedders in one space.
        """
        for space, embedder_id in named:
            if space not in self.modalities:
                raise PreconditionError(
                    "the cache no longer takes embeddings of this embedder",
                    reason="EMBEDDER_MISMATCH",
                )
            known = self.embedder_id(space)
            if embedder_id and not known:
                self._settle_embedder(space, embedder_id)
            elif embedder_id and embedder_id != known:
                raise _mixed(embedder_id, known)

    def embedder_id(self, space: str) -> str:
        """Who makes the embeddings of a space; empty: not known yet."""
        return str(self.modalities[space]["embedder_id"])

    def _settle_embedder(self, space: str, embedder_id: str) -> None:
        for other in self.modalities:
            if modality_of(other) == modality_of(space) and self.embedder_id(other) == embedder_id:
                raise _mixed(embedder_id, "")
        # Of a cache from before embedders were settled. Once a space: it may read all of its entries.
        query = select(entries.c.embedder_id).where(
            entries.c.cache_id == self.cache_id,
            entries.c.modality == space,
            entries.c.embedder_id.not_in(["", embedder_id]),
        )
        other_id = self.connection.execute(query.limit(1)).scalar()
        if other_id is not None:
            raise _mixed(embedder_id, other_id)
        settled = {**self.modalities[space], "embedder_id": embedder_id}
        self.modalities = {**self.modalities, space: settled}
        self.connection.execute(
            update(caches)
            .where(caches.c.id == self.cache_id)
            .values(modalities=self.modalities, config_version=caches.c.config_version + 1)
        )
        self.settings_changed = True

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


def _mixed(embedder_id: str, known: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the embedding is of {embedder_id!r}, the cache holds those of {known or 'another embedder'!r}",
        reason="EMBEDDER_MISMATCH",
        expected=known,
        got=embedder_id,
    )

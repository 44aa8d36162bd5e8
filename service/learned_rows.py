"""What label parts learned from: kept while any does, so that it can be subtracted from all of them. A row
that was learned, embedded again and learned from that is kept twice, once a space.

`learned_by` says which encoder added which row. A label part holds the rows that its encoder added, and those
of the encoders that it was updated from: the chain of `parent_id` (training from scratch has no parent). A
destroyed encoder has added nothing; what its renewed child goes on with, the child has added.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Column, Connection, delete, insert, select

from service.coding import from_stored, vectors_of
from service.errors import PreconditionError
from service.tables import encoders, entries, entry_tags, forgotten_rows, learned_by, learned_rows
from service.transaction import ID_CHUNK

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedRow:
    """One row of `learned_rows`. vector: float16 [dim] as the entry was stored."""

    row_id: int
    name: str
    source: str
    modality: str
    tags: tuple[str, ...]
    labels: tuple[str, ...]
    vector: bytes


def vectors_and_labels(rows: Sequence[LearnedRow]) -> tuple[NDArray[np.float32], list[tuple[str, ...]]]:
    """What a label state takes: float32 [n, dim], decoded as for training, and the labels of each row."""
    return from_stored(vectors_of([row.vector for row in rows])), [row.labels for row in rows]


def read_teaching(connection: Connection, cache_id: int, row_ids: Sequence[int]) -> tuple[LearnedRow, ...]:
    """The entries with these row ids, as they will be kept if an encoder of them is registered."""
    found: list[LearnedRow] = []
    for chunk in id_chunks(row_ids):
        wanted = (entries.c.cache_id == cache_id, entries.c.id.in_(chunk))
        tags: dict[int, list[str]] = {}
        tagged = select(entry_tags.c.entry_id, entry_tags.c.tag).where(
            entry_tags.c.cache_id == cache_id, entry_tags.c.entry_id.in_(chunk)
        )
        for row in connection.execute(tagged):
            tags.setdefault(row.entry_id, []).append(row.tag)
        columns = (entries.c.id, entries.c.name, entries.c.source, entries.c.modality, entries.c.labels)
        query = select(*columns, entries.c.vector).where(*wanted).order_by(entries.c.id)
        found += [
            LearnedRow(
                row_id=row.id,
                name=row.name,
                source=row.source,
                modality=row.modality,
                tags=tuple(sorted(tags.get(row.id, ()))),
                labels=tuple(row.labels),
                vector=row.vector,
            )
            for row in connection.execute(query)
        ]
    return tuple(found)


def keep_learned(connection: Connection, cache_id: int, encoder_id: str, rows: Sequence[LearnedRow]) -> None:
    """Keep what an encoder has added, in the transaction that registers it and holds the cache's lock.

    Raises: PreconditionError: one of them was forgotten since it was read.
    """
    row_ids = [row.row_id for row in rows]
    refuse_forgotten(connection, cache_id, row_ids)
    known = {(row.row_id, row.modality) for row in read_learned(connection, cache_id, row_ids)}
    fresh = [
        {
            "cache_id": cache_id,
            "row_id": row.row_id,
            "name": row.name,
            "source": row.source,
            "modality": row.modality,
            "tags": list(row.tags),
            "labels": list(row.labels),
            "vector": row.vector,
        }
        for row in rows
        if (row.row_id, row.modality) not in known
    ]
    if fresh:
        connection.execute(insert(learned_rows), fresh)
    add_members(connection, cache_id, encoder_id, row_ids)


def refuse_forgotten(connection: Connection, cache_id: int, row_ids: Sequence[int]) -> None:
    """Raise PreconditionError if one of the rows that an encoder or a map was made of was forgotten since."""
    if forgotten := present(connection, cache_id, row_ids, forgotten_rows.c.row_id):
        raise PreconditionError(
            f"{len(forgotten)} rows were forgotten while they were learned from: begin again",
            reason="ROWS_FORGOTTEN",
        )


def add_members(connection: Connection, cache_id: int, encoder_id: str, row_ids: Collection[int]) -> None:
    """Say that an encoder has added rows that are kept."""
    if row_ids:
        connection.execute(
            insert(learned_by),
            [{"cache_id": cache_id, "encoder_id": encoder_id, "row_id": row_id} for row_id in row_ids],
        )


def own_members(connection: Connection, cache_id: int, encoder_id: str) -> set[int]:
    """Row ids that an encoder itself has added."""
    query = select(learned_by.c.row_id).where(
        learned_by.c.cache_id == cache_id, learned_by.c.encoder_id == encoder_id
    )
    return set(connection.execute(query).scalars())


def lineage(connection: Connection, cache_id: int, encoder_id: str) -> list[str]:
    """The encoder and those that it was updated from, the newest first."""
    query = select(encoders.c.encoder_id, encoders.c.parent_id).where(encoders.c.cache_id == cache_id)
    return chain_of({row.encoder_id: row.parent_id for row in connection.execute(query)}, encoder_id)


def chain_of(parents: Mapping[str, str | None], encoder_id: str) -> list[str]:
    """The encoder and its ancestors, the newest first; parents: of each encoder."""
    chain: list[str] = []
    step: str | None = encoder_id
    while step is not None and step not in chain:
        chain.append(step)
        step = parents.get(step)
    return chain


def members(connection: Connection, cache_id: int, encoder_id: str) -> set[int]:
    """Row ids that the label parts of an encoder hold, of all modalities."""
    return set().union(
        *(own_members(connection, cache_id, own) for own in lineage(connection, cache_id, encoder_id))
    )


def read_learned(connection: Connection, cache_id: int, row_ids: Collection[int]) -> list[LearnedRow]:
    """The kept rows with these ids, in the order of their ids."""
    found: list[LearnedRow] = []
    columns = [learned_rows.c[name] for name in LearnedRow.__dataclass_fields__]
    for chunk in id_chunks(sorted(row_ids)):
        query = select(*columns).where(learned_rows.c.cache_id == cache_id, learned_rows.c.row_id.in_(chunk))
        for row in connection.execute(query.order_by(learned_rows.c.row_id)):
            values = dict(row._mapping)
            values["tags"], values["labels"] = tuple(row.tags), tuple(row.labels)
            found.append(LearnedRow(**values))
    return found


def delete_learned(connection: Connection, cache_id: int, row_ids: Sequence[int]) -> int:
    """Delete kept rows with these ids; return how many there were."""
    deleted = 0
    for chunk in id_chunks(row_ids):
        for table in (learned_by, learned_rows):
            wanted = delete(table).where(table.c.cache_id == cache_id, table.c.row_id.in_(chunk))
            rowcount = connection.execute(wanted).rowcount
        deleted += rowcount
    return deleted


def delete_unlearned(connection: Connection, cache_id: int) -> int:
    """Delete kept rows that no encoder has learned any more; return how many there were."""
    learned = select(learned_by.c.row_id).where(learned_by.c.cache_id == cache_id)
    of_cache = learned_rows.c.cache_id == cache_id
    kept = select(learned_rows.c.row_id).where(of_cache, learned_rows.c.row_id.not_in(learned))
    unlearned = list(connection.execute(kept).scalars())
    for chunk in id_chunks(unlearned):
        connection.execute(delete(learned_rows).where(of_cache, learned_rows.c.row_id.in_(chunk)))
    return len(unlearned)


def is_forgotten(connection: Connection, cache_id: int, row_id: int) -> bool:
    """Whether the row of this id was forgotten."""
    return bool(present(connection, cache_id, [row_id], forgotten_rows.c.row_id))


def id_chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Ids in parts that fit into one statement."""
    for start in range(0, len(values), ID_CHUNK):
        yield values[start : start + ID_CHUNK]


def present(connection: Connection, cache_id: int, row_ids: Sequence[int], column: Column[int]) -> set[int]:
    """Those of the ids that a table of the cache's rows holds."""
    found: set[int] = set()
    for chunk in id_chunks(row_ids):
        query = select(column).where(column.table.c.cache_id == cache_id, column.in_(chunk))
        found.update(connection.execute(query).scalars())
    return found

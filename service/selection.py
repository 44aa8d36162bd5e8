"""Which entries a selection means, told from the rows of the store alone."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Select, and_, func, select

from service.coding import vectors_of
from service.records import Near, Operation, Selection
from service.tables import caches, changes, entries, entry_tags
from service.transaction import ID_CHUNK

MEASURED_ROWS = 1024
"""Vectors in memory at a time."""

_ROUNDING = 1e-12  # of a distance between two equal vectors


def select_rows(connection: Connection, cache_id: int, selection: Selection, *, live_at: int) -> list[int]:
    """Row ids of the entries live at a time (ms) that the selection means, in the order of their storing."""
    found: set[int] = set()
    asked = (selection.names, selection.category_ids, selection.sources, selection.tags, selection.models)
    for names, category_ids, sources, tags, models in product(*(_parts(values) for values in asked)):
        query = select(entries.c.id).where(entries.c.cache_id == cache_id, entries.c.expire_ms > live_at)
        if names:
            query = query.where(entries.c.name.in_(names))
        if category_ids:
            query = query.where(entries.c.category_id.in_(category_ids))
        if sources:
            query = query.where(entries.c.source.in_(sources))
        if tags:
            tagged = select(entry_tags.c.entry_id).where(
                entry_tags.c.cache_id == cache_id, entry_tags.c.tag.in_(tags)
            )
            query = query.where(entries.c.id.in_(tagged))
        if models:
            query = query.where(entries.c.model.in_(models))
        if selection.created_before_ms is not None:
            query = query.where(entries.c.create_ms < selection.created_before_ms)
        if selection.near is not None:
            found.update(_near_rows(connection, cache_id, query, selection.near))
        else:
            found.update(connection.execute(query).scalars())
    return sorted(found)


def measured(connection: Connection, cache_id: int, selection: Selection) -> Selection:
    """The same selection, with what is stored now measured: a transaction that follows measures only what
    came or was changed since.

    Expired entries too: what is live is decided there.
    """
    near = selection.near
    if near is None:
        return selection
    # The seq first: what is stored between the two reads is then measured again, not missed.
    seq = connection.execute(select(caches.c.seq).where(caches.c.id == cache_id)).scalar() or 0
    within = select_rows(connection, cache_id, selection, live_at=0)
    return replace(selection, near=replace(near, measured_seq=seq, within=frozenset(within)))


def _near_rows(connection: Connection, cache_id: int, query: Select[Any], near: Near) -> Iterator[int]:
    """Of the row ids that the query gives those within the radius."""
    query = query.where(entries.c.modality == near.space)
    unmeasured = query
    since = and_(changes.c.cache_id == cache_id, changes.c.seq > near.measured_seq)
    if near.measured_seq and _is_kept(connection, cache_id, since, near.measured_seq):
        known = sorted(near.within)
        for part in _parts(known) if known else ():
            yield from connection.execute(query.where(entries.c.id.in_(part))).scalars()
        # By the feed: an entry that is embedded anew keeps its own seq, and changes its space.
        upserts = select(changes.c.entry_id).where(since, changes.c.operation == int(Operation.UPSERT))
        unmeasured = query.where(entries.c.id.in_(upserts))
    fresh = connection.execute(unmeasured).scalars().all()
    for start in range(0, len(fresh), MEASURED_ROWS):
        part = fresh[start : start + MEASURED_ROWS]
        vectors = select(entries.c.id, entries.c.vector).where(entries.c.id.in_(part))
        rows = connection.execute(vectors).all()
        distances = _distances(vectors_of([row.vector for row in rows]), near.vector)
        for row, distance in zip(rows, distances.tolist(), strict=True):
            if distance <= near.radius + _ROUNDING:
                yield row.id


def _is_kept(connection: Connection, cache_id: int, since: ColumnElement[bool], seq: int) -> bool:
    """Whether the feed still holds every change since a seq: old ones are pruned."""
    last = connection.execute(select(caches.c.seq).where(caches.c.id == cache_id)).scalar()
    first = connection.execute(select(func.min(changes.c.seq)).where(since)).scalar()
    return last == seq or first == seq + 1


def _distances(vectors: NDArray[np.float16], query: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine distances of stored rows [n, dim], each the same in whichever batch it is measured: [n]."""
    rows, asked = vectors.astype(np.float64), query.astype(np.float64)
    lengths = np.sqrt((rows * rows).sum(axis=1) * (asked * asked).sum())
    distances: NDArray[np.float64] = 1 - (rows * asked).sum(axis=1) / lengths
    return distances


def _parts(values: Sequence[Any]) -> list[Sequence[Any]]:
    """The values in parts that fit into one statement; one empty part where there are none."""
    return [values[start : start + ID_CHUNK] for start in range(0, max(1, len(values)), ID_CHUNK)]

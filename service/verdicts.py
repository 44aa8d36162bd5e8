"""Verdicts as pairs that instance codes learn from: what was asked, the entry served, right or wrong.

A verdict is such a pair while its query's embedding is known and its entry is there. "Replaced" is none: that
a user prefers another answer says nothing about whether two questions mean the same.
`encoders.verdict_watermark` is the id of the last verdict that an encoder has learned, or that came to
nothing when it was learned from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, Select, func, select, update

from hashing.checkpoint import load_encoder
from hashing.trainer import Progress
from service import registry
from service.coding import from_stored, vectors_of
from service.records import PAIR_LABELS, CacheRecord
from service.rows import read_weights
from service.tables import encoders, entries, feedback

LEAST_OF_A_KIND = 25
"""Verdicts of each kind, right and wrong: of fewer too few are left to learn once some are held out."""

PairLearner = Callable[[Engine, str, Progress, Callable[[Connection, dict[str, Any]], None]], dict[str, Any]]
"""Learns the verdicts of a cache and says what came of it: `encoder_id`, `accepted`, `reasons`, figures. What
it is given last runs in the transaction that keeps this."""


@dataclass(frozen=True, slots=True, eq=False)
class VerdictPairs:
    """rows: float32 [n, dim], the distinct vectors of queries and entries, L2-normalised. pairs: int64
    [p, 3], the row of a query, of an entry, and 1 where it was right for it, else 0. entry_ids: of these
    entries. read_to: id of the newest of these verdicts."""

    rows: NDArray[np.float32]
    pairs: NDArray[np.int64]
    entry_ids: list[int]
    read_to: int


def read_verdicts(
    connection: Connection, record: CacheRecord, encoder_id: str, *, modality: str, most: int
) -> VerdictPairs:
    """The verdicts on entries of a modality that this encoder has not read, of each kind the newest `most`.

    Equal vectors are one row. Contradictory verdicts, and repeated ones, are pairs all the same. A query that
    is its entry's vector to the bit is none: no code can tell them apart, or needs to.
    """
    after = _read_to(connection, record.id, encoder_id)
    found = [
        row
        for verdict in PAIR_LABELS
        for row in connection.execute(
            _pairs(record.id, verdict, modality=modality, after=after, most=most)
        ).all()
    ]
    found.sort(key=lambda row: int(row.id))
    if not found:
        return VerdictPairs(np.empty((0, 0), np.float32), np.empty((0, 3), np.int64), [], after)
    places: dict[bytes, int] = {}
    pairs = [
        (
            places.setdefault(row.query_vector, len(places)),
            places.setdefault(row.vector, len(places)),
            PAIR_LABELS[row.verdict],
        )
        for row in found
    ]
    return VerdictPairs(
        rows=from_stored(vectors_of(list(places))),
        pairs=np.array(pairs, dtype=np.int64),
        entry_ids=sorted({row.entry_id for row in found}),
        read_to=found[-1].id,
    )


def verdicts_wait(connection: Connection, record: CacheRecord, *, least: int, most: int) -> bool:
    """Whether `least` verdicts, and LEAST_OF_A_KIND of each kind, wait that neither the active encoder nor
    any that descends from it has read; looks at the newest `most` of a kind.

    So a rollback stands: what was learned before it is learned again only where it is asked for.
    """
    encoder_id = record.active_encoder_id
    if encoder_id is None:
        return False
    after = max(
        _read_to(connection, record.id, encoder_id), _descendants_read_to(connection, record.id, encoder_id)
    )
    if not _any_query(connection, record.id, after=after):
        return False  # without reading the encoder
    modality = next(iter(load_encoder(read_weights(connection, record.id, encoder_id)).projections))
    if modality not in record.modalities:
        return False  # its embedder was replaced
    enough = max(least, LEAST_OF_A_KIND)
    counts = []
    for verdict in PAIR_LABELS:
        waiting = _pairs(record.id, verdict, modality=modality, after=after, most=most).limit(enough)
        counted = select(func.count()).select_from(waiting.with_only_columns(feedback.c.id).subquery())
        counts.append(connection.execute(counted).scalar_one())
    return min(counts) >= LEAST_OF_A_KIND and sum(counts) >= least


def mark_read(connection: Connection, cache_id: int, encoder_id: str, read_to: int) -> None:
    """Say that verdicts up to this id came to nothing with an encoder."""
    known = func.coalesce(encoders.c.verdict_watermark, 0)
    same = (encoders.c.cache_id == cache_id, encoders.c.encoder_id == encoder_id, known < read_to)
    connection.execute(update(encoders).where(*same).values(verdict_watermark=read_to))


def _any_query(connection: Connection, cache_id: int, *, after: int) -> bool:
    """Whether a verdict beyond an id has a query."""
    return any(
        connection.execute(
            select(feedback.c.id)
            .where(
                feedback.c.cache_id == cache_id,
                feedback.c.verdict == verdict,
                feedback.c.id > after,
                feedback.c.query_vector.is_not(None),
            )
            .limit(1)
        ).first()
        is not None
        for verdict in PAIR_LABELS
    )


def _pairs(cache_id: int, verdict: str, *, modality: str, after: int, most: int) -> Select[Any]:
    """The newest `most` verdicts of a kind beyond an id that are pairs."""
    return (
        select(
            feedback.c.id,
            feedback.c.verdict,
            feedback.c.query_vector,
            entries.c.id.label("entry_id"),
            entries.c.vector,
        )
        .join(entries, entries.c.id == feedback.c.entry_id)
        .where(
            feedback.c.cache_id == cache_id,
            feedback.c.verdict == verdict,
            feedback.c.id > after,
            feedback.c.query_vector.is_not(None),
            entries.c.cache_id == cache_id,
            entries.c.modality == modality,
            func.length(feedback.c.query_vector) == func.length(entries.c.vector),
            feedback.c.query_vector != entries.c.vector,
        )
        .order_by(feedback.c.id.desc())
        .limit(most)
    )


def _read_to(connection: Connection, cache_id: int, encoder_id: str) -> int:
    """The id of the last verdict that this encoder learned, or a child of it that was rejected."""
    of_cache = encoders.c.cache_id == cache_id
    own = (encoders.c.encoder_id == encoder_id) | (
        (encoders.c.parent_id == encoder_id) & (encoders.c.state == registry.REJECTED)
    )
    found = select(func.max(encoders.c.verdict_watermark)).where(of_cache, own)
    return connection.execute(found).scalar() or 0


def _descendants_read_to(connection: Connection, cache_id: int, encoder_id: str) -> int:
    """The id of the last verdict that any encoder which descends from this one has read."""
    found = select(func.max(encoders.c.verdict_watermark)).where(
        encoders.c.cache_id == cache_id, encoders.c.encoder_id.in_(registry.descendants(cache_id, encoder_id))
    )
    return connection.execute(found).scalar() or 0

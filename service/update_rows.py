"""The rows that an update reads, by modality: to learn from, and to judge by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, select

from hashing.inference import Encoder
from hashing.label_gate import LabelledRows
from hashing.trainer import Progress
from service.config import UpdateConfig
from service.learning import StoredRows, held_out_rows, of_modality, read_rows
from service.records import CacheRecord
from service.tables import entries


@dataclass(frozen=True, slots=True)
class ArrivedRows:
    """Labelled rows of one modality. learned, queries: stored since, to learn from and kept from learning.
    old: stored before."""

    learned: StoredRows
    queries: StoredRows
    old: StoredRows

    def __len__(self) -> int:
        return len(self.learned) + len(self.queries)

    def new_for_gate(self, *, most: int) -> LabelledRows:
        """What arrived, evenly spread rows where there are over `most`."""
        learned, queries = (
            rows.take(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int).tolist())
            for rows in (self.learned, self.queries)
        )
        return _labelled(learned, queries)

    def old_for_gate(self, encoder: Encoder) -> LabelledRows | None:
        """Old rows and held-out queries whose classes the encoder knows."""
        known = set(encoder.labels)
        kept = self.old.take([i for i, own in enumerate(self.old.labels) if known.issuperset(own)])
        learned, queries = _split(kept)
        return _labelled(learned, queries) if len(learned) else None


def read_arrived(
    connection: Connection,
    record: CacheRecord,
    *,
    dims: dict[str, int],
    learnable: Sequence[str],
    after: int,
    to: int,
    config: UpdateConfig,
    progress: Progress,
) -> dict[str, ArrivedRows]:
    """Read labelled rows by modality; those stored after the seq `after` and up to `to` only of `learnable`
    modalities. dims: the modalities that are asked for, and the dimensions of their embeddings."""
    found = {}
    for modality, dim in dims.items():
        query = of_modality(record, modality).where(entries.c.has_labels)
        arrived = query.where(entries.c.seq > after, entries.c.seq <= to)
        fresh = read_rows(connection, arrived, progress=progress) if modality in learnable else _none(dim)
        before = query.where(entries.c.seq <= after)
        old = read_rows(connection, before, most=config.max_gate_rows, progress=progress)
        found[modality] = ArrivedRows(*_split(fresh if len(fresh) else _none(dim)), old)
    return found


def watermark_after(
    connection: Connection,
    record: CacheRecord,
    learnable: Sequence[str],
    *,
    after: int,
    most: int,
) -> int:
    """The seq up to which an update reads, so that it meets at most `most` rows that it can learn."""
    seqs = select(entries.c.seq).where(
        entries.c.cache_id == record.id,
        entries.c.modality.in_(learnable),
        entries.c.seq > after,
        entries.c.has_labels,
    )
    beyond = connection.execute(seqs.order_by(entries.c.seq).offset(most).limit(1)).scalar()
    return record.seq if beyond is None else int(beyond) - 1


def _none(dim: int) -> StoredRows:
    return StoredRows([], np.empty((0, dim), dtype=np.float32), [])


def _split(rows: StoredRows) -> tuple[StoredRows, StoredRows]:
    """Rows to learn from, rows to judge by."""
    held_out = held_out_rows(rows)
    return rows.take(np.flatnonzero(~held_out).tolist()), rows.take(np.flatnonzero(held_out).tolist())


def _labelled(learned: StoredRows, queries: StoredRows) -> LabelledRows:
    return LabelledRows(learned.vectors, learned.labels, queries.vectors, queries.labels)

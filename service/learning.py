"""Encoders trained from what the store holds, and the rows that they learn from; `update` adds what is new.

One labelled row in `HELD_OUT_EVERY` is never learned from (but where a class has no other), so that every
update can be judged on rows that no encoder of the cache has seen.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, Select, select

from hashing.config import EncoderConfig
from hashing.learned_states import dump_states
from hashing.trainer import Progress, TrainedEncoder, no_progress, train_encoder
from service import registry
from service.coding import from_stored, vectors_of
from service.database import reading, writing
from service.errors import PreconditionError
from service.keys import cache_name
from service.learned_rows import LearnedRow, read_teaching
from service.records import CacheRecord, EncoderRecord
from service.rows import read_cache
from service.tables import entries

HELD_OUT_EVERY = 5
MAX_TRAINING_ROWS = 200_000
_CHUNK = 5_000


@dataclass(frozen=True, slots=True, eq=False)
class StoredRows:
    """Vectors float32 [n, dim] with their row ids and labels."""

    row_ids: list[int]
    vectors: NDArray[np.float32]
    labels: list[tuple[str, ...]]
    teaching: tuple[LearnedRow, ...] = ()  # those that labels are learned from, where they were read for it

    def __len__(self) -> int:
        return len(self.row_ids)

    def take(self, rows: Sequence[int]) -> "StoredRows":
        """Some of them, in that order."""
        chosen = [self.row_ids[i] for i in rows]
        return StoredRows(chosen, self.vectors[list(rows)], [self.labels[i] for i in rows])

    @property
    def labelled_ids(self) -> list[int]:
        """Row ids of those with labels."""
        return [row_id for row_id, own in zip(self.row_ids, self.labels, strict=True) if own]


def train_from_store(
    engine: Engine,
    cache: str,
    *,
    config: EncoderConfig,
    modality: str,
    progress: Progress | None,
    now_ms: int,
) -> EncoderRecord:
    """Train an encoder on a cache's vectors, and on their labels where they have any; keep it as candidate.

    Raises:
        NotFoundError: no such cache.
        PreconditionError: bits that are not the cache's, or a row was forgotten while it was learned from.
        TrainingDataError, EmbeddingsError: what is stored cannot be learned from.
    """
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        issued = registry.issued_class_codes(connection, record.id)
    check_bits(record, code_bits=config.code_bits, label_bits=config.label_bits)
    rows = read_training_rows(engine, record, modality=modality)
    known = {label for own in rows.labels for label in own}
    trained = train_encoder(
        rows.vectors,
        config=config,
        modality=modality,
        labels=rows.labels if len(known) > 1 else None,
        class_codes=issued,
        progress=progress,
    )
    return keep_encoder(
        engine,
        record,
        trained,
        watermark=record.seq,
        read_row_ids=rows.row_ids,
        teaching=rows.teaching,
        now_ms=now_ms,
    )


def read_training_rows(engine: Engine, record: CacheRecord, *, modality: str) -> StoredRows:
    """Read up to MAX_TRAINING_ROWS evenly spread entries up to the record's seq, without the labels of those
    that no encoder may learn from."""
    query = of_modality(record, modality).where(entries.c.seq <= record.seq)
    with reading(engine) as connection:
        rows = read_rows(connection, query, most=MAX_TRAINING_ROWS)
        rows = replace(rows, labels=without_held_out(rows))
        return replace(rows, teaching=read_teaching(connection, record.id, rows.labelled_ids))


def keep_encoder(
    engine: Engine,
    record: CacheRecord,
    trained: TrainedEncoder,
    *,
    watermark: int,
    read_row_ids: Sequence[int] = (),
    teaching: Sequence[LearnedRow] = (),
    now_ms: int,
) -> EncoderRecord:
    """Register a trained encoder as candidate.

    watermark: the seq up to which it has seen entries. read_row_ids: those that it was trained on. teaching:
    those of them that its label part, where it has one, was learned from; what its state holds beyond them is
    from files.

    Raises: PreconditionError: one of them was forgotten since it was read.
    """
    learned = teaching if trained.state else ()
    with writing(engine) as connection:
        return registry.register_encoder(
            connection,
            record,
            trained.encoder,
            learning_state=dump_states(trained.states),
            watermark=watermark,
            learned=learned,
            read_row_ids=read_row_ids,
            untraced_row_count=trained.state.row_count - len(learned) if trained.state else 0,
            now_ms=now_ms,
        )


def of_modality(record: CacheRecord, modality: str) -> Select[tuple[int, bytes, list[str]]]:
    """What `read_rows` reads: all rows of one modality."""
    return select(entries.c.id, entries.c.vector, entries.c.labels).where(
        entries.c.cache_id == record.id, entries.c.modality == modality
    )


def read_rows(
    connection: Connection,
    query: Select[tuple[int, bytes, list[str]]],
    *,
    most: int | None = None,
    progress: Progress = no_progress,
) -> StoredRows:
    """The rows of the query in the order of their storing; evenly spread ones where there are over `most`.

    progress: told of "read", in rows, after every few thousand; may raise to stop.
    """
    ids = list(connection.execute(query.with_only_columns(entries.c.id).order_by(entries.c.id)).scalars())
    if most is not None and len(ids) > most:
        ids = [ids[i] for i in np.linspace(0, len(ids) - 1, most).astype(int)]
    row_ids: list[int] = []
    parts: list[NDArray[np.float32]] = []
    labels: list[tuple[str, ...]] = []
    for chunk in _chunks(ids):
        found = connection.execute(query.where(entries.c.id.in_(chunk)).order_by(entries.c.id)).all()
        row_ids += [row.id for row in found]
        labels += [tuple(row.labels) for row in found]
        parts.append(from_stored(vectors_of([row.vector for row in found])))
        progress("read", len(row_ids), len(ids))
    vectors = np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)
    return StoredRows(row_ids, vectors, labels)


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), _CHUNK):
        yield ids[start : start + _CHUNK]


def held_out_rows(rows: StoredRows) -> NDArray[np.bool_]:
    """bool [n]: rows kept from learning; every class keeps a row to learn from."""
    held_out = np.array([_is_held_out(row_id) for row_id in rows.row_ids], dtype=bool)
    learned = {label for out, own in zip(held_out, rows.labels, strict=True) if not out for label in own}
    for i, own in enumerate(rows.labels):
        if held_out[i] and not learned.issuperset(own):
            held_out[i] = False
            learned.update(own)
    return held_out


def _is_held_out(row_id: int) -> bool:
    """Drawn by a hash, so that no pattern of storing decides it."""
    digest = hashlib.blake2b(row_id.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % HELD_OUT_EVERY == 0


def without_held_out(rows: StoredRows) -> list[tuple[str, ...]]:
    """The labels of the rows, none for those that are kept from learning."""
    held_out = held_out_rows(rows)
    return [() if out else own for out, own in zip(held_out, rows.labels, strict=True)]


def check_bits(record: CacheRecord, *, code_bits: int, label_bits: int) -> None:
    """Raise PreconditionError unless an encoder of these widths fits the cache."""
    if (code_bits, label_bits) != (record.code_bits, record.label_bits):
        raise PreconditionError(
            f"{cache_name(record.name)} has {record.code_bits} code bits and {record.label_bits} label bits, "
            f"the encoder would have {code_bits} and {label_bits}",
            reason="BITS_MISMATCH",
        )

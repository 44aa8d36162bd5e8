"""Encoders from what the store holds: training from scratch, and the update that adds what is new.

One labelled row in `HELD_OUT_EVERY` is never learned from (but where a class has no other), so that every
update can be judged on rows that no encoder of the cache has seen.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, Select, bindparam, func, select, update

from hashing.checkpoint import dump_state, load_encoder, load_state
from hashing.config import EncoderConfig
from hashing.inference import Encoder
from hashing.label_part import LearnedState, empty_state
from hashing.lifelong import GateReport, LabelledRows, evaluate_update, update_labels
from hashing.trainer import Progress, TrainedEncoder, train_encoder
from service import registry
from service.coding import from_stored, label_codes_of, vectors_of
from service.config import UpdateConfig
from service.database import reading, writing
from service.errors import PreconditionError
from service.keys import cache_name
from service.records import CacheRecord, EncoderRecord, Operation
from service.rows import read_cache, read_weights
from service.tables import encoders, entries
from service.transaction import CacheTransaction

HELD_OUT_EVERY = 5
MAX_TRAINING_ROWS = 200_000
_CHUNK = 5_000


@dataclass(frozen=True, slots=True, eq=False)
class StoredRows:
    """Vectors float32 [n, dim] with their row ids and labels."""

    row_ids: list[int]
    vectors: NDArray[np.float32]
    labels: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.row_ids)

    def take(self, rows: Sequence[int]) -> "StoredRows":
        """Some of them, in that order."""
        chosen = [self.row_ids[i] for i in rows]
        return StoredRows(chosen, self.vectors[list(rows)], [self.labels[i] for i in rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateOutcome:
    """What an update did. `encoder_id` None: there was nothing to learn, and `reasons` says why."""

    encoder_id: str | None
    accepted: bool
    reasons: tuple[str, ...]
    labelled_row_count: int = 0
    unlabelled_row_count: int = 0
    drift_score: float | None = None
    new_labels: tuple[str, ...] = ()
    label_codes_issued: int = 0
    stored_bits_changed: int = 0
    old_map_before: float | None = None
    old_map_after: float | None = None
    new_map_after: float | None = None


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
        PreconditionError: bits that are not the cache's.
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
    return keep_encoder(engine, record, trained, watermark=record.seq, now_ms=now_ms)


def read_training_rows(engine: Engine, record: CacheRecord, *, modality: str) -> StoredRows:
    """Read up to MAX_TRAINING_ROWS evenly spread entries up to the record's seq, without the labels of those
    that no encoder may learn from."""
    query = of_modality(record, modality).where(entries.c.seq <= record.seq)
    with reading(engine) as connection:
        rows = read_rows(connection, query, most=MAX_TRAINING_ROWS)
    return replace(rows, labels=without_held_out(rows))


def keep_encoder(
    engine: Engine, record: CacheRecord, trained: TrainedEncoder, *, watermark: int, now_ms: int
) -> EncoderRecord:
    """Register a trained encoder as candidate. watermark: the seq up to which it has seen entries."""
    learning_state = dump_state(trained.state) if trained.state else None
    with writing(engine) as connection:
        return registry.register_encoder(
            connection,
            record,
            trained.encoder,
            learning_state=learning_state,
            watermark=watermark,
            now_ms=now_ms,
        )


def run_update(
    engine: Engine,
    cache: str,
    *,
    config: UpdateConfig,
    max_live_encoders: int,
    clock: Callable[[], int],
    heartbeat: Callable[[], None] = lambda: None,
    conclude: Callable[[Connection, UpdateOutcome], None] = lambda connection, outcome: None,
) -> UpdateOutcome:
    """Learn the labelled rows that arrived since the active encoder was trained; activate it if it passes.

    `heartbeat` is called between steps and may raise to stop. `conclude` runs in the transaction that
    registers and activates the encoder, so that a job and its effect end together.

    Raises:
        NotFoundError: no such cache.
        PreconditionError: it has no active encoder, or got another one meanwhile.
    """
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        encoder, state, watermark = _read_active(connection, record)
        modality = _label_modality(encoder)
        query = of_modality(record, modality)
        learned_to = _watermark_after(connection, query, record, watermark, most=config.max_update_rows)
        arrived = query.where(entries.c.seq > watermark, entries.c.seq <= learned_to)
        fresh = read_rows(connection, arrived.where(entries.c.has_labels))
        unlabelled = read_rows(
            connection,
            arrived.where(entries.c.has_labels.is_(False)),
            most=config.max_gate_rows,
        )
        old = read_rows(
            connection,
            query.where(entries.c.seq <= watermark, entries.c.has_labels),
            most=config.max_gate_rows,
        )
    drift = encoder.drift_score(unlabelled.vectors, modality=modality) if len(unlabelled) else None
    if not len(fresh):
        outcome = UpdateOutcome(
            encoder_id=None,
            accepted=False,
            reasons=("no labelled rows arrived: unlabelled ones only feed the drift figure",),
            unlabelled_row_count=len(unlabelled),
            drift_score=drift,
        )
        with writing(engine) as connection:
            conclude(connection, outcome)
        return outcome
    heartbeat()
    learned, queries = _split(fresh)
    result = update_labels(
        encoder, state, embeddings=learned.vectors, labels=learned.labels, modality=modality
    )
    heartbeat()
    gate = evaluate_update(
        encoder,
        result.encoder,
        old_rows=_gate_rows(old, encoder),
        new_rows=_labelled(learned, queries, most=config.max_gate_rows),
        tolerance=config.max_map_drop,
    )
    heartbeat()
    learning_state = dump_state(result.state) if gate.accepted else None
    with writing(engine) as connection:
        tx = CacheTransaction.lock(connection, record.id, now_ms=clock())
        if read_cache(connection, record.name).active_encoder_id != encoder.encoder_id:
            raise PreconditionError(
                f"{cache_name(record.name)} got another active encoder during the update",
                reason="ACTIVE_ENCODER_CHANGED",
            )
        trusted = registry.trusted_by(connection, record.id, encoder.encoder_id)
        registry.register_encoder(
            connection,
            record,
            result.encoder,
            learning_state=learning_state,
            watermark=learned_to,
            trusted=trusted | {encoder.encoder_id},
            state=registry.CANDIDATE if gate.accepted else registry.REJECTED,
            reason="; ".join(gate.reasons),
            metrics=_gate_metrics(gate),
            now_ms=tx.now_ms,
        )
        issued = 0
        if gate.accepted:
            registry.activate_encoder(
                connection, record.id, result.encoder.encoder_id, max_live_encoders=max_live_encoders
            )
            issued = sum(
                issue_label_codes(tx, result.encoder, modality=labelled)
                for labelled in result.encoder.label_modalities
            )
        outcome = UpdateOutcome(
            encoder_id=result.encoder.encoder_id,
            accepted=gate.accepted,
            reasons=gate.reasons,
            labelled_row_count=len(learned),
            unlabelled_row_count=len(unlabelled),
            drift_score=drift,
            new_labels=tuple(
                sorted({label for own in learned.labels for label in own} - set(encoder.labels))
            ),
            label_codes_issued=issued,
            stored_bits_changed=gate.stored_bits_changed,
            old_map_before=_figure(gate.old_map_before),
            old_map_after=_figure(gate.old_map_after),
            new_map_after=_figure(gate.new_map_after),
        )
        conclude(connection, outcome)
    return outcome


def issue_label_codes(tx: CacheTransaction, encoder: Encoder, *, modality: str) -> int:
    """Give label codes to labelled rows that have none; a code that is there stays. Returns how many."""
    query = select(entries.c.id, entries.c.labels).where(
        entries.c.cache_id == tx.cache_id,
        entries.c.modality == modality,
        entries.c.has_labels,
        entries.c.label_code.is_(None),
    )
    rows = tx.connection.execute(query.order_by(entries.c.id)).all()
    codes = label_codes_of(encoder, [row.labels for row in rows])
    coded = [
        {"row_id": row.id, "row_code": code}
        for row, code in zip(rows, codes, strict=True)
        if code is not None
    ]
    if coded:
        statement = update(entries).where(entries.c.id == bindparam("row_id"))
        tx.connection.execute(statement.values(label_code=bindparam("row_code")), coded)
        tx.record(Operation.UPSERT, [row["row_id"] for row in coded])
    return len(coded)


def count_unlearned(connection: Connection, cache: CacheRecord) -> int:
    """Rows that the next update would learn: labelled, of the encoder's modality, and stored since what the
    last one saw, accepted or not; 0 without an active encoder."""
    if cache.active_encoder_id is None:
        return 0
    query = (
        select(func.count())
        .select_from(entries)
        .where(
            entries.c.cache_id == cache.id,
            entries.c.has_labels,
            entries.c.seq > _seen_to(connection, cache.id, cache.active_encoder_id),
        )
    )
    if not connection.execute(query).scalar_one():
        return 0  # without reading the encoder
    encoder = load_encoder(read_weights(connection, cache.id, cache.active_encoder_id))
    of_modality = query.where(entries.c.modality == _label_modality(encoder))
    return int(connection.execute(of_modality).scalar_one())


def _seen_to(connection: Connection, cache_id: int, encoder_id: str) -> int:
    """The seq up to which rows were learned by this encoder, or judged by updates of it that were rejected.

    An encoder that has learned no labels has seen none.
    """
    own = select(encoders.c.watermark).where(
        encoders.c.cache_id == cache_id,
        encoders.c.encoder_id == encoder_id,
        encoders.c.learning_state.is_not(None),
    )
    rejected = select(func.max(encoders.c.watermark)).where(
        encoders.c.cache_id == cache_id,
        encoders.c.parent_id == encoder_id,
        encoders.c.state == registry.REJECTED,
    )
    return max(connection.execute(own).scalar() or 0, connection.execute(rejected).scalar() or 0)


def _label_modality(encoder: Encoder) -> str:
    """The modality whose rows teach labels."""
    return encoder.label_head.modality if encoder.label_head else next(iter(encoder.projections))


def _watermark_after(
    connection: Connection,
    query: Select[tuple[int, bytes, list[str]]],
    record: CacheRecord,
    watermark: int,
    *,
    most: int,
) -> int:
    """The seq up to which an update reads, so that it meets at most `most` labelled rows."""
    seqs = query.with_only_columns(entries.c.seq).where(entries.c.seq > watermark, entries.c.has_labels)
    beyond = connection.execute(seqs.order_by(entries.c.seq).offset(most).limit(1)).scalar()
    return record.seq if beyond is None else int(beyond) - 1


def _read_active(connection: Connection, record: CacheRecord) -> tuple[Encoder, LearnedState, int]:
    """The active encoder, the state to continue from, and the seq up to which rows were seen."""
    if record.active_encoder_id is None:
        raise PreconditionError(
            f"{cache_name(record.name)} has no active encoder: train one first", reason="NO_ACTIVE_ENCODER"
        )
    row = connection.execute(
        select(encoders.c.weights, encoders.c.learning_state).where(
            encoders.c.cache_id == record.id, encoders.c.encoder_id == record.active_encoder_id
        )
    ).one()
    encoder = load_encoder(row.weights)
    if row.learning_state is not None:
        state = load_state(row.learning_state)
    else:
        dim = next(iter(encoder.projections.values())).dim
        state = empty_state(dim, config=EncoderConfig(label_bits=record.label_bits))
    issued = registry.issued_class_codes(connection, record.id)
    if issued is not None and len(issued) > len(state.class_codes):
        state = state.with_codes(issued)  # those of encoders that were rolled back stay issued
    return encoder, state, _seen_to(connection, record.id, encoder.encoder_id)


def of_modality(record: CacheRecord, modality: str) -> Select[tuple[int, bytes, list[str]]]:
    """What `read_rows` reads: all rows of one modality."""
    return select(entries.c.id, entries.c.vector, entries.c.labels).where(
        entries.c.cache_id == record.id, entries.c.modality == modality
    )


def read_rows(
    connection: Connection, query: Select[tuple[int, bytes, list[str]]], *, most: int | None = None
) -> StoredRows:
    """The rows of the query in the order of their storing; evenly spread ones where there are over `most`."""
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
    vectors = np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)
    return StoredRows(row_ids, vectors, labels)


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), _CHUNK):
        yield ids[start : start + _CHUNK]


def _held_out(rows: StoredRows) -> NDArray[np.bool_]:
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
    held_out = _held_out(rows)
    return [() if out else own for out, own in zip(held_out, rows.labels, strict=True)]


def _split(rows: StoredRows) -> tuple[StoredRows, StoredRows]:
    """Rows to learn from, rows to judge by."""
    held_out = _held_out(rows)
    return rows.take(np.flatnonzero(~held_out).tolist()), rows.take(np.flatnonzero(held_out).tolist())


def _gate_rows(rows: StoredRows, encoder: Encoder) -> LabelledRows | None:
    """Old rows and held-out queries whose classes the encoder knows."""
    known = set(encoder.labels)
    kept = rows.take([i for i, own in enumerate(rows.labels) if known.issuperset(own)])
    learned, queries = _split(kept)
    if not len(learned):
        return None
    return _labelled(learned, queries)


def _labelled(learned: StoredRows, queries: StoredRows, *, most: int | None = None) -> LabelledRows:
    """Rows and queries for the gate, evenly spread ones where there are over `most`."""
    if most is not None:
        learned, queries = (
            rows.take(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int).tolist())
            for rows in (learned, queries)
        )
    return LabelledRows(learned.vectors, learned.labels, queries.vectors, queries.labels)


def _gate_metrics(gate: GateReport) -> dict[str, float]:
    figures = {
        "old_map_before": gate.old_map_before,
        "old_map_after": gate.old_map_after,
        "new_map_after": gate.new_map_after,
        "stored_bits_changed": float(gate.stored_bits_changed),
    }
    return {name: value for name, value in figures.items() if not np.isnan(value)}


def _figure(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def check_bits(record: CacheRecord, *, code_bits: int, label_bits: int) -> None:
    """Raise PreconditionError unless an encoder of these widths fits the cache."""
    if (code_bits, label_bits) != (record.code_bits, record.label_bits):
        raise PreconditionError(
            f"{cache_name(record.name)} has {record.code_bits} code bits and {record.label_bits} label bits, "
            f"the encoder would have {code_bits} and {label_bits}",
            reason="BITS_MISMATCH",
        )

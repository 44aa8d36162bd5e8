"""The update: learns the labelled rows that arrived since the active encoder was trained, and activates the
result if old rows are found as well as before, on rows that no encoder has seen."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from sqlalchemy import Connection, Engine, Select, bindparam, func, or_, select, update

from hashing.checkpoint import dump_state, load_encoder, load_state
from hashing.config import EncoderConfig
from hashing.inference import Encoder
from hashing.label_gate import LabelGateReport, LabelledRows, evaluate_label_update
from hashing.label_part import LearnedState, empty_state
from hashing.lifelong import update_labels
from hashing.trainer import Progress, no_progress
from service import registry
from service.coding import label_codes_of
from service.config import UpdateConfig
from service.database import reading, writing
from service.learned_rows import read_teaching
from service.learning import StoredRows, held_out_rows, of_modality, read_rows
from service.records import CacheRecord, Operation
from service.rows import active_encoder_id, read_cache, read_encoder, read_weights
from service.tables import encoders, entries
from service.transaction import CacheTransaction

MAX_NAMED_LABELS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlearned:
    """Labelled rows that no update has seen. oldest_ms: the earliest create time; None without rows."""

    row_count: int
    oldest_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateOutcome:
    """What an update did. `encoder_id` None: there was nothing to learn, and `reasons` says why. new_labels:
    MAX_NAMED_LABELS of them at most; the figures of the gate as in LabelGateReport."""

    encoder_id: str | None
    accepted: bool
    reasons: tuple[str, ...]
    labelled_row_count: int = 0
    unlabelled_row_count: int = 0
    drift_score: float | None = None
    new_label_count: int = 0
    new_labels: tuple[str, ...] = ()
    label_codes_issued: int = 0
    stored_bits_changed: int = 0
    old_map_before: float | None = None
    old_map_after: float | None = None
    new_map_after: float | None = None
    right_before: float | None = None
    negative_flips: float | None = None
    positive_flips: float | None = None
    query_drift: float | None = None


def run_update(
    engine: Engine,
    cache: str,
    *,
    config: UpdateConfig,
    max_live_encoders: int,
    clock: Callable[[], int],
    progress: Progress = no_progress,
    conclude: Callable[[Connection, UpdateOutcome], None] = lambda connection, outcome: None,
) -> UpdateOutcome:
    """Learn the labelled rows that arrived since the active encoder was trained; activate it if it passes.

    `progress` is told of "read", "learn", "judge" and "activate", between them and about every second within
    the first three; it may raise to stop, and nothing has changed then. `conclude` runs in the transaction
    that registers and activates the encoder, so that a job and its effect end together.

    Raises:
        NotFoundError: no such cache.
        PreconditionError: it has no active encoder, or got another one meanwhile, or a row that was learned
            was forgotten meanwhile.
    """
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        encoder, state, watermark = _read_active(connection, record)
        class_codes = registry.issued_class_codes(connection, record.id)
        modality = _label_modality(encoder)
        query = of_modality(record, modality)
        learned_to = _watermark_after(connection, query, record, watermark, most=config.max_update_rows)
        arrived = query.where(entries.c.seq > watermark, entries.c.seq <= learned_to)
        progress("read", 0, 1)
        fresh = read_rows(connection, arrived.where(entries.c.has_labels), progress=progress)
        learned, queries = _split(fresh)
        teaching = read_teaching(connection, record.id, learned.row_ids)
        unlabelled = read_rows(
            connection,
            arrived.where(entries.c.has_labels.is_(False)),
            most=config.max_gate_rows,
            progress=progress,
        )
        old = read_rows(
            connection,
            query.where(entries.c.seq <= watermark, entries.c.has_labels),
            most=config.max_gate_rows,
            progress=progress,
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
    if state is None:
        encoder_config = EncoderConfig(label_bits=record.label_bits)
        state = empty_state(learned.vectors.shape[1], config=encoder_config, rows=learned.vectors)
    if class_codes is not None and len(class_codes) > len(state.class_codes):
        state = state.with_codes(class_codes)  # those of encoders that were rolled back stay issued
    result = update_labels(
        encoder,
        state,
        embeddings=learned.vectors,
        labels=learned.labels,
        modality=modality,
        progress=progress,
    )
    gate = evaluate_label_update(
        encoder,
        result.encoder,
        old_rows=_gate_rows(old, encoder),
        new_rows=_labelled(learned, queries, most=config.max_gate_rows),
        map_tolerance=config.max_map_drop,
        flip_tolerance=config.max_flips,
        progress=progress,
    )
    progress("activate", 0, 1)
    figures = _figures(gate)
    new_labels = sorted({label for own in learned.labels for label in own} - set(encoder.labels))
    learning_state = dump_state(result.state) if gate.accepted else None
    with writing(engine) as connection:
        registry.lock_still_active(connection, record.id, encoder.encoder_id)
        tx = CacheTransaction.lock(connection, record.id, now_ms=clock())
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
            metrics=figures | {"stored_bits_changed": float(gate.stored_bits_changed)},
            learned=teaching,
            untraced_row_count=read_encoder(connection, record, encoder.encoder_id).untraced_row_count,
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
            new_label_count=len(new_labels),
            new_labels=tuple(new_labels[:MAX_NAMED_LABELS]),
            label_codes_issued=issued,
            stored_bits_changed=gate.stored_bits_changed,
            **{name: round(value, 6) for name, value in figures.items()},
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


def read_unlearned(connection: Connection, cache: CacheRecord) -> Unlearned:
    """Rows that make an update due: labelled, of the encoder's modality, and stored since what it or any
    encoder that descends from it saw; none without an active encoder. Cost O(labelled rows since).

    So a rollback stands: what was learned before it is learned again only by an update that is asked for.
    """
    if cache.active_encoder_id is None:
        return Unlearned(row_count=0, oldest_ms=None)
    seen_to = max(
        _seen_to(connection, cache.id, cache.active_encoder_id),
        _descendants_seen_to(connection, cache.id, cache.active_encoder_id),
    )
    query = select(func.count().label("row_count"), func.min(entries.c.create_ms).label("oldest_ms")).where(
        entries.c.cache_id == cache.id,
        entries.c.has_labels,
        entries.c.seq > seen_to,
    )
    waiting = Unlearned(**connection.execute(query).one()._mapping)
    if not waiting.row_count or len(cache.modalities) == 1:
        return waiting  # without reading the encoder
    encoder = load_encoder(read_weights(connection, cache.id, cache.active_encoder_id))
    of_labels = query.where(entries.c.modality == _label_modality(encoder))
    return Unlearned(**connection.execute(of_labels).one()._mapping)


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


def _descendants_seen_to(connection: Connection, cache_id: int, encoder_id: str) -> int:
    """The seq up to which rows were learned or judged by updates of this encoder, and by updates of those."""
    seen = select(func.max(encoders.c.watermark)).where(
        encoders.c.cache_id == cache_id,
        encoders.c.encoder_id.in_(descendants(cache_id, encoder_id)),
        encoders.c.state != registry.DESTROYED,
        or_(encoders.c.state == registry.REJECTED, encoders.c.learning_state.is_not(None)),
    )
    return connection.execute(seen).scalar() or 0


def descendants(cache_id: int, encoder_id: str) -> Select[tuple[str]]:
    """The ids of the encoders that were updated from this one, and from those."""
    of_cache = encoders.c.cache_id == cache_id
    children = select(encoders.c.encoder_id).where(of_cache, encoders.c.parent_id == encoder_id)
    below = children.cte("below", recursive=True)
    below = below.union(
        select(encoders.c.encoder_id).where(of_cache, encoders.c.parent_id == below.c.encoder_id)
    )
    return select(below.c.encoder_id)


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


def _read_active(connection: Connection, record: CacheRecord) -> tuple[Encoder, LearnedState | None, int]:
    """The active encoder, the state to continue from (None: it has learned no labels), and the seq up to
    which rows were seen."""
    row = connection.execute(
        select(encoders.c.weights, encoders.c.learning_state).where(
            encoders.c.cache_id == record.id, encoders.c.encoder_id == active_encoder_id(record)
        )
    ).one()
    encoder = load_encoder(row.weights)
    state = None if row.learning_state is None else load_state(row.learning_state)
    return encoder, state, _seen_to(connection, record.id, encoder.encoder_id)


def _split(rows: StoredRows) -> tuple[StoredRows, StoredRows]:
    """Rows to learn from, rows to judge by."""
    held_out = held_out_rows(rows)
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


def _figures(gate: LabelGateReport) -> dict[str, float]:
    """What the gate has measured, by name."""
    measured = {name: value for name, value in asdict(gate).items() if isinstance(value, float)}
    return {name: value for name, value in measured.items() if not np.isnan(value)}

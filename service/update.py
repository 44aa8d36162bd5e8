"""The update: learns the labelled rows that arrived since the active encoder was trained, and activates the
result if old rows are found as well as before, on rows that no encoder has seen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, Engine, bindparam, func, or_, select, update

from hashing.checkpoint import load_encoder
from hashing.class_codes import ClassCodes
from hashing.config import EncoderConfig
from hashing.inference import Encoder
from hashing.kernel_ridge import DEFAULT_KERNEL
from hashing.label_part import LearnedStates, empty_state
from hashing.learned_states import dump_states, kept_modalities, load_states
from hashing.lifelong import learnable_modalities, update_labels
from hashing.sealed_tensors import HEADER_LENGTH_BYTES
from hashing.trainer import Progress, no_progress
from service import registry
from service.coding import label_codes_of
from service.config import UpdateConfig
from service.database import reading, writing
from service.errors import PreconditionError
from service.learned_rows import read_teaching
from service.learning import StoredRows, of_modality, read_rows
from service.records import CacheRecord, Operation
from service.rows import active_encoder_id, read_cache, read_encoder, read_weights
from service.spaces import is_first
from service.tables import encoders, entries
from service.transaction import CacheTransaction
from service.update_gate import judge_update
from service.update_rows import read_arrived, watermark_after

MAX_NAMED_LABELS = 100
LEAST_RIDGE_ROWS = 1_000  # a label part keeps the ridge that it began with, however few rows that were
_HEADER_BYTES = 2**16  # holds that of states of several modalities; one that names its labels may be longer
_MOST_HEADER_BYTES = 2**30  # a damaged length is any number


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlearned:
    """Labelled rows that no update has seen. oldest_ms: the earliest create time; None without rows."""

    row_count: int
    oldest_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateOutcome:
    """What an update did. `encoder_id` None: there was nothing to learn, and `reasons` says why. new_labels:
    MAX_NAMED_LABELS of them at most; the figures of the gate as in LabelGateReport, of the encoder's first
    modality with labels, and in other_figures those of the others, as "text.old_map_before"."""

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
    other_figures: dict[str, float] = field(default_factory=dict)


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
        encoder, states, watermark = _read_active(connection, record)
        class_codes = registry.issued_class_codes(connection, record.id)
        learnable = learnable_modalities(encoder, states)
        labelled = {*encoder.label_modalities, *learnable}
        dims = {own: dim for own, dim in encoder.modalities.items() if own in labelled}
        first = next(iter(dims))
        check_reads_space(record, encoder, first)
        learned_to = watermark_after(
            connection, record, learnable, after=watermark, most=config.max_update_rows
        )
        progress("read", 0, 1)
        arrived = read_arrived(
            connection,
            record,
            dims=dims,
            learnable=learnable,
            after=watermark,
            to=learned_to,
            config=config,
            progress=progress,
        )
        fresh = {modality: rows.learned for modality, rows in arrived.items() if len(rows)}
        taught = [row_id for rows in fresh.values() for row_id in rows.row_ids]
        teaching = read_teaching(connection, record.id, taught)
        unlabelled = read_rows(
            connection,
            of_modality(record, first).where(
                entries.c.seq > watermark, entries.c.seq <= learned_to, entries.c.has_labels.is_(False)
            ),
            most=config.max_gate_rows,
            progress=progress,
        )
    drift = encoder.drift_score(unlabelled.vectors, modality=first) if len(unlabelled) else None
    if not fresh:
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
    result = update_labels(
        encoder,
        _to_continue(encoder, states, fresh, class_codes=class_codes, label_bits=record.label_bits),
        embeddings={modality: rows.vectors for modality, rows in fresh.items()},
        labels={modality: rows.labels for modality, rows in fresh.items()},
        progress=progress,
    )
    verdict = judge_update(encoder, result.encoder, arrived, config=config, progress=progress)
    progress("activate", 0, 1)
    named = {label for rows in fresh.values() for own in rows.labels for label in own}
    new_labels = sorted(named - set(encoder.labels))
    learning_state = dump_states(result.states) if verdict.accepted else None
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
            state=registry.CANDIDATE if verdict.accepted else registry.REJECTED,
            reason="; ".join(verdict.reasons),
            metrics=verdict.figures
            | verdict.other_figures
            | {"stored_bits_changed": float(verdict.stored_bits_changed)},
            learned=teaching,
            untraced_row_count=read_encoder(connection, record, encoder.encoder_id).untraced_row_count,
            now_ms=tx.now_ms,
        )
        issued = 0
        if verdict.accepted:
            registry.activate_encoder(
                connection, record.id, result.encoder.encoder_id, max_live_encoders=max_live_encoders
            )
            issued = issue_label_codes(tx, result.encoder)
        outcome = UpdateOutcome(
            encoder_id=result.encoder.encoder_id,
            accepted=verdict.accepted,
            reasons=verdict.reasons,
            labelled_row_count=len(taught),
            unlabelled_row_count=len(unlabelled),
            drift_score=drift,
            new_label_count=len(new_labels),
            new_labels=tuple(new_labels[:MAX_NAMED_LABELS]),
            label_codes_issued=issued,
            stored_bits_changed=verdict.stored_bits_changed,
            other_figures={name: round(value, 6) for name, value in verdict.other_figures.items()},
            **{name: round(value, 6) for name, value in verdict.figures.items()},
        )
        conclude(connection, outcome)
    return outcome


def issue_label_codes(tx: CacheTransaction, encoder: Encoder) -> int:
    """Give label codes to labelled rows that have none; a code that is there stays. Returns how many."""
    query = select(entries.c.id, entries.c.labels).where(
        entries.c.cache_id == tx.cache_id,
        entries.c.modality.in_(tuple(encoder.modalities)),
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


def check_reads_space(cache: CacheRecord, encoder: Encoder, modality: str) -> None:
    """Raise PreconditionError where the encoder's embeddings are those of an embedder that was replaced."""
    if modality not in cache.modalities:
        raise PreconditionError(
            f"encoder {encoder.encoder_id} reads embeddings of an embedder that was replaced: train one anew,"
            f" `nearhit train --cache {cache.name} --activate`",
            reason="EMBEDDER_REPLACED",
        )


def read_unlearned(connection: Connection, cache: CacheRecord) -> Unlearned:
    """Rows that make an update due: labelled, of modalities that it would learn, and stored since what the
    encoder or any that descends from it saw; none without an active encoder. Cost O(labelled rows since).

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
    if not waiting.row_count or (len(cache.modalities) == 1 and all(map(is_first, cache.modalities))):
        return waiting  # without reading the encoder
    encoder = load_encoder(read_weights(connection, cache.id, cache.active_encoder_id))
    header = _state_header(connection, cache.id, cache.active_encoder_id)
    learnable = learnable_modalities(encoder, kept_modalities(header, encoder=encoder))
    of_labels = query.where(entries.c.modality.in_(learnable))
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
        encoders.c.encoder_id.in_(registry.descendants(cache_id, encoder_id)),
        encoders.c.state != registry.DESTROYED,
        or_(encoders.c.state == registry.REJECTED, encoders.c.learning_state.is_not(None)),
    )
    return connection.execute(seen).scalar() or 0


def _state_header(connection: Connection, cache_id: int, encoder_id: str) -> bytes | None:
    """What the learning state begins with, which says whose it is; the whole is some 20 MB a modality."""
    same = (encoders.c.cache_id == cache_id, encoders.c.encoder_id == encoder_id)

    def beginning(size_bytes: int) -> bytes | None:
        query = select(func.substr(encoders.c.learning_state, 1, size_bytes)).where(*same)
        found: bytes | None = connection.execute(query).scalar()
        return found

    content = beginning(_HEADER_BYTES)
    if content is None:
        return None
    needed = HEADER_LENGTH_BYTES + int.from_bytes(content[:HEADER_LENGTH_BYTES], "little")
    return content if needed <= len(content) else beginning(min(needed, _MOST_HEADER_BYTES))


def _read_active(connection: Connection, record: CacheRecord) -> tuple[Encoder, LearnedStates, int]:
    """The active encoder, the states to continue from, and the seq up to which rows were seen."""
    row = connection.execute(
        select(encoders.c.weights, encoders.c.learning_state).where(
            encoders.c.cache_id == record.id, encoders.c.encoder_id == active_encoder_id(record)
        )
    ).one()
    encoder = load_encoder(row.weights)
    states = load_states(row.learning_state, encoder=encoder)
    return encoder, states, _seen_to(connection, record.id, encoder.encoder_id)


def _to_continue(
    encoder: Encoder,
    states: LearnedStates,
    fresh: Mapping[str, StoredRows],
    *,
    class_codes: ClassCodes | None,
    label_bits: int,
) -> LearnedStates:
    """The states, and the beginning of one for each modality of which rows arrived and none was kept."""
    begun = dict(states)
    for modality, rows in fresh.items():
        if modality in states:
            continue
        config = EncoderConfig(label_bits=label_bits)
        if encoder.cross_part is not None:  # as training across modalities makes label parts
            ridge = DEFAULT_KERNEL.ridge * max(len(rows), LEAST_RIDGE_ROWS)
            config = replace(config, label_method="regression", gamma=DEFAULT_KERNEL.gamma, ridge=ridge)
        begun[modality] = empty_state(encoder.modalities[modality], config=config, rows=rows.vectors)
    if class_codes is None:
        return begun
    # Those of encoders that were rolled back stay issued.
    return {
        modality: state.with_codes(class_codes) if len(class_codes) > len(state.class_codes) else state
        for modality, state in begun.items()
    }

"""Mutations of what an operator sets: caches and encoders. Each runs in a writer's transaction."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from sqlalchemy import Connection, Select, and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from hashing.checkpoint import dump_encoder, load_encoder
from hashing.class_codes import ClassCodes
from hashing.inference import Encoder
from index.codes import pack, unpack
from service.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
)
from service.keys import MODALITY_PATTERN, cache_name, check_id, child_name
from service.learned_rows import LearnedRow, keep_learned, refuse_forgotten
from service.records import CacheRecord, EncoderRecord, ModalitySpec
from service.rows import (
    active_encoder_id,
    read_cache,
    read_encoder,
    read_weights,
)
from service.tables import caches, calibrations, class_codes, encoders, entries, learned_by

ACTIVE, CANDIDATE, RETIRED, REJECTED = "active", "candidate", "retired", "rejected"
DESTROYED = "destroyed"  # it had learned rows that were forgotten: nothing but its lineage is kept
DIM_MOST = 8192
MODALITIES_MOST = 64


def create_cache(
    connection: Connection,
    name: str,
    *,
    modalities: Mapping[str, ModalitySpec],
    code_bits: int,
    label_bits: int,
    description: str,
    now_ms: int,
) -> CacheRecord:
    """Create a cache. Raises: AlreadyExistsError, InvalidRequestError."""
    check_cache_settings(modalities, code_bits=code_bits, label_bits=label_bits)
    values = {
        "name": name,
        "description": description,
        "modalities": {modality: asdict(spec) for modality, spec in modalities.items()},
        "code_bits": code_bits,
        "label_bits": label_bits,
        "seq": 0,
        "config_version": 1,
        "token_key": secrets.token_bytes(32),
        "create_ms": now_ms,
        "version": 1,
    }
    insert_new(connection, insert(caches).values(**values), cache_name(name), "CACHE_EXISTS")
    return read_cache(connection, name)


def check_cache_settings(modalities: Mapping[str, ModalitySpec], *, code_bits: int, label_bits: int) -> None:
    """Raise InvalidRequestError unless a cache can have these settings."""
    if not 1 <= len(modalities) <= MODALITIES_MOST:
        raise InvalidRequestError(
            f"a cache has 1 to {MODALITIES_MOST} modalities, not {len(modalities)}", reason="INVALID_MODALITY"
        )
    for modality, spec in modalities.items():
        check_id(modality, MODALITY_PATTERN, field="modality")
        if not 1 <= spec.dim <= DIM_MOST:
            raise InvalidRequestError(
                f"dim must be in [1, {DIM_MOST}], is {spec.dim}", reason="INVALID_DIM", field="dim"
            )
    for field, bits in (("code_bits", code_bits), ("label_bits", label_bits)):
        if not 64 <= bits <= 1024 or bits % 64:
            raise InvalidRequestError(
                f"{field} must be in 64..1024 in steps of 64, is {bits}", reason="INVALID_BITS", field=field
            )


def update_cache(connection: Connection, name: str, *, etag: str, description: str) -> CacheRecord:
    """Change the description. Raises: NotFoundError, ConflictError."""
    cache = lock_named(connection, name)
    check_etag(cache.version, etag, name=cache_name(name))
    changed = {"description": description, "version": caches.c.version + 1}
    connection.execute(update(caches).where(caches.c.id == cache.id).values(**changed))
    return read_cache(connection, name)


def delete_cache(connection: Connection, name: str, *, etag: str) -> None:
    """Delete a cache with all it holds. Raises: NotFoundError, ConflictError."""
    cache = lock_named(connection, name)
    check_etag(cache.version, etag, name=cache_name(name))
    connection.execute(delete(caches).where(caches.c.id == cache.id))


def register_encoder(
    connection: Connection,
    cache: CacheRecord,
    encoder: Encoder,
    *,
    learning_state: bytes | None,
    watermark: int,
    trusted: Iterable[str] = (),
    state: str = CANDIDATE,
    reason: str = "",
    metrics: Mapping[str, float] | None = None,
    learned: Sequence[LearnedRow] = (),
    read_row_ids: Sequence[int] = (),
    untraced_row_count: int | None = 0,
    verdict_watermark: int | None = None,
    now_ms: int,
) -> EncoderRecord:
    """Keep an encoder; `trusted` names the encoders whose codes its queries may search, itself aside.

    The same encoder again keeps what is there, but where it was rejected the new verdict counts, and where it
    was destroyed it is there again. `metrics` are added to the encoder's own. learned: the rows that its
    label parts have beyond its parent's. read_row_ids: all that it was trained on, labelled or not.
    untraced_row_count: those that no store has; None: nobody knows. verdict_watermark: None: its parent's, or
    that of any child of it, rejected or rolled back, so that what they read is not learned again by itself.

    Raises:
        NotFoundError: the cache was deleted.
        PreconditionError: one of the rows that it learned or read was forgotten since.
    """
    lock_cache(connection, cache.id)
    refuse_forgotten(connection, cache.id, read_row_ids)
    same = and_(encoders.c.cache_id == cache.id, encoders.c.encoder_id == encoder.encoder_id)
    known = connection.execute(select(encoders.c.state).where(same)).scalar()
    others = set(trusted)
    if known in (REJECTED, DESTROYED):
        if known == DESTROYED:  # what it coded is still there
            others |= trusted_by(connection, cache.id, encoder.encoder_id)
        connection.execute(delete(encoders).where(same))
        connection.execute(
            delete(calibrations).where(
                calibrations.c.cache_id == cache.id,
                or_(
                    calibrations.c.query_encoder_id == encoder.encoder_id,
                    calibrations.c.segment_encoder_id == encoder.encoder_id,
                ),
            )
        )
        own = (learned_by.c.cache_id == cache.id, learned_by.c.encoder_id == encoder.encoder_id)
        connection.execute(delete(learned_by).where(*own))
    if known in (None, REJECTED, DESTROYED):
        if verdict_watermark is None:
            of_cache = encoders.c.cache_id == cache.id
            before = or_(
                encoders.c.encoder_id == encoder.parent_id,
                encoders.c.encoder_id.in_(descendants(cache.id, encoder.parent_id or "")),
            )
            inherited = select(func.max(encoders.c.verdict_watermark)).where(of_cache, before)
            verdict_watermark = connection.execute(inherited).scalar()
        values = {
            "cache_id": cache.id,
            "encoder_id": encoder.encoder_id,
            "state": state,
            "parent_id": encoder.parent_id,
            "weights": dump_encoder(encoder),
            "learning_state": learning_state,
            "watermark": watermark,
            "verdict_watermark": verdict_watermark,
            "label_bits": encoder.label_bits or 0,
            "class_count": len(encoder.labels),
            "untraced_row_count": untraced_row_count,
            "metrics": {**encoder.metrics, **(metrics or {})},
            "reason": reason,
            "create_ms": now_ms,
        }
        connection.execute(insert(encoders).values(**values))
        _trust(connection, cache.id, encoder.encoder_id, others, now_ms=now_ms)
        keep_learned(connection, cache.id, encoder.encoder_id, learned)
    return read_encoder(connection, cache, encoder.encoder_id)


def trusted_by(connection: Connection, cache_id: int, encoder_id: str) -> set[str]:
    """The encoders whose codes queries of this one may search."""
    pairs = select(calibrations.c.segment_encoder_id).where(
        calibrations.c.cache_id == cache_id, calibrations.c.query_encoder_id == encoder_id
    )
    return {str(found) for found in connection.execute(pairs).scalars()}


def activate_encoder(
    connection: Connection, cache_id: int, encoder_id: str, *, max_live_encoders: int
) -> EncoderRecord:
    """Make an encoder the one that codes new rows and queries.

    Raises:
        NotFoundError: there is none of this id.
        PreconditionError: it was rejected or destroyed, its class codes are not those issued, or its instance
            codes would be one set too many.
    """
    cache = lock_cache(connection, cache_id)
    encoder = read_encoder(connection, cache, encoder_id)
    full_name = child_name(cache.name, "encoders", encoder_id)
    if encoder.state == REJECTED:
        raise PreconditionError(f"{full_name} was rejected: {encoder.reason}", reason="ENCODER_REJECTED")
    _check_not_destroyed(cache, encoder)
    if encoder.state == ACTIVE:
        return encoder
    _check_live_encoders(connection, cache, encoder_id, most=max_live_encoders)
    _issue_class_codes(connection, cache, encoder_id)
    make_active(connection, cache, encoder_id, previous_id=cache.active_encoder_id)
    return read_encoder(connection, cache, encoder_id)


def roll_back_encoder(connection: Connection, cache_id: int) -> EncoderRecord:
    """Make the encoder active that was so before. Raises: PreconditionError, also where it was destroyed."""
    cache = lock_cache(connection, cache_id)
    active = read_encoder(connection, cache, active_encoder_id(cache))
    if active.previous_id is None:
        raise PreconditionError("there is no encoder to roll back to", reason="NO_PREVIOUS_ENCODER")
    before = read_encoder(connection, cache, active.previous_id)
    _check_not_destroyed(cache, before)
    make_active(connection, cache, before.encoder_id, previous_id=before.previous_id)
    return read_encoder(connection, cache, before.encoder_id)


def issued_class_codes(connection: Connection, cache_id: int) -> ClassCodes | None:
    """The class codes that entries of the cache may carry, in order of issue; None before the first."""
    query = select(class_codes).where(class_codes.c.cache_id == cache_id).order_by(class_codes.c.position)
    rows = connection.execute(query).all()
    if not rows:
        return None
    words = np.frombuffer(b"".join(row.code for row in rows), dtype="<u8").reshape(len(rows), -1)
    bits = unpack(words, bit_count=64 * words.shape[1])
    return ClassCodes(labels=tuple(row.label for row in rows), bits=bits, seed=rows[0].seed)


def descendants(cache_id: int, encoder_id: str) -> Select[tuple[str]]:
    """The ids of the encoders that were updated from this one, and from those."""
    of_cache = encoders.c.cache_id == cache_id
    children = select(encoders.c.encoder_id).where(of_cache, encoders.c.parent_id == encoder_id)
    below = children.cte("below", recursive=True)
    below = below.union(
        select(encoders.c.encoder_id).where(of_cache, encoders.c.parent_id == below.c.encoder_id)
    )
    return select(below.c.encoder_id)


def live_encoder_ids(connection: Connection, cache_id: int) -> set[str]:
    """The encoders whose codes stored entries carry."""
    query = (
        select(entries.c.encoder_id)
        .where(entries.c.cache_id == cache_id, entries.c.encoder_id.is_not(None))
        .distinct()
    )
    return {str(found) for found in connection.execute(query).scalars()}


def bump_config(connection: Connection, cache_id: int) -> None:
    """Tell every replica to read the cache's settings again."""
    changed = {"config_version": caches.c.config_version + 1}
    connection.execute(update(caches).where(caches.c.id == cache_id).values(**changed))


def lock_cache(connection: Connection, cache_id: int) -> CacheRecord:
    """Lock a cache before anything of it is read that must not change. Raises: NotFoundError."""
    query = select(caches.c.name).where(caches.c.id == cache_id).with_for_update()
    name = connection.execute(query).scalar_one_or_none()
    if name is None:
        raise NotFoundError("the cache was deleted", reason="CACHE_NOT_FOUND")
    return read_cache(connection, name)


def lock_named(connection: Connection, name: str) -> CacheRecord:
    """Lock a cache as `lock_cache` does. Raises: NotFoundError."""
    # Before its categories, as every transaction locks them: otherwise two replicas wait for each other.
    connection.execute(select(caches.c.id).where(caches.c.name == name).with_for_update())
    return read_cache(connection, name)


def insert_new(connection: Connection, statement: Any, name: str, reason: str) -> None:
    """Insert a row whose name must be free. Raises: AlreadyExistsError."""
    try:
        with connection.begin_nested():
            connection.execute(statement)
    except IntegrityError as error:
        raise AlreadyExistsError(f"{name} exists already", reason=reason) from error


def lock_still_active(connection: Connection, cache_id: int, encoder_id: str) -> CacheRecord:
    """Lock a cache for what this encoder taught. Raises: PreconditionError where another is active."""
    cache = lock_cache(connection, cache_id)
    if cache.active_encoder_id != encoder_id:
        raise PreconditionError(
            f"{cache_name(cache.name)} got another active encoder during the update",
            reason="ACTIVE_ENCODER_CHANGED",
        )
    return cache


def check_etag(version: int, etag: str, *, name: str) -> None:
    """Raise ConflictError unless `etag` is empty or the version's."""
    if etag and etag != str(version):
        raise ConflictError(f"{name} has changed: its etag is {version}, not {etag}", etag=version)


def _trust(connection: Connection, cache_id: int, encoder_id: str, others: set[str], *, now_ms: int) -> None:
    pairs = [(encoder_id, encoder_id)]
    for other in sorted(others - {encoder_id}):
        pairs += [(encoder_id, other), (other, encoder_id)]
    connection.execute(
        insert(calibrations),
        [
            {
                "cache_id": cache_id,
                "query_encoder_id": query,
                "segment_encoder_id": segment,
                "create_ms": now_ms,
            }
            for query, segment in pairs
        ],
    )


def _check_live_encoders(connection: Connection, cache: CacheRecord, encoder_id: str, *, most: int) -> None:
    apart = live_encoder_ids(connection, cache.id) - trusted_by(connection, cache.id, encoder_id)
    if len(apart) + 1 > most:
        raise PreconditionError(
            f"entries carry codes of {len(apart)} encoders that {encoder_id} cannot search; at most {most} "
            "are live at once: recode with `nearhit build --reencode`",
            reason="TOO_MANY_LIVE_ENCODERS",
        )


def _check_not_destroyed(cache: CacheRecord, encoder: EncoderRecord) -> None:
    if encoder.state == DESTROYED:
        name = child_name(cache.name, "encoders", encoder.encoder_id)
        raise PreconditionError(f"{name} was destroyed: {encoder.reason}", reason="ENCODER_DESTROYED")


def _issue_class_codes(connection: Connection, cache: CacheRecord, encoder_id: str) -> None:
    """Keep the encoder's class codes for good. Raises: PreconditionError: they contradict issued ones."""
    head = load_encoder(read_weights(connection, cache.id, encoder_id)).label_head
    if head is None:
        return
    own, issued = head.class_codes, issued_class_codes(connection, cache.id)
    known = 0 if issued is None else len(issued)
    if issued is not None:
        common = min(len(own), known)
        same = own.labels[:common] == issued.labels[:common]
        if not same or not np.array_equal(own.bits[:common], issued.bits[:common]):
            raise PreconditionError(
                f"the class codes of {child_name(cache.name, 'encoders', encoder_id)} are not those issued "
                "since it was trained: train or update again",
                reason="CLASS_CODES_DIFFER",
            )
    fresh = [
        {
            "cache_id": cache.id,
            "position": position,
            "label": own.labels[position],
            "code": code.tobytes(),
            "seed": own.seed,
        }
        for position, code in enumerate(pack(own.bits))
        if position >= known
    ]
    if fresh:
        connection.execute(insert(class_codes), fresh)


def make_active(
    connection: Connection, cache: CacheRecord, encoder_id: str, *, previous_id: str | None
) -> None:
    """Make an encoder the active one, whatever it is; previous_id: where a rollback goes, None: nowhere."""
    of_cache = encoders.c.cache_id == cache.id
    connection.execute(update(encoders).where(of_cache, encoders.c.state == ACTIVE).values(state=RETIRED))
    connection.execute(
        update(encoders)
        .where(of_cache, encoders.c.encoder_id == encoder_id)
        .values(state=ACTIVE, previous_id=previous_id)
    )
    connection.execute(update(caches).where(caches.c.id == cache.id).values(active_encoder_id=encoder_id))
    bump_config(connection, cache.id)

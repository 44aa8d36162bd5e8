"""Subtract rows from every label part that has learned them: destroy the encoders, renew those that serve."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select, update

from hashing.checkpoint import load_encoder
from hashing.inference import Encoder
from hashing.label_part import LearnedState, LearnedStates
from hashing.learned_states import dump_states, load_states
from hashing.lifelong import renew_encoder
from service import registry
from service.learned_rows import (
    LearnedRow,
    add_members,
    chain_of,
    id_chunks,
    lineage,
    members,
    own_members,
    read_learned,
    vectors_and_labels,
)
from service.records import CacheRecord, EncoderRecord
from service.rows import read_encoders, read_weights
from service.tables import calibrations, encoders, learned_by

REASON = "rows that it had learned were forgotten"
# Figures of label parts, and of the gate that judged them.
_LABEL_FIGURES = (
    *("label", "old_map", "new_map", "right_before", "negative_flips", "positive_flips", "query_drift"),
    "stored_bits",
)


@dataclass(frozen=True, slots=True)
class Renewal:
    """An encoder in the place of a destroyed one. states: what its label parts were solved from; empty: it
    has none. row_ids: what those label parts hold, but for rows that surviving ancestors added."""

    encoder: Encoder
    states: LearnedStates
    row_ids: frozenset[int]


RenewalKey = tuple[str, frozenset[int]]
"""The encoder to be destroyed, and the rows that its child is to be without."""


def learned_from(
    connection: Connection, cache_id: int, row_ids: Collection[int], *, teaches: bool
) -> dict[str, EncoderRecord]:
    """The encoders whose label parts hold one of the rows, by id.

    Encoders of before it was known what they had learned (untraced_row_count None) count where `teaches`:
    where one of the rows has labels.
    """
    known = {record.encoder_id: record for record in read_encoders(connection, cache_id)}
    parents = {encoder_id: record.parent_id for encoder_id, record in known.items()}
    adding: set[str] = set()
    for chunk in id_chunks(sorted(row_ids)):
        query = select(learned_by.c.encoder_id).where(
            learned_by.c.cache_id == cache_id, learned_by.c.row_id.in_(chunk)
        )
        adding.update(connection.execute(query.distinct()).scalars())
    return {
        encoder_id: record
        for encoder_id, record in known.items()
        if record.state != registry.DESTROYED
        and (
            (teaches and record.untraced_row_count is None)
            or not adding.isdisjoint(chain_of(parents, encoder_id))
        )
    }


def to_renew(
    connection: Connection, cache: CacheRecord, destroyed: Collection[str], *, carried: Collection[str]
) -> list[str]:
    """Those of the encoders to be destroyed that need a child, the active one first.

    carried: encoders whose codes stored rows have. The child of the active one searches what that one did;
    other codes need a child of their own where no encoder that survives may search them.
    """
    pairs = connection.execute(
        select(calibrations.c.query_encoder_id, calibrations.c.segment_encoder_id).where(
            calibrations.c.cache_id == cache.id
        )
    ).all()
    surviving = {
        record.encoder_id
        for record in read_encoders(connection, cache.id)
        if record.state not in (registry.DESTROYED, registry.REJECTED)
    } - set(destroyed)
    chosen: list[str] = []
    searched = {segment for query, segment in pairs if query in surviving}
    order = sorted(set(carried) & set(destroyed))
    if cache.active_encoder_id in destroyed:
        order = [str(cache.active_encoder_id), *order]
    for encoder_id in order:
        if encoder_id in searched and encoder_id != cache.active_encoder_id:
            continue
        chosen.append(encoder_id)
        searched |= {encoder_id} | {segment for query, segment in pairs if query == encoder_id}
    return list(dict.fromkeys(chosen))


def renewal_key(
    connection: Connection, cache_id: int, encoder_id: str, row_ids: Collection[int]
) -> RenewalKey:
    """What a renewal depends on."""
    return encoder_id, frozenset(members(connection, cache_id, encoder_id) & set(row_ids))


def renew(connection: Connection, cache_id: int, key: RenewalKey, *, destroyed: Collection[str]) -> Renewal:
    """The child of an encoder that has not learned the rows; nothing is written.

    Of an encoder of before that kept no state of their modality, that modality's label part goes as a whole.
    Takes O(rows D^2 + D^3). Raises: CheckpointError, TrainingDataError: what is stored is not what was added.
    """
    encoder_id, gone = key
    encoder = load_encoder(read_weights(connection, cache_id, encoder_id))
    row = connection.execute(
        select(encoders.c.learning_state, encoders.c.untraced_row_count).where(
            encoders.c.cache_id == cache_id, encoders.c.encoder_id == encoder_id
        )
    ).one()
    removed = read_learned(connection, cache_id, gone)
    if row.untraced_row_count is None:
        states, dropped = {}, set(encoder.label_modalities)
    else:
        states = load_states(row.learning_state, encoder=encoder)
        dropped = {own.modality for own in removed} & set(encoder.label_modalities)
    for modality, state in states.items():
        own = [learned for learned in removed if learned.modality == modality]
        if own:
            states[modality] = _without(state, own)
    child = renew_encoder(encoder, states, dropped=dropped)
    inherited: set[int] = set().union(
        *(
            own_members(connection, cache_id, ancestor)
            for ancestor in lineage(connection, cache_id, encoder_id)
            if ancestor in destroyed
        )
    )
    kept = {
        learned.row_id
        for learned in read_learned(connection, cache_id, inherited - gone)
        if learned.modality in child.label_modalities
    }
    return Renewal(child, states if child.label_head is not None else {}, frozenset(kept))


def _without(state: LearnedState, rows: Sequence[LearnedRow]) -> LearnedState:
    """The state without these rows; where it has no others, without what rounding left of them."""
    left = state.remove(*vectors_and_labels(rows))
    return left if left.row_count else left.emptied()


def replace_encoders(
    connection: Connection,
    cache: CacheRecord,
    destroyed: Mapping[str, EncoderRecord],
    renewals: Mapping[str, Renewal],
    *,
    now_ms: int,
) -> None:
    """Register the renewed children, activate that of the active encoder, and empty what is destroyed.

    A child searches whatever its parent did, and is rolled back to what its parent was, unless that one is
    destroyed.
    """
    surviving = {
        record.encoder_id
        for record in read_encoders(connection, cache.id)
        if record.state != registry.DESTROYED and record.encoder_id not in destroyed
    }
    for encoder_id, renewal in renewals.items():
        registry.register_encoder(
            connection,
            cache,
            renewal.encoder,
            learning_state=dump_states(renewal.states),
            watermark=destroyed[encoder_id].watermark,
            trusted=registry.trusted_by(connection, cache.id, encoder_id) | {encoder_id},
            state=registry.RETIRED,
            untraced_row_count=destroyed[encoder_id].untraced_row_count if renewal.states else 0,
            now_ms=now_ms,
        )
        add_members(connection, cache.id, renewal.encoder.encoder_id, renewal.row_ids)
        if encoder_id == cache.active_encoder_id:
            child_id = renewal.encoder.encoder_id
            previous_id = destroyed[encoder_id].previous_id
            if previous_id not in surviving:
                previous_id = None
            registry.make_active(connection, cache, child_id, previous_id=previous_id)
    for encoder_id, record in destroyed.items():
        figures = {
            name: value
            for name, value in record.metrics.items()
            if not name.rpartition(".")[2].startswith(_LABEL_FIGURES)
        }
        same = (encoders.c.cache_id == cache.id, encoders.c.encoder_id == encoder_id)
        connection.execute(
            update(encoders)
            .where(*same)
            .values(
                state=registry.DESTROYED,
                weights=b"",
                learning_state=None,
                label_bits=0,
                class_count=0,
                untraced_row_count=0,
                metrics=figures,
                reason=REASON,
            )
        )
        own = (learned_by.c.cache_id == cache.id, learned_by.c.encoder_id == encoder_id)
        connection.execute(delete(learned_by).where(*own))

"""Verifies what is kept of learned and forgotten rows."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, func, select

from hashing.errors import CheckpointError
from hashing.inference import Encoder
from hashing.learned_states import load_states
from index.errors import DamagedGenerationError
from index.manifest import generation_name, generation_numbers, read_manifest
from service.dropped_generations import is_dropped
from service.learned_rows import members, read_learned
from service.records import CacheRecord
from service.registry import DESTROYED
from service.rows import read_encoder
from service.tables import encoders, entries, forgotten_rows, learned_by, learned_rows


def check_learned(connection: Connection, record: CacheRecord, active: Encoder | None) -> Iterator[str]:
    """Destroyed encoders are empty, forgotten rows are nowhere, and the active encoder's label part holds as
    many rows as it is said to have learned."""
    full = select(encoders.c.encoder_id).where(
        encoders.c.cache_id == record.id,
        encoders.c.state == DESTROYED,
        (func.length(encoders.c.weights) > 0) | encoders.c.learning_state.is_not(None),
    )
    for encoder_id in connection.execute(full).scalars():
        yield f"encoder {encoder_id} was destroyed, and its weights are there"
    for table, column in ((entries, entries.c.id), (learned_rows, learned_rows.c.row_id)):
        forgotten = select(forgotten_rows.c.row_id).where(forgotten_rows.c.cache_id == record.id)
        query = select(func.count()).where(table.c.cache_id == record.id, column.in_(forgotten))
        if found := connection.execute(query).scalar_one():
            yield f"{found} rows of {table.name} were forgotten"
    unkept = (
        select(func.count())
        .select_from(
            learned_by.outerjoin(
                learned_rows,
                (learned_rows.c.cache_id == learned_by.c.cache_id)
                & (learned_rows.c.row_id == learned_by.c.row_id),
            )
        )
        .where(learned_by.c.cache_id == record.id, learned_rows.c.row_id.is_(None))
    )
    if found := connection.execute(unkept).scalar_one():
        yield f"{found} learned rows are not kept"
    if active is not None:
        yield from _check_active(connection, record, active)


def dropped_generations(connection: Connection, record: CacheRecord, root: Path) -> Iterator[str]:
    """Generations under `root` that may hold forgotten rows."""
    for number in generation_numbers(root):
        name = generation_name(number)
        try:
            owner = read_manifest(root, name).cache
        except DamagedGenerationError:
            continue  # nobody opens it
        if is_dropped(connection, record.id, owner):
            yield f"generation {name} may hold forgotten rows"


def _check_active(connection: Connection, record: CacheRecord, active: Encoder) -> Iterator[str]:
    found = read_encoder(connection, record, active.encoder_id)
    content = connection.execute(
        select(encoders.c.learning_state).where(
            encoders.c.cache_id == record.id, encoders.c.encoder_id == active.encoder_id
        )
    ).scalar()
    if content is None or found.untraced_row_count is None:
        return
    try:
        states = load_states(content, encoder=active)
    except CheckpointError as error:
        yield f"the learning state of encoder {active.encoder_id}: {error}"
        return
    known = Counter(
        row.modality
        for row in read_learned(connection, record.id, members(connection, record.id, active.encoder_id))
    )
    if found.untraced_row_count:  # rows of files are of the first modality with labels
        known[active.label_modalities[0]] += found.untraced_row_count
    for modality, state in states.items():
        if state.row_count != known[modality]:
            yield (
                f"encoder {active.encoder_id} has learned {state.row_count} rows of {modality!r},"
                f" {known[modality]} are known"
            )

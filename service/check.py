"""Verifies the invariants of ARCHITECTURE.md on a store and its index; each finding names what is broken."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, func, select

from hashing.checkpoint import load_encoder
from hashing.errors import CheckpointError
from hashing.inference import Encoder
from index.check import check_generation
from index.codes import pack
from index.errors import DamagedGenerationError
from index.manifest import current_generation
from index.rows import TOMBSTONE
from service.coding import from_stored, label_codes_of, vectors_of
from service.config import Config
from service.database import reading
from service.records import CacheRecord, EntryRecord
from service.replica import CacheReplica, index_root
from service.rows import (
    entry_query,
    read_cache,
    read_categories,
    read_encoders,
    read_weights,
    scan_entries,
)
from service.tables import changes, entries, responses

UNDECIDED_VALUE = 1e-5  # a bit whose value is nearer to 0 may fall on either side
_CHUNK = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What was checked, and the problems found; none: all invariants hold."""

    cache: str
    entry_count: int
    generation: str
    problems: tuple[str, ...]


def check_cache(engine: Engine, cache: str, config: Config) -> CheckReport:
    """Check one cache: counters, feed, codes, generation files, and the index that a server would serve.

    Raises:
        NotFoundError: no such cache.
        StoreUnavailableError: the database cannot be reached.
    """
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        problems = [
            *_check_counters(connection, record),
            *_check_feed(connection, record),
            *_check_codes(connection, record),
        ]
    generation, file_problems = _check_files(config, record)
    problems += file_problems
    replica = CacheReplica(engine, record, search=config.search, data_dir=config.store.data_dir)
    entry_count, index_problems = _check_index(engine, replica)
    return CheckReport(
        cache=cache,
        entry_count=entry_count,
        generation=generation,
        problems=tuple(problems + index_problems),
    )


def _check_counters(connection: Connection, record: CacheRecord) -> Iterator[str]:
    """Categories count what they hold, within their limits."""
    query = (
        select(entries.c.category_id, func.count(), func.sum(entries.c.size_bytes))
        .where(entries.c.cache_id == record.id)
        .group_by(entries.c.category_id)
    )
    counted = {row[0]: (row[1], int(row[2])) for row in connection.execute(query)}
    for category in read_categories(connection, record.id):
        entry_count, size_bytes = counted.get(category.id, (0, 0))
        if (category.entry_count, category.size_bytes) != (entry_count, size_bytes):
            yield (
                f"category {category.name} counts {category.entry_count} entries of {category.size_bytes} "
                f"bytes, it holds {entry_count} of {size_bytes}"
            )
        policy = category.policy
        if policy.max_entries and entry_count > policy.max_entries:
            yield f"category {category.name} holds {entry_count} entries, its quota is {policy.max_entries}"
        if policy.max_bytes and size_bytes > policy.max_bytes:
            yield f"category {category.name} holds {size_bytes} bytes, its quota is {policy.max_bytes}"


def _check_feed(connection: Connection, record: CacheRecord) -> Iterator[str]:
    """The feed ends at the cache's seq without a gap, and no entry is ahead of it or without a response."""
    of_cache = changes.c.cache_id == record.id
    first, last, count = connection.execute(
        select(func.min(changes.c.seq), func.max(changes.c.seq), func.count()).where(of_cache)
    ).one()
    if count and (last != record.seq or last - first + 1 != count):
        yield f"the feed holds {count} changes from {first} to {last}, the cache is at {record.seq}"
    ahead = select(func.count()).select_from(entries)
    ahead = ahead.where(entries.c.cache_id == record.id, entries.c.seq > record.seq)
    if found := connection.execute(ahead).scalar_one():
        yield f"{found} entries are ahead of the cache's seq {record.seq}"
    orphans = (
        select(func.count())
        .select_from(entries.outerjoin(responses, responses.c.entry_id == entries.c.id))
        .where(entries.c.cache_id == record.id, responses.c.entry_id.is_(None))
    )
    if found := connection.execute(orphans).scalar_one():
        yield f"{found} entries have no response"


def _check_codes(connection: Connection, record: CacheRecord) -> Iterator[str]:
    """Every stored code is what its encoder makes of the vector, every label code one that was issued."""
    encoders: dict[str, Encoder] = {}
    for known in read_encoders(connection, record.id):
        try:
            encoders[known.encoder_id] = load_encoder(read_weights(connection, record.id, known.encoder_id))
        except CheckpointError as error:
            yield f"encoder {known.encoder_id}: {error}"
    labelling = [encoder for encoder in encoders.values() if encoder.label_bits is not None]
    for records in scan_entries(connection, entry_query(record.id), chunk=_CHUNK):
        for encoder_id, modality in sorted({(r.encoder_id or "", r.modality) for r in records}):
            group = [r for r in records if (r.encoder_id or "", r.modality) == (encoder_id, modality)]
            if not encoder_id:
                continue
            if encoder_id not in encoders:
                yield f"entries {_names(group)} carry codes of encoder {encoder_id}, which is not there"
                continue
            wrong = _wrong_codes(encoders[encoder_id], group, modality=modality)
            if wrong:
                yield f"codes of entries {_names(wrong)} are not what encoder {encoder_id} makes of them"
        coded = [r for r in records if r.label_code is not None]
        wrong = [
            r
            for r, made in zip(coded, _label_codes(labelling, coded), strict=True)
            if r.label_code not in made
        ]
        if wrong:
            yield f"label codes of entries {_names(wrong)} are of no encoder"


def _wrong_codes(encoder: Encoder, records: Sequence[EntryRecord], *, modality: str) -> list[EntryRecord]:
    values = encoder.instance_values(from_stored(vectors_of([r.vector for r in records])), modality=modality)
    made = pack(values > 0)
    undecided = pack(np.abs(values) < UNDECIDED_VALUE)
    stored = np.frombuffer(b"".join(r.code or b"" for r in records), dtype="<u8")
    if stored.size != made.size:
        return list(records)
    differing = ((stored.reshape(made.shape) ^ made) & ~undecided).any(axis=1)
    return [records[i] for i in np.flatnonzero(differing).tolist()]


def _label_codes(encoders: Sequence[Encoder], records: Sequence[EntryRecord]) -> list[set[bytes | None]]:
    """Per record, the label codes that any encoder gives it: issued codes never change."""
    made: list[set[bytes | None]] = [set() for _ in records]
    for encoder in encoders:
        for codes, code in zip(made, label_codes_of(encoder, [r.labels for r in records]), strict=True):
            codes.add(code)
    return made


def _check_files(config: Config, record: CacheRecord) -> tuple[str, list[str]]:
    root = index_root(config.store.data_dir, record.id)
    try:
        name = current_generation(root)
    except DamagedGenerationError as error:
        return "", [str(error)]
    if name is None:
        return "", []
    return name, check_generation(root, name)


def _check_index(engine: Engine, replica: CacheReplica) -> tuple[int, list[str]]:
    """Every row of the store is in exactly one live segment position, equal to what is stored."""
    state = replica.state
    positions: dict[int, tuple[int, str | None, NDArray[np.uint64] | None, int]] = {}
    problems = []
    for key, view in state.index.segment_views():
        for offset in np.flatnonzero(view.expire_times != TOMBSTONE):
            row_id = int(view.entry_ids[offset])
            if row_id in positions:
                problems.append(f"row {row_id} is in two positions of the index")
            code = None if view.codes is None else view.codes[offset]
            positions[row_id] = (key.category_id, key.encoder_id, code, int(view.expire_times[offset]))
    entry_count = 0
    with reading(engine) as connection:
        seq = read_cache(connection, state.record.name).seq
        for records in scan_entries(connection, entry_query(state.record.id), chunk=_CHUNK):
            entry_count += len(records)
            for record in records:
                found = positions.pop(record.id, None)
                if found is None:
                    problems.append(f"entry {record.name} is not in the index")
                elif difference := _difference(record, found):
                    problems.append(f"entry {record.name}: the index has another {difference} than the store")
    if seq != state.index.applied_seq:
        return entry_count, ["the store changed during the check: run it again, or stop the writers"]
    problems += [f"row {row_id} is in the index and not in the store" for row_id in sorted(positions)]
    return entry_count, problems


def _difference(
    record: EntryRecord, found: tuple[int, str | None, NDArray[np.uint64] | None, int]
) -> str | None:
    category_id, encoder_id, code, expire_ms = found
    if category_id != record.category_id:
        return "category"
    if expire_ms != record.expire_ms:
        return "expire time"
    # A row that a build coded later is served by its vector until the next generation.
    if encoder_id is not None and encoder_id == record.encoder_id:
        assert code is not None
        if code.tobytes() != record.code:
            return "code"
    return None


def _names(records: Sequence[EntryRecord]) -> str:
    shown = ", ".join(record.name for record in records[:5])
    return shown if len(records) <= 5 else f"{shown} and {len(records) - 5} more"

"""Verifies the invariants of ARCHITECTURE.md on a store and its index; each finding names what is broken."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, func, select

from hashing.checkpoint import load_encoder
from hashing.class_codes import ClassCodes
from hashing.errors import CheckpointError, HashingError
from hashing.inference import Encoder
from index.check import NORM_TOLERANCE, check_generation
from index.codes import pack
from index.errors import DamagedGenerationError, IndexFault
from index.manifest import current_generation, read_manifest
from index.rows import Rows, SegmentKey
from service.check_learned import check_learned, dropped_generations
from service.coding import STORED_DTYPE, class_codes_of, from_stored, label_codes_of, vectors_of
from service.config import Config
from service.database import reading
from service.embedder_maps import check_spaces
from service.errors import DamagedPolicyError, NotFoundError
from service.feed import damage_of, to_rows
from service.keys import fingerprint_key
from service.payload import is_payload_of
from service.records import CacheRecord, EntryRecord
from service.registry import ACTIVE, DESTROYED, RETIRED, issued_class_codes
from service.replica import CacheReplica, index_root, is_listed
from service.rows import (
    count_entries,
    entry_query,
    read_cache,
    read_categories,
    read_encoders,
    read_verifiers,
    read_weights,
    scan_entries,
)
from service.stand_ins import stand_ins
from service.tables import changes, entries, responses
from service.verifiers import load_stored_verifier

UNDECIDED_VALUE = 1e-5  # a bit whose value is nearer to 0 may fall on either side
_CHUNK = 2_000
# Columns of rows, by what a finding calls them; codes and label codes have rules of their own.
_COMPARED = {
    "vector": "vectors",
    "scope": "scopes",
    "fingerprint": "fingerprints",
    "expire time": "expire_times",
}

KeyedRows = tuple[SegmentKey, Rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What was checked, and the problems found; none: all invariants hold."""

    cache: str
    entry_count: int
    generation: str
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Encoders:
    """The encoders of a cache that can be read; in a destroyed one's place one that may search its codes.
    `labelling`: those whose class codes were issued, the one that decides first. `issued`: what there is of
    class codes where an encoder that knew them was destroyed."""

    by_id: Mapping[str, Encoder]
    labelling: Sequence[Encoder]
    damaged: frozenset[str]
    issued: ClassCodes | None = None


def check_cache(engine: Engine, cache: str, config: Config) -> CheckReport:
    """Check one cache: counters, feed, entries, generation files, and the index that a server would serve.

    Raises:
        NotFoundError: no such cache.
        StoreUnavailableError: the database cannot be reached.
    """
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        try:
            read_categories(connection, record.id)
        except DamagedPolicyError as error:  # nothing is served of such a cache, and nothing more is known
            count = count_entries(connection, record.id)
            return CheckReport(cache=cache, entry_count=count, generation="", problems=(error.message,))
        encoders, problems = _read_encoders(connection, record)
        problems += check_learned(connection, record, encoders.by_id.get(record.active_encoder_id or ""))
        problems += _check_consent(connection, record)
        problems += check_spaces(connection, record)
        problems += _check_counters(connection, record)
        problems += _check_feed(connection, record)
        problems += _check_entries(connection, record, encoders)
    generation, file_problems = _check_generation(engine, record, config)
    entry_count, index_problems = _check_index(engine, record, config, encoders)
    return CheckReport(
        cache=cache,
        entry_count=entry_count,
        generation=generation,
        problems=tuple(problems + file_problems + index_problems),
    )


def _read_encoders(connection: Connection, record: CacheRecord) -> tuple[_Encoders, list[str]]:
    """The active encoder comes first among those that label, then retired ones, newest first: class codes
    never change once issued, so they agree where they know the same labels."""
    by_id: dict[str, Encoder] = {}
    problems = []
    known = read_encoders(connection, record.id)
    destroyed = frozenset(found.encoder_id for found in known if found.state == DESTROYED)
    for found in known:
        if found.state == DESTROYED:
            continue
        try:
            by_id[found.encoder_id] = load_encoder(read_weights(connection, record.id, found.encoder_id))
        except CheckpointError as error:
            problems.append(f"encoder {found.encoder_id}: {error}")
    issued = sorted(
        (found for found in known if found.state in (ACTIVE, RETIRED)),
        key=lambda found: found.state != ACTIVE,
    )
    readable = [by_id[found.encoder_id] for found in issued if found.encoder_id in by_id]
    labelling = [encoder for encoder in readable if encoder.label_bits is not None]
    damaged = frozenset(found.encoder_id for found in known) - set(by_id) - destroyed
    for destroyed_id, serving_id in stand_ins(connection, record.id).items():
        if serving_id in by_id:
            by_id[destroyed_id] = by_id[serving_id]
    issued_codes = issued_class_codes(connection, record.id) if destroyed else None
    return _Encoders(by_id, labelling, damaged, issued_codes), problems


def _check_consent(connection: Connection, record: CacheRecord) -> Iterator[str]:
    """Where a category asks for consent, there is a verifier to give it."""
    active = [found for found in read_verifiers(connection, record.id) if found.state == ACTIVE]
    for verifier in active:
        if verifier.modality not in record.modalities:
            continue  # of an embedder that was replaced: it consents to nothing any more
        try:
            load_stored_verifier(connection, record, verifier)
        except (HashingError, NotFoundError) as error:
            yield f"verifier {verifier.verifier_id}: {error}"
    for category in read_categories(connection, record.id):
        if category.policy.min_probability is not None and not active:
            yield f"category {category.name} asks for consent, and no verifier is active"


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


def _check_entries(connection: Connection, record: CacheRecord, encoders: _Encoders) -> Iterator[str]:
    """Every entry is well formed, and its key and its codes are what follows from the rest of it."""
    for records in scan_entries(connection, entry_query(record.id), chunk=_CHUNK):
        flaws = [_flaw(record, entry) for entry in records]
        yield from (f"entry {entry.name}: {flaw}" for entry, flaw in zip(records, flaws, strict=True) if flaw)
        wrong = [entry for entry in records if entry.fingerprint_key != _fingerprint_key(entry)]
        if wrong:
            yield f"fingerprint keys of entries {_names(wrong)} are not those of their scope and fingerprint"
        sound = [entry for entry, flaw in zip(records, flaws, strict=True) if flaw is None]
        yield from _check_codes(sound, encoders)
        coded = [entry for entry in sound if entry.label_code is not None]
        made = _label_codes(encoders, coded)
        wrong = [entry for entry, code in zip(coded, made, strict=True) if entry.label_code != code]
        if wrong:
            yield f"label codes of entries {_names(wrong)} are not those issued for their labels"


def _flaw(cache: CacheRecord, entry: EntryRecord) -> str | None:
    """What is wrong with one stored entry by itself; None: nothing."""
    if damage := damage_of(cache, entry):
        return damage
    norm = float(np.linalg.norm(np.frombuffer(entry.vector, dtype=STORED_DTYPE).astype(np.float64)))
    if abs(norm - 1) > NORM_TOLERANCE:
        return f"the vector has norm {norm:.4g}, not 1"
    return None


def _fingerprint_key(entry: EntryRecord) -> bytes | None:
    return None if entry.fingerprint is None else fingerprint_key(entry.scope, entry.fingerprint)


def _check_codes(records: Sequence[EntryRecord], encoders: _Encoders) -> Iterator[str]:
    """Codes are what their encoder makes of the vectors; of a damaged encoder that is not known."""
    pairs = {(entry.encoder_id, entry.modality) for entry in records if entry.encoder_id is not None}
    for encoder_id, modality in sorted(pairs):
        group = [entry for entry in records if (entry.encoder_id, entry.modality) == (encoder_id, modality)]
        encoder = encoders.by_id.get(encoder_id)
        if encoder is None and encoder_id not in encoders.damaged:
            yield f"entries {_names(group)} carry codes of encoder {encoder_id}, which is not there"
        if encoder is None:
            continue
        codes = np.frombuffer(b"".join(entry.code or b"" for entry in group), dtype="<u8")
        vectors = vectors_of([entry.vector for entry in group])
        try:
            wrong = _wrong_codes(encoder, vectors, codes.reshape(len(group), -1), modality=modality)
        except HashingError as error:
            yield f"codes of entries {_names(group)}: encoder {encoder_id}: {error}"
            continue
        if wrong.size:
            named = _names([group[i] for i in wrong.tolist()])
            yield f"codes of entries {named} are not what encoder {encoder_id} makes of them"


def _wrong_codes(
    encoder: Encoder, vectors: NDArray[np.float16], codes: NDArray[np.uint64], *, modality: str
) -> NDArray[np.int64]:
    """Positions int64 [m] of the codes that the encoder would not make. Raises: HashingError."""
    values = encoder.instance_values(from_stored(vectors), modality=modality)
    made = pack(values > 0)
    if codes.shape != made.shape:
        return np.arange(len(codes))
    undecided = pack(np.abs(values) < UNDECIDED_VALUE)
    return np.flatnonzero(((codes ^ made) & ~undecided).any(axis=1))


def _label_codes(encoders: _Encoders, records: Sequence[EntryRecord]) -> list[bytes | None]:
    """Per entry, the label code of the first encoder that knows all of its labels; None where none does."""
    labels = [entry.labels for entry in records]
    made: list[bytes | None] = [None] * len(records)
    for encoder in encoders.labelling:
        codes = label_codes_of(encoder, labels)
        made = [code if before is None else before for before, code in zip(made, codes, strict=True)]
    if encoders.issued is None:
        return made
    codes = class_codes_of(encoders.issued, labels)
    return [code if before is None else before for before, code in zip(made, codes, strict=True)]


def _check_generation(engine: Engine, record: CacheRecord, config: Config) -> tuple[str, list[str]]:
    """The files of the current generation are whole, and of this store."""
    root = index_root(config.store.data_dir, record.id)
    name = None
    try:
        name = current_generation(root)
        if name is None:
            return "", []
        owner = read_manifest(root, name).cache
    except DamagedGenerationError as error:
        return name or "", [str(error)]
    problems = check_generation(root, name)
    with reading(engine) as connection:
        problems += dropped_generations(connection, record, root)
        if not is_listed(connection, record, owner):
            problems.append(f"generation {name} was not built from this store as it is now")
    return name, problems


def _check_index(
    engine: Engine, record: CacheRecord, config: Config, encoders: _Encoders
) -> tuple[int, list[str]]:
    """Every row of the store is in exactly one live segment position, equal to what is stored."""
    try:
        replica = CacheReplica(engine, record, search=config.search, data_dir=config.store.data_dir)
    except (HashingError, IndexFault, NotFoundError, ValueError) as error:
        # ValueError: of numpy, for stored bytes that are no row of an array; the entry was named before.
        with reading(engine) as connection:
            return count_entries(connection, record.id), [f"the index cannot be opened: {error}"]
    state = replica.state
    problems: list[str] = []
    id_parts = [np.empty(0, dtype=np.int64)]
    with reading(engine) as connection:
        seq = read_cache(connection, record.name).seq
        for records in scan_entries(connection, entry_query(record.id), chunk=_CHUNK):
            ids = np.array([entry.id for entry in records], dtype=np.int64)
            id_parts.append(ids)
            problems += _compare(state.record, records, state.index.rows_of(ids), encoders)
    stored_ids = np.concatenate(id_parts)
    if seq != state.index.applied_seq:
        problems = ["the store changed during the check: run it again, or stop the writers"]
        return stored_ids.size, problems
    unknown = np.setdiff1d(state.index.live_ids(), stored_ids).tolist()
    problems += [f"row {row_id} is in the index and not in the store" for row_id in unknown]
    return stored_ids.size, problems


def _compare(
    cache: CacheRecord, records: Sequence[EntryRecord], served: Sequence[KeyedRows], encoders: _Encoders
) -> Iterator[str]:
    """Compare entries with the rows of theirs that are served."""
    names = {entry.id: entry.name for entry in records}
    ids, counts = np.unique(np.concatenate([[], *(rows.entry_ids for _, rows in served)]), return_counts=True)
    for row_id in ids[counts > 1].tolist():
        yield f"entry {names[int(row_id)]} is in two positions of the index"
    for row_id in sorted(set(names) - set(ids.tolist())):
        yield f"entry {names[row_id]} is not in the index"
    sound = [entry for entry in records if _flaw(cache, entry) is None]
    for stored in to_rows(cache, sound):
        for found in served:
            for row_id, what in _differences(stored, found, encoders):
                yield f"entry {names[row_id]}: the index has another {what} than the store"


def _differences(stored: KeyedRows, served: KeyedRows, encoders: _Encoders) -> Iterator[tuple[int, str]]:
    """(entry id, what differs) of the rows that both have."""
    common, of_stored, of_served = np.intersect1d(
        stored[1].entry_ids, served[1].entry_ids, assume_unique=True, return_indices=True
    )
    if not common.size:
        return
    key, rows = stored[0], stored[1].take(of_stored)
    served_key, served_rows = served[0], served[1].take(of_served)
    for what in ("category_id", "modality"):
        if getattr(key, what) != getattr(served_key, what):
            yield from ((row_id, what.removesuffix("_id")) for row_id in common.tolist())
    differing = {
        what: _unequal(getattr(rows, name), getattr(served_rows, name)) for what, name in _COMPARED.items()
    }
    differing["code"] = _unequal_codes((key, rows), (served_key, served_rows), encoders)
    differing["label code"] = _unequal_label_codes((key, rows), (served_key, served_rows))
    differing["payload"] = np.array(
        [not is_payload_of(served_rows.payloads[i], rows.payloads[i]) for i in range(len(rows))],
        dtype=np.bool_,
    )
    for what, mask in differing.items():
        yield from ((row_id, what) for row_id in common[mask].tolist())


def _unequal_codes(stored: KeyedRows, served: KeyedRows, encoders: _Encoders) -> NDArray[np.bool_]:
    """bool [n]. A build that ended early may have coded a row whose index row keeps the code of before."""
    (key, rows), (served_key, served_rows) = stored, served
    if served_rows.codes is None or served_key.encoder_id is None:
        return np.zeros(len(rows), dtype=np.bool_)
    if served_key.encoder_id == key.encoder_id and rows.codes is not None:
        return _unequal(rows.codes, served_rows.codes)
    mask = np.ones(len(rows), dtype=np.bool_)
    encoder = encoders.by_id.get(served_key.encoder_id)
    if encoder is not None and key.encoder_id is not None and key.modality in encoder.modalities:
        mask[:] = False
        mask[_wrong_codes(encoder, rows.vectors, served_rows.codes, modality=key.modality)] = True
    return mask


def _unequal_label_codes(stored: KeyedRows, served: KeyedRows) -> NDArray[np.bool_]:
    """bool [n]. As with codes: a row that was coded later may have got its label code with that."""
    (key, rows), (served_key, served_rows) = stored, served
    differing = _unequal(rows.label_codes, served_rows.label_codes)
    differing |= rows.label_mask != served_rows.label_mask
    if served_key.encoder_id != key.encoder_id:
        differing &= served_rows.label_mask
    return differing


def _unequal(first: NDArray[np.generic], second: NDArray[np.generic]) -> NDArray[np.bool_]:
    """bool [n]: which rows differ."""
    count = len(first)
    if first.shape != second.shape:
        return np.ones(count, dtype=np.bool_)
    differing: NDArray[np.bool_] = (first != second).reshape(count, -1).any(axis=1)
    return differing


def _names(records: Sequence[EntryRecord]) -> str:
    shown = ", ".join(record.name for record in records[:5])
    return shown if len(records) <= 5 else f"{shown} and {len(records) - 5} more"

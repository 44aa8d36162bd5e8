"""A change of embedder: begun by a map from the new space to the old one, ended by removing the old one.

Between the two, entries of both spaces are served; `reembedding` moves them. Each step is one transaction
that running servers follow.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, func, select, update

from hashing.embedder_map import STORED_LIMIT, EmbedderMap, MapReport, evaluate_map, fit_embedder_map
from hashing.mapped_threshold import MappedThresholds, calibrate_thresholds
from hashing.trainer import Progress
from service import jobs
from service.coding import from_stored, vectors_of
from service.database import reading, writing
from service.embedder_maps import keep_map, next_space_number, retire_map
from service.errors import InvalidRequestError, PreconditionError
from service.keys import cache_name
from service.learned_rows import id_chunks, refuse_forgotten
from service.learning import of_modality, read_rows
from service.records import CacheRecord, ModalitySpec
from service.registry import DIM_MOST, bump_config, lock_cache
from service.row_scan import SCAN_ROWS
from service.rows import read_cache, read_cache_by_id
from service.shift_store import relearn_shifts
from service.spaces import current_space, later_space, succeeding_space
from service.tables import caches, entries
from service.transaction import CacheTransaction

MODALITY_CHARACTERS = 28  # longer names leave no room for the number of a space
EMBEDDER_ID_CHARACTERS = 256
LEAST_PAIRS = 60  # half of them are held out then: with fewer, random embeddings may pass
LEAST_STORED = 100  # with fewer rows to choose from, random neighbours are often right
HELD_OUT_SHARE = 0.2
HELD_OUT_LEAST = 150  # so that mapped thresholds can be shown, unless that is over half of the pairs
HELD_OUT_MOST = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReport:
    """What came of a map, as it is kept with it.

    pair_count: usable pairs, held_out_count of them not fitted on. unknown_count: rows that name no entry of
    the space. reasons: why it was rejected. mapped_thresholds: see hashing.mapped_threshold.
    """

    map_id: str
    accepted: bool
    reasons: tuple[str, ...]
    method: str
    pair_count: int
    held_out_count: int
    unknown_count: int
    cosine: float
    neighbour_recall: float
    nearest_found: float
    nearest_changed: float
    mapped_thresholds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndReport:
    """How a change ended: the embedder and dimension of the modality from now on, and entries deleted."""

    embedder_id: str
    dim: int
    dropped_count: int


def check_may_start(cache: CacheRecord, *, modality: str, embedder_id: str, dim: int) -> str:
    """The space that a new embedder would succeed.

    Raises:
        InvalidRequestError: no such modality, an id or a dimension that no embedder has.
        PreconditionError: another change is not finished, or the embedder is that of the cache already.
    """
    space = current_space(cache, modality)
    name = cache_name(cache.name)
    if len(modality) > MODALITY_CHARACTERS:
        raise PreconditionError(f"modality {modality!r} has over {MODALITY_CHARACTERS} characters")
    if not 0 < len(embedder_id) <= EMBEDDER_ID_CHARACTERS or not embedder_id.isprintable():
        raise InvalidRequestError(
            f"an embedder's id has 1 to {EMBEDDER_ID_CHARACTERS} printable characters, not {embedder_id!r}",
            reason="INVALID_VALUE",
        )
    if not 1 <= dim <= DIM_MOST:
        raise InvalidRequestError(f"dim must be in [1, {DIM_MOST}], is {dim}", reason="INVALID_DIM")
    later = succeeding_space(cache, modality)
    if later is not None:
        raise PreconditionError(
            f"the change of {name} to {cache.modalities[later].embedder_id!r} is not finished: --finish or "
            "--abort it first",
            reason="MIGRATION_UNFINISHED",
        )
    if cache.modalities[space].embedder_id == embedder_id:
        raise PreconditionError(f"{name} holds embeddings of {embedder_id!r} already", reason="SAME_EMBEDDER")
    return space


def start_migration(
    engine: Engine,
    cache: str,
    *,
    modality: str,
    embedder_id: str,
    names: Sequence[str],
    embeddings: NDArray[np.float32],
    seed: int,
    clock: Callable[[], int],
    progress: Progress,
) -> StartReport:
    """Learn a map from entries embedded by a new embedder; if it passes, serve queries of that embedder.

    names: distinct ids of entries. embeddings: float32 [n, dim], L2-normalised, of the same texts. A part of
    them judges the map and calibrates its thresholds, by all entries of the space. Of a rejected map the
    report is kept. clock: ms.

    Raises: as check_may_start; PreconditionError: under LEAST_PAIRS usable pairs or LEAST_STORED entries of
    the space, or one that was read was forgotten since; HashingError: pairs that nothing can be learned from.
    """
    dim = int(embeddings.shape[1])
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        space = check_may_start(record, modality=modality, embedder_id=embedder_id, dim=dim)
        known = _read_vectors(connection, record, space, names)
        stored = read_rows(connection, of_modality(record, space), most=STORED_LIMIT, progress=progress)
    # Of entries with equal vectors one: else what is held out would be what was fitted on.
    rows = list({pair.vector: row for row, pair in reversed(known.items())}.values())[::-1]
    if len(rows) < LEAST_PAIRS:
        raise PreconditionError(
            f"{len(rows)} usable pairs, at least {LEAST_PAIRS} are needed: of {len(names)} rows "
            f"{len(names) - len(known)} name no entry of {cache_name(cache)}, {len(known) - len(rows)} "
            "repeat others",
            reason="TOO_FEW_PAIRS",
        )
    if len(stored) < LEAST_STORED:
        raise PreconditionError(
            f"{cache_name(cache)} has {len(stored)} entries to judge a map by, at least {LEAST_STORED} are "
            "needed: embed them anew into a new cache",
            reason="TOO_FEW_ENTRIES",
        )
    new, old = embeddings[rows], from_stored(vectors_of([known[row].vector for row in rows]))
    held, kept = _split(len(rows), seed=seed)
    progress("fit", 0, 1)
    fitted = fit_embedder_map(
        new[kept],
        old[kept],
        from_embedder=embedder_id,
        to_embedder=record.modalities[space].embedder_id,
        stored=stored.vectors,
        seed=seed,
    )
    progress("judge", 0, 1)
    gate = evaluate_map(fitted, new[held], old[held], stored=stored.vectors)
    read_ids = {pair.row_id for pair in known.values()}.union(stored.row_ids)
    parts = _stored_parts(engine, record, space, read_ids)
    thresholds = calibrate_thresholds(fitted, new[held], old[held], stored=parts)
    report = _report(fitted, gate, thresholds, pair_count=len(rows), unknown_count=len(names) - len(known))
    with writing(engine) as connection:
        record = lock_cache(connection, record.id)
        if check_may_start(record, modality=modality, embedder_id=embedder_id, dim=dim) != space:
            raise PreconditionError(
                f"the embedder of {cache_name(cache)} was changed meanwhile", reason="EMBEDDER_REPLACED"
            )
        refuse_forgotten(connection, record.id, sorted(read_ids))
        later = ""
        if gate.accepted:
            later = later_space(modality, next_space_number(connection, record, modality))
            spec = ModalitySpec(dim=dim, embedder_id=embedder_id, succeeds=space)
            _write_spaces(connection, record, {**record.modalities, later: spec})
        keep_map(
            connection, record, fitted, modality=space, space=later, report=asdict(report), now_ms=clock()
        )
    return report


def finish_migration(
    engine: Engine, cache: str, *, modality: str, drop_rest: bool, clock: Callable[[], int]
) -> EndReport:
    """Remove the old space; the new one is the modality's from then on. clock: ms.

    What lookups are usually like is learned anew, as distances are others.

    Raises: NotFoundError, InvalidRequestError; PreconditionError: no change is under way, or entries of the
    old space are left and `drop_rest` does not say to delete them.
    """
    with writing(engine) as connection:
        tx, record, space, spec = _lock_changing(connection, cache, modality, clock=clock)
        rest = _entries_of(connection, record, spec.succeeds, now_ms=tx.now_ms)
        if rest.live_count and not drop_rest:
            raise PreconditionError(
                f"{rest.live_count} entries of {cache_name(cache)} are embedded by "
                f"{record.modalities[spec.succeeds].embedder_id!r} still: --reembed them, or --drop-rest "
                "deletes them",
                reason="ENTRIES_REMAIN",
                entry_count=rest.live_count,
            )
        tx.delete(rest.row_ids)
        # In the place of the old one: what goes by the first modality goes by it still.
        current = (space, ModalitySpec(dim=spec.dim, embedder_id=spec.embedder_id))
        kept = (own for own in record.modalities.items() if own[0] != space)
        _write_spaces(connection, record, dict(current if own[0] == spec.succeeds else own for own in kept))
        _end(tx, space)
        relearn_shifts(connection, record.id, now_ms=tx.now_ms)
    return EndReport(embedder_id=spec.embedder_id, dim=spec.dim, dropped_count=rest.live_count)


def abort_migration(engine: Engine, cache: str, *, modality: str, clock: Callable[[], int]) -> EndReport:
    """Remove the new space and its map. clock: ms.

    Raises: NotFoundError, InvalidRequestError; PreconditionError: no change is under way, or entries live in
    the new space.
    """
    with writing(engine) as connection:
        tx, record, space, spec = _lock_changing(connection, cache, modality, clock=clock)
        moved = _entries_of(connection, record, space, now_ms=tx.now_ms)
        if moved.live_count:
            raise PreconditionError(
                f"{moved.live_count} entries of {cache_name(cache)} are embedded by {spec.embedder_id!r} "
                "already: --finish the change, or delete them",
                reason="ENTRIES_REMAIN",
                entry_count=moved.live_count,
            )
        tx.delete(moved.row_ids)
        _write_spaces(
            connection, record, {name: own for name, own in record.modalities.items() if name != space}
        )
        _end(tx, space)
        before = record.modalities[spec.succeeds]
    return EndReport(embedder_id=before.embedder_id, dim=before.dim, dropped_count=0)


def changing_space(cache: CacheRecord, modality: str) -> tuple[str, ModalitySpec]:
    """The space that takes the current one's place. Raises: InvalidRequestError; PreconditionError: none."""
    space = succeeding_space(cache, modality)
    if space is None:
        raise PreconditionError(
            f"no change of the embedder of {cache_name(cache.name)} is under way", reason="NO_MIGRATION"
        )
    return space, cache.modalities[space]


@dataclass(frozen=True, slots=True)
class _Entries:
    """row_ids: of all, expired ones too."""

    row_ids: Sequence[int]
    live_count: int


def _entries_of(connection: Connection, cache: CacheRecord, space: str, *, now_ms: int) -> _Entries:
    own = (entries.c.cache_id == cache.id, entries.c.modality == space)
    row_ids = connection.execute(select(entries.c.id).where(*own).order_by(entries.c.id)).scalars().all()
    live = select(func.count()).select_from(entries).where(*own, entries.c.expire_ms > now_ms)
    return _Entries(row_ids, int(connection.execute(live).scalar_one()))


def _lock_changing(
    connection: Connection, cache: str, modality: str, *, clock: Callable[[], int]
) -> tuple[CacheTransaction, CacheRecord, str, ModalitySpec]:
    tx = CacheTransaction.lock(connection, read_cache(connection, cache).id, now_ms=clock())
    record = read_cache_by_id(connection, tx.cache_id)
    return tx, record, *changing_space(record, modality)


def _end(tx: CacheTransaction, space: str) -> None:
    """Let go what only the change needed."""
    retire_map(tx.connection, tx.cache_id, space)
    jobs.cancel_all(tx.connection, tx.cache_id, kind=jobs.REEMBED, now_ms=tx.now_ms)


def _write_spaces(connection: Connection, cache: CacheRecord, modalities: Mapping[str, ModalitySpec]) -> None:
    values = {
        "modalities": {space: asdict(spec) for space, spec in modalities.items()},
        "version": caches.c.version + 1,
    }
    connection.execute(update(caches).where(caches.c.id == cache.id).values(**values))
    bump_config(connection, cache.id)


class _StoredRow(NamedTuple):
    """An entry and its vector as it is stored."""

    row_id: int
    vector: bytes


def _read_vectors(
    connection: Connection, cache: CacheRecord, space: str, names: Sequence[str]
) -> dict[int, _StoredRow]:
    """The rows of the names that are entries of the space, by place in `names`."""
    places = {name: place for place, name in enumerate(names)}
    found: dict[int, _StoredRow] = {}
    for chunk in id_chunks(names):
        query = select(entries.c.id, entries.c.vector, entries.c.name).where(
            entries.c.cache_id == cache.id, entries.c.modality == space, entries.c.name.in_(chunk)
        )
        found |= {places[row.name]: _StoredRow(row.id, row.vector) for row in connection.execute(query)}
    return dict(sorted(found.items()))


def _stored_parts(
    engine: Engine, cache: CacheRecord, space: str, read_ids: set[int]
) -> Iterator[NDArray[np.float32]]:
    """The vectors of all rows of a space, float32 [m, dim] a part; their ids are added to `read_ids`. Between
    two parts no transaction is open."""
    own = (entries.c.cache_id == cache.id, entries.c.modality == space)
    query = select(entries.c.id, entries.c.vector).where(*own).order_by(entries.c.id).limit(SCAN_ROWS)
    after = 0
    while True:
        with reading(engine) as connection:
            found = connection.execute(query.where(entries.c.id > after)).all()
        if not found:
            return
        after = found[-1].id
        read_ids.update(row.id for row in found)
        yield from_stored(vectors_of([row.vector for row in found]))


def _split(count: int, *, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs to judge by, and pairs to fit on."""
    order = np.random.default_rng(seed).permutation(count)
    held_count = max(round(HELD_OUT_SHARE * count), min(HELD_OUT_LEAST, count // 2), 1)
    held_count = min(held_count, HELD_OUT_MOST)
    return order[:held_count], order[held_count:]


def _report(
    fitted: EmbedderMap, gate: MapReport, thresholds: MappedThresholds, *, pair_count: int, unknown_count: int
) -> StartReport:
    return StartReport(
        map_id=fitted.map_id,
        accepted=gate.accepted,
        reasons=gate.reasons,
        method=fitted.method,
        pair_count=pair_count,
        held_out_count=gate.pair_count,
        unknown_count=unknown_count,
        cosine=gate.cosine,
        neighbour_recall=gate.neighbour_recall,
        nearest_found=gate.nearest_found,
        nearest_changed=gate.nearest_changed,
        mapped_thresholds=thresholds.limits,
    )

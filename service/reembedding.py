"""Moves entries from the space of one embedder to that of the next: new vectors, everything else stays.

What is left to do is what is still in the old space, so a move that was cut off is simply begun again.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, Select, bindparam, func, null, select, update

from hashing.trainer import Progress
from service import quota
from service.coding import to_stored
from service.database import execute_many, reading, writing
from service.embedder_migration import changing_space
from service.embedding import DEFAULT_MODALITY
from service.errors import PreconditionError
from service.eviction import worth_column
from service.learned_rows import id_chunks
from service.patient_embedding import EmbedTexts, PatientEmbedding
from service.records import CacheRecord, ModalitySpec, Operation
from service.rows import read_cache
from service.tables import entries, feedback
from service.transaction import CacheTransaction

BATCH_ROWS = 64
"""Texts embedded, and rows moved, at a time: writers wait for no more."""

_MOVE = (
    update(entries)
    .where(entries.c.id == bindparam("row_id"))
    .values(
        modality=bindparam("new_space"),
        embedder_id=bindparam("new_embedder_id"),
        vector=bindparam("new_vector"),
        code=null(),
        encoder_id=null(),
        size_bytes=entries.c.size_bytes + bindparam("added_bytes"),
        worth=worth_column(size_bytes=entries.c.size_bytes + bindparam("added_bytes")),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReembedReport:
    """moved_count: entries in the new space now that were in the old one. left_count: live ones still there,
    for lack of a text or of an embedding. unknown_count: embeddings that name no entry of the old space.
    evicted_count: entries that left as vectors became larger than quotas allow. failed_count: texts that the
    embedder cannot embed."""

    moved_count: int
    left_count: int
    unknown_count: int = 0
    evicted_count: int = 0
    failed_count: int = 0


def reembed_texts(
    engine: Engine,
    cache: str,
    *,
    embedder_id: str,
    embed: EmbedTexts,
    clock: Callable[[], int],
    progress: Progress,
) -> ReembedReport:
    """Embed the texts of entries anew, the most used entries first, a batch at a time. clock: ms.

    `progress` is told of "embed" before every batch and may raise to stop: what was moved stays moved. An
    entry that is deleted or moved meanwhile is left alone; one that is stored meanwhile is moved too. Of a
    batch that cannot be embedded its texts are embedded one at a time, and those that fail stay.

    Raises: NotFoundError; PreconditionError: the cache is not changing to this embedder, or no longer;
    EmbedderUnavailableError, InvalidRequestError: of no text does the embedder make an embedding.
    """
    tried: set[int] = set()
    patient = PatientEmbedding(embed)
    moved = evicted = failed = 0
    while row_ids := _waiting(engine, cache, embedder_id, without=tried):
        total = len(tried) + len(row_ids)
        for start in range(0, len(row_ids), BATCH_ROWS):
            progress("embed", len(tried), total)
            batch = row_ids[start : start + BATCH_ROWS]
            tried.update(batch)
            texts = _read_texts(engine, batch)
            if not texts:
                continue
            made = patient.embed(texts)
            failed += len(texts) - len(made)
            counts = move_rows(
                engine, cache, made, modality=DEFAULT_MODALITY, embedder_id=embedder_id, clock=clock
            )
            moved, evicted = moved + counts[0], evicted + counts[1]
    progress("embed", len(tried), len(tried))
    return ReembedReport(
        moved_count=moved,
        left_count=count_left(engine, cache, modality=DEFAULT_MODALITY, now_ms=clock()),
        evicted_count=evicted,
        failed_count=failed,
    )


def move_rows(
    engine: Engine,
    cache: str,
    vectors: Mapping[int, NDArray[np.float32]],
    *,
    modality: str,
    embedder_id: str,
    clock: Callable[[], int],
) -> tuple[int, int]:
    """Give rows of the old space vectors of the new one, in one transaction; rows that are elsewhere stay.

    vectors: by row id, float32 [dim], L2-normalised. Returns how many were moved, and how many left as their
    categories had no room. Raises: NotFoundError; PreconditionError: the cache is not changing to this
    embedder, or the vectors have another dimension.
    """
    with writing(engine) as connection:
        tx = CacheTransaction.lock(connection, read_cache(connection, cache).id, now_ms=clock())
        space, spec = _changing_to(read_cache(connection, cache), modality, embedder_id)
        if any(vector.shape != (spec.dim,) for vector in vectors.values()):
            raise PreconditionError(
                f"the embedder makes vectors of another dimension than {spec.dim}",
                reason="DIMENSION_MISMATCH",
            )
        found = connection.execute(
            select(entries.c.id, entries.c.category_id, func.length(entries.c.vector).label("size_bytes"))
            .where(
                entries.c.cache_id == tx.cache_id,
                entries.c.modality == spec.succeeds,
                entries.c.id.in_(list(vectors)),
            )
            .order_by(entries.c.id)
        ).all()
        if not found:
            return 0, 0
        stored = {row.id: to_stored(vectors[row.id]).tobytes() for row in found}
        added = [len(stored[row.id]) - row.size_bytes for row in found]
        columns = {
            "row_id": [row.id for row in found],
            "new_space": [space] * len(found),
            "new_embedder_id": [embedder_id] * len(found),
            "new_vector": [stored[row.id] for row in found],
            "added_bytes": added,
        }
        execute_many(connection, _MOVE, columns)
        # What was asked before is of the old space, and no pair with the new vectors.
        judged = (feedback.c.cache_id == tx.cache_id, feedback.c.entry_id.in_(columns["row_id"]))
        connection.execute(update(feedback).where(*judged).values(query_vector=None))
        tx.record(Operation.UPSERT, columns["row_id"])
        evicted = 0
        for category_id in sorted({row.category_id for row in found}):
            own = sum(size for row, size in zip(found, added, strict=True) if row.category_id == category_id)
            tx.count(category_id, entry_count=0, size_bytes=own)
            evicted += quota.make_room(tx, tx.category(category_id), incoming_count=0, incoming_bytes=0)
        return len(found), evicted


def rows_of_names(
    connection: Connection, cache: CacheRecord, names: Sequence[str], *, modality: str
) -> dict[str, int]:
    """The row ids of those names that are entries of the old space. Raises: PreconditionError."""
    _, spec = changing_space(cache, modality)
    found: dict[str, int] = {}
    for chunk in id_chunks(names):
        query = select(entries.c.name, entries.c.id).where(
            entries.c.cache_id == cache.id,
            entries.c.modality == spec.succeeds,
            entries.c.name.in_(chunk),
        )
        found |= {row.name: row.id for row in connection.execute(query)}
    return found


def sample_texts(
    connection: Connection, cache: CacheRecord, *, space: str, count: int, seed: int
) -> dict[str, str]:
    """Texts of up to `count` entries of a space by name: those that lookups hit, the most used first, then
    others at random."""
    used = list(
        connection.execute(_by_use(cache, space).where(entries.c.access_count > 0).limit(count)).scalars()
    )
    if len(used) < count:
        unused = list(connection.execute(_by_use(cache, space).where(entries.c.access_count == 0)).scalars())
        drawn = np.random.default_rng(seed).permutation(len(unused))[: count - len(used)]
        used += [unused[place] for place in drawn.tolist()]
    texts: dict[str, str] = {}
    for chunk in id_chunks(used):
        query = select(entries.c.name, entries.c.text).where(entries.c.id.in_(chunk))
        texts |= {row.name: row.text for row in connection.execute(query) if row.text.strip()}
    return texts


def count_left(engine: Engine, cache: str, *, modality: str, now_ms: int) -> int:
    """Live entries of the old space. Raises: NotFoundError, PreconditionError."""
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        _, spec = changing_space(record, modality)
        query = select(func.count()).select_from(entries)
        query = query.where(entries.c.cache_id == record.id, entries.c.modality == spec.succeeds)
        return int(connection.execute(query.where(entries.c.expire_ms > now_ms)).scalar_one())


def _changing_to(cache: CacheRecord, modality: str, embedder_id: str) -> tuple[str, ModalitySpec]:
    space, spec = changing_space(cache, modality)
    if spec.embedder_id != embedder_id:
        raise PreconditionError(
            f"cache {cache.name} is changing to {spec.embedder_id!r}, not to {embedder_id!r}",
            reason="EMBEDDER_MISMATCH",
        )
    return space, spec


def _waiting(engine: Engine, cache: str, embedder_id: str, *, without: Collection[int]) -> list[int]:
    """Row ids of the old space that have a text, the most used first."""
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        _, spec = _changing_to(record, DEFAULT_MODALITY, embedder_id)
        found: Sequence[int] = connection.execute(_by_use(record, spec.succeeds)).scalars().all()
        return [row_id for row_id in found if row_id not in without]


def _by_use(cache: CacheRecord, space: str) -> Select[Any]:
    """Row ids of a space that have a text, the most used first."""
    return (
        select(entries.c.id)
        .where(entries.c.cache_id == cache.id, entries.c.modality == space, entries.c.text != "")
        .order_by(entries.c.access_count.desc(), entries.c.access_ms.desc(), entries.c.id)
    )


def _read_texts(engine: Engine, row_ids: Sequence[int]) -> dict[int, str]:
    """The texts of these rows that are not blank, by row id."""
    with reading(engine) as connection:
        query = select(entries.c.id, entries.c.text).where(entries.c.id.in_(row_ids))
        found = {row.id: row.text for row in connection.execute(query)}
    return {row_id: found[row_id] for row_id in row_ids if found.get(row_id, "").strip()}

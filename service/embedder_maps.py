"""The maps between a cache's spaces, as the store keeps them and as replicas serve by them."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, delete, insert, select, update

from hashing.embedder_map import EmbedderMap, dump_embedder_map, load_embedder_map
from hashing.errors import CheckpointError, HashingError
from hashing.mapped_threshold import MappedThresholds, thresholds_from
from service.records import CacheRecord, EmbedderMapRecord
from service.registry import ACTIVE, REJECTED, RETIRED
from service.spaces import modality_of, space_number
from service.tables import embedder_maps, entries

logger = logging.getLogger(__name__)
_COLUMNS = [embedder_maps.c[name] for name in EmbedderMapRecord.__dataclass_fields__]


@dataclass(frozen=True, slots=True, eq=False)
class ServedMap:
    """How queries of one space search another. modality: the space that they are mapped to."""

    map_id: str
    modality: str
    embedder_map: EmbedderMap
    thresholds: MappedThresholds

    def apply(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """A query, float32 [dim], as float32 [old_dim]."""
        mapped: NDArray[np.float32] = self.embedder_map.apply(vector[None, :])[0]
        return mapped


def read_maps(connection: Connection, cache_id: int) -> list[EmbedderMapRecord]:
    """A cache's maps, newest first."""
    query = select(*_COLUMNS).where(embedder_maps.c.cache_id == cache_id)
    rows = connection.execute(query.order_by(embedder_maps.c.create_ms.desc(), embedder_maps.c.map_id))
    return [EmbedderMapRecord(**row._mapping) for row in rows]


def read_served_maps(
    connection: Connection, record: CacheRecord, known: Mapping[str, ServedMap]
) -> dict[str, ServedMap]:
    """The active maps by the space of their queries. One that cannot be loaded is left out and named: queries
    of its space then find what is in their own."""
    served: dict[str, ServedMap] = {}
    for found in read_maps(connection, record.id):
        if found.state != ACTIVE:
            continue
        before = known.get(found.space)
        try:
            if before is None or before.map_id != found.map_id:
                before = load_served_map(connection, record, found)
            served[found.space] = before
        except HashingError as error:
            logger.error("map %s of %s cannot serve: %s", found.map_id, record.name, error)
    return served


def load_served_map(connection: Connection, cache: CacheRecord, record: EmbedderMapRecord) -> ServedMap:
    """A map as the store keeps it. Raises: CheckpointError: it cannot be trusted, or does not fit."""
    query = select(embedder_maps.c.weights).where(
        embedder_maps.c.cache_id == cache.id, embedder_maps.c.map_id == record.map_id
    )
    loaded = load_embedder_map(connection.execute(query).scalar_one())
    if loaded.map_id != record.map_id:
        raise CheckpointError(f"it holds map {loaded.map_id}")
    dims = tuple(getattr(cache.modalities.get(space), "dim", 0) for space in (record.space, record.modality))
    if dims != (loaded.new_dim, loaded.old_dim):
        raise CheckpointError(f"it maps {loaded.new_dim} to {loaded.old_dim} dimensions, spaces have {dims}")
    try:
        thresholds = thresholds_from(
            record.report["mapped_thresholds"], query_count=record.report["held_out_count"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"its thresholds cannot be read: {error}") from error
    return ServedMap(record.map_id, record.modality, loaded, thresholds)


def keep_map(
    connection: Connection,
    cache: CacheRecord,
    embedder_map: EmbedderMap,
    *,
    modality: str,
    space: str,
    report: Mapping[str, Any],
    now_ms: int,
) -> None:
    """Keep a map that serves queries of `space`, or, where that is empty, what is to be said of one that was
    rejected. The same map again takes the place of what is there; if that served a space and this one does
    not, it remembers that space, whose number is not to be used again."""
    same = (embedder_maps.c.cache_id == cache.id, embedder_maps.c.map_id == embedder_map.map_id)
    before = connection.execute(select(embedder_maps.c.space).where(*same)).scalar_one_or_none()
    connection.execute(delete(embedder_maps).where(*same))
    values = {
        "cache_id": cache.id,
        "map_id": embedder_map.map_id,
        "modality": modality,
        "space": space or before or "",
        "embedder_id": embedder_map.from_embedder,
        "state": ACTIVE if space else REJECTED,
        "weights": dump_embedder_map(embedder_map) if space else b"",
        "report": dict(report),
        "create_ms": now_ms,
    }
    connection.execute(insert(embedder_maps).values(**values))


def retire_map(connection: Connection, cache_id: int, space: str) -> None:
    """Serve queries of a space by a map no more; its report stays, its weights do not."""
    own = (embedder_maps.c.cache_id == cache_id, embedder_maps.c.space == space)
    connection.execute(update(embedder_maps).where(*own).values(state=RETIRED, weights=b""))


def next_space_number(connection: Connection, cache: CacheRecord, modality: str) -> int:
    """A number that no space of the modality ever had."""
    before = [found.space for found in read_maps(connection, cache.id) if found.space]
    own = [space for space in (*before, *cache.modalities) if modality_of(space) == modality]
    return 1 + max(space_number(space) for space in own)


def check_spaces(connection: Connection, cache: CacheRecord) -> Iterator[str]:
    """What is wrong with a cache's spaces, the embedders of their entries, and the maps between them."""
    named = select(entries.c.modality, entries.c.embedder_id).where(
        entries.c.cache_id == cache.id, entries.c.embedder_id != ""
    )
    for space, embedder_id in connection.execute(named.distinct().order_by("modality", "embedder_id")):
        expected = cache.modalities[space].embedder_id if space in cache.modalities else ""
        if embedder_id != expected:
            yield f"space {space} is of embedder {expected!r} and holds entries of {embedder_id!r}"
    maps = {found.space: found for found in read_maps(connection, cache.id) if found.state == ACTIVE}
    for space, spec in cache.modalities.items():
        if not spec.succeeds:
            continue
        if spec.succeeds not in cache.modalities or space not in maps:
            yield f"space {space} succeeds {spec.succeeds} without a map to it"
            continue
        try:
            load_served_map(connection, cache, maps[space])
        except HashingError as error:
            yield f"map {maps[space].map_id}: {error}"
    for space in maps.keys() - {space for space, spec in cache.modalities.items() if spec.succeeds}:
        yield f"map {maps[space].map_id} is active, and space {space} succeeds none"

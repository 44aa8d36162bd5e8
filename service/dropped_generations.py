"""Generations that may hold forgotten rows: found by the token in their manifest, and removed."""

from pathlib import Path

from sqlalchemy import Connection, select

from index.errors import DamagedGenerationError
from index.manifest import generation_name, generation_numbers, read_manifest, remove_generations
from service.records import CacheRecord
from service.tables import generations


def is_dropped(connection: Connection, cache_id: int, owner: str) -> bool:
    """Whether the files of this owner (replica.generation_owner) may hold rows that were forgotten."""
    query = select(generations.c.token).where(
        generations.c.cache_id == cache_id,
        generations.c.token == owner.partition(":")[2],
        generations.c.dropped_ms.is_not(None),
    )
    return connection.execute(query).first() is not None


def remove_dropped(connection: Connection, cache: CacheRecord, root: Path) -> list[str]:
    """Remove the generations under `root` that a forgetting has dropped; return their names.

    Those of another store stay: they are refused, and are not this one's to remove. Raises: OSError.
    """
    return _remove(connection, cache, root, foreign=False)


def remove_unlisted(connection: Connection, cache: CacheRecord, root: Path) -> list[str]:
    """Remove all generations under `root` that this store does not list, and those that cannot be read.

    Raises: OSError.
    """
    return _remove(connection, cache, root, foreign=True)


def _remove(connection: Connection, cache: CacheRecord, root: Path, *, foreign: bool) -> list[str]:
    query = select(generations.c.token, generations.c.dropped_ms).where(generations.c.cache_id == cache.id)
    dropped = {row.token: row.dropped_ms is not None for row in connection.execute(query)}
    names = []
    for number in generation_numbers(root):
        name = generation_name(number)
        try:
            token = read_manifest(root, name).cache.partition(":")[2]
        except DamagedGenerationError:
            token = ""
        if dropped.get(token, foreign):
            names.append(name)
    return remove_generations(root, names)

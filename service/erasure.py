"""What deleted rows leave behind on disk: generation files, write-ahead logs, free space in database pages.

Each step may be repeated, and says in words what it could not do.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from index.errors import BuildInProgressError, DamagedGenerationError
from index.manifest import build_lock, current_generation, read_manifest, remove_leftovers
from service.config import Config
from service.database import reading
from service.dropped_generations import remove_unlisted
from service.errors import PreconditionError
from service.generations import Progress, build_index
from service.records import CacheRecord
from service.replica import index_root, is_listed

logger = logging.getLogger(__name__)
BUILD_WAIT_SECONDS = 120.0
CHECKPOINT_WAIT_SECONDS = 10.0
_RETRY_SECONDS = 0.1
_CHECKPOINT_BUSY_MS = 100
_TABLES = (
    *("entries", "responses", "entry_tags", "feedback", "requests"),
    *("encoders", "learned_rows", "learned_by", "calibrations"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasedFiles:
    """removed: names of generations removed here. built: the new one, "" where there had been none.
    problems: what could not be done, in words for an operator."""

    removed: tuple[str, ...]
    built: str
    problems: tuple[str, ...]


def had_graph(config: Config, cache_id: int) -> bool:
    """Whether the current generation has graphs, as far as its manifest can be read."""
    root = index_root(config.store.data_dir, cache_id)
    try:
        name = current_generation(root)
        return name is not None and any(entry.graph for entry in read_manifest(root, name).segments)
    except DamagedGenerationError:
        return False


def erase_generations(
    engine: Engine,
    record: CacheRecord,
    config: Config,
    *,
    with_graph: bool,
    clock: Callable[[], int],
    progress: Progress,
    wait_seconds: float = BUILD_WAIT_SECONDS,
) -> ErasedFiles:
    """Remove the generations that this store does not stand by, and build one where there had been any.

    A build of another process is waited for, as it may be writing rows that are forgotten by now. A server
    goes on with the files that it has open until it serves the new generation.

    Raises: NotFoundError, StoreUnavailableError, OSError.
    """
    root = index_root(config.store.data_dir, record.id)
    deadline = time.monotonic() + wait_seconds
    removed: list[str] = []
    built = ""
    if not root.is_dir():
        return ErasedFiles(removed=(), built="", problems=())
    while True:
        with reading(engine) as connection:
            removed += remove_unlisted(connection, record, root)
        try:
            if not _is_current_served(engine, record, root):
                made = build_index(
                    engine,
                    record.name,
                    search=config.search,
                    data_dir=config.store.data_dir,
                    with_graph=with_graph,
                    reencode=False,
                    memory_limit_bytes=config.compaction.memory_limit_mib * 2**20,
                    progress=progress,
                    now_ms=clock(),
                )
                built = made.report.generation
            with build_lock(root):
                remove_leftovers(root)
                with reading(engine) as connection:
                    removed += remove_unlisted(connection, record, root)
            return ErasedFiles(removed=tuple(removed), built=built, problems=())
        except PreconditionError as error:
            if error.reason != "GENERATION_DROPPED":
                raise
            problem = f"{root}: no generation was built, run this again: {error}"
            return ErasedFiles(removed=tuple(removed), built=built, problems=(problem,))
        except BuildInProgressError:
            if time.monotonic() >= deadline:
                problem = f"{root}: a build goes on that may hold forgotten rows: run this again after it"
                return ErasedFiles(removed=tuple(removed), built=built, problems=(problem,))
            time.sleep(_RETRY_SECONDS)


def erase_free_space(engine: Engine, *, rewrite: bool) -> tuple[str, ...]:
    """Have the database overwrite what deleted rows leave in its files; what could not be done.

    SQLite: `secure_delete` zeroes cells as they are deleted, but not the copies of them that its pages keep
    where rows were moved before; `rewrite` writes the whole file anew (VACUUM: as much free disk again, and
    writers wait). Then the write-ahead log is emptied. PostgreSQL: VACUUM, so that the space is used again.
    """
    if engine.dialect.name != "sqlite":
        with engine.connect() as plain:
            connection = plain.execution_options(isolation_level="AUTOCOMMIT")
            connection.exec_driver_sql("SET statement_timeout = 0")
            try:
                connection.exec_driver_sql(f"VACUUM {', '.join(_TABLES)}")
            except DBAPIError as error:
                return (f"VACUUM failed: {error.orig}",)
            finally:
                connection.exec_driver_sql("RESET statement_timeout")
        return ()
    problems = []
    # Not through SQLAlchemy's own connections: they would begin a transaction.
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        if rewrite:
            try:
                cursor.execute("VACUUM")
            except engine.dialect.loaded_dbapi.Error as error:
                problems.append(f"the database file could not be rewritten (VACUUM): {error}")
        if not _empty_log(cursor):
            problems.append("readers hold the write-ahead log, which was not emptied: run this again")
        cursor.close()
    finally:
        raw.close()
    return tuple(problems)


def _empty_log(cursor: Any) -> bool:
    """Empty SQLite's write-ahead log; False where readers held it all the time.

    A checkpoint keeps writers out while it waits for readers: it waits shortly, and often.
    """
    busy_ms = cursor.execute("PRAGMA busy_timeout").fetchone()[0]
    cursor.execute(f"PRAGMA busy_timeout={_CHECKPOINT_BUSY_MS}")
    try:
        deadline = time.monotonic() + CHECKPOINT_WAIT_SECONDS
        while cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_RETRY_SECONDS)
        return True
    finally:
        cursor.execute(f"PRAGMA busy_timeout={busy_ms}")


def _is_current_served(engine: Engine, record: CacheRecord, root: Path) -> bool:
    """Whether nothing is to be built: the current generation is sound and listed, or there never was one."""
    try:
        name = current_generation(root)
        if name is None:
            return True
        owner = read_manifest(root, name).cache
    except DamagedGenerationError:
        return False
    with reading(engine) as connection:
        return is_listed(connection, record, owner)

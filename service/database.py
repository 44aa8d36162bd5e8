"""The database: engine, transactions, statements of many rows, migrations."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Insert, Update, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

import migrations
from service.config import StoreConfig
from service.errors import MigrationError, StoreFullError, StoreUnavailableError

_BUSY_MS = 10_000
_CONNECT_SECONDS = 5
_STATEMENT_MS = 60_000
# More than the threads that a server has by default, so that calls do not wait for each other's connections.
_POOL: dict[str, Any] = {"pool_size": 8, "max_overflow": 56, "pool_timeout": 10.0}
_MIGRATION_LOCK = 0x6E656172


def open_engine(config: StoreConfig) -> Engine:
    """An engine on the configured database; connects lazily.

    SQLite runs in WAL mode, with `secure_delete` and, under durability "full", a sync at every commit.
    """
    url = make_url(config.url)
    if url.get_backend_name() != "sqlite":
        limits = {
            "connect_timeout": _CONNECT_SECONDS,
            "tcp_user_timeout": _CONNECT_SECONDS * 1000,
            "options": f"-c statement_timeout={_STATEMENT_MS}",
        }
        return create_engine(url, pool_pre_ping=True, connect_args=limits, **_POOL)
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    waits = {"timeout": _BUSY_MS / 1000, "check_same_thread": False}
    engine = create_engine(url, connect_args=waits, **_POOL)
    synchronous = "FULL" if config.durability == "full" else "NORMAL"

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # BEGIN is ours: pysqlite's own would not be IMMEDIATE
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            "foreign_keys=ON",
            "secure_delete=ON",
            f"busy_timeout={_BUSY_MS}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("nearhit_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A read transaction: all of its reads see one state of the store. Raises: StoreUnavailableError."""
    with _translated(), engine.connect() as plain:
        snapshot = plain
        if engine.dialect.name == "postgresql":  # by default each statement there sees what is newest
            snapshot = plain.execution_options(isolation_level="REPEATABLE READ")
        with snapshot.begin():
            yield snapshot


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A write transaction, committed at the end. Raises: StoreUnavailableError."""
    with _translated(), engine.connect() as plain:
        connection = plain.execution_options(nearhit_writes=True)
        with connection.begin():
            yield connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        if _is_full(error):
            raise StoreFullError(f"the database's disk is full: {error.orig}") from error
        raise StoreUnavailableError(f"the database cannot be used: {error.orig}") from error
    except PoolTimeoutError as error:
        raise StoreUnavailableError(f"all connections to the database are in use: {error}") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise StoreUnavailableError(f"the database went away: {error.orig}") from error
        raise


def _is_full(error: OperationalError) -> bool:
    of_sqlite = getattr(error.orig, "sqlite_errorname", None) == "SQLITE_FULL"
    return of_sqlite or getattr(error.orig, "sqlstate", None) == "53100"


def migrate(engine: Engine, *, revision: str = "head") -> str:
    """Bring the schema to `revision` and return the revision that it then has.

    Raises:
        StoreUnavailableError: the database cannot be reached.
    """
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        current = schema_revision(connection)
        script = ScriptDirectory.from_config(_alembic(connection))
        target = script.get_current_head() if revision == "head" else revision
        backwards = target == "base" or (
            current is not None and current != target and _is_ancestor(script, str(target), current)
        )
        step = command.downgrade if backwards else command.upgrade
        step(_alembic(connection), revision)
        return schema_revision(connection) or "base"


def check_schema(engine: Engine) -> None:
    """Raise MigrationError unless the schema is this version's."""
    with reading(engine) as connection:
        current = schema_revision(connection)
        head = ScriptDirectory.from_config(_alembic(connection)).get_current_head()
    if current != head:
        raise MigrationError(
            f"the database has schema {current or 'none'}, this version needs {head}: run `nearhit migrate`"
        )


def schema_revision(connection: Connection) -> str | None:
    """The schema's revision; None on an empty database."""
    return MigrationContext.configure(connection).get_current_revision()


def _is_ancestor(script: ScriptDirectory, revision: str, of: str) -> bool:
    return any(step.revision == revision for step in script.iterate_revisions(of, "base"))


def _alembic(connection: Connection) -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    return config


def execute_many(
    connection: Connection,
    statement: Insert | Update,
    columns: Mapping[str, Sequence[Any]],
) -> int:
    """Execute a statement once a row, with a column of values per bound parameter; how many rows it changed.

    Values reach the driver as they are: SQLAlchemy's own conversion of every value of every row takes longer
    than SQLite takes to insert it.
    """
    compiled = statement.compile(connection, column_keys=list(columns))
    names = compiled.positiontup
    order = list(columns) if names is None else names
    rows: Iterable[Any] = zip(*(columns[name] for name in order), strict=True)
    if names is None:
        rows = (dict(zip(order, row, strict=True)) for row in rows)
    return connection.exec_driver_sql(str(compiled), list(rows)).rowcount

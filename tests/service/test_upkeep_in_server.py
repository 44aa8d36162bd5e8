"""A server that builds and swaps generations under its clients, and leaves one behind when it stops."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nearhit import Client
from nearhit.client import store_request
from nearhit.v1 import admin_service_pb2 as admin_pb
from numpy.typing import NDArray
from waiting import eventually

from service.config import CompactionConfig, Config
from service.server import Server

Vectors = NDArray[np.float32]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that servers start find the packages."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'protos'}")


@pytest.fixture
def settings(sqlite_config: Config) -> Config:
    """A server that builds from 21 rows on, or 6 at its end, and looks all the time."""
    compaction = CompactionConfig(min_rows=20, share=0.1, check_seconds=0.02, snapshot_min_rows=5)
    return replace(sqlite_config, compaction=compaction)


def with_compaction(config: Config, **changes: Any) -> Config:
    """The configuration with other [compaction] values."""
    return replace(config, compaction=replace(config.compaction, **changes))


def furnish(client: Client, vectors: Vectors) -> None:
    """Cache "faq" with an entry per vector, its number the response."""
    client.create_cache("faq", dim=32, code_bits=64)
    client.create_category("faq", "billing", threshold=0.1)
    requests = [
        store_request("faq", "billing", embedding=vector, response=b"%d" % number)
        for number, vector in enumerate(vectors)
    ]
    client.batch_store("faq", requests)


def served_index(client: Client) -> admin_pb.Index:
    """The index as an operator sees it."""
    index: admin_pb.Index = client.call(
        client.admin.GetIndex, admin_pb.GetIndexRequest(name="caches/faq/index")
    )
    return index


def test_lookups_go_on_while_generations_are_built_and_swapped(
    settings: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    vectors: Vectors,
) -> None:
    server = start_server(settings)
    client = connect(server)
    furnish(client, vectors[:100])
    ended = threading.Event()

    def look_up(first: int) -> int:
        count = 0
        with Client(f"127.0.0.1:{server.port}") as own:
            while not ended.is_set():
                number = (first + count) % 100
                assert own.lookup("faq", "billing", embedding=vectors[number]).response == b"%d" % number
                count += 1
        return count

    with ThreadPoolExecutor(max_workers=4) as threads:
        counts = [threads.submit(look_up, first) for first in (0, 25, 50, 75)]
        try:
            eventually(lambda: served_index(client).generation, timeout_seconds=60)
            first = served_index(client).generation
            requests = [
                store_request("faq", "billing", embedding=vector, response=b"later")
                for vector in vectors[100:]
            ]
            client.batch_store("faq", requests)
            eventually(lambda: served_index(client).generation != first, timeout_seconds=60)
        finally:
            ended.set()
        assert all(count.result() > 0 for count in counts)
    assert served_index(client).entry_count == len(vectors)
    assert client.lookup("faq", "billing", embedding=vectors[150]).response == b"later"


def test_a_stop_builds_a_generation_of_what_none_holds(
    settings: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    vectors: Vectors,
) -> None:
    quiet = with_compaction(settings, min_rows=1_000_000)
    server = start_server(quiet)
    furnish(connect(server), vectors[:10])
    server.stop()
    again = connect(start_server(quiet))
    index = served_index(again)
    assert index.generation
    assert [(segment.sealed, segment.row_count) for segment in index.segments] == [(True, 10)]
    assert again.lookup("faq", "billing", embedding=vectors[3]).response == b"3"


def test_a_stop_does_not_build_what_is_replayed_fast(
    settings: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    vectors: Vectors,
) -> None:
    quiet = with_compaction(settings, min_rows=1_000_000)
    server = start_server(quiet)
    furnish(connect(server), vectors[:5])
    server.stop()
    assert not served_index(connect(start_server(quiet))).generation

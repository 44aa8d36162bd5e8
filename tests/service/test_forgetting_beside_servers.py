"""A server that runs while entries are forgotten: it goes on, and never serves them again."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from encoders_at_work import train
from nearhit import Client, NearhitError
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray
from waiting import eventually

from index.manifest import generation_numbers
from service.application import clock_ms
from service.config import CompactionConfig, Config
from service.database import open_engine
from service.forget_report import ForgetReport, forget
from service.forgetting import ForgetSelection
from service.replica import index_root
from service.server import Server

Vectors = NDArray[np.float32]


def stored(client: Client, vectors: Vectors) -> None:
    """Entries r0 to r59 of "rows", with labels, and their codes in a generation."""
    client.create_cache("rows", dim=vectors.shape[1], code_bits=64)
    client.create_category("rows", "all", threshold=0.05)
    for i, vector in enumerate(vectors[:60]):
        client.store(
            "rows", "all", embedding=vector, entry=f"r{i}", response=b"answer %d" % i, labels=[f"l{i % 3}"]
        )


def forget_in(config: Config, *names: str, prove: bool = False) -> ForgetReport:
    """Forget as the command does, in a connection of its own."""
    engine = open_engine(config.store)
    try:
        return forget(
            engine,
            "rows",
            ForgetSelection(names=names),
            config=config,
            clock=clock_ms,
            progress=lambda _stage, _done, _total: None,
            prove=prove,
        )
    finally:
        engine.dispose()


def generation_of(client: Client) -> str:
    request = admin_pb.GetIndexRequest(name="caches/rows/index")
    generation: str = client.call(client.admin.GetIndex, request).generation
    return generation


def test_lookups_go_on_and_never_find_what_was_forgotten(
    config: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    vectors: Vectors,
) -> None:
    client = connect(start_server(config))
    stored(client, vectors)
    train(config, client, with_graph=False)
    token = client.lookup("rows", "all", embedding=vectors[7]).lookup_token
    ended, forgotten = threading.Event(), threading.Event()
    failures: list[str] = []

    def look_up() -> None:
        while not ended.is_set():
            was_forgotten = forgotten.is_set()
            hit, gone = (client.lookup("rows", "all", embedding=vectors[i]) for i in (8, 7))
            if hit.response != b"answer 8":
                failures.append("a kept entry was not found")
            if was_forgotten and gone.response:
                failures.append("a forgotten entry was served")

    thread = threading.Thread(target=look_up)
    thread.start()
    report = forget_in(config, "r7", prove=True)
    forgotten.set()
    assert report.files is not None and report.problems == ()
    eventually(lambda: generation_of(client) == report.files.built)
    ended.set()
    thread.join()
    assert failures == []
    with pytest.raises(NearhitError) as raised:
        client.record_feedback(token, cache_pb.VERDICT_RIGHT)
    assert raised.value.reason == "ENTRY_NOT_FOUND"
    states = {
        encoder.state
        for encoder in client.call(
            client.admin.ListEncoders, admin_pb.ListEncodersRequest(parent="caches/rows")
        ).encoders
    }
    assert states == {pb.Encoder.STATE_ACTIVE, pb.Encoder.STATE_DESTROYED}


@pytest.mark.parametrize("enabled", [True, False])
def test_a_server_with_files_elsewhere_removes_them_by_itself(
    sqlite_config: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    vectors: Vectors,
    tmp_path: Path,
    enabled: bool,  # noqa: FBT001
) -> None:
    compaction = CompactionConfig(enabled=enabled, check_seconds=0.05, snapshot_min_rows=10**6)
    far = replace(
        sqlite_config,
        compaction=compaction,
        store=replace(sqlite_config.store, data_dir=str(tmp_path / "far")),
    )
    client = connect(start_server(far))
    stored(client, vectors)
    train(far, client, with_graph=False)
    root = index_root(far.store.data_dir, 1)
    assert generation_numbers(root) == [1]
    forget_in(sqlite_config, "r7")
    assert not client.lookup("rows", "all", embedding=vectors[7]).response
    if enabled:
        eventually(lambda: generation_of(client) == "gen-00000002", timeout_seconds=30)
    eventually(lambda: generation_numbers(root) == [2] * enabled)
    eventually(lambda: generation_of(client) == "gen-00000002" * enabled)
    assert client.lookup("rows", "all", embedding=vectors[8]).response == b"answer 8"

"""Lookups that examine only what the codes let through, and what a miss then says."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from encoders_at_work import train
from nearhit import Client
from nearhit.client import store_request
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray

from index.config import IndexConfig
from service.config import Config, SearchConfig, StoreConfig
from service.database import migrate, open_engine
from service.records import CacheRecord, ModalitySpec
from service.replica import index_config
from service.server import Server

Vectors = NDArray[np.float32]
HIT, MISS = cache_pb.LOOKUP_OUTCOME_HIT, cache_pb.LOOKUP_OUTCOME_MISS
BEYOND, NO_CANDIDATE = cache_pb.LOOKUP_REASON_BEYOND_THRESHOLD, cache_pb.LOOKUP_REASON_NO_CANDIDATE
LARGE, SMALL = 300, 20
THRESHOLD = 0.02
SEARCH = SearchConfig(cascade_min_rows=100, lists_min_rows=1_000)


@pytest.fixture(scope="module")
def rows() -> Vectors:
    """Unit vectors of 32 dimensions; any two are far beyond the threshold."""
    drawn = np.random.default_rng(5).standard_normal((LARGE + SMALL + 50, 32))
    unit: Vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return unit


def store(client: Client, category: str, rows: Vectors, *, scope: str = "") -> None:
    """Each row as the answer to itself."""
    requests = [
        store_request("rows", category, embedding=row, response=row.tobytes(), scope=scope) for row in rows
    ]
    for start in range(0, len(requests), 200):
        client.batch_store("rows", requests[start : start + 200])


@pytest.fixture(scope="module")
def cascade_client(
    tmp_path_factory: pytest.TempPathFactory, config_of: Callable[[StoreConfig], Config], rows: Vectors
) -> Iterator[Client]:
    """Sealed rows of the scope "" in all categories; "mixed" and "small" have a growing one, of "new"."""
    folder = tmp_path_factory.mktemp("cascade")
    store_config = StoreConfig(url=f"sqlite:///{folder}/nearhit.db", data_dir=str(Path(folder) / "var"))
    config = replace(config_of(store_config), search=SEARCH)
    engine = open_engine(config.store)
    migrate(engine)
    engine.dispose()
    server = Server(config)
    server.start()
    with Client(f"127.0.0.1:{server.port}") as client:
        client.create_cache("rows", dim=rows.shape[1], code_bits=128, label_bits=64)
        for category in ("large", "small", "mixed"):
            client.create_category("rows", category, threshold=THRESHOLD)
        store(client, "large", rows[:LARGE])
        store(client, "mixed", rows[:LARGE])
        store(client, "small", rows[:SMALL])
        train(config, client, with_graph=False, code_bits=128)
        store(client, "mixed", rows[LARGE : LARGE + 1], scope="new")
        store(client, "small", rows[LARGE : LARGE + 1], scope="new")
        yield client
    server.stop()


def test_near_question_is_a_hit(cascade_client: Client, rows: Vectors) -> None:
    answer = cascade_client.lookup("rows", "large", embedding=rows[7])
    assert (answer.outcome, answer.search_path) == (HIT, pb.SEARCH_PATH_CASCADE)
    assert answer.response == rows[7].tobytes()


def test_far_question_is_beyond_the_threshold_without_a_distance(
    cascade_client: Client, rows: Vectors
) -> None:
    answer = cascade_client.lookup("rows", "large", embedding=rows[-1])
    assert (answer.outcome, answer.reason) == (MISS, BEYOND)
    assert (answer.search_path, answer.candidates_examined) == (pb.SEARCH_PATH_CASCADE, 0)
    assert not answer.HasField("distance")


def test_distance_of_a_miss_is_that_of_what_was_examined(cascade_client: Client, rows: Vectors) -> None:
    question = rows[7] + 0.22 * rows[-1]
    distance = 1 - question @ rows[7] / np.linalg.norm(question)
    assert THRESHOLD < distance < 1.5 * THRESHOLD
    answer = cascade_client.lookup("rows", "large", embedding=question)
    assert (answer.outcome, answer.reason) == (MISS, BEYOND)
    assert answer.distance == pytest.approx(distance, abs=2e-3)


def test_scope_that_no_examined_entry_has_is_beyond_the_threshold(
    cascade_client: Client, rows: Vectors
) -> None:
    answer = cascade_client.lookup("rows", "large", embedding=rows[7], scope="none")
    assert (answer.reason, answer.search_path) == (BEYOND, pb.SEARCH_PATH_CASCADE)
    assert not answer.HasField("distance")


def test_miss_beside_new_entries_knows_of_what_was_not_examined(
    cascade_client: Client, rows: Vectors
) -> None:
    # The new entry is scanned and of another scope; of the sealed ones none is near enough to be examined.
    answer = cascade_client.lookup("rows", "mixed", embedding=rows[-1])
    assert (answer.reason, answer.search_path) == (BEYOND, pb.SEARCH_PATH_SCAN)
    assert not answer.HasField("distance")


def test_scope_without_entry_has_no_candidate_where_all_were_examined(
    cascade_client: Client, rows: Vectors
) -> None:
    answer = cascade_client.lookup("rows", "small", embedding=rows[0], scope="none")
    assert (answer.reason, answer.search_path) == (NO_CANDIDATE, pb.SEARCH_PATH_SCAN)
    assert not answer.HasField("distance")


def test_batch_over_paths_answers_as_each_alone(cascade_client: Client, rows: Vectors) -> None:
    names = [("large", ""), ("small", ""), ("mixed", "new"), ("mixed", ""), ("small", "none")]
    asked = [
        cache_pb.LookupRequest(
            category=f"caches/rows/categories/{category}",
            query=pb.Query(embedding=row.tobytes()),
            scope=scope,
        )
        for row in rows[[0, 7, LARGE, LARGE + 3, -1]]
        for category, scope in names
    ]
    together = cascade_client.batch_lookup("rows", asked)
    alone = [cascade_client.batch_lookup("rows", [request])[0] for request in asked]
    for answer in (*together, *alone):
        answer.ClearField("latency_us")
        answer.ClearField("lookup_token")
    assert list(together) == alone
    assert {answer.outcome for answer in alone} == {HIT, MISS}


def test_large_sealed_segments_are_searched_by_list(
    sqlite_config: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    rows: Vectors,
) -> None:
    config = replace(sqlite_config, search=SearchConfig(lists_min_rows=100, probe_count=1))
    client = connect(start_server(config))
    client.create_cache("rows", dim=rows.shape[1], code_bits=64, label_bits=64)
    client.create_category("rows", "large", threshold=THRESHOLD)
    store(client, "large", rows[:LARGE])
    train(config, client, with_graph=False)
    for min_recall, path in ((0.0, pb.SEARCH_PATH_IVF), (0.99999, pb.SEARCH_PATH_EXACT)):
        found = client.search("rows", embedding=rows[3], top_k=1, min_recall=min_recall)
        assert (found.search_path, round(found.results[0].distance, 3)) == (path, 0)
    assert client.lookup("rows", "large", embedding=rows[3]).outcome == HIT
    # The lists near the query have no row of the scope, so all codes are searched.
    missed = client.lookup("rows", "large", embedding=rows[3], scope="none")
    assert (missed.reason, missed.search_path) == (NO_CANDIDATE, pb.SEARCH_PATH_SCAN)


def test_settings_of_the_search_reach_the_index() -> None:
    record = CacheRecord(
        id=1,
        name="rows",
        description="",
        modalities={"text": ModalitySpec(dim=32)},
        code_bits=128,
        label_bits=64,
        active_encoder_id=None,
        seq=0,
        config_version=0,
        token_key=b"",
        create_ms=0,
        version=0,
    )
    default = SearchConfig()
    assert index_config(record, default) == IndexConfig(code_bits=128, label_bits=64)
    for key in fields(SearchConfig):
        if key.name == "max_live_encoders":  # a limit of the service
            continue
        value = getattr(default, key.name)
        changed = value / 2 if isinstance(value, float) else value + 1
        found = index_config(record, replace(default, **{key.name: changed}))
        assert found == replace(index_config(record, default), **{key.name: changed})

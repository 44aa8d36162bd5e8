"""Vector search through the door, on every path, against brute force."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import grpc
import numpy as np
import pytest
from encoders_at_work import train
from nearhit import Client
from nearhit.client import search_request, store_request
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import search_service_pb2 as search_pb
from numpy.typing import NDArray
from refusals import refused

from service.config import Config
from service.server import Server

Vectors = NDArray[np.float32]
EXACT, SCAN, HNSW = pb.SEARCH_PATH_EXACT, pb.SEARCH_PATH_SCAN, pb.SEARCH_PATH_HNSW
CLASS_COUNT = 4


def class_of(i: int) -> str:
    """The label of row i."""
    return f"c{i % CLASS_COUNT}"


def fill(client: Client, vectors: Vectors, *, cache: str = "rows") -> None:
    """Rows e0, e1, ...: a category in two, tags in three, scopes in five, labels in four."""
    client.create_cache(cache, dim=vectors.shape[1], code_bits=64, label_bits=64)
    for category in ("even", "odd", "empty"):
        client.create_category(cache, category)
    client.batch_store(
        cache,
        [
            store_request(
                cache,
                "odd" if i % 2 else "even",
                embedding=vectors[i],
                entry=f"e{i}",
                response=b"%d" % i,
                tags=[f"t{i % 3}"],
                scope=f"s{i % 5}",
                labels=[class_of(i)],
            )
            for i in range(len(vectors))
        ],
    )


@pytest.fixture(scope="module")
def rows() -> Vectors:
    """200 unit vectors around CLASS_COUNT centres, of 32 dimensions."""
    rng = np.random.default_rng(1)
    centres = 2 * rng.standard_normal((CLASS_COUNT, 32))
    drawn = centres[np.arange(200) % CLASS_COUNT] + rng.standard_normal((200, 32))
    unit: Vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.fixture(scope="module")
def queries(rows: Vectors) -> Vectors:
    """20 vectors near some of the rows."""
    noise = np.random.default_rng(2).standard_normal((20, rows.shape[1])).astype(np.float32)
    drawn = rows[np.arange(20) * 7] + 0.1 * noise
    unit: Vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit


@pytest.fixture(scope="module")
def searcher(lone_config: Config, lone_door_client: Client, rows: Vectors) -> Iterator[Client]:
    """A client of a server whose cache "kept" has codes, label codes and a graph."""
    fill(lone_door_client, rows, cache="kept")
    train(lone_config, lone_door_client, with_graph=True, cache="kept")
    return lone_door_client


def ids(response: search_pb.SearchResponse) -> list[str]:
    """The ids of the found entries, in order."""
    return [result.entry.name.rpartition("/")[2] for result in response.results]


def brute_force(
    rows: Vectors, query: Vectors, *, k: int, allowed: Callable[[int], bool] = lambda i: True
) -> list[str]:
    """The ids of the nearest allowed rows, by the vectors as they are stored."""
    stored = rows.astype(np.float16).astype(np.float32)
    distances = 1 - stored @ query / np.linalg.norm(stored, axis=1)
    order = [i for i in np.argsort(distances, kind="stable") if allowed(int(i))]
    return [f"e{i}" for i in order[:k]]


@pytest.mark.parametrize("path", [EXACT, SCAN, HNSW])
def test_every_path_finds_the_nearest(
    searcher: Client, rows: Vectors, queries: Vectors, path: pb.SearchPath
) -> None:
    # 200 rows: the candidates of a scan and of the graph hold all of the ten nearest.
    for query in queries:
        found = searcher.search("kept", embedding=query, top_k=10, path=path)
        assert ids(found) == brute_force(rows, query, k=10)
        assert found.search_path == path


def test_distances_are_those_of_the_stored_vectors(searcher: Client, rows: Vectors, queries: Vectors) -> None:
    found = searcher.search("kept", embedding=queries[0], top_k=5)
    wanted = [1 - rows[int(name[1:])] @ queries[0] for name in ids(found)]
    np.testing.assert_allclose([result.distance for result in found.results], wanted, atol=2e-3)


def test_planner_scans_codes_where_there_are_some(searcher: Client, rows: Vectors, queries: Vectors) -> None:
    found = searcher.search("kept", embedding=queries[0], top_k=10)
    assert found.search_path == SCAN
    assert all(result.HasField("hamming_distance") for result in found.results)


@pytest.mark.parametrize(("min_recall", "path"), [(0.0, SCAN), (0.99, SCAN), (1.0, EXACT)])
def test_perfect_recall_is_an_exact_search(
    searcher: Client, rows: Vectors, queries: Vectors, min_recall: float, path: pb.SearchPath
) -> None:
    found = searcher.search("kept", embedding=queries[0], top_k=10, min_recall=min_recall)
    assert (ids(found), found.search_path) == (brute_force(rows, queries[0], k=10), path)


def test_path_that_is_asked_for_goes_before_the_recall(searcher: Client, queries: Vectors) -> None:
    found = searcher.search("kept", embedding=queries[0], min_recall=1.0, path=SCAN)
    assert found.search_path == SCAN


def test_search_has_no_cascade(searcher: Client, queries: Vectors) -> None:
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "PATH_UNAVAILABLE"):
        searcher.search("kept", embedding=queries[0], path=pb.SEARCH_PATH_CASCADE)


def test_rows_without_codes_are_compared_exactly(lone_door: Client, rows: Vectors, queries: Vectors) -> None:
    fill(lone_door, rows)
    found = lone_door.search("rows", embedding=queries[0], top_k=10)
    assert (ids(found), found.search_path) == (brute_force(rows, queries[0], k=10), EXACT)
    assert not any(result.HasField("hamming_distance") for result in found.results)


@pytest.mark.parametrize("path", [pb.SEARCH_PATH_CASCADE, pb.SEARCH_PATH_IVF, SCAN, HNSW])
def test_path_that_rows_do_not_have_is_refused(
    lone_door: Client, rows: Vectors, queries: Vectors, path: pb.SearchPath
) -> None:
    fill(lone_door, rows)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "PATH_UNAVAILABLE"):
        lone_door.search("rows", embedding=queries[0], path=path)


def test_rows_stored_after_the_encoder_have_codes(
    lone_config: Config, lone_door: Client, rows: Vectors, queries: Vectors
) -> None:
    fill(lone_door, rows[:150])
    train(lone_config, lone_door, with_graph=False)
    for i in range(150, 200):
        lone_door.store("rows", "odd", embedding=rows[i], entry=f"e{i}", response=b"x")
    for query in queries:
        found = lone_door.search("rows", embedding=query, top_k=10)
        assert (ids(found), found.search_path) == (brute_force(rows, query, k=10), SCAN)


FILTERS: list[tuple[dict[str, object], Callable[[int], bool]]] = [
    ({"categories": ["odd"]}, lambda i: i % 2 == 1),
    ({"categories": ["odd", "even", "odd"]}, lambda i: True),
    ({"categories": ["empty"]}, lambda i: False),
    ({"tags": ["t1"]}, lambda i: i % 3 == 1),
    ({"tags": ["t1", "t2"]}, lambda i: i % 3 != 0),
    ({"tags": ["absent"]}, lambda i: False),
    ({"scope": "s2"}, lambda i: i % 5 == 2),
    ({"scope": ""}, lambda i: False),
    ({"categories": ["even"], "tags": ["t0"], "scope": "s1"}, lambda i: i % 30 == 6),
]


@pytest.mark.parametrize("path", [pb.SEARCH_PATH_UNSPECIFIED, EXACT, SCAN, HNSW])
@pytest.mark.parametrize(("filters", "allowed"), FILTERS)
def test_filters_come_before_the_nearest_are_taken(
    searcher: Client,
    rows: Vectors,
    queries: Vectors,
    path: pb.SearchPath,
    filters: dict[str, object],
    allowed: Callable[[int], bool],
) -> None:
    for query in queries[:3]:
        found = searcher.search("kept", embedding=query, top_k=7, path=path, **filters)  # type: ignore[arg-type]
        assert ids(found) == brute_force(rows, query, k=7, allowed=allowed)


def test_batch_answers_in_the_order_of_its_requests(
    searcher: Client, rows: Vectors, queries: Vectors
) -> None:
    requests = [search_request("kept", embedding=query, top_k=1 + i) for i, query in enumerate(queries)]
    requests[3].parent = ""
    answers = searcher.batch_search("kept", requests)
    wanted = [brute_force(rows, query, k=1 + i) for i, query in enumerate(queries)]
    assert [ids(answer) for answer in answers] == wanted


def test_top_k_is_ten_unless_asked(searcher: Client, queries: Vectors) -> None:
    assert len(searcher.search("kept", embedding=queries[0], top_k=0).results) == 10
    assert len(searcher.search("kept", embedding=queries[0], top_k=1000).results) == 200


def test_equal_distances_come_in_the_order_of_storing(lone_door: Client, vectors: Vectors) -> None:
    for i in range(6):
        lone_door.store("faq", "billing", embedding=vectors[0], entry=f"e{i}", response=b"x")
    assert ids(lone_door.search("faq", embedding=vectors[0])) == [f"e{i}" for i in range(6)]


def test_label_search_finds_the_class(searcher: Client, rows: Vectors, queries: Vectors) -> None:
    for query in queries:
        nearest = brute_force(rows, query, k=1)[0]
        found = searcher.search("kept", embedding=query, top_k=30, by_label=True)
        assert {class_of(int(name[1:])) for name in ids(found)} == {class_of(int(nearest[1:]))}


@pytest.mark.parametrize(("filters", "allowed"), FILTERS)
def test_label_search_respects_filters(
    searcher: Client,
    queries: Vectors,
    filters: dict[str, object],
    allowed: Callable[[int], bool],
) -> None:
    found = searcher.search("kept", embedding=queries[0], top_k=1000, by_label=True, **filters)  # type: ignore[arg-type]
    assert {int(name[1:]) for name in ids(found)} == {i for i in range(200) if allowed(i)}


def test_label_search_needs_labels_learned(lone_door: Client, vectors: Vectors) -> None:
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NO_LABEL_CODES"):
        lone_door.search("faq", embedding=vectors[0], by_label=True)


def test_label_search_of_a_modality_without_labels_is_refused(
    lone_config: Config, lone_door: Client, rows: Vectors
) -> None:
    modalities = [pb.Modality(modality="text", dim=32), pb.Modality(modality="image", dim=8)]
    request = admin_pb.CreateCacheRequest(
        cache_id="rows", cache=pb.Cache(modalities=modalities, code_bits=64)
    )
    lone_door.call(lone_door.admin.CreateCache, request)
    lone_door.create_category("rows", "all")
    requests = [
        store_request("rows", "all", embedding=row, response=b"x", labels=[class_of(i)])
        for i, row in enumerate(rows)
    ]
    lone_door.batch_store("rows", requests)
    train(lone_config, lone_door, with_graph=False)
    query = pb.Query(embedding=np.ones(8, dtype="<f4").tobytes(), modality="image")
    search = search_pb.SearchRequest(parent="caches/rows", query=query, code_kind=search_pb.CODE_KIND_LABEL)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NO_LABEL_CODES"):
        lone_door.call(lone_door.search_service.Search, search)


def test_view_decides_how_much_of_an_entry_comes(searcher: Client, rows: Vectors) -> None:
    bare, basic, full = (
        searcher.search("kept", embedding=rows[4], top_k=1, view=view).results[0].entry
        for view in (pb.ENTRY_VIEW_UNSPECIFIED, pb.ENTRY_VIEW_BASIC, pb.ENTRY_VIEW_FULL)
    )
    assert bare == pb.Entry(name="caches/kept/entries/e4", category="caches/kept/categories/even")
    assert basic == searcher.get_entry("kept", "e4")
    assert full == searcher.get_entry("kept", "e4", full=True)


def test_entry_deleted_on_another_replica_has_no_view(
    sqlite_config: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    vectors: Vectors,
) -> None:
    writer = connect(start_server(sqlite_config))
    writer.create_cache("faq", dim=vectors.shape[1])
    writer.create_category("faq", "billing")
    writer.store("faq", "billing", embedding=vectors[0], entry="e", response=b"x")
    late = replace(sqlite_config, refresh=replace(sqlite_config.refresh, feed_seconds=3600.0))
    reader = connect(start_server(late))
    writer.delete_entry("faq", "e")
    assert ids(reader.search("faq", embedding=vectors[0], view=pb.ENTRY_VIEW_BASIC)) == []


def test_search_of_an_empty_cache_finds_nothing(lone_door: Client, vectors: Vectors) -> None:
    found = lone_door.search("faq", embedding=vectors[0])
    assert (list(found.results), found.candidates_examined) == ([], 0)


def test_search_sees_the_mutation_it_asks_for(door: Client, vectors: Vectors) -> None:
    seq = door.store("faq", "billing", embedding=vectors[0], entry="e", response=b"x").entry.seq
    found = door.search("faq", embedding=vectors[0], min_seq=seq, tags=[], view=pb.ENTRY_VIEW_FULL)
    assert ids(found) == ["e"]
    assert found.seq >= seq
    with refused(grpc.StatusCode.UNAVAILABLE, "NOT_CAUGHT_UP"):
        door.search("faq", embedding=vectors[0], min_seq=seq + 1)


def test_search_by_tag_reads_the_store(door: Client, vectors: Vectors) -> None:
    for i in range(20):
        door.store("faq", "billing", embedding=vectors[i], entry=f"e{i}", response=b"x", tags=[f"t{i % 2}"])
    found = door.search("faq", embedding=vectors[0], tags=["t1"], top_k=20)
    assert sorted(ids(found)) == sorted(f"e{i}" for i in range(1, 20, 2))

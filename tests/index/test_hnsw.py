import numpy as np
import pytest
from index_rows import exact_distances, unit_vectors

from index import DamagedGraphError, DimensionError, VectorGraph

STORED = unit_vectors(2000, seed=1, dim=24).astype(np.float16)
QUERIES = unit_vectors(40, seed=2, dim=24)


@pytest.fixture(scope="module")
def graph():
    return VectorGraph.build(STORED, m=16, ef_construction=100, seed=5)


def recall(graph, *, k, ef):
    found = 0
    for query in QUERIES:
        truth = np.argsort(exact_distances(STORED, query), kind="stable")[:k]
        found += np.isin(graph.search(query, k=k, ef=ef), truth).sum()
    return found / (k * len(QUERIES))


def test_wide_search_finds_nearly_all_true_neighbours(graph):
    assert recall(graph, k=10, ef=200) > 0.98


def test_wider_search_finds_more(graph):
    assert recall(graph, k=10, ef=10) < recall(graph, k=10, ef=100)


def test_results_come_nearest_first(graph):
    offsets = graph.search(QUERIES[0], k=20, ef=50)
    distances = exact_distances(STORED, QUERIES[0])[offsets]
    assert np.all(np.diff(distances) >= -1e-6)


def test_saved_graph_gives_the_same_answers(graph, tmp_path):
    path = tmp_path / "a.hnsw"
    graph.save(path)
    loaded = VectorGraph.load(path, dim=24, row_count=2000)
    for query in QUERIES[:5]:
        assert loaded.search(query, k=10, ef=30).tolist() == graph.search(query, k=10, ef=30).tolist()


def test_same_rows_and_seed_give_the_same_file(tmp_path):
    for name in ("a", "b"):
        VectorGraph.build(STORED[:300], seed=7).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_more_results_than_rows_gives_every_row():
    small = VectorGraph.build(STORED[:5], seed=0)
    assert sorted(small.search(QUERIES[0], k=50, ef=100).tolist()) == [0, 1, 2, 3, 4]


def test_graph_of_other_row_count_is_refused(graph, tmp_path):
    path = tmp_path / "a.hnsw"
    graph.save(path)
    with pytest.raises(DamagedGraphError, match="2000 rows, not 1999"):
        VectorGraph.load(path, dim=24, row_count=1999)


def test_missing_graph_is_refused(tmp_path):
    with pytest.raises(DamagedGraphError):
        VectorGraph.load(tmp_path / "absent", dim=24, row_count=1)


def test_query_of_other_dimension_is_refused(graph):
    with pytest.raises(DimensionError):
        graph.search(QUERIES[0][:5], k=1, ef=1)

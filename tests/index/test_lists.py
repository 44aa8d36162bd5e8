import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_rows import exact_distances, unit_vectors

from index import DimensionError, InvalidRowsError
from index.lists import InvertedLists, build_lists


def clustered(count, *, seed=0, dim=16, clusters=20):
    """float16 [count, dim] around a few centres."""
    rng = np.random.default_rng(seed)
    centres = unit_vectors(clusters, seed=seed, dim=dim)
    points = centres[rng.integers(0, clusters, count)] + 0.1 * rng.standard_normal((count, dim))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)


def rows_of(spans):
    return [row for start, stop in spans.tolist() for row in range(start, stop)]


def lists_of_sizes(sizes, *, seed=0, dim=8):
    bounds = np.concatenate([[0], np.cumsum(np.array(sizes, dtype=np.int64))]).astype(np.int64)
    centroids = unit_vectors(len(sizes), seed=seed, dim=dim).astype(np.float16)
    return InvertedLists(centroids=centroids, bounds=bounds)


def test_every_row_is_in_the_list_of_its_nearest_centroid():
    vectors = clustered(3_000)
    order, lists = build_lists(vectors, list_count=25, seed=3)
    assert np.array_equal(np.sort(order), np.arange(3_000))
    assert (lists.list_count, lists.row_count, lists.dim) == (25, 3_000, 16)
    for number in range(25):
        for row in order[lists.bounds[number] : lists.bounds[number + 1]]:
            distances = exact_distances(lists.centroids, vectors[row].astype(np.float32))
            assert distances[number] <= distances.min() + 1e-5


def test_rows_keep_their_order_within_a_list():
    order, lists = build_lists(clustered(2_000), list_count=10, seed=0)
    inside = np.diff(order) > 0
    falls = np.flatnonzero(~inside) + 1
    assert np.isin(falls, lists.bounds).all()


def test_same_seed_gives_the_same_lists():
    vectors = clustered(2_000)
    (first_order, first), (order, lists) = (build_lists(vectors, list_count=12, seed=5) for _ in range(2))
    assert np.array_equal(order, first_order)
    assert np.array_equal(lists.centroids, first.centroids)
    assert np.array_equal(lists.bounds, first.bounds)


@pytest.mark.parametrize("row_count", [1, 2, 40])
def test_one_list_holds_every_row_in_the_given_order(row_count):
    order, lists = build_lists(clustered(row_count), list_count=1, seed=0)
    assert order.tolist() == list(range(row_count))
    assert lists.bounds.tolist() == [0, row_count]


def test_equal_rows_share_a_list():
    vectors = np.repeat(clustered(1), 30, axis=0)
    _, lists = build_lists(vectors, list_count=4, seed=0)
    assert sorted(np.diff(lists.bounds).tolist()) == [0, 0, 0, 30]


def test_build_shows_its_progress():
    seen = []
    build_lists(clustered(5_000), list_count=3, seed=0, progress=lambda *step: seen.append(step))
    assert seen == [(4_096, 5_000), (5_000, 5_000)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("row_count", "list_count"), [(40, 3), (2_000, 1)])  # in the sample; hardly ever
def test_rows_that_are_not_finite_are_refused(value, row_count, list_count):
    vectors = clustered(row_count)
    vectors[row_count // 2, 5] = value
    with pytest.raises(InvalidRowsError, match="finite"):
        build_lists(vectors, list_count=list_count, seed=0)


@pytest.mark.parametrize("list_count", [0, 6])
def test_more_lists_than_rows_or_none_are_refused(list_count):
    with pytest.raises(ValueError, match="list_count"):
        build_lists(clustered(5), list_count=list_count, seed=0)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=30),
    probe_count=st.integers(1, 31),
    seed=st.integers(0, 9),
)
def test_spans_are_the_rows_of_the_nearest_lists(sizes, probe_count, seed):
    lists = lists_of_sizes(sizes)
    query = unit_vectors(1, seed=seed, dim=8)[0]
    nearest = np.argsort(exact_distances(lists.centroids, query))[:probe_count]
    expected = sorted(
        row for number in nearest for row in range(lists.bounds[number], lists.bounds[number + 1])
    )
    spans = lists.spans(query, probe_count=probe_count)
    assert spans.dtype == np.int64
    assert spans.shape[1:] == (2,)
    assert rows_of(spans) == expected
    assert np.all(spans[:, 0] < spans[:, 1])
    assert np.all(spans[1:, 0] > spans[:-1, 1])  # apart: adjacent lists are one span


def test_spans_of_no_list_are_refused():
    with pytest.raises(ValueError, match="probe_count"):
        lists_of_sizes([3]).spans(unit_vectors(1, seed=0, dim=8)[0], probe_count=0)


def test_query_of_another_dimension_is_refused():
    with pytest.raises(DimensionError):
        lists_of_sizes([3, 4]).spans(unit_vectors(1, seed=0, dim=9)[0], probe_count=1)


def test_few_lists_hold_most_neighbours():
    vectors = clustered(6_000, clusters=60)
    order, lists = build_lists(vectors, list_count=60, seed=1)
    ordered, found = vectors[order], 0
    queries = clustered(6_040, clusters=60)[6_000:].astype(np.float32)
    for query in queries:
        nearest = set(np.argsort(exact_distances(ordered, query))[:10].tolist())
        found += len(nearest.intersection(rows_of(lists.spans(query, probe_count=6))))
    assert found / (10 * len(queries)) > 0.95


@pytest.mark.parametrize("bounds", [[1, 3], [0, 4, 3], [0, 3, 3, 2]])
def test_bounds_that_do_not_ascend_from_0_are_refused(bounds):
    centroids = unit_vectors(len(bounds) - 1, seed=0).astype(np.float16)
    with pytest.raises(InvalidRowsError, match="bounds"):
        InvertedLists(centroids=centroids, bounds=np.array(bounds, dtype=np.int64))


@pytest.mark.parametrize(
    ("centroids", "bounds"),
    [
        (np.ones((2, 4), dtype=np.float32), np.array([0, 1, 2])),
        (np.ones(4, dtype=np.float16), np.array([0, 1, 2])),
        (np.ones((2, 4), dtype=np.float16), np.array([0, 1])),
        (np.ones((2, 4), dtype=np.float16), np.array([0, 1, 2], dtype=np.int32)),
        (np.ones((0, 4), dtype=np.float16), np.array([0])),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(centroids, bounds):
    with pytest.raises(DimensionError):
        InvertedLists(centroids=centroids, bounds=bounds)

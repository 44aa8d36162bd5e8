import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_rows import (
    axis_distances,
    clustered,
    exact_distances,
    int64,
    lists_of,
    make_margins,
    unit_vectors,
)

from index import DimensionError, InvalidRowsError, _kernels
from index.kernels import BLOCK_ROWS
from index.list_margins import DISTANCE_STEP, RECALLS, ListMargins
from index.lists import ASSIGN_CHUNK_ROWS, InvertedLists, build_lists
from index.vectors import unit_rows

SETS = _kernels.instruction_sets()


@pytest.fixture(autouse=True)
def best_set_again():
    yield
    _kernels.choose(_kernels.instruction_sets()[-1])


def rows_of(spans):
    return [row for start, stop in spans.tolist() for row in range(start, stop)]


def labels_of(order, lists):
    """Each row's list, as the rows were given: int64 [n]."""
    labels = np.empty(order.size, dtype=np.int64)
    labels[order] = np.repeat(np.arange(lists.list_count), np.diff(lists.bounds))
    return labels


# The spans of a query.


def naive_lists(lists, axis, *, margin, least):
    """Those within the margin of the nearest, at least `least`, and what is as near as the last of them."""
    distances = axis_distances(lists.centroids, axis)
    ranked = np.sort(distances)
    return np.flatnonzero(distances <= max(ranked[0] + np.float32(margin), ranked[least - 1])).tolist()


def naive_rows(lists, chosen):
    """The rows of the blocks that hold a row of the chosen lists."""
    rows = [row for number in chosen for row in range(lists.bounds[number], lists.bounds[number + 1])]
    blocks = {row // BLOCK_ROWS for row in rows}
    return [row for row in range(lists.row_count) if row // BLOCK_ROWS in blocks]


@st.composite
def any_lists(draw):
    """Lists of few distinct centroids, so that equal distances are common."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    list_count, dim = draw(st.integers(1, 30)), draw(st.sampled_from([2, 5, 17]))
    sizes = rng.choice([0, 1, 7, 60, 511, 512, 513, 700], list_count)
    values = draw(st.sampled_from([1, 3, 60]))
    by_distance, by_recall = (np.sort(rng.choice([0, 0.1, 0.3, 1, 1.9], count)) for count in (20, 6))
    return InvertedLists(
        centroids=rng.integers(-values, values + 1, (list_count, dim)).astype(np.float16),
        bounds=int64(0, *np.cumsum(sizes)),
        margins=make_margins(by_distance=by_distance, by_recall=by_recall),
    )


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=100, deadline=None)
@given(
    lists=any_lists(),
    least=st.one_of(st.integers(1, 4), st.integers(1, 40)),
    recall=st.sampled_from([None, *RECALLS]),
    step=st.one_of(st.none(), st.integers(1, 20)),
    axis=st.integers(0, 1),
    norm=st.sampled_from([1.0, 2.0**-120, 2.0**100]),
)
def test_spans_are_the_blocks_of_the_lists_near_the_query(name, lists, least, recall, step, axis, norm):
    _kernels.choose(name)
    margin = 0.0 if recall is None else lists.margins.by_recall[RECALLS.index(recall)]
    if step is not None:
        margin = max(margin, lists.margins.by_distance[step - 1])
    query = np.float32(norm) * np.eye(lists.dim, dtype=np.float32)[axis]
    distance = None if step is None else DISTANCE_STEP * step
    choice = lists.near(least=least, recall=recall, cosine_distance=distance)
    spans = lists.spans(query, choice)
    if least >= lists.list_count:
        chosen = range(lists.list_count)
        assert choice is None
    else:
        chosen = naive_lists(lists, axis, margin=margin, least=least)
    assert (spans.dtype, spans.shape[1:]) == (np.int64, (2,))
    assert rows_of(spans) == naive_rows(lists, chosen)
    assert np.all(spans[:, 0] < spans[:, 1])
    assert np.all(spans[1:, 0] > spans[:-1, 1])  # apart: adjacent lists are one span


def axis_lists(*, margin=0.0, sizes=(600, 600, 600, 600)):
    """Lists whose centroids are at distances 0, 1, .3 and 1.4 of the first axis."""
    angles = np.arccos(1 - np.array([0, 1, 0.3, 1.4]))
    return InvertedLists(
        centroids=np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16),
        bounds=int64(0, *np.cumsum(sizes)),
        margins=make_margins(by_recall=margin),
    )


@pytest.mark.parametrize(
    ("margin", "least", "spans"),
    [
        (0.0, 1, [[0, 1_024]]),
        (0.0, 2, [[0, 2_048]]),
        (0.29, 1, [[0, 1_024]]),
        (0.31, 1, [[0, 2_048]]),
        (0.31, 3, [[0, 2_048]]),
        (0.0, 3, [[0, 2_048]]),
        (1.39, 1, [[0, 2_048]]),
        (1.41, 1, [[0, 2_400]]),
    ],
)
def test_lists_within_the_margin_of_the_nearest_are_searched(margin, least, spans):
    lists = axis_lists(margin=margin)
    assert lists.spans(np.float32([1, 0]), lists.near(least=least, recall=0.9)).tolist() == spans


def test_lists_that_share_no_block_are_two_spans():
    lists = axis_lists(margin=0.35, sizes=(600, 2_000, 2_000, 10))
    spans = lists.spans(np.float32([1, 0]), lists.near(least=1, recall=0.9))
    assert spans.tolist() == [[0, 1_024], [2_560, 4_608]]


@pytest.mark.parametrize(
    "asked",
    [
        {"least": 3},
        {"least": 99},
        {"least": 1, "recall": 0.0},
        {"least": 1, "recall": 0.9},
        {"least": 1, "recall": 0.9995},
        {"least": 1, "cosine_distance": 0.0},
        {"least": 1, "cosine_distance": 1.5},
        {"least": 1, "cosine_distance": np.inf},
    ],
)
def test_demands_that_nothing_was_measured_for_take_all_lists(asked):
    lists = lists_of([0, 5, 900, 1_000])
    assert lists.near(**asked) is None


@pytest.mark.parametrize(("bounds", "spans"), [([0, 3, 9], [[0, 9]]), ([0, 0, 0], [])])
def test_all_lists_are_all_rows(bounds, spans):
    lists = lists_of(bounds)
    found = lists.spans(unit_vectors(1, seed=0)[0], None)
    assert (found.tolist(), found.dtype, found.shape[1:]) == (spans, np.int64, (2,))


@pytest.mark.parametrize("least", [0, -1])
def test_spans_of_no_list_are_refused(least):
    with pytest.raises(ValueError, match="least"):
        lists_of([0, 3]).near(least=least)


def test_spans_of_a_strided_query_are_those_of_its_copy():
    lists = lists_of(range(0, 60_000, 600), margins=make_margins(by_recall=0.1))
    queries = np.asfortranarray(unit_vectors(5, seed=1))
    for query in queries:
        near = lists.near(least=3, recall=0.9)
        assert lists.spans(query, near).tolist() == lists.spans(query.copy(), near).tolist()


@pytest.mark.parametrize("is_all", [False, True])
@pytest.mark.parametrize(
    "query", [np.ones(13, np.float32), np.ones((1, 12), np.float32), np.ones(12), np.ones(12, np.float16)]
)
def test_query_of_another_shape_or_type_is_refused(query, is_all):
    lists = lists_of([0, 3, 7], margins=make_margins())
    with pytest.raises(DimensionError, match=r"^query: "):
        lists.spans(query, None if is_all else lists.near(least=1))


# Builds.


@pytest.mark.parametrize(("row_count", "list_count"), [(3_000, 25), (3_000, 300), (9_000, 60)])
def test_every_row_is_in_the_list_of_its_nearest_centroid(row_count, list_count):
    vectors = clustered(row_count)
    order, lists = build_lists(vectors, list_count=list_count, seed=3)
    assert np.array_equal(np.sort(order), np.arange(row_count))
    assert (lists.list_count, lists.row_count, lists.dim) == (list_count, row_count, 16)
    products = unit_rows(vectors) @ unit_rows(lists.centroids).T
    assert np.all(products[np.arange(row_count), labels_of(order, lists)] >= products.max(axis=1) - 1e-5)


def test_neighbours_in_the_order_of_centroids_are_near_each_other():
    _, lists = build_lists(clustered(4_000, clusters=200), list_count=200, seed=0)
    centroids = unit_rows(lists.centroids)
    steps = np.linalg.norm(np.diff(centroids, axis=0), axis=1).mean()
    shuffled = centroids[np.random.default_rng(0).permutation(200)]
    assert steps < 0.85 * np.linalg.norm(np.diff(shuffled, axis=0), axis=1).mean()


def test_rows_keep_their_order_within_a_list():
    order, lists = build_lists(clustered(2_000), list_count=10, seed=0)
    falls = np.flatnonzero(np.diff(order) <= 0) + 1
    assert np.isin(falls, lists.bounds).all()


def arrays_of(lists):
    return lists.centroids, lists.bounds, lists.margins.by_distance, lists.margins.by_recall


def test_same_seed_gives_the_same_lists_and_another_seed_others():
    vectors = clustered(2_000)
    (first_order, first), (order, lists), (_, other) = (
        build_lists(vectors, list_count=30, seed=seed) for seed in (5, 5, 6)
    )
    assert np.array_equal(order, first_order)
    for array, same in zip(arrays_of(lists), arrays_of(first), strict=True):
        np.testing.assert_array_equal(array, same)
    assert not np.array_equal(lists.centroids, other.centroids)


@pytest.mark.parametrize("row_count", [1, 2, 40])
def test_one_list_holds_every_row_in_the_given_order(row_count):
    order, lists = build_lists(clustered(row_count), list_count=1, seed=0)
    assert order.tolist() == list(range(row_count))
    assert lists.bounds.tolist() == [0, row_count]


@pytest.mark.parametrize("row_count", range(1, 13))
@pytest.mark.parametrize("distinct_count", [1, 2, 12])
def test_as_many_lists_as_rows_hold_each_row_once(row_count, distinct_count):
    """Also where there are fewer distinct rows than lists."""
    vectors = clustered(distinct_count)[np.arange(row_count) % distinct_count]
    order, lists = build_lists(vectors, list_count=row_count, seed=0)
    assert sorted(order.tolist()) == list(range(row_count))
    assert (lists.list_count, lists.row_count) == (row_count, row_count)


@pytest.mark.parametrize("list_count", [4, 30])
def test_equal_rows_are_in_lists_that_a_query_cannot_tell_apart(list_count):
    """Of equal centroids the products of many rows may differ in the last bit, by where a row stands."""
    vectors = np.repeat(clustered(1), 300, axis=0)
    _, lists = build_lists(vectors, list_count=list_count, seed=0)
    filled = np.flatnonzero(np.diff(lists.bounds))
    distances = axis_distances(lists.centroids[filled], int(np.argmax(np.abs(vectors[0]))))
    assert np.ptp(distances) == 0


def test_build_shows_its_progress():
    seen = []
    build_lists(clustered(5_000), list_count=3, seed=0, progress=lambda *step: seen.append(step))
    assert seen == [(ASSIGN_CHUNK_ROWS, 5_000), (5_000, 5_000)]


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


def test_few_lists_hold_most_neighbours():
    vectors = clustered(6_000, clusters=60)
    order, lists = build_lists(vectors, list_count=60, seed=1)
    ordered, found, searched = vectors[order], 0, 0
    queries = clustered(6_040, clusters=60)[6_000:].astype(np.float32)
    for query in queries:
        nearest = set(np.argsort(exact_distances(ordered, query))[:10].tolist())
        rows = rows_of(lists.spans(query, lists.near(least=6)))
        found += len(nearest.intersection(rows))
        searched += len(rows)
    assert found / (10 * len(queries)) > 0.95
    assert searched < 0.6 * 6_000 * len(queries)


# What lists refuse.


@pytest.mark.parametrize("bounds", [[1, 3], [0, 4, 3], [0, 3, 3, 2]])
def test_bounds_that_do_not_ascend_from_0_are_refused(bounds):
    with pytest.raises(InvalidRowsError, match="bounds of lists: must ascend"):
        lists_of(bounds)


def test_empty_lists_are_valid():
    lists = lists_of([0, 0, 4, 4])
    assert (lists.list_count, lists.row_count, lists.dim) == (3, 4, 12)
    assert lists.size_bytes == 3 * 12 * 2 + 4 * 8


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"centroids": np.ones((2, 4), np.float32)}, "centroids"),
        ({"centroids": np.ones((2, 4), np.int8)}, "centroids"),
        ({"centroids": np.ones(4, np.float16)}, "centroids"),
        ({"centroids": np.ones((0, 4), np.float16), "bounds": int64(0)}, "bounds"),
        ({"bounds": int64(0, 1)}, "bounds"),
        ({"bounds": int64(0, 1, 2, 3)}, "bounds"),
        ({"bounds": np.array([0, 1, 2], np.int32)}, "bounds"),
        ({"bounds": np.zeros((3, 1), np.int64)}, "bounds"),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(changes, name):
    usual = {
        "centroids": np.ones((2, 4), np.float16),
        "bounds": int64(0, 1, 2),
        "margins": ListMargins.unknown(),
    }
    assert InvertedLists(**usual).list_count == 2
    with pytest.raises(DimensionError, match=f"^{name}: "):
        InvertedLists(**(usual | changes))


@pytest.mark.parametrize(
    "bounds",
    [int64(-(10**8), 0, 1_000), int64(0, 10**9, 1_000), int64(0, -600, 1_000), int64(600, 600, 1_000)],
)
def test_bounds_that_were_changed_are_refused_by_a_search(bounds):
    lists = lists_of([0, 600, 1_000])
    query = np.eye(12, dtype=np.float32)[0]
    choice = (lists.centroids, bounds, 2, 12, 0.1, 1)
    with pytest.raises(ValueError, match=r"^bounds must ascend"):
        lists.spans(query, choice)


def test_a_margin_that_is_not_a_number_is_refused():
    lists = lists_of([0, 600, 1_000])
    choice = (lists.centroids, lists.bounds, 2, 12, float("nan"), 1)
    with pytest.raises(ValueError, match="margin"):
        lists.spans(np.eye(12, dtype=np.float32)[0], choice)
    margins = ListMargins.unknown()
    margins.by_recall[0] = np.nan
    with pytest.raises(InvalidRowsError, match=r"^recall_margins: "):
        ListMargins(by_distance=margins.by_distance, by_recall=margins.by_recall)

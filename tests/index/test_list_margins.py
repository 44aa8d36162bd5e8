"""Margins of lists: what they promise of rows that they were measured on, and of others."""

import numpy as np
import pytest
from index_rows import make_margins, unit_vectors

from index import DimensionError, InvalidRowsError
from index.list_margins import (
    COVERAGE,
    DISTANCE_COUNT,
    DISTANCE_STEP,
    LEAST_PAIRS,
    NEIGHBOURS,
    POOL_CHUNK_ROWS,
    QUERY_ROWS,
    RECALLS,
    ListMargins,
    _neighbours,
    measure_margins,
)
from index.lists import build_lists
from index.vectors import unit_rows

HELD_OUT_COUNT = 400
TOLERANCE = 0.02  # of a share of 10 neighbours of each held-out row: several deviations of what 300 rows say


def around_centres(count, *, seed=0, dim=24, clusters=150, spread=0.12):
    """float16 [count, dim] around a few centres; with the same seed, the same centres."""
    centres = unit_vectors(clusters, seed=seed, dim=dim)
    rng = np.random.default_rng([seed, count])
    points = centres[rng.integers(0, clusters, count)] + spread * rng.standard_normal((count, dim))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)


def listed(vectors, *, list_count, seed=1):
    """(centroids of norm 1, labels, margins) of rows."""
    order, lists = build_lists(vectors, list_count=list_count, seed=seed)
    labels = np.empty(order.size, dtype=np.int32)
    labels[order] = np.repeat(np.arange(list_count), np.diff(lists.bounds))
    return unit_rows(lists.centroids), labels, lists.margins


def unit64(vectors):
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def reached_share(centroids, queries, lists, margin):
    """The share of the given lists of each query, int [q, k], that lie within the margin of its nearest."""
    distances = 1 - unit64(queries) @ centroids.T
    beyond = np.take_along_axis(distances, lists, axis=1) - distances.min(axis=1, keepdims=True)
    return (beyond <= margin + 1e-6).mean()


def nearest_rows(vectors, queries, *, is_among_them=False):
    """The 10 nearest rows of each query [q, 10], itself left out."""
    products = unit64(queries) @ unit64(vectors).T
    if is_among_them:
        np.fill_diagonal(products, -np.inf)
    return np.argsort(-products, axis=1)[:, :NEIGHBOURS]


def at_distance(vectors, distance, *, seed):
    """Rows of norm 1 at this cosine distance from `vectors`, each in a random direction."""
    across = np.random.default_rng(seed).standard_normal(vectors.shape)
    across -= np.einsum("ij,ij->i", across, vectors)[:, None] * vectors
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    cosine = 1 - distance
    return cosine * vectors + np.sqrt(1 - cosine**2) * across


@pytest.fixture(scope="module")
def many():
    """(rows, centroids, labels, margins)"""
    vectors = around_centres(6_000)
    return vectors, *listed(vectors, list_count=150)


def test_margins_never_fall(many):
    margins = many[-1]
    for table in (margins.by_distance, margins.by_recall):
        assert table.dtype == np.float32
        assert np.all(table >= 0)
        assert np.all(np.diff(table) >= 0)
        assert table[-1] > table[0]


@pytest.fixture(scope="module")
def few():
    """(rows, centroids, labels, margins): as few rows as are all measured."""
    vectors = around_centres(QUERY_ROWS, clusters=12)
    return vectors, *listed(vectors, list_count=40)


@pytest.mark.parametrize("level", range(len(RECALLS)))
def test_margins_reach_just_their_share_of_the_rows_that_they_were_measured_on(few, level):
    vectors, centroids, labels, margins = few
    neighbours = labels[nearest_rows(vectors, vectors, is_among_them=True)]
    share = reached_share(centroids, vectors, neighbours, margins.by_recall[level])
    assert RECALLS[level] - 0.001 <= share <= RECALLS[level] + 0.005


@pytest.mark.parametrize("step", range(3, DISTANCE_COUNT + 1))
def test_margins_reach_the_measured_rows_within_a_distance(few, step):
    vectors, centroids, labels, margins = few
    rows = nearest_rows(vectors, vectors, is_among_them=True)
    distances = 1 - np.einsum("qd,qkd->qk", unit64(vectors), unit64(vectors)[rows])
    pairs = np.argwhere(distances <= DISTANCE_STEP * step - 1e-6)
    assert len(pairs) >= LEAST_PAIRS
    neighbours = labels[rows[pairs[:, 0], pairs[:, 1]]][:, None]
    share = reached_share(centroids, vectors[pairs[:, 0]], neighbours, margins.by_distance[step - 1])
    assert (1 - share) * len(pairs) <= max(1, (1 - COVERAGE) * len(pairs)) + 1e-6


@pytest.mark.parametrize("level", range(len(RECALLS)))
def test_margins_reach_their_share_of_the_neighbours_of_held_out_rows(many, level):
    vectors, centroids, labels, margins = many
    queries = around_centres(HELD_OUT_COUNT)
    neighbours = labels[nearest_rows(vectors, queries)]
    assert (
        reached_share(centroids, queries, neighbours, margins.by_recall[level]) >= RECALLS[level] - TOLERANCE
    )


@pytest.mark.parametrize("step", [1, 3, 6, 10, 15, 20])
def test_margins_reach_rows_at_a_distance_of_made_queries(many, step):
    vectors, centroids, labels, margins = many
    sources = np.random.default_rng(step).integers(0, len(vectors), 4_000)
    made = at_distance(unit64(vectors[sources]), DISTANCE_STEP * step * 0.999, seed=step)
    share = reached_share(centroids, made, labels[sources][:, None], margins.by_distance[step - 1])
    assert share >= COVERAGE - 0.002


@pytest.mark.parametrize("step", [3, 5, 8])
def test_margins_reach_the_neighbours_within_a_distance_of_held_out_rows(many, step):
    vectors, centroids, labels, margins = many
    queries = around_centres(HELD_OUT_COUNT)
    rows = nearest_rows(vectors, queries)
    distances = 1 - np.einsum("qd,qkd->qk", unit64(queries), unit64(vectors)[rows])
    pairs = np.argwhere(distances <= DISTANCE_STEP * step)
    assert len(pairs) >= LEAST_PAIRS
    neighbours = labels[rows[pairs[:, 0], pairs[:, 1]]][:, None]
    share = reached_share(centroids, queries[pairs[:, 0]], neighbours, margins.by_distance[step - 1])
    assert share >= COVERAGE - 0.01


def test_margins_take_few_lists_for_near_rows_and_more_for_far_ones(many):
    _, centroids, _, margins = many
    queries = around_centres(HELD_OUT_COUNT)
    every_list = np.broadcast_to(np.arange(len(centroids)), (HELD_OUT_COUNT, len(centroids)))
    shares = [reached_share(centroids, queries, every_list, margins.for_recall(recall)) for recall in RECALLS]
    assert shares == sorted(shares)
    assert shares[2] < 0.15
    shares = [
        reached_share(centroids, queries, every_list, margins.for_distance(distance))
        for distance in (0.05, 0.5)
    ]
    assert shares[0] < 0.15 < shares[1]


def hub_rows():
    """Rows around one direction, the last one in their midst: near to all, and alone in a list far away."""
    directions = unit_vectors(8_001, seed=4, dim=256)
    centre = np.eye(1, 256, dtype=np.float32)[0]
    vectors = directions + centre
    vectors[-1] = centre
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    centroids = np.stack([centre, -centre])
    labels = np.zeros(8_001, dtype=np.int32)
    labels[-1] = 1
    return vectors, centroids, labels


def test_real_neighbours_count_where_made_ones_say_less():
    """A row that one in 8,001 queries is made for, but that is among the nearest of all."""
    vectors, centroids, labels = hub_rows()
    margins = measure_margins(vectors, centroids, labels, seed=0)
    to_hub = 1 - unit64(vectors[:-1]) @ unit64(vectors[-1:]).T
    assert np.quantile(to_hub, 0.1) < 0.35
    typical = 2 * np.median(unit64(vectors[:-1]) @ np.float64(centroids[0]))  # from one centroid to the other
    assert margins.for_recall(0.98) > 0.8 * typical
    assert margins.for_distance(0.35) > 0.8 * typical
    assert margins.for_distance(0.05) < 0.2 * typical  # nobody is that near


@pytest.mark.parametrize("row_count", [2, 3, 11])
def test_few_rows_have_margins_that_reach_all_but_one_of_their_neighbours(row_count):
    vectors = around_centres(row_count, clusters=row_count)
    centroids, labels, margins = listed(vectors, list_count=row_count)
    pairs = np.argwhere(~np.eye(row_count, dtype=np.bool_))
    share = reached_share(centroids, vectors[pairs[:, 0]], labels[pairs[:, 1:]], margins.by_recall[-1])
    assert (1 - share) * len(pairs) <= 1 + 1e-6


def test_nothing_is_known_of_a_single_row():
    _, _, margins = listed(around_centres(1), list_count=1)
    assert margins.for_recall(0.9) == margins.for_distance(0.05) == 2


@pytest.mark.parametrize("list_count", [1, 9])
def test_equal_rows_have_finite_margins(list_count):
    _, _, margins = listed(np.repeat(around_centres(1), 50, axis=0), list_count=list_count)
    for table in (margins.by_distance, margins.by_recall):
        assert np.isfinite(table).all()


def test_same_seed_gives_the_same_margins(many):
    vectors, centroids, labels, margins = many
    again, other = (measure_margins(vectors, centroids, labels, seed=seed) for seed in (1, 2))
    assert np.array_equal(again.by_distance, margins.by_distance)
    assert np.array_equal(again.by_recall, margins.by_recall)
    assert not np.array_equal(other.by_recall, margins.by_recall)


@pytest.mark.parametrize("row_count", [1, 2, 10, 11, 700, 3_001, POOL_CHUNK_ROWS + 1, POOL_CHUNK_ROWS + 700])
@pytest.mark.parametrize("is_whole_pool", [True, False])
def test_neighbours_are_the_nearest_other_rows_of_the_pool(row_count, is_whole_pool):
    vectors = around_centres(row_count, dim=6)
    pool = np.arange(row_count) if is_whole_pool else np.arange(0, row_count, 3)
    queries = np.random.default_rng(0).choice(row_count, min(row_count, 25), replace=False)
    query_vectors = unit64(vectors[queries]).astype(np.float32)
    distances, rows = _neighbours(vectors, queries, query_vectors, pool)
    assert distances.shape == rows.shape == (queries.size, NEIGHBOURS)
    exact = 1 - unit64(vectors[queries]) @ unit64(vectors[pool]).T
    exact[queries[:, None] == pool] = np.inf
    exact = np.concatenate([exact, np.full((queries.size, NEIGHBOURS), np.inf)], axis=1)
    np.testing.assert_allclose(np.sort(distances), np.sort(exact)[:, :NEIGHBOURS], atol=1e-5)
    found = np.isfinite(distances)
    assert np.isin(rows[found], pool).all()
    own = 1 - np.einsum("qd,qkd->qk", unit64(vectors[queries]), unit64(vectors)[rows])
    np.testing.assert_allclose(distances[found], own[found], atol=1e-5)
    for kept, row_numbers in zip(found, rows, strict=True):
        assert len(set(row_numbers[kept].tolist())) == np.count_nonzero(kept)


# Tables.


def numbered():
    return make_margins(by_distance=np.arange(DISTANCE_COUNT), by_recall=np.arange(len(RECALLS)))


@pytest.mark.parametrize(
    ("distance", "step"),
    [
        *((0.0, 0), (0.01, 0), (0.05, 0), (0.0501, 1), (0.1, 1), (0.15, 2), (0.3, 5), (0.351, 7)),
        *((0.95, 18), (0.951, 19), (1.0, 19), (1.001, None), (2.0, None), (np.inf, None)),
    ],
)
def test_a_distance_between_two_steps_takes_the_larger(distance, step):
    assert numbered().for_distance(distance) == (np.inf if step is None else step)


@pytest.mark.parametrize(
    ("recall", "level"),
    [
        *((0.01, 0), (0.9, 0), (0.901, 1), (0.95, 1), (0.97, 2), (0.98, 2), (0.99, 3), (0.995, 4)),
        *((0.999, 5), (0.9995, None), (1.0, None)),
    ],
)
def test_a_recall_between_two_levels_takes_the_larger(recall, level):
    assert numbered().for_recall(recall) == (np.inf if level is None else level)


def test_unknown_margins_hold_every_list():
    margins = ListMargins.unknown()
    assert min(margins.for_distance(distance) for distance in (0.0, 0.5, 1.0, 2.0)) >= 2
    assert min(margins.for_recall(recall) for recall in (0.1, *RECALLS, 1.0)) >= 2


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"by_distance": np.zeros(20)}, "distance_margins"),
        ({"by_distance": np.zeros((20, 2), np.float32)}, "distance_margins"),
        ({"by_distance": np.zeros(19, np.float32)}, "distance_margins"),
        ({"by_recall": np.zeros(6, np.float16)}, "recall_margins"),
        ({"by_recall": np.zeros((6, 1), np.float32)}, "recall_margins"),
        ({"by_recall": np.zeros(20, np.float32)}, "recall_margins"),
    ],
)
def test_tables_of_another_shape_or_type_are_refused(changes, name):
    usual = {"by_distance": np.zeros(20, np.float32), "by_recall": np.zeros(6, np.float32)}
    with pytest.raises(DimensionError, match=f"^{name}: "):
        ListMargins(**(usual | changes))


@pytest.mark.parametrize("value", [-1e-9, np.nan, -np.inf])
@pytest.mark.parametrize("name", ["by_distance", "by_recall"])
def test_margins_below_zero_are_refused(name, value):
    with pytest.raises(InvalidRowsError, match="must be at least 0"):
        make_margins(**{name: [0.0] * (DISTANCE_COUNT - 1 if name == "by_distance" else 5) + [value]})

"""Candidates measured on int8 vectors, and the nearest of these on float16, on every instruction set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_rows import exact_distances, unit_vectors

from index import DimensionError, _kernels, cosine_distances
from index.kernels import quantise, rerank
from index.vectors import unit_rows

SETS = _kernels.instruction_sets()


@pytest.fixture(autouse=True)
def best_set_again():
    yield
    _kernels.choose(_kernels.instruction_sets()[-1])


def random_case(seed, *, row_count=200, dim=40, query_count=3, width=50, few_rows=False):
    """Vectors, queries, and per query some candidates, in no order, behind which there is rubbish."""
    rng = np.random.default_rng(seed)
    vectors = unit_vectors(row_count, seed=seed, dim=dim).astype(np.float16)
    if few_rows:
        vectors = vectors[rng.integers(0, 3, row_count)]  # ties
    offsets = np.full((query_count, width), 2**62)
    found = rng.integers(0, width + 1, query_count)
    for i, count in enumerate(found.tolist()):
        offsets[i, :count] = rng.permutation(row_count)[:count]
    return vectors, unit_vectors(query_count, seed=seed + 1, dim=dim), offsets, found


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 9_999),
    dim=st.sampled_from([1, 7, 16, 33, 128]),
    query_count=st.integers(0, 5),
    width=st.integers(1, 70),
    exact_count=st.one_of(st.sampled_from([1, 2]), st.integers(1, 80)),
    few_rows=st.booleans(),
)
def test_the_nearest_by_int8_are_measured_on_float16(
    name, seed, dim, query_count, width, exact_count, few_rows
):
    _kernels.choose(name)
    case = random_case(seed, dim=dim, query_count=query_count, width=width, few_rows=few_rows)
    vectors, queries, offsets, found = case
    quantised = quantise(vectors)
    places, distances, kept = rerank(
        vectors, quantised, queries, offsets=offsets, found=found, exact_count=exact_count
    )
    assert kept.tolist() == np.minimum(found, exact_count).tolist()
    for i, query in enumerate(queries):
        candidates = offsets[i, : found[i]]
        rough = cosine_distances(quantised, query, offsets=candidates)
        nearest = sorted(range(found[i]), key=lambda place: (rough[place], place))[:exact_count]
        chosen = places[i, : kept[i]]
        assert sorted(chosen.tolist()) == sorted(nearest)
        exact = cosine_distances(vectors, query, offsets=candidates[chosen])
        assert distances[i, : kept[i]].tolist() == exact.tolist()


@pytest.mark.parametrize("name", SETS)
def test_all_candidates_are_measured_where_there_are_no_int8_vectors(name):
    _kernels.choose(name)
    vectors, queries, offsets, found = random_case(3)
    places, distances, kept = rerank(vectors, None, queries, offsets=offsets, found=found, exact_count=2)
    assert kept.tolist() == found.tolist()
    for i, count in enumerate(found.tolist()):
        assert places[i, :count].tolist() == list(range(count))
        expected = exact_distances(vectors[offsets[i, :count]], queries[i])
        np.testing.assert_allclose(distances[i, :count], expected, atol=2e-6)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("scale", [1e-40, 1e38])
def test_tiny_and_huge_queries_find_what_those_of_norm_one_do(name, scale):
    _kernels.choose(name)
    vectors, queries, offsets, found = random_case(4)
    scaled = (queries.astype(np.float64) * scale).astype(np.float32)
    places, distances, kept = rerank(
        vectors, quantise(vectors), scaled, offsets=offsets, found=found, exact_count=9
    )
    for i, query in enumerate(scaled):
        chosen = places[i, : kept[i]]
        rough = exact_distances(quantise(vectors)[offsets[i, : found[i]]], query)
        np.testing.assert_allclose(np.sort(rough[chosen]), np.sort(rough)[: kept[i]], atol=2e-6)
        expected = exact_distances(vectors[offsets[i, chosen]], query)
        np.testing.assert_allclose(distances[i, : kept[i]], expected, atol=2e-6)


@pytest.mark.parametrize("order", ["ascending", "descending", "equal"])
def test_many_candidates_in_any_order_are_selected(order):
    vectors = unit_vectors(3_000, seed=5, dim=20).astype(np.float16)
    query = unit_vectors(1, seed=6, dim=20)
    if order == "equal":
        vectors[:] = vectors[0]
    quantised = quantise(vectors)
    rough = cosine_distances(quantised, query[0])
    ranked = np.argsort(rough, kind="stable")
    offsets = (ranked[::-1] if order == "descending" else ranked)[None].copy()
    found = np.array([3_000])
    places, _, kept = rerank(vectors, quantised, query, offsets=offsets, found=found, exact_count=700)
    assert kept.tolist() == [700]
    expected = range(2_300, 3_000) if order == "descending" else range(700)
    if order == "equal":
        assert sorted(places[0].tolist()) == list(range(700))
    else:
        np.testing.assert_array_equal(np.sort(rough[offsets[0, places[0]]]), np.sort(rough)[:700])
        assert len(set(places[0].tolist()) & set(expected)) > 690  # but for ties


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"vectors": np.ones((9, 4), np.float32)}, DimensionError),
        ({"vectors": np.ones(4, np.float16)}, DimensionError),
        ({"quantised": np.ones((9, 4), np.uint8)}, DimensionError),
        ({"quantised": np.ones((8, 4), np.int8)}, DimensionError),
        ({"queries": np.ones((2, 4))}, DimensionError),
        ({"queries": np.ones((2, 5), np.float32)}, DimensionError),
        ({"queries": np.ones((3, 4), np.float32)}, DimensionError),
        ({"offsets": np.zeros((2, 3), np.int32)}, DimensionError),
        ({"found": np.zeros(3, np.int64)}, DimensionError),
        ({"found": np.zeros(2)}, DimensionError),
        ({"found": np.array([3, 4])}, IndexError),
        ({"found": np.array([3, -1])}, IndexError),
        ({"found": np.array([-(2**63), 3])}, IndexError),
        ({"offsets": np.array([[0, 1, 9], [0, 1, 2]])}, IndexError),
        ({"offsets": np.array([[0, 1, 2], [0, -1, 2]])}, IndexError),
        ({"exact_count": 0}, ValueError),
        ({"queries": np.ones((4, 2), np.float32).T}, ValueError),
        ({"offsets": np.zeros((3, 2), np.int64).T}, ValueError),
        ({"vectors": np.ones((4, 9), np.float16).T}, ValueError),
    ],
)
@pytest.mark.parametrize("has_bytes", [False, True])
def test_invalid_candidates_are_refused(changes, error, has_bytes):
    usual = {
        "vectors": np.ones((9, 4), np.float16),
        "quantised": np.ones((9, 4), np.int8),
        "queries": np.ones((2, 4), np.float32),
        "offsets": np.zeros((2, 3), np.int64),
        "found": np.array([3, 3]),
        "exact_count": 2,
    }
    if not has_bytes and ("quantised" in changes or "exact_count" in changes):
        pytest.skip("of int8 vectors")
    arguments = usual | ({} if has_bytes else {"quantised": None}) | changes
    columns = [arguments.pop(name) for name in ("vectors", "quantised", "queries")]
    with pytest.raises(error):
        rerank(*columns, **arguments)


def test_unit_rows_have_norm_one_and_zeros_stay():
    vectors = (unit_vectors(5, seed=2) * 7).astype(np.float16)
    vectors[3] = 0
    norms = np.linalg.norm(unit_rows(vectors), axis=1)
    np.testing.assert_allclose(norms, [1, 1, 1, 0, 1], atol=1e-6)

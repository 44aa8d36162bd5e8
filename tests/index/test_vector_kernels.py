"""Distances on stored vectors and scores of codes, against float64, on every instruction set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_rows import exact_distances, unit_vectors

from index import _kernels, asymmetric_scores, cosine_distances, pack
from index.kernels import quantise

SETS = _kernels.instruction_sets()
TOLERANCE = 2e-6
DIMS = st.one_of(st.sampled_from([1, 15, 16, 17, 31, 32, 33, 384, 400]), st.integers(1, 400))


@pytest.fixture(autouse=True)
def best_set_again():
    yield
    _kernels.choose(_kernels.instruction_sets()[-1])


@pytest.fixture(params=SETS)
def each_set(request):
    _kernels.choose(request.param)
    return request.param


def stored_vectors(count, dim, *, seed, dtype):
    vectors = unit_vectors(count, seed=seed, dim=dim)
    if dtype == np.float16:
        return vectors.astype(np.float16)
    return quantise(vectors.astype(np.float16))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [np.float16, np.int8])
@settings(max_examples=60, deadline=None)
@given(dim=DIMS, count=st.integers(1, 60), seed=st.integers(0, 999), norm=st.sampled_from([1e-6, 1.0, 300.0]))
def test_distances_equal_float64(name, dtype, dim, count, seed, norm):
    _kernels.choose(name)
    stored = stored_vectors(count, dim, seed=seed, dtype=dtype)
    query = unit_vectors(1, seed=seed + 1, dim=dim)[0] * np.float32(norm)
    expected = exact_distances(stored, query)
    np.testing.assert_allclose(cosine_distances(stored, query), expected, atol=TOLERANCE)
    offsets = np.random.default_rng(seed).integers(0, count, 2 * count)
    found = cosine_distances(stored, query, offsets=offsets)
    np.testing.assert_allclose(found, expected[offsets], atol=TOLERANCE)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [np.float16, np.int8])
@settings(max_examples=30, deadline=None)
@given(dim=st.integers(1, 800), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_row_has_the_same_distance_alone_and_in_any_batch(name, dtype, dim, count, seed):
    _kernels.choose(name)
    stored = stored_vectors(count, dim, seed=seed, dtype=dtype)
    query = unit_vectors(1, seed=seed + 1, dim=dim)[0]
    whole = cosine_distances(stored, query)
    assert whole.dtype == np.float32
    alone = [float(cosine_distances(stored[i : i + 1], query)[0]) for i in range(count)]
    some = np.random.default_rng(seed).permutation(count)[: count // 2 + 1]
    assert whole.tolist() == alone
    assert cosine_distances(stored, query, offsets=some).tolist() == whole[some].tolist()


def test_subnormal_vectors_have_their_direction(each_set):
    rng = np.random.default_rng(0)
    smallest = np.float64(np.finfo(np.float16).smallest_subnormal)
    stored = (rng.integers(-9, 10, (50, 37)) * smallest).astype(np.float16)
    query = unit_vectors(1, seed=1, dim=37)[0]
    np.testing.assert_allclose(
        cosine_distances(stored, query), exact_distances(stored, query), atol=TOLERANCE
    )
    np.testing.assert_allclose(
        cosine_distances(quantise(stored), query), exact_distances(stored, query), atol=0.01
    )


def test_largest_components_do_not_overflow(each_set):
    stored = np.full((2, 20), np.finfo(np.float16).max, dtype=np.float16)
    stored[1] *= -1
    query = np.ones(20, dtype=np.float32)
    np.testing.assert_allclose(cosine_distances(stored, query), [0, 2], atol=TOLERANCE)
    assert quantise(stored).tolist() == [[127] * 20, [-127] * 20]


def test_stored_vector_is_at_distance_zero_to_its_source(each_set):
    vectors = unit_vectors(200, seed=3, dim=384)
    stored = vectors.astype(np.float16)
    assert max(cosine_distances(stored[i : i + 1], vectors[i])[0] for i in range(200)) < 1e-6


def test_distances_of_equal_and_opposite_vectors_stay_in_range(each_set):
    stored = unit_vectors(200, seed=4, dim=384).astype(np.float16)
    same = [cosine_distances(stored[i : i + 1], stored[i].astype(np.float32))[0] for i in range(200)]
    opposite = [cosine_distances(stored[i : i + 1], -stored[i].astype(np.float32))[0] for i in range(200)]
    assert min(same) >= 0
    assert max(opposite) <= 2


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30, 1e38])
@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_tiny_and_huge_queries_have_their_direction(each_set, dtype, scale):
    stored = stored_vectors(50, 37, seed=2, dtype=dtype)
    query = (unit_vectors(1, seed=3, dim=37)[0].astype(np.float64) * scale).astype(np.float32)
    assert query.any()
    expected = exact_distances(stored, query)
    np.testing.assert_allclose(cosine_distances(stored, query), expected, atol=TOLERANCE)


@pytest.mark.parametrize("part", [np.inf, -np.inf, np.nan])
def test_rows_that_are_not_finite_are_farthest(each_set, part):
    stored = unit_vectors(40, seed=2, dim=37).astype(np.float16)
    stored[7, 3] = part
    stored[8] = part
    query = unit_vectors(1, seed=3, dim=37)[0]
    distances = cosine_distances(stored, query)
    assert distances[[7, 8]].tolist() == [2, 2]
    others = np.delete(np.arange(40), [7, 8])
    expected = exact_distances(stored[others], query)
    np.testing.assert_allclose(distances[others], expected, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_zero_vector_is_at_distance_one(each_set, dtype):
    query = unit_vectors(1, seed=0, dim=8)[0]
    assert cosine_distances(np.zeros((1, 8), dtype=dtype), query).tolist() == [1.0]
    assert cosine_distances(np.ones((1, 8), dtype=dtype), np.zeros(8, np.float32)).tolist() == [1.0]


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_no_rows_have_no_distances(each_set, dtype):
    query = np.ones(8, np.float32)
    assert cosine_distances(np.zeros((0, 8), dtype), query).tolist() == []
    none = np.empty(0, dtype=np.int64)
    assert cosine_distances(np.zeros((3, 8), dtype), query, offsets=none).tolist() == []


def test_strided_query_is_read_right(each_set):
    stored = unit_vectors(9, seed=1, dim=40).astype(np.float16)
    queries = np.asfortranarray(unit_vectors(3, seed=2, dim=40))
    plain = cosine_distances(stored, np.ascontiguousarray(queries[1]))
    assert cosine_distances(stored, queries[1]).tolist() == plain.tolist()


# int8 vectors.


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=60, deadline=None)
@given(dim=DIMS, count=st.integers(0, 30), seed=st.integers(0, 999), norm=st.sampled_from([1e-3, 1.0, 900.0]))
def test_quantised_rows_are_scaled_to_127_and_rounded(name, dim, count, seed, norm):
    _kernels.choose(name)
    vectors = (unit_vectors(count, seed=seed, dim=dim) * norm).astype(np.float16)
    quantised = quantise(vectors)
    assert (quantised.dtype, quantised.shape) == (np.int8, vectors.shape)
    exact = vectors.astype(np.float64)
    largest = np.abs(exact).max(axis=1, keepdims=True)
    scaled = np.divide(127 * exact, largest, out=np.zeros_like(exact), where=largest > 0)
    assert np.abs(quantised - scaled).max(initial=0) <= 0.5 + 1e-4
    has_direction = largest[:, 0] > 0
    assert (np.abs(quantised.astype(int)).max(axis=1, initial=0) == 127 * has_direction).all()


def test_rows_of_zeros_are_quantised_to_zeros(each_set):
    vectors = unit_vectors(5, seed=0, dim=33).astype(np.float16)
    vectors[2] = 0
    quantised = quantise(vectors)
    assert not quantised[2].any()
    assert quantised[[1, 3]].any(axis=1).all()


@pytest.mark.parametrize("part", [np.inf, -np.inf, np.nan])
def test_rows_that_are_not_finite_are_quantised_to_something(each_set, part):
    vectors = unit_vectors(6, seed=1, dim=37).astype(np.float16)
    expected = quantise(vectors)
    vectors[2, 3] = part
    vectors[4] = part
    quantised = quantise(vectors)
    assert np.abs(quantised.astype(int)).max() <= 127
    np.testing.assert_array_equal(quantised[[0, 1, 3, 5]], expected[[0, 1, 3, 5]])


def test_all_sets_quantise_equally():
    vectors = unit_vectors(500, seed=5, dim=130).astype(np.float16)
    results = []
    for name in SETS:
        _kernels.choose(name)
        results.append(quantise(vectors))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_strided_vectors_are_quantised_right(each_set):
    vectors = unit_vectors(10, seed=6, dim=20).astype(np.float16)
    np.testing.assert_array_equal(quantise(vectors[::2]), quantise(vectors)[::2])
    np.testing.assert_array_equal(quantise(np.asfortranarray(vectors)), quantise(vectors))


# Asymmetric scores.


@st.composite
def scored_codes(draw):
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    count, bit_count = draw(st.integers(0, 40)), draw(st.integers(1, 1024))
    # Few distinct codes, so that ties are common.
    bits = rng.random((5, bit_count))[rng.integers(0, 5, count)] > 0.5
    return bits, rng.standard_normal(bit_count).astype(np.float32)


@given(scored_codes())
def test_asymmetric_scores_equal_signed_sum(case):
    bits, values = case
    expected = np.where(bits, 1.0, -1.0) @ values.astype(np.float64)
    np.testing.assert_allclose(asymmetric_scores(pack(bits), values), expected, atol=2e-4)


@settings(max_examples=30)
@given(scored_codes())
def test_equal_codes_get_identical_scores_alone_and_in_a_batch(case):
    bits, values = case
    codes = pack(bits)
    alone = [float(asymmetric_scores(codes[i : i + 1], values)[0]) for i in range(len(codes))]
    assert asymmetric_scores(codes, values).tolist() == alone

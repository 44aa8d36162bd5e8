import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_rows import exact_distances, unit_vectors

from index import DimensionError, cosine_distances
from index import rerank as rerank_module


@settings(max_examples=40)
@given(st.integers(1, 400), st.integers(1, 60), st.integers(0, 99))
def test_distances_equal_float64(dim, count, seed):
    stored = unit_vectors(count, seed=seed, dim=dim).astype(np.float16)
    query = unit_vectors(1, seed=seed + 1, dim=dim)[0]
    np.testing.assert_allclose(cosine_distances(stored, query), exact_distances(stored, query), atol=2e-6)


@settings(max_examples=60)
@given(st.integers(1, 800), st.integers(1, 70), st.integers(1, 9), st.integers(0, 99))
def test_row_has_the_same_distance_alone_and_in_any_batch(dim, count, chunk_rows, seed):
    stored = unit_vectors(count, seed=seed, dim=dim).astype(np.float16)
    query = unit_vectors(1, seed=seed + 1, dim=dim)[0]
    whole = cosine_distances(stored, query)
    alone = [float(cosine_distances(stored[i : i + 1], query)[0]) for i in range(count)]
    some = np.random.default_rng(seed).permutation(count)[: count // 2 + 1].astype(np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rerank_module, "CHUNK_BYTES", chunk_rows * 4 * dim)
        chunked = cosine_distances(stored, query, offsets=some)
    assert whole.tolist() == alone
    assert chunked.tolist() == whole[some].tolist()


def test_stored_vector_is_at_distance_zero_to_its_source():
    vectors = unit_vectors(200, seed=3, dim=384)
    stored = vectors.astype(np.float16)
    assert max(cosine_distances(stored[i : i + 1], vectors[i])[0] for i in range(200)) < 1e-6


def test_distances_of_equal_and_opposite_vectors_stay_in_range():
    stored = unit_vectors(200, seed=4, dim=384).astype(np.float16)
    same = [cosine_distances(stored[i : i + 1], stored[i].astype(np.float32))[0] for i in range(200)]
    opposite = [cosine_distances(stored[i : i + 1], -stored[i].astype(np.float32))[0] for i in range(200)]
    assert min(same) >= 0
    assert max(opposite) <= 2


def test_zero_vector_is_at_distance_one():
    stored = np.zeros((1, 8), dtype=np.float16)
    assert cosine_distances(stored, unit_vectors(1, seed=0, dim=8)[0]).tolist() == [1.0]


def test_query_of_other_dimension_is_refused():
    with pytest.raises(DimensionError, match="query"):
        cosine_distances(np.zeros((2, 8), dtype=np.float16), np.ones(7, dtype=np.float32))

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_rows import unit_vectors

from index import DimensionError, asymmetric_scores, hamming_distances, nearest_by_score, nearest_codes, pack
from index import hamming as hamming_module
from index.codes import code_bytes


@st.composite
def coded_rows(draw):
    seed, count, bit_count = draw(st.integers(0, 999)), draw(st.integers(0, 40)), draw(st.integers(1, 140))
    rng = np.random.default_rng(seed)
    # Few distinct codes, so that ties are common.
    bits = rng.random((5, bit_count)) > 0.5
    return bits[rng.integers(0, 5, count)], rng.random(bit_count) > 0.5, rng.random(count) > 0.4, rng


@given(coded_rows(), st.integers(1, 12))
def test_distances_equal_differing_bits(case, chunk_rows):
    bits, query, _, _ = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming_module, "CHUNK_ROWS", chunk_rows)
        distances = hamming_distances(pack(bits), pack(query[None])[0])
    assert distances.dtype == np.int32
    assert distances.tolist() == (bits != query).sum(axis=1).tolist()


def test_distances_equal_faiss():
    rng = np.random.default_rng(0)
    codes = pack(rng.random((500, 256)) > 0.5)
    query = pack(rng.random((1, 256)) > 0.5)
    oracle = faiss.IndexBinaryFlat(256)
    oracle.add(code_bytes(codes))
    expected, offsets = oracle.search(code_bytes(query), 500)
    assert hamming_distances(codes, query[0])[offsets[0]].tolist() == expected[0].tolist()


@given(coded_rows(), st.integers(0, 45))
def test_nearest_codes_are_live_and_sorted_by_distance_then_offset(case, count):
    bits, query, live, _ = case
    offsets, distances = nearest_codes(pack(bits), pack(query[None])[0], count=count, live=live)
    exact = (bits != query).sum(axis=1)
    expected = sorted((int(exact[i]), i) for i in np.flatnonzero(live))[:count]
    assert list(zip(distances.tolist(), offsets.tolist(), strict=True)) == expected


@given(coded_rows())
def test_asymmetric_scores_equal_signed_sum(case):
    bits, _, _, rng = case
    values = rng.standard_normal(bits.shape[1]).astype(np.float32)
    expected = np.where(bits, 1.0, -1.0) @ values.astype(np.float64)
    np.testing.assert_allclose(asymmetric_scores(pack(bits), values), expected, atol=1e-4)


@settings(max_examples=30)
@given(coded_rows())
def test_equal_codes_get_identical_scores_alone_and_in_a_batch(case):
    bits, _, _, rng = case
    codes = pack(bits)
    values = rng.standard_normal(bits.shape[1]).astype(np.float32)
    alone = [float(asymmetric_scores(codes[i : i + 1], values)[0]) for i in range(len(codes))]
    assert asymmetric_scores(codes, values).tolist() == alone


@given(coded_rows(), st.integers(0, 45))
def test_nearest_by_score_ranks_equal_scores_by_ties(case, count):
    bits, _, live, rng = case
    codes = pack(bits)
    values = rng.standard_normal(bits.shape[1]).astype(np.float32)
    ties = rng.permutation(len(codes)).astype(np.int64)
    offsets, scores = nearest_by_score(codes, values, count=count, live=live, ties=ties)
    exact = asymmetric_scores(codes, values)
    expected = sorted((-float(exact[i]), int(ties[i]), i) for i in np.flatnonzero(live))[:count]
    assert offsets.tolist() == [offset for _, _, offset in expected]
    assert scores.tolist() == [-score for score, _, _ in expected]


def test_query_of_other_width_is_refused():
    with pytest.raises(DimensionError, match="query code"):
        hamming_distances(np.zeros((3, 2), dtype=np.uint64), np.zeros(3, dtype=np.uint64))


def test_values_of_other_width_are_refused():
    with pytest.raises(DimensionError, match="query values"):
        asymmetric_scores(np.zeros((3, 2), dtype=np.uint64), unit_vectors(1, seed=0, dim=64)[0])


def test_mask_of_other_length_is_refused():
    with pytest.raises(DimensionError, match="live"):
        nearest_codes(
            np.zeros((3, 1), dtype=np.uint64),
            np.zeros(1, dtype=np.uint64),
            count=1,
            live=np.ones(2, dtype=np.bool_),
        )

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index import DimensionError, asymmetric_scores, hamming_distances, nearest_by_score, pack
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


def test_query_of_other_dtype_is_refused():
    with pytest.raises(DimensionError, match="query code"):
        hamming_distances(np.zeros((3, 2), dtype=np.uint64), np.zeros(2, dtype=np.int64))


@pytest.mark.parametrize("live", [np.ones(2, np.bool_), np.ones(3, np.int8)])
def test_mask_of_other_length_or_dtype_is_refused(live):
    with pytest.raises(DimensionError, match="live"):
        nearest_by_score(np.zeros((3, 1), np.uint64), np.ones(64, np.float32), count=1, live=live)

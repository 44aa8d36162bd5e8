"""Searches of instance codes with a real-valued query, against brute force."""

import numpy as np
import pytest
from index_rows import CODE_BITS, CONFIG, ENCODER, KEY, NOW, TEXT, ids_of, index_of, make_rows, sealed

from index import DimensionError, SegmentKey, VectorIndex, pack
from index.codes import unpack
from index.requests import ValueQuery

COUNTED = 30  # the last bits of a code


def query_of(*, seed: int = 0) -> ValueQuery:
    values = np.zeros(CODE_BITS, dtype=np.float32)
    values[-COUNTED:] = np.random.default_rng(seed).standard_normal(COUNTED)
    mask = np.arange(CODE_BITS) >= CODE_BITS - COUNTED
    return ValueQuery(values=values, code=pack(values[None] > 0)[0], mask=pack(mask[None])[0])


@pytest.mark.parametrize("kind", ["growing", "sealed"])
def test_rows_are_ranked_by_the_bits_that_count(kind: str) -> None:
    rows = make_rows(range(100))
    index = index_of((KEY, rows)) if kind == "growing" else VectorIndex(CONFIG, sealed=[sealed(rows)])
    query = query_of()
    found = index.search_values(partitions=[TEXT], queries={ENCODER: query}, k=10, now_ms=NOW)
    bits = unpack(rows.codes, bit_count=CODE_BITS)[:, -COUNTED:]
    values = query.values[-COUNTED:].astype(float)
    distances = 1 - np.where(bits, 1, -1) @ values / np.linalg.norm(values) / np.sqrt(COUNTED)
    order = np.argsort(distances, kind="stable")[:10]
    assert ids_of(found) == rows.entry_ids[order].tolist()
    np.testing.assert_allclose(
        [match.cosine_distance for match in found.matches], distances[order], atol=1e-5
    )
    hamming = (bits != (values > 0)).sum(axis=1)
    assert [match.hamming_distance for match in found.matches] == hamming[order].tolist()
    assert found.candidates_examined == 100


def test_rows_of_another_encoder_or_without_codes_are_not_found() -> None:
    other = SegmentKey(category_id=1, modality="text", encoder_id="encoder-b")
    bare = SegmentKey(category_id=1, modality="text", encoder_id=None)
    index = index_of(
        (KEY, make_rows([1, 2])), (other, make_rows([3])), (bare, make_rows([4], with_codes=False))
    )
    found = index.search_values(partitions=[TEXT], queries={ENCODER: query_of()}, k=9, now_ms=NOW)
    assert sorted(ids_of(found)) == [1, 2]
    both = {ENCODER: query_of(), "encoder-b": query_of(seed=1)}
    assert len(index.search_values(partitions=[TEXT], queries=both, k=9, now_ms=NOW).matches) == 3
    assert not index.search_values(partitions=[TEXT], queries={}, k=9, now_ms=NOW).matches


def test_dead_rows_other_scopes_and_ids_are_left_out() -> None:
    rows = make_rows(
        range(6),
        expire_times=np.array([NOW, NOW + 1, NOW + 1, NOW + 1, NOW + 1, NOW + 1]),
        scopes=np.array([7, 7, 7, 7, 8, 8], dtype=np.uint64),
    )
    found = index_of((KEY, rows)).search_values(
        partitions=[TEXT],
        queries={ENCODER: query_of()},
        k=9,
        now_ms=NOW,
        scope=7,
        allowed_ids=np.array([0, 1, 2, 4], dtype=np.int64),
    )
    assert sorted(ids_of(found)) == [1, 2]


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.zeros(CODE_BITS, dtype=np.float32), ValueError),
        (np.full(CODE_BITS, np.nan, dtype=np.float32), ValueError),
        (np.ones(CODE_BITS, dtype=np.float64), DimensionError),
        (np.ones(CODE_BITS + 1, dtype=np.float32), DimensionError),
    ],
)
def test_bad_values_are_refused(values, error: type[Exception]) -> None:
    good = query_of()
    query = ValueQuery(values=values, code=good.code, mask=good.mask)
    with pytest.raises(error, match="values of encoder-a"):
        VectorIndex(CONFIG).search_values(partitions=[TEXT], queries={ENCODER: query}, k=1, now_ms=NOW)

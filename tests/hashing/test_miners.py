"""Neighbours and hard negatives against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing.deep.miners import CHUNK_ROWS, hard_negatives, near_rows


def _draw(count: int, dim: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.mark.parametrize("count", [1, 3, 100])
def test_near_rows_are_those_of_highest_cosine_nearest_first(count: int) -> None:
    rows = _draw(40, 6, seed=0)
    found = near_rows(rows, count=count)
    for row, own in enumerate(found.tolist()):
        others = [other for other in range(40) if other != row]
        expected = sorted(others, key=lambda other: -_cosine(rows[row], rows[other]))
        assert own == expected[:count]


def test_near_rows_of_a_pool_may_be_the_row_itself() -> None:
    rows, pool = _draw(5, 6, seed=1), _draw(20, 6, seed=2)
    pool[[3, 8, 1, 0, 19]] = 2 * rows
    found = near_rows(rows, count=4, pool=pool)
    assert found[:, 0].tolist() == [3, 8, 1, 0, 19]
    for row, own in enumerate(found.tolist()):
        expected = sorted(range(20), key=lambda other: -_cosine(rows[row], pool[other]))
        assert own == expected[:4]


def test_rows_beyond_one_chunk_are_not_their_own_neighbours() -> None:
    rows = _draw(CHUNK_ROWS + 100, 8, seed=3)
    found = near_rows(rows, count=5)
    assert not (found == np.arange(len(rows))[:, None]).any()
    cosines = rows[-1] @ rows.T / np.linalg.norm(rows, axis=1)
    cosines[-1] = -np.inf
    assert found[-1].tolist() == np.argsort(-cosines)[:5].tolist()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 4), row_count=st.integers(12, 40))
def test_hard_negatives_are_the_nearest_codes_of_other_groups(seed: int, count: int, row_count: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((row_count, 64)).astype(np.float32)
    group = rng.integers(0, 5, size=row_count)
    group[:4] = [0, 1, 2, 3]
    pool = np.sort(np.concatenate([np.arange(8), 8 + rng.permutation(row_count - 8)[: row_count // 2]]))
    group[4:8] = [4, 5, 6, 7]
    mined = hard_negatives(values, group=group, count=count, pool_rows=pool)
    assert mined.shape == (row_count, count)
    codes = np.where(values > 0, 1, -1)
    for row, own in enumerate(mined.tolist()):
        others = [other for other in pool.tolist() if group[other] != group[row]]
        assert set(own) <= set(others)
        scores = {other: float(values[row] @ codes[other]) for other in others}
        best = sorted(scores.values(), reverse=True)[:count]
        np.testing.assert_allclose(sorted((scores[other] for other in own), reverse=True), best, rtol=1e-4)

"""Which pairs are refused, and how they are split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing import TrainingDataError
from hashing.deep.pairs import MIN_PAIRS, check_pairs, connected_components, split_pairs


def _pairs(count: int) -> np.ndarray:
    """`count` pairs of rows 2i and 2i + 1, every other one similar."""
    return np.column_stack([np.arange(0, 2 * count, 2), np.arange(1, 2 * count, 2), np.arange(count) % 2])


def _with(pair: int, column: int, value: int) -> np.ndarray:
    pairs = _pairs(50)
    pairs[pair, column] = value
    return pairs


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (_pairs(50)[:, :2], r"got int64\[50, 2\]"),
        (_pairs(50).astype(np.float32), r"got float32\[50, 3\]"),
        (np.arange(3), r"got int64\[3\]"),
        (_with(7, 1, 100), r"pair 7 refers to rows \[14, 100\], there are 100"),
        (_with(9, 0, -1), r"pair 9 refers to rows \[-1, 19\]"),
        (_with(3, 2, 2), "pair 3 has label 2"),
        (_with(3, 2, -1), "pair 3 has label -1"),
        (_with(4, 1, 8), "pair 4 is of row 8 with itself"),
        (_pairs(50)[::2], "one class only: all 25 pairs have label 0"),
        (_pairs(50)[1::2], "one class only: all 25 pairs have label 1"),
        (_pairs(2 * MIN_PAIRS - 1), f"at least {MIN_PAIRS} similar .* got 19 and 20"),
        (_pairs(50)[:0], "got 0 and 0"),
    ],
)
def test_pairs_that_nothing_can_be_learned_from_are_refused(pairs: np.ndarray, message: str) -> None:
    with pytest.raises(TrainingDataError, match=message):
        check_pairs(pairs, row_count=100)


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int64])
def test_pairs_of_any_integer_type_are_read(dtype: type) -> None:
    checked = check_pairs(_pairs(50).astype(dtype), row_count=100)
    assert checked.dtype == np.int64
    np.testing.assert_array_equal(checked, _pairs(50))


def _components_by_flooding(first: list[int], second: list[int], row_count: int) -> list[int]:
    linked: list[set[int]] = [{row} for row in range(row_count)]
    for a, b in zip(first, second, strict=True):
        linked[a].add(b)
        linked[b].add(a)
    least = list(range(row_count))
    for row in range(row_count):
        reached, frontier = {row}, [row]
        while frontier:
            frontier = [other for own in frontier for other in linked[own] - reached]
            reached.update(frontier)
        least[row] = min(reached)
    return least


@given(data=st.data(), row_count=st.integers(1, 30))
def test_components_are_those_that_flooding_finds(data: st.DataObject, row_count: int) -> None:
    rows = st.lists(st.integers(0, row_count - 1), max_size=40)
    first = data.draw(rows)
    second = data.draw(st.lists(st.integers(0, row_count - 1), min_size=len(first), max_size=len(first)))
    found = connected_components(
        np.array(first, dtype=np.int64), np.array(second, dtype=np.int64), row_count=row_count
    )
    assert found.tolist() == _components_by_flooding(first, second, row_count)


def test_long_chain_is_one_component() -> None:
    chain = np.random.default_rng(0).permutation(100_000)
    assert not connected_components(chain[:-1], chain[1:], row_count=100_000).any()


@pytest.mark.parametrize("seed", range(5))
def test_parts_share_no_row_and_no_chain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = np.column_stack([rng.integers(0, 3000, size=(1000, 2)), rng.integers(0, 2, size=1000)])
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    split = split_pairs(pairs, row_count=3000, validation_share=0.2, rng=rng)
    component = connected_components(pairs[:, 0], pairs[:, 1], row_count=3000)
    parts = [set(component[part[:, :2]].ravel().tolist()) for part in (split.training, split.validation)]
    assert not parts[0] & parts[1]
    assert sorted([*split.training.tolist(), *split.validation.tolist()]) == sorted(pairs.tolist())
    for kind in (0, 1):
        share = np.mean(split.validation[:, 2] == kind)
        held_out = np.sum(split.validation[:, 2] == kind) / np.sum(pairs[:, 2] == kind)
        assert share > 0.1 and 0.15 < held_out <= 0.41


def test_rare_kind_is_held_out_too() -> None:
    pairs = _pairs(1000)
    pairs[:, 2] = 0
    pairs[:MIN_PAIRS, 2] = 1
    split = split_pairs(pairs, row_count=2000, validation_share=0.1, rng=np.random.default_rng(0))
    assert 2 <= split.validation[:, 2].sum() <= 4
    assert split.training[:, 2].sum() >= MIN_PAIRS - 4


def test_large_component_is_left_to_training() -> None:
    chain = np.column_stack([np.arange(500), np.arange(1, 501), np.arange(500) % 2])
    apart = _pairs(100) + np.array([1000, 1000, 0])
    pairs = np.concatenate([chain, apart])
    split = split_pairs(pairs, row_count=1200, validation_share=0.1, rng=np.random.default_rng(0))
    assert split.validation[:, 0].min() >= 1000


def test_pairs_of_one_component_are_refused() -> None:
    star = np.column_stack([np.zeros(200, dtype=np.int64), np.arange(1, 201), np.arange(200) % 2])
    with pytest.raises(TrainingDataError, match="200 pairs are linked into 1 groups of rows"):
        split_pairs(star, row_count=201, validation_share=0.1, rng=np.random.default_rng(0))

"""What follows from labelled pairs, and the batches that keep linked pairs together."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra train")

from hypothesis import given, settings
from hypothesis import strategies as st

from hashing.deep.text_pairs import LinkedPairs, link_pairs


def _link(pairs: list[tuple[int, int, int]], *, batch_size: int = 100, weight: float = 0.5) -> LinkedPairs:
    row_count = max(max(a, b) for a, b, _ in pairs) + 1
    return link_pairs(
        np.array(pairs, dtype=np.int64), row_count=row_count, batch_size=batch_size, implied_weight=weight
    )


def _implied(linked: LinkedPairs) -> set[tuple[int, int, int]]:
    labelled = np.concatenate([np.arange(start, start + own) for start, _, own in linked.blocks.tolist()])
    rest = np.delete(linked.pairs, labelled, axis=0)
    return {tuple(pair) for pair in rest.tolist()}


def test_similar_to_the_similar_is_similar_and_to_the_other_is_not() -> None:
    linked = _link([(0, 1, 1), (1, 2, 1), (2, 3, 0), (3, 4, 1), (5, 6, 1)])
    assert _implied(linked) == {(0, 2, 1), (0, 3, 0), (1, 3, 0), (0, 4, 0), (1, 4, 0), (2, 4, 0)}


def test_pair_that_contradicts_the_labels_is_not_implied() -> None:
    assert _implied(_link([(0, 1, 1), (1, 2, 1), (0, 2, 0)])) == set()


def test_implied_pairs_weigh_no_more_than_their_component() -> None:
    chain = [(row, row + 1, 1) for row in range(9)]
    linked = _link(chain, weight=0.5)
    assert linked.weights.sum() == pytest.approx(9 + 0.5 * 9)
    assert linked.weights.max() == 1
    assert _link([(0, 1, 1), (1, 2, 1)], weight=0.25).weights.tolist() == [1, 1, 0.25]


def test_no_weight_implies_nothing() -> None:
    assert _implied(_link([(0, 1, 1), (1, 2, 1)], weight=0.0)) == set()


def test_component_of_more_pairs_than_a_batch_is_cut() -> None:
    linked = _link([(row, row + 1, 1) for row in range(25)], batch_size=10)
    assert linked.blocks[:, 2].tolist() == [10, 10, 5]
    assert linked.pairs.shape[0] == 25


@settings(max_examples=50, deadline=None)
@given(
    raw=st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 1)), min_size=1, max_size=60
    ),
    batch_size=st.integers(2, 20),
    seed=st.integers(0, 2**16),
)
def test_every_labelled_pair_is_in_one_batch_of_a_pass(
    raw: list[tuple[int, int, int]], batch_size: int, seed: int
) -> None:
    pairs = [pair for pair in raw if pair[0] != pair[1]] or [(0, 1, 1)]
    linked = _link(pairs, batch_size=batch_size)
    batches = linked.batches(batch_size=batch_size, rng=np.random.default_rng(seed))
    seen = np.concatenate(batches)
    assert sorted(seen.tolist()) == list(range(linked.pairs.shape[0]))
    assert linked.labelled_count == len(pairs)
    labelled = [
        tuple(pair) for pair, weight in zip(linked.pairs.tolist(), linked.weights, strict=True) if weight == 1
    ]
    assert sorted(labelled) == sorted(pairs)
    similar = {frozenset((a, b)) for a, b, label in pairs if label}
    for a, b, label in _implied(linked):
        assert a < b
        assert (linked.group[a] == linked.group[b]) == bool(label)
        assert frozenset((a, b)) not in similar


def test_group_of_too_many_texts_implies_nothing() -> None:
    star = [(0, row, 1) for row in range(1, 100)]
    assert _implied(_link(star, batch_size=1000)) == set()
    few = [(0, row, 1) for row in range(1, 10)]
    assert len(_implied(_link(few))) == len(list(combinations(range(1, 10), 2)))

"""The closed-form parts that cross-modal training is made of, against naive oracles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing.analytic import draw_features
from hashing.class_codes import ClassCodes, issue_orthogonal
from hashing.feature_tower import FeatureTower
from hashing.kernel_ridge import FoldedRidge
from hashing.metrics import average_precisions, grouped_precisions
from hashing.semantic_targets import TARGET_CLASSES_LIMIT, label_targets, pair_targets, reconstruct_targets


def test_tower_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    features = draw_features(5, count=7, gamma=1.0, seed=0)
    linear = rng.standard_normal((5, 3), dtype=np.float32)
    output = rng.standard_normal((7, 2), dtype=np.float32)
    offset = rng.standard_normal(5, dtype=np.float32)
    tower = FeatureTower(features=features, linear=linear, output=output, offset=offset)
    row = rng.standard_normal((1, 5), dtype=np.float32)
    mapped = np.sqrt(2 / 7) * np.cos(row @ features.omega + features.beta)
    wanted = np.concatenate([row @ linear, mapped @ output], axis=1) - offset
    np.testing.assert_allclose(tower.project(row), wanted, atol=1e-5)
    assert (tower.dim, tower.code_bits, tower.function_bits) == (5, 5, 2)


def test_large_batch_is_mapped_in_chunks_alike() -> None:
    features = draw_features(4, count=8, gamma=1.0, seed=0)
    rng = np.random.default_rng(1)
    tower = FeatureTower(
        features=features,
        linear=np.empty((4, 0), dtype=np.float32),
        output=rng.standard_normal((8, 64), dtype=np.float32),
        offset=np.zeros(64, dtype=np.float32),
    )
    rows = rng.standard_normal((5000, 4), dtype=np.float32)
    np.testing.assert_allclose(tower.project(rows)[4999:], tower.project(rows[4999:]), atol=1e-5)


def test_left_out_fold_is_not_learned_from() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((60, 6)).astype(np.float32)
    targets = rng.standard_normal((60, 2))
    folds = np.arange(60) % 3
    features = draw_features(6, count=10, gamma=0.7, seed=0)
    predicted = FoldedRidge(rows, targets, features=features, folds=folds).held_out(0.1)
    for fold in range(3):
        kept = folds != fold
        mapped = features.transform(rows[kept]).astype(np.float64)
        weight = np.linalg.solve(mapped.T @ mapped + 0.1 * 40 * np.eye(10), mapped.T @ targets[kept])
        np.testing.assert_allclose(
            predicted[~kept], features.transform(rows[~kept]) @ weight, rtol=1e-6, atol=1e-8
        )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), groups=st.integers(1, 6))
def test_grouped_precision_is_the_precision_of_every_order_within_groups(seed: int, groups: int) -> None:
    # Rows of a group are all relevant or none, so that their order within the group changes nothing.
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, groups)
    scores = rng.permutation(groups)[None, :].astype(float)
    relevant = rng.random((1, groups)) < 0.5
    found = grouped_precisions(scores, relevant, counts=counts)
    wanted = average_precisions(
        np.repeat(scores, counts, axis=1), np.repeat(relevant, counts, axis=1), rng=rng
    )
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_label_targets_have_the_cosine_of_label_vectors() -> None:
    codes = ClassCodes.empty(label_bits=64, seed=0).issue(["a", "b", "c"])
    targets = label_targets([["a"], ["a", "b"], ["c", "c"], []], class_codes=codes)
    wanted = [[1, 0.5**0.5, 0, 0], [0.5**0.5, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(targets @ targets.T, wanted, atol=1e-12)


def test_many_classes_have_targets_of_few_dimensions() -> None:
    names = [f"c{i}" for i in range(TARGET_CLASSES_LIMIT + 1)]
    codes = ClassCodes.empty(label_bits=128, seed=0).issue(names)
    targets = label_targets([[name] for name in names], class_codes=codes)
    assert targets.shape == (len(names), 128)
    np.testing.assert_allclose((targets**2).sum(axis=1), 1)


def test_pairs_have_targets_that_both_views_agree_on() -> None:
    rng = np.random.default_rng(0)
    common = rng.standard_normal((300, 2))
    one = np.concatenate([common, rng.standard_normal((300, 3))], axis=1).astype(np.float32)
    other = np.concatenate([rng.standard_normal((300, 2)), common], axis=1).astype(np.float32)
    maps = [draw_features(dim, count=200, gamma=0.3, seed=0) for dim in (5, 4)]
    targets = pair_targets(one, other, maps=maps)[:, :2]
    explained = targets @ np.linalg.lstsq(targets, common, rcond=None)[0]
    assert 1 - ((common - explained) ** 2).sum() / (common**2).sum() > 0.8


def test_row_between_two_anchors_gets_what_is_between_their_targets() -> None:
    rows = np.array([[1, 0], [0, 1], [0.5, 0.5]], dtype=np.float32)
    targets = np.array([[1.0], [3.0], [0.0]])
    reconstruct_targets(rows, targets, known=np.array([True, True, False]))
    np.testing.assert_allclose(targets[:, 0], [1, 3, 2], atol=1e-6)


@pytest.mark.parametrize("count", [1, 10, 64, 80])
def test_orthogonal_codes_are_orthogonal_in_each_word_and_then_distinct(count: int) -> None:
    codes = issue_orthogonal([f"c{i}" for i in range(count)], label_bits=128, seed=3)
    assert codes.labels == tuple(f"c{i}" for i in range(count))
    signs = np.where(codes.bits, 1, -1)
    for word in (slice(0, 64), slice(64, 128)):
        first = signs[:64, word]
        np.testing.assert_array_equal(first @ first.T, 64 * np.eye(len(first)))
        assert len(np.unique(signs[:, word], axis=0)) == count
    assert len(codes.issue(["later"])) == count + 1

import numpy as np
import pytest

from hashing import (
    DimensionError,
    EmbeddingsError,
    EncoderConfig,
    LabelState,
    TrainingDataError,
    UnknownLabelError,
)
from hashing.analytic import SOLVE_BLOCK, RandomFeatures, draw_features, solve_cholesky
from hashing.class_codes import target_bits


def _state(rows, labels, config: EncoderConfig) -> LabelState:
    return LabelState.empty(rows.shape[1], config=config).add(rows, labels)


def test_features_approximate_the_gaussian_kernel(draw_clusters) -> None:
    rows, _ = draw_clusters(class_count=4, rows_per_class=5)
    features = draw_features(32, count=16_000, gamma=1.5, seed=0).transform(rows)
    squared = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(features @ features.T, np.exp(-(1.5**2) * squared / 2), atol=0.05)


def test_transform_follows_the_formula() -> None:
    features = RandomFeatures(
        omega=np.array([[2.0, 0.5]], dtype=np.float32), beta=np.array([0.1, 3.0], dtype=np.float32)
    )
    transformed = features.transform(np.array([[0.7]], dtype=np.float32))
    np.testing.assert_allclose(transformed, [[np.cos(1.5), np.cos(3.35)]], rtol=1e-6)


def test_solution_is_the_ridge_regression(draw_clusters, small_config: EncoderConfig) -> None:
    rows, labels = draw_clusters(class_count=5, rows_per_class=30)
    state = _state(rows, labels, small_config)
    features = state.features.transform(rows).astype(np.float64)
    targets = np.where(target_bits(state.class_codes, labels), 1.0, -1.0)
    gram = features.T @ features + small_config.ridge * np.eye(small_config.feature_count)
    np.testing.assert_allclose(
        state.solve(), np.linalg.solve(gram, features.T @ targets), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("size", [1, SOLVE_BLOCK, SOLVE_BLOCK + 1, 3 * SOLVE_BLOCK - 5])
def test_block_solve_equals_the_general_solve(size: int) -> None:
    rng = np.random.default_rng(size)
    root = rng.standard_normal((size, size))
    matrix = root @ root.T + size * np.eye(size)
    right = rng.standard_normal((size, 3))
    solution = solve_cholesky(np.linalg.cholesky(matrix), right)
    np.testing.assert_allclose(solution, np.linalg.solve(matrix, right), rtol=1e-9, atol=1e-12)


def test_adding_in_steps_equals_adding_at_once(draw_clusters, small_config: EncoderConfig) -> None:
    rows, labels = draw_clusters(class_count=6, rows_per_class=20)
    at_once = _state(rows, labels, small_config)
    in_steps = LabelState.empty(32, config=small_config)
    for start, stop in ((0, 1), (1, 50), (50, 120)):
        in_steps = in_steps.add(rows[start:stop], labels[start:stop])
    assert in_steps.row_count == at_once.row_count == 120
    np.testing.assert_allclose(in_steps.solve(), at_once.solve(), atol=1e-4)


def test_rows_beyond_one_chunk_count_in_full(draw_clusters) -> None:
    config = EncoderConfig(feature_count=16)
    rows, labels = draw_clusters(class_count=5, rows_per_class=1000)
    state = _state(rows, labels, config)
    features = state.features.transform(rows).astype(np.float64)
    np.testing.assert_allclose(state.gram, features.T @ features, rtol=1e-6, atol=1e-6)


def test_removing_equals_training_on_the_rest(draw_clusters, small_config: EncoderConfig) -> None:
    rows, labels = draw_clusters(class_count=6, rows_per_class=30)
    labels[3] = ["c1", "c4", "c2"]
    everything = _state(rows, labels, small_config)
    removed = everything.remove(rows[:40], labels[:40])
    rest = (
        LabelState.empty(32, config=small_config)
        .issue(everything.class_codes.labels)
        .add(rows[40:], labels[40:])
    )
    assert removed.row_count == rest.row_count
    np.testing.assert_allclose(removed.solve(), rest.solve(), atol=1e-4)


def test_removing_keeps_issued_class_codes(draw_clusters, small_config: EncoderConfig) -> None:
    rows, labels = draw_clusters(class_count=3, rows_per_class=4)
    state = _state(rows, labels, small_config)
    assert state.remove(rows, labels).class_codes is state.class_codes


def test_add_and_remove_leave_the_old_state_alone(draw_clusters, small_config: EncoderConfig) -> None:
    rows, labels = draw_clusters(class_count=3, rows_per_class=4)
    state = _state(rows, labels, small_config)
    gram, cross = state.gram.copy(), state.cross.copy()
    state.add(rows, labels)
    state.remove(rows, labels)
    np.testing.assert_array_equal(state.gram, gram)
    np.testing.assert_array_equal(state.cross, cross)


def test_state_without_rows_solves_to_zero(small_config: EncoderConfig) -> None:
    assert not LabelState.empty(32, config=small_config).solve().any()


def test_removing_more_rows_than_held_is_refused(draw_clusters, small_config: EncoderConfig) -> None:
    rows, labels = draw_clusters(class_count=2, rows_per_class=3)
    with pytest.raises(TrainingDataError, match="cannot remove 6 rows from a state of 5"):
        _state(rows[:5], labels[:5], small_config).remove(rows, labels)


def test_removing_an_unknown_label_is_refused(draw_clusters, small_config: EncoderConfig) -> None:
    rows, labels = draw_clusters(class_count=2, rows_per_class=3)
    with pytest.raises(UnknownLabelError):
        _state(rows, labels, small_config).remove(rows[:1], [["never seen"]])


def test_removing_rows_that_were_never_added_is_noticed(draw_clusters, small_config: EncoderConfig) -> None:
    rows, labels = draw_clusters(class_count=2, rows_per_class=10)
    with pytest.raises(TrainingDataError, match="never been added"):
        _state(rows, labels, small_config).remove(-rows, labels).solve()


def test_rows_of_another_width_are_refused(draw_clusters, small_config: EncoderConfig) -> None:
    rows, labels = draw_clusters(class_count=2, rows_per_class=3)
    with pytest.raises(DimensionError) as caught:
        LabelState.empty(16, config=small_config).add(rows, labels)
    assert (caught.value.expected, caught.value.got) == (16, 32)


def test_rows_that_are_not_finite_are_refused(draw_clusters, small_config: EncoderConfig) -> None:
    rows, labels = draw_clusters(class_count=2, rows_per_class=3)
    rows[4, 7] = np.nan
    with pytest.raises(EmbeddingsError, match="finite"):
        _state(rows, labels, small_config)

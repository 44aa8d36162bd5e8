from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing.metrics import code_recall
from hashing.projection import (
    FIT_ROWS_LIMIT,
    Projection,
    _polar_factor,
    fit_itq,
    fit_rotation,
    random_orthonormal,
)

MARGIN = 1e-5


def _itq_loss(projection: Projection, rows: np.ndarray) -> float:
    values = projection.project(rows)
    return float(((np.sign(values) - values) ** 2).mean())


@pytest.mark.parametrize("code_bits", [64, 128, 256])
@pytest.mark.parametrize("row_count", [2, 20, 400])
def test_itq_weight_is_orthonormal_whatever_the_rows(code_bits: int, row_count: int) -> None:
    rows = np.random.default_rng(0).standard_normal((row_count, 128)).astype(np.float32)
    weight = fit_itq(rows, code_bits=code_bits, iterations=5, seed=0).weight
    gram = weight.T @ weight if code_bits <= 128 else weight @ weight.T
    np.testing.assert_allclose(gram, np.eye(min(code_bits, 128)), atol=1e-4)


def test_itq_alternation_lowers_the_quantisation_loss(draw_clusters) -> None:
    rows, _ = draw_clusters(class_count=40, rows_per_class=50, dim=64)
    losses = [
        _itq_loss(fit_itq(rows, code_bits=64, iterations=iterations, seed=0), rows)
        for iterations in (1, 3, 20)
    ]
    assert losses[0] > losses[1] > losses[2]


def test_itq_keeps_the_axes_of_largest_variance() -> None:
    rng = np.random.default_rng(0)
    scale = np.concatenate([np.full(64, 10.0), np.full(64, 0.1)])
    rows = (rng.standard_normal((2000, 128)) * scale).astype(np.float32)
    weight = fit_itq(rows, code_bits=64, iterations=5, seed=0).weight
    assert (weight[:64] ** 2).sum() > 0.99 * 64


def test_itq_finds_more_neighbours_than_random_rotation_at_few_bits() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((3000, 256)) / np.arange(1, 257) ** 0.5).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries, stored = rows[:200], rows[200:]
    recalls = [
        code_recall(
            projection.project(queries),
            projection.project(stored),
            queries=queries,
            rows=stored,
            truth_count=10,
            candidate_count=20,
        )
        for projection in (
            fit_itq(stored, code_bits=64, iterations=20, seed=0),
            fit_rotation(stored, code_bits=64, seed=0),
        )
    ]
    assert recalls[0] > recalls[1]


def test_project_centres_then_multiplies() -> None:
    rng = np.random.default_rng(0)
    projection = Projection(
        mean=rng.standard_normal(8).astype(np.float32), weight=rng.standard_normal((8, 64)).astype(np.float32)
    )
    rows = rng.standard_normal((5, 8)).astype(np.float32)
    expected = (rows.astype(np.float64) - projection.mean) @ projection.weight
    np.testing.assert_allclose(projection.project(rows), expected, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), row_count=st.integers(1, 70))
def test_row_alone_has_the_bits_it_has_in_a_batch(seed: int, row_count: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((row_count, 48)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    projection = fit_rotation(rows, code_bits=128, seed=seed)
    batch = projection.project(rows)
    alone = np.concatenate([projection.project(rows[row : row + 1]) for row in range(row_count)])
    decided = np.abs(batch) >= MARGIN
    np.testing.assert_array_equal((batch > 0)[decided], (alone > 0)[decided])


@pytest.mark.parametrize("fit", [partial(fit_itq, iterations=3), fit_rotation], ids=["itq", "rotation"])
def test_equal_seed_gives_equal_weight_and_another_seed_does_not(fit) -> None:
    rows = np.random.default_rng(0).standard_normal((300, 96)).astype(np.float32)
    first, again, other = (fit(rows, code_bits=64, seed=seed).weight for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_fit_reads_a_bounded_sample_of_many_rows() -> None:
    rows = np.zeros((FIT_ROWS_LIMIT * 3, 2), dtype=np.float16)
    rows[:, 0] = np.random.default_rng(0).random(rows.shape[0])
    read: list[int] = []

    class CountingRows(np.ndarray):
        def __getitem__(self, key):  # type: ignore[no-untyped-def]
            chosen = super().__getitem__(key)
            read.append(chosen.shape[0])
            return chosen.view(np.ndarray)

    fit_rotation(rows.view(CountingRows), code_bits=64, seed=0)
    assert read == [FIT_ROWS_LIMIT]


@pytest.mark.parametrize(("row_count", "column_count"), [(8, 3), (3, 8), (5, 5)])
def test_random_orthonormal_is_orthonormal_on_its_short_side(row_count: int, column_count: int) -> None:
    matrix = random_orthonormal(row_count, column_count, rng=np.random.default_rng(0))
    assert matrix.shape == (row_count, column_count)
    short = matrix.T @ matrix if row_count >= column_count else matrix @ matrix.T
    np.testing.assert_allclose(short, np.eye(min(row_count, column_count)), atol=1e-6)


def test_decomposition_that_lapack_gives_up_on_is_made_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(0).standard_normal((40, 6)) @ np.random.default_rng(1).standard_normal(
        (6, 40)
    )
    expected = _polar_factor(matrix, rng=np.random.default_rng(0)) @ matrix.T
    decompose, calls = np.linalg.svd, []

    def give_up_once(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == 1:
            raise np.linalg.LinAlgError("SVD did not converge")
        return decompose(*arguments, **settings)

    monkeypatch.setattr(np.linalg, "svd", give_up_once)
    factor = _polar_factor(matrix, rng=np.random.default_rng(0))
    np.testing.assert_allclose(factor @ factor.T, np.eye(40), atol=1e-5)
    np.testing.assert_allclose(factor @ matrix.T, expected, atol=1e-4)  # the same where the matrix decides

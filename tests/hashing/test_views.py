"""Several embeddings of one item side by side: their weights, and the maps of rows so weighted."""

import numpy as np
import pytest

from hashing import TrainingDataError
from hashing.deep.views import check_views, fold_scales, view_scales
from hashing.projection import Projection
from hashing.tower import Tower


def _clustered(count: int, dim: int, *, rng: np.random.Generator) -> np.ndarray:
    """Rows of which any half of the columns tells the neighbours: few hidden factors make them all."""
    return rng.standard_normal((count, 3)) @ rng.standard_normal((3, dim))


def test_noise_counts_less_than_what_has_structure() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([_clustered(300, 16, rng=rng), rng.standard_normal((300, 24))], axis=1)
    scales = view_scales(rows.astype(np.float32), view_dims=(16, 24), rng=rng)
    assert scales.shape == (40,)
    assert scales.dtype == np.float32
    assert np.ptp(scales[:16]) == np.ptp(scales[16:]) == 0
    assert scales[0] > 3 * scales[-1] > 0
    assert np.mean([scales[0] ** 2, scales[-1] ** 2]) == pytest.approx(1)


def test_views_alike_count_alike() -> None:
    rng = np.random.default_rng(1)
    rows = np.concatenate([_clustered(300, 16, rng=rng) for _ in range(3)], axis=1)
    scales = view_scales(rows.astype(np.float32), view_dims=(16, 16, 16), rng=rng)
    np.testing.assert_allclose(scales, 1, atol=0.1)


@pytest.mark.parametrize("view_dims", [(32,), (16, 15), (31, 1), (16, 16, 2), (0, 32), (-1, 33)], ids=str)
def test_views_that_do_not_make_up_the_row_are_refused(view_dims: tuple[int, ...]) -> None:
    with pytest.raises(TrainingDataError, match=r"do not make up 32|fewer than 2"):
        check_views(view_dims, dim=32)


def _maps() -> list[Projection | Tower]:
    def draw(*shape: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

    return [
        Projection(mean=draw(32, seed=0), weight=draw(32, 64, seed=1)),
        Tower(
            linear=draw(32, 64, seed=2),
            hidden=draw(32, 8, seed=3),
            hidden_bias=draw(8, seed=4),
            output=draw(8, 64, seed=5),
            offset=draw(64, seed=6),
        ),
    ]


@pytest.mark.parametrize("instance_map", _maps(), ids=lambda own: type(own).__name__)
def test_folded_map_does_on_rows_what_the_map_does_on_scaled_rows(instance_map: Projection | Tower) -> None:
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((500, 32)).astype(np.float32)
    scales = np.repeat(rng.uniform(0.1, 2, size=2), 16).astype(np.float32)
    expected = instance_map.project(rows * scales)
    folded = fold_scales(instance_map, scales)
    assert type(folded) is type(instance_map)
    values = folded.project(rows)
    np.testing.assert_allclose(values, expected, atol=1e-4)
    sure = np.abs(expected) > 1e-4
    np.testing.assert_array_equal(values[sure] > 0, expected[sure] > 0)

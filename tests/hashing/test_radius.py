import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing.projection import fit_itq, fit_rotation
from hashing.radius import GRID_COUNT, RadiusTable, calibrate_radius

LADDER = RadiusTable(radii=tuple(range(1, GRID_COUNT + 1)), code_bits=256)


@pytest.mark.parametrize(
    ("cosine_distance", "radius"),
    [
        (-1e-7, 1),
        (0.0, 1),
        (0.019, 1),
        (0.02, 1),
        (0.0201, 2),
        (0.3, 15),
        (0.305, 16),
        (0.999, 50),
        (1.0, 50),
        (1.0001, 256),
        (2.0, 256),
    ],
)
def test_radius_is_that_of_the_next_grid_value_above(cosine_distance: float, radius: int) -> None:
    assert LADDER.radius(cosine_distance) == radius


def test_every_grid_value_reads_its_own_radius() -> None:
    assert [LADDER.radius(0.02 * step) for step in range(1, GRID_COUNT + 1)] == list(LADDER.radii)


def test_radius_of_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        LADDER.radius(float("nan"))


@given(pair=st.tuples(st.floats(0, 2), st.floats(0, 2)))
def test_radius_never_falls_with_distance(pair: tuple[float, float]) -> None:
    assert LADDER.radius(min(pair)) <= LADDER.radius(max(pair))


def test_radii_hold_nearly_every_pair_of_other_rows(draw_clusters) -> None:
    rows, _ = draw_clusters(class_count=30, rows_per_class=100, dim=48, spread=0.6)
    fit_rows, calibration_rows, check_rows = rows[:1200], rows[1200:2200], rows[2200:]
    projection = fit_itq(fit_rows, code_bits=64, iterations=10, seed=0)
    table = calibrate_radius(projection, calibration_rows, seed=0)
    bits = projection.project(check_rows) > 0
    first, second = np.triu_indices(check_rows.shape[0], k=1)
    cosine_distances = 1 - np.einsum("pd,pd->p", check_rows[first], check_rows[second])
    hamming = np.count_nonzero(bits[first] != bits[second], axis=1)
    for low in np.arange(0.1, 1.0, 0.1):
        near = (cosine_distances > low) & (cosine_distances <= low + 0.1)
        allowed = np.array([table.radius(distance) for distance in cosine_distances[near]])
        assert np.mean(hamming[near] <= allowed) > 0.99


def test_radii_tell_near_from_far(draw_clusters) -> None:
    rows, _ = draw_clusters(class_count=30, rows_per_class=40, dim=48)
    table = calibrate_radius(fit_rotation(rows, code_bits=256, seed=0), rows, seed=0)
    assert table.radii[0] < 64 < table.radii[-1] < 256


def test_radii_do_not_fall(draw_clusters) -> None:
    rows, _ = draw_clusters(class_count=5, rows_per_class=10)
    table = calibrate_radius(fit_rotation(rows, code_bits=64, seed=0), rows, seed=0)
    assert list(table.radii) == sorted(table.radii)


@pytest.mark.parametrize("row_count", [1, 2])
def test_few_rows_are_calibrated_on_synthetic_pairs(draw_clusters, row_count: int) -> None:
    rows, _ = draw_clusters(class_count=2, rows_per_class=1)
    table = calibrate_radius(fit_rotation(rows, code_bits=64, seed=0), rows[:row_count], seed=0)
    assert table.radii[0] > 0

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing import radius
from hashing.projection import Projection, fit_itq, fit_rotation
from hashing.radius import (
    COVERAGE,
    GRID_COUNT,
    PREFIX_BITS,
    TOWER_STEPS,
    RadiusTable,
    _turned,
    _turned_affine,
    bit_counts,
    calibrate_radii,
    covering_radii,
)
from hashing.tower import Tower

LADDER = RadiusTable(
    {
        64: tuple(step // 2 for step in range(GRID_COUNT)),
        128: tuple(range(1, GRID_COUNT + 1)),
        256: tuple(range(101, GRID_COUNT + 101)),
    }
)


@pytest.mark.parametrize(
    ("cosine_distance", "radius"),
    [
        (-1e-7, 1),
        (0.0, 1),
        (0.009, 1),
        (0.01, 1),
        (0.0101, 2),
        (0.15, 15),
        (0.3, 30),
        (0.305, 31),
        (0.999, 100),
        (1.0, 100),
        (1.0001, 128),
        (2.0, 128),
    ],
)
def test_radii_are_those_of_the_next_grid_value_above(cosine_distance: float, radius: int) -> None:
    assert LADDER.radii(cosine_distance)[128] == radius


def test_every_grid_value_reads_its_own_radii() -> None:
    read = [LADDER.radii(0.01 * step) for step in range(1, GRID_COUNT + 1)]
    for count, column in LADDER.columns.items():
        assert tuple(radii[count] for radii in read) == column


def test_beyond_the_grid_nothing_is_excluded() -> None:
    assert LADDER.radii(1.01) == {64: 64, 128: 128, 256: 256}


def test_unlimited_radii_exclude_nothing() -> None:
    assert RadiusTable.unlimited(192).radii(0.01) == {64: 64, 128: 128, 192: 192}


def test_radii_of_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        LADDER.radii(float("nan"))


@given(pair=st.tuples(st.floats(0, 2), st.floats(0, 2)))
def test_radii_never_fall_with_distance(pair: tuple[float, float]) -> None:
    near, far = LADDER.radii(min(pair)), LADDER.radii(max(pair))
    assert all(near[count] <= far[count] for count in LADDER.columns)


@pytest.mark.parametrize(
    ("code_bits", "counts"), [(64, (64,)), (128, (64, 128)), (192, (64, 128, 192)), (256, (64, 128, 256))]
)
def test_only_prefixes_shorter_than_the_code_have_radii(code_bits: int, counts: tuple[int, ...]) -> None:
    assert bit_counts(code_bits) == counts


def test_prefixes_are_whole_words() -> None:
    assert all(count % 64 == 0 for count in PREFIX_BITS)


@given(
    row_count=st.integers(1, 5000),
    column_count=st.integers(1, 3),
    spread=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_covering_radii_hold_all_columns_at_once(
    row_count: int, column_count: int, spread: int, seed: int
) -> None:
    distances = np.random.default_rng(seed).integers(0, spread, size=(row_count, column_count))
    within = (distances <= covering_radii(distances)).all(axis=1)
    assert np.count_nonzero(~within) <= (1 - COVERAGE) * row_count + 1e-9


def test_covering_radii_of_few_pairs_are_the_maximum() -> None:
    assert covering_radii(np.array([[3, 9], [5, 7]])).tolist() == [5, 9]


def test_most_misses_go_to_the_shortest_prefix() -> None:
    ladder = np.arange(10_000)
    distances = np.stack([ladder, ladder[::-1]], axis=1)  # no pair is the worst of both
    assert covering_radii(distances).tolist() == [9999 - 7, 9999 - 3]


def test_radii_hold_nearly_every_pair_of_other_rows(draw_clusters) -> None:
    rows, _ = draw_clusters(class_count=30, rows_per_class=100, dim=48, spread=0.6)
    fit_rows, calibration_rows, check_rows = rows[:1200], rows[1200:2200], rows[2200:]
    projection = fit_itq(fit_rows, code_bits=192, iterations=10, seed=0)
    table = calibrate_radii(projection, calibration_rows, seed=0)
    bits = projection.project(check_rows) > 0
    first, second = np.triu_indices(check_rows.shape[0], k=1)
    cosine_distances = 1 - np.einsum("pd,pd->p", check_rows[first], check_rows[second])
    flipped = bits[first] != bits[second]
    hamming = np.stack([np.count_nonzero(flipped[:, :count], axis=1) for count in (64, 128, 192)], axis=1)
    for low in np.arange(0.1, 1.0, 0.1):
        near = (cosine_distances > low) & (cosine_distances <= low + 0.1)
        allowed = np.array([list(table.radii(distance).values()) for distance in cosine_distances[near]])
        assert np.mean((hamming[near] <= allowed).all(axis=1)) > 0.99


def test_radii_tell_near_from_far(draw_clusters) -> None:
    rows, _ = draw_clusters(class_count=30, rows_per_class=40, dim=48)
    table = calibrate_radii(fit_rotation(rows, code_bits=256, seed=0), rows, seed=0)
    assert table.columns[256][1] < 64 < table.columns[256][-1] < 256
    assert table.columns[64][1] < 20 < table.columns[64][-1] < 64


def test_radii_do_not_fall(draw_clusters) -> None:
    rows, _ = draw_clusters(class_count=5, rows_per_class=10)
    table = calibrate_radii(fit_rotation(rows, code_bits=128, seed=0), rows, seed=0)
    for column in table.columns.values():
        assert list(column) == sorted(column)


def test_same_rows_and_seed_give_the_same_radii(draw_clusters) -> None:
    rows, _ = draw_clusters(class_count=5, rows_per_class=10)
    projection = fit_rotation(rows, code_bits=128, seed=0)
    assert calibrate_radii(projection, rows, seed=3) == calibrate_radii(projection, rows, seed=3)


@pytest.mark.parametrize("row_count", [1, 2])
def test_few_rows_are_calibrated_on_synthetic_pairs(draw_clusters, row_count: int) -> None:
    rows, _ = draw_clusters(class_count=2, rows_per_class=1)
    table = calibrate_radii(fit_rotation(rows, code_bits=64, seed=0), rows[:row_count], seed=0)
    assert table.columns[64][0] > 0


def test_affine_map_is_turned_as_any_map_is(draw_clusters) -> None:
    rows, _ = draw_clusters(class_count=5, rows_per_class=10)
    projection = fit_rotation(rows, code_bits=64, seed=0)
    directions = rows[::-1].copy()
    for affine, general in zip(
        _turned_affine(projection, rows, directions), _turned(projection, rows, directions), strict=True
    ):
        assert np.mean(affine != general) < 1e-3


def test_tower_gets_the_radii_that_the_projection_it_equals_has_two_steps_on(draw_clusters) -> None:
    rows, _ = draw_clusters(class_count=10, rows_per_class=30)
    projection = fit_rotation(rows, code_bits=128, seed=0)
    origin = projection.project(np.zeros((1, 32), dtype=np.float32))
    nothing = np.zeros((32, 4), dtype=np.float32)
    tower = Tower(
        linear=projection.weight,
        hidden=nothing,
        hidden_bias=np.zeros(4, dtype=np.float32),
        output=np.zeros((4, 128), dtype=np.float32),
        offset=-origin[0],
    )
    expected = calibrate_radii(projection, rows, seed=0)
    table = calibrate_radii(tower, rows, seed=0)
    for count, column in table.columns.items():
        farther = [*expected.columns[count][TOWER_STEPS:], *expected.columns[count][-1:] * TOWER_STEPS]
        np.testing.assert_allclose(column, farther, atol=4)


@pytest.mark.parametrize("swapped", [False, True])
def test_radii_of_two_maps_hold_pairs_either_way(draw_clusters, *, swapped: bool) -> None:
    rows, _ = draw_clusters(class_count=30, rows_per_class=60, dim=48, spread=0.6)
    old = fit_itq(rows[:900], code_bits=128, iterations=10, seed=0)
    noise = np.random.default_rng(0).standard_normal(old.weight.shape, dtype=np.float32)
    new = Projection(mean=old.mean + np.float32(0.02), weight=old.weight + np.float32(0.05) * noise)
    queries, stored = (old, new) if swapped else (new, old)
    table = calibrate_radii(queries, rows[900:1500], seed=0, stored=stored)
    check = rows[1500:]
    cosine_distances = 1 - check @ check.T
    flipped = np.cumsum((queries.project(check) > 0)[:, None] != (stored.project(check) > 0)[None], axis=2)
    for distance in (1e-6, 0.1, 0.3, 0.6, 1.0):
        near = flipped[cosine_distances <= distance]
        within = [near[:, count - 1] <= limit for count, limit in table.radii(distance).items()]
        assert np.all(within, axis=0).mean() > 0.99
    alone = calibrate_radii(queries, rows[900:1500], seed=0)
    assert table.columns[128][0] > alone.columns[128][0]
    assert table == calibrate_radii(queries, rows[900:1500], seed=0, stored=stored)


def test_radii_of_two_maps_cover_the_row_itself(draw_clusters, monkeypatch) -> None:
    monkeypatch.setattr(radius, "SYNTHETIC_PAIRS", 1)
    rows, _ = draw_clusters(class_count=5, rows_per_class=60)
    old = fit_rotation(rows, code_bits=128, seed=0)
    noise = np.random.default_rng(0).standard_normal(old.weight.shape, dtype=np.float32)
    new = Projection(mean=old.mean, weight=old.weight + np.float32(0.1) * noise)
    flipped = np.count_nonzero((new.project(rows) > 0) != (old.project(rows) > 0), axis=1)
    assert calibrate_radii(new, rows, seed=0, stored=old).radii(0.0)[128] >= flipped.max()


def test_radii_of_two_maps_are_the_same_whichever_asks(draw_clusters) -> None:
    rows, _ = draw_clusters(class_count=5, rows_per_class=20)
    first, second = (fit_rotation(rows, code_bits=64, seed=seed) for seed in (0, 1))
    one = calibrate_radii(first, rows, seed=0, stored=second)
    other = calibrate_radii(second, rows, seed=0, stored=first)
    assert one == other


def test_stored_map_as_the_projection_has_the_radii_of_one_map(draw_clusters) -> None:
    rows, _ = draw_clusters(class_count=5, rows_per_class=20)
    projection = fit_rotation(rows, code_bits=64, seed=0)
    same = Projection(mean=projection.mean, weight=projection.weight)
    one = calibrate_radii(projection, rows, seed=0)
    two = calibrate_radii(projection, rows, seed=0, stored=same)
    np.testing.assert_allclose(two.columns[64], one.columns[64], atol=1)


@pytest.mark.parametrize(("dim", "code_bits"), [(16, 64), (32, 128)])
def test_stored_map_of_another_shape_is_refused(draw_clusters, dim: int, code_bits: int) -> None:
    rows, _ = draw_clusters(class_count=2, rows_per_class=10)
    projection = fit_rotation(rows, code_bits=64, seed=0)
    stored = fit_rotation(rows[:, :dim], code_bits=code_bits, seed=0)
    with pytest.raises(ValueError, match="stored codes of"):
        calibrate_radii(projection, rows, seed=0, stored=stored)

"""Thresholds of mapped queries: against their definition, and against brute force on made-up embedders."""

import numpy as np
import pytest

from hashing.embedder_map import fit_embedder_map
from hashing.errors import TrainingDataError
from hashing.mapped_threshold import (
    GRID,
    WRONG_SHARE,
    calibrate_thresholds,
    limits_of,
    thresholds_from,
)
from hashing.shares import share_bounds


def wrong_within(limit: float, mapped: np.ndarray, true: np.ndarray, threshold: float) -> int:
    """Queries that would be answered by a row farther than the threshold."""
    return sum(m <= limit and t > threshold for m, t in zip(mapped, true, strict=True))


@pytest.mark.parametrize("count", [150, 400, 1000])
def test_limit_is_the_largest_that_can_be_shown_to_be_safe(count: int) -> None:
    rng = np.random.default_rng(count)
    true = rng.uniform(0, 0.6, count)
    mapped = true + rng.uniform(0.1, 0.4, count)
    found = limits_of(mapped, true, shift=np.full(count, 2.0))  # no limit by angles
    assert found.query_count == count
    for threshold, limit in zip(GRID, found.limits, strict=True):
        assert share_bounds(wrong_within(limit, mapped, true, threshold), count)[1] <= WRONG_SHARE
        if limit < 2:
            more = wrong_within(limit + 2e-6, mapped, true, threshold)
            assert share_bounds(more, count)[1] > WRONG_SHARE
    assert list(found.limits) == sorted(found.limits)


def test_with_too_few_queries_no_distance_is_near_enough() -> None:
    # Without one wrong answer the upper end is 1 - .05^(1/n): over 2% up to 148 queries.
    for count, is_shown in ((148, False), (149, True)):
        far = np.full(count, 0.5)
        found = limits_of(far, far, shift=np.zeros(count))
        assert any(found.limits) is is_shown, count
        assert found.limit(0.3) == (pytest.approx(0.3) if is_shown else 0.0)


def test_limit_goes_no_farther_than_a_row_within_the_threshold_can_be() -> None:
    count, angle = 500, 0.3
    nothing_near = np.full(count, 1.5)
    found = limits_of(nothing_near, nothing_near, shift=np.full(count, 1 - np.cos(angle)))
    assert found.limit(0.1) == pytest.approx(1 - np.cos(angle + np.arccos(0.9)))


def test_threshold_between_points_takes_the_lower_one() -> None:
    limits = tuple(step / 50 for step in range(1, 101))
    kept = thresholds_from(limits, query_count=500)
    assert (kept.limit(0.1), kept.limit(0.1099), kept.limit(0.11)) == (limits[9], limits[9], limits[10])
    assert (kept.limit(0.0), kept.limit(0.0099), kept.limit(2.0)) == (0.0, 0.0, limits[-1])


@pytest.mark.parametrize("limits", [(0.1,) * 99, (0.1,) * 99 + (2.5,), (0.1,) * 99 + (float("nan"),)])
def test_limits_that_no_calibration_made_are_refused(limits: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="limits"):
        thresholds_from(limits, query_count=500)


def test_calibration_leaves_out_a_querys_own_row_and_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 12))
    old = (np.repeat(centres, 10, axis=0) + 0.3 * rng.standard_normal((600, 12))).astype(np.float32)
    old /= np.linalg.norm(old, axis=1, keepdims=True)
    turn = np.linalg.qr(rng.standard_normal((20, 12)))[0].T
    new = (old @ turn + 0.1 * rng.standard_normal((600, 20))).astype(np.float32)
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    held, kept = slice(0, 200), slice(200, None)
    fitted = fit_embedder_map(new[kept], old[kept], from_embedder="n", to_embedder="o")
    found = calibrate_thresholds(fitted, new[held], old[held], stored=old)

    mapped = fitted.apply(new[held])
    distances, truth = 1 - mapped @ old.T, 1 - old[held] @ old.T
    distances[np.arange(200), np.arange(200)] = 9.0
    nearest = distances.argmin(axis=1)
    rows = np.arange(200)
    expected = limits_of(
        distances[rows, nearest], truth[rows, nearest], shift=1 - np.einsum("qd,qd->q", mapped, old[held])
    )
    assert found.query_count == 200
    assert np.allclose(found.limits, expected.limits, atol=1e-6)
    assert 0 < found.limit(0.05) <= found.limit(0.2)


def test_calibration_without_pairs_or_rows_is_refused() -> None:
    rows = np.eye(4, dtype=np.float32)
    fitted = fit_embedder_map(rows, rows, from_embedder="n", to_embedder="o")
    for new, stored in ((rows[:0], rows), (rows, rows[:0])):
        with pytest.raises(TrainingDataError, match="to calibrate by"):
            calibrate_thresholds(fitted, new, new, stored=stored)

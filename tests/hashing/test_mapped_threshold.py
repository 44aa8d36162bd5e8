"""Thresholds of mapped queries: against their definition, and against brute force on made-up embedders."""

import numpy as np
import pytest
from numpy.typing import NDArray

from hashing.embedder_map import fit_embedder_map
from hashing.embeddings import unit_rows as unit
from hashing.errors import TrainingDataError
from hashing.mapped_threshold import (
    GRID,
    NO_ROW,
    WRONG_SHARE,
    calibrate_thresholds,
    limits_of,
    nearest_wrong_of,
    thresholds_from,
)
from hashing.shares import share_bounds

Rows = NDArray[np.floating]


def wrong_within(limit: float, mapped: Rows, true: Rows, threshold: float) -> int:
    """Queries of which any row is within the limit and farther than the threshold. mapped, true: [q, m]."""
    return int(((mapped <= limit) & (true > threshold)).any(axis=1).sum())


def nearest_wrong(mapped: Rows, true: Rows) -> Rows:
    """By the definition, a row and a threshold at a time."""
    return np.array(
        [
            [
                min((m for m, t in zip(*own, strict=True) if t > threshold), default=NO_ROW)
                for threshold in GRID
            ]
            for own in zip(mapped, true, strict=True)
        ]
    )


@pytest.mark.parametrize("count", [150, 400, 1000])
def test_limit_is_the_largest_that_can_be_shown_to_be_safe(count: int) -> None:
    rng = np.random.default_rng(count)
    true = rng.uniform(0, 0.6, (count, 3))
    mapped = true + rng.uniform(0.1, 0.4, (count, 3))
    found = limits_of(nearest_wrong(mapped, true), shift=np.full(count, 2.0))  # no limit by angles
    assert found.query_count == count
    for threshold, limit in zip(GRID, found.limits, strict=True):
        assert share_bounds(wrong_within(limit, mapped, true, threshold), count)[1] <= WRONG_SHARE
        if limit < 2:
            more = wrong_within(limit + 2e-6, mapped, true, threshold)
            assert share_bounds(more, count)[1] > WRONG_SHARE
    assert list(found.limits) == sorted(found.limits)


def test_nearest_wrong_row_is_that_of_the_definition_however_the_rows_are_parted() -> None:
    rng = np.random.default_rng(2)
    true = rng.choice([0.0, 0.004, 0.01, 0.15, 0.3, 0.7, 1.0, 1.3], (20, 60))
    mapped = true + rng.uniform(-0.3, 0.3, true.shape)
    expected = nearest_wrong(mapped, true)
    for size in (60, 7, 1):
        known = np.full((20, len(GRID)), NO_ROW)
        for start in range(0, 60, size):
            part = slice(start, start + size)
            known = nearest_wrong_of(mapped[:, part], true[:, part], known=known)
        assert np.array_equal(known, expected)


def test_with_too_few_queries_no_distance_is_near_enough() -> None:
    # Without one wrong answer the upper end is 1 - .05^(1/n): over 2% up to 148 queries.
    for count, is_shown in ((148, False), (149, True)):
        far = np.full((count, 1), 0.5)
        found = limits_of(nearest_wrong(far, far), shift=np.zeros(count))
        assert any(found.limits) is is_shown, count
        assert found.limit(0.3) == (pytest.approx(0.3) if is_shown else 0.0)


def test_limit_goes_no_farther_than_a_row_within_the_threshold_can_be() -> None:
    count, angle = 500, 0.3
    nothing_near = np.full((count, len(GRID)), NO_ROW)
    found = limits_of(nothing_near, shift=np.full(count, 1 - np.cos(angle)))
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


def test_calibration_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 12))
    old = (np.repeat(centres, 10, axis=0) + 0.3 * rng.standard_normal((600, 12))).astype(np.float32)
    old /= np.linalg.norm(old, axis=1, keepdims=True)
    turn = np.linalg.qr(rng.standard_normal((20, 12)))[0].T
    new = (old @ turn + 0.1 * rng.standard_normal((600, 20))).astype(np.float32)
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    held, kept = slice(0, 200), slice(200, None)
    fitted = fit_embedder_map(new[kept], old[kept], from_embedder="n", to_embedder="o")
    parts = (old[:1], old[1:450], old[450:])
    found = calibrate_thresholds(fitted, new[held], old[held], stored=iter(parts))

    mapped = fitted.apply(new[held])
    distances, truth = 1 - mapped @ old.T, 1 - old[held] @ old.T
    expected = limits_of(nearest_wrong(distances, truth), shift=1 - np.einsum("qd,qd->q", mapped, old[held]))
    assert found.query_count == 200
    assert np.allclose(found.limits, expected.limits, atol=1e-6)
    assert 0 < found.limit(0.05) <= found.limit(0.2)


def test_rows_of_one_part_hide_no_wrong_row_of_another() -> None:
    """Texts in clusters in one part of the rows, a paraphrase of each in another: who asks the first part
    alone is answered by a neighbour of the cluster no more often than was promised."""
    rng = np.random.default_rng(4)
    centres = np.repeat(rng.standard_normal((90, 24)), 8, axis=0)
    here = unit(unit(centres) + 0.12 * rng.standard_normal((720, 24)))
    there = unit(here + 0.03 * rng.standard_normal((720, 24)))
    turn = np.linalg.qr(rng.standard_normal((40, 24)))[0].T
    new = unit(here @ turn + 0.04 * rng.standard_normal((720, 40)))
    held, kept = slice(0, 250), slice(250, None)
    fitted = fit_embedder_map(new[kept], here[kept], from_embedder="n", to_embedder="o")
    found = calibrate_thresholds(fitted, new[held], here[held], stored=[here, there])
    limit = found.limit(0.15)
    assert limit > 0
    mapped, true = 1 - fitted.apply(new[held]) @ here.T, 1 - here[held] @ here.T
    mapped[np.arange(250), np.arange(250)] = 9.0  # it is not stored there
    nearest = mapped.argmin(axis=1)
    answered = mapped.min(axis=1) <= limit
    wrong = answered & (true[np.arange(250), nearest] > 0.15)
    assert wrong.mean() <= WRONG_SHARE


def test_calibration_without_pairs_or_rows_is_refused() -> None:
    rows = np.eye(4, dtype=np.float32)
    fitted = fit_embedder_map(rows, rows, from_embedder="n", to_embedder="o")
    for new, stored in ((rows[:0], [rows]), (rows, [rows[:0]]), (rows, [])):
        with pytest.raises(TrainingDataError, match="to calibrate by"):
            calibrate_thresholds(fitted, new, new, stored=stored)

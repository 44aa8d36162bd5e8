"""What best distances of lookups are like while nothing has moved: the tables that a ShiftMonitor reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashing.errors import ConfigError, EmbeddingsError, ShiftStateError, TrainingDataError

BLOCK = 50
"""Queries between two checks of the window; also the batch in which false alarms are counted."""
WINDOW_BLOCKS = 4
WINDOW = BLOCK * WINDOW_BLOCKS
MIXTURE_SHARE = 0.3
"""Share of moved queries that the mixture tests expect; they find others too, only later."""
LEAST_ROWS = 200
LEAST_ALARMS = 1e-12
"""Of `alarms_per_block`: a normal quantile nearer to 1 has no float64."""
DISTANCE_DIGITS = 6
"""Decimals of a distance that are read: an exact repeat has 0 or, computed in another way, -1e-8."""

# Where moved queries lie (the power of `_fit_mixture`), the part of the false alarms that the test may raise,
# and by how many standard errors the reference may be off. A category that is known better than it was loses
# nothing, so that is to be surer.
_FARTHER_POWER, _FARTHER_BUDGET, _FARTHER_ERRORS = 8.0, 0.5, 2.0
_CLOSER_POWER, _CLOSER_BUDGET, _CLOSER_ERRORS = 4.0, 0.25, 3.5
_WINDOW_BUDGET, _WINDOW_ERRORS = 0.25, 2.5
NATS_PER_STEP = 1 / 32
DEVIATIONS_PER_STEP = 1 / 1024
_QUANTILES = np.concatenate([np.arange(1, 40) / 40, [0.01, 0.96, 0.97, 0.98, 0.985, 0.99]])

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ShiftReference:
    """What best distances are like while nothing has moved, as tables by bin of distance.

    edges: float64 [k], rising; bin i is edges[i - 1] <= distance < edges[i]. probabilities: float64 [k + 1].
    farther, closer: int64 [k + 1], log-likelihood ratio of the mixture in 1/32 nat; an alarm at its limit.
    normal_scores: int64 [k + 1] in 1/1024 deviation; an alarm where WINDOW of them add up to the limit.
    row_count: distances measured. run_length: queries that are thought to come together.
    """

    edges: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    farther: Counts
    closer: Counts
    normal_scores: Counts
    farther_limit: int
    closer_limit: int
    window_limit: int
    row_count: int
    run_length: int

    def __post_init__(self) -> None:
        for array in (self.edges, self.probabilities, self.farther, self.closer, self.normal_scores):
            array.setflags(write=False)

    def to_numbers(self) -> dict[str, Any]:
        """Return every field as a number or a list of numbers, ready for JSON."""
        return {
            name: getattr(self, name).tolist() if name in _ARRAY_FIELDS else getattr(self, name)
            for name in self.__dataclass_fields__
        }


_ARRAY_FIELDS = {
    "edges": np.float64,
    "probabilities": np.float64,
    "farther": np.int64,
    "closer": np.int64,
    "normal_scores": np.int64,
}


def reference_from_numbers(numbers: Mapping[str, Any]) -> ShiftReference:
    """Return the reference whose `to_numbers` this is. Raises: ShiftStateError."""
    if set(numbers) != set(ShiftReference.__dataclass_fields__):
        raise ShiftStateError(f"a reference has other fields than {sorted(numbers)}")
    try:
        arrays = {name: np.asarray(numbers[name], dtype=kind) for name, kind in _ARRAY_FIELDS.items()}
        rest = {name: int(numbers[name]) for name in numbers if name not in _ARRAY_FIELDS}
    except (TypeError, ValueError, OverflowError) as error:
        raise ShiftStateError(f"no number where a reference has one: {error}") from error
    bin_count = arrays["probabilities"].size
    if any(arrays[name].shape != (bin_count - (name == "edges"),) for name in arrays):
        raise ShiftStateError("the tables of a reference have different lengths")
    if not np.isfinite(arrays["edges"]).all() or (np.diff(arrays["edges"]) <= 0).any():
        raise ShiftStateError("the edges of a reference do not rise")
    return ShiftReference(**arrays, **rest)  # type: ignore[arg-type]  # by name, as the dataclass has them


def fit_shift_reference(
    best_distances: NDArray[np.floating],
    *,
    alarms_per_block: float = 1e-4,
    run_length: int = 1,
) -> ShiftReference:
    """Measure what best distances are like over queries of a period known to be good.

    best_distances: float [n], n >= LEAST_ROWS, of queries, not of stored rows: the nearest entry of a stored
    row is itself, and rows held out of what is stored lie closer than live queries do.
    alarms_per_block: false alarms a BLOCK of queries, for all tests together, from LEAST_ALARMS on. The
    reference may be off by 2 standard errors or more towards a shift before there are more; so few distances
    make alarms late, not frequent.
    run_length: up to BLOCK; with a bound m on how many queries that depend on each other come in a row, the
    alarms stay as few and take up to m times as long.
    Raises: EmbeddingsError for distances that are not finite [n]; TrainingDataError for too few of them, or
    equal ones; ConfigError for a setting out of its range.
    """
    distances = checked_distances(best_distances)
    if not LEAST_ALARMS <= alarms_per_block < 1:
        raise ConfigError("alarms_per_block", alarms_per_block, f"from {LEAST_ALARMS} to below 1")
    if not 1 <= run_length <= BLOCK:
        raise ConfigError("run_length", run_length, f"from 1 to {BLOCK}")
    if distances.size < LEAST_ROWS:
        raise TrainingDataError(f"a shift reference needs {LEAST_ROWS} distances, got {distances.size}")
    edges = np.unique(np.quantile(distances, _QUANTILES))
    if edges.size < 2:
        raise TrainingDataError("nearly all best distances are equal: no shift can be seen in them")
    # Half a row more in each bin: none is impossible.
    counts = np.bincount(np.searchsorted(edges, distances, side="right"), minlength=edges.size + 1) + 0.5
    probabilities = counts / counts.sum()
    rate = alarms_per_block / BLOCK * run_length  # of runs, in place of queries
    root = math.sqrt(distances.size)
    farther, farther_limit = _fit_mixture(
        probabilities, power=_FARTHER_POWER, error=_FARTHER_ERRORS / root, rate=rate * _FARTHER_BUDGET
    )
    closer, closer_limit = _fit_mixture(
        probabilities[::-1], power=_CLOSER_POWER, error=_CLOSER_ERRORS / root, rate=rate * _CLOSER_BUDGET
    )
    # The bound for runs: a sum of run_length scores is at most run_length times as uncertain as one of them.
    deviations = NormalDist().inv_cdf(1 - alarms_per_block * _WINDOW_BUDGET / 2)
    limit = deviations * math.sqrt(WINDOW * run_length) + _WINDOW_ERRORS * WINDOW / root
    return ShiftReference(
        edges=edges,
        probabilities=probabilities,
        farther=farther,
        closer=np.ascontiguousarray(closer[::-1]),
        normal_scores=_normal_scores(probabilities),
        farther_limit=farther_limit * run_length,
        closer_limit=closer_limit * run_length,
        window_limit=math.ceil(limit / DEVIATIONS_PER_STEP),
        row_count=distances.size,
        run_length=run_length,
    )


def checked_distances(best_distances: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return finite distances [n] as float64, none below 0, to DISTANCE_DIGITS. Raises: EmbeddingsError."""
    distances = np.asarray(best_distances, dtype=np.float64)
    if distances.ndim != 1:
        raise EmbeddingsError(f"best distances must have shape [n], got {list(distances.shape)}")
    if not np.isfinite(distances).all():
        raise EmbeddingsError("best distances must be finite: leave out queries that found no entry")
    return np.maximum(distances, 0.0).round(DISTANCE_DIGITS)


def _fit_mixture(
    probabilities: NDArray[np.float64], *, power: float, error: float, rate: float
) -> tuple[Counts, int]:
    """Return scores by bin and the limit of their CUSUM, for queries that move to the last bins.

    A moved query's quantile u has the density power * u^(power - 1): about what a left-out domain gives, with
    a power below the measured 16, which is at home where the queries move less. What is tested against is not
    the reference but one that is nearer to the alternative by `error` deviations of the likelihood ratio: the
    worst that its size admits.
    """
    quantiles = np.minimum(np.concatenate([[0.0], np.cumsum(probabilities)]), 1.0)
    moved = (quantiles[1:] ** power - quantiles[:-1] ** power) / probabilities  # likelihood ratio, by bin
    variance = float((probabilities * moved**2).sum()) - 1
    nearer = min(error / math.sqrt(variance), MIXTURE_SHARE / 2)
    null = probabilities * (1 + nearer * (moved - 1))
    mixture = probabilities * (1 + MIXTURE_SHARE * (moved - 1))
    scores = _rounded_scores(np.log(mixture / null) / NATS_PER_STEP, null)
    return scores, _cusum_limit(scores, null, rate=rate)


def _rounded_scores(scores: NDArray[np.float64], probabilities: NDArray[np.float64]) -> Counts:
    """Return log-likelihood ratios as whole steps, lowered until rounding makes their evidence no stronger.

    A likelihood ratio is 1 in the mean of what it is tested against; rounded to more than that, where one bin
    holds most queries, scores drift upwards and no limit that is searched keeps alarms few.
    """
    for lowered in np.linspace(0, 0.5, 11):
        rounded = np.rint(scores - lowered)
        if (probabilities * np.exp(rounded * NATS_PER_STEP)).sum() <= 1:
            break
    steps: Counts = rounded.astype(np.int64)
    return steps


def _cusum_limit(scores: Counts, probabilities: NDArray[np.float64], *, rate: float) -> int:
    """Return the least limit that a CUSUM of such scores reaches once in 1 / rate steps or less often."""
    low, high = 1, math.ceil((1 - math.log(rate)) / NATS_PER_STEP)  # Lorden 1971: -log(rate) is enough
    if scores.max() <= 0:
        return high  # no query is evidence: it is never reached
    while high - low > 1:
        middle = (low + high) // 2
        if _steps_to_limit(scores, probabilities, limit=middle) * rate < 1:
            low = middle
        else:
            high = middle
    return high


def _steps_to_limit(scores: Counts, probabilities: NDArray[np.float64], *, limit: int) -> float:
    """Return the mean steps from 0 to the limit: Brook & Evans' Markov chain, whose states are exact here."""
    chain = np.eye(limit)
    states = np.arange(limit)
    for score in np.unique(scores):
        after = np.maximum(states + score, 0)
        stays = after < limit
        chain[states[stays], after[stays]] -= probabilities[scores == score].sum()
    return float(np.linalg.solve(chain, np.ones(limit))[0])


def _normal_scores(probabilities: NDArray[np.float64]) -> Counts:
    """Return by bin the normal deviate of its middle quantile, of mean 0 and deviation 1."""
    upper = np.cumsum(probabilities)
    middle = np.clip(upper - probabilities / 2, 1e-9, 1 - 1e-9)
    deviates = np.array([NormalDist().inv_cdf(quantile) for quantile in middle.tolist()])
    deviates -= (probabilities * deviates).sum()
    deviates /= math.sqrt((probabilities * deviates**2).sum())
    return np.rint(deviates / DEVIATIONS_PER_STEP).astype(np.int64)

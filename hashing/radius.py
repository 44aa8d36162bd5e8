"""The Hamming radius that a cosine distance needs, measured on pairs of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashing.embeddings import sample_rows, unit_rows
from hashing.metrics import top_columns
from hashing.projection import Projection

GRID_STEP = 0.02
GRID_COUNT = 50
COVERAGE = 0.999
"""Share of the pairs of a bin whose codes lie within its radius."""

QUERY_ROWS_LIMIT = 4000
POOL_ROWS_LIMIT = 20_000
NEIGHBOURS = 8
RANDOM_PARTNERS = 8
SYNTHETIC_ROWS = 1000
QUERY_CHUNK = 256


@dataclass(frozen=True, slots=True)
class RadiusTable:
    """Hamming radius in bits for each cosine distance of the grid 0.02, 0.04, ... 1.0.

    radii: non-decreasing, GRID_COUNT values in 0..code_bits. The radius of a grid value holds at least
    COVERAGE of the calibration pairs of every bin up to it. It is an estimate for pairs like those,
    not a bound for every pair.
    """

    radii: tuple[int, ...]
    code_bits: int

    def radius(self, cosine_distance: float) -> int:
        """Return the radius in bits of the next grid value at or above `cosine_distance`.

        Beyond 1.0 nothing was calibrated and every code must be searched: `code_bits`. A distance
        below 0, which rounding can cause, counts as 0.
        Raises: ValueError for NaN.
        """
        if math.isnan(cosine_distance):
            raise ValueError("cosine_distance is NaN")
        if cosine_distance > 1.0:
            return self.code_bits
        return self.radii[_bin(cosine_distance)]


def calibrate_radius(projection: Projection, embeddings: NDArray[np.floating], *, seed: int) -> RadiusTable:
    """Measure code distances of pairs in each bin of cosine distance.

    embeddings: float [n, dim], n >= 1; rows that the projection was not fitted on, or the radii come
    out too small. Up to QUERY_ROWS_LIMIT sampled rows are paired with their NEIGHBOURS exact nearest
    neighbours and RANDOM_PARTNERS random rows among up to POOL_ROWS_LIMIT. So that no bin is empty,
    each grid value also gets SYNTHETIC_ROWS pairs at exactly that distance: a row and the row turned
    toward the difference of two others, which spreads like real neighbours do (isotropic noise would
    flip fewer bits). A bin's radius is the larger of both kinds' COVERAGE quantile, which is the
    maximum for fewer than 1 / (1 - COVERAGE) pairs; then the running maximum is taken.
    """
    rng = np.random.default_rng(seed)
    pool = unit_rows(sample_rows(embeddings, limit=POOL_ROWS_LIMIT, rng=rng))
    bits = projection.project(pool) > 0
    radii = np.maximum(_real_radii(pool, bits, rng=rng), _synthetic_radii(projection, pool, rng=rng))
    running = np.maximum.accumulate(radii)
    return RadiusTable(radii=tuple(int(radius) for radius in running), code_bits=projection.code_bits)


def _real_radii(
    pool: NDArray[np.float32], bits: NDArray[np.bool_], *, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Return the quantile of each bin over pairs of rows, [GRID_COUNT]; 0 for an empty bin."""
    radii = np.zeros(GRID_COUNT, dtype=np.intp)
    if pool.shape[0] < 2:
        return radii
    queries = rng.permutation(pool.shape[0])[:QUERY_ROWS_LIMIT]
    partners = _partners(pool, queries, rng=rng)  # [q, NEIGHBOURS + RANDOM_PARTNERS]
    cosine_distances, hamming_distances = [], []
    for column in partners.T:
        cosine_distances.append(1 - np.einsum("qd,qd->q", pool[queries], pool[column]))
        hamming_distances.append(np.count_nonzero(bits[queries] != bits[column], axis=1))
    cosine = np.concatenate(cosine_distances)
    hamming = np.concatenate(hamming_distances)
    bins = np.clip(np.ceil(cosine / GRID_STEP - 1e-6).astype(np.intp) - 1, 0, None)
    for index in range(GRID_COUNT):
        in_bin = hamming[bins == index]
        if in_bin.size:
            radii[index] = _coverage_quantile(in_bin)
    return radii


def _partners(
    pool: NDArray[np.float32], queries: NDArray[np.intp], *, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Return neighbours and random partners of the queries, row indices into pool, [q, k]."""
    nearest = []
    for start in range(0, queries.size, QUERY_CHUNK):
        chunk = queries[start : start + QUERY_CHUNK]
        cosines = pool[chunk] @ pool.T  # [chunk, n]
        cosines[np.arange(chunk.size), chunk] = -np.inf
        nearest.append(top_columns(cosines, count=min(NEIGHBOURS, pool.shape[0] - 1)))
    shifts = rng.integers(1, pool.shape[0], size=(queries.size, RANDOM_PARTNERS))
    random = (queries[:, None] + shifts) % pool.shape[0]  # never the row itself
    return np.concatenate([np.concatenate(nearest), random], axis=1)


def _synthetic_radii(
    projection: Projection, pool: NDArray[np.float32], *, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Return the quantile over synthetic pairs at each grid value, [GRID_COUNT]."""
    radii = np.zeros(GRID_COUNT, dtype=np.intp)
    for index in range(GRID_COUNT):
        rows, first, second = rng.integers(0, pool.shape[0], size=(3, SYNTHETIC_ROWS))
        turned = _turned(pool[rows], pool[first] - pool[second], GRID_STEP * (index + 1), rng=rng)
        flipped = (projection.project(pool[rows]) > 0) != (projection.project(turned) > 0)
        radii[index] = _coverage_quantile(np.count_nonzero(flipped, axis=1))
    return radii


def _turned(
    rows: NDArray[np.float32],
    directions: NDArray[np.float32],
    cosine_distance: float,
    *,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Turn unit rows toward `directions` by the angle of `cosine_distance`; float32 [n, dim]."""
    # A trace of noise keeps the direction defined where two rows are equal or parallel to the row.
    noise = rng.standard_normal(rows.shape, dtype=np.float32)
    directions = directions + noise * np.float32(1e-3 / math.sqrt(rows.shape[1]))
    directions = directions - np.einsum("nd,nd->n", directions, rows)[:, None] * rows
    cosine = 1 - cosine_distance
    sine = math.sqrt(max(0.0, 1 - cosine**2))
    turned: NDArray[np.float32] = np.float32(cosine) * rows + np.float32(sine) * unit_rows(directions)
    return turned


def _coverage_quantile(hamming_distances: NDArray[np.intp]) -> int:
    return int(np.quantile(hamming_distances, COVERAGE, method="higher"))


def _bin(cosine_distance: float) -> int:
    """Return the index of the smallest grid value at or above a distance of at most 1.0."""
    return max(0, math.ceil(cosine_distance / GRID_STEP - 1e-6) - 1)

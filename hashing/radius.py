"""The Hamming radii that a cosine distance needs, measured on pairs of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from hashing.embeddings import sample_rows, unit_rows
from hashing.metrics import top_columns
from hashing.projection import Projection
from hashing.tower import InstanceMap

PREFIX_BITS = (64, 128)
"""Counts of leading bits that get radii of their own, where the code is longer."""

GRID_STEP = 0.01
GRID_COUNT = 100
COVERAGE = 0.999
"""Share of the pairs of a bin whose codes lie within all of its radii at once."""

MISS_FRACTION = 0.3
"""Part of the misses left to a count of leading bits that all longer counts together may cause.

Most misses go to the shortest: a bit less in its radius saves a scan the most, while the radius of the
whole code only decides how many rows are reranked.
"""

QUERY_ROWS_LIMIT = 4000
POOL_ROWS_LIMIT = 20_000
NEIGHBOURS = 8
RANDOM_PARTNERS = 8
SYNTHETIC_PAIRS = 16_000
TOWER_SYNTHETIC_PAIRS = 4000
"""The same for a tower, which must map each pair at each distance: 400,000 products in all."""

TOWER_STEPS = 2
"""Grid steps by which a tower's radii are those of a larger distance."""

CHUNK_ROWS = 256
"""Rows at a time: queries of the neighbour search; synthetic pairs, whose values then stay in cache."""

Sides = tuple[InstanceMap, InstanceMap]
"""The maps of the first and of the second row of a pair."""


@dataclass(frozen=True, slots=True)
class RadiusTable:
    """Hamming radii in bits for each cosine distance of the grid 0.01, 0.02, ... 1.0.

    columns: count of leading bits -> GRID_COUNT non-decreasing radii in 0..count; the counts are
    `bit_counts(code_bits)`. At least COVERAGE of the calibration pairs of every bin are within the radii of
    all counts at once. They are an estimate for pairs like those, not a bound for every pair.
    """

    columns: Mapping[int, tuple[int, ...]]

    def __post_init__(self) -> None:
        assert tuple(self.columns) == bit_counts(self.code_bits), "a column for each count of leading bits"
        object.__setattr__(self, "columns", MappingProxyType(dict(self.columns)))

    @classmethod
    def unlimited(cls, code_bits: int) -> RadiusTable:
        """Return the table that excludes no code, for a projection that nothing was measured on."""
        return cls({count: (count,) * GRID_COUNT for count in bit_counts(code_bits)})

    @classmethod
    def largest(cls, tables: Sequence[RadiusTable]) -> RadiusTable:
        """Return the table of each largest radius: what holds for every modality that was measured."""
        columns = {}
        for count in tables[0].columns:
            own = np.array([table.columns[count] for table in tables])  # [tables, GRID_COUNT]
            columns[count] = tuple(own.max(axis=0).tolist())
        return cls(columns)

    @property
    def code_bits(self) -> int:
        return max(self.columns)

    def radii(self, cosine_distance: float) -> dict[int, int]:
        """Return the radii in bits of the next grid value at or above `cosine_distance`, by leading bits.

        Beyond 1.0 nothing was calibrated and every code must be searched: each radius is its count. A
        distance below 0, which rounding can cause, counts as 0.
        Raises: ValueError for NaN.
        """
        if math.isnan(cosine_distance):
            raise ValueError("cosine_distance is NaN")
        if cosine_distance > 1.0:
            return {count: count for count in self.columns}
        index = max(0, math.ceil(cosine_distance / GRID_STEP - 1e-6) - 1)
        return {count: column[index] for count, column in self.columns.items()}


def bit_counts(code_bits: int) -> tuple[int, ...]:
    """Return the counts of leading bits that have radii, ascending, the whole code last."""
    return (*(count for count in PREFIX_BITS if count < code_bits), code_bits)


def calibrate_radii(
    projection: InstanceMap,
    embeddings: NDArray[np.floating],
    *,
    seed: int,
    stored: InstanceMap | None = None,
) -> RadiusTable:
    """Measure code distances of pairs in each bin of cosine distance.

    embeddings: float [n, dim], n >= 1; rows that the projection was not fitted on, or the radii come
    out too small. Up to QUERY_ROWS_LIMIT sampled rows are paired with their NEIGHBOURS exact nearest
    neighbours and RANDOM_PARTNERS random rows among up to POOL_ROWS_LIMIT. So that no bin is empty,
    each grid value also gets SYNTHETIC_PAIRS pairs at exactly that distance: a row and the row turned
    toward the difference of two others, which spreads like real neighbours do (isotropic noise would
    flip fewer bits). A bin's radii are the larger of both kinds' `covering_radii`, which are the maximum
    for fewer than 1 / (1 - COVERAGE) pairs; then the running maximum is taken.

    stored: the map that made the stored codes, where it is not that of the queries. Each pair then counts
    twice, with either row as the query, and each sampled row also as a pair with itself, whose two codes
    differ.

    The radii follow the projection and the distance more than the rows. Measured with all pairs within
    .05 ... .3 of 40,732 questions, encoders of 128, 256 and 384 bits trained on other questions hold 99.97%
    or more, and as many of 23,700 intents, which none of them has seen; 256-bit encoders trained on 100
    to 499 rows of either kind hold 99.93% or more of both. A tower trained on pairs puts far apart what is
    near and was labelled different, more than calibration pairs show: its radii, which held 99.64% or more of
    all pairs within .05 ... .3 of 16,405 other questions, are therefore those of TOWER_STEPS more steps of
    distance, which hold 99.96%.
    Raises: ValueError for a stored map of another width or dimension.
    """
    sides = [(projection, projection)]
    if stored is not None:
        if (stored.dim, stored.code_bits) != (projection.dim, projection.code_bits):
            raise ValueError(
                f"stored codes of {stored.dim} dimensions and {stored.code_bits} bits, queries of"
                f" {projection.dim} and {projection.code_bits}"
            )
        sides = [(projection, stored), (stored, projection)]
    rng = np.random.default_rng(seed)
    pool = unit_rows(sample_rows(embeddings, limit=POOL_ROWS_LIMIT, rng=rng))
    radii = np.maximum(
        _real_radii(sides, pool, rng=rng), _synthetic_radii(sides, pool, rng=rng)
    )  # [GRID_COUNT, counts]
    running = np.maximum.accumulate(radii, axis=0)
    if not all(isinstance(own, Projection) for own in sides[0]):
        running = np.concatenate([running[TOWER_STEPS:], np.repeat(running[-1:], TOWER_STEPS, axis=0)])
    counts = bit_counts(projection.code_bits)
    return RadiusTable({count: tuple(running[:, i].tolist()) for i, count in enumerate(counts)})


def covering_radii(hamming_distances: NDArray[np.integer]) -> NDArray[np.intp]:
    """Choose radii that at least COVERAGE of the pairs are within, in all columns at once.

    hamming_distances: integers [n, counts], n >= 1, of the leading bits of each pair, ascending counts.
    The longest count is settled first; each shorter one gets the misses that are then left, of which
    MISS_FRACTION was the most that the longer ones could take. Returns intp [counts].
    """
    row_count, column_count = hamming_distances.shape
    radii = np.zeros(column_count, dtype=np.intp)
    within = np.ones(row_count, dtype=bool)
    for column in reversed(range(column_count)):
        most_missed = math.floor((1 - COVERAGE) * MISS_FRACTION**column * row_count + 1e-9)
        left = np.sort(hamming_distances[within, column])
        missed = row_count - left.size
        radii[column] = left[left.size - 1 - (most_missed - missed)]
        within &= hamming_distances[:, column] <= radii[column]
    return radii


def _real_radii(
    sides: Sequence[Sides], pool: NDArray[np.float32], *, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Return the radii of each bin over pairs of rows, [GRID_COUNT, counts]; 0 for an empty bin."""
    counts = bit_counts(sides[0][0].code_bits)
    radii = np.zeros((GRID_COUNT, len(counts)), dtype=np.intp)
    if pool.shape[0] < 2:
        return radii
    words = {id(own): code_words(own.project(pool) > 0) for own in sides[0]}
    queries = rng.permutation(pool.shape[0])[:QUERY_ROWS_LIMIT]
    partners = _partners(pool, queries, rng=rng)  # [q, NEIGHBOURS + RANDOM_PARTNERS]
    if len(words) > 1:
        partners = np.column_stack([partners, queries])
    cosine_distances, hamming_distances = [], []
    for column in partners.T:
        cosines = np.einsum("qd,qd->q", pool[queries], pool[column])
        for first, second in sides:
            cosine_distances.append(1 - cosines)
            hamming_distances.append(
                leading_distances(words[id(first)][queries], words[id(second)][column], counts=counts)
            )
    cosine = np.concatenate(cosine_distances)
    hamming = np.concatenate(hamming_distances)
    bins = np.clip(np.ceil(cosine / GRID_STEP - 1e-6).astype(np.intp) - 1, 0, None)
    for index in range(GRID_COUNT):
        in_bin = hamming[bins == index]
        if in_bin.size:
            radii[index] = covering_radii(in_bin)
    return radii


def _partners(
    pool: NDArray[np.float32], queries: NDArray[np.intp], *, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Return neighbours and random partners of the queries, row indices into pool, [q, k]."""
    nearest = []
    for start in range(0, queries.size, CHUNK_ROWS):
        chunk = queries[start : start + CHUNK_ROWS]
        cosines = pool[chunk] @ pool.T  # [chunk, n]
        cosines[np.arange(chunk.size), chunk] = -np.inf
        nearest.append(top_columns(cosines, count=min(NEIGHBOURS, pool.shape[0] - 1)))
    shifts = rng.integers(1, pool.shape[0], size=(queries.size, RANDOM_PARTNERS))
    random = (queries[:, None] + shifts) % pool.shape[0]  # never the row itself
    return np.concatenate([np.concatenate(nearest), random], axis=1)


def _synthetic_radii(
    sides: Sequence[Sides], pool: NDArray[np.float32], *, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Return the radii over synthetic pairs at each grid value, [GRID_COUNT, counts].

    The same pairs are turned farther and farther.
    """
    affine = all(isinstance(own, Projection) for own in sides[0])
    pair_count = SYNTHETIC_PAIRS if affine else TOWER_SYNTHETIC_PAIRS
    counts = bit_counts(sides[0][0].code_bits)
    hamming = np.empty((GRID_COUNT, len(sides), pair_count, len(counts)), dtype=np.uint16)
    for start in range(0, pair_count, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, pair_count)
        chosen, first, second = rng.integers(0, pool.shape[0], size=(3, stop - start))
        rows = pool[chosen]
        directions = _tangents(rows, pool[first] - pool[second], rng=rng)
        for side, (of_rows, of_turned) in enumerate(sides):
            words = code_words(of_rows.project(rows) > 0)
            turned = _turned_affine if isinstance(of_turned, Projection) else _turned
            for index, turned_bits in enumerate(turned(of_turned, rows, directions)):
                hamming[index, side, start:stop] = leading_distances(
                    words, code_words(turned_bits), counts=counts
                )
    return np.stack([covering_radii(distances.reshape(-1, len(counts))) for distances in hamming])


def _turned_affine(
    projection: InstanceMap, rows: NDArray[np.float32], directions: NDArray[np.float32]
) -> Iterator[NDArray[np.bool_]]:
    """Yield the bits of cos a * row + sin a * direction, bool [n, bits], for each grid value.

    Of an affine map they take no product with the weight beyond those of the two.
    """
    origin = projection.project(np.zeros((1, projection.dim), dtype=np.float32))  # [1, code_bits]
    row_values = projection.project(rows) - origin
    direction_values = projection.project(directions) - origin
    for cosine, sine in _turns():
        turned = cosine * row_values
        turned += sine * direction_values
        yield turned > -origin


def _turned(
    projection: InstanceMap, rows: NDArray[np.float32], directions: NDArray[np.float32]
) -> Iterator[NDArray[np.bool_]]:
    """Yield what `_turned_affine` does, of any map."""
    for cosine, sine in _turns():
        yield projection.project(cosine * rows + sine * directions) > 0


def _turns() -> Iterator[tuple[np.float32, np.float32]]:
    """Yield the cosine and the sine of each grid value's angle."""
    for index in range(GRID_COUNT):
        cosine = 1 - GRID_STEP * (index + 1)
        yield np.float32(cosine), np.float32(math.sqrt(max(0.0, 1 - cosine**2)))


def _tangents(
    rows: NDArray[np.float32], directions: NDArray[np.float32], *, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return the parts of `directions` at right angles to the unit rows, of length 1; float32 [n, dim]."""
    # A trace of noise keeps the direction defined where two rows are equal or parallel to the row.
    noise = rng.standard_normal(rows.shape, dtype=np.float32)
    directions = directions + noise * np.float32(1e-3 / math.sqrt(rows.shape[1]))
    directions -= np.einsum("nd,nd->n", directions, rows)[:, None] * rows
    return unit_rows(directions)


def code_words(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Return bool [n, bits], bits a multiple of 64, as uint64 [n, bits / 64] to count differences in."""
    return np.packbits(bits, axis=1).view(np.uint64)


def leading_distances(
    first: NDArray[np.uint64], second: NDArray[np.uint64], *, counts: tuple[int, ...]
) -> NDArray[np.uint16]:
    """Return the Hamming distances of the leading bits of each pair of rows, uint16 [n, counts]."""
    by_word = np.cumsum(np.bitwise_count(first ^ second), axis=1, dtype=np.uint16)  # [n, words]
    return by_word[:, [count // 64 - 1 for count in counts]]

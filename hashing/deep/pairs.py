"""Labelled pairs of rows: what is refused, and the split that keeps linked rows together."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashing.errors import TrainingDataError

MIN_PAIRS = 20
"""Of each kind, similar and not: fewer leave nothing to learn from and judge by."""

MIN_VALIDATION_PAIRS = 2
"""Of each kind; an AUC of fewer says nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class PairSplit:
    """Pairs int64 [p, 3] as (row, row, 1 or 0) that share no row, nor a chain of pairs, between the parts."""

    training: NDArray[np.int64]
    validation: NDArray[np.int64]


def check_pairs(pairs: ArrayLike, *, row_count: int) -> NDArray[np.int64]:
    """Return pairs as int64 [p, 3]: two rows of 0..row_count - 1, and 1 where they are similar, else 0.

    Raises: TrainingDataError that names the first wrong pair, for one class only, and for fewer than
    MIN_PAIRS of a kind.
    """
    array = np.asarray(pairs)
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "iu":
        raise TrainingDataError(
            f"pairs must be integers [pairs, 3] of row, row, label; got {array.dtype}{list(array.shape)}"
        )
    rows, similar = array[:, :2].astype(np.int64), array[:, 2].astype(np.int64)
    for pair in np.flatnonzero(((rows < 0) | (rows >= row_count)).any(axis=1))[:1]:
        raise TrainingDataError(f"pair {pair} refers to rows {rows[pair].tolist()}, there are {row_count}")
    for pair in np.flatnonzero((similar != 0) & (similar != 1))[:1]:
        raise TrainingDataError(f"pair {pair} has label {similar[pair]}, expected 1 (similar) or 0")
    for pair in np.flatnonzero(rows[:, 0] == rows[:, 1])[:1]:
        raise TrainingDataError(f"pair {pair} is of row {rows[pair, 0]} with itself")
    counts = np.bincount(similar, minlength=2)
    if array.shape[0] and counts.min() == 0:
        raise TrainingDataError(f"one class only: all {array.shape[0]} pairs have label {counts.argmax()}")
    if counts.min() < MIN_PAIRS:
        raise TrainingDataError(
            f"training needs at least {MIN_PAIRS} similar and {MIN_PAIRS} other pairs,"
            f" got {counts[1]} and {counts[0]}"
        )
    return np.column_stack([rows, similar])


def connected_components(
    first: NDArray[np.int64], second: NDArray[np.int64], *, row_count: int
) -> NDArray[np.int64]:
    """Return the least row that each row is linked with through any chain of pairs, int64 [row_count].

    first, second: rows of each pair, int64 [p]. Roots are hooked onto lesser ones and paths halved until
    nothing changes: O(log row_count) passes over the pairs.
    """
    parent = np.arange(row_count)
    while True:
        low = np.minimum(parent[first], parent[second])
        hooked = parent.copy()
        np.minimum.at(hooked, parent[first], low)
        np.minimum.at(hooked, parent[second], low)
        while not np.array_equal(halved := hooked[hooked], hooked):
            hooked = halved
        if np.array_equal(hooked, parent):
            return parent
        parent = hooked


def split_pairs(
    pairs: NDArray[np.int64], *, row_count: int, validation_share: float, rng: np.random.Generator
) -> PairSplit:
    """Hold out about `validation_share` of the pairs of each kind, by whole components in random order.

    A component that would make a kind twice its share is left to training.
    Raises: TrainingDataError where the pairs hang together so that no such part can be held out.
    """
    component = connected_components(pairs[:, 0], pairs[:, 1], row_count=row_count)[pairs[:, 0]]
    _, component = np.unique(component, return_inverse=True)  # [p], from 0
    counts = np.stack(
        [np.bincount(component[pairs[:, 2] == kind], minlength=component.max() + 1) for kind in (0, 1)]
    )
    wanted = np.maximum(validation_share * counts.sum(axis=1), MIN_VALIDATION_PAIRS)  # [2]
    held_out = np.zeros(counts.shape[1], dtype=bool)
    held = np.zeros(2)
    for index in rng.permutation(counts.shape[1]):
        own = counts[:, index]
        if ((own > 0) & (held < wanted)).any() and (held + own <= 2 * wanted).all():
            held_out[index] = True
            held += own
        if (held >= wanted).all():
            break
    if held.min() < MIN_VALIDATION_PAIRS:
        raise TrainingDataError(
            f"the {pairs.shape[0]} pairs are linked into {counts.shape[1]} groups of rows, too few or too"
            " unequal ones to hold out pairs of both kinds that share no row with the rest"
        )
    chosen = held_out[component]
    return PairSplit(training=pairs[~chosen], validation=pairs[chosen])


def pair_folds(
    pairs: NDArray[np.int64], *, row_count: int, folds: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Deal the pairs into `folds` parts of about equal size by whole components; int64 [p], 0..folds - 1.

    Larger components go first, equal ones in random order, each to the part that has fewest pairs.
    Raises: TrainingDataError where the pairs hang together so that the other parts of one lack a kind.
    """
    component = connected_components(pairs[:, 0], pairs[:, 1], row_count=row_count)[pairs[:, 0]]
    _, component = np.unique(component, return_inverse=True)
    sizes = np.bincount(component)
    shuffled = rng.permutation(sizes.size)
    part = np.empty(sizes.size, dtype=np.int64)
    filled = [(0, number) for number in range(folds)]
    for index in shuffled[np.argsort(-sizes[shuffled], kind="stable")].tolist():
        size, number = heapq.heappop(filled)
        part[index] = number
        heapq.heappush(filled, (size + int(sizes[index]), number))
    fold = part[component]
    for number in range(folds):
        if np.bincount(pairs[fold != number, 2], minlength=2).min() < MIN_VALIDATION_PAIRS:
            raise TrainingDataError(
                f"the {pairs.shape[0]} pairs are linked into {sizes.size} groups of rows, too few or too"
                f" unequal ones to make {folds} parts of both kinds that share no row"
            )
    return fold

"""Labelled pairs of texts in batches that keep linked pairs together, and the pairs that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from hashing.deep.pairs import connected_components

IMPLIED_GROUP_LIMIT = 64
"""Texts of a similar group that pairs are implied within; more would imply thousands from few labels."""


@dataclass(frozen=True, slots=True, eq=False)
class LinkedPairs:
    """Labelled and implied pairs, those of a component together.

    pairs: int64 [p, 3] of row, row, 1 or 0. weights: float32 [p]. group: int64 [n], equal for rows that are
    linked by similar pairs. blocks: int64 [b, 3], runs of linked pairs as start, stop and number of labelled
    pairs.
    """

    pairs: NDArray[np.int64]
    weights: NDArray[np.float32]
    group: NDArray[np.int64]
    blocks: NDArray[np.int64]

    @property
    def labelled_count(self) -> int:
        return int(self.blocks[:, 2].sum())

    def batches(self, *, batch_size: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """Draw an order of the blocks and cut it into batches of about `batch_size` labelled pairs; the last
        may be smaller. Each is int64 indices of pairs."""
        batches: list[NDArray[np.int64]] = []
        chosen: list[NDArray[np.int64]] = []
        size = 0
        for start, stop, labelled in self.blocks[rng.permutation(self.blocks.shape[0])].tolist():
            chosen.append(np.arange(start, stop))
            size += labelled
            if size >= batch_size:
                batches.append(np.concatenate(chosen))
                chosen, size = [], 0
        if chosen:
            batches.append(np.concatenate(chosen))
        return batches


def link_pairs(
    pairs: NDArray[np.int64], *, row_count: int, batch_size: int, implied_weight: float
) -> LinkedPairs:
    """Order labelled pairs by component and add what follows from them.

    pairs: int64 [p, 3]. A text is similar to all that is similar to one similar to it, and what is labelled
    not similar to a text is not to those similar to it; a pair that would follow both ways, or is labelled,
    is left out. Implied pairs weigh `implied_weight`, and together at most as much as their component's
    labelled ones times it. A component of more than `batch_size` labelled pairs is cut into blocks, without
    implied pairs.
    """
    similar = pairs[pairs[:, 2] == 1]
    group = connected_components(similar[:, 0], similar[:, 1], row_count=row_count)
    component = connected_components(pairs[:, 0], pairs[:, 1], row_count=row_count)[pairs[:, 0]]
    ordered = pairs[np.argsort(component, kind="stable")]
    cuts = np.flatnonzero(np.diff(np.sort(component))) + 1
    members = _group_members(group, rows=np.unique(pairs[:, :2]))
    all_pairs: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float32]] = []
    blocks: list[tuple[int, int, int]] = []
    start = 0
    for labelled in np.split(ordered, cuts):
        for part in np.split(labelled, range(batch_size, labelled.shape[0], batch_size)):
            whole = part.shape[0] == labelled.shape[0]
            implied = _implied(part, group, members) if whole and implied_weight else part[:0]
            share = min(1.0, part.shape[0] / max(1, implied.shape[0]))
            all_pairs += [part, implied]
            weights.append(np.ones(part.shape[0], dtype=np.float32))
            weights.append(np.full(implied.shape[0], implied_weight * share, dtype=np.float32))
            stop = start + part.shape[0] + implied.shape[0]
            blocks.append((start, stop, part.shape[0]))
            start = stop
    return LinkedPairs(
        pairs=np.concatenate(all_pairs),
        weights=np.concatenate(weights),
        group=group,
        blocks=np.array(blocks, dtype=np.int64),
    )


def _group_members(group: NDArray[np.int64], *, rows: NDArray[np.int64]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for row in rows.tolist():
        members.setdefault(int(group[row]), []).append(row)
    return members


def _implied(
    labelled: NDArray[np.int64], group: NDArray[np.int64], members: dict[int, list[int]]
) -> NDArray[np.int64]:
    """Return the pairs that follow from those of one component, int64 [q, 3]."""
    known = {(min(a, b), max(a, b)) for a, b, _ in labelled.tolist()}
    own = {int(number) for number in group[labelled[:, :2]].ravel()}
    small = {number: members[number] for number in own if len(members[number]) <= IMPLIED_GROUP_LIMIT}
    similar = {pair for rows in small.values() for pair in combinations(rows, 2)} - known
    other: set[tuple[int, int]] = set()
    for first, second in group[labelled[labelled[:, 2] == 0][:, :2]].tolist():
        if first != second and first in small and second in small:
            other |= {(min(a, b), max(a, b)) for a, b in product(small[first], small[second])}
    found = [(*pair, 1) for pair in sorted(similar)] + [(*pair, 0) for pair in sorted(other - known)]
    return np.array(found, dtype=np.int64).reshape(-1, 3)

"""Several embeddings of one item (views), side by side in one row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hashing.deep.miners import near_rows
from hashing.errors import TrainingDataError
from hashing.projection import Projection
from hashing.tower import InstanceMap, Tower

SAMPLE_ROWS = 2000
DRAWS = 3
NEAREST = 10
LEAST_STABILITY = 0.01


def view_scales(
    rows: NDArray[np.float32], *, view_dims: Sequence[int], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return a factor for each column, float32 [dim], that weighs the views by their stability.

    rows: float32 [n, dim], the views side by side. view_dims: columns of each view. A view is stable where
    the NEAREST neighbours of a row are the same by one half of its columns as by the other, in the mean over
    DRAWS halvings of up to SAMPLE_ROWS rows; noise is not. The squared factors have mean 1 over the views.
    Weighting views by stability follows D-MVE-Hash (Yan et al. 2020), the measure is our own.
    """
    sample = rows[np.sort(rng.permutation(rows.shape[0])[:SAMPLE_ROWS])]
    stabilities = []
    for start, stop in pairwise(np.cumsum([0, *view_dims])):
        own = sample[:, start:stop]
        overlaps = [_halves_overlap(own, rng=rng) for _ in range(DRAWS)]
        stabilities.append(max(LEAST_STABILITY, float(np.mean(overlaps))))
    weights = np.array(stabilities) / np.mean(stabilities)
    return np.repeat(np.sqrt(weights), view_dims).astype(np.float32)


def check_views(view_dims: Sequence[int], *, dim: int) -> None:
    """Refuse views that do not make up the row. Raises: TrainingDataError."""
    if len(view_dims) < 2 or min(view_dims) < 2 or sum(view_dims) != dim:
        raise TrainingDataError(
            f"views of {', '.join(map(str, view_dims))} columns do not make up {dim}, or one has fewer than 2"
        )


def fold_scales(instance_map: InstanceMap, scales: NDArray[np.float32]) -> InstanceMap:
    """Return the map that does on rows what `instance_map` does on rows times `scales`, float32 [dim]."""
    column = scales[:, None]
    if isinstance(instance_map, Projection):
        return Projection(mean=instance_map.mean / scales, weight=instance_map.weight * column)
    assert isinstance(instance_map, Tower), "a map that was trained by gradient"
    return Tower(
        **(
            instance_map.arrays()
            | {"linear": instance_map.linear * column, "hidden": instance_map.hidden * column}
        )
    )


def _halves_overlap(rows: NDArray[np.float32], *, rng: np.random.Generator) -> float:
    """The share of nearest neighbours by one half of the columns that are so by the other too."""
    columns = rng.permutation(rows.shape[1])
    middle = columns.size // 2
    first, second = (near_rows(rows[:, half], count=NEAREST) for half in (columns[:middle], columns[middle:]))
    return float((first[:, :, None] == second[:, None, :]).any(axis=2).mean())

"""The smallest of many keys, deterministically."""

import numpy as np
from numpy.typing import NDArray


def smallest(
    keys: NDArray[np.int32] | NDArray[np.float32], *, count: int, ties: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Find the `count` smallest keys, ascending, equal keys in ascending order of `ties`.

    keys: [n], no NaN. ties: int64 [n], default the offsets. Returns offsets int64 [min(count, n)]; which of
    several equal keys make the cut is decided by `ties` alone, never by the order of the rows.
    """
    if count <= 0:
        return np.empty(0, dtype=np.int64)
    if count < keys.size:
        cutoff = np.partition(keys, count - 1)[count - 1]
        chosen = np.flatnonzero(keys <= cutoff).astype(np.int64, copy=False)
    else:
        chosen = np.arange(keys.size, dtype=np.int64)
    order = np.lexsort((chosen if ties is None else ties[chosen], keys[chosen]))
    return chosen[order[:count]]

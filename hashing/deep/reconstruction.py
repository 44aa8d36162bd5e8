"""Partners for rows that have none: semi-paired modalities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashing.deep.miners import near_rows
from hashing.embeddings import unit_rows

ANCHOR_COUNT = 10
RIDGE = 1e-2
CHUNK_ROWS = 1024


def rebuild_partners(
    rows: NDArray[np.float32], *, anchors: NDArray[np.float32], partners: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Rebuild the partner of each row from those of the anchors most like it, float32 [n, partner dim], unit.

    rows: float32 [n, dim], without partner. anchors: float32 [a, dim], a >= 1, whose partners are known.
    partners: float32 [a, partner dim]. A row is written as a linear combination of its ANCHOR_COUNT nearest
    anchors (ridge regression), and its partner is the same combination of theirs: linear reconstruction as in
    RREH (semi-paired cross-modal hashing).
    """
    near = near_rows(rows, count=ANCHOR_COUNT, pool=anchors)  # [n, k]
    rebuilt = np.empty((rows.shape[0], partners.shape[1]), dtype=np.float32)
    for start in range(0, rows.shape[0], CHUNK_ROWS):
        chosen = near[start : start + CHUNK_ROWS]
        basis = anchors[chosen].astype(np.float64)  # [c, k, dim]
        gram = basis @ basis.transpose(0, 2, 1) + RIDGE * np.eye(chosen.shape[1])
        target = np.einsum("ckd,cd->ck", basis, rows[start : start + CHUNK_ROWS].astype(np.float64))
        combination = np.linalg.solve(gram, target[..., None])  # [c, k, 1]
        mixed = (combination * partners[chosen]).sum(axis=1)
        rebuilt[start : start + CHUNK_ROWS] = mixed
    return unit_rows(rebuilt)

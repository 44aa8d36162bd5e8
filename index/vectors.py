"""Stored vectors as float32."""

import numpy as np
from numpy.typing import NDArray


def unit_rows(vectors: NDArray[np.float16] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Decode vectors to float32 of norm 1; rows of norm 0 stay 0.

    vectors: float16 or float32 [n, dim]. Returns float32 [n, dim], each row independent of the others.
    """
    decoded = np.ascontiguousarray(vectors, dtype=np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", decoded, decoded, optimize=False))
    norms[norms == 0] = 1
    return np.asarray(decoded / norms[:, None], dtype=np.float32)

"""Cholesky factors for float32, in blocks that leave the work to matrix products.

numpy has no triangular solve, and its factorisation was no faster in float32 than in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 128
"""Columns that are eliminated at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """A = L L^T of a positive definite A.

    lower: float32 [D, D], L. inverses: float32 [m, m] of each diagonal block, m = BLOCK but for the last.
    """

    lower: NDArray[np.float32]
    inverses: tuple[NDArray[np.float32], ...]

    def forward(self, right: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return L^-1 right, float32 [D, k]; cost O(k D^2)."""
        solution = np.empty_like(right, order="C")
        for block, inverse in zip(_blocks(right.shape[0]), self.inverses, strict=True):
            before = slice(0, block.start)
            rest = right[block] - self.lower[block, before] @ solution[before]
            np.matmul(inverse, rest, out=solution[block])
        return solution

    def backward(self, right: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return L^-T right, float32 [D, k]; cost O(k D^2)."""
        solution = np.empty_like(right, order="C")
        for block, inverse in reversed(list(zip(_blocks(right.shape[0]), self.inverses, strict=True))):
            after = slice(block.stop, None)
            rest = right[block] - self.lower[after, block].T @ solution[after]
            np.matmul(inverse.T, rest, out=solution[block])
        return solution


def factorise(matrix: NDArray[np.floating]) -> Factor:
    """Factorise a symmetric positive definite float32 or float64 [D, D], of which the lower triangle is read.

    Left-looking, by blocks of columns (Golub & Van Loan, Matrix Computations, 4.2.5); the diagonal blocks in
    float64, all else in the type of the matrix. Cost O(D^3 / 3).
    Raises: numpy.linalg.LinAlgError where the matrix is not positive definite.
    """
    lower = np.tril(matrix)
    inverses = []
    for block in _blocks(matrix.shape[0]):
        before, panel = slice(0, block.start), slice(block.start, None)
        if block.start:
            lower[panel, block] -= lower[panel, before] @ lower[block, before].T
        own = np.linalg.cholesky(lower[block, block].astype(np.float64))
        inverse = np.linalg.inv(own).astype(lower.dtype)
        lower[block, block] = own
        below = slice(block.stop, None)
        lower[below, block] = lower[below, block] @ inverse.T
        inverses.append(inverse.astype(np.float32, copy=False))
    return Factor(lower=lower.astype(np.float32, copy=False), inverses=tuple(inverses))


def _blocks(size: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]

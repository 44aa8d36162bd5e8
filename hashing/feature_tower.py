"""Instance codes of two kinds in one: bits of a linear map, then bits of random features, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashing.analytic import RandomFeatures
from hashing.embeddings import CHUNK_ROWS


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTower:
    """h = [x L, f(x) D] - offset with f of `RandomFeatures`; bit i of a row is `project(row)[i] > 0`.

    linear: L, float32 [dim, code_bits - function_bits], whose bits tell items of one modality apart.
    output: D, float32 [feature count, function_bits], whose bits all modalities of an encoder have in common.
    offset: float32 [code_bits]. Either part may be empty, not both.
    """

    features: RandomFeatures
    linear: NDArray[np.float32]
    output: NDArray[np.float32]
    offset: NDArray[np.float32]

    def __post_init__(self) -> None:
        assert self.linear.shape[0] == self.features.dim, "both parts read the same embeddings"
        assert self.output.shape[0] == self.features.count, "a row of the output for each feature"
        assert self.offset.shape == (self.linear.shape[1] + self.output.shape[1],), "an offset for each bit"
        for array in (self.linear, self.output, self.offset):
            array.setflags(write=False)

    @property
    def dim(self) -> int:
        return self.features.dim

    @property
    def code_bits(self) -> int:
        return int(self.offset.shape[0])

    @property
    def function_bits(self) -> int:
        return int(self.output.shape[1])

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return what makes the tower the one it is, by name."""
        return {
            "omega": self.features.omega,
            "beta": self.features.beta,
            "linear": self.linear,
            "output": self.output,
            "offset": self.offset,
        }

    def project(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 [n, dim] to the real values h, float32 [n, code_bits], before the sign; in chunks.

        As of `Projection.project`, equal bits are promised only where |h| >= 1e-5.
        """
        values = np.empty((embeddings.shape[0], self.code_bits), dtype=np.float32)
        linear_bits = self.linear.shape[1]
        for start in range(0, embeddings.shape[0], CHUNK_ROWS):
            chunk = embeddings[start : start + CHUNK_ROWS]
            own = values[start : start + CHUNK_ROWS]
            own[:, :linear_bits] = chunk @ self.linear
            own[:, linear_bits:] = self.features.transform(chunk) @ self.output
        values -= self.offset
        return values

"""Instance codes of a trained tower: a linear path and one hidden layer, in numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hashing.embeddings import CHUNK_ROWS
from hashing.feature_tower import FeatureTower
from hashing.projection import Projection

GELU_SCALE = math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715


@dataclass(frozen=True, slots=True, eq=False)
class Tower:
    """h = x L + gelu(x U + u) D - offset; bit i of a row is `project(row)[i] > 0`.

    linear: L, float32 [dim, code_bits]. hidden: U, float32 [dim, hidden]. hidden_bias: u, float32 [hidden].
    output: D, float32 [hidden, code_bits]. offset: float32 [code_bits]. Whatever normalised the tower in
    training is folded into L, D and offset.
    """

    linear: NDArray[np.float32]
    hidden: NDArray[np.float32]
    hidden_bias: NDArray[np.float32]
    output: NDArray[np.float32]
    offset: NDArray[np.float32]
    _first: NDArray[np.float32] = field(init=False, repr=False)
    _first_bias: NDArray[np.float32] = field(init=False, repr=False)
    _half_output: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # One product for both paths, and gelu's factor 1/2 in the weights (exact): a query waits for
        # memory and for the number of steps, not for arithmetic.
        object.__setattr__(self, "_first", np.concatenate([self.hidden, self.linear], axis=1))
        object.__setattr__(self, "_first_bias", np.concatenate([self.hidden_bias, -self.offset]))
        object.__setattr__(self, "_half_output", np.ascontiguousarray(self.output * np.float32(0.5)))
        for array in (*self.arrays().values(), self._first, self._first_bias, self._half_output):
            array.setflags(write=False)

    @property
    def dim(self) -> int:
        return int(self.linear.shape[0])

    @property
    def code_bits(self) -> int:
        return int(self.linear.shape[1])

    @property
    def hidden_width(self) -> int:
        return int(self.hidden.shape[1])

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return what makes the tower the one it is, by name."""
        return {
            "linear": self.linear,
            "hidden": self.hidden,
            "hidden_bias": self.hidden_bias,
            "output": self.output,
            "offset": self.offset,
        }

    def project(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 [n, dim] to the real values h, float32 [n, code_bits], before the sign; in chunks.

        As of `Projection.project`, equal bits are promised only where |h| >= 1e-5.
        """
        if embeddings.shape[0] <= CHUNK_ROWS:
            return self._project_chunk(embeddings)
        values = np.empty((embeddings.shape[0], self.code_bits), dtype=np.float32)
        for start in range(0, embeddings.shape[0], CHUNK_ROWS):
            chunk = slice(start, start + CHUNK_ROWS)
            values[chunk] = self._project_chunk(embeddings[chunk])
        return values

    def _project_chunk(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        first = embeddings @ self._first  # [n, hidden + code_bits]
        first += self._first_bias
        values = twice_gelu(first[:, : self.hidden_width]) @ self._half_output
        values += first[:, self.hidden_width :]
        return values


InstanceMap = Projection | Tower | FeatureTower
"""What maps the embeddings of a modality to the values of its instance code."""


def twice_gelu(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), the shape of `values`, float32.

    The tanh form of GELU (Hendrycks & Gimpel 2016), which numpy can evaluate; the other needs erf.
    """
    result = values * values
    result *= np.float32(GELU_SCALE * GELU_CUBIC)
    result += np.float32(GELU_SCALE)
    result *= values
    np.tanh(result, out=result)
    result += np.float32(1)
    result *= values
    return result

"""A small network on features of unlike scales: each is cut into piecewise linear units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class EvidenceNetwork:
    """score = relu(z H + b) . o + c, where unit u of z is (x[column_u] - low_u) scale_u, cut to 0..1.

    The encoding of numerical features of Gorishniy et al. (On embeddings for numerical features in tabular
    deep learning, NeurIPS 2022): a unit a quantile bin, so that one layer can bend at any of them.

    column: int32 [u], a feature of each unit. low, scale: float32 [u]. hidden: float32 [u, h]. hidden_bias,
    output: float32 [h]. bias: float32 [1].
    """

    column: NDArray[np.int32]
    low: NDArray[np.float32]
    scale: NDArray[np.float32]
    hidden: NDArray[np.float32]
    hidden_bias: NDArray[np.float32]
    output: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __post_init__(self) -> None:
        for array in self.arrays().values():
            array.setflags(write=False)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return what makes the network the one it is, by name."""
        return {
            "column": self.column,
            "low": self.low,
            "scale": self.scale,
            "hidden": self.hidden,
            "hidden_bias": self.hidden_bias,
            "output": self.output,
            "bias": self.bias,
        }

    def units(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map features, float32 [n, features], to units in 0..1, float32 [n, u]."""
        units = features.take(self.column, axis=1)
        units -= self.low
        units *= self.scale
        np.maximum(units, np.float32(0), out=units)
        np.minimum(units, np.float32(1), out=units)
        return units

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map features, float32 [n, features], to log odds before calibration, float32 [n]."""
        hidden = self.units(features) @ self.hidden  # [n, h]
        hidden += self.hidden_bias
        np.maximum(hidden, np.float32(0), out=hidden)
        score: NDArray[np.float32] = hidden @ self.output + self.bias[0]
        return score

"""What an encoder of several modalities has besides their codes: queries from one modality to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from hashing.analytic import LabelHead, RandomFeatures
from hashing.embeddings import CHUNK_ROWS


@dataclass(frozen=True, slots=True, eq=False)
class CrossQuery:
    """Maps embeddings of one modality to real-valued queries against the codes of another.

    features: those of the query's modality. weight: float32 [feature count, function_bits]: the score of a
    row, <f(x) weight, its function bits in -1/+1>, estimates how much row and query have in common.
    mean: float32 [function_bits], of the values over the training rows.
    """

    features: RandomFeatures
    weight: NDArray[np.float32]
    mean: NDArray[np.float32]

    def __post_init__(self) -> None:
        self.weight.setflags(write=False)
        self.mean.setflags(write=False)

    def values(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 [n, dim] to queries, float32 [n, function_bits]; in chunks."""
        values = np.empty((embeddings.shape[0], self.weight.shape[1]), dtype=np.float32)
        for start in range(0, embeddings.shape[0], CHUNK_ROWS):
            chunk = embeddings[start : start + CHUNK_ROWS]
            np.matmul(self.features.transform(chunk), self.weight, out=values[start : start + CHUNK_ROWS])
        return values


@dataclass(frozen=True, slots=True, eq=False)
class CrossPart:
    """The part of an encoder that spans modalities.

    queries: (modality of the query, modality of the rows) -> its map; every pair of different modalities.
    label_heads: of the modalities besides that of `Encoder.label_head`, whose class codes they share; empty
    where no other has learned labels.
    function_bits: the last bits of every code, which modalities have in common.
    """

    queries: Mapping[tuple[str, str], CrossQuery]
    label_heads: Mapping[str, LabelHead]
    function_bits: int

    def __post_init__(self) -> None:
        widths = {query.weight.shape[1] for query in self.queries.values()}
        assert widths == {self.function_bits}, "one width of function codes"
        object.__setattr__(self, "queries", MappingProxyType(dict(self.queries)))
        object.__setattr__(self, "label_heads", MappingProxyType(dict(self.label_heads)))

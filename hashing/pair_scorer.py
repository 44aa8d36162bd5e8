"""How likely a query and a stored code mean the same: a logit out of the code alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from hashing.embeddings import signs

LEAST_NORM = np.float32(1e-8)


@dataclass(frozen=True, slots=True, eq=False)
class PrefixScorer:
    """s cos(h, b) + <u, h> + <v, b> + c for the first p bits, b in -1/+1.

    scale, bias: s and c. query_weight, code_weight: u and v, float32 [p]. The linear terms say how often a
    question like this one has another wording at all, whatever it is compared with.
    """

    scale: float
    bias: float
    query_weight: NDArray[np.float32]
    code_weight: NDArray[np.float32]

    def __post_init__(self) -> None:
        self.query_weight.setflags(write=False)
        self.code_weight.setflags(write=False)


@dataclass(frozen=True, slots=True, eq=False)
class PairScorer:
    """A scorer for each count of leading bits that was trained. prefixes: count -> its scorer."""

    prefixes: Mapping[int, PrefixScorer]

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefixes", MappingProxyType(dict(self.prefixes)))

    def logits(
        self, values: NDArray[np.float32], bits: NDArray[np.bool_], *, count: int
    ) -> NDArray[np.float32]:
        """Score real-valued queries against stored codes, pair by pair.

        values: float32 [n, >= count], real values h of the queries. bits: bool [n, >= count], stored codes.
        count: of leading bits, one of `prefixes`. Returns float32 [n], above 0 where the same is likelier.
        """
        return self._logits(values[:, :count], bits[:, :count], count=count, coded=False)

    def code_logits(
        self, first: NDArray[np.bool_], second: NDArray[np.bool_], *, count: int
    ) -> NDArray[np.float32]:
        """Score codes against codes, pair by pair, as `logits`; bool [n, >= count] both."""
        return self._logits(signs(first[:, :count]), second[:, :count], count=count, coded=True)

    def _logits(
        self, queries: NDArray[np.float32], bits: NDArray[np.bool_], *, count: int, coded: bool
    ) -> NDArray[np.float32]:
        own = self.prefixes[count]
        codes = signs(bits)
        norms = np.linalg.norm(queries, axis=1) * np.float32(np.sqrt(count))
        cosines = np.einsum("np,np->n", queries, codes) / np.maximum(norms, LEAST_NORM)
        query_term = queries @ (own.code_weight if coded else own.query_weight)
        logits: NDArray[np.float32] = own.scale * cosines + query_term + codes @ own.code_weight + own.bias
        return logits.astype(np.float32)

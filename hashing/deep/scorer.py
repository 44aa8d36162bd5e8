"""The trained form of `hashing.pair_scorer`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashing.pair_scorer import PairScorer, PrefixScorer

START_SCALE, START_BIAS = 8.0, -4.0


class PairScores(nn.Module):
    """A logit for each prefix: s cos(h, b) + <u, h> + <v, b> + c, u and v 0 at first.

    prefixes: counts of leading bits.
    """

    def __init__(self, prefixes: Sequence[int]) -> None:
        super().__init__()
        self.prefixes = tuple(prefixes)
        self.scales = nn.Parameter(torch.full((len(prefixes),), START_SCALE))
        self.biases = nn.Parameter(torch.full((len(prefixes),), START_BIAS))
        # Of a weight w the module keeps w sqrt(p): one learning rate then fits all prefixes.
        self.query_weights = nn.ParameterList([torch.zeros(count) for count in prefixes])
        self.code_weights = nn.ParameterList([torch.zeros(count) for count in prefixes])

    def terms(self, index: int, queries: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return s, and of each pair what is added to s cos(h, b), float [n], for the prefix of that index.

        queries: float [n, bits]. codes: float [n, bits] in -1/+1.
        """
        count = self.prefixes[index]
        linear = queries[:, :count] @ self.query_weights[index] + codes[:, :count] @ self.code_weights[index]
        return self.scales[index], linear / count**0.5 + self.biases[index]

    def exported(self) -> PairScorer:
        """Return it as arrays."""
        return PairScorer(
            {
                count: PrefixScorer(
                    scale=float(self.scales[index].detach()),
                    bias=float(self.biases[index].detach()),
                    query_weight=_weight(self.query_weights[index], count),
                    code_weight=_weight(self.code_weights[index], count),
                )
                for index, count in enumerate(self.prefixes)
            }
        )


def _weight(weight: Tensor, count: int) -> NDArray[np.float32]:
    array: NDArray[np.float32] = weight.detach().cpu().numpy()
    return array / np.float32(count**0.5)

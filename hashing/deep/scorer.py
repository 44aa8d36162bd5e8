"""The trained form of `hashing.pair_scorer`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashing.deep import losses
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

    @classmethod
    def restored(cls, scorer: PairScorer) -> PairScores:
        """Return what `exported` turns into `scorer`, to go on learning from there."""
        scores = cls(tuple(scorer.prefixes))
        with torch.no_grad():
            for index, (count, own) in enumerate(scorer.prefixes.items()):
                scores.scales[index], scores.biases[index] = own.scale, own.bias
                for weights, weight in (
                    (scores.query_weights, own.query_weight),
                    (scores.code_weights, own.code_weight),
                ):
                    weights[index].copy_(torch.from_numpy(weight * np.float32(count**0.5)))
        return scores

    def terms(self, index: int, queries: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return s, and of each pair what is added to s cos(h, b), float [n], for the prefix of that index.

        queries: float [n, bits]. codes: float [n, bits] in -1/+1.
        """
        count = self.prefixes[index]
        linear = queries[:, :count] @ self.query_weights[index] + codes[:, :count] @ self.code_weights[index]
        return self.scales[index], linear / count**0.5 + self.biases[index]

    def logistic(self, queries: Tensor, codes: Tensor, *, similarity: Tensor) -> Tensor:
        """Return the logistic loss of its logits, mean over pairs and prefixes.

        queries, codes: as of `terms`; codes may be near-bits that a gradient passes. similarity: [n] in [0,
        1].
        """
        parts = []
        for index, count in enumerate(self.prefixes):
            scale, bias = self.terms(index, queries, codes)
            parts.append(
                losses.pair_logistic(
                    queries[:, :count], codes[:, :count], similarity=similarity, scale=scale, bias=bias
                )
            )
        return torch.stack(parts).mean()

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

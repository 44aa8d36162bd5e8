"""The loss of a batch of labelled pairs of texts: on embeddings, and on codes of every prefix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from hashing.deep.binarizers import StraightThroughSign
from hashing.deep.losses import EPSILON
from hashing.deep.text_config import TextTowerConfig
from hashing.radius import bit_counts

START_SCALE, START_BIAS = (10.0, 10.0), (-7.0, -6.0)
"""Of the logistic losses on the cosines of embeddings, and of codes."""


@dataclass(frozen=True, slots=True, eq=False)
class PairBatch:
    """Pairs within a batch of texts. first, second: int64 [p], texts of the batch. similarity: float32 [p] in
    [0, 1]. weights: float32 [p]. group: int64 [n], equal for texts that are linked by similar pairs."""

    first: Tensor
    second: Tensor
    similarity: Tensor
    weights: Tensor
    group: Tensor


class TextLoss(nn.Module):
    """Weighted logistic loss and InfoNCE against all texts of the batch, on embeddings and on codes.

    On codes each text is once a real-valued query and once stored bits, and the loss is the mean over
    prefixes. The scales and biases of the logistic losses are learned. As `losses.pair_logistic` and
    `losses.info_nce`, with weights of pairs and every text of the batch as a key.
    """

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.tensor(START_SCALE))
        self.bias = nn.Parameter(torch.tensor(START_BIAS))
        self.sign = StraightThroughSign()
        self.counts = bit_counts(config.code_bits)

    def forward(self, embeddings: Tensor, values: Tensor, batch: PairBatch) -> Tensor:
        """embeddings: float32 [n, dim], unit rows. values: float32 [n, code_bits], the head's. Returns a
        scalar."""
        config, codes = self.config, self.sign(values)
        loss = config.logistic_weight * self._logistic(embeddings, embeddings, batch, index=0)
        if config.info_nce_weight:
            nce = weighted_info_nce(embeddings, embeddings, batch, temperature=config.temperature)
            loss = loss + config.info_nce_weight * nce
        for count in self.counts:
            queries, stored = values[:, :count], codes[:, :count]
            if config.code_logistic_weight:
                part = self._logistic(queries, stored, batch, index=1)
                loss = loss + config.code_logistic_weight / len(self.counts) * part
            if config.code_info_nce_weight:
                part = weighted_info_nce(queries, stored, batch, temperature=2 * config.temperature)
                loss = loss + config.code_info_nce_weight / len(self.counts) * part
        return loss

    def _logistic(self, queries: Tensor, stored: Tensor, batch: PairBatch, *, index: int) -> Tensor:
        """The mean of both directions."""
        return weighted_logistic(
            torch.cat([queries[batch.first], queries[batch.second]]),
            torch.cat([stored[batch.second], stored[batch.first]]),
            similarity=batch.similarity.repeat(2),
            weights=batch.weights.repeat(2),
            scale=self.scale[index],
            bias=self.bias[index],
        )


def weighted_logistic(
    first: Tensor, second: Tensor, *, similarity: Tensor, weights: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    """`losses.pair_logistic` as a weighted mean. first, second: [p, bits]. similarity, weights: [p]."""
    logits = scale * functional.cosine_similarity(first, second, dim=1, eps=EPSILON) + bias  # [p]
    return ((functional.softplus(logits) - similarity * logits) * weights).sum() / weights.sum()


def weighted_info_nce(queries: Tensor, keys: Tensor, batch: PairBatch, *, temperature: float) -> Tensor:
    """Cross-entropy of finding, for each text of a similar pair, the other one among all texts of the batch.

    queries, keys: [n, bits]. Texts of the query's own group are no negatives. The weighted mean; 0 where no
    pair is similar.
    """
    similar = torch.nonzero(batch.similarity > 0.5)[:, 0]
    own = torch.cat([batch.first[similar], batch.second[similar]])  # [q]
    wanted = torch.cat([batch.second[similar], batch.first[similar]])
    weights = batch.weights[similar].repeat(2)
    unit = functional.normalize(queries, dim=1, eps=EPSILON)[own]
    logits = unit @ functional.normalize(keys, dim=1, eps=EPSILON).T / temperature  # [q, n]
    found = logits.gather(1, wanted[:, None])[:, 0]
    others = logits.masked_fill(batch.group[own][:, None] == batch.group[None, :], -torch.inf)
    losses = torch.logsumexp(torch.cat([found[:, None], others], dim=1), dim=1) - found
    return (losses * weights).sum() / weights.sum().clamp_min(EPSILON)

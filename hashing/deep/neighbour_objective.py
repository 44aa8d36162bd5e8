"""Learn from rows alone: what is near in the embeddings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

from hashing.deep import losses
from hashing.deep.config import NeighbourLosses
from hashing.deep.miners import near_rows
from hashing.deep.objectives import Batches, Coder

NEIGHBOUR_POOL_LIMIT = 50_000
NEIGHBOUR_COUNT = 15
"""Near rows that join each anchor of a step."""

NEAREST_COUNT = 30
"""Of the embeddings, among which those are drawn."""

LSH_RADIUS, LSH_FACTOR = 0.7, 2.0
"""Of the neural LSH loss, in Euclidean distance of codes scaled to length 1; far ones are beyond 1.4."""


class NeighbourObjective:
    """What is near in the embeddings stays near in the codes, so that candidates are found.

    rows: float32 [n, dim], the modality's training part, of which up to NEIGHBOUR_POOL_LIMIT serve. A step is
    of some anchors and near rows of each, so that most of its pairs are hard to tell apart.
    """

    def __init__(
        self,
        rows: NDArray[np.float32],
        modality: str,
        *,
        weights: NeighbourLosses,
        batches: Batches,
        rng: np.random.Generator,
    ) -> None:
        self._pool = np.sort(rng.permutation(rows.shape[0])[:NEIGHBOUR_POOL_LIMIT]).astype(np.int64)
        self._near = near_rows(rows[self._pool], count=NEAREST_COUNT)  # [n, k], places in the pool
        self._unit = functional.normalize(torch.from_numpy(rows[self._pool]), dim=1).to(batches.device)
        self._modality = modality
        self._weights = weights
        self._prefixes = batches.prefixes
        self._device = batches.device
        self._scale = nn.Parameter(torch.tensor(1.0, device=batches.device))
        self._order: list[NDArray[np.int64]] = []
        self.step_count = batches.step_count(self._pool.size * (1 + NEIGHBOUR_COUNT))
        self.mines = False

    def parameters(self) -> list[nn.Parameter]:
        return [self._scale]

    def begin_pass(self, rng: np.random.Generator, values: Mapping[str, NDArray[np.float32]] | None) -> None:
        anchors = rng.permutation(self._pool.size)
        order = np.argsort(rng.random(self._near.shape), axis=1)[:, :NEIGHBOUR_COUNT]
        partners = np.take_along_axis(self._near, order, axis=1)[anchors]  # [n, NEIGHBOUR_COUNT]
        self._order = np.array_split(np.column_stack([anchors, partners]), self.step_count)

    def loss(self, coder: Coder, step: int) -> Tensor:
        drawn = self._order[step % self.step_count]  # [anchors, 1 + NEIGHBOUR_COUNT]
        places, inverse = np.unique(drawn, return_inverse=True)
        values, codes = coder(self._modality, torch.from_numpy(self._pool[places]).to(self._device))
        unit = self._unit[torch.from_numpy(places).to(self._device)]
        targets = unit @ unit.T  # [m, m], the embeddings' cosines
        weights, loss = self._weights, values.new_zeros(())
        if weights.divergence:
            divergence = losses.nested(losses.neighbour_divergence, self._prefixes)
            for queries in (values, codes):
                loss = loss + weights.divergence / 2 * divergence(
                    queries, codes, targets=targets, temperature=weights.temperature
                )
        if weights.distance:
            preserved = losses.nested(losses.distance_preserving, self._prefixes)
            loss = loss + weights.distance * preserved(values, codes, targets=targets, scale=self._scale)
        anchors, near = torch.from_numpy(inverse.reshape(drawn.shape)[:, :2].T.copy()).to(self._device)
        return loss + self._triple_losses(values, codes, targets, anchors=anchors, near=near)

    def _triple_losses(
        self, values: Tensor, codes: Tensor, targets: Tensor, *, anchors: Tensor, near: Tensor
    ) -> Tensor:
        """The losses of each anchor, one near row of it and one of another anchor."""
        weights, loss = self._weights, values.new_zeros(())
        far = torch.roll(near, 1)
        if weights.margin:
            margin = losses.nested(losses.margin_mse, self._prefixes)
            teacher = targets[anchors, near] - targets[anchors, far]
            loss = loss + weights.margin * margin(
                values[anchors], codes[near], codes[far], teacher_margin=teacher
            )
        if weights.info_nce:
            info_nce = losses.nested(losses.info_nce, self._prefixes)
            loss = loss + weights.info_nce * info_nce(
                values[anchors], codes[near], temperature=weights.temperature
            )
        if weights.lsh:
            lsh = losses.nested(_unit_lsh, self._prefixes)
            loss = loss + weights.lsh * lsh(values[anchors], codes[near], codes[far])
        return loss


def _unit_lsh(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    units = [functional.normalize(side, dim=1) for side in (anchor, positive, negative)]
    return losses.neural_lsh(*units, radius=LSH_RADIUS, factor=LSH_FACTOR)

"""What an update by gradient asks of a tower: new pairs, and what holds it to the stored codes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

from hashing.deep import losses
from hashing.deep.binarizers import StraightThroughSign
from hashing.deep.scorer import PairScores
from hashing.deep.towers import LinearTower
from hashing.embeddings import signs
from hashing.tower import InstanceMap


class RetentionWeights(Protocol):
    """Weights of the terms of `RetentionLoss`."""

    @property
    def rehearsal(self) -> float: ...
    @property
    def distillation(self) -> float: ...
    @property
    def anchor(self) -> float: ...


class PairWeights(Protocol):
    """Weights of the terms of `PairUpdateLoss`."""

    @property
    def logistic(self) -> float: ...
    @property
    def frozen_logistic(self) -> float: ...


@dataclass(frozen=True, slots=True, eq=False)
class FrozenRows:
    """Rows and what was made of them before. rows: float32 [n, dim]. codes: float32 [n, bits] in -1/+1.
    values: float32 [n, bits], the parent's."""

    rows: Tensor
    codes: Tensor
    values: Tensor

    @classmethod
    def of(
        cls,
        parent: InstanceMap,
        rows: NDArray[np.float32],
        *,
        bits: NDArray[np.bool_] | None = None,
        device: torch.device,
    ) -> FrozenRows:
        """Encode float32 [n, dim] with the parent's map. bits: their codes, bool [n, bits]; None for its
        own."""
        values = parent.project(rows)
        codes = signs(values if bits is None else bits)
        return cls(*(torch.tensor(array, device=device) for array in (rows, codes, values)))

    def __len__(self) -> int:
        return int(self.rows.shape[0])


class RetentionLoss:
    """What holds a tower to its parent, as a weighted sum; terms of weight 0 cost nothing.

    rehearsal: central similarity of the values of stored vectors to their codes. distillation: squared error
    of these values from the parent's (Hinton, Vinyals & Dean 2015). anchor: half the squared distance of the
    weights from where they are at first (L2-SP: Li, Grandvalet & Davoine, ICML 2018).
    """

    def __init__(self, tower: nn.Module, stored: FrozenRows, *, weights: RetentionWeights) -> None:
        self._tower = tower
        self._stored = stored
        self._weights = weights
        self._start = [own.detach().clone() for own in tower.parameters()]

    def __call__(self, rehearsed: Tensor) -> Tensor:
        """Return the loss at stored vectors, int64 [m]."""
        weights = self._weights
        loss = self._stored.rows.new_zeros(())
        if len(rehearsed) and (weights.rehearsal or weights.distillation):
            values = self._tower(self._stored.rows[rehearsed])  # [m, bits]
            central = losses.central_similarity(values, self._stored.codes[rehearsed])
            error = functional.mse_loss(values, self._stored.values[rehearsed])
            loss = loss + weights.rehearsal * central + weights.distillation * error
        if weights.anchor:
            pairs = zip(self._tower.parameters(), self._start, strict=True)
            moved = torch.stack([((own - start) ** 2).sum() for own, start in pairs]).sum()
            loss = loss + weights.anchor / 2 * moved
        return loss


class PairUpdateLoss:
    """What new pairs ask of a tower, as a weighted sum; terms of weight 0 cost nothing.

    logistic: its values against its own codes, straight through. frozen_logistic: its values against the
    codes that the parent gave the partners: the new-old likelihood of DLCH (deep lifelong cross-modal
    hashing, Xu et al. 2023), with the scale and the terms of `PairScores`. Both rows of a pair are once the
    query.

    pairs: int64 [p, 3] of row, row, 1 or 0.
    """

    def __init__(
        self,
        tower: nn.Module,
        scores: PairScores,
        rows: FrozenRows,
        pairs: NDArray[np.int64],
        *,
        weights: PairWeights,
    ) -> None:
        self._tower = tower
        self._scores = scores
        self._rows = rows
        self._pairs = torch.from_numpy(pairs).to(rows.rows.device)
        self._weights = weights
        self._binarizer = StraightThroughSign()

    def __call__(self, chosen: Tensor) -> Tensor:
        """Return the loss at pairs, int64 [b]."""
        pairs = self._pairs[chosen]  # [b, 3]
        similarity = pairs[:, 2].float().repeat(2)
        values: Tensor = self._tower(self._rows.rows[torch.cat([pairs[:, 0], pairs[:, 1]])])  # [2b, bits]
        loss = values.new_zeros(())
        if self._weights.logistic:
            codes = self._binarizer(values).roll(len(pairs), dims=0)  # of the partners
            own = self._scores.logistic(values, codes, similarity=similarity)
            loss = loss + self._weights.logistic * own
        if self._weights.frozen_logistic:
            codes = self._rows.codes[torch.cat([pairs[:, 1], pairs[:, 0]])]
            frozen = self._scores.logistic(values, codes, similarity=similarity)
            loss = loss + self._weights.frozen_logistic * frozen
        return loss


class Averaged:
    """A moving average of a tower's weights that starts at those it has, taken after each step.

    tower: the average, in evaluation mode. decay: in [0, 1); 0 for the weights themselves.
    """

    def __init__(self, tower: LinearTower, optimiser: torch.optim.Optimizer, *, decay: float) -> None:
        self.tower = deepcopy(tower).eval()
        self._own: list[Tensor] = list(tower.parameters())
        self._averages: list[Tensor] = list(self.tower.parameters())
        self._decay = decay
        optimiser.register_step_post_hook(self._take)

    def _take(self, *_: Any) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._own, 1 - self._decay)

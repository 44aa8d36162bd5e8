"""Learn from rows of two modalities that go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashing.deep import losses
from hashing.deep.config import MatchLosses
from hashing.deep.objectives import Batches, Coder, label_likelihood, tensors_of


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Rows of two modalities that go together. rows: int64 [m, 2], of their training parts. items: int64 [m],
    matches of one are no negatives of each other. weights: float32 [m], of each in the mean."""

    rows: NDArray[np.int64]
    items: NDArray[np.int64]
    weights: NDArray[np.float32]


class MatchObjective:
    """Rows of two modalities that are of one item, or share labels, near each other.

    matches: of each two modalities. label_vectors: as of `LabelObjective`; the likelihood reads them.
    """

    def __init__(
        self,
        matches: Mapping[tuple[str, str], Matches],
        *,
        label_vectors: Mapping[str, NDArray[np.float32]],
        weights: MatchLosses,
        batches: Batches,
    ) -> None:
        self._matches = matches
        self._label_vectors = tensors_of(label_vectors, batches.device)
        self._weights = weights
        self._prefixes = batches.prefixes
        self._device = batches.device
        self._order: dict[tuple[str, str], list[NDArray[np.int64]]] = {}
        self.step_count = batches.step_count(max(len(own.rows) for own in matches.values()))
        self.mines = False

    def parameters(self) -> list[nn.Parameter]:
        return []

    def begin_pass(self, rng: np.random.Generator, values: Mapping[str, NDArray[np.float32]] | None) -> None:
        self._order = {
            modalities: np.array_split(rng.permutation(len(own.rows)), self.step_count)
            for modalities, own in self._matches.items()
        }

    def loss(self, coder: Coder, step: int) -> Tensor:
        parts = []
        for modalities, matches in self._matches.items():
            chosen = self._order[modalities][step % self.step_count]
            rows = torch.from_numpy(matches.rows[chosen]).to(self._device)  # [b, 2]
            share = torch.from_numpy(matches.weights[chosen]).to(self._device)  # [b]
            items = torch.from_numpy(matches.items[chosen]).to(self._device)  # [b]
            same = items[:, None] == items[None, :]
            sides = [coder(modality, rows[:, side]) for side, modality in enumerate(modalities)]
            for near in (0, 1):
                parts.append(self._one_way(sides, rows, modalities, near=near, share=share, same=same))
        return torch.stack(parts).mean()

    def _one_way(
        self,
        sides: Sequence[tuple[Tensor, Tensor]],
        rows: Tensor,
        modalities: tuple[str, str],
        *,
        near: int,
        share: Tensor,
        same: Tensor,
    ) -> Tensor:
        """The losses of queries of one side against codes of the other. same: bool [b, b], of one item."""
        other = 1 - near
        queries, keys = sides[near][0], sides[other][1]
        loss = queries.new_zeros(())
        if self._weights.info_nce:
            info_nce = losses.nested(losses.info_nce, self._prefixes)
            loss = loss + self._weights.info_nce * info_nce(
                queries, keys, temperature=self._weights.temperature, excluded=same, weights=share
            )
        if self._weights.likelihood:
            loss = loss + self._weights.likelihood * label_likelihood(
                queries,
                keys,
                first=self._label_vectors[modalities[near]][rows[:, near]],
                second=self._label_vectors[modalities[other]][rows[:, other]],
                prefixes=self._prefixes,
                same_rows=False,
            )
        return loss

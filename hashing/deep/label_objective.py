"""Learn from rows with labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashing.deep import losses
from hashing.deep.config import LabelLosses
from hashing.deep.objectives import Batches, Coder, label_likelihood, tensors_of


class LabelObjective:
    """Rows that share labels near each other, and each near the code of its class.

    label_vectors: modality -> 0/1 float32 [n, classes] of all training rows, all 0 for rows without labels,
    which are left out. centres: modality -> float32 [n, code_bits] in -1/+1, the class code of each row.
    """

    def __init__(
        self,
        label_vectors: Mapping[str, NDArray[np.float32]],
        *,
        centres: Mapping[str, NDArray[np.float32]],
        weights: LabelLosses,
        batches: Batches,
    ) -> None:
        self._rows = {modality: np.flatnonzero(own.any(axis=1)) for modality, own in label_vectors.items()}
        self._label_vectors = tensors_of(label_vectors, batches.device)
        self._centres = tensors_of(centres, batches.device)
        self._weights = weights
        self._prefixes = batches.prefixes
        self._device = batches.device
        self._order: dict[str, list[NDArray[np.int64]]] = {}
        self.step_count = batches.step_count(max(own.size for own in self._rows.values()))
        self.mines = False

    def parameters(self) -> list[nn.Parameter]:
        return []

    def begin_pass(self, rng: np.random.Generator, values: Mapping[str, NDArray[np.float32]] | None) -> None:
        self._order = {
            modality: np.array_split(rng.permutation(own), self.step_count)
            for modality, own in self._rows.items()
        }

    def loss(self, coder: Coder, step: int) -> Tensor:
        parts = []
        for modality, order in self._order.items():
            rows = torch.from_numpy(order[step % self.step_count]).to(self._device)  # [b]
            values, codes = coder(modality, rows)
            vectors = self._label_vectors[modality][rows]  # [b, classes]
            loss = values.new_zeros(())
            if self._weights.likelihood:
                loss = loss + self._weights.likelihood * label_likelihood(
                    values, codes, first=vectors, second=vectors, prefixes=self._prefixes, same_rows=True
                )
            if self._weights.central:
                loss = loss + self._weights.central * losses.central_similarity(
                    values, self._centres[modality][rows]
                )
            parts.append(loss)
        return torch.stack(parts).mean()

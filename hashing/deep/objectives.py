"""What objectives have in common. An objective is what a step of training asks of the codes.

It draws its batches and adds up its losses. In each loss a row is once the query, with its real values, and
once the stored code, so that the codes serve the asymmetric and the symmetric distance. Losses that compare
rows do so on each prefix of the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashing.deep import losses

EQUAL_CODES_THETA = 8.0
"""theta of the pairwise likelihood for equal codes, whatever their count of bits."""


@dataclass(frozen=True, slots=True)
class Batches:
    """What the steps of every objective are like. prefixes: counts of leading bits that losses are taken at.
    size: pairs or rows of a step. device: where tensors lie."""

    prefixes: Sequence[int]
    size: int
    device: torch.device

    def step_count(self, count: int) -> int:
        """Steps of a pass over `count` rows or pairs."""
        return max(1, -(-count // self.size))


class Coder:
    """Runs rows through the towers in one step, and keeps the real values for the penalties on them."""

    def __init__(self, towers: nn.ModuleDict, binarizer: nn.Module, rows: Mapping[str, Tensor]) -> None:
        self._towers = towers
        self._binarizer = binarizer
        self._rows = rows
        self.values: list[Tensor] = []

    def __call__(self, modality: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return values h and codes of rows of the training part, each float [b, code_bits]."""
        values = self._towers[modality](self._rows[modality][rows]).float()
        self.values.append(values)
        return values, self._binarizer(values)


class Objective(Protocol):
    """One kind of thing to learn from."""

    step_count: int
    """Steps of one pass."""

    mines: bool
    """Whether it chooses rows by the codes of the pass before."""

    def parameters(self) -> list[nn.Parameter]:
        """What it learns besides the towers."""

    def begin_pass(self, rng: np.random.Generator, values: Mapping[str, NDArray[np.float32]] | None) -> None:
        """Draw the batches of a pass. values: of all training rows after the pass before, where it asks."""

    def loss(self, coder: Coder, step: int) -> Tensor:
        """The loss of a step, counted from 0 in each pass; steps beyond step_count begin again."""


def label_likelihood(
    values: Tensor,
    codes: Tensor,
    *,
    first: Tensor,
    second: Tensor,
    prefixes: Sequence[int],
    same_rows: bool,
) -> Tensor:
    """Pairwise likelihood of labelled rows, mean over prefixes; theta of equal codes is EQUAL_CODES_THETA.

    values: of queries, [b, bits]. codes: of stored rows, [b, bits]. first, second: their label vectors, 0/1
    [b, classes]; a row without labels counts in no pair, nor, with `same_rows`, does a row with itself.
    """
    similarity = losses.label_similarity(first, second)
    counts = (first.sum(dim=1) > 0)[:, None] & (second.sum(dim=1) > 0)[None, :]
    if same_rows:
        counts = counts & ~torch.eye(len(first), dtype=torch.bool, device=first.device)
    parts = []
    for count in prefixes:
        scale = (2 * EQUAL_CODES_THETA / count) ** 0.5
        parts.append(
            losses.pairwise_likelihood(
                scale * values[:, :count], scale * codes[:, :count], similarity=similarity, mask=counts
            )
        )
    return torch.stack(parts).mean()


def tensors_of(arrays: Mapping[str, NDArray[np.float32]], device: torch.device) -> dict[str, Tensor]:
    """Return arrays by name as tensors on a device."""
    return {key: torch.from_numpy(array).to(device) for key, array in arrays.items()}

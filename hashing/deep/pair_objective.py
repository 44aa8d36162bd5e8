"""Learn from pairs of rows that are labelled similar or not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashing.deep import losses
from hashing.deep.config import PairLosses
from hashing.deep.miners import hard_negatives
from hashing.deep.objectives import Batches, Coder
from hashing.deep.pairs import connected_components
from hashing.deep.scorer import PairScores

MINING_POOL_LIMIT = 20_000


class PairObjective:
    """Similar pairs near, other pairs far.

    pairs: int64 [p, 3], rows of the modality's training part, of `row_count` rows, and the label.
    """

    def __init__(
        self,
        pairs: NDArray[np.int64],
        modality: str,
        *,
        row_count: int,
        weights: PairLosses,
        batches: Batches,
        rng: np.random.Generator,
    ) -> None:
        similar = pairs[pairs[:, 2] == 1]
        group = connected_components(similar[:, 0], similar[:, 1], row_count=row_count)
        if weights.closure:
            pairs = np.concatenate([pairs, _closure(pairs, group, rng=rng)])
        self._pairs = pairs
        self._group = group
        self._modality = modality
        self._weights = weights
        self._prefixes = batches.prefixes
        self._device = batches.device
        self._group_of = torch.from_numpy(group).to(batches.device)
        self.scores = PairScores(batches.prefixes).to(batches.device)
        self._order: list[NDArray[np.int64]] = []
        self._negatives: Tensor | None = None
        self.step_count = batches.step_count(len(pairs))
        self.mines = weights.mined_negatives > 0

    def parameters(self) -> list[nn.Parameter]:
        return list(self.scores.parameters())

    def begin_pass(self, rng: np.random.Generator, values: Mapping[str, NDArray[np.float32]] | None) -> None:
        self._order = np.array_split(rng.permutation(len(self._pairs)), self.step_count)
        if self.mines and values is not None:
            own = values[self._modality]
            pool = np.sort(rng.permutation(own.shape[0])[:MINING_POOL_LIMIT])
            room = pool.size - int(np.bincount(self._group[pool]).max())
            count = min(self._weights.mined_negatives, room)
            if count > 0:
                mined = hard_negatives(own, group=self._group, count=count, pool_rows=pool)
                self._negatives = torch.from_numpy(mined).to(self._device)

    def loss(self, coder: Coder, step: int) -> Tensor:
        pairs = torch.from_numpy(self._pairs[self._order[step % self.step_count]]).to(self._device)  # [b, 3]
        size = pairs.shape[0]
        values, codes = coder(self._modality, torch.cat([pairs[:, 0], pairs[:, 1]]))  # [2b, bits]
        similarity = pairs[:, 2].float()
        positive = torch.nonzero(pairs[:, 2])[:, 0]
        group = self._group_of[pairs[positive, 0]]
        excluded = group[:, None] == group[None, :]
        weights = self._weights
        loss = values.new_zeros(())
        for side, (queries, keys) in enumerate(
            ((values[:size], codes[size:]), (values[size:], codes[:size]))
        ):
            if weights.logistic:
                loss = loss + weights.logistic / 2 * self.scores.logistic(
                    queries, keys, similarity=similarity
                )
            if weights.snr:
                snr = losses.nested(losses.snr_contrastive, self._prefixes)
                loss = loss + weights.snr / 2 * snr(queries, keys, similarity=similarity)
            if weights.info_nce:
                info_nce = losses.nested(losses.info_nce, self._prefixes)
                inputs = [queries[positive], keys[positive]]
                if self._negatives is not None:
                    inputs.append(self._mined(coder, pairs[positive, side]))
                loss = loss + weights.info_nce / 2 * info_nce(
                    *inputs, temperature=weights.temperature, excluded=excluded
                )
        return loss

    def _mined(self, coder: Coder, rows: Tensor) -> Tensor:
        """Return the codes of the negatives mined for some rows, [b, count, bits]."""
        assert self._negatives is not None
        negatives = self._negatives[rows]  # [b, count]
        _, codes = coder(self._modality, negatives.reshape(-1))
        return codes.reshape(*negatives.shape, codes.shape[1])


def _closure(
    pairs: NDArray[np.int64], group: NDArray[np.int64], *, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return pairs [q, 3] of rows that a chain of similar pairs links and no pair of either kind does; up to
    as many as there are similar ones. Memory grows with the pairs given, not with what they link."""
    similar_count = int(np.count_nonzero(pairs[:, 2]))
    order = np.argsort(group, kind="stable")  # the members of each group side by side
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    behind = np.repeat(np.append(starts[1:], order.size), np.diff(np.append(starts, order.size)))
    partners = behind - np.arange(order.size) - 1  # members that follow a member in its group
    ends = np.cumsum(partners)
    total = int(ends[-1])
    # The pairs of all groups are numbered in turn; of those drawn no more than are given can be known.
    drawn = np.sort(rng.choice(total, size=min(total, similar_count + len(pairs)), replace=False))
    place = np.searchsorted(ends, drawn, side="right")
    linked = np.sort(np.column_stack([order[place], order[place + ends[place] - drawn]]), axis=1)
    row_count = group.size
    known = np.sort(pairs[:, :2], axis=1) @ [row_count, 1]
    linked = linked[~np.isin(linked @ [row_count, 1], known)]
    linked = linked[np.sort(rng.permutation(len(linked))[:similar_count])]
    return np.column_stack([linked, np.ones(len(linked), dtype=np.int64)])

"""Objectives: what a step of training asks of the codes, from pairs, labels, neighbours or matched rows.

An objective draws its batches, adds up its losses, and scores towers on what was held out. In each loss a row
is once the query, with its real values, and once the stored code, so that the codes serve the asymmetric and
the symmetric distance. Those that compare rows do so on each prefix of the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

from hashing.deep import losses
from hashing.deep.config import LabelLosses, MatchLosses, NeighbourLosses, PairLosses
from hashing.deep.miners import hard_negatives, near_rows
from hashing.deep.pairs import connected_components
from hashing.deep.scorer import PairScores

EQUAL_CODES_THETA = 8.0
"""theta of the pairwise likelihood for equal codes, whatever their count of bits."""

NEIGHBOUR_COUNT = 10
NEIGHBOUR_POOL_LIMIT = 50_000
LSH_RADIUS, LSH_FACTOR = 0.7, 2.0
"""Of the neural LSH loss, in Euclidean distance of codes scaled to length 1; far ones are beyond 1.4."""

MINING_POOL_LIMIT = 20_000


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


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Rows of two modalities that go together. rows: int64 [m, 2], of their training parts. items: int64 [m],
    matches of one are no negatives of each other. weights: float32 [m], of each in the mean."""

    rows: NDArray[np.int64]
    items: NDArray[np.int64]
    weights: NDArray[np.float32]


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
        self.mines = weights.mined_negatives > 0 and weights.info_nce > 0

    def parameters(self) -> list[nn.Parameter]:
        return list(self.scores.parameters())

    def begin_pass(self, rng: np.random.Generator, values: Mapping[str, NDArray[np.float32]] | None) -> None:
        self._order = np.array_split(rng.permutation(len(self._pairs)), self.step_count)
        if self.mines and values is not None:
            own = values[self._modality][: self._group.size]  # without partners rebuilt for other rows
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
                loss = loss + weights.logistic / 2 * self._logistic(queries, keys, similarity=similarity)
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

    def _logistic(self, queries: Tensor, keys: Tensor, *, similarity: Tensor) -> Tensor:
        """The logistic loss, mean over prefixes, each with its own scale and terms."""
        parts = []
        for index, count in enumerate(self._prefixes):
            scale, bias = self.scores.terms(index, queries, keys)
            parts.append(
                losses.pair_logistic(
                    queries[:, :count], keys[:, :count], similarity=similarity, scale=scale, bias=bias
                )
            )
        return torch.stack(parts).mean()

    def _mined(self, coder: Coder, rows: Tensor) -> Tensor:
        """Return the codes of the negatives mined for some rows, [b, count, bits]."""
        assert self._negatives is not None
        negatives = self._negatives[rows]  # [b, count]
        _, codes = coder(self._modality, negatives.reshape(-1))
        return codes.reshape(*negatives.shape, codes.shape[1])


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
        self._label_vectors = _tensors(label_vectors, batches.device)
        self._centres = _tensors(centres, batches.device)
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
                loss = loss + self._weights.likelihood * likelihood(
                    values, codes, first=vectors, second=vectors, prefixes=self._prefixes, same_rows=True
                )
            if self._weights.central:
                loss = loss + self._weights.central * losses.central_similarity(
                    values, self._centres[modality][rows]
                )
            parts.append(loss)
        return torch.stack(parts).mean()


class NeighbourObjective:
    """What is near in the embeddings stays near in the codes, so that candidates are found.

    rows: float32 [n, dim], the modality's training part, of which up to NEIGHBOUR_POOL_LIMIT serve.
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
        self._near = near_rows(rows[self._pool], count=NEIGHBOUR_COUNT)  # [n, k], places in the pool
        self._unit = functional.normalize(torch.from_numpy(rows[self._pool]), dim=1).to(batches.device)
        self._modality = modality
        self._weights = weights
        self._prefixes = batches.prefixes
        self._device = batches.device
        self._scale = nn.Parameter(torch.tensor(1.0, device=batches.device))
        self._order: list[NDArray[np.int64]] = []
        self.step_count = batches.step_count(2 * self._pool.size)
        self.mines = False

    def parameters(self) -> list[nn.Parameter]:
        return [self._scale]

    def begin_pass(self, rng: np.random.Generator, values: Mapping[str, NDArray[np.float32]] | None) -> None:
        anchors = rng.permutation(self._pool.size)
        partners = self._near[anchors, rng.integers(0, self._near.shape[1], size=anchors.size)]
        self._order = np.array_split(np.column_stack([anchors, partners]), self.step_count)

    def loss(self, coder: Coder, step: int) -> Tensor:
        batch = self._order[step % self.step_count]
        size = batch.shape[0]
        places = np.concatenate([batch[:, 0], batch[:, 1]])
        values, codes = coder(self._modality, torch.from_numpy(self._pool[places]).to(self._device))
        unit = self._unit[torch.from_numpy(places).to(self._device)]
        targets = unit @ unit.T  # [2b, 2b], the embeddings' cosines
        weights = self._weights
        loss = values.new_zeros(())
        if weights.distance:
            preserved = losses.nested(losses.distance_preserving, self._prefixes)
            loss = loss + weights.distance * preserved(values, codes, targets=targets, scale=self._scale)
        far = torch.roll(torch.arange(size), 1)  # another anchor's row, for the losses on triples
        if weights.margin:
            margin = losses.nested(losses.margin_mse, self._prefixes)
            teacher = targets.diagonal(size)[:size] - targets[torch.arange(size), far]
            loss = loss + weights.margin * margin(
                values[:size], codes[size:], codes[:size][far], teacher_margin=teacher
            )
        if weights.info_nce:
            info_nce = losses.nested(losses.info_nce, self._prefixes)
            for queries, keys in ((values[:size], codes[size:]), (values[size:], codes[:size])):
                loss = loss + weights.info_nce / 2 * info_nce(queries, keys, temperature=weights.temperature)
        if weights.lsh:
            lsh = losses.nested(_unit_lsh, self._prefixes)
            loss = loss + weights.lsh * lsh(values[:size], codes[size:], codes[:size][far])
        return loss


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
        self._label_vectors = _tensors(label_vectors, batches.device)
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
            loss = loss + self._weights.likelihood * likelihood(
                queries,
                keys,
                first=self._label_vectors[modalities[near]][rows[:, near]],
                second=self._label_vectors[modalities[other]][rows[:, other]],
                prefixes=self._prefixes,
                same_rows=False,
            )
        return loss


def likelihood(
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


def _unit_lsh(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    units = [functional.normalize(side, dim=1) for side in (anchor, positive, negative)]
    return losses.neural_lsh(*units, radius=LSH_RADIUS, factor=LSH_FACTOR)


def _closure(
    pairs: NDArray[np.int64], group: NDArray[np.int64], *, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return pairs [q, 3] of rows that a chain of similar pairs links and no pair of either kind does; up to
    as many as there are similar ones."""
    similar_count = int(np.count_nonzero(pairs[:, 2]))
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    made = []
    for members in np.split(order, starts[1:]):
        if members.size > 2:
            left, right = np.triu_indices(members.size, 1)
            made.append(np.column_stack([members[left], members[right]]))
    if not made:
        return np.empty((0, 3), dtype=np.int64)
    linked = np.concatenate(made)
    known = {tuple(sorted(pair)) for pair in pairs[:, :2].tolist()}
    fresh = np.array([tuple(sorted(pair)) not in known for pair in linked.tolist()])
    linked = linked[fresh]
    linked = linked[np.sort(rng.permutation(len(linked))[:similar_count])]
    return np.column_stack([linked, np.ones(len(linked), dtype=np.int64)])


def _tensors(arrays: Mapping[str, NDArray[np.float32]], device: torch.device) -> dict[str, Tensor]:
    return {key: torch.from_numpy(array).to(device) for key, array in arrays.items()}

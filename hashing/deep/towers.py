"""Towers: embeddings -> real values h, each bit of mean 0 and variance 1 over the training rows.

A BatchNorm without scale and shift ends each tower, so that every bit splits the rows evenly whatever the
losses ask for. `settle` takes its statistics from all training rows at last; `export` folds it away.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

from hashing.deep.binarizers import LearnedThreshold
from hashing.embeddings import CHUNK_ROWS
from hashing.feature_tower import FeatureTower
from hashing.projection import Projection
from hashing.tower import InstanceMap, Tower

LEAST_LENGTH = 1e-6
"""Of a column of L: a shorter one is left as it is."""

MEAN_TOLERANCE = 1e-5
"""Of the values h: how exactly a linear tower's shift must be the image of a mean of embeddings."""


class LinearTower(nn.Module):
    """h = BatchNorm(x L) - t(x).

    weight: start of L, float32 [dim, code_bits] (a fitted projection's). threshold: whether t is learned;
    0 otherwise.
    """

    def __init__(self, weight: NDArray[np.float32], *, threshold: bool = False) -> None:
        super().__init__()
        dim, code_bits = weight.shape
        self.linear = nn.Linear(dim, code_bits, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(weight.T.copy()))
        self.norm = nn.BatchNorm1d(code_bits, affine=False)
        self.threshold = LearnedThreshold(dim, code_bits) if threshold else None
        self.register_buffer("input_mean", torch.zeros(dim))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map float [n, dim] to h, float [n, code_bits]."""
        values = self.before_norm(embeddings)
        if self.training and values.shape[0] < 2:  # no batch to take statistics of: those so far
            norm = self.norm
            values = functional.batch_norm(values, norm.running_mean, norm.running_var, eps=norm.eps)
        else:
            values = self.norm(values)
        if self.threshold is not None:
            values = self.threshold(values, embeddings)
        return values

    def before_norm(self, embeddings: Tensor) -> Tensor:
        """Map float [n, dim] to what the BatchNorm reads, float [n, code_bits]."""
        values: Tensor = self.linear(embeddings)
        return values


class ResidualTower(LinearTower):
    """h = BatchNorm(x L + D dropout(gelu(U dropout(x) + u))) - t(x).

    hidden_width: of the MLP, whose D starts at 0, so that training starts at the linear path. dropout: of the
    hidden layer; input_dropout: of what the MLP reads, scaled to components of about 1.
    """

    def __init__(
        self,
        weight: NDArray[np.float32],
        *,
        hidden_width: int,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        threshold: bool = False,
    ) -> None:
        super().__init__(weight, threshold=threshold)
        dim, code_bits = weight.shape
        self.input_scale = math.sqrt(dim)  # unit rows have components of about 1 / sqrt(dim)
        self.input_dropout = nn.Dropout(input_dropout)
        self.up = nn.Linear(dim, hidden_width)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(hidden_width, code_bits, bias=False)
        nn.init.zeros_(self.down.weight)

    def before_norm(self, embeddings: Tensor) -> Tensor:
        """Map float [n, dim] to what the BatchNorm reads, float [n, code_bits]."""
        hidden = self.up(self.input_dropout(self.input_scale * embeddings))  # [n, hidden_width]
        hidden = self.dropout(functional.gelu(hidden, approximate="tanh"))
        values: Tensor = self.linear(embeddings) + self.down(hidden)
        return values


class CentredTower(LinearTower):
    """h = (x - m) L with a learned mean m, the form of a `Projection`."""

    def __init__(self, weight: NDArray[np.float32], *, mean: NDArray[np.float32]) -> None:
        super().__init__(weight)
        self.mean = nn.Parameter(torch.tensor(mean))

    def before_norm(self, embeddings: Tensor) -> Tensor:
        """Map float [n, dim] to what the BatchNorm reads, float [n, code_bits]."""
        values: Tensor = self.linear(embeddings - self.mean)
        return values


def restore(instance_map: InstanceMap, *, dropout: float = 0.0, input_dropout: float = 0.0) -> LinearTower:
    """Return the tower that `export` turns into `instance_map`, to go on learning from there.

    Its BatchNorm is a fixed scale, in training too (see `train_mode`): stored codes were made with it. Each
    column of L is of length 1 before it, as where training starts, so that one learning rate fits both.
    Raises: ValueError for a map that no tower was exported to.
    """
    if isinstance(instance_map, FeatureTower):
        raise ValueError("a map with random features was solved in closed form and has no tower to restore")
    linear = instance_map.weight if isinstance(instance_map, Projection) else instance_map.linear
    lengths = np.linalg.norm(linear, axis=0).astype(np.float32)  # [code_bits]
    lengths[lengths < LEAST_LENGTH] = 1
    if isinstance(instance_map, Projection):
        tower: LinearTower = CentredTower(linear / lengths, mean=instance_map.mean)
    else:
        tower = ResidualTower(
            linear / lengths,
            hidden_width=instance_map.hidden_width,
            dropout=dropout,
            input_dropout=input_dropout,
            threshold=True,
        )
        assert isinstance(tower, ResidualTower) and tower.threshold is not None
        with torch.no_grad():
            tower.up.weight.copy_(torch.tensor(instance_map.hidden.T / tower.input_scale))
            tower.up.bias.copy_(torch.tensor(instance_map.hidden_bias))
            tower.down.weight.copy_(torch.tensor((instance_map.output / lengths).T))
            tower.threshold.linear.bias.copy_(torch.tensor(instance_map.offset))
    assert tower.norm.running_var is not None
    tower.norm.running_var.copy_(torch.tensor(lengths.astype(np.float64) ** -2 - tower.norm.eps))
    return tower.eval()


def train_mode(tower: LinearTower) -> None:
    """Let dropout act, but leave the BatchNorm the scale that it is."""
    tower.train()
    tower.norm.eval()


def settle(tower: LinearTower, rows: NDArray[np.float32]) -> None:
    """Take the statistics of the BatchNorm from all `rows`, float32 [n, dim], instead of the last batches.

    Leaves the tower in evaluation mode. Precise BatchNorm (Wu & Johnson 2021).
    """
    tower.eval()
    device = tower.linear.weight.device
    total, squares = (torch.zeros(tower.linear.out_features, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        for start in range(0, rows.shape[0], CHUNK_ROWS):
            chunk = torch.from_numpy(rows[start : start + CHUNK_ROWS]).to(device)
            values = tower.before_norm(chunk).double().cpu()  # [<= CHUNK_ROWS, code_bits]
            total += values.sum(dim=0)
            squares += (values**2).sum(dim=0)
        mean = total / rows.shape[0]
        assert tower.norm.running_mean is not None and tower.norm.running_var is not None
        tower.norm.running_mean.copy_(mean)
        tower.norm.running_var.copy_((squares / rows.shape[0] - mean**2).clamp_min(0))
        tower.get_buffer("input_mean").copy_(torch.from_numpy(rows.mean(axis=0, dtype=np.float64)))


def export(tower: LinearTower) -> InstanceMap:
    """Return a settled tower as arrays: its h in evaluation mode, the BatchNorm folded into the weights.

    A linear tower gives a plain `Projection`, a residual one a `Tower`.
    Raises: ValueError for a linear tower whose shift is not the image of any mean of embeddings: one that was
    not settled, or that learned a threshold, with more bits than dimensions.
    """
    mean, variance = (_array(tower.norm.running_mean), _array(tower.norm.running_var))
    scale = 1 / np.sqrt(variance + tower.norm.eps)  # [code_bits]
    linear = _array(tower.linear.weight).T * scale  # [dim, code_bits]
    offset = mean * scale
    if tower.threshold is not None:
        linear = linear - _array(tower.threshold.linear.weight).T
        offset = offset + _array(tower.threshold.linear.bias)
    if isinstance(tower, CentredTower):
        assert not mean.any(), "the mean is that of the embeddings"
        return Projection(mean=_float32(_array(tower.mean)), weight=_float32(linear))
    if not isinstance(tower, ResidualTower):
        input_mean = _mean_of(offset, linear, near=_array(tower.get_buffer("input_mean")))
        return Projection(mean=_float32(input_mean), weight=_float32(linear))
    return Tower(
        linear=_float32(linear),
        hidden=_float32(_array(tower.up.weight).T * tower.input_scale),
        hidden_bias=_float32(_array(tower.up.bias)),
        output=_float32(_array(tower.down.weight).T * scale),
        offset=_float32(offset),
    )


def _mean_of(
    offset: NDArray[np.float64], linear: NDArray[np.float64], *, near: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the m closest to `near` with m @ linear = offset, float64 [dim]."""
    mean = near + np.linalg.lstsq(linear.T, offset - near @ linear, rcond=None)[0]
    if not np.allclose(mean @ linear, offset, rtol=0, atol=MEAN_TOLERANCE):
        raise ValueError("no mean of embeddings gives the shift of this linear tower: settle it before")
    return mean


def _array(tensor: Tensor | None) -> NDArray[np.float64]:
    assert tensor is not None
    array: NDArray[np.float64] = tensor.detach().cpu().double().numpy()
    return array


def _float32(array: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.ascontiguousarray(array, dtype=np.float32)

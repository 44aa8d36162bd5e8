"""The gradient-trained parts of a verifier: a learned metric, and networks on evidence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

from hashing.deep.schedule import warmup_schedule
from hashing.evidence_network import EvidenceNetwork

START_SCALE, START_BIAS = 10.0, -7.0
SCALE_LEARNING_RATE = 0.02
WARMUP_SHARE = 0.1
LEAST_STEPS = 200
"""Few pairs are passed over more often."""

METRIC_BATCH, METRIC_RATE, METRIC_DECAY = 256, 2e-3, 0.01
NETWORK_BATCH, NETWORK_RATE, NETWORK_DECAY = 256, 2e-3, 0.05


def fit_metric(
    embeddings: NDArray[np.float32],
    pairs: NDArray[np.int64],
    *,
    width: int,
    epochs: int,
    dropout: float,
    seed: int,
) -> NDArray[np.float32]:
    """Learn a linear map under which the cosine tells the same from others, float32 [dim, min(width, dim)].

    embeddings: float32 [n, dim], unit. pairs: int64 [p, 3] of row, row, 1 or 0. Starts at the principal axes;
    the loss is the logistic one of a scaled cosine.
    """
    rows = np.unique(pairs[:, :2])
    centred = embeddings[rows] - embeddings[rows].mean(axis=0)
    axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))[1][:, ::-1][:, :width]
    metric = nn.Parameter(torch.from_numpy(np.ascontiguousarray(axes, dtype=np.float32)))
    scale, bias = (nn.Parameter(torch.tensor(start)) for start in (START_SCALE, START_BIAS))
    optimiser = torch.optim.AdamW(
        [
            {"params": [metric], "lr": METRIC_RATE, "weight_decay": METRIC_DECAY},
            {"params": [scale, bias], "lr": SCALE_LEARNING_RATE, "weight_decay": 0.0},
        ]
    )
    unit = torch.from_numpy(embeddings)
    chosen = torch.from_numpy(pairs)

    def loss(batch: Tensor) -> Tensor:
        first, second, same = chosen[batch].unbind(dim=1)
        one, other = (functional.dropout(unit[rows], p=dropout) @ metric for rows in (first, second))
        cosine = functional.cosine_similarity(one, other)
        return functional.binary_cross_entropy_with_logits(scale * cosine + bias, same.float())

    _descend(loss, optimiser, count=pairs.shape[0], batch_size=METRIC_BATCH, epochs=epochs, seed=seed)
    return metric.detach().numpy().copy()


def fit_network(
    features: NDArray[np.float32],
    same: NDArray[np.bool_],
    *,
    bins: int,
    width: int,
    epochs: int,
    dropout: float,
    input_dropout: float,
    seed: int,
) -> EvidenceNetwork:
    """Train a network on features, float32 [p, k]; its units are up to `bins` between quantiles of each."""
    column, low, scale = _units(features, bins=bins)
    encoder = EvidenceNetwork(
        column=column,
        low=low,
        scale=scale,
        hidden=np.zeros((column.size, 0), dtype=np.float32),
        hidden_bias=np.zeros(0, dtype=np.float32),
        output=np.zeros(0, dtype=np.float32),
        bias=np.zeros(1, dtype=np.float32),
    )
    units = encoder.units(features)
    mean = units.mean(axis=0)
    units -= mean
    hidden = nn.Linear(column.size, width)
    output = nn.Linear(width, 1)
    optimiser = torch.optim.AdamW(
        [*hidden.parameters(), *output.parameters()], lr=NETWORK_RATE, weight_decay=NETWORK_DECAY
    )
    read, labels = torch.from_numpy(units), torch.from_numpy(same.astype(np.float32))

    def loss(batch: Tensor) -> Tensor:
        inside = functional.dropout(
            torch.relu(hidden(functional.dropout(read[batch], p=input_dropout))), p=dropout
        )
        return functional.binary_cross_entropy_with_logits(output(inside)[:, 0], labels[batch])

    _descend(loss, optimiser, count=units.shape[0], batch_size=NETWORK_BATCH, epochs=epochs, seed=seed)
    weight = hidden.weight.detach().double().numpy().T  # [u, width]
    return EvidenceNetwork(
        column=column,
        low=low,
        scale=scale,
        hidden=np.ascontiguousarray(weight, dtype=np.float32),
        hidden_bias=(hidden.bias.detach().double().numpy() - mean.astype(np.float64) @ weight).astype(
            np.float32
        ),
        output=output.weight.detach().numpy()[0].copy(),
        bias=output.bias.detach().numpy().copy(),
    )


def _units(
    features: NDArray[np.float32], *, bins: int
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """Return column, low and scale of a unit for each bin between distinct quantiles of a feature."""
    column, low, scale = [], [], []
    quantiles = np.quantile(features, np.linspace(0, 1, bins + 1), axis=0, method="nearest")  # [bins + 1, k]
    for feature in range(features.shape[1]):
        edges = np.unique(quantiles[:, feature].astype(np.float32))
        column += [feature] * (edges.size - 1)
        low += edges[:-1].tolist()
        scale += (1 / np.diff(edges.astype(np.float64))).tolist()
    return (
        np.array(column, dtype=np.int32),
        np.array(low, dtype=np.float32),
        np.array(scale, dtype=np.float32),
    )


def _descend(
    loss: Callable[[Tensor], Tensor],
    optimiser: torch.optim.Optimizer,
    *,
    count: int,
    batch_size: int,
    epochs: int,
    seed: int,
) -> None:
    """Take `epochs` passes in random order, more where that is fewer than LEAST_STEPS steps.

    The rate grows over the first steps and falls to 0.
    """
    rng = np.random.default_rng(seed)
    steps = -(-count // batch_size)
    epochs = max(epochs, -(-LEAST_STEPS // steps))
    schedule = warmup_schedule(optimiser, step_count=epochs * steps, warmup_share=WARMUP_SHARE)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(count), steps):
            optimiser.zero_grad()
            loss(torch.from_numpy(batch)).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()

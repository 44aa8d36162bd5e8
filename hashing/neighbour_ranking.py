"""Refine a linear map so that mapped queries rank the stored rows as the old embedder's own queries do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashing.embeddings import unit_rows
from hashing.metrics import QUERY_CHUNK, top_columns

OWN_COSINE = np.float32(0.9999)
"""A stored row at least this close to a text's own embedding is the text itself, no neighbour of it."""

NEIGHBOURS = 32
"""Stored rows that each text brings to its batch: they are told apart for it, and for the batch's others."""

TEMPERATURE = np.float32(0.05)
LEARNING_RATE = 1e-3
BATCH = 128
LEAST_STEPS = 64
"""Fewer pairs than give this many steps are gone through more often."""

EPOCHS = 8
WARM_STEPS = 20
MIXED_SHARE = 0.5
"""Of a batch's rows mixed with another in both spaces, by up to half: a linear map maps mixtures alike."""

FIRST_DECAY, SECOND_DECAY = 0.9, 0.99
SMALLEST = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """Of each text among the stored rows. rows: intp [n, k], nearest by the old embedding, in no order.
    own: intp [n], the row that holds the text itself, -1 where none does."""

    rows: NDArray[np.intp]
    own: NDArray[np.intp]


def find_neighbours(
    old: NDArray[np.float32], stored: NDArray[np.float32], *, count: int = NEIGHBOURS
) -> Neighbours:
    """Find each text's nearest stored rows but itself, exactly; O(n x m x dim).

    old: float32 [n, dim], stored: float32 [m, dim], unit. Of fewer than `count` other rows all are returned;
    where a text is stored several times its copies come last.
    """
    rows, own = [], []
    for start in range(0, old.shape[0], QUERY_CHUNK):
        scores = old[start : start + QUERY_CHUNK] @ stored.T  # [chunk, m]
        nearest = scores.argmax(axis=1)
        copies = scores >= OWN_COSINE
        own.append(np.where(copies.any(axis=1), nearest, -1))
        scores[copies] = -2.0
        rows.append(top_columns(scores, count=count))
    return Neighbours(rows=np.concatenate(rows), own=np.concatenate(own))


def refine_by_ranking(
    weight: NDArray[np.float64],
    offset: NDArray[np.float64],
    *,
    new: NDArray[np.float32],
    old: NDArray[np.float32],
    stored: NDArray[np.float32],
    neighbours: Neighbours,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight and offset after gradient steps on how the mapped texts rank stored rows.

    weight: float64 [new_dim, old_dim], offset: float64 [old_dim]. new: float32 [n, new_dim], centred. old:
    float32 [n, old_dim], stored: float32 [m, old_dim], unit. Minimises the cross entropy between the softmax
    of the old embedding's cosines with the stored rows and that of the mapped one's, over the neighbours of a
    batch's texts; a text's own row is left out (listwise distillation: Cao et al., "Learning to rank: from
    pairwise to listwise approach", ICML 2007). Adam with a rate that rises, then falls to zero.
    """
    rng = np.random.default_rng(seed)
    values = [weight.astype(np.float32), offset.astype(np.float32)]
    first = [np.zeros_like(value) for value in values]
    second = [np.zeros_like(value) for value in values]
    steps_an_epoch = -(-new.shape[0] // BATCH)
    epochs = max(EPOCHS, -(-LEAST_STEPS // steps_an_epoch))
    step_count, step = epochs * steps_an_epoch, 0
    for _ in range(epochs):
        order = rng.permutation(new.shape[0])
        for start in range(0, order.size, BATCH):
            batch = order[start : start + BATCH]
            rows, queries = _mix(new, old, batch, rng=rng)
            candidates, own = _candidates(neighbours, batch)
            gradients = _gradients(values[0], values[1], rows, queries, stored=stored[candidates], own=own)
            step += 1
            rate = LEARNING_RATE * min(1.0, step / WARM_STEPS) * (1 - step / (step_count + 1))
            for value, gradient, mean, square in zip(values, gradients, first, second, strict=True):
                mean += (1 - FIRST_DECAY) * (gradient - mean)
                square += (1 - SECOND_DECAY) * (gradient**2 - square)
                corrected = np.sqrt(square / (1 - SECOND_DECAY**step)) + SMALLEST
                value -= rate / (1 - FIRST_DECAY**step) * (mean / corrected)
    return values[0].astype(np.float64), values[1].astype(np.float64)


def _mix(
    new: NDArray[np.float32],
    old: NDArray[np.float32],
    batch: NDArray[np.intp],
    *,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The batch's rows of both spaces, some mixed with rows drawn from all; the old ones unit."""
    others = rng.integers(new.shape[0], size=batch.size)
    share = np.where(rng.random(batch.size) < MIXED_SHARE, rng.random(batch.size) / 2, 0.0)
    mixed = share.astype(np.float32)[:, None]
    rows = new[batch] + mixed * (new[others] - new[batch])
    return rows, unit_rows(old[batch] + mixed * (old[others] - old[batch]))


def _candidates(
    neighbours: Neighbours, batch: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The stored rows that the batch's texts are compared with, ascending, and which are a text's own
    (bool [b, candidates])."""
    candidates = np.unique(neighbours.rows[batch])
    return candidates, candidates[None, :] == neighbours.own[batch][:, None]


def _gradients(
    weight: NDArray[np.float32],
    offset: NDArray[np.float32],
    rows: NDArray[np.float32],
    queries: NDArray[np.float32],
    *,
    stored: NDArray[np.float32],
    own: NDArray[np.bool_],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of the mean cross entropy, by weight and by offset."""
    mapped = rows @ weight + offset  # [b, old_dim]
    norms = np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), np.float32(SMALLEST))
    unit = mapped / norms
    excess = _softmax(unit @ stored.T, own) - _softmax(queries @ stored.T, own)  # [b, candidates]
    by_unit = excess @ stored / (TEMPERATURE * rows.shape[0])
    by_mapped = (by_unit - np.einsum("bd,bd->b", by_unit, unit)[:, None] * unit) / norms
    return rows.T @ by_mapped, by_mapped.sum(axis=0)


def _softmax(cosines: NDArray[np.float32], own: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Of cosines [b, k] at TEMPERATURE, those of own rows left out."""
    logits = cosines / TEMPERATURE
    logits[own] = -np.inf
    logits -= np.maximum(logits.max(axis=1, keepdims=True), np.float32(-1e6))
    np.exp(logits, out=logits)
    logits /= np.maximum(logits.sum(axis=1, keepdims=True), np.float32(SMALLEST))
    return logits

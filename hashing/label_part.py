"""The two kinds of label part: a discriminant over classes, and a regression on their codes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hashing.analytic import LabelHead, LabelState, RandomFeatures
from hashing.class_scores import ClassHead, QuadraticFeatures
from hashing.class_state import ClassState
from hashing.config import EncoderConfig
from hashing.embeddings import CHUNK_ROWS, as_rows

LabelPart = LabelHead | ClassHead
"""What serves. Both have `features`, `class_codes`, `modality` and `values`."""

LearnedState = LabelState | ClassState
"""What learns. Both have `issue`, `with_codes`, `add`, `remove`, `emptied` and `head`."""

LearnedStates = Mapping[str, LearnedState]
"""Modality -> what its label part was solved from. The modalities share their class codes."""


def empty_state(dim: int, *, config: EncoderConfig, rows: NDArray[np.floating] | None = None) -> LearnedState:
    """Return the state of `config.label_method` before the first row, for embeddings of `dim` dimensions.

    rows: float [n, dim] of the same embedder, which shape the features of a discriminant (`draw_quadratic`).
    Raises: EmbeddingsError; DimensionError.
    """
    if config.label_method == "regression":
        return LabelState.empty(dim, config=config)
    return ClassState.empty(dim, config=config, rows=rows)


def same_features(
    first: RandomFeatures | QuadraticFeatures, second: RandomFeatures | QuadraticFeatures
) -> bool:
    """Tell whether two label parts read embeddings alike."""
    own, other = first.arrays(), second.arrays()
    return own.keys() == other.keys() and all(np.array_equal(own[name], other[name]) for name in own)


def is_finite(part: LabelPart, embeddings: NDArray[np.floating]) -> bool:
    """Tell whether a label part's arrays are finite, and what it makes of float [n, dim].

    A discriminant ranks scores that are not, so its values do not show it: its scores are read.
    Raises: EmbeddingsError; DimensionError.
    """
    if isinstance(part, ClassHead):
        arrays, evaluate = [part.class_weight, part.class_bias], part.scores
    else:
        arrays, evaluate = [part.weight], part.values
    if not all(np.isfinite(array).all() for array in (*arrays, *part.features.arrays().values())):
        return False
    rows = as_rows(embeddings, dim=part.features.dim)
    return all(
        np.isfinite(evaluate(rows[start : start + CHUNK_ROWS])).all()
        for start in range(0, len(rows), CHUNK_ROWS)
    )

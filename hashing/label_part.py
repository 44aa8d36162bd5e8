"""The two kinds of label part: a discriminant over classes, and a regression on their codes."""

from __future__ import annotations

import numpy as np

from hashing.analytic import LabelHead, LabelState, RandomFeatures
from hashing.class_scores import ClassHead, QuadraticFeatures
from hashing.class_state import ClassState
from hashing.config import EncoderConfig

LabelPart = LabelHead | ClassHead
"""What serves. Both have `features`, `class_codes`, `modality` and `values`."""

LearnedState = LabelState | ClassState
"""What learns. Both have `issue`, `with_codes`, `add`, `remove`, `solved` and `head`."""


def empty_state(dim: int, *, config: EncoderConfig) -> LearnedState:
    """Return the state of `config.label_method` before the first row, for embeddings of `dim` dimensions."""
    if config.label_method == "regression":
        return LabelState.empty(dim, config=config)
    return ClassState.empty(dim, config=config)


def same_features(
    first: RandomFeatures | QuadraticFeatures, second: RandomFeatures | QuadraticFeatures
) -> bool:
    """Tell whether two label parts read embeddings alike."""
    own, other = first.arrays(), second.arrays()
    return own.keys() == other.keys() and all(np.array_equal(own[name], other[name]) for name in own)

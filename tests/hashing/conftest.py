"""Rows and trained encoders that several test files share."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from hashing import EncoderConfig, TrainedEncoder, train_encoder

ClusteredRows = tuple[NDArray[np.float32], list[list[str]]]
DrawClusters = Callable[..., ClusteredRows]


def _draw_clusters(
    *, class_count: int, rows_per_class: int, dim: int = 32, spread: float = 0.5, seed: int = 0
) -> ClusteredRows:
    """Unit rows around random centres; class c is labelled "c<c>"; rows are shuffled."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((class_count, dim))
    classes = rng.permutation(np.repeat(np.arange(class_count), rows_per_class))
    rows = centres[classes] + spread * rng.standard_normal((classes.size, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), [[f"c{number}"] for number in classes]


@pytest.fixture(scope="session")
def draw_clusters() -> DrawClusters:
    return _draw_clusters


@pytest.fixture(scope="session")
def small_config() -> EncoderConfig:
    return EncoderConfig(
        code_bits=64,
        label_bits=64,
        itq_iterations=10,
        label_method="regression",
        feature_count=256,
        gamma=1.0,
        ridge=0.01,
    )


@pytest.fixture(scope="session")
def trained(small_config: EncoderConfig) -> TrainedEncoder:
    """Trained on 600 rows of 8 classes c0..c7, dim 32."""
    rows, labels = _draw_clusters(class_count=8, rows_per_class=75)
    return train_encoder(rows, config=small_config, labels=labels)

"""Radii on real rows that no encoder was trained on: of the same kind, and of another."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hashing import Encoder, EncoderConfig, train_encoder

DATA = Path(__file__).parents[2].parent / "shared" / "data"
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)

pytestmark = pytest.mark.skipif(
    not (DATA / "question_pairs.npz").exists() or not (DATA / "intents.npz").exists(),
    reason="development data (question_pairs.npz, intents.npz) is not beside the project",
)


def _rows(name: str, *, start: int, stop: int) -> NDArray[np.float32]:
    with np.load(DATA / name) as content:
        rows = content["embeddings"][start:stop].astype(np.float32)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _coverage(encoder: Encoder, rows: NDArray[np.float32]) -> dict[float, float]:
    """The share of all pairs within each threshold that are within all of its radii."""
    cosines = np.triu(rows @ rows.T, k=1)
    first, second = np.nonzero(cosines >= 1 - max(THRESHOLDS))
    cosine_distances = 1 - cosines[first, second]
    bits = encoder.instance_bits(rows)
    flipped = np.cumsum(bits[first] != bits[second], axis=1)
    coverage = {}
    for threshold in THRESHOLDS:
        near = cosine_distances <= threshold
        within = [flipped[near, count - 1] <= radius for count, radius in encoder.radii(threshold).items()]
        coverage[threshold] = float(np.all(within, axis=0).mean())
    return coverage


@pytest.fixture(scope="module", params=[100, 3000])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """Trained on so many questions."""
    config = EncoderConfig(code_bits=256, itq_iterations=20)
    return train_encoder(_rows("question_pairs.npz", start=0, stop=request.param), config=config).encoder


@pytest.mark.parametrize("name", ["question_pairs.npz", "intents.npz"])
def test_radii_hold_together_on_rows_never_seen(encoder: Encoder, name: str) -> None:
    coverage = _coverage(encoder, _rows(name, start=12_000, stop=16_000))
    assert min(coverage.values()) >= 0.999

"""Partners rebuilt for rows that have none."""

import numpy as np
import pytest

from hashing.deep.reconstruction import ANCHOR_COUNT, CHUNK_ROWS, rebuild_partners


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _draw(count: int, dim: int, *, seed: int) -> np.ndarray:
    return _unit(np.random.default_rng(seed).standard_normal((count, dim)))


def test_row_equal_to_an_anchor_gets_nearly_its_partner() -> None:
    anchors, partners = _draw(200, 32, seed=0), _draw(200, 16, seed=1)
    rebuilt = rebuild_partners(anchors[:50], anchors=anchors, partners=partners)
    assert (rebuilt * partners[:50]).sum(axis=1).min() > 0.99
    np.testing.assert_allclose(np.linalg.norm(rebuilt, axis=1), 1, rtol=1e-5)


def test_linear_relation_of_the_modalities_is_recovered() -> None:
    # Anchors that span the rows: a combination of at most ANCHOR_COUNT of them gives any row.
    rng = np.random.default_rng(2)
    relation = rng.standard_normal((5, 12))
    anchors = _draw(300, 5, seed=3)
    rows = _draw(40, 5, seed=4)
    rebuilt = rebuild_partners(rows, anchors=anchors, partners=(anchors @ relation).astype(np.float32))
    assert (rebuilt * _unit(rows @ relation)).sum(axis=1).min() > 0.99


@pytest.mark.parametrize("anchor_count", [1, ANCHOR_COUNT - 1])
def test_few_anchors_are_enough(anchor_count: int) -> None:
    anchors, partners = _draw(anchor_count, 8, seed=5), _draw(anchor_count, 4, seed=6)
    rebuilt = rebuild_partners(_draw(7, 8, seed=7), anchors=anchors, partners=partners)
    assert rebuilt.shape == (7, 4)
    assert rebuilt.dtype == np.float32
    assert np.isfinite(rebuilt).all()


def test_rows_of_several_chunks_equal_each_alone() -> None:
    anchors, partners = _draw(30, 8, seed=8), _draw(30, 4, seed=9)
    rows = _draw(CHUNK_ROWS + 3, 8, seed=10)
    rebuilt = rebuild_partners(rows, anchors=anchors, partners=partners)
    last = rebuild_partners(rows[-5:], anchors=anchors, partners=partners)
    np.testing.assert_allclose(rebuilt[-5:], last, atol=1e-5)

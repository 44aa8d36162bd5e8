"""Towers in torch, and the same ones in numpy."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from hashing.deep.towers import LinearTower, ResidualTower, export, settle  # noqa: E402
from hashing.embeddings import CHUNK_ROWS  # noqa: E402
from hashing.projection import Projection, random_orthonormal  # noqa: E402
from hashing.tower import Tower, twice_gelu  # noqa: E402

MARGIN = 1e-5


def _rows(count: int, *, dim: int, seed: int = 0) -> np.ndarray:
    """Unit rows that spread unevenly around a mean, as real embeddings do."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, dim)) / np.arange(1, dim + 1) ** 0.3
    rows += 0.5 * np.random.default_rng(99).standard_normal(dim) / np.sqrt(dim)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


def _shaken(tower: LinearTower, *, seed: int = 0) -> LinearTower:
    """A tower whose parameters are all away from where they start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return tower


def _tower(kind: str, *, dim: int, code_bits: int, threshold: bool = False) -> LinearTower:
    torch.manual_seed(0)
    weight = random_orthonormal(dim, code_bits, rng=np.random.default_rng(0))
    if kind == "linear":
        return _shaken(LinearTower(weight, threshold=threshold))
    return _shaken(
        ResidualTower(weight, hidden_width=96, dropout=0.2, input_dropout=0.1, threshold=threshold)
    )


def _torch_values(tower: LinearTower, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return tower(torch.from_numpy(rows)).numpy()


CASES = [
    ("linear", 384, 256, False),
    ("linear", 384, 256, True),
    ("linear", 32, 128, False),
    ("residual", 384, 256, False),
    ("residual", 384, 256, True),
    ("residual", 32, 128, True),
]


@pytest.mark.parametrize(("kind", "dim", "code_bits", "threshold"), CASES)
def test_exported_bits_are_those_of_torch(*, kind: str, dim: int, code_bits: int, threshold: bool) -> None:
    tower = _tower(kind, dim=dim, code_bits=code_bits, threshold=threshold)
    settle(tower, _rows(3000, dim=dim))
    exported = export(tower)
    rows = _rows(10_000, dim=dim, seed=1)
    expected = _torch_values(tower, rows)
    values = exported.project(rows)
    assert (values.dtype, values.shape) == (np.float32, (10_000, code_bits))
    np.testing.assert_allclose(values, expected, atol=MARGIN, rtol=0)
    differ = (values > 0) != (expected > 0)
    assert not np.any(differ & (np.abs(expected) >= MARGIN))


@pytest.mark.parametrize("kind", ["linear", "residual"])
def test_row_alone_gives_the_bits_it_gives_in_a_batch(kind: str) -> None:
    tower = _tower(kind, dim=384, code_bits=256)
    settle(tower, _rows(1000, dim=384))
    exported = export(tower)
    rows = _rows(300, dim=384, seed=1)
    together = exported.project(rows)
    alone = np.concatenate([exported.project(row[None]) for row in rows])
    assert not np.any(((together > 0) != (alone > 0)) & (np.abs(together) >= MARGIN))


def test_linear_tower_exports_to_a_projection() -> None:
    tower = _tower("linear", dim=16, code_bits=64)
    settle(tower, _rows(100, dim=16))
    exported = export(tower)
    assert isinstance(exported, Projection)
    np.testing.assert_allclose(exported.mean, _rows(100, dim=16).mean(axis=0), atol=1e-4)


def test_linear_tower_of_low_rank_rows_is_exported() -> None:
    rows = _rows(500, dim=24)
    rows[:, 12:] = 0.25
    tower = _tower("linear", dim=24, code_bits=64)
    settle(tower, rows)
    np.testing.assert_allclose(export(tower).project(rows), _torch_values(tower, rows), atol=MARGIN)


def test_wide_linear_tower_that_was_not_settled_is_refused() -> None:
    tower = _tower("linear", dim=16, code_bits=64)
    for seed in range(3):
        _shaken(tower, seed=seed)(torch.from_numpy(_rows(50, dim=16, seed=seed)))
    tower.eval()
    with pytest.raises(ValueError, match="settle"):
        export(tower)


@pytest.mark.parametrize("kind", ["linear", "residual"])
def test_settled_bits_are_balanced_over_all_rows(kind: str) -> None:
    tower = _tower(kind, dim=32, code_bits=64)
    rows = _rows(CHUNK_ROWS + 10, dim=32)
    settle(tower, rows)
    values = export(tower).project(rows)
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(values.var(axis=0), 1, atol=0.02)


def test_residual_tower_starts_at_its_linear_path() -> None:
    weight = random_orthonormal(32, 64, rng=np.random.default_rng(0))
    rows = _rows(500, dim=32)
    residual, linear = ResidualTower(weight, hidden_width=16), LinearTower(weight)
    for tower in (residual, linear):
        settle(tower, rows)
    np.testing.assert_array_equal(_torch_values(residual, rows), _torch_values(linear, rows))


def test_every_part_of_a_residual_tower_gets_a_gradient() -> None:
    tower = _tower("residual", dim=16, code_bits=64, threshold=True)
    (tower(torch.from_numpy(_rows(50, dim=16))) ** 3).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in tower.parameters())


def test_gelu_is_that_of_torch_to_the_last_places() -> None:
    values = np.concatenate([np.linspace(-12, 12, 100_001), [0.0, 1e-30, 300.0, -300.0]]).astype(np.float32)
    expected = torch.nn.functional.gelu(torch.from_numpy(values), approximate="tanh").numpy()
    np.testing.assert_allclose(twice_gelu(values) / 2, expected, rtol=1e-6, atol=1e-6)


def test_tower_in_chunks_gives_what_it_gives_at_once() -> None:
    tower = _tower("residual", dim=16, code_bits=64)
    settle(tower, _rows(100, dim=16))
    exported = export(tower)
    rows = _rows(CHUNK_ROWS + 1, dim=16)
    np.testing.assert_array_equal(exported.project(rows)[:CHUNK_ROWS], exported.project(rows[:CHUNK_ROWS]))
    assert exported.project(rows[:0]).shape == (0, 64)


def test_arrays_of_a_tower_cannot_be_changed() -> None:
    tower = _tower("residual", dim=16, code_bits=64)
    settle(tower, _rows(100, dim=16))
    exported = export(tower)
    assert isinstance(exported, Tower)
    for array in exported.arrays().values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0

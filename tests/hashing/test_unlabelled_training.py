"""Instance codes trained by gradient from rows alone."""

import logging

import numpy as np
import pytest

from hashing import EmbeddingsError, TrainingDataError, dump_encoder, load_encoder
from hashing.errors import ConfigError
from hashing.metrics import code_recall
from hashing.projection import Projection, fit_itq

torch = pytest.importorskip("torch", reason="torch is not installed")

from hashing.deep.unlabelled import UnlabelledConfig, neighbour_divergence, train_unlabelled  # noqa: E402

CONFIG = UnlabelledConfig(code_bits=128, steps=120, anchors=8, neighbours=15)
DIM = 160


def _rows(count: int, *, seed: int = 0):
    """Unit rows whose principal components fade by a power law, as those of embeddings do."""
    rows = np.random.default_rng(seed).standard_normal((count, DIM)) * np.arange(1, DIM + 1) ** -0.8
    basis, _ = np.linalg.qr(np.random.default_rng(99).standard_normal((DIM, DIM)))
    rows = rows @ basis
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _recall(project, rows, queries, *, count: int) -> float:
    asked, stored = project(queries)[:, :count], project(rows)[:, :count]
    return code_recall(asked, stored, queries=queries, rows=rows, truth_count=10, candidate_count=40)


@pytest.fixture(scope="module")
def encoder():
    return train_unlabelled(_rows(3000), config=CONFIG, device="cpu")


def test_prefixes_are_better_codes_than_those_of_itq(encoder) -> None:
    rows, queries = _rows(3000), _rows(200, seed=1)
    itq = fit_itq(rows, code_bits=128, iterations=20, seed=0)
    for count, gain in ((64, 0.05), (128, 0.02)):
        learned = _recall(encoder.instance_values, rows, queries, count=count)
        assert learned > _recall(itq.project, rows, queries, count=count) + gain


def test_result_is_an_encoder_as_any_other(encoder) -> None:
    assert isinstance(encoder.projections["text"], Projection)
    loaded = load_encoder(dump_encoder(encoder))
    assert loaded.encoder_id == encoder.encoder_id
    metrics = encoder.metrics
    assert (metrics["row_count"], metrics["held_out_row_count"]) == (3000, 600)
    assert 0 < metrics["recall_at_10_in_100_64"] < metrics["recall_at_10_in_100"] <= 1
    assert encoder.drift_score(_rows(200, seed=3)) < 8
    assert encoder.radii(0.05)[64] < 64


def test_training_twice_gives_the_same_encoder(encoder) -> None:
    torch.manual_seed(3)
    again = train_unlabelled(_rows(3000).astype(np.float64), config=CONFIG, device="cpu")
    assert again.encoder_id == encoder.encoder_id


def test_divergence_is_that_of_a_naive_loop() -> None:
    rng = np.random.default_rng(0)
    queries, keys, rows = (rng.standard_normal((5, 8)) for _ in range(3))

    def cosine(first, second) -> float:
        return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))

    total = 0.0
    for i in range(5):
        others = [j for j in range(5) if j != i]
        student = np.exp([cosine(queries[i], keys[j]) / 0.3 for j in others])
        teacher = np.exp([cosine(rows[i], rows[j]) / 0.2 for j in others])
        student, teacher = student / student.sum(), teacher / teacher.sum()
        total += float(np.sum(teacher * np.log(teacher / student))) / 5
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    loss = neighbour_divergence(
        torch.from_numpy(queries),
        torch.from_numpy(keys),
        teacher_scores=torch.from_numpy(unit @ unit.T),
        temperature=0.3,
        teacher_temperature=0.2,
    )
    assert float(loss) == pytest.approx(total, rel=1e-9)


def test_divergence_of_equal_cosines_is_zero_with_a_finite_gradient() -> None:
    rows = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    values = rows.clone().requires_grad_()
    loss = neighbour_divergence(
        values, values, teacher_scores=rows @ rows.T, temperature=0.05, teacher_temperature=0.05
    )
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(values.grad).all()


@pytest.mark.parametrize("row_count", [2, 5, 60, 99])
def test_few_rows_train_and_have_no_radii(row_count: int) -> None:
    config = UnlabelledConfig(code_bits=64, steps=3)
    encoder = train_unlabelled(_rows(row_count), config=config, device="cpu")
    assert np.isfinite(encoder.instance_values(_rows(10, seed=2))).all()
    assert encoder.radii(0.01) == {64: 64}
    assert "recall_at_10_in_100" not in encoder.metrics


def test_constant_columns_and_equal_rows_give_finite_codes() -> None:
    rows = _rows(200)
    rows[:, 10:] = 0.05
    rows[:50] = rows[0]
    encoder = train_unlabelled(rows, config=UnlabelledConfig(code_bits=64, steps=5), device="cpu")
    assert np.isfinite(encoder.instance_values(rows)).all()


@pytest.mark.parametrize(
    ("row_count", "message"), [(300, "192 bits of 160 dimensions"), (50, "64 bits of 50 rows")]
)
def test_more_bits_than_the_rows_support_are_warned_of(caplog, row_count: int, message: str) -> None:
    config = UnlabelledConfig(code_bits=192 if row_count == 300 else 64, steps=1)
    with caplog.at_level(logging.WARNING):
        train_unlabelled(_rows(row_count), config=config, device="cpu")
    assert message in caplog.text


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (np.full((20, 8), 0.1), TrainingDataError, "all rows are equal"),
        (np.full((20, 8), np.nan), EmbeddingsError, "finite"),
        (np.ones((1, 8)), TrainingDataError, "at least 2 rows"),
        (np.ones(8), EmbeddingsError, "matrix"),
    ],
    ids=["equal", "nan", "one row", "rank"],
)
def test_bad_input_is_refused_before_time_is_spent(rows, error: type[Exception], message: str) -> None:
    stages: list[str] = []
    with pytest.raises(error, match=message):
        train_unlabelled(rows, config=CONFIG, progress=lambda stage, _done, _all: stages.append(stage))
    assert stages == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("code_bits", 100), ("temperature", 0.0), ("query_share", 1.0), ("anchors", 0), ("steps", 0)],
)
def test_settings_out_of_range_are_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        UnlabelledConfig(**{key: value})

"""Training by gradient: what pairs teach, what comes out, and that each part can be chosen."""

import logging
import subprocess
import sys

import numpy as np
import pytest

from hashing import EmbeddingsError, Encoder, TrainingDataError, dump_encoder, load_encoder
from hashing.metrics import pair_auc
from hashing.projection import Projection
from hashing.tower import Tower

torch = pytest.importorskip("torch", reason="torch is not installed")

from hashing.deep.config import TrainingConfig, parse_config  # noqa: E402
from hashing.deep.training import train  # noqa: E402
from hashing.deep.training_set import TrainingSet  # noqa: E402

PAIRS = "[losses.pairs]\nlogistic = 1.0\ninfo_nce = 0.1\n"


def _config(
    *,
    losses: str = PAIRS,
    code_bits: int = 64,
    tower: str = "hidden_width = 4",
    optimiser: str = "epochs = 1",
) -> TrainingConfig:
    return parse_config(f"{losses}[tower]\n{tower}\n[optimiser]\n{optimiser}\n", code_bits=code_bits)


def _train(rows, pairs, *, config: TrainingConfig, modality: str = "text", progress=None) -> Encoder:
    training_set = TrainingSet(embeddings={modality: rows}, pairs=pairs)
    return train(training_set, config=config, device="cpu", progress=progress).encoder


CONFIG = _config(
    code_bits=128, tower="hidden_width = 16", optimiser="epochs = 3\nbatch_size = 64\nlearning_rate = 3e-3"
)
DIM = 32


def _rows_and_pairs(*, pair_count: int = 800, unpaired: int = 100, seed: int = 0):
    """Rows whose first 8 dimensions say what a pair is about and whose others are louder noise."""
    rng = np.random.default_rng(seed)
    similar = rng.integers(0, 2, size=pair_count)
    first = rng.standard_normal((pair_count, DIM))
    second = rng.standard_normal((pair_count, DIM))
    second[:, :8] = np.where(similar[:, None] == 1, first[:, :8] + 0.3 * second[:, :8], second[:, :8])
    rows = np.concatenate([first, second, rng.standard_normal((unpaired, DIM))])
    rows[:, 8:] *= 1.5
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = np.column_stack([np.arange(pair_count), pair_count + np.arange(pair_count), similar])
    return rows.astype(np.float32), pairs


def _test_auc(encoder: Encoder, *, count: int) -> float:
    rows, pairs = _rows_and_pairs(seed=1)
    queries = encoder.instance_values(rows[pairs[:, 0]])[:, :count]
    stored = np.where(encoder.instance_bits(rows[pairs[:, 1]])[:, :count], 1.0, -1.0)
    scores = (queries * stored).sum(axis=1) / np.linalg.norm(queries, axis=1)
    return pair_auc(scores, pairs[:, 2] == 1)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    rows, pairs = _rows_and_pairs()
    return _train(rows, pairs, config=CONFIG)


def test_trained_codes_judge_new_pairs_better_than_the_cosine(encoder: Encoder) -> None:
    rows, pairs = _rows_and_pairs(seed=1)
    cosine = pair_auc((rows[pairs[:, 0]] * rows[pairs[:, 1]]).sum(axis=1), pairs[:, 2] == 1)
    assert _test_auc(encoder, count=64) > cosine + 0.05
    assert _test_auc(encoder, count=128) > cosine + 0.05


def test_metrics_give_the_auc_of_each_prefix(encoder: Encoder) -> None:
    metrics = encoder.metrics
    assert (metrics["row_count"], metrics["pair_count"]) == (1700, 800)
    assert metrics["held_out_row_count"] == 50 + 2 * metrics["validation_pair_count"]
    assert 70 <= metrics["validation_pair_count"] <= 100
    assert 1 <= metrics["epoch_count"] <= CONFIG.optimiser.epochs
    for count in (64, 128):
        assert metrics[f"validation_auc_{count}"] == pytest.approx(_test_auc(encoder, count=count), abs=0.08)
        assert 0.5 < metrics[f"validation_auc_codes_{count}"] < 1
    assert metrics["validation_auc_cosine"] < metrics["validation_auc_64"]
    assert 0 < metrics["recall_at_10_in_100"] <= 1


def test_result_is_an_encoder_as_any_other(encoder: Encoder) -> None:
    assert isinstance(encoder.projections["text"], Tower)
    loaded = load_encoder(dump_encoder(encoder))
    assert loaded.encoder_id == encoder.encoder_id
    assert loaded.metrics == encoder.metrics
    assert encoder.drift_score(_rows_and_pairs(seed=2)[0]) < 8
    assert 0 < encoder.radii(0.05)[64] < 40


def test_radii_hold_new_pairs_of_rows(encoder: Encoder) -> None:
    rows, _ = _rows_and_pairs(seed=3, pair_count=300)
    rng = np.random.default_rng(0)
    turned = rows + 0.3 * rng.standard_normal(rows.shape).astype(np.float32) / np.sqrt(DIM)
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    cosine_distances = 1 - (rows * turned).sum(axis=1)
    flipped = encoder.instance_bits(rows) != encoder.instance_bits(turned)
    for count in (64, 128):
        radii = np.array([encoder.radii(distance)[count] for distance in cosine_distances])
        assert np.mean(flipped[:, :count].sum(axis=1) <= radii) > 0.98


@pytest.mark.parametrize(
    "tower",
    ['kind = "linear"', 'binarizer = "tanh"', "threshold = true", "dropout = 0\ninput_dropout = 0.5"],
)
def test_every_tower_can_be_chosen(tower: str) -> None:
    rows, pairs = _rows_and_pairs(pair_count=300)
    config = _config(
        tower=f"hidden_width = 8\n{tower}", optimiser="epochs = 4\nbatch_size = 32\nlearning_rate = 3e-3"
    )
    assert _train(rows, pairs, config=config, modality="image").metrics["validation_auc_64"] > 0.5


LOSSES = {
    "pairs": ("logistic", "info_nce", "snr"),
    "labels": ("likelihood", "central"),
    "neighbours": ("divergence", "distance", "margin", "info_nce", "lsh"),
    "matches": ("info_nce", "likelihood"),
    "values": ("quantisation", "bit_balance", "decorrelation"),
}


@pytest.mark.parametrize(
    "losses",
    [f"[losses.{table}]\n{name} = 0.5\n" for table, names in LOSSES.items() for name in names]
    + [
        "[losses.pairs]\ninfo_nce = 1.0\nmined_negatives = 3\nclosure = true\n",
        "[losses.matches]\ninfo_nce = 1.0\nlikelihood = 0.5\nreconstruct = 0.5\n",
        "\n".join(f"[losses.{table}]\n{names[0]} = 0.5" for table, names in LOSSES.items()) + "\n",
    ],
)
def test_every_loss_trains_to_finite_figures(losses: str) -> None:
    rows, pairs = _rows_and_pairs(pair_count=100, unpaired=50)
    image = rows[:200, 8:]
    labels = [[f"c{number}"] if number % 4 else [] for number in (4 * rows[:, 0] > 0) + 2 * (rows[:, 1] > 0)]
    both = "losses.matches" in losses or "losses.labels" in losses
    training_set = TrainingSet(
        embeddings={"text": rows, "image": image} if both else {"text": rows},
        pairs=pairs,
        labels={"text": labels, "image": labels[:200]} if both else {"text": labels},
        items={"text": np.arange(250), "image": np.arange(50, 250)} if both else {},
    )
    if "losses.values" in losses and "losses.pairs" not in losses:
        losses += "[losses.pairs]\nlogistic = 1.0\n"
    config = _config(losses=losses, optimiser="epochs = 2\nbatch_size = 64")
    trained = train(training_set, config=config, device="cpu")
    assert all(np.isfinite(value) for value in trained.encoder.metrics.values())
    for modality in training_set.embeddings:
        own = training_set.embeddings[modality]
        assert np.isfinite(trained.encoder.instance_values(own, modality=modality)).all()
    judged = {"pairs": "auc", "labels": "map", "neighbours": "recall", "matches": "_to_"}
    for table, figure in judged.items():
        if f"losses.{table}" in losses:
            assert any(figure in name for name in trained.encoder.metrics)


def test_linear_tower_becomes_a_projection_even_with_more_bits_than_dimensions(caplog) -> None:
    rows, pairs = _rows_and_pairs(pair_count=100)
    with caplog.at_level(logging.WARNING):
        encoder = _train(rows, pairs, config=_config(tower='kind = "linear"'), modality="image")
    assert isinstance(encoder.projections["image"], Projection)
    assert "64 bits of 32 dimensions" in caplog.text


def test_training_stops_when_nothing_gets_better() -> None:
    rows, pairs = _rows_and_pairs(pair_count=200)
    pairs[:, 2] = np.random.default_rng(0).permutation(pairs[:, 2])
    config = _config(optimiser="epochs = 50\npatience = 2\nlearning_rate = 1e-2")
    assert _train(rows, pairs, config=config).metrics["epoch_count"] < 50


def test_radii_limit_nothing_where_too_few_rows_are_unread() -> None:
    rows, pairs = _rows_and_pairs(pair_count=60, unpaired=0)
    encoder = _train(rows, pairs, config=_config())
    assert encoder.radii(0.01) == {64: 64}
    assert encoder.metrics["held_out_row_count"] == 0
    assert "recall_at_10_in_100" not in encoder.metrics


def test_rows_of_other_widths_of_float_are_read() -> None:
    rows, pairs = _rows_and_pairs(pair_count=100)
    narrow = _train(rows.astype(np.float16), pairs, config=_config())
    wide = _train(rows.astype(np.float16).astype(np.float64), pairs, config=_config())
    assert narrow.encoder_id == wide.encoder_id


def test_progress_ends_each_stage_complete() -> None:
    rows, pairs = _rows_and_pairs(pair_count=100)
    last: dict[str, tuple[int, int]] = {}
    _train(
        rows,
        pairs,
        config=_config(optimiser="epochs = 2\nbatch_size = 30"),
        progress=lambda stage, done, total: last.update({stage: (done, total)}),
    )
    assert last.pop("train") in ((6, 6), (8, 8))
    assert last == {"fit": (1, 1), "calibrate": (1, 1), "evaluate": (1, 1)}


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda rows, pairs: (np.full_like(rows, 0.1), pairs), TrainingDataError, "all rows are equal"),
        (lambda rows, pairs: (rows * np.nan, pairs), EmbeddingsError, "finite"),
        (lambda rows, pairs: (rows[0], pairs), EmbeddingsError, "matrix"),
        (lambda rows, pairs: (rows[:-100], pairs), TrainingDataError, "refers to rows"),
        (lambda rows, pairs: (rows, pairs[pairs[:, 2] == 1]), TrainingDataError, "one class only"),
        (lambda rows, pairs: (rows, pairs[:30]), TrainingDataError, "at least 20"),
        (lambda rows, pairs: (rows, pairs * [0, 1, 1]), TrainingDataError, "linked into 1 groups"),
    ],
    ids=["equal", "nan", "one row", "missing row", "one class", "few", "one component"],
)
def test_bad_input_is_refused_before_time_is_spent(spoil, error: type[Exception], message: str) -> None:
    rows, pairs = _rows_and_pairs(pair_count=100, unpaired=0)
    rows, pairs = spoil(rows, pairs)
    stages: list[str] = []
    with pytest.raises(error, match=message):
        _train(rows, pairs, config=CONFIG, progress=lambda stage, _done, _total: stages.append(stage))
    assert stages == []


def test_serving_a_trained_tower_loads_no_torch(encoder: Encoder, tmp_path) -> None:
    (tmp_path / "encoder").write_bytes(dump_encoder(encoder))
    program = (
        "import sys, numpy, hashing; from pathlib import Path;"
        f"encoder = hashing.load_encoder(Path({str(tmp_path / 'encoder')!r}).read_bytes());"
        f"encoder.instance_bits(numpy.ones((1, {DIM}), dtype=numpy.float32));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

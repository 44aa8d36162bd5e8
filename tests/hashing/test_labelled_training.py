"""Towers trained toward class codes."""

import logging

import numpy as np
import pytest

from hashing import ConfigError, EmbeddingsError, TrainingDataError
from hashing.class_codes import ClassCodes, target_bits
from hashing.metrics import class_retrieval_map

torch = pytest.importorskip("torch", reason="torch is not installed")

from hashing.deep.labelled import LabelledConfig, train_labelled  # noqa: E402

CONFIG = LabelledConfig(hidden_width=16, epochs=8, batch_size=64, learning_rate=5e-3)


def _map(trained, rows, labels, stored) -> float:
    return class_retrieval_map(
        trained.label_map.project(rows),
        target_bits(trained.class_codes, stored),
        query_labels=labels,
        row_labels=stored,
        seed=0,
    )


@pytest.mark.parametrize("class_count", [2, 8])
def test_new_rows_find_the_codes_of_their_class(draw_clusters, class_count: int) -> None:
    rows, labels = draw_clusters(class_count=class_count, rows_per_class=40)
    fresh, own = draw_clusters(class_count=class_count, rows_per_class=10, seed=5)
    trained = train_labelled(rows, labels, config=CONFIG, device="cpu")
    assert _map(trained, fresh, own, labels) > 0.95
    bits = trained.label_map.project(fresh) > 0
    assert np.mean(bits == target_bits(trained.class_codes, own)) > 0.9


def test_training_that_diverges_names_the_learning_rate(draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=2, rows_per_class=40)
    config = LabelledConfig(hidden_width=16, epochs=3, batch_size=16, learning_rate=1e30)
    with pytest.raises(ConfigError, match="learning_rate must be smaller"):
        train_labelled(rows, labels, config=config, device="cpu")


def test_class_codes_issued_before_stay(draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=4, rows_per_class=20)
    issued = ClassCodes.empty(label_bits=64, seed=9).issue(["older", "c2"])
    trained = train_labelled(rows, labels, config=CONFIG, class_codes=issued, device="cpu")
    assert trained.class_codes.labels[:2] == ("older", "c2")
    assert np.array_equal(trained.class_codes.bits[:2], issued.bits)
    assert set(trained.class_codes.labels) == {"older", "c0", "c1", "c2", "c3"}
    wider = ClassCodes.empty(label_bits=128, seed=9)
    with pytest.raises(ConfigError, match="label_bits must be 128"):
        train_labelled(rows, labels, config=CONFIG, class_codes=wider)


def test_rows_of_several_labels_lie_between_their_classes(draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=3, rows_per_class=40)
    both = (rows[[own == ["c0"] for own in labels]] + rows[[own == ["c1"] for own in labels]]) / np.sqrt(2)
    config = LabelledConfig(hidden_width=16, epochs=8, batch_size=32, learning_rate=5e-3, pairwise_weight=0.2)
    trained = train_labelled(
        np.concatenate([rows, both]), [*labels, *[["c0", "c1"]] * len(both)], config=config, device="cpu"
    )
    signs = np.where(trained.class_codes.bits, 1, -1)
    scores = dict(zip(trained.class_codes.labels, (trained.label_map.project(both) @ signs.T).T, strict=True))
    assert np.mean(np.minimum(scores["c0"], scores["c1"]) > scores["c2"]) > 0.9


def test_rows_without_label_are_left_out_with_a_warning(draw_clusters, caplog) -> None:
    rows, labels = draw_clusters(class_count=3, rows_per_class=20)
    partly = [own if number % 3 else [] for number, own in enumerate(labels)]
    kept = [number for number, own in enumerate(partly) if own]
    with caplog.at_level(logging.WARNING):
        trained = train_labelled(rows, partly, config=CONFIG, device="cpu")
    assert "20 of 60 rows have no label" in caplog.text
    alone = train_labelled(rows[kept], [partly[row] for row in kept], config=CONFIG, device="cpu")
    assert np.array_equal(trained.label_map.project(rows), alone.label_map.project(rows))


def test_a_class_of_one_row_is_learned_with_a_warning(draw_clusters, caplog) -> None:
    rows, labels = draw_clusters(class_count=3, rows_per_class=20)
    labels[0] = ["lonely"]
    with caplog.at_level(logging.WARNING):
        trained = train_labelled(rows, labels, config=CONFIG, device="cpu")
    assert "1 of 4 classes have one row" in caplog.text
    assert "lonely" in trained.class_codes


def test_more_bits_than_dimensions_and_constant_features_give_finite_codes(draw_clusters, caplog) -> None:
    rows, labels = draw_clusters(class_count=3, rows_per_class=20)
    rows[:, 8:] = 0.1
    with caplog.at_level(logging.WARNING):
        trained = train_labelled(rows, labels, config=CONFIG, device="cpu")
    assert "64 label bits of 32 dimensions" in caplog.text
    assert np.isfinite(trained.label_map.project(rows)).all()


def test_training_twice_gives_equal_arrays_and_leaves_the_global_generator_alone(draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=3, rows_per_class=20)
    config = LabelledConfig(hidden_width=8, epochs=2, batch_size=16, adversarial_eps=0.2)
    before = torch.random.get_rng_state()
    first = train_labelled(rows, labels, config=config, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(5)
    second = train_labelled(rows.astype(np.float64), labels, config=config, device="cpu")
    assert np.array_equal(first.label_map.project(rows), second.label_map.project(rows))
    torch.random.set_rng_state(before)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda rows, labels: (rows, [["c0"]] * len(rows)), TrainingDataError, "one class only"),
        (lambda rows, labels: (rows, [[]] * len(rows)), TrainingDataError, "no row has a label"),
        (lambda rows, labels: (rows, labels[:-1]), TrainingDataError, "label rows"),
        (lambda rows, labels: (rows, ["c0"] * len(rows)), TrainingDataError, "string"),
        (lambda rows, labels: (rows * np.nan, labels), EmbeddingsError, "finite"),
        (lambda rows, labels: (np.full_like(rows, 0.1), labels), TrainingDataError, "all rows are equal"),
    ],
    ids=["one class", "no label", "length", "string", "nan", "equal"],
)
def test_bad_input_is_refused_before_time_is_spent(
    draw_clusters, spoil, error: type[Exception], message: str
) -> None:
    rows, labels = spoil(*draw_clusters(class_count=3, rows_per_class=10))
    stages: list[str] = []
    with pytest.raises(error, match=message):
        train_labelled(rows, labels, config=CONFIG, progress=lambda stage, _done, _all: stages.append(stage))
    assert stages == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("label_bits", 65),
        ("hidden_width", 0),
        ("central_weight", 0.0),
        ("pairwise_weight", -1.0),
        ("adversarial_eps", 3.0),
        ("adversarial_steps", 0),
        ("dropout", 1.0),
        ("batch_size", 1),
    ],
)
def test_settings_out_of_range_are_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        LabelledConfig(**{key: value})

import numpy as np
import pytest

from hashing import (
    EmbeddingsError,
    EncoderConfig,
    LabelState,
    TrainedEncoder,
    TrainingDataError,
    train_encoder,
)
from hashing.trainer import HELD_OUT_LEAST_ROWS, HELD_OUT_MIN_ROWS, _label_queries


def test_label_part_learns_from_every_labelled_row(
    trained: TrainedEncoder, small_config: EncoderConfig, draw_clusters
) -> None:
    rows, labels = draw_clusters(class_count=8, rows_per_class=75)
    expected = LabelState.empty(32, config=small_config).add(rows, labels)
    assert trained.state is not None and trained.encoder.label_head is not None
    assert trained.state.row_count == 600
    assert trained.encoder.labels == expected.class_codes.labels
    np.testing.assert_allclose(trained.encoder.label_head.weight, expected.solve(), atol=1e-3)


def test_metrics_count_rows_and_judge_held_out_ones(trained: TrainedEncoder) -> None:
    metrics = trained.encoder.metrics
    assert (metrics["row_count"], metrics["held_out_row_count"]) == (600, 120)
    assert (metrics["labelled_row_count"], metrics["label_query_count"]) == (600, 120)
    assert metrics["label_map"] > 0.95
    assert 0.8 < metrics["recall_at_10_in_100"] <= 1.0


def test_labels_without_meaning_get_a_map_of_chance(draw_clusters, small_config: EncoderConfig) -> None:
    rows, labels = draw_clusters(class_count=8, rows_per_class=75)
    shuffled = [labels[row] for row in np.random.default_rng(1).permutation(600)]
    assert train_encoder(rows, config=small_config, labels=shuffled).encoder.metrics["label_map"] < 0.25


def test_training_twice_gives_the_same_encoder(draw_clusters, small_config: EncoderConfig) -> None:
    rows, labels = draw_clusters(class_count=4, rows_per_class=10)
    first, second = (train_encoder(rows, config=small_config, labels=labels).encoder for _ in range(2))
    assert first.encoder_id == second.encoder_id


def test_rows_without_label_train_the_instance_part_only(draw_clusters, small_config: EncoderConfig) -> None:
    rows, labels = draw_clusters(class_count=4, rows_per_class=10)
    labels = [own if row % 2 else [] for row, own in enumerate(labels)]
    partly = train_encoder(rows, config=small_config, labels=labels)
    unlabelled = train_encoder(rows, config=small_config)
    assert partly.state is not None and partly.state.row_count == 20
    assert unlabelled.state is None
    assert partly.encoder.instance_id == unlabelled.encoder.instance_id


def test_few_rows_hold_none_out(draw_clusters, small_config: EncoderConfig) -> None:
    rows, _ = draw_clusters(class_count=1, rows_per_class=HELD_OUT_MIN_ROWS - 1)
    metrics = train_encoder(rows, config=small_config).encoder.metrics
    assert metrics == {"row_count": HELD_OUT_MIN_ROWS - 1, "held_out_row_count": 0}


def test_radii_limit_nothing_where_none_is_held_out(draw_clusters, small_config: EncoderConfig) -> None:
    rows, _ = draw_clusters(class_count=1, rows_per_class=HELD_OUT_MIN_ROWS - 1)
    assert train_encoder(rows, config=small_config).encoder.radii(0.01) == {64: 64}


def test_held_out_rows_are_enough_to_measure_radii_on(draw_clusters, small_config: EncoderConfig) -> None:
    rows, _ = draw_clusters(class_count=1, rows_per_class=HELD_OUT_MIN_ROWS)
    encoder = train_encoder(rows, config=small_config).encoder
    assert encoder.metrics["held_out_row_count"] == HELD_OUT_LEAST_ROWS
    assert encoder.radii(0.01)[64] < 20


def test_two_rows_of_two_classes_are_enough(small_config: EncoderConfig) -> None:
    rows = np.eye(2, dtype=np.float32)
    trained = train_encoder(rows, config=small_config, labels=[["a"], ["b"]])
    assert trained.encoder.labels == ("a", "b")
    assert trained.encoder.metrics["label_query_count"] == 0
    assert "label_map" not in trained.encoder.metrics


@pytest.mark.parametrize("method", ["itq", "rotation"])
def test_method_chooses_the_projection(draw_clusters, method) -> None:
    rows, _ = draw_clusters(class_count=10, rows_per_class=20, dim=96)
    config = EncoderConfig(method=method, code_bits=64, itq_iterations=2)
    weight = train_encoder(rows, config=config).encoder.projections["text"].weight
    centred = rows - rows.mean(axis=0)
    kept = ((centred @ weight) ** 2).sum() / (centred**2).sum()
    assert (kept > 0.9) == (method == "itq")


def test_modality_names_the_projection_and_the_label_part(draw_clusters, small_config: EncoderConfig) -> None:
    rows, labels = draw_clusters(class_count=2, rows_per_class=5)
    encoder = train_encoder(rows, config=small_config, labels=labels, modality="image").encoder
    assert dict(encoder.modalities) == {"image": 32}
    assert encoder.label_head is not None and encoder.label_head.modality == "image"


def test_progress_ends_each_stage_complete(draw_clusters, small_config: EncoderConfig) -> None:
    rows, labels = draw_clusters(class_count=5, rows_per_class=100)
    last: dict[str, tuple[int, int]] = {}
    train_encoder(
        rows,
        config=small_config,
        labels=labels,
        progress=lambda stage, done, total: last.update({stage: (done, total)}),
    )
    assert last == {"fit": (1, 1), "calibrate": (1, 1), "evaluate": (1, 1), "labels": (500, 500)}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_value_that_is_not_finite_is_refused_before_fitting(
    draw_clusters, small_config: EncoderConfig, bad: float
) -> None:
    rows, _ = draw_clusters(class_count=5, rows_per_class=2000)
    rows[-1, -1] = bad
    stages: list[str] = []
    with pytest.raises(EmbeddingsError, match="finite"):
        train_encoder(rows, config=small_config, progress=lambda stage, _done, _total: stages.append(stage))
    assert stages == []


def test_single_row_is_refused(small_config: EncoderConfig) -> None:
    with pytest.raises(TrainingDataError, match="at least 2 rows, got 1"):
        train_encoder(np.ones((1, 4), dtype=np.float32), config=small_config)


def test_equal_rows_are_refused(small_config: EncoderConfig) -> None:
    with pytest.raises(TrainingDataError, match="all rows are equal"):
        train_encoder(np.ones((5000, 4), dtype=np.float32), config=small_config)


def test_rows_that_differ_in_the_last_only_are_accepted(small_config: EncoderConfig) -> None:
    rows = np.tile(np.array([[1.0, 0.0]], dtype=np.float16), (4097, 1))
    rows[-1] = [0.0, 1.0]
    assert train_encoder(rows, config=small_config).encoder.metrics["row_count"] == 4097


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["a"]] * 9, "9 label rows for 10 embeddings"),
        ([[]] * 10, "no row has a label"),
        ([["a"], []] * 5, "one class only"),
    ],
)
def test_labels_that_nothing_can_be_learned_from_are_refused(
    draw_clusters, small_config: EncoderConfig, labels, message: str
) -> None:
    rows, _ = draw_clusters(class_count=2, rows_per_class=5)
    with pytest.raises(TrainingDataError, match=message):
        train_encoder(rows, config=small_config, labels=labels)


@pytest.mark.parametrize("seed", range(10))
def test_every_label_keeps_a_row_that_is_not_held_out(seed: int) -> None:
    labels = [[f"c{row // 2}"] for row in range(20)]
    queries = _label_queries(labels, np.arange(20), seed=seed)
    assert len({row // 2 for row in queries.tolist()}) == queries.size == 4

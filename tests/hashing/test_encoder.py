import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from hashing import (
    DimensionError,
    EmbeddingsError,
    Encoder,
    EncoderConfig,
    NoLabelPartError,
    TrainedEncoder,
    UnknownLabelError,
    UnknownModalityError,
    train_encoder,
)


@pytest.fixture
def encoder(trained: TrainedEncoder) -> Encoder:
    return trained.encoder


def test_importing_the_package_loads_no_torch() -> None:
    program = "import sys, hashing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_bits_are_the_signs_of_the_values(encoder: Encoder, draw_clusters) -> None:
    rows, _ = draw_clusters(class_count=8, rows_per_class=3, seed=5)
    values = encoder.instance_values(rows)
    assert (values.dtype, values.shape) == (np.float32, (24, 64))
    np.testing.assert_array_equal(encoder.instance_bits(rows), values > 0)


def test_shape_properties_describe_the_parts(encoder: Encoder) -> None:
    assert (encoder.code_bits, encoder.label_bits, dict(encoder.modalities)) == (64, 64, {"text": 32})
    assert sorted(encoder.labels) == [f"c{number}" for number in range(8)]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_widths_give_the_values_of_float32(encoder: Encoder, draw_clusters, dtype) -> None:
    rows, _ = draw_clusters(class_count=8, rows_per_class=1)
    narrow = rows.astype(dtype)
    np.testing.assert_array_equal(
        encoder.instance_values(narrow), encoder.instance_values(narrow.astype(np.float32))
    )


def test_no_rows_give_no_codes(encoder: Encoder) -> None:
    nothing = np.empty((0, 32), dtype=np.float32)
    assert encoder.instance_bits(nothing).shape == (0, 64)
    assert encoder.label_values(nothing).shape == (0, 64)


@pytest.mark.parametrize("encode", [Encoder.instance_values, Encoder.instance_bits, Encoder.label_values])
@pytest.mark.parametrize(
    "bad",
    [
        np.zeros(32, dtype=np.float32),
        np.zeros((1, 32), dtype=np.int64),
        np.full((1, 32), np.nan, dtype=np.float32),
        np.array([[0.0] * 31 + [np.inf]], dtype=np.float32),
        np.array([[1e300] * 32]),
    ],
    ids=["one axis", "integers", "nan", "inf", "overflow"],
)
def test_rows_that_are_no_embeddings_are_refused(encoder: Encoder, encode, bad) -> None:
    with pytest.raises(EmbeddingsError):
        encode(encoder, bad)


def test_opposite_infinities_are_refused(encoder: Encoder) -> None:
    row = np.zeros((1, 32), dtype=np.float32)
    row[0, :2] = np.inf, -np.inf
    with pytest.raises(EmbeddingsError, match="finite"):
        encoder.instance_bits(row)


@pytest.mark.parametrize("encode", [Encoder.instance_values, Encoder.label_values])
def test_another_width_is_refused_with_both_widths(encoder: Encoder, encode) -> None:
    with pytest.raises(DimensionError) as caught:
        encode(encoder, np.zeros((2, 31), dtype=np.float32))
    assert (caught.value.expected, caught.value.got) == (32, 31)


def test_unknown_modality_is_refused_with_the_known(encoder: Encoder) -> None:
    with pytest.raises(UnknownModalityError) as caught:
        encoder.instance_bits(np.zeros((1, 32), dtype=np.float32), modality="image")
    assert (caught.value.modality, caught.value.known) == ("image", ("text",))


def test_label_query_ranks_its_own_class_first(encoder: Encoder, draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=8, rows_per_class=10, seed=7)
    class_signs = np.where(encoder.class_bits([[label] for label in encoder.labels]), 1.0, -1.0)
    best = np.argmax(encoder.label_values(rows) @ class_signs.T, axis=1)
    assert np.mean([encoder.labels[index] == own[0] for index, own in zip(best, labels, strict=True)]) > 0.95


def test_unknown_class_is_refused(encoder: Encoder) -> None:
    with pytest.raises(UnknownLabelError):
        encoder.class_bits([["c0"], ["c99"]])


def test_encoder_without_labels_refuses_label_calls(draw_clusters, small_config: EncoderConfig) -> None:
    rows, _ = draw_clusters(class_count=2, rows_per_class=5)
    encoder = train_encoder(rows, config=small_config).encoder
    assert (encoder.label_bits, encoder.labels) == (None, ())
    with pytest.raises(NoLabelPartError):
        encoder.label_values(rows)
    with pytest.raises(NoLabelPartError):
        encoder.class_bits([["c0"]])


def test_encoder_cannot_be_changed(encoder: Encoder) -> None:
    with pytest.raises(FrozenInstanceError):
        encoder.parent_id = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        encoder.metrics["label_map"] = 1.0  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        encoder.projections["text"].weight[0, 0] = 1.0


def test_identity_ignores_metrics(encoder: Encoder) -> None:
    assert replace(encoder, metrics={}).encoder_id == encoder.encoder_id


def test_identity_covers_the_parent_but_instance_identity_does_not(encoder: Encoder) -> None:
    child = replace(encoder, parent_id=encoder.encoder_id)
    assert child.encoder_id != encoder.encoder_id
    assert child.instance_id == encoder.instance_id


def test_identity_does_not_depend_on_memory_layout(encoder: Encoder) -> None:
    projection = encoder.projections["text"]
    fortran = replace(projection, weight=np.asfortranarray(projection.weight))
    assert replace(encoder, projections={"text": fortran}).encoder_id == encoder.encoder_id


def test_instance_identity_covers_every_weight(encoder: Encoder) -> None:
    projection = encoder.projections["text"]
    weight = projection.weight.copy()
    weight[-1, -1] = np.nextafter(weight[-1, -1], np.float32(9))
    other = replace(encoder, projections={"text": replace(projection, weight=weight)})
    assert other.instance_id != encoder.instance_id
    assert len(other.instance_id) == len(other.encoder_id) == 32

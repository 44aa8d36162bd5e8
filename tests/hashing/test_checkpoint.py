import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from hashing import (
    CheckpointError,
    Encoder,
    EncoderConfig,
    LabelState,
    TrainedEncoder,
    dump_encoder,
    dump_state,
    load_encoder,
    load_state,
    train_encoder,
    update_labels,
)
from hashing.analytic import LabelHead
from hashing.identity import content_hash
from hashing.radius import GRID_COUNT, RadiusTable
from hashing.sealed_tensors import METADATA_KEY, header_document
from hashing.tower import Tower

FIXTURES = Path(__file__).parent / "fixtures"


def _rewritten(content: bytes, *, tensors=None, **fields) -> bytes:
    """The checkpoint with other tensors or fields under a checksum that is right for them."""
    document = {**header_document(content), **fields}
    document.pop("checksum")
    tensors = {**load(content), **(tensors or {})}
    document["checksum"] = content_hash(tensors, document)
    return save(tensors, metadata={METADATA_KEY: json.dumps(document, sort_keys=True)})


@pytest.fixture(scope="module")
def tiny() -> TrainedEncoder:
    rng = np.random.default_rng(0)
    config = EncoderConfig(method="rotation", code_bits=64, feature_count=4)
    return train_encoder(
        rng.standard_normal((6, 3)).astype(np.float32), config=config, labels=[["a"], ["b"], ["ü"]] * 2
    )


@pytest.fixture(scope="module")
def with_tower(tiny: TrainedEncoder) -> Encoder:
    """The tiny encoder with a tower of 5 hidden units in place of its projection."""
    rng = np.random.default_rng(1)
    shapes = {"linear": (3, 64), "hidden": (3, 5), "hidden_bias": (5,), "output": (5, 64), "offset": (64,)}
    arrays = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    return replace(tiny.encoder, projections={"text": Tower(**arrays)})


def test_encoder_survives_the_round_trip(trained: TrainedEncoder, draw_clusters) -> None:
    encoder = replace(trained.encoder, parent_id="f" * 32)
    loaded = load_encoder(dump_encoder(encoder))
    rows, _ = draw_clusters(class_count=8, rows_per_class=3, seed=3)
    assert (loaded.encoder_id, loaded.instance_id) == (encoder.encoder_id, encoder.instance_id)
    assert (loaded.parent_id, loaded.labels, loaded.metrics) == (
        encoder.parent_id,
        encoder.labels,
        encoder.metrics,
    )
    assert loaded.radius_table == encoder.radius_table
    assert loaded.drift_score(rows) == encoder.drift_score(rows)
    np.testing.assert_array_equal(loaded.instance_values(rows), encoder.instance_values(rows))
    np.testing.assert_array_equal(loaded.label_values(rows), encoder.label_values(rows))


def test_radii_of_a_prefix_are_part_of_the_identity() -> None:
    config = EncoderConfig(method="rotation", code_bits=128)
    encoder = train_encoder(np.eye(6, dtype=np.float32), config=config).encoder
    columns = {**encoder.radius_table.columns, 64: (7,) * GRID_COUNT}
    other = replace(encoder, radius_table=RadiusTable(columns))
    assert other.encoder_id != encoder.encoder_id
    assert other.instance_id == encoder.instance_id
    assert load_encoder(dump_encoder(other)).radii(0.1) == {64: 7, 128: 128}


def test_encoder_without_labels_survives_the_round_trip(trained: TrainedEncoder) -> None:
    encoder = replace(trained.encoder, label_head=None)
    assert load_encoder(dump_encoder(encoder)).encoder_id == encoder.encoder_id


def test_encoder_with_a_tower_survives_the_round_trip(with_tower: Encoder) -> None:
    loaded = load_encoder(dump_encoder(with_tower))
    rows = np.random.default_rng(2).standard_normal((20, 3)).astype(np.float32)
    assert isinstance(loaded.projections["text"], Tower)
    assert (loaded.encoder_id, loaded.instance_id) == (with_tower.encoder_id, with_tower.instance_id)
    np.testing.assert_array_equal(loaded.instance_values(rows), with_tower.instance_values(rows))


def test_tower_and_projection_stand_beside_each_other(tiny: TrainedEncoder, with_tower: Encoder) -> None:
    both = {"text": with_tower.projections["text"], "image": tiny.encoder.projections["text"]}
    encoder = replace(with_tower, projections=both)
    loaded = load_encoder(dump_encoder(encoder))
    assert [type(own).__name__ for own in loaded.projections.values()] == ["Tower", "Projection"]
    assert loaded.encoder_id == encoder.encoder_id


@pytest.mark.parametrize("name", ["linear", "hidden", "hidden_bias", "output", "offset"])
def test_instance_identity_covers_every_array_of_a_tower(with_tower: Encoder, name: str) -> None:
    tower = with_tower.projections["text"]
    assert isinstance(tower, Tower)
    array = tower.arrays()[name].copy()
    array.flat[-1] = np.nextafter(array.flat[-1], np.float32(9))
    other = replace(with_tower, projections={"text": replace(tower, **{name: array})})
    assert other.instance_id != with_tower.instance_id


def test_format_2_is_read() -> None:
    encoder = load_encoder((FIXTURES / "format-2.encoder").read_bytes())
    assert (encoder.encoder_id, encoder.instance_id) == (
        "6a100ad3e5619820a5df6af1791df4c5",
        "51f5a1f6a1ad179dc1641cf4d47475de",
    )
    assert encoder.labels == ("a", "b", "c")
    bits = encoder.instance_bits(np.eye(3, dtype=np.float32))
    expected = [[227, 151, 146, 164], [162, 147, 166, 171], [195, 31, 234, 237]]
    np.testing.assert_array_equal(np.packbits(bits, axis=1)[:, :4], expected)


def test_encoder_of_format_2_is_written_in_the_present_one() -> None:
    encoder = load_encoder((FIXTURES / "format-2.encoder").read_bytes())
    content = dump_encoder(encoder)
    assert header_document(content)["format_version"] == 5
    assert load_encoder(content).encoder_id == encoder.encoder_id


def test_state_of_format_2_is_read() -> None:
    state = load_state((FIXTURES / "format-2.state").read_bytes())
    assert (state.row_count, state.class_codes.labels) == (6, ("a", "b", "c"))
    encoder = load_encoder((FIXTURES / "format-2.encoder").read_bytes())
    assert encoder.label_head is not None
    np.testing.assert_allclose(state.solve(), encoder.label_head.weight, atol=1e-6)


def test_format_3_is_read() -> None:
    encoder = load_encoder((FIXTURES / "format-3.encoder").read_bytes())
    assert encoder.encoder_id == "719f414995da0b52c40b48159e747bec"
    assert encoder.labels == ("a", "b", "ü") and encoder.cross_part is None
    values = encoder.instance_values(np.eye(3, dtype=np.float32)[:1])
    np.testing.assert_allclose(values[0, :3], [-1.3953931, -1.4551907, 3.093736], rtol=1e-5)


def test_state_of_format_3_is_read() -> None:
    state = load_state((FIXTURES / "format-3.state").read_bytes())
    assert (state.row_count, state.class_codes.labels) == (6, ("a", "b", "ü"))


def test_regression_of_format_4_is_read_and_goes_on_learning() -> None:
    encoder = load_encoder((FIXTURES / "format-4.encoder").read_bytes())
    state = load_state((FIXTURES / "format-4.state").read_bytes())
    assert isinstance(state, LabelState) and isinstance(encoder.label_head, LabelHead)
    np.testing.assert_allclose(state.solve(), encoder.label_head.weight, atol=1e-6)
    rows = np.eye(3, dtype=np.float32)
    updated = update_labels(
        encoder, {"text": state}, embeddings={"text": rows[:1]}, labels={"text": [["new"]]}
    )
    assert isinstance(updated.encoder.label_head, LabelHead) and updated.states["text"].row_count == 7
    assert load_state(dump_state(updated.states["text"])).class_codes.labels == ("a", "b", "ü", "new")


def test_tower_in_a_file_of_format_2_is_refused(with_tower: Encoder) -> None:
    with pytest.raises(CheckpointError, match=r"projection\.text\.weight is missing"):
        load_encoder(_rewritten(dump_encoder(with_tower), format_version=2))


def test_dump_is_the_same_bytes_each_time(trained: TrainedEncoder) -> None:
    assert dump_encoder(trained.encoder) == dump_encoder(trained.encoder)


def test_loaded_encoder_issues_the_class_codes_the_original_would(trained: TrainedEncoder) -> None:
    loaded = load_encoder(dump_encoder(trained.encoder))
    assert loaded.label_head is not None and trained.encoder.label_head is not None
    np.testing.assert_array_equal(
        loaded.label_head.class_codes.issue(["new"]).bits,
        trained.encoder.label_head.class_codes.issue(["new"]).bits,
    )


def test_state_survives_the_round_trip(trained: TrainedEncoder) -> None:
    state = trained.state
    assert state is not None
    loaded = load_state(dump_state(state))
    np.testing.assert_array_equal(loaded.gram, state.gram)
    np.testing.assert_array_equal(loaded.cross, state.cross)
    np.testing.assert_array_equal(loaded.solve(), state.solve())
    assert (loaded.ridge, loaded.row_count) == (state.ridge, state.row_count)
    assert loaded.class_codes.labels == state.class_codes.labels


def test_empty_state_survives_the_round_trip() -> None:
    state = LabelState.empty(3, config=EncoderConfig(feature_count=4, ridge=1))
    assert load_state(dump_state(state)).row_count == 0


def test_state_stores_half_of_the_symmetric_matrix(trained: TrainedEncoder) -> None:
    assert trained.state is not None
    count = trained.state.features.count
    assert load(dump_state(trained.state))["state.gram_upper"].shape == (count * (count + 1) // 2,)


@settings(max_examples=150, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_changed_byte_is_refused(tiny: TrainedEncoder, where: float, flip: int) -> None:
    content = bytearray(dump_encoder(tiny.encoder))
    content[int(where * len(content))] ^= flip
    with pytest.raises(CheckpointError):
        load_encoder(bytes(content))


@settings(max_examples=150, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_changed_byte_of_a_tower_is_refused(with_tower: Encoder, where: float, flip: int) -> None:
    content = bytearray(dump_encoder(with_tower))
    content[int(where * len(content))] ^= flip
    with pytest.raises(CheckpointError):
        load_encoder(bytes(content))


def test_number_that_is_written_otherwise_is_refused(tiny: TrainedEncoder) -> None:
    content = dump_encoder(replace(tiny.encoder, metrics={"label_map": 0.1 + 0.2}))
    other = content.replace(b"0.30000000000000004", b"0.30000000000000003")
    assert other != content and float("0.30000000000000003") == 0.1 + 0.2
    with pytest.raises(CheckpointError, match="written"):
        load_encoder(other)


def test_padding_inside_the_header_is_refused(with_tower: Encoder) -> None:
    content = dump_encoder(with_tower)
    end = 8 + int.from_bytes(content[:8], "little")
    assert content[end - 1 : end] == b" ", "the header of this encoder is padded"
    with pytest.raises(CheckpointError, match="written"):
        load_encoder(content[:9] + b" " + content[9 : end - 1] + content[end:])


def test_header_padded_with_other_white_space_is_refused(with_tower: Encoder) -> None:
    content = dump_encoder(with_tower)
    end = 8 + int.from_bytes(content[:8], "little")
    assert content[end - 1 : end] == b" ", "the header of this encoder is padded"
    with pytest.raises(CheckpointError, match="padded"):
        load_encoder(content[: end - 1] + b"\t" + content[end:])


@settings(max_examples=100, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_bytes_are_refused(tiny: TrainedEncoder, share: float) -> None:
    content = dump_encoder(tiny.encoder)
    with pytest.raises(CheckpointError):
        load_encoder(content[: int(share * len(content))])


@given(content=st.binary(max_size=200))
def test_foreign_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError):
        load_encoder(content)


def test_safetensors_of_another_program_are_refused() -> None:
    with pytest.raises(CheckpointError, match="no nearhit metadata"):
        load_encoder(save({"weight": np.zeros(3, dtype=np.float32)}))


def test_state_is_not_taken_for_an_encoder(tiny: TrainedEncoder) -> None:
    assert tiny.state is not None
    with pytest.raises(CheckpointError, match="nearhit-label-state"):
        load_encoder(dump_state(tiny.state))
    with pytest.raises(CheckpointError, match="nearhit-encoder"):
        load_state(dump_encoder(tiny.encoder))


def test_unknown_format_version_is_refused(tiny: TrainedEncoder) -> None:
    with pytest.raises(CheckpointError, match="version 6 is unknown, expected 5"):
        load_encoder(_rewritten(dump_encoder(tiny.encoder), format_version=6))


def test_format_without_prefix_radii_asks_for_training(tiny: TrainedEncoder) -> None:
    with pytest.raises(
        CheckpointError, match="version 1 has no radii for prefixes, expected 5: train the encoder"
    ):
        load_encoder(_rewritten(dump_encoder(tiny.encoder), format_version=1))


def test_weights_of_another_encoder_are_refused(tiny: TrainedEncoder) -> None:
    content = dump_encoder(tiny.encoder)
    weight = load(content)["label.class_weight"] + 1
    with pytest.raises(CheckpointError, match=f"not {tiny.encoder.encoder_id}"):
        load_encoder(_rewritten(content, tensors={"label.class_weight": weight}))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("projection.text.weight", np.full((3, 64), np.nan, dtype=np.float32), "not finite"),
        ("projection.text.weight", np.zeros((3, 128), dtype=np.float32), "differ in code_bits"),
        ("projection.text.weight", np.zeros(3, dtype=np.float32), "not a matrix"),
        ("projection.text.mean", np.zeros(4, dtype=np.float32), "expected float32"),
        ("label.class_weight", np.zeros((7, 3)), "expected float32"),
        ("label.class_bits", np.zeros((2, 64), dtype=np.bool_), "expected bool"),
        ("label.class_bias", np.zeros(2, dtype=np.float32), "expected float32"),
        ("features.directions", np.zeros((2, 4), dtype=np.float32), "does not fit modality"),
    ],
)
def test_inconsistent_tensors_are_refused(tiny: TrainedEncoder, name: str, value, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_encoder(_rewritten(dump_encoder(tiny.encoder), tensors={name: value}))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("linear", (3, 128), "tower.text.output is float32"),
        ("linear", (4, 64), "tower.text.hidden is float32"),
        ("linear", (64,), "not a matrix"),
        ("hidden", (3,), "not a matrix"),
        ("hidden_bias", (6,), "expected float32"),
        ("output", (6, 64), "expected float32"),
        ("offset", (65,), "expected float32"),
    ],
)
def test_inconsistent_arrays_of_a_tower_are_refused(
    with_tower: Encoder, name: str, shape: tuple[int, ...], message: str
) -> None:
    tensors = {f"tower.text.{name}": np.zeros(shape, dtype=np.float32)}
    with pytest.raises(CheckpointError, match=message):
        load_encoder(_rewritten(dump_encoder(with_tower), tensors=tensors))


def test_tower_of_other_bits_than_the_radii_is_refused(with_tower: Encoder) -> None:
    tensors = {
        "tower.text.linear": np.zeros((3, 128), dtype=np.float32),
        "tower.text.output": np.zeros((5, 128), dtype=np.float32),
        "tower.text.offset": np.zeros(128, dtype=np.float32),
    }
    with pytest.raises(CheckpointError, match="differ in code_bits"):
        load_encoder(_rewritten(dump_encoder(with_tower), tensors=tensors))


def test_tower_with_a_value_that_is_not_finite_is_refused(with_tower: Encoder) -> None:
    tensors = {"tower.text.offset": np.full(64, np.inf, dtype=np.float32)}
    with pytest.raises(CheckpointError, match="not finite"):
        load_encoder(_rewritten(dump_encoder(with_tower), tensors=tensors))


@pytest.mark.parametrize(
    "radii",
    [
        [1] * 100,
        {},
        {"128": [1] * 100},
        {"64": [1] * 100, "128": [1] * 100},
        {"64": [1] * 99},
        {"64": [2] + [1] * 99},
        {"64": [65] * 100},
        {"64": [-1] * 100},
        {"64": ["1"] * 100},
        {"64": [True] * 100},
    ],
)
def test_invalid_radii_are_refused(tiny: TrainedEncoder, radii: object) -> None:
    identity = {**tiny.encoder.identity_metadata(), "radii": radii}
    with pytest.raises(CheckpointError, match="radii"):
        load_encoder(_rewritten(dump_encoder(tiny.encoder), identity=identity))


def test_missing_field_is_named(tiny: TrainedEncoder) -> None:
    with pytest.raises(CheckpointError, match="modalities"):
        load_encoder(_rewritten(dump_encoder(tiny.encoder), modalities=None))


def test_type_of_loaded_encoder(tiny: TrainedEncoder) -> None:
    assert isinstance(load_encoder(dump_encoder(tiny.encoder)), Encoder)

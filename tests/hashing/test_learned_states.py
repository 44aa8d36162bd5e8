"""States of several modalities as bytes, and encoders solved from them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hashing import (
    CheckpointError,
    CrossModalConfig,
    EncoderConfig,
    KernelSettings,
    LabelState,
    StateMismatchError,
    TrainedCrossModal,
    TrainedEncoder,
    dump_encoder,
    dump_state,
    dump_states,
    empty_state,
    load_encoder,
    load_states,
    renew_encoder,
    train_crossmodal,
    train_encoder,
    update_labels,
)
from hashing.label_gate import LabelledRows, evaluate_label_update
from hashing.learned_states import kept_modalities
from hashing.lifelong import learnable_modalities

DIMS = {"image": 10, "text": 6}
FIXTURES = Path(__file__).parent / "fixtures"


def draw(modality: str, *, seed: int, count: int = 60) -> tuple[np.ndarray, list[list[str]]]:
    """Row i of any modality is of class i % 3."""
    dim = DIMS[modality]
    centres = np.random.default_rng(dim).standard_normal((3, dim))[np.arange(count) % 3]
    rows = centres + 0.3 * np.random.default_rng(seed).standard_normal((count, dim))
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit, [[f"c{i % 3}"] for i in range(count)]


@pytest.fixture(scope="module")
def trained() -> TrainedCrossModal:
    rows = {modality: draw(modality, seed=1) for modality in DIMS}
    return train_crossmodal(
        {modality: own for modality, (own, _) in rows.items()},
        config=CrossModalConfig(
            code_bits=64,
            itq_iterations=2,
            label_feature_count=32,
            function_feature_count=32,
            kernels=dict.fromkeys(DIMS, KernelSettings(gamma=1.0, ridge=1e-3)),
        ),
        labels={modality: labels for modality, (_, labels) in rows.items()},
    )


@pytest.fixture(scope="module")
def single() -> TrainedEncoder:
    rows, labels = draw("image", seed=1)
    config = EncoderConfig(code_bits=64, itq_iterations=2, feature_count=16)
    return train_encoder(rows, config=config, modality="image", labels=labels)


def test_states_of_all_modalities_are_read_as_they_were_written(trained: TrainedCrossModal) -> None:
    content = dump_states(trained.states)
    loaded = load_states(content, encoder=trained.encoder)
    assert list(loaded) == ["image", "text"] == list(kept_modalities(content, encoder=trained.encoder))
    assert dump_states(loaded) == content
    for modality, state in loaded.items():
        np.testing.assert_array_equal(state.gram, trained.states[modality].gram)
        np.testing.assert_array_equal(state.solve(), trained.states[modality].solve())
        assert state.class_codes.labels == trained.encoder.labels


def test_of_no_states_nothing_is_kept(trained: TrainedCrossModal) -> None:
    assert dump_states({}) is None
    assert load_states(None, encoder=trained.encoder) == {}
    assert kept_modalities(None, encoder=trained.encoder) == ()


def test_the_header_alone_says_what_was_kept(trained: TrainedCrossModal) -> None:
    for content in (dump_states(trained.states), dump_state(trained.states["image"])):
        header = content[: 8 + int.from_bytes(content[:8], "little")]
        assert len(header) < len(content) / 4
        whole = load_states(content, encoder=trained.encoder)
        assert kept_modalities(header, encoder=trained.encoder) == tuple(whole)
        with pytest.raises(CheckpointError):
            kept_modalities(header[:-1], encoder=trained.encoder)


def test_one_state_as_it_was_written_before_is_of_the_label_parts_modality(
    trained: TrainedCrossModal, single: TrainedEncoder
) -> None:
    for encoder, state in (
        (trained.encoder, trained.states["image"]),
        (single.encoder, single.state),
        (replace(single.encoder, label_head=None), single.state),
    ):
        content = dump_state(state)
        assert kept_modalities(content, encoder=encoder) == ("image",)
        loaded = load_states(content, encoder=encoder)
        assert list(loaded) == ["image"] and loaded["image"].row_count == 60


@pytest.mark.parametrize("version", [2, 3, 4])
def test_states_of_every_format_are_read(version: int) -> None:
    encoder = load_encoder((FIXTURES / f"format-{version}.encoder").read_bytes())
    content = (FIXTURES / f"format-{version}.state").read_bytes()
    assert [state.row_count for state in load_states(content, encoder=encoder).values()] == [6]


def test_damaged_and_foreign_bytes_are_refused(trained: TrainedCrossModal) -> None:
    content = dump_states(trained.states)
    for place in (3, 60, len(content) // 2, len(content) - 2):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        with pytest.raises(CheckpointError):
            load_states(bytes(damaged), encoder=trained.encoder)
    for other in (content[:-1], b"", dump_encoder(trained.encoder)):
        with pytest.raises(CheckpointError):
            load_states(other, encoder=trained.encoder)


def test_what_can_be_learned_depends_on_what_was_kept(
    trained: TrainedCrossModal, single: TrainedEncoder
) -> None:
    encoder = trained.encoder
    assert learnable_modalities(encoder, trained.states) == ("image", "text")
    assert learnable_modalities(encoder, ["text"]) == ("text",)
    assert learnable_modalities(encoder, []) == ()
    unlabelled = renew_encoder(encoder, {}, dropped=encoder.label_modalities)
    assert learnable_modalities(unlabelled, []) == ("image", "text")
    assert learnable_modalities(single.encoder, []) == ("image",)


def test_a_modality_without_rows_or_dropped_has_no_label_part(trained: TrainedCrossModal) -> None:
    emptied = {**trained.states, "image": trained.states["image"].emptied()}
    for child in (
        renew_encoder(trained.encoder, emptied),
        renew_encoder(trained.encoder, {"text": trained.states["text"]}, dropped=["image"]),
    ):
        assert child.label_modalities == ("text",) and child.labels == trained.encoder.labels
        assert load_encoder(dump_encoder(child)).encoder_id == child.encoder_id
        rows, _ = draw("text", seed=2)
        expected = trained.encoder.label_values(rows, modality="text")
        np.testing.assert_allclose(child.label_values(rows), expected, atol=1e-5)
        assert child.metrics["labelled_row_count"] == 60
    kept = renew_encoder(trained.encoder, {"text": trained.states["text"]})
    assert kept.label_modalities == ("image", "text")


def test_states_that_do_not_fit_each_other_or_the_encoder_are_refused(
    trained: TrainedCrossModal, single: TrainedEncoder
) -> None:
    longer = {**trained.states, "text": trained.states["text"].issue(["new"])}
    with pytest.raises(StateMismatchError, match="other class codes"):
        renew_encoder(trained.encoder, longer)
    with pytest.raises(StateMismatchError, match="other class codes"):
        renew_encoder(trained.encoder, dict(reversed(longer.items())))
    other = LabelState.empty(6, config=EncoderConfig(feature_count=32, seed=5))
    with pytest.raises(StateMismatchError, match="other random features"):
        renew_encoder(trained.encoder, {"text": other})
    towers = {**single.encoder.projections, "text": trained.encoder.projections["text"]}
    apart = replace(single.encoder, projections=towers, label_head=None)
    rows = {modality: draw(modality, seed=1) for modality in DIMS}
    empty = {own: LabelState.empty(dim, config=EncoderConfig(feature_count=8)) for own, dim in DIMS.items()}
    with pytest.raises(StateMismatchError, match="no place for a label part of a second modality"):
        update_labels(
            apart,
            empty,
            embeddings={modality: own for modality, (own, _) in rows.items()},
            labels={modality: labels for modality, (_, labels) in rows.items()},
        )


@pytest.mark.parametrize("discriminant", list(DIMS))
def test_only_the_first_modality_may_have_a_discriminant(
    trained: TrainedCrossModal, discriminant: str
) -> None:
    unlabelled = renew_encoder(trained.encoder, {}, dropped=trained.encoder.label_modalities)
    states = {}
    for modality, dim in DIMS.items():
        method = "discriminant" if modality == discriminant else "regression"
        states[modality] = empty_state(dim, config=EncoderConfig(feature_count=16, label_method=method))
    rows = {modality: draw(modality, seed=1) for modality in DIMS}
    embeddings = {modality: own for modality, (own, _) in rows.items()}
    labels = {modality: own for modality, (_, own) in rows.items()}
    if discriminant == "text":
        with pytest.raises(StateMismatchError, match="no place"):
            update_labels(unlabelled, states, embeddings=embeddings, labels=labels)
        return
    result = update_labels(unlabelled, states, embeddings=embeddings, labels=labels)
    # A class that the other modality alone has learned is unknown to the discriminant, and has its code.
    result = update_labels(
        result.encoder,
        result.states,
        embeddings={"text": draw("text", seed=5, count=3)[0]},
        labels={"text": [["new"]] * 3},
    )
    assert result.encoder.labels == ("c0", "c1", "c2", "new")
    assert load_encoder(dump_encoder(result.encoder)).encoder_id == result.encoder.encoder_id
    signs = np.where(result.encoder.class_bits([["c0"], ["c1"], ["c2"], ["new"]]), 1, -1)
    for modality in DIMS:
        own, _ = draw(modality, seed=6)
        best = np.argmax(result.encoder.label_values(own, modality=modality) @ signs.T, axis=1)
        assert np.mean(best == np.arange(60) % 3) > 0.9


def test_new_labels_are_issued_once_for_all_modalities(trained: TrainedCrossModal) -> None:
    rows = {modality: draw(modality, seed=3, count=6)[0] for modality in DIMS}
    told: list[tuple[str, int, int]] = []
    result = update_labels(
        trained.encoder,
        trained.states,
        embeddings=rows,
        labels={"image": [["x"], [], ["y"]] * 2, "text": [["y"], ["z"], []] * 2},
        progress=lambda *at: told.append(at),
    )
    assert result.report.new_labels == ("x", "y", "z")
    assert (result.report.row_count, result.report.skipped_row_count) == (8, 4)
    assert told == [("learn", 0, 8), ("learn", 4, 8), ("learn", 8, 8)]
    for modality, state in result.states.items():
        assert state.class_codes.labels == (*trained.encoder.labels, "x", "y", "z")
        assert state.row_count == 64
        np.testing.assert_array_equal(result.encoder.label_heads[modality].weight, state.solve())
    assert trained.states["text"].row_count == 60 and "x" not in trained.encoder.labels


@pytest.mark.parametrize("modality", list(DIMS))
def test_the_gate_judges_the_modality_that_it_is_told(trained: TrainedCrossModal, modality: str) -> None:
    """One label part is blinded: the gate of its modality refuses, that of the other does not."""
    encoder = trained.encoder
    blind = replace(trained.states[modality], cross=np.zeros_like(trained.states[modality].cross))
    child = renew_encoder(encoder, {**trained.states, modality: blind})
    for own in DIMS:
        rows, labels = draw(own, seed=1)
        queries, query_labels = draw(own, seed=4)
        stored = LabelledRows(rows, labels, queries, query_labels)
        none = LabelledRows(rows[:0], [], queries[:0], [])
        report = evaluate_label_update(encoder, child, old_rows=stored, new_rows=none, modality=own)
        assert report.accepted is (own != modality)
        assert report.old_map_before > 0.95 and np.isnan(report.new_map_after)

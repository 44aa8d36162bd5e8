"""One encoder for several modalities, on rows of two views of the same classes."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from hashing import (
    ConfigError,
    CrossModalConfig,
    EmbeddingsError,
    KernelSettings,
    NoCrossPartError,
    NothingToLearnError,
    TrainedCrossModal,
    TrainingDataError,
    UnknownModalityError,
    dump_encoder,
    load_encoder,
    train_crossmodal,
    update_labels,
)
from hashing.class_codes import ClassCodes
from hashing.metrics import mean_average_precision

CLASSES = 6
KERNEL = KernelSettings(gamma=1.0, ridge=1e-3)
Rows = dict[str, NDArray[np.float32]]


def draw_views(count: int, *, seed: int, noise: float = 0.6) -> tuple[Rows, list[list[str]]]:
    """Unit rows: "image" of 24 and "text" of 16 dimensions around a centre for each class; row i of either is
    of the same class."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(count) % CLASSES
    views = {}
    for modality, dim in (("image", 24), ("text", 16)):
        centres = np.random.default_rng(dim).standard_normal((CLASSES, dim))
        rows = centres[classes] + noise * rng.standard_normal((count, dim))
        views[modality] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return views, [[f"c{number}"] for number in classes]


def config_of(**changes) -> CrossModalConfig:
    kernels = {"image": KERNEL, "text": KERNEL}
    return replace(
        CrossModalConfig(
            code_bits=128,
            label_feature_count=256,
            function_feature_count=128,
            kernels=kernels,
            itq_iterations=5,
        ),
        **changes,
    )


def function_map(trained: TrainedCrossModal, source: str, target: str, *, seed: int = 9) -> float:
    """mAP of unseen rows of one modality as queries against unseen rows of the other."""
    views, labels = draw_views(300, seed=seed)
    encoder = trained.encoder
    signs = np.where(encoder.instance_bits(views[target], modality=target), 1.0, -1.0)
    values = encoder.cross_values(views[source], modality=source, target=target)
    names = np.array(labels)[:, 0]
    return mean_average_precision(values @ signs.T, names[:, None] == names, seed=0)


@pytest.fixture(scope="module")
def views() -> tuple[Rows, list[list[str]]]:
    return draw_views(400, seed=1)


@pytest.fixture(scope="module")
def by_labels(views) -> TrainedCrossModal:
    rows, labels = views
    return train_crossmodal(rows, config=config_of(), labels=dict.fromkeys(rows, labels))


@pytest.mark.parametrize(("source", "target"), [("image", "text"), ("text", "image")])
def test_rows_of_a_class_are_found_from_the_other_modality(by_labels, source: str, target: str) -> None:
    assert function_map(by_labels, source, target) > 0.85


def test_binary_query_finds_nearly_as_well(by_labels) -> None:
    rows, labels = draw_views(300, seed=9)
    encoder = by_labels.encoder
    query = encoder.cross_bits(rows["image"], modality="image", target="text")
    assert not query[:, ~encoder.cross_mask].any()
    bits = encoder.instance_bits(rows["text"], modality="text")
    agreeing = (
        np.where(query, 1.0, -1.0)[:, encoder.cross_mask] @ np.where(bits[:, encoder.cross_mask], 1.0, -1.0).T
    )
    names = np.array(labels)[:, 0]
    assert mean_average_precision(agreeing, names[:, None] == names, seed=0) > 0.75


def test_values_are_0_but_for_the_bits_in_common(by_labels, views) -> None:
    encoder = by_labels.encoder
    values = encoder.cross_values(views[0]["image"], modality="image", target="text")
    assert values.dtype == np.float32 and values.shape == (400, 128)
    assert encoder.cross_mask.sum() == 64
    assert not values[:, ~encoder.cross_mask].any() and values[:, encoder.cross_mask].all()


def test_label_query_of_either_modality_scores_the_codes_of_its_class_highest(by_labels) -> None:
    rows, labels = draw_views(200, seed=7)
    encoder = by_labels.encoder
    assert encoder.label_modalities == ("image", "text")
    codes = np.where(encoder.class_bits([[name] for name in encoder.labels]), 1.0, -1.0)
    for modality in rows:
        scores = encoder.label_values(rows[modality], modality=modality) @ codes.T
        found = [encoder.labels[i] for i in scores.argmax(axis=1)]
        assert np.mean([a == b[0] for a, b in zip(found, labels, strict=True)]) > 0.85


def test_class_codes_are_orthogonal_and_shared(by_labels) -> None:
    head, other = by_labels.encoder.label_head, by_labels.encoder.cross_part.label_heads["text"]
    assert head is not None and head.modality == "image"
    assert head.class_codes.labels == other.class_codes.labels
    signs = np.where(head.class_codes.bits, 1, -1)
    np.testing.assert_array_equal(signs @ signs.T, 64 * np.eye(CLASSES))


def test_class_codes_that_were_issued_stay(views) -> None:
    rows, labels = views
    issued = ClassCodes.empty(label_bits=64, seed=5).issue(["other", "c3"])
    trained = train_crossmodal(
        rows, config=config_of(), labels=dict.fromkeys(rows, labels), class_codes=issued
    )
    kept = trained.encoder.label_head.class_codes
    assert kept.labels[:2] == ("other", "c3")
    np.testing.assert_array_equal(kept.bits[:2], issued.bits)


def test_metrics_are_of_rows_not_learned_from(by_labels) -> None:
    metrics = by_labels.encoder.metrics
    for source, target in (("image", "text"), ("text", "image")):
        unseen = function_map(by_labels, source, target)
        assert metrics[f"map_{source}_to_{target}"] == pytest.approx(unseen, abs=0.08)


def test_training_is_repeatable(by_labels, views) -> None:
    rows, labels = views
    again = train_crossmodal(rows, config=config_of(), labels=dict.fromkeys(rows, labels))
    assert again.encoder.encoder_id == by_labels.encoder.encoder_id


def test_checkpoint_gives_the_encoder_back(by_labels, views) -> None:
    loaded = load_encoder(dump_encoder(by_labels.encoder))
    assert loaded.encoder_id == by_labels.encoder.encoder_id
    for source, target in (("image", "text"), ("text", "image")):
        np.testing.assert_array_equal(
            loaded.cross_values(views[0][source], modality=source, target=target),
            by_labels.encoder.cross_values(views[0][source], modality=source, target=target),
        )
    np.testing.assert_array_equal(
        loaded.label_values(views[0]["text"], modality="text"),
        by_labels.encoder.label_values(views[0]["text"], modality="text"),
    )


def test_one_row_has_the_bits_that_it_has_in_a_batch(by_labels, views) -> None:
    encoder = by_labels.encoder
    rows = views[0]["text"][:50]
    together = encoder.instance_values(rows, modality="text")
    alone = np.concatenate([encoder.instance_values(row[None], modality="text") for row in rows])
    clear = np.abs(together) >= 1e-5
    np.testing.assert_array_equal((together > 0)[clear], (alone > 0)[clear])


def test_radii_hold_for_either_modality(by_labels) -> None:
    rows, _ = draw_views(300, seed=11)
    encoder = by_labels.encoder
    for modality, own in rows.items():
        bits = encoder.instance_bits(own, modality=modality)
        cosine = 1 - own @ own.T
        hamming = (bits[:, None] != bits).sum(axis=2)
        for threshold in (0.1, 0.3):
            within = (cosine <= threshold) & ~np.eye(len(own), dtype=bool)
            assert within.any()
            assert np.mean(hamming[within] <= encoder.radii(threshold)[128]) > 0.98


def test_update_keeps_queries_between_modalities_and_issued_codes(by_labels) -> None:
    rows, _ = draw_views(60, seed=3)
    updated = update_labels(
        by_labels.encoder,
        by_labels.states,
        embeddings={"image": rows["image"]},
        labels={"image": [["new"]] * 60},
    ).encoder
    assert updated.cross_part.queries == by_labels.encoder.cross_part.queries
    issued = [[label] for label in by_labels.encoder.labels]
    np.testing.assert_array_equal(updated.class_bits(issued), by_labels.encoder.class_bits(issued))
    assert updated.instance_id == by_labels.encoder.instance_id
    assert updated.label_modalities == ("image", "text") and updated.labels[-1] == "new"
    assert load_encoder(dump_encoder(updated)).encoder_id == updated.encoder_id


@pytest.mark.parametrize("modality", ["image", "text"])
def test_rows_of_one_modality_are_learned_as_if_they_had_been_there_from_the_start(modality: str) -> None:
    rows, labels = draw_views(400, seed=1)
    late = [["new"] if own == ["c5"] else own for own in labels[300:]]
    start = train_crossmodal(
        {name: own[:300] for name, own in rows.items()},
        config=config_of(),
        labels=dict.fromkeys(rows, labels[:300]),
    )
    updated = update_labels(
        start.encoder,
        start.states,
        embeddings={modality: rows[modality][300:]},
        labels={modality: late},
    )
    together = start.states[modality].add(rows[modality][300:], late)
    np.testing.assert_allclose(updated.states[modality].solve(), together.solve(), atol=1e-5)
    assert updated.encoder.parent_id == start.encoder.encoder_id
    assert updated.encoder.instance_id == start.encoder.instance_id
    assert updated.encoder.labels == (*start.encoder.labels, "new")
    assert load_encoder(dump_encoder(updated.encoder)).encoder_id == updated.encoder.encoder_id
    new = np.where(updated.encoder.class_bits([["new"]]), 1.0, -1.0)
    scores = updated.encoder.label_values(rows[modality][300:], modality=modality) @ new.T
    is_new = np.array([own == ["new"] for own in late])
    assert scores[is_new].mean() > scores[~is_new].mean() + 5


def test_update_of_an_unknown_modality_or_without_labels_is_refused(by_labels, views) -> None:
    rows = views[0]["image"][:3]
    with pytest.raises(UnknownModalityError, match="sound"):
        update_labels(
            by_labels.encoder,
            by_labels.states,
            embeddings={"sound": rows},
            labels={"sound": [["c1"]] * 3},
        )
    with pytest.raises(NothingToLearnError):
        update_labels(
            by_labels.encoder, by_labels.states, embeddings={"image": rows}, labels={"image": [[]] * 3}
        )


def test_pairs_alone_teach_which_rows_belong_together() -> None:
    rows, _ = draw_views(400, seed=1)
    pairs = np.stack([np.arange(400)] * 2, axis=1)
    trained = train_crossmodal(rows, config=config_of(), pairs=pairs)
    assert trained.encoder.label_head is None and trained.encoder.label_modalities == ()
    assert function_map(trained, "image", "text") > 0.5  # a sixth by chance
    assert trained.encoder.metrics["map_image_to_text"] > 0.015  # one row of 400 is relevant


@pytest.mark.parametrize("seed", range(5))
def test_few_rows_that_all_rows_of_the_other_modality_belong_to_are_learned_from(views, seed: int) -> None:
    rows, _ = views
    pairs = [[row % 2, row] for row in range(400)]
    metrics = train_crossmodal(rows, config=config_of(seed=seed), pairs=pairs).encoder.metrics
    assert metrics["held_out_row_count"] == 80


def test_order_of_rows_is_free_where_pairs_say_it() -> None:
    rows, _ = draw_views(400, seed=1)
    order = np.random.default_rng(0).permutation(400)
    shuffled = {"image": rows["image"], "text": rows["text"][order]}
    pairs = np.stack([order, np.arange(400)], axis=1)
    trained = train_crossmodal(shuffled, config=config_of(), pairs=pairs)
    assert function_map(trained, "text", "image") > 0.5


def test_pairs_give_their_labels_to_a_modality_that_has_few() -> None:
    rows, labels = draw_views(400, seed=1, noise=0.9)
    few = [own if i < 12 else [] for i, own in enumerate(labels)]
    named = {"image": labels, "text": few}
    pairs = np.stack([np.arange(400)] * 2, axis=1)
    alone = train_crossmodal(
        {"image": rows["image"], "text": rows["text"][:12]},
        config=config_of(),
        labels={"image": labels, "text": few[:12]},
    )
    paired = train_crossmodal(rows, config=config_of(), labels=named, pairs=pairs)
    assert function_map(paired, "text", "image") > function_map(alone, "text", "image")


def test_unlabelled_rows_help_by_what_is_near_them() -> None:
    rows, labels = draw_views(400, seed=1, noise=0.8)
    few = [own if i < 18 else [] for i, own in enumerate(labels)]
    alone = train_crossmodal(
        {modality: own[:18] for modality, own in rows.items()},
        config=config_of(),
        labels=dict.fromkeys(rows, labels[:18]),
    )
    helped = train_crossmodal(rows, config=config_of(), labels=dict.fromkeys(rows, few))
    assert function_map(helped, "text", "image") > function_map(alone, "text", "image")


def test_kernels_are_chosen_where_none_are_given() -> None:
    rows, labels = draw_views(150, seed=1)
    trained = train_crossmodal(rows, config=config_of(kernels={}), labels=dict.fromkeys(rows, labels))
    assert set(trained.kernels) == {"image", "text"}
    assert function_map(trained, "image", "text") > 0.85


def test_codes_of_function_bits_alone_have_no_radii(views) -> None:
    rows, labels = views
    trained = train_crossmodal(
        rows, config=config_of(code_bits=64, function_bits=64), labels=dict.fromkeys(rows, labels)
    )
    assert trained.encoder.cross_mask.all()
    assert trained.encoder.radii(0.1) == {64: 64}


def test_unknown_direction_and_modality_are_named(by_labels, views) -> None:
    encoder, rows = by_labels.encoder, views[0]["image"]
    assert encoder.can_cross("image", target="text") and not encoder.can_cross("image", target="image")
    with pytest.raises(NoCrossPartError, match="'image' against 'sound'"):
        encoder.cross_values(rows, modality="image", target="sound")
    with pytest.raises(UnknownModalityError, match="'sound'"):
        encoder.label_values(rows, modality="sound")


def one_modality(rows: Rows, labels: list[list[str]]) -> dict:
    return {"embeddings": {"image": rows["image"]}, "labels": {"image": labels}}


def with_nan(rows: Rows, labels: list[list[str]]) -> dict:
    spoilt = rows["text"].copy()
    spoilt[3, 2] = np.nan
    return {"embeddings": {**rows, "text": spoilt}, "labels": dict.fromkeys(rows, labels)}


def constant(rows: Rows, labels: list[list[str]]) -> dict:
    same = np.repeat(rows["text"][:1], len(labels), axis=0)
    return {"embeddings": {**rows, "text": same}, "labels": dict.fromkeys(rows, labels)}


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (one_modality, TrainingDataError, "two modalities, got image"),
        (with_nan, EmbeddingsError, "finite"),
        (constant, TrainingDataError, "modality 'text': all rows are equal"),
        (lambda r, _: {"embeddings": r}, TrainingDataError, "neither labels nor pairs"),
        (
            lambda r, own: {"embeddings": r, "labels": {"image": own}},
            TrainingDataError,
            "labels of modality 'text' are missing",
        ),
        (
            lambda r, own: {"embeddings": r, "labels": {"image": own, "text": own[:-1]}},
            TrainingDataError,
            "399 label rows for 400",
        ),
        (
            lambda r, own: {"embeddings": r, "labels": {"image": own, "text": [[]] * 400}},
            TrainingDataError,
            "no row of modality 'text' has a label",
        ),
        (
            lambda r, own: {"embeddings": r, "labels": {"image": own, "text": [["x"]] * 400}},
            TrainingDataError,
            "share no label",
        ),
        (
            lambda r, _: {"embeddings": r, "labels": dict.fromkeys(r, [["x"]] * 400)},
            TrainingDataError,
            "one class only",
        ),
        (
            lambda r, _: {"embeddings": r, "pairs": [[0, 1], [2, 400]]},
            TrainingDataError,
            "pair 1 names row 400 of the 400 of 'text'",
        ),
        (lambda r, _: {"embeddings": r, "pairs": [[0, 1]]}, TrainingDataError, "at least 2 pairs"),
        (lambda r, _: {"embeddings": r, "pairs": [0, 1]}, TrainingDataError, "integers"),
        (
            lambda r, _: {"embeddings": r, "pairs": [[7, row] for row in range(400)]},
            TrainingDataError,
            "all pairs name one row of 'image'",
        ),
        (
            lambda r, _: {"embeddings": {**r, "sound": r["text"]}, "pairs": [[0, 1], [1, 2]]},
            TrainingDataError,
            "two modalities, not of 3",
        ),
    ],
)
def test_bad_input_is_refused(views, bad: Callable, error: type[Exception], message: str) -> None:
    arguments = bad(*views)
    with pytest.raises(error, match=message):
        train_crossmodal(arguments.pop("embeddings"), config=config_of(), **arguments)


def test_config_names_the_wrong_key() -> None:
    with pytest.raises(ConfigError, match="function_bits"):
        CrossModalConfig(code_bits=64, function_bits=65)
    with pytest.raises(ConfigError, match="gamma"):
        KernelSettings(gamma=0.0, ridge=1.0)

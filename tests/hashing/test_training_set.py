"""What a training reads: the part held out, the items matched, and what is refused before time is spent."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hashing import ConfigError, EmbeddingsError, HashingError, TrainingDataError

torch = pytest.importorskip("torch", reason="torch is not installed")

from hashing.deep.config import parse_config  # noqa: E402
from hashing.deep.pairs import connected_components  # noqa: E402
from hashing.deep.training import train  # noqa: E402
from hashing.deep.training_set import TrainingSet, matched_rows, split_set  # noqa: E402

QUICK = "[tower]\nhidden_width = 4\n[optimiser]\nepochs = 1\n"
LABELS = parse_config("code_bits = 64\n[losses.labels]\ncentral = 1.0\n" + QUICK)
PAIRS = parse_config("code_bits = 64\n[losses.pairs]\nlogistic = 1.0\n" + QUICK)
NEIGHBOURS = parse_config("code_bits = 64\n[losses.neighbours]\ndistance = 1.0\n" + QUICK)
MATCHES = parse_config("code_bits = 64\n[losses.matches]\ninfo_nce = 1.0\n" + QUICK)
ACROSS = parse_config("code_bits = 64\n[losses.matches]\nlikelihood = 1.0\n" + QUICK)


def _rows(count: int, *, dim: int = 32, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _classes(count: int) -> list[list[str]]:
    return [[f"c{row % 3}"] for row in range(count)]


def _pairs(count: int, *, row_count: int, seed: int = 0) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    first, offset = rng.integers(0, row_count, size=count), rng.integers(1, row_count, size=count)
    return np.column_stack([first, (first + offset) % row_count, np.arange(count) % 2])


def _split(training_set: TrainingSet, config: Any, *, seed: int = 0) -> Any:
    return split_set(training_set, config=config, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("config", [NEIGHBOURS, LABELS])
def test_modalities_that_nothing_relates_are_refused(config: Any) -> None:
    rows = {"text": _rows(60), "image": _rows(60, dim=16)}
    with pytest.raises(ConfigError, match="nothing else relates image to text"):
        _split(TrainingSet(embeddings=rows, labels={"text": _classes(60)}), config)
    both = {modality: _classes(60) for modality in rows}
    _split(TrainingSet(embeddings=rows, labels=both), LABELS)


@given(first=st.lists(st.integers(-3, 6), max_size=12), second=st.lists(st.integers(-3, 6), max_size=12))
def test_matched_rows_are_those_of_a_double_loop(first: list[int], second: list[int]) -> None:
    expected = [[i, j] for i, own in enumerate(first) for j, other in enumerate(second) if own == other]
    found = matched_rows(np.array(first, dtype=np.int64), np.array(second, dtype=np.int64))
    assert (found.dtype, found.shape) == (np.int64, (len(expected), 2))
    assert found.tolist() == expected


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), row_count=st.integers(4, 400))
def test_training_and_held_out_rows_are_all_rows(seed: int, row_count: int) -> None:
    split = _split(TrainingSet(embeddings={"text": _rows(row_count)}), NEIGHBOURS, seed=seed)
    held_out, training = split.held_out["text"], split.training["text"]
    assert sorted([*held_out.tolist(), *training.tolist()]) == list(range(row_count))
    assert held_out.size == max(row_count // 10, min(50, row_count // 2))
    assert (np.diff(held_out) > 0).all() and (np.diff(training) > 0).all()
    assert split.pairs is None


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_linked_rows_stay_on_one_side(seed: int) -> None:
    pairs = _pairs(200, row_count=600, seed=seed)
    split = _split(TrainingSet(embeddings={"text": _rows(600)}, pairs=pairs), PAIRS, seed=seed)
    component = connected_components(pairs[:, 0], pairs[:, 1], row_count=600)
    in_pairs = np.unique(pairs[:, :2])
    sides = [
        set(component[np.intersect1d(own["text"], in_pairs)].tolist())
        for own in (split.training, split.held_out)
    ]
    assert not sides[0] & sides[1]
    assert np.isin(split.pairs.training[:, :2], split.training["text"]).all()
    assert np.isin(split.pairs.validation[:, :2], split.held_out["text"]).all()
    assert len(split.pairs.training) + len(split.pairs.validation) == 200


@pytest.mark.parametrize("seed", range(3))
def test_items_are_held_out_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = {"text": rng.integers(0, 150, size=600), "image": rng.integers(50, 300, size=400)}
    training_set = TrainingSet(embeddings={"text": _rows(600), "image": _rows(400)}, items=items)
    split = _split(training_set, MATCHES, seed=seed)
    learned, kept = (
        set(items["text"][own["text"]].tolist()) | set(items["image"][own["image"]].tolist())
        for own in (split.training, split.held_out)
    )
    both = set(items["text"].tolist()) & set(items["image"].tolist())
    assert not learned & kept & both
    assert not set(items["text"][split.training["text"]].tolist()) & kept & set(items["text"].tolist())
    for modality, count in (("text", 600), ("image", 400)):
        own = np.concatenate([split.training[modality], split.held_out[modality]])
        assert sorted(own.tolist()) == list(range(count))
    assert len(kept & both) >= 10


def test_rows_of_another_modality_without_items_are_held_out_in_their_share() -> None:
    labels = {"text": _classes(600), "image": _classes(700)}
    training_set = TrainingSet(embeddings={"text": _rows(600), "image": _rows(700)}, labels=labels)
    split = _split(training_set, ACROSS)
    assert (split.held_out["text"].size, split.held_out["image"].size) == (60, 70)


TEXT = {"text": _rows(200)}
BOTH = {"text": _rows(200), "image": _rows(200, dim=16)}
SAME = {"text": np.arange(200), "image": np.arange(200)}
WITH_NAN = _rows(200)
WITH_NAN[7, 3] = np.nan
REFUSED: dict[str, tuple[TrainingSet, Any, type[HashingError], str]] = {
    "one class only": (
        TrainingSet(embeddings=TEXT, labels={"text": [["a"]] * 200}),
        LABELS,
        TrainingDataError,
        "one class only",
    ),
    "no label": (
        TrainingSet(embeddings=TEXT, labels={"text": [[]] * 200}),
        LABELS,
        TrainingDataError,
        "no row has a label",
    ),
    "labels of another length": (
        TrainingSet(embeddings=TEXT, labels={"text": _classes(199)}),
        LABELS,
        TrainingDataError,
        "199 label rows for 200 embeddings",
    ),
    "labels of no modality": (
        TrainingSet(embeddings=TEXT, labels={"text": _classes(200), "audio": _classes(3)}),
        LABELS,
        TrainingDataError,
        "labels or items of 'audio', of which there are no rows",
    ),
    "pairs of one kind": (
        TrainingSet(embeddings=TEXT, pairs=_pairs(200, row_count=200)[::2]),
        PAIRS,
        TrainingDataError,
        "one class only",
    ),
    "pair of a missing row": (
        TrainingSet(embeddings=TEXT, pairs=_pairs(100, row_count=300)),
        PAIRS,
        TrainingDataError,
        r"refers to rows \[.*there are 200",
    ),
    "items of a wrong length": (
        TrainingSet(embeddings=BOTH, items=SAME | {"image": np.arange(150)}),
        MATCHES,
        TrainingDataError,
        r"image: items must be integers, one for each of 200 rows, got int64\[150\]",
    ),
    "items of a wrong type": (
        TrainingSet(embeddings=BOTH, items=SAME | {"text": np.linspace(0, 1, 200)}),  # type: ignore[dict-item]
        MATCHES,
        TrainingDataError,
        r"text: items must be integers",
    ),
    "too few items in both": (
        TrainingSet(embeddings=BOTH, items=SAME | {"image": np.arange(181, 381)}),
        MATCHES,
        TrainingDataError,
        "text and image share 19 items, training needs 20",
    ),
    "equal rows": (
        TrainingSet(embeddings={"text": np.full((200, 32), 0.1)}),
        NEIGHBOURS,
        TrainingDataError,
        "text: all rows are equal",
    ),
    "nan": (TrainingSet(embeddings={"text": WITH_NAN}), NEIGHBOURS, EmbeddingsError, "finite"),
    "nan in another modality": (
        TrainingSet(embeddings={"image": _rows(200), "text": WITH_NAN}, items=SAME),
        MATCHES,
        EmbeddingsError,
        "finite",
    ),
    "one row": (TrainingSet(embeddings={"text": _rows(1)}), NEIGHBOURS, TrainingDataError, "at least 2 rows"),
    "two rows": (TrainingSet(embeddings={"text": _rows(2)}), NEIGHBOURS, TrainingDataError, "too few"),
    "no matrix": (TrainingSet(embeddings={"text": _rows(9)[0]}), NEIGHBOURS, EmbeddingsError, "matrix"),
    "integers": (
        TrainingSet(embeddings={"text": np.eye(9, dtype=int)}),  # type: ignore[dict-item]
        NEIGHBOURS,
        EmbeddingsError,
        "floating point",
    ),
    "views": (
        TrainingSet(embeddings=TEXT, view_dims=(16, 17)),
        NEIGHBOURS,
        TrainingDataError,
        "views of 16, 17 columns do not make up 32",
    ),
}


def _stages_of_refused(training_set: TrainingSet, config: Any, error: type[HashingError], match: str) -> list:
    stages: list[str] = []
    with pytest.raises(error, match=match):
        train(training_set, config=config, progress=lambda stage, _done, _total: stages.append(stage))
    return stages


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_before_time_is_spent(case: str) -> None:
    assert _stages_of_refused(*REFUSED[case]) == []


@pytest.mark.parametrize(
    ("training_set", "config", "key"),
    [
        (TrainingSet(embeddings=TEXT), PAIRS, "losses.pairs"),
        (TrainingSet(embeddings=TEXT), LABELS, "losses.labels"),
        (TrainingSet(embeddings=TEXT, items={"text": np.arange(200)}), MATCHES, "losses.matches"),
        (TrainingSet(embeddings=BOTH), MATCHES, "losses.matches.info_nce"),
        (TrainingSet(embeddings=BOTH, items=SAME), ACROSS, "losses.matches.likelihood"),
        (TrainingSet(embeddings=BOTH, labels={"text": _classes(200)}), ACROSS, "losses.matches.likelihood"),
    ],
    ids=str,
)
def test_loss_without_its_input_is_refused_by_its_key(
    training_set: TrainingSet, config: Any, key: str
) -> None:
    stages: list[str] = []
    with pytest.raises(ConfigError) as caught:
        train(training_set, config=config, progress=lambda stage, _done, _total: stages.append(stage))
    assert (caught.value.key, stages) == (key, [])


def test_threshold_that_a_linear_tower_cannot_keep_is_refused() -> None:
    tower = replace(NEIGHBOURS.tower, kind="linear", threshold=True)
    config = replace(NEIGHBOURS, tower=tower)
    assert _stages_of_refused(TrainingSet(embeddings=TEXT), config, ConfigError, r"tower\.threshold") == []


def test_device_that_torch_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="device must be one that torch has here, got 'abacus'"):
        train(TrainingSet(embeddings=TEXT), config=NEIGHBOURS, device="abacus")


def _warnings(training_set: TrainingSet, config: Any, caplog: pytest.LogCaptureFixture) -> str:
    with caplog.at_level(logging.WARNING):
        train(training_set, config=config, device="cpu")
    return caplog.text


def test_class_of_one_row_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    labels = [["lonely"], *_classes(199)]
    text = _warnings(TrainingSet(embeddings=TEXT, labels={"text": labels}), LABELS, caplog)
    assert "1 classes (text) have one row only, such as 'lonely'" in text


def test_labels_missing_in_part_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    labels = [own if row % 4 else [] for row, own in enumerate(_classes(200))]
    text = _warnings(TrainingSet(embeddings=TEXT, labels={"text": labels}), LABELS, caplog)
    assert "50 of 200 rows (text) have no label" in text
    assert "one row only" not in text


def test_more_bits_than_dimensions_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert "64 bits of 32 dimensions (text)" in _warnings(TrainingSet(embeddings=TEXT), NEIGHBOURS, caplog)


def test_bits_within_the_dimensions_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert _warnings(TrainingSet(embeddings={"text": _rows(120, dim=64)}), NEIGHBOURS, caplog) == ""


def test_constant_features_do_no_harm() -> None:
    rows = _rows(200)
    rows[:, ::2] = 0.1
    values = train(TrainingSet(embeddings={"text": rows}), config=NEIGHBOURS).encoder.instance_values(rows)
    assert np.isfinite(values).all()
    assert np.ptp(values, axis=0).min() > 0

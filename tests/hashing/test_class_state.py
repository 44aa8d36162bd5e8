"""The discriminant label part against naive sums, a general solver and training on the rest."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing import (
    ClassState,
    EncoderConfig,
    LabelState,
    TrainingDataError,
    UnknownLabelError,
    dump_encoder,
    dump_state,
    empty_state,
    load_encoder,
    load_state,
    renew_encoder,
    train_encoder,
    update_labels,
)
from hashing.class_scores import (
    EVEN_SHARE,
    RANKED_CLASSES,
    SORTED_CLASSES,
    SPREAD_LEAST_ROWS,
    QuadraticFeatures,
    draw_quadratic,
)
from hashing.class_state import WITHIN_SHARE
from hashing.label_part import same_features
from hashing.sealed_tensors import read_document, seal_tensors, unseal_tensors
from hashing.triangular import BLOCK, factorise

CONFIG = EncoderConfig(code_bits=64, itq_iterations=2, feature_count=96)


def _state(rows, labels, config: EncoderConfig = CONFIG) -> ClassState:
    return ClassState.empty(rows.shape[1], config=config).add(rows, labels)


def _naive_scores(state: ClassState, rows, labels, queries) -> np.ndarray:
    """Discriminant analysis by the book: loops over rows and classes, and a general solver."""
    features = state.features.transform(rows).astype(np.float64)
    metric = state.ridge * np.eye(features.shape[1])
    for feature in features:
        metric += np.outer(feature, feature)
    means = []
    for label in state.class_codes.labels:
        shares = np.array([(label in own) / len(set(own)) for own in labels])
        means.append(shares @ features / shares.sum())
        metric -= WITHIN_SHARE * shares.sum() * np.outer(means[-1], means[-1])
    asked = state.features.transform(queries).astype(np.float64)
    scores = []
    for mean in means:
        direction = np.linalg.solve(metric, mean)
        scores.append(len(rows) * (asked @ direction - WITHIN_SHARE / 2 * mean @ direction))
    return np.stack(scores, axis=1)


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_factor_solves_as_the_general_solver_does(size: int, dtype: type) -> None:
    rng = np.random.default_rng(size)
    root = rng.standard_normal((size, size))
    matrix = (root @ root.T + size * np.eye(size)).astype(np.float32)
    right = rng.standard_normal((size, 3)).astype(np.float32)
    factor = factorise(np.tril(matrix.astype(dtype)))
    assert factor.lower.dtype == factor.inverses[0].dtype == np.float32
    np.testing.assert_allclose(factor.lower @ factor.lower.T, matrix, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(factor.lower @ factor.forward(right), right, atol=1e-4)
    expected = np.linalg.solve(matrix.astype(np.float64), right)
    np.testing.assert_allclose(factor.backward(factor.forward(right)), expected, atol=1e-5)


def test_matrix_that_is_not_positive_definite_has_no_factor() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        factorise(np.diag([1.0, -1.0, 2.0]).astype(np.float32))


def test_features_follow_the_formula() -> None:
    features = QuadraticFeatures(
        directions=np.array([[2.0], [1.0]], dtype=np.float32), offset=np.array([0.5], dtype=np.float32)
    )
    got = features.transform(np.array([[0.6, -0.8]], dtype=np.float32))
    np.testing.assert_allclose(got, [[0.6, -0.8, 0.4**2 - 0.5]], rtol=1e-6)


def test_squares_have_norm_one_and_mean_zero_on_even_rows() -> None:
    rows = np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    squares = draw_quadratic(32, count=512, seed=1).transform(rows)[:, 32:]
    assert np.mean(np.sum(squares**2, axis=1)) == pytest.approx(1, abs=0.1)
    assert abs(np.sum(squares.mean(axis=0)) / np.sqrt(512)) < 0.01


def test_features_hold_nothing_of_few_rows(draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=4, rows_per_class=20)
    one, other = (
        train_encoder(own, config=CONFIG, labels=labels).state for own in (rows, np.roll(rows, 7, axis=1))
    )
    assert one is not None and other is not None
    assert same_features(one.features, other.features)


def _uneven(count: int, *, seed: int = 0) -> np.ndarray:
    """Unit rows around a common centre, of which the first three dimensions vary most."""
    rows = np.random.default_rng(seed).standard_normal((count, 32)) * ([4] * 3 + [1] * 29) + 0.3
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_directions_follow_the_covariance_of_many_rows() -> None:
    rows = _uneven(SPREAD_LEAST_ROWS)
    directions = draw_quadratic(32, count=4000, seed=1, rows=rows).directions
    norms = np.linalg.norm(directions, axis=0)
    np.testing.assert_allclose(norms, norms[0], rtol=1e-5)
    covariance = np.cov(rows, rowvar=False)
    covariance = covariance / np.trace(covariance) + EVEN_SHARE / 32 * np.eye(32)
    expected = np.random.default_rng(0).multivariate_normal(np.zeros(32), covariance, size=4000).T
    expected /= np.linalg.norm(expected, axis=0)
    np.testing.assert_allclose(
        directions @ directions.T / norms[0] ** 2, expected @ expected.T, rtol=0.1, atol=40
    )
    few = draw_quadratic(32, count=4000, seed=1, rows=rows[1:])
    assert np.array_equal(few.directions, draw_quadratic(32, count=4000, seed=1).directions)


def test_draw_that_follows_rows_cannot_be_repeated() -> None:
    """Not with the seed and every row either: a guess at a forgotten one could be confirmed so."""
    rows = _uneven(SPREAD_LEAST_ROWS)
    first, again = (draw_quadratic(32, count=4000, seed=1, rows=rows).directions for _ in range(2))
    cosines = np.einsum("dc,dc->c", first, again) / np.einsum("dc,dc->c", first, first)
    assert abs(cosines.mean()) < 0.05


def test_equal_rows_give_even_directions() -> None:
    rows = np.tile(_uneven(1), (SPREAD_LEAST_ROWS, 1))
    directions = draw_quadratic(32, count=4000, seed=1, rows=rows).directions
    shares = (directions**2).sum(axis=1) / (directions**2).sum()
    np.testing.assert_allclose(shares, 1 / 32, rtol=0.1)


def test_scores_are_those_of_discriminant_analysis(draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=6, rows_per_class=40)
    kept = [i for i in range(len(labels)) if labels[i] != ["c2"] or i % 3 == 0]  # classes of unequal size
    rows, labels = rows[kept], [labels[i] for i in kept]
    labels[3], labels[5] = ["c1", "c4", "c1"], ["c0", "c2", "c5"]
    state, queries = _state(rows, labels), rows[:20]
    expected = _naive_scores(state, rows, labels, queries)
    got = state.head(modality="text").scores(queries)
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.ptp(expected))


def test_adding_in_steps_equals_adding_at_once(draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=6, rows_per_class=30)
    at_once = _state(rows, labels)
    in_steps = ClassState.empty(32, config=CONFIG)
    for start, stop in ((0, 1), (1, 50), (50, 180)):
        in_steps = in_steps.add(rows[start:stop], labels[start:stop])
    assert in_steps.row_count == at_once.row_count == 180
    np.testing.assert_allclose(in_steps.gram, at_once.gram, atol=1e-4)
    np.testing.assert_allclose(in_steps.class_sums, at_once.class_sums, atol=1e-4)
    np.testing.assert_array_equal(in_steps.class_counts, at_once.class_counts)
    np.testing.assert_array_equal(in_steps.entry_counts, at_once.entry_counts)


def test_rows_beyond_one_chunk_count_in_full(draw_clusters) -> None:
    config = EncoderConfig(feature_count=4)
    rows, labels = draw_clusters(class_count=5, rows_per_class=1000)
    state = _state(rows, labels, config)
    features = state.features.transform(rows).astype(np.float64)
    np.testing.assert_allclose(state.gram, features.T @ features, rtol=1e-4, atol=1e-3)
    assert state.class_counts.tolist() == [1000] * 5


@settings(max_examples=20, deadline=None)
@given(removed=st.sets(st.integers(0, 299), min_size=1, max_size=40))
def test_removing_equals_training_on_the_rest(draw_clusters, removed: set[int]) -> None:
    rows, labels = draw_clusters(class_count=6, rows_per_class=50)
    labels[3] = ["c1", "c4", "c2"]
    empty = ClassState.empty(32, config=CONFIG)
    state = empty.add(rows, labels)
    gone, kept = sorted(removed), sorted(set(range(300)) - removed)
    middle = len(gone) // 2
    for part in (gone[:middle], gone[middle:]):
        state = state.remove(rows[part], [labels[i] for i in part])
    rest = empty.issue(state.class_codes.labels).add(rows[kept], [labels[i] for i in kept])
    assert state.row_count == rest.row_count == len(kept)
    np.testing.assert_allclose(state.gram, rest.gram, atol=1e-3)
    np.testing.assert_allclose(state.class_sums, rest.class_sums, atol=1e-3)
    expected = rest.head(modality="text").scores(rows)
    got = state.head(modality="text").scores(rows)
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.ptp(expected))


def test_class_without_rows_ranks_last_and_keeps_its_code(draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=4, rows_per_class=30)
    of_first = [i for i, own in enumerate(labels) if own == ["c0"]]
    state = _state(rows, labels)
    forgotten = state.remove(rows[of_first], [["c0"]] * 30)
    head = forgotten.head(modality="text")
    assert forgotten.class_codes is state.class_codes
    assert (head.scores(rows).argmin(axis=1) == forgotten.class_codes.position("c0")).all()


def test_add_and_remove_leave_the_old_state_alone(draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=3, rows_per_class=20)
    state = _state(rows, labels)
    arrays = ("gram", "class_sums", "class_counts", "entry_counts")
    before = [getattr(state, name).copy() for name in arrays]
    state.add(rows, labels)
    state.remove(rows[:3], labels[:3])
    for old, name in zip(before, arrays, strict=True):
        np.testing.assert_array_equal(old, getattr(state, name))


def test_query_is_of_the_best_codes_and_ranks_the_first_class_first(draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=12, rows_per_class=20)
    head = _state(rows, labels).head(modality="text")
    codes = np.where(head.class_codes.bits, 1, -1)
    scores, values = head.scores(rows), head.values(rows)
    for own, value in zip(scores, values, strict=True):
        ranked = np.argsort(-own)[:RANKED_CLASSES]
        expected = sum(0.5**rank * codes[position] for rank, position in enumerate(ranked))
        np.testing.assert_allclose(value, expected, atol=1e-6)
    np.testing.assert_array_equal((values @ codes.T).argmax(axis=1), scores.argmax(axis=1))


def test_many_classes_are_ranked_as_few_are() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((SORTED_CLASSES + 88, 6)).astype(np.float32)
    labels = [[f"c{i}"] for i in range(len(rows))]
    head = _state(rows, labels, EncoderConfig(feature_count=8)).head(modality="text")
    best = np.argsort(-head.scores(rows[:5]), axis=1)[:, :RANKED_CLASSES]
    codes = np.where(head.class_codes.bits, 1, -1)[best]  # [5, ranked, 64]
    expected = (codes * 0.5 ** np.arange(RANKED_CLASSES)[:, None]).sum(axis=1)
    np.testing.assert_allclose(head.values(rows[:5]), expected, atol=1e-6)


def test_state_without_rows_asks_for_nothing() -> None:
    head = ClassState.empty(32, config=CONFIG).head(modality="text")
    assert not head.values(np.ones((2, 32), dtype=np.float32)).any()


def test_impossible_removals_are_refused(draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=2, rows_per_class=10)
    state = _state(rows[:10], labels[:10])
    with pytest.raises(TrainingDataError, match="cannot remove 20 rows from a state of 10"):
        state.remove(rows, labels)
    with pytest.raises(UnknownLabelError):
        state.remove(rows[:1], [["never seen"]])
    with pytest.raises(TrainingDataError, match="never been added"):
        state.remove(3 * rows[10:], labels[:10]).head(modality="text")


def test_row_without_a_label_is_refused(draw_clusters) -> None:
    rows, _ = draw_clusters(class_count=2, rows_per_class=1)
    with pytest.raises(TrainingDataError, match="row 1 has no label"):
        ClassState.empty(32, config=CONFIG).add(rows, [["a"], []])


def test_state_survives_the_round_trip(draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=5, rows_per_class=20)
    state = _state(rows, labels)
    loaded = load_state(dump_state(state))
    assert isinstance(loaded, ClassState)
    for name in ("gram", "class_sums", "class_counts", "entry_counts", "ridge", "row_count"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(state, name))
    queries = state.head(modality="text").values(rows)
    np.testing.assert_array_equal(loaded.head(modality="text").values(rows), queries)


def test_encoder_survives_the_round_trip_and_its_update(draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=6, rows_per_class=40)
    last = np.array([own == ["c5"] for own in labels])
    rows, labels, new = rows[~last], [own for own in labels if own != ["c5"]], rows[last]
    trained = train_encoder(rows, config=CONFIG, labels=labels)
    loaded = load_encoder(dump_encoder(trained.encoder))
    assert loaded.encoder_id == trained.encoder.encoder_id
    np.testing.assert_array_equal(loaded.label_values(rows), trained.encoder.label_values(rows))
    result = update_labels(loaded, trained.states, embeddings={"text": new}, labels={"text": [["new"]] * 40})
    codes = np.where(result.encoder.class_bits([[name] for name in result.encoder.labels]), 1, -1)
    best = (result.encoder.label_values(new) @ codes.T).argmax(axis=1)
    assert np.mean(best == result.encoder.labels.index("new")) > 0.9
    head = renew_encoder(
        result.encoder, {"text": result.states["text"].remove(new, [["new"]] * 40)}
    ).label_head
    expected = trained.encoder.label_head.scores(rows)
    np.testing.assert_allclose(head.scores(rows)[:, :5], expected, atol=1e-3 * np.ptp(expected))


def test_method_chooses_the_kind_of_state() -> None:
    assert isinstance(empty_state(8, config=CONFIG), ClassState)
    assert isinstance(empty_state(8, config=replace(CONFIG, label_method="regression")), LabelState)


def _three_labels(rows) -> list[list[str]]:
    """Three labels a row: two of five, and one of a class that only the first 70 rows have, or the others."""
    return [[f"c{i % 5}", f"c{(i + 1 + i % 3) % 5}", "gone" if i < 70 else "kept"] for i in range(len(rows))]


def _stored_without_entries(state: ClassState) -> ClassState:
    """What a program made that did not count entries, and added shares in float32, read by this one."""
    content = dump_state(state)
    document = read_document("nearhit-label-state", content)
    tensors = unseal_tensors(content, document=document)
    del tensors["state.entry_counts"]
    tensors["state.class_counts"] = state.class_counts + 3e-6
    version = int(document.pop("format_version"))
    own = {name: document[name] for name in ("ridge", "row_count", "classes")}
    return load_state(seal_tensors("nearhit-label-state", tensors, own, version=version))


@pytest.mark.parametrize("stored", ["as it is", "loaded", "without entries"])
def test_class_whose_rows_went_in_parts_has_none_left(draw_clusters, stored: str) -> None:
    rows, _ = draw_clusters(class_count=5, rows_per_class=40)
    labels = _three_labels(rows)
    state = _state(rows, labels)
    if stored != "as it is":
        state = load_state(dump_state(state)) if stored == "loaded" else _stored_without_entries(state)
    for start in range(0, 70, 7):
        state = state.remove(rows[start : start + 7], labels[start : start + 7])
    rest = state.emptied().add(rows[70:], labels[70:])
    gone = state.class_codes.position("gone")
    if stored != "without entries":
        np.testing.assert_array_equal(state.entry_counts, rest.entry_counts)
        assert rest.entry_counts[gone] == 0 and rest.entry_counts.sum() == 3 * 130
    rounding = 1e-5 if stored == "without entries" else 1e-9
    np.testing.assert_allclose(state.class_counts, rest.class_counts, atol=rounding)
    expected, got = rest.head(modality="text"), state.head(modality="text")
    assert (got.scores(rows).argmin(axis=1) == gone).all()
    others = np.arange(len(state.class_codes)) != gone
    ranged = expected.scores(rows)[:, others]
    np.testing.assert_allclose(got.scores(rows)[:, others], ranged, atol=1e-3 * np.ptp(ranged))


def test_entries_that_were_not_stored_are_counted_where_rows_have_one_label(draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=4, rows_per_class=9)
    state = _state(rows, labels)
    np.testing.assert_array_equal(_stored_without_entries(state).entry_counts, state.entry_counts)
    assert state.entry_counts.tolist() == [9] * 4


def test_class_of_a_single_share_is_present_though_its_entries_were_not_stored() -> None:
    rows = np.eye(4, dtype=np.float32)
    state = ClassState.empty(4, config=CONFIG).add(rows, [["a", "b"], ["a", "b"], ["a", "c", "d"], ["c"]])
    loaded = _stored_without_entries(state)
    for row, own in ((0, ["a", "b"]), (3, ["c"])):
        loaded = loaded.remove(rows[row : row + 1], [own])
    assert loaded._present().tolist() == [0, 1, 2, 3]
    assert loaded.remove(rows[1:2], [["a", "b"]])._present().tolist() == [0, 2, 3]


def test_counts_that_are_too_many_for_float32_are_solved(draw_clusters) -> None:
    rows, labels = draw_clusters(class_count=4, rows_per_class=5)
    few = _state(rows, labels)
    features = few.features.transform(rows).astype(np.float64)
    times = 1e8
    many = replace(
        few,
        gram=features.T @ features * times,
        class_sums=few.class_sums * times,
        class_counts=few.class_counts * times,
        row_count=int(few.row_count * times),
    )
    scores = many.head(modality="text").scores(rows)
    assert [many.class_codes.labels[best] for best in scores.argmax(axis=1)] == [own for (own,) in labels]


def test_second_best_class_of_the_complement_ranks_below_a_worse_one() -> None:
    """What the docstring of `values` warns of."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((64, 6)).astype(np.float32)
    head = _state(rows, [[f"c{i}"] for i in range(64)]).head(modality="text")
    codes = np.where(head.class_codes.bits, 1, -1)
    opposite = np.argwhere(codes @ codes.T == -64)
    assert len(opposite)
    first, second = opposite[0]
    bias = np.zeros(64, dtype=np.float32)
    bias[[first, second]] = 2, 1
    head = replace(head, class_weight=np.zeros_like(head.class_weight), class_bias=bias)
    ranking = np.argsort(-(head.values(rows[:1]) @ codes.T)[0])
    assert ranking[0] == first and ranking[1] != second

"""The map between embedders: its closed forms, its refinement, its choice and its gate."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing import CheckpointError, ConfigError, DimensionError, EmbeddingsError, TrainingDataError
from hashing import embedder_alignment as alignment
from hashing import embedder_map as maps
from hashing import neighbour_ranking as ranking
from hashing.embedder_map import (
    EmbedderMap,
    MapFloors,
    dump_embedder_map,
    evaluate_map,
    fit_embedder_map,
    load_embedder_map,
)
from hashing.embeddings import unit_rows

OLD_DIM, NEW_DIM = 12, 16


def _unit(count: int, dim: int, *, seed: int = 0) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32))


def _spaces(count: int, *, noise: float = 0.2, new_dim: int = NEW_DIM, seed: int = 0):
    """Texts in the old space and in a new one that is a noisy linear map of it with a large mean."""
    rng = np.random.default_rng(seed)
    old = unit_rows((rng.standard_normal((count, OLD_DIM)) * np.linspace(2, 0.4, OLD_DIM)).astype(np.float32))
    forward = np.random.default_rng(77).standard_normal((OLD_DIM, new_dim)) / 2
    new = old @ forward + noise * rng.standard_normal((count, new_dim)) + 1.5
    return unit_rows(new.astype(np.float32)), old


def _fitted(count: int = 300, **changes) -> EmbedderMap:
    new, old = _spaces(1500)
    named = {"from_embedder": "new", "to_embedder": "old", "stored": old} | changes
    return fit_embedder_map(new[:count], old[:count], **named)


@pytest.fixture(scope="module")
def fitted() -> EmbedderMap:
    return _fitted()


def test_procrustes_recovers_a_scaled_rotation() -> None:
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    new = rng.standard_normal((40, 6))
    np.testing.assert_allclose(alignment.procrustes(new, 0.3 * new @ rotation), 0.3 * rotation, atol=1e-10)


def test_procrustes_error_is_least_among_scaled_rotations() -> None:
    rng = np.random.default_rng(1)
    new, old = rng.standard_normal((50, 4)), rng.standard_normal((50, 4))
    best = alignment.procrustes(new, old)
    error = ((new @ best - old) ** 2).sum()
    for trial in range(200):
        other, _ = np.linalg.qr(rng.standard_normal((4, 4)))
        near, _ = np.linalg.qr(best + 0.05 * rng.standard_normal((4, 4)))
        weight = (other if trial % 2 else near * np.sign(np.diag(near.T @ best))) * np.linalg.norm(best, 2)
        assert error <= ((new @ weight - old) ** 2).sum() + 1e-9
    for scale in (0.9, 1.1):
        assert error < ((new @ best * scale - old) ** 2).sum()


@pytest.mark.parametrize("count", [8, 60])
def test_ridge_is_the_one_of_least_generalised_cross_validation_error(count: int) -> None:
    rng = np.random.default_rng(2)
    inputs = rng.standard_normal((count, 5))
    targets = inputs @ rng.standard_normal((5, 3)) + rng.standard_normal((count, 3))
    inputs -= inputs.mean(axis=0)
    targets -= targets.mean(axis=0)
    tried = []
    for strength in alignment.RIDGES * (np.linalg.svd(inputs, compute_uv=False) ** 2).mean():
        solution = np.linalg.solve(inputs.T @ inputs + strength * np.eye(5), inputs.T)
        freedom = 1 - (np.trace(inputs @ solution) + 1) / count
        error = ((targets - inputs @ solution @ targets) ** 2).sum() / freedom**2
        tried.append((error if freedom > 0 else np.inf, solution @ targets))
    expected = min(tried, key=lambda one: one[0])[1]
    np.testing.assert_allclose(alignment.ridge(inputs, targets), expected, atol=1e-9)


def test_posterior_map_is_the_conditional_mean_of_the_joint_normal() -> None:
    rng = np.random.default_rng(3)
    old, scale = rng.standard_normal((80, 4)), np.diag([3.0, 2, 1, 0.5])
    new = old @ rng.standard_normal((4, 6)) + 0.5 * rng.standard_normal((80, 6))
    covariance = scale @ scale
    forward = alignment.ridge(old, new)
    noise = (new - old @ forward).T @ (new - old @ forward) / 80
    noise += (0.05 * np.trace(noise) / 6 + 1e-6 * (new**2).mean()) * np.eye(6)
    prior = covariance + 4e-3 * np.trace(covariance) / 4 * np.eye(4)
    expected = np.linalg.solve(forward.T @ prior @ forward + noise, forward.T @ prior)
    np.testing.assert_allclose(alignment.posterior_map(new, old, covariance=covariance), expected, atol=1e-9)


def test_covariance_is_that_of_all_stored_rows() -> None:
    stored = _unit(5000, 3) + np.float32(0.4)
    np.testing.assert_allclose(alignment.stored_covariance(stored), np.cov(stored.T, bias=True), atol=1e-5)


def test_mean_of_maps_counts_both_alike_whatever_their_scale() -> None:
    new = np.random.default_rng(4).standard_normal((30, 3))
    first, second = np.eye(3), 7 * np.eye(3)[:, ::-1]
    np.testing.assert_allclose(
        alignment.mean_of_maps(first, second, new=new), (first + second / 7) / 2, atol=1e-12
    )
    for pair in ((first, 0 * first), (0 * first, first)):
        np.testing.assert_array_equal(alignment.mean_of_maps(*pair, new=new), first)


def test_neighbours_are_the_nearest_rows_but_the_text_itself() -> None:
    stored = _unit(600, 8)
    old = np.concatenate([stored[40:340], _unit(5, 8, seed=9)])
    found = ranking.find_neighbours(old, stored, count=4)
    for text, row in enumerate(found.own.tolist()):
        assert row == (40 + text if text < 300 else -1)
        order = [other for other in np.argsort(-(stored @ old[text])).tolist() if other != row]
        assert set(found.rows[text].tolist()) == set(order[:4])


def test_gradients_are_those_of_the_cross_entropy() -> None:
    # float64 throughout: finite differences of float32 would drown in rounding
    rng = np.random.default_rng(5)
    rows, queries, stored = rng.standard_normal((6, 5)), _unit(6, 4).astype(float), _unit(9, 4).astype(float)
    weight, offset, own = rng.standard_normal((5, 4)), rng.standard_normal(4), rng.random((6, 9)) < 0.2

    def loss(weight: np.ndarray, offset: np.ndarray) -> float:
        total = 0.0
        for row, query, left_out in zip(rows, queries, own, strict=True):
            mapped = row @ weight + offset
            mapped /= np.linalg.norm(mapped)
            target = np.exp(stored[~left_out] @ query / 0.05)
            logits = stored[~left_out] @ mapped / 0.05
            total -= (target / target.sum()) @ (logits - np.log(np.exp(logits).sum()))
        return total / len(rows)

    by_weight, by_offset = ranking._gradients(weight, offset, rows, queries, stored=stored, own=own)
    for gradient, place in ((by_weight, (2, 1)), (by_weight, (4, 3)), (by_offset, (2,))):
        step = np.zeros(gradient.shape)
        step[place] = 1e-6
        moved = [
            loss(weight + sign * step, offset) if gradient.ndim == 2 else loss(weight, offset + sign * step)
            for sign in (1, -1)
        ]
        assert gradient[place] == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-4, abs=1e-5)


def test_ranking_repairs_a_map_that_ranks_badly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "LEARNING_RATE", 0.02)
    new, old = _spaces(900, noise=0.05)
    centred = new - new.mean(axis=0)
    weight = alignment.procrustes(centred.astype(float), old - old.mean(axis=0))
    weight = weight @ np.diag(np.linspace(0.1, 2, OLD_DIM))
    neighbours = ranking.find_neighbours(old[:400], old)
    after, offset = ranking.refine_by_ranking(
        weight, np.zeros(OLD_DIM), new=centred[:400], old=old[:400], stored=old, neighbours=neighbours, seed=0
    )

    def found(weight: np.ndarray, offset: np.ndarray) -> float:
        own = EmbedderMap(
            weight=weight.astype(np.float32),
            offset=offset.astype(np.float32),
            from_embedder="new",
            to_embedder="old",
            method="ranked",
            metrics={},
        )
        return evaluate_map(own, unit_rows(centred[400:]), old[400:], stored=old).neighbour_recall

    assert found(after, offset) > found(weight, np.zeros(OLD_DIM)) + 0.1


def test_map_finds_what_the_old_query_finds_where_a_linear_map_explains_all() -> None:
    old = _unit(900, OLD_DIM)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((OLD_DIM, OLD_DIM)))
    new = (old @ rotation).astype(np.float32)
    fitted = fit_embedder_map(new[:300], old[:300], from_embedder="new", to_embedder="old", stored=old)
    report = evaluate_map(fitted, new[300:500], old[300:500], stored=old)
    assert report.accepted and report.neighbour_recall > 0.95 and report.cosine > 0.99


@pytest.mark.parametrize("new_dim", [7, OLD_DIM, 20])
def test_spaces_may_have_other_widths(new_dim: int) -> None:
    new, old = _spaces(800, new_dim=new_dim)
    for count in (10, 400):
        fitted = fit_embedder_map(
            new[:count], old[:count], from_embedder="new", to_embedder="old", stored=old
        )
        mapped = fitted.apply(new[400:])
        assert (fitted.new_dim, fitted.old_dim) == (new_dim, OLD_DIM) and mapped.shape == (400, OLD_DIM)
        chance = np.einsum("nd,nd->n", mapped, old[400:][::-1]).mean()
        assert np.einsum("nd,nd->n", mapped, old[400:]).mean() > chance + 0.2


@pytest.mark.parametrize("count", [2, 3, 49])
def test_few_pairs_bear_procrustes_alone(count: int) -> None:
    fitted = _fitted(count)
    assert fitted.method == "procrustes" and fitted.metrics == {"pairs": count}


def test_method_that_finds_most_held_out_neighbours_is_taken(fitted: EmbedderMap) -> None:
    found = [fitted.metrics[f"{name}.neighbour_recall"] for name in maps.METHODS]
    assert fitted.method == maps.METHODS[int(np.argmax(found))] != "procrustes"
    new, old = _spaces(1500)
    plain = fit_embedder_map(new[:49], old[:49], from_embedder="new", to_embedder="old", stored=old)
    judged = [
        evaluate_map(own, new[1000:], old[1000:], stored=old).neighbour_recall for own in (fitted, plain)
    ]
    assert judged[0] > judged[1] + 0.05


def test_methods_that_find_as_much_leave_the_simplest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "CHOICE_TOLERANCE", 1.0)
    assert _fitted(100).method == "procrustes"


def test_posterior_takes_the_old_covariance_from_stored_rows_and_the_means_from_pairs() -> None:
    new, old = _spaces(1500)
    pairs, covariance = maps._Pairs(new=new[:60], old=old[:60]), alignment.stored_covariance(old)
    weight, offset = maps._fit("posterior", pairs, stored=old, covariance=covariance, seed=0)
    np.testing.assert_allclose(new[:60].mean(axis=0) @ weight + offset, old[:60].mean(axis=0), atol=1e-5)
    centred = (new[:60] - new[:60].mean(axis=0), old[:60] - old[:60].mean(axis=0))
    expected = alignment.posterior_map(*centred, covariance=covariance)
    np.testing.assert_allclose(weight, expected, atol=1e-3)


@pytest.mark.parametrize("method", ["posterior", "ranked"])
def test_pairs_of_one_side_of_the_old_space_map_the_other_side_too(method: str) -> None:
    new, old = _spaces(3000, noise=0.0)
    chosen = np.flatnonzero(old[:, 0] > 0.5)[:200]
    pairs = maps._Pairs(new[chosen], old[chosen], neighbours=ranking.find_neighbours(old[chosen], old))
    covariance = alignment.stored_covariance(old)
    weight, offset = maps._fit(method, pairs, stored=old, covariance=covariance, seed=0)
    mapped = unit_rows((new @ weight + offset).astype(np.float32))
    assert np.einsum("nd,nd->n", mapped, old).mean() > {"posterior": 0.99, "ranked": 0.93}[method]


@pytest.mark.parametrize("stored_count", [1, 5])
def test_stored_rows_that_are_all_equal_bear_a_map(stored_count: int) -> None:
    new, old = _spaces(200)
    stored = np.repeat(_unit(1, OLD_DIM, seed=9), stored_count, axis=0)
    fitted = fit_embedder_map(new, old, from_embedder="new", to_embedder="old", stored=stored)
    assert np.isfinite(fitted.weight).all() and np.isfinite(fitted.offset).all()


def test_stored_rows_are_subsampled_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "STORED_LIMIT", 200)
    limited = _fitted(60)
    monkeypatch.undo()
    assert limited.map_id not in {_fitted(60).map_id, _fitted(60, stored=None).map_id}


def test_equal_seeds_give_equal_maps_and_the_scale_of_rows_is_no_matter(fitted: EmbedderMap) -> None:
    new, old = _spaces(1500)
    again = fit_embedder_map(
        2 * new[:300], 0.5 * old[:300], from_embedder="new", to_embedder="old", stored=4 * old
    )
    assert again.map_id == fitted.map_id
    assert _fitted(from_embedder="other").map_id != fitted.map_id


def test_constant_columns_change_nothing() -> None:
    new, old = _spaces(400)
    wide = np.concatenate([new, np.full((400, 1), 0.5, np.float32)], axis=1)
    fitted = fit_embedder_map(wide[:300], old[:300], from_embedder="new", to_embedder="old", stored=old)
    assert evaluate_map(fitted, wide[300:], old[300:], stored=old).cosine > 0.7


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 6), scale=st.floats(1e-3, 1e3))
def test_mapped_rows_are_unit_and_each_stands_alone(seed: int, count: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    own = EmbedderMap(
        weight=(scale * rng.standard_normal((5, 3))).astype(np.float32),
        offset=(scale * rng.standard_normal(3)).astype(np.float32),
        from_embedder="new",
        to_embedder="old",
        method="ranked",
        metrics={},
    )
    rows = _unit(count, 5, seed=seed)
    mapped = own.apply(rows)
    assert mapped.dtype == np.float32 and mapped.shape == (count, 3)
    expected = rows.astype(float) @ own.weight + own.offset
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(mapped, expected, atol=1e-4)
    for row in range(count):
        np.testing.assert_allclose(own.apply(rows[row : row + 1])[0], mapped[row], atol=1e-5)


def test_report_is_what_a_loop_over_queries_finds(fitted: EmbedderMap) -> None:
    new, old = _spaces(1500)
    report = evaluate_map(fitted, new[1000:1300], old[1000:1300], stored=old)
    mapped = fitted.apply(new[1000:1300])
    recall, found, changed, cosine = [], [], [], []
    for number, (query, truth) in enumerate(zip(mapped, old[1000:1300], strict=True)):
        others = np.delete(np.arange(1500), 1000 + number)
        right = others[np.argsort(-(old[others] @ truth))[:10]]
        got = others[np.argsort(-(old[others] @ query))[:10]]
        recall.append(len(set(right) & set(got)) / 10)
        found.append(right[0] in got)
        changed.append(right[0] != got[0])
        cosine.append(query @ truth)
    assert report.neighbour_recall == pytest.approx(np.mean(recall), abs=1e-3)
    assert report.nearest_found == pytest.approx(np.mean(found), abs=5e-3)
    assert report.nearest_changed == pytest.approx(np.mean(changed), abs=5e-3)
    assert report.cosine == pytest.approx(np.mean(cosine), abs=1e-5)
    assert report.pair_count == 300 and 0 < report.nearest_changed < 1


@pytest.mark.parametrize("key", ["cosine", "neighbour_recall", "nearest_found"])
def test_figure_below_its_floor_is_refused_by_name(fitted: EmbedderMap, key: str) -> None:
    new, old = _spaces(1500)
    lowest = MapFloors(cosine=0, neighbour_recall=0, nearest_found=0)
    judged = evaluate_map(fitted, new[1000:1100], old[1000:1100], stored=old, floors=lowest)
    assert judged.accepted and judged.reasons == ()
    exact = replace(lowest, **{key: getattr(judged, key)})
    assert evaluate_map(fitted, new[1000:1100], old[1000:1100], stored=old, floors=exact).accepted
    raised = replace(lowest, **{key: 1.0})
    refused = evaluate_map(fitted, new[1000:1100], old[1000:1100], stored=old, floors=raised)
    assert not refused.accepted and len(refused.reasons) == 1 and refused.reasons[0].startswith(key)
    with pytest.raises(ConfigError, match=key):
        MapFloors(**{key: 1.5})


def test_map_of_unrelated_embeddings_is_refused() -> None:
    old = _unit(900, OLD_DIM)
    new = _unit(900, NEW_DIM, seed=5)
    fitted = fit_embedder_map(new[:300], old[:300], from_embedder="new", to_embedder="old", stored=old)
    assert not evaluate_map(fitted, new[300:], old[300:], stored=old).accepted


_ROWS = _unit(6, 3)


@pytest.mark.parametrize(
    ("new", "old", "stored", "error"),
    [
        (np.full((6, 3), np.nan, np.float32), _ROWS, None, EmbeddingsError),
        (_ROWS, np.full((6, 3), np.inf, np.float32), None, EmbeddingsError),
        (_ROWS, _ROWS, np.full((6, 3), np.nan, np.float32), EmbeddingsError),
        (_ROWS, _ROWS[:5], None, TrainingDataError),
        (_ROWS[:1], _ROWS[:1], None, TrainingDataError),
        (_ROWS[:0], _ROWS[:0], None, TrainingDataError),
        (np.ones((6, 3), np.float32), _ROWS, None, TrainingDataError),
        (_ROWS, np.ones((6, 3), np.float32), None, TrainingDataError),
        (np.diag(np.arange(3.0)), _ROWS[:3], None, TrainingDataError),
        (_ROWS[:3], np.diag(np.arange(3.0)), None, TrainingDataError),
        (_ROWS, _ROWS, _unit(6, 4), DimensionError),
        (_ROWS[0], _ROWS, None, EmbeddingsError),
        (_ROWS.astype(int), _ROWS, None, EmbeddingsError),
    ],
)
def test_bad_pairs_are_refused(new, old, stored, error: type[Exception]) -> None:
    with pytest.raises(error):
        fit_embedder_map(new, old, from_embedder="new", to_embedder="old", stored=stored)


def test_bad_queries_are_refused(fitted: EmbedderMap) -> None:
    new, old = _spaces(20)
    with pytest.raises(DimensionError):
        fitted.apply(old)
    for count in (1, 2):
        with pytest.raises(EmbeddingsError):
            fitted.apply(np.full((count, NEW_DIM), np.nan, np.float32))
    for pairs, stored in (((new[:0], old[:0]), old), ((new, old), old[:0])):
        with pytest.raises(TrainingDataError, match="to judge by"):
            evaluate_map(fitted, *pairs, stored=stored)
    with pytest.raises(TrainingDataError):
        evaluate_map(fitted, new, old[:-1], stored=old)


def test_loaded_map_is_the_dumped_one(fitted: EmbedderMap) -> None:
    loaded = load_embedder_map(dump_embedder_map(fitted))
    new, _ = _spaces(20)
    assert loaded.map_id == fitted.map_id and loaded.metrics == fitted.metrics
    assert (loaded.from_embedder, loaded.to_embedder, loaded.method) == ("new", "old", fitted.method)
    np.testing.assert_array_equal(loaded.apply(new), fitted.apply(new))
    with pytest.raises(ValueError, match="read-only"):
        loaded.weight[0, 0] = 1


def test_metrics_are_no_part_of_the_identity(fitted: EmbedderMap) -> None:
    assert replace(fitted, metrics={}).map_id == fitted.map_id
    for change in ({"to_embedder": "x"}, {"method": "posterior2"}, {"offset": fitted.offset + 1}):
        assert replace(fitted, **change).map_id != fitted.map_id


def test_bytes_that_are_not_the_dump_are_refused(fitted: EmbedderMap) -> None:
    content = dump_embedder_map(fitted)
    for place in range(0, len(content), 97):
        spoiled = bytearray(content)
        spoiled[place] ^= 0x15
        with pytest.raises(CheckpointError):
            load_embedder_map(bytes(spoiled))
    for broken in (b"", content[:-3], content[:40]):
        with pytest.raises(CheckpointError):
            load_embedder_map(broken)


@pytest.mark.parametrize(
    ("version", "tensors", "fields", "message"),
    [
        (2, {}, {}, "format version 2"),
        (1, {"offset": np.zeros(OLD_DIM + 1, np.float32)}, {}, "offset"),
        (1, {"weight": np.zeros(3, np.float32)}, {}, "weight"),
        (1, {"offset": np.ones(OLD_DIM, np.float32)}, {}, "content is map"),
        (1, {}, {"identity": {"from_embedder": "new", "to_embedder": "old", "method": "x"}}, "method 'x'"),
        (1, {}, {"identity": {"from_embedder": "new", "method": "ranked"}}, "to_embedder"),
    ],
)
def test_inconsistent_content_is_refused(fitted: EmbedderMap, version, tensors, fields, message: str) -> None:
    metadata = {"map_id": fitted.map_id, "identity": fitted.identity_metadata(), "metrics": {}} | fields
    content = maps.seal_tensors(maps.MAP_FORMAT, fitted.tensors() | tensors, metadata, version=version)
    with pytest.raises(CheckpointError, match=message):
        load_embedder_map(content)

"""Instance and label codes that go on learning by gradient against codes that are stored."""

from dataclasses import replace

import numpy as np
import pytest

from hashing import (
    ConfigError,
    DimensionError,
    EmbeddingsError,
    Encoder,
    EncoderConfig,
    TrainingDataError,
    UnknownLabelError,
    UnknownModalityError,
    radius,
    train_encoder,
)
from hashing.analytic import draw_features
from hashing.class_codes import target_bits
from hashing.drift import fit_drift_reference
from hashing.feature_tower import FeatureTower
from hashing.metrics import class_retrieval_map, pair_auc
from hashing.pair_scorer import PairScorer, PrefixScorer
from hashing.projection import Projection, fit_rotation, random_orthonormal
from hashing.radius import RadiusTable
from hashing.tower import Tower

torch = pytest.importorskip("torch", reason="torch is not installed")

from hashing.deep.binarizers import StraightThroughSign  # noqa: E402
from hashing.deep.labelled import LabelledConfig, LabelTower, train_labelled  # noqa: E402
from hashing.deep.labelled_update import update_labelled  # noqa: E402
from hashing.deep.lifelong import update_pairs  # noqa: E402
from hashing.deep.pairs import split_pairs  # noqa: E402
from hashing.deep.scorer import PairScores  # noqa: E402
from hashing.deep.towers import export, restore, train_mode  # noqa: E402
from hashing.deep.update_config import LabelUpdateConfig, PairUpdateConfig  # noqa: E402
from hashing.deep.update_loss import Averaged, FrozenRows, PairUpdateLoss, RetentionLoss  # noqa: E402

DIM, BITS = 32, 128
CPU = torch.device("cpu")
CONFIG = PairUpdateConfig(
    epochs=6, batch_size=32, rehearsal_rows=64, learning_rate=2e-2, parent_share=0.2, validation_share=0.25
)
LABELS = LabelUpdateConfig(epochs=8, batch_size=64, rehearsal_rows=64, learning_rate=5e-3)


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit.astype(np.float32)


def _tower_map(*, seed: int = 0, dim: int = DIM, hidden: int = 24) -> Tower:
    rng = np.random.default_rng(seed)
    return Tower(
        linear=3 * random_orthonormal(dim, BITS, rng=rng) * np.linspace(0.5, 2, BITS, dtype=np.float32),
        hidden=rng.standard_normal((dim, hidden), dtype=np.float32),
        hidden_bias=rng.standard_normal(hidden, dtype=np.float32),
        output=0.2 * rng.standard_normal((hidden, BITS), dtype=np.float32),
        offset=0.3 * rng.standard_normal(BITS, dtype=np.float32),
    )


def _rows(count: int, *, seed: int, dim: int = DIM) -> np.ndarray:
    return _unit(np.random.default_rng(seed).standard_normal((count, dim)))


def _pairs(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows, and pairs that share no row. Similar ones agree in the first half of the columns, others in the
    second: the embeddings' cosine alone cannot tell."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((count, DIM))
    second = rng.standard_normal((count, DIM))
    similar = np.arange(count) % 2
    half = DIM // 2
    for columns, kind in ((slice(0, half), 1), (slice(half, None), 0)):
        own = np.flatnonzero(similar == kind)
        second[own, columns] = first[own, columns] + 0.3 * rng.standard_normal((own.size, half))
    rows = _unit(np.concatenate([first, second]))
    return rows, np.column_stack([np.arange(count), np.arange(count) + count, similar])


def _encoder(instance_map: Projection | Tower, *, scorer: PairScorer | None = None) -> Encoder:
    rows = _rows(200, seed=50)
    return Encoder(
        projections={"text": instance_map},
        radius_table=RadiusTable.unlimited(BITS),
        drift_reference=fit_drift_reference(instance_map.project(rows)),
        pair_scorer=scorer,
        metrics={"recall_at_10_in_100": 0.9, "label_map": 0.8},
    )


def _scorer(seed: int = 0) -> PairScorer:
    rng = np.random.default_rng(seed)
    return PairScorer(
        {
            count: PrefixScorer(
                scale=6.0 + count / 64,
                bias=-2.0,
                query_weight=rng.standard_normal(count, dtype=np.float32) / 30,
                code_weight=rng.standard_normal(count, dtype=np.float32) / 30,
            )
            for count in (64, 128)
        }
    )


NEW_ROWS, NEW_PAIRS = _pairs(400, seed=1)
STORED = _rows(300, seed=2)
PARENT = _tower_map()


def _update(encoder: Encoder, **arguments):
    given = {"embeddings": NEW_ROWS, "pairs": NEW_PAIRS, "rehearsal": STORED, "config": CONFIG}
    return update_pairs(encoder, device="cpu", **(given | arguments))


@pytest.fixture(scope="module", autouse=True)
def few_synthetic_pairs():
    """Radii are measured on fewer pairs than usual, in less time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(radius, "TOWER_SYNTHETIC_PAIRS", 100)
        patch.setattr(radius, "SYNTHETIC_PAIRS", 100)
        yield


@pytest.fixture(scope="module")
def updated():
    parent = _encoder(PARENT, scorer=_scorer())
    return parent, _update(parent)


# The restored tower


@pytest.mark.parametrize(
    "instance_map",
    [
        _tower_map(),
        _tower_map(dim=160),
        fit_rotation(_rows(50, seed=3), code_bits=BITS, seed=0),
        fit_rotation(_rows(50, seed=3, dim=160), code_bits=BITS, seed=0),
    ],
    ids=["tower", "wide tower", "projection of more bits", "projection"],
)
def test_restored_tower_is_the_map_and_exports_to_it(instance_map) -> None:
    rows = _rows(100, seed=4, dim=instance_map.dim)
    tower = restore(instance_map, dropout=0.4, input_dropout=0.4)
    with torch.no_grad():
        values = tower(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(values, instance_map.project(rows), atol=2e-5)
    again = export(tower)
    assert type(again) is type(instance_map)
    np.testing.assert_allclose(again.project(rows), instance_map.project(rows), atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(tower.linear.weight.detach().numpy(), axis=1), 1, atol=1e-5)


def test_restored_projection_of_more_bits_than_dimensions_can_be_exported_after_learning() -> None:
    tower = restore(fit_rotation(_rows(50, seed=3), code_bits=BITS, seed=0))
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    rows = _rows(50, seed=5)
    with torch.no_grad():
        np.testing.assert_allclose(
            export(tower).project(rows), tower(torch.from_numpy(rows)).numpy(), atol=1e-5
        )


def test_column_of_zeros_is_restored_as_it_is() -> None:
    weight = np.zeros((DIM, 64), dtype=np.float32)
    projection = Projection(mean=np.zeros(DIM, dtype=np.float32), weight=weight)
    assert not export(restore(projection)).project(STORED).any()


def test_train_mode_drops_out_and_leaves_the_scale() -> None:
    tower = restore(PARENT, dropout=0.5)
    train_mode(tower)
    before = tower.norm.running_var.clone()
    rows = torch.from_numpy(STORED)
    assert not torch.equal(tower(rows), tower(rows))
    assert torch.equal(tower.norm.running_var, before)


def test_map_of_random_features_has_no_tower() -> None:
    features = draw_features(DIM, count=16, gamma=1.0, seed=0)
    feature_tower = FeatureTower(
        features=features,
        linear=np.ones((DIM, 64), dtype=np.float32),
        output=np.ones((16, 64), dtype=np.float32),
        offset=np.zeros(128, dtype=np.float32),
    )
    with pytest.raises(ValueError, match="closed form"):
        restore(feature_tower)
    encoder = replace(_encoder(PARENT), projections={"text": feature_tower})
    with pytest.raises(TrainingDataError, match="random features"):
        _update(encoder)


def test_restored_scores_are_the_scorer() -> None:
    scorer = _scorer()
    again = PairScores.restored(scorer).exported()
    rows = PARENT.project(STORED)
    for count in (64, 128):
        np.testing.assert_allclose(
            again.logits(rows, rows[::-1] > 0, count=count),
            scorer.logits(rows, rows[::-1] > 0, count=count),
            atol=1e-5,
        )


# The losses


def _modules():
    tower = restore(PARENT)
    with torch.no_grad():
        tower.linear.weight += 0.05
    return tower, PairScores.restored(_scorer())


def _naive_logistic(scorer: PairScorer, queries: np.ndarray, codes: np.ndarray, similar: np.ndarray) -> float:
    terms = []
    for count in (64, 128):
        for query, code, label in zip(queries, codes, similar, strict=True):
            logit = scorer.logits(query[None], code[None] > 0, count=count)[0]
            terms.append(np.log1p(np.exp(logit)) - label * logit)
    return float(np.mean(terms))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)])
def test_loss_of_pairs_is_the_naive_sum(weights: tuple[float, float]) -> None:
    tower, scores = _modules()
    config = PairUpdateConfig(logistic=weights[0], frozen_logistic=weights[1])
    loss = PairUpdateLoss(
        tower, scores, FrozenRows.of(PARENT, NEW_ROWS, device=CPU), NEW_PAIRS, weights=config
    )
    chosen = np.array([3, 0, 9, 10, 11])
    pairs = NEW_PAIRS[chosen]
    new = export(tower).project(NEW_ROWS)
    old = PARENT.project(NEW_ROWS)
    queries = np.concatenate([pairs[:, 0], pairs[:, 1]])
    partners = np.concatenate([pairs[:, 1], pairs[:, 0]])
    similar = np.tile(pairs[:, 2], 2)
    expected = sum(
        weight * _naive_logistic(_scorer(), new[queries], stored[partners], similar)
        for weight, stored in zip(weights, (new, old), strict=True)
    )
    assert loss(torch.from_numpy(chosen)).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.7, 2.0, 0.1)])
def test_loss_of_retention_is_the_naive_sum(weights: tuple[float, float, float]) -> None:
    tower = restore(PARENT)
    bits = np.random.default_rng(0).random((len(STORED), BITS)) < 0.5
    config = PairUpdateConfig(rehearsal=weights[0], distillation=weights[1], anchor=weights[2])
    loss = RetentionLoss(tower, FrozenRows.of(PARENT, STORED, bits=bits, device=CPU), weights=config)
    start = {name: own.detach().clone() for name, own in tower.named_parameters()}
    with torch.no_grad():
        tower.linear.weight += 0.05
    chosen = np.array([7, 1, 30])
    values = export(tower).project(STORED[chosen])
    codes = np.where(bits[chosen], 1.0, -1.0)
    terms = (
        np.log1p(np.exp(-2 * codes * values)).mean(),
        ((values - PARENT.project(STORED[chosen])) ** 2).mean(),
        sum(float(((own.detach() - start[name]) ** 2).sum()) for name, own in tower.named_parameters()) / 2,
    )
    expected = sum(weight * term for weight, term in zip(weights, terms, strict=True))
    assert loss(torch.from_numpy(chosen)).item() == pytest.approx(expected, rel=1e-3)


def test_own_codes_pass_a_gradient_and_frozen_ones_none() -> None:
    rows = FrozenRows.of(PARENT, NEW_ROWS, device=CPU)
    chosen = torch.arange(8)
    gradients = []
    for logistic in (1.0, 0.0):
        tower, scores = _modules()
        config = PairUpdateConfig(logistic=logistic, frozen_logistic=1.0 - logistic)
        PairUpdateLoss(tower, scores, rows, NEW_PAIRS, weights=config)(chosen).backward()
        gradients.append(tower.linear.weight.grad)
    tower, scores = _modules()
    pairs = torch.from_numpy(NEW_PAIRS)[chosen]
    both = torch.cat([pairs[:, 0], pairs[:, 1]]), torch.cat([pairs[:, 1], pairs[:, 0]])
    values = tower(rows.rows[both[0]])
    similarity = pairs[:, 2].float().repeat(2)
    scores.logistic(
        values, StraightThroughSign()(tower(rows.rows[both[1]])), similarity=similarity
    ).backward()
    assert torch.allclose(gradients[0], tower.linear.weight.grad, atol=1e-6)
    tower, scores = _modules()
    scores.logistic(tower(rows.rows[both[0]]), rows.codes[both[1]], similarity=similarity).backward()
    assert torch.allclose(gradients[1], tower.linear.weight.grad, atol=1e-6)


def test_average_starts_at_the_tower_and_follows_each_step() -> None:
    tower = restore(PARENT)
    start = tower.linear.weight.detach().clone()
    optimiser = torch.optim.SGD(tower.parameters(), lr=0.1)
    averaged = Averaged(tower, optimiser, decay=0.75)
    expected = start
    for _ in range(3):
        optimiser.zero_grad()
        tower(torch.from_numpy(STORED)).square().mean().backward()
        optimiser.step()
        expected = 0.75 * expected + 0.25 * tower.linear.weight.detach()
    assert torch.allclose(averaged.tower.linear.weight, expected, atol=1e-6)
    assert not torch.allclose(averaged.tower.linear.weight, tower.linear.weight)


# The update of pairs


def test_new_queries_judge_new_pairs_better_on_old_codes_and_on_their_own(updated) -> None:
    parent, update = updated
    child = update.encoder
    rows, pairs = _pairs(600, seed=9)
    before = parent.instance_values(rows)
    after = child.instance_values(rows)

    def auc(encoder: Encoder, queries: np.ndarray, stored: np.ndarray) -> float:
        logits = encoder.pair_scorer.logits(queries[pairs[:, 0]], stored[pairs[:, 1]] > 0, count=BITS)
        return pair_auc(logits, pairs[:, 2] == 1)

    assert auc(child, after, before) > auc(parent, before, before) + 0.02
    assert auc(child, after, after) > auc(parent, before, before) + 0.02


def test_child_is_the_parents_and_keeps_what_was_not_learned(updated) -> None:
    parent, update = updated
    child = update.encoder
    assert child.parent_id == parent.encoder_id
    assert child.instance_id != parent.instance_id
    assert child.label_head is parent.label_head
    assert dict(child.metrics)["label_map"] == 0.8
    assert "recall_at_10_in_100" not in child.metrics
    assert child.pair_scorer is not None
    assert child.pair_scorer.prefixes[64].scale != parent.pair_scorer.prefixes[64].scale


def test_report_counts_and_measures_what_was_held_out(updated) -> None:
    parent, update = updated
    report = update.report
    assert report.pair_count + report.validation_pair_count == len(NEW_PAIRS)
    assert 0.2 * len(NEW_PAIRS) < report.validation_pair_count < 0.3 * len(NEW_PAIRS)
    assert report.rehearsal_row_count == len(STORED) * 3 // 4
    assert 1 <= report.epoch <= CONFIG.epochs
    for aucs in (report.parent_auc, report.stored_auc, report.child_auc):
        assert tuple(aucs) == (64, 128)
    differ = np.mean(parent.instance_bits(STORED) != update.encoder.instance_bits(STORED))
    assert report.stored_bits_differ == pytest.approx(differ)
    child_mean = np.mean([*report.stored_auc.values(), *report.child_auc.values()])
    assert child_mean > np.mean(list(report.parent_auc.values()))


def test_report_is_of_queries_on_codes_of_pairs_that_were_held_out(updated) -> None:
    parent, update = updated
    rng = np.random.default_rng(CONFIG.seed)
    split = split_pairs(NEW_PAIRS, row_count=len(NEW_ROWS), validation_share=0.25, rng=rng)
    first, second, similar = split.validation.T
    queries, others = np.concatenate([first, second]), np.concatenate([second, first])
    for scored_by, asked_by, stored_by, figures in (
        (parent, parent, parent, update.report.parent_auc),
        (update.encoder, update.encoder, parent, update.report.stored_auc),
        (update.encoder, update.encoder, update.encoder, update.report.child_auc),
    ):
        values, bits = asked_by.instance_values(NEW_ROWS), stored_by.instance_bits(NEW_ROWS)
        for count, figure in figures.items():
            logits = scored_by.pair_scorer.logits(values[queries], bits[others], count=count)
            assert figure == pytest.approx(pair_auc(logits, np.tile(similar == 1, 2)), abs=1e-3)
    assert update.report.stored_auc != update.report.child_auc


def test_radii_and_drift_are_those_of_the_child(updated) -> None:
    parent, update = updated
    child = update.encoder
    held_rows = child.drift_reference.row_count - len(STORED)
    assert held_rows == 2 * update.report.validation_pair_count + len(STORED) // 4
    assert child.drift_score(STORED) < 8
    stored, queries = parent.instance_bits(STORED), child.instance_bits(STORED)
    flipped = np.count_nonzero(stored != queries, axis=1)
    assert np.mean(flipped <= child.radii(0.0)[BITS]) > 0.98
    assert child.radii(0.05)[BITS] < BITS


def test_equal_seed_gives_an_equal_child_whatever_torch_drew_before(updated) -> None:
    parent, update = updated
    torch.manual_seed(1234)
    drawn = torch.random.get_rng_state()
    again = _update(parent)
    assert again.encoder.encoder_id == update.encoder.encoder_id
    assert again.report == update.report
    assert torch.equal(torch.random.get_rng_state(), drawn)
    other = _update(parent, config=replace(CONFIG, seed=1, epochs=1))
    assert other.encoder is None or other.encoder.encoder_id != update.encoder.encoder_id


def test_stored_codes_given_are_those_that_rehearsal_keeps() -> None:
    elder = _tower_map(seed=8).project(STORED) > 0
    config = replace(CONFIG, rehearsal=30.0)
    parent = _encoder(PARENT, scorer=_scorer())
    kept = _update(parent, rehearsal_bits=elder, config=config).report
    assert kept.stored_bits_differ < np.mean((PARENT.project(STORED) > 0) != elder) - 0.05


@pytest.mark.parametrize("option", ["rehearsal", "distillation", "anchor"])
def test_what_holds_to_the_parent_lessens_the_drift(option: str) -> None:
    free = replace(CONFIG, rehearsal=0.0, dropout=0.0, input_dropout=0.0)
    parent = _encoder(PARENT, scorer=_scorer())
    drifts = [
        _update(parent, config=own).report.stored_bits_differ
        for own in (free, replace(free, **{option: 20.0}))
    ]
    assert drifts[1] < drifts[0]


def test_projection_learns_too_and_gets_a_scorer() -> None:
    parent = train_encoder(_rows(300, seed=6), config=EncoderConfig(code_bits=BITS)).encoder
    update = _update(parent, config=CONFIG)
    assert update.encoder is not None
    assert isinstance(update.encoder.projections["text"], Projection)
    assert update.encoder.pair_scorer is not None
    assert update.report.stored_auc[BITS] > update.report.parent_auc[BITS]


def test_nothing_better_than_the_parent_gives_no_child() -> None:
    first = _rows(200, seed=1)
    second = _unit(first + 0.01 * _rows(200, seed=2))
    similar = np.arange(200) % 2
    second[similar == 0] = _rows(100, seed=3)
    pairs = np.column_stack([np.arange(200), np.arange(200) + 200, similar])
    rows = np.concatenate([first, second])
    still = replace(CONFIG, learning_rate=1e-9, epochs=1, batch_size=400)
    result = _update(_encoder(PARENT), embeddings=rows, pairs=pairs, config=still)
    assert dict(result.report.parent_auc) == dict(result.report.child_auc) == {64: 1.0, 128: 1.0}
    assert result.encoder is None
    result = _update(_encoder(PARENT), embeddings=rows, pairs=pairs)
    assert result.encoder is None
    assert 0 < result.report.stored_bits_differ < 0.5


def test_share_of_the_parent_lessens_the_drift() -> None:
    parent = _encoder(PARENT, scorer=_scorer())
    drifts = [
        _update(parent, config=replace(CONFIG, epochs=2, parent_share=share)).report.stored_bits_differ
        for share in (0.99, 0.0)
    ]
    assert drifts[0] < drifts[1] / 3


def test_few_rows_held_out_limit_nothing() -> None:
    rows, pairs = _pairs(60, seed=1)
    config = replace(CONFIG, rehearsal=0.0, validation_share=0.1)
    update = _update(_encoder(PARENT), embeddings=rows, pairs=pairs, rehearsal=STORED[:0], config=config)
    assert update.report.rehearsal_row_count == 0
    assert update.encoder is not None
    assert update.encoder.radii(0.01)[BITS] == BITS


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"pairs": NEW_PAIRS[NEW_PAIRS[:, 2] == 1]}, TrainingDataError, "one class only"),
        ({"pairs": np.array([[0, 900, 1]])}, TrainingDataError, "refers to rows"),
        ({"pairs": NEW_PAIRS[:30]}, TrainingDataError, "at least 20"),
        ({"embeddings": np.full_like(NEW_ROWS, np.nan)}, EmbeddingsError, "finite"),
        ({"rehearsal": np.full_like(STORED, np.nan)}, EmbeddingsError, "finite"),
        ({"embeddings": NEW_ROWS[:, :8]}, DimensionError, "32 dimensions"),
        ({"rehearsal": STORED[:, :8]}, DimensionError, "32 dimensions"),
        ({"rehearsal": STORED[:0]}, TrainingDataError, "needs stored vectors"),
        ({"rehearsal_bits": np.zeros((300, 64), dtype=bool)}, TrainingDataError, "rehearsal_bits"),
        ({"rehearsal_bits": np.zeros((300, BITS))}, TrainingDataError, "rehearsal_bits"),
        ({"modality": "image"}, UnknownModalityError, "image"),
        ({"config": replace(CONFIG, learning_rate=1e30)}, ConfigError, "learning_rate must be smaller"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(changed, error, message: str) -> None:
    with pytest.raises(error, match=message):
        _update(_encoder(PARENT), **changed)


def test_encoder_of_several_modalities_is_refused() -> None:
    encoder = replace(_encoder(PARENT), projections={"text": PARENT, "image": _tower_map(seed=1)})
    with pytest.raises(TrainingDataError, match="in common"):
        _update(encoder)


@pytest.mark.parametrize("kind", [PairUpdateConfig, LabelUpdateConfig])
@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"rehearsal_rows": 0},
        {"learning_rate": 0.0},
        {"warmup_share": 1.0},
        {"dropout": 1.0},
        {"weight_decay": -1.0},
        {"rehearsal": -1.0},
        {"distillation": float("nan")},
        {"anchor": float("inf")},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_named(kind, wrong) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        kind(**wrong)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (PairUpdateConfig, {"logistic": 0.0, "frozen_logistic": 0.0}),
        (PairUpdateConfig, {"frozen_logistic": -1.0}),
        (PairUpdateConfig, {"parent_share": 1.0}),
        (PairUpdateConfig, {"validation_share": 0.5}),
        (PairUpdateConfig, {"validation_share": 0.0}),
        (PairUpdateConfig, {"input_dropout": 1.0}),
        (LabelUpdateConfig, {"central": 0.0, "likelihood": 0.0}),
        (LabelUpdateConfig, {"likelihood": -1.0}),
    ],
)
def test_settings_of_one_kind_are_checked(kind, wrong) -> None:
    with pytest.raises(ConfigError):
        kind(**wrong)


# The update of labels


def _label_map(tower: LabelTower, queries, labels, stored) -> float:
    return class_retrieval_map(
        tower.label_map.project(queries),
        target_bits(tower.class_codes, stored),
        query_labels=labels,
        row_labels=stored,
        seed=0,
    )


@pytest.fixture(scope="module")
def labelled(draw_clusters):
    """A tower of classes c0..c2, the rows and labels of c0..c5, and fresh ones."""
    rows, labels = draw_clusters(class_count=6, rows_per_class=40)
    fresh, own = draw_clusters(class_count=6, rows_per_class=10, seed=5)
    old = np.array([label[0] < "c3" for label in labels])
    config = LabelledConfig(hidden_width=16, epochs=8, batch_size=64, learning_rate=5e-3)
    tower = train_labelled(rows[old], _of(labels, old), config=config, device="cpu")
    return tower, rows, labels, old, fresh, own


def _of(labels, chosen):
    return [label for label, kept in zip(labels, chosen, strict=True) if kept]


def _update_labels(labelled, config: LabelUpdateConfig = LABELS, *, rehearse: bool = True, **changed):
    tower, rows, labels, old, _, _ = labelled
    stored = np.flatnonzero(old)[: None if rehearse else 0]
    given = {
        "embeddings": rows[~old],
        "labels": _of(labels, ~old),
        "rehearsal": rows[stored],
        "rehearsal_labels": [labels[row] for row in stored],
    }
    return update_labelled(tower, config=config, device="cpu", **(given | changed))


def test_new_classes_are_learned_and_old_ones_kept(labelled) -> None:
    tower, _, labels, _, fresh, own = labelled
    updated = _update_labels(labelled)
    assert updated.class_codes.labels[:3] == tower.class_codes.labels
    assert np.array_equal(updated.class_codes.bits[:3], tower.class_codes.bits)
    assert set(updated.class_codes.labels) == {f"c{number}" for number in range(6)}
    assert _label_map(updated, fresh, own, labels) > 0.95
    assert dict(updated.metrics) == {
        "row_count": 120.0,
        "rehearsal_row_count": 120.0,
        "class_count": 6.0,
        "final_loss": pytest.approx(updated.metrics["final_loss"]),
    }


def test_without_rehearsal_old_classes_are_forgotten(labelled) -> None:
    _, _, labels, old, fresh, own = labelled
    eldest = np.array([label[0] < "c3" for label in own])
    stored = _of(labels, old) + _of(labels, ~old)
    config = replace(LABELS, epochs=20, learning_rate=1e-2)
    forgets = _update_labels(labelled, replace(config, rehearsal=0.0), rehearse=False)
    keeps = _update_labels(labelled, config)
    maps = [_label_map(own_tower, fresh[eldest], _of(own, eldest), stored) for own_tower in (forgets, keeps)]
    assert maps[1] > maps[0] + 0.02


@pytest.mark.parametrize("rehearse", [False, True])
def test_distillation_stays_near_the_parent_at_stored_or_at_new_rows(labelled, *, rehearse: bool) -> None:
    tower, rows, _, old, _, _ = labelled
    seen = rows[old] if rehearse else rows[~old]
    moved = []
    for weight in (0.0, 20.0):
        config = replace(LABELS, rehearsal=0.0, distillation=weight)
        updated = _update_labels(labelled, config, rehearse=rehearse)
        moved.append(np.abs(updated.label_map.project(seen) - tower.label_map.project(seen)).mean())
    assert moved[1] < moved[0] / 2


def test_anchor_holds_the_weights(labelled) -> None:
    tower, *_ = labelled
    free, held = (
        _update_labels(labelled, replace(LABELS, rehearsal=0.0, anchor=weight)) for weight in (0.0, 50.0)
    )
    start = tower.label_map.offset
    assert np.linalg.norm(held.label_map.offset - start) < np.linalg.norm(free.label_map.offset - start)


def test_likelihood_alone_learns_new_classes(labelled) -> None:
    _, _, labels, old, fresh, own = labelled
    newest = np.array([label[0] >= "c3" for label in own])
    config = replace(LABELS, central=0.0, likelihood=1.0, rehearsal=0.0)
    updated = _update_labels(labelled, config)
    assert _label_map(updated, fresh[newest], _of(own, newest), _of(labels, ~old)) > 0.9
    before = _label_map(
        LabelTower(label_map=labelled[0].label_map, class_codes=updated.class_codes, metrics={}),
        fresh[newest],
        _of(own, newest),
        _of(labels, ~old),
    )
    assert before < 0.9


def test_stored_vectors_are_held_to_the_codes_of_their_labels(labelled) -> None:
    _, rows, labels, _, _, _ = labelled
    chosen = np.array([label == ["c0"] for label in labels])
    config = replace(LABELS, rehearsal=10.0)
    updated = _update_labels(
        labelled, config, rehearsal=rows[chosen], rehearsal_labels=[["c1"]] * chosen.sum()
    )
    bits = updated.label_map.project(rows[chosen]) > 0
    assert np.mean(bits == target_bits(updated.class_codes, [["c1"]])) > 0.8


def test_one_new_class_is_enough(labelled) -> None:
    _, rows, labels, _, _, _ = labelled
    only = np.array([label == ["c4"] for label in labels])
    updated = _update_labels(labelled, embeddings=rows[only], labels=_of(labels, only))
    assert updated.class_codes.labels[3:] == ("c4",)


def test_equal_seeds_give_equal_label_towers(labelled) -> None:
    config = replace(LABELS, epochs=2)
    first, second = (_update_labels(labelled, config).label_map.arrays() for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    other = _update_labels(labelled, replace(config, seed=1)).label_map.arrays()
    assert not np.array_equal(first["linear"], other["linear"])


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"labels": [[]] * 120}, TrainingDataError, "no row has a label"),
        ({"labels": [["c3"]]}, TrainingDataError, "1 label rows for 120"),
        ({"embeddings": np.full((120, DIM), np.nan, dtype=np.float32)}, EmbeddingsError, "finite"),
        ({"embeddings": _rows(120, seed=0, dim=8)}, DimensionError, "32 dimensions"),
        ({"rehearsal": _rows(120, seed=0, dim=8)}, DimensionError, "32 dimensions"),
        ({"rehearsal": STORED[:0], "rehearsal_labels": []}, TrainingDataError, "needs stored vectors"),
        ({"rehearsal_labels": [["c0"]]}, TrainingDataError, "1 label rows for 120"),
        ({"rehearsal_labels": [["c5"]] * 120}, UnknownLabelError, "c5"),
        ({"rehearsal_labels": [[]] * 120}, TrainingDataError, "no label"),
        ({"config": replace(LABELS, learning_rate=1e30)}, ConfigError, "learning_rate must be smaller"),
    ],
)
def test_label_updates_that_cannot_be_are_refused(labelled, changed, error, message: str) -> None:
    with pytest.raises(error, match=message):
        _update_labels(labelled, **changed)

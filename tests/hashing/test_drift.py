from itertools import pairwise

import numpy as np
import pytest

from hashing import EmbeddingsError, TrainedEncoder
from hashing.drift import DriftReference, drift_score, fit_drift_reference


def test_reference_holds_the_moments_of_the_values() -> None:
    values = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    covariance = np.cov(values.T)
    reference = fit_drift_reference(values)
    np.testing.assert_allclose(reference.mean, values.mean(axis=0), atol=1e-6)
    assert reference.variance == pytest.approx(np.trace(covariance), rel=1e-5)
    assert reference.squared_variance == pytest.approx(np.trace(covariance @ covariance), rel=1e-5)
    assert reference.row_count == 50


def test_score_has_mean_zero_and_deviation_one_for_rows_drawn_alike() -> None:
    rng = np.random.default_rng(0)
    scale = np.linspace(0.2, 2, 40)
    draws = [(rng.standard_normal((200, 40)) * scale).astype(np.float32) for _ in range(301)]
    reference = fit_drift_reference(draws[0])
    scores = [drift_score(fit_drift_reference(draw), other[:9]) for draw, other in pairwise(draws)]
    assert np.mean(scores) == pytest.approx(0, abs=0.2)
    assert np.std(scores) == pytest.approx(1, abs=0.25)
    assert drift_score(reference, draws[1] + np.float32(0.5)) > 20


def test_rows_of_the_same_kind_score_low_and_others_high(draw_clusters, trained: TrainedEncoder) -> None:
    same, _ = draw_clusters(class_count=8, rows_per_class=20, seed=1)
    other, labels = draw_clusters(class_count=12, rows_per_class=20, seed=1)
    unseen = other[[own[0] in {"c9", "c10"} for own in labels]]
    assert trained.encoder.drift_score(same) < 4
    assert trained.encoder.drift_score(unseen) > 8


def test_score_without_rows_is_refused(trained: TrainedEncoder) -> None:
    with pytest.raises(EmbeddingsError, match="at least one row"):
        trained.encoder.drift_score(np.empty((0, 32), dtype=np.float32))


@pytest.mark.parametrize(("value", "score"), [(1.0, 0.0), (2.0, float("inf"))])
def test_reference_without_spread_scores_any_difference_as_infinite(value: float, score: float) -> None:
    reference = DriftReference(
        mean=np.ones(4, dtype=np.float32), variance=0.0, squared_variance=0.0, row_count=5
    )
    assert drift_score(reference, np.full((3, 4), value, dtype=np.float32)) == score

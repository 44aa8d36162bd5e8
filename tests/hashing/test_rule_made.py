from collections import Counter

import numpy as np
import pytest

from hashing.counterfactuals import RULES

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from hashing.deep.rule_made import make_pairs, near_cosines

TEXTS = [f"Why isn't a cat better than a dog in {year}, at 5 kg?" for year in range(1990, 2020)] + ["?", ""]


def test_each_rule_makes_up_to_its_share() -> None:
    rows = np.arange(10, len(TEXTS))
    pairs, made = make_pairs(TEXTS, rows, per_rule=3, rng=np.random.default_rng(0))
    assert pairs.shape == (len(made), 3)
    assert set(pairs[:, 0].tolist()) <= set(rows.tolist())
    np.testing.assert_array_equal(pairs[:, 1], len(TEXTS) + np.arange(len(made)))
    kinds = Counter(pairs[:, 2].tolist())
    assert 3 <= kinds[1] <= 3 * sum(same for _, same in RULES.values())
    assert 3 <= kinds[0] <= 3 * sum(not same for _, same in RULES.values())
    assert all(text.strip(" ?.") for text in made)


def test_no_share_makes_no_pairs() -> None:
    pairs, made = make_pairs(TEXTS, np.arange(len(TEXTS)), per_rule=0, rng=np.random.default_rng(0))
    assert pairs.shape == (0, 3) and made == []


def test_cosines_are_drawn_from_the_nearest_pairs() -> None:
    cosines = np.column_stack([np.linspace(0, 1, 100), np.linspace(1, 0, 100)]).astype(np.float32)
    drawn = near_cosines(cosines, count=40, rng=np.random.default_rng(0))
    assert drawn.shape == (40, 2) and drawn[:, 0].min() > 0.89
    np.testing.assert_allclose(drawn.sum(axis=1), 1, atol=1e-6)

"""Pairs of a real text and one made from it by rule, to learn from beside the labelled ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hashing.counterfactuals import RULES, counterfactuals
from hashing.question_words import words_of

NEAR_SHARE = 0.1
"""Made texts have no embedding: their cosines are drawn from this share of the pairs, the nearest."""


def make_pairs(
    texts: Sequence[str], rows: NDArray[np.int64], *, per_rule: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], list[str]]:
    """Apply each rule to up to `per_rule` texts of `rows`, drawn at random.

    Returns pairs, int64 [m, 3]: the row of the real text, len(texts) + the place of the other, 1 where they
    ask the same; and the m made texts.
    """
    pairs: list[tuple[int, int, int]] = []
    made: list[str] = []
    count: Counter[str] = Counter()
    for row in rng.permutation(rows).tolist():
        for each in counterfactuals([texts[row]], rng):
            if count[each.kind] < per_rule and words_of(each.changed):
                count[each.kind] += 1
                pairs.append((row, len(texts) + len(made), int(each.same)))
                made.append(each.changed)
        if sum(count.values()) >= per_rule * len(RULES):
            break
    return np.array(pairs, dtype=np.int64).reshape(-1, 3), made


def near_cosines(
    cosines: NDArray[np.float32], *, count: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw the cosines, float32 [p, k], of `count` of the pairs that are nearest by the first; [count, k]."""
    near = np.argsort(-cosines[:, 0], kind="stable")[: max(1, int(NEAR_SHARE * cosines.shape[0]))]
    drawn: NDArray[np.float32] = cosines[rng.choice(near, size=count)]
    return drawn

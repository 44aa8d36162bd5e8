"""What is compared of two texts: which words of one the other lacks, and in what order they are.

The words of both are aligned softly, each with the most similar one of the other text (in the manner of
decomposable attention, Parikh et al. 2016), and what is left over is summed by the kinds of words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hashing.word_table import ATTRIBUTES, TAGS, TEXT_FIGURES, PreparedText

GAPS = ("exact", "meaning", "spelling", "either")
"""1 - similarity with the best word of the other text: by equality, meaning, spelling, the better of both."""

_COUNT = len(ATTRIBUTES)
_RARITY = ATTRIBUTES.index("rarity")
_UNMATCHED, _MATCHED = _COUNT, _COUNT + 1
"""Columns of a token's weights after the attributes: its evidence."""

_FIGURES = ("tokens", "chars", "sentences", "capitals", *(f"all_{name}" for name in ATTRIBUTES))
_ORDER = ("common_bigrams", "shift", "inversions", "matched")

FEATURE_NAMES = (
    *(f"least_{gap}_{name}" for gap in GAPS for name in ATTRIBUTES),
    *(f"most_{gap}_{name}" for gap in GAPS for name in ATTRIBUTES),
    *(f"share_{gap}_rarity" for gap in GAPS),
    *(f"least_top_{gap}" for gap in GAPS),
    *(f"most_top_{gap}" for gap in GAPS),
    *(f"difference_{name}" for name in _FIGURES),
    *(f"sum_{name}" for name in _FIGURES),
    *(f"same_{name}" for name in ("question_word", "first", "second", "last")),
    *_ORDER,
    "bigram_share",
    "inversion_share",
)
"""Columns of `pair_features`. least and most: of the two texts' own sums."""

assert len(_FIGURES) == TEXT_FIGURES + _COUNT


def pair_features(
    query: PreparedText, rows: Sequence[PreparedText]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compare a text with each of n texts; what is said of a row depends on no other row.

    Returns features, float32 [n, len(FEATURE_NAMES)], and the words' evidence in log odds, float32 [n].
    """
    count = len(rows)
    ids = np.concatenate([row.ids for row in rows])  # [m], the tokens of all rows
    weights = np.concatenate([row.weights for row in rows])
    lengths = np.array([row.ids.size for row in rows])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    equal = query.ids[:, None] == ids  # [q, m]
    alike = np.empty((len(GAPS), query.ids.size, ids.size), dtype=np.float32)
    alike[0] = equal
    np.matmul(query.meaning, np.concatenate([row.meaning for row in rows]).T, out=alike[1])
    np.matmul(query.spelling, np.concatenate([row.spelling for row in rows]).T, out=alike[2])
    np.maximum(alike[1:3], alike[0], out=alike[1:3])
    np.maximum(alike[1], alike[2], out=alike[3])
    row_gaps = 1 - alike.max(axis=1)  # [gaps, m]
    query_gaps = 1 - np.maximum.reduceat(alike, starts, axis=2)  # [gaps, q, n]

    own = np.add.reduceat(row_gaps[:, :, None] * weights, starts, axis=1)  # [gaps, n, attributes + 2]
    other = (query.weights.T @ query_gaps).transpose(0, 2, 1)  # [gaps, n, attributes + 2]
    top_own = np.maximum.reduceat(row_gaps * weights[:, _RARITY], starts, axis=1)  # [gaps, n]
    top_other = (query_gaps * query.weights[:, _RARITY, None]).max(axis=1)
    same: NDArray[np.bool_] = np.equal(np.array([row.tags for row in rows]), query.tags)  # [n, TAGS]
    own_figures = np.array([row.figures for row in rows])  # [n, figures]

    features = np.empty((count, len(FEATURE_NAMES)), dtype=np.float32)
    width = len(GAPS) * _COUNT
    sums, others = own[:, :, :_COUNT].transpose(1, 0, 2), other[:, :, :_COUNT].transpose(1, 0, 2)
    shape = (count, len(GAPS), _COUNT)
    np.minimum(sums, others, out=features[:, :width].reshape(shape))
    np.maximum(sums, others, out=features[:, width : 2 * width].reshape(shape))
    at = 2 * width
    total = own_figures + query.figures
    rarity = total[:, TEXT_FIGURES + _RARITY]
    step = len(GAPS)
    features[:, at : at + step] = ((own + other)[:, :, _RARITY] / np.maximum(rarity, 1e-6)).T
    features[:, at + step : at + 2 * step] = np.minimum(top_own, top_other).T
    features[:, at + 2 * step : at + 3 * step] = np.maximum(top_own, top_other).T
    at += 3 * step
    features[:, at : at + len(_FIGURES)] = np.abs(own_figures - query.figures)
    features[:, at + len(_FIGURES) : at + 2 * len(_FIGURES)] = total
    at += 2 * len(_FIGURES)
    features[:, at : at + TAGS] = same
    at += TAGS
    position = np.concatenate([row.position for row in rows])
    order = _order(equal, weights[:, _RARITY], position, query.position, starts=starts, ends=ends)
    features[:, at : at + len(_ORDER)] = order
    features[:, -2] = order[:, 0] / np.minimum(lengths, query.ids.size)
    features[:, -1] = order[:, 2] / (order[:, 3] + 1)
    all_matched = np.add.reduceat(weights[:, _MATCHED], starts) + query.weights[:, _MATCHED].sum()
    return features, _evidence(own[0] + other[0], all_matched)


def _order(
    equal: NDArray[np.bool_],
    rarity: NDArray[np.float32],
    position: NDArray[np.float32],
    query_position: NDArray[np.float32],
    *,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return of each row the common pairs of neighbours, how far and how often its words moved, and how many
    it has in common, float32 [n, 4]. equal: bool [q, m]. rarity, position: float32 [m]."""
    columns = np.zeros((equal.shape[1], 5), dtype=np.float32)
    common = equal.any(axis=0)
    place = equal.argmax(axis=0)  # in the query
    both = np.logical_or.reduce(equal[:-1, :-1] & equal[1:, 1:], axis=0)
    both[ends[:-1] - 1] = False  # the next token is another row's
    columns[:-1, 0] = both
    matched_rarity = rarity * common
    columns[:, 1] = matched_rarity * np.abs(position - query_position[place])
    columns[:, 3] = common
    columns[:, 4] = matched_rarity
    matched = np.flatnonzero(common)
    back = np.diff(place[matched]) < 0
    # Compared within a row only: of each row's first matched word nothing is said.
    row = np.searchsorted(ends, matched, side="right")
    columns[matched[1:], 2] = back & (row[1:] == row[:-1])
    sums = np.add.reduceat(columns, starts, axis=0)  # [n, 5]
    sums[:, 1] /= np.maximum(sums[:, 4], 1e-6)
    return sums[:, :4]


def _evidence(unmatched: NDArray[np.float32], all_matched: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum the evidence of the unmatched words of both texts, and half that of the matched ones of each.

    unmatched: float32 [n, attributes + 2], sums over the unmatched words of both texts. all_matched: float32
    [n], of all words of both, the evidence that each has where it is matched.
    """
    half = np.float32(0.5)
    return np.asarray(unmatched[:, _UNMATCHED] + half * (all_matched - unmatched[:, _MATCHED]))

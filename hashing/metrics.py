"""Retrieval metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import Labels

QUERY_CHUNK = 256
"""Queries scored at a time; a chunk holds QUERY_CHUNK x database rows in float32."""


def mean_average_precision(scores: NDArray[np.floating], relevant: NDArray[np.bool_], *, seed: int) -> float:
    """Return the mean over queries of average precision over the whole ranking, in [0, 1].

    scores: [q, n], higher is better. relevant: bool [q, n]. Ties are broken at random by `seed`.
    Queries without a relevant row are left out; NaN when none is left.
    """
    precisions = average_precisions(scores, relevant, rng=np.random.default_rng(seed))
    scored = precisions[~np.isnan(precisions)]
    return float(scored.mean()) if scored.size else float("nan")


def average_precisions(
    scores: NDArray[np.floating], relevant: NDArray[np.bool_], *, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the average precision of each query, float64 [q]; NaN without a relevant row.

    scores: [q, n], higher is better. relevant: bool [q, n].
    """
    precisions = np.full(scores.shape[0], np.nan)
    for query in range(scores.shape[0]):
        shuffle = rng.permutation(scores.shape[1])
        order = shuffle[np.argsort(-scores[query, shuffle])]
        ranks = np.flatnonzero(relevant[query, order]) + 1  # of the relevant rows, from 1
        if ranks.size:
            precisions[query] = np.mean(np.arange(1, ranks.size + 1) / ranks)
    return precisions


def grouped_precisions(
    scores: NDArray[np.float64], relevant: NDArray[np.bool_], *, counts: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return the average precision of each query over groups of rows that tie, float64 [q].

    scores: float64 [q, groups]. relevant: bool [q, groups], of all rows of a group. counts: intp [groups].
    Within a relevant group precision is (R + j) / (N + j) at its row j after N rows, R of them relevant.
    NaN for a query without a relevant row.
    """
    order = np.argsort(-scores, axis=1)
    size = counts[order]  # [q, groups]
    own = np.where(np.take_along_axis(relevant, order, axis=1), size, 0)
    before = np.cumsum(size, axis=1) - size
    relevant_before = np.cumsum(own, axis=1) - own
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, counts.sum() + 1))])
    sums = size - (before - relevant_before) * (harmonic[before + size] - harmonic[before])
    totals = own.sum(axis=1)
    summed = np.where(own > 0, sums, 0.0).sum(axis=1)
    precisions: NDArray[np.float64] = np.where(totals > 0, summed / np.maximum(totals, 1), np.nan)
    return precisions


def pair_auc(scores: NDArray[np.floating], similar: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve: how often a similar pair scores above another, ties half.

    scores: [p], higher is more similar. similar: bool [p]. NaN where a kind of pairs is missing.
    """
    similar_count = int(np.count_nonzero(similar))
    other_count = similar.size - similar_count
    if similar_count == 0 or other_count == 0:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # from 1, the mean of those that tie
    above = float(ranks[similar].sum()) - similar_count * (similar_count + 1) / 2
    return above / (similar_count * other_count)


def wrong_share_at_hit_rate(
    scores: NDArray[np.floating], same: NDArray[np.bool_], *, hit_rate: float
) -> float:
    """Return the share of pairs that are not the same among the `hit_rate` best of all pairs, in [0, 1].

    scores: [p], higher is more surely the same. same: bool [p]. Of pairs that tie at the edge a mean share is
    counted, as if their order were random. NaN where no pair is taken.
    """
    taken = round(hit_rate * scores.size)
    if taken == 0:
        return float("nan")
    edge = np.sort(scores)[scores.size - taken]
    above, level = scores > edge, scores == edge
    wrong = np.count_nonzero(above & ~same)
    wrong_level = (
        (taken - np.count_nonzero(above)) * np.count_nonzero(level & ~same) / np.count_nonzero(level)
    )
    return float(wrong + wrong_level) / taken


def hit_rate_at_error(scores: NDArray[np.floating], same: NDArray[np.bool_], *, error: float) -> float:
    """Return the largest share of best pairs of which those not the same are at most `error` of all pairs.

    scores: [p], higher is more surely the same. same: bool [p]. Pairs that tie are taken together or not at
    all, as a threshold would. NaN without pairs.
    """
    if scores.size == 0:
        return float("nan")
    values, place = np.unique(-scores, return_inverse=True)  # the best first
    counts = np.cumsum(np.bincount(place, minlength=values.size))
    wrong = np.cumsum(np.bincount(place[~same], minlength=values.size))
    allowed = np.flatnonzero(wrong <= error * scores.size)
    return float(counts[allowed[-1]] / scores.size) if allowed.size else 0.0


def recall_at_k(found: NDArray[np.integer], truth: NDArray[np.integer]) -> float:
    """Return the mean share of a query's true ids that were found, in [0, 1].

    found: ids [q, k], k may differ from that of truth. truth: ids [q, k], distinct in a row.
    """
    if truth.size == 0:
        return float("nan")
    hits = (truth[:, :, None] == found[:, None, :]).any(axis=2)  # [q, k]
    return float(hits.mean())


@dataclass(frozen=True, slots=True, eq=False)
class ClassRetrieval:
    """What queries find by class. precisions: average precision, float64 [q], NaN for a query without a
    relevant row. right: whether the first row found is relevant, bool [q]."""

    precisions: NDArray[np.float64]
    right: NDArray[np.bool_]

    @property
    def mean_precision(self) -> float:
        """The mAP; NaN when no query has a relevant row."""
        judged = self.precisions[~np.isnan(self.precisions)]
        return float(judged.mean()) if judged.size else float("nan")


def class_retrieval(
    values: NDArray[np.float32],
    bits: NDArray[np.bool_],
    *,
    query_labels: Labels,
    row_labels: Labels,
    seed: int,
    report: Callable[[int], None] = lambda done: None,
) -> ClassRetrieval:
    """Retrieve by class with real-valued queries against stored label codes.

    values: float32 [q, label_bits]. bits: bool [n, label_bits], n >= 1. Score is the inner product with the
    codes in -1/+1; a row is relevant when it shares a label with the query. report: called with the count
    of queries done after every QUERY_CHUNK of them; may raise to stop.
    """
    signs = np.where(bits, np.float32(1), np.float32(-1))
    rows_by_label = _rows_by_label(row_labels)
    rng = np.random.default_rng(seed)
    precisions, right = [np.empty(0)], [np.empty(0, dtype=np.bool_)]
    for start in range(0, values.shape[0], QUERY_CHUNK):
        scores = values[start : start + QUERY_CHUNK] @ signs.T  # [chunk, n]
        relevant = np.zeros(scores.shape, dtype=np.bool_)
        for query, own in enumerate(query_labels[start : start + QUERY_CHUNK]):
            for label in own:
                relevant[query, rows_by_label.get(label, _NO_ROWS)] = True
        precisions.append(average_precisions(scores, relevant, rng=rng))
        right.append(relevant[np.arange(len(scores)), scores.argmax(axis=1)])
        report(min(start + QUERY_CHUNK, values.shape[0]))
    return ClassRetrieval(precisions=np.concatenate(precisions), right=np.concatenate(right))


def class_retrieval_map(
    values: NDArray[np.float32],
    bits: NDArray[np.bool_],
    *,
    query_labels: Labels,
    row_labels: Labels,
    seed: int,
) -> float:
    """Return the mAP of `class_retrieval`."""
    found = class_retrieval(values, bits, query_labels=query_labels, row_labels=row_labels, seed=seed)
    return found.mean_precision


def code_recall(
    projected_queries: NDArray[np.float32],
    projected_rows: NDArray[np.float32],
    *,
    queries: NDArray[np.float32],
    rows: NDArray[np.float32],
    truth_count: int,
    candidate_count: int,
) -> float:
    """Return the share of each query's exact neighbours that are among its nearest codes, in [0, 1].

    projected_*: instance values, float32 [q, code_bits] and [n, code_bits]. queries, rows: unit
    float32 [q, dim] and [n, dim]. The `truth_count` rows of highest cosine are sought among the
    `candidate_count` of smallest Hamming distance; both are capped at n.
    """
    row_signs = np.where(projected_rows > 0, np.float32(1), np.float32(-1))
    query_signs = np.where(projected_queries > 0, np.float32(1), np.float32(-1))
    recalls = []
    for start in range(0, queries.shape[0], QUERY_CHUNK):
        chunk = slice(start, start + QUERY_CHUNK)
        truth = top_columns(queries[chunk] @ rows.T, count=truth_count)
        found = top_columns(query_signs[chunk] @ row_signs.T, count=candidate_count)
        recalls += [recall_at_k(found, truth)] * truth.shape[0]
    return float(np.mean(recalls))


def top_columns(scores: NDArray[np.float32], *, count: int) -> NDArray[np.intp]:
    """Return the `count` columns of highest score in each row, unordered, [q, min(count, n)]."""
    count = min(count, scores.shape[1])
    return np.argpartition(scores, scores.shape[1] - count, axis=1)[:, scores.shape[1] - count :]


_NO_ROWS = np.empty(0, dtype=np.intp)


def _rows_by_label(labels: Labels) -> dict[str, NDArray[np.intp]]:
    rows: dict[str, list[int]] = {}
    for row, own in enumerate(labels):
        for label in own:
            rows.setdefault(label, []).append(row)
    return {label: np.array(own, dtype=np.intp) for label, own in rows.items()}

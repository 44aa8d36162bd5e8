"""Judge an encoder whose instance map was updated against the codes that its parent stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hashing.embeddings import as_rows, signs, unit_rows
from hashing.errors import TrainingDataError
from hashing.inference import Encoder
from hashing.metrics import recall_at_k, top_columns
from hashing.neighbour_ranking import OWN_COSINE
from hashing.radius import COVERAGE, code_words, leading_distances
from hashing.shares import share_bounds

RECALL_TOLERANCE = 0.02
"""Loss of recall of exact neighbours that the gate lets pass, unless told otherwise."""

FLIP_TOLERANCE = 0.01
"""Share of right answers lost that the gate lets pass, unless told otherwise."""

PRECISION_TOLERANCE = 0.01
"""Loss of precision at a threshold that the gate lets pass, unless told otherwise."""

LEAST_JUDGED_HITS = 50
"""Hits with a verdict below which their precision is told, and decides nothing."""

NEIGHBOUR_COUNT = 10
CANDIDATE_COUNT = 100
CANDIDATE_SHARE = 0.25
"""Of the rows, at most, that are candidates: among all of them every code finds every neighbour."""

LEAST_ROWS = 40
"""Rows beside a query's own that its recall is judged among; NEIGHBOUR_COUNT is CANDIDATE_SHARE of them."""

COVERAGE_DISTANCES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
COVERAGE_LEAST_PAIRS = 1000
"""Fewer pairs within a distance cannot tell a coverage of COVERAGE from a lesser one."""

QUERY_CHUNK = 64


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutPairs:
    """What no encoder has learned from. rows: float [n, dim], stored ones. queries: float [q, dim], none of
    the rows. pairs: int64 [p, 3] of a query, a row, and 1 where they mean the same, else 0."""

    rows: NDArray[np.floating]
    queries: NDArray[np.floating]
    pairs: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What a threshold serves of the held-out queries. hits_before, hits_after: queries whose best candidate
    is within it, by the old and by the new encoder. judged_before, judged_after: those of them that are a
    pair with it. precision_before, precision_after: share of these that are similar; None for none."""

    threshold: float
    hits_before: int
    hits_after: int
    judged_before: int
    judged_after: int
    precision_before: float | None
    precision_after: float | None


@dataclass(frozen=True, slots=True)
class PairGateReport:
    """What an update does to answers out of codes that the old encoder stored.

    recall_before, recall_after: share of a query's NEIGHBOUR_COUNT exact nearest rows among its nearest
    codes, CANDIDATE_COUNT but at most CANDIDATE_SHARE of the rows, by the old and by the new encoder's query;
    of queries with LEAST_ROWS others, NaN for none. A row that holds the query itself (OWN_COSINE) is no
    neighbour and no answer. judged_count: queries with a similar pair of another row. right_before: share of
    them whose best candidate after an exact rerank is a row of a similar pair. negative_flips,
    positive_flips: shares of them whose answer turns from right to wrong, and back; NaN for none.
    coverage_before, coverage_after: the least share, over COVERAGE_DISTANCES that COVERAGE_LEAST_PAIRS are
    within, of the pairs of query and row within it whose codes lie within all of the old and of the new
    encoder's radii; NaN for no such distance. operating_points: by the names that thresholds were given.
    reasons: why not accepted; empty otherwise.
    """

    recall_before: float
    recall_after: float
    judged_count: int
    right_before: float
    negative_flips: float
    positive_flips: float
    coverage_before: float
    coverage_after: float
    accepted: bool
    reasons: tuple[str, ...]
    operating_points: Mapping[str, OperatingPoint] = field(default_factory=dict)


def evaluate_pair_update(
    old: Encoder,
    new: Encoder,
    held_out: HeldOutPairs,
    *,
    modality: str = "text",
    thresholds: Mapping[str, float] | None = None,
    recall_tolerance: float = RECALL_TOLERANCE,
    flip_tolerance: float = FLIP_TOLERANCE,
    precision_tolerance: float = PRECISION_TOLERANCE,
) -> PairGateReport:
    """Compare the new encoder's queries with the old one's, both on the codes that the old one made.

    thresholds: cosine distances within which an answer is served, by name, of categories say.

    The new encoder is accepted iff recall was judged and falls by at most `recall_tolerance`, at most the
    share `flip_tolerance` of the judged answers turns wrong (negative flips: Yan et al., CVPR 2021), its
    radii hold COVERAGE, or as much as the old encoder's did, and the precision at no threshold, of
    LEAST_JUDGED_HITS before and after, surely (`share_bounds`) falls by more than `precision_tolerance`.
    Cost O(queries x rows): pass a sample of a large database.
    Raises: TrainingDataError for no row, no query, or pairs of others; EmbeddingsError; DimensionError;
    UnknownModalityError.
    """
    stored_values = old.instance_values(held_out.rows, modality=modality)
    before_values = old.instance_values(held_out.queries, modality=modality)
    after_values = new.instance_values(held_out.queries, modality=modality)
    rows, queries = unit_rows(as_rows(held_out.rows)), unit_rows(as_rows(held_out.queries))
    similar = _similar(held_out.pairs, queries=queries, rows=rows)
    judged = np.unique(similar[:, 0])
    answers = [
        _answers(values, stored_values, queries=queries, rows=rows)
        for values in (before_values, after_values)
    ]
    recalls = [own.recall for own in answers]
    before, after = (_are_pairs(judged, own.rows[judged], similar) for own in answers)
    negative, positive = _share(before & ~after), _share(~before & after)
    points = {
        name: _operating_point(answers, held_out.pairs, threshold=threshold)
        for name, threshold in (thresholds or {}).items()
    }
    covered_before, covered_after = (
        _coverage(encoder, values, stored_values, queries=queries, rows=rows)
        for encoder, values in ((old, before_values), (new, after_values))
    )
    reasons = _recall_reasons(*recalls, tolerance=recall_tolerance)
    if negative > flip_tolerance:
        reasons.append(f"{negative:.4f} of the answers turn wrong, tolerance {flip_tolerance}")
    if covered_after < min(COVERAGE, covered_before):
        reasons.append(
            f"radii hold {covered_after:.5f} of the near pairs, expected {COVERAGE} or, as before,"
            f" {covered_before:.5f}"
        )
    for name, point in points.items():
        reasons += _precision_reasons(name, point, tolerance=precision_tolerance)
    return PairGateReport(
        recall_before=recalls[0],
        recall_after=recalls[1],
        judged_count=before.size,
        right_before=_share(before),
        negative_flips=negative,
        positive_flips=positive,
        coverage_before=covered_before,
        coverage_after=covered_after,
        accepted=not reasons,
        reasons=tuple(reasons),
        operating_points=points,
    )


def _recall_reasons(before: float, after: float, *, tolerance: float) -> list[str]:
    if np.isnan(before) or np.isnan(after):
        return [f"nothing was judged: no query has {LEAST_ROWS} rows besides its own"]
    if before - after > tolerance:
        return [f"recall of neighbours falls from {before:.4f} to {after:.4f}, tolerance {tolerance}"]
    return []


def _precision_reasons(name: str, point: OperatingPoint, *, tolerance: float) -> list[str]:
    before, after = point.precision_before, point.precision_after
    if before is None or after is None or min(point.judged_before, point.judged_after) < LEAST_JUDGED_HITS:
        return []
    if share_bounds(round(after * point.judged_after), point.judged_after)[1] < before - tolerance:
        fall = f"falls from {before:.4f} to {after:.4f}, tolerance {tolerance}"
        return [f"precision at the threshold of {name} {fall}"]
    return []


def _similar(
    pairs: NDArray[np.int64], *, queries: NDArray[np.float32], rows: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Return query and row of the similar pairs, but of a query's own row, int64 [s, 2].

    Raises: TrainingDataError.
    """
    query_count, row_count = len(queries), len(rows)
    if query_count == 0 or row_count == 0:
        raise TrainingDataError(f"{query_count} queries on {row_count} rows judge nothing")
    outside = (pairs[:, :2] < 0) | (pairs[:, :2] >= [query_count, row_count])
    for pair in np.flatnonzero(outside.any(axis=1))[:1]:
        raise TrainingDataError(
            f"pair {pair} refers to query {pairs[pair, 0]} and row {pairs[pair, 1]}, there are {query_count}"
            f" and {row_count}"
        )
    similar = pairs[pairs[:, 2] == 1, :2]
    cosines = np.einsum("pd,pd->p", queries[similar[:, 0]], rows[similar[:, 1]])
    others: NDArray[np.int64] = similar[cosines < OWN_COSINE]
    return others


def _candidate_count(row_count: int) -> int:
    return min(CANDIDATE_COUNT, max(NEIGHBOUR_COUNT, int(CANDIDATE_SHARE * row_count)))


def _agreement(
    query_values: NDArray[np.float32], stored: NDArray[np.float32], *, copies: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return products of codes in -1/+1, float32 [q, n], the lowest for copies bool [q, n]."""
    agreement = signs(query_values) @ stored.T
    agreement[copies] = -np.inf
    return agreement


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """What an encoder's queries find. rows: int64 [q], each query's best candidate after an exact rerank.
    distances: float32 [q], to it. recall: share of exact neighbours among the candidates; NaN where no query
    has enough rows."""

    rows: NDArray[np.int64]
    distances: NDArray[np.float32]
    recall: float


def _answers(
    query_values: NDArray[np.float32],
    stored_values: NDArray[np.float32],
    *,
    queries: NDArray[np.float32],
    rows: NDArray[np.float32],
) -> _Answers:
    stored, count = signs(stored_values), _candidate_count(len(rows))
    answers = np.empty(len(queries), dtype=np.int64)
    distances = np.empty(len(queries), dtype=np.float32)
    recalls, judged = 0.0, 0
    for start in range(0, len(queries), QUERY_CHUNK):
        chunk = slice(start, start + QUERY_CHUNK)
        cosines = queries[chunk] @ rows.T  # [chunk, n]
        copies = cosines >= OWN_COSINE
        cosines[copies] = -2.0
        candidates = top_columns(_agreement(query_values[chunk], stored, copies=copies), count=count)
        near = np.take_along_axis(cosines, candidates, axis=1)
        best, each = near.argmax(axis=1), np.arange(len(near))
        answers[chunk] = candidates[each, best]
        distances[chunk] = 1 - near[each, best]
        enough = np.count_nonzero(~copies, axis=1) >= LEAST_ROWS
        if enough.any():
            truth = top_columns(cosines[enough], count=NEIGHBOUR_COUNT)
            recalls += recall_at_k(candidates[enough], truth) * len(truth)
            judged += len(truth)
    return _Answers(answers, distances, recalls / judged if judged else float("nan"))


def _are_pairs(
    queries: NDArray[np.int64], rows: NDArray[np.int64], pairs: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Tell of each query and row whether they are one of the pairs int64 [p, 2 or more], bool [q]."""
    width = 1 + max(rows.max(initial=0), pairs[:, 1].max(initial=0))
    return np.isin(queries * width + rows, pairs[:, :2] @ [width, 1])


def _operating_point(
    answers: Sequence[_Answers], pairs: NDArray[np.int64], *, threshold: float
) -> OperatingPoint:
    hits: list[int] = []
    judged: list[int] = []
    precisions: list[float | None] = []
    for own in answers:
        served = np.flatnonzero(own.distances <= threshold)
        known = served[_are_pairs(served, own.rows[served], pairs)]
        # A pair that is judged both ways is right: one user at least was content.
        right = _are_pairs(known, own.rows[known], pairs[pairs[:, 2] == 1])
        hits.append(served.size)
        judged.append(known.size)
        precisions.append(float(right.mean()) if right.size else None)
    return OperatingPoint(threshold, *hits, *judged, *precisions)


def _coverage(
    encoder: Encoder,
    query_values: NDArray[np.float32],
    stored_values: NDArray[np.float32],
    *,
    queries: NDArray[np.float32],
    rows: NDArray[np.float32],
) -> float:
    counts = tuple(encoder.radius_table.columns)
    query_words, stored_words = code_words(query_values > 0), code_words(stored_values > 0)
    tables = [list(encoder.radii(distance).values()) for distance in COVERAGE_DISTANCES]
    near_counts, held_counts = (np.zeros(len(COVERAGE_DISTANCES), dtype=np.int64) for _ in range(2))
    for start in range(0, len(queries), QUERY_CHUNK):
        cosine_distances = 1 - queries[start : start + QUERY_CHUNK] @ rows.T  # [chunk, n]
        query, row = np.nonzero(cosine_distances <= max(COVERAGE_DISTANCES))
        near = cosine_distances[query, row]
        hamming = leading_distances(query_words[start + query], stored_words[row], counts=counts)
        for index, (distance, radii) in enumerate(zip(COVERAGE_DISTANCES, tables, strict=True)):
            within = near <= distance
            near_counts[index] += np.count_nonzero(within)
            held_counts[index] += np.count_nonzero((hamming[within] <= radii).all(axis=1))
    known = near_counts >= COVERAGE_LEAST_PAIRS
    return float((held_counts[known] / near_counts[known]).min()) if known.any() else float("nan")


def _share(marks: NDArray[np.bool_]) -> float:
    return float(marks.mean()) if marks.size else float("nan")

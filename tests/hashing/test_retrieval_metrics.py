import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing.metrics import (
    class_retrieval_map,
    code_recall,
    hit_rate_at_error,
    mean_average_precision,
    pair_auc,
    recall_at_k,
    wrong_share_at_hit_rate,
)


def _average_precision(scores: list[float], relevant: list[bool]) -> float:
    hits, total = 0, 0.0
    for rank, row in enumerate(sorted(range(len(scores)), key=lambda row: -scores[row]), start=1):
        if relevant[row]:
            hits += 1
            total += hits / rank
    return total / hits


@given(
    scores=st.lists(st.integers(-1000, 1000), min_size=1, max_size=30, unique=True),
    pick=st.randoms(use_true_random=False),
)
def test_map_equals_the_loop_over_ranks(scores: list[int], pick) -> None:
    relevant = [pick.random() < 0.4 for _ in scores]
    relevant[pick.randrange(len(scores))] = True
    got = mean_average_precision(np.array([scores], dtype=np.float64), np.array([relevant]), seed=0)
    assert got == pytest.approx(_average_precision([float(score) for score in scores], relevant))


def test_map_is_the_mean_over_queries_with_a_relevant_row() -> None:
    scores = np.array([[3.0, 2.0, 1.0]] * 3)
    relevant = np.array([[True, False, False], [False, True, False], [False, False, False]])
    assert mean_average_precision(scores, relevant, seed=0) == pytest.approx((1 + 0.5) / 2)


def test_map_without_any_relevant_row_is_nan() -> None:
    assert np.isnan(mean_average_precision(np.ones((2, 3)), np.zeros((2, 3), dtype=bool), seed=0))


def test_ties_are_broken_at_random() -> None:
    relevant = np.zeros((400, 200), dtype=bool)
    relevant[:, :20] = True  # in front: an order that kept positions would score 1
    assert mean_average_precision(np.zeros((400, 200)), relevant, seed=0) == pytest.approx(0.13, abs=0.03)


def test_ties_are_broken_alike_for_one_seed() -> None:
    relevant = np.random.default_rng(0).random((5, 50)) < 0.2
    scores = np.zeros((5, 50))
    assert mean_average_precision(scores, relevant, seed=3) == mean_average_precision(
        scores, relevant, seed=3
    )


def test_recall_counts_true_ids_found() -> None:
    found = np.array([[5, 1, 9], [-1, -1, 4]])
    truth = np.array([[1, 2], [4, 4]])
    assert recall_at_k(found, truth) == 0.75


def test_class_retrieval_scores_rows_that_share_a_label() -> None:
    bits = np.array([[True, True], [False, False], [True, False]])
    values = np.array([[1.0, 0.9]], dtype=np.float32)  # ranks rows 0, 2, 1
    got = class_retrieval_map(
        values, bits, query_labels=[["a", "b"]], row_labels=[["a"], ["b", "c"], ["c"]], seed=0
    )
    assert got == pytest.approx((1 + 2 / 3) / 2)


def test_class_retrieval_ignores_queries_of_absent_labels() -> None:
    bits = np.array([[True], [False]])
    values = np.array([[1.0], [1.0]], dtype=np.float32)
    got = class_retrieval_map(values, bits, query_labels=[["a"], ["z"]], row_labels=[["a"], ["b"]], seed=0)
    assert got == 1.0


def test_code_recall_compares_code_order_with_exact_order() -> None:
    rows = np.eye(4, dtype=np.float32)
    queries = rows[:2]
    same = np.where(np.eye(4), 1, -1).astype(np.float32)
    swapped = same[[1, 0, 2, 3]]
    recall = [
        code_recall(same[:2], stored, queries=queries, rows=rows, truth_count=1, candidate_count=1)
        for stored in (same, swapped)
    ]
    assert recall == [1.0, 0.0]


@given(pairs=st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=1, max_size=40))
def test_auc_equals_the_loop_over_pairs_of_pairs(pairs: list[tuple[int, bool]]) -> None:
    similar = [score for score, kind in pairs if kind]
    others = [score for score, kind in pairs if not kind]
    got = pair_auc(np.array([score for score, _ in pairs], dtype=np.float32), np.array([k for _, k in pairs]))
    if not similar or not others:
        assert np.isnan(got)
        return
    above = sum((mine > other) + (mine == other) / 2 for mine in similar for other in others)
    assert got == pytest.approx(above / (len(similar) * len(others)))


SCORED_PAIRS = st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=1, max_size=40)


def _scored(pairs: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score for score, _ in pairs], dtype=np.float64), np.array([same for _, same in pairs])


@given(pairs=SCORED_PAIRS, hit_rate=st.floats(0.05, 1))
def test_wrong_share_is_the_mean_over_orders_of_ties(pairs: list[tuple[int, bool]], hit_rate: float) -> None:
    scores, same = _scored(pairs)
    got = wrong_share_at_hit_rate(scores, same, hit_rate=hit_rate)
    taken = round(hit_rate * len(pairs))
    if taken == 0:
        assert np.isnan(got)
        return
    # Of each value of the score an equal share of its pairs is wrong, whichever of them come first.
    wrong, left = 0.0, taken
    for value in sorted(set(scores.tolist()), reverse=True):
        level = [not own for score, own in pairs if score == value]
        part = min(left, len(level))
        wrong += part * sum(level) / len(level)
        left -= part
    assert got == pytest.approx(wrong / taken)


@given(pairs=SCORED_PAIRS, error=st.floats(0, 1))
def test_hit_rate_is_of_the_lowest_threshold_that_keeps_the_error(
    pairs: list[tuple[int, bool]], error: float
) -> None:
    scores, same = _scored(pairs)
    best = 0.0
    for threshold in set(scores.tolist()):
        taken = [own for score, own in pairs if score >= threshold]
        if sum(not own for own in taken) <= error * len(pairs):
            best = max(best, len(taken) / len(pairs))
    assert hit_rate_at_error(scores, same, error=error) == pytest.approx(best)


def test_figures_of_no_pairs_are_nan() -> None:
    scores, same = np.empty(0), np.empty(0, dtype=bool)
    assert np.isnan(wrong_share_at_hit_rate(scores, same, hit_rate=0.2))
    assert np.isnan(hit_rate_at_error(scores, same, error=0.01))

"""The gate of an updated instance map, against brute force."""

from dataclasses import replace

import numpy as np
import pytest

from hashing import (
    DimensionError,
    EmbeddingsError,
    Encoder,
    TrainingDataError,
    UnknownModalityError,
    pair_gate,
)
from hashing.drift import fit_drift_reference
from hashing.embeddings import signs
from hashing.metrics import top_columns
from hashing.pair_gate import HeldOutPairs, evaluate_pair_update
from hashing.projection import Projection, fit_rotation
from hashing.radius import RadiusTable

BITS = 128
COUNTS = (64, 128)


def _encoder(projection: Projection, *, radius: int | None = None) -> Encoder:
    table = RadiusTable.unlimited(BITS)
    if radius is not None:
        table = RadiusTable({64: (radius // 2,) * 100, 128: (radius,) * 100})
    rows = np.eye(projection.dim, dtype=np.float32)
    return Encoder(
        projections={"text": projection},
        radius_table=table,
        drift_reference=fit_drift_reference(projection.project(rows)),
    )


@pytest.fixture(scope="module")
def held_out(draw_clusters) -> HeldOutPairs:
    rows, _ = draw_clusters(class_count=40, rows_per_class=20)
    queries, _ = draw_clusters(class_count=40, rows_per_class=2, seed=3)
    rng = np.random.default_rng(0)
    nearest = np.argmax(queries @ rows.T, axis=1)
    similar = np.column_stack([np.arange(60), nearest[:60], np.ones(60, dtype=int)])
    more = np.column_stack([np.arange(20), rng.integers(0, len(rows), 20), np.ones(20, dtype=int)])
    other = np.column_stack([np.arange(80), nearest, np.zeros(80, dtype=int)])[60:]
    return HeldOutPairs(rows=rows, queries=queries, pairs=np.concatenate([similar, more, other]))


@pytest.fixture(scope="module")
def old(held_out) -> Encoder:
    return _encoder(fit_rotation(held_out.rows, code_bits=BITS, seed=0))


def _moved(encoder: Encoder, *, by: float, radius: int | None = None) -> Encoder:
    own = encoder.projections["text"]
    noise = np.random.default_rng(1).standard_normal(own.weight.shape, dtype=np.float32)
    return _encoder(Projection(mean=own.mean, weight=own.weight + np.float32(by) * noise), radius=radius)


def test_figures_are_those_of_brute_force(held_out, old, monkeypatch) -> None:
    monkeypatch.setattr(pair_gate, "CANDIDATE_COUNT", 3)  # few enough for some answers to be wrong before
    new = _moved(old, by=0.1)
    report = evaluate_pair_update(old, new, held_out, flip_tolerance=1.0, recall_tolerance=1.0)
    right: dict[str, list[bool]] = {"old": [], "new": []}
    recalls: dict[str, list[float]] = {"old": [], "new": []}
    codes = signs(old.instance_bits(held_out.rows))
    for name, encoder in (("old", old), ("new", new)):
        for query, row in enumerate(held_out.queries):
            # Which of equally distant codes are candidates is as `top_columns` has it.
            candidates = top_columns(signs(encoder.instance_bits(row[None])) @ codes.T, count=3)[0]
            cosines = held_out.rows @ row
            recalls[name].append(np.isin(np.argsort(-cosines)[:10], candidates).mean())
            similar = held_out.pairs[(held_out.pairs[:, 0] == query) & (held_out.pairs[:, 2] == 1), 1]
            if similar.size:
                right[name].append(max(candidates, key=lambda own: cosines[own]) in similar)
    before, after = np.array(right["old"]), np.array(right["new"])
    assert report.judged_count == 60 == before.size
    assert report.right_before == before.mean()
    assert report.negative_flips == (before & ~after).mean() > 0.1
    assert report.positive_flips == (~before & after).mean() > 0
    assert report.recall_before == pytest.approx(np.mean(recalls["old"]))
    assert report.recall_after == pytest.approx(np.mean(recalls["new"]))
    assert report.accepted and report.reasons == ()


def test_coverage_is_the_least_share_within_all_radii(held_out, old, monkeypatch) -> None:
    monkeypatch.setattr(pair_gate, "COVERAGE_LEAST_PAIRS", 30)
    new = _moved(old, by=0.03, radius=40)
    report = evaluate_pair_update(old, new, held_out)
    cosine_distances = 1 - held_out.queries @ held_out.rows.T
    flipped = new.instance_bits(held_out.queries)[:, None] != old.instance_bits(held_out.rows)[None]
    within = np.ones(cosine_distances.shape, dtype=bool)
    for count, radius in new.radii(0.1).items():
        within &= np.count_nonzero(flipped[:, :, :count], axis=2) <= radius
    shares = [
        within[cosine_distances <= distance].mean()
        for distance in pair_gate.COVERAGE_DISTANCES
        if np.count_nonzero(cosine_distances <= distance) >= 30
    ]
    assert len(shares) > 1
    assert report.coverage_after == pytest.approx(min(shares))
    assert report.coverage_after < 0.999 < report.coverage_before == 1
    assert not report.accepted
    assert "radii hold" in report.reasons[-1]


def test_radii_that_held_no_more_before_are_no_reason(held_out, old, monkeypatch) -> None:
    monkeypatch.setattr(pair_gate, "COVERAGE_LEAST_PAIRS", 30)
    tight = _moved(old, by=0.0, radius=20)
    report = evaluate_pair_update(tight, tight, held_out)
    assert report.coverage_after == report.coverage_before < 0.99
    assert report.accepted


def test_distances_of_few_pairs_judge_no_coverage(held_out, old, monkeypatch) -> None:
    monkeypatch.setattr(pair_gate, "COVERAGE_LEAST_PAIRS", 10**9)
    report = evaluate_pair_update(old, _moved(old, by=0.0, radius=0), held_out)
    assert np.isnan(report.coverage_before) and np.isnan(report.coverage_after)
    assert report.accepted


@pytest.mark.parametrize("count", [40, 100, 399])
def test_of_few_rows_a_quarter_are_candidates(held_out, old, count: int) -> None:
    few = HeldOutPairs(held_out.rows[::2][:count], held_out.queries, np.zeros((0, 3), dtype=np.int64))
    new = _moved(old, by=2.0)
    report = evaluate_pair_update(old, new, few)
    for encoder, recall in ((old, report.recall_before), (new, report.recall_after)):
        codes, asked = signs(old.instance_bits(few.rows)), signs(encoder.instance_bits(few.queries))
        candidates = top_columns(asked @ codes.T, count=count // 4)
        truth = np.argsort(-(few.queries @ few.rows.T), axis=1)[:, :10]
        expected = np.mean([np.isin(own, found).mean() for own, found in zip(truth, candidates, strict=True)])
        assert recall == pytest.approx(expected)
    assert not report.accepted and "recall of neighbours falls" in report.reasons[0]


def test_too_few_rows_judge_nothing(held_out, old) -> None:
    few = HeldOutPairs(held_out.rows[:39], held_out.queries, np.zeros((0, 3), dtype=np.int64))
    report = evaluate_pair_update(old, old, few)
    assert np.isnan(report.recall_before) and np.isnan(report.recall_after)
    assert not report.accepted and "nothing was judged" in report.reasons[0]


def test_copies_of_the_query_are_no_rows_to_judge_by(held_out, old) -> None:
    rows = np.concatenate([held_out.rows[:39], np.repeat(held_out.queries[:1], 30, axis=0)])
    only = HeldOutPairs(rows, held_out.queries[:1], np.zeros((0, 3), dtype=np.int64))
    assert "nothing was judged" in evaluate_pair_update(old, old, only).reasons[0]


def test_row_that_holds_the_query_is_no_answer_and_no_neighbour(held_out, old, monkeypatch) -> None:
    monkeypatch.setattr(pair_gate, "CANDIDATE_COUNT", 3)  # few enough for a copy to be missed among them
    new = _moved(old, by=0.1)
    plain = evaluate_pair_update(old, new, held_out)
    rows = np.concatenate([held_out.rows, 2 * held_out.queries[:50]])
    own = np.column_stack([np.arange(50), len(held_out.rows) + np.arange(50), np.ones(50, dtype=int)])
    alone = np.column_stack([[79], [len(held_out.rows)], [1]])  # of another query: stays
    joined = replace(held_out, rows=rows, pairs=np.concatenate([held_out.pairs, own]))
    report = evaluate_pair_update(old, new, joined)
    assert report.judged_count == plain.judged_count == 60
    assert evaluate_pair_update(old, new, replace(joined, pairs=own)).judged_count == 0
    assert evaluate_pair_update(old, new, replace(joined, pairs=alone)).judged_count == 1
    codes = signs(old.instance_bits(rows))
    recalls, right = [], []
    for query, row in enumerate(held_out.queries):
        cosines = rows @ row / np.linalg.norm(rows, axis=1)
        agreement = signs(new.instance_bits(row[None])) @ codes.T
        copies = cosines > 0.9999
        cosines[copies], agreement[:, copies] = -2, -np.inf
        candidates = top_columns(agreement, count=3)[0]
        recalls.append(np.isin(np.argsort(-cosines)[:10], candidates).mean())
        similar = held_out.pairs[(held_out.pairs[:, 0] == query) & (held_out.pairs[:, 2] == 1), 1]
        if similar.size:
            right.append(max(candidates, key=lambda found: cosines[found]) in similar)
    assert report.recall_after == pytest.approx(np.mean(recalls))
    expected = np.mean(right)
    assert report.right_before - report.negative_flips + report.positive_flips == pytest.approx(expected)


def test_the_same_map_changes_nothing(held_out, old) -> None:
    report = evaluate_pair_update(old, old, held_out, recall_tolerance=0.0, flip_tolerance=0.0)
    assert report.accepted
    assert report.negative_flips == report.positive_flips == 0
    assert report.recall_before == report.recall_after


@pytest.mark.parametrize(("tolerances", "message"), [((0.0, 1.0), "recall"), ((1.0, 0.0), "turn wrong")])
def test_what_is_lost_beyond_a_tolerance_is_a_reason(held_out, old, tolerances, message: str) -> None:
    new = _moved(old, by=0.5)
    report = evaluate_pair_update(
        old, new, held_out, recall_tolerance=tolerances[0], flip_tolerance=tolerances[1]
    )
    assert not report.accepted
    assert len(report.reasons) == 1 and message in report.reasons[0]


def test_without_a_similar_pair_no_answer_is_judged(held_out, old) -> None:
    pairs = held_out.pairs[held_out.pairs[:, 2] == 0]
    report = evaluate_pair_update(old, old, replace(held_out, pairs=pairs))
    assert report.judged_count == 0
    assert np.isnan(report.negative_flips)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"pairs": np.array([[80, 0, 1]])}, TrainingDataError),
        ({"pairs": np.array([[0, 800, 1]])}, TrainingDataError),
        ({"pairs": np.array([[-1, 0, 1]])}, TrainingDataError),
        ({"queries": np.zeros((0, 32), dtype=np.float32)}, TrainingDataError),
        ({"rows": np.zeros((0, 32), dtype=np.float32)}, TrainingDataError),
        ({"queries": np.full((80, 32), np.nan)}, EmbeddingsError),
        ({"rows": np.zeros((800, 8), dtype=np.float32)}, DimensionError),
    ],
)
def test_what_judges_nothing_is_refused(held_out, old, changed, error) -> None:
    with pytest.raises(error):
        evaluate_pair_update(old, old, replace(held_out, **changed))


def test_unknown_modality_is_refused(held_out, old) -> None:
    with pytest.raises(UnknownModalityError):
        evaluate_pair_update(old, old, held_out, modality="image")


def test_operating_points_are_those_of_brute_force(old: Encoder, held_out: HeldOutPairs) -> None:
    new = _moved(old, by=2.0)
    thresholds = {"strict": 0.15, "loose": 0.6, "none": 0.0}
    report = evaluate_pair_update(old, new, held_out, thresholds=thresholds)
    known = {(query, row): label for query, row, label in held_out.pairs.tolist()}
    known |= {(query, row): 1 for query, row, label in held_out.pairs.tolist() if label == 1}
    cosines = held_out.queries @ held_out.rows.T
    stored = signs(old.instance_values(held_out.rows))
    served = []
    for encoder in (old, new):
        agreement = signs(encoder.instance_values(held_out.queries)) @ stored.T
        candidates = top_columns(agreement, count=100)
        best = [own[np.argmax(cosines[query, own])] for query, own in enumerate(candidates)]
        served.append([(query, int(row), 1 - cosines[query, row]) for query, row in enumerate(best)])
    assert set(report.operating_points) == set(thresholds)
    for name, threshold in thresholds.items():
        point = report.operating_points[name]
        hits = [[(query, row) for query, row, distance in own if distance <= threshold] for own in served]
        assert [point.hits_before, point.hits_after] == [len(own) for own in hits]
        labels = [[known[pair] for pair in own if pair in known] for own in hits]
        assert [point.judged_before, point.judged_after] == [len(own) for own in labels]
        expected = [sum(own) / len(own) if own else None for own in labels]
        assert [point.precision_before, point.precision_after] == expected
    assert report.operating_points["loose"].judged_before > 50


def test_gate_refuses_a_loss_of_precision_at_a_threshold(old: Encoder, held_out: HeldOutPairs) -> None:
    """The new encoder finds wrong answers within the threshold: the right ones are another's candidates."""
    new = _moved(old, by=2.0)
    tolerant = {"recall_tolerance": 1.0, "flip_tolerance": 1.0}
    answers = pair_gate._answers(
        new.instance_values(held_out.queries),
        old.instance_values(held_out.rows),
        queries=held_out.queries,
        rows=held_out.rows,
    ).rows
    nearest = np.argmax(held_out.queries @ held_out.rows.T, axis=1)
    right = np.column_stack([np.arange(80), nearest, np.ones(80)])
    wrong = np.column_stack([np.arange(80), answers, np.zeros(80)])[answers != nearest]
    judged = HeldOutPairs(
        rows=held_out.rows, queries=held_out.queries, pairs=np.concatenate([right, wrong]).astype(np.int64)
    )
    report = evaluate_pair_update(old, new, judged, thresholds={"faq": 0.8}, **tolerant)
    assert [reason for reason in report.reasons if "precision at the threshold of faq falls" in reason]
    assert not report.accepted
    lenient = evaluate_pair_update(
        old, new, judged, thresholds={"faq": 0.8}, precision_tolerance=1.0, **tolerant
    )
    assert not [reason for reason in lenient.reasons if "precision" in reason]


def test_few_hits_on_either_side_decide_nothing() -> None:
    def reasons(*, before: tuple[int, float], after: tuple[int, float]) -> list[str]:
        point = pair_gate.OperatingPoint(0.1, 99, 99, before[0], after[0], before[1], after[1])
        return pair_gate._precision_reasons("faq", point, tolerance=0.01)

    assert reasons(before=(1, 1.0), after=(50, 0.98)) == []
    assert reasons(before=(50, 1.0), after=(49, 0.5)) == []
    assert reasons(before=(50, 1.0), after=(50, 0.98)) == [], "one of 50 may be chance"
    assert len(reasons(before=(50, 1.0), after=(50, 0.9))) == 1

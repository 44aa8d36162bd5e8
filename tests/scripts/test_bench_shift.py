"""The benchmark of shift detection, on a small folder of the form that it reads."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hashing.shift_reference import ShiftReference, fit_shift_reference
from scripts.arguments import CommandError
from scripts.bench import shift_detection
from scripts.bench.shift_detection import count_alarms, flagged_share, load_domain_queries, shift_figures

DOMAINS = {"money": ["pay", "save"], "home": ["cook", "clean"], "road": ["drive", "park"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three domains, each in a corner of its own; one intent belongs to no domain."""
    rng = np.random.default_rng(0)
    rows, intents, splits = [], [], []
    for names in [*DOMAINS.values(), ["oos"]]:
        corner = rng.standard_normal(24)
        for name in names:
            centre = corner + 0.5 * rng.standard_normal(24)
            for split, count in (("train", 60), ("val", 120), ("test", 130)):
                rows.append(centre + 0.4 * rng.standard_normal((count, 24)))
                intents += [name] * count
                splits += [split] * count
    embeddings = np.concatenate(rows)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.savez(tmp_path / "intents.npz", embeddings=embeddings.astype(np.float16), intent=intents, split=splits)
    (tmp_path / "intent_domains.json").write_text(json.dumps(DOMAINS))
    return tmp_path


def distances_by_hand(folder: Path, left_out: str) -> NDArray[np.float64]:
    """Best distances of the known test queries among the training rows of the other domains."""
    archive = np.load(folder / "intents.npz")
    known = np.isin(archive["intent"], [n for d, names in DOMAINS.items() if d != left_out for n in names])
    rows = archive["embeddings"].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    stored, asked = rows[known & (archive["split"] == "train")], rows[known & (archive["split"] == "test")]
    best: NDArray[np.float64] = 1 - (asked @ stored.T).max(axis=1)
    return best


def test_best_distances_leave_out_the_rows_of_the_unseen_domain(folder: Path) -> None:
    queries = load_domain_queries(folder, tuning=False)
    assert queries.names == tuple(DOMAINS)
    known, unseen = queries.leave_out(1)
    np.testing.assert_allclose(known, distances_by_hand(folder, "home"), atol=1e-5)
    assert unseen.size == 260
    assert np.median(unseen) > np.quantile(known, 0.9)


def test_tuning_asks_queries_of_the_validation_split(folder: Path) -> None:
    assert len(load_domain_queries(folder, tuning=True).domains) == 3 * 240


def test_figures_tell_a_new_domain_from_known_ones(folder: Path) -> None:
    figures = list(shift_figures(folder, quick=True))
    values = {(figure.case[:4], figure.metric): figure.value for figure in figures}
    assert values["100%", "flagged_within_4_batches"] == 1
    assert values["100%", "flagged_within_4_batches_worst"] == 1
    assert (
        values["30% ", "flagged_within_4_batches"] >= values["30% ", "flagged_within_4_batches_worst"] > 0.3
    )
    assert 0 <= values["quer", "false_alarms_per_10000_batches"] < 100
    assert {(figure.bench, figure.dataset, figure.batch) for figure in figures} == {
        ("lifelong", "intents", 50)
    }


def test_no_shift_is_not_flagged_and_every_alarm_is_counted() -> None:
    rng = np.random.default_rng(1)
    known = rng.beta(1.2, 6, 4_000).astype(np.float32)
    reference = fit_shift_reference(known[:2_000])
    flagged = flagged_share(reference, known, known, share=1.0, streams=50, rng=rng)
    assert flagged <= 0.04
    moved = np.full(10, 0.9, dtype=np.float32)
    # 11 to 20 such queries make an alarm, so 500 of them raise 25 to 50.
    assert 25 <= count_alarms(reference, moved, batches=10, rng=rng) <= 50


def test_a_move_closer_is_no_flag_and_streams_with_an_alarm_before_do_not_count() -> None:
    rng = np.random.default_rng(2)
    known = rng.beta(1.2, 6, 4_000).astype(np.float32)
    eager = fit_shift_reference(known, alarms_per_block=0.1)
    far, near = np.full(9, 0.9, dtype=np.float32), np.zeros(9, dtype=np.float32)
    assert flagged_share(eager, known, far, share=1.0, streams=60, rng=rng) == 1
    assert flagged_share(eager, known, near, share=1.0, streams=60, rng=rng) == 0


def test_the_seeds_are_all_in_the_figures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def count(reference: ShiftReference, known: NDArray[np.float32], *, batches: int, rng: object) -> int:
        assert reference.row_count == known.size, "halves"
        seen.append(known.size)
        return len(seen)

    monkeypatch.setattr(shift_detection, "count_alarms", count)
    monkeypatch.setattr(shift_detection, "flagged_share", lambda *_, **__: 0.5)
    monkeypatch.setattr(shift_detection, "_QUIET_BATCHES", 100)
    lines = {figure.metric: figure for figure in shift_figures(folder)}
    assert seen == [260] * 9
    assert lines["false_alarms_per_10000_batches"].value == pytest.approx(500)
    assert lines["false_alarms_per_10000_batches"].n == 900
    assert lines["false_alarms_per_10000_batches_worst"].value == 900


@pytest.mark.parametrize("missing", ["intents.npz", "intent_domains.json"])
def test_a_missing_file_is_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(CommandError, match="no intents"):
        next(shift_figures(folder))


def test_a_single_domain_is_refused(folder: Path) -> None:
    (folder / "intent_domains.json").write_text(json.dumps({"money": DOMAINS["money"]}))
    with pytest.raises(CommandError, match="two domains"):
        next(shift_figures(folder))


def test_too_few_queries_for_a_reference_are_refused(folder: Path) -> None:
    (folder / "intent_domains.json").write_text(json.dumps({"money": ["pay"], "home": ["cook"]}))
    with pytest.raises(CommandError, match="left out"):
        next(shift_figures(folder))

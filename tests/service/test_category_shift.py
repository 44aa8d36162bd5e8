"""What one category's lookups teach, when they raise an alarm, and what is kept of that."""

import json
import math
from array import array
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hashing.shift import ShiftMonitor
from hashing.shift_reference import fit_shift_reference
from service.accesses import AccessLog, BestDistances
from service.category_shift import CategoryShift, Conditions, load_alarm
from service.config import ShiftConfig
from service.records import ShiftRecord

LEARNED = 200
CONFIG = ShiftConfig(reference_lookups=LEARNED)
LARGE = 1_000
THRESHOLD = 0.25
RNG = np.random.default_rng(0)
USUAL = RNG.beta(2, 5, 3_000).astype(np.float32)
MOVED = (RNG.beta(2, 5, 1_000) + 0.3).astype(np.float32)


def best(own: Sequence[float] | NDArray[np.float32], stricter: Sequence[float] = ()) -> BestDistances:
    """Distances as a log hands them out."""
    return BestDistances(own=array("f", own), stricter=array("f", stricter))


def observe(shift: CategoryShift, distances: BestDistances, *, now_ms: int = 0, **changed: float) -> bool:
    """One step of a category of ten entries."""
    settings = {"entry_count": 10, "threshold": THRESHOLD, "large_count": LARGE, **changed}
    return shift.observe(distances, now_ms=now_ms, **settings)  # type: ignore[arg-type]


def watching(distances: NDArray[np.float32] = USUAL[:LEARNED]) -> CategoryShift:
    """A category that has learned what is usual."""
    shift = CategoryShift("faq", CONFIG)
    assert observe(shift, best(distances))
    return shift


def stage(shift: CategoryShift) -> str:
    return shift.to_record(version=1).stage


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=30), st.integers(0, 29))
def test_alarm_is_the_monitors_however_the_lookups_are_cut_and_kept(sizes: list[int], kept_at: int) -> None:
    stream = np.concatenate([USUAL[LEARNED:700], MOVED])
    oracle = ShiftMonitor(fit_shift_reference(USUAL[:LEARNED]), category="faq")
    expected = oracle.observe(stream)
    shift, start, step = watching(), 0, 0
    while shift.alarm is None:
        size = sizes[step % len(sizes)]
        observe(shift, best(stream[start : start + size]))
        if step == kept_at:
            kept = shift.to_record(version=3)
            shift = CategoryShift("faq", CONFIG)
            assert shift.restore(kept)
            assert shift.to_record(version=3) == kept
        start, step = start + size, step + 1
    assert shift.alarm == expected


def test_unmoved_lookups_raise_no_alarm() -> None:
    shift = watching()
    for part in np.split(USUAL[LEARNED:], 20):
        assert not observe(shift, best(part))
    assert (stage(shift), shift.lookup_count) == ("watching", USUAL.size - LEARNED)


def test_after_an_alarm_nothing_changes_any_more() -> None:
    shift = watching()
    assert observe(shift, best(MOVED), now_ms=5)
    before = shift.to_record(version=1)
    assert not observe(shift, best(USUAL), now_ms=9, entry_count=500, threshold=0.5)
    assert (shift.to_record(version=1), stage(shift)) == (before, "alarm")


def test_lookups_that_depend_on_each_other_need_more_evidence() -> None:
    limits = []
    for run_length in (1, 5):
        shift = CategoryShift("faq", replace(CONFIG, run_length=run_length))
        observe(shift, best(USUAL[:LEARNED]))
        observe(shift, best(MOVED))
        assert shift.alarm is not None
        limits.append(shift.alarm.limit)
    assert limits[1] > 3 * limits[0]


def test_too_few_lookups_are_learned_from_and_kept() -> None:
    shift = CategoryShift("faq", CONFIG)
    assert not observe(shift, best(USUAL[: LEARNED - 1]))
    other = CategoryShift("faq", CONFIG)
    assert other.restore(shift.to_record(version=1))
    assert (stage(other), other.lookup_count) == ("learning", LEARNED - 1)
    assert observe(other, best(USUAL[LEARNED - 1 : LEARNED]))
    assert stage(other) == "watching"


def test_equal_distances_teach_nothing_and_are_forgotten() -> None:
    shift = CategoryShift("faq", CONFIG)
    assert not observe(shift, best([0.0] * LEARNED))
    assert (stage(shift), shift.lookup_count) == ("learning", 0)
    assert observe(shift, best(USUAL[:LEARNED]))


@pytest.mark.parametrize(("entry_count", "learns"), [(8, False), (12, False), (7, True), (13, True)])
def test_a_fifth_more_or_fewer_entries_have_the_usual_learned_anew(entry_count: int, *, learns: bool) -> None:
    shift = watching()
    assert observe(shift, best(USUAL[:50]), entry_count=entry_count) is learns
    assert (stage(shift), shift.lookup_count) == ("learning" if learns else "watching", 50)


@pytest.mark.parametrize(("entry_count", "learned"), [(LARGE // 2 - 1, 3), (LARGE // 2, 4)])
def test_of_a_large_category_what_lies_beyond_the_threshold_counts_as_at_it(
    entry_count: int, learned: int
) -> None:
    """In a small one what found nothing is left out, and thresholds of lookups make no difference."""
    shift = CategoryShift("faq", CONFIG)
    found = best([0.1, 0.4, math.inf, math.inf], stricter=[0.2])
    observe(shift, found, entry_count=entry_count)
    assert shift.lookup_count == learned
    kept = json.loads(shift.to_record(version=1).state)["learned"]
    assert kept == pytest.approx([0.1, 0.4, 0.2] if learned == 3 else [0.1, 0.25, 0.25, 0.25])


@pytest.mark.parametrize(("entry_count", "stays"), [(10, True), (LARGE, False)])
def test_another_threshold_matters_to_a_large_category_alone(entry_count: int, *, stays: bool) -> None:
    shift = CategoryShift("faq", CONFIG)
    observe(shift, best(USUAL[:LEARNED]), entry_count=entry_count)
    observe(shift, best([0.1]), entry_count=entry_count, threshold=0.3)
    assert (stage(shift) == "watching") is stays


def test_a_large_category_tells_a_shift_by_its_misses() -> None:
    shift = CategoryShift("faq", CONFIG)
    observe(shift, best(USUAL[:1_000]), entry_count=LARGE)
    observe(shift, best(USUAL[1_000:]), entry_count=LARGE)
    assert shift.alarm is None
    observe(shift, best([math.inf] * 200), entry_count=LARGE)
    assert shift.alarm is not None and shift.alarm.direction == "farther"


@pytest.mark.parametrize("moved", [MOVED, USUAL[:1_000] + np.float32(0.06)], ids=["far", "slightly"])
def test_a_shift_began_about_when_its_first_lookup_was_taken(moved: NDArray[np.float32]) -> None:
    shift, times = watching(USUAL[:2_000]), []
    for second, part in enumerate([*np.split(USUAL[2_000:], 200), *np.split(moved, 200)]):
        times += [second * 1_000] * len(part)
        observe(shift, best(part), now_ms=second * 1_000)
    assert shift.alarm is not None and shift.since_ms is not None
    since = shift.alarm.since
    assert times[max(0, since - 30)] <= shift.since_ms <= times[since]
    assert len(json.loads(shift.to_record(version=1).state)["marks"]) < 100


def test_lookups_that_found_nothing_do_not_date_a_shift() -> None:
    shift = watching()
    observe(shift, best([math.inf]), now_ms=1_000)
    observe(shift, best(MOVED), now_ms=9_000)
    assert shift.since_ms == 9_000


DAMAGED = ["", "{", "null", "[]", "3", "{}", '{"monitor": 1}', '{"conditions": {}}', '{"tables": {}}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_reference_is_learned_anew(text: str) -> None:
    shift = CategoryShift("faq", CONFIG)
    assert not shift.restore(replace(watching().to_record(version=1), reference=text))
    assert (stage(shift), shift.lookup_count) == ("learning", 0)
    assert observe(shift, best(USUAL[:LEARNED]))


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_state_is_watched_anew_with_what_is_usual(text: str) -> None:
    kept = watching().to_record(version=1)
    shift = CategoryShift("faq", CONFIG)
    assert not shift.restore(replace(kept, state=text))
    assert shift.to_record(version=1).reference == kept.reference
    assert observe(shift, best(MOVED)) and stage(shift) == "alarm"


@pytest.mark.parametrize("text", [*DAMAGED[:5], '{"conditions": {}}', '{"conditions": 1, "learned": []}'])
def test_damaged_learning_begins_anew(text: str) -> None:
    shift = CategoryShift("faq", CONFIG)
    shift.restore(ShiftRecord(state=text))
    assert (stage(shift), shift.lookup_count) == ("learning", 0)
    assert observe(shift, best(USUAL[:LEARNED]))


def test_learned_distances_that_are_no_numbers_are_forgotten() -> None:
    shift = CategoryShift("faq", CONFIG)
    conditions = {"entry_count": 10, "ceiling": 2.0}
    state = json.dumps({"conditions": conditions, "learned": [0.5, math.nan]})
    assert not shift.restore(ShiftRecord(state=state))
    assert shift.lookup_count == 0


@pytest.mark.parametrize("text", [*DAMAGED, '{"alarm": {"direction": "up"}, "since_ms": 1}'])
def test_a_damaged_alarm_stays_an_alarm_that_cannot_be_explained(text: str) -> None:
    alarmed = watching()
    observe(alarmed, best(MOVED), now_ms=7)
    shift = CategoryShift("faq", CONFIG)
    shift.restore(replace(alarmed.to_record(version=1), alarm=text))
    assert (stage(shift), load_alarm(text)) == ("alarm", (None, None))


def test_conditions_of_an_empty_category_hold_while_it_is_empty() -> None:
    conditions = Conditions.of(entry_count=0, threshold=0.1, large_count=LARGE)
    assert conditions.hold(entry_count=0, threshold=0.2)
    assert not conditions.hold(entry_count=1, threshold=0.1)


def record(log: AccessLog, *distances: float | None, is_stricter: bool = False, category_id: int = 2) -> None:
    for nearest in distances:
        log.record(
            1,
            category_id,
            outcome="miss_count",
            entry_id=None,
            now_ms=0,
            nearest=nearest,
            is_stricter=is_stricter,
        )


def test_distances_are_kept_in_order_by_category_up_to_the_bound_and_drained_once() -> None:
    log = AccessLog(max_entries=1, max_distances=2)
    record(log, 0.5, None, 0.25, 0.75)
    record(log, 0.125, is_stricter=True)
    record(log, 1.0, category_id=3)
    expected = BestDistances(own=array("f", [0.5, 0.25]), stricter=array("f", [0.125]), left_out_count=1)
    assert log.measured_categories() == [2, 3]
    assert (log.drain_distances([2, 4]), log.drain_distances([2])) == ({2: expected}, {})
    assert log.measured_categories() == [3]


def test_without_a_bound_for_distances_none_are_kept() -> None:
    log = AccessLog(max_entries=1)
    record(log, 0.5)
    assert log.measured_categories() == []

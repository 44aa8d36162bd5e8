"""The monitor of best distances: its alarms against a loop over single queries, and against simulation."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hashing.errors import ConfigError, EmbeddingsError, ShiftStateError, TrainingDataError
from hashing.shift import ShiftAlarm, ShiftMonitor, restore_monitor
from hashing.shift_reference import (
    BLOCK,
    NATS_PER_STEP,
    WINDOW,
    ShiftReference,
    _cusum_limit,
    _rounded_scores,
    _steps_to_limit,
    fit_shift_reference,
    reference_from_numbers,
)

Distances = NDArray[np.float64]


def draw_known(rng: np.random.Generator, count: int) -> Distances:
    """Best distances of a category that knows its queries, about as the intents have them."""
    return rng.beta(1.2, 6, count)


def mix(rng: np.random.Generator, count: int, *, share: float, moved: Distances) -> Distances:
    return np.where(rng.random(count) < share, rng.choice(moved, count), draw_known(rng, count))


def naive_alarm(reference: ShiftReference, distances: Distances) -> tuple[str, str, int, int, float] | None:
    """The statistic, direction, since, at and share of the first alarm, one query after the other."""
    quantiles = np.cumsum(reference.probabilities)[:-1]
    near = int(np.abs(quantiles - 0.75).argmin())
    far = int(np.abs(quantiles - 0.25).argmin())
    bins = [int((reference.edges <= distance).sum()) for distance in distances]
    levels, starts = {"farther": 0, "closer": 0}, {"farther": 0, "closer": 0}

    def share(direction: str, since: int, at: int) -> float:
        asked = bins[since : at + 1]
        if direction == "farther":
            return max(0.0, 1 - sum(b <= near for b in asked) / len(asked) / quantiles[near])
        return max(0.0, 1 - sum(b > far for b in asked) / len(asked) / (1 - quantiles[far]))

    for at, found in enumerate(bins):
        for direction, scores, limit in (
            ("farther", reference.farther, reference.farther_limit),
            ("closer", reference.closer, reference.closer_limit),
        ):
            levels[direction] = max(0, levels[direction] + int(scores[found]))
            if levels[direction] == 0:
                starts[direction] = at + 1
            if levels[direction] >= limit:
                return "mixture", direction, starts[direction], at, share(direction, starts[direction], at)
        if (at + 1) % BLOCK == 0 and at + 1 >= WINDOW:
            total = sum(int(reference.normal_scores[b]) for b in bins[at + 1 - WINDOW : at + 1])
            if abs(total) >= reference.window_limit:
                direction = "farther" if total > 0 else "closer"
                return "window", direction, at + 1 - WINDOW, at, share(direction, at + 1 - WINDOW, at)
    return None


@pytest.fixture(scope="module")
def reference() -> ShiftReference:
    return fit_shift_reference(draw_known(np.random.default_rng(1), 3_000))


@pytest.fixture(scope="module")
def eager() -> ShiftReference:
    """Alarms in one block of twenty, so that a test sees many."""
    return fit_shift_reference(draw_known(np.random.default_rng(2), 20_000), alarms_per_block=0.05)


def observe_cut(monitor: ShiftMonitor, distances: Distances, cuts: list[int]) -> list[ShiftAlarm]:
    pieces = np.split(distances, sorted(cuts))
    return [alarm for piece in pieces if (alarm := monitor.observe(piece)) is not None]


streams = st.builds(
    lambda seed, scale, quiet, after: np.concatenate(
        [
            draw_known(np.random.default_rng(seed), quiet),
            draw_known(np.random.default_rng(seed + 1), after) * scale,
        ]
    ),
    st.integers(0, 10_000),
    st.sampled_from([0.3, 0.8, 1.0, 1.2, 1.3, 3.0]),
    st.integers(0, 300),
    st.integers(1, 500),
)


@settings(max_examples=40, deadline=None)
@given(distances=streams, cuts=st.lists(st.integers(0, 800), max_size=12))
@pytest.mark.parametrize("tests", ["all", "window"])
def test_alarms_are_those_of_a_loop_however_the_stream_is_cut(
    eager: ShiftReference, tests: str, distances: Distances, cuts: list[int]
) -> None:
    if tests == "window":
        eager = replace(eager, farther_limit=10**9, closer_limit=10**9)
    monitor, whole = (ShiftMonitor(eager, category="faq") for _ in range(2))
    alarms = observe_cut(monitor, distances, cuts)
    whole.observe(distances)
    expected = naive_alarm(eager, distances)
    assert monitor.to_numbers() == whole.to_numbers()
    if expected is None:
        assert alarms == []
    else:
        (alarm,) = alarms
        found = (alarm.statistic, alarm.direction, alarm.since, alarm.at)
        assert found == expected[:4]
        assert alarm.share == pytest.approx(expected[4])
        assert alarm.size >= alarm.limit
        assert monitor.alarm == alarm


@settings(max_examples=40, deadline=None)
@given(distances=streams, place=st.integers(0, 800), rest=st.integers(0, 500))
def test_a_restored_monitor_goes_on_where_the_saved_one_stood(
    eager: ShiftReference, distances: Distances, place: int, rest: int
) -> None:
    monitor = ShiftMonitor(eager, category="faq")
    monitor.observe(distances[:place])
    restored = restore_monitor(eager, json.loads(json.dumps(monitor.to_numbers())), category="faq")
    assert restored.observe(distances[place:]) == monitor.observe(distances[place:])
    monitor.restart()
    restored.restart()
    more = draw_known(np.random.default_rng(rest), rest) * 1.5
    assert restored.observe(more) == monitor.observe(more)
    assert restored.to_numbers() == monitor.to_numbers()


def count_alarms(reference: ShiftReference, distances: Distances) -> dict[str, int]:
    monitor, counts = ShiftMonitor(reference, category="faq"), {"mixture": 0, "window": 0}
    for start in range(0, distances.size, 5_000):
        rest = distances[start : start + 5_000]
        while (alarm := monitor.observe(rest)) is not None:
            counts[alarm.statistic] += 1
            rest = rest[alarm.at - monitor.observed_count + rest.size + 1 :]
            monitor.restart()
    return counts


def test_false_alarms_keep_their_rate_and_use_it(eager: ShiftReference) -> None:
    blocks = 4_000
    counts = count_alarms(eager, draw_known(np.random.default_rng(3), blocks * BLOCK))
    assert 0.2 * 0.05 < sum(counts.values()) / blocks < 0.05
    assert counts["window"] > 0 < counts["mixture"]


def test_a_usual_reference_raises_no_false_alarm_in_ten_thousand_batches(reference: ShiftReference) -> None:
    assert sum(count_alarms(reference, draw_known(np.random.default_rng(4), 10_000 * BLOCK)).values()) <= 1


def test_runs_of_alike_queries_raise_no_more_alarms_than_single_ones() -> None:
    known = draw_known(np.random.default_rng(5), 20_000)
    blocks = 3_000
    runs = np.repeat(draw_known(np.random.default_rng(6), blocks * BLOCK // 5), 5)
    single, in_runs = (
        fit_shift_reference(known, alarms_per_block=0.02, run_length=length) for length in (1, 5)
    )
    assert sum(count_alarms(single, runs).values()) / blocks > 0.04
    assert sum(count_alarms(in_runs, runs).values()) / blocks < 0.02
    assert in_runs.farther_limit < 5 * single.farther_limit, "a run is rarer than a query"


def test_a_mixture_of_a_new_topic_is_found_within_four_blocks(reference: ShiftReference) -> None:
    rng = np.random.default_rng(7)
    found, shares = 0, []
    for _ in range(100):
        monitor = ShiftMonitor(reference, category="faq")
        assert monitor.observe(draw_known(rng, 500)) is None
        alarm = monitor.observe(mix(rng, WINDOW, share=0.3, moved=rng.normal(0.5, 0.1, 500)))
        if alarm is not None:
            found += 1
            shares.append(alarm.share)
            assert alarm.statistic == "mixture"
            assert alarm.direction == "farther"
    assert found >= 95
    assert 0.2 < np.median(shares) < 0.4


def test_repeats_are_found_as_closer(reference: ShiftReference) -> None:
    rng = np.random.default_rng(8)
    shares = []
    for _ in range(20):
        monitor = ShiftMonitor(reference, category="faq")
        alarm = monitor.observe(mix(rng, 2_000, share=0.5, moved=np.full(1, 0.001)))
        assert alarm is not None
        assert (alarm.statistic, alarm.direction) == ("mixture", "closer")
        shares.append(alarm.share)
    assert np.median(shares) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("scale", "direction"), [(1.5, "farther"), (0.6, "closer")])
def test_a_small_move_of_all_queries_is_found_by_the_window(
    reference: ShiftReference, scale: float, direction: str
) -> None:
    only_window = replace(reference, farther_limit=10**9, closer_limit=10**9)
    monitor = ShiftMonitor(only_window, category="faq")
    rng = np.random.default_rng(9)
    assert monitor.observe(draw_known(rng, 2_000)) is None
    alarm = monitor.observe(draw_known(rng, 2 * WINDOW) * scale)
    assert alarm is not None
    assert (alarm.statistic, alarm.direction) == ("window", direction)
    assert alarm.at + 1 - alarm.since == WINDOW


def test_fewer_distances_make_every_alarm_later() -> None:
    known = draw_known(np.random.default_rng(10), 20_000)
    stream = mix(np.random.default_rng(11), 4_000, share=0.4, moved=np.full(1, 0.6))
    alarms = []
    few, many = (fit_shift_reference(known[:count]) for count in (300, 20_000))
    for reference in (few, many):
        alarm = ShiftMonitor(reference, category="faq").observe(stream)
        assert alarm is not None
        alarms.append(alarm.at)
    assert alarms[0] > alarms[1]
    assert few.farther.max() < many.farther.max()
    assert few.closer.max() < many.closer.max()
    assert few.window_limit > many.window_limit


def test_the_limit_is_as_rare_as_simulation_finds_it() -> None:
    scores, probabilities = np.array([-9, 1, 8]), np.array([0.45, 0.25, 0.3])
    draws = np.random.default_rng(12).choice(scores, size=100_000, p=probabilities)
    steps, level, start = [], 0, 0
    for step, score in enumerate(draws.tolist(), start=1):
        level = max(0, level + score)
        if level >= 40:
            steps.append(step - start)
            level, start = 0, step
    exact = _steps_to_limit(scores, probabilities, limit=40)
    assert np.mean(steps) == pytest.approx(exact, rel=4 / np.sqrt(len(steps)))
    limit = _cusum_limit(scores, probabilities, rate=(1 + 1e-9) / exact)
    assert limit == 40


def test_after_an_alarm_the_monitor_only_counts_until_it_is_restarted(reference: ShiftReference) -> None:
    far = np.full(100, 0.9)
    monitor = ShiftMonitor(reference, category="faq")
    first = monitor.observe(far)
    assert first is not None
    assert monitor.observe(far) is None
    assert monitor.alarm == first
    monitor.restart()
    assert monitor.alarm is None
    second = monitor.observe(far)
    assert second is not None
    assert second.since == monitor.observed_count - far.size == 200


@pytest.mark.parametrize(
    "wrong", [np.array([0.1, np.nan]), np.array([np.inf]), np.zeros((2, 2)), np.array(0.1)], ids=str
)
def test_distances_that_are_none_are_refused_and_not_observed(
    reference: ShiftReference, wrong: Distances
) -> None:
    monitor = ShiftMonitor(reference, category="faq")
    before = monitor.to_numbers()
    with pytest.raises(EmbeddingsError):
        monitor.observe(wrong)
    assert monitor.to_numbers() == before
    with pytest.raises(EmbeddingsError):
        fit_shift_reference(wrong)


def test_no_distances_change_nothing(reference: ShiftReference) -> None:
    monitor = ShiftMonitor(reference, category="faq")
    before = monitor.to_numbers()
    assert monitor.observe(np.zeros(0)) is None
    assert monitor.to_numbers() == before


@pytest.mark.parametrize("distances", [np.linspace(0, 1, 199), np.zeros(1_000)], ids=["few", "equal"])
def test_distances_that_show_no_shift_are_refused(distances: Distances) -> None:
    with pytest.raises(TrainingDataError):
        fit_shift_reference(distances)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alarms_per_block": 0.0},
        {"alarms_per_block": 9e-13},
        {"alarms_per_block": 1e-16},
        {"alarms_per_block": 1.0},
        {"run_length": 0},
        {"run_length": 51},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        fit_shift_reference(np.linspace(0, 1, 300), **wrong)
    assert raised.value.key in wrong


def test_the_rarest_alarms_that_may_be_asked_for_have_limits() -> None:
    distances = draw_known(np.random.default_rng(4), 300)
    rare, usual = (fit_shift_reference(distances, alarms_per_block=rate) for rate in (1e-12, 1e-4))
    assert rare.window_limit > usual.window_limit and rare.farther_limit > usual.farther_limit


def test_a_repeat_is_one_whichever_way_its_distance_is_computed() -> None:
    rng = np.random.default_rng(6)
    known = np.where(rng.random(2_000) < 0.4, 0.0, draw_known(rng, 2_000))
    asked = rng.choice(known, 5_000)
    for rounding in (-1e-8, 1e-8, -3e-7, -6e-7):
        near = np.where(asked == 0, rounding, asked)
        exact, other = (ShiftMonitor(fit_shift_reference(known), category="faq") for _ in range(2))
        assert exact.observe(asked) is None
        assert other.observe(near) is None
        assert other.to_numbers() == exact.to_numbers()
    known_near = np.where(known == 0, -1e-8, known)
    assert fit_shift_reference(known_near).to_numbers() == fit_shift_reference(known).to_numbers()


def test_equal_distances_in_part_still_make_a_reference() -> None:
    rng = np.random.default_rng(13)
    known = np.where(rng.random(2_000) < 0.4, 0.0, draw_known(rng, 2_000))
    monitor = ShiftMonitor(fit_shift_reference(known), category="faq")
    assert monitor.observe(rng.choice(known, 20_000)) is None
    assert monitor.observe(np.full(50, 0.8)) is not None


def test_normal_scores_have_mean_0_and_deviation_1() -> None:
    rng = np.random.default_rng(14)
    reference = fit_shift_reference(np.where(rng.random(2_000) < 0.4, 0.0, draw_known(rng, 2_000)))
    scores = reference.normal_scores / 1024
    assert reference.probabilities @ scores == pytest.approx(0, abs=0.002)
    assert reference.probabilities @ scores**2 == pytest.approx(1, abs=0.005)


def test_a_reference_comes_back_from_json(reference: ShiftReference) -> None:
    numbers = json.loads(json.dumps(reference.to_numbers()))
    back = reference_from_numbers(numbers)
    assert back.to_numbers() == reference.to_numbers()
    state = ShiftMonitor(reference, category="faq").to_numbers()
    assert restore_monitor(back, state, category="faq").to_numbers() == state


@pytest.mark.parametrize(
    "change",
    [
        {"edges": [0.1]},
        {"farther": [1, 2]},
        {"edges": None},
        {"closer_limit": "ten"},
        {"other": 1},
    ],
    ids=str,
)
def test_numbers_of_no_reference_are_refused(reference: ShiftReference, change: dict[str, Any]) -> None:
    with pytest.raises(ShiftStateError):
        reference_from_numbers({**reference.to_numbers(), **change})


def test_edges_that_fall_are_refused(reference: ShiftReference) -> None:
    numbers = reference.to_numbers()
    with pytest.raises(ShiftStateError, match="rise"):
        reference_from_numbers({**numbers, "edges": numbers["edges"][::-1]})


def test_the_state_of_another_reference_is_refused(reference: ShiftReference, eager: ShiftReference) -> None:
    with pytest.raises(ShiftStateError, match="another reference"):
        restore_monitor(eager, ShiftMonitor(reference, category="faq").to_numbers(), category="faq")


@pytest.mark.parametrize(
    "change", [{"farther": [1]}, {"growing": [0, 0, 0, 50]}, {"closed": [[0, 0, 0]] * 4}, {"alarm": {"a": 1}}]
)
def test_numbers_of_no_state_are_refused(reference: ShiftReference, change: dict[str, Any]) -> None:
    numbers = {**ShiftMonitor(reference, category="faq").to_numbers(), **change}
    with pytest.raises(ShiftStateError):
        restore_monitor(reference, numbers, category="faq")


def test_an_alarm_explains_what_moved_and_by_how_much(reference: ShiftReference) -> None:
    monitor = ShiftMonitor(reference, category="faq")
    alarm = monitor.observe(np.full(40, 0.9))
    assert alarm is not None
    assert alarm.explain() == (
        f"Category faq: about 100% of the last {alarm.at + 1} queries lie farther from what it holds than "
        "they were: a topic that it does not know "
        f"(evidence {alarm.size:.1f} nats, alarm at {alarm.limit:.1f})."
    )
    assert "repeats" in replace(alarm, direction="closer", statistic="window").explain()


def test_no_alarm_goes_back_beyond_where_it_may(reference: ShiftReference) -> None:
    draw = np.random.default_rng(6)
    for moved in (0.3, 0.04, -0.2):
        monitor = ShiftMonitor(reference, category="faq")
        assert monitor.observe(draw_known(draw, 3_000)) is None
        for _ in range(1_000):
            earliest = monitor.earliest_start
            alarm = monitor.observe(draw_known(draw, 7) + moved)
            if alarm is not None:
                break
        assert alarm is not None and 2_000 < earliest <= alarm.since


def with_equal(rng: np.random.Generator, count: int, *, share: float) -> Distances:
    """Best distances of which this share is equal, and the largest."""
    return np.where(rng.random(count) < share, 1.0, draw_known(rng, count))


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.95])
def test_where_most_distances_are_equal_alarms_are_as_few(share: float) -> None:
    draw = np.random.default_rng(8)
    for _ in range(3):
        monitor = ShiftMonitor(fit_shift_reference(with_equal(draw, 2_000, share=share)), category="faq")
        for _ in range(6):
            assert monitor.observe(with_equal(draw, 10_000, share=share)) is None


def test_where_no_distance_can_be_farther_closer_ones_are_still_found() -> None:
    draw = np.random.default_rng(9)
    monitor = ShiftMonitor(fit_shift_reference(with_equal(draw, 2_000, share=0.96)), category="faq")
    alarm = monitor.observe(with_equal(draw, 200, share=0.5))
    assert alarm is not None and alarm.direction == "closer"


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=20), st.lists(st.floats(0.3, 3), min_size=20))
def test_rounding_makes_no_evidence_stronger(weights: list[float], ratios: list[float]) -> None:
    probabilities = np.array(weights) / sum(weights)
    ratio = np.array(ratios[: len(weights)])
    ratio /= (probabilities * ratio).sum()
    exact = np.log(ratio) / NATS_PER_STEP
    rounded = _rounded_scores(exact, probabilities)
    assert (probabilities * np.exp(rounded * NATS_PER_STEP)).sum() <= 1 + 1e-9
    assert (np.abs(rounded - exact) <= 1).all()

"""Leases: who of concurrent misses computes, who waits, what ends a wait. Time is a number that tests set."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from waiting import eventually

from service.leases import Leases, Question, RefreshTurns, Turn, Wait

Answer = tuple[Turn, str]


class Untimed(threading.Condition):
    """Waits until it is told, however long: time passes only when a test says so."""

    wait_count = 0

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is None or timeout > 0
        self.wait_count += 1
        return super().wait(30)


class Desk:
    """Leases under a clock of their own, and callers in threads."""

    def __init__(self, *, max_per_category: int = 8, max_waiting: int = 8) -> None:
        self.now = 0.0
        self.changed = Untimed()
        self.leases = Leases(
            max_per_category=max_per_category,
            max_waiting=max_waiting,
            clock=lambda: self.now,
            changed=self.changed,
        )
        self.pool = ThreadPoolExecutor(16)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and all who wait look at the clock."""
        with self.changed:
            self.now += seconds
            self.changed.notify_all()

    def wait_for(
        self,
        question: Question,
        *,
        seconds: float = 10.0,
        wait: float = 100.0,
        is_active: Callable[[], bool] = lambda: True,
    ) -> "Future[Answer]":
        """Ask in a thread of its own; returns once it waits."""
        before = self.leases.waiting_count
        asked = self.pool.submit(
            self.leases.take, question, seconds=seconds, wait=Wait(self.now + wait, is_active)
        )
        eventually(lambda: asked.done() or self.leases.waiting_count > before)
        return asked


@pytest.fixture
def desk() -> Iterator[Desk]:
    """Leases with room for 8 of each."""
    made = Desk()
    yield made
    made.leases.close()
    made.pool.shutdown()


def asks(key: int | None = 1, **fields: object) -> Question:
    """A question of category 1."""
    known: dict[str, object] = {
        "cache_id": 1,
        "category_id": 1,
        "modality": "text",
        "scope": "",
        "key": None if key is None else (key, 0),
    }
    return Question(**{**known, **fields})  # type: ignore[arg-type]


def toward(angle: float, *, threshold: float = 0.1, **fields: object) -> Question:
    """A question by vector alone, in a plane, so many radians on."""
    vector = np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)
    return asks(None, space="text", vector=vector, threshold=threshold, **fields)


def take(desk: Desk, question: Question, *, seconds: float = 10.0) -> Answer:
    """Ask without waiting."""
    return desk.leases.take(question, seconds=seconds)


def held_by_now(desk: Desk, question: Question) -> str:
    """The token of a lease that must be free."""
    turn, token = take(desk, question)
    assert turn is Turn.TAKEN
    return token


def turns(asked: list["Future[Answer]"]) -> list[Turn]:
    """What those who have an answer were told."""
    return [one.result()[0] for one in asked if one.done()]


def test_first_of_equal_misses_takes_the_lease_and_others_do_not(desk: Desk) -> None:
    assert [take(desk, asks())[0] for _ in range(3)] == [Turn.TAKEN, Turn.HELD, Turn.HELD]


def test_tokens_are_not_alike(desk: Desk) -> None:
    tokens = {take(desk, asks(key))[1] for key in range(5)}
    assert len(tokens) == 5
    assert min(len(token) for token in tokens) >= 32


@pytest.mark.parametrize(
    "other",
    [
        {"cache_id": 2},
        {"category_id": 2},
        {"scope": "other"},
        {"modality": "image"},
        {"key": (2, 0)},
        {"key": None},
    ],
    ids=str,
)
def test_questions_that_differ_do_not_share_a_lease(desk: Desk, other: dict[str, object]) -> None:
    held_by_now(desk, asks())
    assert take(desk, asks(**other))[0] is Turn.TAKEN


@pytest.mark.parametrize(
    "other", [{"cache_id": 2}, {"category_id": 2}, {"scope": "s"}, {"space": "text:2"}], ids=str
)
def test_vectors_of_another_place_do_not_share_a_lease(desk: Desk, other: dict[str, object]) -> None:
    held_by_now(desk, toward(0.0))
    assert take(desk, replace(toward(0.0), **other))[0] is Turn.TAKEN  # type: ignore[arg-type]


@pytest.mark.parametrize(("angle", "turn"), [(0.0, Turn.HELD), (0.4, Turn.HELD), (0.5, Turn.TAKEN)])
def test_near_equal_misses_are_those_within_the_threshold(desk: Desk, angle: float, turn: Turn) -> None:
    assert 1 - np.cos(0.4) < 0.1 < 1 - np.cos(0.5)
    held_by_now(desk, toward(0.0))
    assert take(desk, toward(angle))[0] is turn


def test_threshold_is_of_who_asks(desk: Desk) -> None:
    held_by_now(desk, toward(0.0, threshold=0.0))
    assert take(desk, toward(0.4, threshold=0.01))[0] is Turn.TAKEN
    assert take(desk, toward(0.2, threshold=0.1))[0] is Turn.HELD


def test_equal_vectors_are_equal_at_a_threshold_of_zero(desk: Desk) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 384))
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    assert (1 - np.array([row @ row for row in unit]) > 0).any()  # as float32 has it
    for i, vector in enumerate(unit):
        question = asks(None, category_id=i, space="text", vector=vector)
        held_by_now(desk, question)
        assert take(desk, question)[0] is Turn.HELD


QUESTION = st.tuples(
    st.none() | st.integers(1, 3), st.none() | st.integers(0, 60), st.sampled_from(["", "s"])
)


@settings(deadline=None)
@given(st.lists(QUESTION, max_size=12), st.sampled_from([0.0, 0.01, 0.2]))
def test_leases_are_those_that_a_loop_over_pairs_gives(
    asked: list[tuple[int | None, int | None, str]], threshold: float
) -> None:
    leases = Leases(max_per_category=100, max_waiting=0, clock=lambda: 0.0)
    holders: list[tuple[int | None, int | None, str]] = []
    for key, angle, scope in asked:
        question = asks(key, scope=scope, threshold=threshold)
        if angle is not None:
            vector = np.array([np.cos(angle / 10), np.sin(angle / 10)], dtype=np.float32)
            question = replace(question, space="text", vector=vector)
        is_held = any(
            scope == other_scope
            and (
                (key is not None and key == other_key)
                or (
                    angle is not None
                    and other_angle is not None
                    and 1 - np.cos((angle - other_angle) / 10) <= threshold + 1e-6
                )
            )
            for other_key, other_angle, other_scope in holders
        )
        turn, _ = leases.take(question, seconds=1.0)
        assert turn is (Turn.HELD if is_held else Turn.TAKEN)
        if not is_held:
            holders.append((key, angle, scope))


def test_all_who_wait_look_up_what_was_stored(desk: Desk) -> None:
    token = held_by_now(desk, asks())
    waiting = [desk.wait_for(asks()) for _ in range(5)]
    assert desk.leases.waiting_count == 5
    assert desk.leases.end(token, stored=True)
    assert [one.result() for one in waiting] == [(Turn.STORED, "")] * 5
    assert desk.leases.live_count == 0


def test_of_those_who_wait_for_one_that_gives_up_one_computes(desk: Desk) -> None:
    token = held_by_now(desk, asks())
    waiting = [desk.wait_for(asks()) for _ in range(5)]
    desk.leases.end(token, stored=False)
    eventually(lambda: turns(waiting) == [Turn.TAKEN])
    assert (desk.leases.waiting_count, desk.leases.live_count) == (4, 1)


def test_of_those_who_wait_for_one_that_died_one_computes_and_the_rest_gets_its_answer(desk: Desk) -> None:
    held_by_now(desk, asks())
    waiting = [desk.wait_for(asks(), seconds=50.0) for _ in range(4)]
    desk.pass_time(9.9)
    assert desk.leases.waiting_count == 4
    eventually(lambda: desk.changed.wait_count == 8)
    desk.pass_time(0.2)
    eventually(lambda: turns(waiting) == [Turn.TAKEN])
    eventually(lambda: desk.changed.wait_count == 11)  # the others wait for the new holder
    (token,) = [one.result()[1] for one in waiting if one.done()]
    desk.leases.end(token, stored=True)
    assert sorted(one.result()[0].value for one in waiting) == ["stored", "stored", "stored", "taken"]


def test_holders_that_die_one_after_another_are_followed_by_one_each(desk: Desk) -> None:
    held_by_now(desk, asks())
    waiting = [desk.wait_for(asks(), wait=1000.0) for _ in range(3)]
    for died in range(1, 4):
        desk.pass_time(11)
        eventually(lambda died=died: turns(waiting) == [Turn.TAKEN] * died)
    assert desk.leases.waiting_count == 0


def test_near_equal_that_are_not_near_each_other_all_go_on(desk: Desk) -> None:
    token = held_by_now(desk, toward(0.0))
    left, right = desk.wait_for(toward(-0.4)), desk.wait_for(toward(0.4))
    desk.leases.end(token, stored=False)
    assert (left.result()[0], right.result()[0]) == (Turn.TAKEN, Turn.TAKEN)


def test_wait_that_is_over_leaves_the_lease_with_its_holder(desk: Desk) -> None:
    held_by_now(desk, asks())
    waiting = desk.wait_for(asks(), wait=5.0)
    desk.pass_time(5.0)
    assert waiting.result() == (Turn.HELD, "")
    assert (desk.leases.waiting_count, desk.leases.live_count) == (0, 1)


def test_cancelled_caller_stops_waiting_and_takes_nothing(desk: Desk) -> None:
    token = held_by_now(desk, asks())
    is_active = threading.Event()
    is_active.set()
    gone, stays = desk.wait_for(asks(), is_active=is_active.is_set), desk.wait_for(asks())
    is_active.clear()
    desk.leases.wake()
    assert gone.result() == (Turn.ENDED, "")
    desk.leases.end(token, stored=False)
    assert stays.result()[0] is Turn.TAKEN


def test_caller_that_is_gone_takes_no_free_lease(desk: Desk) -> None:
    assert desk.leases.take(asks(), seconds=1.0, wait=Wait(1.0, lambda: False)) == (Turn.ENDED, "")
    assert desk.leases.live_count == 0


def test_only_so_many_wait() -> None:
    desk = Desk(max_waiting=2)
    token = held_by_now(desk, asks())
    waiting = [desk.wait_for(asks()) for _ in range(4)]
    assert turns(waiting) == [Turn.HELD, Turn.HELD]
    desk.leases.end(token, stored=True)
    assert sorted(turn.value for turn in [one.result()[0] for one in waiting]) == [
        "held",
        "held",
        "stored",
        "stored",
    ]
    desk.pool.shutdown()


def test_category_has_only_so_many_leases() -> None:
    desk = Desk(max_per_category=2)
    tokens = [held_by_now(desk, asks(key, scope=str(key))) for key in (1, 2)]
    assert take(desk, asks(3)) == (Turn.FULL, "")
    assert take(desk, asks(1, scope="1"))[0] is Turn.HELD
    assert take(desk, asks(3, category_id=2))[0] is Turn.TAKEN
    desk.leases.end(tokens[0], stored=False)
    assert take(desk, asks(3))[0] is Turn.TAKEN
    desk.pass_time(10)
    assert take(desk, asks(4))[0] is Turn.TAKEN
    assert desk.leases.live_count == 1


def test_lease_that_has_ended_cannot_end_again(desk: Desk) -> None:
    token = held_by_now(desk, asks())
    assert [desk.leases.end(one, stored=True) for one in (token, token, "forged", "")] == [True] + [False] * 3
    overdue = held_by_now(desk, asks())
    desk.pass_time(10)
    follower = held_by_now(desk, asks())
    assert not desk.leases.end(overdue, stored=True)
    assert take(desk, asks())[0] is Turn.HELD
    assert desk.leases.end(follower, stored=True)


def test_stores_are_counted_and_nothing_else(desk: Desk) -> None:
    for stored in (True, False, True):
        desk.leases.end(held_by_now(desk, asks()), stored=stored)
    held_by_now(desk, asks())
    desk.pass_time(10)
    assert (desk.leases.stored_count, desk.leases.live_count) == (2, 0)


def test_nobody_waits_once_it_is_closed(desk: Desk) -> None:
    held_by_now(desk, asks())
    waiting = desk.wait_for(asks())
    desk.leases.close()
    assert waiting.result()[0] is Turn.HELD
    assert desk.wait_for(asks()).result()[0] is Turn.HELD


class LeasesAgainstALoop(RuleBasedStateMachine):
    """Whatever is asked, stored, given up and overdue: the leases are those of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.leases = Leases(max_per_category=3, max_waiting=0, clock=lambda: self.now)
        self.model: list[tuple[str, Question, float]] = []

    def live(self) -> list[tuple[str, Question, float]]:
        return [own for own in self.model if own[2] > self.now]

    @rule(key=st.integers(1, 4), category=st.integers(1, 2), seconds=st.floats(0.1, 5.0))
    def take(self, key: int, category: int, seconds: float) -> None:
        question = asks(key, category_id=category)
        own = [other for _, other, _ in self.live() if other.category_id == category]
        expected = Turn.TAKEN if len(own) < 3 else Turn.FULL
        if any(other.key == question.key for other in own):
            expected = Turn.HELD
        turn, token = self.leases.take(question, seconds=seconds)
        assert turn is expected
        if turn is Turn.TAKEN:
            self.model.append((token, question, self.now + seconds))

    @rule(place=st.integers(0, 20), stored=st.booleans())
    def end(self, place: int, stored: bool) -> None:  # noqa: FBT001
        if self.model:
            token, _, deadline = self.model.pop(place % len(self.model))
            ended = self.leases.end(token, stored=stored)
            assert ended or deadline <= self.now

    @rule(seconds=st.floats(0.0, 3.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def holds_what_is_live(self) -> None:
        assert self.leases.live_count == len(self.live())


TestLeasesAgainstALoop = LeasesAgainstALoop.TestCase
TestLeasesAgainstALoop.settings = settings(deadline=None, max_examples=50)


def refresh_turns(**limits: int) -> tuple[RefreshTurns, list[float]]:
    """Turns, and the list whose only item is the time."""
    now = [0.0]
    return RefreshTurns(max_turns=limits.get("max_turns", 8), clock=lambda: now[0]), now


def test_first_caller_within_a_period_has_the_turn() -> None:
    turns, now = refresh_turns()
    assert [turns.try_take("e", seconds=5) for _ in range(3)] == [True, False, False]
    assert turns.try_take("f", seconds=5)
    now[0] = 4.9
    assert not turns.try_take("e", seconds=5)
    now[0] = 5.0
    assert [turns.try_take("e", seconds=5) for _ in range(2)] == [True, False]


def test_there_are_only_so_many_turns_until_some_are_over() -> None:
    turns, now = refresh_turns(max_turns=2)
    assert [turns.try_take(key, seconds=key) for key in (1, 9, 3)] == [True, True, False]
    now[0] = 1.0
    assert [turns.try_take(key, seconds=5) for key in (9, 3, 4)] == [False, True, False]


def test_of_concurrent_callers_one_has_the_turn() -> None:
    turns, _ = refresh_turns()
    start = threading.Barrier(8)

    def try_it() -> bool:
        start.wait(10)
        return turns.try_take("e", seconds=5)

    with ThreadPoolExecutor(8) as pool:
        taken = [one.result() for one in [pool.submit(try_it) for _ in range(8)]]
    assert sum(taken) == 1

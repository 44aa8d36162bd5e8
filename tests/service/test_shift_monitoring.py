"""Shift monitors of a store and its replicas, and what an operator sees of them."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from learning_rows import DIM as LEARNING_DIM
from learning_rows import fill, learned
from nearhit import Client
from nearhit.client import lookup_request, store_request
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from numpy.typing import NDArray
from refusals import refused
from sqlalchemy import Engine, String, delete, event, select, update
from sqlalchemy.exc import OperationalError
from store_rows import StoreCache, make_cache, new_entry, second_engine, storing_after
from waiting import eventually

from hashing.shift import ShiftMonitor
from hashing.shift_reference import fit_shift_reference
from service import registry, shift_watch, store
from service.accesses import AccessLog, BestDistances
from service.cache import SemanticCache
from service.categories import delete_category
from service.config import Config, SearchConfig, ShiftConfig, load_config, render_config
from service.database import open_engine, reading, writing
from service.embedding import Input
from service.errors import ConfigurationError, StoreUnavailableError
from service.lookup import LookupMode, LookupQuery
from service.records import ShiftRecord
from service.replica import CacheReplica
from service.rows import read_cache, read_category
from service.server import Server
from service.shift_store import acknowledge_shift, read_shifts, shift_alarm_since
from service.shift_watch import ShiftWatch
from service.tables import entries, jobs, shift_monitors
from service.worker import Worker

DIM = 32
LEARNED = 200
BOUND = 1_500
SHIFT = ShiftConfig(reference_lookups=LEARNED)
RNG = np.random.default_rng(0)
USUAL = RNG.beta(2, 5, 1_500)
MOVED = RNG.beta(2, 5, 200) + 0.3
NOW_MS = 77
DRAWN = RNG.standard_normal((50, DIM))
ROWS: NDArray[np.float32] = (DRAWN / np.linalg.norm(DRAWN, axis=1, keepdims=True)).astype(np.float32)


# One replica and several, over a store


@dataclass(frozen=True, slots=True)
class Replica:
    """A process that watches, with the log that its lookups go to."""

    log: AccessLog
    watch: ShiftWatch

    @classmethod
    def of(cls, engine: Engine) -> "Replica":
        log = AccessLog(max_entries=1, max_distances=BOUND)
        return cls(log, ShiftWatch(engine, Config(shift=SHIFT), accesses=log, clock=lambda: NOW_MS))

    def look_up(self, category_id: int, distances: NDArray[np.float64]) -> None:
        """Answer lookups with these best distances."""
        for nearest in distances.tolist():
            self.log.record(0, category_id, outcome="miss_count", entry_id=None, now_ms=0, nearest=nearest)

    def take(self, category_id: int, distances: NDArray[np.float64]) -> None:
        """Answer them, then take a step."""
        self.look_up(category_id, distances)
        self.watch.step()


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """A cache of a database that has others."""
    return make_cache(shared_engine)


@pytest.fixture
def faq(cache: StoreCache) -> int:
    """A category of ten entries."""
    category_id = cache.category("faq")
    items = [new_entry(category_id, f"e{number}") for number in range(10)]
    cache.mutate(partial(store.store_entries, items=items))
    return category_id


def kept(cache: StoreCache, category_id: int) -> ShiftRecord:
    """What the store has of a category's monitor, less its state."""
    with reading(cache.engine) as connection:
        return read_shifts(connection, cache.id).get(category_id, ShiftRecord())


def acknowledge(cache: StoreCache, name: str = "faq") -> None:
    with writing(cache.engine) as connection:
        category = read_category(connection, read_cache(connection, cache.name), name)
        acknowledge_shift(connection, category, now_ms=NOW_MS)


def test_an_alarm_is_kept_and_said_once(
    cache: StoreCache, faq: int, caplog: pytest.LogCaptureFixture
) -> None:
    replica = Replica.of(cache.engine)
    replica.take(faq, USUAL[:LEARNED])
    assert kept(cache, faq).stage == "watching"
    replica.take(faq, USUAL[LEARNED:])
    assert (kept(cache, faq).stage, caplog.records) == ("watching", [])
    for part in np.split(MOVED, 2):
        replica.take(faq, part)
    assert (kept(cache, faq).stage, kept(cache, faq).alarm_ms) == ("alarm", NOW_MS)
    oracle = ShiftMonitor(fit_shift_reference(USUAL[:LEARNED].astype(np.float32)), category="faq")
    expected = oracle.observe(np.concatenate([USUAL[LEARNED:], MOVED]).astype(np.float32))
    assert expected is not None
    assert [record.getMessage() for record in caplog.records] == [f"cache {cache.name}: {expected.explain()}"]


def test_categories_are_watched_apart(cache: StoreCache, faq: int) -> None:
    other = cache.category("other")
    replica = Replica.of(cache.engine)
    replica.look_up(other, MOVED)
    replica.take(faq, USUAL[:LEARNED])
    replica.look_up(other, MOVED)
    replica.take(faq, USUAL[LEARNED : LEARNED + 200])
    assert [kept(cache, key).stage for key in (faq, other)] == ["watching", "watching"]


def test_what_was_learned_and_watched_is_there_after_a_restart(cache: StoreCache, faq: int) -> None:
    first = Replica.of(cache.engine)
    first.take(faq, USUAL[:150])
    first.watch.save()
    assert kept(cache, faq).lookup_count == 150
    second = Replica.of(cache.engine)
    second.take(faq, USUAL[150:LEARNED])
    second.take(faq, USUAL[LEARNED:500])
    second.watch.save()
    assert (kept(cache, faq).stage, kept(cache, faq).lookup_count) == ("watching", 300)
    third = Replica.of(cache.engine)
    third.take(faq, USUAL[500:600])
    third.watch.save()
    assert kept(cache, faq).lookup_count == 400


def test_progress_is_saved_by_a_step_once_in_a_while(
    cache: StoreCache, faq: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Replica.of(cache.engine)
    replica.take(faq, USUAL[:10])
    replica.take(faq, USUAL[10:20])
    assert kept(cache, faq).lookup_count == 10
    later = time.monotonic() + 20
    monkeypatch.setattr(shift_watch.time, "monotonic", lambda: later)
    replica.take(faq, USUAL[20:30])
    assert kept(cache, faq).lookup_count == 30


def test_an_acknowledged_shift_is_what_is_usual_from_then_on(cache: StoreCache, faq: int) -> None:
    replica = Replica.of(cache.engine)
    for part in (USUAL[:LEARNED], MOVED):
        replica.take(faq, part)
    assert kept(cache, faq).stage == "alarm"
    acknowledge(cache)
    assert (kept(cache, faq).stage, kept(cache, faq).lookup_count) == ("learning", 0)
    for part in (MOVED, MOVED + RNG.normal(0, 0.01, MOVED.size)):
        replica.take(faq, part)
    assert kept(cache, faq).stage == "watching"
    replica.take(faq, USUAL[:200])
    assert kept(cache, faq).stage == "alarm"


def test_a_category_that_is_only_learning_can_be_acknowledged_too(cache: StoreCache, faq: int) -> None:
    acknowledge(cache)
    replica = Replica.of(cache.engine)
    replica.take(faq, USUAL[:150])
    acknowledge(cache)
    replica.take(faq, USUAL[150:250])
    assert kept(cache, faq).stage == "learning"
    replica.take(faq, USUAL[250:350])
    assert kept(cache, faq).stage == "watching"


def test_progress_with_what_is_no_longer_usual_is_not_saved(cache: StoreCache, faq: int) -> None:
    replica = Replica.of(cache.engine)
    replica.take(faq, USUAL[:LEARNED])
    replica.take(faq, USUAL[LEARNED:])
    acknowledge(cache)
    replica.watch.save()
    assert (kept(cache, faq).stage, kept(cache, faq).lookup_count) == ("learning", 0)


def test_replicas_share_what_is_usual_and_one_alarm(
    cache: StoreCache, faq: int, caplog: pytest.LogCaptureFixture
) -> None:
    other_engine = second_engine(cache.engine)
    one, two = Replica.of(cache.engine), Replica.of(other_engine)
    two.take(faq, USUAL[:150])
    one.take(faq, USUAL[:LEARNED])
    learned_by_one = kept(cache, faq).reference
    two.take(faq, USUAL[LEARNED:500])
    assert kept(cache, faq).reference == learned_by_one
    one.take(faq, MOVED)
    alarmed = kept(cache, faq)
    two.take(faq, MOVED)
    two.watch.save()
    assert kept(cache, faq) == alarmed
    assert len(caplog.records) == 1
    acknowledge(cache)
    two.take(faq, USUAL[:LEARNED])
    one.take(faq, USUAL[LEARNED:500])
    assert kept(cache, faq).stage == "watching"
    other_engine.dispose()


def test_of_two_that_alarm_at_once_the_first_is_kept(
    cache: StoreCache, faq: int, caplog: pytest.LogCaptureFixture
) -> None:
    other_engine = second_engine(cache.engine)
    slow, quick = Replica.of(cache.engine), Replica.of(other_engine)
    slow.take(faq, USUAL[:LEARNED])
    quick.take(faq, USUAL[LEARNED:500])
    version = kept(cache, faq).version
    with storing_after(cache.engine, "shift_monitors.version", lambda: quick.take(faq, MOVED)):
        slow.take(faq, USUAL[:100] - 0.5)
    alarmed = kept(cache, faq)
    assert (alarmed.version, alarmed.alarm and "farther" in alarmed.alarm) == (version + 1, True)
    assert len(caplog.records) == 1
    with gone(cache.engine):
        slow.watch.step()  # what it lost is not tried again
    slow.take(faq, USUAL[:100])
    assert kept(cache, faq) == alarmed
    other_engine.dispose()


# Trouble


@contextmanager
def gone(engine: Engine) -> Iterator[None]:
    """No statement reaches the database within the body."""

    def fail(*_: object) -> None:
        raise OperationalError("statement", {}, Exception("gone"))

    event.listen(engine, "before_cursor_execute", fail)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", fail)


def test_while_the_database_is_gone_lookups_wait_up_to_the_bound(
    cache: StoreCache, faq: int, caplog: pytest.LogCaptureFixture
) -> None:
    replica = Replica.of(cache.engine)
    replica.take(faq, USUAL[:150])
    with gone(cache.engine):
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                replica.take(faq, USUAL[150:LEARNED])
        assert len(replica.log.drain_distances([faq])[faq].own) == 100
        replica.look_up(faq, np.resize(USUAL[LEARNED:], BOUND + 5))
    replica.watch.step()
    assert kept(cache, faq).stage == "watching"
    assert "5 lookups more than are kept" in caplog.text


def test_an_alarm_that_could_not_be_written_is_at_the_next_step(
    cache: StoreCache, faq: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Replica.of(cache.engine)
    replica.take(faq, USUAL[:LEARNED])

    def fail(*_: object, **__: object) -> bool:
        raise StoreUnavailableError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(shift_watch, "write_shift", fail)
        with pytest.raises(StoreUnavailableError):
            replica.take(faq, MOVED)
    assert (kept(cache, faq).stage, caplog.records) == ("watching", [])
    replica.watch.step()
    assert (kept(cache, faq).stage, len(caplog.records)) == ("alarm", 1)


@pytest.mark.parametrize("first", [0, 150])
@pytest.mark.parametrize("when", ["before it is read", "while it is read"])
def test_a_category_that_is_deleted_meanwhile_is_watched_no_more(
    cache: StoreCache, faq: int, when: str, first: int
) -> None:
    other_engine = second_engine(cache.engine)
    replica = Replica.of(cache.engine)
    replica.take(faq, USUAL[:first])

    def remove() -> None:
        with writing(other_engine) as connection:
            delete_category(connection, cache.name, "faq", etag="", now_ms=0)

    if when == "before it is read":
        remove()
        replica.take(faq, USUAL[first:])
    else:
        with storing_after(cache.engine, "shift_monitors.version", remove):
            replica.take(faq, USUAL[first:])
    replica.take(faq, MOVED)
    replica.watch.save()
    assert kept(cache, faq) == ShiftRecord()
    other_engine.dispose()


def test_a_cache_that_is_deleted_meanwhile_is_watched_no_more(cache: StoreCache, faq: int) -> None:
    other_engine = second_engine(cache.engine)
    replica = Replica.of(cache.engine)

    def remove() -> None:
        with writing(other_engine) as connection:
            registry.delete_cache(connection, cache.name, etag="")

    with storing_after(cache.engine, "shift_monitors.version", remove):
        replica.take(faq, USUAL)
    replica.take(faq, USUAL)
    assert replica.log.measured_categories() == []
    other_engine.dispose()


def test_a_damaged_monitor_is_named_and_learned_anew(
    cache: StoreCache, faq: int, caplog: pytest.LogCaptureFixture
) -> None:
    Replica.of(cache.engine).take(faq, USUAL[:LEARNED])
    with writing(cache.engine) as connection:
        of_category = shift_monitors.c.category_id == faq
        connection.execute(update(shift_monitors).where(of_category).values(reference="{", state="{"))
    replica = Replica.of(cache.engine)
    replica.take(faq, USUAL[:150])
    assert "category faq: its shift monitor is damaged" in caplog.text
    assert kept(cache, faq).stage == "learning"
    replica.take(faq, USUAL[150:LEARNED])
    replica.take(faq, MOVED)
    assert kept(cache, faq).stage == "alarm"


# The worker


@pytest.fixture
def alarmed(engine: Engine) -> tuple[StoreCache, Worker]:
    """A learned cache with a labelled row more, and an alarm of time 77; the worker's clock is at 100."""
    cache = make_cache(engine, dim=LEARNING_DIM)
    category_id = learned(cache, "a", "b")
    fill(cache, category_id, "c", count=1)
    replica = Replica.of(engine)
    for part in (USUAL[:LEARNED], MOVED):
        replica.take(category_id, part)
    return cache, Worker(engine, Config(), clock=lambda: 100)


def alarm_since(cache: StoreCache, after_ms: int) -> bool:
    with reading(cache.engine) as connection:
        return shift_alarm_since(connection, cache.id, after_ms)


def test_an_alarm_queues_one_update_of_what_there_is(alarmed: tuple[StoreCache, Worker]) -> None:
    cache, worker = alarmed
    assert (alarm_since(cache, NOW_MS - 1), alarm_since(cache, NOW_MS)) == (True, False)
    assert not alarm_since(make_cache(cache.engine), 0)
    assert worker.enqueue_due() == 1
    with writing(cache.engine) as connection:
        connection.execute(update(jobs).values(state="succeeded"))
    assert worker.enqueue_due() == 0


def test_an_acknowledged_alarm_queues_nothing(alarmed: tuple[StoreCache, Worker]) -> None:
    cache, worker = alarmed
    acknowledge(cache)
    assert worker.enqueue_due() == 0


def test_an_alarm_queues_nothing_where_there_is_nothing_to_learn(alarmed: tuple[StoreCache, Worker]) -> None:
    cache, worker = alarmed
    with writing(cache.engine) as connection:
        connection.execute(delete(entries).where(entries.c.labels.cast(String).like("%c%")))
    assert worker.enqueue_due() == 0


# What an operator sees


FAQ = "caches/faq/categories/billing"


@pytest.fixture
def watched_config(sqlite_config: Config) -> Config:
    return replace(sqlite_config, shift=SHIFT)


def furnish(client: Client, rows: NDArray[np.float32]) -> None:
    client.create_cache("faq", dim=DIM, code_bits=64)
    client.create_category("faq", "billing", threshold=0.1)
    requests = [
        store_request("faq", "billing", embedding=row, response=b"x", text=f"question {number}")
        for number, row in enumerate(rows)
    ]
    client.batch_store("faq", requests)


def ask(client: Client, questions: NDArray[np.float32]) -> None:
    for start in range(0, len(questions), 200):
        part = questions[start : start + 200]
        client.batch_lookup("faq", [lookup_request("faq", "billing", embedding=one) for one in part])


def near(rows: NDArray[np.float32], count: int, *, seed: int) -> NDArray[np.float32]:
    """Questions around what is stored, some nearer, some farther."""
    draw = np.random.default_rng(seed)
    noise = draw.standard_normal((count, DIM)) * draw.uniform(0, 0.15, (count, 1))
    return (rows[draw.integers(0, len(rows), count)] + noise).astype(np.float32)


def shift_of(client: Client) -> pb.Shift:
    category = client.call(client.admin.GetCategory, admin_pb.GetCategoryRequest(name=FAQ))
    return category.shift


def listed_shifts(client: Client) -> list[pb.Shift]:
    listing = admin_pb.ListCategoriesRequest(parent="caches/faq")
    return [one.shift for one in client.call(client.admin.ListCategories, listing).categories]


def test_a_new_topic_is_told_kept_and_acknowledged_over_the_door(
    watched_config: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = start_server(watched_config)
    client, rows = connect(server), ROWS
    furnish(client, rows)
    assert shift_of(client) == pb.Shift(state=pb.Shift.STATE_LEARNING)
    ask(client, near(rows, LEARNED, seed=2))
    eventually(lambda: shift_of(client).state == pb.Shift.STATE_WATCHING)
    ask(client, near(rows, 800, seed=3))
    server.stop()
    client = connect(start_server(watched_config))
    assert (shift_of(client).state, shift_of(client).lookup_count) == (pb.Shift.STATE_WATCHING, 800)
    before = time.time()
    ask(client, RNG.standard_normal((100, DIM)).astype(np.float32))
    eventually(lambda: shift_of(client).state == pb.Shift.STATE_ALARM)
    told = shift_of(client)
    assert (told.direction, told.share) == (pb.Shift.DIRECTION_FARTHER, pytest.approx(1, abs=0.2))
    assert told.size >= told.limit > 0
    assert before - 1 <= told.since_time.seconds <= told.alarm_time.seconds <= time.time()
    assert listed_shifts(client) == [told]
    eventually(lambda: f"cache faq: {told.explanation}" in caplog.messages)
    request = admin_pb.AcknowledgeShiftRequest(name=FAQ)
    answered = client.call(client.admin.AcknowledgeShift, request)
    assert answered.shift == shift_of(client) == pb.Shift(state=pb.Shift.STATE_LEARNING)
    with refused(grpc.StatusCode.NOT_FOUND, "CATEGORY_NOT_FOUND"):
        client.call(client.admin.AcknowledgeShift, admin_pb.AcknowledgeShiftRequest(name=FAQ + "s"))


def looked_up(engine: Engine, folder: Path, *questions: LookupQuery) -> BestDistances:
    """What lookups in "faq", with ROWS at threshold 0.1, leave behind."""
    cache = make_cache(engine, dim=DIM)
    category_id = cache.category("faq", threshold=0.1)
    items = [
        new_entry(
            category_id, vector=row.astype(np.float16), text=f"question {number}", fingerprint=str(number)
        )
        for number, row in enumerate(ROWS)
    ]
    cache.mutate(partial(store.store_entries, items=items))
    with reading(engine) as connection:
        record = read_cache(connection, cache.name)
    replica = CacheReplica(engine, record, search=SearchConfig(), data_dir=str(folder))
    log = AccessLog(max_entries=100, max_distances=100)
    lookups = SemanticCache(accesses=log, embedder=None, clock=lambda: NOW_MS, min_seq_wait_seconds=0.0)
    lookups.lookup(replica, questions, timeout_seconds=1.0)
    return log.drain_distances([category_id]).get(category_id, BestDistances())


def asked(vector: NDArray[np.float32], **how: Any) -> LookupQuery:
    return LookupQuery(category="faq", source=Input(embedding=vector), **how)


def test_a_lookup_leaves_the_distance_of_the_nearest_entry_hit_or_miss(
    shared_engine: Engine, tmp_path: Path
) -> None:
    questions = np.concatenate([near(ROWS, 20, seed=4), RNG.standard_normal((20, DIM))])
    unit = (questions / np.linalg.norm(questions, axis=1, keepdims=True)).astype(np.float32)
    left = looked_up(shared_engine, tmp_path, *(asked(one) for one in unit))
    expected = 1 - (unit @ ROWS.T).max(axis=1)
    assert (expected <= 0.1).any() and (expected > 0.1).any()
    assert left.own.tolist() == pytest.approx(expected.tolist(), abs=2e-3)
    assert len(left.stricter) == 0


def test_what_a_lookup_leaves_depends_on_what_was_looked_for(shared_engine: Engine, tmp_path: Path) -> None:
    row = ROWS[3]
    left = looked_up(
        shared_engine,
        tmp_path,
        asked(-row, fingerprint="7"),
        LookupQuery(category="faq", source=Input(text="", embedding=None), fingerprint="none"),
        asked(row, mode=LookupMode.BYPASS),
        asked(row, mode=LookupMode.REFRESH),
        asked(row, scope="another"),
        asked(row, threshold=0.1),
        asked(row, threshold=0.3),
        asked(row, threshold=0.05),
        asked(-row, threshold=0.05),
    )
    assert left.own.tolist() == pytest.approx([0, 0, math.inf, 0, 0], abs=1e-3)
    assert left.stricter.tolist() == pytest.approx([0, 1 - (-row @ ROWS.T).max()], abs=2e-3)


def test_a_server_that_does_not_watch_says_nothing_of_shifts(
    sqlite_config: Config, start_server: Callable[[Config], Server], connect: Callable[[Server], Client]
) -> None:
    config = replace(sqlite_config, shift=replace(SHIFT, enabled=False))
    server = start_server(config)
    client, rows = connect(server), ROWS[:5]
    furnish(client, rows)
    ask(client, near(rows, 10, seed=5))
    category = client.call(client.admin.GetCategory, admin_pb.GetCategoryRequest(name=FAQ))
    assert not category.HasField("shift")
    server.stop()
    engine = open_engine(config.store)
    with reading(engine) as connection:
        assert connection.execute(select(shift_monitors)).all() == []
    engine.dispose()


@pytest.mark.parametrize(
    ("key", "value"),
    [("reference_lookups", 199), ("reference_lookups", 65_537), ("run_length", 0), ("run_length", 51)],
)
def test_a_setting_out_of_its_range_names_its_key(key: str, value: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"\[shift\] {key}.*{value}"):
        ShiftConfig(**{key: value})


def test_settings_are_printed_as_they_are_read(tmp_path: Path) -> None:
    config = Config(shift=ShiftConfig(enabled=False, reference_lookups=65_536, run_length=50))
    file = tmp_path / "nearhit.toml"
    file.write_text(render_config(config), encoding="utf-8")
    assert load_config(file, environment={}) == config

"""What a worker writes of its job while it runs, and how it learns that the job is no longer its own."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from learning_rows import DIM, active_id, encoders, fill, learn, learned
from sqlalchemy import Engine
from store_rows import StoreCache, make_cache

from service import jobs
from service.config import Config, UpdateConfig
from service.database import migrate, open_engine, reading, writing
from service.lease import PROGRESS_MS, Lease
from service.records import JobRecord
from service.rows import read_cache, read_jobs
from service.worker import Worker

LEASE_MS = 60_000


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_ms = 10_000

    def __call__(self) -> int:
        """Milliseconds."""
        return self.now_ms


@pytest.fixture
def engine(sqlite_config: Config) -> Iterator[Engine]:
    """An empty store of SQLite."""
    engine = open_engine(sqlite_config.store)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def cache(engine: Engine) -> StoreCache:
    """An empty cache."""
    return make_cache(engine, dim=DIM)


@contextmanager
def leased(cache: StoreCache, clock: Clock) -> Iterator[Lease]:
    """A lease of a new job."""
    with writing(cache.engine) as connection:
        jobs.enqueue(connection, cache.id, kind=jobs.UPDATE, now_ms=clock.now_ms)
        job = jobs.lease(connection, owner="w", now_ms=clock.now_ms, lease_ms=LEASE_MS)
    assert job is not None
    with Lease(cache.engine, job, clock=clock, lease_ms=LEASE_MS) as lease:
        yield lease


def job_of(cache: StoreCache) -> JobRecord:
    """The only job."""
    with reading(cache.engine) as connection:
        (job,) = read_jobs(connection, cache.id)
    return job


def cancel(cache: StoreCache) -> None:
    """Cancel the only job."""
    with writing(cache.engine) as connection:
        jobs.cancel(connection, read_cache(connection, cache.name), job_of(cache).name, now_ms=7)


def progress_of(cache: StoreCache) -> tuple[str | None, int | None, int | None]:
    """What the store says of the only job."""
    job = job_of(cache)
    return job.stage, job.done_count, job.total_count


def test_progress_is_written_at_each_stage_and_each_second(cache: StoreCache) -> None:
    clock = Clock()
    with leased(cache, clock) as lease:
        lease.tell("read", 0, 10)
        lease.tell("read", 1, 10)
        assert progress_of(cache) == ("read", 0, 10)
        clock.now_ms += PROGRESS_MS
        lease.tell("read", 2, 10)
        assert progress_of(cache) == ("read", 2, 10)
        lease.tell("learn", 0, 5)
        assert progress_of(cache) == ("learn", 0, 5)
        clock.now_ms -= 100 * PROGRESS_MS
        lease.tell("learn", 1, 5)
        assert progress_of(cache) == ("learn", 1, 5)


def test_a_cancelled_job_is_noticed_within_a_stage(cache: StoreCache) -> None:
    clock = Clock()
    with leased(cache, clock) as lease:
        lease.tell("learn", 0, 10)
        cancel(cache)
        lease.tell("learn", 1, 10)
        clock.now_ms += PROGRESS_MS
        with pytest.raises(jobs.LeaseLostError):
            lease.tell("learn", 2, 10)
    assert progress_of(cache) == ("learn", 0, 10)


def test_a_store_that_cannot_be_reached_does_not_end_a_job(
    cache: StoreCache, caplog: pytest.LogCaptureFixture
) -> None:
    with leased(cache, Clock()) as lease:
        with cache.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE jobs RENAME TO away")
        with caplog.at_level(logging.WARNING):
            lease.tell("read", 0, 10)
        with cache.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE away RENAME TO jobs")
        assert "could not be written" in caplog.text
        lease.tell("learn", 0, 10)
    assert progress_of(cache) == ("learn", 0, 10)


def test_an_update_that_is_cancelled_while_it_learns_leaves_nothing(
    cache: StoreCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hashing.lifelong.LEARN_ROWS", 2)
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c", count=40)
    before = (active_id(cache), encoders(cache), cache.entries(), cache.seq())
    with writing(cache.engine) as connection:
        jobs.enqueue(connection, cache.id, kind=jobs.UPDATE, now_ms=0)
    clock = _AdvancingClock(cache)
    assert Worker(cache.engine, Config(), clock=clock).run_one()
    job = job_of(cache)
    assert (job.state, job.stage) == (jobs.CANCELLED, "learn")
    assert job.done_count is not None and 0 < job.done_count < 12
    assert (active_id(cache), encoders(cache), cache.entries(), cache.seq()) == before


class _AdvancingClock:
    """Goes on a second at each look; once the job has learned some rows, it is cancelled from outside."""

    def __init__(self, cache: StoreCache) -> None:
        self._cache = cache
        self._lock = threading.Lock()  # guards _now_ms
        self._now_ms = 0

    def __call__(self) -> int:
        """Milliseconds."""
        job = job_of(self._cache)
        if job.state == jobs.RUNNING and job.stage == "learn" and (job.done_count or 0) >= 6:
            cancel(self._cache)
        with self._lock:
            self._now_ms += PROGRESS_MS
            return self._now_ms


def test_the_last_progress_of_an_update_is_its_activation(cache: StoreCache) -> None:
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c", count=6)
    with writing(cache.engine) as connection:
        jobs.enqueue(connection, cache.id, kind=jobs.UPDATE, now_ms=0)
    config = Config(update=UpdateConfig(max_map_drop=1.0))
    assert Worker(cache.engine, config, clock=Clock()).run_one()
    assert (job_of(cache).state, progress_of(cache)) == (jobs.SUCCEEDED, ("activate", 0, 1))


def test_an_update_tells_how_far_it_is_in_rows_and_queries(
    cache: StoreCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hashing.lifelong.LEARN_ROWS", 10)
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c", "d", count=30)
    told: dict[str, list[tuple[int, int]]] = {}
    outcome = learn(cache, progress=lambda stage, *at: told.setdefault(stage, []).append(at))
    assert list(told) == ["read", "learn", "judge", "activate"]
    rows = outcome.labelled_row_count
    assert told["learn"] == [*((start, rows) for start in range(0, rows, 10)), (rows, rows)]
    judged = [done for done, _ in told["judge"]]
    assert judged == sorted(judged)
    assert told["judge"][0][0] == 0 and told["judge"][-1][0] == told["judge"][-1][1]

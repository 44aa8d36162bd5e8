"""The job queue, and the worker that takes from it."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from learning_rows import (
    DIM,
    active_id,
    encoders,
    fill,
    learned,
)
from sqlalchemy import Engine, delete, event, select
from store_rows import StoreCache, is_blocked, make_cache, second_engine, storing_after
from waiting import eventually

from service import jobs, tables
from service.config import Config, UpdateConfig
from service.database import migrate, open_engine, reading, writing
from service.errors import NotFoundError, PreconditionError
from service.records import JobRecord
from service.rows import read_cache, read_jobs
from service.update import read_unlearned
from service.worker import Worker

LEASE_MS = 100


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """An empty cache."""
    return make_cache(shared_engine, dim=DIM)


@pytest.fixture
def queue(cache: StoreCache) -> Iterator[StoreCache]:
    """A cache of a database without jobs."""
    with writing(cache.engine) as connection:
        connection.execute(delete(tables.jobs))
    yield cache
    with writing(cache.engine) as connection:
        connection.execute(delete(tables.jobs))


def enqueue(cache: StoreCache, *, now_ms: int = 0) -> JobRecord:
    """Queue an update."""
    with writing(cache.engine) as connection:
        return jobs.enqueue(connection, cache.id, kind=jobs.UPDATE, now_ms=now_ms)


def lease(cache: StoreCache, owner: str, *, now_ms: int = 0) -> JobRecord | None:
    """Take a job."""
    with writing(cache.engine) as connection:
        return jobs.lease(connection, owner=owner, now_ms=now_ms, lease_ms=LEASE_MS)


def state_of(cache: StoreCache, job: JobRecord) -> str:
    """Where a job stands."""
    with reading(cache.engine) as connection:
        return jobs.read_job(connection, read_cache(connection, cache.name), job.name).state


def cancel(cache: StoreCache, job: JobRecord) -> JobRecord:
    """Cancel a job."""
    with writing(cache.engine) as connection:
        return jobs.cancel(connection, read_cache(connection, cache.name), job.name, now_ms=7)


def test_a_job_that_waits_is_returned_instead_of_a_second(queue: StoreCache) -> None:
    assert enqueue(queue).name == enqueue(queue, now_ms=5).name


def test_beside_a_running_job_no_second_one_is_queued(queue: StoreCache) -> None:
    first = enqueue(queue)
    lease(queue, "worker")
    assert enqueue(queue).name == first.name


def test_two_processes_that_queue_at_once_get_one_job(queue: StoreCache) -> None:
    engine = second_engine(queue.engine)
    made: list[JobRecord] = []
    other = threading.Thread(target=lambda: made.append(enqueue(replace(queue, engine=engine))))
    with writing(queue.engine) as connection:
        made.append(jobs.enqueue(connection, queue.id, kind=jobs.UPDATE, now_ms=0))
        other.start()
        if engine.dialect.name == "postgresql":  # SQLite has one lock for all
            eventually(lambda: is_blocked(queue.engine) or not other.is_alive())
    other.join()
    engine.dispose()
    assert made[0].name == made[1].name


def test_jobs_of_two_caches_are_taken_oldest_first_and_once(queue: StoreCache) -> None:
    other = make_cache(queue.engine)
    made = [enqueue(queue).name, enqueue(other).name]
    taken = [lease(queue, "worker") for _ in range(3)]
    assert [job and job.name for job in taken] == [*made, None]


def test_loads_of_two_files_are_two_jobs_and_of_one_file_one(queue: StoreCache) -> None:
    with writing(queue.engine) as connection:
        names = [
            jobs.enqueue(connection, queue.id, kind=jobs.LOAD, source=source, now_ms=0).name
            for source in ("a", "b", "a")
        ]
        update = jobs.enqueue(connection, queue.id, kind=jobs.UPDATE, now_ms=0)
    assert names[0] == names[2] != names[1]
    assert update.name not in names


def test_a_worker_without_inbox_leaves_loads_to_others(queue: StoreCache) -> None:
    with writing(queue.engine) as connection:
        jobs.enqueue(connection, queue.id, kind=jobs.LOAD, source="a", now_ms=0)
    enqueue(queue)
    kinds = []
    for offered in ((jobs.UPDATE,), (jobs.UPDATE,), (jobs.UPDATE, jobs.LOAD)):
        with writing(queue.engine) as connection:
            job = jobs.lease(connection, owner="w", now_ms=0, lease_ms=LEASE_MS, kinds=offered)
        kinds.append(job and job.kind)
    assert kinds == [jobs.UPDATE, None, jobs.LOAD]


def test_progress_is_kept_and_keeps_the_job(queue: StoreCache) -> None:
    assert enqueue(queue).stage is None
    job = lease(queue, "worker")
    assert job is not None
    with writing(queue.engine) as connection:
        jobs.record_progress(connection, job, stage="learn", done=3, total=9, now_ms=50, lease_ms=LEASE_MS)
    assert lease(queue, "other", now_ms=LEASE_MS) is None
    with reading(queue.engine) as connection:
        (found,) = read_jobs(connection, queue.id)
    assert (found.stage, found.done_count, found.total_count, found.state) == ("learn", 3, 9, jobs.RUNNING)


def test_a_lease_is_taken_over_once_it_has_expired(queue: StoreCache) -> None:
    enqueue(queue)
    lease(queue, "dead", now_ms=0)
    assert lease(queue, "other", now_ms=LEASE_MS - 1) is None
    taken = lease(queue, "other", now_ms=LEASE_MS)
    assert taken is not None and taken.owner == "other"


def test_an_extended_lease_is_not_taken_over(queue: StoreCache) -> None:
    enqueue(queue)
    job = lease(queue, "worker")
    assert job is not None
    with writing(queue.engine) as connection:
        jobs.extend_lease(connection, job, now_ms=50, lease_ms=LEASE_MS)
    assert lease(queue, "other", now_ms=LEASE_MS) is None


@pytest.mark.parametrize("change", ["extend", "progress", "finish"])
def test_a_worker_whose_job_was_taken_over_learns_of_it(queue: StoreCache, change: str) -> None:
    enqueue(queue)
    lost = lease(queue, "slow", now_ms=0)
    taken = lease(queue, "other", now_ms=LEASE_MS)
    assert lost is not None and taken is not None
    with pytest.raises(jobs.LeaseLostError), writing(queue.engine) as connection:
        if change == "extend":
            jobs.extend_lease(connection, lost, now_ms=LEASE_MS, lease_ms=LEASE_MS)
        elif change == "progress":
            jobs.record_progress(
                connection, lost, stage="read", done=0, total=1, now_ms=LEASE_MS, lease_ms=LEASE_MS
            )
        else:
            jobs.finish(connection, lost, state=jobs.SUCCEEDED, now_ms=LEASE_MS)
    assert state_of(queue, taken) == jobs.RUNNING


def test_a_finished_job_keeps_its_report_and_is_not_taken_again(queue: StoreCache) -> None:
    enqueue(queue)
    job = lease(queue, "worker")
    assert job is not None
    with writing(queue.engine) as connection:
        jobs.finish(connection, job, state=jobs.SUCCEEDED, report="{}", now_ms=9)
    with reading(queue.engine) as connection:
        ended = jobs.read_job(connection, read_cache(connection, queue.name), job.name)
    assert (ended.state, ended.report, ended.end_ms) == (jobs.SUCCEEDED, "{}", 9)
    assert lease(queue, "other", now_ms=10**9) is None


def test_a_cancelled_job_is_not_taken(queue: StoreCache) -> None:
    cancelled = cancel(queue, enqueue(queue))
    assert (cancelled.state, cancelled.end_ms) == (jobs.CANCELLED, 7)
    assert lease(queue, "worker") is None


def test_a_worker_whose_job_was_cancelled_learns_of_it(queue: StoreCache) -> None:
    enqueue(queue)
    job = lease(queue, "worker")
    assert job is not None
    cancel(queue, job)
    with pytest.raises(jobs.LeaseLostError), writing(queue.engine) as connection:
        jobs.finish(connection, job, state=jobs.SUCCEEDED, now_ms=0)
    assert state_of(queue, job) == jobs.CANCELLED


def test_a_job_that_has_ended_cannot_be_cancelled(queue: StoreCache) -> None:
    job = enqueue(queue)
    cancel(queue, job)
    with pytest.raises(PreconditionError) as raised:
        cancel(queue, job)
    assert raised.value.reason == "JOB_FINISHED"


def test_a_job_of_another_cache_is_not_found(queue: StoreCache) -> None:
    job = enqueue(make_cache(queue.engine))
    with pytest.raises(NotFoundError):
        cancel(queue, job)


@pytest.fixture
def worked(engine: Engine) -> tuple[StoreCache, Callable[[], Worker]]:
    """A cache alone in its database, with something to learn, and workers of it."""
    cache = make_cache(engine, dim=DIM)
    faq = learned(cache, "a", "b")
    fill(cache, faq, "c", count=6)
    config = Config(update=UpdateConfig(min_labelled_rows=6, max_map_drop=1.0))
    return cache, lambda: Worker(engine, config, clock=lambda: 3)


def test_a_worker_queues_what_is_due_once_and_learns_it(
    worked: tuple[StoreCache, Callable[[], Worker]],
) -> None:
    cache, make_worker = worked
    worker = make_worker()
    assert (worker.enqueue_due(), worker.enqueue_due()) == (1, 1)
    assert (worker.run_one(), worker.run_one()) == (True, False)
    with reading(cache.engine) as connection:
        (state, report), *rest = connection.execute(select(tables.jobs.c.state, tables.jobs.c.report)).all()
    assert (state, rest) == (jobs.SUCCEEDED, [])
    assert json.loads(report)["encoder_id"] == active_id(cache)
    assert worker.enqueue_due() == 0


@pytest.mark.parametrize(
    ("max_age_seconds", "now_ms", "due"), [(2.0, 1999, 0), (2.0, 2000, 1), (0.0, 10**9, 0)]
)
def test_fewer_rows_than_enough_are_due_once_the_oldest_has_waited(
    sqlite_config: Config, max_age_seconds: float, now_ms: int, due: int
) -> None:
    engine = open_engine(sqlite_config.store)
    migrate(engine)
    cache = make_cache(engine, dim=DIM)
    faq = learned(cache, "a", "b")
    update = UpdateConfig(min_labelled_rows=3, max_age_seconds=max_age_seconds)
    worker = Worker(engine, Config(update=update), clock=lambda: now_ms)
    assert worker.enqueue_due() == 0  # what is learned does not age
    fill(cache, faq, "c", count=2)
    assert worker.enqueue_due() == due
    engine.dispose()


def test_rows_without_labels_are_not_read_to_count_those_with_labels(sqlite_config: Config) -> None:
    engine = open_engine(sqlite_config.store)
    migrate(engine)
    cache = make_cache(engine, dim=DIM)
    fill(cache, learned(cache, "a", "b"), "c", "", count=3)
    statements: list[tuple[str, object]] = []
    event.listen(
        engine,
        "before_cursor_execute",
        lambda _c, _k, statement, parameters, *_: statements.append((statement, parameters)),
    )
    with reading(engine) as connection:
        assert read_unlearned(connection, read_cache(connection, cache.name)).row_count == 3
        statement, parameters = next(pair for pair in statements if "min(" in pair[0])
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    engine.dispose()
    assert ["ix_entries_labelled" in row.detail for row in plan] == [True]


def test_a_worker_whose_job_is_cancelled_meanwhile_activates_nothing(
    worked: tuple[StoreCache, Callable[[], Worker]],
) -> None:
    cache, make_worker = worked
    job, before = enqueue(cache), active_id(cache)
    with storing_after(cache.engine, "encoders.learning_state", lambda: _cancel_elsewhere(cache, job)):
        assert make_worker().run_one()
    assert (state_of(cache, job), active_id(cache), len(encoders(cache))) == (jobs.CANCELLED, before, 1)


def _cancel_elsewhere(cache: StoreCache, job: JobRecord) -> None:
    engine = second_engine(cache.engine)
    cancel(replace(cache, engine=engine), job)
    engine.dispose()


def test_a_job_that_cannot_be_done_fails_with_its_reason(engine: Engine) -> None:
    cache = make_cache(engine, dim=DIM)
    job = enqueue(cache)
    worker = Worker(engine, Config(), clock=lambda: 3)
    assert worker.run_one()
    with reading(engine) as connection:
        failed = jobs.read_job(connection, read_cache(connection, cache.name), job.name)
    assert failed.state == jobs.FAILED
    assert "no active encoder" in failed.error


def test_a_worker_goes_on_after_a_cache_whose_encoder_is_damaged(
    worked: tuple[StoreCache, Callable[[], Worker]],
) -> None:
    cache, make_worker = worked
    damaged = make_cache(cache.engine, dim=DIM)
    learned(damaged, "a", "b")
    fill(damaged, next(iter(damaged.categories())), "c", count=6)
    with writing(cache.engine) as connection:
        of_cache = tables.encoders.c.cache_id == damaged.id
        connection.execute(tables.encoders.update().where(of_cache).values(weights=b"none"))
    worker, before = make_worker(), active_id(cache)
    assert (worker.enqueue_due(), worker.run_one(), worker.run_one()) == (2, True, True)
    with reading(cache.engine) as connection:
        ended = connection.execute(select(tables.jobs.c.state, tables.jobs.c.cache_id)).all()
    assert {tuple(job) for job in ended} == {(jobs.FAILED, damaged.id), (jobs.SUCCEEDED, cache.id)}
    assert active_id(cache) != before


def test_a_cancelled_update_is_not_queued_again_at_once(
    worked: tuple[StoreCache, Callable[[], Worker]],
) -> None:
    cache, make_worker = worked
    worker = make_worker()
    assert worker.enqueue_due() == 1
    with reading(cache.engine) as connection:
        record = read_cache(connection, cache.name)
        (name,) = connection.execute(select(tables.jobs.c.name)).scalars()
    with writing(cache.engine) as connection:
        jobs.cancel(connection, record, name, now_ms=3)
    assert worker.enqueue_due() == 0

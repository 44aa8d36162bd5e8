"""Updates of what nobody would choose, and beside what may happen meanwhile, through the worker."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from learning_rows import DIM, active_id, check_label_codes, cluster, encoders, fill, learned
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError
from store_rows import StoreCache, make_cache, new_entry, second_engine

from hashing.checkpoint import load_encoder
from hashing.trainer import no_progress
from service import jobs, registry, store
from service.check import check_cache
from service.config import Config, UpdateConfig
from service.database import migrate, open_engine, reading, writing
from service.generations import build_index
from service.lease import Lease
from service.records import EntryRecord, JobRecord
from service.rows import read_jobs, read_weights
from service.worker import Worker


@pytest.fixture
def config(sqlite_config: Config) -> Config:
    """A worker's configuration that learns whatever it is given."""
    return replace(sqlite_config, update=UpdateConfig(min_labelled_rows=1, max_map_drop=1.0))


@pytest.fixture
def engine(config: Config) -> Iterator[Engine]:
    """A store of SQLite."""
    engine = open_engine(config.store)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def cache(engine: Engine) -> StoreCache:
    """A cache with an encoder that knows the labels "a" and "b"."""
    made = make_cache(engine, dim=DIM)
    learned(made, "a", "b")
    return made


def category_of(cache: StoreCache) -> int:
    """Its only category."""
    (category,) = cache.categories()
    return category


def put(cache: StoreCache, vectors: np.ndarray[Any, Any], labels: list[tuple[str, ...]]) -> None:
    """Store labelled rows without codes."""
    items = [
        new_entry(category_of(cache), vector=vector, labels=own)
        for vector, own in zip(vectors, labels, strict=True)
    ]
    cache.mutate(partial(store.store_entries, items=items))


def work(cache: StoreCache, config: Config, *, clock: Callable[[], int] = lambda: 5) -> JobRecord:
    """Have a worker learn what is due; returns its job."""
    worker = Worker(cache.engine, config, clock=clock)
    assert worker.enqueue_due() == 1
    assert worker.run_one()
    return last_job(cache)


def last_job(cache: StoreCache) -> JobRecord:
    """The newest job."""
    with reading(cache.engine) as connection:
        return read_jobs(connection, cache.id)[0]


def stored_codes(cache: StoreCache) -> dict[int, tuple[bytes | None, bytes | None]]:
    """Codes and label codes by row id."""
    return {row.id: (row.code, row.label_code) for row in cache.entries()}


def check_old_codes(cache: StoreCache, before: list[EntryRecord]) -> None:
    """No code that was stored has changed, and all invariants hold."""
    now = stored_codes(cache)
    for row in before:
        assert row.code is None or now[row.id][0] == row.code
        assert row.label_code is None or now[row.id][1] == row.label_code


def check_whole(cache: StoreCache, config: Config) -> None:
    """Every invariant holds, and the active encoder can be read."""
    assert check_cache(cache.engine, cache.name, config).problems == ()
    with reading(cache.engine) as connection:
        weights = read_weights(connection, cache.id, str(active_id(cache)))
    assert load_encoder(weights).encoder_id == active_id(cache)


@pytest.mark.parametrize("label", ["a", "z"])
def test_one_row_of_a_known_or_a_new_label_is_learned(cache: StoreCache, config: Config, label: str) -> None:
    before, parent = cache.entries(), active_id(cache)
    put(cache, cluster(label, 1), [(label,)])
    report = json.loads(work(cache, config).report)
    assert (report["accepted"], report["labelled_row_count"]) == (True, 1)
    assert report["new_labels"] == (["z"] if label == "z" else [])
    assert active_id(cache) != parent
    check_label_codes(cache)
    check_old_codes(cache, before)


@pytest.mark.parametrize(("labels", "new"), [(["a", "b"], []), (["y", "z"], ["y", "z"]), (["a", "z"], ["z"])])
def test_known_labels_alone_and_new_labels_alone_are_learned(
    cache: StoreCache, config: Config, labels: list[str], new: list[str]
) -> None:
    before = cache.entries()
    for label in labels:
        put(cache, cluster(label, 6), [(label,)] * 6)
    report = json.loads(work(cache, config).report)
    assert (report["accepted"], report["new_labels"], report["stored_bits_changed"]) == (True, new, 0)
    check_label_codes(cache)
    check_old_codes(cache, before)


def test_rows_that_contradict_each_other_are_learned_and_kept_apart_by_their_codes(
    cache: StoreCache, config: Config
) -> None:
    before = cache.entries()
    same = np.repeat(cluster("p", 1), 20, axis=0)
    put(cache, same, [("p",), ("q",)] * 10)
    assert json.loads(work(cache, config).report)["accepted"]
    check_label_codes(cache)
    check_old_codes(cache, before)
    rows = {row.labels: row.label_code for row in cache.entries()}
    assert rows[("p",)] != rows[("q",)]
    check_whole(cache, config)


def test_rows_that_contradict_what_is_stored_are_rejected_with_the_figures(
    cache: StoreCache, config: Config
) -> None:
    before, parent = cache.entries(), active_id(cache)
    for label, other in ("ab", "ba"):
        put(cache, cluster(label, 80), [(other,)] * 80)
    strict = replace(config, update=replace(config.update, max_map_drop=0.01))
    job = work(cache, strict)
    report = json.loads(job.report)
    assert (job.state, report["accepted"], active_id(cache)) == (jobs.SUCCEEDED, False, parent)
    assert "mAP on old rows falls" in report["reasons"][0]
    check_old_codes(cache, before)
    assert Worker(cache.engine, strict, clock=lambda: 5).enqueue_due() == 0


def test_hundreds_of_new_classes_in_one_batch_get_codes_of_their_own(
    cache: StoreCache, config: Config
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    put(cache, vectors.astype(np.float16), [(f"class {number}",) for number in range(300)])
    report = json.loads(work(cache, config).report)
    assert report["accepted"]
    assert (report["new_label_count"], len(report["new_labels"])) == (300, 100)
    codes = {row.labels: row.label_code for row in cache.entries()}
    assert len(set(codes.values())) == len(codes) == 302
    check_label_codes(cache)


def test_a_queued_job_of_a_deleted_cache_is_gone(cache: StoreCache, config: Config) -> None:
    fill(cache, category_of(cache), "c", count=3)
    worker = Worker(cache.engine, config, clock=lambda: 5)
    assert worker.enqueue_due() == 1
    with writing(cache.engine) as connection:
        registry.delete_cache(connection, cache.name, etag="")
    assert not worker.run_one()


@pytest.mark.parametrize("at", ["read", "judge"])
def test_an_update_whose_cache_is_deleted_meanwhile_ends_and_the_worker_goes_on(
    cache: StoreCache, config: Config, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    other = make_cache(cache.engine, dim=DIM)
    for made in (cache, other):
        if made is other:
            learned(other, "a", "b")
        fill(made, category_of(made), "c", count=6)

    pending = [cache.name]

    def delete(stage: str) -> None:
        if stage == at and pending:
            with writing(cache.engine) as connection:
                registry.delete_cache(connection, pending.pop(), etag="")

    meanwhile(monkeypatch, delete)
    worker = Worker(cache.engine, config, clock=lambda: 5)
    with writing(cache.engine) as connection:
        for made in (cache, other):
            jobs.enqueue(connection, made.id, kind=jobs.UPDATE, now_ms=5)
    assert [worker.run_one() for _ in range(3)] == [True, True, False]
    assert (last_job(other).state, len(encoders(other))) == (jobs.SUCCEEDED, 2)
    assert encoders(cache) == {}


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[str], None]) -> None:
    """Act at every stage that an update tells of, after it was written."""
    tell = Lease.tell

    def told(lease: Lease, stage: str, done: int, total: int) -> None:
        tell(lease, stage, done, total)
        act(stage)

    monkeypatch.setattr(Lease, "tell", told)


@pytest.mark.parametrize("at", ["read", "learn", "judge", "activate"])
def test_an_update_beside_a_build_leaves_both_whole(
    cache: StoreCache, config: Config, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    fill(cache, category_of(cache), "c", count=6)
    before = cache.entries()
    built: list[int] = []

    def build(stage: str) -> None:
        if stage == at and not built:
            built.append(_build(cache, config))

    meanwhile(monkeypatch, build)
    assert json.loads(work(cache, config).report)["accepted"]
    assert built == [_build(cache, config)]
    check_old_codes(cache, before)
    check_whole(cache, config)


def _build(cache: StoreCache, config: Config) -> int:
    """Build a generation; returns its rows."""
    built = build_index(
        cache.engine,
        cache.name,
        search=config.search,
        data_dir=config.store.data_dir,
        memory_limit_bytes=2**30,
        reencode=False,
        with_graph=False,
        progress=no_progress,
        now_ms=5,
    )
    return built.report.row_count


def test_two_workers_at_once_learn_it_once(cache: StoreCache, config: Config) -> None:
    fill(cache, category_of(cache), "c", count=6)
    engines = [second_engine(cache.engine) for _ in range(2)]
    workers = [Worker(engine, config, clock=lambda: 5) for engine in engines]
    start = threading.Barrier(2)
    ran: list[bool] = []

    def run(worker: Worker) -> None:
        start.wait()
        worker.enqueue_due()
        ran.append(worker.run_one())

    threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for engine in engines:
        engine.dispose()
    with reading(cache.engine) as connection:
        assert [job.state for job in read_jobs(connection, cache.id)] == [jobs.SUCCEEDED]
    assert (any(ran), len(encoders(cache))) == (True, 2)


class _DeadError(BaseException):
    """Stands for kill -9: nothing of the worker goes on."""


@pytest.mark.parametrize("at", range(1, 8))
def test_an_update_that_dies_before_any_of_its_commits_is_done_by_another_worker(
    cache: StoreCache, config: Config, at: int
) -> None:
    fill(cache, category_of(cache), "c", count=6)
    before, parent = cache.entries(), active_id(cache)
    first = Worker(cache.engine, config, clock=lambda: 5)
    assert first.enqueue_due() == 1
    commits: list[int] = []

    def die(_connection: object) -> None:
        commits.append(1)
        if len(commits) == at:
            raise _DeadError

    event.listen(cache.engine, "commit", die)
    with pytest.raises(_DeadError):
        first.run_one()
    event.remove(cache.engine, "commit", die)
    assert (active_id(cache), cache.entries()) == (parent, before)
    assert last_job(cache).state == (jobs.QUEUED if at == 1 else jobs.RUNNING)
    check_whole(cache, config)
    later_ms = 5 + int(config.update.lease_seconds * 1000)
    assert Worker(cache.engine, config, clock=lambda: later_ms).run_one()
    assert (last_job(cache).state, len(encoders(cache))) == (jobs.SUCCEEDED, 2)
    check_old_codes(cache, before)
    check_whole(cache, config)


def test_a_full_disk_fails_the_update_and_the_next_attempt_works_once_there_is_room(
    cache: StoreCache, config: Config
) -> None:
    fill(cache, category_of(cache), "c", count=6)
    before, parent = cache.entries(), active_id(cache)
    limit = _PageLimit()
    event.listen(cache.engine, "connect", limit)
    cache.engine.dispose()
    job = work(cache, config)
    assert (job.state, active_id(cache), len(encoders(cache))) == (jobs.FAILED, parent, 1)
    assert "the database's disk is full" in job.error
    assert cache.entries() == before
    check_whole(cache, config)
    event.remove(cache.engine, "connect", limit)
    cache.engine.dispose()
    later_ms = 5 + int(config.update.retry_seconds * 1000)
    assert Worker(cache.engine, config, clock=lambda: later_ms - 1).enqueue_due() == 0
    assert json.loads(work(cache, config, clock=lambda: later_ms).report)["accepted"]
    assert active_id(cache) != parent


class _PageLimit:
    """A database that cannot grow, as on a disk without room."""

    def __call__(self, connection: Any, _record: object) -> None:
        """Limit one connection."""
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")


def test_a_worker_whose_disk_has_no_room_even_for_the_failure_goes_on_later(
    cache: StoreCache, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cache, category_of(cache), "c", count=6)
    parent = active_id(cache)
    full = [True]

    def refuse(connection: Any, _cursor: object, statement: str, *_: object) -> None:
        if full[0] and statement.startswith(("INSERT", "UPDATE jobs SET state")):
            raise _full_error()

    worker = Worker(cache.engine, config, clock=lambda: 5)
    assert worker.enqueue_due() == 1
    event.listen(cache.engine, "before_cursor_execute", refuse)
    stopped = threading.Event()
    monkeypatch.setattr(stopped, "wait", lambda seconds: stopped.set())
    worker.run(stopped)
    full[0] = False
    assert active_id(cache) == parent
    lease_ms = int(config.update.lease_seconds * 1000)
    assert Worker(cache.engine, config, clock=lambda: 5 + lease_ms).run_one()
    assert (last_job(cache).state, active_id(cache) != parent) == (jobs.SUCCEEDED, True)


def _full_error() -> Exception:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorname = "SQLITE_FULL"
    return OperationalError("UPDATE", {}, error)

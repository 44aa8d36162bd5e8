"""Group commit: what is answered, when, and what one write may do to the others of its group."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError
from store_rows import StoreCache, make_cache, new_entry
from waiting import eventually

from service import registry, store
from service.accesses import Accesses, AccessLog
from service.categories import create_category
from service.compaction import Compactor
from service.config import Config, StoreConfig
from service.errors import (
    AlreadyExistsError,
    NotFoundError,
    OverloadedError,
    ServiceError,
    StoreUnavailableError,
)
from service.records import StoredEntry
from service.refresher import Refresher, Replicas
from service.transaction import CacheTransaction
from service.writer import Writer

Commits = list[tuple[list[int], bool]]
TIMEOUT_SECONDS = 10.0


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """An empty cache."""
    return make_cache(shared_engine)


@pytest.fixture
def commits() -> Commits:
    """What the writer told its `on_commit`."""
    return []


@pytest.fixture
def writer(shared_engine: Engine, commits: Commits) -> Iterator[Writer]:
    """A writer that has not started: what is submitted before `start` is one group."""
    made = make_writer(shared_engine, lambda ids, changed: commits.append((list(ids), changed)))
    yield made
    stop(made)


def make_writer(
    engine: Engine,
    on_commit: Callable[[Sequence[int], bool], None] = lambda ids, changed: None,
    *,
    max_queued_writes: int = 100,
    max_group_rows: int = 100,
) -> Writer:
    """A writer whose clock stands still."""
    return Writer(
        engine,
        clock=lambda: 1_000,
        max_queued_writes=max_queued_writes,
        max_group_rows=max_group_rows,
        on_commit=on_commit,
    )


def stop(writer: Writer) -> None:
    """Stop a writer that may not have started."""
    if writer._thread.ident is None:
        writer.start()
    writer.stop()


def put(writer: Writer, cache: StoreCache, category_id: int, *names: str) -> "Future[list[StoredEntry]]":
    """Submit a store."""
    items = [new_entry(category_id, name) for name in names]
    return writer.submit(cache.id, partial(store.store_entries, items=items), row_count=len(items))


def answer_of(future: "Future[object]") -> object:
    """The answer, or the error that it is."""
    error = future.exception(timeout=TIMEOUT_SECONDS)
    return error if error is not None else future.result()


def test_queued_writes_are_one_commit(writer: Writer, cache: StoreCache, commits: Commits) -> None:
    faq = cache.category("faq")
    futures = [put(writer, cache, faq, name) for name in "abc"]
    writer.start()
    assert [future.result(TIMEOUT_SECONDS)[0].seq for future in futures] == [1, 2, 3]
    assert commits == [([cache.id], False)]


def test_a_group_takes_no_more_than_its_rows(
    shared_engine: Engine, cache: StoreCache, commits: Commits
) -> None:
    faq = cache.category("faq")
    writer = make_writer(
        shared_engine, lambda ids, changed: commits.append((list(ids), changed)), max_group_rows=2
    )
    for names in ("ab", "c", "d", "e"):
        put(writer, cache, faq, *names)
    stop(writer)
    assert len(commits) == 3
    assert cache.names() == list("abcde")


def test_a_failed_write_is_undone_alone(writer: Writer, cache: StoreCache) -> None:
    faq = cache.category("faq")
    futures = [put(writer, cache, faq, *names) for names in ("a", ("b", "a"), "c")]
    writer.start()
    answers = [answer_of(future) for future in futures]
    assert isinstance(answers[1], AlreadyExistsError)
    assert (cache.names(), cache.seq()) == (["a", "c"], 2)
    cache.check()


def test_a_write_the_database_refuses_is_undone_alone(writer: Writer, cache: StoreCache) -> None:
    faq = cache.category("faq")

    def insert_nonsense(tx: CacheTransaction) -> None:
        store.store_entries(tx, [new_entry(faq, "lost")])
        tx.connection.execute(text("INSERT INTO changes (cache_id, seq) VALUES (NULL, NULL)"))

    futures = [
        put(writer, cache, faq, "a"),
        writer.submit(cache.id, insert_nonsense),
        put(writer, cache, faq, "b"),
    ]
    writer.start()
    assert isinstance(answer_of(futures[1]), Exception)
    assert futures[2].result(TIMEOUT_SECONDS)[0].seq == 2
    assert cache.names() == ["a", "b"]


def test_a_write_to_a_deleted_cache_fails_alone(
    writer: Writer, cache: StoreCache, shared_engine: Engine
) -> None:
    gone, faq = make_cache(shared_engine), cache.category("faq")
    lost = gone.category("faq")
    futures: list[Future[object]] = [
        put(writer, gone, lost, "before"),  # type: ignore[list-item]
        writer.submit_registry(lambda connection: registry.delete_cache(connection, gone.name, etag="")),
        put(writer, gone, lost, "after"),  # type: ignore[list-item]
        put(writer, cache, faq, "a"),  # type: ignore[list-item]
    ]
    writer.start()
    assert [type(answer_of(future)) for future in futures] == [list, type(None), NotFoundError, list]
    assert cache.names() == ["a"]


def test_a_category_queued_before_takes_stores(writer: Writer, cache: StoreCache, commits: Commits) -> None:
    faq = cache.category("faq")
    put(writer, cache, faq, "a")
    made = writer.submit_registry(
        lambda connection: create_category(connection, cache.name, "new", own={}, now_ms=0)
    )

    def store_in_new(tx: CacheTransaction) -> list[StoredEntry]:
        return store.store_entries(tx, [new_entry(made_id(tx), "b")])

    def made_id(tx: CacheTransaction) -> int:
        return next(category.id for category in tx.all_categories() if category.name == "new")

    stored = writer.submit(cache.id, store_in_new)
    writer.start()
    assert stored.result(TIMEOUT_SECONDS)[0].seq == 2
    assert made.result(TIMEOUT_SECONDS).name == "new"
    assert commits == [([cache.id], False), ([], True), ([cache.id], False)]
    cache.check()


def test_a_failed_commit_fails_every_write_of_the_group(
    writer: Writer, cache: StoreCache, shared_engine: Engine, commits: Commits
) -> None:
    faq = cache.category("faq")
    before = cache.seq()
    futures = [put(writer, cache, faq, *names) for names in ("a", "a", "b")]

    def fail(connection: object) -> None:
        raise OperationalError("COMMIT", {}, OSError("disk full"))

    event.listen(shared_engine, "commit", fail)
    try:
        writer.start()
        answers = [answer_of(future) for future in futures]
    finally:
        event.remove(shared_engine, "commit", fail)
    # The second one, too: the entry that it met was never stored.
    assert [type(answer) for answer in answers] == [StoreUnavailableError] * 3
    assert (cache.names(), cache.seq(), commits) == ([], before, [])


def test_a_writer_goes_on_after_a_failed_group(writer: Writer, cache: StoreCache) -> None:
    faq = cache.category("faq")

    def fail(tx: CacheTransaction) -> None:
        raise KeyError("a defect")

    failed = writer.submit(cache.id, fail)
    writer.start()
    assert isinstance(answer_of(failed), KeyError)
    assert put(writer, cache, faq, "a").result(TIMEOUT_SECONDS)[0].seq == 1


def test_an_answer_comes_after_the_commit_and_after_on_commit(
    shared_engine: Engine, cache: StoreCache
) -> None:
    faq = cache.category("faq")
    answered: list[Future[list[StoredEntry]]] = []
    seen: list[tuple[list[str], bool]] = []
    writer = make_writer(shared_engine, lambda ids, changed: seen.append((cache.names(), answered[0].done())))
    answered.append(put(writer, cache, faq, "a"))
    stop(writer)
    assert seen == [(["a"], False)]
    assert answered[0].result(0)[0].name == "a"


def test_a_failure_is_answered_after_on_commit(shared_engine: Engine, cache: StoreCache) -> None:
    faq = cache.category("faq")
    futures: list[Future[list[StoredEntry]]] = []
    done: list[bool] = []
    writer = make_writer(shared_engine, lambda ids, changed: done.extend(future.done() for future in futures))
    futures += [put(writer, cache, faq, "a"), put(writer, cache, faq, "a")]
    stop(writer)
    assert done == [False, False]
    assert isinstance(futures[1].exception(0), AlreadyExistsError)


def test_a_failing_on_commit_leaves_the_answer_as_it_is(shared_engine: Engine, cache: StoreCache) -> None:
    def fail(ids: Sequence[int], changed: bool) -> None:  # noqa: FBT001
        raise RuntimeError("the index")

    writer = make_writer(shared_engine, fail)
    stored = put(writer, cache, cache.category("faq"), "a")
    stop(writer)
    assert stored.result(0)[0].seq == 1


def test_a_full_queue_refuses_and_keeps_what_it_has(shared_engine: Engine, cache: StoreCache) -> None:
    faq = cache.category("faq")
    writer = make_writer(shared_engine, max_queued_writes=2)
    put(writer, cache, faq, "a")
    put(writer, cache, faq, "b")
    with pytest.raises(OverloadedError, match="2 writes"):
        put(writer, cache, faq, "c")
    assert writer.queued_count == 2
    stop(writer)
    assert cache.names() == ["a", "b"]


def test_stopping_commits_what_is_queued_and_refuses_what_comes_later(
    writer: Writer, cache: StoreCache
) -> None:
    faq = cache.category("faq")
    stored = put(writer, cache, faq, "a")
    stop(writer)
    assert stored.done()
    with pytest.raises(StoreUnavailableError) as raised:
        put(writer, cache, faq, "b")
    assert raised.value.reason == "SHUTTING_DOWN"
    assert cache.names() == ["a"]


def test_a_write_cancelled_before_it_began_is_not_applied(writer: Writer, cache: StoreCache) -> None:
    faq = cache.category("faq")
    futures = [put(writer, cache, faq, name) for name in "ab"]
    assert futures[0].cancel()
    writer.start()
    futures[1].result(TIMEOUT_SECONDS)
    assert cache.names() == ["b"]


def test_a_write_that_began_cannot_be_cancelled(writer: Writer, cache: StoreCache) -> None:
    began, go_on = threading.Event(), threading.Event()

    def wait(tx: CacheTransaction) -> str:
        began.set()
        assert go_on.wait(TIMEOUT_SECONDS)
        return "done"

    future = writer.submit(cache.id, wait)
    writer.start()
    assert began.wait(TIMEOUT_SECONDS)
    cancelled = future.cancel()
    go_on.set()
    assert (cancelled, future.result(TIMEOUT_SECONDS)) == (False, "done")


def test_every_write_accepted_while_the_writer_stops_is_answered(
    shared_engine: Engine, cache: StoreCache
) -> None:
    writer = make_writer(shared_engine, max_queued_writes=10_000)
    accepted: list[Future[int]] = []
    writer.start()

    def submit_until_refused() -> None:
        while True:
            try:
                accepted.append(writer.submit(cache.id, lambda tx: tx.seq))
            except OverloadedError:
                continue
            except StoreUnavailableError:
                return

    threads = [threading.Thread(target=submit_until_refused) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(accepted) > 50)
    writer.stop()
    for thread in threads:
        thread.join()
    assert all(future.done() for future in accepted)


def test_accesses_that_cannot_be_written_are_kept_for_every_cache(
    shared_engine: Engine, tmp_path: object
) -> None:
    caches = [make_cache(shared_engine) for _ in range(3)]
    categories = [cache.category("faq") for cache in caches]
    log = AccessLog(max_entries=10)
    for cache, category_id in zip(caches, categories, strict=True):
        log.record(cache.id, category_id, outcome="hit_count", entry_id=7, now_ms=5)
    writer = make_writer(shared_engine, max_queued_writes=1)
    config = Config(store=StoreConfig(data_dir=str(tmp_path)))
    refresher = Refresher(
        shared_engine,
        config,
        replicas=Replicas(shared_engine, config),
        writer=writer,
        accesses=log,
        compactor=Compactor(config),
        clock=lambda: 0,
    )
    stop(writer)
    with pytest.raises(ServiceError):
        refresher.write_accesses()
    expected = {
        cache.id: Accesses(hits={7: (1, 5)}, outcomes={(category_id, "hit_count"): 1})  # type: ignore[arg-type]
        for cache, category_id in zip(caches, categories, strict=True)
    }
    assert log.drain() == expected

"""Replicas of one database: what one writes the others see, and every way to build an index agrees."""

import logging
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine
from store_rows import (
    VECTOR_BYTES,
    StoreCache,
    is_blocked,
    make_cache,
    new_entry,
    second_engine,
    storing_after,
)
from waiting import eventually

from hashing.config import EncoderConfig
from index.manifest import CURRENT_FILE
from index.segment import TOMBSTONE
from service import registry, store
from service.accesses import Accesses
from service.categories import delete_category, update_category
from service.coding import code_rows
from service.config import SearchConfig
from service.database import reading, writing
from service.errors import NotCaughtUpError, NotFoundError
from service.feed import FeedPrunedError, prune_changes, read_changes
from service.generations import BuiltIndex, build_index
from service.learning import train_from_store
from service.records import NewEntry
from service.replica import CacheReplica, index_root, read_versions
from service.rows import read_cache
from service.writer import Writer

Row = tuple[int, str, str | None, bytes, bytes, int, str]


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """An empty cache."""
    return make_cache(shared_engine)


@pytest.fixture
def other_engine(shared_engine: Engine) -> Iterator[Engine]:
    """The database as another process opens it."""
    engine = second_engine(shared_engine)
    yield engine
    engine.dispose()


def replica_of(cache: StoreCache, engine: Engine, data_dir: Path) -> CacheReplica:
    """The cache as a process with that engine serves it."""
    with reading(engine) as connection:
        record = read_cache(connection, cache.name)
    return CacheReplica(engine, record, search=SearchConfig(), data_dir=str(data_dir))


def served(replica: CacheReplica) -> dict[int, Row]:
    """What the index holds by row id: category, modality, encoder, code, vector, expire time, payload."""
    found: dict[int, Row] = {}
    for segment in replica.state.index._all_segments():
        view = segment.view()
        for i in np.flatnonzero(view.expire_times != TOMBSTONE).tolist():
            code = b"" if view.codes is None else view.codes[i].tobytes()
            row_id = int(view.entry_ids[i])
            assert row_id not in found
            key = segment.key
            found[row_id] = (
                key.category_id,
                key.modality,
                key.encoder_id,
                code,
                view.vectors[i].tobytes(),
                int(view.expire_times[i]),
                segment.payload(i).decode(),
            )
    return found


def stored(cache: StoreCache) -> dict[int, tuple[int, str, str | None, bytes, bytes, int]]:
    """The same from the store, but for the payload."""
    return {
        row.id: (row.category_id, row.modality, row.encoder_id, row.code or b"", row.vector, row.expire_ms)
        for row in cache.entries()
    }


def check_served(cache: StoreCache, replica: CacheReplica) -> None:
    """The index holds exactly the rows of the store, and all mutations."""
    assert {row_id: row[:-1] for row_id, row in served(replica).items()} == stored(cache)
    assert replica.state.index.applied_seq == cache.seq()


def put(cache: StoreCache, *items: NewEntry) -> None:
    """Store the items in one transaction."""
    cache.mutate(partial(store.store_entries, items=items))


def put_named(cache: StoreCache, names: str) -> None:
    """Store an entry per letter in a new category "faq"."""
    faq = cache.category("faq")
    put(cache, *(new_entry(faq, name) for name in names))


def build(cache: StoreCache, data_dir: Path, *, reencode: bool = False) -> BuiltIndex:
    """Write and activate a generation."""
    return build_index(
        cache.engine,
        cache.name,
        search=SearchConfig(),
        data_dir=str(data_dir),
        with_graph=False,
        reencode=reencode,
        memory_limit_bytes=1 << 24,
        progress=lambda stage, done, total: None,
        now_ms=0,
    )


def train(cache: StoreCache, *, seed: int = 0) -> str:
    """Train an encoder on what is stored and activate it."""
    config = EncoderConfig(code_bits=64, label_bits=64, itq_iterations=2, feature_count=16, seed=seed)
    trained = train_from_store(
        cache.engine, cache.name, config=config, modality="text", progress=None, now_ms=seed
    )
    with writing(cache.engine) as connection:
        registry.activate_encoder(connection, cache.id, trained.encoder_id, max_live_encoders=4)
    return trained.encoder_id


def test_a_store_of_one_replica_is_seen_by_the_other(
    cache: StoreCache, other_engine: Engine, tmp_path: Path
) -> None:
    faq = cache.category("faq")
    replicas = [replica_of(cache, engine, tmp_path) for engine in (cache.engine, other_engine)]
    put(cache, new_entry(faq, "a", response=b"answer"))
    for replica in replicas:
        replica.catch_up()
        check_served(cache, replica)
    assert served(replicas[0]) == served(replicas[1])


def test_a_deletion_of_one_replica_is_seen_by_the_other(
    cache: StoreCache, other_engine: Engine, tmp_path: Path
) -> None:
    put_named(cache, "abc")
    replica = replica_of(cache, other_engine, tmp_path)
    cache.mutate(partial(store.delete_entry, name="b"))
    replica.catch_up()
    check_served(cache, replica)
    assert len(served(replica)) == 2


def test_an_extension_of_one_replica_is_seen_by_the_other(
    cache: StoreCache, other_engine: Engine, tmp_path: Path
) -> None:
    put(cache, new_entry(cache.category("faq", ttl_ms=50, ttl_mode="sliding"), "a"))
    replica = replica_of(cache, other_engine, tmp_path)
    row_id = cache.entries()[0].id
    cache.mutate(partial(store.record_accesses, accesses=Accesses(hits={row_id: (1, 30)})))
    replica.catch_up()
    assert served(replica)[row_id][5] == 80
    check_served(cache, replica)


def test_a_store_and_its_deletion_in_one_step_leave_nothing(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq")
    replica = replica_of(cache, cache.engine, tmp_path)
    put(cache, new_entry(faq, "a"))
    cache.mutate(partial(store.delete_entry, name="a"))
    replica.catch_up()
    assert (served(replica), replica.state.index.applied_seq) == ({}, 2)


def test_without_changes_there_is_no_page(cache: StoreCache) -> None:
    with reading(cache.engine) as connection:
        assert read_changes(connection, read_cache(connection, cache.name), after=0) is None


def test_a_store_while_the_feed_is_read_is_no_gap(cache: StoreCache, other_engine: Engine) -> None:
    elsewhere = StoreCache(other_engine, cache.name, cache.id)
    item = new_entry(cache.category("faq"), "a")
    store_one = storing_after(cache.engine, "FROM changes", lambda: put(elsewhere, item))
    with store_one, reading(cache.engine) as connection:
        record = read_cache(connection, cache.name)
        assert read_changes(connection, record, after=0) is None
    assert cache.seq() == 1


def test_pruning_keeps_the_last_changes(cache: StoreCache) -> None:
    put_named(cache, "abcde")
    with writing(cache.engine) as connection:
        assert prune_changes(connection, cache.id, retained=2) == 3
    assert [seq for seq, _, _ in cache.feed()] == [4, 5]


@pytest.mark.parametrize(("after", "is_pruned"), [(0, True), (2, True), (3, False), (4, False)])
def test_a_follower_behind_a_pruned_feed_is_told_so(
    cache: StoreCache,
    after: int,
    is_pruned: bool,  # noqa: FBT001
) -> None:
    put_named(cache, "abcde")
    with writing(cache.engine) as connection:
        prune_changes(connection, cache.id, retained=2)
    with reading(cache.engine) as connection:
        record = read_cache(connection, cache.name)
        if is_pruned:
            with pytest.raises(FeedPrunedError):
                read_changes(connection, record, after=after)
        else:
            page = read_changes(connection, record, after=after)
            assert page is not None and page.changes.seq == 5


def test_a_feed_pruned_whole_is_told_from_an_empty_one(cache: StoreCache) -> None:
    put(cache, new_entry(cache.category("faq"), "a"))
    with writing(cache.engine) as connection:
        prune_changes(connection, cache.id, retained=0)
    with reading(cache.engine) as connection:
        record = read_cache(connection, cache.name)
        assert read_changes(connection, record, after=1) is None
        with pytest.raises(FeedPrunedError):
            read_changes(connection, record, after=0)


def test_a_replica_behind_a_pruned_feed_rebuilds(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq")
    put(cache, new_entry(faq, "a"), new_entry(faq, "b"))
    replica = replica_of(cache, cache.engine, tmp_path)
    cache.mutate(partial(store.delete_entry, name="a"))
    put(cache, new_entry(faq, "c"))
    with writing(cache.engine) as connection:
        prune_changes(connection, cache.id, retained=1)
    replica.catch_up()
    check_served(cache, replica)


def test_waiting_for_a_seq_ends_when_another_thread_catches_up(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq")
    replica = replica_of(cache, cache.engine, tmp_path)
    waiting = threading.Thread(target=replica.wait_for, args=(1,), kwargs={"timeout_seconds": 30.0})
    waiting.start()
    put(cache, new_entry(faq, "a"))
    replica.catch_up()
    waiting.join(timeout=10)
    assert not waiting.is_alive()


def test_waiting_for_a_seq_that_does_not_come_says_where_the_replica_is(
    cache: StoreCache, tmp_path: Path
) -> None:
    replica = replica_of(cache, cache.engine, tmp_path)
    with pytest.raises(NotCaughtUpError) as raised:
        replica.wait_for(5, timeout_seconds=0.01)
    assert raised.value.metadata == {"seq": "0"}


def test_a_deleted_category_leaves_the_index_with_its_settings(cache: StoreCache, tmp_path: Path) -> None:
    faq, other = cache.category("faq"), cache.category("other")
    put(cache, new_entry(faq, "a"), new_entry(other, "b"))
    replica = replica_of(cache, cache.engine, tmp_path)
    with writing(cache.engine) as connection:
        delete_category(connection, cache.name, "faq", etag="", now_ms=0)
    replica.refresh_settings()
    check_served(cache, replica)
    assert list(replica.state.categories) == ["other"]
    with pytest.raises(NotFoundError):
        replica.state.category("faq")


def test_every_change_of_settings_moves_the_config_version(cache: StoreCache) -> None:
    def version() -> int:
        with reading(cache.engine) as connection:
            return read_versions(connection)[cache.name][1]

    seen = [version()]
    put_named(cache, "".join(map(chr, range(65, 105))))
    seen.append(version())
    with writing(cache.engine) as connection:
        update_category(connection, cache.name, "faq", etag="", changed={"shadow": True}, now_ms=0)
    seen.append(version())
    train(cache)
    seen.append(version())
    with writing(cache.engine) as connection:
        delete_category(connection, cache.name, "faq", etag="", now_ms=0)
    seen.append(version())
    assert seen == sorted(set(seen))


def test_a_build_gives_every_row_the_code_of_its_stored_vector(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq")
    put(cache, *(new_entry(faq, f"n{i}") for i in range(40)))
    encoder_id = train(cache)
    built = build(cache, tmp_path)
    replica = replica_of(cache, cache.engine, tmp_path)
    encoder = replica.state.encoders.by_id[encoder_id]
    vectors = np.stack([np.frombuffer(row.vector, dtype="<f2") for row in cache.entries()])
    codings = code_rows(encoder, vectors, modality="text", labels=[()] * 40)
    assert [row.code for row in cache.entries()] == [coding.code for coding in codings]
    assert (built.coded_count, built.watermark) == (40, 40)
    assert replica.state.index.generation == built.report.generation
    check_served(cache, replica)
    cache.check()


def test_a_second_build_codes_only_rows_without_code(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq")
    put(cache, *(new_entry(faq, f"n{i}") for i in range(40)))
    first = train(cache, seed=1)
    build(cache, tmp_path)
    second = train(cache, seed=2)
    put(cache, new_entry(faq, "new"))
    assert build(cache, tmp_path).coded_count == 1
    assert [row.encoder_id for row in cache.entries()] == [first] * 40 + [second]
    assert build(cache, tmp_path, reencode=True).coded_count == 40
    assert {row.encoder_id for row in cache.entries()} == {second}
    cache.check()


def test_a_new_generation_is_opened_and_replayed(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq")
    put(cache, *(new_entry(faq, name) for name in "abc"))
    replica = replica_of(cache, cache.engine, tmp_path)
    built = build(cache, tmp_path)
    cache.mutate(partial(store.delete_entry, name="b"))
    put(cache, new_entry(faq, "d"))
    assert replica.open_new_generation()
    assert replica.state.index.generation == built.report.generation
    check_served(cache, replica)
    assert not replica.open_new_generation()


STEP = st.one_of(
    st.tuples(st.just("store"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("delete"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("hit"), st.integers(0, 5), st.booleans()),
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(before=st.lists(STEP, max_size=10), after=st.lists(STEP, max_size=10))
def test_generation_and_replay_equal_a_rebuild_and_the_feed(
    shared_engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    before: list[tuple[str, int, bool]],
    after: list[tuple[str, int, bool]],
) -> None:
    cache, data_dir = make_cache(shared_engine), tmp_path_factory.mktemp("generation")
    ids = [cache.category(name, ttl_ms=1_000, ttl_mode="sliding") for name in ("one", "two")]
    follower = replica_of(cache, shared_engine, data_dir / "none")

    def run(steps: list[tuple[str, int, bool]], *, now_ms: int) -> None:
        for step, number, second in steps:
            names = {record.name: record.id for record in cache.entries()}
            if step == "store":
                item = new_entry(ids[second], fingerprint=str(number))
                cache.mutate(partial(store.store_entries, items=[item]), now_ms=now_ms)
            elif names and step == "delete":
                name = sorted(names)[number % len(names)]
                cache.mutate(partial(store.delete_entry, name=name), now_ms=now_ms)
            elif names:
                row_id = names[sorted(names)[number % len(names)]]
                accesses = Accesses(hits={row_id: (1, now_ms)})
                cache.mutate(partial(store.record_accesses, accesses=accesses), now_ms=now_ms)

    run(before, now_ms=10)
    build(cache, data_dir)
    run(after, now_ms=20)
    follower.catch_up()
    replayed = replica_of(cache, shared_engine, data_dir)
    rebuilt = replica_of(cache, shared_engine, data_dir / "none")
    assert replayed.state.index.generation is not None
    check_served(cache, replayed)
    assert served(replayed) == served(rebuilt) == served(follower)


@pytest.mark.parametrize("file", ["manifest.json", "*.segment", CURRENT_FILE])
def test_a_damaged_generation_is_refused_by_name_and_the_store_serves(
    cache: StoreCache, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    put_named(cache, "abc")
    built = build(cache, tmp_path)
    root = index_root(str(tmp_path), cache.id)
    path = root / file if file == CURRENT_FILE else next((root / built.report.generation).glob(file))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with caplog.at_level(logging.ERROR):
        replica = replica_of(cache, cache.engine, tmp_path)
    assert (CURRENT_FILE if file == CURRENT_FILE else built.report.generation) in caplog.text
    assert replica.state.index.generation is None
    check_served(cache, replica)


def test_a_damaged_generation_is_refused_once_and_a_later_one_is_served(
    cache: StoreCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(cache, new_entry(cache.category("faq"), "a"))
    replica = replica_of(cache, cache.engine, tmp_path)
    damaged = build(cache, tmp_path).report.generation
    (index_root(str(tmp_path), cache.id) / damaged / "manifest.json").write_text("{}")
    with caplog.at_level(logging.ERROR):
        assert not replica.open_new_generation()
        assert not replica.open_new_generation()
    assert caplog.text.count("refused") == 1
    later = build(cache, tmp_path).report.generation
    assert replica.open_new_generation()
    assert replica.state.index.generation == later


def test_a_generation_behind_a_pruned_feed_is_refused(cache: StoreCache, tmp_path: Path) -> None:
    faq = cache.category("faq")
    put(cache, new_entry(faq, "a"))
    build(cache, tmp_path)
    put(cache, new_entry(faq, "b"), new_entry(faq, "c"))
    with writing(cache.engine) as connection:
        prune_changes(connection, cache.id, retained=1)
    replica = replica_of(cache, cache.engine, tmp_path)
    assert replica.state.index.generation is None
    check_served(cache, replica)


def test_a_category_deleted_after_the_build_is_not_served_from_the_generation(
    cache: StoreCache, tmp_path: Path
) -> None:
    faq, other = cache.category("faq"), cache.category("other")
    put(cache, new_entry(faq, "a"), new_entry(other, "b"))
    build(cache, tmp_path)
    with writing(cache.engine) as connection:
        delete_category(connection, cache.name, "faq", etag="", now_ms=0)
    replica = replica_of(cache, cache.engine, tmp_path)
    assert replica.state.index.generation is not None
    check_served(cache, replica)


def test_writers_of_two_processes_keep_seq_contiguous_and_the_quota(
    cache: StoreCache, other_engine: Engine
) -> None:
    faq = cache.category("faq", max_entries=7, max_bytes=20 * VECTOR_BYTES)
    writers = [
        Writer(
            engine,
            clock=lambda: 0,
            max_queued_writes=1_000,
            max_group_rows=4,
            on_commit=lambda ids, changed: cache.check(),
        )
        for engine in (cache.engine, other_engine)
    ]
    futures = []
    for number, writer in enumerate(writers):
        for i in range(30):
            items = [new_entry(faq, f"w{number}-{i}-{j}", response=bytes(16 * (i % 5))) for j in range(2)]
            futures.append(writer.submit(cache.id, partial(store.store_entries, items=items), row_count=2))
        writer.start()
    seqs = [answer.seq for future in futures for answer in future.result(30)]
    for writer in writers:
        writer.stop()
    upserts = [seq for seq, operation, _ in cache.feed() if operation == store.Operation.UPSERT]
    assert sorted(seqs) == upserts
    cache.check()


def test_a_category_deleted_elsewhere_during_a_store_waits_for_it(
    cache: StoreCache, other_engine: Engine
) -> None:
    faq = cache.category("faq")
    failures: list[BaseException] = []

    def delete() -> None:
        try:
            with writing(other_engine) as connection:
                delete_category(connection, cache.name, "faq", etag="", now_ms=0)
        except BaseException as error:
            failures.append(error)

    deleting = threading.Thread(target=delete)

    def store_one(tx: store.CacheTransaction) -> None:
        deleting.start()
        if cache.engine.dialect.name == "postgresql":  # SQLite has one lock for all
            eventually(lambda: is_blocked(cache.engine) or not deleting.is_alive())
        store.store_entries(tx, [new_entry(faq, "a")])

    cache.mutate(store_one)
    deleting.join()
    assert (failures, cache.names(), cache.seq()) == ([], [], 1)

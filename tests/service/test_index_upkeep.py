"""Generations that a server builds by itself: when, in what order, and what it does about those it cannot."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from store_rows import StoreCache, make_cache, new_entry
from waiting import eventually

from index.manifest import CURRENT_FILE, build_lock, current_generation
from service import store
from service.check import check_cache
from service.compaction import COMMAND, Compactor, build_reason, row_counts
from service.compaction_process import build
from service.config import CompactionConfig, Config
from service.database import migrate, open_engine, reading, writing
from service.errors import ConfigurationError
from service.replica import CacheReplica, index_root
from service.rows import read_cache

ROOT = Path(__file__).parents[2]
# Ends with a failure that says how often it was started, and never ends.
FAILING = (sys.executable, "-c", 'print(\'{"outcome": "failed", "reason": "the disk is full"}\')')
ENDLESS = (sys.executable, "-c", "import threading; threading.Event().wait()")
# Once the store is read, no file may grow beyond 4 KiB: writes fail as on a full disk.
LIMITED = """
import resource, sys
import service.generations
from service.compaction_process import main

build_generation = service.generations.build_generation

def limited(*arguments, **options):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    return build_generation(*arguments, **options)

service.generations.build_generation = limited
sys.exit(main())
"""
NO_SPACE = (sys.executable, "-c", LIMITED)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that tests start find the packages."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'protos'}")


@pytest.fixture
def settings(sqlite_config: Config) -> Config:
    """A server that builds from 20 rows on, or 5 at its end, and looks all the time."""
    compaction = CompactionConfig(
        min_rows=20, share=0.1, check_seconds=0.02, retry_seconds=0.1, snapshot_min_rows=5
    )
    return replace(sqlite_config, compaction=compaction)


@pytest.fixture
def store_engine(settings: Config) -> Iterator[Engine]:
    """The server's database."""
    engine = open_engine(settings.store)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def cache(store_engine: Engine) -> StoreCache:
    """An empty cache."""
    return make_cache(store_engine)


@pytest.fixture
def make_compactor(settings: Config) -> Iterator[Callable[..., Compactor]]:
    """Compactors, ended at the end."""
    made: list[Compactor] = []

    def make(
        config: Config = settings,
        *,
        clock: Callable[[], float] | None = None,
        command: Sequence[str] = COMMAND,
    ) -> Compactor:
        made.append(Compactor(config, clock=clock or Clock(), command=command))
        return made[-1]

    yield make
    for compactor in made:
        compactor.stop()


def with_compaction(config: Config, **changes: Any) -> Config:
    """The configuration with other [compaction] values."""
    return replace(config, compaction=replace(config.compaction, **changes))


def put(cache: StoreCache, count: int, *, prefix: str = "e") -> None:
    """Store entries in category "faq"."""
    known = {record.name: record.id for record in cache.categories().values()}
    faq = known["faq"] if "faq" in known else cache.category("faq")
    items = [new_entry(faq, f"{prefix}{number}") for number in range(count)]
    cache.mutate(partial(store.store_entries, items=items))


def replica_of(cache: StoreCache, config: Config) -> CacheReplica:
    """The cache as a server serves it."""
    with reading(cache.engine) as connection:
        record = read_cache(connection, cache.name)
    return CacheReplica(cache.engine, record, search=config.search, data_dir=config.store.data_dir)


def root_of(cache: StoreCache, config: Config) -> Path:
    """Where its generations lie."""
    return index_root(config.store.data_dir, cache.id)


def run_build(compactor: Compactor, replica: CacheReplica) -> None:
    """A whole build, from the step that starts it to the one that sees its end."""
    compactor.step([replica])
    assert compactor.is_building
    await_end(compactor, replica)


def await_end(compactor: Compactor, replica: CacheReplica) -> None:
    """Step until a running build has been seen to end."""

    def has_ended() -> bool:
        compactor.step([replica])
        return not compactor.is_building

    eventually(has_ended, timeout_seconds=60)


# When


def test_rows_that_no_generation_holds_are_built_and_served(
    cache: StoreCache, settings: Config, make_compactor: Callable[..., Compactor]
) -> None:
    put(cache, 30)
    replica = replica_of(cache, settings)
    compactor = make_compactor()
    run_build(compactor, replica)
    assert replica.open_new_generation()
    counts = row_counts(replica)
    assert (counts.live_count, counts.unheld_count, counts.dead_count) == (30, 0, 0)
    compactor.step([replica])
    assert not compactor.is_building
    assert check_cache(cache.engine, cache.name, settings).problems == ()


def test_deleted_rows_of_a_generation_are_left_behind(
    cache: StoreCache, settings: Config, make_compactor: Callable[..., Compactor]
) -> None:
    put(cache, 60)
    replica = replica_of(cache, settings)
    assert build(cache.name, settings)["outcome"] == "built"
    assert replica.open_new_generation()
    for number in range(25):
        cache.mutate(partial(store.delete_entry, name=f"e{number}"))
    replica.catch_up()
    assert row_counts(replica).dead_count == 25
    run_build(make_compactor(), replica)
    assert replica.open_new_generation()
    assert (row_counts(replica).live_count, row_counts(replica).dead_count) == (35, 0)


@pytest.mark.parametrize(
    ("min_rows", "share", "is_due"), [(29, 0.1, True), (30, 0.1, False), (5, 0.9, True), (5, 1.0, False)]
)
def test_a_build_pays_from_the_stated_rows_and_share_on(
    cache: StoreCache,
    settings: Config,
    min_rows: int,
    share: float,
    is_due: bool,  # noqa: FBT001
) -> None:
    put(cache, 30)
    limits = replace(settings.compaction, min_rows=min_rows, share=share)
    assert bool(build_reason(replica_of(cache, settings), limits)) == is_due


def test_nothing_is_built_where_it_is_switched_off(
    cache: StoreCache, settings: Config, make_compactor: Callable[..., Compactor]
) -> None:
    put(cache, 30)
    compactor = make_compactor(with_compaction(settings, enabled=False))
    replica = replica_of(cache, settings)
    compactor.step([replica])
    assert not compactor.is_building
    compactor.snapshot([replica])
    assert current_generation(root_of(cache, settings)) is None


def test_another_build_of_the_cache_is_waited_for(
    cache: StoreCache,
    settings: Config,
    make_compactor: Callable[..., Compactor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(cache, 30)
    replica = replica_of(cache, settings)
    root_of(cache, settings).mkdir(parents=True)
    compactor = make_compactor()
    with build_lock(root_of(cache, settings)):
        compactor.step([replica])
        assert not compactor.is_building
    run_build(compactor, replica)
    assert replica.open_new_generation()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_cache_that_another_process_builds_does_not_hold_up_the_others(
    store_engine: Engine,
    settings: Config,
    make_compactor: Callable[..., Compactor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    locked, free = make_cache(store_engine), make_cache(store_engine)
    for each in (locked, free):
        put(each, 30)
    root_of(locked, settings).mkdir(parents=True)
    compactor = make_compactor(command=ENDLESS)
    with build_lock(root_of(locked, settings)):
        compactor.step([replica_of(locked, settings), replica_of(free, settings)])
    assert compactor.is_building
    assert f"building a generation of {free.name}" in caplog.text
    assert f"building a generation of {locked.name}" not in caplog.text


def test_a_pause_beyond_the_longest_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"\[compaction\] retry_seconds.*at most 3600"):
        CompactionConfig(retry_seconds=3601.0)


# Failures


def test_a_failed_build_is_logged_once_and_retried_with_growing_pauses(
    cache: StoreCache,
    settings: Config,
    make_compactor: Callable[..., Compactor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(cache, 30)
    replica = replica_of(cache, settings)
    clock = Clock()
    compactor = make_compactor(with_compaction(settings, retry_seconds=10.0), clock=clock, command=FAILING)
    started = []
    for second in range(0, 160, 10):
        clock.now = second
        compactor.step([replica])
        if compactor.is_building:
            started.append(second)
            await_end(compactor, replica)
    assert started == [0, 10, 30, 70, 150]
    assert caplog.text.count("the disk is full") == 1


def test_a_full_disk_is_logged_and_serving_goes_on(
    cache: StoreCache,
    settings: Config,
    make_compactor: Callable[..., Compactor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(cache, 60)
    replica = replica_of(cache, settings)
    clock = Clock()
    assert build(cache.name, settings)["outcome"] == "built"
    assert replica.open_new_generation()
    put(cache, 60, prefix="later")
    replica.catch_up()
    before = current_generation(root_of(cache, settings))
    run_build(make_compactor(clock=clock, command=NO_SPACE), replica)
    assert "File too large" in caplog.text
    assert current_generation(root_of(cache, settings)) == before
    assert not list(root_of(cache, settings).glob("building-*"))
    assert row_counts(replica).live_count == 120
    run_build(make_compactor(clock=clock), replica)
    assert replica.open_new_generation()
    assert row_counts(replica).unheld_count == 0


def test_a_build_that_is_killed_is_logged_by_its_signal(
    cache: StoreCache,
    settings: Config,
    make_compactor: Callable[..., Compactor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(cache, 30)
    killed = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    run_build(make_compactor(command=killed), replica_of(cache, settings))
    assert "SIGKILL" in caplog.text


def test_a_build_ends_with_the_process_that_started_it(cache: StoreCache, settings: Config) -> None:
    put(cache, 30)
    order = json.dumps({"cache": cache.name, "config": asdict(settings)}).encode() + b"\n"
    with writing(cache.engine):  # which the build waits for
        process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(order)
        process.communicate(timeout=60)  # closes the input, as the end of this process would
        assert process.returncode == 1
    assert current_generation(root_of(cache, settings)) is None


# Damage


def damage(path: Path, how: str) -> None:
    """Break a file."""
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["missing", "truncated", "corrupted"])
@pytest.mark.parametrize("file", ["manifest.json", "*.segment", CURRENT_FILE])
def test_damage_at_the_start_is_named_and_a_fresh_generation_is_built(
    cache: StoreCache,
    settings: Config,
    make_compactor: Callable[..., Compactor],
    caplog: pytest.LogCaptureFixture,
    file: str,
    how: str,
) -> None:
    put(cache, 30)
    assert build(cache.name, settings)["outcome"] == "built"
    root = root_of(cache, settings)
    path = root / file if file == CURRENT_FILE else next(root.glob(f"gen-*/{file}"))
    damage(path, how)
    is_gone = (file, how) == (
        CURRENT_FILE,
        "missing",
    )  # then no generation is named, as before the first build
    problems = check_cache(cache.engine, cache.name, settings).problems
    assert is_gone or any(path.name in problem for problem in problems)
    replica = replica_of(cache, settings)
    assert is_gone or path.name in caplog.text
    assert replica.state.index.generation is None
    assert row_counts(replica).live_count == 30
    run_build(make_compactor(), replica)
    assert replica.open_new_generation()
    caplog.clear()
    assert replica_of(cache, settings).state.index.generation == replica.state.index.generation
    assert not caplog.records
    assert check_cache(cache.engine, cache.name, settings).problems == ()


def test_a_damaged_small_generation_is_replaced_too(
    cache: StoreCache, settings: Config, make_compactor: Callable[..., Compactor]
) -> None:
    put(cache, 30)
    assert build(cache.name, settings)["outcome"] == "built"
    damage(next(root_of(cache, settings).glob("gen-*/*.segment")), "corrupted")
    large = with_compaction(settings, min_rows=1_000_000)
    replica = replica_of(cache, large)
    run_build(make_compactor(large), replica)
    assert replica.open_new_generation()
    assert build_reason(replica, large.compaction) is None


def test_damage_of_a_new_generation_leaves_the_old_one_served(
    cache: StoreCache,
    settings: Config,
    make_compactor: Callable[..., Compactor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(cache, 30)
    replica = replica_of(cache, settings)
    clock = Clock()
    compactor = make_compactor(clock=clock)
    assert build(cache.name, settings)["outcome"] == "built"
    assert replica.open_new_generation()
    first = replica.state.index.generation
    put(cache, 30, prefix="later")
    replica.catch_up()
    run_build(compactor, replica)
    second = str(current_generation(root_of(cache, settings)))
    damage(next((root_of(cache, settings) / second).glob("*.segment")), "corrupted")
    assert not replica.open_new_generation()
    assert (second in caplog.text, replica.state.index.generation) == (True, first)
    assert row_counts(replica).live_count == 60
    compactor.step([replica])
    assert not compactor.is_building  # a build that is refused is one that failed: a pause follows
    clock.now = 1.0
    run_build(compactor, replica)
    assert replica.open_new_generation()
    assert replica.state.index.generation not in (first, second)


def test_a_generation_of_another_store_is_refused_and_not_built_again(
    cache: StoreCache,
    settings: Config,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(cache, 30)
    assert build(cache.name, settings)["outcome"] == "built"
    engine = open_engine(replace(settings.store, url=f"sqlite:///{tmp_path}/other.db"))
    migrate(engine)
    other = make_cache(engine)
    put(other, 10)
    assert root_of(other, settings) == root_of(cache, settings)
    replica = replica_of(other, settings)
    engine.dispose()
    assert "was not built from this store" in caplog.text
    assert (replica.state.index.generation, row_counts(replica).live_count) == (None, 10)
    assert build_reason(replica, settings.compaction) is None


def test_a_start_works_where_the_system_does_not_name_the_processors(
    cache: StoreCache, settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    put(cache, 3)
    assert row_counts(replica_of(cache, settings)).live_count == 3


# The end


def test_a_stop_goes_on_after_the_time_for_its_snapshot(
    cache: StoreCache,
    settings: Config,
    make_compactor: Callable[..., Compactor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(cache, 30)
    hasty = with_compaction(settings, snapshot_seconds=0.01)
    compactor = make_compactor(hasty, command=ENDLESS)
    compactor.snapshot([replica_of(cache, settings)])
    assert not compactor.is_building
    assert "rows to replay: 30" in caplog.text


def test_a_build_of_a_cache_that_was_deleted_is_ended(
    cache: StoreCache, settings: Config, make_compactor: Callable[..., Compactor]
) -> None:
    put(cache, 30)
    compactor = make_compactor(command=ENDLESS)
    compactor.step([replica_of(cache, settings)])
    assert compactor.is_building
    compactor.step([])
    assert not compactor.is_building


def test_a_stop_ends_a_running_build(
    cache: StoreCache, settings: Config, make_compactor: Callable[..., Compactor]
) -> None:
    put(cache, 30)
    compactor = make_compactor(command=ENDLESS)
    compactor.step([replica_of(cache, settings)])
    assert compactor.is_building
    compactor.stop()
    assert not compactor.is_building

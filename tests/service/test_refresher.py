"""What the background threads say of a store that goes and comes back."""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from waiting import eventually

from service.accesses import AccessLog
from service.compaction import Compactor
from service.config import CompactionConfig, Config, RefreshConfig, StoreConfig
from service.database import migrate, open_engine
from service.refresher import Refresher, Replicas
from service.replica import CacheReplica
from service.writer import Writer


def test_only_a_duty_that_read_the_store_says_that_it_is_reachable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    steps = threading.Semaphore(0)

    class CountedCompactor(Compactor):
        def step(self, replicas: Sequence[CacheReplica]) -> None:
            super().step(replicas)
            steps.release()

    store = StoreConfig(url=f"sqlite:///{tmp_path}/none/nearhit.db", data_dir=str(tmp_path))
    config = Config(
        store=store,
        refresh=RefreshConfig(feed_seconds=0.01, accesses_seconds=0.01),
        compaction=CompactionConfig(check_seconds=0.01),
    )
    engine = open_engine(store)
    writer = Writer(
        engine,
        clock=lambda: 0,
        max_queued_writes=1,
        max_group_rows=1,
        on_commit=lambda _cache_ids, _settings_changed: None,
    )
    refresher = Refresher(
        engine,
        config,
        replicas=Replicas(engine, config),
        writer=writer,
        accesses=AccessLog(max_entries=10),
        compactor=CountedCompactor(config),
        clock=lambda: 0,
    )
    folder = tmp_path / "none"
    folder.rmdir()
    refresher.start()
    try:
        eventually(lambda: "cannot be reached" in caplog.text)
        for _ in range(5):
            assert steps.acquire(timeout=10)
        assert "reachable again" not in caplog.text
        folder.mkdir()
        migrate(engine)
        eventually(lambda: "reachable again" in caplog.text)
    finally:
        refresher.stop()
        engine.dispose()

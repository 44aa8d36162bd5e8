"""Keeps this process's view true: follows the feed, swaps generations, writes what lookups did."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType

from sqlalchemy import Engine, delete

from hashing.errors import HashingError
from index.errors import IndexFault
from service import store
from service.accesses import AccessLog
from service.compaction import Compactor
from service.config import Config
from service.database import reading, writing
from service.errors import DamagedPolicyError, NotFoundError, ServiceError, StoreUnavailableError
from service.feed import prune_changes
from service.keys import cache_name
from service.replica import CacheReplica, read_versions
from service.rows import read_cache
from service.rule_learning import RuleLearner
from service.shift_watch import ShiftWatch
from service.tables import requests
from service.writer import Writer

logger = logging.getLogger(__name__)
_EXPIRY_ROWS = 10_000
_REQUESTS_KEPT_MS = 24 * 3600 * 1000
_PRUNE_SECONDS = 60.0
Duty = tuple[float, Callable[[], None]]  # every so many seconds


class Replicas:
    """The caches that this process serves, by name. Readers take one immutable mapping."""

    def __init__(self, engine: Engine, config: Config) -> None:
        self._engine = engine
        self._config = config
        self._lock = threading.Lock()  # guards replacement of _by_name and _versions
        self._by_name: MappingProxyType[str, CacheReplica] = MappingProxyType({})
        self._versions: dict[str, int] = {}

    def get(self, name: str) -> CacheReplica:
        """The replica of one cache. Raises: NotFoundError."""
        replica = self._by_name.get(name)
        if replica is None:
            raise NotFoundError(f"{cache_name(name)} does not exist", reason="CACHE_NOT_FOUND")
        return replica

    def all(self) -> list[CacheReplica]:
        """Every replica."""
        return list(self._by_name.values())

    def follow(self) -> None:
        """Bring caches, settings and indexes up to the store. Raises: StoreUnavailableError."""
        with self._lock:
            with reading(self._engine) as connection:
                versions = read_versions(connection)
            current = dict(self._by_name)
            for name, (row_id, config_version, seq) in versions.items():
                try:
                    current[name] = self._followed(name, current.get(name), row_id, config_version, seq)
                except StoreUnavailableError:
                    raise
                except (ServiceError, IndexFault, HashingError) as error:
                    logger.error("cache %s cannot be followed: %s", name, error)
            kept = {name: current[name] for name in sorted(versions) if name in current}
            gone = [replica for replica in self._by_name.values() if replica not in kept.values()]
            self._by_name = MappingProxyType(kept)
        for replica in gone:
            replica.remove_files()

    def _followed(
        self, name: str, known: CacheReplica | None, row_id: int, config_version: int, seq: int
    ) -> CacheReplica:
        """The cache's replica, brought up to the store."""
        if known is None or known.state.record.id != row_id:
            known = self._open(name)
        elif self._versions[name] != config_version:
            if known.state.index.applied_seq != seq:
                known.catch_up()  # also where settings cannot be read: what was deleted goes
            known.refresh_settings()
        self._versions[name] = config_version
        if known.state.index.applied_seq != seq:
            known.catch_up()
        return known

    def open_new_generations(self) -> None:
        """Serve generations that were built since, and remove those of forgotten rows.

        Raises: StoreUnavailableError.
        """
        for replica in self.all():
            try:
                replica.open_new_generation()
                replica.remove_dropped_generations()
            except (NotFoundError, DamagedPolicyError):
                continue  # the cache was deleted, or cannot be followed, which is logged
            except OSError as error:
                logger.error("files of forgotten rows cannot be removed: %s", error)

    def on_commit(self, cache_ids: Sequence[int], settings_changed: bool) -> None:  # noqa: FBT001
        """Bring the indexes up to this process's own commit."""
        if settings_changed:
            self.follow()
        for replica in self.all():
            if replica.state.record.id in cache_ids:
                replica.catch_up()

    def _open(self, name: str) -> CacheReplica:
        with reading(self._engine) as connection:
            record = read_cache(connection, name)
        return CacheReplica(
            self._engine, record, search=self._config.search, data_dir=self._config.store.data_dir
        )


class Refresher:
    """The background threads: one follows the feed, one opens generations (which may take long) and has them
    built, one follows verdicts and learns rules, one writes.

    An unreachable database stops nothing: lookups go on, and they try again.
    """

    def __init__(
        self,
        engine: Engine,
        config: Config,
        *,
        replicas: Replicas,
        writer: Writer,
        accesses: AccessLog,
        compactor: Compactor,
        clock: Callable[[], int],
        shifts: ShiftWatch | None = None,
        learner: RuleLearner | None = None,
    ) -> None:
        self._engine = engine
        self._config = config
        self._replicas = replicas
        self._compactor = compactor
        self._writer = writer
        self._accesses = accesses
        self._shifts = shifts
        self._learner = learner
        self._clock = clock
        self._stopped = threading.Event()
        refresh = config.refresh
        self._threads = [
            self._thread("feed", (refresh.feed_seconds, self.follow)),
            self._thread(
                "generations",
                (refresh.accesses_seconds, replicas.open_new_generations),
                (config.compaction.check_seconds, self.compact),
            ),
            self._thread("verdicts", (refresh.verdicts_seconds, self.follow_verdicts)),
            self._thread(
                "upkeep",
                (refresh.accesses_seconds, self.write_accesses),
                (refresh.accesses_seconds, self.watch_shifts),
                (refresh.expiry_seconds, self.delete_expired),
                (_PRUNE_SECONDS, self.prune),
            ),
        ]
        self._store_reachable = True

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads and a build, then write what lookups did since the last time."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._compactor.stop()
        self._guarded(self.write_accesses)
        if self._shifts is not None:
            self._guarded(self._shifts.step)
            self._guarded(self._shifts.save)

    def follow(self) -> None:
        """Bring every replica up to the store. Raises: StoreUnavailableError."""
        self._replicas.follow()
        # Said here alone: this duty reads the store each time, others may end well without.
        if not self._store_reachable:
            logger.info("the store is reachable again")
        self._store_reachable = True

    def write_accesses(self) -> None:
        """Write what lookups did since the last time. Raises: what the last failure was; nothing is lost."""
        failure: Exception | None = None
        for cache_id, accesses in self._accesses.drain().items():
            try:
                self._writer.submit(cache_id, partial(store.record_accesses, accesses=accesses)).result()
            except NotFoundError:
                continue  # the cache was deleted
            except Exception as error:  # whatever it is, the counts must not be lost
                self._accesses.restore(cache_id, accesses)
                failure = error
        if failure is not None:
            raise failure

    def watch_shifts(self) -> None:
        """See whether what is looked up has shifted. Raises: StoreUnavailableError."""
        if self._shifts is not None:
            self._shifts.step()

    def follow_verdicts(self) -> None:
        """Have what was judged count. Raises: StoreUnavailableError."""
        if self._learner is not None:
            self._learner.step()

    def compact(self) -> None:
        """Have a generation built where one pays, and see what the last build came to.

        Where builds are off, an index that holds forgotten rows is made anew in memory.
        """
        self._compactor.step(self._replicas.all())
        if self._config.compaction.enabled:
            return
        for replica in self._replicas.all():
            if replica.serves_dropped:
                replica.rebuild()

    def delete_expired(self) -> None:
        """Delete entries past their expire time. Raises: ServiceError."""
        for replica in self._replicas.all():
            cache_id = replica.state.record.id
            expired = self._writer.submit(cache_id, lambda tx: store.delete_expired(tx, limit=_EXPIRY_ROWS))
            with suppress(DamagedPolicyError):  # it is named where the cache is followed; others go on
                expired.result()

    def prune(self) -> None:
        """Forget old changes and answers to request ids. Raises: StoreUnavailableError."""
        with writing(self._engine) as connection:
            for replica in self._replicas.all():
                prune_changes(
                    connection, replica.state.record.id, retained=self._config.store.changes_retained
                )
            oldest = self._clock() - _REQUESTS_KEPT_MS
            connection.execute(delete(requests).where(requests.c.create_ms < oldest))

    def _thread(self, name: str, *duties: Duty) -> threading.Thread:
        return threading.Thread(target=self._run, args=duties, name=name, daemon=True)

    def _run(self, *duties: Duty) -> None:
        due = [time.monotonic() + seconds for seconds, _ in duties]
        while not self._stopped.wait(max(0.0, min(due) - time.monotonic())):
            for i, (seconds, duty) in enumerate(duties):
                if due[i] <= time.monotonic():
                    self._guarded(duty)
                    due[i] = time.monotonic() + seconds

    def _guarded(self, duty: Callable[[], None]) -> None:
        try:
            duty()
        except StoreUnavailableError as error:
            if self._store_reachable:
                logger.error("the store cannot be reached, lookups go on: %s", error)
            self._store_reachable = False
        except Exception:
            # A thread must outlive what it could not do: a replica that stops following is worse.
            logger.exception("%s failed", getattr(duty, "__name__", duty))

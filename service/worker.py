"""The worker: takes queued jobs, and queues an update where enough new labelled rows are stored."""

import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, Engine, select

from hashing.errors import HashingError
from service import jobs
from service.config import Config
from service.database import reading, writing
from service.errors import ServiceError, StoreUnavailableError
from service.learning import UpdateOutcome, count_unlearned, run_update
from service.records import CacheRecord, JobRecord
from service.rows import read_caches
from service.tables import caches

logger = logging.getLogger(__name__)


class Worker:
    """One worker process. Several may run: a job is one worker's while its lease holds."""

    def __init__(self, engine: Engine, config: Config, *, clock: Callable[[], int]) -> None:
        self._engine = engine
        self._config = config
        self._clock = clock
        self._lease_ms = int(config.update.lease_seconds * 1000)
        self._owner = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"

    def run(self, stopped: threading.Event) -> None:
        """Work until `stopped`. An unreachable database is waited for."""
        while not stopped.is_set():
            try:
                self.enqueue_due()
                while not stopped.is_set() and self.run_one():
                    pass
            except StoreUnavailableError as error:
                logger.error("the store cannot be reached: %s", error)
            stopped.wait(self._config.update.poll_seconds)

    def enqueue_due(self) -> int:
        """Queue an update for each cache with enough new labelled rows; return how many are queued."""
        with reading(self._engine) as connection:
            found = read_caches(connection)
        queued = 0
        for cache in found:
            try:
                queued += self._enqueue_if_due(cache)
            except StoreUnavailableError:
                raise
            except (ServiceError, HashingError) as error:
                logger.error("no update of %s can be queued: %s", cache.name, error)
        return queued

    def _enqueue_if_due(self, cache: CacheRecord) -> bool:
        now_ms = self._clock()
        retry_ms = now_ms - int(self._config.update.retry_seconds * 1000)
        with reading(self._engine) as connection:
            if jobs.ended_without_success(connection, cache.id, kind=jobs.UPDATE, after_ms=retry_ms):
                return False
            if count_unlearned(connection, cache) < self._config.update.min_labelled_rows:
                return False
        with writing(self._engine) as connection:
            jobs.enqueue(connection, cache.id, kind=jobs.UPDATE, now_ms=now_ms)
        return True

    def run_one(self) -> bool:
        """Run one job; False where none waits."""
        with writing(self._engine) as connection:
            job = jobs.lease(connection, owner=self._owner, now_ms=self._clock(), lease_ms=self._lease_ms)
            if job is None:
                return False
            cache = connection.execute(select(caches.c.name).where(caches.c.id == job.cache_id)).scalar_one()
        logger.info("job %s: %s of %s", job.name, job.kind, cache)
        try:
            outcome = self._update(job, cache)
            logger.info("job %s: %s", job.name, "activated" if outcome.accepted else outcome.reasons)
        except jobs.LeaseLostError as error:
            logger.warning("%s", error)
        except StoreUnavailableError:
            raise
        except (ServiceError, HashingError) as error:
            logger.error("job %s failed: %s", job.name, error)
            self._fail(job, str(error))
        except Exception as error:  # the worker's outermost place: one job must not end it
            logger.exception("job %s failed", job.name)
            self._fail(job, f"{type(error).__name__}: {error}")
        return True

    def _update(self, job: JobRecord, cache: str) -> UpdateOutcome:
        def conclude(connection: Connection, outcome: UpdateOutcome) -> None:
            report = json.dumps(asdict(outcome))
            jobs.finish(connection, job, state=jobs.SUCCEEDED, report=report, now_ms=self._clock())

        with _Lease(self._engine, job, clock=self._clock, lease_ms=self._lease_ms) as lease:
            return run_update(
                self._engine,
                cache,
                config=self._config.update,
                max_live_encoders=self._config.search.max_live_encoders,
                clock=self._clock,
                heartbeat=lease.check,
                conclude=conclude,
            )

    def _fail(self, job: JobRecord, error: str) -> None:
        try:
            with writing(self._engine) as connection:
                jobs.finish(connection, job, state=jobs.FAILED, error=error, now_ms=self._clock())
        except jobs.LeaseLostError as lost:
            logger.warning("%s", lost)


class _Lease:
    """Keeps a job's lease from a thread while the job runs, however long its steps are."""

    def __init__(self, engine: Engine, job: JobRecord, *, clock: Callable[[], int], lease_ms: int) -> None:
        self._engine = engine
        self._job = job
        self._clock = clock
        self._lease_ms = lease_ms
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def check(self) -> None:
        """Extend the lease. Raises: jobs.LeaseLostError."""
        with writing(self._engine) as connection:
            jobs.extend_lease(connection, self._job, now_ms=self._clock(), lease_ms=self._lease_ms)

    def _run(self) -> None:
        while not self._ended.wait(self._lease_ms / 3000):
            try:
                self.check()
            except jobs.LeaseLostError:
                return  # the job's next step finds out
            except StoreUnavailableError as error:
                logger.warning("the lease of job %s could not be extended: %s", self._job.name, error)

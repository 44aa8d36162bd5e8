"""A worker's hold on its job: kept from a thread, and told how far the job is."""

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from sqlalchemy import Engine

from service import jobs
from service.database import writing
from service.errors import StoreUnavailableError
from service.records import JobRecord

PROGRESS_MS = 1000  # between two writes within one stage; also how soon a cancelled job is noticed

logger = logging.getLogger(__name__)


class Lease:
    """Keeps a job's lease while the job runs, however long its steps are."""

    def __init__(self, engine: Engine, job: JobRecord, *, clock: Callable[[], int], lease_ms: int) -> None:
        self._engine = engine
        self._job = job
        self._clock = clock
        self._lease_ms = lease_ms
        self._stage = ""
        self._written_ms = 0
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

    def tell(self, stage: str, done: int, total: int) -> None:
        """Write how far the job is, as a `Progress`: at every new stage, then every PROGRESS_MS.

        A store that cannot be reached is no reason to stop: the job's end decides.
        Raises: jobs.LeaseLostError: it was cancelled, or another worker has it.
        """
        since_ms = abs(self._clock() - self._written_ms)  # a clock set back must not silence it
        if stage == self._stage and since_ms < PROGRESS_MS:
            return
        try:
            self.write(stage, done, total)
        except StoreUnavailableError as error:
            logger.warning("the progress of job %s could not be written: %s", self._job.name, error)

    def write(self, stage: str, done: int, total: int, *, report: str = "") -> None:
        """Write it now. Raises: jobs.LeaseLostError, StoreUnavailableError."""
        self._stage, self._written_ms = stage, self._clock()
        with writing(self._engine) as connection:
            jobs.record_progress(
                connection,
                self._job,
                stage=stage,
                done=done,
                total=total,
                report=report,
                now_ms=self._written_ms,
                lease_ms=self._lease_ms,
            )

    def _run(self) -> None:
        while not self._ended.wait(self._lease_ms / 3000):
            try:
                with writing(self._engine) as connection:
                    jobs.extend_lease(connection, self._job, now_ms=self._clock(), lease_ms=self._lease_ms)
            except jobs.LeaseLostError:
                return  # the job's next step finds out
            except StoreUnavailableError as error:
                logger.warning("the lease of job %s could not be extended: %s", self._job.name, error)

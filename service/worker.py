"""The worker: takes queued jobs, and queues them: an update where new labelled rows are due, learning from
verdicts where enough wait, a load for each file that appears in the inbox. Re-embedding is queued by hand."""

import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, select

from hashing.errors import HashingError
from service import jobs
from service.config import Config
from service.database import reading, writing
from service.embedder import EMBED_SECONDS, Embedder
from service.errors import (
    EmbedderUnavailableError,
    NotFoundError,
    ServiceError,
    StoreFullError,
    StoreUnavailableError,
)
from service.inbox import FileLoader, Inbox, InboxFile, RefusedFileError
from service.lease import Lease
from service.records import CacheRecord, JobRecord
from service.reembedding import reembed_texts
from service.rows import read_caches
from service.shift_store import shift_alarm_since
from service.tables import caches
from service.update import UpdateOutcome, read_unlearned, run_update
from service.verdicts import PairLearner, verdicts_wait

_MOVE = "move"  # the stage of a load in which all rows are stored

logger = logging.getLogger(__name__)


class Worker:
    """One worker process. Several may run: a job is one worker's while its lease holds.

    load_file: loads the files of `[update] inbox`; None: it has none. Workers that have one share the folder.
    learn_pairs: learns from verdicts; None: it cannot, and leaves those jobs to others.
    embedder: takes the jobs that embed by it, and is started when the first one waits and no other job does;
    one that does not start is tried again `retry_seconds` later. Who gives it stops it.
    """

    def __init__(
        self,
        engine: Engine,
        config: Config,
        *,
        clock: Callable[[], int],
        load_file: FileLoader | None = None,
        learn_pairs: PairLearner | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        self._engine = engine
        self._config = config
        self._clock = clock
        self._load_file = load_file
        self._learn_pairs = learn_pairs
        self._embedder = embedder
        self._next_start_ms = 0  # of the embedder
        folder = config.update.inbox
        self._inbox = Inbox(Path(folder)) if folder and load_file is not None else None
        able = {jobs.UPDATE: True, jobs.LOAD: self._inbox, jobs.LEARN_PAIRS: learn_pairs}
        self._kinds = tuple(kind for kind, means in able.items() if means is not None)
        self._lease_ms = int(config.update.lease_seconds * 1000)
        self._owner = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"

    def run(self, stopped: threading.Event) -> None:
        """Work until `stopped`. An unreachable database is waited for."""
        while not stopped.is_set():
            try:
                self.enqueue_due()
                self.enqueue_files()
                while not stopped.is_set() and self.run_one():
                    pass
            except StoreUnavailableError as error:
                logger.error("the store cannot be reached: %s", error)
            stopped.wait(self._config.update.poll_seconds)

    def enqueue_due(self) -> int:
        """Queue an update for each cache whose new labelled rows are due, and learning from verdicts where
        enough wait; return how many are queued.

        A shift alarm makes one row enough, once: it must be newer than the last update.
        """
        with reading(self._engine) as connection:
            found = read_caches(connection)
        queued = 0
        for cache in found:
            try:
                queued += self._enqueue_if_due(cache) + self._enqueue_verdicts_if_due(cache)
            except StoreUnavailableError:
                raise
            except (ServiceError, HashingError) as error:
                logger.error("no update of %s can be queued: %s", cache.name, error)
        return queued

    def _enqueue_if_due(self, cache: CacheRecord) -> bool:
        update = self._config.update
        now_ms = self._clock()
        with reading(self._engine) as connection:
            retry_ms = now_ms - int(update.retry_seconds * 1000)
            if jobs.ended_without_success(connection, cache.id, kind=jobs.UPDATE, after_ms=retry_ms):
                return False
            waiting = read_unlearned(connection, cache)
            last_ms = jobs.newest_ms(connection, cache.id, kind=jobs.UPDATE)
            has_shifted = waiting.row_count > 0 and shift_alarm_since(connection, cache.id, last_ms)
        aged_ms = now_ms - int(update.max_age_seconds * 1000)
        aged = update.max_age_seconds > 0 and waiting.oldest_ms is not None and waiting.oldest_ms <= aged_ms
        if waiting.row_count < update.min_labelled_rows and not (aged or has_shifted):
            return False
        with writing(self._engine) as connection:
            jobs.enqueue(connection, cache.id, kind=jobs.UPDATE, now_ms=now_ms)
        return True

    def _enqueue_verdicts_if_due(self, cache: CacheRecord) -> bool:
        update = self._config.update
        if self._learn_pairs is None or not update.min_verdicts:
            return False
        now_ms = self._clock()
        retry_ms = now_ms - int(update.retry_seconds * 1000)
        with reading(self._engine) as connection:
            if jobs.ended_without_success(connection, cache.id, kind=jobs.LEARN_PAIRS, after_ms=retry_ms):
                return False
            least = min(update.min_verdicts, update.max_update_rows)
            if not verdicts_wait(connection, cache, least=least, most=update.max_update_rows):
                return False
        with writing(self._engine) as connection:
            jobs.enqueue(connection, cache.id, kind=jobs.LEARN_PAIRS, now_ms=now_ms)
        return True

    def enqueue_files(self) -> int:
        """Queue a load for each file of the inbox that no longer changes; return how many are queued.

        A file of no cache, one whose load was cancelled and one that workers died of are refused here.
        """
        if self._inbox is None:
            return 0
        try:
            files = self._inbox.settled()
        except OSError as error:
            logger.error("the inbox cannot be read: %s", error)
            return 0
        if not files:
            return 0
        with reading(self._engine) as connection:
            found = {cache.name: cache.id for cache in read_caches(connection)}
        queued = 0
        for file in files:
            try:
                if file.cache in found:
                    queued += self._enqueue_file(file, found[file.cache])
                else:
                    file.refuse(f"there is no cache {file.cache!r}: create it, then put the file back")
            except FileNotFoundError:
                continue  # another worker moved it
            except StoreUnavailableError:
                raise
            except (OSError, NotFoundError) as error:
                logger.error("no load of %s can be queued: %s", file.source, error)
            except Exception:  # as in run_one: one file must not end the worker
                logger.exception("no load of %s can be queued", file.source)
        return queued

    def _enqueue_file(self, file: InboxFile, cache_id: int) -> bool:
        now_ms = self._clock()
        retry_ms = now_ms - int(self._config.update.retry_seconds * 1000)
        changed_ms = file.changed_ms()  # a job that was queued before was another file's
        work = {"kind": jobs.LOAD, "source": file.source}
        with reading(self._engine) as connection:
            ended = jobs.ended_without_success(
                connection, cache_id, **work, after_ms=retry_ms, queued_from_ms=changed_ms
            )
        if ended is None:
            with writing(self._engine) as connection:
                jobs.enqueue(connection, cache_id, **work, now_ms=now_ms)
                file.changed_ms()  # whoever loaded it meanwhile moved it before the end of that job
        elif ended.state == jobs.CANCELLED:
            file.refuse(f"job {ended.name} was cancelled; rows that it had stored stay")
        elif ended.attempt_count >= jobs.MAX_ATTEMPTS:
            file.refuse(f"job {ended.name}: {ended.error}; rows that it had stored stay")
        return ended is None

    def run_one(self) -> bool:
        """Run one job; False where none waits."""
        taken = self._take()
        if taken is None and self._start_embedder():
            taken = self._take()
        if taken is None:
            return False
        job, cache = taken
        logger.info("job %s: %s of %s", job.name, job.kind, cache)
        try:
            self._run_job(job, cache)
        except jobs.LeaseLostError as error:
            logger.warning("%s", error)
        except StoreFullError as error:
            logger.error("job %s failed: %s", job.name, _encodable(error))
            self._fail(job, str(error))
        except StoreUnavailableError:
            raise
        except (ServiceError, HashingError) as error:
            logger.error("job %s failed: %s", job.name, _encodable(error))
            self._fail(job, str(error))
        except Exception as error:  # the worker's outermost place: one job must not end it
            logger.exception("job %s failed", job.name)
            self._fail(job, f"{type(error).__name__}: {error}")
        return True

    def _take(self) -> tuple[JobRecord, str] | None:
        """A job and the name of its cache; one that embeds only where the embedder runs already."""
        spec = None if self._embedder is None else self._embedder.spec
        with writing(self._engine) as connection:
            job = jobs.lease(
                connection,
                owner=self._owner,
                now_ms=self._clock(),
                lease_ms=self._lease_ms,
                kinds=self._kinds,
                embedder_id=None if spec is None else spec.embedder_id,
            )
            if job is None:
                return None
            cache = connection.execute(select(caches.c.name).where(caches.c.id == job.cache_id)).scalar_one()
        return job, cache

    def _run_job(self, job: JobRecord, cache: str) -> None:
        with Lease(self._engine, job, clock=self._clock, lease_ms=self._lease_ms) as lease:
            if job.kind == jobs.LOAD:
                self._load(job, lease)
            elif job.kind == jobs.LEARN_PAIRS:
                learned = self._learn(job, cache, lease)
                logger.info(
                    "job %s: %s", job.name, "activated" if learned["accepted"] else learned["reasons"]
                )
            elif job.kind == jobs.REEMBED:
                self._reembed(job, cache, lease)
            else:
                outcome = self._update(job, cache, lease)
                logger.info("job %s: %s", job.name, "activated" if outcome.accepted else outcome.reasons)

    def _update(self, job: JobRecord, cache: str, lease: Lease) -> UpdateOutcome:
        def conclude(connection: Connection, outcome: UpdateOutcome) -> None:
            report = json.dumps(asdict(outcome))
            jobs.finish(connection, job, state=jobs.SUCCEEDED, report=report, now_ms=self._clock())

        return run_update(
            self._engine,
            cache,
            config=self._config.update,
            max_live_encoders=self._config.search.max_live_encoders,
            clock=self._clock,
            progress=lease.tell,
            conclude=conclude,
        )

    def _learn(self, job: JobRecord, cache: str, lease: Lease) -> dict[str, Any]:
        assert self._learn_pairs is not None

        def conclude(connection: Connection, outcome: dict[str, Any]) -> None:
            report = json.dumps(outcome)
            jobs.finish(connection, job, state=jobs.SUCCEEDED, report=report, now_ms=self._clock())

        return self._learn_pairs(self._engine, cache, lease.tell, conclude)

    def _start_embedder(self) -> bool:
        """Start the embedder if a job waits for one; False: none does, it runs already, or does not start."""
        now_ms = self._clock()
        if self._embedder is None or self._embedder.spec is not None or now_ms < self._next_start_ms:
            return False
        with reading(self._engine) as connection:
            if not jobs.is_waiting(connection, kind=jobs.REEMBED, now_ms=now_ms):
                return False
        try:
            self._embedder.start()
        except EmbedderUnavailableError as error:
            logger.error("no job that embeds can be taken: %s", error)
            self._next_start_ms = self._clock() + int(self._config.update.retry_seconds * 1000)
            return False
        return True

    def _reembed(self, job: JobRecord, cache: str, lease: Lease) -> None:
        """Move entries to the embedder's space; what is moved stays so, whatever becomes of the job."""
        embedder = self._embedder
        assert embedder is not None and job.source is not None  # or it would not have been taken
        report = reembed_texts(
            self._engine,
            cache,
            embedder_id=job.source,
            embed=lambda texts: embedder.embed(texts, timeout_seconds=EMBED_SECONDS),
            clock=self._clock,
            progress=lease.tell,
        )
        with writing(self._engine) as connection:
            told = json.dumps(asdict(report))
            jobs.finish(connection, job, state=jobs.SUCCEEDED, report=told, now_ms=self._clock())
        logger.info("job %s: %s", job.name, told)

    def _load(self, job: JobRecord, lease: Lease) -> None:
        """Load a file. Rows that are stored already are skipped, so it may be begun again at any point."""
        assert self._inbox is not None and self._load_file is not None and job.source is not None
        file = self._inbox.file_of(job.source)
        version = file.version
        if version is None and job.stage != _MOVE:  # one that died at _MOVE may have moved it
            raise NotFoundError(f"{job.source} is no longer in the inbox", reason="FILE_NOT_FOUND")
        known = json.loads(job.report) if version is None else self._stored_before(job, file)
        if version is not None:
            try:
                known = known or asdict(self._load_file(self._engine, file, lease.tell))
            except RefusedFileError as error:
                reason = _encodable(error)
                if self._fail(job, reason):
                    _refuse(file, reason)
                return
            known |= {"size_bytes": version.size_bytes, "modified_ns": version.modified_ns}
            lease.write(_MOVE, 0, 1, report=json.dumps(known))
            file.keep_loaded()
        report = json.dumps({name: known[name] for name in ("stored_count", "skipped_count")})
        with writing(self._engine) as connection:
            jobs.finish(connection, job, state=jobs.SUCCEEDED, report=report, now_ms=self._clock())
        logger.info("job %s: %s: %s", job.name, job.source, report)

    def _stored_before(self, job: JobRecord, file: InboxFile) -> dict[str, Any]:
        """What is known of this very file where its rows were stored before and only its move failed.

        Its rows are not looked at again then: those deleted meanwhile would come back. Else empty.
        """
        with reading(self._engine) as connection:
            last = jobs.last_at_stage(connection, job, stage=_MOVE)
        if last is None or file.version is None:
            return {}
        known: dict[str, Any] = json.loads(last.report) if last.report else {}  # no digest once it was moved
        looked = (known.get("size_bytes"), known.get("modified_ns"))
        if looked != (file.version.size_bytes, file.version.modified_ns):
            return {}
        return known if known.get("digest") == file.digest() else {}

    def _fail(self, job: JobRecord, error: str) -> bool:
        """End the job; False where another worker has it, or it was cancelled."""
        error = _encodable(error)
        try:
            with writing(self._engine) as connection:
                jobs.finish(connection, job, state=jobs.FAILED, error=error, now_ms=self._clock())
        except jobs.LeaseLostError as lost:
            logger.warning("%s", lost)
            return False
        return True


def _encodable(error: object) -> str:
    """The text of an error, whose words may be of a file: half a surrogate pair is no Unicode."""
    return str(error).encode(errors="backslashreplace").decode()


def _refuse(file: InboxFile, reason: str) -> None:
    try:
        file.refuse(reason)
    except OSError as error:
        logger.error("%s cannot be put to the refused ones: %s", file.source, error)

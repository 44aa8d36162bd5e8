"""Everything that one serving process works with, put together once."""

import time
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack
from typing import TypeVar

import grpc
from sqlalchemy import Engine

from service.accesses import AccessLog
from service.admission import Sightings
from service.cache import SemanticCache
from service.compaction import Compactor
from service.config import Config
from service.database import check_schema, open_engine
from service.embedder import Embedder
from service.errors import DeadlineError, StoreUnavailableError
from service.leases import Leases
from service.load import Loads
from service.refresher import Refresher, Replicas
from service.request_samples import RequestSamples
from service.rule_learning import RuleLearner
from service.search import VectorSearch
from service.shift_watch import ShiftWatch
from service.writer import Writer

T = TypeVar("T")

MAX_CALL_SECONDS = 3600.0


def clock_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Application:
    """One process: store, replicas, writer, refresher, lookups and searches."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.engine: Engine = open_engine(config.store)
        self.replicas = Replicas(self.engine, config)
        most = config.refresh.max_queued_accesses
        self.accesses = AccessLog(max_entries=most, max_distances=most if config.shift.enabled else 0)
        self.sightings = Sightings()
        self.embedder = Embedder(config.embedder) if config.embedder.model else None
        self.writer = Writer(
            self.engine,
            clock=clock_ms,
            max_queued_writes=config.store.max_queued_writes,
            max_group_rows=config.store.max_group_rows,
            on_commit=self.replicas.on_commit,
        )
        self.compactor = Compactor(config)
        self.samples = RequestSamples()
        self.learner = RuleLearner(
            self.engine, replicas=self.replicas.all, samples=self.samples, clock=clock_ms
        )
        self.refresher = Refresher(
            self.engine,
            config,
            replicas=self.replicas,
            writer=self.writer,
            accesses=self.accesses,
            compactor=self.compactor,
            learner=self.learner,
            shifts=ShiftWatch(self.engine, config, accesses=self.accesses, clock=clock_ms),
            clock=clock_ms,
        )
        # Whatever waits, threads are left for the stores that it waits for.
        free_threads = max(0, config.server.threads - config.server.max_streams)
        self.leases = Leases(
            max_per_category=config.leases.max_per_category,
            max_waiting=int(config.leases.waiting_share * free_threads),
        )
        self.loads = Loads()
        self.cache = SemanticCache(
            accesses=self.accesses,
            embedder=self.embedder,
            clock=clock_ms,
            min_seq_wait_seconds=config.refresh.min_seq_wait_seconds,
            leases=self.leases,
            samples=self.samples,
            loads=self.loads,
        )
        self.search = VectorSearch(
            self.engine,
            embedder=self.embedder,
            clock=clock_ms,
            min_seq_wait_seconds=config.refresh.min_seq_wait_seconds,
        )

    def start(self) -> None:
        """Load every cache and start the threads.

        Raises:
            MigrationError: the schema is not this version's.
            StoreUnavailableError: the database cannot be reached.
            EmbedderUnavailableError: an embedder is configured and does not start.
        """
        with ExitStack() as undo:
            undo.callback(self.engine.dispose)
            check_schema(self.engine)
            self.replicas.follow()
            self.learner.step()  # what was judged before counts from the first lookup on
            if self.embedder is not None:
                undo.callback(self.embedder.stop)
                self.embedder.start()
            undo.pop_all()
        self.writer.start()
        self.refresher.start()

    def stop(self) -> None:
        """Write what is queued, end the threads, save the next start a long replay, end the embedder."""
        self.refresher.stop()
        self.writer.stop()
        self.compactor.snapshot(self.replicas.all())
        if self.embedder is not None:
            self.embedder.stop()
        self.engine.dispose()


def time_limit(context: grpc.ServicerContext) -> float:
    """Seconds until the caller's deadline, at most MAX_CALL_SECONDS."""
    remaining: float | None = context.time_remaining()  # a huge number where the caller set no deadline
    return MAX_CALL_SECONDS if remaining is None else min(remaining, MAX_CALL_SECONDS)


def await_write(answer: "Future[T]", *, timeout_seconds: float) -> T:
    """The answer of a queued mutation.

    Raises:
        DeadlineError: the deadline passed. A mutation that has not begun is dropped.
        ServiceError: what the mutation raised.
    """
    try:
        return answer.result(timeout=timeout_seconds)
    except FutureTimeoutError as error:
        dropped = answer.cancel()
        raise DeadlineError(
            "the deadline passed; the write was dropped"
            if dropped
            else "the deadline passed during the write"
        ) from error
    except CancelledError as error:
        raise StoreUnavailableError("the write was dropped") from error

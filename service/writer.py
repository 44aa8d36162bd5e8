"""The one thread that writes: whatever queued during the last commit goes into the next one."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from service.database import writing
from service.errors import NotFoundError, OverloadedError, ServiceError, StoreUnavailableError
from service.transaction import CacheTransaction

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    """One queued mutation; `cache_id` None: of the registry, it takes the bare connection."""

    cache_id: int | None
    apply: Callable[[Any], Any]
    row_count: int = 1
    changes_settings: bool = False
    answer: "Future[Any]" = field(default_factory=Future)


class Writer:
    """Group commit. An answer is set after the commit and after `on_commit` ran, which brings the local index
    up to it; a failed mutation is undone alone (savepoint), a failed commit fails the whole group."""

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Callable[[], int],
        max_queued_writes: int,
        max_group_rows: int,
        on_commit: Callable[[Sequence[int], bool], None],
    ) -> None:
        """`on_commit(cache_ids, settings_changed)` is called in the writer's thread after each commit."""
        self._engine = engine
        self._clock = clock
        self._max_group_rows = max_group_rows
        self._on_commit = on_commit
        self._queue: queue.Queue[_Write | None] = queue.Queue(maxsize=max_queued_writes)
        self._next: _Write | None = None  # taken from the queue, for the next group; the thread's own
        self._lock = threading.Lock()  # guards _closed: nothing is queued behind the end
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Commit what is queued, then end the thread; later submissions are refused."""
        with self._lock:
            self._closed = True
        self._queue.put(None)
        self._thread.join()

    def submit(
        self,
        cache_id: int,
        apply: Callable[[CacheTransaction], T],
        *,
        row_count: int = 1,
        changes_settings: bool = False,
    ) -> "Future[T]":
        """Queue a mutation of one cache. Raises: OverloadedError, StoreUnavailableError: shutting down."""
        return self._enqueue(_Write(cache_id, apply, row_count, changes_settings=changes_settings))

    def submit_registry(self, apply: Callable[[Connection], T]) -> "Future[T]":
        """Queue a mutation of caches, categories, encoders or jobs. Raises: as submit."""
        return self._enqueue(_Write(None, apply, changes_settings=True))

    @property
    def queued_count(self) -> int:
        """Mutations that wait."""
        return self._queue.qsize()

    def _enqueue(self, write: _Write) -> "Future[Any]":
        with self._lock:
            if self._closed:
                raise StoreUnavailableError("the server is shutting down", reason="SHUTTING_DOWN")
            try:
                self._queue.put_nowait(write)
            except queue.Full:
                raise OverloadedError(f"{self._queue.maxsize} writes are queued already") from None
        return write.answer

    def _run(self) -> None:
        while True:
            first = self._queue.get() if self._next is None else self._next
            self._next = None
            group = self._take_group(first)
            live = [write for write in group if write and write.answer.set_running_or_notify_cancel()]
            if live:
                self._commit(live)
            if None in group:
                return

    def _take_group(self, first: _Write | None) -> list[_Write | None]:
        """What goes into one transaction. A registry write goes alone: it locks a cache of its own."""
        group = [first]
        if first is None or first.cache_id is None:
            return group
        row_count = first.row_count if first else 0
        while row_count < self._max_group_rows:
            try:
                write = self._queue.get_nowait()
            except queue.Empty:
                break
            if write is not None and write.cache_id is None:
                self._next = write
                break
            group.append(write)
            row_count += write.row_count if write else 0
        return group

    def _commit(self, group: list[_Write]) -> None:
        try:
            with writing(self._engine) as connection:
                answers, failures, settings_changed = self._apply_group(connection, group)
        except ServiceError as error:
            self._fail(group, error)
            return
        except Exception as error:
            logger.exception("a group of %d writes failed", len(group))
            self._fail(group, error)
            return
        cache_ids = sorted({write.cache_id for write, _ in answers if write.cache_id is not None})
        try:
            self._on_commit(cache_ids, settings_changed)
        except Exception:
            # Committed all the same: the refresher brings the index up to it.
            logger.exception("the index could not follow a commit at once")
        for write, answer in answers:
            write.answer.set_result(answer)
        for write, failure in failures:
            write.answer.set_exception(failure)

    def _apply_group(
        self, connection: Connection, group: list[_Write]
    ) -> tuple[list[tuple[_Write, Any]], list[tuple[_Write, Exception]], bool]:
        """Apply each write in a savepoint of its own; caches are locked in id order before.

        Returns what to answer once the group is committed (a failure, too, may rest on another write of it),
        and whether settings changed.
        """
        settings_changed = False
        answers: list[tuple[_Write, Any]] = []
        failures: list[tuple[_Write, Exception]] = []
        now_ms = self._clock()
        cache_ids = sorted({write.cache_id for write in group if write.cache_id is not None})
        transactions = _lock_caches(connection, cache_ids, now_ms=now_ms)
        for write in group:
            target = connection if write.cache_id is None else transactions[write.cache_id]
            if isinstance(target, ServiceError):
                failures.append((write, target))
                continue
            savepoint = connection.begin_nested()
            try:
                result = write.apply(target)
            except OperationalError:
                raise
            except Exception as error:  # the thread's outermost place for what one write does wrong
                if not isinstance(error, ServiceError):
                    logger.exception("a write failed")
                savepoint.rollback()
                transactions = _lock_caches(connection, cache_ids, now_ms=now_ms)
                failures.append((write, error))
                continue
            savepoint.commit()
            answers.append((write, result))
            if write.changes_settings:
                settings_changed = True
                transactions = _lock_caches(connection, cache_ids, now_ms=now_ms)
            elif isinstance(target, CacheTransaction):
                settings_changed = settings_changed or target.settings_changed
        return answers, failures, settings_changed

    @staticmethod
    def _fail(group: list[_Write], error: Exception) -> None:
        for write in group:
            write.answer.set_exception(error)


def _lock_caches(
    connection: Connection, cache_ids: Sequence[int], *, now_ms: int
) -> dict[int, CacheTransaction | ServiceError]:
    """Each cache locked, with its seq and categories as they are now, or why it cannot be."""
    locked: dict[int, CacheTransaction | ServiceError] = {}
    for cache_id in cache_ids:
        try:
            locked[cache_id] = CacheTransaction.lock(connection, cache_id, now_ms=now_ms)
        except NotFoundError as error:
            locked[cache_id] = error
    return locked

"""New generations that a serving process builds by itself: when they pay, when one is damaged, at the stop.

A build runs in a process of its own (compaction_process), so that lookups neither share the interpreter with
it nor wait for its memory. What it writes is served like any generation: CURRENT names it, the next look
opens it.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from index.errors import BuildInProgressError
from index.facts import RowCounts, count_rows
from index.manifest import build_lock
from service.config import MOST_PAUSE_SECONDS, CompactionConfig, Config
from service.replica import CacheReplica

logger = logging.getLogger(__name__)
COMMAND = (sys.executable, "-m", "service.compaction_process")
# The build has the processor time that lookups leave: one thread, beside being nice.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(slots=True)
class _Attempts:
    """Builds of one cache since the last one that was served. `generation`: what the latest one wrote."""

    count: int = 0
    not_before: float = 0.0
    generation: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class _Build:
    cache: str
    cache_id: int
    process: subprocess.Popen[bytes]
    started: float


class Compactor:
    """Builds generations, one at a time. One thread at a time calls its methods, and none of them waits for a
    build except `snapshot` and `stop`."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Callable[[], float] = time.monotonic,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """clock: seconds. command: starts a process that reads and writes what compaction_process does."""
        self._config = config
        self._clock = clock
        self._command = command
        self._build: _Build | None = None
        self._attempts: dict[int, _Attempts] = {}

    @property
    def is_building(self) -> bool:
        """Whether a build runs, or has ended and `step` has not seen it yet."""
        return self._build is not None

    def step(self, replicas: Sequence[CacheReplica]) -> None:
        """See what a running build has come to; with none, start one for a cache that needs it."""
        if not self._config.compaction.enabled:
            return
        if self._build is not None:
            if self._build.cache_id not in {replica.state.record.id for replica in replicas}:
                self.stop()  # the cache was deleted
            elif self._build.process.poll() is not None:
                self._end(self._build)
            return  # what it wrote is opened before anything else is built
        for replica in replicas:
            if not self._may_build(replica):
                continue
            reason = build_reason(replica, self._config.compaction)
            if reason is not None and self._start(replica):
                logger.info("building a generation of %s: %s", replica.state.record.name, reason)
                return

    def snapshot(self, replicas: Sequence[CacheReplica]) -> None:
        """Build for the caches whose next start would replay many rows, as far as there is time for it.

        What is not in a generation is in the store: without one a start takes longer, and loses nothing.
        """
        settings = self._config.compaction
        deadline = self._clock() + settings.snapshot_seconds
        waiting = [(row_counts(replica).unheld_count, replica) for replica in replicas]
        for unheld_count, replica in sorted(waiting, key=lambda pair: -pair[0]):
            if unheld_count <= settings.snapshot_min_rows or not settings.enabled:
                return
            name = replica.state.record.name
            if not self._start(replica):
                continue
            assert self._build is not None
            logger.info("building a generation of %s with its last %d rows", name, unheld_count)
            try:
                self._build.process.wait(timeout=max(0.0, deadline - self._clock()))
            except subprocess.TimeoutExpired:
                self.stop()
                message = "stopping without a new generation of %s: not built within %g s; rows to replay: %d"
                logger.warning(message, name, settings.snapshot_seconds, unheld_count)
                return
            self._end(self._build)

    def stop(self) -> None:
        """End a running build; the current generation stays what it was."""
        if self._build is not None:
            self._build.process.kill()
            self._build.process.wait()
            _close_pipes(self._build.process)
            self._build = None

    def _may_build(self, replica: CacheReplica) -> bool:
        """Whether the last build is served, or the pause after it is over."""
        attempts = self._attempts.get(replica.state.record.id)
        if attempts is None:
            return True
        if attempts.generation and attempts.generation == replica.state.index.generation:
            del self._attempts[replica.state.record.id]
            return True
        return self._clock() >= attempts.not_before

    def _start(self, replica: CacheReplica) -> bool:
        """Start a build; False where it cannot be started, or another process builds the cache."""
        record = replica.state.record
        try:
            replica.root.mkdir(parents=True, exist_ok=True)
            with build_lock(replica.root):
                pass
        except BuildInProgressError:
            return False
        except OSError as error:
            self._count_attempt(record.id)
            self._fail(record.name, record.id, f"{replica.root}: {error.strerror}")
            return False
        self._count_attempt(record.id)
        order = json.dumps({"cache": record.name, "config": asdict(self._config)})
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_ONE_THREAD},
            )
        except OSError as error:
            self._fail(record.name, record.id, f"it cannot be started: {error}")
            return False
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it ended at once: its status says so
            process.stdin.write(order.encode() + b"\n")
            process.stdin.flush()  # and stays open: its end tells the process that this one has died
        self._build = _Build(record.name, record.id, process, self._clock())
        return True

    def _count_attempt(self, cache_id: int) -> None:
        """Each attempt doubles the pause before the next one, until a build is served."""
        attempts = self._attempts.setdefault(cache_id, _Attempts())
        pause = self._config.compaction.retry_seconds * 2.0 ** min(attempts.count, 30)
        attempts.count += 1
        attempts.not_before = self._clock() + min(pause, MOST_PAUSE_SECONDS)

    def _end(self, build: _Build) -> None:
        """Take note of a build whose process has ended."""
        assert build.process.stdout is not None
        answer = _answer_of(build.process.stdout.read(), status=build.process.returncode)
        _close_pipes(build.process)
        self._build = None
        outcome = answer.get("outcome")
        if outcome == "in_progress":  # another process was faster
            self._attempts.pop(build.cache_id, None)
        elif outcome == "built":
            attempts = self._attempts[build.cache_id]
            attempts.generation, attempts.failure = str(answer["generation"]), ""
            logger.info(
                "built generation %s of %s: %d rows in %.1f s",
                answer["generation"],
                build.cache,
                answer["row_count"],
                self._clock() - build.started,
            )
        elif outcome != "gone":
            self._fail(build.cache, build.cache_id, str(answer.get("reason")))

    def _fail(self, cache: str, cache_id: int, reason: str) -> None:
        """Log a failure, once while its reason is the same."""
        attempts = self._attempts[cache_id]
        if attempts.failure != reason:
            logger.error("the build of a generation of %s failed, serving goes on: %s", cache, reason)
        attempts.failure = reason


def row_counts(replica: CacheReplica) -> RowCounts:
    """Rows of a cache as its replica serves them; O(rows), without the interpreter lock."""
    index = replica.state.index
    return count_rows([view for _, view in index.segment_views()], generation=index.generation)


def build_reason(replica: CacheReplica, settings: CompactionConfig) -> str | None:
    """Why a new generation of the cache pays, in words for an operator; None: it does not."""
    if replica.refusal is not None and replica.refusal.is_damaged:
        return f"{replica.refusal.generation} is damaged"
    if replica.serves_dropped:
        return "rows of its generation were forgotten"
    counts = row_counts(replica)
    limit = max(settings.min_rows, settings.share * counts.live_count)
    if counts.unheld_count > limit:
        return f"{counts.unheld_count} of {counts.live_count} rows are in no generation"
    if counts.dead_count > limit:
        return f"{counts.dead_count} rows of its generation are deleted, {counts.live_count} are live"
    return None


def _answer_of(printed: bytes, *, status: int) -> dict[str, Any]:
    """What the process said last; where it said nothing, how it ended."""
    try:
        answer: dict[str, Any] = json.loads(printed.splitlines()[-1])
    except (IndexError, ValueError):
        ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return {"outcome": "failed", "reason": f"its process ended with {ended}"}
    return answer


def _close_pipes(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # unsent bytes of a dead process
                pipe.close()

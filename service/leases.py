"""Who computes: of concurrent misses that ask the same or nearly the same, one does, the others wait for it.

In memory, of one replica. A lease ends at its deadline, by the store that it was taken for, or by being
given up. Who waited for a stored answer looks it up; where there is none, one of those who wait takes the
next lease.
"""

import heapq
import math
import secrets
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from index.segment import Fingerprint

DISTANCE_TOLERANCE = 1e-6
"""Of a cosine distance between two queries: what float32 makes of two that are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be computed.

    Of one category, modality and scope those are equal that have the same `key`, and near-equal those of one
    embedding space whose vectors (float32 [dim], L2-normalised) are within the cosine distance `threshold`.
    """

    cache_id: int
    category_id: int
    modality: str
    scope: str
    key: Fingerprint | None = None
    space: str = ""
    vector: NDArray[np.float32] | None = None
    threshold: float = 0.0

    @property
    def category(self) -> tuple[int, int]:
        """Among whose leases it is looked for."""
        return self.cache_id, self.category_id


class Turn(Enum):
    """What a miss may do.

    TAKEN: it holds a lease. HELD: another holds one, and waiting is over. STORED: who it waited for has
    stored an answer; look it up, then ask again. FULL: the category has all the leases that it may have.
    ENDED: the caller is gone.
    """

    TAKEN = "taken"
    HELD = "held"
    STORED = "stored"
    FULL = "full"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Wait:
    """How long a caller waits: until `clock() >= until`, and while is_active."""

    until: float
    is_active: Callable[[], bool]


class _State(Enum):
    LIVE = "live"
    STORED = "stored"
    OVER = "over"


@dataclass(slots=True, eq=False)
class _Lease:
    token: str
    question: Question
    deadline: float
    state: _State = field(default=_State.LIVE)


class Leases:
    """The leases of this process. clock: seconds that never go back."""

    def __init__(
        self,
        *,
        max_per_category: int,
        max_waiting: int,
        clock: Callable[[], float] = time.monotonic,
        new_token: Callable[[], str] = lambda: secrets.token_urlsafe(24),
        changed: threading.Condition | None = None,
    ) -> None:
        """max_waiting: calls that wait at once, each of which holds a thread; further ones do not wait.

        changed: waited on, and told of every change; its lock guards everything here.
        """
        self.clock = clock
        self._max_per_category = max_per_category
        self._max_waiting = max_waiting
        self._new_token = new_token
        self._changed = changed or threading.Condition()
        self._by_token: dict[str, _Lease] = {}
        self._by_category: dict[tuple[int, int], list[_Lease]] = {}
        self._deadlines: list[tuple[float, str]] = []  # a heap; may name leases that have ended
        self._waiting_count = 0
        self._stored_count = 0
        self._closed = False

    @property
    def stored_count(self) -> int:
        """Leases that ended by a store so far: unchanged since a lookup, it missed no answer."""
        with self._changed:
            return self._stored_count

    @property
    def waiting_count(self) -> int:
        """Calls that wait now."""
        with self._changed:
            return self._waiting_count

    @property
    def live_count(self) -> int:
        """Leases that have not ended."""
        with self._changed:
            self._end_overdue()
            return len(self._by_token)

    def take(self, question: Question, *, seconds: float, wait: Wait | None = None) -> tuple[Turn, str]:
        """Take a lease for so long, or wait for those who hold one of an equal or near-equal question.

        Returns the turn, and with TAKEN the token that ends the lease.
        """
        with self._changed:
            while True:
                if wait is not None and not wait.is_active():
                    return Turn.ENDED, ""
                self._end_overdue()
                held = self._held(question)
                if held is None:
                    return self._grant(question, seconds=seconds)
                if wait is None or self._waiting_count >= self._max_waiting:
                    return Turn.HELD, ""
                turn = self._await_end(held, wait)
                if turn is not None:
                    return turn, ""

    def end(self, token: str, *, stored: bool) -> bool:
        """End a lease; stored: there is an answer now, which a lookup finds. False: it has ended already."""
        with self._changed:
            lease = self._by_token.get(token)
            if lease is None:
                return False
            self._end(lease, _State.STORED if stored else _State.OVER)
            self._stored_count += stored
            self._changed.notify_all()
            return True

    def wake(self) -> None:
        """Have those who wait look whether their callers are still there."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _await_end(self, held: _Lease, wait: Wait) -> Turn | None:
        """Wait until the lease ends; None: without an answer."""
        self._waiting_count += 1
        try:
            while True:
                if held.state is _State.STORED:
                    return Turn.STORED
                if not wait.is_active():
                    return Turn.ENDED
                now = self.clock()
                if self._closed or now >= wait.until:
                    return Turn.HELD
                if held.state is _State.OVER or now >= held.deadline:
                    return None
                self._changed.wait(min(wait.until, held.deadline) - now)
        finally:
            self._waiting_count -= 1

    def _grant(self, question: Question, *, seconds: float) -> tuple[Turn, str]:
        leases = self._by_category.get(question.category, [])
        if len(leases) >= self._max_per_category:
            return Turn.FULL, ""
        lease = _Lease(self._new_token(), question, self.clock() + seconds)
        self._by_category[question.category] = [*leases, lease]
        self._by_token[lease.token] = lease
        heapq.heappush(self._deadlines, (lease.deadline, lease.token))
        return Turn.TAKEN, lease.token

    def _held(self, question: Question) -> _Lease | None:
        """The lease of an equal question, else of the nearest one within the threshold."""
        rivals = [
            lease
            for lease in self._by_category.get(question.category, ())
            if (lease.question.modality, lease.question.scope) == (question.modality, question.scope)
        ]
        for lease in rivals:
            if question.key is not None and lease.question.key == question.key:
                return lease
        vector = question.vector
        if vector is None:
            return None
        near = [
            (lease, lease.question.vector)
            for lease in rivals
            if lease.question.vector is not None and lease.question.space == question.space
        ]
        if not near:
            return None
        distances = 1 - np.stack([other for _, other in near]) @ vector  # [leases]
        nearest = int(np.argmin(distances))
        return near[nearest][0] if distances[nearest] <= question.threshold + DISTANCE_TOLERANCE else None

    def _end_overdue(self) -> None:
        now = self.clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, token = heapq.heappop(self._deadlines)
            lease = self._by_token.get(token)
            if lease is not None:
                self._end(lease, _State.OVER)

    def _end(self, lease: _Lease, state: _State) -> None:
        lease.state = state
        del self._by_token[lease.token]
        kept = [other for other in self._by_category[lease.question.category] if other is not lease]
        if kept:
            self._by_category[lease.question.category] = kept
        else:
            del self._by_category[lease.question.category]
        # Otherwise deadlines of leases that ended early would pile up until they pass.
        if len(self._deadlines) > 2 * len(self._by_token) + self._max_per_category:
            self._deadlines = [(own.deadline, token) for token, own in self._by_token.items()]
            heapq.heapify(self._deadlines)


class RefreshTurns:
    """Who computes anew what is served although it is due: the first caller within a period, and no other."""

    def __init__(self, *, max_turns: int, clock: Callable[[], float] = time.monotonic) -> None:
        """max_turns: taken at once; while there are so many no further one is given. clock: as of Leases."""
        self._clock = clock
        self._max_turns = max_turns
        self._lock = threading.Lock()  # guards _until and _soonest
        self._until: dict[Hashable, float] = {}
        self._soonest = math.inf  # no turn ends before

    def try_take(self, key: Hashable, *, seconds: float) -> bool:
        """Whether the caller is to compute `key` anew; nobody else is for so long."""
        with self._lock:
            now = self._clock()
            if self._until.get(key, -math.inf) > now:
                return False
            if len(self._until) >= self._max_turns and self._soonest <= now:
                self._until = {own: until for own, until in self._until.items() if until > now}
                self._soonest = min(self._until.values(), default=math.inf)
            if len(self._until) >= self._max_turns and key not in self._until:
                return False
            self._until[key] = now + seconds
            self._soonest = min(self._soonest, now + seconds)
            return True

"""What is usual of a category's lookups and whether it shifted: learned from its first ones, then watched.

A shift is seen in the distance of each lookup to the nearest entry (`hashing.shift`); an equal fingerprint is
at distance 0. A large category may be searched so that only entries within its threshold are examined: there,
whatever lies beyond counts as at the threshold, in what is learned and in what is watched, and lookups that
asked for a smaller threshold are left out.

What is usual holds for the entries that it was learned with: once there are a fifth more or fewer, it is
learned anew. An encoder that is activated or rolled back changes no distance.
"""

import json
import logging
from array import array
from bisect import bisect_right
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from hashing.errors import ShiftStateError, TrainingDataError
from hashing.shift import Direction, ShiftAlarm, ShiftMonitor, restore_monitor
from hashing.shift_reference import ShiftReference, fit_shift_reference, reference_from_numbers
from service.accesses import BestDistances
from service.config import ShiftConfig
from service.records import ShiftRecord

logger = logging.getLogger(__name__)

_FARTHEST = 2.0
_CHANGED_SHARE = 0.2
# A segment holds deleted entries too: half of what makes one large, of live entries, may be a large one.
_LARGE_SHARE = 0.5
_MARK_SHARE = 1 / 64  # of the lookups that an alarm may go back to, between two times that are kept
_DAMAGE = (ShiftStateError, KeyError, TypeError, ValueError, OverflowError, AttributeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What best distances depend on, queries aside.

    entry_count: stored entries. ceiling: a cosine distance; whatever lies beyond counts as there.
    """

    entry_count: int
    ceiling: float

    @classmethod
    def of(cls, *, entry_count: int, threshold: float, large_count: int) -> "Conditions":
        """Those of a category whose lookups begin to be learned. large_count: entries of a segment from which
        on only those within the threshold may be examined."""
        is_large = entry_count >= _LARGE_SHARE * large_count
        return cls(entry_count=entry_count, ceiling=threshold if is_large else _FARTHEST)

    def hold(self, *, entry_count: int, threshold: float) -> bool:
        """Whether distances of now compare with those of then."""
        if self.ceiling not in (threshold, _FARTHEST):
            return False
        return abs(entry_count - self.entry_count) <= _CHANGED_SHARE * self.entry_count

    def comparable(self, distances: BestDistances) -> NDArray[np.float32]:
        """Those that can be told from each other, float32 [n]."""
        own = np.array(distances.own, dtype=np.float32)
        if self.ceiling < _FARTHEST:
            return np.minimum(own, np.float32(self.ceiling))
        measured = np.concatenate([own, np.array(distances.stricter, dtype=np.float32)])
        found: NDArray[np.float32] = measured[np.isfinite(measured)]
        return found


class CategoryShift:
    """One category: learning what is usual, watching, or stopped by an alarm until that is acknowledged."""

    def __init__(self, category: str, config: ShiftConfig) -> None:
        self.category = category
        self.alarm: ShiftAlarm | None = None
        self.alarm_ms: int | None = None
        self.since_ms: int | None = None
        self._config = config
        self._learn_anew(None)

    @property
    def lookup_count(self) -> int:
        """Lookups learned from, or watched since."""
        return len(self._learned) if self._monitor is None else self._monitor.observed_count

    def observe(
        self,
        distances: BestDistances,
        *,
        entry_count: int,
        threshold: float,
        large_count: int,
        now_ms: int,
    ) -> bool:
        """Take the lookups since the last call; return whether reference or alarm changed.

        entry_count, threshold: the category's now. large_count: see Conditions.of.
        """
        if self.alarm_ms is not None:
            return False
        forgot = False
        conditions = self._conditions
        if conditions is None or not conditions.hold(entry_count=entry_count, threshold=threshold):
            forgot = self._monitor is not None
            conditions = Conditions.of(entry_count=entry_count, threshold=threshold, large_count=large_count)
            self._learn_anew(conditions)
        comparable = conditions.comparable(distances)
        if self._monitor is None:
            return self._learn(comparable) or forgot
        self._mark(self._monitor, now_ms)
        raised = self._monitor.observe(comparable)
        if raised is None:
            return False
        self.alarm, self.alarm_ms = raised, now_ms
        self.since_ms = self._marks[max(0, self._place(raised.since))][1]
        return True

    def to_record(self, *, version: int) -> ShiftRecord:
        """What is kept of it in the store."""
        return ShiftRecord(
            version=version,
            lookup_count=self.lookup_count,
            reference=self._dump_reference(),
            state=json.dumps(self._state()),
            alarm=None if self.alarm is None else dump_alarm(self.alarm, since_ms=self.since_ms or 0),
            alarm_ms=self.alarm_ms,
        )

    def _learn_anew(self, conditions: Conditions | None) -> None:
        self._conditions = conditions
        self._learned = array("f")
        self._monitor: ShiftMonitor | None = None
        self._marks: list[tuple[int, int]] = []  # (lookups watched, time in ms), rising

    def _learn(self, distances: NDArray[np.float32]) -> bool:
        """Return whether enough are learned from."""
        self._learned.extend(distances.tolist())
        if len(self._learned) < self._config.reference_lookups:
            return False
        learned = np.array(self._learned, dtype=np.float32)
        self._learned = array("f")
        try:
            reference = fit_shift_reference(learned, run_length=self._config.run_length)
        except (TrainingDataError, np.linalg.LinAlgError) as error:
            logger.info(
                "category %s: %d lookups cannot be learned from: %s", self.category, learned.size, error
            )
            return False
        self._monitor = ShiftMonitor(reference, category=self.category)
        return True

    def _mark(self, monitor: ShiftMonitor, now_ms: int) -> None:
        """Keep that the next lookup was answered now, and forget times that no alarm can name any more."""
        self._marks = self._marks[max(0, self._place(monitor.earliest_start)) :]
        count = monitor.observed_count
        if self._marks and self._marks[-1][0] == count:
            self._marks.pop()
        if not self._marks or count - self._marks[-1][0] > (count - self._marks[0][0]) * _MARK_SHARE:
            self._marks.append((count, now_ms))

    def _place(self, number: int) -> int:
        """Which of the marks says when this lookup was answered; -1: none is so old."""
        return bisect_right(self._marks, number, key=lambda mark: mark[0]) - 1

    def _dump_reference(self) -> str | None:
        if self._monitor is None or self._conditions is None:
            return None
        return json.dumps({**asdict(self._conditions), "tables": self._monitor.reference.to_numbers()})

    def _state(self) -> dict[str, Any]:
        if self._monitor is not None:
            return {"monitor": self._monitor.to_numbers(), "marks": self._marks}
        if self._conditions is None:
            return {}
        learned = [round(distance, 6) for distance in self._learned]
        return {"conditions": asdict(self._conditions), "learned": learned}

    def restore(self, record: ShiftRecord) -> bool:
        """Go on where another process stood; return False where that cannot be read: then it learns anew, or
        watches anew if what is usual is known."""
        self._learn_anew(None)
        self.alarm_ms, self.alarm, self.since_ms = record.alarm_ms, *load_alarm(record.alarm)
        try:
            if record.reference is None:
                self._restore_learned(json.loads(record.state))
                return True
            conditions, reference = _load_reference(record.reference)
            self._monitor = ShiftMonitor(reference, category=self.category)
            self._conditions = conditions
        except _DAMAGE:
            self._learn_anew(None)
            return False
        try:
            state = json.loads(record.state)
            marks = [(int(count), int(time_ms)) for count, time_ms in state["marks"]]
            self._monitor = restore_monitor(reference, state["monitor"], category=self.category)
            self._marks = marks
        except _DAMAGE:
            return False
        return True

    def _restore_learned(self, state: dict[str, Any]) -> None:
        if not state:
            return
        conditions, learned = _to_conditions(state["conditions"]), array("f", state["learned"])
        if not np.isfinite(np.array(learned)).all():
            raise ShiftStateError("learned distances must be finite")
        self._conditions, self._learned = conditions, learned


def dump_alarm(alarm: ShiftAlarm, *, since_ms: int) -> str:
    """An alarm as JSON. since_ms: when the first lookup was answered that seems to belong to it."""
    return json.dumps({"alarm": asdict(alarm), "since_ms": since_ms})


def load_alarm(text: str | None) -> tuple[ShiftAlarm | None, int | None]:
    """What `dump_alarm` made of an alarm and its begin; (None, None) where there is none to be read."""
    if text is None:
        return None, None
    try:
        saved = json.loads(text)
        alarm = ShiftAlarm(**saved["alarm"])
        alarm.explain()
        if alarm.direction not in get_args(Direction):
            raise ShiftStateError(f"{alarm.direction!r} is no direction")
        return alarm, int(saved["since_ms"])
    except _DAMAGE:
        return None, None


def _load_reference(text: str) -> tuple[Conditions, ShiftReference]:
    saved = json.loads(text)
    return _to_conditions(saved), reference_from_numbers(saved["tables"])


def _to_conditions(saved: dict[str, Any]) -> Conditions:
    return Conditions(entry_count=int(saved["entry_count"]), ceiling=float(saved["ceiling"]))

"""Shift of what users ask away from what a category holds, seen in best distances alone, without labels.

The best distance of a lookup (1 - cosine to the nearest stored entry) costs nothing and says how well the
category knows the query. `fit_shift_reference` measures it over live queries of a period known to be good;
a `ShiftMonitor` follows it and raises one alarm, by whichever of three tests comes first:

- a CUSUM (Page 1954) of log-likelihood ratios against a mixture in which MIXTURE_SHARE of the queries lie
  farther than the reference, and one for closer: the quickest on a new topic among known ones;
- a z-test of the mean normal score over the last WINDOW queries, checked every BLOCK, both ways: for a small
  move of all queries, which a mixture explains badly.

After TAME (class-code scores, CUSUM and windowed z-test); the CUSUM limits are exact for the reference's bins
(Brook & Evans 1972), and all of them allow for its finite size.

What it cannot tell. Alarms are as few as promised for queries that are asked independently: those of one
conversation, retries, or a topic of the hour come together and score high. Observe one query of each
conversation, or fit with `run_length` (a larger one is slower); fit over whole days or weeks, so that the
seasons are in the reference. Entries that are added bring queries closer, those that expire push them
farther: fit again after a build, an update or a mass expiry. A new mix of known topics is no shift here:
`drift.drift_score` sees it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hashing.errors import ShiftStateError
from hashing.shift_reference import (
    BLOCK,
    DEVIATIONS_PER_STEP,
    NATS_PER_STEP,
    WINDOW,
    WINDOW_BLOCKS,
    Counts,
    ShiftReference,
    checked_distances,
)

Direction = Literal["farther", "closer"]

_KEPT_SHARE = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftAlarm:
    """What moved. Observations are numbered from 0 over the monitor's life.

    statistic: "mixture", a CUSUM in nats, or "window", a mean in reference deviations. size, limit: of it.
    direction: farther from what is stored, or closer. since: the first observation that seems to belong to
    the shift. at: the one that raised the alarm. share: of the queries since then, those that are more in the
    shift's direction than the reference explains; 0 to 1, and rather too high soon after `since`.
    """

    category: str
    statistic: Literal["mixture", "window"]
    direction: Direction
    size: float
    limit: float
    since: int
    at: int
    share: float

    def explain(self) -> str:
        """Return the alarm as a sentence for an operator."""
        moved = (
            "farther from what it holds than they were: a topic that it does not know"
            if self.direction == "farther"
            else "closer to what it holds than they were: repeats, or entries that were added"
        )
        measure = (
            f"evidence {self.size:.1f} nats, alarm at {self.limit:.1f}"
            if self.statistic == "mixture"
            else f"mean of {WINDOW} queries moved {self.size:.2f} deviations, alarm at {self.limit:.2f}"
        )
        asked = f"about {self.share:.0%} of the last {self.at - self.since + 1} queries"
        return f"Category {self.category}: {asked} lie {moved} ({measure})."


@dataclass(slots=True)
class _Cusum:
    """max(0, level + score), one test of it; ints, so that no cut of the stream changes a sum.

    start: number of the first observation since the level was last 0. kept: those since then that lie on the
    side that a shift leaves.
    """

    limit: int
    level: int = 0
    start: int = 0
    kept: int = 0

    def levels(self, sums: Counts) -> Counts:
        """Return the level after each observation, int64 [n]; sums [n]: of the scores up to it."""
        path = sums + self.level
        levels: Counts = path - np.minimum(np.minimum.accumulate(path), 0)
        return levels

    def advance(self, levels: Counts, kept: Counts, *, first: int) -> None:
        """Take the levels [n] of the observations from number `first` on, and the kept ones up to each."""
        zeros = np.flatnonzero(levels == 0)
        self.kept += int(kept[-1])
        if zeros.size:
            self.start = first + int(zeros[-1]) + 1
            self.kept = int(kept[-1] - kept[zeros[-1]])
        self.level = int(levels[-1])


@dataclass(slots=True)
class _Window:
    """Sums over the last blocks. Columns: normal scores, near queries, far queries.

    closed: int64 [up to WINDOW_BLOCKS - 1, 3]. growing: int64 [3], of the `count` queries since.
    """

    closed: Counts
    growing: Counts
    count: int = 0

    def advance(self, sums: Counts) -> tuple[NDArray[np.intp], Counts]:
        """Take sums [n, 3] up to each query; return where windows end, [w], and the sums of those, [w, 3]."""
        ends = np.arange(BLOCK - 1 - self.count, len(sums), BLOCK)
        self.count = (self.count + len(sums)) % BLOCK
        if not ends.size:
            self.growing = self.growing + sums[-1]
            return ends, self.closed[:0]
        new = np.diff(self.growing + sums[ends], axis=0, prepend=0)
        blocks = np.concatenate([self.closed, new])
        self.growing = sums[-1] - sums[ends[-1]]
        self.closed = blocks[1 - WINDOW_BLOCKS :]
        totals = np.concatenate([np.zeros_like(blocks[:1]), np.cumsum(blocks, axis=0)])
        windows = totals[WINDOW_BLOCKS:] - totals[:-WINDOW_BLOCKS]
        return ends[len(ends) - len(windows) :], windows


class ShiftMonitor:
    """Follows the best distances of one category; its state is a few integers, however long it runs.

    Deterministic, and independent of how the observations are cut into calls. A call costs about as much as
    100 observations do, so give it what a second or a batch brought. Not safe for several threads.
    """

    def __init__(self, reference: ShiftReference, *, category: str) -> None:
        self.reference = reference
        self.category = category
        self.observed_count = 0
        self.alarm: ShiftAlarm | None = None
        quantiles = np.cumsum(reference.probabilities)
        near, far = (int(np.abs(quantiles[:-1] - share).argmin()) for share in (_KEPT_SHARE, 1 - _KEPT_SHARE))
        self._kept_shares = {"farther": float(quantiles[near]), "closer": 1 - float(quantiles[far])}
        bins = np.arange(quantiles.size)
        columns = (reference.farther, reference.closer, reference.normal_scores, bins <= near, bins > far)
        self._table = np.stack(columns, axis=1, dtype=np.int64)  # [bins, 5]
        self.restart()

    @property
    def earliest_start(self) -> int:
        """The first observation that an alarm could name as `since` from now on."""
        window = max(0, self.observed_count + 1 - WINDOW)
        return min(self._farther.start, self._closer.start, window)

    def restart(self) -> None:
        """Forget the alarm and the evidence, and begin anew with the next observation."""
        self.alarm = None
        self._begin(self.observed_count)

    def observe(self, best_distances: NDArray[np.floating]) -> ShiftAlarm | None:
        """Take the best distances of the next queries; return the alarm where they raise it.

        best_distances: float [n], in the order asked, without queries that found no entry at all. After an
        alarm the monitor only counts, until `restart`. Raises: EmbeddingsError for distances that are not
        finite [n], and then nothing is observed.
        """
        distances = checked_distances(best_distances)
        if self.alarm is None and distances.size:
            bins = np.searchsorted(self.reference.edges, distances, side="right")
            self.alarm = raised = self._follow(bins)
            if raised is not None:
                self._begin(raised.at + 1)
        else:
            raised = None
        self.observed_count += distances.size
        return raised

    def _begin(self, start: int) -> None:
        self._farther = _Cusum(self.reference.farther_limit, start=start)
        self._closer = _Cusum(self.reference.closer_limit, start=start)
        self._window = _Window(np.zeros((0, 3), dtype=np.int64), np.zeros(3, dtype=np.int64))

    def _follow(self, bins: NDArray[np.intp]) -> ShiftAlarm | None:
        first = self.observed_count
        sums = np.cumsum(self._table[bins], axis=0)  # [n, 5]
        ends, windows = self._window.advance(sums[:, 2:])
        farther, closer = self._farther.levels(sums[:, 0]), self._closer.levels(sums[:, 1])
        over = np.abs(windows[:, 0]) >= self.reference.window_limit
        places = (
            _first(farther >= self._farther.limit),
            _first(closer >= self._closer.limit),
            int(ends[over][0]) if over.any() else None,
        )
        place = min((found for found in places if found is not None), default=None)
        taken = bins.size if place is None else place + 1
        self._farther.advance(farther[:taken], sums[:taken, 3], first=first)
        self._closer.advance(closer[:taken], sums[:taken, 4], first=first)
        if place is None:
            return None
        if places[0] == place:
            return self._mixture_alarm("farther", self._farther, at=first + place)
        if places[1] == place:
            return self._mixture_alarm("closer", self._closer, at=first + place)
        return self._window_alarm(windows[over][0], at=first + place)

    def _mixture_alarm(self, direction: Direction, cusum: _Cusum, *, at: int) -> ShiftAlarm:
        return ShiftAlarm(
            category=self.category,
            statistic="mixture",
            direction=direction,
            size=cusum.level * NATS_PER_STEP,
            limit=cusum.limit * NATS_PER_STEP,
            since=cusum.start,
            at=at,
            share=self._moved_share(direction, kept=cusum.kept, count=at + 1 - cusum.start),
        )

    def _window_alarm(self, sums: Counts, *, at: int) -> ShiftAlarm:
        score, near, far = sums.tolist()
        direction: Direction = "farther" if score > 0 else "closer"
        return ShiftAlarm(
            category=self.category,
            statistic="window",
            direction=direction,
            size=abs(score) * DEVIATIONS_PER_STEP / WINDOW,
            limit=self.reference.window_limit * DEVIATIONS_PER_STEP / WINDOW,
            since=at + 1 - WINDOW,
            at=at,
            share=self._moved_share(direction, kept=near if direction == "farther" else far, count=WINDOW),
        )

    def _moved_share(self, direction: Direction, *, kept: int, count: int) -> float:
        """Return the share that left the side where three quarters of the reference lie."""
        return min(1.0, max(0.0, 1 - kept / count / self._kept_shares[direction]))

    def to_numbers(self) -> dict[str, Any]:
        """Return the state, less the reference and the category, ready for JSON."""
        return {
            "reference": _checksum(self.reference),
            "observed_count": self.observed_count,
            "farther": [self._farther.level, self._farther.start, self._farther.kept],
            "closer": [self._closer.level, self._closer.start, self._closer.kept],
            "closed": self._window.closed.tolist(),
            "growing": [*self._window.growing.tolist(), self._window.count],
            "alarm": None if self.alarm is None else asdict(self.alarm),
        }


def restore_monitor(reference: ShiftReference, numbers: Mapping[str, Any], *, category: str) -> ShiftMonitor:
    """Return a monitor that goes on where the one whose `to_numbers` this is stood.

    Raises: ShiftStateError for a state of another reference, or none.
    """
    monitor = ShiftMonitor(reference, category=category)
    try:
        if numbers["reference"] != _checksum(reference):
            raise ShiftStateError("the state is of a monitor of another reference")
        monitor.observed_count = int(numbers["observed_count"])
        for cusum, saved in ((monitor._farther, numbers["farther"]), (monitor._closer, numbers["closer"])):
            cusum.level, cusum.start, cusum.kept = map(int, saved)
        *growing, count = map(int, numbers["growing"])
        closed = np.array(numbers["closed"], dtype=np.int64).reshape(-1, 3)
        monitor._window = _Window(closed, np.array(growing, dtype=np.int64).reshape(3), count)
        monitor.alarm = None if numbers["alarm"] is None else ShiftAlarm(**numbers["alarm"])
    except (KeyError, TypeError, ValueError) as error:
        raise ShiftStateError(f"no state of a shift monitor: {error!r}") from error
    if len(closed) >= WINDOW_BLOCKS or not 0 <= count < BLOCK:
        raise ShiftStateError("the state has more blocks than a window")
    return monitor


def _first(crossed: NDArray[np.bool_]) -> int | None:
    return int(crossed.argmax()) if crossed.any() else None


def _checksum(reference: ShiftReference) -> int:
    tables = (reference.edges, reference.farther, reference.closer, reference.normal_scores)
    limits = (reference.farther_limit, reference.closer_limit, reference.window_limit)
    return zlib.crc32(b"".join(table.tobytes() for table in tables) + repr(limits).encode())

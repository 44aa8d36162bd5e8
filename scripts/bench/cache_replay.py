"""A stream replayed against one deciding rule: look up, serve or compute, store what was computed."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scripts.bench.cache_streams import Stream

SHORTLIST = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shortlist:
    """The nearest entries of a request. distances: float64 [k], ascending; entries: int64 [k], rows."""

    request: int
    distances: NDArray[np.float64]
    entries: NDArray[np.int64]


class DecidingRule(Protocol):
    """What decides. A rule that is not served learns from what was computed."""

    def serve(self, shortlist: Shortlist) -> int | None:
        """The row whose answer is served; None: it is computed."""
        ...

    def learn(self, shortlist: Shortlist, stream: Stream) -> bool:
        """What was computed, and not served, is there to compare with. Returns whether it is stored."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Counts of one replay. unknown_count: hits of which nobody said whether they fit: neither right nor
    wrong."""

    request_count: int
    right_count: int
    wrong_count: int
    unknown_count: int

    @property
    def hit_rate(self) -> float:
        """Right and wrong hits by requests; unknown ones are told apart."""
        return (self.right_count + self.wrong_count) / self.request_count

    @property
    def wrong_rate(self) -> float:
        """Wrong hits by requests."""
        return self.wrong_count / self.request_count

    @property
    def wrong_share(self) -> float:
        """Wrong hits by right and wrong ones; 0 without any."""
        return self.wrong_count / max(1, self.right_count + self.wrong_count)

    @property
    def unknown_rate(self) -> float:
        """Unknown hits by requests."""
        return self.unknown_count / self.request_count


def replay(stream: Stream, order: NDArray[np.int64], rule: DecidingRule) -> Replayed:
    """Insert on miss, as far as the rule stores it; the search is exact."""
    vectors = stream.vectors[order]
    stored = np.empty_like(vectors)
    rows = np.empty(len(order), dtype=np.int64)
    count = 0
    outcomes = {True: 0, False: 0, None: 0}
    for vector, request in zip(vectors, order.tolist(), strict=True):
        served, is_stored = None, True
        if count:
            shortlist = _shortlist(request, stored[:count] @ vector, rows)
            served = rule.serve(shortlist)
            if served is None:
                is_stored = rule.learn(shortlist, stream)
            else:
                outcomes[stream.is_right(request, served)] += 1
        if served is None and is_stored:
            stored[count], rows[count] = vector, request
            count += 1
    return Replayed(
        request_count=len(order),
        right_count=outcomes[True],
        wrong_count=outcomes[False],
        unknown_count=outcomes[None],
    )


def _shortlist(request: int, cosines: NDArray[np.float32], rows: NDArray[np.int64]) -> Shortlist:
    k = min(SHORTLIST, len(cosines))
    nearest = np.argpartition(-cosines, k - 1)[:k]
    nearest = nearest[np.argsort(-cosines[nearest], kind="stable")]
    distances = np.maximum(1.0 - cosines[nearest].astype(np.float64), 0.0)
    return Shortlist(request=request, distances=distances, entries=rows[nearest])

"""Whether looking up pays: the hit rate at which a cache costs as much as it spares, and what to do below it.

Every search costs `lookup_cost`; a hit spares the model's cost less its own. So at a hit rate of
h* = lookup_cost / (model_cost - hit_cost) searching costs what it spares. A category may ask that nothing is
searched while its hit rate is surely lower, but for one in PROBED, so that a change is noticed.
"""

import math
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from service.policy import Policy

WINDOW = 1_000
"""Latest searches of a category by which it is decided that searching does not pay."""

PROBED = 20
"""While nothing is searched, one lookup in so many is."""

PROBES = 100
"""Latest ones of these by which it is decided that searching pays again."""

LEAST_PROBES = 20

CATEGORIES_MOST = 1_024
"""Categories that are followed; the one that was looked up in longest ago is forgotten."""

_Z = 1.959963984540054  # of a 95% interval


def break_even_hit_rate(policy: Policy) -> float | None:
    """The hit rate at which searching costs what it spares, may be over 1; None: the model's cost is not
    known."""
    if not policy.model_cost:
        return None
    spared = policy.model_cost - policy.hit_cost
    return policy.lookup_cost / spared if spared > 0 else math.inf


def bypass_below(policy: Policy) -> float | None:
    """The hit rate below which nothing is searched; None: everything is."""
    return break_even_hit_rate(policy) if policy.auto_bypass and not policy.shadow else None


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95% interval of a share, (0, 1) of nothing (Wilson, JASA 1927)."""
    if not total:
        return 0.0, 1.0
    share, square = count / total, _Z * _Z
    middle = (share + square / (2 * total)) / (1 + square / total)
    width = _Z / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    # At either end the bound is exact: rounding must not make 1 of a share that is not.
    low = 0.0 if count == 0 else max(0.0, middle - width)
    return low, 1.0 if count == total else min(1.0, middle + width)


@dataclass(slots=True)
class _Searches:
    """Of one category. latest: whether each was a hit; while nothing is searched, of the probes."""

    latest: "deque[bool]" = field(default_factory=lambda: deque(maxlen=WINDOW))
    hit_count: int = 0
    is_bypassed: bool = False
    turn: int = 0  # lookups since nothing is searched

    def add(self, *, is_hit: bool) -> None:
        if len(self.latest) == self.latest.maxlen:
            self.hit_count -= self.latest[0]
        self.latest.append(is_hit)
        self.hit_count += is_hit

    def start(self, *, is_bypassed: bool) -> None:
        self.is_bypassed, self.turn, self.hit_count = is_bypassed, 0, 0
        self.latest = deque(maxlen=PROBES if is_bypassed else WINDOW)


class Bypasses:
    """Which categories' lookups are not searched; of this process, gone with it.

    Searching ends once, of the last WINDOW searches, the upper bound of the hit rate is under break-even. It
    begins again, with an empty window, once the lower bound is over it among the last PROBES probes, of which
    there must be LEAST_PROBES.
    """

    def __init__(self, *, categories: int = CATEGORIES_MOST) -> None:
        self._categories = categories
        self._lock = threading.Lock()  # guards _searches and what is in it
        self._searches: OrderedDict[int, _Searches] = OrderedDict()

    def is_skipped(self, category_id: int) -> bool:
        """Whether a lookup is not to be searched; counts it."""
        with self._lock:
            own = self._searches.get(category_id)
            if own is None or not own.is_bypassed:
                return False
            own.turn += 1
            return own.turn % PROBED != 0

    def record(self, category_id: int, *, is_hit: bool, break_even: float) -> None:
        """Take what came of a search that was not skipped."""
        with self._lock:
            own = self._searches.get(category_id)
            if own is None:
                own = self._searches[category_id] = _Searches()
                if len(self._searches) > self._categories:
                    self._searches.popitem(last=False)
            self._searches.move_to_end(category_id)
            own.add(is_hit=is_hit)
            low, high = wilson(own.hit_count, len(own.latest))
            if own.is_bypassed:
                if len(own.latest) >= LEAST_PROBES and low > break_even:
                    own.start(is_bypassed=False)
            elif len(own.latest) == WINDOW and high < break_even:
                own.start(is_bypassed=True)

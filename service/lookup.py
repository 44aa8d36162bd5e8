"""One lookup: what is asked, why it is a hit or a miss, what was found."""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.planner import SearchPath
from index.requests import Match, Partition
from index.segment import Fingerprint
from service.decision_rules import RuleSource
from service.embedding import Embedded, Input
from service.evidence import NO_JUDGE
from service.records import CategoryRecord
from service.risk import Risk


class LookupMode(Enum):
    """What a lookup does with what it finds."""

    SERVE = "serve"
    BYPASS = "bypass"
    REFRESH = "refresh"


class LookupReason(Enum):
    """Why a lookup was a hit or a miss.

    BEYOND_THRESHOLD without a distance: rows that are too far by their codes were not examined, and none of
    them may be of the scope. NO_CANDIDATE: there is none of the scope. UNVERIFIED: entries are within the
    threshold, and the verifier's consent to one of them was asked for and not given. LEASED: another caller
    holds the lease of the same question, or of one within the threshold. STALE: an entry would be one, if it
    were younger. EXPLORED: one would be one, if the category did not explore. RISKY: none of those within the
    threshold is sure enough. DISTRUSTED: they are what was wrong near the question, or not near enough there.
    UNPROFITABLE: nothing was searched, as that does not pay in the category.
    """

    FINGERPRINT = "fingerprint"
    WITHIN_THRESHOLD = "within_threshold"
    BEYOND_THRESHOLD = "beyond_threshold"
    NO_CANDIDATE = "no_candidate"
    BYPASS = "bypass"
    REFRESH = "refresh"
    SHADOW = "shadow"
    UNVERIFIED = "unverified"
    LEASED = "leased"
    STALE = "stale"
    EXPLORED = "explored"
    RISKY = "risky"
    DISTRUSTED = "distrusted"
    UNPROFITABLE = "unprofitable"


HITS = (LookupReason.FINGERPRINT, LookupReason.WITHIN_THRESHOLD)
"""The reasons of hits; all others are of misses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupQuery:
    """One lookup. `threshold` is a cosine distance; the stricter of it and the category's holds, as with
    `max_age_ms` and the category's refresh time; None: any age.

    lease_seconds: a miss takes a lease for so long; 0: it asks for none. wait_seconds: for another's lease.
    """

    category: str
    source: Input
    scope: str = ""
    fingerprint: str | None = None
    mode: LookupMode = LookupMode.SERVE
    threshold: float | None = None
    max_age_ms: int | None = None
    min_seq: int = 0
    lease_seconds: float = 0.0
    wait_seconds: float = 0.0
    explain: bool = False


class Found(NamedTuple):  # quicker to make than a dataclass
    """The entry that would be served and how it was found; without one, of the nearest. STALE: the entry that
    is too old. refresh_due: it is served past its refresh time.

    nearest: distance of the nearest entry, infinite where none was examined; None: nothing was searched for.
    probability: as in LookupAnswer. mapped_threshold: applied to a mapped query; None: it was not mapped.
    candidate: that a rule judged, served or not; features: of its risk; judge: whose word they hold
    (evidence)."""

    match: Match | None
    reason: LookupReason
    distance: float | None
    path: SearchPath | None = None
    candidates_examined: int = 0
    query_code: NDArray[np.uint64] | None = None
    nearest: float | None = None
    probability: float | None = None
    mapped_threshold: float | None = None
    refresh_due: bool = False
    rule_source: RuleSource | None = None
    candidate: Match | None = None
    features: tuple[float, ...] = ()
    judge: bytes = NO_JUDGE
    risk: Risk | None = None
    risk_limit: float | None = None


class Lookup(NamedTuple):
    """One lookup and what it is answered from. partitions: of all spaces of its modality. threshold: of those
    searched. embedded: None where no vector is searched for. mapped_from: what was asked, where `embedded` is
    that in the space of the embedder before. seq: of the state. load: that counts for the category, in
    [0, 1]; None: none does. is_skipped: where no fingerprint answers, nothing is searched."""

    query: LookupQuery
    category: CategoryRecord
    partitions: tuple[Partition, ...]
    threshold: float
    key: Fingerprint | None
    embedded: Embedded | None
    mapped_from: Embedded | None = None
    seq: int = 0
    load: float | None = None
    is_skipped: bool = False

    @property
    def is_mapped(self) -> bool:
        """Whether it is one of the embedder before."""
        return self.mapped_from is not None

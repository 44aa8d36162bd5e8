"""The values that pass between the store, the index and the front end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.policy import OwnPolicy, Policy
from service.tables import NEVER_MS


class Operation(IntEnum):
    """What a row of the change feed did to its entry."""

    UPSERT = 1
    DELETE = 2
    EXTEND = 3  # a hit of a sliding entry moved its expire time


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalitySpec:
    """An embedding space of a cache: of one modality, by one embedder.

    succeeds: the space whose place it takes, while entries are moved there (see `spaces`); empty: none.
    """

    dim: int
    embedder_id: str = ""
    succeeds: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRecord:
    """One row of `caches`. modalities: by space, see `spaces`."""

    id: int
    name: str
    description: str
    modalities: Mapping[str, ModalitySpec]
    code_bits: int
    label_bits: int
    active_encoder_id: str | None
    seq: int
    config_version: int
    token_key: bytes = field(repr=False)
    create_ms: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryRecord:
    """One row of `categories`. policy: what holds, own_policy: what it sets itself. parent: name of the
    category that it inherits from; empty: none."""

    id: int
    cache_id: int
    name: str
    parent_id: int | None
    parent: str
    own_policy: OwnPolicy
    policy: Policy
    entry_count: int
    size_bytes: int
    hit_count: int
    miss_count: int
    shadow_hit_count: int
    bypass_count: int
    create_ms: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """What an encoder made of a vector: packed words as bytes."""

    encoder_id: str
    code: bytes
    label_code: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEntry:
    """An entry as it goes into the store. `name` empty: the store makes one; `expire_ms` None: from the
    entry's own time to live or the category's."""

    category_id: int
    name: str = ""
    scope: str = ""
    fingerprint: str | None = None
    text: str = ""
    labels: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    source: str = ""
    modality: str = "text"
    embedder_id: str = ""
    vector: NDArray[np.float16]
    code_bytes: int  # of the cache's codes; counted also while the entry has none
    coding: Coding | None = None
    response: bytes = b""
    content_type: str = ""
    cost: float = 0.0  # of computing the response, in the caller's unit; 0: not known
    model: str = ""
    completion: str = "complete"  # | "truncated" | "failed"
    ttl_ms: int | None = None
    ttl_mode: str | None = None
    create_ms: int | None = None
    expire_ms: int | None = None
    request_id: str = ""
    request_digest: bytes = b""
    replace_name: str = ""

    @property
    def size_bytes(self) -> int:
        """What the quota counts: response, vector and code."""
        return len(self.response) + self.vector.nbytes + self.code_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEntry:
    """What a store answers for one entry. admission: of `admission`; an entry that was not admitted has no
    name."""

    name: str
    seq: int
    create_ms: int
    expire_ms: int
    ttl_ms: int | None
    ttl_mode: str
    evicted_count: int = 0
    admission: str = "stored"


PAIR_LABELS = {"right": 1, "wrong": 0}
"""What a verdict says of the pair of query and entry; one that is not here says nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedVerdict:
    """What became of a verdict. is_first: of its lookup; another one is not kept."""

    is_first: bool
    query_kept: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryRecord:
    """One row of `entries`, with response and tags where they were asked for."""

    id: int
    category_id: int
    name: str
    scope: str
    fingerprint: str | None
    fingerprint_key: bytes | None
    text: str
    labels: tuple[str, ...]
    source: str
    modality: str
    embedder_id: str
    vector: bytes
    code: bytes | None
    label_code: bytes | None
    encoder_id: str | None
    cost: float
    model: str
    demote_ms: int | None
    ttl_ms: int | None
    ttl_mode: str
    create_ms: int
    expire_ms: int
    seq: int
    response: bytes = b""
    content_type: str = ""
    tags: tuple[str, ...] = ()

    @property
    def never_expires(self) -> bool:
        """Whether it has no expire time."""
        return self.expire_ms == NEVER_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderRecord:
    """One row of `encoders`, without its weights."""

    encoder_id: str
    state: str  # candidate | active | retired | rejected | destroyed
    parent_id: str | None
    previous_id: str | None
    watermark: int
    label_bits: int  # 0: it has no label codes
    class_count: int
    untraced_row_count: int | None
    metrics: Mapping[str, float]
    reason: str
    create_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierRecord:
    """One row of `verifiers`, without its weights."""

    verifier_id: str
    modality: str
    state: str  # candidate | active
    metrics: Mapping[str, float]
    create_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderMapRecord:
    """One row of `embedder_maps`, without its weights. modality, space: see the table."""

    map_id: str
    modality: str
    space: str
    embedder_id: str
    state: str  # active | rejected | retired
    report: Mapping[str, Any]
    create_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftRecord:
    """One row of `shift_monitors`, less its keys.

    reference, state, alarm: JSON of `category_shift`. alarm_ms: of an alarm that is not acknowledged.
    """

    version: int = 0
    lookup_count: int = 0
    reference: str | None = None
    state: str = "{}"
    alarm: str | None = None
    alarm_ms: int | None = None

    @property
    def stage(self) -> str:
        """Where it stands: learning | watching | alarm."""
        if self.alarm_ms is not None:
            return "alarm"
        return "learning" if self.reference is None else "watching"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChangeRecord:
    """One row of `policy_changes`, less its cache."""

    id: int
    category: str
    category_id: int
    version: int
    create_ms: int
    operation: str  # create | update | delete
    before: str
    after: str
    principal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One row of `jobs`."""

    id: int
    cache_id: int
    name: str
    kind: str  # update | load | learn-pairs | reembed
    source: str | None  # of a load: the file, from the inbox on; of a reembed: the embedder
    state: str  # queued | running | succeeded | failed | cancelled
    stage: str | None  # what it is at, or was last; done_count of total_count rows of that
    done_count: int | None
    total_count: int | None
    owner: str | None
    lease_ms: int | None
    attempt_count: int
    report: str
    error: str
    create_ms: int
    end_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Near:
    """Entries of one embedding space within a cosine distance, inclusive, of a vector (float32 [dim]).

    within: the row ids of those that are so near, among what was stored up to `measured_seq`.
    """

    space: str
    vector: NDArray[np.float32]
    radius: float
    measured_seq: int = 0
    within: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which entries an invalidation means: within one field any value may match, all fields given must.

    created_before_ms: milliseconds since the epoch.
    """

    names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    tags: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    created_before_ms: int | None = None
    near: Near | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was asked for."""
        values = self.names or self.category_ids or self.tags or self.sources or self.models
        return not values and self.created_before_ms is None and self.near is None

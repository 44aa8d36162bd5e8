import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from nearhit.v1 import resources_pb2 as _resources_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LookupMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOOKUP_MODE_UNSPECIFIED: _ClassVar[LookupMode]
    LOOKUP_MODE_SERVE: _ClassVar[LookupMode]
    LOOKUP_MODE_BYPASS: _ClassVar[LookupMode]
    LOOKUP_MODE_REFRESH: _ClassVar[LookupMode]

class LookupOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOOKUP_OUTCOME_UNSPECIFIED: _ClassVar[LookupOutcome]
    LOOKUP_OUTCOME_HIT: _ClassVar[LookupOutcome]
    LOOKUP_OUTCOME_MISS: _ClassVar[LookupOutcome]

class LookupReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOOKUP_REASON_UNSPECIFIED: _ClassVar[LookupReason]
    LOOKUP_REASON_FINGERPRINT: _ClassVar[LookupReason]
    LOOKUP_REASON_WITHIN_THRESHOLD: _ClassVar[LookupReason]
    LOOKUP_REASON_BEYOND_THRESHOLD: _ClassVar[LookupReason]
    LOOKUP_REASON_NO_CANDIDATE: _ClassVar[LookupReason]
    LOOKUP_REASON_BYPASS: _ClassVar[LookupReason]
    LOOKUP_REASON_REFRESH: _ClassVar[LookupReason]
    LOOKUP_REASON_SHADOW: _ClassVar[LookupReason]
    LOOKUP_REASON_UNVERIFIED: _ClassVar[LookupReason]
    LOOKUP_REASON_LEASED: _ClassVar[LookupReason]
    LOOKUP_REASON_STALE: _ClassVar[LookupReason]
    LOOKUP_REASON_EXPLORED: _ClassVar[LookupReason]
    LOOKUP_REASON_RISKY: _ClassVar[LookupReason]
    LOOKUP_REASON_DISTRUSTED: _ClassVar[LookupReason]
    LOOKUP_REASON_UNPROFITABLE: _ClassVar[LookupReason]

class Completion(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPLETION_UNSPECIFIED: _ClassVar[Completion]
    COMPLETION_COMPLETE: _ClassVar[Completion]
    COMPLETION_TRUNCATED: _ClassVar[Completion]
    COMPLETION_FAILED: _ClassVar[Completion]

class Admission(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADMISSION_UNSPECIFIED: _ClassVar[Admission]
    ADMISSION_STORED: _ClassVar[Admission]
    ADMISSION_TOO_CHEAP: _ClassVar[Admission]
    ADMISSION_FIRST_SIGHTING: _ClassVar[Admission]
    ADMISSION_INCOMPLETE: _ClassVar[Admission]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_RIGHT: _ClassVar[Verdict]
    VERDICT_WRONG: _ClassVar[Verdict]
    VERDICT_REPLACED: _ClassVar[Verdict]
LOOKUP_MODE_UNSPECIFIED: LookupMode
LOOKUP_MODE_SERVE: LookupMode
LOOKUP_MODE_BYPASS: LookupMode
LOOKUP_MODE_REFRESH: LookupMode
LOOKUP_OUTCOME_UNSPECIFIED: LookupOutcome
LOOKUP_OUTCOME_HIT: LookupOutcome
LOOKUP_OUTCOME_MISS: LookupOutcome
LOOKUP_REASON_UNSPECIFIED: LookupReason
LOOKUP_REASON_FINGERPRINT: LookupReason
LOOKUP_REASON_WITHIN_THRESHOLD: LookupReason
LOOKUP_REASON_BEYOND_THRESHOLD: LookupReason
LOOKUP_REASON_NO_CANDIDATE: LookupReason
LOOKUP_REASON_BYPASS: LookupReason
LOOKUP_REASON_REFRESH: LookupReason
LOOKUP_REASON_SHADOW: LookupReason
LOOKUP_REASON_UNVERIFIED: LookupReason
LOOKUP_REASON_LEASED: LookupReason
LOOKUP_REASON_STALE: LookupReason
LOOKUP_REASON_EXPLORED: LookupReason
LOOKUP_REASON_RISKY: LookupReason
LOOKUP_REASON_DISTRUSTED: LookupReason
LOOKUP_REASON_UNPROFITABLE: LookupReason
COMPLETION_UNSPECIFIED: Completion
COMPLETION_COMPLETE: Completion
COMPLETION_TRUNCATED: Completion
COMPLETION_FAILED: Completion
ADMISSION_UNSPECIFIED: Admission
ADMISSION_STORED: Admission
ADMISSION_TOO_CHEAP: Admission
ADMISSION_FIRST_SIGHTING: Admission
ADMISSION_INCOMPLETE: Admission
VERDICT_UNSPECIFIED: Verdict
VERDICT_RIGHT: Verdict
VERDICT_WRONG: Verdict
VERDICT_REPLACED: Verdict

class LookupRequest(_message.Message):
    __slots__ = ("category", "query", "scope", "fingerprint", "mode", "threshold", "min_seq", "max_age", "lease", "wait", "explain")
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQ_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    category: str
    query: _resources_pb2.Query
    scope: str
    fingerprint: str
    mode: LookupMode
    threshold: float
    min_seq: int
    max_age: _duration_pb2.Duration
    lease: _duration_pb2.Duration
    wait: _duration_pb2.Duration
    explain: bool
    def __init__(self, category: _Optional[str] = ..., query: _Optional[_Union[_resources_pb2.Query, _Mapping]] = ..., scope: _Optional[str] = ..., fingerprint: _Optional[str] = ..., mode: _Optional[_Union[LookupMode, str]] = ..., threshold: _Optional[float] = ..., min_seq: _Optional[int] = ..., max_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., explain: bool = ...) -> None: ...

class LookupResponse(_message.Message):
    __slots__ = ("outcome", "reason", "entry", "response", "content_type", "distance", "threshold", "search_path", "candidates_examined", "lookup_token", "generation", "seq", "latency_us", "probability", "mapped", "lease_token", "rule_source", "risk", "risk_low", "risk_high", "risk_limit", "explanation", "load", "refresh_due")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    SEARCH_PATH_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_EXAMINED_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_TOKEN_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    LATENCY_US_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    MAPPED_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    RULE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    RISK_FIELD_NUMBER: _ClassVar[int]
    RISK_LOW_FIELD_NUMBER: _ClassVar[int]
    RISK_HIGH_FIELD_NUMBER: _ClassVar[int]
    RISK_LIMIT_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    REFRESH_DUE_FIELD_NUMBER: _ClassVar[int]
    outcome: LookupOutcome
    reason: LookupReason
    entry: str
    response: bytes
    content_type: str
    distance: float
    threshold: float
    search_path: _resources_pb2.SearchPath
    candidates_examined: int
    lookup_token: str
    generation: str
    seq: int
    latency_us: int
    probability: float
    mapped: bool
    lease_token: str
    rule_source: _resources_pb2.RuleSource
    risk: float
    risk_low: float
    risk_high: float
    risk_limit: float
    explanation: str
    load: float
    refresh_due: bool
    def __init__(self, outcome: _Optional[_Union[LookupOutcome, str]] = ..., reason: _Optional[_Union[LookupReason, str]] = ..., entry: _Optional[str] = ..., response: _Optional[bytes] = ..., content_type: _Optional[str] = ..., distance: _Optional[float] = ..., threshold: _Optional[float] = ..., search_path: _Optional[_Union[_resources_pb2.SearchPath, str]] = ..., candidates_examined: _Optional[int] = ..., lookup_token: _Optional[str] = ..., generation: _Optional[str] = ..., seq: _Optional[int] = ..., latency_us: _Optional[int] = ..., probability: _Optional[float] = ..., mapped: bool = ..., lease_token: _Optional[str] = ..., rule_source: _Optional[_Union[_resources_pb2.RuleSource, str]] = ..., risk: _Optional[float] = ..., risk_low: _Optional[float] = ..., risk_high: _Optional[float] = ..., risk_limit: _Optional[float] = ..., explanation: _Optional[str] = ..., load: _Optional[float] = ..., refresh_due: bool = ...) -> None: ...

class BatchLookupRequest(_message.Message):
    __slots__ = ("parent", "requests")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    parent: str
    requests: _containers.RepeatedCompositeFieldContainer[LookupRequest]
    def __init__(self, parent: _Optional[str] = ..., requests: _Optional[_Iterable[_Union[LookupRequest, _Mapping]]] = ...) -> None: ...

class BatchLookupResponse(_message.Message):
    __slots__ = ("responses",)
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[LookupResponse]
    def __init__(self, responses: _Optional[_Iterable[_Union[LookupResponse, _Mapping]]] = ...) -> None: ...

class StoreRequest(_message.Message):
    __slots__ = ("entry", "request_id", "replace_entry", "lookup_token", "lease_token", "completion")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REPLACE_ENTRY_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    entry: _resources_pb2.Entry
    request_id: str
    replace_entry: str
    lookup_token: str
    lease_token: str
    completion: Completion
    def __init__(self, entry: _Optional[_Union[_resources_pb2.Entry, _Mapping]] = ..., request_id: _Optional[str] = ..., replace_entry: _Optional[str] = ..., lookup_token: _Optional[str] = ..., lease_token: _Optional[str] = ..., completion: _Optional[_Union[Completion, str]] = ...) -> None: ...

class ReleaseLeaseRequest(_message.Message):
    __slots__ = ("lease_token",)
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    lease_token: str
    def __init__(self, lease_token: _Optional[str] = ...) -> None: ...

class StoreResponse(_message.Message):
    __slots__ = ("entry", "evicted_count", "admission")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    EVICTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    entry: _resources_pb2.Entry
    evicted_count: int
    admission: Admission
    def __init__(self, entry: _Optional[_Union[_resources_pb2.Entry, _Mapping]] = ..., evicted_count: _Optional[int] = ..., admission: _Optional[_Union[Admission, str]] = ...) -> None: ...

class BatchStoreRequest(_message.Message):
    __slots__ = ("parent", "requests")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    parent: str
    requests: _containers.RepeatedCompositeFieldContainer[StoreRequest]
    def __init__(self, parent: _Optional[str] = ..., requests: _Optional[_Iterable[_Union[StoreRequest, _Mapping]]] = ...) -> None: ...

class BatchStoreResponse(_message.Message):
    __slots__ = ("responses",)
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[StoreResponse]
    def __init__(self, responses: _Optional[_Iterable[_Union[StoreResponse, _Mapping]]] = ...) -> None: ...

class GetEntryRequest(_message.Message):
    __slots__ = ("name", "view")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    name: str
    view: _resources_pb2.EntryView
    def __init__(self, name: _Optional[str] = ..., view: _Optional[_Union[_resources_pb2.EntryView, str]] = ...) -> None: ...

class ListEntriesRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "view")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    view: _resources_pb2.EntryView
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., view: _Optional[_Union[_resources_pb2.EntryView, str]] = ...) -> None: ...

class ListEntriesResponse(_message.Message):
    __slots__ = ("entries", "next_page_token")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[_resources_pb2.Entry]
    next_page_token: str
    def __init__(self, entries: _Optional[_Iterable[_Union[_resources_pb2.Entry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteEntryRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class InvalidateRequest(_message.Message):
    __slots__ = ("parent", "entries", "categories", "tags", "sources", "dry_run", "models", "created_before", "older_than", "near", "radius")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    CREATED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    OLDER_THAN_FIELD_NUMBER: _ClassVar[int]
    NEAR_FIELD_NUMBER: _ClassVar[int]
    RADIUS_FIELD_NUMBER: _ClassVar[int]
    parent: str
    entries: _containers.RepeatedScalarFieldContainer[str]
    categories: _containers.RepeatedScalarFieldContainer[str]
    tags: _containers.RepeatedScalarFieldContainer[str]
    sources: _containers.RepeatedScalarFieldContainer[str]
    dry_run: bool
    models: _containers.RepeatedScalarFieldContainer[str]
    created_before: _timestamp_pb2.Timestamp
    older_than: _duration_pb2.Duration
    near: _resources_pb2.Query
    radius: float
    def __init__(self, parent: _Optional[str] = ..., entries: _Optional[_Iterable[str]] = ..., categories: _Optional[_Iterable[str]] = ..., tags: _Optional[_Iterable[str]] = ..., sources: _Optional[_Iterable[str]] = ..., dry_run: bool = ..., models: _Optional[_Iterable[str]] = ..., created_before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., older_than: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., near: _Optional[_Union[_resources_pb2.Query, _Mapping]] = ..., radius: _Optional[float] = ...) -> None: ...

class InvalidateResponse(_message.Message):
    __slots__ = ("entry_count", "seq")
    ENTRY_COUNT_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    entry_count: int
    seq: int
    def __init__(self, entry_count: _Optional[int] = ..., seq: _Optional[int] = ...) -> None: ...

class RecordFeedbackRequest(_message.Message):
    __slots__ = ("lookup_token", "verdict", "query")
    LOOKUP_TOKEN_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    lookup_token: str
    verdict: Verdict
    query: _resources_pb2.Query
    def __init__(self, lookup_token: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., query: _Optional[_Union[_resources_pb2.Query, _Mapping]] = ...) -> None: ...

class RecordFeedbackResponse(_message.Message):
    __slots__ = ("entry", "recorded", "query_kept")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    QUERY_KEPT_FIELD_NUMBER: _ClassVar[int]
    entry: str
    recorded: bool
    query_kept: bool
    def __init__(self, entry: _Optional[str] = ..., recorded: bool = ..., query_kept: bool = ...) -> None: ...

class ReportLoadRequest(_message.Message):
    __slots__ = ("parent", "model", "load", "ttl")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    parent: str
    model: str
    load: float
    ttl: _duration_pb2.Duration
    def __init__(self, parent: _Optional[str] = ..., model: _Optional[str] = ..., load: _Optional[float] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ExportEntriesRequest(_message.Message):
    __slots__ = ("parent",)
    PARENT_FIELD_NUMBER: _ClassVar[int]
    parent: str
    def __init__(self, parent: _Optional[str] = ...) -> None: ...

class ExportEntriesResponse(_message.Message):
    __slots__ = ("entry",)
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    entry: _resources_pb2.Entry
    def __init__(self, entry: _Optional[_Union[_resources_pb2.Entry, _Mapping]] = ...) -> None: ...

class ImportEntriesRequest(_message.Message):
    __slots__ = ("parent", "entry")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    parent: str
    entry: _resources_pb2.Entry
    def __init__(self, parent: _Optional[str] = ..., entry: _Optional[_Union[_resources_pb2.Entry, _Mapping]] = ...) -> None: ...

class ImportEntriesResponse(_message.Message):
    __slots__ = ("stored_count", "skipped_count", "expired_count")
    STORED_COUNT_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_COUNT_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_COUNT_FIELD_NUMBER: _ClassVar[int]
    stored_count: int
    skipped_count: int
    expired_count: int
    def __init__(self, stored_count: _Optional[int] = ..., skipped_count: _Optional[int] = ..., expired_count: _Optional[int] = ...) -> None: ...

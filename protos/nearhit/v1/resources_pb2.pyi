import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TtlMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TTL_MODE_UNSPECIFIED: _ClassVar[TtlMode]
    TTL_MODE_ABSOLUTE: _ClassVar[TtlMode]
    TTL_MODE_SLIDING: _ClassVar[TtlMode]

class Eviction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVICTION_UNSPECIFIED: _ClassVar[Eviction]
    EVICTION_LRU: _ClassVar[Eviction]
    EVICTION_LFU: _ClassVar[Eviction]
    EVICTION_FIFO: _ClassVar[Eviction]
    EVICTION_COST: _ClassVar[Eviction]

class WrongAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WRONG_ACTION_UNSPECIFIED: _ClassVar[WrongAction]
    WRONG_ACTION_KEEP: _ClassVar[WrongAction]
    WRONG_ACTION_DEMOTE: _ClassVar[WrongAction]
    WRONG_ACTION_REMOVE: _ClassVar[WrongAction]

class WrongBasis(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WRONG_BASIS_UNSPECIFIED: _ClassVar[WrongBasis]
    WRONG_BASIS_HITS: _ClassVar[WrongBasis]
    WRONG_BASIS_REQUESTS: _ClassVar[WrongBasis]

class RuleSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RULE_SOURCE_UNSPECIFIED: _ClassVar[RuleSource]
    RULE_SOURCE_FIXED: _ClassVar[RuleSource]
    RULE_SOURCE_COLD: _ClassVar[RuleSource]
    RULE_SOURCE_BORROWED: _ClassVar[RuleSource]
    RULE_SOURCE_LEARNED: _ClassVar[RuleSource]

class EntryView(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENTRY_VIEW_UNSPECIFIED: _ClassVar[EntryView]
    ENTRY_VIEW_BASIC: _ClassVar[EntryView]
    ENTRY_VIEW_FULL: _ClassVar[EntryView]

class SearchPath(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEARCH_PATH_UNSPECIFIED: _ClassVar[SearchPath]
    SEARCH_PATH_CASCADE: _ClassVar[SearchPath]
    SEARCH_PATH_IVF: _ClassVar[SearchPath]
    SEARCH_PATH_SCAN: _ClassVar[SearchPath]
    SEARCH_PATH_HNSW: _ClassVar[SearchPath]
    SEARCH_PATH_EXACT: _ClassVar[SearchPath]
TTL_MODE_UNSPECIFIED: TtlMode
TTL_MODE_ABSOLUTE: TtlMode
TTL_MODE_SLIDING: TtlMode
EVICTION_UNSPECIFIED: Eviction
EVICTION_LRU: Eviction
EVICTION_LFU: Eviction
EVICTION_FIFO: Eviction
EVICTION_COST: Eviction
WRONG_ACTION_UNSPECIFIED: WrongAction
WRONG_ACTION_KEEP: WrongAction
WRONG_ACTION_DEMOTE: WrongAction
WRONG_ACTION_REMOVE: WrongAction
WRONG_BASIS_UNSPECIFIED: WrongBasis
WRONG_BASIS_HITS: WrongBasis
WRONG_BASIS_REQUESTS: WrongBasis
RULE_SOURCE_UNSPECIFIED: RuleSource
RULE_SOURCE_FIXED: RuleSource
RULE_SOURCE_COLD: RuleSource
RULE_SOURCE_BORROWED: RuleSource
RULE_SOURCE_LEARNED: RuleSource
ENTRY_VIEW_UNSPECIFIED: EntryView
ENTRY_VIEW_BASIC: EntryView
ENTRY_VIEW_FULL: EntryView
SEARCH_PATH_UNSPECIFIED: SearchPath
SEARCH_PATH_CASCADE: SearchPath
SEARCH_PATH_IVF: SearchPath
SEARCH_PATH_SCAN: SearchPath
SEARCH_PATH_HNSW: SearchPath
SEARCH_PATH_EXACT: SearchPath

class Cache(_message.Message):
    __slots__ = ("name", "modalities", "code_bits", "label_bits", "active_encoder", "seq", "create_time", "etag", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODALITIES_FIELD_NUMBER: _ClassVar[int]
    CODE_BITS_FIELD_NUMBER: _ClassVar[int]
    LABEL_BITS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_ENCODER_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    modalities: _containers.RepeatedCompositeFieldContainer[Modality]
    code_bits: int
    label_bits: int
    active_encoder: str
    seq: int
    create_time: _timestamp_pb2.Timestamp
    etag: str
    description: str
    def __init__(self, name: _Optional[str] = ..., modalities: _Optional[_Iterable[_Union[Modality, _Mapping]]] = ..., code_bits: _Optional[int] = ..., label_bits: _Optional[int] = ..., active_encoder: _Optional[str] = ..., seq: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class Modality(_message.Message):
    __slots__ = ("modality", "dim", "embedder_id", "successor")
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_ID_FIELD_NUMBER: _ClassVar[int]
    SUCCESSOR_FIELD_NUMBER: _ClassVar[int]
    modality: str
    dim: int
    embedder_id: str
    successor: Modality
    def __init__(self, modality: _Optional[str] = ..., dim: _Optional[int] = ..., embedder_id: _Optional[str] = ..., successor: _Optional[_Union[Modality, _Mapping]] = ...) -> None: ...

class Category(_message.Message):
    __slots__ = ("name", "threshold", "ttl", "ttl_mode", "max_entries", "max_bytes", "eviction", "shadow", "entry_count", "size_bytes", "create_time", "etag", "hit_count", "miss_count", "shadow_hit_count", "bypass_count", "min_probability", "shift", "parent", "refresh_after", "stale_while_revalidate", "min_cost", "second_sighting", "on_wrong", "inherited_fields", "max_wrong", "max_wrong_of", "confidence", "exploration", "cold_threshold", "compare_responses", "rule", "load_model", "max_threshold_at_load", "max_wrong_at_load", "refresh_after_at_load", "lookup_cost", "hit_cost", "model_cost", "auto_bypass", "break_even_hit_rate")
    NAME_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    TTL_MODE_FIELD_NUMBER: _ClassVar[int]
    MAX_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVICTION_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    ENTRY_COUNT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    HIT_COUNT_FIELD_NUMBER: _ClassVar[int]
    MISS_COUNT_FIELD_NUMBER: _ClassVar[int]
    SHADOW_HIT_COUNT_FIELD_NUMBER: _ClassVar[int]
    BYPASS_COUNT_FIELD_NUMBER: _ClassVar[int]
    MIN_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    REFRESH_AFTER_FIELD_NUMBER: _ClassVar[int]
    STALE_WHILE_REVALIDATE_FIELD_NUMBER: _ClassVar[int]
    MIN_COST_FIELD_NUMBER: _ClassVar[int]
    SECOND_SIGHTING_FIELD_NUMBER: _ClassVar[int]
    ON_WRONG_FIELD_NUMBER: _ClassVar[int]
    INHERITED_FIELDS_FIELD_NUMBER: _ClassVar[int]
    MAX_WRONG_FIELD_NUMBER: _ClassVar[int]
    MAX_WRONG_OF_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    EXPLORATION_FIELD_NUMBER: _ClassVar[int]
    COLD_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    COMPARE_RESPONSES_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    LOAD_MODEL_FIELD_NUMBER: _ClassVar[int]
    MAX_THRESHOLD_AT_LOAD_FIELD_NUMBER: _ClassVar[int]
    MAX_WRONG_AT_LOAD_FIELD_NUMBER: _ClassVar[int]
    REFRESH_AFTER_AT_LOAD_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_COST_FIELD_NUMBER: _ClassVar[int]
    HIT_COST_FIELD_NUMBER: _ClassVar[int]
    MODEL_COST_FIELD_NUMBER: _ClassVar[int]
    AUTO_BYPASS_FIELD_NUMBER: _ClassVar[int]
    BREAK_EVEN_HIT_RATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    threshold: float
    ttl: _duration_pb2.Duration
    ttl_mode: TtlMode
    max_entries: int
    max_bytes: int
    eviction: Eviction
    shadow: bool
    entry_count: int
    size_bytes: int
    create_time: _timestamp_pb2.Timestamp
    etag: str
    hit_count: int
    miss_count: int
    shadow_hit_count: int
    bypass_count: int
    min_probability: float
    shift: Shift
    parent: str
    refresh_after: _duration_pb2.Duration
    stale_while_revalidate: bool
    min_cost: float
    second_sighting: bool
    on_wrong: WrongAction
    inherited_fields: _containers.RepeatedScalarFieldContainer[str]
    max_wrong: float
    max_wrong_of: WrongBasis
    confidence: float
    exploration: float
    cold_threshold: float
    compare_responses: bool
    rule: DecisionRule
    load_model: str
    max_threshold_at_load: float
    max_wrong_at_load: float
    refresh_after_at_load: _duration_pb2.Duration
    lookup_cost: float
    hit_cost: float
    model_cost: float
    auto_bypass: bool
    break_even_hit_rate: float
    def __init__(self, name: _Optional[str] = ..., threshold: _Optional[float] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ttl_mode: _Optional[_Union[TtlMode, str]] = ..., max_entries: _Optional[int] = ..., max_bytes: _Optional[int] = ..., eviction: _Optional[_Union[Eviction, str]] = ..., shadow: bool = ..., entry_count: _Optional[int] = ..., size_bytes: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ..., hit_count: _Optional[int] = ..., miss_count: _Optional[int] = ..., shadow_hit_count: _Optional[int] = ..., bypass_count: _Optional[int] = ..., min_probability: _Optional[float] = ..., shift: _Optional[_Union[Shift, _Mapping]] = ..., parent: _Optional[str] = ..., refresh_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., stale_while_revalidate: bool = ..., min_cost: _Optional[float] = ..., second_sighting: bool = ..., on_wrong: _Optional[_Union[WrongAction, str]] = ..., inherited_fields: _Optional[_Iterable[str]] = ..., max_wrong: _Optional[float] = ..., max_wrong_of: _Optional[_Union[WrongBasis, str]] = ..., confidence: _Optional[float] = ..., exploration: _Optional[float] = ..., cold_threshold: _Optional[float] = ..., compare_responses: bool = ..., rule: _Optional[_Union[DecisionRule, _Mapping]] = ..., load_model: _Optional[str] = ..., max_threshold_at_load: _Optional[float] = ..., max_wrong_at_load: _Optional[float] = ..., refresh_after_at_load: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lookup_cost: _Optional[float] = ..., hit_cost: _Optional[float] = ..., model_cost: _Optional[float] = ..., auto_bypass: bool = ..., break_even_hit_rate: _Optional[float] = ...) -> None: ...

class DecisionRule(_message.Message):
    __slots__ = ("source", "risk_limit", "judged_count", "wrong_count", "risk_limit_at_load")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    RISK_LIMIT_FIELD_NUMBER: _ClassVar[int]
    JUDGED_COUNT_FIELD_NUMBER: _ClassVar[int]
    WRONG_COUNT_FIELD_NUMBER: _ClassVar[int]
    RISK_LIMIT_AT_LOAD_FIELD_NUMBER: _ClassVar[int]
    source: RuleSource
    risk_limit: float
    judged_count: int
    wrong_count: int
    risk_limit_at_load: float
    def __init__(self, source: _Optional[_Union[RuleSource, str]] = ..., risk_limit: _Optional[float] = ..., judged_count: _Optional[int] = ..., wrong_count: _Optional[int] = ..., risk_limit_at_load: _Optional[float] = ...) -> None: ...

class Shift(_message.Message):
    __slots__ = ("state", "lookup_count", "explanation", "direction", "size", "limit", "share", "since_time", "alarm_time")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Shift.State]
        STATE_LEARNING: _ClassVar[Shift.State]
        STATE_WATCHING: _ClassVar[Shift.State]
        STATE_ALARM: _ClassVar[Shift.State]
    STATE_UNSPECIFIED: Shift.State
    STATE_LEARNING: Shift.State
    STATE_WATCHING: Shift.State
    STATE_ALARM: Shift.State
    class Direction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DIRECTION_UNSPECIFIED: _ClassVar[Shift.Direction]
        DIRECTION_FARTHER: _ClassVar[Shift.Direction]
        DIRECTION_CLOSER: _ClassVar[Shift.Direction]
    DIRECTION_UNSPECIFIED: Shift.Direction
    DIRECTION_FARTHER: Shift.Direction
    DIRECTION_CLOSER: Shift.Direction
    STATE_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_COUNT_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    SINCE_TIME_FIELD_NUMBER: _ClassVar[int]
    ALARM_TIME_FIELD_NUMBER: _ClassVar[int]
    state: Shift.State
    lookup_count: int
    explanation: str
    direction: Shift.Direction
    size: float
    limit: float
    share: float
    since_time: _timestamp_pb2.Timestamp
    alarm_time: _timestamp_pb2.Timestamp
    def __init__(self, state: _Optional[_Union[Shift.State, str]] = ..., lookup_count: _Optional[int] = ..., explanation: _Optional[str] = ..., direction: _Optional[_Union[Shift.Direction, str]] = ..., size: _Optional[float] = ..., limit: _Optional[float] = ..., share: _Optional[float] = ..., since_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., alarm_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("name", "category", "embedding", "modality", "embedder_id", "text", "response", "content_type", "scope", "fingerprint", "labels", "tags", "source", "ttl", "ttl_mode", "create_time", "expire_time", "seq", "encoder", "cost", "model", "refresh_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    TTL_MODE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REFRESH_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    category: str
    embedding: bytes
    modality: str
    embedder_id: str
    text: str
    response: bytes
    content_type: str
    scope: str
    fingerprint: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    tags: _containers.RepeatedScalarFieldContainer[str]
    source: str
    ttl: _duration_pb2.Duration
    ttl_mode: TtlMode
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    seq: int
    encoder: str
    cost: float
    model: str
    refresh_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., category: _Optional[str] = ..., embedding: _Optional[bytes] = ..., modality: _Optional[str] = ..., embedder_id: _Optional[str] = ..., text: _Optional[str] = ..., response: _Optional[bytes] = ..., content_type: _Optional[str] = ..., scope: _Optional[str] = ..., fingerprint: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., tags: _Optional[_Iterable[str]] = ..., source: _Optional[str] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ttl_mode: _Optional[_Union[TtlMode, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., seq: _Optional[int] = ..., encoder: _Optional[str] = ..., cost: _Optional[float] = ..., model: _Optional[str] = ..., refresh_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Query(_message.Message):
    __slots__ = ("embedding", "text", "modality", "embedder_id")
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_ID_FIELD_NUMBER: _ClassVar[int]
    embedding: bytes
    text: str
    modality: str
    embedder_id: str
    def __init__(self, embedding: _Optional[bytes] = ..., text: _Optional[str] = ..., modality: _Optional[str] = ..., embedder_id: _Optional[str] = ...) -> None: ...

class Encoder(_message.Message):
    __slots__ = ("name", "state", "parent", "code_bits", "label_bits", "class_count", "metrics", "reason", "create_time")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Encoder.State]
        STATE_CANDIDATE: _ClassVar[Encoder.State]
        STATE_ACTIVE: _ClassVar[Encoder.State]
        STATE_RETIRED: _ClassVar[Encoder.State]
        STATE_REJECTED: _ClassVar[Encoder.State]
        STATE_DESTROYED: _ClassVar[Encoder.State]
    STATE_UNSPECIFIED: Encoder.State
    STATE_CANDIDATE: Encoder.State
    STATE_ACTIVE: Encoder.State
    STATE_RETIRED: Encoder.State
    STATE_REJECTED: Encoder.State
    STATE_DESTROYED: Encoder.State
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    CODE_BITS_FIELD_NUMBER: _ClassVar[int]
    LABEL_BITS_FIELD_NUMBER: _ClassVar[int]
    CLASS_COUNT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: Encoder.State
    parent: str
    code_bits: int
    label_bits: int
    class_count: int
    metrics: _containers.ScalarMap[str, float]
    reason: str
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[Encoder.State, str]] = ..., parent: _Optional[str] = ..., code_bits: _Optional[int] = ..., label_bits: _Optional[int] = ..., class_count: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., reason: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Verifier(_message.Message):
    __slots__ = ("name", "state", "modality", "metrics", "create_time")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Verifier.State]
        STATE_CANDIDATE: _ClassVar[Verifier.State]
        STATE_ACTIVE: _ClassVar[Verifier.State]
    STATE_UNSPECIFIED: Verifier.State
    STATE_CANDIDATE: Verifier.State
    STATE_ACTIVE: Verifier.State
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: Verifier.State
    modality: str
    metrics: _containers.ScalarMap[str, float]
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[Verifier.State, str]] = ..., modality: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("name", "kind", "state", "report", "error", "create_time", "end_time", "stage", "done_count", "total_count", "source")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Job.Kind]
        KIND_UPDATE: _ClassVar[Job.Kind]
        KIND_LOAD: _ClassVar[Job.Kind]
        KIND_LEARN_PAIRS: _ClassVar[Job.Kind]
        KIND_REEMBED: _ClassVar[Job.Kind]
    KIND_UNSPECIFIED: Job.Kind
    KIND_UPDATE: Job.Kind
    KIND_LOAD: Job.Kind
    KIND_LEARN_PAIRS: Job.Kind
    KIND_REEMBED: Job.Kind
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Job.State]
        STATE_QUEUED: _ClassVar[Job.State]
        STATE_RUNNING: _ClassVar[Job.State]
        STATE_SUCCEEDED: _ClassVar[Job.State]
        STATE_FAILED: _ClassVar[Job.State]
        STATE_CANCELLED: _ClassVar[Job.State]
    STATE_UNSPECIFIED: Job.State
    STATE_QUEUED: Job.State
    STATE_RUNNING: Job.State
    STATE_SUCCEEDED: Job.State
    STATE_FAILED: Job.State
    STATE_CANCELLED: Job.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_COUNT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: Job.Kind
    state: Job.State
    report: str
    error: str
    create_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    stage: str
    done_count: int
    total_count: int
    source: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[Job.Kind, str]] = ..., state: _Optional[_Union[Job.State, str]] = ..., report: _Optional[str] = ..., error: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., stage: _Optional[str] = ..., done_count: _Optional[int] = ..., total_count: _Optional[int] = ..., source: _Optional[str] = ...) -> None: ...

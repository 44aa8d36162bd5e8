from nearhit.v1 import resources_pb2 as _resources_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CodeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODE_KIND_UNSPECIFIED: _ClassVar[CodeKind]
    CODE_KIND_INSTANCE: _ClassVar[CodeKind]
    CODE_KIND_LABEL: _ClassVar[CodeKind]
CODE_KIND_UNSPECIFIED: CodeKind
CODE_KIND_INSTANCE: CodeKind
CODE_KIND_LABEL: CodeKind

class SearchRequest(_message.Message):
    __slots__ = ("parent", "query", "top_k", "categories", "tags", "scope", "path", "code_kind", "min_seq", "view", "min_recall", "target_modality")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    CODE_KIND_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQ_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    MIN_RECALL_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODALITY_FIELD_NUMBER: _ClassVar[int]
    parent: str
    query: _resources_pb2.Query
    top_k: int
    categories: _containers.RepeatedScalarFieldContainer[str]
    tags: _containers.RepeatedScalarFieldContainer[str]
    scope: str
    path: _resources_pb2.SearchPath
    code_kind: CodeKind
    min_seq: int
    view: _resources_pb2.EntryView
    min_recall: float
    target_modality: str
    def __init__(self, parent: _Optional[str] = ..., query: _Optional[_Union[_resources_pb2.Query, _Mapping]] = ..., top_k: _Optional[int] = ..., categories: _Optional[_Iterable[str]] = ..., tags: _Optional[_Iterable[str]] = ..., scope: _Optional[str] = ..., path: _Optional[_Union[_resources_pb2.SearchPath, str]] = ..., code_kind: _Optional[_Union[CodeKind, str]] = ..., min_seq: _Optional[int] = ..., view: _Optional[_Union[_resources_pb2.EntryView, str]] = ..., min_recall: _Optional[float] = ..., target_modality: _Optional[str] = ...) -> None: ...

class SearchResult(_message.Message):
    __slots__ = ("entry", "distance", "hamming_distance", "mapped")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    HAMMING_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    MAPPED_FIELD_NUMBER: _ClassVar[int]
    entry: _resources_pb2.Entry
    distance: float
    hamming_distance: int
    mapped: bool
    def __init__(self, entry: _Optional[_Union[_resources_pb2.Entry, _Mapping]] = ..., distance: _Optional[float] = ..., hamming_distance: _Optional[int] = ..., mapped: bool = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("results", "search_path", "candidates_examined", "generation", "seq")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    SEARCH_PATH_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_EXAMINED_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[SearchResult]
    search_path: _resources_pb2.SearchPath
    candidates_examined: int
    generation: str
    seq: int
    def __init__(self, results: _Optional[_Iterable[_Union[SearchResult, _Mapping]]] = ..., search_path: _Optional[_Union[_resources_pb2.SearchPath, str]] = ..., candidates_examined: _Optional[int] = ..., generation: _Optional[str] = ..., seq: _Optional[int] = ...) -> None: ...

class BatchSearchRequest(_message.Message):
    __slots__ = ("parent", "requests")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    parent: str
    requests: _containers.RepeatedCompositeFieldContainer[SearchRequest]
    def __init__(self, parent: _Optional[str] = ..., requests: _Optional[_Iterable[_Union[SearchRequest, _Mapping]]] = ...) -> None: ...

class BatchSearchResponse(_message.Message):
    __slots__ = ("responses",)
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[SearchResponse]
    def __init__(self, responses: _Optional[_Iterable[_Union[SearchResponse, _Mapping]]] = ...) -> None: ...

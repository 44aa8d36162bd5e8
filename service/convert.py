"""Wire messages to domain values and back: the one validator of what callers send."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import search_service_pb2 as search_pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray

from index.planner import SearchPath
from service.admission import Admission
from service.cache import LookupAnswer, check_threshold
from service.coding import STORED_DTYPE
from service.decision_rules import RuleSource
from service.embedding import DEFAULT_MODALITY, Input, default_fingerprint
from service.errors import InvalidRequestError
from service.expiration import refresh_time
from service.keys import (
    ENTRY_PATTERN,
    cache_name,
    check_id,
    child_name,
    parse_cache,
    parse_child,
)
from service.lookup import LookupMode, LookupQuery, LookupReason
from service.policy import MODEL_BYTES, Policy
from service.records import CategoryRecord, EntryRecord, NewEntry, StoredEntry
from service.search import SearchAnswer, SearchQuery
from service.spaces import modality_of
from service.tables import NEVER_MS

TEXT_BYTES = 64 * 1024
KEY_BYTES = 1024
TERM_COUNT = 32
TERM_CHARACTERS = 128
REQUEST_ID_CHARACTERS = 64
LEASE_TOKEN_CHARACTERS = 64
CONTENT_TYPE_CHARACTERS = 255
MOST_LEASE_MS = 10 * 60 * 1000
MOST_WAIT_MS = 60 * 1000
LOAD_MS = 30 * 1000
MOST_LOAD_MS = 10 * 60 * 1000
# So that what an entry is worth, its cost by hits and bytes, is a number in every database.
COST_LEAST, COST_MOST = 1e-18, 1e18
MOST_SECONDS = 10**12  # either side of the epoch: what milliseconds hold, and far beyond any Timestamp
DURATION_SECONDS = 315_576_000_000  # 10,000 years
TOP_K_DEFAULT = 10
TOP_K_MOST = 1_000
PAGE_DEFAULT = 100
PAGE_MOST = 1_000

_MODES = {
    cache_pb.LOOKUP_MODE_UNSPECIFIED: LookupMode.SERVE,
    cache_pb.LOOKUP_MODE_SERVE: LookupMode.SERVE,
    cache_pb.LOOKUP_MODE_BYPASS: LookupMode.BYPASS,
    cache_pb.LOOKUP_MODE_REFRESH: LookupMode.REFRESH,
}
_REASONS = {
    reason: cast(cache_pb.LookupReason, cache_pb.LookupReason.Value(f"LOOKUP_REASON_{reason.name}"))
    for reason in LookupReason
}
RULE_SOURCES = {
    source: cast(pb.RuleSource, pb.RuleSource.Value(f"RULE_SOURCE_{source.name}")) for source in RuleSource
}
_PATHS = {path: cast(pb.SearchPath, pb.SearchPath.Value(f"SEARCH_PATH_{path.name}")) for path in SearchPath}
_PATHS_BY_NUMBER: dict[int, SearchPath] = {number: path for path, number in _PATHS.items()}
_CODE_KINDS = (
    search_pb.CODE_KIND_UNSPECIFIED,
    search_pb.CODE_KIND_INSTANCE,
    search_pb.CODE_KIND_LABEL,
)
_VIEWS = (pb.ENTRY_VIEW_UNSPECIFIED, pb.ENTRY_VIEW_BASIC, pb.ENTRY_VIEW_FULL)
_COMPLETIONS: dict[int, str] = {
    cache_pb.COMPLETION_UNSPECIFIED: "complete",
    cache_pb.COMPLETION_COMPLETE: "complete",
    cache_pb.COMPLETION_TRUNCATED: "truncated",
    cache_pb.COMPLETION_FAILED: "failed",
}
ADMISSIONS = {
    admission.value: cast(cache_pb.Admission, cache_pb.Admission.Value(f"ADMISSION_{admission.name}"))
    for admission in Admission
}
TTL_MODES: dict[int, str] = {pb.TTL_MODE_ABSOLUTE: "absolute", pb.TTL_MODE_SLIDING: "sliding"}
TTL_MODE_NUMBERS = {"absolute": pb.TTL_MODE_ABSOLUTE, "sliding": pb.TTL_MODE_SLIDING}
VERDICTS: dict[int, str] = {
    cache_pb.VERDICT_RIGHT: "right",
    cache_pb.VERDICT_WRONG: "wrong",
    cache_pb.VERDICT_REPLACED: "replaced",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreItem:
    """One store as asked for, before its vector is made: what `NewEntry` needs beside vector and coding."""

    cache: str
    category: str
    source: Input
    values: dict[str, Any]
    lookup_token: str = ""


def to_lookup(request: cache_pb.LookupRequest) -> tuple[str, LookupQuery]:
    """The cache's id and the lookup. Raises: InvalidRequestError."""
    cache, category = parse_child(request.category, "categories")
    source = to_input(request.query)
    if source.is_empty and not request.fingerprint:
        raise InvalidRequestError(
            "a lookup needs an embedding, a text or a fingerprint", reason="NOTHING_TO_LOOK_UP"
        )
    if request.mode not in _MODES:
        raise InvalidRequestError(f"unknown mode {request.mode}", reason="UNKNOWN_VALUE")
    _check_seq(request.min_seq)
    lease_ms = _lease_ms(request)
    wait_ms = _wait_ms(request)
    return cache, LookupQuery(
        category=category,
        source=source,
        scope=check_text(request.scope, field="scope", most_bytes=KEY_BYTES),
        fingerprint=check_text(request.fingerprint, field="fingerprint", most_bytes=KEY_BYTES) or None,
        mode=_MODES[request.mode],
        threshold=check_threshold(request.threshold) if request.HasField("threshold") else None,
        max_age_ms=to_positive_milliseconds(request.max_age, field="max_age")
        if request.HasField("max_age")
        else None,
        min_seq=request.min_seq,
        lease_seconds=lease_ms / 1000,
        wait_seconds=wait_ms / 1000,
        explain=request.explain,
    )


def from_lookup(cache: str, answer: LookupAnswer) -> cache_pb.LookupResponse:
    """The reply to a lookup."""
    outcome = cache_pb.LOOKUP_OUTCOME_HIT if answer.is_hit else cache_pb.LOOKUP_OUTCOME_MISS
    return cache_pb.LookupResponse(
        outcome=outcome,
        reason=_REASONS[answer.reason],
        entry=child_name(cache, "entries", answer.entry) if answer.entry else "",
        response=answer.response,
        content_type=answer.content_type,
        distance=answer.distance,
        mapped=answer.is_mapped,
        probability=answer.probability,
        threshold=answer.threshold,
        search_path=_PATHS[answer.path] if answer.path else pb.SEARCH_PATH_UNSPECIFIED,
        candidates_examined=answer.candidates_examined,
        lookup_token=answer.token,
        lease_token=answer.lease_token,
        generation=answer.generation,
        seq=answer.seq,
        latency_us=answer.latency_us,
        refresh_due=answer.refresh_due,
        rule_source=RULE_SOURCES[answer.rule_source] if answer.rule_source else pb.RULE_SOURCE_UNSPECIFIED,
        risk=answer.risk.probability if answer.risk else None,
        risk_low=answer.risk.low if answer.risk else None,
        risk_high=answer.risk.high if answer.risk else None,
        risk_limit=answer.risk_limit,
        explanation=answer.explanation,
        load=answer.load,
    )


def to_store(request: cache_pb.StoreRequest, *, max_response_bytes: int) -> StoreItem:
    """One store. Raises: InvalidRequestError."""
    entry = request.entry
    cache, category = parse_child(entry.category, "categories")
    name = _entry_of(entry.name, cache, field="entry.name") if entry.name else ""
    replaced = _entry_of(request.replace_entry, cache, field="replace_entry") if request.replace_entry else ""
    values = to_entry_values(entry, max_response_bytes=max_response_bytes)
    if request.completion not in _COMPLETIONS:
        raise InvalidRequestError(f"unknown completion {request.completion}", reason="UNKNOWN_VALUE")
    values |= {
        "name": name,
        "replace_name": replaced,
        "completion": _COMPLETIONS[request.completion],
        "request_id": _short_text(
            request.request_id, field="request_id", most_characters=REQUEST_ID_CHARACTERS
        ),
        "request_digest": _store_digest(request),
    }
    check_lease_token(request.lease_token)
    return StoreItem(
        cache=cache,
        category=category,
        source=entry_input(entry),
        values=values,
        lookup_token=request.lookup_token,
    )


def _store_digest(request: cache_pb.StoreRequest) -> bytes:
    """16 bytes of what is to be stored: a repeat may name another lease, or lookup."""
    if request.lease_token or request.lookup_token:
        request = cache_pb.StoreRequest.FromString(request.SerializeToString())
        request.ClearField("lease_token")
        request.ClearField("lookup_token")
    return hashlib.blake2b(request.SerializeToString(deterministic=True), digest_size=16).digest()


def check_lease_token(token: str) -> str:
    """`token`, if it may be one of a lease. Raises: InvalidRequestError."""
    return _short_text(token, field="lease_token", most_characters=LEASE_TOKEN_CHARACTERS)


def _lease_ms(request: cache_pb.LookupRequest) -> int:
    """0: none is asked for. Raises: InvalidRequestError."""
    if not request.HasField("lease"):
        return 0
    lease_ms = to_milliseconds(request.lease)
    if not 0 < lease_ms <= MOST_LEASE_MS:
        raise InvalidRequestError(
            f"a lease lasts 1 ms to {MOST_LEASE_MS // 60_000} min, not {lease_ms / 1000} s",
            reason="INVALID_LEASE",
        )
    return lease_ms


def _wait_ms(request: cache_pb.LookupRequest) -> int:
    """0: it does not wait. Raises: InvalidRequestError."""
    wait_ms = to_milliseconds(request.wait)
    if not 0 <= wait_ms <= MOST_WAIT_MS:
        raise InvalidRequestError(
            f"a lookup waits up to {MOST_WAIT_MS // 1000} s, not {wait_ms / 1000} s", reason="INVALID_WAIT"
        )
    if wait_ms and not request.HasField("lease"):
        raise InvalidRequestError("a lookup that waits asks for a lease", reason="WAIT_WITHOUT_LEASE")
    return wait_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedLoad:
    """The load of a model, in [0, 1], for so long."""

    cache: str
    model: str
    load: float
    seconds: float


def to_reported_load(request: cache_pb.ReportLoadRequest) -> ReportedLoad:
    """What is reported. Raises: InvalidRequestError."""
    cache = parse_cache(request.parent)
    if not request.model:
        raise InvalidRequestError("a model is required", reason="INVALID_VALUE", field="model")
    if not 0 <= request.load <= 1:  # nor NaN
        raise InvalidRequestError(
            f"a load is in [0, 1], not {request.load}", reason="INVALID_LOAD", field="load"
        )
    ttl_ms = to_milliseconds(request.ttl) if request.HasField("ttl") else LOAD_MS
    if not 0 < ttl_ms <= MOST_LOAD_MS:
        raise InvalidRequestError(
            f"a load lasts 1 ms to {MOST_LOAD_MS // 60_000} min, not {ttl_ms / 1000} s",
            reason="INVALID_TTL",
            field="ttl",
        )
    return ReportedLoad(
        cache=cache,
        model=check_text(request.model, field="model", most_bytes=MODEL_BYTES),
        load=abs(request.load),  # of a negative 0
        seconds=ttl_ms / 1000,
    )


def to_entry_values(entry: pb.Entry, *, max_response_bytes: int) -> dict[str, Any]:
    """What `NewEntry` takes over from a message as it is. Raises: InvalidRequestError."""
    if len(entry.response) > max_response_bytes:
        raise InvalidRequestError(
            f"the response has {len(entry.response)} bytes, at most {max_response_bytes} are stored",
            reason="RESPONSE_TOO_LARGE",
            size_bytes=len(entry.response),
            max_bytes=max_response_bytes,
        )
    text = check_text(entry.text, field="text", most_bytes=TEXT_BYTES)
    fingerprint = check_text(entry.fingerprint, field="fingerprint", most_bytes=KEY_BYTES)
    modality = entry.modality or DEFAULT_MODALITY
    return {
        "scope": check_text(entry.scope, field="scope", most_bytes=KEY_BYTES),
        "fingerprint": fingerprint or default_fingerprint(text, modality=modality) or None,
        "text": text,
        "labels": _terms(entry.labels, field="labels"),
        "tags": tuple(sorted(set(_terms(entry.tags, field="tags")))),
        "source": check_text(entry.source, field="source", most_bytes=KEY_BYTES),
        "model": check_text(entry.model, field="model", most_bytes=MODEL_BYTES),
        "response": entry.response,
        "content_type": _short_text(
            entry.content_type, field="content_type", most_characters=CONTENT_TYPE_CHARACTERS
        ),
        "ttl_ms": to_ttl(entry.ttl) if entry.HasField("ttl") else None,
        "ttl_mode": to_ttl_mode(entry.ttl_mode),
        "cost": check_cost(entry.cost),
    }


def check_cost(cost: float) -> float:
    """What an entry cost: 0 where that is not known. Raises: InvalidRequestError."""
    if cost != 0 and not COST_LEAST <= cost <= COST_MOST:  # nor NaN
        raise InvalidRequestError(
            f"cost must be 0 or in [{COST_LEAST:g}, {COST_MOST:g}], is {cost}",
            reason="INVALID_COST",
            field="cost",
        )
    return abs(cost)  # of a negative 0


def entry_input(entry: pb.Entry) -> Input:
    """What an entry brings to be embedded. Raises: InvalidRequestError."""
    return Input(
        embedding=to_embedding(entry.embedding) if entry.embedding else None,
        text=entry.text,
        modality=entry.modality or DEFAULT_MODALITY,
        embedder_id=check_text(entry.embedder_id, field="embedder_id", most_bytes=KEY_BYTES),
    )


def from_stored(
    cache: str, item: StoreItem, row: NewEntry, stored: StoredEntry, *, policy: Policy | None
) -> cache_pb.StoreResponse:
    """The stored entry, view BASIC; of one that was not admitted what it would have been. policy: its
    category's; None where that was deleted meanwhile."""
    is_stored = stored.admission == Admission.STORED.value
    entry = pb.Entry(
        name=child_name(cache, "entries", stored.name) if is_stored else "",
        category=child_name(cache, "categories", item.category),
        modality=modality_of(row.modality),
        embedder_id=row.embedder_id,
        text=row.text,
        content_type=row.content_type,
        scope=row.scope,
        fingerprint=row.fingerprint or "",
        labels=row.labels,
        tags=row.tags,
        source=row.source,
        cost=row.cost,
        model=row.model,
    )
    if is_stored:
        entry.ttl_mode = TTL_MODE_NUMBERS[stored.ttl_mode]
        entry.seq = stored.seq
        entry.encoder = child_name(cache, "encoders", row.coding.encoder_id) if row.coding else ""
        _set_times(entry, stored, policy=policy)
    return cache_pb.StoreResponse(
        entry=entry, evicted_count=stored.evicted_count, admission=ADMISSIONS[stored.admission]
    )


def _set_times(entry: pb.Entry, stored: StoredEntry | EntryRecord, *, policy: Policy | None) -> None:
    entry.create_time.CopyFrom(to_timestamp(stored.create_ms))
    if stored.ttl_ms is not None:
        entry.ttl.CopyFrom(to_duration(stored.ttl_ms))
    if stored.expire_ms != NEVER_MS:
        entry.expire_time.CopyFrom(to_timestamp(stored.expire_ms))
    if policy is not None:
        refresh_ms = refresh_time(stored.create_ms, stored.expire_ms, policy.refresh_after_ms)
        if refresh_ms is not None:
            entry.refresh_time.CopyFrom(to_timestamp(refresh_ms))


def from_entry(cache: str, category: CategoryRecord, record: EntryRecord, *, full: bool) -> pb.Entry:
    """An entry as stored; `full` adds embedding and response."""
    entry = pb.Entry(
        name=child_name(cache, "entries", record.name),
        category=child_name(cache, "categories", category.name),
        modality=modality_of(record.modality),
        embedder_id=record.embedder_id,
        text=record.text,
        content_type=record.content_type,
        scope=record.scope,
        fingerprint=record.fingerprint or "",
        labels=record.labels,
        tags=record.tags,
        source=record.source,
        model=record.model,
        ttl_mode=TTL_MODE_NUMBERS[record.ttl_mode],
        seq=record.seq,
        encoder=child_name(cache, "encoders", record.encoder_id) if record.encoder_id else "",
        cost=record.cost,
    )
    _set_times(entry, record, policy=category.policy)
    if full:
        vector = np.frombuffer(record.vector, dtype=STORED_DTYPE).astype("<f4")
        entry.embedding = vector.tobytes()
        entry.response = record.response
    return entry


def to_search(request: search_pb.SearchRequest) -> tuple[str, SearchQuery]:
    """The cache's id and the search. Raises: InvalidRequestError."""
    cache = parse_cache(request.parent)
    if not 0 <= request.top_k <= TOP_K_MOST:
        raise InvalidRequestError(
            f"top_k must be in [0, {TOP_K_MOST}], is {request.top_k}", reason="INVALID_TOP_K"
        )
    if request.path not in (pb.SEARCH_PATH_UNSPECIFIED, *_PATHS_BY_NUMBER):
        raise InvalidRequestError(f"unknown path {request.path}", reason="UNKNOWN_VALUE")
    if request.code_kind not in _CODE_KINDS:
        raise InvalidRequestError(f"unknown code_kind {request.code_kind}", reason="UNKNOWN_VALUE")
    if not 0 <= request.min_recall <= 1:  # nor NaN
        raise InvalidRequestError(
            f"min_recall must be in [0, 1], is {request.min_recall}", reason="INVALID_MIN_RECALL"
        )
    check_view(request.view)
    _check_seq(request.min_seq)
    return cache, SearchQuery(
        source=to_input(request.query),
        top_k=request.top_k or TOP_K_DEFAULT,
        categories=tuple(dict.fromkeys(_child_of(name, cache, "categories") for name in request.categories)),
        tags=_terms(request.tags, field="tags"),
        scope=check_text(request.scope, field="scope", most_bytes=KEY_BYTES)
        if request.HasField("scope")
        else None,
        path=_PATHS_BY_NUMBER.get(request.path),
        min_recall=request.min_recall,
        by_label=request.code_kind == search_pb.CODE_KIND_LABEL,
        target_modality=request.target_modality,
        min_seq=request.min_seq,
        with_entries=request.view != pb.ENTRY_VIEW_UNSPECIFIED,
    )


def from_search(cache: str, answer: SearchAnswer, *, full: bool) -> search_pb.SearchResponse:
    """The reply to a search."""
    result = answer.result
    response = search_pb.SearchResponse(
        search_path=_PATHS[result.path],
        candidates_examined=result.candidates_examined,
        generation=result.generation or "",
        seq=result.applied_seq,
    )
    for match, name in answer.named_matches():
        category = answer.state.category_names[match.category_id]
        record = answer.entries.get(match.entry_id) if answer.entries is not None else None
        if record is not None:
            entry = from_entry(cache, answer.state.category(category), record, full=full)
        else:
            entry = pb.Entry(
                name=child_name(cache, "entries", name), category=child_name(cache, "categories", category)
            )
        response.results.add(
            entry=entry,
            distance=match.cosine_distance,
            hamming_distance=match.hamming_distance,
            mapped=match.entry_id in answer.mapped_ids,
        )
    return response


def to_embedding(raw: bytes) -> NDArray[np.float32]:
    """Little-endian float32 bytes as float32 [dim]. Raises: InvalidRequestError."""
    if len(raw) % 4:
        raise InvalidRequestError(
            f"an embedding is float32, 4 bytes a dimension: {len(raw)} bytes are not",
            reason="INVALID_EMBEDDING",
        )
    return np.frombuffer(raw, dtype="<f4")


def to_ttl(duration: Duration) -> int:
    """Milliseconds. Raises: InvalidRequestError: zero, negative, or over 10,000 years."""
    return to_positive_milliseconds(duration, field="ttl", reason="INVALID_TTL")


def to_positive_milliseconds(duration: Duration, *, field: str, reason: str = "INVALID_DURATION") -> int:
    """Milliseconds. Raises: InvalidRequestError: zero, negative, or over 10,000 years."""
    duration_ms = to_milliseconds(duration)
    if duration_ms <= 0 or duration.seconds > DURATION_SECONDS:
        raise InvalidRequestError(
            f"{field} is at least 1 ms, at most {DURATION_SECONDS} s, not {duration_ms / 1000} s",
            reason=reason,
            field=field,
        )
    return duration_ms


def to_milliseconds(duration: Duration) -> int:
    """A Duration as milliseconds, whatever its sign."""
    return duration.seconds * 1000 + duration.nanos // 1_000_000


def to_ttl_mode(number: int) -> str | None:
    """The mode; None: unspecified. Raises: InvalidRequestError."""
    if number == pb.TTL_MODE_UNSPECIFIED:
        return None
    if number not in TTL_MODES:
        raise InvalidRequestError(f"unknown ttl_mode {number}", reason="UNKNOWN_VALUE")
    return TTL_MODES[number]


def to_duration(milliseconds: int) -> Duration:
    """Milliseconds as a Duration."""
    return Duration(seconds=milliseconds // 1000, nanos=milliseconds % 1000 * 1_000_000)


def to_timestamp(milliseconds: int) -> Timestamp:
    """Milliseconds since the epoch as a Timestamp."""
    return Timestamp(seconds=milliseconds // 1000, nanos=milliseconds % 1000 * 1_000_000)


def from_timestamp(timestamp: Timestamp) -> int:
    """A Timestamp as milliseconds since the epoch. Raises: InvalidRequestError: no time that can be kept."""
    if abs(timestamp.seconds) > MOST_SECONDS:
        raise InvalidRequestError(
            f"{timestamp.seconds} seconds since the epoch are no time of an entry", reason="INVALID_TIME"
        )
    return timestamp.seconds * 1000 + timestamp.nanos // 1_000_000


def check_view(view: int) -> bool:
    """Whether all of an entry is asked for. Raises: InvalidRequestError: unknown view."""
    if view not in _VIEWS:
        raise InvalidRequestError(f"unknown view {view}", reason="UNKNOWN_VALUE")
    return view == pb.ENTRY_VIEW_FULL


def check_batch_size(count: int, *, most: int) -> None:
    """Raise InvalidRequestError unless the batch has 1 to `most` requests."""
    if not 1 <= count <= most:
        raise InvalidRequestError(
            f"a batch holds 1 to {most} requests, not {count}", reason="INVALID_BATCH_SIZE", max_batch=most
        )


def check_batch_parents(cache: str, parents: Iterable[str]) -> None:
    """Raise InvalidRequestError unless all requests are of one cache."""
    for i, parent in enumerate(parents):
        if parent != cache:
            raise InvalidRequestError(
                f"request {i} is of {cache_name(parent)}, the batch of {cache_name(cache)}",
                reason="PARENT_MISMATCH",
            )


def page_size(asked: int) -> int:
    """How many to return. Raises: InvalidRequestError."""
    if asked < 0:
        raise InvalidRequestError(f"page_size must not be negative, is {asked}", reason="INVALID_PAGE_SIZE")
    return min(asked or PAGE_DEFAULT, PAGE_MOST)


def child_ids(names: Sequence[str], cache: str, collection: str) -> tuple[str, ...]:
    """The ids of children that must all be of `cache`. Raises: InvalidRequestError."""
    return tuple(_child_of(name, cache, collection) for name in names)


def _entry_of(name: str, cache: str, *, field: str) -> str:
    return check_id(_child_of(name, cache, "entries"), ENTRY_PATTERN, field=field)


def _child_of(name: str, cache: str, collection: str) -> str:
    parent, child = parse_child(name, collection)
    if parent != cache:
        raise InvalidRequestError(f"{name} is not of {cache_name(cache)}", reason="PARENT_MISMATCH")
    return child


def to_input(query: pb.Query) -> Input:
    """What a query brings to be embedded. Raises: InvalidRequestError."""
    return Input(
        embedding=to_embedding(query.embedding) if query.embedding else None,
        text=check_text(query.text, field="text", most_bytes=TEXT_BYTES),
        modality=query.modality or DEFAULT_MODALITY,
        embedder_id=query.embedder_id,
    )


def _terms(values: Sequence[str], *, field: str) -> tuple[str, ...]:
    if len(values) > TERM_COUNT:
        raise too_large(field, f"{TERM_COUNT} values")
    return tuple(check_term(value, field=field) for value in values)


def check_term(value: str, *, field: str) -> str:
    """`value`, if it may be a label or tag. Raises: InvalidRequestError."""
    if not value or len(value) > TERM_CHARACTERS:
        raise InvalidRequestError(
            f"{field}: a value has 1 to {TERM_CHARACTERS} characters, not {len(value)}",
            reason="INVALID_VALUE",
            field=field,
        )
    return check_text(value, field=field, most_bytes=4 * TERM_CHARACTERS)


def check_text(value: str, *, field: str, most_bytes: int) -> str:
    """`value`, if it is no larger and can be stored. Raises: InvalidRequestError."""
    if len(value.encode()) > most_bytes:
        raise too_large(field, f"{most_bytes} bytes")
    if "\0" in value:
        raise InvalidRequestError(f"{field} holds a NUL character", reason="INVALID_VALUE", field=field)
    return value


def _short_text(value: str, *, field: str, most_characters: int) -> str:
    if len(value) > most_characters:
        raise too_large(field, f"{most_characters} characters")
    return check_text(value, field=field, most_bytes=4 * most_characters)


def _check_seq(min_seq: int) -> None:
    if min_seq < 0:
        raise InvalidRequestError(f"min_seq must not be negative, is {min_seq}", reason="INVALID_SEQ")


def too_large(field: str, most: str) -> InvalidRequestError:
    """The error of a field that is over `most`."""
    return InvalidRequestError(f"{field} is over {most}", reason="FIELD_TOO_LARGE", field=field)

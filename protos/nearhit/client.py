"""A thin typed client: resource names are built here, embeddings may be arrays, errors are NearhitError."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import ArrayLike

from nearhit.errors import to_error
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import search_service_pb2 as search_pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from nearhit.v1.admin_service_pb2_grpc import AdminServiceStub
from nearhit.v1.search_service_pb2_grpc import SearchServiceStub
from nearhit.v1.semantic_cache_service_pb2_grpc import SemanticCacheServiceStub

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
PAGE_SIZE = 1000


class Client:
    """One connection to a server; safe to share between threads.

    `cache` and `category` arguments are ids, not resource names. Every call may raise NearhitError and takes
    at most `timeout_seconds`. The stubs `semantic_cache`, `search_service` and `admin` give every field.
    """

    def __init__(self, address: str = "127.0.0.1:7700", *, timeout_seconds: float = 10.0) -> None:
        self._channel = grpc.insecure_channel(
            address,
            options=(
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ),
        )
        self._timeout_seconds = timeout_seconds
        # The stubs are generated without types.
        self.semantic_cache: Any = SemanticCacheServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.search_service: Any = SearchServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.admin: Any = AdminServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def wait_until_ready(self, *, timeout_seconds: float) -> None:
        """Return once connected. Raises: TimeoutError."""
        try:
            grpc.channel_ready_future(self._channel).result(timeout=timeout_seconds)
        except grpc.FutureTimeoutError as error:
            raise TimeoutError(f"no server within {timeout_seconds} s") from error

    # Semantic cache

    def lookup(
        self,
        cache: str,
        category: str,
        *,
        embedding: ArrayLike | None = None,
        text: str = "",
        modality: str = "",
        embedder_id: str = "",
        scope: str = "",
        fingerprint: str = "",
        mode: cache_pb.LookupMode = cache_pb.LOOKUP_MODE_SERVE,
        threshold: float | None = None,
        max_age: timedelta | None = None,
        min_seq: int = 0,
        lease: timedelta | None = None,
        wait: timedelta | None = None,
        explain: bool = False,
    ) -> cache_pb.LookupResponse:
        """Look up the answer to one question; embedding: float [dim], max_age: of the entry that answers.

        Of a chat completion, `request_keys` says under what an answer may be reused:

            keys = request_keys(messages, model="m-1", tools=tools)
            if keys is not None:  # it is to be cached
                answer = client.lookup(
                    cache, category, text=keys.text, scope=keys.scope, fingerprint=keys.fingerprint
                )

        lease: a miss with `lease_token` computes, and names that token in `store`, or gives it up by
        `release_lease`; equal misses meanwhile wait up to `wait`, else are told LEASED.
        """
        request = lookup_request(
            cache,
            category,
            embedding=embedding,
            text=text,
            modality=modality,
            embedder_id=embedder_id,
            scope=scope,
            fingerprint=fingerprint,
            mode=mode,
            threshold=threshold,
            max_age=max_age,
            min_seq=min_seq,
            lease=lease,
            wait=wait,
            explain=explain,
        )
        answer: cache_pb.LookupResponse = self.call(self.semantic_cache.Lookup, request)
        return answer

    def batch_lookup(
        self, cache: str, requests: Iterable[cache_pb.LookupRequest]
    ) -> Sequence[cache_pb.LookupResponse]:
        """Answer several lookups in one call; make them with `lookup_request`."""
        batch = cache_pb.BatchLookupRequest(parent=f"caches/{cache}", requests=requests)
        response: cache_pb.BatchLookupResponse = self.call(self.semantic_cache.BatchLookup, batch)
        return response.responses

    def store(
        self,
        cache: str,
        category: str,
        *,
        response: bytes,
        embedding: ArrayLike | None = None,
        text: str = "",
        entry: str = "",
        ttl: timedelta | None = None,
        request_id: str = "",
        replace_entry: str = "",
        cost: float = 0.0,
        model: str = "",
        completion: cache_pb.Completion = cache_pb.COMPLETION_COMPLETE,
        lookup_token: str = "",
        lease_token: str = "",
        **fields: Any,
    ) -> cache_pb.StoreResponse:
        """Store one answer, if the category admits it: `admission` of the reply tells. `fields` are further
        fields of nearhit.v1.Entry, such as labels or tags."""
        request = store_request(
            cache,
            category,
            response=response,
            embedding=embedding,
            text=text,
            entry=entry,
            ttl=ttl,
            request_id=request_id,
            replace_entry=replace_entry,
            cost=cost,
            model=model,
            completion=completion,
            lookup_token=lookup_token,
            lease_token=lease_token,
            **fields,
        )
        answer: cache_pb.StoreResponse = self.call(self.semantic_cache.Store, request)
        return answer

    def batch_store(
        self, cache: str, requests: Iterable[cache_pb.StoreRequest]
    ) -> Sequence[cache_pb.StoreResponse]:
        """Store several answers, all or none; make them with `store_request`."""
        batch = cache_pb.BatchStoreRequest(parent=f"caches/{cache}", requests=requests)
        response: cache_pb.BatchStoreResponse = self.call(self.semantic_cache.BatchStore, batch)
        return response.responses

    def release_lease(self, lease_token: str) -> None:
        """Give up a lease without storing: who waits for it computes."""
        request = cache_pb.ReleaseLeaseRequest(lease_token=lease_token)
        self.call(self.semantic_cache.ReleaseLease, request)

    def get_entry(self, cache: str, entry: str, *, full: bool = False) -> pb.Entry:
        """Read one entry; `full` adds embedding and response."""
        request = cache_pb.GetEntryRequest(name=f"caches/{cache}/entries/{entry}", view=_view(full=full))
        answer: pb.Entry = self.call(self.semantic_cache.GetEntry, request)
        return answer

    def list_entries(self, cache: str, *, category: str = "", full: bool = False) -> Iterator[pb.Entry]:
        """Every live entry of a cache or category, in the order of their storing."""
        request = cache_pb.ListEntriesRequest(
            parent=_parent(cache, category), page_size=PAGE_SIZE, view=_view(full=full)
        )
        while True:
            page: cache_pb.ListEntriesResponse = self.call(self.semantic_cache.ListEntries, request)
            yield from page.entries
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def delete_entry(self, cache: str, entry: str) -> None:
        """Delete one entry."""
        request = cache_pb.DeleteEntryRequest(name=f"caches/{cache}/entries/{entry}")
        self.call(self.semantic_cache.DeleteEntry, request)

    def invalidate(
        self,
        cache: str,
        *,
        entries: Sequence[str] = (),
        categories: Sequence[str] = (),
        tags: Sequence[str] = (),
        sources: Sequence[str] = (),
        models: Sequence[str] = (),
        created_before: datetime | None = None,
        older_than: timedelta | None = None,
        near: ArrayLike | None = None,
        near_text: str = "",
        radius: float | None = None,
        modality: str = "",
        embedder_id: str = "",
        dry_run: bool = False,
    ) -> cache_pb.InvalidateResponse:
        """Delete every entry that all given selectors match; `dry_run` only counts them.

        created_before: without a zone it is in UTC. near: float [dim], or near_text, which the server embeds:
        entries within the cosine distance `radius`, of the `modality` and embedder of `near`.
        """
        request = cache_pb.InvalidateRequest(
            parent=f"caches/{cache}",
            entries=[f"caches/{cache}/entries/{entry}" for entry in entries],
            categories=[f"caches/{cache}/categories/{category}" for category in categories],
            tags=tags,
            sources=sources,
            models=models,
            older_than=_duration(older_than),
            radius=radius,
            dry_run=dry_run,
        )
        if created_before is not None:
            request.created_before.CopyFrom(_timestamp(created_before))
        if near is not None or near_text:
            query = pb.Query(
                embedding=_bytes(near), text=near_text, modality=modality, embedder_id=embedder_id
            )
            request.near.CopyFrom(query)
        answer: cache_pb.InvalidateResponse = self.call(self.semantic_cache.Invalidate, request)
        return answer

    def record_feedback(
        self,
        lookup_token: str,
        verdict: cache_pb.Verdict,
        *,
        embedding: ArrayLike | None = None,
        text: str = "",
        modality: str = "",
        embedder_id: str = "",
    ) -> cache_pb.RecordFeedbackResponse:
        """Say whether a served answer was right; with what was asked, as in the lookup, codes learn."""
        request = cache_pb.RecordFeedbackRequest(lookup_token=lookup_token, verdict=verdict)
        if embedding is not None or text:
            query = pb.Query(
                embedding=_bytes(embedding), text=text, modality=modality, embedder_id=embedder_id
            )
            request.query.CopyFrom(query)
        answer: cache_pb.RecordFeedbackResponse = self.call(self.semantic_cache.RecordFeedback, request)
        return answer

    def report_load(self, cache: str, model: str, load: float, *, ttl: timedelta | None = None) -> None:
        """Tell the server that answers the load of a model, in [0, 1], for `ttl` (default 30 s); see
        `load_of`. Of several replicas each wants to be told."""
        request = cache_pb.ReportLoadRequest(
            parent=f"caches/{cache}", model=model, load=load, ttl=_duration(ttl)
        )
        self.call(self.semantic_cache.ReportLoad, request)

    def export_entries(self, cache: str, *, category: str = "") -> Iterator[pb.Entry]:
        """Stream every live entry with embedding and response; has no time limit."""
        request = cache_pb.ExportEntriesRequest(parent=_parent(cache, category))
        try:
            for message in self.semantic_cache.ExportEntries(request):
                yield message.entry
        except grpc.RpcError as error:
            raise to_error(error) from error

    def import_entries(self, cache: str, entries: Iterable[pb.Entry]) -> cache_pb.ImportEntriesResponse:
        """Store exported entries; has no time limit."""
        messages = (cache_pb.ImportEntriesRequest(parent=f"caches/{cache}", entry=entry) for entry in entries)
        try:
            response: cache_pb.ImportEntriesResponse = self.semantic_cache.ImportEntries(messages)
        except grpc.RpcError as error:
            raise to_error(error) from error
        return response

    # Search

    def search(
        self,
        cache: str,
        *,
        embedding: ArrayLike | None = None,
        text: str = "",
        modality: str = "",
        embedder_id: str = "",
        top_k: int = 10,
        categories: Sequence[str] = (),
        tags: Sequence[str] = (),
        scope: str | None = None,
        path: pb.SearchPath = pb.SEARCH_PATH_UNSPECIFIED,
        min_recall: float = 0.0,
        by_label: bool = False,
        target_modality: str = "",
        min_seq: int = 0,
        view: pb.EntryView = pb.ENTRY_VIEW_UNSPECIFIED,
    ) -> search_pb.SearchResponse:
        """Find the nearest entries, or with `by_label` the entries of the nearest classes.

        target_modality: of the entries; empty: the query's own.
        """
        request = search_request(
            cache,
            embedding=embedding,
            text=text,
            modality=modality,
            embedder_id=embedder_id,
            top_k=top_k,
            categories=categories,
            tags=tags,
            scope=scope,
            path=path,
            min_recall=min_recall,
            by_label=by_label,
            target_modality=target_modality,
            min_seq=min_seq,
            view=view,
        )
        answer: search_pb.SearchResponse = self.call(self.search_service.Search, request)
        return answer

    def batch_search(
        self, cache: str, requests: Iterable[search_pb.SearchRequest]
    ) -> Sequence[search_pb.SearchResponse]:
        """Answer several searches in one call; make them with `search_request`."""
        batch = search_pb.BatchSearchRequest(parent=f"caches/{cache}", requests=requests)
        response: search_pb.BatchSearchResponse = self.call(self.search_service.BatchSearch, batch)
        return response.responses

    # Administration

    def create_cache(
        self,
        cache: str,
        *,
        dim: int,
        modality: str = "text",
        embedder_id: str = "",
        code_bits: int = 0,
        label_bits: int = 0,
        description: str = "",
    ) -> pb.Cache:
        """Create a cache of one modality; 0 bits mean the server's default."""
        message = pb.Cache(
            modalities=[pb.Modality(modality=modality, dim=dim, embedder_id=embedder_id)],
            code_bits=code_bits,
            label_bits=label_bits,
            description=description,
        )
        answer: pb.Cache = self.call(
            self.admin.CreateCache, admin_pb.CreateCacheRequest(cache_id=cache, cache=message)
        )
        return answer

    def create_category(
        self,
        cache: str,
        category: str,
        *,
        ttl: timedelta | None = None,
        refresh_after: timedelta | None = None,
        parent: str = "",
        **policy: Any,
    ) -> pb.Category:
        """Create a category; `policy` are fields of nearhit.v1.Category, such as threshold.

        parent: id of the category that it inherits from what is not given here.
        """
        message = pb.Category(
            parent=_category(cache, parent),
            ttl=_duration(ttl),
            refresh_after=_duration(refresh_after),
            **policy,
        )
        request = admin_pb.CreateCategoryRequest(
            parent=f"caches/{cache}", category_id=category, category=message
        )
        answer: pb.Category = self.call(self.admin.CreateCategory, request)
        return answer

    def update_category(
        self,
        cache: str,
        category: str,
        *,
        ttl: timedelta | None = None,
        without_ttl: bool = False,
        refresh_after: timedelta | None = None,
        parent: str | None = None,
        inherit: Sequence[str] = (),
        etag: str = "",
        **policy: Any,
    ) -> pb.Category:
        """Change the given fields of a category's policy, and no other.

        inherit: fields that are inherited from then on, at a category without a parent those that get their
        defaults; None for one of `policy` and `without_ttl` for the ttl mean the same. parent: "" for none.
        Raises: ValueError: no field is given, or one in two ways.
        """
        given = {
            "ttl": ttl is not None,
            "refresh_after": refresh_after is not None,
            "parent": parent is not None,
        }
        fields = [*policy, *(field for field, is_given in given.items() if is_given), *inherit]
        fields += ["ttl"] if without_ttl else []
        if not fields or len(set(fields)) < len(fields):
            raise ValueError(
                "give fields of the policy to change, each once, and ttl or without_ttl, not both"
            )
        message = pb.Category(
            name=_category(cache, category),
            etag=etag,
            parent=_category(cache, parent or ""),
            ttl=_duration(ttl),
            refresh_after=_duration(refresh_after),
            **policy,
        )
        request = admin_pb.UpdateCategoryRequest(category=message, update_mask=FieldMask(paths=fields))
        answer: pb.Category = self.call(self.admin.UpdateCategory, request)
        return answer

    def list_policy_changes(self, cache: str, *, category: str = "") -> Iterator[admin_pb.PolicyChange]:
        """Every change of a category's policy that is kept, or of all of a cache, newest first."""
        request = admin_pb.ListPolicyChangesRequest(parent=_parent(cache, category), page_size=PAGE_SIZE)
        while True:
            page: admin_pb.ListPolicyChangesResponse = self.call(self.admin.ListPolicyChanges, request)
            yield from page.changes
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def call(self, method: Callable[..., Any], request: Any) -> Any:
        """Call any method of the stubs with this client's time limit and errors."""
        try:
            return method(request, timeout=self._timeout_seconds)
        except grpc.RpcError as error:
            raise to_error(error) from error


def load_of(latency: float, *, usual: float, most: float) -> float:
    """A latency, or the length of a queue, as a load: 0 up to `usual`, 1 from `most` on, linear between.

    All in one unit. Raises: ValueError: unless 0 <= usual < most and the latency is a number.
    """
    if not 0 <= usual < most or math.isnan(latency):
        raise ValueError(f"no load of {latency} where {usual} is usual and {most} the most")
    return min(max((latency - usual) / (most - usual), 0.0), 1.0)


def lookup_request(
    cache: str,
    category: str,
    *,
    embedding: ArrayLike | None = None,
    text: str = "",
    modality: str = "",
    embedder_id: str = "",
    scope: str = "",
    fingerprint: str = "",
    mode: cache_pb.LookupMode = cache_pb.LOOKUP_MODE_SERVE,
    threshold: float | None = None,
    max_age: timedelta | None = None,
    min_seq: int = 0,
    lease: timedelta | None = None,
    wait: timedelta | None = None,
    explain: bool = False,
) -> cache_pb.LookupRequest:
    """One lookup; embedding: float [dim]."""
    return cache_pb.LookupRequest(
        category=f"caches/{cache}/categories/{category}",
        query=pb.Query(embedding=_bytes(embedding), text=text, modality=modality, embedder_id=embedder_id),
        scope=scope,
        fingerprint=fingerprint,
        mode=mode,
        threshold=threshold,
        max_age=_duration(max_age),
        min_seq=min_seq,
        lease=_duration(lease),
        wait=_duration(wait),
        explain=explain,
    )


def store_request(
    cache: str,
    category: str,
    *,
    response: bytes,
    embedding: ArrayLike | None = None,
    text: str = "",
    entry: str = "",
    ttl: timedelta | None = None,
    request_id: str = "",
    replace_entry: str = "",
    completion: cache_pb.Completion = cache_pb.COMPLETION_COMPLETE,
    lookup_token: str = "",
    lease_token: str = "",
    **fields: Any,
) -> cache_pb.StoreRequest:
    """One store; embedding: float [dim], `fields`: of nearhit.v1.Entry."""
    return cache_pb.StoreRequest(
        entry=pb.Entry(
            name=f"caches/{cache}/entries/{entry}" if entry else "",
            category=f"caches/{cache}/categories/{category}",
            embedding=_bytes(embedding),
            text=text,
            response=response,
            ttl=_duration(ttl),
            **fields,
        ),
        request_id=request_id,
        replace_entry=f"caches/{cache}/entries/{replace_entry}" if replace_entry else "",
        completion=completion,
        lookup_token=lookup_token,
        lease_token=lease_token,
    )


def search_request(
    cache: str,
    *,
    embedding: ArrayLike | None = None,
    text: str = "",
    modality: str = "",
    embedder_id: str = "",
    top_k: int = 10,
    categories: Sequence[str] = (),
    tags: Sequence[str] = (),
    scope: str | None = None,
    path: pb.SearchPath = pb.SEARCH_PATH_UNSPECIFIED,
    min_recall: float = 0.0,
    by_label: bool = False,
    target_modality: str = "",
    min_seq: int = 0,
    view: pb.EntryView = pb.ENTRY_VIEW_UNSPECIFIED,
) -> search_pb.SearchRequest:
    """One search; embedding: float [dim]; target_modality: of the entries, empty for the query's own."""
    return search_pb.SearchRequest(
        parent=f"caches/{cache}",
        query=pb.Query(embedding=_bytes(embedding), text=text, modality=modality, embedder_id=embedder_id),
        top_k=top_k,
        categories=[f"caches/{cache}/categories/{category}" for category in categories],
        tags=tags,
        scope=scope,
        path=path,
        min_recall=min_recall,
        code_kind=search_pb.CODE_KIND_LABEL if by_label else search_pb.CODE_KIND_INSTANCE,
        target_modality=target_modality,
        min_seq=min_seq,
        view=view,
    )


def _bytes(embedding: ArrayLike | None) -> bytes:
    return b"" if embedding is None else np.asarray(embedding, dtype="<f4").tobytes()


def _duration(ttl: timedelta | None) -> Duration | None:
    if ttl is None:
        return None
    duration = Duration()
    duration.FromTimedelta(ttl)
    return duration


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)  # without a zone: in UTC
    return stamp


def _category(cache: str, category: str) -> str:
    return f"caches/{cache}/categories/{category}" if category else ""


def _parent(cache: str, category: str) -> str:
    return _category(cache, category) or f"caches/{cache}"


def _view(*, full: bool) -> pb.EntryView:
    return pb.ENTRY_VIEW_FULL if full else pb.ENTRY_VIEW_BASIC

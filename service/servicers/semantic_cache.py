"""SemanticCacheService: messages in, messages out; the work is done below."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from nearhit.v1.semantic_cache_service_pb2_grpc import SemanticCacheServiceServicer

from service import convert, store
from service.application import Application, await_write, clock_ms, time_limit
from service.cache import Caller
from service.coding import to_stored
from service.convert_selection import to_near, to_selection
from service.database import reading
from service.embedding import Embedded, Input, embed_inputs
from service.errors import EmbedderUnavailableError, InvalidRequestError, ServiceError
from service.ingest import submit_imports, submit_stores
from service.judging import record_feedback, verdict_columns
from service.keys import child_name, parse_cache, parse_child, parse_parent
from service.paging import make_token, read_row_token
from service.records import PAIR_LABELS, Near
from service.replica import CacheReplica, CacheState
from service.rows import categories_by_id, entry_query, read_entry, read_page
from service.selection import measured, select_rows
from service.tables import NEVER_MS, entries
from service.tokens import LookupToken
from service.tokens import read_token as read_lookup_token

_STREAM_CHUNK = 256
_EXPORT_BYTES = 8 * 1024 * 1024


class SemanticCacheServicer(SemanticCacheServiceServicer):
    """Lookups, stores and what belongs to entries."""

    def __init__(self, app: Application) -> None:
        self._app = app

    def Lookup(
        self, request: cache_pb.LookupRequest, context: grpc.ServicerContext
    ) -> cache_pb.LookupResponse:
        """Find the stored answer to one question."""
        cache, query = convert.to_lookup(request)
        replica = self._app.replicas.get(cache)
        caller = Caller(context.is_active, context.add_callback)
        answers = self._app.cache.lookup(replica, [query], timeout_seconds=time_limit(context), caller=caller)
        return convert.from_lookup(cache, answers[0])

    def BatchLookup(
        self, request: cache_pb.BatchLookupRequest, context: grpc.ServicerContext
    ) -> cache_pb.BatchLookupResponse:
        """Find the stored answers to several questions of one cache."""
        cache = parse_cache(request.parent)
        convert.check_batch_size(len(request.requests), most=self._app.config.server.max_batch)
        lookups = [convert.to_lookup(item) for item in request.requests]
        convert.check_batch_parents(cache, [parent for parent, _ in lookups])
        answers = self._app.cache.lookup(
            self._app.replicas.get(cache),
            [query for _, query in lookups],
            timeout_seconds=time_limit(context),
        )
        return cache_pb.BatchLookupResponse(
            responses=[convert.from_lookup(cache, answer) for answer in answers]
        )

    def Store(self, request: cache_pb.StoreRequest, context: grpc.ServicerContext) -> cache_pb.StoreResponse:
        """Store one entry."""
        item = convert.to_store(request, max_response_bytes=self._app.config.server.max_response_bytes)
        stored = self._store(item.cache, [item], context)[0]
        self._app.leases.end(request.lease_token, stored=True)
        return stored

    def ReleaseLease(self, request: cache_pb.ReleaseLeaseRequest, context: grpc.ServicerContext) -> Empty:
        """Let another caller compute."""
        if not request.lease_token:
            raise InvalidRequestError(
                "a lease token is required", reason="INVALID_VALUE", field="lease_token"
            )
        self._app.leases.end(convert.check_lease_token(request.lease_token), stored=False)
        return Empty()

    def BatchStore(
        self, request: cache_pb.BatchStoreRequest, context: grpc.ServicerContext
    ) -> cache_pb.BatchStoreResponse:
        """Store several entries of one cache, all or none."""
        cache = parse_cache(request.parent)
        limits = self._app.config.server
        convert.check_batch_size(len(request.requests), most=limits.max_batch)
        items = [
            convert.to_store(item, max_response_bytes=limits.max_response_bytes) for item in request.requests
        ]
        convert.check_batch_parents(cache, [item.cache for item in items])
        responses = self._store(cache, items, context)
        for item in request.requests:
            self._app.leases.end(item.lease_token, stored=True)
        return cache_pb.BatchStoreResponse(responses=responses)

    def GetEntry(self, request: cache_pb.GetEntryRequest, context: grpc.ServicerContext) -> pb.Entry:
        """Read one entry."""
        cache, name = parse_child(request.name, "entries")
        full = convert.check_view(request.view)
        state = self._app.replicas.get(cache).state
        with reading(self._app.engine) as connection:
            record = read_entry(connection, state.record, name, now_ms=clock_ms())
            category = categories_by_id(connection, state.record.id)[record.category_id]
        return convert.from_entry(cache, category, record, full=full)

    def ListEntries(
        self, request: cache_pb.ListEntriesRequest, context: grpc.ServicerContext
    ) -> cache_pb.ListEntriesResponse:
        """List live entries, a page at a time."""
        cache, query, state = self._listed(request.parent)
        size = convert.page_size(request.page_size)
        full = convert.check_view(request.view)
        after = read_row_token(request.parent, request.page_token)
        budget_bytes = self._app.config.server.max_message_bytes // 2
        with reading(self._app.engine) as connection:
            page = read_page(connection, query, after=after, size=size, budget_bytes=budget_bytes)
            found = categories_by_id(connection, state.record.id)
        token = "" if page.next_after is None else make_token(request.parent, str(page.next_after))
        return cache_pb.ListEntriesResponse(
            entries=[
                convert.from_entry(cache, found[record.category_id], record, full=full)
                for record in page.records
            ],
            next_page_token=token,
        )

    def DeleteEntry(self, request: cache_pb.DeleteEntryRequest, context: grpc.ServicerContext) -> Empty:
        """Delete one entry."""
        cache, name = parse_child(request.name, "entries")
        replica = self._app.replicas.get(cache)
        answer = self._app.writer.submit(replica.state.record.id, lambda tx: store.delete_entry(tx, name))
        await_write(answer, timeout_seconds=time_limit(context))
        return Empty()

    def Invalidate(
        self, request: cache_pb.InvalidateRequest, context: grpc.ServicerContext
    ) -> cache_pb.InvalidateResponse:
        """Delete, or count, what the selectors mean."""
        cache = parse_cache(request.parent)
        near = to_near(request)
        state = self._app.replicas.get(cache).state
        selection = to_selection(request, cache, state, now_ms=clock_ms())
        if near is not None:
            selection = replace(selection, near=self._near(state, *near, timeout_seconds=time_limit(context)))
        if selection.is_empty:
            raise InvalidRequestError("no selector is given", reason="NO_SELECTOR")
        if request.dry_run:
            with reading(self._app.engine) as connection:
                found = select_rows(connection, state.record.id, selection, live_at=clock_ms())
            return cache_pb.InvalidateResponse(entry_count=len(found))
        if selection.near is not None:
            # Before the transaction: stores do not wait until all vectors are read.
            with reading(self._app.engine) as connection:
                selection = measured(connection, state.record.id, selection)
        answer = self._app.writer.submit(
            state.record.id, lambda tx: (store.invalidate(tx, selection), tx.seq)
        )
        count, seq = await_write(answer, timeout_seconds=time_limit(context))
        return cache_pb.InvalidateResponse(entry_count=count, seq=seq if count else 0)

    def _near(self, state: CacheState, source: Input, radius: float, *, timeout_seconds: float) -> Near:
        (query,) = embed_inputs(
            state.record, [source], embedder=self._app.embedder, timeout_seconds=timeout_seconds
        )
        return Near(space=query.space, vector=query.vector, radius=radius)

    def RecordFeedback(
        self, request: cache_pb.RecordFeedbackRequest, context: grpc.ServicerContext
    ) -> cache_pb.RecordFeedbackResponse:
        """Keep a verdict on a served answer."""
        if request.verdict not in convert.VERDICTS:
            raise InvalidRequestError("a verdict is required", reason="UNKNOWN_VALUE")
        replica, token = self._token_of(request.lookup_token)
        source = convert.to_input(request.query)
        values = verdict_columns(token, convert.VERDICTS[request.verdict])
        query = None
        if request.HasField("query"):
            query = self._judged_query(replica, source, timeout_seconds=time_limit(context) / 2)
            if query is not None and values["verdict"] in PAIR_LABELS:
                values["query_vector"] = to_stored(query.vector).tobytes()
        answer = self._app.writer.submit(
            token.cache_id,
            lambda tx: (
                store.entry_name(tx.connection, token.entry_id),  # the verdict may remove it
                record_feedback(
                    tx,
                    values,
                    query_modality=source.modality if request.HasField("query") else "",
                    query_space=query.space if query else "",
                ),
            ),
        )
        name, verdict = await_write(answer, timeout_seconds=time_limit(context))
        with suppress(ServiceError):  # it is kept: here it counts at once, at the latest with the next step
            self._app.learner.follow(replica)
        entry = child_name(replica.state.record.name, "entries", name) if name else ""
        return cache_pb.RecordFeedbackResponse(
            entry=entry, recorded=verdict.is_first, query_kept=verdict.query_kept
        )

    def ReportLoad(self, request: cache_pb.ReportLoadRequest, context: grpc.ServicerContext) -> Empty:
        """Remember the load of a model."""
        told = convert.to_reported_load(request)
        cache_id = self._app.replicas.get(told.cache).state.record.id
        self._app.loads.report(cache_id, told.model, told.load, seconds=told.seconds)
        return Empty()

    def ExportEntries(
        self, request: cache_pb.ExportEntriesRequest, context: grpc.ServicerContext
    ) -> Iterator[cache_pb.ExportEntriesResponse]:
        """Stream every live entry."""
        cache, query, state = self._listed(request.parent)
        after: int | None = 0
        while after is not None:
            with reading(self._app.engine) as connection:  # one a page: a slow reader must not hold one
                page = read_page(
                    connection, query, after=after, size=convert.PAGE_MOST, budget_bytes=_EXPORT_BYTES
                )
                found = categories_by_id(connection, state.record.id)
            for record in page.records:
                entry = convert.from_entry(cache, found[record.category_id], record, full=True)
                yield cache_pb.ExportEntriesResponse(entry=entry)
            after = page.next_after

    def ImportEntries(
        self, request_iterator: Iterator[cache_pb.ImportEntriesRequest], context: grpc.ServicerContext
    ) -> cache_pb.ImportEntriesResponse:
        """Store streamed entries in batches."""
        response = cache_pb.ImportEntriesResponse()
        first = next(request_iterator, None)
        if first is None:
            return response
        cache = parse_cache(first.parent)
        replica = self._app.replicas.get(cache)
        pending = [first]
        while pending:
            self._import(replica, cache, pending, response, context)
            pending = list(islice(request_iterator, _STREAM_CHUNK))
        return response

    def _import(
        self,
        replica: CacheReplica,
        cache: str,
        requests: Sequence[cache_pb.ImportEntriesRequest],
        response: cache_pb.ImportEntriesResponse,
        context: grpc.ServicerContext,
    ) -> None:
        now_ms = clock_ms()
        items = []
        for request in requests:
            item = self._imported(cache, request.entry)
            if item.values["expire_ms"] <= now_ms:
                response.expired_count += 1
            else:
                items.append(item)
        if not items:
            return
        remaining = time_limit(context)
        answer = submit_imports(self._app, replica, items, timeout_seconds=remaining)
        stored = await_write(answer, timeout_seconds=remaining)
        response.stored_count += stored
        response.skipped_count += len(items) - stored

    def _imported(self, cache: str, entry: pb.Entry) -> convert.StoreItem:
        """An exported entry as one of `cache`, with its own times."""
        _, name = parse_child(entry.name, "entries")
        _, category = parse_child(entry.category, "categories")
        values: dict[str, Any] = convert.to_entry_values(
            entry, max_response_bytes=self._app.config.server.max_response_bytes
        )
        values |= {
            "name": name,
            "create_ms": convert.from_timestamp(entry.create_time) if entry.HasField("create_time") else None,
            "expire_ms": convert.from_timestamp(entry.expire_time)
            if entry.HasField("expire_time")
            else NEVER_MS,
        }
        return convert.StoreItem(
            cache=cache, category=category, source=convert.entry_input(entry), values=values
        )

    def _store(
        self, cache: str, items: Sequence[convert.StoreItem], context: grpc.ServicerContext
    ) -> list[cache_pb.StoreResponse]:
        remaining = time_limit(context)
        replica = self._app.replicas.get(cache)
        rows, answer = submit_stores(self._app, replica, items, timeout_seconds=remaining)
        stored = await_write(answer, timeout_seconds=remaining)
        policies = {name: category.policy for name, category in replica.state.categories.items()}
        return [
            convert.from_stored(cache, item, row, answered, policy=policies.get(item.category))
            for item, row, answered in zip(items, rows, stored, strict=True)
        ]

    def _listed(self, parent: str) -> tuple[str, Any, Any]:
        """The cache's id, the query of its (or its category's) live entries, and its state."""
        cache, category = parse_parent(parent)
        state = self._app.replicas.get(cache).state
        query = entry_query(state.record.id).where(entries.c.expire_ms > clock_ms())
        if category is not None:
            query = query.where(entries.c.category_id == state.category(category).id)
        return cache, query, state

    def _judged_query(
        self, replica: CacheReplica, source: Input, *, timeout_seconds: float
    ) -> Embedded | None:
        """The query of a verdict; None where its text cannot be embedded: a verdict is kept all the same.

        Raises: InvalidRequestError.
        """
        try:
            (query,) = embed_inputs(
                replica.state.record, [source], embedder=self._app.embedder, timeout_seconds=timeout_seconds
            )
        except EmbedderUnavailableError:
            return None
        return query

    def _token_of(self, text: str) -> tuple[CacheReplica, LookupToken]:
        """The token and the cache whose key signed it."""
        for replica in self._app.replicas.all():
            try:
                token = read_lookup_token(text, replica.state.record.token_key)
            except InvalidRequestError:
                continue
            if token.cache_id == replica.state.record.id:
                return replica, token
        raise InvalidRequestError("the lookup token is not one of this server", reason="INVALID_LOOKUP_TOKEN")

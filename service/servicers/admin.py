"""AdminService: messages in, messages out."""

from collections.abc import Callable
from typing import TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1.admin_service_pb2_grpc import AdminServiceServicer
from sqlalchemy import Connection

from service import categories, jobs, registry, store
from service import convert_admin as convert
from service.application import Application, await_write, clock_ms, time_limit
from service.convert import page_size
from service.convert_policy import check_mask, from_policy_change, to_new_policy, to_policy_update
from service.database import reading
from service.decision_rules import read_rule, read_rules
from service.errors import InvalidRequestError
from service.keys import NAME_PATTERN, check_id, parse_cache, parse_child, parse_parent
from service.paging import make_token, page_of, read_row_token
from service.policy_changes import read_changes
from service.records import JobRecord, ShiftRecord, VerifierRecord
from service.rows import (
    read_cache,
    read_caches,
    read_categories,
    read_category,
    read_encoders,
    read_jobs,
    read_verifiers,
)
from service.shift_store import acknowledge_shift, read_shift, read_shifts
from service.transaction import CacheTransaction
from service.verifiers import activate_verifier, deactivate_verifier

T = TypeVar("T")


class AdminServicer(AdminServiceServicer):
    """What an operator sets and sees. Reads answer from the store, so that they see every write."""

    def __init__(self, app: Application) -> None:
        self._app = app

    def CreateCache(self, request: admin_pb.CreateCacheRequest, context: grpc.ServicerContext) -> pb.Cache:
        """Create a cache."""
        name = check_id(request.cache_id, NAME_PATTERN, field="cache_id")
        settings = convert.to_new_cache(request.cache)
        record = self._write(
            lambda connection: registry.create_cache(connection, name, now_ms=clock_ms(), **settings), context
        )
        return convert.from_cache(record)

    def GetCache(self, request: admin_pb.GetCacheRequest, context: grpc.ServicerContext) -> pb.Cache:
        """Read a cache."""
        with reading(self._app.engine) as connection:
            return convert.from_cache(read_cache(connection, parse_cache(request.name)))

    def ListCaches(
        self, request: admin_pb.ListCachesRequest, context: grpc.ServicerContext
    ) -> admin_pb.ListCachesResponse:
        """List caches by name."""
        with reading(self._app.engine) as connection:
            found = read_caches(connection)
        page, token = page_of(
            found,
            listing="caches",
            token=request.page_token,
            size=page_size(request.page_size),
            key=lambda record: record.name,
        )
        return admin_pb.ListCachesResponse(
            caches=[convert.from_cache(record) for record in page], next_page_token=token
        )

    def UpdateCache(self, request: admin_pb.UpdateCacheRequest, context: grpc.ServicerContext) -> pb.Cache:
        """Change a cache's description."""
        name = parse_cache(request.cache.name)
        check_mask(request.update_mask, ("description",))
        description = convert.to_description(request.cache.description)
        record = self._write(
            lambda connection: registry.update_cache(
                connection, name, etag=request.cache.etag, description=description
            ),
            context,
        )
        return convert.from_cache(record)

    def DeleteCache(self, request: admin_pb.DeleteCacheRequest, context: grpc.ServicerContext) -> Empty:
        """Delete a cache with all it holds."""
        name = parse_cache(request.name)
        self._write(lambda connection: registry.delete_cache(connection, name, etag=request.etag), context)
        return Empty()

    def CreateCategory(
        self, request: admin_pb.CreateCategoryRequest, context: grpc.ServicerContext
    ) -> pb.Category:
        """Create a category."""
        cache = parse_cache(request.parent)
        name = check_id(request.category_id, NAME_PATTERN, field="category_id")
        own, parent = to_new_policy(request.category, cache=cache)
        record = self._write(
            lambda connection: categories.create_category(
                connection, cache, name, own=own, parent=parent, now_ms=clock_ms()
            ),
            context,
        )
        return convert.from_category(cache, record, shift=self._watched(ShiftRecord()))

    def GetCategory(self, request: admin_pb.GetCategoryRequest, context: grpc.ServicerContext) -> pb.Category:
        """Read a category."""
        cache, name = parse_child(request.name, "categories")
        with reading(self._app.engine) as connection:
            return self._category(connection, cache, name)

    def ListCategories(
        self, request: admin_pb.ListCategoriesRequest, context: grpc.ServicerContext
    ) -> admin_pb.ListCategoriesResponse:
        """List a cache's categories by name."""
        cache = parse_cache(request.parent)
        with reading(self._app.engine) as connection:
            owner = read_cache(connection, cache)
            found = read_categories(connection, owner.id)
            shifts = read_shifts(connection, owner.id)
            rules = read_rules(connection, owner.id, {})
        page, token = page_of(
            found,
            listing=f"{request.parent}/categories",
            token=request.page_token,
            size=page_size(request.page_size),
            key=lambda record: record.name,
        )
        return admin_pb.ListCategoriesResponse(
            categories=[
                convert.from_category(
                    cache,
                    record,
                    shift=self._watched(shifts.get(record.id, ShiftRecord())),
                    rule=rules.get(record.id),
                )
                for record in page
            ],
            next_page_token=token,
        )

    def UpdateCategory(
        self, request: admin_pb.UpdateCategoryRequest, context: grpc.ServicerContext
    ) -> pb.Category:
        """Change a category's policy; a smaller quota evicts in the same transaction, below the category
        too."""
        cache, name = parse_child(request.category.name, "categories")
        changed, parent = to_policy_update(request.category, request.update_mask, cache=cache)
        cache_id = self._app.replicas.get(cache).state.record.id

        def change(tx: CacheTransaction) -> pb.Category:
            record = categories.update_category(
                tx.connection,
                cache,
                name,
                etag=request.category.etag,
                changed=changed,
                parent=parent,
                now_ms=tx.now_ms,
            )
            for category_id in categories.inheritors(read_categories(tx.connection, cache_id), record.id):
                store.shrink_to_quota(tx, category_id)
            return self._category(tx.connection, cache, name)

        answer = self._app.writer.submit(cache_id, change, changes_settings=True)
        return await_write(answer, timeout_seconds=time_limit(context))

    def DeleteCategory(self, request: admin_pb.DeleteCategoryRequest, context: grpc.ServicerContext) -> Empty:
        """Delete a category with its entries."""
        cache, name = parse_child(request.name, "categories")
        self._write(
            lambda connection: categories.delete_category(
                connection, cache, name, etag=request.etag, now_ms=clock_ms()
            ),
            context,
        )
        return Empty()

    def ListPolicyChanges(
        self, request: admin_pb.ListPolicyChangesRequest, context: grpc.ServicerContext
    ) -> admin_pb.ListPolicyChangesResponse:
        """List changes of policies, newest first."""
        cache, category = parse_parent(request.parent)
        size = page_size(request.page_size)
        before = read_row_token(request.parent, request.page_token)
        with reading(self._app.engine) as connection:
            owner = read_cache(connection, cache)
            found = read_changes(connection, owner.id, category=category, before=before, size=size + 1)
            if category is not None and not found and not before:
                read_category(connection, owner, category)  # or there is none
        page = found[:size]
        token = make_token(request.parent, str(page[-1].id)) if len(found) > size else ""
        return admin_pb.ListPolicyChangesResponse(
            changes=[from_policy_change(cache, record) for record in page], next_page_token=token
        )

    def AcknowledgeShift(
        self, request: admin_pb.AcknowledgeShiftRequest, context: grpc.ServicerContext
    ) -> pb.Category:
        """Clear a category's shift alarm and learn anew what is usual."""
        cache, name = parse_child(request.name, "categories")

        def acknowledge(connection: Connection) -> pb.Category:
            record = read_category(connection, read_cache(connection, cache), name)
            acknowledge_shift(connection, record, now_ms=clock_ms())
            return self._category(connection, cache, name)

        return self._write(acknowledge, context)

    def GetIndex(self, request: admin_pb.GetIndexRequest, context: grpc.ServicerContext) -> admin_pb.Index:
        """Describe the index that this replica serves."""
        parent, _, last = request.name.rpartition("/")
        if last != "index":
            raise InvalidRequestError(
                f"{request.name!r} is not a name of the form caches/{{cache}}/index", reason="INVALID_NAME"
            )
        cache = parse_cache(parent)
        state = self._app.replicas.get(cache).state
        return convert.from_index(cache, state.category_names, state.index)

    def ListEncoders(
        self, request: admin_pb.ListEncodersRequest, context: grpc.ServicerContext
    ) -> admin_pb.ListEncodersResponse:
        """List a cache's encoders, newest first."""
        cache = parse_cache(request.parent)
        with reading(self._app.engine) as connection:
            owner = read_cache(connection, cache)
            found = read_encoders(connection, owner.id)
        page, token = page_of(
            found,
            listing=f"{request.parent}/encoders",
            token=request.page_token,
            size=page_size(request.page_size),
            key=lambda record: record.encoder_id,
        )
        return admin_pb.ListEncodersResponse(
            encoders=[convert.from_encoder(cache, record, code_bits=owner.code_bits) for record in page],
            next_page_token=token,
        )

    def ActivateEncoder(
        self, request: admin_pb.ActivateEncoderRequest, context: grpc.ServicerContext
    ) -> pb.Encoder:
        """Make an encoder the active one."""
        cache, encoder_id = parse_child(request.name, "encoders")
        most = self._app.config.search.max_live_encoders

        def activate(connection: Connection) -> pb.Encoder:
            owner = read_cache(connection, cache)
            record = registry.activate_encoder(connection, owner.id, encoder_id, max_live_encoders=most)
            return convert.from_encoder(cache, record, code_bits=owner.code_bits)

        return self._write(activate, context)

    def RollbackEncoder(
        self, request: admin_pb.RollbackEncoderRequest, context: grpc.ServicerContext
    ) -> pb.Encoder:
        """Make the encoder active that was so before."""
        cache = parse_cache(request.parent)

        def roll_back(connection: Connection) -> pb.Encoder:
            owner = read_cache(connection, cache)
            record = registry.roll_back_encoder(connection, owner.id)
            return convert.from_encoder(cache, record, code_bits=owner.code_bits)

        return self._write(roll_back, context)

    def ListVerifiers(
        self, request: admin_pb.ListVerifiersRequest, context: grpc.ServicerContext
    ) -> admin_pb.ListVerifiersResponse:
        """List a cache's verifiers, newest first."""
        cache = parse_cache(request.parent)
        with reading(self._app.engine) as connection:
            found = read_verifiers(connection, read_cache(connection, cache).id)
        page, token = page_of(
            found,
            listing=f"{request.parent}/verifiers",
            token=request.page_token,
            size=page_size(request.page_size),
            key=lambda record: record.verifier_id,
        )
        return admin_pb.ListVerifiersResponse(
            verifiers=[convert.from_verifier(cache, record) for record in page], next_page_token=token
        )

    def ActivateVerifier(
        self, request: admin_pb.ActivateVerifierRequest, context: grpc.ServicerContext
    ) -> pb.Verifier:
        """Make a verifier the active one of its modality."""
        return self._set_verifier(request.name, activate_verifier, context)

    def DeactivateVerifier(
        self, request: admin_pb.DeactivateVerifierRequest, context: grpc.ServicerContext
    ) -> pb.Verifier:
        """Make a verifier a candidate again."""
        return self._set_verifier(request.name, deactivate_verifier, context)

    def CreateJob(self, request: admin_pb.CreateJobRequest, context: grpc.ServicerContext) -> pb.Job:
        """Queue a job."""
        cache = parse_cache(request.parent)
        kind = convert.to_job_kind(request.job)
        record = self._write(
            lambda connection: jobs.enqueue(
                connection, read_cache(connection, cache).id, kind=kind, now_ms=clock_ms()
            ),
            context,
        )
        return convert.from_job(cache, record)

    def GetJob(self, request: admin_pb.GetJobRequest, context: grpc.ServicerContext) -> pb.Job:
        """Read a job."""
        cache, name = parse_child(request.name, "jobs")
        with reading(self._app.engine) as connection:
            record = jobs.read_job(connection, read_cache(connection, cache), name)
        return convert.from_job(cache, record)

    def ListJobs(
        self, request: admin_pb.ListJobsRequest, context: grpc.ServicerContext
    ) -> admin_pb.ListJobsResponse:
        """List a cache's jobs, newest first."""
        cache = parse_cache(request.parent)
        with reading(self._app.engine) as connection:
            found = read_jobs(connection, read_cache(connection, cache).id)
        page, token = page_of(
            found,
            listing=f"{request.parent}/jobs",
            token=request.page_token,
            size=page_size(request.page_size),
            key=lambda record: record.name,
        )
        return admin_pb.ListJobsResponse(
            jobs=[convert.from_job(cache, record) for record in page], next_page_token=token
        )

    def CancelJob(self, request: admin_pb.CancelJobRequest, context: grpc.ServicerContext) -> pb.Job:
        """Cancel a job that has not finished."""
        cache, name = parse_child(request.name, "jobs")

        def cancel(connection: Connection) -> JobRecord:
            return jobs.cancel(connection, read_cache(connection, cache), name, now_ms=clock_ms())

        return convert.from_job(cache, self._write(cancel, context))

    def _category(self, connection: Connection, cache: str, name: str) -> pb.Category:
        record = read_category(connection, read_cache(connection, cache), name)
        rule = read_rule(connection, record.id)
        shift = self._watched(read_shift(connection, record))
        return convert.from_category(cache, record, shift=shift, rule=rule)

    def _watched(self, shift: ShiftRecord) -> ShiftRecord | None:
        return shift if self._app.config.shift.enabled else None

    def _set_verifier(
        self,
        name: str,
        change: Callable[[Connection, int, str], VerifierRecord],
        context: grpc.ServicerContext,
    ) -> pb.Verifier:
        cache, verifier_id = parse_child(name, "verifiers")
        record = self._write(
            lambda connection: change(connection, read_cache(connection, cache).id, verifier_id), context
        )
        return convert.from_verifier(cache, record)

    def _write(self, change: Callable[[Connection], T], context: grpc.ServicerContext) -> T:
        answer = self._app.writer.submit_registry(change)
        return await_write(answer, timeout_seconds=time_limit(context))

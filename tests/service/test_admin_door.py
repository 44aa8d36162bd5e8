"""Caches, categories, encoders and jobs through the door."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from nearhit import Client
from nearhit.client import store_request
from nearhit.errors import NearhitError
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray
from refusals import refused
from sqlalchemy import update
from waiting import eventually

from hashing import EncoderConfig, train_encoder
from hashing.inference import Encoder
from service import jobs
from service.application import clock_ms
from service.config import Config
from service.database import open_engine, writing
from service.registry import register_encoder
from service.rows import read_cache
from service.server import Server
from service.tables import encoders

Vectors = NDArray[np.float32]
CATEGORY = "caches/faq/categories/billing"


def get_category(client: Client, name: str = CATEGORY) -> pb.Category:
    """The category as it is now."""
    found: pb.Category = client.call(client.admin.GetCategory, admin_pb.GetCategoryRequest(name=name))
    return found


def get_cache(client: Client, name: str = "caches/faq") -> pb.Cache:
    """The cache as it is now."""
    found: pb.Cache = client.call(client.admin.GetCache, admin_pb.GetCacheRequest(name=name))
    return found


def delete_cache(client: Client, name: str = "caches/faq", *, etag: str = "") -> None:
    """Delete a cache."""
    client.call(client.admin.DeleteCache, admin_pb.DeleteCacheRequest(name=name, etag=etag))


def delete_category(client: Client, name: str = CATEGORY, *, etag: str = "") -> None:
    """Delete a category."""
    client.call(client.admin.DeleteCategory, admin_pb.DeleteCategoryRequest(name=name, etag=etag))


def entry_ids(client: Client, cache: str = "faq") -> list[str]:
    """The ids of the live entries in the order of storing."""
    return [entry.name.rpartition("/")[2] for entry in client.list_entries(cache)]


def update_category(client: Client, category: pb.Category, *paths: str) -> pb.Category:
    """Update a category under a mask."""
    request = admin_pb.UpdateCategoryRequest(category=category, update_mask=FieldMask(paths=paths))
    updated: pb.Category = client.call(client.admin.UpdateCategory, request)
    return updated


def all_pages(client: Client, method: Callable[..., Any], request: Any, field: str) -> list[Any]:
    """Everything that a list method returns."""
    found: list[Any] = []
    while True:
        page = client.call(method, request)
        found += getattr(page, field)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


# Caches


def test_created_cache_is_read_back(door: Client) -> None:
    created = door.create_cache(
        "docs", dim=768, modality="image", embedder_id="clip", code_bits=128, label_bits=192, description="d"
    )
    assert created.modalities == [pb.Modality(modality="image", dim=768, embedder_id="clip")]
    assert (created.code_bits, created.label_bits, created.description) == (128, 192, "d")
    assert (created.name, created.seq, created.active_encoder) == ("caches/docs", 0, "")
    assert get_cache(door, "caches/docs") == created


def test_bits_have_defaults(lone_door: Client) -> None:
    created = lone_door.create_cache("docs", dim=8)
    assert (created.code_bits, created.label_bits) == (256, 64)


def test_cache_name_is_taken_once(door: Client) -> None:
    with refused(grpc.StatusCode.ALREADY_EXISTS, "CACHE_EXISTS"):
        door.create_cache("faq", dim=8)


def test_caches_are_listed_by_name_in_pages(door: Client) -> None:
    for name in ("b", "a", "c2", "c10"):
        door.create_cache(name, dim=8)
    request = admin_pb.ListCachesRequest(page_size=2)
    found = all_pages(door, door.admin.ListCaches, request, "caches")
    assert [cache.name for cache in found] == [f"caches/{name}" for name in ("a", "b", "c10", "c2", "faq")]


def test_list_of_caches_goes_on_after_a_deletion(lone_door: Client) -> None:
    for name in ("a", "b", "c"):
        lone_door.create_cache(name, dim=8)
    request = admin_pb.ListCachesRequest(page_size=2)
    request.page_token = lone_door.call(lone_door.admin.ListCaches, request).next_page_token
    delete_cache(lone_door, "caches/b")
    page = lone_door.call(lone_door.admin.ListCaches, request)
    assert [cache.name for cache in page.caches] == ["caches/c", "caches/faq"]


def test_description_changes_with_its_etag(door: Client) -> None:
    before = get_cache(door)
    changed = pb.Cache(name="caches/faq", description="new", etag=before.etag)
    after = door.call(door.admin.UpdateCache, admin_pb.UpdateCacheRequest(cache=changed))
    assert after.description == "new"
    assert after.etag != before.etag
    assert get_cache(door) == after


def test_update_of_a_cache_with_an_old_etag_is_aborted(door: Client) -> None:
    old = pb.Cache(name="caches/faq", description="new", etag=get_cache(door).etag)
    request = admin_pb.UpdateCacheRequest(cache=old)
    door.call(door.admin.UpdateCache, request)
    request.cache.description = "newer"
    with refused(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
        door.call(door.admin.UpdateCache, request)
    assert get_cache(door).description == "new"


@pytest.mark.parametrize("path", ["code_bits", "modalities", "name", "seq", "absent", "description.x"])
def test_fixed_fields_of_a_cache_are_refused(lone_door: Client, path: str) -> None:
    request = admin_pb.UpdateCacheRequest(
        cache=pb.Cache(name="caches/faq", code_bits=128), update_mask=FieldMask(paths=[path])
    )
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_MASK"):
        lone_door.call(lone_door.admin.UpdateCache, request)


def test_deletion_with_an_old_etag_is_aborted(lone_door: Client) -> None:
    with refused(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
        delete_cache(lone_door, etag="7")
    with refused(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
        delete_category(lone_door, etag="7")
    assert get_category(lone_door).name == CATEGORY


def test_cache_made_again_starts_empty(door: Client, vectors: Vectors) -> None:
    for i in range(5):
        door.store("faq", "billing", embedding=vectors[i], entry=f"e{i}", fingerprint=f"k{i}", response=b"x")
    delete_cache(door, etag=get_cache(door).etag)
    with refused(grpc.StatusCode.NOT_FOUND, "CACHE_NOT_FOUND"):
        door.lookup("faq", "billing", embedding=vectors[0])
    door.create_cache("faq", dim=vectors.shape[1])
    door.create_category("faq", "billing")
    answer = door.lookup("faq", "billing", embedding=vectors[0], fingerprint="k0")
    assert answer.reason == cache_pb.LOOKUP_REASON_NO_CANDIDATE
    assert (entry_ids(door), get_cache(door).seq) == ([], 0)
    door.store("faq", "billing", embedding=vectors[9], entry="e0", response=b"new")
    assert door.lookup("faq", "billing", embedding=vectors[9]).response == b"new"


def test_cache_made_again_may_have_another_dimension(lone_door: Client) -> None:
    delete_cache(lone_door)
    lone_door.create_cache("faq", dim=4)
    lone_door.create_category("faq", "billing")
    lone_door.store("faq", "billing", embedding=[1, 0, 0, 0], response=b"x")
    assert lone_door.lookup("faq", "billing", embedding=[1, 0, 0, 0]).response == b"x"


# Categories


def test_created_category_is_read_back(door: Client) -> None:
    created = door.create_category(
        "faq",
        "travel",
        threshold=0.25,
        ttl=timedelta(seconds=90.5),
        ttl_mode=pb.TTL_MODE_SLIDING,
        max_entries=10,
        max_bytes=10_000,
        eviction=pb.EVICTION_LFU,
        shadow=True,
    )
    assert (created.threshold, created.ttl.ToTimedelta()) == (0.25, timedelta(seconds=90.5))
    assert (created.ttl_mode, created.eviction) == (pb.TTL_MODE_SLIDING, pb.EVICTION_LFU)
    assert (created.max_entries, created.max_bytes, created.shadow) == (10, 10_000, True)
    assert get_category(door, "caches/faq/categories/travel") == created


def test_policy_has_defaults(lone_door: Client) -> None:
    created = lone_door.create_category("faq", "travel")
    assert (created.threshold, created.HasField("ttl"), created.shadow) == (0.1, False, False)
    assert (created.ttl_mode, created.eviction) == (pb.TTL_MODE_ABSOLUTE, pb.EVICTION_LRU)
    assert (created.max_entries, created.max_bytes) == (0, 0)


def test_category_name_is_taken_once_in_a_cache(lone_door: Client) -> None:
    with refused(grpc.StatusCode.ALREADY_EXISTS, "CATEGORY_EXISTS"):
        lone_door.create_category("faq", "billing")
    lone_door.create_cache("docs", dim=8)
    assert lone_door.create_category("docs", "billing").name == "caches/docs/categories/billing"


def test_categories_are_listed_by_name_in_pages(door: Client) -> None:
    for name in ("c", "a", "b"):
        door.create_category("faq", name)
    request = admin_pb.ListCategoriesRequest(parent="caches/faq", page_size=3)
    found = all_pages(door, door.admin.ListCategories, request, "categories")
    assert [category.name.rpartition("/")[2] for category in found] == ["a", "b", "billing", "c"]


def test_mask_limits_what_changes(door: Client) -> None:
    wanted = pb.Category(name=CATEGORY, threshold=0.3, max_entries=5)
    after = update_category(door, wanted, "max_entries")
    assert (after.threshold, after.max_entries) == (0.1, 5)


def test_update_without_mask_sets_the_whole_policy(lone_door: Client) -> None:
    lone_door.update_category("faq", "billing", ttl=timedelta(seconds=5), max_entries=9, shadow=True)
    after = update_category(lone_door, pb.Category(name=CATEGORY, threshold=0.3))
    assert (after.threshold, after.HasField("ttl"), after.max_entries, after.shadow) == (0.3, False, 0, False)


def test_changed_threshold_holds_at_once(door: Client, vectors: Vectors) -> None:
    door.store("faq", "billing", embedding=vectors[0], response=b"x")
    query = vectors[0] + 0.25 * vectors[1]
    assert door.lookup("faq", "billing", embedding=query).response == b"x"
    door.update_category("faq", "billing", threshold=0.001)
    answer = door.lookup("faq", "billing", embedding=query)
    assert (answer.threshold, answer.response) == (0.001, b"")


def test_update_of_a_category_with_an_old_etag_is_aborted(door: Client) -> None:
    etag = get_category(door).etag
    door.update_category("faq", "billing", shadow=True, etag=etag)
    with refused(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
        door.update_category("faq", "billing", shadow=False, etag=etag)
    assert get_category(door).shadow


@pytest.mark.parametrize("path", ["entry_count", "name", "etag", "hit_count", "absent", "ttl.seconds"])
def test_output_fields_of_a_category_are_refused(lone_door: Client, path: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_MASK"):
        update_category(lone_door, pb.Category(name=CATEGORY), path)


@pytest.mark.parametrize("quota", [{"max_entries": 3}, {"max_bytes": 3 * (64 + 8 + 10)}])
def test_smaller_quota_evicts_at_once(door: Client, vectors: Vectors, quota: dict[str, int]) -> None:
    requests = [
        store_request("faq", "billing", embedding=vectors[i], entry=f"e{i}", response=b"0123456789")
        for i in range(8)
    ]
    door.batch_store("faq", requests)
    after = door.update_category("faq", "billing", **quota)
    assert (after.entry_count, after.size_bytes) == (3, 3 * 82)
    assert len(entry_ids(door)) == 3
    served = [bool(door.lookup("faq", "billing", embedding=vectors[i]).response) for i in range(8)]
    assert sum(served) == 3


def test_smaller_quota_evicts_what_the_same_commit_stored(
    sqlite_config: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    vectors: Vectors,
) -> None:
    client = connect(start_server(sqlite_config))
    client.create_cache("faq", dim=vectors.shape[1])
    client.create_category("faq", "billing")
    engine = open_engine(sqlite_config.store)
    with writing(engine):  # holds the database, so that what follows queues up for one commit
        calls = [
            threading.Thread(
                target=client.store, args=("faq", "billing"), kwargs={"embedding": row, "response": b"x"}
            )
            for row in vectors[:6]
        ]
        calls.append(
            threading.Thread(
                target=client.update_category, args=("faq", "billing"), kwargs={"max_entries": 2}
            )
        )
        for call in calls:
            call.start()
    for call in calls:
        call.join()
    engine.dispose()
    assert get_category(client).entry_count <= 2


def test_category_made_again_starts_empty(door: Client, vectors: Vectors) -> None:
    for i in range(5):
        door.store("faq", "billing", embedding=vectors[i], entry=f"e{i}", fingerprint=f"k{i}", response=b"x")
    delete_category(door, etag=get_category(door).etag)
    with refused(grpc.StatusCode.NOT_FOUND, "CATEGORY_NOT_FOUND"):
        door.lookup("faq", "billing", embedding=vectors[0])
    assert list(door.search("faq", embedding=vectors[0]).results) == []
    door.create_category("faq", "billing")
    answer = door.lookup("faq", "billing", embedding=vectors[0], fingerprint="k0")
    assert answer.reason == cache_pb.LOOKUP_REASON_NO_CANDIDATE
    assert (entry_ids(door), get_category(door).entry_count) == ([], 0)
    door.store("faq", "billing", embedding=vectors[0], entry="e0", response=b"new")
    assert door.lookup("faq", "billing", embedding=vectors[0]).response == b"new"


# Index


def test_index_describes_its_segments(door: Client, vectors: Vectors) -> None:
    door.create_category("faq", "travel")
    for i in range(6):
        stored = door.store("faq", "travel" if i % 3 else "billing", embedding=vectors[i], response=b"x")
    index = door.call(door.admin.GetIndex, admin_pb.GetIndexRequest(name="caches/faq/index"))
    assert (index.name, index.generation) == ("caches/faq/index", "")
    assert (index.seq, index.entry_count) == (stored.entry.seq, 6)
    counts = {segment.category.rpartition("/")[2]: segment.live_count for segment in index.segments}
    assert counts == {"billing": 2, "travel": 4}
    assert all(not segment.sealed and not segment.encoder for segment in index.segments)


def test_index_counts_no_deleted_rows(lone_door: Client, vectors: Vectors) -> None:
    for i in range(4):
        lone_door.store("faq", "billing", embedding=vectors[i], entry=f"e{i}", response=b"x")
    lone_door.delete_entry("faq", "e0")
    index = lone_door.call(lone_door.admin.GetIndex, admin_pb.GetIndexRequest(name="caches/faq/index"))
    assert (index.entry_count, index.segments[0].row_count, index.segments[0].live_count) == (3, 4, 3)


# Encoders


@pytest.fixture(scope="module")
def trained() -> list[Encoder]:
    """Two different encoders of 32 dimensions."""
    rows = np.random.default_rng(0).standard_normal((100, 32)).astype(np.float32)
    configs = [EncoderConfig(method="rotation", code_bits=64, label_bits=64, seed=seed) for seed in range(2)]
    return [train_encoder(rows, config=config).encoder for config in configs]


@pytest.fixture
def two_encoders(door_config: Config, door: Client, trained: list[Encoder]) -> list[str]:
    """Names of two candidates of the cache, the older one first."""
    engine = open_engine(door_config.store)
    with writing(engine) as connection:
        cache = read_cache(connection, "faq")
        for i, encoder in enumerate(trained):
            register_encoder(
                connection, cache, encoder, learning_state=None, watermark=0, now_ms=clock_ms() + i
            )
    engine.dispose()
    return [f"caches/faq/encoders/{encoder.encoder_id}" for encoder in trained]


def activate(client: Client, name: str) -> pb.Encoder:
    """Activate an encoder."""
    activated: pb.Encoder = client.call(
        client.admin.ActivateEncoder, admin_pb.ActivateEncoderRequest(name=name)
    )
    return activated


def list_encoders(client: Client, *, page_size: int = 0) -> list[pb.Encoder]:
    """The cache's encoders, newest first."""
    request = admin_pb.ListEncodersRequest(parent="caches/faq", page_size=page_size)
    return all_pages(client, client.admin.ListEncoders, request, "encoders")


def test_encoders_are_listed_newest_first(door: Client, two_encoders: list[str]) -> None:
    found = list_encoders(door, page_size=1)
    assert [encoder.name for encoder in found] == two_encoders[::-1]
    assert {(encoder.state, encoder.code_bits) for encoder in found} == {(pb.Encoder.STATE_CANDIDATE, 64)}


def test_activation_retires_the_one_before(door: Client, two_encoders: list[str]) -> None:
    for name in two_encoders:
        assert activate(door, name).state == pb.Encoder.STATE_ACTIVE
    states = [encoder.state for encoder in list_encoders(door)]
    assert states == [pb.Encoder.STATE_ACTIVE, pb.Encoder.STATE_RETIRED]
    assert get_cache(door).active_encoder == two_encoders[1]


def test_active_encoder_codes_what_is_stored(door: Client, two_encoders: list[str], vectors: Vectors) -> None:
    assert door.store("faq", "billing", embedding=vectors[0], response=b"x").entry.encoder == ""
    activate(door, two_encoders[0])
    assert door.store("faq", "billing", embedding=vectors[0], response=b"x").entry.encoder == two_encoders[0]


def test_rollback_returns_to_the_encoder_before(door: Client, two_encoders: list[str]) -> None:
    for name in two_encoders:
        activate(door, name)
    request = admin_pb.RollbackEncoderRequest(parent="caches/faq")
    assert door.call(door.admin.RollbackEncoder, request).name == two_encoders[0]
    assert get_cache(door).active_encoder == two_encoders[0]
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NO_PREVIOUS_ENCODER"):
        door.call(door.admin.RollbackEncoder, request)


def test_rollback_without_active_encoder_is_refused(lone_door: Client) -> None:
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NO_ACTIVE_ENCODER"):
        lone_door.call(lone_door.admin.RollbackEncoder, admin_pb.RollbackEncoderRequest(parent="caches/faq"))


def test_rejected_encoder_is_not_activated(
    door_config: Config, door: Client, two_encoders: list[str]
) -> None:
    encoder_id = two_encoders[0].rpartition("/")[2]
    engine = open_engine(door_config.store)
    with writing(engine) as connection:
        rejected = update(encoders).where(encoders.c.encoder_id == encoder_id)
        connection.execute(rejected.values(state="rejected", reason="worse"))
    engine.dispose()
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "ENCODER_REJECTED"):
        activate(door, two_encoders[0])
    listed = list_encoders(door)[1]
    assert (listed.state, listed.reason) == (pb.Encoder.STATE_REJECTED, "worse")


def test_entries_of_both_encoders_are_found(door: Client, two_encoders: list[str], vectors: Vectors) -> None:
    for i, name in enumerate(two_encoders):
        activate(door, name)
        door.store("faq", "billing", embedding=vectors[i] + vectors[9], response=b"%d" % i, scope="new")
    for i in range(2):
        answer = door.lookup("faq", "billing", embedding=vectors[i] + vectors[9], scope="new")
        assert answer.response == b"%d" % i


# Jobs


def create_job(client: Client) -> pb.Job:
    """Queue an update."""
    request = admin_pb.CreateJobRequest(parent="caches/faq", job=pb.Job(kind=pb.Job.KIND_UPDATE))
    made: pb.Job = client.call(client.admin.CreateJob, request)
    return made


def test_queued_job_is_returned_instead_of_a_second(door: Client) -> None:
    first = create_job(door)
    assert (first.state, first.kind) == (pb.Job.STATE_QUEUED, pb.Job.KIND_UPDATE)
    assert create_job(door) == first
    assert door.call(door.admin.GetJob, admin_pb.GetJobRequest(name=first.name)) == first


def test_learning_from_verdicts_is_a_job_beside_an_update(door: Client) -> None:
    update = create_job(door)
    request = admin_pb.CreateJobRequest(parent="caches/faq", job=pb.Job(kind=pb.Job.KIND_LEARN_PAIRS))
    learning = door.call(door.admin.CreateJob, request)
    assert (learning.state, learning.kind) == (pb.Job.STATE_QUEUED, pb.Job.KIND_LEARN_PAIRS)
    assert learning.name != update.name


def test_progress_of_a_job_is_seen_through_the_door(door: Client, door_config: Config) -> None:
    job = create_job(door)
    assert (job.stage, job.HasField("done_count"), job.HasField("total_count")) == ("", False, False)
    engine = open_engine(door_config.store)
    with writing(engine) as connection:
        leased = jobs.lease(connection, owner="w", now_ms=0, lease_ms=10**15)
        assert leased is not None
        jobs.record_progress(
            connection, leased, stage="learn", done=512, total=2000, now_ms=0, lease_ms=10**15
        )
    engine.dispose()
    running = door.call(door.admin.GetJob, admin_pb.GetJobRequest(name=job.name))
    assert (running.state, running.stage) == (pb.Job.STATE_RUNNING, "learn")
    assert (running.done_count, running.total_count) == (512, 2000)


def test_a_load_cannot_be_asked_for_and_is_listed_with_its_file(door: Client, door_config: Config) -> None:
    load = admin_pb.CreateJobRequest(parent="caches/faq", job=pb.Job(kind=pb.Job.KIND_LOAD))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_VALUE"):
        door.call(door.admin.CreateJob, load)
    engine = open_engine(door_config.store)
    with writing(engine) as connection:
        cache = read_cache(connection, "faq")
        jobs.enqueue(connection, cache.id, kind=jobs.LOAD, source="faq/billing/rows.npz", now_ms=0)
    engine.dispose()
    (job,) = door.call(door.admin.ListJobs, admin_pb.ListJobsRequest(parent="caches/faq")).jobs
    assert (job.kind, job.source) == (pb.Job.KIND_LOAD, "faq/billing/rows.npz")


def test_cancelled_job_has_ended(door: Client) -> None:
    job = create_job(door)
    request = admin_pb.CancelJobRequest(name=job.name)
    cancelled = door.call(door.admin.CancelJob, request)
    assert (cancelled.state, cancelled.HasField("end_time")) == (pb.Job.STATE_CANCELLED, True)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "JOB_FINISHED"):
        door.call(door.admin.CancelJob, request)


def test_jobs_are_listed_newest_first(door: Client) -> None:
    names = []
    for _ in range(3):
        names.append(create_job(door).name)
        door.call(door.admin.CancelJob, admin_pb.CancelJobRequest(name=names[-1]))
    request = admin_pb.ListJobsRequest(parent="caches/faq", page_size=2)
    found = all_pages(door, door.admin.ListJobs, request, "jobs")
    assert [job.name for job in found] == names[::-1]


def test_change_reaches_the_other_replica(
    config: Config,
    server: Server,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    vectors: Vectors,
) -> None:
    writer, reader = connect(server), connect(start_server(config))
    writer.create_cache("faq", dim=vectors.shape[1])
    writer.create_category("faq", "billing")
    seq = writer.store("faq", "billing", embedding=vectors[0], response=b"x").entry.seq

    def is_followed() -> bool:
        try:
            reader.lookup("faq", "billing", fingerprint="none")
        except NearhitError as error:
            assert error.code == grpc.StatusCode.NOT_FOUND
            return False
        return True

    eventually(is_followed)
    assert reader.lookup("faq", "billing", embedding=vectors[0], min_seq=seq).response == b"x"

"""Every bad input through the door: the status and reason that a caller gets, and that nothing changed."""

import base64
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from nearhit import Client
from nearhit.client import lookup_request, search_request, store_request
from nearhit.errors import NearhitError, to_error
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import search_service_pb2 as search_pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from refusals import refused

DIM = 32
UNIT = np.eye(1, DIM, dtype="<f4")[0]
VECTOR = UNIT.tobytes()
CATEGORY = "caches/faq/categories/billing"
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
NAN, INFINITY = float("nan"), float("inf")


class Case(NamedTuple):
    """A call and how it must be refused."""

    name: str
    method: str
    request: Message
    code: grpc.StatusCode
    reason: str


def method_of(client: Client, name: str) -> Callable[..., Any]:
    """The stub's method of that name."""
    for stub in (client.semantic_cache, client.search_service, client.admin):
        if hasattr(stub, name):
            found: Callable[..., Any] = getattr(stub, name)
            return found
    raise AssertionError(f"no method {name}")


def floats(*values: float) -> bytes:
    """Little-endian float32 of DIM dimensions that begin with the values."""
    padded = np.full(DIM, 0.5, dtype="<f4")
    padded[: len(values)] = values
    return padded.tobytes()


EMBEDDINGS = [
    ("of one dimension less", VECTOR[:-4], "DIMENSION_MISMATCH"),
    ("of one dimension more", VECTOR + VECTOR[:4], "DIMENSION_MISMATCH"),
    ("cut within a float", VECTOR[:-1], "INVALID_EMBEDDING"),
    ("with NaN", floats(NAN), "EMBEDDING_NOT_FINITE"),
    ("with infinity", floats(INFINITY), "EMBEDDING_NOT_FINITE"),
    ("with both infinities", floats(INFINITY, -INFINITY), "EMBEDDING_NOT_FINITE"),
    ("of zeros", bytes(4 * DIM), "EMBEDDING_ZERO"),
]


def embedding_cases() -> list[Case]:
    """Bad embeddings in lookups, stores and searches, alone and in batches."""
    cases = []
    for what, raw, reason in EMBEDDINGS:
        query = pb.Query(embedding=raw)
        lookup = cache_pb.LookupRequest(category=CATEGORY, query=query)
        search = search_pb.SearchRequest(parent="caches/faq", query=query)
        stored = cache_pb.StoreRequest(entry=pb.Entry(category=CATEGORY, embedding=raw))
        good_lookup = lookup_request("faq", "billing", embedding=UNIT)
        good_store = store_request("faq", "billing", embedding=UNIT, response=b"x")
        good_search = search_request("faq", embedding=UNIT)
        batches: list[tuple[str, Message]] = [
            ("Lookup", lookup),
            ("Search", search),
            ("Store", stored),
            ("BatchLookup", cache_pb.BatchLookupRequest(parent="caches/faq", requests=[good_lookup, lookup])),
            (
                "BatchSearch",
                search_pb.BatchSearchRequest(parent="caches/faq", requests=[good_search, search]),
            ),
            ("BatchStore", cache_pb.BatchStoreRequest(parent="caches/faq", requests=[good_store, stored])),
        ]
        cases += [Case(f"embedding {what}", method, request, INVALID, reason) for method, request in batches]
    return cases


BAD_IDS = ["", "..", "../faq", "UPPER", "a b", "a" * 64, "a\n", "a\0", "\N{LATIN SMALL LETTER E WITH ACUTE}"]
BAD_ENTRY_IDS = ["", "a b", "a" * 129, "e\n", "e\0", "e/f", "\N{SNOWMAN}"]


def name_cases() -> list[Case]:
    """Bad names wherever a name is taken."""
    cases = []
    for bad in BAD_IDS:
        cache, category = f"caches/{bad}", f"caches/faq/categories/{bad}"
        calls: list[tuple[str, Message]] = [
            ("CreateCache", admin_pb.CreateCacheRequest(cache_id=bad, cache=good_cache())),
            ("GetCache", admin_pb.GetCacheRequest(name=cache)),
            ("UpdateCache", admin_pb.UpdateCacheRequest(cache=pb.Cache(name=cache))),
            ("DeleteCache", admin_pb.DeleteCacheRequest(name=cache)),
            ("CreateCategory", admin_pb.CreateCategoryRequest(parent="caches/faq", category_id=bad)),
            ("CreateCategory", admin_pb.CreateCategoryRequest(parent=cache, category_id="c")),
            ("GetCategory", admin_pb.GetCategoryRequest(name=category)),
            ("ListCategories", admin_pb.ListCategoriesRequest(parent=cache)),
            ("UpdateCategory", admin_pb.UpdateCategoryRequest(category=pb.Category(name=category))),
            ("DeleteCategory", admin_pb.DeleteCategoryRequest(name=category)),
            ("GetIndex", admin_pb.GetIndexRequest(name=f"{cache}/index")),
            ("ListEncoders", admin_pb.ListEncodersRequest(parent=cache)),
            ("ActivateEncoder", admin_pb.ActivateEncoderRequest(name=f"caches/faq/encoders/{bad}")),
            ("RollbackEncoder", admin_pb.RollbackEncoderRequest(parent=cache)),
            ("CreateJob", admin_pb.CreateJobRequest(parent=cache, job=pb.Job(kind=pb.Job.KIND_UPDATE))),
            ("GetJob", admin_pb.GetJobRequest(name=f"caches/faq/jobs/{bad}")),
            ("ListJobs", admin_pb.ListJobsRequest(parent=cache)),
            ("CancelJob", admin_pb.CancelJobRequest(name=f"caches/faq/jobs/{bad}")),
            ("Lookup", cache_pb.LookupRequest(category=category, query=pb.Query(embedding=VECTOR))),
            ("Store", cache_pb.StoreRequest(entry=pb.Entry(category=category, embedding=VECTOR))),
            ("ListEntries", cache_pb.ListEntriesRequest(parent=cache)),
            ("ListEntries", cache_pb.ListEntriesRequest(parent=category)),
            ("Invalidate", cache_pb.InvalidateRequest(parent=cache, tags=["t"])),
            ("Invalidate", cache_pb.InvalidateRequest(parent="caches/faq", categories=[category])),
            ("Search", search_pb.SearchRequest(parent=cache, query=pb.Query(embedding=VECTOR))),
            ("BatchLookup", cache_pb.BatchLookupRequest(parent=cache)),
            ("BatchStore", cache_pb.BatchStoreRequest(parent=cache)),
            ("BatchSearch", search_pb.BatchSearchRequest(parent=cache)),
        ]
        cases += [
            Case(f"id {bad[:8]!r}", method, request, INVALID, "INVALID_NAME") for method, request in calls
        ]
    for bad in BAD_ENTRY_IDS:
        name = f"caches/faq/entries/{bad}"
        entry = pb.Entry(name=name, category=CATEGORY, embedding=VECTOR)
        replacing = pb.Entry(category=CATEGORY, embedding=VECTOR)
        entry_calls: list[tuple[str, Message]] = [
            ("GetEntry", cache_pb.GetEntryRequest(name=name)),
            ("DeleteEntry", cache_pb.DeleteEntryRequest(name=name)),
            ("Invalidate", cache_pb.InvalidateRequest(parent="caches/faq", entries=[name])),
            ("Store", cache_pb.StoreRequest(entry=entry)),
            ("Store", cache_pb.StoreRequest(entry=replacing, replace_entry=name)),
        ]
        cases += [
            Case(f"entry id {bad[:8]!r}", method, request, INVALID, "INVALID_NAME")
            for method, request in entry_calls
        ]
    return cases


def good_cache(**changes: Any) -> pb.Cache:
    """Settings that would be taken."""
    return pb.Cache(**({"modalities": [pb.Modality(modality="text", dim=DIM)]} | changes))


def cache_cases() -> list[Case]:
    """Bad settings of caches."""

    def create(what: str, reason: str, **changes: Any) -> Case:
        request = admin_pb.CreateCacheRequest(cache_id="new", cache=good_cache(**changes))
        return Case(what, "CreateCache", request, INVALID, reason)

    text = pb.Modality(modality="text", dim=DIM)
    return [
        create("no modality", "INVALID_MODALITY", modalities=[]),
        create("modality twice", "INVALID_MODALITY", modalities=[text, text]),
        create("65 modalities", "INVALID_MODALITY", modalities=many_modalities(65)),
        create("modality without name", "INVALID_NAME", modalities=[pb.Modality(dim=DIM)]),
        create("modality in upper case", "INVALID_NAME", modalities=[pb.Modality(modality="A", dim=DIM)]),
        create("no dimensions", "INVALID_DIM", modalities=[pb.Modality(modality="text")]),
        create("negative dimensions", "INVALID_DIM", modalities=[pb.Modality(modality="text", dim=-1)]),
        create("too many dimensions", "INVALID_DIM", modalities=[pb.Modality(modality="text", dim=8193)]),
        create(
            "embedder id too large",
            "FIELD_TOO_LARGE",
            modalities=[pb.Modality(modality="text", dim=DIM, embedder_id="x" * 1025)],
        ),
        create(
            "NUL in an embedder id",
            "INVALID_VALUE",
            modalities=[pb.Modality(modality="text", dim=DIM, embedder_id="x\0")],
        ),
        create("bits off the step", "INVALID_BITS", code_bits=100),
        create("too few bits", "INVALID_BITS", code_bits=-64),
        create("too many bits", "INVALID_BITS", code_bits=1088),
        create("too many label bits", "INVALID_BITS", label_bits=2048),
        create("description too long", "INVALID_VALUE", description="x" * 257),
        create("NUL in a description", "INVALID_VALUE", description="a\0b"),
        Case(
            "description too long in an update",
            "UpdateCache",
            admin_pb.UpdateCacheRequest(cache=pb.Cache(name="caches/faq", description="x" * 257)),
            INVALID,
            "INVALID_VALUE",
        ),
    ]


def many_modalities(count: int) -> list[pb.Modality]:
    """Different modalities."""
    return [pb.Modality(modality=f"m{i}", dim=1) for i in range(count)]


def policy_cases() -> list[Case]:
    """Bad policies, at creation and in an update."""
    bad: list[tuple[str, str, pb.Category]] = [
        ("threshold below 0", "INVALID_THRESHOLD", pb.Category(threshold=-0.01)),
        ("threshold over 2", "INVALID_THRESHOLD", pb.Category(threshold=2.01)),
        ("threshold NaN", "INVALID_THRESHOLD", pb.Category(threshold=NAN)),
        ("threshold infinite", "INVALID_THRESHOLD", pb.Category(threshold=INFINITY)),
        ("zero ttl", "INVALID_TTL", pb.Category(ttl=Duration())),
        ("negative ttl", "INVALID_TTL", pb.Category(ttl=Duration(seconds=-1))),
        ("ttl of mixed signs", "INVALID_TTL", pb.Category(ttl=Duration(seconds=1, nanos=-2_000_000_000))),
        ("ttl over 10,000 years", "INVALID_TTL", pb.Category(ttl=Duration(seconds=2**62))),
        ("negative max_entries", "INVALID_QUOTA", pb.Category(max_entries=-1)),
        ("negative max_bytes", "INVALID_QUOTA", pb.Category(max_bytes=-1)),
        ("unknown eviction", "UNKNOWN_VALUE", pb.Category(eviction=9)),  # type: ignore[arg-type]
        ("unknown ttl_mode", "UNKNOWN_VALUE", pb.Category(ttl_mode=9)),  # type: ignore[arg-type]
    ]
    cases = []
    for what, reason, category in bad:
        create = admin_pb.CreateCategoryRequest(parent="caches/faq", category_id="new", category=category)
        cases.append(Case(what, "CreateCategory", create, INVALID, reason))
        named = pb.Category()
        named.CopyFrom(category)
        named.name = CATEGORY
        changed = admin_pb.UpdateCategoryRequest(category=named)
        cases.append(Case(what, "UpdateCategory", changed, INVALID, reason))
    return cases


def entry_cases() -> list[Case]:
    """Bad entries, in a store and in a batch beside a good one."""
    bad: list[tuple[str, str, dict[str, Any]]] = [
        ("text too large", "FIELD_TOO_LARGE", {"text": "x" * (64 * 1024 + 1)}),
        ("scope too large", "FIELD_TOO_LARGE", {"scope": "x" * 1025}),
        ("scope too large in bytes", "FIELD_TOO_LARGE", {"scope": "\N{SNOWMAN}" * 342}),
        ("fingerprint too large", "FIELD_TOO_LARGE", {"fingerprint": "x" * 1025}),
        ("source too large", "FIELD_TOO_LARGE", {"source": "x" * 1025}),
        ("embedder_id too large", "FIELD_TOO_LARGE", {"embedder_id": "x" * 1025}),
        ("content type too large", "FIELD_TOO_LARGE", {"content_type": "x" * 256}),
        ("too many tags", "FIELD_TOO_LARGE", {"tags": [f"t{i}" for i in range(33)]}),
        ("too many labels", "FIELD_TOO_LARGE", {"labels": [f"t{i}" for i in range(33)]}),
        ("tag too long", "INVALID_VALUE", {"tags": ["x" * 129]}),
        ("empty tag", "INVALID_VALUE", {"tags": [""]}),
        ("label too long", "INVALID_VALUE", {"labels": ["x" * 129]}),
        ("empty label", "INVALID_VALUE", {"labels": ["a", ""]}),
        ("NUL in text", "INVALID_VALUE", {"text": "a\0b"}),
        ("NUL in scope", "INVALID_VALUE", {"scope": "\0"}),
        ("NUL in fingerprint", "INVALID_VALUE", {"fingerprint": "a\0"}),
        ("NUL in source", "INVALID_VALUE", {"source": "a\0"}),
        ("NUL in content type", "INVALID_VALUE", {"content_type": "a\0"}),
        ("NUL in embedder_id", "INVALID_VALUE", {"embedder_id": "a\0"}),
        ("NUL in a tag", "INVALID_VALUE", {"tags": ["a\0"]}),
        ("NUL in a label", "INVALID_VALUE", {"labels": ["a\0"]}),
        ("response too large", "RESPONSE_TOO_LARGE", {"response": bytes(100_001)}),
        ("zero ttl", "INVALID_TTL", {"ttl": Duration()}),
        ("ttl below a millisecond", "INVALID_TTL", {"ttl": Duration(nanos=999_999)}),
        ("negative ttl", "INVALID_TTL", {"ttl": Duration(seconds=-5)}),
        ("ttl over 10,000 years", "INVALID_TTL", {"ttl": Duration(seconds=2**62)}),
        ("unknown ttl_mode", "UNKNOWN_VALUE", {"ttl_mode": 9}),
        ("unknown modality", "UNKNOWN_MODALITY", {"modality": "image"}),
        ("neither embedding nor text", "NOTHING_TO_EMBED", {"embedding": b""}),
        ("blank text alone", "NOTHING_TO_EMBED", {"embedding": b"", "text": " \n"}),
        ("name of another cache", "PARENT_MISMATCH", {"name": "caches/other/entries/e"}),
        ("unknown category", "CATEGORY_NOT_FOUND", {"category": "caches/faq/categories/none"}),
        ("unknown cache", "CACHE_NOT_FOUND", {"category": "caches/none/categories/billing"}),
    ]
    cases = []
    for what, reason, changes in bad:
        entry = pb.Entry(**({"category": CATEGORY, "embedding": VECTOR, "response": b"x"} | changes))
        code = NOT_FOUND if reason.endswith("NOT_FOUND") else INVALID
        request = cache_pb.StoreRequest(entry=entry)
        cases.append(Case(what, "Store", request, code, reason))
        if reason != "CACHE_NOT_FOUND":
            good = store_request("faq", "billing", embedding=UNIT, response=b"x")
            batch = cache_pb.BatchStoreRequest(parent="caches/faq", requests=[good, request, good])
            cases.append(Case(what, "BatchStore", batch, code, reason))
    good_entry = pb.Entry(category=CATEGORY, embedding=VECTOR)
    requests = [
        ("request id too large", "FIELD_TOO_LARGE", {"request_id": "x" * 65}),
        ("NUL in a request id", "INVALID_VALUE", {"request_id": "a\0"}),
        ("replaces an entry of another cache", "PARENT_MISMATCH", {"replace_entry": "caches/b/entries/e"}),
    ]
    for what, reason, fields in requests:
        stored = cache_pb.StoreRequest(entry=good_entry, **fields)  # type: ignore[arg-type]
        cases.append(Case(what, "Store", stored, INVALID, reason))
    return cases


def read_cases() -> list[Case]:
    """Bad lookups, searches, listings and invalidations."""
    query = pb.Query(embedding=VECTOR)

    def lookup(what: str, reason: str, code: grpc.StatusCode = INVALID, **fields: Any) -> Case:
        request = cache_pb.LookupRequest(**({"category": CATEGORY, "query": query} | fields))
        return Case(what, "Lookup", request, code, reason)

    def search(what: str, reason: str, code: grpc.StatusCode = INVALID, **fields: Any) -> Case:
        request = search_pb.SearchRequest(**({"parent": "caches/faq", "query": query} | fields))
        return Case(what, "Search", request, code, reason)

    def invalidate(what: str, reason: str, code: grpc.StatusCode = INVALID, **fields: Any) -> Case:
        request = cache_pb.InvalidateRequest(parent="caches/faq", **fields)
        return Case(what, "Invalidate", request, code, reason)

    image = pb.Query(embedding=VECTOR, modality="image")
    text = pb.Query(text="never stored")
    by_fingerprint = {"fingerprint": "k", "mode": cache_pb.LOOKUP_MODE_BYPASS}
    return [
        lookup("nothing to look up", "NOTHING_TO_LOOK_UP", query=None),
        lookup("blank text", "NOTHING_TO_LOOK_UP", query=pb.Query(text=" ")),
        lookup("text without embedder", "EMBEDDER_UNAVAILABLE", UNAVAILABLE, query=text),
        lookup("unknown mode", "UNKNOWN_VALUE", mode=9),
        lookup("unknown modality", "UNKNOWN_MODALITY", query=image),
        lookup("unknown modality in a bypass", "UNKNOWN_MODALITY", query=image, **by_fingerprint),
        lookup("NUL modality", "UNKNOWN_MODALITY", query=pb.Query(embedding=VECTOR, modality="\0")),
        lookup("huge modality", "UNKNOWN_MODALITY", query=pb.Query(embedding=VECTOR, modality="x" * 100_000)),
        lookup("threshold below 0", "INVALID_THRESHOLD", threshold=-1e-9),
        lookup("threshold over 2", "INVALID_THRESHOLD", threshold=2.0001),
        lookup("threshold NaN", "INVALID_THRESHOLD", threshold=NAN),
        lookup("negative min_seq", "INVALID_SEQ", min_seq=-1),
        lookup("scope too large", "FIELD_TOO_LARGE", scope="x" * 1025),
        lookup("fingerprint too large", "FIELD_TOO_LARGE", fingerprint="x" * 1025),
        lookup("text too large", "FIELD_TOO_LARGE", query=pb.Query(text="x" * (64 * 1024 + 1))),
        lookup("NUL in text", "INVALID_VALUE", query=pb.Query(text="a\0b")),
        lookup("NUL in scope", "INVALID_VALUE", scope="\0"),
        lookup("unknown category", "CATEGORY_NOT_FOUND", NOT_FOUND, category="caches/faq/categories/none"),
        lookup("unknown cache", "CACHE_NOT_FOUND", NOT_FOUND, category="caches/none/categories/billing"),
        lookup("huge name", "INVALID_NAME", category="x" * 1_000_000),
        lookup("name of wide characters", "INVALID_NAME", category="\N{SNOWMAN}" * 5_000),
        search("no query", "NOTHING_TO_EMBED", query=None),
        search("text without embedder", "EMBEDDER_UNAVAILABLE", UNAVAILABLE, query=text),
        search("negative top_k", "INVALID_TOP_K", top_k=-1),
        search("top_k too large", "INVALID_TOP_K", top_k=1001),
        search("unknown path", "UNKNOWN_VALUE", path=9),
        search("unknown code kind", "UNKNOWN_VALUE", code_kind=9),
        search("unknown view", "UNKNOWN_VALUE", view=9),
        search("min_recall below 0", "INVALID_MIN_RECALL", min_recall=-1e-9),
        search("min_recall over 1", "INVALID_MIN_RECALL", min_recall=1.0001),
        search("min_recall NaN", "INVALID_MIN_RECALL", min_recall=NAN),
        search("negative min_seq", "INVALID_SEQ", min_seq=-1),
        search("unknown category", "CATEGORY_NOT_FOUND", NOT_FOUND, categories=["caches/faq/categories/no"]),
        search("category of another cache", "PARENT_MISMATCH", categories=["caches/other/categories/a"]),
        search("empty tag", "INVALID_VALUE", tags=[""]),
        search("too many tags", "FIELD_TOO_LARGE", tags=[f"t{i}" for i in range(33)]),
        search("NUL in a tag", "INVALID_VALUE", tags=["\0"]),
        search("unknown cache", "CACHE_NOT_FOUND", NOT_FOUND, parent="caches/none"),
        search("unknown modality", "UNKNOWN_MODALITY", query=image),
        invalidate("no selector", "NO_SELECTOR"),
        invalidate("no selector in a dry run", "NO_SELECTOR", dry_run=True),
        invalidate(
            "unknown category", "CATEGORY_NOT_FOUND", NOT_FOUND, categories=["caches/faq/categories/x"]
        ),
        invalidate("entry of another cache", "PARENT_MISMATCH", entries=["caches/other/entries/e"]),
        invalidate("empty tag", "INVALID_VALUE", tags=[""]),
        invalidate("empty source", "INVALID_VALUE", sources=[""]),
        invalidate("NUL in a tag", "INVALID_VALUE", tags=["a\0"]),
        invalidate("NUL in a source", "INVALID_VALUE", sources=["a\0"]),
        invalidate("source too large", "FIELD_TOO_LARGE", sources=["x" * 1025]),
        invalidate("too many sources", "FIELD_TOO_LARGE", sources=[f"s{i}" for i in range(10_001)]),
        invalidate("too many entries", "FIELD_TOO_LARGE", entries=["caches/faq/entries/e"] * 10_001),
        Case(
            "unknown view",
            "GetEntry",
            cache_pb.GetEntryRequest(name="caches/faq/entries/e", view=9),  # type: ignore[arg-type]
            INVALID,
            "UNKNOWN_VALUE",
        ),
        Case(
            "unknown view",
            "ListEntries",
            cache_pb.ListEntriesRequest(parent="caches/faq", view=9),  # type: ignore[arg-type]
            INVALID,
            "UNKNOWN_VALUE",
        ),
    ]


def unknown_cases() -> list[Case]:
    """What does not exist."""
    return [
        Case("unknown", method, request, NOT_FOUND, reason)
        for method, reason, request in (
            ("GetCache", "CACHE_NOT_FOUND", admin_pb.GetCacheRequest(name="caches/none")),
            (
                "UpdateCache",
                "CACHE_NOT_FOUND",
                admin_pb.UpdateCacheRequest(cache=pb.Cache(name="caches/none")),
            ),
            ("DeleteCache", "CACHE_NOT_FOUND", admin_pb.DeleteCacheRequest(name="caches/none")),
            (
                "CreateCategory",
                "CACHE_NOT_FOUND",
                admin_pb.CreateCategoryRequest(parent="caches/none", category_id="c"),
            ),
            ("GetCategory", "CATEGORY_NOT_FOUND", admin_pb.GetCategoryRequest(name=CATEGORY + "x")),
            ("ListCategories", "CACHE_NOT_FOUND", admin_pb.ListCategoriesRequest(parent="caches/none")),
            (
                "UpdateCategory",
                "CATEGORY_NOT_FOUND",
                admin_pb.UpdateCategoryRequest(category=pb.Category(name=CATEGORY + "x")),
            ),
            ("DeleteCategory", "CATEGORY_NOT_FOUND", admin_pb.DeleteCategoryRequest(name=CATEGORY + "x")),
            ("GetIndex", "CACHE_NOT_FOUND", admin_pb.GetIndexRequest(name="caches/none/index")),
            ("ListEncoders", "CACHE_NOT_FOUND", admin_pb.ListEncodersRequest(parent="caches/none")),
            (
                "ActivateEncoder",
                "ENCODER_NOT_FOUND",
                admin_pb.ActivateEncoderRequest(name="caches/faq/encoders/none"),
            ),
            ("RollbackEncoder", "CACHE_NOT_FOUND", admin_pb.RollbackEncoderRequest(parent="caches/none")),
            (
                "CreateJob",
                "CACHE_NOT_FOUND",
                admin_pb.CreateJobRequest(parent="caches/none", job=pb.Job(kind=pb.Job.KIND_UPDATE)),
            ),
            ("GetJob", "JOB_NOT_FOUND", admin_pb.GetJobRequest(name="caches/faq/jobs/none")),
            ("ListJobs", "CACHE_NOT_FOUND", admin_pb.ListJobsRequest(parent="caches/none")),
            ("CancelJob", "JOB_NOT_FOUND", admin_pb.CancelJobRequest(name="caches/faq/jobs/none")),
            ("GetEntry", "ENTRY_NOT_FOUND", cache_pb.GetEntryRequest(name="caches/faq/entries/none")),
            ("GetEntry", "CACHE_NOT_FOUND", cache_pb.GetEntryRequest(name="caches/none/entries/none")),
            ("ListEntries", "CACHE_NOT_FOUND", cache_pb.ListEntriesRequest(parent="caches/none")),
            ("ListEntries", "CATEGORY_NOT_FOUND", cache_pb.ListEntriesRequest(parent=CATEGORY + "x")),
            ("DeleteEntry", "ENTRY_NOT_FOUND", cache_pb.DeleteEntryRequest(name="caches/faq/entries/none")),
            ("Invalidate", "CACHE_NOT_FOUND", cache_pb.InvalidateRequest(parent="caches/none", tags=["t"])),
        )
    ]


def batch_cases() -> list[Case]:
    """Bad sizes and mixed caches of batches."""
    lookup = lookup_request("faq", "billing", embedding=UNIT)
    stored = store_request("faq", "billing", embedding=UNIT, response=b"x")
    search = search_request("faq", embedding=UNIT)
    foreign_lookup = lookup_request("other", "billing", embedding=UNIT)
    foreign_store = store_request("other", "billing", embedding=UNIT, response=b"x")
    foreign_search = search_request("other", embedding=UNIT)
    kinds: list[tuple[str, type[Any], Any, Any]] = [
        ("BatchLookup", cache_pb.BatchLookupRequest, lookup, foreign_lookup),
        ("BatchStore", cache_pb.BatchStoreRequest, stored, foreign_store),
        ("BatchSearch", search_pb.BatchSearchRequest, search, foreign_search),
    ]
    cases = []
    for method, kind, good, foreign in kinds:
        for what, reason, requests in (
            ("empty batch", "INVALID_BATCH_SIZE", []),
            ("batch too large", "INVALID_BATCH_SIZE", [good] * 257),
            ("mixed caches", "PARENT_MISMATCH", [good, foreign]),
        ):
            request = kind(parent="caches/faq", requests=requests)
            cases.append(Case(what, method, request, INVALID, reason))
        unknown = kind(parent="caches/other", requests=[foreign])
        cases.append(Case("unknown cache", method, unknown, NOT_FOUND, "CACHE_NOT_FOUND"))
    twice = store_request("faq", "billing", embedding=UNIT, response=b"x", request_id="r")
    request = cache_pb.BatchStoreRequest(parent="caches/faq", requests=[twice, twice])
    cases.append(Case("request id twice", "BatchStore", request, INVALID, "REQUEST_ID_REUSED"))
    named = store_request("faq", "billing", embedding=UNIT, response=b"x", entry="e")
    request = cache_pb.BatchStoreRequest(parent="caches/faq", requests=[named, named])
    exists = grpc.StatusCode.ALREADY_EXISTS
    cases.append(Case("id twice", "BatchStore", request, exists, "ENTRY_EXISTS"))
    return cases


def token(*parts: object) -> str:
    """A page token that no server made."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


def page_cases() -> list[Case]:
    """Bad page sizes and tokens of every listing."""
    listings: list[tuple[str, type[Any], dict[str, str], str]] = [
        ("ListCaches", admin_pb.ListCachesRequest, {}, "caches"),
        ("ListCategories", admin_pb.ListCategoriesRequest, {"parent": "caches/faq"}, "caches/faq/categories"),
        ("ListEncoders", admin_pb.ListEncodersRequest, {"parent": "caches/faq"}, "caches/faq/encoders"),
        ("ListJobs", admin_pb.ListJobsRequest, {"parent": "caches/faq"}, "caches/faq/jobs"),
        ("ListEntries", cache_pb.ListEntriesRequest, {"parent": "caches/faq"}, "caches/faq"),
    ]
    cases = []
    for method, kind, fields, listing in listings:
        request = kind(page_size=-1, **fields)
        cases.append(Case("negative page size", method, request, INVALID, "INVALID_PAGE_SIZE"))
        for bad in (
            "x",
            "\N{SNOWMAN}",
            token(),
            token(listing),
            token("another", "1"),
            token(listing, 1),
            token(listing, None),
            base64.urlsafe_b64encode(b"[" * 50_000).decode(),
            base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        ):
            request = kind(page_token=bad, **fields)
            cases.append(Case(f"page token {bad[:8]!r}", method, request, INVALID, "INVALID_PAGE_TOKEN"))
    for bad in ("a", "", "1.5", "-1", "9" * 30, "9" * 5000):
        request = cache_pb.ListEntriesRequest(parent="caches/faq", page_token=token("caches/faq", bad))
        cases.append(
            Case(f"page token after {bad[:8]!r}", "ListEntries", request, INVALID, "INVALID_PAGE_TOKEN")
        )
    return cases


def other_cases() -> list[Case]:
    """What is left."""

    def judge(what: str, reason: str, lookup_token: str, verdict: int) -> Case:
        request = cache_pb.RecordFeedbackRequest(lookup_token=lookup_token, verdict=verdict)  # type: ignore[arg-type]
        return Case(what, "RecordFeedback", request, INVALID, reason)

    return [
        judge("no verdict", "UNKNOWN_VALUE", "x", 0),
        judge("unknown verdict", "UNKNOWN_VALUE", "x", 9),
        judge("no token", "INVALID_LOOKUP_TOKEN", "", 1),
        judge("token of wide characters", "INVALID_LOOKUP_TOKEN", "\N{SNOWMAN}", 1),
        judge("token cut", "INVALID_LOOKUP_TOKEN", "AAAA", 1),
        judge("token of zeros", "INVALID_LOOKUP_TOKEN", "A" * 200, 1),
        Case(
            "job without kind",
            "CreateJob",
            admin_pb.CreateJobRequest(parent="caches/faq"),
            INVALID,
            "UNKNOWN_VALUE",
        ),
        Case(
            "job of unknown kind",
            "CreateJob",
            admin_pb.CreateJobRequest(parent="caches/faq", job=pb.Job(kind=9)),  # type: ignore[arg-type]
            INVALID,
            "UNKNOWN_VALUE",
        ),
        Case("index name", "GetIndex", admin_pb.GetIndexRequest(name="caches/faq"), INVALID, "INVALID_NAME"),
        Case(
            "huge mask path",
            "UpdateCategory",
            admin_pb.UpdateCategoryRequest(
                category=pb.Category(name=CATEGORY), update_mask=FieldMask(paths=["x" * 100_000])
            ),
            INVALID,
            "INVALID_MASK",
        ),
    ]


CASES = [
    *embedding_cases(),
    *cache_cases(),
    *policy_cases(),
    *entry_cases(),
    *read_cases(),
    *unknown_cases(),
    *batch_cases(),
    *page_cases(),
    *other_cases(),
    *name_cases(),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}-{case.name!a}")
def test_bad_input_is_refused(still_client: Client, case: Case) -> None:
    with refused(case.code, case.reason):
        still_client.call(method_of(still_client, case.method), case.request)


def test_refused_calls_changed_nothing(still_client: Client) -> None:
    for case in CASES:
        with pytest.raises(NearhitError):
            still_client.call(method_of(still_client, case.method), case.request)
    cache = still_client.call(still_client.admin.GetCache, admin_pb.GetCacheRequest(name="caches/faq"))
    assert (cache.seq, cache.etag, cache.description) == (0, "1", "")
    assert [
        cache.name
        for cache in still_client.call(still_client.admin.ListCaches, admin_pb.ListCachesRequest()).caches
    ] == ["caches/faq"]
    listed = still_client.call(
        still_client.admin.ListCategories, admin_pb.ListCategoriesRequest(parent="caches/faq")
    )
    assert [category.etag for category in listed.categories] == ["1"]
    assert list(still_client.list_entries("faq")) == []


def test_error_has_the_wire_form_of_google_rpc(still_client: Client) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        still_client.semantic_cache.Lookup(
            cache_pb.LookupRequest(category=CATEGORY, query=pb.Query(embedding=VECTOR[:-4]))
        )
    error: Any = raised.value
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], error.details())
    assert (info.reason, info.domain) == ("DIMENSION_MISMATCH", "nearhit")
    assert dict(info.metadata) == {"expected": "32", "got": "31"}


def test_client_reads_reason_and_metadata(still_client: Client) -> None:
    with pytest.raises(NearhitError) as raised:
        still_client.store("faq", "billing", embedding=UNIT, response=bytes(100_001))
    assert raised.value.reason == "RESPONSE_TOO_LARGE"
    assert raised.value.metadata == {"size_bytes": "100001", "max_bytes": "100000"}


def test_embedding_of_another_embedder_is_refused(lone_door: Client) -> None:
    lone_door.create_cache("strict", dim=DIM, embedder_id="model-a")
    lone_door.create_category("strict", "c")
    query = pb.Query(embedding=VECTOR, embedder_id="model-b")
    lookup = cache_pb.LookupRequest(category="caches/strict/categories/c", query=query)
    with refused(INVALID, "EMBEDDER_MISMATCH"):
        lone_door.call(lone_door.semantic_cache.Lookup, lookup)
    with refused(INVALID, "EMBEDDER_MISMATCH"):
        lone_door.store("strict", "c", embedding=UNIT, embedder_id="model-b", response=b"x")
    assert lone_door.store("strict", "c", embedding=UNIT, embedder_id="model-a", response=b"x").entry.seq == 1
    stored = lone_door.store("strict", "c", embedding=UNIT, response=b"x")
    assert stored.entry.embedder_id == "model-a"


def test_embeddings_go_on_where_texts_cannot_be_embedded(lone_door: Client) -> None:
    with refused(UNAVAILABLE, "EMBEDDER_UNAVAILABLE"):
        lone_door.store("faq", "billing", text="how", response=b"x")
    assert list(lone_door.list_entries("faq")) == []
    lone_door.store("faq", "billing", text="how", embedding=UNIT, response=b"x")
    with refused(UNAVAILABLE, "EMBEDDER_UNAVAILABLE"):
        lone_door.lookup("faq", "billing", text="why")
    assert lone_door.lookup("faq", "billing", embedding=UNIT).response == b"x"
    assert lone_door.lookup("faq", "billing", text="how").response == b"x"


def test_taken_id_is_refused(door: Client) -> None:
    door.store("faq", "billing", embedding=UNIT, entry="e", response=b"old")
    with refused(grpc.StatusCode.ALREADY_EXISTS, "ENTRY_EXISTS"):
        door.store("faq", "billing", embedding=UNIT, entry="e", response=b"new")
    assert door.get_entry("faq", "e", full=True).response == b"old"


@pytest.mark.parametrize(
    "bad",
    [
        {"embedding": VECTOR[:-4]},
        {"name": "caches/faq/entries/taken"},
        {"response": bytes(100_001)},
        {"category": "caches/faq/categories/none"},
    ],
)
def test_refused_batch_stores_nothing(door: Client, bad: dict[str, Any]) -> None:
    door.store("faq", "billing", embedding=UNIT, entry="taken", response=b"x")
    good = [store_request("faq", "billing", embedding=UNIT, response=b"x", entry=f"e{i}") for i in range(3)]
    wrong = cache_pb.StoreRequest(entry=pb.Entry(**({"category": CATEGORY, "embedding": VECTOR} | bad)))
    with pytest.raises(NearhitError):
        door.batch_store("faq", [*good, wrong])
    assert [entry.name for entry in door.list_entries("faq")] == ["caches/faq/entries/taken"]
    assert door.call(door.admin.GetCategory, admin_pb.GetCategoryRequest(name=CATEGORY)).entry_count == 1


def test_entry_larger_than_its_quota_is_refused(door: Client) -> None:
    door.update_category("faq", "billing", max_bytes=100)
    door.store("faq", "billing", embedding=UNIT, entry="kept", response=b"x")
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"):
        door.store("faq", "billing", embedding=UNIT, response=bytes(100))
    assert [entry.name for entry in door.list_entries("faq")] == ["caches/faq/entries/kept"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": ""}, "INVALID_NAME"),
        ({"category": "billing"}, "INVALID_NAME"),
        ({"embedding": b""}, "NOTHING_TO_EMBED"),
        ({"embedding": VECTOR[:-4]}, "DIMENSION_MISMATCH"),
        ({"create_time": Timestamp(seconds=2**62)}, "INVALID_TIME"),
        ({"create_time": Timestamp(seconds=-(2**62))}, "INVALID_TIME"),
        ({"expire_time": Timestamp(seconds=2**62)}, "INVALID_TIME"),
    ],
)
def test_bad_import_is_refused(door: Client, changes: dict[str, Any], reason: str) -> None:
    good = {"name": "caches/x/entries/e", "category": "caches/x/categories/billing", "embedding": VECTOR}
    with refused(INVALID, reason):
        door.import_entries("faq", [pb.Entry(**(good | changes))])
    assert list(door.list_entries("faq")) == []


def test_import_and_export_of_unknown_caches_are_refused(still_client: Client) -> None:
    entry = pb.Entry(name="caches/x/entries/e", category=CATEGORY, embedding=VECTOR)
    with refused(NOT_FOUND, "CACHE_NOT_FOUND"):
        still_client.import_entries("none", [entry])
    with refused(NOT_FOUND, "CACHE_NOT_FOUND"):
        list(still_client.export_entries("none"))
    with refused(INVALID, "INVALID_NAME"):
        list(still_client.export_entries("faq", category="../x"))


def all_methods() -> list[tuple[str, str]]:
    """Path of every method of every service, and the channel's method for its kind, such as unary_stream."""
    files = (cache_pb.DESCRIPTOR, search_pb.DESCRIPTOR, admin_pb.DESCRIPTOR)
    return [
        (
            f"/{service.full_name}/{method.name}",
            f"{'stream' if method.client_streaming else 'unary'}_"
            f"{'stream' if method.server_streaming else 'unary'}",
        )
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
    ]


@pytest.mark.parametrize("raw", [b"\xff\xff\xff\xff", b"\x0a\x05ab"], ids=["no-tag", "cut"])
@pytest.mark.parametrize(("path", "kind"), all_methods())
def test_malformed_message_is_the_callers_mistake(
    still_client: Client, raw: bytes, path: str, kind: str
) -> None:
    # The stubs cannot send bytes that are no message.
    method = getattr(still_client._channel, kind)(path)
    with refused(INVALID, "MALFORMED_REQUEST"):
        try:
            list(method(iter([raw]) if kind.startswith("stream") else raw, timeout=5))
        except grpc.RpcError as error:
            raise to_error(error) from error
    assert list(still_client.list_entries("faq")) == []


def test_string_that_is_not_utf8_is_the_callers_mistake(still_client: Client) -> None:
    method = still_client._channel.unary_unary("/nearhit.v1.AdminService/GetCache")
    with refused(INVALID, "MALFORMED_REQUEST"):
        try:
            method(b"\x0a\x02\xc3\x28", timeout=5)
        except grpc.RpcError as error:
            raise to_error(error) from error


def test_malformed_message_within_a_stream_stores_nothing_of_its_batch(door: Client) -> None:
    entry = pb.Entry(name="caches/x/entries/e", category=CATEGORY, embedding=VECTOR)
    good = cache_pb.ImportEntriesRequest(parent="caches/faq", entry=entry).SerializeToString()
    entry.name = "caches/x/entries/e2"
    second = cache_pb.ImportEntriesRequest(entry=entry).SerializeToString()
    method = door._channel.stream_unary("/nearhit.v1.SemanticCacheService/ImportEntries")
    with refused(INVALID, "MALFORMED_REQUEST"):
        try:
            method(iter([good, second, b"\xff", second]), timeout=5)
        except grpc.RpcError as error:
            raise to_error(error) from error
    assert [entry.name for entry in door.list_entries("faq")] == ["caches/faq/entries/e"]


def test_largest_allowed_values_are_taken(door: Client) -> None:
    stored = door.store(
        "faq",
        "billing",
        embedding=UNIT,
        entry="e" * 128,
        response=bytes(100_000),
        text="x" * (64 * 1024),
        scope="s" * 1024,
        fingerprint="f" * 1024,
        source="o" * 1024,
        content_type="\N{SNOWMAN}" * 255,
        request_id="\N{SNOWMAN}" * 64,
        tags=[f"{i:0127}\N{SNOWMAN}" for i in range(32)],
        labels=[f"{i:0127}\N{SNOWMAN}" for i in range(32)],
        ttl=timedelta(days=365_000),
    )
    assert stored.entry == door.get_entry("faq", "e" * 128)
    copied = list(door.export_entries("faq"))
    door.delete_entry("faq", "e" * 128)
    assert door.import_entries("faq", copied).stored_count == 1


def test_unknown_method_leaves_the_server_up(still_client: Client) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        still_client._channel.unary_unary("/nearhit.v1.SemanticCacheService/Absent")(b"")
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert list(still_client.list_entries("faq")) == []

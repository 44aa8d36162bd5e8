"""Reading, listing, deleting, invalidating, exporting and importing entries through the door."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import grpc
import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from nearhit import Client
from nearhit.client import store_request
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray
from refusals import refused

from service.config import Config
from service.server import Server

Vectors = NDArray[np.float32]


def stored_rows(client: Client, vectors: Vectors, *, count: int, category: str = "billing") -> list[str]:
    """Store entries e0, e1, ... and return their ids."""
    requests = [
        store_request("faq", category, embedding=vectors[i], entry=f"e{i}", response=b"%d" % i)
        for i in range(count)
    ]
    client.batch_store("faq", requests)
    return [f"e{i}" for i in range(count)]


def id_of(entry: pb.Entry) -> str:
    """The {entry} of its name."""
    return entry.name.rpartition("/")[2]


def everything_of_an_entry(vectors: Vectors) -> dict[str, object]:
    """Every field that a store takes."""
    return {
        "embedding": vectors[0],
        "entry": "e-1",
        "response": b"\x00answer\xff",
        "text": "How do I pay? \N{SNOWMAN}",
        "content_type": "application/json",
        "scope": "model-a",
        "fingerprint": "own-key",
        "labels": ["pay", "card"],
        "tags": ["b", "a", "b", "Z"],
        "source": "doc/7",
        "ttl": timedelta(hours=2),
        "ttl_mode": pb.TTL_MODE_SLIDING,
        "embedder_id": "model-x",
    }


def test_stored_entry_is_read_back_whole(door: Client, vectors: Vectors) -> None:
    door.store("faq", "billing", **everything_of_an_entry(vectors))  # type: ignore[arg-type]
    entry = door.get_entry("faq", "e-1", full=True)
    assert entry.response == b"\x00answer\xff"
    assert (entry.text, entry.content_type) == ("How do I pay? \N{SNOWMAN}", "application/json")
    assert (entry.scope, entry.fingerprint, entry.source) == ("model-a", "own-key", "doc/7")
    assert (list(entry.labels), sorted(entry.tags)) == (["pay", "card"], ["Z", "a", "b"])
    assert (entry.modality, entry.embedder_id) == ("text", "model-x")
    assert (entry.ttl.seconds, entry.ttl_mode) == (7200, pb.TTL_MODE_SLIDING)
    assert entry.expire_time.ToMilliseconds() - entry.create_time.ToMilliseconds() == 7_200_000
    read = np.frombuffer(entry.embedding, dtype="<f4")
    np.testing.assert_array_equal(read, vectors[0].astype(np.float16).astype(np.float32))


def test_store_answers_the_entry_as_it_is_read(door: Client, vectors: Vectors) -> None:
    stored = door.store("faq", "billing", **everything_of_an_entry(vectors))  # type: ignore[arg-type]
    assert stored.entry == door.get_entry("faq", "e-1")


def test_store_answers_the_time_to_live_of_its_category(lone_door: Client, vectors: Vectors) -> None:
    lone_door.update_category("faq", "billing", ttl=timedelta(hours=1), ttl_mode=pb.TTL_MODE_SLIDING)
    stored = lone_door.store("faq", "billing", embedding=vectors[0], entry="e", response=b"x")
    assert stored.entry == lone_door.get_entry("faq", "e")


def test_basic_view_has_neither_embedding_nor_response(lone_door: Client, vectors: Vectors) -> None:
    stored_rows(lone_door, vectors, count=1)
    full = lone_door.get_entry("faq", "e0", full=True)
    assert full.embedding and full.response
    full.ClearField("embedding")
    full.ClearField("response")
    assert lone_door.get_entry("faq", "e0") == full


def test_embedding_is_normalised(lone_door: Client, vectors: Vectors) -> None:
    lone_door.store("faq", "billing", embedding=vectors[0] * 1e20, entry="e", response=b"x")
    read = np.frombuffer(lone_door.get_entry("faq", "e", full=True).embedding, dtype="<f4")
    assert np.linalg.norm(read) == pytest.approx(1, abs=1e-3)


def test_entry_without_name_gets_one(lone_door: Client, vectors: Vectors) -> None:
    names = {
        lone_door.store("faq", "billing", embedding=row, response=b"x").entry.name for row in vectors[:5]
    }
    assert len(names) == 5
    assert {entry.name for entry in lone_door.list_entries("faq")} == names


def test_expired_entry_is_not_read(lone_door: Client, vectors: Vectors) -> None:
    ttl = timedelta(milliseconds=1)
    lone_door.store("faq", "billing", embedding=vectors[0], entry="e", response=b"x", ttl=ttl)
    seq = lone_door.store("faq", "billing", embedding=vectors[1], entry="later", response=b"x").entry.seq
    assert seq > 0
    with refused(grpc.StatusCode.NOT_FOUND, "ENTRY_NOT_FOUND"):
        lone_door.get_entry("faq", "e")


@pytest.mark.parametrize("page_size", [1, 3, 10, 11, 1000])
def test_pages_hold_every_entry_once_in_order(door: Client, vectors: Vectors, page_size: int) -> None:
    wanted = stored_rows(door, vectors, count=10)
    request = cache_pb.ListEntriesRequest(parent="caches/faq", page_size=page_size)
    listed: list[str] = []
    while True:
        page = door.call(door.semantic_cache.ListEntries, request)
        assert len(page.entries) <= page_size
        listed += [id_of(entry) for entry in page.entries]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert listed == wanted


def test_listing_of_a_category_holds_its_own(lone_door: Client, vectors: Vectors) -> None:
    lone_door.create_category("faq", "travel")
    lone_door.store("faq", "travel", embedding=vectors[0], entry="t", response=b"x")
    lone_door.store("faq", "billing", embedding=vectors[0], entry="b", response=b"x")
    assert [id_of(entry) for entry in lone_door.list_entries("faq", category="travel")] == ["t"]
    assert [id_of(entry) for entry in lone_door.list_entries("faq")] == ["t", "b"]


def test_page_size_beyond_the_most_is_cut(lone_door: Client, vectors: Vectors) -> None:
    for start in range(0, 1002, 167):
        requests = [
            store_request("faq", "billing", embedding=vectors[i % 200], entry=f"e{start + i}", response=b"")
            for i in range(167)
        ]
        lone_door.batch_store("faq", requests)
    request = cache_pb.ListEntriesRequest(parent="caches/faq", page_size=5000)
    assert len(lone_door.call(lone_door.semantic_cache.ListEntries, request).entries) == 1000
    assert len(list(lone_door.list_entries("faq"))) == 1002


def test_listing_goes_on_after_its_last_entry_was_deleted(lone_door: Client, vectors: Vectors) -> None:
    stored_rows(lone_door, vectors, count=6)
    request = cache_pb.ListEntriesRequest(parent="caches/faq", page_size=3)
    request.page_token = lone_door.call(lone_door.semantic_cache.ListEntries, request).next_page_token
    lone_door.delete_entry("faq", "e2")
    page = lone_door.call(lone_door.semantic_cache.ListEntries, request)
    assert [id_of(entry) for entry in page.entries] == ["e3", "e4", "e5"]


def test_deleted_entry_is_gone(door: Client, vectors: Vectors) -> None:
    stored_rows(door, vectors, count=2)
    door.delete_entry("faq", "e0")
    assert door.lookup("faq", "billing", embedding=vectors[0]).outcome == cache_pb.LOOKUP_OUTCOME_MISS
    assert [id_of(entry) for entry in door.list_entries("faq")] == ["e1"]
    with refused(grpc.StatusCode.NOT_FOUND, "ENTRY_NOT_FOUND"):
        door.delete_entry("faq", "e0")


def test_deleted_name_can_be_stored_again(lone_door: Client, vectors: Vectors) -> None:
    stored_rows(lone_door, vectors, count=1)
    lone_door.delete_entry("faq", "e0")
    lone_door.store("faq", "billing", embedding=vectors[5], entry="e0", response=b"new")
    assert lone_door.lookup("faq", "billing", embedding=vectors[5]).response == b"new"
    assert lone_door.lookup("faq", "billing", embedding=vectors[0]).response == b""


SELECTIONS: list[dict[str, list[str]]] = [
    {"tags": ["t0"]},
    {"tags": ["t0", "t1"]},
    {"sources": ["s1"]},
    {"categories": ["travel"]},
    {"entries": ["e0", "e3", "absent"]},
    {"tags": ["t0"], "sources": ["s0"]},
    {"tags": ["t1"], "categories": ["billing"], "entries": ["e1", "e2", "e4"]},
    {"tags": ["absent"]},
]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_invalidation_deletes_what_its_dry_run_counts(
    door: Client, vectors: Vectors, selection: dict[str, list[str]]
) -> None:
    door.create_category("faq", "travel")
    rows = [
        {
            "name": f"e{i}",
            "category": "travel" if i % 3 == 0 else "billing",
            "tags": [f"t{i % 2}", "all"],
            "source": f"s{i % 4}",
        }
        for i in range(12)
    ]
    for row, vector in zip(rows, vectors, strict=False):
        door.store(
            "faq",
            str(row["category"]),
            embedding=vector,
            response=b"x",
            entry=str(row["name"]),
            tags=row["tags"],
            source=row["source"],
        )

    def is_meant(row: dict[str, object]) -> bool:
        return all(
            (
                "entries" not in selection or row["name"] in selection["entries"],
                "categories" not in selection or row["category"] in selection["categories"],
                "sources" not in selection or row["source"] in selection["sources"],
                "tags" not in selection or bool(set(row["tags"]) & set(selection["tags"])),  # type: ignore[call-overload]
            )
        )

    dry = door.invalidate("faq", dry_run=True, **selection)
    left = {id_of(entry) for entry in door.list_entries("faq")}
    assert (left, dry.seq) == ({row["name"] for row in rows}, 0)
    real = door.invalidate("faq", **selection)
    kept = {row["name"] for row in rows if not is_meant(row)}
    assert {id_of(entry) for entry in door.list_entries("faq")} == kept
    assert dry.entry_count == real.entry_count == len(rows) - len(kept)
    assert (real.seq > 0) == (real.entry_count > 0)


def test_invalidation_of_many_names(lone_door: Client, vectors: Vectors) -> None:
    stored_rows(lone_door, vectors, count=3)
    names = [f"absent{i}" for i in range(4000)] + ["e1"]
    assert lone_door.invalidate("faq", entries=names).entry_count == 1


def test_export_and_import_keep_everything(door: Client, vectors: Vectors) -> None:
    door.create_cache("copy", dim=vectors.shape[1], code_bits=64)
    door.create_category("copy", "billing", ttl=timedelta(minutes=1))
    door.store("faq", "billing", **everything_of_an_entry(vectors))  # type: ignore[arg-type]
    door.store("faq", "billing", embedding=vectors[1], entry="plain", response=b"")
    door.store("faq", "billing", embedding=vectors[2], entry="long", response=b"x", text="word " * 2000)
    rest = [
        store_request("faq", "billing", embedding=vectors[i], entry=f"e{i}", response=b"%d" % i)
        for i in range(3, 100)
    ]
    door.batch_store("faq", rest)
    exported = list(door.export_entries("faq"))
    answer = door.import_entries("copy", exported)
    assert (answer.stored_count, answer.skipped_count, answer.expired_count) == (100, 0, 0)
    copied = list(door.export_entries("copy"))
    for entry in (*exported, *copied):
        entry.name = id_of(entry)
        entry.category = entry.category.rpartition("/")[2]
        entry.ClearField("seq")
    assert copied == exported


def test_export_of_a_category_holds_its_own(lone_door: Client, vectors: Vectors) -> None:
    lone_door.create_category("faq", "travel")
    lone_door.store("faq", "travel", embedding=vectors[0], entry="t", response=b"x")
    lone_door.store("faq", "billing", embedding=vectors[0], entry="b", response=b"x")
    assert [id_of(entry) for entry in lone_door.export_entries("faq", category="travel")] == ["t"]


def test_export_streams_beyond_one_batch(lone_door: Client, vectors: Vectors) -> None:
    for part in range(3):
        requests = [
            store_request("faq", "billing", embedding=vectors[i], entry=f"e{part}-{i}", response=b"")
            for i in range(190)
        ]
        lone_door.batch_store("faq", requests)
    exported = list(lone_door.export_entries("faq"))
    assert len({entry.name for entry in exported}) == len(exported) == 570
    lone_door.create_cache("copy", dim=vectors.shape[1])
    lone_door.create_category("copy", "billing")
    assert lone_door.import_entries("copy", exported).stored_count == 570


def test_second_import_skips_what_exists(door: Client, vectors: Vectors) -> None:
    stored_rows(door, vectors, count=5)
    exported = list(door.export_entries("faq"))
    door.delete_entry("faq", "e3")
    answer = door.import_entries("faq", exported)
    assert (answer.stored_count, answer.skipped_count) == (1, 4)
    assert door.lookup("faq", "billing", embedding=vectors[3]).response == b"3"


def test_import_of_one_id_twice_keeps_the_first(door: Client, vectors: Vectors) -> None:
    stored_rows(door, vectors, count=3)
    first, second, third = door.export_entries("faq")
    third.name = second.name
    door.invalidate("faq", entries=["e0", "e1", "e2"])
    answer = door.import_entries("faq", [first, second, third])
    assert (answer.stored_count, answer.skipped_count) == (2, 1)
    assert door.get_entry("faq", "e1", full=True).response == b"1"


def test_import_counts_what_had_expired(lone_door: Client, vectors: Vectors) -> None:
    stored_rows(lone_door, vectors, count=3)
    exported = list(lone_door.export_entries("faq"))
    lone_door.invalidate("faq", categories=["billing"])
    exported[1].expire_time.CopyFrom(Timestamp(seconds=1))
    answer = lone_door.import_entries("faq", exported)
    assert (answer.stored_count, answer.expired_count) == (2, 1)
    assert [id_of(entry) for entry in lone_door.list_entries("faq")] == ["e0", "e2"]


def test_import_into_a_missing_category_is_refused(lone_door: Client, vectors: Vectors) -> None:
    stored_rows(lone_door, vectors, count=1)
    lone_door.create_cache("copy", dim=vectors.shape[1])
    with refused(grpc.StatusCode.NOT_FOUND, "CATEGORY_NOT_FOUND"):
        lone_door.import_entries("copy", lone_door.export_entries("faq"))


def test_empty_import_stores_nothing(lone_door: Client) -> None:
    assert lone_door.import_entries("faq", []).stored_count == 0


def test_repeated_request_id_gives_the_first_answer(door: Client, vectors: Vectors) -> None:
    request = store_request(
        "faq", "billing", embedding=vectors[0], response=b"x", request_id="r1", tags=["b", "a"]
    )
    first = door.call(door.semantic_cache.Store, request)
    again = door.call(door.semantic_cache.Store, request)
    assert again == first
    assert [entry.name for entry in door.list_entries("faq")] == [first.entry.name]


def test_request_id_of_another_entry_is_refused(door: Client, vectors: Vectors) -> None:
    door.store("faq", "billing", embedding=vectors[0], response=b"x", request_id="r1")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED"):
        door.store("faq", "billing", embedding=vectors[0], response=b"y", request_id="r1")
    assert len(list(door.list_entries("faq"))) == 1


def test_repeat_within_a_batch_stores_the_rest(lone_door: Client, vectors: Vectors) -> None:
    requests = [
        store_request("faq", "billing", embedding=vectors[i], response=b"%d" % i, request_id=f"r{i}")
        for i in range(4)
    ]
    first = lone_door.batch_store("faq", requests[:2])
    whole = lone_door.batch_store("faq", requests)
    assert list(whole[:2]) == list(first)
    assert len(list(lone_door.list_entries("faq"))) == 4


def test_entry_of_a_category_that_the_replica_has_not_met_is_read(
    config: Config,
    server: Server,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    vectors: Vectors,
) -> None:
    writer = connect(server)
    writer.create_cache("faq", dim=vectors.shape[1])
    slow = replace(config, refresh=replace(config.refresh, feed_seconds=3600.0))
    reader = connect(start_server(slow))
    writer.create_category("faq", "billing")
    writer.store("faq", "billing", embedding=vectors[0], entry="e", response=b"x")
    category = "caches/faq/categories/billing"
    assert reader.get_entry("faq", "e").category == category
    assert [entry.category for entry in reader.list_entries("faq")] == [category]
    assert [entry.category for entry in reader.export_entries("faq")] == [category]


def test_counts_of_a_category_follow_its_entries(door: Client, vectors: Vectors) -> None:
    stored_rows(door, vectors, count=7)
    door.delete_entry("faq", "e0")
    door.invalidate("faq", entries=["e1", "e2"])
    request = admin_pb.GetCategoryRequest(name="caches/faq/categories/billing")
    found = door.call(door.admin.GetCategory, request)
    vector_and_code = 2 * vectors.shape[1] + 64 // 8
    assert (found.entry_count, found.size_bytes) == (4, 4 * (vector_and_code + 1))

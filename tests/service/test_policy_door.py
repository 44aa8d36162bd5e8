"""Policies of categories through the door: inheritance, changes and their audit, admission, ages,
verdicts."""

from datetime import timedelta
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from nearhit import Client
from nearhit.client import store_request
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray
from refusals import refused

Vectors = NDArray[np.float32]
PARENT = "caches/faq/categories/"
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def get(client: Client, name: str) -> pb.Category:
    """The category as it is now."""
    found: pb.Category = client.call(
        client.admin.GetCategory, admin_pb.GetCategoryRequest(name=PARENT + name)
    )
    return found


def update(client: Client, category: pb.Category, *paths: str) -> pb.Category:
    """Update a category under a mask."""
    request = admin_pb.UpdateCategoryRequest(category=category, update_mask=FieldMask(paths=paths))
    updated: pb.Category = client.call(client.admin.UpdateCategory, request)
    return updated


def history(client: Client, name: str) -> list[tuple[int, str, str]]:
    """Operation, before and after of each change, newest first."""
    return [
        (row.operation, row.before, row.after) for row in client.list_policy_changes("faq", category=name)
    ]


def delete(client: Client, name: str) -> None:
    """Delete a category."""
    client.call(client.admin.DeleteCategory, admin_pb.DeleteCategoryRequest(name=PARENT + name))


# Inheritance


def test_every_field_is_read_back_and_inherited(door: Client) -> None:
    policy: dict[str, Any] = {
        "threshold": 0.25,
        "ttl": timedelta(seconds=90),
        "ttl_mode": pb.TTL_MODE_SLIDING,
        "max_entries": 10,
        "max_bytes": 10_000,
        "eviction": pb.EVICTION_COST,
        "shadow": True,
        "refresh_after": timedelta(seconds=30),
        "stale_while_revalidate": True,
        "min_cost": 0.5,
        "second_sighting": True,
        "on_wrong": pb.WRONG_ACTION_DEMOTE,
        "max_wrong": 0.01,
        "max_wrong_of": pb.WRONG_BASIS_REQUESTS,
        "confidence": 0.9,
        "exploration": 0.1,
        "cold_threshold": 0.03,
        "compare_responses": True,
        "load_model": "m-1",
        "max_threshold_at_load": 0.3,
        "max_wrong_at_load": 0.05,
        "refresh_after_at_load": Duration(seconds=60),
        "lookup_cost": 0.5,
        "hit_cost": 0.25,
        "model_cost": 2.25,
        "auto_bypass": True,
    }
    made = door.create_category("faq", "root", **policy)
    leaf = door.create_category("faq", "leaf", parent="root")
    for category in (made, leaf, get(door, "root"), get(door, "leaf")):
        for name, value in policy.items():
            given = getattr(category, name)
            expected = value.ToTimedelta() if isinstance(value, Duration) else value
            assert (given.ToTimedelta() if isinstance(given, Duration) else given) == expected, name
        assert category.break_even_hit_rate == 0.25
    assert list(made.inherited_fields) == ["min_probability"]
    assert sorted(leaf.inherited_fields) == sorted([*policy, "min_probability"])
    assert (made.parent, leaf.parent) == ("", PARENT + "root")


def test_zero_and_false_are_values_of_their_own(door: Client) -> None:
    door.create_category("faq", "root", max_entries=5, shadow=True, min_cost=2.0)
    leaf = door.create_category("faq", "leaf", parent="root", max_entries=0, shadow=False, min_cost=0.0)
    assert (leaf.max_entries, leaf.shadow, leaf.min_cost) == (0, False, 0.0)
    assert leaf.HasField("max_entries") and leaf.HasField("shadow")
    after = door.update_category("faq", "leaf", inherit=["max_entries", "shadow"])
    assert (after.max_entries, after.shadow, after.min_cost) == (5, True, 0.0)


def test_a_changed_parent_holds_for_lookups_below_at_once(door: Client, vectors: Vectors) -> None:
    door.create_category("faq", "root", threshold=0.1)
    door.create_category("faq", "leaf", parent="root")
    door.store("faq", "leaf", embedding=vectors[0], response=b"x")
    query = vectors[0] + 0.25 * vectors[1]
    assert door.lookup("faq", "leaf", embedding=query).response == b"x"
    door.update_category("faq", "root", threshold=0.001)
    answer = door.lookup("faq", "leaf", embedding=query)
    assert (answer.threshold, answer.response) == (0.001, b"")


@pytest.mark.parametrize("how", ["quota", "parent"])
def test_a_smaller_quota_evicts_below_in_the_same_call(door: Client, vectors: Vectors, how: str) -> None:
    door.create_category("faq", "root", **({} if how == "quota" else {"max_entries": 2}))
    door.create_category("faq", "mid", **({"parent": "root"} if how == "quota" else {}))
    door.create_category("faq", "leaf", parent="mid")
    requests = [
        store_request("faq", "leaf", embedding=vectors[i], response=b"x", entry=f"e{i}") for i in range(5)
    ]
    door.batch_store("faq", requests)
    if how == "quota":
        door.update_category("faq", "root", max_entries=2)
    else:
        door.update_category("faq", "mid", parent="root")
    assert get(door, "leaf").entry_count == 2
    served = [bool(door.lookup("faq", "leaf", embedding=row).response) for row in vectors[:5]]
    assert sum(served) == 2


def test_rings_depth_and_unknown_parents_are_refused(lone_door: Client) -> None:
    for level in range(1, 9):
        lone_door.create_category("faq", f"c{level}", parent=f"c{level - 1}" if level > 1 else "")
    with refused(INVALID, "PARENT_TOO_DEEP"):
        lone_door.create_category("faq", "c9", parent="c8")
    with refused(INVALID, "PARENT_CYCLE"):
        lone_door.update_category("faq", "c1", parent="c3")
    with refused(grpc.StatusCode.NOT_FOUND, "CATEGORY_NOT_FOUND"):
        lone_door.update_category("faq", "c1", parent="none")
    with refused(grpc.StatusCode.NOT_FOUND, "CATEGORY_NOT_FOUND"):
        lone_door.create_category("faq", "x", parent="none")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "CATEGORY_HAS_CHILDREN"):
        delete(lone_door, "c7")
    for wrong, reason in (("caches/other/categories/a", "PARENT_MISMATCH"), ("c1", "INVALID_NAME")):
        with refused(INVALID, reason):
            update(lone_door, pb.Category(name=PARENT + "c2", parent=wrong), "parent")
    lone_door.update_category("faq", "c8", parent="")
    delete(lone_door, "c7")


def test_an_update_without_mask_withdraws_nothing_that_makes_a_policy_strict(lone_door: Client) -> None:
    lone_door.create_category("faq", "root", threshold=0.02)
    lone_door.create_category(
        "faq",
        "leaf",
        parent="root",
        ttl=timedelta(seconds=50),
        refresh_after=timedelta(seconds=5),
        min_cost=1.0,
        second_sighting=True,
        on_wrong=pb.WRONG_ACTION_REMOVE,
        max_entries=5,
    )
    after = update(lone_door, pb.Category(name=PARENT + "leaf", max_bytes=7))
    assert (after.parent, after.threshold, after.min_cost) == (PARENT + "root", 0.02, 1.0)
    assert (after.refresh_after.seconds, after.second_sighting, after.on_wrong) == (
        5,
        True,
        pb.WRONG_ACTION_REMOVE,
    )
    assert (after.max_bytes, after.max_entries, after.HasField("ttl")) == (7, 0, False)
    named = update(
        lone_door,
        pb.Category(name=PARENT + "leaf"),
        *("parent", "refresh_after", "min_cost", "second_sighting", "on_wrong"),
    )
    assert (named.parent, named.threshold, named.min_cost, named.second_sighting) == ("", 0.1, 0.0, False)
    assert (named.HasField("refresh_after"), named.on_wrong) == (False, pb.WRONG_ACTION_KEEP)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"threshold": 2.5}, "INVALID_THRESHOLD"),
        ({"max_entries": -1}, "INVALID_QUOTA"),
        ({"max_bytes": -1}, "INVALID_QUOTA"),
        ({"refresh_after": timedelta(0)}, "INVALID_REFRESH"),
        ({"refresh_after": timedelta(seconds=9), "ttl": timedelta(seconds=8)}, "INVALID_REFRESH"),
        ({"min_cost": -0.5}, "INVALID_COST"),
        ({"min_cost": float("nan")}, "INVALID_COST"),
        ({"min_cost": float("inf")}, "INVALID_COST"),
        ({"eviction": 99}, "UNKNOWN_VALUE"),
        ({"ttl_mode": 99}, "UNKNOWN_VALUE"),
        ({"on_wrong": 99}, "UNKNOWN_VALUE"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(lone_door: Client, policy: dict[str, Any], reason: str) -> None:
    with refused(INVALID, reason):
        lone_door.create_category("faq", "new", **policy)
    with refused(INVALID, reason):
        lone_door.update_category("faq", "billing", **policy)
    assert [row.operation for row in lone_door.list_policy_changes("faq")] == [1]


@pytest.mark.parametrize("path", ["inherited_fields", "shift", "create_time"])
def test_what_is_only_told_cannot_be_set(lone_door: Client, path: str) -> None:
    with refused(INVALID, "INVALID_MASK"):
        update(lone_door, pb.Category(name=PARENT + "billing"), path)


# Audit


def test_changes_are_listed_newest_first_in_pages_and_outlive_the_category(door: Client) -> None:
    door.create_category("faq", "travel", max_entries=9)
    for threshold in (0.2, 0.3):
        door.update_category("faq", "travel", threshold=threshold)
    delete(door, "travel")
    change = admin_pb.PolicyChange
    expected = [
        (change.OPERATION_DELETE, '{"max_entries": 9, "threshold": 0.3}', ""),
        (
            change.OPERATION_UPDATE,
            '{"max_entries": 9, "threshold": 0.2}',
            '{"max_entries": 9, "threshold": 0.3}',
        ),
        (change.OPERATION_UPDATE, '{"max_entries": 9}', '{"max_entries": 9, "threshold": 0.2}'),
        (change.OPERATION_CREATE, "", '{"max_entries": 9}'),
    ]
    assert history(door, "travel") == expected
    request = admin_pb.ListPolicyChangesRequest(parent="caches/faq", page_size=2)
    pages = []
    while True:
        page = door.call(door.admin.ListPolicyChanges, request)
        pages.append([row.category.rpartition("/")[2] for row in page.changes])
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert pages == [["travel", "travel"], ["travel", "travel"], ["billing"]]
    first = next(iter(door.list_policy_changes("faq", category="travel")))
    assert (first.etag, first.principal, first.create_time.seconds > 0) == ("3", "", True)


def test_changes_of_what_never_was_are_not_found(lone_door: Client) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "CATEGORY_NOT_FOUND"):
        list(lone_door.list_policy_changes("faq", category="none"))
    with refused(grpc.StatusCode.NOT_FOUND, "CACHE_NOT_FOUND"):
        list(lone_door.list_policy_changes("none"))
    for wrong, reason in (
        ({"page_size": -1}, "INVALID_PAGE_SIZE"),
        ({"page_token": "x"}, "INVALID_PAGE_TOKEN"),
        ({"parent": "caches/faq/entries/e"}, "INVALID_NAME"),
    ):
        request = admin_pb.ListPolicyChangesRequest(**{"parent": "caches/faq", **wrong})
        with refused(INVALID, reason):
            lone_door.call(lone_door.admin.ListPolicyChanges, request)


def test_a_refused_change_leaves_no_trace(lone_door: Client) -> None:
    with refused(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
        lone_door.update_category("faq", "billing", threshold=0.2, etag="9")
    assert len(history(lone_door, "billing")) == 1


# Admission, cost and model


def test_what_is_not_admitted_is_told_and_not_stored(door: Client, vectors: Vectors) -> None:
    door.update_category("faq", "billing", min_cost=1.0, second_sighting=True)
    question = {"embedding": vectors[0], "text": "how?", "response": b"so"}
    for more, expected in (
        ({"completion": cache_pb.COMPLETION_TRUNCATED}, cache_pb.ADMISSION_INCOMPLETE),
        ({"completion": cache_pb.COMPLETION_FAILED}, cache_pb.ADMISSION_INCOMPLETE),
        ({"cost": 0.5}, cache_pb.ADMISSION_TOO_CHEAP),
        ({"cost": 1.0}, cache_pb.ADMISSION_FIRST_SIGHTING),
    ):
        answer = door.store("faq", "billing", entry="e", **question, **more)
        assert answer.admission == expected
        assert (answer.entry.name, answer.entry.seq, answer.entry.HasField("create_time")) == ("", 0, False)
    assert get(door, "billing").entry_count == 0
    stored = door.store("faq", "billing", entry="e", cost=2.5, model="m-1", **question)
    assert (stored.admission, stored.entry.name) == (cache_pb.ADMISSION_STORED, "caches/faq/entries/e")
    found = door.get_entry("faq", "e")
    assert (found.cost, found.model) == (stored.entry.cost, stored.entry.model) == (2.5, "m-1")
    assert door.lookup("faq", "billing", text="how?").response == b"so"


def test_each_item_of_a_batch_is_admitted_by_itself(lone_door: Client, vectors: Vectors) -> None:
    lone_door.create_category("faq", "dear", min_cost=5.0)
    requests = [
        store_request("faq", category, embedding=vectors[i], response=b"x", entry=f"e{i}", cost=1.0)
        for i, category in enumerate(["billing", "dear", "billing"])
    ]
    answers = lone_door.batch_store("faq", requests)
    assert [answer.admission for answer in answers] == [1, 2, 1]
    assert [entry.name for entry in lone_door.list_entries("faq")] == [
        "caches/faq/entries/e0",
        "caches/faq/entries/e2",
    ]


def test_what_is_not_admitted_replaces_nothing(lone_door: Client, vectors: Vectors) -> None:
    lone_door.store("faq", "billing", embedding=vectors[0], response=b"old", entry="a")
    lone_door.update_category("faq", "billing", second_sighting=True)
    question = {"embedding": vectors[0], "replace_entry": "a"}
    cut = lone_door.store(
        "faq", "billing", response=b"cut", completion=cache_pb.COMPLETION_TRUNCATED, **question
    )
    assert cut.admission == cache_pb.ADMISSION_INCOMPLETE
    assert lone_door.lookup("faq", "billing", embedding=vectors[0]).response == b"old"
    assert (
        lone_door.store("faq", "billing", response=b"new", **question).admission == cache_pb.ADMISSION_STORED
    )
    assert lone_door.lookup("faq", "billing", embedding=vectors[0]).response == b"new"


def test_cost_and_model_outlive_export_and_import(door: Client, vectors: Vectors) -> None:
    door.store("faq", "billing", embedding=vectors[0], response=b"x", entry="a", cost=3.0, model="m")
    exported = list(door.export_entries("faq"))
    door.create_cache("copy", dim=vectors.shape[1], code_bits=64)
    door.create_category("copy", "billing", min_cost=9.0, second_sighting=True)
    assert door.import_entries("copy", exported).stored_count == 1
    (copied,) = door.list_entries("copy")
    assert (copied.cost, copied.model) == (3.0, "m")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        *(({"cost": cost}, "INVALID_COST") for cost in (-1.0, float("nan"), float("inf"), 1e19, 1e-19)),
        ({"model": "m" * 257}, "FIELD_TOO_LARGE"),
        ({"model": "a\0b"}, "INVALID_VALUE"),
        ({"completion": 99}, "UNKNOWN_VALUE"),
    ],
)
def test_a_store_that_cannot_be_is_refused(
    lone_door: Client, vectors: Vectors, fields: dict[str, Any], reason: str
) -> None:
    with refused(INVALID, reason):
        lone_door.store("faq", "billing", embedding=vectors[0], response=b"x", **fields)


# Ages and verdicts


def test_an_entry_tells_when_it_is_due(lone_door: Client, vectors: Vectors) -> None:
    lone_door.update_category("faq", "billing", refresh_after=timedelta(seconds=60))
    stored = lone_door.store("faq", "billing", embedding=vectors[0], response=b"x", entry="a").entry
    assert stored.refresh_time.seconds - stored.create_time.seconds == 60
    short = lone_door.store("faq", "billing", embedding=vectors[1], response=b"x", ttl=timedelta(seconds=9))
    assert short.entry.refresh_time == short.entry.expire_time
    lone_door.update_category("faq", "billing", refresh_after=timedelta(seconds=30))
    found = lone_door.get_entry("faq", "a")
    assert found.refresh_time.seconds - found.create_time.seconds == 30
    (listed, _) = lone_door.list_entries("faq")
    (exported, _) = lone_door.export_entries("faq")
    result = lone_door.search("faq", embedding=vectors[0], top_k=1, view=pb.ENTRY_VIEW_BASIC).results[0]
    assert listed.refresh_time == exported.refresh_time == result.entry.refresh_time == found.refresh_time
    lone_door.update_category("faq", "billing", inherit=["refresh_after"])
    assert not lone_door.get_entry("faq", "a").HasField("refresh_time")


def test_a_stale_entry_is_named_so_that_it_is_replaced(door: Client, vectors: Vectors) -> None:
    old = pb.Entry(
        name="caches/faq/entries/old",
        category=PARENT + "billing",
        embedding=vectors[0].tobytes(),
        response=b"old",
    )
    old.create_time.FromSeconds(1_000_000_000)
    door.import_entries("faq", [old])
    assert door.lookup("faq", "billing", embedding=vectors[0]).response == b"old"
    asked = door.lookup("faq", "billing", embedding=vectors[0], max_age=timedelta(hours=1))
    door.update_category("faq", "billing", refresh_after=timedelta(hours=1))
    stale = door.lookup("faq", "billing", embedding=vectors[0])
    for answer in (asked, stale):
        assert (answer.outcome, answer.reason) == (
            cache_pb.LOOKUP_OUTCOME_MISS,
            cache_pb.LOOKUP_REASON_STALE,
        )
        assert (answer.entry, answer.response) == ("caches/faq/entries/old", b"")
    door.update_category("faq", "billing", stale_while_revalidate=True)
    due = door.lookup("faq", "billing", embedding=vectors[0])
    assert (due.response, due.refresh_due) == (b"old", True)
    door.store("faq", "billing", embedding=vectors[0], response=b"new", replace_entry="old")
    answer = door.lookup("faq", "billing", embedding=vectors[0], max_age=timedelta(hours=1))
    assert (answer.response, answer.refresh_due) == (b"new", False)
    assert get(door, "billing").miss_count <= 2  # counted within a second


@pytest.mark.parametrize("seconds", [0, -1])
def test_an_age_that_cannot_be_is_refused(lone_door: Client, vectors: Vectors, seconds: int) -> None:
    with refused(INVALID, "INVALID_DURATION"):
        lone_door.lookup("faq", "billing", embedding=vectors[0], max_age=timedelta(seconds=seconds))


@pytest.mark.parametrize("action", [pb.WRONG_ACTION_DEMOTE, pb.WRONG_ACTION_REMOVE])
def test_a_wrong_answer_is_not_served_again(door: Client, vectors: Vectors, action: pb.WrongAction) -> None:
    door.create_category("faq", "root", on_wrong=action)
    door.update_category("faq", "billing", parent="root")
    door.store("faq", "billing", embedding=vectors[0], response=b"x", entry="a", fingerprint="k")
    token = door.lookup("faq", "billing", embedding=vectors[0]).lookup_token
    recorded = door.record_feedback(token, cache_pb.VERDICT_WRONG)
    assert (recorded.recorded, recorded.entry) == (True, "caches/faq/entries/a")
    assert door.lookup("faq", "billing", embedding=vectors[0]).outcome == cache_pb.LOOKUP_OUTCOME_MISS
    same = door.lookup("faq", "billing", fingerprint="k", embedding=vectors[0])
    if action == pb.WRONG_ACTION_REMOVE:
        assert same.outcome == cache_pb.LOOKUP_OUTCOME_MISS
        return
    assert same.response == b"x"
    door.record_feedback(same.lookup_token, cache_pb.VERDICT_RIGHT)
    assert door.lookup("faq", "billing", embedding=vectors[0]).response == b"x"

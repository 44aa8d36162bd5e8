"""Lookups through the door."""

import time
from datetime import timedelta

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from nearhit import Client
from nearhit.client import lookup_request, store_request
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray
from refusals import refused
from waiting import eventually

HIT, MISS = cache_pb.LOOKUP_OUTCOME_HIT, cache_pb.LOOKUP_OUTCOME_MISS
Vectors = NDArray[np.float32]


def near(vector: Vectors, other: Vectors, *, share: float) -> Vectors:
    """A vector between two others, `share` of the way."""
    return vector + share * other


def category_of(client: Client, name: str = "billing") -> pb.Category:
    """The category as it is now."""
    request = admin_pb.GetCategoryRequest(name=f"caches/faq/categories/{name}")
    found: pb.Category = client.call(client.admin.GetCategory, request)
    return found


def test_stored_answer_is_served_within_threshold(door: Client, vectors: Vectors) -> None:
    stored = door.store("faq", "billing", embedding=vectors[0], response=b"yes", content_type="text/plain")
    answer = door.lookup("faq", "billing", embedding=near(vectors[0], vectors[1], share=0.05))
    assert answer.outcome == HIT
    assert answer.reason == cache_pb.LOOKUP_REASON_WITHIN_THRESHOLD
    assert (answer.entry, answer.response, answer.content_type) == (stored.entry.name, b"yes", "text/plain")
    assert 0 < answer.distance <= answer.threshold == 0.1


def test_distant_question_is_a_miss(door: Client, vectors: Vectors) -> None:
    door.store("faq", "billing", embedding=vectors[0], response=b"yes")
    answer = door.lookup("faq", "billing", embedding=vectors[1])
    assert answer.outcome == MISS
    assert answer.reason == cache_pb.LOOKUP_REASON_BEYOND_THRESHOLD
    assert answer.response == b""
    assert answer.entry == ""
    assert answer.lookup_token == ""


def test_distance_is_the_cosine_distance_of_the_nearest(lone_door: Client, vectors: Vectors) -> None:
    for row in vectors[:50]:
        lone_door.store("faq", "billing", embedding=row, response=b"x")
    answer = lone_door.lookup("faq", "billing", embedding=vectors[60])
    assert answer.distance == pytest.approx(1 - (vectors[:50] @ vectors[60]).max(), abs=2e-3)


def test_empty_category_has_no_candidate(lone_door: Client, vectors: Vectors) -> None:
    answer = lone_door.lookup("faq", "billing", embedding=vectors[0])
    assert (answer.outcome, answer.reason) == (MISS, cache_pb.LOOKUP_REASON_NO_CANDIDATE)
    assert not answer.HasField("distance")


def test_text_is_answered_by_fingerprint_without_embedder(door: Client, vectors: Vectors) -> None:
    door.store("faq", "billing", embedding=vectors[0], text="How do I  pay?", response=b"by card")
    answer = door.lookup("faq", "billing", text=" How do\nI pay? ")
    assert answer.reason == cache_pb.LOOKUP_REASON_FINGERPRINT
    assert (answer.response, answer.distance) == (b"by card", 0.0)
    assert answer.search_path == pb.SEARCH_PATH_UNSPECIFIED


def test_text_of_other_case_is_not_the_same_request(lone_door: Client, vectors: Vectors) -> None:
    lone_door.store("faq", "billing", embedding=vectors[0], text="Pay?", response=b"by card")
    answer = lone_door.lookup("faq", "billing", text="pay?", embedding=vectors[1])
    assert answer.outcome == MISS


def test_own_fingerprint_hits_alone(lone_door: Client, vectors: Vectors) -> None:
    lone_door.store("faq", "billing", embedding=vectors[0], fingerprint="k1", response=b"yes")
    assert lone_door.lookup("faq", "billing", fingerprint="k1").response == b"yes"


def test_unknown_fingerprint_alone_is_a_miss(lone_door: Client, vectors: Vectors) -> None:
    lone_door.store("faq", "billing", embedding=vectors[0], fingerprint="k1", response=b"yes")
    answer = lone_door.lookup("faq", "billing", fingerprint="k2")
    assert (answer.outcome, answer.reason) == (MISS, cache_pb.LOOKUP_REASON_NO_CANDIDATE)


def test_text_of_the_largest_size_is_its_own_fingerprint(lone_door: Client, vectors: Vectors) -> None:
    text = "pay " * (16 * 1024 - 1)
    lone_door.store("faq", "billing", embedding=vectors[0], text=text, response=b"long")
    assert lone_door.lookup("faq", "billing", text=text).response == b"long"


def test_fingerprint_made_of_a_long_text_is_within_its_own_limit(lone_door: Client, vectors: Vectors) -> None:
    stored = lone_door.store("faq", "billing", embedding=vectors[0], text="pay " * 1000, response=b"long")
    assert len(stored.entry.fingerprint.encode()) <= 1024


def test_long_texts_that_differ_at_the_end_are_different_requests(
    lone_door: Client, vectors: Vectors
) -> None:
    lone_door.store("faq", "billing", embedding=vectors[0], text="pay " * 1000 + "a", response=b"a")
    answer = lone_door.lookup("faq", "billing", text="pay " * 1000 + "b", embedding=vectors[1])
    assert answer.outcome == MISS


def test_scopes_do_not_meet_by_distance(door: Client, vectors: Vectors) -> None:
    door.store("faq", "billing", embedding=vectors[0], scope="model-a", response=b"a")
    for scope in ("model-b", ""):
        answer = door.lookup("faq", "billing", embedding=vectors[0], scope=scope)
        assert (answer.outcome, answer.reason) == (MISS, cache_pb.LOOKUP_REASON_NO_CANDIDATE)


def test_scopes_do_not_meet_by_fingerprint(lone_door: Client, vectors: Vectors) -> None:
    lone_door.store("faq", "billing", embedding=vectors[0], scope="a", fingerprint="k", response=b"a")
    assert lone_door.lookup("faq", "billing", fingerprint="k", scope="b").outcome == MISS


def test_nearest_of_the_scope_is_served_where_another_scope_is_nearer(
    lone_door: Client, vectors: Vectors
) -> None:
    lone_door.store("faq", "billing", embedding=vectors[0], scope="other", response=b"other")
    own = near(vectors[0], vectors[1], share=0.1)
    lone_door.store("faq", "billing", embedding=own, scope="own", response=b"own")
    assert lone_door.lookup("faq", "billing", embedding=vectors[0], scope="own").response == b"own"


def test_categories_do_not_meet(door: Client, vectors: Vectors) -> None:
    door.create_category("faq", "travel")
    door.store("faq", "billing", embedding=vectors[0], fingerprint="k", response=b"yes")
    assert door.lookup("faq", "travel", embedding=vectors[0], fingerprint="k").outcome == MISS


def test_caches_do_not_meet(door: Client, vectors: Vectors) -> None:
    door.create_cache("other", dim=vectors.shape[1])
    door.create_category("other", "billing")
    door.store("faq", "billing", embedding=vectors[0], fingerprint="k", response=b"yes")
    assert door.lookup("other", "billing", embedding=vectors[0], fingerprint="k").outcome == MISS


def test_modalities_do_not_meet(lone_door: Client, vectors: Vectors) -> None:
    dim = vectors.shape[1]
    modalities = [pb.Modality(modality="text", dim=dim), pb.Modality(modality="image", dim=dim)]
    request = admin_pb.CreateCacheRequest(cache_id="media", cache=pb.Cache(modalities=modalities))
    lone_door.call(lone_door.admin.CreateCache, request)
    lone_door.create_category("media", "all")
    lone_door.store("media", "all", embedding=vectors[0], modality="image", response=b"picture")
    assert lone_door.lookup("media", "all", embedding=vectors[0]).outcome == MISS


@pytest.mark.parametrize(("asked", "applied"), [(0.01, 0.01), (0.5, 0.1), (None, 0.1), (0.0, 0.0)])
def test_caller_may_only_be_stricter(
    lone_door: Client, vectors: Vectors, asked: float | None, applied: float
) -> None:
    lone_door.store("faq", "billing", embedding=vectors[0], response=b"yes")
    query = near(vectors[0], vectors[1], share=0.25)
    distance = 1 - query @ vectors[0] / np.linalg.norm(query)
    assert 0.01 < distance < 0.1
    answer = lone_door.lookup("faq", "billing", embedding=query, threshold=asked)
    assert (answer.threshold, answer.outcome) == (applied, HIT if applied > distance else MISS)


def test_bypass_searches_nothing(lone_door: Client, vectors: Vectors) -> None:
    lone_door.store("faq", "billing", embedding=vectors[0], fingerprint="k", response=b"yes")
    answer = lone_door.lookup(
        "faq", "billing", embedding=vectors[0], fingerprint="k", mode=cache_pb.LOOKUP_MODE_BYPASS
    )
    assert (answer.outcome, answer.reason) == (MISS, cache_pb.LOOKUP_REASON_BYPASS)
    assert (answer.entry, answer.response, answer.candidates_examined) == ("", b"", 0)


@pytest.mark.parametrize("query", [{"fingerprint": "k"}, {}])
def test_refresh_names_the_entry_and_serves_nothing(
    lone_door: Client, vectors: Vectors, query: dict[str, str]
) -> None:
    stored = lone_door.store("faq", "billing", embedding=vectors[0], fingerprint="k", response=b"old")
    answer = lone_door.lookup(
        "faq", "billing", embedding=vectors[0], mode=cache_pb.LOOKUP_MODE_REFRESH, **query
    )
    assert (answer.outcome, answer.reason) == (MISS, cache_pb.LOOKUP_REASON_REFRESH)
    assert (answer.entry, answer.response) == (stored.entry.name, b"")


def test_refresh_of_nothing_is_a_plain_miss(lone_door: Client, vectors: Vectors) -> None:
    answer = lone_door.lookup("faq", "billing", embedding=vectors[0], mode=cache_pb.LOOKUP_MODE_REFRESH)
    assert (answer.reason, answer.entry) == (cache_pb.LOOKUP_REASON_NO_CANDIDATE, "")


def test_refreshed_entry_is_replaced(door: Client, vectors: Vectors) -> None:
    door.store("faq", "billing", embedding=vectors[0], response=b"old")
    found = door.lookup("faq", "billing", embedding=vectors[0], mode=cache_pb.LOOKUP_MODE_REFRESH)
    door.store(
        "faq",
        "billing",
        embedding=vectors[0],
        response=b"new",
        replace_entry=found.entry.rpartition("/")[2],
    )
    assert door.lookup("faq", "billing", embedding=vectors[0]).response == b"new"
    assert [entry.name for entry in door.list_entries("faq")] != [found.entry]
    assert category_of(door).entry_count == 1


def test_shadow_mode_serves_nothing_and_names_the_entry(lone_door: Client, vectors: Vectors) -> None:
    stored = lone_door.store("faq", "billing", embedding=vectors[0], response=b"yes")
    lone_door.update_category("faq", "billing", shadow=True)
    answer = lone_door.lookup("faq", "billing", embedding=vectors[0])
    assert (answer.outcome, answer.reason) == (MISS, cache_pb.LOOKUP_REASON_SHADOW)
    assert (answer.entry, answer.response, answer.content_type) == (stored.entry.name, b"", "")
    assert answer.lookup_token != ""


def test_read_sees_the_mutation_it_asks_for(door: Client, vectors: Vectors) -> None:
    for row in vectors[:5]:
        seq = door.store("faq", "billing", embedding=row, response=b"x").entry.seq
        assert door.lookup("faq", "billing", embedding=row, min_seq=seq).outcome == HIT


def test_seq_that_never_comes_is_an_error_in_time(lone_door: Client, vectors: Vectors) -> None:
    with refused(grpc.StatusCode.UNAVAILABLE, "NOT_CAUGHT_UP"):
        lone_door.lookup("faq", "billing", embedding=vectors[0], min_seq=10**9)


def test_expired_entry_is_not_served(door: Client, vectors: Vectors) -> None:
    stored = door.store(
        "faq",
        "billing",
        embedding=vectors[0],
        fingerprint="k",
        response=b"x",
        ttl=timedelta(milliseconds=300),
    )
    expire = stored.entry.expire_time.ToMilliseconds()
    served_late = False
    while time.time_ns() // 1_000_000 < expire + 200:
        asked_ms = time.time_ns() // 1_000_000
        answer = door.lookup("faq", "billing", embedding=vectors[0], fingerprint="k")
        served_late |= asked_ms >= expire and answer.outcome == HIT
    assert not served_late
    assert door.lookup("faq", "billing", embedding=vectors[0]).outcome == MISS


def test_expired_entry_leaves_the_store(door: Client, vectors: Vectors) -> None:
    door.store("faq", "billing", embedding=vectors[0], response=b"x", ttl=timedelta(milliseconds=1))
    eventually(lambda: category_of(door).entry_count == 0)


@pytest.mark.parametrize("mode", [pb.TTL_MODE_SLIDING, pb.TTL_MODE_ABSOLUTE])
def test_hit_extends_only_a_sliding_entry(door: Client, vectors: Vectors, mode: pb.TtlMode) -> None:
    stored = door.store(
        "faq",
        "billing",
        embedding=vectors[0],
        entry="e",
        response=b"x",
        ttl=timedelta(hours=1),
        ttl_mode=mode,
    )
    before = stored.entry.expire_time.ToMilliseconds()

    def hit_is_counted() -> bool:
        return category_of(door).hit_count > 0

    eventually(lambda: time.time_ns() // 1_000_000 > stored.entry.create_time.ToMilliseconds())
    door.lookup("faq", "billing", embedding=vectors[0])
    eventually(hit_is_counted)
    after = door.get_entry("faq", "e").expire_time.ToMilliseconds()
    assert (after > before) == (mode == pb.TTL_MODE_SLIDING)


def test_category_counts_each_kind_of_lookup(door: Client, vectors: Vectors) -> None:
    door.store("faq", "billing", embedding=vectors[0], response=b"x")
    for _ in range(3):
        door.lookup("faq", "billing", embedding=vectors[0])
    for _ in range(2):
        door.lookup("faq", "billing", embedding=vectors[1])
    door.lookup("faq", "billing", embedding=vectors[0], mode=cache_pb.LOOKUP_MODE_REFRESH)
    for _ in range(4):
        door.lookup("faq", "billing", embedding=vectors[0], mode=cache_pb.LOOKUP_MODE_BYPASS)
    door.update_category("faq", "billing", shadow=True)
    for _ in range(5):
        door.lookup("faq", "billing", embedding=vectors[0])
    wanted = (3, 3, 5, 4)  # hits, misses (a refresh is one), shadow hits, bypasses

    def counted() -> tuple[int, int, int, int]:
        found = category_of(door)
        return found.hit_count, found.miss_count, found.shadow_hit_count, found.bypass_count

    eventually(lambda: counted() == wanted)


def test_batch_answers_in_order(door: Client, vectors: Vectors) -> None:
    door.batch_store(
        "faq",
        [store_request("faq", "billing", embedding=vectors[i], response=b"%d" % i) for i in range(20)],
    )
    order = [7, 3, 19, 0, 3, 50, 11]
    answers = door.batch_lookup(
        "faq", [lookup_request("faq", "billing", embedding=vectors[i]) for i in order]
    )
    assert [answer.response for answer in answers] == [b"%d" % i if i < 20 else b"" for i in order]


def test_batch_may_mix_modes_and_categories(lone_door: Client, vectors: Vectors) -> None:
    lone_door.create_category("faq", "travel")
    lone_door.store("faq", "travel", embedding=vectors[0], text="fly", response=b"plane")
    answers = lone_door.batch_lookup(
        "faq",
        [
            lookup_request("faq", "travel", embedding=vectors[0], mode=cache_pb.LOOKUP_MODE_BYPASS),
            lookup_request("faq", "travel", text="fly"),
            lookup_request("faq", "billing", embedding=vectors[0]),
            lookup_request("faq", "travel", embedding=vectors[0]),
        ],
    )
    assert [answer.response for answer in answers] == [b"", b"plane", b"", b"plane"]


def test_verdict_is_recorded_once(door: Client, vectors: Vectors) -> None:
    stored = door.store("faq", "billing", embedding=vectors[0], response=b"x")
    token = door.lookup("faq", "billing", embedding=vectors[0]).lookup_token
    first = door.record_feedback(token, cache_pb.VERDICT_WRONG)
    again = door.record_feedback(token, cache_pb.VERDICT_RIGHT)
    assert (first.recorded, again.recorded) == (True, False)
    assert first.entry == again.entry == stored.entry.name


def test_every_lookup_can_be_judged_on_its_own(lone_door: Client, vectors: Vectors) -> None:
    lone_door.store("faq", "billing", embedding=vectors[0], response=b"x")
    tokens = [lone_door.lookup("faq", "billing", embedding=vectors[0]).lookup_token for _ in range(3)]
    assert all(lone_door.record_feedback(token, cache_pb.VERDICT_RIGHT).recorded for token in tokens)


def test_token_outlives_its_entry(lone_door: Client, vectors: Vectors) -> None:
    lone_door.store("faq", "billing", embedding=vectors[0], entry="e", response=b"x")
    token = lone_door.lookup("faq", "billing", embedding=vectors[0]).lookup_token
    lone_door.delete_entry("faq", "e")
    assert lone_door.record_feedback(token, cache_pb.VERDICT_RIGHT).recorded


def test_changed_token_is_refused(lone_door: Client, vectors: Vectors) -> None:
    lone_door.store("faq", "billing", embedding=vectors[0], response=b"x")
    token = lone_door.lookup("faq", "billing", embedding=vectors[0]).lookup_token
    for i in range(0, len(token), 7):
        forged = token[:i] + ("A" if token[i] != "A" else "B") + token[i + 1 :]
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_LOOKUP_TOKEN"):
            lone_door.record_feedback(forged, cache_pb.VERDICT_RIGHT)


def test_token_of_a_deleted_cache_is_refused_by_its_successor(lone_door: Client, vectors: Vectors) -> None:
    lone_door.store("faq", "billing", embedding=vectors[0], response=b"x")
    token = lone_door.lookup("faq", "billing", embedding=vectors[0]).lookup_token
    lone_door.call(lone_door.admin.DeleteCache, admin_pb.DeleteCacheRequest(name="caches/faq"))
    lone_door.create_cache("faq", dim=vectors.shape[1])
    lone_door.create_category("faq", "billing")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_LOOKUP_TOKEN"):
        lone_door.record_feedback(token, cache_pb.VERDICT_RIGHT)


def test_same_request_on_same_state_has_same_answer(door: Client, vectors: Vectors) -> None:
    door.batch_store(
        "faq",
        [store_request("faq", "billing", embedding=vectors[i], response=b"%d" % i) for i in range(50)],
    )
    request = lookup_request("faq", "billing", embedding=near(vectors[3], vectors[4], share=0.1))
    answers = [MessageToDict(door.batch_lookup("faq", [request])[0]) for _ in range(10)]
    for answer in answers:
        del answer["latencyUs"], answer["lookupToken"]  # a token tells one lookup from another
    assert all(answer == answers[0] for answer in answers)


def test_client_asks_in_the_modality_that_it_names(lone_client: Client, vectors: NDArray[np.float32]) -> None:
    lone_client.create_cache(
        "pictures", dim=len(vectors[0]), modality="image", embedder_id="clip", code_bits=64
    )
    lone_client.create_category("pictures", "all")
    lone_client.store("pictures", "all", embedding=vectors[0], modality="image", response=b"cat")
    asked = {"embedding": vectors[0], "modality": "image", "embedder_id": "clip"}
    assert lone_client.lookup("pictures", "all", **asked).response == b"cat"
    assert len(lone_client.search("pictures", **asked).results) == 1

"""Stampedes at the door: of concurrent misses one computes, whatever becomes of it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from nearhit import Client
from nearhit.client import lookup_request, store_request
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from nearhit.v1.admin_service_pb2 import GetCategoryRequest
from numpy.typing import NDArray
from refusals import refused
from waiting import eventually

from service.config import Config, LeasesConfig
from service.server import Server

Vectors = NDArray[np.float32]
Answer = cache_pb.LookupResponse
INVALID = grpc.StatusCode.INVALID_ARGUMENT
LEASED, SOON = cache_pb.LOOKUP_REASON_LEASED, timedelta(milliseconds=1)
MINUTE = timedelta(minutes=1)


class Door:
    """A server with room for many who wait, and lookups in threads."""

    def __init__(self, server: Server, client: Client) -> None:
        self.client = client
        self.leases = server._app.leases
        self.pool = ThreadPoolExecutor(16)
        client.create_cache("faq", dim=32, code_bits=64)
        client.create_category("faq", "billing", threshold=0.1)

    def ask(self, embedding: Vectors, *, wait: timedelta | None = None, **fields: Any) -> Answer:
        """Look up under a lease."""
        known = {"embedding": embedding, "lease": MINUTE, "wait": wait, **fields}
        return self.client.lookup("faq", "billing", **known)

    def wait(self, embedding: Vectors, **fields: Any) -> "Future[Answer]":
        """Look up in a thread; returns once the call waits."""
        before = self.leases.waiting_count
        asked = self.pool.submit(self.ask, embedding, **{"wait": MINUTE, **fields})
        eventually(lambda: asked.done() or self.leases.waiting_count > before)
        return asked

    def store(self, embedding: Vectors, lease_token: str, **fields: Any) -> str:
        """Store; returns the entry's name."""
        known = {"embedding": embedding, "response": b"computed", "lease_token": lease_token, **fields}
        stored = self.client.store("faq", "billing", **known)
        return stored.entry.name


@pytest.fixture
def door(
    sqlite_config: Config, start_server: Callable[[Config], Server], connect: Callable[[Server], Client]
) -> Iterator[Door]:
    """A door where 8 may wait."""
    config = replace(sqlite_config, server=replace(sqlite_config.server, threads=20))
    server = start_server(config)
    made = Door(server, connect(server))
    yield made
    made.leases.close()
    made.pool.shutdown()


def near(vectors: Vectors) -> Vectors:
    """A question within the threshold of the first one."""
    return vectors[0] + 0.05 * vectors[1]


def test_of_equal_misses_one_computes_and_the_others_get_its_answer(door: Door, vectors: Vectors) -> None:
    first = door.ask(vectors[0])
    assert first.outcome == cache_pb.LOOKUP_OUTCOME_MISS and len(first.lease_token) >= 32
    waiting = [door.wait(vectors[0]) for _ in range(6)]
    entry = door.store(vectors[0], first.lease_token)
    answers = [one.result() for one in waiting]
    assert {(one.entry, one.response, one.lease_token) for one in answers} == {(entry, b"computed", "")}
    assert door.leases.live_count == 0


def test_misses_that_come_at_once_make_one_computation(door: Door, vectors: Vectors) -> None:
    start, computed = threading.Barrier(8), []

    def caller() -> bytes:
        start.wait(10)
        answer = door.ask(vectors[0], wait=MINUTE)
        if not answer.lease_token:
            return answer.response
        computed.append(answer)
        door.store(vectors[0], answer.lease_token)
        return b"computed"

    answers = [one.result() for one in [door.pool.submit(caller) for _ in range(8)]]
    assert (answers, len(computed)) == ([b"computed"] * 8, 1)


def test_answer_that_was_stored_between_lookup_and_lease_is_served(
    door: Door, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = door.leases.take

    def take_late(*given: Any, **fields: Any) -> Any:
        monkeypatch.setattr(door.leases, "take", take)
        _, token = take(*given, **fields)  # another caller's, who has looked up before
        door.store(vectors[0], token)
        return take(*given, **fields)

    monkeypatch.setattr(door.leases, "take", take_late)
    answer = door.ask(vectors[0])
    assert (answer.response, answer.lease_token, door.leases.live_count) == (b"computed", "", 0)


def test_near_equal_miss_waits_for_the_answer_too(door: Door, vectors: Vectors) -> None:
    token = door.ask(vectors[0]).lease_token
    waiting = door.wait(near(vectors))
    door.store(vectors[0], token)
    answer = waiting.result()
    assert answer.reason == cache_pb.LOOKUP_REASON_WITHIN_THRESHOLD
    assert answer.response == b"computed"


def test_text_alone_waits_by_its_fingerprint(door: Door, vectors: Vectors) -> None:
    known = {"fingerprint": "k", "embedding": None}
    token = door.ask(**known).lease_token  # type: ignore[arg-type]
    waiting = door.wait(**known)  # type: ignore[arg-type]
    door.store(vectors[0], token, fingerprint="k")
    assert waiting.result().reason == cache_pb.LOOKUP_REASON_FINGERPRINT


def test_answer_beyond_the_threshold_makes_one_of_those_who_wait_compute(
    door: Door, vectors: Vectors
) -> None:
    token = door.ask(vectors[0]).lease_token
    waiting = [door.wait(near(vectors)) for _ in range(3)]
    door.store(vectors[5], token)
    eventually(lambda: sum(one.done() for one in waiting) == 1)
    eventually(lambda: door.leases.waiting_count == 2)
    (holder,) = [one.result() for one in waiting if one.done()]
    assert holder.outcome == cache_pb.LOOKUP_OUTCOME_MISS
    door.store(near(vectors), holder.lease_token, response=b"second")
    answers = [one.result() for one in waiting]
    assert sorted(one.response for one in answers) == [b"", b"second", b"second"]


def test_who_gives_up_is_followed_by_one(door: Door, vectors: Vectors) -> None:
    token = door.ask(vectors[0]).lease_token
    waiting = [door.wait(vectors[0]) for _ in range(3)]
    door.client.release_lease(token)
    eventually(lambda: sum(one.done() for one in waiting) == 1)
    eventually(lambda: door.leases.waiting_count == 2)
    (holder,) = [one.result() for one in waiting if one.done()]
    assert holder.lease_token not in ("", token)
    door.store(vectors[0], holder.lease_token)
    assert sorted(one.result().response for one in waiting) == [b"", b"computed", b"computed"]


def test_who_dies_is_followed_by_one_after_its_lease(door: Door, vectors: Vectors) -> None:
    door.ask(vectors[0], lease=timedelta(milliseconds=200))
    waiting = [door.wait(vectors[0]) for _ in range(3)]
    eventually(lambda: sum(one.done() for one in waiting) == 1)
    (holder,) = [one.result() for one in waiting if one.done()]
    door.store(vectors[0], holder.lease_token)
    assert sorted(one.result().response for one in waiting) == [b"", b"computed", b"computed"]


def test_who_does_not_wait_is_told_that_another_computes(door: Door, vectors: Vectors) -> None:
    door.ask(vectors[0])
    answer = door.ask(near(vectors))
    assert (answer.outcome, answer.reason) == (cache_pb.LOOKUP_OUTCOME_MISS, LEASED)
    assert (answer.lease_token, answer.entry, answer.response) == ("", "", b"")


def test_wait_that_is_over_is_told_the_same(door: Door, vectors: Vectors) -> None:
    door.ask(vectors[0])
    assert door.ask(vectors[0], wait=SOON).reason == LEASED


def test_lookup_without_a_lease_minds_none(door: Door, vectors: Vectors) -> None:
    door.ask(vectors[0])
    answer = door.client.lookup("faq", "billing", embedding=vectors[0])
    assert (answer.reason, answer.lease_token) == (cache_pb.LOOKUP_REASON_NO_CANDIDATE, "")


def test_hits_and_misses_that_were_asked_for_take_no_lease(door: Door, vectors: Vectors) -> None:
    door.store(vectors[0], "")
    modes = (cache_pb.LOOKUP_MODE_SERVE, cache_pb.LOOKUP_MODE_BYPASS, cache_pb.LOOKUP_MODE_REFRESH)
    assert [door.ask(vectors[0], mode=mode).lease_token for mode in modes] == ["", "", ""]
    assert door.leases.live_count == 0


def test_shadow_mode_takes_no_lease(door: Door, vectors: Vectors) -> None:
    door.client.update_category("faq", "billing", shadow=True)
    assert [door.ask(vectors[0]).reason for _ in range(2)] == [cache_pb.LOOKUP_REASON_NO_CANDIDATE] * 2


@pytest.mark.parametrize("fields", [{"scope": "other"}, {"category": "travel"}, {"cache": "second"}], ids=str)
def test_scopes_categories_and_caches_do_not_wait_for_each_other(
    door: Door, vectors: Vectors, fields: dict[str, str]
) -> None:
    door.client.create_category("faq", "travel")
    door.client.create_cache("second", dim=32, code_bits=64)
    door.client.create_category("second", "billing")
    door.ask(vectors[0])
    where = {"cache": "faq", "category": "billing", **fields}
    assert door.client.lookup(**where, embedding=vectors[0], lease=MINUTE).lease_token  # type: ignore[arg-type]


def test_call_that_is_cancelled_stops_waiting(door: Door, vectors: Vectors) -> None:
    token = door.ask(vectors[0]).lease_token
    request = lookup_request("faq", "billing", embedding=vectors[0], lease=MINUTE, wait=MINUTE)
    call = door.client.semantic_cache.Lookup.future(request)
    eventually(lambda: door.leases.waiting_count == 1)
    call.cancel()
    eventually(lambda: door.leases.waiting_count == 0)
    door.client.release_lease(token)
    assert door.leases.live_count == 0
    assert door.ask(vectors[0]).lease_token


def test_caller_whose_time_is_short_is_answered_in_time(door: Door, vectors: Vectors) -> None:
    door.ask(vectors[0])
    request = lookup_request("faq", "billing", embedding=vectors[0], lease=MINUTE, wait=MINUTE)
    assert door.client.semantic_cache.Lookup(request, timeout=1.0).reason == LEASED


def test_a_lookup_that_waited_is_counted_once(door: Door, vectors: Vectors) -> None:
    token = door.ask(vectors[0]).lease_token
    waiting = door.wait(vectors[0])
    door.store(vectors[0], token)
    waiting.result()

    def counts() -> tuple[int, int]:
        request = GetCategoryRequest(name="caches/faq/categories/billing")
        category = door.client.call(door.client.admin.GetCategory, request)
        return category.hit_count, category.miss_count

    eventually(lambda: sum(counts()) >= 2)
    assert counts() == (1, 1)


def test_batch_takes_leases_and_does_not_wait(door: Door, vectors: Vectors) -> None:
    rows = (vectors[0], near(vectors), vectors[2])
    requests = [lookup_request("faq", "billing", embedding=row, lease=MINUTE, wait=MINUTE) for row in rows]
    answers = door.client.batch_lookup("faq", requests)
    assert [bool(one.lease_token) for one in answers] == [True, False, True]
    assert answers[1].reason == LEASED
    waiting = door.wait(vectors[2])
    stores = [
        store_request("faq", "billing", embedding=row, response=b"b", lease_token=one.lease_token)
        for row, one in zip(rows, answers, strict=True)
        if one.lease_token
    ]
    door.client.batch_store("faq", stores)
    assert (waiting.result().response, door.leases.live_count) == (b"b", 0)


def test_store_that_is_refused_keeps_its_lease(door: Door, vectors: Vectors) -> None:
    token = door.ask(vectors[0]).lease_token
    with refused(INVALID, "DIMENSION_MISMATCH"):
        door.store(vectors[0][:5], token)
    assert door.ask(vectors[0]).reason == LEASED


def test_lease_that_has_ended_is_no_error(door: Door, vectors: Vectors) -> None:
    token = door.ask(vectors[0]).lease_token
    for _ in range(2):
        door.client.release_lease(token)
    door.store(vectors[0], token)
    door.store(vectors[1], "of another replica")


def test_repeated_store_may_name_another_lease(door: Door, vectors: Vectors) -> None:
    names = {door.store(vectors[0], token, request_id="r") for token in ("", "one", "two")}
    assert len(names) == 1
    with refused(INVALID, "REQUEST_ID_REUSED"):
        door.store(vectors[1], "", request_id="r")


def test_waits_leave_threads_for_who_computes(
    sqlite_config: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    vectors: Vectors,
) -> None:
    config = replace(
        sqlite_config,
        server=replace(sqlite_config.server, threads=6, max_streams=2),
        leases=LeasesConfig(waiting_share=0.5),
    )
    server = start_server(config)
    door = Door(server, connect(server))
    token = door.ask(vectors[0]).lease_token
    waiting = [door.wait(vectors[0]) for _ in range(10)]
    eventually(lambda: sum(one.done() for one in waiting) == 8)
    assert {one.result().reason for one in waiting if one.done()} == {LEASED}
    door.store(vectors[0], token)
    assert sorted(one.result().response for one in waiting)[7:] == [b"", b"computed", b"computed"]
    door.pool.shutdown()


def test_server_that_stops_lets_nobody_wait(
    sqlite_config: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    vectors: Vectors,
) -> None:
    config = replace(sqlite_config, server=replace(sqlite_config.server, threads=20))
    server = start_server(config)
    door = Door(server, connect(server))
    door.ask(vectors[0])
    waiting = door.wait(vectors[0])
    server._app.leases.close()
    assert waiting.result().reason == LEASED
    door.pool.shutdown()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"lease": Duration(seconds=0)}, "INVALID_LEASE"),
        ({"lease": Duration(nanos=999_999)}, "INVALID_LEASE"),
        ({"lease": Duration(seconds=-1)}, "INVALID_LEASE"),
        ({"lease": Duration(seconds=601)}, "INVALID_LEASE"),
        ({"lease": Duration(seconds=600), "wait": Duration(seconds=-1)}, "INVALID_WAIT"),
        ({"lease": Duration(seconds=600), "wait": Duration(seconds=60, nanos=1_000_000)}, "INVALID_WAIT"),
        ({"wait": Duration(seconds=1)}, "WAIT_WITHOUT_LEASE"),
    ],
    ids=str,
)
def test_bad_leases_and_waits_are_refused(
    still_client: Client, vectors: Vectors, fields: dict[str, Duration], reason: str
) -> None:
    query = pb.Query(embedding=vectors[0].astype("<f4").tobytes())
    request = cache_pb.LookupRequest(category="caches/faq/categories/billing", query=query, **fields)
    batch = cache_pb.BatchLookupRequest(parent="caches/faq", requests=[request])
    for method, message in (("Lookup", request), ("BatchLookup", batch)):
        with refused(INVALID, reason):
            still_client.call(getattr(still_client.semantic_cache, method), message)


@pytest.mark.parametrize(
    ("token", "reason"),
    [("", "INVALID_VALUE"), ("x" * 65, "FIELD_TOO_LARGE"), ("a\0", "INVALID_VALUE")],
    ids=ascii,
)
def test_bad_lease_tokens_are_refused(
    still_client: Client, vectors: Vectors, token: str, reason: str
) -> None:
    with refused(INVALID, reason):
        still_client.release_lease(token)
    if token:
        with refused(INVALID, reason):
            still_client.store("faq", "billing", embedding=vectors[0], response=b"x", lease_token=token)

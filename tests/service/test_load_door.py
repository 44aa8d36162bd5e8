"""Load, and bypass below break-even, through the door."""

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from nearhit import Client
from nearhit.client import lookup_request
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray
from refusals import refused
from waiting import eventually

from service.break_even import PROBED, WINDOW
from service.config import Config
from service.server import Server

Vectors = NDArray[np.float32]
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def away(vector: NDArray[np.float32], other: NDArray[np.float32], distance: float) -> NDArray[np.float32]:
    """A unit vector at a cosine distance from the first, towards the other."""
    side = other - (other @ vector) * vector
    cosine = 1 - distance
    found: NDArray[np.float32] = (
        cosine * vector + math.sqrt(1 - cosine**2) * side / np.linalg.norm(side)
    ).astype(np.float32)
    return found


def test_a_reported_load_moves_the_threshold_and_the_reply_says_so(
    lone_door: Client, vectors: Vectors
) -> None:
    lone_door.create_category(
        "faq", "busy", threshold=0.1, load_model="m", max_threshold_at_load=0.3, max_bytes=0
    )
    lone_door.store("faq", "busy", embedding=vectors[0], response=b"x")
    near = away(vectors[0], vectors[1], 0.19)
    idle = lone_door.lookup("faq", "busy", embedding=near)
    assert (idle.response, idle.threshold, idle.load, idle.HasField("load")) == (b"", 0.1, 0.0, True)
    for load, threshold, response in ((0.25, 0.15, b""), (0.5, 0.2, b"x"), (1.0, 0.3, b"x")):
        lone_door.report_load("faq", "m", load)
        lone_door.report_load("faq", "other", 1.0 - load)
        found = lone_door.lookup("faq", "busy", embedding=near)
        assert (found.response, found.load) == (response, load)
        assert found.threshold == pytest.approx(threshold)
    # A caller may only be stricter, and a category that names no model does not move.
    assert lone_door.lookup("faq", "busy", embedding=near, threshold=0.15).threshold == 0.15
    other = lone_door.lookup("faq", "billing", embedding=near)
    assert other.threshold == 0.1 and not other.HasField("load")
    batch = lone_door.batch_lookup(
        "faq", [lookup_request("faq", name, embedding=near) for name in ("busy", "billing")]
    )
    assert [answer.threshold for answer in batch] == [0.3, 0.1]


def test_a_load_moves_the_refresh_time_and_never_the_expire_time(lone_door: Client, vectors: Vectors) -> None:
    at_load = Duration()
    at_load.FromTimedelta(timedelta(hours=1))
    lone_door.create_category(
        "faq",
        "busy",
        ttl=timedelta(hours=1),
        refresh_after=timedelta(milliseconds=1),
        load_model="m",
        refresh_after_at_load=at_load,
    )
    stored = lone_door.store("faq", "busy", embedding=vectors[0], response=b"x").entry
    # The clock of the server is past the first millisecond once it is past the store.
    assert stored.expire_time.ToDatetime() - stored.create_time.ToDatetime() == timedelta(hours=1)
    lone_door.report_load("faq", "m", 1.0)
    assert lone_door.lookup("faq", "busy", embedding=vectors[0]).response == b"x"
    lone_door.report_load("faq", "m", 0.0)
    reasons = {lone_door.lookup("faq", "busy", embedding=vectors[0]).reason for _ in range(20)}
    assert cache_pb.LOOKUP_REASON_STALE in reasons


def test_a_learned_limit_moves_with_the_load(lone_door: Client) -> None:
    lone_door.create_category(
        "faq",
        "learned",
        max_wrong=0.02,
        max_wrong_at_load=0.2,
        load_model="m",
        compare_responses=True,
        exploration=0.0,
        cold_threshold=0.0,
    )
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((6, 32))
    found = cache_pb.LookupResponse()
    for _ in range(400):
        topic = int(rng.integers(6))
        vector = centres[topic] + rng.choice([0.3, 0.9]) * rng.standard_normal(32)
        answer = b"alone" if rng.random() < 0.15 else b"topic %d" % topic
        found = lone_door.lookup("faq", "learned", embedding=vector)
        if not found.response:
            token = found.lookup_token
            lone_door.store("faq", "learned", embedding=vector, response=answer, lookup_token=token)

    def moves() -> bool:
        """Whether the replica decides by the rule that is told, at any load."""
        rule, limits = get(lone_door, "learned").rule, []
        for load in (0.0, 0.5, 1.0):
            lone_door.report_load("faq", "m", load)
            answer = lone_door.lookup("faq", "learned", embedding=centres[0], explain=True)
            assert answer.load == load
            assert ("at full load 20%" in answer.explanation) == (load > 0 and answer.HasField("risk"))
            if answer.HasField("risk"):
                is_hit = answer.outcome == cache_pb.LOOKUP_OUTCOME_HIT
                assert is_hit == (answer.risk <= answer.risk_limit)
            limits.append(answer.risk_limit)
        middle = (rule.risk_limit + rule.risk_limit_at_load) / 2
        is_told = limits == pytest.approx([rule.risk_limit, middle, rule.risk_limit_at_load])
        return is_told and rule.risk_limit < rule.risk_limit_at_load

    eventually(moves)  # verdicts are read in the background, and a rule may be learned meanwhile


def test_what_can_be_reported(lone_door: Client) -> None:
    for load in (-0.1, 1.1, math.nan, math.inf):
        with refused(INVALID, "INVALID_LOAD"):
            lone_door.report_load("faq", "m", load)
    for ttl in (timedelta(0), timedelta(seconds=-1), timedelta(minutes=10, milliseconds=1)):
        with refused(INVALID, "INVALID_TTL"):
            lone_door.report_load("faq", "m", 0.5, ttl=ttl)
    lone_door.report_load("faq", "m", 0.5, ttl=timedelta(minutes=10))
    with refused(INVALID, "INVALID_VALUE"):
        lone_door.report_load("faq", "", 0.5)
    with refused(INVALID, "FIELD_TOO_LARGE"):
        lone_door.report_load("faq", "m" * 257, 0.5)
    with refused(INVALID, "INVALID_NAME"):
        lone_door.report_load("No such name", "m", 0.5)
    with refused(grpc.StatusCode.NOT_FOUND, "CACHE_NOT_FOUND"):
        lone_door.report_load("none", "m", 0.5)
    for i in range(63):
        lone_door.report_load("faq", f"m-{i}", 0.5)
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_MODELS"):
        lone_door.report_load("faq", "one-more", 0.5)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"max_threshold_at_load": 0.05}, "INVALID_THRESHOLD"),
        ({"max_threshold_at_load": 2.5}, "INVALID_THRESHOLD"),
        ({"max_wrong": 0.05, "max_wrong_at_load": 0.01}, "INVALID_TARGET"),
        ({"max_wrong_at_load": 0.6}, "INVALID_TARGET"),
        ({"refresh_after_at_load": Duration()}, "INVALID_REFRESH"),
        ({"load_model": "m" * 257}, "INVALID_VALUE"),
        ({"load_model": "a\0b"}, "INVALID_VALUE"),
        ({"lookup_cost": -1.0}, "INVALID_COST"),
        ({"hit_cost": math.nan}, "INVALID_COST"),
        ({"model_cost": math.inf}, "INVALID_COST"),
        ({"model_cost": 1.0, "hit_cost": 2.0}, "INVALID_COST"),
    ],
)
def test_policies_that_cannot_be(lone_door: Client, policy: dict[str, Any], reason: str) -> None:
    with refused(INVALID, reason):
        lone_door.create_category("faq", "bad", **policy)


# Break-even


def get(client: Client, name: str) -> pb.Category:
    """The category as it is now."""
    request = admin_pb.GetCategoryRequest(name=f"caches/faq/categories/{name}")
    found: pb.Category = client.call(client.admin.GetCategory, request)
    return found


def misses(client: Client, category: str, vectors: Vectors, *, count: int) -> list[int]:
    """The reasons of so many lookups of what is not there."""
    drawn = np.random.default_rng(7).standard_normal((count, vectors.shape[1])).astype(np.float32)
    requests = [lookup_request("faq", category, embedding=row, explain=True) for row in drawn]
    reasons = []
    for start in range(0, count, 250):
        answers = client.batch_lookup("faq", requests[start : start + 250])
        reasons += [answer.reason for answer in answers]
    return reasons


def test_a_category_that_does_not_pay_is_searched_one_time_in_so_many(
    sqlite_config: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    vectors: Vectors,
) -> None:
    client = connect(start_server(sqlite_config))
    client.create_cache("faq", dim=32)
    client.create_category("faq", "dear", threshold=0.02, lookup_cost=1.0, model_cost=5.0, auto_bypass=True)
    assert get(client, "dear").break_even_hit_rate == 0.2
    client.store("faq", "dear", embedding=vectors[0], response=b"x", fingerprint="known")
    assert cache_pb.LOOKUP_REASON_UNPROFITABLE not in misses(client, "dear", vectors, count=WINDOW)
    reasons = misses(client, "dear", vectors, count=10 * PROBED)
    assert reasons.count(cache_pb.LOOKUP_REASON_UNPROFITABLE) == 10 * (PROBED - 1)
    found = client.lookup("faq", "dear", embedding=vectors[0], explain=True, lease=timedelta(seconds=1))
    assert (found.reason, found.response) == (cache_pb.LOOKUP_REASON_UNPROFITABLE, b"")
    assert found.lease_token and not found.lookup_token and found.candidates_examined == 0
    assert "searching pays from a hit rate of 20% on" in found.explanation
    for wrong, reason in ((np.full(32, np.nan), "EMBEDDING_NOT_FINITE"), (np.ones(3), "DIMENSION_MISMATCH")):
        with refused(INVALID, reason):
            client.lookup("faq", "dear", embedding=wrong)
    # What needs no search is served, and who asks for a refresh is told what to replace.
    known = client.lookup("faq", "dear", embedding=vectors[1], fingerprint="known")
    assert (known.reason, known.response) == (cache_pb.LOOKUP_REASON_FINGERPRINT, b"x")
    refresh = client.lookup("faq", "dear", embedding=vectors[0], mode=cache_pb.LOOKUP_MODE_REFRESH)
    assert refresh.reason == cache_pb.LOOKUP_REASON_REFRESH
    client.update_category("faq", "dear", auto_bypass=False)
    assert client.lookup("faq", "dear", embedding=vectors[0]).response == b"x"


def test_without_known_costs_nothing_is_bypassed(lone_door: Client, vectors: Vectors) -> None:
    lone_door.create_category("faq", "unknown", lookup_cost=1.0, auto_bypass=True)
    assert not get(lone_door, "unknown").HasField("break_even_hit_rate")
    reasons = misses(lone_door, "unknown", vectors, count=WINDOW + 50)
    assert cache_pb.LOOKUP_REASON_UNPROFITABLE not in reasons

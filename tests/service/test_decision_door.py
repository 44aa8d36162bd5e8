"""Categories with a target through the door: cold, learned from stored responses, borrowed; false hits."""

import grpc
import numpy as np
import pytest
from nearhit import Client
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray
from refusals import refused
from waiting import eventually

CACHE = "topics"
DIM = 16
TOPICS = 12
SPREAD = 0.28


class Stream:
    """Requests of a few topics, each of which has one answer; some lie between topics and have their own."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.centres = unit(self._rng.standard_normal((TOPICS, DIM)))

    def next(self) -> tuple[NDArray[np.float32], bytes]:
        """A request and its answer."""
        topic = int(self._rng.integers(TOPICS))
        if self._rng.random() < 0.25:
            other = int(self._rng.integers(TOPICS))
            vector = self.centres[topic] + self.centres[other] + 0.1 * self._rng.standard_normal(DIM)
            return unit(vector), b"only %d" % self._rng.integers(1 << 40)
        return unit(self.centres[topic] + SPREAD * self._rng.standard_normal(DIM) / 2), b"topic %d" % topic


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rows of norm 1."""
    found: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(
        np.float32
    )
    return found


def ask(client: Client, category: str, vector: NDArray[np.float32], answer: bytes) -> cache_pb.LookupResponse:
    """Look up; store what a miss computes, with what it was computed for."""
    found = client.lookup(CACHE, category, embedding=vector, explain=True)
    if found.outcome == cache_pb.LOOKUP_OUTCOME_MISS:
        client.store(CACHE, category, embedding=vector, response=answer, lookup_token=found.lookup_token)
    return found


@pytest.fixture
def topics(lone_door: Client) -> Client:
    """A cache whose vectors are short enough to learn fast."""
    lone_door.create_cache(CACHE, dim=DIM)
    return lone_door


def rule_of(client: Client, category: str) -> pb.DecisionRule:
    """How a category decides now."""
    request = admin_pb.GetCategoryRequest(name=f"caches/{CACHE}/categories/{category}")
    found: pb.Category = client.call(client.admin.GetCategory, request)
    return found.rule


def replay(
    client: Client, category: str, *, count: int, seed: int = 0
) -> list[tuple[cache_pb.LookupResponse, bool]]:
    """Ask so many requests; each reply, and whether its answer was right."""
    stream = Stream(seed)
    told = []
    for _ in range(count):
        vector, answer = stream.next()
        found = ask(client, category, vector, answer)
        told.append((found, found.response == answer))
    return told


def test_a_cold_category_serves_what_is_nearly_equal_alone_and_says_so(topics: Client) -> None:
    topics.create_category(CACHE, "cold", max_wrong=0.05)
    vector, answer = Stream().next()
    topics.store(CACHE, "cold", embedding=vector, response=answer)
    found = topics.lookup(CACHE, "cold", embedding=vector, explain=True)
    assert (found.response, found.rule_source) == (answer, pb.RULE_SOURCE_COLD)
    near = unit(vector + 0.1 * np.random.default_rng(1).standard_normal(DIM))
    found = topics.lookup(CACHE, "cold", embedding=near, explain=True)
    assert (found.reason, found.entry, found.response) == (cache_pb.LOOKUP_REASON_RISKY, "", b"")
    assert found.rule_source == pb.RULE_SOURCE_COLD and not found.HasField("risk")
    assert "too little is known to promise at most 5% wrong" in found.explanation
    assert found.lookup_token  # a verdict on what was found is taken
    assert rule_of(topics, "cold").source == pb.RULE_SOURCE_COLD


def test_a_category_learns_from_what_is_stored_and_keeps_its_promise(topics: Client) -> None:
    topics.create_category(CACHE, "learned", max_wrong=0.05, compare_responses=True, exploration=0.05)
    told = replay(topics, "learned", count=900)
    eventually(lambda: rule_of(topics, "learned").source == pb.RULE_SOURCE_LEARNED)
    told += replay(topics, "learned", count=300, seed=1)
    hits = [(found, right) for found, right in told if found.outcome == cache_pb.LOOKUP_OUTCOME_HIT]
    assert len(hits) > 200
    assert sum(not right for _, right in hits) <= 0.05 * len(hits)
    learned = [found for found, _ in hits if found.rule_source == pb.RULE_SOURCE_LEARNED]
    assert learned
    for found in learned:
        assert 0 <= found.risk_low <= found.risk <= found.risk_high <= 1
        assert found.risk <= found.risk_limit
        assert "of its own judged lookups" in found.explanation
    reasons = {found.reason for found, _ in told}
    assert {cache_pb.LOOKUP_REASON_RISKY, cache_pb.LOOKUP_REASON_EXPLORED} <= reasons


def test_a_new_category_borrows_from_its_parent(topics: Client) -> None:
    topics.create_category(CACHE, "root", max_wrong=0.05, compare_responses=True)
    topics.create_category(CACHE, "old", parent="root")
    replay(topics, "old", count=700)
    topics.create_category(CACHE, "young", parent="root")
    replay(topics, "young", count=60, seed=2)
    eventually(lambda: rule_of(topics, "young").source == pb.RULE_SOURCE_BORROWED)
    assert rule_of(topics, "old").source == pb.RULE_SOURCE_LEARNED
    told = replay(topics, "young", count=100, seed=3)
    assert any(found.rule_source == pb.RULE_SOURCE_BORROWED and found.response for found, _ in told)


def test_a_wrong_answer_is_not_served_near_its_question_again(
    door: Client, vectors: NDArray[np.float32]
) -> None:
    door.store("faq", "billing", embedding=vectors[0], response=b"x", entry="a")
    near = unit(vectors[0] + 0.02 * np.random.default_rng(0).standard_normal(len(vectors[0])))
    found = door.lookup("faq", "billing", embedding=near)
    assert found.response == b"x"
    door.record_feedback(found.lookup_token, cache_pb.VERDICT_WRONG)
    again = door.lookup("faq", "billing", embedding=near, explain=True)
    assert again.reason == cache_pb.LOOKUP_REASON_DISTRUSTED
    assert "a wrong answer was served" in again.explanation
    door.store("faq", "billing", embedding=near, response=b"y", entry="b")
    assert door.lookup("faq", "billing", embedding=near).response == b"y"


def test_what_a_target_can_be(lone_door: Client) -> None:
    for values in ({"max_wrong": 0.0}, {"max_wrong": 0.6}, {"confidence": 1.0}, {"exploration": 0.9}):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_TARGET"):
            lone_door.create_category("faq", "bad", **values)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_LOOKUP_TOKEN"):
        lone_door.store("faq", "billing", embedding=np.ones(32), response=b"x", lookup_token="forged")


@pytest.mark.parametrize("completion", [cache_pb.COMPLETION_FAILED, cache_pb.COMPLETION_TRUNCATED])
def test_what_failed_says_nothing_of_the_candidate(topics: Client, completion: cache_pb.Completion) -> None:
    topics.create_category(
        CACHE, "down", max_wrong=0.05, compare_responses=True, on_wrong="WRONG_ACTION_REMOVE"
    )
    vector, answer = Stream().next()
    near = unit(vector + 0.1 * np.random.default_rng(1).standard_normal(DIM))
    topics.store(CACHE, "down", embedding=vector, response=answer)
    token = topics.lookup(CACHE, "down", embedding=near).lookup_token
    topics.store(CACHE, "down", embedding=near, response=b"error", completion=completion, lookup_token=token)
    assert topics.record_feedback(token, cache_pb.VERDICT_RIGHT).recorded  # none was before

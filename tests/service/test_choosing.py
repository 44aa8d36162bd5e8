"""Which entry a category with a target serves: what the shortlist is, what keeps a rule from deciding, what a
lookup tells that is judged later. On a store and a replica, with rules made by hand."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judged_lookups import JUDGE, change_policy
from numpy.typing import NDArray
from sqlalchemy import Engine
from store_rows import DIM, StoreCache, make_cache, new_entry

from index.requests import Match
from service import store
from service.accesses import AccessLog
from service.cache import LookupAnswer, SemanticCache
from service.choosing import choose, reach, sure_threshold
from service.config import SearchConfig, StoreConfig
from service.database import migrate, open_engine, reading
from service.decision_rules import DecisionRule, RuleSource
from service.embedding import Embedded, Input
from service.evidence import Evidence, judge_of, sketch_of, unpack_evidence
from service.false_hits import FalseHit, FalseHits
from service.finding import to_lookup
from service.leases import Leases
from service.load import Loads
from service.lookup import Found, LookupMode, LookupQuery, LookupReason
from service.payload import pack_payload
from service.promise import Target
from service.replica import CacheReplica
from service.request_samples import RequestSamples
from service.risk import FEATURES, RiskModel, weigh
from service.rows import read_cache
from service.tokens import read_token

AXIS = np.eye(DIM, dtype=np.float32)[0]
POLICY = {"max_wrong": 0.05, "exploration": 0.0, "cold_threshold": 0.02}
TARGET = Target(wrong_share=0.05)
NOW_MS = 1_000


def at_distance(distance: float, *, plane: int) -> NDArray[np.float32]:
    """A unit vector at this cosine distance from AXIS."""
    across = np.eye(DIM, dtype=np.float32)[plane]
    cosine = 1.0 - distance
    return np.float32(cosine) * AXIS + np.float32(np.sqrt(1.0 - cosine**2)) * across


class Asker:
    """One cache with the category "faq" that promises at most 5% wrong hits."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.cache: StoreCache = make_cache(engine)
        self.category = self.cache.category("faq", **POLICY)
        with reading(engine) as connection:
            record = read_cache(connection, self.cache.name)
        self.replica = CacheReplica(engine, record, search=SearchConfig(), data_dir=str(folder))
        self.samples = RequestSamples()
        self.loads = Loads(clock=lambda: 0.0)
        self.lookups = SemanticCache(
            accesses=AccessLog(max_entries=100, max_distances=0),
            embedder=None,
            clock=lambda: NOW_MS,
            min_seq_wait_seconds=0.0,
            leases=Leases(max_per_category=10, max_waiting=0),
            samples=self.samples,
            loads=self.loads,
        )

    def put(self, *stored: tuple[float, str]) -> None:
        """Store entries, each at a distance from AXIS, in a plane of its own, with a response."""
        for distance, response in stored:
            plane = 1 + len(self.cache.names()) % (DIM - 1)
            vector = at_distance(distance, plane=plane).astype(np.float16)
            item = new_entry(
                self.category, f"{distance}", vector=vector, response=response.encode(), text=response
            )
            self.cache.mutate(partial(store.store_entries, items=[item]))
        self.replica.catch_up()

    def change(self, **policy: Any) -> None:
        """The policy, as the replica sees it at once."""
        change_policy(self.cache, "faq", **policy)
        self.replica.refresh_settings()

    def decide_by(self, rule: DecisionRule) -> None:
        """From now on."""
        self.replica.use_rules({self.category: rule}, self.replica.state.false_hits)

    def distrust(self, entry: str, asked: NDArray[np.float32] = AXIS) -> None:
        """Remember that an entry was wrong for a question."""
        row = next(row for row in self.cache.entries() if row.name == entry)
        hits = {self.category: FalseHits.of([FalseHit(sketch_of(asked), row.id)])}
        self.replica.use_rules(self.replica.state.rules, hits)

    def ask(self, vector: NDArray[np.float32] = AXIS, **fields: Any) -> LookupAnswer:
        """Look a vector up."""
        query = LookupQuery(category="faq", source=Input(embedding=vector), explain=True, **fields)
        (answer,) = self.lookups.lookup(self.replica, [query], timeout_seconds=1.0)
        return answer

    def evidence(self, answer: LookupAnswer) -> Evidence:
        """What the lookup's token holds."""
        found = unpack_evidence(read_token(answer.token, self.replica.state.record.token_key).evidence)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def lone_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One migrated SQLite database."""
    folder = tmp_path_factory.mktemp("choosing")
    engine = open_engine(StoreConfig(url=f"sqlite:///{folder}/n.db", durability="normal"))
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def asker(lone_engine: Engine, tmp_path: Path) -> Asker:
    """On a cache of its own."""
    return Asker(lone_engine, tmp_path)


def rule(limit: float = 0.3, *, by: str = "margin", weight: float = -2.0, **fields: Any) -> DecisionRule:
    """A learned one whose risk falls with one feature: a margin of 0.1 gives a risk of a half."""
    weights = np.zeros(len(FEATURES))
    weights[0], weights[FEATURES.index(by)] = 1.0, weight
    model = RiskModel(weights, 0.01 * np.eye(len(FEATURES)))
    known = {"source": RuleSource.LEARNED, "target": TARGET, "judge": JUDGE, **fields}
    return DecisionRule(model=model, risk_limit=limit, **known)


def test_a_rule_serves_what_is_within_its_limit_and_nothing_else(asker: Asker) -> None:
    asker.put((0.1, "a"), (0.4, "b"))
    features = weigh([0.1, 0.4], [1, 2], None).features
    risk = rule().model.risk(features, z=TARGET.z)
    for limit, reason in ((0.99, LookupReason.WITHIN_THRESHOLD), (0.01, LookupReason.RISKY)):
        asker.decide_by(rule(limit * 2 * risk.probability))
        answer = asker.ask()
        assert answer.reason is reason
        assert answer.response == (b"a" if answer.is_hit else b"")
        assert answer.risk == pytest.approx(risk, abs=1e-3)
        assert answer.rule_source is RuleSource.LEARNED
        assert asker.evidence(answer).features == pytest.approx(features, abs=1e-2)


def test_a_limit_that_is_reached_is_kept(asker: Asker) -> None:
    asker.put((0.1, "a"))
    asker.decide_by(rule(1.0))
    risk = asker.ask().risk
    assert risk is not None
    asker.decide_by(rule(risk.probability))
    assert asker.ask().is_hit
    asker.decide_by(rule(risk.probability * 0.999))
    assert asker.ask().reason is LookupReason.RISKY


def test_a_risk_that_is_no_number_serves_nothing(asker: Asker) -> None:
    asker.put((0.001, "a"))
    broken = RiskModel(np.full(len(FEATURES), np.nan), np.eye(len(FEATURES)))
    asker.decide_by(replace(rule(1.0), model=broken))
    assert asker.ask().reason is LookupReason.RISKY


@pytest.mark.parametrize(
    "unfit",
    [
        {"source": RuleSource.COLD},
        {"judge": judge_of("text:2", "")},
        {"judge": judge_of("text", "a verifier")},
        {"target": Target(wrong_share=0.06)},
        {"target": replace(TARGET, confidence=0.9)},
        {"target": None},
    ],
)
def test_a_rule_for_something_else_does_not_decide(asker: Asker, unfit: dict[str, Any]) -> None:
    asker.put((0.1, "a"))
    asker.decide_by(rule(1.0))
    assert asker.ask().is_hit
    asker.decide_by(rule(1.0, **unfit))
    answer = asker.ask()
    assert (answer.reason, answer.rule_source) == (LookupReason.RISKY, RuleSource.COLD)
    asker.change(cold_threshold=0.15)
    assert asker.ask().is_hit


def test_a_tightened_target_holds_before_a_rule_is_learned_for_it(asker: Asker) -> None:
    asker.put((0.1, "a"))
    asker.decide_by(rule(1.0))
    asker.change(max_wrong=0.01)
    assert asker.ask().reason is LookupReason.RISKY


def test_a_limit_for_another_target_at_load_does_not_hold_under_load(asker: Asker) -> None:
    asker.change(max_wrong_at_load=0.2, load_model="m")
    asker.put((0.1, "a"))
    asker.loads.report(asker.cache.id, "m", 1.0, seconds=60.0)
    for at_load, is_hit in ((replace(TARGET, wrong_share=0.2), True), (TARGET, False), (None, False)):
        asker.decide_by(rule(0.0, risk_limit_at_load=1.0, target_at_load=at_load))
        assert asker.ask().is_hit == is_hit


def test_who_asks_for_nearer_entries_is_served_no_riskier_ones(asker: Asker) -> None:
    """The other answer lies beyond what was asked for, and still speaks against."""
    asker.put((0.09, "a"), (0.11, "b"))
    asker.decide_by(rule(0.3))
    everything = asker.ask()
    assert everything.reason is LookupReason.RISKY
    nearer = asker.ask(threshold=0.1)
    assert (nearer.reason, nearer.risk) == (LookupReason.RISKY, everything.risk)


def test_what_is_chosen_is_within_what_was_asked_for(asker: Asker) -> None:
    asker.put((0.09, "a"), (0.11, "b"), (0.112, "b"), (0.114, "b"))
    asker.decide_by(rule(1.0))
    assert asker.ask().response == b"b"  # three speak for it
    answer = asker.ask(threshold=0.1)
    assert (answer.reason, answer.response) == (LookupReason.BEYOND_THRESHOLD, b"")
    assert asker.ask(threshold=0.112).is_hit


def test_near_a_false_hit_the_limit_is_half(asker: Asker) -> None:
    asker.put((0.1, "a"), (0.3, "b"))
    asker.decide_by(rule(1.0))
    risk = asker.ask().risk
    assert risk is not None
    asker.distrust("0.3")
    alone = asker.ask().risk  # without the other answer
    assert alone is not None and alone.probability < risk.probability
    for limit, is_hit in ((2.02, True), (1.98, False)):
        asker.decide_by(rule(limit * alone.probability))
        assert asker.ask().is_hit == is_hit
    asker.distrust("0.1")
    asker.decide_by(rule(1.0))
    assert asker.ask().response == b"b"


def test_near_a_false_hit_a_cold_category_serves_half_as_far(asker: Asker) -> None:
    asker.put((0.015, "a"), (0.4, "b"))
    assert asker.ask().is_hit
    asker.distrust("0.4")
    assert asker.ask().reason is LookupReason.RISKY
    asker.distrust("0.4", -AXIS)
    assert asker.ask().is_hit


def test_a_false_hit_of_a_mapped_question_is_remembered_by_what_was_asked(asker: Asker) -> None:
    asker.change(max_wrong=None, threshold=0.3)
    asker.put((0.1, "a"))
    asked = at_distance(0.9, plane=3)
    state = asker.replica.state
    plain = to_lookup(
        state,
        LookupQuery(category="faq", source=Input(embedding=asked)),
        None,
        Embedded(AXIS, "text"),
    )
    mapped = plain._replace(mapped_from=Embedded(asked, "text:2"))
    payload = pack_payload("0.1", "", b"a")
    row = next(iter(asker.cache.entries()))
    match = Match(row.id, asker.category, 0.1, None, payload)
    reasons = []
    for wrong in (-AXIS, asked, AXIS):
        asker.distrust("0.1", wrong)
        nearest = Found(match=match, reason=LookupReason.WITHIN_THRESHOLD, distance=match.cosine_distance)
        reasons.append(choose(asker.replica.state, mapped, nearest, [match], now_ms=NOW_MS).reason)
    assert reasons == [LookupReason.WITHIN_THRESHOLD, LookupReason.DISTRUSTED, LookupReason.DISTRUSTED]


def test_exploration_is_a_share_and_the_same_for_the_same_request(asker: Asker) -> None:
    asker.change(exploration=0.3)
    asker.put((0.001, "a"))
    asker.decide_by(rule(1.0))
    rng = np.random.default_rng(0)
    asked = [AXIS + np.float32(0.02) * rng.standard_normal(DIM).astype(np.float32) for _ in range(300)]
    asked = [(vector / np.linalg.norm(vector)).astype(np.float32) for vector in asked]
    answers = [asker.ask(vector) for vector in asked]
    explored = [answer.reason is LookupReason.EXPLORED for answer in answers]
    assert 60 <= sum(explored) <= 120
    assert {answer.reason for answer in answers} == {LookupReason.EXPLORED, LookupReason.WITHIN_THRESHOLD}
    assert [asker.ask(vector).reason is LookupReason.EXPLORED for vector in asked] == explored
    assert [answer.response for answer in answers] == [b"" if found else b"a" for found in explored]


@pytest.mark.parametrize(
    ("changed", "fields", "told"),
    [
        ({}, {}, (True, False)),
        ({"exploration": 0.5}, {}, None),
        ({"shadow": True}, {}, (False, True)),
        ({}, {"mode": LookupMode.REFRESH}, (False, True)),
    ],
)
def test_what_is_told_of_a_hit_that_was_or_was_not_served(
    asker: Asker, changed: dict[str, Any], fields: dict[str, Any], told: tuple[bool, bool] | None
) -> None:
    asker.change(**changed)
    asker.put((0.001, "a"))
    asker.decide_by(rule(1.0))
    answer = asker.ask(**fields)
    evidence = asker.evidence(answer)
    expected = told or (answer.is_hit, not answer.is_hit)
    assert (evidence.was_served, evidence.is_withheld) == expected
    assert evidence.sketch == sketch_of(AXIS) and evidence.judge == JUDGE
    asker.decide_by(rule(0.0))
    evidence = asker.evidence(asker.ask(**fields))
    assert (evidence.was_served, evidence.is_withheld) == (False, False)


def test_what_is_asked_is_sampled_served_or_not(asker: Asker) -> None:
    asker.put((0.1, "a"))
    for limit in (1.0, 0.0):
        asker.decide_by(rule(limit))
        asker.ask()
    asker.ask(-AXIS)  # nothing is near
    latest = asker.samples.latest(asker.category, JUDGE)
    np.testing.assert_allclose(latest, [weigh([0.1], [1], None).features] * 2, atol=1e-2)


def test_a_question_that_is_not_nearly_equal_does_not_wait_for_anothers_lease(asker: Asker) -> None:
    first = asker.ask(lease_seconds=10.0)
    near = asker.ask(at_distance(0.01, plane=2), lease_seconds=10.0)
    other = asker.ask(at_distance(0.3, plane=2), lease_seconds=10.0)
    assert first.lease_token and other.lease_token
    assert near.reason is LookupReason.LEASED


def test_how_far_is_looked_and_how_near_is_sure(asker: Asker) -> None:
    def lookup_of(threshold: float | None = None) -> Any:
        query = LookupQuery(category="faq", source=Input(embedding=AXIS), threshold=threshold)
        return to_lookup(asker.replica.state, query, None, Embedded(AXIS, "text"))

    assert (reach(lookup_of(0.1)), sure_threshold(lookup_of(0.1))) == (0.5, 0.02)
    assert sure_threshold(lookup_of(0.01)) == 0.01
    asker.change(max_wrong=None, threshold=0.2)
    assert (reach(lookup_of(0.1)), sure_threshold(lookup_of(0.1))) == (0.1, 0.1)
    assert (reach(lookup_of()), sure_threshold(lookup_of())) == (0.2, 0.2)

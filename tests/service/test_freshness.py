"""Which entries a lookup may serve by their age and by what was said of them, with the clock in the test's
hand."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy import Engine
from store_rows import DIM, StoreCache, make_cache, new_entry

from service import judging, store
from service.accesses import AccessLog
from service.cache import LookupAnswer, SemanticCache
from service.categories import update_category
from service.check import check_cache
from service.config import Config, SearchConfig, StoreConfig
from service.database import reading, writing
from service.embedding import Input
from service.expiration import Freshness, freshness, refresh_time
from service.generations import build_index
from service.lookup import LookupMode, LookupQuery, LookupReason
from service.payload import Facts, pack_payload, payload_facts, unpack_payload
from service.policy import Policy
from service.records import Operation, RecordedVerdict, StoredEntry
from service.replica import CacheReplica
from service.rows import read_cache

NEVER = 2**63 - 1
AXIS = np.eye(DIM, dtype=np.float32)[0]


def at_angle(angle: float) -> NDArray[np.float16]:
    """A unit vector at this angle from AXIS."""
    vector = np.zeros(DIM)
    vector[:2] = np.cos(angle), np.sin(angle)
    return vector.astype(np.float16)


class Shop:
    """One cache with the category "faq" of threshold 0.1, at a time that the test sets."""

    def __init__(self, engine: Engine, data_dir: Path, **policy: Any) -> None:
        self.now_ms = 1_000
        self.engine, self.data_dir = engine, str(data_dir)
        self.cache: StoreCache = make_cache(engine)
        self.faq = self.cache.category("faq", **policy)
        self.open()
        self.lookups = SemanticCache(
            accesses=AccessLog(max_entries=9),
            embedder=None,
            clock=lambda: self.now_ms,
            min_seq_wait_seconds=0.0,
        )

    def open(self) -> None:
        """Serve what is stored, as a process does that starts now."""
        with reading(self.engine) as connection:
            record = read_cache(connection, self.cache.name)
        self.replica = CacheReplica(self.engine, record, search=SearchConfig(), data_dir=self.data_dir)

    def put(self, name: str, *, angle: float = 0.0, **fields: Any) -> StoredEntry:
        """Store an entry whose response is its name."""
        item = new_entry(self.faq, name, vector=at_angle(angle), response=name.encode(), **fields)
        stored: StoredEntry = self.cache.mutate(
            partial(store.store_entries, items=[item]), now_ms=self.now_ms
        )[0]
        self.replica.catch_up()
        return stored

    def change(self, **changed: Any) -> None:
        """Change the category's policy."""
        with writing(self.engine) as connection:
            update_category(connection, self.cache.name, "faq", etag="", changed=changed, now_ms=0)
        self.replica.refresh_settings()

    def ask(self, **fields: Any) -> LookupAnswer:
        """Look up AXIS, unless other input is given."""
        fields = {"source": Input(embedding=AXIS), **fields}
        query = LookupQuery(category="faq", **fields)
        return self.lookups.lookup(self.replica, [query], timeout_seconds=1.0)[0]

    def judge(self, name: str, verdict: str, *, lookup: int = 0) -> RecordedVerdict:
        """Record a verdict on an entry."""
        row_id = {record.name: record.id for record in self.cache.entries()}[name]
        values = {
            "category_id": self.faq,
            "lookup_digest": bytes([lookup]) * 16,
            "entry_id": row_id,
            "verdict": verdict,
            "distance": 0.0,
            "threshold": 0.1,
            "generation": "",
            "seq": 1,
        }
        recorded: RecordedVerdict = self.cache.mutate(
            lambda tx: judging.record_feedback(tx, values), now_ms=self.now_ms
        )
        self.replica.catch_up()
        return recorded


@pytest.fixture
def shop(shared_engine: Engine, tmp_path: Path) -> Callable[..., Shop]:
    """Makes a shop of a policy."""
    return partial(Shop, shared_engine, tmp_path)


def told(answer: LookupAnswer) -> tuple[str, str, bytes, bool]:
    """What the asker sees."""
    return answer.reason.value, answer.entry, answer.response, answer.refresh_due


@given(
    age=st.integers(-50, 50),
    refresh=st.none() | st.integers(1, 50),
    most=st.none() | st.integers(1, 50),
    serves=st.booleans(),
)
def test_freshness_is_that_of_the_stricter_of_policy_and_caller(
    *, age: int, refresh: int | None, most: int | None, serves: bool
) -> None:
    policy = Policy(refresh_after_ms=refresh, stale_while_revalidate=serves)
    found = freshness(1_000, policy, now_ms=1_000 + age, max_age_ms=most)
    if most is not None and age > most:
        assert found is Freshness.STALE
    elif refresh is not None and age >= refresh:
        assert found is (Freshness.DUE if serves else Freshness.STALE)
    else:
        assert found is Freshness.FRESH


def test_an_unknown_age_is_beyond_every_limit_and_no_limit_is_asked_of_it() -> None:
    assert freshness(None, Policy(), now_ms=5) is Freshness.FRESH
    assert freshness(None, Policy(), now_ms=5, max_age_ms=10**9) is Freshness.STALE
    assert freshness(None, Policy(refresh_after_ms=10**9), now_ms=5) is Freshness.STALE


@pytest.mark.parametrize(
    ("expire_ms", "after_ms", "expected"), [(900, 100, 600), (550, 100, 550), (NEVER, None, None)]
)
def test_an_entry_is_due_no_later_than_it_expires(
    expire_ms: int, after_ms: int | None, expected: int | None
) -> None:
    assert refresh_time(500, expire_ms, after_ms) == expected


@pytest.mark.parametrize(("now_ms", "reason"), [(1_099, "within_threshold"), (1_100, "stale")])
def test_from_its_refresh_time_on_an_entry_is_a_miss_that_names_it(
    shop: Callable[..., Shop], now_ms: int, reason: str
) -> None:
    faq = shop(refresh_after_ms=100, ttl_ms=500)
    faq.put("a")
    faq.now_ms = now_ms
    answer = faq.ask()
    assert (answer.reason.value, answer.entry, answer.is_hit) == (reason, "a", reason != "stale")
    assert answer.token and answer.distance == pytest.approx(0.0, abs=1e-3)
    assert answer.response == (b"" if reason == "stale" else b"a")
    faq.now_ms = 1_500
    assert faq.ask().reason is LookupReason.NO_CANDIDATE


def test_what_may_be_served_stale_is_served_and_due(shop: Callable[..., Shop]) -> None:
    faq = shop(refresh_after_ms=100, stale_while_revalidate=True, ttl_ms=500)
    faq.put("a", fingerprint="k")
    assert told(faq.ask()) == ("within_threshold", "a", b"a", False)
    faq.now_ms = 1_100
    assert told(faq.ask()) == ("within_threshold", "a", b"a", True)
    assert told(faq.ask(fingerprint="k")) == ("fingerprint", "a", b"a", False)  # one caller was told
    assert told(faq.ask(max_age_ms=99)) == ("stale", "a", b"", False)
    assert told(faq.ask(mode=LookupMode.REFRESH)) == ("refresh", "a", b"", False)
    faq.now_ms = 1_500  # hard
    assert faq.ask().reason is LookupReason.NO_CANDIDATE


@pytest.mark.parametrize(("max_age_ms", "reason"), [(99, "stale"), (100, "within_threshold")])
def test_a_caller_may_ask_for_a_younger_answer(
    shop: Callable[..., Shop], max_age_ms: int, reason: str
) -> None:
    faq = shop()
    faq.put("a", fingerprint="k")
    faq.now_ms = 1_100
    assert faq.ask(max_age_ms=max_age_ms).reason.value == reason
    assert (faq.ask(max_age_ms=max_age_ms, fingerprint="k").reason.value == "stale") == (reason == "stale")


def test_a_caller_cannot_ask_for_an_older_answer_than_the_policy_serves(shop: Callable[..., Shop]) -> None:
    faq = shop(refresh_after_ms=100)
    faq.put("a")
    faq.now_ms = 1_200
    assert faq.ask(max_age_ms=10**6).reason is LookupReason.STALE


def test_the_nearest_entry_that_is_fresh_is_served(shop: Callable[..., Shop]) -> None:
    faq = shop(refresh_after_ms=100)
    faq.put("old", angle=0.0)
    faq.now_ms = 1_050
    faq.put("farther", angle=0.2)
    faq.put("near", angle=0.1)
    faq.now_ms = 1_120
    assert told(faq.ask()) == ("within_threshold", "near", b"near", False)
    faq.now_ms = 1_150
    assert told(faq.ask()) == ("stale", "old", b"", False)


def test_of_a_stale_entry_of_the_same_request_no_other_takes_the_place(shop: Callable[..., Shop]) -> None:
    faq = shop(refresh_after_ms=100)
    faq.put("same", fingerprint="k")
    faq.now_ms = 1_090
    faq.put("near", angle=0.1)
    faq.now_ms = 1_110
    assert told(faq.ask(fingerprint="k")) == ("stale", "same", b"", False)


def test_a_changed_refresh_time_holds_for_stored_entries_at_once(shop: Callable[..., Shop]) -> None:
    faq = shop()
    faq.put("a")
    faq.now_ms = 1_100
    assert faq.ask().is_hit
    faq.change(refresh_after_ms=50)
    assert faq.ask().reason is LookupReason.STALE
    faq.change(stale_while_revalidate=True)
    assert faq.ask().refresh_due
    faq.change(refresh_after_ms=101)
    assert told(faq.ask()) == ("within_threshold", "a", b"a", False)


def test_a_hit_makes_no_entry_younger(shop: Callable[..., Shop]) -> None:
    faq = shop(refresh_after_ms=100, ttl_ms=150, ttl_mode="sliding")
    faq.put("a")
    faq.now_ms = 1_090
    answer = faq.ask()
    assert answer.is_hit
    faq.now_ms = 1_100
    assert faq.ask().reason is LookupReason.STALE


def test_an_old_entry_that_was_imported_is_as_old_as_it_was(shop: Callable[..., Shop]) -> None:
    faq = shop(refresh_after_ms=100)
    faq.put("a", create_ms=850, expire_ms=NEVER)
    assert faq.ask().reason is LookupReason.STALE


def test_a_clock_that_went_back_makes_nothing_stale(shop: Callable[..., Shop]) -> None:
    faq = shop(refresh_after_ms=100)
    faq.put("a")
    faq.now_ms = 10
    assert faq.ask(max_age_ms=1).is_hit


def test_what_was_judged_wrong_is_no_hit_by_distance_until_it_is_judged_right(
    shop: Callable[..., Shop],
) -> None:
    faq = shop(on_wrong="demote")
    faq.put("a", fingerprint="k")
    assert faq.judge("a", "wrong") == RecordedVerdict(is_first=True)
    answer = faq.ask()
    assert (told(answer), answer.distance, answer.token) == (("beyond_threshold", "", b"", False), None, "")
    assert told(faq.ask(fingerprint="k")) == ("fingerprint", "a", b"a", False)
    faq.judge("a", "wrong", lookup=1)
    faq.judge("a", "replaced", lookup=2)
    faq.change(on_wrong="keep")
    assert not faq.ask().is_hit
    faq.judge("a", "right", lookup=3)
    assert faq.ask().is_hit
    operations = [operation for _, operation, _ in faq.cache.feed()]
    assert operations == [Operation.UPSERT, Operation.UPSERT, Operation.UPSERT]
    faq.cache.check()


def test_the_next_entry_answers_in_the_place_of_a_demoted_one(shop: Callable[..., Shop]) -> None:
    faq = shop(on_wrong="demote", refresh_after_ms=100)
    faq.put("a")
    faq.put("next", angle=0.1)
    faq.judge("a", "wrong")
    assert told(faq.ask()) == ("within_threshold", "next", b"next", False)
    faq.now_ms = 1_100
    assert told(faq.ask()) == ("stale", "next", b"", False)


def test_what_replaces_a_demoted_entry_is_not_demoted(shop: Callable[..., Shop]) -> None:
    faq = shop(on_wrong="demote")
    faq.put("a", fingerprint="k")
    faq.judge("a", "wrong")
    faq.put("b", fingerprint="k")
    assert told(faq.ask()) == ("within_threshold", "b", b"b", False)


def test_a_demotion_survives_a_restart_and_a_build(shop: Callable[..., Shop]) -> None:
    faq = shop(on_wrong="demote")
    faq.put("a", fingerprint="k")
    faq.judge("a", "wrong")
    faq.open()
    assert not faq.ask().is_hit
    _build(faq)
    assert faq.replica.open_new_generation()
    assert not faq.ask().is_hit and faq.ask(fingerprint="k").is_hit
    assert _problems(faq) == ()
    faq.judge("a", "right", lookup=1)
    assert faq.ask().is_hit and _problems(faq) == ()


@pytest.mark.parametrize(
    ("on_wrong", "verdict", "left"),
    [
        ("remove", "wrong", []),
        ("remove", "right", ["a"]),
        ("remove", "replaced", ["a"]),
        ("keep", "wrong", ["a"]),
        ("demote", "wrong", ["a"]),
    ],
)
def test_what_was_judged_wrong_is_removed_where_the_policy_says_so(
    shop: Callable[..., Shop], on_wrong: str, verdict: str, left: list[str]
) -> None:
    faq = shop(on_wrong=on_wrong)
    faq.put("a")
    faq.judge("a", verdict)
    assert faq.cache.names() == left
    assert faq.ask().is_hit == (left == ["a"] and on_wrong != "demote")
    faq.cache.check()


def test_a_second_verdict_of_a_lookup_does_nothing(shop: Callable[..., Shop]) -> None:
    faq = shop(on_wrong="remove")
    faq.put("a")
    faq.judge("a", "right")
    assert not faq.judge("a", "wrong").is_first
    assert faq.ask().is_hit


def test_a_generation_of_before_there_were_create_times_is_served_and_of_unknown_age(
    shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    faq = shop()
    faq.put("a")
    with monkeypatch.context() as before:
        before.setattr("service.row_scan.Facts", lambda *_: None)
        _build(faq)
    assert faq.replica.open_new_generation()
    assert _problems(faq) == ()
    assert faq.ask().is_hit
    assert faq.ask(max_age_ms=10**9).reason is LookupReason.STALE
    _build(faq)
    assert faq.replica.open_new_generation()
    assert faq.ask(max_age_ms=10**9).is_hit


@given(
    create_ms=st.integers(-(2**60), 2**60),
    is_demoted=st.booleans(),
    text=st.text(max_size=20),
    response=st.binary(),
)
def test_facts_are_unpacked_as_they_were_packed(
    *, create_ms: int, is_demoted: bool, text: str, response: bytes
) -> None:
    facts = Facts(create_ms, is_demoted)
    packed = pack_payload("e", "t", response, text=text, facts=facts)
    assert payload_facts(packed) == facts
    assert unpack_payload(packed).response == response
    assert payload_facts(pack_payload("e", "t", response, text=text)) == Facts()


def _build(shop: Shop) -> None:
    build_index(
        shop.engine,
        shop.cache.name,
        search=SearchConfig(),
        data_dir=shop.data_dir,
        with_graph=False,
        reencode=False,
        memory_limit_bytes=2**26,
        progress=lambda *_: None,
        now_ms=shop.now_ms,
    )


def _problems(shop: Shop) -> tuple[str, ...]:
    config = replace(Config(), store=StoreConfig(data_dir=shop.data_dir))
    return check_cache(shop.engine, shop.cache.name, config).problems

"""What a lookup asks a verifier, and what it makes of the answer; verifiers here say what a test wants."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy import Engine
from store_rows import DIM, StoreCache, make_cache, new_entry

from hashing.errors import EmbeddingsError
from service import store
from service.accesses import AccessLog
from service.cache import LookupAnswer, SemanticCache
from service.categories import update_category
from service.check import check_cache
from service.coding import from_stored, normalise
from service.config import Config, SearchConfig, StoreConfig
from service.consent import SHORTLIST
from service.database import migrate, open_engine, reading, writing
from service.embedding import Input
from service.generations import build_index
from service.keys import text_fingerprint
from service.lookup import LookupMode, LookupQuery, LookupReason
from service.payload import TEXT_CHARACTERS
from service.policy import dump_own
from service.replica import CacheReplica
from service.rows import read_cache
from service.store import StoredEntry
from service.tables import categories, entries

NOW_MS = 1_000
AXIS = np.eye(DIM, dtype=np.float32)[0]


@dataclass
class Opinion:
    """A verifier that judges by the text of an entry, and remembers what it was asked."""

    by_text: dict[str, float] = field(default_factory=dict)
    otherwise: float = 0.0
    asked: list[tuple[NDArray[np.float32], NDArray[np.float32], str, list[str]]] = field(default_factory=list)
    verifier_id: str = "opinion"
    dim: int = DIM

    def probabilities(
        self,
        query: NDArray[np.float32],
        rows: NDArray[np.float32],
        *,
        query_text: str = "",
        texts: Sequence[str] = (),
    ) -> NDArray[np.float64]:
        self.asked.append((query, rows, query_text, list(texts)))
        return np.array([self.by_text.get(text, self.otherwise) for text in texts or [""] * len(rows)])


@dataclass
class Failing(Opinion):
    """A verifier that does not answer as it should."""

    answer: Callable[[int], NDArray[Any]] | None = None

    def probabilities(self, query: Any, rows: Any, **_: Any) -> NDArray[np.float64]:
        if self.answer is None:
            raise EmbeddingsError("broken")
        return self.answer(len(rows))


class Asker:
    """One cache with the category "faq" of threshold 0.5 that asks for a probability of 0.6."""

    def __init__(self, engine: Engine, data_dir: Path, **policy: Any) -> None:
        self.engine = engine
        self.data_dir = str(data_dir)
        self.cache: StoreCache = make_cache(engine)
        self.category = self.cache.category("faq", threshold=0.5, **policy)
        with writing(engine) as connection:  # without the registry: it wants a verifier of the store's
            connection.execute(
                categories.update()
                .where(categories.c.id == self.category)
                .values(policy=dump_own({"threshold": 0.5, "min_probability": 0.6, **policy}))
            )
        with reading(engine) as connection:
            record = read_cache(connection, self.cache.name)
        self.replica = CacheReplica(engine, record, search=SearchConfig(), data_dir=self.data_dir)
        self.accesses = AccessLog(max_entries=100, max_distances=100)
        self.lookups = SemanticCache(
            accesses=self.accesses, embedder=None, clock=lambda: NOW_MS, min_seq_wait_seconds=0.0
        )

    def put(self, text: str, *, angle: float, **fields: Any) -> StoredEntry:
        """Store an entry at this angle from AXIS, in a plane of its own text; its response is the text."""
        item = new_entry(
            self.category,
            vector=at_angle(angle, plane=len(self.cache.names())).astype(np.float16),
            **{"text": text, "response": text.encode(), **fields},
        )
        stored: StoredEntry = self.cache.mutate(partial(store.store_entries, items=[item]))[0]
        self.replica.catch_up()
        return stored

    def verified_by(self, verifier: object) -> None:
        """Serve with this verifier."""
        self.replica.state = replace(self.replica.state, verifiers={"text": verifier})  # type: ignore[dict-item]

    def ask(self, *texts: str, category: str = "faq", **fields: Any) -> list[LookupAnswer]:
        """Look up AXIS with these texts."""
        queries = [
            LookupQuery(category=category, source=Input(embedding=AXIS, text=text), **fields)
            for text in texts
        ]
        return self.lookups.lookup(self.replica, queries, timeout_seconds=1.0)


def build(asker: Asker) -> None:
    """Write a generation of what is stored."""
    build_index(
        asker.engine,
        asker.cache.name,
        search=SearchConfig(),
        data_dir=asker.data_dir,
        with_graph=False,
        reencode=False,
        memory_limit_bytes=2**26,
        progress=lambda *_: None,
        now_ms=NOW_MS,
    )


def at_angle(angle: float, *, plane: int) -> NDArray[np.float32]:
    """A unit vector at this angle from AXIS."""
    other = np.eye(DIM, dtype=np.float32)[1 + plane % (DIM - 1)]
    return np.float32(np.cos(angle)) * AXIS + np.float32(np.sin(angle)) * other


@pytest.fixture(scope="module")
def lone_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One migrated SQLite database."""
    folder = tmp_path_factory.mktemp("consent")
    engine = open_engine(StoreConfig(url=f"sqlite:///{folder}/n.db", durability="normal"))
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def asker(lone_engine: Engine, tmp_path: Path) -> Asker:
    """An empty cache of its own."""
    return Asker(lone_engine, tmp_path)


def test_entry_that_the_verifier_consents_to_is_served(asker: Asker) -> None:
    asker.put("a", angle=0.1)
    asker.verified_by(Opinion({"a": 0.6}))
    (answer,) = asker.ask("q")
    assert (answer.reason, answer.response) == (LookupReason.WITHIN_THRESHOLD, b"a")
    assert answer.probability == 0.6


def test_entry_that_the_verifier_refuses_is_a_miss(asker: Asker) -> None:
    asker.put("a", angle=0.1)
    asker.verified_by(Opinion({"a": 0.5999}))
    (answer,) = asker.ask("q")
    assert (answer.reason, answer.is_hit, answer.probability) == (LookupReason.UNVERIFIED, False, 0.5999)
    assert (answer.entry, answer.response, answer.content_type, answer.token) == ("", b"", "", "")
    assert answer.distance == pytest.approx(1 - np.cos(0.1), abs=1e-3)
    counted = asker.accesses.drain()[asker.cache.id]
    assert (dict(counted.outcomes), counted.hits) == ({(asker.category, "miss_count"): 1}, {})


def test_a_shift_is_watched_by_the_nearest_entry_whichever_is_served(asker: Asker) -> None:
    asker.put("near", angle=0.1)
    asker.put("far", angle=0.5)
    asker.verified_by(Opinion({"near": 0.1, "far": 0.9}))
    assert asker.ask("q")[0].response == b"far"
    asker.verified_by(Opinion({"near": 0.1, "far": 0.1}))
    assert not asker.ask("q")[0].is_hit
    left = asker.accesses.drain_distances([asker.category])[asker.category]
    assert left.own.tolist() == pytest.approx([1 - np.cos(0.1)] * 2, abs=1e-3)


def test_second_nearest_is_served_where_the_nearest_is_refused(asker: Asker) -> None:
    asker.put("near", angle=0.1)
    asker.put("far", angle=0.3)
    asker.verified_by(Opinion({"near": 0.1, "far": 0.9}))
    (answer,) = asker.ask("q")
    assert (answer.response, answer.probability) == (b"far", 0.9)
    assert answer.distance == pytest.approx(1 - np.cos(0.3), abs=1e-3)


def test_of_equally_probable_entries_the_nearest_is_served(asker: Asker) -> None:
    for text, angle in (("c", 0.3), ("a", 0.1), ("b", 0.2)):
        asker.put(text, angle=angle)
    asker.verified_by(Opinion({"a": 0.7, "b": 0.9, "c": 0.9}))
    assert asker.ask("q")[0].response == b"b"


def test_stale_and_demoted_entries_are_not_asked_about_while_there_is_a_fresh_one(
    lone_engine: Engine, tmp_path: Path
) -> None:
    asker = Asker(lone_engine, tmp_path, refresh_after_ms=500)
    asker.put("stale", angle=0.1)
    demoted = asker.put("wrong", angle=0.15, create_ms=900)
    asker.put("fresh", angle=0.2, create_ms=900)
    with writing(lone_engine) as connection:
        connection.execute(entries.update().where(entries.c.name == demoted.name).values(demote_ms=1))
    with reading(lone_engine) as connection:
        record = read_cache(connection, asker.cache.name)
    asker.replica = CacheReplica(lone_engine, record, search=SearchConfig(), data_dir=asker.data_dir)
    opinion = Opinion({"stale": 0.9, "wrong": 0.9, "fresh": 0.7})
    asker.verified_by(opinion)
    (answer,) = asker.ask("q")
    assert (answer.response, answer.probability) == (b"fresh", 0.7)
    assert [texts for *_, texts in opinion.asked] == [["fresh"]]


@pytest.mark.parametrize(
    ("probability", "reason", "is_named"),
    [(0.9, LookupReason.STALE, True), (0.1, LookupReason.UNVERIFIED, False)],
)
def test_stale_entry_is_named_where_the_verifier_would_have_consented(
    lone_engine: Engine, tmp_path: Path, *, probability: float, reason: LookupReason, is_named: bool
) -> None:
    asker = Asker(lone_engine, tmp_path, refresh_after_ms=500)
    asker.put("other", angle=0.1)
    stale = asker.put("stale", angle=0.2)
    asker.verified_by(Opinion({"other": 0.05, "stale": probability}))
    (answer,) = asker.ask("q")
    assert (answer.reason, answer.response) == (reason, b"")
    assert answer.entry == (stale.name if is_named else "")


def test_entry_beyond_the_threshold_is_not_asked_about(asker: Asker) -> None:
    asker.put("in", angle=0.1)
    asker.put("out", angle=1.2)
    opinion = Opinion({"in": 0.7, "out": 1.0})
    asker.verified_by(opinion)
    assert asker.ask("q")[0].response == b"in"
    assert opinion.asked[0][3] == ["in"]


def test_miss_by_distance_asks_nobody(asker: Asker) -> None:
    asker.put("out", angle=1.2)
    opinion = Opinion(otherwise=1.0)
    asker.verified_by(opinion)
    (answer,) = asker.ask("q")
    assert (answer.reason, answer.probability) == (LookupReason.BEYOND_THRESHOLD, None)
    assert opinion.asked == []


def test_only_the_nearest_of_the_shortlist_are_asked_about(asker: Asker) -> None:
    for i in range(SHORTLIST + 4):
        asker.put(f"t{i}", angle=0.02 * (i + 1))
    opinion = Opinion({f"t{SHORTLIST}": 1.0})
    asker.verified_by(opinion)
    assert asker.ask("q")[0].reason is LookupReason.UNVERIFIED
    assert opinion.asked[0][3] == [f"t{i}" for i in range(SHORTLIST)]


def test_verifier_gets_the_stored_vectors_the_query_and_both_texts(asker: Asker) -> None:
    asker.put("one", angle=0.1)
    asker.put("two", angle=0.2)
    opinion = Opinion()
    asker.verified_by(opinion)
    asker.ask("which?")
    ((query, rows, query_text, texts),) = opinion.asked
    assert np.array_equal(query, normalise(AXIS[None])[0])
    stored = [np.frombuffer(row.vector, dtype="<f2") for row in asker.cache.entries()]
    assert np.array_equal(rows, from_stored(np.stack(stored)))
    assert (query_text, texts) == ("which?", ["one", "two"])
    assert (rows.dtype, query.dtype) == (np.float32, np.float32)


def test_sealed_rows_bring_the_same_vectors_and_texts(asker: Asker) -> None:
    for i in range(5):
        asker.put(f"t{i}", angle=0.1 * (i + 1))
    opinion = Opinion()
    asker.verified_by(opinion)
    asker.ask("q")
    build(asker)
    assert asker.replica.open_new_generation()
    asker.verified_by(opinion)
    asker.ask("q")
    growing, sealed = opinion.asked
    assert np.array_equal(growing[1], sealed[1])
    assert growing[3] == sealed[3] == [f"t{i}" for i in range(5)]


def test_generation_of_before_there_were_texts_is_served_without_them(asker: Asker) -> None:
    stored = asker.put("", angle=0.1, response=b"old")
    build(asker)
    assert asker.replica.open_new_generation()
    with writing(asker.engine) as connection:  # what the store always had, the generation does not
        connection.execute(entries.update().where(entries.c.name == stored.name).values(text="new"))
    config = Config(store=StoreConfig(data_dir=asker.data_dir))
    report = check_cache(asker.engine, asker.cache.name, config)
    assert report.problems == ("category faq asks for consent, and no verifier is active",)
    opinion = Opinion(otherwise=0.9)
    asker.verified_by(opinion)
    assert asker.ask("q")[0].response == b"old"
    assert opinion.asked[0][3] == [""]


@pytest.mark.parametrize(
    ("query_text", "text", "expected"),
    [
        ("q", "x" * TEXT_CHARACTERS, ("q", ["x" * TEXT_CHARACTERS])),
        ("q", "x" * (TEXT_CHARACTERS + 1), ("q", [""])),
        ("q", "", ("q", [""])),
        ("q", " \n", ("q", [""])),
        ("", "t", ("", [])),
        ("x" * (TEXT_CHARACTERS + 1), "t", ("", [])),
        ("é" * TEXT_CHARACTERS, "😀" * TEXT_CHARACTERS, ("é" * TEXT_CHARACTERS, ["😀" * TEXT_CHARACTERS])),
    ],
)
def test_unknown_and_long_texts_are_unknown_to_the_verifier(
    asker: Asker, query_text: str, text: str, expected: tuple[str, list[str]]
) -> None:
    asker.put(text, angle=0.1)
    opinion = Opinion()
    asker.verified_by(opinion)
    asker.ask(query_text)
    assert opinion.asked[0][2:] == expected


def test_same_request_needs_no_consent(asker: Asker) -> None:
    asker.put("how?", angle=0.1, fingerprint=text_fingerprint("how?"))
    opinion = Opinion()
    asker.verified_by(opinion)
    (answer,) = asker.ask(" how?\n")
    assert (answer.reason, answer.probability, opinion.asked) == (LookupReason.FINGERPRINT, None, [])


def test_refresh_names_only_an_entry_that_would_have_been_served(asker: Asker) -> None:
    stored = asker.put("a", angle=0.1)
    asker.verified_by(Opinion({"a": 0.9}))
    (answer,) = asker.ask("q", mode=LookupMode.REFRESH)
    assert (answer.reason, answer.entry, answer.probability) == (LookupReason.REFRESH, stored.name, 0.9)
    asker.verified_by(Opinion({"a": 0.2}))
    (answer,) = asker.ask("q", mode=LookupMode.REFRESH)
    assert (answer.reason, answer.entry, answer.token) == (LookupReason.UNVERIFIED, "", "")


def test_shadow_mode_tells_what_would_have_been(lone_engine: Engine, tmp_path: Path) -> None:
    asker = Asker(lone_engine, tmp_path, shadow=True)
    stored = asker.put("a", angle=0.1)
    asker.verified_by(Opinion({"a": 0.9}))
    (answer,) = asker.ask("q")
    assert (answer.reason, answer.entry, answer.response) == (LookupReason.SHADOW, stored.name, b"")
    assert answer.probability == 0.9
    asker.verified_by(Opinion({"a": 0.2}))
    assert asker.ask("q")[0].reason is LookupReason.UNVERIFIED


def test_without_a_verifier_that_serves_nothing_is_a_hit(asker: Asker) -> None:
    asker.put("a", angle=0.0)
    (answer,) = asker.ask("q")
    assert (answer.reason, answer.probability) == (LookupReason.UNVERIFIED, None)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        lambda count: np.full(count, np.nan),
        lambda count: np.full(count, np.inf),
        lambda count: np.ones(count + 1),
        lambda count: np.ones((count, 1)),
    ],
)
def test_verifier_that_fails_consents_to_nothing(
    asker: Asker, caplog: pytest.LogCaptureFixture, answer: Callable[[int], NDArray[Any]] | None
) -> None:
    asker.put("a", angle=0.0)
    asker.verified_by(Failing(answer=answer))
    with caplog.at_level(logging.WARNING):
        (found,) = asker.ask("q")
    assert (found.reason, found.probability, found.response) == (LookupReason.UNVERIFIED, None, b"")
    assert "opinion" in caplog.text


def test_category_that_asks_for_no_consent_asks_nobody(asker: Asker) -> None:
    asker.put("a", angle=0.1)
    with writing(asker.engine) as connection:
        update_category(
            connection, asker.cache.name, "faq", etag="", changed={"min_probability": None}, now_ms=0
        )
    asker.replica.refresh_settings()
    opinion = Opinion()
    asker.verified_by(opinion)
    (answer,) = asker.ask("q")
    assert (answer.reason, answer.probability) == (LookupReason.WITHIN_THRESHOLD, None)
    assert opinion.asked == []


def test_batch_asks_for_each_lookup_on_its_own(asker: Asker) -> None:
    free = asker.cache.category("free", threshold=0.5)
    asker.put("a", angle=0.1)
    asker.put("b", angle=0.2)
    items = [new_entry(free, vector=AXIS.astype(np.float16), response=b"free")]
    asker.cache.mutate(partial(store.store_entries, items=items))
    asker.replica.refresh_settings()
    asker.replica.catch_up()

    class ByQuery(Opinion):
        def probabilities(self, query: Any, rows: Any, **known: Any) -> NDArray[np.float64]:
            return np.array([0.9 if text == known["query_text"] else 0.1 for text in known["texts"]])

    asker.verified_by(ByQuery())
    queries = [
        LookupQuery(category=category, source=Input(embedding=AXIS, text=text), fingerprint="none")
        for category, text in (("faq", "b"), ("free", "x"), ("faq", "x"), ("faq", "a"), ("faq", "b"))
    ]
    answers = asker.lookups.lookup(asker.replica, queries, timeout_seconds=1.0)
    assert [answer.response for answer in answers] == [b"b", b"free", b"", b"a", b"b"]
    assert answers[2].reason is LookupReason.UNVERIFIED


@settings(
    max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0.1, 0.2, 0.4, 0.9, 1.3]), st.sampled_from([0.0, 0.3, 0.6, 0.8, 1.0])),
        max_size=22,
    ),
    threshold=st.sampled_from([None, 0.03, 0.2]),
)
def test_a_hit_is_what_brute_force_over_the_nearest_gives(
    lone_engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[float, float]],
    threshold: float | None,
) -> None:
    asker = Asker(lone_engine, tmp_path_factory.mktemp("oracle"))
    items = [
        new_entry(
            asker.category,
            vector=at_angle(angle, plane=0).astype(np.float16),
            text=f"t{i}",
            response=b"t%d" % i,
        )
        for i, (angle, _) in enumerate(rows)
    ]
    asker.cache.mutate(partial(store.store_entries, items=items))
    asker.replica.catch_up()
    asker.verified_by(Opinion({f"t{i}": probability for i, (_, probability) in enumerate(rows)}))
    (answer,) = asker.ask("q", threshold=threshold)
    limit = 0.5 if threshold is None else threshold
    within = [i for i, (angle, _) in enumerate(rows) if 1 - np.cos(angle) <= limit]
    shortlist = sorted(within, key=lambda i: (rows[i][0], i))[:SHORTLIST]
    best = max(shortlist, key=lambda i: rows[i][1], default=None)  # the first of equal ones
    if best is None or rows[best][1] < 0.6:
        assert not answer.is_hit and answer.response == b""
        assert (answer.reason is LookupReason.UNVERIFIED) == bool(shortlist)
    else:
        assert (answer.response, answer.probability) == (b"t%d" % best, rows[best][1])

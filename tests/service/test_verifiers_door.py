"""Verifiers through the door: trained ones in the store, active, asked, taken back, damaged."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from nearhit import Client
from nearhit.client import lookup_request
from nearhit.errors import NearhitError
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray
from refusals import refused
from sqlalchemy import Connection, Engine, func, select, update
from store_rows import DIM as ROW_DIM
from store_rows import is_blocked, make_cache, second_engine
from verifiers_at_work import activate, deactivate, invoice_text, probability, register, trained_verifier
from waiting import eventually

from hashing.verifier import Verifier, dump_verifier
from service.categories import create_category
from service.check import check_cache
from service.config import Config
from service.database import open_engine, reading, writing
from service.errors import InvalidRequestError, PreconditionError
from service.rows import read_cache
from service.server import Server
from service.tables import verifiers
from service.verifiers import activate_verifier, deactivate_verifier, register_verifier

Vectors = NDArray[np.float32]
HIT, MISS = cache_pb.LOOKUP_OUTCOME_HIT, cache_pb.LOOKUP_OUTCOME_MISS
UNVERIFIED = cache_pb.LOOKUP_REASON_UNVERIFIED
WITHIN = cache_pb.LOOKUP_REASON_WITHIN_THRESHOLD
DIM = 32


@pytest.fixture(scope="session")
def verifier() -> Verifier:
    """A trained one."""
    return trained_verifier(DIM)


@pytest.fixture
def asked(vectors: Vectors) -> tuple[Vectors, Vectors]:
    """Two questions near vectors[0]: at a cosine of about .98 and of about .8."""
    return vectors[0] + 0.2 * vectors[1], vectors[0] + 0.75 * vectors[1]


@pytest.fixture
def strict(door: Client, door_config: Config, verifier: Verifier, vectors: Vectors) -> Client:
    """A client whose category "strict" asks for consent, with one entry at vectors[0]."""
    return with_strict_category(door, door_config, verifier, vectors)


@pytest.fixture
def lone_strict(lone_door: Client, lone_config: Config, verifier: Verifier, vectors: Vectors) -> Client:
    """The same on SQLite alone."""
    return with_strict_category(lone_door, lone_config, verifier, vectors)


def with_strict_category(client: Client, config: Config, verifier: Verifier, vectors: Vectors) -> Client:
    activate(client, register(config, verifier))
    client.create_category("faq", "strict", threshold=0.5, min_probability=0.5)
    client.store("faq", "strict", embedding=vectors[0], text="how?", entry="e", response=b"so")
    return client


def listed(client: Client, cache: str = "faq", **fields: Any) -> admin_pb.ListVerifiersResponse:
    """The cache's verifiers."""
    request = admin_pb.ListVerifiersRequest(parent=f"caches/{cache}", **fields)
    found: admin_pb.ListVerifiersResponse = client.call(client.admin.ListVerifiers, request)
    return found


def spoil(config: Config, content: bytes) -> None:
    """Overwrite the weights of every verifier in the store."""
    engine = open_engine(config.store)
    with writing(engine) as connection:
        connection.execute(update(verifiers).values(weights=content))
    engine.dispose()


def problems(config: Config) -> list[str]:
    """What a check of the cache finds."""
    engine = open_engine(config.store)
    found = check_cache(engine, "faq", config).problems
    engine.dispose()
    return list(found)


# Lookups


def test_the_verifier_says_what_the_tests_below_rest_on(
    verifier: Verifier, vectors: Vectors, asked: tuple[Vectors, Vectors]
) -> None:
    near, far = (probability(verifier, query, vectors[0]) for query in asked)
    assert far < 0.5 < near


def test_hit_carries_the_probability_that_the_verifier_gave(
    strict: Client, verifier: Verifier, vectors: Vectors, asked: tuple[Vectors, Vectors]
) -> None:
    answer = strict.lookup("faq", "strict", embedding=asked[0])
    assert (answer.outcome, answer.reason, answer.response) == (HIT, WITHIN, b"so")
    assert answer.probability == pytest.approx(probability(verifier, asked[0], vectors[0]), abs=1e-5)
    assert strict.record_feedback(answer.lookup_token, cache_pb.VERDICT_RIGHT).recorded


def test_refused_entry_is_a_miss_that_says_so(
    strict: Client, verifier: Verifier, vectors: Vectors, asked: tuple[Vectors, Vectors]
) -> None:
    answer = strict.lookup("faq", "strict", embedding=asked[1])
    assert (answer.outcome, answer.reason) == (MISS, UNVERIFIED)
    assert (answer.entry, answer.response, answer.lookup_token) == ("", b"", "")
    assert answer.distance <= answer.threshold == 0.5
    assert answer.probability == pytest.approx(probability(verifier, asked[1], vectors[0]), abs=1e-5)


def test_same_text_needs_no_consent(lone_strict: Client, asked: tuple[Vectors, Vectors]) -> None:
    answer = lone_strict.lookup("faq", "strict", embedding=asked[1], text=" how? ")
    assert (answer.reason, answer.response) == (cache_pb.LOOKUP_REASON_FINGERPRINT, b"so")
    assert not answer.HasField("probability")


def test_same_caption_of_another_image_needs_consent_and_replaces_nothing(
    lone_door: Client, lone_config: Config, verifier: Verifier, vectors: Vectors
) -> None:
    modalities = [pb.Modality(modality=name, dim=DIM) for name in ("text", "image")]
    request = admin_pb.CreateCacheRequest(cache_id="media", cache=pb.Cache(modalities=modalities))
    lone_door.call(lone_door.admin.CreateCache, request)
    activate(lone_door, register(lone_config, verifier, cache="media", modality="image"))
    lone_door.create_category("media", "all", threshold=0.1, min_probability=0.01)
    said: dict[str, Any] = {"text": "what is this?"}
    lone_door.store("media", "all", embedding=vectors[0], modality="image", response=b"cat", **said)
    lone_door.store("media", "all", embedding=vectors[1], modality="image", response=b"dog", **said)
    lone_door.store("media", "all", embedding=vectors[2], response=b"words", **said)
    found = [
        lone_door.lookup("media", "all", embedding=vector, modality="image", **said)
        for vector in (vectors[0], vectors[1], -vectors[0])
    ]
    assert [(answer.response, answer.reason) for answer in found] == [
        (b"cat", WITHIN),
        (b"dog", WITHIN),
        (b"", cache_pb.LOOKUP_REASON_BEYOND_THRESHOLD),
    ]


def test_batch_asks_for_each_lookup(
    lone_strict: Client, vectors: Vectors, asked: tuple[Vectors, Vectors]
) -> None:
    lone_strict.create_category("faq", "free", threshold=0.5)
    lone_strict.store("faq", "free", embedding=vectors[0], response=b"free")
    wanted = [("strict", 0), ("free", 1), ("strict", 1), ("strict", 0), ("free", 0)] * 4
    answers = lone_strict.batch_lookup(
        "faq", [lookup_request("faq", category, embedding=asked[i]) for category, i in wanted]
    )
    assert [answer.response for answer in answers] == [b"so", b"free", b"", b"so", b"free"] * 4
    assert [answer.HasField("probability") for answer in answers] == [True, False, True, True, False] * 4


def test_shadow_mode_asks_as_well(lone_strict: Client, asked: tuple[Vectors, Vectors]) -> None:
    lone_strict.update_category("faq", "strict", shadow=True)
    answers = [lone_strict.lookup("faq", "strict", embedding=query) for query in asked]
    assert [answer.reason for answer in answers] == [cache_pb.LOOKUP_REASON_SHADOW, UNVERIFIED]
    assert [answer.entry for answer in answers] == ["caches/faq/entries/e", ""]


def test_of_two_entries_the_more_probable_is_served(
    lone_strict: Client, verifier: Verifier, vectors: Vectors, asked: tuple[Vectors, Vectors]
) -> None:
    lone_strict.store("faq", "strict", embedding=vectors[0] + 0.1 * vectors[2], response=b"other")
    answer = lone_strict.lookup("faq", "strict", embedding=asked[0])
    said = {
        b"so": probability(verifier, asked[0], vectors[0]),
        b"other": probability(verifier, asked[0], vectors[0] + 0.1 * vectors[2]),
    }
    assert answer.probability == pytest.approx(max(said.values()), abs=1e-5)
    assert said[answer.response] == max(said.values())


def test_texts_of_question_and_entries_reach_the_verifier(
    door: Client, door_config: Config, vectors: Vectors
) -> None:
    verifier = trained_verifier(DIM, with_texts=True)
    activate(door, register(door_config, verifier))
    door.create_category("faq", "strict", threshold=0.5, min_probability=1e-9)
    rows = {number: vectors[0] + 0.1 * number * vectors[number] for number in range(1, 6)}
    for number, row in rows.items():
        text = invoice_text(number) if number < 5 else ""
        door.store("faq", "strict", embedding=row, text=text, response=b"%d" % number)
    query = vectors[0] + 0.2 * vectors[9]
    for number in (3, 4, 7, None):
        asked_text = "" if number is None else f"{invoice_text(number)} please"
        answer = door.lookup("faq", "strict", embedding=query, text=asked_text)
        said = {
            b"%d" % stored: probability(
                verifier,
                query,
                row,
                query_text=asked_text,
                text=invoice_text(stored) if stored < 5 and asked_text else "",
            )
            for stored, row in rows.items()
        }
        assert answer.probability == pytest.approx(max(said.values()), abs=1e-5)
        assert said[answer.response] == pytest.approx(max(said.values()), abs=1e-5)


# What an operator sets


def test_category_asks_for_consent_only_where_a_verifier_is_active(
    door: Client, door_config: Config, verifier: Verifier
) -> None:
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NO_ACTIVE_VERIFIER"):
        door.create_category("faq", "strict", min_probability=0.5)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NO_ACTIVE_VERIFIER"):
        door.update_category("faq", "billing", min_probability=0.5)
    name = register(door_config, verifier)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NO_ACTIVE_VERIFIER"):
        door.update_category("faq", "billing", min_probability=0.5)
    activate(door, name)
    assert door.update_category("faq", "billing", min_probability=0.5).min_probability == 0.5
    assert door.create_category("faq", "strict", min_probability=1.0).min_probability == 1.0


@pytest.mark.parametrize("asked_for", [0.0, -0.5, 1.0000001, float("nan"), float("inf")])
def test_probability_out_of_range_is_refused(lone_strict: Client, asked_for: float) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PROBABILITY"):
        lone_strict.create_category("faq", "other", min_probability=asked_for)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PROBABILITY"):
        lone_strict.update_category("faq", "billing", min_probability=asked_for)


def test_category_that_asks_no_more_serves_what_was_refused(
    strict: Client, asked: tuple[Vectors, Vectors]
) -> None:
    assert strict.lookup("faq", "strict", embedding=asked[1]).outcome == MISS
    changed = strict.update_category("faq", "strict", min_probability=None)
    assert not changed.HasField("min_probability") and changed.threshold == 0.5
    answer = strict.lookup("faq", "strict", embedding=asked[1])
    assert (answer.outcome, answer.HasField("probability")) == (HIT, False)


def test_other_changes_of_a_category_leave_what_it_asks(lone_strict: Client) -> None:
    assert lone_strict.update_category("faq", "strict", threshold=0.4).min_probability == 0.5


def test_verifier_that_a_category_needs_stays_active(strict: Client, verifier: Verifier) -> None:
    name = f"caches/faq/verifiers/{verifier.verifier_id}"
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "VERIFIER_IN_USE"):
        deactivate(strict, name)
    assert [found.state for found in listed(strict).verifiers] == [pb.Verifier.STATE_ACTIVE]
    strict.update_category("faq", "strict", min_probability=None)
    assert deactivate(strict, name).state == pb.Verifier.STATE_CANDIDATE
    assert deactivate(strict, name).state == pb.Verifier.STATE_CANDIDATE
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NO_ACTIVE_VERIFIER"):
        strict.update_category("faq", "strict", min_probability=0.5)


def test_verifiers_are_listed_with_their_figures(door: Client, door_config: Config) -> None:
    kept = [trained_verifier(DIM), trained_verifier(DIM, seed=1), trained_verifier(DIM, with_texts=True)]
    for one in kept:
        register(door_config, one)
    page = listed(door, page_size=2)
    rest = listed(door, page_size=2, page_token=page.next_page_token)
    found = [*page.verifiers, *rest.verifiers]
    assert {one.name for one in found} == {f"caches/faq/verifiers/{one.verifier_id}" for one in kept}
    times = [one.create_time.ToMilliseconds() for one in found]
    assert times == sorted(times, reverse=True)
    assert {(one.state, one.modality) for one in found} == {(pb.Verifier.STATE_CANDIDATE, "text")}
    by_name = {one.name.rpartition("/")[2]: dict(one.metrics) for one in found}
    assert by_name == {one.verifier_id: pytest.approx(dict(one.metrics)) for one in kept}


def test_active_verifier_gives_way_to_the_next(strict: Client, door_config: Config, vectors: Vectors) -> None:
    other = trained_verifier(DIM, seed=1)
    query = vectors[0] + 0.4 * vectors[1]
    name = register(door_config, other)
    assert activate(strict, name).state == activate(strict, name).state == pb.Verifier.STATE_ACTIVE
    states = {one.name: one.state for one in listed(strict).verifiers}
    assert sorted(states.values()) == [pb.Verifier.STATE_CANDIDATE, pb.Verifier.STATE_ACTIVE]
    assert states[name] == pb.Verifier.STATE_ACTIVE
    answer = strict.lookup("faq", "strict", embedding=query)
    assert answer.probability == pytest.approx(probability(other, query, vectors[0]), abs=1e-5)


def test_modalities_have_verifiers_of_their_own(
    lone_door: Client, lone_config: Config, verifier: Verifier, vectors: Vectors
) -> None:
    modalities = [pb.Modality(modality=name, dim=DIM) for name in ("text", "image")]
    request = admin_pb.CreateCacheRequest(cache_id="media", cache=pb.Cache(modalities=modalities))
    lone_door.call(lone_door.admin.CreateCache, request)
    other = trained_verifier(DIM, seed=1)
    activate(lone_door, register(lone_config, verifier, cache="media"))
    lone_door.create_category("media", "all", threshold=0.5, min_probability=0.01)
    for modality in ("text", "image"):
        lone_door.store("media", "all", embedding=vectors[0], modality=modality, response=b"x")
    asked = {"embedding": vectors[0], "modality": "image"}
    answer = lone_door.lookup("media", "all", **asked)
    assert (answer.reason, answer.HasField("probability")) == (UNVERIFIED, False)
    activate(lone_door, register(lone_config, other, cache="media", modality="image"))
    assert lone_door.lookup("media", "all", **asked).outcome == HIT
    assert lone_door.lookup("media", "all", embedding=vectors[0]).outcome == HIT
    with pytest.raises(PreconditionError, match="modality 'text'"):
        register(lone_config, verifier, cache="media", modality="image")


@pytest.mark.parametrize("method", ["ActivateVerifier", "DeactivateVerifier"])
@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("caches/faq/verifiers/none", grpc.StatusCode.NOT_FOUND, "VERIFIER_NOT_FOUND"),
        ("caches/none/verifiers/none", grpc.StatusCode.NOT_FOUND, "CACHE_NOT_FOUND"),
        ("caches/faq/encoders/none", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME"),
        ("caches/faq/verifiers/", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME"),
        ("", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME"),
    ],
)
def test_name_of_no_verifier_is_refused(
    lone_door: Client, method: str, name: str, code: grpc.StatusCode, reason: str
) -> None:
    request = getattr(admin_pb, f"{method}Request")(name=name)
    with refused(code, reason):
        lone_door.call(getattr(lone_door.admin, method), request)


def test_verifier_of_another_space_is_not_kept(lone_door: Client, lone_config: Config) -> None:
    with pytest.raises(InvalidRequestError, match="reads 8 dimensions"):
        register(lone_config, trained_verifier(ROW_DIM))
    with pytest.raises(InvalidRequestError, match="no modality 'image'"):
        register(lone_config, trained_verifier(DIM), modality="image")
    assert not listed(lone_door).verifiers


def test_verifiers_leave_with_their_cache(strict: Client, door_config: Config) -> None:
    strict.call(strict.admin.DeleteCache, admin_pb.DeleteCacheRequest(name="caches/faq"))
    engine = open_engine(door_config.store)
    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(verifiers)).scalar_one() == 0
    engine.dispose()


# Replicas, restarts and damage


def test_second_replica_sees_an_activation_and_its_end(
    config: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    verifier: Verifier,
    vectors: Vectors,
    asked: tuple[Vectors, Vectors],
) -> None:
    first, second = (connect(start_server(config)) for _ in range(2))
    first.create_cache("faq", dim=DIM, code_bits=64)
    with_strict_category(first, config, verifier, vectors)
    eventually(lambda: asks_for_consent(second))
    answers = [second.lookup("faq", "strict", embedding=query) for query in asked]
    assert [answer.reason for answer in answers] == [WITHIN, UNVERIFIED]
    other = trained_verifier(DIM, seed=1)
    activate(first, register(config, other))
    expected = probability(other, asked[0], vectors[0])
    assert expected != probability(verifier, asked[0], vectors[0])
    eventually(
        lambda: second.lookup("faq", "strict", embedding=asked[0]).probability == pytest.approx(expected)
    )
    first.update_category("faq", "strict", min_probability=None)
    eventually(lambda: second.lookup("faq", "strict", embedding=asked[1]).outcome == HIT)


def asks_for_consent(client: Client) -> bool:
    """Whether the replica knows the category and what it asks; it may not even know the cache yet."""
    states = client.call(client.admin.ListCategories, admin_pb.ListCategoriesRequest(parent="caches/faq"))
    if all(found.name != "caches/faq/categories/strict" for found in states.categories):
        return False
    try:
        return client.lookup("faq", "strict", fingerprint="none", min_seq=1).seq >= 1
    except NearhitError:
        return False


def test_restarted_server_asks_the_same_verifier(
    config: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    verifier: Verifier,
    vectors: Vectors,
    asked: tuple[Vectors, Vectors],
) -> None:
    server = start_server(config)
    client = connect(server)
    client.create_cache("faq", dim=DIM, code_bits=64)
    with_strict_category(client, config, verifier, vectors)
    before = [client.lookup("faq", "strict", embedding=query).probability for query in asked]
    server.stop()
    again = connect(start_server(config))
    answers = [again.lookup("faq", "strict", embedding=query) for query in asked]
    assert [answer.probability for answer in answers] == before
    assert [answer.outcome for answer in answers] == [HIT, MISS]
    assert problems(config) == []


@pytest.mark.parametrize("damage", ["garbage", "truncated", "other"])
def test_damaged_verifier_makes_misses_and_is_named(
    sqlite_config: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    verifier: Verifier,
    vectors: Vectors,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    server = start_server(sqlite_config)
    client = connect(server)
    client.create_cache("faq", dim=DIM, code_bits=64)
    with_strict_category(client, sqlite_config, verifier, vectors)
    client.create_category("faq", "free", threshold=0.5)
    client.store("faq", "free", embedding=vectors[0], response=b"free")
    server.stop()
    whole = dump_verifier(verifier)
    spoil(
        sqlite_config,
        {
            "garbage": b"nothing",
            "truncated": whole[: len(whole) // 2],
            "other": dump_verifier(trained_verifier(DIM, seed=1)),
        }[damage],
    )
    with caplog.at_level(logging.WARNING):
        again = connect(start_server(sqlite_config))
        answer = again.lookup("faq", "strict", embedding=vectors[0])
    assert (answer.outcome, answer.reason, answer.HasField("probability")) == (MISS, UNVERIFIED, False)
    assert f"verifier {verifier.verifier_id} of faq cannot serve" in caplog.text
    assert again.lookup("faq", "strict", text="how?").response == b"so"
    assert again.lookup("faq", "free", embedding=vectors[0]).response == b"free"
    (problem,) = problems(sqlite_config)
    assert verifier.verifier_id in problem
    activate(again, register(sqlite_config, trained_verifier(DIM, with_texts=True)))
    assert again.lookup("faq", "strict", embedding=vectors[0]).response == b"so"


def test_damaged_verifier_is_not_activated(
    lone_door: Client, lone_config: Config, verifier: Verifier
) -> None:
    name = register(lone_config, verifier)
    spoil(lone_config, b"nothing")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "VERIFIER_DAMAGED"):
        activate(lone_door, name)
    assert [found.state for found in listed(lone_door).verifiers] == [pb.Verifier.STATE_CANDIDATE]


def test_damaged_verifier_is_mended_by_the_same_one_again(
    lone_strict: Client, lone_config: Config, verifier: Verifier, vectors: Vectors
) -> None:
    other = trained_verifier(DIM, seed=1)
    activate(lone_strict, register(lone_config, other))
    spoil(lone_config, b"nothing")
    assert len(problems(lone_config)) == 1
    name = register(lone_config, other)
    assert problems(lone_config) == []
    assert activate(lone_strict, name).state == pb.Verifier.STATE_ACTIVE
    assert lone_strict.lookup("faq", "strict", embedding=vectors[0]).outcome == HIT


@pytest.mark.parametrize("first", ["deactivation", "category"])
def test_of_two_writers_one_sees_what_the_other_did(shared_engine: Engine, first: str) -> None:
    cache, other_engine = make_cache(shared_engine), second_engine(shared_engine)
    trained = trained_verifier(ROW_DIM)
    with writing(shared_engine) as connection:
        record = read_cache(connection, cache.name)
        register_verifier(connection, record, trained, modality="text", now_ms=1)
        activate_verifier(connection, cache.id, trained.verifier_id)
    failures: list[str] = []

    def ask(connection: Connection) -> None:
        create_category(connection, cache.name, "strict", own={"min_probability": 0.5}, now_ms=1)

    def end(connection: Connection) -> None:
        deactivate_verifier(connection, cache.id, trained.verifier_id)

    def write(change: Callable[[Connection], None]) -> None:
        try:
            with writing(other_engine) as connection:
                change(connection)
        except PreconditionError as error:
            failures.append(error.reason)

    before, after = (end, ask) if first == "deactivation" else (ask, end)
    waiting = threading.Thread(target=write, args=(after,))
    with writing(shared_engine) as connection:
        before(connection)
        waiting.start()
        if shared_engine.dialect.name == "postgresql":  # SQLite has one lock for all
            eventually(lambda: is_blocked(shared_engine) or not waiting.is_alive())
    waiting.join(timeout=30)
    other_engine.dispose()
    assert failures == ["NO_ACTIVE_VERIFIER" if first == "deactivation" else "VERIFIER_IN_USE"]


def test_check_names_a_category_that_asks_in_vain(lone_strict: Client, lone_config: Config) -> None:
    engine = open_engine(lone_config.store)
    with writing(engine) as connection:
        connection.execute(update(verifiers).values(state="candidate"))
    engine.dispose()
    assert problems(lone_config) == ["category strict asks for consent, and no verifier is active"]

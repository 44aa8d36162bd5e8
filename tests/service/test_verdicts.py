"""Verdicts with what was asked: how they are taken, read as pairs, and forgotten."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from learning_rows import DIM as ROW_DIM
from learning_rows import activate, active_id, cluster, encoders, fill, learn, learned, train
from nearhit import Client
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray
from refusals import refused
from sqlalchemy import Engine, event, insert, select, update
from store_rows import StoreCache, make_cache

from service import judging, registry, store, tables
from service.coding import from_stored, to_stored
from service.config import Config
from service.database import migrate, open_engine, reading, writing
from service.forgetting import ForgetSelection, forget_rows
from service.records import ModalitySpec, Selection
from service.rows import read_cache
from service.verdicts import LEAST_OF_A_KIND, VerdictPairs, mark_read, read_verdicts, verdicts_wait

Vectors = NDArray[np.float32]
RIGHT, WRONG, REPLACED = cache_pb.VERDICT_RIGHT, cache_pb.VERDICT_WRONG, cache_pb.VERDICT_REPLACED


# Through the door


def near(vector: Vectors) -> Vectors:
    """A question that is close to a stored one."""
    asked = vector + 0.1 * np.roll(vector, 1)
    return (asked / np.linalg.norm(asked)).astype(np.float32)


def token_of(door: Client, vector: Vectors, **asked: Any) -> str:
    """Store an answer to a question, ask one that is near, and return the lookup's token."""
    door.store("faq", "billing", embedding=vector, response=b"x", **asked)
    return door.lookup("faq", "billing", embedding=near(vector), **asked).lookup_token


def kept_queries(config: Config) -> list[tuple[str, bytes | None]]:
    """Verdict and query of all verdicts on the cache "faq", as the database has them."""
    engine = open_engine(config.store)
    with reading(engine) as connection:
        cache_id = read_cache(connection, "faq").id
        columns = (tables.feedback.c.verdict, tables.feedback.c.query_vector)
        query = select(*columns).where(tables.feedback.c.cache_id == cache_id).order_by(tables.feedback.c.id)
        found = [(row.verdict, row.query_vector) for row in connection.execute(query)]
    engine.dispose()
    return found


def test_the_query_of_a_verdict_is_kept_as_vectors_of_entries_are(
    door: Client, door_config: Config, vectors: Vectors
) -> None:
    given = [
        door.record_feedback(token_of(door, vectors[i]), verdict, embedding=3 * near(vectors[i]))
        for i, verdict in enumerate((RIGHT, WRONG))
    ]
    assert [(answer.recorded, answer.query_kept) for answer in given] == [(True, True)] * 2
    stored = [to_stored(near(vectors[i])).tobytes() for i in range(2)]
    assert kept_queries(door_config) == [("right", stored[0]), ("wrong", stored[1])]


def test_a_verdict_without_a_query_is_kept_as_before(
    door: Client, door_config: Config, vectors: Vectors
) -> None:
    given = door.record_feedback(token_of(door, vectors[0]), RIGHT)
    assert (given.recorded, given.query_kept) == (True, False)
    assert kept_queries(door_config) == [("right", None)]


def test_of_a_replaced_answer_no_query_is_kept(
    lone_door: Client, lone_config: Config, vectors: Vectors
) -> None:
    given = lone_door.record_feedback(token_of(lone_door, vectors[0]), REPLACED, embedding=near(vectors[0]))
    assert (given.recorded, given.query_kept) == (True, False)
    assert kept_queries(lone_config) == [("replaced", None)]


def test_a_repeat_changes_neither_verdict_nor_query(
    door: Client, door_config: Config, vectors: Vectors
) -> None:
    tokens = [token_of(door, vectors[0]), token_of(door, vectors[1])]
    door.record_feedback(tokens[0], RIGHT)
    door.record_feedback(tokens[1], WRONG, embedding=near(vectors[1]))
    again = [door.record_feedback(token, RIGHT, embedding=vectors[3]) for token in tokens]
    assert [(answer.recorded, answer.query_kept) for answer in again] == [(False, False)] * 2
    assert kept_queries(door_config) == [("right", None), ("wrong", to_stored(near(vectors[1])).tobytes())]


def test_a_verdict_whose_text_cannot_be_embedded_is_not_lost(
    lone_door: Client, lone_config: Config, vectors: Vectors
) -> None:
    given = lone_door.record_feedback(token_of(lone_door, vectors[0]), WRONG, text="how so?")
    assert (given.recorded, given.query_kept) == (True, False)
    assert kept_queries(lone_config) == [("wrong", None)]


def test_a_verdict_on_an_entry_that_is_gone_is_kept_without_its_query(
    door: Client, door_config: Config, vectors: Vectors
) -> None:
    token = token_of(door, vectors[0])
    door.invalidate("faq", categories=["billing"])
    given = door.record_feedback(token, RIGHT, embedding=near(vectors[0]))
    assert (given.entry, given.recorded, given.query_kept) == ("", True, False)
    assert kept_queries(door_config) == [("right", None)]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (pb.Query(embedding=np.ones(31, "<f4").tobytes()), "DIMENSION_MISMATCH"),
        (pb.Query(embedding=b"12345"), "INVALID_EMBEDDING"),
        (pb.Query(embedding=np.full(32, np.nan, "<f4").tobytes()), "EMBEDDING_NOT_FINITE"),
        (pb.Query(embedding=np.full(32, np.inf, "<f4").tobytes()), "EMBEDDING_NOT_FINITE"),
        (pb.Query(embedding=np.zeros(32, "<f4").tobytes()), "EMBEDDING_ZERO"),
        (pb.Query(), "NOTHING_TO_EMBED"),
        (pb.Query(text="  "), "NOTHING_TO_EMBED"),
        (pb.Query(text="a\0b"), "INVALID_VALUE"),
        (pb.Query(embedding=np.ones(32, "<f4").tobytes(), modality="image"), "UNKNOWN_MODALITY"),
    ],
)
@pytest.mark.parametrize("verdict", [RIGHT, REPLACED])
def test_a_query_that_no_lookup_could_have_is_refused_and_nothing_is_recorded(
    lone_door: Client,
    lone_config: Config,
    vectors: Vectors,
    query: pb.Query,
    reason: str,
    verdict: cache_pb.Verdict,
) -> None:
    token = token_of(lone_door, vectors[0])
    request = cache_pb.RecordFeedbackRequest(lookup_token=token, verdict=verdict, query=query)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, reason):
        lone_door.call(lone_door.semantic_cache.RecordFeedback, request)
    assert kept_queries(lone_config) == []
    assert lone_door.record_feedback(token, verdict).recorded


def test_a_query_of_another_embedder_is_refused(lone_door: Client, vectors: Vectors) -> None:
    lone_door.create_cache("own", dim=32, embedder_id="mine", code_bits=64)
    lone_door.create_category("own", "all")
    lone_door.store("own", "all", embedding=vectors[0], response=b"x")
    token = lone_door.lookup("own", "all", embedding=near(vectors[0])).lookup_token
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "EMBEDDER_MISMATCH"):
        lone_door.record_feedback(token, RIGHT, embedding=near(vectors[0]), embedder_id="other")
    assert lone_door.record_feedback(token, RIGHT, embedding=near(vectors[0]), embedder_id="mine").query_kept


def test_a_query_of_another_modality_than_the_entry_is_refused(
    lone_door: Client, lone_config: Config, vectors: Vectors
) -> None:
    engine = open_engine(lone_config.store)
    with writing(engine) as connection:
        registry.create_cache(
            connection,
            "art",
            modalities={"text": ModalitySpec(dim=32), "image": ModalitySpec(dim=32)},
            code_bits=64,
            label_bits=64,
            description="",
            now_ms=0,
        )
    engine.dispose()
    lone_door.create_category("art", "all")
    lone_door.store("art", "all", embedding=vectors[0], modality="image", response=b"x")
    token = lone_door.lookup("art", "all", embedding=near(vectors[0]), modality="image").lookup_token
    for verdict in (RIGHT, REPLACED):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "MODALITY_MISMATCH"):
            lone_door.record_feedback(token, verdict, embedding=near(vectors[0]))
    assert lone_door.record_feedback(token, RIGHT, embedding=near(vectors[0]), modality="image").query_kept


def test_a_query_that_was_not_looked_up_is_not_kept(
    lone_door: Client, lone_config: Config, vectors: Vectors
) -> None:
    given = [
        lone_door.record_feedback(token_of(lone_door, vectors[i]), WRONG, embedding=other)
        for i, other in enumerate((vectors[5], vectors[1], near(vectors[2])))
    ]
    assert [(answer.recorded, answer.query_kept) for answer in given] == [
        (True, False),  # another question's
        (True, False),  # the entry's own vector: no code tells them apart
        (True, True),
    ]
    assert [vector is not None for _, vector in kept_queries(lone_config)] == [False, False, True]


# As pairs


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """A cache with an encoder, and 30 entries of the labels "a" and "b"."""
    made = make_cache(shared_engine, dim=ROW_DIM)
    learned(made, "a", "b")
    return made


def judge(
    cache: StoreCache, verdicts: Sequence[str], *, seed: int = 0, same: bool = False
) -> list[tuple[int, str, bytes]]:
    """Give verdicts on entries in turn; returns entry, verdict and query of each. same: the query is the
    entry's own vector."""
    rng = np.random.default_rng([seed, len(verdicts)])
    rows, given = cache.entries(), []
    for i, verdict in enumerate(verdicts):
        row = rows[i % len(rows)]
        drawn = rng.standard_normal(ROW_DIM)
        query = row.vector if same else (drawn / np.linalg.norm(drawn)).astype(np.float16).tobytes()
        values = feedback_values(row.category_id, row.id, verdict, query)
        assert cache.mutate(partial(judging.record_feedback, values=values, query_space="text")).is_first
        given.append((row.id, verdict, query))
    return given


def feedback_values(category_id: int, entry_id: int, verdict: str, query: bytes | None) -> dict[str, Any]:
    """A row of `feedback` as the servicer gives it."""
    return {
        "category_id": category_id,
        "lookup_digest": np.random.default_rng().bytes(16),
        "entry_id": entry_id,
        "verdict": verdict,
        "distance": 0.0,
        "threshold": 0.1,
        "query_code": None,
        "generation": "",
        "seq": 1,
        "query_vector": query,
    }


def read(cache: StoreCache, *, most: int = 1000) -> VerdictPairs:
    """What the active encoder may learn."""
    with reading(cache.engine) as connection:
        record = read_cache(connection, cache.name)
        return read_verdicts(connection, record, str(record.active_encoder_id), modality="text", most=most)


def due(cache: StoreCache, least: int, *, most: int = 1000) -> bool:
    """Whether a worker would learn."""
    with reading(cache.engine) as connection:
        return verdicts_wait(connection, read_cache(connection, cache.name), least=least, most=most)


def as_pairs(found: VerdictPairs) -> list[tuple[bytes, bytes, int]]:
    """Query and entry as they are stored, and the label, of each pair."""
    rows = [row.tobytes() for row in to_stored(found.rows)]
    return sorted((rows[first], rows[second], label) for first, second, label in found.pairs.tolist())


def expected(cache: StoreCache, given: Sequence[tuple[int, str, bytes]]) -> list[tuple[bytes, bytes, int]]:
    """The same of the verdicts as they were given, one by one."""
    vectors = {row.id: row.vector for row in cache.entries()}
    pairs = [
        (query, vectors[entry], int(verdict == "right"))
        for entry, verdict, query in given
        if entry in vectors and verdict in ("right", "wrong") and query != vectors[entry]
    ]
    decoded = [[from_stored(np.frombuffer(part, np.float16)[None])[0] for part in pair[:2]] for pair in pairs]
    return sorted(
        (*(to_stored(part).tobytes() for part in parts), pair[2])
        for parts, pair in zip(decoded, pairs, strict=True)
    )


def test_pairs_are_the_verdicts_on_entries_that_are_there(cache: StoreCache) -> None:
    other = make_cache(cache.engine, dim=ROW_DIM)
    fill(other, other.category("faq"), "a")
    judge(other, ["right", "wrong"])
    kinds = np.random.default_rng(1).choice(["right", "wrong", "replaced"], 90)
    given = [*judge(cache, kinds.tolist()), *judge(cache, ["right", "wrong"], same=True)]
    gone = cache.entries()[4:9]
    cache.mutate(partial(store.invalidate, selection=Selection(names=tuple(row.name for row in gone))))
    found = read(cache)
    assert as_pairs(found) == expected(cache, given)
    assert found.entry_ids == [row.id for row in cache.entries()]
    assert len({row.tobytes() for row in found.rows}) == len(found.rows)


def test_equal_vectors_are_one_row_and_contradictory_verdicts_two_pairs(cache: StoreCache) -> None:
    row = cache.entries()[0]
    query = cluster("z", 1)[0].tobytes()
    for verdict in ("right", "wrong", "right"):
        values = feedback_values(row.category_id, row.id, verdict, query)
        cache.mutate(partial(judging.record_feedback, values=values, query_space="text"))
    found = read(cache)
    assert (len(found.rows), found.pairs[:, 2].tolist()) == (2, [1, 0, 1])


def test_of_each_kind_the_newest_are_read(cache: StoreCache) -> None:
    given = judge(cache, ["right", "wrong"] * 20)
    found = read(cache, most=7)
    assert as_pairs(found) == expected(cache, given[-14:])


def test_a_query_of_another_width_than_the_entry_is_no_pair(cache: StoreCache) -> None:
    judge(cache, ["right"] * 3)
    of_cache = tables.feedback.c.cache_id == cache.id
    with writing(cache.engine) as connection:
        first = connection.execute(select(tables.feedback.c.id).where(of_cache)).scalars().first()
        short = update(tables.feedback).where(tables.feedback.c.id == first)
        connection.execute(short.values(query_vector=bytes(2 * ROW_DIM - 2)))
    assert len(read(cache).pairs) == 2


def test_verdicts_of_a_modality_without_codes_are_no_pairs(cache: StoreCache) -> None:
    judge(cache, ["right", "wrong"] * 30)
    with writing(cache.engine) as connection:
        both = {"text": {"dim": ROW_DIM, "embedder_id": ""}, "image": {"dim": ROW_DIM, "embedder_id": ""}}
        connection.execute(
            update(tables.caches)
            .where(tables.caches.c.id == cache.id)
            .values(modalities=dict(reversed(both.items())))
        )
    assert (due(cache, 60), due(cache, 61)) == (True, False)
    with writing(cache.engine) as connection:
        of_cache = update(tables.entries).where(tables.entries.c.cache_id == cache.id)
        connection.execute(of_cache.values(modality="image"))
    assert (due(cache, 1), len(read(cache).pairs)) == (False, 0)


@pytest.mark.parametrize(
    ("right", "wrong", "least"),
    [(LEAST_OF_A_KIND, LEAST_OF_A_KIND, least) for least in (1, 2 * LEAST_OF_A_KIND)] + [(90, 30, 120)],
)
def test_enough_verdicts_of_both_kinds_are_due(cache: StoreCache, right: int, wrong: int, least: int) -> None:
    judge(cache, ["right"] * right + ["wrong"] * wrong)
    assert due(cache, least)


@pytest.mark.parametrize(
    ("right", "wrong", "least"),
    [
        (LEAST_OF_A_KIND, LEAST_OF_A_KIND, 2 * LEAST_OF_A_KIND + 1),
        (60, LEAST_OF_A_KIND - 1, 60),
        (LEAST_OF_A_KIND - 1, 60, 60),
        (60, 0, 1),
    ],
)
def test_too_few_verdicts_of_a_kind_or_in_all_are_not_due(
    cache: StoreCache, right: int, wrong: int, least: int
) -> None:
    judge(cache, ["right"] * right + ["wrong"] * wrong)
    judge(cache, ["replaced"] * 60, seed=1)
    judge(cache, ["right", "wrong"] * 30, same=True)
    assert not due(cache, least)


def test_a_cache_without_encoder_waits_for_nothing(shared_engine: Engine) -> None:
    bare = make_cache(shared_engine, dim=ROW_DIM)
    fill(bare, bare.category("faq"), "a")
    judge(bare, ["right", "wrong"] * 30)
    assert not due(bare, 1)


def test_what_an_encoder_has_read_its_children_have_and_one_from_scratch_has_not(cache: StoreCache) -> None:
    given = judge(cache, ["right", "wrong"] * 30)
    parent = str(active_id(cache))
    with writing(cache.engine) as connection:
        mark_read(connection, cache.id, parent, read(cache).read_to)
        mark_read(connection, cache.id, parent, 1)  # by one that began before
    assert (due(cache, 1), len(read(cache).pairs)) == (False, 0)
    fill(cache, next(iter(cache.categories())), "c")
    assert learn(cache).accepted
    assert active_id(cache) != parent
    assert (due(cache, 1), len(read(cache).pairs)) == (False, 0)
    later = judge(cache, ["wrong"] * 40, seed=1)
    assert as_pairs(read(cache)) == expected(cache, later)
    activate(cache, train(cache).encoder_id)
    assert as_pairs(read(cache)) == expected(cache, [*given, *later])
    assert due(cache, 100)


def test_what_a_child_has_read_is_not_due_but_may_be_read_by_its_parent(cache: StoreCache) -> None:
    """A child of a child, both retired: after two rollbacks."""
    judge(cache, ["right", "wrong"] * 30)
    parent, faq, read_to = str(active_id(cache)), next(iter(cache.categories())), read(cache).read_to
    for label in "cd":
        fill(cache, faq, label)
        assert learn(cache).accepted
    with writing(cache.engine) as connection:
        mark_read(connection, cache.id, str(active_id(cache)), read_to)
        for _ in range(2):
            registry.roll_back_encoder(connection, cache.id)
    assert active_id(cache) == parent
    assert (due(cache, 1), len(read(cache).pairs)) == (False, 60)
    fill(cache, faq, "e")
    assert learn(cache).accepted
    assert not due(cache, 1), "an update of labels does not undo the rollback"


def test_what_a_rejected_child_has_read_is_not_read_again(cache: StoreCache) -> None:
    judge(cache, ["right", "wrong"] * 30)
    read_to, parent = read(cache).read_to, active_id(cache)
    fill(cache, next(iter(cache.categories())), "c")
    child = learn(cache).encoder_id
    with writing(cache.engine) as connection:
        mark_read(connection, cache.id, str(child), read_to)
        registry.roll_back_encoder(connection, cache.id)
        one = update(tables.encoders).where(tables.encoders.c.encoder_id == child)
        connection.execute(one.values(state=registry.REJECTED))
    assert active_id(cache) == parent
    assert (due(cache, 1), len(read(cache).pairs)) == (False, 0)
    fill(cache, next(iter(cache.categories())), "d")
    assert learn(cache).accepted
    assert not due(cache, 1)


def test_verdicts_that_are_no_pair_take_no_place_of_those_that_are(cache: StoreCache) -> None:
    given = judge(cache, ["right", "wrong"] * 30)
    judge(cache, ["right"] * 100, same=True)
    assert as_pairs(read(cache, most=60)) == expected(cache, given)


def test_an_encoder_that_is_renewed_has_read_what_the_destroyed_one_had(cache: StoreCache) -> None:
    judge(cache, ["right", "wrong"] * 30)
    parent = str(active_id(cache))
    with writing(cache.engine) as connection:
        mark_read(connection, cache.id, parent, read(cache).read_to)
    with reading(cache.engine) as connection:
        rows = tables.learned_rows.c
        names = connection.execute(select(rows.name).where(rows.cache_id == cache.id)).scalars().all()
    forget_rows(cache.engine, cache.name, ForgetSelection(names=(names[0],)), clock=lambda: 5)
    assert encoders(cache)[parent].state == registry.DESTROYED
    assert not due(cache, 1)


def test_verdicts_without_a_query_are_not_read_to_count_those_with_one(
    sqlite_config: Config,
) -> None:
    engine = open_engine(sqlite_config.store)
    migrate(engine)
    made = make_cache(engine, dim=ROW_DIM)
    learned(made, "a", "b")
    judge(made, ["right", "wrong"] * 30)
    statements: list[tuple[str, Any]] = []
    event.listen(
        engine,
        "before_cursor_execute",
        lambda _c, _k, statement, parameters, *_: statements.append((statement, parameters)),
    )
    assert due(made, 60)
    statement, parameters = next(pair for pair in statements if "feedback" in pair[0])
    with reading(engine) as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    engine.dispose()
    assert any("ix_feedback_pairs" in row.detail for row in plan)


# Forgotten


def test_forgetting_takes_the_queries_of_verdicts_on_it_and_on_entries_that_are_gone(
    cache: StoreCache,
) -> None:
    given = judge(cache, ["right"] * 30)
    forgotten, deleted, *rest = cache.entries()
    cache.mutate(partial(store.invalidate, selection=Selection(names=(deleted.name,))))
    changes = forget_rows(cache.engine, cache.name, ForgetSelection(names=(forgotten.name,)), clock=lambda: 5)
    assert (changes.entry_count, changes.feedback_count) == (1, 1)
    columns = (tables.feedback.c.entry_id, tables.feedback.c.query_vector)
    with reading(cache.engine) as connection:
        query = select(*columns).where(tables.feedback.c.cache_id == cache.id)
        left = {row.entry_id: row.query_vector for row in connection.execute(query)}
    queries = {entry: query for entry, _, query in given}
    assert left == {deleted.id: None, **{row.id: queries[row.id] for row in rest}}


def test_naming_an_entry_that_was_deleted_takes_the_query_of_its_verdict(cache: StoreCache) -> None:
    """Nobody knows any more which verdict is of it: all on entries that are gone lose theirs."""
    unlabelled = make_cache(cache.engine, dim=ROW_DIM)
    fill(unlabelled, unlabelled.category("faq"), "", count=3)
    judge(unlabelled, ["wrong"] * 3)
    row = unlabelled.entries()[1]
    unlabelled.mutate(partial(store.invalidate, selection=Selection(names=(row.name,))))
    judge(cache, ["right"])
    changes = forget_rows(
        unlabelled.engine, unlabelled.name, ForgetSelection(names=(row.name,)), clock=lambda: 5
    )
    assert changes.selects_nothing
    kept = select(tables.feedback.c.cache_id).where(tables.feedback.c.query_vector.is_not(None))
    with reading(cache.engine) as connection:
        of_both = kept.where(tables.feedback.c.cache_id.in_((cache.id, unlabelled.id)))
        assert sorted(connection.execute(of_both).scalars()) == sorted([unlabelled.id] * 2 + [cache.id])


# Learned


def test_verdicts_are_learned_on_either_database(shared_engine: Engine) -> None:
    pytest.importorskip("torch", reason="needs the extra train")
    from scripts.pair_update import update_with_verdicts

    made = make_cache(shared_engine, dim=ROW_DIM)
    faq = made.category("faq")
    fill(made, faq, *(chr(97 + i) for i in range(20)), count=30)
    activate(made, train(made).encoder_id)
    rng, rows = np.random.default_rng(0), made.entries()
    values = []
    for i, row in enumerate(rows):
        about = np.frombuffer(row.vector, np.float16).astype(np.float64)
        drawn = rng.standard_normal(ROW_DIM)
        shared = np.arange(ROW_DIM) < ROW_DIM // 2
        query = np.where(shared == (i % 2 == 0), about, drawn / np.linalg.norm(drawn))
        stored = (query / np.linalg.norm(query)).astype(np.float16).tobytes()
        values.append(feedback_values(faq, row.id, "right" if i % 2 == 0 else "wrong", stored))
    with writing(made.engine) as connection:
        common = {"cache_id": made.id, "create_ms": 1}
        connection.execute(insert(tables.feedback), [own | common for own in values])
    parent, codes = active_id(made), [(row.code, row.label_code) for row in rows]
    assert due(made, 600)
    learned_pairs = update_with_verdicts(made.engine, made.name, lambda *_: None, config=Config())
    assert learned_pairs["encoder_id"] is not None, learned_pairs
    assert learned_pairs["child_auc_64"] > learned_pairs["parent_auc_64"]
    assert encoders(made)[learned_pairs["encoder_id"]].parent_id == parent
    assert learned_pairs["accepted"] is (active_id(made) == learned_pairs["encoder_id"])
    assert [(row.code, row.label_code) for row in made.entries()] == codes
    assert (due(made, 1), len(read(made).pairs)) == (False, 0)

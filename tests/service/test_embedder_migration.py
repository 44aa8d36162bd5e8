"""A change of embedder as callers of a running server see it, from the map to the end."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import grpc
import numpy as np
import pytest
from encoders_at_work import train
from nearhit import Client
from nearhit.client import lookup_request
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from refusals import refused
from sqlalchemy import update
from two_embedders import (
    COUNT,
    NEW,
    NEW_DIM,
    OLD,
    OLD_DIM,
    THRESHOLD,
    WORLD,
    Vectors,
    fill,
    finish,
    move,
    name_of,
    numbers,
    old_entry,
    opened,
    problems,
    reembed,
    start,
    takes,
    unit,
)
from verifiers_at_work import activate, register, trained_verifier
from waiting import eventually

from hashing.embedder_map import load_embedder_map
from hashing.mapped_threshold import calibrate_thresholds
from service import embedder_migration
from service.application import clock_ms
from service.coding import from_stored, to_stored
from service.config import Config
from service.database import reading, writing
from service.embedder_maps import read_maps
from service.embedder_migration import abort_migration, start_migration
from service.errors import PreconditionError
from service.forget_report import forget
from service.forgetting import ForgetSelection
from service.jobs import LeaseLostError
from service.reembedding import sample_texts
from service.registry import bump_config
from service.rows import read_cache
from service.server import Server
from service.tables import caches, embedder_maps, entries, shift_monitors

ASKED = range(0, COUNT, 10)


@pytest.fixture
def door(
    sqlite_config: Config, start_server: Callable[[Config], Server], connect: Callable[[Server], Client]
) -> Client:
    """A server on SQLite whose cache "faq" holds the entries of the old embedder."""
    client = connect(start_server(sqlite_config))
    fill(client)
    return client


def cache_of(client: Client) -> pb.Cache:
    found: pb.Cache = client.call(client.admin.GetCache, admin_pb.GetCacheRequest(name="caches/faq"))
    return found


def await_new(client: Client) -> None:
    """Wait until the server takes queries of the new embedder."""
    eventually(lambda: takes(client, WORLD.new[0], NEW))


def await_end(client: Client) -> None:
    """Wait until the new embedder is the cache's."""
    eventually(lambda: takes(client, WORLD.new[0]) and not takes(client, WORLD.old[0], OLD))


def started(client: Client, config: Config) -> None:
    """Begin, and wait until the server takes queries of the new embedder."""
    assert start(config).accepted
    await_new(client)


def follow(client: Client, config: Config) -> int:
    """Wait until the server has applied what was changed in the database; the seq."""
    with opened(config) as engine, reading(engine) as connection:
        seq = read_cache(connection, "faq").seq
    client.search("faq", embedding=WORLD.new[0], embedder_id=NEW, min_seq=seq)
    return seq


def ask(client: Client, i: int, **fields: object) -> cache_pb.LookupResponse:
    """Look up the paraphrase of question i by the new embedder."""
    return client.lookup("faq", "billing", embedding=WORLD.asked_new[i], embedder_id=NEW, **fields)


def ask_old(client: Client, i: int) -> cache_pb.LookupResponse:
    return client.lookup("faq", "billing", embedding=WORLD.asked_old[i], embedder_id=OLD)


def mapped_queries(config: Config, queries: Vectors) -> tuple[Vectors, float]:
    """The queries as the stored map maps them, and the mapped threshold of THRESHOLD."""
    with opened(config) as engine, reading(engine) as connection:
        row = connection.execute(embedder_maps.select()).one()
    limit: float = row.report["mapped_thresholds"][round(100 * THRESHOLD) - 1]
    return load_embedder_map(row.weights).apply(queries), limit


def stored(vectors: Vectors) -> Vectors:
    """As the index compares them."""
    return from_stored(to_stored(vectors))


def test_change_from_one_embedder_to_the_next_on_each_database(
    config: Config, start_server: Callable[[Config], Server], connect: Callable[[Server], Client]
) -> None:
    client, other = (connect(start_server(config)) for _ in range(2))
    fill(client)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "EMBEDDER_MISMATCH"):
        ask(client, 0)
    started(client, config)
    await_new(other)
    (modality,) = cache_of(other).modalities
    assert (modality.embedder_id, modality.successor.embedder_id) == (OLD, NEW)
    assert (modality.dim, modality.successor.dim) == (OLD_DIM, NEW_DIM)
    assert problems(config) == ()
    for own in (client, other):
        for i in ASKED:
            answer = ask(own, i)
            assert (answer.outcome, answer.entry, answer.mapped) == (1, name_of(i), True), i
            assert answer.response == b"answer %d" % i

    assert move(config, range(0, COUNT, 2)) == (COUNT // 2, 0)
    assert problems(config) == ()
    for own in (client, other):
        follow(own, config)
        for i in ASKED:
            answer = ask(own, i + 1)
            assert (answer.entry, answer.mapped, ask(own, i).mapped) == (name_of(i + 1), True, False)
            assert ask(own, i).entry == name_of(i)

    assert reembed(config).moved_count == COUNT // 2
    assert (finish(config).embedder_id, problems(config)) == (NEW, ())
    for own in (client, other):
        await_end(own)
        assert not cache_of(own).modalities[0].HasField("successor")
        assert [ask(own, i).entry for i in ASKED] == [name_of(i) for i in ASKED]
        unnamed = own.lookup("faq", "billing", embedding=WORLD.asked_new[3])
        assert (unnamed.entry, unnamed.mapped, unnamed.threshold) == (name_of(3), False, THRESHOLD)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "EMBEDDER_MISMATCH"):
            ask_old(own, 0)


def test_searches_of_both_spaces_are_those_of_brute_force(door: Client, sqlite_config: Config) -> None:
    started(door, sqlite_config)
    moved = list(range(0, COUNT, 2))
    move(sqlite_config, moved)
    follow(door, sqlite_config)
    mapped, _ = mapped_queries(sqlite_config, WORLD.asked_new)
    is_moved = np.zeros(COUNT, dtype=bool)
    is_moved[moved] = True
    for i in ASKED:
        own = 1 - stored(WORLD.new) @ WORLD.asked_new[i]
        distances = np.where(is_moved, own, 1 - stored(WORLD.old) @ mapped[i])
        nearest = np.argsort(distances)[:8]
        results = door.search("faq", embedding=WORLD.asked_new[i], embedder_id=NEW, top_k=8).results
        assert numbers(results) == nearest.tolist()
        assert np.allclose([result.distance for result in results], distances[nearest], atol=1e-3)
        assert [result.mapped for result in results] == (~is_moved[nearest]).tolist()

        left = np.where(is_moved, 9.0, 1 - stored(WORLD.old) @ WORLD.asked_old[i])
        results = door.search("faq", embedding=WORLD.asked_old[i], embedder_id=OLD, top_k=8).results
        assert numbers(results) == np.argsort(left)[:8].tolist()
        assert not any(result.mapped for result in results)
    tagged = door.search(
        "faq", embedding=WORLD.asked_new[1], embedder_id=NEW, tags=["t1"], top_k=1000
    ).results
    assert sorted(numbers(tagged)) == [i for i in range(COUNT) if i % 3 == 1]


def test_mapped_lookup_decides_by_the_calibrated_threshold(door: Client, sqlite_config: Config) -> None:
    started(door, sqlite_config)
    rng = np.random.default_rng(1)
    turn = np.linalg.lstsq(WORLD.old, WORLD.new, rcond=None)[0]
    old = unit(WORLD.old[:40] + np.linspace(0, 0.4, 40)[:, None] * unit(rng.standard_normal((40, OLD_DIM))))
    queries = unit(old @ turn)
    mapped, limit = mapped_queries(sqlite_config, queries)
    assert THRESHOLD < limit < 1
    outcomes = set()
    for i, query in enumerate(queries):
        distances = 1 - stored(WORLD.old) @ mapped[i]
        nearest = int(distances.argmin())
        answer = door.lookup("faq", "billing", embedding=query, embedder_id=NEW)
        assert (answer.mapped, answer.threshold) == (True, pytest.approx(limit))
        assert answer.distance == pytest.approx(distances[nearest], abs=1e-3)
        assert answer.entry == (name_of(nearest) if distances[nearest] <= limit else "")
        outcomes.add(answer.reason)
        # What a request asks for more strictly is asked for of mapped queries too; below the grid: never.
        never = door.lookup("faq", "billing", embedding=query, embedder_id=NEW, threshold=0.005)
        assert (never.outcome, never.mapped) == (cache_pb.LOOKUP_OUTCOME_MISS, False)
    assert cache_pb.LOOKUP_REASON_WITHIN_THRESHOLD in outcomes
    far = door.lookup("faq", "billing", embedding=-WORLD.new[0], embedder_id=NEW)
    assert (far.reason, far.mapped) == (cache_pb.LOOKUP_REASON_BEYOND_THRESHOLD, True)


def test_entry_of_the_new_space_goes_before_a_nearer_one_of_the_old(
    door: Client, sqlite_config: Config
) -> None:
    started(door, sqlite_config)
    asked = WORLD.asked_new[0]
    beside = unit(asked + 0.06 * unit(np.random.default_rng(3).standard_normal(NEW_DIM)))
    assert ask(door, 0).entry == name_of(0)
    door.store("faq", "billing", embedding=beside, embedder_id=NEW, text="new", entry="new", response=b"n")
    answer = ask(door, 0)
    assert (answer.entry, answer.mapped, answer.threshold) == ("caches/faq/entries/new", False, THRESHOLD)
    seen = door.get_entry("faq", "new")
    assert (seen.modality, seen.embedder_id) == ("text", NEW)


def test_batch_answers_each_lookup_as_it_would_be_alone(door: Client, sqlite_config: Config) -> None:
    started(door, sqlite_config)
    move(sqlite_config, range(0, COUNT, 2))
    follow(door, sqlite_config)
    requests = []
    for i in range(12):
        requests.append(lookup_request("faq", "billing", embedding=WORLD.asked_new[i], embedder_id=NEW))
        requests.append(lookup_request("faq", "billing", embedding=WORLD.asked_old[i], embedder_id=OLD))
    answers = door.batch_lookup("faq", requests)
    for i in range(12):
        assert (answers[2 * i].entry, answers[2 * i].mapped) == (name_of(i), i % 2 == 1)
        assert answers[2 * i + 1].entry == ("" if i % 2 == 0 else name_of(i))


def test_fingerprint_is_found_in_either_space(door: Client, sqlite_config: Config) -> None:
    started(door, sqlite_config)
    move(sqlite_config, [0])
    follow(door, sqlite_config)
    for i in (0, 1):
        for embedding, embedder_id in ((None, ""), (WORLD.asked_old[9], OLD), (WORLD.asked_new[9], NEW)):
            answer = door.lookup(
                "faq", "billing", text=f"question {i}", embedding=embedding, embedder_id=embedder_id
            )
            assert (answer.entry, answer.reason) == (name_of(i), cache_pb.LOOKUP_REASON_FINGERPRINT)
            assert (answer.mapped, answer.distance) == (False, 0)


def test_same_fingerprint_replaces_across_spaces(door: Client, sqlite_config: Config) -> None:
    started(door, sqlite_config)
    door.store(
        "faq",
        "billing",
        embedding=WORLD.new[5],
        embedder_id=NEW,
        text="question 5",
        entry="again",
        response=b"2",
    )
    assert len(list(door.list_entries("faq"))) == COUNT
    with refused(grpc.StatusCode.NOT_FOUND, "ENTRY_NOT_FOUND"):
        door.get_entry("faq", "e5")
    assert ask(door, 5).entry == "caches/faq/entries/again"


def test_no_verifier_consents_to_a_mapped_match(door: Client, sqlite_config: Config) -> None:
    activate(door, register(sqlite_config, trained_verifier(OLD_DIM)))
    policy = pb.Category(name="caches/faq/categories/billing", min_probability=0.01)
    request = admin_pb.UpdateCategoryRequest(category=policy, update_mask={"paths": ["min_probability"]})
    door.call(door.admin.UpdateCategory, request)
    assert ask_old(door, 3).entry == name_of(3)
    started(door, sqlite_config)
    answer = ask(door, 3)
    assert (answer.reason, answer.entry, answer.mapped) == (cache_pb.LOOKUP_REASON_UNVERIFIED, "", True)
    assert not answer.HasField("probability")
    move(sqlite_config, [3])
    follow(door, sqlite_config)
    answer = ask(door, 3)  # the verifier reads embeddings of the old one
    assert (answer.reason, answer.mapped) == (cache_pb.LOOKUP_REASON_UNVERIFIED, False)
    finish(sqlite_config, drop_rest=True)
    assert problems(sqlite_config) == ()
    await_end(door)
    assert ask(door, 3).reason == cache_pb.LOOKUP_REASON_UNVERIFIED
    activate(door, register(sqlite_config, trained_verifier(NEW_DIM), modality="text:2"))
    assert (ask(door, 3).entry, problems(sqlite_config)) == (name_of(3), ())
    listed = door.call(door.admin.ListVerifiers, admin_pb.ListVerifiersRequest(parent="caches/faq")).verifiers
    assert {own.modality for own in listed} == {"text"}
    assert [own.state for own in listed].count(pb.Verifier.STATE_ACTIVE) == 1


def test_moved_entry_keeps_all_but_its_vector(door: Client, sqlite_config: Config) -> None:
    door.batch_store(
        "faq", [old_entry(0, entry="timed", text="question 7 again", ttl=timedelta(hours=1), source="s")]
    )
    train(sqlite_config, door, cache="faq", with_graph=False)
    for _ in range(3):
        door.lookup("faq", "billing", text="question 7")
    with opened(sqlite_config) as engine:

        def rows() -> dict[str, dict[str, object]]:
            with reading(engine) as connection:
                return {row.name: dict(row._mapping) for row in connection.execute(entries.select())}

        eventually(lambda: rows()["e7"]["access_count"] == 3)
        before = {own.name: own for own in door.list_entries("faq", full=True)}
        columns = rows()
        started(door, sqlite_config)
        assert move(sqlite_config, range(COUNT)) == (COUNT, 0)
        changed = {"modality", "embedder_id", "vector", "code", "encoder_id", "size_bytes"}
        for name, row in rows().items():
            for column, value in row.items():
                if column not in changed or name == "timed":
                    assert value == columns[name][column], (name, column)
            if name == "timed":
                continue
            i = int(name[1:])
            assert row["vector"] == to_stored(WORLD.new[i]).tobytes()
            assert (row["code"], row["encoder_id"], row["embedder_id"]) == (None, None, NEW)
            assert row["size_bytes"] - columns[name]["size_bytes"] == 2 * (NEW_DIM - OLD_DIM)
    assert problems(sqlite_config) == ()
    for own in door.list_entries("faq", full=True):
        was = before[own.name]
        assert own.modality == "text" and own.seq == was.seq
        if own.name.endswith("timed"):
            continue
        for field in ("embedding", "embedder_id", "encoder"):
            was.ClearField(field)
            own.ClearField(field)
        assert own == was


def test_wider_vectors_evict_what_the_quota_has_no_room_for(
    sqlite_config: Config, start_server: Callable[[Config], Server], connect: Callable[[Server], Client]
) -> None:
    client = connect(start_server(sqlite_config))
    fill(client, 300)
    size = client.call(
        client.admin.GetCategory, admin_pb.GetCategoryRequest(name="caches/faq/categories/billing")
    ).size_bytes
    policy = pb.Category(name="caches/faq/categories/billing", max_bytes=size + 100)
    request = admin_pb.UpdateCategoryRequest(category=policy, update_mask={"paths": ["max_bytes"]})
    client.call(client.admin.UpdateCategory, request)
    assert start(sqlite_config, embeddings=WORLD.new[:300]).accepted
    moved, evicted = move(sqlite_config, range(20))
    assert (moved, evicted > 0) == (20, True)
    assert problems(sqlite_config) == ()
    report = reembed(sqlite_config)
    assert report.evicted_count > 0 and problems(sqlite_config) == ()


def test_class_retrieval_goes_on_by_the_old_label_part(door: Client, sqlite_config: Config) -> None:
    train(sqlite_config, door, cache="faq", with_graph=False)

    def classes(vectors: Vectors, embedder_id: str) -> list[set[int]]:
        """Of each query the classes of the entries nearest by label; labelled are even ones, by i % 4."""
        found = []
        for i in ASKED:
            query = {"embedding": vectors[i], "embedder_id": embedder_id, "by_label": True}
            results = door.search("faq", **query, top_k=80).results
            assert len(results) == 80 and not any(result.mapped for result in results)
            found.append({number % 4 for number in numbers(results)})
        return found

    by_old = classes(WORLD.old, OLD)
    assert {0} in by_old and {2} in by_old
    started(door, sqlite_config)
    by_new = classes(WORLD.new, NEW)
    assert np.mean([old == new for old, new in zip(by_old, by_new, strict=True)]) > 0.8
    for chosen in (range(0, COUNT, 4), range(COUNT)):
        move(sqlite_config, chosen)
        follow(door, sqlite_config)
        assert classes(WORLD.new, NEW) == by_new  # label codes are where they were
    finish(sqlite_config)
    await_end(door)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NO_LABEL_CODES"):
        door.search("faq", embedding=WORLD.new[4], by_label=True)
    train(sqlite_config, door, cache="faq", with_graph=False, modality="text:2")
    assert {0} in classes(WORLD.new, NEW)
    assert problems(sqlite_config) == ()


def test_what_is_left_is_moved_most_used_first_and_goes_on_where_it_was_cut(
    door: Client, sqlite_config: Config
) -> None:
    door.store("faq", "billing", embedding=WORLD.old[0], embedder_id=OLD, entry="mute", response=b"m")
    door.store(
        "faq", "billing", embedding=WORLD.old[1], embedder_id=OLD, text=" \n", entry="blank", response=b"b"
    )
    used = [350, 17, 201]
    for place, i in enumerate(used):
        for _ in range(3 - place):
            door.lookup("faq", "billing", text=f"question {i}")

    def counts() -> list[int]:
        with opened(sqlite_config) as engine, reading(engine) as connection:
            rows = connection.execute(entries.select().where(entries.c.access_count > 0)).all()
        return sorted(row.access_count for row in rows)

    eventually(lambda: counts() == [1, 2, 3])
    with opened(sqlite_config) as engine, reading(engine) as connection:
        record = read_cache(connection, "faq")
        for count in (1, 2, 3):
            sampled = sample_texts(connection, record, space="text", count=count, seed=0)
            assert sampled == {f"e{i}": f"question {i}" for i in sorted(used[:count])}
        assert len(sample_texts(connection, record, space="text", count=9_999, seed=0)) == COUNT
    started(door, sqlite_config)
    told: list[tuple[str, int, int]] = []

    def cut(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))
        if done:
            raise LeaseLostError("cancelled")

    with pytest.raises(LeaseLostError):
        reembed(sqlite_config, progress=cut)
    moved = {own.name for own in door.list_entries("faq") if own.embedder_id == NEW}
    assert {name_of(i) for i in used} < moved and len(moved) < COUNT
    assert told[0] == ("embed", 0, COUNT + 1)
    report = reembed(sqlite_config)
    assert (report.moved_count, report.left_count) == (COUNT - len(moved), 2)
    assert problems(sqlite_config) == ()
    with pytest.raises(
        PreconditionError, match="2 entries of caches/faq are embedded by 'old-embedder' still"
    ):
        finish(sqlite_config)
    assert finish(sqlite_config, drop_rest=True).dropped_count == 2
    assert problems(sqlite_config) == ()
    assert reembed_refused(sqlite_config)


def reembed_refused(config: Config) -> bool:
    """Whether nothing can be moved any more."""
    with pytest.raises(PreconditionError, match="no change of the embedder"):
        reembed(config)
    return True


def test_expired_entries_are_no_reason_not_to_finish(door: Client, sqlite_config: Config) -> None:
    started(door, sqlite_config)
    move(sqlite_config, range(1, COUNT))
    with opened(sqlite_config) as engine, writing(engine) as connection:
        connection.execute(update(entries).where(entries.c.name == "e0").values(expire_ms=5))
    assert finish(sqlite_config).dropped_count == 0
    await_end(door)
    assert ask(door, 0).entry == "" and ask(door, 1).entry == name_of(1)
    assert problems(sqlite_config) == ()


def test_abort_undoes_a_start_and_no_space_is_used_again(door: Client, sqlite_config: Config) -> None:
    started(door, sqlite_config)
    move(sqlite_config, [1])
    with opened(sqlite_config) as engine:
        with pytest.raises(PreconditionError, match=r"1 entries .* by 'new-embedder' already"):
            abort_migration(engine, "faq", modality="text", clock=clock_ms)
        follow(door, sqlite_config)
        door.delete_entry("faq", "e1")
        abort_migration(engine, "faq", modality="text", clock=clock_ms)
        assert problems(sqlite_config) == ()
        eventually(lambda: not takes(door, WORLD.new[0], NEW))
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "EMBEDDER_MISMATCH"):
            ask(door, 0)
        assert ask_old(door, 0).entry == name_of(0)
        # Another width under the old name would not fit what replicas know of it.
        assert start(sqlite_config, embeddings=unit(WORLD.new[:, :30])).accepted
        with reading(engine) as connection:
            assert list(read_cache(connection, "faq").modalities) == ["text", "text:3"]
            assert [own.state for own in read_maps(connection, read_cache(connection, "faq").id)] == [
                "active",
                "retired",
            ]
            weights = {row.state: row.weights for row in connection.execute(embedder_maps.select())}
        assert weights["retired"] == b"" != weights["active"]
    assert problems(sqlite_config) == ()


def test_number_of_a_space_outlives_the_map_that_comes_again_and_is_rejected(
    door: Client, sqlite_config: Config
) -> None:
    few = WORLD.new[:80]
    aside = unit(np.random.default_rng(6).standard_normal((30 * 80, OLD_DIM)))
    crowd = unit(np.repeat(WORLD.old[:80], 30, axis=0) + 0.05 * aside)
    with opened(sqlite_config) as engine:
        first = start(sqlite_config, embeddings=few)
        abort_migration(engine, "faq", modality="text", clock=clock_ms)
        for i in range(0, len(crowd), 200):
            door.batch_store("faq", [crowded(crowd, j) for j in range(i, i + 200)])
        again = start(sqlite_config, embeddings=few)
        assert (first.accepted, again.accepted, first.map_id) == (True, False, again.map_id)
        door.invalidate("faq", tags=["crowd"])
        assert start(sqlite_config, embeddings=few).accepted
        with reading(engine) as connection:
            assert list(read_cache(connection, "faq").modalities) == ["text", "text:3"]
    assert problems(sqlite_config) == ()


def crowded(rows: Vectors, i: int) -> Any:
    return old_entry(0, embedding=rows[i], entry=f"c{i}", text=f"crowd {i}", labels=[], tags=["crowd"])


def test_new_space_takes_the_place_of_the_old_one(door: Client, sqlite_config: Config) -> None:
    with opened(sqlite_config) as engine:
        with writing(engine) as connection:
            modalities = {"text": asdict(read_cache(connection, "faq").modalities["text"])}
            modalities["image"] = {"dim": 8, "embedder_id": "", "succeeds": ""}
            connection.execute(update(caches).values(modalities=modalities))
        assert start(sqlite_config).accepted
        move(sqlite_config, range(COUNT))
        finish(sqlite_config)
        with reading(engine) as connection:
            assert list(read_cache(connection, "faq").modalities) == ["text:2", "image"]


def test_thresholds_are_by_all_rows_where_a_fit_reads_some(
    door: Client, sqlite_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder_migration, "STORED_LIMIT", 150)
    monkeypatch.setattr(embedder_migration, "SCAN_ROWS", 64)
    report = start(sqlite_config)
    with opened(sqlite_config) as engine, reading(engine) as connection:
        fitted = load_embedder_map(connection.execute(embedder_maps.select()).one().weights)
    held = np.random.default_rng(0).permutation(COUNT)[: report.held_out_count]
    rows = stored(WORLD.old)
    expected = calibrate_thresholds(fitted, WORLD.new[held], rows[held], stored=[rows])
    assert np.allclose(report.mapped_thresholds, expected.limits, atol=1e-6)
    some = calibrate_thresholds(fitted, WORLD.new[held], rows[held], stored=[rows[:150]])
    assert not np.allclose(report.mapped_thresholds, some.limits, atol=1e-6)


@pytest.mark.parametrize("pair_count", [COUNT, 100])
def test_map_of_a_row_that_was_forgotten_meanwhile_is_not_kept(
    door: Client, sqlite_config: Config, pair_count: int
) -> None:
    def forget_meanwhile(stage: str, _done: int, _total: int) -> None:
        if stage == "judge":  # one that is stored, whether or not it is among the pairs
            forget(
                engine,
                "faq",
                ForgetSelection(names=(f"e{COUNT - 1}",)),
                config=sqlite_config,
                clock=clock_ms,
                progress=lambda _stage, _done, _total: None,
            )

    with opened(sqlite_config) as engine:
        with pytest.raises(PreconditionError, match="1 rows were forgotten") as refusal:
            start(sqlite_config, embeddings=WORLD.new[:pair_count], progress=forget_meanwhile)
        assert refusal.value.reason == "ROWS_FORGOTTEN"
        with reading(engine) as connection:
            record = read_cache(connection, "faq")
            assert (list(record.modalities), read_maps(connection, record.id)) == (["text"], [])
    assert start(sqlite_config, embeddings=WORLD.new[:pair_count]).accepted


def test_map_is_judged_by_enough_pairs_and_rows_or_refused(
    sqlite_config: Config, start_server: Callable[[Config], Server], connect: Callable[[Server], Client]
) -> None:
    client = connect(start_server(sqlite_config))
    fill(client, 99)
    with pytest.raises(PreconditionError, match="59 usable pairs, at least 60"):
        start(sqlite_config, embeddings=WORLD.new[:59])
    with pytest.raises(PreconditionError, match="99 entries to judge a map by, at least 100"):
        start(sqlite_config, embeddings=WORLD.new[:60])
    client.batch_store("faq", [old_entry(99)])
    for seed in range(20):
        unrelated = unit(np.random.default_rng(seed).standard_normal((60, NEW_DIM)))
        assert not start(sqlite_config, embeddings=unrelated).accepted
    report = start(sqlite_config, embeddings=WORLD.new[:60])
    assert (report.accepted, report.held_out_count) == (True, 30)


def test_path_of_a_space_that_finds_nothing_is_no_reason_to_refuse(
    door: Client, sqlite_config: Config
) -> None:
    train(sqlite_config, door, cache="faq", with_graph=False)
    started(door, sqlite_config)
    move(sqlite_config, [1])
    follow(door, sqlite_config)  # the new space has a row, without a code
    query = {"embedding": WORLD.new[4], "embedder_id": NEW, "path": pb.SEARCH_PATH_SCAN}
    assert door.search("faq", **query).results
    assert not door.search("faq", **query, scope="nobody's").results
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "PATH_UNAVAILABLE"):
        door.search("faq", **(query | {"path": pb.SEARCH_PATH_HNSW}), scope="nobody's")
    move(sqlite_config, range(COUNT))
    finish(sqlite_config)
    await_end(door)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "PATH_UNAVAILABLE"):
        door.search("faq", **query)


def test_second_change_follows_the_first(door: Client, sqlite_config: Config) -> None:
    started(door, sqlite_config)
    move(sqlite_config, range(COUNT))
    finish(sqlite_config)
    with opened(sqlite_config) as engine:
        report = start_migration(
            engine,
            "faq",
            modality="text",
            embedder_id=OLD,  # and back
            names=[f"e{i}" for i in range(COUNT)],
            embeddings=WORLD.old,
            seed=0,
            clock=clock_ms,
            progress=lambda _stage, _done, _total: None,
        )
    assert report.accepted
    eventually(lambda: takes(door, WORLD.old[0], OLD))
    assert ask_old(door, 4).entry == name_of(4) and ask_old(door, 4).mapped
    assert ask(door, 4).entry == name_of(4) and not ask(door, 4).mapped
    assert problems(sqlite_config) == ()


def test_rejected_map_serves_nothing_and_keeps_its_report(door: Client, sqlite_config: Config) -> None:
    unrelated = unit(np.random.default_rng(5).standard_normal((COUNT, NEW_DIM)))
    report = start(sqlite_config, embeddings=unrelated)
    assert not report.accepted and any("neighbour_recall" in reason for reason in report.reasons)
    with opened(sqlite_config) as engine, reading(engine) as connection:
        record = read_cache(connection, "faq")
        (kept,) = read_maps(connection, record.id)
        assert (kept.state, kept.report["cosine"]) == ("rejected", report.cosine)
        assert list(record.modalities) == ["text"]
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "EMBEDDER_MISMATCH"):
        ask(door, 0)
    assert problems(sqlite_config) == ()
    assert start(sqlite_config).accepted  # it stands in no one's way


def test_callers_cannot_name_a_space(door: Client, sqlite_config: Config) -> None:
    started(door, sqlite_config)
    for modality in ("text:2", "text:1", "text:"):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_MODALITY"):
            door.search("faq", embedding=WORLD.new[0], modality=modality)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_MODALITY"):
            door.search("faq", embedding=WORLD.new[0], embedder_id=NEW, target_modality=modality)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_MODALITY"):
            door.store("faq", "billing", embedding=WORLD.new[0], modality=modality, response=b"")


def test_embeddings_that_do_not_fit_their_embedder_are_refused(door: Client, sqlite_config: Config) -> None:
    started(door, sqlite_config)
    for embedding, embedder_id, reason in (
        (WORLD.new[0], OLD, "DIMENSION_MISMATCH"),
        (WORLD.new[0], "", "DIMENSION_MISMATCH"),
        (WORLD.old[0], NEW, "DIMENSION_MISMATCH"),
        (WORLD.old[0], "another", "EMBEDDER_MISMATCH"),
    ):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, reason):
            door.lookup("faq", "billing", embedding=embedding, embedder_id=embedder_id)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, reason):
            door.store("faq", "billing", embedding=embedding, embedder_id=embedder_id, response=b"")


def test_exported_entries_of_both_embedders_are_imported_as_they_were(
    door: Client, sqlite_config: Config
) -> None:
    started(door, sqlite_config)
    move(sqlite_config, range(0, COUNT, 2))
    follow(door, sqlite_config)
    exported = list(door.export_entries("faq"))
    assert {own.embedder_id for own in exported} == {OLD, NEW}
    door.invalidate("faq", categories=["billing"])
    assert door.import_entries("faq", exported).stored_count == COUNT
    assert [ask(door, i).entry for i in ASKED] == [name_of(i) for i in ASKED]
    assert problems(sqlite_config) == ()


def test_damaged_map_leaves_the_new_space_searched(
    door: Client, sqlite_config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    started(door, sqlite_config)
    move(sqlite_config, [2])
    follow(door, sqlite_config)
    assert ask(door, 3).entry == name_of(3)
    with opened(sqlite_config) as engine, writing(engine) as connection:
        row = connection.execute(embedder_maps.select()).one()
        damaged = row.weights[:-8] + bytes(8)
        values = {"weights": damaged, "map_id": "0" * 32}
        connection.execute(update(embedder_maps).values(**values))
        bump_config(connection, row.cache_id)
    with caplog.at_level(logging.ERROR, logger="service.embedder_maps"):
        eventually(lambda: not ask(door, 3).entry)
    assert "cannot serve" in caplog.text
    assert ask(door, 2).entry == name_of(2)
    assert ask_old(door, 3).entry == name_of(3)
    assert any("map 0000" in problem for problem in problems(sqlite_config))


def test_lookups_during_a_change_are_not_watched_for_shifts(
    sqlite_config: Config, start_server: Callable[[Config], Server], connect: Callable[[Server], Client]
) -> None:
    server = start_server(sqlite_config)
    client = connect(server)
    fill(client)
    ask_old(client, 0)

    def watched() -> int:
        with opened(sqlite_config) as engine, reading(engine) as connection:
            return len(connection.execute(shift_monitors.select()).all())

    eventually(watched)
    started(client, sqlite_config)
    with opened(sqlite_config) as engine, writing(engine) as connection:
        known = connection.execute(shift_monitors.select()).one()
    for i in range(20):
        ask(client, i)
        ask_old(client, i)
    move(sqlite_config, range(COUNT))
    finish(sqlite_config)
    await_end(client)
    with opened(sqlite_config) as engine, reading(engine) as connection:
        row = connection.execute(shift_monitors.select()).one()
    assert (row.version, row.lookup_count, row.reference) == (known.version + 1, 0, None)

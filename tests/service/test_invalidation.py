"""Invalidation by id, tag, source, model, category, age and nearness: what goes is what the rows say."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nearhit import Client
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray
from refusals import refused
from sqlalchemy import Engine, delete, update
from store_rows import DIM, StoreCache, make_cache, new_entry
from waiting import eventually

from service import selection as selection_module
from service.config import Config
from service.database import reading
from service.records import Near, Operation, Selection
from service.selection import measured, select_rows
from service.server import Server
from service.store import invalidate, store_entries
from service.tables import changes, entries
from service.transaction import CacheTransaction

Vectors = NDArray[np.float32]
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOW_MS = 1_000
DIRECTIONS = 12


@dataclass(frozen=True, slots=True)
class Row:
    """What decides whether an entry is meant. angle: of its vector, in steps of 30 degrees."""

    name: str
    category: int
    tags: frozenset[str]
    source: str
    model: str
    create_ms: int
    expire_ms: int
    angle: int


def direction(angle: int) -> Vectors:
    """A unit vector in the plane of the first two dimensions."""
    made = np.zeros(DIM, dtype=np.float32)
    made[:2] = np.cos(angle * np.pi / 6), np.sin(angle * np.pi / 6)
    return made


ROW = st.builds(
    Row,
    name=st.just(""),
    category=st.integers(0, 1),
    tags=st.frozensets(st.sampled_from("ab"), max_size=2),
    source=st.sampled_from(["", "s", "t"]),
    model=st.sampled_from(["", "m", "n"]),
    create_ms=st.integers(0, 4).map(lambda n: n * 100),
    expire_ms=st.sampled_from([500, 1_000, 1_001, 9_000]),
    angle=st.integers(0, DIRECTIONS - 1),
)
ASKED = st.fixed_dictionaries(
    {},
    optional={
        "names": st.lists(st.integers(0, 12).map(lambda n: f"e{n}"), min_size=1, max_size=3),
        "categories": st.lists(st.integers(0, 1), min_size=1, max_size=2),
        "tags": st.lists(st.sampled_from("abc"), min_size=1, max_size=2),
        "sources": st.lists(st.sampled_from(["s", "t"]), min_size=1, max_size=2),
        "models": st.lists(st.sampled_from(["m", "n"]), min_size=1, max_size=2),
        "created_before_ms": st.integers(0, 5).map(lambda n: n * 100),
        # Between the distances of whole steps: nothing lies on the edge.
        "near": st.tuples(st.integers(0, DIRECTIONS - 1), st.sampled_from([0.01, 0.2, 0.7, 1.2, 1.99, 2.0])),
    },
)


def is_meant(row: Row, asked: dict[str, Any]) -> bool:
    """The oracle."""
    near = asked.get("near")
    return all(
        (
            row.expire_ms > NOW_MS,
            "names" not in asked or row.name in asked["names"],
            "categories" not in asked or row.category in asked["categories"],
            "tags" not in asked or bool(row.tags & set(asked["tags"])),
            "sources" not in asked or row.source in asked["sources"],
            "models" not in asked or row.model in asked["models"],
            "created_before_ms" not in asked or row.create_ms < asked["created_before_ms"],
            near is None or 1 - np.cos((row.angle - near[0]) * np.pi / 6) <= near[1] + 1e-3,
        )
    )


@dataclass(frozen=True, slots=True)
class Shop:
    """A cache of two categories, and what is in it."""

    cache: StoreCache
    category_ids: tuple[int, ...]

    def store(self, rows: list[Row]) -> None:
        """Store rows as they are."""
        items = [
            new_entry(
                self.category_ids[row.category],
                row.name,
                tags=tuple(sorted(row.tags)),
                source=row.source,
                model=row.model,
                create_ms=row.create_ms,
                expire_ms=row.expire_ms,
                vector=direction(row.angle).astype(np.float16),
            )
            for row in rows
        ]
        if items:
            self.cache.mutate(partial(store_entries, items=items))

    def selection(self, asked: dict[str, Any]) -> Selection:
        """The selection of what is asked for."""
        near = asked.get("near")
        return Selection(
            names=tuple(asked.get("names", ())),
            category_ids=tuple(self.category_ids[i] for i in asked.get("categories", ())),
            tags=tuple(asked.get("tags", ())),
            sources=tuple(asked.get("sources", ())),
            models=tuple(asked.get("models", ())),
            created_before_ms=asked.get("created_before_ms"),
            near=Near(space="text", vector=direction(near[0]), radius=near[1]) if near else None,
        )

    def count(self, chosen: Selection) -> int:
        """A dry run."""
        with reading(self.cache.engine) as connection:
            return len(select_rows(connection, self.cache.id, chosen, live_at=NOW_MS))

    def measure(self, chosen: Selection) -> Selection:
        """What is read before the transaction."""
        with reading(self.cache.engine) as connection:
            return measured(connection, self.cache.id, chosen)

    def invalidate(self, chosen: Selection) -> int:
        """The transaction."""
        return self.cache.mutate(partial(invalidate, selection=chosen), now_ms=NOW_MS)


def make_shop(engine: Engine) -> Shop:
    """An empty one."""
    cache = make_cache(engine)
    return Shop(cache, (cache.category("a"), cache.category("b")))


@pytest.fixture
def shop(shared_engine: Engine) -> Shop:
    """An empty shop, on each database."""
    return make_shop(shared_engine)


@given(st.lists(ROW, max_size=10), st.lists(ROW, max_size=3), st.sets(st.integers(0, 9), max_size=2), ASKED)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_goes_is_what_the_rows_say_whatever_came_meanwhile(
    shared_engine: Engine, before: list[Row], later: list[Row], gone: set[int], asked: dict[str, Any]
) -> None:
    shop = make_shop(shared_engine)
    rows = [replace(row, name=f"e{i}") for i, row in enumerate([*before, *later])]
    shop.store(rows[: len(before)])
    chosen = shop.selection(asked)
    assert shop.count(chosen) == sum(is_meant(row, asked) for row in rows[: len(before)])
    known = shop.measure(chosen)
    shop.store(rows[len(before) :])
    gone_names = tuple(f"e{i}" for i in gone if i < len(before))
    if gone_names:
        shop.cache.mutate(partial(invalidate, selection=Selection(names=gone_names)))
    left = [row for row in rows if row.name not in gone_names]
    dry = shop.count(chosen)
    assert shop.invalidate(known) == dry == sum(is_meant(row, asked) for row in left)
    assert set(shop.cache.names()) == {row.name for row in left if not is_meant(row, asked)}
    shop.cache.check()


def plain(name: str, angle: int, **fields: Any) -> Row:
    """A live row of the first category."""
    known = Row(name, 0, frozenset(), "", "", 0, 9_000, angle)
    return replace(known, **fields)


def test_radius_counts_distances_to_stored_vectors_inclusively(shop: Shop) -> None:
    shop.store([plain("e0", 0), plain("e3", 3)])
    (row,) = [own for own in shop.cache.entries() if own.name == "e3"]
    stored = np.frombuffer(row.vector, dtype="<f2").astype(np.float64)
    distance = float(1 - stored[0] / np.linalg.norm(stored))
    for radius, count in ((distance, 2), (distance - 1e-9, 1), (0.0, 1)):
        near = Near(space="text", vector=direction(0), radius=radius)
        assert shop.count(Selection(near=near)) == count


def test_many_rows_are_measured_in_parts(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection_module, "MEASURED_ROWS", 3)
    monkeypatch.setattr(selection_module, "ID_CHUNK", 2)
    shop.store([plain(f"e{i}", i % DIRECTIONS) for i in range(30)])
    chosen = shop.measure(shop.selection({"near": (0, 0.2)}))
    assert (shop.count(chosen), shop.invalidate(chosen)) == (8, 8)


def test_entry_that_was_embedded_anew_meanwhile_is_measured_anew(shop: Shop) -> None:
    shop.store([plain("e0", 0), plain("e1", 0), plain("e2", 6)])
    old = shop.measure(Selection(near=Near(space="text", vector=direction(0), radius=0.2)))
    new = shop.measure(Selection(near=Near(space="text:2", vector=direction(0), radius=0.2)))
    by_name = {own.name: own.id for own in shop.cache.entries()}

    def move(tx: CacheTransaction) -> None:
        for name, angle in (("e1", 6), ("e2", 0)):
            moved = {"modality": "text:2", "vector": direction(angle).astype(np.float16).tobytes()}
            tx.connection.execute(update(entries).where(entries.c.id == by_name[name]).values(**moved))
        tx.record(Operation.UPSERT, [by_name["e1"], by_name["e2"]])

    shop.cache.mutate(move)
    assert (shop.invalidate(new), shop.cache.names()) == (1, ["e0", "e1"])
    assert (shop.invalidate(old), shop.cache.names()) == (1, ["e1"])


def test_all_is_measured_again_where_the_feed_was_pruned(shop: Shop) -> None:
    shop.store([plain("e0", 0)])
    chosen = shop.measure(shop.selection({"near": (0, 0.2)}))
    shop.store([plain("e1", 0), plain("e2", 0)])

    def prune(tx: CacheTransaction) -> None:
        old = (changes.c.cache_id == tx.cache_id, changes.c.seq <= 2)
        tx.connection.execute(delete(changes).where(*old))

    shop.cache.mutate(prune)
    assert shop.invalidate(chosen) == 3


# Through the door


def fill(client: Client, vectors: Vectors, count: int = 6) -> None:
    """Entries e0, e1, ... of the models m0 and m1 in turn."""
    client.create_category("faq", "travel")
    for i in range(count):
        category = "travel" if i % 3 == 0 else "billing"
        fields = {"model": f"m{i % 2}", "response": b"x", "entry": f"e{i}"}
        client.store("faq", category, embedding=vectors[i], **fields)  # type: ignore[arg-type]


def left_in(client: Client) -> list[str]:
    """Ids of what is stored."""
    return [entry.name.rpartition("/")[2] for entry in client.list_entries("faq")]


@pytest.mark.parametrize(
    ("asked", "gone"),
    [
        ({"models": ["m0"]}, ["e0", "e2", "e4"]),
        ({"models": ["m1", "m0"], "categories": ["travel"]}, ["e0", "e3"]),
        ({"older_than": timedelta(hours=1)}, []),
        ({"created_before": datetime(2100, 1, 1, tzinfo=UTC)}, ["e0", "e1", "e2", "e3", "e4", "e5"]),
        ({"created_before": datetime(2100, 1, 1), "older_than": timedelta(hours=1)}, []),
        ({"created_before": datetime(2020, 1, 1, tzinfo=UTC)}, []),
        ({"radius": 0.01}, ["e1"]),
        ({"radius": 0.01, "categories": ["travel"]}, []),
        ({"radius": 2.0, "categories": ["travel"]}, ["e0", "e3"]),
        ({"radius": 2.0, "models": ["m1"], "entries": ["e1", "e2", "e3"]}, ["e1", "e3"]),
    ],
    ids=str,
)
def test_selectors_delete_what_their_dry_run_counts(
    door: Client, vectors: Vectors, asked: dict[str, Any], gone: list[str]
) -> None:
    fill(door, vectors)
    if "radius" in asked:
        asked = {**asked, "near": 3 * vectors[1]}
    dry = door.invalidate("faq", **asked, dry_run=True)
    assert (dry.entry_count, dry.seq, len(left_in(door))) == (len(gone), 0, 6)
    done = door.invalidate("faq", **asked)
    assert done.entry_count == len(gone)
    assert left_in(door) == [f"e{i}" for i in range(6) if f"e{i}" not in gone]
    for i in range(6):
        answer = door.lookup("faq", "travel" if i % 3 == 0 else "billing", embedding=vectors[i])
        assert bool(answer.response) == (f"e{i}" not in gone)


def test_age_is_counted_to_when_the_call_begins(door: Client, vectors: Vectors) -> None:
    fill(door, vectors, count=1)
    created = door.get_entry("faq", "e0").create_time.ToMilliseconds()
    assert door.invalidate("faq", created_before=_time(created)).entry_count == 0
    assert door.invalidate("faq", created_before=_time(created + 1)).entry_count == 1


def _time(milliseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


def test_nearness_is_of_one_modality(lone_door: Client, vectors: Vectors) -> None:
    modalities = [pb.Modality(modality=name, dim=32) for name in ("text", "image")]
    request = admin_pb.CreateCacheRequest(cache_id="media", cache=pb.Cache(modalities=modalities))
    lone_door.call(lone_door.admin.CreateCache, request)
    lone_door.create_category("media", "all")
    for name in ("text", "image"):
        lone_door.store("media", "all", embedding=vectors[0], modality=name, entry=name, response=b"x")
    lone_door.invalidate("media", near=vectors[0], radius=0.1, modality="image")
    assert [entry.name for entry in lone_door.list_entries("media")] == ["caches/media/entries/text"]


def test_what_was_invalidated_is_gone_for_other_replicas_and_after_a_restart(
    config: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    vectors: Vectors,
) -> None:
    server = start_server(config)
    first, second = connect(server), connect(start_server(config))
    first.create_cache("faq", dim=32, code_bits=64)
    first.create_category("faq", "billing", threshold=0.1)
    fill(first, vectors)
    eventually(lambda: second.lookup("faq", "billing", embedding=vectors[5]).response == b"x")
    seq = first.invalidate("faq", near=vectors[5], radius=0.01).seq
    answer = second.lookup("faq", "billing", embedding=vectors[5], min_seq=seq)
    assert answer.response == b""
    third = connect(start_server(config))
    assert third.lookup("faq", "billing", embedding=vectors[5]).response == b""
    assert third.lookup("faq", "billing", embedding=vectors[4]).response == b"x"


def test_model_is_stored_and_read_back(door: Client, vectors: Vectors) -> None:
    stored = door.store("faq", "billing", embedding=vectors[0], response=b"x", entry="e", model="m" * 256)
    assert stored.entry.model == door.get_entry("faq", "e").model == "m" * 256
    (exported,) = door.export_entries("faq")
    assert exported.model == "m" * 256


def query(vector: NDArray[Any] | None = None, **fields: Any) -> pb.Query:
    """A query by embedding."""
    given = np.eye(1, 32)[0] if vector is None else vector
    return pb.Query(embedding=given.astype("<f4").tobytes(), **fields)


NAN = float("nan")


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "NO_SELECTOR"),
        ({"models": [""]}, "INVALID_VALUE"),
        ({"models": ["m\0"]}, "INVALID_VALUE"),
        ({"models": ["m" * 257]}, "FIELD_TOO_LARGE"),
        ({"models": ["m"] * 10_001}, "FIELD_TOO_LARGE"),
        ({"older_than": Duration()}, "INVALID_AGE"),
        ({"older_than": Duration(seconds=-1)}, "INVALID_AGE"),
        ({"older_than": Duration(seconds=2**62)}, "INVALID_AGE"),
        ({"created_before": Timestamp(seconds=2**62)}, "INVALID_TIME"),
        ({"near": query()}, "INVALID_RADIUS"),
        ({"radius": 0.1}, "INVALID_RADIUS"),
        ({"radius": 0.1, "tags": ["t"]}, "INVALID_RADIUS"),
        ({"near": query(), "radius": NAN}, "INVALID_RADIUS"),
        ({"near": query(), "radius": -0.1}, "INVALID_RADIUS"),
        ({"near": query(), "radius": 2.1}, "INVALID_RADIUS"),
        ({"near": query(np.ones(31)), "radius": 0.1}, "DIMENSION_MISMATCH"),
        ({"near": query(np.zeros(32)), "radius": 0.1}, "EMBEDDING_ZERO"),
        ({"near": query(np.full(32, NAN)), "radius": 0.1}, "EMBEDDING_NOT_FINITE"),
        ({"near": query(modality="image"), "radius": 0.1}, "UNKNOWN_MODALITY"),
        ({"near": pb.Query(), "radius": 0.1}, "NOTHING_TO_EMBED"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_bad_selectors_are_refused(
    still_client: Client,
    fields: dict[str, Any],
    reason: str,
    dry_run: bool,  # noqa: FBT001
) -> None:
    request = cache_pb.InvalidateRequest(parent="caches/faq", dry_run=dry_run, **fields)
    with refused(INVALID, reason):
        still_client.call(still_client.semantic_cache.Invalidate, request)


def test_text_to_be_near_to_needs_an_embedder(still_client: Client) -> None:
    with refused(grpc.StatusCode.UNAVAILABLE, "EMBEDDER_UNAVAILABLE"):
        still_client.invalidate("faq", near_text="how?", radius=0.1)


def test_unknown_category_is_not_found(still_client: Client) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "CATEGORY_NOT_FOUND"):
        still_client.invalidate("faq", categories=["none"], models=["m"])


def test_model_of_an_entry_has_a_limit(still_client: Client, vectors: Vectors) -> None:
    with refused(INVALID, "FIELD_TOO_LARGE"):
        still_client.store("faq", "billing", embedding=vectors[0], response=b"", model="m" * 257)

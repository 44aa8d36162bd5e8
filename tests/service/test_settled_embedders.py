"""Vectors of two embedders never meet in one space, also of a cache that was made without saying whose."""

from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from nearhit import Client
from nearhit.client import store_request
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from numpy.typing import NDArray
from refusals import refused
from sqlalchemy import Engine, update
from store_rows import StoreCache, make_cache, new_entry

from service.config import Config
from service.database import reading, writing
from service.embedder_maps import check_spaces
from service.errors import InvalidRequestError
from service.records import NewEntry
from service.row_import import import_rows
from service.rows import read_cache
from service.server import Server
from service.store import store_entries
from service.tables import caches, entries

Vectors = NDArray[np.float32]
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def embedder_of(client: Client, modality: str = "text") -> str:
    """Whose embeddings the cache says that it holds."""
    cache = client.call(client.admin.GetCache, admin_pb.GetCacheRequest(name="caches/faq"))
    (found,) = [own.embedder_id for own in cache.modalities if own.modality == modality]
    return str(found)


def store(client: Client, vector: Vectors, **fields: Any) -> pb.Entry:
    """Store one entry."""
    return client.store("faq", "billing", embedding=vector, response=b"x", **fields).entry


def test_first_embedder_that_an_entry_names_is_the_caches(door: Client, vectors: Vectors) -> None:
    assert embedder_of(door) == ""
    door.lookup("faq", "billing", embedding=vectors[0], embedder_id="asked-only")
    assert store(door, vectors[0]).embedder_id == ""
    assert embedder_of(door) == ""
    assert store(door, vectors[1], embedder_id="model-1").embedder_id == "model-1"
    assert embedder_of(door) == "model-1"
    assert store(door, vectors[2]).embedder_id == "model-1"
    assert store(door, vectors[3], embedder_id="model-1").embedder_id == "model-1"


def test_another_embedder_is_refused_from_then_on(door: Client, vectors: Vectors) -> None:
    store(door, vectors[0], embedder_id="model-1")
    with refused(INVALID, "EMBEDDER_MISMATCH"):
        store(door, vectors[1], embedder_id="model-2")
    with refused(INVALID, "EMBEDDER_MISMATCH"):
        door.lookup("faq", "billing", embedding=vectors[0], embedder_id="model-2")
    with refused(INVALID, "EMBEDDER_MISMATCH"):
        door.search("faq", embedding=vectors[0], embedder_id="model-2")
    assert door.lookup("faq", "billing", embedding=vectors[0], embedder_id="model-1").response == b"x"
    assert len(list(door.list_entries("faq"))) == 1


def test_batch_of_two_embedders_is_refused_and_settles_nothing(door: Client, vectors: Vectors) -> None:
    requests = [
        store_request("faq", "billing", embedding=vectors[i], response=b"x", embedder_id=f"model-{i}")
        for i in range(2)
    ]
    with refused(INVALID, "EMBEDDER_MISMATCH"):
        door.batch_store("faq", requests)
    assert (embedder_of(door), list(door.list_entries("faq"))) == ("", [])
    assert store(door, vectors[0], embedder_id="model-2").embedder_id == "model-2"


def test_import_of_two_embedders_is_refused(lone_door: Client, vectors: Vectors) -> None:
    exported = []
    for i in range(2):
        lone_door.create_cache(f"from-{i}", dim=32, code_bits=64)
        lone_door.create_category(f"from-{i}", "billing")
        fields = {"embedder_id": f"model-{i}", "response": b"x"}
        lone_door.store(f"from-{i}", "billing", embedding=vectors[i], **fields)  # type: ignore[arg-type]
        exported += list(lone_door.export_entries(f"from-{i}"))
    with refused(INVALID, "EMBEDDER_MISMATCH"):
        lone_door.import_entries("faq", exported)
    assert {entry.embedder_id for entry in lone_door.list_entries("faq")} == {"model-0"}
    assert embedder_of(lone_door) == "model-0"


def test_other_replicas_and_a_restart_know_it(
    config: Config,
    start_server: Callable[[Config], Server],
    connect: Callable[[Server], Client],
    vectors: Vectors,
) -> None:
    first, second = connect(start_server(config)), connect(start_server(config))
    first.create_cache("faq", dim=32, code_bits=64)
    first.create_category("faq", "billing")
    seq = store(first, vectors[0], embedder_id="model-1").seq
    second.search("faq", embedding=vectors[0], min_seq=seq)
    # Whether the second has read the settings again or not: the store decides.
    with refused(INVALID, "EMBEDDER_MISMATCH"):
        store(second, vectors[1], embedder_id="model-2")
    assert embedder_of(connect(start_server(config))) == "model-1"


def named(cache: StoreCache) -> str:
    """The embedder of the cache's one space."""
    with reading(cache.engine) as connection:
        return read_cache(connection, cache.name).modalities["text"].embedder_id


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """A cache whose embedder is not known."""
    return make_cache(shared_engine)


def test_rows_that_are_loaded_settle_it_too(cache: StoreCache) -> None:
    faq = cache.category("faq")
    first: list[NewEntry] = [new_entry(faq, "a", embedder_id="model-1"), new_entry(faq, "b")]
    cache.mutate(partial(import_rows, items=first))
    assert (named(cache), {own.embedder_id for own in cache.entries()}) == ("model-1", {"model-1"})
    with pytest.raises(InvalidRequestError):
        cache.mutate(partial(import_rows, items=[new_entry(faq, "c", embedder_id="model-2")]))


def test_entries_of_before_settle_whose_it_may_be(cache: StoreCache) -> None:
    faq = cache.category("faq")
    cache.mutate(partial(store_entries, items=[new_entry(faq, "a"), new_entry(faq, "b")]))
    with writing(cache.engine) as connection:
        of_before = update(entries).where(entries.c.cache_id == cache.id, entries.c.name == "a")
        connection.execute(of_before.values(embedder_id="model-1"))
    with pytest.raises(InvalidRequestError) as raised:
        cache.mutate(partial(store_entries, items=[new_entry(faq, "c", embedder_id="model-2")]))
    assert raised.value.reason == "EMBEDDER_MISMATCH"
    assert named(cache) == ""
    cache.mutate(partial(store_entries, items=[new_entry(faq, "c", embedder_id="model-1")]))
    assert named(cache) == "model-1"


def test_embedder_of_the_next_space_is_not_taken_for_this_one(cache: StoreCache) -> None:
    faq = cache.category("faq")
    spaces = {
        "text": {"dim": 8, "embedder_id": "", "succeeds": ""},
        "text:2": {"dim": 8, "embedder_id": "new", "succeeds": "text"},
    }
    with writing(cache.engine) as connection:
        connection.execute(update(caches).where(caches.c.id == cache.id).values(modalities=spaces))
    with pytest.raises(InvalidRequestError):
        cache.mutate(partial(store_entries, items=[new_entry(faq, "a", embedder_id="new")]))
    cache.mutate(partial(store_entries, items=[new_entry(faq, "a", embedder_id="old")]))
    assert named(cache) == "old"


def test_check_names_entries_of_another_embedder(cache: StoreCache) -> None:
    faq = cache.category("faq")
    cache.mutate(partial(store_entries, items=[new_entry(faq, "a", embedder_id="model-1"), new_entry(faq)]))

    def problems() -> list[str]:
        with reading(cache.engine) as connection:
            return list(check_spaces(connection, read_cache(connection, cache.name)))

    assert problems() == []
    with writing(cache.engine) as connection:
        own = update(entries).where(entries.c.cache_id == cache.id, entries.c.name == "a")
        connection.execute(own.values(embedder_id="model-2"))
    assert problems() == ["space text is of embedder 'model-1' and holds entries of 'model-2'"]

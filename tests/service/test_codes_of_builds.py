"""Codes that a build writes into the store while a server goes on storing."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, update
from store_rows import StoreCache, make_cache, new_entry, second_engine

from hashing.config import EncoderConfig
from service import generations, store
from service.config import SearchConfig
from service.database import writing
from service.generations import BuiltIndex, build_index
from service.learning import train_from_store
from service.records import Coding
from service.registry import activate_encoder
from service.tables import entries


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """Entries "e0" to "e9" without codes, and an active encoder."""
    cache = make_cache(shared_engine)
    faq = cache.category("faq")
    items = [new_entry(faq, f"e{number}") for number in range(10)]
    cache.mutate(partial(store.store_entries, items=items))
    encoder = train_from_store(
        cache.engine,
        cache.name,
        config=EncoderConfig(code_bits=64, label_bits=64, itq_iterations=1),
        modality="text",
        progress=None,
        now_ms=0,
    )
    with writing(cache.engine) as connection:
        activate_encoder(connection, cache.id, encoder.encoder_id, max_live_encoders=4)
    return cache


@pytest.fixture
def server(cache: StoreCache) -> Iterator[StoreCache]:
    """The cache as another process writes to it."""
    engine = second_engine(cache.engine)
    yield StoreCache(engine, cache.name, cache.id)
    engine.dispose()


def build(cache: StoreCache, data_dir: Path) -> BuiltIndex:
    """Write and activate a generation."""
    return build_index(
        cache.engine,
        cache.name,
        search=SearchConfig(),
        data_dir=str(data_dir),
        with_graph=False,
        reencode=False,
        memory_limit_bytes=1 << 24,
        progress=lambda _stage, _done, _total: None,
        now_ms=0,
    )


def test_rows_that_change_while_they_are_encoded_stay_as_they_are(
    cache: StoreCache, server: StoreCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = Coding(encoder_id="f" * 32, code=bytes(8), label_code=None)
    label_code = bytes(range(8))
    (faq,) = cache.categories()
    encode = generations.code_rows

    def store_meanwhile(*arguments: Any, labels: Sequence[Sequence[str]], modality: str) -> list[Coding]:
        replacement = new_entry(faq, "e0", replace_name="e0", text="later", coding=later)
        server.mutate(partial(store.store_entries, items=[replacement]))  # must not wait for the build
        own = entries.c.cache_id == cache.id
        with writing(server.engine) as connection:
            recoded = update(entries).where(own, entries.c.name == "e1")
            connection.execute(recoded.values(code=later.code, encoder_id=later.encoder_id))
            labelled = update(entries).where(own, entries.c.name == "e2")
            connection.execute(labelled.values(label_code=label_code))
        return encode(*arguments, labels=labels, modality=modality)

    monkeypatch.setattr(generations, "code_rows", store_meanwhile)
    assert build(cache, tmp_path).coded_count == 8
    stored = {entry.name: entry for entry in cache.entries()}
    assert [stored[name].encoder_id for name in ("e0", "e1")] == [later.encoder_id] * 2
    assert (stored["e0"].text, stored["e0"].code, stored["e1"].code) == ("later", later.code, later.code)
    assert stored["e2"].label_code == label_code
    assert len({entry.encoder_id for entry in stored.values()}) == 2


@pytest.mark.parametrize("chunk", [1, 3, 10])
def test_codes_are_written_in_chunks_and_counted(
    cache: StoreCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(generations, "_CODE_CHUNK", chunk)
    assert build(cache, tmp_path).coded_count == 10
    assert all(entry.code for entry in cache.entries())
    assert build(cache, tmp_path).coded_count == 0

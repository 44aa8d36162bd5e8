"""Each invariant broken on purpose: the check names it, and a healthy store has no problems."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, Table, delete, update
from store_rows import DIM, StoreCache, make_cache, new_entry

from hashing.config import EncoderConfig
from index.manifest import CURRENT_FILE
from service import registry, store
from service.check import check_cache
from service.config import Config, StoreConfig
from service.database import writing
from service.generations import build_index
from service.learning import train_from_store
from service.policy import dump_own
from service.replica import index_root
from service.tables import caches, categories, changes, encoders, entries, generations, responses

LABELS = ("red", "blue")


@pytest.fixture
def config(tmp_path: Path, config_of: Callable[[StoreConfig], Config]) -> Config:
    """Where the generations lie."""
    return config_of(StoreConfig(url="sqlite:///unused", data_dir=str(tmp_path)))


@pytest.fixture
def cache(shared_engine: Engine, config: Config) -> StoreCache:
    """Labelled entries n0 to n39 with codes in a generation, new0 to new9 after it."""
    cache = make_cache(shared_engine)
    faq = cache.category("faq", ttl_ms=1_000, ttl_mode="sliding")
    put(cache, faq, *(f"n{i}" for i in range(40)))
    train(cache)
    build(cache, config)
    put(cache, faq, *(f"new{i}" for i in range(10)))
    return cache


def put(cache: StoreCache, category_id: int, *names: str) -> None:
    """Store entries whose label, fingerprint and response follow from their names."""
    items = [
        new_entry(
            category_id,
            name,
            scope="gpt",
            fingerprint=f"question {name}",
            labels=(LABELS[len(name) % 2],),
            response=name.encode(),
        )
        for name in names
    ]
    cache.mutate(partial(store.store_entries, items=items))


def train(cache: StoreCache, *, seed: int = 0) -> str:
    """Train an encoder, activate it and issue its label codes."""
    config = EncoderConfig(code_bits=64, label_bits=64, itq_iterations=2, feature_count=16, seed=seed)
    trained = train_from_store(
        cache.engine, cache.name, config=config, modality="text", progress=None, now_ms=seed
    )
    with writing(cache.engine) as connection:
        registry.activate_encoder(connection, cache.id, trained.encoder_id, max_live_encoders=4)
    return trained.encoder_id


def build(cache: StoreCache, config: Config, *, reencode: bool = False) -> str:
    """Write and activate a generation."""
    built = build_index(
        cache.engine,
        cache.name,
        search=config.search,
        data_dir=config.store.data_dir,
        with_graph=False,
        reencode=reencode,
        memory_limit_bytes=1 << 24,
        progress=lambda stage, done, total: None,
        now_ms=0,
    )
    return built.report.generation


def problems(cache: StoreCache, config: Config) -> str:
    """What the check finds, a line each."""
    return "\n".join(check_cache(cache.engine, cache.name, config).problems)


def spoil(cache: StoreCache, entry: str, **values: Any) -> None:
    """Change columns of an entry behind the store's back."""
    with writing(cache.engine) as connection:
        changed = update(entries).where(entries.c.cache_id == cache.id, entries.c.name == entry)
        connection.execute(changed.values(**values))


def spoil_rows(cache: StoreCache, table: Table, **values: Any) -> None:
    """Change columns of all rows of a table that belong to the cache."""
    of_cache = table.c.id if table is caches else table.c.cache_id
    with writing(cache.engine) as connection:
        connection.execute(update(table).where(of_cache == cache.id).values(**values))


def row_of(cache: StoreCache, name: str) -> Any:
    """The entry of that name."""
    return next(record for record in cache.entries() if record.name == name)


def test_a_healthy_store_has_no_problems(cache: StoreCache, config: Config) -> None:
    report = check_cache(cache.engine, cache.name, config)
    assert (report.problems, report.entry_count, report.generation) == ((), 50, "gen-00000001")
    assert row_of(cache, "n1").code is not None


def test_deletions_and_expiry_are_no_problems(cache: StoreCache, config: Config) -> None:
    cache.mutate(partial(store.delete_entry, name="n3"))
    cache.mutate(partial(store.delete_entry, name="new3"))
    put(cache, row_of(cache, "n4").category_id, "late")
    cache.mutate(partial(store.delete_expired, limit=10), now_ms=2_000)
    assert problems(cache, config) == ""
    assert len(cache.entries()) == 39


def test_codes_of_two_encoders_are_no_problem(cache: StoreCache, config: Config) -> None:
    train(cache, seed=1)
    assert problems(cache, config) == ""
    build(cache, config)
    assert len({record.encoder_id for record in cache.entries()}) == 2
    assert problems(cache, config) == ""
    build(cache, config, reencode=True)
    assert problems(cache, config) == ""


def test_an_interrupted_recoding_is_no_problem(
    cache: StoreCache, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    train(cache, seed=1)
    monkeypatch.setattr("service.generations.build_generation", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(cache, config, reencode=True)
    assert problems(cache, config) == ""


@pytest.mark.parametrize(
    ("values", "finding"),
    [
        ({"scope": "other"}, "entry n7: the index has another scope than the store"),
        ({"scope": "other"}, "fingerprint keys of entries n7 are not those"),
        ({"fingerprint_key": bytes(16)}, "fingerprint keys of entries n7 are not those"),
        ({"fingerprint_key": bytes(range(16))}, "entry n7: the index has another fingerprint"),
        ({"fingerprint": "other"}, "fingerprint keys of entries n7 are not those"),
        ({"code": bytes(8)}, "codes of entries n7 are not what encoder"),
        ({"code": bytes(8)}, "entry n7: the index has another code"),
        ({"code": bytes(7)}, "entry n7: the code has 7 bytes"),
        ({"code": None}, "entry n7: it has a code without an encoder"),
        ({"encoder_id": "gone"}, "entries n7 carry codes of encoder gone, which is not there"),
        ({"label_code": bytes(8)}, "label codes of entries n7 are not those issued"),
        ({"label_code": bytes(8)}, "entry n7: the index has another label code"),
        ({"label_code": None}, "entry n7: the index has another label code"),
        ({"label_code": bytes(3)}, "entry n7: the label code has 3 bytes"),
        ({"labels": ["green"]}, "label codes of entries n7 are not those issued"),
        ({"vector": bytes(2 * DIM)}, "entry n7: the vector has norm 0, not 1"),
        ({"vector": np.full(DIM, np.nan, "<f2").tobytes()}, "entry n7: the vector is not finite"),
        ({"vector": np.full(DIM, np.inf, "<f2").tobytes()}, "entry n7: the vector is not finite"),
        ({"vector": bytes(3)}, "entry n7: the vector has 3 bytes"),
        ({"vector": np.eye(DIM, dtype="<f2")[0].tobytes()}, "entry n7: the index has another vector"),
        ({"modality": "image"}, "entry n7: the cache has no modality 'image'"),
        ({"expire_ms": 77}, "entry n7: the index has another expire time"),
        ({"expire_ms": 0}, "entry n7: the expire time is 0"),
        ({"name": "renamed"}, "entry renamed: the index has another payload"),
        ({"seq": 10_000}, "1 entries are ahead of the cache's seq"),
    ],
)
def test_a_changed_entry_is_named(
    cache: StoreCache, config: Config, values: dict[str, Any], finding: str
) -> None:
    spoil(cache, "n7", **values)
    assert finding in problems(cache, config)


@pytest.mark.parametrize(
    "values",
    [
        {"vector": bytes(2 * DIM)},
        {"vector": bytes(3)},
        {"code": bytes(7), "encoder_id": "gone"},
        {"label_code": bytes(3)},
        {"expire_ms": 0},
    ],
)
def test_an_entry_that_cannot_be_replayed_is_named(
    cache: StoreCache, config: Config, values: dict[str, Any]
) -> None:
    spoil(cache, "new7", **values)
    assert "entry new7: " in problems(cache, config)


def test_an_entry_of_another_category_is_named(cache: StoreCache, config: Config) -> None:
    other = cache.category("other")
    spoil(cache, "n7", category_id=other)
    found = problems(cache, config)
    assert "entry n7: the index has another category" in found
    assert "category faq counts 50 entries" in found
    assert "category other counts 0 entries" in found


def test_a_changed_response_is_named(cache: StoreCache, config: Config) -> None:
    row_id = row_of(cache, "n7").id
    with writing(cache.engine) as connection:
        connection.execute(update(responses).where(responses.c.entry_id == row_id).values(body=b"other"))
    assert problems(cache, config) == "entry n7: the index has another payload than the store"


def test_a_lost_response_is_counted(cache: StoreCache, config: Config) -> None:
    row_id = row_of(cache, "n7").id
    with writing(cache.engine) as connection:
        connection.execute(delete(responses).where(responses.c.entry_id == row_id))
    assert "1 entries have no response" in problems(cache, config)


def test_a_row_lost_without_a_change_is_named(cache: StoreCache, config: Config) -> None:
    row_id = row_of(cache, "n7").id
    with writing(cache.engine) as connection:
        connection.execute(delete(entries).where(entries.c.id == row_id))
    assert f"row {row_id} is in the index and not in the store" in problems(cache, config)


@pytest.mark.parametrize("counter", ["entry_count", "size_bytes"])
def test_wrong_counters_are_named(cache: StoreCache, config: Config, counter: str) -> None:
    spoil_rows(cache, categories, **{counter: 1})
    assert "category faq counts" in problems(cache, config)


@pytest.mark.parametrize("quota", ["max_entries", "max_bytes"])
def test_a_quota_that_is_passed_is_named(cache: StoreCache, config: Config, quota: str) -> None:
    spoil_rows(cache, categories, policy=dump_own({quota: 3}))
    assert "its quota is 3" in problems(cache, config)


def test_a_policy_that_cannot_be_read_is_named(cache: StoreCache, config: Config) -> None:
    spoil_rows(cache, categories, policy='{"threshold": "near"}')
    assert "has the threshold 'near', which must be a cosine distance in [0, 2]" in problems(cache, config)


@pytest.mark.parametrize("seq", [20, 45, 50])
def test_a_gap_in_the_feed_is_named(cache: StoreCache, config: Config, seq: int) -> None:
    with writing(cache.engine) as connection:
        connection.execute(delete(changes).where(changes.c.cache_id == cache.id, changes.c.seq == seq))
    assert "the feed holds 49 changes" in problems(cache, config)


def test_a_damaged_encoder_is_named(cache: StoreCache, config: Config) -> None:
    encoder_id = row_of(cache, "n1").encoder_id
    spoil_rows(cache, encoders, weights=b"nothing")
    found = problems(cache, config)
    assert f"encoder {encoder_id}: checkpoint refused" in found
    assert "the index cannot be opened: checkpoint refused" in found
    assert "not there" not in found


@pytest.mark.parametrize("state", ["candidate", "rejected"])
def test_label_codes_of_an_encoder_that_never_served_are_named(
    cache: StoreCache, config: Config, state: str
) -> None:
    spoil_rows(cache, encoders, state=state)
    assert "label codes of entries" in problems(cache, config)


@pytest.mark.parametrize("file", ["manifest.json", "*.segment", CURRENT_FILE])
def test_a_damaged_file_is_named(cache: StoreCache, config: Config, file: str) -> None:
    root = index_root(config.store.data_dir, cache.id)
    path = next(root.rglob(file))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert problems(cache, config).startswith(str(path))


def test_a_generation_of_another_store_is_named(cache: StoreCache, config: Config) -> None:
    with writing(cache.engine) as connection:
        connection.execute(delete(generations).where(generations.c.cache_id == cache.id))
    assert problems(cache, config) == "generation gen-00000001 was not built from this store as it is now"

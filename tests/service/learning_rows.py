"""Labelled rows, and encoders trained on them, for tests of learning."""

from functools import partial

import numpy as np
from numpy.typing import NDArray
from store_rows import StoreCache, new_entry

from hashing.checkpoint import load_encoder
from hashing.config import EncoderConfig
from service import registry, store
from service.coding import code_rows, label_codes_of
from service.config import UpdateConfig
from service.database import reading, writing
from service.learning import train_from_store
from service.records import EncoderRecord
from service.rows import read_cache, read_encoders, read_weights
from service.update import UpdateOutcome, run_update

DIM = 16
ENCODER = EncoderConfig(code_bits=64, label_bits=64, itq_iterations=2, feature_count=128)


def cluster(label: str, count: int) -> NDArray[np.float16]:
    """Unit vectors float16 [count, DIM] around a centre of the label's own."""
    rng = np.random.default_rng([*label.encode()])
    rows = rng.standard_normal(DIM) + 0.15 * rng.standard_normal((count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def fill(cache: StoreCache, category_id: int, *labels: str, count: int = 15) -> None:
    """Store `count` rows of each label ("": without one), coded by the active encoder as a server does."""
    with reading(cache.engine) as connection:
        record = read_cache(connection, cache.name)
        active = record.active_encoder_id
        encoder = load_encoder(read_weights(connection, cache.id, active)) if active else None
    items = []
    for label in labels:
        own = (label,) if label else ()
        vectors = cluster(label, count)
        codings = (
            code_rows(encoder, vectors, modality="text", labels=[own] * count) if encoder else [None] * count
        )
        items += [
            new_entry(category_id, vector=vector, labels=own, coding=coding)
            for vector, coding in zip(vectors, codings, strict=True)
        ]
    cache.mutate(partial(store.store_entries, items=items))


def train(cache: StoreCache, config: EncoderConfig = ENCODER) -> EncoderRecord:
    """Train on what is stored."""
    return train_from_store(cache.engine, cache.name, config=config, modality="text", progress=None, now_ms=1)


def activate(cache: StoreCache, encoder_id: str) -> None:
    """Make an encoder the active one."""
    with writing(cache.engine) as connection:
        registry.activate_encoder(connection, cache.id, encoder_id, max_live_encoders=4)


def learned(cache: StoreCache, *labels: str) -> int:
    """Store rows of the labels, train and activate; returns the category."""
    faq = cache.category("faq")
    fill(cache, faq, *labels)
    activate(cache, train(cache).encoder_id)
    return faq


def learn(
    cache: StoreCache, *, max_map_drop: float = 1.0, max_flips: float = 1.0, **rest: object
) -> UpdateOutcome:
    """Run an update."""
    return run_update(
        cache.engine,
        cache.name,
        config=UpdateConfig(max_map_drop=max_map_drop, max_flips=max_flips),
        max_live_encoders=4,
        clock=lambda: 2,
        **rest,  # type: ignore[arg-type]
    )


def active_id(cache: StoreCache) -> str | None:
    """The active encoder."""
    with reading(cache.engine) as connection:
        return read_cache(connection, cache.name).active_encoder_id


def encoders(cache: StoreCache) -> dict[str, EncoderRecord]:
    """All encoders by id."""
    with reading(cache.engine) as connection:
        return {record.encoder_id: record for record in read_encoders(connection, cache.id)}


def check_label_codes(cache: StoreCache) -> None:
    """Every row whose labels the active encoder knows has its code for them."""
    with reading(cache.engine) as connection:
        encoder = load_encoder(read_weights(connection, cache.id, str(active_id(cache))))
    rows = cache.entries()
    expected = label_codes_of(encoder, [row.labels for row in rows])
    assert [row.label_code for row in rows] == expected

"""A cache of two modalities, its labelled rows, and encoders of both, for tests of learning."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from forgotten_rows_at_work import encoder_of
from learning_rows import activate, active_id
from numpy.typing import NDArray
from sqlalchemy import Engine, select
from store_rows import StoreCache, make_cache, new_entry

from hashing.crossmodal_config import CrossModalConfig, KernelSettings
from hashing.label_part import LearnedStates
from hashing.learned_states import load_states
from service import store, tables
from service.coding import code_rows, from_stored
from service.crossmodal_learning import train_crossmodal_from_store
from service.database import reading
from service.learned_rows import members, read_learned

DIMS = {"image": 12, "text": 8}
CONFIG = CrossModalConfig(
    code_bits=128,
    label_bits=64,
    itq_iterations=2,
    function_feature_count=64,
    label_feature_count=48,
    kernels={modality: KernelSettings(gamma=1.0, ridge=0.003) for modality in DIMS},
)


def views(modality: str, label: str, count: int, *, seed: int) -> NDArray[np.float16]:
    """Unit vectors float16 [count, dim] around the centre of a label in a modality."""
    dim = DIMS[modality]
    centre = np.random.default_rng([dim, *label.encode()]).standard_normal(dim)
    rows = centre + 0.2 * np.random.default_rng([seed, dim, *label.encode()]).standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def two_modalities(engine: Engine) -> tuple[StoreCache, int]:
    """A new cache of both, and a category of it."""
    cache = make_cache(engine, modalities=DIMS, code_bits=CONFIG.code_bits)
    return cache, cache.category("all")


def put_views(
    cache: StoreCache,
    category_id: int,
    modality: str,
    *labels: str,
    count: int = 12,
    seed: int = 0,
    **fields: Any,
) -> list[str]:
    """Store `count` rows of each label ("": without one), coded as a server does; returns their names, such
    as image-a-0-3, of seed and number."""
    encoder = encoder_of(cache) if active_id(cache) else None
    items, names = [], []
    for label in labels:
        own = (label,) if label else ()
        vectors = views(modality, label, count, seed=seed)
        coded: Iterable[Any] = [None] * count
        if encoder is not None and modality in encoder.modalities:
            coded = code_rows(encoder, vectors, modality=modality, labels=[own] * count)
        for i, (vector, coding) in enumerate(zip(vectors, coded, strict=True)):
            names.append(f"{modality}-{label}-{seed}-{i}")
            common = {"vector": vector, "labels": own, "coding": coding, "modality": modality}
            items.append(new_entry(category_id, names[-1], **common | fields))
    cache.mutate(partial(store.store_entries, items=items))
    return names


def train_on_both(cache: StoreCache) -> str:
    """Train on what is stored, and activate."""
    trained = train_crossmodal_from_store(
        cache.engine, cache.name, config=CONFIG, progress=None, now_ms=1
    ).encoder_id
    activate(cache, trained)
    return trained


def content_of(cache: StoreCache) -> bytes | None:
    """The learning state of the active encoder."""
    columns = tables.encoders.c
    query = select(columns.learning_state).where(
        columns.cache_id == cache.id, columns.encoder_id == str(active_id(cache))
    )
    with reading(cache.engine) as connection:
        return connection.execute(query).scalar()


def states_of(cache: StoreCache) -> LearnedStates:
    """The learning states of the active encoder, by modality."""
    return load_states(content_of(cache), encoder=encoder_of(cache))


def weights_off(cache: StoreCache) -> dict[str, float]:
    """How far the active encoder's label parts are off those of the rows alone that it says it has learned,
    over the range of what they say of those rows; by modality."""
    encoder, states, off = encoder_of(cache), states_of(cache), {}
    with reading(cache.engine) as connection:
        held = read_learned(connection, cache.id, members(connection, cache.id, encoder.encoder_id))
    for modality, head in encoder.label_heads.items():
        own = [row for row in held if row.modality == modality]
        rows = from_stored(np.stack([np.frombuffer(row.vector, dtype=np.float16) for row in own]))
        alone = states[modality].emptied().add(rows, [row.labels for row in own])
        assert alone.row_count == states[modality].row_count
        expected = alone.head(modality=modality).values(rows)
        off[modality] = float(np.abs(head.values(rows) - expected).max() / np.ptp(expected))
    return off

"""Named rows that encoders learn from, and oracles for what forgetting must leave."""

from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from learning_rows import active_id, cluster
from numpy.typing import NDArray
from sqlalchemy import func, select
from store_rows import StoreCache, new_entry

from hashing.checkpoint import load_encoder
from hashing.class_scores import ABSENT_BIAS, ClassHead
from hashing.inference import Encoder
from hashing.label_part import LearnedStates
from hashing.learned_states import load_states
from service import forget_report, store, tables
from service.coding import code_rows, from_stored
from service.config import Config
from service.database import reading
from service.forgetting import ForgetSelection, StoreChanges, forget_rows
from service.generations import build_index
from service.learned_rows import members, read_learned
from service.rows import read_cache, read_weights

_SEEDS = count()


def put(
    cache: StoreCache, category_id: int, label: str, *names: str, coded: bool = False, **fields: Any
) -> None:
    """Store one entry a name, near the centre of the label; "": without one."""
    near = cluster(label, 1)[0].astype(np.float32)
    encoder = encoder_of(cache) if coded else None
    items = []
    for name in names:
        drawn = near + 0.05 * np.random.default_rng(next(_SEEDS)).standard_normal(near.size)
        vector = (drawn / np.linalg.norm(drawn)).astype(np.float16)
        labels = (label,) if label else ()
        coding = code_rows(encoder, vector[None], modality="text", labels=[labels])[0] if encoder else None
        items.append(
            new_entry(
                category_id,
                name,
                **{
                    "vector": vector,
                    "labels": labels,
                    "text": f"question {name}",
                    "response": f"answer {name}".encode(),
                    "coding": coding,
                    **fields,
                },
            )
        )
    cache.mutate(partial(store.store_entries, items=items))


def forget(cache: StoreCache, **selection: Sequence[str]) -> StoreChanges:
    """Forget in the store: what a selection names."""
    chosen = ForgetSelection(**{kind: tuple(values) for kind, values in selection.items()})
    return forget_rows(cache.engine, cache.name, chosen, clock=lambda: 3)


def forget_all(cache: StoreCache, config: Config, *names: str, **options: Any) -> forget_report.ForgetReport:
    """Forget as the command does."""
    return forget_report.forget(
        cache.engine,
        cache.name,
        ForgetSelection(names=names),
        config=config,
        clock=lambda: 5,
        progress=lambda _stage, _done, _total: None,
        **options,
    )


def encoder_of(cache: StoreCache, encoder_id: str | None = None) -> Encoder:
    """An encoder as it is kept, by default the active one."""
    with reading(cache.engine) as connection:
        return load_encoder(read_weights(connection, cache.id, encoder_id or str(active_id(cache))))


def learned_names(cache: StoreCache, encoder_id: str | None = None) -> list[str]:
    """Names of the rows that an encoder's label part holds, by default the active one's."""
    with reading(cache.engine) as connection:
        held = members(connection, cache.id, encoder_id or str(active_id(cache)))
        return sorted(row.name for row in read_learned(connection, cache.id, held))


def count_rows(cache: StoreCache, table: str) -> int:
    """Rows of a cache in a table."""
    found = tables.metadata.tables[table]
    with reading(cache.engine) as connection:
        query = select(func.count()).where(found.c.cache_id == cache.id)
        return int(connection.execute(query).scalar_one())


def stored_states(cache: StoreCache, encoder_id: str) -> LearnedStates:
    """The learning states of an encoder, by modality."""
    columns = tables.encoders.c
    with reading(cache.engine) as connection:
        query = select(columns.learning_state).where(
            columns.cache_id == cache.id, columns.encoder_id == encoder_id
        )
        content = connection.execute(query).scalar()
    return load_states(content, encoder=encoder_of(cache, encoder_id))


def scores_off(cache: StoreCache, vectors: dict[str, bytes], labels: dict[str, tuple[str, ...]]) -> float:
    """How far the active label part is off one trained on these rows alone, over the range of its scores."""
    head = encoder_of(cache).label_head
    state = stored_states(cache, str(active_id(cache)))["text"]
    assert isinstance(head, ClassHead)
    names = sorted(vectors)
    rows = from_stored(np.stack([np.frombuffer(vectors[name], dtype=np.float16) for name in names]))
    alone = state.emptied().add(rows, [labels[name] for name in names]).head(modality="text")
    assert isinstance(alone, ClassHead)
    known = alone.class_bias > ABSENT_BIAS
    assert np.array_equal(known, head.class_bias > ABSENT_BIAS)
    expected = alone.scores(rows)[:, known]
    difference: NDArray[np.float32] = np.abs(head.scores(rows)[:, known] - expected)
    return float(difference.max() / np.ptp(expected))


def build(cache: StoreCache, config: Config, **changes: Any) -> str:
    """Write and activate a generation; returns its name."""
    built = build_index(
        cache.engine,
        cache.name,
        search=config.search,
        data_dir=config.store.data_dir,
        **{
            "with_graph": False,
            "reencode": False,
            "memory_limit_bytes": 2**28,
            "progress": lambda _stage, _done, _total: None,
            "now_ms": 1,
            **changes,
        },
    )
    return built.report.generation


def record_of(cache: StoreCache) -> Any:
    """The cache's record."""
    with reading(cache.engine) as connection:
        return read_cache(connection, cache.name)


def bytes_under(folder: Path) -> bytes:
    """All files of a folder, one after the other."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())

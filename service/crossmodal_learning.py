"""Encoders of several modalities from what the store holds.

Entries of two modalities have in common what their labels say, or belong together where their `source` is
equal; the entries of one source are paired in the order of storing. As in `service.learning`, one labelled
row in `HELD_OUT_EVERY` is not learned from for its labels.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, select

from hashing.crossmodal import train_crossmodal
from hashing.crossmodal_config import CrossModalConfig
from hashing.errors import TrainingDataError
from hashing.learned_states import dump_states
from hashing.trainer import Progress
from service import registry
from service.database import reading, writing
from service.learned_rows import read_teaching
from service.learning import (
    MAX_TRAINING_ROWS,
    StoredRows,
    check_bits,
    of_modality,
    read_rows,
    without_held_out,
)
from service.records import CacheRecord, EncoderRecord
from service.rows import read_cache
from service.spaces import current_space, modalities_of
from service.tables import entries


def train_crossmodal_from_store(
    engine: Engine,
    cache: str,
    *,
    config: CrossModalConfig,
    progress: Progress | None,
    now_ms: int,
) -> EncoderRecord:
    """Train one encoder on the vectors of all modalities of a cache; keep it as candidate.

    Learned from are labels that modalities share, and with two modalities pairs of equal `source` as well.

    Raises:
        NotFoundError: no such cache.
        PreconditionError: bits that are not the cache's, or a row was forgotten while it was learned from.
        TrainingDataError, EmbeddingsError: what is stored cannot be learned from: one modality only, say, or
            neither shared labels nor pairs.
    """
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        check_bits(record, code_bits=config.code_bits, label_bits=config.label_bits)
        rows = {
            modality: read_rows(connection, of_modality(record, modality), most=MAX_TRAINING_ROWS)
            for modality in (current_space(record, name) for name in modalities_of(record))
        }
        pairs = _pairs_of_sources(connection, record, rows)
        issued = registry.issued_class_codes(connection, record.id)
        labels = _shared_labels(rows)
        taught = () if labels is None else _labelled_ids(rows, labels)
        teaching = read_teaching(connection, record.id, taught)
    for modality, own in rows.items():
        if not len(own):
            raise TrainingDataError(f"no entry of modality {modality!r} is stored")
    if labels is None and pairs is None:
        raise TrainingDataError(
            "no label is on entries of every modality, and no two entries of different modalities have the "
            "same source: nothing says what they have in common"
        )
    trained = train_crossmodal(
        {modality: own.vectors for modality, own in rows.items()},
        config=config,
        labels=labels,
        pairs=pairs,
        class_codes=issued,
        progress=progress,
    )
    with writing(engine) as connection:
        return registry.register_encoder(
            connection,
            record,
            trained.encoder,
            learning_state=dump_states(trained.states),
            watermark=record.seq,
            learned=teaching,
            read_row_ids=list(chain.from_iterable(own.row_ids for own in rows.values())),
            now_ms=now_ms,
        )


def _shared_labels(rows: Mapping[str, StoredRows]) -> dict[str, list[tuple[str, ...]]] | None:
    """The labels to learn from, of each modality; None where they do not relate the modalities."""
    labels = {modality: without_held_out(own) for modality, own in rows.items()}
    named = [set(chain.from_iterable(own)) for own in labels.values()]
    if not set.intersection(*named) or len(set.union(*named)) < 2:
        return None
    return labels


def _labelled_ids(
    rows: Mapping[str, StoredRows], labels: Mapping[str, Sequence[tuple[str, ...]]]
) -> list[int]:
    """Row ids of those that labels are learned from, of all modalities."""
    return [
        row_id
        for modality, own in rows.items()
        for row_id, names in zip(own.row_ids, labels[modality], strict=True)
        if names
    ]


def _pairs_of_sources(
    connection: Connection, record: CacheRecord, rows: Mapping[str, StoredRows]
) -> NDArray[np.int64] | None:
    """Rows of the first and the second modality that have a source in common, int64 [p, 2]; None: under 2."""
    if len(rows) != 2:
        return None
    first, second = (_rows_by_source(connection, record, modality, own) for modality, own in rows.items())
    pairs = [
        pair
        for source, own in first.items()
        for pair in zip(own, second.get(source, ()), strict=False)  # the longer list keeps single rows
    ]
    return np.array(pairs, dtype=np.int64) if len(pairs) > 1 else None


def _rows_by_source(
    connection: Connection, record: CacheRecord, modality: str, rows: StoredRows
) -> dict[str, Sequence[int]]:
    """Positions in `rows` by the source of the entries; those without one are left out."""
    position = {row_id: i for i, row_id in enumerate(rows.row_ids)}
    query = select(entries.c.id, entries.c.source).where(
        entries.c.cache_id == record.id, entries.c.modality == modality, entries.c.source != ""
    )
    found: dict[str, list[int]] = defaultdict(list)
    for row in connection.execute(query.order_by(entries.c.id)):
        if row.id in position:
            found[row.source].append(position[row.id])
    return dict(found)

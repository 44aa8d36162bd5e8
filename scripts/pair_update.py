"""Continue the instance codes of a cache's active encoder with labelled pairs, by gradient."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, select

from hashing.checkpoint import load_encoder
from hashing.errors import CheckpointError
from hashing.inference import Encoder
from hashing.pair_gate import HeldOutPairs, PairGateReport, evaluate_pair_update
from hashing.trainer import Progress
from scripts.arguments import CommandError
from scripts.training_files import LabelledPairs, read_pairs
from service import registry
from service.application import clock_ms
from service.config import Config
from service.database import reading, writing
from service.learning import of_modality, read_rows
from service.records import CacheRecord
from service.rows import active_encoder_id, read_cache, read_encoder, read_weights
from service.tables import encoders

if TYPE_CHECKING:
    from hashing.deep.lifelong import PairUpdateReport

MAX_REHEARSED_ROWS = 20_000
MAX_GATE_ROWS = 5_000
GATE_SHARE = 0.1
SMALL_PAIR_COUNT = 4_000
"""Fewer pairs than this are passed over four times, in small batches."""


def update_with_pairs(
    engine: Engine, cache: str, pairs_file: Path, *, config: Config, seed: int, progress: Progress
) -> dict[str, Any]:
    """Learn the pairs, judge the result on pairs and stored rows that it has not learned, and activate it if
    it passes. Stored codes stay: the new encoder's queries search them.

    pairs_file: as of `nearhit train --pairs`. Returns what there is to say of it, with `encoder_id` (None:
    nothing better was found) and `accepted`.

    Raises: CommandError for a file that cannot be read, without torch, or embeddings of other dimensions;
    PreconditionError without an active encoder, or where another became active or a stored row was forgotten
    meanwhile; HashingError for pairs that cannot be learned from.
    """
    try:
        from hashing.deep.lifelong import update_pairs
        from hashing.deep.pairs import check_pairs, split_pairs
        from hashing.deep.update_config import PairUpdateConfig
    except ImportError as error:
        raise CommandError("this needs the extra `train`: pip install nearhit[train]") from error
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        parent = load_encoder(read_weights(connection, record.id, active_encoder_id(record)))
        modality = next(iter(parent.projections))
        read = read_rows(connection, of_modality(record, modality), most=MAX_REHEARSED_ROWS + MAX_GATE_ROWS)
        stored = read.vectors
    labelled = read_pairs(pairs_file, rows=None, embedder=config.embedder, cache=record)
    rows = labelled.rows.embeddings
    if rows.shape[1] != parent.modalities[modality]:
        raise CommandError(
            f"{pairs_file}: embeddings of {rows.shape[1]} dimensions, the cache's have"
            f" {parent.modalities[modality]}"
        )
    pairs = check_pairs(labelled.pairs, row_count=len(rows))
    rng = np.random.default_rng(seed)
    split = split_pairs(pairs, row_count=len(rows), validation_share=GATE_SHARE, rng=rng)
    judged = rng.permutation(len(stored))[: min(MAX_GATE_ROWS, len(stored) // 5)]
    rehearsed = np.setdiff1d(np.arange(len(stored)), judged)
    few = {"epochs": 4, "batch_size": 64} if len(pairs) < SMALL_PAIR_COUNT else {}
    learned = update_pairs(
        parent,
        embeddings=rows,
        pairs=split.training,
        rehearsal=stored[rehearsed],
        modality=modality,
        config=PairUpdateConfig(seed=seed, **few),
        progress=progress,
    )
    figures = _figures(learned.report)
    if learned.encoder is None:
        reason = "no pass was better than the active encoder on pairs that were held out"
        return {"encoder_id": None, "accepted": False, "reasons": (reason,), **figures}
    progress("judge", 0, 1)
    held_out = _held_out(LabelledPairs(split.validation, labelled.rows), stored[judged])
    gate = evaluate_pair_update(parent, learned.encoder, held_out, modality=modality)
    progress("judge", 1, 1)
    _register(
        engine, record, parent, learned.encoder, gate, figures, read_row_ids=read.row_ids, config=config
    )
    return {"encoder_id": learned.encoder.encoder_id, **asdict(gate), **figures}


def _held_out(labelled: LabelledPairs, stored: NDArray[np.float32]) -> HeldOutPairs:
    """Ask with the first text of each held-out pair for the second one, among stored rows."""
    asked, query = np.unique(labelled.pairs[:, 0], return_inverse=True)
    answers, answer = np.unique(labelled.pairs[:, 1], return_inverse=True)
    rows = labelled.rows.embeddings
    return HeldOutPairs(
        rows=np.concatenate([rows[answers], stored]),
        queries=rows[asked],
        pairs=np.column_stack([query, answer, labelled.pairs[:, 2]]),
    )


def _register(
    engine: Engine,
    record: CacheRecord,
    parent: Encoder,
    child: Encoder,
    gate: PairGateReport,
    figures: dict[str, float],
    *,
    read_row_ids: Sequence[int],
    config: Config,
) -> None:
    """Keep the child with its figures, and activate it where the gate has accepted it, in one transaction."""
    with writing(engine) as connection:
        locked = registry.lock_still_active(connection, record.id, parent.encoder_id)
        before = read_encoder(connection, locked, parent.encoder_id)
        own = (encoders.c.cache_id == record.id, encoders.c.encoder_id == parent.encoder_id)
        learning_state = connection.execute(select(encoders.c.learning_state).where(*own)).scalar()
        judged = {name: value for name, value in asdict(gate).items() if isinstance(value, float)}
        registry.register_encoder(
            connection,
            locked,
            child,
            learning_state=learning_state if gate.accepted else None,
            watermark=before.watermark,
            trusted=_same_codes(connection, locked, parent),
            state=registry.CANDIDATE if gate.accepted else registry.REJECTED,
            reason="; ".join(gate.reasons),
            metrics=figures | {name: value for name, value in judged.items() if not np.isnan(value)},
            read_row_ids=read_row_ids,
            untraced_row_count=before.untraced_row_count,
            now_ms=clock_ms(),
        )
        if gate.accepted:
            registry.activate_encoder(
                connection, record.id, child.encoder_id, max_live_encoders=config.search.max_live_encoders
            )


def _same_codes(connection: Connection, record: CacheRecord, parent: Encoder) -> set[str]:
    """The encoders whose instance codes are the parent's: those that the child's radii were measured on."""
    same = {parent.encoder_id}
    for encoder_id in registry.trusted_by(connection, record.id, parent.encoder_id):
        try:
            other = load_encoder(read_weights(connection, record.id, encoder_id))
        except CheckpointError:  # destroyed: its stand-in searches its codes
            continue
        if other.instance_id == parent.instance_id:
            same.add(encoder_id)
    return same


def _figures(report: "PairUpdateReport") -> dict[str, float]:
    """The report by metric."""
    figures = {
        "pair_count": float(report.pair_count),
        "validation_pair_count": float(report.validation_pair_count),
        "rehearsal_row_count": float(report.rehearsal_row_count),
        "stored_bits_differ": report.stored_bits_differ,
    }
    for name in ("parent_auc", "stored_auc", "child_auc"):
        figures |= {f"{name}_{count}": value for count, value in getattr(report, name).items()}
    return figures

"""Continue the instance codes of a cache's active encoder with labelled pairs of a file or of verdicts."""

from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine

from hashing.errors import ConfigError, TrainingDataError
from hashing.trainer import Progress
from scripts.arguments import CommandError
from scripts.pair_learning import Conclude, learn_pairs, read_base
from scripts.training_files import read_pairs
from service import registry
from service.config import Config
from service.database import reading, writing
from service.verdicts import LEAST_OF_A_KIND, mark_read, read_verdicts


def update_with_pairs(
    engine: Engine, cache: str, pairs_file: Path, *, config: Config, seed: int, progress: Progress
) -> dict[str, Any]:
    """Learn the pairs of a file, as of `nearhit train --pairs`. Returns as `learn_pairs`.

    Raises: CommandError for a file that cannot be read, or embeddings of other dimensions; as `read_base`;
    as `learn_pairs`.
    """
    with reading(engine) as connection:
        base = read_base(connection, cache)
    labelled = read_pairs(pairs_file, rows=None, embedder=config.embedder, cache=base.record)
    rows, dim = labelled.rows.embeddings, base.parent.modalities[base.modality]
    if rows.shape[1] != dim:
        raise CommandError(f"{pairs_file}: embeddings of {rows.shape[1]} dimensions, the cache's have {dim}")
    return learn_pairs(engine, base, rows, labelled.pairs, config=config, seed=seed, progress=progress)


def update_with_verdicts(
    engine: Engine,
    cache: str,
    progress: Progress,
    conclude: Conclude = lambda connection, outcome: None,
    *,
    config: Config,
    seed: int = 0,
) -> dict[str, Any]:
    """Learn the verdicts with a query that neither the active encoder nor a rejected child of it has learned.
    Returns as `learn_pairs`, which is also what `conclude` is given.

    Fewer than LEAST_OF_A_KIND of a kind stay for later; those that cannot be learned from are not read again.
    Raises: as `read_base`; as `learn_pairs`, but for pairs that cannot be learned from.
    """
    progress("read", 0, 1)
    with reading(engine) as connection:
        base = read_base(connection, cache)
        parent_id = base.parent.encoder_id
        verdicts = read_verdicts(
            connection,
            base.record,
            parent_id,
            modality=base.modality,
            most=config.update.max_update_rows,
        )
    wrong, right = np.bincount(verdicts.pairs[:, 2], minlength=2).tolist()
    if min(right, wrong) < LEAST_OF_A_KIND:
        outcome = _nothing(
            f"{right + wrong} verdicts with a query embedding wait, {right} right and {wrong} wrong:"
            f" {LEAST_OF_A_KIND} of each kind are needed to learn and judge"
        )
        with writing(engine) as connection:
            conclude(connection, outcome)
        return outcome
    try:
        return learn_pairs(
            engine,
            base,
            verdicts.rows,
            verdicts.pairs,
            entry_ids=verdicts.entry_ids,
            verdict_watermark=verdicts.read_to,
            config=config,
            seed=seed,
            progress=progress,
            conclude=conclude,
        )
    except (TrainingDataError, ConfigError) as error:
        outcome = _nothing(str(error))
    with writing(engine) as connection:
        registry.lock_still_active(connection, base.record.id, parent_id)
        mark_read(connection, base.record.id, parent_id, verdicts.read_to)
        conclude(connection, outcome)
    return outcome


def _nothing(reason: str) -> dict[str, Any]:
    return {"encoder_id": None, "accepted": False, "reasons": (reason,)}

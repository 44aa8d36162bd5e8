"""Continue a tower of label codes with new labelled rows, by gradient, while issued class codes stay."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from hashing.class_codes import Labels, check_labels, target_bits
from hashing.deep import losses
from hashing.deep.labelled import LabelTower, class_vectors, labelled_rows_of
from hashing.deep.objectives import label_likelihood
from hashing.deep.passes import Passes, run_passes
from hashing.deep.towers import export, restore, train_mode
from hashing.deep.update_config import LabelUpdateConfig
from hashing.deep.update_loss import FrozenRows, RetentionLoss
from hashing.embeddings import as_rows, unit_rows
from hashing.errors import TrainingDataError
from hashing.radius import bit_counts
from hashing.tower import InstanceMap
from hashing.trainer import Progress, no_progress


@dataclass(frozen=True, slots=True, eq=False)
class _Classes:
    """0/1 float32 [n, classes] of the new and [r, classes] of the stored rows, in the same columns."""

    new: Tensor
    stored: Tensor


def update_labelled(
    tower: LabelTower,
    *,
    embeddings: NDArray[np.floating],
    labels: Labels,
    rehearsal: NDArray[np.floating],
    rehearsal_labels: Labels,
    config: LabelUpdateConfig,
    device: str | None = None,
    progress: Progress | None = None,
) -> LabelTower:
    """Learn labelled rows; unseen labels get class codes, issued ones stay, and so do stored label codes.

    embeddings: float [n, dim]. labels: of each row; rows without one are left out. rehearsal: float [r, dim],
    vectors that are stored, r may be 0 where no term reads them. rehearsal_labels: of each, at least one,
    issued before. device: of torch; None for the GPU where there is one. progress: stage "train".
    Metrics: row_count, rehearsal_row_count, class_count and final_loss, the mean of the last pass.
    Equal seed, input, device and thread count give equal arrays; on a GPU up to the order of its sums.

    Raises, before time is spent: EmbeddingsError; DimensionError; TrainingDataError for labels that do not
    fit, no labelled row, rows that are all equal, a tower that cannot be continued, or no stored vector where
    a term reads them; UnknownLabelError for a stored row of a class without code. Later: ConfigError where
    the training diverges.
    """
    report = progress if progress is not None else no_progress
    rows, kept = labelled_rows_of(embeddings, labels, least_classes=1)
    as_rows(rows, dim=tower.label_map.dim)
    check_labels(rehearsal_labels, row_count=rehearsal.shape[0])
    stored = unit_rows(as_rows(rehearsal, dim=tower.label_map.dim))
    if config.rehearsal and not len(stored):
        raise TrainingDataError("rehearsal needs stored vectors, got 0; or a weight of 0")
    stored_bits = target_bits(tower.class_codes, rehearsal_labels) if len(stored) else None
    codes = tower.class_codes.issue(chain.from_iterable(kept))
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    vectors = class_vectors([*kept, *(tuple(dict.fromkeys(own)) for own in rehearsal_labels)])
    final_loss, label_map = _learn(
        tower,
        FrozenRows.of(tower.label_map, rows, bits=target_bits(codes, kept), device=place),
        FrozenRows.of(tower.label_map, stored, bits=stored_bits, device=place),
        _Classes(*(torch.tensor(own, device=place) for own in np.split(vectors, [len(rows)]))),
        config=config,
        progress=report,
    )
    return LabelTower(
        label_map=label_map,
        class_codes=codes,
        metrics={
            "row_count": float(len(rows)),
            "rehearsal_row_count": float(len(stored)),
            "class_count": float(len(codes)),
            "final_loss": final_loss,
        },
    )


def _learn(
    tower: LabelTower,
    new: FrozenRows,
    stored: FrozenRows,
    classes: _Classes,
    *,
    config: LabelUpdateConfig,
    progress: Progress,
) -> tuple[float, InstanceMap]:
    """Train. Returns the mean loss of the last pass, and the map. Raises: ConfigError where it diverges."""
    place = new.rows.device
    reads_stored = config.rehearsal + config.distillation + config.likelihood > 0
    count = min(config.rehearsal_rows, len(stored)) if reads_stored else 0
    rng = np.random.default_rng(config.seed)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(config.seed)
        module = restore(tower.label_map, dropout=config.dropout).to(place)
        kept = RetentionLoss(module, stored, weights=config)
        optimiser = torch.optim.AdamW(
            module.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

        def loss_of(chosen: NDArray[np.int64]) -> Tensor:
            index = torch.from_numpy(chosen).to(place)
            rehearsed = torch.from_numpy(rng.choice(len(stored), size=count, replace=False)).to(place)
            values = module(new.rows[index])  # [b, label_bits]
            loss = kept(rehearsed)
            if config.central:
                loss = loss + config.central * losses.central_similarity(values, new.codes[index])
            if config.likelihood:
                loss = loss + config.likelihood * label_likelihood(
                    torch.tanh(values),
                    torch.cat([new.codes[index], stored.codes[rehearsed]]),
                    first=classes.new[index],
                    second=torch.cat([classes.new[index], classes.stored[rehearsed]]),
                    prefixes=bit_counts(values.shape[1]),
                    same_rows=False,
                )
            if config.distillation and not len(stored):
                error = functional.mse_loss(values, new.values[index])
                loss = loss + config.distillation * error
            return loss

        train_mode(module)
        passes = Passes(
            item_count=len(new),
            batch_size=config.batch_size,
            epochs=config.epochs,
            warmup_share=config.warmup_share,
        )
        final_loss = run_passes(optimiser, loss_of, passes=passes, rng=rng, progress=progress)
    return final_loss, export(module.eval())

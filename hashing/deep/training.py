"""Train an encoder by gradient, from pairs of rows that are labelled similar or not."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from hashing.deep import losses
from hashing.deep.binarizers import AnnealedTanh, StraightThroughSign
from hashing.deep.config import PairConfig
from hashing.deep.pairs import PairSplit, check_pairs, connected_components, split_pairs
from hashing.deep.towers import LinearTower, ResidualTower, export, settle
from hashing.drift import fit_drift_reference
from hashing.embeddings import as_rows, check_training_rows, unit_rows
from hashing.inference import Encoder
from hashing.metrics import pair_auc
from hashing.projection import FIT_ROWS_LIMIT, fit_itq
from hashing.radius import RadiusTable, bit_counts, calibrate_radii
from hashing.tower import InstanceMap
from hashing.trainer import HELD_OUT_LEAST_ROWS, HELD_OUT_ROWS_LIMIT, Progress, held_out_recall

logger = logging.getLogger(__name__)

START_ITERATIONS = 10
"""Of ITQ, whose projection the linear path starts at."""

START_SCALE, START_BIAS = 8.0, -4.0
"""Of the pair logistic loss, on cosines."""

SCALE_LEARNING_RATE = 0.02
GRADIENT_NORM_LIMIT = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class _Batches:
    """What a step reads, on the training device. rows: float32 [r, dim], the distinct rows of the pairs.
    pairs: int64 [p, 3], indices into them and the label. group: int64 [r], equal for rows that are linked by
    similar pairs."""

    rows: Tensor
    pairs: Tensor
    group: Tensor


def train_pairs(
    embeddings: NDArray[np.floating],
    pairs: ArrayLike,
    *,
    config: PairConfig,
    modality: str = "text",
    device: str | None = None,
    progress: Progress | None = None,
) -> Encoder:
    """Train a tower on labelled pairs, and calibrate its radius table and drift reference.

    embeddings: float [n, dim], L2-normalised; may be memory-mapped. pairs: integers [p, 3] of row, row and 1
    (similar) or 0. device: of torch; None for the GPU where there is one. progress: stages "fit", "train",
    "calibrate", "evaluate".

    Pairs are held out by component: no held-out row is linked to a training row by any chain of pairs. After
    each pass the tower is judged on them, and the best one is returned. Radii and drift are calibrated on up
    to HELD_OUT_ROWS_LIMIT rows that no step has read: held-out ones, and rows in no pair; below
    HELD_OUT_LEAST_ROWS of them the radii limit nothing.
    Equal seed, input, device and thread count give an equal encoder; on a GPU up to the order of its sums.

    Metrics: row_count, held_out_row_count, recall_at_10_in_100 (as `train_encoder`); pair_count,
    validation_pair_count, epoch_count (passes made); validation_auc_BITS of a real-valued query against
    stored bits and validation_auc_codes_BITS of bits against bits, for each count of leading bits;
    validation_auc_cosine of the embeddings themselves. The held-out pairs choose the pass that is kept, so
    that their AUC is a little too high.

    Raises, before time is spent: EmbeddingsError; TrainingDataError for rows that are all equal, pairs that
    refer to missing rows or to one row twice, labels other than 0 and 1, one class only, fewer than MIN_PAIRS
    of a kind, pairs that cannot be held out.
    """
    report = progress if progress is not None else _silent
    check_training_rows(embeddings)
    checked = check_pairs(pairs, row_count=embeddings.shape[0])
    rng = np.random.default_rng(config.seed)
    split = split_pairs(
        checked, row_count=embeddings.shape[0], validation_share=config.validation_share, rng=rng
    )
    if config.code_bits > embeddings.shape[1]:
        logger.warning(
            "%d bits of %d dimensions: bits beyond the dimensions repeat what others say",
            config.code_bits,
            embeddings.shape[1],
        )

    instance_map, metrics = _fit(embeddings, split, config=config, device=device, rng=rng, progress=report)

    report("calibrate", 0, 1)
    training_rows = np.unique(split.training[:, :2])
    unread = np.setdiff1d(np.arange(embeddings.shape[0]), training_rows)
    measured = unread.size >= HELD_OUT_LEAST_ROWS
    held_out = _sampled(embeddings, unread if measured else training_rows, limit=HELD_OUT_ROWS_LIMIT, rng=rng)
    if measured:
        radius_table = calibrate_radii(instance_map, held_out, seed=config.seed)
    else:
        radius_table = RadiusTable.unlimited(config.code_bits)
    drift_reference = fit_drift_reference(instance_map.project(held_out))
    report("calibrate", 1, 1)

    metrics["row_count"] = float(embeddings.shape[0])
    metrics["held_out_row_count"] = float(held_out.shape[0]) if measured else 0.0
    if measured:
        report("evaluate", 0, 1)
        fit_rows = _sampled(embeddings, training_rows, limit=FIT_ROWS_LIMIT, rng=rng)
        metrics["recall_at_10_in_100"] = held_out_recall(instance_map, fit_rows, held_out)
        report("evaluate", 1, 1)
    return Encoder(
        projections={modality: instance_map},
        radius_table=radius_table,
        drift_reference=drift_reference,
        metrics=metrics,
    )


def _fit(
    embeddings: NDArray[np.floating],
    split: PairSplit,
    *,
    config: PairConfig,
    device: str | None,
    rng: np.random.Generator,
    progress: Progress,
) -> tuple[InstanceMap, dict[str, float]]:
    """Return the map of the best pass and its metrics on the held-out pairs."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    training_rows = np.unique(split.training[:, :2])
    rows = as_rows(embeddings[training_rows])
    validation = _Validation.of(embeddings, split.validation, code_bits=config.code_bits)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(config.seed)
        progress("fit", 0, 1)
        start = fit_itq(rows, code_bits=config.code_bits, iterations=START_ITERATIONS, seed=config.seed)
        tower = _tower(start.weight, config=config).to(place)
        progress("fit", 1, 1)
        batches = _batches(rows, split.training, training_rows, place=place)
        best, epoch_count = _train(
            tower, batches, rows, validation, config=config, rng=rng, progress=progress
        )
    metrics = {
        "pair_count": float(split.training.shape[0] + split.validation.shape[0]),
        "validation_pair_count": float(split.validation.shape[0]),
        "epoch_count": float(epoch_count),
        **validation.metrics(best),
    }
    return best, metrics


def _train(
    tower: LinearTower,
    batches: _Batches,
    rows: NDArray[np.float32],
    validation: _Validation,
    *,
    config: PairConfig,
    rng: np.random.Generator,
    progress: Progress,
) -> tuple[InstanceMap, int]:
    """The training loop. Returns the map with the best validation AUC and the number of passes made."""
    binarizer = StraightThroughSign() if config.binarizer == "straight_through" else AnnealedTanh()
    scale, bias = (
        nn.Parameter(torch.tensor(start, device=batches.rows.device)) for start in (START_SCALE, START_BIAS)
    )
    optimiser = torch.optim.AdamW(
        [
            {"params": list(tower.parameters()), "weight_decay": config.weight_decay},
            {"params": [scale, bias], "weight_decay": 0.0, "lr": SCALE_LEARNING_RATE},
        ],
        lr=config.learning_rate,
    )
    pair_count = batches.pairs.shape[0]
    steps_per_epoch = -(-pair_count // config.batch_size)
    step_count = config.epochs * steps_per_epoch
    warmup = max(1.0, config.warmup_share * step_count)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warmup, (step_count - step) / max(1.0, step_count - warmup))
    )

    best, best_auc, best_epoch, step = None, -np.inf, 0, 0
    for epoch in range(1, config.epochs + 1):
        tower.train()
        for chosen in np.array_split(rng.permutation(pair_count), steps_per_epoch):
            if isinstance(binarizer, AnnealedTanh):
                binarizer.anneal(step / step_count)
            optimiser.zero_grad()
            loss = _loss(
                tower, binarizer, batches, torch.from_numpy(chosen), scale=scale, bias=bias, config=config
            )
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(tower.parameters(), GRADIENT_NORM_LIMIT)
            optimiser.step()
            schedule.step()
            step += 1
            progress("train", step, step_count)
        settle(tower, rows)
        candidate = export(tower)
        auc = validation.auc(candidate)
        logger.info("pass %d: validation AUC %.4f", epoch, auc)
        if auc > best_auc:
            best, best_auc, best_epoch = candidate, auc, epoch
        if epoch - best_epoch >= config.patience:
            break
    progress("train", step_count, step_count)
    assert best is not None, "an AUC of finite scores is a number"
    return best, epoch


def _loss(
    tower: LinearTower,
    binarizer: nn.Module,
    batches: _Batches,
    chosen: Tensor,
    *,
    scale: Tensor,
    bias: Tensor,
    config: PairConfig,
) -> Tensor:
    """The loss of some pairs: each row once as a real-valued query, once as a stored code; every prefix."""
    pairs = batches.pairs[chosen.to(batches.pairs.device)]  # [b, 3]
    similarity = pairs[:, 2].to(batches.rows.dtype)
    values: Tensor = tower(
        torch.cat([batches.rows[pairs[:, 0]], batches.rows[pairs[:, 1]]])
    )  # [2b, code_bits]
    codes: Tensor = binarizer(values)
    size = pairs.shape[0]
    prefixes = bit_counts(config.code_bits)
    pair_logistic = losses.nested(losses.pair_logistic, prefixes)
    info_nce = losses.nested(losses.info_nce, prefixes)

    positive = torch.nonzero(pairs[:, 2])[:, 0]
    group = batches.group[pairs[positive, 0]]
    excluded = group[:, None] == group[None, :]
    loss: Tensor = values.new_zeros(())
    for queries, keys in ((values[:size], codes[size:]), (values[size:], codes[:size])):
        if config.logistic_weight:
            loss = loss + config.logistic_weight / 2 * pair_logistic(
                queries, keys, similarity=similarity, scale=scale, bias=bias
            )
        if config.info_nce_weight:
            loss = loss + config.info_nce_weight / 2 * info_nce(
                queries[positive], keys[positive], temperature=config.temperature, excluded=excluded
            )
    if config.quantisation_weight:
        loss = loss + config.quantisation_weight * losses.quantisation(values)
    if config.decorrelation_weight:
        loss = loss + config.decorrelation_weight * losses.decorrelation(values)
    return loss


@dataclass(frozen=True, slots=True, eq=False)
class _Validation:
    """Held-out pairs. first, second: float32 [v, dim]. similar: bool [v]. counts: of leading bits."""

    first: NDArray[np.float32]
    second: NDArray[np.float32]
    similar: NDArray[np.bool_]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, embeddings: NDArray[np.floating], pairs: NDArray[np.int64], *, code_bits: int) -> _Validation:
        return cls(
            first=as_rows(embeddings[pairs[:, 0]]),
            second=as_rows(embeddings[pairs[:, 1]]),
            similar=pairs[:, 2] == 1,
            counts=bit_counts(code_bits),
        )

    def auc(self, instance_map: InstanceMap) -> float:
        """The mean over prefixes of the AUC of real-valued queries against stored bits."""
        queries, stored = instance_map.project(self.first), _signs(instance_map.project(self.second))
        return float(np.mean([self._auc(queries, stored, count=count) for count in self.counts]))

    def metrics(self, instance_map: InstanceMap) -> dict[str, float]:
        """The figures that the encoder keeps."""
        queries, stored = instance_map.project(self.first), _signs(instance_map.project(self.second))
        figures = {"validation_auc_cosine": self._auc(self.first, self.second, count=self.first.shape[1])}
        for count in self.counts:
            figures[f"validation_auc_{count}"] = self._auc(queries, stored, count=count)
            figures[f"validation_auc_codes_{count}"] = self._auc(_signs(queries), stored, count=count)
        return figures

    def _auc(self, first: NDArray[np.float32], second: NDArray[np.float32], *, count: int) -> float:
        first, second = unit_rows(first[:, :count]), unit_rows(second[:, :count])
        # Of codes the scores tie: rounded, so that ties are not told apart by the order of summation.
        scores = np.round(np.einsum("vb,vb->v", first, second), 6)
        return pair_auc(scores, self.similar)


def _tower(weight: NDArray[np.float32], *, config: PairConfig) -> LinearTower:
    if config.tower == "linear":
        return LinearTower(weight, threshold=config.threshold)
    return ResidualTower(
        weight,
        hidden_width=config.hidden_width,
        dropout=config.dropout,
        input_dropout=config.input_dropout,
        threshold=config.threshold,
    )


def _batches(
    rows: NDArray[np.float32],
    pairs: NDArray[np.int64],
    training_rows: NDArray[np.int64],
    *,
    place: torch.device,
) -> _Batches:
    """`pairs` refer to all rows, those of the result to `rows`, which are `training_rows` in order."""
    local = np.column_stack([np.searchsorted(training_rows, pairs[:, :2]), pairs[:, 2]])
    similar = local[local[:, 2] == 1]
    group = connected_components(similar[:, 0], similar[:, 1], row_count=training_rows.size)
    return _Batches(
        rows=torch.from_numpy(rows).to(place),
        pairs=torch.from_numpy(local).to(place),
        group=torch.from_numpy(group).to(place),
    )


def _sampled(
    embeddings: NDArray[np.floating], rows: NDArray[np.int64], *, limit: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    if rows.size > limit:
        rows = np.sort(rng.choice(rows, size=limit, replace=False))
    return as_rows(embeddings[rows])


def _signs(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(values > 0, np.float32(1), np.float32(-1))


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass

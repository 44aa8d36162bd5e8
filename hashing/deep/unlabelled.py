"""Train instance codes by gradient from rows alone, so that codes keep the order of each row's neighbours."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

from hashing.config import require_bits, require_int, require_positive, require_share, require_weight
from hashing.deep import losses
from hashing.deep.binarizers import StraightThroughSign
from hashing.deep.config import BATCH_SIZE_LIMIT
from hashing.deep.towers import LinearTower, export, settle
from hashing.drift import fit_drift_reference
from hashing.embeddings import as_rows, check_training_rows, unit_rows
from hashing.inference import Encoder
from hashing.metrics import code_recall
from hashing.projection import fit_itq
from hashing.radius import RadiusTable, bit_counts, calibrate_radii
from hashing.tower import InstanceMap
from hashing.trainer import (
    HELD_OUT_LEAST_ROWS,
    HELD_OUT_MIN_ROWS,
    HELD_OUT_ROWS_LIMIT,
    HELD_OUT_SHARE,
    METRIC_QUERIES_LIMIT,
    METRIC_ROWS_LIMIT,
    Progress,
)

logger = logging.getLogger(__name__)

TRAINING_ROWS_LIMIT = 50_000
"""Rows that training reads; more are subsampled by seed. Each step measures its anchors against all."""

START_ITERATIONS = 10
"""Of ITQ, whose projection training starts at."""

NEIGHBOUR_POOL = 2
"""Neighbours of an anchor are drawn from this many times as many nearest ones."""

STEPS_LIMIT = 1_000_000
GRADIENT_NORM_LIMIT = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlabelledConfig:
    """What `train_unlabelled` needs to know besides the rows.

    code_bits: width of the code, 64..1024, a multiple of 64; its prefixes of 64 and 128 bits are trained too.
    teacher_temperature, temperature: what cosines of embeddings and of codes are divided by before
    the softmax.
    query_share: weight of real-valued queries against stored codes in [0, 1); the rest is of codes against
    codes.
    anchors: rows drawn a step, 1..65536. neighbours: of each that join it, 1..65536.
    steps: 1..1000000. learning_rate, weight_decay: of AdamW. warmup_share: share of the steps that the rate
    grows over, in [0, 1); it falls linearly from there to 0.
    seed: source of every random draw.

    Raises: ConfigError that names the key.
    """

    code_bits: int = 256
    teacher_temperature: float = 0.05
    temperature: float = 0.05
    query_share: float = 0.5
    anchors: int = 32
    neighbours: int = 15
    steps: int = 1000
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup_share: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        require_bits("code_bits", self.code_bits)
        for key in ("anchors", "neighbours"):
            require_int(key, getattr(self, key), low=1, high=BATCH_SIZE_LIMIT)
        require_int("steps", self.steps, low=1, high=STEPS_LIMIT)
        require_int("seed", self.seed, low=0, high=2**63 - 1)
        for key in ("teacher_temperature", "temperature", "learning_rate"):
            require_positive(key, getattr(self, key))
        for key in ("query_share", "warmup_share"):
            require_share(key, getattr(self, key), below=1)
        require_weight("weight_decay", self.weight_decay)


def train_unlabelled(
    embeddings: NDArray[np.floating],
    *,
    config: UnlabelledConfig,
    modality: str = "text",
    device: str | None = None,
    progress: Progress | None = None,
) -> Encoder:
    """Train a projection whose every prefix keeps the order of neighbours, and calibrate its radii and drift.

    embeddings: float [n, dim], L2-normalised; may be memory-mapped. device: of torch; None for the GPU where
    there is one. progress: stages "fit", "train", "calibrate", "evaluate".

    A batch is some drawn rows and near neighbours of each, so that most of its pairs are hard to tell apart;
    `neighbour_divergence` asks the codes of a batch, at each prefix, to rank it as the embeddings do. It
    starts at ITQ. Rows are held out as by `hashing.trainer.train_encoder`.
    Equal seed, input, device and thread count give an equal encoder; on a GPU up to the order of its sums.

    Metrics: row_count, held_out_row_count, recall_at_10_in_100 and, for the shorter prefixes,
    recall_at_10_in_100_BITS (absent where nothing is held out).

    Raises, before time is spent: EmbeddingsError for values that are not finite; TrainingDataError for fewer
    than 2 rows, or rows that are all equal.
    """
    report = progress if progress is not None else _silent
    check_training_rows(embeddings)
    _warn_of_too_many_bits(embeddings.shape, code_bits=config.code_bits)
    rng = np.random.default_rng(config.seed)
    held_out, fit = _split(embeddings.shape[0], rng=rng)
    rows = unit_rows(as_rows(embeddings[fit]))

    instance_map = _fit(rows, config=config, device=device, rng=rng, progress=report)

    report("calibrate", 0, 1)
    unread = as_rows(embeddings[held_out]) if held_out.size else rows
    if held_out.size:
        radius_table = calibrate_radii(instance_map, unread, seed=config.seed)
    else:
        radius_table = RadiusTable.unlimited(config.code_bits)
    drift_reference = fit_drift_reference(instance_map.project(unread))
    report("calibrate", 1, 1)

    metrics = {"row_count": float(embeddings.shape[0]), "held_out_row_count": float(held_out.size)}
    if held_out.size:
        report("evaluate", 0, 1)
        metrics |= _recalls(instance_map, rows, unit_rows(unread))
        report("evaluate", 1, 1)
    return Encoder(
        projections={modality: instance_map},
        radius_table=radius_table,
        drift_reference=drift_reference,
        metrics=metrics,
    )


def neighbour_divergence(
    queries: Tensor,
    keys: Tensor,
    *,
    teacher_scores: Tensor,
    temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Divergence of how likely each row is the neighbour of another, by the codes instead of the embeddings.

    queries, keys: float [n, bits], of the same rows. teacher_scores: cosines of the embeddings, [n, n]; no
    row is a neighbour of its own. Mean over queries of KL(softmax(teacher_scores / teacher_temperature) ||
    softmax(cosine / temperature)), n at least 2.
    Stochastic neighbours (Hinton & Roweis, NIPS 2002); as distillation Passalis & Tefas, ECCV 2018.
    """
    own = torch.eye(queries.shape[0], dtype=torch.bool, device=queries.device)
    cosines = (
        functional.normalize(queries, dim=1, eps=losses.EPSILON)
        @ functional.normalize(keys, dim=1, eps=losses.EPSILON).T
    )  # [n, n]
    least = torch.finfo(cosines.dtype).min
    student = functional.log_softmax((cosines / temperature).masked_fill(own, least), dim=1)
    teacher = functional.log_softmax((teacher_scores / teacher_temperature).masked_fill(own, least), dim=1)
    return functional.kl_div(
        student.masked_fill(own, 0), teacher.masked_fill(own, least), reduction="batchmean", log_target=True
    )


def _fit(
    rows: NDArray[np.float32],
    *,
    config: UnlabelledConfig,
    device: str | None,
    rng: np.random.Generator,
    progress: Progress,
) -> InstanceMap:
    """The training loop, over unit rows float32 [n, dim]."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    progress("fit", 0, 1)
    start = fit_itq(rows, code_bits=config.code_bits, iterations=START_ITERATIONS, seed=config.seed)
    tower = LinearTower(start.weight).to(place)
    settle(tower, rows)
    progress("fit", 1, 1)
    all_rows = torch.from_numpy(rows).to(place)
    optimiser = torch.optim.AdamW(
        tower.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    warmup = max(1.0, config.warmup_share * config.steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warmup, (config.steps - step) / max(1.0, config.steps - warmup)),
    )
    tower.train()
    for step in range(config.steps):
        batch = all_rows[_batch(all_rows, config=config, rng=rng)]
        loss = _loss(tower(batch), batch, config=config)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(tower.parameters(), GRADIENT_NORM_LIMIT)
        optimiser.step()
        schedule.step()
        progress("train", step + 1, config.steps)
    settle(tower, rows)
    return export(tower)


def _batch(rows: Tensor, *, config: UnlabelledConfig, rng: np.random.Generator) -> Tensor:
    """Draw anchors and, of each, some of its nearest rows; distinct numbers of rows, int64 [2 or more]."""
    row_count = rows.shape[0]
    anchors = torch.from_numpy(rng.choice(row_count, size=min(config.anchors, row_count), replace=False)).to(
        rows.device
    )
    pool = min(NEIGHBOUR_POOL * config.neighbours + 1, row_count)  # with the row itself
    near = torch.topk(rows[anchors] @ rows.T, pool, dim=1).indices  # [anchors, pool]
    order = np.argsort(rng.random(near.shape), axis=1)[:, : config.neighbours + 1]
    drawn = torch.gather(near, 1, torch.from_numpy(order).to(rows.device))
    batch: Tensor = torch.unique(torch.cat([anchors, drawn.flatten()]))
    return batch


def _loss(values: Tensor, batch: Tensor, *, config: UnlabelledConfig) -> Tensor:
    """The loss of a batch, float [n, dim], of values [n, code_bits]; every prefix counts alike."""
    codes: Tensor = StraightThroughSign()(values)
    divergence = losses.nested(neighbour_divergence, bit_counts(config.code_bits))
    settings = {
        "teacher_scores": batch @ batch.T,
        "temperature": config.temperature,
        "teacher_temperature": config.teacher_temperature,
    }
    loss: Tensor = (1 - config.query_share) * divergence(codes, codes, **settings)
    if config.query_share:
        loss = loss + config.query_share * divergence(values, codes, **settings)
    return loss


def _recalls(
    instance_map: InstanceMap, rows: NDArray[np.float32], held_out: NDArray[np.float32]
) -> dict[str, float]:
    """Return the recall of held-out rows' exact top 10 in their code top 100, for each prefix."""
    rows = rows[:: max(1, -(-rows.shape[0] // METRIC_ROWS_LIMIT))]
    queries = held_out[:METRIC_QUERIES_LIMIT]
    asked, stored = instance_map.project(queries), instance_map.project(rows)
    recalls = {}
    for count in bit_counts(instance_map.code_bits):
        name = "recall_at_10_in_100" + ("" if count == instance_map.code_bits else f"_{count}")
        recalls[name] = code_recall(
            asked[:, :count],
            stored[:, :count],
            queries=queries,
            rows=rows,
            truth_count=10,
            candidate_count=100,
        )
    return recalls


def _split(row_count: int, *, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows to hold out, and those to train on, both sorted."""
    order = rng.permutation(row_count)
    count = 0
    if row_count >= HELD_OUT_MIN_ROWS:
        count = min(max(int(row_count * HELD_OUT_SHARE), HELD_OUT_LEAST_ROWS), HELD_OUT_ROWS_LIMIT)
    return np.sort(order[:count]), np.sort(order[count : count + TRAINING_ROWS_LIMIT])


def _warn_of_too_many_bits(shape: tuple[int, ...], *, code_bits: int) -> None:
    row_count, dim = shape
    if code_bits > dim:
        logger.warning(
            "%d bits of %d dimensions: bits beyond the dimensions repeat what others say", code_bits, dim
        )
    elif code_bits > row_count:
        logger.warning("%d bits of %d rows: bits beyond the rows are not learned", code_bits, row_count)


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass

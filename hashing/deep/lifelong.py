"""Continue the instance codes of an encoder with new pairs, by gradient, against the codes that are stored.

Stored codes never change: the child's queries search those that its parent made, beside those that it makes
itself. Backward compatible training (Shen et al., CVPR 2020; for binary codes BEBR, Gan et al., KDD 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hashing.deep.loop import OBJECTIVE_LEARNING_RATE
from hashing.deep.pairs import check_pairs, split_pairs
from hashing.deep.passes import Passes, run_passes
from hashing.deep.scorer import PairScores
from hashing.deep.towers import export, restore, train_mode
from hashing.deep.update_config import PairUpdateConfig
from hashing.deep.update_loss import Averaged, FrozenRows, PairUpdateLoss, RetentionLoss
from hashing.deep.validation import pair_logits
from hashing.drift import fit_drift_reference
from hashing.embeddings import as_rows
from hashing.errors import TrainingDataError, UnknownModalityError
from hashing.feature_tower import FeatureTower
from hashing.inference import Encoder
from hashing.metrics import pair_auc
from hashing.pair_scorer import PairScorer
from hashing.radius import RadiusTable, bit_counts, calibrate_radii
from hashing.tower import InstanceMap
from hashing.trainer import HELD_OUT_LEAST_ROWS, HELD_OUT_ROWS_LIMIT, Progress, no_progress


@dataclass(frozen=True, slots=True)
class PairUpdateReport:
    """What an update learned, judged on pairs of rows that it did not learn from.

    pair_count, validation_pair_count: learned from, and judged on. rehearsal_row_count: stored vectors
    learned from. epoch: the best pass, from 1. parent_auc: count of leading bits -> AUC of the parent's
    queries on the parent's codes; stored_auc: of the child's queries on the parent's codes; child_auc: of the
    child's queries on its own codes. Queries are real-valued. stored_bits_differ: share of the bits of the
    given stored vectors' codes that the child would set otherwise.
    """

    pair_count: int
    validation_pair_count: int
    rehearsal_row_count: int
    epoch: int
    parent_auc: Mapping[int, float]
    stored_auc: Mapping[int, float]
    child_auc: Mapping[int, float]
    stored_bits_differ: float


@dataclass(frozen=True, slots=True, eq=False)
class PairUpdate:
    """encoder: a candidate, the old one's child; None where no pass was better than the parent. report: of
    the best pass in either case."""

    encoder: Encoder | None
    report: PairUpdateReport


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """What is learned from, and what judges. pairs: int64 [p, 3], read: int64 [m], the pairs and the stored
    vectors that are learned from. first, second: float32 [v, dim], the sides of the held-out pairs. similar:
    bool [v]. rows: float32 [n, dim], all that is not learned from. all_rows: these, then those learned
    from."""

    pairs: NDArray[np.int64]
    read: NDArray[np.int64]
    first: NDArray[np.float32]
    second: NDArray[np.float32]
    similar: NDArray[np.bool_]
    rows: NDArray[np.float32]
    all_rows: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """A pass as it was judged. score: the mean of both AUCs over the prefixes."""

    epoch: int
    instance_map: InstanceMap
    scorer: PairScorer
    stored_auc: Mapping[int, float]
    child_auc: Mapping[int, float]

    @property
    def score(self) -> float:
        return float(np.mean([*self.stored_auc.values(), *self.child_auc.values()]))


def update_pairs(
    encoder: Encoder,
    *,
    embeddings: NDArray[np.floating],
    pairs: ArrayLike,
    rehearsal: NDArray[np.floating],
    rehearsal_bits: NDArray[np.bool_] | None = None,
    modality: str = "text",
    config: PairUpdateConfig,
    device: str | None = None,
    progress: Progress | None = None,
) -> PairUpdate:
    """Learn pairs in a time that depends on them alone, not on what was learned before.

    embeddings: float [n, dim]. pairs: integers [p, 3] of row, row, 1 (similar) or 0. rehearsal: float [r,
    dim], vectors that are stored, whose codes hold the child to the parent; a few times `rehearsal_rows`
    serve, all are held on `device`. rehearsal_bits: their codes, bool [r, code_bits], where an elder encoder
    made some; None for those that the parent makes. device: of torch; None for the GPU where there is one.
    progress: stages "train" and "calibrate".

    The parent competes with every pass on the held-out pairs: the mean AUC of queries on the parent's codes
    and on the child's own, over the prefixes. The child keeps the label part. Its pair scorer goes on from
    the parent's; a parent without one is judged by the cosine. Radii are the largest of the child's queries
    on its own codes, on rows that it did not learn from, and on the parent's codes, on these and on the rows
    of the pairs: near rows that were labelled different drift farthest apart where they were learned (with
    held-out rows alone 98.7% of the pairs within .15 were held, with these 99.8%, as many as by the parent's
    own). With fewer than HELD_OUT_LEAST_ROWS held out they limit nothing. The drift reference is of these
    rows and of all of `rehearsal`.
    Equal seed, input, device and thread count give an equal encoder; on a GPU up to the order of its sums.

    Raises, before time is spent: UnknownModalityError; EmbeddingsError; DimensionError; TrainingDataError for
    pairs as `check_pairs` and `split_pairs`, codes that do not fit, fewer than two stored vectors where a
    term reads them, a map of random features, or several modalities: what one learns from its own pairs would
    move it away from the codes of the others. Later: ConfigError where the training diverges.
    """
    report = progress if progress is not None else no_progress
    parent = _parent_map(encoder, modality)
    rows, stored = as_rows(embeddings, dim=parent.dim), as_rows(rehearsal, dim=parent.dim)
    bits = _stored_bits(parent, stored, rehearsal_bits)
    if config.rehearses and len(stored) < 2:
        raise TrainingDataError(f"rehearsal needs stored vectors, got {len(stored)}; or weights of 0")
    rng = np.random.default_rng(config.seed)
    held = _hold_out(rows, stored, check_pairs(pairs, row_count=len(rows)), config=config, rng=rng)
    read = held.read
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    passes = _learn(
        parent,
        encoder.pair_scorer,
        FrozenRows.of(parent, rows, device=place),
        FrozenRows.of(parent, stored[read], bits=bits[read], device=place),
        held,
        config=config,
        rng=rng,
        progress=report,
    )
    best = max(passes, key=lambda own: own.score)  # the first of equals
    parent_auc = _auc(parent, parent, held, scorer=encoder.pair_scorer)
    child_bits = best.instance_map.project(stored) > 0
    outcome = PairUpdateReport(
        pair_count=len(held.pairs),
        validation_pair_count=held.similar.size,
        rehearsal_row_count=int(read.size) if config.rehearses else 0,
        epoch=best.epoch,
        parent_auc=parent_auc,
        stored_auc=best.stored_auc,
        child_auc=best.child_auc,
        stored_bits_differ=float(np.mean(child_bits != bits)) if len(stored) else 0.0,
    )
    if not best.score > np.mean(list(parent_auc.values())):
        return PairUpdate(encoder=None, report=outcome)
    child = _child(encoder, best, outcome, held, stored, modality=modality, seed=config.seed, progress=report)
    return PairUpdate(encoder=child, report=outcome)


def _learn(
    parent: InstanceMap,
    scorer: PairScorer | None,
    rows: FrozenRows,
    stored: FrozenRows,
    held: _Held,
    *,
    config: PairUpdateConfig,
    rng: np.random.Generator,
    progress: Progress,
) -> list[_Pass]:
    """Train, and judge each pass. Raises: ConfigError where it diverges."""
    judged: list[_Pass] = []
    place = rows.rows.device
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(config.seed)
        tower = restore(parent, dropout=config.dropout, input_dropout=config.input_dropout).to(place)
        prefixes = bit_counts(parent.code_bits)
        scores = (PairScores(prefixes) if scorer is None else PairScores.restored(scorer)).to(place)
        learned = PairUpdateLoss(tower, scores, rows, held.pairs, weights=config)
        kept = RetentionLoss(tower, stored, weights=config)
        rehearsed_count = min(config.rehearsal_rows, len(stored)) if config.rehearses else 0
        optimiser = torch.optim.AdamW(
            [
                {"params": list(tower.parameters()), "weight_decay": config.weight_decay},
                {"params": list(scores.parameters()), "weight_decay": 0.0, "lr": OBJECTIVE_LEARNING_RATE},
            ],
            lr=config.learning_rate,
        )

        passes = Passes(
            item_count=len(held.pairs),
            batch_size=config.batch_size,
            epochs=config.epochs,
            warmup_share=config.warmup_share,
        )
        decay = config.parent_share ** (1 / (passes.epochs * passes.steps_per_epoch))
        averaged = Averaged(tower, optimiser, decay=decay)

        def judge(epoch: int) -> None:
            own, exported = export(averaged.tower), scores.exported()
            stored_auc = _auc(own, parent, held, scorer=exported)
            child_auc = _auc(own, own, held, scorer=exported)
            judged.append(_Pass(epoch, own, exported, stored_auc, child_auc))

        def loss_of(chosen: NDArray[np.int64]) -> torch.Tensor:
            rehearsed = rng.choice(len(stored), size=rehearsed_count, replace=False)
            loss = learned(torch.from_numpy(chosen).to(place))
            return loss + kept(torch.from_numpy(rehearsed).to(place))

        train_mode(tower)
        run_passes(optimiser, loss_of, passes=passes, rng=rng, progress=progress, after_pass=judge)
    return judged


def _auc(
    query_map: InstanceMap, stored_map: InstanceMap, held: _Held, *, scorer: PairScorer | None
) -> dict[int, float]:
    """Return the AUC by count of leading bits; each row of a pair is once the query."""
    firsts, seconds = query_map.project(held.first), query_map.project(held.second)
    stored_firsts, stored_seconds = stored_map.project(held.first), stored_map.project(held.second)
    queries, stored = np.concatenate([firsts, seconds]), np.concatenate([stored_seconds, stored_firsts])
    similar = np.tile(held.similar, 2)
    return {
        count: pair_auc(pair_logits(queries, stored, count=count, scorer=scorer)[0], similar)
        for count in bit_counts(query_map.code_bits)
    }


def _child(
    encoder: Encoder,
    best: _Pass,
    report: PairUpdateReport,
    held: _Held,
    stored: NDArray[np.float32],
    *,
    modality: str,
    seed: int,
    progress: Progress,
) -> Encoder:
    parent, own = encoder.projections[modality], best.instance_map
    progress("calibrate", 0, 1)
    table = RadiusTable.unlimited(own.code_bits)
    if len(held.rows) >= HELD_OUT_LEAST_ROWS:
        table = RadiusTable.largest(
            [
                calibrate_radii(own, held.rows, seed=seed),
                calibrate_radii(own, held.all_rows, seed=seed, stored=parent),
            ]
        )
    reference = np.concatenate([held.rows, stored])
    progress("calibrate", 1, 1)
    metrics = {name: value for name, value in encoder.metrics.items() if name.startswith("label")}
    metrics |= {
        "pair_count": float(report.pair_count),
        "validation_pair_count": float(report.validation_pair_count),
        "rehearsal_row_count": float(report.rehearsal_row_count),
        "stored_bits_differ": report.stored_bits_differ,
        **{f"validation_auc_{count}": value for count, value in report.child_auc.items()},
        **{f"validation_auc_stored_{count}": value for count, value in report.stored_auc.items()},
    }
    return replace(
        encoder,
        projections={modality: own},
        radius_table=table,
        drift_reference=fit_drift_reference(own.project(reference)),
        pair_scorer=best.scorer,
        parent_id=encoder.encoder_id,
        metrics=metrics,
    )


def _parent_map(encoder: Encoder, modality: str) -> InstanceMap:
    parent = encoder.projections.get(modality)
    if parent is None:
        raise UnknownModalityError(modality, known=tuple(encoder.projections))
    if len(encoder.projections) > 1:
        raise TrainingDataError(
            f"encoder {encoder.encoder_id} has codes in common for {', '.join(encoder.projections)}: pairs of"
            f" {modality} alone would move its map away from the others'; train it anew"
        )
    if isinstance(parent, FeatureTower):
        raise TrainingDataError(
            f"the {modality} map of encoder {encoder.encoder_id} is one of random features, which takes no"
            " gradient: update its label part, or train it anew"
        )
    return parent


def _stored_bits(
    parent: InstanceMap, stored: NDArray[np.float32], given: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    if given is None:
        return parent.project(stored) > 0
    if given.dtype != np.bool_ or given.shape != (len(stored), parent.code_bits):
        raise TrainingDataError(
            f"rehearsal_bits must be bool [{len(stored)}, {parent.code_bits}],"
            f" got {given.dtype}{list(given.shape)}"
        )
    return given


def _hold_out(
    rows: NDArray[np.float32],
    stored: NDArray[np.float32],
    pairs: NDArray[np.int64],
    *,
    config: PairUpdateConfig,
    rng: np.random.Generator,
) -> _Held:
    """Keep `validation_share` of the pairs from training, and of the stored vectors as much or
    HELD_OUT_LEAST_ROWS where half are as many. Raises: TrainingDataError as `split_pairs`."""
    split = split_pairs(pairs, row_count=len(rows), validation_share=config.validation_share, rng=rng)
    judged = split.validation
    count = max(int(config.validation_share * len(stored)), min(HELD_OUT_LEAST_ROWS, len(stored) // 2))
    unread = rng.permutation(len(stored))[:count]
    own = np.concatenate([rows[np.unique(judged[:, :2])], stored[np.sort(unread)]])
    own = own[:: max(1, -(-len(own) // HELD_OUT_ROWS_LIMIT))]
    return _Held(
        pairs=split.training,
        read=np.setdiff1d(np.arange(len(stored)), unread),
        first=rows[judged[:, 0]],
        second=rows[judged[:, 1]],
        similar=judged[:, 2] == 1,
        rows=own,
        all_rows=np.concatenate([own, rows[np.unique(split.training[:, :2])]]),
    )

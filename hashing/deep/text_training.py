"""Train a text tower and its hash head from labelled pairs of texts, on hidden states kept on disk."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from hashing.deep.hidden_states import HiddenStates, hidden_states
from hashing.deep.pairs import check_pairs, split_pairs
from hashing.deep.schedule import warmup_schedule
from hashing.deep.text_checkpoint import read_checkpoint, write_checkpoint
from hashing.deep.text_config import TextTowerConfig, computes_in_bfloat16
from hashing.deep.text_loss import PairBatch, TextLoss
from hashing.deep.text_pairs import LinkedPairs, link_pairs
from hashing.deep.towers import LinearTower, export, settle
from hashing.drift import fit_drift_reference
from hashing.embeddings import signs, unit_rows
from hashing.identity import canonical_json
from hashing.inference import Encoder
from hashing.metrics import pair_auc
from hashing.projection import fit_itq
from hashing.radius import RadiusTable, bit_counts, calibrate_radii
from hashing.text.backbone import Backbone
from hashing.text.embedding import TextTower
from hashing.text.tower import Ladder, tower_network
from hashing.tower import InstanceMap
from hashing.trainer import HELD_OUT_LEAST_ROWS, HELD_OUT_ROWS_LIMIT, Progress, held_out_recall, no_progress

logger = logging.getLogger(__name__)

FIT_TEXTS_LIMIT = 4096
"""Training texts that the hash head starts from and takes its BatchNorm's statistics from."""

START_ITERATIONS = 10
GRADIENT_NORM_LIMIT = 1.0
SCALE_LEARNING_RATE = 0.02
AVERAGING_START = 10
"""The average forgets its first weights: its decay is at most (1 + step) / (AVERAGING_START + step)."""

EMBED_BATCH = 256
CHECKPOINT_FILE = "training.pt"


@dataclass(frozen=True, slots=True, eq=False)
class TrainedTextTower:
    """tower: texts -> embeddings. encoder: embeddings -> bits, numpy alone."""

    tower: TextTower
    encoder: Encoder


def train_text_tower(
    texts: Sequence[str],
    pairs: ArrayLike,
    *,
    backbone: Backbone,
    config: TextTowerConfig,
    folder: Path,
    modality: str = "text",
    device: str | None = None,
    progress: Progress | None = None,
) -> TrainedTextTower:
    """Train a tower and hash head on labelled pairs of texts; calibrate radii and drift on held-out texts.

    texts: n strings. pairs: integers [p, 3] of text, text and 1 (similar) or 0. folder: for the hidden
    states (2 * width bytes a token and depth) and, after each pass, the state of the training; a training of
    the same input that was cut off goes on from its last pass. device: of torch; None for the GPU where
    there is one. progress: stages "states", "fit", "train", "calibrate", "evaluate".

    Pairs are held out by component. After each pass the tower is judged on them, and the best one is
    returned. Equal seed, input, device and thread count give an equal tower; on a GPU up to the order of its
    sums.

    Metrics: as `train_pairs`; validation_auc_cosine is of the backbone's own embeddings,
    validation_auc_embedding of the tower's.

    Raises: TrainingDataError for pairs that refer to missing texts or to one text twice, labels other than 0
    and 1, one class only, too few pairs of a kind, pairs that cannot be held out; ConfigError for a shape
    that does not fit the backbone; OSError for a folder that cannot be written.
    """
    report = progress if progress is not None else no_progress
    checked = check_pairs(pairs, row_count=len(texts))
    rng = np.random.default_rng(config.seed)
    split = split_pairs(checked, row_count=len(texts), validation_share=config.validation_share, rng=rng)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    depths = config.shape.depths(backbone.shape)
    bfloat16 = computes_in_bfloat16(config.precision, place)

    backbone.to(place)
    tokens = backbone.tokenise(texts, max_tokens=config.shape.max_tokens)
    states = hidden_states(backbone, tokens, depths=depths, folder=folder, bfloat16=bfloat16, progress=report)
    training_texts = np.unique(split.training[:, :2])
    fit_texts = _sampled(training_texts, limit=FIT_TEXTS_LIMIT, rng=rng)
    linked = link_pairs(
        split.training,
        row_count=len(texts),
        batch_size=config.batch_size,
        implied_weight=config.implied_weight,
    )
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(config.seed)
        run = _Training(
            backbone,
            states,
            linked,
            split.validation,
            fit_texts,
            config=config,
            place=place,
            bfloat16=bfloat16,
        )
        report("fit", 0, 1)
        metrics = run.start()
        report("fit", 1, 1)
        key = _key(backbone, texts, checked, config=config)
        metrics["epoch_count"] = float(run.train(folder / CHECKPOINT_FILE, key=key, progress=report))
    metrics |= run.metrics()
    metrics["pair_count"] = float(checked.shape[0])
    metrics["validation_pair_count"] = float(split.validation.shape[0])

    unread = np.setdiff1d(np.arange(len(texts)), training_texts)
    held_out = _sampled(unread, limit=HELD_OUT_ROWS_LIMIT, rng=rng)
    encoder = _encoder(run, held_out, modality=modality, metrics=metrics, seed=config.seed, progress=report)
    return TrainedTextTower(tower=TextTower(backbone, run.network, config.shape), encoder=encoder)


class _Training:
    """Network, head, losses and their optimiser; the visible loop."""

    def __init__(
        self,
        backbone: Backbone,
        states: HiddenStates,
        linked: LinkedPairs,
        validation: NDArray[np.int64],
        fit_texts: NDArray[np.int64],
        *,
        config: TextTowerConfig,
        place: torch.device,
        bfloat16: bool,
    ) -> None:
        self.states, self.linked, self.validation, self.fit_texts = states, linked, validation, fit_texts
        self.config, self.place, self.bfloat16 = config, place, bfloat16
        self.network = tower_network(backbone, config.shape, dropout=config.dropout).to(place)
        self.counts = bit_counts(config.code_bits)
        self.loss = TextLoss(config).to(place)
        self.head: LinearTower

    def start(self) -> dict[str, float]:
        """Start the head at the ITQ of the backbone's embeddings; return their AUC."""
        rows = self.embed(self.fit_texts)
        weight = fit_itq(
            rows, code_bits=self.config.code_bits, iterations=START_ITERATIONS, seed=self.config.seed
        ).weight
        self.head = LinearTower(weight).to(self.place)
        first, second = (self.embed(self.validation[:, side]) for side in (0, 1))
        return {"validation_auc_cosine": _auc(first, second, self.validation)}

    def train(self, checkpoint: Path, *, key: str, progress: Progress) -> int:
        """Train and leave the best weights, averaged, in network and head. Returns the number of passes."""
        config = self.config
        learned = nn.ModuleDict({"network": self.network, "head": self.head, "loss": self.loss})
        optimiser = torch.optim.AdamW(self._parameter_groups(), lr=config.learning_rate)
        step_count = config.epochs * (len(self._batches(1)) + 1)
        schedule = warmup_schedule(optimiser, step_count=step_count, warmup_share=config.warmup_share)
        average = _copied(learned)
        best, best_auc, best_epoch, done, step = average, -np.inf, 0, 0, 0
        saved = read_checkpoint(checkpoint, key=key)
        if saved is not None:
            learned.load_state_dict(saved["learned"])
            optimiser.load_state_dict(saved["optimiser"])
            schedule.load_state_dict(saved["schedule"])
            average, best = saved["average"], saved["best"]
            best_auc, best_epoch, done, step = saved["progress"]
        for epoch in range(done + 1, config.epochs + 1):
            if epoch - 1 - best_epoch >= config.patience:
                break
            torch.manual_seed(_pass_seed(config.seed, epoch))
            learned.train()
            for chosen in self._batches(epoch):
                optimiser.zero_grad()
                self._loss_of(chosen, epoch=epoch, step=step).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(learned.parameters(), GRADIENT_NORM_LIMIT)
                optimiser.step()
                schedule.step()
                step += 1
                _move(average, learned, decay=min(config.averaging, (1 + step) / (AVERAGING_START + step)))
                progress("train", min(step, step_count), step_count)
            current = _copied(learned)
            learned.load_state_dict(average if config.averaging else current)
            auc = self._judge()
            logger.info("pass %d: validation AUC %.4f", epoch, auc)
            if auc > best_auc:
                best, best_auc, best_epoch = _copied(learned), auc, epoch
            learned.load_state_dict(current)
            done = epoch
            write_checkpoint(
                checkpoint,
                key=key,
                content={
                    "learned": current,
                    "optimiser": optimiser.state_dict(),
                    "schedule": schedule.state_dict(),
                    "average": average,
                    "best": best,
                    "progress": (float(best_auc), best_epoch, done, step),
                },
            )
        progress("train", step_count, step_count)
        learned.load_state_dict(best)
        learned.eval()
        return done

    def embed(self, texts: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embed texts in evaluation mode, float32 [n, dim], computed in the precision of the training."""
        self.network.eval()
        distinct, place = np.unique(texts, return_inverse=True)
        order = np.argsort(self.states.tokens.lengths[distinct], kind="stable")
        parts = []
        with torch.no_grad():
            for start in range(0, distinct.size, EMBED_BATCH):
                chosen = distinct[order[start : start + EMBED_BATCH]]
                states, layout = self.states.batch(chosen, device=self.place)
                with self._autocast():
                    parts.append(self.network(states, layout).float().cpu().numpy())
        rows = np.empty((distinct.size, parts[0].shape[1]), dtype=np.float32)
        rows[order] = np.concatenate(parts)
        embedded: NDArray[np.float32] = rows[place]
        return embedded

    def instance_map(self) -> InstanceMap:
        """The head as arrays, its statistics settled on the training texts that it started from."""
        settle(self.head, self.embed(self.fit_texts))
        return export(self.head)

    def metrics(self) -> dict[str, float]:
        """The AUC of the embeddings and of the codes on the held-out pairs."""
        instance_map = self.instance_map()
        first, second = (self.embed(self.validation[:, side]) for side in (0, 1))
        figures = {"validation_auc_embedding": _auc(first, second, self.validation)}
        queries, stored = instance_map.project(first), signs(instance_map.project(second))
        for count in self.counts:
            figures[f"validation_auc_{count}"] = _auc(queries, stored, self.validation, count=count)
            figures[f"validation_auc_codes_{count}"] = _auc(
                signs(queries), stored, self.validation, count=count
            )
        return figures

    def _loss_of(self, chosen: NDArray[np.int64], *, epoch: int, step: int) -> Tensor:
        """The loss of some pairs; each of their texts passes the network once."""
        pairs = self.linked.pairs[chosen]
        texts = np.unique(pairs[:, :2])
        texts = texts[np.argsort(self.states.tokens.lengths[texts], kind="stable")]
        order = np.argsort(texts)
        place = order[np.searchsorted(texts[order], pairs[:, :2])]  # [p, 2], rows of the batch
        states, layout = self.states.batch(
            texts,
            device=self.place,
            dropped_share=self.config.token_dropout,
            rng=np.random.default_rng([self.config.seed, epoch, step]),
        )
        with self._autocast():
            embeddings: Tensor = self.network(states, layout)
        embeddings = embeddings.float()
        batch = PairBatch(
            first=torch.from_numpy(place[:, 0]).to(self.place),
            second=torch.from_numpy(place[:, 1]).to(self.place),
            similarity=torch.from_numpy(pairs[:, 2].astype(np.float32)).to(self.place),
            weights=torch.from_numpy(self.linked.weights[chosen]).to(self.place),
            group=torch.from_numpy(self.linked.group[texts]).to(self.place),
        )
        loss: Tensor = self.loss(embeddings, self.head(embeddings), batch)
        return loss

    def _judge(self) -> float:
        """The mean over prefixes of the AUC of real-valued queries against stored bits, held-out pairs."""
        instance_map = self.instance_map()
        queries, stored = (instance_map.project(self.embed(self.validation[:, side])) for side in (0, 1))
        aucs = [_auc(queries, signs(stored), self.validation, count=count) for count in self.counts]
        return float(np.mean(aucs))

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        rng = np.random.default_rng([self.config.seed, epoch])
        return self.linked.batches(batch_size=self.config.batch_size, rng=rng)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.place.type, dtype=torch.bfloat16, enabled=self.bfloat16)

    def _parameter_groups(self) -> list[dict[str, object]]:
        config = self.config
        decayed = {"weight_decay": config.weight_decay}
        groups: list[dict[str, object]] = [
            {"params": list(self.head.parameters()), "lr": config.head_learning_rate, **decayed},
            {"params": list(self.loss.parameters()), "lr": SCALE_LEARNING_RATE, "weight_decay": 0.0},
        ]
        if isinstance(self.network, Ladder):
            return [*groups, {"params": list(self.network.parameters()), **decayed}]
        for below, layer in enumerate(reversed(self.network.layers)):
            rate = config.learning_rate * config.layer_decay**below
            groups.append({"params": list(layer.parameters()), "lr": rate, **decayed})
        return groups


def _copied(learned: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in learned.state_dict().items()}


def _move(average: dict[str, Tensor], learned: nn.Module, *, decay: float) -> None:
    """Move the average of the weights a step toward the present ones, in place; counts are copied."""
    with torch.no_grad():
        for name, tensor in learned.state_dict().items():
            if tensor.is_floating_point():
                average[name].lerp_(tensor, 1 - decay)
            else:
                average[name].copy_(tensor)


def _encoder(
    run: _Training,
    held_out: NDArray[np.int64],
    *,
    modality: str,
    metrics: dict[str, float],
    seed: int,
    progress: Progress,
) -> Encoder:
    """Export the head, its radii and drift reference measured on texts that no step has read."""
    progress("calibrate", 0, 1)
    instance_map, fit_rows = run.instance_map(), run.embed(run.fit_texts)
    measured = held_out.size >= HELD_OUT_LEAST_ROWS
    rows = run.embed(held_out) if measured else fit_rows
    if measured:
        radius_table = calibrate_radii(instance_map, rows, seed=seed)
    else:
        radius_table = RadiusTable.unlimited(instance_map.code_bits)
    drift_reference = fit_drift_reference(instance_map.project(rows))
    progress("calibrate", 1, 1)
    metrics["row_count"] = float(run.states.tokens.lengths.size)
    metrics["held_out_row_count"] = float(held_out.size) if measured else 0.0
    if measured:
        progress("evaluate", 0, 1)
        metrics["recall_at_10_in_100"] = held_out_recall(instance_map, fit_rows, rows)
        progress("evaluate", 1, 1)
    return Encoder(
        projections={modality: instance_map},
        radius_table=radius_table,
        drift_reference=drift_reference,
        metrics=metrics,
    )


def _key(
    backbone: Backbone, texts: Sequence[str], pairs: NDArray[np.int64], *, config: TextTowerConfig
) -> str:
    """What a checkpoint must agree on to be continued."""
    digest = hashlib.sha256(canonical_json([backbone.backbone_id, asdict(config), list(texts)]))
    digest.update(pairs.astype("<i8").tobytes())
    return digest.hexdigest()


def _auc(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    pairs: NDArray[np.int64],
    *,
    count: int | None = None,
) -> float:
    first, second = unit_rows(first[:, :count]), unit_rows(second[:, :count])
    # Of codes the scores tie: rounded, so that ties are not told apart by the order of summation.
    return pair_auc(np.round(np.einsum("vb,vb->v", first, second), 6), pairs[:, 2] == 1)


def _sampled(texts: NDArray[np.int64], *, limit: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return texts if texts.size <= limit else np.sort(rng.choice(texts, size=limit, replace=False))


def _pass_seed(seed: int, epoch: int) -> int:
    return int(np.random.default_rng([seed, epoch]).integers(2**62))

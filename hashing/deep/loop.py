"""The training loop."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hashing.deep import losses
from hashing.deep.binarizers import AnnealedTanh, StraightThroughSign
from hashing.deep.config import TrainingConfig, ValueLosses
from hashing.deep.objectives import Coder, Objective
from hashing.deep.schedule import warmup_schedule
from hashing.deep.towers import LinearTower, export, settle
from hashing.embeddings import CHUNK_ROWS
from hashing.errors import ConfigError, TrainingDataError
from hashing.tower import InstanceMap
from hashing.trainer import Progress

logger = logging.getLogger(__name__)

OBJECTIVE_LEARNING_RATE = 0.005
"""Of what an objective learns besides the towers: scales and a bias."""

GRADIENT_NORM_LIMIT = 5.0

Score = Callable[[Mapping[str, InstanceMap]], float]
"""Judges towers on what was held out; higher is better."""


@dataclass(frozen=True, slots=True, eq=False)
class LoopResult:
    """maps: the towers of the best pass, by modality. score: theirs. epoch_count: passes made in all."""

    maps: Mapping[str, InstanceMap]
    score: float
    epoch_count: int


def run_loop(
    towers: Mapping[str, LinearTower],
    objectives: Sequence[Objective],
    rows: Mapping[str, NDArray[np.float32]],
    *,
    step_rows: Mapping[str, NDArray[np.float32]],
    score: Score,
    config: TrainingConfig,
    device: torch.device,
    rng: np.random.Generator,
    checkpoint: Path | None,
    resumed: Mapping[str, Any] | None,
    key: str,
    progress: Progress,
) -> LoopResult:
    """Train towers, judge them after each pass, and return the best.

    rows: modality -> float32 [n, dim], the training part. step_rows: what steps read, `rows` and behind them
    rebuilt ones, which towers are not settled on. checkpoint: a file that the state is kept in after
    each pass. resumed: what `read_checkpoint` gave, to go on from; None to begin. key: what the training is
    of, kept with the state. Needs a seeded torch.
    Raises: ConfigError where the training diverges: weights or values are not finite after a pass.
    """
    optimiser_config = config.optimiser
    module = nn.ModuleDict(dict(towers)).to(device)
    averaged = _averaged(module, decay=optimiser_config.averaging)
    binarizer = StraightThroughSign() if config.tower.binarizer == "straight_through" else AnnealedTanh()
    learned = [parameter for objective in objectives for parameter in objective.parameters()]
    optimiser = torch.optim.AdamW(
        [
            {"params": list(module.parameters()), "weight_decay": optimiser_config.weight_decay},
            {"params": learned, "weight_decay": 0.0, "lr": OBJECTIVE_LEARNING_RATE},
        ],
        lr=optimiser_config.learning_rate,
    )
    steps_per_pass = max(objective.step_count for objective in objectives)
    step_count = optimiser_config.epochs * steps_per_pass
    schedule = warmup_schedule(optimiser, step_count=step_count, warmup_share=optimiser_config.warmup_share)
    device_rows = {modality: torch.from_numpy(own).to(device) for modality, own in step_rows.items()}
    state = _State(module, averaged, optimiser, schedule, learned, rng, key=key)
    if resumed is not None:
        state.resume(resumed)
    mixed = optimiser_config.mixed_precision and device.type == "cuda"

    for epoch in range(state.epoch + 1, optimiser_config.epochs + 1):
        if epoch - 1 - state.best_epoch >= optimiser_config.patience:
            break
        values = None
        if epoch > 1 and any(objective.mines for objective in objectives):
            maps = _exported(module, rows, config=config)
            values = {modality: maps[modality].project(own) for modality, own in rows.items()}
        module.train()
        for objective in objectives:
            objective.begin_pass(rng, values)
        for index in range(steps_per_pass):
            step = (epoch - 1) * steps_per_pass + index
            if isinstance(binarizer, AnnealedTanh):
                binarizer.anneal(step / step_count)
            coder = Coder(module, binarizer, device_rows)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
                parts = [objective.loss(coder, index) for objective in objectives]
                loss = torch.stack(parts).sum() + _penalties(torch.cat(coder.values), config.losses.values)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), GRADIENT_NORM_LIMIT)
            optimiser.step()
            schedule.step()
            if averaged is not None:
                averaged.update_parameters(module)
            progress("train", step + 1, step_count)
        judged = module if averaged is None else averaged.module
        reached = score(_exported(judged, rows, config=config))
        logger.info("pass %d: score %.4f on the held-out part", epoch, reached)
        state.note(epoch, reached, judged)
        state.save(checkpoint)
    progress("train", step_count, step_count)
    return LoopResult(maps=state.best_maps(towers), score=state.best_score, epoch_count=state.epoch)


def read_checkpoint(checkpoint: Path, *, key: str) -> Mapping[str, Any] | None:
    """Return the state of a training that was interrupted, to go on from; None where there is none yet.

    key: what the training is of. Raises: TrainingDataError for a checkpoint of another training, one that
    cannot be read, or one in a folder that there is not.
    """
    if not checkpoint.parent.is_dir():
        raise TrainingDataError(f"checkpoint {checkpoint}: there is no folder {checkpoint.parent}")
    if not checkpoint.exists():
        return None
    try:
        content = torch.load(checkpoint, weights_only=True, map_location="cpu")
    except Exception as error:  # what torch raises for a damaged file is not one type
        raise TrainingDataError(f"checkpoint {checkpoint} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("key") != key:
        raise TrainingDataError(f"checkpoint {checkpoint} is of another training: delete it or name another")
    return content


class _State:
    """All that a training needs to go on, and the towers of the best pass."""

    def __init__(
        self,
        module: nn.ModuleDict,
        averaged: AveragedModel | None,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        learned: Sequence[nn.Parameter],
        rng: np.random.Generator,
        *,
        key: str,
    ) -> None:
        self._parts: dict[str, Any] = {"module": module, "optimiser": optimiser, "schedule": schedule}
        if averaged is not None:
            self._parts["averaged"] = averaged
        self._module = module
        self._learned = learned
        self._rng = rng
        self._key = key
        self._best: dict[str, Tensor] = {}
        self._best_learned: list[Tensor] = []
        self.best_score, self.best_epoch, self.epoch = -np.inf, 0, 0

    def note(self, epoch: int, score: float, judged: nn.Module) -> None:
        """Take notice of a pass, and keep its towers where they are the best."""
        self.epoch = epoch
        if score > self.best_score or not self._best or np.isnan(score):  # where nothing judges, the last
            self.best_score, self.best_epoch = score, epoch
            self._best = {name: own.detach().clone() for name, own in judged.state_dict().items()}
            self._best_learned = [own.detach().clone() for own in self._learned]

    def best_maps(self, towers: Mapping[str, LinearTower]) -> dict[str, InstanceMap]:
        """Export the best towers; they and the objectives lose what they learned after that pass."""
        self._module.load_state_dict(self._best)
        self._take(self._best_learned)
        return {modality: export(tower) for modality, tower in towers.items()}

    def save(self, checkpoint: Path | None) -> None:
        """Replace the checkpoint."""
        if checkpoint is None:
            return
        content = {name: part.state_dict() for name, part in self._parts.items()}
        content |= {
            "best": self._best,
            "best_learned": self._best_learned,
            "learned": [own.detach() for own in self._learned],
            "torch_rng": torch.get_rng_state(),
            "numpy_rng": json.dumps(self._rng.bit_generator.state),
            "progress": [self.epoch, self.best_epoch, float(self.best_score)],
            "key": self._key,
        }
        unfinished = checkpoint.with_name(checkpoint.name + ".tmp")
        torch.save(content, unfinished)
        unfinished.replace(checkpoint)

    def resume(self, content: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint held."""
        for name, part in self._parts.items():
            part.load_state_dict(content[name])
        self._take(content["learned"])
        self._best, self._best_learned = content["best"], content["best_learned"]
        torch.set_rng_state(content["torch_rng"])
        self._rng.bit_generator.state = json.loads(content["numpy_rng"])
        self.epoch, self.best_epoch, self.best_score = content["progress"]
        logger.info("going on after pass %d", self.epoch)

    def _take(self, learned: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for own, saved in zip(self._learned, learned, strict=True):
                own.copy_(saved)


def _penalties(values: Tensor, weights: ValueLosses) -> Tensor:
    loss = values.new_zeros(())
    if weights.quantisation:
        loss = loss + weights.quantisation * losses.quantisation(values)
    if weights.bit_balance:
        loss = loss + weights.bit_balance * losses.bit_balance(values)
    if weights.decorrelation:
        loss = loss + weights.decorrelation * losses.decorrelation(values)
    return loss


def _exported(
    module: nn.Module, rows: Mapping[str, NDArray[np.float32]], *, config: TrainingConfig
) -> dict[str, InstanceMap]:
    """Settle the towers on all training rows, and return them as arrays.

    Raises: ConfigError for weights that are not finite, or that map rows to values that are not.
    """
    assert isinstance(module, nn.ModuleDict)
    diverged = ConfigError(
        "optimiser.learning_rate", config.optimiser.learning_rate, "smaller: the training diverged"
    )
    if not all(bool(torch.isfinite(own).all()) for own in module.parameters()):
        raise diverged
    maps: dict[str, InstanceMap] = {}
    for modality, tower in module.items():
        assert isinstance(tower, LinearTower)
        settle(tower, rows[modality])
        maps[modality] = export(tower)
        with np.errstate(over="ignore", invalid="ignore"):
            values = maps[modality].project(rows[modality][:CHUNK_ROWS])
        if not np.isfinite(values).all():
            raise diverged
    return maps


def _averaged(module: nn.ModuleDict, *, decay: float) -> AveragedModel | None:
    """The moving average of the weights; None for decay 0."""
    if decay == 0:
        return None
    average: Callable[..., None] = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(module, multi_avg_fn=average)

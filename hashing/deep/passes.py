"""Passes of gradient steps over numbered rows or pairs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hashing.deep.loop import GRADIENT_NORM_LIMIT
from hashing.deep.schedule import warmup_schedule
from hashing.errors import ConfigError
from hashing.trainer import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """How many steps there are. item_count: rows or pairs, each read once a pass. batch_size: of them, a step
    at most. epochs: passes. warmup_share: as of `warmup_schedule`."""

    item_count: int
    batch_size: int
    epochs: int
    warmup_share: float

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.item_count // self.batch_size)


def run_passes(
    optimiser: torch.optim.Optimizer,
    loss_of: Callable[[NDArray[np.int64]], Tensor],
    *,
    passes: Passes,
    rng: np.random.Generator,
    progress: Progress,
    after_pass: Callable[[int], None] | None = None,
) -> float:
    """Descend, and return the mean loss of the last pass. Gradients are clipped to GRADIENT_NORM_LIMIT.

    loss_of: the loss at the items of a step, int64 [<= batch_size]. after_pass: called with the number of
    each pass, from 1. progress: stage "train".
    Raises: ConfigError where the loss is not finite after a pass.
    """
    learned = [own for group in optimiser.param_groups for own in group["params"]]
    step_count = passes.epochs * passes.steps_per_epoch
    schedule = warmup_schedule(optimiser, step_count=step_count, warmup_share=passes.warmup_share)
    step, total = 0, 0.0
    for epoch in range(1, passes.epochs + 1):
        total = 0.0
        for chosen in np.array_split(rng.permutation(passes.item_count), passes.steps_per_epoch):
            loss = loss_of(chosen)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(learned, GRADIENT_NORM_LIMIT)
            optimiser.step()
            schedule.step()
            step += 1
            total += float(loss.detach()) / passes.steps_per_epoch
            progress("train", step, step_count)
        if not np.isfinite(total):
            rate = optimiser.param_groups[0]["initial_lr"]
            raise ConfigError("learning_rate", rate, "smaller: the training diverged")
        logger.info("loss %.4f after %d of %d steps", total, step, step_count)
        if after_pass is not None:
            after_pass(epoch)
    return total

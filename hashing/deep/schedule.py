"""The course of the learning rate."""

from __future__ import annotations

import torch


def warmup_schedule(
    optimiser: torch.optim.Optimizer, *, step_count: int, warmup_share: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Let the rates grow linearly over the first `warmup_share` of the steps, then fall linearly to 0."""
    warmup = max(1.0, warmup_share * step_count)
    return torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warmup, (step_count - step) / max(1.0, step_count - warmup))
    )

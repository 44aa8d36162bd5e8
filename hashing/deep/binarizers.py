"""From real values h to near-bits that a gradient passes; a serving encoder takes the sign alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StraightThroughSign(nn.Module):
    """+1 where h > 0, else -1; the gradient passes as if nothing had been done where |h| <= clip.

    Bengio, Léonard & Courville 2013; with a clip Hubara et al., NIPS 2016. clip: None for no limit.
    """

    def __init__(self, *, clip: float | None = None) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, values: Tensor) -> Tensor:
        """Map float [n, bits] to exactly -1 and +1."""
        signs = torch.where(values > 0, 1.0, -1.0).to(values.dtype)
        passed = values if self.clip is None else values.clamp(-self.clip, self.clip)
        return signs + (passed - passed.detach())


class AnnealedTanh(nn.Module):
    """tanh(beta h), beta growing geometrically from `start` to `end`: HashNet (Cao et al., ICCV 2017)."""

    def __init__(self, *, start: float = 1.0, end: float = 10.0) -> None:
        super().__init__()
        self.start = start
        self.end = end
        self.beta = start

    def anneal(self, share: float) -> None:
        """Set beta for a share of the training in [0, 1]."""
        self.beta = self.start * (self.end / self.start) ** share

    def forward(self, values: Tensor) -> Tensor:
        """Map float [n, bits] to (-1, 1)."""
        return torch.tanh(self.beta * values)


class LearnedThreshold(nn.Module):
    """z - t(x) with a threshold linear in the embedding, 0 at first: the dynamic sign of CSCE-Net.

    It yields real values; a sign or tanh follows. An exported tower holds it in its linear part.
    """

    def __init__(self, dim: int, code_bits: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, code_bits)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, values: Tensor, embeddings: Tensor) -> Tensor:
        """Shift float [n, bits] by the thresholds of float [n, dim]."""
        thresholds: Tensor = self.linear(embeddings)
        return values - thresholds

"""Texts as tokens without padding, and transformer layers over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

LENGTH_RATIO = 1.3
LENGTH_SLACK = 3
"""Texts are padded to one length for attention where the longest has at most this ratio to, or this many
tokens more than, the shortest; linear layers, most of the work, see no padding at all."""

MASKED = -1e4
"""Added to the attention logit of a padded place; finite, so that it stays so in bfloat16."""

DRAW_COUNT = 256
"""Dropout draws a byte for each value: a Bernoulli draw in torch takes as long as the layer on a CPU."""


class LengthGroup(NamedTuple):
    """Neighbouring texts of about one length. start, stop: of their tokens. slot: int64 [tokens], the place
    of each in [text_count * length]. bias: float32 [text_count, 1, 1, length]."""

    start: int
    stop: int
    text_count: int
    length: int
    slot: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the tokens of a batch of texts lie. lengths: int64 [n], tokens of each text. text, position:
    int64 [t], of each token. groups: the texts in runs of similar length, in order."""

    lengths: Tensor
    text: Tensor
    position: Tensor
    groups: tuple[LengthGroup, ...]

    @classmethod
    def of(cls, lengths: NDArray[np.int64], *, device: torch.device) -> Layout:
        """Lay out texts of these lengths, int64 [n], each 1 or more; groups are few where they are sorted."""
        text = np.repeat(np.arange(lengths.size), lengths)
        stops = np.cumsum(lengths)
        position = np.arange(text.size) - (stops - lengths)[text]
        groups: list[LengthGroup] = []
        first = 0
        while first < lengths.size:
            last = _group_end(lengths, first)
            length = int(lengths[first:last].max())
            start, stop = int(stops[first] - lengths[first]), int(stops[last - 1])
            padded = np.arange(length) >= lengths[first:last, None]  # [texts, length]
            groups.append(
                LengthGroup(
                    start=start,
                    stop=stop,
                    text_count=last - first,
                    length=length,
                    slot=torch.from_numpy((text[start:stop] - first) * length + position[start:stop]).to(
                        device
                    ),
                    bias=torch.from_numpy(np.where(padded, np.float32(MASKED), np.float32(0)))[
                        :, None, None
                    ].to(device),
                )
            )
            first = last
        return cls(
            lengths=torch.from_numpy(lengths).to(device),
            text=torch.from_numpy(text).to(device),
            position=torch.from_numpy(position).to(device),
            groups=tuple(groups),
        )

    @property
    def text_count(self) -> int:
        return int(self.lengths.shape[0])


def _group_end(lengths: NDArray[np.int64], first: int) -> int:
    shortest = longest = int(lengths[first])
    for index in range(first + 1, lengths.size):
        shortest, longest = min(shortest, int(lengths[index])), max(longest, int(lengths[index]))
        if longest > max(shortest * LENGTH_RATIO, shortest + LENGTH_SLACK):
            return index
    return int(lengths.size)


def attend(joined: Tensor, layout: Layout, *, heads: int) -> Tensor:
    """Attention of each token to those of its text.

    joined: float [t, 3 * width], queries, keys and values side by side. Returns float [t, width].
    """
    width = joined.shape[1] // 3
    head_width = width // heads
    attended = []
    for group in layout.groups:
        count, length = group.text_count, group.length
        padded = joined.new_zeros(count * length, 3 * width)
        padded = padded.index_copy(0, group.slot, joined[group.start : group.stop])
        query, key, value = (
            padded.view(count, length, 3, heads, head_width)
            .permute(2, 0, 3, 1, 4)
            .reshape(3, count * heads, length, head_width)
        )
        logits = torch.bmm(query * head_width**-0.5, key.transpose(1, 2))
        logits = logits.view(count, heads, length, length) + group.bias.to(logits.dtype)
        weights = torch.softmax(logits, dim=-1).to(value.dtype).view(count * heads, length, length)
        mixed = torch.bmm(weights, value).view(count, heads, length, head_width)
        attended.append(mixed.transpose(1, 2).reshape(count * length, width)[group.slot])
    return torch.cat(attended)  # [t, width]


def mean_tokens(hidden: Tensor, layout: Layout) -> Tensor:
    """Average the tokens of each text: float [t, width] -> float32 [n, width]."""
    sums = hidden.new_zeros((layout.text_count, hidden.shape[1]), dtype=torch.float32)
    return sums.index_add(0, layout.text, hidden.float()) / layout.lengths[:, None]


class Dropout(nn.Module):
    """Set a share of the values to 0 and scale the others up; the share is rounded to 1 / DRAW_COUNT."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.dropped = round(share * DRAW_COUNT)

    def forward(self, values: Tensor) -> Tensor:
        """Float of any shape; unchanged in evaluation mode."""
        if self.dropped == 0 or not self.training:
            return values
        drawn = torch.empty(values.shape, dtype=torch.uint8, device=values.device).random_(0, DRAW_COUNT)
        return values * (drawn >= self.dropped).to(values.dtype) * (DRAW_COUNT / (DRAW_COUNT - self.dropped))


class BertLayer(nn.Module):
    """One layer of BERT (Devlin et al. 2019): attention, then an MLP, each followed by a LayerNorm."""

    def __init__(self, width: int, *, heads: int, mlp_width: int, eps: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.joined = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.out_norm = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, mlp_width)
        self.down = nn.Linear(mlp_width, width)
        self.down_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Map float [t, width] to the next layer's."""
        attended = attend(self.joined(hidden), layout, heads=self.heads)
        hidden = self.out_norm(hidden + self.dropout(self.out(attended)))
        grown = self.down(functional.gelu(self.up(hidden)))
        result: Tensor = self.down_norm(hidden + self.dropout(grown))
        return result


class SideLayer(nn.Module):
    """A narrow layer of a side network, normalised before each part, so that it starts close to the
    identity."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.joined = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Map float [t, width] to the next layer's."""
        joined = self.joined(self.attention_norm(hidden))
        hidden = hidden + self.out(attend(joined, layout, heads=self.heads))
        result: Tensor = hidden + self.down(functional.gelu(self.up(self.mlp_norm(hidden))))
        return result

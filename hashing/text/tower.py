"""What is learned on top of a frozen backbone, as modules and as one file.

Two kinds read the hidden states of the backbone's layers. A "ladder" is a narrow network beside the
backbone, one layer beside each of its layers, which training never back-propagates through (ladder
side-tuning, Sung, Cho & Bansal, NeurIPS 2022; the parallel tower of UniPT, Diao et al., CVPR 2024). An
"upper" tower is a trained copy of the backbone's upper layers on the states of the lower ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from hashing.config import require_choice, require_int, require_share
from hashing.errors import ConfigError
from hashing.text.backbone import Backbone, BackboneShape, normalised
from hashing.text.packed import Dropout, Layout, SideLayer, mean_tokens

TextTowerKind = Literal["upper", "ladder"]

LAYER_LIMIT = 48
SIDE_WIDTH_LIMIT = 4096
SIDE_HEADS = 4
MAX_TOKENS_LIMIT = 512
ATTENTION_LOGIT_LIMIT = 8.0
"""Of the pooling by attention: no token weighs more than e^16 times another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTowerShape:
    """What a tower is made of.

    kind: "upper" layers, or a "ladder". upper_layers: the layers that an "upper" tower trains, from the last
    one down, 1..48 and at most the backbone's. side_width: of a ladder's layers, 4..4096, a multiple of 4.
    max_tokens: of a text; what is beyond is cut off, 3..512.

    Raises: ConfigError that names the key.
    """

    kind: TextTowerKind = "upper"
    upper_layers: int = 3
    side_width: int = 128
    max_tokens: int = 64

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, choices=get_args(TextTowerKind))
        require_int("upper_layers", self.upper_layers, low=1, high=LAYER_LIMIT)
        require_int("side_width", self.side_width, low=SIDE_HEADS, high=SIDE_WIDTH_LIMIT)
        if self.side_width % SIDE_HEADS:
            raise ConfigError("side_width", self.side_width, f"a multiple of {SIDE_HEADS}")
        require_int("max_tokens", self.max_tokens, low=3, high=MAX_TOKENS_LIMIT)

    def depths(self, backbone: BackboneShape) -> tuple[int, ...]:
        """Return which hidden states the tower reads: after so many layers of the backbone, ascending.

        Raises: ConfigError for more layers or tokens than the backbone has.
        """
        if self.max_tokens > backbone.position_count:
            raise ConfigError("max_tokens", self.max_tokens, f"at most {backbone.position_count}")
        if self.kind == "ladder":
            return tuple(range(backbone.layer_count + 1))
        if self.upper_layers > backbone.layer_count:
            raise ConfigError("upper_layers", self.upper_layers, f"at most {backbone.layer_count}")
        return (backbone.layer_count - self.upper_layers,)

    def as_dict(self) -> dict[str, object]:
        """As the tower's file keeps it."""
        return asdict(self)


class UpperLayers(nn.Module):
    """The upper layers of a backbone, copied, and the mean of the tokens: what fine-tuning changes."""

    def __init__(self, backbone: Backbone, shape: TextTowerShape, *, dropout: float = 0.0) -> None:
        super().__init__()
        (first,) = shape.depths(backbone.shape)
        self.layers = nn.ModuleList()
        for source in backbone.layers[first:]:
            layer = backbone.shape.layer(dropout=dropout)
            layer.load_state_dict(source.state_dict())
            self.layers.append(layer)

    def forward(self, states: Sequence[Tensor], layout: Layout) -> Tensor:
        """Map the lower layers' states, one float [t, width], to unit rows, float32 [n, width]."""
        (hidden,) = states
        for layer in self.layers:
            hidden = layer(hidden, layout)
        return normalised(mean_tokens(hidden, layout))


class Ladder(nn.Module):
    """Side layers of `side_width`, each fed by a gate between the one below and the backbone's own state.

    The tokens' mean and their sum weighted by attention are added to the backbone's own mean through a map
    that starts at 0, so that training starts at the backbone's embedding.
    """

    def __init__(self, backbone: Backbone, shape: TextTowerShape, *, dropout: float = 0.0) -> None:
        super().__init__()
        depths = shape.depths(backbone.shape)
        width, side = backbone.shape.width, shape.side_width
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in depths])
        self.downs = nn.ModuleList([nn.Linear(width, side) for _ in depths])
        self.layers = nn.ModuleList([SideLayer(side, heads=SIDE_HEADS) for _ in depths[1:]])
        self.gates = nn.Parameter(torch.zeros(len(depths) - 1))
        self.norm = nn.LayerNorm(side)
        self.attention = nn.Linear(side, 1)
        self.up = nn.Linear(2 * side, width, bias=False)
        nn.init.zeros_(self.up.weight)
        self.dropout = Dropout(dropout)

    def forward(self, states: Sequence[Tensor], layout: Layout) -> Tensor:
        """Map the states of all depths, each float [t, width], to unit rows, float32 [n, width]."""
        rungs = [
            down(self.dropout(norm(state)))
            for norm, down, state in zip(self.norms, self.downs, states, strict=True)
        ]
        hidden = rungs[0]  # [t, side]
        for gate, layer, rung in zip(torch.sigmoid(self.gates), self.layers, rungs[1:], strict=True):
            hidden = layer((1 - gate) * hidden + gate * rung, layout)
        hidden = self.norm(hidden).float()
        limit = ATTENTION_LOGIT_LIMIT
        weights = torch.exp(self.attention(hidden).float().clamp(-limit, limit))  # [t, 1]
        weighted = mean_tokens(hidden * weights, layout) / mean_tokens(weights, layout)
        pooled = torch.cat([mean_tokens(hidden, layout), weighted], dim=1)  # [n, 2 * side]
        return normalised(normalised(mean_tokens(states[-1], layout)) + self.up(pooled))


def tower_network(backbone: Backbone, shape: TextTowerShape, *, dropout: float = 0.0) -> UpperLayers | Ladder:
    """Return the untrained network of this shape. dropout: in training, in [0, 1).

    Raises: ConfigError.
    """
    require_share("dropout", dropout, below=1)
    if shape.kind == "ladder":
        return Ladder(backbone, shape, dropout=dropout)
    return UpperLayers(backbone, shape, dropout=dropout)

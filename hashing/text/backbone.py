"""A frozen BERT of a sentence embedder, read from its files: tokens, hidden states of each layer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from hashing.errors import BackboneError
from hashing.identity import canonical_json
from hashing.text.packed import BertLayer, Layout

CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE = "config.json", "model.safetensors", "tokenizer.json"
"""What a folder of a BERT model holds, as sentence-transformers and transformers write it."""

ID_HEX_CHARS = 32

_LAYER_NAMES = {
    "out": "attention.output.dense",
    "out_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "down_norm": "output.LayerNorm",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneShape:
    """Sizes of a BERT. width: of a hidden state. position_count: tokens of a text at most."""

    width: int
    layer_count: int
    heads: int
    mlp_width: int
    position_count: int
    eps: float

    def layer(self, *, dropout: float = 0.0) -> BertLayer:
        """Return a layer of these sizes with random weights."""
        return BertLayer(
            self.width, heads=self.heads, mlp_width=self.mlp_width, eps=self.eps, dropout=dropout
        )


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Texts as token ids, end to end. ids: int32 [t]. starts: int64 [n + 1], text i has
    ids[starts[i]:starts[i + 1]]."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, int64 [n]."""
        return np.diff(self.starts)

    def places(self, texts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices of the tokens of these texts, one text after the other, int64 [t]."""
        lengths = self.lengths[texts]
        ends = np.cumsum(lengths)
        within = np.arange(ends[-1] if texts.size else 0) - np.repeat(ends - lengths, lengths)
        places: NDArray[np.int64] = np.repeat(self.starts[texts], lengths) + within
        return places


class Backbone(nn.Module):
    """The embeddings and layers of a BERT, in evaluation mode, without gradients.

    backbone_id: hash of the weights and the tokenizer, 32 hex characters.
    """

    def __init__(self, shape: BackboneShape, *, tokenizer: Tokenizer, vocabulary_size: int) -> None:
        super().__init__()
        self.shape = shape
        self.tokenizer = tokenizer
        self.backbone_id = ""
        self.words = nn.Embedding(vocabulary_size, shape.width)
        self.positions = nn.Embedding(shape.position_count, shape.width)
        self.segment = nn.Parameter(torch.zeros(shape.width))
        self.norm = nn.LayerNorm(shape.width, eps=shape.eps)
        self.layers = nn.ModuleList([shape.layer() for _ in range(shape.layer_count)])
        self.eval().requires_grad_(requires_grad=False)

    def tokenise(self, texts: Sequence[str], *, max_tokens: int) -> Tokens:
        """Return the tokens of each text, the marks at its two ends among them, `max_tokens` at most."""
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_tokens)
        encoded = self.tokenizer.encode_batch(list(texts))
        ids = [np.asarray(text.ids, dtype=np.int32) for text in encoded]
        starts = np.concatenate([[0], np.cumsum([own.size for own in ids])]).astype(np.int64)
        return Tokens(ids=np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32), starts=starts)

    def embedded(self, ids: Tensor, layout: Layout) -> Tensor:
        """Map token ids, int64 [t], to what the first layer reads, float [t, width]."""
        hidden: Tensor = self.norm(self.words(ids) + self.positions(layout.position) + self.segment)
        return hidden

    def states(self, ids: Tensor, layout: Layout, *, depths: Sequence[int]) -> list[Tensor]:
        """Return the hidden states after so many layers, float [t, width] for each of `depths`, ascending."""
        hidden = self.embedded(ids, layout)
        states = [hidden] if 0 in depths else []
        for depth in range(1, max(depths) + 1):
            hidden = self.layers[depth - 1](hidden, layout)
            if depth in depths:
                states.append(hidden)
        return states


def read_backbone(folder: Path) -> Backbone:
    """Read a BERT from `folder`: config.json, model.safetensors, tokenizer.json. Nothing is downloaded.

    Raises: BackboneError for files that are missing or cannot be read, or another kind of model.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        weights = load_file(folder / WEIGHTS_FILE)
        tokenizer_bytes = (folder / TOKENIZER_FILE).read_bytes()
        tokenizer = Tokenizer.from_str(tokenizer_bytes.decode())
        shape = _shape(config)
        weights = {name.removeprefix("bert."): tensor.float() for name, tensor in weights.items()}
        backbone = Backbone(
            shape,
            tokenizer=tokenizer,
            vocabulary_size=weights["embeddings.word_embeddings.weight"].shape[0],
        )
        backbone.load_state_dict(_renamed(weights, layer_count=shape.layer_count))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BackboneError(str(folder), f"{type(error).__name__}: {error}") from error
    backbone.backbone_id = _identity(backbone, tokenizer_bytes)
    return backbone


def _shape(config: dict[str, object]) -> BackboneShape:
    """Raises: ValueError for what is no BERT with exact GELU and absolute positions; KeyError."""
    for key, expected in (
        ("model_type", "bert"),
        ("hidden_act", "gelu"),
        ("position_embedding_type", "absolute"),
    ):
        if config.get(key, expected) != expected:
            raise ValueError(f"{key} is {config[key]!r}, expected {expected!r}")
    sizes = {
        name: int(str(config[key]))
        for name, key in (
            ("width", "hidden_size"),
            ("layer_count", "num_hidden_layers"),
            ("heads", "num_attention_heads"),
            ("mlp_width", "intermediate_size"),
            ("position_count", "max_position_embeddings"),
        )
    }
    return BackboneShape(**sizes, eps=float(str(config["layer_norm_eps"])))


def _renamed(weights: dict[str, Tensor], *, layer_count: int) -> dict[str, Tensor]:
    """Return the weights under the names of `Backbone`. Raises: KeyError for one that is missing."""
    renamed = {
        "words.weight": weights["embeddings.word_embeddings.weight"],
        "positions.weight": weights["embeddings.position_embeddings.weight"],
        "segment": weights["embeddings.token_type_embeddings.weight"][0],
        "norm.weight": weights["embeddings.LayerNorm.weight"],
        "norm.bias": weights["embeddings.LayerNorm.bias"],
    }
    for index in range(layer_count):
        source, target = f"encoder.layer.{index}", f"layers.{index}"
        for part in ("weight", "bias"):
            renamed[f"{target}.joined.{part}"] = torch.cat(
                [weights[f"{source}.attention.self.{name}.{part}"] for name in ("query", "key", "value")]
            )
            for name, theirs in _LAYER_NAMES.items():
                renamed[f"{target}.{name}.{part}"] = weights[f"{source}.{theirs}.{part}"]
    return renamed


def _identity(backbone: Backbone, tokenizer_bytes: bytes) -> str:
    digest = hashlib.sha256(tokenizer_bytes)
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(canonical_json([name, list(tensor.shape)]))
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:ID_HEX_CHARS]


def normalised(embeddings: Tensor) -> Tensor:
    """Scale rows of float [n, dim] to length 1."""
    return functional.normalize(embeddings, dim=1)

"""A trained text tower: texts -> embeddings, and its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hashing.errors import CheckpointError, ConfigError
from hashing.identity import content_hash
from hashing.text.backbone import Backbone
from hashing.text.packed import Layout
from hashing.text.tower import Ladder, TextTowerShape, UpperLayers, tower_network

TOWER_FORMAT = "nearhit-text-tower"
TOWER_VERSION = 1
METADATA_KEY = "nearhit"
EMBEDDER_ID_PREFIX = "text-tower-"
ID_CHARS = 16
"""Hexadecimal characters of the content's hash in an embedder_id."""

BATCH_TEXTS = 64


class TextTower:
    """A backbone and what was learned on top of it. backbone_id: of the backbone that it was trained on.

    embedder_id: "text-tower-" and a hash of the shape, the weights and the backbone.
    """

    def __init__(self, backbone: Backbone, network: UpperLayers | Ladder, shape: TextTowerShape) -> None:
        self.backbone = backbone
        self.network = network.eval()
        self.shape = shape
        self.embedder_id = EMBEDDER_ID_PREFIX + self._content_hash()[:ID_CHARS]

    @property
    def dim(self) -> int:
        return self.backbone.shape.width

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts to float32 [n, dim], L2-normalised, in their order."""
        tokens = self.backbone.tokenise(texts, max_tokens=self.shape.max_tokens)
        order = np.argsort(tokens.lengths, kind="stable")
        depths = self.shape.depths(self.backbone.shape)
        device = self.backbone.segment.device
        embeddings = np.empty((len(texts), self.dim), dtype=np.float32)
        for start in range(0, order.size, BATCH_TEXTS):
            chosen = order[start : start + BATCH_TEXTS]
            layout = Layout.of(tokens.lengths[chosen], device=device)
            ids = torch.from_numpy(tokens.ids[tokens.places(chosen)]).long().to(device)
            states = self.backbone.states(ids, layout, depths=depths)
            embeddings[chosen] = self.network(states, layout).cpu().numpy()
        return embeddings

    def dump(self) -> bytes:
        """Serialise shape and learned weights, not the backbone; `load_text_tower` reads it."""
        document = {**self._document(), "embedder_id": self.embedder_id}
        metadata = {METADATA_KEY: json.dumps(document, sort_keys=True)}
        return save(self._tensors(), metadata=metadata)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()
        }

    def _document(self) -> dict[str, object]:
        return {
            "format": TOWER_FORMAT,
            "format_version": TOWER_VERSION,
            "backbone_id": self.backbone.backbone_id,
            "shape": self.shape.as_dict(),
        }

    def _content_hash(self) -> str:
        arrays = {name: tensor.numpy() for name, tensor in self._tensors().items()}
        return content_hash(arrays, self._document())


def load_text_tower(path: Path, *, backbone: Backbone) -> TextTower:
    """Read what `TextTower.dump` wrote to `path`, over the backbone that it was trained on.

    Raises: CheckpointError that names what is wrong with truncated, foreign, altered or inconsistent bytes,
    or with a tower of another backbone; OSError for a file that cannot be read.
    """
    try:
        with safe_open(str(path), framework="pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        document = json.loads(metadata[METADATA_KEY])
        if document["format"] != TOWER_FORMAT or document["format_version"] != TOWER_VERSION:
            raise CheckpointError(
                f"format is {document['format']!r} {document['format_version']!r}, expected {TOWER_FORMAT!r}"
                f" {TOWER_VERSION}"
            )
        if document["backbone_id"] != backbone.backbone_id:
            raise CheckpointError(
                f"the tower was trained on backbone {document['backbone_id']}, not {backbone.backbone_id}"
            )
        shape = TextTowerShape(**document["shape"])
        network = tower_network(backbone, shape)
        network.load_state_dict(tensors)
    except (SafetensorError, ConfigError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no text tower: {type(error).__name__}: {error}") from error
    network.to(backbone.segment.device)
    tower = TextTower(backbone, network, shape)
    if tower.embedder_id != document.get("embedder_id"):
        raise CheckpointError(f"content is {tower.embedder_id}, not {document.get('embedder_id')}")
    return tower

"""Hidden states of a frozen backbone, computed once for all texts and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hashing.identity import canonical_json
from hashing.text.backbone import Backbone, Tokens
from hashing.text.packed import Layout

logger = logging.getLogger(__name__)

DESCRIPTION_FILE = "hidden-states.json"
BATCH_TEXTS = 256
FORMAT_VERSION = 1


class HiddenStates:
    """States of every token of some texts after some layers, float16, memory-mapped.

    tokens: of the texts. width: of a state. A state takes 2 * width bytes for each token and depth.
    """

    def __init__(self, tokens: Tokens, columns: Sequence[NDArray[np.float16]]) -> None:
        self.tokens = tokens
        self._columns = tuple(columns)  # of each depth, float16 [t, width]

    def batch(
        self,
        texts: NDArray[np.int64],
        *,
        device: torch.device,
        dropped_share: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> tuple[list[Tensor], Layout]:
        """Read the states of some texts, float32 [t, width] for each depth, and how they lie.

        texts: int64 [n], in order of length for the least work. dropped_share: of the tokens that are left
        out, drawn by `rng`; a text keeps its first.
        """
        places, lengths = self.tokens.places(texts), self.tokens.lengths[texts]
        if dropped_share and rng is not None:
            kept = rng.random(places.size) >= dropped_share
            firsts = np.cumsum(lengths) - lengths
            kept[firsts] = True
            places, lengths = places[kept], np.add.reduceat(kept.astype(np.int64), firsts)
        states = [torch.from_numpy(column[places]).to(device).float() for column in self._columns]
        return states, Layout.of(lengths, device=device)


def hidden_states(
    backbone: Backbone,
    tokens: Tokens,
    *,
    depths: Sequence[int],
    folder: Path,
    bfloat16: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> HiddenStates:
    """Open the states that `folder` holds of these tokens, or compute them and write them there.

    depths: after how many layers, ascending. A file of other texts, another backbone or other depths, and one
    that is too short, is computed again: the description, written last, names the key and the sizes.
    bfloat16: compute in it.
    """
    key = _key(backbone, tokens, depths=depths, bfloat16=bfloat16)
    paths = [folder / f"depth-{depth}.float16" for depth in depths]
    shape = (tokens.ids.size, backbone.shape.width)
    size_bytes = shape[0] * shape[1] * np.dtype(np.float16).itemsize
    if not _is_complete(folder / DESCRIPTION_FILE, key, paths, size_bytes=size_bytes):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DESCRIPTION_FILE).unlink(missing_ok=True)
        columns = [np.memmap(path, dtype=np.float16, mode="w+", shape=shape) for path in paths]
        _compute(backbone, tokens, columns, depths=depths, bfloat16=bfloat16, progress=progress)
        for column in columns:
            column.flush()
        partial = folder / f"{DESCRIPTION_FILE}.partial"
        partial.write_text(json.dumps({"key": key, "size_bytes": size_bytes}))
        partial.replace(folder / DESCRIPTION_FILE)
    return HiddenStates(tokens, [np.memmap(path, dtype=np.float16, mode="r", shape=shape) for path in paths])


def _is_complete(description: Path, key: str, paths: Sequence[Path], *, size_bytes: int) -> bool:
    try:
        known = json.loads(description.read_text())
        complete = all(path.stat().st_size == size_bytes for path in paths)
    except (OSError, ValueError):
        return False
    if isinstance(known, dict) and known.get("key") == key and complete:
        return True
    logger.info("hidden states in %s are of other texts or cut short: computed again", description.parent)
    return False


def _key(backbone: Backbone, tokens: Tokens, *, depths: Sequence[int], bfloat16: bool) -> str:
    digest = hashlib.sha256(canonical_json([FORMAT_VERSION, backbone.backbone_id, list(depths), bfloat16]))
    digest.update(tokens.starts.astype("<i8").data)
    digest.update(tokens.ids.astype("<i4").data)
    return digest.hexdigest()


@torch.no_grad()
def _compute(
    backbone: Backbone,
    tokens: Tokens,
    columns: Sequence[NDArray[np.float16]],
    *,
    depths: Sequence[int],
    bfloat16: bool,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    device = backbone.segment.device
    order = np.argsort(tokens.lengths, kind="stable")
    for start in range(0, order.size, BATCH_TEXTS):
        chosen = order[start : start + BATCH_TEXTS]
        places = tokens.places(chosen)
        layout = Layout.of(tokens.lengths[chosen], device=device)
        ids = torch.from_numpy(tokens.ids[places]).long().to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            states = backbone.states(ids, layout, depths=depths)
        for column, state in zip(columns, states, strict=True):
            column[places] = state.half().cpu().numpy()
        if progress is not None:
            progress("states", min(start + BATCH_TEXTS, order.size), order.size)

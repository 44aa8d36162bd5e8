"""The state of a training between two passes, in one file."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)


def write_checkpoint(path: Path, *, key: str, content: dict[str, Any]) -> None:
    """Replace the file at `path` in one step. key: what the training was given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    torch.save({"key": key, **content}, partial)
    partial.replace(path)


def read_checkpoint(path: Path, *, key: str) -> dict[str, Any] | None:
    """Return what was written for `key`; None without a file, or for one that is damaged or of another key.

    Only tensors and plain values are read: nothing in the file is executed.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        logger.warning("checkpoint %s cannot be read and is not used: %s", path, error)
        return None
    if not isinstance(content, dict) or content.get("key") != key:
        logger.info("checkpoint %s is of another training and is not used", path)
        return None
    return content

"""The question of a lookup, store or search: words, or an embedding from a file."""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.arguments import CommandError


def add_query(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("text", nargs="?", default="", help="the question; needs an embedder in the server")
    parser.add_argument("--embedding", type=Path, metavar="FILE.npy", help="float32 [dim] or [n, dim]")
    parser.add_argument("--row", type=int, default=0, help="row of the file (default 0)")
    parser.add_argument("--embedder-id", default="", help="model that made it; default: the cache's")
    parser.add_argument("--scope", default="", help="what must be equal for an answer to be reusable")


def read_embedding(arguments: argparse.Namespace) -> NDArray[np.float32] | None:
    """The embedding that the arguments name, or None. Raises: CommandError."""
    if arguments.embedding is None:
        if not arguments.text:
            raise CommandError("give a text or --embedding")
        return None
    return read_row(arguments.embedding, arguments.row)


def read_row(path: Path, row: int) -> NDArray[np.float32]:
    """One row of a file of embeddings. Raises: CommandError."""
    try:
        stored = np.atleast_2d(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise CommandError(f"{path}: {error}") from error
    if not 0 <= row < len(stored):
        raise CommandError(f"{path} has {len(stored)} rows, not row {row}")
    return np.asarray(stored[row], dtype=np.float32)

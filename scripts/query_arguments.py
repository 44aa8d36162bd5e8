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
    try:
        stored = np.atleast_2d(np.load(arguments.embedding, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise CommandError(f"{arguments.embedding}: {error}") from error
    if not 0 <= arguments.row < len(stored):
        raise CommandError(f"{arguments.embedding} has {len(stored)} rows, not row {arguments.row}")
    return np.asarray(stored[arguments.row], dtype=np.float32)

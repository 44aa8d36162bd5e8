"""Labelled queries of a data folder: what is stored is its training split, what asks is another."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import Labels
from scripts.arguments import CommandError
from scripts.bench.data import unit_rows

FILE_NAME = "intents.npz"
_REPORTED_SPLIT = "test"
_TUNING_SPLIT = "val"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledQueries:
    """rows, queries: float32 [n, dim] and [q, dim], of norm 1. row_labels, query_labels: one of each."""

    rows: NDArray[np.float32]
    row_labels: Labels
    queries: NDArray[np.float32]
    query_labels: Labels


def load_intents(folder: Path, *, tuning: bool, query_limit: int, seed: int) -> LabelledQueries:
    """The training split of `intents.npz`, and at most `query_limit` drawn queries of the test split.

    tuning: queries of the validation split instead, for whoever chooses a parameter.
    Raises: CommandError for a missing file or array, an empty split, or one class only.
    """
    path = folder / FILE_NAME
    try:
        with np.load(path, allow_pickle=False) as archive:
            embeddings = archive["embeddings"]
            names, splits = archive["intent"].astype(str), archive["split"].astype(str)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CommandError(f"{path}: no .npz of embeddings, intent and split: {error}") from error
    if not len(embeddings) == len(names) == len(splits):
        raise CommandError(
            f"{path}: {len(embeddings)} embeddings, {len(names)} intents and {len(splits)} splits"
        )
    if not np.isfinite(embeddings).all():
        raise CommandError(f"{path}: embeddings are not finite")
    stored = np.flatnonzero(splits == "train")
    asked = np.flatnonzero(splits == (_TUNING_SPLIT if tuning else _REPORTED_SPLIT))
    if not (stored.size and asked.size):
        raise CommandError(f"{path}: no row in the splits that are needed, only in {sorted(set(splits))}")
    if len(set(names[stored])) < 2:
        raise CommandError(f"{path}: one class only")
    if asked.size > query_limit:
        asked = np.sort(np.random.default_rng(seed).choice(asked, size=query_limit, replace=False))
    return LabelledQueries(
        rows=unit_rows(embeddings[stored]),
        row_labels=[(name,) for name in names[stored].tolist()],
        queries=unit_rows(embeddings[asked]),
        query_labels=[(name,) for name in names[asked].tolist()],
    )

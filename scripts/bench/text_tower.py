"""Codes of a tower that learns from the text itself, on the pairs of `nearhit bench pairs`."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashing.embeddings import signs
from hashing.inference import Encoder
from scripts.arguments import CommandError
from scripts.bench.data import unit_rows
from scripts.bench.pair_folds import PairsFold, Scored, code_cosines


def score_text_tower(fold: PairsFold, *, bits: tuple[int, ...]) -> Iterator[Scored]:
    """Train a text tower on the fold's training pairs, and score its test pairs.

    `text_tower` is the cosine of its embeddings, `text_tower_codes` codes against codes, and with
    `_asymmetric` a real-valued query against codes. Raises: CommandError for a folder without texts, and
    without the extra `minilm`.
    """
    if not any(fold.texts):
        raise CommandError("--text-tower needs question_pairs.txt")
    encoder, rows = _embedded(fold)
    first, second = rows
    yield Scored(method="text_tower", bits=None, scores=code_cosines(first, second))
    queries, stored = encoder.instance_values(first), encoder.instance_values(second)
    for count in bits:
        query, code = queries[:, :count], signs(stored[:, :count])
        yield Scored(method="text_tower_codes", bits=count, scores=code_cosines(signs(query), code))
        yield Scored(method="text_tower_codes_asymmetric", bits=count, scores=code_cosines(query, code))


def _embedded(fold: PairsFold) -> tuple[Encoder, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """The encoder, and the tower's embeddings of both sides of the test pairs."""
    try:
        from hashing.deep.text_config import TextTowerConfig
        from hashing.deep.text_training import train_text_tower
        from hashing.text.backbone import read_backbone
        from service.embedder_process import minilm_folder

        folder = minilm_folder()
    except ModuleNotFoundError as error:
        raise CommandError(f"--text-tower needs {error.name}: pip install '.[train,minilm]'") from error
    kept, pairs = fold.seen()
    read = np.unique(pairs[:, :2])  # a text in no pair teaches nothing
    pairs[:, :2] = np.searchsorted(read, pairs[:, :2])
    with tempfile.TemporaryDirectory() as states:
        trained = train_text_tower(
            [fold.texts[row] for row in kept[read].tolist()],
            pairs,
            backbone=read_backbone(folder),
            config=TextTowerConfig(code_bits=256, seed=fold.seed),
            folder=Path(states),
        )
    asked, place = np.unique(fold.test[:, :2], return_inverse=True)
    embeddings = unit_rows(trained.tower.embed([fold.texts[row] for row in asked.tolist()]))
    sides = place.reshape(-1, 2)
    return trained.encoder, (embeddings[sides[:, 0]], embeddings[sides[:, 1]])

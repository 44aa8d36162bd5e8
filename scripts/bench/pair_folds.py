"""Labelled question pairs, split by connected component, and what scores them."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from scripts.arguments import CommandError
from scripts.bench.data import unit_rows
from scripts.row_files import read_lines

TEST_SHARE = 0.2
QUICK_PAIRS = 6000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairsFold:
    """One seed's part. rows: float32 [n, dim], unit; texts: of each, "" where unknown. training, test: int64
    [p, 3] of row, row, label."""

    rows: NDArray[np.float32]
    texts: list[str]
    training: NDArray[np.int64]
    test: NDArray[np.int64]
    seed: int

    @property
    def similar(self) -> NDArray[np.bool_]:
        """Which test pairs are labelled the same."""
        similar: NDArray[np.bool_] = self.test[:, 2] == 1
        return similar

    def seen(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows that training may read, those in no test pair, and the training pairs among them."""
        kept = np.setdiff1d(np.arange(len(self.rows)), np.unique(self.test[:, :2]))
        pairs = self.training.copy()
        pairs[:, :2] = np.searchsorted(kept, pairs[:, :2])
        return kept, pairs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """Scores of the test pairs, float [p], higher is more alike; bits None for floats."""

    method: str
    bits: int | None
    scores: NDArray[np.floating]


def load_fold(folder: Path, *, seed: int, quick: bool) -> PairsFold:
    """Read the folder and split its pairs. Raises: CommandError."""
    try:
        from hashing.deep.pairs import check_pairs, split_pairs
    except ImportError as error:
        raise CommandError("this needs the extra `train`: pip install nearhit[train]") from error
    path = folder / "question_pairs.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            rows, pairs = unit_rows(archive["embeddings"]), archive["pairs"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CommandError(f"{path}: no .npz of embeddings and pairs: {error}") from error
    texts = read_question_texts(path.with_suffix(".txt"), row_count=len(rows))
    if quick:
        pairs = pairs[:QUICK_PAIRS]
        kept, local = np.unique(pairs[:, :2], return_inverse=True)
        pairs = np.column_stack([local.reshape(-1, 2), pairs[:, 2]])
        rows, texts = rows[kept], [texts[row] for row in kept.tolist()]
    checked = check_pairs(pairs, row_count=len(rows))
    split = split_pairs(
        checked, row_count=len(rows), validation_share=TEST_SHARE, rng=np.random.default_rng(seed)
    )
    return PairsFold(rows=rows, texts=texts, training=split.training, test=split.validation, seed=seed)


def read_question_texts(path: Path, *, row_count: int) -> list[str]:
    """Line i of the file for row i; all unknown where there is no file. Raises: CommandError."""
    if not path.is_file():
        return [""] * row_count
    lines = read_lines(path)
    if len(lines) != row_count:
        raise CommandError(f"{path}: {len(lines)} lines for {row_count} rows")
    return lines


def code_cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosines of rows pair by pair, float32 [p, b] both; rounded, so that codes which tie tie exactly."""
    cosines: NDArray[np.float32] = np.einsum("pb,pb->p", unit_rows(first), unit_rows(second))
    return np.round(cosines, 6)

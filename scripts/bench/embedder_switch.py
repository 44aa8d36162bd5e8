"""A change of embedder: labelled duplicates found by mapped queries among what the old embedder stored.

The folder holds question_pairs.npz (`embeddings` [n, dim] of the old embedder, all of them stored; `pairs`
[p, 3] of row, row, 1 or 0). A second .npz holds what the new embedder makes of some of the texts: `rows`, int
[k], and `embeddings` [k, new_dim]. For each seed a share of the pairs is held out by connected component; the
map is fitted on texts of no such component. Each held-out duplicate that the new embedder has read is a
query, for the other text of its pair.

duplicate_recall_kept: recall of the other text among the first 1 or 10 stored rows, the query's own row left
out, divided by that of the old embedder's own query. Methods: `mapped`; its rivals `ridge`, `procrustes`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from hashing.embedder_alignment import procrustes, ridge
from hashing.embedder_map import fit_embedder_map
from scripts.arguments import CommandError
from scripts.bench.data import unit_rows
from scripts.bench.lines import Figure
from scripts.bench.seeds import SeededFigures

CALIBRATION_SIZES = (1000, 4400)
RANKS = (1, 10)
METHODS = ("mapped", "ridge", "procrustes")
TEST_SHARE = 0.4
QUERY_LIMIT, QUICK_QUERIES = 2000, 400
CHUNK_QUERIES = 256
TIE = 1e-6
OLD, NEW = "stored", "new"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SwitchFold:
    """One seed's part. stored: float32 [n, dim], unit. calibration_new, calibration_old: float32 [c, new_dim]
    and [c, dim], row i of one text. queries: float32 [q, new_dim]; query_rows, duplicate_rows: int64 [q],
    rows of `stored`."""

    stored: NDArray[np.float32]
    calibration_new: NDArray[np.float32]
    calibration_old: NDArray[np.float32]
    queries: NDArray[np.float32]
    query_rows: NDArray[np.int64]
    duplicate_rows: NDArray[np.int64]
    seed: int


def switch_figures(folder: Path, new_embeddings: Path, *, seeds: int, quick: bool) -> SeededFigures:
    """Figures of every seed; quick: one seed, fewest pairs and queries. Raises: CommandError."""
    figures = SeededFigures()
    for seed in range(1 if quick else seeds):
        fold = load_switch_fold(folder, new_embeddings, seed=seed, quick=quick)
        for figure in fold_figures(fold, sizes=CALIBRATION_SIZES[:1] if quick else CALIBRATION_SIZES):
            figures.add(figure)
    return figures


def fold_figures(fold: SwitchFold, *, sizes: tuple[int, ...] = CALIBRATION_SIZES) -> Iterator[Figure]:
    """The figures of one seed. Raises: CommandError where there are fewer calibration texts than a size."""
    own = _ranks(fold, fold.stored[fold.query_rows])
    for size in sizes:
        if size > len(fold.calibration_new):
            raise CommandError(
                f"{size} calibration texts are wanted, there are {len(fold.calibration_new)} outside the test"
            )
        for method in METHODS:
            ranks = _ranks(fold, _mapped(fold, method, size=size))
            for count in RANKS:
                yield Figure(
                    bench="lifelong",
                    case=f"embedder switch, {size} pairs, first {count}",
                    metric="duplicate_recall_kept",
                    method=method,
                    value=float((ranks < count).mean() / max(float((own < count).mean()), TIE)),
                    unit="share",
                    dataset="question_pairs",
                    n=len(fold.queries),
                )


def load_switch_fold(folder: Path, new_embeddings: Path, *, seed: int, quick: bool) -> SwitchFold:
    """Read both files and split the texts. Raises: CommandError."""
    try:
        from hashing.deep.pairs import check_pairs, connected_components, split_pairs
    except ImportError as error:
        raise CommandError("this needs the extra `train`: pip install nearhit[train]") from error
    old = _read(folder / "question_pairs.npz", "embeddings", "pairs")
    stored, pairs = unit_rows(old["embeddings"]), check_pairs(old["pairs"], row_count=len(old["embeddings"]))
    new = _read(new_embeddings, "rows", "embeddings")
    rows = _checked_rows(new_embeddings, new, row_count=len(stored))
    place = np.full(len(stored), -1)
    place[rows] = np.arange(len(rows))
    component = connected_components(pairs[:, 0], pairs[:, 1], row_count=len(stored))
    rng = np.random.default_rng(seed)
    read = (place[pairs[:, :2]] >= 0).any(axis=1)
    test = split_pairs(pairs[read], row_count=len(stored), validation_share=TEST_SHARE, rng=rng).validation
    duplicates = test[test[:, 2] == 1]
    directed = np.concatenate([duplicates[:, :2], duplicates[:, 1::-1]])
    directed = directed[place[directed[:, 0]] >= 0]
    directed = directed[rng.permutation(len(directed))[: QUICK_QUERIES if quick else QUERY_LIMIT]]
    calibration = rng.permutation(rows[~np.isin(component[rows], component[test[:, 0]])])
    embeddings = unit_rows(new["embeddings"])
    return SwitchFold(
        stored=stored,
        calibration_new=embeddings[place[calibration]],
        calibration_old=stored[calibration],
        queries=embeddings[place[directed[:, 0]]],
        query_rows=directed[:, 0],
        duplicate_rows=directed[:, 1],
        seed=seed,
    )


def _mapped(fold: SwitchFold, method: str, *, size: int) -> NDArray[np.float32]:
    """The queries in the old space, float32 [q, dim], unit."""
    new, old = fold.calibration_new[:size], fold.calibration_old[:size]
    if method == "mapped":
        fitted = fit_embedder_map(
            new, old, from_embedder=NEW, to_embedder=OLD, stored=fold.stored, seed=fold.seed
        )
        return fitted.apply(fold.queries)
    new_mean, old_mean = new.mean(axis=0, dtype=np.float64), old.mean(axis=0, dtype=np.float64)
    solve = ridge if method == "ridge" else procrustes
    weight = solve(new - new_mean, old - old_mean)
    return unit_rows((fold.queries - new_mean) @ weight + old_mean)


def _ranks(fold: SwitchFold, queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many stored rows but the query's own are nearer than its duplicate, int64 [q]."""
    ranks = []
    for start in range(0, len(queries), CHUNK_QUERIES):
        chunk = slice(start, start + CHUNK_QUERIES)
        scores = queries[chunk] @ fold.stored.T
        each = np.arange(len(scores))
        edge = scores[each, fold.duplicate_rows[chunk]] + TIE
        scores[each, fold.query_rows[chunk]] = -2.0
        ranks.append((scores > edge[:, None]).sum(axis=1))
    return np.concatenate(ranks)


def _read(path: Path, *keys: str) -> dict[str, NDArray[np.generic]]:
    """Raises: CommandError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in keys}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CommandError(f"{path}: no .npz of {' and '.join(keys)}: {error}") from error


def _checked_rows(path: Path, arrays: dict[str, NDArray[np.generic]], *, row_count: int) -> NDArray[np.int64]:
    """Raises: CommandError for rows that are no distinct places, or not one an embedding."""
    rows, embeddings = arrays["rows"], arrays["embeddings"]
    if rows.dtype.kind not in "iu" or rows.ndim != 1 or embeddings.ndim != 2 or len(rows) != len(embeddings):
        raise CommandError(f"{path}: rows must be integers [k] beside embeddings [k, dim]")
    places = rows.astype(np.int64)
    if len(np.unique(places)) != len(places) or (places < 0).any() or (places >= row_count).any():
        raise CommandError(f"{path}: rows must be distinct and below {row_count}")
    return places

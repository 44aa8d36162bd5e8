"""Rows and queries that benchmarks measure on, made from real embeddings; no other rows, and no noise."""

import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import faiss
import numpy as np
from numpy.typing import NDArray

from scripts.arguments import CommandError

HELD_OUT_EVERY = 80
"""Every row whose number is 0 modulo this is a query of a reported run, 40 one of a tuning run."""

QUICK_ROWS = 20_000
_QUICK_IMAGES = 6_000
GROWTH_SCALES = (0.5, 1.1)
CHUNK_ROWS = 16_384
TIE = 1e-6
"""Cosine distances closer than this are equal: float32 sums in another order differ by as much."""

_FASHION_ROWS = "train-images-idx3-ubyte"
_FASHION_QUERIES = "t10k-images-idx3-ubyte"
_FASHION_QUERY_EVERY = 8
_IDX_HEADER_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """rows: float16 [n, dim] as they are stored; queries: float32 [q, dim], none of the rows; of norm 1."""

    name: str
    rows: NDArray[np.float16]
    queries: NDArray[np.float32]

    @property
    def dim(self) -> int:
        """Dimension of rows and queries."""
        return int(self.rows.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truth:
    """The nearest rows of each query by exact float32 cosine, [q, k], the nearest first."""

    ids: NDArray[np.int64]
    distances: NDArray[np.float32]


def unit_rows(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Rows [n, dim] of norm 1, float32; a row of zeros stays one."""
    wide = rows.astype(np.float32)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.float32(1e-12))
    return wide


def load_real(folder: Path, *, quick: bool, tuning: bool, held_out_every: int = HELD_OUT_EVERY) -> Dataset:
    """All sentence embeddings of a data folder, questions then intents, less the held-out queries.

    Of the two files either may be missing. Queries are the rows whose number is 0 modulo `held_out_every`,
    or with `tuning` half of it, so that whoever chooses a parameter never sees a query of a reported run.
    Neither part is ever a row. quick: of every file the first rows only, QUICK_ROWS in all.
    Raises: CommandError.
    """
    named = {"questions": folder / "question_pairs.npz", "intents": folder / "intents.npz"}
    found = {name: path for name, path in named.items() if path.is_file()}
    if not found:
        raise CommandError(f"{' or '.join(str(path) for path in named.values())}: no such file")
    parts = [_read_embeddings(path)[: QUICK_ROWS // len(found) if quick else None] for path in found.values()]
    if len({part.shape[1] for part in parts}) > 1:
        raise CommandError(
            f"{folder}: embeddings of {' and '.join(str(part.shape[1]) for part in parts)} columns"
        )
    embeddings = np.concatenate(parts)
    number = np.arange(len(embeddings)) % held_out_every
    middle = held_out_every // 2
    kept = (number != 0) & (number != middle)
    return Dataset(
        name="+".join(found),
        rows=unit_rows(embeddings[kept]).astype(np.float16),
        queries=unit_rows(embeddings[number == (middle if tuning else 0)]),
    )


def load_fashion(path: Path, *, quick: bool, tuning: bool) -> Dataset:
    """Fashion-MNIST as vectors of 784 pixels: the training images are the rows.

    path: the folder of the four idx files, gzipped or not, or any file in it. Queries are the test images
    whose number is 0 modulo 8, or with `tuning` 4.
    Raises: CommandError.
    """
    folder = path if path.is_dir() else path.parent
    rows = _read_images(folder, _FASHION_ROWS)[: _QUICK_IMAGES if quick else None]
    start = _FASHION_QUERY_EVERY // 2 if tuning else 0
    queries = _read_images(folder, _FASHION_QUERIES)[start::_FASHION_QUERY_EVERY]
    return Dataset(
        name="fashion-mnist",
        rows=unit_rows(rows).astype(np.float16),
        queries=unit_rows(queries[: 250 if quick else None]),
    )


def grow(dataset: Dataset, *, row_count: int, seed: int) -> Dataset:
    """The same queries on more rows: the given ones, and new ones made from them, shuffled.

    A new row is normalise(x_i + a unit(x_j - x_k)) with i, j, k drawn from the rows and a from GROWTH_SCALES:
    it lies off a real row in a direction in which real rows differ. With fewer asked for, a draw of the rows.
    """
    rng = np.random.default_rng(seed)
    have = len(dataset.rows)
    places = rng.permutation(row_count)
    if row_count <= have:
        chosen = np.sort(rng.permutation(have)[:row_count])
        return replace(dataset, rows=dataset.rows[chosen])
    rows: NDArray[np.float16] = np.empty((row_count, dataset.dim), dtype=np.float16)
    rows[places[:have]] = dataset.rows
    base = unit_rows(dataset.rows)
    for start in range(have, row_count, CHUNK_ROWS):
        taken = places[start : start + CHUNK_ROWS]
        i, j, k = rng.integers(0, have, size=(3, taken.size))
        scales = rng.uniform(*GROWTH_SCALES, size=(taken.size, 1)).astype(np.float32)
        rows[taken] = unit_rows(base[i] + scales * unit_rows(base[j] - base[k])).astype(np.float16)
    return replace(dataset, name=f"{dataset.name} grown", rows=rows)


def reduce_dim(dataset: Dataset, *, dim: int) -> Dataset:
    """Project rows and queries on the `dim` principal components of the rows, and normalise.

    Raises: CommandError where there are fewer dimensions.
    """
    if dim > dataset.dim:
        raise CommandError(f"{dataset.name} has {dataset.dim} dimensions, not {dim}")
    if dim == dataset.dim:
        return dataset
    sample = dataset.rows[:: max(1, len(dataset.rows) // 50_000)].astype(np.float32)
    centred = sample - sample.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)  # ascending
    basis = np.ascontiguousarray(axes[:, -dim:])
    rows: NDArray[np.float16] = np.empty((len(dataset.rows), dim), dtype=np.float16)
    for start, chunk in unit_chunks(dataset.rows):
        rows[start : start + len(chunk)] = unit_rows(chunk @ basis).astype(np.float16)
    return replace(dataset, rows=rows, queries=unit_rows(dataset.queries @ basis))


def unit_chunks(rows: NDArray[np.float16]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The rows as float32 of norm 1, CHUNK_ROWS at a time, each with the number of its first row."""
    for start in range(0, len(rows), CHUNK_ROWS):
        yield start, unit_rows(rows[start : start + CHUNK_ROWS])


def exact_nearest(dataset: Dataset, *, count: int) -> Truth:
    """Measure every row against every query, in float32 on the rows as they are stored."""
    ids = np.empty((len(dataset.queries), 0), dtype=np.int64)
    cosines = np.empty((len(dataset.queries), 0), dtype=np.float32)
    for start, chunk in unit_chunks(dataset.rows):
        top = min(count, len(chunk))
        near, found = faiss.knn(dataset.queries, chunk, top, metric=faiss.METRIC_INNER_PRODUCT)
        cosines = np.concatenate([cosines, near], axis=1)
        ids = np.concatenate([ids, found + start], axis=1)
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        cosines, ids = np.take_along_axis(cosines, best, axis=1), np.take_along_axis(ids, best, axis=1)
    return Truth(ids=ids, distances=(1 - cosines).astype(np.float32))


def recall(dataset: Dataset, truth: Truth, found: NDArray[np.int64], *, k: int) -> float:
    """The share of the true k nearest that is among the first k found; -1 in `found` is no row.

    found: int64 [q, >= k]. By distance, so that of rows equally near any is right: the data has equal rows.
    """
    within = truth.distances[:, k - 1] + np.float32(TIE)
    right = 0
    for query, ids, limit in zip(dataset.queries, found[:, :k], within, strict=True):
        distinct = np.unique(ids[ids >= 0])
        right += int(np.count_nonzero(1 - unit_rows(dataset.rows[distinct]) @ query <= limit))
    return right / (k * len(found))


def _read_embeddings(path: Path) -> NDArray[np.floating]:
    """The array `embeddings` [n, dim] of an .npz file. Raises: CommandError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            embeddings: NDArray[np.floating] = archive["embeddings"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CommandError(f"{path}: no .npz of embeddings: {error}") from error
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f":
        raise CommandError(
            f"{path}: embeddings are {embeddings.dtype}{list(embeddings.shape)}, not float [n, dim]"
        )
    if not np.isfinite(embeddings).all():
        raise CommandError(f"{path}: embeddings are not finite")
    return embeddings


def _read_images(folder: Path, name: str) -> NDArray[np.uint8]:
    """Images of an idx file as uint8 [n, pixels]. Raises: CommandError."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            count, height, width = np.frombuffer(content, dtype=">u4", count=3, offset=4).tolist()
            pixels = np.frombuffer(content, dtype=np.uint8, offset=_IDX_HEADER_BYTES)
            if pixels.size != math.prod((count, height, width)):
                raise CommandError(f"{path}: not an idx file of images")
            return pixels.reshape(count, height * width)
    raise CommandError(f"{folder / name}[.gz]: no such file (Debian package dataset-fashion-mnist)")

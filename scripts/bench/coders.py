"""The codes that a benchmark compares, each as what stands for a stored row and for a query."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import faiss
import numpy as np
from numpy.typing import NDArray

from hashing.embeddings import signs
from hashing.inference import Encoder
from hashing.projection import Projection, fit_itq, fit_rotation
from scripts.arguments import CommandError, ProgressBars
from scripts.bench.data import HELD_OUT_EVERY, unit_rows

PAIRS_FILE = "question_pairs.npz"
_ITQ_ITERATIONS = 20
_PQ_TRAINING_ROWS = 10_000
_LEAST_PAIRS = 1_000

# Typed loosely: the library's stubs do not know what its Python layer adds to the compiled classes.
_faiss: Any = faiss

Map = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""float32 [n, dim] -> float32 [n, width]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coder:
    """A row's score is the inner product of `stored(row)` with `query(q)`, or `coded(q)` of a coded query.

    bits: of the code; None for what is no code.
    """

    method: str
    bits: int | None
    stored: Map
    query: Map
    coded: Map | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitSettings:
    """What the methods are given besides rows. paired: learned from labelled pairs, None without any."""

    bits: Sequence[int]
    seed: int
    quick: bool
    paired: Encoder | None
    progress: ProgressBars


def fit_coders(rows: NDArray[np.float32], *, settings: FitSettings) -> Iterator[Coder]:
    """Every method fitted on the rows, float32 [n, dim], at every width."""
    yield Coder(method="cosine", bits=None, stored=_same, query=_same, coded=None)
    yield from _linear_coders(rows, settings=settings)
    for bits in settings.bits:
        yield _quantiser(rows, bits=bits, seed=settings.seed)
    yield from _learned_coders(rows, settings=settings)


def fit_pairs(
    embeddings: NDArray[np.floating],
    pairs: NDArray[np.int64],
    *,
    bits: int,
    seed: int,
    quick: bool,
    progress: ProgressBars,
) -> Encoder:
    """An encoder learned from labelled pairs, int64 [p, 3], of embeddings, float [n, dim]."""
    from hashing.deep.config import parse_config, read_preset
    from hashing.deep.training import train
    from hashing.deep.training_set import TrainingSet

    config = parse_config(read_preset("pairs"), code_bits=bits, seed=seed)
    if quick:
        config = replace(config, optimiser=replace(config.optimiser, epochs=1))
    questions = TrainingSet(embeddings={"text": unit_rows(embeddings)}, pairs=pairs)
    return train(questions, config=config, device="cpu", progress=progress).encoder


def load_pairs(
    folder: Path, *, held_out_every: int = HELD_OUT_EVERY
) -> tuple[NDArray[np.floating], NDArray[np.int64]] | None:
    """Those labelled pairs that touch no query of a run, and the embeddings they are of; None where too few.

    Raises: CommandError for a file that is there and cannot be read.
    """
    path = folder / PAIRS_FILE
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "pairs" not in archive:
                return None
            embeddings, pairs = archive["embeddings"], archive["pairs"].astype(np.int64)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CommandError(f"{path}: no .npz of embeddings and pairs: {error}") from error
    kept = (pairs[:, :2] % (held_out_every // 2) != 0).all(axis=1)
    if np.count_nonzero(kept) < _LEAST_PAIRS:
        return None
    rows, places = np.unique(pairs[kept, :2], return_inverse=True)
    return embeddings[rows], np.column_stack([places.reshape(-1, 2), pairs[kept, 2]])


def _linear_coders(rows: NDArray[np.float32], *, settings: FitSettings) -> Iterator[Coder]:
    """Sign of the centred components, random hyperplanes, ITQ of each width, prefixes of the widest ITQ."""
    dim = rows.shape[1]
    centred = Projection(mean=rows.mean(axis=0), weight=np.eye(dim, dtype=np.float32))
    for bits in sorted({min(bits, dim) for bits in settings.bits} | {dim}):
        yield _prefix("sign", centred.project, bits)
    widest = max(settings.bits)
    for bits in settings.bits:
        rotation = fit_rotation(rows, code_bits=bits, seed=settings.seed)
        yield _prefix("lsh", rotation.project, bits)
    for bits in settings.bits:
        itq = fit_itq(rows, code_bits=bits, iterations=_ITQ_ITERATIONS, seed=settings.seed)
        yield _prefix("itq", itq.project, bits)
        if bits == widest:
            yield from (
                _prefix("itq_nested", itq.project, shorter) for shorter in settings.bits if shorter < bits
            )


def _learned_coders(rows: NDArray[np.float32], *, settings: FitSettings) -> Iterator[Coder]:
    """Prefixes of one code learned from the rows, and of the one learned from pairs where there is one."""
    from hashing.deep.config import parse_config, read_preset
    from hashing.deep.training import train
    from hashing.deep.training_set import TrainingSet

    config = parse_config(read_preset("unlabelled"), code_bits=max(settings.bits), seed=settings.seed)
    learned = train(
        TrainingSet(embeddings={"text": rows}), config=config, device="cpu", progress=settings.progress
    ).encoder
    yield from (_prefix("learned", learned.instance_values, bits) for bits in settings.bits)
    if settings.paired is not None:
        project = settings.paired.instance_values
        yield from (_prefix("learned_pairs", project, bits) for bits in settings.bits)


def _prefix(method: str, project: Map, bits: int) -> Coder:
    """The leading bits of a code that keeps signs."""
    return Coder(
        method=method,
        bits=bits,
        stored=lambda rows: signs(project(rows)[:, :bits]),
        query=lambda rows: np.ascontiguousarray(project(rows)[:, :bits]),
        coded=lambda rows: signs(project(rows)[:, :bits]),
    )


def _quantiser(rows: NDArray[np.float32], *, bits: int, seed: int) -> Coder:
    """Product quantisation of as many bits (Jégou, Douze & Schmid, 2011), by faiss: a byte a subspace.

    It is no binary code: distances take table look-ups, not popcounts. Rows are padded with zeros where their
    dimensions do not divide into bits / 8 subspaces.
    """
    subspaces = bits // 8
    padding = -rows.shape[1] % subspaces

    def padded(some: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.pad(some, ((0, 0), (0, padding)))

    quantiser = _faiss.ProductQuantizer(rows.shape[1] + padding, subspaces, 8)
    quantiser.cp.seed = seed + 1
    quantiser.cp.max_points_per_centroid = 256
    quantiser.cp.min_points_per_centroid = 1
    sample = np.random.default_rng(seed).permutation(len(rows))[:_PQ_TRAINING_ROWS]
    quantiser.train(padded(rows[sample]))

    def decoded(some: NDArray[np.float32]) -> NDArray[np.float32]:
        restored: NDArray[np.float32] = quantiser.decode(quantiser.compute_codes(padded(some)))
        return restored

    def stored(some: NDArray[np.float32]) -> NDArray[np.float32]:
        restored = decoded(some)
        # <q, r> - |r|^2 / 2 orders rows as their Euclidean distance from q does.
        return np.column_stack([restored, -0.5 * (restored**2).sum(axis=1)]).astype(np.float32)

    return Coder(
        method="pq",
        bits=bits,
        stored=stored,
        query=lambda some: np.pad(padded(some), ((0, 0), (0, 1)), constant_values=1),
        coded=lambda some: np.pad(decoded(some), ((0, 0), (0, 1)), constant_values=1),
    )


def _same(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows

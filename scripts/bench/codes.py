"""Recall of codes, learned and not, against exact float neighbours; class retrieval by codes.

recall_at_10_in_N: share of the exact 10 nearest of a held-out query that are among the first N by the code.
Methods: `lsh` (random rotation), `itq`, `sign` (centred; up to a bit a dimension), `pq` (faiss, as many
bytes), `cosine` (floats), `itq_nested` (prefixes of the widest ITQ), `learned` (prefixes of one code learned
from the rows alone), `learned_pairs` (of one learned from labelled pairs, where the folder has them: what it
ranks by is not cosine). With `_asymmetric` the query stays real-valued, else both sides are coded.
class_map: mAP of the labelled queries over the training split, for these codes fitted on that split, and for
`label_codes` in closed form. Each seed draws rows and queries of its own. Needs the extra `train`.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import target_bits
from hashing.config import EncoderConfig, require_bits
from hashing.embeddings import signs
from hashing.label_part import empty_state
from hashing.metrics import QUERY_CHUNK, mean_average_precision, top_columns
from scripts.arguments import CommandError, ProgressBars, positive_integer
from scripts.bench.coders import Coder, FitSettings, fit_coders, fit_pairs, load_pairs
from scripts.bench.data import TIE, Dataset, grow, load_real, unit_rows
from scripts.bench.intents import FILE_NAME, LabelledQueries, load_intents
from scripts.bench.lines import Figure, add_bench_arguments
from scripts.bench.plot import write_curves
from scripts.bench.seeds import SeededFigures, print_means
from scripts.bench.timing import one_thread

TOP_K = 10
CANDIDATES = (10, 100)
_ROWS, _QUICK_ROWS = 30_000, 15_000
_QUERIES, _QUICK_QUERIES = 500, 200
_CLASS_QUERIES, _QUICK_CLASS_QUERIES = 200, 100
_QUICK_BITS = (64, 128)
_RIVAL = "itq"
_PLOTTED = "recall_at_10_in_100"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_bench_arguments(parser)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with question_pairs.npz, intents.npz or both"
    )
    parser.add_argument("--seeds", type=positive_integer, default=3, metavar="N", help="default %(default)s")
    parser.add_argument("--bits", type=int, nargs="+", help="code widths (default 64 128 256; quick 64 128)")
    parser.add_argument("--rows", type=positive_integer, help="at most so many (default 30000; quick 15000)")
    parser.add_argument("--tuning", action="store_true", help="queries that parameters may be chosen on")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write FILE.png and FILE.svg")


def run(arguments: argparse.Namespace) -> int:
    """Measure."""
    bits = sorted(set(arguments.bits or (_QUICK_BITS if arguments.quick else (64, 128, 256))))
    for width in bits:
        require_bits("--bits", width)
    if find_spec("torch") is None:
        raise CommandError("needs the extra `train`: pip install nearhit[train]")
    progress = ProgressBars(silent=arguments.json)
    figures = SeededFigures()
    dataset = load_real(arguments.data, quick=False, tuning=arguments.tuning)
    pairs = load_pairs(arguments.data)
    with one_thread():
        for seed in range(1 if arguments.quick else arguments.seeds):
            paired = None
            if pairs is not None:
                paired = fit_pairs(
                    *pairs, bits=max(bits), seed=seed, quick=arguments.quick, progress=progress
                )
            settings = FitSettings(
                bits=bits, seed=seed, quick=arguments.quick, paired=paired, progress=progress
            )
            for figure in _measure_recall(dataset, arguments, settings=settings):
                figures.add(figure)
            if (arguments.data / FILE_NAME).is_file():
                for figure in _measure_classes(arguments, settings=settings):
                    figures.add(figure)
    progress.close()
    print_means(figures, rival=_RIVAL, as_json=arguments.json)
    if arguments.plot is not None:
        _plot(list(figures.means()), arguments.plot, dataset=dataset)
    return 0


def _measure_recall(
    dataset: Dataset, arguments: argparse.Namespace, *, settings: FitSettings
) -> Iterator[Figure]:
    """The recalls of every method of one seed."""
    row_count = arguments.rows or (_QUICK_ROWS if arguments.quick else _ROWS)
    drawn = grow(dataset, row_count=min(row_count, len(dataset.rows)), seed=settings.seed)
    rng = np.random.default_rng(settings.seed)
    # In random order, as of rows whose codes are equally far the first counts as the nearer.
    rows = rng.permutation(unit_rows(drawn.rows))
    queries = rng.permutation(dataset.queries)[: _QUICK_QUERIES if arguments.quick else _QUERIES]
    if len(rows) <= max(CANDIDATES) or not len(queries):
        raise CommandError(f"{arguments.data}: {len(rows)} rows and {len(queries)} queries are too few")
    truth = Neighbours.of(queries, rows)
    for coder in fit_coders(rows, settings=settings):
        stored = coder.stored(rows)
        for method, asked in _asked(coder, queries):
            for count, value in recalls(asked, stored, truth=truth).items():
                yield Figure(
                    bench="codes",
                    dataset=dataset.name,
                    case=_case(len(rows), coder.bits),
                    metric=f"recall_at_{TOP_K}_in_{count}",
                    method=method,
                    value=value,
                    unit="share",
                    n=len(queries),
                    bits=coder.bits,
                )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Neighbours:
    """cosines: float32 [q, n], of queries and rows. least: float32 [q, 1], of the TOP_K-th nearest row."""

    cosines: NDArray[np.float32]
    least: NDArray[np.float32]

    @classmethod
    def of(cls, queries: NDArray[np.float32], rows: NDArray[np.float32]) -> "Neighbours":
        """Measure all of unit float32 [q, dim] and [n, dim], n at least TOP_K."""
        cosines = queries @ rows.T
        nearest = np.take_along_axis(cosines, top_columns(cosines, count=TOP_K), axis=1)
        return cls(cosines=cosines, least=nearest.min(axis=1, keepdims=True))


def recalls(
    asked: NDArray[np.float32], stored: NDArray[np.float32], *, truth: Neighbours
) -> dict[int, float]:
    """Return the share of the exact TOP_K nearest rows that are among the first by code, for CANDIDATES.

    asked: float32 [q, width], stored: float32 [n, width], n above each of CANDIDATES, scored by their inner
    product. Of rows equally near any is right.
    """
    found = dict.fromkeys(CANDIDATES, 0)
    for start in range(0, len(asked), QUERY_CHUNK):
        chunk = slice(start, start + QUERY_CHUNK)
        scores = asked[chunk] @ stored.T  # [<= QUERY_CHUNK, n]
        best = top_columns(scores, count=max(CANDIDATES))  # [<= QUERY_CHUNK, most candidates]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, axis=1)
        cosines = np.take_along_axis(truth.cosines[chunk], best, axis=1)
        right = cosines >= truth.least[chunk] - np.float32(TIE)
        for count in CANDIDATES:
            found[count] += int(np.minimum(right[:, :count].sum(axis=1), TOP_K).sum())
    return {count: hits / (TOP_K * len(asked)) for count, hits in found.items()}


def _measure_classes(arguments: argparse.Namespace, *, settings: FitSettings) -> Iterator[Figure]:
    """The mAP of class retrieval of every method of one seed."""
    intents = load_intents(
        arguments.data,
        tuning=arguments.tuning,
        query_limit=_QUICK_CLASS_QUERIES if arguments.quick else _CLASS_QUERIES,
        seed=settings.seed,
    )
    names = np.array([label for (label,) in intents.row_labels])
    relevant = np.array([label for (label,) in intents.query_labels])[:, None] == names[None, :]  # [q, n]

    def figure(method: str, bits: int | None, scores: NDArray[np.float32]) -> Figure:
        return Figure(
            bench="codes",
            dataset="intents",
            case=_case(len(names), bits),
            metric="class_map",
            method=method,
            value=mean_average_precision(scores, relevant, seed=settings.seed),
            unit="share",
            n=len(scores),
            bits=bits,
        )

    for coder in fit_coders(intents.rows, settings=settings):
        stored = coder.stored(intents.rows)
        for method, asked in _asked(coder, intents.queries):
            yield figure(method, coder.bits, asked @ stored.T)
    values, codes = _label_codes(intents, settings=settings)
    for bits in settings.bits:
        # Words of class codes are drawn, and columns of the weight solved, each on its own: a prefix of the
        # widest label code is the label code of that width.
        stored = codes[:, :bits].T
        yield figure("label_codes", bits, signs(values[:, :bits]) @ stored)
        yield figure("label_codes_asymmetric", bits, values[:, :bits] @ stored)


def _case(row_count: int, bits: int | None) -> str:
    return f"{row_count} rows, {'floats' if bits is None else f'{bits} bits'}"


def _asked(coder: Coder, queries: NDArray[np.float32]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The names of a method's two kinds of query, and the queries as it scores them."""
    if coder.coded is None:
        yield coder.method, coder.query(queries)
        return
    yield coder.method, coder.coded(queries)
    yield f"{coder.method}_asymmetric", coder.query(queries)


def _label_codes(
    intents: LabelledQueries, *, settings: FitSettings
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Real-valued label queries, float32 [q, bits], and the rows' class codes in -1/+1, float32 [n, bits]."""
    config = EncoderConfig(label_bits=max(settings.bits), seed=settings.seed)
    empty = empty_state(intents.rows.shape[1], config=config, rows=intents.rows)
    state = empty.add(intents.rows, intents.row_labels)
    codes = np.where(target_bits(state.class_codes, intents.row_labels), np.float32(1), np.float32(-1))
    return state.head(modality="").values(intents.queries), codes


def _plot(figures: Sequence[Figure], path: Path, *, dataset: Dataset) -> None:
    """Draw recall over bits, a line per method."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for figure in figures:
        if figure.metric == _PLOTTED and figure.bits is not None:
            curves.setdefault(figure.method, []).append((figure.bits, figure.value))
    write_curves(
        curves,
        path,
        title=f"{dataset.name}, mean over seeds",
        x_name="bits",
        y_name="recall@10 in the top 100",
    )

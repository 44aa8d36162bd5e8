"""At how many rows one search path overtakes another, measured on the index itself."""

import argparse
import math
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.planner import SearchPath
from index.requests import SearchRequest
from scripts.bench.data import Dataset, grow
from scripts.bench.engine import Engine, built, trained
from scripts.bench.lines import Figure, print_figure
from scripts.bench.timing import Call, interleaved_seconds, median_ms, one_thread

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
GATHER_COUNTS = (16, 64, 256, 1_024, 4_096, 16_384)
_QUICK_SIZES = (1_000, 4_000, 16_000)
_TOP_K = 10
_THRESHOLD = 0.15  # cosine .85
_QUERIES = 64
_MOST_EXACT_ROWS = 300_000  # beyond, every vector takes too long to be of interest
_ROUNDS = 8
_GROUP = 4
_PAIRS = (("exact", "scan"), ("scan", "ivf"), ("scan", "hnsw"), ("scan", "cascade"), ("cascade", "hnsw"))
"""First the path that wins on few rows. A cascade finds one row within a threshold, the others ten."""

Curve = dict[int, float]
"""Rows (or allowed ids) -> milliseconds."""


def measure_crossovers(dataset: Dataset, arguments: argparse.Namespace) -> None:
    """Print the p50 of each path at each size, and the sizes at which two of them cost the same.

    Graphs are built up to `graph_rows` rows; exact search is timed up to _MOST_EXACT_ROWS.
    """
    bits = arguments.bits[0]
    encoder, _ = trained(dataset.rows, code_bits=bits, seed=arguments.seed)
    most = arguments.rows or SIZES[-1]
    sizes = [size for size in (_QUICK_SIZES if arguments.quick else SIZES) if size <= most]
    curves: dict[str, Curve] = {}
    gathers: dict[str, Curve] = {}
    for size in sizes:
        rows = grow(dataset, row_count=size, seed=arguments.seed)
        with tempfile.TemporaryDirectory(prefix="nearhit-bench-") as folder:
            engine = built(
                Path(folder),
                rows,
                encoder=encoder,
                with_graph=size <= arguments.graph_rows,
                lists_min_rows=sizes[0],
            )
            with one_thread():
                times = _path_times(engine, rows, graph=size <= arguments.graph_rows)
                if size == min(sizes[-1], 100_000):
                    gathers = _gather_times(engine, rows, size=size)
        for path, taken in times.items():
            curves.setdefault(path, {})[size] = taken
            _print(
                arguments, dataset, f"{path}, {size:,} rows", "p50_ms", path, taken, "ms", n=size, bits=bits
            )
    for path, curve in gathers.items():
        for count, taken in curve.items():
            case = f"{path} of {count:,} allowed ids"
            _print(arguments, dataset, case, "p50_ms", path, taken, "ms", n=count, bits=bits)
    for first, second in _PAIRS:
        _print_crossing(arguments, dataset, curves, first, second, unit="rows")
    _print_crossing(arguments, dataset, gathers, "gather", "scan", unit="ids")


def crossing(first: Curve, second: Curve) -> float | None:
    """The size from which on `second` costs less than `first`, between measured sizes on logarithmic axes.

    None where it never does; the least common size where it always does.
    """
    sizes = sorted(set(first) & set(second))
    leads = [math.log(first[size] / second[size]) for size in sizes]
    ahead = [place for place in range(len(sizes)) if all(lead > 0 for lead in leads[place:])]
    if not ahead:
        return None
    place = ahead[0]
    if place == 0:
        return float(sizes[0])
    share = -leads[place - 1] / (leads[place] - leads[place - 1])
    low, high = math.log(sizes[place - 1]), math.log(sizes[place])
    return math.exp(low + share * (high - low))


def _path_times(engine: Engine, dataset: Dataset, *, graph: bool) -> dict[str, float]:
    queries = dataset.queries[:_QUERIES]
    radii = engine.encoder.radii(_THRESHOLD)
    paths = [SearchPath.SCAN]
    if engine.has_lists:
        paths.append(SearchPath.IVF)
    if graph:
        paths.append(SearchPath.HNSW)
    if len(dataset.rows) <= _MOST_EXACT_ROWS:
        paths.append(SearchPath.EXACT)
    asked = {path.value: [engine.request(q, k=_TOP_K, path=path) for q in queries] for path in paths}
    asked["cascade"] = [
        engine.request(q, k=1, path=SearchPath.CASCADE, threshold=_THRESHOLD, radii=radii) for q in queries
    ]
    return _times(engine, asked)


def _gather_times(engine: Engine, dataset: Dataset, *, size: int) -> dict[str, Curve]:
    """Reading the vectors of a list of allowed ids against scanning the codes of all rows with a mask."""
    rng = np.random.default_rng(0)
    curves: dict[str, Curve] = {"gather": {}, "scan": {}}
    for count in GATHER_COUNTS:
        if count > size:
            break
        allowed = np.sort(rng.permutation(size)[:count])
        asked = {
            name: [_restricted(engine, query, allowed, path) for query in dataset.queries[:_QUERIES]]
            for name, path in (("gather", SearchPath.EXACT), ("scan", SearchPath.SCAN))
        }
        for name, taken in _times(engine, asked).items():
            curves[name][count] = taken
    return curves


def _restricted(
    engine: Engine, query: NDArray[np.float32], allowed: NDArray[np.int64], path: SearchPath
) -> SearchRequest:
    return engine.request(query, k=_TOP_K, path=path, allowed_ids=allowed)


def _times(engine: Engine, asked: dict[str, list[SearchRequest]]) -> dict[str, float]:
    calls: dict[str, Call] = {name: partial(_ask, engine, requests) for name, requests in asked.items()}
    seconds = interleaved_seconds(calls, rounds=_ROUNDS, group=_GROUP)
    return {name: median_ms(taken) for name, taken in seconds.items()}


def _ask(engine: Engine, requests: Sequence[SearchRequest], number: int) -> object:
    return engine.index.search(requests[number % len(requests)])


def _print_crossing(
    arguments: argparse.Namespace,
    dataset: Dataset,
    curves: dict[str, Curve],
    first: str,
    second: str,
    *,
    unit: str,
) -> None:
    """The crossing of two curves; a line without one says so by a value below 0."""
    common = sorted(set(curves.get(first, {})) & set(curves.get(second, {})))
    if not common:
        return
    found = crossing(curves[first], curves[second])
    case = f"{first} -> {second}, of {common[0]:,} to {common[-1]:,}"
    value = -1.0 if found is None else found
    _print(
        arguments, dataset, case, "crossover_rows", second, value, unit, n=common[-1], bits=arguments.bits[0]
    )


def _print(
    arguments: argparse.Namespace,
    dataset: Dataset,
    case: str,
    metric: str,
    method: str,
    value: float,
    unit: str,
    *,
    n: int,
    bits: int,
) -> None:
    name = f"{dataset.name}, seed {arguments.seed}"
    print_figure(
        Figure(
            bench="search",
            case=case,
            metric=metric,
            method=method,
            value=value,
            unit=unit,
            dataset=name,
            n=n,
            bits=bits,
            seeds=1,
        ),
        as_json=arguments.json,
    )

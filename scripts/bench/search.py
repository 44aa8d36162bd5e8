"""Recall, latency, memory and build time of nearest-neighbour search, beside the libraries that do it.

Queries are real embeddings (--fashion: images) that were held out; the truth is exact float32 search. One
thread; settings take turns, each call is timed from the float query to the ids of the rows; p50 is of all
queries. `p50_ms` at equal recall compares the cheapest setting of each that reaches it on these queries.

--rows N grows the rows; --crossovers times the search paths of the index on many sizes instead; --door
measures what a client of a running server sees instead.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.planner import SearchPath
from scripts.arguments import CommandError, positive_integer
from scripts.bench.crossovers import measure_crossovers
from scripts.bench.data import Dataset, Truth, exact_nearest, grow, load_fashion, load_real, recall
from scripts.bench.engine import Engine, built, trained
from scripts.bench.lines import Figure, add_bench_arguments, print_figure
from scripts.bench.plot import PlotPoint, write_plot
from scripts.bench.rivals import CODE_RIVALS, RIVALS, Setting
from scripts.bench.timing import one_thread, timed_cpu

TOP_K = 10
OURS = "codes_rerank"
_RIVAL = "hnswlib"
_CANDIDATES = (32, 64, 96, 128, 192, 256, 320, 448, 640)
_LIST_RECALLS = (0.9, 0.95, 0.98, 0.99, 0.995)
_LIST_CANDIDATES = (64, 128, 256, 448, 640)
_GROUP = 32  # queries of one setting in a row
_EQUAL_RECALLS = ((0.998, 0.0), (0.0, 0.995), (0.998, 0.98))  # least recall at 1 and at 10
_QUICK_METHODS = (OURS, _RIVAL, "faiss_binary_flat", "faiss_rabitq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One method at one setting."""

    method: str
    setting: str
    bits: int | None
    recall_at_1: float
    recall_at_10: float
    p50_ms: float
    bytes_per_row: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Candidate:
    """A setting of a built method, and what its index costs."""

    method: str
    setting: Setting
    bits: int | None
    bytes_per_row: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_bench_arguments(parser)
    parser.add_argument("--data", type=Path, help="folder of the real embeddings")
    parser.add_argument("--fashion", type=Path, metavar="FOLDER", help="Fashion-MNIST instead: idx files")
    parser.add_argument("--rows", type=positive_integer, help="grow or cut the rows to this many")
    parser.add_argument(
        "--bits", type=int, nargs="+", default=[256, 384], help="code widths (default 256 384)"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=(OURS, *RIVALS),
        metavar="NAME",
        help=f"of {OURS}, {', '.join(RIVALS)}",
    )
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--tuning", action="store_true", help="queries that parameters may be chosen on")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write FILE.png and FILE.svg")
    parser.add_argument("--crossovers", action="store_true", help="where the search paths cross, instead")
    parser.add_argument("--graph-rows", type=positive_integer, default=100_000, metavar="N", help=_GRAPH_HELP)
    parser.add_argument("--door", action="store_true", help="search through a running server, instead")


_GRAPH_HELP = "crossovers: build graphs up to this many rows (default %(default)s)"


def run(arguments: argparse.Namespace) -> int:
    """Measure."""
    dataset = _dataset(arguments)
    if arguments.crossovers:
        measure_crossovers(dataset, arguments)
        return 0
    if arguments.door:
        from scripts.bench.door import measure_door  # of the service, which nothing else here needs

        measure_door(dataset, arguments)
        return 0
    methods = arguments.methods or (_QUICK_METHODS if arguments.quick else (OURS, *RIVALS))
    report = _Report(arguments, dataset)
    truth = exact_nearest(dataset, count=TOP_K)
    with tempfile.TemporaryDirectory(prefix="nearhit-bench-") as folder:
        candidates = _build_all(Path(folder), dataset, methods, arguments, report)
        measured = _measure_all(candidates, dataset, truth)
    for one in measured:
        report.setting(one)
    report.equal_recalls(measured)
    if arguments.plot is not None:
        points = [
            PlotPoint(
                method=_label(one),
                recall=one.recall_at_10,
                latency_ms=one.p50_ms,
                bytes_per_row=one.bytes_per_row,
            )
            for one in measured
        ]
        title = f"{len(dataset.rows):,} rows of {dataset.dim} dimensions, {dataset.name}"
        write_plot(points, arguments.plot, title=title, recall_name="recall@10")
    return 0


def _dataset(arguments: argparse.Namespace) -> Dataset:
    if arguments.fashion is not None:
        dataset = load_fashion(arguments.fashion, quick=arguments.quick, tuning=arguments.tuning)
    elif arguments.data is not None:
        dataset = load_real(arguments.data, quick=arguments.quick, tuning=arguments.tuning)
    else:
        raise CommandError("--data or --fashion is needed")
    if arguments.rows is not None:
        dataset = grow(dataset, row_count=arguments.rows, seed=arguments.seed)
    return dataset


class _Report:
    """Prints figures of this benchmark."""

    def __init__(self, arguments: argparse.Namespace, dataset: Dataset) -> None:
        self._json: bool = arguments.json
        self._name = f"{dataset.name}, seed {arguments.seed}"
        self._rows = len(dataset.rows)
        self._builds: dict[str, float] = {}

    def __call__(
        self,
        case: str,
        metric: str,
        method: str,
        value: float,
        unit: str,
        *,
        bits: int | None = None,
        rival: str | None = None,
        rival_value: float | None = None,
    ) -> None:
        better_is_more = metric.startswith("recall")
        ratio = None
        if rival_value is not None and value and rival_value:
            ratio = value / rival_value if better_is_more else rival_value / value
        figure = Figure(
            bench="search",
            case=f"{self._rows:,} rows{case}",
            metric=metric,
            method=method,
            value=value,
            unit=unit,
            dataset=self._name,
            rival=rival,
            rival_value=rival_value,
            ratio=ratio,
            n=self._rows,
            bits=bits,
            seeds=1,
        )
        print_figure(figure, as_json=self._json)

    def setting(self, one: Measured) -> None:
        """Recall and latency of one setting."""
        case = f", {one.setting}"
        self(case, "recall_at_1", one.method, one.recall_at_1, "", bits=one.bits)
        self(case, "recall_at_10", one.method, one.recall_at_10, "", bits=one.bits)
        self(case, "p50_ms", one.method, one.p50_ms, "ms", bits=one.bits)

    def equal_recalls(self, measured: Sequence[Measured]) -> None:
        """The cheapest setting of ours that reaches a recall, against every rival's; null: none does."""
        rivals = list(dict.fromkeys(one.method for one in measured if one.method != OURS))
        for at_1, at_10 in _EQUAL_RECALLS:
            ours = _cheapest(measured, OURS, at_1=at_1, at_10=at_10)
            if ours is None:
                continue
            least = [f"@{k} >= {share:g}" for k, share in ((1, at_1), (TOP_K, at_10)) if share]
            case = f", recall{' and '.join(least)}, {ours.setting}"
            if not rivals:
                self(case, "p50_ms", OURS, ours.p50_ms, "ms", bits=ours.bits)
            for rival in rivals:
                theirs = _cheapest(measured, rival, at_1=at_1, at_10=at_10)
                self(
                    *(case, "p50_ms", OURS, ours.p50_ms, "ms"),
                    bits=ours.bits,
                    rival=rival if theirs is None else f"{rival}, {theirs.setting}",
                    rival_value=None if theirs is None else theirs.p50_ms,
                )


def _cheapest(measured: Sequence[Measured], method: str, *, at_1: float, at_10: float) -> Measured | None:
    """The setting of a method that takes the least time and misses no more than it may; None where all do."""
    reaching = [
        one
        for one in measured
        if one.method == method and one.recall_at_1 >= at_1 and one.recall_at_10 >= at_10
    ]
    return min(reaching, key=lambda one: one.p50_ms, default=None)


def _label(one: Measured) -> str:
    return one.method if one.bits is None else f"{one.method}, {one.bits} bits"


def _build_all(
    folder: Path,
    dataset: Dataset,
    methods: Sequence[str],
    arguments: argparse.Namespace,
    report: _Report,
) -> list[_Candidate]:
    """Build every method's index, the main rival's first, and print what each costs."""
    rows = len(dataset.rows)
    candidates: list[_Candidate] = []
    rival_build: float | None = None
    rival_bytes: float | None = None
    encoders = {bits: trained(dataset.rows, code_bits=bits, seed=arguments.seed) for bits in arguments.bits}
    for method in sorted(methods, key=lambda name: name != _RIVAL):
        if method == OURS:
            continue
        encoder = encoders[arguments.bits[0]][0] if method in CODE_RIVALS else None
        rival, seconds = timed_cpu(partial(RIVALS[method], dataset, TOP_K, encoder))
        size = rival.size_bytes / rows
        if method == _RIVAL:
            rival_build, rival_bytes = seconds, size
        report("", "build_seconds", method, seconds, "s CPU", bits=rival.bits)
        report("", "bytes_per_row", method, size, "B", bits=rival.bits)
        candidates += [
            _Candidate(method=method, setting=setting, bits=rival.bits, bytes_per_row=size)
            for setting in rival.settings
        ]
    for bits, (encoder, train_seconds) in encoders.items() if OURS in methods else ():
        engine = built(folder / str(bits), dataset, encoder=encoder, train_seconds=train_seconds)
        sizes = engine.bytes_per_row()
        rival_name = None if rival_build is None else _RIVAL
        report(
            *("", "build_seconds", OURS, engine.build_seconds, "s CPU"),
            bits=bits,
            rival=rival_name,
            rival_value=rival_build,
        )
        report("", "train_seconds", OURS, train_seconds, "s CPU", bits=bits)
        report(
            *("", "bytes_per_row", OURS, sum(sizes.values()), "B"),
            bits=bits,
            rival=rival_name,
            rival_value=rival_bytes,
        )
        for part, size in sizes.items():
            if size:
                report(f", {part}", "part_bytes_per_row", OURS, size, "B", bits=bits)
        candidates += [
            _Candidate(method=OURS, setting=setting, bits=bits, bytes_per_row=sum(sizes.values()))
            for setting in _settings(engine)
        ]
    return candidates


def _settings(engine: Engine) -> list[Setting]:
    """Ways to search an index: all codes, and its inverted lists where it has any; by rows reranked."""
    scans = [_setting(engine, SearchPath.SCAN, count) for count in _CANDIDATES]
    if not engine.has_lists:
        return scans
    return scans + [
        _setting(engine, SearchPath.IVF, count, share)
        for share in _LIST_RECALLS
        for count in _LIST_CANDIDATES
    ]


def _setting(engine: Engine, path: SearchPath, count: int, list_recall: float | None = None) -> Setting:
    def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
        matches = engine.search(query, k=TOP_K, path=path).matches
        return np.array([match.entry_id for match in matches], dtype=np.int64)

    lists = "" if list_recall is None else f" of lists for {list_recall:g}"
    name = f"{engine.encoder.code_bits} bits, {path.value}{lists}, rerank {count}"
    return Setting(
        name=name,
        choose=lambda: engine.tune(candidate_count=count, list_recall=list_recall),
        search=search,
    )


def _measure_all(candidates: Sequence[_Candidate], dataset: Dataset, truth: Truth) -> list[Measured]:
    """Ask every query of every setting, a group of queries at a time in turn."""
    query_count = len(dataset.queries)
    found = np.full((len(candidates), query_count, TOP_K), -1, dtype=np.int64)
    seconds = np.empty((len(candidates), query_count))
    with one_thread():
        for start in range(0, query_count, _GROUP):
            for row, candidate in enumerate(candidates):
                candidate.setting.choose()
                candidate.setting.search(dataset.queries[start])  # what the method before left in cache goes
                for query in range(start, min(start + _GROUP, query_count)):
                    began = time.perf_counter()
                    ids = candidate.setting.search(dataset.queries[query])
                    seconds[row, query] = time.perf_counter() - began
                    found[row, query, : ids.size] = ids
    return [
        Measured(
            method=candidate.method,
            setting=candidate.setting.name,
            bits=candidate.bits,
            recall_at_1=recall(dataset, truth, found[row], k=1),
            recall_at_10=recall(dataset, truth, found[row], k=TOP_K),
            p50_ms=float(np.median(seconds[row])) * 1000,
            bytes_per_row=candidate.bytes_per_row,
        )
        for row, candidate in enumerate(candidates)
    ]

"""Exact Hamming search and the lookup cascade against faiss, and against a plain read of the same bytes.

Codes are those of real embeddings (grown to --rows by making rows between real ones), of an encoder that was
trained on rows alone; queries are embeddings that were held out. One thread; methods take turns; medians. A
figure "caches emptied" is of a call that finds nothing of its rows in the processor's caches, the others of a
call after calls of its own kind.
"""

import argparse
import mmap
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from hashing.inference import Encoder
from index.codes import pack
from index.kernels import PREFIX_BITS, append_codes, empty_blocks, nearest_codes
from index.planner import SearchPath
from index.rows import NEVER
from scripts.arguments import CommandError, positive_integer
from scripts.bench.data import TIE, Dataset, exact_nearest, grow, load_real
from scripts.bench.engine import NOW_MS, Engine, built, codes_of, trained
from scripts.bench.lines import Figure, add_bench_arguments, print_figure
from scripts.bench.timing import Call, cache_eviction, interleaved_seconds, median_ms, one_thread

# Typed loosely: the library's stubs do not know what its Python layer adds to the compiled classes.
_faiss: Any = faiss

_TOP_K = 10
_QUERIES = 64
_ROWS, _QUICK_ROWS = 1_000_000, 100_000
_WIDTHS = (256, 384)
_SHARES = (0.01, 0.1)
_HELD_OUT_EVERY = 20  # more queries than elsewhere: one lost hit in a thousand must be seen
_THRESHOLD = 0.15  # cosine .85
_RERANKED = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scan:
    """Codes of one width in both layouts, and 64 queries."""

    bits: int
    codes: NDArray[np.uint64]  # [n, words]
    blocks: NDArray[np.uint64]
    queries: NDArray[np.uint64]  # [64, words]
    expire_times: NDArray[np.int64]  # [n]
    flat: Any  # faiss.IndexBinaryFlat

    def nearest(self, queries: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Distances of the nearest rows, by nearhit."""
        _, distances, _ = nearest_codes(
            self.blocks, queries, count=_TOP_K, expire_times=self.expire_times, now_ms=NOW_MS
        )
        return distances

    def faiss_nearest(self, queries: NDArray[np.uint64], parameters: Any = None) -> NDArray[np.int32]:
        """Distances of the nearest rows, by faiss."""
        distances, _ = self.flat.search(queries.view(np.uint8), _TOP_K, params=parameters)
        return distances  # type: ignore[no-any-return]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_bench_arguments(parser)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real embeddings")
    parser.add_argument("--rows", type=positive_integer, default=None, help=f"default {_ROWS}")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--tuning", action="store_true", help="queries that parameters may be chosen on")


def run(arguments: argparse.Namespace) -> int:
    """Measure."""
    row_count = arguments.rows or (_QUICK_ROWS if arguments.quick else _ROWS)
    real = load_real(
        arguments.data, quick=arguments.quick, tuning=arguments.tuning, held_out_every=_HELD_OUT_EVERY
    )
    dataset = grow(real, row_count=row_count, seed=arguments.seed)
    encoders = {bits: trained(real.rows, code_bits=bits, seed=arguments.seed)[0] for bits in _WIDTHS}
    report = _Report(arguments, dataset)
    for bits, encoder in encoders.items():
        scan = _scan(dataset, encoder)
        with one_thread():
            if bits == _WIDTHS[0]:
                _measure_single(scan, report, rounds=7 if arguments.quick else 25)
            _measure_block(scan, report, rounds=3 if arguments.quick else 9)
        if bits == _WIDTHS[0]:
            for share in _SHARES:
                _measure_category(scan, dataset, encoder, report, share=share)
    _measure_cascade(dataset, encoders[_WIDTHS[0]], report)
    return 0


class _Report:
    """Prints figures of this benchmark."""

    def __init__(self, arguments: argparse.Namespace, dataset: Dataset) -> None:
        self._arguments = arguments
        self._dataset = dataset

    def __call__(self, case: str, metric: str, method: str, value: float, unit: str, **more: Any) -> None:
        rows = len(self._dataset.rows)
        figure = Figure(
            bench="scan",
            case=f"{rows:,} rows, {case}",
            metric=metric,
            method=method,
            value=value,
            unit=unit,
            dataset=f"{self._dataset.name}, seed {self._arguments.seed}",
            n=rows,
            seeds=1,
        )
        rival_value = more.get("rival_value")
        ratio = None if rival_value is None else rival_value / value
        print_figure(replace(figure, ratio=ratio, **more), as_json=self._arguments.json)

    def times(
        self, case: str, seconds: dict[str, NDArray[np.float64]], *, rival: str, bits: int, batch: int = 1
    ) -> None:
        """The time a query of each method, against the rival's."""
        rival_ms = median_ms(seconds[rival]) / batch
        for method in seconds:
            if method != rival:
                value = median_ms(seconds[method]) / batch
                self(
                    *(case, "ms_per_query", method, value, "ms"),
                    rival=rival,
                    rival_value=rival_ms,
                    bits=bits,
                    batch=batch,
                )


def _scan(dataset: Dataset, encoder: Encoder) -> Scan:
    codes = codes_of(encoder, dataset.rows)
    blocks = empty_blocks(len(codes), code_words=codes.shape[1])
    append_codes(blocks, codes, row_count=0)
    flat = faiss.IndexBinaryFlat(encoder.code_bits)
    flat.add(codes.view(np.uint8))
    queries = pack(encoder.instance_bits(dataset.queries[:_QUERIES]))
    scan = Scan(
        bits=encoder.code_bits,
        codes=codes,
        blocks=blocks,
        queries=queries,
        expire_times=np.full(len(codes), NEVER, dtype=np.int64),
        flat=flat,
    )
    if not np.array_equal(scan.nearest(queries), scan.faiss_nearest(queries)):
        raise CommandError("nearhit and faiss found rows at other distances: one of them is wrong")
    return scan


def _measure_single(scan: Scan, report: _Report, *, rounds: int) -> None:
    """One query, against faiss and against the fastest of several reads of the same bytes."""
    reads = _streaming_reads(scan.blocks)
    count = len(scan.queries)

    def one(search: Callable[[NDArray[np.uint64]], object]) -> Call:
        return lambda number: search(scan.queries[number % count : number % count + 1])

    searches = {"exact": one(scan.nearest), "faiss_binary_flat": one(scan.faiss_nearest)}
    calls: dict[str, Call] = {**searches, **reads}
    for state, prepare in (("", None), (", caches emptied", cache_eviction())):
        seconds = interleaved_seconds(calls, rounds=rounds, group=3, prepare=prepare)
        case = f"{scan.bits} bits, 1 query{state}"
        found = {name: seconds[name] for name in searches}
        report.times(case, found, rival="faiss_binary_flat", bits=scan.bits)
        read = min(reads, key=lambda name: median_ms(seconds[name]))
        read_ms = median_ms(seconds[read])
        multiple = median_ms(seconds["exact"]) / read_ms
        report(case, "bandwidth_multiple", "exact", multiple, "x", rival=read, bits=scan.bits, batch=1)
        gigabytes = scan.blocks.nbytes / read_ms / 1e6
        report(case, "gigabytes_per_second", read, gigabytes, "GB/s", bits=scan.bits)


def _streaming_reads(blocks: NDArray[np.uint64]) -> dict[str, Call]:
    """Ways to read every byte of an array once: the fastest of them stands for what memory gives.

    Sums of squares and products of the bytes taken as floats, by faiss's kernels; a minimum by numpy's; and a
    search for a byte that is not there by the C library's, in a copy of the same size.
    """
    floats = blocks.reshape(-1).view(np.float32)
    integers = blocks.reshape(-1).view(np.int32)
    pointer = faiss.swig_ptr(floats)
    copy = mmap.mmap(-1, blocks.nbytes)
    copy.write(b"\x01" * blocks.nbytes)
    copy.seek(0)
    return {
        "read_squares": lambda _: faiss.fvec_norm_L2sqr(pointer, floats.size),
        "read_products": lambda _: faiss.fvec_inner_product(pointer, pointer, floats.size),
        "read_minimum": lambda _: integers.min(),
        "read_byte_search": lambda _: copy.find(b"\x02", 0),
    }


def _measure_block(scan: Scan, report: _Report, *, rounds: int) -> None:
    calls: dict[str, Call] = {
        "exact": lambda _: scan.nearest(scan.queries),
        "faiss_binary_flat": lambda _: scan.faiss_nearest(scan.queries),
    }
    seconds = interleaved_seconds(calls, rounds=rounds)
    case = f"{scan.bits} bits, {_QUERIES} queries"
    report.times(case, seconds, rival="faiss_binary_flat", bits=scan.bits, batch=_QUERIES)


def _measure_category(
    scan: Scan, dataset: Dataset, encoder: Encoder, report: _Report, *, share: float
) -> None:
    """A category of its own against all rows with a filter.

    `exact` is the scan of the category's codes alone, as faiss's is of the filtered ones; `lookup` and
    `lookup_batch` are whole searches of the index for the nearest rows, rerank on vectors included.
    """
    rng = np.random.default_rng(0)
    members = np.sort(rng.permutation(len(scan.codes))[: int(share * len(scan.codes))])
    own = replace(scan, blocks=empty_blocks(members.size, code_words=scan.codes.shape[1]))
    append_codes(own.blocks, scan.codes[members], row_count=0)
    own = replace(own, expire_times=scan.expire_times[members])
    mask = np.zeros(len(scan.codes), dtype=np.bool_)
    mask[members] = True
    bitmap = np.packbits(mask, bitorder="little")
    parameters = _faiss.SearchParameters(sel=_faiss.IDSelectorBitmap(bitmap))
    if not np.array_equal(own.nearest(scan.queries), scan.faiss_nearest(scan.queries, parameters)):
        raise CommandError("nearhit and faiss found rows of a category at other distances")
    with tempfile.TemporaryDirectory(prefix="nearhit-bench-") as folder:
        engine = built(Path(folder), replace(dataset, rows=dataset.rows[members]), encoder=encoder)
        requests = [
            engine.request(query, k=_TOP_K, path=SearchPath.SCAN) for query in dataset.queries[:_QUERIES]
        ]

        def one(number: int) -> slice:
            return slice(number % _QUERIES, number % _QUERIES + 1)

        calls: dict[str, Call] = {
            "exact": lambda number: own.nearest(scan.queries[one(number)]),
            "lookup": lambda number: engine.index.search(requests[number % _QUERIES]),
            "lookup_batch": lambda _: engine.index.search_batch(requests),
            "faiss_selector": lambda number: scan.faiss_nearest(scan.queries[one(number)], parameters),
        }
        with one_thread():
            seconds = interleaved_seconds(calls, rounds=20, group=4)
    seconds["lookup_batch"] /= _QUERIES
    case = f"category of {share:.0%}, {scan.bits} bits"
    report.times(case, seconds, rival="faiss_selector", bits=scan.bits)


def _measure_cascade(dataset: Dataset, encoder: Encoder, report: _Report) -> None:
    """The best row within cosine .85 of all, against every row within the radius of that by faiss."""
    truth = exact_nearest(dataset, count=1).distances[:, 0]
    radii = encoder.radii(_THRESHOLD)
    case = f"{encoder.code_bits} bits, best within cosine {1 - _THRESHOLD:.2f}"
    flat = faiss.IndexBinaryFlat(encoder.code_bits)
    flat.add(codes_of(encoder, dataset.rows).view(np.uint8))
    codes = pack(encoder.instance_bits(dataset.queries))
    with tempfile.TemporaryDirectory(prefix="nearhit-bench-") as folder, one_thread():
        engine = built(Path(folder), dataset, encoder=encoder, lists_min_rows=len(dataset.rows) // 2)
        _report_hits(engine, dataset, truth, report, radii=radii, case=case)
        requests = [_lookup(engine, query, radii) for query in dataset.queries]
        starts = range(0, len(requests) - _QUERIES + 1, _QUERIES)
        table = engine.index.segment_views()[0][1].table
        assert table is not None  # the rows were given codes
        calls: dict[str, Call] = {
            "exact": lambda i: engine.index.search(requests[i % len(requests)]),
            "lookup_batch": lambda i: engine.index.search_batch(_block(requests, starts, i)),
            "kernel": _kernel_call(table.blocks, codes, radii, row_count=len(dataset.rows)),
            "faiss_range_search": lambda i: flat.range_search(
                codes[i % len(codes)][None, :].view(np.uint8), radii[encoder.code_bits] + 1
            ),
        }
        seconds = interleaved_seconds(calls, rounds=60, group=8)
    seconds["lookup_batch"] /= _QUERIES
    report.times(case, seconds, rival="faiss_range_search", bits=encoder.code_bits)


def _lookup(engine: Engine, query: NDArray[np.float32], radii: dict[int, int]) -> Any:
    return engine.request(query, k=1, path=SearchPath.CASCADE, threshold=_THRESHOLD, radii=radii)


def _block(requests: Sequence[Any], starts: Sequence[int], number: int) -> Sequence[Any]:
    start = starts[number % len(starts)]
    return requests[start : start + _QUERIES]


def _kernel_call(
    blocks: NDArray[np.uint64], codes: NDArray[np.uint64], radii: dict[int, int], *, row_count: int
) -> Call:
    """The compiled part of the cascade alone, without rerank."""
    expire_times = np.full(row_count, NEVER, dtype=np.int64)
    bits = 64 * codes.shape[1]
    limits = np.array([[radii[prefix] for prefix in PREFIX_BITS if prefix < bits]], dtype=np.int32)
    most = np.array([radii[bits]], dtype=np.int32)

    def call(number: int) -> object:
        return nearest_codes(
            blocks,
            codes[number % len(codes)][None, :],
            count=_RERANKED,
            expire_times=expire_times,
            now_ms=NOW_MS,
            max_distances=most,
            prefix_limits=limits,
        )

    return call


def _report_hits(
    engine: Engine,
    dataset: Dataset,
    truth: NDArray[np.float32],
    report: _Report,
    *,
    radii: dict[int, int],
    case: str,
) -> None:
    """Of the queries with a row within the threshold, the share for which that row, or one as near, came.

    With the radii, in bits, that the encoder was calibrated to.
    """
    for prefix, radius in radii.items():
        report(f"{case}, first {prefix} bits", "radius", "calibrated", float(radius), "bits", bits=prefix)
    within = np.flatnonzero(truth <= _THRESHOLD)
    best = any_hit = 0
    for query in within.tolist():
        matches = engine.index.search(_lookup(engine, dataset.queries[query], radii)).matches
        any_hit += bool(matches)
        best += bool(matches) and matches[0].cosine_distance <= truth[query] + TIE
    bits = engine.encoder.code_bits
    report(f"{case}, held-out queries", "true_hits", "float", float(within.size), "queries")
    for metric, count in (("best_kept", best), ("hits_kept", any_hit)):
        report(f"{case}, held-out queries", metric, "exact", count / max(1, within.size), "", bits=bits)

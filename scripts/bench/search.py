"""Recall and latency of Search against exact float search, on real questions through the door.

Rows of question_pairs.npz become a cache (loaded, trained, built as an operator would); every 80th row is
kept out and asked.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from nearhit.client import search_request
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from numpy.typing import NDArray

from scripts.arguments import CommandError
from scripts.bench.lines import Figure, add_bench_arguments, print_figure
from scripts.server_process import ServerProcess, write_config
from service.config import load_config

_TOP_K = 10
_BATCH = 32
_HELD_OUT_EVERY = 80
_QUICK_ROWS = 10_000
_PATHS = (
    ("codes_rerank", pb.SEARCH_PATH_SCAN),
    ("exact", pb.SEARCH_PATH_EXACT),
    ("hnsw", pb.SEARCH_PATH_HNSW),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_bench_arguments(parser)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds question_pairs.npz")
    parser.add_argument("--code-bits", type=int, default=256, help="default %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Measure."""
    path = arguments.data / "question_pairs.npz"
    if not path.is_file():
        raise CommandError(f"{path}: no such file")
    with np.load(path) as archive:
        embeddings = archive["embeddings"][: _QUICK_ROWS if arguments.quick else None].astype(np.float32)
    asked = np.arange(len(embeddings)) % _HELD_OUT_EVERY == 0
    rows, queries = embeddings[~asked], embeddings[asked]
    with tempfile.TemporaryDirectory(prefix="nearhit-bench-") as name:
        folder = Path(name)
        config_path = write_config(folder)
        build_seconds = _build(folder, config_path, rows, code_bits=arguments.code_bits)
        _report(arguments, "build_seconds", "codes_rerank", build_seconds, "s", rows)
        with ServerProcess(config_path, address=load_config(config_path).server.address) as server:
            index = server.client.call(
                server.client.admin.GetIndex, admin_pb.GetIndexRequest(name="caches/bench/index")
            )
            size_bytes = sum(segment.size_bytes for segment in index.segments)
            _report(arguments, "bytes_per_row", "codes_rerank", size_bytes / len(rows), "B", rows)
            truth = _exact_top(rows, queries)
            for method, search_path in _PATHS:
                found = _search(server, queries, search_path)
                for k in (1, _TOP_K):
                    recall = _recall(found, truth, k=k)
                    _report(arguments, f"recall_at_{k}", method, recall, "", rows, queries=len(queries))
            for method, search_path in _PATHS:
                latency_ms = _latency_ms(server, queries[:200], search_path)
                _report(arguments, "p50_ms", method, latency_ms, "ms", rows, queries=min(200, len(queries)))
    return 0


def _build(folder: Path, config_path: Path, rows: NDArray[np.float32], *, code_bits: int) -> float:
    np.savez(folder / "rows.npz", embeddings=rows.astype(np.float16), id=np.arange(len(rows)).astype(str))
    command = [
        *(sys.executable, "-m", "scripts", "build", "--config", str(config_path), "--cache", "bench"),
        *("--input", str(folder / "rows.npz"), "--train", "--graph", "--code-bits", str(code_bits), "--json"),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CommandError(f"the build failed: {done.stderr}")
    return float(json.loads(done.stdout)["seconds"])


def _exact_top(rows: NDArray[np.float32], queries: NDArray[np.float32]) -> list[list[int]]:
    """Row numbers of the nearest rows, in float32 over the rows as they are stored."""
    stored = rows.astype(np.float16).astype(np.float32)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    tops = []
    for start in range(0, len(queries), 64):
        scores = queries[start : start + 64] @ stored.T
        tops += np.argsort(-scores, axis=1, kind="stable")[:, :_TOP_K].tolist()
    return tops


def _search(server: ServerProcess, queries: NDArray[np.float32], path: pb.SearchPath) -> list[list[int]]:
    found = []
    for start in range(0, len(queries), _BATCH):
        requests = [
            search_request("bench", embedding=query, top_k=_TOP_K, path=path)
            for query in queries[start : start + _BATCH]
        ]
        for response in server.client.batch_search("bench", requests):
            found.append([int(result.entry.name.rpartition("/")[2]) for result in response.results])
    return found


def _recall(found: list[list[int]], truth: list[list[int]], *, k: int) -> float:
    shares = [len(set(f[:k]) & set(t[:k])) / k for f, t in zip(found, truth, strict=True)]
    return float(np.mean(shares))


def _latency_ms(server: ServerProcess, queries: NDArray[np.float32], path: pb.SearchPath) -> float:
    """Median of single calls, as the client sees them."""
    taken = []
    for query in queries:
        started = time.perf_counter()
        server.client.search("bench", embedding=query, top_k=_TOP_K, path=path)
        taken.append(time.perf_counter() - started)
    return float(np.median(taken)) * 1000


def _report(
    arguments: argparse.Namespace,
    metric: str,
    method: str,
    value: float,
    unit: str,
    rows: NDArray[np.float32],
    *,
    queries: int | None = None,
) -> None:
    case = f"{len(rows)} rows" if queries is None else f"{len(rows)} rows, {queries} queries"
    print_figure(
        Figure(
            bench="search",
            case=case,
            metric=metric,
            method=method,
            value=value,
            unit=unit,
            dataset="question_pairs",
            n=len(rows),
            bits=arguments.code_bits,
        ),
        as_json=arguments.json,
    )

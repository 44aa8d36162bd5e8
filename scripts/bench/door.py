"""What a client of a running server sees of Search: recall and latency through gRPC."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from nearhit.client import search_request
from nearhit.v1 import resources_pb2 as pb
from numpy.typing import NDArray

from scripts.arguments import CommandError
from scripts.bench.data import Dataset, exact_nearest, recall
from scripts.bench.lines import Figure, print_figure
from scripts.server_process import ServerProcess, write_config
from service.config import load_config

_TOP_K = 10
_BATCH = 32
_TIMED_QUERIES = 200
_PATHS: Mapping[str, pb.SearchPath] = {"codes_rerank": pb.SEARCH_PATH_SCAN, "exact": pb.SEARCH_PATH_EXACT}


def measure_door(dataset: Dataset, arguments: argparse.Namespace) -> None:
    """Load, train and build the rows as an operator would, serve them, and ask the queries."""
    truth = exact_nearest(dataset, count=_TOP_K)
    code_bits = arguments.bits[0]
    with tempfile.TemporaryDirectory(prefix="nearhit-bench-") as name:
        config_path = write_config(Path(name))
        _build(Path(name), config_path, dataset, code_bits=code_bits)
        with ServerProcess(config_path, address=load_config(config_path).server.address) as server:
            for method, path in _PATHS.items():
                found = _found(server, dataset.queries, path)
                figures = {f"recall_at_{k}": (recall(dataset, truth, found, k=k), "") for k in (1, _TOP_K)}
                figures["p50_ms"] = (_latency_ms(server, dataset.queries[:_TIMED_QUERIES], path), "ms")
                for metric, (value, unit) in figures.items():
                    figure = Figure(
                        bench="search",
                        case=f"grpc, {len(dataset.rows):,} rows",
                        metric=metric,
                        method=method,
                        value=value,
                        unit=unit,
                        dataset=dataset.name,
                        n=len(dataset.rows),
                        bits=code_bits,
                        seeds=1,
                    )
                    print_figure(figure, as_json=arguments.json)


def _build(folder: Path, config_path: Path, dataset: Dataset, *, code_bits: int) -> None:
    np.savez(folder / "rows.npz", embeddings=dataset.rows, id=np.arange(len(dataset.rows)).astype(str))
    command = [
        *(sys.executable, "-m", "scripts", "build", "--config", str(config_path), "--cache", "bench"),
        *("--input", str(folder / "rows.npz"), "--train", "--code-bits", str(code_bits), "--json"),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CommandError(f"the build failed: {done.stderr}")


def _found(server: ServerProcess, queries: NDArray[np.float32], path: pb.SearchPath) -> NDArray[np.int64]:
    """Row numbers of the results, int64 [q, k]; -1 where there are fewer."""
    found = np.full((len(queries), _TOP_K), -1, dtype=np.int64)
    for start in range(0, len(queries), _BATCH):
        requests = [
            search_request("bench", embedding=query, top_k=_TOP_K, path=path)
            for query in queries[start : start + _BATCH]
        ]
        for row, response in enumerate(server.client.batch_search("bench", requests), start):
            ids = [int(result.entry.name.rpartition("/")[2]) for result in response.results]
            found[row, : len(ids)] = ids
    return found


def _latency_ms(server: ServerProcess, queries: NDArray[np.float32], path: pb.SearchPath) -> float:
    """Median of single calls, as the client sees them."""
    taken = []
    for query in queries:
        started = time.perf_counter()
        server.client.search("bench", embedding=query, top_k=_TOP_K, path=path)
        taken.append(time.perf_counter() - started)
    return float(np.median(taken)) * 1000

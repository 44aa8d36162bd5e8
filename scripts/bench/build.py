"""CPU, time and memory of building an index, beside hnswlib's build of the same rows.

The build is the command's own, in a process of its own: a file into the store with an encoder trained on
the way, then a generation from the store. hnswlib gets the same rows in memory. Rows a second are of wall
time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.arguments import CommandError, positive_integer
from scripts.bench.data import Dataset, grow, load_real, reduce_dim
from scripts.bench.lines import Figure, add_bench_arguments, print_figure
from scripts.bench.rivals import build_hnswlib
from scripts.bench.timing import cpu_seconds
from scripts.server_process import write_config

_QUICK_ROWS = 5_000
_KIBIBYTE = 1024
_POLL_SECONDS = 0.02
_RIVAL = "hnswlib"
_TOP_K = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a build used. peak_bytes: the most memory that its process held at once, mapped files included;
    of the rival, what its index holds."""

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_bench_arguments(parser)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real embeddings")
    parser.add_argument("--rows", type=positive_integer, help="grow or cut the rows to this many")
    parser.add_argument("--dim", type=positive_integer, help="project them on this many dimensions")
    parser.add_argument("--code-bits", type=int, default=256, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--no-rival", action="store_true", help=f"do not build with {_RIVAL}")


def run(arguments: argparse.Namespace) -> int:
    """Measure."""
    dataset = load_real(arguments.data, quick=arguments.quick, tuning=False)
    if arguments.dim is not None:
        dataset = reduce_dim(dataset, dim=arguments.dim)
    row_count = arguments.rows or (_QUICK_ROWS if arguments.quick else None)
    if row_count is not None:
        dataset = grow(dataset, row_count=row_count, seed=arguments.seed)
    with tempfile.TemporaryDirectory(prefix="nearhit-bench-") as name:
        folder = Path(name)
        file = folder / "rows.npz"
        np.savez(file, embeddings=dataset.rows)
        build = [
            *(sys.executable, "-m", "scripts", "build", "--config", str(write_config(folder))),
            *("--cache", "bench", "--json"),
        ]
        loading = [*build, "--input", str(file), "--train", "--code-bits", str(arguments.code_bits)]
        loaded = _run(loading)
        again = _run(build)
    rival = None if arguments.no_rival else _rival_cost(dataset)
    _report(arguments, dataset, "file -> store, encoder, generation", "nearhit", loaded, rival)
    _report(arguments, dataset, "store -> generation", "nearhit", again, rival)
    if rival is not None:
        _report(arguments, dataset, "rows in memory -> graph", _RIVAL, rival, None)
    return 0


def _run(command: list[str]) -> Cost:
    """Run a command to its end. Raises: CommandError where it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        peak_bytes, ended = 0, 0
        while not ended:
            peak_bytes = _peak_bytes(process.pid) or peak_bytes
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
            time.sleep(_POLL_SECONDS)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_seconds = time.perf_counter() - started
        if process.returncode:
            errors.seek(0)
            raise CommandError(f"the build failed: {errors.read().decode(errors='replace')}")
    return Cost(
        cpu_seconds=used.ru_utime + used.ru_stime,
        wall_seconds=wall_seconds,
        peak_bytes=float(peak_bytes),
    )


def _peak_bytes(pid: int) -> int:
    """The most memory that a process held so far; 0 where the system does not say or the process has ended.

    What wait4 tells is never below what the parent held when it started the process.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * _KIBIBYTE if lines else 0


def _rival_cost(dataset: Dataset) -> Cost:
    """hnswlib's build in this process; of memory, what its index holds: no peak to compare with."""
    began, used = time.perf_counter(), cpu_seconds()
    rival = build_hnswlib(dataset, _TOP_K, None)
    return Cost(
        cpu_seconds=cpu_seconds() - used,
        wall_seconds=time.perf_counter() - began,
        peak_bytes=float(rival.size_bytes),
    )


def _report(
    arguments: argparse.Namespace, dataset: Dataset, case: str, method: str, cost: Cost, rival: Cost | None
) -> None:
    rows = len(dataset.rows)
    figures = {
        "cpu_seconds": (cost.cpu_seconds, "s", None if rival is None else rival.cpu_seconds),
        "wall_seconds": (cost.wall_seconds, "s", None if rival is None else rival.wall_seconds),
        "rows_per_second": (
            *(rows / cost.wall_seconds, "rows/s"),
            None if rival is None else rows / rival.wall_seconds,
        ),
        "peak_memory_bytes": (cost.peak_bytes, "B", None),
    }
    for metric, (value, unit, rival_value) in figures.items():
        ratio = None
        if rival_value is not None:
            ratio = value / rival_value if metric == "rows_per_second" else rival_value / value
        print_figure(
            Figure(
                bench="build",
                case=f"{rows:,} rows of {dataset.dim}, {case}",
                metric=metric,
                method=method,
                value=value,
                unit=unit,
                dataset=f"{dataset.name}, seed {arguments.seed}",
                rival=None if rival_value is None else _RIVAL,
                rival_value=rival_value,
                ratio=ratio,
                n=rows,
                bits=arguments.code_bits if method == "nearhit" else None,
                seeds=1,
            ),
            as_json=arguments.json,
        )

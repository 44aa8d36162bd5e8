"""Latency of lookups before, during and after a generation is built and swapped in.

A client process looks up from several threads, without a pause; meanwhile entries are stored until the server
builds a generation by itself, and serves it. Every answer is checked. `swap` is from the end of the build
until two seconds after the first answer from the new generation.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable

import numpy as np
from nearhit import Client
from nearhit.client import store_request

from index.manifest import CURRENT_FILE
from scripts.arguments import CommandError, positive_integer
from scripts.bench.lines import Figure, print_figure
from scripts.bench.lookups import Lookup, Lookups, phase_figures, problems
from scripts.bench.stored import (
    CACHE,
    CATEGORY,
    CODE_BITS,
    DIM,
    Stored,
    add_stored_arguments,
    stored_rows,
    unit_vectors,
)
from scripts.server_process import ServerProcess

_BEFORE_SECONDS = 5.0
_AFTER_SECONDS = 2.0
_LIMIT_SECONDS = 900.0
_POLL_SECONDS = 0.02
_BATCH = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_stored_arguments(parser)
    parser.add_argument("--clients", type=positive_integer, default=4, help="threads (default %(default)s)")
    parser.add_argument(
        "--new-rows", type=positive_integer, help="stored before the build (default a tenth of --rows)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure. Exit status 1 where a lookup failed or was answered wrongly."""
    with stored_rows(arguments) as stored:
        new_rows = arguments.new_rows or max(1_000, stored.row_count // 10)
        # The server builds once the rows are stored, and not again.
        os.environ["NEARHIT_COMPACTION_MIN_ROWS"] = str(new_rows - 1)
        os.environ["NEARHIT_COMPACTION_SHARE"] = "0.0001"
        os.environ["NEARHIT_COMPACTION_SNAPSHOT_MIN_ROWS"] = str(10**9)
        with ServerProcess(stored.config_path, address=stored.address) as server:
            before = server.client.lookup(CACHE, CATEGORY, text="question number 0").generation
            lookups, phases = _measure(server.client, stored, arguments, new_rows=new_rows, before=before)
    wrong = problems(lookups)
    for problem in sorted(set(wrong))[:5]:
        print(problem, file=sys.stderr)
    _report(arguments, stored, lookups, phases, wrong_count=len(wrong))
    return 1 if wrong else 0


def _measure(
    client: Client, stored: Stored, arguments: argparse.Namespace, *, new_rows: int, before: str
) -> tuple[list[Lookup], dict[str, tuple[float, float]]]:
    """All lookups, and the phases as ranges of time."""
    root = next((stored.config_path.parent / "index").iterdir())
    with Lookups(stored.address, row_count=stored.row_count, clients=arguments.clients) as looking:
        began = time.monotonic()
        time.sleep(1.0 if arguments.quick else _BEFORE_SECONDS)
        storing = time.monotonic()
        _store(client, new_rows)
        stored_at = time.monotonic()
        _wait(lambda: (root / CURRENT_FILE).read_text().strip() != before)
        built = time.monotonic()
        _wait(lambda: client.lookup(CACHE, CATEGORY, text="question number 0").generation != before)
        time.sleep(_AFTER_SECONDS)
        ended = time.monotonic()
        lookups = looking.end()
    return lookups, {
        "before": (began, storing),
        "storing": (storing, stored_at),
        "build": (stored_at, built),
        "swap": (built, ended),
    }


def _store(client: Client, row_count: int) -> None:
    vectors = unit_vectors(row_count, seed=time.time_ns() % 2**32)
    for start in range(0, row_count, _BATCH):
        requests = [
            store_request(CACHE, CATEGORY, embedding=vector.astype(np.float32), response=b"new")
            for vector in vectors[start : start + _BATCH]
        ]
        client.batch_store(CACHE, requests)


def _wait(reached: Callable[[], bool]) -> None:
    """Raises: CommandError where it takes too long."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not reached():
        if time.monotonic() > deadline:
            raise CommandError(f"no new generation within {_LIMIT_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)


def _report(
    arguments: argparse.Namespace,
    stored: Stored,
    lookups: list[Lookup],
    phases: dict[str, tuple[float, float]],
    *,
    wrong_count: int,
) -> None:
    case = f"{stored.row_count:,} rows of {DIM}, {arguments.clients} clients"
    figures = [*phase_figures("swap", lookups, phases, case=case, row_count=stored.row_count)]
    wrong = Figure(
        bench="swap",
        case=f"{case}, all",
        metric="failed_or_wrong",
        method="nearhit",
        value=float(wrong_count),
        unit="",
        n=stored.row_count,
        bits=CODE_BITS,
        seeds=1,
    )
    for figure in (*figures, wrong):
        print_figure(figure, as_json=arguments.json)

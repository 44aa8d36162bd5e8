"""Latency of lookups before, during and after a generation is built and swapped in.

A client process looks up from several threads, without a pause; meanwhile entries are stored until the server
builds a generation by itself, and serves it. Every answer is checked. `swap` is from the end of the build
until two seconds after the first answer from the new generation.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from nearhit import Client, NearhitError
from nearhit.client import store_request
from numpy.typing import NDArray

from index.manifest import CURRENT_FILE
from scripts.arguments import CommandError, positive_integer
from scripts.bench.lines import Figure, print_figure
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
_TEXTS = 1_000

Lookup = tuple[float, float, str, str]
"""Start and duration in seconds, generation, and what was wrong ("" for nothing)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_stored_arguments(parser)
    parser.add_argument("--clients", type=positive_integer, default=4, help="threads (default %(default)s)")
    parser.add_argument(
        "--new-rows", type=positive_integer, help="stored before the build (default a tenth of --rows)"
    )
    parser.add_argument("--look-up", metavar="ADDRESS", help=argparse.SUPPRESS)  # this process is the client


def run(arguments: argparse.Namespace) -> int:
    """Measure. Exit status 1 where a lookup failed or was answered wrongly."""
    if arguments.look_up:
        return _look_up(arguments.look_up, row_count=arguments.rows, clients=arguments.clients)
    with stored_rows(arguments) as stored:
        new_rows = arguments.new_rows or max(1_000, stored.row_count // 10)
        # The server builds once the rows are stored, and not again.
        os.environ["NEARHIT_COMPACTION_MIN_ROWS"] = str(new_rows - 1)
        os.environ["NEARHIT_COMPACTION_SHARE"] = "0.0001"
        os.environ["NEARHIT_COMPACTION_SNAPSHOT_MIN_ROWS"] = str(10**9)
        with ServerProcess(stored.config_path, address=stored.address) as server:
            before = server.client.lookup(CACHE, CATEGORY, text="question number 0").generation
            lookups, phases = _measure(server.client, stored, arguments, new_rows=new_rows, before=before)
    wrong = [problem for _, _, _, problem in lookups if problem]
    for problem in sorted(set(wrong))[:5]:
        print(problem, file=sys.stderr)
    _report(arguments, stored, lookups, phases, wrong_count=len(wrong))
    return 1 if wrong else 0


def _measure(
    client: Client, stored: Stored, arguments: argparse.Namespace, *, new_rows: int, before: str
) -> tuple[list[Lookup], dict[str, tuple[float, float]]]:
    """All lookups, and the phases as ranges of time."""
    command = [
        *(sys.executable, "-m", "scripts", "bench", "swap", "--look-up", stored.address),
        *("--rows", str(stored.row_count), "--clients", str(arguments.clients)),
    ]
    root = next((stored.config_path.parent / "index").iterdir())
    looking = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert looking.stdout is not None
        looking.stdout.readline()  # it has begun
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
        answers, _ = looking.communicate(b"end\n", timeout=_LIMIT_SECONDS)
    finally:
        looking.kill()
        looking.wait()
    lookups: list[Lookup] = [tuple(lookup) for lookup in json.loads(answers)]
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


def _look_up(address: str, *, row_count: int, clients: int) -> int:
    """Look up until a line comes in, then print what was measured."""
    ended = threading.Event()
    queries = unit_vectors(_TEXTS).astype(np.float32)
    with ThreadPoolExecutor(max_workers=clients) as threads:
        running = [
            threads.submit(_look_up_in_turn, address, queries, row_count, number, ended)
            for number in range(clients)
        ]
        print("begun", flush=True)
        sys.stdin.readline()
        ended.set()
        print(json.dumps([lookup for one in running for lookup in one.result()]))
    return 0


def _look_up_in_turn(
    address: str, queries: NDArray[np.float32], row_count: int, first: int, ended: threading.Event
) -> list[Lookup]:
    """By embedding and by text in turn; a text has one right answer."""
    lookups: list[Lookup] = []
    number = first
    with Client(address, timeout_seconds=30.0) as client:
        while not ended.is_set():
            number += 1
            row = number * 7919 % row_count
            by_text = number % 2 == 0
            started = time.monotonic()
            try:
                if by_text:
                    answer = client.lookup(CACHE, CATEGORY, text=f"question number {row}")
                else:
                    answer = client.lookup(CACHE, CATEGORY, embedding=queries[number % len(queries)])
            except NearhitError as error:
                lookups.append((started, time.monotonic() - started, "", str(error)))
                continue
            taken = time.monotonic() - started
            right = not by_text or answer.response == f"answer {row}".encode()
            problem = "" if right else f"question {row} was answered {answer.response!r}"
            lookups.append((started, taken, answer.generation, problem))
    return lookups


def _report(
    arguments: argparse.Namespace,
    stored: Stored,
    lookups: list[Lookup],
    phases: dict[str, tuple[float, float]],
    *,
    wrong_count: int,
) -> None:
    case = f"{stored.row_count:,} rows of {DIM}, {arguments.clients} clients"
    figures: list[tuple[str, str, float, str, float | None]] = []
    reference: dict[str, float] = {}
    for phase, (start, end) in phases.items():
        taken = [
            seconds * 1000 for began, seconds, _, _ in lookups if start <= began + seconds and began < end
        ]
        if not taken:
            continue
        for metric, value in zip(
            ("p50_ms", "p99_ms", "max_ms"), np.percentile(taken, [50, 99, 100]).tolist(), strict=True
        ):
            figures.append((phase, f"lookup_{metric}", value, "ms", reference.setdefault(metric, value)))
        figures.append((phase, "lookups", float(len(taken)), "", None))
        figures.append((phase, "seconds", end - start, "s", None))
    figures.append(("all", "failed_or_wrong", float(wrong_count), "", None))
    for phase, metric, value, unit, before in figures:
        compared = before is not None and phase != "before"
        figure = Figure(
            bench="swap",
            case=f"{case}, {phase}",
            metric=metric,
            method="nearhit",
            value=value,
            unit=unit,
            rival="before" if compared else None,
            rival_value=before if compared else None,
            ratio=before / value if compared and before is not None else None,
            n=stored.row_count,
            bits=CODE_BITS,
            seeds=1,
        )
        print_figure(figure, as_json=arguments.json)

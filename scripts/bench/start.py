"""Time from the start of a server's process to its first answered lookups, from a generation.

The generation's files are in the page cache, as after a restart. Each start looks up a stored text, whose
answer is checked, and an embedding, which has the codes searched.
"""

import argparse
import contextlib
import socket
import subprocess
import sys
import time

import numpy as np
from nearhit import Client

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

_TARGET_SECONDS = 3.0
_LIMIT_SECONDS = 300.0
_POLL_SECONDS = 0.005


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_stored_arguments(parser)
    parser.add_argument("--starts", type=positive_integer, default=5, help="default %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Measure."""
    starts = min(arguments.starts, 3) if arguments.quick else arguments.starts
    with stored_rows(arguments) as stored:
        _start(stored, number=0)  # has the files read
        taken = [_start(stored, number=number) for number in range(starts)]
        ready_seconds = float(np.median(taken))
        figures = {
            "ready_seconds": (ready_seconds, "s", _TARGET_SECONDS / ready_seconds),
            "ready_seconds_best": (min(taken), "s", _TARGET_SECONDS / min(taken)),
            "rows": (float(stored.row_count), "", None),
        }
        for metric, (value, unit, ratio) in figures.items():
            figure = Figure(
                bench="start",
                case=f"{stored.row_count:,} rows of {DIM}, median of {starts} starts",
                metric=metric,
                method="nearhit",
                value=value,
                unit=unit,
                rival=None if ratio is None else "target",
                rival_value=None if ratio is None else _TARGET_SECONDS,
                ratio=ratio,
                n=stored.row_count,
                bits=CODE_BITS,
                seeds=1,
            )
            print_figure(figure, as_json=arguments.json)
    return 0


def _start(stored: Stored, *, number: int) -> float:
    """Seconds until a new server answers. Raises: CommandError where it does not, or wrongly."""
    command = [sys.executable, "-m", "scripts", "serve", "--config", str(stored.config_path)]
    query = unit_vectors(1)[0]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    try:
        _await_port(process, stored.address, deadline=started + _LIMIT_SECONDS)
        with Client(stored.address, timeout_seconds=_LIMIT_SECONDS) as client:
            row = number * (stored.row_count // 64) % stored.row_count
            client.wait_until_ready(timeout_seconds=_LIMIT_SECONDS)
            answer = client.lookup(CACHE, CATEGORY, text=f"question number {row}")
            client.lookup(CACHE, CATEGORY, embedding=query)
            taken = time.perf_counter() - started
            if answer.response != f"answer {row}".encode():
                raise CommandError(f"the answer to question {row} is {answer.response!r}")
        return taken
    finally:
        process.terminate()
        process.wait()


def _await_port(process: "subprocess.Popen[bytes]", address: str, *, deadline: float) -> None:
    """Return once the port is bound: a channel that finds it closed would pause for a second."""
    host, _, port = address.rpartition(":")
    while process.poll() is None and time.perf_counter() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
            return
        time.sleep(_POLL_SECONDS)
    raise CommandError(f"the server at {address} did not start, status {process.returncode}")

"""Kill -9 while storing and deleting: what was acknowledged must stay, what was deleted must stay away.

Each trial starts a server on the same data, stores and deletes from several threads, kills the server at a
random moment, starts it again and compares it with the clients' ledger; at the end `check` runs.
"""

import argparse
import random
import tempfile
import threading
from pathlib import Path

import numpy as np
from nearhit import Client, NearhitError

from scripts.arguments import positive_integer
from scripts.bench.lines import Figure, add_bench_arguments, print_figure
from scripts.server_process import ServerProcess, write_config
from service.check import check_cache
from service.config import load_config
from service.database import migrate, open_engine

_DIM = 32
_THREADS = 4
_CACHE, _CATEGORY = "crash", "default"


class Ledger:
    """What the clients were told, by entry id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the sets
        self.stored: set[str] = set()
        self.deleted: set[str] = set()
        self.unknown: set[str] = set()  # no answer came: either is right

    def record(self, kind: str, entry: str) -> None:
        """Note an answer."""
        with self._lock:
            getattr(self, kind).add(entry)
            if kind == "deleted":
                self.stored.discard(entry)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_bench_arguments(parser)
    parser.add_argument("--trials", type=positive_integer, default=20, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Measure. Exit status 1 if anything was lost, came back, or an invariant does not hold."""
    trials = min(arguments.trials, 3) if arguments.quick else arguments.trials
    draw = random.Random(arguments.seed)
    ledger = Ledger()
    lost = resurrected = 0
    with tempfile.TemporaryDirectory(prefix="nearhit-crash-") as name:
        config_path = write_config(Path(name))
        config = load_config(config_path)
        engine = open_engine(config.store)
        migrate(engine)
        for trial in range(trials):
            _crash(config_path, config.server.address, ledger, trial=trial, seconds=draw.uniform(0.2, 1.5))
            with ServerProcess(config_path, address=config.server.address) as server:
                there = {entry.name.rpartition("/")[2] for entry in server.client.list_entries(_CACHE)}
            lost += len(ledger.stored - there - ledger.unknown)
            resurrected += len(ledger.deleted & there)
        problems = check_cache(engine, _CACHE, config).problems
        engine.dispose()
    figures = {
        "trials": trials,
        "acknowledged": len(ledger.stored) + len(ledger.deleted),
        "acknowledged_lost": lost,
        "resurrected": resurrected,
        "invariants_broken": len(problems),
    }
    for metric, value in figures.items():
        print_figure(
            Figure(
                bench="crash",
                case=f"{_THREADS} clients",
                metric=metric,
                method="nearhit",
                value=float(value),
                unit="",
                n=trials,
                seeds=1,
            ),
            as_json=arguments.json,
        )
    return 1 if lost or resurrected or problems else 0


def _crash(config_path: Path, address: str, ledger: Ledger, *, trial: int, seconds: float) -> None:
    server = ServerProcess(config_path, address=address)
    server.start()
    if trial == 0:
        server.client.create_cache(_CACHE, dim=_DIM)
        server.client.create_category(_CACHE, _CATEGORY)
    threads = [
        threading.Thread(
            target=_write, args=(address, ledger, f"{trial}-{number}", trial * _THREADS + number)
        )
        for number in range(_THREADS)
    ]
    for thread in threads:
        thread.start()
    threading.Event().wait(seconds)
    server.kill()
    for thread in threads:
        thread.join()


def _write(address: str, ledger: Ledger, prefix: str, seed: int) -> None:
    """Store and delete until the server is gone."""
    random_vectors = np.random.default_rng(seed)
    with Client(address, timeout_seconds=10.0) as client:
        for number in range(100_000):
            entry = f"{prefix}-{number}"
            try:
                client.store(
                    _CACHE,
                    _CATEGORY,
                    embedding=random_vectors.standard_normal(_DIM),
                    response=b"x" * 500,
                    entry=entry,
                )
            except NearhitError:
                ledger.record("unknown", entry)
                return
            ledger.record("stored", entry)
            if number % 5 != 4:
                continue
            doomed = f"{prefix}-{number - 2}"
            try:
                client.delete_entry(_CACHE, doomed)
            except NearhitError:
                ledger.record("unknown", doomed)
                return
            ledger.record("deleted", doomed)

"""Updates beside lookups: latency before, during and after a swap of encoders, and kill -9 of the worker.

A server holds two thirds of the classes; the others arrive in batches, and a worker learns each. A client
process looks up from several threads all the while, without a pause; every answer is checked. First one
update runs undisturbed: `swap` is the two seconds after its end. Then, in each trial, the worker is killed at
a random moment of an update and another one started: the job must succeed, stored codes must stay, the active
encoder must be the one before or the one after, and every invariant must hold. A dead worker's lease lasts
two seconds here. Without --data rows are made up.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from nearhit import Client
from nearhit.client import store_request
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from sqlalchemy import Engine, select

from hashing.checkpoint import load_encoder
from scripts.arguments import CommandError, positive_integer
from scripts.bench.lines import Figure, add_bench_arguments, print_figure
from scripts.bench.lookups import Lookup, Lookups, phase_figures, problems
from scripts.bench.stored import CACHE, CATEGORY, CODE_BITS
from scripts.bench.update_rows import LabelledBatch, intent_rows, made_up_rows, make_store, split_rows
from scripts.server_process import ServerProcess
from service.check import check_cache
from service.config import Config, load_config
from service.database import open_engine, reading
from service.rows import read_cache, read_weights
from service.tables import entries

_BEFORE_SECONDS = 5.0
_AFTER_SECONDS = 2.0
_LIMIT_SECONDS = 300.0
_POLL_SECONDS = 0.02
_QUICK_TRIALS = 1
_BATCH = 256
_ENDED = (pb.Job.STATE_SUCCEEDED, pb.Job.STATE_FAILED, pb.Job.STATE_CANCELLED)

Codes = dict[int, tuple[bytes | None, bytes | None]]


@dataclass(slots=True)
class _Trials:
    """What the trials came to."""

    recover_seconds: list[float] = field(default_factory=list)
    killed_running: int = 0
    jobs_lost: int = 0
    stored_bits_changed: int = 0
    broken: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Bench:
    """What every step works with."""

    config_path: Path
    config: Config
    engine: Engine
    client: Client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_bench_arguments(parser)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with intents.npz")
    parser.add_argument("--trials", type=positive_integer, default=20, help="default %(default)s")
    parser.add_argument("--clients", type=positive_integer, default=2, help="threads (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Measure. Exit status 1 where a lookup failed, a job was lost, a code changed or an invariant broke."""
    count = min(arguments.trials, _QUICK_TRIALS) if arguments.quick else arguments.trials
    rows = intent_rows(arguments.data) if arguments.data else made_up_rows(quick=arguments.quick)
    known, batches = split_rows(rows, batches=count + 1)
    with tempfile.TemporaryDirectory(prefix="nearhit-update-") as name:
        config_path = make_store(Path(name), known)
        config = load_config(config_path)
        engine = open_engine(config.store)
        address = config.server.address
        with (
            ServerProcess(config_path, address=address) as server,
            Lookups(address, row_count=len(known), clients=arguments.clients) as looking,
        ):
            bench = _Bench(config_path, config, engine, server.client)
            before_seconds = 1.0 if arguments.quick else _BEFORE_SECONDS
            phases = _undisturbed(bench, batches[0], before_seconds=before_seconds)
            began, ended = phases["during"]
            # The one kill of a quick run must meet a job that runs.
            latest = (ended - began) * (0.5 if arguments.quick else 1.0)
            draw = random.Random(arguments.seed)
            trials = _Trials()
            for batch in batches[1:]:
                _kill_and_recover(bench, batch, trials, wait_seconds=draw.uniform(0.0, latest))
            lookups = looking.end()
        engine.dispose()
    _report(arguments, lookups, phases, trials, row_count=len(known))
    failed = problems(lookups)
    for problem in sorted({*failed, *trials.broken})[:5]:
        print(problem, file=sys.stderr)
    return 1 if failed or trials.broken or trials.jobs_lost or trials.stored_bits_changed else 0


def _undisturbed(
    bench: _Bench, batch: LabelledBatch, *, before_seconds: float
) -> dict[str, tuple[float, float]]:
    """One update; the phases as ranges of time."""
    with _worker(bench.config_path):
        began = time.monotonic()
        time.sleep(before_seconds)
        _store(bench.client, batch)
        before = time.monotonic()
        job = _queue(bench.client)
        _wait(lambda: _job(bench.client, job).state != pb.Job.STATE_QUEUED)
        running = time.monotonic()
        _wait(lambda: _job(bench.client, job).state in _ENDED)
        ended = time.monotonic()
        done = _job(bench.client, job)
        if done.state != pb.Job.STATE_SUCCEEDED:
            raise CommandError(f"the update failed: {done.error}")
        time.sleep(_AFTER_SECONDS)
        swapped = time.monotonic()
        time.sleep(before_seconds)
    return {
        "before": (began, before),
        "during": (running, ended),
        "swap": (ended, swapped),
        "after": (swapped, time.monotonic()),
    }


def _kill_and_recover(bench: _Bench, batch: LabelledBatch, trials: _Trials, *, wait_seconds: float) -> None:
    _store(bench.client, batch)
    codes, old = _codes(bench.engine), _active(bench.engine)
    with _worker(bench.config_path) as worker:
        job = _queue(bench.client)
        _wait(lambda: _job(bench.client, job).state != pb.Job.STATE_QUEUED)
        time.sleep(wait_seconds)
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    killed = time.monotonic()
    at_kill = _active(bench.engine)
    was_running = _job(bench.client, job).state == pb.Job.STATE_RUNNING
    with _worker(bench.config_path):
        _wait(lambda: _job(bench.client, job).state in _ENDED)
        if was_running:
            trials.killed_running += 1
            trials.recover_seconds.append(time.monotonic() - killed)
    trials.jobs_lost += _job(bench.client, job).state != pb.Job.STATE_SUCCEEDED
    new = _active(bench.engine)
    if at_kill not in ((old, new) if not was_running else (old,)):
        trials.broken.append(f"{at_kill} was active after a kill, between {old} and {new}")
    trials.stored_bits_changed += bits_changed(codes, _codes(bench.engine))
    trials.broken += check_cache(bench.engine, CACHE, bench.config).problems


@contextmanager
def _worker(config_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`nearhit worker` as a process; what is left of it at the end is ended."""
    command = [sys.executable, "-m", "scripts", "worker", "--config", str(config_path)]
    worker = subprocess.Popen(command, start_new_session=True)
    try:
        yield worker
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGTERM)
        worker.wait()


def _store(client: Client, batch: LabelledBatch) -> None:
    for start in range(0, len(batch), _BATCH):
        rows = slice(start, start + _BATCH)
        requests = [
            store_request(CACHE, CATEGORY, embedding=vector, response=b"new", labels=[str(label)])
            for vector, label in zip(batch.embeddings[rows], batch.labels[rows], strict=True)
        ]
        client.batch_store(CACHE, requests)


def _queue(client: Client) -> str:
    request = admin_pb.CreateJobRequest(parent=f"caches/{CACHE}", job=pb.Job(kind=pb.Job.KIND_UPDATE))
    return str(client.call(client.admin.CreateJob, request).name)


def _job(client: Client, name: str) -> pb.Job:
    job: pb.Job = client.call(client.admin.GetJob, admin_pb.GetJobRequest(name=name))
    return job


def _wait(reached: Callable[[], bool]) -> None:
    """Raises: CommandError where it takes too long."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not reached():
        if time.monotonic() > deadline:
            raise CommandError(f"no worker did the update within {_LIMIT_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)


def _active(engine: Engine) -> str:
    """The active encoder, which can be read and is what its id says."""
    with reading(engine) as connection:
        cache = read_cache(connection, CACHE)
        active = str(cache.active_encoder_id)
        return load_encoder(read_weights(connection, cache.id, active)).encoder_id


def _codes(engine: Engine) -> Codes:
    with reading(engine) as connection:
        found = connection.execute(select(entries.c.id, entries.c.code, entries.c.label_code)).all()
    return {row.id: (row.code, row.label_code) for row in found}


def bits_changed(before: Codes, after: Codes) -> int:
    """Bits of codes that were stored and are others now, or gone; a code that is new changes none."""
    changed = 0
    for row_id, codes in before.items():
        for old, new in zip(codes, after.get(row_id, (None, None)), strict=True):
            if old is not None and old != new:
                known = np.frombuffer(old, dtype=np.uint8)
                now = np.frombuffer(new or bytes(255 ^ byte for byte in old), dtype=np.uint8)
                changed += int(np.bitwise_count(known ^ now).sum())
    return changed


def _report(
    arguments: argparse.Namespace,
    lookups: list[Lookup],
    phases: dict[str, tuple[float, float]],
    trials: _Trials,
    *,
    row_count: int,
) -> None:
    dataset = "intents" if arguments.data else "made up"
    case = f"{row_count:,} rows ({dataset}), {arguments.clients} clients"
    for figure in phase_figures("update", lookups, phases, case=case, row_count=row_count):
        print_figure(figure, as_json=arguments.json)
    count = min(arguments.trials, _QUICK_TRIALS) if arguments.quick else arguments.trials
    figures = {
        "failed_lookups": (float(len(problems(lookups))), ""),
        "trials": (float(count), ""),
        "killed_while_running": (float(trials.killed_running), ""),
        "jobs_lost": (float(trials.jobs_lost), ""),
        "stored_bits_changed": (float(trials.stored_bits_changed), ""),
        "invariants_broken": (float(len(trials.broken)), ""),
    }
    if trials.recover_seconds:
        figures["time_to_recover_s"] = (float(np.median(trials.recover_seconds)), "s")
        figures["time_to_recover_s_max"] = (max(trials.recover_seconds), "s")
    for metric, (value, unit) in figures.items():
        figure = Figure(
            bench="update",
            case=f"{case}, kill -9",
            metric=metric,
            method="nearhit",
            value=value,
            unit=unit,
            dataset=dataset,
            n=row_count,
            bits=CODE_BITS,
            seeds=1,
        )
        print_figure(figure, as_json=arguments.json)

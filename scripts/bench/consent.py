"""What a lookup costs where the category asks for a verifier's consent, beside one that asks nobody.

In this process and on one thread, on real questions with their texts: the same entries, the same index and
the same queries, in turn; queries are questions that are not stored, and that have an entry within the
threshold. The verifier is trained on other labelled pairs on the way; its quality is not measured here.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.arguments import CommandError, positive_integer
from scripts.bench.data import unit_rows
from scripts.bench.lines import Figure, add_bench_arguments, print_figure
from scripts.bench.stored import CACHE, CATEGORY
from scripts.bench.timing import Call, interleaved_seconds, median_ms, one_thread
from scripts.row_files import read_lines
from scripts.server_process import write_config
from service.accesses import AccessLog
from service.application import clock_ms
from service.cache import SemanticCache
from service.categories import update_category
from service.config import Config, load_config
from service.database import open_engine, reading, writing
from service.embedding import Input
from service.lookup import LookupQuery, LookupReason
from service.replica import CacheReplica
from service.rows import read_cache
from service.verifiers import activate_verifier, register_verifier

_THRESHOLD = 0.3
_MIN_PROBABILITY = 0.5
_QUERIES, _QUICK_QUERIES = 2_000, 500
_ROWS, _QUICK_ROWS = 50_000, 5_000
_PAIRS, _QUICK_PAIRS = 4_000, 1_000  # to train on: what a lookup costs hardly depends on them
_BATCH = 32
_CALLS, _QUICK_CALLS, _GROUP = 1_000, 200, 20
_SECONDS = 600.0
_RIVAL = "no_consent"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Questions:
    """embeddings: float32 [n, dim] of norm 1; pairs: int [p, 3]; texts: [n]; all as labelled."""

    embeddings: NDArray[np.float32]
    pairs: NDArray[np.int64]
    texts: Sequence[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_bench_arguments(parser)
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="with question_pairs.npz and question_pairs.txt",
    )
    parser.add_argument("--rows", type=positive_integer, help=f"entries at most (default {_ROWS:,})")


def run(arguments: argparse.Namespace) -> int:
    """Measure."""
    questions = _read_questions(arguments.data)
    query_count = _QUICK_QUERIES if arguments.quick else _QUERIES
    asked = np.unique(questions.pairs[-query_count:, 1])
    rows = np.setdiff1d(np.arange(len(questions.texts)), asked)
    rows = rows[-(arguments.rows or (_QUICK_ROWS if arguments.quick else _ROWS)) :]
    with tempfile.TemporaryDirectory(prefix="nearhit-bench-") as name, one_thread():
        config = _load(Path(name), questions, rows)
        plain = _replica(config)
        others = questions.pairs[:-query_count][: _QUICK_PAIRS if arguments.quick else _PAIRS]
        _ask_for_consent(config, questions, others)
        replicas = {_RIVAL: plain, "consent": _replica(config)}
        lookups = SemanticCache(
            accesses=AccessLog(max_entries=1 << 20), embedder=None, clock=clock_ms, min_seq_wait_seconds=0.0
        )
        queries = [
            LookupQuery(
                category=CATEGORY,
                source=Input(embedding=questions.embeddings[row], text=questions.texts[row]),
            )
            for row in asked.tolist()
        ]
        answers = lookups.lookup(plain, queries, timeout_seconds=_SECONDS)
        # Of the others no verifier is asked.
        near = [
            query
            for query, answer in zip(queries, answers, strict=True)
            if answer.reason is LookupReason.WITHIN_THRESHOLD
        ]
        for batch in (1, _BATCH):
            _measure(lookups, replicas, near, batch=batch, arguments=arguments, row_count=len(rows))
    return 0


def _measure(
    lookups: SemanticCache,
    replicas: dict[str, CacheReplica],
    queries: Sequence[LookupQuery],
    *,
    batch: int,
    arguments: argparse.Namespace,
    row_count: int,
) -> None:
    batches = [queries[start : start + batch] for start in range(0, len(queries) - batch + 1, batch)]
    hits = {method: [0] * len(batches) for method in replicas}

    def caller(method: str) -> Call:
        def call(number: int) -> None:
            chosen = number % len(batches)
            answers = lookups.lookup(replicas[method], batches[chosen], timeout_seconds=_SECONDS)
            hits[method][chosen] = sum(answer.is_hit for answer in answers)

        return call

    calls = {method: caller(method) for method in replicas}
    call_count = _QUICK_CALLS if arguments.quick else _CALLS
    taken = interleaved_seconds(calls, rounds=call_count // _GROUP, group=_GROUP)
    latency = {method: median_ms(taken[method]) / batch for method in replicas}
    for method in replicas:
        figure = partial(
            Figure,
            bench="consent",
            case=f"in process, {row_count:,} rows, one within {_THRESHOLD}, {batch} a call",
            method=method,
            dataset="questions",
            n=row_count,
            batch=batch,
            seeds=1,
        )
        rival = None if method == _RIVAL else latency[_RIVAL]
        rated = figure(
            metric="lookup_p50_ms",
            value=latency[method],
            unit="ms",
            rival=None if rival is None else _RIVAL,
            rival_value=rival,
            ratio=None if rival is None else rival / latency[method],
        )
        asked_count = batch * min(len(batches), taken[method].size)
        hit_rate = sum(hits[method]) / asked_count
        for line in (rated, figure(metric="hit_rate", value=hit_rate, unit="")):
            print_figure(line, as_json=arguments.json)


def _read_questions(folder: Path) -> Questions:
    try:
        with np.load(folder / "question_pairs.npz") as archive:
            embeddings, pairs = unit_rows(archive["embeddings"]), archive["pairs"].astype(np.int64)
    except (OSError, ValueError, KeyError) as error:
        raise CommandError(f"{folder}: no labelled questions: {error}") from error
    texts = read_lines(folder / "question_pairs.txt")
    return Questions(embeddings=embeddings, pairs=pairs, texts=texts)


def _load(folder: Path, questions: Questions, rows: NDArray[np.int64]) -> Config:
    """A store and a generation of these rows, made as an operator would; the category's threshold is set."""
    texts = [questions.texts[row] for row in rows.tolist()]
    np.savez(folder / "rows.npz", embeddings=questions.embeddings[rows], text=texts, response=texts)
    config_path = write_config(folder)
    command = [
        *(sys.executable, "-m", "scripts", "build", "--config", str(config_path), "--cache", CACHE),
        *("--input", str(folder / "rows.npz"), "--train", "--json"),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CommandError(f"the build failed: {done.stderr}")
    config = load_config(config_path)
    _update_category(config, threshold=_THRESHOLD)
    return config


def _ask_for_consent(config: Config, questions: Questions, pairs: NDArray[np.int64]) -> None:
    """Train a verifier on these pairs, activate it, and have the category ask it."""
    try:
        from hashing.deep.verifier import VerifierConfig, train_verifier
    except ImportError as error:
        raise CommandError("needs the extra `train`: pip install nearhit[train]") from error
    rows, places = np.unique(pairs[:, :2], return_inverse=True)
    trained = train_verifier(
        questions.embeddings[rows],
        np.column_stack([places.reshape(-1, 2), pairs[:, 2]]),
        texts=[questions.texts[row] for row in rows.tolist()],
        config=VerifierConfig(folds=2),
    )
    engine = open_engine(config.store)
    with writing(engine) as connection:
        cache = read_cache(connection, CACHE)
        register_verifier(connection, cache, trained, modality="text", now_ms=clock_ms())
        activate_verifier(connection, cache.id, trained.verifier_id)
    engine.dispose()
    _update_category(config, min_probability=_MIN_PROBABILITY)


def _update_category(config: Config, **changed: float) -> None:
    engine = open_engine(config.store)
    with writing(engine) as connection:
        update_category(connection, CACHE, CATEGORY, etag="", changed=changed, now_ms=clock_ms())
    engine.dispose()


def _replica(config: Config) -> CacheReplica:
    """The cache as it is set now."""
    engine = open_engine(config.store)
    with reading(engine) as connection:
        record = read_cache(connection, CACHE)
    return CacheReplica(engine, record, search=config.search, data_dir=config.store.data_dir)

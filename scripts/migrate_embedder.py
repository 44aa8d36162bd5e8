"""Change a cache's embedding model: serve the new one's queries at once, embed entries anew, then finish.

--to ID learns a map from the new embedder's space to the old one's, from entries embedded by both. If it
finds what the old embedder finds, on entries that were held out, running servers take queries and entries of
both embedders from then on: those that name ID as their embedder_id (or whose text the server embeds by it)
are of the new one, all others of the old one. A query of the new one finds entries of both; distances to the
old ones are of the mapped query, and lookups decide by thresholds that were calibrated for them. A query of
the old one finds old entries alone: switch applications first, then embed anew.

Give the new embeddings with --pairs, or have the configured [embedder] embed texts of the cache. Some 1,000
entries make a map; with under 300 none of its distances can be shown to be safe to answer by, with under 60,
or 100 entries stored, it is refused. --reembed leaves the rest to a `nearhit worker` whose [embedder] is the
new one, most used entries first; texts that it fails at stay and are counted. Without an option it shows how
things stand. Exit status 0 done, 4 the map was rejected.

Examples:
  nearhit migrate-embedder --cache faq --to all-MiniLM-L6-v2
  nearhit migrate-embedder --cache faq --to my-model-2 --pairs new.parquet
  nearhit migrate-embedder --cache faq --reembed --follow
  nearhit migrate-embedder --cache faq --finish
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from scripts.arguments import (
    CommandError,
    ProgressBars,
    add_config,
    add_json,
    positive_integer,
    print_result,
    read_config,
)
from scripts.follow_job import follow_job, job_values
from scripts.row_files import RowBatch, RowFile, open_rows
from service import jobs
from service.application import clock_ms
from service.coding import normalise
from service.config import EmbedderConfig
from service.database import check_schema, open_engine, reading, writing
from service.embedder import EMBED_SECONDS, Embedder, patient
from service.embedder_migration import (
    abort_migration,
    changing_space,
    check_may_start,
    finish_migration,
    start_migration,
)
from service.embedding import DEFAULT_MODALITY
from service.errors import InvalidRequestError
from service.migration_state import migration_state
from service.reembedding import BATCH_ROWS, ReembedReport, count_left, move_rows, rows_of_names, sample_texts
from service.rows import read_cache

REJECTED = 4
MAX_PAIRS = 200_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--modality", default=DEFAULT_MODALITY, help="default %(default)s")
    step = parser.add_mutually_exclusive_group()
    step.add_argument(
        "--to", metavar="ID", help="learn a map from this embedder, and serve by it if it passes"
    )
    step.add_argument("--reembed", action="store_true", help="embed entries anew, in a worker")
    step.add_argument("--finish", action="store_true", help="the new embedder is the cache's from now on")
    step.add_argument(
        "--abort", action="store_true", help="undo --to, before entries are of the new embedder"
    )
    parser.add_argument(
        "--pairs",
        type=Path,
        metavar="FILE",
        help="with --to: .npz, .jsonl or .parquet of `id` of entries and `embeddings` by the new embedder;"
        " without it the configured [embedder] embeds texts of entries",
    )
    parser.add_argument(
        "--sample",
        type=positive_integer,
        default=2000,
        metavar="N",
        help="with --to, without --pairs: entries to embed, the most used ones (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --to; default %(default)s")
    parser.add_argument("--follow", action="store_true", help="with --reembed: show progress until it ends")
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="FILE",
        help="with --reembed: take embeddings from a file as of --pairs, at once and without a worker",
    )
    parser.add_argument(
        "--drop-rest", action="store_true", help="with --finish: delete entries that are of the old embedder"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do one step, or show how things stand."""
    _check_options(arguments)
    config = read_config(arguments)
    engine = open_engine(config.store)
    check_schema(engine)
    if arguments.to is not None:
        return _start(engine, arguments, config.embedder)
    if arguments.reembed and arguments.embeddings is not None:
        result = asdict(_reembed_from_file(engine, arguments))
    elif arguments.reembed:
        return _queue(engine, arguments)
    elif arguments.finish:
        ended = finish_migration(
            engine,
            arguments.cache,
            modality=arguments.modality,
            drop_rest=arguments.drop_rest,
            clock=clock_ms,
        )
        result = asdict(ended)
    elif arguments.abort:
        result = asdict(abort_migration(engine, arguments.cache, modality=arguments.modality, clock=clock_ms))
    else:
        result = migration_state(engine, arguments.cache, modality=arguments.modality, now_ms=clock_ms())
    print_result(result, as_json=arguments.json)
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise CommandError for an option of another step."""
    for option, step, is_of_step in (
        ("pairs", "--to", arguments.to is not None),
        ("embeddings", "--reembed", arguments.reembed),
        ("follow", "--reembed", arguments.reembed),
        ("drop_rest", "--finish", arguments.finish),
    ):
        if getattr(arguments, option) and not is_of_step:
            raise CommandError(f"--{option.replace('_', '-')} goes with {step}")
    if arguments.follow and arguments.embeddings is not None:
        raise CommandError("--follow does not go with --embeddings: that is done at once")


def _start(engine: Engine, arguments: argparse.Namespace, embedder: EmbedderConfig) -> int:
    progress = ProgressBars(silent=arguments.json)
    if arguments.pairs is not None:
        names, embeddings = _read_pairs(engine, arguments, progress)
    else:
        names, embeddings = _embed_sample(engine, arguments, embedder, progress)
    report = start_migration(
        engine,
        arguments.cache,
        modality=arguments.modality,
        embedder_id=arguments.to,
        names=names,
        embeddings=embeddings,
        seed=arguments.seed,
        clock=clock_ms,
        progress=progress,
    )
    progress.close()
    state = migration_state(engine, arguments.cache, modality=arguments.modality, now_ms=clock_ms())
    told = asdict(report)
    del told["mapped_thresholds"]
    print_result({**told, "thresholds": state["thresholds"]}, as_json=arguments.json)
    return 0 if report.accepted else REJECTED


def _read_pairs(
    engine: Engine, arguments: argparse.Namespace, progress: ProgressBars
) -> tuple[list[str], NDArray[np.float32]]:
    """Ids and embeddings of a file. Raises: CommandError; ServiceError before a large file is read."""
    file = open_rows(arguments.pairs)
    with reading(engine) as connection:
        record = read_cache(connection, arguments.cache)
    check_may_start(record, modality=arguments.modality, embedder_id=arguments.to, dim=file.dim)
    names: set[str] = set()
    ordered: list[str] = []
    parts: list[NDArray[np.float32]] = []
    for batch in file.batches():
        ordered += _new_names(file, batch, names)
        parts.append(_unit_rows(file, batch))
        if len(names) > MAX_PAIRS:
            raise CommandError(f"{file.path}: over {MAX_PAIRS} rows: a map needs some thousands")
        progress("read", len(names), file.row_count or len(names))
    return ordered, np.concatenate(parts) if parts else np.empty((0, file.dim), dtype=np.float32)


def _embed_sample(
    engine: Engine, arguments: argparse.Namespace, config: EmbedderConfig, progress: ProgressBars
) -> tuple[list[str], NDArray[np.float32]]:
    """Ids and embeddings of entries with texts, by the configured embedder. Raises: CommandError."""
    if not config.model:
        raise CommandError("no [embedder] model is configured to embed texts by: give --pairs FILE")
    if arguments.modality != DEFAULT_MODALITY:
        raise CommandError(f"texts cannot be embedded for modality {arguments.modality!r}: give --pairs FILE")
    with _started(config) as embedder:
        assert embedder.spec is not None, "it was started"
        if embedder.spec.embedder_id != arguments.to:
            raise CommandError(
                f"the configured [embedder] is {embedder.spec.embedder_id!r}, not {arguments.to!r}"
            )
        with reading(engine) as connection:
            record = read_cache(connection, arguments.cache)
            space = check_may_start(
                record, modality=arguments.modality, embedder_id=arguments.to, dim=embedder.spec.dim
            )
            texts = sample_texts(connection, record, space=space, count=arguments.sample, seed=arguments.seed)
        if not texts:
            raise CommandError(f"no entry of cache {arguments.cache} has a text: give --pairs FILE")
        asked, parts = list(texts.values()), []
        for start in range(0, len(asked), BATCH_ROWS):
            progress("embed", start, len(asked))
            parts.append(embedder.embed(asked[start : start + BATCH_ROWS], timeout_seconds=EMBED_SECONDS))
    return list(texts), normalise(np.concatenate(parts))


@contextmanager
def _started(config: EmbedderConfig) -> Iterator[Embedder]:
    embedder = Embedder(patient(config))
    try:
        embedder.start()
        yield embedder
    finally:
        embedder.stop()


def _queue(engine: Engine, arguments: argparse.Namespace) -> int:
    if arguments.modality != DEFAULT_MODALITY:
        raise CommandError(
            f"texts cannot be embedded for modality {arguments.modality!r}: give --embeddings FILE"
        )
    with writing(engine) as connection:
        record = read_cache(connection, arguments.cache)
        _, spec = changing_space(record, arguments.modality)
        job = jobs.enqueue(
            connection, record.id, kind=jobs.REEMBED, source=spec.embedder_id, now_ms=clock_ms()
        )
    if not arguments.follow:
        print_result(job_values(job), as_json=arguments.json)
        return 0
    ended = follow_job(engine, arguments.cache, job.name, progress=ProgressBars(silent=arguments.json))
    if ended.state != jobs.SUCCEEDED:
        why = f": {ended.error}" if ended.error else ""
        raise CommandError(f"job {ended.name} {ended.state}{why}")
    print_result(json.loads(ended.report), as_json=arguments.json)
    return 0


def _reembed_from_file(engine: Engine, arguments: argparse.Namespace) -> ReembedReport:
    """Move the entries that a file has embeddings of. Raises: CommandError; ServiceError."""
    file = open_rows(arguments.embeddings)
    with reading(engine) as connection:
        _, spec = changing_space(read_cache(connection, arguments.cache), arguments.modality)
    if file.dim != spec.dim:
        raise CommandError(f"{file.path} has {file.dim} dimensions, {spec.embedder_id} makes {spec.dim}")
    row_count = 0
    checked: set[str] = set()
    for batch in file.batches():  # nothing is moved unless every row is valid
        _new_names(file, batch, checked)
        _unit_rows(file, batch)
        row_count = batch.numbers.stop
    progress = ProgressBars(silent=arguments.json)
    moved = evicted = unknown = 0
    for batch in file.batches():
        names, vectors = _names(file, batch), _unit_rows(file, batch)
        for start in range(0, len(names), BATCH_ROWS):
            part = slice(start, start + BATCH_ROWS)
            with reading(engine) as connection:
                record = read_cache(connection, arguments.cache)
                row_ids = rows_of_names(connection, record, names[part], modality=arguments.modality)
            made = {
                row_ids[name]: vector
                for name, vector in zip(names[part], vectors[part], strict=True)
                if name in row_ids
            }
            counts = move_rows(
                engine,
                arguments.cache,
                made,
                modality=arguments.modality,
                embedder_id=spec.embedder_id,
                clock=clock_ms,
            )
            moved, evicted = moved + counts[0], evicted + counts[1]
            unknown += len(names[part]) - len(made)
            progress("move", batch.numbers.start + start + len(names[part]), row_count)
    progress.close()
    left = count_left(engine, arguments.cache, modality=arguments.modality, now_ms=clock_ms())
    return ReembedReport(moved_count=moved, left_count=left, unknown_count=unknown, evicted_count=evicted)


def _names(file: RowFile, batch: RowBatch) -> list[str]:
    """The ids of the rows. Raises: CommandError."""
    ids = batch.columns.get("id")
    if ids is None or any(own is None for own in ids):
        raise CommandError(f"{file.path}: every row needs the `id` of an entry")
    return [str(own) for own in ids]


def _new_names(file: RowFile, batch: RowBatch, known: set[str]) -> list[str]:
    """The ids of the rows, which are added to the known ones. Raises: CommandError: one is known already."""
    names = _names(file, batch)
    for name in names:
        if name in known:
            raise CommandError(f"{file.path}: id {name!r} is there twice")
        known.add(name)
    return names


def _unit_rows(file: RowFile, batch: RowBatch) -> NDArray[np.float32]:
    """The embeddings at length 1. Raises: CommandError that names the row."""
    try:
        return normalise(batch.embeddings)
    except InvalidRequestError:
        for number, row in zip(batch.numbers, batch.embeddings, strict=True):
            try:
                normalise(row[None])
            except InvalidRequestError as error:
                raise CommandError(f"{file.path}: row {number}: {error.message}") from error
        raise

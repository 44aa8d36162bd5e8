"""Build a generation of a cache's index, from the store or from a file that is loaded into it first.

A file is .npy (embeddings only), .npz, .jsonl or .parquet with `embeddings` (.npz) or `embedding`, and any
of the columns id, category, text, response, labels, tags, source, scope, cost, model. Rows without an id get
"row-<number>". A row whose id, or whose scope and text, is stored already is skipped, so a build that was
interrupted can be run again and goes on where it was. Nothing is stored unless every row is valid. The cache
and its categories are created where they do not exist. With --train, a large file's training rows are loaded
first, evenly spread over it, so that the others are stored with codes; of rows with the same scope and text
one of those is then the one that is stored, otherwise the first. A running server opens the new generation
within a second.

Examples:
  nearhit build --cache faq
  nearhit build --cache questions --input questions.npz --train
  nearhit build --cache intents --input intents.npz --rename intent=labels --category queries
"""

import argparse
import time
from functools import partial
from pathlib import Path

from sqlalchemy import Engine

from hashing.checkpoint import load_encoder
from hashing.config import EncoderConfig
from scripts.arguments import ProgressBars, add_config, add_json, positive_number, print_result, read_config
from scripts.load_rows import LoadReport, check_file, load_file
from scripts.train_encoder import warn_of_few_rows
from service.application import clock_ms
from service.config import Config
from service.database import check_schema, migrate, open_engine, reading, writing
from service.generations import build_index
from service.learning import MAX_TRAINING_ROWS, train_from_store
from service.registry import activate_encoder
from service.rows import read_cache, read_caches, read_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--input", type=Path, metavar="FILE", help="rows to load first")
    parser.add_argument("--category", default="default", help="of rows that name none (default %(default)s)")
    parser.add_argument("--rename", action="append", default=[], metavar="COLUMN=NAME", help="repeatable")
    parser.add_argument("--texts", type=Path, metavar="FILE.txt", help="line i is the text of row i")
    parser.add_argument("--embedder-id", default="", help="model that made the embeddings")
    parser.add_argument("--code-bits", type=int, default=256, help="for a new cache (default %(default)s)")
    parser.add_argument("--label-bits", type=int, default=64, help="for a new cache (default %(default)s)")
    parser.add_argument(
        "--train", action="store_true", help="train and activate an encoder where there is none"
    )
    parser.add_argument("--graph", action="store_true", help="write a float graph (HNSW) per segment")
    parser.add_argument(
        "--reencode",
        action="store_true",
        help="recode all entries with the active encoder, not only new ones",
    )
    parser.add_argument(
        "--memory-limit",
        type=positive_number,
        default=2.0,
        metavar="GIB",
        help="rows held at once (default %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Build."""
    config = read_config(arguments)
    engine = open_engine(config.store)
    started = time.perf_counter()
    progress = ProgressBars(silent=arguments.json)
    loaded = None
    if arguments.input is not None:
        migrate(engine)
        loaded = _load(engine, arguments, config=config, progress=progress)
    check_schema(engine)
    if arguments.train:
        _train(engine, arguments.cache, config=config, progress=progress)
    built = build_index(
        engine,
        arguments.cache,
        search=config.search,
        data_dir=config.store.data_dir,
        with_graph=arguments.graph,
        reencode=arguments.reencode,
        memory_limit_bytes=max(1, int(arguments.memory_limit * 2**30)),
        progress=progress,
        now_ms=clock_ms(),
    )
    progress.close()
    print_result(
        {
            "generation": built.report.generation,
            "rows": built.report.row_count,
            "segments": built.report.segment_count,
            "rows_loaded": loaded.stored_count if loaded else 0,
            "rows_skipped": loaded.skipped_count if loaded else 0,
            "columns_ignored": ", ".join(loaded.ignored) if loaded else "",
            "rows_coded": built.coded_count,
            "watermark": built.watermark,
            "seconds": round(time.perf_counter() - started, 2),
        },
        as_json=arguments.json,
    )
    return 0


def _load(
    engine: Engine, arguments: argparse.Namespace, *, config: Config, progress: ProgressBars
) -> LoadReport:
    """Load the file; what is to be trained on goes first, so that the other rows are stored with codes."""
    file, row_count = check_file(arguments, config=config, progress=progress)
    load = partial(load_file, engine, file, arguments, config=config, progress=progress)
    is_large = row_count >= 2 * MAX_TRAINING_ROWS
    if not arguments.train or not is_large or _is_trained(engine, arguments.cache):
        return load()
    # As many rows, as evenly spread, as training reads of all of them.
    sample = load(step=row_count // MAX_TRAINING_ROWS)
    _train(engine, arguments.cache, config=config, progress=progress)
    rest = load()
    return LoadReport(
        stored_count=sample.stored_count + rest.stored_count,
        skipped_count=rest.skipped_count - sample.stored_count,
        ignored=file.ignored,
    )


def _train(engine: Engine, name: str, *, config: Config, progress: ProgressBars) -> None:
    """Train and activate an encoder, unless the cache has an active one."""
    if _is_trained(engine, name):
        return
    with reading(engine) as connection:
        cache = read_cache(connection, name)
    encoder = train_from_store(
        engine,
        name,
        config=EncoderConfig(code_bits=cache.code_bits, label_bits=cache.label_bits),
        modality=next(iter(cache.modalities)),
        progress=progress,
        now_ms=clock_ms(),
    )
    warn_of_few_rows(encoder, cache=name)
    with writing(engine) as connection:
        activate_encoder(
            connection, cache.id, encoder.encoder_id, max_live_encoders=config.search.max_live_encoders
        )


def _is_trained(engine: Engine, name: str) -> bool:
    """Whether there is a cache of that name with an active encoder, not one of a replaced embedder."""
    with reading(engine) as connection:
        cache = next((cache for cache in read_caches(connection) if cache.name == name), None)
        if cache is None or cache.active_encoder_id is None:
            return False
        encoder = load_encoder(read_weights(connection, cache.id, cache.active_encoder_id))
    return not set(encoder.modalities).isdisjoint(cache.modalities)

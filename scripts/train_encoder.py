"""Train an encoder on what a cache holds.

Without labels it learns instance codes (ITQ, or a random rotation as baseline); entries that carry labels
also teach it label codes for class retrieval. With --pairs it learns from a file instead, which pairs of rows
are similar and which are not (needs the extra `train`). The encoder becomes a candidate; --activate makes it
the one that codes new entries and queries. Entries stored before get their codes from `nearhit build`.
"""

import argparse
import sys
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from hashing.config import EncoderConfig
from hashing.crossmodal_config import CrossModalConfig
from hashing.inference import Encoder
from hashing.trainer import HELD_OUT_MIN_ROWS, Progress
from scripts.arguments import (
    CommandError,
    ProgressBars,
    add_config,
    add_json,
    positive_integer,
    print_result,
    read_config,
)
from service.application import clock_ms
from service.crossmodal_learning import train_crossmodal_from_store
from service.database import check_schema, open_engine, reading, writing
from service.learning import train_from_store
from service.records import CacheRecord, EncoderRecord
from service.registry import activate_encoder, register_encoder
from service.rows import read_cache


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--method", choices=("itq", "rotation"), default="itq", help="default %(default)s")
    parser.add_argument(
        "--pairs",
        type=Path,
        metavar="FILE",
        help=".npz: embeddings [n, dim], pairs [p, 3] of row, row, 1 (similar) or 0",
    )
    parser.add_argument("--modality", default="text", help="default %(default)s")
    parser.add_argument(
        "--crossmodal",
        action="store_true",
        help="one encoder of all modalities of the cache, from labels they share or entries of equal source",
    )
    parser.add_argument(
        "--iterations", type=positive_integer, default=50, help="of ITQ (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--activate", action="store_true", help="use it at once")


def run(arguments: argparse.Namespace) -> int:
    """Train."""
    config = read_config(arguments)
    engine = open_engine(config.store)
    check_schema(engine)
    with reading(engine) as connection:
        cache = read_cache(connection, arguments.cache)
    progress = ProgressBars(silent=arguments.json)
    if arguments.pairs is not None:
        trained = _train_on_pairs(arguments, cache, progress=progress)
        with writing(engine) as connection:
            encoder = register_encoder(
                connection, cache, trained, learning_state=None, watermark=cache.seq, now_ms=clock_ms()
            )
    elif arguments.crossmodal:
        encoder = train_crossmodal_from_store(
            engine,
            arguments.cache,
            config=CrossModalConfig(
                code_bits=cache.code_bits,
                label_bits=cache.label_bits,
                itq_iterations=arguments.iterations,
                seed=arguments.seed,
            ),
            progress=progress,
            now_ms=clock_ms(),
        )
    else:
        encoder = train_from_store(
            engine,
            arguments.cache,
            config=EncoderConfig(
                method=arguments.method,
                code_bits=cache.code_bits,
                label_bits=cache.label_bits,
                itq_iterations=arguments.iterations,
                seed=arguments.seed,
            ),
            modality=arguments.modality,
            progress=progress,
            now_ms=clock_ms(),
        )
    progress.close()
    warn_of_few_rows(encoder, cache=cache.name)
    if arguments.activate:
        with writing(engine) as connection:
            encoder = activate_encoder(
                connection,
                cache.id,
                encoder.encoder_id,
                max_live_encoders=config.search.max_live_encoders,
            )
    figures = {name: round(value, 4) for name, value in sorted(encoder.metrics.items())}
    print_result(
        {
            "encoder": encoder.encoder_id,
            "state": encoder.state,
            "code_bits": cache.code_bits,
            "label_bits": encoder.label_bits,
            "classes": encoder.class_count,
            **figures,
        },
        as_json=arguments.json,
    )
    return 0


def _train_on_pairs(arguments: argparse.Namespace, cache: CacheRecord, *, progress: Progress) -> Encoder:
    """Raises: CommandError for a file that is no such pairs, or without torch; TrainingDataError."""
    try:
        from hashing.deep.config import PairConfig
        from hashing.deep.training import train_pairs
    except ImportError as error:
        raise CommandError("--pairs needs the extra `train`: pip install nearhit[train]") from error
    try:
        with np.load(arguments.pairs, allow_pickle=False) as archive:
            embeddings, pairs = archive["embeddings"], archive["pairs"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CommandError(f"{arguments.pairs}: no .npz of embeddings and pairs: {error}") from error
    modality = cache.modalities.get(arguments.modality)
    if modality is None:
        raise CommandError(f"cache {cache.name} has no modality {arguments.modality!r}")
    if embeddings.ndim != 2 or embeddings.shape[1] != modality.dim:
        raise CommandError(
            f"{arguments.pairs}: embeddings are {list(embeddings.shape)}, the cache's are [n, {modality.dim}]"
        )
    config = PairConfig(code_bits=cache.code_bits, seed=arguments.seed)
    return train_pairs(embeddings, pairs, config=config, modality=arguments.modality, progress=progress)


def warn_of_few_rows(encoder: EncoderRecord, *, cache: str) -> None:
    """Say on standard error where an encoder was trained on too few rows to measure its radii on."""
    if encoder.metrics["held_out_row_count"] > 0:
        return
    message = (
        f"nearhit: warning: on {encoder.metrics['row_count']:.0f} rows no Hamming radii can be measured, and"
        " this encoder has none for good: searches by its codes narrow nothing down. From"
        f" {HELD_OUT_MIN_ROWS} entries on run `nearhit train --cache {cache} --activate` again, then"
        f" `nearhit build --cache {cache} --reencode`."
    )
    print(message, file=sys.stderr)

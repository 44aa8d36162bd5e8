"""Train an encoder on what a cache holds, or on files.

Without labels it learns instance codes (ITQ, or a random rotation as baseline); entries that carry labels
also teach it label codes for class retrieval. With --preset, --training, --pairs or --data a tower is trained
by gradient instead. The encoder becomes a candidate; --activate makes it the one that codes new entries and
queries. Entries stored before get their codes from `nearhit build`.

Examples:
  nearhit train --cache faq --activate
  nearhit train --cache faq --pairs pairs.npz --activate
  nearhit train --preset labelled --show > mine.toml
  nearhit train --cache faq --training mine.toml --data rows.parquet
  nearhit train --preset text-pairs --pairs questions.jsonl --out tower
  nearhit train --cache art --preset crossmodal-paired --data image=images.npy --data text=captions.npy
"""

import argparse
import sys
from typing import Any

from hashing.config import EncoderConfig
from hashing.crossmodal_config import CrossModalConfig
from hashing.trainer import HELD_OUT_MIN_ROWS
from scripts.arguments import (
    CommandError,
    ProgressBars,
    add_config,
    add_json,
    positive_integer,
    print_result,
    read_config,
)
from scripts.gradient_training import (
    add_gradient_arguments,
    show_preset,
    train_by_gradient,
    train_text_encoder,
    train_text_preset,
    wants_gradient,
)
from scripts.train_text_tower import TEXT_PRESET
from service.application import clock_ms
from service.crossmodal_learning import train_crossmodal_from_store
from service.database import check_schema, open_engine, reading, writing
from service.learning import keep_encoder, train_from_store
from service.records import EncoderRecord
from service.registry import activate_encoder
from service.rows import read_cache
from service.spaces import current_space


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--cache", help="required, but not with --show or --preset text-pairs")
    parser.add_argument("--method", choices=("itq", "rotation"), default="itq", help="default %(default)s")
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
    add_gradient_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train."""
    if arguments.show:
        print(show_preset(arguments.preset), end="")
        return 0
    config = read_config(arguments)
    if arguments.preset == TEXT_PRESET and arguments.cache is None:
        if arguments.activate:
            raise CommandError("--activate needs --cache")
        _, found = train_text_preset(arguments, progress=ProgressBars(silent=arguments.json))
        print_result(found, as_json=arguments.json)
        return 0
    if arguments.cache is None:
        raise CommandError("name the cache with --cache")
    engine = open_engine(config.store)
    check_schema(engine)
    with reading(engine) as connection:
        cache = read_cache(connection, arguments.cache)
    arguments.modality = current_space(cache, arguments.modality)
    progress = ProgressBars(silent=arguments.json)
    written: dict[str, Any] = {}
    if arguments.preset == TEXT_PRESET:
        encoder, written = train_text_encoder(engine, cache, arguments, progress=progress)
    elif wants_gradient(arguments):
        trained, watermark, stored = train_by_gradient(
            engine, cache, arguments, config=config, progress=progress
        )
        encoder = keep_encoder(
            engine,
            cache,
            trained,
            watermark=watermark,
            read_row_ids=stored.row_ids,
            teaching=stored.teaching,
            now_ms=clock_ms(),
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
            **written,
        },
        as_json=arguments.json,
    )
    return 0


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

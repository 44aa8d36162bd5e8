"""Train a verifier: a second stage that tells with what probability two texts may share an answer.

It learns from a file of labelled pairs (needs the extra `train`): a .npz of embeddings and row numbers, with
the texts in it or in --texts where they are known, or a .jsonl of {"a": text, "b": text, "label": 1 or 0},
which the configured embedder embeds. The verifier becomes a candidate; --activate makes it the one that
lookups ask in categories with a `min_probability`.

Examples:
  nearhit train-verifier --cache faq --pairs pairs.npz --texts questions.txt --activate
  nearhit train-verifier --cache faq --pairs pairs.jsonl --config nearhit.toml
"""

import argparse
from pathlib import Path

import numpy as np

from hashing.trainer import Progress
from hashing.verifier import Verifier
from scripts.arguments import CommandError, ProgressBars, add_config, add_json, print_result, read_config
from scripts.pair_files import EmbeddedPairs, read_embedded_pairs, read_text_pairs
from scripts.row_files import read_lines
from scripts.training_files import embed_texts
from service.application import clock_ms
from service.coding import normalise
from service.config import EmbedderConfig
from service.database import check_schema, open_engine, reading, writing
from service.embedding import DEFAULT_MODALITY
from service.payload import known_text
from service.records import CacheRecord
from service.rows import read_cache
from service.spaces import current_space
from service.verifiers import activate_verifier, register_verifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_config(parser)
    add_json(parser)
    parser.add_argument("--cache", required=True)
    parser.add_argument(
        "--pairs",
        type=Path,
        metavar="FILE",
        required=True,
        help=".npz: embeddings [n, dim], pairs [p, 3] of row, row, 1 (same) or 0, maybe text [n]; or .jsonl",
    )
    parser.add_argument("--texts", type=Path, metavar="FILE", help="line i is the text of row i of a .npz")
    parser.add_argument("--modality", default=DEFAULT_MODALITY, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--activate", action="store_true", help="use it at once")


def run(arguments: argparse.Namespace) -> int:
    """Train."""
    config = read_config(arguments)
    engine = open_engine(config.store)
    check_schema(engine)
    with reading(engine) as connection:
        cache = read_cache(connection, arguments.cache)
    space = current_space(cache, arguments.modality)
    progress = ProgressBars(silent=arguments.json)
    pairs = _read_pairs(arguments, cache, config.embedder, progress=progress)
    trained = _train(pairs, seed=arguments.seed, progress=progress)
    progress.close()
    with writing(engine) as connection:
        verifier = register_verifier(connection, cache, trained, modality=space, now_ms=clock_ms())
        if arguments.activate:
            verifier = activate_verifier(connection, cache.id, verifier.verifier_id)
    print_result(
        {
            "verifier": verifier.verifier_id,
            "state": verifier.state,
            "modality": arguments.modality,
            "with_texts": pairs.texts is not None,
            **{name: round(value, 4) for name, value in sorted(verifier.metrics.items())},
        },
        as_json=arguments.json,
    )
    return 0


def _train(pairs: EmbeddedPairs, *, seed: int, progress: Progress) -> Verifier:
    """Raises: CommandError without torch or scikit-learn; ConfigError; TrainingDataError."""
    try:
        from hashing.deep.verifier import VerifierConfig, train_verifier
    except ImportError as error:
        raise CommandError("needs the extra `train`: pip install nearhit[train]") from error
    return train_verifier(
        normalise(pairs.embeddings.astype(np.float32)),
        pairs.pairs,
        # As lookups show them to it.
        texts=None if pairs.texts is None else [known_text(text) for text in pairs.texts],
        config=VerifierConfig(seed=seed),
        progress=progress,
    )


def _read_pairs(
    arguments: argparse.Namespace, cache: CacheRecord, config: EmbedderConfig, *, progress: Progress
) -> EmbeddedPairs:
    """Pairs of rows in the cache's space. Raises: CommandError, ServiceError."""
    modality, path = arguments.modality, arguments.pairs
    spec = cache.modalities[current_space(cache, modality)]
    if path.suffix == ".jsonl":
        if arguments.texts is not None:
            raise CommandError("--texts goes with a .npz: a .jsonl holds its texts")
        if modality != DEFAULT_MODALITY:
            raise CommandError(f"texts cannot be embedded for modality {modality!r}: give a .npz")
        named = read_text_pairs(path)
        embeddings = embed_texts(named.texts, embedder=config, cache=cache, progress=progress)
        return EmbeddedPairs(embeddings=embeddings, pairs=named.pairs, texts=named.texts)
    pairs = read_embedded_pairs(path)
    shape = list(pairs.embeddings.shape)
    if len(shape) != 2 or shape[1] != spec.dim or pairs.embeddings.dtype.kind != "f":
        raise CommandError(
            f"{path}: embeddings are {pairs.embeddings.dtype}{shape}, the cache's are floats [n, {spec.dim}]"
        )
    texts = pairs.texts if arguments.texts is None else read_lines(arguments.texts)
    if texts is not None and len(texts) != shape[0]:
        source = path if arguments.texts is None else arguments.texts
        raise CommandError(f"{source}: {len(texts)} texts for {shape[0]} rows")
    return EmbeddedPairs(embeddings=pairs.embeddings, pairs=pairs.pairs, texts=texts)

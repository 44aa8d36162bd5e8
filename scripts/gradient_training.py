"""Train by gradient: what the arguments of `nearhit train` name, as a training set, and the encoder of it."""

import argparse
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Engine

from hashing.trainer import Progress, TrainedEncoder
from scripts.arguments import CommandError
from scripts.train_text_tower import TEXT_PRESET, read_text_preset, train_text_tower_files
from scripts.training_files import TrainingRows, item_numbers, read_pairs, read_rows
from service.application import clock_ms
from service.config import Config
from service.database import reading
from service.learning import StoredRows, keep_encoder, read_training_rows
from service.records import CacheRecord, EncoderRecord
from service.registry import issued_class_codes
from service.spaces import current_space

if TYPE_CHECKING:
    from hashing.deep.text_training import TrainedTextTower
    from hashing.deep.training_set import TrainingSet

DEFAULT_PRESET = "pairs"
_PRESETS = (
    "pairs, labelled, unlabelled, multi-view, crossmodal-paired, crossmodal-labelled, semi-paired, text-pairs"
)


def add_gradient_arguments(parser: argparse.ArgumentParser) -> None:
    """What says how to train by gradient, and on what."""
    group = parser.add_argument_group("training by gradient (needs the extra `train`)")
    group.add_argument("--preset", metavar="NAME", help=f"one of {_PRESETS}")
    group.add_argument(
        "--training", type=Path, metavar="FILE", help="a training configuration of your own, TOML"
    )
    group.add_argument("--show", action="store_true", help="print the preset, to copy and change, and end")
    group.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[MODALITY=]FILE",
        help=".npy, .npz, .jsonl or .parquet of embeddings, with `labels` (one, several, or a 0/1 matrix) and"
        " `id` where rows have them; rows of several modalities with equal ids, or else in the same place,"
        " are of one item. Without it, the cache's entries",
    )
    group.add_argument(
        "--pairs",
        type=Path,
        metavar="FILE",
        help=".npz of pairs [p, 3] (row, row, 1 similar or 0) and, without --data, embeddings [n, dim]; or"
        " .jsonl of {a, b, label}, where a and b are ids of --data, or else texts for the embedder",
    )
    group.add_argument(
        "--views", metavar="DIM,DIM", help="rows are several embeddings side by side, of these dimensions"
    )
    group.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="keep the state here and go on from it",
    )
    group.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="of --preset text-pairs: where the tower is written",
    )
    group.add_argument("--device", help="of torch; default: the GPU where there is one")


def wants_gradient(arguments: argparse.Namespace) -> bool:
    """Whether the arguments ask for a training by gradient.

    Raises: CommandError where something is given that only such a training reads, or only another.
    """
    if any((arguments.preset, arguments.training, arguments.pairs, arguments.data)):
        if arguments.crossmodal:
            raise CommandError("--crossmodal is no training by gradient: name a --preset without it")
        if arguments.out is not None:
            raise CommandError(f"--out goes with --preset {TEXT_PRESET}")
        return True
    for name in ("out", "views", "checkpoint", "device"):
        if getattr(arguments, name) is not None:
            raise CommandError(f"--{name} goes with --preset, --training, --pairs or --data")
    return False


def train_by_gradient(
    engine: Engine, cache: CacheRecord, arguments: argparse.Namespace, *, config: Config, progress: Progress
) -> tuple[TrainedEncoder, int, StoredRows]:
    """Train an encoder of the cache's bits; returns it, the seq up to which it has seen entries, and those
    of them that it has read, with those that have taught it labels.

    Raises: CommandError for files that cannot be read, without torch, or for modalities and dimensions that
    are not the cache's; ConfigError, TrainingDataError, EmbeddingsError before time is spent.
    """
    try:
        from hashing.deep.config import parse_config, read_preset
        from hashing.deep.training import train
    except ImportError as error:
        raise CommandError("this needs the extra `train`: pip install nearhit[train]") from error
    text = _read_training(arguments) or read_preset(arguments.preset or DEFAULT_PRESET)
    try:
        training = parse_config(
            text, code_bits=cache.code_bits, label_bits=cache.label_bits, seed=arguments.seed
        )
    except tomllib.TOMLDecodeError as error:
        raise CommandError(f"{arguments.training}: {error}") from error
    losses = training.losses
    training_set, watermark, stored = _training_set(
        engine,
        cache,
        arguments,
        config=config,
        reads_labels=losses.of_labels or losses.matches.likelihood > 0,
    )
    for modality, embeddings in training_set.embeddings.items():
        spec = cache.modalities[modality]
        if embeddings.shape[0] and embeddings.shape[1] != spec.dim:
            raise CommandError(
                f"embeddings of {modality} are {list(embeddings.shape)}, the cache's are [n, {spec.dim}]"
            )
    with reading(engine) as connection:
        issued = issued_class_codes(connection, cache.id)
    trained = train(
        training_set,
        config=training,
        class_codes=issued,
        device=arguments.device,
        checkpoint=arguments.checkpoint,
        progress=progress,
    )
    return trained, watermark, stored


def train_text_preset(
    arguments: argparse.Namespace,
    *,
    progress: Progress,
    code_bits: int | None = None,
    dim: int | None = None,
) -> tuple["TrainedTextTower", dict[str, Any]]:
    """Train a text tower on a file of pairs of texts, and write it; what was trained, and what to say of it.

    Its options are those of --training, or of the preset. Raises: CommandError; HashingError.
    """
    if arguments.pairs is None or arguments.out is None:
        raise CommandError(f"--preset {TEXT_PRESET} needs --pairs FILE of texts and --out FOLDER")
    for name in ("data", "views", "checkpoint", "device"):
        if getattr(arguments, name):
            raise CommandError(f"--{name} does not go with --preset {TEXT_PRESET}")
    try:
        text = read_text_preset() if arguments.training is None else arguments.training.read_text("utf-8")
        options = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise CommandError(f"{arguments.training}: {error}") from error
    options |= {"seed": arguments.seed} | ({} if code_bits is None else {"code_bits": code_bits})
    trained, written = train_text_tower_files(
        arguments.pairs, out=arguments.out, options=options, progress=progress, dim=dim
    )
    figures = {name: round(value, 4) for name, value in sorted(trained.encoder.metrics.items())}
    return trained, {"encoder": trained.encoder.encoder_id, **written, **figures}


def train_text_encoder(
    engine: Engine, cache: CacheRecord, arguments: argparse.Namespace, *, progress: Progress
) -> tuple[EncoderRecord, dict[str, Any]]:
    """Train a text tower whose codes are those of a cache, and keep its encoder as candidate.

    The cache's embeddings must be the tower's own. Raises: CommandError; HashingError.
    """
    spec = cache.modalities[arguments.modality]
    if spec.embedder_id:
        raise CommandError(
            f"cache {cache.name} holds embeddings of {spec.embedder_id}, a new tower makes others: train"
            " without --cache, and create a cache for the tower"
        )
    trained, written = train_text_preset(
        arguments, progress=progress, code_bits=cache.code_bits, dim=spec.dim
    )
    kept = keep_encoder(engine, cache, TrainedEncoder(trained.encoder, None), watermark=0, now_ms=clock_ms())
    return kept, written


def show_preset(name: str | None) -> str:
    """Return a preset's TOML. Raises: CommandError without torch; ConfigError for an unknown name."""
    try:
        from hashing.deep.config import read_preset
    except ImportError as error:
        raise CommandError("presets need the extra `train`: pip install nearhit[train]") from error
    if name == TEXT_PRESET:
        return read_text_preset()
    return read_preset(name or DEFAULT_PRESET)


def _read_training(arguments: argparse.Namespace) -> str | None:
    if arguments.training is None:
        return None
    if arguments.preset is not None:
        raise CommandError("give --preset or --training, not both")
    try:
        text: str = arguments.training.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CommandError(f"{arguments.training}: {error}") from error
    return text


def _training_set(
    engine: Engine,
    cache: CacheRecord,
    arguments: argparse.Namespace,
    *,
    config: Config,
    reads_labels: bool,
) -> tuple["TrainingSet", int, StoredRows]:
    """The training set, the seq up to which it holds the cache's entries (0 where it is out of files), and
    those entries; `teaching`: whose labels it holds.

    Labels of one class alone are left out unless a loss reads them (and refuses them).
    """
    from hashing.deep.training_set import TrainingSet

    views = _views(arguments.views)
    rows = _rows_by_modality(cache, arguments)
    main = next(iter(rows), arguments.modality)
    if arguments.pairs is not None:
        labelled = read_pairs(arguments.pairs, rows=rows.get(main), embedder=config.embedder, cache=cache)
        rows = {main: labelled.rows, **{name: own for name, own in rows.items() if name != main}}
        pairs = labelled.pairs
    else:
        pairs = None
    if rows:
        return (
            TrainingSet(
                embeddings={name: own.embeddings for name, own in rows.items()},
                pairs=pairs,
                labels={
                    name: own.labels
                    for name, own in rows.items()
                    if own.labels is not None and (reads_labels or _class_count(own.labels) > 1)
                },
                items=item_numbers(rows) if len(rows) > 1 else {},
                view_dims=views,
            ),
            0,
            StoredRows([], np.empty((0, 0), dtype=np.float32), []),
        )
    stored = read_training_rows(engine, cache, modality=arguments.modality)
    least = 1 if reads_labels else 2
    labels = {arguments.modality: stored.labels} if _class_count(stored.labels) >= least else {}
    return (
        TrainingSet(embeddings={arguments.modality: stored.vectors}, labels=labels, view_dims=views),
        cache.seq,
        stored if labels else replace(stored, teaching=()),
    )


def _class_count(labels: Sequence[Sequence[str]]) -> int:
    return len({label for own in labels for label in own})


def _rows_by_modality(cache: CacheRecord, arguments: argparse.Namespace) -> dict[str, TrainingRows]:
    """The rows of each file of --data, by space. Raises: CommandError, InvalidRequestError."""
    rows: dict[str, TrainingRows] = {}
    for given in arguments.data:
        modality, equals, path = given.partition("=")
        if equals:
            modality = current_space(cache, modality)
        else:
            modality, path = arguments.modality, given
        if modality in rows:
            raise CommandError(f"--data names modality {modality!r} twice")
        rows[modality] = read_rows(Path(path))
    return rows


def _views(given: str | None) -> tuple[int, ...]:
    if given is None:
        return ()
    try:
        return tuple(int(part) for part in given.split(","))
    except ValueError as error:
        raise CommandError(f"--views {given!r}: must be whole numbers, as in 384,128") from error

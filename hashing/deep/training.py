"""Train an encoder by gradient."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hashing.class_codes import ClassCodes, Labels
from hashing.config import EncoderConfig
from hashing.deep.config import TowerConfig, TrainingConfig
from hashing.deep.inputs import class_centres, find_matches, label_vectors
from hashing.deep.label_objective import LabelObjective
from hashing.deep.loop import read_checkpoint, run_loop
from hashing.deep.match_objective import MatchObjective
from hashing.deep.neighbour_objective import NeighbourObjective
from hashing.deep.objectives import Batches, Objective
from hashing.deep.pair_objective import PairObjective
from hashing.deep.towers import LinearTower, ResidualTower
from hashing.deep.training_set import Split, TrainingSet, split_set
from hashing.deep.validation import Validation
from hashing.deep.views import fold_scales, view_scales
from hashing.drift import fit_drift_reference
from hashing.embeddings import as_rows
from hashing.errors import ConfigError
from hashing.inference import Encoder
from hashing.pair_scorer import PairScorer
from hashing.projection import FIT_ROWS_LIMIT, fit_itq
from hashing.radius import RadiusTable, bit_counts, calibrate_radii
from hashing.tower import InstanceMap
from hashing.trainer import (
    HELD_OUT_LEAST_ROWS,
    HELD_OUT_ROWS_LIMIT,
    Progress,
    TrainedEncoder,
    held_out_recall,
    labelled_rows,
    no_progress,
    train_label_part,
)

logger = logging.getLogger(__name__)

START_ITERATIONS = 10
"""Of ITQ, whose projection the linear path starts at."""


def train(
    training_set: TrainingSet,
    *,
    config: TrainingConfig,
    class_codes: ClassCodes | None = None,
    device: str | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> TrainedEncoder:
    """Train a tower for each modality, calibrate the radius table and drift reference, and fit label codes.

    device: of torch; None for the GPU where there is one. class_codes: those issued before, which stay.
    checkpoint: a file for the state after each pass; where one is there already, the training goes on from
    it. progress: stages "fit", "train", "calibrate", "evaluate", "labels".

    What `split_set` holds out chooses the pass whose towers are returned. Radii and drift are calibrated on
    up to HELD_OUT_ROWS_LIMIT held-out rows, the drift of the main modality, the radii of each, of which
    the largest count; below HELD_OUT_LEAST_ROWS of a modality the radii limit nothing. Where rows of the main
    modality carry labels, a label part is fitted to all of them in closed form, as by `train_encoder`.
    Equal seed, input, device and thread count give an equal encoder; on a GPU up to the order of its sums.

    Metrics: row_count, held_out_row_count, recall_at_10_in_100 and label figures as `train_encoder`;
    epoch_count (passes made), pair_count and validation_pair_count, and what `Validation` measures; what was
    held out chooses the pass, so that those are a little too high.

    Raises, before time is spent: as `split_set`; TrainingDataError for a checkpoint that does not fit;
    ConfigError for a device that torch does not have here. Later: ConfigError where the training diverges.
    """
    report = progress if progress is not None else no_progress
    rng = np.random.default_rng(config.seed)
    split = split_set(training_set, config=config, rng=rng)
    _warn(training_set, config=config)
    main = training_set.main

    place = _device(device)
    key = _key(training_set, config)
    resumed = None if checkpoint is None else read_checkpoint(checkpoint, key=key)
    validation = Validation(training_set, split, config=config, rng=rng)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(config.seed)
        rows = {
            modality: as_rows(embeddings[split.training[modality]])
            for modality, embeddings in training_set.embeddings.items()
        }
        scales = None
        if training_set.view_dims:
            scales = view_scales(rows[main], view_dims=training_set.view_dims, rng=rng)
            rows[main] = rows[main] * scales
        towers = _start_towers(rows, config=config, progress=report)
        objectives, step_rows = _objectives(training_set, split, rows, config=config, place=place, rng=rng)
        scores = next((own.scores for own in objectives if isinstance(own, PairObjective)), None)
        if scores is not None and config.losses.pairs.logistic:
            validation.judge_by(scores)
        result = run_loop(
            towers,
            objectives,
            rows,
            step_rows=step_rows,
            score=lambda maps: validation.score(_folded(maps, main, scales)),
            config=config,
            device=place,
            rng=rng,
            checkpoint=checkpoint,
            resumed=resumed,
            key=key,
            progress=report,
        )
    maps = _folded(result.maps, main, scales)
    metrics = {
        "row_count": float(training_set.embeddings[main].shape[0]),
        "epoch_count": float(result.epoch_count),
        **validation.figures(maps),
    }
    if split.pairs is not None:
        validation_pair_count = float(split.pairs.validation.shape[0])
        metrics["pair_count"] = float(split.pairs.training.shape[0]) + validation_pair_count
        metrics["validation_pair_count"] = validation_pair_count
    scorer = None if scores is None or not config.losses.pairs.logistic else scores.exported()
    encoder = _calibrated(
        maps,
        as_rows(training_set.embeddings[main][split.training[main][:FIT_ROWS_LIMIT]]),
        {
            modality: as_rows(embeddings[split.held_out[modality]])
            for modality, embeddings in training_set.embeddings.items()
        },
        main=main,
        scorer=scorer,
        metrics=metrics,
        seed=config.seed,
        progress=report,
    )
    labels = training_set.labels.get(main)
    if labels is None:
        return TrainedEncoder(encoder=encoder, state=None)
    return _with_label_part(
        encoder,
        training_set.embeddings[main],
        labels,
        config=config,
        class_codes=class_codes,
        progress=report,
    )


def _device(name: str | None) -> torch.device:
    """The device of that name, tried; without one the GPU where there is one. Raises: ConfigError."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError("device", name, "one that torch has here") from error
    return device


def _folded(
    maps: Mapping[str, InstanceMap], main: str, scales: NDArray[np.float32] | None
) -> Mapping[str, InstanceMap]:
    """The maps of plain rows, where the main modality's were scaled."""
    return maps if scales is None else {**maps, main: fold_scales(maps[main], scales)}


def _start_towers(
    rows: Mapping[str, NDArray[np.float32]], *, config: TrainingConfig, progress: Progress
) -> dict[str, LinearTower]:
    """Towers whose linear path is that of ITQ on the modality's rows."""
    towers: dict[str, LinearTower] = {}
    for done, (modality, own) in enumerate(rows.items()):
        progress("fit", done, len(rows))
        start = fit_itq(own, code_bits=config.code_bits, iterations=START_ITERATIONS, seed=config.seed)
        towers[modality] = _tower(start.weight, config=config.tower)
    progress("fit", len(rows), len(rows))
    return towers


def _tower(weight: NDArray[np.float32], *, config: TowerConfig) -> LinearTower:
    if config.kind == "linear":
        return LinearTower(weight, threshold=config.threshold)
    return ResidualTower(
        weight,
        hidden_width=config.hidden_width,
        dropout=config.dropout,
        input_dropout=config.input_dropout,
        threshold=config.threshold,
    )


def _objectives(
    training_set: TrainingSet,
    split: Split,
    rows: Mapping[str, NDArray[np.float32]],
    *,
    config: TrainingConfig,
    place: torch.device,
    rng: np.random.Generator,
) -> tuple[list[Objective], Mapping[str, NDArray[np.float32]]]:
    """The objectives that have a weight, and the rows that their steps read: `rows`, then rebuilt ones."""
    main, weights = training_set.main, config.losses
    batches = Batches(bit_counts(config.code_bits), config.optimiser.batch_size, place)
    objectives: list[Objective] = []
    if weights.of_pairs:
        assert split.pairs is not None
        pairs = split.pairs.training
        local = np.column_stack([np.searchsorted(split.training[main], pairs[:, :2]), pairs[:, 2]])
        row_count = rows[main].shape[0]
        objectives.append(
            PairObjective(local, main, row_count=row_count, weights=weights.pairs, batches=batches, rng=rng)
        )
    if weights.of_neighbours:
        objectives.append(
            NeighbourObjective(rows[main], main, weights=weights.neighbours, batches=batches, rng=rng)
        )
    reads_labels = weights.of_labels or weights.matches.likelihood > 0
    vectors = label_vectors(training_set, split) if reads_labels else {}
    if weights.of_labels:
        centres = class_centres(training_set, split, config=config)
        objectives.append(LabelObjective(vectors, centres=centres, weights=weights.labels, batches=batches))
    if weights.of_matches:
        matches, rows = find_matches(training_set, split, rows, config=config, rng=rng)
        # Rebuilt rows follow those of the training part, and have no labels.
        vectors = {
            modality: np.pad(own, ((0, rows[modality].shape[0] - own.shape[0]), (0, 0)))
            for modality, own in vectors.items()
        }
        objectives.append(
            MatchObjective(matches, label_vectors=vectors, weights=weights.matches, batches=batches)
        )
    return objectives, rows


def _calibrated(
    maps: Mapping[str, InstanceMap],
    rows: NDArray[np.float32],
    held_out: Mapping[str, NDArray[np.float32]],
    *,
    main: str,
    scorer: PairScorer | None,
    metrics: dict[str, float],
    seed: int,
    progress: Progress,
) -> Encoder:
    """An encoder of the maps. Radii are the largest of all modalities on held-out rows; drift reference and
    recall are measured on those of the main one."""
    tables = []
    samples = {}
    for done, (modality, own) in enumerate(maps.items()):
        progress("calibrate", done, len(maps))
        unread = held_out[modality]
        samples[modality] = unread[:: max(1, -(-unread.shape[0] // HELD_OUT_ROWS_LIMIT))]
        measured = unread.shape[0] >= HELD_OUT_LEAST_ROWS
        tables.append(
            calibrate_radii(own, samples[modality], seed=seed)
            if measured
            else RadiusTable.unlimited(own.code_bits)
        )
    own, sample = maps[main], samples[main]
    measured = sample.shape[0] >= HELD_OUT_LEAST_ROWS
    reference = sample if measured else rows[:HELD_OUT_ROWS_LIMIT]
    drift_reference = fit_drift_reference(own.project(reference))
    progress("calibrate", len(maps), len(maps))
    metrics = metrics | {"held_out_row_count": float(sample.shape[0]) if measured else 0.0}
    if measured:
        progress("evaluate", 0, 1)
        metrics["recall_at_10_in_100"] = held_out_recall(own, rows, sample)
        progress("evaluate", 1, 1)
    return Encoder(
        projections=maps,
        radius_table=RadiusTable.largest(tables),
        drift_reference=drift_reference,
        pair_scorer=scorer,
        metrics=metrics,
    )


def _with_label_part(
    encoder: Encoder,
    embeddings: NDArray[np.floating],
    labels: Labels,
    *,
    config: TrainingConfig,
    class_codes: ClassCodes | None,
    progress: Progress,
) -> TrainedEncoder:
    labelled = labelled_rows(labels, row_count=embeddings.shape[0])
    label_map, query_count, state = train_label_part(
        embeddings,
        labels,
        labelled,
        config=EncoderConfig(label_bits=config.label_bits, seed=config.seed),
        class_codes=class_codes,
        progress=progress,
    )
    metrics = dict(encoder.metrics)
    metrics |= {"labelled_row_count": float(labelled.size), "label_query_count": float(query_count)}
    if query_count:
        metrics["label_map"] = label_map
    head = state.head(modality=next(iter(encoder.projections)))
    return TrainedEncoder(encoder=replace(encoder, label_head=head, metrics=metrics), state=state)


def _warn(training_set: TrainingSet, *, config: TrainingConfig) -> None:
    """Log what is odd but no error."""
    for modality, embeddings in training_set.embeddings.items():
        if config.code_bits > embeddings.shape[1]:
            logger.warning(
                "%d bits of %d dimensions (%s): bits beyond the dimensions repeat what others say",
                config.code_bits,
                embeddings.shape[1],
                modality,
            )
    for modality, labels in training_set.labels.items():
        without = sum(not own for own in labels)
        if without:
            logger.warning("%d of %d rows (%s) have no label", without, len(labels), modality)
        counts = Counter(name for own in labels for name in set(own))
        single = [name for name, count in counts.items() if count == 1]
        if single:
            logger.warning(
                "%d classes (%s) have one row only, such as %r: nothing judges them",
                len(single),
                modality,
                single[0],
            )


def _key(training_set: TrainingSet, config: TrainingConfig) -> str:
    """A digest of what a training is of: the configuration, and the rows by their shapes and a sample."""
    digest = hashlib.sha256(repr((config, training_set.view_dims)).encode())
    for modality, embeddings in training_set.embeddings.items():
        digest.update(f"{modality}{embeddings.shape}".encode())
        step = max(1, embeddings.shape[0] // 1000)
        digest.update(np.ascontiguousarray(embeddings[::step]).tobytes())
        digest.update(repr(training_set.labels.get(modality)).encode())
        digest.update(np.asarray(training_set.items.get(modality, ())).tobytes())
    if training_set.pairs is not None:
        digest.update(np.asarray(training_set.pairs).tobytes())
    return digest.hexdigest()

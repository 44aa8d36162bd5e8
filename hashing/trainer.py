"""Train an encoder from scratch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import ClassCodes, Labels, check_labels, target_bits
from hashing.config import EncoderConfig
from hashing.drift import fit_drift_reference
from hashing.embeddings import as_rows, check_training_rows, unit_rows
from hashing.errors import TrainingDataError
from hashing.inference import Encoder
from hashing.label_part import LearnedState, LearnedStates, empty_state
from hashing.metrics import class_retrieval_map, code_recall
from hashing.projection import FIT_ROWS_LIMIT, Projection, fit_itq, fit_rotation
from hashing.radius import RadiusTable, calibrate_radii
from hashing.tower import InstanceMap

HELD_OUT_SHARE = 0.2
HELD_OUT_ROWS_LIMIT = 10_000
HELD_OUT_LEAST_ROWS = 50
HELD_OUT_MIN_ROWS = 100
"""Below this many rows none is held out, and no radii are measured: the fit's own rows lie so close to
their codes that radii measured on them lost a quarter of the pairs within .05 of other rows."""

METRIC_QUERIES_LIMIT = 1000
METRIC_ROWS_LIMIT = 20_000
LABEL_ROWS_CHUNK = 65_536

Progress = Callable[[str, int, int], None]
"""Called with a stage ("fit", "calibrate", "evaluate", "labels"), the steps done and their number."""


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """A `Progress` that tells nobody."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainedEncoder:
    """encoder: ready to serve. state: what `update_labels` continues from; None without labels."""

    encoder: Encoder
    state: LearnedState | None

    @property
    def states(self) -> LearnedStates:
        """The state by the modality of the label part; empty without labels."""
        return {} if self.state is None else dict.fromkeys(self.encoder.label_modalities[:1], self.state)


def train_encoder(
    embeddings: NDArray[np.floating],
    *,
    config: EncoderConfig,
    modality: str = "text",
    labels: Labels | None = None,
    class_codes: ClassCodes | None = None,
    progress: Progress | None = None,
) -> TrainedEncoder:
    """Fit the instance projection, its radius table and, with labels, the label part.

    embeddings: float [n, dim], L2-normalised; may be memory-mapped: the rows held in memory are
    bounded by FIT_ROWS_LIMIT and the limits of this module. labels: of each row; a row with none trains
    the instance part only. class_codes: those issued before, which stay; None for none.

    From HELD_OUT_MIN_ROWS rows on, a share of them (HELD_OUT_LEAST_ROWS at least) is kept from the fit and
    serves the radius table, the drift reference and the metrics. Below, the fit's own rows serve the drift
    reference, and the radii limit nothing.
    Labelled rows held out for `label_map` join the returned state and weights once it is measured.

    Metrics: row_count, held_out_row_count, recall_at_10_in_100 (exact top 10 inside the code top 100;
    absent where nothing is held out); with labels labelled_row_count, label_query_count and label_map
    (class retrieval with real-valued queries; absent where no labelled row could be held out).

    Raises, before time is spent: EmbeddingsError for values that are not finite; TrainingDataError for
    fewer than 2 rows, equal rows, labels that do not fit, no labelled row, or one class only.
    """
    report = progress if progress is not None else no_progress
    labelled = None if labels is None else labelled_rows(labels, row_count=embeddings.shape[0])
    check_training_rows(embeddings)

    encoder = _train_instance_part(embeddings, config=config, modality=modality, progress=report)
    if labels is None or labelled is None:
        return TrainedEncoder(encoder=encoder, state=None)

    label_map, query_count, state = train_label_part(
        embeddings, labels, labelled, config=config, class_codes=class_codes, progress=report
    )
    metrics = dict(encoder.metrics)
    metrics |= {"labelled_row_count": float(labelled.size), "label_query_count": float(query_count)}
    if query_count:
        metrics["label_map"] = label_map
    label_head = state.head(modality=modality)
    return TrainedEncoder(encoder=replace(encoder, label_head=label_head, metrics=metrics), state=state)


def labelled_rows(labels: Labels, *, row_count: int) -> NDArray[np.intp]:
    """Return the rows that have a label. Raises: TrainingDataError as `train_encoder`."""
    check_labels(labels, row_count=row_count)
    labelled = np.flatnonzero([len(own) > 0 for own in labels])
    if labelled.size == 0:
        raise TrainingDataError("no row has a label")
    if len({label for own in labels for label in own}) == 1:
        raise TrainingDataError("one class only")
    return labelled


def _train_instance_part(
    embeddings: NDArray[np.floating], *, config: EncoderConfig, modality: str, progress: Progress
) -> Encoder:
    """Return an encoder without a label part, its metrics measured."""
    row_count = embeddings.shape[0]
    order = np.random.default_rng(config.seed).permutation(row_count)
    held_out_count = 0
    if row_count >= HELD_OUT_MIN_ROWS:
        held_out_count = max(int(row_count * HELD_OUT_SHARE), HELD_OUT_LEAST_ROWS)
        held_out_count = min(held_out_count, HELD_OUT_ROWS_LIMIT)
    fit_order = order[held_out_count : held_out_count + FIT_ROWS_LIMIT]
    fit_rows = as_rows(embeddings[np.sort(fit_order)])

    progress("fit", 0, 1)
    projection = _fit(fit_rows, config=config)
    progress("fit", 1, 1)

    progress("calibrate", 0, 1)
    held_out = as_rows(embeddings[order[:held_out_count]]) if held_out_count else fit_rows
    if held_out_count:
        radius_table = calibrate_radii(projection, held_out, seed=config.seed)
    else:
        radius_table = RadiusTable.unlimited(config.code_bits)
    drift_reference = fit_drift_reference(projection.project(held_out))
    progress("calibrate", 1, 1)

    metrics = {"row_count": float(row_count), "held_out_row_count": float(held_out_count)}
    if held_out_count:
        progress("evaluate", 0, 1)
        metrics["recall_at_10_in_100"] = held_out_recall(projection, fit_rows, held_out)
        progress("evaluate", 1, 1)
    return Encoder(
        projections={modality: projection},
        radius_table=radius_table,
        drift_reference=drift_reference,
        metrics=metrics,
    )


def _fit(rows: NDArray[np.float32], *, config: EncoderConfig) -> Projection:
    if config.method == "rotation":
        return fit_rotation(rows, code_bits=config.code_bits, seed=config.seed)
    return fit_itq(rows, code_bits=config.code_bits, iterations=config.itq_iterations, seed=config.seed)


def held_out_recall(
    projection: InstanceMap, fit_rows: NDArray[np.float32], held_out: NDArray[np.float32]
) -> float:
    """Return the share of held-out rows' exact top 10 of the fit's rows that are in their code top 100."""
    rows = fit_rows[:: max(1, -(-fit_rows.shape[0] // METRIC_ROWS_LIMIT))]
    queries = held_out[:METRIC_QUERIES_LIMIT]
    return code_recall(
        projection.project(queries),
        projection.project(rows),
        queries=unit_rows(queries),
        rows=unit_rows(rows),
        truth_count=10,
        candidate_count=100,
    )


def train_label_part(
    embeddings: NDArray[np.floating],
    labels: Labels,
    labelled: NDArray[np.intp],
    *,
    config: EncoderConfig,
    class_codes: ClassCodes | None,
    progress: Progress,
) -> tuple[float, int, LearnedState]:
    """Return the held-out mAP (NaN without queries), the number of its queries, and the state of all rows."""
    # Codes go out in the order of the rows, whichever of them are held out.
    state = empty_state(embeddings.shape[1], config=config, rows=embeddings)
    if class_codes is not None:
        state = state.with_codes(class_codes)
    state = state.issue(label for row in labelled.tolist() for label in labels[row])
    queries = _label_queries(labels, labelled, seed=config.seed)
    kept = np.setdiff1d(labelled, queries)
    for start in range(0, kept.size, LABEL_ROWS_CHUNK):
        progress("labels", start, labelled.size)
        chunk = kept[start : start + LABEL_ROWS_CHUNK]
        state = state.add(embeddings[chunk], [labels[row] for row in chunk.tolist()])
    if not queries.size:
        progress("labels", labelled.size, labelled.size)
        return float("nan"), 0, state

    progress("labels", kept.size, labelled.size)
    query_rows = as_rows(embeddings[queries])
    query_labels = [labels[row] for row in queries.tolist()]
    database = kept[:: max(1, -(-kept.size // METRIC_ROWS_LIMIT))]
    database_labels = [labels[row] for row in database.tolist()]
    label_map = class_retrieval_map(
        state.head(modality="").values(query_rows),
        target_bits(state.class_codes, database_labels),
        query_labels=query_labels,
        row_labels=database_labels,
        seed=config.seed,
    )
    state = state.add(query_rows, query_labels)
    progress("labels", labelled.size, labelled.size)
    return label_map, queries.size, state


def _label_queries(labels: Labels, labelled: NDArray[np.intp], *, seed: int) -> NDArray[np.intp]:
    """Choose labelled rows to hold out so that every label of theirs keeps another row, sorted."""
    remaining: dict[str, int] = {}
    for row in labelled.tolist():
        for label in set(labels[row]):
            remaining[label] = remaining.get(label, 0) + 1
    limit = min(int(labelled.size * HELD_OUT_SHARE), METRIC_QUERIES_LIMIT)
    chosen: list[int] = []
    for row in np.random.default_rng(seed).permutation(labelled):
        if len(chosen) == limit:
            break
        own = set(labels[row])
        if all(remaining[label] > 1 for label in own):
            chosen.append(int(row))
            for label in own:
                remaining[label] -= 1
    return np.sort(np.array(chosen, dtype=np.intp))

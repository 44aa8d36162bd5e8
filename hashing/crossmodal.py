"""Train one encoder for several modalities: codes of one can be searched from another. Closed form, numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashing.analytic import LabelState, RandomFeatures, draw_features
from hashing.class_codes import ClassCodes, Labels, check_labels, issue_orthogonal
from hashing.config import EncoderConfig
from hashing.cross_part import CrossPart
from hashing.crossmodal_config import CrossModalConfig, KernelSettings
from hashing.drift import fit_drift_reference
from hashing.embeddings import as_rows, check_training_rows
from hashing.errors import TrainingDataError
from hashing.feature_tower import FeatureTower
from hashing.function_codes import (
    FunctionCode,
    Predictor,
    cross_queries,
    fit_function_code,
    fit_predictor,
    held_out_scores,
    tower_of,
)
from hashing.inference import Encoder
from hashing.kernel_ridge import DEFAULT_KERNEL, choose_kernel, draw_folds
from hashing.metrics import mean_average_precision
from hashing.projection import fit_itq
from hashing.radius import RadiusTable, calibrate_radii
from hashing.semantic_targets import carry_over_pairs, label_targets, pair_targets, reconstruct_targets
from hashing.trainer import HELD_OUT_MIN_ROWS, HELD_OUT_ROWS_LIMIT, Progress, no_progress

FOLDS = 5
METRIC_QUERIES = 500
METRIC_ROWS = 5_000

Rows = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class TrainedCrossModal:
    """encoder: ready to serve. states: modality -> the sums of its label part; empty without labels.
    kernels: modality -> the kernel that was given or chosen."""

    encoder: Encoder
    states: Mapping[str, LabelState]
    kernels: Mapping[str, KernelSettings]


def train_crossmodal(
    embeddings: Mapping[str, NDArray[np.floating]],
    *,
    config: CrossModalConfig,
    labels: Mapping[str, Labels] | None = None,
    pairs: ArrayLike | None = None,
    class_codes: ClassCodes | None = None,
    progress: Progress | None = None,
) -> TrainedCrossModal:
    """Fit function codes, queries between modalities and, with labels, a label part for each modality.

    embeddings: modality -> float [n_m, dim_m], L2-normalised; at least two modalities. labels: modality ->
    of each row, none for an unlabelled one; modalities must share a label. pairs: int [p, 2], rows of the
    first and of the second modality that belong together (exactly two modalities). Labels, pairs or both are
    needed: with both, a row without labels takes after its partner, then, as rows outside of all pairs where
    there are no labels, after its nearest rows (`reconstruct_targets`). class_codes: those issued before,
    which stay; None for none.

    The radius table holds for every modality: it is the largest of theirs. It says nothing about distances
    between modalities. The drift reference is of the first modality, as is `Encoder.label_head`. Memory is
    about 30 bytes a row and class, without labels 32 bytes a pair and function feature.

    Metrics: row_count of the smallest modality; held_out_row_count, of its rows those that radii were
    measured on, 0 where radii limit nothing; with labels labelled_row_count; and map_A_to_B of every pair of
    modalities: the mAP of A's rows as function queries against B's rows, no row of either having been learned
    from for its own value, from labels where there are any, else from pairs (one row is relevant).

    Raises, before time is spent: EmbeddingsError for values that are not finite; TrainingDataError for one
    modality, rows that nothing can be fitted on, labels that do not fit, are missing for a modality, of one
    class or not shared, pairs that do not fit, or neither labels nor pairs.
    """
    report = progress if progress is not None else no_progress
    checked_pairs = _check(embeddings, labels=labels, pairs=pairs)
    rows = {modality: as_rows(own) for modality, own in embeddings.items()}
    codes = _issue(class_codes, labels, config=config)
    kernels = _choose_kernels(rows, labels, codes, config=config, progress=report)

    report("functions", 0, 1)
    predictors = _fit_predictors(rows, labels, checked_pairs, codes=codes, kernels=kernels, config=config)
    function_codes = {
        modality: fit_function_code(predictor, bits=config.common_bits, seed=config.seed)
        for modality, (predictor, _) in predictors.items()
    }
    report("functions", 1, 1)

    report("calibrate", 0, 1)
    towers, radius_table, drift_values = _fit_towers(rows, predictors, function_codes, config=config)
    report("calibrate", 1, 1)

    only_predictors = {modality: predictor for modality, (predictor, _) in predictors.items()}
    metrics = _metrics(only_predictors, function_codes, labels, checked_pairs, seed=config.seed)
    first = next(iter(rows))
    smallest = min(own.shape[0] for own in rows.values())
    measured = smallest >= HELD_OUT_MIN_ROWS and config.common_bits < config.code_bits
    metrics["row_count"] = float(smallest)
    _, folds = min(predictors.values(), key=lambda own: own[1].size)
    held_out_count = min(int(np.count_nonzero(folds == 0)), HELD_OUT_ROWS_LIMIT)
    metrics["held_out_row_count"] = float(held_out_count) if measured else 0.0
    states = {} if labels is None else _fit_labels(rows, labels, codes, kernels, config=config, report=report)
    heads = {modality: state.head(modality=modality) for modality, state in states.items()}
    if heads:
        metrics["labelled_row_count"] = float(sum(state.row_count for state in states.values()))
    encoder = Encoder(
        projections=towers,
        radius_table=radius_table,
        drift_reference=fit_drift_reference(drift_values),
        label_head=heads.get(first),
        cross_part=CrossPart(
            queries=cross_queries(only_predictors, function_codes),
            label_heads={modality: head for modality, head in heads.items() if modality != first},
            function_bits=config.common_bits,
        ),
        metrics=metrics,
    )
    return TrainedCrossModal(encoder=encoder, states=states, kernels=kernels)


def _check(
    embeddings: Mapping[str, NDArray[np.floating]],
    *,
    labels: Mapping[str, Labels] | None,
    pairs: ArrayLike | None,
) -> NDArray[np.int64] | None:
    """Return the pairs as int64 [p, 2]. Raises: as `train_crossmodal`."""
    if len(embeddings) < 2:
        raise TrainingDataError(f"cross-modal training needs two modalities, got {', '.join(embeddings)}")
    if labels is None and pairs is None:
        raise TrainingDataError("neither labels nor pairs say what rows of two modalities have in common")
    if labels is not None:
        _check_shared_labels(embeddings, labels)
    checked = None if pairs is None else _check_pairs(embeddings, np.asarray(pairs))
    for modality, rows in embeddings.items():
        try:
            check_training_rows(rows)
        except TrainingDataError as error:
            raise TrainingDataError(f"modality {modality!r}: {error}") from error
    return checked


def _check_shared_labels(
    embeddings: Mapping[str, NDArray[np.floating]], labels: Mapping[str, Labels]
) -> None:
    shared: set[str] | None = None
    every: set[str] = set()
    for modality, rows in embeddings.items():
        if modality not in labels:
            raise TrainingDataError(f"labels of modality {modality!r} are missing")
        check_labels(labels[modality], row_count=rows.shape[0])
        own = set(chain.from_iterable(labels[modality]))
        if not own:
            raise TrainingDataError(f"no row of modality {modality!r} has a label")
        shared = own if shared is None else shared & own
        every |= own
    if not shared:
        raise TrainingDataError("the modalities share no label")
    if len(every) < 2:
        raise TrainingDataError("one class only")


def _check_pairs(
    embeddings: Mapping[str, NDArray[np.floating]], pairs: NDArray[np.generic]
) -> NDArray[np.int64]:
    if len(embeddings) != 2:
        raise TrainingDataError(f"pairs are of two modalities, not of {len(embeddings)}")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise TrainingDataError(f"pairs must be integers [p, 2], got {pairs.dtype}{list(pairs.shape)}")
    if pairs.shape[0] < 2:
        raise TrainingDataError(f"at least 2 pairs are needed, got {pairs.shape[0]}")
    checked = pairs.astype(np.int64)
    for (modality, rows), column in zip(embeddings.items(), checked.T, strict=True):
        outside = np.flatnonzero((column < 0) | (column >= rows.shape[0]))
        if outside.size:
            raise TrainingDataError(
                f"pair {outside[0]} names row {column[outside[0]]} of the {rows.shape[0]} of {modality!r}"
            )
        if np.unique(column).size < 2:
            raise TrainingDataError(f"all pairs name one row of {modality!r}")
    return checked


def _issue(
    class_codes: ClassCodes | None, labels: Mapping[str, Labels] | None, *, config: CrossModalConfig
) -> ClassCodes:
    """Class codes of all labels, in the order of the modalities and their rows."""
    names = [] if labels is None else [label for own in labels.values() for row in own for label in row]
    if class_codes is not None and len(class_codes):
        return class_codes.issue(names)
    return issue_orthogonal(names, label_bits=config.label_bits, seed=config.seed)


def _choose_kernels(
    rows: Rows,
    labels: Mapping[str, Labels] | None,
    codes: ClassCodes,
    *,
    config: CrossModalConfig,
    progress: Progress,
) -> dict[str, KernelSettings]:
    kernels = dict(config.kernels)
    for done, (modality, own) in enumerate(rows.items()):
        progress("kernels", done, len(rows))
        if modality in kernels:
            continue
        kernels[modality] = DEFAULT_KERNEL
        if labels is not None:
            labelled = _labelled(labels[modality])
            targets = label_targets([labels[modality][i] for i in labelled], class_codes=codes)
            kernels[modality], _ = choose_kernel(own[labelled], targets, seed=config.seed)
    progress("kernels", len(rows), len(rows))
    return kernels


def _labelled(labels: Labels) -> NDArray[np.intp]:
    return np.flatnonzero([len(own) > 0 for own in labels])


def _fit_predictors(
    rows: Rows,
    labels: Mapping[str, Labels] | None,
    pairs: NDArray[np.int64] | None,
    *,
    codes: ClassCodes,
    kernels: Mapping[str, KernelSettings],
    config: CrossModalConfig,
) -> dict[str, tuple[Predictor, NDArray[np.intp]]]:
    """What each modality predicts, and the fold of each of its rows."""
    maps = {
        modality: draw_features(
            own.shape[1], count=config.function_feature_count, gamma=kernels[modality].gamma, seed=config.seed
        )
        for modality, own in rows.items()
    }
    if labels is not None:
        targets = {modality: label_targets(labels[modality], class_codes=codes) for modality in rows}
        known = {modality: np.asarray(own.any(axis=1), dtype=np.bool_) for modality, own in targets.items()}
        if pairs is not None:
            carry_over_pairs(targets, known, pairs=pairs)
    else:
        assert pairs is not None, "labels or pairs"
        targets, known = _targets_of_pairs(rows, pairs, maps=[maps[modality] for modality in rows])
    predictors = {}
    for modality, own in rows.items():
        reconstruct_targets(own, targets[modality], known=known[modality])
        folds = _folds(modality, rows, pairs, seed=config.seed)
        kernel = kernels[modality]
        kernel = replace(kernel, ridge=kernel.ridge * config.function_ridge_share)
        predictor = fit_predictor(own, targets[modality], features=maps[modality], kernel=kernel, folds=folds)
        predictors[modality] = (predictor, folds)
    return predictors


def _targets_of_pairs(
    rows: Rows, pairs: NDArray[np.int64], *, maps: Sequence[RandomFeatures]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.bool_]]]:
    one, other = (own[column] for own, column in zip(rows.values(), pairs.T, strict=True))
    common = pair_targets(one, other, maps=maps)
    targets, known = {}, {}
    for (modality, own), column in zip(rows.items(), pairs.T, strict=True):
        sums = np.zeros((own.shape[0], common.shape[1]))
        counts = np.bincount(column, minlength=own.shape[0])
        np.add.at(sums, column, common)
        targets[modality] = sums / np.maximum(counts, 1)[:, None]
        known[modality] = counts > 0
    return targets, known


def _folds(modality: str, rows: Rows, pairs: NDArray[np.int64] | None, *, seed: int) -> NDArray[np.intp]:
    """Rows of a pair fall in one fold, so that neither learns from the other's; a row of several pairs is in
    the fold of its last. Paired rows of the first modality are dealt first, so that they fill the folds."""
    rng = np.random.default_rng(seed)
    first = next(iter(rows))
    folds = draw_folds(
        rows[first].shape[0], fold_count=FOLDS, rng=rng, ahead=pairs[:, 0] if pairs is not None else None
    )
    if modality == first:
        return folds
    own = draw_folds(rows[modality].shape[0], fold_count=FOLDS, rng=rng)
    if pairs is not None:
        own[pairs[:, 1]] = folds[pairs[:, 0]]
    return own


def _fit_towers(
    rows: Rows,
    predictors: Mapping[str, tuple[Predictor, NDArray[np.intp]]],
    codes: Mapping[str, FunctionCode],
    *,
    config: CrossModalConfig,
) -> tuple[dict[str, FeatureTower], RadiusTable, NDArray[np.float32]]:
    """Towers of all modalities, the radii that hold for each, and values of the first's held-out rows.

    Radii are measured on rows of the first fold, with a tower that has not seen them. With too few rows of a
    modality, or where all bits are function bits, none are, and then no radius limits anything.
    """
    towers: dict[str, FeatureTower] = {}
    tables: list[RadiusTable] = []
    drift_values: NDArray[np.float32] | None = None
    for modality, own in rows.items():
        predictor, folds = predictors[modality]
        measured = own.shape[0] >= HELD_OUT_MIN_ROWS
        held_out = own[folds == 0][:HELD_OUT_ROWS_LIMIT] if measured else own
        linear, offset = _fit_linear(own[folds != 0] if measured else own, config=config)
        code = codes[modality]
        towers[modality] = tower_of(predictor, code, linear=linear, linear_offset=offset)
        unseen = tower_of(predictor, code, linear=linear, linear_offset=offset, without_first_fold=measured)
        tables.append(
            calibrate_radii(unseen, held_out, seed=config.seed)
            if measured and linear.shape[1]
            else RadiusTable.unlimited(config.code_bits)
        )
        if drift_values is None:
            drift_values = unseen.project(held_out)
    assert drift_values is not None, "at least two modalities"
    return towers, RadiusTable.largest(tables), drift_values


def _fit_linear(
    rows: NDArray[np.float32], *, config: CrossModalConfig
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """ITQ for the bits that tell items apart: weight float32 [dim, b], offset float32 [b]; b may be 0."""
    bits = config.code_bits - config.common_bits
    if not bits:
        return np.empty((rows.shape[1], 0), dtype=np.float32), np.empty(0, dtype=np.float32)
    projection = fit_itq(rows, code_bits=bits, iterations=config.itq_iterations, seed=config.seed)
    return projection.weight, projection.mean @ projection.weight


def _fit_labels(
    rows: Rows,
    labels: Mapping[str, Labels],
    codes: ClassCodes,
    kernels: Mapping[str, KernelSettings],
    *,
    config: CrossModalConfig,
    report: Progress,
) -> dict[str, LabelState]:
    states = {}
    for done, (modality, own) in enumerate(rows.items()):
        report("labels", done, len(rows))
        labelled = _labelled(labels[modality])
        kernel = kernels[modality]
        settings = EncoderConfig(
            label_bits=config.label_bits,
            feature_count=config.label_feature_count,
            gamma=kernel.gamma,
            ridge=kernel.ridge * labelled.size,
            seed=config.seed,
        )
        empty = replace(LabelState.empty(own.shape[1], config=settings), class_codes=codes)
        states[modality] = empty.add(own[labelled], [labels[modality][i] for i in labelled])
    report("labels", len(rows), len(rows))
    return states


def _metrics(
    predictors: Mapping[str, Predictor],
    codes: Mapping[str, FunctionCode],
    labels: Mapping[str, Labels] | None,
    pairs: NDArray[np.int64] | None,
    *,
    seed: int,
) -> dict[str, float]:
    metrics = {}
    first = next(iter(predictors))
    for source, target in permutations(predictors, 2):
        one, other = predictors[source], predictors[target]
        queries = np.arange(one.targets.shape[0])
        database = np.arange(other.targets.shape[0])
        if labels is not None:
            queries, database = _labelled(labels[source]), _labelled(labels[target])
        queries = queries[:: -(-queries.size // METRIC_QUERIES)]
        database = database[:: -(-database.size // METRIC_ROWS)]
        scores = held_out_scores(one, other, codes[target], queries=queries, rows=database)
        if labels is not None:
            relevant = one.targets[queries] @ other.targets[database].T > 1e-9
        else:
            assert pairs is not None, "labels or pairs"
            ordered = pairs if source == first else pairs[:, ::-1]
            among = np.isin(ordered[:, 0], queries) & np.isin(ordered[:, 1], database)
            relevant = np.zeros((queries.size, database.size), dtype=bool)
            relevant[
                np.searchsorted(queries, ordered[among, 0]), np.searchsorted(database, ordered[among, 1])
            ] = True
        metrics[f"map_{source}_to_{target}"] = mean_average_precision(scores, relevant, seed=seed)
    return {name: value for name, value in metrics.items() if not np.isnan(value)}

"""Continue an encoder's label part with new rows; `label_gate` judges the result before it serves.

Stored codes never change: an update keeps the instance projections and every issued class code, and
only the map from a query to its label values is solved anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import ClassCodes, Labels, check_labels
from hashing.errors import NothingToLearnError, StateMismatchError, UnknownModalityError
from hashing.inference import Encoder
from hashing.label_part import LearnedState, same_features
from hashing.trainer import Progress, no_progress

LEARN_ROWS = 512
"""Rows added to the state at a time; progress is reported in between, at most about half a second apart."""


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """row_count: labelled rows learned. skipped_row_count: rows without a label. new_labels: as issued."""

    row_count: int
    skipped_row_count: int
    new_labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class UpdateResult:
    """encoder: a candidate, the old one's child. state: to continue from once the encoder is accepted."""

    encoder: Encoder
    state: LearnedState
    report: UpdateReport


def update_labels(
    encoder: Encoder,
    state: LearnedState,
    *,
    embeddings: NDArray[np.floating],
    labels: Labels,
    modality: str = "text",
    progress: Progress = no_progress,
) -> UpdateResult:
    """Learn labelled rows in a time that depends on them alone, not on what was learned before.

    embeddings: float [n, dim]. labels: of each row; rows with none are skipped. Unseen labels get class
    codes; issued codes, instance projections and radii stay, so instance_id stays. The radii hold for rows
    unlike those they were measured on (figures at `radius.calibrate_radii`); training measures them anew.
    Solving takes O(D^3 + D^2 classes) besides (`ClassState.head`).
    `state` is the one that belongs to `encoder`, or `label_part.empty_state` for an encoder without a label
    part (only then is `modality` read). Neither argument is changed. progress: told of "learn", in rows; may
    raise to stop.
    Raises: NothingToLearnError; StateMismatchError; EmbeddingsError; DimensionError; TrainingDataError.
    """
    check_labels(labels, row_count=embeddings.shape[0])
    _check_state(encoder, state)
    labelled = np.flatnonzero([len(own) > 0 for own in labels])
    if labelled.size == 0:
        raise NothingToLearnError(row_count=embeddings.shape[0])
    updated = state
    for start in range(0, labelled.size, LEARN_ROWS):
        progress("learn", start, labelled.size)
        rows = labelled[start : start + LEARN_ROWS]
        updated = updated.add(embeddings[rows], [labels[row] for row in rows.tolist()])
    progress("learn", labelled.size, labelled.size)
    return UpdateResult(
        encoder=renew_encoder(encoder, updated, modality=modality),
        state=updated,
        report=UpdateReport(
            row_count=labelled.size,
            skipped_row_count=embeddings.shape[0] - labelled.size,
            new_labels=updated.class_codes.labels[len(state.class_codes) :],
        ),
    )


def renew_encoder(encoder: Encoder, state: LearnedState, *, modality: str = "text") -> Encoder:
    """Return the child of `encoder` whose label part is solved from `state`.

    For an update, and after the state's `remove` for forgetting. `modality` is read only where `encoder`
    has no label part yet. Metrics of the parent's label part are dropped: they are not the child's.
    Raises: StateMismatchError where issued class codes or features differ; UnknownModalityError;
    TrainingDataError as the state's `head`.
    """
    _check_state(encoder, state)
    if encoder.label_head is not None:
        modality = encoder.label_head.modality
    projection = encoder.projections.get(modality)
    if projection is None:
        raise UnknownModalityError(modality, known=tuple(encoder.projections))
    if projection.dim != state.features.dim:
        raise StateMismatchError(f"{state.features.dim} dimensions against {projection.dim} of {modality!r}")
    return replace(
        encoder,
        label_head=state.head(modality=modality),
        parent_id=encoder.encoder_id,
        metrics={**_instance_metrics(encoder.metrics), "labelled_row_count": float(state.row_count)},
    )


def renew_without(encoder: Encoder, state: LearnedState | None, *, dropped: Collection[str] = ()) -> Encoder:
    """Return the child of `encoder` that has forgotten: its label part is solved from `state`, what remains.

    Instance projections, radii and issued class codes stay. state: None, or one without rows, where nothing
    remains: the child has no label part, for any modality. dropped: modalities whose label heads in the cross
    part go, as no state of theirs is kept that rows could be subtracted from.
    Raises: as `renew_encoder`.
    """
    if state is not None and state.row_count:
        child = renew_encoder(encoder, state)
        kept = {} if encoder.cross_part is None else dict(encoder.cross_part.label_heads)
    else:
        metrics = _instance_metrics(encoder.metrics)
        child = replace(encoder, label_head=None, parent_id=encoder.encoder_id, metrics=metrics)
        kept = {}
    if child.cross_part is None:
        return child
    heads = {modality: head for modality, head in kept.items() if modality not in dropped}
    return replace(child, cross_part=replace(child.cross_part, label_heads=heads))


def retrained(state: LearnedState, embeddings: NDArray[np.floating], labels: Labels) -> LearnedState:
    """Return what training on these rows alone gives, with the features, ridge and class codes of `state`.

    embeddings: float [n, dim]. labels: one or more per row. An oracle for the state's `remove`.
    Raises: as the state's `add`.
    """
    return state.emptied().add(embeddings, labels)


def _check_state(encoder: Encoder, state: LearnedState) -> None:
    head = encoder.label_head
    if head is None:
        return
    if not same_features(head.features, state.features):
        raise StateMismatchError("other random features")
    if not _extends(state.class_codes, head.class_codes):
        raise StateMismatchError("other class codes")


def _extends(longer: ClassCodes, shorter: ClassCodes) -> bool:
    count = len(shorter)
    return longer.labels[:count] == shorter.labels and np.array_equal(longer.bits[:count], shorter.bits)


def _instance_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("label")}

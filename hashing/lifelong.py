"""Continue an encoder's label parts with new rows; `label_gate` judges the result before it serves.

Stored codes never change: an update keeps the instance projections and every issued class code, and
only the map from a query to its label values is solved anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hashing.analytic import LabelHead
from hashing.class_codes import ClassCodes, Labels, check_labels
from hashing.errors import NothingToLearnError, StateMismatchError, UnknownModalityError
from hashing.inference import Encoder
from hashing.label_part import LabelPart, LearnedState, LearnedStates, same_features
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
    """encoder: a candidate, the old one's child. states: to continue from once the encoder is accepted."""

    encoder: Encoder
    states: LearnedStates
    report: UpdateReport


def learnable_modalities(encoder: Encoder, kept: Collection[str]) -> tuple[str, ...]:
    """Return the modalities whose labelled rows an update can learn, in the encoder's order.

    kept: those of which there is a state. An encoder with a cross part can begin with any that has no label
    part yet; others have the label part of one modality. A label part whose state was not kept cannot go on.
    """
    if encoder.cross_part is None:
        return (encoder.label_modalities or tuple(encoder.projections))[:1]
    heads = encoder.label_heads
    return tuple(own for own in encoder.projections if own in kept or own not in heads)


def update_labels(
    encoder: Encoder,
    states: LearnedStates,
    *,
    embeddings: Mapping[str, NDArray[np.floating]],
    labels: Mapping[str, Labels],
    progress: Progress = no_progress,
) -> UpdateResult:
    """Learn labelled rows in a time that depends on them alone, not on what was learned before.

    embeddings: modality -> float [n_m, dim_m]. labels: modality -> of each row; rows with none are skipped.
    Unseen labels get class codes, in the order of the modalities and their rows, that all modalities share;
    issued codes, instance projections, queries between modalities and radii stay, so instance_id stays. The
    radii hold for rows unlike those they were measured on (figures at `radius.calibrate_radii`); training
    measures them anew. Each label part equals one trained on all rows of its modality at once, with the same
    features and ridge. Solving takes O(D^3 + D^2 classes) a modality besides (`ClassState.head`).
    states: those that belong to `encoder`, and `label_part.empty_state` for a modality without a label part.
    No argument is changed. progress: told of "learn", in rows; may raise to stop.
    Raises: NothingToLearnError; UnknownModalityError for rows without a state; EmbeddingsError;
    DimensionError; TrainingDataError; StateMismatchError as `renew_encoder`.
    """
    for modality, rows in embeddings.items():
        check_labels(labels[modality], row_count=rows.shape[0])
        if modality not in states:
            raise UnknownModalityError(modality, known=tuple(states))
    _check_states(encoder, states)
    row_count = sum(rows.shape[0] for rows in embeddings.values())
    labelled = {own: np.flatnonzero([len(row) > 0 for row in labels[own]]) for own in embeddings}
    total = sum(chosen.size for chosen in labelled.values())
    if total == 0:
        raise NothingToLearnError(row_count=row_count)
    known = codes = next(iter(states.values())).class_codes
    updated, done = dict(states), 0
    for modality, chosen in labelled.items():
        state = updated[modality].with_codes(codes)
        for start in range(0, chosen.size, LEARN_ROWS):
            progress("learn", done + start, total)
            block = chosen[start : start + LEARN_ROWS]
            state = state.add(embeddings[modality][block], [labels[modality][row] for row in block.tolist()])
        updated[modality], codes = state, state.class_codes
        done += chosen.size
    progress("learn", total, total)
    updated = {modality: state.with_codes(codes) for modality, state in updated.items()}
    return UpdateResult(
        encoder=renew_encoder(encoder, updated),
        states=updated,
        report=UpdateReport(
            row_count=total,
            skipped_row_count=row_count - total,
            new_labels=codes.labels[len(known) :],
        ),
    )


def renew_encoder(encoder: Encoder, states: LearnedStates, *, dropped: Collection[str] = ()) -> Encoder:
    """Return the child of `encoder` whose label parts are solved from `states`.

    For an update, and after the states' `remove` for forgetting: a modality whose state has no rows has no
    label part in the child. One without a state keeps what it has, with the class codes of the others, unless
    it is `dropped`. Instance projections, radii and issued class codes stay. Metrics of the parent's label
    part are dropped: they are not the child's.
    Raises: StateMismatchError where issued class codes or features differ, or a label part has no place in
    the encoder; UnknownModalityError; TrainingDataError as the state's `head`.
    """
    _check_states(encoder, states)
    heads: list[LabelPart] = []
    for modality in encoder.projections:
        before = encoder.label_heads.get(modality)
        if modality in states:
            if states[modality].row_count:
                heads.append(states[modality].head(modality=modality))
        elif before is not None and modality not in dropped:
            codes = [state.class_codes for state in states.values()] or [before.class_codes]
            heads.append(replace(before, class_codes=codes[0]))
    across = {head.modality: head for head in heads[1:] if isinstance(head, LabelHead)}
    cross_part = encoder.cross_part
    if len(across) != len(heads[1:]) or (across and cross_part is None):
        raise StateMismatchError("the encoder has no place for a label part of a second modality")
    metrics = {name: value for name, value in encoder.metrics.items() if not name.startswith("label")}
    if row_count := sum(state.row_count for state in states.values()):
        metrics["labelled_row_count"] = float(row_count)
    return replace(
        encoder,
        label_head=heads[0] if heads else None,
        cross_part=None if cross_part is None else replace(cross_part, label_heads=across),
        parent_id=encoder.encoder_id,
        metrics=metrics,
    )


def retrained(state: LearnedState, embeddings: NDArray[np.floating], labels: Labels) -> LearnedState:
    """Return what training on these rows alone gives, with the features, ridge and class codes of `state`.

    embeddings: float [n, dim]. labels: one or more per row. An oracle for the state's `remove`.
    Raises: as the state's `add`.
    """
    return state.emptied().add(embeddings, labels)


def _check_states(encoder: Encoder, states: LearnedStates) -> None:
    heads = encoder.label_heads
    issued = () if encoder.label_head is None else (encoder.label_head.class_codes,)
    shared = [state.class_codes for state in states.values()][:1]
    for modality, state in states.items():
        projection = encoder.projections.get(modality)
        if projection is None:
            raise UnknownModalityError(modality, known=tuple(encoder.projections))
        if projection.dim != state.features.dim:
            raise StateMismatchError(
                f"{state.features.dim} dimensions against {projection.dim} of {modality!r}"
            )
        if modality in heads and not same_features(heads[modality].features, state.features):
            raise StateMismatchError("other random features")
        own = state.class_codes
        if len(own) != len(shared[0]) or not all(_extends(own, codes) for codes in (*issued, *shared)):
            raise StateMismatchError("other class codes")


def _extends(longer: ClassCodes, shorter: ClassCodes) -> bool:
    count = len(shorter)
    return longer.labels[:count] == shorter.labels and np.array_equal(longer.bits[:count], shorter.bits)

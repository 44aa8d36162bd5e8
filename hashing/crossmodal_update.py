"""Continue the label parts of an encoder of several modalities with new rows of one of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hashing.analytic import LabelHead
from hashing.class_codes import Labels, check_labels
from hashing.crossmodal import TrainedCrossModal
from hashing.errors import NothingToLearnError, UnknownModalityError


def update_crossmodal(
    trained: TrainedCrossModal,
    *,
    embeddings: NDArray[np.floating],
    labels: Labels,
    modality: str,
) -> TrainedCrossModal:
    """Learn labelled rows of one modality; their new labels get class codes that all modalities share.

    embeddings: float [n, dim] of `modality`. labels: of each row; rows with none are skipped. Instance codes,
    queries between them, radii and issued class codes stay: stored codes of either kind need no change, and
    entries of every modality are found under new labels by queries of this one. The result equals a label
    part trained on all rows at once with the same ridge in all: that of the rows which `trained` began with,
    as the ridge of its kernel is per row of those. `trained` is not changed.
    Raises: UnknownModalityError; NothingToLearnError; EmbeddingsError; DimensionError; TrainingDataError.
    """
    check_labels(labels, row_count=embeddings.shape[0])
    if modality not in trained.states:
        raise UnknownModalityError(modality, known=tuple(trained.states))
    labelled = np.flatnonzero([len(own) > 0 for own in labels])
    if labelled.size == 0:
        raise NothingToLearnError(row_count=embeddings.shape[0])
    updated = trained.states[modality].add(embeddings[labelled], [labels[row] for row in labelled.tolist()])
    codes = updated.class_codes
    states = {name: replace(state, class_codes=codes) for name, state in trained.states.items()}
    states[modality] = updated

    encoder = trained.encoder
    assert encoder.label_head is not None and encoder.cross_part is not None, "there are label states"
    first = encoder.label_head
    assert isinstance(first, LabelHead), "as training made it"
    heads = {first.modality: first, **encoder.cross_part.label_heads}
    heads = {name: replace(head, class_codes=codes) for name, head in heads.items()}
    heads[modality] = updated.head(modality=modality)
    first = heads.pop(first.modality)
    metrics = dict(encoder.metrics)
    metrics["labelled_row_count"] = float(sum(state.row_count for state in states.values()))
    child = replace(
        encoder,
        label_head=first,
        cross_part=replace(encoder.cross_part, label_heads=heads),
        parent_id=encoder.encoder_id,
        metrics=metrics,
    )
    return replace(trained, encoder=child, states=states)

"""What the objectives read: label vectors, class codes and matched rows of the training part."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import ClassCodes, target_bits
from hashing.deep.config import TrainingConfig
from hashing.deep.match_objective import Matches
from hashing.deep.reconstruction import rebuild_partners
from hashing.deep.training_set import Split, TrainingSet, matched_rows


def label_vectors(training_set: TrainingSet, split: Split) -> dict[str, NDArray[np.float32]]:
    """Return of each labelled modality its training rows' classes, 0/1 float32 [n, classes]."""
    names = dict.fromkeys(name for own in training_set.labels.values() for row in own for name in row)
    column = {name: index for index, name in enumerate(names)}
    vectors = {}
    for modality, labels in training_set.labels.items():
        rows = split.training[modality]
        own = np.zeros((rows.size, len(column)), dtype=np.float32)
        for place, row in enumerate(rows.tolist()):
            own[place, [column[name] for name in labels[row]]] = 1
        vectors[modality] = own
    return vectors


def class_centres(
    training_set: TrainingSet, split: Split, *, config: TrainingConfig
) -> dict[str, NDArray[np.float32]]:
    """Return of each labelled modality its training rows' class codes, -1/+1, 0 for rows without labels."""
    codes = ClassCodes.empty(label_bits=config.code_bits, seed=config.seed)
    codes = codes.issue(name for own in training_set.labels.values() for row in own for name in row)
    centres = {}
    for modality, labels in training_set.labels.items():
        own = [labels[row] for row in split.training[modality].tolist()]
        labelled = [place for place, names in enumerate(own) if names]
        centres[modality] = np.zeros((len(own), config.code_bits), dtype=np.float32)
        bits = target_bits(codes, [own[place] for place in labelled])
        centres[modality][labelled] = np.where(bits, np.float32(1), np.float32(-1))
    return centres


def find_matches(
    training_set: TrainingSet,
    split: Split,
    rows: Mapping[str, NDArray[np.float32]],
    *,
    config: TrainingConfig,
    rng: np.random.Generator,
) -> tuple[dict[tuple[str, str], Matches], dict[str, NDArray[np.float32]]]:
    """The matches of each two modalities among training rows, and `rows` with rebuilt partners appended."""
    weights = config.losses.matches
    found: dict[tuple[str, str], Matches] = {}
    grown = dict(rows)
    for first, second in combinations(training_set.embeddings, 2):
        if not weights.info_nce:
            own = _label_partners(training_set, split, first, second, rng=rng)
            found[first, second] = Matches(own, np.arange(len(own)), np.ones(len(own), dtype=np.float32))
            continue
        items = [training_set.items[modality][split.training[modality]] for modality in (first, second)]
        own = matched_rows(*items)
        own_items = items[0][own[:, 0]]
        shares = np.ones(len(own), dtype=np.float32)
        if weights.reconstruct:
            rebuilt = [_rebuild(grown, rows, (first, second), own, near=near) for near in (0, 1)]
            own = np.concatenate([own, *rebuilt])
            own_items = np.concatenate([own_items, *(items[near][rebuilt[near][:, near]] for near in (0, 1))])
            rest = np.full(len(own) - shares.size, weights.reconstruct, dtype=np.float32)
            shares = np.concatenate([shares, rest])
        found[first, second] = Matches(own, own_items.astype(np.int64), shares)
    return found, grown


def _label_partners(
    training_set: TrainingSet, split: Split, first: str, second: str, *, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return labelled rows of two modalities side by side, the shorter list repeated, int64 [m, 2]."""
    sides = []
    for modality in (first, second):
        labels = training_set.labels[modality]
        own = split.training[modality].tolist()
        sides.append(rng.permutation([place for place, row in enumerate(own) if labels[row]]))
    longest = max(side.size for side in sides)
    return np.column_stack([np.resize(side, longest) for side in sides]).astype(np.int64)


def _rebuild(
    grown: dict[str, NDArray[np.float32]],
    rows: Mapping[str, NDArray[np.float32]],
    modalities: tuple[str, str],
    matches: NDArray[np.int64],
    *,
    near: int,
) -> NDArray[np.int64]:
    """Append to `grown` rebuilt partners for one modality's rows in no match; returns the new matches."""
    modality, other = modalities[near], modalities[1 - near]
    alone = np.setdiff1d(np.arange(rows[modality].shape[0]), matches[:, near])
    if not len(matches):  # nothing to rebuild from
        alone = alone[:0]
    added = np.empty((alone.size, 2), dtype=np.int64)
    added[:, near] = alone
    added[:, 1 - near] = grown[other].shape[0] + np.arange(alone.size)
    if alone.size:
        anchors, partners = rows[modality][matches[:, near]], rows[other][matches[:, 1 - near]]
        made = rebuild_partners(rows[modality][alone], anchors=anchors, partners=partners)
        grown[other] = np.concatenate([grown[other], made])
    return added

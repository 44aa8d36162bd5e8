"""What an encoder is made of, as named tensors and metadata, and the hash over it.

The hash runs over a canonical order (names sorted, little-endian C-order bytes), so it does not depend
on how a file lays them out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashing.analytic import RandomFeatures
from hashing.class_codes import ClassCodes
from hashing.class_scores import ClassHead, QuadraticFeatures
from hashing.cross_part import CrossPart
from hashing.drift import DriftReference
from hashing.feature_tower import FeatureTower
from hashing.label_part import LabelPart
from hashing.pair_scorer import PairScorer
from hashing.radius import RadiusTable
from hashing.tower import InstanceMap, Tower

ID_HEX_CHARS = 32

Tensors = dict[str, NDArray[Any]]


def content_hash(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, object]) -> str:
    """Return the first 128 bits of SHA-256 over names, dtypes, shapes, bytes and metadata, in hex."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        little_endian = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)
        digest.update(canonical_json([name, little_endian.dtype.str, list(tensor.shape)]))
        digest.update(little_endian.data)
    digest.update(canonical_json(metadata))
    return digest.hexdigest()[:ID_HEX_CHARS]


def canonical_json(value: object) -> bytes:
    """Return the one JSON spelling of `value`; NaN and infinities are refused with ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def projection_tensors(projections: Mapping[str, InstanceMap]) -> Tensors:
    """Return "projection.MODALITY.mean" and ".weight", or the arrays as "tower.MODALITY.NAME" of a tower, as
    "feature_tower.MODALITY.NAME" of one of random features."""
    tensors: Tensors = {}
    for modality, projection in projections.items():
        if isinstance(projection, Tower | FeatureTower):
            kind = "tower" if isinstance(projection, Tower) else "feature_tower"
            tensors |= {f"{kind}.{modality}.{name}": array for name, array in projection.arrays().items()}
            continue
        tensors[f"projection.{modality}.mean"] = projection.mean
        tensors[f"projection.{modality}.weight"] = projection.weight
    return tensors


def feature_tensors(features: RandomFeatures | QuadraticFeatures) -> Tensors:
    """Return "features.omega" and "features.beta", or "features.directions" and "features.offset"."""
    return {f"features.{name}": array for name, array in features.arrays().items()}


def label_tensors(label_head: LabelPart) -> Tensors:
    """Return the features, "label.class_bits", and "label.weight" or "label.class_weight" and "_bias"."""
    tensors = {**feature_tensors(label_head.features), "label.class_bits": label_head.class_codes.bits}
    if isinstance(label_head, ClassHead):
        weights = {"label.class_weight": label_head.class_weight, "label.class_bias": label_head.class_bias}
        return {**tensors, **weights}
    return {**tensors, "label.weight": label_head.weight}


def cross_tensors(cross_part: CrossPart) -> Tensors:
    """Return "cross.MODALITY.MODALITY.weight" and ".mean" of each pair of modalities, and of each label head
    "cross_label.MODALITY.omega", ".beta" and ".weight"."""
    tensors: Tensors = {}
    for (source, target), query in cross_part.queries.items():
        tensors[f"cross.{source}.{target}.weight"] = query.weight
        tensors[f"cross.{source}.{target}.mean"] = query.mean
    for modality, head in cross_part.label_heads.items():
        tensors[f"cross_label.{modality}.omega"] = head.features.omega
        tensors[f"cross_label.{modality}.beta"] = head.features.beta
        tensors[f"cross_label.{modality}.weight"] = head.weight
    return tensors


def scorer_tensors(pair_scorer: PairScorer) -> Tensors:
    """Return "pair_scorer.COUNT.query_weight" and ".code_weight" of each prefix."""
    return {
        f"pair_scorer.{count}.{name}": weight
        for count, own in pair_scorer.prefixes.items()
        for name, weight in (("query_weight", own.query_weight), ("code_weight", own.code_weight))
    }


def class_metadata(class_codes: ClassCodes) -> dict[str, object]:
    """Return what the class bits alone do not say."""
    return {"labels": list(class_codes.labels), "seed": class_codes.seed}


def encoder_metadata(
    *,
    radius_table: RadiusTable,
    drift_reference: DriftReference,
    label_head: LabelPart | None,
    parent_id: str | None,
    cross_part: CrossPart | None = None,
    pair_scorer: PairScorer | None = None,
) -> dict[str, object]:
    """Return the metadata that makes an encoder the one it is: metrics and times are no part of it."""
    label_part: dict[str, object] | None = None
    if label_head is not None:
        label_part = {**class_metadata(label_head.class_codes), "modality": label_head.modality}
    metadata: dict[str, object] = {
        "parent_id": parent_id,
        "code_bits": radius_table.code_bits,
        "radii": {str(count): list(column) for count, column in radius_table.columns.items()},
        "drift": {
            "variance": drift_reference.variance,
            "squared_variance": drift_reference.squared_variance,
            "row_count": drift_reference.row_count,
        },
        "label_part": label_part,
    }
    if cross_part is not None:  # named only where there is one: encoders without it keep their ids
        metadata["cross_part"] = {
            "pairs": [list(pair) for pair in cross_part.queries],
            "label_modalities": list(cross_part.label_heads),
            "function_bits": cross_part.function_bits,
        }
    if pair_scorer is not None:
        metadata["pair_scorer"] = {
            str(count): {"scale": own.scale, "bias": own.bias} for count, own in pair_scorer.prefixes.items()
        }
    return metadata

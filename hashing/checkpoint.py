"""Encoders and label states as bytes: tensors sealed with one JSON document (`hashing.sealed_tensors`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashing.analytic import LabelHead, LabelState, RandomFeatures
from hashing.class_codes import ClassCodes
from hashing.class_scores import ClassHead, QuadraticFeatures
from hashing.class_state import ClassState, least_entry_counts
from hashing.config import CODE_BITS_LIMIT, WORD_BITS
from hashing.cross_part import CrossPart, CrossQuery
from hashing.drift import DriftReference
from hashing.errors import CheckpointError
from hashing.feature_tower import FeatureTower
from hashing.identity import Tensors, class_metadata, feature_tensors
from hashing.inference import Encoder
from hashing.label_part import LabelPart, LearnedState
from hashing.pair_scorer import PairScorer, PrefixScorer
from hashing.projection import Projection
from hashing.radius import GRID_COUNT, RadiusTable, bit_counts
from hashing.sealed_tensors import field_of, matrix_of, read_document, seal_tensors, tensor_of, unseal_tensors
from hashing.tower import InstanceMap, Tower

FORMAT_VERSION = 5
"""Version 5 may hold a discriminant label part, version 4 towers of random features, a cross part and a pair
scorer, version 3 towers, version 2 projections alone; all of them are read."""

READ_VERSIONS = (2, 3, 4, 5)
TOWERS_SINCE = 3
ENCODER_FORMAT = "nearhit-encoder"
STATE_FORMAT = "nearhit-label-state"


def dump_encoder(encoder: Encoder) -> bytes:
    """Serialise an encoder; `load_encoder` gives it back with the same encoder_id."""
    metadata: dict[str, object] = {
        "encoder_id": encoder.encoder_id,
        "modalities": list(encoder.projections),
        "metrics": dict(encoder.metrics),
        "identity": encoder.identity_metadata(),
    }
    return seal_tensors(ENCODER_FORMAT, encoder.tensors(), metadata, version=FORMAT_VERSION)


def load_encoder(content: bytes) -> Encoder:
    """Read what `dump_encoder` wrote.

    Raises: CheckpointError that names what is wrong with truncated, foreign, altered or inconsistent
    bytes, or with a format version that this program does not know.
    """
    tensors, metadata = load_sealed(ENCODER_FORMAT, content)
    identity = field_of(metadata, "identity", dict)
    with_towers = metadata["format_version"] >= TOWERS_SINCE
    projections = {
        modality: _instance_map(tensors, str(modality), with_towers=with_towers)
        for modality in field_of(metadata, "modalities", list)
    }
    radius_table = _radius_table(identity)
    if {projection.code_bits for projection in projections.values()} != {radius_table.code_bits}:
        raise CheckpointError("projections and radius table differ in code_bits")
    label_head = _label_head(tensors, identity, modalities=projections)
    encoder = Encoder(
        projections=projections,
        radius_table=radius_table,
        drift_reference=_drift_reference(tensors, identity),
        label_head=label_head,
        cross_part=_cross_part(tensors, identity, modalities=projections, label_head=label_head),
        pair_scorer=_pair_scorer(tensors, identity, code_bits=radius_table.code_bits),
        parent_id=identity.get("parent_id"),
        metrics=field_of(metadata, "metrics", dict),
    )
    if encoder.encoder_id != metadata.get("encoder_id"):
        raise CheckpointError(f"content is encoder {encoder.encoder_id}, not {metadata.get('encoder_id')}")
    return encoder


def dump_state(state: LearnedState) -> bytes:
    """Serialise a label state; only the upper triangle of the gram is kept."""
    upper = np.triu_indices(state.features.count)
    tensors = {
        **feature_tensors(state.features),
        "state.gram_upper": state.gram[upper],
        "state.class_bits": state.class_codes.bits,
    }
    if isinstance(state, ClassState):
        tensors |= {
            "state.class_sums": state.class_sums,
            "state.class_counts": state.class_counts,
            "state.entry_counts": state.entry_counts,
        }
    else:
        tensors["state.cross"] = state.cross
    metadata: dict[str, object] = {
        "ridge": state.ridge,
        "row_count": state.row_count,
        "classes": class_metadata(state.class_codes),
    }
    return seal_tensors(STATE_FORMAT, tensors, metadata, version=FORMAT_VERSION)


def load_state(content: bytes) -> LearnedState:
    """Read what `dump_state` wrote, of either kind. Raises: CheckpointError as `load_encoder`."""
    tensors, metadata = load_sealed(STATE_FORMAT, content)
    class_codes = _class_codes(tensors, "state.class_bits", field_of(metadata, "classes", dict))
    ridge, row_count = field_of(metadata, "ridge", float), field_of(metadata, "row_count", int)
    if "features.directions" not in tensors:
        features = _features(tensors)
        return LabelState(
            features=features,
            class_codes=class_codes,
            ridge=ridge,
            gram=_gram(tensors, features.count),
            cross=tensor_of(tensors, "state.cross", np.float64, (features.count, class_codes.label_bits)),
            row_count=row_count,
        )
    quadratic = _quadratic_features(tensors)
    classes = len(class_codes)
    class_counts = tensor_of(tensors, "state.class_counts", np.float64, (classes,))
    entry_counts = least_entry_counts(class_counts)
    if "state.entry_counts" in tensors:
        entry_counts = tensor_of(tensors, "state.entry_counts", np.int64, (classes,))
    return ClassState(
        features=quadratic,
        class_codes=class_codes,
        ridge=ridge,
        gram=_gram(tensors, quadratic.count),
        class_sums=tensor_of(tensors, "state.class_sums", np.float64, (classes, quadratic.count)),
        class_counts=class_counts,
        row_count=row_count,
        entry_counts=entry_counts,
    )


def _gram(tensors: Tensors, count: int) -> NDArray[np.float64]:
    packed = tensor_of(tensors, "state.gram_upper", np.float64, (count * (count + 1) // 2,))
    gram = np.zeros((count, count))
    upper = np.triu_indices(count)
    gram[upper] = packed
    gram.T[upper] = packed
    return gram


def load_sealed(kind: str, content: bytes) -> tuple[Tensors, dict[str, Any]]:
    """Return tensors and document after everything that concerns the bytes alone has been checked."""
    document = read_document(kind, content)
    version = document.get("format_version")
    if version == 1:
        raise CheckpointError(
            f"format version 1 has no radii for prefixes, expected {FORMAT_VERSION}: train the encoder again"
        )
    if version not in READ_VERSIONS:
        raise CheckpointError(f"format version {version!r} is unknown, expected {FORMAT_VERSION}")
    return unseal_tensors(content, document=document), document


def _instance_map(tensors: Tensors, modality: str, *, with_towers: bool) -> InstanceMap:
    if with_towers and f"tower.{modality}.linear" in tensors:
        return _tower(tensors, modality)
    if with_towers and f"feature_tower.{modality}.output" in tensors:
        return _feature_tower(tensors, modality)
    return _projection(tensors, modality)


def _feature_tower(tensors: Tensors, modality: str) -> FeatureTower:
    name = f"feature_tower.{modality}"
    features = _random_features(tensors, name)
    output = matrix_of(tensors, f"{name}.output")
    linear = matrix_of(tensors, f"{name}.linear")
    if output.shape[0] != features.count or linear.shape[0] != features.dim:
        raise CheckpointError(f"parts of the tower of modality {modality!r} do not fit each other")
    offset = tensor_of(tensors, f"{name}.offset", np.float32, (linear.shape[1] + output.shape[1],))
    return FeatureTower(features=features, linear=linear, output=output, offset=offset)


def _tower(tensors: Tensors, modality: str) -> Tower:
    linear = matrix_of(tensors, f"tower.{modality}.linear")
    hidden = matrix_of(tensors, f"tower.{modality}.hidden")
    (dim, code_bits), hidden_width = linear.shape, hidden.shape[1]
    shapes = {
        "hidden": (dim, hidden_width),
        "hidden_bias": (hidden_width,),
        "output": (hidden_width, code_bits),
        "offset": (code_bits,),
    }
    arrays = {
        name: tensor_of(tensors, f"tower.{modality}.{name}", np.float32, shape)
        for name, shape in shapes.items()
    }
    return Tower(linear=linear, **arrays)


def _projection(tensors: Tensors, modality: str) -> Projection:
    weight = matrix_of(tensors, f"projection.{modality}.weight")
    mean = tensor_of(tensors, f"projection.{modality}.mean", np.float32, weight.shape[:1])
    return Projection(mean=mean, weight=weight)


def _radius_table(identity: Mapping[str, Any]) -> RadiusTable:
    radii = field_of(identity, "radii", dict)
    code_bits = field_of(identity, "code_bits", int)
    counts = bit_counts(code_bits)
    if set(radii) != {str(count) for count in counts}:
        raise CheckpointError(f"radii must be of the first {', '.join(map(str, counts))} bits")
    columns = {}
    for count in counts:
        column = field_of(radii, str(count), list)
        valid = all(type(radius) is int and 0 <= radius <= count for radius in column)
        if len(column) != GRID_COUNT or not valid or column != sorted(column):
            raise CheckpointError(
                f"radii of {count} bits must be {GRID_COUNT} non-decreasing integers in 0..{count}"
            )
        columns[count] = tuple(column)
    return RadiusTable(columns)


def _drift_reference(tensors: Tensors, identity: Mapping[str, Any]) -> DriftReference:
    drift = field_of(identity, "drift", dict)
    return DriftReference(
        mean=tensor_of(tensors, "drift.mean", np.float32, (field_of(identity, "code_bits", int),)),
        variance=field_of(drift, "variance", float),
        squared_variance=field_of(drift, "squared_variance", float),
        row_count=field_of(drift, "row_count", int),
    )


def _label_head(
    tensors: Tensors, identity: Mapping[str, Any], *, modalities: Mapping[str, InstanceMap]
) -> LabelPart | None:
    if identity.get("label_part") is None:
        return None
    label_part = field_of(identity, "label_part", dict)
    modality = field_of(label_part, "modality", str)
    quadratic = "features.directions" in tensors
    features = _quadratic_features(tensors) if quadratic else _features(tensors)
    if modality not in modalities or modalities[modality].dim != features.dim:
        raise CheckpointError(f"label part does not fit modality {modality!r}")
    class_codes = _class_codes(tensors, "label.class_bits", label_part)
    if isinstance(features, QuadraticFeatures):
        shape = (features.count, len(class_codes))
        return ClassHead(
            features=features,
            class_weight=tensor_of(tensors, "label.class_weight", np.float32, shape),
            class_bias=tensor_of(tensors, "label.class_bias", np.float32, shape[1:]),
            class_codes=class_codes,
            modality=modality,
        )
    shape = (features.count, class_codes.label_bits)
    weight = tensor_of(tensors, "label.weight", np.float32, shape)
    return LabelHead(features=features, weight=weight, class_codes=class_codes, modality=modality)


def _cross_part(
    tensors: Tensors,
    identity: Mapping[str, Any],
    *,
    modalities: Mapping[str, InstanceMap],
    label_head: LabelPart | None,
) -> CrossPart | None:
    if identity.get("cross_part") is None:
        return None
    part = field_of(identity, "cross_part", dict)
    function_bits = field_of(part, "function_bits", int)
    queries = {}
    for pair in field_of(part, "pairs", list):
        source, target = pair if isinstance(pair, list) and len(pair) == 2 else ("", "")
        tower = modalities.get(source)
        if not isinstance(tower, FeatureTower) or tower.function_bits != function_bits:
            raise CheckpointError(f"cross part does not fit modality {source!r}")
        if target not in modalities:
            raise CheckpointError(f"cross part names the unknown modality {target!r}")
        shape = (tower.features.count, function_bits)
        queries[source, target] = CrossQuery(
            features=tower.features,
            weight=tensor_of(tensors, f"cross.{source}.{target}.weight", np.float32, shape),
            mean=tensor_of(tensors, f"cross.{source}.{target}.mean", np.float32, shape[1:]),
        )
    heads = {
        str(modality): _cross_label_head(tensors, str(modality), modalities=modalities, label_head=label_head)
        for modality in field_of(part, "label_modalities", list)
    }
    if not queries:
        raise CheckpointError("cross part is empty")
    return CrossPart(queries=queries, label_heads=heads, function_bits=function_bits)


def _cross_label_head(
    tensors: Tensors, modality: str, *, modalities: Mapping[str, InstanceMap], label_head: LabelPart | None
) -> LabelHead:
    features = _random_features(tensors, f"cross_label.{modality}")
    if label_head is None or modality not in modalities or modalities[modality].dim != features.dim:
        raise CheckpointError(f"label part does not fit modality {modality!r}")
    shape = (features.count, label_head.class_codes.label_bits)
    weight = tensor_of(tensors, f"cross_label.{modality}.weight", np.float32, shape)
    return LabelHead(features=features, weight=weight, class_codes=label_head.class_codes, modality=modality)


def _pair_scorer(tensors: Tensors, identity: Mapping[str, Any], *, code_bits: int) -> PairScorer | None:
    if identity.get("pair_scorer") is None:
        return None
    prefixes = {}
    for count in bit_counts(code_bits):
        terms = field_of(field_of(identity, "pair_scorer", dict), str(count), dict)
        prefixes[count] = PrefixScorer(
            scale=field_of(terms, "scale", float),
            bias=field_of(terms, "bias", float),
            query_weight=tensor_of(tensors, f"pair_scorer.{count}.query_weight", np.float32, (count,)),
            code_weight=tensor_of(tensors, f"pair_scorer.{count}.code_weight", np.float32, (count,)),
        )
    return PairScorer(prefixes)


def _quadratic_features(tensors: Tensors) -> QuadraticFeatures:
    directions = matrix_of(tensors, "features.directions")
    offset = tensor_of(tensors, "features.offset", np.float32, directions.shape[1:])
    return QuadraticFeatures(directions=directions, offset=offset)


def _features(tensors: Tensors) -> RandomFeatures:
    return _random_features(tensors, "features")


def _random_features(tensors: Tensors, name: str) -> RandomFeatures:
    omega = matrix_of(tensors, f"{name}.omega")
    return RandomFeatures(omega=omega, beta=tensor_of(tensors, f"{name}.beta", np.float32, omega.shape[1:]))


def _class_codes(tensors: Tensors, name: str, metadata: Mapping[str, Any]) -> ClassCodes:
    labels = field_of(metadata, "labels", list)
    label_bits = tensors[name].shape[-1] if name in tensors and tensors[name].ndim == 2 else 0
    if label_bits % WORD_BITS != 0 or not WORD_BITS <= label_bits <= CODE_BITS_LIMIT:
        raise CheckpointError(f"tensor {name} is missing or of no valid width")
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) != len(labels):
        raise CheckpointError("labels must be distinct strings")
    bits = tensor_of(tensors, name, np.bool_, (len(labels), label_bits))
    return ClassCodes(labels=tuple(labels), bits=bits, seed=field_of(metadata, "seed", int))

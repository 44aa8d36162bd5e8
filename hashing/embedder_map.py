"""A change of embedder: a map by which queries of the new one are served on what the old one embedded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from hashing.embedder_alignment import (
    mean_of_maps,
    posterior_map,
    procrustes,
    stored_covariance,
)
from hashing.embeddings import as_rows, check_training_rows, sample_rows, unit_rows
from hashing.errors import CheckpointError, ConfigError, TrainingDataError
from hashing.identity import Tensors, content_hash
from hashing.metrics import QUERY_CHUNK, recall_at_k, top_columns
from hashing.neighbour_ranking import OWN_COSINE, Neighbours, find_neighbours, refine_by_ranking
from hashing.sealed_tensors import (
    field_of,
    matrix_of,
    read_document,
    seal_tensors,
    tensor_of,
    unseal_tensors,
)

MAP_FORMAT = "nearhit-embedder-map"
MAP_VERSION = 1

METHODS = ("procrustes", "posterior", "ranked")
"""From the fewest assumptions about the pairs to the most; of those that keep as much the first is taken."""

CHOICE_PAIRS = 50
"""Fewer pairs choose nothing: Procrustes is all that they bear."""

CHOICE_SHARE = 0.2
CHOICE_LIMIT = 300
"""Pairs held out to choose the method by: a share, and at most so many."""

CHOICE_TOLERANCE = 0.005
"""Recall of neighbours by which a method must beat the one before it."""

STORED_LIMIT = 100_000
"""Stored rows that a fit reads; more are subsampled by seed."""

RECALL_COUNT = 10
LEAST_NORM = 1e-12
LEAST_LENGTH = 1e-6
"""Of an embedding before it is normalised: a shorter one has no direction."""


@dataclass(frozen=True, slots=True, eq=False)
class EmbedderMap:
    """An immutable affine map from one embedder's space to another's; safe to share between threads.

    weight: float32 [new_dim, old_dim], offset: float32 [old_dim]. from_embedder, to_embedder: ids of the new
    embedder, whose queries are mapped, and of the old one, whose rows are stored. method: one of METHODS.
    metrics: figures of its fit, no part of its identity. map_id: hash of everything else, 32 hex characters.
    """

    weight: NDArray[np.float32]
    offset: NDArray[np.float32]
    from_embedder: str
    to_embedder: str
    method: str
    metrics: Mapping[str, float]
    map_id: str = field(init=False)

    def __post_init__(self) -> None:
        for array in (self.weight, self.offset):
            array.setflags(write=False)
        object.__setattr__(self, "map_id", content_hash(self.tensors(), self.identity_metadata()))

    @property
    def new_dim(self) -> int:
        """Width of what is mapped."""
        return int(self.weight.shape[0])

    @property
    def old_dim(self) -> int:
        """Width of what is stored."""
        return int(self.weight.shape[1])

    def apply(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map the new embedder's embeddings to where the old one stored, float32 [n, old_dim], unit.

        embeddings: float32 [n, new_dim], unit. The cosines of mapped queries with stored rows are lower than
        the old embedder's own: thresholds have to be calibrated again.
        Raises: DimensionError for another width; EmbeddingsError for values that are not finite.
        """
        mapped: NDArray[np.float32] = as_rows(embeddings, dim=self.new_dim) @ self.weight
        mapped += self.offset
        if len(mapped) == 1:  # a query: three calls fewer, of 1 us each
            mapped /= max(sqrt(np.vdot(mapped, mapped)), LEAST_NORM)
            return mapped
        norms = np.sqrt(np.einsum("nd,nd->n", mapped, mapped))
        mapped /= np.maximum(norms, np.float32(LEAST_NORM))[:, None]
        return mapped

    def tensors(self) -> Tensors:
        """Return every array by name."""
        return {"weight": self.weight, "offset": self.offset}

    def identity_metadata(self) -> dict[str, object]:
        """Return what makes the map the one it is beside its arrays."""
        return {
            "from_embedder": self.from_embedder,
            "to_embedder": self.to_embedder,
            "method": self.method,
        }


@dataclass(frozen=True, slots=True)
class MapFloors:
    """What the gate asks for, shares in [0, 1].

    cosine: mean cosine of mapped and old query. neighbour_recall: of the old query's ten nearest stored rows.
    nearest_found: of the old queries' nearest stored rows among the mapped query's ten. From
    multilingual-e5-small to MiniLM, 1,000 pairs gave .61, .53 and .92 and kept 90% of the duplicates in the
    first ten; 4,400 gave .63, .60 and .97 and kept 95% (82k stored questions).
    """

    cosine: float = 0.5
    neighbour_recall: float = 0.4
    nearest_found: float = 0.85

    def __post_init__(self) -> None:
        for key in ("cosine", "neighbour_recall", "nearest_found"):
            value = getattr(self, key)
            if not 0 <= value <= 1:
                raise ConfigError(key, value, "in [0, 1]")


DEFAULT_FLOORS = MapFloors()


@dataclass(frozen=True, slots=True)
class MapReport:
    """What a map does to held-out pairs.

    cosine, neighbour_recall, nearest_found: as in MapFloors. nearest_changed: share of queries whose nearest
    stored row is another one. pair_count: pairs judged by. reasons: why not accepted; empty otherwise.
    """

    cosine: float
    neighbour_recall: float
    nearest_found: float
    nearest_changed: float
    pair_count: int
    accepted: bool
    reasons: tuple[str, ...]


def fit_embedder_map(
    new: NDArray[np.floating],
    old: NDArray[np.floating],
    *,
    from_embedder: str,
    to_embedder: str,
    stored: NDArray[np.floating] | None = None,
    seed: int = 0,
) -> EmbedderMap:
    """Learn a map from texts embedded by both embedders, by the method that the pairs bear.

    new: float [n, new_dim], old: float [n, old_dim]; row i of both is of one text. stored: float
    [m, old_dim], the rows that mapped queries will search, of which at most STORED_LIMIT are read; the old
    rows where None. From CHOICE_PAIRS pairs on every method is fitted on a part, and the one by which the
    other part finds most of its stored neighbours is fitted again on all; `metrics` tells what each found.
    `posterior`: `posterior_map`. `ranked`: its mean with Procrustes, then `refine_by_ranking`.
    O(n x m x old_dim).
    Raises: EmbeddingsError for what is no finite matrix; DimensionError for stored rows of another width than
    the old ones; TrainingDataError for unequal counts, fewer than two pairs, a row of zeros, or rows that
    are all equal.
    """
    unit_new, unit_old = _checked_pairs(new, old)
    rng = np.random.default_rng(seed)
    unit_stored = unit_old
    if stored is not None and len(stored):
        unit_stored = unit_rows(as_rows(sample_rows(stored, limit=STORED_LIMIT, rng=rng), dim=old.shape[1]))
    pairs = _Pairs(new=unit_new, old=unit_old)
    covariance = stored_covariance(unit_stored)
    method, metrics = METHODS[0], {"pairs": float(len(unit_new))}
    if len(unit_new) >= CHOICE_PAIRS:
        pairs = replace(pairs, neighbours=find_neighbours(unit_old, unit_stored))
        order = rng.permutation(len(unit_new))
        held_count = min(CHOICE_LIMIT, round(CHOICE_SHARE * len(order)))
        held, kept = order[:held_count], order[held_count:]
        best = -1.0
        for name in METHODS:
            weight, offset = _fit(
                name, pairs.take(kept), stored=unit_stored, covariance=covariance, seed=seed
            )
            tried = _embedder_map(weight, offset, from_embedder, to_embedder, name, {})
            found = evaluate_map(tried, unit_new[held], unit_old[held], stored=unit_stored).neighbour_recall
            metrics[f"{name}.neighbour_recall"] = found
            if found > best + CHOICE_TOLERANCE:
                best, method = found, name
    weight, offset = _fit(method, pairs, stored=unit_stored, covariance=covariance, seed=seed)
    return _embedder_map(weight, offset, from_embedder, to_embedder, method, metrics)


def evaluate_map(
    embedder_map: EmbedderMap,
    new: NDArray[np.floating],
    old: NDArray[np.floating],
    *,
    stored: NDArray[np.floating],
    floors: MapFloors = DEFAULT_FLOORS,
) -> MapReport:
    """Judge a map by pairs that it was not fitted on, before it serves.

    new: float [q, new_dim], old: float [q, old_dim]; row i of both is of one text. stored: float
    [m, old_dim]; rows that hold a query's own text are no neighbours of it. Accepted iff no figure is below
    its floor. Exact search of all stored rows, O(q x m x old_dim).
    Raises: as `fit_embedder_map`, but one pair is enough; TrainingDataError without any.
    """
    unit_new, unit_old = _checked_rows(new, old)
    if not len(unit_new) or not len(stored):
        raise TrainingDataError(f"there are {len(unit_new)} pairs and {len(stored)} stored rows to judge by")
    unit_stored = unit_rows(as_rows(stored, dim=embedder_map.old_dim))
    mapped = embedder_map.apply(unit_new)
    agreement = np.einsum("nd,nd->n", mapped, as_rows(unit_old, dim=embedder_map.old_dim))
    recalls, found, changed = 0.0, 0, 0
    for start in range(0, len(mapped), QUERY_CHUNK):
        chunk = slice(start, start + QUERY_CHUNK)
        truth, scores = unit_old[chunk] @ unit_stored.T, mapped[chunk] @ unit_stored.T  # [chunk, m]
        copies = truth >= OWN_COSINE
        truth[copies] = scores[copies] = -2.0
        nearest, returned = truth.argmax(axis=1), top_columns(scores, count=RECALL_COUNT)
        recalls += recall_at_k(returned, top_columns(truth, count=RECALL_COUNT)) * len(truth)
        found += int((returned == nearest[:, None]).any(axis=1).sum())
        changed += int((scores.argmax(axis=1) != nearest).sum())
    count = len(mapped)
    figures = {
        "cosine": float(agreement.mean()),
        "neighbour_recall": recalls / count,
        "nearest_found": found / count,
    }
    reasons = tuple(
        f"{name} is {value:.4f}, below {getattr(floors, name)}"
        for name, value in figures.items()
        if value < getattr(floors, name)
    )
    return MapReport(
        **figures, nearest_changed=changed / count, pair_count=count, accepted=not reasons, reasons=reasons
    )


def dump_embedder_map(embedder_map: EmbedderMap) -> bytes:
    """Serialise a map; `load_embedder_map` gives it back with the same map_id."""
    metadata: dict[str, object] = {
        "map_id": embedder_map.map_id,
        "identity": embedder_map.identity_metadata(),
        "metrics": dict(embedder_map.metrics),
    }
    return seal_tensors(MAP_FORMAT, embedder_map.tensors(), metadata, version=MAP_VERSION)


def load_embedder_map(content: bytes) -> EmbedderMap:
    """Read what `dump_embedder_map` wrote.

    Raises: CheckpointError that names what is wrong with truncated, foreign, altered or inconsistent bytes,
    or with a format version that this program does not know.
    """
    document = read_document(MAP_FORMAT, content)
    version = document.get("format_version")
    if version != MAP_VERSION:
        raise CheckpointError(f"format version {version!r} is unknown, expected {MAP_VERSION}")
    tensors = unseal_tensors(content, document=document)
    weight = matrix_of(tensors, "weight")
    identity = field_of(document, "identity", dict)
    embedder_map = EmbedderMap(
        weight=weight,
        offset=tensor_of(tensors, "offset", np.float32, (weight.shape[1],)),
        from_embedder=field_of(identity, "from_embedder", str),
        to_embedder=field_of(identity, "to_embedder", str),
        method=field_of(identity, "method", str),
        metrics=field_of(document, "metrics", dict),
    )
    if embedder_map.method not in METHODS:
        raise CheckpointError(f"method {embedder_map.method!r} is none of {', '.join(METHODS)}")
    if embedder_map.map_id != document.get("map_id"):
        raise CheckpointError(f"content is map {embedder_map.map_id}, not {document.get('map_id')}")
    return embedder_map


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """new: float32 [n, new_dim], old: float32 [n, old_dim], unit. neighbours: None where none are needed."""

    new: NDArray[np.float32]
    old: NDArray[np.float32]
    neighbours: Neighbours | None = None

    def take(self, places: NDArray[np.intp]) -> _Pairs:
        """Some of the pairs."""
        near = self.neighbours
        if near is not None:
            near = Neighbours(rows=near.rows[places], own=near.own[places])
        return _Pairs(new=self.new[places], old=self.old[places], neighbours=near)


def _fit(
    method: str,
    pairs: _Pairs,
    *,
    stored: NDArray[np.float32],
    covariance: NDArray[np.float64],
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight and offset of one method; `covariance`, of the stored rows, is not read by Procrustes."""
    new, old = pairs.new, pairs.old
    new_mean = new.mean(axis=0, dtype=np.float64)
    centre = old.mean(axis=0, dtype=np.float64)
    centred_new, centred_old = new - new_mean, old - centre
    if method == "procrustes":
        weight = procrustes(centred_new, centred_old)
        return weight, centre - new_mean @ weight
    weight = posterior_map(centred_new, centred_old, covariance=covariance)
    if method == "ranked":
        assert pairs.neighbours is not None, "they are found wherever methods are chosen from"
        weight = mean_of_maps(weight, procrustes(centred_new, centred_old), new=centred_new)
        weight, centre = refine_by_ranking(
            weight,
            centre,
            new=centred_new.astype(np.float32),
            old=old,
            stored=stored,
            neighbours=pairs.neighbours,
            seed=seed,
        )
    return weight, centre - new_mean @ weight


def _embedder_map(
    weight: NDArray[np.float64],
    offset: NDArray[np.float64],
    from_embedder: str,
    to_embedder: str,
    method: str,
    metrics: Mapping[str, float],
) -> EmbedderMap:
    return EmbedderMap(
        weight=np.ascontiguousarray(weight, dtype=np.float32),
        offset=offset.astype(np.float32),
        from_embedder=from_embedder,
        to_embedder=to_embedder,
        method=method,
        metrics=metrics,
    )


def _checked_pairs(
    new: NDArray[np.floating], old: NDArray[np.floating]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The unit rows of both spaces that a map can be fitted on."""
    unit_new, unit_old = _checked_rows(new, old)
    for rows in (unit_new, unit_old):
        check_training_rows(rows)
    return unit_new, unit_old


def _checked_rows(
    new: NDArray[np.floating], old: NDArray[np.floating]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    new_rows, old_rows = as_rows(new), as_rows(old)
    if len(new_rows) != len(old_rows):
        raise TrainingDataError(
            f"there are {len(new_rows)} new embeddings and {len(old_rows)} old ones: one of each a text"
        )
    for name, rows in (("new", new_rows), ("old", old_rows)):
        for row in np.flatnonzero(np.linalg.norm(rows, axis=1) < LEAST_LENGTH)[:1]:
            raise TrainingDataError(f"{name} embedding {row} is zero: it has no direction")
    return unit_rows(new_rows), unit_rows(old_rows)

"""Rows, queries and brute-force oracles for the tests of the index."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index import (
    NEVER,
    Changes,
    IndexConfig,
    InvertedLists,
    Rows,
    SealedSegment,
    SearchRequest,
    SegmentKey,
    VectorGraph,
    VectorIndex,
    pack,
)
from index.list_margins import DISTANCE_COUNT, RECALLS, ListMargins
from index.lists import build_lists

DIM = 12
CODE_BITS = 70  # two words, 58 padding bits
LABEL_BITS = 64
ENCODER = "encoder-a"
KEY = SegmentKey(category_id=1, modality="text", encoder_id=ENCODER)
TEXT = KEY.partition
NOW = 1_000  # ms
ALL_RADII = {ENCODER: {64: 64, CODE_BITS: CODE_BITS}}  # hold every row
CONFIG = IndexConfig(code_bits=CODE_BITS, label_bits=LABEL_BITS)
_PROJECTION = np.random.default_rng(99).standard_normal((DIM, CODE_BITS))


def unit_vectors(count: int, *, seed: int, dim: int = DIM) -> NDArray[np.float32]:
    """float32 [count, dim] of norm 1."""
    vectors = np.random.default_rng(seed).standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(
    count: int, *, seed: int = 0, dim: int = 16, clusters: int = 20, spread: float = 0.1
) -> NDArray[np.float16]:
    """float16 [count, dim] around a few centres."""
    rng = np.random.default_rng(seed)
    centres = unit_vectors(clusters, seed=seed, dim=dim)
    points = centres[rng.integers(0, clusters, count)] + spread * rng.standard_normal((count, dim))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)


def encode(vectors: NDArray[Any]) -> NDArray[np.uint64]:
    """Random hyperplanes: uint64 [n, 2]."""
    return pack(vectors.astype(np.float64) @ _PROJECTION > 0)


def make_rows(
    ids: Iterable[int], *, seed: int = 0, with_codes: bool = True, with_labels: bool = True, **columns: Any
) -> Rows:
    """Rows with random vectors; each payload names its id. Keywords replace columns."""
    entry_ids = np.array(list(ids), dtype=np.int64)
    count = entry_ids.size
    rng = np.random.default_rng(seed)
    vectors = columns.get("vectors", unit_vectors(count, seed=seed).astype(np.float16))
    defaults: dict[str, Any] = {
        "entry_ids": entry_ids,
        "vectors": vectors,
        "codes": encode(vectors) if with_codes and "codes" not in columns else None,
        "label_codes": pack(rng.random((4, LABEL_BITS)) > 0.5)[rng.integers(0, 4, count)],
        "label_mask": rng.random(count) > 0.5 if with_labels else np.zeros(count, dtype=np.bool_),
        "scopes": np.zeros(count, dtype=np.uint64),
        "fingerprints": np.zeros((count, 2), dtype=np.uint64),
        "expire_times": np.full(count, NEVER, dtype=np.int64),
        "payloads": [f"payload of {entry_id}".encode() for entry_id in entry_ids.tolist()],
    }
    return Rows(**(defaults | columns))


def exact_distances(vectors: NDArray[Any], query: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine distances in float64."""
    stored = vectors.astype(np.float64)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    return 1 - stored @ (query.astype(np.float64) / np.linalg.norm(query.astype(np.float64)))


def axis_distances(vectors: NDArray[Any], axis: int) -> NDArray[np.float32]:
    """Cosine distances of vectors of small integers to an axis, as the kernels give them to the last bit:
    only the root and the division round."""
    stored = vectors.astype(np.float32)
    norms = np.sqrt(np.square(stored).sum(axis=1))
    cosines = np.divide(stored[:, axis], norms, out=np.zeros_like(norms), where=norms > 0)
    return np.float32(1) - cosines


def nearest_ids(
    ids: NDArray[np.int64], distances: NDArray[np.float64], *, k: int, live: NDArray[np.bool_]
) -> list[int]:
    """Ids of the k nearest live rows, by distance, then id."""
    ranked: Sequence[tuple[float, int]] = sorted(
        zip(distances[live].tolist(), ids[live].tolist(), strict=True)
    )
    return [entry_id for _, entry_id in ranked[:k]]


def config(**changes):
    return IndexConfig(**({"code_bits": CODE_BITS, "label_bits": LABEL_BITS} | changes))


def varied_rows(count, *, seed=0, first_id=0, **columns):
    """Rows of three scopes, a third of which has expired at NOW."""
    rng = np.random.default_rng(seed)
    expire_times = rng.choice([NOW, NOW + 1, 2**40], count)
    scopes = rng.integers(0, 3, count).astype(np.uint64)
    ids = range(first_id, first_id + count)
    return make_rows(ids, seed=seed, expire_times=expire_times, scopes=scopes, **columns)


def index_of(*upserts, settings=CONFIG, seq=1, **changes):
    index = VectorIndex(settings)
    index.apply(Changes(seq=seq, upserts=upserts, **changes))
    return index


def sealed(rows, *, key=KEY, with_graph=False, list_count=0):
    """A sealed segment; with lists, its rows are in their order."""
    lists = None
    if list_count:
        order, lists = build_lists(rows.vectors, list_count=list_count, seed=1)
        rows = rows.take(order)
    graph = VectorGraph.build(rows.vectors, seed=1) if with_graph else None
    return SealedSegment(key, rows, graph=graph, lists=lists)


def make_margins(*, by_distance=0.0, by_recall=0.0):
    """Margins of these values, each one number for all or a row of them."""
    return ListMargins(
        by_distance=np.broadcast_to(np.float32(by_distance), DISTANCE_COUNT).copy(),
        by_recall=np.broadcast_to(np.float32(by_recall), len(RECALLS)).copy(),
    )


def lists_of(bounds, *, dim=DIM, seed=0, margins=None):
    """Lists of these rows with random centroids, by default with unknown margins."""
    return InvertedLists(
        centroids=unit_vectors(len(bounds) - 1, seed=seed, dim=dim).astype(np.float16),
        bounds=int64(*bounds),
        margins=ListMargins.unknown() if margins is None else margins,
    )


def request(query, **changes):
    usual = {
        "partitions": (TEXT,),
        "vector": query,
        "codes": {ENCODER: encode(query[None])[0]},
        "k": 5,
        "now_ms": NOW,
    }
    return SearchRequest(**(usual | changes))


def changed(asked, **changes):
    """The same request with other fields."""
    return replace(asked, **changes)


def ids_of(result):
    return [match.entry_id for match in result.matches]


def int64(*values):
    return np.array(values, dtype=np.int64)

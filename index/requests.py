"""What is asked of an index and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.planner import SearchPath
from index.rows import Rows, SegmentKey

Partition = tuple[int, str]  # (category_id, modality)


def _no_ids() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Changes:
    """One step of the change feed, applied in the order of the fields.

    seq: of the last change in it. upserts: rows per segment key, in order; a later one of the same id wins.
    expire_ids, expire_times: int64 [m], new expire times in milliseconds; unknown and deleted ids are
    ignored.
    deleted_ids: int64 [m]; unknown ids are ignored; an id both upserted and deleted ends deleted.
    """

    seq: int
    upserts: tuple[tuple[SegmentKey, Rows], ...] = ()
    expire_ids: NDArray[np.int64] = field(default_factory=_no_ids)
    expire_times: NDArray[np.int64] = field(default_factory=_no_ids)
    deleted_ids: NDArray[np.int64] = field(default_factory=_no_ids)


@dataclass(slots=True, kw_only=True, eq=False)  # not frozen: that takes 2 us a search to make
class SearchRequest:
    """A search over some partitions.

    partitions: the only rows that are touched. vector: float32 [dim], L2-normalised. codes: the query's code,
    uint64 [words], per encoder that could make one. k: results at most. now_ms: rows with
    `now_ms < expire_time` are live. scope: None for any, else a row's scope must equal it. allowed_ids:
    int64 [m], None for all. threshold: cosine distance, matches above it are dropped. radii: per encoder, the
    Hamming distances in bits, of the whole code and of its first bits, within which rows within the threshold
    were found when the encoder was calibrated, by count of leading bits; without the one of the whole code, a
    scan that had to cut its candidates and found no match is repeated on floats. min_recall: share of the
    true k nearest that the answer should have, in [0, 1]; 1 asks for an exact search. path: None lets the
    planner choose. with_vectors: matches bring their stored vectors.
    """

    partitions: tuple[Partition, ...]
    vector: NDArray[np.float32]
    k: int
    now_ms: int
    codes: Mapping[str, NDArray[np.uint64]] = field(default_factory=dict)
    scope: int | None = None
    allowed_ids: NDArray[np.int64] | None = None
    threshold: float | None = None
    radii: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    min_recall: float = 0.0
    path: SearchPath | None = None
    with_vectors: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ValueQuery:
    """A real-valued query against the instance codes of one encoder.

    values: float32 [code_bits], finite, not all 0. code: uint64 [words], its binary form. mask: uint64
    [words], the bits that count; values are 0 elsewhere.
    """

    values: NDArray[np.float32]
    code: NDArray[np.uint64]
    mask: NDArray[np.uint64]


class Match(NamedTuple):
    """One live row. `hamming_distance` in bits, None where the query has no code of the row's encoder.

    vector: float16 [dim], a copy of the stored one; None where it was not asked for.
    """

    entry_id: int
    category_id: int
    cosine_distance: float
    hamming_distance: int | None
    payload: bytes
    vector: NDArray[np.float16] | None = None


class SearchResult(NamedTuple):
    """What a search found.

    matches: ascending by cosine distance, then by entry id. path: the costliest path that any segment took;
    SCAN when there was nothing to search. candidates_examined: rows whose vectors (codes, in a label search)
    were measured. generation, applied_seq: what the
    answer is of, at least; changes that were applied while it ran may show. nearest_distance: of the closest
    live row that was examined, above the threshold or not; None when there was none (CASCADE examines none
    that is certainly above).
    """

    matches: tuple[Match, ...]
    path: SearchPath
    candidates_examined: int
    generation: str | None
    applied_seq: int
    nearest_distance: float | None

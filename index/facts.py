"""What an operator sees of an index: rows, tombstones and bytes per partition."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from index.requests import Partition
from index.rows import TOMBSTONE, SegmentKey, SegmentView
from index.sealed_segment import SealedSegment
from index.segment import Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFacts:
    """One segment. `sizes_bytes`: bytes in memory by part."""

    key: SegmentKey
    is_sealed: bool
    row_count: int
    tombstone_count: int
    has_graph: bool
    sizes_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionFacts:
    """One partition. `live_count` is without tombstones and knows no clock: expired rows count."""

    category_id: int
    modality: str
    row_count: int
    live_count: int
    tombstone_count: int
    encoder_ids: tuple[str, ...]
    sizes_bytes: Mapping[str, int]
    segments: tuple[SegmentFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFacts:
    """An index as it is now, partitions in ascending order."""

    generation: str | None
    applied_seq: int
    partitions: tuple[PartitionFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """Rows by where they are. `live_count`: in all segments; `unheld_count`: those of them that no generation
    holds; `dead_count`: tombstones among the rows of a generation, which only a new one gets rid of."""

    live_count: int
    unheld_count: int
    dead_count: int


def count_rows(views: Iterable[SegmentView], *, generation: str | None) -> RowCounts:
    """Count the rows of all segments of an index; O(rows), without the interpreter lock.

    generation: the one that the sealed segments are of; None: they are of none.
    """
    live = unheld = dead = 0
    for view in views:
        dead_rows = view.row_count - int(np.count_nonzero(view.expire_times))
        live += view.row_count - dead_rows
        if not view.is_sealed or generation is None:  # sealed without a generation: read from the store
            unheld += view.row_count - dead_rows
        else:
            dead += dead_rows
    return RowCounts(live_count=live, unheld_count=unheld, dead_count=dead)


def partition_facts(partition: Partition, segments: Sequence[Segment]) -> PartitionFacts:
    """Count one partition; O(rows)."""
    facts = tuple(_segment_facts(segment) for segment in segments)
    sizes: dict[str, int] = {}
    for segment in facts:
        for part, size in segment.sizes_bytes.items():
            sizes[part] = sizes.get(part, 0) + size
    row_count = sum(segment.row_count for segment in facts)
    tombstone_count = sum(segment.tombstone_count for segment in facts)
    return PartitionFacts(
        category_id=partition[0],
        modality=partition[1],
        row_count=row_count,
        live_count=row_count - tombstone_count,
        tombstone_count=tombstone_count,
        encoder_ids=tuple(sorted({f.key.encoder_id for f in facts if f.key.encoder_id is not None})),
        sizes_bytes=sizes,
        segments=facts,
    )


def _segment_facts(segment: Segment) -> SegmentFacts:
    view = segment.view()
    return SegmentFacts(
        key=segment.key,
        is_sealed=isinstance(segment, SealedSegment),
        row_count=view.row_count,
        tombstone_count=int(np.count_nonzero(view.expire_times == TOMBSTONE)),
        has_graph=segment.graph is not None,
        sizes_bytes=segment.sizes_bytes(),
    )

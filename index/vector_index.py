"""The index of one cache: the segments of its partitions, changes and searches."""

import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from index.codes import WORD_BITS, padding_is_zero, word_count
from index.config import IndexConfig
from index.errors import DimensionError, InvalidRowsError, StaleChangesError
from index.facts import IndexFacts, partition_facts
from index.growing_segment import GrowingSegment
from index.kernels import FLOAT32, UINT64
from index.merge import any_within, merge_candidates
from index.requests import Changes, Match, Partition, SearchRequest, SearchResult, ValueQuery
from index.rows import TOMBSTONE, Rows, SegmentKey, SegmentView
from index.sealed_segment import SealedSegment
from index.search_plan import Viewed, filters_of, plan_search, shared_searches
from index.segment import Fingerprint, Segment
from index.segment_search import (
    Candidates,
    search_exact,
    search_instance_codes,
    search_label_codes,
    search_segment,
)

COMPACT_MIN_DEAD = 1_024  # tombstones of a growing segment that are never worth a copy of the others


class VectorIndex:
    """All rows of one cache. Nothing is shared between caches, and a search touches only asked partitions.

    One writer at a time (`apply` and `drop_...` take the lock); searches take none: they read one
    immutable tuple of segments per partition. A search that runs while a row is replaced may see the old row,
    the new one or neither, never both, and it never returns a row whose deletion had been applied before it
    began.

    A growing segment with more dead rows than live ones is replaced by a copy of the live ones. A search that
    began before goes on with the old one, and deletions go to both for as long as one does: only so does its
    last look at the expire times see a row die whose successor it found in another segment.
    """

    def __init__(
        self,
        config: IndexConfig,
        *,
        sealed: Sequence[SealedSegment] = (),
        generation: str | None = None,
        watermark: int = 0,
    ) -> None:
        """sealed: segments with distinct entry ids; watermark: the last `seq` that they contain.

        Raises: DimensionError when a segment does not fit `config` or another one of its modality.
        """
        self.config = config
        self.generation = generation
        self._applied_seq = watermark
        self._lock = threading.Lock()  # guards changes to everything below; readers do not take it
        self._segments: dict[Partition, tuple[Segment, ...]] = {}
        self._replaced: list[weakref.ref[GrowingSegment]] = []  # by compaction; alive while a search runs
        self._dims: dict[str, int] = {}
        self._highest_id = -1
        for segment in sealed:
            view = segment.view()
            self._check_widths(segment.key, self._dims, view)
            self._dims.setdefault(segment.key.modality, segment.dim)
            self._add_segment(segment)
            self._highest_id = max(self._highest_id, int(view.entry_ids.max(initial=-1)))

    @property
    def applied_seq(self) -> int:
        """The last `seq` whose changes every new search sees."""
        return self._applied_seq

    def apply(self, changes: Changes) -> None:
        """Apply one step of the change feed: upserts, then expire times, then deletions.

        An upsert of an id that exists tombstones its old row, in whichever partition it is. Rows of an
        encoder that is new to a partition open a growing segment beside the others. Invalid changes are
        refused whole.

        Raises: StaleChangesError when `seq` is not above `applied_seq` (a follower that gets a step twice
        drops the second; ignoring it here would also hide a step that came out of order), DimensionError,
        InvalidRowsError.
        """
        with self._lock:
            if changes.seq <= self._applied_seq:
                raise StaleChangesError(changes.seq, applied_seq=self._applied_seq)
            self._check_changes(changes)
            for key, rows in changes.upserts:
                self._upsert(key, rows)
            if changes.expire_ids.size:
                for segment in [*self._all_segments(), *self._still_read()]:
                    segment.set_expire_times(changes.expire_ids, changes.expire_times)
            if changes.deleted_ids.size:
                self._tombstone(changes.deleted_ids)
            self._applied_seq = changes.seq  # last, so that who waits for it sees everything

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """The partitions that have rows, dead ones included."""
        return tuple(self._segments.copy())

    def encoder_ids(self, partitions: Sequence[Partition]) -> frozenset[str]:
        """The encoders whose codes rows of these partitions carry: what a query needs codes for."""
        return frozenset(
            segment.key.encoder_id
            for partition in partitions
            for segment in self._segments.get(partition, ())
            if segment.key.encoder_id is not None
        )

    def drop_category(self, category_id: int) -> None:
        """Forget all partitions of a category; no error when there is none."""
        with self._lock:
            for partition in [partition for partition in self._segments if partition[0] == category_id]:
                del self._segments[partition]

    def drop_modality(self, modality: str) -> None:
        """Forget all partitions of a modality; no error when there is none."""
        with self._lock:
            for partition in [partition for partition in self._segments if partition[1] == modality]:
                del self._segments[partition]
            self._dims.pop(modality, None)

    def find_fingerprint(self, partition: Partition, key: Fingerprint, *, now_ms: int) -> Match | None:
        """Find the live row with exactly this key, both words; the highest entry id when there are several.

        Its distance is 0 by definition. (0, 0) is no key and matches nothing.
        """
        found: Match | None = None
        if key == (0, 0):
            return None
        for segment in self._segments.get(partition, ()):
            offset = segment.find_fingerprint(key, now_ms=now_ms)
            if offset is None:
                continue
            entry_id = int(segment.view().entry_ids[offset])
            if found is None or entry_id > found.entry_id:
                found = Match(
                    entry_id=entry_id,
                    category_id=segment.key.category_id,
                    cosine_distance=0.0,
                    hamming_distance=None,
                    payload=segment.payload(offset),
                )
        return found

    def search(self, request: SearchRequest) -> SearchResult:
        """Search the asked partitions and merge.

        A path asked for is taken by every segment that has it; the planner chooses for the others (new rows
        have no graph yet). When a threshold is given and no candidate is within it, segments whose candidates
        cannot prove that are searched again on floats, also when a path was asked for; `path` tells.

        Raises: DimensionError, ValueError for k, now_ms or min_recall out of range, PathUnavailableError when
        no segment has the asked path.
        """
        seq = self._applied_seq
        self._check_request(request)
        views = {partition: self._views(partition) for partition in request.partitions}
        found = [
            search_segment(segment, view, [request], path=path, config=self.config)[0]
            for segment, view, path in plan_search(request, views, {}, config=self.config)
        ]
        return self._decide(request, found, views, seq=seq)

    def search_batch(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Search for several queries against one state; those of one segment share a pass over its codes.

        Answers as `search` does, in the order of the requests, except that from `shared_scan_queries` on,
        queries that can share a pass scan where one alone would search lists. Raises: as `search`; then none
        is answered.
        """
        if len(requests) == 1:  # what a lookup is: spared the sharing
            return [self.search(requests[0])]
        seq = self._applied_seq
        for request in requests:
            self._check_request(request)
        views = {
            partition: self._views(partition) for request in requests for partition in request.partitions
        }
        sharing = Counter(
            (partition, filters_of(request)) for request in requests for partition in set(request.partitions)
        )
        planned = [plan_search(request, views, sharing, config=self.config) for request in requests]
        found: list[list[Candidates]] = [[] for _ in requests]
        for (segment, view, path), numbers in shared_searches(requests, planned):
            candidates = search_segment(
                segment, view, [requests[number] for number in numbers], path=path, config=self.config
            )
            for number, part in zip(numbers, candidates, strict=True):
                found[number].append(part)
        return [
            self._decide(request, parts, views, seq=seq)
            for request, parts in zip(requests, found, strict=True)
        ]

    def search_labels(
        self,
        *,
        partitions: Sequence[Partition],
        values: NDArray[np.float32],
        k: int,
        now_ms: int,
        scope: int | None = None,
        allowed_ids: NDArray[np.int64] | None = None,
    ) -> SearchResult:
        """Retrieve by class: rank rows that have a label code by its distance to a real-valued query.

        values: float32 [label_bits], finite, not all 0. scope, allowed_ids: as in SearchRequest. The
        `cosine_distance` of a match is 1 - <q, b> / (|q| |b|), b in {-1, +1}, in [0, 2]. Rows of one class
        tie and are ranked by entry id.
        Raises: DimensionError, ValueError.
        """
        seq = self._applied_seq
        _check_range(k=k, now_ms=now_ms)
        if values.dtype != np.float32 or values.shape != (self.config.label_bits,) or not values.size:
            raise DimensionError(
                "label values",
                expected=f"float32 [{self.config.label_bits}]",
                got=f"{values.dtype} {list(values.shape)}",
            )
        if not np.isfinite(values).all() or not values.any():
            raise ValueError("label values: must be finite and not all 0")
        found = [
            search_label_codes(
                segment, view, values=values, k=k, now_ms=now_ms, scope=scope, allowed_ids=allowed_ids
            )
            for partition in dict.fromkeys(partitions)
            for segment, view in self._views(partition)
        ]
        return merge_candidates(
            found, k=k, now_ms=now_ms, threshold=None, generation=self.generation, applied_seq=seq
        )

    def search_values(
        self,
        *,
        partitions: Sequence[Partition],
        queries: Mapping[str, ValueQuery],
        k: int,
        now_ms: int,
        scope: int | None = None,
        allowed_ids: NDArray[np.int64] | None = None,
    ) -> SearchResult:
        """Scan instance codes with a real-valued query, of another modality than the rows', say.

        queries: by the encoder of the rows; rows of other encoders, or without a code, are not found. scope,
        allowed_ids: as in SearchRequest. The `cosine_distance` of a match is 1 - <q, b> / (|q| |b|) over the
        bits that count, b in {-1, +1}, in [0, 2]; its `hamming_distance` is of those bits. Equal distances
        are ranked by entry id. Raises: DimensionError, ValueError.
        """
        seq = self._applied_seq
        _check_range(k=k, now_ms=now_ms)
        shape = (self.config.code_bits,)
        for encoder_id, query in queries.items():
            if query.values.dtype != FLOAT32 or query.values.shape != shape:
                got = f"{query.values.dtype} {list(query.values.shape)}"
                raise DimensionError(f"values of {encoder_id}", expected=f"float32 {list(shape)}", got=got)
            if not np.isfinite(query.values).all() or not query.values.any():
                raise ValueError(f"values of {encoder_id}: must be finite and not all 0")
        found = [
            search_instance_codes(
                segment,
                view,
                across,
                k=k,
                now_ms=now_ms,
                scope=scope,
                allowed_ids=allowed_ids,
            )
            for partition in dict.fromkeys(partitions)
            for segment, view in self._views(partition)
            if (across := queries.get(segment.key.encoder_id or "")) is not None
        ]
        return merge_candidates(
            found, k=k, now_ms=now_ms, threshold=None, generation=self.generation, applied_seq=seq
        )

    def live_ids(self, partition: Partition | None = None) -> NDArray[np.int64]:
        """List the ids without a tombstone, expired ones included, of one partition or of all.

        Returns int64 [m], ascending.
        """
        segments = self._all_segments() if partition is None else list(self._segments.get(partition, ()))
        views = [segment.view() for segment in segments]
        parts = [view.entry_ids[view.expire_times != TOMBSTONE] for view in views]
        return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *parts]))

    def segment_views(self) -> list[tuple[SegmentKey, SegmentView]]:
        """Every segment's rows as they are now."""
        return [(segment.key, segment.view()) for segment in self._all_segments()]

    def rows_of(self, entry_ids: NDArray[np.int64]) -> list[tuple[SegmentKey, Rows]]:
        """Copy the rows of these ids (int64 [m], distinct) without a tombstone, expired ones included.

        For comparison with the store: whole rows, by segment; O(rows of the sealed segments).
        """
        found: list[tuple[SegmentKey, Rows]] = []
        for segment in self._all_segments():
            offsets = segment.locate(entry_ids)
            offsets = offsets[offsets >= 0]
            offsets = offsets[segment.view().expire_times[offsets] != TOMBSTONE]
            if offsets.size:
                found.append((segment.key, segment.rows(offsets)))
        return found

    def facts(self) -> IndexFacts:
        """Count rows, tombstones and bytes per partition; O(rows)."""
        partitions = sorted(self._segments.copy().items())
        return IndexFacts(
            generation=self.generation,
            applied_seq=self._applied_seq,
            partitions=tuple(partition_facts(partition, segments) for partition, segments in partitions),
        )

    def _all_segments(self) -> list[Segment]:
        return [segment for segments in self._segments.copy().values() for segment in segments]

    def _views(self, partition: Partition) -> list[Viewed]:
        """The segments of a partition as they are now; those without rows are left out."""
        viewed = [(segment, segment.view()) for segment in self._segments.get(partition, ())]
        return [(segment, view) for segment, view in viewed if view.row_count]

    def _decide(
        self,
        request: SearchRequest,
        found: list[Candidates],
        views: Mapping[Partition, Sequence[Viewed]],
        *,
        seq: int,
    ) -> SearchResult:
        """Merge; before that, search again on floats where nothing is within the threshold and may yet be."""
        threshold = request.threshold
        if threshold is not None and not any(any_within(candidates, threshold) for candidates in found):
            seen = {
                id(segment): view for partition in request.partitions for segment, view in views[partition]
            }
            found = [
                part if part.proves_miss else search_exact(part.segment, seen[id(part.segment)], request)
                for part in found
            ]
        return merge_candidates(
            found,
            k=request.k,
            now_ms=request.now_ms,
            threshold=threshold,
            generation=self.generation,
            applied_seq=seq,
            with_vectors=request.with_vectors,
        )

    def _upsert(self, key: SegmentKey, rows: Rows) -> None:
        if not len(rows):
            return
        # The store's ids ascend, so new entries are above all known ones and need no look-up.
        known = rows.entry_ids[rows.entry_ids <= self._highest_id]
        if known.size:
            self._tombstone(known)
        self._highest_id = max(self._highest_id, int(rows.entry_ids.max()))
        self._dims.setdefault(key.modality, rows.dim)
        for segment in self._segments.get(key.partition, ()):
            if isinstance(segment, GrowingSegment) and segment.key == key:
                segment.append(rows)
                return
        opened = GrowingSegment(
            key,
            dim=rows.dim,
            code_words=word_count(self.config.code_bits),
            label_words=word_count(self.config.label_bits),
        )
        opened.append(rows)
        self._add_segment(opened)

    def _tombstone(self, entry_ids: NDArray[np.int64]) -> None:
        """Delete rows wherever they are; compact what then holds more dead rows than live ones.

        A compaction copies fewer rows than have died since the last one: O(1) a deletion, amortised.
        """
        for old in self._still_read():
            old.tombstone(entry_ids)
        for segment in self._all_segments():
            if not segment.tombstone(entry_ids) or not isinstance(segment, GrowingSegment):
                continue
            if segment.dead_count > max(COMPACT_MIN_DEAD, segment.live_count):
                self._compact(segment)

    def _compact(self, segment: GrowingSegment) -> None:
        compacted = segment.compacted()
        # Before the swap: whoever reads the old segment from here on is told of later deletions.
        self._replaced.append(weakref.ref(segment))
        partition = segment.key.partition
        self._segments[partition] = tuple(
            compacted if other is segment else other for other in self._segments[partition]
        )

    def _still_read(self) -> list[GrowingSegment]:
        """The replaced segments that a search holds."""
        alive = [(ref, segment) for ref in self._replaced if (segment := ref()) is not None]
        self._replaced = [ref for ref, _ in alive]
        return [segment for _, segment in alive]

    def _add_segment(self, segment: Segment) -> None:
        partition = segment.key.partition
        self._segments[partition] = (*self._segments.get(partition, ()), segment)

    def _check_changes(self, changes: Changes) -> None:
        dims = dict(self._dims)
        for key, rows in changes.upserts:
            self._check_widths(key, dims, rows)
            dims.setdefault(key.modality, rows.dim)
            if not np.isfinite(rows.vectors).all():
                raise InvalidRowsError(f"{key}: vectors must be finite")
            if len(rows) and rows.entry_ids.min() < 0:
                raise InvalidRowsError(f"{key}: entry ids must not be negative")
            for codes, bit_count in (
                (rows.codes, self.config.code_bits),
                (rows.label_codes, self.config.label_bits),
            ):
                if codes is not None and not padding_is_zero(codes, bit_count=bit_count):
                    raise InvalidRowsError(f"{key}: bits set beyond bit {bit_count} of a code")
        if changes.expire_ids.shape != changes.expire_times.shape:
            raise DimensionError(
                "expire_times", expected=f"[{changes.expire_ids.size}]", got=f"[{changes.expire_times.size}]"
            )
        if changes.expire_times.size and changes.expire_times.min() <= TOMBSTONE:
            raise InvalidRowsError("expire_times: must be over 0")

    def _check_widths(self, key: SegmentKey, dims: dict[str, int], columns: Rows | SegmentView) -> None:
        dim = columns.vectors.shape[1]
        expected_dim = dims.get(key.modality, dim)
        if dim != expected_dim:
            raise DimensionError(f"vectors of {key}", expected=f"[n, {expected_dim}]", got=f"[n, {dim}]")
        if (columns.codes is None) != (key.encoder_id is None):
            raise InvalidRowsError(f"{key}: rows have codes if and only if they have an encoder")
        words = word_count(self.config.code_bits)
        if columns.codes is not None and columns.codes.shape[1] != words:
            raise DimensionError(
                f"codes of {key}", expected=f"[n, {words}]", got=f"{list(columns.codes.shape)}"
            )
        label_words = word_count(self.config.label_bits)
        if columns.label_codes.shape[1] != label_words:
            got = f"{list(columns.label_codes.shape)}"
            raise DimensionError(f"label codes of {key}", expected=f"[n, {label_words}]", got=got)

    def _check_request(self, request: SearchRequest) -> None:
        _check_range(k=request.k, now_ms=request.now_ms)
        if not 0 <= request.min_recall <= 1:
            raise ValueError(f"min_recall: must be in [0, 1], is {request.min_recall}")
        vector = request.vector
        for _, modality in request.partitions:
            dim = self._dims.get(modality, vector.size)
            if vector.dtype != FLOAT32 or vector.shape != (dim,):
                got = f"{vector.dtype} {list(vector.shape)}"
                raise DimensionError(f"query vector for {modality}", expected=f"float32 [{dim}]", got=got)
        if not np.isfinite(vector).all():
            raise ValueError("query vector: must be finite")
        code_bits = self.config.code_bits
        shape = (word_count(code_bits),)
        for encoder_id, code in request.codes.items():
            if code.dtype != UINT64 or code.shape != shape:
                got = f"{code.dtype} {list(code.shape)}"
                raise DimensionError(f"query code of {encoder_id}", expected=f"uint64 {list(shape)}", got=got)
            if code_bits % WORD_BITS and not padding_is_zero(code[None, :], bit_count=code_bits):
                raise ValueError(f"query code of {encoder_id}: bits set beyond {code_bits}")
        if request.threshold is not None and not request.threshold >= 0:
            raise ValueError(f"threshold: must be at least 0, is {request.threshold}")
        for encoder_id, radii in request.radii.items():
            if any(not 0 <= radius <= bits <= code_bits for bits, radius in radii.items()):
                raise ValueError(f"radii of {encoder_id}: must be in 0..bits, are {dict(radii)}")


def _check_range(*, k: int, now_ms: int) -> None:
    if k < 1:
        raise ValueError(f"k: must be at least 1, is {k}")
    if now_ms < 0:
        raise ValueError(f"now_ms: must be at least 0, is {now_ms}")

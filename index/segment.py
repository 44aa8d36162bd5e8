"""Segments: rows of one category, modality and encoder; growing in memory, or sealed."""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from index.errors import DimensionError, InvalidRowsError
from index.hnsw import VectorGraph
from index.rows import (
    COLUMN_TYPES,
    TOMBSTONE,
    Payloads,
    Rows,
    SegmentKey,
    SegmentView,
    payload_memory_bytes,
)

INITIAL_CAPACITY = 16  # rows; doubles when full

Fingerprint = tuple[int, int]


class Segment(Protocol):
    """What growing and sealed segments have in common. One writer; any number of readers without a lock."""

    @property
    def key(self) -> SegmentKey:
        """What all rows share."""

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""

    @property
    def graph(self) -> VectorGraph | None:
        """Float graph over all rows, offsets as labels; None for a growing segment."""

    def view(self) -> SegmentView:
        """The rows as they are now."""

    def payload(self, offset: int) -> bytes:
        """The opaque bytes of one row."""

    def rows(self, offsets: NDArray[np.int64]) -> Rows:
        """Copy the rows at `offsets` (int64 [m], distinct, not dead), in that order, with all columns."""

    def locate(self, entry_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Offsets int64 [m] of entry ids int64 [m]; -1 where absent. May name dead rows."""

    def find_fingerprint(self, key: Fingerprint, *, now_ms: int) -> int | None:
        """Offset of the newest live row with exactly this key; None when there is none."""

    def tombstone(self, entry_ids: NDArray[np.int64]) -> int:
        """Delete rows for good; ids that are not here are ignored. Returns how many died now."""

    def set_expire_times(self, entry_ids: NDArray[np.int64], times: NDArray[np.int64]) -> int:
        """Move expire times (int64 [m], over 0); absent ids are ignored, a tombstone is never revived.
        Returns the count of rows that changed."""

    def sizes_bytes(self) -> dict[str, int]:
        """Bytes in memory by part; what a mapped file holds is not counted."""


class GrowingSegment:
    """Rows in memory, append only.

    Append writes rows behind the published count and then swaps one reference, the view, so that a reader
    sees a batch whole or not at all. Deleted rows keep their place and memory: `compacted` leaves them
    behind. Capacity doubles: up to half of the reserved memory may be unused, and a reader keeps the old
    arrays alive while it works, with the expire times as they were when the arrays grew.
    """

    def __init__(self, key: SegmentKey, *, dim: int, code_words: int, label_words: int) -> None:
        """dim: of the vectors; code_words: ignored where key.encoder_id is None; label_words: may be 0."""
        self._key = key
        self._widths: dict[str, tuple[int, ...]] = dict.fromkeys(COLUMN_TYPES, ())
        self._widths |= {"vectors": (dim,), "label_codes": (label_words,), "fingerprints": (2,)}
        if key.encoder_id is None:
            del self._widths["codes"]
        else:
            self._widths["codes"] = (code_words,)
        self._arrays = self._allocate(INITIAL_CAPACITY)
        self._payloads: list[bytes] = []
        # Plain ints and tuples of ints: the garbage collector does not track them.
        self._offsets: dict[int, int] = {}  # entry id -> offset of its row; without tombstones
        self._fingerprints: dict[int, tuple[int, ...]] = {}  # 128-bit key -> offsets, newest first
        self._view = self._trimmed(0)

    @property
    def key(self) -> SegmentKey:
        """What all rows share."""
        return self._key

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self._widths["vectors"][0]

    @property
    def graph(self) -> VectorGraph | None:
        """None: graphs are built when a segment is sealed."""
        return None

    @property
    def live_count(self) -> int:
        """Rows without a tombstone."""
        return len(self._offsets)

    @property
    def dead_count(self) -> int:
        """Tombstones."""
        return self._view.row_count - len(self._offsets)

    def compacted(self) -> "GrowingSegment":
        """A new segment with the rows without a tombstone, in the same order; this one stays; O(rows)."""
        copy = GrowingSegment(
            self._key,
            dim=self.dim,
            code_words=self._widths.get("codes", (0,))[0],
            label_words=self._widths["label_codes"][0],
        )
        copy.append(self.rows(np.flatnonzero(self._view.expire_times != TOMBSTONE)))
        return copy

    def view(self) -> SegmentView:
        """The rows as they are now; later appends do not show in it."""
        return self._view

    def payload(self, offset: int) -> bytes:
        """The opaque bytes of one row."""
        return self._payloads[offset]

    def rows(self, offsets: NDArray[np.int64]) -> Rows:
        """Copy the rows at `offsets` (int64 [m], distinct, not dead), in that order, with all columns."""
        columns = {name: array[offsets] for name, array in self._arrays.items()}
        return Rows.from_columns(columns, payloads=[self._payloads[offset] for offset in offsets.tolist()])

    def append(self, rows: Rows) -> None:
        """Add rows whose ids have no live row here; amortised O(rows).

        Raises: DimensionError, InvalidRowsError.
        """
        columns = rows.columns
        shapes = {name: array.shape[1:] for name, array in columns.items()}
        if shapes != self._widths:
            raise DimensionError(f"rows of {self._key}", expected=str(self._widths), got=str(shapes))
        ids = rows.entry_ids.tolist()
        if not self._offsets.keys().isdisjoint(ids):
            raise InvalidRowsError(f"{self._key}: an entry id already has a row; tombstone it first")
        start, stop = self._view.row_count, self._view.row_count + len(rows)
        if stop > len(self._arrays["entry_ids"]):
            self._reserve(stop)
        for name, array in columns.items():
            self._arrays[name][start:stop] = array
        self._payloads.extend(rows.payloads[offset] for offset in range(len(rows)))
        self._view = self._trimmed(stop)
        self._offsets.update(zip(ids, range(start, stop), strict=True))
        self._index_fingerprints(rows.fingerprints, start=start)

    def locate(self, entry_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Offsets int64 [m] of entry ids int64 [m]; -1 where absent or deleted."""
        found = (self._offsets.get(entry_id, -1) for entry_id in entry_ids.tolist())
        return np.fromiter(found, dtype=np.int64, count=entry_ids.size)

    def find_fingerprint(self, key: Fingerprint, *, now_ms: int) -> int | None:
        """Offset of the newest live row with exactly this key; None when there is none."""
        offsets = self._fingerprints.get(_joined(*key), ())  # before the view, which then holds them all
        return _first_live(offsets, self._view.expire_times, now_ms=now_ms)

    def tombstone(self, entry_ids: NDArray[np.int64]) -> int:
        """Delete rows for good; ids that are not here are ignored. Returns how many died now."""
        offsets = [self._offsets.pop(entry_id, -1) for entry_id in entry_ids.tolist()]
        dying = np.array([offset for offset in offsets if offset >= 0], dtype=np.int64)
        self._view.expire_times[dying] = TOMBSTONE
        return int(dying.size)

    def set_expire_times(self, entry_ids: NDArray[np.int64], times: NDArray[np.int64]) -> int:
        """Move expire times (int64 [m], over 0); absent and deleted ids are ignored. Returns the count."""
        return _move_expire_times(self._view.expire_times, self.locate(entry_ids), times)

    def sizes_bytes(self) -> dict[str, int]:
        """Bytes in memory by part, reserved capacity included; the two dicts are estimated."""
        sizes = {name: array.nbytes for name, array in self._arrays.items()}
        sizes["payloads"] = payload_memory_bytes(self._payloads)
        sizes["lookup"] = 100 * (len(self._offsets) + 2 * len(self._fingerprints))
        return sizes

    def _allocate(self, capacity: int) -> dict[str, NDArray[Any]]:
        return {name: np.empty((capacity, *tail), COLUMN_TYPES[name]) for name, tail in self._widths.items()}

    def _reserve(self, row_count: int) -> None:
        count = self._view.row_count
        grown = self._allocate(max(row_count, 2 * len(self._arrays["entry_ids"])))
        for name, array in grown.items():
            array[:count] = self._arrays[name][:count]
        self._arrays = grown

    def _trimmed(self, count: int) -> SegmentView:
        columns = {name: array[:count] for name, array in self._arrays.items() if name != "fingerprints"}
        return SegmentView(**{"codes": None, **columns})  # type: ignore[arg-type]

    def _index_fingerprints(self, fingerprints: NDArray[np.uint64], *, start: int) -> None:
        expire_times = self._view.expire_times
        for offset, (first, second) in enumerate(fingerprints.tolist(), start=start):
            if not first and not second:
                continue
            key = _joined(first, second)
            older = self._fingerprints.get(key, ())
            # Tombstones leave the list here, so that an often replaced key does not grow it.
            kept = (other for other in older if expire_times[other] != TOMBSTONE)
            self._fingerprints[key] = (offset, *kept)


class SealedSegment:
    """Rows that are no longer added to, in ascending order of entry id.

    Arrays are served from memory, payloads from wherever `rows` has them (a mapped file, when read from
    one). Deletions and expire times change the copy in memory only, never the file.
    """

    def __init__(self, key: SegmentKey, rows: Rows, *, graph: VectorGraph | None = None) -> None:
        """rows: ascending entry ids; graph: over exactly these rows. Raises: InvalidRowsError."""
        if not rows.is_ascending:
            raise InvalidRowsError(f"{key}: entry ids of a sealed segment must ascend")
        if (rows.codes is None) != (key.encoder_id is None):
            raise InvalidRowsError(f"{key}: rows have codes if and only if they have an encoder")
        if graph is not None and (graph.row_count, graph.dim) != (len(rows), rows.dim):
            raise InvalidRowsError(f"{key}: the graph is not of these rows")
        self._key = key
        self._graph = graph
        self._payloads: Payloads = rows.payloads
        self._view = SegmentView(
            entry_ids=rows.entry_ids,
            vectors=rows.vectors,
            codes=rows.codes,
            label_codes=rows.label_codes,
            label_mask=rows.label_mask,
            scopes=rows.scopes,
            expire_times=rows.expire_times.copy(),
        )
        words = rows.fingerprints
        present = np.flatnonzero(words.any(axis=1))
        order = present[np.lexsort((words[present, 1], words[present, 0]))]
        self._fingerprint_order = order  # int64 [m], offsets by ascending key, then by offset
        self._fingerprint_words = words[order]  # uint64 [m, 2]

    @property
    def key(self) -> SegmentKey:
        """What all rows share."""
        return self._key

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self._view.vectors.shape[1])

    @property
    def graph(self) -> VectorGraph | None:
        """Float graph over all rows, or None."""
        return self._graph

    def view(self) -> SegmentView:
        """The rows."""
        return self._view

    def payload(self, offset: int) -> bytes:
        """The opaque bytes of one row."""
        return self._payloads[offset]

    def rows(self, offsets: NDArray[np.int64]) -> Rows:
        """Copy the rows at `offsets` (int64 [m], distinct, not dead), in that order, with all columns.

        O(rows of the segment): fingerprints are kept in the order of their keys.
        """
        view = self._view
        taken_as = np.full(view.row_count, -1, dtype=np.int64)
        taken_as[offsets] = np.arange(offsets.size)
        places = taken_as[self._fingerprint_order]
        fingerprints = np.zeros((offsets.size, 2), dtype=np.uint64)
        fingerprints[places[places >= 0]] = self._fingerprint_words[places >= 0]
        return Rows(
            entry_ids=view.entry_ids[offsets],
            vectors=view.vectors[offsets],
            codes=None if view.codes is None else view.codes[offsets],
            label_codes=view.label_codes[offsets],
            label_mask=view.label_mask[offsets],
            scopes=view.scopes[offsets],
            fingerprints=fingerprints,
            expire_times=view.expire_times[offsets],
            payloads=[self._payloads[offset] for offset in offsets.tolist()],
        )

    def locate(self, entry_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Offsets int64 [m] of entry ids int64 [m]; -1 where absent. May name deleted rows."""
        stored = self._view.entry_ids
        offsets = np.searchsorted(stored, entry_ids)
        offsets[offsets == stored.size] = -1
        if stored.size:
            offsets[stored[offsets] != entry_ids] = -1
        return offsets

    def find_fingerprint(self, key: Fingerprint, *, now_ms: int) -> int | None:
        """Offset of the newest live row with exactly this key; None when there is none."""
        first, second = np.uint64(key[0]), np.uint64(key[1])
        words = self._fingerprint_words
        low, high = (int(np.searchsorted(words[:, 0], first, side=side)) for side in ("left", "right"))
        equal = low + np.flatnonzero(words[low:high, 1] == second)
        newest_first = self._fingerprint_order[equal[::-1]].tolist()
        return _first_live(newest_first, self._view.expire_times, now_ms=now_ms)

    def tombstone(self, entry_ids: NDArray[np.int64]) -> int:
        """Delete rows for good; ids that are not here are ignored. Returns how many died now."""
        offsets = np.unique(self.locate(entry_ids))
        offsets = offsets[offsets >= 0]
        dying = offsets[self._view.expire_times[offsets] != TOMBSTONE]
        self._view.expire_times[dying] = TOMBSTONE
        return int(dying.size)

    def set_expire_times(self, entry_ids: NDArray[np.int64], times: NDArray[np.int64]) -> int:
        """Move expire times (int64 [m], over 0); absent and deleted ids are ignored. Returns the count."""
        return _move_expire_times(self._view.expire_times, self.locate(entry_ids), times)

    def sizes_bytes(self) -> dict[str, int]:
        """Bytes in memory by part; of mapped payloads their bounds."""
        view = self._view
        parts = {name: getattr(view, name) for name in COLUMN_TYPES if name != "fingerprints"}
        sizes = {name: array.nbytes for name, array in parts.items() if array is not None}
        sizes["fingerprints"] = self._fingerprint_words.nbytes + self._fingerprint_order.nbytes
        sizes["payloads"] = payload_memory_bytes(self._payloads)
        sizes["graph"] = 0 if self._graph is None else self._graph.size_bytes
        return sizes


def _joined(first: int, second: int) -> int:
    return first << 64 | second


def _first_live(offsets: Iterable[int], expire_times: NDArray[np.int64], *, now_ms: int) -> int | None:
    return next((offset for offset in offsets if now_ms < expire_times[offset]), None)


def _move_expire_times(
    expire_times: NDArray[np.int64], offsets: NDArray[np.int64], times: NDArray[np.int64]
) -> int:
    if offsets.shape != times.shape:
        raise DimensionError("times", expected=f"[{offsets.size}]", got=f"{list(times.shape)}")
    if times.size and times.min() <= TOMBSTONE:
        raise InvalidRowsError("expire times: must be over 0")
    present = offsets >= 0
    present[present] = expire_times[offsets[present]] != TOMBSTONE
    expire_times[offsets[present]] = times[present]
    return int(np.count_nonzero(present))

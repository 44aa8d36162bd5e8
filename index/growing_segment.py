"""Segments that rows are added to, in memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import DimensionError, InvalidRowsError
from index.hnsw import VectorGraph
from index.kernels import append_codes, empty_blocks
from index.lists import InvertedLists
from index.rows import COLUMN_TYPES, TOMBSTONE, Rows, SegmentKey, SegmentView, payload_memory_bytes
from index.search_table import SearchTable
from index.segment import Fingerprint, first_live, move_expire_times

INITIAL_CAPACITY = 16  # rows; doubles when full


class GrowingSegment:
    """Rows in memory, append only.

    Codes are kept twice: as rows, and bit-sliced for searches. Append writes rows behind the published count
    and then swaps one reference, the view, so that a reader sees a batch whole or not at all. Deleted rows
    keep their place and memory: `compacted` leaves them behind. Capacity doubles: up to half of the reserved
    memory may be unused, and a reader keeps the old arrays alive while it works, with the expire times as
    they were when the arrays grew.
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
        self._blocks = self._allocate_blocks(INITIAL_CAPACITY)
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
    def lists(self) -> InvertedLists | None:
        """None: lists are made when a segment is sealed."""
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

    def scope_share(self, scope: int) -> float:
        """The share of the rows that have this scope; O(rows)."""
        scopes = self._view.scopes
        return float(np.count_nonzero(scopes == np.uint64(scope))) / max(1, scopes.size)

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
        payloads = [rows.payloads[offset] for offset in range(len(rows))]
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
        assert len(self._payloads) == start
        self._payloads.extend(payloads)
        if self._blocks is not None:  # last: bits are only ever set, so it must not happen twice for a row
            append_codes(self._blocks, columns["codes"], row_count=start)
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
        return first_live(offsets, self._view.expire_times, now_ms=now_ms)

    def tombstone(self, entry_ids: NDArray[np.int64]) -> int:
        """Delete rows for good; ids that are not here are ignored. Returns how many died now."""
        offsets = [self._offsets.pop(entry_id, -1) for entry_id in entry_ids.tolist()]
        dying = np.array([offset for offset in offsets if offset >= 0], dtype=np.int64)
        self._view.expire_times[dying] = TOMBSTONE
        return int(dying.size)

    def set_expire_times(self, entry_ids: NDArray[np.int64], times: NDArray[np.int64]) -> int:
        """Move expire times (int64 [m], over 0); absent and deleted ids are ignored. Returns the count."""
        return move_expire_times(self._view.expire_times, self.locate(entry_ids), times)

    def sizes_bytes(self) -> dict[str, int]:
        """Bytes in memory by part, reserved capacity included; the two dicts are estimated."""
        sizes = {name: array.nbytes for name, array in self._arrays.items()}
        sizes["blocks"] = 0 if self._blocks is None else self._blocks.nbytes
        sizes["payloads"] = payload_memory_bytes(self._payloads)
        sizes["lookup"] = 100 * (len(self._offsets) + 2 * len(self._fingerprints))
        return sizes

    def _allocate(self, capacity: int) -> dict[str, NDArray[Any]]:
        return {name: np.empty((capacity, *tail), COLUMN_TYPES[name]) for name, tail in self._widths.items()}

    def _allocate_blocks(self, capacity: int) -> NDArray[np.uint64] | None:
        if "codes" not in self._widths:
            return None
        return empty_blocks(capacity, code_words=self._widths["codes"][0])

    def _reserve(self, row_count: int) -> None:
        count = self._view.row_count
        capacity = max(row_count, 2 * len(self._arrays["entry_ids"]))
        grown = self._allocate(capacity)
        for name, array in grown.items():
            array[:count] = self._arrays[name][:count]
        blocks = self._allocate_blocks(capacity)
        if blocks is not None and self._blocks is not None:
            blocks[: len(self._blocks)] = self._blocks
        self._arrays, self._blocks = grown, blocks

    def _trimmed(self, count: int) -> SegmentView:
        columns = {name: array[:count] for name, array in self._arrays.items() if name != "fingerprints"}
        table = None
        if self._blocks is not None:
            searched = ("codes", "vectors", "entry_ids", "scopes", "expire_times")
            table = SearchTable(
                blocks=self._blocks, quantised=None, **{name: columns[name] for name in searched}
            )
        return SegmentView(is_sealed=False, table=table, **{"codes": None, **columns})  # type: ignore[arg-type]

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


def _joined(first: int, second: int) -> int:
    return first << 64 | second

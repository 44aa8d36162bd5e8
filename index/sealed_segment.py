"""Segments that are finished: searched from memory, backed by a file."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from index.errors import InvalidRowsError
from index.hnsw import VectorGraph
from index.kernels import aligned_zeros, append_codes, empty_blocks, quantise
from index.lists import InvertedLists
from index.rows import (
    COLUMN_TYPES,
    TOMBSTONE,
    Payloads,
    Rows,
    SegmentKey,
    SegmentView,
    memory_bytes,
    payload_memory_bytes,
)
from index.search_table import SearchTable
from index.segment import Fingerprint, first_live, move_expire_times

SCOPE_SAMPLE_ROWS = 1_024
QUANTISED_ROWS = 2_048  # at once, so that what is computed is still in the cache when it is put in its place


class SealedSegment:
    """Rows that are no longer added to.

    In memory: what every search reads (ids, scopes, expire times, and of rows that have codes these,
    bit-sliced, and int8 vectors) and the fingerprints. The rest (float16 vectors, codes in row order, label
    codes, payloads) stays wherever `rows` has it, in a mapped file when read from one, and is read for the
    few best candidates, for class retrieval or not at all. Deletions and expire times change the copy in
    memory only, never the file.
    """

    def __init__(
        self,
        key: SegmentKey,
        rows: Rows,
        *,
        graph: VectorGraph | None = None,
        lists: InvertedLists | None = None,
        threads: int = 1,
    ) -> None:
        """rows: ascending entry ids, or in the order of `lists`; graph, lists: over exactly these rows.

        threads: to prepare the rows with, without the interpreter lock. Raises: InvalidRowsError.
        """
        if lists is None and not rows.is_ascending:
            raise InvalidRowsError(f"{key}: entry ids of a sealed segment without lists must ascend")
        if lists is not None and (lists.row_count, lists.dim) != (len(rows), rows.dim):
            raise InvalidRowsError(f"{key}: the lists are not of these rows")
        if (rows.codes is None) != (key.encoder_id is None):
            raise InvalidRowsError(f"{key}: rows have codes if and only if they have an encoder")
        if graph is not None and (graph.row_count, graph.dim) != (len(rows), rows.dim):
            raise InvalidRowsError(f"{key}: the graph is not of these rows")
        self._key = key
        self._graph = graph
        self._lists = lists
        self._payloads: Payloads = rows.payloads
        with ThreadPoolExecutor(max_workers=threads) as pool:
            blocks = None if rows.codes is None else pool.submit(_sliced, rows.codes)
            self._id_order = None if lists is None else np.argsort(rows.entry_ids)  # int64 [n]
            order = pool.submit(_fingerprint_order, rows.fingerprints, self._id_order)
            quantised = None if blocks is None else _quantised(rows.vectors, pool)
            entry_ids, scopes, times = rows.entry_ids.copy(), rows.scopes.copy(), rows.expire_times.copy()
            table = None
            if blocks is not None and rows.codes is not None:
                table = SearchTable(
                    codes=rows.codes,
                    blocks=blocks.result(),
                    vectors=rows.vectors,
                    quantised=quantised,
                    entry_ids=entry_ids,
                    scopes=scopes,
                    expire_times=times,
                )
            self._view = SegmentView(
                entry_ids=entry_ids,
                vectors=rows.vectors,
                codes=rows.codes,
                label_codes=rows.label_codes,
                label_mask=rows.label_mask,
                scopes=scopes,
                expire_times=times,
                is_sealed=True,
                table=table,
            )
            self._fingerprint_order = order.result()  # int64 [m], of the rows that have a key
        self._scope_sample = rows.scopes[:: max(1, len(rows) // SCOPE_SAMPLE_ROWS)].copy()
        self._fingerprint_words = rows.fingerprints[self._fingerprint_order]  # uint64 [m, 2]

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

    @property
    def lists(self) -> InvertedLists | None:
        """Inverted lists over all rows, or None."""
        return self._lists

    def view(self) -> SegmentView:
        """The rows."""
        return self._view

    def scope_share(self, scope: int) -> float:
        """The share of the rows that have this scope, estimated on a sample."""
        sample = self._scope_sample
        return float(np.count_nonzero(sample == np.uint64(scope))) / max(1, sample.size)

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
        stored, order = self._view.entry_ids, self._id_order
        if not stored.size:
            return np.full(entry_ids.size, -1, dtype=np.int64)
        ranks = np.minimum(np.searchsorted(stored, entry_ids, sorter=order), stored.size - 1)
        offsets = ranks if order is None else order[ranks]
        return np.where(stored[offsets] == entry_ids, offsets, -1)

    def find_fingerprint(self, key: Fingerprint, *, now_ms: int) -> int | None:
        """Offset of the newest live row with exactly this key; None when there is none."""
        first, second = np.uint64(key[0]), np.uint64(key[1])
        words = self._fingerprint_words
        low, high = (int(np.searchsorted(words[:, 0], first, side=side)) for side in ("left", "right"))
        equal = low + np.flatnonzero(words[low:high, 1] == second)
        newest_first = self._fingerprint_order[equal[::-1]].tolist()
        return first_live(newest_first, self._view.expire_times, now_ms=now_ms)

    def tombstone(self, entry_ids: NDArray[np.int64]) -> int:
        """Delete rows for good; ids that are not here are ignored. Returns how many died now."""
        offsets = np.unique(self.locate(entry_ids))
        offsets = offsets[offsets >= 0]
        dying = offsets[self._view.expire_times[offsets] != TOMBSTONE]
        self._view.expire_times[dying] = TOMBSTONE
        return int(dying.size)

    def set_expire_times(self, entry_ids: NDArray[np.int64], times: NDArray[np.int64]) -> int:
        """Move expire times (int64 [m], over 0); absent and deleted ids are ignored. Returns the count."""
        return move_expire_times(self._view.expire_times, self.locate(entry_ids), times)

    def sizes_bytes(self) -> dict[str, int]:
        """Bytes in memory by part; of what is mapped, only the bounds of the payloads."""
        view = self._view
        parts = {name: getattr(view, name) for name in COLUMN_TYPES if name != "fingerprints"}
        sizes = {name: memory_bytes(array) for name, array in parts.items() if array is not None}
        table = view.table
        sizes["quantised"] = 0 if table is None or table.quantised is None else table.quantised.nbytes
        sizes["blocks"] = 0 if table is None else table.blocks.nbytes
        sizes["lists"] = 0 if self._lists is None else self._lists.size_bytes
        sizes["lookup"] = 0 if self._id_order is None else self._id_order.nbytes
        sizes["fingerprints"] = self._fingerprint_words.nbytes + self._fingerprint_order.nbytes
        sizes["payloads"] = payload_memory_bytes(self._payloads)
        sizes["graph"] = 0 if self._graph is None else self._graph.size_bytes
        return sizes


def _quantised(vectors: NDArray[np.float16], pool: ThreadPoolExecutor) -> NDArray[np.int8]:
    """As `quantise`, by all threads of the pool."""
    quantised: NDArray[np.int8] = aligned_zeros(vectors.shape, np.int8)

    def fill(start: int) -> None:
        quantised[start : start + QUANTISED_ROWS] = quantise(vectors[start : start + QUANTISED_ROWS])

    for _ in pool.map(fill, range(0, len(vectors), QUANTISED_ROWS)):
        pass  # raises what a thread raised
    return quantised


def _fingerprint_order(words: NDArray[np.uint64], id_order: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Offsets of the rows with a key, by its first word, then by entry id.

    words: uint64 [n, 2]; id_order: int64 [n], offsets by entry id, None where they ascend. The sort that
    keeps no order is several times faster; keys are hashes, so that two of them hardly ever share a first
    word.
    """
    present = np.flatnonzero(words[:, 0] | words[:, 1])
    if id_order is not None:
        present = id_order[words[id_order].any(axis=1)]
    first = words[present, 0]
    order = np.argsort(first)
    ordered = first[order]
    if np.any(ordered[1:] == ordered[:-1]):
        order = np.argsort(first, kind="stable")
    taken: NDArray[np.int64] = present[order]
    return taken


def _sliced(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    blocks = empty_blocks(len(codes), code_words=codes.shape[1])
    append_codes(blocks, codes, row_count=0)
    return blocks

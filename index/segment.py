"""What growing and sealed segments have in common."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.errors import DimensionError, InvalidRowsError
from index.hnsw import VectorGraph
from index.lists import InvertedLists
from index.rows import TOMBSTONE, Rows, SegmentKey, SegmentView

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

    @property
    def lists(self) -> InvertedLists | None:
        """Inverted lists over all rows; None for a growing segment."""

    def view(self) -> SegmentView:
        """The rows as they are now."""

    def scope_share(self, scope: int) -> float:
        """The share of the rows that have this scope, estimated on a sample of a sealed segment's rows."""

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


def first_live(offsets: Iterable[int], expire_times: NDArray[np.int64], *, now_ms: int) -> int | None:
    """The first of these offsets whose row is live."""
    return next((offset for offset in offsets if now_ms < expire_times[offset]), None)


def move_expire_times(
    expire_times: NDArray[np.int64], offsets: NDArray[np.int64], times: NDArray[np.int64]
) -> int:
    """Set expire times at offsets int64 [m], -1 for absent rows; tombstones stay. Returns how many changed.

    Raises: DimensionError, InvalidRowsError.
    """
    if offsets.shape != times.shape:
        raise DimensionError("times", expected=f"[{offsets.size}]", got=f"{list(times.shape)}")
    if times.size and times.min() <= TOMBSTONE:
        raise InvalidRowsError("expire times: must be over 0")
    present = offsets >= 0
    present[present] = expire_times[offsets[present]] != TOMBSTONE
    expire_times[offsets[present]] = times[present]
    return int(np.count_nonzero(present))

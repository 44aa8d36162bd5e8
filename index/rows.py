"""The exchange format of the index: columns of rows, what identifies a segment, and what a search reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from index.errors import DimensionError, DuplicateEntryError, InvalidRowsError
from index.search_table import SearchTable

NEVER = 2**63 - 1  # expire time of a row that never expires
TOMBSTONE = 0  # expire time of a deleted row, so that `now_ms < expire_time` masks expired and deleted rows

COLUMN_TYPES: dict[str, np.dtype[Any]] = {
    "entry_ids": np.dtype(np.int64),
    "vectors": np.dtype(np.float16),
    "codes": np.dtype(np.uint64),
    "label_codes": np.dtype(np.uint64),
    "label_mask": np.dtype(np.bool_),
    "scopes": np.dtype(np.uint64),
    "fingerprints": np.dtype(np.uint64),
    "expire_times": np.dtype(np.int64),
}


class Payloads(Protocol):
    """Opaque bytes per row: a list, or a column of a mapped file."""

    def __len__(self) -> int: ...

    def __getitem__(self, offset: int, /) -> bytes: ...


class MappedPayloads:
    """Payloads that stay in a mapped file; each access copies one row's bytes out of the page cache."""

    __slots__ = ("_bounds", "_column_start", "_file", "_starts")

    def __init__(self, file: mmap, *, column_start: int, bounds: NDArray[np.int64]) -> None:
        """file: the mapping; column_start: where the column begins in it; bounds: int64 [n + 1], in bytes."""
        self._file = file
        self._column_start = column_start
        self._bounds = bounds
        self._starts = memoryview(bounds.view(np.uint8)).cast("q")  # type: ignore[arg-type]  # fast to index

    def __len__(self) -> int:
        return self._bounds.size - 1

    def __getitem__(self, offset: int, /) -> bytes:
        if offset < 0:
            raise IndexError(offset)
        start, stop = self._starts[offset], self._starts[offset + 1]
        return self._file[self._column_start + start : self._column_start + stop]

    @property
    def size_bytes(self) -> int:
        """Bytes of the column in the file."""
        return int(self._bounds[-1])

    @property
    def bounds_bytes(self) -> int:
        """Bytes in this process's memory of where each payload begins: 0 where that is mapped too."""
        return memory_bytes(self._bounds)


@dataclass(frozen=True, slots=True)
class SegmentKey:
    """What all rows of a segment share. `encoder_id` None: the rows have no codes."""

    category_id: int
    modality: str
    encoder_id: str | None

    @property
    def partition(self) -> tuple[int, str]:
        """(category_id, modality)."""
        return self.category_id, self.modality


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentView:
    """The columns that a search reads, trimmed to one row count; arrays must not be written to.

    Rows never change once they are in a view, except `expire_times`, which the segment updates in place.
    """

    entry_ids: NDArray[np.int64]  # [n]
    vectors: NDArray[np.float16]  # [n, dim]
    codes: NDArray[np.uint64] | None  # [n, words]
    label_codes: NDArray[np.uint64]  # [n, label_words]
    label_mask: NDArray[np.bool_]  # [n]
    scopes: NDArray[np.uint64]  # [n]
    expire_times: NDArray[np.int64]  # [n]
    is_sealed: bool
    table: SearchTable | None  # the same rows, where they have codes

    @property
    def row_count(self) -> int:
        """Rows, dead ones included."""
        return self.entry_ids.size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """n rows as columns.

    entry_ids: int64 [n], the store's row ids, distinct. vectors: float16 [n, dim], of norm 1 before rounding.
    codes: uint64 [n, words], or None for rows without an encoder. label_codes: uint64 [n, label_words],
    where label_words may be 0; label_mask: bool [n], False where a row has no label code. scopes: uint64 [n],
    hash of what must be equal, 0 for none. fingerprints: uint64 [n, 2], exact key, (0, 0) for none.
    expire_times: int64 [n], milliseconds since the epoch, over 0. payloads: opaque bytes per row.

    Raises: DimensionError, InvalidRowsError, DuplicateEntryError.
    """

    entry_ids: NDArray[np.int64]
    vectors: NDArray[np.float16]
    codes: NDArray[np.uint64] | None
    label_codes: NDArray[np.uint64]
    label_mask: NDArray[np.bool_]
    scopes: NDArray[np.uint64]
    fingerprints: NDArray[np.uint64]
    expire_times: NDArray[np.int64]
    payloads: Payloads

    def __post_init__(self) -> None:
        count = len(self.entry_ids)
        widths = {"vectors": None, "codes": None, "label_codes": None, "fingerprints": 2}
        for name, array in self.columns.items():
            width = widths.get(name)
            tail = [array.shape[1] if array.ndim == 2 and width is None else width] if name in widths else []
            if array.dtype != COLUMN_TYPES[name] or list(array.shape) != [count, *tail]:
                expected = (
                    f"{COLUMN_TYPES[name]} {[count, *['?' if size is None else size for size in tail]]}"
                )
                raise DimensionError(name, expected=expected, got=f"{array.dtype} {list(array.shape)}")
        if len(self.payloads) != count:
            raise DimensionError("payloads", expected=f"[{count}]", got=f"[{len(self.payloads)}]")
        if count and self.expire_times.min() <= TOMBSTONE:
            raise InvalidRowsError("expire_times: must be over 0")
        if not self.is_ascending:
            distinct, counts = np.unique(self.entry_ids, return_counts=True)
            if distinct.size != count:
                raise DuplicateEntryError(distinct[counts > 1].tolist())

    def __len__(self) -> int:
        return len(self.entry_ids)

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The array columns by name; without `codes` where there are none, and without the payloads."""
        arrays = {name: getattr(self, name) for name in COLUMN_TYPES}
        return {name: array for name, array in arrays.items() if array is not None}

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.vectors.shape[1])

    @property
    def is_ascending(self) -> bool:
        """Whether the entry ids strictly ascend."""
        return bool(np.all(self.entry_ids[1:] > self.entry_ids[:-1]))

    @property
    def size_bytes(self) -> int:
        """Bytes of the columns and of the payloads."""
        return sum(array.nbytes for array in self.columns.values()) + payload_size_bytes(self.payloads)

    def take(self, offsets: NDArray[np.int64]) -> "Rows":
        """Copy the rows at `offsets` (int64 [m], distinct), in that order."""
        taken = {name: array[offsets] for name, array in self.columns.items()}
        payloads = [self.payloads[offset] for offset in offsets.tolist()]
        return self.from_columns(taken, payloads=payloads)

    @classmethod
    def from_columns(cls, columns: Mapping[str, NDArray[Any]], *, payloads: Payloads) -> "Rows":
        """Make rows of what `columns` returns; no "codes" means none. Raises: as the constructor."""
        return cls(
            entry_ids=columns["entry_ids"],
            vectors=columns["vectors"],
            codes=columns.get("codes"),
            label_codes=columns["label_codes"],
            label_mask=columns["label_mask"],
            scopes=columns["scopes"],
            fingerprints=columns["fingerprints"],
            expire_times=columns["expire_times"],
            payloads=payloads,
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Rows"]) -> "Rows":
        """Join at least one batch with equal widths, all with codes or all without.

        Raises: DimensionError, DuplicateEntryError.
        """
        shapes = [{name: array.shape[1:] for name, array in part.columns.items()} for part in parts]
        for shape in shapes[1:]:
            if shape != shapes[0]:
                raise DimensionError("rows", expected=str(shapes[0]), got=str(shape))
        joined = {name: np.concatenate([part.columns[name] for part in parts]) for name in shapes[0]}
        payloads = [part.payloads[offset] for part in parts for offset in range(len(part))]
        return cls.from_columns(joined, payloads=payloads)


def memory_bytes(array: NDArray[Any]) -> int:
    """Bytes that an array takes in this process's memory: 0 for a view of a mapped file."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return 0 if isinstance(owner, mmap) else array.nbytes


def payload_size_bytes(payloads: Payloads) -> int:
    """Bytes of all payloads, without reading a mapped file."""
    if isinstance(payloads, MappedPayloads):
        return payloads.size_bytes
    return sum(len(payloads[offset]) for offset in range(len(payloads)))


def payload_memory_bytes(payloads: Payloads) -> int:
    """Bytes that payloads take in this process's memory: of mapped ones, only where each begins."""
    if isinstance(payloads, MappedPayloads):
        return payloads.bounds_bytes
    return payload_size_bytes(payloads)
